//! Training of the generator: from scratch, and Stage 2 of CRAB (Eq. 10).

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use common::checkpoint::Checkpoints;
use common::nn::{LoraOptions, Parameters};
use common::optim::{AdamW, AdamWOptions, Schedule, ScheduleShape, Workers};
use common::rng::Seed;
use common::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::data::Case;
use crate::decode::{DecodeOptions, decode};
use crate::model::generator::{Counted, Generator};
use crate::model::regularizer::{ParentWeight, Regularizer};
use crate::model::trie::Trie;
use crate::sid::SidTable;

/// Slices of a batch; fixed, so the number of threads changes no result.
const SLICES: usize = 2;

/// | option | default | purpose |
/// |---|---|---|
/// | `epochs` | 30 | passes over all users |
/// | `batch` | 64 | users of a step |
/// | `learning_rate` | 1.5e-3 | peak; cosine to 0 |
/// | `weight_decay` | 0.01 | AdamW's |
/// | `evaluate_every` | 5 | epochs between validations; 0 = never, the last epoch is kept |
/// | `validation` | 600 | validation cases looked at |
/// | `patience` | 0 | validations without a better NDCG@10 before it stops; 0 = never |
/// | `predict_first` | true | whether an item without history is a target, which teaches how popular items are |
/// | `within_trie` | false | whether the probabilities of L_Rec are over the codes that the trie allows, as in decoding |
/// | `checkpoint_every` | 0 | epochs between checkpoints for resuming; 0 = none |
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    /// See the table.
    pub epochs: usize,
    /// See the table.
    pub batch: usize,
    /// See the table.
    pub learning_rate: f64,
    /// See the table.
    pub weight_decay: f64,
    /// See the table.
    pub evaluate_every: usize,
    /// See the table.
    pub validation: usize,
    /// See the table.
    pub patience: usize,
    /// See the table.
    pub predict_first: bool,
    /// See the table.
    pub within_trie: bool,
    /// See the table.
    pub checkpoint_every: usize,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            epochs: 30,
            batch: 64,
            learning_rate: 1.5e-3,
            weight_decay: 0.01,
            evaluate_every: 5,
            validation: 600,
            patience: 0,
            predict_first: true,
            within_trie: false,
            checkpoint_every: 0,
        }
    }
}

impl TrainOptions {
    /// Stage 2: a few epochs at a lower rate, no validation, so that all variants of a comparison
    /// get exactly the same budget.
    pub fn fine_tuned(self) -> Self {
        Self { epochs: 6, learning_rate: 5e-4, evaluate_every: 0, ..self }
    }
}

/// | option | default | purpose |
/// |---|---|---|
/// | `gamma` | 0.2 | weight γ of L_T (paper: 0.2); 0 leaves it out |
/// | `parent_weight` | mean | see [`ParentWeight`] |
/// | `cosine` | true | L_T on normalised embeddings |
/// | `all_levels` | true | L_T over all levels with children, not only those that were split |
/// | `lora_rank` | 0 | 0 = all weights; else the backbone moves through adapters of this rank (paper: 8) |
/// | `noise` | 0.01 | standard deviation of what is added to a copied embedding |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Stage2Options {
    /// See the table.
    pub gamma: f64,
    /// See the table.
    pub parent_weight: ParentWeight,
    /// See the table.
    pub cosine: bool,
    /// See the table.
    pub all_levels: bool,
    /// See the table.
    pub lora_rank: usize,
    /// See the table.
    pub noise: f64,
}

impl Default for Stage2Options {
    fn default() -> Self {
        Self {
            gamma: 0.2,
            parent_weight: ParentWeight::Mean,
            cosine: true,
            all_levels: true,
            lora_rank: 0,
            noise: 0.01,
        }
    }
}

/// One epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Mean L_Rec per item.
    pub loss: f64,
    /// Mean L_T, where it was trained with.
    pub regularizer: Option<f64>,
    /// NDCG@10 on validation cases, where measured.
    pub validation: Option<f64>,
}

/// What is trained on.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    /// One sequence per user.
    pub sequences: &'a [Vec<u32>],
    /// Semantic IDs of the items.
    pub table: &'a SidTable,
    /// Cases for early stopping.
    pub valid: &'a [Case],
    /// Weight per target item (reweighting, RW); `None` = all 1.
    pub item_weights: Option<&'a [f64]>,
}

/// Where a training stands; what a checkpoint holds beside tensors.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Progress {
    epoch: usize,
    steps: u64,
    history: Vec<EpochRecord>,
    best: Option<(usize, f64)>,
    stale: usize,
}

/// Trains a new generator for `task.table` and keeps the best validated epoch. With a `folder`, it
/// leaves checkpoints there and goes on from the newest one: the result is byte for byte that of
/// an uninterrupted run.
///
/// # Errors
/// Nothing to train on, a loss that is not finite, an interrupt.
pub fn fit(
    task: Task<'_>,
    model: Generator,
    options: &TrainOptions,
    workers: &Workers,
    seed: Seed,
    folder: Option<&Path>,
) -> Result<(Generator, Vec<EpochRecord>)> {
    let parameters = model.parameters().clone();
    let history = run(task, &model, &parameters, None, options, workers, seed, folder)?;
    Ok((model, history))
}

/// Stage 2: fine-tunes `model` (grown to `task.table`) with L_Rec + γ · L_T (Eq. 10). With a LoRA
/// rank, embeddings of old and new tokens train and the backbone moves through adapters, which are
/// merged at the end.
///
/// # Errors
/// As [`fit`].
pub fn fine_tune(
    task: Task<'_>,
    mut model: Generator,
    split_levels: &[usize],
    stage2: &Stage2Options,
    options: &TrainOptions,
    workers: &Workers,
    seed: Seed,
) -> Result<(Generator, Vec<EpochRecord>)> {
    let levels: Vec<usize> = match stage2.all_levels {
        true => (0..task.table.levels() - 1).collect(),
        false => split_levels.to_vec(),
    };
    let regularizer = match stage2.gamma > 0.0 {
        true => Some(Regularizer::new(task.table, &levels, stage2.parent_weight, stage2.cosine)?),
        false => None,
    };
    let regularizer = regularizer.filter(|r| !r.is_empty());
    let extra = regularizer.as_ref().map(|regularizer| (regularizer, stage2.gamma));
    if stage2.lora_rank == 0 {
        let parameters = model.parameters().clone();
        let history = run(task, &model, &parameters, extra, options, workers, seed, None)?;
        return Ok((model, history));
    }
    let lora = LoraOptions { rank: stage2.lora_rank, ..LoraOptions::default() };
    let parameters = model.attach_lora(&lora, seed)?;
    let history = run(task, &model, &parameters, extra, options, workers, seed, None)?;
    let merged = Generator::from_tensors(*model.options(), model.merged_tensors()?)?;
    Ok((merged, history))
}

#[allow(clippy::too_many_arguments)]
fn run(
    task: Task<'_>,
    model: &Generator,
    parameters: &Parameters,
    extra: Option<(&Regularizer, f64)>,
    options: &TrainOptions,
    workers: &Workers,
    seed: Seed,
    folder: Option<&Path>,
) -> Result<Vec<EpochRecord>> {
    let context = usize::from(!options.predict_first);
    let users: Vec<usize> =
        (0..task.sequences.len()).filter(|&user| task.sequences[user].len() > context).collect();
    if users.is_empty() {
        return Err(Error::data(
            "no training sequence with a target",
            format!("users with at least {} events", context + 1),
        ));
    }
    let trie = options.within_trie.then(|| Trie::new(task.table));
    let adamw = AdamWOptions {
        weight_decay: options.weight_decay,
        decay_vectors: false,
        ..AdamWOptions::default()
    };
    let mut optimiser = AdamW::new(parameters, adamw);
    let mut progress = Progress::default();
    let mut best: Option<BTreeMap<String, Tensor>> = None;
    let checkpoints = folder.map(Checkpoints::open).transpose()?;
    let found = checkpoints.as_ref().map(Checkpoints::latest::<Progress>).transpose()?.flatten();
    if let Some(found) = found {
        parameters.load(&found.tensors)?;
        optimiser.load_state(found.state.steps, &found.tensors)?;
        let kept: BTreeMap<String, Tensor> = found
            .tensors
            .iter()
            .filter_map(|(name, tensor)| {
                Some((name.strip_prefix("best.")?.to_owned(), tensor.clone()))
            })
            .collect();
        best = (!kept.is_empty()).then_some(kept);
        progress = found.state;
    }
    let windows = windows(task.sequences, &users, model.options().history + 1);
    let steps_an_epoch = windows.len().div_ceil(options.batch.max(1)) as u64;
    let schedule = Schedule {
        peak: options.learning_rate,
        warmup: steps_an_epoch.min(20),
        shape: ScheduleShape::Cosine { total: steps_an_epoch * options.epochs as u64 },
    };
    while progress.epoch < options.epochs {
        common::run::check_interrupt()?;
        let epoch = progress.epoch;
        let record = one_epoch(
            &task,
            model,
            parameters,
            extra,
            options,
            workers,
            seed,
            &windows,
            trie.as_ref(),
            epoch,
            |gradients| {
                let rate = schedule.at(progress.steps + 1);
                progress.steps += 1;
                optimiser.step(gradients, rate)
            },
        )?;
        progress.history.push(record);
        progress.epoch += 1;
        let every = options.evaluate_every;
        let last = progress.epoch == options.epochs;
        let mut stop = false;
        if every > 0 && !task.valid.is_empty() && (progress.epoch % every == 0 || last) {
            let score = validate(&task, model, options, workers)?;
            if let Some(record) = progress.history.last_mut() {
                record.validation = Some(score);
            }
            if progress.best.is_none_or(|(_, best)| score > best) {
                progress.best = Some((epoch, score));
                progress.stale = 0;
                let copy = |(name, tensor): (String, Tensor)| Ok((name, tensor.copy()?));
                best = Some(parameters.tensors().into_iter().map(copy).collect::<Result<_>>()?);
            } else {
                progress.stale += 1;
                stop = options.patience > 0 && progress.stale >= options.patience;
            }
        }
        if let Some(record) = progress.history.last() {
            tracing::info!(epoch, loss = record.loss, validation = record.validation, "generator");
        }
        if stop {
            break;
        }
        if let Some(checkpoints) = &checkpoints
            && options.checkpoint_every > 0
            && progress.epoch % options.checkpoint_every == 0
        {
            let mut tensors = parameters.tensors();
            tensors.extend(optimiser.state()?);
            let kept = best.iter().flatten();
            tensors.extend(kept.map(|(name, tensor)| (format!("best.{name}"), tensor.clone())));
            checkpoints.save(progress.epoch as u64, &tensors, &progress, None)?;
        }
    }
    if let Some(best) = best {
        parameters.load(&best)?;
    }
    Ok(progress.history)
}

/// (user, first item, end) of every window: a sequence of more than `most` items is cut into
/// windows that overlap by a quarter, so that every item is predicted with a context.
fn windows(sequences: &[Vec<u32>], users: &[usize], most: usize) -> Vec<(usize, usize, usize)> {
    let mut all = Vec::new();
    for &user in users {
        let length = sequences[user].len();
        if length <= most {
            all.push((user, 0, length));
            continue;
        }
        let stride = (3 * most).div_ceil(4);
        let mut end = length;
        loop {
            all.push((user, end.saturating_sub(most), end));
            if end <= most {
                break;
            }
            end -= stride;
        }
    }
    all
}

#[allow(clippy::too_many_arguments)]
fn one_epoch(
    task: &Task<'_>,
    model: &Generator,
    parameters: &Parameters,
    extra: Option<(&Regularizer, f64)>,
    options: &TrainOptions,
    workers: &Workers,
    seed: Seed,
    windows: &[(usize, usize, usize)],
    trie: Option<&Trie>,
    epoch: usize,
    mut step: impl FnMut(&common::optim::Gradients) -> Result<()>,
) -> Result<EpochRecord> {
    let context = usize::from(!options.predict_first);
    let mut stream = seed.stream(&format!("epoch-{epoch}"));
    let mut order = windows.to_vec();
    stream.shuffle(&mut order);
    // half of the windows begin at a later item, so that positions do not tell the age of a user
    for window in &mut order {
        let length = window.2 - window.1;
        if length > 2 && stream.chance(0.5) {
            window.1 += stream.below(length - 1);
        }
    }
    // windows of like length share a batch, which saves filling
    let batch = options.batch.max(1);
    order.chunks_mut(8 * batch).for_each(|part| part.sort_by_key(|w| w.2 - w.1));
    let mut batches: Vec<&[(usize, usize, usize)]> = order.chunks(batch).collect();
    stream.shuffle(&mut batches);
    let (mut loss_sum, mut extra_sum, mut steps) = (0.0, 0.0, 0usize);
    for (number, batch) in batches.into_iter().enumerate() {
        let parts: Vec<_> = batch.chunks(batch.len().div_ceil(SLICES)).collect();
        let items = |part: &[(usize, usize, usize)]| {
            part.iter().map(|w| w.2 - w.1 - context).sum::<usize>()
        };
        let all = items(batch) as f64;
        let regularizer = std::sync::Mutex::new(0.0);
        let slice_loss = |slice: usize| {
            let part = parts[slice];
            let rows: Vec<Vec<&[u32]>> = part
                .iter()
                .map(|&(user, first, end)| {
                    let items = &task.sequences[user][first..end];
                    items.iter().map(|&item| task.table.row(item as usize)).collect()
                })
                .collect();
            let weights: Option<Vec<Vec<f32>>> = task.item_weights.map(|weights| {
                let of = |&item: &u32| weights[item as usize] as f32;
                let row = |&(user, first, end): &(usize, usize, usize)| {
                    task.sequences[user][first..end].iter().map(of).collect()
                };
                part.iter().map(row).collect()
            });
            let counted = Counted { context, weights: weights.as_deref(), trie };
            let batch = model.batch(&rows, counted)?;
            let stream = seed.stream(&format!("dropout/{epoch}/{number}/{slice}"));
            let loss = (model.loss(&batch, Some(stream))? * (items(part) as f64 / all))?;
            match extra {
                // the regulariser belongs to the batch: the first slice carries it
                Some((term, gamma)) if slice == 0 => {
                    let term = term.loss(model.tables())?;
                    if let Ok(mut value) = regularizer.lock() {
                        *value = f64::from(term.to_scalar::<f32>()?);
                    }
                    Ok((loss + (term * gamma)?)?)
                }
                _ => Ok(loss),
            }
        };
        let (loss, mut gradients) = workers.gradients(parameters, parts.len(), slice_loss)?;
        if !loss.is_finite() {
            return Err(Error::data(
                format!("a training loss of {loss} in epoch {epoch}"),
                "a finite loss; lower train.learning_rate",
            ));
        }
        gradients.clip_global_norm(1.0)?;
        step(&gradients)?;
        let term = regularizer.into_inner().unwrap_or_default();
        loss_sum += loss - extra.map_or(0.0, |(_, gamma)| gamma * term);
        extra_sum += term;
        steps += 1;
    }
    Ok(EpochRecord {
        loss: loss_sum / steps as f64,
        regularizer: extra.map(|_| extra_sum / steps as f64),
        validation: None,
    })
}

/// Mean NDCG@10 of the first validation cases with 10 beams.
fn validate(
    task: &Task<'_>,
    model: &Generator,
    options: &TrainOptions,
    workers: &Workers,
) -> Result<f64> {
    // evenly over all cases: files are often sorted
    let step = task.valid.len().div_ceil(options.validation.max(1)).max(1);
    let cases: Vec<&Case> = task.valid.iter().step_by(step).collect();
    let histories: Vec<&[u32]> = cases.iter().map(|case| case.history.as_slice()).collect();
    let decoding = DecodeOptions { beams: 10, renormalise: true };
    let ranked = decode(model, task.table, &histories, decoding, workers)?;
    let gain = |(case, ranked): (&&Case, &crate::decode::Ranked)| {
        let place = ranked.iter().position(|(item, _)| *item == case.target);
        place.map_or(0.0, |place| 1.0 / (place as f64 + 2.0).log2())
    };
    Ok(cases.iter().zip(&ranked).map(gain).sum::<f64>() / cases.len() as f64)
}

/// Inverse-popularity weights of target items (RW, after IFairLRS): `freq(i)^-power`, scaled to a
/// mean of 1 over the training events. Items without events weigh what one event would.
pub fn inverse_popularity(counts: &[u64], power: f64) -> Vec<f64> {
    let weights: Vec<f64> = counts.iter().map(|&n| (n.max(1) as f64).powf(-power)).collect();
    let events: f64 = counts.iter().sum::<u64>() as f64;
    let total: f64 = counts.iter().zip(&weights).map(|(&n, w)| n as f64 * w).sum();
    let scale = if total > 0.0 { events / total } else { 1.0 };
    weights.into_iter().map(|w| w * scale).collect()
}
