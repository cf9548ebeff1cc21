//! Backgrounds by Stable Diffusion around the locked foreground (specification §3.9, ways 2a and 2b):
//! a 9-channel inpainting model, or blended latent diffusion (Eq. 7) with any 4-channel one.

use candle_core::{Device, Tensor};
use common::diffusion::{Sampler, SamplerKind};
use common::rng::Seed;
use common::stable_diffusion::StableDiffusion;
use common::{Error, Result};
use image::{Rgba, RgbaImage, imageops};

use super::Placed;

/// Steps of the sampler.
pub const STEPS: usize = 30;
/// Classifier-free guidance.
pub const GUIDANCE: f64 = 7.5;

/// What the model is given besides the noise. Masks are `[1, 1, h, w]` with 1 where the picture is
/// repainted, latents `[1, 4, h, w]`.
#[derive(Debug, Clone)]
pub enum Given {
    /// Mask and latents of the picture with the hole greyed out: six more input channels.
    Channels {
        /// Where to repaint.
        repaint: Tensor,
        /// Latents of the picture without the hole.
        masked: Tensor,
    },
    /// Mask and latents of the picture, blended in after each step.
    Blend {
        /// Where to repaint.
        repaint: Tensor,
        /// Latents of the picture.
        known: Tensor,
    },
}

/// Eq. 7: `z ← (1 − M) z + M (√ᾱ z_fg + √(1 − ᾱ) ξ)` with M = 1 on the foreground; the second factor
/// is `known`.
///
/// # Errors
/// Shapes that do not fit.
pub fn keep_foreground(z: &Tensor, known: &Tensor, keep: &Tensor) -> Result<Tensor> {
    Ok((z + (known - z)?.broadcast_mul(keep)?)?)
}

/// Clean latents from `start` noise. `answer` is the guided noise estimate for an input and a time.
/// The blended foreground has the noise of the next step, `start`'s, as in diffusers.
///
/// # Errors
/// Those of `answer`, interrupts, shapes that do not fit.
pub fn denoise(
    sampler: &mut Sampler,
    start: &Tensor,
    given: &Given,
    mut answer: impl FnMut(&Tensor, f64) -> Result<Tensor>,
) -> Result<Tensor> {
    let times = sampler.times().to_vec();
    let mut z = (start * sampler.start_scale())?;
    for (step, &time) in times.iter().enumerate() {
        common::run::check_interrupt()?;
        let seen = sampler.model_input(&z, step)?;
        let input = match given {
            Given::Channels { repaint, masked } => Tensor::cat(&[&seen, repaint, masked], 1)?,
            Given::Blend { .. } => seen,
        };
        let estimate = answer(&input, time)?;
        z = sampler.step(step, &estimate, &z, None)?.detach();
        if let Given::Blend { repaint, known } = given {
            let known = match times.get(step + 1) {
                Some(&next) => sampler.schedule().add_noise(known, start, &[next as usize])?,
                None => known.clone(),
            };
            z = keep_foreground(&z, &known, &(1.0 - repaint)?)?;
        }
    }
    Ok(z)
}

/// `[1, 3, h, w]` in −1..1.
fn to_tensor(image: &RgbaImage) -> Result<Tensor> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let mut values = Vec::with_capacity(3 * width * height);
    for channel in 0..3 {
        values.extend(image.pixels().map(|pixel| f32::from(pixel.0[channel]) / 127.5 - 1.0));
    }
    Ok(Tensor::from_vec(values, (1, 3, height, width), &Device::Cpu)?)
}

fn to_image(pixels: &Tensor) -> Result<RgbaImage> {
    let (_, _, height, width) = pixels.dims4()?;
    let values = pixels.flatten_all()?.to_vec1::<f32>()?;
    let channel = |c: usize, x: u32, y: u32| {
        let value = values[(c * height + y as usize) * width + x as usize];
        ((value.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8
    };
    Ok(RgbaImage::from_fn(width as u32, height as u32, |x, y| {
        Rgba([channel(0, x, y), channel(1, x, y), channel(2, x, y), 255])
    }))
}

/// A background for placed objects: their pixels on grey are what the model must keep, all else it
/// paints after `prompt`, away from `negative`. Sides of at most what the model was trained for;
/// the result is scaled up to the canvas.
///
/// # Errors
/// [`Error::Usage`] for a U-Net with other than 4 or 9 input channels; those of the model.
pub fn paint(
    model: &StableDiffusion,
    placed: &[Placed],
    canvas: [u32; 2],
    (prompt, negative): (&str, &str),
    seed: u64,
    steps: usize,
) -> Result<RgbaImage> {
    let trained = model.size();
    // sides that the model can draw: multiples of its coarsest cell
    let factor = model.vae.config().factor();
    let cell = factor << (model.unet.config().block_out_channels.len() - 1);
    let longest = f64::from(canvas[0].max(canvas[1]));
    let side = |pixels: u32| {
        let scaled = f64::from(pixels) / longest * trained as f64;
        ((scaled / cell as f64).round().max(1.0) as usize) * cell
    };
    let (width, height) = (side(canvas[0]), side(canvas[1]));
    let mut foreground = RgbaImage::from_pixel(canvas[0], canvas[1], Rgba([128, 128, 128, 255]));
    let mut alpha = RgbaImage::new(canvas[0], canvas[1]);
    for object in placed {
        imageops::overlay(&mut foreground, &object.image, object.at[0], object.at[1]);
        imageops::overlay(&mut alpha, &object.image, object.at[0], object.at[1]);
    }
    let filter = imageops::FilterType::Triangle;
    let foreground = imageops::resize(&foreground, width as u32, height as u32, filter);
    let alpha = imageops::resize(&alpha, width as u32, height as u32, filter);
    let pixels = to_tensor(&foreground)?;
    let hole: Vec<f32> =
        alpha.pixels().map(|pixel| if pixel.0[3] >= 128 { 0.0 } else { 1.0 }).collect();
    let (rows, columns) = (height / factor, width / factor);
    // nearest neighbour, as diffusers shrinks masks
    let small: Vec<f32> = (0..rows * columns)
        .map(|at| hole[(at / columns * factor) * width + at % columns * factor])
        .collect();
    let hole = Tensor::from_vec(hole, (1, 1, height, width), &Device::Cpu)?;
    let repaint = Tensor::from_vec(small, (1, 1, rows, columns), &Device::Cpu)?;
    let mut stream = Seed::new(seed).stream("background");
    let channels = model.vae.config().latent_channels;
    let start = stream.normal_tensor((1, channels, rows, columns), 1.0)?;
    let latents = |pixels: &Tensor, stream: &mut common::rng::Stream| {
        let sampled = model.vae.encode(pixels)?.sample(stream)?;
        Ok::<_, Error>((sampled * model.vae.config().scaling_factor)?.detach())
    };
    let given = match model.unet.config().in_channels {
        9 => {
            let kept = pixels.broadcast_mul(&(1.0 - &hole)?)?;
            Given::Channels { repaint, masked: latents(&kept, &mut stream)? }
        }
        4 => Given::Blend { repaint, known: latents(&pixels, &mut stream)? },
        other => {
            return Err(Error::usage(format!(
                "a U-Net with {other} input channels; use one with 4, or 9 (inpainting)"
            )));
        }
    };
    let mut sampler = Sampler::new(SamplerKind::Ddim, &model.scheduler, steps)?;
    let (told, other) =
        (model.condition(&[prompt], trained)?, model.condition(&[negative], trained)?);
    let z = denoise(&mut sampler, &start, &given, |input, time| {
        let estimate = |condition: &common::stable_diffusion::Condition| {
            let added = condition.added.as_ref();
            Ok::<_, Error>(model.unet.forward(input, &[time], &condition.text, added)?.detach())
        };
        let (with, without) = (estimate(&told)?, estimate(&other)?);
        Ok((&without + ((with - &without)? * GUIDANCE)?)?)
    })?;
    let decoded = model.vae.decode(&(z / model.vae.config().scaling_factor)?)?;
    let painted = to_image(&decoded.detach())?;
    Ok(imageops::resize(&painted, canvas[0], canvas[1], imageops::FilterType::CatmullRom))
}
