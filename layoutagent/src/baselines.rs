//! Layouts to compare with: random placement with rejection, and a language model that writes boxes
//! (LayoutGPT's way). The analytic solver of [`crate::solve`] is the simple strong one.

use std::collections::BTreeMap;

use common::llm::{Llm, Message, Request};
use common::rng::Stream;
use common::{Error, Result};
use serde_json::{Map, Value, json};

use crate::agent::Scene;
use crate::layout::{Edge, Problem};
use crate::relations::Relation;
use crate::solve::Candidate;

/// A layout written by a language model: it sees the objects' sizes and relations and one worked
/// example, and answers with the corner of each box in per cent of the canvas. The answer is held to
/// a JSON schema, so that small local models give layouts too.
///
/// # Errors
/// [`Error::LlmOutput`] when the answer holds no box for some object; those of the model.
pub fn llm_layout(llm: &Llm, scene: &Scene) -> Result<Candidate> {
    let frame = scene.problem.frame;
    let percent = |share: f64| (100.0 * share).round();
    let mut question = String::new();
    for (name, size) in scene.names.iter().zip(&scene.problem.sizes) {
        let (w, h) = (percent(size[0] / frame.width), percent(size[1] / frame.height));
        question.push_str(&format!("{name}: width {w}, height {h}\n"));
    }
    for edge in scene.problem.edges.iter().filter(|edge| edge.relation != Relation::In) {
        question.push_str(&format!("{}\n", edge.describe(&scene.names)));
    }
    let task = "Place boxes on a canvas of 100 by 100, origin at the top left, y down. Answer with a \
                JSON object from each name to [left, top] so that all relations hold. Example: for \
                cup: width 10, height 10; desk: width 60, height 30; on(cup, desk) the answer is \
                {\"cup\": [45, 50], \"desk\": [20, 60]}.";
    let corner = json!({
        "type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 100},
        "minItems": 2, "maxItems": 2,
    });
    let properties: Map<String, Value> =
        scene.names.iter().map(|name| (name.clone(), corner.clone())).collect();
    let schema = json!({
        "type": "object", "properties": properties, "required": scene.names,
        "additionalProperties": false,
    });
    let request = Request::new(vec![Message::system(task), Message::user(question)]).schema(schema);
    let answer = llm.generate(&request.max_tokens(40 * scene.names.len() + 100))?.into_text()?;
    let unusable = || Error::LlmOutput(format!("no layout in the answer {answer:?}"));
    let (start, end) = answer.find('{').zip(answer.rfind('}')).ok_or_else(unusable)?;
    let corners: BTreeMap<String, [f64; 2]> =
        serde_json::from_str(answer.get(start..=end).unwrap_or("")).map_err(|_| unusable())?;
    let centers = scene.names.iter().zip(&scene.problem.sizes).map(|(name, [w, h])| {
        let [x, y] = corners.get(name).ok_or_else(unusable)?.map(|percent| percent / 100.0);
        if !(x.abs() <= 10.0 && y.abs() <= 10.0) {
            return Err(unusable());
        }
        let rect = frame.from_canvas([x, y, w / frame.width, h / frame.height]);
        Ok([rect.x, rect.y])
    });
    Ok(Candidate::judged(&scene.problem, centers.collect::<Result<_>>()?))
}

/// Sequential rejection sampling: each object is placed uniformly in the frame, up to `tries`
/// times, until its relations with the frame and the objects before it hold.
pub fn reject(problem: &Problem, tries: usize, stream: &mut Stream) -> Vec<[f64; 2]> {
    let mut centers = vec![[0.0; 2]; problem.len()];
    problem.impose_locks(&mut centers);
    for object in 0..problem.len() {
        if problem.locked[object].is_some() {
            continue;
        }
        let own: Vec<&Edge> = problem
            .edges
            .iter()
            .filter(|edge| {
                let last = edge.b.map_or(edge.a, |b| b.max(edge.a));
                last == object
            })
            .collect();
        let [w, h] = problem.sizes[object];
        let room = [(problem.frame.width - w).max(0.0), (problem.frame.height - h).max(0.0)];
        for _ in 0..tries.max(1) {
            let place = [0, 1].map(|axis| room[axis] * (stream.uniform() - 0.5));
            centers[object] = place;
            let rects = problem.rects(&centers);
            if own.iter().all(|e| crate::relations::edge_holds(problem.frame, &rects, e)) {
                break;
            }
        }
    }
    centers
}
