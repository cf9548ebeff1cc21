//! Log-probabilities of given continuations.

use serde::{Deserialize, Serialize};

use super::kernels;
use super::matrix::Machine;
use super::model::{Arithmetic, Batch};
use super::session::Session;
use crate::{Error, Result};

/// Tokens of options that run through the layers together.
const CHUNK: usize = 512;

/// How probable one continuation is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptionScore {
    /// Natural logarithm of the probability of the whole continuation: the sum over its tokens.
    pub log_prob: f64,
    /// Natural logarithm of each token's probability, given the context and the tokens before.
    pub token_log_probs: Vec<f64>,
}

impl OptionScore {
    /// `log_prob` divided by the number of tokens.
    pub fn mean_log_prob(&self) -> f64 {
        self.log_prob / self.token_log_probs.len() as f64
    }

    fn new(token_log_probs: Vec<f64>) -> Self {
        Self { log_prob: token_log_probs.iter().sum(), token_log_probs }
    }
}

impl Session {
    /// Log-probabilities of each of `options` as the continuation of the context, which stays as
    /// it is.
    ///
    /// All options run in one batch: each token sees the context and the earlier tokens of its own
    /// option. The last token of an option is predicted, not processed, so options of one token
    /// cost next to nothing.
    ///
    /// An empty context, an empty option, an id outside the vocabulary, or an option that does not
    /// fit the context are an error.
    pub fn score_options(&mut self, options: &[Vec<u32>]) -> Result<Vec<OptionScore>> {
        for option in options {
            if option.is_empty() {
                return Err(Error::data("an option without tokens", "at least one token"));
            }
            self.model.check_tokens(option)?;
            self.check_room(self.tokens.len() + option.len())?;
        }
        let logits = self.last_logits()?;
        let normaliser = log_sum_exp(&logits);
        let mut scores: Vec<Vec<f64>> = options
            .iter()
            .map(|option| vec![f64::from(logits[option[0] as usize]) - normaliser])
            .collect();

        let mut first = 0;
        while first < options.len() {
            let mut tokens = Vec::new();
            let mut last = first;
            while last < options.len()
                && (tokens.is_empty() || tokens.len() + options[last].len() <= CHUNK)
            {
                tokens.extend_from_slice(&options[last][..options[last].len() - 1]);
                last += 1;
            }
            self.score_chunk(&tokens, &options[first..last], &mut scores[first..last]);
            first = last;
        }
        Ok(scores.into_iter().map(OptionScore::new).collect())
    }

    /// Appends the log-probabilities of all but the first token of `options` to `scores`;
    /// `tokens` are all but the last token of each option.
    fn score_chunk(&mut self, tokens: &[u32], options: &[Vec<u32>], scores: &mut [Vec<f64>]) {
        if tokens.is_empty() {
            return;
        }
        let prefix = self.tokens.len();
        let (mut positions, mut segment, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        for option in options {
            let start = positions.len();
            for (i, &next) in option[1..].iter().enumerate() {
                positions.push(prefix + i);
                segment.push(start);
                targets.push(next);
            }
        }
        self.reserve(prefix + tokens.len());
        let batch = Batch { tokens, positions, segment, prefix };
        self.model.forward(&batch, Arithmetic::F32, &mut self.cache, &mut self.scratch);
        self.processed += tokens.len();
        let mut log_probs = self.target_log_probs(&targets).into_iter();
        for (option, scores) in options.iter().zip(scores) {
            scores.extend(log_probs.by_ref().take(option.len() - 1));
        }
    }

    /// Log-probability of `targets[t]` after row t of the residual stream.
    fn target_log_probs(&mut self, targets: &[u32]) -> Vec<f64> {
        // Rows at a time: 16 rows of a vocabulary of 256,000 take 16 MB.
        const ROWS: usize = 16;
        let size = self.model.config().hidden_size;
        let output = self.model.output();
        let machine = Machine::current();
        let mut normed = vec![0.0; ROWS * size];
        let mut logits = vec![0.0; ROWS.min(targets.len()) * output.rows()];
        let mut out = Vec::with_capacity(targets.len());
        for (targets, hidden) in targets.chunks(ROWS).zip(self.scratch.hidden.chunks(ROWS * size)) {
            for (row, normed) in hidden.chunks_exact(size).zip(normed.chunks_exact_mut(size)) {
                self.model.final_norm(row, normed);
            }
            output.product(machine, &normed, size, targets.len(), &mut logits);
            for (&target, row) in targets.iter().zip(logits.chunks_exact(output.rows())) {
                out.push(f64::from(row[target as usize]) - log_sum_exp(row));
            }
        }
        out
    }
}

/// `ln Σ exp(x)`.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum = kernels::exp_sum(Machine::current().isa, logits, max);
    f64::from(max) + f64::from(sum).ln()
}
