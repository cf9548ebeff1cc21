//! Graph embeddings: LightGCN per behaviour (He et al. 2020) with learnt weights of the behaviours.
//!
//! Users, items and knowledge-graph nodes share one table E. Each relation (a behaviour, or the
//! links to the knowledge graph) has the normalised adjacency A_r = D^-1/2 A D^-1/2 and gives
//! E_r = (E + A_r E + A_r² E) / 3; the embedding is Σ_r w_r E_r with w = softmax of learnt values.
//! Trained by BPR on the events. All of it is linear in E, so the gradient is written out.

use common::rng::Seed;
use common::{Error, Result, run};
use ndarray::{Array1, Array2, ArrayView1, Zip};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::{Dataset, Step};

/// Options of the graph encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LightGcnOptions {
    /// d_g.
    pub width: usize,
    /// Optimiser steps; 0 = no training, smoothed random vectors.
    pub steps: usize,
    /// Triples a step.
    pub batch: usize,
    /// Adam's learning rate.
    pub learning_rate: f64,
    /// L2 penalty of the embeddings in a batch.
    pub penalty: f64,
    /// Whether links to the knowledge graph are a relation.
    pub links: bool,
}

impl Default for LightGcnOptions {
    fn default() -> Self {
        Self { width: 64, steps: 300, batch: 4096, learning_rate: 1e-2, penalty: 1e-3, links: true }
    }
}

/// Embeddings of users and items.
#[derive(Debug, Clone, PartialEq)]
pub struct GraphEmbeddings {
    /// `[users, width]`.
    pub users: Array2<f32>,
    /// `[items, width]`.
    pub items: Array2<f32>,
    /// Whether the item has an edge.
    pub present: Vec<bool>,
    /// Weight of each relation, behaviours first, then the links.
    pub weights: Vec<f32>,
}

impl GraphEmbeddings {
    /// Preference of a user for each of the items: the dot product.
    pub fn scores(&self, user: usize, items: &[u32]) -> Vec<f64> {
        let user = self.users.row(user);
        items.iter().map(|&item| f64::from(user.dot(&self.items.row(item as usize)))).collect()
    }
}

/// One relation's edges with their weights 1 / √(d_a d_b), both directions.
struct Adjacency {
    edges: Vec<(u32, u32, f32)>,
}

impl Adjacency {
    fn new(pairs: &[(u32, u32)], nodes: usize) -> Self {
        let mut degrees = vec![0f32; nodes];
        for &(a, b) in pairs {
            degrees[a as usize] += 1.0;
            degrees[b as usize] += 1.0;
        }
        let mut edges: Vec<(u32, u32, f32)> = pairs
            .iter()
            .flat_map(|&(a, b)| {
                let weight = 1.0 / (degrees[a as usize] * degrees[b as usize]).sqrt();
                [(a, b, weight), (b, a, weight)]
            })
            .collect();
        edges.sort_by_key(|edge| (edge.0, edge.1));
        Self { edges }
    }

    fn apply(&self, x: &Array2<f32>) -> Array2<f32> {
        let width = x.ncols();
        let mut out = Array2::zeros(x.raw_dim());
        if let (Some(x), Some(out)) = (x.as_slice(), out.as_slice_mut()) {
            for &(to, from, weight) in &self.edges {
                let from = &x[from as usize * width..][..width];
                for (sum, value) in out[to as usize * width..][..width].iter_mut().zip(from) {
                    *sum += weight * value;
                }
            }
        }
        out
    }

    /// (E + A E + A² E) / 3; symmetric, so it is its own transpose.
    fn propagate(&self, x: &Array2<f32>) -> Array2<f32> {
        let first = self.apply(x);
        let second = self.apply(&first);
        (x + &first + &second) / 3.0
    }
}

struct Adam {
    mean: Array2<f32>,
    square: Array2<f32>,
}

impl Adam {
    fn step(&mut self, x: &mut Array2<f32>, gradient: &Array2<f32>, rate: f32, step: usize) {
        let (b1, b2) = (0.9f32, 0.999f32);
        let (c1, c2) = (1.0 - b1.powi(step as i32), 1.0 - b2.powi(step as i32));
        Zip::from(x).and(&mut self.mean).and(&mut self.square).and(gradient).for_each(
            |x, m, s, &g| {
                *m = b1 * *m + (1.0 - b1) * g;
                *s = b2 * *s + (1.0 - b2) * g * g;
                *x -= rate * (*m / c1) / ((*s / c2).sqrt() + 1e-8);
            },
        );
    }
}

/// Trains on `sequences` (the training part of each user's events) and the links of `data`.
///
/// # Errors
/// [`Error::Usage`] for a width of 0; an interrupt.
pub fn light_gcn(
    data: &Dataset,
    sequences: &[Vec<Step>],
    options: &LightGcnOptions,
    seed: Seed,
) -> Result<GraphEmbeddings> {
    let width = options.width;
    if width == 0 {
        return Err(Error::usage("graph.width = 0; use at least 1"));
    }
    let (users, items) = (sequences.len(), data.items.len());
    let extra = data.links.iter().map(|link| link.1 as usize + 1).max().unwrap_or(0);
    let nodes = users + items + extra;
    let mut relations = Vec::new();
    let mut present = vec![false; items];
    let mut known: Vec<std::collections::HashSet<u32>> = Vec::with_capacity(users);
    let mut events = Vec::new();
    for (user, sequence) in sequences.iter().enumerate() {
        known.push(sequence.iter().map(|step| step.item).collect());
        for step in sequence {
            present[step.item as usize] = true;
            if data.target.is_none_or(|target| target == step.behaviour) {
                events.push((user as u32, step.item));
            }
        }
    }
    for behaviour in 0..data.behaviours.len() as u32 {
        let mut pairs: Vec<(u32, u32)> = sequences
            .iter()
            .enumerate()
            .flat_map(|(user, sequence)| {
                let own = sequence.iter().filter(move |step| step.behaviour == behaviour);
                own.map(move |step| (user as u32, users as u32 + step.item))
            })
            .collect();
        pairs.sort_unstable();
        pairs.dedup();
        relations.push(Adjacency::new(&pairs, nodes));
    }
    if options.links && !data.links.is_empty() {
        let pairs: Vec<(u32, u32)> = data
            .links
            .iter()
            .map(|&(item, node)| (users as u32 + item, (users + items) as u32 + node))
            .collect();
        data.links.iter().for_each(|link| present[link.0 as usize] = true);
        relations.push(Adjacency::new(&pairs, nodes));
    }
    let mut stream = seed.stream("graph/init");
    let mut table = Array2::from_shape_simple_fn((nodes, width), || (stream.normal() * 0.1) as f32);
    let mut logits = vec![0f32; relations.len()];
    let mut adam =
        Adam { mean: Array2::zeros((nodes, width)), square: Array2::zeros((nodes, width)) };
    let mut adam_weights = Adam {
        mean: Array2::zeros((1, relations.len())),
        square: Array2::zeros((1, relations.len())),
    };
    let mut stream = seed.stream("graph/triples");
    let steps = if events.is_empty() { 0 } else { options.steps };
    let progress = run::progress(steps as u64, "graph encoder");
    for step in 1..=steps {
        run::check_interrupt()?;
        let parts: Vec<Array2<f32>> = relations.iter().map(|r| r.propagate(&table)).collect();
        let weights = softmax(&logits);
        let embedding = mix(&parts, &weights);
        let mut gradient = Array2::<f32>::zeros((nodes, width));
        let share = 1.0 / options.batch as f32;
        for _ in 0..options.batch {
            let (user, positive) = events[stream.below(events.len())];
            let mut negative = stream.below(items) as u32;
            for _ in 0..20 {
                if !known[user as usize].contains(&negative) {
                    break;
                }
                negative = stream.below(items) as u32;
            }
            let rows = [user as usize, users + positive as usize, users + negative as usize];
            let [u, p, n] = rows.map(|row| embedding.row(row));
            // BPR: -ln σ(u·p - u·n)
            let margin = u.dot(&p) - u.dot(&n);
            let pull = share / (1.0 + margin.exp());
            let difference = &p - &n;
            gradient.row_mut(rows[0]).scaled_add(-pull, &difference);
            gradient.row_mut(rows[1]).scaled_add(-pull, &u);
            gradient.row_mut(rows[2]).scaled_add(pull, &u);
        }
        let mut total = Array2::<f32>::zeros((nodes, width));
        for (relation, &weight) in relations.iter().zip(&weights) {
            total.scaled_add(weight, &relation.propagate(&gradient));
        }
        let decay = options.penalty as f32 / nodes as f32;
        total.scaled_add(decay, &table);
        let along: Vec<f32> = parts.iter().map(|part| (part * &gradient).sum()).collect();
        let mean: f32 = along.iter().zip(&weights).map(|(a, w)| a * w).sum();
        let slope: Vec<f32> = along.iter().zip(&weights).map(|(a, w)| w * (a - mean)).collect();
        let rate = options.learning_rate as f32;
        adam.step(&mut table, &total, rate, step);
        let mut row = Array2::from_shape_fn((1, logits.len()), |(_, at)| logits[at]);
        let slope = Array2::from_shape_fn((1, slope.len()), |(_, at)| slope[at]);
        adam_weights.step(&mut row, &slope, rate, step);
        logits = row.into_iter().collect();
        progress.add(1);
    }
    let weights = softmax(&logits);
    let parts: Vec<Array2<f32>> = relations.iter().map(|r| r.propagate(&table)).collect();
    let embedding = mix(&parts, &weights);
    Ok(GraphEmbeddings {
        users: embedding.slice(ndarray::s![..users, ..]).to_owned(),
        items: embedding.slice(ndarray::s![users..users + items, ..]).to_owned(),
        present,
        weights,
    })
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let parts: Vec<f32> = logits.iter().map(|&x| (x - top).exp()).collect();
    let total: f32 = parts.iter().sum();
    parts.into_iter().map(|x| x / total).collect()
}

fn mix(parts: &[Array2<f32>], weights: &[f32]) -> Array2<f32> {
    let mut out = Array2::zeros(parts[0].raw_dim());
    for (part, &weight) in parts.iter().zip(weights) {
        out.scaled_add(weight, part);
    }
    out
}

/// Rows scaled to unit variance per column, so that an adapter sees the same size from every
/// encoder; a constant column becomes 0.
pub fn standardise(vectors: &Array2<f32>, present: &[bool]) -> Array2<f32> {
    let count = present.iter().filter(|&&p| p).count().max(1) as f32;
    let rows = || vectors.outer_iter().zip(present).filter(|(_, p)| **p).map(|(row, _)| row);
    let mut mean = Array1::<f32>::zeros(vectors.ncols());
    rows().for_each(|row: ArrayView1<'_, f32>| mean += &row);
    mean /= count;
    let mut variance = Array1::<f32>::zeros(vectors.ncols());
    rows().for_each(|row| variance += &(&row - &mean).mapv(|x| x * x));
    let scale = (variance / count).mapv(|v| if v > 1e-12 { 1.0 / v.sqrt() } else { 0.0 });
    (vectors - &mean) * &scale
}
