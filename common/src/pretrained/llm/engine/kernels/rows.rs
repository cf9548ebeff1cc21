//! Loops over single rows: norms, softmax, activations, rotary embedding, dot products.
//!
//! Each body is an `#[inline(always)]` function that the compiler vectorises, compiled once per
//! instruction set. `FMA` says whether a fused multiply-add is one instruction there.

use super::Isa;

/// Compiles `$body` for every instruction set under the name `$name` and dispatches on an
/// [`Isa`].
macro_rules! dispatched {
    ($(#[$doc:meta])* $vis:vis $name:ident, $body:ident, ($($arg:ident: $type:ty),*) $(-> $out:ty)?) => {
        $(#[$doc])*
        $vis fn $name(isa: Isa, $($arg: $type),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $type),*) $(-> $out)? {
                    $body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
                fn avx512($($arg: $type),*) $(-> $out)? {
                    $body::<true>($($arg),*)
                }
                assert!(isa <= Isa::detect(), "{isa:?} is not available on this machine");
                match isa {
                    Isa::Portable => {}
                    // SAFETY: the assertion above: this machine has the instructions.
                    Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    // SAFETY: as above.
                    Isa::Avx512 => return unsafe { avx512($($arg),*) },
                }
            }
            let _ = isa;
            $body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}

pub(super) use dispatched;

dispatched!(
    /// Sum of products of two slices of equal length.
    pub(in super::super) dot, dot_body, (left: &[f32], right: &[f32]) -> f32
);
dispatched!(
    /// `out = x / sqrt(mean(x²) + eps) · weight` (Zhang and Sennrich 2019, eq. 4).
    pub(in super::super) rms_norm, rms_norm_body, (x: &[f32], weight: &[f32], eps: f32, out: &mut [f32])
);
dispatched!(
    /// In place softmax of a row; all zero where every entry is −∞.
    pub(in super::super) softmax, softmax_body, (row: &mut [f32])
);
dispatched!(
    /// `Σ exp(x − shift)`.
    pub(in super::super) exp_sum, exp_sum_body, (row: &[f32], shift: f32) -> f32
);
dispatched!(
    /// `gate = silu(gate) · up` (SwiGLU).
    pub(in super::super) silu_gate, silu_gate_body, (gate: &mut [f32], up: &[f32])
);
dispatched!(
    /// `gate = gelu(gate) · up` with the tanh approximation of GELU (GeGLU).
    pub(in super::super) gelu_gate, gelu_gate_body, (gate: &mut [f32], up: &[f32])
);
dispatched!(
    /// Rotary embedding of one head, pairing element i with i + d/2.
    pub(in super::super) rotate_half, rotate_half_body, (head: &mut [f32], cos: &[f32], sin: &[f32])
);

const LANES: usize = 16;

#[inline(always)]
fn fused<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `exp(x)` to about 2 units in the last place, without branches: range reduction by ln 2 and a
/// polynomial of degree 6. Below −87.3 the result is 0, above 88.3 it is exp(88.3).
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = fused::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let power = shifted - ROUND;
    let r = fused::<FMA>(power, -0.693_359_4, clamped);
    let r = fused::<FMA>(power, 2.121_944_4e-4, r);
    let mut p = 1.0 / 720.0;
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = fused::<FMA>(p, r, c);
    }
    // The low bits of `shifted` hold the power of two; 127 is the exponent's bias.
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.3 { 0.0 } else { p * scale }
}

/// Folds 16 lanes in a fixed order.
#[inline(always)]
fn fold(lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = lanes;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = combine(lanes[i], lanes[i + half]);
        }
    }
    lanes[0]
}

#[inline(always)]
fn dot_body<const FMA: bool>(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    let mut sums = [[0f32; LANES]; 4];
    let (wide_left, rest_left) = left.as_chunks::<{ 4 * LANES }>();
    let (wide_right, rest_right) = right.as_chunks::<{ 4 * LANES }>();
    for (a, b) in wide_left.iter().zip(wide_right) {
        for (part, sum) in sums.iter_mut().enumerate() {
            for (lane, sum) in sum.iter_mut().enumerate() {
                let i = part * LANES + lane;
                *sum = fused::<FMA>(a[i], b[i], *sum);
            }
        }
    }
    let mut total = [0f32; LANES];
    for lane in 0..LANES {
        total[lane] = (sums[0][lane] + sums[1][lane]) + (sums[2][lane] + sums[3][lane]);
    }
    let (rows_left, rest_left) = rest_left.as_chunks::<LANES>();
    let (rows_right, rest_right) = rest_right.as_chunks::<LANES>();
    for (a, b) in rows_left.iter().zip(rows_right) {
        for lane in 0..LANES {
            total[lane] = fused::<FMA>(a[lane], b[lane], total[lane]);
        }
    }
    let tail: f32 = rest_left.iter().zip(rest_right).map(|(a, b)| a * b).sum();
    fold(total, |a, b| a + b) + tail
}

#[inline(always)]
fn rms_norm_body<const FMA: bool>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len());
    let mean = dot_body::<FMA>(x, x) / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

#[inline(always)]
fn max_body(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (wide, rest) = row.as_chunks::<LANES>();
    for chunk in wide {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    rest.iter().copied().fold(fold(lanes, f32::max), f32::max)
}

#[inline(always)]
fn softmax_body<const FMA: bool>(row: &mut [f32]) {
    let max = max_body(row);
    if max == f32::NEG_INFINITY {
        row.fill(0.0);
        return;
    }
    let mut lanes = [0f32; LANES];
    let (wide, rest) = row.as_chunks_mut::<LANES>();
    for chunk in wide {
        for lane in 0..LANES {
            chunk[lane] = exp::<FMA>(chunk[lane] - max);
            lanes[lane] += chunk[lane];
        }
    }
    let mut sum = fold(lanes, |a, b| a + b);
    for x in rest {
        *x = exp::<FMA>(*x - max);
        sum += *x;
    }
    let scale = 1.0 / sum;
    for x in row {
        *x *= scale;
    }
}

#[inline(always)]
fn exp_sum_body<const FMA: bool>(row: &[f32], shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (wide, rest) = row.as_chunks::<LANES>();
    for chunk in wide {
        for lane in 0..LANES {
            lanes[lane] += exp::<FMA>(chunk[lane] - shift);
        }
    }
    fold(lanes, |a, b| a + b) + rest.iter().map(|x| exp::<FMA>(x - shift)).sum::<f32>()
}

#[inline(always)]
fn silu_gate_body<const FMA: bool>(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp::<FMA>(-*gate)) * up;
    }
}

#[inline(always)]
fn gelu_gate_body<const FMA: bool>(gate: &mut [f32], up: &[f32]) {
    // 0.5 x (1 + tanh(z)) = x / (1 + exp(−2z)), z = sqrt(2/π) (x + 0.044715 x³).
    const DOUBLE_ROOT: f32 = 1.595_769; // 2 sqrt(2/π)
    assert_eq!(gate.len(), up.len());
    for (gate, up) in gate.iter_mut().zip(up) {
        let x = *gate;
        let double_z = DOUBLE_ROOT * fused::<FMA>(0.044_715 * x * x, x, x);
        *gate = x / (1.0 + exp::<FMA>(-double_z)) * up;
    }
}

#[inline(always)]
fn rotate_half_body<const FMA: bool>(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = head.len() / 2;
    let (first, second) = head.split_at_mut(half);
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let (x, y) = (*a, *b);
        *a = fused::<FMA>(x, *cos, -(y * sin));
        *b = fused::<FMA>(y, *cos, x * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(a: f32, b: f32) -> bool {
        (a - b).abs() <= 2e-6 * (1.0 + b.abs())
    }

    proptest! {
        #[test]
        fn every_instruction_set_agrees_with_f64(
            x in prop::collection::vec(-30f32..30.0, 1..200),
            seed in 0u32..1000,
        ) {
            let y: Vec<f32> =
                (0..x.len()).map(|i| ((i as u32 * 37 + seed) % 113) as f32 / 56.0 - 1.0).collect();
            let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
            let (wx, wy) = (wide(&x), wide(&y));
            for isa in Isa::available() {
                let exact: f64 = wx.iter().zip(&wy).map(|(a, b)| a * b).sum();
                let size: f64 = wx.iter().zip(&wy).map(|(a, b)| (a * b).abs()).sum();
                prop_assert!((f64::from(dot(isa, &x, &y)) - exact).abs() <= 1e-5 * (1.0 + size));

                let mut soft = x.clone();
                softmax(isa, &mut soft);
                let max = wx.iter().copied().fold(f64::MIN, f64::max);
                let total: f64 = wx.iter().map(|v| (v - max).exp()).sum();
                prop_assert!(close(exp_sum(isa, &x, max as f32), total as f32));
                for (&got, v) in soft.iter().zip(&wx) {
                    prop_assert!(close(got, ((v - max).exp() / total) as f32));
                }

                let (mut silu, mut gelu) = (x.clone(), x.clone());
                silu_gate(isa, &mut silu, &y);
                gelu_gate(isa, &mut gelu, &y);
                for i in 0..x.len() {
                    let v = wx[i];
                    prop_assert!(close(silu[i], (v / (1.0 + (-v).exp()) * wy[i]) as f32));
                    let z = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3));
                    prop_assert!(close(gelu[i], (0.5 * v * (1.0 + z.tanh()) * wy[i]) as f32));
                }

                let mut norm = vec![0.0; x.len()];
                rms_norm(isa, &x, &y, 1e-5, &mut norm);
                let mean = wx.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
                for i in 0..x.len() {
                    prop_assert!(close(norm[i], (wx[i] / (mean + 1e-5).sqrt() * wy[i]) as f32));
                }
            }
        }
    }

    #[test]
    fn a_row_without_any_key_is_zero() {
        for isa in Isa::available() {
            let mut row = [f32::NEG_INFINITY; 19];
            softmax(isa, &mut row);
            assert_eq!(row, [0.0; 19]);
        }
    }

    #[test]
    fn rotation_by_a_right_angle_swaps_the_halves() {
        let mut head = [1.0, 2.0, 3.0, 4.0];
        rotate_half(Isa::detect(), &mut head, &[0.0, 0.0], &[1.0, 1.0]);
        assert_eq!(head, [-3.0, -4.0, 1.0, 2.0]);
    }
}
