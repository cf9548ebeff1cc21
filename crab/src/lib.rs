//! CRAB: rebalances the code book of a generative recommender after training.
//!
//! Paper: "CRAB: Codebook Rebalancing for Bias Mitigation in Generative Recommendation", arXiv
//! 2604.05113. A generative recommender names an item by a few tokens (its semantic ID) and
//! generates the next one token by token. Tokens that many popular items share pile up
//! interactions. CRAB splits such tokens without cutting any child token, and fine-tunes the model
//! on the new tokens with a regulariser that keeps siblings close. The paper's text is public in
//! parts only; what is ours is marked in the items' docs and in the README.
//!
//! | equation or algorithm | item |
//! |---|---|
//! | Eq. 1, residual quantisation | [`tokenizer::residual_kmeans`], [`tokenizer::Codebook::residuals`] |
//! | Eq. 2, L_Rec | [`model::generator::Generator::loss`] |
//! | Eq. 3, token popularity | [`sid::SidTable::token_popularity`] |
//! | Eq. 4 and 8, children and their popularity given the parent | [`model::rebalance::children`] |
//! | Eq. 5, L_bal | [`model::rebalance::balance`] |
//! | Eq. 6, regularised k-means | [`model::rebalance::objective`], solved by [`model::rebalance::assign`] |
//! | Eq. 7, child means suffice | [`model::rebalance::within`] |
//! | target choice, number of parts M | [`model::rebalance::targets`] |
//! | Stage 1, the split | [`model::rebalance::rebalance`] |
//! | Stage 2, new embeddings from the split token | [`model::generator::Generator::grown`] |
//! | Eq. 9, L_T | [`model::regularizer::Regularizer::loss`] |
//! | Eq. 10, L_Rec + γ L_T | [`train::fine_tune`] |
//! | §3.3, decoding constrained by the trie | [`mod@decode`], [`model::trie::Trie`] |
//! | §8, MGU and DGU | [`eval::mgu`], [`eval::dgu`] |
//! | §3.4, decoder-only generator or TIGER's encoder–decoder | [`model::generator::Architecture`] |
//! | §3.4, collision policies | [`tokenizer::Collisions`] |
//! | ours: L_Rec over the codes that the trie allows | [`train::TrainOptions`], `within_trie` |
//! | §3.4 and 3.5, RQ-VAE and LETTER's two regularisers | [`tokenizer::RqVae::loss`] |
//! | §7, balanced residual k-means; RW | [`tokenizer::Assignment::Balanced`]; [`train::inverse_popularity`] |
//! | ours: popularity-aware decoding; mixture with transitions | [`baselines::rescored`] |
//! | ours: children conditioned on the parent | [`model::rebalance::RebalanceOptions::condition_on_parent`] |
//!
//! [`vectors`] makes item vectors, [`sid`] holds semantic IDs, their audit and files, [`saved`] a
//! fitted recommender on disk, [`cli`] the verbs.

pub mod baselines;
pub mod bench;
pub mod cli;
pub mod config;
pub mod data;
pub mod decode;
pub mod eval;
pub mod model;
pub mod saved;
pub mod sid;
pub mod tokenizer;
pub mod train;
pub mod vectors;
