//! Log-probabilities of given continuations.

use serde::{Deserialize, Serialize};

use super::kernels;
use super::matrix::Machine;
use super::model::{Arithmetic, Batch, Forest};
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

/// Options as a forest of their tokens; of each option all tokens but the last are in it.
#[derive(Default)]
struct Tree {
    tokens: Vec<u32>,
    /// Tokens of the option before each token.
    depth: Vec<usize>,
    forest: Forest,
    /// (row, option, target) of everything that is predicted.
    wanted: Vec<(usize, usize, u32)>,
    /// Rows of all but the last token of the last option.
    last: Vec<usize>,
}

impl Tree {
    /// Adds an option that is not before the last one in the order of tokens; `false` when there is
    /// no room for it. The first option always fits.
    fn add(&mut self, number: usize, option: &[u32]) -> bool {
        let body = &option[..option.len() - 1];
        let rows = &mut self.last;
        let shared = rows.iter().zip(body).take_while(|(row, token)| self.tokens[**row] == **token);
        let shared = shared.count();
        if !self.tokens.is_empty() && self.tokens.len() + body.len() - shared > CHUNK {
            return false;
        }
        rows.truncate(shared);
        for (depth, &token) in body.iter().enumerate().skip(shared) {
            let row = self.tokens.len();
            self.tokens.push(token);
            self.depth.push(depth);
            self.forest.parent.push(rows.last().copied());
            self.forest.root.push(rows.first().copied().unwrap_or(row));
            rows.push(row);
        }
        let wanted = rows.iter().zip(&option[1..]).map(|(&row, &target)| (row, number, target));
        self.wanted.extend(wanted);
        true
    }
}

impl Session {
    /// Log-probabilities of each of `options` as the continuation of the context, which stays as
    /// it is.
    ///
    /// Beginnings that options share are processed once, all options in one batch: each token sees
    /// the context and the tokens before it in its own option. The last token of an option is
    /// predicted, not processed, so options of one token cost next to nothing.
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

        // in this order options that share a beginning are neighbours
        let mut order: Vec<usize> = (0..options.len()).collect();
        order.sort_by(|&a, &b| options[a].cmp(&options[b]));
        let mut rest = &order[..];
        while !rest.is_empty() {
            let mut tree = Tree::default();
            let taken = rest.iter().take_while(|&&number| tree.add(number, &options[number]));
            let taken = taken.count();
            rest = &rest[taken..];
            self.score_tree(tree, &mut scores);
        }
        Ok(scores.into_iter().map(OptionScore::new).collect())
    }

    /// Appends the log-probabilities of all but the first token of the tree's options to `scores`.
    fn score_tree(&mut self, tree: Tree, scores: &mut [Vec<f64>]) {
        if tree.tokens.is_empty() {
            return;
        }
        let Tree { tokens, depth, forest, mut wanted, .. } = tree;
        // an option's rows ascend, so that each option's tokens stay in order
        wanted.sort_by_key(|&(row, ..)| row);
        let prefix = self.tokens.len();
        self.reserve(prefix + tokens.len());
        let positions = depth.into_iter().map(|depth| prefix + depth).collect();
        let batch = Batch { tokens: &tokens, positions, forest: Some(forest), prefix };
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
