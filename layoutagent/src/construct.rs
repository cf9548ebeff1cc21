//! Layouts by construction (ours): bounds on differences of coordinates, and choices between them.
//!
//! A relation bounds differences of coordinates (`left-of`: two bounds in x, two in y) or is a choice
//! between a few sets of such bounds, its *ways* (`cfree`: left, right, above or below). Bounds
//! without a cycle of negative length have a solution, which the lengths of shortest paths give
//! (Dechter, Meiri, Pearl 1991, "Temporal constraint networks"). So a layout is a way for each
//! relation such that both axes stay free of negative cycles:
//!
//! 1. a way that contradicts the shortest paths is struck out; a relation with one way left
//!    takes it; one that the paths already imply is done;
//! 2. else the relation with the least room left, over its weight, draws one of its ways, a roomy
//!    one rather than a narrow one;
//! 3. a relation without a way gains weight, so that the next attempt decides it earlier
//!    (Boussemart et al. 2004, "Boosting systematic search by weighting constraints").
//!
//! Crowds are solved like this, where gradient steps get stuck: pairs that are far apart need no
//! look at all once the paths imply that they are.

use common::rng::Stream;

use crate::conflict::{Reason, bounds};
use crate::layout::{Edge, Problem};
use crate::relations::{CENTER, FARNESS, HIDDEN, RANGE_OVERLAP, Relation, SLACK, TOUCHING};

/// Kept from every threshold, above rounding.
const ROUNDING: f64 = 1e-6;
/// Power of the room by which ways are drawn.
const GREED: f64 = 4.0;
/// One in so many open relations is decided between two propagations (at least one).
const DECISIONS: usize = 300;
const X: usize = 0;
const Y: usize = 1;

/// Largest differences `position[to] − position[from]` of all pairs of nodes along one axis: the
/// lengths of shortest paths. Node 0 is the frame's centre, object i is i + 1.
#[derive(Debug, Clone)]
struct Paths {
    nodes: usize,
    length: Vec<f64>,
}

impl Paths {
    /// Floyd and Warshall; `None` with a cycle of negative length.
    fn new(problem: &Problem, axis: usize) -> Option<Self> {
        let nodes = problem.len() + 1;
        let mut paths = Self { nodes, length: vec![f64::INFINITY; nodes * nodes] };
        let half = [problem.frame.width, problem.frame.height][axis] / 2.0;
        for node in 0..nodes {
            // every centre is in the frame, so all lengths are finite
            for (from, to, bound) in [(node, node, 0.0), (0, node, half), (node, 0, half)] {
                let length = &mut paths.length[from * nodes + to];
                *length = length.min(if from == to { 0.0 } else { bound });
            }
        }
        for bound in bounds(problem, axis) {
            let length = &mut paths.length[bound.from * nodes + bound.to];
            // a lock bounds its place from both sides, with no room between
            let kept = if matches!(bound.reason, Reason::Lock(_)) { 0.0 } else { ROUNDING };
            *length = length.min(bound.bound - kept);
        }
        for through in 0..nodes {
            let row = paths.length[through * nodes..][..nodes].to_vec();
            for from in 0..nodes {
                let first = paths.length[from * nodes + through];
                if first.is_finite() {
                    paths.shorten(from, first, &row);
                }
            }
        }
        (0..nodes).all(|node| paths.most(node, node) > -ROUNDING).then_some(paths)
    }

    fn shorten(&mut self, from: usize, first: f64, rest: &[f64]) {
        let own = &mut self.length[from * self.nodes..][..self.nodes];
        for (length, rest) in own.iter_mut().zip(rest) {
            *length = length.min(first + rest);
        }
    }

    fn most(&self, from: usize, to: usize) -> f64 {
        self.length[from * self.nodes + to]
    }

    /// Adds `position[to] − position[from] ≤ bound`, which must not contradict the paths.
    fn add(&mut self, from: usize, to: usize, bound: f64) {
        if self.most(from, to) <= bound {
            return;
        }
        let rest = self.length[to * self.nodes..][..self.nodes].to_vec();
        for start in 0..self.nodes {
            let first = self.most(start, from) + bound;
            if first < self.most(start, to) {
                self.shorten(start, first, &rest);
            }
        }
    }

    /// A solution: the middle of the earliest and the latest place of each object, which solve the
    /// bounds each (and so does their mean).
    fn middle(&self, object: usize) -> f64 {
        (self.most(0, object + 1) - self.most(object + 1, 0)) / 2.0
    }
}

/// One bound of a way.
#[derive(Debug, Clone, Copy)]
struct Limit {
    axis: usize,
    from: usize,
    to: usize,
    bound: f64,
}

/// The places of a relation's two nodes, as limits of the difference a − b.
struct Pair {
    a: usize,
    b: usize,
}

impl Pair {
    fn at_most(&self, axis: usize, bound: f64) -> Limit {
        Limit { axis, from: self.b, to: self.a, bound: bound - ROUNDING }
    }

    fn at_least(&self, axis: usize, bound: f64) -> Limit {
        Limit { axis, from: self.a, to: self.b, bound: -bound - ROUNDING }
    }

    fn within(&self, axis: usize, bound: f64) -> [Limit; 2] {
        [self.at_most(axis, bound), self.at_least(axis, -bound)]
    }

    /// a beyond b by `bound` in the direction of `sign`.
    fn beyond(&self, axis: usize, sign: f64, bound: f64) -> Limit {
        if sign > 0.0 { self.at_least(axis, bound) } else { self.at_most(axis, -bound) }
    }

    /// a beyond b by at most `bound` in the direction of `sign`.
    fn not_beyond(&self, axis: usize, sign: f64, bound: f64) -> Limit {
        if sign > 0.0 { self.at_most(axis, bound) } else { self.at_least(axis, -bound) }
    }
}

const SIDES: [(usize, f64); 4] = [(X, -1.0), (X, 1.0), (Y, -1.0), (Y, 1.0)];

/// The ways of a relation; each alone makes it hold. Empty for relations without a choice, whose
/// bounds [`bounds`] gives.
fn ways(problem: &Problem, edge: &Edge) -> Vec<Vec<Limit>> {
    let pair = Pair { a: edge.a + 1, b: edge.b.map_or(0, |b| b + 1) };
    let own = problem.sizes[edge.a];
    let other = edge.b.map_or([0.0; 2], |b| problem.sizes[b]);
    let reach = [0, 1].map(|axis| (own[axis] + other[axis]) / 2.0);
    let smaller = [0, 1].map(|axis| own[axis].min(other[axis]));
    let range = [0, 1].map(|axis| reach[axis] - RANGE_OVERLAP * smaller[axis]);
    // "more to one side than up or down": the side by at least k, up or down by at most k
    let cone = |axis: usize, sign: f64| {
        const LEAST: [f64; 6] = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2];
        LEAST.map(|least| {
            let mut way = vec![pair.beyond(axis, sign, least)];
            way.extend(pair.within(1 - axis, least - 2.0 * ROUNDING));
            way
        })
    };
    match edge.relation {
        Relation::CenterIn => [[0.7, 0.7], [0.9, 0.4], [0.4, 0.9]]
            .map(|[x, y]| [pair.within(X, x * CENTER), pair.within(Y, y * CENTER)].concat())
            .to_vec(),
        Relation::Cfree => {
            SIDES.map(|(axis, sign)| vec![pair.beyond(axis, sign, reach[axis])]).to_vec()
        }
        Relation::CloseTo => SIDES
            .map(|(axis, sign)| {
                let mut way = pair.within(1 - axis, range[1 - axis]).to_vec();
                way.push(pair.beyond(axis, sign, reach[axis] + SLACK));
                way.push(pair.not_beyond(axis, sign, reach[axis] + TOUCHING));
                way
            })
            .to_vec(),
        Relation::AwayFrom => {
            let sides =
                SIDES.map(|(axis, sign)| vec![pair.beyond(axis, sign, reach[axis] + FARNESS)]);
            let corners = [(-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0)]
                .map(|(x, y)| vec![pair.beyond(X, x, range[X]), pair.beyond(Y, y, range[Y])]);
            [sides, corners].concat()
        }
        Relation::InFrontOf => {
            let least = [0, 1].map(|axis| pair.within(axis, reach[axis] - 0.15 * smaller[axis]));
            let common = least.concat();
            let hidden = 0.95 * HIDDEN * other[X] * other[Y];
            if smaller[X] * smaller[Y] <= hidden {
                return vec![common];
            }
            let sideways = reach[X] - hidden / smaller[Y];
            let lower = reach[Y] - hidden / smaller[X];
            [
                pair.beyond(X, -1.0, sideways),
                pair.beyond(X, 1.0, sideways),
                pair.beyond(Y, -1.0, lower),
            ]
            .map(|limit| [common.clone(), vec![limit]].concat())
            .to_vec()
        }
        Relation::Leftward => cone(X, -1.0).to_vec(),
        Relation::Upward => cone(Y, 1.0).to_vec(),
        Relation::Beside => {
            let mut both = [cone(X, -1.0), cone(X, 1.0)].concat();
            for (index, way) in both.iter_mut().enumerate() {
                let sign = if index < 6 { -1.0 } else { 1.0 };
                way.push(pair.not_beyond(X, sign, reach[X] + FARNESS));
            }
            both
        }
        _ => Vec::new(),
    }
}

/// A relation with a choice of ways.
#[derive(Debug, Clone, Copy)]
struct Choice {
    edge: usize,
    /// First of its ways in `Construction::ways`, and their number.
    first: usize,
    ways: usize,
    weight: f64,
}

/// The constraint network of a problem, kept over attempts.
#[derive(Debug, Clone)]
pub struct Construction {
    objects: usize,
    limits: Vec<Limit>,
    /// Ranges of `limits`.
    ways: Vec<(usize, usize)>,
    choices: Vec<Choice>,
    root: [Paths; 2],
    open: Vec<(f64, usize)>,
}

impl Construction {
    /// The network of a problem; `None` when the relations without a choice contradict each other.
    pub fn new(problem: &Problem) -> Option<Self> {
        let mut network = Self {
            objects: problem.len(),
            limits: Vec::new(),
            ways: Vec::new(),
            choices: Vec::new(),
            root: [Paths::new(problem, X)?, Paths::new(problem, Y)?],
            open: Vec::new(),
        };
        for (index, edge) in problem.edges.iter().enumerate() {
            let first = network.ways.len();
            for way in ways(problem, edge) {
                let start = network.limits.len();
                network.limits.extend(way);
                network.ways.push((start, network.limits.len()));
            }
            let ways = network.ways.len() - first;
            if ways > 0 {
                network.choices.push(Choice { edge: index, first, ways, weight: 1.0 });
            }
        }
        let mut paths = network.root.clone();
        let mut open: Vec<(f64, usize)> = (0..network.choices.len()).map(|at| (0.0, at)).collect();
        network.propagate(&mut paths, &mut open, &mut Vec::new());
        (network.root, network.open) = (paths, open);
        Some(network)
    }

    fn limits(&self, way: usize) -> &[Limit] {
        let (start, end) = self.ways[way];
        &self.limits[start..end]
    }

    /// Share of the present room that a way leaves; `None` when it contradicts the paths, 1 when
    /// they imply it.
    fn room(&self, paths: &[Paths; 2], way: usize) -> Option<f64> {
        let mut room = 1.0f64;
        for limit in self.limits(way) {
            let (most, least) = {
                let paths = &paths[limit.axis];
                (paths.most(limit.from, limit.to), -paths.most(limit.to, limit.from))
            };
            if limit.bound < least {
                return None;
            }
            if limit.bound < most {
                room = room.min((limit.bound - least) / (most - least));
            }
        }
        Some(room)
    }

    fn take(&self, paths: &mut [Paths; 2], way: usize) {
        for limit in self.limits(way) {
            paths[limit.axis].add(limit.from, limit.to, limit.bound);
        }
    }

    /// Step 1 until nothing changes. What is left in `open` comes with its room over its weight,
    /// the least first; relations without a way go to `failed`.
    fn propagate(
        &self,
        paths: &mut [Paths; 2],
        open: &mut Vec<(f64, usize)>,
        failed: &mut Vec<usize>,
    ) {
        loop {
            let mut changed = false;
            open.retain_mut(|(urgency, index)| {
                let choice = &self.choices[*index];
                let (mut room, mut count, mut last) = (0.0, 0, 0);
                for way in choice.first..choice.first + choice.ways {
                    match self.room(paths, way) {
                        Some(1.0) => return false,
                        Some(left) => (room, count, last) = (room + left, count + 1, way),
                        None => {}
                    }
                }
                *urgency = room / choice.weight;
                match count {
                    0 => failed.push(*index),
                    1 => {
                        self.take(paths, last);
                        changed = true;
                    }
                    _ => return true,
                }
                false
            });
            if !changed {
                break;
            }
        }
        open.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    }

    /// One attempt: centres, and the indices of the relations that found no way (empty = all hold).
    pub fn attempt(&mut self, stream: &mut Stream) -> (Vec<[f64; 2]>, Vec<usize>) {
        let mut paths = self.root.clone();
        let mut open = self.open.clone();
        let mut failed = Vec::new();
        self.propagate(&mut paths, &mut open, &mut failed);
        while !open.is_empty() {
            let decided = 1 + open.len() / DECISIONS;
            for (_, index) in open.drain(..decided) {
                let choice = self.choices[index];
                let mut best = None;
                for way in choice.first..choice.first + choice.ways {
                    if let Some(room) = self.room(&paths, way) {
                        // the largest of ln room + Gumbel noise / GREED is a draw by room^GREED
                        let gumbel = -(-stream.uniform().max(1e-300).ln()).ln();
                        let score = room.max(1e-9).ln() + gumbel / GREED;
                        if best.is_none_or(|(most, _)| score > most) {
                            best = Some((score, way));
                        }
                    }
                }
                match best {
                    Some((_, way)) => self.take(&mut paths, way),
                    None => failed.push(index),
                }
            }
            self.propagate(&mut paths, &mut open, &mut failed);
        }
        for &index in &failed {
            self.choices[index].weight += 1.0;
        }
        let centers =
            (0..self.objects).map(|object| [X, Y].map(|axis| paths[axis].middle(object))).collect();
        (centers, failed.iter().map(|&index| self.choices[index].edge).collect())
    }
}

/// Centres by up to `attempts` attempts: the first that lets all relations hold, else those with
/// the fewest relations without a way. `None` when the relations without a choice contradict
/// each other.
pub fn construct(problem: &Problem, attempts: usize, stream: &mut Stream) -> Option<Vec<[f64; 2]>> {
    let mut network = Construction::new(problem)?;
    let mut best: Option<(usize, Vec<[f64; 2]>)> = None;
    for _ in 0..attempts {
        let (centers, failed) = network.attempt(stream);
        if best.as_ref().is_none_or(|(fewest, _)| failed.len() < *fewest) {
            best = Some((failed.len(), centers));
        }
        if failed.is_empty() {
            break;
        }
    }
    best.map(|(_, centers)| centers)
}
