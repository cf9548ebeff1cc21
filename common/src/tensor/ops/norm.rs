//! LayerNorm, RmsNorm and GroupNorm.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{D, Result, Tensor, bail};

use super::activation::Activation;
use super::fused::{fusable, fused};
use super::kernel::{filled, map_rows, map_rows_sum, map_rows_with, simd};
use super::math::{sum, sum_of};

/// `(x - mean) / √(variance + eps) · weight + bias` over the last axis; `weight` and `bias` have
/// the size of that axis, the variance is the biased one.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let width = check("layer_norm", x, weight)?;
    if let Some(bias) = bias {
        check("layer_norm", x, bias)?;
    }
    if !fusable(&[x, weight]) || !bias.is_none_or(|bias| fusable(&[bias])) {
        return layer_norm_compose(x, weight, bias, eps);
    }
    let rows = x.elem_count() / width.max(1);
    let eps = eps as f32;
    // mean and 1/√(variance + eps) of each row, kept for the backward pass
    let kept: Arc<OnceLock<Vec<f32>>> = Arc::default();
    let keep = kept.clone();
    let forward = move |x: &[f32], weight: &[f32], bias: &[f32]| {
        let work = |range: Range<usize>, out: &mut [f32], moments: &mut [f32]| {
            let x = &x[range.start * width..range.end * width];
            normalise_rows(x, weight, bias, eps, out, moments);
        };
        let (out, moments) = map_rows_with(rows, width * 2, width, 2, work);
        // a second forward pass of the same node does not happen
        let _ = keep.set(moments);
        out
    };
    let backward = move |x: &[f32], weight: &[f32], g: &[f32]| {
        let moments = kept.get().map_or(&[] as &[f32], Vec::as_slice);
        map_rows_sum(rows, width * 2, width, 2 * width, |range: Range<usize>, out, sums| {
            let at = range.start * width..range.end * width;
            let moments = &moments[range.start * 2..range.end * 2];
            layer_norm_gradient(&x[at.clone()], &g[at], moments, weight, out, sums);
        })
    };
    match bias {
        Some(bias) => fused(
            "layer_norm",
            [x, weight, bias],
            x.shape(),
            move |[x, weight, bias]| forward(x, weight, bias),
            move |[x, weight, _], _, g, wanted| {
                let (dx, mut dw) = backward(x, weight, g);
                let db = dw.split_off(width);
                [wanted[0].then_some(dx), wanted[1].then_some(dw), wanted[2].then_some(db)]
            },
        ),
        None => fused(
            "layer_norm",
            [x, weight],
            x.shape(),
            move |[x, weight]| forward(x, weight, &[]),
            move |[x, weight], _, g, wanted| {
                let (dx, mut dw) = backward(x, weight, g);
                dw.truncate(width);
                [wanted[0].then_some(dx), wanted[1].then_some(dw)]
            },
        ),
    }
}

fn check(name: &str, x: &Tensor, weight: &Tensor) -> Result<usize> {
    let width = x.dim(D::Minus1)?;
    if weight.dims() != [width] {
        bail!("{name}: weight {:?} for rows of {width}; they must agree", weight.dims());
    }
    Ok(width)
}

simd! {
    /// Mean and inverse deviation of each row, in pairs.
    fn row_moments(x: &[f32], width: usize, eps: f32, out: &mut [f32]) {
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(2)) {
            (out[0], out[1]) = moments_of(x, eps);
        }
    }
}

/// Mean and inverse deviation.
#[inline(always)]
fn moments_of(x: &[f32], eps: f32) -> (f32, f32) {
    let scale = 1.0 / x.len() as f32;
    let mean = sum(x) * scale;
    let variance = sum_of([x], |[x]| (x - mean) * (x - mean)) * scale;
    (mean, 1.0 / (variance + eps).sqrt())
}

simd! {
    /// Normalised rows, and mean and inverse deviation of each.
    fn normalise_rows(
        x: &[f32],
        weight: &[f32],
        bias: &[f32],
        eps: f32,
        out: &mut [f32],
        moments: &mut [f32],
    ) {
        let width = weight.len();
        let rows = x.chunks_exact(width).zip(out.chunks_exact_mut(width));
        for ((x, out), moments) in rows.zip(moments.chunks_exact_mut(2)) {
            let (mean, inverse) = moments_of(x, eps);
            (moments[0], moments[1]) = (mean, inverse);
            if bias.is_empty() {
                for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
                    *out = (x - mean) * inverse * weight;
                }
            } else {
                for (((out, &x), &weight), &bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                    *out = (x - mean) * inverse * weight + bias;
                }
            }
        }
    }
}

simd! {
    /// `sums` = gradient of the weight, then of the bias.
    fn layer_norm_gradient(
        x: &[f32],
        g: &[f32],
        moments: &[f32],
        weight: &[f32],
        out: &mut [f32],
        sums: &mut [f32],
    ) {
        let width = weight.len();
        let (dw, db) = sums.split_at_mut(width);
        let scale = 1.0 / width as f32;
        let rows = x.chunks_exact(width).zip(g.chunks_exact(width)).zip(out.chunks_exact_mut(width));
        for (((x, g), out), moments) in rows.zip(moments.chunks_exact(2)) {
            let (mean, inverse) = (moments[0], moments[1]);
            let mean_g = sum_of([g, weight], |[g, w]| g * w) * scale;
            let mean_gx = sum_of([g, weight, x], |[g, w, x]| g * w * (x - mean)) * inverse * scale;
            let (dw, db) = (&mut dw[..width], &mut db[..width]);
            for i in 0..width {
                let normal = (x[i] - mean) * inverse;
                out[i] = inverse * (g[i] * weight[i] - mean_g - normal * mean_gx);
                dw[i] += g[i] * normal;
                db[i] += g[i];
            }
        }
    }
}

/// [`layer_norm`] from candle's operators.
pub fn layer_norm_compose(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let width = x.dim(D::Minus1)? as f64;
    let centred = x.broadcast_sub(&(x.sum_keepdim(D::Minus1)? / width)?)?;
    let variance = (centred.sqr()?.sum_keepdim(D::Minus1)? / width)?;
    let normal = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    let scaled = normal.broadcast_mul(weight)?;
    match bias {
        Some(bias) => scaled.broadcast_add(bias),
        None => Ok(scaled),
    }
}

/// `x / √(mean(x²) + eps) · weight` over the last axis.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let width = check("rms_norm", x, weight)?;
    if !fusable(&[x, weight]) {
        return rms_norm_compose(x, weight, eps);
    }
    let rows = x.elem_count() / width.max(1);
    let eps = eps as f32;
    fused(
        "rms_norm",
        [x, weight],
        x.shape(),
        move |[x, weight]| {
            map_rows(rows, width, width, |range: Range<usize>, out| {
                rms_rows(&x[range.start * width..range.end * width], weight, eps, out);
            })
        },
        move |[x, weight], _, g, wanted| {
            let (dx, dw) =
                map_rows_sum(rows, width * 2, width, width, |range: Range<usize>, out, sums| {
                    let at = range.start * width..range.end * width;
                    rms_gradient(&x[at.clone()], &g[at], weight, eps, out, sums);
                });
            [wanted[0].then_some(dx), wanted[1].then_some(dw)]
        },
    )
}

simd! {
    fn rms_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let width = weight.len();
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let inverse = 1.0 / (sum_of([x], |[x]| x * x) / width as f32 + eps).sqrt();
            for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
                *out = x * inverse * weight;
            }
        }
    }
}

simd! {
    fn rms_gradient(
        x: &[f32],
        g: &[f32],
        weight: &[f32],
        eps: f32,
        out: &mut [f32],
        dw: &mut [f32],
    ) {
        let width = weight.len();
        let scale = 1.0 / width as f32;
        let rows = x.chunks_exact(width).zip(g.chunks_exact(width)).zip(out.chunks_exact_mut(width));
        for ((x, g), out) in rows {
            let inverse = 1.0 / (sum_of([x], |[x]| x * x) * scale + eps).sqrt();
            let mean_gx = sum_of([g, weight, x], |[g, w, x]| g * w * x) * inverse * scale;
            for i in 0..width {
                let normal = x[i] * inverse;
                out[i] = inverse * (g[i] * weight[i] - normal * mean_gx);
                dw[i] += g[i] * normal;
            }
        }
    }
}

/// [`rms_norm`] from candle's operators.
pub fn rms_norm_compose(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let mean = (x.sqr()?.sum_keepdim(D::Minus1)? / x.dim(D::Minus1)? as f64)?;
    x.broadcast_div(&(mean + eps)?.sqrt()?)?.broadcast_mul(weight)
}

/// Normalises each group of channels of `x` `[batch, channels, …]` over the group and all
/// positions, then scales and shifts per channel and applies `activation`.
/// `groups` must divide the channels.
pub fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    activation: Option<Activation>,
) -> Result<Tensor> {
    let dims = x.dims();
    if dims.len() < 2 || groups == 0 || !dims[1].is_multiple_of(groups) {
        bail!("group_norm: {groups} groups for {dims:?}; they must divide the channels (axis 1)");
    }
    let channels = dims[1];
    if weight.dims() != [channels] || bias.dims() != [channels] {
        bail!(
            "group_norm: weight {:?} and bias {:?} for {channels} channels",
            weight.dims(),
            bias.dims()
        );
    }
    if !fusable(&[x, weight, bias]) {
        return group_norm_compose(x, weight, bias, groups, eps, activation);
    }
    let batch = dims[0];
    let positions = dims[2..].iter().product::<usize>();
    let (per_group, eps) = (channels / groups, eps as f32);
    let width = per_group * positions;
    let rows = if width == 0 { 0 } else { batch * groups };
    let kept: Arc<OnceLock<Vec<f32>>> = Arc::default();
    let keep = kept.clone();
    fused(
        "group_norm",
        [x, weight, bias],
        x.shape(),
        move |[x, weight, bias]| {
            let moments = map_rows(rows, width * 2, 2, |range: Range<usize>, out| {
                row_moments(&x[range.start * width..range.end * width], width, eps, out);
            });
            let out = map_rows(rows, width * 4, width, |range: Range<usize>, out| {
                let mut line = vec![0f32; if activation.is_some() { positions } else { 0 }];
                for (row, out) in range.zip(out.chunks_exact_mut(width)) {
                    let x = &x[row * width..][..width];
                    let (mean, inverse) = (moments[2 * row], moments[2 * row + 1]);
                    let first = row % groups * per_group;
                    for (c, (x, out)) in
                        x.chunks_exact(positions).zip(out.chunks_exact_mut(positions)).enumerate()
                    {
                        let scale = inverse * weight[first + c];
                        let shift = bias[first + c] - mean * scale;
                        match activation {
                            None => affine(x, scale, shift, out),
                            Some(activation) => {
                                affine(x, scale, shift, &mut line);
                                activation.values(&line, out);
                            }
                        }
                    }
                }
            });
            let _ = keep.set(moments);
            out
        },
        move |[x, weight, bias], _, g, wanted| {
            let moments = kept.get().map_or(&[] as &[f32], Vec::as_slice);
            // per (image, channel): Σ g and Σ g·normal, from which all gradients follow
            let mut slopes = Vec::new();
            let g: &[f32] = match activation {
                None => g,
                Some(activation) => {
                    slopes = map_rows(rows, width * 4, width, |range: Range<usize>, out| {
                        let mut line = vec![0f32; positions];
                        for (row, out) in range.zip(out.chunks_exact_mut(width)) {
                            let (mean, inverse) = (moments[2 * row], moments[2 * row + 1]);
                            let first = row % groups * per_group;
                            for c in 0..per_group {
                                let at = row * width + c * positions;
                                let scale = inverse * weight[first + c];
                                let shift = bias[first + c] - mean * scale;
                                affine(&x[at..][..positions], scale, shift, &mut line);
                                let out = &mut out[c * positions..][..positions];
                                activation.gradients(&line, &g[at..][..positions], out);
                            }
                        }
                    });
                    &slopes
                }
            };
            let lines = if width == 0 { 0 } else { batch * channels };
            let sums = map_rows(lines, positions * 2, 2, |range: Range<usize>, out| {
                for (line, out) in range.zip(out.chunks_exact_mut(2)) {
                    let row = line / per_group;
                    let at = line * positions..(line + 1) * positions;
                    let (sum, product) = line_sums(&x[at.clone()], &g[at], moments[2 * row]);
                    out[0] = sum;
                    out[1] = product * moments[2 * row + 1];
                }
            });
            let dx = wanted[0].then(|| {
                map_rows(rows, width, width, |range: Range<usize>, out| {
                    for (row, out) in range.zip(out.chunks_exact_mut(width)) {
                        let (mean, inverse) = (moments[2 * row], moments[2 * row + 1]);
                        let first = row % groups * per_group;
                        let (mut mean_g, mut mean_gx) = (0f32, 0f32);
                        for c in 0..per_group {
                            let pair = &sums[2 * (row * per_group + c)..][..2];
                            mean_g += pair[0] * weight[first + c];
                            mean_gx += pair[1] * weight[first + c];
                        }
                        mean_g /= width as f32;
                        mean_gx /= width as f32;
                        for c in 0..per_group {
                            let at = row * width + c * positions;
                            group_gradient(
                                &x[at..][..positions],
                                &g[at..][..positions],
                                [
                                    inverse * weight[first + c],
                                    mean,
                                    mean_gx * inverse * inverse,
                                    mean_g * inverse,
                                ],
                                &mut out[c * positions..][..positions],
                            );
                        }
                    }
                })
            });
            let total = |which: usize| {
                filled(channels, |out| {
                    out.fill(0.0);
                    for line in 0..lines {
                        out[line % channels] += sums[2 * line + which];
                    }
                })
            };
            let (dw, db) = (wanted[1].then(|| total(1)), wanted[2].then(|| total(0)));
            drop(slopes);
            [dx, dw, db]
        },
    )
}

simd! {
    fn affine(x: &[f32], scale: f32, shift: f32, out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * scale + shift;
        }
    }
}

simd! {
    /// `Σ g` and `Σ g (x - mean)`.
    fn line_sums(x: &[f32], g: &[f32], mean: f32) -> (f32, f32) {
        (sum(g), sum_of([x, g], |[x, g]| g * (x - mean)))
    }
}

simd! {
    /// `g · scale - (x - mean) · slope - shift`.
    fn group_gradient(x: &[f32], g: &[f32], terms: [f32; 4], out: &mut [f32]) {
        let [scale, mean, slope, shift] = terms;
        for ((out, &x), &g) in out.iter_mut().zip(x).zip(g) {
            *out = g * scale - (x - mean) * slope - shift;
        }
    }
}

/// [`group_norm`] from candle's operators.
pub fn group_norm_compose(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    activation: Option<Activation>,
) -> Result<Tensor> {
    let dims = x.dims().to_vec();
    let (batch, channels) = (dims[0], dims[1]);
    let positions = dims[2..].iter().product::<usize>();
    let grouped = x.reshape((batch, groups, channels / groups * positions))?;
    let width = grouped.dim(2)? as f64;
    let centred = grouped.broadcast_sub(&(grouped.sum_keepdim(2)? / width)?)?;
    let variance = (centred.sqr()?.sum_keepdim(2)? / width)?;
    let normal = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    let out = normal
        .reshape((batch, channels, positions))?
        .broadcast_mul(&weight.reshape((1, channels, 1))?)?
        .broadcast_add(&bias.reshape((1, channels, 1))?)?
        .reshape(dims)?;
    match activation {
        Some(activation) => activation.compose(&out),
        None => Ok(out),
    }
}

/// `x` `[batch, channels, …]` plus `shift` `[batch, channels]` at every position.
pub fn add_per_channel(x: &Tensor, shift: &Tensor) -> Result<Tensor> {
    let dims = x.dims();
    if dims.len() < 2 || shift.dims() != &dims[..2] {
        bail!("add_per_channel: {:?} and {dims:?}; expected [batch, channels]", shift.dims());
    }
    let (lines, positions) = (dims[0] * dims[1], dims[2..].iter().product::<usize>());
    if !fusable(&[x, shift]) {
        let mut shape = dims[..2].to_vec();
        shape.resize(dims.len(), 1);
        return x.broadcast_add(&shift.reshape(shape)?);
    }
    fused(
        "add_per_channel",
        [x, shift],
        x.shape(),
        move |[x, shift]| {
            map_rows(lines, positions, positions, |range: Range<usize>, out| {
                for (line, out) in range.zip(out.chunks_exact_mut(positions)) {
                    affine(&x[line * positions..][..positions], 1.0, shift[line], out);
                }
            })
        },
        move |_, _, g, wanted| {
            let sums = |range: Range<usize>, out: &mut [f32]| {
                for (line, out) in range.zip(out) {
                    *out = line_sums(&[], &g[line * positions..][..positions], 0.0).0;
                }
            };
            [wanted[0].then(|| g.to_vec()), wanted[1].then(|| map_rows(lines, positions, 1, sums))]
        },
    )
}
