//! Bench part: the twelve crowd sets, every aggregator.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use common::assets::Assets;
use common::report::{Figure, Role, Row, plot};
use common::rng::Seed;
use common::{Error, Result, stats};

use crate::eval;
use crate::train::{Evidence, Method, Options, fit};
use crate::votes::{Duplicates, Label, Votes, VotesBuilder};

/// The sets, in the order of the tables.
pub const SETS: [&str; 12] = [
    "bluebird",
    "rte",
    "dog",
    "web",
    "trec",
    "CF",
    "CF_amt",
    "SP_amt",
    "ZenCrowd_in",
    "ZenCrowd_us",
    "d_jn-product",
    "s4_Face",
];

/// Votes and gold labels of one set.
#[derive(Debug)]
pub struct CrowdSet {
    /// The votes.
    pub votes: Votes,
    /// Gold per item; `None` where unknown, or a label nobody voted for.
    pub gold: Vec<Option<Label>>,
    /// Gold items whose label nobody voted for: no method can get them right.
    pub unreachable: usize,
}

impl CrowdSet {
    /// Reads `label.csv` (item,worker,label) and `truth.csv` (item,truth).
    ///
    /// # Errors
    /// An unreadable file or a row without three (two) fields, with its number.
    pub fn read(labels: &Path, truth: &Path) -> Result<Self> {
        let mut builder = VotesBuilder::new();
        for row in rows::<3>(labels)? {
            builder.push(&row[0], &row[1], &row[2])?;
        }
        let votes = builder.finish(Duplicates::Keep)?;
        let mut gold = vec![None; votes.items.len()];
        let mut unreachable = 0;
        for row in rows::<2>(truth)? {
            let Some(item) = votes.items.position(&row[0]) else { continue };
            gold[item] = votes.labels.position(&row[1]).map(|label| label as Label);
            unreachable += usize::from(gold[item].is_none());
        }
        Ok(Self { votes, gold, unreachable })
    }

    /// One credit per gold item; unreachable ones count 0.
    pub fn credits(&self, consensus: &crate::train::Consensus) -> Vec<f64> {
        let mut credits: Vec<f64> =
            eval::correctness(consensus, &self.gold).into_iter().flatten().collect();
        credits.resize(credits.len() + self.unreachable, 0.0);
        credits
    }
}

fn rows<const N: usize>(path: &Path) -> Result<Vec<[String; N]>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    text.lines()
        .enumerate()
        .skip(1)
        .map(|(at, line)| {
            let fields: Vec<String> = line.split(',').map(|f| f.trim().to_owned()).collect();
            let count = fields.len();
            fields.try_into().map_err(|_| {
                Error::data(format!("{count} fields in row {}", at + 1), format!("{N} fields"))
                    .in_file(path)
            })
        })
        .collect()
}

/// The methods of the table.
const METHODS: [(Method, Role); 14] = [
    (Method::Mv, Role::Baseline),
    (Method::Iwmv, Role::Paper),
    (Method::IwmvLogOdds, Role::Ablation),
    (Method::IwmvAccuracy, Role::Ablation),
    (Method::Wawa, Role::Baseline),
    (Method::ZeroBasedSkill, Role::Baseline),
    (Method::OneCoin, Role::Baseline),
    (Method::DawidSkene, Role::Baseline),
    (Method::Glad, Role::Baseline),
    (Method::Mace, Role::Baseline),
    (Method::IwmvClones, Role::Ablation),
    (Method::HierarchicalDs, Role::Ablation),
    (Method::SubtypeDs, Role::Ablation),
    (Method::OpinionPool, Role::Ours),
];

/// Runs every method on the sets (`smoke`: the five smallest) and on their mean.
///
/// # Errors
/// A set whose files are damaged. Absent files give a row that says how to get them.
pub fn run(
    assets: &Assets,
    smoke: bool,
    resamples: usize,
    seed: Seed,
) -> Result<(Vec<Row>, Vec<Figure>)> {
    let names: &[&str] =
        if smoke { &["bluebird", "rte", "CF", "CF_amt", "s4_Face"] } else { &SETS };
    let mut sets = Vec::new();
    for name in names {
        let file = |part: &str| assets.file("crowd", &format!("{name}/{part}"));
        match (file("label.csv"), file("truth.csv")) {
            (Ok(labels), Ok(truth)) => sets.push((*name, CrowdSet::read(&labels, &truth)?)),
            (Err(error), _) | (_, Err(error)) => {
                let missing = row("crowd sets", Method::OpinionPool, Role::Ours);
                return Ok((vec![missing.not_run(&error.to_string())], Vec::new()));
            }
        }
    }
    let mut rows = Vec::new();
    let mut table: HashMap<(Method, &str), f64> = HashMap::new();
    for (name, set) in &sets {
        for (method, role) in METHODS {
            let started = Instant::now();
            let result = fit(&set.votes, method, &Evidence::default(), &Options::default())?;
            let seconds = started.elapsed().as_secs_f64();
            let credits = set.credits(&result);
            let mean = stats::mean_sd(&credits).0;
            table.insert((method, name), mean);
            let mut stream = seed.stream(&format!("crowd/{name}/{}", method.name()));
            let ci95 = stats::bootstrap_ci(credits.len(), resamples, &mut stream, |indices| {
                indices.iter().map(|&i| credits[i]).sum::<f64>() / indices.len() as f64
            });
            rows.push(Row {
                mean: Some(mean),
                ci95: Some(ci95),
                n: credits.len(),
                seconds: Some(seconds),
                note: Some(format!(
                    "in expectation over {} tied items; {} rounds",
                    result.ties, result.rounds
                )),
                ..row(name, method, role)
            });
        }
    }
    for (method, role) in METHODS {
        let values: Vec<f64> = sets.iter().map(|(name, _)| table[&(method, *name)]).collect();
        rows.push(Row {
            mean: Some(stats::mean_sd(&values).0),
            n: values.len(),
            note: Some(format!(
                "mean over {} sets; worst difference to majority vote {:+.2} points",
                values.len(),
                worst_difference(&sets, &table, method)
            )),
            ..row("mean of crowd sets", method, role)
        });
    }
    if sets.len() > 1 {
        rows.push(chosen_on_the_others(&sets, &table));
    }
    let figures = figures(&sets, &table)?;
    Ok((rows, figures))
}

/// What choosing a method by its accuracy on other crowds is worth: for every set, the method with
/// the best mean over the other sets.
fn chosen_on_the_others(sets: &[(&str, CrowdSet)], table: &HashMap<(Method, &str), f64>) -> Row {
    let mut picks: Vec<(&'static str, usize)> = Vec::new();
    let mut values = Vec::new();
    for (name, _) in sets {
        let elsewhere = |method: Method| -> f64 {
            sets.iter().filter(|(other, _)| other != name).map(|(o, _)| table[&(method, *o)]).sum()
        };
        let mut best = METHODS[0].0;
        for (method, _) in METHODS {
            if elsewhere(method) > elsewhere(best) {
                best = method;
            }
        }
        values.push(table[&(best, *name)]);
        match picks.iter_mut().find(|(method, _)| *method == best.name()) {
            Some((_, count)) => *count += 1,
            None => picks.push((best.name(), 1)),
        }
    }
    let picks: Vec<String> = picks.iter().map(|(name, n)| format!("{name} {n} times")).collect();
    Row {
        mean: Some(stats::mean_sd(&values).0),
        n: values.len(),
        method: "method chosen on the other sets".into(),
        note: Some(format!(
            "for every set, the method with the best mean over the others: {}",
            picks.join(", ")
        )),
        ..row("mean of crowd sets", Method::OpinionPool, Role::Control)
    }
}

fn worst_difference(
    sets: &[(&str, CrowdSet)],
    table: &HashMap<(Method, &str), f64>,
    method: Method,
) -> f64 {
    sets.iter()
        .map(|(name, _)| 100.0 * (table[&(method, *name)] - table[&(Method::Mv, *name)]))
        .fold(f64::INFINITY, f64::min)
}

fn row(dataset: &str, method: Method, role: Role) -> Row {
    Row {
        paper: "llm-ensemble".into(),
        claim: "labels better than any single worker's, without gold".into(),
        dataset: dataset.into(),
        method: method.name().into(),
        role,
        metric: "accuracy".into(),
        ..Row::default()
    }
}

fn figures(sets: &[(&str, CrowdSet)], table: &HashMap<(Method, &str), f64>) -> Result<Vec<Figure>> {
    let shown = [Method::Mv, Method::Iwmv, Method::DawidSkene, Method::OpinionPool];
    let series: Vec<plot::Series> = shown
        .iter()
        .map(|&method| plot::Series {
            name: method.name().into(),
            values: sets.iter().map(|(name, _)| table[&(method, *name)]).collect(),
        })
        .collect();
    let groups: Vec<String> = sets.iter().map(|(name, _)| (*name).to_owned()).collect();
    let labels = plot::Labels { x: "accuracy", ..plot::Labels::default() };
    let mut figures = vec![Figure::new(
        "Accuracy per crowd set",
        "Accuracy in expectation over ties. The opinion pool is ours.",
        plot::grouped_bars(labels, &groups, &series),
    )];
    if let Some((name, set)) = sets.iter().find(|(name, _)| *name == "bluebird") {
        let result =
            fit(&set.votes, Method::OpinionPool, &Evidence::default(), &Options::default())?;
        let truth = eval::worker_accuracy(&set.votes, &set.gold);
        let points: Vec<plot::Point> = result
            .accuracy
            .iter()
            .zip(&truth)
            .filter_map(|(estimate, truth)| {
                Some(plot::Point { x: (*truth)?, y: (*estimate)?, ..plot::Point::default() })
            })
            .collect();
        let labels =
            plot::Labels { x: "true accuracy", y: "estimated accuracy", ..plot::Labels::default() };
        figures.push(Figure::new(
            "Estimated against true worker accuracy",
            &format!("One point per worker of {name}; the estimate saw no gold."),
            plot::scatter(labels, &points, true),
        ));
        let gold: Vec<(usize, Label)> = set
            .gold
            .iter()
            .enumerate()
            .filter_map(|(item, gold)| gold.map(|gold| (item, gold)))
            .collect();
        let mut methods = Vec::new();
        for method in [Method::Iwmv, Method::DawidSkene, Method::OpinionPool] {
            let result = fit(&set.votes, method, &Evidence::default(), &Options::default())?;
            let calibrated = eval::calibrate(&set.votes, &result, &[]);
            let (mut confidence, mut hit) = (Vec::new(), Vec::new());
            for &(item, gold) in &gold {
                confidence.push(calibrated.confidence(item, result.labels));
                hit.push(result.label[item] == gold);
            }
            methods.push((method.name().to_owned(), reliability(&confidence, &hit)));
        }
        figures.push(Figure::new(
            "Reliability of calibrated confidence",
            &format!("{name}; calibrated on held-out votes, without gold."),
            plot::reliability(plot::Labels::default(), &methods),
        ));
    }
    Ok(figures)
}

fn reliability(confidence: &[f64], hit: &[bool]) -> Vec<common::metrics::ReliabilityBin> {
    common::metrics::reliability_bins(hit, confidence, 10)
}
