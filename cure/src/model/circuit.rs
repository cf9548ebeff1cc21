//! Circuits: edges chosen by score, pruned to paths from input to logits, judged by faithfulness.

use common::lm::Lm;
use common::optim::Workers;
use common::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::attribution::patched_metrics;
use super::{Edge, Network, Pairs};

/// How edges are chosen for a given number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Selection {
    /// The edges with the largest |score|.
    #[default]
    TopN,
    /// All edges whose |score| reaches a share of the largest one; the number sets the share: the
    /// n-th largest |score|, rounded down to two digits.
    Threshold,
    /// From the logits backwards: always the edge with the largest |score| among those whose reader
    /// is in the circuit already.
    Greedy,
}

/// A subgraph of a [`Network`].
#[derive(Debug, Clone, PartialEq)]
pub struct Circuit {
    /// Per edge of the network: whether it is in the circuit.
    pub kept: Vec<bool>,
    /// Score of every edge, in the circuit or not.
    pub scores: Vec<f64>,
    /// Eq. 3 on the pairs it was chosen with.
    pub faithfulness: f64,
    /// Circuits that were judged to find it.
    pub tried: usize,
}

impl Circuit {
    /// Number of edges.
    pub fn len(&self) -> usize {
        self.kept.iter().filter(|&&kept| kept).count()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Edges in common over edges in either (Jaccard index); 1 for two empty circuits.
    pub fn overlap(&self, other: &Self) -> f64 {
        let pairs = || self.kept.iter().zip(&other.kept);
        let both = pairs().filter(|(a, b)| **a && **b).count();
        let either = pairs().filter(|(a, b)| **a || **b).count();
        if either == 0 { 1.0 } else { both as f64 / either as f64 }
    }

    /// Whether each module touches an edge of the circuit.
    pub fn modules(&self, network: &Network) -> Vec<bool> {
        let mut inside = vec![false; network.modules()];
        for (&edge, _) in network.edges.iter().zip(&self.kept).filter(|(_, kept)| **kept) {
            for module in super::attribution::ends(network, edge).into_iter().flatten() {
                inside[module] = true;
            }
        }
        inside
    }
}

/// About `n` edges by the rule, then pruned.
pub fn select(network: &Network, scores: &[f64], rule: Selection, n: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].abs().total_cmp(&scores[a].abs()).then(a.cmp(&b)));
    let mut kept = vec![false; scores.len()];
    match rule {
        Selection::TopN => order.iter().take(n).for_each(|&edge| kept[edge] = true),
        Selection::Threshold => {
            if let (Some(&top), Some(&last)) = (order.first(), order.get(n.max(1) - 1)) {
                let top = scores[top].abs();
                let share = (scores[last].abs() / top * 100.0).floor() / 100.0;
                for (kept, score) in kept.iter_mut().zip(scores) {
                    *kept = n > 0 && score.abs() >= share * top;
                }
            }
        }
        Selection::Greedy => {
            let logits = network.readers.len() - 1;
            let mut inside: Vec<bool> = vec![false; network.modules()];
            for _ in 0..n {
                let open = |edge: &Edge| match network.module_of_reader(edge.reader) {
                    Some(module) => inside[module],
                    None => edge.reader == logits,
                };
                let next = order.iter().find(|&&at| !kept[at] && open(&network.edges[at]));
                let Some(&next) = next else { break };
                kept[next] = true;
                if let Some(module) = network.module_of_writer(network.edges[next].writer) {
                    inside[module] = true;
                }
            }
        }
    }
    prune(network, &mut kept);
    kept
}

/// Removes edges that are on no path from the input to the logits.
pub fn prune(network: &Network, kept: &mut [bool]) {
    // edges are ordered by reader, and a module's writer comes after all of its readers
    let mut reached = vec![false; network.modules()];
    for (edge, kept) in network.edges.iter().zip(kept.iter_mut()) {
        let from = network.module_of_writer(edge.writer).is_none_or(|module| reached[module]);
        *kept &= from;
        if *kept && let Some(module) = network.module_of_reader(edge.reader) {
            reached[module] = true;
        }
    }
    let mut used = vec![false; network.modules()];
    for (edge, kept) in network.edges.iter().zip(kept.iter_mut()).rev() {
        let to = network.module_of_reader(edge.reader).is_none_or(|module| used[module]);
        *kept &= to;
        if *kept && let Some(module) = network.module_of_writer(edge.writer) {
            used[module] = true;
        }
    }
}

/// Eq. 3: `(m(C) − m(∅)) / (m(full) − m(∅))` of the means over the pairs, for several circuits.
///
/// # Errors
/// Those of the passes.
pub fn faithfulness(
    lm: &Lm,
    network: &Network,
    pairs: &Pairs,
    circuits: &[Vec<bool>],
    workers: &Workers,
) -> Result<Vec<f64>> {
    let edges = network.edges.len();
    let mut sets = circuits.to_vec();
    sets.extend([vec![true; edges], vec![false; edges]]);
    let metrics = patched_metrics(lm, network, pairs, &sets, workers)?;
    let mean = |values: &Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let means: Vec<f64> = metrics.iter().map(mean).collect();
    let (full, empty) = (means[circuits.len()], means[circuits.len() + 1]);
    Ok(means[..circuits.len()].iter().map(|m| (m - empty) / (full - empty)).collect())
}

/// The circuit with the fewest edges whose faithfulness reaches `target`, among the numbers that a
/// bisection between no edge and all edges tries. Faithfulness need not grow with the number, so a
/// smaller one that was not tried may exist.
///
/// # Errors
/// Those of the passes; [`Error::Data`] when the pairs have no effect on average.
pub fn extract(
    lm: &Lm,
    network: &Network,
    pairs: &Pairs,
    scores: Vec<f64>,
    rule: Selection,
    target: f64,
    workers: &Workers,
) -> Result<Circuit> {
    let edges = network.edges.len();
    let mean = |values: &Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    let all_and_none = [vec![true; edges], vec![false; edges]];
    let ends = patched_metrics(lm, network, pairs, &all_and_none, workers)?;
    let (full, empty) = (mean(&ends[0]), mean(&ends[1]));
    if full == empty || !(full - empty).is_finite() {
        return Err(Error::data(
            "pairs whose corrupted prompts change nothing on average",
            "pairs with an effect; use another corruption",
        ));
    }
    let (mut low, mut high, mut tried) = (0, edges, 0);
    let mut best = (vec![true; edges], 1.0);
    while high - low > 1 {
        let middle = low.midpoint(high);
        let kept = select(network, &scores, rule, middle);
        let metrics = patched_metrics(lm, network, pairs, std::slice::from_ref(&kept), workers)?;
        let value = (mean(&metrics[0]) - empty) / (full - empty);
        tried += 1;
        if value >= target {
            (high, best) = (middle, (kept, value));
        } else {
            low = middle;
        }
    }
    Ok(Circuit { kept: best.0, faithfulness: best.1, scores, tried })
}
