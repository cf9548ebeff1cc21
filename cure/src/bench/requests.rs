//! One deletion request: retrained models, sharded models, every unlearner, tuned and measured.

use std::time::Instant;

use common::lm::Lm;
use common::optim::Workers;
use common::report::Report;
use common::rng::Seed;
use common::run::{RunFolder, progress};
use common::{Error, Result};

use super::models::{Job, Model, Models};
use super::{figures, table};
use crate::baselines::{Method, Sharding, Source, methods, shards};
use crate::config::{Config, GroupsConfig, Order, UnlearnConfig};
use crate::eval::{Part, Quality, membership_auc, predict, predict_full, spearman};
use crate::model::groups::GroupRule;
use crate::model::losses::ForgetLoss;
use crate::model::update::Rule;
use crate::model::{Group, Grouping, attribution};
use crate::pairs::Corruption;
use crate::prompt::Prompt;
use crate::stages::{
    Case, Prepared, Seconds, Setting, forget_windows, prepare, stop_target, without_users,
};
use crate::train::unlearn::{Plan, Progress, Task, Unlearned, tune, unlearn};

/// What all requests of a bench share.
pub(super) struct Comparison<'a> {
    pub config: &'a Config,
    pub setting: &'a Setting,
    pub dataset: &'a str,
    pub originals: &'a [Model],
    pub seeds: &'a [u64],
    pub workers: &'a Workers,
    /// All methods, or the short list.
    pub full: bool,
    pub folder: Option<&'a RunFolder>,
}

/// What one model answers on all sets of a request.
#[derive(Debug, Clone)]
pub(super) struct Answers {
    /// p(Yes) on D_f.
    pub forget: Vec<f64>,
    /// Distributions over the vocabulary on a part of D_f.
    pub full: Vec<Vec<f32>>,
    /// p(Yes) on never-seen users.
    pub held_out: Vec<f64>,
    /// Quality on the test records of the users who stay.
    pub test: Quality,
    /// Log loss on the tuning records of the users who stay.
    pub tuning: f64,
    /// p(Yes) on D_f after a short training on a tenth of it.
    pub relearned: Option<Vec<f64>>,
}

/// What one model, or several on average, predict on all sets.
struct Predicted {
    forget: Vec<f64>,
    full: Vec<Vec<f32>>,
    held_out: Vec<f64>,
    test: Vec<f64>,
    tuning: Vec<f64>,
}

/// A run of a method with one seed.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub answers: Answers,
    pub seconds: Seconds,
    pub tokens: f64,
    pub lr: f64,
    pub progress: Progress,
}

/// All runs of a method.
pub(super) struct Outcome {
    pub method: Method,
    pub runs: Vec<Run>,
}

/// The sets that models are measured on.
pub(super) struct Sets {
    /// D_f as it would be served after the deletion.
    pub forget: Part,
    /// D_f with the users' tokens; `None` when that is the same.
    pub as_trained: Option<Part>,
    pub held_out: Part,
    pub test: Part,
    tuning: Part,
    relearn: Vec<Prompt>,
}

/// Windows of D_f whose whole-vocabulary distributions are compared.
const FULL_WINDOWS: usize = 60;
/// Windows of tuning records.
const TUNING: usize = 200;
/// Shards of SISA and RecEraser.
const SHARDS: usize = 4;

impl Sets {
    fn new(comparison: &Comparison<'_>, case: &Case) -> Self {
        let setting = comparison.setting;
        let served = case.served();
        let prompts = case.prompts(setting);
        let split = &setting.split;
        let test = setting.test_records(&served, comparison.config.bench.test_records);
        let tuning = prompts.records(&served, |user| split.train[user]..split.valid[user]);
        let step = tuning.len().div_ceil(TUNING).max(1);
        let tuning: Vec<_> = tuning.into_iter().step_by(step).collect();
        let forget = case.forget_part();
        let as_trained: Vec<Prompt> = case
            .forget
            .iter()
            .map(|(window, prompt)| {
                let ids = setting.prompts().of_window(window).ids;
                Prompt { ids, answers: prompt.answers.clone() }
            })
            .collect();
        let tenth = forget.prompts.len().div_ceil(10);
        Self {
            relearn: forget.prompts[..tenth].to_vec(),
            as_trained: (as_trained != forget.prompts).then(|| Part::new(as_trained)),
            forget,
            held_out: Part::new(setting.held_out()),
            test: Part::new(prompts.of_windows(&test)),
            tuning: Part::new(prompts.of_windows(&tuning)),
        }
    }

    fn predict(&self, lm: &Lm, one: &Workers) -> Result<Predicted> {
        let full = &self.forget.prompts[..FULL_WINDOWS.min(self.forget.prompts.len())];
        Ok(Predicted {
            forget: predict(lm, &self.forget.prompts, one)?,
            full: predict_full(lm, full)?,
            held_out: predict(lm, &self.held_out.prompts, one)?,
            test: predict(lm, &self.test.prompts, one)?,
            tuning: predict(lm, &self.tuning.prompts, one)?,
        })
    }

    fn judge(&self, predicted: Predicted, relearned: Option<Vec<f64>>) -> Answers {
        let Predicted { forget, full, held_out, test, tuning } = predicted;
        Answers {
            forget,
            full,
            held_out,
            test: Quality::of(&self.test.labels, &test),
            tuning: Quality::of(&self.tuning.labels, &tuning).log_loss,
            relearned,
        }
    }

    fn answers(&self, lm: &Lm, relearn: Option<(usize, Seed)>, one: &Workers) -> Result<Answers> {
        let relearned = match relearn {
            Some((steps, seed)) if steps > 0 => {
                let tuned = tune(lm, &self.relearn, steps, 16, 1e-3, seed, one)?;
                Some(predict(&tuned, &self.forget.prompts, one)?)
            }
            _ => None,
        };
        Ok(self.judge(self.predict(lm, one)?, relearned))
    }

    /// Membership attack on a model's answers.
    pub(super) fn membership(&self, answers: &Answers) -> f64 {
        membership_auc(
            (&self.forget.labels, &answers.forget),
            (&self.held_out.labels, &answers.held_out),
        )
    }
}

/// Everything that the table and the figures of a request show.
pub(super) struct Measured {
    pub sets: Sets,
    /// Nothing unlearned, prompts of D_f with the users' tokens where there are any.
    pub untouched: Vec<Answers>,
    /// The tokens of deleted users erased, nothing else.
    pub originals: Vec<Answers>,
    pub retrained: Vec<Run>,
    pub outcomes: Vec<Outcome>,
    /// Sharded training: name and, per seed, its run.
    pub sharded: Vec<(String, Vec<Run>, String)>,
    pub prepared: Vec<Prepared>,
    pub groupings: Vec<Grouping>,
    pub stop_at: Vec<Option<f64>>,
    /// EAP-IG and exact scores of the edges on the first seed's model, with their rank correlation.
    pub exact: Option<(Vec<f64>, Vec<f64>, f64)>,
}

/// Runs a request and adds its rows and figures.
pub(super) fn run(
    comparison: &Comparison<'_>,
    models: &mut Models<'_>,
    (case, retrained_models): (&Case, &[Model]),
    report: &mut Report,
) -> Result<()> {
    let Comparison { config, setting, seeds, workers, full, .. } = *comparison;
    let sets = Sets::new(comparison, case);
    let relearn = |seed: u64| {
        (config.bench.relearn_steps > 0 && full)
            .then(|| (config.bench.relearn_steps, Seed::new(seed)))
    };
    let measure = |all: &[&Lm]| {
        workers.map(all.len(), |at| {
            sets.answers(all[at], relearn(seeds[at % seeds.len()]), &Workers::new(1)?)
        })
    };
    // deleted users lose their tokens first, whatever follows
    let gone = case.unknown_users(setting);
    let erased = comparison.originals.iter().map(|model| without_users(&model.lm, setting, &gone));
    let originals = erased.collect::<Result<Vec<Lm>>>()?;
    let retrained_lms = retrained_models.iter().map(|model| &model.lm);
    let mut answers = measure(&originals.iter().chain(retrained_lms).collect::<Vec<_>>())?;
    let gold = answers.split_off(originals.len());
    let untouched = workers.map(answers.len(), |at| match &sets.as_trained {
        Some(part) => {
            let lm = &comparison.originals[at].lm;
            let forget = predict(lm, &part.prompts, &Workers::new(1)?)?;
            let full = predict_full(lm, &part.prompts[..FULL_WINDOWS.min(part.prompts.len())])?;
            Ok(Answers { forget, full, relearned: None, ..answers[at].clone() })
        }
        None => Ok(answers[at].clone()),
    })?;
    let retrained = retrained_models.iter().zip(gold).map(|(model, answers)| whole(model, answers));
    let retrained: Vec<Run> = retrained.collect();

    // stages A to C for every seed's model: with the configured corruption, then with the random one
    let mut corruptions = vec![config.circuit.corruption];
    corruptions.extend(full.then_some(Corruption::Random));
    let mut staged = workers.map(corruptions.len() * seeds.len(), |job| {
        let (corruption, at) = (corruptions[job / seeds.len()], job % seeds.len());
        let (lm, seed) = (&originals[at], Seed::new(seeds[at]));
        prepare(lm, setting, case, &config.circuit, corruption, seed, &Workers::new(1)?)
    })?;
    let by_random = staged.split_off(seeds.len());
    let windows_of = |corruption, loss| {
        let start = Instant::now();
        let seed = Seed::new(seeds[0]);
        let windows = forget_windows(setting, case, &config.circuit, corruption, loss, seed)?;
        Ok::<_, Error>((windows, start.elapsed().as_secs_f64()))
    };
    let counterfactual = windows_of(config.circuit.corruption, ForgetLoss::CfKl)?;
    let random = match full {
        true => Some(windows_of(Corruption::Random, ForgetLoss::CfKl)?),
        false => None,
    };
    let stop_at = workers.map(seeds.len(), |at| {
        let seed = Seed::new(seeds[at]);
        stop_target(&originals[at], setting, &counterfactual.0, case, seed, &Workers::new(1)?)
    })?;

    let bar = progress(0, &format!("unlearn {}", case.request.name()));
    let one_run = |method: &Method, at: usize, lr: f64| {
        let used = match method.source {
            Source::RandomCorruption => by_random.get(at).unwrap_or(&staged[at]),
            _ => &staged[at],
        };
        let (windows, pair_seconds) = match (method.source, &random) {
            (Source::RandomCorruption, Some(random)) => random,
            _ => &counterfactual,
        };
        let plan = plan_of(method, config, used, seeds[at], lr)?;
        let task = Task {
            original: &originals[at],
            forget: windows,
            retain: &case.retain,
            stop_at: stop_at[at],
        };
        let (seed, one) = (Seed::new(seeds[at]), Workers::new(1)?);
        let done = unlearn(&task, &plan, None, seed, &one, None)?;
        bar.add(1);
        let circuits = !matches!(method.source, Source::None | Source::AllShared);
        let mut seconds = if circuits { used.seconds } else { Seconds::default() };
        if plan.options.loss == ForgetLoss::CfKl {
            seconds.pairs += pair_seconds;
        }
        seconds.update = done.seconds;
        let tokens = if circuits { used.tokens } else { 0.0 };
        Ok::<_, Error>((done, seconds, tokens))
    };
    let measured_run = |(done, seconds, circuit_tokens): (&Unlearned, Seconds, f64), at, lr| {
        Ok::<_, Error>(Run {
            answers: sets.answers(&done.lm, relearn(seeds[at]), &Workers::new(1)?)?,
            seconds,
            tokens: done.tokens + circuit_tokens,
            lr,
            progress: done.progress.clone(),
        })
    };
    // learning rates are tuned on the first seed, without looking at a retrained model
    let chosen: Vec<Method> = methods().into_iter().filter(|method| full || method.short).collect();
    let lrs = &config.bench.lrs;
    let tries = workers.map(chosen.len() * lrs.len(), |job| {
        let (done, seconds, tokens) = one_run(&chosen[job / lrs.len()], 0, lrs[job % lrs.len()])?;
        let tuning = sets.tuning.quality(&done.lm, &Workers::new(1)?)?.log_loss;
        let badness = badness(&done, tuning, (stop_at[0], answers[0].tuning));
        Ok((done, seconds, tokens, badness))
    })?;
    let best: Vec<usize> = tries
        .chunks(lrs.len())
        .map(|tries| {
            (1..tries.len()).fold(0, |best, at| if tries[at].3 < tries[best].3 { at } else { best })
        })
        .collect();
    let runs = workers.map(chosen.len() * seeds.len(), |job| {
        let (method, at) = (job / seeds.len(), job % seeds.len());
        let lr = lrs[best[method]];
        if at == 0 {
            let (done, seconds, tokens, _) = &tries[method * lrs.len() + best[method]];
            return measured_run((done, *seconds, *tokens), 0, lr);
        }
        let (done, seconds, tokens) = one_run(&chosen[method], at, lr)?;
        measured_run((&done, seconds, tokens), at, lr)
    })?;
    let outcomes: Vec<Outcome> = chosen
        .into_iter()
        .zip(runs.chunks(seeds.len()))
        .map(|(method, runs)| Outcome { method, runs: runs.to_vec() })
        .collect();
    let sharded = if full { sharded(comparison, models, case, &sets)? } else { Vec::new() };
    let exact = if full && config.bench.exact_pairs > 0 {
        let (lm, prepared) = (&originals[0], &staged[0]);
        let pairs = prepared.forget.pairs.first(config.bench.exact_pairs);
        let steps = (config.circuit.steps > 0).then_some(config.circuit.steps);
        let network = &prepared.network;
        let fast = attribution::attribute(lm, network, &pairs, steps, workers)?.mean();
        let slow = attribution::exact(lm, network, &pairs, workers)?.mean();
        let rho = spearman(&fast, &slow);
        Some((fast, slow, rho))
    } else {
        None
    };
    let groupings =
        staged.iter().map(|prepared| prepared.groups(&config.groups)).collect::<Result<_>>()?;
    let measured = Measured {
        sets,
        untouched,
        originals: answers,
        retrained,
        outcomes,
        sharded,
        prepared: staged,
        groupings,
        stop_at,
        exact,
    };
    let dataset = format!("{}, forget {}", comparison.dataset, case.request.name());
    report.rows.extend(table::rows(&dataset, config, &measured, case));
    if full {
        report.figures.extend(figures::of_request(&dataset, &measured)?);
        if let Some(folder) = comparison.folder {
            for (name, text) in figures::graph_files(&measured)? {
                folder.write(&format!("graphs/{name}"), text.as_bytes())?;
            }
        }
    } else {
        report.figures.push(figures::distances(&dataset, &report.rows));
    }
    Ok(())
}

fn whole(model: &Model, answers: Answers) -> Run {
    Run {
        answers,
        seconds: Seconds { update: model.seconds, ..Seconds::default() },
        tokens: model.tokens,
        lr: 0.0,
        progress: Progress::default(),
    }
}

/// How far a run is from the stop rule's mark, plus what it costs the users who stay. Log losses
/// both, so they add.
fn badness(done: &Unlearned, tuned: f64, (stop_at, tuning): (Option<f64>, f64)) -> f64 {
    let forget = done.progress.looks.last().map_or(f64::INFINITY, |look| look.forget);
    let gap = stop_at.map_or(0.0, |mark| (forget - mark).abs());
    gap + (tuned - tuning).max(0.0)
}

fn plan_of(
    method: &Method,
    config: &Config,
    prepared: &Prepared,
    seed: u64,
    lr: f64,
) -> Result<Plan> {
    let groups = |groups: GroupsConfig| prepared.groups(&groups);
    let standard = || groups(config.groups.clone());
    let grouping = match method.source {
        Source::None => None,
        Source::Circuits | Source::RandomCorruption => Some(standard()?),
        Source::Shuffled => {
            let mut stream = Seed::new(seed).stream("shuffled-groups");
            Some(standard()?.shuffled(&prepared.network, &mut stream))
        }
        Source::GradientOnly => Some(groups(GroupsConfig {
            lambda: 0.0,
            rule: GroupRule::Ratio,
            ..config.groups.clone()
        })?),
        Source::AllShared => Some(Grouping::all(prepared.network.modules(), Group::Shared)),
        Source::Swapped => Some(standard()?.swapped()),
        Source::SetRule => {
            Some(groups(GroupsConfig { rule: GroupRule::Set, ..config.groups.clone() })?)
        }
    };
    let options = UnlearnConfig {
        lr,
        loss: method.loss.unwrap_or(config.unlearn.loss),
        mu: if method.rule == Rule::RetainOnly { 0.0 } else { config.unlearn.mu },
        order: if method.blockwise { Order::Blockwise } else { config.unlearn.order },
        lora: if method.lora {
            Some(config.unlearn.lora.clone().unwrap_or_default())
        } else {
            config.unlearn.lora.clone()
        },
        ..config.unlearn.clone()
    };
    Ok(Plan { options, rule: method.rule.clone(), grouping })
}

/// SISA and RecEraser after the deletion: shards that lost events are trained anew; answers are the
/// mean over the shards' models.
fn sharded(
    comparison: &Comparison<'_>,
    models: &mut Models<'_>,
    case: &Case,
    sets: &Sets,
) -> Result<Vec<(String, Vec<Run>, String)>> {
    let Comparison { setting, seeds, workers, .. } = *comparison;
    let mut all = Vec::new();
    for (name, sharding) in [("SISA", Sharding::Random), ("RecEraser", Sharding::ByTaste)] {
        let mut runs = Vec::new();
        let (mut touched, mut total) = (0, 0);
        for &seed in seeds {
            let mut stream = Seed::new(seed).stream(&format!("shards/{name}"));
            let shard = shards(&setting.data, &setting.split, sharding, SHARDS, &mut stream);
            let windows: Vec<Vec<Prompt>> = (0..SHARDS)
                .map(|wanted| {
                    let mask: Vec<Vec<bool>> = case
                        .retained
                        .iter()
                        .enumerate()
                        .map(|(user, kept)| {
                            let here = shard[user] == Some(wanted);
                            kept.iter().map(|&kept| kept && here).collect()
                        })
                        .collect();
                    setting.prompts().of_mask(&mask)
                })
                .filter(|windows| !windows.is_empty())
                .collect();
            let hit: Vec<usize> = case.deletion.users().iter().filter_map(|&u| shard[u]).collect();
            let affected = (0..SHARDS).filter(|shard| hit.contains(shard)).count();
            (touched, total) = (touched + affected, total + SHARDS);
            let jobs: Vec<Job<'_>> =
                windows.iter().map(|windows| Job { name: "shard", seed, windows }).collect();
            let members = models.train(&jobs)?;
            let predicted = workers
                .map(members.len(), |at| sets.predict(&members[at].lm, &Workers::new(1)?))?;
            let share = affected as f64 / SHARDS as f64;
            let sum = |part: fn(&Model) -> f64| share * members.iter().map(part).sum::<f64>();
            runs.push(Run {
                answers: sets.judge(mean_of(&predicted), None),
                seconds: Seconds { update: sum(|m| m.seconds), ..Seconds::default() },
                tokens: sum(|m| m.tokens),
                lr: 0.0,
                progress: Progress::default(),
            });
        }
        let note =
            format!("{SHARDS} shards; the request touches {touched} of {total} over the seeds");
        all.push((name.to_owned(), runs, note));
    }
    Ok(all)
}

/// The mean of several models' predictions.
fn mean_of(all: &[Predicted]) -> Predicted {
    let mean = |part: fn(&Predicted) -> &[f64]| -> Vec<f64> {
        let count = part(&all[0]).len();
        (0..count)
            .map(|at| all.iter().map(|p| part(p)[at]).sum::<f64>() / all.len() as f64)
            .collect()
    };
    let row = |at: usize| -> Vec<f32> {
        let of = |token: usize| all.iter().map(|p| p.full[at][token]).sum::<f32>();
        (0..all[0].full[at].len()).map(|token| of(token) / all.len() as f32).collect()
    };
    Predicted {
        forget: mean(|p| &p.forget),
        full: (0..all[0].full.len()).map(row).collect(),
        held_out: mean(|p| &p.held_out),
        test: mean(|p| &p.test),
        tuning: mean(|p| &p.tuning),
    }
}
