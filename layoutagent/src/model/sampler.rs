//! Algorithm 2: reverse diffusion with inner Langevin steps over the composed noise.
//!
//! Many chains of many problems run together: rows of one relation form one matrix product. The
//! shares of geometry and time in a relation network's first layer don't change along a chain (or
//! between chains), so they are computed once.

use candle_core::{Device, Tensor};
use common::Result;
use common::ops::{self, Activation};
use common::rng::{Seed, Stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::denoiser::{Denoiser, GEOMETRY, POSE, network_edges, node_geometry};
use super::schedule::Schedule;
use crate::layout::Problem;
use crate::relations::Relation;

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
    /// Langevin proposals, accepted by the Metropolis–Hastings rule with the reverse proposal. The
    /// networks give no energy, so its difference is the line integral of the score by the
    /// trapezoid rule.
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
    /// Inner steps after the last reverse step too, as in the reference. Their noise is larger
    /// with few diffusion steps, so the default leaves them out (ours).
    pub inner_at_last: bool,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self { inner: Inner::Ula, inner_steps: 3, inner_at_last: false }
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

/// Eq. 6: Langevin step with s = 2β and score −ε̂/√(1 − ᾱ).
pub fn ula_step(schedule: &Schedule, t: usize, pose: &mut [f32], eps: &[f32], noise: &[f32]) {
    let size = 2.0 * schedule.beta[t];
    let (drift, spread) = (size / schedule.noise[t], (2.0 * size).sqrt());
    for ((v, &e), &z) in pose.iter_mut().zip(eps).zip(noise) {
        *v += -drift * e + spread * z;
    }
}

/// Logarithm of the Metropolis–Hastings ratio of a Langevin proposal `to` from `from`.
pub fn mala_log_ratio(
    schedule: &Schedule,
    t: usize,
    (from, eps_from): (&[f32], &[f32]),
    (to, eps_to): (&[f32], &[f32]),
) -> f64 {
    let size = f64::from(2.0 * schedule.beta[t]);
    let root = f64::from(schedule.noise[t]);
    let mut log_ratio = 0.0;
    for (((&x, &e), &y), &f) in from.iter().zip(eps_from).zip(to).zip(eps_to) {
        let (score_x, score_y) = (-f64::from(e) / root, -f64::from(f) / root);
        let step = f64::from(y) - f64::from(x);
        let forward = step - size * score_x;
        let backward = -step - size * score_y;
        log_ratio += 0.5 * (score_x + score_y) * step;
        log_ratio += (forward * forward - backward * backward) / (4.0 * size);
    }
    log_ratio
}

/// Networks made ready for sampling: weights cut by input, and the share of time for every step.
#[derive(Debug)]
pub struct Sampler {
    model: Denoiser,
    schedule: Schedule,
    /// Of each relation: weights of geometry and of pose, `[2d, 2d]`.
    geometry: Vec<Tensor>,
    pose: Vec<Tensor>,
    /// Of each relation and step: time's share and bias, `[2d]`.
    time: Vec<Vec<Tensor>>,
}

/// Rows of the problems' relations, ready for `Sampler::eps`.
struct Plan {
    /// First and second node of each row: `[2 rows]`.
    nodes: Tensor,
    targets: Vec<usize>,
    scale: Vec<f32>,
    per_relation: [usize; Relation::LEARNED],
    /// Geometry's share of each row, `[rows, 2d]`.
    geometry: Tensor,
    /// First node of each chain and number of nodes, in order of problem and chain.
    chains: Vec<(usize, usize)>,
    masked: Vec<bool>,
    fixed: Vec<f32>,
}

impl Sampler {
    /// A sampler of (frozen) networks that were trained with `steps` diffusion steps.
    ///
    /// # Errors
    /// Tensor operations only.
    pub fn new(model: Denoiser, steps: usize) -> Result<Self> {
        let d = model.width();
        let all: Vec<u32> = (0..steps as u32).collect();
        let features = model.encode_time(&all)?.detach();
        let mut sampler = Self {
            schedule: Schedule::cosine(steps),
            geometry: Vec::new(),
            pose: Vec::new(),
            time: Vec::new(),
            model,
        };
        for k in 0..Relation::LEARNED {
            let layer = sampler.model.relation(k);
            let weight = layer.weight().detach();
            let part = |at: usize, width: usize| weight.narrow(1, at, width)?.contiguous();
            let bias = layer.bias().map(Tensor::detach);
            let time = ops::linear(&features, &part(4 * d, d)?, bias.as_ref())?;
            sampler.geometry.push(part(0, 2 * d)?);
            sampler.pose.push(part(2 * d, 2 * d)?);
            let rows = (0..steps).map(|t| time.get(t)?.copy());
            sampler.time.push(rows.collect::<candle_core::Result<_>>()?);
        }
        Ok(sampler)
    }

    /// Diffusion steps T.
    pub fn steps(&self) -> usize {
        self.schedule.steps()
    }

    fn plan(&self, problems: &[&Problem], chains: usize) -> Result<Plan> {
        let mut starts = Vec::new();
        let (mut masked, mut fixed) = (Vec::new(), Vec::new());
        let mut geometry = Vec::new();
        // (relation, first and second node of the first chain, the same among the geometry rows,
        // nodes of the graph)
        let mut edges = Vec::new();
        let mut geometry_rows = 0;
        for problem in problems {
            let nodes = problem.len() + 1;
            let first = masked.len();
            for (k, i, j) in network_edges(problem) {
                let (i, j) = (i as usize, j as usize);
                edges.push((
                    k,
                    [first + i, first + j],
                    [geometry_rows + i, geometry_rows + j],
                    nodes,
                ));
            }
            geometry.extend(node_geometry(problem));
            geometry_rows += nodes;
            for _ in 0..chains {
                starts.push((masked.len(), nodes));
                masked.push(true);
                fixed.extend([0.0; POSE]);
                for lock in &problem.locked {
                    masked.push(lock.is_some());
                    let pose = problem.frame.to_pose(lock.unwrap_or([0.0; POSE]));
                    fixed.extend(pose.map(|v| v as f32));
                }
            }
        }
        edges.sort_by_key(|edge| edge.0);
        let encoded = Tensor::from_vec(geometry, (geometry_rows, GEOMETRY), &Device::Cpu)?;
        let encoded = self.model.encode_geometry(&encoded)?.detach();
        let d = self.model.width();
        let mut per_relation = [0; Relation::LEARNED];
        let (mut nodes, mut counts) = (Vec::new(), vec![0u32; masked.len()]);
        let mut shares = Vec::new();
        for (k, computed) in per_relation.iter_mut().enumerate() {
            let of_kind: Vec<_> = edges.iter().filter(|edge| edge.0 == k).collect();
            if of_kind.is_empty() {
                continue;
            }
            *computed = of_kind.len() * chains;
            let mut repeated = Vec::new();
            let mut pairs = Vec::new();
            for (row, (_, [i, j], [gi, gj], size)) in of_kind.iter().enumerate() {
                pairs.extend([*gi as u32, *gj as u32]);
                for chain in 0..chains {
                    repeated.push(row as u32);
                    for node in [i + chain * size, j + chain * size] {
                        nodes.push(node as u32);
                        counts[node] += 1;
                    }
                }
            }
            let pairs = Tensor::from_vec(pairs, of_kind.len() * 2, &Device::Cpu)?;
            let rows = ops::embedding(&encoded, &pairs)?.reshape((of_kind.len(), 2 * d))?;
            let share = ops::linear(&rows, &self.geometry[k], None)?;
            let count = repeated.len();
            shares.push(ops::embedding(&share, &Tensor::from_vec(repeated, count, &Device::Cpu)?)?);
        }
        let geometry = match shares.is_empty() {
            true => Tensor::zeros((0, 2 * d), candle_core::DType::F32, &Device::Cpu)?,
            false => Tensor::cat(&shares, 0)?,
        };
        let scale = counts.iter().zip(&masked).map(|(&count, &masked)| {
            if masked || count == 0 { 0.0 } else { 1.0 / (count as f32).sqrt() }
        });
        Ok(Plan {
            scale: scale.collect(),
            targets: nodes.iter().map(|&node| node as usize).collect(),
            nodes: Tensor::from_vec(nodes, 2 * geometry.dims()[0], &Device::Cpu)?,
            per_relation,
            geometry,
            chains: starts,
            masked,
            fixed,
        })
    }

    /// Composed noise of a problem's nodes (the frame first, two values each) at the poses of one
    /// layout and step `t`: equal to [`Denoiser::forward`] up to rounding.
    ///
    /// # Errors
    /// Tensor operations only.
    pub fn composed_noise(&self, problem: &Problem, pose: &[f32], t: usize) -> Result<Vec<f32>> {
        self.eps(&self.plan(&[problem], 1)?, pose, t)
    }

    /// Composed noise of all nodes at `pose` and step `t` (Eq. 3).
    fn eps(&self, plan: &Plan, pose: &[f32], t: usize) -> Result<Vec<f32>> {
        let mut total = vec![0f32; pose.len()];
        let rows = plan.geometry.dims()[0];
        if rows == 0 {
            return Ok(total);
        }
        let d = self.model.width();
        let pose = Tensor::from_slice(pose, (pose.len() / POSE, POSE), &Device::Cpu)?;
        let encoded = self.model.encode_pose(&pose)?;
        let inputs = ops::embedding(&encoded, &plan.nodes)?.reshape((rows, 2 * d))?;
        let mut outputs = Vec::new();
        let mut at = 0;
        for (k, &count) in plan.per_relation.iter().enumerate() {
            if count > 0 {
                let rows = inputs.narrow(0, at, count)?;
                outputs.push(ops::linear(&rows, &self.pose[k], Some(&self.time[k][t]))?);
                at += count;
            }
        }
        let outputs = (Tensor::cat(&outputs, 0)? + &plan.geometry)?;
        let halves = Activation::Silu.apply(&outputs)?.reshape((2 * rows, d))?;
        let noise = self.model.decode(&halves)?.flatten_all()?.to_vec1::<f32>()?;
        for (&node, noise) in plan.targets.iter().zip(noise.chunks_exact(POSE)) {
            for (total, noise) in total[node * POSE..].iter_mut().zip(noise) {
                *total += noise;
            }
        }
        for (total, scale) in total.chunks_exact_mut(POSE).zip(&plan.scale) {
            total.iter_mut().for_each(|v| *v *= scale);
        }
        Ok(total)
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
        let plan = self.plan(&bare, chains)?;
        let mut streams: Vec<Stream> = problems
            .iter()
            .flat_map(|(_, id)| {
                (0..chains).map(move |chain| seed.stream(&format!("chain/{id}/{chain}")))
            })
            .collect();
        let mut pose: Vec<f32> = draw(&plan, &mut streams).iter().map(|v| 0.5 * v).collect();
        impose(&plan, &mut pose);
        let steps = self.steps();
        for t in (0..steps).rev() {
            common::run::check_interrupt()?;
            let eps = self.eps(&plan, &pose, t)?;
            let noise = draw(&plan, &mut streams);
            ddpm_step(&self.schedule, t, &mut pose, &eps, &noise);
            impose(&plan, &mut pose);
            let inner = config.inner_steps_at(t, steps);
            if inner == 0 {
                continue;
            }
            let mut eps = self.eps(&plan, &pose, t)?;
            for step in 0..inner {
                let mut next = pose.clone();
                ula_step(&self.schedule, t, &mut next, &eps, &draw(&plan, &mut streams));
                impose(&plan, &mut next);
                if config.inner == Inner::Mala {
                    let next_eps = self.eps(&plan, &next, t)?;
                    self.accept(&plan, t, (&mut pose, &mut eps), (&next, &next_eps), &mut streams);
                } else {
                    pose = next;
                    if step + 1 < inner {
                        eps = self.eps(&plan, &pose, t)?;
                    }
                }
            }
        }
        let mut of_chain = plan.chains.iter();
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

    /// Takes over the proposals that the Metropolis–Hastings rule accepts, chain by chain.
    fn accept(
        &self,
        plan: &Plan,
        t: usize,
        (pose, eps): (&mut [f32], &mut [f32]),
        (next, next_eps): (&[f32], &[f32]),
        streams: &mut [Stream],
    ) {
        for (&(start, nodes), stream) in plan.chains.iter().zip(streams) {
            let at = start * POSE..(start + nodes) * POSE;
            let log_ratio = mala_log_ratio(
                &self.schedule,
                t,
                (&pose[at.clone()], &eps[at.clone()]),
                (&next[at.clone()], &next_eps[at.clone()]),
            );
            if stream.uniform().ln() < log_ratio {
                pose[at.clone()].copy_from_slice(&next[at.clone()]);
                eps[at.clone()].copy_from_slice(&next_eps[at]);
            }
        }
    }
}

/// Standard normals, each chain from its own stream; 0 for masked nodes.
fn draw(plan: &Plan, streams: &mut [Stream]) -> Vec<f32> {
    let mut noise = Vec::with_capacity(plan.fixed.len());
    for (&(start, nodes), stream) in plan.chains.iter().zip(streams) {
        for &masked in &plan.masked[start..start + nodes] {
            let mut value = || if masked { 0.0 } else { stream.normal() as f32 };
            noise.extend([value(), value()]);
        }
    }
    noise
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
