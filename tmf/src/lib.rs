//! Triple Modality Fusion (TMF): image, text and graph vectors at placeholder tokens of an LLM, for
//! multi-behaviour recommendation.
//!
//! Paper: "Triple Modality Fusion: Aligning Visual, Textual, and Graph Data with Large Language
//! Models for Multi-Behavior Recommendations", arXiv 2410.12228. A user's events are written as
//! text; at each event's placeholder stands a vector that cross-modality attention (CMA) and
//! all-modality self-attention (AMSA) fuse from frozen embeddings; the LM names the next item. The
//! body of the paper is not public: the equations are our reconstruction after LLaRA's code.
//!
//! | equation or algorithm | item |
//! |---|---|
//! | Eq. 1, adapters | [`model::fusion::Fusion`] |
//! | Eq. 2, CMA over an item's modalities | [`model::CmaScope::Item`] |
//! | Eq. 3, CMA over the sequence | [`model::CmaScope::Sequence`] |
//! | Eqs. 4 and 5, AMSA | [`model::fusion::Fusion::events`] |
//! | Eq. 6, the vector at the placeholder | [`model::fusion::Fusion::events`] |
//! | candidates' vectors | [`model::fusion::Fusion::candidates`] |
//! | item tokens: one vector on both sides of the LM | [`model::Items::vectors`] |
//! | attention per modality | [`model::fusion::Fusion::modality_attention`] |
//! | §3.3 prompt | [`prompt::Prompter`], tokens: [`tokens::Vocabulary`] |
//! | §3.3 overwriting of placeholders | [`model::overwrite`] |
//! | §3.4 loss | [`model::Tmf::loss`] |
//! | §3.4 warm-up, fusion, three levels | [`train::stage`], [`train::Curriculum`] |
//! | §3.5 graph encoder, LightGCN per behaviour | [`encoders::graph::light_gcn`] |
//! | §3.5 graph encoder, MBHT | [`encoders::mbht::Mbht`] |
//! | Eqs. 7 and 8, gate and similarity; Eqs. 10 and 11 | [`encoders::mbht::Mbht`] |
//! | hyperedges, Eq. 9 | [`encoders::mbht::hyperedges`], [`encoders::mbht::propagation`] |
//! | §3.6 likelihood ranking by item token | [`eval::Scorer::item_log_probs`] |
//! | §3.6 likelihood ranking by title | [`eval::Scorer::log_likelihoods`] |
//! | §3.6 LLaRA's reading of an answer | [`eval::llara_choice`] |
//! | §7 baselines | [`baselines`] |
//! | §8 metrics | [`eval::hits`], [`eval::ndcg`] |
//! | image encoder | [`encoders::efficientnet`] |
//! | ours: ensemble with the graph model, temperature | [`ensemble::Ensemble`], [`ensemble::temperature`] |
//!
//! [`pipeline`] goes from a data set to a trained model, [`store`] holds one on disk, [`bundle`] those
//! that come with the crate, [`mod@bench`] runs the comparison, [`cli`] holds the verbs.

pub mod baselines;
pub mod bench;
pub mod bundle;
pub mod cli;
pub mod config;
pub mod data;
pub mod encoders;
pub mod ensemble;
pub mod eval;
pub mod model;
pub mod pipeline;
pub mod prompt;
pub mod store;
pub mod tokens;
pub mod train;
