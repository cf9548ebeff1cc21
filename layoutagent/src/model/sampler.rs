//! Algorithm 2: reverse diffusion with inner Langevin steps over the composed noise.
//!
//! Many chains of many problems run together, on plain slices without tensors.

use candle_core::{Device, Tensor};
use common::Result;
use common::rng::{Seed, Stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::composition::{Composition, Plan, Workspace};
use super::denoiser::{Batch, Denoiser, GraphRows, POSE, network_edges, node_geometry};
use super::learned_energy;
use super::schedule::Schedule;
use crate::layout::Problem;

/// What runs after each reverse step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Inner {
    /// Nothing: plain reverse diffusion (DDPM).
    Reverse,
    /// Unadjusted Langevin steps (Eq. 6).
    #[default]
    Ula,
    /// Langevin steps that grow in number towards the end: 0.4, 0.8, 1.2 and 1.6 times `inner_steps`
    /// by quarter of the chain (4, 8, 12, 16 in the reference with 10).
    UlaPlus,
    /// Langevin proposals, accepted by the Metropolis–Hastings rule with the reverse proposal. Where
    /// the networks give no energy (Eq. 5), its difference is the line integral of the score by
    /// the trapezoid rule.
    Mala,
}

/// Options of a chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SampleConfig {
    /// What runs after each reverse step.
    pub inner: Inner,
    /// Inner steps K; 10 (3 in the training script) in the reference.
    pub inner_steps: usize,
    /// Size of an inner step in units of β_t; 2 in the reference with its 1,000 diffusion steps. The
    /// β_t of 200 steps are about five times as large, so that 0.4 is the reference's size.
    pub inner_size: f64,
    /// Inner steps after the last reverse step too, as in the reference. Their noise is larger
    /// with few diffusion steps, so the default leaves them out (ours).
    pub inner_at_last: bool,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self { inner: Inner::Ula, inner_steps: 3, inner_size: 0.4, inner_at_last: false }
    }
}

impl SampleConfig {
    /// Number of inner steps after reverse step `t` of `steps`.
    pub fn inner_steps_at(&self, t: usize, steps: usize) -> usize {
        if t == 0 && !self.inner_at_last {
            return 0;
        }
        match self.inner {
            Inner::Reverse => 0,
            Inner::Ula | Inner::Mala => self.inner_steps,
            Inner::UlaPlus => {
                let quarter = (steps - 1 - t) * 4 / steps + 1;
                (self.inner_steps * 4 * quarter).div_ceil(10)
            }
        }
    }

    /// Network calls of one chain.
    pub fn calls(&self, steps: usize) -> usize {
        (0..steps).map(|t| 1 + self.inner_steps_at(t, steps)).sum()
    }
}

/// Ancestral step: x̂₀ without clipping, posterior mean and variance, no noise at t = 0.
pub fn ddpm_step(schedule: &Schedule, t: usize, pose: &mut [f32], eps: &[f32], noise: &[f32]) {
    let sd = if t > 0 { schedule.variance[t].sqrt() } else { 0.0 };
    for ((v, &e), &z) in pose.iter_mut().zip(eps).zip(noise) {
        let clean = schedule.from_pose[t] * *v - schedule.from_noise[t] * e;
        *v = schedule.mean_clean[t] * clean + schedule.mean_pose[t] * *v + sd * z;
    }
}

/// Eq. 6: Langevin step with s = `size` · β (`size` = 2 in the reference) and score −ε̂/√(1 − ᾱ).
pub fn ula_step(
    schedule: &Schedule,
    t: usize,
    size: f32,
    pose: &mut [f32],
    eps: &[f32],
    noise: &[f32],
) {
    let size = size * schedule.beta[t];
    let (drift, spread) = (size / schedule.noise[t], (2.0 * size).sqrt());
    for ((v, &e), &z) in pose.iter_mut().zip(eps).zip(noise) {
        *v += -drift * e + spread * z;
    }
}

/// Logarithm of the Metropolis–Hastings ratio of a Langevin proposal `to` from `from`; `gain` is
/// log p(to) − log p(from) where it is known, else the line integral of the score stands for it.
pub fn mala_log_ratio(
    schedule: &Schedule,
    t: usize,
    size: f32,
    (from, eps_from): (&[f32], &[f32]),
    (to, eps_to): (&[f32], &[f32]),
    gain: Option<f64>,
) -> f64 {
    let size = f64::from(size * schedule.beta[t]);
    let root = f64::from(schedule.noise[t]);
    let mut log_ratio = gain.unwrap_or(0.0);
    for (((&x, &e), &y), &f) in from.iter().zip(eps_from).zip(to).zip(eps_to) {
        let (score_x, score_y) = (-f64::from(e) / root, -f64::from(f) / root);
        let step = f64::from(y) - f64::from(x);
        let forward = step - size * score_x;
        let backward = -step - size * score_y;
        if gain.is_none() {
            log_ratio += 0.5 * (score_x + score_y) * step;
        }
        log_ratio += (forward * forward - backward * backward) / (4.0 * size);
    }
    log_ratio
}

/// Networks made ready for sampling, and the noise schedule.
#[derive(Debug)]
pub struct Sampler {
    networks: Composition,
    /// The networks again, where the noise is the gradient of their energy (Eq. 5).
    energy: Option<Denoiser>,
    schedule: Schedule,
}

/// Chains that run together.
struct Chains {
    plan: Plan,
    /// The same graphs for [`learned_energy`].
    batch: Option<Batch>,
}

impl Sampler {
    /// A sampler of (frozen) networks that were trained with `steps` diffusion steps.
    ///
    /// # Errors
    /// Tensor operations only.
    pub fn new(model: &Denoiser, steps: usize) -> Result<Self> {
        let networks = Composition::new(model, steps)?;
        Ok(Self { networks, energy: None, schedule: Schedule::cosine(steps) })
    }

    /// A sampler of networks whose noise is the gradient of an energy (Eq. 5). Each call is a forward and
    /// a backward pass through tensors, many times slower than [`Sampler::new`]'s.
    ///
    /// # Errors
    /// Tensor operations only.
    pub fn of_energy(model: Denoiser, steps: usize) -> Result<Self> {
        Ok(Self { energy: Some(model.clone()), ..Self::new(&model, steps)? })
    }

    /// Diffusion steps T.
    pub fn steps(&self) -> usize {
        self.schedule.steps()
    }

    /// Composed noise of a problem's nodes (the frame first, two values each) at the poses of one
    /// layout and step `t`: equal to [`Denoiser::forward`] or [`learned_energy::noise`] up to
    /// rounding. The frame's pose counts as (0, 0).
    ///
    /// # Errors
    /// Tensor operations only.
    pub fn composed_noise(&self, problem: &Problem, pose: &[f32], t: usize) -> Result<Vec<f32>> {
        let mut workspace = Workspace::default();
        self.noise(&mut self.chains(&[problem], 1)?, pose, t, &mut workspace)?;
        Ok(workspace.noise)
    }

    /// Lays out `copies` chains of each problem.
    fn chains(&self, problems: &[&Problem], copies: usize) -> Result<Chains> {
        let plan = self.networks.plan(problems, copies);
        if self.energy.is_none() {
            return Ok(Chains { plan, batch: None });
        }
        let graphs: Vec<_> = problems
            .iter()
            .map(|problem| {
                let locked = problem.locked.iter().map(Option::is_some);
                let masked: Vec<bool> = std::iter::once(true).chain(locked).collect();
                (node_geometry(problem), masked, network_edges(problem))
            })
            .collect();
        let rows: Vec<GraphRows<'_>> = graphs
            .iter()
            .flat_map(|(geometry, masked, edges)| {
                std::iter::repeat_n(GraphRows { geometry, masked, edges }, copies)
            })
            .collect();
        let batch = Batch::new(&rows, vec![0; rows.len()])?;
        Ok(Chains { plan, batch: Some(batch) })
    }

    /// Noise of all chains at `pose` and step `t`, into `w`, with their energies where there are any.
    fn noise(&self, chains: &mut Chains, pose: &[f32], t: usize, w: &mut Workspace) -> Result<()> {
        let (Some(model), Some(batch)) = (&self.energy, &mut chains.batch) else {
            self.networks.noise(&chains.plan, pose, t, w);
            return Ok(());
        };
        batch.set_time(t);
        let pose = Tensor::from_slice(pose, (batch.nodes(), POSE), &Device::Cpu)?;
        let (noise, energies) = learned_energy::noise(model, batch, &pose)?;
        (w.noise, w.energies) = (noise.flatten_all()?.to_vec1()?, energies);
        Ok(())
    }

    /// `chains` layouts of each problem (Algorithm 2): `[problem][chain][object]` centres in the
    /// problem's frame. The noise of a chain comes from `seed`, the `names` of its problem and the
    /// chain's number, so it does not depend on what runs beside it.
    ///
    /// # Errors
    /// Tensor operations, interrupts.
    pub fn sample(
        &self,
        problems: &[(&Problem, u64)],
        chains: usize,
        config: &SampleConfig,
        seed: Seed,
    ) -> Result<Vec<Vec<Vec<[f64; 2]>>>> {
        let bare: Vec<&Problem> = problems.iter().map(|(problem, _)| *problem).collect();
        let mut all = self.chains(&bare, chains)?;
        let mut w = Workspace::default();
        let mut streams: Vec<Stream> = problems
            .iter()
            .flat_map(|(_, id)| {
                (0..chains).map(move |chain| seed.stream(&format!("chain/{id}/{chain}")))
            })
            .collect();
        let mut noise = Vec::new();
        draw(&all.plan, &mut streams, &mut noise);
        let mut pose: Vec<f32> = noise.iter().map(|v| 0.5 * v).collect();
        impose(&all.plan, &mut pose);
        let (steps, size) = (self.steps(), config.inner_size as f32);
        for t in (0..steps).rev() {
            common::run::check_interrupt()?;
            self.noise(&mut all, &pose, t, &mut w)?;
            draw(&all.plan, &mut streams, &mut noise);
            ddpm_step(&self.schedule, t, &mut pose, &w.noise, &noise);
            impose(&all.plan, &mut pose);
            let inner = config.inner_steps_at(t, steps);
            if inner > 0 && config.inner == Inner::Mala {
                self.metropolis(&mut all, t, inner, size, &mut pose, &mut streams)?;
                continue;
            }
            for _ in 0..inner {
                self.noise(&mut all, &pose, t, &mut w)?;
                draw(&all.plan, &mut streams, &mut noise);
                ula_step(&self.schedule, t, size, &mut pose, &w.noise, &noise);
                impose(&all.plan, &mut pose);
            }
        }
        let mut of_chain = all.plan.chains.iter();
        let layouts = problems.iter().map(|(problem, _)| {
            of_chain
                .by_ref()
                .take(chains)
                .map(|&(start, nodes)| {
                    let rows = pose[(start + 1) * POSE..(start + nodes) * POSE].chunks_exact(POSE);
                    let mut centers: Vec<[f64; 2]> = rows
                        .map(|row| {
                            let clamped = |v: f32| f64::from(v.clamp(-1.0, 1.0));
                            problem.frame.from_pose([clamped(row[0]), clamped(row[1])])
                        })
                        .collect();
                    problem.impose_locks(&mut centers);
                    centers
                })
                .collect()
        });
        Ok(layouts.collect())
    }

    /// Metropolis-adjusted Langevin steps, accepted chain by chain.
    fn metropolis(
        &self,
        chains: &mut Chains,
        t: usize,
        steps: usize,
        size: f32,
        pose: &mut [f32],
        streams: &mut [Stream],
    ) -> Result<()> {
        let (mut here, mut there) = (Workspace::default(), Workspace::default());
        let mut noise = Vec::new();
        self.noise(chains, pose, t, &mut here)?;
        for _ in 0..steps {
            let mut next = pose.to_vec();
            draw(&chains.plan, streams, &mut noise);
            ula_step(&self.schedule, t, size, &mut next, &here.noise, &noise);
            impose(&chains.plan, &mut next);
            self.noise(chains, &next, t, &mut there)?;
            let of_chains = chains.plan.chains.iter().zip(streams.iter_mut());
            for (chain, (&(start, nodes), stream)) in of_chains.enumerate() {
                let at = start * POSE..(start + nodes) * POSE;
                let (from, to) = (&pose[at.clone()], &next[at.clone()]);
                let (eps_from, eps_to) = (&here.noise[at.clone()], &there.noise[at.clone()]);
                // the score is −∇E / √(1 − ᾱ): log p gains what E loses, over that root
                let gain = self.energy.as_ref().map(|_| {
                    (here.energies[chain] - there.energies[chain])
                        / f64::from(self.schedule.noise[t])
                });
                let (from, to) = ((from, eps_from), (to, eps_to));
                let log_ratio = mala_log_ratio(&self.schedule, t, size, from, to, gain);
                if stream.uniform().ln() < log_ratio {
                    pose[at.clone()].copy_from_slice(&next[at.clone()]);
                    here.noise[at.clone()].copy_from_slice(&there.noise[at]);
                    if gain.is_some() {
                        here.energies[chain] = there.energies[chain];
                    }
                }
            }
        }
        Ok(())
    }
}

/// Standard normals, each chain from its own stream, into `noise`; 0 for masked nodes.
fn draw(plan: &Plan, streams: &mut [Stream], noise: &mut Vec<f32>) {
    noise.clear();
    for (&(start, nodes), stream) in plan.chains.iter().zip(streams) {
        for &masked in &plan.masked[start..start + nodes] {
            let mut value = || if masked { 0.0 } else { stream.normal() as f32 };
            noise.extend([value(), value()]);
        }
    }
}

/// Puts masked poses back.
fn impose(plan: &Plan, pose: &mut [f32]) {
    let rows = pose.chunks_exact_mut(POSE).zip(plan.fixed.chunks_exact(POSE));
    for ((pose, fixed), &masked) in rows.zip(&plan.masked) {
        if masked {
            pose.copy_from_slice(fixed);
        }
    }
}
