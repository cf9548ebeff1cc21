//! Word features: what the language model's token table and the image models' text side start from.

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::{Device, Tensor};
use common::assets::Assets;
use common::encode::TextEncoder;
use common::rng::Seed;
use common::{Error, Result};
use ndarray::Array2;

use crate::data::Vocabulary;
use crate::model::{TextBatch, Word};
use crate::projection::Projection;

/// Unit features of every token, from MiniLM by projection. Words of one meaning are near each
/// other whether training saw them or not; unknown words are encoded when they come.
pub struct Features {
    vocabulary: Vocabulary,
    /// `[tokens][width]`
    table: Vec<Vec<f32>>,
    projection: Projection,
    assets: Assets,
    /// Words encoded so far beyond the vocabulary.
    further: Mutex<BTreeMap<String, Vec<f32>>>,
}

impl Features {
    /// Encodes the vocabulary and fits the projection.
    ///
    /// # Errors
    /// [`Error::Asset`] when MiniLM is absent and can't be fetched.
    pub fn fit(vocabulary: Vocabulary, width: usize, assets: &Assets) -> Result<Self> {
        let embeddings = encoder(assets)?.encode(vocabulary.tokens())?;
        let projection = Projection::fit(&embeddings, width, Seed::new(0))?;
        let table = rows(&projection.apply_unit(&embeddings));
        Ok(Self {
            vocabulary,
            table,
            projection,
            assets: assets.clone(),
            further: Mutex::default(),
        })
    }

    /// From what [`Features::tensors`] gave.
    ///
    /// # Errors
    /// [`Error::Asset`] when the file does not belong to the vocabulary.
    pub fn from_tensors(
        vocabulary: Vocabulary,
        tensors: &BTreeMap<String, Tensor>,
        assets: &Assets,
    ) -> Result<Self> {
        let take = |name: &str| {
            tensors.get(name).ok_or_else(|| {
                let problem = format!("no tensor {name}");
                Error::asset("word features", problem, "train again with `poac fit`")
            })
        };
        let table = take("features.table")?.to_vec2::<f32>()?;
        if table.len() != vocabulary.len() {
            let problem = format!("{} tokens, expected {}", table.len(), vocabulary.len());
            return Err(Error::asset("word features", problem, "train again with `poac fit`"));
        }
        let projection = Projection::from_tensors(take("features.mean")?, take("features.axes")?)?;
        Ok(Self {
            vocabulary,
            table,
            projection,
            assets: assets.clone(),
            further: Mutex::default(),
        })
    }

    /// For a weight file.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let [mean, axes] = self.projection.tensors()?;
        let flat: Vec<f32> = self.table.iter().flatten().copied().collect();
        let table = Tensor::from_vec(flat, (self.table.len(), self.width()), &Device::Cpu)?;
        let named = [("features.mean", mean), ("features.axes", axes), ("features.table", table)];
        Ok(named.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect())
    }

    /// Where MiniLM comes from.
    pub fn assets(&self) -> &Assets {
        &self.assets
    }

    /// The tokens.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Values of a feature.
    pub fn width(&self) -> usize {
        self.table.first().map_or(0, Vec::len)
    }

    /// The feature of a token.
    pub fn token(&self, id: u32) -> &[f32] {
        &self.table[id as usize]
    }

    /// The features of all tokens from `first` on, `[tokens - first, width]`.
    ///
    /// # Errors
    /// None but bugs.
    pub fn rows(&self, first: usize) -> Result<Tensor> {
        let rows = &self.table[first..];
        let values = rows.concat();
        Ok(Tensor::from_vec(values, (rows.len(), self.width()), &Device::Cpu)?)
    }

    /// A token for the image models, with the picture that it names.
    fn word(&self, id: u32) -> Word {
        Word { feature: self.token(id).to_vec(), picture: self.vocabulary.object(id) }
    }

    /// Features of words, in the vocabulary or not.
    ///
    /// # Errors
    /// [`Error::Asset`] when a word is unknown and MiniLM is not at hand.
    pub fn words(&self, words: &[String]) -> Result<Vec<Vec<f32>>> {
        let locked = || Error::Bug("the word cache is poisoned".into());
        let absent: Vec<&String> = {
            let further = self.further.lock().map_err(|_| locked())?;
            let known =
                |word: &&String| self.vocabulary.id(word).is_none() && !further.contains_key(*word);
            words.iter().filter(known).collect()
        };
        if !absent.is_empty() {
            let encoded = self.projection.apply_unit(&encoder(&self.assets)?.encode(&absent)?);
            let mut further = self.further.lock().map_err(|_| locked())?;
            further.extend(absent.into_iter().cloned().zip(rows(&encoded)));
        }
        let further = self.further.lock().map_err(|_| locked())?;
        words
            .iter()
            .map(|word| match self.vocabulary.id(word) {
                Some(id) => Ok(self.table[id as usize].clone()),
                None => further.get(word).cloned().ok_or_else(locked),
            })
            .collect()
    }

    /// The features of a prompt's words for the image models: a start token, then every word that
    /// says something (template words and punctuation do not).
    ///
    /// # Errors
    /// As [`Features::words`].
    pub fn prompt(&self, prompt: &str) -> Result<Vec<Word>> {
        let (ids, unknown) = self.vocabulary.encode(prompt);
        let known = ids.iter().filter(|&&id| self.vocabulary.is_content(id));
        let known = known.map(|&id| self.word(id));
        let plain: Vec<String> = unknown
            .iter()
            .map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()).to_owned())
            .filter(|word| !word.is_empty() && !is_function_word(word))
            .take(16)
            .collect();
        let plain = self.words(&plain)?.into_iter().map(|feature| Word { feature, picture: None });
        Ok(std::iter::once(self.word(Vocabulary::EOS)).chain(known).chain(plain).collect())
    }

    /// Prompts as a batch.
    ///
    /// # Errors
    /// As [`Features::words`].
    pub fn batch(&self, prompts: &[impl AsRef<str>]) -> Result<TextBatch> {
        let rows = prompts
            .iter()
            .map(|prompt| self.prompt(prompt.as_ref()))
            .collect::<Result<Vec<_>>>()?;
        TextBatch::new(&rows)
    }

    /// The batch of `n` empty prompts.
    ///
    /// # Errors
    /// None but bugs.
    pub fn empty(&self, n: usize) -> Result<TextBatch> {
        TextBatch::new(&vec![vec![self.word(Vocabulary::EOS)]; n])
    }
}

impl std::fmt::Debug for Features {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Features").field("tokens", &self.table.len()).finish_non_exhaustive()
    }
}

/// Words that name nothing.
fn is_function_word(word: &str) -> bool {
    const WORDS: [&str; 24] = [
        "the", "to", "for", "on", "at", "by", "from", "is", "are", "his", "her", "its", "my",
        "our", "your", "their", "this", "that", "it", "or", "as", "be", "very", "photo",
    ];
    WORDS.contains(&word)
}

fn encoder(assets: &Assets) -> Result<TextEncoder> {
    TextEncoder::minilm(assets)?.with_cache(&assets.options().cache.join("encoded"))
}

fn rows(matrix: &Array2<f32>) -> Vec<Vec<f32>> {
    matrix.rows().into_iter().map(|row| row.to_vec()).collect()
}
