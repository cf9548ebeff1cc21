//! Dropout with a named random stream.

use candle_core::{Result, Tensor, bail};
use rand::RngCore;

use super::fused::fused;
use super::kernel::map_rows;
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
    let kept: Vec<bool> =
        words.chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]]) >= least).collect();
    let mask = std::sync::Arc::new(kept);
    let apply = move |x: &[f32], mask: &[bool]| {
        map_rows(x.len(), 1, 1, |at, out| {
            for ((out, &x), &kept) in out.iter_mut().zip(&x[at.clone()]).zip(&mask[at]) {
                *out = if kept { x * factor } else { 0.0 };
            }
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
