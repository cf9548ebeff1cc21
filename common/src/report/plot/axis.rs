//! Scales with round ticks, and the frame of a plot with two number axes.

use super::Labels;
use super::canvas::{AXIS, Anchor, Canvas, GRID, INK, SMALL, TEXT, TITLE, fit, width};

/// Number axis with ticks at multiples of 1, 2 or 5 times a power of ten.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    pub(super) low: f64,
    pub(super) high: f64,
    step: f64,
}

impl Axis {
    /// Covers all finite `values` with about `ticks` ticks and ends on ticks.
    pub(super) fn over(values: impl Iterator<Item = f64>, ticks: usize) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite()) {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if high - low < 1e-12 * high.abs().max(1e-300) || high == low {
            let room = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
            (low, high) = (low - room, high + room);
        }
        let step = round_step((high - low) / ticks.max(1) as f64);
        // The nudge keeps an end that is a tick up to rounding.
        let low = ((low / step + 1e-9).floor()) * step;
        let high = ((high / step - 1e-9).ceil()) * step;
        Self { low, high, step }
    }

    /// Like [`Axis::over`] for bars: starts at 0 unless the values are close together far from 0.
    pub(super) fn for_bars(values: impl Iterator<Item = f64> + Clone, ticks: usize) -> Self {
        let finite = values.clone().filter(|value| value.is_finite());
        let low = finite.clone().fold(f64::INFINITY, f64::min);
        let high = finite.fold(f64::NEG_INFINITY, f64::max);
        let close = low > 0.0 && high - low < 0.35 * high;
        if close {
            // Room on the left, so that the shortest bar stays visible.
            let room = (high - low).max(high * 0.02) * 0.25;
            Self::over(values.chain([low - room]), ticks)
        } else {
            Self::over(values.chain([0.0]), ticks)
        }
    }

    /// Place of `value` between 0 (low end) and 1 (high end).
    pub(super) fn place(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    /// Tick values and their labels.
    pub(super) fn ticks(&self) -> Vec<(f64, String)> {
        let count = ((self.high - self.low) / self.step).round() as usize;
        let digits = (-self.step.log10().floor()).clamp(0.0, 12.0) as usize;
        let largest = self.low.abs().max(self.high.abs());
        (0..=count)
            .map(|index| {
                let value = self.low + index as f64 * self.step;
                let value = if value.abs() < self.step * 1e-6 { 0.0 } else { value };
                let label = if !(1e-4..1e6).contains(&largest) {
                    format!("{value:.1e}")
                } else {
                    format!("{value:.digits$}")
                };
                (value, label)
            })
            .collect()
    }
}

fn round_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    let factor = rough / power;
    let round = if factor <= 1.0 {
        1.0
    } else if factor <= 2.0 {
        2.0
    } else if factor <= 5.0 {
        5.0
    } else {
        10.0
    };
    round * power
}

/// Plot area with both axes drawn.
pub(super) struct Frame {
    pub(super) x: Axis,
    pub(super) y: Axis,
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

impl Frame {
    /// Draws title, grid, ticks and axis labels into `size` pixels, `legend` of which below the
    /// title stay free.
    pub(super) fn draw(
        canvas: &mut Canvas<'_>,
        size: (f64, f64),
        legend: f64,
        labels: Labels<'_>,
        (x, y): (Axis, Axis),
    ) -> Self {
        let ticks = y.ticks();
        let tick_room =
            ticks.iter().map(|(_, label)| width(label, SMALL)).fold(0.0, f64::max) + 12.0;
        let frame = Self {
            left: tick_room + if labels.y.is_empty() { 12.0 } else { 30.0 },
            top: legend + if labels.title.is_empty() { 16.0 } else { 44.0 },
            right: size.0 - 24.0,
            bottom: size.1 - if labels.x.is_empty() { 32.0 } else { 54.0 },
            x,
            y,
        };
        title(canvas, labels.title, size.0);
        for (value, label) in frame.y.ticks() {
            let (_, at) = frame.at(frame.x.low, value);
            canvas.line((frame.left, at), (frame.right, at), GRID, 1);
            canvas.text((frame.left - 6.0, at), &label, SMALL, INK, Anchor::Right);
        }
        for (value, label) in frame.x.ticks() {
            let (at, _) = frame.at(value, frame.y.low);
            canvas.line((at, frame.top), (at, frame.bottom), GRID, 1);
            canvas.text((at, frame.bottom + 14.0), &label, SMALL, INK, Anchor::Middle);
        }
        canvas.line((frame.left, frame.bottom), (frame.right, frame.bottom), AXIS, 1);
        canvas.line((frame.left, frame.top), (frame.left, frame.bottom), AXIS, 1);
        let middle = (frame.left + frame.right) / 2.0;
        canvas.text((middle, size.1 - 16.0), labels.x, TEXT, INK, Anchor::Middle);
        canvas.text((16.0, (frame.top + frame.bottom) / 2.0), labels.y, TEXT, INK, Anchor::Upwards);
        frame
    }

    /// Pixel of a point.
    pub(super) fn at(&self, x: f64, y: f64) -> (f64, f64) {
        (
            self.left + self.x.place(x) * (self.right - self.left),
            self.bottom - self.y.place(y) * (self.bottom - self.top),
        )
    }

    /// Left, top, right and bottom edge in pixels.
    pub(super) fn edges(&self) -> [f64; 4] {
        [self.left, self.top, self.right, self.bottom]
    }
}

/// The title, top left.
pub(super) fn title(canvas: &mut Canvas<'_>, text: &str, room: f64) {
    canvas.bold((14.0, 20.0), &fit(text, TITLE, room * 0.93), TITLE, Anchor::Left);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &[f64]) -> Vec<String> {
        Axis::over(values.iter().copied(), 5).ticks().into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        assert_eq!(labels(&[0.0, 1.0]), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&[0.871, 0.903]), ["0.87", "0.88", "0.89", "0.90", "0.91"]);
        assert_eq!(labels(&[-3.0, 7.0]), ["-4", "-2", "0", "2", "4", "6", "8"]);
    }

    #[test]
    fn odd_input_still_gives_an_axis() {
        for values in
            [&[][..], &[f64::NAN], &[0.5], &[0.0], &[-2.0, -2.0], &[1e300, -1e300], &[1e-300]]
        {
            let axis = Axis::over(values.iter().copied(), 5);
            assert!(axis.low < axis.high, "{values:?}: {axis:?}");
            assert!(axis.ticks().len() < 20, "{values:?}");
        }
    }

    #[test]
    fn bars_start_at_zero_unless_close() {
        assert_eq!(Axis::for_bars([0.2, 0.9].into_iter(), 5).low, 0.0);
        assert!(Axis::for_bars([0.88, 0.9].into_iter(), 5).low > 0.8);
        assert!(Axis::for_bars([-0.5, 0.9].into_iter(), 5).low <= -0.5);
    }
}
