//! The model: a Llama-shaped LM whose placeholder tokens carry fused vectors.
//!
//! With answers by item token, the vector of an item is the same sum on both sides of the LM: what
//! the fusion makes of its modalities plus the own embedding of its token. At the output it is the
//! row of the output layer that the hidden state is multiplied with (ours; the paper only says that
//! item tokens are added to the vocabulary).

pub mod attention;
pub mod fusion;

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use common::lm::{Hooks, Lm, LmConfig, Pass, Writer};
use common::nn::{Builder, Embedding, Parameters};
use common::rng::Seed;
use common::{Error, Result, ops};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use fusion::{
    CmaScope, Dropout, Events, Fusion, FusionOptions, GRAPH, IMAGE, ItemTable, MODALITIES,
    Modalities, Modality, TEXT, Used, overwrite,
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
    /// Whether items have tokens with own embeddings; for answers by item token.
    pub item_tokens: bool,
    /// Standard deviation of new weights times the root of the width. Llama's fixed 0.02 is made for
    /// widths in the thousands; at 64 it leaves attention without a gradient for hundreds of steps.
    pub initial: f64,
}

impl Default for LmOptions {
    fn default() -> Self {
        Self { hidden: 64, inner: 128, layers: 2, heads: 2, item_tokens: true, initial: 0.7 }
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
    /// Targets in all rows: asked items, or else tokens.
    pub targets: usize,
    /// Rows of the lookup table, `[rows, tokens]`: the ids, or for placeholders the vocabulary's
    /// size plus the position among the fused vectors.
    pub lookup: Tensor,
    /// Events at `[ItemEmb]`.
    pub events: Events,
    /// Items at `[CansEmb]`.
    pub candidates: Vec<u32>,
    /// Row-major positions whose outputs are to be items.
    pub asked: Vec<u32>,
    /// Those items.
    pub answers: Vec<u32>,
}

/// What a pass may look at.
#[derive(Debug, Clone)]
pub struct View {
    /// Modalities.
    pub used: Used,
    /// 1 for items whose token's own embedding is added, `[items, 1]`; `None` = for none.
    pub tokens: Option<Tensor>,
}

/// Items among which an answer is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The items.
    pub items: Vec<u32>,
    place: Vec<Option<u32>>,
}

impl Pool {
    /// `items` of a catalogue of `count`.
    pub fn new(items: Vec<u32>, count: usize) -> Self {
        let mut place = vec![None; count];
        (0..).zip(&items).for_each(|(at, &item)| place[item as usize] = Some(at));
        Self { items, place }
    }
}

/// The tokens of the items.
#[derive(Debug, Clone)]
pub struct ItemTokens {
    embedding: Embedding,
    /// Items that occur in training; the embedding of the others is never added.
    pub known: Vec<bool>,
}

/// Parts of a new [`Tmf`] beside the LM.
#[derive(Debug, Clone, Copy, Default)]
pub struct Parts<'a> {
    /// Options of the fusion and widths of the modalities; `None` = no fusion.
    pub fusion: Option<(&'a FusionOptions, [Option<usize>; 3])>,
    /// Behaviours.
    pub behaviours: usize,
    /// Longest history.
    pub history: usize,
    /// Items that occur in training, for a model with item tokens.
    pub known: Option<&'a [bool]>,
}

/// LM and fusion.
#[derive(Debug, Clone)]
pub struct Tmf {
    /// The language model.
    pub lm: Lm,
    /// The fusion; `None` = a model of tokens only.
    pub fusion: Option<Fusion>,
    /// The item tokens; `None` = items are nothing but their modalities and titles.
    pub items: Option<ItemTokens>,
    /// The parameters of both.
    pub added: Parameters,
}

impl Tmf {
    /// An LM with new parameters for the other parts.
    ///
    /// # Errors
    /// As [`Fusion::new`].
    pub fn new(lm: Lm, parts: Parts<'_>, seed: Seed) -> Result<Self> {
        let mut builder = Builder::seeded(seed);
        let (hidden, sd) = (lm.config().hidden_size, lm.config().initializer_range);
        let items = parts.known.map(|known| {
            let embedding =
                builder.within("items", |b| Embedding::new(b, known.len(), hidden, sd))?;
            Ok::<_, Error>(ItemTokens { embedding, known: known.to_vec() })
        });
        let items = items.transpose()?;
        let fusion = parts.fusion.map(|(options, widths)| {
            let (behaviours, history) = (parts.behaviours, parts.history);
            Fusion::new(&mut builder, options, widths, behaviours, history, hidden)
        });
        Ok(Self { lm, fusion: fusion.transpose()?, items, added: builder.finish() })
    }

    /// Copies of all tensors by name: `lm.` and `added.` before the parts' own names.
    ///
    /// # Errors
    /// None but bugs.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let parts = [("lm", self.lm.parameters()), ("added", &self.added)];
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
        self.load_tokens(tensors)?;
        self.added.load(&part(tensors, "added."))
    }

    /// Overwrites what a warm-up trains: the LM and, where there are any, the item tokens.
    ///
    /// # Errors
    /// An absent name or another shape.
    pub fn load_tokens(&self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        self.lm.parameters().load(&part(tensors, "lm."))?;
        let items = self.added.filter(|name| name.starts_with("items."));
        items.load(&part(tensors, "added."))
    }

    /// A look at these modalities and at the tokens of the items that occur in training.
    ///
    /// # Errors
    /// None but bugs.
    pub fn view(&self, used: Used) -> Result<View> {
        let tokens = self.items.as_ref().map(|items| mask(&items.known)).transpose()?;
        Ok(View { used, tokens })
    }

    /// Own embeddings of the items' tokens, `[items, hidden]`, zero where the view hides them.
    fn own(&self, view: &View) -> Result<Option<Tensor>> {
        match (&self.items, &view.tokens) {
            (Some(items), Some(mask)) => Ok(Some(items.embedding.weight().broadcast_mul(mask)?)),
            _ => Ok(None),
        }
    }

    /// What a look at `items` gives of them before any sequence; each is adapted once however often
    /// it is named.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn items(
        &self,
        modalities: &Modalities,
        items: &[u32],
        view: &View,
        dropout: &mut Dropout,
    ) -> Result<Items<'_>> {
        let fusion = self.fusion.as_ref().filter(|_| view.used != [false; 3]);
        let table = fusion
            .map(|fusion| {
                Ok::<_, Error>((fusion, fusion.table(modalities, items, view.used, dropout)?))
            })
            .transpose()?;
        Ok(Items { table, own: self.own(view)? })
    }

    /// What the first layer reads: token embeddings, overwritten at the placeholders (§3.3).
    /// `None` where the batch has no placeholder to overwrite.
    ///
    /// # Errors
    /// Shapes that do not fit; an item of the batch that `items` lacks.
    pub fn inputs(
        &self,
        batch: &Batch,
        items: &Items<'_>,
        dropout: &mut Dropout,
    ) -> Result<Option<Tensor>> {
        let mut vectors = Vec::new();
        if !batch.events.items.is_empty() {
            let fused =
                items.table.as_ref().map(|(f, table)| f.events(table, &batch.events, dropout));
            vectors.extend(items.with_own(fused.transpose()?, &batch.events.items)?);
        }
        if !batch.candidates.is_empty() {
            vectors.extend(items.vectors(&batch.candidates)?);
        }
        if vectors.is_empty() {
            return Ok(None);
        }
        let vectors = Tensor::cat(&vectors, 0)?;
        Ok(Some(overwrite(self.lm.embedding(), &vectors, &batch.lookup)?))
    }

    /// Mean cross-entropy of the targets (§3.4: the answer only, or also the history's items). For
    /// answers by item token, the softmax is over `pool`.
    ///
    /// # Errors
    /// Shapes that do not fit; an answer outside the pool.
    pub fn loss(
        &self,
        batch: &Batch,
        modalities: &Modalities,
        view: &View,
        pool: &Pool,
        noise: &mut Noise,
    ) -> Result<Tensor> {
        let by_item = !batch.asked.is_empty();
        let mut named: Vec<u32> = if by_item { pool.items.clone() } else { Vec::new() };
        named.extend(&batch.events.items);
        named.extend(&batch.candidates);
        let items = self.items(modalities, &named, view, &mut noise.fusion)?;
        let inputs = self.inputs(batch, &items, &mut noise.fusion)?;
        if !by_item && !noise.lm.is_on() {
            let pass = Pass { inputs: inputs.as_ref(), ..Pass::default() };
            return self.lm.loss(&batch.ids, &batch.labels, pass);
        }
        if !by_item {
            let hidden = self.noisy(batch, inputs, None, &mut noise.lm)?;
            let kept = hidden.dim(1)? - 1;
            let rows = hidden.narrow(1, 0, kept)?.flatten_to(1)?;
            let labels = batch.labels.narrow(1, 1, kept)?.flatten_all()?;
            return Ok(ops::linear_cross_entropy(&rows, self.lm.output_weight(), None, &labels)?);
        }
        let outside = || Error::Bug("an answer is not among the items that are learnt".into());
        let targets: Option<Vec<u32>> =
            batch.answers.iter().map(|&item| pool.place[item as usize]).collect();
        let targets = Tensor::new(&targets.ok_or_else(outside)?[..], &Device::Cpu)?;
        let asked = Tensor::new(&batch.asked[..], &Device::Cpu)?;
        let rows = self.noisy(batch, inputs, Some(&asked), &mut noise.lm)?;
        let table = items.vectors(&pool.items)?.ok_or_else(|| Error::usage(NOTHING))?;
        Ok(ops::linear_cross_entropy(&rows, &table, None, &targets)?)
    }

    /// The LM's last hidden states, or some rows of them, with dropout of its input and of what each
    /// head and feed-forward layer adds.
    fn noisy(
        &self,
        batch: &Batch,
        inputs: Option<Tensor>,
        rows: Option<&Tensor>,
        dropout: &mut Dropout,
    ) -> Result<Tensor> {
        if dropout.is_on() {
            return self.lm.rows_hooked(&batch.ids, rows, &mut Noisy { inputs, dropout });
        }
        self.lm.hidden(&batch.ids, Pass { inputs: inputs.as_ref(), rows, ..Pass::default() })
    }

    /// Scores of all items after the asked positions of a batch, `[asked, items]`; `vectors` are
    /// those of [`Items::vectors`].
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn item_logits(
        &self,
        batch: &Batch,
        items: &Items<'_>,
        vectors: &Tensor,
    ) -> Result<Tensor> {
        let inputs = self.inputs(batch, items, &mut Dropout::default())?;
        let asked = Tensor::new(&batch.asked[..], &Device::Cpu)?;
        let pass = Pass { inputs: inputs.as_ref(), rows: Some(&asked), ..Pass::default() };
        let rows = self.lm.hidden(&batch.ids, pass)?.detach();
        Ok(ops::linear(&rows, vectors, None)?)
    }
}

/// Dropout of a training step.
#[derive(Debug, Default)]
pub struct Noise {
    /// Of the LM's input and of what its layers add.
    pub lm: Dropout,
    /// Of adapted vectors and of what AMSA adds.
    pub fusion: Dropout,
}

/// Puts `inputs` in place of the token embeddings and lets dropout fall on everything that is
/// written to the residual stream.
struct Noisy<'a> {
    inputs: Option<Tensor>,
    dropout: &'a mut Dropout,
}

impl Hooks for Noisy<'_> {
    fn reads_heads(&self) -> bool {
        false
    }

    fn write(&mut self, writer: Writer, output: Tensor) -> Result<Tensor> {
        let overwritten = self.inputs.take().filter(|_| writer == Writer::Input);
        self.dropout.apply(overwritten.unwrap_or(output))
    }
}

/// Items for one look at the model, see [`Tmf::items`].
#[derive(Debug)]
pub struct Items<'a> {
    table: Option<(&'a Fusion, ItemTable)>,
    own: Option<Tensor>,
}

impl Items<'_> {
    fn with_own(&self, fused: Option<Tensor>, items: &[u32]) -> Result<Option<Tensor>> {
        let own = self.own.as_ref();
        let own = own.map(|own| ops::embedding(own, &Tensor::new(items, &Device::Cpu)?));
        Ok(match (fused, own.transpose()?) {
            (Some(fused), Some(own)) => Some((fused + own)?),
            (fused, own) => fused.or(own),
        })
    }

    /// Vectors of `items` outside any sequence, `[items, hidden]`: at `[CansEmb]`, and the rows of
    /// the output layer that answers by item token are scored with. `None` where the view shows
    /// nothing.
    ///
    /// # Errors
    /// An item that was not named.
    pub fn vectors(&self, items: &[u32]) -> Result<Option<Tensor>> {
        let fused = self.table.as_ref().map(|(fusion, table)| fusion.candidates(table, items));
        self.with_own(fused.transpose()?, items)
    }
}

/// Why items without modality and token can't be answers.
const NOTHING: &str = "answers by item token need item tokens or a modality; set lm.item_tokens = \
                       true or switch a modality on";

/// `[n, 1]`, 1 where true.
pub fn mask(shown: &[bool]) -> Result<Tensor> {
    let values: Vec<f32> = shown.iter().map(|&shown| f32::from(u8::from(shown))).collect();
    Ok(Tensor::from_vec(values, (shown.len(), 1), &Device::Cpu)?)
}

/// The tensors whose names begin with `prefix`, without it.
fn part(tensors: &BTreeMap<String, Tensor>, prefix: &str) -> BTreeMap<String, Tensor> {
    let named = tensors.iter();
    named.filter_map(|(n, t)| Some((n.strip_prefix(prefix)?.to_owned(), t.clone()))).collect()
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
        let (mut asked, mut answers) = (Vec::new(), Vec::new());
        for (at, row) in rows.iter().enumerate() {
            ids[at * tokens..][..row.ids.len()].copy_from_slice(row.ids);
            labels[at * tokens..][..row.labels.len()].copy_from_slice(row.labels);
            asked.extend(row.asked.iter().map(|ask| (at * tokens + ask.0) as u32));
            answers.extend(row.asked.iter().map(|ask| ask.1));
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
        let targets = match asked.len() {
            0 => labels.iter().filter(|&&label| label >= 0).count(),
            items => items,
        };
        let tensor = |values: Vec<u32>| Tensor::from_vec(values, (count, tokens), &Device::Cpu);
        Ok(Self {
            ids: tensor(ids)?,
            labels: Tensor::from_vec(labels, (count, tokens), &Device::Cpu)?,
            targets,
            lookup: tensor(lookup)?,
            events,
            candidates,
            asked,
            answers,
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
    /// Positions whose outputs are to be items, and those.
    pub asked: &'a [(usize, u32)],
}
