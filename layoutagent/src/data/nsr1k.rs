//! NSR-1K, spatial train split (specification §6.2): captions with two COCO boxes each.

use std::path::Path;

use common::{Error, Result};
use serde::Deserialize;

/// One scene.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Record {
    /// Number of the record.
    pub id: u64,
    /// COCO image; several records may share one.
    pub image_id: u64,
    /// Category and box `[x, y, w, h]` in shares of the image, y down.
    pub obj1: (String, [f64; 4]),
    /// The second object.
    pub obj2: (String, [f64; 4]),
    /// Caption.
    pub prompt: String,
    /// `left`, `right`, `top`, `bottom` or `next to`.
    pub relation: String,
    /// `template` or `natural`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// A split and how many boxes had to be left out.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    /// Usable scenes.
    pub records: Vec<Record>,
    /// Scenes left out because a box has no area or lies outside the image.
    pub dropped: usize,
}

/// Reads the file. Boxes that stick out are cut to the image; a scene with a box that has no area
/// (left) is dropped and counted.
///
/// # Errors
/// [`Error::Data`] for a file of another shape, for boxes that are not finite, and for boxes that
/// read as corners `[x1, y1, x2, y2]`; [`Error::Io`].
pub fn read(path: &Path) -> Result<Split> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let mut records: Vec<Record> = serde_json::from_slice(&bytes).map_err(|error| {
        Error::data(error.to_string(), "a list of NSR-1K spatial scenes").in_file(path)
    })?;
    check_format(&records).map_err(|error| error.in_file(path))?;
    let all = records.len();
    records.retain_mut(|record| repair(&mut record.obj1.1) && repair(&mut record.obj2.1));
    Ok(Split { dropped: all - records.len(), records })
}

/// Cuts a box to the image; false when nothing is left.
fn repair(rect: &mut [f64; 4]) -> bool {
    let [x, y, w, h] = *rect;
    let (left, top) = (x.max(0.0), y.max(0.0));
    let (right, bottom) = ((x + w).min(1.0), (y + h).min(1.0));
    *rect = [left, top, right - left, bottom - top];
    right > left && bottom > top
}

/// Tells `[x, y, w, h]` from corners: as sizes, corner values reach far out of the image in many
/// boxes.
fn check_format(records: &[Record]) -> Result<()> {
    let boxes = || records.iter().flat_map(|record| [record.obj1.1, record.obj2.1]);
    if let Some(bad) = boxes().find(|rect| rect.iter().any(|v| !v.is_finite())) {
        return Err(Error::data(format!("box {bad:?}"), "finite numbers"));
    }
    let outside = boxes().filter(|[x, y, w, h]| x + w > 1.001 || y + h > 1.001).count();
    let ordered = boxes().filter(|[x1, y1, x2, y2]| x2 >= x1 && y2 >= y1).count();
    let all = boxes().count();
    if all > 0 && outside * 5 > all && ordered == all {
        return Err(Error::data(
            "boxes that read as corners [x1, y1, x2, y2]",
            "boxes as [x, y, w, h] in shares of the image, y down",
        ));
    }
    Ok(())
}
