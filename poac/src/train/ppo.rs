//! Optional: proximal policy optimisation of the prompt language model, as Promptist does (§3.7).
//!
//! An episode is one optimised prompt: [`OBJECTS`] names, chosen one after the other among those not
//! yet named. The reward comes at the end, from pictures of the prompt; each choice costs its
//! divergence from the supervised model.

use std::path::Path;

use candle_core::{D, Device, Tensor};
use common::checkpoint::Checkpoints;
use common::lm::{Lm, Pass};
use common::nn::{Builder, Init, Linear, Parameters};
use common::optim::{AdamW, AdamWOptions, Gradients};
use common::rng::{Seed, Stream};
use common::{Result, ops, run, stats};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::History;
use super::plm::{first_rows, masked};
use crate::data::pairs::OBJECTS;

/// Settings; the defaults are Promptist's but for the batch and the steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PpoOptions {
    /// Batches of new episodes; 0 = no PPO.
    pub steps: u64,
    /// Episodes a batch.
    pub batch: usize,
    /// Pictures whose reward is averaged for an episode.
    pub images: usize,
    /// Optimiser steps on each batch.
    pub epochs: usize,
    /// Learning rate.
    pub lr: f64,
    /// The ratio of probabilities is clipped to 1 ± this.
    pub clip: f64,
    /// The value's change is clipped to this.
    pub value_clip: f64,
    /// Weight of the value loss.
    pub value_weight: f64,
    /// Discount γ.
    pub discount: f64,
    /// λ of generalised advantage estimation.
    pub gae_lambda: f64,
    /// Cost of the divergence from the supervised model at first.
    pub kl: f64,
    /// Divergence of an episode that the cost is adapted to.
    pub kl_target: f64,
    /// Episodes over which it is adapted.
    pub kl_horizon: f64,
    /// Reward for each unit of cosine below the base model's mean (20 in Eq. 12).
    pub relevance: f64,
}

impl Default for PpoOptions {
    fn default() -> Self {
        Self {
            steps: 0,
            batch: 32,
            images: 2,
            epochs: 4,
            lr: 5e-5,
            clip: 0.2,
            value_clip: 0.2,
            value_weight: 2.3,
            discount: 1.0,
            gae_lambda: 0.95,
            kl: 0.2,
            kl_target: 0.2,
            kl_horizon: 10_000.0,
            relevance: 20.0,
        }
    }
}

/// What the model needs to know to choose names.
#[derive(Debug, Clone)]
pub struct Choices {
    /// Token of every object's name.
    pub names: Vec<u32>,
    /// The token between two names.
    pub comma: u32,
    /// Rows of the token table that may change; the others keep their meaning.
    pub rows: usize,
}

/// The state of a run beside its tensors.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    history: History,
    kl: f64,
}

/// Chosen names and what was thought of them at the time, `[episodes][OBJECTS]`.
#[derive(Debug)]
struct Episodes {
    /// Short prompts as tokens.
    prompts: Vec<Vec<u32>>,
    chosen: Vec<[usize; OBJECTS]>,
    log_probs: Vec<[f64; OBJECTS]>,
    values: Vec<[f64; OBJECTS]>,
}

/// Advantages and returns of one episode from its rewards and values (Schulman et al. 2016).
pub fn advantages(
    rewards: &[f64],
    values: &[f64],
    discount: f64,
    lambda: f64,
) -> (Vec<f64>, Vec<f64>) {
    let mut found = vec![0.0; rewards.len()];
    let mut next = 0.0;
    for at in (0..rewards.len()).rev() {
        let value = values.get(at + 1).copied().unwrap_or(0.0);
        next = rewards[at] + discount * value - values[at] + discount * lambda * next;
        found[at] = next;
    }
    let returns = found.iter().zip(values).map(|(a, v)| a + v).collect();
    (found, returns)
}

/// Policy and value of every choice: log-probabilities `[episodes · OBJECTS, names]` and values
/// `[episodes · OBJECTS]`. Names chosen before have probability 0.
fn evaluate(
    model: &Lm,
    value: &Linear,
    choices: &Choices,
    prompts: &[Vec<u32>],
    chosen: &[[usize; OBJECTS]],
) -> Result<(Tensor, Tensor)> {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + 2 * OBJECTS - 2;
    let (mut ids, mut places) = (Vec::new(), Vec::new());
    let mut closed = vec![0f32; prompts.len() * OBJECTS * choices.names.len()];
    for (row, (prompt, chosen)) in prompts.iter().zip(chosen).enumerate() {
        let start = ids.len();
        ids.extend(prompt);
        for (at, &name) in chosen.iter().enumerate() {
            places.push((ids.len() - 1) as u32);
            if at + 1 < OBJECTS {
                ids.extend([choices.names[name], choices.comma]);
            }
            for &before in &chosen[..at] {
                closed[(row * OBJECTS + at) * choices.names.len() + before] = -1e9;
            }
        }
        ids.resize(start + longest, choices.comma);
    }
    let ids = Tensor::from_vec(ids, (prompts.len(), longest), &Device::Cpu)?;
    let rows = Tensor::new(&places[..], &Device::Cpu)?;
    let hidden = model.hidden(&ids, Pass { rows: Some(&rows), ..Pass::default() })?;
    let names = Tensor::new(&choices.names[..], &Device::Cpu)?;
    let names = model.output_weight().index_select(&names, 0)?;
    let closed = Tensor::from_vec(closed, (places.len(), choices.names.len()), &Device::Cpu)?;
    let logits = (ops::linear(&hidden, &names, None)? + closed)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let total = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    Ok((shifted.broadcast_sub(&total)?, value.forward(&hidden)?.squeeze(1)?))
}

/// Log-probabilities of the chosen names, `[episodes · OBJECTS]`.
fn of_chosen(log_probs: &Tensor, chosen: &[[usize; OBJECTS]]) -> Result<Tensor> {
    let at: Vec<u32> = chosen.iter().flatten().map(|&name| name as u32).collect();
    let at = Tensor::new(&at[..], &Device::Cpu)?.unsqueeze(1)?;
    Ok(log_probs.gather(&at, 1)?.squeeze(1)?)
}

fn by_episode(values: &Tensor) -> Result<Vec<[f64; OBJECTS]>> {
    let values = values.to_vec1::<f32>()?;
    let row = |row: &[f32]| std::array::from_fn(|at| f64::from(row[at]));
    Ok(values.chunks_exact(OBJECTS).map(row).collect())
}

/// Draws one episode a prompt.
fn play(
    model: &Lm,
    value: &Linear,
    choices: &Choices,
    prompts: Vec<Vec<u32>>,
    stream: &mut Stream,
) -> Result<Episodes> {
    let mut chosen = vec![[0; OBJECTS]; prompts.len()];
    for at in 0..OBJECTS {
        let (log_probs, _) = evaluate(model, value, choices, &prompts, &chosen)?;
        let rows = log_probs.to_vec2::<f32>()?;
        for (episode, chosen) in chosen.iter_mut().enumerate() {
            let row = &rows[episode * OBJECTS + at];
            let weights: Vec<f64> = row.iter().map(|&p| f64::from(p).exp()).collect();
            chosen[at] = stream.weighted(&weights);
        }
    }
    let (log_probs, values) = evaluate(model, value, choices, &prompts, &chosen)?;
    let log_probs = by_episode(&of_chosen(&log_probs, &chosen)?)?;
    Ok(Episodes { prompts, chosen, log_probs, values: by_episode(&values)? })
}

/// The clipped losses of policy and value on a batch; `advantages` and `returns` are flat.
fn loss(
    log_probs: &Tensor,
    values: &Tensor,
    episodes: &Episodes,
    [advantages, returns]: [Vec<f64>; 2],
    options: &PpoOptions,
) -> Result<Tensor> {
    let flat =
        |values: &[[f64; OBJECTS]]| -> Vec<f64> { values.iter().flatten().copied().collect() };
    let tensor = |values: &[f64]| {
        let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
        Ok::<_, common::Error>(Tensor::new(&values[..], &Device::Cpu)?)
    };
    let (mean, sd) = stats::mean_sd(&advantages);
    let whitened: Vec<f64> = advantages.iter().map(|a| (a - mean) / (sd + 1e-8)).collect();
    let (advantages, returns) = (tensor(&whitened)?, tensor(&returns)?);
    let ratio = (log_probs - tensor(&flat(&episodes.log_probs))?)?.exp()?;
    let clipped = ratio.clamp(1.0 - options.clip, 1.0 + options.clip)?;
    let policy = (&ratio * &advantages)?.minimum(&(clipped * &advantages)?)?.mean_all()?.neg()?;
    let old = tensor(&flat(&episodes.values))?;
    let near = (values - &old)?.clamp(-options.value_clip, options.value_clip)?;
    let error = |values: &Tensor| (values - &returns)?.sqr();
    let value = error(values)?.maximum(&error(&(old + near)?)?)?.mean_all()?;
    Ok((policy + (value * (0.5 * options.value_weight))?)?)
}

/// Tunes `model` on prompts that `draw` gives as tokens, each with what `reward` needs to know, by the
/// reward of the chosen objects. The history holds the mean reward of every batch. A killed run
/// continues from its last checkpoint in `work`.
///
/// # Errors
/// Those of `draw`, `reward` and the checkpoints.
pub fn fit<P>(
    model: &Lm,
    choices: &Choices,
    options: &PpoOptions,
    draw: impl Fn(&mut Stream) -> (Vec<u32>, P),
    reward: impl Fn(&[P], &[[usize; OBJECTS]], &mut Stream) -> Result<Vec<f64>>,
    seed: Seed,
    work: &Path,
) -> Result<History> {
    let supervised = model.frozen()?;
    let mut builder = Builder::seeded(seed);
    let zero = Init::Constant(0.0);
    let width = model.config().hidden_size;
    let value = builder.within("value", |b| Linear::with_init(b, width, 1, Some(zero), zero))?;
    let parameters: Parameters = model.parameters().clone().join(builder.finish())?;
    let adam = AdamWOptions { beta2: 0.95, weight_decay: 0.0, ..AdamWOptions::default() };
    let mut optimiser = AdamW::new(&parameters, adam);
    let mask = first_rows(choices.rows, model.config().vocab_size)?;
    let checkpoints = Checkpoints::open(&work.join("ppo"))?;
    let mut state = State { history: History::default(), kl: options.kl };
    let mut first = 0;
    if let Some(kept) = checkpoints.latest::<State>()? {
        parameters.load(&kept.tensors)?;
        optimiser.load_state(kept.step * options.epochs as u64, &kept.tensors)?;
        (first, state) = (kept.step, kept.state);
    }
    let bar = run::progress(options.steps, "ppo");
    bar.add(first);
    for step in first..options.steps {
        run::check_interrupt()?;
        let mut stream = seed.stream(&format!("ppo/{step}"));
        let (prompts, known): (Vec<_>, Vec<_>) =
            (0..options.batch).map(|_| draw(&mut stream)).unzip();
        let episodes = play(model, &value, choices, prompts, &mut stream)?;
        let (known_probs, _) =
            evaluate(&supervised, &value, choices, &episodes.prompts, &episodes.chosen)?;
        let reference = by_episode(&of_chosen(&known_probs, &episodes.chosen)?)?;
        let scores = reward(&known, &episodes.chosen, &mut stream)?;
        let (mut gains, mut returns, mut divergence) = (Vec::new(), Vec::new(), 0.0);
        for (episode, &score) in scores.iter().enumerate() {
            let off = |at: usize| episodes.log_probs[episode][at] - reference[episode][at];
            let mut rewards: Vec<f64> = (0..OBJECTS).map(|at| -state.kl * off(at)).collect();
            divergence += (0..OBJECTS).map(off).sum::<f64>() / scores.len() as f64;
            rewards[OBJECTS - 1] += score;
            let values = &episodes.values[episode];
            let (gain, back) = advantages(&rewards, values, options.discount, options.gae_lambda);
            gains.extend(gain);
            returns.extend(back);
        }
        for _ in 0..options.epochs {
            let (log_probs, values) =
                evaluate(model, &value, choices, &episodes.prompts, &episodes.chosen)?;
            let chosen = of_chosen(&log_probs, &episodes.chosen)?;
            let targets = [gains.clone(), returns.clone()];
            let loss = loss(&chosen, &values, &episodes, targets, options)?;
            let gradients = Gradients::of(&loss, &parameters)?;
            let mut gradients = masked(&gradients, &parameters, &mask)?;
            gradients.clip_global_norm(1.0)?;
            optimiser.step(&gradients, options.lr)?;
        }
        let error = (divergence / options.kl_target - 1.0).clamp(-0.2, 0.2);
        state.kl *= 1.0 + error * scores.len() as f64 / options.kl_horizon;
        state.history.losses.push(stats::mean_sd(&scores).0);
        bar.add(1);
        if (step + 1) % 10 == 0 && step + 1 < options.steps {
            let mut tensors = parameters.tensors();
            tensors.extend(optimiser.state()?);
            checkpoints.save(step + 1, &tensors, &state, None)?;
        }
    }
    Ok(state.history)
}
