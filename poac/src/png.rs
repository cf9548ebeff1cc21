//! PNG files with text in them.

use std::io::Cursor;

use candle_core::Tensor;
use common::{Error, Result};
use image::{ImageFormat, RgbImage, imageops};

/// A picture `[3, size, size]` in -1..1 as PNG with the given texts (keyword, value) as iTXt chunks.
///
/// # Errors
/// None but bugs.
pub fn png(picture: &Tensor, texts: &[(&str, &str)]) -> Result<Vec<u8>> {
    scaled(picture, 1, texts)
}

/// [`png`] with every pixel `factor` × `factor` times.
///
/// # Errors
/// None but bugs.
pub fn scaled(picture: &Tensor, factor: u32, texts: &[(&str, &str)]) -> Result<Vec<u8>> {
    let (_, height, width) = picture.dims3()?;
    let values = picture.flatten_all()?.to_vec1::<f32>()?;
    let area = height * width;
    let byte = |value: f32| ((value.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8;
    let mut image = RgbImage::new(width as u32, height as u32);
    for (at, pixel) in image.pixels_mut().enumerate() {
        pixel.0 = [byte(values[at]), byte(values[area + at]), byte(values[2 * area + at])];
    }
    let (w, h) = (image.width() * factor, image.height() * factor);
    let image = imageops::resize(&image, w, h, imageops::FilterType::Nearest);
    let mut bytes = Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, ImageFormat::Png)
        .map_err(|error| Error::Bug(format!("PNG encoder: {error}")))?;
    let mut bytes = bytes.into_inner();
    // after the signature (8 bytes) and the header chunk (25 bytes)
    let chunks: Vec<u8> = texts.iter().flat_map(|(key, value)| text_chunk(key, value)).collect();
    let rest = bytes.split_off(33);
    bytes.extend(chunks);
    bytes.extend(rest);
    Ok(bytes)
}

/// The texts of a PNG file's uncompressed iTXt chunks.
///
/// # Errors
/// [`Error::Data`] when the bytes are no PNG or end inside a chunk.
pub fn texts(bytes: &[u8]) -> Result<Vec<(String, String)>> {
    let broken = || Error::data("bytes that are no whole PNG", "a PNG file");
    let mut rest = bytes.strip_prefix(b"\x89PNG\r\n\x1a\n").ok_or_else(broken)?;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (head, tail) = rest.split_at_checked(8).ok_or_else(broken)?;
        let length = head[..4].iter().fold(0usize, |sum, &byte| sum << 8 | usize::from(byte));
        let (data, tail) = tail.split_at_checked(length).ok_or_else(broken)?;
        if &head[4..] == b"iTXt" {
            let key = data.split(|&byte| byte == 0).next().unwrap_or_default();
            let value = data.get(key.len() + 5..).unwrap_or_default();
            let text = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
            found.push((text(key), text(value)));
        }
        rest = tail.get(4..).ok_or_else(broken)?;
    }
    Ok(found)
}

/// An uncompressed UTF-8 text chunk (PNG 1.2 §4.2.3).
fn text_chunk(key: &str, value: &str) -> Vec<u8> {
    let mut body = b"iTXt".to_vec();
    body.extend(key.bytes());
    body.extend([0, 0, 0, 0, 0]);
    body.extend(value.bytes());
    let length = (body.len() - 4) as u32;
    let check = crc32(&body);
    [&length.to_be_bytes()[..], &body, &check.to_be_bytes()].concat()
}

/// CRC-32 (ISO 3309), which every PNG chunk ends with.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |c, _| step(c)))
}
