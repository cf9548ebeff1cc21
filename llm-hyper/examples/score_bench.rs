//! Throughput of matrix scoring and latency of a single score.
//!
//! `cargo run --release -p llm-hyper --example score_bench -- [USERS] [ADS] [FEATURES]`
//!
//! The peer is numpy on the same matrix, in the same session:
//! `python -c "import numpy as np, time; x=np.random.rand(1000000,64).astype('f'); w=np.random.rand(64,120).astype('f'); t=time.time(); x@w; print(time.time()-t)"`

#![allow(clippy::print_stdout)]

use std::time::Instant;

use common::rng::Seed;
use llm_hyper::model::logit::{Scorer, probability};

fn main() -> common::Result<()> {
    common::runtime::init(None);
    let mut sizes = std::env::args().skip(1).filter_map(|word| word.parse::<usize>().ok());
    let mut next = |default: usize| sizes.next().unwrap_or(default);
    let (users, ads, width) = (next(1_000_000), next(120), next(64));
    let mut stream = Seed::new(1).stream("score");
    let x: Vec<f32> = (0..users * width).map(|_| stream.uniform() as f32).collect();
    let weights: Vec<Vec<f64>> =
        (0..ads).map(|_| (0..width).map(|_| stream.normal()).collect()).collect();
    let biases = vec![-1.0; ads];
    let scorer = Scorer::new(&weights, &biases)?;
    for (name, probabilities) in [("logits", false), ("probabilities", true)] {
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let start = Instant::now();
            let scores =
                if probabilities { scorer.probabilities(&x)? } else { scorer.logits(&x)? };
            best = best.min(start.elapsed().as_secs_f64());
            assert_eq!(scores.len(), users * ads);
        }
        println!(
            "{name}: {users} x {ads} x {width} in {best:.3} s, {:.1} GFLOP/s",
            2e-9 * (users * ads * width) as f64 / best
        );
    }
    let row: Vec<f64> = x[..width].iter().map(|v| f64::from(*v)).collect();
    let mut nanoseconds: Vec<u128> = (0..100_000)
        .map(|at| {
            let start = Instant::now();
            std::hint::black_box(probability(&weights[at % ads], -1.0, std::hint::black_box(&row)));
            start.elapsed().as_nanos()
        })
        .collect();
    nanoseconds.sort_unstable();
    println!("one score: p50 {} ns, p99 {} ns", nanoseconds[50_000], nanoseconds[99_000]);
    Ok(())
}
