//! NSR-1K spatial train: English captions → rule parser → layout, judged by the data set's own
//! spatial metric.

use std::time::Instant;

use common::Result;
use common::optim::Workers;
use common::report::{Report, Role, Row};
use common::rng::Seed;

use super::{Parts, mean_row};
use crate::agent::{Scene, scene_of_text};
use crate::data::nsr1k::{self, Record};
use crate::eval::{overlap, spatially_right};
use crate::language::objects;
use crate::layout::{Frame, Rect};
use crate::solve::{Candidate, SolveConfig, Solver, rank, solve};

const DATASET: &str = "NSR-1K spatial train";
const SQUARE: [u32; 2] = [512, 512];

/// What became of one caption.
struct Outcome {
    right: bool,
    /// Boxes of both objects, when the parser found them.
    boxes: Option<[Rect; 2]>,
    verified: bool,
}

pub(super) fn run(parts: &Parts<'_>, report: &mut Report) -> Result<()> {
    let path = parts.context.assets.file("nsr1k-spatial", "spatial.train.json")?;
    let mut records = nsr1k::read(&path)?.records;
    records.truncate(parts.config.bench.nsr_scenes);
    let frame = Frame::of_aspect(1.0);
    let truth: Vec<Outcome> = records
        .iter()
        .map(|record| {
            let boxes = [record.obj1.1, record.obj2.1].map(|rect| frame.from_canvas(rect));
            let right = spatially_right(&record.relation, boxes[0], boxes[1]);
            Outcome { right, boxes: Some(boxes), verified: false }
        })
        .collect();
    let scenes: Vec<Option<(Scene, [usize; 2])>> = records.iter().map(parsed).collect();
    push(
        parts,
        report,
        &records,
        &truth,
        "boxes of the data set",
        Role::Control,
        0.0,
        "the metric's own ground truth",
    );
    for (solver, role) in [(Solver::Hybrid, Role::Ours), (Solver::Reject, Role::Baseline)] {
        let started = Instant::now();
        let outcomes = solved(parts, &records, &scenes, solver)?;
        let seconds = started.elapsed().as_secs_f64();
        let name = format!("rule parser + {}", solver.name());
        let note = "right by construction where the parser is right: the relation is a constraint, \
                    with in and cfree";
        push(parts, report, &records, &outcomes, &name, role, seconds, note);
    }
    let found = scenes.iter().map(|scene| f64::from(u8::from(scene.is_some()))).collect::<Vec<_>>();
    let mut stream = Seed::new(parts.seed).stream("bench/nsr/parser");
    let row = Row {
        dataset: DATASET.into(),
        method: "rule parser".into(),
        role: Role::Ours,
        metric: "both objects found".into(),
        note: Some(
            "captions in which the parser finds both annotated objects and a relation".into(),
        ),
        ..Row::default()
    };
    report.rows.push(mean_row(row, &found, parts.config.bench.resamples, &mut stream));
    Ok(())
}

/// The caption's scene and the places of the two annotated objects in it, when the parser finds
/// both; the other objects of the caption are left out.
fn parsed(record: &Record) -> Option<(Scene, [usize; 2])> {
    let mut file = scene_of_text(&record.prompt, "", SQUARE).ok()?;
    let names = [&record.obj1.0, &record.obj2.0]
        .map(|name| objects::find(name).map_or(name.clone(), |known| known.name.to_owned()));
    file.objects.retain(|object| names.contains(&object.id));
    file.relations.retain(|relation| {
        names.contains(&relation.a) && relation.b.as_ref().is_some_and(|b| names.contains(b))
    });
    let scene = Scene::new(file, &[]).ok()?;
    let at = |name: &String| scene.names.iter().position(|known| known == name);
    let places = [at(&names[0])?, at(&names[1])?];
    (!scene.file.relations.is_empty()).then_some((scene, places))
}

fn solved(
    parts: &Parts<'_>,
    records: &[Record],
    scenes: &[Option<(Scene, [usize; 2])>],
    solver: Solver,
) -> Result<Vec<Outcome>> {
    let config = SolveConfig { candidates: 4, ..parts.solver(solver) };
    let problems: Vec<_> = scenes
        .iter()
        .zip(records)
        .filter_map(|(scene, record)| Some((&scene.as_ref()?.0.problem, record.id)))
        .collect();
    let workers = Workers::new(parts.context.threads)?;
    let seed = Seed::new(parts.seed);
    let mut all = solve(&problems, &config, Some(parts.sampler), seed, &workers)?.into_iter();
    let outcome = |(record, scene): (&Record, &Option<(Scene, [usize; 2])>)| {
        let lost = Outcome { right: false, boxes: None, verified: false };
        let Some((scene, [first, second])) = scene else { return lost };
        let Some(mut candidates) = all.next() else { return lost };
        rank(&scene.problem, &mut candidates);
        let best: &Candidate = &candidates[0];
        let rects = scene.problem.rects(&best.centers);
        let boxes = [rects[*first], rects[*second]];
        let right = spatially_right(&record.relation, boxes[0], boxes[1]);
        Outcome { right, boxes: Some(boxes), verified: best.is_verified() }
    };
    Ok(records.iter().zip(scenes).map(outcome).collect())
}

#[allow(clippy::too_many_arguments)]
fn push(
    parts: &Parts<'_>,
    report: &mut Report,
    records: &[Record],
    outcomes: &[Outcome],
    method: &str,
    role: Role,
    seconds: f64,
    note: &str,
) {
    let frame = Frame::of_aspect(1.0);
    let mut stream = Seed::new(parts.seed).stream(&format!("bench/nsr/{method}"));
    let row = |metric: &str, higher_is_better: bool| Row {
        claim: "boxes respect the caption's relation".into(),
        dataset: DATASET.into(),
        method: method.into(),
        role,
        metric: metric.into(),
        higher_is_better,
        note: Some(note.into()),
        seconds: Some(seconds),
        ..Row::default()
    };
    let as_share = |flag: bool| f64::from(u8::from(flag));
    let mut add = |row: Row, values: Vec<f64>| {
        let made = mean_row(row, &values, parts.config.bench.resamples, &mut stream);
        report.rows.push(made);
    };
    let both = records.iter().zip(outcomes);
    for kind in ["template", "natural"] {
        let values = both.clone().filter(|(r, _)| r.kind == kind).map(|(_, o)| as_share(o.right));
        let values: Vec<f64> = values.collect();
        if !values.is_empty() {
            add(row(&format!("spatial accuracy, {kind} captions"), true), values);
        }
    }
    if role != Role::Control {
        add(row("verified", true), outcomes.iter().map(|o| as_share(o.verified)).collect());
    }
    let boxes = || both.clone().filter_map(|(record, outcome)| Some((record, outcome.boxes?)));
    let overlaps = boxes().map(|(_, rects)| overlap(frame, &rects).layout_gan_pp).collect();
    add(row("overlap (LayoutGAN++)", false), overlaps);
    let fidelity = boxes().map(|(record, [first, second])| {
        let expected = record.obj1.1[3] / record.obj2.1[3];
        (first.h / second.h / expected).ln().abs()
    });
    add(row("size fidelity against the data set's boxes", false), fidelity.collect());
}
