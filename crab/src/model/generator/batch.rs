//! Windows of semantic IDs as tensors: what is read, which codes are targets.

use candle_core::{Device, Tensor};
use common::ops::{self, CrossEntropyOptions, Reduction};
use common::{Error, Result};

use super::{Architecture, Generator};
use crate::model::trie::Trie;

/// Which codes of a batch count in the loss, and how.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counted<'a> {
    /// Leading items of each row that are read but not predicted.
    pub context: usize,
    /// Weight of each item of each row; `None` = all 1.
    pub weights: Option<&'a [Vec<f32>]>,
    /// Take probabilities over the codes that the trie allows after the target's own prefix, as
    /// decoding does, instead of over all codes of the level.
    pub trie: Option<&'a Trie>,
}

/// Flattened semantic IDs of several rows, filled up at the end.
#[derive(Debug, Clone)]
pub struct Batch {
    /// What is read, start token first: rows of the joined table, `[rows, longest]`. A row is a
    /// window; for an encoder–decoder it is the history of one target.
    pub(super) ids: Tensor,
    /// Tokens read in each row.
    pub(super) lengths: Vec<usize>,
    /// What the decoder of an encoder–decoder reads, `[rows, levels]`: start token and all codes of
    /// the target but the last.
    pub(super) decoded: Option<Tensor>,
    /// Per level.
    pub(super) targets: Vec<Targets>,
    /// Items whose codes are targets.
    pub(super) items: usize,
}

/// The codes of a level that a batch asks for.
#[derive(Debug, Clone, Default)]
pub(super) struct Targets {
    /// Flat positions in the hidden states whose next code is of this level.
    pub(super) at: Vec<u32>,
    /// Those codes.
    pub(super) codes: Vec<u32>,
    /// Weight of each; empty = all 1.
    weights: Vec<f32>,
    /// Allowed codes of each; empty = all.
    allowed: Vec<Vec<u32>>,
}

impl Batch {
    /// Without the tokens after the last target of any row: nothing looks at them.
    fn trimmed(mut self) -> Result<Self> {
        let longest = self.ids.dim(1)? as u32;
        let positions = || self.targets.iter().flat_map(|targets| &targets.at);
        let Some(last) = positions().map(|at| at % longest).max() else { return Ok(self) };
        let kept = last + 1;
        self.ids = self.ids.narrow(1, 0, kept as usize)?.contiguous()?;
        self.lengths.iter_mut().for_each(|length| *length = (*length).min(kept as usize));
        let all = self.targets.iter_mut().flat_map(|targets| &mut targets.at);
        all.for_each(|at| *at = *at / longest * kept + *at % longest);
        Ok(self)
    }

    /// Number of items whose codes are targets.
    pub fn target_items(&self) -> usize {
        self.items
    }

    /// 0 for a token, −1e9 for filling, `[rows, 1, 1, longest]`: added to scores.
    pub(super) fn score_mask(&self) -> Result<Tensor> {
        let (rows, longest) = self.ids.dims2()?;
        let mut mask = vec![-1e9f32; rows * longest];
        for (row, &length) in mask.chunks_exact_mut(longest).zip(&self.lengths) {
            row[..length].fill(0.0);
        }
        Ok(Tensor::from_vec(mask, (rows, 1, 1, longest), &Device::Cpu)?)
    }

    /// 1 for a token, 0 for filling, `[rows, longest]`.
    pub(super) fn mask(&self) -> Result<Tensor> {
        let (rows, longest) = self.ids.dims2()?;
        let mut mask = vec![0u32; rows * longest];
        for (row, &length) in mask.chunks_exact_mut(longest).zip(&self.lengths) {
            row[..length].fill(1);
        }
        Ok(Tensor::from_vec(mask, (rows, longest), &Device::Cpu)?)
    }
}

impl Generator {
    /// Windows of semantic IDs as a batch for training. Each row is a list of items' codes, of which
    /// the latest `history + 1` count; `counted` says which of them are targets.
    ///
    /// # Errors
    /// Those of candle; codes that the trie does not know.
    pub fn batch(&self, rows: &[Vec<&[u32]>], counted: Counted<'_>) -> Result<Batch> {
        let levels = self.tables.len();
        let most = self.options.history + 1;
        let mut targets = vec![Targets::default(); levels];
        let mut items = 0;
        let mut add = |at: usize, codes: &[u32], weight: Option<f32>| {
            items += 1;
            add_targets(&mut targets, at as u32, codes, weight, counted.trie)
        };
        let kept = |row: &[&[u32]]| row.len().saturating_sub(most)..row.len();
        let weight = |row: usize, item: usize| counted.weights.map(|all| all[row][item]);
        if self.options.architecture == Architecture::Decoder {
            let read: Vec<&[&[u32]]> = rows.iter().map(|row| &row[kept(row)]).collect();
            let (ids, lengths) = self.read_ids(&read)?;
            let longest = ids.dim(1)?;
            for (number, row) in rows.iter().enumerate() {
                let first = kept(row).start;
                for (item, codes) in row.iter().enumerate().skip(first + counted.context) {
                    let at = number * longest + (item - first) * levels;
                    add(at, codes, weight(number, item))?;
                }
            }
            return Batch { ids, lengths, decoded: None, targets, items }.trimmed();
        }
        let (mut read, mut decoded): (Vec<&[&[u32]]>, Vec<u32>) = (Vec::new(), Vec::new());
        let offsets = self.offsets()?;
        for (number, row) in rows.iter().enumerate() {
            let first = kept(row).start;
            for (item, codes) in row.iter().enumerate().skip(first + counted.context) {
                add(read.len() * levels, codes, weight(number, item))?;
                read.push(&row[item.saturating_sub(self.options.history)..item]);
                decoded.push(0);
                let before = offsets.iter().zip(*codes).take(levels - 1);
                decoded.extend(before.map(|(offset, code)| offset + code));
            }
        }
        let (ids, lengths) = self.read_ids(&read)?;
        let decoded = Some(Tensor::from_vec(decoded, (read.len(), levels), &Device::Cpu)?);
        Ok(Batch { ids, lengths, decoded, targets, items })
    }

    /// Histories as a batch for decoding: of each row the latest `history` items, no targets.
    ///
    /// # Errors
    /// Those of candle.
    pub fn histories(&self, rows: &[Vec<&[u32]>]) -> Result<Batch> {
        let latest = |row: &Vec<&[u32]>| row.len().saturating_sub(self.options.history);
        let read: Vec<&[&[u32]]> = rows.iter().map(|row| &row[latest(row)..]).collect();
        let (ids, lengths) = self.read_ids(&read)?;
        let targets = vec![Targets::default(); self.tables.len()];
        Ok(Batch { ids, lengths, decoded: None, targets, items: 0 })
    }

    /// First row of each level in the joined table, whose row 0 is the start token.
    fn offsets(&self) -> Result<Vec<u32>> {
        let mut next = 1;
        let place = |size: usize| {
            next += size as u32;
            next - size as u32
        };
        Ok(self.sizes()?.into_iter().map(place).collect())
    }

    /// Rows of the joined table `[rows, longest]`, start token first, and how many are no filling.
    fn read_ids(&self, rows: &[&[&[u32]]]) -> Result<(Tensor, Vec<usize>)> {
        let levels = self.tables.len();
        let offsets = self.offsets()?;
        let lengths: Vec<usize> = rows.iter().map(|row| 1 + levels * row.len()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(1);
        let mut ids = vec![0u32; rows.len() * longest];
        for (ids, row) in ids.chunks_exact_mut(longest).zip(rows) {
            for (ids, codes) in ids[1..].chunks_exact_mut(levels).zip(*row) {
                let tokens = offsets.iter().zip(*codes);
                ids.iter_mut().zip(tokens).for_each(|(id, (offset, code))| *id = offset + code);
            }
        }
        Ok((Tensor::from_vec(ids, (rows.len(), longest), &Device::Cpu)?, lengths))
    }
}

/// Adds the codes of an item whose first code follows flat position `at`. With a trie, a code that
/// is the only one allowed is certain and no target.
fn add_targets(
    targets: &mut [Targets],
    at: u32,
    codes: &[u32],
    weight: Option<f32>,
    trie: Option<&Trie>,
) -> Result<()> {
    let mut node = 0;
    for (level, (targets, &code)) in targets.iter_mut().zip(codes).enumerate() {
        if let Some(trie) = trie {
            let (allowed, nodes) = trie.children(node);
            let found = allowed.binary_search(&code).map_err(|_| {
                Error::data(format!("semantic ID {codes:?}"), "one of the trie's items")
            })?;
            node = nodes[found];
            if allowed.len() == 1 {
                continue;
            }
            targets.allowed.push(allowed.to_vec());
        }
        targets.at.push(at + level as u32);
        targets.codes.push(code);
        targets.weights.extend(weight);
    }
    Ok(())
}

impl Targets {
    /// Sum of the cross-entropies of the codes, from hidden states `[targets, width]` and the
    /// level's table.
    pub(super) fn loss(&self, rows: &Tensor, table: &Tensor) -> Result<Tensor> {
        let codes = Tensor::new(&self.codes[..], &Device::Cpu)?;
        if self.weights.is_empty() && self.allowed.is_empty() {
            let mean = ops::linear_cross_entropy(rows, table, None, &codes)?;
            return Ok((mean * self.codes.len() as f64)?);
        }
        let mut logits = ops::linear(rows, table, None)?;
        if !self.allowed.is_empty() {
            let size = table.dim(0)?;
            let mut mask = vec![-1e9f32; self.allowed.len() * size];
            for (row, allowed) in mask.chunks_exact_mut(size).zip(&self.allowed) {
                allowed.iter().for_each(|&code| row[code as usize] = 0.0);
            }
            logits = (logits + Tensor::from_vec(mask, (self.allowed.len(), size), &Device::Cpu)?)?;
        }
        let each = |reduction| CrossEntropyOptions { reduction, ..CrossEntropyOptions::default() };
        if self.weights.is_empty() {
            return Ok(ops::cross_entropy(&logits, &codes, &each(Reduction::Sum))?);
        }
        let losses = ops::cross_entropy(&logits, &codes, &each(Reduction::None))?;
        Ok(ops::weighted_sum(&losses, &Tensor::new(&self.weights[..], &Device::Cpu)?)?)
    }
}
