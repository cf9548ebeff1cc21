//! Log-probabilities of given continuations.

use serde::{Deserialize, Serialize};

use super::kernels;
use super::matrix::Machine;
use super::model::{Arithmetic, Batch};
use super::session::Session;
use crate::{Error, Result};

/// Tokens of options that run through the layers together.
const CHUNK: usize = 512;

/// Most logits at a time: 32 MB.
const LOGITS: usize = 8 << 20;

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
    /// cost next to nothing, and neighbours that differ in their last token alone are processed
    /// once.
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
            let mut bodies: Vec<&[u32]> = Vec::new();
            let (mut tokens, mut last) = (0, first);
            while let Some(option) = options.get(last) {
                let body = &option[..option.len() - 1];
                if bodies.last() != Some(&body) {
                    if tokens > 0 && tokens + body.len() > CHUNK {
                        break;
                    }
                    tokens += body.len();
                    bodies.push(body);
                }
                last += 1;
            }
            self.score_chunk(&bodies, &options[first..last], &mut scores[first..last]);
            first = last;
        }
        Ok(scores.into_iter().map(OptionScore::new).collect())
    }

    /// Appends the log-probabilities of all but the first token of `options` to `scores`. `bodies`
    /// are all but the last token of each option, those of equal neighbours once.
    fn score_chunk(&mut self, bodies: &[&[u32]], options: &[Vec<u32>], scores: &mut [Vec<f64>]) {
        let tokens = bodies.concat();
        if tokens.is_empty() {
            return;
        }
        let prefix = self.tokens.len();
        let (mut positions, mut segment) = (Vec::new(), Vec::new());
        for body in bodies {
            let start = positions.len();
            positions.extend((0..body.len()).map(|at| prefix + at));
            segment.resize(start + body.len(), start);
        }
        // (row, option, target) of everything that is predicted, row by row
        let (mut wanted, mut body, mut start) = (Vec::new(), 0, 0);
        for (number, option) in options.iter().enumerate() {
            if bodies[body] != &option[..option.len() - 1] {
                start += bodies[body].len();
                body += 1;
            }
            let rows = start..start + option.len() - 1;
            wanted.extend(rows.zip(&option[1..]).map(|(row, &target)| (row, number, target)));
        }
        wanted.sort_by_key(|&(row, ..)| row);
        self.reserve(prefix + tokens.len());
        let batch = Batch { tokens: &tokens, positions, segment, prefix };
        self.model.forward(&batch, Arithmetic::F32, &mut self.cache, &mut self.scratch);
        self.processed += tokens.len();
        for ((_, option, _), log_prob) in wanted.iter().zip(self.target_log_probs(&wanted)) {
            scores[*option].push(log_prob);
        }
    }

    /// Log-probability of each target after its row of the residual stream; `wanted` is sorted by
    /// row and leaves none out.
    fn target_log_probs(&mut self, wanted: &[(usize, usize, u32)]) -> Vec<f64> {
        let size = self.model.config().hidden_size;
        let output = self.model.output();
        let machine = Machine::current();
        let rows = wanted.last().map_or(0, |(row, ..)| row + 1);
        // many at a time, since each product unpacks the whole matrix
        let most = (LOGITS / output.rows()).clamp(16, 512).min(rows);
        let mut normed = vec![0.0; most * size];
        let mut logits = vec![0.0; most * output.rows()];
        let mut log_probs = Vec::with_capacity(wanted.len());
        let mut left = wanted.iter().peekable();
        for first in (0..rows).step_by(most.max(1)) {
            let count = most.min(rows - first);
            let hidden = self.scratch.hidden[first * size..].chunks_exact(size);
            for (row, normed) in hidden.zip(normed.chunks_exact_mut(size)).take(count) {
                self.model.final_norm(row, normed);
            }
            output.product(machine, &normed, size, count, &mut logits);
            for (at, row) in logits.chunks_exact(output.rows()).take(count).enumerate() {
                let normaliser = log_sum_exp(row);
                while let Some((.., target)) = left.next_if(|(of, ..)| *of == first + at) {
                    log_probs.push(f64::from(row[*target as usize]) - normaliser);
                }
            }
        }
        log_probs
    }
}

/// `ln Σ exp(x)`.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum = kernels::exp_sum(Machine::current().isa, logits, max);
    f64::from(max) + f64::from(sum).ln()
}
