//! Warm-up on text, then modality fusion under a curriculum (§3.4).

use common::nn::Parameters;
use common::optim::{AdamW, AdamWOptions, Gradients, Schedule, ScheduleShape, Workers};
use common::rng::{Seed, Stream};
use common::{Error, Result, run};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::Step;
use crate::model::fusion::{GROUPS, group_of, reaches};
use crate::model::{
    Batch, CmaScope, Dropout, GRAPH, Modalities, Noise, Pool, TEXT, Tmf, Used, View, mask,
};
use crate::prompt::{Answer, Prompter, Row};

/// How hard the prompts are over the steps of the fusion stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Curriculum {
    /// All modalities from the first step.
    None,
    /// LLaRA: text only with probability 1 − f, all modalities with probability f.
    Linear,
    /// Text only, then one modality, then all three.
    #[default]
    ThreeStage,
}

/// What a batch's prompts hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// L1: tokens only (titles or item tokens, behaviour tokens).
    Text,
    /// L2: one modality as well, through its adapter.
    One,
    /// L3: all modalities with CMA and AMSA.
    All,
}

impl Curriculum {
    /// Probabilities of L1, L2 and L3 at the share `f` of the steps. Three stages: L1 gives way to
    /// L2 over f = 1/6 … 1/2, and both to L3 over f = 1/3 … 2/3.
    pub fn probabilities(self, f: f64) -> [f64; 3] {
        let ramp = |from: f64, to: f64| ((f - from) / (to - from)).clamp(0.0, 1.0);
        match self {
            Self::None => [0.0, 0.0, 1.0],
            Self::Linear => [1.0 - ramp(0.0, 1.0), 0.0, ramp(0.0, 1.0)],
            Self::ThreeStage => {
                let (one, all) = (ramp(1.0 / 6.0, 0.5), ramp(1.0 / 3.0, 2.0 / 3.0));
                [(1.0 - all) * (1.0 - one), (1.0 - all) * one, all]
            }
        }
    }
}

/// Options of a training stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StageOptions {
    /// Optimiser steps; 0 leaves the stage out.
    pub steps: usize,
    /// Rows a step.
    pub batch: usize,
    /// Peak learning rate; linear warm-up over a twentieth of the steps, then half a cosine to 0
    /// (LLaRA's schedule).
    pub learning_rate: f64,
    /// Share of batches whose prompts list candidates; for answers by title.
    pub listed: f64,
}

impl Default for StageOptions {
    fn default() -> Self {
        Self { steps: 150, batch: 64, learning_rate: 3e-3, listed: 0.0 }
    }
}

/// Options of both stages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainOptions {
    /// Stage 1: text-only prompts.
    pub warm_up: StageOptions,
    /// Stage 2: modality fusion.
    pub fusion: StageOptions,
    /// Levels of stage 2.
    pub curriculum: Curriculum,
    /// Whether the items of the history are targets too. The answer alone is LLaRA's; this gives
    /// tens of targets a row instead of one and is what makes training from scratch possible.
    pub learn_history: bool,
    /// Dropout of the LM's input and of what its layers add.
    pub dropout: f64,
    /// Dropout of adapted vectors and of what AMSA adds.
    pub fusion_dropout: f64,
    /// Share of items whose token's own embedding is hidden, drawn anew each step, so that the
    /// modalities learn to speak for items that nobody has touched.
    pub hidden_tokens: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest norm of the gradient.
    pub clip: f64,
    /// Slices of a batch whose gradients are added; fixed, so that threads change nothing.
    pub slices: usize,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            warm_up: StageOptions::default(),
            fusion: StageOptions { steps: 1800, ..StageOptions::default() },
            curriculum: Curriculum::ThreeStage,
            learn_history: true,
            dropout: 0.3,
            fusion_dropout: 0.2,
            hidden_tokens: 0.2,
            weight_decay: 0.05,
            clip: 1.0,
            slices: 2,
        }
    }
}

/// What a stage learns from.
#[derive(Debug)]
pub struct Material<'a> {
    /// Prompts.
    pub prompter: &'a Prompter,
    /// Training part of every user's events.
    pub sequences: &'a [Vec<Step>],
    /// Items that may be drawn as negatives, and that the softmax over item tokens is over.
    pub pool: &'a Pool,
    /// Candidates a listed prompt has.
    pub candidates: usize,
    /// Frozen embeddings.
    pub modalities: &'a Modalities,
    /// Scope of CMA, which decides what a batch reaches.
    pub scope: CmaScope,
}

/// One recorded step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Step.
    pub step: usize,
    /// Mean cross-entropy since the last record.
    pub loss: f64,
}

/// A stretch of a user's events: those before the answer that the prompt shows, and the answer.
#[derive(Debug, Clone, Copy)]
struct Window {
    user: usize,
    first: usize,
    answer: usize,
}

/// Draws training rows, epoch by epoch.
pub struct Sampler<'a> {
    material: &'a Material<'a>,
    learn_history: bool,
    /// What is left of the epoch.
    left: Vec<Window>,
}

impl<'a> Sampler<'a> {
    /// Rows of `material`; see [`TrainOptions::learn_history`].
    ///
    /// # Errors
    /// [`Error::Data`] when no user has an event before one of the target behaviour.
    pub fn new(material: &'a Material<'a>, learn_history: bool) -> Result<Self> {
        let sampler = Self { material, learn_history, left: Vec::new() };
        if material.sequences.iter().all(|sequence| sampler.answers(sequence).next().is_none()) {
            return Err(Error::data(
                "no user with an event before one of the target behaviour",
                "at least one such user to learn from",
            ));
        }
        Ok(sampler)
    }

    /// Positions of the events after the first that have the target behaviour.
    fn answers<'b>(&self, sequence: &'b [Step]) -> impl Iterator<Item = usize> + use<'b> {
        let target = self.material.prompter.target;
        let asked = move |at: &usize| target.is_none_or(|t| t == sequence[*at].behaviour);
        (1..sequence.len()).filter(asked)
    }

    /// One epoch in random order. With learnt histories, each sequence is cut into windows of at
    /// most the prompt's history, the first cut at a random place, so that every event after the
    /// first is a target once (as SASRec is trained); else each answer has its own row.
    fn epoch(&self, stream: &mut Stream) -> Vec<Window> {
        let most = self.material.prompter.options.history;
        let mut windows = Vec::new();
        for (user, sequence) in self.material.sequences.iter().enumerate() {
            if !self.learn_history {
                let all = self.answers(sequence);
                windows.extend(all.map(|at| Window {
                    user,
                    first: at.saturating_sub(most),
                    answer: at,
                }));
                continue;
            }
            let last = sequence.len().saturating_sub(1);
            let mut first = 0;
            let mut answer = if last <= most { last } else { 1 + stream.below(most) };
            while first < last {
                windows.push(Window { user, first, answer });
                first = answer;
                answer = (answer + most).min(last);
            }
        }
        stream.shuffle(&mut windows);
        windows
    }

    /// One row; listed prompts have the answer and uniform items that the user has no event with.
    pub fn row(&mut self, listed: bool, template: usize, stream: &mut Stream) -> Row {
        let window = loop {
            match self.left.pop() {
                Some(window) => break window,
                None => self.left = self.epoch(stream),
            }
        };
        let material = self.material;
        let sequence = &material.sequences[window.user];
        let answer = sequence[window.answer];
        let candidates = listed.then(|| {
            let pool = &material.pool.items;
            let mut items = vec![answer.item];
            let mut tries = 0;
            while items.len() < material.candidates && tries < 50 * material.candidates {
                let item = pool[stream.below(pool.len())];
                let seen = sequence.iter().any(|step| step.item == item) || items.contains(&item);
                if !seen {
                    items.push(item);
                }
                tries += 1;
            }
            stream.shuffle(&mut items);
            items
        });
        material.prompter.example(
            &sequence[window.first..window.answer],
            candidates.as_deref(),
            answer,
            template,
            self.learn_history,
        )
    }
}

/// Parameters that are reached together or not at all, each with its optimiser.
struct Groups {
    parts: Vec<(Option<usize>, AdamW)>,
}

impl Groups {
    fn new(model: &Tmf, options: &TrainOptions) -> Self {
        let adamw = AdamWOptions {
            weight_decay: options.weight_decay,
            decay_vectors: false,
            ..AdamWOptions::default()
        };
        let mut parts = vec![(None, AdamW::new(model.lm.parameters(), adamw))];
        for group in 0..GROUPS.len() {
            let own = model.added.filter(|name| group_of(name) == group);
            if !own.is_empty() {
                parts.push((Some(group), AdamW::new(&own, adamw)));
            }
        }
        Self { parts }
    }

    /// The groups that a batch reaches; batches of tokens only leave the fusion as it is.
    fn reached(&mut self, used: Used, candidates: bool, scope: CmaScope) -> Vec<&mut AdamW> {
        let wanted = |group: &Option<usize>| match *group {
            None => true,
            Some(group) if GROUPS[group] == "items." => true,
            Some(_) if used == [false; 3] => false,
            Some(group) => reaches(group, used, candidates, scope),
        };
        self.parts.iter_mut().filter(|(group, _)| wanted(group)).map(|(_, adamw)| adamw).collect()
    }
}

/// Modalities of a level: at L2 the graph, or text, or image where the ones before are absent.
pub fn used_at(level: Level, modalities: &Modalities) -> Option<Used> {
    let there = [0, 1, 2].map(|at| modalities[at].is_some());
    match level {
        Level::Text => None,
        Level::One => {
            let one = [GRAPH, TEXT, 0].into_iter().find(|&at| there[at])?;
            Some([0, 1, 2].map(|at| at == one))
        }
        Level::All => Some(there),
    }
}

/// What a training step looks at: `hidden` of the item tokens are left out.
fn training_view(model: &Tmf, used: Used, hidden: f64, stream: &mut Stream) -> Result<View> {
    let tokens = model.items.as_ref().map(|items| {
        // without a modality, an item without its token would be nothing
        let hidden = if used == [false; 3] { 0.0 } else { hidden };
        let shown: Vec<bool> =
            items.known.iter().map(|&known| known && !stream.chance(hidden)).collect();
        mask(&shown)
    });
    Ok(View { used, tokens: tokens.transpose()? })
}

/// Runs one stage on the model in place and returns its losses. `fusion` = false: text only
/// (warm-up). The same seed gives the same model for any number of threads.
///
/// # Errors
/// [`Error::Data`] without anything to learn from; a gradient that is not finite; an interrupt.
pub fn stage(
    model: &Tmf,
    material: &Material<'_>,
    options: &TrainOptions,
    fusion: bool,
    seed: Seed,
    workers: &Workers,
) -> Result<Vec<Record>> {
    let stage = if fusion { &options.fusion } else { &options.warm_up };
    let name = if fusion { "fusion" } else { "warm-up" };
    let mut sampler = Sampler::new(material, options.learn_history)?;
    let mut stream = seed.stream(&format!("train/{name}"));
    let mut groups = Groups::new(model, options);
    let total = stage.steps as u64;
    let shape = ScheduleShape::Cosine { total: total.max(1) };
    let schedule = Schedule { peak: stage.learning_rate, warmup: total / 20, shape };
    let progress = run::progress(total, name);
    let mut records = Vec::new();
    let (mut sum, mut count) = (0.0, 0);
    let v = &material.prompter.vocabulary;
    let by_item = material.prompter.options.answer == Answer::Item;
    for step in 0..stage.steps {
        run::check_interrupt()?;
        let f = step as f64 / stage.steps as f64;
        let level = match (fusion && model.fusion.is_some(), options.curriculum) {
            (false, _) => Level::Text,
            (true, curriculum) => {
                [Level::Text, Level::One, Level::All][stream.weighted(&curriculum.probabilities(f))]
            }
        };
        let used = used_at(level, material.modalities).unwrap_or_default();
        let view = training_view(model, used, options.hidden_tokens, &mut stream)?;
        let plain = used == [false; 3] && view.tokens.is_none();
        let listed = !by_item && stream.chance(stage.listed);
        let template = stream.below(crate::prompt::TEMPLATES.len());
        let mut rows: Vec<Row> =
            (0..stage.batch).map(|_| sampler.row(listed, template, &mut stream)).collect();
        // slices of like lengths waste less padding
        rows.sort_by_key(|row| row.ids.len());
        let per_slice = rows.len().div_ceil(options.slices.max(1)).max(1);
        let batches = rows
            .chunks(per_slice)
            .map(|rows| {
                let parts: Vec<_> = rows.iter().map(Row::parts).collect();
                Batch::new(&parts, v.pad, v.size(), plain.then_some(v.text_only))
            })
            .collect::<Result<Vec<_>>>()?;
        let targets: usize = batches.iter().map(|batch| batch.targets).sum();
        let mut reached = groups.reached(used, listed || by_item, material.scope);
        let parameters = reached
            .iter()
            .try_fold(Parameters::default(), |all, adamw| all.join(adamw.parameters().clone()))?;
        let loss_of = |slice: usize| {
            let batch = &batches[slice];
            let stream = |part: &str| seed.stream(&format!("dropout/{name}/{part}/{step}/{slice}"));
            let mut noise = Noise {
                lm: Dropout::new(options.dropout, stream("lm")),
                fusion: Dropout::new(options.fusion_dropout, stream("fusion")),
            };
            let loss = model.loss(batch, material.modalities, &view, material.pool, &mut noise)?;
            Ok((loss * (batch.targets as f64 / targets as f64))?)
        };
        let (loss, mut gradients) = workers.gradients(&parameters, batches.len(), loss_of)?;
        gradients.clip_global_norm(options.clip)?;
        let rate = schedule.at(step as u64);
        let mut tensors = gradients.tensors().iter().cloned();
        for adamw in &mut reached {
            let own = adamw.parameters().clone();
            let part = tensors.by_ref().take(own.len()).collect();
            adamw.step(&Gradients::from_tensors(part, &own)?, rate)?;
        }
        sum += loss;
        count += 1;
        if (step + 1) % 25 == 0 || step + 1 == stage.steps {
            records.push(Record { step: step + 1, loss: sum / f64::from(count) });
            (sum, count) = (0.0, 0);
        }
        progress.add(1);
    }
    Ok(records)
}
