//! Horizontal bars with intervals, and groups of bars.

use super::axis::{Axis, title};
use super::canvas::{AXIS, Anchor, Canvas, GRID, INK, SMALL, TEXT, draw, fit, width};
use super::{Labels, Mark, mark, role_mark};
use crate::report::{Role, Row, number};

const WIDTH: f64 = 760.0;
const BAR: f64 = 18.0;
const GAP: f64 = 8.0;
const MAX_LABEL: f64 = 260.0;

/// One horizontal bar.
#[derive(Debug, Clone, Default)]
pub struct Bar {
    /// Words at the left.
    pub label: String,
    /// Length, in the axis' unit.
    pub value: f64,
    /// Ends of the whisker.
    pub ci95: Option<[f64; 2]>,
    /// Decides colour and texture.
    pub role: Role,
}

/// Horizontal bars from top to bottom, with 95 % whiskers and the value at the right. The axis
/// starts at 0 unless all values are close together; the axis label then says so. `labels.x`
/// names the unit.
pub fn bars(labels: Labels<'_>, bars: &[Bar]) -> String {
    let shown: Vec<&Bar> = bars.iter().filter(|bar| bar.value.is_finite()).collect();
    let ends = shown.iter().flat_map(|bar| {
        let [low, high] = bar.ci95.unwrap_or([bar.value; 2]);
        [bar.value, low, high]
    });
    let axis = Axis::for_bars(ends, 5);
    let mut roles: Vec<Role> = Vec::new();
    for bar in &shown {
        if !roles.contains(&bar.role) {
            roles.push(bar.role);
        }
    }
    roles.sort();
    let legend: Vec<Swatch<'_>> = if roles.len() < 2 {
        Vec::new()
    } else {
        roles.iter().map(|role| (role.name(), role_mark(*role))).collect()
    };
    let lanes: Vec<Lane<'_>> = shown
        .iter()
        .map(|bar| Lane {
            label: &bar.label,
            bars: vec![(bar.value, bar.ci95, role_mark(bar.role))],
        })
        .collect();
    draw_lanes(labels, &axis, &lanes, &legend)
}

/// [`bars`] of the measured rows of one dataset and metric, in their order, with the paper's own
/// number as a row of its own where it is comparable.
pub fn row_bars(labels: Labels<'_>, rows: &[&Row]) -> String {
    let mut shown = Vec::new();
    for row in rows {
        if let Some(value) = row.mean {
            shown.push(Bar { label: row.method.clone(), value, ci95: row.ci95, role: row.role });
        }
        if let Some(value) = row.paper_value.filter(|_| row.comparable) {
            let label = format!("{} (as published)", row.method);
            shown.push(Bar { label, value, ci95: None, role: row.role });
        }
    }
    bars(labels, &shown)
}

/// One colour of a grouped bar chart.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// One value per group; NaN leaves a gap.
    pub values: Vec<f64>,
}

/// Groups of horizontal bars, one bar per series in each. `labels.x` names the unit.
pub fn grouped_bars(labels: Labels<'_>, groups: &[String], series: &[Series]) -> String {
    let all = series.iter().flat_map(|series| series.values.iter().copied());
    let axis = Axis::for_bars(all, 5);
    let legend: Vec<Swatch<'_>> =
        series.iter().enumerate().map(|(at, series)| (series.name.as_str(), mark(at))).collect();
    let lanes: Vec<Lane<'_>> = groups
        .iter()
        .enumerate()
        .map(|(group, label)| {
            let value = |series: &Series| series.values.get(group).copied().unwrap_or(f64::NAN);
            let bars = series.iter().enumerate().map(|(at, s)| (value(s), None, mark(at)));
            Lane { label, bars: bars.collect() }
        })
        .collect();
    draw_lanes(labels, &axis, &lanes, &legend)
}

/// A label and the bars beside it.
struct Lane<'a> {
    label: &'a str,
    bars: Vec<(f64, Option<[f64; 2]>, Mark)>,
}

fn draw_lanes(
    labels: Labels<'_>,
    axis: &Axis,
    lanes: &[Lane<'_>],
    legend: &[Swatch<'_>],
) -> String {
    let single = lanes.iter().all(|lane| lane.bars.len() <= 1);
    let thickness = if single { BAR } else { 11.0 };
    let lane_height = |lane: &Lane<'_>| {
        lane.bars.len().max(1) as f64 * thickness + if single { GAP } else { 10.0 }
    };
    let widest = lanes.iter().map(|lane| width(lane.label, TEXT)).fold(40.0, f64::max);
    let left = widest.min(MAX_LABEL) + 22.0;
    let right = WIDTH - 76.0;
    let legend_rows = legend_rows(legend, WIDTH);
    let top = if labels.title.is_empty() { 12.0 } else { 42.0 } + legend_rows.len() as f64 * 22.0;
    let bottom = top + lanes.iter().map(lane_height).sum::<f64>().max(20.0);
    let height = bottom + if labels.x.is_empty() { 32.0 } else { 54.0 };
    draw((WIDTH, height), |canvas| {
        title(canvas, labels.title, WIDTH);
        let legend_top = top - legend_rows.len() as f64 * 22.0;
        draw_legend(canvas, &legend_rows, legend_top, |canvas, (x, y), mark| {
            canvas.bar((x - 6.0, y - 6.0), (x + 6.0, y + 6.0), mark);
        });
        let at = |value: f64| left + axis.place(value).clamp(0.0, 1.0) * (right - left);
        for (value, label) in axis.ticks() {
            canvas.line((at(value), top), (at(value), bottom), GRID, 1);
            canvas.text((at(value), bottom + 14.0), &label, SMALL, INK, Anchor::Middle);
        }
        let origin = axis.low.max(0.0).min(axis.high);
        let mut y = top + if single { GAP } else { 10.0 } / 2.0;
        for lane in lanes {
            let middle = y + lane.bars.len().max(1) as f64 * thickness / 2.0;
            let label = fit(lane.label, TEXT, MAX_LABEL);
            canvas.text((left - 8.0, middle), &label, TEXT, INK, Anchor::Right);
            for (row, (value, ci95, mark)) in lane.bars.iter().enumerate() {
                if !value.is_finite() {
                    continue;
                }
                let bar_top = y + row as f64 * thickness;
                let center = bar_top + thickness / 2.0;
                let bottom = bar_top + thickness - 1.0;
                canvas.bar((at(origin), bar_top + 1.0), (at(*value), bottom), *mark);
                let mut end = at(*value).max(at(origin));
                if let Some([low, high]) = ci95 {
                    whisker(canvas, at(*low), at(*high), center);
                    end = end.max(at(*high));
                }
                let size = if single { SMALL } else { 10.0 };
                canvas.text((end + 6.0, center), &number(*value), size, INK, Anchor::Left);
            }
            y += lane_height(lane);
        }
        canvas.line((at(origin), top), (at(origin), bottom), AXIS, 1);
        let cut = if axis.low > 0.0 { " (axis does not start at 0)" } else { "" };
        let words = if labels.x.is_empty() { String::new() } else { format!("{}{cut}", labels.x) };
        canvas.text(((left + right) / 2.0, height - 16.0), &words, TEXT, INK, Anchor::Middle);
    })
}

fn whisker(canvas: &mut Canvas<'_>, low: f64, high: f64, y: f64) {
    canvas.line((low, y), (high, y), INK, 1);
    for end in [low, high] {
        canvas.line((end, y - 4.0), (end, y + 4.0), INK, 1);
    }
}

/// A legend's entry.
pub(super) type Swatch<'a> = (&'a str, Mark);

/// The entries with their left ends, broken into rows of `total` pixels.
pub(super) fn legend_rows<'a>(legend: &[Swatch<'a>], total: f64) -> Vec<Vec<(f64, Swatch<'a>)>> {
    let mut rows: Vec<Vec<(f64, Swatch<'_>)>> = Vec::new();
    let mut x = f64::INFINITY;
    for &(name, mark) in legend {
        let room = width(&fit(name, TEXT, MAX_LABEL), TEXT) + 34.0;
        if x + room > total - 16.0 {
            rows.push(Vec::new());
            x = 16.0;
        }
        if let Some(row) = rows.last_mut() {
            row.push((x, (name, mark)));
        }
        x += room;
    }
    rows
}

/// Draws the entries, with `swatch` around a middle.
pub(super) fn draw_legend(
    canvas: &mut Canvas<'_>,
    rows: &[Vec<(f64, Swatch<'_>)>],
    top: f64,
    swatch: impl Fn(&mut Canvas<'_>, (f64, f64), Mark),
) {
    for (row, entries) in rows.iter().enumerate() {
        let y = top + row as f64 * 22.0 + 8.0;
        for &(x, (name, mark)) in entries {
            swatch(canvas, (x + 6.0, y), mark);
            canvas.text((x + 18.0, y), &fit(name, TEXT, MAX_LABEL), TEXT, INK, Anchor::Left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_bar_is_drawn() {
        let bar = |value: f64, role| Bar { label: "m".into(), value, ci95: None, role };
        let shown = [
            bar(0.5, Role::Ours),
            bar(f64::NAN, Role::Paper),
            Bar { ci95: Some([0.6, 0.8]), ..bar(0.7, Role::Baseline) },
        ];
        let svg = bars(Labels::default(), &shown);
        // The ground, two bars, two legend entries.
        assert_eq!(svg.matches("<rect").count(), 5, "{svg}");
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn nothing_to_draw_is_still_a_picture() {
        assert!(bars(Labels::default(), &[]).trim_end().ends_with("</svg>"));
        assert!(grouped_bars(Labels::default(), &[], &[]).trim_end().ends_with("</svg>"));
    }
}
