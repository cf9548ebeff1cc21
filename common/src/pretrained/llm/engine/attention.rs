//! Causal attention over cached keys and values, with grouped heads, sliding windows and
//! continuations that share their beginnings.

use super::config::ModelConfig;
use super::kernels;
use super::matrix::Machine;
use super::model::{Batch, LayerCache};
use crate::tensor::ops::product::{Matrix, Start, Threads, gemm};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Most queries of one tile: their scores against all keys are held at a time.
const TILE: usize = 64;

/// One layer's attention.
pub(super) struct Attention<'a> {
    pub(super) config: &'a ModelConfig,
    pub(super) machine: Machine,
    pub(super) batch: &'a Batch<'a>,
    /// Keys that a query sees, itself included; `None` = all.
    pub(super) window: Option<usize>,
    pub(super) cache: &'a LayerCache,
    /// `[token][q, ...]`, rotated.
    pub(super) queries: &'a [f32],
    pub(super) query_stride: usize,
}

thread_local! {
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Attention<'_> {
    /// Writes `[token][query head][head size]` into `out`.
    pub(super) fn run(&self, out: &mut [f32]) {
        let count = self.batch.tokens.len();
        let config = self.config;
        if count == 1 {
            let width = config.query_size() / config.num_key_value_heads;
            let run = |(head, out): (usize, &mut [f32])| self.single(head, out);
            if self.machine.threads > 1 {
                out.par_chunks_mut(width).with_max_len(1).enumerate().for_each(run);
            } else {
                out.chunks_mut(width).enumerate().for_each(run);
            }
            return;
        }
        let width = config.query_size();
        // By the batch alone, so that sums do not depend on the number of threads.
        let tile = count.div_ceil(8).clamp(8, TILE);
        let run = |(index, out): (usize, &mut [f32])| {
            let first = index * tile;
            self.tile(first..first + out.len() / width, out);
        };
        if self.machine.threads > 1 {
            out.par_chunks_mut(tile * width).with_max_len(1).enumerate().for_each(run);
        } else {
            out.chunks_mut(tile * width).enumerate().for_each(run);
        }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.config.head_dim as f32).sqrt()
    }

    /// The first position that a query at `position` sees.
    fn start(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Cached rows `range` of key/value head `head`.
    fn cached<'c>(&self, rows: &'c [f32], head: usize, range: Range<usize>) -> Matrix<'c> {
        let at = head * self.cache.capacity + range.start;
        let width = self.config.head_dim;
        Matrix::new(&rows[at * width..], range.len(), width)
    }

    /// All query heads of one key/value head, for a batch of one token.
    fn single(&self, head: usize, out: &mut [f32]) {
        let width = self.config.head_dim;
        let group = out.len() / width;
        let end = self.batch.prefix + 1;
        let range = self.start(self.batch.positions[0])..end;
        let queries = Matrix::new(&self.queries[head * group * width..], group, width);
        let keys = self.cached(&self.cache.keys, head, range.clone());
        let values = self.cached(&self.cache.values, head, range.clone());
        let count = range.len();
        SCORES.with_borrow_mut(|scores| {
            scores.resize(group * count, 0.0);
            let scale = self.scale();
            gemm(scores, count, queries, keys.t(), scale, Start::Zero, Threads::One);
            for row in scores.chunks_exact_mut(count) {
                kernels::softmax(self.machine.isa, row);
            }
            let scores = Matrix::new(scores, group, count);
            gemm(out, width, scores, values, 1.0, Start::Zero, Threads::One);
        });
    }

    /// The queries `tile`, all heads.
    fn tile(&self, tile: Range<usize>, out: &mut [f32]) {
        let batch = self.batch;
        let width = self.config.head_dim;
        let group = self.config.num_attention_heads / self.config.num_key_value_heads;
        // Cached keys that any query of the tile sees: of the prefix, and of the batch itself.
        // The earliest query decides: in a forest positions go back and forth.
        let earliest = batch.positions[tile.clone()].iter().copied().min().unwrap_or(0);
        let prefix = self.start(earliest).min(batch.prefix)..batch.prefix;
        let first_own = batch.forest.as_ref().map_or(0, |forest| forest.root[tile.start]);
        let own = batch.prefix + first_own..batch.prefix + tile.end;
        let count = prefix.len() + own.len();
        SCORES.with_borrow_mut(|scores| {
            scores.resize(tile.len() * count, 0.0);
            let scale = self.scale();
            for head in 0..self.config.num_attention_heads {
                let queries = &self.queries[tile.start * self.query_stride + head * width..];
                let queries = Matrix::strided(queries, tile.len(), width, self.query_stride);
                for (range, column) in [(prefix.clone(), 0), (own.clone(), prefix.len())] {
                    if !range.is_empty() {
                        let keys = self.cached(&self.cache.keys, head / group, range);
                        let scores = &mut scores[column..];
                        gemm(scores, count, queries, keys.t(), scale, Start::Zero, Threads::One);
                    }
                }
                for (row, query) in scores.chunks_exact_mut(count).zip(tile.clone()) {
                    self.mask(row, query, &prefix, first_own);
                    kernels::softmax(self.machine.isa, row);
                }
                let out_width = self.config.query_size();
                let out = &mut out[head * width..];
                for (range, column) in [(prefix.clone(), 0), (own.clone(), prefix.len())] {
                    if !range.is_empty() {
                        let scores =
                            Matrix::strided(&scores[column..], tile.len(), range.len(), count);
                        let values = self.cached(&self.cache.values, head / group, range);
                        let start = if column > 0 { Start::Output } else { Start::Zero };
                        gemm(out, out_width, scores, values, 1.0, start, Threads::One);
                    }
                }
            }
        });
    }

    /// Puts −∞ at the keys that `query` does not see.
    fn mask(&self, row: &mut [f32], query: usize, prefix: &Range<usize>, first_own: usize) {
        let batch = self.batch;
        let start = self.start(batch.positions[query]);
        let hidden = start.clamp(prefix.start, prefix.end) - prefix.start;
        row[..hidden].fill(f32::NEG_INFINITY);
        let own = &mut row[prefix.len()..];
        let Some(forest) = &batch.forest else {
            own[..start.saturating_sub(batch.prefix)].fill(f32::NEG_INFINITY);
            own[query + 1..].fill(f32::NEG_INFINITY);
            return;
        };
        let mut hidden_from = query + 1 - first_own;
        let mut next = Some(query);
        own[hidden_from..].fill(f32::NEG_INFINITY);
        while let Some(seen) = next.filter(|&seen| batch.positions[seen] >= start) {
            let at = seen - first_own;
            own[at + 1..hidden_from].fill(f32::NEG_INFINITY);
            hidden_from = at;
            next = forest.parent[seen];
        }
        own[..hidden_from].fill(f32::NEG_INFINITY);
    }
}
