//! Scaled dot-product attention as one operator: per head two matrix products and a softmax, read
//! from and written to the projections' own layout, so nothing is transposed or repeated.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::fused::{fusable, fused};
use super::kernel::{filled, simd};
use super::math::sum_of;
use super::product::{Matrix, Start, Threads, gemm};
use super::softmax::{SoftmaxOptions, mask_bytes, softmax_compose, softmax_in_place};

/// Options of [`attention`].
#[derive(Debug, Clone, Default)]
pub struct AttentionOptions {
    /// Factor of the scores; `None` = `1 / √head_dim`.
    pub scale: Option<f64>,
    /// Query `i` sees the keys up to `i + keys - queries`.
    pub causal: bool,
    /// `[batch, keys]`, non-zero = the key is seen.
    pub key_mask: Option<Tensor>,
}

/// Queries whose scores are computed together; under a causal mask later keys are left out.
const TILE: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    /// One tensor holds queries, keys and values side by side.
    packed: bool,
    causal: bool,
    scale: f32,
}

impl Sizes {
    /// Values per position in tensor `which` (0 queries, 1 keys, 2 values).
    fn stride(&self, which: usize) -> usize {
        match (self.packed, which) {
            (true, _) => (self.heads + 2 * self.kv_heads) * self.dim,
            (false, 0) => self.heads * self.dim,
            (false, _) => self.kv_heads * self.dim,
        }
    }

    /// Where a head starts within a position; `head` counts key/value heads for keys and values.
    fn offset(&self, which: usize, head: usize) -> usize {
        let before = match (self.packed, which) {
            (true, 1) => self.heads,
            (true, 2) => self.heads + self.kv_heads,
            _ => 0,
        };
        (before + head) * self.dim
    }

    fn positions(&self, which: usize) -> usize {
        if which == 0 { self.queries } else { self.keys }
    }

    /// Values of one sequence in tensor `which`.
    fn sequence(&self, which: usize) -> usize {
        self.positions(which) * self.stride(which)
    }

    /// Keys that query `query` sees.
    fn seen(&self, query: usize) -> usize {
        if self.causal {
            (query + 1 + self.keys).saturating_sub(self.queries).min(self.keys)
        } else {
            self.keys
        }
    }

    fn tiles(&self) -> impl Iterator<Item = Range<usize>> {
        let queries = self.queries;
        (0..queries).step_by(TILE).map(move |first| first..(first + TILE).min(queries))
    }

    /// Rows `positions` of a head of tensor `which`, as a matrix.
    fn matrix<'a>(
        &self,
        inputs: [&'a [f32]; 3],
        which: usize,
        head: usize,
        positions: Range<usize>,
    ) -> Matrix<'a> {
        let stride = self.stride(which);
        let data = &inputs[which][positions.start * stride + self.offset(which, head)..];
        Matrix::strided(data, positions.len(), self.dim, stride)
    }
}

/// Attention of `q` `[batch, queries, heads, head_dim]` over `k` and `v` `[batch, keys, kv_heads,
/// head_dim]`; the result has `q`'s shape. `kv_heads` divides `heads`: head `h` reads key/value head
/// `h / (heads / kv_heads)`. A query that sees no key gives zeros.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Tensor> {
    let (batch, queries, heads, dim) = q.dims4()?;
    let (_, keys, kv_heads, _) = k.dims4()?;
    if k.dims() != [batch, keys, kv_heads, dim] || v.dims() != k.dims() {
        bail!("attention: q {:?}, k {:?}, v {:?} don't fit", q.dims(), k.dims(), v.dims());
    }
    let sizes = sizes([batch, queries, keys, heads, kv_heads, dim], false, options)?;
    if !fusable(&[q, k, v]) {
        return attention_compose(q, k, v, options);
    }
    let (forward, backward) = kernels(sizes, options)?;
    fused("attention", [q, k, v], q.shape(), forward, move |inputs, _, g, _| {
        let mut parts = [0, 1, 2].map(|which| vec![0f32; sizes.batch * sizes.sequence(which)]);
        let [dq, dk, dv] = &mut parts;
        let sequences = dq
            .par_chunks_mut(sizes.sequence(0).max(1))
            .zip(dk.par_chunks_mut(sizes.sequence(1).max(1)))
            .zip(dv.par_chunks_mut(sizes.sequence(2).max(1)));
        sequences.enumerate().for_each(|(sequence, ((dq, dk), dv))| {
            backward(sequence, inputs, g, Sink::Split([dq, dk, dv]));
        });
        parts.map(Some)
    })
}

/// [`attention`] of one tensor `[batch, positions, (heads + 2 · kv_heads) · head_dim]` that holds
/// queries, keys and values side by side, as a fused projection leaves them; the result is
/// `[batch, positions, heads · head_dim]`.
pub fn attention_packed(
    qkv: &Tensor,
    heads: usize,
    kv_heads: usize,
    options: &AttentionOptions,
) -> Result<Tensor> {
    let (batch, positions, width) = qkv.dims3()?;
    let parts = heads + 2 * kv_heads;
    if parts == 0 || width % parts != 0 {
        bail!("attention: {width} values a position for {heads} + 2 × {kv_heads} heads");
    }
    let dim = width / parts;
    let sizes = sizes([batch, positions, positions, heads, kv_heads, dim], true, options)?;
    if !fusable(&[qkv]) {
        let part = |first: usize, count: usize| {
            qkv.narrow(2, first * dim, count * dim)?.reshape((batch, positions, count, dim))
        };
        let (q, k) = (part(0, heads)?, part(heads, kv_heads)?);
        let out = attention_compose(&q, &k, &part(heads + kv_heads, kv_heads)?, options)?;
        return out.reshape((batch, positions, heads * dim));
    }
    let (forward, backward) = kernels(sizes, options)?;
    fused(
        "attention",
        [qkv],
        (batch, positions, heads * dim),
        move |[qkv]| forward([qkv; 3]),
        move |[qkv], _, g, _| {
            let mut out = vec![0f32; qkv.len()];
            out.par_chunks_mut(sizes.sequence(0).max(1)).enumerate().for_each(|(sequence, out)| {
                backward(sequence, [qkv; 3], g, Sink::Packed(out));
            });
            [Some(out)]
        },
    )
}

fn sizes(
    [batch, queries, keys, heads, kv_heads, dim]: [usize; 6],
    packed: bool,
    options: &AttentionOptions,
) -> Result<Sizes> {
    if kv_heads == 0 || heads % kv_heads != 0 {
        bail!("attention: {heads} heads over {kv_heads} key/value heads; they must divide");
    }
    if let Some(mask) = &options.key_mask
        && mask.dims() != [batch, keys]
    {
        bail!("attention: key mask {:?}, expected [{batch}, {keys}]", mask.dims());
    }
    let scale = options.scale.unwrap_or(1.0 / (dim as f64).sqrt()) as f32;
    Ok(Sizes { batch, queries, keys, heads, kv_heads, dim, packed, causal: options.causal, scale })
}

/// Where the gradients of one sequence go.
enum Sink<'a> {
    Split([&'a mut [f32]; 3]),
    Packed(&'a mut [f32]),
}

impl Sink<'_> {
    fn part(&mut self, which: usize) -> &mut [f32] {
        match self {
            Self::Split(parts) => parts[which],
            Self::Packed(all) => all,
        }
    }
}

/// The forward function and the backward function of one sequence; they share the probabilities.
#[allow(clippy::type_complexity)]
fn kernels(
    s: Sizes,
    options: &AttentionOptions,
) -> Result<(
    impl Fn([&[f32]; 3]) -> Vec<f32> + Send + Sync + 'static,
    impl Fn(usize, [&[f32]; 3], &[f32], Sink<'_>) + Send + Sync + 'static,
)> {
    let mask: Option<Arc<[u8]>> = options.key_mask.as_ref().map(mask_bytes).transpose()?;
    let group = s.heads / s.kv_heads;
    let (scores, out_size) = (s.queries * s.keys, s.queries * s.heads * s.dim);
    // softmax of the scores, [batch, heads, queries, keys]
    let kept: Arc<OnceLock<Vec<f32>>> = Arc::default();
    let keep = kept.clone();
    let forward = move |inputs: [&[f32]; 3]| {
        let mut out = Vec::new();
        let probabilities = filled(s.batch * s.heads * scores, |probabilities| {
            out = filled(s.batch * out_size, |out| {
                let work = |sequence: usize, probabilities: &mut [f32], out: &mut [f32]| {
                    let inputs = sequence_of(&s, inputs, sequence);
                    let mask = mask.as_ref().map(|mask| &mask[sequence * s.keys..][..s.keys]);
                    for head in 0..s.heads {
                        let p = &mut probabilities[head * scores..][..scores];
                        head_forward(&s, inputs, head, head / group, mask, p, out);
                    }
                };
                probabilities
                    .par_chunks_mut((s.heads * scores).max(1))
                    .zip(out.par_chunks_mut(out_size.max(1)))
                    .enumerate()
                    .for_each(|(sequence, (p, out))| work(sequence, p, out));
                if s.keys == 0 {
                    out.fill(0.0);
                }
            });
        });
        let _ = keep.set(probabilities);
        out
    };
    let backward = move |sequence: usize, inputs: [&[f32]; 3], g: &[f32], mut sink: Sink<'_>| {
        let inputs = sequence_of(&s, inputs, sequence);
        let g = &g[sequence * out_size..][..out_size];
        let Some(kept) = kept.get() else { return };
        let mut buffer = vec![0f32; TILE.min(s.queries) * s.keys];
        for head in 0..s.heads {
            let p = &kept[(sequence * s.heads + head) * scores..][..scores];
            head_backward(&s, inputs, head, head / group, p, g, &mut buffer, &mut sink);
        }
    };
    Ok((forward, backward))
}

/// The parts of the inputs that belong to one sequence.
fn sequence_of<'a>(s: &Sizes, inputs: [&'a [f32]; 3], sequence: usize) -> [&'a [f32]; 3] {
    [0, 1, 2].map(|which| &inputs[which][sequence * s.sequence(which)..][..s.sequence(which)])
}

fn head_forward(
    s: &Sizes,
    inputs: [&[f32]; 3],
    head: usize,
    kv_head: usize,
    mask: Option<&[u8]>,
    p: &mut [f32],
    out: &mut [f32],
) {
    let out_stride = s.heads * s.dim;
    for tile in s.tiles() {
        let seen = s.seen(tile.end - 1);
        let rows = &mut p[tile.start * s.keys..tile.end * s.keys];
        let q = s.matrix(inputs, 0, head, tile.clone());
        let (k, v) = (s.matrix(inputs, 1, kv_head, 0..seen), s.matrix(inputs, 2, kv_head, 0..seen));
        gemm(rows, s.keys, q, k.t(), s.scale, Start::Zero, Threads::One);
        for (row, query) in rows.chunks_exact_mut(s.keys.max(1)).zip(tile.clone()) {
            let (open, closed) = row.split_at_mut(s.seen(query));
            closed.fill(0.0);
            if let Some(mask) = mask {
                for (score, &m) in open.iter_mut().zip(mask) {
                    *score = if m == 0 { f32::NEG_INFINITY } else { *score };
                }
                if mask[..open.len()].iter().all(|&m| m == 0) {
                    open.fill(0.0);
                    continue;
                }
            }
            softmax_in_place(open, 1.0);
        }
        let p = Matrix::strided(rows, tile.len(), seen, s.keys);
        let out = &mut out[tile.start * out_stride + head * s.dim..];
        gemm(out, out_stride, p, v, 1.0, Start::Zero, Threads::One);
    }
}

#[allow(clippy::too_many_arguments)]
fn head_backward(
    s: &Sizes,
    inputs: [&[f32]; 3],
    head: usize,
    kv_head: usize,
    p: &[f32],
    g: &[f32],
    buffer: &mut [f32],
    sink: &mut Sink<'_>,
) {
    let g_stride = s.heads * s.dim;
    for tile in s.tiles() {
        let (count, seen) = (tile.len(), s.seen(tile.end - 1));
        let g = &g[tile.start * g_stride + head * s.dim..];
        let g = Matrix::strided(g, count, s.dim, g_stride);
        let rows = &p[tile.start * s.keys..tile.end * s.keys];
        let mut add_to = |which: usize, head: usize, first: usize, left, right, fresh: bool| {
            let stride = s.stride(which);
            let out = &mut sink.part(which)[first * stride + s.offset(which, head)..];
            let start = if fresh { Start::Zero } else { Start::Output };
            gemm(out, stride, left, right, 1.0, start, Threads::One);
        };
        add_to(2, kv_head, 0, Matrix::strided(rows, count, seen, s.keys).t(), g, false);
        let scores = &mut buffer[..count * seen];
        let v = s.matrix(inputs, 2, kv_head, 0..seen);
        gemm(scores, seen, g, v.t(), 1.0, Start::Zero, Threads::One);
        for (scores, p) in
            scores.chunks_exact_mut(seen.max(1)).zip(rows.chunks_exact(s.keys.max(1)))
        {
            scores_gradient(&p[..seen], s.scale, scores);
        }
        let scores = Matrix::new(scores, count, seen);
        let q = s.matrix(inputs, 0, head, tile.clone());
        add_to(0, head, tile.start, scores, s.matrix(inputs, 1, kv_head, 0..seen), true);
        add_to(1, kv_head, 0, scores.t(), q, false);
    }
}

simd! {
    /// In place: gradient of the probabilities → gradient of the unscaled scores.
    fn scores_gradient(p: &[f32], scale: f32, g: &mut [f32]) {
        let dot = sum_of([p, &*g], |[p, g]| p * g);
        for (g, &p) in g.iter_mut().zip(p) {
            *g = scale * p * (*g - dot);
        }
    }
}

/// [`attention`] from candle's operators.
pub fn attention_compose(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    options: &AttentionOptions,
) -> Result<Tensor> {
    let (batch, queries, heads, dim) = q.dims4()?;
    let (_, keys, kv_heads, _) = k.dims4()?;
    // (batch, heads, positions, head_dim), key/value heads repeated
    let spread = |x: &Tensor| -> Result<Tensor> {
        x.transpose(1, 2)?
            .unsqueeze(2)?
            .broadcast_as((batch, kv_heads, heads / kv_heads, keys, dim))?
            .reshape((batch, heads, keys, dim))?
            .contiguous()
    };
    let q = q.transpose(1, 2)?.contiguous()?;
    let scores = q.matmul(&spread(k)?.t()?)?.reshape((batch, heads, queries, keys))?;
    let p = softmax_compose(
        &scores,
        &SoftmaxOptions {
            scale: options.scale.unwrap_or(1.0 / (dim as f64).sqrt()),
            causal: options.causal,
            key_mask: options.key_mask.clone(),
        },
    )?;
    p.contiguous()?.matmul(&spread(v)?)?.transpose(1, 2)?.contiguous()
}
