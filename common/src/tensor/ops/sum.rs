//! Sums of two tensors, as residual connections and position tables take them.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};

use super::fused::{fusable, fused};
use super::kernel::{self, map_rows, simd};

/// `a + b`, where `b` has the shape of `a` or of its last axes (axes of 1 may go before): then it is
/// added to each part of `a`. Like candle's sum, but the gradient goes on without a buffer of zeros
/// wherever fused operators follow each other.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let own = b.dims().iter().position(|&size| size != 1).unwrap_or(b.rank());
    if b.rank() > a.rank() || !(a.dims() == b.dims() || a.dims().ends_with(&b.dims()[own..])) {
        bail!("add: {:?} and {:?}; the second must have the last axes", a.dims(), b.dims());
    }
    if !fusable(&[a, b]) {
        return a.broadcast_add(b);
    }
    let size = b.elem_count();
    fused(
        "add",
        [a, b],
        a.shape(),
        |[a, b]| {
            if a.len() == b.len() {
                return map_rows(a.len(), 1, 1, |at: Range<usize>, out| {
                    sum(&a[at.clone()], &b[at], out)
                });
            }
            map_rows(a.len() / size.max(1), size, size, |rows, out| {
                for (row, out) in rows.zip(out.chunks_exact_mut(size.max(1))) {
                    sum(&a[row * size..][..size], b, out);
                }
            })
        },
        move |_, _, g, [wants_a, wants_b]| {
            let of_b = || match g.len() == size {
                true => g.to_vec(),
                false => {
                    let mut sums = vec![0f32; size];
                    g.chunks_exact(size.max(1)).for_each(|part| kernel::add(&mut sums, part));
                    sums
                }
            };
            [wants_a.then(|| g.to_vec()), wants_b.then(of_b)]
        },
    )
}

simd! {
    fn sum(a: &[f32], b: &[f32], out: &mut [f32]) {
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = a + b;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::rng::Seed;

    fn bits(x: &Tensor) -> Vec<u32> {
        let values = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn sums_and_gradients_are_those_of_candle() {
        let shapes: [&[usize]; 5] = [&[7, 5, 3], &[5, 3], &[1, 5, 3], &[3], &[1, 1, 3]];
        let normal = |name: &str, shape: &[usize]| {
            Seed::new(5).stream(name).normal_tensor(shape, 1.0).unwrap()
        };
        let a = Var::from_tensor(&normal("a", shapes[0])).unwrap();
        let weights = normal("weights", shapes[0]);
        for shape in shapes {
            let b = Var::from_tensor(&normal("b", shape)).unwrap();
            let (ours, theirs) = (add(&a, &b).unwrap(), a.broadcast_add(&b).unwrap());
            assert_eq!(bits(&ours), bits(&theirs), "{shape:?}");
            let gradients = |sum: Tensor| {
                let store = (sum * &weights).unwrap().sum_all().unwrap().backward().unwrap();
                [&a, &b].map(|x| {
                    let gradient = store.get(x).unwrap();
                    assert_eq!(gradient.dims(), x.dims());
                    bits(gradient)
                })
            };
            assert_eq!(gradients(ours), gradients(theirs), "{shape:?}");
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        let zeros = |shape: &[usize]| {
            Tensor::zeros(shape, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap()
        };
        for shape in [&[2][..], &[3, 1], &[2, 3, 4], &[1, 1, 1, 4]] {
            assert!(add(&zeros(&[2, 3, 4][1..]), &zeros(shape)).is_err(), "{shape:?}");
        }
        assert!(add(&zeros(&[0, 4]), &zeros(&[4])).unwrap().elem_count() == 0);
    }
}
