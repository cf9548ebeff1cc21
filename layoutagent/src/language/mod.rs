//! From words to a scene graph without a language model: an English rule parser, the table of
//! real-world sizes, the scale on the canvas, and prompt rewriting (specification §3.2).

pub mod objects;

use common::{Error, Result};

use crate::layout::Frame;
use crate::relations::Relation;

/// What a sentence says about two objects or one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Relation.
    pub relation: Relation,
    /// First argument: index in [`Parsed::phrases`].
    pub a: usize,
    /// Second argument, `None` for a place on the canvas.
    pub b: Option<usize>,
}

/// Objects and relations of a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Phrase of each object, in order of first mention.
    pub phrases: Vec<String>,
    /// Relations.
    pub statements: Vec<Statement>,
}

/// A relation phrase: words, relations, and whether the arguments are swapped.
type Phrase = (&'static str, &'static [Relation], bool);

use Relation::{
    AwayFrom, Beside, BottomIn, CenterIn, CloseTo, HAligned, InFrontOf, Inside, LeftIn, LeftOf,
    Leftward, On, RightIn, SameBaseline, TopIn, TopOf, Upward, VAligned,
};

/// Relation phrases between two objects. Longer ones are tried first at each place.
const BETWEEN: &[Phrase] = &[
    ("directly to the left of", &[LeftOf], false),
    ("directly to the right of", &[LeftOf], true),
    ("directly above", &[TopOf], false),
    ("directly below", &[TopOf], true),
    ("to the left side of", &[Leftward], false),
    ("to the right side of", &[Leftward], true),
    ("to the left of", &[Leftward], false),
    ("to the right of", &[Leftward], true),
    ("on the left side of", &[Leftward], false),
    ("on the right side of", &[Leftward], true),
    ("on the left of", &[Leftward], false),
    ("on the right of", &[Leftward], true),
    ("left of", &[Leftward], false),
    ("right of", &[Leftward], true),
    ("on top of", &[On, Upward], false),
    ("atop", &[On, Upward], false),
    ("standing on", &[On, Upward], false),
    ("on", &[On, Upward], false),
    ("above", &[Upward], false),
    ("over", &[Upward], false),
    ("below", &[Upward], true),
    ("beneath", &[Upward], true),
    ("underneath", &[Upward], true),
    ("under", &[Upward], true),
    ("at the bottom of", &[Upward], true),
    ("next to", &[Beside], false),
    ("beside", &[Beside], false),
    ("alongside", &[Beside], false),
    ("by the side of", &[Beside], false),
    ("close to", &[CloseTo], false),
    ("near", &[CloseTo], false),
    ("far from", &[AwayFrom], false),
    ("away from", &[AwayFrom], false),
    ("in front of", &[InFrontOf], false),
    ("behind", &[InFrontOf], true),
    ("inside of", &[Inside], false),
    ("inside", &[Inside], false),
    ("level with", &[SameBaseline], false),
    ("horizontally aligned with", &[HAligned], false),
    ("vertically aligned with", &[VAligned], false),
];

/// Places on the canvas.
const PLACES: &[(&str, Relation)] = &[
    ("in the center", CenterIn),
    ("in the centre", CenterIn),
    ("in the middle", CenterIn),
    ("on the left", LeftIn),
    ("on the right", RightIn),
    ("in the top", TopIn),
    ("at the top", TopIn),
    ("in the bottom", BottomIn),
    ("at the bottom", BottomIn),
];

/// Maps a relation word of a file or a language model: a name of [`Relation`] (any case, `_` or
/// spaces), or a relation phrase. The flag says whether the arguments are swapped.
///
/// # Errors
/// [`Error::Data`] that lists the words and names the nearest.
pub fn relation_word(word: &str) -> Result<(Relation, bool)> {
    let plain = word.trim().to_lowercase().replace(['_', ' '], "-");
    if let Some(relation) = Relation::ALL.into_iter().find(|relation| relation.name() == plain) {
        return Ok((relation, false));
    }
    match plain.as_str() {
        "right-of" => return Ok((LeftOf, true)),
        "bottom-of" => return Ok((TopOf, true)),
        "rightward" => return Ok((Leftward, true)),
        "downward" => return Ok((Upward, true)),
        _ => {}
    }
    let spaced = plain.replace('-', " ");
    if let Some((_, relations, swapped)) = BETWEEN.iter().find(|(phrase, ..)| *phrase == spaced) {
        return Ok((relations[0], *swapped));
    }
    if let Some((_, relation)) = PLACES.iter().find(|(phrase, _)| *phrase == spaced) {
        return Ok((*relation, false));
    }
    let names = Relation::ALL.map(Relation::name);
    let nearest = names
        .iter()
        .min_by_key(|name| strsim::levenshtein(name, &plain))
        .copied()
        .unwrap_or_default();
    Err(Error::data(
        format!("relation {word:?}"),
        format!("one of {} (nearest: {nearest})", names.join(", ")),
    ))
}

/// Words of a text in lower case; sentence ends stay as ".".
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for letter in text.to_lowercase().chars().chain([' ']) {
        if letter.is_alphanumeric() || letter == '-' || letter == '\'' {
            word.push(letter);
            continue;
        }
        if !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if matches!(letter, '.' | ';' | '!' | '?' | '\n') {
            words.push(".".into());
        }
    }
    words
}

fn starts_with(words: &[String], phrase: &str) -> Option<usize> {
    let mut count = 0;
    for (index, part) in phrase.split(' ').enumerate() {
        if words.get(index).is_none_or(|word| word != part) {
            return None;
        }
        count += 1;
    }
    Some(count)
}

/// A piece of a sentence.
enum Token {
    Object(&'static objects::Known),
    Between(&'static [Relation], bool),
    Place(Relation),
    Word(String),
    End,
}

fn tokens(text: &str) -> Vec<Token> {
    let words = words(text);
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let rest = &words[at..];
        let between = BETWEEN
            .iter()
            .filter_map(|phrase| Some((starts_with(rest, phrase.0)?, phrase)))
            .max_by_key(|(count, _)| *count);
        let place = PLACES
            .iter()
            .filter_map(|place| Some((starts_with(rest, place.0)?, place)))
            .max_by_key(|(count, _)| *count);
        // An object of up to three words, the longest that is known.
        let object = (1..=3.min(rest.len()))
            .rev()
            .find_map(|count| Some((count, objects::find(&rest[..count].join(" "))?)));
        let longest_between = between.as_ref().map_or(0, |(count, _)| *count);
        if let Some((count, place)) = place
            && count > longest_between
        {
            tokens.push(Token::Place(place.1));
            at += count;
        } else if let Some((count, phrase)) = between {
            tokens.push(Token::Between(phrase.1, phrase.2));
            at += count;
        } else if let Some((count, known)) = object {
            tokens.push(Token::Object(known));
            at += count;
        } else {
            tokens.push(if words[at] == "." { Token::End } else { Token::Word(words[at].clone()) });
            at += 1;
        }
    }
    tokens
}

/// Parses English such as "A laptop on a desk. A cup to the right of the laptop." An object is a
/// known word of the table; a relation phrase joins the nearest object before it with the first
/// one after it. Two mentions of one word are one object.
///
/// # Errors
/// [`Error::Data`] when no object is known, or a relation phrase lacks an object.
pub fn parse(text: &str) -> Result<Parsed> {
    let tokens = tokens(text);
    let mut parsed = Parsed::default();
    let mut before: Option<usize> = None;
    let mut open: Option<(&[Relation], bool, usize)> = None;
    let mut unknown: Option<String> = None;
    for token in &tokens {
        match token {
            Token::Object(known) => {
                let index = index_of(&mut parsed.phrases, known.name);
                match open.take() {
                    Some((relations, swapped, first)) if first != index => {
                        let (a, b) = if swapped { (index, first) } else { (first, index) };
                        let of = |&relation| Statement { relation, a, b: Some(b) };
                        parsed.statements.extend(relations.iter().map(of));
                    }
                    _ => before = Some(index),
                }
            }
            Token::Between(relations, swapped) => {
                if let (None, Some(first)) = (&open, before) {
                    open = Some((relations, *swapped, first));
                    unknown = None;
                }
            }
            Token::Place(relation) => {
                if let Some(a) = before {
                    parsed.statements.push(Statement { relation: *relation, a, b: None });
                }
            }
            Token::Word(word) => unknown = Some(word.clone()),
            Token::End => {
                if let Some((relations, _, first)) = open.take()
                    && parsed.statements.iter().all(|statement| statement.a != first)
                    && relations[0] != On
                {
                    return Err(Error::data(
                        format!("no known object after {:?}", relations[0].name()),
                        format!(
                            "an object of the table (nearest to {:?}: {})",
                            unknown.as_deref().unwrap_or(""),
                            nearest_object(unknown.as_deref().unwrap_or(""))
                        ),
                    ));
                }
                before = None;
            }
        }
    }
    // "On" means above the middle as well, which several objects on one support can't share.
    let on: Vec<(usize, Option<usize>)> =
        parsed.statements.iter().filter(|s| s.relation == On).map(|s| (s.a, s.b)).collect();
    let shared = |support| on.iter().filter(|(_, b)| *b == support).count() > 1;
    parsed.statements.retain(|s| s.relation != Upward || !on.contains(&(s.a, s.b)) || !shared(s.b));
    if parsed.phrases.is_empty() {
        return Err(Error::data(
            format!("no known object in {text:?}"),
            "a text such as \"a laptop on a desk\"; scene files take any object",
        ));
    }
    Ok(parsed)
}

fn nearest_object(word: &str) -> &'static str {
    objects::table()
        .iter()
        .map(|known| known.name)
        .min_by_key(|name| strsim::levenshtein(name, word))
        .unwrap_or_default()
}

fn index_of(phrases: &mut Vec<String>, name: &str) -> usize {
    phrases.iter().position(|known| known == name).unwrap_or_else(|| {
        phrases.push(name.to_owned());
        phrases.len() - 1
    })
}

/// Share of the canvas that the objects cover together.
const COVERAGE: f64 = 0.35;
/// Largest side of an object as a share of the canvas.
const LARGEST: f64 = 0.8;
/// Smallest height relative to the largest object's.
const SMALLEST: f64 = 1.0 / 12.0;
/// Exponent that compresses ratios when one is smaller than that.
const COMPRESSION: f64 = 0.7;

/// Sizes on the canvas from sizes in metres: one scale for all, so that the boxes cover `COVERAGE`
/// of the frame and none is larger than `LARGEST` of it. Ratios beyond 12 are compressed (a ring
/// beside a sofa). Aspects stay.
pub fn canvas_sizes(frame: Frame, size_m: &[[f64; 2]]) -> Vec<[f64; 2]> {
    let tallest = size_m.iter().map(|size| size[0].max(size[1])).fold(0.0, f64::max);
    let ratio = |size: &[f64; 2]| size[0].max(size[1]) / tallest;
    let compress = size_m.iter().any(|size| ratio(size) < SMALLEST);
    let scaled: Vec<[f64; 2]> = size_m
        .iter()
        .map(|size| {
            let wanted = if compress { ratio(size).powf(COMPRESSION) } else { ratio(size) };
            let factor = wanted.max(SMALLEST) / ratio(size) / tallest;
            size.map(|side| side * factor)
        })
        .collect();
    let area: f64 = scaled.iter().map(|[w, h]| w * h).sum();
    let mut scale = (COVERAGE * frame.width * frame.height / area).sqrt();
    for [w, h] in &scaled {
        scale = scale.min(LARGEST * frame.width / w).min(LARGEST * frame.height / h);
    }
    scaled.into_iter().map(|size| size.map(|side| side * scale)).collect()
}

/// The prompts of the image stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    /// The background without the foreground objects' names.
    pub background: String,
    /// What the background must not show: the objects, which would appear twice.
    pub negative: String,
}

/// Prompt rewriting by rule: the setting as background, the objects as negative prompt.
pub fn rewrite(setting: &str, phrases: &[String]) -> Rewritten {
    let kept: Vec<&str> = setting
        .split_whitespace()
        .filter(|word| !phrases.iter().any(|phrase| phrase.eq_ignore_ascii_case(word)))
        .collect();
    let background = if kept.is_empty() { "plain studio".to_owned() } else { kept.join(" ") };
    Rewritten { background, negative: phrases.join(", ") }
}

/// A hand-written product scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProductScene {
    /// English sentences.
    pub text: &'static str,
    /// Words of the background.
    pub setting: &'static str,
}

/// The 40 product scenes of `products.txt`.
pub fn product_scenes() -> Vec<ProductScene> {
    include_str!("products.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('|'))
        .map(|(text, setting)| ProductScene { text: text.trim(), setting: setting.trim() })
        .collect()
}
