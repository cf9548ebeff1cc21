//! The generator: a decoder-only transformer over flattened semantic IDs (Eq. 2).
//!
//! The token at position `p` (position 0 is the start token) predicts the code of level
//! `p mod L` of the next item, so each level has its own small output table, tied with its input
//! embeddings, and no probability ever goes to a code of another level.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use common::nn::{Builder, Init, LayerNorm, Linear, LoraOptions, Mlp, Parameters};
use common::ops::{self, Activation, AttentionOptions, CrossEntropyOptions, Reduction};
use common::rng::{Seed, Stream};
use common::{Error, Result};
use serde::{Deserialize, Serialize};

/// | option | default | purpose |
/// |---|---|---|
/// | `width` | 128 | width of the hidden states |
/// | `layers` | 2 | transformer blocks |
/// | `heads` | 4 | attention heads; divide the width |
/// | `inner` | 256 | width of the feed-forward layers |
/// | `dropout` | 0.2 | of embeddings and of what each block adds |
/// | `history` | 9 | latest items of a history that are read |
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GeneratorOptions {
    /// See the table.
    pub width: usize,
    /// See the table.
    pub layers: usize,
    /// See the table.
    pub heads: usize,
    /// See the table.
    pub inner: usize,
    /// See the table.
    pub dropout: f64,
    /// See the table.
    pub history: usize,
}

impl Default for GeneratorOptions {
    fn default() -> Self {
        Self { width: 128, layers: 2, heads: 4, inner: 256, dropout: 0.2, history: 9 }
    }
}

/// The model and its trainable tensors.
#[derive(Debug, Clone)]
pub struct Generator {
    /// Per level `[codes, width]`, input and output.
    tables: Vec<Tensor>,
    /// `[1, width]`
    start: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    parameters: Parameters,
    options: GeneratorOptions,
}

#[derive(Debug, Clone)]
struct Block {
    attention_norm: LayerNorm,
    qkv: Linear,
    output: Linear,
    mlp_norm: LayerNorm,
    mlp: Mlp,
}

/// Flattened windows of several users, filled up at the end.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Row of the joined table (start token first) per position, `[rows, longest]`.
    ids: Tensor,
    /// Per level, flat positions whose next code is of that level, and that code.
    targets: Vec<(Vec<u32>, Vec<u32>)>,
    /// Per level, weight of each target; empty = all 1.
    weights: Vec<Vec<f32>>,
    /// Flat position of the last code of each row.
    last: Vec<u32>,
    lengths: Vec<usize>,
}

/// Keys and values of read histories, per block `[rows, heads, longest, dim]`, and what is missing.
pub struct Prefix {
    keys: Vec<(Tensor, Tensor)>,
    /// `[rows, 1, 1, longest]`: 0 for a real position, −1e9 for filling.
    mask: Tensor,
    lengths: Vec<usize>,
}

/// Keys and values of the codes that each beam has taken, per block and step
/// `[rows, heads, beams, dim]`.
#[derive(Default, Clone)]
pub struct BeamCache {
    steps: Vec<Vec<(Tensor, Tensor)>>,
}

impl Generator {
    fn build(mut builder: Builder, sizes: &[usize], options: GeneratorOptions) -> Result<Self> {
        let GeneratorOptions { width, layers, heads, inner, history, .. } = options;
        if heads == 0 || width == 0 || !width.is_multiple_of(heads) || history == 0 {
            return Err(Error::usage(format!(
                "a generator of width {width} with {heads} heads over {history} items; the heads \
                 must divide the width and the history must be positive"
            )));
        }
        if sizes.is_empty() || sizes.contains(&0) {
            return Err(Error::usage(format!("code-book levels of sizes {sizes:?}")));
        }
        let b = &mut builder;
        let normal = Init::Normal(0.02);
        let linear = |b: &mut Builder, name: &str, inputs: usize, outputs: usize| {
            let zero = Some(Init::Constant(0.0));
            b.within(name, |b| Linear::with_init(b, inputs, outputs, zero, normal))
        };
        let norm = |b: &mut Builder, name: &str| b.within(name, |b| LayerNorm::new(b, width, 1e-5));
        let block = |b: &mut Builder| {
            Ok(Block {
                attention_norm: norm(b, "attention_norm")?,
                qkv: linear(b, "qkv", width, 3 * width)?,
                output: linear(b, "output", width, width)?,
                mlp_norm: norm(b, "mlp_norm")?,
                mlp: Mlp::new(
                    linear(b, "up", width, inner)?,
                    linear(b, "down", inner, width)?,
                    Activation::GeluTanh,
                ),
            })
        };
        Ok(Self {
            tables: sizes
                .iter()
                .enumerate()
                .map(|(level, &size)| b.tensor(&format!("codes.{level}"), (size, width), normal))
                .collect::<Result<_>>()?,
            start: b.tensor("start", (1, width), normal)?,
            positions: b.tensor("positions", (1 + (history + 1) * sizes.len(), width), normal)?,
            blocks: (0..layers).map(|at| b.within(at, block)).collect::<Result<_>>()?,
            norm: norm(b, "norm")?,
            parameters: builder.finish(),
            options,
        })
    }

    /// A model with random parameters for code-book levels of these sizes.
    ///
    /// # Errors
    /// Sizes that don't fit.
    pub fn new(sizes: &[usize], options: GeneratorOptions, seed: Seed) -> Result<Self> {
        Self::build(Builder::seeded(seed), sizes, options)
    }

    /// A model with given parameters; the level sizes are those of the tensors `codes.0`, ….
    ///
    /// # Errors
    /// Absent tensors or other shapes.
    pub fn from_tensors(
        options: GeneratorOptions,
        tensors: BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        let sizes = code_sizes(&tensors)?;
        Self::build(Builder::from_tensors(tensors), &sizes, options)
    }

    /// A copy for inference that records nothing for a backward pass.
    ///
    /// # Errors
    /// Those of candle.
    pub fn frozen(&self) -> Result<Self> {
        let sizes = self.sizes()?;
        let tensors = self.merged_tensors()?;
        Self::build(Builder::from_tensors(tensors).frozen(), &sizes, self.options)
    }

    /// Codes per level.
    ///
    /// # Errors
    /// Those of candle.
    pub fn sizes(&self) -> Result<Vec<usize>> {
        self.tables.iter().map(|table| Ok(table.dim(0)?)).collect()
    }

    /// The trainable tensors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The options that the model was built with.
    pub fn options(&self) -> &GeneratorOptions {
        &self.options
    }

    /// Embedding tables of all levels, `[codes, width]`.
    pub fn tables(&self) -> &[Tensor] {
        &self.tables
    }

    /// The vocabulary grown to the numbers of a split (`parent_of[level][new]` = old code): a new
    /// code starts as its parent's embedding plus normal noise of standard deviation `noise`.
    ///
    /// # Errors
    /// Tables that don't fit the model.
    pub fn grown(&self, parent_of: &[Vec<u32>], noise: f64, seed: Seed) -> Result<Self> {
        let mut tensors = self.merged_tensors()?;
        for (level, parents) in parent_of.iter().enumerate() {
            let name = format!("codes.{level}");
            let table = &self.tables[level];
            let (old, width) = table.dims2()?;
            if parents.len() < old || parents.iter().any(|&parent| parent as usize >= old) {
                return Err(Error::data(
                    format!("{} codes at level {level} for a model of {old}", parents.len()),
                    "a split of the code book that the model was trained on",
                ));
            }
            let parents = Tensor::new(&parents[..], &Device::Cpu)?;
            let grown = table.detach().index_select(&parents, 0)?;
            let fresh = grown.dim(0)? - old;
            if fresh > 0 && noise > 0.0 {
                let mut stream = seed.stream(&format!("grow/{level}"));
                let noise = stream.normal_tensor((fresh, width), noise)?;
                let rows = (grown.narrow(0, old, fresh)? + noise)?;
                tensors.insert(name, Tensor::cat(&[&grown.narrow(0, 0, old)?, &rows], 0)?);
            } else {
                tensors.insert(name, grown);
            }
        }
        Self::from_tensors(self.options, tensors)
    }

    /// Freezes the backbone: adds low-rank adapters to every linear layer of the blocks and returns
    /// what trains then, the adapters and the code embeddings (the paper's Stage 2).
    ///
    /// # Errors
    /// A rank of 0.
    pub fn attach_lora(&mut self, options: &LoraOptions, seed: Seed) -> Result<Parameters> {
        let mut builder = Builder::seeded(seed);
        for (at, block) in self.blocks.iter_mut().enumerate() {
            let [up, down] = block.mlp.linears_mut();
            let linears = [
                ("qkv", &mut block.qkv),
                ("output", &mut block.output),
                ("up", up),
                ("down", down),
            ];
            for (name, linear) in linears {
                builder.within(format!("{at}.{name}"), |b| {
                    linear.attach_lora(b, options.rank, options.alpha)
                })?;
            }
        }
        self.parameters.filter(|name| name.starts_with("codes.")).join(builder.finish())
    }

    /// All tensors with adapters merged into the weights.
    ///
    /// # Errors
    /// Those of candle.
    pub fn merged_tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = self.parameters.tensors();
        for (at, block) in self.blocks.iter().enumerate() {
            let mut mlp = block.mlp.clone();
            let [up, down] = mlp.linears_mut();
            for (name, linear) in
                [("qkv", &block.qkv), ("output", &block.output), ("up", up), ("down", down)]
            {
                if linear.has_lora() {
                    let merged = linear.merged_weight()?.detach();
                    tensors.insert(format!("{at}.{name}.weight"), merged);
                }
            }
        }
        Ok(tensors)
    }

    /// Windows of semantic IDs as a batch. Each row is a list of items' codes, of which the latest
    /// `history + 1` count; every code is a target.
    ///
    /// # Errors
    /// Those of candle.
    pub fn batch(&self, rows: &[Vec<&[u32]>], weights: Option<&[Vec<f32>]>) -> Result<Batch> {
        let sizes = self.sizes()?;
        let levels = sizes.len();
        let mut offsets = vec![1u32];
        sizes.iter().for_each(|&size| offsets.push(offsets[offsets.len() - 1] + size as u32));
        let most = self.options.history + 1;
        let cut = |row: &'_ Vec<&[u32]>| row.len().saturating_sub(most);
        let longest = rows.iter().map(|row| 1 + levels * (row.len() - cut(row))).max().unwrap_or(1);
        let mut ids = vec![0u32; rows.len() * longest];
        let mut targets = vec![(Vec::new(), Vec::new()); levels];
        let mut kept_weights = vec![Vec::new(); if weights.is_some() { levels } else { 0 }];
        let (mut last, mut lengths) = (Vec::new(), Vec::new());
        for (number, row) in rows.iter().enumerate() {
            let first = number * longest;
            let mut at = first;
            let from = cut(row);
            for (item, codes) in row.iter().enumerate().skip(from) {
                for (level, &code) in codes.iter().enumerate() {
                    targets[level].0.push(at as u32);
                    targets[level].1.push(code);
                    if let Some(weights) = weights {
                        kept_weights[level].push(weights[number][item]);
                    }
                    at += 1;
                    ids[at] = offsets[level] + code;
                }
            }
            last.push(at as u32);
            lengths.push(at - first + 1);
        }
        Ok(Batch {
            ids: Tensor::from_vec(ids, (rows.len(), longest), &Device::Cpu)?,
            targets,
            weights: kept_weights,
            last,
            lengths,
        })
    }

    fn embedded(&self, ids: &Tensor) -> Result<Tensor> {
        let mut parts = vec![&self.start];
        parts.extend(&self.tables);
        let joined = Tensor::cat(&parts, 0)?;
        let (_, longest) = ids.dims2()?;
        let positions = self.positions.narrow(0, 0, longest)?;
        Ok(ops::embedding(&joined, ids)?.broadcast_add(&positions)?)
    }

    /// Hidden states `[rows, longest, width]`; with a stream, dropout draws from it.
    fn hidden(&self, ids: &Tensor, mut stream: Option<Stream>) -> Result<Tensor> {
        let mut drop = |x: Tensor| match &mut stream {
            Some(stream) => ops::dropout(&x, self.options.dropout, stream),
            None => Ok(x),
        };
        let heads = self.options.heads;
        let causal = AttentionOptions { scale: None, causal: true, key_mask: None };
        let mut hidden = drop(self.embedded(ids)?)?;
        for block in &self.blocks {
            let qkv = block.qkv.forward(&block.attention_norm.forward(&hidden)?)?;
            let mixed = ops::attention_packed(&qkv, heads, heads, &causal)?;
            hidden = (&hidden + drop(block.output.forward(&mixed)?)?)?;
            let mixed = block.mlp.forward(&block.mlp_norm.forward(&hidden)?)?;
            hidden = (&hidden + drop(mixed)?)?;
        }
        self.norm.forward(&hidden)
    }

    /// L_Rec (Eq. 2): mean over all target codes of the cross-entropy inside their level's codes,
    /// times the number of levels, so that it is the loss of an item.
    ///
    /// # Errors
    /// Those of candle.
    pub fn loss(&self, batch: &Batch, stream: Option<Stream>) -> Result<Tensor> {
        let hidden = self.hidden(&batch.ids, stream)?.flatten_to(1)?;
        let mut total: Option<Tensor> = None;
        for (level, (at, codes)) in batch.targets.iter().enumerate() {
            let rows = ops::embedding(&hidden, &Tensor::new(&at[..], &Device::Cpu)?)?;
            let codes = Tensor::new(&codes[..], &Device::Cpu)?;
            let loss = match batch.weights.get(level) {
                None => ops::linear_cross_entropy(&rows, &self.tables[level], None, &codes)?,
                Some(weights) => {
                    let logits = ops::linear(&rows, &self.tables[level], None)?;
                    let options = CrossEntropyOptions {
                        reduction: Reduction::None,
                        ..CrossEntropyOptions::default()
                    };
                    let losses = ops::cross_entropy(&logits, &codes, &options)?;
                    let count = weights.len();
                    let weights = Tensor::new(&weights[..], &Device::Cpu)?;
                    (ops::weighted_sum(&losses, &weights)? / count as f64)?
                }
            };
            total = Some(match total {
                Some(total) => (total + loss)?,
                None => loss,
            });
        }
        total.ok_or_else(|| Error::Bug("a batch without levels".into()))
    }

    /// Number of items in a batch whose codes are targets.
    pub fn target_items(batch: &Batch) -> usize {
        batch.targets.first().map_or(0, |(at, _)| at.len())
    }

    /// Reads histories: hidden state of the last position, `[rows, width]`, and what a beam needs
    /// to go on. Meant for a [`Generator::frozen`] copy.
    ///
    /// # Errors
    /// Those of candle.
    pub fn read(&self, batch: &Batch) -> Result<(Tensor, Prefix)> {
        let (rows, longest) = batch.ids.dims2()?;
        let (heads, dim) = (self.options.heads, self.options.width / self.options.heads);
        let causal = AttentionOptions { scale: None, causal: true, key_mask: None };
        let mut hidden = self.embedded(&batch.ids)?;
        let mut keys = Vec::new();
        for block in &self.blocks {
            let qkv = block.qkv.forward(&block.attention_norm.forward(&hidden)?)?;
            let part = |which: usize| {
                let part = qkv.narrow(2, which * heads * dim, heads * dim)?;
                part.reshape((rows, longest, heads, dim))?.transpose(1, 2)?.contiguous()
            };
            keys.push((part(1)?, part(2)?));
            let mixed = ops::attention_packed(&qkv, heads, heads, &causal)?;
            hidden = (&hidden + block.output.forward(&mixed)?)?;
            hidden = (&hidden + block.mlp.forward(&block.mlp_norm.forward(&hidden)?)?)?;
        }
        let last = Tensor::new(&batch.last[..], &Device::Cpu)?;
        let state = self.norm.forward(&hidden.flatten_to(1)?.index_select(&last, 0)?)?;
        let mut mask = vec![0f32; rows * longest];
        for (row, &length) in batch.lengths.iter().enumerate() {
            mask[row * longest + length..(row + 1) * longest].fill(-1e9);
        }
        let mask = Tensor::from_vec(mask, (rows, 1, 1, longest), &Device::Cpu)?;
        Ok((state, Prefix { keys, mask, lengths: batch.lengths.clone() }))
    }

    /// Logits `[…, codes]` of a level for hidden states `[…, width]`.
    ///
    /// # Errors
    /// Those of candle.
    pub fn logits(&self, state: &Tensor, level: usize) -> Result<Tensor> {
        Ok(ops::linear(state, &self.tables[level], None)?)
    }

    /// Lets every beam take one code of `level`: `codes` and `parents` (beam of the step before)
    /// are row-major `[rows, beams]`. Returns the new hidden states `[rows, beams, width]`.
    ///
    /// # Errors
    /// Those of candle.
    pub fn step(
        &self,
        prefix: &Prefix,
        cache: &mut BeamCache,
        level: usize,
        codes: &[u32],
        parents: &[u32],
    ) -> Result<Tensor> {
        let rows = prefix.lengths.len();
        let beams = codes.len() / rows.max(1);
        let (heads, dim) = (self.options.heads, self.options.width / self.options.heads);
        let width = self.options.width;
        // beams of the step before are rows of [rows · before]
        if let Some((key, _)) = cache.steps.first().and_then(|blocks| blocks.first()) {
            let before = key.dim(2)?;
            let flat: Vec<u32> = parents
                .iter()
                .enumerate()
                .map(|(at, &parent)| (at / beams * before) as u32 + parent)
                .collect();
            let flat = Tensor::new(&flat[..], &Device::Cpu)?;
            let pick = |t: &Tensor| -> Result<Tensor> {
                let t = t.transpose(1, 2)?.reshape((rows * before, heads * dim))?;
                let t = t.index_select(&flat, 0)?.reshape((rows, beams, heads, dim))?;
                Ok(t.transpose(1, 2)?.contiguous()?)
            };
            for (key, value) in cache.steps.iter_mut().flatten() {
                (*key, *value) = (pick(key)?, pick(value)?);
            }
        }
        let ids = Tensor::from_slice(codes, (rows, beams), &Device::Cpu)?;
        let at: Vec<u32> = prefix
            .lengths
            .iter()
            .flat_map(|&length| std::iter::repeat_n((length + level) as u32, beams))
            .collect();
        let at = Tensor::from_vec(at, (rows, beams), &Device::Cpu)?;
        let mut hidden =
            (ops::embedding(&self.tables[level], &ids)? + ops::embedding(&self.positions, &at)?)?;
        let scale = 1.0 / (dim as f64).sqrt();
        let mut fresh = Vec::with_capacity(self.blocks.len());
        for (number, block) in self.blocks.iter().enumerate() {
            let qkv = block.qkv.forward(&block.attention_norm.forward(&hidden)?)?;
            let part = |which: usize| {
                let part = qkv.narrow(2, which * width, width)?;
                part.reshape((rows, beams, heads, dim))?.transpose(1, 2)?.contiguous()
            };
            let (q, k, v) = (part(0)?, part(1)?, part(2)?);
            let (keys, values) = &prefix.keys[number];
            let mut own: Vec<(&Tensor, &Tensor)> =
                cache.steps.iter().map(|blocks| (&blocks[number].0, &blocks[number].1)).collect();
            own.push((&k, &v));
            let scores = (q.matmul(&keys.t()?)? * scale)?.broadcast_add(&prefix.mask)?;
            let mut scores = vec![scores];
            for (key, _) in &own {
                scores.push((((&q * *key)?.sum_keepdim(3)?) * scale)?);
            }
            let shares = Tensor::cat(&scores, 3)?;
            let shares = ops::softmax(&shares, &ops::SoftmaxOptions::default())?;
            let longest = keys.dim(2)?;
            let mut mixed = shares.narrow(3, 0, longest)?.contiguous()?.matmul(values)?;
            for (at, (_, value)) in own.iter().enumerate() {
                let share = shares.narrow(3, longest + at, 1)?;
                mixed = (mixed + value.broadcast_mul(&share)?)?;
            }
            let mixed = mixed.transpose(1, 2)?.contiguous()?.reshape((rows, beams, width))?;
            hidden = (&hidden + block.output.forward(&mixed)?)?;
            hidden = (&hidden + block.mlp.forward(&block.mlp_norm.forward(&hidden)?)?)?;
            fresh.push((k, v));
        }
        cache.steps.push(fresh);
        self.norm.forward(&hidden)
    }

    /// Log-probability of the last item of every row, by a plain pass over the whole sequence and a
    /// softmax over each level's codes (no trie): the teacher-forced oracle of tests.
    ///
    /// # Errors
    /// Those of candle.
    pub fn log_probability(&self, batch: &Batch) -> Result<Vec<f64>> {
        let hidden = self.hidden(&batch.ids, None)?.flatten_to(1)?;
        let levels = self.tables.len();
        let mut sums = vec![0f64; batch.last.len()];
        for (level, (at, codes)) in batch.targets.iter().enumerate() {
            for (sum, &last) in sums.iter_mut().zip(&batch.last) {
                let place = last - (levels - level) as u32;
                let index = at.binary_search(&place).map_err(|_| {
                    Error::Bug("the last item of a row has no target at its place".into())
                })?;
                let state = hidden.narrow(0, place as usize, 1)?;
                let logits: Vec<f32> =
                    self.logits(&state, level)?.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
                *sum += log_softmax(&logits)[codes[index] as usize];
            }
        }
        Ok(sums)
    }
}

/// Log-probabilities of logits.
pub(crate) fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - most).exp()).sum();
    logits.iter().map(|&x| f64::from(x - most) - sum.ln()).collect()
}

/// Level sizes from the tensors `codes.0`, `codes.1`, ….
fn code_sizes(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<usize>> {
    let mut sizes = Vec::new();
    while let Some(table) = tensors.get(&format!("codes.{}", sizes.len())) {
        sizes.push(table.dims2().map(|(codes, _)| codes)?);
    }
    Ok(sizes)
}
