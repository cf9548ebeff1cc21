//! A text becomes a scene graph, the analytic solver lays it out, the checker has the last word.

#![allow(clippy::print_stdout)]

use common::optim::Workers;
use common::rng::Seed;
use layoutagent::agent::{Scene, scene_of_text};
use layoutagent::solve::{SolveConfig, Solver, rank, solve};

fn main() -> common::Result<()> {
    let text = "A laptop on a desk. A coffee to the right of the laptop.";
    let scene = Scene::new(scene_of_text(text, "office", [768, 512])?, &[])?;
    let config = SolveConfig { solver: Solver::Analytic, ..SolveConfig::default() };
    let workers = Workers::new(1)?;
    let mut solved = solve(&[(&scene.problem, 0)], &config, None, Seed::new(0), &workers)?;
    let mut candidates = solved.remove(0);
    rank(&scene.problem, &mut candidates);
    for (name, rect) in scene.names.iter().zip(scene.problem.rects(&candidates[0].centers)) {
        let [x, y, w, h] = scene.problem.frame.to_canvas(rect);
        println!("{name}: {x:.2} {y:.2} {w:.2} {h:.2}");
    }
    println!("all relations hold: {}", candidates[0].is_verified());
    Ok(())
}
