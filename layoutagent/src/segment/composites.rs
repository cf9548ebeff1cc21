//! Training and test pictures with exact masks: emoji over noise, gradients and photo-like grounds,
//! with other emoji around them.

use common::Result;
use common::emoji::Picture;
use common::rng::Stream;
use image::{Rgba, RgbaImage, imageops};

use crate::model::segmenter::SIDE;
use crate::render::resize;

/// Pixels at which drawings are kept.
const DRAWN: u32 = 72;

/// Drawings with transparent borders cut off.
#[derive(Debug, Clone)]
pub struct Drawings(Vec<RgbaImage>);

impl Drawings {
    /// Every fifth picture by number is held out; `held_out` takes those, else the others. At
    /// most `most` of them, spread evenly.
    ///
    /// # Errors
    /// A drawing that does not parse.
    pub fn new(pictures: &[Picture], held_out: bool, most: usize) -> Result<Self> {
        let own: Vec<&Picture> = pictures
            .iter()
            .enumerate()
            .filter(|(index, _)| (index % 5 == 0) == held_out)
            .map(|(_, picture)| picture)
            .collect();
        let step = own.len().div_ceil(most.max(1)).max(1);
        let drawn = own
            .into_iter()
            .step_by(step)
            .map(|picture| Ok(crate::render::cutout::tight(&picture.render(DRAWN)?)));
        let drawn: Vec<Option<RgbaImage>> = drawn.collect::<Result<_>>()?;
        Ok(Self(drawn.into_iter().flatten().collect()))
    }

    /// Number of drawings.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What tells the object that is meant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Prompt {
    /// Left, top, right and lower edge in pixels.
    Box([f64; 4]),
    /// A pixel of the object.
    Point([f64; 2]),
}

impl Prompt {
    /// A mask of 64 × 64 pixels that is the box itself (for a point: that pixel), to compare with.
    pub fn filled(self) -> Vec<bool> {
        let [left, top, right, bottom] = match self {
            Self::Box(edges) => edges,
            Self::Point([x, y]) => [x - 0.5, y - 0.5, x + 0.5, y + 0.5],
        };
        let center = |at: usize| ((at % SIDE) as f64 + 0.5, (at / SIDE) as f64 + 0.5);
        let inside = |(x, y)| x >= left && x < right && y >= top && y < bottom;
        (0..SIDE * SIDE).map(center).map(inside).collect()
    }
}

/// One composite.
#[derive(Debug, Clone)]
pub struct Composite {
    /// 64 × 64 pixels.
    pub image: RgbaImage,
    /// Whether each pixel, row by row, belongs to the object.
    pub mask: Vec<bool>,
    /// The prompt that a person would give.
    pub prompt: Prompt,
}

/// Draws one composite; `by_point` chooses the kind of prompt.
pub fn composite(drawings: &Drawings, by_point: bool, stream: &mut Stream) -> Composite {
    loop {
        let mut image = ground(stream);
        for _ in 0..stream.below(4) {
            paste(&mut image, drawings, [14, 44], stream);
        }
        let object = paste(&mut image, drawings, [18, 56], stream);
        let side = SIDE as i64;
        let mut mask = vec![false; SIDE * SIDE];
        for (x, y, pixel) in object.image.enumerate_pixels() {
            let (left, top) = (i64::from(x) + object.at[0], i64::from(y) + object.at[1]);
            if pixel.0[3] >= 128 && (0..side).contains(&left) && (0..side).contains(&top) {
                mask[(top * side + left) as usize] = true;
            }
        }
        // sometimes another object hides a corner of it
        if stream.chance(0.25) {
            let hiding = paste(&mut image, drawings, [10, 20], stream);
            for (x, y, pixel) in hiding.image.enumerate_pixels() {
                let (left, top) = (i64::from(x) + hiding.at[0], i64::from(y) + hiding.at[1]);
                if pixel.0[3] >= 128 && (0..side).contains(&left) && (0..side).contains(&top) {
                    mask[(top * side + left) as usize] = false;
                }
            }
        }
        let grain = 8.0 * stream.uniform();
        for pixel in image.pixels_mut() {
            for channel in &mut pixel.0[..3] {
                *channel = (f64::from(*channel) + grain * stream.normal()).clamp(0.0, 255.0) as u8;
            }
        }
        if let Some(prompt) = prompt(&mask, by_point, stream) {
            return Composite { image, mask, prompt };
        }
    }
}

/// A box around the mask, off by a few pixels as people draw it, or a pixel of it; `None` for a mask
/// of less than 1 %.
fn prompt(mask: &[bool], by_point: bool, stream: &mut Stream) -> Option<Prompt> {
    let inside: Vec<usize> = (0..mask.len()).filter(|&at| mask[at]).collect();
    if inside.len() * 100 < mask.len() {
        return None;
    }
    if by_point {
        let at = inside[stream.below(inside.len())];
        return Some(Prompt::Point([(at % SIDE) as f64 + 0.5, (at / SIDE) as f64 + 0.5]));
    }
    let columns = || inside.iter().map(|at| (at % SIDE) as f64);
    let rows = || inside.iter().map(|at| (at / SIDE) as f64);
    let edges = [
        columns().fold(f64::INFINITY, f64::min),
        rows().fold(f64::INFINITY, f64::min),
        columns().fold(0.0, f64::max) + 1.0,
        rows().fold(0.0, f64::max) + 1.0,
    ];
    let spread = 0.04 * (edges[2] - edges[0]).max(edges[3] - edges[1]);
    Some(Prompt::Box(edges.map(|edge| (edge + spread * stream.normal()).clamp(0.0, SIDE as f64))))
}

fn paste(
    image: &mut RgbaImage,
    drawings: &Drawings,
    sides: [usize; 2],
    stream: &mut Stream,
) -> crate::render::Placed {
    let object = stream.below(drawings.len());
    let drawing = &drawings.0[object];
    let longest = sides[0] + stream.below(sides[1] - sides[0]);
    let scale = longest as f64 / f64::from(drawing.width().max(drawing.height()));
    let side = |pixels: u32| ((f64::from(pixels) * scale).round() as u32).max(1);
    let mut small = resize(drawing, side(drawing.width()), side(drawing.height()));
    if stream.chance(0.5) {
        imageops::flip_horizontal_in_place(&mut small);
    }
    // up to a tenth may stick out
    let place = |length: u32, stream: &mut Stream| {
        let (out, room) = (f64::from(length) * 0.1, SIDE as f64 - f64::from(length) * 0.8);
        (stream.uniform() * room - out).round() as i64
    };
    let at = [place(small.width(), stream), place(small.height(), stream)];
    imageops::overlay(image, &small, at[0], at[1]);
    crate::render::Placed { object, at, image: small }
}

/// Noise, a gradient, or smooth spots with patches of colour.
fn ground(stream: &mut Stream) -> RgbaImage {
    let side = SIDE as u32;
    let color = |stream: &mut Stream| [0; 3].map(|_: u8| 255.0 * stream.uniform());
    let (first, second) = (color(stream), color(stream));
    match stream.below(3) {
        0 => {
            let sd = 60.0 * stream.uniform();
            RgbaImage::from_fn(side, side, |_, _| {
                let [r, g, b] = first.map(|v| (v + sd * stream.normal()).clamp(0.0, 255.0) as u8);
                Rgba([r, g, b, 255])
            })
        }
        1 => {
            let angle = std::f64::consts::TAU * stream.uniform();
            RgbaImage::from_fn(side, side, |x, y| {
                let along = f64::from(x) * angle.cos() + f64::from(y) * angle.sin();
                let share = (along / f64::from(side) + 0.5).clamp(0.0, 1.0);
                mix(first, second, share)
            })
        }
        _ => {
            let grids: Vec<Vec<f64>> =
                [4, 8, 16].map(|n| (0..n * n).map(|_| stream.uniform()).collect()).to_vec();
            let mut image = RgbaImage::from_fn(side, side, |x, y| {
                let share = [(4, 0.6), (8, 0.3), (16, 0.1)]
                    .iter()
                    .zip(&grids)
                    .map(|(&(n, weight), grid)| weight * smooth(grid, n, x, y))
                    .sum();
                mix(first, second, share)
            });
            for _ in 0..stream.below(5) {
                let patch = color(stream);
                let [x, y, w, h] = [0; 4].map(|_: u8| stream.below(SIDE) as u32);
                for y in y..(y + h / 2).min(side) {
                    for x in x..(x + w / 2).min(side) {
                        image.put_pixel(x, y, mix(patch, second, 0.0));
                    }
                }
            }
            image
        }
    }
}

/// Bilinear interpolation of an n × n grid over the picture.
fn smooth(grid: &[f64], n: usize, x: u32, y: u32) -> f64 {
    let at = |pixel: u32| (f64::from(pixel) + 0.5) / SIDE as f64 * (n as f64 - 1.0);
    let (x, y) = (at(x), at(y));
    let (left, top) = (x as usize, y as usize);
    let (right, below) = ((left + 1).min(n - 1), (top + 1).min(n - 1));
    let (dx, dy) = (x - left as f64, y - top as f64);
    let row = |y: usize| grid[y * n + left] * (1.0 - dx) + grid[y * n + right] * dx;
    row(top) * (1.0 - dy) + row(below) * dy
}

fn mix(first: [f64; 3], second: [f64; 3], share: f64) -> Rgba<u8> {
    let [r, g, b] = [0, 1, 2].map(|c| (first[c] * (1.0 - share) + second[c] * share) as u8);
    Rgba([r, g, b, 255])
}
