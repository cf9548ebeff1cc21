//! The generator over flattened semantic IDs (Eq. 2): a decoder-only transformer, or TIGER's
//! encoder–decoder.
//!
//! The state at which `level` codes of an item are known predicts the code of that level, so each
//! level has its own small output table, tied with its input embeddings, and no probability ever
//! goes to a code of another level.

mod batch;
mod beams;
mod decoder;
mod encoder_decoder;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use common::nn::{Builder, Init, Linear, LoraOptions, Parameters};
use common::ops;
use common::rng::{Seed, Stream};
use common::{Error, Result};
use serde::{Deserialize, Serialize};

pub use batch::{Batch, Counted};
pub use beams::{BeamCache, Prefix};
use decoder::Decoder;
use encoder_decoder::EncoderDecoder;

/// | option | default | purpose |
/// |---|---|---|
/// | `architecture` | decoder | decoder-only, or an encoder–decoder with T5's layers (TIGER) |
/// | `width` | 128 | width of the hidden states |
/// | `layers` | 2 | transformer blocks, of the encoder and of the decoder each |
/// | `heads` | 4 | attention heads |
/// | `head_width` | 0 | width of a head; 0 = `width / heads` (TIGER: 64) |
/// | `inner` | 256 | width of the feed-forward layers |
/// | `dropout` | 0.2 | of embeddings and of what each block adds |
/// | `history` | 9 | latest items of a history that are read |
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GeneratorOptions {
    /// See the table.
    pub architecture: Architecture,
    /// See the table.
    pub width: usize,
    /// See the table.
    pub layers: usize,
    /// See the table.
    pub heads: usize,
    /// See the table.
    pub head_width: usize,
    /// See the table.
    pub inner: usize,
    /// See the table.
    pub dropout: f64,
    /// See the table.
    pub history: usize,
}

/// How the generator reads and writes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// One causal transformer; a pass over a window predicts all its items.
    #[default]
    Decoder,
    /// T5's layers: an encoder reads the history of one target, a decoder writes the target.
    EncoderDecoder,
}

impl Default for GeneratorOptions {
    fn default() -> Self {
        Self {
            architecture: Architecture::Decoder,
            width: 128,
            layers: 2,
            heads: 4,
            head_width: 0,
            inner: 256,
            dropout: 0.2,
            history: 9,
        }
    }
}

impl GeneratorOptions {
    /// Width of an attention head.
    fn head_width(&self) -> usize {
        if self.head_width > 0 { self.head_width } else { self.width / self.heads }
    }
}

/// The model and its trainable tensors.
#[derive(Debug, Clone)]
pub struct Generator {
    /// Per level `[codes, width]`, input and output.
    tables: Vec<Tensor>,
    /// `[1, width]`
    start: Tensor,
    stack: Stack,
    parameters: Parameters,
    options: GeneratorOptions,
}

#[derive(Debug, Clone)]
enum Stack {
    Decoder(Box<Decoder>),
    EncoderDecoder(Box<EncoderDecoder>),
}

/// Dropout where there is a stream to draw from.
fn dropped(x: Tensor, rate: f64, stream: &mut Option<Stream>) -> Result<Tensor> {
    match stream {
        Some(stream) => Ok(ops::dropout(&x, rate, stream)?),
        None => Ok(x),
    }
}

impl Generator {
    fn build(mut builder: Builder, sizes: &[usize], options: GeneratorOptions) -> Result<Self> {
        let GeneratorOptions { width, layers, heads, history, .. } = options;
        let divides = options.head_width > 0 || (heads > 0 && width.is_multiple_of(heads));
        if heads == 0 || width == 0 || layers == 0 || !divides || history == 0 {
            return Err(Error::usage(format!(
                "a generator of {layers} layers of width {width} with {heads} heads over {history} \
                 items; all must be positive and the heads must divide the width"
            )));
        }
        if sizes.is_empty() || sizes.contains(&0) {
            return Err(Error::usage(format!("code-book levels of sizes {sizes:?}")));
        }
        let b = &mut builder;
        let codes = match options.architecture {
            Architecture::Decoder => Init::Normal(0.02),
            Architecture::EncoderDecoder => Init::Normal(1.0),
        };
        Ok(Self {
            tables: sizes
                .iter()
                .enumerate()
                .map(|(level, &size)| b.tensor(&format!("codes.{level}"), (size, width), codes))
                .collect::<Result<_>>()?,
            start: b.tensor("start", (1, width), codes)?,
            stack: match options.architecture {
                Architecture::Decoder => {
                    Stack::Decoder(Box::new(Decoder::new(b, sizes.len(), options)?))
                }
                Architecture::EncoderDecoder => {
                    Stack::EncoderDecoder(Box::new(EncoderDecoder::new(b, options)?))
                }
            },
            parameters: builder.finish(),
            options,
        })
    }

    /// A model with random parameters for code-book levels of these sizes.
    ///
    /// # Errors
    /// Sizes that don't fit.
    pub fn new(sizes: &[usize], options: GeneratorOptions, seed: Seed) -> Result<Self> {
        Self::build(Builder::seeded(seed), sizes, options)
    }

    /// A model with given parameters; the level sizes are those of the tensors `codes.0`, ….
    ///
    /// # Errors
    /// Absent tensors or other shapes.
    pub fn from_tensors(
        options: GeneratorOptions,
        tensors: BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        let sizes = code_sizes(&tensors)?;
        Self::build(Builder::from_tensors(tensors), &sizes, options)
    }

    /// A copy for inference that records nothing for a backward pass.
    ///
    /// # Errors
    /// Those of candle.
    pub fn frozen(&self) -> Result<Self> {
        let sizes = self.sizes()?;
        let tensors = self.merged_tensors()?;
        Self::build(Builder::from_tensors(tensors).frozen(), &sizes, self.options)
    }

    /// Codes per level.
    ///
    /// # Errors
    /// Those of candle.
    pub fn sizes(&self) -> Result<Vec<usize>> {
        self.tables.iter().map(|table| Ok(table.dim(0)?)).collect()
    }

    /// The trainable tensors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The options that the model was built with.
    pub fn options(&self) -> &GeneratorOptions {
        &self.options
    }

    /// Embedding tables of all levels, `[codes, width]`.
    pub fn tables(&self) -> &[Tensor] {
        &self.tables
    }

    /// The vocabulary grown to the numbers of a split (`parent_of[level][new]` = old code): a new
    /// code starts as its parent's embedding plus normal noise of standard deviation `noise`.
    ///
    /// # Errors
    /// Tables that don't fit the model.
    pub fn grown(&self, parent_of: &[Vec<u32>], noise: f64, seed: Seed) -> Result<Self> {
        let mut tensors = self.merged_tensors()?;
        for (level, parents) in parent_of.iter().enumerate() {
            let name = format!("codes.{level}");
            let table = &self.tables[level];
            let (old, width) = table.dims2()?;
            if parents.len() < old || parents.iter().any(|&parent| parent as usize >= old) {
                return Err(Error::data(
                    format!("{} codes at level {level} for a model of {old}", parents.len()),
                    "a split of the code book that the model was trained on",
                ));
            }
            let parents = Tensor::new(&parents[..], &Device::Cpu)?;
            let grown = table.detach().index_select(&parents, 0)?;
            let fresh = grown.dim(0)? - old;
            if fresh > 0 && noise > 0.0 {
                let mut stream = seed.stream(&format!("grow/{level}"));
                let noise = stream.normal_tensor((fresh, width), noise)?;
                let rows = (grown.narrow(0, old, fresh)? + noise)?;
                tensors.insert(name, Tensor::cat(&[&grown.narrow(0, 0, old)?, &rows], 0)?);
            } else {
                tensors.insert(name, grown);
            }
        }
        Self::from_tensors(self.options, tensors)
    }

    /// Freezes the backbone: adds low-rank adapters to every linear layer of the blocks and returns
    /// what trains then, the adapters and the code embeddings (the paper's Stage 2).
    ///
    /// # Errors
    /// A rank of 0.
    pub fn attach_lora(&mut self, options: &LoraOptions, seed: Seed) -> Result<Parameters> {
        let mut builder = Builder::seeded(seed);
        for (name, linear) in self.stack.linears_mut() {
            builder.within(name, |b| linear.attach_lora(b, options.rank, options.alpha))?;
        }
        self.parameters.filter(|name| name.starts_with("codes.")).join(builder.finish())
    }

    /// All tensors with adapters merged into the weights.
    ///
    /// # Errors
    /// Those of candle.
    pub fn merged_tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = self.parameters.tensors();
        for (name, linear) in self.stack.clone().linears_mut() {
            if linear.has_lora() {
                tensors.insert(format!("{name}.weight"), linear.merged_weight()?.detach());
            }
        }
        Ok(tensors)
    }

    /// Embeddings of start token and codes, ids of the joined table in.
    fn embedded(&self, ids: &Tensor) -> Result<Tensor> {
        let mut parts = vec![&self.start];
        parts.extend(&self.tables);
        Ok(ops::embedding(&Tensor::cat(&parts, 0)?, ids)?)
    }

    /// Hidden states `[targets, width]` that a batch's targets are read from, level after level; with
    /// a stream, dropout draws from it.
    fn hidden(&self, batch: &Batch, stream: Option<Stream>) -> Result<Tensor> {
        let read = self.embedded(&batch.ids)?;
        let at: Vec<u32> = batch.targets.iter().flat_map(|targets| &targets.at).copied().collect();
        let at = Tensor::new(&at[..], &Device::Cpu)?;
        match (&self.stack, &batch.decoded) {
            (Stack::Decoder(stack), _) => stack.hidden(&read, &at, stream),
            (Stack::EncoderDecoder(stack), Some(decoded)) => {
                let hidden = stack.hidden(&read, batch, &self.embedded(decoded)?, stream)?;
                Ok(ops::embedding(&hidden.flatten_to(1)?, &at)?)
            }
            (Stack::EncoderDecoder(_), None) => {
                Err(Error::Bug("a batch of histories has nothing to predict".into()))
            }
        }
    }

    /// L_Rec (Eq. 2): mean over all target items of the cross-entropy of their codes, summed over
    /// levels, each among its level's codes or those that the trie allows.
    ///
    /// # Errors
    /// Those of candle; a batch that asks for nothing.
    pub fn loss(&self, batch: &Batch, stream: Option<Stream>) -> Result<Tensor> {
        if batch.targets.iter().all(|targets| targets.at.is_empty()) {
            let expected = "items that differ in their codes";
            return Err(Error::data("a batch without a code to predict", expected));
        }
        let hidden = self.hidden(batch, stream)?;
        let mut losses = Vec::with_capacity(self.tables.len());
        let mut first = 0;
        for (table, targets) in self.tables.iter().zip(&batch.targets) {
            let count = targets.at.len();
            if count > 0 {
                let rows = hidden.narrow(0, first, count)?;
                losses.push((targets.loss(&rows, table)? / batch.items as f64)?);
            }
            first += count;
        }
        Ok(Tensor::stack(&losses, 0)?.sum_all()?)
    }

    /// Reads histories ([`Generator::histories`]): the state that predicts the first code, `[rows,
    /// width]`, and what a beam needs to go on. Meant for a [`Generator::frozen`] copy.
    ///
    /// # Errors
    /// Those of candle.
    pub fn read(&self, batch: &Batch) -> Result<(Tensor, Prefix)> {
        let read = self.embedded(&batch.ids)?;
        match &self.stack {
            Stack::Decoder(stack) => stack.read(&read, batch),
            Stack::EncoderDecoder(stack) => stack.read(&read, batch, &self.start),
        }
    }

    /// Logits `[…, codes]` of a level for hidden states `[…, width]`.
    ///
    /// # Errors
    /// Those of candle.
    pub fn logits(&self, state: &Tensor, level: usize) -> Result<Tensor> {
        Ok(ops::linear(state, &self.tables[level], None)?)
    }

    /// Lets every beam take one code of `level`: `codes` and `parents` (beam of the step before)
    /// are row-major `[rows, beams]`. Returns the new hidden states `[rows, beams, width]`.
    ///
    /// # Errors
    /// Those of candle.
    pub fn step(
        &self,
        prefix: &Prefix,
        cache: &mut BeamCache,
        level: usize,
        codes: &[u32],
        parents: &[u32],
    ) -> Result<Tensor> {
        let rows = prefix.lengths.len();
        let beams = codes.len() / rows.max(1);
        cache.follow(parents, beams)?;
        let ids = Tensor::from_slice(codes, (rows, beams), &Device::Cpu)?;
        let embedded = ops::embedding(&self.tables[level], &ids)?;
        match &self.stack {
            Stack::Decoder(stack) => stack.step(prefix, cache, level, &embedded),
            Stack::EncoderDecoder(stack) => stack.step(prefix, cache, level, &embedded),
        }
    }

    /// Log-probability of every target item, by a plain pass and a softmax over each level's codes
    /// (no trie): the teacher-forced oracle of tests. For batches without a trie.
    ///
    /// # Errors
    /// Those of candle.
    pub fn log_probability(&self, batch: &Batch) -> Result<Vec<f64>> {
        let hidden = self.hidden(batch, None)?;
        let mut sums = vec![0f64; batch.items];
        for (level, targets) in batch.targets.iter().enumerate() {
            let rows = hidden.narrow(0, level * batch.items, batch.items)?;
            let logits = self.logits(&rows, level)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
            for ((sum, logits), &code) in sums.iter_mut().zip(&logits).zip(&targets.codes) {
                *sum += log_softmax(logits)[code as usize];
            }
        }
        Ok(sums)
    }
}

impl Stack {
    fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        match self {
            Self::Decoder(stack) => stack.linears_mut(),
            Self::EncoderDecoder(stack) => stack.linears_mut(),
        }
    }
}

/// Log-probabilities of logits.
pub(crate) fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - most).exp()).sum();
    logits.iter().map(|&x| f64::from(x - most) - sum.ln()).collect()
}

/// Level sizes from the tensors `codes.0`, `codes.1`, ….
fn code_sizes(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<usize>> {
    let mut sizes = Vec::new();
    while let Some(table) = tensors.get(&format!("codes.{}", sizes.len())) {
        sizes.push(table.dims2().map(|(codes, _)| codes)?);
    }
    Ok(sizes)
}
