//! A contact sheet: concepts down, methods across.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use candle_core::Tensor;
use common::Result;

use crate::png::png;

/// Side of a picture on the sheet.
const SIDE: usize = 72;
/// Width of the words.
const WORDS: usize = 230;
/// Height of a row.
const ROW: usize = SIDE + 8;
/// Width of one of the two halves.
const GAP: usize = 16;

/// One concept.
#[derive(Debug)]
pub struct SheetRow {
    /// The word.
    pub concept: String,
    /// The optimised prompt.
    pub prompt: String,
    /// One picture `[3, size, size]` a column.
    pub pictures: Vec<Tensor>,
}

/// The sheet.
#[derive(Debug)]
pub struct Sheet {
    /// Names of the methods.
    pub columns: Vec<String>,
    /// Concepts.
    pub rows: Vec<SheetRow>,
}

impl Sheet {
    /// As SVG with the pictures inside, in two halves beside each other.
    ///
    /// # Errors
    /// None but bugs.
    pub fn svg(&self) -> Result<String> {
        let half = self.rows.len().div_ceil(2).max(1);
        let width = WORDS + self.columns.len() * (SIDE + 8);
        let (total, height) = (2 * width + GAP, 28 + half * ROW);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{total}\" height=\"{height}\" \
             viewBox=\"0 0 {total} {height}\" font-family=\"sans-serif\" font-size=\"11\">\
             <rect width=\"{total}\" height=\"{height}\" fill=\"white\"/>"
        );
        for side in 0..2 {
            for (at, name) in self.columns.iter().enumerate() {
                let x = side * (width + GAP) + WORDS + at * (SIDE + 8) + SIDE / 2;
                svg.push_str(&format!(
                    "<text x=\"{x}\" y=\"18\" text-anchor=\"middle\">{}</text>",
                    escape(name)
                ));
            }
        }
        for (index, row) in self.rows.iter().enumerate() {
            let left = (index / half) * (width + GAP);
            let top = 28 + (index % half) * ROW;
            svg.push_str(&format!(
                "<text x=\"{}\" y=\"{}\" font-size=\"14\" font-weight=\"bold\">{}</text>",
                left + 6,
                top + 18,
                escape(&row.concept)
            ));
            for (line, text) in wrapped(&row.prompt, 34).into_iter().take(4).enumerate() {
                svg.push_str(&format!(
                    "<text x=\"{}\" y=\"{}\" fill=\"#555\">{}</text>",
                    left + 6,
                    top + 34 + 13 * line,
                    escape(&text)
                ));
            }
            for (at, picture) in row.pictures.iter().enumerate() {
                let data = BASE64_STANDARD.encode(png(picture, &[])?);
                svg.push_str(&format!(
                    "<image x=\"{}\" y=\"{top}\" width=\"{SIDE}\" height=\"{SIDE}\" \
                     href=\"data:image/png;base64,{data}\"/>",
                    left + WORDS + at * (SIDE + 8)
                ));
            }
        }
        svg.push_str("</svg>");
        Ok(svg)
    }
}

/// Text broken at spaces into lines of at most `most` characters.
fn wrapped(text: &str, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < most => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn escape(text: &str) -> String {
    let safe = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    safe.replace('"', "&quot;").chars().filter(|c| !c.is_control()).collect()
}
