//! The hand-written product scenes: parsed, solved, verified, rendered.

use std::time::Instant;

use common::llm::{Llm, LlmOptions, LlmSpec};
use common::optim::Workers;
use common::report::{Figure, Report, Role, Row};
use common::rng::Seed;
use common::{Error, Result};
use image::RgbaImage;

use super::{Parts, mean_row};
use crate::agent::{Scene, scene_of_text};
use crate::baselines::llm_layout;
use crate::eval;
use crate::language::product_scenes;
use crate::layout::Problem;
use crate::render::cutout::{Collection, aspects};
use crate::render::{compose, files, identity_error, place};
use crate::solve::{Candidate, Solver, rank, solve};

const SIDE: u32 = 256;
/// Pictures per sheet of the report.
const SHEET: usize = 10;

pub(super) fn run(parts: &Parts<'_>, report: &mut Report) -> Result<()> {
    let collection = Collection::load(&parts.context.assets)?;
    let mut prepared: Vec<(Scene, Vec<RgbaImage>, &str)> = Vec::new();
    for product in product_scenes().into_iter().take(parts.config.bench.product_scenes) {
        let file = scene_of_text(product.text, product.setting, [SIDE, SIDE])?;
        let cutouts = collection.of_scene(&file)?;
        let scene = Scene::new(file, &aspects(&cutouts))?;
        prepared.push((scene, cutouts, product.text));
    }
    let problems: Vec<(&Problem, u64)> =
        prepared.iter().map(|(scene, ..)| &scene.problem).zip(0..).collect();
    let workers = Workers::new(parts.context.threads)?;
    let seed = Seed::new(parts.seed);
    let solvers = [
        (Solver::Hybrid, Role::Ours),
        (Solver::Learned, Role::Paper),
        (Solver::Analytic, Role::Baseline),
        (Solver::Construct, Role::Baseline),
        (Solver::Reject, Role::Control),
    ];
    for (solver, role) in solvers {
        let started = Instant::now();
        let solved = solve(&problems, &parts.solver(solver), Some(parts.sampler), seed, &workers)?;
        let best: Vec<Candidate> = solved
            .into_iter()
            .zip(&prepared)
            .map(|(mut candidates, (scene, ..))| {
                rank(&scene.problem, &mut candidates);
                candidates.swap_remove(0)
            })
            .collect();
        let seconds = started.elapsed().as_secs_f64();
        rows(parts, report, &prepared, &best, (solver, role), seconds);
        if solver == Solver::Hybrid {
            draw(parts, report, &prepared, &best)?;
        }
    }
    language_model(parts, report, &prepared)
}

/// Boxes by a small local language model in the manner of LayoutGPT, on the first scenes.
fn language_model(
    parts: &Parts<'_>,
    report: &mut Report,
    prepared: &[(Scene, Vec<RgbaImage>, &str)],
) -> Result<()> {
    let count = parts.config.bench.llm_scenes.min(prepared.len());
    if count == 0 {
        return Ok(());
    }
    let spec: LlmSpec = "gguf:smollm2-135m-instruct".parse()?;
    let llm = Llm::open(&spec, &LlmOptions::new(parts.context.assets.clone()))?;
    let mut stream = Seed::new(parts.seed).stream("bench/products/llm");
    let (mut verified, mut held) = (Vec::new(), Vec::new());
    for (scene, ..) in &prepared[..count] {
        // an answer that is no layout solves nothing
        let layout = match llm_layout(&llm, scene) {
            Ok(layout) => layout,
            Err(Error::LlmOutput(_)) => {
                verified.push(0.0);
                held.push(0.0);
                continue;
            }
            Err(error) => return Err(error),
        };
        verified.push(f64::from(u8::from(layout.is_verified())));
        let mut csr = eval::Csr::default();
        csr.add(&scene.problem, &scene.problem.rects(&layout.centers));
        held.push(csr.overall().share());
    }
    for (metric, values) in [("verified", verified), ("CSR", held)] {
        let row = Row {
            claim: "layouts respect the scene graph".into(),
            dataset: format!("product scenes, the first {count}"),
            method: "LLM (SmolLM2-135M, LayoutGPT's way)".into(),
            role: Role::Baseline,
            metric: metric.into(),
            note: Some("one answer a scene, held to a JSON schema; a very small model".into()),
            ..Row::default()
        };
        report.rows.push(mean_row(row, &values, parts.config.bench.resamples, &mut stream));
    }
    Ok(())
}

fn rows(
    parts: &Parts<'_>,
    report: &mut Report,
    prepared: &[(Scene, Vec<RgbaImage>, &str)],
    best: &[Candidate],
    (solver, role): (Solver, Role),
    seconds: f64,
) {
    let mut stream = Seed::new(parts.seed).stream(&format!("bench/products/{}", solver.name()));
    let mut add =
        |metric: &str, higher_is_better: bool, value: &dyn Fn(&Scene, &Candidate) -> f64| {
            let values: Vec<f64> =
                prepared.iter().zip(best).map(|((scene, ..), best)| value(scene, best)).collect();
            let row = Row {
            claim: "layouts respect the scene graph".into(),
            dataset: "product scenes".into(),
            method: solver.name().into(),
            role,
            metric: metric.into(),
            higher_is_better,
            note: Some(
                "best of the candidates; the networks know neither the frame's aspect nor our own \
                 relations"
                    .into(),
            ),
            seconds: Some(seconds),
            ..Row::default()
        };
            report.rows.push(mean_row(row, &values, parts.config.bench.resamples, &mut stream));
        };
    let rects = |scene: &Scene, best: &Candidate| scene.problem.rects(&best.centers);
    add("verified", true, &|_, best| f64::from(u8::from(best.is_verified())));
    add("CSR", true, &|scene, best| {
        let mut csr = eval::Csr::default();
        csr.add(&scene.problem, &rects(scene, best));
        csr.overall().share()
    });
    add("overlap (LayoutGAN++)", false, &|scene, best| {
        eval::overlap(scene.problem.frame, &rects(scene, best)).layout_gan_pp
    });
    add("overlap (AC-LayoutGAN)", false, &|scene, best| {
        eval::overlap(scene.problem.frame, &rects(scene, best)).ac_layout_gan
    });
    add("overlap (LayoutGAN)", false, &|scene, best| {
        eval::overlap(scene.problem.frame, &rects(scene, best)).layout_gan
    });
    add("alignment × 100", false, &|scene, best| {
        100.0 * eval::alignment(scene.problem.frame, &rects(scene, best))
    });
    add("out of frame", false, &|scene, best| {
        eval::out_of_frame(scene.problem.frame, &rects(scene, best))
    });
    add("support gap", false, &|scene, best| {
        eval::support_gap(&scene.problem, &rects(scene, best))
    });
}

fn draw(
    parts: &Parts<'_>,
    report: &mut Report,
    prepared: &[(Scene, Vec<RgbaImage>, &str)],
    best: &[Candidate],
) -> Result<()> {
    let mut pictures = Vec::new();
    let mut errors = Vec::new();
    for ((scene, cutouts, text), best) in prepared.iter().zip(best) {
        let rects = scene.problem.rects(&best.centers);
        let placed = place(&scene.problem, &rects, cutouts, scene.file.canvas);
        let picture = compose(&scene.file.prompt_bg, [SIDE, SIDE], placed, "");
        errors.push(identity_error(&picture, 2));
        let words = if best.is_verified() { "" } else { "NOT VERIFIED: " };
        pictures.push((picture.image, format!("{words}{text}")));
    }
    let mut stream = Seed::new(parts.seed).stream("bench/products/identity");
    let row = Row {
        dataset: "product scenes".into(),
        method: "hybrid".into(),
        role: Role::Ours,
        metric: "identity error inside the eroded mask".into(),
        higher_is_better: false,
        note: Some("0 by construction: the foreground is pasted last".into()),
        ..Row::default()
    };
    report.rows.push(mean_row(row, &errors, parts.config.bench.resamples, &mut stream));
    for (index, chunk) in pictures.chunks(SHEET).enumerate() {
        let first = index * SHEET + 1;
        let title = format!("Product scenes {first} to {}", first + chunk.len() - 1);
        let caption = "Hybrid solver, best layout; emoji as products, procedural backgrounds.";
        report.figures.push(Figure::new(&title, caption, files::sheet(chunk, 5, SIDE)?));
    }
    Ok(())
}
