//! `generate`: pictures as PNG files.

use std::path::PathBuf;

use common::cli::{CommonArgs, text};
use common::files::atomic_write;
use common::llm::{EndpointOptions, ImageEndpoint};
use common::rng::Seed;
use common::{Error, Result};
use serde_json::{Value, json};

use super::stable::{self, StableArgs};

use crate::config::Config;
use crate::data::{Style, clean_prompt};
use crate::eval::cosines;
use crate::png;
use crate::rewrite::Rewriter;
use crate::studio::Tuning;

/// Flags of `generate`.
#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    /// The prompt
    pub prompt: String,
    /// Pictures; picture i has the seed --seed + i
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub count: usize,
    /// Art style
    #[arg(long, value_enum, default_value_t = Style::Colour)]
    pub style: Style,
    /// Give the prompt to the denoiser as it is
    #[arg(long)]
    pub raw: bool,
    /// Use the denoiser before reward feedback learning
    #[arg(long)]
    pub untuned: bool,
    /// Seed of the trained models
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub model_seed: u64,
    /// Folder of the pictures
    #[arg(long, value_name = "DIR", default_value = "pictures")]
    pub pictures: PathBuf,
    /// Size of a pixel in the file; default 8 for the emoji world, otherwise 1
    #[arg(long, value_name = "N")]
    pub scale: Option<u32>,
    /// Let an endpoint draw: openai:BASE_URL#MODEL
    #[arg(long, value_name = "SPEC", conflicts_with = "diffusion")]
    pub endpoint: Option<String>,
    /// Let Stable Diffusion draw
    #[command(flatten)]
    pub stable: StableArgs,
}

pub(super) fn generate(verb: &GenerateArgs, args: &CommonArgs, config: &Config) -> Result<String> {
    if !(1..=1024).contains(&verb.count) || !(1..=32).contains(&verb.scale.unwrap_or(1)) {
        return Err(Error::usage(format!(
            "--count {} --scale {}: use 1 to 1024 pictures and a scale of 1 to 32",
            verb.count,
            verb.scale.unwrap_or(1)
        )));
    }
    let original = clean_prompt(&verb.prompt)?;
    let seeds: Vec<u64> = (0..verb.count as u64).map(|at| args.seed.wrapping_add(at)).collect();
    let assets = super::assets_of(args);
    std::fs::create_dir_all(&verb.pictures).map_err(Error::io(&verb.pictures))?;
    if let Some(spec) = &verb.endpoint {
        let prompt = rewritten(&original, verb, args)?;
        let endpoint = ImageEndpoint::open(&spec.parse()?, &EndpointOptions::default())?;
        let size = verb.stable.size.unwrap_or(1024);
        let mut written = Vec::new();
        for (at, bytes) in endpoint.draw(&prompt, verb.count, size)?.into_iter().enumerate() {
            let kind = image::guess_format(&bytes).map_err(|error| {
                Error::LlmOutput(format!("{spec} sent something that is no picture ({error})"))
            })?;
            let ending = kind.extensions_str().first().copied().unwrap_or("bin");
            let path = verb.pictures.join(format!("{at:06}.{ending}"));
            atomic_write(&path, &bytes)?;
            written.push(json!({ "file": path }));
        }
        return report(&original, &prompt, &written, args);
    }
    let seed = Seed::new(verb.model_seed);
    let (prompt, pictures, scores) = if let Some(spec) = &verb.stable.diffusion {
        let prompt = rewritten(&original, verb, args)?;
        let pictures = stable::draw(spec, &verb.stable, &prompt, &seeds, &assets, config)?;
        (prompt, pictures, None)
    } else {
        let base = crate::studio::Base::new(config, &assets, seed)?;
        let mut prompt = format!("{original}, in {}", verb.style.word());
        if !verb.raw {
            let (model, _) = base.plm(seed, false)?;
            let rewriter = Rewriter::new(&model, &base.features, &base.world, &config.search);
            let found = rewriter.prompt_candidates(&original, &base.gate, verb.style, 1)?;
            if let Some(candidate) = found.candidates.first() {
                prompt.clone_from(&candidate.prompt);
            }
        }
        let models = base.image_models(seed)?;
        let denoiser = match verb.untuned {
            true => models.denoiser.clone(),
            false => base.tuned(&models, Tuning::Reward, seed)?.0,
        };
        let prompts = vec![prompt.clone(); verb.count];
        let pictures = base.generate(&denoiser, &models.codec, &prompts, &seeds)?;
        let texts = models.scorer_a.embed_texts(&base.features.batch(&prompts)?.mean()?)?;
        let scores = cosines(&models.scorer_a.embed_images(&pictures)?, &texts)?;
        (prompt, pictures, Some(scores))
    };
    let scale = verb.scale.unwrap_or(if scores.is_some() { 8 } else { 1 });
    let mut written = Vec::new();
    for (at, seed) in seeds.iter().enumerate() {
        let path = verb.pictures.join(format!("{seed:06}.png"));
        let number = seed.to_string();
        let notes = [
            ("Software", "poac"),
            ("original", original.as_str()),
            ("prompt", prompt.as_str()),
            ("seed", number.as_str()),
        ];
        atomic_write(&path, &png::scaled(&pictures.get(at)?, scale, &notes)?)?;
        let score = scores.as_ref().map(|scores| scores[at]);
        written.push(json!({ "file": path, "seed": seed, "score": score }));
    }
    report(&original, &prompt, &written, args)
}

/// The prompt as an LLM (`--llm`) rewrites it; unchanged with `--raw` or without an LLM.
fn rewritten(original: &str, verb: &GenerateArgs, args: &CommonArgs) -> Result<String> {
    match args.llm.first().filter(|_| !verb.raw) {
        Some(spec) => super::rewrite::ask(original, spec, args),
        None => Ok(original.to_owned()),
    }
}

fn report(original: &str, prompt: &str, written: &[Value], args: &CommonArgs) -> Result<String> {
    if args.json {
        return text::json(&json!({ "original": original, "prompt": prompt,
                                   "pictures": written }));
    }
    let files = written.iter().filter_map(|picture| picture["file"].as_str());
    Ok(format!("{prompt}\n{}\n", files.collect::<Vec<_>>().join("\n")))
}
