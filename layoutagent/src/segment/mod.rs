//! Segmentation: cuts an object out of a user's picture by a box or a point (Algorithm 1, line 1).
//!
//! The network ([`crate::model::segmenter`]) is trained here on emoji composites, whose masks are
//! exact ([`composites`], [`fit`]). It sees the neighbourhood of the prompt at 64 × 64 pixels; a
//! guided filter (He, Sun, Tang 2010) then fits the mask to the edges of the picture itself.

pub mod composites;
pub mod fit;

use std::path::Path;

use candle_core::{Device, Tensor};
use common::nn::Builder;
use common::weights::Safetensors;
use common::{Error, Result};
use image::{RgbaImage, imageops};

pub use composites::Prompt;

use crate::model::segmenter::{CHANNELS, SIDE, Segmenter};

/// Weights of `layoutagent fit --segmenter` with the default config and seed 0.
const BUNDLED: &[u8] = include_bytes!("../../weights/segmenter.safetensors");

/// The bundled network.
///
/// # Errors
/// A damaged build.
pub fn bundled() -> Result<Segmenter> {
    let file = Safetensors::from_bytes(BUNDLED.to_vec(), Path::new("bundled segmenter"))?;
    Segmenter::new(&mut Builder::from_tensors(file.float_tensors()?.into_iter().collect()).frozen())
}

/// The two prompt channels, each 64 × 64: the box as ones, the point as a bump.
fn prompt_channels(prompt: Prompt) -> Vec<f32> {
    const SPREAD: f64 = 2.5;
    let mut values = vec![0f32; 2 * SIDE * SIDE];
    for y in 0..SIDE {
        for x in 0..SIDE {
            let (px, py) = (x as f64 + 0.5, y as f64 + 0.5);
            let at = y * SIDE + x;
            match prompt {
                Prompt::Box([left, top, right, bottom]) => {
                    let inside = px >= left && px < right && py >= top && py < bottom;
                    values[at] = f32::from(u8::from(inside));
                }
                Prompt::Point([left, top]) => {
                    let distance = (px - left).hypot(py - top) / SPREAD;
                    values[SIDE * SIDE + at] = (-0.5 * distance * distance).exp() as f32;
                }
            }
        }
    }
    values
}

/// The network's five channels of a 64 × 64 picture.
fn inputs(image: &RgbaImage, prompt: &[f32]) -> Vec<f32> {
    let mut values = Vec::with_capacity(CHANNELS * SIDE * SIDE);
    for channel in 0..3 {
        values.extend(image.pixels().map(|pixel| f32::from(pixel.0[channel]) / 127.5 - 1.0));
    }
    values.extend_from_slice(prompt);
    values
}

/// The square part of a picture that the network looks at.
#[derive(Debug, Clone, Copy)]
struct Window {
    left: f64,
    top: f64,
    side: f64,
}

impl Window {
    /// Around a box with room on all sides, or the whole picture for a point.
    fn of(prompt: Prompt, width: f64, height: f64) -> Self {
        let (center, side) = match prompt {
            Prompt::Box([left, top, right, bottom]) => {
                let longest = (right - left).max(bottom - top);
                ([(left + right) / 2.0, (top + bottom) / 2.0], 1.35 * longest)
            }
            Prompt::Point(_) => ([width / 2.0, height / 2.0], width.max(height)),
        };
        Self { left: center[0] - side / 2.0, top: center[1] - side / 2.0, side }
    }

    /// The picture's pixels there at 64 × 64, borders repeated outside.
    fn cut(self, image: &RgbaImage) -> RgbaImage {
        let most = |pixels: u32| f64::from(pixels - 1);
        let pixels = (self.side.round() as u32).clamp(1, 2048);
        let scale = self.side / f64::from(pixels);
        let cut = RgbaImage::from_fn(pixels, pixels, |x, y| {
            let x = (self.left + (f64::from(x) + 0.5) * scale).clamp(0.0, most(image.width()));
            let y = (self.top + (f64::from(y) + 0.5) * scale).clamp(0.0, most(image.height()));
            *image.get_pixel(x as u32, y as u32)
        });
        imageops::resize(&cut, SIDE as u32, SIDE as u32, imageops::FilterType::Triangle)
    }

    fn to_network(self, [x, y]: [f64; 2]) -> [f64; 2] {
        let scale = SIDE as f64 / self.side;
        [(x - self.left) * scale, (y - self.top) * scale]
    }
}

/// Probability that each pixel of the picture belongs to the object, row by row.
fn probabilities(model: &Segmenter, image: &RgbaImage, prompt: Prompt) -> Result<Vec<f64>> {
    let (width, height) = image.dimensions();
    let window = Window::of(prompt, f64::from(width), f64::from(height));
    let seen = match prompt {
        Prompt::Box([left, top, right, bottom]) => {
            let (first, last) =
                (window.to_network([left, top]), window.to_network([right, bottom]));
            Prompt::Box([first[0], first[1], last[0], last[1]])
        }
        Prompt::Point(at) => Prompt::Point(window.to_network(at)),
    };
    let values = inputs(&window.cut(image), &prompt_channels(seen));
    let x = Tensor::from_vec(values, (1, CHANNELS, SIDE, SIDE), &Device::Cpu)?;
    let logits = model.forward(&x)?.flatten_all()?.to_vec1::<f32>()?;
    let at = |x: f64, y: f64| {
        let [x, y] = window.to_network([x, y]);
        if !(0.0..SIDE as f64).contains(&x) || !(0.0..SIDE as f64).contains(&y) {
            return 0.0;
        }
        1.0 / (1.0 + (-bilinear(&logits, x - 0.5, y - 0.5)).exp())
    };
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    Ok(pixels.map(|(x, y)| at(f64::from(x) + 0.5, f64::from(y) + 0.5)).collect())
}

fn bilinear(values: &[f32], x: f64, y: f64) -> f64 {
    let most = SIDE as f64 - 1.0;
    let (x, y) = (x.clamp(0.0, most), y.clamp(0.0, most));
    let (left, top) = (x as usize, y as usize);
    let (right, below) = ((left + 1).min(SIDE - 1), (top + 1).min(SIDE - 1));
    let (dx, dy) = (x - left as f64, y - top as f64);
    let value = |x: usize, y: usize| f64::from(values[y * SIDE + x]);
    let row = |y: usize| value(left, y) * (1.0 - dx) + value(right, y) * dx;
    row(top) * (1.0 - dy) + row(below) * dy
}

/// Means over squares of `2 radius + 1` pixels, cut at the borders.
fn box_means(values: &[f64], width: usize, height: usize, radius: usize) -> Vec<f64> {
    let lines =
        |values: &[f64], count: usize, length: usize, at: &dyn Fn(usize, usize) -> usize| {
            let mut means = vec![0.0; values.len()];
            for line in 0..count {
                let mut sums = vec![0.0; length + 1];
                for i in 0..length {
                    sums[i + 1] = sums[i] + values[at(line, i)];
                }
                for i in 0..length {
                    let (first, last) = (i.saturating_sub(radius), (i + radius + 1).min(length));
                    means[at(line, i)] = (sums[last] - sums[first]) / (last - first) as f64;
                }
            }
            means
        };
    let rows = lines(values, height, width, &|line, i| line * width + i);
    lines(&rows, width, height, &|line, i| i * width + line)
}

/// Guided filter: the mask becomes a local linear function of the picture's brightness, so that its
/// edges lie where the picture's do.
fn guided(mask: &[f64], image: &RgbaImage, radius: usize) -> Vec<f64> {
    const SMOOTH: f64 = 1e-3;
    let (width, height) = (image.width() as usize, image.height() as usize);
    let mean = |values: &[f64]| box_means(values, width, height, radius);
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).collect::<Vec<f64>>();
    let guide: Vec<f64> = image
        .pixels()
        .map(|p| {
            let [r, g, b, _] = p.0.map(f64::from);
            (0.299 * r + 0.587 * g + 0.114 * b) / 255.0
        })
        .collect();
    let (mean_guide, mean_mask) = (mean(&guide), mean(mask));
    let (both, squares) = (mean(&product(&guide, mask)), mean(&product(&guide, &guide)));
    let slope: Vec<f64> = (0..mask.len())
        .map(|i| {
            let variance = squares[i] - mean_guide[i] * mean_guide[i];
            (both[i] - mean_guide[i] * mean_mask[i]) / (variance + SMOOTH)
        })
        .collect();
    let shift: Vec<f64> =
        (0..mask.len()).map(|i| mean_mask[i] - slope[i] * mean_guide[i]).collect();
    let (slope, shift) = (mean(&slope), mean(&shift));
    (0..mask.len()).map(|i| slope[i] * guide[i] + shift[i]).collect()
}

/// Connected parts (4 neighbours) of a mask: the pixels of each, the largest first.
fn components(mask: &[bool], width: usize) -> Vec<Vec<usize>> {
    let mut seen = vec![false; mask.len()];
    let mut parts = Vec::new();
    for start in 0..mask.len() {
        if !mask[start] || seen[start] {
            continue;
        }
        let (mut part, mut stack) = (Vec::new(), vec![start]);
        seen[start] = true;
        while let Some(at) = stack.pop() {
            part.push(at);
            let column = at % width;
            let neighbours = [
                (column > 0).then(|| at - 1),
                (column + 1 < width).then_some(at + 1),
                at.checked_sub(width),
                Some(at + width).filter(|&next| next < mask.len()),
            ];
            for next in neighbours.into_iter().flatten() {
                if mask[next] && !seen[next] {
                    seen[next] = true;
                    stack.push(next);
                }
            }
        }
        parts.push(part);
    }
    parts.sort_by_key(|part| std::cmp::Reverse(part.len()));
    parts
}

/// Cuts the object that `prompt` (in pixels) means out of a picture: its pixels with the mask as
/// alpha, cropped to the tight box. A point is looked for in the whole picture first, then again
/// within the box of what was found.
///
/// # Errors
/// [`Error::Data`] when the mask covers less than 1 % or more than 98 % of the prompt's
/// neighbourhood or falls into more than three parts (specification §3.2).
pub fn cut_out(model: &Segmenter, image: &RgbaImage, prompt: Prompt) -> Result<RgbaImage> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let mut prompt = prompt;
    if let Prompt::Point(_) = prompt {
        let found: Vec<bool> =
            probabilities(model, image, prompt)?.iter().map(|&p| p > 0.5).collect();
        if let Some(part) = components(&found, width).first() {
            prompt = Prompt::Box(tight(part, width));
        }
    }
    let window = Window::of(prompt, f64::from(image.width()), f64::from(image.height()));
    let coarse = probabilities(model, image, prompt)?;
    // a pixel of the network's mask in pixels of the picture
    let radius = (window.side / SIDE as f64).ceil().max(1.0) as usize;
    let alpha = if radius > 1 { guided(&coarse, image, radius) } else { coarse };
    let inside: Vec<bool> = alpha.iter().map(|&a| a > 0.5).collect();
    let mut parts = components(&inside, width);
    let all = inside.iter().filter(|&&inside| inside).count();
    // specks below 2 % of the object are noise
    parts.retain(|part| part.len() * 50 >= all);
    let kept: usize = parts.iter().map(Vec::len).sum();
    let share = kept as f64 / (window.side * window.side).min((width * height) as f64);
    if kept == 0 || !(0.01..=0.98).contains(&share) || parts.len() > 3 {
        return Err(Error::data(
            format!(
                "a mask of {} parts over {:.1} % of the neighbourhood",
                parts.len(),
                100.0 * share
            ),
            "one object that stands out from its background; give a tighter box, or a cut-out with \
             alpha",
        ));
    }
    let mut solid = vec![false; inside.len()];
    parts.iter().flatten().for_each(|&at| solid[at] = true);
    let mut cut = image.clone();
    for (at, pixel) in cut.pixels_mut().enumerate() {
        // steeper than the probabilities, so that the object itself is opaque
        let soft = if solid[at] { ((alpha[at] - 0.3) / 0.4).clamp(0.0, 1.0) } else { 0.0 };
        pixel.0[3] = (f64::from(pixel.0[3]) * soft).round() as u8;
    }
    crate::render::cutout::tight(&cut)
        .ok_or_else(|| Error::data("an empty mask", "one object that stands out"))
}

/// Left, top, right and lower edge of some pixels.
fn tight(pixels: &[usize], width: usize) -> [f64; 4] {
    let (mut low, mut high) = ([f64::INFINITY; 2], [0.0f64; 2]);
    for &at in pixels {
        for (axis, value) in [(at % width) as f64, (at / width) as f64].into_iter().enumerate() {
            low[axis] = low[axis].min(value);
            high[axis] = high[axis].max(value + 1.0);
        }
    }
    [low[0], low[1], high[0], high[1]]
}
