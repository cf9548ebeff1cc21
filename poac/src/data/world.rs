//! Objects, keywords and concepts from the emoji collection.

use std::collections::{BTreeMap, BTreeSet};

use common::emoji::{Group, Picture};
use common::rng::Seed;
use common::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Gate;

/// Letters by which words count as one family: `celebrate` and `celebration`.
const FAMILY: usize = 5;

/// A drawable thing: one picture, or the variants of one (man, woman, person).
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Lower-case name, for example `balance scale`.
    pub name: String,
    /// The drawing that stands for it.
    pub picture: Picture,
    /// Human keywords of all variants.
    pub keywords: BTreeSet<String>,
}

/// A keyword with the objects that people file under it.
#[derive(Debug, Clone, PartialEq)]
pub struct Concept {
    /// The word.
    pub word: String,
    /// Indices of objects, ascending.
    pub objects: Vec<usize>,
    /// Whether it names something that can't be drawn.
    pub abstract_word: bool,
    /// Whether training sees it.
    pub split: Split,
}

/// Use of a concept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Seen in training.
    Train,
    /// Chooses settings; not seen in training.
    Validation,
    /// Held out for the final numbers.
    Test,
    /// Of one family with a held-out word: used nowhere.
    Left,
}

/// Size and splits of the world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorldOptions {
    /// Objects at most, in Unicode's order over all groups; 0 = all.
    pub objects: usize,
    /// Share of the abstract concepts held out for test (20 % in the specification).
    pub test: f64,
    /// Share of the abstract concepts held out for choices.
    pub validation: f64,
    /// Objects that a concept needs at least to be held out.
    pub least_objects: usize,
}

impl Default for WorldOptions {
    fn default() -> Self {
        Self { objects: 0, test: 0.2, validation: 0.1, least_objects: 2 }
    }
}

/// Objects and keywords.
#[derive(Debug, Clone, PartialEq)]
pub struct World {
    /// In Unicode's order.
    pub objects: Vec<Object>,
    /// In alphabetical order.
    pub concepts: Vec<Concept>,
}

impl World {
    /// Merges variants into objects, drops letters, buttons, keycaps and arrows (signs, not things),
    /// turns keywords into concepts and splits the abstract ones by `seed`. Test and validation words
    /// take their family (words that share the first five letters) out of training with them.
    ///
    /// # Errors
    /// [`Error::Data`] when nothing is left to hold out.
    pub fn new(
        pictures: &[Picture],
        gate: &Gate,
        options: &WorldOptions,
        seed: Seed,
    ) -> Result<Self> {
        let mut objects = merge_variants(pictures);
        if options.objects > 0 && options.objects < objects.len() {
            let keep = options.objects;
            let all = objects.len();
            let chosen: BTreeSet<usize> = (0..keep).map(|at| at * all / keep).collect();
            let mut at = 0;
            objects.retain(|_| {
                at += 1;
                chosen.contains(&(at - 1))
            });
        }
        let mut filed: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for (index, object) in objects.iter().enumerate() {
            for word in object.keywords.iter().chain([&object.name]) {
                filed.entry(word.clone()).or_default().insert(index);
            }
        }
        let mut concepts: Vec<Concept> = filed
            .into_iter()
            .filter(|(word, _)| is_wordy(word))
            .map(|(word, objects)| Concept {
                abstract_word: gate.is_abstract(&word),
                word,
                objects: objects.into_iter().collect(),
                split: Split::Train,
            })
            .collect();
        hold_out(&mut concepts, options, seed);
        if !concepts.iter().any(|concept| concept.split == Split::Test) {
            return Err(Error::data(
                format!("{} objects without a test concept", objects.len()),
                "a larger world.objects or world.test",
            ));
        }
        Ok(Self { objects, concepts })
    }

    /// The concepts of a split.
    pub fn split(&self, split: Split) -> impl Iterator<Item = &Concept> {
        self.concepts.iter().filter(move |concept| concept.split == split)
    }

    /// The concept of that word.
    pub fn concept(&self, word: &str) -> Option<&Concept> {
        let found = self.concepts.binary_search_by(|concept| concept.word.as_str().cmp(word));
        found.ok().map(|index| &self.concepts[index])
    }

    /// The object of that name.
    pub fn object(&self, name: &str) -> Option<usize> {
        self.objects.iter().position(|object| object.name == name)
    }
}

/// Letters, spaces, hyphens and apostrophes only, at least two characters.
fn is_wordy(word: &str) -> bool {
    word.chars().count() > 1
        && word.chars().all(|c| c.is_alphabetic() || matches!(c, ' ' | '-' | '\'' | '’'))
}

fn merge_variants(pictures: &[Picture]) -> Vec<Object> {
    let names: BTreeSet<String> =
        pictures.iter().map(|picture| picture.name.to_lowercase()).collect();
    let mut objects: Vec<Object> = Vec::new();
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    for picture in pictures {
        let name = picture.name.to_lowercase();
        if is_sign(&name, picture.group) {
            continue;
        }
        let name = plain_name(&name, &names);
        let keywords = picture.keywords().into_iter().map(str::to_owned);
        match known.get(&name) {
            Some(&at) => objects[at].keywords.extend(keywords),
            None => {
                known.insert(name.clone(), objects.len());
                let keywords = keywords.collect();
                objects.push(Object { name, picture: picture.clone(), keywords });
            }
        }
    }
    objects
}

/// The name that stands for a picture and its variants.
fn plain_name(name: &str, names: &BTreeSet<String>) -> String {
    // "kiss: woman, man" → "kiss"
    if let Some((plain, _)) = name.split_once(':')
        && names.contains(plain)
    {
        return plain.to_owned();
    }
    for (variant, plain) in
        [("man ", "person "), ("woman ", "person "), ("men ", "people "), ("women ", "people ")]
    {
        if let Some(rest) = name.strip_prefix(variant) {
            for candidate in [format!("{plain}{rest}"), rest.to_owned()] {
                if names.contains(&candidate) {
                    return candidate;
                }
            }
        }
    }
    // twelve clock faces and their half hours are one thing
    if name.ends_with("-thirty") || name.ends_with(" o’clock") {
        return "clock face".to_owned();
    }
    name.to_owned()
}

fn is_sign(name: &str, group: Group) -> bool {
    let words = ["button", "keycap", "arrow", "square", "input "];
    group == Group::Symbols && words.iter().any(|word| name.contains(word))
}

/// The letters that a word shares with its family.
fn family(word: &str) -> String {
    word.chars().take(FAMILY).collect()
}

fn hold_out(concepts: &mut [Concept], options: &WorldOptions, seed: Seed) {
    let mut candidates: Vec<usize> = (0..concepts.len())
        .filter(|&at| {
            let concept = &concepts[at];
            concept.abstract_word && concept.objects.len() >= options.least_objects
        })
        .collect();
    seed.stream("split").shuffle(&mut candidates);
    let part = |share: f64| (share * candidates.len() as f64).round() as usize;
    let (test, validation) = (part(options.test), part(options.validation));
    let mut families = BTreeSet::new();
    for (place, &at) in candidates.iter().take(test + validation).enumerate() {
        concepts[at].split = if place < test { Split::Test } else { Split::Validation };
        families.insert(family(&concepts[at].word));
    }
    for concept in concepts {
        if concept.split == Split::Train && families.contains(&family(&concept.word)) {
            concept.split = Split::Left;
        }
    }
}
