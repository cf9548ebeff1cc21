//! The agent's first steps: from a text or a scene file to a constraint problem (Algorithm 1,
//! lines 1 and 2).

use std::path::PathBuf;

use common::llm::{Llm, Message, Request};
use common::{Error, Result};

use crate::conflict::conflict;
use crate::data::scene::{ObjectSpec, RelationSpec, SceneFile};
use crate::language::{self, objects, relation_word};
use crate::layout::{Edge, Frame, Problem};
use crate::relations::Relation;

/// A scene file made ready: problem, names, expected sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// What was read.
    pub file: SceneFile,
    /// Names of the objects, in the problem's order.
    pub names: Vec<String>,
    /// Sizes and relations.
    pub problem: Problem,
    /// Real-world heights behind the sizes, in metres.
    pub heights_m: Vec<f64>,
}

/// Scene file of an English text by rules.
///
/// # Errors
/// Those of [`language::parse`].
pub fn scene_of_text(text: &str, setting: &str, canvas: [u32; 2]) -> Result<SceneFile> {
    let parsed = language::parse(text)?;
    let name = |index: usize| parsed.phrases[index].clone();
    let objects = parsed.phrases.iter().map(|phrase| ObjectSpec {
        id: phrase.clone(),
        size_m: objects::find(phrase).map(|known| known.size_m),
        ..ObjectSpec::default()
    });
    let relations = parsed.statements.iter().map(|statement| RelationSpec {
        kind: statement.relation.name().into(),
        a: name(statement.a),
        b: statement.b.map(name),
    });
    let scene = SceneFile {
        canvas,
        objects: objects.collect(),
        relations: relations.collect(),
        no_overlap: true,
        prompt_bg: language::rewrite(setting, &parsed.phrases).background,
        style: String::new(),
        light: String::new(),
    };
    scene.check()?;
    Ok(scene)
}

/// Most answers of a language model that are asked for one scene: the first and three repairs.
const ANSWERS: usize = 4;

/// Scene file of a text by a language model: objects, sizes, scene graph and background prompt in
/// one answer held to the JSON schema; an answer that does not pass is sent back with the
/// validator's message. `pictures` of the objects are shown to models that see; an object takes
/// over its picture by naming the file.
///
/// # Errors
/// [`Error::LlmOutput`] when no answer passes; pictures that can't be read; those of the model.
pub fn scene_of_llm(
    llm: &Llm,
    text: &str,
    pictures: &[PathBuf],
    canvas: [u32; 2],
) -> Result<SceneFile> {
    let schema = schemars::schema_for!(SceneFile).to_value();
    let names = Relation::ALL.map(Relation::name).join(", ");
    let files: Vec<String> = pictures.iter().map(|path| path.display().to_string()).collect();
    let task = format!(
        "Turn the wish into a scene as JSON. Objects: id, phrase, size_m (real width and height in \
         metres), image (its picture's file, one of {files:?}, or none). Relations: type (one of \
         {names}; unary ones have no b), a, b (object ids), at most two per pair. prompt_bg: the \
         background without the objects. canvas: {canvas:?}. Answer with the JSON object only."
    );
    let mut wish = Message::user(text);
    for path in pictures {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let kind = if bytes.starts_with(b"\x89PNG") { "image/png" } else { "image/jpeg" };
        wish = wish.with_image(kind, bytes);
    }
    let mut messages = vec![Message::system(task), wish];
    let mut last = String::new();
    for _ in 0..ANSWERS {
        let request = Request::new(messages.clone()).max_tokens(1500).schema(schema.clone());
        let answer = llm.generate(&request)?.into_text()?;
        match checked(&answer, pictures) {
            Ok(scene) => return Ok(scene),
            Err(error) => last = error.to_string(),
        }
        messages.push(Message::assistant(answer));
        messages.push(Message::user(format!("That does not pass: {last}. Answer again.")));
    }
    Err(Error::LlmOutput(format!("no usable scene in {ANSWERS} answers; the last: {last}")))
}

/// A model's answer as a scene that has a problem; it may name no other files than `pictures`.
fn checked(answer: &str, pictures: &[PathBuf]) -> Result<SceneFile> {
    let json = answer.find('{').zip(answer.rfind('}')).filter(|(start, end)| start < end);
    let (start, end) = json.ok_or_else(|| Error::data("no JSON object", "one JSON object"))?;
    let scene = SceneFile::parse(&answer[start..=end])?;
    let images = scene.objects.iter().filter_map(|object| object.image.as_ref());
    if let Some(other) = images.into_iter().find(|image| !pictures.contains(image)) {
        return Err(Error::data(format!("image {other:?}"), format!("one of {pictures:?}")));
    }
    Scene::new(scene.clone(), &[])?;
    Ok(scene)
}

impl Scene {
    /// Builds the problem: sizes from metres (`aspects` of known cut-outs, width over height, win
    /// over the table's), the given relations, `in` for every object, `cfree` for every pair that
    /// may not overlap. Objects that stand on one support shrink until it has room for them; all
    /// sizes shrink together while the graph is unsatisfiable for them.
    ///
    /// # Errors
    /// [`Error::Data`] for unknown relation words, wrong numbers of arguments, and unsatisfiable
    /// graphs, with a minimal conflicting set.
    pub fn new(file: SceneFile, aspects: &[Option<f64>]) -> Result<Self> {
        let frame = Frame::of_aspect(f64::from(file.canvas[0]) / f64::from(file.canvas[1]));
        let names: Vec<String> = file.objects.iter().map(|object| object.id.clone()).collect();
        let size_m: Vec<[f64; 2]> = file
            .objects
            .iter()
            .enumerate()
            .map(|(index, object)| {
                let phrase = object.phrase.as_deref().unwrap_or(&object.id);
                let known = objects::find(phrase).map(|known| known.size_m);
                let size = object.size_m.or(known).unwrap_or([0.5, 0.5]);
                match aspects.get(index).copied().flatten() {
                    Some(aspect) if object.size_m.is_none() || known == object.size_m => {
                        let longest = size[0].max(size[1]);
                        [longest * aspect.min(1.0), longest * (1.0 / aspect).min(1.0)]
                    }
                    _ => size,
                }
            })
            .collect();
        let edges = edges(&file)?;
        let mut sizes = language::canvas_sizes(frame, &size_m);
        let mut locked = vec![None; sizes.len()];
        for (index, object) in file.objects.iter().enumerate() {
            if let Some(place) = object.place {
                let rect = frame.from_canvas(place);
                sizes[index] = [rect.w, rect.h];
                locked[index] = Some([rect.x, rect.y]);
            }
        }
        let mut problem = Problem { frame, sizes, edges, locked };
        make_room_on_supports(&mut problem);
        let original = problem.clone();
        for _ in 0..12 {
            if conflict(&problem).is_none() {
                break;
            }
            for (size, lock) in problem.sizes.iter_mut().zip(&problem.locked) {
                if lock.is_none() {
                    *size = size.map(|side| side * 0.87);
                }
            }
        }
        if conflict(&problem).is_some()
            && let Some(found) = conflict(&original)
        {
            return Err(Error::data(
                format!("relations that exclude each other: {}", found.describe(&names)),
                "a satisfiable scene; leave out or change one of them",
            ));
        }
        let heights_m = size_m.iter().map(|size| size[1]).collect();
        Ok(Self { file, names, problem, heights_m })
    }
}

/// Objects that stand side by side on one support take at most this share of its width.
const ROOM: f64 = 0.9;

/// Shrinks the objects on each support that are wider than it together (their aspects stay).
fn make_room_on_supports(problem: &mut Problem) {
    for support in 0..problem.len() {
        let on = |edge: &&Edge| edge.relation == Relation::On && edge.b == Some(support);
        let loads: Vec<usize> = problem.edges.iter().filter(on).map(|edge| edge.a).collect();
        let width: f64 = loads.iter().map(|&load| problem.sizes[load][0]).sum();
        let scale = ROOM * problem.sizes[support][0] / width;
        if loads.len() < 2 || scale >= 1.0 {
            continue;
        }
        for load in loads.into_iter().filter(|&load| problem.locked[load].is_none()) {
            problem.sizes[load] = problem.sizes[load].map(|side| side * scale);
        }
    }
}

fn edges(file: &SceneFile) -> Result<Vec<Edge>> {
    let index = |id: &str| {
        file.objects.iter().position(|object| object.id == id).ok_or_else(|| {
            Error::data(format!("unknown object {id:?}"), "ids of the scene's objects")
        })
    };
    let mut edges = Vec::new();
    for relation in &file.relations {
        let (kind, swapped) = relation_word(&relation.kind)?;
        let a = index(&relation.a)?;
        let edge = match &relation.b {
            None if kind.is_unary() => Edge::unary(kind, a),
            Some(b) if !kind.is_unary() => {
                let b = index(b)?;
                if swapped { Edge::binary(kind, b, a) } else { Edge::binary(kind, a, b) }
            }
            _ => {
                let expected = if kind.is_unary() { "one object" } else { "two objects, a and b" };
                let found = format!("relation {} of {:?}", relation.kind, relation.a);
                return Err(Error::data(
                    format!("{found} with another number of objects"),
                    expected,
                ));
            }
        };
        if !edges.contains(&edge) {
            edges.push(edge);
        }
    }
    let may_overlap = |a: usize, b: usize| {
        edges.iter().any(|edge: &Edge| {
            (edge.relation.allows_overlap() || edge.relation == Relation::On)
                && (edge.a == a && edge.b == Some(b) || edge.a == b && edge.b == Some(a))
        })
    };
    let count = file.objects.len();
    let mut implied: Vec<Edge> = (0..count).map(|a| Edge::unary(Relation::In, a)).collect();
    if file.no_overlap {
        for a in 0..count {
            let pairs = (a + 1..count).filter(|&b| !may_overlap(a, b));
            implied.extend(pairs.map(|b| Edge::binary(Relation::Cfree, a, b)));
        }
    }
    for edge in implied {
        let swapped = edge.b.map(|b| Edge::binary(edge.relation, b, edge.a));
        if !edges.contains(&edge) && !swapped.is_some_and(|swapped| edges.contains(&swapped)) {
            edges.push(edge);
        }
    }
    Ok(edges)
}
