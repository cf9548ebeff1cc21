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
use tmf::data::{Dataset, Item, Step};
use tmf::eval::{self, Query, Scorer};
use tmf::model::Tmf;
use tmf::pipeline::{self, Fitted, Prepared};
use tmf::prompt::Answer;
use tmf::train::{Curriculum, Level, Material, Sampler, StageOptions, used_at};

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
fn every_event_after_the_first_is_a_target_once_an_epoch() {
    let lengths = [3u32, 9, 1, 20];
    let mut next = 0;
    let sequences: Vec<Vec<Step>> = lengths
        .iter()
        .map(|&length| {
            next += length;
            (next - length..next).map(|item| Step { item, behaviour: item % 2 }).collect()
        })
        .collect();
    let data = Dataset {
        items: (0..next).map(|at| Item { id: at.to_string(), ..Item::default() }).collect(),
        users: lengths.iter().map(u32::to_string).collect(),
        behaviours: vec!["view".into(), "buy".into()],
        sequences: sequences.clone(),
        ..Dataset::default()
    };
    let mut config = Config::cpu();
    config.prompt.history = 4;
    let all: Vec<u32> = (0..next).collect();
    let prepared = Prepared::new(data, sequences, all, [None, None, None], &config).unwrap();
    let material = Material {
        prompter: &prepared.prompter,
        sequences: &prepared.train,
        pool: &prepared.pool,
        candidates: 2,
        modalities: &prepared.modalities,
        scope: config.fusion.cma,
    };
    let mut sampler = Sampler::new(&material, true).unwrap();
    let mut stream = Seed::new(1).stream("epochs");
    for _ in 0..3 {
        let mut targets = Vec::new();
        while targets.len() < 29 {
            let row = sampler.row(false, 0, &mut stream);
            assert!(row.events.len() <= 4);
            targets.extend(row.asked.iter().map(|ask| ask.1));
        }
        targets.sort_unstable();
        let first = [0, 3, 12, 13];
        let expected: Vec<u32> = (0..next).filter(|item| !first.contains(item)).collect();
        assert_eq!(targets, expected);
    }
}

/// With item tokens: six steps of warm-up, six of fusion under a linear curriculum.
fn with_tokens() -> Config {
    let mut config = config(6);
    config.lm.item_tokens = true;
    config.train.curriculum = Curriculum::Linear;
    config.train.warm_up = StageOptions { steps: 6, batch: 8, ..StageOptions::default() };
    config
}

#[test]
fn batches_of_tokens_leave_the_fusion_unchanged_and_threads_change_nothing() {
    let catalogue = generate(Signal::Image, TINY, Seed::new(1));
    let mut config = with_tokens();
    // a linear curriculum begins with tokens only
    config.train.fusion.steps = 1;
    let (_, one) = fitted(&catalogue, &config, 1);
    config.train.fusion.steps = 0;
    let (_, fresh) = fitted(&catalogue, &config, 1);
    let (before, after) = (values(&fresh.model), values(&one.model));
    assert_eq!(before.len(), after.len());
    for (name, values) in &before {
        let fusion = name.starts_with("added.") && !name.starts_with("added.items.");
        assert_eq!(values == &after[name], fusion, "{name}");
    }
    config.train.fusion.steps = 5;
    config.train.curriculum = Curriculum::ThreeStage;
    let (_, one) = fitted(&catalogue, &config, 1);
    let (_, two) = fitted(&catalogue, &config, 2);
    assert_eq!(values(&one.model), values(&two.model));
}

#[test]
fn thirty_two_sequences_are_learnt_by_heart() {
    let catalogue = generate(Signal::Image, TINY, Seed::new(2));
    let mut config = with_tokens();
    config.train.warm_up.steps = 150;
    config.train.fusion.steps = 300;
    let train = &mut config.train;
    (train.dropout, train.fusion_dropout, train.hidden_tokens) = (0.0, 0.0, 0.0);
    config.train.learn_history = false;
    let (prepared, fitted) = fitted(&catalogue, &config, 1);
    let modalities = prepared.switched(&config);
    let scorer = Scorer::new(&fitted.model, &prepared.prompter, &modalities);
    let asked: Vec<Query> = catalogue
        .data
        .sequences
        .iter()
        .enumerate()
        .map(|(user, sequence)| {
            let (answer, history) = sequence.split_last().unwrap();
            let seen = |item: &u32| history.iter().any(|step| step.item == *item);
            let items: Vec<u32> = catalogue.warm.iter().copied().filter(|i| !seen(i)).collect();
            let positive = items.iter().position(|&item| item == answer.item);
            Query { user, history: history.to_vec(), items, positive }
        })
        .collect();
    // among all items, not a list of twenty
    let scores = eval::score(&scorer, &asked, false, false, &Workers::new(2).unwrap()).unwrap();
    let hits = eval::hits(&eval::ranks(&asked, &scores), 1);
    let missed: Vec<_> = asked.iter().zip(&hits).filter(|(_, hit)| **hit < 1.0).collect();
    assert_eq!(hits.iter().sum::<f64>(), 32.0, "{:?}: {missed:?}", fitted.fusion.last());
}

#[test]
fn a_signal_in_the_pictures_is_learnt_and_lost_without_them() {
    let sizes = Sizes { warm: 200, cold: 160, users: 600, tests: 120 };
    let catalogue = generate(Signal::Image, sizes, Seed::new(1));
    let mut config = config(480);
    config.bench.synthetic_batch = 32;
    let config = sized(&config);
    let (prepared, fitted) = fitted(&catalogue, &config, 2);
    let asked = queries(&catalogue);
    let modalities = prepared.switched(&config);
    let hits = |used| {
        let scorer = Scorer::new(&fitted.model, &prepared.prompter, &modalities).with(used);
        let scores = eval::score(&scorer, &asked, false, false, &Workers::new(2).unwrap()).unwrap();
        let hits = eval::hits(&eval::ranks(&asked, &scores), 1);
        hits.iter().sum::<f64>() / hits.len() as f64
    };
    let (full, without) = (hits([true; 3]), hits([false, true, true]));
    assert!(full > 0.7 && without < 0.3, "{full} with pictures, {without} without");
}

#[test]
fn an_item_without_anything_can_be_scored() {
    let catalogue = generate(Signal::Image, TINY, Seed::new(1));
    let config = with_tokens();
    let (prepared, fitted) = fitted(&catalogue, &config, 1);
    let mut modalities = prepared.switched(&config);
    // the last item, which training does not know, loses its picture, its text and its edges
    let last = catalogue.data.items.len() - 1;
    for modality in modalities.iter_mut().flatten() {
        modality.present[last] = false;
    }
    let scorer = Scorer::new(&fitted.model, &prepared.prompter, &modalities);
    let history = [Step { item: last as u32, behaviour: 0 }, Step { item: 0, behaviour: 1 }];
    let rows = scorer.item_log_probs(&[&history, &[]], &Workers::new(1).unwrap()).unwrap();
    assert!(rows.iter().flatten().all(|p| p.is_finite() && *p < 0.0));
    let total: f64 = rows[0].iter().map(|&p| f64::from(p).exp()).sum();
    assert!((total - 1.0).abs() < 1e-4, "{total}");
}

#[test]
fn a_shared_prefix_gives_the_likelihoods_of_whole_prompts() {
    let catalogue = generate(Signal::Text, TINY, Seed::new(1));
    let mut config = config(8);
    (config.prompt.answer, config.prompt.titles) = (Answer::Title, true);
    let (prepared, fitted) = fitted(&catalogue, &config, 1);
    let modalities = prepared.switched(&config);
    for used in [[true; 3], [false; 3], [true, false, true]] {
        let scorer = Scorer::new(&fitted.model, &prepared.prompter, &modalities).with(used);
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
