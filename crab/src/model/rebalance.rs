//! Stage 1 of CRAB: split over-popular tokens without cutting a child token (Eq. 3–8).

use std::collections::BTreeMap;

use common::rng::{Seed, Stream};
use common::{Error, Result};
use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use crate::sid::SidTable;

/// | option | default | purpose |
/// |---|---|---|
/// | `levels` | `[1]` | levels whose tokens are split, from 0; never the last one |
/// | `ratio` | 0.10 | share of a level's used tokens that are split, the most popular ones (paper: 10 %) |
/// | `most_parts` | 3 | most parts of a token, M (paper: 3) |
/// | `lambda` | 1 | weight of the balance term λ (paper silent) |
/// | `raw` | false | the balance term in raw counts instead of shares of the token (Eq. 6 as printed) |
/// | `condition_on_parent` | false | children of different parents may go to different parts (ours) |
/// | `random` | false | children are spread at random: the control |
/// | `restarts` | 5 | starts of the solver; the best counts |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RebalanceOptions {
    /// See the table.
    pub levels: Vec<usize>,
    /// See the table.
    pub ratio: f64,
    /// See the table.
    pub most_parts: usize,
    /// See the table.
    pub lambda: f64,
    /// See the table.
    pub raw: bool,
    /// See the table.
    pub condition_on_parent: bool,
    /// See the table.
    pub random: bool,
    /// See the table.
    pub restarts: usize,
}

impl Default for RebalanceOptions {
    fn default() -> Self {
        Self {
            levels: vec![1],
            ratio: 0.10,
            most_parts: 3,
            lambda: 1.0,
            raw: false,
            condition_on_parent: false,
            random: false,
            restarts: 5,
        }
    }
}

/// A child of a target token: the unit that moves as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Child {
    /// Items of the target that carry it.
    pub items: Vec<u32>,
    /// Interactions of those items, P(c_j | c_k) (Eq. 8).
    pub popularity: u64,
    /// Mean residual r̄_j of those items; empty without vectors.
    pub mean: Vec<f32>,
}

impl Child {
    /// n_j, the weight of the distance.
    pub fn weight(&self) -> f64 {
        self.items.len() as f64
    }
}

/// One token that was split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// Its level.
    pub level: usize,
    /// Its number, which part 0 keeps.
    pub token: u32,
    /// Numbers of the parts.
    pub parts: Vec<u32>,
    /// Interactions of each part.
    pub popularity: Vec<u64>,
    /// Child tokens (or parent–child pairs) that were spread.
    pub children: usize,
    /// Share of the children's variance that is left inside the parts; `None` without vectors or
    /// variance.
    pub variance_left: Option<f64>,
}

/// What Stage 1 gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Rebalanced {
    /// The new semantic IDs.
    pub table: SidTable,
    /// Per level, the old number of every new number: the old ID is a function of the new one.
    pub parent_of: Vec<Vec<u32>>,
    /// The splits, in order of level and popularity.
    pub splits: Vec<Split>,
}

/// Splits the most popular tokens of `table`. `counts` are **training** interactions per item;
/// `residuals(level)` are the items' residuals on entering a level, `[items, width]`, or `None` for
/// a bare table, which is then balanced by load alone.
///
/// # Errors
/// A level that has no level below it, a ratio outside of [0, 1], or a wrong number of counts.
pub fn rebalance(
    table: &SidTable,
    counts: &[u64],
    residuals: impl Fn(usize) -> Option<Array2<f32>>,
    options: &RebalanceOptions,
    seed: Seed,
) -> Result<Rebalanced> {
    if !(0.0..=1.0).contains(&options.ratio) || !options.lambda.is_finite() || options.lambda < 0.0
    {
        return Err(Error::usage(format!(
            "ratio {} and lambda {}; expected a ratio in [0, 1] and a lambda from 0",
            options.ratio, options.lambda
        )));
    }
    if counts.len() != table.items() {
        return Err(Error::data(
            format!("{} counts for {} items", counts.len(), table.items()),
            "one count per item of the semantic-ID table",
        ));
    }
    let mut parent_of: Vec<Vec<u32>> =
        table.sizes().iter().map(|&size| (0..size as u32).collect()).collect();
    let mut changes = Vec::new();
    let mut splits = Vec::new();
    for &level in &options.levels {
        if level + 1 >= table.levels() {
            return Err(Error::usage(format!(
                "level {level} of {} can't be split: the last level has no child tokens",
                table.levels()
            )));
        }
        let vectors = residuals(level);
        let carriers = carriers(table, level);
        for (token, parts) in targets(table, level, counts, options) {
            let vectors = vectors.as_ref().map(|vectors| vectors.view());
            let carried = &carriers[token as usize];
            let kids = children(table, level, carried, counts, vectors, options);
            let parts = parts.min(kids.len());
            if parts < 2 {
                continue;
            }
            let mut stream = seed.stream(&format!("split/{level}/{token}"));
            let solved = if options.random {
                random_assignment(kids.len(), parts, &mut stream)
            } else {
                assign(&kids, parts, options, &mut stream)
            };
            let first = parent_of[level].len() as u32;
            let numbers: Vec<u32> =
                (0..parts as u32).map(|m| if m == 0 { token } else { first + m - 1 }).collect();
            parent_of[level].extend((1..parts).map(|_| token));
            let mut popularity = vec![0; parts];
            for (child, &part) in kids.iter().zip(&solved) {
                popularity[part] += child.popularity;
                let number = numbers[part];
                changes.extend(child.items.iter().map(|&item| (item as usize, level, number)));
            }
            splits.push(Split {
                level,
                token,
                parts: numbers,
                popularity,
                children: kids.len(),
                variance_left: variance_left(&kids, &solved, parts),
            });
        }
    }
    Ok(Rebalanced { table: table.replaced(changes), parent_of, splits })
}

/// Items that carry each token of a level.
fn carriers(table: &SidTable, level: usize) -> Vec<Vec<u32>> {
    let mut carriers = vec![Vec::new(); table.sizes()[level]];
    for (item, row) in table.rows().enumerate() {
        carriers[row[level] as usize].push(item as u32);
    }
    carriers
}

/// The `round(ratio · used)` tokens with the largest P (Eq. 3) and the number of their parts: the
/// ratio of P to the level's mean, rounded, between 2 and `most_parts`.
pub fn targets(
    table: &SidTable,
    level: usize,
    counts: &[u64],
    options: &RebalanceOptions,
) -> Vec<(u32, usize)> {
    let popularity = table.token_popularity(level, counts);
    let used = table.used(level);
    let mut tokens: Vec<u32> =
        (0..popularity.len() as u32).filter(|&token| used[token as usize]).collect();
    let mean = popularity.iter().sum::<u64>() as f64 / tokens.len().max(1) as f64;
    let count = (options.ratio * tokens.len() as f64).round() as usize;
    tokens.sort_by_key(|&token| (std::cmp::Reverse(popularity[token as usize]), token));
    tokens.truncate(count);
    let parts = |token: u32| {
        let ratio = popularity[token as usize] as f64 / mean.max(f64::MIN_POSITIVE);
        (ratio.round() as usize).clamp(2, options.most_parts.max(2))
    };
    tokens.into_iter().map(|token| (token, parts(token))).collect()
}

/// Ch(c_k) (Eq. 4) with popularity and item count conditional on the parent (Eq. 8).
pub fn children(
    table: &SidTable,
    level: usize,
    carried: &[u32],
    counts: &[u64],
    residuals: Option<ArrayView2<'_, f32>>,
    options: &RebalanceOptions,
) -> Vec<Child> {
    let mut groups: BTreeMap<(u32, u32), Child> = BTreeMap::new();
    for &item in carried {
        let row = table.row(item as usize);
        let parent = if options.condition_on_parent && level > 0 { row[level - 1] } else { 0 };
        let child = groups.entry((parent, row[level + 1])).or_insert_with(|| Child {
            items: Vec::new(),
            popularity: 0,
            mean: residuals.map_or_else(Vec::new, |r| vec![0.0; r.ncols()]),
        });
        child.items.push(item);
        child.popularity += counts[item as usize];
        if let Some(residuals) = residuals {
            for (sum, value) in child.mean.iter_mut().zip(residuals.row(item as usize)) {
                *sum += value;
            }
        }
    }
    let mut children: Vec<Child> = groups.into_values().collect();
    for child in &mut children {
        let n = child.items.len() as f32;
        child.mean.iter_mut().for_each(|value| *value /= n);
    }
    children
}

/// L_bal (Eq. 5): squared deviations of the parts' popularity from their mean.
pub fn balance(popularity: &[f64]) -> f64 {
    let mean = popularity.iter().sum::<f64>() / popularity.len() as f64;
    popularity.iter().map(|p| (p - mean) * (p - mean)).sum()
}

/// Divisors of distance and balance term: 1 and 1 raw, else the children's total sum of squares and
/// the squared popularity of the token, so that both terms are shares (ours).
fn scales(children: &[Child], raw: bool) -> [f64; 2] {
    if raw {
        return [1.0, 1.0];
    }
    let total: f64 = children.iter().map(|child| child.popularity as f64).sum();
    let spread = within(children, &vec![0; children.len()], 1);
    [positive(spread), positive(total * total)]
}

fn positive(value: f64) -> f64 {
    if value > 0.0 { value } else { 1.0 }
}

/// Σ_m Σ_j n_j ‖r̄_j − μ_m‖² with μ_m the weighted mean of its children: the first term of Eq. 6,
/// equal to the sum over items up to a constant (Eq. 7).
pub fn within(children: &[Child], assignment: &[usize], parts: usize) -> f64 {
    let mut clusters = vec![Cluster::default(); parts];
    for (child, &part) in children.iter().zip(assignment) {
        clusters[part].add(child, 1.0);
    }
    let distance = |child: &Child, part: usize| child.weight() * clusters[part].distance(child);
    children.iter().zip(assignment).map(|(child, &part)| distance(child, part)).sum()
}

/// The objective of Eq. 6, normalised unless `options.raw`.
pub fn objective(
    children: &[Child],
    assignment: &[usize],
    parts: usize,
    options: &RebalanceOptions,
) -> f64 {
    let [spread, mass] = scales(children, options.raw);
    let mut popularity = vec![0.0; parts];
    for (child, &part) in children.iter().zip(assignment) {
        popularity[part] += child.popularity as f64;
    }
    within(children, assignment, parts) / spread + options.lambda * balance(&popularity) / mass
}

fn variance_left(children: &[Child], assignment: &[usize], parts: usize) -> Option<f64> {
    let total = within(children, &vec![0; children.len()], 1);
    (total > 0.0).then(|| within(children, assignment, parts) / total)
}

/// Sums of one part while children move.
#[derive(Debug, Clone, Default)]
struct Cluster {
    weight: f64,
    sum: Vec<f64>,
    popularity: f64,
    members: usize,
}

impl Cluster {
    fn add(&mut self, child: &Child, sign: f64) {
        self.sum.resize(child.mean.len(), 0.0);
        self.weight += sign * child.weight();
        self.popularity += sign * child.popularity as f64;
        self.members = if sign > 0.0 { self.members + 1 } else { self.members - 1 };
        for (sum, value) in self.sum.iter_mut().zip(&child.mean) {
            *sum += sign * child.weight() * f64::from(*value);
        }
    }

    /// Squared distance of a child's mean to this part's.
    fn distance(&self, child: &Child) -> f64 {
        let weight = positive(self.weight);
        let terms = self.sum.iter().zip(&child.mean);
        terms.map(|(sum, value)| (f64::from(*value) - sum / weight).powi(2)).sum()
    }
}

/// Minimises Eq. 6 over assignments without an empty part: from k-means++ and random starts in
/// turn, single moves in descending popularity while one lowers the objective (exact change of both
/// parts), then exchanges of two children, at most 30 sweeps; the best of all restarts.
pub fn assign(
    children: &[Child],
    parts: usize,
    options: &RebalanceOptions,
    stream: &mut Stream,
) -> Vec<usize> {
    let [spread, mass] = scales(children, options.raw);
    let mut order: Vec<usize> = (0..children.len()).collect();
    order.sort_by_key(|&j| (std::cmp::Reverse(children[j].popularity), j));
    let mut best: Option<(f64, Vec<usize>)> = None;
    for restart in 0..options.restarts.max(1) {
        let assignment = match restart % 2 {
            0 => start(children, parts, stream),
            _ => random_assignment(children.len(), parts, stream),
        };
        let mut clusters = vec![Cluster::default(); parts];
        for (child, &part) in children.iter().zip(&assignment) {
            clusters[part].add(child, 1.0);
        }
        let weights = [1.0 / spread, options.lambda / mass];
        let mut state = State { children, clusters, assignment, weights };
        for _ in 0..30 {
            // exchanges are tried only where no single move helps
            if !state.move_sweep(&order) && !state.exchange_sweep(&order) {
                break;
            }
        }
        let value = objective(children, &state.assignment, parts, options);
        if best.as_ref().is_none_or(|(lowest, _)| value < *lowest) {
            best = Some((value, state.assignment));
        }
    }
    best.map(|(_, assignment)| assignment).unwrap_or_default()
}

/// Least fall of the objective that counts: above rounding.
const LEAST: f64 = 1e-12;

/// An assignment with the sums of its parts.
struct State<'a> {
    children: &'a [Child],
    clusters: Vec<Cluster>,
    assignment: Vec<usize>,
    /// Of distance and balance term.
    weights: [f64; 2],
}

impl State<'_> {
    /// Change of the objective when child `j` moves to part `to`.
    fn change(&self, j: usize, to: usize) -> f64 {
        let child = &self.children[j];
        let (from, to) = (&self.clusters[self.assignment[j]], &self.clusters[to]);
        let (n, p) = (child.weight(), child.popularity as f64);
        let gain = n * from.weight / positive(from.weight - n) * from.distance(child);
        let cost = n * to.weight / positive(to.weight + n) * to.distance(child);
        // the mean P̄ does not change, so only the two squares do
        let balance = 2.0 * p * (p + to.popularity - from.popularity);
        self.weights[0] * (cost - gain) + self.weights[1] * balance
    }

    fn place(&mut self, j: usize, to: usize) {
        let child = &self.children[j];
        self.clusters[self.assignment[j]].add(child, -1.0);
        self.clusters[to].add(child, 1.0);
        self.assignment[j] = to;
    }

    /// Whether a child moved.
    fn move_sweep(&mut self, order: &[usize]) -> bool {
        let mut moved = false;
        for &j in order {
            let from = self.assignment[j];
            if self.clusters[from].members < 2 {
                continue;
            }
            let mut lowest = (-LEAST, from);
            for to in (0..self.clusters.len()).filter(|&to| to != from) {
                let change = self.change(j, to);
                if change < lowest.0 {
                    lowest = (change, to);
                }
            }
            if lowest.1 != from {
                self.place(j, lowest.1);
                moved = true;
            }
        }
        moved
    }

    /// Whether two children of different parts changed places.
    fn exchange_sweep(&mut self, order: &[usize]) -> bool {
        let mut moved = false;
        for (rank, &a) in order.iter().enumerate() {
            for &b in &order[rank + 1..] {
                let (home, away) = (self.assignment[a], self.assignment[b]);
                if home == away || self.clusters[home].members < 2 {
                    continue;
                }
                let first = self.change(a, away);
                self.place(a, away);
                if first + self.change(b, home) < -LEAST {
                    self.place(b, home);
                    moved = true;
                } else {
                    self.place(a, home);
                }
            }
        }
        moved
    }
}

/// k-means++ seeds by weighted squared distance (by popularity where there is no distance), every
/// child to the nearest; the seeds stay in their parts, so none is empty.
fn start(children: &[Child], parts: usize, stream: &mut Stream) -> Vec<usize> {
    let distance = |a: &Child, b: &Child| -> f64 {
        a.mean.iter().zip(&b.mean).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    };
    let weights: Vec<f64> = children.iter().map(Child::weight).collect();
    let mut seeds = vec![stream.weighted(&weights)];
    while seeds.len() < parts {
        let nearest = |child: &Child| {
            let far = seeds.iter().map(|&seed| distance(child, &children[seed]));
            child.weight() * far.fold(f64::INFINITY, f64::min)
        };
        let mut weights: Vec<f64> = children.iter().map(nearest).collect();
        if weights.iter().sum::<f64>() <= 0.0 {
            weights = children.iter().map(|child| child.popularity as f64 + 1.0).collect();
        }
        seeds.iter().for_each(|&seed| weights[seed] = 0.0);
        let mut next = stream.weighted(&weights);
        if seeds.contains(&next) {
            next = (0..children.len()).find(|j| !seeds.contains(j)).unwrap_or(next);
        }
        seeds.push(next);
    }
    let nearest = |child: &Child| {
        let far = seeds.iter().map(|&seed| distance(child, &children[seed]));
        let least = far
            .enumerate()
            .fold((0, f64::INFINITY), |best, (part, d)| if d < best.1 { (part, d) } else { best });
        least.0
    };
    let mut assignment: Vec<usize> = children.iter().map(nearest).collect();
    seeds.iter().enumerate().for_each(|(part, &seed)| assignment[seed] = part);
    assignment
}

/// Children spread at random without an empty part.
fn random_assignment(children: usize, parts: usize, stream: &mut Stream) -> Vec<usize> {
    let mut assignment: Vec<usize> =
        (0..children).map(|j| if j < parts { j } else { stream.below(parts) }).collect();
    stream.shuffle(&mut assignment);
    assignment
}
