//! Controls that would expose a placebo, interpretability, counterfactual edits, and the LLM as an
//! end-to-end ranker.

use std::collections::BTreeMap;

use common::llm::Prompt;
use common::report::{Report, Role, Row};
use common::{Result, metrics, stats};

use super::base;
use super::part::{Method, Part, Written};
use crate::baselines::{random_like, shuffled};
use crate::config::Mode;
use crate::data::{Ad, Kind};
use crate::eval::{consistency, interpretability};
use crate::generate::Generator;
use crate::model::residual::Residual;
use crate::model::retrieve::Found;
use crate::writer::{Query, Writer, prompts};

/// What controls need of a part.
pub(super) struct Controls<'a> {
    pub(super) part: &'a Part<'a>,
    pub(super) generator: &'a Generator<'a>,
    pub(super) writer: &'a Writer,
}

/// Name, note and one weight vector per cold ad.
type Control = (&'static str, &'static str, Vec<Vec<f64>>);

impl Controls<'_> {
    /// Controls that need no further answer of the LLM.
    pub(super) fn weights(&self, llm: &[Vec<f64>], residual: &[Vec<f64>]) -> Vec<Control> {
        let part = self.part;
        let order = part.seed.stream("control/names").permutation(part.data.schema.len());
        let mut stream = part.seed.stream("control/random-weights");
        let random = llm.iter().map(|w| random_like(w, &mut stream)).collect();
        // The residual of another ad: the median with somebody else's specials.
        let mut others = part.seed.stream("control/other-ad").permutation(residual.len());
        for at in 0..others.len() {
            if others[at] == at {
                let next = (at + 1) % others.len();
                others.swap(at, next);
            }
        }
        vec![
            (
                "LLM likelihood, shuffled feature names",
                "each feature gets the weight that the LLM wrote for another one",
                llm.iter().map(|w| shuffled(w, &order)).collect(),
            ),
            ("random weights of the LLM's norm", "", random),
            (
                "LLM residual of another ad",
                "what the LLM wrote, given to the wrong ad",
                others.iter().map(|&at| residual[at].clone()).collect(),
            ),
        ]
    }

    /// Controls with prompts of their own, on the first `bench.control_ads` cold ads: random
    /// demonstrations, and no ad text.
    pub(super) fn prompted(
        &self,
        found: &[Vec<Found>],
        written: &Written,
        residual: &Residual,
        report: &mut Report,
    ) -> Result<()> {
        let part = self.part;
        let n = part.config.bench.control_ads.min(part.cold.len());
        if n == 0 || part.data.expert.iter().all(Vec::is_empty) {
            return Ok(());
        }
        let mut stream = part.seed.stream("control/random-demos");
        let others: Vec<Vec<Found>> = found[..n]
            .iter()
            .map(|found| {
                let drawn = stream.sample(part.library.ads.len(), found.len());
                drawn.into_iter().map(|index| Found { index, similarity: 0.0 }).collect()
            })
            .collect();
        let blank: Vec<Ad> = part.cold[..n]
            .iter()
            .map(|ad| Ad {
                title: prompts::CONTENT_FREE.into(),
                description: String::new(),
                ..ad.clone()
            })
            .collect();
        let write =
            |ads: &[Ad], found: &[Vec<Found>]| part.write(self.generator, self.writer, ads, found);
        let dataset = format!("{}, {n} ads", part.data.name);
        for (name, role, answers) in [
            ("as asked", Role::Ours, &written.raw[..n]),
            ("random demonstrations", Role::Control, &write(&part.cold[..n], &others)?.raw),
            ("blank ad text", Role::Control, &write(&blank, &found[..n])?.raw),
        ] {
            let weights: Vec<Vec<f64>> = answers
                .iter()
                .map(|raw| residual.weights(raw, &self.generator.centre, &self.generator.spread))
                .collect();
            let aucs: Vec<f64> =
                part.auc_of(&weights).into_iter().filter(|a| a.is_finite()).collect();
            report.rows.push(Row {
                mean: Some(stats::mean_sd(&aucs).0),
                ci95: Some(self.interval(&aucs)),
                n: aucs.len(),
                ..base(&dataset, &format!("LLM-HYPER, residual, {name}"), role)
            });
        }
        Ok(())
    }

    /// Counterfactual accuracy: a genre word is added to the ad's text (its weight must rise), taken
    /// out (fall), or a sentence without a concept is added (weights must stay within a tenth of
    /// their range).
    pub(super) fn counterfactual(
        &self,
        found: &[Vec<Found>],
        written: &Written,
        report: &mut Report,
    ) -> Result<()> {
        let part = self.part;
        let ads = part.config.bench.edited_ads.min(part.cold.len());
        let concepts: Vec<(usize, &str)> = part
            .data
            .schema
            .features
            .iter()
            .enumerate()
            .filter_map(|(j, feature)| Some((j, feature.name.strip_prefix("affinity:")?)))
            .collect();
        if ads == 0 || concepts.is_empty() {
            return Ok(());
        }
        let mut stream = part.seed.stream("counterfactual");
        let chosen = stream.sample(part.cold.len(), ads);
        // (kind, feature, original ad, edited text)
        let mut edits: Vec<(&str, usize, usize, Ad)> = Vec::new();
        for &at in &chosen {
            let ad = &part.cold[at];
            let has = |concept: &str| ad.description.split(", ").any(|word| word == concept);
            let present: Vec<_> = concepts.iter().filter(|(_, c)| has(c)).collect();
            let absent: Vec<_> = concepts.iter().filter(|(_, c)| !has(c)).collect();
            let edited = |description: String| Ad { description, ..ad.clone() };
            let (j, concept) = absent[stream.below(absent.len())];
            let more = format!("{}, {concept}", ad.description);
            edits.push(("enhanced", *j, at, edited(more)));
            if present.len() > 1 {
                let (j, concept) = present[stream.below(present.len())];
                let less: Vec<&str> =
                    ad.description.split(", ").filter(|word| word != concept).collect();
                edits.push(("diminished", *j, at, edited(less.join(", "))));
            }
            let same = format!("{}. Now in the shops.", ad.description);
            edits.push(("neutral", *j, at, edited(same)));
        }
        let queries: Vec<Query<'_>> = edits
            .iter()
            .map(|(_, _, at, edited)| self.generator.query(edited, &found[*at]))
            .collect();
        let (raws, _) = part.llm.ask(self.writer, &queries)?;
        let mut correct: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for ((kind, j, at, _), after) in edits.iter().zip(&raws) {
            let before = &written.raw[*at];
            let change = after.values[*j].unwrap_or(0.0) - before[*j];
            let range = before.iter().copied().fold(f64::MIN, f64::max)
                - before.iter().copied().fold(f64::MAX, f64::min);
            let right = match *kind {
                "enhanced" => change > 0.0,
                "diminished" => change < 0.0,
                _ => change.abs() <= 0.1 * range,
            };
            correct.entry(kind).or_default().push(f64::from(u8::from(right)));
        }
        for (kind, paper) in [("enhanced", 0.87), ("diminished", 0.88), ("neutral", 0.68)] {
            let Some(right) = correct.get(kind) else { continue };
            report.rows.push(Row {
                claim: "weights follow edits of the ad's text".into(),
                metric: format!("counterfactual accuracy, {kind}"),
                mean: Some(stats::mean_sd(right).0),
                ci95: Some(self.interval(right)),
                n: right.len(),
                paper_value: Some(paper),
                note: Some(
                    "our definition on genre words; the paper's is on internal ads with another LLM"
                        .into(),
                ),
                ..base(&part.data.name, "LLM-HYPER, likelihood", Role::Ours)
            });
        }
        Ok(())
    }

    /// The paper's form, JSON with reasons, on the first `bench.json_ads` cold ads: how good, and
    /// whether reasons and weights agree in sign.
    pub(super) fn reasons(&self, found: &[Vec<Found>], report: &mut Report) -> Result<()> {
        let part = self.part;
        let n = part.config.bench.json_ads.min(part.cold.len());
        if n == 0 || part.data.schema.len() > part.config.writer.batch {
            return Ok(());
        }
        let writer = part.llm.writer(&part.data.schema, &part.config.writer, Mode::Json)?;
        let queries = self.generator.queries(&part.cold[..n], &found[..n]);
        let (raws, spent) = part.llm.ask(&writer, &queries)?;
        let (mut weights, mut agree) = (Vec::new(), Vec::new());
        for ((ad, found), raw) in part.cold.iter().zip(found).zip(&raws) {
            let artefact = self.generator.finish(ad, found, raw, "")?;
            let signs = consistency(&artefact.reasoning, &artefact.raw, &part.data.schema);
            agree.extend(signs.into_iter().map(|same| f64::from(u8::from(same))));
            weights.push(artefact.weights);
        }
        let dataset = format!("{}, {n} ads in json mode", part.data.name);
        let row = || base(&dataset, "LLM-HYPER, json with reasons", Role::Paper);
        let aucs: Vec<f64> = part.auc_of(&weights).into_iter().filter(|a| a.is_finite()).collect();
        report.rows.push(Row {
            mean: Some(stats::mean_sd(&aucs).0),
            ci95: Some(self.interval(&aucs)),
            n: aucs.len(),
            note: Some(spent.words()),
            ..row()
        });
        let consistency = Row {
            claim: "reasons state the sign of the weight that follows".into(),
            metric: "Consistency".into(),
            n: agree.len(),
            paper_value: Some(0.95),
            note: Some(
                "signs stated in reasons; the paper's value is a lower bound, for another LLM; \
                 definition ours"
                    .into(),
            ),
            ..row()
        };
        report.rows.push(if agree.is_empty() {
            consistency.not_run("no reason of the LLM states a sign")
        } else {
            let (mean, ci95) = (Some(stats::mean_sd(&agree).0), Some(self.interval(&agree)));
            Row { mean, ci95, ..consistency }
        });
        Ok(())
    }

    fn interval(&self, values: &[f64]) -> [f64; 2] {
        let mut stream = self.part.seed.stream("bootstrap/edits");
        let mean =
            |items: &[usize]| items.iter().map(|&i| values[i]).sum::<f64>() / items.len() as f64;
        stats::bootstrap_ci(values.len(), self.part.config.bench.resamples, &mut stream, mean)
    }

    /// The LLM as an end-to-end ranker (the paper's LLM-R): some held-out users, all ads that each
    /// was shown, by how much likelier the user's description makes the ad's text.
    pub(super) fn ranking(&self, methods: &[Method], report: &mut Report) -> Result<()> {
        let part = self.part;
        let wanted = part.config.bench.ranked_users;
        let impressions = &part.data.impressions;
        let mut by_user: BTreeMap<usize, BTreeMap<usize, usize>> = BTreeMap::new();
        for (at, &row) in part.test.rows.iter().enumerate() {
            let shown = by_user.entry(impressions.user[row]).or_default();
            shown.entry(part.test.ad[at]).or_insert(at);
        }
        // Only a user with something to rank is asked about.
        by_user.retain(|_, shown| {
            let clicks = shown.values().filter(|&&at| part.test.clicked[at]).count();
            clicks > 0 && clicks < shown.len()
        });
        if wanted == 0 || by_user.is_empty() {
            return Ok(());
        }
        let users: Vec<(usize, BTreeMap<usize, usize>)> = by_user.into_iter().collect();
        let mut chosen = part.seed.stream("ranked-users").sample(users.len(), wanted);
        chosen.sort_unstable();
        let llm = part.llm.open()?;
        let ask = |person: &str, options: &[String]| {
            let prompt = format!("A person: {person}.\nThe film that this person chooses:");
            llm.score_options(&Prompt::Raw(prompt), options)
        };
        let text =
            |ad: usize| format!(" {}", prompts::ad_text(&part.cold[ad], &part.config.writer));
        let everything: Vec<String> = (0..part.cold.len()).map(text).collect();
        let start = std::time::Instant::now();
        let base_scores = ask(prompts::CONTENT_FREE, &everything)?;
        let mut rows: Vec<Vec<usize>> = Vec::new();
        let mut scores = vec![0.0; part.test.rows.len()];
        for &user in &chosen {
            common::run::check_interrupt()?;
            let shown = &users[user].1;
            let first = shown.values().next().copied().unwrap_or(0);
            let options: Vec<String> = shown.keys().map(|&ad| text(ad)).collect();
            let person = self.person(part.test.rows[first]);
            for ((&ad, &at), score) in shown.iter().zip(ask(&person, &options)?) {
                scores[at] = score.log_prob - base_scores[ad].log_prob;
            }
            rows.push(shown.values().copied().collect());
        }
        let asked = rows.iter().map(Vec::len).sum::<usize>();
        let seconds = start.elapsed().as_secs_f64();
        part.llm.count_seconds(seconds);
        let note = format!(
            "{} held-out users; {:.0} ms a prediction",
            rows.len(),
            1e3 * seconds / asked.max(1) as f64
        );
        let dataset = format!("{}, {} users", part.data.name, rows.len());
        let shown = ["LLM-HYPER, residual", "blend with LLM", "kNN weights, tf-idf", "LR_warm"];
        let mut all: Vec<(&str, Role, &[f64])> = methods
            .iter()
            .filter(|m| shown.contains(&m.name.as_str()))
            .map(|m| (m.name.as_str(), m.role, m.logits.as_slice()))
            .collect();
        all.push(("LLM ranking, end to end", Role::Baseline, &scores));
        for (name, role, scores) in all {
            let values: Vec<f64> = rows
                .iter()
                .map(|rows| {
                    let gain: Vec<f64> =
                        rows.iter().map(|&at| f64::from(u8::from(part.test.clicked[at]))).collect();
                    let scores: Vec<f64> = rows.iter().map(|&at| scores[at]).collect();
                    metrics::ndcg_at(&gain, &scores, 10)
                })
                .collect();
            let timed = name == "LLM ranking, end to end";
            report.rows.push(Row {
                metric: "ndcg@10".into(),
                mean: Some(stats::mean_sd(&values).0),
                ci95: Some(self.interval(&values)),
                n: values.len(),
                seconds: timed.then_some(seconds),
                note: Some(if timed { strip_time(&note) } else { "the same users".into() }),
                ..base(&dataset, name, role)
            });
        }
        tracing::info!("{dataset}: {note}");
        Ok(())
    }

    /// A user in words: set binary features and the strongest real ones.
    fn person(&self, row: usize) -> String {
        let part = self.part;
        let x = part.data.impressions.features.row(row);
        let features = &part.data.schema.features;
        let set = |kind: Kind, least: f32| {
            let mut here: Vec<usize> =
                (0..features.len()).filter(|&j| features[j].kind == kind && x[j] > least).collect();
            here.sort_by(|&a, &b| x[b].total_cmp(&x[a]).then(a.cmp(&b)));
            here.into_iter().take(4).map(|j| features[j].description.clone()).collect::<Vec<_>>()
        };
        let mut words = set(Kind::Binary, 0.5);
        words.extend(set(Kind::Real, 0.3));
        words.join(", ")
    }
}

/// The note without its time, which belongs to the timings.
fn strip_time(note: &str) -> String {
    note.split(';').next().unwrap_or(note).to_owned()
}

/// HR@5 and Coverage@5 of every method with weights.
pub(super) fn interpretation(part: &Part<'_>, methods: &[Method], report: &mut Report) {
    let expert: Vec<&[usize]> =
        part.split.active.iter().map(|&ad| part.data.expert[ad].as_slice()).collect();
    for method in methods {
        let Some(models) = &method.models else { continue };
        let Some((hits, coverage)) = interpretability(&models.weights, &expert, 5) else {
            continue;
        };
        for (metric, values, paper) in [("HR@5", hits, 0.80), ("Coverage@5", coverage, 0.351)] {
            let ours = matches!(method.role, Role::Paper | Role::Ours);
            report.rows.push(Row {
                claim: "the largest weights are on features that people find decisive".into(),
                metric: metric.into(),
                mean: Some(stats::mean_sd(&values).0),
                n: values.len(),
                paper_value: (ours && method.name.starts_with("LLM")).then_some(paper),
                note: Some(
                    "decisive = the film's genres and period; the paper's experts and ads are \
                     internal, definitions ours"
                        .into(),
                ),
                ..base(&part.data.name, &method.name, method.role)
            });
        }
    }
}
