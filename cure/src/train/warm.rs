//! A start that knows how much each item and user is liked (ours).

use std::collections::BTreeMap;

use candle_core::Tensor;
use common::Result;
use common::lm::Lm;

use crate::baselines::IdRegression;
use crate::prompt::{NO, Prompt, YES};

/// Inverse ridge penalty of the regression.
const C: f64 = 1.0;

/// The model with `scale` times the weights of a logistic regression on user and item, fitted to the
/// answers of `windows`, added to the embeddings of these tokens, along the difference of the output
/// rows of Yes and No: the residual stream carries them to the answer from the first step on.
///
/// # Errors
/// Those of the tensors.
pub fn start(lm: &Lm, windows: &[Prompt], scale: f64) -> Result<Lm> {
    let mut rows = Vec::new();
    for window in windows {
        let first = window.ids.first().copied().unwrap_or_default() as usize;
        for answer in &window.answers {
            rows.push((first, window.ids[answer.position] as usize, answer.liked));
        }
    }
    let tokens = lm.config().vocab_size;
    let regression = IdRegression::of_rows(&rows, tokens, tokens, C);
    let output = lm.output_weight();
    let difference = (output.get(YES as usize)? - output.get(NO as usize)?)?.to_vec1::<f32>()?;
    let norm = difference.iter().map(|value| value * value).sum::<f32>().sqrt();
    let mut tensors: BTreeMap<String, Tensor> = lm.parameters().tensors();
    let is_input =
        |name: &str| name.ends_with("wte.weight") || name.ends_with("embed_tokens.weight");
    for (_, table) in tensors.iter_mut().filter(|(name, _)| is_input(name)) {
        let mut values = table.flatten_all()?.to_vec1::<f32>()?;
        for (token, row) in values.chunks_mut(difference.len()).enumerate() {
            let weight = (scale * regression.weight(token)) as f32 / norm;
            row.iter_mut().zip(&difference).for_each(|(value, along)| *value += weight * along);
        }
        *table = Tensor::from_vec(values, table.shape(), table.device())?;
    }
    Lm::from_tensors(lm.config(), tensors)
}
