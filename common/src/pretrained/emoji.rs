//! Emoji as a picture collection with human keywords: 1,644 drawings with exact alpha, each with
//! the words that people file it under.
//!
//! The drawings are Noto emoji (asset `noto-emoji`, Apache-2.0), the words are those of emojibase
//! and emojilib (asset `emoji-keywords`, MIT). Components (skin tones, hair) and flags are left out,
//! as are records without a group. Nothing of it is committed: the files are read from the assets
//! and rasterised when asked for.
//!
//! ```no_run
//! # fn main() -> common::Result<()> {
//! let pictures = common::emoji::load(&common::assets::Assets::from_env())?;
//! let dove = pictures.iter().find(|picture| picture.name == "dove").unwrap();
//! assert!(dove.keywords().contains(&"peace"));
//! let image = dove.render(64)?;
//! assert_eq!(image.dimensions(), (64, 64));
//! # Ok(())
//! # }
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use image::{Rgba, RgbaImage};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree};
use serde::{Deserialize, Serialize};

use crate::assets::Assets;
use crate::{Error, Result};

/// Side of the drawings' own coordinate system.
pub const UNITS: f32 = 128.0;

/// Largest side that [`Picture::render`] accepts, in pixels.
pub const MAX_SIZE: u32 = 4096;

/// Unicode's groups of emoji, without components and flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Faces, hearts, feelings (171 pictures).
    Smileys,
    /// People, hands, body parts (388).
    People,
    /// Animals and nature (160).
    Animals,
    /// Food and drink (131).
    Food,
    /// Travel, places, weather, time (219).
    Travel,
    /// Sports, arts, festivities (85).
    Activities,
    /// Objects (266).
    Objects,
    /// Symbols (224).
    Symbols,
}

impl Group {
    /// The group of that number in emojibase; none for components (2) and flags (9).
    fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Smileys,
            1 => Self::People,
            3 => Self::Animals,
            4 => Self::Food,
            5 => Self::Travel,
            6 => Self::Activities,
            7 => Self::Objects,
            8 => Self::Symbols,
            _ => return None,
        })
    }
}

/// One emoji: its name, the words that people file it under, its drawing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The character or sequence itself.
    pub symbol: String,
    /// Unicode's name, for example `dove` or `balance scale`.
    pub name: String,
    /// Unicode's group.
    pub group: Group,
    /// Number of the finer group in emojibase, equal for pictures of one kind.
    pub subgroup: u32,
    /// Tags of emojibase, lower case, sorted.
    pub tags: Vec<String>,
    /// Keywords of emojilib, lower case, with spaces for its underscores, sorted.
    pub words: Vec<String>,
    /// The drawing as a complete SVG, [`UNITS`] wide and high, transparent around it.
    pub svg: String,
}

impl Picture {
    /// The words of both sources, each once, sorted.
    pub fn keywords(&self) -> BTreeSet<&str> {
        self.tags.iter().chain(&self.words).map(String::as_str).collect()
    }

    /// The drawing as `size` × `size` pixels with straight (not premultiplied) alpha; a pixel that
    /// is wholly transparent is 0 in all four channels. The same bytes every time.
    ///
    /// # Errors
    /// [`Error::Usage`] when `size` is 0 or above [`MAX_SIZE`]; [`Error::Asset`] when the drawing
    /// does not parse.
    pub fn render(&self, size: u32) -> Result<RgbaImage> {
        rasterise(&self.svg, size, &self.name)
    }
}

/// An SVG of [`UNITS`] × [`UNITS`] as `size` × `size` pixels with straight alpha.
fn rasterise(svg: &str, size: u32, name: &str) -> Result<RgbaImage> {
    if size == 0 || size > MAX_SIZE {
        return Err(Error::usage(format!("a picture of {size} pixels; use 1 to {MAX_SIZE}")));
    }
    let mut options = Options::default();
    options.image_href_resolver.resolve_string = Box::new(|_, _| None);
    let tree = Tree::from_str(svg, &options).map_err(|error| {
        let problem = format!("the drawing of {name} does not parse ({error})");
        Error::asset("noto-emoji", problem, "fetch the asset again")
    })?;
    let mut pixels = Pixmap::new(size, size)
        .ok_or_else(|| Error::Bug(format!("no picture of {size} × {size}")))?;
    let scale = size as f32 / UNITS;
    resvg::render(&tree, Transform::from_scale(scale, scale), &mut pixels.as_mut());
    let mut image = RgbaImage::new(size, size);
    for (pixel, drawn) in image.pixels_mut().zip(pixels.pixels()) {
        let colour = drawn.demultiply();
        *pixel = Rgba([colour.red(), colour.green(), colour.blue(), colour.alpha()]);
    }
    Ok(image)
}

/// The 1,644 pictures in Unicode's order.
///
/// # Errors
/// [`Error::Asset`] when an asset is absent and can't be fetched, or is no file of its kind.
pub fn load(assets: &Assets) -> Result<Vec<Picture>> {
    let drawings: Drawings = read(&assets.file("noto-emoji", "icons.json")?)?;
    let records: Vec<Record> = read(&assets.file("emoji-keywords", "emojibase.json")?)?;
    let words: BTreeMap<String, Vec<String>> =
        read(&assets.file("emoji-keywords", "emojilib.json")?)?;
    join(&drawings, records, &words)
}

/// `icons.json` of an Iconify package: bodies by name, and further names for some of them.
#[derive(Deserialize)]
struct Drawings {
    icons: BTreeMap<String, Body>,
    #[serde(default)]
    aliases: BTreeMap<String, Alias>,
}

#[derive(Deserialize)]
struct Body {
    body: String,
}

#[derive(Deserialize)]
struct Alias {
    parent: String,
}

impl Drawings {
    fn find(&self, name: &str) -> Option<&str> {
        let name = self.aliases.get(name).map_or(name, |alias| alias.parent.as_str());
        self.icons.get(name).map(|icon| icon.body.as_str())
    }
}

/// A record of emojibase's `data.json`.
#[derive(Deserialize)]
struct Record {
    label: String,
    emoji: String,
    order: Option<u32>,
    group: Option<u32>,
    subgroup: Option<u32>,
    #[serde(default)]
    tags: Vec<String>,
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        let problem = format!("is not the expected JSON ({error})");
        Error::asset(path.display().to_string(), problem, "fetch the asset again")
    })
}

/// Joins drawings, records and words; pictures without a drawing are an error, since the pinned
/// files have them all.
fn join(
    drawings: &Drawings,
    mut records: Vec<Record>,
    words: &BTreeMap<String, Vec<String>>,
) -> Result<Vec<Picture>> {
    records.sort_by_key(|record| record.order);
    // emojilib leaves the variation selector out of some sequences
    let plain = |symbol: &str| symbol.replace('\u{fe0f}', "");
    let words: BTreeMap<String, &Vec<String>> =
        words.iter().map(|(symbol, words)| (plain(symbol), words)).collect();
    let mut pictures = Vec::new();
    for record in records {
        let Some(group) = record.group.and_then(Group::of) else { continue };
        let body = drawings.find(&slug(&record.label)).ok_or_else(|| {
            let problem = format!("no drawing of \"{}\"", record.label);
            Error::asset("noto-emoji", problem, "fetch the asset again")
        })?;
        let words = words.get(&plain(&record.emoji)).map_or(&[][..], |words| words.as_slice());
        pictures.push(Picture {
            tags: tidy(&record.tags),
            words: tidy(words),
            svg: format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" \
                 xmlns:xlink=\"http://www.w3.org/1999/xlink\" width=\"{UNITS}\" \
                 height=\"{UNITS}\" viewBox=\"0 0 {UNITS} {UNITS}\">{body}</svg>"
            ),
            symbol: record.emoji,
            name: record.label,
            group,
            subgroup: record.subgroup.unwrap_or_default(),
        });
    }
    Ok(pictures)
}

/// Lower case, spaces for underscores, sorted, each once.
fn tidy(words: &[String]) -> Vec<String> {
    let words = words.iter().map(|word| word.to_lowercase().replace('_', " ").trim().to_owned());
    words.filter(|word| !word.is_empty()).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Iconify's name of a label: lower case without tilde, apostrophes, `#` and `*`, hyphens between
/// the words.
fn slug(label: &str) -> String {
    let mut slug = String::new();
    for c in label.to_lowercase().replace('&', "and").chars() {
        match c {
            'a'..='z' | '0'..='9' => slug.push(c),
            'ñ' => slug.push('n'),
            '\'' | '’' | '#' | '*' => {}
            _ if slug.ends_with('-') => {}
            _ => slug.push('-'),
        }
    }
    slug.trim_matches('-').to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn record(label: &str, emoji: &str, group: Option<u32>) -> Record {
        let tags = vec!["Peace".into(), "bird".into()];
        Record {
            label: label.into(),
            emoji: emoji.into(),
            order: None,
            group,
            subgroup: None,
            tags,
        }
    }

    #[test]
    fn records_find_their_drawing_and_words() {
        let drawings: Drawings = serde_json::from_str(
            "{\"icons\": {\"dove\": {\"body\": \"<path/>\"}},
              \"aliases\": {\"white-bird\": {\"parent\": \"dove\"}}}",
        )
        .unwrap();
        let words = BTreeMap::from([("🕊".to_owned(), vec!["olive_branch".to_owned()])]);
        let records = vec![
            record("dove", "🕊\u{fe0f}", Some(3)),
            record("White bird", "x", Some(8)),
            record("flag: Peru", "🇵🇪", Some(9)),
            record("red hair", "🦰", Some(2)),
            record("regional indicator A", "🇦", None),
        ];
        let pictures = join(&drawings, records, &words).unwrap();
        assert_eq!(pictures.len(), 2);
        assert_eq!(
            pictures[0].keywords().into_iter().collect::<Vec<_>>(),
            ["bird", "olive branch", "peace"]
        );
        assert_eq!((pictures[1].group, pictures[1].words.len()), (Group::Symbols, 0));
        let error = join(&drawings, vec![record("owl", "🦉", Some(3))], &words).unwrap_err();
        assert!(error.to_string().contains("no drawing of \"owl\""), "{error}");
    }

    #[test]
    fn slugs_follow_iconify() {
        assert_eq!(slug("piñata"), "pinata");
        assert_eq!(slug("keycap: #"), "keycap");
        assert_eq!(slug("Japanese “free of charge” button"), "japanese-free-of-charge-button");
        assert_eq!(slug("man’s shoe"), "mans-shoe");
    }

    #[test]
    fn alpha_is_straight_and_exact() {
        let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"128\" height=\"128\">\
                   <rect width=\"64\" height=\"128\" fill=\"#c86432\" fill-opacity=\"0.5\"/></svg>";
        let image = rasterise(svg, 16, "test").unwrap();
        assert_eq!(image, rasterise(svg, 16, "test").unwrap());
        let Rgba([red, green, blue, alpha]) = *image.get_pixel(3, 3);
        assert_eq!(alpha, 128);
        for (found, drawn) in [(red, 200_u8), (green, 100), (blue, 50)] {
            assert!(found.abs_diff(drawn) <= 1, "{found} is not {drawn}");
        }
        assert_eq!(*image.get_pixel(8, 3), Rgba([0, 0, 0, 0]));
        assert_eq!(rasterise(svg, 0, "test").unwrap_err().exit_code(), 2);
        assert_eq!(rasterise("no svg", 16, "test").unwrap_err().exit_code(), 4);
    }

    #[test]
    fn the_pinned_files_hold_the_documented_collection() {
        let assets = Assets::from_env();
        let pictures = match load(&assets) {
            Ok(pictures) => pictures,
            Err(error) => {
                assert!(std::env::var_os("SEPTET_REQUIRE_ASSETS").is_none(), "{error}");
                return;
            }
        };
        assert_eq!(pictures.len(), 1_644);
        let of = |group| pictures.iter().filter(|picture| picture.group == group).count();
        assert_eq!((of(Group::People), of(Group::Objects), of(Group::Food)), (388, 266, 131));
        let distinct: BTreeSet<&str> = pictures.iter().flat_map(Picture::keywords).collect();
        assert!(distinct.len() > 5_000, "{}", distinct.len());
        let filed = |word: &str| -> Vec<&str> {
            let with = pictures.iter().filter(|picture| picture.keywords().contains(word));
            with.map(|picture| picture.name.as_str()).collect()
        };
        assert!(filed("peace").contains(&"dove"), "{:?}", filed("peace"));
        assert!(filed("justice").contains(&"balance scale"));
        for picture in pictures.iter().step_by(41) {
            let image = picture.render(32).unwrap();
            let ink = image.pixels().filter(|pixel| pixel.0[3] > 0).count();
            assert!(ink > 30, "{} leaves {ink} pixels", picture.name);
        }
    }
}
