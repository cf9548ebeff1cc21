//! SentencePiece BPE with scores: the pair of neighbours whose concatenation has the highest
//! score is merged, the leftmost of equals first, until no concatenation is in the vocabulary
//! (Kudo and Richardson 2018, `bpe_model.cc`).

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// U+2581, which stands for a space inside tokens.
pub(super) const SPACE: &str = "\u{2581}";

pub(super) struct Spm {
    /// Score and id of each token that merging may produce.
    pieces: HashMap<String, (f32, u32)>,
    /// The token of each byte, for characters without a token.
    bytes: [u32; 256],
    space_prefix: bool,
}

/// A run of the text; runs form a doubly linked list by index.
struct Symbol {
    start: usize,
    /// Equal to `start` once the symbol was merged into its left neighbour.
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// A possible merge of two neighbours, with the lengths they had when it was found.
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    length: usize,
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Merge {}

impl Spm {
    pub(super) fn new(
        pieces: HashMap<String, (f32, u32)>,
        bytes: [u32; 256],
        space_prefix: bool,
    ) -> Self {
        Self { pieces, bytes, space_prefix }
    }

    /// Whether encoded text begins with a space that is not in the text.
    pub(super) fn space_prefix(&self) -> bool {
        self.space_prefix
    }

    /// Appends the ids of `text`; `first` when it begins a text or follows a special token.
    pub(super) fn encode(&self, text: &str, first: bool, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let prefix = if first && self.space_prefix { SPACE } else { "" };
        let text = prefix.to_owned() + &text.replace(' ', SPACE);
        let mut symbols = characters(&text);
        let mut queue = BinaryHeap::new();
        let offer = |queue: &mut BinaryHeap<Merge>, symbols: &[Symbol], left: usize| {
            let Some(right) = symbols[left].next else { return };
            let merged = &text[symbols[left].start..symbols[right].end];
            if let Some(&(score, _)) = self.pieces.get(merged) {
                queue.push(Merge { score, left, right, length: merged.len() });
            }
        };
        for left in 0..symbols.len() {
            offer(&mut queue, &symbols, left);
        }
        while let Some(Merge { left, right, length, .. }) = queue.pop() {
            let (a, b) = (&symbols[left], &symbols[right]);
            let stale = a.start == a.end || b.start == b.end || b.end - a.start != length;
            if stale || a.next != Some(right) {
                continue;
            }
            let (end, next) = (b.end, b.next);
            symbols[left].end = end;
            symbols[left].next = next;
            symbols[right].end = symbols[right].start;
            if let Some(next) = next {
                symbols[next].previous = Some(left);
            }
            if let Some(previous) = symbols[left].previous {
                offer(&mut queue, &symbols, previous);
            }
            offer(&mut queue, &symbols, left);
        }
        for symbol in symbols.iter().filter(|symbol| symbol.start < symbol.end) {
            let piece = &text[symbol.start..symbol.end];
            match self.pieces.get(piece) {
                Some(&(_, id)) => ids.push(id),
                None => ids.extend(piece.bytes().map(|byte| self.bytes[usize::from(byte)])),
            }
        }
    }
}

fn characters(text: &str) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = text
        .char_indices()
        .enumerate()
        .map(|(index, (start, c))| Symbol {
            start,
            end: start + c.len_utf8(),
            previous: index.checked_sub(1),
            next: Some(index + 1),
        })
        .collect();
    if let Some(last) = symbols.last_mut() {
        last.next = None;
    }
    symbols
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spm(pieces: &[(&str, f32)], space_prefix: bool) -> Spm {
        let pieces = pieces
            .iter()
            .enumerate()
            .map(|(id, &(piece, score))| (piece.into(), (score, id as u32)))
            .collect();
        Spm::new(pieces, std::array::from_fn(|byte| 1000 + byte as u32), space_prefix)
    }

    fn encode(spm: &Spm, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        spm.encode(text, true, &mut ids);
        ids
    }

    #[test]
    fn the_highest_score_merges_first_then_the_leftmost() {
        let pieces = [("a", -9.0), ("b", -9.0), ("ab", -2.0), ("ba", -1.0), ("aa", -3.0)];
        let spm = spm(&pieces, false);
        assert_eq!(encode(&spm, "ab"), [2]);
        assert_eq!(encode(&spm, "aba"), [0, 3], "ba scores higher than ab");
        assert_eq!(encode(&spm, "aaa"), [4, 0], "the left pair of equals");
        assert_eq!(encode(&spm, ""), [0u32; 0]);
    }

    #[test]
    fn unknown_characters_become_bytes_and_spaces_are_escaped() {
        let pieces = [("\u{2581}", -1.0), ("x", -1.0), ("\u{2581}x", -0.5)];
        assert_eq!(encode(&spm(&pieces, false), "x x"), [1, 2]);
        assert_eq!(encode(&spm(&pieces, true), "x"), [2]);
        assert_eq!(encode(&spm(&pieces, false), "é"), [1000 + 0xc3, 1000 + 0xa9]);
    }
}
