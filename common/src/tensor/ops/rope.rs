//! Rotary position embedding ([Su et al. 2021](https://arxiv.org/abs/2104.09864)).

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::fused::{fusable, fused};
use super::kernel::{map_rows, simd};

/// Which two of a head's values are turned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(i, i + d/2)`: Llama, Qwen, Gemma.
    Half,
    /// `(2i, 2i + 1)`: GPT-J, the original paper.
    Interleaved,
}

/// Cosines and sines of the angles `position · theta^(-2i/d)`.
#[derive(Debug, Clone)]
pub struct RopeTable {
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    /// Rows of positions: 1 (shared by the batch) or the batch.
    rows: usize,
    positions: usize,
    half: usize,
}

impl RopeTable {
    /// Angles for `positions[row][t]`, one row per sequence or one row for all; `head_dim` even.
    pub fn new(theta: f64, head_dim: usize, positions: &[Vec<u32>]) -> Result<Self> {
        let frequencies: Vec<f32> = (0..head_dim / 2)
            .map(|i| (1.0 / theta.powf((2 * i) as f64 / head_dim as f64)) as f32)
            .collect();
        Self::with_frequencies(&frequencies, positions)
    }

    /// Like [`RopeTable::new`] with given frequencies (scaled variants such as Llama 3's).
    pub fn with_frequencies(frequencies: &[f32], positions: &[Vec<u32>]) -> Result<Self> {
        let length = positions.first().map_or(0, Vec::len);
        if positions.iter().any(|row| row.len() != length) {
            bail!("rope: rows of positions differ in length; pad them to one length");
        }
        // f32 angles, as transformers computes them
        let angles: Vec<f32> = positions
            .iter()
            .flatten()
            .flat_map(|&position| frequencies.iter().map(move |f| position as f32 * f))
            .collect();
        Ok(Self {
            cos: angles.iter().map(|a| a.cos()).collect(),
            sin: angles.iter().map(|a| a.sin()).collect(),
            rows: positions.len(),
            positions: length,
            half: frequencies.len(),
        })
    }
}

/// Turns `x` by the table's angles: `[batch, heads, positions, head_dim]`, or with
/// `positions_first` `[batch, positions, heads, head_dim]`, as a projection leaves it.
pub fn rope(
    x: &Tensor,
    table: &RopeTable,
    style: RopeStyle,
    positions_first: bool,
) -> Result<Tensor> {
    let (batch, a, b, dim) = x.dims4()?;
    let (positions, heads) = if positions_first { (a, b) } else { (b, a) };
    if dim != 2 * table.half
        || positions != table.positions
        || (table.rows != 1 && table.rows != batch)
    {
        bail!(
            "rope: {:?} with a table of {} × {} positions and {} values a head",
            x.dims(),
            table.rows,
            table.positions,
            2 * table.half
        );
    }
    if !fusable(&[x]) {
        return rope_compose(x, table, style, positions_first);
    }
    let turn = {
        let table = table.clone();
        move |x: &[f32], sign: f32| {
            map_rows(batch * heads * positions, dim * 2, dim, |range: Range<usize>, out| {
                for (row, out) in range.zip(out.chunks_exact_mut(dim)) {
                    let position =
                        if positions_first { row / heads % positions } else { row % positions };
                    let sequence =
                        if table.rows == 1 { 0 } else { row / (heads * positions).max(1) };
                    let at = (sequence * positions + position) * table.half;
                    let cos = &table.cos[at..][..table.half];
                    let sin = &table.sin[at..][..table.half];
                    let x = &x[row * dim..][..dim];
                    match style {
                        RopeStyle::Half => turn_half(x, cos, sin, sign, out),
                        RopeStyle::Interleaved => turn_pairs(x, cos, sin, sign, out),
                    }
                }
            })
        }
    };
    let back = turn.clone();
    fused("rope", [x], x.shape(), move |[x]| turn(x, 1.0), move |_, _, g, _| [Some(back(g, -1.0))])
}

simd! {
    fn turn_half(x: &[f32], cos: &[f32], sin: &[f32], sign: f32, out: &mut [f32]) {
        let (x0, x1) = x.split_at(cos.len());
        let (out0, out1) = out.split_at_mut(cos.len());
        let angles = cos.iter().zip(sin);
        for (((out0, out1), (&x0, &x1)), (&c, &s)) in
            out0.iter_mut().zip(out1).zip(x0.iter().zip(x1)).zip(angles)
        {
            let s = sign * s;
            *out0 = x0 * c - x1 * s;
            *out1 = x1 * c + x0 * s;
        }
    }
}

simd! {
    fn turn_pairs(x: &[f32], cos: &[f32], sin: &[f32], sign: f32, out: &mut [f32]) {
        let pairs = x.chunks_exact(2).zip(out.chunks_exact_mut(2));
        for ((x, out), (&c, &s)) in pairs.zip(cos.iter().zip(sin)) {
            let s = sign * s;
            out[0] = x[0] * c - x[1] * s;
            out[1] = x[1] * c + x[0] * s;
        }
    }
}

/// [`rope`] from candle's operators.
pub fn rope_compose(
    x: &Tensor,
    table: &RopeTable,
    style: RopeStyle,
    positions_first: bool,
) -> Result<Tensor> {
    let half = table.half;
    let shape = if positions_first {
        (table.rows, table.positions, 1, half)
    } else {
        (table.rows, 1, table.positions, half)
    };
    let angle = |values: &[f32]| Tensor::from_slice(values, shape, x.device())?.to_dtype(x.dtype());
    let (cos, sin) = (angle(&table.cos)?, angle(&table.sin)?);
    let (x0, x1) = match style {
        RopeStyle::Half => (x.narrow(3, 0, half)?, x.narrow(3, half, half)?),
        RopeStyle::Interleaved => {
            let (b, a, c, d) = x.dims4()?;
            let pairs = x.reshape((b, a, c, d / 2, 2))?;
            (pairs.narrow(4, 0, 1)?.squeeze(4)?, pairs.narrow(4, 1, 1)?.squeeze(4)?)
        }
    };
    let y0 = (x0.broadcast_mul(&cos)? - x1.broadcast_mul(&sin)?)?;
    let y1 = (x1.broadcast_mul(&cos)? + x0.broadcast_mul(&sin)?)?;
    match style {
        RopeStyle::Half => Tensor::cat(&[y0, y1], 3),
        RopeStyle::Interleaved => Tensor::stack(&[y0, y1], 4)?.flatten(3, 4),
    }
}
