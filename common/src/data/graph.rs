//! Graphs as [petgraph](https://docs.rs/petgraph) holds them: random walks with restart,
//! topological order with the conflict where there is none, Graphviz text. The picture of a graph
//! is [`report::plot::layered_graph`](crate::report::plot::layered_graph).

use std::collections::VecDeque;
use std::fmt::Write;

use petgraph::algo::{tarjan_scc, toposort};
use petgraph::graph::{DiGraph, EdgeIndex, Graph, NodeIndex};
use petgraph::visit::{EdgeRef, NodeIndexable};
use petgraph::{Direction, EdgeType};

use crate::{Error, Result};

/// The random walk on a graph whose edges carry strengths: from a node it takes each edge with
/// probability proportional to its strength, along the edge's direction if it has one.
#[derive(Debug, Clone)]
pub struct RandomWalk {
    /// Where the steps of each node begin in `steps`; one more entry than nodes.
    begins: Vec<usize>,
    /// Node and probability.
    steps: Vec<(u32, f64)>,
}

impl RandomWalk {
    /// The walk on `graph`; `strength` tells an edge's, zero for an edge that is not taken.
    ///
    /// # Errors
    /// [`Error::Usage`] on a strength that is negative or not finite.
    pub fn new<N, E, D: EdgeType>(
        graph: &Graph<N, E, D>,
        strength: impl Fn(&E) -> f64,
    ) -> Result<Self> {
        let mut begins = vec![0];
        let mut steps = Vec::new();
        for node in graph.node_indices() {
            let first = steps.len();
            for edge in graph.edges(node) {
                let weight = strength(edge.weight());
                if !weight.is_finite() || weight < 0.0 {
                    return Err(Error::usage(format!(
                        "random walk: an edge of node {} has strength {weight}; expected a finite \
                         number that is not negative",
                        node.index()
                    )));
                }
                if weight > 0.0 {
                    steps.push((edge.target().index() as u32, weight));
                }
            }
            // petgraph lists the newest edge first; sums must not depend on the order of insertion
            steps[first..].sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
            let total: f64 = steps[first..].iter().map(|step| step.1).sum();
            for step in &mut steps[first..] {
                step.1 /= total;
            }
            begins.push(steps.len());
        }
        Ok(Self { begins, steps })
    }

    /// Personalised PageRank: the stationary distribution of the walk that jumps back to `seed`
    /// with probability `restart` before every step, and always from a node without edges:
    /// `π = restart · e_seed + (1 − restart) Pᵀ π`, by power iteration until `‖Δπ‖₁ < tolerance`.
    ///
    /// Sums to 1; one value per node.
    ///
    /// # Errors
    /// [`Error::Usage`] unless `seed` is a node, `0 < restart ≤ 1` and `tolerance > 0`.
    pub fn personalized_pagerank(
        &self,
        seed: usize,
        restart: f64,
        tolerance: f64,
    ) -> Result<Vec<f64>> {
        let nodes = self.begins.len() - 1;
        let sound = restart > 0.0 && restart <= 1.0 && tolerance > 0.0;
        if seed >= nodes || !sound {
            return Err(Error::usage(format!(
                "personalised PageRank: seed {seed} of {nodes} nodes, restart {restart}, tolerance \
                 {tolerance}; expected a node, a restart in (0, 1], a tolerance above 0"
            )));
        }
        let mut rank = vec![0.0; nodes];
        rank[seed] = 1.0;
        let mut next = vec![0.0; nodes];
        loop {
            next.fill(0.0);
            let mut home = restart;
            for (node, &mass) in rank.iter().enumerate() {
                let steps = &self.steps[self.begins[node]..self.begins[node + 1]];
                let moving = (1.0 - restart) * mass;
                if steps.is_empty() {
                    home += moving;
                }
                for &(target, probability) in steps {
                    next[target as usize] += moving * probability;
                }
            }
            next[seed] += home;
            let change: f64 = rank.iter().zip(&next).map(|(a, b)| (a - b).abs()).sum();
            std::mem::swap(&mut rank, &mut next);
            // The change shrinks by (1 − restart) a round, so this ends; below the rounding error
            // of the sum it would not shrink any more.
            if change < tolerance.max(1e-15) {
                return Ok(rank);
            }
        }
    }
}

/// The nodes in an order in which every edge points forward, or the edges of a shortest cycle, in
/// the order in which they are walked: the smallest set of constraints that contradict each other.
///
/// # Errors
/// The cycle.
pub fn topological_order<N, E>(graph: &DiGraph<N, E>) -> Result<Vec<NodeIndex>, Vec<EdgeIndex>> {
    toposort(graph, None).map_err(|_| shortest_cycle(graph).unwrap_or_default())
}

/// The edges of a cycle with the fewest edges; `None` in a graph without cycles.
fn shortest_cycle<N, E>(graph: &DiGraph<N, E>) -> Option<Vec<EdgeIndex>> {
    let mut shortest: Option<Vec<EdgeIndex>> = None;
    for component in tarjan_scc(graph) {
        for &start in &component {
            let limit = shortest.as_ref().map_or(usize::MAX, Vec::len);
            if let Some(cycle) = cycle_through(graph, start, limit) {
                shortest = Some(cycle);
            }
        }
    }
    shortest
}

/// A cycle of fewer than `limit` edges through `start`, the shortest there is (breadth first).
fn cycle_through<N, E>(
    graph: &DiGraph<N, E>,
    start: NodeIndex,
    limit: usize,
) -> Option<Vec<EdgeIndex>> {
    let mut reached_by: Vec<Option<EdgeIndex>> = vec![None; graph.node_bound()];
    let mut queue = VecDeque::from([(start, 0)]);
    while let Some((node, steps)) = queue.pop_front() {
        if steps + 1 >= limit {
            return None;
        }
        for edge in graph.edges_directed(node, Direction::Outgoing) {
            if edge.target() == start {
                let mut cycle = vec![edge.id()];
                let mut at = node;
                while let (true, Some(edge)) = (at != start, reached_by[at.index()]) {
                    cycle.push(edge);
                    at = graph.edge_endpoints(edge)?.0;
                }
                cycle.reverse();
                return Some(cycle);
            }
            if reached_by[edge.target().index()].is_none() {
                reached_by[edge.target().index()] = Some(edge.id());
                queue.push_back((edge.target(), steps + 1));
            }
        }
    }
    None
}

/// The graph as Graphviz text, with a label for every node and edge; an empty edge label is left
/// out. Labels may be any text.
pub fn dot<N, E, D: EdgeType>(
    graph: &Graph<N, E, D>,
    node_label: impl Fn(&N) -> String,
    edge_label: impl Fn(&E) -> String,
) -> String {
    let (kind, arrow) = if graph.is_directed() { ("digraph", "->") } else { ("graph", "--") };
    let mut text = format!("{kind} {{\n");
    // writing to a string can't fail
    for node in graph.node_indices() {
        let label = quoted(&node_label(&graph[node]));
        let _ = writeln!(text, "  {} [label={label}];", node.index());
    }
    for edge in graph.edge_references() {
        let label = edge_label(edge.weight());
        let label =
            if label.is_empty() { String::new() } else { format!(" [label={}]", quoted(&label)) };
        let (from, to) = (edge.source().index(), edge.target().index());
        let _ = writeln!(text, "  {from} {arrow} {to}{label};");
    }
    text + "}\n"
}

/// A Graphviz string: quotes and backslashes escaped, control characters as blanks.
fn quoted(text: &str) -> String {
    let inner: String = text
        .chars()
        .flat_map(|letter| match letter {
            '"' | '\\' => vec!['\\', letter],
            letter if letter.is_control() => vec![' '],
            letter => vec![letter],
        })
        .collect();
    format!("\"{inner}\"")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use petgraph::graph::UnGraph;

    use super::*;

    #[test]
    fn pagerank_equals_the_linear_solve_on_a_path() {
        // a – b – c, seed a, restart ½: a = ½ + b/4, b = a/2 + c/2, c = b/4
        let graph = UnGraph::<(), f64>::from_edges([(0, 1, 2.0), (1, 2, 2.0)]);
        let walk = RandomWalk::new(&graph, |&w| w).unwrap();
        let rank = walk.personalized_pagerank(0, 0.5, 1e-12).unwrap();
        for (found, expected) in rank.iter().zip([7.0 / 12.0, 4.0 / 12.0, 1.0 / 12.0]) {
            assert!((found - expected).abs() < 1e-11, "{rank:?}");
        }
    }

    #[test]
    fn mass_of_a_node_without_edges_returns_home() {
        let graph = DiGraph::<(), f64>::from_edges([(0, 1, 1.0)]);
        let walk = RandomWalk::new(&graph, |&w| w).unwrap();
        let rank = walk.personalized_pagerank(0, 0.15, 1e-12).unwrap();
        assert!((rank.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert!((rank[0] - 1.0 / 1.85).abs() < 1e-11, "{rank:?}");
        assert!(walk.personalized_pagerank(2, 0.15, 1e-12).is_err());
        assert!(walk.personalized_pagerank(0, 0.0, 1e-12).is_err());
        assert!(RandomWalk::new(&graph, |_| -1.0).is_err());
    }

    #[test]
    fn the_conflict_is_a_shortest_cycle() {
        let edges = [(0, 1), (1, 2), (2, 3), (3, 0), (2, 4), (4, 2), (4, 5)];
        let graph = DiGraph::<(), ()>::from_edges(edges);
        let cycle = topological_order(&graph).unwrap_err();
        let mut ends: Vec<_> = cycle
            .iter()
            .map(|&edge| graph.edge_endpoints(edge).unwrap())
            .map(|(a, b)| (a.index(), b.index()))
            .collect();
        ends.sort_unstable();
        assert_eq!(ends, [(2, 4), (4, 2)]);
        let graph = DiGraph::<(), ()>::from_edges([(1, 1)]);
        assert_eq!(topological_order(&graph).unwrap_err().len(), 1);
        let graph = DiGraph::<(), ()>::from_edges([(2, 1), (1, 0)]);
        let order: Vec<usize> =
            topological_order(&graph).unwrap().iter().map(|node| node.index()).collect();
        assert_eq!(order, [2, 1, 0]);
    }

    #[test]
    fn graphviz_text_escapes_labels() {
        let mut graph = DiGraph::new();
        let a = graph.add_node("a \"b\\\n");
        graph.add_edge(a, a, "");
        let text = dot(&graph, |n| (*n).to_owned(), |e| (*e).to_owned());
        assert_eq!(text, "digraph {\n  0 [label=\"a \\\"b\\\\ \"];\n  0 -> 0;\n}\n");
    }
}
