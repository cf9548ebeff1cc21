//! The equations: no I/O, no randomness of their own, no knowledge of data sets.
//!
//! | equation | item |
//! |---|---|
//! | Eq. 1, click probability | [`logit::probability`], many users and ads: [`logit::Scorer`] |
//! | Eq. 3, similarity and retrieval | [`retrieve::top_k`] |
//! | Eq. 4, rating from token probabilities | [`rating::expected_rating`] |
//! | Eq. 5, normalisation | [`normalise::normalise`] |
//! | Eq. 6, intercept | [`intercept::solve`] |
//! | Eq. 7, LLM weights as prior | [`prior::Prior`] |

pub mod intercept;
pub mod linear;
pub mod logit;
pub mod normalise;
pub mod prior;
pub mod rating;
pub mod residual;
pub mod retrieve;
