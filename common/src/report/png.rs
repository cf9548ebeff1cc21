//! SVG to PNG, with one bundled font so that pictures look the same everywhere.

use std::sync::{Arc, OnceLock};

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};

use crate::{Error, Result};

/// DejaVu Sans, reduced to Latin, Greek and symbols; see `font/README.md`.
const FONT: &[u8] = include_bytes!("font/DejaVuSans-subset.ttf");

/// Largest side of a picture in pixels; a larger one is scaled down.
const MAX_SIDE: f32 = 8192.0;

/// Renders an SVG at `scale` pixels per unit. Text is set in the bundled font, whatever the SVG
/// asks for; links to other files are not followed.
///
/// Fails with [`Error::Data`] when the text is no SVG.
pub fn png(svg: &str, scale: f32) -> Result<Vec<u8>> {
    let mut options = Options { font_family: "DejaVu Sans".into(), ..Options::default() };
    options.image_href_resolver.resolve_string = Box::new(|_, _| None);
    options.fontdb = fonts();
    let tree = Tree::from_str(svg, &options)
        .map_err(|error| Error::data(format!("a picture that does not parse ({error})"), "SVG"))?;
    let size = tree.size();
    let scale = scale.min(MAX_SIDE / size.width().max(size.height()));
    let pixels = |length: f32| (length * scale).ceil().max(1.0) as u32;
    let mut pixmap = Pixmap::new(pixels(size.width()), pixels(size.height()))
        .ok_or_else(|| Error::data("a picture without area", "an SVG with width and height"))?;
    resvg::render(&tree, Transform::from_scale(scale, scale), &mut pixmap.as_mut());
    pixmap.encode_png().map_err(|error| Error::Bug(format!("PNG encoder: {error}")))
}

fn fonts() -> Arc<fontdb::Database> {
    static FONTS: OnceLock<Arc<fontdb::Database>> = OnceLock::new();
    FONTS
        .get_or_init(|| {
            let mut fonts = fontdb::Database::new();
            fonts.load_font_data(FONT.to_vec());
            fonts.set_sans_serif_family("DejaVu Sans");
            fonts.set_serif_family("DejaVu Sans");
            fonts.set_monospace_family("DejaVu Sans");
            Arc::new(fonts)
        })
        .clone()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pixels(svg: &str) -> image::RgbaImage {
        image::load_from_memory(&png(svg, 2.0).unwrap()).unwrap().to_rgba8()
    }

    #[test]
    fn text_leaves_ink() {
        let svg = |text: &str| {
            format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"60\" height=\"20\">\
                 <text x=\"2\" y=\"15\" font-family=\"sans-serif\">{text}</text></svg>"
            )
        };
        let ink = |text: &str| pixels(&svg(text)).pixels().filter(|pixel| pixel.0[3] > 0).count();
        assert_eq!(pixels(&svg("x")).dimensions(), (120, 40));
        assert!(ink("αβ→") > 100);
        assert_eq!(ink(""), 0);
    }

    #[test]
    fn other_text_is_refused() {
        assert_eq!(png("hello", 1.0).unwrap_err().exit_code(), 3);
        assert!(
            png("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"0\" height=\"1\"/>", 1.0)
                .is_err()
        );
    }
}
