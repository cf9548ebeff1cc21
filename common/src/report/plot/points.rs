//! Lines, scatter and reliability diagrams.

use super::axis::{Axis, Frame};
use super::bars::{Swatch, draw_legend, legend_rows};
use super::canvas::{Anchor, Canvas, INK, SMALL, draw, fit, width};
use super::{AXIS_GREY, Labels, mark};
use crate::metrics::ReliabilityBin;

const WIDE: (f64, f64) = (760.0, 440.0);
/// For two axes over the same range.
const SQUARE: (f64, f64) = (580.0, 540.0);

/// One line of [`lines`].
#[derive(Debug, Clone, Default)]
pub struct Line {
    /// Name in the legend.
    pub name: String,
    /// Points from left to right; a NaN breaks the line.
    pub points: Vec<(f64, f64)>,
}

/// Most dots of a line.
const DOTS: usize = 40;

/// Lines over a common axis, with dots at the points, or at some of them where there are many.
/// Several lines get a legend.
pub fn lines(labels: Labels<'_>, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let finite = || points().filter(|(x, y)| x.is_finite() && y.is_finite());
    let axes = (Axis::over(finite().map(|p| p.0), 7), Axis::over(finite().map(|p| p.1), 5));
    let names: Vec<Swatch<'_>> =
        lines.iter().enumerate().map(|(at, line)| (line.name.as_str(), mark(at))).collect();
    let names = if lines.len() > 1 { names } else { Vec::new() };
    framed(WIDE, labels, axes, &names, |canvas, frame| {
        for (index, line) in lines.iter().enumerate() {
            let whole = |(x, y): &(f64, f64)| x.is_finite() && y.is_finite();
            for part in line.points.split(|point| !whole(point)) {
                let part: Vec<(f64, f64)> = part.iter().map(|&(x, y)| frame.at(x, y)).collect();
                canvas.path(&part, mark(index).color, 2);
                // dots of several lines at different places
                let step = if part.len() > DOTS { part.len().div_ceil(8) } else { 1 };
                let first = (index * step / lines.len()).min(step - 1);
                part.iter().skip(first).step_by(step).for_each(|&at| {
                    canvas.dot(at, 3.0, mark(index));
                });
            }
        }
    })
}

/// One dot of [`scatter`].
#[derive(Debug, Clone, Default)]
pub struct Point {
    /// Horizontal value.
    pub x: f64,
    /// Vertical value.
    pub y: f64,
    /// Words beside the dot; left out where they would cover others.
    pub label: String,
    /// Decides colour, shape and legend entry; one group needs no legend.
    pub group: String,
}

/// Dots with labels. With `identity` both axes cover the same range and a dashed line marks y = x.
pub fn scatter(labels: Labels<'_>, points: &[Point], identity: bool) -> String {
    let shown: Vec<&Point> = points.iter().filter(|p| p.x.is_finite() && p.y.is_finite()).collect();
    let (xs, ys) = (shown.iter().map(|p| p.x), shown.iter().map(|p| p.y));
    let axes = if identity {
        let both = Axis::over(xs.chain(ys), 6);
        (both.clone(), both)
    } else {
        (Axis::over(xs, 7), Axis::over(ys, 5))
    };
    let mut groups: Vec<&str> = Vec::new();
    for point in &shown {
        if !groups.contains(&point.group.as_str()) {
            groups.push(&point.group);
        }
    }
    let legend: Vec<Swatch<'_>> =
        groups.iter().enumerate().map(|(at, group)| (*group, mark(at))).collect();
    let legend = if groups.len() > 1 { legend } else { Vec::new() };
    let size = if identity { SQUARE } else { WIDE };
    framed(size, labels, axes, &legend, |canvas, frame| {
        if identity {
            diagonal(canvas, frame);
        }
        let dots: Vec<(f64, f64)> = shown.iter().map(|p| frame.at(p.x, p.y)).collect();
        let mut taken: Vec<[f64; 4]> =
            dots.iter().map(|(x, y)| [x - 5.0, y - 5.0, x + 5.0, y + 5.0]).collect();
        for (point, &at) in shown.iter().zip(&dots) {
            let group = groups.iter().position(|group| *group == point.group).unwrap_or(0);
            canvas.dot(at, 4.0, mark(group));
        }
        for (point, &at) in shown.iter().zip(&dots) {
            place_label(canvas, frame, at, &point.label, &mut taken);
        }
    })
}

/// Puts a label right, left, above or below its dot, wherever it covers nothing; or not at all.
fn place_label(
    canvas: &mut Canvas<'_>,
    frame: &Frame,
    (x, y): (f64, f64),
    label: &str,
    taken: &mut Vec<[f64; 4]>,
) {
    let label = fit(label, SMALL, 180.0);
    if label.trim().is_empty() {
        return;
    }
    let (wide, high) = (width(&label, SMALL), SMALL + 2.0);
    let [left, top, right, bottom] = frame.edges();
    let places = [
        ((x + 8.0, y), Anchor::Left, x + 8.0),
        ((x - 8.0, y), Anchor::Right, x - 8.0 - wide),
        ((x, y - 13.0), Anchor::Middle, x - wide / 2.0),
        ((x, y + 14.0), Anchor::Middle, x - wide / 2.0),
    ];
    for (at, anchor, start) in places {
        let area = [start, at.1 - high / 2.0, start + wide, at.1 + high / 2.0];
        let inside =
            area[0] > left && area[2] < right + 20.0 && area[1] > top - 8.0 && area[3] < bottom;
        let free = taken.iter().all(|other| {
            area[2] < other[0] || other[2] < area[0] || area[3] < other[1] || other[3] < area[1]
        });
        if inside && free {
            canvas.text(at, &label, SMALL, INK, anchor);
            taken.push(area);
            return;
        }
    }
}

/// Reliability diagram: mean confidence against observed frequency of each bin, the dashed line is
/// perfect calibration; the area of a dot grows with the items in its bin. One entry per method.
pub fn reliability(labels: Labels<'_>, methods: &[(String, Vec<ReliabilityBin>)]) -> String {
    let unit = || Axis::over([0.0, 1.0].into_iter(), 5);
    let legend: Vec<Swatch<'_>> =
        methods.iter().enumerate().map(|(at, (name, _))| (name.as_str(), mark(at))).collect();
    let labels = Labels {
        x: if labels.x.is_empty() { "mean confidence" } else { labels.x },
        y: if labels.y.is_empty() { "observed frequency" } else { labels.y },
        ..labels
    };
    framed(SQUARE, labels, (unit(), unit()), &legend, |canvas, frame| {
        diagonal(canvas, frame);
        for (index, (_, bins)) in methods.iter().enumerate() {
            let total: usize = bins.iter().map(|bin| bin.count).sum();
            let filled: Vec<&ReliabilityBin> = bins.iter().filter(|bin| bin.count > 0).collect();
            let path: Vec<(f64, f64)> =
                filled.iter().map(|bin| frame.at(bin.confidence, bin.frequency)).collect();
            canvas.path(&path, mark(index).color, 1);
            for (bin, at) in filled.iter().zip(path) {
                let share = bin.count as f64 / total as f64;
                canvas.dot(at, (3.0 + 12.0 * share.sqrt()).round(), mark(index));
            }
        }
    })
}

fn diagonal(canvas: &mut Canvas<'_>, frame: &Frame) {
    let low = frame.x.low.max(frame.y.low);
    let high = frame.x.high.min(frame.y.high);
    canvas.dashed(frame.at(low, low), frame.at(high, high), AXIS_GREY);
}

/// Frame and legend around what `paint` draws.
fn framed(
    size: (f64, f64),
    labels: Labels<'_>,
    axes: (Axis, Axis),
    legend: &[Swatch<'_>],
    paint: impl FnOnce(&mut Canvas<'_>, &Frame),
) -> String {
    let rows = legend_rows(legend, size.0);
    let legend_height = rows.len() as f64 * 22.0;
    let size = (size.0, size.1 + legend_height);
    draw(size, |canvas| {
        let frame = Frame::draw(canvas, size, legend_height, labels, axes);
        draw_legend(
            canvas,
            &rows,
            if labels.title.is_empty() { 8.0 } else { 38.0 },
            |canvas, at, mark| {
                canvas.dot(at, 5.0, mark);
            },
        );
        paint(canvas, &frame);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_breaks_a_line() {
        let points = vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 1.0), (3.0, 2.0)];
        let svg = lines(Labels::default(), &[Line { name: "loss".into(), points }]);
        assert_eq!((svg.matches("<polyline").count(), svg.matches("<circle").count()), (2, 3));
    }

    #[test]
    fn crowded_labels_are_left_out_and_dots_never() {
        let point = |x: f64, y: f64, label: String| Point { x, y, label, group: String::new() };
        // Two unlabelled corners fix the axes, so that the others fall on one spot.
        let mut points = vec![point(0.0, 0.0, String::new()), point(1.0, 1.0, String::new())];
        points
            .extend((0..50).map(|i| point(0.5 + f64::from(i) * 1e-6, 0.5, format!("worker {i}"))));
        let svg = scatter(Labels::default(), &points, true);
        assert_eq!(svg.matches("<circle").count(), 52);
        let shown = svg.matches("worker").count();
        assert!((1..=4).contains(&shown), "{shown} labels around one spot");
    }

    #[test]
    fn empty_bins_have_no_dot() {
        let bins = crate::metrics::reliability_bins(&[true, false], &[0.9, 0.1], 15);
        let svg = reliability(Labels::default(), &[("IWMV".into(), bins)]);
        // two bins and the legend
        assert_eq!(svg.matches("<circle").count(), 3);
    }
}
