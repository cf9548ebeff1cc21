//! Consistency check of a scene graph before any sampling (specification §3.2).
//!
//! Every relation but the disjunctive ones (cfree, close-to, away-from, beside) bounds differences
//! of coordinates: `x_j − x_i ≤ c`. Such a system has a solution if and only if its constraint graph
//! has no cycle of negative length, and the relations along a simple negative cycle are a
//! minimal conflicting set: without any of them the rest of the cycle is satisfiable. One test covers
//! antisymmetry, cycles, sums of sizes along a chain and alignment against order. Pairs of
//! relations that exclude each other by definition are looked up besides.

use crate::layout::{Edge, Problem};
use crate::relations::{
    ALIGNMENT, CENTER, CLOSENESS, RANGE_OVERLAP, Relation, SLACK, SUPPORT, SUPPORTED,
};

/// Relations that can't hold together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// A minimal set, in the order of the cycle.
    pub edges: Vec<Edge>,
    /// Objects whose locks take part.
    pub locked: Vec<usize>,
}

impl Conflict {
    /// One sentence over the objects' names.
    pub fn describe(&self, names: &[String]) -> String {
        let mut parts: Vec<String> = self.edges.iter().map(|edge| edge.describe(names)).collect();
        let name = |&index: &usize| names.get(index).map_or("?", String::as_str);
        parts.extend(self.locked.iter().map(|index| format!("the lock of {}", name(index))));
        parts.join(", ")
    }
}

/// Why a bound stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Edge(Edge),
    Lock(usize),
}

/// `position[to] − position[from] ≤ bound`; node 0 is the frame's centre, object i is i + 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) bound: f64,
    pub(crate) reason: Reason,
}

/// A minimal conflicting set, or `None` when the conjunctive part of the graph is satisfiable.
/// (Disjunctive relations may still leave no room; then the solvers end without a verified layout.)
pub fn conflict(problem: &Problem) -> Option<Conflict> {
    excluded_pair(problem).or_else(|| (0..2).find_map(|axis| negative_cycle(problem, axis)))
}

/// Two relations on one pair that exclude each other by definition.
fn excluded_pair(problem: &Problem) -> Option<Conflict> {
    use Relation::{
        AwayFrom, Beside, Cfree, CloseTo, InFrontOf, Inside, LeftOf, On, TopOf, Upward,
    };
    let excludes = |first: Relation, second: Relation| match first {
        AwayFrom => matches!(second, CloseTo | LeftOf | TopOf | On),
        Cfree => matches!(second, Inside | InFrontOf),
        Beside => matches!(second, Upward),
        _ => false,
    };
    for first in &problem.edges {
        for second in &problem.edges {
            let same = first.b.is_some() && (first.a, first.b) == (second.a, second.b)
                || first.b == Some(second.a) && second.b == Some(first.a);
            if same && excludes(first.relation, second.relation) {
                return Some(Conflict { edges: vec![*first, *second], locked: Vec::new() });
            }
        }
    }
    None
}

/// The bounds along one axis that the relations and locks imply. For relations without a choice they
/// are all that the relation demands (strictness aside).
pub(crate) fn bounds(problem: &Problem, axis: usize) -> Vec<Bound> {
    let mut bounds = Vec::new();
    let half_frame = [problem.frame.width, problem.frame.height][axis] / 2.0;
    for (object, lock) in problem.locked.iter().enumerate() {
        if let Some(place) = lock {
            let reason = Reason::Lock(object);
            bounds.push(Bound { from: 0, to: object + 1, bound: place[axis], reason });
            bounds.push(Bound { from: object + 1, to: 0, bound: -place[axis], reason });
        }
    }
    for edge in &problem.edges {
        let reason = Reason::Edge(*edge);
        let (a, b) = (edge.a + 1, edge.b.map_or(0, |b| b + 1));
        let half = problem.sizes[edge.a][axis] / 2.0;
        let other = edge.b.map_or(0.0, |b| problem.sizes[b][axis] / 2.0);
        let (reach, smaller) = (half + other, 2.0 * half.min(other));
        // low ≤ position[a] − position[b] ≤ high
        let mut between = |low: f64, high: f64| {
            if low.is_finite() {
                bounds.push(Bound { from: a, to: b, bound: -low, reason });
            }
            if high.is_finite() {
                bounds.push(Bound { from: b, to: a, bound: high, reason });
            }
        };
        let free = f64::INFINITY;
        let range = reach - RANGE_OVERLAP * smaller;
        match (edge.relation, axis) {
            (Relation::In, _) => between(half - half_frame, half_frame - half),
            (Relation::CenterIn, _) => between(-CENTER, CENTER),
            (Relation::LeftIn, 0) | (Relation::BottomIn, 1) => between(-free, -half),
            (Relation::RightIn, 0) | (Relation::TopIn, 1) => between(half, free),
            (Relation::LeftOf, 0) => between(-(reach + CLOSENESS), -(reach + SLACK)),
            (Relation::TopOf, 1) => between(reach + SLACK, reach + CLOSENESS),
            (Relation::LeftOf, 1) | (Relation::TopOf, 0) => between(-range, range),
            (Relation::HAligned, 1) | (Relation::VAligned, 0) => between(-ALIGNMENT, ALIGNMENT),
            (Relation::On, 0) => {
                let supported = reach - SUPPORTED * smaller;
                between(-supported, supported);
            }
            (Relation::On, 1) => between(reach - SUPPORT, reach + SUPPORT),
            (Relation::Inside, _) => between(half - other, other - half),
            (Relation::InFrontOf, 0) => between(-reach, reach),
            (Relation::InFrontOf, 1) => between(-reach, half - other),
            (Relation::SameBaseline, 1) => {
                between(half - other - ALIGNMENT, half - other + ALIGNMENT);
            }
            (Relation::Leftward, 0) => between(-free, 0.0),
            (Relation::Upward, 1) => between(0.0, free),
            _ => {}
        }
    }
    bounds
}

/// Bellman and Ford from all nodes at once. Lengths may be off by rounding, so a cycle counts
/// when it is shorter than −1e-9; strict bounds (left-in, leftward) get their strictness from 1e-6.
fn negative_cycle(problem: &Problem, axis: usize) -> Option<Conflict> {
    const ROUNDING: f64 = 1e-9;
    const STRICT: f64 = 1e-6;
    let mut bounds = bounds(problem, axis);
    for bound in &mut bounds {
        if let Reason::Edge(edge) = bound.reason
            && matches!(
                edge.relation,
                Relation::LeftIn
                    | Relation::RightIn
                    | Relation::TopIn
                    | Relation::BottomIn
                    | Relation::Leftward
                    | Relation::Upward
            )
        {
            bound.bound -= STRICT;
        }
    }
    let nodes = problem.len() + 1;
    let mut distance = vec![0.0f64; nodes];
    let mut through: Vec<Option<usize>> = vec![None; nodes];
    for round in 0..=nodes {
        let mut changed = None;
        for (index, bound) in bounds.iter().enumerate() {
            let reached = distance[bound.from] + bound.bound;
            if reached < distance[bound.to] - ROUNDING {
                distance[bound.to] = reached;
                through[bound.to] = Some(index);
                changed = Some(bound.to);
            }
        }
        let node = changed?;
        if round == nodes {
            return Some(cycle_through(&bounds, &through, node));
        }
    }
    None
}

/// Walks back from a node that was still improved after `nodes` rounds.
fn cycle_through(bounds: &[Bound], through: &[Option<usize>], start: usize) -> Conflict {
    let back = |node: usize| through[node].map(|index| (index, bounds[index].from));
    let mut node = start;
    for _ in 0..through.len() {
        if let Some((_, from)) = back(node) {
            node = from;
        }
    }
    let (mut edges, mut locked) = (Vec::new(), Vec::new());
    let first = node;
    while let Some((index, from)) = back(node) {
        match bounds[index].reason {
            Reason::Edge(edge) if !edges.contains(&edge) => edges.push(edge),
            Reason::Lock(object) if !locked.contains(&object) => locked.push(object),
            _ => {}
        }
        node = from;
        if node == first {
            break;
        }
    }
    edges.reverse();
    Conflict { edges, locked }
}
