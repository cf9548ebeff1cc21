//! What weights are worth in clicks: click models that start from different priors and learn from
//! the first n impressions of each cold ad (Eq. 7).

use common::Result;
use common::report::plot::{self, Labels, Line};
use common::report::{Figure, Report, Role, Row};
use rayon::prelude::*;

use super::base;
use super::part::Part;
use crate::blend::Example;
use crate::calibrate::prior_strength;
use crate::eval::worth;
use crate::generate::Generator;
use crate::model::logit::{dot, logit};
use crate::model::prior::Prior;

/// Impressions of its own that an ad has.
const POINTS: [usize; 6] = [0, 10, 30, 100, 300, 1000];

/// What the curves need of a part.
pub(super) struct Curves<'a> {
    pub(super) part: &'a Part<'a>,
    pub(super) generator: &'a Generator<'a>,
    pub(super) targets: &'a [f64],
    /// Retired ads treated as cold, which choose the strength of each prior.
    pub(super) examples: &'a [&'a Example],
}

/// Weights that start a curve: for the cold ads, and for the retired ads treated as cold.
pub(super) struct Start<'a> {
    pub(super) name: &'static str,
    pub(super) weights: &'a [Vec<f64>],
    pub(super) as_cold: Vec<Vec<f64>>,
}

impl Curves<'_> {
    /// Rows, a figure, and the sentence on the first source's worth.
    pub(super) fn run(&self, starts: &[Start<'_>], report: &mut Report) -> Result<String> {
        let part = self.part;
        let width = part.data.schema.len();
        let zero = vec![vec![0.0; width]; part.cold.len()];
        let alone = Start {
            name: "own impressions alone",
            weights: &zero,
            as_cold: vec![vec![0.0; width]; self.examples.len()],
        };
        let mut lines = Vec::new();
        let mut strengths = Vec::new();
        for start in std::iter::once(&alone).chain(starts) {
            let strength = prior_strength(self.examples, &start.as_cold, part.library.c)?;
            lines.push(Line {
                name: start.name.to_owned(),
                points: self.curve(start.weights, strength / part.library.c)?,
            });
            strengths.push(strength);
        }
        let scratch = lines[0].points.clone();
        let rate = self.targets.iter().sum::<f64>() / self.targets.len().max(1) as f64;
        let mut sentence = String::new();
        for (at, line) in lines.iter().enumerate() {
            let role = match line.name.as_str() {
                "LLM-HYPER, likelihood" | "LLM-HYPER, residual" | "blend with LLM" => Role::Ours,
                _ => Role::Baseline,
            };
            for &(n, value) in &line.points {
                report.rows.push(Row {
                    claim: "good prior weights save impressions".into(),
                    metric: format!("auc per ad after {n} impressions"),
                    mean: Some(value),
                    n: part.cold.len(),
                    note: Some(format!(
                        "prior precision {} times the library's λ, chosen on retired ads",
                        strengths[at]
                    )),
                    ..base(&part.data.name, &format!("warm-up from {}", line.name), role)
                });
            }
            if at == 0 {
                continue;
            }
            let last = POINTS[POINTS.len() - 1] as f64;
            let worth = worth(&scratch, line.points[0].1);
            let (value, words) = match worth {
                Some(n) => {
                    (n, format!("{:.0} impressions ({:.0} clicks) of an ad's own", n, n * rate))
                }
                None => (last, format!("more than {last:.0} impressions of an ad's own")),
            };
            if at == 1 {
                sentence = format!("{} is worth {words}", line.name);
            }
            report.rows.push(Row {
                claim: "good prior weights save impressions".into(),
                metric: "worth, impressions".into(),
                mean: Some(value),
                n: part.cold.len(),
                note: Some(if worth.is_some() {
                    format!("about {:.0} clicks at the demonstrations' click rate", value * rate)
                } else {
                    "at least: a model of the ad's own impressions stays below".into()
                }),
                ..base(&part.data.name, &line.name, role)
            });
        }
        let title = format!("Warm-up of cold ads, {}", part.data.name);
        let log: Vec<Line> = lines
            .into_iter()
            .map(|line| Line {
                points: line.points.iter().map(|&(n, v)| ((1.0 + n).log10(), v)).collect(),
                ..line
            })
            .collect();
        report.figures.push(Figure::new(
            &title,
            "Mean AUC per ad after the first n impressions of each ad, from different prior means \
             (Eq. 7); the horizontal axis is log10(1 + n). Where a curve starts is what its prior \
             is worth before any click.",
            plot::lines(
                Labels { title: &title, x: "log10(1 + impressions)", y: "mean AUC per ad" },
                &log,
            ),
        ));
        Ok(sentence)
    }

    /// (impressions, mean AUC per ad) with `weights` as prior means.
    fn curve(&self, weights: &[Vec<f64>], precision: f64) -> Result<Vec<(f64, f64)>> {
        let part = self.part;
        let impressions = &part.data.impressions;
        let rows = part.data.rows_by_ad(|row| !part.split.held_out[impressions.user[row]]);
        let mut by_ad: Vec<Vec<usize>> = vec![Vec::new(); part.cold.len()];
        for (at, &ad) in part.test.ad.iter().enumerate() {
            by_ad[ad].push(at);
        }
        let test: Vec<_> = by_ad
            .iter()
            .map(|own| {
                let rows: Vec<usize> = own.iter().map(|&at| part.test.rows[at]).collect();
                (impressions.rows(&rows), impressions.labels(&rows))
            })
            .collect();
        let biases: Vec<f64> = weights
            .iter()
            .zip(self.targets)
            .map(|(w, &target)| match w.iter().any(|w| *w != 0.0) {
                true => self.generator.bias(w, target),
                false => Ok(logit(target)),
            })
            .collect::<Result<_>>()?;
        let mut curve = Vec::new();
        for &n in &POINTS {
            let repeats = if n == 0 { 1 } else { part.config.bench.repeats };
            let jobs: Vec<(usize, usize)> = (0..part.cold.len())
                .flat_map(|ad| (0..repeats).map(move |repeat| (ad, repeat)))
                .collect();
            let aucs: Vec<f64> = jobs
                .par_iter()
                .map(|&(ad, repeat)| -> Result<f64> {
                    let mut own = rows[part.split.active[ad]].clone();
                    let purpose = format!("warm-up/{ad}/{repeat}");
                    part.seed.stream(&purpose).shuffle(&mut own);
                    own.truncate(n);
                    let prior = Prior {
                        weights: weights[ad].clone(),
                        bias: biases[ad],
                        precision,
                        bias_precision: 1.0,
                    };
                    let posterior =
                        prior.update(impressions.rows(&own).view(), &impressions.labels(&own))?;
                    let (features, labels) = &test[ad];
                    let scores: Vec<f64> = features
                        .rows()
                        .into_iter()
                        .map(|x| dot(&posterior.weights, &x.to_vec()))
                        .collect();
                    Ok(common::metrics::auc(labels, &scores, None))
                })
                .collect::<Result<_>>()?;
            let known: Vec<f64> = aucs.into_iter().filter(|auc| auc.is_finite()).collect();
            curve.push((n as f64, known.iter().sum::<f64>() / known.len().max(1) as f64));
        }
        Ok(curve)
    }
}
