//! Evaluation on impressions of cold ads (§8): metrics with intervals over ads, interpretability,
//! and what the weights are worth in impressions.

use std::collections::{BTreeMap, BTreeSet};

use common::rng::Seed;
use common::{metrics, stats};

use crate::artefact::Reason;
use crate::data::{Impressions, Schema};

/// The metrics of a method's probabilities, in the order of the tables.
pub const METRICS: [(&str, bool); 7] = [
    ("auc per ad", true),
    ("auc", true),
    ("ndcg@5", true),
    ("ndcg@10", true),
    ("log loss", false),
    ("ece", false),
    ("calibration ratio", true),
];

/// Impressions that judge: which rows, of which cold ad.
#[derive(Debug, Clone)]
pub struct TestSet {
    /// Row numbers in the impressions.
    pub rows: Vec<usize>,
    /// Per row the position of its ad among the cold ads.
    pub ad: Vec<usize>,
    /// Per row whether it was clicked.
    pub clicked: Vec<bool>,
    /// Rows of each user who clicked at least one ad; an ad shown twice counts once.
    users: Vec<Vec<usize>>,
    /// Number of cold ads.
    pub ads: usize,
}

/// A value with its bootstrap interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The metric.
    pub value: f64,
    /// 95 % interval.
    pub ci95: [f64; 2],
    /// Items that were resampled: ads, or users for NDCG.
    pub n: usize,
}

impl TestSet {
    /// The rows of `active` ads for which `keep` holds.
    pub fn new(impressions: &Impressions, active: &[usize], keep: impl Fn(usize) -> bool) -> Self {
        let position: BTreeMap<usize, usize> =
            active.iter().enumerate().map(|(at, &ad)| (ad, at)).collect();
        let mut set = Self {
            rows: Vec::new(),
            ad: Vec::new(),
            clicked: Vec::new(),
            users: Vec::new(),
            ads: active.len(),
        };
        let mut by_user: BTreeMap<usize, BTreeMap<usize, usize>> = BTreeMap::new();
        for row in 0..impressions.len() {
            if let Some(&at) = position.get(&impressions.ad[row]).filter(|_| keep(row)) {
                let here = set.rows.len();
                set.rows.push(row);
                set.ad.push(at);
                set.clicked.push(impressions.clicked[row]);
                let shown = by_user.entry(impressions.user[row]).or_default();
                shown.entry(at).or_insert(here);
            }
        }
        set.users = by_user
            .into_values()
            .map(|shown| shown.into_values().collect::<Vec<_>>())
            .filter(|rows| rows.iter().any(|&row| set.clicked[row]))
            .collect();
        set
    }

    /// AUC of each ad; NaN for an ad with one class.
    pub fn auc_per_ad(&self, scores: &[f64]) -> Vec<f64> {
        let mut by_ad = vec![(Vec::new(), Vec::new()); self.ads];
        for ((&ad, &clicked), &score) in self.ad.iter().zip(&self.clicked).zip(scores) {
            by_ad[ad].0.push(clicked);
            by_ad[ad].1.push(score);
        }
        by_ad.iter().map(|(labels, scores)| metrics::auc(labels, scores, None)).collect()
    }

    /// NDCG@k of each user over the ads that this user was shown.
    pub fn ndcg_per_user(&self, scores: &[f64], k: usize) -> Vec<f64> {
        self.users
            .iter()
            .map(|rows| {
                let gain: Vec<f64> =
                    rows.iter().map(|&row| f64::from(u8::from(self.clicked[row]))).collect();
                let scores: Vec<f64> = rows.iter().map(|&row| scores[row]).collect();
                metrics::ndcg_at(&gain, &scores, k)
            })
            .collect()
    }

    /// Every metric of [`METRICS`] on click probabilities. Intervals resample ads (users for NDCG)
    /// `resamples` times. Metrics that are not defined here (no user column, one class) are `None`.
    pub fn measure(
        &self,
        probabilities: &[f64],
        resamples: usize,
        seed: Seed,
    ) -> Vec<Option<Measured>> {
        METRICS.iter().map(|(name, _)| self.metric(name, probabilities, resamples, seed)).collect()
    }

    /// One metric of [`METRICS`]; `None` for another name or where it is not defined.
    pub fn metric(&self, name: &str, p: &[f64], resamples: usize, seed: Seed) -> Option<Measured> {
        let mut stream = seed.stream("bootstrap/ads");
        let whole: Vec<usize> = (0..self.ads).collect();
        let mut over = |n: usize, whole: &[usize], f: &(dyn Fn(&[usize]) -> f64 + Sync)| {
            let value = f(whole);
            let ci95 = stats::bootstrap_ci(n, resamples, &mut stream, f);
            let finite = value.is_finite() && ci95.iter().all(|end| end.is_finite());
            finite.then_some(Measured { value, ci95, n })
        };
        let mean_of = |values: Vec<f64>| {
            move |items: &[usize]| {
                let known: Vec<f64> =
                    items.iter().map(|&i| values[i]).filter(|v| v.is_finite()).collect();
                known.iter().sum::<f64>() / known.len() as f64
            }
        };
        match name {
            "auc per ad" => over(self.ads, &whole, &mean_of(self.auc_per_ad(p))),
            "auc" => {
                let pooled = PooledAuc::new(self, p);
                over(self.ads, &whole, &|ads| pooled.of(ads))
            }
            // A user who saw a single ad has nothing to rank.
            "ndcg@5" | "ndcg@10" if self.users.iter().any(|rows| rows.len() > 1) => {
                let k = if name == "ndcg@5" { 5 } else { 10 };
                let users: Vec<usize> = (0..self.users.len()).collect();
                over(users.len(), &users, &mean_of(self.ndcg_per_user(p, k)))
            }
            "log loss" => {
                let mut sums = vec![(0.0, 0.0); self.ads];
                for ((&ad, &clicked), &p) in self.ad.iter().zip(&self.clicked).zip(p) {
                    sums[ad].0 += metrics::log_loss(&[clicked], &[p], None);
                    sums[ad].1 += 1.0;
                }
                over(self.ads, &whole, &move |ads| ratio(&sums, ads))
            }
            "calibration ratio" => {
                let mut sums = vec![(0.0, 0.0); self.ads];
                for ((&ad, &clicked), &p) in self.ad.iter().zip(&self.clicked).zip(p) {
                    sums[ad].0 += p;
                    sums[ad].1 += f64::from(u8::from(clicked));
                }
                over(self.ads, &whole, &move |ads| ratio(&sums, ads))
            }
            "ece" => {
                let bins = metrics::ECE_BINS;
                // Per ad and bin: Σ p − Σ y, and rows.
                let mut gaps = vec![(0.0, 0.0); self.ads * bins];
                for ((&ad, &clicked), &p) in self.ad.iter().zip(&self.clicked).zip(p) {
                    let bin = ((p * bins as f64) as usize).min(bins - 1);
                    gaps[ad * bins + bin].0 += p - f64::from(u8::from(clicked));
                    gaps[ad * bins + bin].1 += 1.0;
                }
                over(self.ads, &whole, &move |ads| {
                    let sum = |bin: usize, f: &dyn Fn((f64, f64)) -> f64| -> f64 {
                        ads.iter().map(|ad| f(gaps[ad * bins + bin])).sum()
                    };
                    let gap: f64 = (0..bins).map(|bin| sum(bin, &|g| g.0).abs()).sum();
                    gap / (0..bins).map(|bin| sum(bin, &|g| g.1)).sum::<f64>()
                })
            }
            _ => None,
        }
    }
}

fn ratio(sums: &[(f64, f64)], ads: &[usize]) -> f64 {
    let top: f64 = ads.iter().map(|&ad| sums[ad].0).sum();
    top / ads.iter().map(|&ad| sums[ad].1).sum::<f64>()
}

/// Pooled AUC for many resamples of ads: rows are sorted once.
struct PooledAuc {
    /// (ad, clicked) by ascending score, in runs of equal score.
    runs: Vec<Vec<(usize, bool)>>,
    ads: usize,
}

impl PooledAuc {
    fn new(set: &TestSet, scores: &[f64]) -> Self {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        let runs = order
            .chunk_by(|&a, &b| scores[a] == scores[b])
            .map(|run| run.iter().map(|&row| (set.ad[row], set.clicked[row])).collect())
            .collect();
        Self { runs, ads: set.ads }
    }

    /// AUC over the rows of `ads`, each as often as it is listed.
    fn of(&self, ads: &[usize]) -> f64 {
        let mut times = vec![0.0; self.ads];
        ads.iter().for_each(|&ad| times[ad] += 1.0);
        let (mut area, mut below, mut positives, mut negatives) = (0.0, 0.0, 0.0, 0.0);
        for run in &self.runs {
            let (mut p, mut n) = (0.0, 0.0);
            for &(ad, clicked) in run {
                if clicked { p += times[ad] } else { n += times[ad] }
            }
            area += p * (below + 0.5 * n);
            below += n;
            positives += p;
            negatives += n;
        }
        area / (positives * negatives)
    }
}

/// Share of ads whose `k` largest |weights| hold an expert feature (HR@k), and mean share of the
/// expert features among them (Coverage@k). Ads without expert features are left out; `None` when
/// none has any. The names are the paper's, the definitions ours.
pub fn interpretability(
    weights: &[Vec<f64>],
    expert: &[&[usize]],
    k: usize,
) -> Option<(Vec<f64>, Vec<f64>)> {
    let (mut hits, mut coverage) = (Vec::new(), Vec::new());
    for (weights, expert) in weights.iter().zip(expert).filter(|(_, expert)| !expert.is_empty()) {
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by(|&a, &b| weights[b].abs().total_cmp(&weights[a].abs()).then(a.cmp(&b)));
        let top: BTreeSet<usize> = order.into_iter().take(k).collect();
        let found = expert.iter().filter(|feature| top.contains(feature)).count();
        hits.push(f64::from(u8::from(found > 0)));
        coverage.push(found as f64 / expert.len() as f64);
    }
    (!hits.is_empty()).then_some((hits, coverage))
}

/// The sign that a reason states: it begins with +, - or 0 as the prompt asks, or else says in words
/// of one kind only that the feature raises or lowers clicks. `None` when it states none.
pub fn stated_sign(reason: &str) -> Option<f64> {
    const RAISES: [&str; 5] = ["positive", "more likely", "raises", "increases", "higher"];
    const LOWERS: [&str; 5] = ["negative", "less likely", "lowers", "decreases", "lower"];
    match reason.trim_start().chars().next()? {
        '+' => return Some(1.0),
        '-' | '−' | '–' => return Some(-1.0),
        '0' => return Some(0.0),
        _ => {}
    }
    let reason = reason.to_lowercase();
    let says = |words: [&str; 5]| words.iter().any(|word| reason.contains(word));
    match (says(RAISES), says(LOWERS)) {
        (true, false) => Some(1.0),
        (false, true) => Some(-1.0),
        _ => None,
    }
}

/// Consistency (§8): for every reason that states a sign, whether it is the sign of the weight that
/// the LLM wrote. The name is the paper's, the definition ours.
pub fn consistency(reasoning: &[Reason], raw: &[f64], schema: &Schema) -> Vec<bool> {
    let judged = reasoning.iter().filter_map(|reason| {
        let weight = *raw.get(schema.position(&reason.feature)?)?;
        let sign = if weight == 0.0 { 0.0 } else { weight.signum() };
        Some(stated_sign(&reason.text)? == sign)
    });
    judged.collect()
}

/// How many impressions of its own an ad needs until a model trained on them alone reaches
/// `value`: linear between the points of `curve` (impressions ascending, metric) on the scale
/// ln(1 + n). `None` when the curve never gets there; 0 when it starts above.
pub fn worth(curve: &[(f64, f64)], value: f64) -> Option<f64> {
    let first = curve.first()?;
    if first.1 >= value {
        return Some(first.0);
    }
    for pair in curve.windows(2) {
        let [(n0, v0), (n1, v1)] = [pair[0], pair[1]];
        if v1 >= value {
            let share = (value - v0) / (v1 - v0);
            let at = n0.ln_1p() + share * (n1.ln_1p() - n0.ln_1p());
            return Some(at.exp_m1());
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pooled_auc_and_ece_equal_the_plain_metrics() {
        let mut stream = Seed::new(3).stream("t");
        let n = 400;
        let impressions = Impressions {
            ad: (0..n).map(|row| row % 5).collect(),
            user: (0..n).map(|row| row % 40).collect(),
            time: vec![0; n],
            clicked: (0..n).map(|_| stream.chance(0.3)).collect(),
            ..Impressions::default()
        };
        let set = TestSet::new(&impressions, &[0, 1, 2, 3, 4], |_| true);
        // Ties on purpose.
        let p: Vec<f64> = (0..n).map(|_| (stream.below(20) as f64 + 0.5) / 20.0).collect();
        let of = |name: &str| set.metric(name, &p, 50, Seed::new(1)).unwrap();
        let auc = of("auc");
        assert!((auc.value - metrics::auc(&set.clicked, &p, None)).abs() < 1e-12);
        assert!(auc.ci95[0] <= auc.value && auc.value <= auc.ci95[1]);
        assert!((of("ece").value - metrics::ece(&set.clicked, &p)).abs() < 1e-12);
        assert!((of("log loss").value - metrics::log_loss(&set.clicked, &p, None)).abs() < 1e-12);
        let clicks = set.clicked.iter().filter(|c| **c).count() as f64;
        let ratio = p.iter().sum::<f64>() / clicks;
        assert!((of("calibration ratio").value - ratio).abs() < 1e-12);
    }

    #[test]
    fn worth_reads_the_curve() {
        let curve = [(0.0, 0.5), (9.0, 0.6), (99.0, 0.7)];
        assert_eq!(worth(&curve, 0.4), Some(0.0));
        assert!((worth(&curve, 0.6).unwrap() - 9.0).abs() < 1e-9);
        // Half-way between ln 10 and ln 100.
        assert!((worth(&curve, 0.65).unwrap() - (1000f64.sqrt() - 1.0)).abs() < 1e-9);
        assert_eq!(worth(&curve, 0.8), None);
    }

    #[test]
    fn consistency_compares_stated_signs_with_weights() {
        assert_eq!(stated_sign(" + they garden"), Some(1.0));
        assert_eq!(stated_sign("−, too young"), Some(-1.0));
        assert_eq!(stated_sign("People who are more likely to click"), Some(1.0));
        assert_eq!(stated_sign("higher or lower, who knows"), None);
        assert_eq!(stated_sign(""), None);
        let feature = |name: &str| crate::data::Feature {
            name: name.into(),
            description: name.into(),
            kind: crate::data::Kind::Binary,
            mean: 0.0,
            std: 1.0,
        };
        let schema = Schema { features: ["a", "b", "c"].map(feature).to_vec() };
        let reason =
            |feature: &str, text: &str| Reason { feature: feature.into(), text: text.into() };
        let reasons = [reason("a", "+ x"), reason("b", "+ y"), reason("c", "0"), reason("b", "so")];
        assert_eq!(consistency(&reasons, &[0.2, -0.1, 0.0], &schema), [true, false, true]);
    }

    #[test]
    fn interpretability_of_a_worked_example() {
        let weights = [vec![0.1, -3.0, 2.0], vec![1.0, 0.0, 0.5], vec![1.0, 1.0, 1.0]];
        let (hits, coverage) = interpretability(&weights, &[&[1, 0], &[1], &[]], 2).unwrap();
        assert_eq!((hits, coverage), (vec![1.0, 0.0], vec![0.5, 0.0]));
    }
}
