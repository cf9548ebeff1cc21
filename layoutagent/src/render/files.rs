//! Pictures as files: PNG with text metadata, SVG overlays, sheets for reports.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{Error, Result};
use image::{ExtendedColorType, ImageEncoder, RgbaImage};

use crate::layout::{Frame, Rect};

/// PNG with text chunks (keyword, text), for example seed and config.
///
/// # Errors
/// [`Error::Bug`] when the encoder fails.
pub fn png(image: &RgbaImage, metadata: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    image::codecs::png::PngEncoder::new(&mut bytes)
        .write_image(image, image.width(), image.height(), ExtendedColorType::Rgba8)
        .map_err(|error| Error::Bug(format!("PNG encoder: {error}")))?;
    // the texts stand behind signature (8 bytes) and IHDR (25 bytes)
    let mut chunks = Vec::new();
    for (keyword, text) in metadata {
        let mut data = b"iTXt".to_vec();
        data.extend(keyword.as_bytes());
        // no compression, no language, no translated keyword
        data.extend([0, 0, 0, 0, 0]);
        data.extend(text.as_bytes());
        chunks.extend((data.len() as u32 - 4).to_be_bytes());
        chunks.extend(&data);
        chunks.extend(crc32(&data).to_be_bytes());
    }
    bytes.splice(33..33, chunks);
    Ok(bytes)
}

/// The checksum of PNG chunks.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const COLORS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#464646"];

/// The boxes with their names as SVG; `title` stands above them.
pub fn overlay(
    frame: Frame,
    rects: &[Rect],
    names: &[String],
    canvas: [u32; 2],
    title: &str,
) -> String {
    let [width, height] = canvas;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{}\" \
         viewBox=\"0 -24 {width} {}\" font-family=\"sans-serif\">\
         <rect y=\"-24\" width=\"{width}\" height=\"{}\" fill=\"white\"/>\
         <text x=\"4\" y=\"-8\" font-size=\"13\">{}</text>\
         <rect width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"#888\"/>",
        height + 24,
        height + 24,
        height + 24,
        escape(title)
    );
    for (index, (rect, name)) in rects.iter().zip(names).enumerate() {
        let [x, y, w, h] = frame.to_canvas(*rect);
        let (x, w) = (x * f64::from(width), w * f64::from(width));
        let (y, h) = (y * f64::from(height), h * f64::from(height));
        let color = COLORS[index % COLORS.len()];
        svg.push_str(&format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" fill=\"{color}\" \
             fill-opacity=\"0.15\" stroke=\"{color}\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"13\" fill=\"{color}\">{}</text>",
            x + 3.0,
            y + 14.0,
            escape(name)
        ));
    }
    svg + "</svg>"
}

/// Pictures with captions in a grid, each embedded as a PNG.
///
/// # Errors
/// Those of [`png`].
pub fn sheet(pictures: &[(RgbaImage, String)], columns: usize, side: u32) -> Result<String> {
    let rows = pictures.len().div_ceil(columns.max(1)) as u32;
    let (cell_w, cell_h) = (side + 12, side + 40);
    let (width, height) = (cell_w * columns as u32 + 12, cell_h * rows + 12);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" \
         xmlns:xlink=\"http://www.w3.org/1999/xlink\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\">\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>"
    );
    for (index, (image, caption)) in pictures.iter().enumerate() {
        let x = 12 + cell_w * (index % columns) as u32;
        let y = 12 + cell_h * (index / columns) as u32;
        let data = STANDARD.encode(png(image, &[])?);
        svg.push_str(&format!(
            "<image x=\"{x}\" y=\"{y}\" width=\"{side}\" height=\"{side}\" \
             xlink:href=\"data:image/png;base64,{data}\"/>"
        ));
        let words: Vec<&str> = caption.split(' ').collect();
        let mut lines = vec![String::new()];
        for word in words {
            let line = lines.len() - 1;
            if lines[line].len() + word.len() > side as usize / 6 {
                lines.push(String::new());
            }
            let line = lines.len() - 1;
            lines[line].push_str(word);
            lines[line].push(' ');
        }
        for (row, line) in lines.iter().take(2).enumerate() {
            svg.push_str(&format!(
                "<text x=\"{x}\" y=\"{}\" font-size=\"10\" fill=\"#333\">{}</text>",
                y + side + 12 + 11 * row as u32,
                escape(line.trim())
            ));
        }
    }
    Ok(svg + "</svg>")
}
