//! Beam search over the trie, for many histories at once; without a limit it is the exact scorer.

use candle_core::Tensor;
use common::optim::Workers;
use common::{Error, Result};

use crate::model::generator::{BeamCache, Generator, Prefix, log_softmax};
use crate::model::trie::Trie;
use crate::sid::SidTable;

/// Histories decoded at a time by one worker.
const ROWS: usize = 32;

/// | option | purpose |
/// |---|---|
/// | `beams` | prefixes kept per level; `usize::MAX` scores every item exactly |
/// | `renormalise` | whether a level's probabilities are taken over the codes that the trie allows (mask before the softmax, default of the crate) or over all codes (mask after it, as MiniOneRec does) |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeOptions {
    /// See the table.
    pub beams: usize,
    /// See the table.
    pub renormalise: bool,
}

/// Items with their log-probabilities, best first; ties in the order of the trie.
pub type Ranked = Vec<(u32, f64)>;

/// The items that the generator finds for each history. Every answer is an item of the trie, so
/// the share of invalid ids is 0 by construction; a full ID without an item is an error.
///
/// # Errors
/// Those of candle.
pub fn decode(
    model: &Generator,
    table: &SidTable,
    histories: &[&[u32]],
    options: DecodeOptions,
    workers: &Workers,
) -> Result<Vec<Ranked>> {
    let trie = Trie::new(table);
    let model = model.frozen()?;
    // histories of like length side by side waste no filling
    let mut order: Vec<usize> = (0..histories.len()).collect();
    order.sort_by_key(|&at| histories[at].len());
    let chunks: Vec<&[usize]> = order.chunks(ROWS).collect();
    let parts = workers.map(chunks.len(), |chunk| {
        let ids =
            |&at: &usize| histories[at].iter().map(|&item| table.row(item as usize)).collect();
        let rows: Vec<Vec<&[u32]>> = chunks[chunk].iter().map(ids).collect();
        decode_rows(&model, &trie, &rows, options)
    })?;
    let mut ranked = vec![Ranked::new(); histories.len()];
    order.iter().zip(parts.into_iter().flatten()).for_each(|(&at, found)| ranked[at] = found);
    Ok(ranked)
}

/// A prefix: its beam of the step before, its code, its node, its log-probability.
#[derive(Clone, Copy)]
struct Beam {
    parent: u32,
    code: u32,
    node: u32,
    sum: f64,
}

fn decode_rows(
    model: &Generator,
    trie: &Trie,
    rows: &[Vec<&[u32]>],
    options: DecodeOptions,
) -> Result<Vec<Ranked>> {
    let batch = model.histories(rows)?;
    let (state, prefix) = model.read(&batch)?;
    let mut state = state.unsqueeze(1)?; // (rows, beams, width)
    let root = Beam { parent: 0, code: 0, node: 0, sum: 0.0 };
    let mut open: Vec<Vec<Beam>> = vec![vec![root]; rows.len()];
    // a prefix of a single item: all codes that follow are forced and have probability 1
    let mut done: Vec<Vec<Beam>> = vec![Vec::new(); rows.len()];
    let mut cache = BeamCache::default();
    for level in 0..trie.levels() {
        if level > 0 {
            state = step(model, &prefix, &mut cache, level - 1, &open)?;
        }
        let beams = state.dim(1)?;
        let logits = model.logits(&state, level)?.flatten_to(1)?.to_vec2::<f32>()?;
        for (row, (open, done)) in open.iter_mut().zip(&mut done).enumerate() {
            let mut next = std::mem::take(done);
            for (at, beam) in open.iter().enumerate() {
                extend(&mut next, trie, at, beam, &logits[row * beams + at], options.renormalise);
            }
            let order = |a: &Beam, b: &Beam| b.sum.total_cmp(&a.sum).then(a.node.cmp(&b.node));
            if next.len() > options.beams {
                next.select_nth_unstable_by(options.beams, order);
                next.truncate(options.beams);
            }
            next.sort_unstable_by(order);
            let ended = |beam: &Beam| options.renormalise && trie.item(beam.node).is_some();
            (*done, *open) = next.into_iter().partition(ended);
        }
        if open.iter().all(Vec::is_empty) {
            break;
        }
    }
    let items = |beams: Vec<Beam>| {
        let item = |beam: Beam| match trie.item(beam.node) {
            Some(item) => Ok((item, beam.sum)),
            None => Err(Error::Bug("a beam ended on an id without an item".into())),
        };
        beams.into_iter().map(item).collect()
    };
    let rest = if options.renormalise { done } else { open };
    rest.into_iter().map(items).collect()
}

/// Feeds the beams' codes; rows with fewer beams are filled up with their first one.
fn step(
    model: &Generator,
    prefix: &Prefix,
    cache: &mut BeamCache,
    level: usize,
    open: &[Vec<Beam>],
) -> Result<Tensor> {
    let beams = open.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let (mut codes, mut parents) = (Vec::new(), Vec::new());
    for row in open {
        for at in 0..beams {
            let beam = row.get(at).or(row.first());
            codes.push(beam.map_or(0, |beam| beam.code));
            parents.push(beam.map_or(0, |beam| beam.parent));
        }
    }
    model.step(prefix, cache, level, &codes, &parents)
}

fn extend(
    next: &mut Vec<Beam>,
    trie: &Trie,
    at: usize,
    beam: &Beam,
    logits: &[f32],
    renormalise: bool,
) {
    let (codes, nodes) = trie.children(beam.node);
    let parent = at as u32;
    let mut push = |code: u32, node: u32, log: f64| {
        next.push(Beam { parent, code, node, sum: beam.sum + log });
    };
    if renormalise {
        let allowed: Vec<f32> = codes.iter().map(|&code| logits[code as usize]).collect();
        let logs = log_softmax(&allowed);
        codes.iter().zip(nodes).zip(logs).for_each(|((&code, &node), log)| push(code, node, log));
    } else {
        let logs = log_softmax(logits);
        codes.iter().zip(nodes).for_each(|(&code, &node)| push(code, node, logs[code as usize]));
    }
}
