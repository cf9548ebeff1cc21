//! Plots as SVG text: white ground, colours that colour-blind readers can tell apart (Okabe and
//! Ito), shapes and textures for those who see none, text as text. Labels may be any untrusted
//! text; long ones are cut with an ellipsis. Values that are not finite are left out.
//!
//! ```
//! use common::report::plot::{Bar, Labels, bars};
//! let labels = Labels { title: "Accuracy on rte", x: "accuracy", y: "" };
//! let svg = bars(labels, &[Bar { label: "majority vote".into(), value: 0.89, ..Bar::default() }]);
//! assert!(svg.starts_with("<svg"));
//! ```

mod axis;
mod bars;
mod canvas;
mod graph;
mod heatmap;
mod points;

use super::Role;

pub use bars::{Bar, Series, bars, grouped_bars, row_bars};
pub use graph::{GraphEdge, GraphNode, layered_graph};
pub use heatmap::heatmap;
pub use points::{Line, Point, lines, reliability, scatter};

/// Words around a plot. An empty one takes no room.
#[derive(Debug, Clone, Copy, Default)]
pub struct Labels<'a> {
    /// Above the plot.
    pub title: &'a str,
    /// Below the horizontal axis.
    pub x: &'a str,
    /// Beside the vertical axis.
    pub y: &'a str,
}

/// Colour as red, green, blue.
pub(crate) type Rgb = (u8, u8, u8);

/// Okabe and Ito's colours, ordered so that neighbours differ most.
const PALETTE: [Rgb; 7] = [
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (70, 70, 70),
];

/// Reference lines.
const AXIS_GREY: Rgb = (110, 110, 110);

/// Colour number `index`, repeating.
fn color(index: usize) -> Rgb {
    PALETTE[index % PALETTE.len()]
}

/// What tells series apart: a colour, and for readers without colours a number that decides the
/// shape of dots and the texture of bars.
#[derive(Debug, Clone, Copy)]
struct Mark {
    color: Rgb,
    number: usize,
}

/// Mark number `index`, repeating.
fn mark(index: usize) -> Mark {
    Mark { color: color(index), number: index }
}

/// The mark of a role: the same in every figure.
fn role_mark(role: Role) -> Mark {
    let (number, color) = match role {
        Role::Paper => (0, (0, 114, 178)),
        Role::Ours => (2, (213, 94, 0)),
        Role::Baseline => (1, (150, 150, 150)),
        Role::Ablation => (3, (86, 180, 233)),
        Role::Control => (4, (230, 159, 0)),
    };
    Mark { color, number }
}
