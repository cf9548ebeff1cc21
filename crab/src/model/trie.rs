//! Prefix trie of the semantic IDs: which codes may follow a prefix, which item a full ID names.

use crate::sid::SidTable;

/// Nodes are numbered level by level; node 0 is the root. The children of a node are its codes in
/// ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trie {
    /// Per node, start of its children in `codes` and `nodes`; one more at the end.
    starts: Vec<u32>,
    codes: Vec<u32>,
    nodes: Vec<u32>,
    /// Per node, the only item below it; `NONE` with several.
    items: Vec<u32>,
    levels: usize,
}

const NONE: u32 = u32::MAX;

impl Trie {
    /// The trie of a table. Items that share a full ID are represented by the first of them: use a
    /// table without collisions ([`SidTable::deduplicated`]) to reach all.
    pub fn new(table: &SidTable) -> Self {
        let mut order: Vec<u32> = (0..table.items() as u32).collect();
        order.sort_by(|&a, &b| table.row(a as usize).cmp(table.row(b as usize)).then(a.cmp(&b)));
        let mut trie = Self {
            starts: Vec::new(),
            codes: Vec::new(),
            nodes: Vec::new(),
            items: Vec::new(),
            levels: table.levels(),
        };
        // the range of sorted items below each node of the present level
        let mut level = vec![(0, order.len())];
        let mut next_node = 1u32;
        for depth in 0..table.levels() {
            let mut below = Vec::new();
            for (first, end) in level {
                trie.starts.push(trie.codes.len() as u32);
                trie.items.push(if end - first == 1 { order[first] } else { NONE });
                let mut at = first;
                while at < end {
                    let code = table.row(order[at] as usize)[depth];
                    let same = order[at..end]
                        .iter()
                        .take_while(|&&item| table.row(item as usize)[depth] == code)
                        .count();
                    trie.codes.push(code);
                    trie.nodes.push(next_node);
                    next_node += 1;
                    below.push((at, at + same));
                    at += same;
                }
            }
            level = below;
        }
        for (first, _) in level {
            trie.starts.push(trie.codes.len() as u32);
            trie.items.push(order[first]);
        }
        trie.starts.push(trie.codes.len() as u32);
        trie
    }

    /// Codes that may follow `node`, ascending, and the nodes they lead to.
    pub fn children(&self, node: u32) -> (&[u32], &[u32]) {
        let range = self.starts[node as usize] as usize..self.starts[node as usize + 1] as usize;
        (&self.codes[range.clone()], &self.nodes[range])
    }

    /// The item whose full ID ends at `node`, or the only one below it: then no code is left to
    /// choose.
    pub fn item(&self, node: u32) -> Option<u32> {
        Some(self.items[node as usize]).filter(|&item| item != NONE)
    }

    /// Levels of a full ID.
    pub fn levels(&self) -> usize {
        self.levels
    }

    /// Nodes, the root included.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.len() <= 1
    }

    /// The node of a full ID or prefix; `None` for an invalid one.
    pub fn walk(&self, codes: &[u32]) -> Option<u32> {
        codes.iter().try_fold(0, |node, code| {
            let (known, nodes) = self.children(node);
            known.binary_search(code).ok().map(|at| nodes[at])
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_found_by_its_codes_and_nothing_else_is() {
        let table =
            SidTable::new(&[vec![3, 1, 0], vec![0, 2, 5], vec![3, 1, 4], vec![3, 0, 0]]).unwrap();
        let trie = Trie::new(&table);
        for (item, row) in table.rows().enumerate() {
            let node = trie.walk(row).unwrap();
            assert_eq!(trie.item(node), Some(item as u32));
            assert!(trie.children(node).0.is_empty());
        }
        assert_eq!(trie.children(0).0, [0, 3]);
        assert_eq!(trie.children(trie.walk(&[3]).unwrap()).0, [0, 1]);
        assert_eq!(trie.walk(&[3, 2]), None);
        assert_eq!(trie.item(trie.walk(&[3, 1]).unwrap()), None);
        assert_eq!(trie.item(trie.walk(&[0]).unwrap()), Some(1));
        assert_eq!(trie.len(), 1 + 2 + 3 + 4);
    }
}
