//! The equations: splitting of over-popular tokens, the regulariser, the generator and its trie.

pub mod generator;
pub mod rebalance;
pub mod regularizer;
pub mod trie;
