//! What is written down: circuits as JSON, and the unlearning report of one request.

use common::report::{Role, Row};
use serde::Serialize;
use serde_json::{Value, json};

use crate::model::{Circuit, Group, Grouping, Network};
use crate::stages::Seconds;

/// A circuit with its nodes: module, group, layer; its edges with scores.
pub fn circuit_json(network: &Network, circuit: &Circuit, grouping: &Grouping) -> Value {
    let inside = circuit.modules(network);
    let nodes: Vec<Value> = (0..network.modules())
        .map(|module| {
            json!({
                "name": network.module_name(module),
                "layer": network.module_layer(module),
                "group": grouping.groups[module],
                "in_circuit": inside[module],
            })
        })
        .collect();
    let edges: Vec<Value> = network
        .edges
        .iter()
        .enumerate()
        .filter(|(at, _)| circuit.kept[*at])
        .map(|(at, &edge)| json!({"edge": network.edge_name(edge), "score": circuit.scores[at]}))
        .collect();
    json!({
        "faithfulness": circuit.faithfulness,
        "edges_in_network": network.edges.len(),
        "nodes": nodes,
        "edges": edges,
    })
}

/// How far a module moved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Moved {
    /// Name.
    pub module: String,
    /// Its group.
    pub group: Group,
    /// Euclidean distance between its weights before and after.
    pub distance: f64,
}

/// Before and after on one measure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// What.
    pub measure: String,
    /// Of the original.
    pub before: f64,
    /// Of the new model.
    pub after: f64,
    /// What a model that never saw the data would show, as far as it can be told without one.
    pub mark: Option<f64>,
}

/// The unlearning report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evidence {
    /// What was asked.
    pub request: String,
    /// Deleted events, and the users they belong to.
    pub events: usize,
    /// Users with deleted events.
    pub users: usize,
    /// Deleted events that still occur in the histories of other prompts; always 0 here, since
    /// histories are rebuilt.
    pub left_in_histories: usize,
    /// Users whose token was erased, since none of their events is left.
    pub tokens_erased: usize,
    /// Steps done.
    pub steps: usize,
    /// Whether the stop rule held before the last step.
    pub stopped: bool,
    /// Which modules changed, and by how much.
    pub moved: Vec<Moved>,
    /// Distance of all weights outside the modules (embeddings, norms).
    pub moved_outside: f64,
    /// Evidence that it is gone, and what it cost the others.
    pub changes: Vec<Change>,
    /// Where the time went.
    pub seconds: Seconds,
    /// What this does not prove.
    pub limits: Vec<String>,
}

/// What no such report proves.
pub fn limits() -> Vec<String> {
    [
        "No model was retrained for this report: the marks are estimates from users that the model has never seen.",
        "A loss at the mark does not prove that no trace is left; stronger attacks than a loss threshold exist.",
        "Copies of the original model, backups and logs are not touched.",
        "This is no statement about legal erasure.",
    ]
    .map(str::to_owned)
    .to_vec()
}

impl Evidence {
    /// The measures as rows for tables and pages.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for change in &self.changes {
            for (method, value, role) in [
                ("before", Some(change.before), Role::Control),
                ("after", Some(change.after), Role::Paper),
                ("mark of never-seen data", change.mark, Role::Baseline),
            ] {
                let Some(value) = value.filter(|value| value.is_finite()) else { continue };
                rows.push(Row {
                    dataset: self.request.clone(),
                    method: method.into(),
                    role,
                    metric: change.measure.clone(),
                    higher_is_better: change.measure.contains("AUC"),
                    mean: Some(value),
                    n: self.events,
                    ..Row::default()
                });
            }
        }
        rows
    }

    /// The report as Markdown.
    pub fn to_markdown(&self) -> String {
        let mut text = format!(
            "# Unlearning report: {}\n\n{} events of {} users deleted, {} user tokens erased; {} steps{}.\n\n",
            self.request,
            self.events,
            self.users,
            self.tokens_erased,
            self.steps,
            if self.stopped { ", stopped at the mark" } else { "" }
        );
        let cell = |value: f64| match value.is_finite() {
            true => format!("{value:.4}"),
            false => "–".to_owned(),
        };
        let rows: Vec<Vec<String>> = self
            .changes
            .iter()
            .map(|c| {
                let mark = c.mark.map_or_else(|| "–".to_owned(), cell);
                vec![c.measure.clone(), cell(c.before), cell(c.after), mark]
            })
            .collect();
        text += &common::cli::text::table(&["measure", "before", "after", "mark"], &rows);
        text += "\n## Modules\n\n";
        let rows: Vec<Vec<String>> = self
            .moved
            .iter()
            .map(|m| vec![m.module.clone(), m.group.name().into(), format!("{:.5}", m.distance)])
            .collect();
        text += &common::cli::text::table(&["module", "group", "distance moved"], &rows);
        text += &format!("\nWeights outside the modules moved by {:.5}.\n", self.moved_outside);
        let s = &self.seconds;
        text += &format!(
            "\nSeconds: pairs {:.2}, attribution {:.2}, update {:.2}.\n\n## What this does not prove\n\n",
            s.pairs, s.attribution, s.update
        );
        for limit in &self.limits {
            text += &format!("- {limit}\n");
        }
        text
    }
}
