//! Greedy and beam search.

use candle_core::{Device, Tensor};

use super::model::log_softmax;
use super::{Lm, LmCache, Pass};
use crate::{Error, Result};

/// A generated continuation.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// New tokens, with the end token if it came.
    pub tokens: Vec<u32>,
    /// Sum of their log-probabilities.
    pub sum_log_prob: f64,
    /// `sum_log_prob / tokens^length_penalty`.
    pub score: f64,
}

/// When a beam search ends before its length limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EarlyStopping {
    /// As soon as `beams` hypotheses are finished.
    Finished,
    /// When the best unfinished one, at its present length, is not better than the worst finished.
    #[default]
    Heuristic,
    /// The same, with the length that suits the unfinished best.
    Never,
}

/// Options of [`Lm::beam_search`].
#[derive(Debug, Clone, PartialEq)]
pub struct BeamOptions {
    /// Hypotheses kept.
    pub beams: usize,
    /// Most new tokens.
    pub max_tokens: usize,
    /// Exponent of the length in the score; 0 = sums are compared.
    pub length_penalty: f64,
    /// Token that finishes a hypothesis.
    pub eos: Option<u32>,
    /// See [`EarlyStopping`].
    pub early_stopping: EarlyStopping,
    /// Take log-probabilities over the allowed tokens only, so that they sum to 1 over a trie.
    pub renormalise: bool,
}

impl Default for BeamOptions {
    fn default() -> Self {
        Self {
            beams: 4,
            max_tokens: 20,
            length_penalty: 1.0,
            eos: None,
            early_stopping: EarlyStopping::default(),
            renormalise: false,
        }
    }
}

/// Tokens that may follow the given new tokens; `None` = all.
pub type Allowed<'a> = dyn Fn(&[u32]) -> Option<Vec<u32>> + 'a;

fn row(tokens: &[u32]) -> Result<Tensor> {
    Ok(Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?)
}

impl Lm {
    /// The most probable token at each step (the lowest id on a tie), until `eos` or `max_tokens`;
    /// with the log-probability of each.
    pub fn greedy(
        &self,
        prompt: &[u32],
        max_tokens: usize,
        eos: Option<u32>,
    ) -> Result<(Vec<u32>, Vec<f32>)> {
        let mut cache = LmCache::default();
        let (mut tokens, mut log_probs) = (Vec::new(), Vec::new());
        let mut fresh = prompt.to_vec();
        while tokens.len() < max_tokens {
            let pass = Pass { cache: Some(&mut cache), ..Pass::default() };
            let rows = log_softmax(&self.last_logits(&row(&fresh)?, pass)?)?;
            let (token, log_prob) =
                rows[0].iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (id, &p)| {
                    if p > best.1 { (id, p) } else { best }
                });
            tokens.push(token as u32);
            log_probs.push(log_prob);
            if eos == Some(token as u32) {
                break;
            }
            fresh = vec![token as u32];
        }
        Ok((tokens, log_probs))
    }

    /// Beam search as in transformers, all beams in one batch: each step takes the best `2 · beams`
    /// continuations of all beams; one that ends is finished only if it is among the first `beams`.
    /// Returns up to `beams` hypotheses, best first; ties go to the earlier beam, then the lower id.
    pub fn beam_search(
        &self,
        prompt: &[u32],
        options: &BeamOptions,
        allowed: Option<&Allowed<'_>>,
    ) -> Result<Vec<Hypothesis>> {
        let beams = options.beams;
        if beams == 0 || prompt.is_empty() {
            return Err(Error::usage("a beam search needs a beam and a token to start from"));
        }
        let score = |sum: f64, length: usize| sum / (length as f64).powf(options.length_penalty);
        let mut cache = LmCache::default();
        let pass = Pass { cache: Some(&mut cache), ..Pass::default() };
        let mut rows = log_softmax(&self.last_logits(&row(prompt)?, pass)?)?;
        let mut live: Vec<(Vec<u32>, f64)> = vec![(Vec::new(), 0.0)];
        let mut finished: Vec<Hypothesis> = Vec::new();
        for step in 1..=options.max_tokens {
            let mut candidates = Vec::new();
            for (beam, ((tokens, sum), row)) in live.iter().zip(&rows).enumerate() {
                extend(&mut candidates, beam, *sum, row, allowed.and_then(|f| f(tokens)), options);
            }
            let order = |a: &Candidate, b: &Candidate| {
                b.sum.total_cmp(&a.sum).then((a.beam, a.token).cmp(&(b.beam, b.token)))
            };
            let keep = (2 * beams).min(candidates.len());
            if keep < candidates.len() {
                candidates.select_nth_unstable_by(keep, order);
                candidates.truncate(keep);
            }
            candidates.sort_unstable_by(order);
            let mut next = Vec::new();
            for (rank, candidate) in candidates.into_iter().enumerate() {
                let mut tokens = live[candidate.beam].0.clone();
                tokens.push(candidate.token);
                let ends = options.eos == Some(candidate.token);
                if !ends && next.len() < beams {
                    next.push((candidate.beam, tokens, candidate.sum));
                } else if ends && rank < beams {
                    let score = score(candidate.sum, tokens.len());
                    finished.push(Hypothesis { tokens, sum_log_prob: candidate.sum, score });
                }
            }
            finished.sort_by(|a, b| b.score.total_cmp(&a.score));
            finished.truncate(beams);
            let best = next.iter().map(|(_, _, sum)| *sum).fold(f64::NEG_INFINITY, f64::max);
            let order: Vec<u32> = next.iter().map(|(beam, _, _)| *beam as u32).collect();
            live = next.into_iter().map(|(_, tokens, sum)| (tokens, sum)).collect();
            let worst = finished.last().map_or(f64::NEG_INFINITY, |worst| worst.score);
            let done = finished.len() == beams
                && match options.early_stopping {
                    EarlyStopping::Finished => true,
                    EarlyStopping::Heuristic => score(best, step) <= worst,
                    EarlyStopping::Never => {
                        let longest =
                            if options.length_penalty > 0.0 { options.max_tokens } else { step };
                        score(best, longest) <= worst
                    }
                };
            if done || live.is_empty() {
                live.clear();
                break;
            }
            if step < options.max_tokens {
                cache.select(&order)?;
                let last: Vec<u32> =
                    live.iter().filter_map(|(tokens, _)| tokens.last().copied()).collect();
                let count = last.len();
                let ids = Tensor::from_vec(last, (count, 1), &Device::Cpu)?;
                let pass = Pass { cache: Some(&mut cache), ..Pass::default() };
                rows = log_softmax(&self.last_logits(&ids, pass)?)?;
            }
        }
        let left = live.into_iter().filter(|(tokens, _)| !tokens.is_empty());
        finished.extend(left.map(|(tokens, sum)| {
            let score = score(sum, tokens.len());
            Hypothesis { tokens, sum_log_prob: sum, score }
        }));
        finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        finished.truncate(beams);
        Ok(finished)
    }
}

/// A beam with one more token.
struct Candidate {
    beam: usize,
    token: u32,
    sum: f64,
}

fn extend(
    candidates: &mut Vec<Candidate>,
    beam: usize,
    sum: f64,
    row: &[f32],
    allowed: Option<Vec<u32>>,
    options: &BeamOptions,
) {
    let Some(allowed) = allowed else {
        candidates.extend(row.iter().enumerate().map(|(token, &p)| Candidate {
            beam,
            token: token as u32,
            sum: sum + f64::from(p),
        }));
        return;
    };
    let known = || allowed.iter().filter(|&&token| (token as usize) < row.len());
    let total: f64 = known().map(|&token| f64::from(row[token as usize]).exp()).sum();
    let shift = if options.renormalise { total.ln() } else { 0.0 };
    candidates.extend(known().map(|&token| Candidate {
        beam,
        token,
        sum: sum + f64::from(row[token as usize]) - shift,
    }));
}
