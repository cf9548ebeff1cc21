//! Unlearning (stage D): one loop for CURE, its ablations and all gradient-based baselines. What
//! differs is the forget loss, the rule that makes one gradient of two, and the groups.

use std::time::Instant;

use candle_core::Tensor;
use common::checkpoint::Checkpoints;
use common::lm::Lm;
use common::optim::{AdamW, AdamWOptions, Gradients, Workers};
use common::rng::Seed;
use common::run::check_interrupt;
use common::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{keep, resume, workers_gradients};
use crate::config::{Order, UnlearnConfig};
use crate::model::losses::{self, ForgetLoss};
use crate::model::recommender::Batch;
use crate::model::update::{Blocks, Rule, combine};
use crate::model::{Group, Grouping, Network, Recommender};
use crate::prompt::Prompt;

/// A forget window with its counterfactuals: same length, same targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForgetWindow {
    /// The window as it was trained on.
    pub prompt: Prompt,
    /// Two counterfactuals, each with the answers whose item stands in it: between them, every answer
    /// has one. Empty unless the loss needs them.
    pub counterfactuals: Vec<Prompt>,
}

/// What an unlearner works on.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// The model to forget from; it is not changed.
    pub original: &'a Lm,
    /// D_f.
    pub forget: &'a [ForgetWindow],
    /// D_r.
    pub retain: &'a [Prompt],
    /// Stop once the mean loss on (a part of) D_f reaches this.
    pub stop_at: Option<f64>,
}

/// How it is done.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Losses, steps, rates.
    pub options: UnlearnConfig,
    /// How two gradients become one.
    pub rule: Rule,
    /// Groups of modules, for [`Rule::Grouped`].
    pub grouping: Option<Grouping>,
}

/// New groups for the present weights.
pub type Regroup<'a> = &'a dyn Fn(&Lm) -> Result<Grouping>;

/// One look at the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// Steps done.
    pub step: usize,
    /// Mean cross-entropy of the answers in the probed forget windows.
    pub forget: f64,
    /// Cosine of forget and retain gradient per block at the last step; `None` where one vanished.
    pub cosines: Vec<Option<f64>>,
}

/// State of a run, kept with its checkpoints.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Looks so far; the first is before the first step.
    pub looks: Vec<Look>,
    /// Whether the stop rule held.
    pub stopped: bool,
    /// Steps done.
    pub steps: usize,
    /// Tokens that went through a forward pass so far; a backward pass counts as two.
    pub forward: usize,
    /// Groups in force.
    pub grouping: Option<Grouping>,
}

/// The result.
#[derive(Debug, Clone)]
pub struct Unlearned {
    /// The new model; adapters are merged into its weights.
    pub lm: Lm,
    /// How it went.
    pub progress: Progress,
    /// Tokens that went through a forward and backward pass; a forward pass alone counts a third.
    pub tokens: f64,
    /// Seconds of the updates.
    pub seconds: f64,
}

/// Forget windows whose loss decides about stopping: the first so many.
pub const PROBE: usize = 48;

/// Forgets. The same seed gives the same weights, also when the run was interrupted and goes on
/// from `checkpoints`.
///
/// # Errors
/// [`Error::Data`] on an empty forget or retain set or a loss that is not finite;
/// [`Error::Interrupted`].
pub fn unlearn(
    task: &Task<'_>,
    plan: &Plan,
    regroup: Option<Regroup<'_>>,
    seed: Seed,
    workers: &Workers,
    checkpoints: Option<&Checkpoints>,
) -> Result<Unlearned> {
    if task.forget.is_empty() || task.retain.is_empty() {
        return Err(Error::data(
            format!("{} forget and {} retain windows", task.forget.len(), task.retain.len()),
            "at least one of each",
        ));
    }
    let start = Instant::now();
    let options = &plan.options;
    let original = Recommender { lm: task.original.frozen()? };
    let mut model = Recommender {
        lm: Lm::from_tensors(task.original.config(), task.original.parameters().tensors())?,
    };
    let parameters = match &options.lora {
        Some(lora) => model.lm.attach_lora(&lora.options(), seed)?,
        None if plan.rule == Rule::Grouped => {
            model.lm.parameters().filter(|name| name.contains(".h.") || name.contains(".layers."))
        }
        None => model.lm.parameters().clone(),
    };
    let network = Network::new(model.lm.config());
    let blocks = Blocks::new(model.lm.config(), &network, &parameters)?;
    // no decay: what gets no gradient stays as it is, bit for bit
    let adamw = AdamWOptions { weight_decay: 0.0, ..AdamWOptions::default() };
    let mut optimiser = AdamW::new(&parameters, adamw);
    let augmented = match options.loss {
        ForgetLoss::E2urec => Some(Recommender { lm: augmented(task, options, seed, workers)? }),
        _ => None,
    };
    let mut state: Progress = match resume(checkpoints, &parameters, &mut optimiser)? {
        Some(state) => state,
        None => Progress {
            grouping: plan.grouping.clone(),
            forward: match options.loss {
                ForgetLoss::E2urec => {
                    let each = tokens(task.forget.iter().map(|window| &window.prompt));
                    3 * teacher_steps(options) * options.batch * each / task.forget.len()
                }
                _ => 0,
            },
            ..Progress::default()
        },
    };
    let probe: Vec<&Prompt> = task.forget.iter().take(PROBE).map(|window| &window.prompt).collect();
    let look = |step: usize, cosines: &[f64], state: &mut Progress| {
        let forget = mean_loss(&model, &probe, workers)?;
        if !forget.is_finite() {
            let found = format!("a forget loss of {forget} after {step} steps");
            return Err(Error::data(found, "a finite loss; lower unlearn.lr"));
        }
        let cosines = cosines.iter().map(|c| c.is_finite().then_some(*c)).collect();
        state.looks.push(Look { step, forget, cosines });
        state.forward += tokens(probe.iter().copied());
        state.stopped = task.stop_at.is_some_and(|target| forget >= target);
        Ok::<_, Error>(())
    };
    if state.looks.is_empty() {
        look(0, &[], &mut state)?;
        // a forget set that looks unseen already still gets its first steps
        state.stopped = false;
    }
    for step in state.steps..options.steps {
        if state.stopped {
            break;
        }
        check_interrupt()?;
        if let Some(regroup) =
            regroup.filter(|_| options.reextract > 0 && step > 0 && step % options.reextract == 0)
        {
            state.grouping = Some(regroup(&model.lm)?);
        }
        let retained = batch_of(task.retain, options.batch, step, &seed, "retain");
        state.forward += tokens(retained.0.iter().copied()) * (3 + usize::from(options.mu > 0.0));
        let (_, retain) = workers_gradients(workers, &parameters, &retained.0, |batch| {
            let logits = model.answer_logits(batch)?;
            let known =
                if options.mu > 0.0 { original.answer_logits(batch)? } else { logits.detach() };
            losses::retain(&logits, &known, &batch.labels, options.mu)
        })?;
        let forget = if plan.rule == Rule::RetainOnly {
            retain.clone()
        } else {
            let forgotten = batch_of(task.forget, options.batch, step, &seed, "forget");
            state.forward += tokens(forgotten.0.iter().map(|window| &window.prompt))
                * (3 + options.loss.teachers());
            let teachers = [&original, augmented.as_ref().unwrap_or(&original)];
            forget_gradient(&model, teachers, &parameters, options, forgotten, workers)?
        };
        let only = match options.order {
            Order::Simultaneous => None,
            Order::Blockwise => Some(Group::ALL[step % 3]),
        };
        let both = [&forget, &retain];
        let grouping = state.grouping.as_ref();
        let gradient =
            combine(&plan.rule, &blocks, grouping, only, options.weight, both, &parameters)?;
        optimiser.step(&gradient, options.lr)?;
        state.steps = step + 1;
        let due = options.check_every > 0 && (step + 1) % options.check_every == 0;
        if due || step + 1 == options.steps {
            look(step + 1, &blocks.cosines(&forget, &retain)?, &mut state)?;
            keep(checkpoints, &parameters, &optimiser, &state)?;
        }
    }
    if options.lora.is_some() {
        model.lm.merge_lora()?;
    }
    Ok(Unlearned {
        tokens: state.forward as f64 / 3.0,
        lm: model.lm,
        progress: state,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Number of tokens.
fn tokens<'a>(prompts: impl Iterator<Item = &'a Prompt>) -> usize {
    prompts.map(|prompt| prompt.ids.len()).sum()
}

/// The windows of step `step`: the set in an order drawn anew for every pass over it, and the number
/// of the pass.
fn batch_of<'a, T>(
    all: &'a [T],
    size: usize,
    step: usize,
    seed: &Seed,
    name: &str,
) -> (Vec<&'a T>, usize) {
    let size = size.min(all.len());
    let per_pass = all.len() / size;
    let (pass, at) = (step / per_pass, step % per_pass);
    let order = seed.stream(&format!("{name}/pass-{pass}")).permutation(all.len());
    (order[at * size..(at + 1) * size].iter().map(|&index| &all[index]).collect(), pass)
}

fn forget_gradient(
    model: &Recommender,
    [original, augmented]: [&Recommender; 2],
    parameters: &common::nn::Parameters,
    options: &UnlearnConfig,
    (windows, pass): (Vec<&ForgetWindow>, usize),
    workers: &Workers,
) -> Result<Gradients> {
    if options.loss == ForgetLoss::CfKl {
        return counterfactual_gradient(model, original, parameters, (&windows, pass), workers);
    }
    let prompts: Vec<&Prompt> = windows.iter().map(|window| &window.prompt).collect();
    let (_, gradients) = workers_gradients(workers, parameters, &prompts, |batch| {
        let logits = model.answer_logits(batch)?;
        let labels = &batch.labels;
        match options.loss {
            ForgetLoss::Ga | ForgetLoss::CfKl => losses::gradient_ascent(&logits, labels),
            ForgetLoss::Npo => {
                losses::npo(&logits, &original.answer_logits(batch)?, labels, options.beta)
            }
            ForgetLoss::UniformKl => losses::uniform_kl(&logits),
            ForgetLoss::E2urec => {
                let (l0, more) = (original.answer_logits(batch)?, augmented.answer_logits(batch)?);
                losses::kl_to(&losses::e2urec_teacher(&l0, &more, TEACHER)?, &logits)
            }
        }
    })?;
    Ok(gradients)
}

/// Strength of E2URec's teacher (its published setting).
const TEACHER: f64 = 2.0;

/// `cf-kl`: KL from the original's answers on the counterfactual to the model's on the window.
fn counterfactual_gradient(
    model: &Recommender,
    original: &Recommender,
    parameters: &common::nn::Parameters,
    (windows, pass): (&[&ForgetWindow], usize),
    workers: &Workers,
) -> Result<Gradients> {
    let mut pairs = Vec::new();
    for window in windows {
        let other = window.counterfactuals.get(pass % 2).ok_or_else(|| {
            Error::Bug("cf-kl without counterfactuals of a forget window".to_owned())
        })?;
        let clean = Prompt { ids: window.prompt.ids.clone(), answers: other.answers.clone() };
        pairs.push((clean, other));
    }
    let parts: Vec<_> = pairs
        .chunks(pairs.len().div_ceil(super::SLICES).max(1))
        .filter(|part| part.iter().any(|(clean, _)| !clean.answers.is_empty()))
        .map(|part| {
            let clean = Batch::new(part.iter().map(|(clean, _)| clean))?;
            Ok((clean, Batch::new(part.iter().map(|(_, other)| *other))?))
        })
        .collect::<Result<_>>()?;
    let all: usize = parts.iter().map(|(clean, _): &(Batch, Batch)| clean.answers).sum();
    let (_, gradients) = workers.gradients(parameters, parts.len(), |at| {
        let (clean, other) = &parts[at];
        let loss = losses::kl_to(&original.answer_logits(other)?, &model.answer_logits(clean)?)?;
        Ok((loss * (clean.answers as f64 / all as f64))?)
    })?;
    Ok(gradients)
}

/// E2URec's augmented model: the original trained further on the forget set.
fn augmented(
    task: &Task<'_>,
    options: &UnlearnConfig,
    seed: Seed,
    workers: &Workers,
) -> Result<Lm> {
    let windows: Vec<Prompt> = task.forget.iter().map(|window| window.prompt.clone()).collect();
    let steps = teacher_steps(options);
    tune(task.original, &windows, steps, options.batch, options.lr, seed, workers)
}

/// Steps of further training that E2URec's teacher takes.
fn teacher_steps(options: &UnlearnConfig) -> usize {
    options.steps.div_ceil(2)
}

/// `steps` plain training steps on `windows` from the weights of `lm`, which stays as it is.
///
/// # Errors
/// [`Error::Data`] without windows.
pub fn tune(
    lm: &Lm,
    windows: &[Prompt],
    steps: usize,
    batch: usize,
    lr: f64,
    seed: Seed,
    workers: &Workers,
) -> Result<Lm> {
    if windows.is_empty() {
        return Err(Error::data("no window to train on", "at least one"));
    }
    let model = Recommender { lm: Lm::from_tensors(lm.config(), lm.parameters().tensors())? };
    let parameters = model.lm.parameters().clone();
    let adamw = AdamWOptions { weight_decay: 0.0, ..AdamWOptions::default() };
    let mut optimiser = AdamW::new(&parameters, adamw);
    for step in 0..steps {
        check_interrupt()?;
        let (part, _) = batch_of(windows, batch, step, &seed, "tune");
        let (_, gradients) = workers_gradients(workers, &parameters, &part, |batch| {
            losses::cross_entropy(&model.answer_logits(batch)?, &batch.labels)
        })?;
        optimiser.step(&gradients, lr)?;
    }
    Ok(model.lm)
}

/// Mean cross-entropy of all answers.
///
/// # Errors
/// Those of the passes.
pub fn mean_loss(model: &Recommender, prompts: &[&Prompt], workers: &Workers) -> Result<f64> {
    let parts: Vec<&[&Prompt]> = prompts.chunks(32).collect();
    let sums = workers.map(parts.len(), |at| {
        let batch = Batch::new(parts[at].iter().copied())?;
        let logits: Tensor = model.answer_logits(&batch)?.detach();
        let mean = f64::from(losses::cross_entropy(&logits, &batch.labels)?.to_scalar::<f32>()?);
        Ok((mean * batch.answers as f64, batch.answers))
    })?;
    let (sum, answers) = sums.iter().fold((0.0, 0), |all, part| (all.0 + part.0, all.1 + part.1));
    Ok(sum / answers as f64)
}
