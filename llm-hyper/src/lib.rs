//! LLM-HYPER (arXiv 2604.12096): an LLM writes the click model of an ad that nobody has clicked.
//!
//! Paper: "LLM-HYPER: Generative CTR Modeling for Cold-Start Ad Personalization via LLM-Based
//! Hypernetworks". From a new ad's text and the k most similar past ads with their trained weights,
//! an LLM writes the weights of that ad's linear click model; no gradient step is taken, and
//! serving is one dot product. The body of the paper is not public: feature schema, prompt wording,
//! rating mode, normalisation and intercept formulas are ours.
//!
//! | equation or algorithm | item |
//! |---|---|
//! | Eq. 1, linear click model | [`model::logit::probability`], [`model::logit::Scorer`] |
//! | Eq. 2, trained weights of retired ads | [`train::fit_library`] |
//! | Eq. 3, retrieval with the leak guard | [`index::Index::retrieve`], [`index::may_demonstrate`], [`model::retrieve::top_k`] |
//! | §3.2, prompts and JSON answers | [`writer::prompts`], [`writer::json`] |
//! | Eq. 4, rating from token probabilities | [`model::rating::expected_rating`] |
//! | Eq. 5, normalisation | [`model::normalise::normalise`] |
//! | Eq. 6, intercept | [`model::intercept::solve`] |
//! | Eq. 7, LLM weights as prior mean | [`model::prior::Prior`] |
//! | §3.6, artefact and serving | [`artefact::Artefact`], [`model::logit::Scorer`] |
//! | §3.7, the pipeline | [`generate::Generator::generate`] |
//! | §7, baselines and controls | [`sources::Sources`], [`baselines`] |
//! | §8, metrics | [`eval`] |
//! | ours: what is special about an ad, added to the median | [`model::residual::Residual`] |
//! | ours: blend learned on retired ads treated as cold | [`blend::Blend`], [`calibrate::Calibration`] |
//!
//! [`mod@bench`] runs the comparison, [`cli`] holds the verbs.

pub mod artefact;
pub mod baselines;
pub mod bench;
pub mod blend;
pub mod calibrate;
pub mod cli;
pub mod config;
pub mod data;
pub mod eval;
pub mod generate;
pub mod index;
pub mod library;
pub mod model;
pub mod sources;
pub mod train;
pub mod writer;
