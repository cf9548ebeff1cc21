//! Votes: a sparse multiset of (item, worker, label), grouped by item.
//!
//! Strings are interned once; a vote costs 6 bytes (`u32` worker, `u16` label) after
//! [`VotesBuilder::finish`] and 18 bytes while it runs. Votes of one item stand next to each
//! other, so every aggregator is one pass over contiguous memory. Repeated rows stay separate
//! votes unless [`Duplicates`] says otherwise: a dense item × worker matrix would lose them.

use std::collections::HashMap;
use std::ops::Range;

use common::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Index of a label; labels stand in ascending order.
pub type Label = u16;

/// The label of an item without any vote.
pub const MISSING: Label = Label::MAX;

/// Most labels that a vote table may have.
const MAX_LABELS: usize = MISSING as usize;

/// What happens to several votes of one worker on one item.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Duplicates {
    /// Every row is one vote.
    #[default]
    Keep,
    /// The first row counts.
    First,
    /// The last row counts.
    Last,
    /// A repeated row is an error.
    Error,
}

/// Interned strings in one buffer.
#[derive(Debug, Clone, Default)]
pub struct Names {
    text: String,
    ends: Vec<usize>,
    /// Positions in ascending order of their string.
    sorted: Vec<u32>,
    /// Without strings: names are the decimal positions `0..numbered`.
    numbered: usize,
}

impl Names {
    /// `count` names that are their own positions, without memory.
    pub fn numbered(count: usize) -> Self {
        Self { numbered: count, ..Self::default() }
    }

    /// Names in the given order; they must be distinct.
    pub fn listed<S: AsRef<str>>(names: &[S]) -> Self {
        let mut list = Self::default();
        for name in names {
            list.text.push_str(name.as_ref());
            list.ends.push(list.text.len());
        }
        list.index();
        list
    }

    fn index(&mut self) {
        let mut sorted: Vec<u32> = (0..self.ends.len() as u32).collect();
        sorted.sort_by(|&a, &b| self.text_of(a as usize).cmp(self.text_of(b as usize)));
        self.sorted = sorted;
    }

    fn text_of(&self, position: usize) -> &str {
        let start = if position == 0 { 0 } else { self.ends[position - 1] };
        &self.text[start..self.ends[position]]
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.ends.len().max(self.numbered)
    }

    /// None at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name at `position`, which must be below [`Names::len`].
    pub fn name(&self, position: usize) -> String {
        if self.numbered > 0 { position.to_string() } else { self.text_of(position).to_owned() }
    }

    /// All names in order.
    pub fn to_vec(&self) -> Vec<String> {
        (0..self.len()).map(|position| self.name(position)).collect()
    }

    /// Where `name` stands.
    pub fn position(&self, name: &str) -> Option<usize> {
        if self.numbered > 0 {
            return name.parse().ok().filter(|&n: &usize| n < self.numbered);
        }
        self.sorted
            .binary_search_by(|&p| self.text_of(p as usize).cmp(name))
            .ok()
            .map(|at| self.sorted[at] as usize)
    }
}

/// Gives each distinct string the next number.
#[derive(Debug, Default)]
struct Interner {
    names: Names,
    numbers: HashMap<Box<str>, u32>,
}

impl Interner {
    fn intern(&mut self, name: &str) -> Result<u32> {
        if let Some(&number) = self.numbers.get(name) {
            return Ok(number);
        }
        let number = u32::try_from(self.names.ends.len())
            .map_err(|_| Error::data("more than 4 billion names", "fewer items or workers"))?;
        self.names.text.push_str(name);
        self.names.ends.push(self.names.text.len());
        self.numbers.insert(name.into(), number);
        Ok(number)
    }

    fn finish(self) -> Names {
        let mut names = self.names;
        drop(self.numbers);
        names.index();
        names
    }
}

/// Collects votes row by row.
#[derive(Debug, Default)]
pub struct VotesBuilder {
    items: Interner,
    workers: Interner,
    labels: Interner,
    closed: bool,
    rows: Vec<(u32, u32, Label)>,
}

impl VotesBuilder {
    /// Labels are those that occur.
    pub fn new() -> Self {
        Self::default()
    }

    /// A closed label set; a vote for anything else is an error.
    pub fn with_labels<S: AsRef<str>>(labels: &[S]) -> Result<Self> {
        let mut builder = Self::default();
        for label in labels {
            builder.label(label.as_ref())?;
        }
        builder.closed = true;
        Ok(builder)
    }

    /// Adds one vote.
    ///
    /// # Errors
    /// A label outside a closed set, or more than 65,534 labels.
    pub fn push(&mut self, item: &str, worker: &str, label: &str) -> Result<()> {
        let label = self.label(label)?;
        let row = (self.items.intern(item)?, self.workers.intern(worker)?, label);
        self.rows.push(row);
        Ok(())
    }

    /// Makes `item` and `worker` known without a vote: the worker failed to answer.
    pub fn push_missing(&mut self, item: &str, worker: &str) -> Result<()> {
        self.items.intern(item)?;
        self.workers.intern(worker)?;
        Ok(())
    }

    fn label(&mut self, label: &str) -> Result<Label> {
        if self.closed && !self.labels.numbers.contains_key(label) {
            return Err(Error::data(
                format!("label {label:?}"),
                format!("one of the {} labels of the set", self.labels.names.ends.len()),
            ));
        }
        let number = self.labels.intern(label)? as usize;
        if number >= MAX_LABELS {
            return Err(Error::data("more than 65,534 labels", "a smaller label set"));
        }
        Ok(number as Label)
    }

    /// How many votes so far.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// No vote so far.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Orders the labels and groups the votes by item.
    ///
    /// # Errors
    /// With [`Duplicates::Error`]: a repeated (item, worker) pair, with the number of its vote.
    pub fn finish(self, duplicates: Duplicates) -> Result<Votes> {
        let labels = self.labels.names;
        let mut order: Vec<usize> = (0..labels.ends.len()).collect();
        sort_labels(&labels, &mut order);
        let mut rank = vec![0 as Label; order.len()];
        for (new, &old) in order.iter().enumerate() {
            rank[old] = new as Label;
        }
        let sorted: Vec<&str> = order.iter().map(|&old| labels.text_of(old)).collect();
        let mut rows = self.rows;
        for row in &mut rows {
            row.2 = rank[row.2 as usize];
        }
        Votes::group(
            self.items.finish(),
            self.workers.finish(),
            Names::listed(&sorted),
            &rows,
            duplicates,
        )
    }
}

/// Ascending: by number if all labels are integers, by code point otherwise.
fn sort_labels(labels: &Names, order: &mut [usize]) {
    let numbers: Option<Vec<i64>> =
        (0..labels.ends.len()).map(|p| labels.text_of(p).parse().ok()).collect();
    match numbers {
        Some(numbers) => order.sort_by_key(|&p| (numbers[p], labels.text_of(p).len())),
        None => order.sort_by(|&a, &b| labels.text_of(a).cmp(labels.text_of(b))),
    }
}

/// The votes of one attribute, grouped by item.
#[derive(Debug, Clone)]
pub struct Votes {
    /// Items in order of first appearance.
    pub items: Names,
    /// Workers (LLMs) in order of first appearance.
    pub workers: Names,
    /// Labels in ascending order.
    pub labels: Names,
    /// Votes of item j: `starts[j]..starts[j + 1]`.
    starts: Vec<usize>,
    worker: Vec<u32>,
    label: Vec<Label>,
    /// Votes per worker.
    cast: Vec<usize>,
    /// Labels in order of first appearance.
    appearance: Vec<Label>,
}

impl Votes {
    /// Votes from numbers instead of strings: rows of (item, worker, label).
    ///
    /// # Errors
    /// A number outside its list of names, or a duplicate under [`Duplicates::Error`].
    pub fn from_rows(
        items: Names,
        workers: Names,
        labels: Names,
        rows: &[(u32, u32, Label)],
        duplicates: Duplicates,
    ) -> Result<Self> {
        let (m, n, l) = (items.len(), workers.len(), labels.len());
        if let Some(row) =
            rows.iter().position(|&(i, w, k)| i as usize >= m || w as usize >= n || k as usize >= l)
        {
            return Err(Error::data(
                format!("vote {} = {:?}", row + 1, rows[row]),
                format!("an item below {m}, a worker below {n} and a label below {l}"),
            ));
        }
        Self::group(items, workers, labels, rows, duplicates)
    }

    /// Stable counting sort by item: votes of an item keep their order.
    fn group(
        items: Names,
        workers: Names,
        labels: Names,
        rows: &[(u32, u32, Label)],
        duplicates: Duplicates,
    ) -> Result<Self> {
        let mut starts = vec![0; items.len() + 1];
        for &(item, _, _) in rows {
            starts[item as usize + 1] += 1;
        }
        for item in 0..items.len() {
            starts[item + 1] += starts[item];
        }
        let mut next = starts.clone();
        let mut worker = vec![0; rows.len()];
        let mut label = vec![0; rows.len()];
        for &(item, w, k) in rows {
            let at = &mut next[item as usize];
            worker[*at] = w;
            label[*at] = k;
            *at += 1;
        }
        let mut appeared = vec![false; labels.len()];
        let mut appearance = Vec::with_capacity(labels.len());
        for &(_, _, k) in rows {
            if !std::mem::replace(&mut appeared[k as usize], true) {
                appearance.push(k);
            }
            if appearance.len() == labels.len() {
                break;
            }
        }
        let cast = Vec::new();
        let mut votes = Self { items, workers, labels, starts, worker, label, cast, appearance };
        if duplicates != Duplicates::Keep {
            votes.remove_duplicates(duplicates, rows)?;
        }
        votes.recount();
        Ok(votes)
    }

    fn remove_duplicates(
        &mut self,
        duplicates: Duplicates,
        rows: &[(u32, u32, Label)],
    ) -> Result<()> {
        // The item that a worker was last seen on, and where that vote now stands.
        let mut seen = vec![(usize::MAX, 0); self.workers.len()];
        let mut kept = 0;
        for item in 0..self.items.len() {
            let range = self.range(item);
            self.starts[item] = kept;
            for at in range {
                let (w, k) = (self.worker[at], self.label[at]);
                let last = &mut seen[w as usize];
                if last.0 == item {
                    match duplicates {
                        Duplicates::Last => self.label[last.1] = k,
                        Duplicates::Error => return Err(self.duplicate_error(item, w, rows)),
                        Duplicates::First | Duplicates::Keep => {}
                    }
                    continue;
                }
                *last = (item, kept);
                self.worker[kept] = w;
                self.label[kept] = k;
                kept += 1;
            }
        }
        let items = self.items.len();
        self.starts[items] = kept;
        self.worker.truncate(kept);
        self.label.truncate(kept);
        Ok(())
    }

    fn duplicate_error(&self, item: usize, worker: u32, rows: &[(u32, u32, Label)]) -> Error {
        let second = rows
            .iter()
            .enumerate()
            .filter(|(_, row)| row.0 as usize == item && row.1 == worker)
            .map(|(at, _)| at + 1)
            .nth(1)
            .unwrap_or_default();
        Error::data(
            format!(
                "vote {second}, a second vote of worker {:?} on item {:?}",
                self.workers.name(worker as usize),
                self.items.name(item)
            ),
            "one vote per worker and item; choose duplicates keep, first or last",
        )
    }

    /// All votes as rows of (item, worker, label), grouped by item.
    pub fn rows(&self) -> impl Iterator<Item = (u32, u32, Label)> + '_ {
        (0..self.items.len()).flat_map(move |item| {
            self.of(item).map(move |(worker, label)| (item as u32, worker as u32, label))
        })
    }

    /// Number of votes.
    pub fn len(&self) -> usize {
        self.worker.len()
    }

    /// No vote at all.
    pub fn is_empty(&self) -> bool {
        self.worker.is_empty()
    }

    /// Where the votes of `item` stand in [`Votes::worker_codes`] and [`Votes::label_codes`].
    #[inline]
    pub fn range(&self, item: usize) -> Range<usize> {
        self.starts[item]..self.starts[item + 1]
    }

    /// (worker, label) of each vote on `item`.
    #[inline]
    pub fn of(&self, item: usize) -> impl ExactSizeIterator<Item = (usize, Label)> + Clone + '_ {
        let range = self.range(item);
        self.worker[range.clone()]
            .iter()
            .zip(&self.label[range])
            .map(|(&worker, &label)| (worker as usize, label))
    }

    /// Worker of every vote.
    pub fn worker_codes(&self) -> &[u32] {
        &self.worker
    }

    /// Label of every vote.
    pub fn label_codes(&self) -> &[Label] {
        &self.label
    }

    /// Labels that occur, in order of their first vote.
    pub fn labels_by_appearance(&self) -> impl Iterator<Item = Label> + '_ {
        self.appearance.iter().copied()
    }

    /// T_i = Σ_j T_ij: votes per worker.
    pub fn votes_per_worker(&self) -> &[usize] {
        &self.cast
    }

    fn recount(&mut self) {
        self.cast = vec![0; self.workers.len()];
        for &worker in &self.worker {
            self.cast[worker as usize] += 1;
        }
    }

    /// Mean number of distinct answers per answered item: the effective L of open label sets.
    pub fn effective_labels(&self) -> f64 {
        let mut last_seen = vec![usize::MAX; self.labels.len()];
        let (mut distinct, mut answered) = (0_usize, 0_usize);
        for item in 0..self.items.len() {
            answered += usize::from(!self.range(item).is_empty());
            for (_, label) in self.of(item) {
                let seen = &mut last_seen[label as usize];
                distinct += usize::from(*seen != item);
                *seen = item;
            }
        }
        if answered == 0 { 0.0 } else { distinct as f64 / answered as f64 }
    }

    /// These votes and then those of `newer`; items, workers and labels are matched by name.
    ///
    /// # Errors
    /// As [`VotesBuilder::finish`].
    pub fn merged(&self, newer: &Self, duplicates: Duplicates) -> Result<Self> {
        let mut builder = VotesBuilder::new();
        for votes in [self, newer] {
            for label in votes.labels.to_vec() {
                builder.label(&label)?;
            }
            let workers = votes.workers.to_vec();
            let labels = votes.labels.to_vec();
            for worker in &workers {
                builder.workers.intern(worker)?;
            }
            for item in 0..votes.items.len() {
                let name = votes.items.name(item);
                builder.items.intern(&name)?;
                for (worker, label) in votes.of(item) {
                    builder.push(&name, &workers[worker], &labels[label as usize])?;
                }
            }
        }
        builder.finish(duplicates)
    }

    /// The same votes without those of one worker (who stays known, without votes).
    pub fn without_worker(&self, dropped: usize) -> Self {
        self.filtered(|worker| worker != dropped)
    }

    /// The votes of the workers that pass `keep`.
    pub fn filtered(&self, keep: impl Fn(usize) -> bool) -> Self {
        let mut votes = self.clone();
        let mut kept = 0;
        for item in 0..self.items.len() {
            votes.starts[item] = kept;
            for (worker, label) in self.of(item) {
                if keep(worker) {
                    votes.worker[kept] = worker as u32;
                    votes.label[kept] = label;
                    kept += 1;
                }
            }
        }
        let items = self.items.len();
        votes.starts[items] = kept;
        votes.worker.truncate(kept);
        votes.label.truncate(kept);
        votes.recount();
        votes
    }
}
