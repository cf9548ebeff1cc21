//! Boxes, frames and constraint problems: the plain structs that every module speaks.
//!
//! Lengths are in *relation units*: the thresholds of [`crate::relations`] are absolute there, and
//! Diffusion-CCSP's container measures 3 × 2. The origin is the centre of the frame, y points up.

use crate::relations::Relation;

/// The canvas ("container" in Diffusion-CCSP).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Frame {
    /// Full width.
    pub width: f64,
    /// Full height.
    pub height: f64,
}

impl Frame {
    /// Diffusion-CCSP's container.
    pub const CCSP: Self = Self { width: 3.0, height: 2.0 };

    /// The frame of a picture with this aspect (width over height). Its size is chosen so that
    /// min(width / 3, height / 2) = 1, by which the reference scales its thresholds.
    pub fn of_aspect(aspect: f64) -> Self {
        if aspect >= 1.5 {
            Self { width: 2.0 * aspect, height: 2.0 }
        } else {
            Self { width: 3.0, height: 3.0 / aspect }
        }
    }

    /// Centre of a box in this frame → pose in −1..1 on both axes.
    pub fn to_pose(self, center: [f64; 2]) -> [f64; 2] {
        [center[0] * 2.0 / self.width, center[1] * 2.0 / self.height]
    }

    /// Inverse of [`Frame::to_pose`].
    pub fn from_pose(self, pose: [f64; 2]) -> [f64; 2] {
        [pose[0] * self.width / 2.0, pose[1] * self.height / 2.0]
    }

    /// A box given as `[x, y, w, h]` in shares of the canvas, corner at the top left, y down.
    pub fn from_canvas(self, [x, y, w, h]: [f64; 4]) -> Rect {
        Rect {
            x: (x + w / 2.0 - 0.5) * self.width,
            y: (0.5 - y - h / 2.0) * self.height,
            w: w * self.width,
            h: h * self.height,
        }
    }

    /// Inverse of [`Frame::from_canvas`].
    pub fn to_canvas(self, rect: Rect) -> [f64; 4] {
        let (w, h) = (rect.w / self.width, rect.h / self.height);
        [rect.x / self.width + 0.5 - w / 2.0, 0.5 - rect.y / self.height - h / 2.0, w, h]
    }
}

/// An axis-aligned box: centre, width and height.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rect {
    /// Centre.
    pub x: f64,
    /// Centre, up.
    pub y: f64,
    /// Full width.
    pub w: f64,
    /// Full height.
    pub h: f64,
}

impl Rect {
    /// Left edge.
    pub fn left(self) -> f64 {
        self.x - self.w / 2.0
    }

    /// Right edge.
    pub fn right(self) -> f64 {
        self.x + self.w / 2.0
    }

    /// Lower edge.
    pub fn bottom(self) -> f64 {
        self.y - self.h / 2.0
    }

    /// Upper edge.
    pub fn top(self) -> f64 {
        self.y + self.h / 2.0
    }

    /// Area.
    pub fn area(self) -> f64 {
        self.w * self.h
    }

    /// Length of the common x-range with `other`; negative = the gap between them.
    pub fn overlap_x(self, other: Self) -> f64 {
        self.right().min(other.right()) - self.left().max(other.left())
    }

    /// Length of the common y-range with `other`; negative = the gap between them.
    pub fn overlap_y(self, other: Self) -> f64 {
        self.top().min(other.top()) - self.bottom().max(other.bottom())
    }

    /// Area of the intersection.
    pub fn intersection(self, other: Self) -> f64 {
        self.overlap_x(other).max(0.0) * self.overlap_y(other).max(0.0)
    }
}

/// One relation of a scene graph: `relation(a)` with the frame, or `relation(a, b)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge {
    /// Kind.
    pub relation: Relation,
    /// First argument, an object index.
    pub a: usize,
    /// Second argument; `None` for relations with the frame.
    pub b: Option<usize>,
}

impl Edge {
    /// A relation with the frame.
    pub fn unary(relation: Relation, a: usize) -> Self {
        Self { relation, a, b: None }
    }

    /// A relation of two objects.
    pub fn binary(relation: Relation, a: usize, b: usize) -> Self {
        Self { relation, a, b: Some(b) }
    }

    /// The edge as words over the objects' names.
    pub fn describe(&self, names: &[String]) -> String {
        let name = |index: usize| names.get(index).map_or("?", String::as_str);
        match self.b {
            None => format!("{}({})", self.relation.name(), name(self.a)),
            Some(b) => format!("{}({}, {})", self.relation.name(), name(self.a), name(b)),
        }
    }
}

/// A constraint satisfaction problem: given sizes, find centres so that all relations hold (Eq. 1).
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// The canvas.
    pub frame: Frame,
    /// Width and height of each object.
    pub sizes: Vec<[f64; 2]>,
    /// The relations R.
    pub edges: Vec<Edge>,
    /// Centre of each locked object ("masked node"); `None` = free.
    pub locked: Vec<Option<[f64; 2]>>,
}

impl Problem {
    /// A problem without locked objects.
    pub fn new(frame: Frame, sizes: Vec<[f64; 2]>, edges: Vec<Edge>) -> Self {
        let locked = vec![None; sizes.len()];
        Self { frame, sizes, edges, locked }
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.sizes.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.sizes.is_empty()
    }

    /// The boxes at these centres; locked objects stand where they are locked.
    pub fn rects(&self, centers: &[[f64; 2]]) -> Vec<Rect> {
        let rect = |(index, (center, size)): (usize, (&[f64; 2], &[f64; 2]))| {
            let [x, y] = self.locked[index].unwrap_or(*center);
            Rect { x, y, w: size[0], h: size[1] }
        };
        centers.iter().zip(&self.sizes).enumerate().map(rect).collect()
    }

    /// Puts locked objects back to their places.
    pub fn impose_locks(&self, centers: &mut [[f64; 2]]) {
        for (center, lock) in centers.iter_mut().zip(&self.locked) {
            if let Some(lock) = lock {
                *center = *lock;
            }
        }
    }
}
