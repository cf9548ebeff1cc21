//! Up-sampling (nearest, bilinear) and pooling (average, max) of `[batch, channels, height, width]`.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{Result, Tensor, bail};

use super::conv::{Geometry, patches_compose};
use super::fused::{fusable, fused};
use super::kernel::{map_rows, simd};

/// Repeats every pixel `factor` times in both directions.
pub fn upsample_nearest(x: &Tensor, factor: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    if factor == 0 {
        bail!("upsample_nearest: factor 0; it must be at least 1");
    }
    if !fusable(&[x]) {
        return upsample_nearest_compose(x, factor);
    }
    let planes = batch * channels;
    let (pixels, out_width) = (height * width, width * factor);
    let out_pixels = pixels * factor * factor;
    fused(
        "upsample_nearest",
        [x],
        (batch, channels, height * factor, out_width),
        move |[x]| {
            map_rows(planes, out_pixels, out_pixels, |range: Range<usize>, out| {
                let lines = x[range.start * pixels..range.end * pixels].chunks_exact(width);
                for (line, out) in lines.zip(out.chunks_exact_mut(factor * out_width)) {
                    let (first, others) = out.split_at_mut(out_width);
                    repeat(line, factor, first);
                    others.chunks_exact_mut(out_width).for_each(|row| row.copy_from_slice(first));
                }
            })
        },
        move |_, _, g, _| {
            [Some(map_rows(planes, out_pixels, pixels, |range: Range<usize>, out| {
                let g = &g[range.start * out_pixels..range.end * out_pixels];
                for (out, g) in out.chunks_exact_mut(width).zip(g.chunks_exact(factor * out_width))
                {
                    sum_blocks(g, factor, out);
                }
            }))]
        },
    )
}

simd! {
    fn repeat(line: &[f32], factor: usize, out: &mut [f32]) {
        if factor == 2 {
            for (out, &value) in out.chunks_exact_mut(2).zip(line) {
                out[0] = value;
                out[1] = value;
            }
        } else {
            for (out, &value) in out.chunks_exact_mut(factor).zip(line) {
                out.fill(value);
            }
        }
    }
}

simd! {
    /// Sums of the `factor × factor` blocks of `factor` lines.
    fn sum_blocks(g: &[f32], factor: usize, out: &mut [f32]) {
        let width = out.len() * factor;
        if factor == 2 {
            let (upper, lower) = g.split_at(width);
            for ((out, a), b) in out.iter_mut().zip(upper.chunks_exact(2)).zip(lower.chunks_exact(2)) {
                *out = (a[0] + a[1]) + (b[0] + b[1]);
            }
        } else {
            for (x, out) in out.iter_mut().enumerate() {
                let block = |y: usize| g[y * width + x * factor..][..factor].iter().sum::<f32>();
                *out = (0..factor).map(block).sum();
            }
        }
    }
}

/// [`upsample_nearest`] from candle's operators.
pub fn upsample_nearest_compose(x: &Tensor, factor: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    x.reshape((batch, channels, height, 1, width, 1))?
        .broadcast_as((batch, channels, height, factor, width, factor))?
        .reshape((batch, channels, height * factor, width * factor))
}

/// Bilinear interpolation to `out_height × out_width`. `align_corners` maps the centres of the
/// corner pixels onto each other; otherwise the pixels' outer edges (torch's definitions).
pub fn upsample_bilinear(
    x: &Tensor,
    out_height: usize,
    out_width: usize,
    align_corners: bool,
) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    if height == 0 || width == 0 || out_height == 0 || out_width == 0 {
        bail!("upsample_bilinear: {:?} to {out_height} × {out_width}; no size may be 0", x.dims());
    }
    if !fusable(&[x]) {
        return upsample_bilinear_compose(x, out_height, out_width, align_corners);
    }
    let rows: Arc<[Tap]> = taps(height, out_height, align_corners).into();
    let columns: Arc<[Tap]> = taps(width, out_width, align_corners).into();
    let (pixels, out_pixels) = (height * width, out_height * out_width);
    let planes = batch * channels;
    let (back_rows, back_columns) = (rows.clone(), columns.clone());
    fused(
        "upsample_bilinear",
        [x],
        (batch, channels, out_height, out_width),
        move |[x]| {
            map_rows(planes, out_pixels * 4, out_pixels, |range: Range<usize>, out| {
                for (plane, out) in range.zip(out.chunks_exact_mut(out_pixels)) {
                    let x = &x[plane * pixels..][..pixels];
                    for (row, out) in rows.iter().zip(out.chunks_exact_mut(out_width)) {
                        let upper = &x[row.low * width..][..width];
                        let lower = &x[row.high * width..][..width];
                        for (column, out) in columns.iter().zip(out) {
                            let mix = |line: &[f32]| {
                                line[column.low] * (1.0 - column.share)
                                    + line[column.high] * column.share
                            };
                            *out = mix(upper) * (1.0 - row.share) + mix(lower) * row.share;
                        }
                    }
                }
            })
        },
        move |_, _, g, _| {
            [Some(map_rows(planes, out_pixels * 4, pixels, |range: Range<usize>, out| {
                out.fill(0.0);
                for (plane, out) in range.zip(out.chunks_exact_mut(pixels)) {
                    let g = &g[plane * out_pixels..][..out_pixels];
                    for (row, g) in back_rows.iter().zip(g.chunks_exact(out_width)) {
                        for (column, &g) in back_columns.iter().zip(g) {
                            let (upper, lower) = (g * (1.0 - row.share), g * row.share);
                            out[row.low * width + column.low] += upper * (1.0 - column.share);
                            out[row.low * width + column.high] += upper * column.share;
                            out[row.high * width + column.low] += lower * (1.0 - column.share);
                            out[row.high * width + column.high] += lower * column.share;
                        }
                    }
                }
            }))]
        },
    )
}

/// An output position between two input positions.
#[derive(Debug, Clone, Copy)]
struct Tap {
    low: usize,
    high: usize,
    /// Weight of `high`.
    share: f32,
}

fn taps(size: usize, out_size: usize, align_corners: bool) -> Vec<Tap> {
    (0..out_size)
        .map(|at| {
            let position = if align_corners {
                if out_size == 1 {
                    0.0
                } else {
                    at as f64 * (size - 1) as f64 / (out_size - 1) as f64
                }
            } else {
                ((at as f64 + 0.5) * size as f64 / out_size as f64 - 0.5).max(0.0)
            };
            let low = (position as usize).min(size - 1);
            Tap { low, high: (low + 1).min(size - 1), share: (position - low as f64) as f32 }
        })
        .collect()
}

/// [`upsample_bilinear`] from candle's operators: `rows · x · columnsᵀ`.
pub fn upsample_bilinear_compose(
    x: &Tensor,
    out_height: usize,
    out_width: usize,
    align_corners: bool,
) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let matrix = |size: usize, out_size: usize| {
        let mut values = vec![0f32; out_size * size];
        for (at, tap) in taps(size, out_size, align_corners).into_iter().enumerate() {
            values[at * size + tap.low] += 1.0 - tap.share;
            values[at * size + tap.high] += tap.share;
        }
        Tensor::from_vec(values, (out_size, size), x.device())?.to_dtype(x.dtype())
    };
    let columns = matrix(width, out_width)?.t()?;
    let wide = x.reshape((batch * channels * height, width))?.matmul(&columns)?;
    let wide = wide.reshape((batch * channels, height, out_width))?;
    matrix(height, out_height)?
        .unsqueeze(0)?
        .broadcast_matmul(&wide)?
        .reshape((batch, channels, out_height, out_width))
}

/// A pooling window of `kernel × kernel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// Side of the window.
    pub kernel: usize,
    /// Step between windows.
    pub stride: usize,
    /// Pixels added on every side; at most half the kernel.
    pub padding: usize,
}

impl Pool {
    fn geometry(&self, x: &Tensor) -> Result<Geometry> {
        let (_, channels, height, width) = x.dims4()?;
        if 2 * self.padding > self.kernel {
            bail!("pooling: padding {} is more than half the kernel {}", self.padding, self.kernel);
        }
        Geometry::new(
            channels,
            (height, width),
            (self.kernel, self.kernel),
            self.stride,
            self.padding,
        )
    }

    /// Pixels of the image under the window at output row `y`, column `x`.
    fn window(&self, g: &Geometry, y: usize, x: usize) -> (Range<usize>, Range<usize>) {
        let range = |at: usize, size: usize| {
            let start = at * self.stride;
            let end = (start + self.kernel).saturating_sub(self.padding).min(size);
            start.saturating_sub(self.padding).min(end)..end
        };
        (range(y, g.height), range(x, g.width))
    }
}

/// Mean of each window; padding counts as zeros and is counted (torch's default).
pub fn avg_pool2d(x: &Tensor, pool: Pool) -> Result<Tensor> {
    let g = pool.geometry(x)?;
    if !fusable(&[x]) {
        return avg_pool2d_compose(x, pool);
    }
    let batch = x.dim(0)?;
    let planes = batch * g.channels;
    let (pixels, out_pixels) = (g.height * g.width, g.out_height * g.out_width);
    let share = 1.0 / (pool.kernel * pool.kernel) as f32;
    let work = out_pixels * pool.kernel * pool.kernel;
    fused(
        "avg_pool2d",
        [x],
        (batch, g.channels, g.out_height, g.out_width),
        move |[x]| {
            map_rows(planes, work, out_pixels, |range: Range<usize>, out| {
                for (plane, out) in range.zip(out.chunks_exact_mut(out_pixels)) {
                    let x = &x[plane * pixels..][..pixels];
                    for (at, out) in out.iter_mut().enumerate() {
                        let (rows, columns) = pool.window(&g, at / g.out_width, at % g.out_width);
                        let row = |y: usize| x[y * g.width..][columns.clone()].iter().sum::<f32>();
                        *out = rows.map(row).sum::<f32>() * share;
                    }
                }
            })
        },
        move |_, _, gradient, _| {
            [Some(map_rows(planes, work, pixels, |range: Range<usize>, out| {
                out.fill(0.0);
                for (plane, out) in range.zip(out.chunks_exact_mut(pixels)) {
                    let gradient = &gradient[plane * out_pixels..][..out_pixels];
                    for (at, &gradient) in gradient.iter().enumerate() {
                        let (rows, columns) = pool.window(&g, at / g.out_width, at % g.out_width);
                        for y in rows {
                            for value in &mut out[y * g.width..][columns.clone()] {
                                *value += gradient * share;
                            }
                        }
                    }
                }
            }))]
        },
    )
}

/// [`avg_pool2d`] from candle's operators.
pub fn avg_pool2d_compose(x: &Tensor, pool: Pool) -> Result<Tensor> {
    let g = pool.geometry(x)?;
    let share = 1.0 / (pool.kernel * pool.kernel) as f64;
    let sums = patches_compose(&g, x, 0.0)?.sum(2)?;
    (sums * share)?.reshape((x.dim(0)?, g.channels, g.out_height, g.out_width))
}

/// Largest value of each window; the gradient goes to the first of equal ones. A window with a NaN
/// gives NaN.
pub fn max_pool2d(x: &Tensor, pool: Pool) -> Result<Tensor> {
    let g = pool.geometry(x)?;
    if !fusable(&[x]) {
        return max_pool2d_compose(x, pool);
    }
    let batch = x.dim(0)?;
    let planes = batch * g.channels;
    let (pixels, out_pixels) = (g.height * g.width, g.out_height * g.out_width);
    let work = out_pixels * pool.kernel * pool.kernel;
    let winner = move |x: &[f32], at: usize| {
        let (rows, columns) = pool.window(&g, at / g.out_width, at % g.out_width);
        let mut best = rows.start * g.width + columns.start;
        for y in rows {
            for index in y * g.width + columns.start..y * g.width + columns.end {
                if x[index] > x[best] || (x[index].is_nan() && !x[best].is_nan()) {
                    best = index;
                }
            }
        }
        best
    };
    let kept: Arc<OnceLock<Vec<f32>>> = Arc::default();
    let keep = kept.clone();
    fused(
        "max_pool2d",
        [x],
        (batch, g.channels, g.out_height, g.out_width),
        move |[x]| {
            // index of each window's winner, as the bits of an f32 so that it shares the loops
            let winners = map_rows(planes, work, out_pixels, |range: Range<usize>, out| {
                for (plane, out) in range.zip(out.chunks_exact_mut(out_pixels)) {
                    let x = &x[plane * pixels..][..pixels];
                    for (at, out) in out.iter_mut().enumerate() {
                        *out = f32::from_bits(winner(x, at) as u32);
                    }
                }
            });
            let out = map_rows(planes, out_pixels, out_pixels, |range: Range<usize>, out| {
                for (plane, out) in range.zip(out.chunks_exact_mut(out_pixels)) {
                    let winners = &winners[plane * out_pixels..][..out_pixels];
                    for (out, winner) in out.iter_mut().zip(winners) {
                        *out = x[plane * pixels + winner.to_bits() as usize];
                    }
                }
            });
            let _ = keep.set(winners);
            out
        },
        move |_, _, gradient, _| {
            let winners = kept.get().map_or(&[] as &[f32], Vec::as_slice);
            [Some(map_rows(planes, work, pixels, |range: Range<usize>, out| {
                out.fill(0.0);
                for (plane, out) in range.zip(out.chunks_exact_mut(pixels)) {
                    let at = plane * out_pixels..(plane + 1) * out_pixels;
                    for (winner, g) in winners[at.clone()].iter().zip(&gradient[at]) {
                        out[winner.to_bits() as usize] += g;
                    }
                }
            }))]
        },
    )
}

/// [`max_pool2d`] from candle's operators; equal values share the gradient wrongly (each gets all
/// of it), which is candle's behaviour.
pub fn max_pool2d_compose(x: &Tensor, pool: Pool) -> Result<Tensor> {
    let g = pool.geometry(x)?;
    let patches = patches_compose(&g, x, f64::from(f32::MIN))?;
    patches.max(2)?.reshape((x.dim(0)?, g.channels, g.out_height, g.out_width))
}
