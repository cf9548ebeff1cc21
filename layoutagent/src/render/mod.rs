//! From boxes to a picture: cut-outs placed with alpha and z-order over a background, procedural or
//! by Stable Diffusion (specification §3.9).
//!
//! The foreground is pasted last and never repainted, so its pixels are the cut-out's wherever
//! its alpha is full.

pub mod background;
pub mod cutout;
pub mod diffusion;
pub mod files;

use image::{Rgba, RgbaImage, imageops};

use crate::layout::{Frame, Problem, Rect};
use crate::relations::Relation;

/// One object on the canvas.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    /// Index of the object.
    pub object: usize,
    /// Left upper corner in pixels.
    pub at: [i64; 2],
    /// The cut-out at its final size.
    pub image: RgbaImage,
}

impl Placed {
    /// Height of the lower edge in pixels from the top.
    pub fn foot(&self) -> f64 {
        self.at[1] as f64 + f64::from(self.image.height())
    }

    /// Whether it stands on `other`: its foot at the other's upper edge, above its middle.
    fn stands_on(&self, other: &Self) -> bool {
        let [left, width] = [self.at[0] as f64, f64::from(self.image.width())];
        let [other_left, other_width] = [other.at[0] as f64, f64::from(other.image.width())];
        let middle = left + width / 2.0;
        let near = 2.0 + 0.04 * f64::from(self.image.height().max(other.image.height()));
        (self.foot() - other.at[1] as f64).abs() <= near
            && (other_left..=other_left + other_width).contains(&middle)
    }
}

/// A rendered scene.
#[derive(Debug, Clone)]
pub struct Picture {
    /// All of it.
    pub image: RgbaImage,
    /// The objects, back to front.
    pub placed: Vec<Placed>,
}

/// Drawing order, back to front: what stands behind or below comes first; otherwise the object
/// with the higher lower edge.
pub fn drawing_order(problem: &Problem, rects: &[Rect]) -> Vec<usize> {
    let mut left: Vec<usize> = (0..rects.len()).collect();
    left.sort_by(|&a, &b| rects[b].bottom().total_cmp(&rects[a].bottom()).then(a.cmp(&b)));
    // a is drawn after b
    let after: Vec<(usize, usize)> = problem
        .edges
        .iter()
        .filter(|edge| {
            matches!(edge.relation, Relation::InFrontOf | Relation::On | Relation::Inside)
        })
        .filter_map(|edge| Some((edge.a, edge.b?)))
        .collect();
    let mut order = Vec::new();
    while !left.is_empty() {
        let free = left
            .iter()
            .position(|&object| after.iter().all(|&(a, b)| a != object || !left.contains(&b)));
        // a circle of such relations: the lower edges decide
        order.push(left.remove(free.unwrap_or(0)));
    }
    order
}

/// Resizes each cut-out into its box (aspect kept, standing on the box's lower edge, centred).
pub fn place(
    problem: &Problem,
    rects: &[Rect],
    cutouts: &[RgbaImage],
    canvas: [u32; 2],
) -> Vec<Placed> {
    drawing_order(problem, rects)
        .into_iter()
        .map(|object| {
            let [x, y, w, h] = pixels(problem.frame, rects[object], canvas);
            let cutout = &cutouts[object];
            let (cw, ch) = (f64::from(cutout.width()), f64::from(cutout.height()));
            let scale = (w / cw).min(h / ch);
            let side = |length: f64| ((length * scale).round() as u32).max(1);
            let (width, height) = (side(cw), side(ch));
            let image = resize(cutout, width, height);
            let left = x + (w - f64::from(width)) / 2.0;
            let top = y + h - f64::from(height);
            Placed { object, at: [left.round() as i64, top.round() as i64], image }
        })
        .collect()
}

/// Left, top, width and height in pixels.
fn pixels(frame: Frame, rect: Rect, canvas: [u32; 2]) -> [f64; 4] {
    let [x, y, w, h] = frame.to_canvas(rect);
    let [cw, ch] = canvas.map(f64::from);
    [x * cw, y * ch, w * cw, h * ch]
}

/// Resizes with colours weighted by alpha, so transparent pixels do not bleed in.
pub(crate) fn resize(image: &RgbaImage, width: u32, height: u32) -> RgbaImage {
    let mut weighted = image.clone();
    for Rgba([r, g, b, a]) in weighted.pixels_mut() {
        for channel in [r, g, b] {
            *channel = ((u32::from(*channel) * u32::from(*a) + 127) / 255) as u8;
        }
    }
    let mut small = imageops::resize(&weighted, width, height, imageops::FilterType::Triangle);
    for Rgba([r, g, b, a]) in small.pixels_mut() {
        for channel in [r, g, b] {
            let straight = (u32::from(*channel) * 255 + u32::from(*a) / 2)
                .checked_div(u32::from(*a))
                .unwrap_or(0);
            *channel = straight.min(255) as u8;
        }
    }
    small
}

/// Draws a procedural background of the setting, contact shadows and objects. What stands neither on
/// the ground nor on another object hangs, and has no contact shadow.
pub fn compose(
    setting: &str,
    [width, height]: [u32; 2],
    placed: Vec<Placed>,
    light: &str,
) -> Picture {
    let horizon = background::horizon(setting, height, &placed);
    compose_over(background::paint(setting, width, height, horizon), horizon, placed, light)
}

/// The same over any background whose ground starts at `horizon` (pixels from the top).
pub fn compose_over(
    background: RgbaImage,
    horizon: f64,
    placed: Vec<Placed>,
    light: &str,
) -> Picture {
    let mut image = background;
    for (index, object) in placed.iter().enumerate() {
        let standing =
            object.foot() >= horizon || placed[..index].iter().any(|other| object.stands_on(other));
        if standing {
            shadow(&mut image, object, light);
        }
        imageops::overlay(&mut image, &object.image, object.at[0], object.at[1]);
    }
    Picture { image, placed }
}

/// A soft dark ellipse under the object's lower edge, shifted away from the light.
fn shadow(image: &mut RgbaImage, object: &Placed, light: &str) {
    let (w, h) = (f64::from(object.image.width()), f64::from(object.image.height()));
    let shift = match light {
        "left" => 0.08 * w,
        "right" => -0.08 * w,
        _ => 0.0,
    };
    let (cx, cy) = (object.at[0] as f64 + w / 2.0 + shift, object.at[1] as f64 + h - 0.01 * h);
    let (rx, ry) = (0.52 * w, (0.06 * w).max(2.0));
    let range = |center: f64, radius: f64, most: u32| {
        let low = (center - radius).floor().max(0.0) as u32;
        low..((center + radius).ceil().max(0.0) as u32).min(most)
    };
    for y in range(cy, ry, image.height()) {
        for x in range(cx, rx, image.width()) {
            let distance = ((f64::from(x) + 0.5 - cx) / rx).hypot((f64::from(y) + 0.5 - cy) / ry);
            let dark = 0.3 * (1.0 - distance).clamp(0.0, 1.0);
            let Rgba([r, g, b, _]) = image.get_pixel_mut(x, y);
            for channel in [r, g, b] {
                *channel = (f64::from(*channel) * (1.0 - dark)).round() as u8;
            }
        }
    }
}

/// Identity (specification §8): mean absolute difference of the colours between the placed and the
/// final foreground, over pixels that lie at least `erode` pixels inside the full alpha and are
/// not covered by a later object; 0..255, NaN when there is no such pixel.
pub fn identity_error(picture: &Picture, erode: i64) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for (index, object) in picture.placed.iter().enumerate() {
        let solid = |image: &RgbaImage, x: i64, y: i64| {
            let inside =
                x >= 0 && y >= 0 && x < i64::from(image.width()) && y < i64::from(image.height());
            inside && image.get_pixel(x as u32, y as u32).0[3] == 255
        };
        for (x, y, pixel) in object.image.enumerate_pixels() {
            let (x, y) = (i64::from(x), i64::from(y));
            let (left, top) = (x + object.at[0], y + object.at[1]);
            let eroded = (-erode..=erode)
                .all(|d| solid(&object.image, x + d, y) && solid(&object.image, x, y + d));
            let on_canvas = left >= 0
                && top >= 0
                && left < i64::from(picture.image.width())
                && top < i64::from(picture.image.height());
            let covered = picture.placed[index + 1..].iter().any(|later| {
                let (x, y) = (left - later.at[0], top - later.at[1]);
                // its shadow reaches a little beyond it
                x >= -i64::from(later.image.width())
                    && x < 2 * i64::from(later.image.width())
                    && y >= 0
                    && y < 2 * i64::from(later.image.height())
            });
            if !eroded || !on_canvas || covered {
                continue;
            }
            let drawn = picture.image.get_pixel(left as u32, top as u32);
            for (a, b) in drawn.0.iter().zip(&pixel.0).take(3) {
                sum += f64::from(a.abs_diff(*b));
                count += 1;
            }
        }
    }
    sum / count as f64
}
