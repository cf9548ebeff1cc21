//! From a data set to a trained model: vocabulary, frozen embeddings, warm-up, fusion. Trained
//! pieces are kept by the hash of all they depend on.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use common::checkpoint::Trained;
use common::lm::Lm;
use common::optim::Workers;
use common::rng::Seed;
use common::{Error, Result};
use ndarray::Array2;
use serde::Serialize;
use serde_json::{Value, json};

use crate::bundle::{self, Piece};
use crate::config::Config;
use crate::data::{Dataset, Step};
use crate::encoders::graph::{GraphEmbeddings, light_gcn, standardise};
use crate::encoders::mbht::Mbht;
use crate::model::{Modalities, Modality, Parts, Pool, Tmf};
use crate::prompt::{Answer, Prompter};
use crate::tokens::Vocabulary;
use crate::train::{Material, Record, stage};

/// Raise when a change of the code changes what training gives.
const CODE: u32 = 4;

/// A data set ready for training: what is trained on, prompts and frozen embeddings.
#[derive(Debug)]
pub struct Prepared {
    /// The data.
    pub data: Dataset,
    /// Training part of the sequences.
    pub train: Vec<Vec<Step>>,
    /// Items that negatives are drawn from in training, and that answers are looked for among.
    pub pool: Pool,
    /// Items that occur in the training part.
    pub known: Vec<bool>,
    /// Prompts.
    pub prompter: Prompter,
    /// Frozen embeddings of all modalities that items have.
    pub modalities: Modalities,
    /// What the kept pieces depend on beside their options.
    pub fingerprint: String,
    /// The same without the embeddings, whose last bits differ between machines.
    pub sources: String,
}

/// Embeddings of one modality as an encoder gives them: vectors and which items have one.
pub type Encoded = (Array2<f32>, Vec<bool>);

impl Prepared {
    /// Puts a data set and its encoded modalities together. `train` are the events that may be
    /// learnt from.
    ///
    /// # Errors
    /// None but bugs.
    pub fn new(
        data: Dataset,
        train: Vec<Vec<Step>>,
        pool: Vec<u32>,
        encoded: [Option<Encoded>; 3],
        config: &Config,
    ) -> Result<Self> {
        let texts = Prompter::texts(&data, &train);
        let vocabulary = Vocabulary::train(&texts, config.vocabulary.merges, &data.behaviours)?;
        let mut hashed = format!("{train:?}{pool:?}{:?}", data.target);
        hashed.push_str(vocabulary.json());
        let sources = common::run::hash8(hashed.as_bytes());
        let mut modalities = [None, None, None];
        for (at, encoded) in encoded.into_iter().enumerate() {
            modalities[at] = encoded.map(|e| modality(&e, &mut hashed)).transpose()?.flatten();
        }
        let prompter = Prompter::new(vocabulary, &data, config.prompt.clone())?;
        let mut known = vec![false; data.items.len()];
        train.iter().flatten().for_each(|step| known[step.item as usize] = true);
        let pool = Pool::new(pool, data.items.len());
        let fingerprint = common::run::hash8(hashed.as_bytes());
        Ok(Self { data, train, pool, known, prompter, modalities, fingerprint, sources })
    }

    /// The same for a config with other prompts; the vocabulary and what is frozen stay.
    ///
    /// # Errors
    /// None but bugs.
    pub fn prompting(&self, config: &Config) -> Result<Self> {
        let json = self.prompter.vocabulary.json().to_owned();
        let name = Path::new("the trained tokenizer");
        let vocabulary = Vocabulary::from_json(json, &self.data.behaviours, name)?;
        Ok(Self {
            data: self.data.clone(),
            train: self.train.clone(),
            pool: self.pool.clone(),
            known: self.known.clone(),
            prompter: Prompter::new(vocabulary, &self.data, config.prompt.clone())?,
            modalities: self.modalities.clone(),
            fingerprint: self.fingerprint.clone(),
            sources: self.sources.clone(),
        })
    }

    fn material<'a>(&'a self, modalities: &'a Modalities, config: &Config) -> Material<'a> {
        Material {
            prompter: &self.prompter,
            sequences: &self.train,
            pool: &self.pool,
            candidates: config.rank.candidates,
            modalities,
            scope: config.fusion.cma,
        }
    }

    /// The modalities that the config leaves on.
    pub fn switched(&self, config: &Config) -> Modalities {
        let on = config.modalities.used();
        [0, 1, 2].map(|at| self.modalities[at].clone().filter(|_| on[at]))
    }
}

fn modality((vectors, present): &Encoded, hashed: &mut String) -> Result<Option<Modality>> {
    if !present.iter().any(|&p| p) {
        return Ok(None);
    }
    let vectors = standardise(vectors, present);
    let (rows, width) = vectors.dim();
    let values: Vec<f32> = vectors.into_iter().collect();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    hashed.push_str(&common::run::hash8(&bytes));
    let vectors = Tensor::from_vec(values, (rows, width), &Device::Cpu)?;
    Ok(Some(Modality { vectors, present: present.clone() }))
}

/// A trained model with its training curves.
#[derive(Debug)]
pub struct Fitted {
    /// The model.
    pub model: Tmf,
    /// Losses of the warm-up.
    pub warm_up: Vec<Record>,
    /// Losses of the fusion stage.
    pub fusion: Vec<Record>,
}

fn key(prepared: &Prepared, part: &str, options: impl Serialize, seed: Seed) -> Value {
    json!({
        "code": CODE, "part": part, "data": prepared.fingerprint, "seed": seed,
        "options": serde_json::to_value(options).unwrap_or_default(),
    })
}

/// What a warm-up depends on beside data and seed.
fn warm_options(prepared: &Prepared, config: &Config) -> Value {
    let train = &config.train;
    json!({
        "lm": config.lm, "prompt": prepared.prompter.options, "stage": train.warm_up,
        "rank": config.rank.candidates,
        "rest": [json!(train.learn_history), json!(train.dropout), json!(train.weight_decay),
            json!(train.clip), json!(train.slices)],
    })
}

/// What a fusion depends on beside data and seed.
fn fusion_options(prepared: &Prepared, config: &Config) -> Value {
    let train = &config.train;
    json!({
        "warm": warm_options(prepared, config), "stage": train.fusion,
        "curriculum": train.curriculum, "rest": [train.hidden_tokens, train.fusion_dropout],
        "fusion": config.fusion, "modalities": config.modalities,
    })
}

/// Name of the model that [`fit`] gives among those that come with the crate.
pub fn bundled_id(prepared: &Prepared, config: &Config, base: Seed, seed: Seed) -> String {
    let key = json!({
        "code": CODE, "data": prepared.sources, "widths": widths(&prepared.switched(config)),
        "encoders": [json!(config.graph_encoder), json!(config.graph), json!(config.mbht)],
        "options": fusion_options(prepared, config), "base": base, "seed": seed,
    });
    format!("fusion-{}", common::run::hash8(key.to_string().as_bytes()))
}

/// Trains a model, or takes what was trained before with the same options, data and seed, in the
/// cache or in the crate's files. The warm-up is drawn from `base`, so that models with different
/// `seed`s and switches share it.
///
/// # Errors
/// Those of training.
pub fn fit(
    prepared: &Prepared,
    config: &Config,
    base: Seed,
    seed: Seed,
    kept: &Trained,
    workers: &Workers,
) -> Result<Fitted> {
    let vocabulary = prepared.prompter.vocabulary.size();
    let lm_config = config.lm.config(vocabulary, config.positions());
    let train = &config.train;
    let by_item = config.prompt.answer == Answer::Item;
    let tokens = Parts {
        known: (by_item && config.lm.item_tokens).then_some(&prepared.known[..]),
        ..Parts::default()
    };
    let modalities = prepared.switched(config);
    let widths = widths(&modalities);
    let parts = Parts {
        fusion: widths.iter().any(Option::is_some).then_some((&config.fusion, widths)),
        behaviours: prepared.data.behaviours.len(),
        history: config.prompt.history,
        ..tokens
    };
    let model = Tmf::new(Lm::new(&lm_config, base)?, parts, seed)?;
    if config.bundled
        && let Some((tensors, (warm_up, fusion))) =
            bundle::find(&bundled_id(prepared, config, base, seed))?
    {
        model.load(&tensors)?;
        return Ok(Fitted { model, warm_up, fusion });
    }
    let none: Modalities = [None, None, None];
    let warm_key = key(prepared, "warm-up", warm_options(prepared, config), base);
    let (tensors, warm_up): (BTreeMap<String, Tensor>, Vec<Record>) =
        kept.get_or_train("tmf-warm-up", &warm_key, |_| {
            let model = Tmf::new(Lm::new(&lm_config, base)?, tokens, base)?;
            let material = prepared.material(&none, config);
            let records = stage(&model, &material, train, false, base, workers)?;
            Ok((model.tensors()?, records))
        })?;
    model.load_tokens(&tensors)?;
    if train.fusion.steps == 0 {
        return Ok(Fitted { model, warm_up, fusion: Vec::new() });
    }
    let fusion_key = key(prepared, "fusion", fusion_options(prepared, config), seed);
    let (tensors, fusion): (BTreeMap<String, Tensor>, Vec<Record>) =
        kept.get_or_train("tmf-fusion", &fusion_key, |_| {
            let material = prepared.material(&modalities, config);
            let records = stage(&model, &material, train, true, seed, workers)?;
            Ok((model.tensors()?, records))
        })?;
    model.load(&tensors)?;
    Ok(Fitted { model, warm_up, fusion })
}

/// Width of each modality that is there.
pub fn widths(modalities: &Modalities) -> [Option<usize>; 3] {
    [0, 1, 2].map(|at| modalities[at].as_ref().and_then(|m| m.vectors.dim(1).ok()))
}

fn graph_key(data: &Dataset, train: &[Vec<Step>], config: &Config, seed: Seed) -> Value {
    let hashed =
        common::run::hash8(format!("{train:?}{:?}{:?}", data.links, data.target).as_bytes());
    json!({ "code": CODE, "data": hashed, "options": config.graph, "seed": seed })
}

fn graph_id(key: &Value) -> String {
    format!("graph-{}", common::run::hash8(key.to_string().as_bytes()))
}

fn graph_tensors(graph: &GraphEmbeddings) -> Result<BTreeMap<String, Tensor>> {
    let tensor = |array: &Array2<f32>| {
        Tensor::from_vec(array.iter().copied().collect::<Vec<_>>(), array.dim(), &Device::Cpu)
    };
    Ok(BTreeMap::from([
        ("users".to_owned(), tensor(&graph.users)?),
        ("items".to_owned(), tensor(&graph.items)?),
    ]))
}

/// Graph embeddings as the crate's files hold them.
///
/// # Errors
/// None but bugs.
pub fn graph_piece(
    data: &Dataset,
    train: &[Vec<Step>],
    config: &Config,
    seed: Seed,
    graph: &GraphEmbeddings,
) -> Result<Piece> {
    let id = graph_id(&graph_key(data, train, config, seed));
    Piece::new(id, graph_tensors(graph)?, (&graph.present, &graph.weights))
}

/// Graph embeddings trained on the training part, or those kept from before, in the cache or in the
/// crate's files.
///
/// # Errors
/// As [`light_gcn`].
pub fn graph(
    data: &Dataset,
    train: &[Vec<Step>],
    config: &Config,
    seed: Seed,
    kept: &Trained,
) -> Result<GraphEmbeddings> {
    let key = graph_key(data, train, config, seed);
    let bundled = if config.bundled { bundle::find(&graph_id(&key))? } else { None };
    let (tensors, (present, weights)): (BTreeMap<String, Tensor>, (Vec<bool>, Vec<f32>)) =
        match bundled {
            Some(found) => found,
            None => kept.get_or_train("tmf-graph", &key, |_| {
                let graph = light_gcn(data, train, &config.graph, seed)?;
                Ok((graph_tensors(&graph)?, (graph.present, graph.weights)))
            })?,
        };
    let array = |name: &str| {
        let tensor = tensors.get(name).ok_or_else(|| Error::Bug(format!("no {name} were kept")))?;
        let (rows, width) = tensor.dims2()?;
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        Array2::from_shape_vec((rows, width), values).map_err(|error| Error::Bug(error.to_string()))
    };
    Ok(GraphEmbeddings { users: array("users")?, items: array("items")?, present, weights })
}

/// MBHT trained on the training part, or the one kept from before.
///
/// # Errors
/// As [`Mbht::fit`].
pub fn mbht(
    data: &Dataset,
    train: &[Vec<Step>],
    config: &Config,
    seed: Seed,
    kept: &Trained,
    workers: &Workers,
) -> Result<Mbht> {
    let hashed = common::run::hash8(format!("{train:?}{:?}", data.target).as_bytes());
    let key = json!({ "code": CODE, "data": hashed, "options": config.mbht, "seed": seed });
    let (items, behaviours, options) = (data.items.len(), data.behaviours.len(), &config.mbht);
    let (tensors, ()): (BTreeMap<String, Tensor>, ()) =
        kept.get_or_train("tmf-mbht", &key, |_| {
            let model = Mbht::fit(train, items, behaviours, data.target, options, seed, workers)?;
            Ok((model.parameters().tensors(), ()))
        })?;
    Mbht::from_tensors(items, behaviours, options, tensors)
}

/// The graph modality that MBHT gives: the vectors of the items that occur in training.
///
/// # Errors
/// None but bugs.
pub fn mbht_vectors(model: &Mbht, train: &[Vec<Step>]) -> Result<Encoded> {
    let vectors = model.item_vectors()?;
    let (rows, width) = vectors.dims2()?;
    let values = vectors.flatten_all()?.to_vec1::<f32>()?;
    let vectors = Array2::from_shape_vec((rows, width), values)
        .map_err(|error| Error::Bug(error.to_string()))?;
    let mut present = vec![false; rows];
    train.iter().flatten().for_each(|step| present[step.item as usize] = true);
    Ok((vectors, present))
}

/// MiniLM vectors of the items' texts; items without text have none.
///
/// # Errors
/// An absent or damaged asset.
pub fn text(data: &Dataset, encoder: &common::encode::TextEncoder) -> Result<Encoded> {
    let texts: Vec<&str> = data.items.iter().map(|item| item.text.as_str()).collect();
    let present = texts.iter().map(|text| !text.trim().is_empty()).collect();
    Ok((encoder.encode(&texts)?, present))
}
