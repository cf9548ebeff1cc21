//! The encoder–decoder stack of TIGER: T5's layers
//! ([Raffel et al. 2020](https://arxiv.org/abs/1910.10683)): RMS norm before each part, no biases,
//! scores without 1/√dim but with a learned bias by distance, ReLU.

use candle_core::Tensor;
use common::Result;
use common::nn::{Builder, Init, Linear, Mlp, RelativeBias, RmsNorm};
use common::ops::{self, Activation, SoftmaxOptions};
use common::rng::Stream;

use super::beams::{BeamCache, Prefix, beam_attention, split_heads};
use super::{Batch, GeneratorOptions, dropped};

/// Buckets of distances and the distance from which on they are one, as in T5.
const BUCKETS: (usize, usize) = (32, 128);

/// `layers` blocks in the encoder and as many in the decoder.
#[derive(Debug, Clone)]
pub(super) struct EncoderDecoder {
    encoder: Stack,
    decoder: Stack,
    options: GeneratorOptions,
}

#[derive(Debug, Clone)]
struct Stack {
    bias: RelativeBias,
    blocks: Vec<Block>,
    norm: RmsNorm,
}

#[derive(Debug, Clone)]
struct Block {
    own: Attention,
    /// To the encoder's states; only in the decoder.
    cross: Option<Attention>,
    norm: RmsNorm,
    mlp: Mlp,
}

#[derive(Debug, Clone)]
struct Attention {
    norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    output: Linear,
    heads: usize,
}

impl EncoderDecoder {
    pub(super) fn new(b: &mut Builder, options: GeneratorOptions) -> Result<Self> {
        let stack = |b: &mut Builder, decoder: bool| Stack::new(b, options, decoder);
        Ok(Self {
            encoder: b.within("encoder", |b| stack(b, false))?,
            decoder: b.within("decoder", |b| stack(b, true))?,
            options,
        })
    }

    /// The linear layers by name.
    pub(super) fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let mut all = Vec::new();
        for (stack, name) in [(&mut self.encoder, "encoder"), (&mut self.decoder, "decoder")] {
            for (at, block) in stack.blocks.iter_mut().enumerate() {
                let attentions = [("own", Some(&mut block.own)), ("cross", block.cross.as_mut())];
                for (part, attention) in attentions {
                    let Some(Attention { q, k, v, output, .. }) = attention else { continue };
                    for (last, linear) in [("q", q), ("k", k), ("v", v), ("output", output)] {
                        all.push((format!("{name}.{at}.{part}.{last}"), linear));
                    }
                }
                let [up, down] = block.mlp.linears_mut();
                for (last, linear) in [("up", up), ("down", down)] {
                    all.push((format!("{name}.{at}.{last}"), linear));
                }
            }
        }
        all
    }

    /// Decoder states `[rows, levels, width]` of embedded histories and embedded targets; divided by
    /// √width, as T5 does before a tied output table.
    pub(super) fn hidden(
        &self,
        read: &Tensor,
        batch: &Batch,
        decoded: &Tensor,
        mut stream: Option<Stream>,
    ) -> Result<Tensor> {
        let mut drop = |x: Tensor| dropped(x, self.options.dropout, &mut stream);
        let mask = batch.mask()?;
        let padded = SoftmaxOptions { key_mask: Some(mask), ..SoftmaxOptions::default() };
        let states = self.encode(read, &padded, &mut drop)?;
        let causal = SoftmaxOptions { causal: true, ..SoftmaxOptions::default() };
        let levels = decoded.dim(1)?;
        let bias = self.decoder.bias.forward(levels, levels)?;
        let mut hidden = drop(decoded.clone())?;
        for block in &self.decoder.blocks {
            let normed = block.own.norm.forward(&hidden)?;
            let mixed = block.own.forward(&normed, &normed, Some(&bias), &causal)?;
            hidden = ops::add(&hidden, &drop(mixed)?)?;
            if let Some(cross) = &block.cross {
                let normed = cross.norm.forward(&hidden)?;
                let mixed = cross.forward(&normed, &states, None, &padded)?;
                hidden = ops::add(&hidden, &drop(mixed)?)?;
            }
            let mixed = block.mlp.forward(&block.norm.forward(&hidden)?)?;
            hidden = ops::add(&hidden, &drop(mixed)?)?;
        }
        self.scaled(&drop(self.decoder.norm.forward(&hidden)?)?)
    }

    fn scaled(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok((hidden * (self.options.width as f64).powf(-0.5))?)
    }

    /// Encoder states `[rows, longest, width]`.
    fn encode(
        &self,
        read: &Tensor,
        padded: &SoftmaxOptions,
        drop: &mut impl FnMut(Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let longest = read.dim(1)?;
        let bias = self.encoder.bias.forward(longest, longest)?;
        let mut hidden = drop(read.clone())?;
        for block in &self.encoder.blocks {
            let normed = block.own.norm.forward(&hidden)?;
            let mixed = block.own.forward(&normed, &normed, Some(&bias), padded)?;
            hidden = ops::add(&hidden, &drop(mixed)?)?;
            let mixed = block.mlp.forward(&block.norm.forward(&hidden)?)?;
            hidden = ops::add(&hidden, &drop(mixed)?)?;
        }
        drop(self.encoder.norm.forward(&hidden)?)
    }

    /// Decoder state after the start token, `[rows, width]`, and what beams need to go on.
    pub(super) fn read(
        &self,
        read: &Tensor,
        batch: &Batch,
        start: &Tensor,
    ) -> Result<(Tensor, Prefix)> {
        let padded = SoftmaxOptions { key_mask: Some(batch.mask()?), ..SoftmaxOptions::default() };
        let states = self.encode(read, &padded, &mut Ok)?;
        let (rows, _, width) = states.dims3()?;
        let mut prefix = Prefix {
            read: Vec::new(),
            mask: batch.score_mask()?,
            lengths: batch.lengths.clone(),
            start: Vec::new(),
        };
        for block in &self.decoder.blocks {
            if let Some(cross) = &block.cross {
                prefix.read.push((cross.part(&cross.k, &states)?, cross.part(&cross.v, &states)?));
            }
        }
        let start = start.unsqueeze(0)?.broadcast_as((rows, 1, width))?.contiguous()?;
        let (hidden, fresh) = self.advance(&prefix, &BeamCache::default(), 0, &start)?;
        prefix.start = fresh;
        Ok((hidden.squeeze(1)?, prefix))
    }

    /// As [`super::decoder::Decoder::step`].
    pub(super) fn step(
        &self,
        prefix: &Prefix,
        cache: &mut BeamCache,
        level: usize,
        embedded: &Tensor,
    ) -> Result<Tensor> {
        let (hidden, fresh) = self.advance(prefix, cache, level + 1, embedded)?;
        cache.steps.push(fresh);
        Ok(hidden)
    }

    /// One decoder position: states `[rows, beams, width]`, and keys and values per block.
    fn advance(
        &self,
        prefix: &Prefix,
        cache: &BeamCache,
        position: usize,
        embedded: &Tensor,
    ) -> Result<(Tensor, Vec<(Tensor, Tensor)>)> {
        // `[1, heads, 1, position + 1]`: bias of every position up to this one
        let bias = self.decoder.bias.forward(1, position + 1)?;
        let bias_of = |at: usize| Ok::<_, common::Error>(bias.narrow(3, at, 1)?.contiguous()?);
        let mut hidden = embedded.clone();
        let mut fresh = Vec::with_capacity(self.decoder.blocks.len());
        for (number, block) in self.decoder.blocks.iter().enumerate() {
            let normed = block.own.norm.forward(&hidden)?;
            let own = &block.own;
            let (q, k, v) = (
                own.part(&own.q, &normed)?,
                own.part(&own.k, &normed)?,
                own.part(&own.v, &normed)?,
            );
            let mixed = match prefix.start.get(number) {
                // the start token sees itself alone
                None => beam_attention(&q, 1.0, (&k, &v), &bias_of(0)?, &[])?,
                Some((first_key, first_value)) => {
                    let mut seen = Vec::new();
                    for (step, blocks) in cache.steps.iter().enumerate() {
                        seen.push((&blocks[number].0, &blocks[number].1, Some(bias_of(step + 1)?)));
                    }
                    seen.push((&k, &v, Some(bias_of(position)?)));
                    beam_attention(&q, 1.0, (first_key, first_value), &bias_of(0)?, &seen)?
                }
            };
            hidden = (&hidden + own.output.forward(&mixed)?)?;
            if let Some(cross) = &block.cross {
                let q = cross.part(&cross.q, &cross.norm.forward(&hidden)?)?;
                let (keys, values) = &prefix.read[number];
                let mixed = beam_attention(&q, 1.0, (keys, values), &prefix.mask, &[])?;
                hidden = (&hidden + cross.output.forward(&mixed)?)?;
            }
            hidden = (&hidden + block.mlp.forward(&block.norm.forward(&hidden)?)?)?;
            fresh.push((k, v));
        }
        Ok((self.scaled(&self.decoder.norm.forward(&hidden)?)?, fresh))
    }
}

impl Stack {
    fn new(b: &mut Builder, options: GeneratorOptions, decoder: bool) -> Result<Self> {
        let GeneratorOptions { width, layers, heads, inner, .. } = options;
        let norm = |b: &mut Builder, name: &str| b.within(name, |b| RmsNorm::new(b, width, 1e-6));
        let block = |b: &mut Builder| {
            let own = b.within("own", |b| Attention::new(b, options))?;
            let cross = match decoder {
                true => Some(b.within("cross", |b| Attention::new(b, options))?),
                false => None,
            };
            let mut linear = |name: &str, inputs: usize, outputs: usize| {
                let normal = Init::Normal((inputs as f64).powf(-0.5));
                b.within(name, |b| Linear::with_init(b, inputs, outputs, None, normal))
            };
            let (up, down) = (linear("up", width, inner)?, linear("down", inner, width)?);
            let mlp = Mlp::new(up, down, Activation::Relu);
            Ok(Block { own, cross, norm: norm(b, "mlp_norm")?, mlp })
        };
        let bias =
            b.within("bias", |b| RelativeBias::new(b, heads, BUCKETS.0, BUCKETS.1, !decoder))?;
        Ok(Self {
            bias,
            blocks: (0..layers).map(|at| b.within(at, block)).collect::<Result<_>>()?,
            norm: norm(b, "norm")?,
        })
    }
}

impl Attention {
    fn new(b: &mut Builder, options: GeneratorOptions) -> Result<Self> {
        let (width, dim) = (options.width, options.head_width());
        let wide = options.heads * dim;
        let mut linear = |name: &str, inputs: usize, outputs: usize, scale: f64| {
            let normal = Init::Normal(scale.powf(-0.5));
            b.within(name, |b| Linear::with_init(b, inputs, outputs, None, normal))
        };
        Ok(Self {
            q: linear("q", width, wide, (width * dim) as f64)?,
            k: linear("k", width, wide, width as f64)?,
            v: linear("v", width, wide, width as f64)?,
            output: linear("output", wide, width, wide as f64)?,
            norm: b.within("norm", |b| RmsNorm::new(b, width, 1e-6))?,
            heads: options.heads,
        })
    }

    /// `[rows, positions, width]` → `[rows, heads, positions, dim]`.
    fn part(&self, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        split_heads(&linear.forward(x)?, self.heads)
    }

    /// Queries from `x`, keys and values from `seen`; `[rows, positions, width]` out.
    fn forward(
        &self,
        x: &Tensor,
        seen: &Tensor,
        bias: Option<&Tensor>,
        options: &SoftmaxOptions,
    ) -> Result<Tensor> {
        let (q, k, v) =
            (self.part(&self.q, x)?, self.part(&self.k, seen)?, self.part(&self.v, seen)?);
        let mut scores = q.matmul(&k.t()?)?;
        if let Some(bias) = bias {
            scores = scores.broadcast_add(bias)?;
        }
        let mixed = ops::softmax(&scores, options)?.matmul(&v)?.transpose(1, 2)?;
        self.output.forward(&mixed.contiguous()?.flatten_from(2)?)
    }
}
