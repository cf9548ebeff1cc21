//! Multi-behaviour hypergraph transformer (MBHT; Yang et al. 2022, arXiv 2207.05584), §3.5 of our
//! specification: a cloze model over a user's events whose item table is the graph modality.
//!
//! A transformer with multi-scale low-rank attention and a hypergraph convolution read the events
//! side by side; the output at a masked position is scored against the items.

use std::collections::BTreeMap;

use candle_core::{D, Device, Tensor};
use common::nn::{Builder, Embedding, Init, LayerNorm, Linear, Mlp, Parameters};
use common::ops::{self, Activation, AttentionOptions};
use common::optim::{AdamW, AdamWOptions, Schedule, ScheduleShape, Workers};
use common::rng::{Seed, Stream};
use common::{Error, Result, run};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::Step;

/// Options; the published code's values are named where ours differ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MbhtOptions {
    /// Width of all vectors.
    pub width: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Latest events that are read, the mask included (published: 200).
    pub length: usize,
    /// Positions behind one low-rank key, and the windows of the two pooled scales; each divides
    /// `length`.
    pub scales: [usize; 3],
    /// Most similar items of a hyperedge.
    pub similar: usize,
    /// Share of events that are masked in training.
    pub masked: f64,
    /// Positions before and after a masked one whose mean is its read-out of the hypergraph.
    pub window: [usize; 2],
    /// Optimiser steps.
    pub steps: usize,
    /// Sequences a step.
    pub batch: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Dropout.
    pub dropout: f64,
}

impl Default for MbhtOptions {
    fn default() -> Self {
        Self {
            width: 64,
            layers: 2,
            heads: 2,
            length: 40,
            scales: [10, 4, 20],
            similar: 6,
            masked: 0.2,
            window: [10, 6],
            steps: 500,
            batch: 48,
            learning_rate: 3e-3,
            dropout: 0.2,
        }
    }
}

/// A trained encoder.
#[derive(Debug)]
pub struct Mbht {
    options: MbhtOptions,
    items: Embedding,
    positions: Tensor,
    behaviours: Embedding,
    norm: LayerNorm,
    layers: Vec<Layer>,
    gate: Linear,
    /// w1 and w2 of Eq. 8, `[2, width]`.
    metric: Tensor,
    convolutions: [Linear; 2],
    fuse: Linear,
    fuse_weights: Tensor,
    parameters: Parameters,
    catalogue: usize,
}

#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    /// Low-rank projections of keys and values, `[length / scale, length]`.
    reduce: [Tensor; 2],
    output: Linear,
    norm1: LayerNorm,
    feed_forward: Mlp,
    norm2: LayerNorm,
}

/// Events of sequences, padded in front to one length.
struct Cloze {
    /// Item, mask or padding of each position, row by row.
    ids: Vec<u32>,
    behaviours: Vec<u32>,
    /// 1 where an event or a mask stands.
    real: Vec<f32>,
    /// Row-major positions of the masks, and the items behind them.
    masks: Vec<u32>,
    answers: Vec<u32>,
    rows: usize,
}

impl Mbht {
    /// A model of `items` items and `behaviours` behaviours with new parameters.
    ///
    /// # Errors
    /// [`Error::Usage`] for sizes that do not fit.
    pub fn new(items: usize, behaviours: usize, options: &MbhtOptions, seed: Seed) -> Result<Self> {
        Self::build(Builder::seeded(seed), items, behaviours, options)
    }

    /// A model with the tensors of [`Mbht::parameters`].
    ///
    /// # Errors
    /// As [`Mbht::new`]; absent or misshapen tensors.
    pub fn from_tensors(
        items: usize,
        behaviours: usize,
        options: &MbhtOptions,
        tensors: BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        Self::build(Builder::from_tensors(tensors), items, behaviours, options)
    }

    fn build(
        mut builder: Builder,
        items: usize,
        behaviours: usize,
        options: &MbhtOptions,
    ) -> Result<Self> {
        let MbhtOptions { width, heads, length, scales, .. } = *options;
        if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
            return Err(Error::usage(format!(
                "mbht.heads = {heads} does not divide mbht.width = {width}"
            )));
        }
        if length < 2 || scales.iter().any(|&s| s == 0 || !length.is_multiple_of(s)) {
            return Err(Error::usage(format!(
                "mbht.length = {length} is no multiple of the scales {scales:?}"
            )));
        }
        let b = &mut builder;
        let sd = 0.02;
        let linear = |b: &mut Builder, name: &str, inputs: usize, outputs: usize| {
            b.within(name, |b| Linear::new(b, inputs, outputs, true))
        };
        let norm = |b: &mut Builder, name: &str| b.within(name, |b| LayerNorm::new(b, width, 1e-5));
        let layer = |b: &mut Builder| {
            let reduced = (length / scales[0], length);
            let spread = Init::Normal(1.0 / (length as f64).sqrt());
            let reduce = [
                b.tensor("reduce_keys", reduced, spread)?,
                b.tensor("reduce_values", reduced, spread)?,
            ];
            let up = linear(b, "up", width, 4 * width)?;
            Ok::<_, Error>(Layer {
                query: linear(b, "query", width, width)?,
                key: linear(b, "key", width, width)?,
                value: linear(b, "value", width, width)?,
                reduce,
                output: linear(b, "output", 3 * width, width)?,
                norm1: norm(b, "norm1")?,
                feed_forward: Mlp::new(up, linear(b, "down", 4 * width, width)?, Activation::Gelu),
                norm2: norm(b, "norm2")?,
            })
        };
        Ok(Self {
            // after the items: the mask, then the padding
            items: b.within("items", |b| Embedding::new(b, items + 2, width, sd))?,
            positions: b.tensor("positions", (length, width), Init::Normal(sd))?,
            behaviours: b.within("behaviours", |b| Embedding::new(b, behaviours + 1, width, sd))?,
            norm: norm(b, "norm")?,
            layers: (0..options.layers)
                .map(|at| b.within(format!("layers.{at}"), layer))
                .collect::<Result<_>>()?,
            gate: linear(b, "gate", width, width)?,
            metric: b.tensor("metric", (2, width), Init::Uniform(1.0))?,
            convolutions: [
                linear(b, "convolution1", width, width)?,
                linear(b, "convolution2", width, width)?,
            ],
            fuse: b.within("fuse", |b| Linear::new(b, width, width, false))?,
            fuse_weights: b.tensor("fuse_weights", (1, width), Init::Normal(0.1))?,
            parameters: builder.finish(),
            options: options.clone(),
            catalogue: items,
        })
    }

    /// The trained tensors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The graph modality: the item table without mask and padding, `[items, width]`.
    ///
    /// # Errors
    /// None but bugs.
    pub fn item_vectors(&self) -> Result<Tensor> {
        Ok(self.items.weight().narrow(0, 0, self.catalogue)?.detach())
    }

    /// The latest events of each sequence; `hide(position, of)` says which are masked.
    fn cloze(&self, sequences: &[&[Step]], mut hide: impl FnMut(usize, usize) -> bool) -> Cloze {
        let length = self.options.length;
        let (mask, pad) = (self.catalogue as u32, self.catalogue as u32 + 1);
        let hidden = self.behaviours.weight().dims()[0] as u32 - 1;
        let mut cloze = Cloze {
            ids: vec![pad; sequences.len() * length],
            behaviours: vec![hidden; sequences.len() * length],
            real: vec![0.0; sequences.len() * length],
            masks: Vec::new(),
            answers: Vec::new(),
            rows: sequences.len(),
        };
        for (row, sequence) in sequences.iter().enumerate() {
            let steps = &sequence[sequence.len().saturating_sub(length)..];
            for (at, step) in steps.iter().enumerate() {
                let place = (row + 1) * length - steps.len() + at;
                cloze.real[place] = 1.0;
                if hide(at, steps.len()) {
                    cloze.ids[place] = mask;
                    cloze.masks.push(place as u32);
                    cloze.answers.push(step.item);
                } else {
                    cloze.ids[place] = step.item;
                    cloze.behaviours[place] = step.behaviour;
                }
            }
        }
        cloze
    }

    /// Outputs at the masks, `[masks, width]`.
    fn hidden(&self, cloze: &Cloze, mut stream: Option<Stream>) -> Result<Tensor> {
        let MbhtOptions { width, length, .. } = self.options;
        let shape = (cloze.rows, length);
        let mut drop = |x: Tensor| match &mut stream {
            Some(stream) => ops::dropout(&x, self.options.dropout, stream),
            None => Ok(x),
        };
        let ids = Tensor::from_slice(&cloze.ids, shape, &Device::Cpu)?;
        let kinds = Tensor::from_slice(&cloze.behaviours, shape, &Device::Cpu)?;
        let real = Tensor::from_slice(&cloze.real, shape, &Device::Cpu)?;
        let own = self.items.forward(&ids)?;
        let x = (&own + self.behaviours.forward(&kinds)?)?.broadcast_add(&self.positions)?;
        let mut x = drop(self.norm.forward(&x)?)?;
        for layer in &self.layers {
            let mixed = layer.attend(&x, &real, &self.options)?;
            x = layer.norm1.forward(&ops::add(&x, &drop(mixed)?)?)?;
            x = layer.norm2.forward(&ops::add(&x, &drop(layer.feed_forward.forward(&x)?)?)?)?;
        }
        // Eq. 7, then Eqs. 8 to 10
        let gated = (&own * sigmoid(&self.gate.forward(&own)?)?)?;
        let graph = self.graph(&gated, cloze)?;
        let x1 = drop(graph.matmul(&self.convolutions[0].forward(&gated)?)?)?;
        let x2 = drop(graph.matmul(&self.convolutions[1].forward(&x1)?)?)?;
        let spread = ((x1 + x2)? * 0.5)?;
        let masks = Tensor::new(&cloze.masks[..], &Device::Cpu)?;
        let sequence = ops::embedding(&x.reshape((cloze.rows * length, width))?, &masks)?;
        let windows = self.windows(cloze)?;
        let hyper = windows.matmul(&spread.reshape((cloze.rows * length, width))?)?;
        // Eq. 11
        let both = Tensor::stack(&[&sequence, &hyper], 1)?;
        let scores = self.fuse.forward(&both)?.broadcast_mul(&self.fuse_weights)?;
        let weights = ops::softmax(&scores.sum(D::Minus1)?, &ops::SoftmaxOptions::default())?;
        Ok(both.broadcast_mul(&weights.unsqueeze(2)?)?.sum(1)?)
    }

    /// G of Eq. 9 for each row, `[rows, length, length]`.
    fn graph(&self, gated: &Tensor, cloze: &Cloze) -> Result<Tensor> {
        let length = self.options.length;
        let weighted = gated.broadcast_mul(&self.metric.mean_keepdim(0)?)?;
        let norms = (weighted.sqr()?.sum_keepdim(2)? + 1e-12)?.sqrt()?;
        let unit = weighted.broadcast_div(&norms)?;
        let similarity = unit.matmul(&unit.transpose(1, 2)?.contiguous()?)?;
        let values = similarity.detach().to_vec3::<f32>()?;
        let mut structure = Vec::with_capacity(cloze.rows * length * length);
        let mut fixed = Vec::with_capacity(2 * cloze.rows * length * length);
        for (row, values) in values.iter().enumerate() {
            let ids = &cloze.ids[row * length..][..length];
            let edges = hyperedges(ids, self.catalogue as u32, values, self.options.similar);
            structure.extend(edges.similar.into_iter().flatten());
            fixed.extend(edges.fixed.into_iter().flatten());
        }
        let structure = Tensor::from_vec(structure, (cloze.rows, length, length), &Device::Cpu)?;
        let fixed = Tensor::from_vec(fixed, (cloze.rows, length, 2 * length), &Device::Cpu)?;
        // negative similarities become 0.01
        let positive = similarity.maximum(0.01)?;
        let similar = (positive * structure)?;
        let incidence = (similar.pad_with_zeros(2, 0, length)? + fixed)?;
        propagation(&incidence)
    }

    /// Mean over the window around each mask, as weights of all positions: `[masks, rows · length]`.
    fn windows(&self, cloze: &Cloze) -> Result<Tensor> {
        let (length, [before, after]) = (self.options.length, self.options.window);
        let mut weights = vec![0f32; cloze.masks.len() * cloze.ids.len()];
        for (at, &mask) in cloze.masks.iter().enumerate() {
            let (row, place) = (mask as usize / length, mask as usize % length);
            let seen = |p: &usize| cloze.real[row * length + p] > 0.0;
            let near = place.saturating_sub(before)..(place + after + 1).min(length);
            let near: Vec<usize> = near.filter(seen).collect();
            for p in &near {
                weights[at * cloze.ids.len() + row * length + p] = 1.0 / near.len() as f32;
            }
        }
        Ok(Tensor::from_vec(weights, (cloze.masks.len(), cloze.ids.len()), &Device::Cpu)?)
    }

    /// Mean cross-entropy of masked items over the catalogue.
    fn loss(&self, cloze: &Cloze, stream: Option<Stream>) -> Result<Tensor> {
        let hidden = self.hidden(cloze, stream)?;
        let items = self.items.weight().narrow(0, 0, self.catalogue)?;
        let answers = Tensor::new(&cloze.answers[..], &Device::Cpu)?;
        Ok(ops::linear_cross_entropy(&hidden, &items, None, &answers)?)
    }

    /// Trains on `sequences`: a share of the events and always the last one of `target` is masked.
    ///
    /// # Errors
    /// [`Error::Data`] without a sequence of two events; sizes that do not fit; an interrupt.
    pub fn fit(
        sequences: &[Vec<Step>],
        items: usize,
        behaviours: usize,
        target: Option<u32>,
        options: &MbhtOptions,
        seed: Seed,
        workers: &Workers,
    ) -> Result<Self> {
        let model = Self::new(items, behaviours, options, seed)?;
        let long: Vec<&Vec<Step>> = sequences.iter().filter(|s| s.len() > 1).collect();
        if long.is_empty() {
            return Err(Error::data("no user with two events", "at least one to learn from"));
        }
        let mut optimiser = AdamW::new(&model.parameters, AdamWOptions::default());
        let total = options.steps as u64;
        let shape = ScheduleShape::Cosine { total: total.max(1) };
        let schedule = Schedule { peak: options.learning_rate, warmup: total / 20, shape };
        let mut stream = seed.stream("mbht/batches");
        let progress = run::progress(total, "graph encoder");
        for step in 0..options.steps {
            run::check_interrupt()?;
            // windows that end anywhere, so that all events of long sequences are learnt from
            let rows: Vec<&[Step]> = (0..options.batch)
                .map(|_| {
                    let sequence = long[stream.below(long.len())];
                    &sequence[..2 + stream.below(sequence.len() - 1)]
                })
                .collect();
            let parts: Vec<&[&[Step]]> = rows.chunks(rows.len().div_ceil(2)).collect();
            let clozes: Vec<Cloze> = parts
                .iter()
                .map(|rows| {
                    let mut row = 0;
                    model.cloze(rows, |at, of| {
                        let steps = &rows[row][rows[row].len() - of..];
                        let wanted = |s: &Step| target.is_none_or(|t| t == s.behaviour);
                        let last = steps.iter().rposition(wanted).unwrap_or(of - 1);
                        let hide = at == last || stream.chance(options.masked);
                        row += usize::from(at + 1 == of);
                        hide
                    })
                })
                .collect();
            let masks: usize = clozes.iter().map(|cloze| cloze.masks.len()).sum();
            let loss = |slice: usize| {
                let stream = seed.stream(&format!("mbht/dropout/{step}/{slice}"));
                let share = clozes[slice].masks.len() as f64 / masks as f64;
                Ok((model.loss(&clozes[slice], Some(stream))? * share)?)
            };
            let (loss, mut gradients) = workers.gradients(&model.parameters, clozes.len(), loss)?;
            gradients.clip_global_norm(1.0)?;
            optimiser.step(&gradients, schedule.at(step as u64))?;
            tracing::debug!(step, loss, "mbht");
            progress.add(1);
        }
        Ok(model)
    }

    /// Scores of all items after each history: a mask is appended and only what is before it read.
    ///
    /// # Errors
    /// None but bugs.
    pub fn scores(&self, histories: &[&[Step]], target: Option<u32>) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::with_capacity(histories.len());
        let items = self.item_vectors()?;
        for part in histories.chunks(64) {
            let asked: Vec<Vec<Step>> = part
                .iter()
                .map(|history| {
                    let ask = Step { item: 0, behaviour: target.unwrap_or(0) };
                    history.iter().copied().chain([ask]).collect()
                })
                .collect();
            let rows: Vec<&[Step]> = asked.iter().map(Vec::as_slice).collect();
            let cloze = self.cloze(&rows, |at, of| at + 1 == of);
            let hidden = self.hidden(&cloze, None)?.detach();
            all.extend(ops::linear(&hidden, &items, None)?.to_vec2::<f32>()?);
        }
        Ok(all)
    }
}

impl Layer {
    /// Multi-scale attention: every position asks the low-rank keys; means over windows of two sizes
    /// ask each other and are repeated; the three are joined by a linear layer.
    fn attend(&self, x: &Tensor, real: &Tensor, options: &MbhtOptions) -> Result<Tensor> {
        let (rows, length, width) = x.dims3()?;
        let (heads, dim) = (options.heads, width / options.heads);
        let mask = real.unsqueeze(2)?;
        let (q, k, v) = (
            self.query.forward(x)?,
            self.key.forward(x)?.broadcast_mul(&mask)?,
            self.value.forward(x)?.broadcast_mul(&mask)?,
        );
        let split = |x: &Tensor| {
            let n = x.dim(1)?;
            x.reshape((rows, n, heads, dim))
        };
        let open = AttentionOptions { scale: None, causal: false, key_mask: None };
        let reduce = |x: &Tensor, weight: &Tensor| -> Result<Tensor> {
            let reduced = ops::linear(&x.transpose(1, 2)?.contiguous()?, weight, None)?;
            Ok(reduced.transpose(1, 2)?.contiguous()?)
        };
        let (low_k, low_v) = (reduce(&k, &self.reduce[0])?, reduce(&v, &self.reduce[1])?);
        let low = ops::attention(&split(&q)?, &split(&low_k)?, &split(&low_v)?, &open)?;
        let mut scales = vec![low.reshape((rows, length, width))?];
        for window in [options.scales[1], options.scales[2]] {
            let windows = length / window;
            let pool = |x: &Tensor| x.reshape((rows, windows, window, width))?.mean(2);
            let seen = real.reshape((rows, windows, window))?.max(2)?;
            let pooled = AttentionOptions { key_mask: Some(seen), ..open.clone() };
            let mixed = ops::attention(
                &split(&pool(&q)?)?,
                &split(&pool(&k)?)?,
                &split(&pool(&v)?)?,
                &pooled,
            )?;
            let mixed = mixed.reshape((rows, windows, 1, width))?;
            let mixed = mixed.broadcast_as((rows, windows, window, width))?.contiguous()?;
            scales.push(mixed.reshape((rows, length, width))?);
        }
        self.output.forward(&Tensor::cat(&scales, 2)?)
    }
}

/// Incidence of one sequence's hypergraph: nodes are its positions, `[node][edge]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Hyperedges {
    /// Edge j of the first kind holds the positions most similar to position j: 1 where the
    /// similarity counts.
    pub similar: Vec<Vec<f32>>,
    /// What does not depend on similarities, two blocks of edges: position j itself, then for
    /// items that occur at least twice all their positions (the multi-behaviour hyperedge, at the
    /// item's first position).
    pub fixed: Vec<Vec<f32>>,
}

/// Hyperedges of §3.5: for each position that is neither mask nor padding (ids from `mask` on), the
/// `most` items most similar to its own, itself, and one more edge per item that occurs twice.
pub fn hyperedges(ids: &[u32], mask: u32, similarity: &[Vec<f32>], most: usize) -> Hyperedges {
    let n = ids.len();
    let mut edges = Hyperedges { similar: vec![vec![0.0; n]; n], fixed: vec![vec![0.0; 2 * n]; n] };
    let known: Vec<usize> = (0..n).filter(|&at| ids[at] < mask).collect();
    for &edge in &known {
        let mut others: Vec<usize> =
            known.iter().copied().filter(|&at| ids[at] != ids[edge]).collect();
        others
            .sort_by(|&a, &b| similarity[edge][b].total_cmp(&similarity[edge][a]).then(a.cmp(&b)));
        others.truncate(most);
        others.into_iter().for_each(|node| edges.similar[node][edge] = 1.0);
        edges.fixed[edge][edge] = 1.0;
        let same: Vec<usize> = known.iter().copied().filter(|&at| ids[at] == ids[edge]).collect();
        if same.len() > 1 && same[0] == edge {
            same.into_iter().for_each(|node| edges.fixed[node][n + edge] = 1.0);
        }
    }
    edges
}

/// Eq. 9: G = D_v⁻¹ H D_e⁻¹ Hᵀ for incidences `[rows, nodes, edges]`; empty nodes and edges stay 0.
///
/// # Errors
/// Shapes that do not fit.
pub fn propagation(incidence: &Tensor) -> Result<Tensor> {
    let nodes = (incidence.sum_keepdim(2)? + 1e-9)?;
    let edges = (incidence.sum_keepdim(1)? + 1e-9)?;
    let spread = incidence.broadcast_div(&edges)?;
    let transposed = incidence.transpose(1, 2)?.contiguous()?;
    Ok(spread.matmul(&transposed)?.broadcast_div(&nodes)?)
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok((x.neg()?.exp()? + 1.0)?.recip()?)
}
