//! Joint training of the relation networks on whole graphs (specification §3.5, Eq. 4).

use candle_core::{Device, Tensor};
use common::Result;
use common::nn::{Builder, Parameters};
use common::ops;
use common::optim::{AdamW, AdamWOptions, Workers};
use common::rng::{Seed, Stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::worlds::{self, World};
use crate::model::denoiser::{Batch, Denoiser, GraphRows, POSE, network_edges, node_geometry};
use crate::model::learned_energy;
use crate::model::schedule::Schedule;
use crate::relations::Relation;

/// The relation networks and their training. Defaults are those of the bundled
/// weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Hidden width d; the reference's is 256.
    pub width: usize,
    /// Diffusion steps T; the reference's are 1,000.
    pub steps: usize,
    /// Generated training worlds, 2 to `objects` objects each; the reference's are 30,000.
    pub worlds: usize,
    /// Most objects of a training world; the reference's are 4.
    pub objects: usize,
    /// Graphs per update; the reference's are 128.
    pub batch: usize,
    /// Updates; the reference's are 300,000.
    pub updates: usize,
    /// Learning rate of Adam (5e-4 in the reference); decays to 2 % of it by a cosine (ours).
    pub learning_rate: f64,
    /// Share of graphs whose relations other than in and cfree are thinned out (ours; 0 in the
    /// reference, which trains on complete relation sets only).
    pub thinned: f64,
    /// One diffusion step for the whole batch, as in the reference, instead of one per graph.
    pub one_time_per_batch: bool,
    /// Whether the noise is the gradient of an energy (Eq. 5) instead of the networks' own output; an
    /// update takes more than twice as long, and MALA accepts by the energy.
    pub energy: bool,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            width: 64,
            steps: 200,
            worlds: 100_000,
            objects: 4,
            batch: 64,
            updates: 60_000,
            learning_rate: 1e-3,
            thinned: 0.2,
            one_time_per_batch: false,
            energy: false,
        }
    }
}

/// A training world as the networks see it.
struct Example {
    geometry: Vec<f32>,
    masked: Vec<bool>,
    edges: Vec<(usize, u32, u32)>,
    /// Clean poses of all nodes, the frame's first.
    clean: Vec<f32>,
}

impl Example {
    fn new(world: &World) -> Self {
        let problem = &world.problem;
        let mut clean = vec![0.0; POSE];
        for &center in &world.solution {
            clean.extend(problem.frame.to_pose(center).map(|v| v as f32));
        }
        let mut masked = vec![false; problem.len() + 1];
        masked[0] = true;
        Self { geometry: node_geometry(problem), masked, edges: network_edges(problem), clean }
    }
}

/// A batch with its noisy poses and the noise to be found, each `[nodes, 2]`.
struct NoisyBatch {
    batch: Batch,
    pose: Tensor,
    noise: Tensor,
}

/// Draws times and noise for graphs of the training set.
fn noisy(
    examples: &[&Example],
    schedule: &Schedule,
    config: &TrainConfig,
    stream: &mut Stream,
) -> Result<NoisyBatch> {
    let mut times = Vec::with_capacity(examples.len());
    let (mut pose, mut noise) = (Vec::new(), Vec::new());
    let mut kept = Vec::with_capacity(examples.len());
    let shared = stream.below(schedule.steps());
    for example in examples {
        let t = if config.one_time_per_batch { shared } else { stream.below(schedule.steps()) };
        times.push(t as u32);
        for (value, masked) in example.clean.chunks_exact(POSE).zip(&example.masked) {
            for &clean in value {
                let e = if *masked { 0.0 } else { stream.normal() as f32 };
                noise.push(e);
                let noisy = schedule.signal[t] * clean + schedule.noise[t] * e;
                pose.push(if *masked { clean } else { noisy });
            }
        }
        kept.push(thin(&example.edges, config.thinned, stream));
    }
    let rows: Vec<GraphRows<'_>> = examples
        .iter()
        .zip(&kept)
        .map(|(e, edges)| GraphRows { geometry: &e.geometry, masked: &e.masked, edges })
        .collect();
    let batch = Batch::new(&rows, times)?;
    let shape = (batch.nodes(), POSE);
    Ok(NoisyBatch {
        pose: Tensor::from_vec(pose, shape, &Device::Cpu)?,
        noise: Tensor::from_vec(noise, shape, &Device::Cpu)?,
        batch,
    })
}

/// With probability `share`, keeps each relation but in and cfree with a random probability.
fn thin(edges: &[(usize, u32, u32)], share: f64, stream: &mut Stream) -> Vec<(usize, u32, u32)> {
    if !stream.chance(share) {
        return edges.to_vec();
    }
    let keep = stream.uniform();
    let fixed = [Relation::In.index(), Relation::Cfree.index()];
    edges.iter().filter(|e| fixed.contains(&e.0) || stream.chance(keep)).copied().collect()
}

/// Eq. 4: mean squared error of the composed noise, over all nodes and components of the batch
/// (masked nodes count with error 0), times `share` of a larger batch.
pub fn loss(model: &Denoiser, batch: &Batch, pose: &Tensor, noise: &Tensor) -> Result<Tensor> {
    Ok(ops::mean_squared_error(&model.forward(batch, pose)?, noise)?)
}

/// Slices of a batch whose gradients are added; fixed, so that threads don't change a run.
const SLICES: usize = 2;

/// Trains new networks from `seed` with `threads` workers; `progress` hears of the update and the mean
/// loss since the last time, a hundred times in all.
///
/// # Errors
/// Interrupts, and gradients that are not finite.
pub fn train(
    config: &TrainConfig,
    seed: Seed,
    threads: usize,
    mut progress: impl FnMut(usize, f64),
) -> Result<Parameters> {
    let mut builder = Builder::seeded(seed);
    let model = Denoiser::new(&mut builder, config.width)?;
    let parameters = builder.finish();
    let options = AdamWOptions { weight_decay: 0.0, ..AdamWOptions::default() };
    let mut optimiser = AdamW::new(&parameters, options);
    let workers = Workers::new(threads.min(SLICES))?;
    let schedule = Schedule::cosine(config.steps);
    let mut stream = seed.stream("train/worlds");
    let counts = config.objects.saturating_sub(1).max(1);
    let examples: Vec<Example> = (0..config.worlds)
        .map(|index| Example::new(&worlds::world(2 + index % counts, &mut stream)))
        .collect();
    let mut draws = seed.stream("train/draws");
    let (mut sum, mut since) = (0.0, 0);
    let every = (config.updates / 100).max(1);
    for update in 1..=config.updates {
        common::run::check_interrupt()?;
        let slices: Vec<NoisyBatch> = (0..SLICES)
            .map(|slice| {
                let count = (config.batch + slice) / SLICES;
                let chosen: Vec<&Example> =
                    (0..count).map(|_| &examples[draws.below(examples.len())]).collect();
                noisy(&chosen, &schedule, config, &mut draws)
            })
            .collect::<Result<_>>()?;
        let nodes: usize = slices.iter().map(|slice| slice.batch.nodes()).sum();
        let (value, mut gradients) = workers.gradients(&parameters, SLICES, |slice| {
            let NoisyBatch { batch, pose, noise } = &slices[slice];
            let share = batch.nodes() as f64 / nodes as f64;
            let loss = match config.energy {
                true => learned_energy::loss(&model, batch, pose, noise)?,
                false => loss(&model, batch, pose, noise)?,
            };
            Ok((loss * share)?)
        })?;
        gradients.clip_global_norm(1.0)?;
        optimiser.step(&gradients, rate(config, update))?;
        sum += value;
        since += 1;
        if update % every == 0 {
            progress(update, sum / f64::from(since));
            (sum, since) = (0.0, 0);
        }
    }
    Ok(parameters)
}

/// Cosine decay to 2 % after a warm-up of 200 updates.
fn rate(config: &TrainConfig, update: usize) -> f64 {
    let warm = (update as f64 / 200.0).min(1.0);
    let done = update as f64 / config.updates.max(1) as f64;
    let decay = 0.02 + 0.98 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
    config.learning_rate * warm * decay
}
