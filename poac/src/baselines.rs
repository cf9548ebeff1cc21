//! Other ways from a concept to objects, and from a prompt to a prompt.

use common::Result;
use common::assets::Assets;
use common::encode::TextEncoder;
use common::llm::{Llm, LlmOptions, Message, Request};
use common::rng::Seed;
use ndarray::{Array2, ArrayView1};

use crate::data::World;
use crate::data::pairs::OBJECTS;
use crate::data::world::{Concept, Split};

/// The objects of the most train keywords, the same for every concept.
pub fn most_filed(world: &World, count: usize) -> Vec<usize> {
    let mut filed = vec![0usize; world.objects.len()];
    for concept in world.split(Split::Train) {
        concept.objects.iter().for_each(|&object| filed[object] += 1);
    }
    let scores: Vec<f64> = filed.into_iter().map(|n| n as f64).collect();
    top(&scores, count)
}

/// The indices of the largest scores; ties go to the lower index.
pub fn top(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(count);
    order
}

/// Sentence embeddings (MiniLM) of all train keywords and object names.
pub struct Neighbours<'a> {
    encoder: TextEncoder,
    train: Vec<&'a Concept>,
    /// `[train concepts, width]`, unit rows.
    words: Array2<f32>,
    /// `[objects, width]`, unit rows.
    names: Array2<f32>,
}

/// Settings of the nearest-keyword vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vote {
    /// Keywords that vote.
    pub neighbours: usize,
    /// Power of the cosine in a vote's weight.
    pub power: i32,
}

/// Keywords in a gloss.
const GLOSS: usize = 5;

impl<'a> Neighbours<'a> {
    /// Encodes keywords and names.
    ///
    /// # Errors
    /// [`common::Error::Asset`] when MiniLM is absent and can't be fetched.
    pub fn new(world: &'a World, assets: &Assets) -> Result<Self> {
        let encoder =
            TextEncoder::minilm(assets)?.with_cache(&assets.options().cache.join("encoded"))?;
        let train: Vec<&Concept> = world.split(Split::Train).collect();
        let words: Vec<&str> = train.iter().map(|concept| concept.word.as_str()).collect();
        let names: Vec<&str> = world.objects.iter().map(|object| object.name.as_str()).collect();
        let (words, names) = (encoder.encode(&words)?, encoder.encode(&names)?);
        Ok(Self { encoder, train, words, names })
    }

    /// The embeddings of words, `[n, width]`.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn encode(&self, words: &[&str]) -> Result<Array2<f32>> {
        self.encoder.encode(words)
    }

    /// Cosine of the concept with every object's name: MiniLM without any training.
    pub fn by_name(&self, concept: ArrayView1<'_, f32>) -> Vec<f64> {
        self.names.dot(&concept).iter().map(|&cosine| f64::from(cosine)).collect()
    }

    /// Weighted vote of the nearest train keywords for their objects; objects of one keyword share
    /// its vote, and the name's cosine decides among equals.
    pub fn by_keywords(&self, concept: ArrayView1<'_, f32>, vote: Vote) -> Vec<f64> {
        let cosines: Vec<f64> =
            self.words.dot(&concept).iter().map(|&cosine| f64::from(cosine)).collect();
        let mut scores: Vec<f64> =
            self.by_name(concept).into_iter().map(|cosine| 1e-6 * cosine).collect();
        for near in top(&cosines, vote.neighbours) {
            let objects = &self.train[near].objects;
            let weight = cosines[near].max(0.0).powi(vote.power) / objects.len() as f64;
            objects.iter().for_each(|&object| scores[object] += weight);
        }
        scores
    }

    /// TIAC's layers (§7) without an LLM: the concept's intent is a gloss of near train keywords, its
    /// objects are those whose names are near the gloss; the form is the style word of the prompt.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn by_gloss(&self, word: &str) -> Result<Vec<f64>> {
        let row = self.encode(&[word])?;
        let cosines: Vec<f64> = self.words.dot(&row.row(0)).iter().map(|&c| f64::from(c)).collect();
        let near = top(&cosines, GLOSS);
        let near: Vec<&str> = near.into_iter().map(|at| self.train[at].word.as_str()).collect();
        let gloss = self.encode(&[&format!("{word}: {}", near.join(", "))])?;
        Ok(self.by_name(gloss.row(0)))
    }

    /// The object whose name is nearest to a phrase.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn by_phrase(&self, phrase: &str) -> Result<usize> {
        let row = self.encode(&[phrase])?;
        Ok(top(&self.by_name(row.row(0)), 1)[0])
    }

    /// The nearest train keyword and the objects filed under it (keyword lookup).
    pub fn nearest(&self, concept: ArrayView1<'_, f32>) -> (&str, &[usize]) {
        let cosines: Vec<f64> =
            self.words.dot(&concept).iter().map(|&cosine| f64::from(cosine)).collect();
        let near = top(&cosines, 1)[0];
        (&self.train[near].word, &self.train[near].objects)
    }
}

/// A frozen LLM as rewriter (step 3 of Algorithm 1): it names objects after worked examples from the
/// training concepts.
#[derive(Debug)]
pub struct LlmRewriter<'a> {
    llm: Llm,
    /// Task and examples.
    messages: Vec<Message>,
    world: &'a World,
}

/// Worked examples in the LLM's prompt.
const EXAMPLES: usize = 6;

impl<'a> LlmRewriter<'a> {
    /// Opens the LLM and draws the examples among the abstract train concepts.
    ///
    /// # Errors
    /// As [`Llm::open`].
    pub fn new(spec: &str, world: &'a World, assets: &Assets, seed: Seed) -> Result<Self> {
        let llm = Llm::open(&spec.parse()?, &LlmOptions::new(assets.clone()))?;
        let task = format!(
            "You choose what to draw for a word. Answer with the names of {OBJECTS} visible things \
             that people associate with the word, separated by commas, and nothing else."
        );
        let mut messages = vec![Message::system(task)];
        let known: Vec<&Concept> = world
            .split(Split::Train)
            .filter(|concept| concept.abstract_word && concept.objects.len() >= OBJECTS)
            .collect();
        let mut stream = seed.stream("llm examples");
        for at in stream.sample(known.len(), EXAMPLES.min(known.len())) {
            let names = known[at].objects.iter().take(OBJECTS);
            let names: Vec<&str> = names.map(|&at| world.objects[at].name.as_str()).collect();
            messages.push(Message::user(&known[at].word));
            messages.push(Message::assistant(names.join(", ")));
        }
        Ok(Self { llm, messages, world })
    }

    /// The objects that the LLM names for a word, in its order, at most [`OBJECTS`]; a thing that is
    /// no object of the world counts as the object whose name is nearest to it.
    ///
    /// # Errors
    /// Those of the LLM and the encoder; an answer that is cut off is read as far as it goes.
    pub fn objects(&self, word: &str, neighbours: &Neighbours<'_>) -> Result<Vec<usize>> {
        let mut messages = self.messages.clone();
        messages.push(Message::user(word));
        let request = Request { stop: vec!["\n".into()], ..Request::new(messages).max_tokens(24) };
        let answer = self.llm.generate(&request)?;
        let mut objects = Vec::new();
        for thing in answer.text.split([',', ';', '.']) {
            let thing = thing.trim().to_lowercase();
            if thing.is_empty() || objects.len() == OBJECTS {
                continue;
            }
            let object = match self.world.object(&thing) {
                Some(object) => object,
                None => neighbours.by_phrase(&thing)?,
            };
            if !objects.contains(&object) {
                objects.push(object);
            }
        }
        Ok(objects)
    }
}

/// The vote settings that are tried on validation concepts.
pub const VOTES: [Vote; 24] = {
    let mut votes = [Vote { neighbours: 1, power: 1 }; 24];
    let (sizes, powers) = ([1, 5, 10, 20, 50, 100], [1, 4, 8, 16]);
    let mut at = 0;
    while at < votes.len() {
        votes[at] = Vote { neighbours: sizes[at / powers.len()], power: powers[at % powers.len()] };
        at += 1;
    }
    votes
};
