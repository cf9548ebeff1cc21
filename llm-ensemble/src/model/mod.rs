//! The equations as pure functions, one function each; no loops over rounds, no I/O.
//!
//! | equation | function |
//! |---|---|
//! | Eq. 1 weighted vote | [`vote::scores`] |
//! | Eq. 2 agreement with the consensus | [`vote::agreement`] |
//! | Eq. 3 linear weight | [`vote::linear_weight`] |
//! | Eq. 4 expected margin | [`bound::expected_margin`] |
//! | Eq. 5 error bound | [`bound::error_bound`] |
//! | Eq. 6 oracle weight | [`vote::log_odds_weight`] |
//! | Eq. 7 M step | [`confusion::m_step`] |
//! | Eq. 8 E step | [`confusion::e_step`] |

pub mod bound;
pub mod clones;
pub mod confusion;
pub mod shrink;
pub mod value_prior;
pub mod vote;
