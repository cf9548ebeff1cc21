//! Generated ads with known true weights: does the pipeline carry perfect weights through, and what
//! is Thompson sampling from a written prior worth?

use common::Result;
use common::report::{Report, Role, Row};
use common::rng::Seed;
use ndarray::Array2;

use super::{Context, base};
use crate::config::Config;
use crate::data::{ColdSplit, synth};
use crate::eval::{METRICS, TestSet};
use crate::generate::Generator;
use crate::model::logit::{Linear, dot, logit, sigmoid};
use crate::model::prior::Prior;
use crate::train;
use crate::writer::Raw;

pub(super) fn run(config: &Config, context: &Context, report: &mut Report) -> Result<()> {
    let seed = Seed::new(context.seed);
    let size = synth::Size { ads: config.bench.synth_ads, users: 2_000, impressions: 2_000 };
    let truth = synth::generate(size, seed)?;
    let data = &truth.data;
    let cold = size.ads / 4;
    let retired: Vec<usize> = (0..size.ads - cold).collect();
    let active: Vec<usize> = (size.ads - cold..size.ads).collect();
    let mut stream = seed.stream("synth/users");
    let split = ColdSplit::new(retired, active, data.users, 0.2, &mut stream);
    let train = |row: usize| !split.held_out[data.impressions.user[row]];
    let library = train::fit_library(data, &split.retired, train, &config.library, seed)?;
    let generator = Generator::new(&library, config, &context.assets)?;
    let test = TestSet::new(&data.impressions, &split.active, |row| !train(row));
    let rows = data.rows_by_ad(train);
    let features = data.impressions.rows(&test.rows);
    let ads: Vec<_> = split.active.iter().map(|&ad| data.ads[ad].clone()).collect();
    let found = generator.retrieve(&ads)?;

    let mut models: Vec<(&str, Role, Vec<Linear>)> = vec![
        ("oracle weights through the pipeline", Role::Paper, Vec::new()),
        ("LR_warm", Role::Ablation, Vec::new()),
        ("LR_cold (median)", Role::Baseline, Vec::new()),
        ("kNN weights, tf-idf", Role::Baseline, Vec::new()),
    ];
    for ((&ad, new), found) in split.active.iter().zip(&ads).zip(&found) {
        let target = generator.target_rate(found);
        // What a perfect LLM would write: the true weights on its own scale.
        let values = truth.weights[ad].iter().map(|w| Some(w / 3.0)).collect();
        let raw = Raw { values, ..Raw::default() };
        let written = generator.finish(new, found, &raw, "oracle")?;
        models[0].2.push(Linear { weights: written.weights, bias: written.bias });
        let fitted = train::fit_rows(&data.impressions, &rows[ad], library.c)?;
        models[1].2.push(Linear { weights: fitted.weights, bias: fitted.bias });
        let centre = library.centre();
        let bias = generator.bias(&centre, target)?;
        let knn = library.knn_weights(found).unwrap_or_else(|| centre.clone());
        models[2].2.push(Linear { weights: centre, bias });
        let bias = generator.bias(&knn, target)?;
        models[3].2.push(Linear { weights: knn, bias });
    }
    for (name, role, models) in &models {
        let p: Vec<f64> = test
            .ad
            .iter()
            .zip(features.rows())
            .map(|(&ad, x)| sigmoid(models[ad].logit(&x.to_vec())))
            .collect();
        let measured = test.measure(&p, config.bench.resamples, seed);
        for ((metric, higher), measured) in METRICS.iter().zip(measured) {
            let Some(measured) = measured else { continue };
            report.rows.push(Row {
                claim: "with perfect weights the pipeline reaches the warm model".into(),
                metric: (*metric).into(),
                higher_is_better: *higher,
                mean: Some(measured.value),
                ci95: Some(measured.ci95),
                n: measured.n,
                note: Some("generated data; the oracle stands in for the LLM".into()),
                ..base("synth", name, *role)
            });
        }
    }
    thompson(config, &truth, &split, &models, &features, seed, report)
}

/// Clicks per impression of Thompson sampling over the cold ads, from written and from empty
/// priors, on simulated users whose click probabilities are known.
fn thompson(
    config: &Config,
    truth: &synth::Synthetic,
    split: &ColdSplit,
    models: &[(&str, Role, Vec<Linear>)],
    users: &Array2<f64>,
    seed: Seed,
    report: &mut Report,
) -> Result<()> {
    // Ads that compete in one slot, and users who come by.
    let (ads, rounds, batch) = (8.min(split.active.len()), 600, 50);
    let width = truth.data.schema.len();
    let rate = 0.2;
    let starts: [(&str, Role, Option<usize>); 3] = [
        ("Thompson sampling, oracle prior", Role::Paper, Some(0)),
        ("Thompson sampling, kNN prior", Role::Baseline, Some(3)),
        ("Thompson sampling, empty prior", Role::Baseline, None),
    ];
    for (name, role, source) in starts {
        let mut rates = Vec::new();
        for repeat in 0..config.bench.repeats.max(2) {
            let mut stream = seed.stream(&format!("thompson/{repeat}"));
            let mut seen: Vec<(Vec<f64>, Vec<bool>)> = vec![(Vec::new(), Vec::new()); ads];
            let prior = |ad: usize| {
                let empty = || Linear { weights: vec![0.0; width], bias: logit(rate) };
                let Linear { weights, bias } =
                    source.map_or_else(empty, |s| models[s].2[ad].clone());
                Prior { weights, bias, precision: 4.0, bias_precision: 4.0 }
            };
            let mut clicks = 0.0;
            let mut posteriors = Vec::new();
            for round in 0..rounds {
                if round % batch == 0 {
                    posteriors = (0..ads)
                        .map(|ad| {
                            let (x, y) = &seen[ad];
                            let rows = Array2::from_shape_vec((y.len(), width), x.clone())
                                .map_err(|error| common::Error::Bug(error.to_string()))?;
                            prior(ad).update(rows.view(), y)
                        })
                        .collect::<Result<Vec<_>>>()?;
                }
                let x = users.row(stream.below(users.nrows())).to_vec();
                let mut best = (f64::NEG_INFINITY, 0);
                for (ad, posterior) in posteriors.iter().enumerate() {
                    let (weights, bias) = posterior.sample(&mut stream);
                    let z = dot(&weights, &x) + bias;
                    if z > best.0 {
                        best = (z, ad);
                    }
                }
                let ad = split.active[best.1];
                let p = sigmoid(dot(&truth.weights[ad], &x) + truth.biases[ad]);
                // The expectation judges; the draw is what the bandit learns from.
                clicks += p;
                let clicked = stream.chance(p);
                seen[best.1].0.extend(&x);
                seen[best.1].1.push(clicked);
            }
            rates.push(clicks / rounds as f64);
        }
        report.rows.push(
            Row {
                claim: "a written prior makes exploration cheaper".into(),
                metric: "expected clicks per impression".into(),
                n: rounds,
                note: Some(format!("{ads} competing ads, {rounds} users, posterior every {batch}")),
                ..base("synth bandit", name, role)
            }
            .over_seeds(&rates),
        );
    }
    Ok(())
}
