//! A language model that answers Yes or No.

use candle_core::{Device, Tensor};
use common::lm::{Lm, Pass};
use common::{Result, ops};

use crate::prompt::{NO, PAD, Prompt, YES, answer_token};

/// Prompts of one batch as tensors. Shorter prompts are padded on the right, which a causal model
/// does not see.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `[prompts, tokens]`.
    pub ids: Tensor,
    /// Rows of the flattened `[prompts · tokens]` hidden states where answers are asked, `[answers]`.
    pub rows: Tensor,
    /// 1 for Yes, 0 for No: columns of [`Recommender::answer_logits`], `[answers]`.
    pub labels: Tensor,
    /// The same as tokens, `[answers]`.
    pub tokens: Tensor,
    /// Number of answers.
    pub answers: usize,
}

impl Batch {
    /// The batch of these prompts.
    pub fn new<'a>(prompts: impl IntoIterator<Item = &'a Prompt>) -> Result<Self> {
        let prompts: Vec<&Prompt> = prompts.into_iter().collect();
        let length = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
        let (mut ids, mut rows) = (Vec::with_capacity(prompts.len() * length), Vec::new());
        let (mut labels, mut tokens) = (Vec::new(), Vec::new());
        for (at, prompt) in prompts.iter().enumerate() {
            ids.extend_from_slice(&prompt.ids);
            ids.resize((at + 1) * length, PAD);
            for answer in &prompt.answers {
                rows.push((at * length + answer.position) as u32);
                labels.push(u32::from(answer.liked));
                tokens.push(answer_token(answer.liked));
            }
        }
        let answers = rows.len();
        let tensor = |values: Vec<u32>| Tensor::from_vec(values, answers, &Device::Cpu);
        Ok(Self {
            ids: Tensor::from_vec(ids, (prompts.len(), length), &Device::Cpu)?,
            rows: tensor(rows)?,
            labels: tensor(labels)?,
            tokens: tensor(tokens)?,
            answers,
        })
    }
}

/// The model with its two answer tokens.
#[derive(Debug, Clone)]
pub struct Recommender {
    /// The decoder.
    pub lm: Lm,
}

impl Recommender {
    /// Hidden states `[answers, hidden]` after which the answers come.
    fn answer_states(&self, batch: &Batch) -> Result<Tensor> {
        self.lm.hidden(&batch.ids, Pass { rows: Some(&batch.rows), ..Pass::default() })
    }

    /// Logits of No and Yes, `[answers, 2]`.
    pub fn answer_logits(&self, batch: &Batch) -> Result<Tensor> {
        let states = self.answer_states(batch)?;
        let two = Tensor::new(&[NO, YES], &Device::Cpu)?;
        Ok(ops::linear(&states, &ops::embedding(self.lm.output_weight(), &two)?, None)?)
    }

    /// Logits of the whole vocabulary, `[answers, vocabulary]`.
    pub fn full_logits(&self, batch: &Batch) -> Result<Tensor> {
        Ok(ops::linear(&self.answer_states(batch)?, self.lm.output_weight(), None)?)
    }

    /// The training loss: mean cross-entropy of the answers over the whole vocabulary.
    pub fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let states = self.answer_states(batch)?;
        Ok(ops::linear_cross_entropy(&states, self.lm.output_weight(), None, &batch.tokens)?)
    }
}
