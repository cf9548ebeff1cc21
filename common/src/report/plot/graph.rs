//! Graphs in rows.

use std::fmt::Write;

use super::canvas::{SMALL, TEXT, TITLE, fit, width};
use super::{Labels, color};
use crate::report::escape;

/// A node of [`layered_graph`].
#[derive(Debug, Clone, Default)]
pub struct GraphNode {
    /// Written in it.
    pub label: String,
    /// Its row, 0 at the bottom.
    pub row: usize,
    /// Number of its colour; `None` is grey.
    pub group: Option<usize>,
    /// Shown when the pointer rests on it.
    pub hint: String,
}

/// An edge of [`layered_graph`].
#[derive(Debug, Clone, Default)]
pub struct GraphEdge {
    /// Index of a node.
    pub from: usize,
    /// Index of a node.
    pub to: usize,
    /// Its width relative to the others; the sign is not looked at.
    pub weight: f64,
    /// Dashed (for example: lowers instead of raises).
    pub dashed: bool,
    /// Shown when the pointer rests on it.
    pub hint: String,
}

const NODE_HEIGHT: f64 = 22.0;
const ROW_HEIGHT: f64 = 64.0;
const GAP: f64 = 12.0;
/// What is under the pointer stands out.
const HOVER: &str = ".edge:hover .line{stroke:#C8500A;stroke-opacity:1;stroke-width:4px}\
                     .node:hover rect{stroke-width:3px}";
/// Room of a legend's entry besides its name.
const KEY: f64 = 36.0;

/// A graph drawn in rows, row 0 at the bottom, with arrows. `rows` names the rows from the bottom,
/// `groups` the colours (a legend appears when there are any). Nodes of a row are ordered so that
/// neighbours in other rows are near. Edges with an unknown node are left out.
pub fn layered_graph(
    labels: Labels<'_>,
    rows: &[String],
    groups: &[String],
    nodes: &[GraphNode],
    edges: &[GraphEdge],
) -> String {
    let edges: Vec<&GraphEdge> =
        edges.iter().filter(|edge| edge.from < nodes.len() && edge.to < nodes.len()).collect();
    let layers = order(nodes, &edges);
    let margin = rows.iter().map(|row| width(row, SMALL)).fold(0.0, f64::max).min(160.0) + 28.0;
    let node_width = |node: &GraphNode| width(&fit(&node.label, SMALL, 150.0), SMALL) + 14.0;
    let room = |layer: &Vec<usize>| -> f64 {
        layer.iter().map(|&node| node_width(&nodes[node]) + GAP).sum::<f64>() - GAP
    };
    let inner = layers.iter().map(room).fold(200.0, f64::max);
    let head = if labels.title.is_empty() { 16.0 } else { 44.0 };
    let legend = if groups.is_empty() { 0.0 } else { 30.0 };
    let keys: f64 = groups.iter().map(|name| KEY + width(name, TEXT)).sum();
    let size = (
        margin + inner.max(keys) + 24.0,
        head + layers.len().saturating_sub(1) as f64 * ROW_HEIGHT + NODE_HEIGHT + legend + 24.0,
    );
    let mut at = vec![(0.0, 0.0); nodes.len()];
    for (row, layer) in layers.iter().enumerate() {
        let y = head + (layers.len() - 1 - row) as f64 * ROW_HEIGHT + NODE_HEIGHT / 2.0;
        let spread = (inner - room(layer)) / (layer.len() + 1) as f64;
        let mut x = margin + spread;
        for &node in layer {
            at[node] = (x + node_width(&nodes[node]) / 2.0, y);
            x += node_width(&nodes[node]) + GAP + spread;
        }
    }
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0}\" height=\"{1:.0}\" viewBox=\"0 0 \
         {0:.0} {1:.0}\" font-family=\"sans-serif\"><rect width=\"100%\" height=\"100%\" \
         fill=\"#FFFFFF\"/>\n<style>{HOVER}</style>\n<defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" \
         markerUnits=\"userSpaceOnUse\" markerWidth=\"9\" markerHeight=\"9\" orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" \
         fill=\"#555555\"/></marker></defs>\n",
        size.0, size.1
    );
    let mut put = |part: std::fmt::Arguments<'_>| {
        // writing to a string can't fail
        let _ = svg.write_fmt(part);
    };
    if !labels.title.is_empty() {
        let (x, text) = (size.0 / 2.0, escape(&fit(labels.title, TITLE, size.0 - 20.0)));
        put(format_args!(
            "<text x=\"{x:.1}\" y=\"24\" text-anchor=\"middle\" font-size=\"{TITLE}\" \
             font-weight=\"bold\" fill=\"#282828\">{text}</text>\n"
        ));
    }
    for (row, name) in rows.iter().take(layers.len()).enumerate() {
        let y = head + (layers.len() - 1 - row) as f64 * ROW_HEIGHT + NODE_HEIGHT / 2.0 + 4.0;
        let text = escape(&fit(name, SMALL, margin - 24.0));
        put(format_args!(
            "<text x=\"10\" y=\"{y:.1}\" font-size=\"{SMALL}\" fill=\"#6E6E6E\">{text}</text>\n"
        ));
    }
    let heaviest = edges.iter().map(|edge| edge.weight.abs()).fold(0.0, f64::max);
    for edge in &edges {
        let ((x1, y1), (x2, y2)) = (at[edge.from], at[edge.to]);
        let up = (y1 - y2).signum();
        let (y1, y2) = (y1 - up * NODE_HEIGHT / 2.0, y2 + up * (NODE_HEIGHT / 2.0 + 2.0));
        let share = if heaviest > 0.0 { edge.weight.abs() / heaviest } else { 1.0 };
        let share = if share.is_finite() { share } else { 0.0 };
        let (stroke, alpha) = (0.6 + 3.0 * share, 0.25 + 0.6 * share);
        let bend = (y1 - y2) / 2.0;
        let dash = if edge.dashed { " stroke-dasharray=\"5 4\"" } else { "" };
        let hint = escape(&edge.hint);
        let path = format!(
            "d=\"M{x1:.1} {y1:.1}C{x1:.1} {:.1} {x2:.1} {:.1} {x2:.1} {y2:.1}\" fill=\"none\"",
            y1 - bend,
            y2 + bend
        );
        // the wide one is unseen and catches the pointer
        put(format_args!(
            "<g class=\"edge\"><title>{hint}</title><path {path} stroke=\"#FFFFFF\" \
             stroke-opacity=\"0\" stroke-width=\"9\" pointer-events=\"stroke\"/><path {path} \
             class=\"line\" stroke=\"#555555\" stroke-width=\"{stroke:.2}\" \
             stroke-opacity=\"{alpha:.2}\"{dash} marker-end=\"url(#tip)\"/></g>\n"
        ));
    }
    for (node, &(x, y)) in nodes.iter().zip(&at) {
        let (r, g, b) = node.group.map_or((150, 150, 150), color);
        let wide = node_width(node);
        let (left, top) = (x - wide / 2.0, y - NODE_HEIGHT / 2.0);
        let text = escape(&fit(&node.label, SMALL, 150.0));
        let hint = escape(&node.hint);
        put(format_args!(
            "<g class=\"node\"><title>{hint}</title><rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{wide:.1}\" \
             height=\"{NODE_HEIGHT}\" rx=\"5\" fill=\"#FFFFFF\"/><rect x=\"{left:.1}\" \
             y=\"{top:.1}\" width=\"{wide:.1}\" height=\"{NODE_HEIGHT}\" rx=\"5\" \
             fill=\"rgb({r},{g},{b})\" fill-opacity=\"0.22\" stroke=\"rgb({r},{g},{b})\"/><text \
             x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"{SMALL}\" \
             fill=\"#282828\">{text}</text></g>\n",
            y + 4.0
        ));
    }
    let mut x = margin;
    for (group, name) in groups.iter().enumerate() {
        let (r, g, b) = color(group);
        let y = size.1 - 22.0;
        let text = escape(name);
        put(format_args!(
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"14\" height=\"14\" rx=\"3\" \
             fill=\"rgb({r},{g},{b})\" fill-opacity=\"0.5\" stroke=\"rgb({r},{g},{b})\"/><text \
             x=\"{:.1}\" y=\"{:.1}\" font-size=\"{TEXT}\" fill=\"#282828\">{text}</text>\n",
            y - 4.0,
            x + 20.0,
            y + 8.0
        ));
        x += KEY + width(name, TEXT);
    }
    svg + "</svg>\n"
}

/// The nodes of each row, after a few sweeps that sort each row by the mean place of its
/// neighbours.
fn order(nodes: &[GraphNode], edges: &[&GraphEdge]) -> Vec<Vec<usize>> {
    let rows = nodes.iter().map(|node| node.row + 1).max().unwrap_or(0);
    let mut layers = vec![Vec::new(); rows];
    let mut place = vec![0.5; nodes.len()];
    for (index, node) in nodes.iter().enumerate() {
        layers[node.row].push(index);
    }
    let mut neighbours = vec![Vec::new(); nodes.len()];
    for edge in edges {
        neighbours[edge.from].push(edge.to);
        neighbours[edge.to].push(edge.from);
    }
    for sweep in 0..6 {
        let upwards = sweep % 2 == 0;
        for step in 0..rows {
            let row = if upwards { step } else { rows - 1 - step };
            let mean = |node: usize| {
                let around = &neighbours[node];
                if around.is_empty() {
                    return place[node];
                }
                around.iter().map(|&other| place[other]).sum::<f64>() / around.len() as f64
            };
            let means: Vec<f64> = (0..nodes.len()).map(mean).collect();
            if sweep > 0 || row > 0 {
                layers[row].sort_by(|&a, &b| means[a].total_cmp(&means[b]).then(a.cmp(&b)));
            }
            let count = layers[row].len() as f64;
            for (position, &node) in layers[row].iter().enumerate() {
                place[node] = (position as f64 + 0.5) / count;
            }
        }
    }
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_edges_and_legend_are_drawn_and_escaped() {
        let node =
            |label: &str, row| GraphNode { label: label.into(), row, ..GraphNode::default() };
        let nodes = [node("in <b>", 0), node("head", 1), node("out", 2)];
        let edge = |from, to| GraphEdge { from, to, weight: 1.0, ..GraphEdge::default() };
        let edges = [edge(0, 1), edge(1, 2), edge(0, 9)];
        let labels = Labels { title: "a & b", ..Labels::default() };
        let svg = layered_graph(labels, &["layer 0".into()], &["kept".into()], &nodes, &edges);
        assert_eq!(
            svg.matches("<path d=\"M").count(),
            5,
            "two edges, wider ones to hover over, the tip"
        );
        assert!(svg.contains("in &lt;b&gt;") && svg.contains("a &amp; b"), "{svg}");
    }

    #[test]
    fn rows_are_ordered_to_avoid_crossings() {
        let node = |row| GraphNode { row, ..GraphNode::default() };
        let nodes = [node(0), node(0), node(1), node(1)];
        let edge = |from, to| GraphEdge { from, to, ..GraphEdge::default() };
        let edges = [edge(0, 3), edge(1, 2)];
        assert_eq!(order(&nodes, &edges.iter().collect::<Vec<_>>()), [[0, 1], [3, 2]]);
        assert!(order(&[], &[]).is_empty());
    }
}
