//! Diverse beam search (Vijayakumar et al. 2018): groups of beams that avoid each other's tokens.
//! Promptist explores with 16 groups of one beam and a penalty of 1.

use std::collections::BTreeMap;

use candle_core::{D, Device, Tensor};
use common::lm::{Allowed, BeamOptions, Hypothesis, Lm, LmCache, Pass};
use common::{Error, Result};

/// One group: a beam search of its own over the common batch.
#[derive(Default)]
struct Group {
    /// Row of the batch, new tokens, sum with penalties.
    live: Vec<(usize, Vec<u32>, f64)>,
    finished: Vec<Hypothesis>,
    done: bool,
}

/// Beam search with `options.beams` beams in each of `groups` groups. At every step the groups choose
/// one after the other, and a token costs `penalty` for each time that an earlier group's beams go on
/// with it in this step; as in transformers the penalties stay in the scores. One group is an ordinary
/// beam search. A group ends when its best unfinished beam can't better its worst finished one.
///
/// Returns the best `options.beams` hypotheses of every group, best first; ties go to the earlier group.
///
/// # Errors
/// [`Error::Usage`] without a group, a beam or a token to start from; those of the model.
pub fn diverse_beam_search(
    model: &Lm,
    prompt: &[u32],
    groups: usize,
    penalty: f64,
    options: &BeamOptions,
    allowed: Option<&Allowed<'_>>,
) -> Result<Vec<Hypothesis>> {
    if groups == 0 || options.beams == 0 || prompt.is_empty() {
        return Err(Error::usage("a search needs a group, a beam and a token to start from"));
    }
    let score = |sum: f64, length: usize| sum / (length as f64).powf(options.length_penalty);
    let mut cache = LmCache::default();
    let mut rows = log_probs(model, vec![prompt.to_vec()], &mut cache)?;
    let start = || Group { live: vec![(0, Vec::new(), 0.0)], ..Group::default() };
    let mut all: Vec<Group> = (0..groups).map(|_| start()).collect();
    for step in 1..=options.max_tokens {
        let mut taken: BTreeMap<u32, f64> = BTreeMap::new();
        for group in all.iter_mut().filter(|group| !group.done) {
            let mut candidates = Vec::new();
            for (beam, (row, tokens, sum)) in group.live.iter().enumerate() {
                let cost = |token: u32| penalty * taken.get(&token).copied().unwrap_or(0.0);
                let only = allowed.and_then(|allowed| allowed(tokens));
                for (token, log_prob) in continuations(&rows[*row], only, options.renormalise) {
                    candidates.push((sum + log_prob - cost(token), beam, token));
                }
            }
            candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
            let mut next = Vec::new();
            for (rank, (sum, beam, token)) in
                candidates.into_iter().take(2 * options.beams).enumerate()
            {
                let (row, tokens, _) = &group.live[beam];
                let tokens = [&tokens[..], &[token]].concat();
                let ends = options.eos == Some(token);
                if !ends && next.len() < options.beams {
                    next.push((*row, tokens, sum));
                } else if ends && rank < options.beams {
                    let score = score(sum, tokens.len());
                    group.finished.push(Hypothesis { tokens, sum_log_prob: sum, score });
                }
            }
            group.finished.sort_by(|a, b| b.score.total_cmp(&a.score));
            group.finished.truncate(options.beams);
            for token in next.iter().filter_map(|(_, tokens, _)| tokens.last()) {
                *taken.entry(*token).or_default() += 1.0;
            }
            let best = next.first().map_or(f64::NEG_INFINITY, |(_, _, sum)| *sum);
            let worst = group.finished.last().map_or(f64::NEG_INFINITY, |worst| worst.score);
            let full = group.finished.len() == options.beams;
            group.done = next.is_empty() || (full && score(best, step) <= worst);
            group.live = if group.done { Vec::new() } else { next };
        }
        let open: Vec<&mut (usize, Vec<u32>, f64)> =
            all.iter_mut().flat_map(|group| &mut group.live).collect();
        if open.is_empty() || step == options.max_tokens {
            break;
        }
        let order: Vec<u32> = open.iter().map(|(row, _, _)| *row as u32).collect();
        let last = open.iter().map(|(_, tokens, _)| tokens[tokens.len() - 1..].to_vec()).collect();
        cache.select(&order)?;
        rows = log_probs(model, last, &mut cache)?;
        open.into_iter().enumerate().for_each(|(at, beam)| beam.0 = at);
    }
    let mut found = Vec::new();
    for mut group in all {
        group.finished.extend(group.live.into_iter().map(|(_, tokens, sum)| {
            let score = score(sum, tokens.len());
            Hypothesis { tokens, sum_log_prob: sum, score }
        }));
        group.finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        found.extend(group.finished.into_iter().take(options.beams));
    }
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    Ok(found)
}

/// Log-probabilities of the token after each row, `[rows][tokens]`.
fn log_probs(model: &Lm, rows: Vec<Vec<u32>>, cache: &mut LmCache) -> Result<Vec<Vec<f32>>> {
    let shape = (rows.len(), rows[0].len());
    let ids = Tensor::from_vec(rows.concat(), shape, &Device::Cpu)?;
    let logits = model.last_logits(&ids, Pass { cache: Some(cache), ..Pass::default() })?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    let total = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    Ok(shifted.broadcast_sub(&total)?.to_vec2()?)
}

/// The tokens that may come next with their log-probabilities, over the allowed ones if wanted.
fn continuations(row: &[f32], allowed: Option<Vec<u32>>, renormalise: bool) -> Vec<(u32, f64)> {
    let Some(allowed) = allowed else {
        return (0..).zip(row.iter().map(|&p| f64::from(p))).collect();
    };
    let known = || allowed.iter().filter_map(|&token| Some((token, *row.get(token as usize)?)));
    let total: f64 = known().map(|(_, p)| f64::from(p).exp()).sum();
    let shift = if renormalise { total.ln() } else { 0.0 };
    known().map(|(token, p)| (token, f64::from(p) - shift)).collect()
}
