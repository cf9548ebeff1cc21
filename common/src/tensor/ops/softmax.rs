//! Softmax over the last axis with scale, causal mask and key mask.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, DType, Result, Tensor, bail};

use super::fused::{fusable, fused};
use super::kernel::{map_rows, simd};
use super::math::{exp, max, sum, sum_of};

/// What is done to the scores before the exponential.
#[derive(Debug, Clone)]
pub struct SoftmaxOptions {
    /// Factor of the scores (default 1).
    pub scale: f64,
    /// Query `i` sees the keys up to `i + keys - queries`; the tensor is […, queries, keys].
    pub causal: bool,
    /// `[batch, keys]`, non-zero = the key is seen; the tensor is `[batch, …, queries, keys]`.
    pub key_mask: Option<Tensor>,
}

impl Default for SoftmaxOptions {
    fn default() -> Self {
        Self { scale: 1.0, causal: false, key_mask: None }
    }
}

/// `softmax(scale · x)` over the last axis. A row that sees no key is all zero and has zero
/// gradient (torch gives NaN, transformers a uniform row).
pub fn softmax(x: &Tensor, options: &SoftmaxOptions) -> Result<Tensor> {
    check(x, options)?;
    if !fusable(&[x]) {
        return softmax_compose(x, options);
    }
    let keys = x.dim(D::Minus1)?;
    let rows = x.elem_count() / keys.max(1);
    let (scale, causal) = (options.scale as f32, options.causal);
    let queries = if causal { x.dim(D::Minus2)? } else { 1 };
    let mask: Option<Arc<[u8]>> = options.key_mask.as_ref().map(mask_bytes).transpose()?;
    let rows_per_mask = match &mask {
        Some(_) => rows / x.dim(0)?.max(1),
        None => 1,
    };
    let forward = move |x: &[f32]| {
        map_rows(rows, keys * 4, keys, |range: Range<usize>, out| {
            if !causal && mask.is_none() {
                return softmax_rows(&x[range.start * keys..range.end * keys], scale, keys, out);
            }
            for (row, out) in range.zip(out.chunks_exact_mut(keys)) {
                let x = &x[row * keys..][..keys];
                let seen = if causal {
                    (row % queries + 1 + keys).saturating_sub(queries).min(keys)
                } else {
                    keys
                };
                let mask = mask.as_ref().map(|mask| &mask[row / rows_per_mask * keys..][..keys]);
                softmax_row(x, scale, seen, mask, out);
            }
        })
    };
    fused(
        "softmax",
        [x],
        x.shape(),
        move |[x]| forward(x),
        move |_, y, g, _| {
            [Some(map_rows(rows, keys * 2, keys, |range: Range<usize>, out| {
                let at = range.start * keys..range.end * keys;
                softmax_gradient(&y[at.clone()], &g[at], scale, keys, out);
            }))]
        },
    )
}

fn check(x: &Tensor, options: &SoftmaxOptions) -> Result<()> {
    let dims = x.dims();
    if options.causal && dims.len() < 2 {
        bail!("causal softmax takes [.., queries, keys], found {dims:?}");
    }
    if let Some(mask) = &options.key_mask
        && (dims.len() < 2 || mask.dims() != [dims[0], dims[dims.len() - 1]])
    {
        bail!("softmax: key mask {:?} for scores {dims:?}; it must be [batch, keys]", mask.dims());
    }
    Ok(())
}

/// A mask tensor as bytes, 1 = seen.
pub(super) fn mask_bytes(mask: &Tensor) -> Result<Arc<[u8]>> {
    let values = mask.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(|v| u8::from(v != 0.0)).collect())
}

/// One row: the first `seen` keys, those whose mask byte is 0 left out.
#[inline]
pub(super) fn softmax_row(
    x: &[f32],
    scale: f32,
    seen: usize,
    mask: Option<&[u8]>,
    out: &mut [f32],
) {
    let (open, closed) = out.split_at_mut(seen);
    closed.fill(0.0);
    match mask {
        None => softmax_open(&x[..seen], scale, open),
        Some(mask) => {
            if mask[..seen].iter().all(|&m| m == 0) {
                return open.fill(0.0);
            }
            for ((out, &x), &m) in open.iter_mut().zip(x).zip(mask) {
                *out = if m == 0 { f32::NEG_INFINITY } else { x };
            }
            softmax_in_place(open, scale);
        }
    }
}

simd! {
    /// Whole rows of `keys` values.
    fn softmax_rows(x: &[f32], scale: f32, keys: usize, out: &mut [f32]) {
        for (x, out) in x.chunks_exact(keys).zip(out.chunks_exact_mut(keys)) {
            out.copy_from_slice(x);
            in_place(out, scale);
        }
    }
}

simd! {
    fn softmax_open(x: &[f32], scale: f32, out: &mut [f32]) {
        out.copy_from_slice(x);
        in_place(out, scale);
    }
}

simd! {
    /// `softmax(scale · row)` over the whole row.
    pub(super) fn softmax_in_place(row: &mut [f32], scale: f32) {
        in_place(row, scale);
    }
}

#[inline(always)]
fn in_place(row: &mut [f32], scale: f32) {
    // With a negative scale the largest product belongs to the smallest value.
    if scale < 0.0 {
        for value in row.iter_mut() {
            *value = -*value;
        }
    }
    let scale = scale.abs();
    let top = max(row);
    for value in row.iter_mut() {
        *value = exp((*value - top) * scale);
    }
    let total = sum(row);
    let inverse = 1.0 / total;
    for value in row.iter_mut() {
        *value *= inverse;
    }
}

simd! {
    /// `scale · y (g - Σ g y)` for rows of `keys` values.
    pub(super) fn softmax_gradient(y: &[f32], g: &[f32], scale: f32, keys: usize, out: &mut [f32]) {
        let rows = y.chunks_exact(keys).zip(g.chunks_exact(keys)).zip(out.chunks_exact_mut(keys));
        for ((y, g), out) in rows {
            let dot = sum_of([y, g], |[y, g]| y * g);
            for ((out, &y), &g) in out.iter_mut().zip(y).zip(g) {
                *out = scale * y * (g - dot);
            }
        }
    }
}

/// [`softmax`] from candle's operators.
pub fn softmax_compose(x: &Tensor, options: &SoftmaxOptions) -> Result<Tensor> {
    check(x, options)?;
    let scaled = (x * options.scale)?;
    let dims = x.dims();
    let keys = x.dim(D::Minus1)?;
    let mut seen: Option<Tensor> = None;
    if options.causal {
        let queries = x.dim(D::Minus2)?;
        let causal: Vec<u8> = (0..queries)
            .flat_map(|q| (0..keys).map(move |k| u8::from(k + queries <= q + keys)))
            .collect();
        let causal = Tensor::from_vec(causal, (queries, keys), x.device())?;
        seen = Some(causal.broadcast_as(dims)?);
    }
    if let Some(mask) = &options.key_mask {
        let mut shape = vec![1; dims.len()];
        shape[0] = dims[0];
        shape[dims.len() - 1] = keys;
        let mask = mask.detach().ne(0.0)?.reshape(shape)?.broadcast_as(dims)?;
        seen = Some(match seen {
            Some(seen) => (seen * mask)?,
            None => mask,
        });
    }
    let Some(seen) = seen else {
        let shifted = scaled.broadcast_sub(&scaled.detach().max_keepdim(D::Minus1)?)?;
        let e = shifted.exp()?;
        return e.broadcast_div(&e.sum_keepdim(D::Minus1)?);
    };
    let lowest = Tensor::new(f32::MIN, x.device())?.to_dtype(x.dtype())?.broadcast_as(dims)?;
    let open = seen.where_cond(&scaled, &lowest)?;
    let shifted = open.broadcast_sub(&open.detach().max_keepdim(D::Minus1)?)?;
    let e = (shifted.exp()? * seen.to_dtype(x.dtype())?)?;
    // a row without keys divides 0 by 1
    let total = e.sum_keepdim(D::Minus1)?;
    let empty = total.detach().eq(0.0)?.to_dtype(x.dtype())?;
    e.broadcast_div(&(total + empty)?)
}
