//! Speed of decoding and of training steps: a server for `common::testing::bench_protocol`, the
//! counterpart of `benches/peers/torch_crab.py`.
//!
//! ```sh
//! cargo run --release -p crab --example generator_bench -- 2   # threads
//! ```
//!
//! | case | what is timed |
//! |---|---|
//! | `decode:BEAMS` | 256 histories of 9 items over a catalogue of 3,686, beam search bound to the trie |
//! | `generator` | a training step of the default generator: 64 windows of 10 items, 4 levels, dropout 0.2 |
//! | `rqvae` | a training step of 384-256-128-32 and back, 3 × 64 codes, batch 1,024 |

use candle_core::Tensor;
use common::optim::{AdamW, AdamWOptions, Workers};
use common::rng::Seed;
use common::testing::bench_protocol::{Case, serve};
use common::{Error, Result};
use crab::decode::{DecodeOptions, decode};
use crab::model::generator::{Counted, Generator, GeneratorOptions};
use crab::sid::SidTable;
use crab::tokenizer::{RqVae, RqVaeOptions};

const ITEMS: u32 = 3686;

struct Work(Box<dyn FnMut() -> Result<()>>);

impl Case for Work {
    fn run(&mut self) -> Result<()> {
        (self.0)()
    }
}

/// 6, 4 and 4 bits of a hash, and a running number where they collide: about as crowded as the
/// semantic IDs of the Industrial catalogue.
fn table() -> Result<SidTable> {
    let row = |item: u32| {
        let hash = item.wrapping_mul(2_654_435_761);
        vec![hash >> 26, (hash >> 22) & 15, (hash >> 18) & 15]
    };
    Ok(SidTable::new(&(0..ITEMS).map(row).collect::<Vec<_>>())?.deduplicated(&[0; ITEMS as usize]))
}

fn item(row: u32, at: u32) -> u32 {
    (row * 9 + at) * 37 % ITEMS
}

fn build(name: &str, threads: usize) -> Result<Box<dyn Case>> {
    let workers = Workers::new(threads)?;
    let table = table()?;
    let (kind, number) = name.split_once(':').unwrap_or((name, ""));
    match kind {
        "decode" => {
            let beams = number.parse().map_err(|_| Error::usage("decode:BEAMS"))?;
            let model = Generator::new(table.sizes(), GeneratorOptions::default(), Seed::new(1))?;
            let histories: Vec<Vec<u32>> =
                (0..256).map(|row| (0..9).map(|at| item(row, at)).collect()).collect();
            let options = DecodeOptions { beams, renormalise: true };
            Ok(Box::new(Work(Box::new(move || {
                let histories: Vec<&[u32]> = histories.iter().map(Vec::as_slice).collect();
                let found = decode(&model, &table, &histories, options, &workers)?;
                match found.iter().all(|ranked| ranked.len() == beams) {
                    true => Ok(()),
                    false => Err(Error::Bug("a history with too few items".into())),
                }
            }))))
        }
        "generator" => {
            let model = Generator::new(table.sizes(), GeneratorOptions::default(), Seed::new(1))?;
            let window = |row| -> Vec<&[u32]> {
                (0..10).map(|at| table.row(item(row, at) as usize)).collect()
            };
            let parts = [0u32, 1].map(|half| {
                let rows: Vec<Vec<&[u32]>> = (half * 32..half * 32 + 32).map(window).collect();
                model.batch(&rows, Counted::default())
            });
            let parts = parts.into_iter().collect::<Result<Vec<_>>>()?;
            let mut optimiser = AdamW::new(model.parameters(), AdamWOptions::default());
            let mut step = 0;
            Ok(Box::new(Work(Box::new(move || {
                step += 1;
                let loss = |slice: usize| {
                    let stream = Seed::new(step).stream(&format!("dropout/{slice}"));
                    Ok((model.loss(&parts[slice], Some(stream))? * 0.5)?)
                };
                let (_, mut gradients) = workers.gradients(model.parameters(), 2, loss)?;
                gradients.clip_global_norm(1.0)?;
                optimiser.step(&gradients, 1e-3)
            }))))
        }
        "rqvae" => {
            let model = RqVae::new(384, &[64; 3], RqVaeOptions::default(), Seed::new(1))?;
            let items = Seed::new(2).stream("items").normal_tensor((1024, 384), 1.0)?;
            let parts: Vec<Tensor> =
                (0..2).map(|half| Ok(items.narrow(0, half * 512, 512)?)).collect::<Result<_>>()?;
            let mut optimiser = AdamW::new(model.parameters(), AdamWOptions::default());
            Ok(Box::new(Work(Box::new(move || {
                let loss = |slice: usize| Ok((model.loss(&parts[slice], None)? * 0.5)?);
                let (_, gradients) = workers.gradients(model.parameters(), 2, loss)?;
                optimiser.step(&gradients, 1e-3)
            }))))
        }
        _ => Err(Error::usage(format!("unknown case {name}"))),
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(1), |text| text.parse())?;
    common::runtime::init(Some(threads));
    serve(std::io::stdin().lock(), std::io::stdout().lock(), |name: &str| build(name, threads))?;
    Ok(())
}
