//! Votes laid out for many passes over them.
//!
//! A slot is the place of an item with votes; items with equally many votes have neighbouring
//! slots. The inner loop of a pass then has one length for a whole [`Run`], so that the processor
//! predicts its end. Passes are cut into slices by the data alone: sums are added in the same
//! order for any number of threads.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use crate::votes::{Label, Votes};

/// Below this many votes a pass is over before a second thread would have started.
const PARALLEL_VOTES: usize = 1 << 17;

/// Votes by slot.
pub(super) struct Slots<'a> {
    /// Item of every slot.
    pub(super) item: Vec<u32>,
    /// Worker of every vote.
    worker: Cow<'a, [u32]>,
    /// Label of every vote.
    label: Cow<'a, [Label]>,
    slices: Vec<Slice>,
}

/// Slots that one thread works on.
#[derive(Debug, Clone)]
pub(super) struct Slice {
    /// Its slots.
    pub(super) slots: Range<usize>,
    /// The same by number of votes.
    pub(super) runs: Vec<Run>,
}

/// Neighbouring slots with equally many votes.
#[derive(Debug, Clone)]
pub(super) struct Run {
    /// Votes per slot, at least 1.
    pub(super) length: usize,
    /// Its slots.
    pub(super) slots: Range<usize>,
    /// Where the votes of its first slot begin.
    first: usize,
}

impl<'a> Slots<'a> {
    /// Groups the votes; a slice keeps at most 1/16 of them, and so many that a `table` of numbers
    /// per slice does not outweigh them.
    pub(super) fn new(votes: &'a Votes, table: usize) -> Self {
        let items = votes.items.len();
        let mut counts: Vec<usize> = Vec::new();
        for item in 0..items {
            let length = votes.range(item).len();
            if length >= counts.len() {
                counts.resize(length + 1, 0);
            }
            counts[length] += 1;
        }
        let mut runs: Vec<Run> = Vec::new();
        // Next free (slot, vote) per number of votes.
        let mut next = vec![(0, 0); counts.len()];
        let (mut slot, mut first) = (0, 0);
        for (length, &count) in counts.iter().enumerate().skip(1).filter(|(_, count)| **count > 0) {
            next[length] = (slot, first);
            runs.push(Run { length, slots: slot..slot + count, first });
            slot += count;
            first += count * length;
        }
        let (item, worker, label) = if runs.len() == 1 {
            // Where all items have equally many votes, they stand in this order already.
            let voted = (0..items).filter(|&item| !votes.range(item).is_empty());
            let (worker, label) = (votes.worker_codes(), votes.label_codes());
            (voted.map(|item| item as u32).collect(), Cow::Borrowed(worker), Cow::Borrowed(label))
        } else {
            let mut item_of = vec![0; slot];
            let mut worker = vec![0; votes.len()];
            let mut label = vec![0; votes.len()];
            for item in 0..items {
                let range = votes.range(item);
                if range.is_empty() {
                    continue;
                }
                let length = range.len();
                let (slot, first) = &mut next[length];
                let to = *first..*first + length;
                item_of[*slot] = item as u32;
                worker[to.clone()].copy_from_slice(&votes.worker_codes()[range.clone()]);
                label[to].copy_from_slice(&votes.label_codes()[range]);
                *slot += 1;
                *first += length;
            }
            (item_of, Cow::Owned(worker), Cow::Owned(label))
        };
        let by_table = votes.len() / table.max(1);
        let count = (votes.len() / 16_384).min(by_table).clamp(1, 16);
        let slices = cut(&runs, votes.len().div_ceil(count).max(1));
        Self { item, worker, label, slices }
    }

    /// Number of slots: of items with votes.
    pub(super) fn len(&self) -> usize {
        self.item.len()
    }

    /// Rows by slot (`width` numbers each) as rows by item; items without votes get zeros.
    pub(super) fn by_item(&self, rows: Vec<f64>, width: usize, items: usize) -> Vec<f64> {
        // Borrowed votes stand in the order of their items, and so do their slots.
        if self.len() == items && matches!(self.worker, Cow::Borrowed(_)) {
            return rows;
        }
        let mut out = vec![0.0; items * width];
        for (&item, row) in self.item.iter().zip(rows.chunks_exact(width.max(1))) {
            out[item as usize * width..][..width].copy_from_slice(row);
        }
        out
    }

    /// All runs in order.
    pub(super) fn runs(&self) -> impl Iterator<Item = &Run> {
        self.slices.iter().flat_map(|slice| &slice.runs)
    }

    /// (slot, workers, labels) of every slot of a run.
    #[inline]
    pub(super) fn of(&self, run: &Run) -> impl Iterator<Item = (usize, &[u32], &[Label])> {
        let votes = run.first..run.first + run.slots.len() * run.length;
        run.slots
            .clone()
            .zip(self.worker[votes.clone()].chunks_exact(run.length))
            .zip(self.label[votes].chunks_exact(run.length))
            .map(|((slot, workers), labels)| (slot, workers, labels))
    }

    /// Workers and labels of the slot at `offset` in a run.
    #[inline]
    pub(super) fn at(&self, run: &Run, offset: usize) -> (&[u32], &[Label]) {
        let start = run.first + offset * run.length;
        (&self.worker[start..start + run.length], &self.label[start..start + run.length])
    }

    /// Number of slices of a pass.
    pub(super) fn slice_count(&self) -> usize {
        self.slices.len()
    }

    /// Runs `pass` on every slice with its part of `rows` (`width` numbers a slot); results in the
    /// order of the slices.
    pub(super) fn pass<T: Send, R: Send>(
        &self,
        rows: &mut [T],
        width: usize,
        pass: impl Fn(&Slice, &mut [T]) -> R + Sync,
    ) -> Vec<R> {
        let mut scratch = vec![(); self.slices.len()];
        self.pass_with(rows, width, &mut scratch, |slice, rows, ()| pass(slice, rows))
    }

    /// [`Slots::pass`] with a place to work for every slice.
    pub(super) fn pass_with<T: Send, S: Send, R: Send>(
        &self,
        rows: &mut [T],
        width: usize,
        scratch: &mut [S],
        pass: impl Fn(&Slice, &mut [T], &mut S) -> R + Sync,
    ) -> Vec<R> {
        let mut parts = Vec::with_capacity(self.slices.len());
        let mut rest = rows;
        for (slice, scratch) in self.slices.iter().zip(scratch) {
            let (part, after) = rest.split_at_mut(slice.slots.len() * width);
            parts.push((slice, part, scratch));
            rest = after;
        }
        if self.worker.len() < PARALLEL_VOTES || rayon::current_num_threads() == 1 {
            return parts.into_iter().map(|(slice, rows, own)| pass(slice, rows, own)).collect();
        }
        parts.into_par_iter().map(|(slice, rows, own)| pass(slice, rows, own)).collect()
    }
}

/// Cuts runs into slices of about `size` votes.
fn cut(runs: &[Run], size: usize) -> Vec<Slice> {
    let mut slices = Vec::new();
    let mut current = Slice { slots: 0..0, runs: Vec::new() };
    let mut votes = 0;
    for run in runs {
        let mut from = run.slots.start;
        while from < run.slots.end {
            let take = (size - votes).div_ceil(run.length).min(run.slots.end - from);
            current.runs.push(Run {
                length: run.length,
                slots: from..from + take,
                first: run.first + (from - run.slots.start) * run.length,
            });
            from += take;
            votes += take * run.length;
            if votes >= size {
                current.slots.end = from;
                slices.push(std::mem::replace(
                    &mut current,
                    Slice { slots: from..from, runs: Vec::new() },
                ));
                votes = 0;
            }
        }
        current.slots.end = run.slots.end;
    }
    if !current.runs.is_empty() {
        slices.push(current);
    }
    slices
}
