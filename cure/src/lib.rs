//! CURE: unlearns users' data from an LLM recommender through its circuits.
//!
//! Paper: "CURE: circuit-aware unlearning for LLM-based recommendation", arXiv 2604.04982. Body,
//! equations and tables of the paper are not public to us: this is a reconstruction from the
//! abstract and a secondary summary, with equation numbers of our own.
//!
//! Find the edges of the decoder that recommend (attribution on counterfactual prompts), tell which
//! modules serve what is to be forgotten and what is to be kept, and update each kind by its own rule.
//!
//! | equation or algorithm | item |
//! |---|---|
//! | prompts, history K | [`prompt::Vocabulary::window`] |
//! | erased user tokens (ours) | [`stages::without_users`] |
//! | training, a language model's layers | [`train::fit`], [`model::tokens::with_vocabulary`] |
//! | start from users' and items' likes (ours) | [`train::warm::start`] |
//! | stage A, counterfactuals by personalised PageRank | [`pairs::Corruptor`], [`pairs::Graph`] |
//! | Eq. 1 EAP, Eq. 2 EAP-IG | [`model::attribution::attribute`] |
//! | exact effect of an edge | [`model::attribution::exact`] |
//! | Eq. 3 faithfulness | [`model::circuit::faithfulness`] |
//! | selection by top-n, threshold or greedy | [`model::circuit::select`] |
//! | smallest faithful circuit by bisection, pruning | [`model::circuit::extract`], [`model::circuit::prune`] |
//! | Eq. 4 structural contribution | [`model::groups::structural`] |
//! | Eq. 5 gradient contribution | [`model::attribution::gate_gradients`], [`model::groups::normalised`] |
//! | Eq. 6 contribution | [`model::groups::contribution`] |
//! | groups: set and ratio rule | [`model::Grouping::by_set`], [`model::Grouping::by_ratio`] |
//! | forget and retain losses | [`model::losses`] |
//! | Eq. 7 and 8, updates by group with projection | [`model::update::combine`], [`model::update::projection_factor`] |
//! | stop rule | [`stages::stop_target`] |
//! | the algorithm | [`stages::prepare`], [`train::unlearn::unlearn`] |
//! | baselines and controls | [`baselines::methods`] |
//! | metrics; noise floor | [`eval`]; `bench::table` |
//!
//! [`mod@bench`] runs the comparison, [`cli`] holds the verbs, [`folder`] keeps a
//! model on disk, [`evidence`] holds the unlearning report.

pub mod baselines;
pub mod bench;
pub mod cli;
pub mod config;
pub mod data;
pub mod eval;
pub mod evidence;
pub mod folder;
pub mod model;
pub mod pairs;
pub mod prompt;
pub mod stages;
pub mod train;
