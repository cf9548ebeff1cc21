//! Multi-head attention with grouped keys and values, rotary positions and a preallocated cache.

use candle_core::{DType, Device, Tensor};

use super::{Builder, Init, Linear};
use crate::ops::{self, AttentionOptions, RopeStyle, RopeTable};
use crate::{Error, Result};

/// Sizes of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Values a head.
    pub dim: usize,
}

/// What a head takes from its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Port {
    /// What it asks with.
    Query,
    /// What it is found by.
    Key,
    /// What it hands on.
    Value,
}

impl Port {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Query, Self::Key, Self::Value];
}

/// Attention of a sequence to itself.
#[derive(Debug, Clone)]
pub struct Attention {
    projection: Projection,
    output: Linear,
    heads: Heads,
}

#[derive(Debug, Clone)]
enum Projection {
    /// Queries, keys and values side by side.
    Packed(Box<Linear>),
    Split(Box<[Linear; 3]>),
}

/// What a pass through an attention layer needs beside the hidden states.
#[derive(Debug, Default)]
pub struct AttentionInputs<'a> {
    /// Angles of the positions in this pass.
    pub rope: Option<&'a RopeTable>,
    /// `[batch, keys]` with the cached ones, non-zero = seen.
    pub key_mask: Option<&'a Tensor>,
    /// Keys and values of earlier passes; this pass's are appended.
    pub cache: Option<&'a mut KvCache>,
    /// Let positions see later ones.
    pub bidirectional: bool,
}

impl Attention {
    /// Llama's names: `q_proj`, `k_proj`, `v_proj` (with bias if `qkv_bias`), `o_proj`.
    pub fn split(
        builder: &mut Builder,
        hidden: usize,
        heads: Heads,
        qkv_bias: bool,
        output_bias: bool,
        weight: Init,
    ) -> Result<Self> {
        let mut linear = |name: &str, inputs: usize, outputs: usize, bias: bool| {
            let bias = bias.then_some(Init::Constant(0.0));
            builder.within(name, |b| Linear::with_init(b, inputs, outputs, bias, weight))
        };
        let (wide, narrow) = (heads.heads * heads.dim, heads.kv_heads * heads.dim);
        let q = linear("q_proj", hidden, wide, qkv_bias)?;
        let k = linear("k_proj", hidden, narrow, qkv_bias)?;
        let v = linear("v_proj", hidden, narrow, qkv_bias)?;
        let output = linear("o_proj", wide, hidden, output_bias)?;
        Ok(Self { projection: Projection::Split(Box::new([q, k, v])), output, heads })
    }

    /// One projection for queries, keys and values, e.g. GPT-2's `c_attn` and `c_proj`.
    pub fn packed(projection: Linear, output: Linear, heads: Heads) -> Self {
        Self { projection: Projection::Packed(Box::new(projection)), output, heads }
    }

    /// `[batch, positions, hidden]`, same shape out; causal unless asked otherwise.
    pub fn forward(&self, x: &Tensor, inputs: AttentionInputs<'_>) -> Result<Tensor> {
        self.output(&self.mix(x, inputs)?)
    }

    /// What the output projection makes of [`Attention::mix`], or of rows of it.
    pub fn output(&self, mixed: &Tensor) -> Result<Tensor> {
        self.output.forward(mixed)
    }

    /// Values that each head has mixed, head by head, `[batch, positions, heads · dim]`: all of
    /// [`Attention::forward`] but the output projection.
    pub fn mix(&self, x: &Tensor, inputs: AttentionInputs<'_>) -> Result<Tensor> {
        let (batch, positions, _) = x.dims3()?;
        let Heads { heads, kv_heads, dim } = self.heads;
        let options = AttentionOptions {
            scale: None,
            causal: !inputs.bidirectional,
            key_mask: inputs.key_mask.cloned(),
        };
        let (mut q, mut k, v) = match &self.projection {
            Projection::Packed(projection) => {
                let qkv = projection.forward(x)?;
                if inputs.cache.is_none() && inputs.rope.is_none() {
                    return Ok(ops::attention_packed(&qkv, heads, kv_heads, &options)?);
                }
                let part = |first: usize, count: usize| {
                    let part = qkv.narrow(2, first * dim, count * dim)?;
                    part.reshape((batch, positions, count, dim))
                };
                (part(0, heads)?, part(heads, kv_heads)?, part(heads + kv_heads, kv_heads)?)
            }
            Projection::Split(projections) => {
                let part = |which: usize, count: usize| {
                    let part = projections[which].forward(x)?;
                    Ok::<_, Error>(part.reshape((batch, positions, count, dim))?)
                };
                (part(0, heads)?, part(1, kv_heads)?, part(2, kv_heads)?)
            }
        };
        if let Some(table) = inputs.rope {
            q = ops::rope(&q, table, RopeStyle::Half, true)?;
            k = ops::rope(&k, table, RopeStyle::Half, true)?;
        }
        let mixed = match inputs.cache {
            None => ops::attention(&q, &k, &v, &options)?,
            Some(cache) => {
                let (k, v) = cache.append(&k, &v)?;
                ops::attention(&q, &k, &v, &options)?
            }
        };
        Ok(mixed.reshape((batch, positions, heads * dim))?)
    }

    /// Query, key or value of one query head from normalised hidden states `[batch, positions,
    /// hidden]`: `[batch, positions, 1, dim]`, before rotary positions.
    pub fn project_head(&self, port: Port, head: usize, x: &Tensor) -> Result<Tensor> {
        let Heads { heads, kv_heads, dim } = self.heads;
        let group = head / (heads / kv_heads);
        let first = match (&self.projection, port) {
            (_, Port::Query) => head,
            (Projection::Packed(_), Port::Key) => heads + group,
            (Projection::Packed(_), Port::Value) => heads + kv_heads + group,
            (Projection::Split(_), _) => group,
        };
        let linear = match &self.projection {
            Projection::Packed(projection) => projection,
            Projection::Split(projections) => &projections[port as usize],
        };
        let part = linear.narrow_outputs(first * dim, dim)?.forward(x)?;
        Ok(part.unsqueeze(2)?)
    }

    /// What one head's mixed values `[batch, positions, dim]` add to the residual stream.
    pub fn head_output(&self, head: usize, mixed: &Tensor) -> Result<Tensor> {
        self.output.narrow_inputs(head * self.heads.dim, self.heads.dim)?.forward(mixed)
    }

    /// Bias of the output projection; it belongs to no head.
    pub fn output_bias(&self) -> Option<&Tensor> {
        self.output.bias()
    }

    /// The linear layers by the last part of their names.
    pub fn linears_mut(&mut self) -> Vec<(&'static str, &mut Linear)> {
        let mut all = match &mut self.projection {
            Projection::Packed(projection) => vec![("c_attn", &mut **projection)],
            Projection::Split(projections) => {
                let [q, k, v] = &mut **projections;
                vec![("q_proj", q), ("k_proj", k), ("v_proj", v)]
            }
        };
        let output = if all.len() == 1 { "c_proj" } else { "o_proj" };
        all.push((output, &mut self.output));
        all
    }
}

/// Keys and values of the positions seen so far, `[batch, positions, kv_heads, dim]`, in buffers that
/// double when full. Holds values only: no gradient flows into earlier passes.
#[derive(Debug, Default)]
pub struct KvCache {
    buffers: Option<(Tensor, Tensor)>,
    length: usize,
}

impl KvCache {
    /// Positions held.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Forgets all positions from `length` on.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Keeps the sequences `rows` of the batch, in that order; one may occur several times.
    pub fn select(&mut self, rows: &[u32]) -> Result<()> {
        if let Some((k, v)) = &self.buffers {
            let rows = Tensor::new(rows, &Device::Cpu)?;
            self.buffers = Some((k.index_select(&rows, 0)?, v.index_select(&rows, 0)?));
        }
        Ok(())
    }

    /// Appends and returns everything held.
    fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (batch, fresh, heads, dim) = k.dims4()?;
        let needed = self.length + fresh;
        let capacity = self.buffers.as_ref().map_or(0, |(k, _)| k.dims()[1]);
        if let Some((old, _)) = &self.buffers
            && old.dims()[0] != batch
        {
            return Err(Error::Bug(format!(
                "a cache of {} sequences was given {batch}; select rows first",
                old.dims()[0]
            )));
        }
        if needed > capacity {
            let grown = |old: Option<&Tensor>| {
                let shape = (batch, needed.next_power_of_two().max(64), heads, dim);
                let buffer = Tensor::zeros(shape, DType::F32, &Device::Cpu)?;
                if let Some(old) = old.filter(|_| self.length > 0) {
                    let held = old.narrow(1, 0, self.length)?.contiguous()?;
                    buffer.slice_set(&held, 1, 0)?;
                }
                Ok::<_, Error>(buffer)
            };
            let old = self.buffers.as_ref();
            self.buffers = Some((grown(old.map(|b| &b.0))?, grown(old.map(|b| &b.1))?));
        }
        let Some((keys, values)) = &self.buffers else {
            return Err(Error::Bug("the cache has no buffers".into()));
        };
        for (buffer, fresh) in [(keys, k), (values, v)] {
            buffer.slice_set(&fresh.detach().contiguous()?, 1, self.length)?;
        }
        self.length = needed;
        Ok((keys.narrow(1, 0, needed)?, values.narrow(1, 0, needed)?))
    }
}

/// T5's bias of attention scores by distance ([Raffel et al. 2020](https://arxiv.org/abs/1910.10683)
/// §2.1). Parameter `weight` `[buckets, heads]`.
#[derive(Debug, Clone)]
pub struct RelativeBias {
    weight: Tensor,
    buckets: usize,
    most: usize,
    bidirectional: bool,
}

impl RelativeBias {
    /// Half the buckets hold exact distances, the others grow logarithmically up to `most`.
    pub fn new(
        builder: &mut Builder,
        heads: usize,
        buckets: usize,
        most: usize,
        bidirectional: bool,
    ) -> Result<Self> {
        if buckets < 4 || most <= buckets {
            return Err(Error::usage(format!(
                "{buckets} buckets up to distance {most}; use at least 4 and a larger distance"
            )));
        }
        let weight = builder.tensor("weight", (buckets, heads), Init::Normal(1.0))?;
        Ok(Self { weight, buckets, most, bidirectional })
    }

    /// `[1, heads, queries, keys]`, to be added to the scores; query `i` stands at `i + keys -
    /// queries`.
    pub fn forward(&self, queries: usize, keys: usize) -> Result<Tensor> {
        let first = keys.saturating_sub(queries);
        let ids: Vec<u32> = (0..queries)
            .flat_map(|q| (0..keys).map(move |k| k as i64 - (q + first) as i64))
            .map(|offset| self.bucket(offset))
            .collect();
        let ids = Tensor::from_vec(ids, (queries, keys), &Device::Cpu)?;
        Ok(ops::embedding(&self.weight, &ids)?.permute((2, 0, 1))?.unsqueeze(0)?.contiguous()?)
    }

    /// Bucket of a key `offset` positions after the query.
    fn bucket(&self, offset: i64) -> u32 {
        let (mut buckets, mut first) = (self.buckets, 0);
        let distance = if self.bidirectional {
            buckets /= 2;
            if offset > 0 {
                first = buckets;
            }
            offset.unsigned_abs() as usize
        } else {
            (-offset).max(0) as usize
        };
        let exact = buckets / 2;
        if distance < exact {
            return (first + distance) as u32;
        }
        let share = (distance as f32 / exact as f32).ln() / (self.most as f32 / exact as f32).ln();
        let bucket = exact + (share * (buckets - exact) as f32) as usize;
        (first + bucket.min(buckets - 1)) as u32
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::rng::Seed;

    #[test]
    fn buckets_equal_transformers() {
        // T5Attention._relative_position_bucket of -20, -16, -9, -8, -4, -3, -1, 0, 1, 3, 4, 9, 20
        let offsets = [-20, -16, -9, -8, -4, -3, -1, 0, 1, 3, 4, 9, 20];
        let of = |bidirectional| {
            let mut builder = Builder::seeded(Seed::new(1));
            let bias = RelativeBias::new(&mut builder, 2, 8, 16, bidirectional).unwrap();
            offsets.map(|offset| bias.bucket(offset))
        };
        assert_eq!(of(true), [3, 3, 3, 3, 2, 2, 1, 0, 5, 6, 6, 7, 7]);
        assert_eq!(of(false), [7, 7, 6, 6, 4, 3, 1, 0, 0, 0, 0, 0, 0]);
    }
}
