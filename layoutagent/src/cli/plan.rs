//! `plan` and `eval`.

use std::path::{Path, PathBuf};

use common::cli::{CommonArgs, text};
use common::llm::{Llm, LlmOptions, LlmSpec};
use common::optim::Workers;
use common::rng::Seed;
use common::{Error, Result, files, runtime};

use super::assets_of;
use crate::agent::{Scene, scene_of_llm, scene_of_text};
use crate::config::Config;
use crate::data::scene::{RelationSpec, SceneFile};
use crate::plan::Plan;
use crate::relations::violations;
use crate::render::cutout::{Collection, aspects};
use crate::render::files::overlay;
use crate::solve::{Candidate, SolveConfig, Solver, rank, solve};
use crate::{baselines, eval, networks};

/// Arguments of `plan`.
#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    /// English text, for example "a laptop on a desk. a cup to the right of the laptop."
    #[arg(required_unless_present_any = ["scene", "from"])]
    text: Option<String>,
    /// Scene file instead of a text
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    scene: Option<PathBuf>,
    /// Earlier layouts.json to change: its scene is taken over
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "scene"])]
    from: Option<PathBuf>,
    /// Keep this object of --from where its best layout has it; may be repeated
    #[arg(long, value_name = "ID", requires = "from")]
    lock: Vec<String>,
    /// Add a relation, for example "left-of cup jar"; may be repeated
    #[arg(long, value_name = "RELATION")]
    add: Vec<String>,
    /// Leave out a relation of the scene, written as in --add; may be repeated
    #[arg(long, value_name = "RELATION")]
    drop: Vec<String>,
    /// Setting of the background, for example "office"
    #[arg(long, default_value = "")]
    setting: String,
    /// Width and height in pixels
    #[arg(long, value_parser = canvas, default_value = "768x768")]
    canvas: [u32; 2],
    /// Solver; default solve.solver of the config
    #[arg(long, value_enum)]
    solver: Option<Solver>,
    /// Let the language model of --llm write the boxes too (verified like all others)
    #[arg(long)]
    llm_layout: bool,
    /// Picture of an object for the model of --llm to see, PNG or JPEG; may be repeated
    #[arg(long, value_name = "FILE", requires = "text")]
    picture: Vec<PathBuf>,
    /// Folder for layouts.json, scene.json and the overlays
    #[arg(long, default_value = "layout")]
    to: PathBuf,
}

fn canvas(text: &str) -> Result<[u32; 2], String> {
    let sides = text.split_once('x').and_then(|(w, h)| Some([w.parse().ok()?, h.parse().ok()?]));
    sides.ok_or_else(|| "expected WIDTHxHEIGHT, for example 768x512".to_owned())
}

fn relation(text: &str) -> Result<RelationSpec> {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words[..] {
        [kind, a] => Ok(RelationSpec { kind: kind.into(), a: a.into(), b: None }),
        [kind, a, b] => Ok(RelationSpec { kind: kind.into(), a: a.into(), b: Some(b.into()) }),
        _ => Err(Error::usage(format!(
            "relation {text:?}: expected \"TYPE OBJECT\" or \"TYPE OBJECT OBJECT\""
        ))),
    }
}

fn scene_file(plan: &PlanArgs, llm: Option<&Llm>) -> Result<SceneFile> {
    let mut scene = match (&plan.scene, &plan.from, &plan.text) {
        (Some(path), ..) => SceneFile::read(path)?,
        (_, Some(path), _) => {
            let earlier = Plan::read(path)?;
            let mut scene = earlier.scene;
            for id in &plan.lock {
                let object = scene.objects.iter_mut().find(|object| object.id == *id);
                let object = object.ok_or_else(|| {
                    Error::usage(format!("--lock {id}: the scene has no such id"))
                })?;
                let best = earlier.candidates.first().ok_or_else(|| {
                    Error::usage(format!("{}: a plan without a layout", path.display()))
                })?;
                object.place = best.boxes.get(id).copied();
            }
            scene
        }
        (None, None, text) => {
            let text = text.as_deref().unwrap_or_default();
            match llm {
                Some(llm) => scene_of_llm(llm, text, &plan.picture, plan.canvas)?,
                None if !plan.picture.is_empty() => {
                    return Err(Error::usage("--picture needs --llm SPEC, a model that sees"));
                }
                None => scene_of_text(text, &plan.setting, plan.canvas)?,
            }
        }
    };
    for text in &plan.drop {
        let gone = relation(text)?;
        let before = scene.relations.len();
        scene.relations.retain(|kept| *kept != gone);
        if scene.relations.len() == before {
            return Err(Error::usage(format!("--drop {text:?}: the scene has no such relation")));
        }
    }
    for text in &plan.add {
        scene.relations.push(relation(text)?);
    }
    scene.check()?;
    Ok(scene)
}

/// `plan`: solves, verifies, ranks, writes. A scene without a verified layout is an error, after
/// its files are written.
pub(super) fn plan(plan: &PlanArgs, args: &CommonArgs, config: &Config) -> Result<String> {
    let assets = assets_of(args);
    let options = LlmOptions::new(assets.clone());
    let llm = match args.llm.first() {
        Some(spec) => Some(Llm::open(&spec.parse::<LlmSpec>()?, &options)?),
        None => None,
    };
    let file = scene_file(plan, llm.as_ref())?;
    // Without the pictures, sizes and aspects come from the table alone.
    let shapes = Collection::load(&assets).and_then(|pictures| pictures.of_scene(&file));
    let shapes = match shapes {
        Ok(cutouts) => aspects(&cutouts),
        Err(error @ Error::Asset { .. }) => {
            tracing::warn!("aspects come from the size table: {error}");
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    let scene = Scene::new(file, &shapes)?;
    let solve_config =
        SolveConfig { solver: plan.solver.unwrap_or(config.solve.solver), ..config.solve.clone() };
    let (mut candidates, solver) = match (&llm, plan.llm_layout) {
        (Some(llm), true) => (vec![baselines::llm_layout(llm, &scene)?], "llm"),
        (None, true) => return Err(Error::usage("--llm-layout needs --llm SPEC")),
        _ => {
            let threads = runtime::init(None).threads;
            let learned = solve_config.solver.is_learned();
            let sampler = learned
                .then(|| networks::sampler(config, args.seed, threads, &assets))
                .transpose()?;
            let workers = Workers::new(threads)?;
            let problems = [(&scene.problem, 0)];
            let seed = Seed::new(args.seed);
            let mut solved = solve(&problems, &solve_config, sampler.as_ref(), seed, &workers)?;
            (solved.remove(0), solve_config.solver.name())
        }
    };
    rank(&scene.problem, &mut candidates);
    write(&scene, &candidates, solver, args, &plan.to)
}

fn write(
    scene: &Scene,
    candidates: &[Candidate],
    solver: &str,
    args: &CommonArgs,
    to: &Path,
) -> Result<String> {
    std::fs::create_dir_all(to).map_err(Error::io(to))?;
    let plan = Plan::new(scene, candidates, solver, args.seed);
    plan.write(&to.join("layouts.json"))?;
    files::atomic_write(&to.join("scene.json"), text::json(&scene.file)?.as_bytes())?;
    for (index, candidate) in candidates.iter().enumerate() {
        let words = if candidate.is_verified() { "verified" } else { "NOT verified" };
        let rects = scene.problem.rects(&candidate.centers);
        let title = format!("candidate {index}: {words}");
        let svg = overlay(scene.problem.frame, &rects, &scene.names, scene.file.canvas, &title);
        files::atomic_write(&to.join(format!("candidate-{index}.svg")), svg.as_bytes())?;
    }
    let verified = candidates.iter().filter(|candidate| candidate.is_verified()).count();
    if verified == 0 {
        let best = &plan.candidates[0];
        return Err(Error::data(
            format!(
                "no layout that satisfies all relations; the best of {} breaks {}",
                candidates.len(),
                best.violated.join(", ")
            ),
            "a scene with room for its relations; drop or change one of them, or try another seed",
        ));
    }
    if args.json {
        return text::json(&plan);
    }
    let mut lines =
        format!("{verified} of {} layouts verified ({solver}); the best:\n\n", candidates.len());
    let rows: Vec<Vec<String>> = scene
        .names
        .iter()
        .map(|name| {
            let numbers = plan.candidates[0].boxes[name].map(|v| format!("{v:.3}"));
            [vec![name.clone()], numbers.to_vec()].concat()
        })
        .collect();
    lines.push_str(&text::table(&["object", "x", "y", "w", "h"], &rows));
    lines.push_str(&format!("\n{}\n", to.join("layouts.json").display()));
    Ok(lines)
}

/// `eval`: metrics of every candidate of a plan.
pub(super) fn eval(path: &Path, args: &CommonArgs) -> Result<String> {
    let plan = Plan::read(path)?;
    let mut rows = Vec::new();
    for index in 0..plan.candidates.len() {
        let (scene, rects) = plan.scene_and_boxes(index).map_err(|error| error.in_file(path))?;
        let mut csr = eval::Csr::default();
        csr.add(&scene.problem, &rects);
        let overlap = eval::overlap(scene.problem.frame, &rects);
        let heights: Vec<f64> = rects.iter().map(|rect| rect.h).collect();
        rows.push(serde_json::json!({
            "candidate": index,
            "verified": violations(&scene.problem, &rects).is_empty(),
            "csr": csr.overall().share(),
            "overlap_layoutgan_pp": overlap.layout_gan_pp,
            "overlap_ac_layoutgan": overlap.ac_layout_gan,
            "overlap_layoutgan": overlap.layout_gan,
            "alignment": eval::alignment(scene.problem.frame, &rects),
            "out_of_frame": eval::out_of_frame(scene.problem.frame, &rects),
            "size_fidelity": eval::size_fidelity(&heights, &scene.heights_m),
            "support_gap": eval::support_gap(&scene.problem, &rects),
        }));
    }
    if args.json {
        return text::json(&rows);
    }
    let keys: Vec<String> = rows
        .first()
        .and_then(|row| row.as_object())
        .into_iter()
        .flat_map(|row| row.keys().cloned())
        .collect();
    let cell = |value: &serde_json::Value| match value.as_f64() {
        Some(number) if value.is_f64() => format!("{number:.4}"),
        _ if value.is_null() => "–".to_owned(),
        _ => value.to_string(),
    };
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| keys.iter().map(|key| cell(&row[key])).collect()).collect();
    let header: Vec<&str> = keys.iter().map(String::as_str).collect();
    Ok(text::table(&header, &cells))
}
