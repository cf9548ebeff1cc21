//! CLIP's image tower as the image modality, for users who have a checkpoint.

use candle_core::{Device, Tensor};
use common::optim::Workers;
use common::stable_diffusion::Clip;
use common::{Error, Result};
use ndarray::Array2;

use super::image::Picture;
use crate::pipeline::Encoded;

/// Shorter side that larger pictures are brought to before CLIP's own resizing.
const SIDE: usize = 448;

/// Image features of the pictures in CLIP's common space, `[pictures, width]`; zeros where there is
/// none.
///
/// # Errors
/// None but bugs.
pub fn encode(clip: &Clip, pictures: &[Option<Picture>], workers: &Workers) -> Result<Encoded> {
    let width = clip.width();
    let rows = workers.map(pictures.len(), |at| {
        let Some(picture) = &pictures[at] else { return Ok(vec![0f32; width]) };
        let side = picture.width().min(picture.height()).min(SIDE);
        let pixels = unit(&picture.centre_square(side))?;
        Ok(clip.embed_pictures(&pixels)?.detach().flatten_all()?.to_vec1::<f32>()?)
    })?;
    let flat: Vec<f32> = rows.into_iter().flatten().collect();
    let vectors = Array2::from_shape_vec((pictures.len(), width), flat)
        .map_err(|error| Error::Bug(error.to_string()))?;
    Ok((vectors, pictures.iter().map(Option::is_some).collect()))
}

/// `[1, 3, height, width]` of a picture, values in 0..1.
fn unit(picture: &Picture) -> Result<Tensor> {
    let (width, height) = (picture.width(), picture.height());
    let mut values = Vec::with_capacity(3 * width * height);
    for channel in 0..3 {
        for y in 0..height {
            values.extend((0..width).map(|x| f32::from(picture.pixel(x, y)[channel]) / 255.0));
        }
    }
    Ok(Tensor::from_vec(values, (1, 3, height, width), &Device::Cpu)?)
}
