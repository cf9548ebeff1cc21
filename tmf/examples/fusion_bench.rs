//! Speed of training and of scoring candidates: a server for `common::testing::bench_protocol`.
//!
//! ```sh
//! cargo run --release -p tmf --example fusion_bench -- 2     # threads
//! ```
//!
//! | case | what is timed |
//! |---|---|
//! | `train` | 5 optimiser steps of the default model on catalogue and histories of ML-100k's size (random): sampling, forward, backward, AdamW; peer: `benches/peers/torch_tmf.py` |
//! | `titles_shared`, `titles_apart` | likelihood of 20 titles after one prompt that lists them: the prompt run once, or once a title |
//! | `items` | scores of all 1,682 items by item token for 32 users |

use common::checkpoint::Trained;
use common::optim::Workers;
use common::rng::Seed;
use common::testing::bench_protocol::{Case, serve};
use common::{Error, Result};
use ndarray::Array2;
use tmf::config::Config;
use tmf::data::{Dataset, Item, Step};
use tmf::eval::Scorer;
use tmf::model::{Modalities, Tmf};
use tmf::pipeline::{self, Prepared};
use tmf::prompt::Answer;
use tmf::train::{Curriculum, Material, stage};

const ITEMS: usize = 1682;
const STEPS: usize = 5;

struct Bench {
    case: String,
    config: Config,
    prepared: Prepared,
    modalities: Modalities,
    model: Tmf,
    workers: Workers,
}

impl Bench {
    fn new(case: &str, threads: usize) -> Result<Self> {
        let mut config = Config::cpu();
        config.train.warm_up.steps = 0;
        config.train.fusion.steps = 0;
        config.train.curriculum = Curriculum::None;
        if case.starts_with("titles") {
            (config.prompt.answer, config.prompt.titles) = (Answer::Title, true);
            config.prompt.history = 20;
        }
        let mut stream = Seed::new(1).stream("fusion_bench");
        let words: Vec<String> = (0..800).map(|at| format!("word{at}")).collect();
        let items = (0..ITEMS)
            .map(|at| {
                let title: Vec<&str> = (0..4).map(|_| &words[stream.below(800)][..]).collect();
                Item { id: at.to_string(), title: title.join(" "), ..Item::default() }
            })
            .collect();
        let sequences: Vec<Vec<Step>> = (0..943)
            .map(|_| {
                let ids = stream.sample(ITEMS, 106).into_iter();
                ids.map(|item| Step { item: item as u32, behaviour: item as u32 % 3 }).collect()
            })
            .collect();
        let data = Dataset {
            items,
            behaviours: ["dislike", "neutral", "like"].map(str::to_owned).to_vec(),
            users: (0..943).map(|at| at.to_string()).collect(),
            sequences: sequences.clone(),
            ..Dataset::default()
        };
        let mut vectors = |width: usize| {
            let values = Array2::from_shape_simple_fn((ITEMS, width), || stream.normal() as f32);
            Some((values, vec![true; ITEMS]))
        };
        let encoded = [None, vectors(384), vectors(64)];
        let pool = (0..ITEMS as u32).collect();
        let prepared = Prepared::new(data, sequences, pool, encoded, &config)?;
        let workers = Workers::new(threads)?;
        let folder = tempfile::tempdir().map_err(|error| Error::Bug(error.to_string()))?;
        let (kept, seed) = (Trained::new(folder.path()), Seed::new(1));
        let model = pipeline::fit(&prepared, &config, seed, seed, &kept, &workers)?.model;
        let modalities = prepared.switched(&config);
        config.train.fusion.steps = STEPS;
        Ok(Self { case: case.to_owned(), config, prepared, modalities, model, workers })
    }
}

impl Case for Bench {
    fn run(&mut self) -> Result<()> {
        let scorer = Scorer::new(&self.model, &self.prepared.prompter, &self.modalities);
        let history = &self.prepared.train[0][..50];
        let listed: Vec<u32> = (0..20).collect();
        match self.case.as_str() {
            "train" => {
                let material = Material {
                    prompter: &self.prepared.prompter,
                    sequences: &self.prepared.train,
                    pool: &self.prepared.pool,
                    candidates: 20,
                    modalities: &self.modalities,
                    scope: self.config.fusion.cma,
                };
                let (options, seed) = (&self.config.train, Seed::new(2));
                stage(&self.model, &material, options, true, seed, &self.workers)?;
            }
            "titles_shared" => {
                scorer.log_likelihoods(history, Some(&listed), &listed)?;
            }
            "titles_apart" => {
                scorer.log_likelihoods_apart(history, Some(&listed), &listed)?;
            }
            _ => {
                let histories: Vec<&[Step]> =
                    self.prepared.train[..32].iter().map(|steps| &steps[..50]).collect();
                scorer.item_log_probs(&histories, &self.workers)?;
            }
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    common::runtime::init(None);
    let threads = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(1);
    let build = |case: &str| match case {
        "train" | "titles_shared" | "titles_apart" | "items" => {
            Ok(Box::new(Bench::new(case, threads)?) as Box<dyn Case>)
        }
        other => Err(Error::usage(format!("no case {other}"))),
    };
    serve(std::io::stdin().lock(), std::io::stdout().lock(), build)
        .map_err(|error| Error::Bug(format!("stdin or stdout: {error}")))
}
