//! What decoding keeps between levels, for both architectures.

use candle_core::{Device, Tensor};
use common::Result;
use common::ops;

/// Read histories: keys and values that all beams of a row share, and the rows' lengths.
pub struct Prefix {
    /// Per block, `[rows, heads, longest, dim]` each.
    pub(super) read: Vec<(Tensor, Tensor)>,
    /// `[rows, 1, 1, longest]`: 0 for a token, −1e9 for filling.
    pub(super) mask: Tensor,
    /// Tokens read in each row.
    pub(super) lengths: Vec<usize>,
    /// Per block of an encoder–decoder, keys and values of the decoder's start token, `[rows, heads,
    /// 1, dim]`.
    pub(super) start: Vec<(Tensor, Tensor)>,
}

/// Keys and values of the codes that each beam has taken, per step and block, `[rows, heads, beams,
/// dim]`.
#[derive(Default, Clone)]
pub struct BeamCache {
    pub(super) steps: Vec<Vec<(Tensor, Tensor)>>,
}

impl BeamCache {
    /// Hands every beam the keys and values of the beam it continues: `parents` `[rows · beams]` are
    /// beams of the step before.
    pub(super) fn follow(&mut self, parents: &[u32], beams: usize) -> Result<()> {
        let Some((key, _)) = self.steps.first().and_then(|blocks| blocks.first()) else {
            return Ok(());
        };
        let (rows, heads, before, dim) = key.dims4()?;
        let flat: Vec<u32> = parents
            .iter()
            .enumerate()
            .map(|(at, &parent)| (at / beams * before) as u32 + parent)
            .collect();
        let flat = Tensor::new(&flat[..], &Device::Cpu)?;
        let pick = |t: &Tensor| -> Result<Tensor> {
            let t = t.transpose(1, 2)?.reshape((rows * before, heads * dim))?;
            let t = t.index_select(&flat, 0)?.reshape((rows, beams, heads, dim))?;
            Ok(t.transpose(1, 2)?.contiguous()?)
        };
        for (key, value) in self.steps.iter_mut().flatten() {
            (*key, *value) = (pick(key)?, pick(value)?);
        }
        Ok(())
    }
}

/// `[rows, beams, heads · dim]` → `[rows, heads, beams, dim]`.
pub(super) fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, beams, width) = x.dims3()?;
    Ok(x.reshape((rows, beams, heads, width / heads))?.transpose(1, 2)?.contiguous()?)
}

/// Attention of beams' queries `[rows, heads, beams, dim]` to shared keys and values `[rows, heads,
/// longest, dim]`, with `bias` added to their scores, and to their own ones `[rows, heads, beams,
/// dim]`, each with a bias that broadcasts to `[rows, heads, beams, 1]`. `[rows, beams, heads · dim]`
/// out.
pub(super) fn beam_attention(
    q: &Tensor,
    scale: f64,
    (keys, values): (&Tensor, &Tensor),
    bias: &Tensor,
    own: &[(&Tensor, &Tensor, Option<Tensor>)],
) -> Result<Tensor> {
    let (rows, heads, beams, dim) = q.dims4()?;
    let mut scores = vec![(q.matmul(&keys.t()?)? * scale)?.broadcast_add(bias)?];
    for (key, _, bias) in own {
        let score = ((q * *key)?.sum_keepdim(3)? * scale)?;
        scores.push(match bias {
            Some(bias) => score.broadcast_add(bias)?,
            None => score,
        });
    }
    let shares = ops::softmax(&Tensor::cat(&scores, 3)?, &ops::SoftmaxOptions::default())?;
    let longest = keys.dim(2)?;
    let mut mixed = shares.narrow(3, 0, longest)?.contiguous()?.matmul(values)?;
    for (at, (_, value, _)) in own.iter().enumerate() {
        mixed = (mixed + value.broadcast_mul(&shares.narrow(3, longest + at, 1)?)?)?;
    }
    Ok(mixed.transpose(1, 2)?.contiguous()?.reshape((rows, beams, heads * dim))?)
}
