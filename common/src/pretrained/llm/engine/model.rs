//! A loaded model and the forward pass of its layers.

use super::config::{Architecture, ModelConfig};
use super::kernels::{self, Activations};
use super::load::{Layer, Source, Weights};
use super::matrix::{Machine, Matrix};
use crate::gguf::Gguf;
use crate::weights::Safetensors;
use crate::{Error, Result};
use rayon::prelude::*;
use std::path::Path;
use std::sync::Arc;

/// How weights are held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// [`Precision::Quantised`] for GGUF files whose matrices are quantised, else
    /// [`Precision::F32`] where that takes less than a quarter of the free memory, else
    /// [`Precision::F16`].
    #[default]
    Auto,
    /// f32: 4 bytes a weight. The reference; prompts are a little faster, steps much slower.
    F32,
    /// f16: 2 bytes a weight; exact for f16 files.
    F16,
    /// The blocks of the file, without loss (Q4_0 and Q4_1 at 5 bits, Q4_K at 6, Q5_0 and Q8_0 at
    /// 8.5, Q6_K at 10); other formats, and matrices of one layer that are computed together and
    /// differ in format, are requantised to Q8_0. Prompts unpack blocks to f32, steps multiply int8.
    Quantised,
}

/// A model in memory; clones share the weights.
#[derive(Debug, Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: ModelConfig,
    weights: Weights,
}

impl Model {
    /// Loads a Llama, Qwen2 or Gemma 3 model.
    ///
    /// Names and shapes of all tensors are compared with the metadata first; [`Error::Asset`]
    /// lists what is missing with the nearest names. The peak of memory is the file, the model and
    /// the largest tensor in f32 where a format is requantised.
    pub fn from_gguf(gguf: &Gguf, precision: Precision) -> Result<Self> {
        let config = ModelConfig::from_gguf(gguf)?;
        let precision = match precision {
            Precision::Auto if gguf.tensor("blk.0.attn_q.weight")?.dtype().block_size() > 1 => {
                Precision::Quantised
            }
            other => resolve(other, &config),
        };
        Self::load(&Source::Gguf(gguf), config, precision)
    }

    /// Loads a Llama or Qwen2 model from a folder in Hugging Face's layout: config.json and
    /// model.safetensors. Errors as in [`Model::from_gguf`].
    pub fn from_hf(folder: &Path, precision: Precision) -> Result<Self> {
        let config = ModelConfig::from_hf(&folder.join("config.json"))?;
        let file = Safetensors::open(&folder.join("model.safetensors"))?;
        let precision = resolve(precision, &config);
        Self::load(&Source::Hf(&file), config, precision)
    }

    fn load(source: &Source<'_>, config: ModelConfig, precision: Precision) -> Result<Self> {
        let weights = Weights::load(source, &config, precision)?;
        Ok(Self { inner: Arc::new(Inner { config, weights }) })
    }

    /// Hyperparameters.
    pub fn config(&self) -> &ModelConfig {
        &self.inner.config
    }

    /// Memory of the weight matrices in bytes.
    pub fn weight_bytes(&self) -> usize {
        self.inner.weights.bytes()
    }

    /// An error for a token that is not in the vocabulary.
    pub(super) fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        let size = self.config().vocab_size;
        match tokens.iter().find(|&&token| token as usize >= size) {
            Some(token) => Err(Error::data(
                format!("token id {token}"),
                format!("ids below the vocabulary size {size}; use the model's own tokenizer"),
            )),
            None => Ok(()),
        }
    }

    pub(super) fn output(&self) -> &Matrix {
        let weights = &self.inner.weights;
        weights.output.as_ref().unwrap_or(&weights.embedding)
    }

    /// Runs the tokens of `batch` through all layers and leaves the residual stream in
    /// `scratch.hidden` (row-major, hidden size), the keys and values behind the prefix in
    /// `cache`.
    pub(super) fn forward(
        &self,
        batch: &Batch<'_>,
        arithmetic: Arithmetic,
        cache: &mut [LayerCache],
        scratch: &mut Scratch,
    ) {
        let (config, weights) = (self.config(), &self.inner.weights);
        let machine = Machine::current();
        let count = batch.tokens.len();
        let hidden_size = config.hidden_size;
        scratch.resize(config, count);

        let scale = config.embedding_scale();
        for (&token, row) in batch.tokens.iter().zip(scratch.hidden.chunks_exact_mut(hidden_size)) {
            weights.embedding.row(token as usize, row);
            if scale != 1.0 {
                row.iter_mut().for_each(|x| *x *= scale);
            }
        }
        let rotations = Rotation::new(&batch.positions, config.head_dim, config.rope_theta);
        let local_rotations = config
            .sliding_window
            .as_ref()
            .map(|sliding| Rotation::new(&batch.positions, config.head_dim, sliding.rope_theta));
        for (index, (layer, cache)) in weights.layers.iter().zip(cache).enumerate() {
            let window = config.window(index);
            let rotation = match &local_rotations {
                Some(local) if window.is_some() => local,
                _ => &rotations,
            };
            let run = Run { config, machine, arithmetic, layer };
            run.attention(batch, rotation, window, cache, scratch);
            run.mlp(scratch, count);
        }
    }

    /// Final norm of row `row` of the residual stream, for the output matrix.
    pub(super) fn final_norm(&self, row: &[f32], out: &mut [f32]) {
        let config = self.config();
        let isa = Machine::current().isa;
        kernels::rms_norm(isa, row, &self.inner.weights.norm, config.rms_norm_eps, out);
    }
}

/// [`Precision::Auto`] for weights that are floats.
fn resolve(precision: Precision, config: &ModelConfig) -> Precision {
    if precision != Precision::Auto {
        return precision;
    }
    let bytes = config.matrix_weights() as u64 * 4;
    if bytes <= available_memory() / 4 { Precision::F32 } else { Precision::F16 }
}

/// Bytes that the operating system says are free for use, 8 GB where it does not.
fn available_memory() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    info.lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse().ok()
        })
        .map_or(8 << 30, |kib: u64| kib * 1024)
}

/// Whether activations are rounded to int8 before they meet quantised weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arithmetic {
    F32,
    Int8,
}

/// New tokens behind a prefix that is in the cache: one continuation, or a forest of them.
pub(super) struct Batch<'a> {
    pub(super) tokens: &'a [u32],
    pub(super) positions: Vec<usize>,
    /// For a forest; `None` where each token follows the one before it.
    pub(super) forest: Option<Forest>,
    /// Tokens in the cache that all tokens see.
    pub(super) prefix: usize,
}

/// Continuations that share their beginnings, depth first: a token sees the prefix, itself and its
/// ancestors.
#[derive(Debug, Default)]
pub(super) struct Forest {
    /// The token before, `None` at a root.
    pub(super) parent: Vec<Option<usize>>,
    /// The root above each token; ascending.
    pub(super) root: Vec<usize>,
}

/// Keys and values of one layer, `[head][capacity][head size]` each.
#[derive(Debug, Clone, Default)]
pub(super) struct LayerCache {
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
    pub(super) capacity: usize,
}

/// Buffers of a forward pass, kept between calls.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// `[token][hidden]`, the residual stream.
    pub(super) hidden: Vec<f32>,
    /// `[token][hidden]`, input or output of a block.
    normed: Vec<f32>,
    /// `[token][q, k, v]`.
    qkv: Vec<f32>,
    /// `[token][q]`, the attention's output before its projection.
    attended: Vec<f32>,
    /// `[token][gate, up]`.
    gate_up: Vec<f32>,
    pub(super) rounded: Activations,
}

impl Scratch {
    fn resize(&mut self, config: &ModelConfig, count: usize) {
        self.hidden.resize(count * config.hidden_size, 0.0);
        self.normed.resize(count * config.hidden_size, 0.0);
        self.qkv.resize(count * (config.query_size() + 2 * config.key_value_size()), 0.0);
        self.attended.resize(count * config.query_size(), 0.0);
        self.gate_up.resize(count * 2 * config.intermediate_size, 0.0);
    }
}

/// Cosines and sines of the rotary embedding, `[token][head size / 2]`.
struct Rotation {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    fn new(positions: &[usize], head_dim: usize, theta: f64) -> Self {
        let half = head_dim / 2;
        let angles = positions.iter().flat_map(|&position| {
            (0..half)
                .map(move |i| position as f64 * theta.powf(-(2.0 * i as f64) / head_dim as f64))
        });
        let (sin, cos) = angles.map(|angle| (angle.sin() as f32, angle.cos() as f32)).unzip();
        Self { cos, sin }
    }
}

/// One layer at work.
struct Run<'a> {
    config: &'a ModelConfig,
    machine: Machine,
    arithmetic: Arithmetic,
    layer: &'a Layer,
}

impl Run<'_> {
    fn product(
        &self,
        matrix: &Matrix,
        x: &[f32],
        stride: usize,
        rounded: &mut Activations,
        out: &mut [f32],
    ) {
        let count = out.len() / matrix.rows();
        match self.arithmetic {
            Arithmetic::F32 => matrix.product(self.machine, x, stride, count, out),
            Arithmetic::Int8 => {
                matrix.product_int8(self.machine, x, stride, count, rounded, out);
            }
        }
    }

    /// `out[t] = norm(x[t])`, rows over the threads.
    fn norm(&self, x: &[f32], weight: &[f32], out: &mut [f32]) {
        let (width, eps, isa) = (weight.len(), self.config.rms_norm_eps, self.machine.isa);
        self.rows(out, width, |t, out| {
            kernels::rms_norm(isa, &x[t * width..(t + 1) * width], weight, eps, out);
        });
    }

    /// Calls `run` for every row of `out`, over the threads where there are several.
    fn rows(&self, out: &mut [f32], width: usize, run: impl Fn(usize, &mut [f32]) + Sync) {
        if self.machine.threads > 1 && out.len() > width {
            let rows = out.len() / width;
            let chunk = rows.div_ceil(4 * self.machine.threads);
            out.par_chunks_mut(chunk * width).enumerate().for_each(|(index, out)| {
                for (t, out) in out.chunks_exact_mut(width).enumerate() {
                    run(index * chunk + t, out);
                }
            });
        } else {
            out.chunks_exact_mut(width).enumerate().for_each(|(t, out)| run(t, out));
        }
    }

    /// Adds `x` (after the norm, where there is one) to the residual stream.
    fn add(&self, hidden: &mut [f32], x: &[f32], norm: Option<&[f32]>) {
        let (width, eps, isa) =
            (self.config.hidden_size, self.config.rms_norm_eps, self.machine.isa);
        self.rows(hidden, width, |t, hidden| {
            let x = &x[t * width..(t + 1) * width];
            match norm {
                None => hidden.iter_mut().zip(x).for_each(|(hidden, x)| *hidden += x),
                Some(weight) => {
                    let mut normed = vec![0.0; width];
                    kernels::rms_norm(isa, x, weight, eps, &mut normed);
                    hidden.iter_mut().zip(&normed).for_each(|(hidden, x)| *hidden += x);
                }
            }
        });
    }

    fn mlp(&self, scratch: &mut Scratch, count: usize) {
        let (layer, isa) = (self.layer, self.machine.isa);
        let width = self.config.intermediate_size;
        self.norm(&scratch.hidden, &layer.mlp_norm, &mut scratch.normed);
        let hidden_size = self.config.hidden_size;
        let rounded = &mut scratch.rounded;
        let gate_up = &mut scratch.gate_up[..count * 2 * width];
        self.product(&layer.gate_up, &scratch.normed, hidden_size, rounded, gate_up);
        let gelu = self.config.architecture == Architecture::Gemma3;
        self.rows(gate_up, 2 * width, |_, row| {
            let (gate, up) = row.split_at_mut(width);
            if gelu {
                kernels::gelu_gate(isa, gate, up);
            } else {
                kernels::silu_gate(isa, gate, up);
            }
        });
        self.product(&layer.down, gate_up, 2 * width, rounded, &mut scratch.normed);
        self.add(&mut scratch.hidden, &scratch.normed, layer.post_mlp_norm.as_deref());
    }

    fn attention(
        &self,
        batch: &Batch<'_>,
        rotation: &Rotation,
        window: Option<usize>,
        cache: &mut LayerCache,
        scratch: &mut Scratch,
    ) {
        let (layer, config, isa) = (self.layer, self.config, self.machine.isa);
        let (head_dim, query_size) = (config.head_dim, config.query_size());
        let key_value_size = config.key_value_size();
        let width = query_size + 2 * key_value_size;
        self.norm(&scratch.hidden, &layer.attention_norm, &mut scratch.normed);
        let rounded = &mut scratch.rounded;
        self.product(&layer.qkv, &scratch.normed, config.hidden_size, rounded, &mut scratch.qkv);
        self.rows(&mut scratch.qkv, width, |t, row| {
            if let Some(bias) = &layer.qkv_bias {
                row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
            }
            let half = t * head_dim / 2..(t + 1) * head_dim / 2;
            let mut buffer = vec![0.0; head_dim];
            for (head, x) in
                row[..query_size + key_value_size].chunks_exact_mut(head_dim).enumerate()
            {
                let is_query = head < config.num_attention_heads;
                let norm = if is_query { &layer.query_norm } else { &layer.key_norm };
                if let Some(norm) = norm {
                    kernels::rms_norm(isa, x, norm, config.rms_norm_eps, &mut buffer);
                    x.copy_from_slice(&buffer);
                }
                kernels::rotate_half(
                    isa,
                    x,
                    &rotation.cos[half.clone()],
                    &rotation.sin[half.clone()],
                );
            }
        });
        for (t, row) in scratch.qkv.chunks_exact(width).enumerate() {
            let (keys, values) = row[query_size..].split_at(key_value_size);
            for head in 0..config.num_key_value_heads {
                let from = head * head_dim..(head + 1) * head_dim;
                let at = (head * cache.capacity + batch.prefix + t) * head_dim;
                cache.keys[at..at + head_dim].copy_from_slice(&keys[from.clone()]);
                cache.values[at..at + head_dim].copy_from_slice(&values[from]);
            }
        }
        let attention = super::attention::Attention {
            config,
            machine: self.machine,
            batch,
            window,
            cache,
            queries: &scratch.qkv,
            query_stride: width,
        };
        attention.run(&mut scratch.attended);
        self.product(
            &layer.attention_output,
            &scratch.attended,
            query_size,
            rounded,
            &mut scratch.normed,
        );
        self.add(&mut scratch.hidden, &scratch.normed, layer.post_attention_norm.as_deref());
    }
}
