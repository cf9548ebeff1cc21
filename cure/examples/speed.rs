//! Seconds of EAP-IG and of a training step at the bench's sizes, for a comparison with
//! `tests/golden/speed_torch.py`, which prints the same lines.

#![allow(clippy::print_stdout)]

use std::time::Instant;

use common::lm::{Lm, LmConfig};
use common::optim::Workers;
use common::rng::Seed;
use cure::config::FitConfig;
use cure::model::attribution::attribute;
use cure::model::{Network, Pairs};
use cure::prompt::{Answer, Prompt};

fn main() -> common::Result<()> {
    let threads: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    common::runtime::init(Some(threads));
    let config = LmConfig::gpt2(2365, 64, 2, 4, 44);
    let lm = Lm::new(&config, Seed::new(1))?;
    let (network, workers) = (Network::new(&config), Workers::new(threads)?);
    let mut stream = Seed::new(2).stream("prompts");
    let mut prompt = || (0..44).map(|_| stream.below(2365) as u32).collect::<Vec<u32>>();
    let (clean, corrupt) = (0..64).map(|_| (prompt(), prompt())).unzip();
    let pairs = Pairs::new(clean, corrupt, vec![[3, 2]; 64])?;
    let fastest = |run: &mut dyn FnMut() -> common::Result<()>| {
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let start = Instant::now();
            run()?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok::<_, common::Error>(best)
    };
    let seconds = fastest(&mut || attribute(&lm, &network, &pairs, Some(5), &workers).map(drop))?;
    let rate = (network.edges.len() * pairs.len()) as f64 / seconds;
    println!(
        "EAP-IG, 5 steps, {} edges, 64 pairs: {rate:.0} edges x pairs / s",
        network.edges.len()
    );
    let answers: Vec<Answer> =
        (0..11).map(|at| Answer { position: 4 * at + 3, liked: at % 2 == 0 }).collect();
    let windows: Vec<Prompt> =
        (0..640).map(|_| Prompt { ids: prompt(), answers: answers.clone() }).collect();
    let options = FitConfig { epochs: 1, ..FitConfig::default() };
    let seed = Seed::new(3);
    let seconds = fastest(&mut || {
        cure::train::fit(&config, &windows, &options, seed, &workers, None).map(drop)
    })?;
    println!("training, 64 windows of 44 tokens: {:.1} steps / s", 10.0 / seconds);
    Ok(())
}
