//! The test that every trainable model has: its loss reaches every parameter.

use candle_core::{DType, Tensor};

use crate::nn::Parameters;

/// Asserts that one backward pass of `loss` gives every parameter a gradient that is finite and not
/// all zero. candle loses gradients without a word; this names the parameter.
///
/// # Panics
/// With the names of all parameters that fail, and how.
#[track_caller]
pub fn assert_all_grads(loss: &Tensor, parameters: &Parameters) {
    let store = loss.backward().unwrap_or_else(|error| panic!("backward pass: {error}"));
    assert!(!parameters.is_empty(), "the model has no parameters");
    let largest = |gradient: &Tensor| {
        let values = gradient.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        let worst =
            |a: f32, b: &f32| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b.abs()) };
        candle_core::Result::Ok(values.iter().fold(0f32, worst))
    };
    let problems: Vec<String> = parameters
        .iter()
        .filter_map(|(name, var)| match store.get(var).map(largest) {
            None => Some(format!("{name}: no gradient")),
            Some(Err(error)) => Some(format!("{name}: {error}")),
            Some(Ok(value)) if !value.is_finite() => Some(format!("{name}: not finite")),
            Some(Ok(0.0)) => Some(format!("{name}: all zero")),
            Some(Ok(_)) => None,
        })
        .collect();
    assert!(problems.is_empty(), "gradients are lost: {}", problems.join("; "));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Builder, Init};
    use crate::rng::Seed;

    #[test]
    #[should_panic(expected = "cut: no gradient")]
    fn a_lost_gradient_is_named() {
        let mut builder = Builder::seeded(Seed::new(1));
        let mut make = |name: &str| builder.tensor(name, 4, Init::Normal(1.0)).expect("a tensor");
        let (kept, cut) = (make("kept"), make("cut"));
        let loss = (kept * cut.detach()).and_then(|t| t.sum_all()).expect("a loss");
        assert_all_grads(&loss, &builder.finish());
    }
}
