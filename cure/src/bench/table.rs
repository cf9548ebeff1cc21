//! Rows of a deletion request.

use common::report::{Role, Row};
use common::{metrics, stats};

use super::requests::{Answers, Measured, Run};
use crate::config::Config;
use crate::eval::{jeffreys_half_fullvocab, jsd, kl, l2};
use crate::model::Group;
use crate::stages::Case;

/// The first metric of a request.
pub(super) const DISTANCE: &str = "JSD to Retrain";
/// What an unlearner costs.
pub(super) const PASSES: &str = "token passes, share of Retrain";
/// The paper's method minus a control.
pub(super) const DIFFERENCE: &str = "JSD to Retrain, difference";
/// End of the data set's name in the rows of the retrained models.
pub(super) const GOLD: &str = ", gold standard";
/// The row of the model as it was.
pub(super) const ORIGINAL: &str = "Original";

/// One measure: name, whether higher is better, and its value for a run of seed number `at`.
struct Measure<'a> {
    name: &'static str,
    higher: bool,
    value: Box<dyn Fn(&Answers, usize, f64) -> Option<f64> + 'a>,
}

/// The mean over the retrained models of the other seeds: a model and its own seed's retrained one
/// share the initial weights, which two independently retrained models do not.
fn to_others(measured: &Measured, at: usize, distance: impl Fn(&Answers) -> f64) -> f64 {
    let others = measured.retrained.iter().enumerate().filter(|(other, _)| *other != at);
    let values: Vec<f64> = others.map(|(_, run)| distance(&run.answers)).collect();
    values.iter().sum::<f64>() / values.len() as f64
}

fn measures<'a>(measured: &'a Measured) -> Vec<Measure<'a>> {
    let forget = &measured.sets.forget.labels;
    let mean = |value: &dyn Fn(&Answers) -> f64| {
        let values: Vec<f64> = measured.retrained.iter().map(|run| value(&run.answers)).collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    let loss = move |answers: &Answers| metrics::log_loss(forget, &answers.forget, None);
    let auc = move |answers: &Answers| metrics::auc(forget, &answers.forget, None);
    let attack = |answers: &Answers| measured.sets.membership(answers);
    let relearned = move |answers: &Answers| {
        answers.relearned.as_ref().map(|p| metrics::log_loss(forget, p, None))
    };
    let (gold_loss, gold_auc, gold_attack) = (mean(&loss), mean(&auc), mean(&attack));
    let gold_relearned = mean(&|answers| relearned(answers).unwrap_or(f64::NAN));
    let gold_tokens: f64 = measured.retrained.iter().map(|run| run.tokens).sum::<f64>()
        / measured.retrained.len() as f64;
    fn add<'a>(
        all: &mut Vec<Measure<'a>>,
        name: &'static str,
        higher: bool,
        value: impl Fn(&Answers, usize, f64) -> Option<f64> + 'a,
    ) {
        all.push(Measure { name, higher, value: Box::new(value) });
    }
    let mut all = Vec::new();
    add(&mut all, DISTANCE, false, |a, at, _| {
        Some(to_others(measured, at, |gold| jsd(&a.forget, &gold.forget)))
    });
    add(&mut all, "KL from Retrain", false, |a, at, _| {
        Some(to_others(measured, at, |gold| kl(&gold.forget, &a.forget)))
    });
    add(&mut all, "L2 to Retrain", false, |a, at, _| {
        Some(to_others(measured, at, |gold| l2(&gold.forget, &a.forget)))
    });
    add(&mut all, "half Jeffreys, full vocabulary", false, |a, at, _| {
        Some(to_others(measured, at, |gold| jeffreys_half_fullvocab(&gold.full, &a.full)))
    });
    add(&mut all, "forget log loss", true, move |a, _, _| Some(loss(a)));
    add(&mut all, "forget log loss, gap to Retrain", false, move |a, _, _| {
        Some((loss(a) - gold_loss).abs())
    });
    add(&mut all, "forget AUC, gap to Retrain", false, move |a, _, _| {
        Some((auc(a) - gold_auc).abs())
    });
    add(&mut all, "membership AUC, gap to Retrain", false, move |a, _, _| {
        Some((attack(a) - gold_attack).abs())
    });
    add(&mut all, "relearned log loss, gap to Retrain", false, move |a, _, _| {
        relearned(a).map(|value| (value - gold_relearned).abs())
    });
    add(&mut all, "test AUC", true, |a, _, _| Some(a.test.auc));
    add(&mut all, "test accuracy", true, |a, _, _| Some(a.test.accuracy));
    add(&mut all, "test log loss", false, |a, _, _| Some(a.test.log_loss));
    add(&mut all, "test ECE", false, |a, _, _| Some(a.test.ece));
    add(&mut all, PASSES, false, move |_, _, tokens| Some(tokens / gold_tokens));
    all
}

/// A method's line: name, role, runs, note.
struct Line<'a> {
    name: &'a str,
    role: Role,
    runs: Vec<(&'a Answers, f64)>,
    seconds: f64,
    note: String,
}

/// Distances between retrained models of different seeds: mean and largest.
pub(super) fn noise_floor(measured: &Measured) -> [f64; 2] {
    let gold = &measured.retrained;
    let mut values = Vec::new();
    for (at, a) in gold.iter().enumerate() {
        values.extend(gold[..at].iter().map(|b| jsd(&a.answers.forget, &b.answers.forget)));
    }
    let largest = values.iter().copied().fold(0.0, f64::max);
    [values.iter().sum::<f64>() / values.len() as f64, largest]
}

/// The rows: the metrics in turn, and in each the methods.
pub(super) fn rows<'a>(
    dataset: &str,
    config: &Config,
    measured: &'a Measured,
    case: &Case,
) -> Vec<Row> {
    let [floor, floor_top] = noise_floor(measured);
    let mut lines = Vec::new();
    for outcome in &measured.outcomes {
        let runs = outcome.runs.iter().map(|run| (&run.answers, run.tokens)).collect();
        let steps: Vec<String> =
            outcome.runs.iter().map(|r| r.progress.steps.to_string()).collect();
        let note = format!(
            "lr {} of {}; {} steps{}",
            outcome.runs[0].lr,
            config.bench.lrs.len(),
            steps.join("/"),
            if outcome.method.note.is_empty() {
                String::new()
            } else {
                format!("; {}", outcome.method.note)
            }
        );
        let seconds = outcome.runs.iter().map(|run| run.seconds.total()).sum();
        lines.push(Line {
            name: outcome.method.name,
            role: outcome.method.role,
            runs,
            seconds,
            note,
        });
    }
    for (name, runs, note) in &measured.sharded {
        let seconds = runs.iter().map(|run| run.seconds.total()).sum();
        let runs = runs.iter().map(|run| (&run.answers, run.tokens)).collect();
        lines.push(Line { name, role: Role::Baseline, runs, seconds, note: note.clone() });
    }
    let line = |name, role, answers: &'a [Answers], note: String| Line {
        name,
        role,
        runs: answers.iter().map(|answers| (answers, 0.0)).collect(),
        seconds: 0.0,
        note,
    };
    let events = case.deletion.events();
    if measured.sets.as_trained.is_some() {
        let note = "the users' tokens are erased, nothing else: exact for what the tokens hold";
        lines.push(line("user tokens erased", Role::Ours, &measured.originals, note.into()));
    }
    let note = format!("nothing unlearned, not even the users' tokens; {events} events to forget");
    lines.push(line(ORIGINAL, Role::Control, &measured.untouched, note));
    let gold = Line {
        name: "Retrain",
        role: Role::Baseline,
        runs: measured.retrained.iter().map(|run| (&run.answers, run.tokens)).collect(),
        seconds: measured.retrained.iter().map(|run| run.seconds.total()).sum(),
        note: format!(
            "trained anew without the forget set; JSD between two of them {floor:.5}, at most \
             {floor_top:.5}: the noise floor"
        ),
    };
    let n = measured.sets.forget.labels.len();
    let mut rows = Vec::new();
    for measure in measures(measured) {
        let of = |line: &Line<'_>, dataset: String| {
            let values: Vec<f64> = line
                .runs
                .iter()
                .enumerate()
                .filter_map(|(at, (answers, tokens))| (measure.value)(answers, at, *tokens))
                .collect();
            if values.is_empty() || values.iter().any(|v| !v.is_finite()) {
                return None;
            }
            let mut note = line.note.clone();
            if measure.name == DISTANCE {
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                let place = if mean <= floor_top { "inside" } else { "outside" };
                note = format!("{place} the noise floor; {note}");
            }
            let row = Row {
                dataset,
                method: line.name.into(),
                role: line.role,
                metric: measure.name.into(),
                higher_is_better: measure.higher,
                claim: "CURE forgets more completely at less cost".into(),
                n: if measure.name.starts_with("test") {
                    measured.sets.test.labels.len()
                } else {
                    n
                },
                seconds: Some(line.seconds),
                note: Some(note),
                ..Row::default()
            };
            Some(row.over_seeds(&values))
        };
        rows.extend(lines.iter().filter_map(|line| of(line, dataset.to_owned())));
        rows.extend(of(&gold, format!("{dataset}{GOLD}")));
    }
    rows.extend(placebos(dataset, measured));
    rows.extend(differences(dataset, measured));
    rows.extend(circuits(dataset, measured));
    rows
}

/// Distances without any unlearning, which tell what the measure cannot: the mean of the other seeds'
/// originals against each retrained model, and an original with all logits a tenth smaller. What is
/// smoother or less sure is nearer to all others.
fn placebos(dataset: &str, measured: &Measured) -> Vec<Row> {
    let row = |method: String, note: &str| Row {
        dataset: dataset.into(),
        method,
        role: Role::Control,
        metric: DISTANCE.into(),
        higher_is_better: false,
        n: measured.sets.forget.labels.len(),
        note: Some(note.into()),
        ..Row::default()
    };
    let count = measured.originals.len();
    let seeds = || 0..count;
    let cooled = |at: usize| {
        let logit = |p: f64| (p / (1.0 - p)).ln();
        let smaller = |&p: &f64| 1.0 / (1.0 + (-0.9 * logit(p)).exp());
        let answers: Vec<f64> = measured.originals[at].forget.iter().map(smaller).collect();
        to_others(measured, at, |gold| jsd(&answers, &gold.forget))
    };
    let mut rows = vec![
        row(
            "logits times 0.9, user tokens erased".into(),
            "no unlearning: the original, less sure of everything",
        )
        .over_seeds(&seeds().map(cooled).collect::<Vec<_>>()),
    ];
    if count > 2 {
        let averaged = |at: usize| {
            let gold = &measured.retrained[at].answers.forget;
            let mean = |answer: usize| {
                let others =
                    measured.originals.iter().enumerate().filter(|(other, _)| *other != at);
                others.map(|(_, answers)| answers.forget[answer]).sum::<f64>() / (count - 1) as f64
            };
            jsd(&(0..gold.len()).map(mean).collect::<Vec<_>>(), gold)
        };
        let name = format!("mean of {} Originals, user tokens erased", count - 1);
        rows.push(
            row(name, "no unlearning: averaging alone")
                .over_seeds(&seeds().map(averaged).collect::<Vec<_>>()),
        );
    }
    rows
}

/// CURE minus each control, paired over the seeds.
fn differences(dataset: &str, measured: &Measured) -> Vec<Row> {
    let of = |at: usize, run: &Run| {
        to_others(measured, at, |gold| jsd(&run.answers.forget, &gold.forget))
    };
    let values = |runs: &[Run]| -> Vec<f64> {
        runs.iter().enumerate().map(|(at, run)| of(at, run)).collect()
    };
    let paper = measured.outcomes.iter().find(|outcome| outcome.method.role == Role::Paper);
    let Some(paper) = paper else { return Vec::new() };
    let ours = values(&paper.runs);
    // a tenth of what two retrained models differ by is no difference worth having
    let margin = noise_floor(measured)[0] / 10.0;
    let mut rows = Vec::new();
    for outcome in measured.outcomes.iter().filter(|o| o.method.role == Role::Control) {
        let theirs = values(&outcome.runs);
        let gaps: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| a - b).collect();
        let [low, high] = stats::t_interval(&gaps, 0.95);
        let verdict = if high < 0.0 {
            "CURE is nearer to Retrain beyond the interval"
        } else if low > 0.0 {
            "the control is nearer to Retrain beyond the interval"
        } else if low > -margin && high < margin {
            "the same: the interval lies within a tenth of the noise floor on either side of 0"
        } else {
            "no difference beyond the interval"
        };
        let row = Row {
            dataset: format!("{dataset}, CURE minus control"),
            method: outcome.method.name.into(),
            role: Role::Control,
            metric: DIFFERENCE.into(),
            higher_is_better: false,
            n: measured.sets.forget.labels.len(),
            note: Some(verdict.into()),
            ..Row::default()
        };
        rows.push(row.over_seeds(&gaps));
    }
    rows
}

/// What the circuits look like.
fn circuits(dataset: &str, measured: &Measured) -> Vec<Row> {
    let row = |metric: &str, higher: bool, values: &[f64], note: String| {
        let row = Row {
            dataset: format!("{dataset}, circuits"),
            method: "CURE".into(),
            role: Role::Paper,
            metric: metric.into(),
            higher_is_better: higher,
            n: measured.prepared[0].network.edges.len(),
            note: Some(note),
            ..Row::default()
        };
        row.over_seeds(values)
    };
    let each = |value: &dyn Fn(usize) -> f64| -> Vec<f64> {
        (0..measured.prepared.len()).map(value).collect()
    };
    let prepared = &measured.prepared;
    let edges = prepared[0].network.edges.len();
    let sizes: Vec<String> = Group::ALL
        .iter()
        .map(|&group| {
            let counts: Vec<String> =
                measured.groupings.iter().map(|g| g.count(group).to_string()).collect();
            format!("{} {}", group.name(), counts.join("/"))
        })
        .collect();
    let mut rows = vec![
        row(
            "Jaccard index of forget and retain circuit",
            false,
            &each(&|at| prepared[at].forget.circuit.overlap(&prepared[at].retain.circuit)),
            format!("modules by seed: {}", sizes.join(", ")),
        ),
        row(
            "faithfulness of the forget circuit",
            true,
            &each(&|at| prepared[at].forget.circuit.faithfulness),
            format!(
                "edges by seed: {}",
                prepared
                    .iter()
                    .map(|p| format!(
                        "{} and {} of {edges}",
                        p.forget.circuit.len(),
                        p.retain.circuit.len()
                    ))
                    .collect::<Vec<_>>()
                    .join("; ")
            ),
        ),
        row(
            "pairs without effect",
            false,
            &each(&|at| (prepared[at].forget.rejected + prepared[at].retain.rejected) / 2.0),
            "share of rejected pairs, both sides".into(),
        ),
    ];
    if let Some((_, _, rho)) = measured.exact {
        let note = "rank correlation of EAP-IG with the exact effect of each edge, first seed";
        rows.push(row("Spearman with exact patching", true, &[rho], note.into()));
    }
    let cosines = |group: Group| -> Vec<f64> {
        let paper = measured.outcomes.iter().find(|o| o.method.role == Role::Paper);
        let runs = paper.map_or(&[][..], |outcome| &outcome.runs);
        let of = |(run, grouping): (&Run, &crate::model::Grouping)| {
            let all: Vec<f64> = run
                .progress
                .looks
                .iter()
                .flat_map(|look| look.cosines.iter().zip(&grouping.groups))
                .filter(|(_, other)| **other == group)
                .filter_map(|(cosine, _)| *cosine)
                .collect();
            all.iter().sum::<f64>() / all.len() as f64
        };
        runs.iter().zip(&measured.groupings).map(of).collect()
    };
    for group in Group::ALL {
        let values: Vec<f64> = cosines(group).into_iter().filter(|v| v.is_finite()).collect();
        if !values.is_empty() {
            let name = format!("cosine of forget and retain gradient, {}", group.name());
            rows.push(row(&name, true, &values, "below 0 = conflict; mean over looks".into()));
        }
    }
    rows
}
