//! Diverse beam search against its definition without a cache.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use common::lm::{BeamOptions, Lm, LmConfig, Pass};
use common::rng::Seed;

const PROMPT: [u32; 3] = [5, 9, 2];

fn model(seed: u64) -> Lm {
    let config = LmConfig { initializer_range: 0.4, ..LmConfig::gpt2(24, 16, 2, 2, 32) };
    Lm::new(&config, Seed::new(seed)).unwrap()
}

/// Groups of one beam: each takes the best token after the penalties of this step's earlier groups.
fn greedy_groups(model: &Lm, groups: usize, penalty: f64, steps: usize) -> Vec<(Vec<u32>, f64)> {
    let mut all = vec![(Vec::new(), 0.0); groups];
    for _ in 0..steps {
        let mut taken: BTreeMap<u32, f64> = BTreeMap::new();
        for (tokens, sum) in &mut all {
            let ids = [&PROMPT[..], tokens].concat();
            let ids = Tensor::new(&ids[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let logits = model.last_logits(&ids, Pass::default()).unwrap().squeeze(0).unwrap();
            let logits = logits.to_vec1::<f32>().unwrap();
            let total = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
            let (mut best, mut value) = (0, f64::NEG_INFINITY);
            for (token, &logit) in logits.iter().enumerate() {
                let cost = penalty * taken.get(&(token as u32)).copied().unwrap_or(0.0);
                let score = f64::from(logit) - total - cost;
                if score > value {
                    (best, value) = (token as u32, score);
                }
            }
            tokens.push(best);
            *sum += value;
            *taken.entry(best).or_default() += 1.0;
        }
    }
    all
}

#[test]
fn groups_avoid_the_tokens_of_earlier_groups() {
    let model = model(7);
    for penalty in [0.0, 0.5, 50.0] {
        let options = BeamOptions {
            beams: 1,
            groups: 4,
            diversity_penalty: penalty,
            max_tokens: 5,
            ..BeamOptions::default()
        };
        let found = model.beam_search(&PROMPT, &options, None).unwrap();
        let mut expected = greedy_groups(&model, 4, penalty, 5);
        expected.sort_by(|a, b| b.1.total_cmp(&a.1));
        assert_eq!(found.len(), 4);
        for (found, (tokens, sum)) in found.iter().zip(&expected) {
            assert_eq!(&found.tokens, tokens, "penalty {penalty}");
            assert!((found.sum_log_prob - sum).abs() < 1e-3, "{} {sum}", found.sum_log_prob);
        }
        let first: std::collections::BTreeSet<u32> = found.iter().map(|h| h.tokens[0]).collect();
        assert!(match penalty {
            0.0 => first.len() == 1,
            50.0 => first.len() == 4,
            _ => true,
        });
    }
}

#[test]
fn only_allowed_tokens_come_and_wrong_sizes_are_refused() {
    let model = model(3);
    let options = BeamOptions {
        beams: 2,
        groups: 3,
        diversity_penalty: 1.0,
        max_tokens: 3,
        eos: Some(0),
        ..BeamOptions::default()
    };
    let allowed = |tokens: &[u32]| Some(if tokens.len() < 2 { vec![4, 6, 8] } else { vec![0] });
    let found = model.beam_search(&PROMPT, &options, Some(&allowed)).unwrap();
    assert!(found.len() >= 4, "{found:?}");
    for hypothesis in &found {
        assert_eq!(hypothesis.tokens.len(), 3);
        assert!(hypothesis.tokens[..2].iter().all(|token| [4, 6, 8].contains(token)));
    }
    for (groups, beams, prompt) in [(0, 1, &PROMPT[..]), (1, 0, &PROMPT), (1, 1, &[])] {
        let options = BeamOptions { beams, groups, ..options.clone() };
        assert!(model.beam_search(prompt, &options, None).is_err());
    }
}
