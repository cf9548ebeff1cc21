//! Tokens seen so far, with their keys and values.

use super::matrix::Machine;
use super::model::{Arithmetic, Batch, LayerCache, Model, Scratch};
use crate::{Error, Result};

/// Tokens of a prompt that run through the layers together.
const CHUNK: usize = 512;
/// Tokens that the first cache holds.
const FIRST_CAPACITY: usize = 128;

/// A model with a context: the tokens appended so far.
///
/// A clone starts from the same context, so a prompt prefix is computed once and shared; the
/// clone's cache holds no spare capacity.
#[derive(Debug)]
pub struct Session {
    pub(super) model: Model,
    pub(super) tokens: Vec<u32>,
    /// Leading tokens that were computed in f32.
    exact: usize,
    pub(super) cache: Vec<LayerCache>,
    /// Logits after the last token; `None` after a truncation.
    pub(super) logits: Option<Vec<f32>>,
    pub(super) scratch: Scratch,
    pub(super) processed: usize,
}

impl Session {
    /// An empty context.
    pub fn new(model: &Model) -> Self {
        Self {
            model: model.clone(),
            tokens: Vec::new(),
            exact: 0,
            cache: vec![LayerCache::default(); model.config().num_hidden_layers],
            logits: None,
            scratch: Scratch::default(),
            processed: 0,
        }
    }

    /// Appends a piece of prompt and returns the logits after its last token, one per entry of
    /// the vocabulary. Computes in f32.
    ///
    /// No tokens, an id outside the vocabulary, or more tokens than the context holds are an
    /// error that leaves the session as it was.
    pub fn append(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.extend(tokens, Arithmetic::F32)
    }

    /// Appends one generated token and returns the logits after it. Where weights are quantised
    /// activations are rounded to int8, which is faster than [`Session::append`] and moves logits
    /// by about as much as the weights' own quantisation. Errors as in [`Session::append`].
    pub fn step(&mut self, token: u32) -> Result<Vec<f32>> {
        self.extend(&[token], Arithmetic::Int8)
    }

    /// Like [`Session::append`], but rounds activations to int8 as [`Session::step`] does. This is
    /// llama.cpp's arithmetic: greedy texts then differ from its texts only at near ties.
    pub fn append_int8(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.extend(tokens, Arithmetic::Int8)
    }

    /// Like [`Session::append`], but returns the logits after every token, row-major.
    pub fn append_all(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.check(tokens)?;
        let mut logits = Vec::new();
        let size = self.model.config().hidden_size;
        for chunk in tokens.chunks(CHUNK) {
            self.forward(chunk, Arithmetic::F32);
            let hidden = std::mem::take(&mut self.scratch.hidden);
            for row in hidden.chunks_exact(size) {
                logits.extend(self.output(row, Arithmetic::F32));
            }
            self.scratch.hidden = hidden;
        }
        let last = logits.len() - self.model.config().vocab_size;
        self.logits = Some(logits[last..].to_vec());
        Ok(logits)
    }

    /// Number of tokens in the context.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens that this session has run through the layers: what its work so far cost. A clone
    /// starts at 0.
    pub fn processed(&self) -> usize {
        self.processed
    }

    /// Whether the context is empty.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The tokens in the context.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Drops all but the first `len` tokens; does nothing where there are no more.
    pub fn truncate(&mut self, len: usize) {
        if len < self.tokens.len() {
            self.tokens.truncate(len);
            self.exact = self.exact.min(len);
            self.logits = None;
        }
    }

    /// Makes the context equal to `tokens` and returns the logits after the last one. What the
    /// context shares with the beginning of `tokens` is not computed again, except tokens that
    /// [`Session::step`] appended: the result does not depend on what the session did before.
    pub fn set_prompt(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        self.check_prompt(tokens, 0)?;
        let shared = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let shared = shared.min(self.exact);
        self.truncate(shared);
        if shared == tokens.len() {
            return self.last_logits();
        }
        self.append(&tokens[shared..])
    }

    /// Logits after the last token; computes them again after a truncation.
    pub(super) fn last_logits(&mut self) -> Result<Vec<f32>> {
        if let Some(logits) = &self.logits {
            return Ok(logits.clone());
        }
        let Some(&last) = self.tokens.last() else {
            return Err(Error::data("an empty context", "at least one token before the options"));
        };
        self.truncate(self.tokens.len() - 1);
        self.append(&[last])
    }

    fn extend(&mut self, tokens: &[u32], arithmetic: Arithmetic) -> Result<Vec<f32>> {
        self.check(tokens)?;
        for chunk in tokens.chunks(CHUNK) {
            self.forward(chunk, arithmetic);
        }
        let hidden = std::mem::take(&mut self.scratch.hidden);
        let last = hidden.len() - self.model.config().hidden_size;
        let logits = self.output(&hidden[last..], arithmetic);
        self.scratch.hidden = hidden;
        self.logits = Some(logits.clone());
        Ok(logits)
    }

    fn check(&self, tokens: &[u32]) -> Result<()> {
        self.check_prompt(tokens, self.tokens.len())
    }

    fn check_prompt(&self, tokens: &[u32], before: usize) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::data("no tokens", "at least one token to append"));
        }
        self.model.check_tokens(tokens)?;
        self.check_room(before + tokens.len())
    }

    pub(super) fn check_room(&self, needed: usize) -> Result<()> {
        let context = self.model.config().max_position_embeddings;
        if needed > context {
            return Err(Error::data(
                format!("{needed} tokens"),
                format!("at most {context}, the model's context; shorten the prompt"),
            ));
        }
        Ok(())
    }

    fn forward(&mut self, tokens: &[u32], arithmetic: Arithmetic) {
        let prefix = self.tokens.len();
        let batch = Batch {
            tokens,
            positions: (prefix..prefix + tokens.len()).collect(),
            forest: None,
            prefix,
        };
        self.reserve(prefix + tokens.len());
        self.model.forward(&batch, arithmetic, &mut self.cache, &mut self.scratch);
        self.processed += tokens.len();
        if arithmetic == Arithmetic::F32 && self.exact == prefix {
            self.exact += tokens.len();
        }
        self.tokens.extend_from_slice(tokens);
    }

    /// Logits of one row of the residual stream.
    fn output(&mut self, hidden: &[f32], arithmetic: Arithmetic) -> Vec<f32> {
        let mut normed = vec![0.0; hidden.len()];
        self.model.final_norm(hidden, &mut normed);
        let matrix = self.model.output();
        let mut logits = vec![0.0; matrix.rows()];
        let machine = Machine::current();
        match arithmetic {
            Arithmetic::F32 => matrix.product(machine, &normed, normed.len(), 1, &mut logits),
            Arithmetic::Int8 => {
                let rounded = &mut self.scratch.rounded;
                matrix.product_int8(machine, &normed, normed.len(), 1, rounded, &mut logits);
            }
        }
        logits
    }

    /// Makes room for `len` tokens in every layer; the capacity doubles up to the context, which
    /// options behind a full context may pass.
    pub(super) fn reserve(&mut self, len: usize) {
        let config = self.model.config();
        let capacity = self.cache[0].capacity;
        if len <= capacity {
            return;
        }
        let doubled = (2 * capacity).max(FIRST_CAPACITY).min(config.max_position_embeddings);
        let capacity = doubled.max(len);
        let (used, heads, width) = (self.tokens.len(), config.num_key_value_heads, config.head_dim);
        for layer in &mut self.cache {
            *layer = layer.resized(heads, width, used, capacity);
        }
    }
}

impl Clone for Session {
    fn clone(&self) -> Self {
        let config = self.model.config();
        let (used, heads, width) = (self.tokens.len(), config.num_key_value_heads, config.head_dim);
        Self {
            model: self.model.clone(),
            tokens: self.tokens.clone(),
            exact: self.exact,
            cache: self.cache.iter().map(|layer| layer.resized(heads, width, used, used)).collect(),
            logits: self.logits.clone(),
            scratch: Scratch::default(),
            processed: 0,
        }
    }
}

impl LayerCache {
    /// A copy of the first `used` tokens with room for `capacity`.
    fn resized(&self, heads: usize, width: usize, used: usize, capacity: usize) -> Self {
        let copy = |from: &[f32]| {
            let mut to = Vec::with_capacity(heads * capacity * width);
            for head in 0..heads {
                let start = head * self.capacity * width;
                to.extend_from_slice(&from[start..start + used * width]);
                to.resize((head + 1) * capacity * width, 0.0);
            }
            to
        };
        Self { keys: copy(&self.keys), values: copy(&self.values), capacity }
    }
}

/// The lowest id among the highest logits.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = id;
        }
    }
    best as u32
}
