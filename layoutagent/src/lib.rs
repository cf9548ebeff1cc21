//! LayoutAgent: plans where given objects go in a picture, and renders it.
//!
//! Paper: "LayoutAgent", arXiv 2509.22720, NeurIPS 2025 workshop SPACE. Images with target objects
//! become a scene graph with sizes; compositional diffusion over one network per relation gives
//! boxes that satisfy the graph; the objects' pixels are pasted there over a new background. The
//! body of the paper is not public; the layout stage follows Diffusion-CCSP (Yang et al., CoRL 2023),
//! to which its abstract points.
//!
//! | equation or algorithm | item |
//! |---|---|
//! | Algorithm 1, from text or scene to problem | [`agent`], [`language`], [`conflict`] |
//! | §3.3 relations and their checker | [`relations::Relation::holds`], [`relations::violations`] |
//! | §3.4 geometry and pose of nodes | [`model::denoiser::node_geometry`], [`layout::Frame::to_pose`] |
//! | Eq. 1, factors over relations | [`layout::Problem`] |
//! | Eq. 2, sum of energies (hinges) | [`model::energy::Energy::compute`] |
//! | Eq. 3, composed noise | [`model::denoiser::Denoiser::forward`], [`model::sampler::Sampler::composed_noise`] |
//! | Eq. 4, loss | [`train::loss`] |
//! | Eq. 5, the networks' energy and its gradient | [`model::learned_energy::energy`], [`model::learned_energy::noise`] |
//! | Algorithm 2, sampling | [`model::sampler::Sampler::sample`], [`model::sampler::ddpm_step`] |
//! | Eq. 6, Langevin step | [`model::sampler::ula_step`], MALA: [`model::sampler::mala_log_ratio`] |
//! | Eq. 7, blended latent diffusion | [`render::diffusion::keep_foreground`], [`render::diffusion::denoise`] |
//! | §3.2 segmentation | [`segment::cut_out`], [`model::segmenter`] |
//! | §3.7 analytic and hybrid solvers | [`solve::langevin`], [`solve::refine`] |
//! | construction (ours) | [`construct::construct`] |
//! | §3.8 training worlds | [`data::worlds`] |
//! | §3.9 placement, shadow, background | [`render`] |
//! | §7 baselines | [`baselines`], [`solve::Solver::Reject`], [`solve::Solver::Analytic`] |
//! | §8 metrics | [`eval`] |
//!
//! [`networks`] finds or trains the relation networks, [`plan`] is the file format of layouts,
//! [`mod@bench`] runs the comparison, [`cli`] holds the verbs.

pub mod agent;
pub mod baselines;
pub mod bench;
pub mod cli;
pub mod config;
pub mod conflict;
pub mod construct;
pub mod data;
pub mod eval;
pub mod language;
pub mod layout;
pub mod model;
pub mod networks;
pub mod plan;
pub mod relations;
pub mod render;
pub mod segment;
pub mod solve;
pub mod train;

/// The README's example, run as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
