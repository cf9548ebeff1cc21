//! Scene files: objects, relations and setting as JSON.
//!
//! ```json
//! {"canvas": [768, 512],
//!  "objects": [{"id": "desk", "size_m": [1.4, 0.75]},
//!              {"id": "cup", "image": "cup.png", "box": [0.1, 0.4, 0.1, 0.1]}],
//!  "relations": [{"type": "on", "a": "cup", "b": "desk"}],
//!  "prompt_bg": "office"}
//! ```
//!
//! A `box` is `[x, y, w, h]` in shares of the canvas, corner at the top left, y down; an object with
//! a box is locked there.

use std::path::{Path, PathBuf};

use common::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most objects of a scene.
pub const MOST_OBJECTS: usize = 500;

/// A scene as it stands in a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SceneFile {
    /// Width and height of the picture in pixels.
    #[serde(default = "default_canvas")]
    pub canvas: [u32; 2],
    /// What the picture shows.
    pub objects: Vec<ObjectSpec>,
    /// How the objects stand to each other and to the canvas.
    #[serde(default)]
    pub relations: Vec<RelationSpec>,
    /// Objects must not overlap, except pairs related by inside, in-front-of or on.
    #[serde(default = "yes")]
    pub no_overlap: bool,
    /// Background, without the objects.
    #[serde(default)]
    pub prompt_bg: String,
    /// Global style.
    #[serde(default)]
    pub style: String,
    /// Direction of the light: `left`, `right` or `above`.
    #[serde(default)]
    pub light: String,
}

/// One object.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ObjectSpec {
    /// Unique name.
    pub id: String,
    /// What it is; the id when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phrase: Option<String>,
    /// Cut-out with alpha (PNG); a known picture of the phrase when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// The object's box in `image`, `[x, y, w, h]` in shares of that image, y down: the segmentation
    /// network cuts the object out. Without it the image's alpha is the object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<[f64; 4]>,
    /// Real-world width and height in metres; the size table when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_m: Option<[f64; 2]>,
    /// Confidence of the size, for people; not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conf: Option<f64>,
    /// Locked place: `[x, y, w, h]` in shares of the canvas, y down.
    #[serde(default, rename = "box", skip_serializing_if = "Option::is_none")]
    pub place: Option<[f64; 4]>,
}

/// One relation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RelationSpec {
    /// Relation word.
    #[serde(rename = "type")]
    pub kind: String,
    /// First object.
    pub a: String,
    /// Second object; none for relations with the canvas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub b: Option<String>,
}

fn default_canvas() -> [u32; 2] {
    [768, 768]
}

fn yes() -> bool {
    true
}

impl SceneFile {
    /// Reads and checks a scene file; image paths are taken relative to it.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Data`] that names file, object or relation.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(Error::io(path))?;
        let text = String::from_utf8(text)
            .map_err(|_| Error::data("bytes that are no UTF-8", "a JSON text").in_file(path))?;
        let mut scene = Self::parse(&text).map_err(|error| error.in_file(path))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for object in &mut scene.objects {
            if let Some(image) = &mut object.image {
                *image = folder.join(&*image);
            }
        }
        Ok(scene)
    }

    /// Parses and checks a scene.
    ///
    /// # Errors
    /// [`Error::Data`] that names the object or relation.
    pub fn parse(text: &str) -> Result<Self> {
        let scene: Self = serde_json::from_str(text.trim_start_matches('\u{feff}'))
            .map_err(|error| Error::data(error.to_string(), "a scene object as in the README"))?;
        scene.check()?;
        Ok(scene)
    }

    /// Values that no rule of serde can refuse.
    ///
    /// # Errors
    /// [`Error::Data`] that names the object or relation.
    pub fn check(&self) -> Result<()> {
        let refuse = |found: String, expected: &str| Err(Error::data(found, expected));
        if self.canvas.iter().any(|side| !(16..=4096).contains(side)) {
            return refuse(format!("canvas {:?}", self.canvas), "16 to 4096 pixels a side");
        }
        let aspect = f64::from(self.canvas[0]) / f64::from(self.canvas[1]);
        if !(0.1..=10.0).contains(&aspect) {
            return refuse(format!("canvas {:?}", self.canvas), "an aspect from 1:10 to 10:1");
        }
        if self.objects.is_empty() || self.objects.len() > MOST_OBJECTS {
            return refuse(format!("{} objects", self.objects.len()), "1 to 500 objects");
        }
        let mut ids = std::collections::BTreeSet::new();
        for object in &self.objects {
            let id = &object.id;
            if id.trim().is_empty() || id.chars().count() > 200 {
                return refuse(format!("object id {id:?}"), "a name of 1 to 200 characters");
            }
            if !ids.insert(id.as_str()) {
                return refuse(format!("object id {id:?} twice"), "unique ids");
            }
            if let Some(size) = object.size_m
                && size.iter().any(|side| !(1e-4..=1e4).contains(side))
            {
                return refuse(format!("size_m {size:?} of {id:?}"), "0.0001 to 10000 metres");
            }
            for (field, of) in [("box", "canvas"), ("cut", "image")] {
                let rect = if field == "box" { object.place } else { object.cut };
                let Some([x, y, w, h]) = rect else { continue };
                let inside = x >= 0.0 && y >= 0.0 && x + w <= 1.0 + 1e-9 && y + h <= 1.0 + 1e-9;
                if !(inside && w > 0.0 && h > 0.0) {
                    let expected = format!(
                        "[x, y, w, h] in shares of the {of}, inside it, width and height above 0"
                    );
                    return refuse(format!("{field} {:?} of {id:?}", [x, y, w, h]), &expected);
                }
            }
            if object.cut.is_some() && object.image.is_none() {
                return refuse(format!("cut of {id:?} without an image"), "an image to cut from");
            }
        }
        if self.relations.len() > 100 * MOST_OBJECTS {
            return refuse(format!("{} relations", self.relations.len()), "at most 50000");
        }
        for relation in &self.relations {
            for name in [Some(&relation.a), relation.b.as_ref()].into_iter().flatten() {
                if !ids.contains(name.as_str()) {
                    return refuse(
                        format!("relation {} of unknown object {name:?}", relation.kind),
                        "ids of the scene's objects",
                    );
                }
            }
            if Some(&relation.a) == relation.b.as_ref() {
                return refuse(
                    format!("relation {} of {:?} with itself", relation.kind, relation.a),
                    "two different objects",
                );
            }
        }
        if !["", "left", "right", "above"].contains(&self.light.as_str()) {
            return refuse(format!("light {:?}", self.light), "left, right or above");
        }
        Ok(())
    }
}
