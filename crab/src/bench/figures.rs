//! Pictures of a data set's comparison.

use common::report::plot::{Labels, Line, Point, Series, grouped_bars, lines, scatter};
use common::report::{Figure, Role};

use super::means;
use super::methods::{BASE, CONTROL, CRAB, DatasetOutcome};
use crate::data::Dataset;

pub(super) fn all(data: &Dataset, outcome: &DatasetOutcome) -> Vec<Figure> {
    let mut figures = vec![accuracy_and_bias(data, outcome), groups(data, outcome)];
    figures.push(frontier(data, outcome));
    figures.extend(loads(data, outcome));
    figures.extend(curves(data, outcome));
    figures
}

/// NDCG@10 against MGU@10 of all methods.
fn accuracy_and_bias(data: &Dataset, outcome: &DatasetOutcome) -> Figure {
    let points: Vec<Point> = outcome
        .methods
        .iter()
        .map(|method| {
            let means = means(method);
            Point {
                x: means.get("mgu@10").copied().unwrap_or(f64::NAN),
                y: means.get("ndcg@10").copied().unwrap_or(f64::NAN),
                label: method.name.clone(),
                group: group(method.role).to_owned(),
            }
        })
        .collect();
    let title = format!("Accuracy and popularity bias on {}", data.name);
    let labels = Labels { title: &title, x: "MGU@10 (less is fairer)", y: "NDCG@10" };
    let caption = "Each method's mean over seeds on the test cases. Up and to the left is better.";
    Figure::new(&title, caption, scatter(labels, &points, false))
}

fn group(role: Role) -> &'static str {
    match role {
        Role::Paper => "the paper's method",
        Role::Ours => "ours",
        Role::Baseline => "baselines",
        Role::Ablation => "ablations",
        Role::Control => "controls",
    }
}

/// GU(g) of the main methods.
fn groups(data: &Dataset, outcome: &DatasetOutcome) -> Figure {
    let names = ["rarest 20 %", "20 to 40 %", "40 to 60 %", "60 to 80 %", "most popular 20 %"];
    let shown = ["Markov", "SASRec", BASE, CONTROL, CRAB];
    let series: Vec<Series> = outcome
        .methods
        .iter()
        .filter(|method| shown.contains(&method.name.as_str()))
        .map(|method| {
            let mean = |group: usize| {
                let sum: f64 = method.scores.iter().map(|s| s.unfairness[group]).sum();
                sum / method.scores.len() as f64
            };
            Series { name: method.name.clone(), values: (0..names.len()).map(mean).collect() }
        })
        .collect();
    let title = format!("Group unfairness on {}", data.name);
    let labels =
        Labels { title: &title, x: "share of recommendations − share of histories", y: "" };
    let caption = "GU(g) at 10 per group of items by training popularity: right of 0, the group is \
                   recommended more often than it is interacted with.";
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    Figure::new(&title, caption, grouped_bars(labels, &names, &series))
}

/// What popularity-aware decoding reaches with and without CRAB.
fn frontier(data: &Dataset, outcome: &DatasetOutcome) -> Figure {
    let lines_of: Vec<Line> = outcome
        .frontier
        .iter()
        .map(|(name, points)| Line {
            name: name.replace(CONTROL, "equal-budget control"),
            points: points.clone(),
        })
        .collect();
    let title = format!("Frontier of popularity-aware decoding on {}", data.name);
    let labels = Labels { title: &title, x: "MGU@10 (less is fairer)", y: "NDCG@10" };
    let caption = "One point per strength α on the test cases, mean over seeds; α grows to the left. A \
                   line above the other is the better one at every level of bias.";
    Figure::new(&title, caption, lines(labels, &lines_of))
}

/// Load of the tokens of each split level, largest first.
fn loads(data: &Dataset, outcome: &DatasetOutcome) -> Vec<Figure> {
    let changed = outcome.loads.iter().enumerate().filter(|(_, (before, after))| before != after);
    changed
        .map(|(level, (before, after))| {
            let curve = |name: &str, loads: &[u64]| {
                let mut sorted: Vec<u64> = loads.to_vec();
                sorted.sort_unstable_by(|a, b| b.cmp(a));
                let points = sorted.iter().enumerate();
                let points = points.map(|(rank, load)| (rank as f64 + 1.0, *load as f64));
                Line { name: name.to_owned(), points: points.collect() }
            };
            let title = format!("Token load of level {level} on {}", data.name);
            let labels =
                Labels { title: &title, x: "token, from most to least popular", y: "interactions" };
            let caption = "Training interactions per token before and after the split, first seed.";
            let both = [curve("before", before), curve("after the split", after)];
            Figure::new(&title, caption, lines(labels, &both))
        })
        .collect()
}

fn curves(data: &Dataset, outcome: &DatasetOutcome) -> Option<Figure> {
    let lines_of: Vec<Line> = outcome
        .curves
        .iter()
        .map(|(name, history)| Line {
            name: name.clone(),
            points: history.iter().enumerate().map(|(at, r)| (at as f64 + 1.0, r.loss)).collect(),
        })
        .collect();
    if lines_of.iter().all(|line| line.points.is_empty()) {
        return None;
    }
    let title = format!("Training of the generator on {}", data.name);
    let labels = Labels { title: &title, x: "epoch", y: "loss per item (nats)" };
    let caption = "Training loss of the base model with dropout, first seed.";
    Some(Figure::new(&title, caption, lines(labels, &lines_of)))
}
