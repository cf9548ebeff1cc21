//! `unlearn`: a new model and a report.

use std::path::PathBuf;

use candle_core::Tensor;
use clap::Args;
use common::checkpoint::Checkpoints;
use common::cli::{CommonArgs, Resolved, text};
use common::lm::Lm;
use common::optim::Workers;
use common::report::{Report, html};
use common::rng::Seed;
use common::run::{RunFolder, RunSpec, hash8};
use common::{Error, Result};

use super::{DataArgs, RequestArgs, weights_hash, workers};
use crate::config::Config;
use crate::eval::{Part, Quality, membership_auc, predict};
use crate::evidence::{Change, Evidence, Moved, circuit_json, limits};
use crate::folder;
use crate::model::update::{Blocks, Rule};
use crate::model::{Group, Grouping, Network};
use crate::prompt::Prompt;
use crate::stages::{Case, Seconds, Setting, forget_windows, prepare, stop_target, without_users};
use crate::train::unlearn::{Plan, Progress, Task, Unlearned, unlearn as run_unlearning};

/// Flags of `unlearn`.
#[derive(Debug, Args)]
pub struct UnlearnArgs {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    request: RequestArgs,
    /// Folder of the model; it is not changed
    #[arg(long, value_name = "DIR", default_value = "model")]
    model: PathBuf,
    /// Folder of the new model
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

pub(super) fn unlearn(
    unlearn: &UnlearnArgs,
    args: &CommonArgs,
    resolved: &Resolved<Config>,
) -> Result<String> {
    let same = |a: &PathBuf, b: &PathBuf| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    };
    if same(&unlearn.model, &unlearn.to) {
        return Err(Error::usage("--to is the model's own folder; name another one"));
    }
    let (lm, about) = folder::load(&unlearn.model)?;
    let setting = about.setting(unlearn.data.read(args, &resolved.config)?)?;
    let seed = Seed::new(args.seed);
    let case = Case::new(&setting, &unlearn.request.request()?, seed)?;
    let run = RunFolder::open(&RunSpec::new("cure", args, resolved, &[args.seed]))?;
    let outcome = (|| {
        let workers = workers(args)?;
        let done = forget(&lm, &setting, &case, &resolved.config, seed, &workers, &run)?;
        let unlearned = without_users(&done.lm, &setting, &case.unknown_users(&setting))?;
        let mut about = about.clone();
        about.forget(&case.request.name(), &case.deletion);
        folder::save(&unlearn.to, &unlearned, &about)?;
        if args.json { text::json(&done.evidence) } else { Ok(done.evidence.to_markdown()) }
    })();
    run.close(&outcome)?;
    outcome
}

struct Done {
    lm: Lm,
    evidence: Evidence,
}

fn forget(
    lm: &Lm,
    setting: &Setting,
    case: &Case,
    config: &Config,
    seed: Seed,
    workers: &Workers,
    run: &RunFolder,
) -> Result<Done> {
    let done = match case.attributable() {
        true => by_circuits(lm, setting, case, config, seed, workers, run)?,
        false => nothing_but_tokens(lm)?,
    };
    let evidence = Evidence {
        request: case.request.name(),
        events: case.deletion.events(),
        users: case.deletion.users().len(),
        left_in_histories: 0,
        tokens_erased: match setting.vocabulary.user(0) {
            Some(_) => case.unknown_users(setting).len(),
            None => 0,
        },
        steps: done.unlearned.progress.steps,
        stopped: done.unlearned.progress.stopped,
        seconds: done.seconds,
        limits: done.caution.into_iter().chain(limits()).collect(),
        ..changes(lm, &done.unlearned, setting, case, config, workers)?
    };
    run.write("unlearning.json", text::json(&evidence)?.as_bytes())?;
    run.write("unlearning.md", evidence.to_markdown().as_bytes())?;
    let report = Report {
        rows: evidence.rows(),
        headline: format!(
            "{} deleted events, {} steps. {}",
            evidence.events,
            evidence.steps,
            evidence.limits.join(" ")
        ),
        ..Report::new("cure", "unlearn")
    };
    let notes: Vec<String> = evidence.to_markdown().split("\n\n").map(str::to_owned).collect();
    let page = html::page(&format!("Unlearning report: {}", evidence.request), &notes, &[report]);
    run.write("unlearning.html", page.as_bytes())?;
    Ok(Done { lm: done.unlearned.lm, evidence })
}

/// A run with what the report says besides.
struct Forgotten {
    unlearned: Unlearned,
    seconds: Seconds,
    caution: Option<String>,
}

/// The algorithm.
fn by_circuits(
    lm: &Lm,
    setting: &Setting,
    case: &Case,
    config: &Config,
    seed: Seed,
    workers: &Workers,
    run: &RunFolder,
) -> Result<Forgotten> {
    let corruption = config.circuit.corruption;
    let prepared = prepare(lm, setting, case, &config.circuit, corruption, seed, workers)?;
    let grouping = prepared.groups(&config.groups)?;
    let loss = config.unlearn.loss;
    let start = std::time::Instant::now();
    let windows = forget_windows(setting, case, &config.circuit, corruption, loss, seed)?;
    let mut seconds = prepared.seconds;
    seconds.pairs += start.elapsed().as_secs_f64();
    let stop_at = stop_target(lm, setting, &windows, case, seed, workers)?;
    let task = Task { original: lm, forget: &windows, retain: &case.retain, stop_at };
    let plan = Plan {
        options: config.unlearn.clone(),
        rule: Rule::Grouped,
        grouping: Some(grouping.clone()),
    };
    let regroup = |present: &Lm| {
        let prepared = prepare(present, setting, case, &config.circuit, corruption, seed, workers)?;
        prepared.groups(&config.groups)
    };
    // a resumed run goes on only with the same request on the same weights
    let task_hash = task_hash(lm, case)?;
    let checkpoints = Checkpoints::open(&run.path().join("checkpoints").join(task_hash))?;
    let unlearned =
        run_unlearning(&task, &plan, Some(&regroup), seed, workers, Some(&checkpoints))?;
    seconds.update = unlearned.seconds;
    for (name, side) in [("forget", &prepared.forget), ("retain", &prepared.retain)] {
        let json = circuit_json(&prepared.network, &side.circuit, &grouping);
        run.write(&format!("graphs/{name}.json"), text::json(&json)?.as_bytes())?;
    }
    Ok(Forgotten { unlearned, seconds, caution: prepared.forget.caution("forget") })
}

/// For deleted events that no history precedes: they have no prompt whose history could be exchanged,
/// hence neither circuit nor counterfactual. The caller erases the users' tokens.
fn nothing_but_tokens(lm: &Lm) -> Result<Forgotten> {
    let modules = Network::new(lm.config()).modules();
    let grouping = Some(Grouping::all(modules, Group::Frozen));
    let unlearned = Unlearned {
        lm: Lm::from_tensors(lm.config(), lm.parameters().tensors())?,
        progress: Progress { grouping, ..Progress::default() },
        tokens: 0.0,
        seconds: 0.0,
    };
    let caution =
        "No deleted event has another one of its user before it: no module was updated, only \
                   tokens of users without events are erased."
            .to_owned();
    Ok(Forgotten { unlearned, seconds: Seconds::default(), caution: Some(caution) })
}

/// A hash of the original's weights and of the deleted events.
fn task_hash(lm: &Lm, case: &Case) -> Result<String> {
    let flags = case.deletion.flags().iter().flatten().map(|&flag| u8::from(flag));
    Ok(format!("{}-{}", weights_hash(lm)?, hash8(&flags.collect::<Vec<u8>>())))
}

/// What moved and what changed; the other fields are for the caller to fill.
fn changes(
    before: &Lm,
    done: &Unlearned,
    setting: &Setting,
    case: &Case,
    config: &Config,
    workers: &Workers,
) -> Result<Evidence> {
    let grouping = done.progress.grouping.clone();
    let grouping = grouping.ok_or_else(|| Error::Bug("a grouped run without groups".into()))?;
    let network = Network::new(before.config());
    let blocks = Blocks::new(before.config(), &network, before.parameters())?;
    let tensors = |lm: &Lm| -> Vec<Tensor> {
        lm.parameters().iter().map(|(_, var)| var.as_tensor().detach()).collect()
    };
    let (inside, outside) = blocks.moved(&tensors(before), &tensors(&done.lm))?;
    let moved = (0..network.modules())
        .map(|module| {
            let owned =
                blocks.blocks.iter().zip(&inside).filter(|(b, _)| b.owners.contains(&module));
            Moved {
                module: network.module_name(module),
                group: grouping.groups[module],
                distance: owned.map(|(_, square)| square).sum::<f64>().sqrt(),
            }
        })
        .collect();
    let forget = case.forget_part();
    let held_out = Part::new(setting.held_out());
    let served = case.served();
    let records = setting.test_records(&served, config.bench.test_records);
    let test = Part::new(case.prompts(setting).of_windows(&records));
    let look = |lm: &Lm| {
        let on_forget = predict(lm, &forget.prompts, workers)?;
        let on_held_out = predict(lm, &held_out.prompts, workers)?;
        let attack = membership_auc((&forget.labels, &on_forget), (&held_out.labels, &on_held_out));
        let quality = |part: &Part, p: &[f64]| Quality::of(&part.labels, p);
        let tested = predict(lm, &test.prompts, workers)?;
        Ok::<_, Error>((
            quality(&forget, &on_forget),
            quality(&held_out, &on_held_out),
            attack,
            quality(&test, &tested),
        ))
    };
    let (old, new) = (look(before)?, look(&done.lm)?);
    // what training adds: never-seen users against training windows of those who stay
    let stay = case.retain.iter().map(Prompt::of_unknown).collect();
    let stay = Part::new(stay).quality(before, workers)?;
    let loss_mark = old.0.log_loss + old.1.log_loss - stay.log_loss;
    let auc_mark = old.0.auc + old.1.auc - stay.auc;
    let change = |measure: &str, before: f64, after: f64, mark: Option<f64>| Change {
        measure: measure.into(),
        before,
        after,
        mark: mark.filter(|mark| mark.is_finite()),
    };
    Ok(Evidence {
        request: String::new(),
        events: 0,
        users: 0,
        left_in_histories: 0,
        tokens_erased: 0,
        steps: 0,
        stopped: false,
        moved,
        moved_outside: outside.sqrt(),
        changes: vec![
            change(
                "log loss on the forgotten events",
                old.0.log_loss,
                new.0.log_loss,
                Some(loss_mark),
            ),
            change("AUC on the forgotten events", old.0.auc, new.0.auc, Some(auc_mark)),
            change("AUC of the membership attack", old.2, new.2, None),
            change("test AUC of users who stay", old.3.auc, new.3.auc, None),
            change("test log loss of users who stay", old.3.log_loss, new.3.log_loss, None),
        ],
        seconds: Seconds::default(),
        limits: Vec::new(),
    })
}
