//! The decoder-only stack: pre-norm blocks over the flattened codes of history and target.

use candle_core::{Device, Tensor};
use common::Result;
use common::nn::{Builder, Init, LayerNorm, Linear, Mlp};
use common::ops::{self, Activation, AttentionOptions};
use common::rng::Stream;

use super::beams::{BeamCache, Prefix, beam_attention, split_heads};
use super::{Batch, GeneratorOptions, dropped};

/// Learned positions, blocks with LayerNorm and tanh-GELU.
#[derive(Debug, Clone)]
pub(super) struct Decoder {
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
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

const CAUSAL: AttentionOptions = AttentionOptions { scale: None, causal: true, key_mask: None };

impl Decoder {
    pub(super) fn new(b: &mut Builder, levels: usize, options: GeneratorOptions) -> Result<Self> {
        let GeneratorOptions { width, layers, inner, history, .. } = options;
        let heads = options.heads * options.head_width();
        let normal = Init::Normal(0.02);
        let linear = |b: &mut Builder, name: &str, inputs: usize, outputs: usize| {
            let zero = Some(Init::Constant(0.0));
            b.within(name, |b| Linear::with_init(b, inputs, outputs, zero, normal))
        };
        let norm = |b: &mut Builder, name: &str| b.within(name, |b| LayerNorm::new(b, width, 1e-5));
        let block = |b: &mut Builder| {
            Ok(Block {
                attention_norm: norm(b, "attention_norm")?,
                qkv: linear(b, "qkv", width, 3 * heads)?,
                output: linear(b, "output", heads, width)?,
                mlp_norm: norm(b, "mlp_norm")?,
                mlp: Mlp::new(
                    linear(b, "up", width, inner)?,
                    linear(b, "down", inner, width)?,
                    Activation::GeluTanh,
                ),
            })
        };
        Ok(Self {
            positions: b.tensor("positions", (1 + (history + 1) * levels, width), normal)?,
            blocks: (0..layers).map(|at| b.within(at, block)).collect::<Result<_>>()?,
            norm: norm(b, "norm")?,
            options,
        })
    }

    /// The linear layers by name.
    pub(super) fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let mut all = Vec::new();
        for (at, block) in self.blocks.iter_mut().enumerate() {
            let [up, down] = block.mlp.linears_mut();
            let (qkv, output) = (&mut block.qkv, &mut block.output);
            for (name, linear) in [("qkv", qkv), ("output", output), ("up", up), ("down", down)] {
                all.push((format!("{at}.{name}"), linear));
            }
        }
        all
    }

    /// Hidden states `[positions, width]` of embedded tokens at some flat positions; the last block
    /// goes on with those alone once the tokens have looked at each other.
    pub(super) fn hidden(
        &self,
        embedded: &Tensor,
        positions: &Tensor,
        mut stream: Option<Stream>,
    ) -> Result<Tensor> {
        let mut drop = |x: Tensor| dropped(x, self.options.dropout, &mut stream);
        let heads = self.options.heads;
        let mut hidden = drop(self.placed(embedded)?)?;
        for (at, block) in self.blocks.iter().enumerate() {
            let qkv = block.qkv.forward(&block.attention_norm.forward(&hidden)?)?;
            let mut mixed = ops::attention_packed(&qkv, heads, heads, &CAUSAL)?;
            if at + 1 == self.blocks.len() {
                hidden = ops::embedding(&hidden.flatten_to(1)?, positions)?;
                mixed = ops::embedding(&mixed.flatten_to(1)?, positions)?;
            }
            hidden = ops::add(&hidden, &drop(block.output.forward(&mixed)?)?)?;
            let mixed = block.mlp.forward(&block.mlp_norm.forward(&hidden)?)?;
            hidden = ops::add(&hidden, &drop(mixed)?)?;
        }
        self.norm.forward(&hidden)
    }

    fn placed(&self, embedded: &Tensor) -> Result<Tensor> {
        let positions = self.positions.narrow(0, 0, embedded.dim(1)?)?;
        Ok(ops::add(embedded, &positions)?)
    }

    /// State of the last token of each row, `[rows, width]`, and what beams need to go on.
    pub(super) fn read(&self, embedded: &Tensor, batch: &Batch) -> Result<(Tensor, Prefix)> {
        let heads = self.options.heads;
        let mut hidden = self.placed(embedded)?;
        let mut read = Vec::with_capacity(self.blocks.len());
        let (rows, longest, _) = hidden.dims3()?;
        let last: Vec<u32> =
            (0..rows).map(|row| (row * longest + batch.lengths[row] - 1) as u32).collect();
        let last = Tensor::new(&last[..], &Device::Cpu)?;
        let last_of = |x: &Tensor| x.flatten_to(1)?.index_select(&last, 0);
        for (at, block) in self.blocks.iter().enumerate() {
            let qkv = block.qkv.forward(&block.attention_norm.forward(&hidden)?)?;
            read.push((self.part(&qkv, 1)?, self.part(&qkv, 2)?));
            let mut mixed = ops::attention_packed(&qkv, heads, heads, &CAUSAL)?;
            if at + 1 == self.blocks.len() {
                // what follows looks at the last token only
                (hidden, mixed) = (last_of(&hidden)?, last_of(&mixed)?);
            }
            hidden = (&hidden + block.output.forward(&mixed)?)?;
            hidden = (&hidden + block.mlp.forward(&block.mlp_norm.forward(&hidden)?)?)?;
        }
        let state = self.norm.forward(&hidden)?;
        let lengths = batch.lengths.clone();
        Ok((state, Prefix { read, mask: batch.score_mask()?, lengths, start: Vec::new() }))
    }

    /// Queries (0), keys (1) or values (2), `[rows, heads, positions, dim]`.
    fn part(&self, qkv: &Tensor, which: usize) -> Result<Tensor> {
        let width = qkv.dim(2)? / 3;
        split_heads(&qkv.narrow(2, which * width, width)?, self.options.heads)
    }

    /// Hidden states `[rows, beams, width]` after one more code of `level`, given embedded.
    pub(super) fn step(
        &self,
        prefix: &Prefix,
        cache: &mut BeamCache,
        level: usize,
        embedded: &Tensor,
    ) -> Result<Tensor> {
        let (rows, beams, _) = embedded.dims3()?;
        let at: Vec<u32> = prefix
            .lengths
            .iter()
            .flat_map(|&length| std::iter::repeat_n((length + level) as u32, beams))
            .collect();
        let at = Tensor::from_vec(at, (rows, beams), &Device::Cpu)?;
        let mut hidden = (embedded + ops::embedding(&self.positions, &at)?)?;
        let scale = 1.0 / (self.options.head_width() as f64).sqrt();
        let mut fresh = Vec::with_capacity(self.blocks.len());
        for (number, block) in self.blocks.iter().enumerate() {
            let qkv = block.qkv.forward(&block.attention_norm.forward(&hidden)?)?;
            let (q, k, v) = (self.part(&qkv, 0)?, self.part(&qkv, 1)?, self.part(&qkv, 2)?);
            let (keys, values) = &prefix.read[number];
            let taken = cache.steps.iter().map(|blocks| &blocks[number]);
            let mut own: Vec<_> = taken.map(|(key, value)| (key, value, None)).collect();
            own.push((&k, &v, None));
            let mixed = beam_attention(&q, scale, (keys, values), &prefix.mask, &own)?;
            hidden = (&hidden + block.output.forward(&mixed)?)?;
            hidden = (&hidden + block.mlp.forward(&block.mlp_norm.forward(&hidden)?)?)?;
            fresh.push((k, v));
        }
        cache.steps.push(fresh);
        self.norm.forward(&hidden)
    }
}
