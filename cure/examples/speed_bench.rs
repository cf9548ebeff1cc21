//! Speed of EAP-IG and of training at the bench's sizes: a server for
//! `common::testing::bench_protocol`. `benches/peers/torch_speed.py` is the same in PyTorch.
//!
//! ```sh
//! cargo run --release -p cure --example speed_bench -- --threads 2
//! ```
//!
//! | case | what is timed |
//! |---|---|
//! | `eap_ig` | EAP-IG with 5 steps: 64 pairs of 22 tokens, all edges of rec-tiny |
//! | `eap` | EAP on the same |
//! | `train` | 4 training steps: 64 windows of 82 tokens, 41 answers each, cross-entropy over the vocabulary |

use std::io::{stdin, stdout};

use clap::Parser;
use common::lm::{Lm, LmConfig};
use common::optim::Workers;
use common::rng::Seed;
use common::testing::bench_protocol::{Case, Timings, serve};
use common::{Error, Result};
use cure::config::FitConfig;
use cure::model::attribution::attribute;
use cure::model::{Network, Pairs};
use cure::prompt::{Answer, Prompt};
use serde_json::{Map, Value, json};

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

const VOCABULARY: usize = 2629;
const STEPS: usize = 4;
const PAIRS: usize = 64;

fn ids(count: usize, tokens: usize, stream: &str) -> Vec<Vec<u32>> {
    let mut stream = Seed::new(2).stream(stream);
    let mut one = || (0..tokens).map(|_| stream.below(VOCABULARY) as u32).collect();
    (0..count).map(|_| one()).collect()
}

struct Attribution {
    lm: Lm,
    network: Network,
    pairs: Pairs,
    steps: Option<usize>,
    workers: Workers,
}

impl Case for Attribution {
    fn run(&mut self) -> Result<()> {
        attribute(&self.lm, &self.network, &self.pairs, self.steps, &self.workers).map(drop)
    }

    fn fields(&self, timings: &Timings) -> Map<String, Value> {
        let work = (self.network.edges.len() * self.pairs.len()) as f64;
        let rate = work / timings.wall_median_ms * 1e3;
        Map::from_iter([("edges_x_pairs_per_second".to_owned(), json!(rate))])
    }
}

struct Training {
    config: LmConfig,
    windows: Vec<Prompt>,
    options: FitConfig,
    workers: Workers,
}

impl Case for Training {
    fn run(&mut self) -> Result<()> {
        let (seed, workers) = (Seed::new(3), &self.workers);
        let lm = Lm::new(&self.config, seed)?;
        cure::train::fit(lm, &self.windows, &self.options, seed, workers, None).map(drop)
    }

    fn fields(&self, timings: &Timings) -> Map<String, Value> {
        let rate = STEPS as f64 / timings.wall_median_ms * 1e3;
        Map::from_iter([("steps_per_second".to_owned(), json!(rate))])
    }
}

fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    common::runtime::init(Some(arguments.threads));
    let config = LmConfig::gpt2(VOCABULARY, 64, 2, 4, 82);
    serve(stdin().lock(), stdout().lock(), |name| {
        let workers = Workers::new(arguments.threads)?;
        let config = config.clone();
        Ok(match name {
            "eap" | "eap_ig" => {
                let (clean, corrupt) = (ids(PAIRS, 22, "clean"), ids(PAIRS, 22, "corrupt"));
                Box::new(Attribution {
                    lm: Lm::new(&config, Seed::new(1))?,
                    network: Network::new(&config),
                    pairs: Pairs::new(clean, corrupt, vec![[3, 2]; PAIRS])?,
                    steps: (name == "eap_ig").then_some(5),
                    workers,
                }) as Box<dyn Case>
            }
            "train" => {
                let answer =
                    |at: usize| Answer { position: 2 * at + 1, liked: at.is_multiple_of(2) };
                let answers: Vec<Answer> = (0..41).map(answer).collect();
                let window = |ids: Vec<u32>| Prompt { ids, answers: answers.clone() };
                let options = FitConfig { epochs: 1, batch: 64, warm: 0.0, ..FitConfig::default() };
                let windows = ids(64 * STEPS, 82, "train").into_iter().map(window).collect();
                Box::new(Training { config, windows, options, workers })
            }
            _ => return Err(Error::usage(format!("unknown case {name}"))),
        })
    })
}
