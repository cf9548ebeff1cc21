//! The model: a Llama-shaped LM whose placeholder tokens carry fused vectors.

pub mod attention;
pub mod fusion;

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use common::Result;
use common::lm::{Lm, LmConfig, Pass};
use common::nn::{Builder, Parameters};
use common::rng::Seed;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use fusion::{
    CmaScope, Events, Fusion, FusionOptions, GRAPH, IMAGE, MODALITIES, Modalities, Modality, TEXT,
    Used, overwrite,
};

/// Sizes of the LM that is trained from scratch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LmOptions {
    /// d_L, the hidden width.
    pub hidden: usize,
    /// Width of the feed-forward layers.
    pub inner: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Standard deviation of new weights times the root of the width. Llama's fixed 0.02 is made for
    /// widths in the thousands; at 64 it leaves attention without a gradient for hundreds of steps.
    pub initial: f64,
}

impl Default for LmOptions {
    fn default() -> Self {
        Self { hidden: 64, inner: 128, layers: 2, heads: 2, initial: 0.7 }
    }
}

impl LmOptions {
    /// The Llama configuration for a vocabulary and a longest row.
    pub fn config(&self, vocabulary: usize, positions: usize) -> LmConfig {
        let config = LmConfig::llama(vocabulary, self.hidden, self.layers, self.heads, positions);
        let initializer_range = self.initial / (self.hidden as f64).sqrt();
        LmConfig { intermediate_size: self.inner, initializer_range, ..config }
    }
}

/// Tokens of a batch with what stands at their placeholders.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `[rows, tokens]`.
    pub ids: Tensor,
    /// `[rows, tokens]`, −100 = no target.
    pub labels: Tensor,
    /// Targets in all rows.
    pub targets: usize,
    /// Rows of the lookup table, `[rows, tokens]`: the ids, or for placeholders the vocabulary's
    /// size plus the position among the fused vectors.
    pub lookup: Tensor,
    /// Events at `[ItemEmb]`.
    pub events: Events,
    /// Items at `[CansEmb]`.
    pub candidates: Vec<u32>,
}

/// LM and fusion.
#[derive(Debug, Clone)]
pub struct Tmf {
    /// The language model.
    pub lm: Lm,
    /// The fusion; `None` = a text-only model.
    pub fusion: Option<Fusion>,
    /// The fusion's parameters.
    pub fusion_parameters: Parameters,
}

impl Tmf {
    /// An LM with a fusion of new parameters; `fusion` is options, widths of the modalities,
    /// behaviours and longest history.
    ///
    /// # Errors
    /// As [`Fusion::new`].
    pub fn new(
        lm: Lm,
        fusion: Option<(&FusionOptions, [Option<usize>; 3], usize, usize)>,
        seed: Seed,
    ) -> Result<Self> {
        let mut builder = Builder::seeded(seed);
        let hidden = lm.config().hidden_size;
        let fusion = fusion
            .map(|(options, widths, behaviours, history)| {
                Fusion::new(&mut builder, options, widths, behaviours, history, hidden)
            })
            .transpose()?;
        Ok(Self { lm, fusion, fusion_parameters: builder.finish() })
    }

    /// Copies of all tensors by name: `lm.` and `fusion.` before the parts' own names.
    ///
    /// # Errors
    /// None but bugs.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let parts = [("lm", self.lm.parameters()), ("fusion", &self.fusion_parameters)];
        let all = parts.into_iter().flat_map(|(part, parameters)| {
            let named = parameters.tensors().into_iter();
            named.map(move |(name, tensor)| Ok((format!("{part}.{name}"), tensor.copy()?)))
        });
        all.collect()
    }

    /// Overwrites all parameters with those of [`Tmf::tensors`].
    ///
    /// # Errors
    /// An absent name or another shape.
    pub fn load(&self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let part = |prefix: &str| {
            let named = tensors.iter();
            named
                .filter_map(|(n, t)| Some((n.strip_prefix(prefix)?.to_owned(), t.clone())))
                .collect()
        };
        self.lm.parameters().load(&part("lm."))?;
        self.fusion_parameters.load(&part("fusion."))
    }

    /// What the first layer reads: token embeddings, overwritten at the placeholders (§3.3).
    /// `None` where the batch has no placeholder to overwrite.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn inputs(
        &self,
        batch: &Batch,
        modalities: &Modalities,
        used: Used,
    ) -> Result<Option<Tensor>> {
        let Some(fusion) = &self.fusion else { return Ok(None) };
        let mut fused = Vec::new();
        if !batch.events.items.is_empty() {
            fused.push(fusion.events(modalities, &batch.events, used)?);
        }
        if !batch.candidates.is_empty() {
            fused.push(fusion.candidates(modalities, &batch.candidates, used)?);
        }
        if fused.is_empty() {
            return Ok(None);
        }
        let fused = Tensor::cat(&fused, 0)?;
        Ok(Some(overwrite(self.lm.embedding(), &fused, &batch.lookup)?))
    }

    /// Mean cross-entropy of the targets (§3.4: answer tokens only, or also the history's titles).
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn loss(&self, batch: &Batch, modalities: &Modalities, used: Used) -> Result<Tensor> {
        let inputs = self.inputs(batch, modalities, used)?;
        let pass = Pass { inputs: inputs.as_ref(), ..Pass::default() };
        self.lm.loss(&batch.ids, &batch.labels, pass)
    }
}

impl Batch {
    /// Pads rows to one length. Each row is (ids, labels, event positions with item and behaviour,
    /// candidate positions with item). `text_only` puts that token at the placeholders instead of
    /// vectors.
    ///
    /// # Errors
    /// None but bugs.
    pub fn new(
        rows: &[RowParts<'_>],
        pad: u32,
        vocabulary: usize,
        text_only: Option<u32>,
    ) -> Result<Self> {
        let count = rows.len();
        let tokens = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
        let mut ids = vec![pad; count * tokens];
        let mut labels = vec![-100i64; count * tokens];
        for (at, row) in rows.iter().enumerate() {
            ids[at * tokens..][..row.ids.len()].copy_from_slice(row.ids);
            labels[at * tokens..][..row.labels.len()].copy_from_slice(row.labels);
        }
        let mut lookup = ids.clone();
        let mut events = Events::default();
        let mut candidates = Vec::new();
        match text_only {
            Some(token) => {
                for (at, row) in rows.iter().enumerate() {
                    let places = row.events.iter().map(|event| event.0);
                    for place in places.chain(row.candidates.iter().map(|c| c.0)) {
                        ids[at * tokens + place] = token;
                        lookup[at * tokens + place] = token;
                    }
                }
            }
            None => {
                let length = rows.iter().map(|row| row.events.len()).max().unwrap_or(0);
                events = Events { batch: count, length, ..Events::default() };
                for (at, row) in rows.iter().enumerate() {
                    for slot in 0..length {
                        let event = row.events.get(slot);
                        let (place, item, behaviour) = event.copied().unwrap_or_default();
                        events.items.push(item);
                        events.behaviours.push(behaviour);
                        events.real.push(event.is_some());
                        if event.is_some() {
                            lookup[at * tokens + place] = (vocabulary + at * length + slot) as u32;
                        }
                    }
                }
                for (at, row) in rows.iter().enumerate() {
                    for &(place, item) in row.candidates {
                        lookup[at * tokens + place] =
                            (vocabulary + count * length + candidates.len()) as u32;
                        candidates.push(item);
                    }
                }
            }
        }
        // the first token of a row is predicted by nothing
        let targets = labels.iter().filter(|&&label| label >= 0).count();
        let tensor = |values: Vec<u32>| Tensor::from_vec(values, (count, tokens), &Device::Cpu);
        Ok(Self {
            ids: tensor(ids)?,
            labels: Tensor::from_vec(labels, (count, tokens), &Device::Cpu)?,
            targets,
            lookup: tensor(lookup)?,
            events,
            candidates,
        })
    }
}

/// A row as [`Batch::new`] takes it.
#[derive(Debug, Clone, Copy)]
pub struct RowParts<'a> {
    /// Token ids.
    pub ids: &'a [u32],
    /// Targets.
    pub labels: &'a [i64],
    /// Position, item and behaviour of the events.
    pub events: &'a [(usize, u32, u32)],
    /// Position and item of the candidates.
    pub candidates: &'a [(usize, u32)],
}
