//! Matrices as coloured cells.

use super::axis::title;
use super::canvas::{Anchor, INK, SMALL, TEXT, draw, fit, width};
use super::{Labels, Rgb};

/// A row of cells per row label, coloured from white (lowest finite value) to blue (highest), the
/// numbers in the cells when there is room for all. NaN cells stay grey.
pub fn heatmap(
    labels: Labels<'_>,
    rows: &[String],
    columns: &[String],
    values: &[Vec<f64>],
) -> String {
    let finite = || values.iter().flatten().copied().filter(|value| value.is_finite());
    let low = finite().fold(f64::INFINITY, f64::min);
    let high = finite().fold(f64::NEG_INFINITY, f64::max);
    let cell = (640.0 / columns.len().max(1) as f64).clamp(14.0, 64.0);
    let height = cell.min(30.0);
    let left = rows.iter().map(|row| width(row, TEXT)).fold(20.0, f64::max).min(220.0)
        + if labels.y.is_empty() { 22.0 } else { 44.0 };
    let slanted = columns.iter().map(|column| width(column, SMALL)).fold(0.0, f64::max);
    let upright = slanted > cell - 4.0;
    let head = if upright { slanted.min(160.0) + 10.0 } else { 24.0 };
    let top = if labels.title.is_empty() { 8.0 } else { 40.0 } + head;
    let right = left + cell * columns.len() as f64;
    let bottom = top + height * rows.len() as f64;
    let integers = finite().all(|value| value == value.round());
    let digits = if integers { 0 } else { 2 };
    let cell_text = |value: f64| format!("{value:.digits$}");
    let roomy = height >= 16.0 && finite().all(|value| width(&cell_text(value), SMALL) < cell);
    let size = (right.max(300.0) + 24.0, bottom + if labels.x.is_empty() { 16.0 } else { 40.0 });
    draw(size, |canvas| {
        title(canvas, labels.title, size.0);
        for (index, column) in columns.iter().enumerate() {
            let x = left + (index as f64 + 0.5) * cell;
            if upright {
                let text = fit(column, SMALL, 160.0);
                let middle = top - 6.0 - width(&text, SMALL) / 2.0;
                canvas.text((x, middle), &text, SMALL, INK, Anchor::Upwards);
            } else {
                canvas.text((x, top - 10.0), column, SMALL, INK, Anchor::Middle);
            }
        }
        for (row, label) in rows.iter().enumerate() {
            let y = top + row as f64 * height;
            let text = fit(label, TEXT, 220.0);
            canvas.text((left - 8.0, y + height / 2.0), &text, TEXT, INK, Anchor::Right);
            for column in 0..columns.len() {
                let value =
                    values.get(row).and_then(|row| row.get(column)).copied().unwrap_or(f64::NAN);
                let share = if high > low { (value - low) / (high - low) } else { 0.5 };
                let x = left + column as f64 * cell;
                let fill = if value.is_finite() { shade(share) } else { (235, 235, 235) };
                canvas.rect((x, y), (x + cell - 1.0, y + height - 1.0), fill, 1.0);
                if value.is_finite() && roomy {
                    let ink = if share > 0.6 { (255, 255, 255) } else { INK };
                    let at = (x + cell / 2.0, y + height / 2.0);
                    canvas.text(at, &cell_text(value), SMALL, ink, Anchor::Middle);
                }
            }
        }
        canvas.text(((left + right) / 2.0, size.1 - 16.0), labels.x, TEXT, INK, Anchor::Middle);
        canvas.text((16.0, (top + bottom) / 2.0), labels.y, TEXT, INK, Anchor::Upwards);
    })
}

/// White to the palette's blue, by share 0 to 1.
fn shade(share: f64) -> Rgb {
    let mix = |to: f64| (255.0 + (to - 255.0) * share.clamp(0.0, 1.0)).round() as u8;
    (mix(0.0), mix(90.0), mix(160.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ragged_and_missing_cells_are_grey() {
        let names = |count: usize| (0..count).map(|i| i.to_string()).collect::<Vec<_>>();
        let svg =
            heatmap(Labels::default(), &names(2), &names(2), &[vec![0.0, 1.0], vec![f64::NAN]]);
        assert_eq!(svg.matches("#EBEBEB").count(), 2);
        assert_eq!(svg.matches("#005AA0").count(), 1);
    }
}
