//! Stable Diffusion 1.x, 2.x and XL from a folder as diffusers writes it, or from the model hub; and
//! a CLIP to score its pictures. All of it is differentiable: see [`crate::diffusion`].
//!
//! ```no_run
//! use common::assets::Assets;
//! use common::stable_diffusion::{DrawOptions, StableDiffusion};
//! # fn main() -> common::Result<()> {
//! let model = StableDiffusion::open("hf:stabilityai/sdxl-turbo", &Assets::from_env())?;
//! let pictures = model.draw(&["two white doves"], "", &[7], &DrawOptions::default())?;
//! assert_eq!(pictures.dims()[..2], [1, 3]); // in -1..1
//! # Ok(())
//! # }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde_json::{Value, json};

use super::assets::Assets;
use super::tokenizer::{Special, Tokenizer};
use super::weights::Safetensors;
use crate::diffusion::{
    AddedCondition, ClipConfig, ClipText, ClipTextConfig, ClipVision, Sampler, SamplerKind,
    SchedulerConfig, Unet, UnetConfig, Vae, VaeConfig, clip_pixels,
};
use crate::nn::Builder;
use crate::rng::Seed;
use crate::{Error, Result};

/// Largest JSON file that is read.
const MAX_JSON: u64 = 64 << 20;

/// Pictures that are drawn at once.
const BATCH: usize = 4;

/// Where a model's files are.
#[derive(Clone)]
pub enum ModelFolder {
    /// A folder on this machine.
    Local(PathBuf),
    /// A repository of the model hub; files come when they are asked for.
    Hub {
        /// Cache and mode.
        assets: Box<Assets>,
        /// `owner/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
    },
}

impl ModelFolder {
    /// `hf:OWNER/NAME[@REVISION]`, or the path of a folder.
    ///
    /// # Errors
    /// [`Error::Usage`] when it is neither.
    pub fn parse(spec: &str, assets: &Assets) -> Result<Self> {
        let Some(rest) = spec.strip_prefix("hf:") else {
            let path = PathBuf::from(spec);
            return match path.is_dir() {
                true => Ok(Self::Local(path)),
                false => Err(Error::usage(format!(
                    "no model folder {spec}; write hf:OWNER/NAME[@REVISION] or the path of a folder"
                ))),
            };
        };
        let (repo, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        if repo.split('/').filter(|part| !part.is_empty()).count() != 2 || revision.is_empty() {
            return Err(Error::usage(format!("model {spec}: write hf:OWNER/NAME[@REVISION]")));
        }
        let (repo, revision) = (repo.to_owned(), revision.to_owned());
        Ok(Self::Hub { assets: Box::new(assets.clone()), repo, revision })
    }

    /// The path of a file, fetched if the model is on the hub.
    ///
    /// # Errors
    /// [`Error::Asset`] that names an absent file.
    pub fn file(&self, name: &str) -> Result<PathBuf> {
        match self {
            Self::Hub { assets, repo, revision } => assets.hub_file(repo, revision, name),
            Self::Local(folder) => {
                let path = folder.join(name);
                match path.is_file() {
                    true => Ok(path),
                    false => Err(Error::asset(
                        path.display().to_string(),
                        "the file is absent",
                        "use a model folder as diffusers or transformers writes it",
                    )),
                }
            }
        }
    }

    fn text(&self, name: &str) -> Result<String> {
        let path = self.file(name)?;
        let size = std::fs::metadata(&path).map_err(Error::io(&path))?.len();
        if size > MAX_JSON {
            return Err(Error::asset(
                path.display().to_string(),
                format!("{size} bytes, at most {MAX_JSON} are read"),
                "use the file that belongs to the model",
            ));
        }
        std::fs::read_to_string(&path).map_err(Error::io(&path))
    }

    fn json(&self, name: &str) -> Result<Value> {
        let text = self.text(name)?;
        serde_json::from_str(&text).map_err(|error| {
            let problem = format!("is not JSON ({error})");
            Error::asset(name.to_owned(), problem, "fetch the file again")
        })
    }

    /// All tensors of a part as f32: one file (f32 or f16), or the files of an index.
    fn tensors(&self, part: &str, stem: &str) -> Result<BTreeMap<String, Tensor>> {
        let inside = |name: &str| match part {
            "" => name.to_owned(),
            part => format!("{part}/{name}"),
        };
        let names = [format!("{stem}.safetensors"), format!("{stem}.fp16.safetensors")];
        let mut problem = None;
        for name in &names {
            match self.file(&inside(name)) {
                Ok(path) => return read(&path),
                Err(error) => {
                    problem.get_or_insert(error);
                }
            }
        }
        let Ok(index) = self.json(&inside(&format!("{stem}.safetensors.index.json"))) else {
            return Err(problem.unwrap_or_else(|| Error::Bug("no weight file was tried".into())));
        };
        let shards: BTreeSet<&str> = index["weight_map"]
            .as_object()
            .map(|map| map.values().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let mut tensors = BTreeMap::new();
        for shard in shards {
            if shard.contains(['/', '\\']) {
                return Err(Error::asset(
                    inside(shard),
                    "a shard in another folder",
                    "use a whole model",
                ));
            }
            tensors.extend(read(&self.file(&inside(shard))?)?);
        }
        Ok(tensors)
    }

    /// `tokenizer.json`, or CLIP's `vocab.json` and `merges.txt`.
    fn tokenizer(&self, part: &str) -> Result<ClipTokenizer> {
        let inside = |name: &str| match part {
            "" => name.to_owned(),
            part => format!("{part}/{name}"),
        };
        let whole = self.file(&inside("tokenizer.json"));
        let tokenizer = match &whole {
            Ok(path) => Tokenizer::from_json_file(path)?,
            Err(_) => {
                let vocabulary = self.json(&inside("vocab.json"))?;
                let merges = self.text(&inside("merges.txt"))?;
                let path = PathBuf::from(inside("vocab.json"));
                Tokenizer::from_json(&clip_json(vocabulary, &merges)?, &path)?
            }
        };
        let padding = ["special_tokens_map.json", "tokenizer_config.json"]
            .iter()
            .find_map(|name| {
                let map = self.json(&inside(name)).ok()?;
                let token = map.get("pad_token")?;
                token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
            })
            .unwrap_or_else(|| END.to_owned());
        ClipTokenizer::new(tokenizer, &padding)
    }
}

fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    Ok(Safetensors::open(path)?.float_tensors()?.into_iter().collect())
}

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// CLIP's byte-level BPE as a `tokenizer.json`.
fn clip_json(vocabulary: Value, merges: &str) -> Result<Vec<u8>> {
    let merges: Vec<&str> = merges
        .lines()
        .filter(|line| !line.starts_with("#version") && !line.trim().is_empty())
        .collect();
    let special = |token: &str| {
        json!({ "id": vocabulary[token], "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true })
    };
    let pattern = "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+";
    let known = |token: &&str| vocabulary.get(*token).is_some_and(Value::is_u64);
    let added: Vec<Value> = [START, END].into_iter().filter(known).map(special).collect();
    let whole = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": "\\s+" }, "content": " " },
            { "type": "Lowercase" },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Removed",
              "invert": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
              "use_regex": false },
        ] },
        "post_processor": null,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                     "use_regex": false },
        "model": { "type": "BPE", "dropout": null, "unk_token": END,
                   "continuing_subword_prefix": null, "end_of_word_suffix": "</w>",
                   "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary,
                   "merges": merges },
    });
    serde_json::to_vec(&whole).map_err(|error| Error::Bug(error.to_string()))
}

/// A tokenizer with CLIP's start, end and padding.
#[derive(Debug)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    start: u32,
    end: u32,
    padding: u32,
}

impl ClipTokenizer {
    fn new(tokenizer: Tokenizer, padding: &str) -> Result<Self> {
        let id = |token: &str| {
            tokenizer.id_of(token).ok_or_else(|| {
                let problem = format!("it has no token {token}");
                Error::asset("CLIP tokenizer", problem, "use the tokenizer that belongs to CLIP")
            })
        };
        let (start, end, padding) = (id(START)?, id(END)?, id(padding)?);
        Ok(Self { tokenizer, start, end, padding })
    }

    /// Start, words, end, padding: `length` ids a text. What does not fit is cut off.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn encode(&self, texts: &[&str], length: usize) -> Result<Vec<Vec<u32>>> {
        texts
            .iter()
            .map(|text| {
                let words = self.tokenizer.encode(text, Special::AsText)?;
                let mut ids = vec![self.start];
                ids.extend(words.into_iter().take(length.saturating_sub(2)));
                ids.push(self.end);
                ids.resize(length, self.padding);
                Ok(ids)
            })
            .collect()
    }
}

/// What the denoiser is told: τ(y).
#[derive(Debug, Clone)]
pub struct Condition {
    /// `[batch, words, width]`
    pub text: Tensor,
    /// SDXL's pooled text and picture sizes.
    pub added: Option<AddedCondition>,
}

/// How pictures are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawOptions {
    /// Steps.
    pub steps: usize,
    /// Guidance scale; 1 = none.
    pub guidance: f64,
    /// Sampler.
    pub sampler: SamplerKind,
    /// Pixels of the side; none = what the model was trained for.
    pub size: Option<usize>,
}

impl Default for DrawOptions {
    fn default() -> Self {
        Self { steps: 20, guidance: 7.5, sampler: SamplerKind::default(), size: None }
    }
}

/// All parts of a Stable Diffusion model, frozen; adapters on the U-Net train.
#[derive(Debug)]
pub struct StableDiffusion {
    /// The denoiser.
    pub unet: Unet,
    /// The autoencoder.
    pub vae: Vae,
    /// Schedule and kind of prediction.
    pub scheduler: SchedulerConfig,
    encoders: Vec<(ClipText, ClipTokenizer)>,
    /// SDXL: the condition of an empty prompt is zeros.
    zeros_for_empty: bool,
}

impl StableDiffusion {
    /// Opens `hf:OWNER/NAME[@REVISION]` or a folder.
    ///
    /// # Errors
    /// [`Error::Asset`] with the file, tensor or field that is wrong or absent.
    pub fn open(spec: &str, assets: &Assets) -> Result<Self> {
        Self::load(&ModelFolder::parse(spec, assets)?)
    }

    /// Reads a folder: `model_index.json`, `unet`, `vae`, `text_encoder[_2]`, `tokenizer[_2]`,
    /// `scheduler`.
    ///
    /// # Errors
    /// As [`StableDiffusion::open`].
    pub fn load(folder: &ModelFolder) -> Result<Self> {
        let index = folder.json("model_index.json")?;
        let weights = "diffusion_pytorch_model";
        let config = UnetConfig::from_json(&folder.text("unet/config.json")?)?;
        let builder = Builder::from_tensors(folder.tensors("unet", weights)?).frozen();
        let unet = Unet::build(&config, builder)?;
        let vae = VaeConfig::from_json(&folder.text("vae/config.json")?)?;
        let vae = Vae::frozen(&vae, folder.tensors("vae", weights)?)?;
        let scheduler = folder.text("scheduler/scheduler_config.json")?;
        let scheduler = SchedulerConfig::from_json(&scheduler)?;
        let mut encoders = Vec::new();
        for number in ["", "_2"] {
            let present = index.get(format!("text_encoder{number}"));
            let present = present.and_then(|part| part.get(0)).is_some_and(|part| !part.is_null());
            if !present {
                continue;
            }
            let part = format!("text_encoder{number}");
            let config = folder.text(&format!("{part}/config.json"))?;
            let config = ClipTextConfig::from_json(&config)?;
            let projected = number == "_2";
            let encoder = ClipText::frozen(&config, projected, folder.tensors(&part, "model")?)?;
            encoders.push((encoder, folder.tokenizer(&format!("tokenizer{number}"))?));
        }
        let width: usize = encoders.iter().map(|(encoder, _)| encoder.config().hidden_size).sum();
        let wanted = unet.config().cross_attention_dim;
        if width != wanted {
            return Err(Error::asset(
                "model_index.json",
                format!("text encoders of width {width} in all, the U-Net expects {wanted}"),
                "use a whole model folder; other kinds of text encoders are not supported",
            ));
        }
        let zeros_for_empty = index["force_zeros_for_empty_prompt"] == true;
        Ok(Self { unet, vae, scheduler, encoders, zeros_for_empty })
    }

    /// Pixels of a side that the model was trained for.
    pub fn size(&self) -> usize {
        self.unet.config().sample_size.unwrap_or(64) * self.vae.config().factor()
    }

    /// τ(y) for pictures of `size` pixels: SD takes the last states of its encoder, SDXL the last but
    /// one of both side by side and the second one's pooled text.
    ///
    /// # Errors
    /// [`Error::Asset`] when tokenizer and encoder do not belong together.
    pub fn condition(&self, prompts: &[&str], size: usize) -> Result<Condition> {
        let xl = self.unet.config().addition_embed_type.is_some();
        let (mut states, mut pooled) = (Vec::new(), None);
        for (encoder, tokenizer) in &self.encoders {
            let length = encoder.config().max_position_embeddings;
            let out = encoder.forward(&tokenizer.encode(prompts, length)?)?;
            states.push(if xl { out.penultimate } else { out.last });
            pooled = out.embeds.or(pooled);
        }
        let added = match (xl, pooled) {
            (true, Some(text_embeds)) => {
                let side = size as f32;
                let ids = [side, side, 0.0, 0.0, side, side].repeat(prompts.len());
                let shape = (prompts.len(), 6);
                let time_ids = Tensor::from_vec(ids, shape, text_embeds.device())?;
                Some(AddedCondition { text_embeds, time_ids })
            }
            _ => None,
        };
        Ok(Condition { text: Tensor::cat(&states, 2)?, added })
    }

    /// The condition for guidance away from: `negative`, or nothing.
    fn negative(&self, prompt: &str, like: &Condition, size: usize) -> Result<Condition> {
        let batch = like.text.dim(0)?;
        if prompt.is_empty() && self.zeros_for_empty {
            let added = like.added.as_ref().map(|added| {
                Ok::<_, Error>(AddedCondition {
                    text_embeds: added.text_embeds.zeros_like()?,
                    time_ids: added.time_ids.clone(),
                })
            });
            return Ok(Condition { text: like.text.zeros_like()?, added: added.transpose()? });
        }
        self.condition(&vec![prompt; batch], size)
    }

    /// The latent side for pictures of `size` pixels.
    ///
    /// # Errors
    /// [`Error::Usage`] on a size that the model can't draw.
    pub fn latent_side(&self, size: usize) -> Result<usize> {
        let step = self.vae.config().factor() << (self.unet.config().block_out_channels.len() - 1);
        if size == 0 || !size.is_multiple_of(step) || size > 4096 {
            return Err(Error::usage(format!(
                "pictures of {size} pixels; use a multiple of {step} up to 4096"
            )));
        }
        Ok(size / self.vae.config().factor())
    }

    /// Start noise, one seed a picture: it does not depend on the others.
    ///
    /// # Errors
    /// As [`StableDiffusion::latent_side`].
    pub fn start(&self, seeds: &[u64], size: usize) -> Result<Tensor> {
        let (side, channels) = (self.latent_side(size)?, self.vae.config().latent_channels);
        let rows = seeds
            .iter()
            .map(|&seed| {
                Seed::new(seed).stream("picture").normal_tensor((channels, side, side), 1.0)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::stack(&rows, 0)?)
    }

    /// Pictures `[prompts, 3, size, size]` in -1..1, one prompt and seed each.
    ///
    /// # Errors
    /// [`Error::Usage`] on sizes or steps that do not fit, and those of the encoders.
    pub fn draw(
        &self,
        prompts: &[&str],
        negative: &str,
        seeds: &[u64],
        options: &DrawOptions,
    ) -> Result<Tensor> {
        if prompts.is_empty() || prompts.len() != seeds.len() {
            return Err(Error::usage(format!(
                "{} prompts and {} seeds; give one seed a prompt",
                prompts.len(),
                seeds.len()
            )));
        }
        let mut parts = Vec::new();
        let size = options.size.unwrap_or_else(|| self.size());
        for (prompts, seeds) in prompts.chunks(BATCH).zip(seeds.chunks(BATCH)) {
            let start = self.start(seeds, size)?;
            let latents = self.latents(&start, prompts, negative, seeds, options)?;
            let latents = (latents / self.vae.config().scaling_factor)?;
            parts.push(self.vae.decode(&latents)?.detach().clamp(-1f32, 1f32)?);
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// Clean latents, times γ, from start noise `[prompts, channels, side, side]`, all in one batch.
    /// The seeds give the noise of later steps (DDPM).
    ///
    /// # Errors
    /// As [`StableDiffusion::draw`].
    pub fn latents(
        &self,
        start: &Tensor,
        prompts: &[&str],
        negative: &str,
        seeds: &[u64],
        options: &DrawOptions,
    ) -> Result<Tensor> {
        let size = start.dims4()?.3 * self.vae.config().factor();
        let mut sampler = Sampler::new(options.sampler, &self.scheduler, options.steps)?;
        let told = self.condition(prompts, size)?;
        let other = match options.guidance == 1.0 {
            true => None,
            false => Some(self.negative(negative, &told, size)?),
        };
        let mut streams: Vec<_> =
            seeds.iter().map(|&seed| Seed::new(seed).stream("picture/steps")).collect();
        let mut x = (start * sampler.start_scale())?;
        for (step, time) in sampler.times().to_vec().into_iter().enumerate() {
            let input = sampler.model_input(&x, step)?;
            let answer = self.guided(&input, time, &told, other.as_ref(), options.guidance)?;
            let noise = match options.sampler {
                SamplerKind::Ddpm => {
                    let shape = &x.dims()[1..];
                    let rows = streams
                        .iter_mut()
                        .map(|stream| stream.normal_tensor(shape, 1.0))
                        .collect::<Result<Vec<_>>>()?;
                    Some(Tensor::stack(&rows, 0)?)
                }
                _ => None,
            };
            x = sampler.step(step, &answer, &x, noise.as_ref())?.detach();
        }
        Ok(x)
    }

    /// Classifier-free guidance ([Ho and Salimans 2022](https://arxiv.org/abs/2207.12598)).
    fn guided(
        &self,
        x: &Tensor,
        time: f64,
        told: &Condition,
        other: Option<&Condition>,
        scale: f64,
    ) -> Result<Tensor> {
        let answer = |condition: &Condition| {
            let times = vec![time; x.dim(0)?];
            self.unet.forward(x, &times, &condition.text, condition.added.as_ref())
        };
        let with = answer(told)?.detach();
        let Some(other) = other else { return Ok(with) };
        let without = answer(other)?.detach();
        Ok((&without + ((with - &without)? * scale)?)?)
    }
}

/// A CLIP with both sides, frozen: scores that pictures get gradients from.
#[derive(Debug)]
pub struct Clip {
    text: ClipText,
    vision: ClipVision,
    tokenizer: ClipTokenizer,
}

impl Clip {
    /// Opens `hf:OWNER/NAME[@REVISION]` or a folder with `config.json`, `model.safetensors` and a
    /// tokenizer.
    ///
    /// # Errors
    /// [`Error::Asset`] with the file, tensor or field that is wrong or absent.
    pub fn open(spec: &str, assets: &Assets) -> Result<Self> {
        let folder = ModelFolder::parse(spec, assets)?;
        let config = ClipConfig::from_json(&folder.text("config.json")?)?;
        let tensors = folder.tensors("", "model")?;
        let text = ClipText::frozen(&config.text_config, true, tensors.clone())?;
        let vision = ClipVision::frozen(&config.vision_config, tensors)?;
        Ok(Self { text, vision, tokenizer: folder.tokenizer("")? })
    }

    /// Width of the common space.
    pub fn width(&self) -> usize {
        self.vision.config().projection_dim
    }

    /// Features of texts, `[n, width]`.
    ///
    /// # Errors
    /// [`Error::Asset`] when tokenizer and encoder do not belong together.
    pub fn embed_texts(&self, texts: &[&str]) -> Result<Tensor> {
        let length = self.text.config().max_position_embeddings;
        let out = self.text.forward(&self.tokenizer.encode(texts, length)?)?;
        out.embeds.ok_or_else(|| Error::Bug("a CLIP without text projection".into()))
    }

    /// Features of pictures `[n, 3, h, w]` in 0..1, `[n, width]`; differentiable.
    ///
    /// # Errors
    /// None but bugs.
    pub fn embed_pictures(&self, pictures: &Tensor) -> Result<Tensor> {
        self.vision.embed(&clip_pixels(pictures, self.vision.config().image_size)?)
    }
}
