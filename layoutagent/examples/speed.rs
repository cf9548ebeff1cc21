//! Speed of the learned solver and of its training: a server for `common::testing::bench_protocol`,
//! to be timed side by side with `benches/peers/ccsp_torch.py`.
//!
//! ```sh
//! cargo run --release -p layoutagent --example speed -- --worlds worlds.json   # writes the problems
//! cargo run --release -p layoutagent --example speed -- --threads 2            # serves
//! ```
//!
//! | case | what is timed |
//! |---|---|
//! | `train` | forward, backward, clipping and Adam on 64 graphs of 2 to 4 objects |
//! | `sample:N` | ULA, 10 layouts for each of 8 problems of N objects (T = 200, K = 3) |
//! | `reverse:N` | plain reverse diffusion, likewise |
//! | `analytic:N`, `construct:N` | the solvers without networks, likewise |

use candle_core::{Device, Tensor};
use clap::Parser;
use common::nn::{Builder, Parameters};
use common::optim::{AdamW, AdamWOptions, Workers};
use common::rng::Seed;
use common::testing::bench_protocol::{Case, Timings, serve};
use common::{Error, Result, files};
use layoutagent::data::worlds::{World, worlds};
use layoutagent::layout::Problem;
use layoutagent::model::denoiser::{Batch, Denoiser, GraphRows, network_edges, node_geometry};
use layoutagent::model::sampler::{Inner, SampleConfig, Sampler};
use layoutagent::solve::{SolveConfig, Solver, solve};
use layoutagent::train::loss;
use serde_json::{Map, Value, json};

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Write the problems for the peer and end
    #[arg(long)]
    worlds: Option<std::path::PathBuf>,
}

const WIDTH: usize = 64;
const STEPS: usize = 200;
const PROBLEMS: usize = 8;
const LAYOUTS: usize = 10;

fn problems(objects: usize) -> Vec<World> {
    worlds(objects, PROBLEMS, &mut Seed::new(0).stream(&format!("speed/{objects}")))
}

fn training_worlds() -> Vec<World> {
    let mut stream = Seed::new(0).stream("speed/train");
    (0..64).flat_map(|index| worlds(2 + index % 3, 1, &mut stream)).collect()
}

/// Nodes' geometry and clean poses (the frame first) and edges.
fn graph(world: &World) -> (Vec<f32>, Vec<f32>, Vec<(usize, u32, u32)>) {
    let frame = world.problem.frame;
    let poses = world.solution.iter().flat_map(|&c| frame.to_pose(c)).map(|v| v as f32);
    let poses = [0.0, 0.0].into_iter().chain(poses).collect();
    (node_geometry(&world.problem), poses, network_edges(&world.problem))
}

struct Train {
    slices: Vec<(Batch, Tensor, Tensor)>,
    model: Denoiser,
    parameters: Parameters,
    optimiser: AdamW,
    workers: Workers,
}

impl Train {
    fn new(threads: usize) -> Result<Self> {
        let mut builder = Builder::seeded(Seed::new(0));
        let model = Denoiser::new(&mut builder, WIDTH)?;
        let parameters = builder.finish();
        let graphs: Vec<_> = training_worlds().iter().map(graph).collect();
        let mut stream = Seed::new(0).stream("speed/noise");
        let slices = graphs.chunks(graphs.len() / 2).enumerate().map(|(slice, graphs)| {
            let masked: Vec<Vec<bool>> = graphs
                .iter()
                .map(|(geometry, ..)| (0..geometry.len() / 2).map(|node| node == 0).collect())
                .collect();
            let rows: Vec<GraphRows<'_>> = graphs
                .iter()
                .zip(&masked)
                .map(|((geometry, _, edges), masked)| GraphRows { geometry, masked, edges })
                .collect();
            let times = (0..graphs.len()).map(|at| ((slice * 32 + at) * 3) as u32).collect();
            let batch = Batch::new(&rows, times)?;
            let pose: Vec<f32> = graphs.iter().flat_map(|g| g.1.clone()).collect();
            let shape = (pose.len() / 2, 2);
            let noise = stream.normal_tensor(shape, 1.0)?;
            Ok((batch, Tensor::from_vec(pose, shape, &Device::Cpu)?, noise))
        });
        let slices = slices.collect::<Result<_>>()?;
        let options = AdamWOptions { weight_decay: 0.0, ..AdamWOptions::default() };
        let optimiser = AdamW::new(&parameters, options);
        let workers = Workers::new(threads.min(2))?;
        Ok(Self { slices, model, parameters, optimiser, workers })
    }
}

impl Case for Train {
    fn run(&mut self) -> Result<()> {
        let (_, mut gradients) = self.workers.gradients(&self.parameters, 2, |slice| {
            let (batch, pose, noise) = &self.slices[slice];
            Ok((loss(&self.model, batch, pose, noise)? * 0.5)?)
        })?;
        gradients.clip_global_norm(1.0)?;
        self.optimiser.step(&gradients, 1e-3)
    }
}

struct Solve {
    worlds: Vec<World>,
    config: SolveConfig,
    sampler: Sampler,
    workers: Workers,
}

impl Case for Solve {
    fn run(&mut self) -> Result<()> {
        let problems: Vec<(&Problem, u64)> =
            self.worlds.iter().map(|world| &world.problem).zip(0..).collect();
        solve(&problems, &self.config, Some(&self.sampler), Seed::new(0), &self.workers)?;
        Ok(())
    }

    fn fields(&self, timings: &Timings) -> Map<String, Value> {
        let layouts = (PROBLEMS * LAYOUTS) as f64 / timings.wall_median_ms * 1e3;
        Map::from_iter([("layouts_per_second".to_owned(), json!(layouts))])
    }
}

fn case(name: &str, threads: usize) -> Result<Box<dyn Case>> {
    if name == "train" {
        return Ok(Box::new(Train::new(threads)?));
    }
    let unknown = || Error::usage(format!("no case {name}"));
    let (kind, objects) = name.split_once(':').ok_or_else(unknown)?;
    let (solver, inner) = match kind {
        "sample" => (Solver::Learned, Inner::Ula),
        "reverse" => (Solver::Learned, Inner::Reverse),
        "analytic" => (Solver::Analytic, Inner::Reverse),
        "construct" => (Solver::Construct, Inner::Reverse),
        _ => return Err(unknown()),
    };
    let mut builder = Builder::seeded(Seed::new(0)).frozen();
    Ok(Box::new(Solve {
        worlds: problems(objects.parse().map_err(|_| unknown())?),
        config: SolveConfig {
            solver,
            candidates: LAYOUTS,
            sample: SampleConfig { inner, ..SampleConfig::default() },
            ..SolveConfig::default()
        },
        sampler: Sampler::new(&Denoiser::new(&mut builder, WIDTH)?, STEPS)?,
        workers: Workers::new(threads)?,
    }))
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(path) = &arguments.worlds {
        let rows = |set: Vec<World>| -> Vec<Value> {
            let of = |world: &World| {
                let (geometry, pose, edges) = graph(world);
                json!({"geometry": geometry, "pose": pose, "edges": edges})
            };
            set.iter().map(of).collect()
        };
        let sets: Map<String, Value> =
            (2..=5).map(|n| (n.to_string(), json!(rows(problems(n))))).collect();
        let text = json!({"problems": sets, "training": rows(training_worlds())}).to_string();
        return files::atomic_write(path, text.as_bytes());
    }
    common::runtime::init(Some(arguments.threads));
    let answer = |name: &str| case(name, arguments.threads);
    serve(std::io::stdin().lock(), std::io::stdout().lock(), answer)
        .map_err(Error::io(std::path::Path::new("stdout")))
}
