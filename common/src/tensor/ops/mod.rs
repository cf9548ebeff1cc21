//! Fused differentiable operators on f32 tensors.
//!
//! candle's own softmax, norms, rope and attention cut gradients silently, and its elementwise
//! functions and reductions run up to 40 times slower than PyTorch's. Each operator here has a
//! hand-written backward pass that is tested against PyTorch, against central differences and
//! against the same function composed of candle's slow operators (`*_compose`). Those compositions
//! also serve devices other than the CPU and types other than f32.
//!
//! | operator | replaces |
//! |---|---|
//! | [`softmax`] | `candle_nn::ops::softmax_last_dim` with scale and masks |
//! | [`attention`] | two matmuls, a softmax and four transposes |
//! | [`layer_norm`], [`rms_norm`], [`group_norm`] | `candle_nn::{LayerNorm, RmsNorm, GroupNorm}` |
//! | [`Activation`], [`swiglu`], [`geglu`] | `gelu`, `gelu_erf`, `silu`, `relu` |
//! | [`linear`], [`linear_activation`], [`column_sum`], [`embedding`] | matmul + broadcast_add, `sum(0)`, `index_select` |
//! | [`cross_entropy`], [`linear_cross_entropy`], [`bce_with_logits`], [`kl_divergence`] | `candle_nn::loss` |
//! | [`nearest_rows`] | matmul, broadcasts and `argmin` of squared distances |
//! | [`add`] | the sum of a residual connection |
//! | [`rope`] | `candle_nn::rotary_emb` |
//! | [`gru`] | `candle_nn::rnn::GRU` step by step |
//! | [`affine_into`], [`sigmoid_in_place`] | scores on slices, without gradients |
//! | [`dropout`] | `candle_nn::ops::dropout`, which can't be seeded |
//! | [`conv2d`], [`conv_transpose2d`], [`upsample_nearest`], [`upsample_bilinear`], [`avg_pool2d`], [`max_pool2d`] | the same in candle |
//!
//! Inputs need not be contiguous (they are copied if they are not). NaN goes through. Results depend
//! neither on the instruction set nor, within a block's fixed order of sums, on the threads.

mod activation;
mod attention;
mod conv;
mod dropout;
mod fused;
pub(crate) mod kernel;
mod linear;
mod loss;
mod math;
mod nearest;
mod norm;
pub(crate) mod product;
mod recurrent;
mod resample;
mod rope;
mod scores;
mod softmax;
mod sum;

pub(crate) use fused::{Values, backward};

pub use activation::{Activation, geglu, geglu_compose, swiglu, swiglu_compose};
pub use attention::{AttentionOptions, attention, attention_compose, attention_packed};
pub use conv::{conv_transpose2d, conv_transpose2d_compose, conv2d, conv2d_compose};
pub use dropout::dropout;
pub use kernel::{Isa, force_isa, isa};
pub use linear::{
    WeightLayout, column_sum, embedding, linear, linear_activation, linear_compose, linear_layout,
};
pub use loss::{
    BceOptions, CrossEntropyOptions, IGNORE_INDEX, Reduction, bce_compose, bce_with_logits,
    cross_entropy, cross_entropy_compose, kl_compose, kl_divergence, linear_cross_entropy,
    mean_squared_error, weighted_sum,
};
pub use nearest::nearest_rows;
pub use norm::{
    add_per_channel, group_norm, group_norm_compose, layer_norm, layer_norm_compose, rms_norm,
    rms_norm_compose,
};
pub use recurrent::{gru, gru_compose};
pub use resample::{
    Pool, avg_pool2d, avg_pool2d_compose, max_pool2d, max_pool2d_compose, upsample_bilinear,
    upsample_bilinear_compose, upsample_nearest, upsample_nearest_compose,
};
pub use rope::{RopeStyle, RopeTable, rope, rope_compose};
pub use scores::{affine_into, sigmoid_in_place};
pub use softmax::{SoftmaxOptions, softmax, softmax_compose};
pub use sum::add;
