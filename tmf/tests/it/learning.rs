//! Training: levels, what each reaches, determinism, overfitting, and scoring with a shared prefix.

use std::collections::BTreeMap;

use candle_core::Tensor;
use common::checkpoint::Trained;
use common::optim::Workers;
use common::rng::Seed;
use common::testing::assert_close;
use tmf::bench::synthetic::{prepare, queries, sized};
use tmf::config::Config;
use tmf::data::synthetic::{Catalogue, Signal, Sizes, generate};
use tmf::eval::{self, Query, Scorer};
use tmf::model::Tmf;
use tmf::pipeline::{self, Fitted, Prepared};
use tmf::train::{Curriculum, Level, used_at};

const TINY: Sizes = Sizes { warm: 64, cold: 64, users: 32, tests: 8 };

fn config(steps: usize) -> Config {
    let mut config = Config::cpu();
    config.lm.hidden = 32;
    config.fusion.width = 16;
    config.bench.synthetic_steps = steps;
    config.bench.synthetic_batch = 16;
    sized(&config)
}

fn fitted(catalogue: &Catalogue, config: &Config, threads: usize) -> (Prepared, Fitted) {
    let prepared = prepare(catalogue, config, Seed::new(1)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let kept = Trained::new(folder.path());
    let workers = Workers::new(threads).unwrap();
    let (base, seed) = (Seed::new(1), Seed::new(2));
    let fitted = pipeline::fit(&prepared, config, base, seed, &kept, &workers).unwrap();
    // a second time it is taken from the folder, and is the same
    let again = pipeline::fit(&prepared, config, base, seed, &kept, &workers).unwrap();
    assert_eq!(values(&again.model), values(&fitted.model));
    (prepared, fitted)
}

fn values(model: &Tmf) -> BTreeMap<String, Vec<f32>> {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1().unwrap();
    model.tensors().unwrap().iter().map(|(name, t)| (name.clone(), flat(t))).collect()
}

#[test]
fn levels_follow_the_ramps() {
    let three = Curriculum::ThreeStage;
    assert_eq!(three.probabilities(0.0), [1.0, 0.0, 0.0]);
    assert_eq!(three.probabilities(0.7), [0.0, 0.0, 1.0]);
    assert_eq!(Curriculum::None.probabilities(0.1), [0.0, 0.0, 1.0]);
    assert_eq!(Curriculum::Linear.probabilities(0.25), [0.75, 0.0, 0.25]);
    let mut before = 0.0;
    for step in 0..=100 {
        let f = f64::from(step) / 100.0;
        let [text, one, all] = three.probabilities(f);
        assert!((text + one + all - 1.0).abs() < 1e-12 && all >= before);
        assert!(f > 0.3 || text >= 0.5, "mostly text below a third");
        before = all;
    }
    let none = [None, None, None];
    assert_eq!(used_at(Level::Text, &none), None);
    assert_eq!(used_at(Level::One, &none), None);
}

#[test]
fn text_only_batches_leave_the_fusion_unchanged_and_threads_change_nothing() {
    let catalogue = generate(Signal::Image, TINY, Seed::new(1));
    let mut config = config(6);
    // a linear curriculum whose first step is text only
    config.train.curriculum = Curriculum::Linear;
    config.train.fusion.steps = 1;
    let (_, one) = fitted(&catalogue, &config, 1);
    let lm = one.model.lm.parameters().len();
    let fresh = {
        let prepared = prepare(&catalogue, &config, Seed::new(1)).unwrap();
        let mut config = config.clone();
        config.train.fusion.steps = 0;
        let folder = tempfile::tempdir().unwrap();
        let kept = Trained::new(folder.path());
        let workers = Workers::new(1).unwrap();
        let (base, seed) = (Seed::new(1), Seed::new(2));
        pipeline::fit(&prepared, &config, base, seed, &kept, &workers).unwrap()
    };
    let (before, after) = (values(&fresh.model), values(&one.model));
    assert!(lm > 0 && before.len() == after.len());
    for (name, values) in &before {
        if name.starts_with("fusion.") {
            assert_eq!(values, &after[name], "{name} moved");
        }
    }
    assert_ne!(before["lm.model.embed_tokens.weight"], after["lm.model.embed_tokens.weight"]);
    config.train.fusion.steps = 5;
    config.train.curriculum = Curriculum::ThreeStage;
    let (_, one) = fitted(&catalogue, &config, 1);
    let (_, two) = fitted(&catalogue, &config, 2);
    assert_eq!(values(&one.model), values(&two.model));
}

/// The training users' own purchases as questions.
fn seen(catalogue: &Catalogue) -> Vec<Query> {
    let mut stream = Seed::new(9).stream("questions");
    let sequences = catalogue.data.sequences.iter().enumerate();
    sequences
        .map(|(user, sequence)| {
            let answer = sequence[sequence.len() - 1].item;
            let mut items = vec![answer];
            while items.len() < 8 {
                let item = stream.below(catalogue.warm.len()) as u32;
                // two candidates of one title would tie
                let title = |item: u32| &catalogue.data.items[item as usize].title;
                let fresh = items.iter().all(|&other| title(other) != title(item));
                if fresh && !sequence.iter().any(|step| step.item == item) {
                    items.push(item);
                }
            }
            items.swap(0, user % 8);
            let history = sequence[..sequence.len() - 1].to_vec();
            Query { user, history, items, positive: Some(user % 8) }
        })
        .collect()
}

#[test]
fn thirty_two_sequences_are_learnt_by_heart() {
    let catalogue = generate(Signal::Image, TINY, Seed::new(1));
    let config = config(320);
    let (prepared, fitted) = fitted(&catalogue, &config, 1);
    let modalities = prepared.switched(&config);
    let scorer = Scorer {
        model: &fitted.model,
        prompter: &prepared.prompter,
        modalities: &modalities,
        used: [true; 3],
    };
    let asked = seen(&catalogue);
    let scores = eval::score(&scorer, &asked, true, false, &Workers::new(2).unwrap()).unwrap();
    let hits = eval::hits(&eval::ranks(&asked, &scores), 1);
    let share = hits.iter().sum::<f64>() / hits.len() as f64;
    assert!(share > 0.95, "{share} of {}, losses {:?}", hits.len(), fitted.fusion.last());
}

#[test]
fn a_shared_prefix_gives_the_likelihoods_of_whole_prompts() {
    let catalogue = generate(Signal::Text, TINY, Seed::new(1));
    let config = config(8);
    let (prepared, fitted) = fitted(&catalogue, &config, 1);
    let modalities = prepared.switched(&config);
    for used in [[true; 3], [false; 3], [true, false, true]] {
        let (model, prompter) = (&fitted.model, &prepared.prompter);
        let scorer = Scorer { model, prompter, modalities: &modalities, used };
        for query in &queries(&catalogue)[..3] {
            for listed in [None, Some(&query.items[..])] {
                let shared = scorer.log_likelihoods(&query.history, listed, &query.items).unwrap();
                let apart =
                    scorer.log_likelihoods_apart(&query.history, listed, &query.items).unwrap();
                let sums = |all: &[(f64, usize)]| all.iter().map(|s| s.0).collect::<Vec<_>>();
                assert_close(&sums(&shared), &sums(&apart), 1e-3, 1e-4);
                assert!(shared.iter().zip(&apart).all(|(a, b)| a.1 == b.1 && a.0 < 0.0));
            }
        }
        let text = scorer.generate(&catalogue.tests[0].history, &[1, 2], 5).unwrap();
        assert!(!text.contains('\n'));
    }
}

#[test]
fn metrics_by_hand() {
    let ranks = [Some(1.0), Some(2.5), None, Some(6.0)];
    assert_eq!(eval::hits(&ranks, 3), [1.0, 1.0, 0.0, 0.0]);
    let gains = eval::ndcg(&ranks, 5);
    assert_close(&gains, &[1.0, 1.0 / 3.5f64.log2(), 0.0, 0.0], 1e-12, 0.0);
}
