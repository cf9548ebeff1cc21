//! Losses, gradients, resuming, sampling.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use common::diffusion::{Beta, Prediction};
use common::lm::{Lm, Pass};
use common::rng::Seed;
use common::testing::assert_close;
use common::testing::gradients::assert_all_grads;
use common::{Error, Result};
use poac::data::pairs::{PairSource, example};
use poac::data::{Images, Style, World};
use poac::features::Features;
use poac::model::reward::{Standard, combine, reward_loss};
use poac::model::sample::{sample, start_noise};
use poac::model::{
    Codec, Denoiser, DenoiserOptions, QualityHead, SampleOptions, Schedule, Scorer, ScorerOptions,
};
use poac::rewrite::Rewriter;
use poac::train::denoiser::{Captioned, denoising_loss};
use poac::train::plm::{self, PlmOptions};
use poac::train::refl::{Asked, ReflOptions, Relevance, RewardModel, Stage, refl_loss};
use poac::train::{Pace, train};

use crate::toy::{self, SIZE, WIDTH, scalar, values};

const TOKENS: usize = (SIZE / 8) * (SIZE / 8);
const COMPONENTS: usize = 6;

fn small_plm() -> PlmOptions {
    let pace = Pace { steps: 200, batch: 16, lr: 1e-2, ..Pace::default() };
    PlmOptions {
        width: WIDTH,
        layers: 1,
        heads: 2,
        abstract_share: 0.5,
        pace,
        ..PlmOptions::default()
    }
}

fn small_denoiser() -> DenoiserOptions {
    DenoiserOptions { width: 16, blocks: 1, heads: 2, components: COMPONENTS }
}

struct Toy {
    world: World,
    features: Features,
    images: Images,
    codec: Codec,
    schedule: Schedule,
    scorer: Scorer,
    head: QualityHead,
    untuned: Denoiser,
}

impl Toy {
    fn new() -> Self {
        let world = toy::world();
        let (features, images) = (toy::features(&world), toy::images(&world));
        let all: Vec<_> = (0..8).map(|at| (at, Style::Colour)).collect();
        let codec = Codec::fit(&images.batch(&all).unwrap(), COMPONENTS, Seed::new(1)).unwrap();
        let options = ScorerOptions { width: 16, blocks: 1, heads: 2, embedding: 8 };
        let trained = Scorer::new(&options, SIZE, WIDTH, Seed::new(2)).unwrap();
        let tensors = trained.parameters().tensors();
        let scorer = Scorer::frozen(&options, SIZE, WIDTH, tensors).unwrap();
        let head = QualityHead::new(16, [8, 4, 4, 4, 1], Seed::new(3)).unwrap();
        let tensors = head.parameters().tensors();
        let head = QualityHead::frozen(16, [8, 4, 4, 4, 1], tensors).unwrap();
        let schedule = Schedule::new(Beta::SquaredCosine, 100);
        Self { world, features, images, codec, schedule, scorer, head, untuned: denoiser() }
    }

    fn captioned(&self) -> Captioned<'_> {
        Captioned::new(&self.world, &self.images, &self.codec, &self.features).unwrap()
    }

    fn asked(&self) -> Asked {
        let batch = |prompts: [&str; 2]| self.features.batch(&prompts).unwrap();
        Asked {
            told: batch(["thing a, in colour", "thing f, in grey"]),
            original: batch(["a picture of peace", "a picture of war"]),
        }
    }

    fn rewards(&self) -> RewardModel<'_> {
        RewardModel {
            untuned: &self.untuned,
            schedule: &self.schedule,
            prediction: Prediction::Velocity,
            codec: &self.codec,
            scorer: &self.scorer,
            quality: &self.head,
            clip_standard: Standard { mean: 0.1, sd: 0.3 },
            quality_standard: Standard { mean: 0.0, sd: 0.5 },
        }
    }
}

fn denoiser() -> Denoiser {
    let codes = Seed::new(8).stream("codes").normal_tensor((8, TOKENS, COMPONENTS), 1.0).unwrap();
    Denoiser::new(&small_denoiser(), &codes, WIDTH, Seed::new(4)).unwrap()
}

#[test]
fn the_sft_loss_sees_the_answer_only() {
    let world = toy::world();
    let features = toy::features(&world);
    let model = plm::new_model(&features, &small_plm(), Seed::new(1)).unwrap();
    let vocabulary = features.vocabulary();
    let batch = [
        example(vocabulary, "a picture of peace", "thing a, thing b, in colour"),
        example(vocabulary, "war", "thing e, in grey"),
    ];
    let loss = scalar(&plm::sft_loss(&model, &batch).unwrap());
    let (mut total, mut count) = (0.0, 0);
    for pair in &batch {
        let ids = Tensor::new(&pair.ids[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let log_probs = model.token_log_probs(&ids, Pass::default()).unwrap();
        let log_probs = values(&log_probs);
        total += log_probs[pair.prompt - 1..].iter().sum::<f32>();
        count += pair.ids.len() - pair.prompt;
    }
    assert!((loss + total / count as f32).abs() < 1e-5, "{loss} {total} {count}");
}

#[test]
fn every_parameter_gets_a_gradient() {
    let toy = Toy::new();
    let options = PlmOptions { word_features: false, ..small_plm() };
    let model = plm::new_model(&toy.features, &options, Seed::new(1)).unwrap();
    let source = PairSource::new(&toy.world, toy.features.vocabulary(), None);
    let mut stream = Seed::new(2).stream("grad");
    let batch: Vec<_> = (0..8).map(|_| source.draw(&mut stream)).collect();
    assert_all_grads(&plm::sft_loss(&model, &batch).unwrap(), model.parameters());

    let captioned = toy.captioned();
    let denoiser = denoiser();
    let batch = captioned.draw(8, &mut stream).unwrap();
    let loss =
        denoising_loss(&denoiser, &toy.schedule, Prediction::Epsilon, &batch, &mut stream).unwrap();
    assert_all_grads(&loss, denoiser.parameters());

    let options = ScorerOptions { width: 16, blocks: 1, heads: 2, embedding: 8 };
    let scorer = Scorer::new(&options, SIZE, WIDTH, Seed::new(2)).unwrap();
    let all: Vec<_> = (0..8).map(|at| (at, Style::Colour)).collect();
    let names: Vec<&str> = toy.world.objects.iter().map(|o| o.name.as_str()).collect();
    let texts = toy.features.batch(&names).unwrap().mean().unwrap();
    let positives = Tensor::eye(8, candle_core::DType::F32, &Device::Cpu).unwrap();
    let images = scorer.embed_images(&toy.images.batch(&all).unwrap()).unwrap();
    let loss = scorer.loss(&images, &scorer.embed_texts(&texts).unwrap(), &positives).unwrap();
    assert_all_grads(&loss, scorer.parameters());

    // adapters as they are after a step: B is not zero any more
    let mut tuned = denoiser.clone();
    let adapters = tuned.attach_lora(2, true, Seed::new(6)).unwrap();
    let tensors: BTreeMap<String, Tensor> = adapters
        .iter()
        .map(|(name, var)| {
            let mut stream = Seed::new(7).stream(name);
            (name.to_owned(), stream.normal_tensor(var.shape().clone(), 0.2).unwrap())
        })
        .collect();
    adapters.load(&tensors).unwrap();
    let asked = toy.asked();
    let stage = Stage { clip: 1.0, quality: 1.0, steps: 1 };
    let options = ReflOptions {
        inference_steps: 4,
        first_step: 2,
        backprop_steps: 2,
        lambda: 1.0,
        anchor: 1.0,
        ..ReflOptions::default()
    };
    let loss = refl_loss(&tuned, &toy.rewards(), &captioned, &asked, &options, &stage, &mut stream)
        .unwrap();
    assert_all_grads(&loss, &adapters);
}

#[test]
fn a_constant_reward_leaves_the_pretraining_loss() {
    let toy = Toy::new();
    let captioned = toy.captioned();
    let denoiser = denoiser();
    let asked = toy.asked();
    let options = ReflOptions { inference_steps: 4, first_step: 2, ..ReflOptions::default() };
    let nothing = Stage { clip: 0.0, quality: 0.0, steps: 1 };
    let mut stream = Seed::new(9).stream("refl");
    let loss =
        refl_loss(&denoiser, &toy.rewards(), &captioned, &asked, &options, &nothing, &mut stream)
            .unwrap();
    let mut stream = Seed::new(9).stream("refl");
    stream.below(2);
    stream.normal_tensor((2, TOKENS, COMPONENTS), 1.0).unwrap();
    let batch = captioned.draw(2, &mut stream).unwrap();
    let alone = denoising_loss(&denoiser, &toy.schedule, Prediction::Velocity, &batch, &mut stream)
        .unwrap();
    assert_eq!(scalar(&loss), scalar(&alone));
    // a reward above the target closes the ReLU
    let high = Tensor::new(&[2.5f32, 3.0], &Device::Cpu).unwrap();
    assert_eq!(scalar(&reward_loss(&high, 0.1, 2.0).unwrap()), 0.0);
    assert!(combine(&[]).unwrap().is_none());
}

#[test]
fn the_anchor_is_the_distance_to_the_untuned_answer() {
    let toy = Toy::new();
    let captioned = toy.captioned();
    let (asked, stage) = (toy.asked(), Stage::default());
    let loss = |model: &Denoiser, anchor: f64| {
        let options =
            ReflOptions { inference_steps: 4, first_step: 2, anchor, ..ReflOptions::default() };
        let mut stream = Seed::new(9).stream("refl");
        refl_loss(model, &toy.rewards(), &captioned, &asked, &options, &stage, &mut stream).unwrap()
    };
    let same = denoiser();
    assert_eq!(scalar(&loss(&same, 0.0)), scalar(&loss(&same, 5.0)));
    let codes = Seed::new(8).stream("codes").normal_tensor((8, TOKENS, COMPONENTS), 1.0).unwrap();
    let other = Denoiser::new(&small_denoiser(), &codes, WIDTH, Seed::new(5)).unwrap();
    let [none, one, two] = [0.0, 1.0, 2.0].map(|anchor| scalar(&loss(&other, anchor)));
    assert!(
        one > none + 1e-4 && (two - none - 2.0 * (one - none)).abs() < 1e-4,
        "{none} {one} {two}"
    );
}

#[test]
fn the_reward_gradient_equals_finite_differences() {
    let toy = Toy::new();
    let denoiser = denoiser();
    let asked = toy.asked();
    let stage = Stage { clip: 1.0, quality: 0.5, steps: 1 };
    let start = start_noise(&[1, 2], TOKENS, COMPONENTS).unwrap();
    let rewards = toy.rewards();
    // through both steps of two
    let loss = || {
        let clean =
            rewards.predict(&denoiser, &asked.told, start.clone(), 2, [1, 2]).unwrap().clean;
        let reward = rewards.reward(&clean, &asked, Relevance::Both, &stage).unwrap().unwrap();
        reward.sum_all().unwrap()
    };
    let store = loss().backward().unwrap();
    let mut stream = Seed::new(11).stream("weights");
    let names: Vec<_> = denoiser.parameters().iter().collect();
    let mut checked = 0;
    while checked < 5 {
        let (name, var) = names[stream.below(names.len())];
        let gradient = values(store.get(var).unwrap());
        let at = stream.below(gradient.len());
        if gradient[at].abs() < 2e-3 {
            continue;
        }
        let before = values(var.as_tensor());
        let moved = |by: f32| {
            let mut after = before.clone();
            after[at] += by;
            var.set(&Tensor::from_vec(after, var.shape(), &Device::Cpu).unwrap()).unwrap();
            let value = f64::from(scalar(&loss()));
            var.set(&Tensor::from_vec(before.clone(), var.shape(), &Device::Cpu).unwrap()).unwrap();
            value
        };
        let step = 5e-3f32;
        let slope = (moved(step) - moved(-step)) / f64::from(2.0 * step);
        let found = f64::from(gradient[at]);
        assert!((slope - found).abs() < 0.03 * found.abs() + 5e-4, "{name}[{at}]: {found} {slope}");
        checked += 1;
    }
}

#[test]
fn an_interrupted_training_ends_with_the_same_bytes() {
    let toy = Toy::new();
    let captioned = toy.captioned();
    let pace = Pace { steps: 110, batch: 4, ..Pace::default() };
    let run = |work: &std::path::Path, stop: Option<u64>| -> Result<Vec<f32>> {
        let denoiser = denoiser();
        let loss = |step: u64, slice: usize| {
            if Some(step) == stop {
                return Err(Error::Temporary("stopped".into()));
            }
            let mut stream = Seed::new(3).stream(&format!("{step}/{slice}"));
            let batch = captioned.draw(2, &mut stream)?;
            denoising_loss(&denoiser, &toy.schedule, Prediction::Velocity, &batch, &mut stream)
        };
        train("toy", denoiser.parameters(), &pace, Some(0.9), work, Ok, loss)?;
        Ok(denoiser.parameters().iter().flat_map(|(_, var)| values(var.as_tensor())).collect())
    };
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = run(whole.path(), None).unwrap();
    assert!(run(parts.path(), Some(77)).is_err());
    assert_eq!(run(parts.path(), None).unwrap(), expected);
}

#[test]
fn a_picture_does_not_depend_on_its_batch() {
    let toy = Toy::new();
    let denoiser = denoiser();
    let options = SampleOptions { steps: 5, guidance: 2.0 };
    let draw = |seeds: &[u64]| {
        let text = toy.features.batch(&vec!["thing a, in colour"; seeds.len()]).unwrap();
        let empty = toy.features.empty(seeds.len()).unwrap();
        let start = start_noise(seeds, TOKENS, COMPONENTS).unwrap();
        sample(&denoiser, &toy.schedule, Prediction::Velocity, &text, &empty, &start, &options)
            .unwrap()
    };
    let many: Vec<u64> = (0..20).collect();
    let all = draw(&many);
    assert_eq!(all.dims(), [20, TOKENS, COMPONENTS]);
    for seed in [0, 7, 19] {
        let one = draw(&[seed]);
        assert_close(&values(&one), &values(&all.get(seed as usize).unwrap()), 1e-4, 0.0);
    }
}

#[test]
fn the_language_model_learns_its_pairs() {
    let toy = Toy::new();
    let options = small_plm();
    let model = plm::new_model(&toy.features, &options, Seed::new(1)).unwrap();
    let work = tempfile::tempdir().unwrap();
    let frozen_before = token(&model, &toy.features, "peace");
    let history =
        plm::fit(&model, &toy.world, &toy.features, &options, false, Seed::new(1), work.path())
            .unwrap();
    let (first, last) = (history.losses[0], *history.losses.last().unwrap());
    assert!(last < 0.6 * first, "{first} {last}");
    assert_eq!(frozen_before, token(&model, &toy.features, "peace"));
    let search = poac::config::SearchConfig::default();
    let rewriter = Rewriter::new(&model, &toy.features, &toy.world, &search);
    for (word, group) in [("peace", 0..4usize), ("war", 4..8)] {
        let found = rewriter.concept(word, Style::Grey, 2).unwrap();
        assert_eq!(found.len(), 2);
        let right = found[0].objects.iter().filter(|at| group.contains(at)).count();
        assert!(right >= 2, "{word}: {:?}", found[0]);
        assert!(found[0].prompt.ends_with(", in grey") && found[0].score >= found[1].score);
    }
    let probabilities = rewriter.object_log_probs("war").unwrap();
    assert!((probabilities.iter().map(|p| p.exp()).sum::<f64>() - 1.0).abs() < 1e-5);
    // no abstract word: unchanged
    let gate = poac::data::Gate::default();
    let same = rewriter.prompt_candidates("a red <b>car</b>", &gate, Style::Colour, 1).unwrap();
    assert!(same.candidates.is_empty() && same.original == "a red <b>car</b>");
}

fn token(model: &Lm, features: &Features, word: &str) -> Vec<f32> {
    let table = &model.parameters().tensors()["transformer.wte.weight"];
    values(&table.get(features.vocabulary().id(word).unwrap() as usize).unwrap())
}
