//! Diffusion models, differentiable from the reward back to every weight: the U-Net of Stable
//! Diffusion 1.x, 2.x, XL and of its inpainting variants, the KL autoencoder, CLIP's encoders, noise
//! schedules and samplers. Tensor names and `config.json` are those of diffusers and transformers;
//! [`crate::stable_diffusion`] reads whole folders.
//!
//! candle's own versions lose gradients without a word (70 of 286 variables of a small U-Net, the
//! image gradient of CLIP), take one time step a batch, and have no `add_embedding` (SDXL).
//!
//! ```
//! use common::diffusion::{Unet, UnetConfig};
//! use common::rng::Seed;
//! # fn main() -> common::Result<()> {
//! let config = UnetConfig {
//!     block_out_channels: vec![8, 16],
//!     layers_per_block: 1,
//!     cross_attention_dim: 12,
//!     attention_head_dim: 2.into(),
//!     norm_num_groups: 4,
//!     down_block_types: vec!["CrossAttnDownBlock2D".into(), "DownBlock2D".into()],
//!     up_block_types: vec!["UpBlock2D".into(), "CrossAttnUpBlock2D".into()],
//!     ..UnetConfig::default()
//! };
//! let unet = Unet::new(&config, Seed::new(1))?;
//! let mut noise = Seed::new(2).stream("noise");
//! let z = noise.normal_tensor((2, 4, 8, 8), 1.0)?;
//! let text = noise.normal_tensor((2, 5, 12), 1.0)?;
//! let predicted = unet.forward(&z, &[10.0, 900.0], &text, None)?; // one time a sample
//! assert_eq!(predicted.dims(), z.dims());
//! # Ok(())
//! # }
//! ```

mod blocks;
mod clip;
mod config;
mod picture;
mod sampler;
mod schedule;
mod unet;
mod vae;

pub use clip::{
    ClipConfig, ClipText, ClipTextConfig, ClipTextOutput, ClipVision, ClipVisionConfig, cosine,
};
pub use config::{OneOrMany, UnetConfig, VaeConfig};
pub use picture::{CLIP_MEAN, CLIP_SD, clip_pixels, resize_bicubic, to_unit_range};
pub use sampler::{Sampler, SamplerKind, SchedulerConfig, Spacing};
pub use schedule::{Beta, Prediction, Schedule};
pub use unet::{AddedCondition, Unet};
pub use vae::{Posterior, Vae};
