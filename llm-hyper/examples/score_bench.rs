//! Speed of scoring: a server for `common::testing::bench_protocol`. Its peer is
//! `benches/peers/numpy_scores.py`, with the same cases.
//!
//! ```sh
//! cargo run --release -p llm-hyper --example score_bench
//! ```
//!
//! | case | what is timed |
//! |---|---|
//! | `gemm:USERS:ADS:FEATURES` | x · W + b of every user and ad into a buffer; the peer leaves b out |
//! | `probabilities:USERS:ADS:FEATURES` | sigmoid of it |
//! | `one:FEATURES` | 100,000 single scores, dot product and sigmoid; further fields `p50_ns`, `p99_ns` of one |

use std::time::Instant;

use common::rng::Seed;
use common::testing::bench_protocol::{Case, Timings, serve};
use common::{Error, Result};
use llm_hyper::model::logit::{Scorer, probability};
use serde_json::{Map, Value, json};

/// Eq. 1 as one matrix product.
struct Many {
    scorer: Scorer,
    users: Vec<f32>,
    out: Vec<f32>,
    sigmoid: bool,
}

impl Case for Many {
    fn run(&mut self) -> Result<()> {
        if self.sigmoid {
            self.scorer.probabilities_into(&self.users, &mut self.out)
        } else {
            self.scorer.logits_into(&self.users, &mut self.out)
        }
    }
}

/// Eq. 1 for one user and one ad at a time.
struct One {
    users: Vec<Vec<f64>>,
    weights: Vec<Vec<f64>>,
    nanoseconds: Vec<u128>,
}

impl Case for One {
    fn run(&mut self) -> Result<()> {
        self.nanoseconds.clear();
        for at in 0..100_000 {
            let user = std::hint::black_box(&self.users[at % self.users.len()]);
            let start = Instant::now();
            std::hint::black_box(probability(&self.weights[at % self.weights.len()], -1.0, user));
            self.nanoseconds.push(start.elapsed().as_nanos());
        }
        self.nanoseconds.sort_unstable();
        Ok(())
    }

    fn fields(&self, _: &Timings) -> Map<String, Value> {
        let at = |share: usize| json!(self.nanoseconds[self.nanoseconds.len() * share / 100]);
        Map::from_iter([("p50_ns".to_owned(), at(50)), ("p99_ns".to_owned(), at(99))])
    }
}

fn build(case: &str) -> Result<Box<dyn Case>> {
    let (name, sizes) = case.split_once(':').unwrap_or((case, ""));
    let sizes: Vec<usize> = sizes.split(':').filter_map(|size| size.parse().ok()).collect();
    let mut stream = Seed::new(1).stream(name);
    let mut vectors = |count: usize, width: usize| -> Vec<Vec<f64>> {
        (0..count).map(|_| (0..width).map(|_| stream.normal()).collect()).collect()
    };
    match (name, sizes.as_slice()) {
        ("gemm" | "probabilities", &[users, ads, features]) => Ok(Box::new(Many {
            scorer: Scorer::new(&vectors(ads, features), &vec![-1.0; ads])?,
            users: vectors(users, features).concat().into_iter().map(|x| x as f32).collect(),
            out: vec![0.0; users * ads],
            sigmoid: name == "probabilities",
        })),
        ("one", &[features]) => Ok(Box::new(One {
            users: vectors(1_000, features),
            weights: vectors(120, features),
            nanoseconds: Vec::new(),
        })),
        _ => Err(Error::usage(format!("unknown case {case}"))),
    }
}

fn main() -> std::io::Result<()> {
    common::runtime::init(None);
    serve(std::io::stdin().lock(), std::io::stdout().lock(), build)
}
