//! How the settings were chosen: the same measures as in the benchmark, on validation concepts only.
//!
//! `cargo run --release -p poac --example choose -- plm` or `-- refl`, with further words as seeds.

#![allow(clippy::print_stdout)]

use common::assets::Assets;
use common::rng::Seed;
use common::{Error, Result};
use poac::baselines::{Neighbours, VOTES, top};
use poac::bench::objects::{MIXES, mixed};
use poac::config::Config;
use poac::data::Style;
use poac::data::pairs::{OBJECTS, TEMPLATES};
use poac::data::world::{Concept, Split};
use poac::eval::{concept_hits, cosines, object_scores};
use poac::model::Denoiser;
use poac::rewrite::Rewriter;
use poac::studio::{Base, ImageModels};
use poac::train::plm::PlmOptions;
use poac::train::refl::{Adapted, ReflOptions, Relevance, Stage};

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let part = words.next().unwrap_or_default();
    let seeds: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
    let seeds = if seeds.is_empty() { vec![0] } else { seeds };
    match part.as_str() {
        "plm" => plm(&seeds),
        "refl" => refl(seeds[0]),
        other => Err(Error::usage(format!("part {other:?}: use plm or refl"))),
    }
}

/// Object F1 by size and training of the language model, way of decoding, and vote.
fn plm(seeds: &[u64]) -> Result<()> {
    let assets = Assets::from_env();
    for (width, steps, share) in
        [(128, 400, 0.2), (256, 400, 0.2), (256, 800, 0.2), (256, 400, 0.5), (384, 400, 0.2)]
    {
        let mut config = Config::cpu();
        config.plm = PlmOptions { width, abstract_share: share, ..config.plm };
        config.plm.pace.steps = steps;
        let mut totals = [0.0; 4];
        let mut mixes = vec![0.0; MIXES.len() * VOTES.len()];
        let mut votes = vec![0.0; VOTES.len()];
        let mut count = 0.0;
        for &seed in seeds {
            let seed = Seed::new(seed);
            let base = Base::new(&config, &assets, seed)?;
            let (model, _) = base.plm(seed, false)?;
            let rewriter = Rewriter::new(&model, &base.features, &base.world, &config.search);
            let neighbours = Neighbours::new(&base.world, &assets)?;
            for concept in base.world.split(Split::Validation) {
                let f1 = |objects: &[usize]| object_scores(objects, &concept.objects).f1;
                let first = rewriter.concept(&concept.word, Style::Colour, 1)?.into_iter().next();
                totals[0] += first.map_or(0.0, |candidate| f1(&candidate.objects));
                let log_probs = rewriter.object_log_probs(&concept.word)?;
                totals[1] += f1(&top(&log_probs, OBJECTS));
                let row = neighbours.encode(&[&concept.word])?;
                let near = neighbours.by_keywords(row.row(0), VOTES[0]);
                totals[2] += f1(&top(&near, OBJECTS));
                for (at, &vote) in VOTES.iter().enumerate() {
                    let by_vote = neighbours.by_keywords(row.row(0), vote);
                    votes[at] += f1(&top(&by_vote, OBJECTS));
                    for (which, &mix) in MIXES.iter().enumerate() {
                        mixes[at * MIXES.len() + which] +=
                            f1(&top(&mixed(&log_probs, &by_vote, mix), OBJECTS));
                    }
                }
                count += 1.0;
            }
        }
        let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max) / count;
        println!(
            "width {width} steps {steps} share {share}: beam {:.3} marginal {:.3} | nearest {:.3} \
             vote {:.3} mixed {:.3} ({count} concepts)",
            totals[0] / count,
            totals[1] / count,
            totals[2] / count,
            most(&votes),
            most(&mixes),
        );
    }
    Ok(())
}

/// Hits, reward and quality by settings of reward feedback learning.
fn refl(seed: u64) -> Result<()> {
    let (assets, config) = (Assets::from_env(), Config::cpu());
    let seed = Seed::new(seed);
    let base = Base::new(&config, &assets, seed)?;
    let (model, _) = base.plm(seed, false)?;
    let models = base.image_models(seed)?;
    let rewriter = Rewriter::new(&model, &base.features, &base.world, &config.search);
    let concepts: Vec<Concept> = base.world.split(Split::Validation).cloned().collect();
    let (mut raw, mut three, mut one) = (Vec::new(), Vec::new(), Vec::new());
    for concept in &concepts {
        raw.push(format!("{} {}, in colour", TEMPLATES[0], concept.word));
        let found = rewriter.concept(&concept.word, Style::Colour, 1)?.remove(0);
        one.push(rewriter.prompt(&[], &found.objects[..1], Style::Colour));
        three.push(found.prompt);
    }
    let sets = [("raw", &raw), ("three", &three), ("one", &one)];
    let show = |name: &str, denoiser: &Denoiser| -> Result<()> {
        for (set, prompts) in sets {
            let [hits, reward, quality] = measure(&base, &models, &concepts, denoiser, prompts)?;
            println!("{name:<40} {set:>5}: hit {hits:.3} reward {reward:.3} quality {quality:.3}");
        }
        Ok(())
    };
    show("untuned", &models.denoiser)?;
    let stages = |steps: u64, weight: f64| {
        vec![
            Stage { clip: weight, quality: 0.0, steps },
            Stage { clip: weight, quality: weight, steps: steps / 2 },
        ]
    };
    let plain = ReflOptions { stages: stages(100, 1.0), ..config.refl.clone() };
    let all = |lambda: f64, lr: f64, k: usize, steps: u64| ReflOptions {
        stages: stages(steps, 1.0),
        lambda,
        lr,
        backprop_steps: k,
        first_step: if k > 1 { 11 } else { 7 },
        adapted: Adapted::All,
        relevance: Relevance::Both,
        raw_share: 0.3,
        ..plain.clone()
    };
    let trials = [
        ("default", config.refl.clone()),
        ("λ 1, all layers, ReFL", all(1.0, 2e-3, 1, 100)),
        ("λ 1, all layers, 3 steps", all(1.0, 2e-3, 3, 100)),
        (
            "λ 1, all layers, 3 steps, original",
            ReflOptions { relevance: Relevance::Original, ..all(1.0, 2e-3, 3, 100) },
        ),
        ("constant", ReflOptions { stages: stages(100, 0.0), ..all(1.0, 2e-3, 1, 100) }),
    ];
    for (name, options) in trials {
        let (denoiser, histories) = base.tuned_with(&models, &options, seed)?;
        for history in histories {
            let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
            let (losses, n) = (&history.losses, history.losses.len());
            println!("{name}: loss {:.3} → {:.3}", mean(&losses[..10]), mean(&losses[n - 10..]));
        }
        show(name, &denoiser)?;
    }
    Ok(())
}

fn measure(
    base: &Base,
    models: &ImageModels,
    concepts: &[Concept],
    denoiser: &Denoiser,
    prompts: &[String],
) -> Result<[f64; 3]> {
    let all: Vec<(usize, Style)> = (0..base.images.len()).map(|at| (at, Style::Colour)).collect();
    let real = models.scorer_b.embed_images(&base.images.batch(&all)?)?.detach();
    let objects: Vec<&[usize]> = concepts.iter().map(|c| c.objects.as_slice()).collect();
    let words: Vec<&str> = concepts.iter().map(|c| c.word.as_str()).collect();
    let words = models.scorer_a.embed_texts(&base.features.batch(&words)?.mean()?)?;
    let mut sums = [0.0; 3];
    let mut count = 0.0;
    for round in 0..3u64 {
        let seeds: Vec<u64> =
            (0..prompts.len() as u64).map(|at| 77_000 + round * 1_000 + at).collect();
        let shown = base.generate(denoiser, &models.codec, prompts, &seeds)?;
        let hits = concept_hits(&models.scorer_b.embed_images(&shown)?, &real, &objects, 5)?;
        let reward = cosines(&models.scorer_a.embed_images(&shown)?, &words)?;
        let features = models.scorer_b.image_features(&shown)?;
        let quality = models.quality_b.forward(&features)?.to_vec1::<f32>()?;
        sums[0] += hits.iter().sum::<f64>();
        sums[1] += reward.iter().sum::<f64>();
        sums[2] += quality.iter().map(|&q| f64::from(q)).sum::<f64>();
        count += prompts.len() as f64;
    }
    Ok(sums.map(|sum| sum / count))
}
