//! 2-D convolution and transposed convolution: patches and one matrix product per strip of an image,
//! images over threads.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::fused::{fusable, fused};
use super::kernel::{add, filled, simd};
use super::math::sum;
use super::product::{Matrix, Start, Threads, gemm};

/// Sizes of a convolution between an image of `height × width` and patches of `out_height ×
/// out_width`; shared by both directions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) kernel: (usize, usize),
    pub(super) stride: usize,
    pub(super) padding: usize,
    pub(super) out_height: usize,
    pub(super) out_width: usize,
}

impl Geometry {
    /// Output size of a window that slides over the padded image; refuses windows that don't fit.
    pub(super) fn new(
        channels: usize,
        (height, width): (usize, usize),
        kernel: (usize, usize),
        stride: usize,
        padding: usize,
    ) -> Result<Self> {
        let fits = |size: usize, kernel: usize| size + 2 * padding >= kernel && kernel > 0;
        if stride == 0 || !fits(height, kernel.0) || !fits(width, kernel.1) {
            bail!(
                "a window of {kernel:?} with stride {stride} and padding {padding} does not fit an image of {height} × {width}"
            );
        }
        let out = |size: usize, kernel: usize| (size + 2 * padding - kernel) / stride + 1;
        let (out_height, out_width) = (out(height, kernel.0), out(width, kernel.1));
        Ok(Self { channels, height, width, kernel, stride, padding, out_height, out_width })
    }

    fn pixels(&self) -> usize {
        self.height * self.width
    }

    fn out_pixels(&self) -> usize {
        self.out_height * self.out_width
    }

    /// Rows of the patch matrix.
    fn patch(&self) -> usize {
        self.channels * self.kernel.0 * self.kernel.1
    }

    /// Output rows of a strip whose patches stay within the second-level cache.
    fn strip(&self) -> usize {
        const STRIP: usize = 96 * 1024;
        (STRIP / (self.patch() * self.out_width).max(1)).clamp(1, self.out_height.max(1))
    }

    /// Output columns `x` whose input column `x · stride + offset - padding` lies in the image.
    fn columns(&self, offset: usize) -> Range<usize> {
        let first = self.padding.saturating_sub(offset).div_ceil(self.stride);
        let end = (self.width + self.padding).saturating_sub(offset).div_ceil(self.stride);
        first.min(self.out_width)..end.min(self.out_width).max(first.min(self.out_width))
    }

    /// Calls `visit(row of the patch matrix, first column of that row, start in the image, columns)`
    /// for every run of one output row of `rows`; `columns` empty = all padding.
    #[inline(always)]
    fn runs(&self, rows: Range<usize>, mut visit: impl FnMut(usize, usize, usize, Range<usize>)) {
        for channel in 0..self.channels {
            for ky in 0..self.kernel.0 {
                for kx in 0..self.kernel.1 {
                    let line = (channel * self.kernel.0 + ky) * self.kernel.1 + kx;
                    let columns = self.columns(kx);
                    for (index, row) in rows.clone().enumerate() {
                        let at = index * self.out_width;
                        match (row * self.stride + ky).checked_sub(self.padding) {
                            Some(y) if y < self.height && !columns.is_empty() => {
                                let start = (channel * self.height + y) * self.width
                                    + (columns.start * self.stride + kx - self.padding);
                                visit(line, at, start, columns.clone());
                            }
                            _ => visit(line, at, 0, 0..0),
                        }
                    }
                }
            }
        }
    }
}

simd! {
    /// Patches of the output rows `rows` as a matrix `[patch, rows · out_width]`.
    fn gather_patches(g: &Geometry, image: &[f32], rows: Range<usize>, out: &mut [f32]) {
        let pixels = rows.len() * g.out_width;
        g.runs(rows, |line, at, start, columns| {
            let out = &mut out[line * pixels + at..][..g.out_width];
            out[..columns.start].fill(0.0);
            out[columns.end..].fill(0.0);
            let out = &mut out[columns];
            if g.stride == 1 {
                out.copy_from_slice(&image[start..][..out.len()]);
            } else {
                for (out, &value) in out.iter_mut().zip(image[start..].iter().step_by(g.stride)) {
                    *out = value;
                }
            }
        });
    }
}

simd! {
    /// Adds the patch matrix back onto the image: the transpose of [`gather_patches`].
    fn scatter_patches(g: &Geometry, patches: &[f32], rows: Range<usize>, image: &mut [f32]) {
        let pixels = rows.len() * g.out_width;
        g.runs(rows, |line, at, start, columns| {
            let from = &patches[line * pixels + at..][..g.out_width][columns];
            if from.is_empty() {
                return;
            }
            if g.stride == 1 {
                for (value, from) in image[start..].iter_mut().zip(from) {
                    *value += from;
                }
            } else {
                for (value, from) in image[start..].iter_mut().step_by(g.stride).zip(from) {
                    *value += from;
                }
            }
        });
    }
}

/// Runs `work(image, out)` for every image, over threads.
fn for_images(images: usize, out: &mut [f32], work: impl Fn(usize, &mut [f32]) + Sync) {
    if images == 0 || out.is_empty() {
        return;
    }
    let size = out.len() / images;
    if rayon::current_num_threads() == 1 {
        out.chunks_mut(size).enumerate().for_each(|(image, out)| work(image, out));
    } else {
        out.par_chunks_mut(size).enumerate().for_each(|(image, out)| work(image, out));
    }
}

/// Groups of images whose sums are added in order; a fixed number, whatever the threads.
const GROUPS: usize = 4;

/// Sums `size` values over all images: `work` adds an image's part.
fn sum_images(images: usize, size: usize, work: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut partial = vec![0f32; GROUPS * size];
    let step = images.div_ceil(GROUPS).max(1);
    for_images(GROUPS, &mut partial, |group, sums| {
        for image in (group * step).min(images)..((group + 1) * step).min(images) {
            work(image, sums);
        }
    });
    let (total, rest) = partial.split_at_mut(size);
    rest.chunks_exact(size.max(1)).for_each(|part| add(total, part));
    partial.truncate(size);
    partial
}

/// Calls `work(rows, patch buffer)` for each strip of an image.
fn for_strips(g: &Geometry, mut work: impl FnMut(Range<usize>, &mut [f32])) {
    let strip = g.strip();
    let mut buffer = vec![0f32; g.patch() * strip * g.out_width];
    for first in (0..g.out_height).step_by(strip) {
        let rows = first..(first + strip).min(g.out_height);
        let size = g.patch() * rows.len() * g.out_width;
        work(rows, &mut buffer[..size]);
    }
}

/// `out [outputs, out_pixels] = weights · patches + bias`.
fn convolve(g: &Geometry, image: &[f32], weights: Matrix<'_>, bias: &[f32], out: &mut [f32]) {
    let pixels = g.out_pixels();
    for (out, &bias) in out.chunks_exact_mut(pixels).zip(bias) {
        out.fill(bias);
    }
    for_strips(g, |rows, patches| {
        gather_patches(g, image, rows.clone(), patches);
        let count = rows.len() * g.out_width;
        let patches = Matrix::new(patches, g.patch(), count);
        let out = &mut out[rows.start * g.out_width..];
        let start = if bias.is_empty() { Start::Zero } else { Start::Output };
        gemm(out, pixels, weights, patches, 1.0, start, Threads::One);
    });
}

/// Adds `weightsᵀ · gradient`, folded back, to `image`.
fn convolve_back(g: &Geometry, gradient: &[f32], weights: Matrix<'_>, image: &mut [f32]) {
    for_strips(g, |rows, patches| {
        let count = rows.len() * g.out_width;
        let part = &gradient[rows.start * g.out_width..];
        let outputs = gradient.len() / g.out_pixels();
        let part = Matrix::strided(part, outputs, count, g.out_pixels());
        gemm(patches, count, weights.t(), part, 1.0, Start::Zero, Threads::One);
        scatter_patches(g, patches, rows, image);
    });
}

/// Adds `gradient · patchesᵀ` to `sums` `[outputs, patch]`.
fn weight_gradient(g: &Geometry, image: &[f32], gradient: &[f32], sums: &mut [f32]) {
    for_strips(g, |rows, patches| {
        gather_patches(g, image, rows.clone(), patches);
        let count = rows.len() * g.out_width;
        let outputs = gradient.len() / g.out_pixels();
        let part = &gradient[rows.start * g.out_width..];
        let part = Matrix::strided(part, outputs, count, g.out_pixels());
        let patches = Matrix::new(patches, g.patch(), count);
        gemm(sums, g.patch(), part, patches.t(), 1.0, Start::Output, Threads::One);
    });
}

simd! {
    fn line_sum(line: &[f32]) -> f32 {
        sum(line)
    }
}

/// Gradient of a bias per channel.
fn bias_gradient(g: &[f32], channels: usize, pixels: usize) -> Vec<f32> {
    let mut sums = vec![0f32; channels];
    for image in g.chunks_exact((channels * pixels).max(1)) {
        for (sum, line) in sums.iter_mut().zip(image.chunks_exact(pixels)) {
            *sum += line_sum(line);
        }
    }
    sums
}

/// Convolution (cross-correlation, as in torch) of `x` `[batch, inputs, height, width]` with
/// `weight` `[outputs, inputs, kernel_h, kernel_w]` and `bias` `[outputs]`.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let (batch, inputs, height, width) = x.dims4()?;
    let (outputs, weight_inputs, kernel_h, kernel_w) = weight.dims4()?;
    if weight_inputs != inputs || bias.is_some_and(|bias| bias.dims() != [outputs]) {
        bail!("conv2d: weight {:?} for an image {:?}", weight.dims(), x.dims());
    }
    let g = Geometry::new(inputs, (height, width), (kernel_h, kernel_w), stride, padding)?;
    if !fusable(&[x, weight]) || !bias.is_none_or(|bias| fusable(&[bias])) {
        return conv2d_compose(x, weight, bias, stride, padding);
    }
    let image_size = inputs * g.pixels();
    let out_size = outputs * g.out_pixels();
    let forward = move |x: &[f32], weight: &[f32], bias: &[f32]| {
        filled(batch * out_size, |out| {
            let weights = Matrix::new(weight, outputs, g.patch());
            for_images(batch, out, |image, out| {
                convolve(&g, &x[image * image_size..][..image_size], weights, bias, out);
            });
        })
    };
    let backward = move |x: &[f32], weight: &[f32], gradient: &[f32], wanted: [bool; 3]| {
        let weights = Matrix::new(weight, outputs, g.patch());
        let of = |image: usize| &gradient[image * out_size..][..out_size];
        [
            wanted[0].then(|| {
                let mut out = vec![0f32; batch * image_size];
                for_images(batch, &mut out, |image, out| {
                    convolve_back(&g, of(image), weights, out)
                });
                out
            }),
            wanted[1].then(|| {
                sum_images(batch, outputs * g.patch(), |image, sums| {
                    weight_gradient(&g, &x[image * image_size..][..image_size], of(image), sums);
                })
            }),
            wanted[2].then(|| bias_gradient(gradient, outputs, g.out_pixels())),
        ]
    };
    let shape = (batch, outputs, g.out_height, g.out_width);
    with_or_without_bias("conv2d", x, weight, bias, shape, forward, backward)
}

fn with_or_without_bias<F, B>(
    name: &'static str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    shape: (usize, usize, usize, usize),
    forward: F,
    backward: B,
) -> Result<Tensor>
where
    F: Fn(&[f32], &[f32], &[f32]) -> Vec<f32> + Send + Sync + 'static,
    B: Fn(&[f32], &[f32], &[f32], [bool; 3]) -> [Option<Vec<f32>>; 3] + Send + Sync + 'static,
{
    match bias {
        Some(bias) => fused(
            name,
            [x, weight, bias],
            shape,
            move |[x, weight, bias]| forward(x, weight, bias),
            move |[x, weight, _], _, g, wanted| backward(x, weight, g, wanted),
        ),
        None => fused(
            name,
            [x, weight],
            shape,
            move |[x, weight]| forward(x, weight, &[]),
            move |[x, weight], _, g, [wants_x, wants_weight]| {
                let [dx, dw, _] = backward(x, weight, g, [wants_x, wants_weight, false]);
                [dx, dw]
            },
        ),
    }
}

/// Transposed convolution of `x` `[batch, inputs, height, width]` with `weight` `[inputs, outputs,
/// kernel_h, kernel_w]` and `bias` `[outputs]`: the gradient of [`conv2d`] used as a layer. Height
/// out = `(height - 1) · stride - 2 · padding + kernel_h`.
pub fn conv_transpose2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let (batch, inputs, height, width) = x.dims4()?;
    let (weight_inputs, outputs, kernel_h, kernel_w) = weight.dims4()?;
    if weight_inputs != inputs || bias.is_some_and(|bias| bias.dims() != [outputs]) {
        bail!("conv_transpose2d: weight {:?} for an image {:?}", weight.dims(), x.dims());
    }
    let g = transposed_geometry(outputs, (height, width), (kernel_h, kernel_w), stride, padding)?;
    if !fusable(&[x, weight]) || !bias.is_none_or(|bias| fusable(&[bias])) {
        return conv_transpose2d_compose(x, weight, bias, stride, padding);
    }
    let in_size = inputs * g.out_pixels();
    let out_size = outputs * g.pixels();
    let forward = move |x: &[f32], weight: &[f32], bias: &[f32]| {
        filled(batch * out_size, |out| {
            let weights = Matrix::new(weight, inputs, g.patch());
            for_images(batch, out, |image, out| {
                if bias.is_empty() {
                    out.fill(0.0);
                }
                for (out, &bias) in out.chunks_exact_mut(g.pixels()).zip(bias) {
                    out.fill(bias);
                }
                convolve_back(&g, &x[image * in_size..][..in_size], weights, out);
            });
        })
    };
    let backward = move |x: &[f32], weight: &[f32], gradient: &[f32], wanted: [bool; 3]| {
        let weights = Matrix::new(weight, inputs, g.patch());
        let of = |image: usize| &gradient[image * out_size..][..out_size];
        [
            wanted[0].then(|| {
                filled(batch * in_size, |out| {
                    for_images(batch, out, |image, out| convolve(&g, of(image), weights, &[], out));
                })
            }),
            wanted[1].then(|| {
                sum_images(batch, inputs * g.patch(), |image, sums| {
                    weight_gradient(&g, of(image), &x[image * in_size..][..in_size], sums);
                })
            }),
            wanted[2].then(|| bias_gradient(gradient, outputs, g.pixels())),
        ]
    };
    let shape = (batch, outputs, g.height, g.width);
    with_or_without_bias("conv_transpose2d", x, weight, bias, shape, forward, backward)
}

/// The convolution whose gradient the transposed one is: image and output swap roles.
fn transposed_geometry(
    channels: usize,
    (height, width): (usize, usize),
    kernel: (usize, usize),
    stride: usize,
    padding: usize,
) -> Result<Geometry> {
    let out = |size: usize, kernel: usize| match size.checked_sub(1) {
        Some(steps) => (steps * stride + kernel).checked_sub(2 * padding).filter(|&size| size > 0),
        None => None,
    };
    match (out(height, kernel.0), out(width, kernel.1)) {
        (Some(out_h), Some(out_w)) => {
            Geometry::new(channels, (out_h, out_w), kernel, stride, padding)
        }
        _ => bail!(
            "conv_transpose2d: an image of {height} × {width} with kernel {kernel:?} and padding {padding} leaves no output"
        ),
    }
}

/// For every patch value and output pixel the index into an image that has one more element at its
/// end (standing for the padding).
pub(super) fn patch_indices(g: &Geometry, x: &Tensor) -> Result<Tensor> {
    let (kernel_h, kernel_w) = g.kernel;
    let mut index = Vec::with_capacity(kernel_h * kernel_w * g.out_pixels());
    for ky in 0..kernel_h {
        for kx in 0..kernel_w {
            for y in 0..g.out_height {
                for x in 0..g.out_width {
                    let inside =
                        |at: usize, size: usize| at.checked_sub(g.padding).filter(|&at| at < size);
                    let y = inside(y * g.stride + ky, g.height);
                    let x = inside(x * g.stride + kx, g.width);
                    index.push(match (y, x) {
                        (Some(y), Some(x)) => (y * g.width + x) as u32,
                        _ => g.pixels() as u32,
                    });
                }
            }
        }
    }
    Tensor::from_vec(index, kernel_h * kernel_w * g.out_pixels(), x.device())
}

/// `[batch, channels, kernel_h · kernel_w, out pixels]` from candle's operators, `padding` outside.
pub(super) fn patches_compose(g: &Geometry, x: &Tensor, padding: f64) -> Result<Tensor> {
    let (batch, channels) = (x.dim(0)?, x.dim(1)?);
    let flat = x.reshape((batch, channels, g.pixels()))?;
    let edge =
        Tensor::full(padding as f32, (batch, channels, 1), x.device())?.to_dtype(x.dtype())?;
    Tensor::cat(&[&flat, &edge], 2)?.index_select(&patch_indices(g, x)?, 2)?.reshape((
        batch,
        channels,
        g.kernel.0 * g.kernel.1,
        g.out_pixels(),
    ))
}

/// [`conv2d`] from candle's operators.
pub fn conv2d_compose(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let (batch, inputs, height, width) = x.dims4()?;
    let (outputs, _, kernel_h, kernel_w) = weight.dims4()?;
    let g = Geometry::new(inputs, (height, width), (kernel_h, kernel_w), stride, padding)?;
    let patches = patches_compose(&g, x, 0.0)?.reshape((batch, g.patch(), g.out_pixels()))?;
    let weights = weight.reshape((1, outputs, g.patch()))?;
    let out = weights.broadcast_matmul(&patches)?;
    let out = out.reshape((batch, outputs, g.out_height, g.out_width))?;
    match bias {
        Some(bias) => out.broadcast_add(&bias.reshape((1, outputs, 1, 1))?),
        None => Ok(out),
    }
}

/// [`conv_transpose2d`] from candle's operators.
pub fn conv_transpose2d_compose(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: usize,
) -> Result<Tensor> {
    let (batch, inputs, height, width) = x.dims4()?;
    let (_, outputs, kernel_h, kernel_w) = weight.dims4()?;
    let g = transposed_geometry(outputs, (height, width), (kernel_h, kernel_w), stride, padding)?;
    let weights = weight.reshape((inputs, g.patch()))?.t()?.unsqueeze(0)?;
    let patches = weights.broadcast_matmul(&x.reshape((batch, inputs, g.out_pixels()))?)?;
    let patches = patches.reshape((batch, outputs, kernel_h * kernel_w * g.out_pixels()))?;
    let out = Tensor::zeros((batch, outputs, g.pixels() + 1), x.dtype(), x.device())?
        .index_add(&patch_indices(&g, x)?, &patches, 2)?
        .narrow(2, 0, g.pixels())?
        .reshape((batch, outputs, g.height, g.width))?;
    match bias {
        Some(bias) => out.broadcast_add(&bias.reshape((1, outputs, 1, 1))?),
        None => Ok(out),
    }
}
