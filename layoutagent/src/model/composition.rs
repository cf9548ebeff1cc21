//! Eq. 3 on plain slices, for sampling: the composed noise of many chains of many problems, equal to
//! [`Denoiser::forward`] up to rounding.
//!
//! What does not change along a chain is computed once: the shares of geometry and of time in a relation
//! network's first layer, and the encoded pose of the frame, which stays at the origin. Nobody
//! reads the frame's own noise, so a relation with the frame has the half of its object only. The
//! decoder's last layer is linear, so it runs on each node's sum instead of on each relation.

use candle_core::Tensor;
use common::Result;
use common::nn::Linear;
use common::ops::{affine_into, sigmoid_in_place};

use super::denoiser::{Denoiser, GEOMETRY, POSE, network_edges, node_geometry};
use crate::layout::Problem;
use crate::relations::Relation;

/// Rows that run through the layers together: what they need stays in the processor's cache.
const TILE: usize = 256;

/// x · W + b on slices; W is (inputs, outputs) row by row.
#[derive(Debug)]
struct Layer {
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl Layer {
    fn of(linear: &Linear) -> Result<Self> {
        let (outputs, inputs) = linear.weight().dims2()?;
        let bias = linear.bias().map_or(Ok(vec![0.0; outputs]), values)?;
        Ok(Self { weights: block(&values(linear.weight())?, inputs, 0, inputs, outputs), bias })
    }

    /// Rows of outputs for rows of inputs, into `out`.
    fn apply(&self, x: &[f32], out: &mut Vec<f32>) {
        let inputs = self.weights.len() / self.bias.len();
        out.resize(x.len() / inputs * self.bias.len(), 0.0);
        affine_into(out, x, &self.weights, &self.bias);
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// Transposed part of a weight matrix `[outputs, width]`: inputs `first..first + count` of the
/// leading `outputs` rows, as (inputs, outputs).
fn block(weight: &[f32], width: usize, first: usize, count: usize, outputs: usize) -> Vec<f32> {
    let column = |input: usize| (0..outputs).map(move |output| weight[output * width + input]);
    (first..first + count).flat_map(column).collect()
}

/// x · sigmoid(x) in place; `gate` is scratch.
fn silu(x: &mut [f32], gate: &mut Vec<f32>) {
    gate.clear();
    gate.extend_from_slice(x);
    sigmoid_in_place(gate);
    x.iter_mut().zip(gate.iter()).for_each(|(x, gate)| *x *= gate);
}

/// One relation network's first layer, cut by input.
#[derive(Debug)]
struct RelationLayer {
    /// Of the geometry of both nodes: (2d, outputs).
    geometry: Vec<f32>,
    /// Of the poses of both nodes (2d, 2d); of the object's alone (d, d) in relations with the
    /// frame.
    pose: Vec<f32>,
    /// Share of the frame's pose; zeros in relations of two objects: (outputs).
    frame: Vec<f32>,
    /// Time's share and the bias at every step: (steps, outputs).
    time: Vec<f32>,
}

/// The networks of a [`Denoiser`] for `steps` diffusion steps, made ready for sampling.
#[derive(Debug)]
pub(super) struct Composition {
    width: usize,
    geometry: [Layer; 2],
    pose: [Layer; 2],
    decoder: [Layer; 2],
    relations: Vec<RelationLayer>,
}

/// Chains of problems laid out as rows.
#[derive(Debug)]
pub(super) struct Plan {
    /// First node of each chain and number of nodes, in order of problem and chain.
    pub(super) chains: Vec<(usize, usize)>,
    /// Per node of all chains: whether its pose is given, and that pose.
    pub(super) masked: Vec<bool>,
    pub(super) fixed: Vec<f32>,
    /// Number of chains of each problem: neighbouring rows that differ in the chain only.
    copies: usize,
    /// Rows by relation: its index and their nodes. The second node is the frame in relations
    /// with it.
    rows: Vec<(usize, Vec<[u32; 2]>)>,
    /// Geometry's share of each edge, relation by relation: (edges, outputs).
    shares: Vec<Vec<f32>>,
    /// Rows at each node, and 1/√ of them (0 for masked nodes).
    count: Vec<f32>,
    scale: Vec<f32>,
}

/// Buffers that a chain reuses from step to step.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    /// Composed noise: two values per node.
    pub(super) noise: Vec<f32>,
    /// Energy of each chain, where the networks give one.
    pub(super) energies: Vec<f64>,
    half: Vec<f32>,
    encoded: Vec<f32>,
    inputs: Vec<f32>,
    hidden: Vec<f32>,
    inner: Vec<f32>,
    sums: Vec<f32>,
    gate: Vec<f32>,
}

impl Composition {
    pub(super) fn new(model: &Denoiser, steps: usize) -> Result<Self> {
        let d = model.width();
        let pair = |layers: &[Linear; 2]| -> Result<[Layer; 2]> {
            Ok([Layer::of(&layers[0])?, Layer::of(&layers[1])?])
        };
        let all: Vec<u32> = (0..steps as u32).collect();
        let time = values(&model.encode_time(&all)?)?;
        let mut composition = Self {
            width: d,
            geometry: pair(&model.geometry)?,
            pose: pair(&model.pose)?,
            decoder: pair(&model.decoder)?,
            relations: Vec::new(),
        };
        let mut origin = Vec::new();
        composition.encode(&composition.pose, &[0.0; POSE], &mut Workspace::default(), &mut origin);
        for (k, relation) in Relation::ALL.into_iter().take(Relation::LEARNED).enumerate() {
            let layer = model.relation(k);
            let weight = values(layer.weight())?;
            let outputs = if relation.is_unary() { d } else { 2 * d };
            let part = |at: usize, count: usize| block(&weight, 5 * d, at, count, outputs);
            let mut frame = vec![0.0; outputs];
            if relation.is_unary() {
                affine_into(&mut frame, &origin, &part(3 * d, d), &vec![0.0; outputs]);
            }
            let mut bias = layer.bias().map_or(Ok(vec![0.0; 2 * d]), values)?;
            bias.truncate(outputs);
            let mut of_time = vec![0.0; steps * outputs];
            affine_into(&mut of_time, &time, &part(4 * d, d), &bias);
            composition.relations.push(RelationLayer {
                geometry: part(0, 2 * d),
                pose: part(2 * d, outputs),
                frame,
                time: of_time,
            });
        }
        Ok(composition)
    }

    /// Two layers with SiLU.
    fn encode(&self, layers: &[Layer; 2], x: &[f32], w: &mut Workspace, out: &mut Vec<f32>) {
        layers[0].apply(x, &mut w.half);
        silu(&mut w.half, &mut w.gate);
        layers[1].apply(&w.half, out);
        silu(out, &mut w.gate);
    }

    /// Lays out `copies` chains of each problem.
    pub(super) fn plan(&self, problems: &[&Problem], copies: usize) -> Plan {
        let d = self.width;
        let mut plan = Plan {
            chains: Vec::new(),
            masked: Vec::new(),
            fixed: Vec::new(),
            copies,
            rows: Vec::new(),
            shares: Vec::new(),
            count: Vec::new(),
            scale: Vec::new(),
        };
        let mut geometry = Vec::new();
        // (relation, nodes of the first chain, the same among the geometry rows, the graph's nodes)
        let mut edges = Vec::new();
        for problem in problems {
            let nodes = problem.len() + 1;
            let (first, row) = (plan.masked.len(), geometry.len() / GEOMETRY);
            for (k, i, j) in network_edges(problem) {
                let pair = [i as usize, j as usize];
                edges.push((k, pair.map(|node| first + node), pair.map(|node| row + node), nodes));
            }
            geometry.extend(node_geometry(problem));
            for _ in 0..copies {
                plan.chains.push((plan.masked.len(), nodes));
                plan.masked.push(true);
                plan.fixed.extend([0.0; POSE]);
                for lock in &problem.locked {
                    plan.masked.push(lock.is_some());
                    let pose = problem.frame.to_pose(lock.unwrap_or([0.0; POSE]));
                    plan.fixed.extend(pose.map(|v| v as f32));
                }
            }
        }
        let mut encoded = Vec::new();
        self.encode(&self.geometry, &geometry, &mut Workspace::default(), &mut encoded);
        plan.count = vec![0.0; plan.masked.len()];
        for (k, layer) in self.relations.iter().enumerate() {
            let (mut rows, mut inputs) = (Vec::new(), Vec::new());
            for (_, nodes, [i, j], size) in edges.iter().filter(|edge| edge.0 == k) {
                inputs.extend_from_slice(&encoded[i * d..][..d]);
                inputs.extend_from_slice(&encoded[j * d..][..d]);
                for copy in 0..copies {
                    let nodes = nodes.map(|node| node + copy * size);
                    nodes.iter().for_each(|&node| plan.count[node] += 1.0);
                    rows.push(nodes.map(|node| node as u32));
                }
            }
            if !rows.is_empty() {
                let outputs = layer.frame.len();
                let mut shares = vec![0.0; rows.len() / copies * outputs];
                affine_into(&mut shares, &inputs, &layer.geometry, &layer.frame);
                plan.rows.push((k, rows));
                plan.shares.push(shares);
            }
        }
        let scale = |(&count, &masked): (&f32, &bool)| {
            if masked || count == 0.0 { 0.0 } else { 1.0 / count.sqrt() }
        };
        plan.scale = plan.count.iter().zip(&plan.masked).map(scale).collect();
        plan
    }

    /// Eq. 3 at `pose` (two values per node) and step `t`, into `w.noise`.
    pub(super) fn noise(&self, plan: &Plan, pose: &[f32], t: usize, w: &mut Workspace) {
        let (d, nodes) = (self.width, plan.masked.len());
        let mut encoded = std::mem::take(&mut w.encoded);
        self.encode(&self.pose, pose, w, &mut encoded);
        w.encoded = encoded;
        let inner = self.decoder[0].bias.len();
        w.sums.clear();
        w.sums.resize(nodes * inner, 0.0);
        for ((k, rows), shares) in plan.rows.iter().zip(&plan.shares) {
            let layer = &self.relations[*k];
            let outputs = layer.frame.len();
            for (at, rows) in rows.chunks(TILE).enumerate() {
                self.relation(layer, rows, t, w);
                for (row, hidden) in w.hidden.chunks_exact_mut(outputs).enumerate() {
                    let edge = (at * TILE + row) / plan.copies;
                    let share = &shares[edge * outputs..][..outputs];
                    hidden.iter_mut().zip(share).for_each(|(h, share)| *h += share);
                }
                silu(&mut w.hidden, &mut w.gate);
                self.decoder[0].apply(&w.hidden, &mut w.inner);
                silu(&mut w.inner, &mut w.gate);
                // one row of `inner` for each of the row's halves
                let halves = outputs / d;
                for (row, part) in rows.iter().zip(w.inner.chunks_exact(halves * inner)) {
                    for (&node, part) in row.iter().zip(part.chunks_exact(inner)) {
                        let sum = &mut w.sums[node as usize * inner..][..inner];
                        sum.iter_mut().zip(part).for_each(|(sum, v)| *sum += v);
                    }
                }
            }
        }
        let last = &self.decoder[1];
        w.noise.resize(nodes * POSE, 0.0);
        affine_into(&mut w.noise, &w.sums, &last.weights, &[0.0; POSE]);
        for ((noise, count), scale) in
            w.noise.chunks_exact_mut(POSE).zip(&plan.count).zip(&plan.scale)
        {
            for (noise, bias) in noise.iter_mut().zip(&last.bias) {
                *noise = (*noise + count * bias) * scale;
            }
        }
    }

    /// Poses' and time's shares of a relation's first layer for some rows, into `w.hidden`.
    fn relation(&self, layer: &RelationLayer, rows: &[[u32; 2]], t: usize, w: &mut Workspace) {
        let (d, outputs) = (self.width, layer.frame.len());
        w.inputs.clear();
        for nodes in rows {
            for &node in &nodes[..outputs / d] {
                w.inputs.extend_from_slice(&w.encoded[node as usize * d..][..d]);
            }
        }
        w.hidden.resize(rows.len() * outputs, 0.0);
        let time = &layer.time[t * outputs..][..outputs];
        affine_into(&mut w.hidden, &w.inputs, &layer.pose, time);
    }
}
