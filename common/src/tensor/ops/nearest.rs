//! Nearest rows of a table.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::fused::{Values, fusable};
use super::kernel::{filled, map_rows, simd};
use super::product::{Matrix, Start, Threads, gemm};

/// Index of the row of `table` `[entries, width]` at the smallest Euclidean distance from each row of
/// `x` `[rows, width]`: `[rows]`, `u32`. The first of equals; a distance of NaN is never the smallest
/// (index 0 if all are). No gradient goes through.
pub fn nearest_rows(x: &Tensor, table: &Tensor) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let (entries, table_width) = table.dims2()?;
    if table_width != width || entries == 0 {
        bail!("nearest_rows: rows of {width} and a table {:?}", table.dims());
    }
    if !fusable(&[x, table]) {
        return nearest_rows_compose(x, table);
    }
    let (x, table) = (x.contiguous()?, table.contiguous()?);
    let (x_values, table_values) = (Values::of(&x), Values::of(&table));
    let (x_values, table_values) = (x_values.get()?, table_values.get()?);
    // |x - c|² = |x|² + |c|² - 2 x·c, and |x|² is the same for all c
    let halves = map_rows(entries, width, 1, |range: Range<usize>, out| {
        for (entry, half) in range.zip(out) {
            let row = &table_values[entry * width..][..width];
            *half = 0.5 * row.iter().map(|value| value * value).sum::<f32>();
        }
    });
    let nearest = map_rows(rows, entries, 1, |range: Range<usize>, out| {
        let part = Matrix::new(&x_values[range.start * width..], range.len(), width);
        let entries_t = Matrix::new(table_values, entries, width).t();
        let products = filled(range.len() * entries, |products| {
            gemm(products, entries, part, entries_t, 1.0, Start::Zero, Threads::One);
        });
        for (products, nearest) in products.chunks_exact(entries).zip(out) {
            *nearest = f32::from_bits(first_smallest(&halves, products));
        }
    });
    Tensor::from_vec(nearest.into_iter().map(f32::to_bits).collect(), rows, x.device())
}

/// [`nearest_rows`] from candle's operators.
fn nearest_rows_compose(x: &Tensor, table: &Tensor) -> Result<Tensor> {
    let (x, table) = (x.detach(), table.detach());
    let products = (x.matmul(&table.t()?)? * 2.0)?;
    table.sqr()?.sum(1)?.broadcast_sub(&products)?.argmin(1)
}

simd! {
    /// Index of the first smallest `halves - products`.
    fn first_smallest(halves: &[f32], products: &[f32]) -> u32 {
        const LANES: usize = 16;
        let mut least = [f32::INFINITY; LANES];
        let mut at = [0u32; LANES];
        let pairs = halves.chunks_exact(LANES).zip(products.chunks_exact(LANES));
        for (block, (halves, products)) in pairs.enumerate() {
            for lane in 0..LANES {
                let distance = halves[lane] - products[lane];
                let closer = distance < least[lane];
                least[lane] = if closer { distance } else { least[lane] };
                at[lane] = if closer { (block * LANES + lane) as u32 } else { at[lane] };
            }
        }
        let mut best = (f32::INFINITY, 0);
        for (&distance, &index) in least.iter().zip(&at) {
            if distance < best.0 || (distance == best.0 && index < best.1) {
                best = (distance, index);
            }
        }
        let whole = halves.len() / LANES * LANES;
        for (index, (half, product)) in halves.iter().zip(products).enumerate().skip(whole) {
            if half - product < best.0 {
                best = (half - product, index as u32);
            }
        }
        best.1
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::rng::Seed;

    #[test]
    fn the_nearest_rows_are_those_of_the_slow_way() {
        for (rows, entries, width) in
            [(0, 3, 4), (1, 1, 1), (7, 15, 3), (100, 256, 32), (33, 70, 5)]
        {
            let normal = |name: &str, shape: (usize, usize)| {
                Seed::new(2).stream(name).normal_tensor(shape, 1.0).unwrap()
            };
            let (x, table) = (normal("x", (rows, width)), normal("table", (entries, width)));
            let found: Vec<u32> = nearest_rows(&x, &table).unwrap().to_vec1().unwrap();
            let (x, table): (Vec<Vec<f32>>, Vec<Vec<f32>>) =
                (x.to_vec2().unwrap(), table.to_vec2().unwrap());
            for (x, &found) in x.iter().zip(&found) {
                let distance = |row: &Vec<f32>| -> f64 {
                    row.iter().zip(x).map(|(a, b)| f64::from(a - b).powi(2)).sum()
                };
                let least = table.iter().map(distance).fold(f64::INFINITY, f64::min);
                assert!(distance(&table[found as usize]) <= least + 1e-5, "row {found}");
            }
        }
    }

    #[test]
    fn ties_and_nan_go_to_the_first() {
        let tensor =
            |values: &[f32]| Tensor::from_slice(values, (values.len(), 1), &Device::Cpu).unwrap();
        let mut table = vec![9.0; 40];
        (table[5], table[21], table[37]) = (1.0, 1.0, 1.0);
        table[0] = f32::NAN;
        let found = nearest_rows(&tensor(&[0.5, f32::NAN, 8.0]), &tensor(&table)).unwrap();
        assert_eq!(found.to_vec1::<u32>().unwrap(), [5, 0, 1]);
        assert!(nearest_rows(&tensor(&[1.0]), &tensor(&[])).is_err());
    }
}
