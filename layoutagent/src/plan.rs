//! Plans: ranked, verified layouts of a scene as they stand in `layouts.json`.

use std::collections::BTreeMap;
use std::path::Path;

use common::{Error, Result, files};
use serde::{Deserialize, Serialize};

use crate::agent::Scene;
use crate::data::scene::SceneFile;
use crate::layout::Rect;
use crate::solve::Candidate;

/// What the numbers of a box mean, written into every file.
pub const BOX_FORMAT: &str = "[x, y, w, h] in shares of the canvas, corner at the top left, y down";

/// `layouts.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`BOX_FORMAT`].
    pub box_format: String,
    /// Solver and seed.
    pub solver: String,
    /// Seed of the run.
    pub seed: u64,
    /// The scene.
    pub scene: SceneFile,
    /// Layouts, best first.
    pub candidates: Vec<PlannedLayout>,
}

/// One layout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedLayout {
    /// Whether the symbolic checker accepts every relation.
    pub verified: bool,
    /// The relations that do not hold.
    pub violated: Vec<String>,
    /// Box of each object.
    pub boxes: BTreeMap<String, [f64; 4]>,
}

impl Plan {
    /// The plan of a scene's ranked candidates.
    pub fn new(scene: &Scene, candidates: &[Candidate], solver: &str, seed: u64) -> Self {
        let layout = |candidate: &Candidate| {
            let rects = scene.problem.rects(&candidate.centers);
            let boxes = scene.names.iter().zip(&rects).zip(&scene.file.objects);
            PlannedLayout {
                verified: candidate.is_verified(),
                violated: candidate.violated.iter().map(|e| e.describe(&scene.names)).collect(),
                boxes: boxes
                    .map(|((name, rect), object)| {
                        // a locked box comes back bit by bit
                        let place = object.place;
                        (name.clone(), place.unwrap_or(scene.problem.frame.to_canvas(*rect)))
                    })
                    .collect(),
            }
        };
        Self {
            box_format: BOX_FORMAT.into(),
            solver: solver.into(),
            seed,
            scene: scene.file.clone(),
            candidates: candidates.iter().map(layout).collect(),
        }
    }

    /// Reads and checks a plan.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] that names file and object.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let plan: Self = serde_json::from_slice(&bytes).map_err(|error| {
            Error::data(error.to_string(), "a layouts.json of `layoutagent plan`").in_file(path)
        })?;
        plan.scene.check().map_err(|error| error.in_file(path))?;
        for (index, candidate) in plan.candidates.iter().enumerate() {
            for object in &plan.scene.objects {
                let found = candidate.boxes.get(&object.id);
                let usable = found.is_some_and(|[x, y, w, h]| {
                    [x, y, w, h].iter().all(|v| v.is_finite() && v.abs() <= 10.0)
                        && *w > 0.0
                        && *h > 0.0
                });
                if !usable {
                    let found = format!("box {found:?} of {:?} in candidate {index}", object.id);
                    return Err(Error::data(found, BOX_FORMAT).in_file(path));
                }
            }
        }
        Ok(plan)
    }

    /// Writes the plan at once.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = common::cli::text::json(self)?;
        files::atomic_write(path, text.as_bytes())
    }

    /// The scene with sizes taken from candidate `index`, and its boxes.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is no such candidate; those of [`Scene::new`].
    pub fn scene_and_boxes(&self, index: usize) -> Result<(Scene, Vec<Rect>)> {
        let candidate = self.candidates.get(index).ok_or_else(|| {
            Error::usage(format!(
                "candidate {index}: the plan has {}, counted from 0",
                self.candidates.len()
            ))
        })?;
        let mut scene = Scene::new(self.scene.clone(), &[])?;
        let frame = scene.problem.frame;
        let rects: Vec<Rect> =
            scene.names.iter().map(|name| frame.from_canvas(candidate.boxes[name])).collect();
        scene.problem.sizes = rects.iter().map(|rect| [rect.w, rect.h]).collect();
        // the boxes decide where objects stand, not the scene's locks
        scene.problem.locked = vec![None; rects.len()];
        Ok((scene, rects))
    }
}
