//! Analytic energies of the relations: squared hinges with small margins (specification §3.7).
//!
//! The energy of a layout is 0 exactly when every relation holds with its margin, and its gradient
//! moves boxes only as far as they have to. Relations that can be met along either axis act on
//! the cheaper one.

use crate::layout::{Edge, Problem, Rect};
use crate::relations::{ALIGNMENT, FARNESS, HIDDEN, RANGE_OVERLAP, Relation, SUPPORT, SUPPORTED};

/// Distance kept from a threshold.
const MARGIN: f64 = 0.01;
/// Frame's walls and half-planes.
const WALL: f64 = 0.005;
/// Largest distance from the centre (threshold 0.3).
const CENTER_RADIUS: f64 = 0.28;
/// Largest gap of left-of and top-of (threshold 0.3).
const NEIGHBOUR_GAP: f64 = 0.28;
/// Largest gap of close-to (threshold 0.1).
const TOUCHING_GAP: f64 = 0.08;
/// Smallest gap of away-from (threshold 0.5).
const FAR_GAP: f64 = FARNESS + 0.02;
/// Least common width and height of in-front-of, as a share of the smaller side.
const COMMON: f64 = 0.15;
/// Hinges per object up to which steps keep their size.
const CALM: f64 = 3.0;

/// Energy and its gradient with respect to the centres.
#[derive(Debug, Clone, Default)]
pub struct Energy {
    /// Σ squared violations.
    pub value: f64,
    /// dE/d(x, y) of each object.
    pub gradient: Vec<[f64; 2]>,
    /// Violated hinges that pull at each object.
    pub active: Vec<u32>,
}

const X: usize = 0;
const Y: usize = 1;

/// The two objects of a relation: differences of centres `a − b` and half sums of sides.
struct Pair {
    a: usize,
    b: usize,
    delta: [f64; 2],
    reach: [f64; 2],
    /// Smaller side per axis.
    smaller: [f64; 2],
}

impl Pair {
    fn gap(&self, axis: usize) -> f64 {
        self.delta[axis].abs() - self.reach[axis]
    }

    /// Largest |delta| at which the ranges along `axis` still overlap by more than 0.6.
    fn range_limit(&self, axis: usize) -> f64 {
        self.reach[axis] - RANGE_OVERLAP * self.smaller[axis]
    }

    /// Direction of `a` from `b`; up or right when they coincide.
    fn sign(&self, axis: usize) -> f64 {
        if self.delta[axis] < 0.0 { -1.0 } else { 1.0 }
    }
}

impl Energy {
    /// Computes energy and gradient (Eq. 2 with hinges as E_k). Locked objects get gradient 0.
    pub fn compute(&mut self, problem: &Problem, centers: &[[f64; 2]]) {
        self.value = 0.0;
        self.gradient.clear();
        self.gradient.resize(centers.len(), [0.0; 2]);
        self.active.clear();
        self.active.resize(centers.len(), 0);
        for edge in &problem.edges {
            self.add(problem, centers, edge);
        }
        for (gradient, lock) in self.gradient.iter_mut().zip(&problem.locked) {
            if lock.is_some() {
                *gradient = [0.0; 2];
            }
        }
    }

    /// Energy of some of the relations alone. Gradients are left in an undefined state.
    pub fn of_edges(&mut self, problem: &Problem, centers: &[[f64; 2]], edges: &[Edge]) -> f64 {
        self.value = 0.0;
        self.gradient.resize(centers.len(), [0.0; 2]);
        self.active.resize(centers.len(), 0);
        for edge in edges {
            self.add(problem, centers, edge);
        }
        self.value
    }

    /// One step against the gradient. An object that several hinges pull at moves by less, so that
    /// crowded problems don't oscillate.
    pub fn step(&self, centers: &mut [[f64; 2]], size: f64) {
        for ((center, gradient), &active) in
            centers.iter_mut().zip(&self.gradient).zip(&self.active)
        {
            let size = size / (f64::from(active) / CALM).max(1.0);
            center[0] -= size * gradient[0];
            center[1] -= size * gradient[1];
        }
    }

    /// Adds max(0, violation)², where the violation grows by `slope` with the coordinate of `a`
    /// and falls as much with that of `b`.
    fn hinge(&mut self, a: usize, b: Option<usize>, axis: usize, slope: f64, violation: f64) {
        if violation > 0.0 {
            self.value += violation * violation;
            self.gradient[a][axis] += 2.0 * violation * slope;
            self.active[a] += 1;
            if let Some(b) = b {
                self.gradient[b][axis] -= 2.0 * violation * slope;
                self.active[b] += 1;
            }
        }
    }

    /// Keeps |delta| below `limit`.
    fn near(&mut self, pair: &Pair, axis: usize, limit: f64) {
        let violation = pair.delta[axis].abs() - limit.max(0.0);
        self.hinge(pair.a, Some(pair.b), axis, pair.sign(axis), violation);
    }

    /// Keeps |delta| above `limit`.
    fn apart(&mut self, pair: &Pair, axis: usize, limit: f64) {
        let violation = limit - pair.delta[axis].abs();
        self.hinge(pair.a, Some(pair.b), axis, -pair.sign(axis), violation);
    }

    /// Keeps `slope · delta − reach` (a gap) between `low` and `high`.
    fn gap_between(&mut self, pair: &Pair, axis: usize, slope: f64, low: f64, high: f64) {
        let gap = slope * pair.delta[axis] - pair.reach[axis];
        self.hinge(pair.a, Some(pair.b), axis, -slope, low - gap);
        self.hinge(pair.a, Some(pair.b), axis, slope, gap - high);
    }

    fn add(&mut self, problem: &Problem, centers: &[[f64; 2]], edge: &Edge) {
        let rect = |index: usize| {
            let ([x, y], [w, h]) = (centers[index], problem.sizes[index]);
            Rect { x, y, w, h }
        };
        let a = rect(edge.a);
        match edge.b {
            None => self.add_unary(problem, edge, a),
            Some(b_index) => {
                let b = rect(b_index);
                let pair = Pair {
                    a: edge.a,
                    b: b_index,
                    delta: [a.x - b.x, a.y - b.y],
                    reach: [(a.w + b.w) / 2.0, (a.h + b.h) / 2.0],
                    smaller: [a.w.min(b.w), a.h.min(b.h)],
                };
                self.add_binary(edge.relation, &pair, a, b);
            }
        }
    }

    fn add_unary(&mut self, problem: &Problem, edge: &Edge, rect: Rect) {
        let index = edge.a;
        match edge.relation {
            Relation::In => {
                let walls = [problem.frame.width / 2.0, problem.frame.height / 2.0];
                for (axis, (center, side)) in
                    [(rect.x, rect.w), (rect.y, rect.h)].iter().enumerate()
                {
                    let room = walls[axis] - side / 2.0;
                    let room = (room - WALL).max(room / 2.0);
                    self.hinge(index, None, axis, 1.0, center - room);
                    self.hinge(index, None, axis, -1.0, -center - room);
                }
            }
            Relation::CenterIn => {
                let distance = rect.x.hypot(rect.y);
                let violation = distance - CENTER_RADIUS;
                if violation > 0.0 {
                    self.value += violation * violation;
                    self.gradient[index][X] += 2.0 * violation * rect.x / distance;
                    self.gradient[index][Y] += 2.0 * violation * rect.y / distance;
                }
            }
            Relation::LeftIn => self.hinge(index, None, X, 1.0, rect.right() + WALL),
            Relation::RightIn => self.hinge(index, None, X, -1.0, WALL - rect.left()),
            Relation::TopIn => self.hinge(index, None, Y, -1.0, WALL - rect.bottom()),
            Relation::BottomIn => self.hinge(index, None, Y, 1.0, rect.top() + WALL),
            _ => {}
        }
    }

    fn add_binary(&mut self, relation: Relation, pair: &Pair, a: Rect, b: Rect) {
        match relation {
            Relation::Cfree => {
                let axis = if pair.gap(X) >= pair.gap(Y) { X } else { Y };
                self.apart(pair, axis, pair.reach[axis] + MARGIN);
            }
            Relation::LeftOf => {
                self.near(pair, Y, pair.range_limit(Y) - MARGIN);
                self.gap_between(pair, X, -1.0, MARGIN, NEIGHBOUR_GAP);
            }
            Relation::TopOf => {
                self.near(pair, X, pair.range_limit(X) - MARGIN);
                self.gap_between(pair, Y, 1.0, MARGIN, NEIGHBOUR_GAP);
            }
            Relation::CloseTo => {
                let cost = |axis: usize| {
                    let other = 1 - axis;
                    let range = pair.delta[other].abs() - pair.range_limit(other) + MARGIN;
                    let gap = pair.gap(axis);
                    let gap = (gap - TOUCHING_GAP).max(MARGIN - gap);
                    range.max(0.0).powi(2) + gap.max(0.0).powi(2)
                };
                let axis = if cost(X) <= cost(Y) { X } else { Y };
                let other = 1 - axis;
                self.near(pair, other, pair.range_limit(other) - MARGIN);
                self.gap_between(pair, axis, pair.sign(axis), MARGIN, TOUCHING_GAP);
            }
            Relation::AwayFrom => {
                for axis in [X, Y] {
                    let other = 1 - axis;
                    let limit = pair.range_limit(other) + MARGIN;
                    let (push, leave) = (FAR_GAP - pair.gap(axis), limit - pair.delta[other].abs());
                    if push > 0.0 && leave > 0.0 {
                        if push <= leave {
                            self.apart(pair, axis, pair.reach[axis] + FAR_GAP);
                        } else {
                            self.apart(pair, other, limit);
                        }
                    }
                }
            }
            Relation::HAligned => self.near(pair, Y, ALIGNMENT - MARGIN),
            Relation::VAligned => self.near(pair, X, ALIGNMENT - MARGIN),
            Relation::On => {
                self.near(pair, X, pair.reach[X] - SUPPORTED * pair.smaller[X] - MARGIN);
                let slack = SUPPORT / 5.0;
                self.gap_between(pair, Y, 1.0, -slack, slack);
            }
            Relation::Inside => {
                self.near(pair, X, (b.w - a.w) / 2.0 - MARGIN);
                self.near(pair, Y, (b.h - a.h) / 2.0 - MARGIN);
            }
            Relation::InFrontOf => self.in_front(pair, a, b),
            Relation::SameBaseline => {
                let difference = a.bottom() - b.bottom();
                let sign = if difference < 0.0 { -1.0 } else { 1.0 };
                let violation = difference.abs() - (ALIGNMENT - MARGIN);
                self.hinge(pair.a, Some(pair.b), Y, sign, violation);
            }
            Relation::Leftward => self.cone(pair, X, -1.0),
            Relation::Upward => self.cone(pair, Y, 1.0),
            Relation::Beside => {
                self.cone(pair, X, pair.sign(X));
                self.near(pair, X, pair.reach[X] + FARNESS - MARGIN);
            }
            Relation::In
            | Relation::CenterIn
            | Relation::LeftIn
            | Relation::RightIn
            | Relation::TopIn
            | Relation::BottomIn => {}
        }
    }

    /// Keeps `sign · delta[axis]` above |delta| of the other axis.
    fn cone(&mut self, pair: &Pair, axis: usize, sign: f64) {
        let other = 1 - axis;
        let violation = pair.delta[other].abs() - sign * pair.delta[axis] + 2.0 * MARGIN;
        if violation > 0.0 {
            self.value += violation * violation;
            let across = pair.sign(other);
            for (object, side) in [(pair.a, 1.0), (pair.b, -1.0)] {
                self.gradient[object][axis] -= 2.0 * violation * sign * side;
                self.gradient[object][other] += 2.0 * violation * across * side;
            }
        }
    }

    fn in_front(&mut self, pair: &Pair, a: Rect, b: Rect) {
        for axis in [X, Y] {
            self.near(pair, axis, pair.reach[axis] - COMMON * pair.smaller[axis]);
        }
        let lower = a.bottom() - b.bottom() + MARGIN;
        self.hinge(pair.a, Some(pair.b), Y, 1.0, lower);
        let (common_x, common_y) = (a.overlap_x(b), a.overlap_y(b));
        if common_x > 0.0 && common_y > 0.0 {
            // hides too much: slide sideways
            let most = (HIDDEN - 0.05) * b.area() / common_y;
            self.hinge(pair.a, Some(pair.b), X, -pair.sign(X), common_x - most);
        }
    }
}
