//! Benchmark server: a small Stable Diffusion U-Net in training and in sampling, to be timed beside
//! `benches/peers/diffusers_bench.py`. The protocol is `common::testing::bench_protocol`'s.
//!
//! Cases: `train` (one AdamW step on 8 latents of 16 × 16) and `sample` (10 DDIM steps of 8 latents).

use candle_core::Tensor;
use clap::Parser;
use common::diffusion::{Sampler, SamplerKind, SchedulerConfig, Unet, UnetConfig};
use common::nn::Builder;
use common::optim::{AdamW, AdamWOptions, Workers};
use common::rng::Seed;
use common::testing::bench_protocol::{Case, serve};
use common::{Error, Result, ops};

const BATCH: usize = 8;
const SLICES: usize = 2;

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

/// Channels (64, 128), one residual block a level, attention on the finer one and in the middle.
fn config() -> UnetConfig {
    UnetConfig {
        block_out_channels: vec![64, 128],
        layers_per_block: 1,
        cross_attention_dim: 64,
        attention_head_dim: 4.into(),
        norm_num_groups: 16,
        down_block_types: vec!["CrossAttnDownBlock2D".into(), "DownBlock2D".into()],
        up_block_types: vec!["UpBlock2D".into(), "CrossAttnUpBlock2D".into()],
        ..UnetConfig::default()
    }
}

struct Work<F>(F);

impl<F: FnMut() -> Result<()>> Case for Work<F> {
    fn run(&mut self) -> Result<()> {
        (self.0)()
    }
}

fn build(name: &str, threads: usize) -> Result<Box<dyn Case>> {
    let normal = |name: &str, shape: &[usize]| Seed::new(0).stream(name).normal_tensor(shape, 1.0);
    let z = normal("z", &[BATCH, 4, 16, 16])?;
    let text = normal("text", &[BATCH, 16, 64])?;
    match name {
        "train" => {
            let unet = Unet::new(&config(), Seed::new(1))?;
            let noise = normal("noise", &[BATCH, 4, 16, 16])?;
            let times: Vec<f64> = (0..BATCH).map(|at| 100.0 * at as f64).collect();
            let mut optimiser = AdamW::new(unet.parameters(), AdamWOptions::default());
            let workers = Workers::new(threads)?;
            Ok(Box::new(Work(move || {
                let rows = BATCH / SLICES;
                let part = |x: &Tensor, slice: usize| x.narrow(0, slice * rows, rows)?.contiguous();
                let loss = |slice: usize| {
                    let times = &times[slice * rows..][..rows];
                    let answer =
                        unet.forward(&part(&z, slice)?, times, &part(&text, slice)?, None)?;
                    let error = ops::mean_squared_error(&answer, &part(&noise, slice)?)?;
                    Ok((error / SLICES as f64)?)
                };
                let (_, gradients) = workers.gradients(unet.parameters(), SLICES, loss)?;
                optimiser.step(&gradients, 1e-4)
            })))
        }
        "sample" => {
            let unet = Unet::build(&config(), Builder::seeded(Seed::new(1)).frozen())?;
            Ok(Box::new(Work(move || {
                let mut sampler = Sampler::new(SamplerKind::Ddim, &SchedulerConfig::default(), 10)?;
                let mut x = z.clone();
                for (step, time) in sampler.times().to_vec().into_iter().enumerate() {
                    let answer = unet.forward(&x, &[time; BATCH], &text, None)?;
                    x = sampler.step(step, &answer, &x, None)?;
                }
                Ok(())
            })))
        }
        other => Err(Error::usage(format!("no case {other}; train or sample"))),
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    common::runtime::init(Some(arguments.threads));
    let answer = |name: &str| build(name, arguments.threads);
    serve(std::io::stdin().lock(), std::io::stdout().lock(), answer)?;
    Ok(())
}
