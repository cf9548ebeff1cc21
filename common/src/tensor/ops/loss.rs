//! Losses on logits: cross-entropy (also fused with the output layer), binary cross-entropy, KL.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{D, DType, Result, Shape, Tensor, bail};

use super::fused::{fusable, fused};
use super::kernel::{add, filled, for_rows, map_rows, map_rows_sum, map_rows_with, simd};
use super::linear::linear_compose;
use super::math::{exp, max, sigmoid, sum, sum_exp, sum_of};
use super::product::{Matrix, Start, Threads, gemm};

/// How the losses of the rows (or elements) become the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reduction {
    /// Their mean; cross-entropy divides by the number of rows that are not ignored. NaN for none.
    #[default]
    Mean,
    /// Their sum.
    Sum,
    /// Each on its own; ignored rows are 0.
    None,
}

/// Label of a row that takes no part in the loss, as in torch and transformers.
pub const IGNORE_INDEX: i64 = -100;

/// Options of [`cross_entropy`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CrossEntropyOptions {
    /// Share of the target that is spread evenly over all classes, in `[0, 1)`.
    pub label_smoothing: f64,
    /// Mean, sum or none.
    pub reduction: Reduction,
}

/// Marks an ignored row among the targets.
const IGNORED: u32 = u32::MAX;

/// Powers and sums of a forward pass until its backward pass.
type Kept = Arc<Mutex<Option<(Vec<f32>, Vec<f32>)>>>;

/// `-log softmax(x)[target]` per row of `x` `[rows, classes]`; `targets` `[rows]` of integers, rows
/// with [`IGNORE_INDEX`] are left out. Smoothing mixes the target with `1 / classes`.
pub fn cross_entropy(
    x: &Tensor,
    targets: &Tensor,
    options: &CrossEntropyOptions,
) -> Result<Tensor> {
    let (rows, classes) = x.dims2()?;
    let targets = read_targets(targets, rows, classes)?;
    if !fusable(&[x]) {
        return cross_entropy_on(x, &targets, options);
    }
    let smoothing = options.label_smoothing as f32;
    let reduction = options.reduction;
    // e^(x - max) of every element, and its sum, kept where a gradient is wanted: the backward pass
    // only scales it, in place
    let kept: Kept = Arc::default();
    let keep = kept.clone();
    let tracked = x.track_op();
    let for_backward = targets.clone();
    let rows_of = move |x: &[f32], targets: &[u32], stored: bool| {
        let stored = if stored { classes } else { 0 };
        map_rows_with(rows, classes * 3, stored, 2, |range: Range<usize>, out, pairs| {
            cross_entropy_rows(x, targets, smoothing, range, classes, out, pairs);
        })
    };
    fused(
        "cross_entropy",
        [x],
        reduced_shape(reduction, rows),
        move |[x]| {
            let (powers, pairs) = rows_of(x, &targets, tracked);
            let losses = pairs.iter().skip(1).step_by(2).copied();
            let result = reduce(losses, reduction, &targets);
            if tracked {
                *keep.lock().unwrap_or_else(PoisonError::into_inner) = Some((powers, pairs));
            }
            result
        },
        move |[x], _, g, _| {
            let kept = kept.lock().unwrap_or_else(PoisonError::into_inner).take();
            // a second backward pass through the same node finds nothing kept
            let (mut powers, pairs) = kept.unwrap_or_else(|| rows_of(x, &for_backward, true));
            let scales = row_scales(g, reduction, &for_backward);
            for_rows(rows, classes * 2, &mut powers, classes, |range: Range<usize>, out| {
                for (row, out) in range.zip(out.chunks_exact_mut(classes)) {
                    powers_to_gradient(
                        out,
                        pairs[2 * row],
                        for_backward[row],
                        smoothing,
                        scales[row],
                    );
                }
            });
            [Some(powers)]
        },
    )
}

fn reduced_shape(reduction: Reduction, rows: usize) -> Shape {
    match reduction {
        Reduction::None => Shape::from(rows),
        _ => Shape::from(()),
    }
}

fn read_targets(targets: &Tensor, rows: usize, classes: usize) -> Result<Arc<[u32]>> {
    if targets.elem_count() != rows || !targets.dtype().is_int() {
        bail!(
            "cross_entropy: targets {:?} of {:?} for {rows} rows; expected one integer a row",
            targets.dims(),
            targets.dtype()
        );
    }
    targets
        .flatten_all()?
        .to_dtype(DType::I64)?
        .to_vec1::<i64>()?
        .into_iter()
        .map(|target| match u32::try_from(target) {
            Ok(class) if (class as usize) < classes => Ok(class),
            _ if target == IGNORE_INDEX => Ok(IGNORED),
            _ => bail!(
                "cross_entropy: target {target} is neither in 0..{classes} nor {IGNORE_INDEX}"
            ),
        })
        .collect()
}

fn kept_rows(targets: &[u32]) -> f64 {
    targets.iter().filter(|&&target| target != IGNORED).count() as f64
}

fn reduce(losses: impl Iterator<Item = f32>, reduction: Reduction, targets: &[u32]) -> Vec<f32> {
    match reduction {
        Reduction::None => losses.collect(),
        Reduction::Sum => vec![losses.map(f64::from).sum::<f64>() as f32],
        Reduction::Mean => {
            vec![(losses.map(f64::from).sum::<f64>() / kept_rows(targets)) as f32]
        }
    }
}

/// Upstream gradient of each row's loss; 0 for ignored rows.
fn row_scales(g: &[f32], reduction: Reduction, targets: &[u32]) -> Vec<f32> {
    let share = match reduction {
        Reduction::Mean => (1.0 / kept_rows(targets)) as f32,
        _ => 1.0,
    };
    let of_row = |row: usize| if reduction == Reduction::None { g[row] } else { g[0] * share };
    (0..targets.len()).map(|row| if targets[row] == IGNORED { 0.0 } else { of_row(row) }).collect()
}

simd! {
    /// `Σ e^(x - max)` and the loss of each row of `range`, in pairs; the powers go to `out` unless
    /// that is empty.
    fn cross_entropy_rows(
        x: &[f32],
        targets: &[u32],
        smoothing: f32,
        range: Range<usize>,
        classes: usize,
        out: &mut [f32],
        pairs: &mut [f32],
    ) {
        let first = range.start;
        for (row, pair) in range.zip(pairs.chunks_exact_mut(2)) {
            let x = &x[row * classes..][..classes];
            let top = max(x);
            let total = if out.is_empty() {
                sum_exp(x, top)
            } else {
                let out = &mut out[(row - first) * classes..][..classes];
                for (power, &x) in out.iter_mut().zip(x) {
                    *power = exp(x - top);
                }
                sum(out)
            };
            pair[0] = total;
            if targets[row] == IGNORED {
                continue;
            }
            pair[1] = top + total.ln() - (1.0 - smoothing) * x[targets[row] as usize];
            if smoothing > 0.0 {
                pair[1] -= smoothing * (sum(x) / classes as f32);
            }
        }
    }
}

simd! {
    /// Turns `e^(x - max)`, whose sum is `total`, into the gradient of a row.
    fn powers_to_gradient(row: &mut [f32], total: f32, target: u32, smoothing: f32, scale: f32) {
        if target == IGNORED {
            return row.fill(0.0);
        }
        let (factor, even) = (scale / total, scale * smoothing / row.len() as f32);
        for value in row.iter_mut() {
            *value = *value * factor - even;
        }
        row[target as usize] -= (1.0 - smoothing) * scale;
    }
}

/// [`cross_entropy`] from candle's operators.
pub fn cross_entropy_compose(
    x: &Tensor,
    targets: &Tensor,
    options: &CrossEntropyOptions,
) -> Result<Tensor> {
    let (rows, classes) = x.dims2()?;
    cross_entropy_on(x, &read_targets(targets, rows, classes)?, options)
}

fn cross_entropy_on(x: &Tensor, targets: &[u32], options: &CrossEntropyOptions) -> Result<Tensor> {
    let smoothing = options.label_smoothing;
    let log_p = log_softmax_compose(x)?;
    let index: Vec<u32> = targets.iter().map(|&t| if t == IGNORED { 0 } else { t }).collect();
    let index = Tensor::from_vec(index, (targets.len(), 1), x.device())?;
    let weight: Vec<f32> = targets.iter().map(|&t| f32::from(u8::from(t != IGNORED))).collect();
    let weight = Tensor::from_vec(weight, targets.len(), x.device())?.to_dtype(x.dtype())?;
    let picked = (log_p.gather(&index, 1)?.squeeze(1)? * (smoothing - 1.0))?;
    let spread = (log_p.sum(D::Minus1)? * (-smoothing / x.dim(1)? as f64))?;
    let losses = ((picked + spread)? * weight)?;
    match options.reduction {
        Reduction::None => Ok(losses),
        Reduction::Sum => losses.sum_all(),
        Reduction::Mean => losses.sum_all()? * (1.0 / kept_rows(targets)),
    }
}

fn log_softmax_compose(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// Rows whose logits are held at a time: 256 × 2,000 classes are 2 MB.
const HEAD_ROWS: usize = 256;

/// Mean cross-entropy of `x · weightᵀ + bias` without ever holding all logits: block by block, loss
/// and gradients in one pass, as in [Liger Kernel](https://arxiv.org/abs/2410.10989).
/// `x` `[rows, width]`, `weight` `[classes, width]`, `bias` `[classes]`; targets and mean as in
/// [`cross_entropy`]. The gradients cost their time in the forward pass: where none is wanted, pass
/// detached tensors.
pub fn linear_cross_entropy(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    targets: &Tensor,
) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let (classes, weight_width) = weight.dims2()?;
    if weight_width != width || bias.is_some_and(|bias| bias.dims() != [classes]) {
        bail!("linear_cross_entropy: weight {:?} for rows of {width}", weight.dims());
    }
    let targets = read_targets(targets, rows, classes)?;
    if !fusable(&[x, weight]) || !bias.is_none_or(|bias| fusable(&[bias])) {
        let logits = linear_compose(x, weight, bias)?;
        return cross_entropy_on(&logits, &targets, &CrossEntropyOptions::default());
    }
    let tracked = [x.track_op(), weight.track_op(), bias.is_some_and(Tensor::track_op)];
    let kept: Arc<OnceLock<[Vec<f32>; 3]>> = Arc::default();
    let keep = kept.clone();
    let forward = move |x: &[f32], weight: &[f32], bias: &[f32]| {
        let (loss, gradients) = head(x, weight, bias, &targets, [rows, width, classes], tracked);
        let _ = keep.set(gradients);
        vec![loss]
    };
    let backward = move |g: f32, wanted: [bool; 3]| {
        let empty: [Vec<f32>; 3] = Default::default();
        let kept = kept.get().unwrap_or(&empty);
        let scaled = |which: usize| {
            let from = &kept[which];
            map_rows(from.len(), 1, 1, |at, out| scale(&from[at], g, out))
        };
        [0, 1, 2].map(|which| wanted[which].then(|| scaled(which)))
    };
    match bias {
        Some(bias) => fused(
            "linear_cross_entropy",
            [x, weight, bias],
            (),
            move |[x, weight, bias]| forward(x, weight, bias),
            move |_, _, g, wanted| backward(g[0], wanted),
        ),
        None => fused(
            "linear_cross_entropy",
            [x, weight],
            (),
            move |[x, weight]| forward(x, weight, &[]),
            move |_, _, g, [wants_x, wants_weight]| {
                let [dx, dw, _] = backward(g[0], [wants_x, wants_weight, false]);
                [dx, dw]
            },
        ),
    }
}

simd! {
    fn scale(from: &[f32], factor: f32, out: &mut [f32]) {
        for (out, &from) in out.iter_mut().zip(from) {
            *out = from * factor;
        }
    }
}

/// Mean loss, and the gradients of `x`, `weight`, `bias` that are wanted (empty otherwise).
fn head(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    targets: &[u32],
    [rows, width, classes]: [usize; 3],
    wanted: [bool; 3],
) -> (f32, [Vec<f32>; 3]) {
    let share = (1.0 / kept_rows(targets)) as f32;
    let any = wanted.contains(&true);
    let size = |wanted: bool, size: usize| if wanted { size } else { 0 };
    let mut dw = vec![0f32; size(wanted[1], classes * width)];
    let mut db = vec![0f32; size(wanted[2], classes)];
    let mut total = 0f64;
    let weights = Matrix::new(weight, classes, width);
    let dx = filled(size(wanted[0], rows * width), |dx| {
        let mut logits = vec![0f32; rows.min(HEAD_ROWS) * classes];
        for first in (0..rows).step_by(HEAD_ROWS) {
            let count = (rows - first).min(HEAD_ROWS);
            let x = Matrix::new(&x[first * width..][..count * width], count, width);
            let logits = &mut logits[..count * classes];
            let start = if bias.is_empty() { Start::Zero } else { Start::Row(bias) };
            gemm(logits, classes, x, weights.t(), 1.0, start, Threads::Pool);
            let targets = &targets[first..first + count];
            let mut losses = vec![0f32; count];
            let work = |row: usize, logits: &mut [f32], loss: &mut f32| {
                *loss = logits_to_gradient(logits, targets[row], share);
            };
            if rayon::current_num_threads() == 1 {
                for (row, (logits, loss)) in
                    logits.chunks_exact_mut(classes).zip(&mut losses).enumerate()
                {
                    work(row, logits, loss);
                }
            } else {
                use rayon::prelude::*;
                logits
                    .par_chunks_exact_mut(classes)
                    .zip(&mut losses)
                    .enumerate()
                    .with_min_len(8)
                    .for_each(|(row, (logits, loss))| work(row, logits, loss));
            }
            total += losses.iter().copied().map(f64::from).sum::<f64>();
            if !any {
                continue;
            }
            let gradient = Matrix::new(logits, count, classes);
            if wanted[0] {
                let dx = &mut dx[first * width..][..count * width];
                gemm(dx, width, gradient, weights, 1.0, Start::Zero, Threads::Pool);
            }
            if wanted[1] {
                gemm(&mut dw, width, gradient.t(), x, 1.0, Start::Output, Threads::Pool);
            }
            if wanted[2] {
                logits.chunks_exact(classes).for_each(|row| add(&mut db, row));
            }
        }
    });
    ((total / kept_rows(targets)) as f32, [dx, dw, db])
}

simd! {
    /// Turns a row of logits into the gradient of `share · loss`; returns the loss.
    fn logits_to_gradient(row: &mut [f32], target: u32, share: f32) -> f32 {
        if target == IGNORED {
            row.fill(0.0);
            return 0.0;
        }
        let top = max(row);
        let correct = row[target as usize];
        for value in row.iter_mut() {
            *value = exp(*value - top);
        }
        let total = sum(row);
        let factor = share / total;
        for value in row.iter_mut() {
            *value *= factor;
        }
        row[target as usize] -= share;
        top + total.ln() - correct
    }
}

/// Options of [`bce_with_logits`].
#[derive(Debug, Clone, Default)]
pub struct BceOptions {
    /// Factor of each element's loss; broadcasts to the logits' shape.
    pub weight: Option<Tensor>,
    /// Factor of the positive term, per class (last axis); broadcasts to the logits' shape.
    pub pos_weight: Option<Tensor>,
    /// Mean, sum or none.
    pub reduction: Reduction,
}

/// Binary cross-entropy of logits `x` with `targets` in `[0, 1]` of the same shape:
/// `-w (p t log σ(x) + (1 - t) log(1 - σ(x)))`, computed without overflow. Only `x` gets a
/// gradient.
pub fn bce_with_logits(x: &Tensor, targets: &Tensor, options: &BceOptions) -> Result<Tensor> {
    if x.shape() != targets.shape() {
        bail!("bce_with_logits: logits {:?}, targets {:?}", x.dims(), targets.dims());
    }
    if !fusable(&[x]) {
        return bce_compose(x, targets, options);
    }
    let flat = |t: &Tensor| -> Result<Vec<f32>> {
        let t = t.detach().to_dtype(DType::F32)?.broadcast_as(x.shape())?;
        t.contiguous()?.flatten_all()?.to_vec1()
    };
    let targets = flat(targets)?;
    let weight = options.weight.as_ref().map(flat).transpose()?;
    let positive = options.pos_weight.as_ref().map(flat).transpose()?;
    let reduction = options.reduction;
    let count = x.elem_count();
    // (target, positive weight, weight) of element i
    let terms = Arc::new(move |i: usize| {
        let at = |values: &Option<Vec<f32>>| values.as_ref().map_or(1.0, |values| values[i]);
        (targets[i], at(&positive), at(&weight))
    });
    let of = terms.clone();
    let shape = if reduction == Reduction::None { x.shape().clone() } else { Shape::from(()) };
    fused(
        "bce_with_logits",
        [x],
        shape,
        move |[x]| {
            let losses = map_rows(count, 4, 1, |range: Range<usize>, out| {
                for (i, out) in range.zip(out) {
                    let (target, positive, weight) = of(i);
                    // -log σ(x) = max(-x, 0) + log(1 + e^-|x|)
                    let softplus =
                        if x[i] > 0.0 { 0.0 } else { -x[i] } + (-x[i].abs()).exp().ln_1p();
                    let sharpness = 1.0 + (positive - 1.0) * target;
                    *out = weight * ((1.0 - target) * x[i] + sharpness * softplus);
                }
            });
            let total = || losses.iter().copied().map(f64::from).sum::<f64>();
            match reduction {
                Reduction::None => losses,
                Reduction::Sum => vec![total() as f32],
                Reduction::Mean => vec![(total() / count as f64) as f32],
            }
        },
        move |[x], _, g, _| {
            [Some(map_rows(count, 4, 1, |range: Range<usize>, out| {
                for (i, out) in range.zip(out) {
                    let (target, positive, weight) = terms(i);
                    let g = match reduction {
                        Reduction::None => g[i],
                        Reduction::Sum => g[0],
                        Reduction::Mean => g[0] / count as f32,
                    };
                    let sharpness = 1.0 + (positive - 1.0) * target;
                    let miss = sigmoid(-x[i]);
                    *out = g * weight * ((1.0 - target) - sharpness * miss);
                }
            }))]
        },
    )
}

/// [`bce_with_logits`] from candle's operators.
pub fn bce_compose(x: &Tensor, targets: &Tensor, options: &BceOptions) -> Result<Tensor> {
    let cast = |t: &Tensor| t.detach().to_dtype(x.dtype())?.broadcast_as(x.shape());
    let targets = cast(targets)?;
    let softplus = (x.neg()?.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    let sharpness = match &options.pos_weight {
        Some(positive) => ((cast(positive)? - 1.0)? * &targets)?.affine(1.0, 1.0)?,
        None => x.ones_like()?,
    };
    let mut losses = ((targets.affine(-1.0, 1.0)? * x)? + (sharpness * softplus)?)?;
    if let Some(weight) = &options.weight {
        losses = (losses * cast(weight)?)?;
    }
    match options.reduction {
        Reduction::None => Ok(losses),
        Reduction::Sum => losses.sum_all(),
        Reduction::Mean => losses.sum_all()? * (1.0 / x.elem_count() as f64),
    }
}

/// `KL(softmax p ‖ softmax q) = Σ p (log p - log q)` over the last axis of two logit tensors of one
/// shape; `Mean` divides by the number of rows (torch's `batchmean`). Both sides get gradients:
/// detach the one that is a fixed target.
pub fn kl_divergence(p: &Tensor, q: &Tensor, reduction: Reduction) -> Result<Tensor> {
    if p.shape() != q.shape() {
        bail!("kl_divergence: logits {:?} and {:?} differ in shape", p.dims(), q.dims());
    }
    if !fusable(&[p, q]) {
        return kl_compose(p, q, reduction);
    }
    let classes = p.dim(D::Minus1)?;
    let rows = p.elem_count() / classes.max(1);
    let mut rows_shape = p.dims().to_vec();
    rows_shape.pop();
    let shape =
        if reduction == Reduction::None { Shape::from(rows_shape) } else { Shape::from(()) };
    fused(
        "kl_divergence",
        [p, q],
        shape,
        move |[p, q]| {
            let losses = map_rows(rows, classes * 4, 1, |range: Range<usize>, out| {
                for (row, out) in range.zip(out) {
                    let at = row * classes..(row + 1) * classes;
                    *out = kl_row(&p[at.clone()], &q[at]).0;
                }
            });
            let total = || losses.iter().copied().map(f64::from).sum::<f64>();
            match reduction {
                Reduction::None => losses,
                Reduction::Sum => vec![total() as f32],
                Reduction::Mean => vec![(total() / rows as f64) as f32],
            }
        },
        move |[p, q], _, g, wanted| {
            let gradient = |side: bool| {
                map_rows(rows, classes * 6, classes, |range: Range<usize>, out| {
                    for (row, out) in range.zip(out.chunks_exact_mut(classes)) {
                        let g = match reduction {
                            Reduction::None => g[row],
                            Reduction::Sum => g[0],
                            Reduction::Mean => g[0] / rows as f32,
                        };
                        let at = row * classes..(row + 1) * classes;
                        kl_gradient(&p[at.clone()], &q[at], side, g, out);
                    }
                })
            };
            [wanted[0].then(|| gradient(true)), wanted[1].then(|| gradient(false))]
        },
    )
}

simd! {
    /// The divergence and the two log-sums.
    fn kl_row(p: &[f32], q: &[f32]) -> (f32, f32, f32) {
        let log_sum = |x: &[f32]| {
            let top = max(x);
            top + sum_exp(x, top).ln()
        };
        let (sum_p, sum_q) = (log_sum(p), log_sum(q));
        let kl = sum_of([p, q], |[p, q]| exp(p - sum_p) * ((p - sum_p) - (q - sum_q)));
        (kl, sum_p, sum_q)
    }
}

simd! {
    /// Gradient of `p`'s logits (`of_p`) or `q`'s.
    fn kl_gradient(p: &[f32], q: &[f32], of_p: bool, g: f32, out: &mut [f32]) {
        let (kl, sum_p, sum_q) = kl_row(p, q);
        for ((out, &p), &q) in out.iter_mut().zip(p).zip(q) {
            let (log_p, log_q) = (p - sum_p, q - sum_q);
            *out = if of_p { g * exp(log_p) * (log_p - log_q - kl) } else { g * (exp(log_q) - exp(log_p)) };
        }
    }
}

/// [`kl_divergence`] from candle's operators.
pub fn kl_compose(p: &Tensor, q: &Tensor, reduction: Reduction) -> Result<Tensor> {
    let (log_p, log_q) = (log_softmax_compose(p)?, log_softmax_compose(q)?);
    let losses = (log_p.exp()? * (log_p - log_q)?)?.sum(D::Minus1)?;
    match reduction {
        Reduction::None => Ok(losses),
        Reduction::Sum => losses.sum_all(),
        Reduction::Mean => losses.sum_all()? * (1.0 / losses.elem_count() as f64),
    }
}

/// Mean of `(x - target)²` over all elements of two tensors of one shape; both get gradients where
/// they want one.
pub fn mean_squared_error(x: &Tensor, target: &Tensor) -> Result<Tensor> {
    if x.shape() != target.shape() {
        bail!("mean_squared_error: {:?} and {:?} differ in shape", x.dims(), target.dims());
    }
    if !fusable(&[x, target]) {
        return (x - target)?.sqr()?.mean_all();
    }
    let count = x.elem_count();
    fused(
        "mean_squared_error",
        [x, target],
        (),
        move |[x, target]| {
            let (_, sums) = map_rows_sum(count, 1, 0, 1, |range: Range<usize>, _, sums| {
                sums[0] += squared_distance(&x[range.clone()], &target[range]);
            });
            vec![sums[0] / count as f32]
        },
        move |[x, target], _, g, wanted| {
            let slope = |factor: f32| {
                map_rows(count, 1, 1, |range: Range<usize>, out| {
                    scaled_difference(&x[range.clone()], &target[range], factor, out);
                })
            };
            let factor = 2.0 * g[0] / count as f32;
            [wanted[0].then(|| slope(factor)), wanted[1].then(|| slope(-factor))]
        },
    )
}

simd! {
    fn squared_distance(x: &[f32], target: &[f32]) -> f32 {
        sum_of([x, target], |[x, target]| (x - target) * (x - target))
    }
}

simd! {
    fn scaled_difference(x: &[f32], target: &[f32], factor: f32, out: &mut [f32]) {
        for ((out, &x), &target) in out.iter_mut().zip(x).zip(target) {
            *out = factor * (x - target);
        }
    }
}

/// `Σ x · weights` with constant `weights` of the same shape: a backward pass from it hands `weights`
/// to `x` as the upstream gradient, which candle has no other way to give.
pub fn weighted_sum(x: &Tensor, weights: &Tensor) -> Result<Tensor> {
    if x.shape() != weights.shape() {
        bail!("weighted_sum: {:?} and {:?} differ in shape", x.dims(), weights.dims());
    }
    let weights = weights.detach();
    if !fusable(&[x, &weights]) {
        return (x * weights)?.sum_all();
    }
    let count = x.elem_count();
    fused(
        "weighted_sum",
        [x, &weights],
        (),
        move |[x, weights]| {
            let (_, sums) = map_rows_sum(count, 1, 0, 1, |range: Range<usize>, _, sums| {
                sums[0] += product_sum(&x[range.clone()], &weights[range]);
            });
            sums
        },
        move |[_, weights], _, g, [wanted, _]| {
            [wanted.then(|| map_rows(count, 1, 1, |at, out| scale(&weights[at], g[0], out))), None]
        },
    )
}

simd! {
    fn product_sum(x: &[f32], y: &[f32]) -> f32 {
        sum_of([x, y], |[x, y]| x * y)
    }
}
