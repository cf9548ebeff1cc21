//! Cut-outs: the objects' pixels with alpha, cropped to their tight box.

use std::path::Path;

use common::assets::Assets;
use common::{Error, Result, emoji};
use image::{GenericImageView, ImageReader, Limits, Rgba, RgbaImage};

use crate::data::scene::SceneFile;
use crate::language::objects;
use crate::segment::{self, Prompt};

/// Pixels of a drawn cut-out.
const SIZE: u32 = 384;
/// Alpha from which a pixel belongs to the object's tight box.
const VISIBLE: u8 = 16;

/// The emoji pictures, loaded once.
#[derive(Debug)]
pub struct Collection {
    pictures: Vec<emoji::Picture>,
}

impl Collection {
    /// Loads the pictures.
    ///
    /// # Errors
    /// Those of [`emoji::load`].
    pub fn load(assets: &Assets) -> Result<Self> {
        Ok(Self { pictures: emoji::load(assets)? })
    }

    /// The cut-out of a phrase: the picture of the object table, else the emoji of that name, else
    /// the first with that keyword, else a plain box.
    ///
    /// # Errors
    /// A drawing that does not parse.
    pub fn draw(&self, phrase: &str) -> Result<RgbaImage> {
        let known = objects::find(phrase);
        let name = known.map_or(phrase, |known| known.picture);
        match name {
            "-table" => return Ok(table()),
            "-" => return Ok(plain_box()),
            _ => {}
        }
        let lower = name.to_lowercase();
        let by_name = self.pictures.iter().find(|picture| picture.name.to_lowercase() == lower);
        let picture = by_name.or_else(|| {
            self.pictures.iter().find(|picture| picture.keywords().contains(lower.as_str()))
        });
        match picture {
            Some(picture) => Ok(tight(&picture.render(SIZE)?).unwrap_or_else(plain_box)),
            None => {
                tracing::warn!("no picture of {phrase:?}; a plain box stands for it");
                Ok(plain_box())
            }
        }
    }

    /// The cut-outs of a scene, one per object.
    ///
    /// # Errors
    /// [`Error::Data`] that names an image file that is no usable picture.
    pub fn of_scene(&self, scene: &SceneFile) -> Result<Vec<RgbaImage>> {
        let one = |object: &crate::data::scene::ObjectSpec| match &object.image {
            Some(path) => match object.cut {
                Some(rect) => cut(path, rect),
                None => read(path),
            },
            None => self.draw(object.phrase.as_deref().unwrap_or(&object.id)),
        };
        scene.objects.iter().map(one).collect()
    }
}

/// Width over height of each cut-out.
pub fn aspects(cutouts: &[RgbaImage]) -> Vec<Option<f64>> {
    cutouts.iter().map(|c| Some(f64::from(c.width()) / f64::from(c.height()))).collect()
}

const EXPECTED: &str = "a PNG or JPEG of at most 8192 pixels a side with visible pixels";

/// Reads a PNG or JPEG. Pictures over 8192 pixels a side or 256 MB are refused.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] for what is no picture or is too large.
pub fn decode(path: &Path) -> Result<RgbaImage> {
    let mut reader = ImageReader::open(path)
        .map_err(Error::io(path))?
        .with_guessed_format()
        .map_err(Error::io(path))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(8192);
    limits.max_image_height = Some(8192);
    limits.max_alloc = Some(256 << 20);
    reader.limits(limits);
    let decoded = reader.decode();
    Ok(decoded.map_err(|error| Error::data(error.to_string(), EXPECTED).in_file(path))?.to_rgba8())
}

/// Reads a PNG or JPEG as a cut-out: what is visible is the object.
///
/// # Errors
/// Those of [`decode`]; [`Error::Data`] for a wholly transparent picture.
pub fn read(path: &Path) -> Result<RgbaImage> {
    tight(&decode(path)?)
        .ok_or_else(|| Error::data("a wholly transparent picture", EXPECTED).in_file(path))
}

/// Cuts the object in a box (shares of the picture, y down) out of a picture file.
///
/// # Errors
/// Those of [`decode`] and [`segment::cut_out`].
pub fn cut(path: &Path, [x, y, w, h]: [f64; 4]) -> Result<RgbaImage> {
    let image = decode(path)?;
    let (width, height) = (f64::from(image.width()), f64::from(image.height()));
    let prompt = Prompt::Box([x * width, y * height, (x + w) * width, (y + h) * height]);
    segment::cut_out(&segment::bundled()?, &image, prompt).map_err(|error| error.in_file(path))
}

/// The part with visible pixels; `None` when there is none.
pub(crate) fn tight(image: &RgbaImage) -> Option<RgbaImage> {
    let visible = || image.enumerate_pixels().filter(|(_, _, pixel)| pixel.0[3] >= VISIBLE);
    let (left, right) = (visible().map(|p| p.0).min()?, visible().map(|p| p.0).max()?);
    let (top, bottom) = (visible().map(|p| p.1).min()?, visible().map(|p| p.1).max()?);
    Some(image.view(left, top, right - left + 1, bottom - top + 1).to_image())
}

/// A wooden table, seen from the front.
fn table() -> RgbaImage {
    let (width, height) = (SIZE, SIZE / 2);
    RgbaImage::from_fn(width, height, |x, y| {
        let leg =
            x.clamp(width / 14, width * 13 / 14) == x && !(width / 7..width * 6 / 7).contains(&x);
        match (y < height / 7, leg) {
            (true, _) => Rgba([160, 112, 66, 255]),
            (false, true) => Rgba([128, 86, 48, 255]),
            _ => Rgba([0, 0, 0, 0]),
        }
    })
}

/// A plain box for what has no picture.
fn plain_box() -> RgbaImage {
    RgbaImage::from_fn(SIZE / 2, SIZE / 2, |x, y| {
        let edge = 6;
        let inner = (edge..SIZE / 2 - edge).contains(&x) && (edge..SIZE / 2 - edge).contains(&y);
        if inner { Rgba([188, 196, 206, 255]) } else { Rgba([120, 130, 142, 255]) }
    })
}
