//! Pairs of a short prompt and an optimised one: Algorithm 4 (no LLM).

use common::rng::Stream;

use super::world::Split;
use super::{Style, Vocabulary, World};

/// Short prompts; the concept follows.
pub const TEMPLATES: [&str; 3] = ["a picture of", "an image showing", "a picture with"];

/// Objects in an optimised prompt.
pub const OBJECTS: usize = 3;

/// One training text for the language model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Tokens of x, the separator, y and the end.
    pub ids: Vec<u32>,
    /// The first `prompt` tokens are x and the separator, which the loss leaves out.
    pub prompt: usize,
}

/// A short prompt: `a picture of peace, in colour`.
pub fn short(template: &str, word: &str, style: Style) -> String {
    format!("{template} {word}, in {}", style.word())
}

/// The serialised prompt `x rephrase :` (§3.2); unknown words are left out.
pub fn prompt_ids(vocabulary: &Vocabulary, short: &str) -> Vec<u32> {
    vocabulary.encode(&format!("{} rephrase :", short.trim())).0
}

/// The optimised prompt: `a dove , a lotus and a bell , in colour`, with articles left to the
/// printed form so that each object is one token after its separator.
pub fn optimised(names: &[&str], style: Style) -> String {
    format!("{}, in {}", names.join(", "), style.word())
}

/// Draws pairs from keywords (Algorithm 4 of the specification).
#[derive(Debug)]
pub struct PairSource<'a> {
    world: &'a World,
    vocabulary: &'a Vocabulary,
    /// Indices of train concepts, the abstract ones apart.
    all: Vec<usize>,
    abstracts: Vec<usize>,
    /// Share of the pairs that come from abstract concepts.
    pub abstract_share: f64,
    /// Objects of another concept in place of the right ones: the shuffled control.
    shuffled: Option<Vec<usize>>,
}

impl<'a> PairSource<'a> {
    /// Pairs of the train concepts. With `shuffle` every concept gets another one's objects.
    pub fn new(world: &'a World, vocabulary: &'a Vocabulary, shuffle: Option<&mut Stream>) -> Self {
        let train = |keep: &dyn Fn(usize) -> bool| -> Vec<usize> {
            (0..world.concepts.len())
                .filter(|&at| world.concepts[at].split == Split::Train && keep(at))
                .collect()
        };
        let all = train(&|_| true);
        let abstracts = train(&|at| world.concepts[at].abstract_word);
        let shuffled = shuffle.map(|stream| {
            let mut to: Vec<usize> = (0..world.concepts.len()).collect();
            let mut values = all.clone();
            stream.shuffle(&mut values);
            for (&from, value) in all.iter().zip(values) {
                to[from] = value;
            }
            to
        });
        Self { world, vocabulary, all, abstracts, abstract_share: 0.5, shuffled }
    }

    /// One pair.
    pub fn draw(&self, stream: &mut Stream) -> Example {
        let pool = if stream.chance(self.abstract_share) && !self.abstracts.is_empty() {
            &self.abstracts
        } else {
            &self.all
        };
        let concept = pool[stream.below(pool.len())];
        let target = self.shuffled.as_ref().map_or(concept, |to| to[concept]);
        let objects = &self.world.concepts[target].objects;
        let chosen = stream.sample(objects.len(), OBJECTS);
        let name = |at: usize| self.world.objects[at].name.as_str();
        let names: Vec<&str> = chosen.iter().map(|&at| name(objects[at])).collect();
        let style = Style::ALL[stream.below(Style::ALL.len())];
        let template = TEMPLATES[stream.below(TEMPLATES.len())];
        let short = short(template, &self.world.concepts[concept].word, style);
        self.example(&short, &optimised(&names, style))
    }

    /// A given pair.
    pub fn example(&self, short: &str, optimised: &str) -> Example {
        example(self.vocabulary, short, optimised)
    }
}

/// Tokens of a pair.
pub fn example(vocabulary: &Vocabulary, short: &str, optimised: &str) -> Example {
    let mut ids = prompt_ids(vocabulary, short);
    let prompt = ids.len();
    ids.extend(vocabulary.encode(optimised).0);
    ids.push(Vocabulary::EOS);
    Example { ids, prompt }
}
