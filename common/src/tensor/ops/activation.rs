//! GELU (tanh, erf and CLIP's form), SiLU, SwiGLU and GEGLU.

use candle_core::{Result, Tensor};

use super::fused::{fusable, fused};
use super::kernel::{map_rows, simd};
use super::math::{erf_and_exp, exp, sigmoid};

/// An elementwise non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))`; transformers' `gelu_new`, torch's `tanh` form.
    GeluTanh,
    /// `x Φ(x)` with the error function; torch's default GELU.
    Gelu,
    /// `x / (1 + e^-1.702x)`: CLIP's approximation of GELU.
    QuickGelu,
    /// `x / (1 + e^-x)`.
    Silu,
    /// `max(x, 0)`; gradient 0 at 0.
    Relu,
}

/// √(2/π)
const GELU_SLOPE: f32 = 0.797_884_6;
const GELU_CUBE: f32 = 0.044_715;

/// √(1/2)
const HALF_ROOT: f32 = std::f32::consts::FRAC_1_SQRT_2;
/// 1/√(2π)
const NORMAL_PEAK: f32 = 0.398_942_3;

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    // (1 + tanh u) / 2 = sigmoid(2u)
    x * sigmoid(2.0 * GELU_SLOPE * (x + GELU_CUBE * x * x * x))
}

#[inline(always)]
fn gelu_tanh_slope(x: f32) -> f32 {
    let s = sigmoid(2.0 * GELU_SLOPE * (x + GELU_CUBE * x * x * x));
    // Beyond 1e18 the square would overflow, and s (1 - s) is 0 long before.
    let bounded = x.clamp(-1e9, 1e9);
    s + bounded * s * (1.0 - s) * (2.0 * GELU_SLOPE * (1.0 + 3.0 * GELU_CUBE * bounded * bounded))
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf_and_exp(x * HALF_ROOT).0)
}

#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    let (erf, e) = erf_and_exp(x * HALF_ROOT);
    0.5 * (1.0 + erf) + x * NORMAL_PEAK * e
}

/// CLIP's factor.
const QUICK: f32 = 1.702;

#[inline(always)]
fn quick_gelu(x: f32) -> f32 {
    x * sigmoid(QUICK * x)
}

#[inline(always)]
fn quick_gelu_slope(x: f32) -> f32 {
    let s = sigmoid(QUICK * x);
    s * (1.0 + QUICK * x * (1.0 - s))
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[inline(always)]
fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    // keeps NaN, which f32::max would drop
    if x < 0.0 { 0.0 } else { x }
}

#[inline(always)]
fn relu_slope(x: f32) -> f32 {
    if x > 0.0 { 1.0 } else { x * 0.0 }
}

/// Defines the loops of one activation: value, and gradient times slope.
macro_rules! loops {
    ($values:ident, $gradients:ident, $value:ident, $slope:ident) => {
        simd! {
            fn $values(x: &[f32], out: &mut [f32]) {
                for (out, &x) in out.iter_mut().zip(x) {
                    *out = $value(x);
                }
            }
        }
        simd! {
            fn $gradients(x: &[f32], gradient: &[f32], out: &mut [f32]) {
                for ((out, &x), &gradient) in out.iter_mut().zip(x).zip(gradient) {
                    *out = gradient * $slope(x);
                }
            }
        }
    };
}
loops!(gelu_tanh_values, gelu_tanh_gradients, gelu_tanh, gelu_tanh_slope);
loops!(gelu_values, gelu_gradients, gelu, gelu_slope);
loops!(quick_gelu_values, quick_gelu_gradients, quick_gelu, quick_gelu_slope);
loops!(silu_values, silu_gradients, silu, silu_slope);
loops!(relu_values, relu_gradients, relu, relu_slope);

simd! {
    /// ReLU of `x` in its place. Where it is not NaN its slope is that at its own value.
    pub(super) fn relu_in_place(x: &mut [f32]) {
        for x in x {
            *x = relu(*x);
        }
    }
}

impl Activation {
    /// `out = f(x)`.
    pub(super) fn values(self, x: &[f32], out: &mut [f32]) {
        match self {
            Self::GeluTanh => gelu_tanh_values(x, out),
            Self::Gelu => gelu_values(x, out),
            Self::QuickGelu => quick_gelu_values(x, out),
            Self::Silu => silu_values(x, out),
            Self::Relu => relu_values(x, out),
        }
    }

    /// `out = gradient · f'(x)`.
    pub(super) fn gradients(self, x: &[f32], gradient: &[f32], out: &mut [f32]) {
        match self {
            Self::GeluTanh => gelu_tanh_gradients(x, gradient, out),
            Self::Gelu => gelu_gradients(x, gradient, out),
            Self::QuickGelu => quick_gelu_gradients(x, gradient, out),
            Self::Silu => silu_gradients(x, gradient, out),
            Self::Relu => relu_gradients(x, gradient, out),
        }
    }

    /// `f(x)` for a tensor of any shape.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        if !fusable(&[x]) {
            return self.compose(x);
        }
        fused(
            "activation",
            [x],
            x.shape(),
            move |[x]| map_rows(x.len(), 1, 1, |at, out| self.values(&x[at], out)),
            move |[x], _, g, _| {
                [Some(map_rows(x.len(), 1, 1, |at, out| {
                    self.gradients(&x[at.clone()], &g[at], out);
                }))]
            },
        )
    }

    /// [`Activation::apply`] from candle's operators, for other devices and types.
    pub fn compose(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::GeluTanh => {
                let inner = ((x + (x.sqr()? * x)?.affine(f64::from(GELU_CUBE), 0.0)?)?
                    * std::f64::consts::FRAC_2_SQRT_PI)?;
                // 2 √(2/π) = 2/√π · √2
                x * sigmoid_tensor(&(inner * std::f64::consts::SQRT_2)?)?
            }
            Self::Gelu => {
                let erf = (x * std::f64::consts::FRAC_1_SQRT_2)?.erf()?;
                (x * erf.affine(0.5, 0.5)?)?.contiguous()
            }
            Self::QuickGelu => x * sigmoid_tensor(&(x * f64::from(QUICK))?)?,
            Self::Silu => x * sigmoid_tensor(x)?,
            Self::Relu => x.relu(),
        }
    }
}

fn sigmoid_tensor(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// `silu(gate) · up`, both of one shape; [Shazeer 2020](https://arxiv.org/abs/2002.05202).
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        candle_core::bail!("swiglu: gate {:?} and up {:?} differ", gate.shape(), up.shape());
    }
    if !fusable(&[gate, up]) {
        return swiglu_compose(gate, up);
    }
    fused(
        "swiglu",
        [gate, up],
        gate.shape(),
        |[gate, up]| {
            map_rows(gate.len(), 1, 1, |at, out| swiglu_values(&gate[at.clone()], &up[at], out))
        },
        |[gate, up], _, g, wanted| {
            let n = gate.len();
            [
                wanted[0].then(|| {
                    map_rows(n, 1, 1, |at, out| {
                        swiglu_gate(&gate[at.clone()], &up[at.clone()], &g[at], out);
                    })
                }),
                wanted[1].then(|| {
                    map_rows(n, 1, 1, |at, out| swiglu_values(&gate[at.clone()], &g[at], out))
                }),
            ]
        },
    )
}

/// [`swiglu`] from candle's operators.
pub fn swiglu_compose(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    Activation::Silu.compose(gate)? * up
}

simd! {
    fn swiglu_values(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = silu(gate) * up;
        }
    }
}

simd! {
    fn swiglu_gate(gate: &[f32], up: &[f32], gradient: &[f32], out: &mut [f32]) {
        for (((out, &gate), &up), &gradient) in out.iter_mut().zip(gate).zip(up).zip(gradient) {
            *out = gradient * up * silu_slope(gate);
        }
    }
}

/// `x₁ · GELU(x₂)` of the two halves `x₁`, `x₂` of the last axis (its size even);
/// [Shazeer 2020](https://arxiv.org/abs/2002.05202), as diffusers packs it.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or(0);
    if width == 0 || !width.is_multiple_of(2) {
        candle_core::bail!("geglu: {:?} has no two halves", x.dims());
    }
    let half = width / 2;
    if !fusable(&[x]) {
        return geglu_compose(x);
    }
    let mut shape = x.dims().to_vec();
    shape[x.rank() - 1] = half;
    let rows = x.elem_count() / width;
    fused(
        "geglu",
        [&x.contiguous()?],
        shape,
        move |[x]| {
            map_rows(rows, half, half, |range, out| {
                let x = x[range.start * width..range.end * width].chunks_exact(width);
                for (x, out) in x.zip(out.chunks_exact_mut(half)) {
                    geglu_values(&x[..half], &x[half..], out);
                }
            })
        },
        move |[x], _, g, _| {
            [Some(map_rows(rows, width, width, |range, out| {
                let x = x[range.start * width..range.end * width].chunks_exact(width);
                let g = g[range.start * half..range.end * half].chunks_exact(half);
                for ((x, g), out) in x.zip(g).zip(out.chunks_exact_mut(width)) {
                    let (up, gate) = out.split_at_mut(half);
                    geglu_values(g, &x[half..], up);
                    geglu_gate(&x[..half], &x[half..], g, gate);
                }
            }))]
        },
    )
}

/// [`geglu`] from candle's operators.
pub fn geglu_compose(x: &Tensor) -> Result<Tensor> {
    let parts = x.chunk(2, candle_core::D::Minus1)?;
    (&parts[0] * Activation::Gelu.compose(&parts[1])?)?.contiguous()
}

simd! {
    fn geglu_values(up: &[f32], gate: &[f32], out: &mut [f32]) {
        for ((out, &up), &gate) in out.iter_mut().zip(up).zip(gate) {
            *out = up * gelu(gate);
        }
    }
}

simd! {
    fn geglu_gate(up: &[f32], gate: &[f32], gradient: &[f32], out: &mut [f32]) {
        for (((out, &up), &gate), &gradient) in out.iter_mut().zip(up).zip(gate).zip(gradient) {
            *out = gradient * up * gelu_slope(gate);
        }
    }
}
