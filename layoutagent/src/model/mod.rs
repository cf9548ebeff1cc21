//! The equations of the layout stage: schedule, relation networks, samplers, hinge energies.

mod composition;
pub mod denoiser;
pub mod energy;
pub mod learned_energy;
pub mod sampler;
pub mod schedule;
pub mod segmenter;
