//! Dropout with a named random stream.

use candle_core::{Result, Tensor, bail};
use rand::RngCore;

use super::fused::fused;
use super::kernel::{map_rows, simd};
use crate::rng::Stream;

/// Zeroes each value with `probability` and multiplies the others by `1 / (1 - probability)`, so the
/// expectation stays ([Srivastava et al. 2014](https://jmlr.org/papers/v15/srivastava14a.html)).
/// `x` is f32 on the CPU; `probability` in `[0, 1)`, kept to 1/65,536.
pub fn dropout(x: &Tensor, probability: f64, stream: &mut Stream) -> Result<Tensor> {
    if !(0.0..1.0).contains(&probability) {
        bail!("dropout: probability {probability}, expected a number in [0, 1)");
    }
    let least = (probability * 65_536.0).round().min(65_535.0) as u16;
    if least == 0 {
        return Ok(x.clone());
    }
    let mut words = vec![0u8; 2 * x.elem_count()];
    stream.rng().fill_bytes(&mut words);
    let factor = (65_536.0 / (65_536.0 - f64::from(least))) as f32;
    let mask = std::sync::Arc::new(words);
    let apply = move |x: &[f32], mask: &[u8]| {
        map_rows(x.len(), 1, 1, |at, out| {
            keep(&x[at.clone()], &mask[2 * at.start..2 * at.end], least, factor, out);
        })
    };
    let same = mask.clone();
    fused(
        "dropout",
        [x],
        x.shape(),
        move |[x]| apply(x, &mask),
        move |_, _, g, _| [Some(apply(g, &same))],
    )
}

simd! {
    /// `x * factor` where the two bytes of a value, as a little-endian number, reach `least`; else 0.
    fn keep(x: &[f32], words: &[u8], least: u16, factor: f32, out: &mut [f32]) {
        let (words, _) = words.as_chunks::<2>();
        for ((out, &x), &word) in out.iter_mut().zip(x).zip(words) {
            *out = if u16::from_le_bytes(word) >= least { x * factor } else { 0.0 };
        }
    }
}
