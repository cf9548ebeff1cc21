//! Weight matrices in the formats that the engine computes with.

use super::kernels::{self, Activations, BLOCK, Isa, Packed, PackedKind, Panels};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

/// Rows of weights that are unpacked to f32 at a time: with up to 1,536 inputs they stay in the
/// second-level cache.
const PANEL: usize = 128;

/// A weight matrix of `rows` outputs × `cols` inputs.
#[derive(Debug, Clone)]
pub(super) struct Matrix {
    rows: usize,
    cols: usize,
    storage: Storage,
}

/// Row-major floats, or packed blocks.
#[derive(Debug, Clone)]
pub(super) enum Storage {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Packed(Packed),
}

/// What a product runs on besides its operands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine {
    pub(super) isa: Isa,
    pub(super) threads: usize,
}

impl Machine {
    /// This machine with the threads of the current rayon pool.
    pub(super) fn current() -> Self {
        Self { isa: Isa::detect(), threads: rayon::current_num_threads() }
    }
}

impl Matrix {
    /// `storage` holds `rows` × `cols` weights.
    pub(super) fn new(rows: usize, cols: usize, storage: Storage) -> Self {
        Self { rows, cols, storage }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Memory of the weights.
    pub(super) fn bytes(&self) -> usize {
        match &self.storage {
            Storage::F32(values) => values.len() * 4,
            Storage::F16(values) => values.len() * 2,
            Storage::Packed(packed) => packed.bytes(),
        }
    }

    /// Row `row` as f32.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let range = row * self.cols..(row + 1) * self.cols;
        match &self.storage {
            Storage::F32(values) => out.copy_from_slice(&values[range]),
            Storage::F16(values) => values[range].convert_to_f32_slice(out),
            Storage::Packed(packed) => packed.row(row, out),
        }
    }

    /// `out[t] = W x[t]` in f32 for `count` rows of `x`, `stride` apart; `out` is row-major.
    pub(super) fn product(
        &self,
        machine: Machine,
        x: &[f32],
        stride: usize,
        count: usize,
        out: &mut [f32],
    ) {
        let Machine { isa, threads } = machine;
        match &self.storage {
            Storage::F32(weights) if count == 1 => {
                let x = &x[..self.cols];
                let part = self.rows.div_ceil(threads).next_multiple_of(16);
                out[..self.rows].par_chunks_mut(part).enumerate().for_each(|(index, out)| {
                    let rows = weights[index * part * self.cols..].chunks_exact(self.cols);
                    for (out, row) in out.iter_mut().zip(rows) {
                        *out = kernels::dot(isa, row, x);
                    }
                });
            }
            Storage::F32(weights) => {
                self.panels(machine, x, stride, count, out, &Panels::Dense(weights));
            }
            Storage::F16(weights) => {
                let unpack = |first: usize, panel: &mut [f32]| {
                    let mut row = vec![0.0; self.cols];
                    for r in 0..PANEL.min(self.rows - first) {
                        let range = (first + r) * self.cols..(first + r + 1) * self.cols;
                        weights[range].convert_to_f32_slice(&mut row);
                        for (k, &value) in row.iter().enumerate() {
                            panel[k * PANEL + r] = value;
                        }
                    }
                };
                let weights = Panels::Unpacked { depth: self.cols, unpack: &unpack };
                self.panels(machine, x, stride, count, out, &weights);
            }
            Storage::Packed(packed) => {
                let unpack =
                    |first: usize, panel: &mut [f32]| packed.unpack(isa, first, PANEL, panel);
                let depth = self.cols.next_multiple_of(BLOCK);
                let weights = Panels::Unpacked { depth, unpack: &unpack };
                self.panels(machine, x, stride, count, out, &weights);
            }
        }
    }

    fn panels(
        &self,
        machine: Machine,
        x: &[f32],
        stride: usize,
        count: usize,
        out: &mut [f32],
        weights: &Panels<'_>,
    ) {
        let shape = (count, self.cols, self.rows);
        kernels::matmul_panels(shape, x, stride, out, self.rows, PANEL, weights, machine.threads);
    }

    /// [`Matrix::product`] with activations rounded to int8 by blocks, for packed weights;
    /// others compute in f32.
    pub(super) fn product_int8(
        &self,
        machine: Machine,
        x: &[f32],
        stride: usize,
        count: usize,
        rounded: &mut Activations,
        out: &mut [f32],
    ) {
        match &self.storage {
            Storage::Packed(packed) => {
                rounded.set(machine.isa, x, self.cols, stride, count);
                packed.product(machine.isa, rounded, out, self.rows, machine.threads);
            }
            _ => self.product(machine, x, stride, count, out),
        }
    }
}

/// Quantises f32 rows to [`PackedKind::Q8`].
pub(super) fn pack_rows(values: &[f32], cols: usize, out: &mut Packed, first: usize) {
    for (row, values) in values.chunks_exact(cols).enumerate() {
        out.set_row(first + row, values);
    }
}

/// The packed kind that holds all of `kinds`: their own where they agree.
pub(super) fn common_kind(kinds: impl IntoIterator<Item = PackedKind>) -> PackedKind {
    kinds
        .into_iter()
        .reduce(|a, b| if a == b { a } else { PackedKind::Q8 })
        .unwrap_or(PackedKind::Q8)
}
