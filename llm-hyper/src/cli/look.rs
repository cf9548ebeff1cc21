//! `explain` and `eval`: why an ad has its weights, and how good they are.

use std::path::PathBuf;

use common::cli::{CommonArgs, Resolved, text};
use common::report::plot::{self, Bar, Labels};
use common::report::{Figure, Report, Role, html};
use common::rng::Seed;
use common::{Error, Result};
use serde_json::json;

use crate::artefact::{self, Artefact};
use crate::config::Config;
use crate::data::files;
use crate::eval::{METRICS, TestSet};
use crate::generate::Generator;
use crate::library::Library;
use crate::model::intercept::gap;
use crate::model::logit::{Linear, sigmoid};

/// Weights shown in a picture.
const SHOWN: usize = 20;

/// Flags of `explain`.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// Id of the ad
    #[arg(long, value_name = "ID")]
    pub ad: String,
    /// Library written by `fit`
    #[arg(long, value_name = "FILE", default_value = "library.json")]
    pub library: PathBuf,
    /// Artefacts written by `generate`
    #[arg(long, value_name = "FILE", default_value = "artefacts.jsonl")]
    pub artefacts: PathBuf,
    /// Also write a page with bars
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// Flags of `eval`.
#[derive(Debug, clap::Args)]
pub struct EvalArgs {
    /// Catalogue of the ads
    pub ads: PathBuf,
    /// Impressions that judge
    pub impressions: PathBuf,
    /// Library written by `fit`
    #[arg(long, value_name = "FILE", default_value = "library.json")]
    pub library: PathBuf,
    /// Artefacts written by `generate`
    #[arg(long, value_name = "FILE", default_value = "artefacts.jsonl")]
    pub artefacts: PathBuf,
}

pub(super) fn explain(explain: &ExplainArgs, args: &CommonArgs) -> Result<String> {
    let library = Library::read(&explain.library)?;
    let artefacts = artefact::read(&explain.artefacts, &library.schema)?;
    let artefact = artefacts.iter().find(|a| a.ad_id == explain.ad).ok_or_else(|| {
        let some: Vec<&str> = artefacts.iter().take(5).map(|a| a.ad_id.as_str()).collect();
        Error::usage(format!(
            "--ad {:?}: {} has {} ads, such as {}",
            explain.ad,
            explain.artefacts.display(),
            artefacts.len(),
            some.join(", ")
        ))
    })?;
    let centre = library.centre();
    let logits = library.reference_logits(&artefact.weights);
    let without = gap(&logits, 0.0, 0.0);
    let with = gap(&logits, artefact.bias, 0.0);
    let notes = notes(artefact, without, with);
    let mut order: Vec<usize> = (0..artefact.weights.len()).collect();
    order.sort_by(|&a, &b| {
        let size = |j: usize| artefact.weights[j].abs();
        size(b).total_cmp(&size(a)).then(a.cmp(&b))
    });
    let reason = |j: usize| {
        let name = &library.schema.features[j].name;
        let found = artefact.reasoning.iter().find(|reason| reason.feature == *name);
        found.map_or("", |reason| reason.text.as_str())
    };
    if let Some(path) = &explain.html {
        page(artefact, &library, &order, &notes, path)?;
    }
    if args.json {
        return text::json(&json!({
            "artefact": artefact,
            "median_weights": centre,
            "mean_click_probability": { "intercept 0": without, "calibrated": with },
        }));
    }
    let rows: Vec<Vec<String>> = order
        .iter()
        .map(|&j| {
            let feature = &library.schema.features[j];
            let filled = artefact.filled.contains(&feature.name);
            vec![
                feature.name.clone(),
                format!("{:+.3}", artefact.weights[j]),
                if filled { "none".into() } else { format!("{:+.3}", artefact.raw[j]) },
                format!("{:+.3}", centre[j]),
                reason(j).to_owned(),
            ]
        })
        .collect();
    let header = ["feature", "weight", "LLM wrote", "library median", "reason"];
    Ok(format!("{}\n\n{}", notes.join("\n"), text::table(&header, &rows)))
}

fn notes(artefact: &Artefact, without: f64, with: f64) -> Vec<String> {
    let mut notes = vec![
        format!("Ad {}: {}", artefact.ad_id, artefact.ad_text),
        format!(
            "Source {}, {} features filled from the demonstrations; {}",
            serde_json::to_value(artefact.source).unwrap_or_default().as_str().unwrap_or(""),
            artefact.filled.len(),
            artefact.llm
        ),
        format!(
            "Calibration: intercept {:+.3} moves the mean click probability of the reference users \
             from {without:.4} to {with:.4}; aimed at {:.4}",
            artefact.bias, artefact.target_rate
        ),
    ];
    notes.extend(artefact.demos.iter().map(|demo| {
        format!("Demonstration {} (cosine {:.3}): {}", demo.id, demo.similarity, demo.text)
    }));
    notes
}

fn page(
    artefact: &Artefact,
    library: &Library,
    order: &[usize],
    notes: &[String],
    path: &std::path::Path,
) -> Result<()> {
    let bars = |values: &[f64]| -> Vec<Bar> {
        order
            .iter()
            .take(SHOWN)
            .map(|&j| Bar {
                label: library.schema.features[j].description.clone(),
                value: values[j],
                role: Role::Paper,
                ci95: None,
            })
            .collect()
    };
    let figure = |title: &str, caption: &str, values: &[f64]| {
        let labels = Labels { title, x: "weight", y: "" };
        Figure::new(title, caption, plot::bars(labels, &bars(values)))
    };
    let reasons = artefact.reasoning.iter();
    let reasons = reasons.map(|reason| format!("{}: {}", reason.feature, reason.text));
    let notes: Vec<String> = notes.iter().cloned().chain(reasons).collect();
    let mut report = Report::new("llm-hyper", "explain");
    report.headline = format!("The {SHOWN} largest weights of ad {}.", artefact.ad_id);
    report.figures = vec![
        figure("Served weights", "After normalisation, clipping and limits.", &artefact.weights),
        figure("What the LLM wrote", "Before normalisation, the same features.", &artefact.raw),
        figure("Median of past ads", "The same features without the LLM.", &library.centre()),
    ];
    let page = html::page(&format!("Ad {}", artefact.ad_id), &notes, &[report]);
    common::files::atomic_write(path, page.as_bytes())
}

pub(super) fn eval(
    eval: &EvalArgs,
    args: &CommonArgs,
    resolved: &Resolved<Config>,
) -> Result<String> {
    let config = &resolved.config;
    let library = Library::read(&eval.library)?;
    let artefacts = artefact::read(&eval.artefacts, &library.schema)?;
    let ads = files::read_ads(&eval.ads, &config.input)?;
    let data = files::read_impressions(&eval.impressions, &config.input, &library.schema, ads)?;
    let generator = Generator::new(&library, config, &super::assets_of(args))?;
    let (mut active, mut served) = (Vec::new(), Vec::new());
    for (at, ad) in data.ads.iter().enumerate() {
        if let Some(artefact) = artefacts.iter().find(|a| a.ad_id == ad.id) {
            active.push(at);
            served.push(artefact);
        }
    }
    if active.is_empty() {
        return Err(Error::data(
            format!("no artefact for any of the {} ads", data.ads.len()),
            "ads that were generated",
        )
        .in_file(&eval.ads));
    }
    let cold: Vec<_> = active.iter().map(|&at| data.ads[at].clone()).collect();
    let (mut median, mut knn) = (Vec::new(), Vec::new());
    for found in generator.retrieve(&cold)? {
        let target = generator.target_rate(&found);
        let near = library.knn_weights(&found).unwrap_or_else(|| generator.centre.clone());
        let model = |weights: Vec<f64>| -> Result<Linear> {
            Ok(Linear { bias: generator.bias(&weights, target)?, weights })
        };
        median.push(model(generator.centre.clone())?);
        knn.push(model(near)?);
    }
    let written =
        served.iter().map(|a| Linear { weights: a.weights.clone(), bias: a.bias }).collect();
    let test = TestSet::new(&data.impressions, &active, |_| true);
    let rows = data.impressions.rows(&test.rows);
    let mut lines = Vec::new();
    let mut values = Vec::new();
    let methods: [(&str, Vec<Linear>); 3] =
        [("artefacts", written), ("LR_cold (median)", median), ("kNN weights", knn)];
    for (name, models) in methods {
        let p: Vec<f64> = test
            .ad
            .iter()
            .zip(rows.rows())
            .map(|(&ad, x)| sigmoid(models[ad].logit(&x.to_vec())))
            .collect();
        let measured = test.measure(&p, config.bench.resamples, Seed::new(args.seed));
        let mut line = vec![name.to_owned()];
        for ((metric, _), measured) in METRICS.iter().zip(measured) {
            line.push(measured.map_or_else(
                || "–".to_owned(),
                |m| format!("{:.4} [{:.4}, {:.4}]", m.value, m.ci95[0], m.ci95[1]),
            ));
            if let Some(m) = measured {
                values.push(json!({ "method": name, "metric": metric, "value": m.value,
                    "ci95": m.ci95, "n": m.n }));
            }
        }
        lines.push(line);
    }
    if args.json {
        return text::json(&values);
    }
    let mut header = vec!["method"];
    header.extend(METRICS.iter().map(|(name, _)| *name));
    Ok(format!(
        "{} impressions of {} ads; 95 % intervals over ads (users for NDCG)\n\n{}",
        test.rows.len(),
        active.len(),
        text::table(&header, &lines)
    ))
}
