//! Which weights belong to which module, and how forget and retain gradients become one update
//! (Eq. 7 and 8).

use candle_core::Tensor;
use common::lm::{Architecture, LmConfig};
use common::nn::Parameters;
use common::optim::Gradients;
use common::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Group, Grouping, Network};

/// Guards the division of a projection by a vanishing retain gradient.
const TINY: f64 = 1e-12;

/// A set of weights with the same owners: a head's own slices, an MLP, or what several heads share
/// (grouped keys and values; the shared half of a low-rank adapter).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Modules that own it, ascending.
    pub owners: Vec<usize>,
}

/// How a parameter divides into blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Layout {
    /// Belongs to no module: embeddings, norms, output layer, output bias of attention.
    Outside,
    /// One block.
    Whole(usize),
    /// A block per row.
    Rows(Vec<usize>),
    /// A block per column.
    Columns(Vec<usize>),
}

/// The blocks of all trainable parameters.
#[derive(Debug, Clone)]
pub struct Blocks {
    /// Owners of each block.
    pub blocks: Vec<Block>,
    layouts: Vec<Layout>,
}

impl Blocks {
    /// Divides `parameters` (of a decoder of this shape, or its low-rank adapters) among modules.
    ///
    /// # Errors
    /// [`Error::Bug`] on a parameter name inside a layer that is not known.
    pub fn new(config: &LmConfig, network: &Network, parameters: &Parameters) -> Result<Self> {
        let mut made = Self { blocks: Vec::new(), layouts: Vec::new() };
        for (name, var) in parameters.iter() {
            let layout = made.layout(config, network, name, var.dims())?;
            made.layouts.push(layout);
        }
        Ok(made)
    }

    fn block(&mut self, mut owners: Vec<usize>) -> usize {
        owners.sort_unstable();
        owners.dedup();
        let known = self.blocks.iter().position(|block| block.owners == owners);
        known.unwrap_or_else(|| {
            self.blocks.push(Block { owners });
            self.blocks.len() - 1
        })
    }

    fn layout(
        &mut self,
        config: &LmConfig,
        network: &Network,
        name: &str,
        dims: &[usize],
    ) -> Result<Layout> {
        let inside = [".h.", ".layers."].iter().find_map(|part| name.split_once(part));
        let Some((_, rest)) = inside else { return Ok(Layout::Outside) };
        let unknown = || Error::Bug(format!("parameter {name} belongs to no known layer"));
        let (layer, rest) = rest.split_once('.').ok_or_else(unknown)?;
        let layer: usize = layer.parse().map_err(|_| unknown())?;
        let module = |wanted: &str| {
            let found = (0..network.modules()).find(|&m| network.module_name(m) == wanted);
            found.ok_or_else(unknown)
        };
        if rest.starts_with("ln_") || rest.contains("layernorm") {
            return Ok(Layout::Outside);
        }
        if rest.starts_with("mlp.") {
            let owner = module(&format!("m{layer}"))?;
            return Ok(Layout::Whole(self.block(vec![owner])));
        }
        let (heads, kv, dim) =
            (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let first = module(&format!("a{layer}.h0"))?;
        let query: Vec<usize> = (0..heads).map(|head| self.block(vec![first + head])).collect();
        let key: Vec<usize> = (0..kv)
            .map(|group| {
                let size = heads / kv;
                self.block((0..size).map(|i| first + group * size + i).collect())
            })
            .collect();
        let everyone = self.block((0..heads).map(|head| first + head).collect());
        let spread = |blocks: &[usize]| -> Vec<usize> {
            blocks.iter().flat_map(|&block| std::iter::repeat_n(block, dim)).collect()
        };
        let packed = || [spread(&query), spread(&key), spread(&key)].concat();
        let outputs = |part: &str| match part {
            "c_attn" => Some(packed()),
            "q_proj" => Some(spread(&query)),
            "k_proj" | "v_proj" => Some(spread(&key)),
            _ => None,
        };
        let mut parts = rest.split('.').skip(1);
        let (linear, kind) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let output = matches!(linear, "c_proj" | "o_proj");
        let conv = config.architecture == Architecture::Gpt2;
        Ok(match (output, kind) {
            (true, "bias") => Layout::Outside,
            // inputs are heads: rows of GPT-2's [in, out], columns of [out, in]
            (true, "weight") if conv => Layout::Rows(spread(&query)),
            (true, "weight" | "lora_A") => Layout::Columns(spread(&query)),
            (true, "lora_B") | (false, "lora_A") => Layout::Whole(everyone),
            (false, "weight") if conv => Layout::Columns(outputs(linear).ok_or_else(unknown)?),
            (false, "bias" | "weight" | "lora_B") => {
                let rows = outputs(linear).ok_or_else(unknown)?;
                if rows.len() != dims[0] {
                    return Err(unknown());
                }
                Layout::Rows(rows)
            }
            _ => return Err(unknown()),
        })
    }

    /// Group of every block: its owners', see [`Group::of_owners`].
    pub fn groups(&self, grouping: &Grouping) -> Vec<Group> {
        let of = |block: &Block| Group::of_owners(block.owners.iter().map(|&m| grouping.groups[m]));
        self.blocks.iter().map(of).collect()
    }

    /// Calls `visit(parameter, block, range)` for every run of values with one block; `None` is
    /// outside.
    fn visit(
        &self,
        sizes: &[usize],
        mut visit: impl FnMut(usize, Option<usize>, std::ops::Range<usize>),
    ) {
        for (at, (layout, &size)) in self.layouts.iter().zip(sizes).enumerate() {
            match layout {
                Layout::Outside => visit(at, None, 0..size),
                Layout::Whole(block) => visit(at, Some(*block), 0..size),
                Layout::Rows(rows) => {
                    let width = size / rows.len();
                    for (row, &block) in rows.iter().enumerate() {
                        visit(at, Some(block), row * width..(row + 1) * width);
                    }
                }
                Layout::Columns(columns) => {
                    for row in 0..size / columns.len() {
                        let mut start = 0;
                        for run in columns.chunk_by(|a, b| a == b) {
                            let first = row * columns.len() + start;
                            visit(at, Some(run[0]), first..first + run.len());
                            start += run.len();
                        }
                    }
                }
            }
        }
    }

    /// Inner products per block: forget · forget, forget · retain, retain · retain.
    fn products(&self, forget: &[Vec<f32>], retain: &[Vec<f32>]) -> Vec<[f64; 3]> {
        let mut sums = vec![[0.0; 3]; self.blocks.len()];
        let sizes: Vec<usize> = forget.iter().map(Vec::len).collect();
        self.visit(&sizes, |at, block, range| {
            let Some(block) = block else { return };
            let part = dot3(&forget[at][range.clone()], &retain[at][range]);
            for (sum, part) in sums[block].iter_mut().zip(part) {
                *sum += part;
            }
        });
        sums
    }

    /// Cosine of forget and retain gradient per block; NaN where one vanishes.
    ///
    /// # Errors
    /// Those of reading the gradients.
    pub fn cosines(&self, forget: &Gradients, retain: &Gradients) -> Result<Vec<f64>> {
        let products = self.products(&flat(forget)?, &flat(retain)?);
        Ok(products.iter().map(|[ff, fr, rr]| fr / (ff * rr).sqrt()).collect())
    }

    /// Squared distance per block between two states of the parameters, and that of the rest.
    ///
    /// # Errors
    /// Those of reading the tensors.
    pub fn moved(&self, before: &[Tensor], after: &[Tensor]) -> Result<(Vec<f64>, f64)> {
        let values = |t: &Tensor| Ok::<_, Error>(t.flatten_all()?.to_vec1::<f32>()?);
        let before = before.iter().map(values).collect::<Result<Vec<_>>>()?;
        let after = after.iter().map(values).collect::<Result<Vec<_>>>()?;
        let sizes: Vec<usize> = before.iter().map(Vec::len).collect();
        let (mut inside, mut outside) = (vec![0.0; self.blocks.len()], 0.0);
        self.visit(&sizes, |at, block, range| {
            let square: f64 = before[at][range.clone()]
                .iter()
                .zip(&after[at][range])
                .map(|(a, b)| f64::from(a - b).powi(2))
                .sum();
            match block {
                Some(block) => inside[block] += square,
                None => outside += square,
            }
        });
        Ok((inside, outside))
    }
}

fn dot3(forget: &[f32], retain: &[f32]) -> [f64; 3] {
    let mut sums = [0.0; 3];
    for (&f, &r) in forget.iter().zip(retain) {
        let (f, r) = (f64::from(f), f64::from(r));
        sums[0] += f * f;
        sums[1] += f * r;
        sums[2] += r * r;
    }
    sums
}

fn flat(gradients: &Gradients) -> Result<Vec<Vec<f32>>> {
    let values = |tensor: &Tensor| Ok(tensor.flatten_all()?.to_vec1::<f32>()?);
    gradients.tensors().iter().map(values).collect()
}

/// How two gradients become one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Rule {
    /// The paper's: by group (Eq. 7 and 8). Weights outside all modules stay.
    Grouped,
    /// `w g_f + (1 − w) g_r` on all parameters.
    Weighted,
    /// `g_f` on all parameters.
    ForgetOnly,
    /// `g_r` on all parameters: further training on what stays.
    RetainOnly,
    /// Both gradients of all parameters projected off each other where they conflict, then added
    /// ([Yu et al. 2020](https://arxiv.org/abs/2001.06782)).
    PcGrad,
}

/// Eq. 8's projection of a forget gradient off the retain gradient: the factor c of
/// `g_f ← g_f − c g_r`, 0 without a conflict.
pub fn projection_factor(forget_retain: f64, retain_retain: f64) -> f64 {
    if forget_retain < 0.0 { forget_retain / (retain_retain + TINY) } else { 0.0 }
}

/// The gradient to step along. `grouping` is used by [`Rule::Grouped`] only; with `only`, blocks of
/// other groups stay (block-wise order).
///
/// # Errors
/// Those of reading the gradients; [`Error::Bug`] when they belong to other parameters.
pub fn combine(
    rule: &Rule,
    blocks: &Blocks,
    grouping: Option<&Grouping>,
    only: Option<Group>,
    weight: f64,
    [forget, retain]: [&Gradients; 2],
    parameters: &Parameters,
) -> Result<Gradients> {
    let (f, r) = (flat(forget)?, flat(retain)?);
    let sizes: Vec<usize> = f.iter().map(Vec::len).collect();
    let mut out: Vec<Vec<f32>> = sizes.iter().map(|&size| vec![0.0; size]).collect();
    let mix = |out: &mut [f32], f: &[f32], r: &[f32], [a, b]: [f64; 2]| {
        for ((out, &f), &r) in out.iter_mut().zip(f).zip(r) {
            *out = (a * f64::from(f) + b * f64::from(r)) as f32;
        }
    };
    match rule {
        Rule::Grouped => {
            let grouping =
                grouping.ok_or_else(|| Error::Bug("a grouped update without groups".into()))?;
            let groups = blocks.groups(grouping);
            let factors: Vec<[f64; 2]> = groups
                .iter()
                .zip(blocks.products(&f, &r))
                .map(|(&group, [_, fr, rr])| match group {
                    group if only.is_some_and(|only| only != group) => [0.0, 0.0],
                    Group::Forget => [1.0, 0.0],
                    Group::Retain => [0.0, 1.0],
                    Group::Shared => [weight, (1.0 - weight) - weight * projection_factor(fr, rr)],
                    Group::Frozen => [0.0, 0.0],
                })
                .collect();
            blocks.visit(&sizes, |at, block, range| {
                if let Some(block) = block {
                    let (f, r) = (&f[at][range.clone()], &r[at][range.clone()]);
                    mix(&mut out[at][range], f, r, factors[block]);
                }
            });
        }
        Rule::Weighted | Rule::ForgetOnly | Rule::RetainOnly | Rule::PcGrad => {
            let mut sums = [0.0; 3];
            for (f, r) in f.iter().zip(&r) {
                for (sum, part) in sums.iter_mut().zip(dot3(f, r)) {
                    *sum += part;
                }
            }
            let [ff, fr, rr] = sums;
            let factors = match rule {
                Rule::ForgetOnly => [1.0, 0.0],
                Rule::RetainOnly => [0.0, 1.0],
                Rule::PcGrad => [1.0 - projection_factor(fr, ff), 1.0 - projection_factor(fr, rr)],
                _ => [weight, 1.0 - weight],
            };
            for ((out, f), r) in out.iter_mut().zip(&f).zip(&r) {
                mix(out, f, r, factors);
            }
        }
    }
    let tensors = out
        .into_iter()
        .zip(parameters.iter())
        .map(|(values, (_, var))| Ok(Tensor::from_vec(values, var.shape(), var.device())?))
        .collect::<Result<_>>()?;
    Gradients::from_tensors(tensors, parameters)
}
