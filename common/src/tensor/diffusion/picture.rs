//! Between a decoded picture and CLIP's pixels.

use candle_core::{Device, Tensor};

use crate::Result;

/// Mean of CLIP's training pixels by channel.
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];

/// Standard deviation of CLIP's training pixels by channel.
pub const CLIP_SD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// -1..1 → 0..1, cut at both ends; what is cut has no gradient.
///
/// # Errors
/// None but bugs.
pub fn to_unit_range(decoded: &Tensor) -> Result<Tensor> {
    Ok(decoded.affine(0.5, 0.5)?.clamp(0f32, 1f32)?)
}

/// Bicubic interpolation of `[batch, channels, h, w]` (a = -0.75, edges not aligned, no
/// antialiasing; torch's `interpolate`), as two matrix products.
///
/// # Errors
/// None but bugs.
pub fn resize_bicubic(x: &Tensor, out_height: usize, out_width: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    if (height, width) == (out_height, out_width) {
        return Ok(x.clone());
    }
    let planes = batch * channels;
    let columns = weights(width, out_width)?;
    let x = x.contiguous()?.reshape((planes * height, width))?.matmul(&columns.t()?)?;
    let x = x.reshape((planes, height, out_width))?.transpose(1, 2)?.contiguous()?;
    let rows = weights(height, out_height)?;
    let x = x.reshape((planes * out_width, height))?.matmul(&rows.t()?)?;
    let x = x.reshape((planes, out_width, out_height))?.transpose(1, 2)?.contiguous()?;
    Ok(x.reshape((batch, channels, out_height, out_width))?)
}

/// `[outputs, inputs]`: how much each input pixel counts for each output pixel.
fn weights(inputs: usize, outputs: usize) -> Result<Tensor> {
    const A: f64 = -0.75;
    let near = |d: f64| ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0;
    let far = |d: f64| ((A * d - 5.0 * A) * d + 8.0 * A) * d - 4.0 * A;
    let mut table = vec![0f32; inputs * outputs];
    for (out, row) in table.chunks_exact_mut(inputs).enumerate() {
        let centre = (out as f64 + 0.5) * inputs as f64 / outputs as f64 - 0.5;
        let share = centre - centre.floor();
        let taps = [far(share + 1.0), near(share), near(1.0 - share), far(2.0 - share)];
        for (tap, weight) in taps.into_iter().enumerate() {
            let at = centre.floor() as i64 + tap as i64 - 1;
            row[at.clamp(0, inputs as i64 - 1) as usize] += weight as f32;
        }
    }
    Ok(Tensor::from_vec(table, (outputs, inputs), &Device::Cpu)?)
}

/// Pictures `[batch, 3, h, w]` in 0..1 → CLIP's normalised pixels `[batch, 3, size, size]`: the
/// shorter side to `size`, the middle of the longer one.
///
/// # Errors
/// None but bugs.
pub fn clip_pixels(pictures: &Tensor, size: usize) -> Result<Tensor> {
    let (_, _, height, width) = pictures.dims4()?;
    let scaled = |side: usize| (side * size / height.min(width)).max(size);
    let (new_height, new_width) = (scaled(height), scaled(width));
    let x = resize_bicubic(pictures, new_height, new_width)?;
    let x = x.narrow(2, (new_height - size) / 2, size)?.narrow(3, (new_width - size) / 2, size)?;
    let column = |values: [f32; 3]| Tensor::from_vec(values.to_vec(), (1, 3, 1, 1), &Device::Cpu);
    Ok(x.broadcast_sub(&column(CLIP_MEAN)?)?.broadcast_div(&column(CLIP_SD)?)?.contiguous()?)
}
