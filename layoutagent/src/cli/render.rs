//! `render`.

use std::path::PathBuf;

use common::cli::CommonArgs;
use common::stable_diffusion::StableDiffusion;
use common::{Error, Result, files};

use super::assets_of;
use crate::plan::Plan;
use crate::relations::violations;
use crate::render::cutout::{self, Collection};
use crate::render::files::{overlay, png};
use crate::render::{background, compose, compose_over, diffusion, identity_error, place};
use crate::segment::{self, Prompt};

/// Arguments of `render`.
#[derive(Debug, clap::Args)]
pub struct RenderArgs {
    /// layouts.json of `plan`
    layouts: PathBuf,
    /// Which layout, counted from 0 (the best)
    #[arg(long, default_value_t = 0)]
    candidate: usize,
    /// Paint the background with this Stable Diffusion model, hf:OWNER/NAME or a folder; with 9 input
    /// channels it inpaints, with 4 the foreground is blended in after each step
    #[arg(long, value_name = "MODEL")]
    diffusion: Option<String>,
    /// Steps of the diffusion model
    #[arg(long, default_value_t = diffusion::STEPS)]
    steps: usize,
    /// Folder for scene.png, overlay.svg, objects/*.png and objects.json
    #[arg(long, default_value = "render")]
    to: PathBuf,
}

/// `render`: draws one layout.
pub(super) fn render(render: &RenderArgs, args: &CommonArgs) -> Result<String> {
    let plan = Plan::read(&render.layouts)?;
    let (scene, rects) =
        plan.scene_and_boxes(render.candidate).map_err(|error| error.in_file(&render.layouts))?;
    let cutouts = Collection::load(&assets_of(args))?.of_scene(&plan.scene)?;
    let placed = place(&scene.problem, &rects, &cutouts, plan.scene.canvas);
    let picture = match &render.diffusion {
        None => compose(&plan.scene.prompt_bg, plan.scene.canvas, placed, &plan.scene.light),
        Some(spec) => {
            let model = StableDiffusion::open(spec, &assets_of(args))?;
            let prompt = format!("{} {}", plan.scene.prompt_bg, plan.scene.style);
            let prompts = (prompt.trim(), scene.names.join(", "));
            let prompts = (prompts.0, prompts.1.as_str());
            let canvas = plan.scene.canvas;
            let seed = args.seed;
            let ground = diffusion::paint(&model, &placed, canvas, prompts, seed, render.steps)?;
            // where the painted ground starts is unknown: the setting's horizon stands for it
            let horizon = background::horizon(&plan.scene.prompt_bg, canvas[1], &placed);
            compose_over(ground, horizon, placed, &plan.scene.light)
        }
    };
    let error = identity_error(&picture, 2);
    if error > 0.0 {
        return Err(Error::Bug(format!("foreground pixels changed by {error} on average")));
    }
    let to = &render.to;
    let objects = to.join("objects");
    std::fs::create_dir_all(&objects).map_err(Error::io(&objects))?;
    let config = common::cli::text::json(&plan.scene)?;
    let seed = plan.seed.to_string();
    let metadata = [
        ("Software", "layoutagent"),
        ("Seed", &seed),
        ("Solver", &plan.solver),
        ("Scene", &config),
    ];
    files::atomic_write(&to.join("scene.png"), &png(&picture.image, &metadata)?)?;
    let broken = violations(&scene.problem, &rects);
    let words = if broken.is_empty() { "verified" } else { "NOT verified" };
    let title = format!("candidate {}: {words}", render.candidate);
    let svg = overlay(scene.problem.frame, &rects, &scene.names, plan.scene.canvas, &title);
    files::atomic_write(&to.join("overlay.svg"), svg.as_bytes())?;
    let mut layers = Vec::new();
    for (layer, object) in picture.placed.iter().enumerate() {
        let name = format!("{layer:03}.png");
        files::atomic_write(&objects.join(&name), &png(&object.image, &[])?)?;
        layers.push(serde_json::json!({
            "id": scene.names[object.object],
            "file": format!("objects/{name}"),
            "left": object.at[0],
            "top": object.at[1],
            "width": object.image.width(),
            "height": object.image.height(),
        }));
    }
    let layers = serde_json::json!({"canvas": plan.scene.canvas, "back_to_front": layers});
    files::atomic_write(&to.join("objects.json"), common::cli::text::json(&layers)?.as_bytes())?;
    if args.json {
        return common::cli::text::json(&layers);
    }
    Ok(format!("{} ({words})\n", to.join("scene.png").display()))
}

/// Arguments of `cut`.
#[derive(Debug, clap::Args)]
pub struct CutArgs {
    /// Picture, PNG or JPEG
    picture: PathBuf,
    /// Box around the object: left, top, width and height in shares of the picture
    #[arg(long, value_name = "X,Y,W,H", value_parser = numbers::<4>)]
    r#box: Option<[f64; 4]>,
    /// A point of the object, in shares of the picture, instead of a box
    #[arg(long, value_name = "X,Y", value_parser = numbers::<2>, conflicts_with = "box",
          required_unless_present = "box")]
    point: Option<[f64; 2]>,
    /// PNG with alpha to write
    #[arg(long, default_value = "cutout.png")]
    to: PathBuf,
}

fn numbers<const N: usize>(text: &str) -> Result<[f64; N], String> {
    let values: Option<Vec<f64>> = text
        .split(',')
        .map(|part| part.trim().parse().ok().filter(|v: &f64| (0.0..=1.0).contains(v)))
        .collect();
    let values = values.and_then(|values| values.try_into().ok());
    values.ok_or_else(|| format!("expected {N} numbers from 0 to 1 with commas between"))
}

/// `cut`: cuts one object out of a picture.
pub(super) fn cut(cut: &CutArgs) -> Result<String> {
    let object = match (cut.r#box, cut.point) {
        (Some(rect), _) => cutout::cut(&cut.picture, rect)?,
        (None, point) => {
            let image = cutout::decode(&cut.picture)?;
            let [x, y] = point.unwrap_or([0.5, 0.5]);
            let at = [x * f64::from(image.width()), y * f64::from(image.height())];
            segment::cut_out(&segment::bundled()?, &image, Prompt::Point(at))
                .map_err(|error| error.in_file(&cut.picture))?
        }
    };
    files::atomic_write(&cut.to, &png(&object, &[("Software", "layoutagent")])?)?;
    Ok(format!("{}: {} x {} pixels\n", cut.to.display(), object.width(), object.height()))
}
