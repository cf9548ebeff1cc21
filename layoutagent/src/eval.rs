//! Metrics of layouts (specification §8). Pure functions; what is undefined is NaN.

use crate::layout::{Frame, Problem, Rect};
use crate::relations::{Relation, edge_holds};

/// Satisfied and given relations of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Satisfied {
    /// Relations that hold.
    pub held: usize,
    /// Relations given.
    pub given: usize,
}

impl Satisfied {
    /// Share that holds; NaN without any.
    pub fn share(self) -> f64 {
        self.held as f64 / self.given as f64
    }
}

/// Constraint satisfaction rate: counts per kind of relation, in the order of [`Relation::ALL`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Csr {
    /// Counts per kind.
    pub per_relation: [Satisfied; Relation::ALL.len()],
}

impl Csr {
    /// Adds a layout of a problem.
    pub fn add(&mut self, problem: &Problem, rects: &[Rect]) {
        for edge in &problem.edges {
            let counts = &mut self.per_relation[edge.relation.index()];
            counts.given += 1;
            counts.held += usize::from(edge_holds(problem.frame, rects, edge));
        }
    }

    /// All kinds together.
    pub fn overall(&self) -> Satisfied {
        let sum = |pick: fn(&Satisfied) -> usize| self.per_relation.iter().map(pick).sum();
        Satisfied { held: sum(|c| c.held), given: sum(|c| c.given) }
    }
}

/// solve@k of one problem from `n` samples of which `solved` are solved: the probability that at
/// least one of k samples drawn without replacement is solved, 1 − C(n − s, k) / C(n, k). NaN when
/// k > n. With k = n it is 0 or 1; with k = 1 the share of solved samples.
pub fn solve_at(k: usize, n: usize, solved: usize) -> f64 {
    if k > n {
        return f64::NAN;
    }
    let missed = n - solved;
    if missed < k {
        return 1.0;
    }
    let none: f64 = (0..k).map(|i| (missed - i) as f64 / (n - i) as f64).product();
    1.0 - none
}

/// The three overlap scores that papers mix up, of one layout.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Overlap {
    /// LayoutGAN++ and LayoutDM: (1/N) Σ_i Σ_{j≠i} area(i∩j) / area(i).
    pub layout_gan_pp: f64,
    /// AC-LayoutGAN: the same without 1/N.
    pub ac_layout_gan: f64,
    /// LayoutGAN: Σ_{i<j} area(i∩j), in shares of the canvas.
    pub layout_gan: f64,
}

/// Overlap of all pairs of boxes. Boxes without area add nothing; 0 without boxes.
pub fn overlap(frame: Frame, rects: &[Rect]) -> Overlap {
    let mut score = Overlap::default();
    for (i, a) in rects.iter().enumerate() {
        for (j, b) in rects.iter().enumerate() {
            let common = a.intersection(*b);
            if i != j && a.area() > 0.0 {
                score.ac_layout_gan += common / a.area();
            }
            if i < j {
                score.layout_gan += common / (frame.width * frame.height);
            }
        }
    }
    score.layout_gan_pp = score.ac_layout_gan / rects.len().max(1) as f64;
    score
}

/// Alignment of LayoutGAN++ and LayoutDM: (1/N) Σ_i −log(1 − min |Δ|) over the six edges and
/// centres {xl, xc, xr, yt, yc, yb} and all j ≠ i, in shares of the canvas. A difference of exactly
/// 1 counts as 0, as in the reference; 0 with fewer than two boxes. Papers print it × 100.
pub fn alignment(frame: Frame, rects: &[Rect]) -> f64 {
    let lines: Vec<[f64; 6]> = rects
        .iter()
        .map(|&rect| {
            let [x, y, w, h] = frame.to_canvas(rect);
            [x, x + w / 2.0, x + w, y, y + h / 2.0, y + h]
        })
        .collect();
    let mut sum = 0.0;
    for (i, own) in lines.iter().enumerate() {
        let mut least = 1.0f64;
        for (j, other) in lines.iter().enumerate() {
            if i != j {
                for (a, b) in own.iter().zip(other) {
                    least = least.min((a - b).abs());
                }
            }
        }
        if least < 1.0 {
            sum -= (1.0 - least).ln();
        }
    }
    sum / rects.len().max(1) as f64
}

/// Mean share of the boxes' area outside the frame. NaN without boxes.
pub fn out_of_frame(frame: Frame, rects: &[Rect]) -> f64 {
    let canvas = Rect { x: 0.0, y: 0.0, w: frame.width, h: frame.height };
    let outside = |rect: &Rect| (1.0 - rect.intersection(canvas) / rect.area()).max(0.0);
    rects.iter().map(outside).sum::<f64>() / rects.len() as f64
}

/// Size fidelity: mean |log((h_i/h_j) / (ĥ_i/ĥ_j))| over pairs of drawn heights h and expected
/// heights ĥ. 0 = relative sizes as expected; NaN with fewer than two.
pub fn size_fidelity(heights: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(heights.len(), expected.len(), "one expected height per object");
    let mut values = Vec::new();
    for i in 0..heights.len() {
        for j in i + 1..heights.len() {
            let ratio = heights[i] / heights[j] / (expected[i] / expected[j]);
            values.push(ratio.ln().abs());
        }
    }
    values.iter().sum::<f64>() / values.len() as f64
}

/// Mean |lower edge of a − upper edge of b| over the `on` relations of a problem, in relation
/// units; NaN without any.
pub fn support_gap(problem: &Problem, rects: &[Rect]) -> f64 {
    let gaps: Vec<f64> = problem
        .edges
        .iter()
        .filter(|edge| edge.relation == Relation::On)
        .filter_map(|edge| Some((rects[edge.a].bottom() - rects[edge.b?].top()).abs()))
        .collect();
    gaps.iter().sum::<f64>() / gaps.len() as f64
}

/// Diversity: mean distance of an object's centres over all pairs of layouts of one problem. NaN
/// with fewer than two layouts.
pub fn diversity(layouts: &[&[[f64; 2]]]) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for (index, first) in layouts.iter().enumerate() {
        for second in &layouts[index + 1..] {
            for (a, b) in first.iter().zip(*second) {
                sum += (a[0] - b[0]).hypot(a[1] - b[1]);
                count += 1;
            }
        }
    }
    sum / count as f64
}

/// Direction of one box from another in NSR-1K's metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Component to the right above √2/2.
    Right,
    /// To the left.
    Left,
    /// Upwards.
    Top,
    /// Downwards.
    Bottom,
    /// None of them.
    Diagonal,
}

/// Direction of the centre of `first` from that of `second`; `None` when the centres coincide.
pub fn direction(first: Rect, second: Rect) -> Option<Direction> {
    let (dx, dy) = (first.x - second.x, first.y - second.y);
    let length = dx.hypot(dy);
    if length == 0.0 {
        return None;
    }
    let (x, y, least) = (dx / length, dy / length, std::f64::consts::FRAC_1_SQRT_2);
    Some(match () {
        () if x > least => Direction::Right,
        () if x < -least => Direction::Left,
        () if y > least => Direction::Top,
        () if y < -least => Direction::Bottom,
        () => Direction::Diagonal,
    })
}

/// NSR-1K's spatial accuracy of one scene: whether the first object lies where the relation says.
/// "next to" also accepts left and right; coincident centres are wrong.
pub fn spatially_right(relation: &str, first: Rect, second: Rect) -> bool {
    match (relation, direction(first, second)) {
        ("left", Some(Direction::Left))
        | ("right", Some(Direction::Right))
        | ("top", Some(Direction::Top))
        | ("bottom", Some(Direction::Bottom)) => true,
        ("next to", Some(found)) => matches!(found, Direction::Left | Direction::Right),
        _ => false,
    }
}
