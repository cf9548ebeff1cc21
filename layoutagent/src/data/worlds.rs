//! Training and test worlds: a guillotine partition of the container with its true relations
//! (specification §3.8).

use common::rng::Stream;

use crate::layout::{Edge, Frame, Problem, Rect};
use crate::relations::{Relation, relations_of};

/// Regions whose smaller side is not above this are dropped.
const MIN_SIDE: f64 = 0.4;
/// Paddings are uniform from 0 to this.
const MAX_PADDING: f64 = 0.2;
const STOP: f64 = 0.3;

/// A problem together with one layout that solves it.
#[derive(Debug, Clone, PartialEq)]
pub struct World {
    /// Sizes and relations.
    pub problem: Problem,
    /// Centres that satisfy them.
    pub solution: Vec<[f64; 2]>,
}

/// Boxes of a random guillotine partition of the frame, for up to about `most` objects.
pub fn guillotine(frame: Frame, most: usize, stream: &mut Stream) -> Vec<Rect> {
    let depth = most.max(1).next_power_of_two().ilog2() + 1;
    let (w, h) = (frame.width / 2.0, frame.height / 2.0);
    let mut regions = Vec::new();
    split([-w, -h, w, h], depth, stream, &mut regions);
    regions.into_iter().filter_map(|region| shrink(region, stream)).collect()
}

fn split(region: [f64; 4], depth: u32, stream: &mut Stream, out: &mut Vec<[f64; 4]>) {
    if depth == 0 || stream.chance(STOP) {
        out.push(region);
        return;
    }
    let axis = usize::from(stream.chance(0.5));
    let (low, high) = (region[axis], region[axis + 2]);
    let cut = low + (high - low) * stream.uniform();
    let (mut first, mut second) = (region, region);
    first[axis + 2] = cut;
    second[axis] = cut;
    split(first, depth - 1, stream, out);
    split(second, depth - 1, stream, out);
}

/// The region less four paddings; `None` when it is too small.
fn shrink([left, bottom, right, top]: [f64; 4], stream: &mut Stream) -> Option<Rect> {
    let (w, h) = (right - left, top - bottom);
    if w <= MIN_SIDE || h <= MIN_SIDE {
        return None;
    }
    let mut pad = || MAX_PADDING * stream.uniform();
    let (l, r, b, t) = (pad(), pad(), pad(), pad());
    if w <= l + r || h <= b + t {
        return None;
    }
    let (left, right, bottom, top) = (left + l, right - r, bottom + b, top - t);
    let (x, y) = ((left + right) / 2.0, (bottom + top) / 2.0);
    Some(Rect { x, y, w: right - left, h: top - bottom })
}

/// A world of exactly `count` objects with all relations that hold, in the container of
/// Diffusion-CCSP; symmetric relations are stored in random order, as there.
pub fn world(count: usize, stream: &mut Stream) -> World {
    let rects = loop {
        let rects = guillotine(Frame::CCSP, count, stream);
        if rects.len() == count {
            break rects;
        }
    };
    of_rects(Frame::CCSP, &rects, stream)
}

/// The world of given boxes.
fn of_rects(frame: Frame, rects: &[Rect], stream: &mut Stream) -> World {
    let mut edges = relations_of(frame, rects);
    for edge in &mut edges {
        if let (true, Some(b)) = (edge.relation.is_symmetric(), edge.b)
            && stream.chance(0.5)
        {
            *edge = Edge::binary(edge.relation, b, edge.a);
        }
    }
    World {
        problem: Problem::new(frame, rects.iter().map(|r| [r.w, r.h]).collect(), edges),
        solution: rects.iter().map(|r| [r.x, r.y]).collect(),
    }
}

/// The same world with each relation but `in` and `cfree` kept with probability `share`: the sparse
/// graphs that people and language models write.
pub fn sparse(mut world: World, share: f64, stream: &mut Stream) -> World {
    world.problem.edges.retain(|edge| {
        matches!(edge.relation, Relation::In | Relation::Cfree) || stream.chance(share)
    });
    world
}

/// A stress world of `count` objects on a frame that grows with their number (thresholds do not):
/// a shuffled grid of padded cells.
pub fn crowd(count: usize, stream: &mut Stream) -> World {
    let columns = ((count as f64 * 1.5).sqrt().ceil() as usize).max(1);
    let rows = count.div_ceil(columns);
    let cell = 0.8;
    let frame = Frame { width: columns as f64 * cell, height: rows as f64 * cell };
    let mut cells = stream.permutation(columns * rows);
    cells.truncate(count);
    let rects: Vec<Rect> = cells
        .into_iter()
        .map(|at| {
            let (column, row) = ((at % columns) as f64, (at / columns) as f64);
            let (left, bottom) =
                (column * cell - frame.width / 2.0, row * cell - frame.height / 2.0);
            let mut pad = || 0.02 + 0.18 * stream.uniform();
            let (l, r, b, t) = (pad(), pad(), pad(), pad());
            let (w, h) = (cell - l - r, cell - b - t);
            Rect { x: left + l + w / 2.0, y: bottom + b + h / 2.0, w, h }
        })
        .collect();
    of_rects(frame, &rects, stream)
}

/// `count` worlds of `objects` objects each.
pub fn worlds(objects: usize, count: usize, stream: &mut Stream) -> Vec<World> {
    (0..count).map(|_| world(objects, stream)).collect()
}
