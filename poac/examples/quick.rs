//! Steps of the method on hand-made numbers: noise, one denoising step, a reward and its loss.

#![allow(clippy::print_stdout)]

use common::diffusion::Beta;
use common::rng::Seed;
use poac::data::Gate;
use poac::model::reward::{Standard, reward_loss};
use poac::model::{Prediction, Schedule};

fn main() -> common::Result<()> {
    let gate = Gate::default();
    println!("abstract: {:?}", gate.abstract_words("an old man with wisdom and a dog"));
    let schedule = Schedule::new(Beta::SquaredCosine, 1_000);
    let mut stream = Seed::new(1).stream("example");
    let clean = stream.normal_tensor((2, 16, 48), 1.0)?;
    let noise = stream.normal_tensor((2, 16, 48), 1.0)?;
    let noisy = schedule.add_noise(&clean, &noise, &[500, 500])?;
    let velocity = schedule.target(Prediction::Velocity, &clean, &noise, &[500, 500])?;
    let (back, _) = schedule.clean_and_noise(Prediction::Velocity, &noisy, &velocity, 500)?;
    let error = (back - clean)?.abs()?.max_all()?.to_scalar::<f32>()?;
    println!("a perfect prediction gives the picture back within {error:.1e}");
    let cosine = common::rng::Seed::new(2).stream("cosine").uniform_tensor(4, 0.0, 1.0)?;
    let reward = Standard { mean: 0.5, sd: 0.2 }.apply(&cosine)?;
    println!("reward loss {:.4}", reward_loss(&reward, 0.1, 2.0)?.to_scalar::<f32>()?);
    Ok(())
}
