//! Greedy and (diverse) beam search.

use std::collections::BTreeMap;

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
    /// Hypotheses kept, in each group.
    pub beams: usize,
    /// Groups of beams that avoid each other's tokens; 1 = ordinary beam search.
    pub groups: usize,
    /// What a token costs for each beam of an earlier group that goes on with it in the same step; as
    /// in transformers the costs stay in the scores.
    pub diversity_penalty: f64,
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
            groups: 1,
            diversity_penalty: 0.0,
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
    /// With groups, diverse beam search (Vijayakumar et al. 2018): the groups choose one after the
    /// other. Returns up to `beams` hypotheses of every group, best first; ties go to the earlier
    /// group, then the earlier beam, then the lower id.
    ///
    /// # Errors
    /// [`Error::Usage`] without a group, a beam or a token to start from; those of the model.
    pub fn beam_search(
        &self,
        prompt: &[u32],
        options: &BeamOptions,
        allowed: Option<&Allowed<'_>>,
    ) -> Result<Vec<Hypothesis>> {
        if options.groups == 0 || options.beams == 0 || prompt.is_empty() {
            return Err(Error::usage(
                "a beam search needs a group, a beam and a token to start from",
            ));
        }
        let mut cache = LmCache::default();
        let pass = Pass { cache: Some(&mut cache), ..Pass::default() };
        let mut rows = log_softmax(&self.last_logits(&row(prompt)?, pass)?)?;
        let mut groups: Vec<Group> = (0..options.groups).map(|_| Group::default()).collect();
        for step in 1..=options.max_tokens {
            let mut taken = BTreeMap::new();
            for group in &mut groups {
                group.step(step, &rows, &mut taken, options, allowed);
            }
            let open: Vec<&mut Beam> =
                groups.iter_mut().flat_map(|group| &mut group.live).collect();
            if open.is_empty() || step == options.max_tokens {
                break;
            }
            let order: Vec<u32> = open.iter().map(|beam| beam.row as u32).collect();
            let last: Vec<u32> = open.iter().filter_map(|b| b.tokens.last().copied()).collect();
            open.into_iter().enumerate().for_each(|(at, beam)| beam.row = at);
            cache.select(&order)?;
            let ids = Tensor::from_vec(last, (order.len(), 1), &Device::Cpu)?;
            let pass = Pass { cache: Some(&mut cache), ..Pass::default() };
            rows = log_softmax(&self.last_logits(&ids, pass)?)?;
        }
        let mut found: Vec<Hypothesis> =
            groups.into_iter().flat_map(|group| group.finish(options)).collect();
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        Ok(found)
    }
}

/// An unfinished hypothesis.
struct Beam {
    /// Of the batch.
    row: usize,
    tokens: Vec<u32>,
    sum: f64,
}

/// Beams that compete with each other.
struct Group {
    /// Empty when the group is done.
    live: Vec<Beam>,
    finished: Vec<Hypothesis>,
}

impl Default for Group {
    fn default() -> Self {
        Self { live: vec![Beam { row: 0, tokens: Vec::new(), sum: 0.0 }], finished: Vec::new() }
    }
}

fn score(sum: f64, length: usize, options: &BeamOptions) -> f64 {
    sum / (length as f64).powf(options.length_penalty)
}

impl Group {
    /// One more token. `taken` counts the tokens of the groups that chose before in this step.
    fn step(
        &mut self,
        step: usize,
        rows: &[Vec<f32>],
        taken: &mut BTreeMap<u32, usize>,
        options: &BeamOptions,
        allowed: Option<&Allowed<'_>>,
    ) {
        let beams = options.beams;
        let mut candidates = Vec::new();
        for (at, beam) in self.live.iter().enumerate() {
            let allowed = allowed.and_then(|allowed| allowed(&beam.tokens));
            extend(&mut candidates, at, beam.sum, &rows[beam.row], allowed, options);
        }
        if !taken.is_empty() && options.diversity_penalty != 0.0 {
            for candidate in &mut candidates {
                let times = taken.get(&candidate.token).copied().unwrap_or(0);
                candidate.sum -= options.diversity_penalty * times as f64;
            }
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
        for (rank, Candidate { beam, token, sum }) in candidates.into_iter().enumerate() {
            let Beam { row, tokens, .. } = &self.live[beam];
            let tokens = [&tokens[..], &[token]].concat();
            let ends = options.eos == Some(token);
            if !ends && next.len() < beams {
                next.push(Beam { row: *row, tokens, sum });
            } else if ends && rank < beams {
                let score = score(sum, tokens.len(), options);
                self.finished.push(Hypothesis { tokens, sum_log_prob: sum, score });
            }
        }
        self.finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.finished.truncate(beams);
        for token in next.iter().filter_map(|beam| beam.tokens.last()) {
            *taken.entry(*token).or_default() += 1;
        }
        let best = next.iter().map(|beam| beam.sum).fold(f64::NEG_INFINITY, f64::max);
        let worst = self.finished.last().map_or(f64::NEG_INFINITY, |worst| worst.score);
        let done = self.finished.len() == beams
            && match options.early_stopping {
                EarlyStopping::Finished => true,
                EarlyStopping::Heuristic => score(best, step, options) <= worst,
                EarlyStopping::Never => {
                    let longest =
                        if options.length_penalty > 0.0 { options.max_tokens } else { step };
                    score(best, longest, options) <= worst
                }
            };
        self.live = if done { Vec::new() } else { next };
    }

    /// The best hypotheses, unfinished ones among them.
    fn finish(self, options: &BeamOptions) -> Vec<Hypothesis> {
        let left = self.live.into_iter().filter(|beam| !beam.tokens.is_empty());
        let left = left.map(|Beam { tokens, sum, .. }| {
            let score = score(sum, tokens.len(), options);
            Hypothesis { tokens, sum_log_prob: sum, score }
        });
        let mut all = self.finished;
        all.extend(left);
        all.sort_by(|a, b| b.score.total_cmp(&a.score));
        all.truncate(options.beams);
        all
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
