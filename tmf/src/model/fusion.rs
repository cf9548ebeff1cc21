//! Adapters, cross-modality attention (CMA) and all-modality self-attention (AMSA), §3.2.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use common::nn::{Builder, Embedding, Init, LayerNorm, Linear, Mlp};
use common::ops::{self, Activation};
use common::rng::Stream;
use common::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::attention::MultiHead;

/// The three modalities, in the order of the tokens of Eq. 4.
pub const MODALITIES: [&str; 3] = ["image", "text", "graph"];
/// Index of the image modality.
pub const IMAGE: usize = 0;
/// Index of the text modality.
pub const TEXT: usize = 1;
/// Index of the graph modality.
pub const GRAPH: usize = 2;

/// Which keys CMA attends to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CmaScope {
    /// No cross-modality attention: c_i is the mean of the item's modalities.
    Off,
    /// Eq. 2: the item's graph vector asks its image and text. With only one of the two present
    /// the softmax is 1 and c_i is that one's value projection.
    #[default]
    Item,
    /// Eq. 3: the sequence of texts asks the sequence of images, and the other way round.
    Sequence,
}

/// Sizes and switches of the fusion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FusionOptions {
    /// d, the common width.
    pub width: usize,
    /// Attention heads; divides `width`.
    pub heads: usize,
    /// Scope of CMA.
    pub cma: CmaScope,
    /// Whether AMSA runs; without it h_t sees its own event only.
    pub amsa: bool,
    /// Whether e^b enters Eq. 4.
    pub behaviours: bool,
    /// Whether events attend to earlier ones only. Training on the titles of the history needs it.
    pub causal: bool,
}

impl Default for FusionOptions {
    fn default() -> Self {
        Self {
            width: 64,
            heads: 2,
            cma: CmaScope::Item,
            amsa: true,
            behaviours: true,
            causal: true,
        }
    }
}

/// Frozen embeddings of one modality.
#[derive(Debug, Clone)]
pub struct Modality {
    /// `[items, width]`; rows of absent items are not read.
    pub vectors: Tensor,
    /// Whether the item has this modality.
    pub present: Vec<bool>,
}

/// Frozen embeddings of all items, by [`MODALITIES`]; `None` where no item has the modality.
pub type Modalities = [Option<Modality>; 3];

/// Events of a batch of rows, short ones padded at the end.
#[derive(Debug, Clone, Default)]
pub struct Events {
    /// Rows.
    pub batch: usize,
    /// Events a row, padding included.
    pub length: usize,
    /// Item of each, row by row.
    pub items: Vec<u32>,
    /// Behaviour of each.
    pub behaviours: Vec<u32>,
    /// False for padding.
    pub real: Vec<bool>,
}

/// Modalities whose vectors are used; a curriculum level or a leave-one-out switches some off.
pub type Used = [bool; 3];

/// The trainable fusion.
#[derive(Debug, Clone)]
pub struct Fusion {
    options: FusionOptions,
    adapters: [Option<Mlp>; 3],
    cross: Option<MultiHead>,
    /// text ← image and image ← text, each with its norm.
    mirrored: Option<[(MultiHead, LayerNorm); 2]>,
    amsa: Option<Amsa>,
    behaviour: Option<Embedding>,
    output: Mlp,
    candidate_output: Mlp,
}

#[derive(Debug, Clone)]
struct Amsa {
    kinds: Tensor,
    positions: Embedding,
    attention: MultiHead,
    norm1: LayerNorm,
    feed_forward: Mlp,
    norm2: LayerNorm,
}

/// Adapted vectors of a list of items, with what is present.
#[derive(Debug)]
struct Adapted {
    /// `[n, width]` per modality, zero where absent; `None` where not used.
    vectors: [Option<Tensor>; 3],
    /// 1 where present, per modality.
    present: [Vec<f32>; 3],
    count: usize,
}

impl Adapted {
    fn mask(&self, which: usize) -> Result<Tensor> {
        Ok(Tensor::new(&self.present[which][..], &Device::Cpu)?)
    }

    /// Mean over the present modalities, `[n, width]`.
    fn mean(&self, width: usize) -> Result<Tensor> {
        mean_of(&self.vectors, &self.present, self.count, width)
    }

    /// The rows at `places`.
    fn at(&self, places: &[u32]) -> Result<Self> {
        let ids = Tensor::new(places, &Device::Cpu)?;
        let rows = |vectors: &Option<Tensor>| {
            vectors.as_ref().map(|v| ops::embedding(v, &ids)).transpose()
        };
        let vectors = [rows(&self.vectors[0])?, rows(&self.vectors[1])?, rows(&self.vectors[2])?];
        let present = [0, 1, 2]
            .map(|at| places.iter().map(|&place| self.present[at][place as usize]).collect());
        Ok(Self { vectors, present, count: places.len() })
    }
}

/// Distinct items outside any sequence: their adapted vectors (Eq. 1), c_i with scope item (Eq. 2)
/// and the mean of their modalities. What a pass needs of an item more than once is computed once.
#[derive(Debug)]
pub struct ItemTable {
    adapted: Adapted,
    /// `[n, width]`.
    crossed: Tensor,
    /// `[n, width]`.
    mean: Tensor,
    place: HashMap<u32, u32>,
}

impl ItemTable {
    fn places(&self, items: &[u32]) -> Result<Vec<u32>> {
        let place = |item: &u32| self.place.get(item).copied();
        let places: Option<Vec<u32>> = items.iter().map(place).collect();
        places.ok_or_else(|| Error::Bug("an item is not among those that were adapted".into()))
    }
}

/// Dropout in training; nothing otherwise.
#[derive(Debug, Default)]
pub struct Dropout(Option<(f64, Stream)>);

impl Dropout {
    /// Zeroes values with `probability`, drawn from the stream.
    pub fn new(probability: f64, stream: Stream) -> Self {
        Self((probability > 0.0).then_some((probability, stream)))
    }

    /// Whether it changes anything.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The values that are left, scaled up.
    ///
    /// # Errors
    /// None but bugs.
    pub fn apply(&mut self, x: Tensor) -> Result<Tensor> {
        match &mut self.0 {
            Some((probability, stream)) => Ok(ops::dropout(&x, *probability, stream)?),
            None => Ok(x),
        }
    }
}

fn mean_of(
    vectors: &[Option<Tensor>; 3],
    present: &[Vec<f32>; 3],
    count: usize,
    width: usize,
) -> Result<Tensor> {
    let shares: Vec<f32> =
        (0..count).map(|at| 1.0 / present.iter().map(|p| p[at]).sum::<f32>().max(1.0)).collect();
    let mut sum = Tensor::zeros((count, width), DType::F32, &Device::Cpu)?;
    for (vectors, present) in vectors.iter().zip(present) {
        if let Some(vectors) = vectors {
            let weights: Vec<f32> = present.iter().zip(&shares).map(|(p, s)| p * s).collect();
            let weights = Tensor::from_vec(weights, (count, 1), &Device::Cpu)?;
            sum = (sum + vectors.broadcast_mul(&weights)?)?;
        }
    }
    Ok(sum)
}

fn mlp(b: &mut Builder, name: &str, inputs: usize, inner: usize, outputs: usize) -> Result<Mlp> {
    b.within(name, |b| {
        let up = b.within("up", |b| Linear::new(b, inputs, inner, true))?;
        let down = b.within("down", |b| Linear::new(b, inner, outputs, true))?;
        Ok(Mlp::new(up, down, Activation::Gelu))
    })
}

impl Fusion {
    /// A fusion for `modalities` (widths; `None` = no item has it), `behaviours` behaviours, rows of
    /// at most `history` events and an LM of width `hidden`. Only what the options use gets
    /// parameters.
    ///
    /// # Errors
    /// [`Error::Usage`] when there is no modality, `heads` does not divide `width`, or CMA over the
    /// sequence lacks image or text.
    pub fn new(
        builder: &mut Builder,
        options: &FusionOptions,
        modalities: [Option<usize>; 3],
        behaviours: usize,
        history: usize,
        hidden: usize,
    ) -> Result<Self> {
        let (width, heads) = (options.width, options.heads);
        if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
            return Err(Error::usage(format!(
                "fusion.heads = {heads} does not divide fusion.width = {width}; choose a divisor"
            )));
        }
        if modalities.iter().all(Option::is_none) {
            return Err(Error::usage(
                "no item has an image, a text or graph edges; fusion needs one of them",
            ));
        }
        let both = modalities[IMAGE].is_some() && modalities[TEXT].is_some();
        if options.cma == CmaScope::Sequence && !both {
            return Err(Error::usage(
                "fusion.cma = sequence needs items with images and items with texts; use item",
            ));
        }
        let b = builder;
        let mut adapters = [None, None, None];
        for (at, adapter) in adapters.iter_mut().enumerate() {
            if let Some(inputs) = modalities[at] {
                let name = format!("adapter.{}", MODALITIES[at]);
                *adapter = Some(mlp(b, &name, inputs, width, width)?);
            }
        }
        // Eq. 2 needs a query and a key; anything less is the mean
        let asks = (0..2).any(|at| modalities[at].is_some());
        let cross = (options.cma != CmaScope::Off && asks)
            .then(|| b.within("cma.item", |b| MultiHead::new(b, width, heads)))
            .transpose()?;
        let mirrored = (options.cma == CmaScope::Sequence)
            .then(|| {
                let side = |b: &mut Builder, name: &str| {
                    b.within(format!("cma.{name}"), |b| {
                        let attention = MultiHead::new(b, width, heads)?;
                        Ok((attention, b.within("norm", |b| LayerNorm::new(b, width, 1e-5))?))
                    })
                };
                Ok::<_, Error>([side(b, "text")?, side(b, "image")?])
            })
            .transpose()?;
        let amsa = options
            .amsa
            .then(|| {
                b.within("amsa", |b| {
                    Ok::<_, Error>(Amsa {
                        kinds: b.tensor("kinds", (3, width), Init::Normal(0.02))?,
                        positions: b
                            .within("positions", |b| Embedding::new(b, history, width, 0.02))?,
                        attention: b.within("attention", |b| MultiHead::new(b, width, heads))?,
                        norm1: b.within("norm1", |b| LayerNorm::new(b, width, 1e-5))?,
                        feed_forward: mlp(b, "feed_forward", width, 2 * width, width)?,
                        norm2: b.within("norm2", |b| LayerNorm::new(b, width, 1e-5))?,
                    })
                })
            })
            .transpose()?;
        let behaviour = options
            .behaviours
            .then(|| b.within("behaviours", |b| Embedding::new(b, behaviours, width, 0.02)))
            .transpose()?;
        let output = mlp(b, "output", 2 * width, 2 * width, hidden)?;
        let candidate_output = mlp(b, "candidate_output", 2 * width, 2 * width, hidden)?;
        Ok(Self {
            options: options.clone(),
            adapters,
            cross,
            mirrored,
            amsa,
            behaviour,
            output,
            candidate_output,
        })
    }

    /// Eq. 1: m_i^x = FFN_x(v_i^x) of each item in the list.
    fn adapt(
        &self,
        modalities: &Modalities,
        items: &[u32],
        used: Used,
        dropout: &mut Dropout,
    ) -> Result<Adapted> {
        let mut vectors = [None, None, None];
        let mut present = [const { Vec::new() }; 3];
        let ids = Tensor::new(items, &Device::Cpu)?;
        for at in 0..3 {
            let known = match (&self.adapters[at], &modalities[at], used[at]) {
                (Some(adapter), Some(modality), true) => {
                    let rows = modality.vectors.index_select(&ids, 0)?;
                    vectors[at] = Some(dropout.apply(adapter.forward(&rows)?)?);
                    Some(modality)
                }
                _ => None,
            };
            present[at] = items
                .iter()
                .map(|&item| f32::from(known.is_some_and(|m| m.present[item as usize])))
                .collect();
            if let Some(vectors) = &mut vectors[at] {
                let mask = Tensor::new(&present[at][..], &Device::Cpu)?.unsqueeze(1)?;
                *vectors = vectors.broadcast_mul(&mask)?;
            }
        }
        Ok(Adapted { vectors, present, count: items.len() })
    }

    /// What the events and candidates of a pass need of `items`, each of which is adapted once
    /// however often it is named.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn table(
        &self,
        modalities: &Modalities,
        items: &[u32],
        used: Used,
        dropout: &mut Dropout,
    ) -> Result<ItemTable> {
        let mut place = HashMap::with_capacity(items.len());
        let mut distinct = Vec::with_capacity(items.len());
        for &item in items {
            place.entry(item).or_insert_with(|| {
                distinct.push(item);
                distinct.len() as u32 - 1
            });
        }
        let adapted = self.adapt(modalities, &distinct, used, dropout)?;
        let mean = adapted.mean(self.options.width)?;
        let crossed = self.cross_item(&adapted, &mean)?;
        Ok(ItemTable { adapted, crossed, mean, place })
    }

    /// Eq. 2 for each item: the graph vector (the mean where there is none) asks image and text.
    fn cross_item(&self, adapted: &Adapted, mean: &Tensor) -> Result<Tensor> {
        let Some(cross) = &self.cross else { return Ok(mean.clone()) };
        let keys: Vec<usize> = (0..2).filter(|&at| adapted.vectors[at].is_some()).collect();
        if keys.is_empty() {
            return Ok(mean.clone());
        }
        let query = match &adapted.vectors[GRAPH] {
            Some(graph) => {
                // items without edges ask with their mean
                let absent = adapted.mask(GRAPH)?.affine(-1.0, 1.0)?.unsqueeze(1)?;
                (graph + mean.broadcast_mul(&absent)?)?
            }
            None => mean.clone(),
        };
        let vectors: Vec<&Tensor> =
            keys.iter().filter_map(|&at| adapted.vectors[at].as_ref()).collect();
        let keys_of = Tensor::stack(&vectors, 1)?;
        let masks = keys.iter().map(|&at| adapted.mask(at)).collect::<Result<Vec<_>>>()?;
        let mask = Tensor::stack(&masks, 1)?;
        Ok(cross.forward(&query.unsqueeze(1)?, &keys_of, &mask, false)?.squeeze(1)?)
    }

    /// Eq. 3 over the events of each row: `[batch · length, width]`.
    fn cross_sequence(&self, adapted: &Adapted, events: &Events) -> Result<Tensor> {
        let (Some(sides), Some(text), Some(image)) =
            (&self.mirrored, &adapted.vectors[TEXT], &adapted.vectors[IMAGE])
        else {
            return adapted.mean(self.options.width);
        };
        let shape = (events.batch, events.length, self.options.width);
        let (text, image) = (text.reshape(shape)?, image.reshape(shape)?);
        let seen = |which: usize| {
            let mask = adapted.present[which].iter().zip(&events.real);
            let mask: Vec<f32> = mask.map(|(p, &real)| p * f32::from(real)).collect();
            Tensor::from_vec(mask, (events.batch, events.length), &Device::Cpu)
        };
        let causal = self.options.causal;
        let side = |(attention, norm): &(MultiHead, LayerNorm), q: &Tensor, kv: &Tensor, which| {
            let mixed = attention.forward(q, kv, &seen(which)?, causal)?;
            norm.forward(&(q + mixed)?)
        };
        let both =
            (side(&sides[0], &text, &image, IMAGE)? + side(&sides[1], &image, &text, TEXT)?)?;
        Ok((both * 0.5)?.reshape((events.batch * events.length, self.options.width))?)
    }

    /// X of Eq. 4, `[batch, length · used, width]`, with the mask of its present tokens and the
    /// modalities in it. Event t's tokens stand together, so "causal" means: earlier events, and of
    /// the same event the modalities before.
    fn tokens(
        &self,
        amsa: &Amsa,
        adapted: &Adapted,
        events: &Events,
    ) -> Result<(Tensor, Tensor, Vec<usize>)> {
        let used: Vec<usize> = (0..3).filter(|&at| adapted.vectors[at].is_some()).collect();
        let width = self.options.width;
        let mut base = None;
        if let Some(behaviour) = &self.behaviour {
            base = Some(behaviour.forward(&Tensor::new(&events.behaviours[..], &Device::Cpu)?)?);
        }
        let places: Vec<u32> = (0..events.batch).flat_map(|_| 0..events.length as u32).collect();
        let places = amsa.positions.forward(&Tensor::new(&places[..], &Device::Cpu)?)?;
        let base = match base {
            Some(behaviour) => (behaviour + places)?,
            None => places,
        };
        let mut parts = Vec::new();
        for &at in &used {
            if let Some(vectors) = &adapted.vectors[at] {
                let kind = amsa.kinds.narrow(0, at, 1)?;
                parts.push((&base + vectors)?.broadcast_add(&kind)?);
            }
        }
        let tokens = Tensor::stack(&parts, 1)?;
        let tokens = tokens.reshape((events.batch, events.length * used.len(), width))?;
        let mask: Vec<f32> = (0..adapted.count)
            .flat_map(|event| {
                let real = f32::from(events.real[event]);
                used.iter().map(move |&at| adapted.present[at][event] * real)
            })
            .collect();
        let mask =
            Tensor::from_vec(mask, (events.batch, events.length * used.len()), &Device::Cpu)?;
        Ok((tokens, mask, used))
    }

    /// Eqs. 4 and 5, averaged over the present modalities of each event.
    fn all_modality(
        &self,
        amsa: &Amsa,
        adapted: &Adapted,
        events: &Events,
        dropout: &mut Dropout,
    ) -> Result<Tensor> {
        let (x, mask, used) = self.tokens(amsa, adapted, events)?;
        let mixed = amsa.attention.forward(&x, &x, &mask, self.options.causal)?;
        let x = amsa.norm1.forward(&ops::add(&x, &dropout.apply(mixed)?)?)?;
        let mixed = dropout.apply(amsa.feed_forward.forward(&x)?)?;
        let x = amsa.norm2.forward(&ops::add(&x, &mixed)?)?;
        let width = self.options.width;
        let x = x.reshape((events.batch * events.length, used.len(), width))?;
        let mut vectors = [None, None, None];
        for (place, &at) in used.iter().enumerate() {
            vectors[at] = Some(x.narrow(1, place, 1)?.squeeze(1)?);
        }
        mean_of(&vectors, &adapted.present, adapted.count, width)
    }

    /// Eq. 6: h_t of every event, padding included, `[batch · length, hidden]`.
    ///
    /// # Errors
    /// Shapes that do not fit; an item that `table` lacks.
    pub fn events(
        &self,
        table: &ItemTable,
        events: &Events,
        dropout: &mut Dropout,
    ) -> Result<Tensor> {
        let places = table.places(&events.items)?;
        let adapted = table.adapted.at(&places)?;
        let rows = |of: &Tensor| ops::embedding(of, &Tensor::new(&places[..], &Device::Cpu)?);
        let crossed = match self.mirrored {
            Some(_) => self.cross_sequence(&adapted, events)?,
            None => rows(&table.crossed)?,
        };
        let any = adapted.vectors.iter().any(Option::is_some);
        let context = match &self.amsa {
            Some(amsa) if any => self.all_modality(amsa, &adapted, events, dropout)?,
            _ => {
                let mean = rows(&table.mean)?;
                match &self.behaviour {
                    Some(behaviour) => {
                        let ids = Tensor::new(&events.behaviours[..], &Device::Cpu)?;
                        (mean + behaviour.forward(&ids)?)?
                    }
                    None => mean,
                }
            }
        };
        self.output.forward(&Tensor::cat(&[&crossed, &context], 1)?)
    }

    /// The vectors of candidates: CMA with scope item and the mean of the item's modalities, no
    /// sequence. `[items, hidden]`.
    ///
    /// # Errors
    /// As [`Fusion::events`].
    pub fn candidates(&self, table: &ItemTable, items: &[u32]) -> Result<Tensor> {
        let places = Tensor::new(&table.places(items)?[..], &Device::Cpu)?;
        let both = Tensor::cat(&[&table.crossed, &table.mean], 1)?;
        self.candidate_output.forward(&ops::embedding(&both, &places)?)
    }

    /// How much the last event of each row looks at each modality: AMSA's attention weights of its
    /// tokens, averaged over heads and tokens and summed per modality; rows sum to 1. `None`
    /// without AMSA.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn modality_attention(
        &self,
        modalities: &Modalities,
        events: &Events,
    ) -> Result<Option<Vec<[f64; 3]>>> {
        let Some(amsa) = &self.amsa else { return Ok(None) };
        let dropout = &mut Dropout::default();
        let adapted = self.adapt(modalities, &events.items, [true; 3], dropout)?;
        let (x, mask, used) = self.tokens(amsa, &adapted, events)?;
        let weights = amsa.attention.weights(&x, &x, &mask, self.options.causal)?;
        let weights = weights.to_vec3::<f32>()?;
        let mut shares = Vec::with_capacity(events.batch);
        for (row, weights) in weights.iter().enumerate() {
            let real = &events.real[row * events.length..][..events.length];
            let last = real.iter().rposition(|&real| real).unwrap_or(0);
            let mut share = [0f64; 3];
            for query in &weights[last * used.len()..][..used.len()] {
                for (key, &weight) in query.iter().enumerate() {
                    share[used[key % used.len()]] += f64::from(weight);
                }
            }
            let total: f64 = share.iter().sum();
            if total > 0.0 {
                share.iter_mut().for_each(|s| *s /= total);
            }
            shares.push(share);
        }
        Ok(Some(shares))
    }
}

/// Groups of parameters beside the LM's that a pass reaches or leaves out as a whole.
pub const GROUPS: [&str; 9] = [
    "items.",
    "adapter.image.",
    "adapter.text.",
    "adapter.graph.",
    "cma.item.",
    "cma.text.",
    "cma.image.",
    "candidate_output.",
    "",
];

/// The group of a parameter: the first of [`GROUPS`] that its name begins with.
pub fn group_of(name: &str) -> usize {
    GROUPS.iter().position(|prefix| name.starts_with(prefix)).unwrap_or(GROUPS.len() - 1)
}

/// Whether a pass that uses the modalities `used`, and needs candidates' vectors or not, reaches a
/// group of the fusion.
pub fn reaches(group: usize, used: Used, candidates: bool, scope: CmaScope) -> bool {
    match GROUPS[group] {
        "items." => false,
        "adapter.image." => used[IMAGE],
        "adapter.text." => used[TEXT],
        "adapter.graph." => used[GRAPH],
        "cma.item." => (used[IMAGE] || used[TEXT]) && (candidates || scope == CmaScope::Item),
        "cma.text." | "cma.image." => used[IMAGE] && used[TEXT],
        "candidate_output." => candidates,
        _ => true,
    }
}

/// Row of the LM's lookup table for each token: placeholders point behind the vocabulary, at the
/// fused vectors in order. The other rows are the embeddings themselves, bit for bit.
///
/// # Errors
/// Shapes that do not fit.
pub fn overwrite(embedding: &Embedding, fused: &Tensor, lookup: &Tensor) -> Result<Tensor> {
    let table = Tensor::cat(&[embedding.weight(), fused], 0)?;
    Ok(ops::embedding(&table, lookup)?)
}
