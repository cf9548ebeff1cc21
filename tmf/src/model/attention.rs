//! Multi-head attention whose queries may come from another sequence than its keys and values.

use candle_core::Tensor;
use common::Result;
use common::nn::{Builder, Linear};
use common::ops::{self, AttentionOptions, SoftmaxOptions};

/// Projections `q_proj`, `k_proj`, `v_proj`, `o_proj` with biases, width to width.
#[derive(Debug, Clone)]
pub struct MultiHead {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: usize,
}

impl MultiHead {
    /// `heads` divides `width`.
    ///
    /// # Errors
    /// As [`Linear::new`].
    pub fn new(builder: &mut Builder, width: usize, heads: usize) -> Result<Self> {
        let mut linear = |name: &str| builder.within(name, |b| Linear::new(b, width, width, true));
        Ok(Self {
            query: linear("q_proj")?,
            key: linear("k_proj")?,
            value: linear("v_proj")?,
            output: linear("o_proj")?,
            heads,
        })
    }

    fn split(&self, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        let (batch, positions, width) = x.dims3()?;
        Ok(linear.forward(x)?.reshape((batch, positions, self.heads, width / self.heads))?)
    }

    /// MHA(Q, K, V) of Eqs. 2, 3 and 5: `queries` `[batch, n, width]`, `keys` `[batch, m, width]`,
    /// `key_mask` `[batch, m]` (non-zero = seen). A query that sees no key gives the output
    /// projection of zeros.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        key_mask: &Tensor,
        causal: bool,
    ) -> Result<Tensor> {
        let (q, k, v) = (
            self.split(&self.query, queries)?,
            self.split(&self.key, keys)?,
            self.split(&self.value, keys)?,
        );
        let options = AttentionOptions { scale: None, causal, key_mask: Some(key_mask.clone()) };
        let mixed = ops::attention(&q, &k, &v, &options)?;
        self.output.forward(&mixed.reshape(queries.shape())?)
    }

    /// Attention weights averaged over the heads, `[batch, n, m]`; for explanations.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn weights(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        key_mask: &Tensor,
        causal: bool,
    ) -> Result<Tensor> {
        let q = self.split(&self.query, queries)?.transpose(1, 2)?.contiguous()?;
        let k = self.split(&self.key, keys)?.permute((0, 2, 3, 1))?.contiguous()?;
        let scale = 1.0 / (q.dim(3)? as f64).sqrt();
        let options = SoftmaxOptions { scale, causal, key_mask: Some(key_mask.clone()) };
        Ok(ops::softmax(&q.matmul(&k)?, &options)?.mean(1)?)
    }
}
