//! Drawing in pixels on plotters' SVG backend.

use plotters::prelude::{
    DrawingBackend, FontTransform, IntoFont, RGBColor, SVGBackend, ShapeStyle,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontStyle, TextStyle};

use super::{Mark, Rgb};

/// Text colour.
pub(super) const INK: Rgb = (40, 40, 40);
/// Axes and ticks.
pub(super) const AXIS: Rgb = (110, 110, 110);
/// Grid lines.
pub(super) const GRID: Rgb = (225, 225, 225);
/// Size of titles.
pub(super) const TITLE: f64 = 16.0;
/// Size of axis labels and legends.
pub(super) const TEXT: f64 = 13.0;
/// Size of tick labels and annotations.
pub(super) const SMALL: f64 = 12.0;

/// Where a text's position lies in it.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    /// Left end, vertically centred.
    Left,
    /// Middle.
    Middle,
    /// Right end, vertically centred.
    Right,
    /// Middle, reading upwards.
    Upwards,
}

/// A white sheet of pixels, origin top left.
pub(super) struct Canvas<'a> {
    backend: SVGBackend<'a>,
}

/// Draws with `paint` on a new sheet of `size` pixels and returns its SVG.
pub(super) fn draw(size: (f64, f64), paint: impl FnOnce(&mut Canvas<'_>)) -> String {
    let mut svg = String::new();
    let pixels = (size.0.ceil() as u32, size.1.ceil() as u32);
    let mut canvas = Canvas { backend: SVGBackend::with_string(&mut svg, pixels) };
    canvas.rect((0.0, 0.0), (size.0.ceil(), size.1.ceil()), (255, 255, 255), 1.0);
    paint(&mut canvas);
    done(canvas.backend.present());
    drop(canvas);
    svg
}

/// The backend writes to a string, which can't fail; its error type is that of files.
fn done<E: std::error::Error>(outcome: Result<(), E>) {
    if let Err(error) = outcome {
        tracing::error!("plot: {error}");
    }
}

fn whole((x, y): (f64, f64)) -> (i32, i32) {
    (x.round() as i32, y.round() as i32)
}

impl Canvas<'_> {
    /// A filled rectangle between two corners.
    pub(super) fn rect(&mut self, a: (f64, f64), b: (f64, f64), (r, g, blue): Rgb, alpha: f64) {
        let (low, high) = ((a.0.min(b.0), a.1.min(b.1)), (a.0.max(b.0), a.1.max(b.1)));
        let style = RGBColor(r, g, blue).mix(alpha);
        done(self.backend.draw_rect(whole(low), whole(high), &style, true));
    }

    /// A line of `width` pixels.
    pub(super) fn line(&mut self, a: (f64, f64), b: (f64, f64), color: Rgb, width: u32) {
        done(self.backend.draw_line(whole(a), whole(b), &stroke(color, width)));
    }

    /// A line of dashes.
    pub(super) fn dashed(&mut self, a: (f64, f64), b: (f64, f64), color: Rgb) {
        let length = (b.0 - a.0).hypot(b.1 - a.1);
        let at = |distance: f64| {
            let share = (distance / length).min(1.0);
            (a.0 + (b.0 - a.0) * share, a.1 + (b.1 - a.1) * share)
        };
        let mut from = 0.0;
        while from < length {
            self.line(at(from), at(from + 5.0), color, 1);
            from += 10.0;
        }
    }

    /// A line through several points.
    pub(super) fn path(&mut self, points: &[(f64, f64)], color: Rgb, width: u32) {
        let points = points.iter().copied().map(whole);
        done(self.backend.draw_path(points, &stroke(color, width)));
    }

    /// A dot of about `radius` pixels in the shape of its mark: circle, square, triangle, diamond,
    /// triangle upside down, cross, plus.
    pub(super) fn dot(&mut self, at: (f64, f64), radius: f64, mark: Mark) {
        let ((r, g, b), size) = (mark.color, 1.25 * radius);
        let corners: &[(f64, f64)] = match mark.number % 7 {
            1 => &[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
            2 => &[(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)],
            3 => &[(0.0, -1.2), (1.2, 0.0), (0.0, 1.2), (-1.2, 0.0)],
            4 => &[(0.0, 1.0), (1.0, -0.8), (-1.0, -0.8)],
            number @ (5 | 6) => {
                let ends = if number == 5 {
                    [(-0.9, -0.9), (0.9, 0.9), (-0.9, 0.9), (0.9, -0.9)]
                } else {
                    [(-1.1, 0.0), (1.1, 0.0), (0.0, -1.1), (0.0, 1.1)]
                };
                let [a, b, c, d] = ends.map(|(x, y)| (at.0 + size * x, at.1 + size * y));
                self.line(a, b, mark.color, 2);
                return self.line(c, d, mark.color, 2);
            }
            _ => {
                let style = RGBColor(r, g, b);
                return done(self.backend.draw_circle(whole(at), radius as u32, &style, true));
            }
        };
        let place = |&(x, y): &(f64, f64)| whole((at.0 + size * x, at.1 + size * y));
        done(self.backend.fill_polygon(corners.iter().map(place), &RGBColor(r, g, b)));
    }

    /// A bar between two corners in the texture of its mark: full, light with a border, full with a
    /// white line along it, light with a border and a line, full with two white lines.
    pub(super) fn bar(&mut self, a: (f64, f64), b: (f64, f64), mark: Mark) {
        let light = matches!(mark.number % 5, 1 | 3);
        self.rect(a, b, mark.color, if light { 0.35 } else { 1.0 });
        if light {
            self.path(&[a, (b.0, a.1), b, (a.0, b.1), a], mark.color, 1);
        }
        let (ink, lines): (Rgb, &[f64]) = match mark.number % 5 {
            2 => ((255, 255, 255), &[0.5]),
            3 => (mark.color, &[0.5]),
            4 => ((255, 255, 255), &[0.3, 0.7]),
            _ => (mark.color, &[]),
        };
        for share in lines {
            let y = a.1 + share * (b.1 - a.1);
            self.line((a.0, y), (b.0, y), ink, 1);
        }
    }

    /// One line of text.
    pub(super) fn text(&mut self, at: (f64, f64), text: &str, size: f64, ink: Rgb, anchor: Anchor) {
        self.styled(at, text, size, ink, anchor, FontStyle::Normal);
    }

    /// One line of bold text.
    pub(super) fn bold(&mut self, at: (f64, f64), text: &str, size: f64, anchor: Anchor) {
        self.styled(at, text, size, INK, anchor, FontStyle::Bold);
    }

    fn styled(
        &mut self,
        at: (f64, f64),
        text: &str,
        size: f64,
        (r, g, b): Rgb,
        anchor: Anchor,
        style: FontStyle,
    ) {
        let text: String =
            text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
        if text.trim().is_empty() {
            return;
        }
        // plotters' SVG backend divides the size by 1.24.
        let mut font = ("sans-serif", size * 1.24).into_font().style(style);
        if matches!(anchor, Anchor::Upwards) {
            font = font.transform(FontTransform::Rotate270);
        }
        let across = match anchor {
            Anchor::Left => HPos::Left,
            Anchor::Middle | Anchor::Upwards => HPos::Center,
            Anchor::Right => HPos::Right,
        };
        let ink = RGBColor(r, g, b);
        let style = TextStyle::from(font).color(&ink).pos(Pos::new(across, VPos::Center));
        done(self.backend.draw_text(&text, &style, whole(at)));
    }
}

fn stroke((r, g, b): Rgb, width: u32) -> ShapeStyle {
    RGBColor(r, g, b).stroke_width(width)
}

/// Estimated width of `text` in pixels, on the wide side, so that it holds for most sans-serif
/// fonts.
pub(super) fn width(text: &str, size: f64) -> f64 {
    let ems: f64 = text
        .chars()
        .map(|letter| match letter {
            'i' | 'j' | 'l' | 't' | 'f' | 'r' | '.' | ',' | ':' | ';' | '|' | '\'' | ' ' | '('
            | ')' | '[' | ']' | 'I' => 0.38,
            'm' | 'w' | 'M' | 'W' | '@' | '%' => 0.96,
            letter if letter.is_uppercase() => 0.72,
            letter if letter.is_ascii() => 0.62,
            letter if (letter as u32) < 0x2E80 => 0.7,
            // Ideographs and emoji are as wide as high.
            _ => 1.05,
        })
        .sum();
    ems * size
}

/// `text`, cut with an ellipsis to fit `room` pixels.
pub(super) fn fit(text: &str, size: f64, room: f64) -> String {
    if width(text, size) <= room {
        return text.to_owned();
    }
    let mut cut = String::new();
    for letter in text.chars() {
        cut.push(letter);
        if width(&cut, size) + size > room {
            cut.pop();
            break;
        }
    }
    cut + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_labels_are_cut() {
        assert_eq!(fit("short", 12.0, 100.0), "short");
        let cut = fit(&"long ".repeat(50), 12.0, 100.0);
        assert!(cut.ends_with('…') && width(&cut, 12.0) <= 106.0, "{cut}");
    }

    #[test]
    fn marks_differ_without_their_colours() {
        let drawn = |number: usize, bar: bool| {
            let mark = Mark { color: (0, 0, 0), number };
            draw((40.0, 40.0), |canvas| match bar {
                true => canvas.bar((5.0, 5.0), (35.0, 16.0), mark),
                false => canvas.dot((20.0, 20.0), 4.0, mark),
            })
        };
        let dots: std::collections::BTreeSet<String> = (0..7).map(|at| drawn(at, false)).collect();
        let bars: std::collections::BTreeSet<String> = (0..5).map(|at| drawn(at, true)).collect();
        assert_eq!((dots.len(), bars.len()), (7, 5));
    }

    #[test]
    fn labels_are_escaped() {
        let svg = draw((50.0, 50.0), |canvas| {
            canvas.text((1.0, 1.0), "<script>\u{0}\n\"&", 12.0, INK, Anchor::Left);
        });
        assert!(svg.contains("&lt;script&gt;  &quot;&amp;"), "{svg}");
    }
}
