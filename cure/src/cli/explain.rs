//! `circuit` and `explain`.

use std::path::PathBuf;

use clap::Args;
use common::Result;
use common::cli::{CommonArgs, Resolved, text};
use common::files::atomic_write;
use common::rng::Seed;
use serde_json::json;

use super::{DataArgs, RequestArgs, workers};
use crate::bench::figures::{circuit_dot, circuit_svg};
use crate::config::{Config, UnlearnConfig};
use crate::data::Request;
use crate::evidence::circuit_json;
use crate::folder;
use crate::model::Group;
use crate::model::losses::ForgetLoss;
use crate::model::update::Rule;
use crate::stages::{Case, forget_windows, prepare};
use crate::train::unlearn::{Plan, Task, unlearn};

/// Flags of `circuit`.
#[derive(Debug, Args)]
pub struct CircuitArgs {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    request: RequestArgs,
    /// Folder of the model
    #[arg(long, value_name = "DIR", default_value = "model")]
    model: PathBuf,
    /// Folder for the graphs: forget and retain, each as .json, .dot and .svg
    #[arg(long, value_name = "DIR", default_value = "graphs")]
    graphs: PathBuf,
}

pub(super) fn circuit(
    circuit: &CircuitArgs,
    args: &CommonArgs,
    resolved: &Resolved<Config>,
) -> Result<String> {
    let config = &resolved.config;
    let (lm, about) = folder::load(&circuit.model)?;
    let setting = about.setting(circuit.data.read(args, config)?)?;
    let seed = Seed::new(args.seed);
    let case = Case::new(&setting, &circuit.request.request()?, seed)?;
    let corruption = config.circuit.corruption;
    let prepared =
        prepare(&lm, &setting, &case, &config.circuit, corruption, seed, &workers(args)?)?;
    let grouping = prepared.groups(&config.groups)?;
    std::fs::create_dir_all(&circuit.graphs).map_err(common::Error::io(&circuit.graphs))?;
    let network = &prepared.network;
    let mut sides = serde_json::Map::new();
    for (name, side) in [("forget", &prepared.forget), ("retain", &prepared.retain)] {
        let json = circuit_json(network, &side.circuit, &grouping);
        let files = [
            ("json", text::json(&json)?),
            ("dot", circuit_dot(network, &side.circuit, &grouping)),
            ("svg", circuit_svg(network, &side.circuit, &grouping)),
        ];
        for (end, text) in files {
            atomic_write(&circuit.graphs.join(format!("{name}.{end}")), text.as_bytes())?;
        }
        let value = json!({
            "pairs": side.pairs.len(),
            "rejected": side.rejected,
            "edges": side.circuit.len(),
            "of": network.edges.len(),
            "faithfulness": side.circuit.faithfulness,
            "caution": side.caution(name),
        });
        sides.insert(name.to_owned(), value);
    }
    let value = json!({
        "request": case.request.name(),
        "overlap": prepared.forget.circuit.overlap(&prepared.retain.circuit),
        "circuits": sides,
        "graphs": circuit.graphs,
    });
    text::json(&value)
}

/// Flags of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Whose data
    #[arg(long, value_name = "ID")]
    user: String,
    /// Folder of the model
    #[arg(long, value_name = "DIR", default_value = "model")]
    model: PathBuf,
}

pub(super) fn explain(
    explain: &ExplainArgs,
    args: &CommonArgs,
    resolved: &Resolved<Config>,
) -> Result<String> {
    let config = &resolved.config;
    let (lm, about) = folder::load(&explain.model)?;
    let setting = about.setting(explain.data.read(args, config)?)?;
    let (seed, workers) = (Seed::new(args.seed), workers(args)?);
    let request = Request::Users { users: vec![explain.user.clone()] };
    let case = Case::new(&setting, &request, seed)?;
    let corruption = config.circuit.corruption;
    let prepared = prepare(&lm, &setting, &case, &config.circuit, corruption, seed, &workers)?;
    let grouping = prepared.groups(&config.groups)?;
    // one step on a copy gives the cosines of the gradients that forgetting this user would take
    let options = UnlearnConfig { steps: 1, check_every: 1, lora: None, ..config.unlearn.clone() };
    let loss = options.loss;
    let forget = forget_windows(&setting, &case, &config.circuit, corruption, loss, seed)?;
    let task = Task { original: &lm, forget: &forget, retain: &case.retain, stop_at: None };
    let plan = Plan { options, rule: Rule::Grouped, grouping: Some(grouping.clone()) };
    let step = unlearn(&task, &plan, None, seed, &workers, None)?;
    let cosines = step.progress.looks.last().map_or(&[][..], |look| &look.cosines);
    let [f, r] = prepared.contributions(config.groups.lambda);
    let network = &prepared.network;
    let inside =
        [prepared.forget.circuit.modules(network), prepared.retain.circuit.modules(network)];
    if args.json {
        let modules: Vec<_> = (0..network.modules())
            .map(|m| {
                json!({
                    "module": network.module_name(m),
                    "group": grouping.groups[m],
                    "forget_contribution": f[m],
                    "retain_contribution": r[m],
                    "in_forget_circuit": inside[0][m],
                    "in_retain_circuit": inside[1][m],
                    "cosine": cosines.get(m).copied().flatten(),
                })
            })
            .collect();
        return text::json(&json!({
            "user": explain.user,
            "caution": prepared.forget.caution("forget"),
            "modules": modules,
        }));
    }
    let rows: Vec<Vec<String>> = (0..network.modules())
        .map(|m| {
            let yes = |inside: bool| if inside { "yes" } else { "" }.to_owned();
            let cosine = cosines.get(m).copied().flatten();
            vec![
                network.module_name(m),
                grouping.groups[m].name().to_owned(),
                format!("{:.3}", f[m]),
                format!("{:.3}", r[m]),
                yes(inside[0][m]),
                yes(inside[1][m]),
                cosine.map_or_else(|| "–".to_owned(), |c| format!("{c:+.3}")),
            ]
        })
        .collect();
    let header =
        ["module", "group", "forget", "retain", "in forget circuit", "in retain circuit", "cosine"];
    let counts: Vec<String> = Group::ALL
        .iter()
        .map(|&group| format!("{} {}", grouping.count(group), group.name()))
        .collect();
    let note = match loss {
        ForgetLoss::CfKl => "counterfactual KL",
        _ => "the chosen forget loss",
    };
    let caution = prepared.forget.caution("forget").map(|text| text + "\n\n").unwrap_or_default();
    Ok(format!(
        "User {}: {} training events. Modules: {}.\n\n{caution}{}\nForget and retain are contributions (Eq. 6); \
         cosine is between the gradients of {note} and of the retain loss, below 0 = conflict.\n",
        explain.user,
        case.deletion.events(),
        counts.join(", "),
        text::table(&header, &rows)
    ))
}
