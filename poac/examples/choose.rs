//! How the settings were chosen: the same measures as in the benchmark, on validation concepts only.
//!
//! `cargo run --release -p poac --example choose -- plm` or `-- refl`; further numbers are seeds, other
//! words name the trials to run.

#![allow(clippy::print_stdout)]

use common::assets::Assets;
use common::rng::Seed;
use common::{Error, Result};
use poac::baselines::{Neighbours, VOTES, top};
use poac::bench::objects::{MIXES, mixed};
use poac::config::Config;
use poac::data::Style;
use poac::data::pairs::OBJECTS;
use poac::data::world::{Concept, Split};
use poac::eval::{ConceptTexts, concept_hits, concept_scores, cosines, object_scores};
use poac::model::Denoiser;
use poac::rewrite::Rewriter;
use poac::studio::{Base, ImageModels};
use poac::train::plm::PlmOptions;
use poac::train::refl::{Adapted, ReflOptions, Relevance, Stage};

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let part = words.next().unwrap_or_default();
    let words: Vec<String> = words.collect();
    let seeds: Vec<u64> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let seeds = if seeds.is_empty() { vec![0] } else { seeds };
    let wanted: Vec<&str> =
        words.iter().map(String::as_str).filter(|word| word.parse::<u64>().is_err()).collect();
    match part.as_str() {
        "plm" => plm(&seeds, &wanted),
        "refl" => refl(seeds[0], &wanted),
        other => Err(Error::usage(format!("part {other:?}: use plm or refl"))),
    }
}

/// Whether a trial is asked for: all are when none is named.
fn asked(name: &str, wanted: &[&str]) -> bool {
    wanted.is_empty() || wanted.contains(&name)
}

/// Object F1 by size and training of the language model, way of decoding, and vote. More concepts than
/// in the benchmark are held out for the choice; the test concepts are the same.
fn plm(seeds: &[u64], wanted: &[&str]) -> Result<()> {
    let assets = Assets::from_env();
    let plain = Config::cpu().plm;
    let with = |steps: u64, change: &dyn Fn(&mut PlmOptions)| {
        let mut options = plain.clone();
        options.pace.steps = steps;
        change(&mut options);
        options
    };
    let trials = [
        ("as configured", plain.clone()),
        ("noise 0.3", with(400, &|o| o.noise = 0.3)),
        ("noise 0.6", with(400, &|o| o.noise = 0.6)),
        ("width 256", with(400, &|o| o.width = 256)),
        ("width 256, noise 0.3", with(400, &|o| (o.width, o.noise) = (256, 0.3))),
    ];
    for (name, options) in trials.into_iter().filter(|(name, _)| asked(name, wanted)) {
        let mut config = Config::cpu();
        config.world.validation = 0.4;
        config.plm = options;
        let mut totals = [0.0; 3];
        let mut mixes = vec![0.0; MIXES.len() * VOTES.len()];
        let mut votes = vec![0.0; VOTES.len()];
        let mut count = 0.0;
        for &seed in seeds {
            let seed = Seed::new(seed);
            let base = Base::new(&config, &assets, seed)?;
            let (model, _) = base.plm(seed, false)?;
            let neighbours = Neighbours::new(&base.world, &assets)?;
            let rewriter = Rewriter::new(&model, &base.features, &base.world, &config.search);
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
        let most = |values: &[f64]| {
            let at = top(values, 1)[0];
            (values[at] / count, at)
        };
        println!(
            "{name}: beam {:.3} marginal {:.3} | nearest {:.3} vote {:.3?} mixed {:.3?} ({count} \
             concepts)",
            totals[0] / count,
            totals[1] / count,
            totals[2] / count,
            most(&votes),
            most(&mixes),
        );
    }
    Ok(())
}

/// Hits, concept score, reward and quality by settings of reward feedback learning.
fn refl(seed: u64, wanted: &[&str]) -> Result<()> {
    let (assets, config) = (Assets::from_env(), Config::cpu());
    let seed = Seed::new(seed);
    let base = Base::new(&config, &assets, seed)?;
    let (model, _) = base.plm(seed, false)?;
    let models = base.image_models(seed)?;
    println!("{:?}", models.standards);
    let rewriter = Rewriter::new(&model, &base.features, &base.world, &config.search);
    let concepts: Vec<Concept> = base.world.split(Split::Validation).cloned().collect();
    let (mut three, mut one) = (Vec::new(), Vec::new());
    for concept in &concepts {
        let found = rewriter.concept(&concept.word, Style::Colour, 1)?.remove(0);
        one.push(rewriter.prompt(&[], &found.objects[..1], Style::Colour));
        three.push(found.prompt);
    }
    let sets = [("three", &three), ("one", &one)];
    let show = |name: &str, denoiser: &Denoiser| -> Result<()> {
        for (set, prompts) in sets {
            let [hits, score, reward, quality] =
                measure(&base, &models, &concepts, denoiser, prompts)?;
            println!(
                "{name:<12} {set:>5}: hit {hits:.3} concept {score:.4} reward {reward:.3} quality \
                 {quality:.3}"
            );
        }
        Ok(())
    };
    if asked("untuned", wanted) {
        show("untuned", &models.denoiser)?;
    }
    let both = |clip: f64, quality: f64, steps: u64| vec![Stage { clip, quality, steps }];
    let strong = ReflOptions {
        stages: both(1.0, 1.0, 120),
        lambda: 1.0,
        lr: 3e-3,
        adapted: Adapted::All,
        rank: 8,
        ..config.refl.clone()
    };
    let trials = [
        ("default", config.refl.clone()),
        ("strong", strong.clone()),
        ("early", ReflOptions { first_step: 2, ..strong.clone() }),
        ("draft", ReflOptions { backprop_steps: 3, first_step: 11, ..strong.clone() }),
        ("chain", ReflOptions { backprop_steps: 12, first_step: 11, ..strong.clone() }),
        ("original", ReflOptions { relevance: Relevance::Original, ..strong.clone() }),
        ("both", ReflOptions { relevance: Relevance::Both, raw_share: 0.3, ..strong.clone() }),
        ("constant", ReflOptions { stages: both(0.0, 0.0, 120), ..strong.clone() }),
    ];
    for (name, options) in trials.into_iter().filter(|(name, _)| asked(name, wanted)) {
        let start = std::time::Instant::now();
        let (denoiser, histories) = base.tuned_with(&models, &options, seed)?;
        for history in histories {
            let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
            let (losses, n) = (&history.losses, history.losses.len());
            let (first, last) = (mean(&losses[..10.min(n)]), mean(&losses[n.saturating_sub(10)..]));
            println!("{name}: loss {first:.3} → {last:.3}, {:.0?}", start.elapsed());
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
) -> Result<[f64; 4]> {
    let all: Vec<(usize, Style)> = (0..base.images.len()).map(|at| (at, Style::Colour)).collect();
    let real = models.scorer_b.embed_images(&base.images.batch(&all)?)?.detach();
    let objects: Vec<&[usize]> = concepts.iter().map(|c| c.objects.as_slice()).collect();
    let texts = ConceptTexts::new(&base.world, &base.features, &models.scorer_b, concepts)?;
    let told = models.scorer_a.embed_texts(&base.features.batch(prompts)?.mean()?)?;
    let mut sums = [0.0; 4];
    let mut count = 0.0;
    for round in 0..4u64 {
        let seeds: Vec<u64> =
            (0..prompts.len() as u64).map(|at| 77_000 + round * 1_000 + at).collect();
        let shown = base.generate(denoiser, &models.codec, prompts, &seeds)?;
        let embedded = models.scorer_b.embed_images(&shown)?;
        let features = models.scorer_b.image_features(&shown)?;
        let quality = models.quality_b.forward(&features)?.to_vec1::<f32>()?;
        sums[0] += concept_hits(&embedded, &real, &objects, 5)?.iter().sum::<f64>();
        sums[1] += concept_scores(&embedded, &texts)?.iter().sum::<f64>();
        sums[2] += cosines(&models.scorer_a.embed_images(&shown)?, &told)?.iter().sum::<f64>();
        sums[3] += quality.iter().map(|&q| f64::from(q)).sum::<f64>();
        count += prompts.len() as f64;
    }
    Ok(sums.map(|sum| sum / count))
}
