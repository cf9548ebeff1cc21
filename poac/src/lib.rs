//! POAC: prompts for abstract concepts, and a diffusion model tuned to obey them.
//!
//! Paper: "Prompt Optimizer of Text-to-Image Diffusion Models for Abstract Concept Understanding",
//! arXiv 2404.11589, WWW 2024 (companion). A small language model learns to replace an abstract
//! word ("peace") by objects that people associate with it ("dove, lotus, peace symbol"); reward
//! feedback learning then tunes the denoiser so that prompt and picture agree. The body of the paper
//! is not public, so every number here is our own.
//!
//! | equation or algorithm | item |
//! |---|---|
//! | Algorithm 1 and 4, pairs | [`data::pairs::PairSource`] |
//! | Eqs. 1 and 2, SFT loss on the answer only | [`train::plm::sft_loss`] |
//! | Eq. 3, noising | [`common::diffusion::Schedule::add_noise`] |
//! | Eq. 4, ẑ₀ | [`common::diffusion::Schedule::clean_and_noise`] |
//! | Eq. 5, decoding | [`model::Codec::decode`], [`common::diffusion::to_unit_range`] |
//! | Algorithm 2, one ReFL step | [`train::refl::refl_loss`] |
//! | Eq. 6, reward loss | [`model::reward::reward_loss`] |
//! | Eq. 7, pre-training loss | [`train::denoiser::denoising_loss`] |
//! | Eq. 8, their sum, in two stages | [`train::refl::fit`] |
//! | Eq. 9, standardised ImageReward | [`image_reward::ImageReward::reward`] |
//! | Eq. 10, weighted rewards | [`model::reward::combine`] |
//! | Eq. 11, anchor to the untuned model | [`model::reward::anchor_loss`] |
//! | Algorithm 3, gate, rewrite, render | [`data::Gate`], [`rewrite::Rewriter`], [`studio::Base::generate`] |
//! | §3.2 serialisation and beams of Promptist | [`promptist::Promptist`] |
//! | Eq. 12 and §3.7, PPO on the language model | [`train::ppo::fit`], [`studio::Base::ppo`] |
//! | §4 diverse beam search | [`common::lm::Lm::beam_search`] |
//! | Algorithm 2 on Stable Diffusion folders | [`train::stable::refl_loss`] |
//! | §5.2 dual encoders A and B | [`model::Scorer`] |
//! | §5.3 quality head | [`model::QualityHead`] |
//! | §7 baselines | [`baselines`] |
//! | ours: setting of ReFL chosen on validation concepts | [`studio::Base::choose_refl`] |
//! | §7 concept score of TIAC | [`eval::concept_scores`] |
//! | §8 metrics | [`eval`] |
//! | ours: token table from sentence embeddings | [`features::Features`], [`train::plm::new_model`] |
//! | ours: keyword vote beside the language model | [`bench::objects::mixed`] |
//!
//! [`studio`] keeps all trained pieces, [`store`] finds them, [`mod@bench`] runs the comparison, [`cli`] holds the verbs.

pub mod baselines;
pub mod bench;
pub mod choice;
pub mod cli;
pub mod config;
pub mod data;
pub mod eval;
pub mod features;
pub mod image_reward;
pub mod model;
pub mod png;
pub mod projection;
pub mod promptist;
pub mod rewrite;
pub mod store;
pub mod studio;
pub mod train;
