//! Algorithm 3, steps 1 and 2: the gate and the prompt language model.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};
use common::Result;
use common::lm::{BeamOptions, Lm, LmConfig};

use crate::config::SearchConfig;
use crate::data::pairs::{OBJECTS, TEMPLATES, optimised, prompt_ids, short};
use crate::data::{Gate, Style, Vocabulary, World, clean_prompt};
use crate::features::Features;

/// An optimised prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The text for the image model.
    pub prompt: String,
    /// The objects that stand for the concept, as indices into the world.
    pub objects: Vec<usize>,
    /// The search's score: the sum of log-probabilities over tokens^length_penalty.
    pub score: f64,
}

/// What became of a user's prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Rewrite {
    /// The prompt as it came, cleaned.
    pub original: String,
    /// The abstract words that the gate found; none = passed through unchanged.
    pub concepts: Vec<String>,
    /// Best first.
    pub candidates: Vec<Candidate>,
}

/// Rewrites prompts with a trained language model.
pub struct Rewriter<'a> {
    model: &'a Lm,
    features: &'a Features,
    world: &'a World,
    search: &'a SearchConfig,
    /// Tokens of the objects' names.
    names: BTreeMap<u32, usize>,
}

impl<'a> Rewriter<'a> {
    /// Over a trained model.
    pub fn new(
        model: &'a Lm,
        features: &'a Features,
        world: &'a World,
        search: &'a SearchConfig,
    ) -> Self {
        let id = |name: &str| features.vocabulary().id(name);
        let objects = world.objects.iter().enumerate();
        let names = objects.filter_map(|(at, object)| Some((id(&object.name)?, at))).collect();
        Self { model, features, world, search, names }
    }

    /// Candidates for one concept, best first: beam search over the form that training texts have, so
    /// every candidate names [`OBJECTS`] different objects and ends with the style.
    ///
    /// # Errors
    /// [`common::Error::Asset`] when the word is unknown and MiniLM is not at hand.
    pub fn concept(&self, word: &str, style: Style, count: usize) -> Result<Vec<Candidate>> {
        let short = short(TEMPLATES[0], word, style);
        let (_, unknown) = self.features.vocabulary().encode(&short);
        let extended = match unknown.is_empty() {
            true => None,
            false => Some(self.with_word(&unknown.join(" "))?),
        };
        let (model, vocabulary) = match &extended {
            Some((model, vocabulary)) => (model, vocabulary),
            None => (self.model, self.features.vocabulary()),
        };
        let id = |word: &str| vocabulary.id(word).unwrap_or(Vocabulary::EOS);
        let (comma, inside, end) = (id(","), id("in"), id(style.word()));
        let names: Vec<u32> = self.names.keys().copied().collect();
        let allowed = |tokens: &[u32]| {
            let at = tokens.len();
            Some(match at {
                _ if at < 2 * OBJECTS && at.is_multiple_of(2) => {
                    names.iter().copied().filter(|name| !tokens.contains(name)).collect()
                }
                _ if at < 2 * OBJECTS => vec![comma],
                _ if at == 2 * OBJECTS => vec![inside],
                _ if at == 2 * OBJECTS + 1 => vec![end],
                _ => vec![Vocabulary::EOS],
            })
        };
        let options = BeamOptions {
            max_tokens: 2 * OBJECTS + 3,
            eos: Some(Vocabulary::EOS),
            renormalise: true,
            ..BeamOptions::default()
        };
        let prompt = prompt_ids(vocabulary, &short);
        let found = self.search.run(model, &prompt, count, options, Some(&allowed))?;
        let mut seen = BTreeSet::new();
        let mut candidates = Vec::new();
        for hypothesis in found {
            let objects: Vec<usize> =
                hypothesis.tokens.iter().filter_map(|id| self.names.get(id)).copied().collect();
            let mut sorted = objects.clone();
            sorted.sort_unstable();
            if objects.len() != OBJECTS || !seen.insert(sorted) {
                continue;
            }
            let prompt = self.prompt(&[], &objects, style);
            candidates.push(Candidate { prompt, objects, score: hypothesis.score });
        }
        candidates.truncate(count);
        Ok(candidates)
    }

    /// The first candidate's prompt for one concept; the word itself when there is none.
    ///
    /// # Errors
    /// Those of [`Rewriter::concept`].
    pub fn first_prompt(&self, word: &str, style: Style) -> Result<String> {
        let first = self.concept(word, style, 1)?.into_iter().next();
        Ok(first.map_or_else(|| word.to_owned(), |candidate| candidate.prompt))
    }

    /// `subject, object, object, object, in style`.
    pub fn prompt(&self, subject: &[String], objects: &[usize], style: Style) -> String {
        let names = objects.iter().map(|&at| self.world.objects[at].name.as_str());
        let all: Vec<&str> = subject.iter().map(String::as_str).chain(names).collect();
        optimised(&all, style)
    }

    /// A user's prompt: passed through when the gate finds no abstract word; otherwise each
    /// candidate keeps the visible words of the prompt and adds objects for the first concept.
    ///
    /// # Errors
    /// [`common::Error::Data`] on an empty or overlong prompt; those of [`Rewriter::concept`].
    pub fn prompt_candidates(
        &self,
        text: &str,
        gate: &Gate,
        style: Style,
        count: usize,
    ) -> Result<Rewrite> {
        let original = clean_prompt(text)?;
        let concepts = gate.abstract_words(&original);
        let Some(first) = concepts.first() else {
            return Ok(Rewrite { original, concepts, candidates: Vec::new() });
        };
        let vocabulary = self.features.vocabulary();
        let (ids, _) = vocabulary.encode(&original);
        let subject: Vec<String> = ids
            .iter()
            .filter(|&&id| vocabulary.is_content(id))
            .map(|&id| vocabulary.tokens()[id as usize].clone())
            .filter(|word| {
                !concepts.contains(word)
                    && self.world.concept(word).is_some_and(|concept| !concept.abstract_word)
                    && Style::ALL.iter().all(|style| style.word() != word)
            })
            .collect();
        let mut candidates = self.concept(first, style, count)?;
        for candidate in &mut candidates {
            let objects: Vec<usize> = candidate
                .objects
                .iter()
                .copied()
                .filter(|&at| !subject.contains(&self.world.objects[at].name))
                .collect();
            candidate.prompt = self.prompt(&subject, &objects, style);
        }
        Ok(Rewrite { original, concepts, candidates })
    }

    /// The model and vocabulary with one more word, whose vector is its MiniLM feature.
    fn with_word(&self, word: &str) -> Result<(Lm, Vocabulary)> {
        let feature = self.features.words(&[word.to_owned()])?.remove(0);
        let mut vocabulary = self.features.vocabulary().clone();
        vocabulary.add(word);
        let mut tensors = self.model.parameters().tensors();
        let name = "transformer.wte.weight";
        if let Some(table) = tensors.get(name) {
            let row = Tensor::from_vec(feature, (1, self.features.width()), &Device::Cpu)?;
            let table = Tensor::cat(&[table, &row], 0)?;
            tensors.insert(name.to_owned(), table);
        }
        let config = LmConfig { vocab_size: vocabulary.len(), ..self.model.config().clone() };
        Ok((Lm::from_tensors(&config, tensors)?, vocabulary))
    }

    /// Log-probability of every object as the first object of the rewrite, in the world's order.
    ///
    /// # Errors
    /// Those of the model.
    pub fn object_log_probs(&self, word: &str) -> Result<Vec<f64>> {
        let short = short(TEMPLATES[0], word, Style::Colour);
        let prompt = prompt_ids(self.features.vocabulary(), &short);
        let ids = Tensor::new(&prompt[..], &Device::Cpu)?.unsqueeze(0)?;
        let logits = self.model.last_logits(&ids, common::lm::Pass::default())?;
        let logits = logits.squeeze(0)?.to_vec1::<f32>()?;
        let mut scores = vec![f64::NEG_INFINITY; self.world.objects.len()];
        for (&id, &object) in &self.names {
            scores[object] = f64::from(logits[id as usize]);
        }
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|score| (score - most).exp()).sum();
        Ok(scores.into_iter().map(|score| score - most - total.ln()).collect())
    }
}
