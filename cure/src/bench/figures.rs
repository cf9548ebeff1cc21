//! Pictures of a bench.

use common::Result;
use common::data::graph::dot;
use common::metrics::ReliabilityBin;
use common::report::plot::{
    self, GraphEdge, GraphNode, Labels, Line, Point, Series, layered_graph,
};
use common::report::{Figure, Role, Row};
use petgraph::graph::DiGraph;

use super::requests::{Measured, Run};
use super::table::DISTANCE;
use crate::evidence::circuit_json;
use crate::model::{Circuit, Group, Grouping, Network};
use crate::stages::Seconds;

/// Calibration of the recommender.
pub(super) fn reliability(methods: &[(String, Vec<ReliabilityBin>)]) -> Figure {
    Figure::new(
        "Calibration of the recommender",
        "Observed share of likes against p(Yes) on the test records, mean over the seeds.",
        plot::reliability(Labels::default(), methods),
    )
}

/// JSD of every method.
pub(super) fn distances(dataset: &str, rows: &[Row]) -> Figure {
    let shown: Vec<&Row> = rows
        .iter()
        .filter(|row| row.metric == DISTANCE && row.dataset.starts_with(dataset))
        .collect();
    Figure::new(
        &format!("Distance to Retrain, {dataset}"),
        "Mean Jensen-Shannon divergence on the forget set, 95 % interval over seeds. Retrain's own bar \
         is the noise floor.",
        plot::row_bars(Labels { x: "JSD to Retrain", ..Labels::default() }, &shown),
    )
}

/// Where the seconds of the paper's method, of ours and of Retrain go.
pub(super) fn seconds(dataset: &str, measured: &Measured) -> Figure {
    let shown = |role: Role| matches!(role, Role::Paper | Role::Ours);
    let outcomes = measured.outcomes.iter().filter(|outcome| shown(outcome.method.role));
    let mut lines: Vec<(&str, &[Run])> =
        outcomes.map(|outcome| (outcome.method.name, &outcome.runs[..])).collect();
    lines.push(("Retrain", &measured.retrained));
    let names: Vec<String> = lines.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mean = |runs: &[Run], part: fn(&Seconds) -> f64| {
        runs.iter().map(|run| part(&run.seconds)).sum::<f64>() / runs.len() as f64
    };
    let parts: [(&str, fn(&Seconds) -> f64); 3] =
        [("pairs", |s| s.pairs), ("attribution", |s| s.attribution), ("update", |s| s.update)];
    let series = parts.map(|(name, part)| Series {
        name: name.into(),
        values: lines.iter().map(|(_, runs)| mean(runs, part)).collect(),
    });
    Figure::new(
        &format!("Seconds of a request, {dataset}"),
        "Mean over the seeds, one thread each. Retrain's are of the time when it was trained.",
        plot::grouped_bars(Labels { x: "seconds", ..Labels::default() }, &names, &series),
    )
}

/// The circuit as a picture: layers as rows, input at the bottom.
pub fn circuit_svg(network: &Network, circuit: &Circuit, grouping: &Grouping) -> String {
    let layers = network.layers();
    let mut rows = vec!["input".to_owned()];
    for layer in 0..layers {
        rows.push(format!("heads {layer}"));
        rows.push(format!("MLP {layer}"));
    }
    rows.push("logits".into());
    let short = |group: &Group| group.name().trim_end_matches("-specific").to_owned();
    let groups: Vec<String> = Group::ALL.iter().map(short).collect();
    let mut nodes =
        vec![GraphNode { label: "input".into(), hint: "embedding".into(), ..GraphNode::default() }];
    for module in 0..network.modules() {
        let name = network.module_name(module);
        let row = 2 * network.module_layer(module) + if name.starts_with('a') { 1 } else { 2 };
        let group = grouping.groups[module];
        nodes.push(GraphNode {
            hint: format!("{name}: {}", group.name()),
            label: name,
            row,
            group: Group::ALL.iter().position(|&other| other == group),
        });
    }
    nodes.push(GraphNode {
        label: "logits".into(),
        row: 2 * layers + 1,
        hint: "output".into(),
        group: None,
    });
    // the ports of a head are drawn as one edge
    let mut edges: Vec<GraphEdge> = Vec::new();
    for (at, &edge) in network.edges.iter().enumerate().filter(|(at, _)| circuit.kept[*at]) {
        let to = network.module_of_reader(edge.reader).map_or(nodes.len() - 1, |m| m + 1);
        let score = circuit.scores[at];
        let words = format!("{} {score:+.4}", network.edge_name(edge));
        let known = edges.iter_mut().find(|e| e.from == edge.writer && e.to == to);
        match known {
            Some(known) => {
                known.weight += score;
                known.hint = format!("{}; {words}", known.hint);
                known.dashed = known.weight > 0.0;
            }
            None => edges.push(GraphEdge {
                from: edge.writer,
                to,
                weight: score,
                // a positive score: the corrupted value raises the metric
                dashed: score > 0.0,
                hint: words,
            }),
        }
    }
    layered_graph(Labels::default(), &rows, &groups, &nodes, &edges)
}

/// The circuit as Graphviz text.
pub fn circuit_dot(network: &Network, circuit: &Circuit, grouping: &Grouping) -> String {
    let mut graph: DiGraph<String, String> = DiGraph::new();
    let mut nodes = vec![graph.add_node("input".into())];
    for module in 0..network.modules() {
        let group = grouping.groups[module].name();
        nodes.push(graph.add_node(format!("{} ({group})", network.module_name(module))));
    }
    nodes.push(graph.add_node("logits".into()));
    for (at, &edge) in network.edges.iter().enumerate().filter(|(at, _)| circuit.kept[*at]) {
        let to = network.module_of_reader(edge.reader).map_or(nodes.len() - 1, |m| m + 1);
        let name = network.edge_name(edge);
        let port = name.rsplit_once('<').map_or("", |(_, port)| port.trim_end_matches('>'));
        let label = format!("{port} {:+.4}", circuit.scores[at]).trim().to_owned();
        graph.add_edge(nodes[edge.writer], nodes[to], label);
    }
    dot(&graph, Clone::clone, Clone::clone)
}

/// Circuits of the first seed as JSON and Graphviz files.
pub(super) fn graph_files(measured: &Measured) -> Result<Vec<(String, String)>> {
    let (prepared, grouping) = (&measured.prepared[0], &measured.groupings[0]);
    let mut files = Vec::new();
    for (name, side) in [("forget", &prepared.forget), ("retain", &prepared.retain)] {
        let json = circuit_json(&prepared.network, &side.circuit, grouping);
        files.push((format!("{name}.json"), common::cli::text::json(&json)?));
        let text = circuit_dot(&prepared.network, &side.circuit, grouping);
        files.push((format!("{name}.dot"), text));
        let svg = circuit_svg(&prepared.network, &side.circuit, grouping);
        files.push((format!("{name}.svg"), svg));
    }
    Ok(files)
}

/// All figures of the first request.
pub(super) fn of_request(dataset: &str, measured: &Measured) -> Result<Vec<Figure>> {
    let (prepared, grouping) = (&measured.prepared[0], &measured.groupings[0]);
    let network = &prepared.network;
    let mut all = Vec::new();
    for (name, side) in [("forget", &prepared.forget), ("retain", &prepared.retain)] {
        let caption = format!(
            "{} of {} edges, faithfulness {:.2}, first seed. Wide = large |score|; dashed = the \
             corrupted value raises the right answer. Scores and groups show under the pointer.",
            side.circuit.len(),
            network.edges.len(),
            side.circuit.faithfulness
        );
        let svg = circuit_svg(network, &side.circuit, grouping);
        all.push(Figure::inline(&format!("Circuit of the {name} set"), &caption, svg));
    }
    let contributions = prepared.contributions(0.5);
    let points: Vec<Point> = (0..network.modules())
        .map(|module| Point {
            x: contributions[1][module],
            y: contributions[0][module],
            label: network.module_name(module),
            group: grouping.groups[module].name().into(),
        })
        .collect();
    all.push(Figure::new(
        "Contributions and groups of modules",
        "Forget against retain contribution of every head and MLP (Eq. 6), first seed. On the line both \
         sides need a module equally.",
        plot::scatter(Labels { x: "retain", y: "forget", ..Labels::default() }, &points, true),
    ));
    let paper = measured.outcomes.iter().find(|outcome| outcome.method.role == Role::Paper);
    if let Some(paper) = paper {
        let names: Vec<String> = (0..network.modules()).map(|m| network.module_name(m)).collect();
        let looks = &paper.runs[0].progress.looks;
        let at = |look: Option<&crate::train::unlearn::Look>| -> Vec<f64> {
            let of = |m: usize| look.and_then(|l| l.cosines.get(m).copied().flatten());
            (0..network.modules()).map(|m| of(m).unwrap_or(f64::NAN)).collect()
        };
        let series = [
            Series { name: "first look".into(), values: at(looks.get(1)) },
            Series { name: "last look".into(), values: at(looks.last()) },
        ];
        all.push(Figure::new(
            "Conflict of forget and retain gradients",
            "Cosine per module while CURE runs, first seed: below 0 the two losses pull against each \
             other.",
            plot::grouped_bars(Labels { x: "cosine", ..Labels::default() }, &names, &series),
        ));
    }
    let lines: Vec<Line> = measured
        .outcomes
        .iter()
        .filter(|o| matches!(o.method.role, Role::Paper | Role::Ours | Role::Baseline))
        // as many as there are colours
        .take(7)
        .map(|outcome| Line {
            name: outcome.method.name.into(),
            points: outcome.runs[0]
                .progress
                .looks
                .iter()
                .map(|look| (look.step as f64, look.forget.min(2.0)))
                .collect(),
        })
        .collect();
    let mark = measured.stop_at[0].map_or_else(String::new, |mark| format!("{mark:.3}"));
    all.push(Figure::new(
        "Forgetting over steps",
        &format!(
            "Log loss on a probe of the forget set, first seed; a run stops at {mark}. Cut at 2."
        ),
        plot::lines(Labels { x: "step", y: "forget log loss", ..Labels::default() }, &lines),
    ));
    let points: Vec<Point> = measured
        .outcomes
        .iter()
        .map(|outcome| {
            let n = outcome.runs.len() as f64;
            let gap = |at: usize| {
                let others = measured.retrained.iter().enumerate().filter(|(t, _)| *t != at);
                let of = |gold: &[f64]| crate::eval::jsd(&outcome.runs[at].answers.forget, gold);
                let all: Vec<f64> = others.map(|(_, run)| of(&run.answers.forget)).collect();
                all.iter().sum::<f64>() / all.len() as f64
            };
            Point {
                x: (0..outcome.runs.len()).map(gap).sum::<f64>() / n,
                y: outcome.runs.iter().map(|run| run.answers.test.auc).sum::<f64>() / n,
                label: outcome.method.name.into(),
                group: outcome.method.role.name().into(),
            }
        })
        .collect();
    all.push(seconds(dataset, measured));
    all.push(Figure::new(
        "Forgetting against utility",
        &format!("Mean over seeds, {dataset}. Left = nearer to a retrained model, up = better for users who stay."),
        plot::scatter(
            Labels { x: "JSD to Retrain on the forget set", y: "test AUC", ..Labels::default() },
            &points,
            false,
        ),
    ));
    if let Some((fast, slow, rho)) = &measured.exact {
        let points: Vec<Point> =
            fast.iter().zip(slow).map(|(&x, &y)| Point { x, y, ..Point::default() }).collect();
        all.push(Figure::new(
            "EAP-IG against exact patching",
            &format!("One dot per edge, forget pairs, first seed; Spearman {rho:.3}."),
            plot::scatter(
                Labels { x: "EAP-IG", y: "exact effect", ..Labels::default() },
                &points,
                true,
            ),
        ));
    }
    Ok(all)
}
