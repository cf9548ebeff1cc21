//! LLM-Ensemble: weights several LLMs' answers to extract product attribute values.
//!
//! Paper: "LLM-Ensemble: Optimal Large Language Model Ensemble Method for E-commerce Product
//! Attribute Value Extraction", arXiv 2403.00863, SIGIR 2024. Every LLM answers every (product,
//! attribute) with a label of a closed set; accuracies and labels are estimated in turn from
//! agreement alone, and each LLM votes with a weight that grows with its accuracy. No gold label
//! is needed. Formulas follow the paper's ancestor, Li and Yu 2014 (arXiv 1411.4086), since the
//! body of the paper is not public.
//!
//! | equation or algorithm | item |
//! |---|---|
//! | answers W, sparse, repeated rows kept | [`votes::Votes`] |
//! | Algorithm 1, iterative weighted majority vote | [`train::fit`] with [`train::Method::Iwmv`] |
//! | Eq. 1, weighted score and arg max | [`model::vote::scores`], [`model::vote::argmax`] |
//! | Eq. 2, agreement with the consensus | [`model::vote::agreement`] |
//! | Eq. 3, v = L·w − 1 | [`model::vote::linear_weight`] |
//! | Eq. 4, expected margin | [`model::bound::expected_margin`] |
//! | Eq. 5, error bound | [`model::bound::error_bound`] |
//! | Eq. 6, log-odds weight | [`model::vote::log_odds_weight`] |
//! | Algorithm 2, Dawid–Skene EM | [`train::fit`] with [`train::Method::DawidSkene`] |
//! | Eq. 7, M step | [`model::confusion::m_step`] |
//! | Eq. 8, E step | [`model::confusion::e_step`], one coin: [`model::confusion::e_step_odds`] |
//! | §3.1 ties, L, degenerate input | [`train::Ties`], [`train::Cardinality`], [`train::Warning`] |
//! | §3.4 prompts (list, schema) and parser | [`labelers::prompts`], [`data::parse`] |
//! | §3.5 labelers | [`labelers::Labeler`] and its implementations |
//! | §10 weights shared across attributes, with shrinkage | [`train::Shared`], [`train::per_attribute_shared`] |
//! | §10 incremental update with new votes | [`train::update`] |
//! | §10 gold rows, prior accuracies | [`train::Evidence`] |
//! | §10 calibrated posterior, confidence, abstention | [`eval::calibrate`], [`ensemble::labelled`] |
//! | §8, §10 label cost report | [`eval::label_cost`] |
//! | Eq. 8 on other votes, with a fitted model | [`ensemble::Ensemble::predict`], [`train::confusions`] |
//! | one coin over closed and open label sets | [`train::Method::OneCoin`], [`train::Method::OpenOneCoin`] |
//! | §7 baselines | [`baselines`] |
//! | §8 metrics | [`eval`] |
//! | ours: opinion pool for errors that depend on the class or are shared | [`train::Method::OpinionPool`] |
//! | ours: near-copies among the workers | [`train::Method::IwmvClones`], [`model::clones`] |
//!
//! `label` asks the labelers ([`mod@label`]), [`ensemble`] holds a fitted model on disk, [`mod@bench`]
//! runs the comparison, [`cli`] holds the verbs. The crate has no synthetic generator of its own
//! besides those in its tests.

pub mod baselines;
pub mod bench;
pub mod cli;
pub mod config;
pub mod data;
pub mod ensemble;
pub mod eval;
pub mod label;
pub mod labelers;
pub mod model;
pub mod train;
pub mod votes;
