//! `generate` and `fit` with a Stable Diffusion model in place of the emoji world's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use common::assets::Assets;
use common::cli::{CommonArgs, text};
use common::data::{ReadOptions, Table};
use common::diffusion::SamplerKind;
use common::files::atomic_write;
use common::nn::LoraOptions;
use common::rng::Seed;
use common::stable_diffusion::{Clip, DrawOptions, StableDiffusion};
use common::weights::Safetensors;
use common::{Error, Result};
use serde_json::json;

use crate::config::Config;
use crate::data::clean_prompt;
use crate::image_reward::ImageReward;
use crate::train::stable::{self, Judge, Wish, Wishes};

/// Layers with adapters, as in the public ReFL trainers and diffusers.
const TARGETS: [&str; 4] = ["to_q", "to_k", "to_v", "to_out.0"];

/// Which model draws.
#[derive(Debug, Clone, clap::Args)]
pub struct StableArgs {
    /// A Stable Diffusion model (1.x, 2.x, XL): hf:OWNER/NAME[@REVISION] or a folder
    #[arg(long, value_name = "MODEL")]
    pub diffusion: Option<String>,
    /// Adapters that `fit` wrote
    #[arg(long, value_name = "FILE", requires = "diffusion")]
    pub adapters: Option<PathBuf>,
    /// Sampling steps
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub steps: usize,
    /// Guidance scale
    #[arg(long, value_name = "X", default_value_t = 7.5)]
    pub guidance: f64,
    /// What the picture should not show
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub negative: String,
    /// Pixels of a side; default what the model was trained for
    #[arg(long, value_name = "N")]
    pub size: Option<usize>,
}

/// Flags of `fit`.
#[derive(Debug, clap::Args)]
pub struct FitArgs {
    /// Tune this Stable Diffusion model instead of the emoji world's: hf:OWNER/NAME[@REVISION] or a
    /// folder
    #[arg(long, value_name = "MODEL", requires = "prompts", requires = "reward")]
    pub diffusion: Option<String>,
    /// The CLIP that gives the reward: hf:OWNER/NAME[@REVISION] or a folder
    #[arg(long, value_name = "MODEL", group = "reward")]
    pub clip: Option<String>,
    /// The ImageReward that gives the reward instead: hf:OWNER/NAME[@REVISION] or a folder
    #[arg(long, value_name = "MODEL", group = "reward")]
    pub image_reward: Option<String>,
    /// Table with the columns prompt, and if present optimised (what the model is told) and image (a
    /// file beside the table, for the pre-training loss)
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Write the trained pieces of the emoji world as the files that come with the crate
    #[arg(long, value_name = "DIR", conflicts_with = "diffusion")]
    pub bundle: Option<PathBuf>,
    /// Where the trained adapters go; diffusers' load_lora_weights reads the file
    #[arg(long, value_name = "FILE", default_value = "pytorch_lora_weights.safetensors")]
    pub adapters: PathBuf,
    /// Pixels of a side; default what the model was trained for
    #[arg(long, value_name = "N")]
    pub size: Option<usize>,
}

fn lora(config: &Config) -> LoraOptions {
    LoraOptions {
        rank: config.refl.rank,
        alpha: config.refl.rank as f64,
        targets: TARGETS.map(str::to_owned).to_vec(),
    }
}

/// Pictures of one prompt, `[seeds, 3, size, size]` in -1..1.
pub(super) fn draw(
    spec: &str,
    verb: &StableArgs,
    prompt: &str,
    seeds: &[u64],
    assets: &Assets,
    config: &Config,
) -> Result<Tensor> {
    let mut model = StableDiffusion::open(spec, assets)?;
    if let Some(path) = &verb.adapters {
        let tensors: BTreeMap<_, _> =
            Safetensors::open(path)?.float_tensors()?.into_iter().collect();
        let rank = tensors
            .iter()
            .find(|(name, _)| name.ends_with("lora_A.weight"))
            .map_or(config.refl.rank, |(_, a)| a.dims()[0]);
        let options = LoraOptions { rank, alpha: rank as f64, ..lora(config) };
        model.unet.load_lora(&options, tensors)?;
    }
    let options = DrawOptions {
        steps: verb.steps,
        guidance: verb.guidance,
        sampler: SamplerKind::default(),
        size: verb.size,
    };
    let prompts = vec![prompt; seeds.len()];
    model.draw(&prompts, &verb.negative, seeds, &options)
}

/// Reward feedback learning on the prompts of a table.
pub(super) fn fit(
    spec: &str,
    verb: &FitArgs,
    args: &CommonArgs,
    config: &Config,
) -> Result<String> {
    let Some(prompts) = &verb.prompts else {
        return Err(Error::usage("--diffusion needs --prompts"));
    };
    let assets = super::assets_of(args);
    let seed = Seed::new(args.seed);
    let mut model = StableDiffusion::open(spec, &assets)?;
    let judge = match (&verb.clip, &verb.image_reward) {
        (Some(spec), _) => Judge::Clip(Box::new(Clip::open(spec, &assets)?)),
        (_, Some(spec)) => Judge::ImageReward(Box::new(ImageReward::open(spec, &assets)?)),
        _ => return Err(Error::usage("--diffusion needs --clip or --image-reward")),
    };
    let size = verb.size.unwrap_or_else(|| model.size());
    model.latent_side(size)?;
    let refl = &config.refl;
    if refl.anchor != 0.0 {
        return Err(Error::usage(format!(
            "refl.anchor = {} with --diffusion; the anchor is there for the emoji world only",
            refl.anchor
        )));
    }
    let wishes = read_wishes(prompts, size)?;
    // a run with other settings must not continue this one's checkpoints
    let by = (&verb.clip, &verb.image_reward);
    let described = format!("{spec} {by:?} {size} {refl:?} {} {wishes:?}", args.seed);
    let hash = common::run::hash8(described.as_bytes());
    let wishes = Wishes::new(&model, &judge, &wishes, size, refl.inference_steps, seed)?;
    let adapters = model.unet.attach_lora(&lora(config), seed)?;
    let folder = verb.adapters.parent().filter(|folder| !folder.as_os_str().is_empty());
    let work = folder.unwrap_or(Path::new(".")).join(format!("checkpoints-{hash}"));
    let history = stable::fit(&model, &adapters, &judge, &wishes, refl, seed, &work)?;
    let named: BTreeMap<String, Tensor> =
        adapters.tensors().into_iter().map(|(name, t)| (format!("unet.{name}"), t)).collect();
    let bytes = safetensors::serialize(&named, None)
        .map_err(|error| Error::Bug(format!("adapters: {error}")))?;
    atomic_write(&verb.adapters, &bytes)?;
    if work.is_dir() {
        std::fs::remove_dir_all(&work).map_err(Error::io(&work))?;
    }
    let tenth = (history.losses.len() / 10).max(1);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
    let (first, last) = (
        mean(&history.losses[..tenth.min(history.losses.len())]),
        mean(&history.losses[history.losses.len().saturating_sub(tenth)..]),
    );
    if args.json {
        return text::json(&json!({ "adapters": verb.adapters, "steps": history.losses.len(),
                                   "first_loss": first, "last_loss": last,
                                   "reward_mean": wishes.standard.mean,
                                   "reward_sd": wishes.standard.sd }));
    }
    Ok(format!(
        "{}: {} steps, loss {first:.4} at first, {last:.4} at last\n",
        verb.adapters.display(),
        history.losses.len()
    ))
}

fn read_wishes(path: &Path, size: usize) -> Result<Vec<Wish>> {
    let table = Table::read(path, &ReadOptions::default())?;
    let prompts = table.column("prompt")?.non_empty()?;
    let has = |name: &str| table.column(name).is_ok();
    let told =
        if has("optimised") { table.column("optimised")?.non_empty()? } else { prompts.clone() };
    let images = if has("image") { Some(table.column("image")?.non_empty()?) } else { None };
    let mut wishes = Vec::new();
    for (index, (original, told)) in prompts.iter().zip(&told).enumerate() {
        let picture = match &images {
            Some(images) => {
                let file = path.parent().unwrap_or(Path::new(".")).join(images[index]);
                Some(read_picture(&file, size)?)
            }
            None => None,
        };
        let clean = |text: &str| {
            clean_prompt(text).map_err(|error| {
                let row = table.row_number(index);
                Error::data(format!("row {row}: {error}"), "a usable prompt").in_file(path)
            })
        };
        wishes.push(Wish { original: clean(original)?, told: clean(told)?, picture });
    }
    Ok(wishes)
}

/// A picture scaled to `size` × `size`, channels first, in -1..1.
fn read_picture(path: &Path, size: usize) -> Result<Vec<f32>> {
    let wrong = |error: image::ImageError| {
        Error::data(format!("a picture that can't be read ({error})"), "a PNG or JPEG file")
            .in_file(path)
    };
    let mut reader = image::ImageReader::open(path)
        .map_err(Error::io(path))?
        .with_guessed_format()
        .map_err(Error::io(path))?;
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(16_384);
    limits.max_image_height = Some(16_384);
    reader.limits(limits);
    let side = size as u32;
    let filter = image::imageops::FilterType::CatmullRom;
    let pixels = reader.decode().map_err(wrong)?.resize_to_fill(side, side, filter).to_rgb8();
    let value = |channel: usize| {
        pixels.pixels().map(move |pixel| f32::from(pixel.0[channel]) / 127.5 - 1.0)
    };
    Ok(value(0).chain(value(1)).chain(value(2)).collect())
}
