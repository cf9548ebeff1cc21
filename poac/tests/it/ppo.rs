//! PPO on the language model: advantages by hand, learning, resuming.

use common::lm::Lm;
use common::rng::{Seed, Stream};
use common::testing::assert_close;
use common::{Error, Result};
use poac::data::pairs::{OBJECTS, prompt_ids};
use poac::train::plm::{self, PlmOptions};
use poac::train::ppo::{Choices, PpoOptions, advantages, fit};

use crate::toy::{self, WIDTH, values};

#[test]
fn advantages_follow_their_definition() {
    let (gains, returns) = advantages(&[0.0, 0.1, 1.0], &[0.5, 0.4, 0.2], 1.0, 0.5);
    // δ = -0.1, -0.1, 0.8
    assert_close(&gains, &[-0.1 + 0.5 * (-0.1 + 0.5 * 0.8), -0.1 + 0.5 * 0.8, 0.8], 1e-12, 0.0);
    assert_close(&returns, &[gains[0] + 0.5, gains[1] + 0.4, 1.0], 1e-12, 0.0);
    let (plain, _) = advantages(&[0.0, 0.0, 1.0], &[0.0; 3], 0.9, 1.0);
    assert_close(&plain, &[0.81, 0.9, 1.0], 1e-12, 0.0);
}

/// Tunes the toy world's model towards `wanted` objects; an error at batch `stop`.
fn tune(wanted: &[usize], stop: Option<usize>, work: &std::path::Path) -> Result<(Lm, Vec<f64>)> {
    let world = toy::world();
    let features = toy::features(&world);
    let vocabulary = features.vocabulary();
    let small = PlmOptions { width: WIDTH, layers: 1, heads: 2, ..PlmOptions::default() };
    let model = plm::new_model(&features, &small, Seed::new(1))?;
    let choices = Choices {
        names: world.objects.iter().map(|o| vocabulary.id(&o.name).unwrap()).collect(),
        comma: vocabulary.id(",").unwrap(),
        rows: vocabulary.first_word(),
    };
    let options = PpoOptions { steps: 40, batch: 16, lr: 1e-2, kl: 0.01, ..PpoOptions::default() };
    let draw = |stream: &mut Stream| {
        let word = ["peace", "war"][stream.below(2)];
        (prompt_ids(vocabulary, &format!("a picture of {word}, in colour")), ())
    };
    let batches = std::cell::Cell::new(0);
    let reward = |asked: &[()], chosen: &[[usize; OBJECTS]], _: &mut Stream| {
        batches.set(batches.get() + 1);
        if Some(batches.get()) == stop {
            return Err(Error::Temporary("stopped".into()));
        }
        assert_eq!(asked.len(), chosen.len());
        let right = |objects: &[usize; OBJECTS]| {
            assert!(
                objects[0] != objects[1] && objects[1] != objects[2] && objects[0] != objects[2]
            );
            objects.iter().filter(|at| wanted.contains(at)).count() as f64
        };
        Ok(chosen.iter().map(right).collect())
    };
    let history = fit(&model, &choices, &options, draw, reward, Seed::new(2), work)?;
    Ok((model, history.losses))
}

#[test]
fn the_reward_rises_whatever_is_rewarded() {
    for wanted in [[0, 1, 2, 3], [1, 3, 5, 7]] {
        let work = tempfile::tempdir().unwrap();
        let (_, rewards) = tune(&wanted, None, work.path()).unwrap();
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&rewards[..5]), mean(&rewards[35..]));
        assert!(last > first + 0.8, "{wanted:?}: {first} {last}");
    }
}

#[test]
fn a_stopped_run_ends_with_the_same_bytes() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (expected, rewards) = tune(&[0, 1, 2, 3], None, whole.path()).unwrap();
    assert!(tune(&[0, 1, 2, 3], Some(27), parts.path()).is_err());
    let (found, again) = tune(&[0, 1, 2, 3], None, parts.path()).unwrap();
    assert_eq!(rewards, again);
    for ((name, a), (_, b)) in expected.parameters().iter().zip(found.parameters().iter()) {
        assert_eq!(values(a.as_tensor()), values(b.as_tensor()), "{name}");
    }
}
