//! The relation networks and their composition (specification §3.5, Eq. 3).
//!
//! Names of tensors are those of the reference: `geom_encoder.{0,2}`, `pose_encoder.{0,2}`,
//! `time_mlp.{1,3}`, `mlps.<relation>.0`, `pose_decoder.{0,2}`.

use candle_core::{Device, Tensor};
use common::Result;
use common::nn::{Builder, Linear};
use common::ops::{self, Activation};

use crate::layout::Problem;
use crate::relations::Relation;

/// Pose (x, y): pictures stay upright.
pub const POSE: usize = 2;
/// Geometry (w, h) over the frame's sides.
pub const GEOMETRY: usize = 2;

/// One network per relation between shared encoders and a shared decoder.
#[derive(Debug, Clone)]
pub struct Denoiser {
    width: usize,
    pub(super) geometry: [Linear; 2],
    pub(super) pose: [Linear; 2],
    time: [Linear; 2],
    relations: Vec<Linear>,
    pub(super) decoder: [Linear; 2],
}

impl Denoiser {
    /// Networks of hidden width `width` (d), even and at least 4.
    ///
    /// # Errors
    /// Those of the builder's tensors.
    pub fn new(b: &mut Builder, width: usize) -> Result<Self> {
        let d = width;
        let mut pair = |name: &str, first: (usize, usize), second: (usize, usize), at: usize| {
            b.within(name, |b| {
                let layer = |b: &mut Builder, at: usize, (inputs, outputs): (usize, usize)| {
                    b.within(at, |b| Linear::new(b, inputs, outputs, true))
                };
                Ok::<_, common::Error>([layer(b, at, first)?, layer(b, at + 2, second)?])
            })
        };
        let geometry = pair("geom_encoder", (GEOMETRY, d / 2), (d / 2, d), 0)?;
        let pose = pair("pose_encoder", (POSE, d / 2), (d / 2, d), 0)?;
        let time = pair("time_mlp", (d, 4 * d), (4 * d, d), 1)?;
        let decoder = pair("pose_decoder", (d, d / 2), (d / 2, POSE), 0)?;
        let relations = b.within("mlps", |b| {
            (0..Relation::LEARNED)
                .map(|k| b.within(format!("{k}.0"), |b| Linear::new(b, 5 * d, 2 * d, true)))
                .collect::<Result<Vec<_>>>()
        })?;
        Ok(Self { width, geometry, pose, time, relations, decoder })
    }

    /// Hidden width d.
    pub fn width(&self) -> usize {
        self.width
    }

    /// `[rows, inputs]` → `[rows, d]`.
    fn encode(layers: &[Linear; 2], x: &Tensor) -> Result<Tensor> {
        let hidden = layers[0].forward_activation(x, Some(Activation::Silu))?;
        layers[1].forward_activation(&hidden, Some(Activation::Silu))
    }

    /// Encoded geometry `[nodes, d]` of `[nodes, 2]`.
    pub fn encode_geometry(&self, geometry: &Tensor) -> Result<Tensor> {
        Self::encode(&self.geometry, geometry)
    }

    /// Encoded poses `[nodes, d]` of `[nodes, 2]`.
    pub fn encode_pose(&self, pose: &Tensor) -> Result<Tensor> {
        Self::encode(&self.pose, pose)
    }

    /// Time features `[steps, d]` of diffusion steps.
    pub fn encode_time(&self, steps: &[u32]) -> Result<Tensor> {
        let x = self.time[0].forward(&sinusoidal(steps, self.width)?)?;
        self.time[1].forward(&mish(&x)?)
    }

    /// Network of relation `k` on rows `[geo_i, geo_j, pose_i, pose_j, time]`.
    pub fn relation(&self, k: usize) -> &Linear {
        &self.relations[k]
    }

    /// Noise of `[rows, d]` halves → `[rows, 2]`.
    pub fn decode(&self, halves: &Tensor) -> Result<Tensor> {
        let hidden = self.decoder[0].forward_activation(halves, Some(Activation::Silu))?;
        self.decoder[1].forward(&hidden)
    }

    /// Eq. 3: composed noise of every node, Σ over the relations that contain it, over √count.
    /// `pose` is `[nodes, 2]`, the result as well. Masked nodes get 0 (the reference puts their own
    /// pose there; nothing reads it), so do nodes without a relation.
    pub fn forward(&self, batch: &Batch, pose: &Tensor) -> Result<Tensor> {
        let noise = self.outputs(batch, pose)?;
        let total = pose.zeros_like()?.detach().index_add(&batch.targets, &noise, 0)?;
        Ok(total.broadcast_mul(&batch.scale)?)
    }

    /// What each relation's network says of its two nodes, one row each: `[2 edges, 2]`.
    pub(super) fn outputs(&self, batch: &Batch, pose: &Tensor) -> Result<Tensor> {
        let d = self.width;
        if batch.rows.is_empty() {
            return Ok(Tensor::zeros((0, POSE), pose.dtype(), pose.device())?);
        }
        // what relations read: geometry and pose of each node, time of each graph
        let table = Tensor::cat(
            &[
                self.encode_geometry(&batch.geometry)?,
                self.encode_pose(pose)?,
                self.encode_time(&batch.times)?,
            ],
            0,
        )?; // (2 nodes + graphs, d)
        let mut outputs = Vec::new();
        for (relation, rows) in self.relations.iter().zip(&batch.rows) {
            let inputs = ops::embedding(&table, rows)?.reshape((rows.elem_count() / 5, 5 * d))?;
            outputs.push(relation.forward_activation(&inputs, Some(Activation::Silu))?);
        }
        let outputs = Tensor::cat(&outputs, 0)?.reshape((batch.targets.elem_count(), d))?;
        self.decode(&outputs)
    }
}

/// cat(sin(t f), cos(t f)) with f_i = 10000^(−i / (d/2 − 1)): `[steps, d]`.
fn sinusoidal(steps: &[u32], width: usize) -> Result<Tensor> {
    let half = width / 2;
    let frequency = |i: usize| (-(10_000f64.ln()) * i as f64 / (half as f64 - 1.0)).exp();
    let mut values = Vec::with_capacity(steps.len() * width);
    for &t in steps {
        let angles: Vec<f64> = (0..half).map(|i| f64::from(t) * frequency(i)).collect();
        values.extend(angles.iter().map(|a| a.sin() as f32));
        values.extend(angles.iter().map(|a| a.cos() as f32));
    }
    Ok(Tensor::from_vec(values, (steps.len(), width), &Device::Cpu)?)
}

/// x · tanh(softplus(x)) = x · n / (n + 2) with n = eˣ (eˣ + 2); above 20 the factor is 1 in f32.
fn mish(x: &Tensor) -> Result<Tensor> {
    let e = x.clamp(-80f32, 20f32)?.exp()?;
    let n = (&e * (&e + 2.0)?)?;
    Ok((x * (&n / (&n + 2.0)?)?)?)
}

/// Graphs of one pass, edges sorted by relation. Node 0 of each graph is the frame.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `[nodes, 2]`
    geometry: Tensor,
    /// Diffusion step of each graph.
    times: Vec<u32>,
    /// Of each relation, five rows of the table of [`Denoiser::forward`] per edge: geometry of both
    /// nodes, pose of both, time. Empty when the batch has no node.
    rows: Vec<Tensor>,
    /// Node of each half of an edge's output: `[2 edges]`.
    pub(super) targets: Tensor,
    /// 1 for each half, 0 where the edge is none of a graph's own: `[2 edges, 1]`.
    pub(super) real: Tensor,
    /// Graph of each edge.
    pub(super) graph_of_edge: Vec<u32>,
    /// 1 for nodes whose pose is sought, 0 for masked ones: `[nodes, 1]`.
    pub(super) free: Tensor,
    /// 1/√count of each node, 0 for masked ones: `[nodes, 1]`.
    scale: Tensor,
    nodes: usize,
}

/// The edges of a problem as the networks see them: relation, first and second node (frame = 0,
/// object i = i + 1). Relations of ours are represented by their nearest network.
pub fn network_edges(problem: &Problem) -> Vec<(usize, u32, u32)> {
    problem
        .edges
        .iter()
        .filter_map(|edge| {
            let k = edge.relation.network()?.index();
            Some((k, edge.a as u32 + 1, edge.b.map_or(0, |b| b as u32 + 1)))
        })
        .collect()
}

/// Geometry of the nodes: the frame, then the objects' sides over the frame's.
pub fn node_geometry(problem: &Problem) -> Vec<f32> {
    let frame = problem.frame;
    let mut values = vec![1.0, 1.0];
    for [w, h] in &problem.sizes {
        values.extend([(w / frame.width) as f32, (h / frame.height) as f32]);
    }
    values
}

impl Batch {
    /// Several graphs, each as geometry rows, masked flags and edges over its own nodes.
    pub fn new(graphs: &[GraphRows<'_>], times: Vec<u32>) -> Result<Self> {
        let mut geometry = Vec::new();
        let mut counts: Vec<u32> = Vec::new();
        let mut masked = Vec::new();
        let mut sorted: Vec<(usize, u32, u32, u32)> = Vec::new();
        for (graph, rows) in graphs.iter().enumerate() {
            let offset = masked.len() as u32;
            geometry.extend_from_slice(rows.geometry);
            masked.extend_from_slice(rows.masked);
            counts.resize(masked.len(), 0);
            for &(k, i, j) in rows.edges {
                let (i, j) = (offset + i, offset + j);
                counts[i as usize] += 1;
                counts[j as usize] += 1;
                sorted.push((k, i, j, graph as u32));
            }
        }
        // A relation that no graph has gets an edge of the first frame with itself. Its result is
        // multiplied by 0, and every network keeps a gradient.
        let absent: Vec<usize> = (0..Relation::LEARNED)
            .filter(|&k| !masked.is_empty() && sorted.iter().all(|edge| edge.0 != k))
            .collect();
        sorted.extend(absent.iter().map(|&k| (k, 0, 0, 0)));
        sorted.sort_by_key(|edge| edge.0);
        let real = sorted.iter().flat_map(|edge| {
            let real = if absent.contains(&edge.0) { 0f32 } else { 1.0 };
            [real, real]
        });
        let free = masked.iter().map(|&masked| if masked { 0f32 } else { 1.0 });
        let scale: Vec<f32> = counts
            .iter()
            .zip(&masked)
            .map(
                |(&count, &masked)| {
                    if masked || count == 0 { 0.0 } else { 1.0 / (count as f32).sqrt() }
                },
            )
            .collect();
        let nodes = masked.len();
        let count = nodes as u32;
        let rows = sorted.chunk_by(|a, b| a.0 == b.0).map(|edges| {
            let of_edge = |&(_, i, j, graph): &(usize, u32, u32, u32)| {
                [i, j, count + i, count + j, 2 * count + graph]
            };
            Tensor::from_vec(
                edges.iter().flat_map(of_edge).collect::<Vec<u32>>(),
                5 * edges.len(),
                &Device::Cpu,
            )
        });
        let targets: Vec<u32> = sorted.iter().flat_map(|edge| [edge.1, edge.2]).collect();
        Ok(Self {
            geometry: Tensor::from_vec(geometry, (nodes, GEOMETRY), &Device::Cpu)?,
            times,
            rows: rows.collect::<candle_core::Result<_>>()?,
            targets: Tensor::from_vec(targets, 2 * sorted.len(), &Device::Cpu)?,
            real: Tensor::from_vec(real.collect(), (2 * sorted.len(), 1), &Device::Cpu)?,
            graph_of_edge: sorted.iter().map(|edge| edge.3).collect(),
            free: Tensor::from_vec(free.collect(), (nodes, 1), &Device::Cpu)?,
            scale: Tensor::from_vec(scale, (nodes, 1), &Device::Cpu)?,
            nodes,
        })
    }

    /// Number of graphs.
    pub fn graphs(&self) -> usize {
        self.times.len()
    }

    /// Puts all graphs at diffusion step `t`.
    pub(super) fn set_time(&mut self, t: usize) {
        self.times.fill(t as u32);
    }

    /// Number of nodes of all graphs.
    pub fn nodes(&self) -> usize {
        self.nodes
    }
}

/// One graph of a [`Batch`].
#[derive(Debug, Clone, Copy)]
pub struct GraphRows<'a> {
    /// Two values per node.
    pub geometry: &'a [f32],
    /// Whether the node's pose is given; one per node, true for the frame.
    pub masked: &'a [bool],
    /// (relation, first node, second node).
    pub edges: &'a [(usize, u32, u32)],
}
