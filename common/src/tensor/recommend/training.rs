//! What the two neural sequence models share: windows of sequences, batches, early stopping.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::checkpoint::{Outcome, Trained};
use crate::nn::Parameters;
use crate::optim::{AdamW, AdamWOptions, Ema, Schedule, ScheduleShape, Workers};
use crate::rng::{Seed, Stream};
use crate::run::check_interrupt;
use crate::{Error, Result, ops};

/// Slices of a batch, whose gradients are added in order: fixed, so that threads change no result.
const SLICES: usize = 2;
/// Histories scored at a time.
const SCORED: usize = 128;

/// A next item that was kept out of training.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldOut {
    /// The user's training sequence.
    pub user: usize,
    /// Items before the target, oldest first.
    pub history: Vec<u32>,
    /// The item that came next.
    pub target: u32,
}

/// | option | default | purpose | range |
/// |---|---|---|---|
/// | `epochs` | 100 | most passes over all sequences | ≥ 1 |
/// | `batch` | 64 | windows of a step | ≥ 1 |
/// | `max_length` | 50 | latest items that are looked at | ≥ 1 |
/// | `context` | 0 | items before a window's targets that are only looked at: costs time, and fewer targets have short histories | < `max_length` |
/// | `learning_rate` | 1e-3 | AdamW's | > 0 |
/// | `warmup` | 0 | steps over which the rate rises from 0 | |
/// | `weight_decay` | 0 | AdamW's | ≥ 0 |
/// | `average` | 0 | decay per step of a running mean of the parameters, which is what is validated and kept; 0 = the parameters themselves | [0, 1) |
/// | `evaluate_every` | 2 | epochs between validations | ≥ 1 |
/// | `patience` | 5 | validations without a better NDCG@10 before it stops; 0 = never | |
/// | `mask_history` | true | whether seen items are left out of the validation ranking | |
/// | `threads` | 1 | cores; changes no result | ≥ 1 |
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    /// See the table.
    pub epochs: usize,
    /// See the table.
    pub batch: usize,
    /// See the table.
    pub max_length: usize,
    /// See the table.
    pub context: usize,
    /// See the table.
    pub learning_rate: f64,
    /// See the table.
    pub warmup: u64,
    /// See the table.
    pub weight_decay: f64,
    /// See the table.
    pub average: f64,
    /// See the table.
    pub evaluate_every: usize,
    /// See the table.
    pub patience: usize,
    /// See the table.
    pub mask_history: bool,
    /// See the table.
    pub threads: usize,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            epochs: 100,
            batch: 64,
            max_length: 50,
            context: 0,
            learning_rate: 1e-3,
            warmup: 0,
            weight_decay: 0.0,
            average: 0.0,
            evaluate_every: 2,
            patience: 5,
            mask_history: true,
            threads: 1,
        }
    }
}

/// One epoch of training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Mean training loss.
    pub loss: f64,
    /// NDCG@10 on the held-out items, where it was measured.
    pub validation: Option<f64>,
}

/// The course of a training.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TrainingHistory {
    /// One record per epoch.
    pub epochs: Vec<EpochRecord>,
    /// Epoch (from 0) whose parameters were kept.
    pub best: usize,
}

/// Remembers the best validation and says when to stop.
pub(super) struct EarlyStop {
    patience: usize,
    best: Option<(usize, f64)>,
    measured: usize,
    measured_at_best: usize,
    last: usize,
}

impl EarlyStop {
    pub(super) fn new(patience: usize) -> Self {
        Self { patience, best: None, measured: 0, measured_at_best: 0, last: 0 }
    }

    /// Takes in an epoch; whether its validation is the best so far.
    pub(super) fn improved(&mut self, epoch: usize, validation: Option<f64>) -> bool {
        self.last = epoch;
        let Some(value) = validation else { return false };
        self.measured += 1;
        let better = self.best.is_none_or(|(_, best)| value > best);
        if better {
            self.best = Some((epoch, value));
            self.measured_at_best = self.measured;
        }
        better
    }

    pub(super) fn stop(&self) -> bool {
        self.patience > 0 && self.measured - self.measured_at_best >= self.patience
    }

    /// The best epoch; the last one without validation.
    pub(super) fn epoch(&self) -> usize {
        self.best.map_or(self.last, |(epoch, _)| epoch)
    }
}

/// `1 / log2(rank + 1)` of the target, 0 below rank 10; ties share the middle rank.
fn ndcg10(scores: &[f32], target: usize, masked: &[u32]) -> f64 {
    let own = scores[target];
    let (mut higher, mut equal) = (0usize, 0usize);
    for &score in scores {
        higher += usize::from(score > own);
        equal += usize::from(score == own);
    }
    let mut masked = masked.to_vec();
    masked.sort_unstable();
    masked.dedup();
    for item in masked.into_iter().filter(|&item| item as usize != target) {
        higher -= usize::from(scores[item as usize] > own);
        equal -= usize::from(scores[item as usize] == own);
    }
    // NaN equals nothing, not even itself
    let rank =
        if own.is_nan() { f64::INFINITY } else { 1.0 + higher as f64 + (equal - 1) as f64 / 2.0 };
    if rank > 10.0 { 0.0 } else { 1.0 / (rank + 1.0).log2() }
}

pub(super) fn mean_ndcg(
    valid: &[HeldOut],
    mask: bool,
    scores: impl Fn(&HeldOut) -> Vec<f32>,
) -> f64 {
    let sum: f64 = valid
        .iter()
        .map(|held| {
            let masked = if mask { &held.history[..] } else { &[] };
            ndcg10(&scores(held), held.target as usize, masked)
        })
        .sum();
    sum / valid.len() as f64
}

/// Mean NDCG@10 of held-out items over the full catalogue, what early stopping looks at: `scores`
/// answers one score per item for each history; `mask` leaves the history's items out of the
/// ranking. Ties share the middle rank.
pub fn validation_ndcg(
    valid: &[HeldOut],
    mask: bool,
    scores: impl Fn(&[&[u32]]) -> Result<Vec<Vec<f32>>>,
) -> Result<f64> {
    let mut sum = 0.0;
    for part in valid.chunks(SCORED) {
        let histories: Vec<&[u32]> = part.iter().map(|held| held.history.as_slice()).collect();
        for (held, scores) in part.iter().zip(scores(&histories)?) {
            let masked = if mask { &held.history[..] } else { &[] };
            sum += ndcg10(&scores, held.target as usize, masked);
        }
    }
    Ok(sum / valid.len() as f64)
}

/// A part of a sequence to learn from: items that are looked at, and the next items after the last
/// of them.
pub type Window<'a> = (&'a [u32], &'a [u32]);

/// Sequences side by side, filled up at the end with item 0, which nothing looks at:
/// `[rows, longest]`. They must hold an item.
fn pad(sequences: &[&[u32]]) -> Result<Tensor> {
    let longest = sequences.iter().map(|sequence| sequence.len()).max().unwrap_or(0);
    let mut ids = vec![0u32; sequences.len() * longest];
    for (row, sequence) in sequences.iter().enumerate() {
        ids[row * longest..][..sequence.len()].copy_from_slice(sequence);
    }
    Ok(Tensor::from_vec(ids, (sequences.len(), longest), &Device::Cpu)?)
}

/// Row-major positions in the padded `sequences` of each one's last `counts` items.
fn last_positions(
    sequences: &[&[u32]],
    longest: usize,
    counts: impl Iterator<Item = usize>,
) -> Result<Tensor> {
    let ends = sequences.iter().enumerate().map(|(row, items)| row * longest + items.len());
    let last: Vec<u32> =
        ends.zip(counts).flat_map(|(end, count)| (end - count) as u32..end as u32).collect();
    let count = last.len();
    Ok(Tensor::from_vec(last, count, &Device::Cpu)?)
}

/// A neural model of the next item: hidden states of a sequence against item vectors.
pub(super) trait NextItems: Sync {
    /// States `[rows, longest, width]` after each of the padded ids `[rows, longest]`; with a stream,
    /// dropout draws from it.
    fn hidden(&self, ids: &Tensor, stream: Option<Stream>) -> Result<Tensor>;
    /// `[items, width]`
    fn item_vectors(&self) -> &Tensor;
    fn options(&self) -> &TrainOptions;
    fn parameters(&self) -> &Parameters;
}

/// Mean cross-entropy of the windows' next items under `hidden · itemsᵀ`.
pub(super) fn loss(
    model: &impl NextItems,
    batch: &[Window<'_>],
    stream: Option<Stream>,
) -> Result<Tensor> {
    let (inputs, targets): (Vec<&[u32]>, Vec<&[u32]>) = batch.iter().copied().unzip();
    if let Some((inputs, targets)) = batch.iter().find(|(i, t)| i.len() < t.len()) {
        return Err(Error::usage(format!(
            "a window of {} items and {} next items; each next item follows an item",
            inputs.len(),
            targets.len()
        )));
    }
    let ids = pad(&inputs)?;
    let predicting = last_positions(&inputs, ids.dim(1)?, targets.iter().map(|t| t.len()))?;
    let hidden = model.hidden(&ids, stream)?.flatten_to(1)?;
    let rows = ops::embedding(&hidden, &predicting)?;
    let targets = targets.concat();
    let count = targets.len();
    let targets = Tensor::from_vec(targets, count, &Device::Cpu)?;
    Ok(ops::linear_cross_entropy(&rows, model.item_vectors(), None, &targets)?)
}

/// Scores after every history's latest items, `SCORED` histories at a time; zeros for an empty
/// history.
pub(super) fn scores(model: &impl NextItems, histories: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
    let item_vectors = model.item_vectors().detach();
    let items = item_vectors.dim(0)?;
    let length = model.options().max_length;
    super::check_items(histories.iter().copied(), items)?;
    let mut all = Vec::with_capacity(histories.len());
    for part in histories.chunks(SCORED) {
        let known: Vec<&[u32]> = part
            .iter()
            .filter(|history| !history.is_empty())
            .map(|history| &history[history.len().saturating_sub(length)..])
            .collect();
        let scores = if known.is_empty() {
            Vec::new()
        } else {
            let ids = pad(&known)?;
            let last = last_positions(&known, ids.dim(1)?, known.iter().map(|_| 1))?;
            let hidden = model.hidden(&ids, None)?.detach().flatten_to(1)?;
            let last = hidden.index_select(&last, 0)?;
            ops::linear(&last, &item_vectors, None)?.to_vec2()?
        };
        let mut scores = scores.into_iter();
        for history in part {
            let scored = if history.is_empty() { None } else { scores.next() };
            all.push(scored.unwrap_or_else(|| vec![0.0; items]));
        }
    }
    Ok(all)
}

/// Windows of one epoch: each sequence is cut into parts, the first cut at a random place, so that
/// every item is predicted once an epoch and with contexts of all lengths from `context` to
/// `max_length` (at the beginning of a sequence, from one).
fn windows<'a>(
    sequences: &'a [Vec<u32>],
    max_length: usize,
    context: usize,
    stream: &mut Stream,
) -> Vec<Window<'a>> {
    let step = max_length - context;
    let mut all = Vec::new();
    for sequence in sequences.iter().filter(|sequence| sequence.len() > 1) {
        let last = sequence.len() - 1;
        let mut first = 0;
        let mut end = if last <= max_length { last } else { context + 1 + stream.below(step) };
        while first < last {
            let seen = first.saturating_sub(context);
            all.push((&sequence[seen..end], &sequence[first + 1..end + 1]));
            first = end;
            end = (end + step).min(last);
        }
    }
    all
}

fn copy(tensors: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    tensors.iter().map(|(name, tensor)| Ok((name.clone(), tensor.copy()?))).collect()
}

/// Trains `model` on the next items of `sequences`; leaves the best epoch's parameters. A signal ends
/// it between two steps with [`Error::Interrupted`].
pub(super) fn train(
    model: &impl NextItems,
    sequences: &[Vec<u32>],
    valid: &[HeldOut],
    seed: Seed,
) -> Result<TrainingHistory> {
    let (parameters, options) = (model.parameters(), model.options());
    super::check_items(sequences.iter().map(Vec::as_slice), model.item_vectors().dim(0)?)?;
    if sequences.iter().all(|sequence| sequence.len() < 2) {
        return Err(Error::data(
            format!("{} sequences without two items in a row", sequences.len()),
            "at least one transition to learn from",
        ));
    }
    if options.context >= options.max_length {
        return Err(Error::usage(format!(
            "a context of {} items in windows of at most {}; the context must be shorter",
            options.context, options.max_length
        )));
    }
    let workers = Workers::new(options.threads)?;
    let adamw = AdamWOptions { weight_decay: options.weight_decay, ..AdamWOptions::default() };
    let mut optimiser = AdamW::new(parameters, adamw);
    let mut history = TrainingHistory::default();
    let mut best = EarlyStop::new(options.patience);
    let mut average = match options.average {
        0.0 => None,
        decay if decay > 0.0 && decay < 1.0 => Some(Ema::new(parameters, decay)?),
        decay => {
            return Err(Error::usage(format!(
                "a decay of {decay} for the mean of the parameters; from 0 to below 1"
            )));
        }
    };
    let shape = ScheduleShape::Constant;
    let schedule = Schedule { peak: options.learning_rate, warmup: options.warmup, shape };
    let (mut steps, mut kept) = (0, None);
    for epoch in 0..options.epochs {
        let mut stream = seed.stream(&format!("shuffle/epoch-{epoch}"));
        let mut windows = windows(sequences, options.max_length, options.context, &mut stream);
        stream.shuffle(&mut windows);
        // windows of like length share a batch, which saves padding
        let batch = options.batch.max(1);
        windows.chunks_mut(8 * batch).for_each(|part| part.sort_by_key(|(inputs, _)| inputs.len()));
        let mut batches: Vec<_> = windows.chunks(batch).collect();
        stream.shuffle(&mut batches);
        let (mut sum, mut count) = (0.0, 0usize);
        for (step, batch) in batches.into_iter().enumerate() {
            check_interrupt()?;
            let parts: Vec<_> = batch.chunks(batch.len().div_ceil(SLICES)).collect();
            let targets = |part: &[Window<'_>]| -> usize {
                part.iter().map(|(_, targets)| targets.len()).sum()
            };
            let all = targets(batch);
            let slice_loss = |slice: usize| {
                let stream = seed.stream(&format!("dropout/{epoch}/{step}/{slice}"));
                let share = targets(parts[slice]) as f64 / all as f64;
                Ok((loss(model, parts[slice], Some(stream))? * share)?)
            };
            let (loss, gradients) = workers.gradients(parameters, parts.len(), slice_loss)?;
            if !loss.is_finite() {
                return Err(Error::data(
                    format!("a training loss of {loss} in epoch {epoch}"),
                    "a finite loss; lower the learning rate",
                ));
            }
            optimiser.step(&gradients, schedule.at(steps))?;
            steps += 1;
            if let Some(average) = &mut average {
                average.update(parameters)?;
            }
            sum += loss * all as f64;
            count += all;
        }
        let measure = !valid.is_empty()
            && ((epoch + 1) % options.evaluate_every.max(1) == 0 || epoch + 1 == options.epochs);
        let trained = match &average {
            Some(average) => {
                let trained = copy(&parameters.tensors())?;
                parameters.load(average.tensors())?;
                Some(trained)
            }
            None => None,
        };
        let validation = if measure {
            let halves: Vec<&[HeldOut]> = valid.chunks(valid.len().div_ceil(SLICES)).collect();
            let parts = workers.map(halves.len(), |half| {
                let mean = validation_ndcg(halves[half], options.mask_history, |histories| {
                    scores(model, histories)
                })?;
                Ok(mean * halves[half].len() as f64)
            })?;
            Some(parts.iter().sum::<f64>() / valid.len() as f64)
        } else {
            None
        };
        let record = EpochRecord { loss: sum / count as f64, validation };
        tracing::debug!(epoch, loss = record.loss, validation, "trained");
        history.epochs.push(record);
        if best.improved(epoch, validation) {
            kept = Some(copy(&parameters.tensors())?);
        }
        if best.stop() || epoch + 1 == options.epochs {
            break;
        }
        if let Some(trained) = trained {
            parameters.load(&trained)?;
        }
    }
    if let Some(kept) = kept {
        parameters.load(&kept)?;
    }
    history.best = best.epoch();
    Ok(history)
}

/// Raised when a change of the code changes what training gives.
const CODE: u32 = 1;

/// What `train` gave before for the same data, options and seed, or gives now. `options` must not
/// tell the number of threads.
pub(super) fn once(
    kept: &Trained,
    name: &str,
    options: impl Serialize,
    (sequences, items, valid): (&[Vec<u32>], usize, &[HeldOut]),
    seed: Seed,
    train: impl FnOnce() -> Result<Outcome<TrainingHistory>>,
) -> Result<Outcome<TrainingHistory>> {
    let data = crate::run::hash8(format!("{sequences:?}{valid:?}").as_bytes());
    let key = json!({ "code": CODE, "options": serde_json::to_value(options).unwrap_or_default(),
                      "data": data, "items": items, "seed": seed });
    kept.get_or_train(name, &key, |_| train())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn windows_predict_every_item_once() {
        let sequences: Vec<Vec<u32>> = vec![(0..23).collect(), vec![5], vec![7, 8]];
        let mut stream = Seed::new(1).stream("w");
        for round in 0..100 {
            let context = round % 5;
            let windows = windows(&sequences, 5, context, &mut stream);
            let targets: Vec<u32> = windows.iter().flat_map(|(_, t)| t.to_vec()).collect();
            assert_eq!(targets, (1..23).chain([8]).collect::<Vec<_>>());
            let (last, first) = windows.split_last().unwrap();
            assert_eq!(*last, (&[7][..], &[8][..]));
            for (inputs, targets) in first {
                let before = inputs.len() - targets.len();
                assert!(inputs.len() <= 5);
                assert_eq!(before, context.min(targets[0] as usize - 1));
                assert_eq!(inputs[before + 1..], targets[..targets.len() - 1]);
            }
        }
    }

    #[test]
    fn ndcg_by_hand() {
        let scores = [0.5, 0.9, 0.1, 0.5];
        assert_eq!(ndcg10(&scores, 1, &[]), 1.0);
        // ranks 2 and 3 are shared
        assert_eq!(ndcg10(&scores, 0, &[]), 1.0 / 3.5f64.log2());
        assert_eq!(ndcg10(&scores, 0, &[1, 3, 1]), 1.0);
        assert_eq!(ndcg10(&[f32::NAN, 1.0], 0, &[]), 0.0);
    }

    #[test]
    fn patience_counts_validations() {
        let mut stop = EarlyStop::new(2);
        let mut stopped = Vec::new();
        for (epoch, value) in
            [Some(0.1), None, Some(0.3), None, Some(0.2), None, Some(0.3)].into_iter().enumerate()
        {
            stop.improved(epoch, value);
            stopped.push(stop.stop());
        }
        assert_eq!(stopped, [false, false, false, false, false, false, true]);
        assert_eq!(stop.epoch(), 2);
    }
}
