//! `fit`, `generate`, `predict`, `warm`: from files to artefacts and scores.

use std::path::PathBuf;

use common::cli::{CommonArgs, Resolved, text};
use common::data::{Format, Values};
use common::rng::Seed;
use common::{Error, Result};
use serde_json::json;

use crate::artefact::{self, Artefact, Source};
use crate::calibrate::{AsCold, Calibration};
use crate::config::Config;
use crate::data::{Schema, files};
use crate::eval;
use crate::generate::Generator;
use crate::library::Library;
use crate::model::logit::Scorer;
use crate::model::prior::Prior;
use crate::sources::{self, Sources};
use crate::train;
use crate::writer::{Raw, Tally, Writer};

/// Flags of `fit`.
#[derive(Debug, clap::Args)]
pub struct FitArgs {
    /// Catalogue of retired ads (.csv, .tsv, .jsonl, .parquet)
    pub ads: PathBuf,
    /// Their impression log: ad, clicked, one column per feature; user and time where known
    pub impressions: PathBuf,
    /// Feature schema (.toml)
    #[arg(long, value_name = "FILE", default_value = "schema.toml")]
    pub schema: PathBuf,
    /// Library to write
    #[arg(long, value_name = "FILE", default_value = "library.json")]
    pub library: PathBuf,
}

/// Flags of `calibrate`.
#[derive(Debug, clap::Args)]
pub struct CalibrateArgs {
    /// Catalogue of retired ads, as for `fit`
    pub ads: PathBuf,
    /// Their impression log, as for `fit`
    pub impressions: PathBuf,
    /// Library written by `fit`
    #[arg(long, value_name = "FILE", default_value = "library.json")]
    pub library: PathBuf,
    /// Retired ads that the LLM is asked about as if they were new
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub asked: usize,
    /// Calibration to write, for `generate --calibration`
    #[arg(long, value_name = "FILE", default_value = "calibration.json")]
    pub calibration: PathBuf,
}

/// Flags of `generate`.
#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    /// Catalogue of new ads
    pub ads: PathBuf,
    /// Library written by `fit`
    #[arg(long, value_name = "FILE", default_value = "library.json")]
    pub library: PathBuf,
    /// Artefacts to write, one JSON object per line
    #[arg(long, value_name = "FILE", default_value = "artefacts.jsonl")]
    pub artefacts: PathBuf,
    /// Calibration written by `calibrate` for the same LLM: weights are the learned blend
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    /// Keep every LLM answer in this file, which `--llm replay:FILE` reads
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Print prompts and token counts and ask nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Flags of `predict`.
#[derive(Debug, clap::Args)]
pub struct PredictArgs {
    /// Users to score: user id and one column per feature
    pub users: PathBuf,
    /// Library written by `fit`
    #[arg(long, value_name = "FILE", default_value = "library.json")]
    pub library: PathBuf,
    /// Artefacts written by `generate`
    #[arg(long, value_name = "FILE", default_value = "artefacts.jsonl")]
    pub artefacts: PathBuf,
    /// Score file to write: user, ad, probability
    #[arg(long, value_name = "FILE", default_value = "scores.csv")]
    pub scores: PathBuf,
    /// Only the ads with the highest probability per user
    #[arg(long, value_name = "N")]
    pub top: Option<usize>,
}

/// Flags of `warm`.
#[derive(Debug, clap::Args)]
pub struct WarmArgs {
    /// Catalogue of the ads
    pub ads: PathBuf,
    /// Their first impressions
    pub impressions: PathBuf,
    /// Library written by `fit`
    #[arg(long, value_name = "FILE", default_value = "library.json")]
    pub library: PathBuf,
    /// Artefacts to correct
    #[arg(long, value_name = "FILE", default_value = "artefacts.jsonl")]
    pub artefacts: PathBuf,
    /// Artefacts to write
    #[arg(long, value_name = "FILE", default_value = "warmed.jsonl")]
    pub warmed: PathBuf,
    /// λ of Eq. 7; default the calibration's prior strength times 1/C of the library
    #[arg(long, value_name = "NUMBER")]
    pub precision: Option<f64>,
    /// Calibration written by `calibrate`, whose prior strength is used
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
}

pub(super) fn fit(fit: &FitArgs, args: &CommonArgs, resolved: &Resolved<Config>) -> Result<String> {
    let config = &resolved.config;
    let schema = Schema::read(&fit.schema)?;
    let ads = files::read_ads(&fit.ads, &config.input)?;
    let data = files::read_impressions(&fit.impressions, &config.input, &schema, ads)?;
    let all: Vec<usize> = (0..data.ads.len()).collect();
    let seed = Seed::new(args.seed);
    let library = train::fit_library(&data, &all, |_| true, &config.library, seed)?;
    library.write(&fit.library)?;
    if args.json {
        return text::json(&json!({
            "library": fit.library,
            "ads": library.ads.len(),
            "skipped": library.skipped,
            "c": library.c,
            "rate": library.rate(),
        }));
    }
    let skipped: String = library
        .skipped
        .iter()
        .take(20)
        .map(|skipped| format!("left out: ad {}, {}\n", skipped.id, skipped.reason))
        .collect();
    Ok(format!(
        "{} ads with trained weights (C = {}), {} left out, in {}\n{skipped}",
        library.ads.len(),
        library.c,
        library.skipped.len(),
        fit.library.display()
    ))
}

pub(super) fn calibrate(
    calibrate: &CalibrateArgs,
    args: &CommonArgs,
    resolved: &Resolved<Config>,
) -> Result<String> {
    let config = &resolved.config;
    let seed = Seed::new(args.seed);
    let library = Library::read(&calibrate.library)?;
    let ads = files::read_ads(&calibrate.ads, &config.input)?;
    let data =
        files::read_impressions(&calibrate.impressions, &config.input, &library.schema, ads)?;
    let assets = super::assets_of(args);
    let generator = Generator::new(&library, config, &assets)?;
    let sources = Sources::new(&library, config.retrieval.k, &assets)?;
    let as_cold = AsCold::new(&generator, &sources, &data, |_| true, seed)?;
    let writer = super::open_writer(args, resolved, &library.schema, None)?;
    let mut asked = sources::sample(&library, calibrate.asked, seed);
    let cold = sources::as_cold(&library, &asked);
    let found = generator.retrieve(&cold)?;
    let (raws, tally) = writer.write(&generator.queries(&cold, &found))?;
    let mut answers: Vec<Option<Vec<f64>>> = raws.iter().map(Raw::complete).collect();
    let mut usable = answers.iter().map(Option::is_some);
    asked.retain(|_| usable.next().unwrap_or(false));
    answers.retain(Option::is_some);
    let answers: Vec<Vec<f64>> = answers.into_iter().flatten().collect();
    let calibration = Calibration::fit(&library, &as_cold, writer.mode(), &asked, &answers, seed)?;
    calibration.write(&calibrate.calibration)?;
    if args.json {
        return text::json(&json!({ "file": calibrate.calibration, "calibration": calibration,
            "retired_ads": as_cold.indices.len(), "asked": answers.len(), "tally": tally }));
    }
    Ok(format!(
        "{}: {}, learned on {} retired ads, {} of them with answers of {} ({} tokens); prior \
         strength {}\n",
        calibrate.calibration.display(),
        calibration.words(),
        as_cold.indices.len(),
        answers.len(),
        writer.name(),
        tally.tokens,
        calibration.prior_strength
    ))
}

pub(super) fn generate(
    generate: &GenerateArgs,
    args: &CommonArgs,
    resolved: &Resolved<Config>,
) -> Result<String> {
    let config = &resolved.config;
    let library = Library::read(&generate.library)?;
    let ads = files::read_ads(&generate.ads, &config.input)?;
    let assets = super::assets_of(args);
    let generator = Generator::new(&library, config, &assets)?;
    let record = generate.record.clone();
    let writer = super::open_writer(args, resolved, &library.schema, record)?;
    if generate.dry_run {
        return dry_run(&generator, &ads, &writer);
    }
    let calibration = match &generate.calibration {
        Some(path) => {
            let calibration = Calibration::read(path)?;
            calibration
                .check(&library.schema, writer.mode())
                .map_err(|error| error.in_file(path))?;
            Some((calibration, Sources::new(&library, config.retrieval.k, &assets)?))
        }
        None => None,
    };
    let calibration = calibration.as_ref().map(|(calibration, sources)| (calibration, sources));
    let (artefacts, tally) = generator.generate(&ads, &writer, calibration)?;
    artefact::write(&generate.artefacts, &artefacts)?;
    if args.json {
        return text::json(&json!({
            "artefacts": generate.artefacts,
            "ads": artefacts.len(),
            "tally": tally,
            "consistent": signs(&artefacts, &library.schema),
            "sources": artefacts.iter().map(|a| json!({ "ad": a.ad_id, "source": a.source,
                "filled": a.filled.len() })).collect::<Vec<_>>(),
        }));
    }
    Ok(summary(&artefacts, &tally, &library.schema, generate))
}

fn dry_run(generator: &Generator<'_>, ads: &[crate::data::Ad], writer: &Writer) -> Result<String> {
    let found = generator.retrieve(ads)?;
    let mut out = String::new();
    let mut total = 0;
    for (ad, found) in ads.iter().zip(&found) {
        for (prompt, tokens) in writer.dry_run(&generator.query(ad, found)) {
            out.push_str(&format!("--- ad {}, {tokens} tokens ---\n{prompt}\n", ad.id));
            total += tokens;
        }
    }
    let how = if writer.counts_exactly() { "" } else { " (estimated at four bytes each)" };
    Ok(format!("{out}--- {} ads, {total} tokens{how}; nothing was asked ---\n", ads.len()))
}

fn summary(
    artefacts: &[Artefact],
    tally: &Tally,
    schema: &Schema,
    generate: &GenerateArgs,
) -> String {
    let of = |source: Source| artefacts.iter().filter(|a| a.source == source).count();
    format!(
        "{} artefacts in {}: {} written by the LLM, {} blends, {} kNN fallbacks, {} LR_cold \
         fallbacks; {} of {} weights had no usable answer, {} repairs, {} prompts, {} tokens ({} \
         saved by shared prefixes){}\n",
        artefacts.len(),
        generate.artefacts.display(),
        of(Source::Llm),
        of(Source::Blend),
        of(Source::Knn),
        of(Source::LrCold),
        tally.unusable,
        tally.weights,
        tally.repairs,
        tally.prompts,
        tally.tokens,
        tally.tokens_saved,
        consistency_words(&signs(artefacts, schema))
    )
}

/// Consistency of every reason of every artefact.
fn signs(artefacts: &[Artefact], schema: &Schema) -> Vec<bool> {
    artefacts.iter().flat_map(|a| eval::consistency(&a.reasoning, &a.raw, schema)).collect()
}

fn consistency_words(signs: &[bool]) -> String {
    let same = signs.iter().filter(|same| **same).count();
    match signs.len() {
        0 => String::new(),
        all => format!("; {same} of {all} reasons state the sign of their weight"),
    }
}

pub(super) fn predict(
    predict: &PredictArgs,
    args: &CommonArgs,
    resolved: &Resolved<Config>,
) -> Result<String> {
    // The name of the output must be right before anything is computed.
    Format::of(&predict.scores)?;
    let library = Library::read(&predict.library)?;
    let artefacts = artefact::read(&predict.artefacts, &library.schema)?;
    let users = files::read_users(&predict.users, &resolved.config.input, &library.schema)?;
    let weights: Vec<Vec<f64>> = artefacts.iter().map(|a| a.weights.clone()).collect();
    let biases: Vec<f64> = artefacts.iter().map(|a| a.bias).collect();
    let scorer = Scorer::new(&weights, &biases)?;
    let flat: Vec<f32> = users.features.iter().copied().collect();
    let scores = scorer.probabilities(&flat)?;
    let (mut user, mut ad, mut probability) = (Vec::new(), Vec::new(), Vec::new());
    for (id, row) in users.ids.iter().zip(scores.chunks(artefacts.len())) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        if let Some(top) = predict.top {
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
            order.truncate(top);
        }
        for at in order {
            user.push(id.clone());
            ad.push(artefacts[at].ad_id.clone());
            probability.push(f64::from(row[at]));
        }
    }
    common::data::write(
        &predict.scores,
        &[
            ("user", Values::Text(&user)),
            ("ad", Values::Text(&ad)),
            ("probability", Values::Real(&probability)),
        ],
    )?;
    if args.json {
        return text::json(&json!({ "scores": predict.scores, "rows": user.len() }));
    }
    Ok(format!(
        "{} scores of {} users and {} ads in {}\n",
        user.len(),
        users.ids.len(),
        artefacts.len(),
        predict.scores.display()
    ))
}

pub(super) fn warm(
    warm: &WarmArgs,
    args: &CommonArgs,
    resolved: &Resolved<Config>,
) -> Result<String> {
    let config = &resolved.config;
    let library = Library::read(&warm.library)?;
    let mut artefacts = artefact::read(&warm.artefacts, &library.schema)?;
    let ads = files::read_ads(&warm.ads, &config.input)?;
    let data = files::read_impressions(&warm.impressions, &config.input, &library.schema, ads)?;
    let rows = data.rows_by_ad(|_| true);
    let strength = match &warm.calibration {
        Some(path) => Calibration::read(path)?.prior_strength,
        None => 1.0,
    };
    let precision = warm.precision.unwrap_or(strength / library.c);
    if !(precision > 0.0 && precision.is_finite()) {
        return Err(Error::usage(format!("--precision {precision}: expected a number above 0")));
    }
    let mut lines = Vec::new();
    for artefact in &mut artefacts {
        let Some(at) = data.ads.iter().position(|ad| ad.id == artefact.ad_id) else { continue };
        let own = &rows[at];
        if own.is_empty() {
            continue;
        }
        let prior = Prior {
            weights: artefact.weights.clone(),
            bias: artefact.bias,
            precision,
            bias_precision: 1.0,
        };
        let labels = data.impressions.labels(own);
        let posterior = prior.update(data.impressions.rows(own).view(), &labels)?;
        let sd = posterior.sd();
        let moved = posterior
            .weights
            .iter()
            .zip(&artefact.weights)
            .map(|(a, b)| (a - b).powi(2))
            .sum::<f64>()
            .sqrt();
        lines.push(vec![
            artefact.ad_id.clone(),
            own.len().to_string(),
            labels.iter().filter(|c| **c).count().to_string(),
            format!("{moved:.4}"),
            format!("{:.4}", sd.iter().sum::<f64>() / sd.len() as f64),
        ]);
        artefact.weights = posterior.weights;
        artefact.bias = posterior.bias;
        artefact.source = Source::Warmed;
    }
    artefact::write(&warm.warmed, &artefacts)?;
    if args.json {
        return text::json(&json!({ "artefacts": warm.warmed, "warmed": lines.len() }));
    }
    let header = ["ad", "impressions", "clicks", "weights moved by", "mean posterior sd"];
    Ok(format!("{}\n{}", warm.warmed.display(), text::table(&header, &lines)))
}
