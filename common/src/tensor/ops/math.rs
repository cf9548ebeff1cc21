//! Elementary functions and sums that the compiler can vectorise: no calls, no branches.
//!
//! All pass NaN on. Errors are relative unless said otherwise.

/// Accumulators of a sum: one AVX-512 register, two of AVX2.
pub(crate) const LANES: usize = 16;

/// `e^x` to 2e-7; 0 below -87.3, `e^88.3` above 88.3.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // e^x = 2^n · e^r with |r| ≤ ln 2 / 2. Adding 1.5 · 2^23 rounds to the nearest integer, which
    // then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > 88.3 { 88.3 } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_2e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let p = p * (r * r) + r + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < -87.3 { 0.0 } else { p * power }
}

/// `1 / (1 + e^-x)` to 3e-7.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function and `e^(-x²)`, to 2e-7 absolute (Abramowitz and Stegun 7.1.26).
#[inline(always)]
pub(crate) fn erf_and_exp(x: f32) -> (f32, f32) {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let mut p = 1.061_405_4;
    p = p * t - 1.453_152;
    p = p * t + 1.421_413_7;
    p = p * t - 0.284_496_74;
    p = p * t + 0.254_829_6;
    let e = exp(-x * x);
    ((1.0 - p * t * e).copysign(x), e)
}

/// Sum of `term` over the elements of equally long slices, on [`LANES`] accumulators.
#[inline(always)]
pub(crate) fn sum_of<const N: usize>(slices: [&[f32]; N], term: impl Fn([f32; N]) -> f32) -> f32 {
    let len = slices[0].len();
    let slices = slices.map(|slice| &slice[..len]);
    let mut lanes = [0f32; LANES];
    let whole = len - len % LANES;
    let mut at = 0;
    while at < whole {
        // one bounds check per chunk; one per element would keep the loop from being vectorised
        let chunks = slices.map(|slice| &slice[at..at + LANES]);
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += term(chunks.map(|chunk| chunk[lane]));
        }
        at += LANES;
    }
    let mut total = fold(lanes, |a, b| a + b);
    for index in whole..len {
        total += term(slices.map(|slice| slice[index]));
    }
    total
}

/// Sum of the elements.
#[inline(always)]
pub(crate) fn sum(values: &[f32]) -> f32 {
    sum_of([values], |[x]| x)
}

/// `Σ e^(x - top)`; NaN for a slice with NaN.
#[inline(always)]
pub(crate) fn sum_exp(values: &[f32], top: f32) -> f32 {
    // Exponentials in one plain loop, their sum in another: each is vectorised, both at once are not.
    let mut total = 0.0;
    let mut powers = [0f32; 16 * LANES];
    for chunk in values.chunks(powers.len()) {
        let powers = &mut powers[..chunk.len()];
        for (power, &x) in powers.iter_mut().zip(chunk) {
            *power = exp(x - top);
        }
        total += sum(powers);
    }
    total
}

/// Largest value, `-inf` for an empty slice; NaN is passed over.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, value);
        }
    }
    rest.iter().fold(fold(lanes, larger), |a, &b| larger(a, b))
}

/// Pairwise fold of the lanes.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = join(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_and_handles_the_ends() {
        let mut worst = 0f64;
        for step in -870_000..=880_000 {
            let x = step as f32 * 1e-4;
            let truth = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / truth - 1.0).abs());
        }
        assert!(worst < 2e-7, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::INFINITY) > 1e38);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn erf_matches_known_values() {
        for (x, truth) in
            [(0.0, 0.0), (0.5, 0.520_499_9), (1.0, 0.842_700_8), (-2.0, -0.995_322_3), (9.0, 1.0)]
        {
            let (erf, _) = erf_and_exp(x);
            assert!((erf - truth).abs() < 3e-7, "erf({x}) = {erf}");
        }
        assert!(erf_and_exp(f32::NAN).0.is_nan());
    }

    #[test]
    fn sums_and_maxima_take_every_element() {
        for len in [0usize, 1, 15, 16, 17, 100] {
            let values: Vec<f32> = (0..len).map(|i| i as f32).collect();
            assert_eq!(sum(&values), (len * len.saturating_sub(1) / 2) as f32);
            assert_eq!(sum_exp(&vec![2.0; len], 2.0), len as f32);
            assert_eq!(max(&values), if len == 0 { f32::NEG_INFINITY } else { len as f32 - 1.0 });
        }
    }
}
