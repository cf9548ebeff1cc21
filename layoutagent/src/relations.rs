//! The relations of a scene graph and their symbolic checker (specification §3.3).
//!
//! The first 13 are Diffusion-CCSP's qualitative constraints with its thresholds; the others are
//! ours, for pictures. A relation holds or not; the checker is the judge of every solver.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::layout::{Edge, Frame, Problem, Rect};

/// Gap below which objects are close.
pub const TOUCHING: f64 = 0.1;
/// Gap below which objects are neighbours for left-of and top-of.
pub const CLOSENESS: f64 = 0.3;
/// Gap from which objects are away from each other.
pub const FARNESS: f64 = 0.5;
/// Largest difference of centres of aligned objects.
pub const ALIGNMENT: f64 = 0.05;
/// Share of the smaller side that two ranges of neighbours must have in common.
pub const RANGE_OVERLAP: f64 = 0.6;
/// Smallest gap of neighbours: they may overlap by this much.
pub const SLACK: f64 = -0.05;
/// Largest distance of a centred object from the centre.
pub const CENTER: f64 = 0.3;
/// `on`: largest distance between the lower edge and the upper edge it stands on.
pub const SUPPORT: f64 = 0.05;
/// `on`: share of the upper object's width that is supported.
pub const SUPPORTED: f64 = 0.8;
/// `in-front-of`: share of the object behind that may be hidden.
pub const HIDDEN: f64 = 0.6;

/// A kind of relation. The order of the first 13 is that of the reference's networks.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Relation {
    /// The box is inside the frame.
    In,
    /// The centre is within 0.3 of the frame's centre.
    CenterIn,
    /// The right edge is left of the frame's centre.
    LeftIn,
    /// The left edge is right of the frame's centre.
    RightIn,
    /// The lower edge is above the frame's centre.
    TopIn,
    /// The upper edge is below the frame's centre.
    BottomIn,
    /// No overlap ("collision-free").
    Cfree,
    /// a is the left neighbour of b: y-ranges overlap, gap from −0.05 to 0.3.
    LeftOf,
    /// a is the upper neighbour of b: x-ranges overlap, gap from −0.05 to 0.3.
    TopOf,
    /// Neighbours in some direction with a gap below 0.1.
    CloseTo,
    /// No neighbours in any direction at a gap below 0.5.
    AwayFrom,
    /// Centres at the same height within 0.05.
    HAligned,
    /// Centres above each other within 0.05.
    VAligned,
    /// Ours: a stands on b: a's lower edge on b's upper edge within 0.05, at least 0.8 of a's width
    /// supported.
    On,
    /// Ours: a is inside b.
    Inside,
    /// Ours: a overlaps b, stands lower in the picture and hides at most 0.6 of it; a is drawn later.
    InFrontOf,
    /// Ours: lower edges at the same height within 0.05.
    SameBaseline,
    /// Ours: from b's centre, a lies in the quarter of directions around "left" (NSR-1K's metric).
    Leftward,
    /// Ours: from b's centre, a lies in the quarter of directions around "up" (NSR-1K's metric).
    Upward,
    /// Ours: a lies in the left or right quarter of b's directions, with a gap below 0.5.
    Beside,
}

use Relation::{
    AwayFrom, Beside, BottomIn, CenterIn, Cfree, CloseTo, HAligned, In, InFrontOf, Inside, LeftIn,
    LeftOf, Leftward, On, RightIn, SameBaseline, TopIn, TopOf, Upward, VAligned,
};

/// The relations with their names, in the order of the enum.
const TABLE: [(Relation, &str); 20] = [
    (In, "in"),
    (CenterIn, "center-in"),
    (LeftIn, "left-in"),
    (RightIn, "right-in"),
    (TopIn, "top-in"),
    (BottomIn, "bottom-in"),
    (Cfree, "cfree"),
    (LeftOf, "left-of"),
    (TopOf, "top-of"),
    (CloseTo, "close-to"),
    (AwayFrom, "away-from"),
    (HAligned, "h-aligned"),
    (VAligned, "v-aligned"),
    (On, "on"),
    (Inside, "inside"),
    (InFrontOf, "in-front-of"),
    (SameBaseline, "same-baseline"),
    (Leftward, "leftward"),
    (Upward, "upward"),
    (Beside, "beside"),
];

impl Relation {
    /// All relations; those of the reference come first.
    pub const ALL: [Self; TABLE.len()] = {
        let mut all = [In; TABLE.len()];
        let mut at = 0;
        while at < TABLE.len() {
            all[at] = TABLE[at].0;
            at += 1;
        }
        all
    };
    /// Number of relations with a network.
    pub const LEARNED: usize = 13;

    /// Position in [`Relation::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// The relation's name in files and messages.
    pub fn name(self) -> &'static str {
        TABLE[self.index()].1
    }

    /// Whether it relates an object to the frame.
    pub fn is_unary(self) -> bool {
        self.index() <= BottomIn.index()
    }

    /// Whether its two objects may be swapped.
    pub fn is_symmetric(self) -> bool {
        matches!(self, Cfree | CloseTo | AwayFrom | HAligned | VAligned | SameBaseline | Beside)
    }

    /// Whether the pair's boxes meet, so that no cfree edge may stand between them.
    pub fn allows_overlap(self) -> bool {
        matches!(self, Inside | InFrontOf)
    }

    /// The learned relation nearest to it: its own network, or the one that stands in for a
    /// relation of ours in the learned solver.
    pub fn network(self) -> Option<Self> {
        match self {
            On => Some(TopOf),
            Leftward => Some(LeftOf),
            Upward => Some(TopOf),
            Beside => Some(CloseTo),
            SameBaseline => Some(HAligned),
            Inside | InFrontOf => None,
            learned => Some(learned),
        }
    }

    /// Whether the relation holds between these boxes; `b` is ignored by relations with the frame
    /// and must be given for the others (without it they don't hold).
    pub fn holds(self, frame: Frame, a: Rect, b: Option<Rect>) -> bool {
        let (half_w, half_h) = (frame.width / 2.0, frame.height / 2.0);
        match self {
            In => {
                a.left() >= -half_w
                    && a.right() <= half_w
                    && a.bottom() >= -half_h
                    && a.top() <= half_h
            }
            CenterIn => a.x.hypot(a.y) < CENTER,
            LeftIn => a.right() < 0.0,
            RightIn => a.left() > 0.0,
            TopIn => a.bottom() > 0.0,
            BottomIn => a.top() < 0.0,
            binary => b.is_some_and(|b| binary.holds_between(a, b)),
        }
    }

    fn holds_between(self, a: Rect, b: Rect) -> bool {
        let (gap_x, gap_y) = (-a.overlap_x(b), -a.overlap_y(b));
        let (dx, dy) = (a.x - b.x, a.y - b.y);
        match self {
            Cfree => gap_x >= 0.0 || gap_y >= 0.0,
            LeftOf => beside_in_range(a, b) && neighbour(b.left() - a.right(), CLOSENESS),
            TopOf => above_in_range(a, b) && neighbour(a.bottom() - b.top(), CLOSENESS),
            CloseTo => neighbours(a, b, TOUCHING),
            AwayFrom => !neighbours(a, b, FARNESS),
            HAligned => dy.abs() < ALIGNMENT,
            VAligned => dx.abs() < ALIGNMENT,
            On => {
                (a.bottom() - b.top()).abs() < SUPPORT && a.overlap_x(b) >= SUPPORTED * a.w.min(b.w)
            }
            Inside => {
                a.left() >= b.left()
                    && a.right() <= b.right()
                    && a.bottom() >= b.bottom()
                    && a.top() <= b.top()
            }
            InFrontOf => {
                gap_x < 0.0
                    && gap_y < 0.0
                    && a.bottom() <= b.bottom()
                    && a.intersection(b) <= HIDDEN * b.area()
            }
            SameBaseline => (a.bottom() - b.bottom()).abs() < ALIGNMENT,
            Leftward => -dx > dy.abs(),
            Upward => dy > dx.abs(),
            Beside => dx.abs() > dy.abs() && gap_x < FARNESS,
            In | CenterIn | LeftIn | RightIn | TopIn | BottomIn => false,
        }
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// y-ranges overlap by more than 0.6 of the smaller height (containment implies it).
fn beside_in_range(a: Rect, b: Rect) -> bool {
    a.overlap_y(b) > RANGE_OVERLAP * a.h.min(b.h)
}

/// x-ranges overlap by more than 0.6 of the smaller width (containment implies it).
fn above_in_range(a: Rect, b: Rect) -> bool {
    a.overlap_x(b) > RANGE_OVERLAP * a.w.min(b.w)
}

fn neighbour(gap: f64, below: f64) -> bool {
    (SLACK..below).contains(&gap)
}

/// Whether one is the neighbour of the other in any of the four directions. Boxes that overlap by
/// more than the slack are none, as in the reference.
fn neighbours(a: Rect, b: Rect, below: f64) -> bool {
    let sides = |gap_ab: f64, gap_ba: f64| neighbour(gap_ab, below) || neighbour(gap_ba, below);
    beside_in_range(a, b) && sides(b.left() - a.right(), a.left() - b.right())
        || above_in_range(a, b) && sides(b.bottom() - a.top(), a.bottom() - b.top())
}

/// Whether `edge` holds for these boxes.
pub fn edge_holds(frame: Frame, rects: &[Rect], edge: &Edge) -> bool {
    edge.relation.holds(frame, rects[edge.a], edge.b.map(|b| rects[b]))
}

/// The relations of `problem` that these boxes break, in the problem's order. Empty = verified.
pub fn violations(problem: &Problem, rects: &[Rect]) -> Vec<Edge> {
    problem.edges.iter().filter(|edge| !edge_holds(problem.frame, rects, edge)).copied().collect()
}

/// All of the reference's 13 relations that hold: unary ones, left-of and top-of as they are,
/// symmetric ones once per pair with the smaller index first. Ordered by kind.
pub fn relations_of(frame: Frame, rects: &[Rect]) -> Vec<Edge> {
    let mut edges = Vec::new();
    for relation in Relation::ALL.into_iter().take(Relation::LEARNED) {
        for a in 0..rects.len() {
            if relation.is_unary() {
                edges.push(Edge::unary(relation, a));
                continue;
            }
            let first = if relation.is_symmetric() { a + 1 } else { 0 };
            edges.extend(
                (first..rects.len()).filter(|&b| b != a).map(|b| Edge::binary(relation, a, b)),
            );
        }
    }
    edges.retain(|edge| edge_holds(frame, rects, edge));
    edges
}
