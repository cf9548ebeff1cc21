//! A fitted model as a folder: `model.json` (config, catalogue, encoders), `tokenizer.json`,
//! `model.safetensors` (LM, fusion, frozen vectors of the items).

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use common::files::atomic_write;
use common::lm::Lm;
use common::optim::Workers;
use common::rng::Seed;
use common::weights::Safetensors;
use common::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::data::{Dataset, Item, Part, Question};
use crate::ensemble::temperature;
use crate::eval::{self, Query, Scorer};
use crate::model::{GRAPH, MODALITIES, Modalities, Modality, Parts, Tmf};
use crate::prompt::Prompter;
use crate::tokens::Vocabulary;

/// What `model.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// The resolved config.
    pub config: Config,
    /// Behaviours in the order of their tokens.
    pub behaviours: Vec<String>,
    /// Behaviour to predict.
    pub target: Option<u32>,
    /// Id and title of each item.
    pub items: Vec<(String, String)>,
    /// Encoder of each modality and the fields it read; `None` = no item has it.
    pub encoders: [Option<String>; 3],
    /// Whether each item has each modality.
    pub present: [Option<Vec<bool>>; 3],
    /// Items that occur in training, for a model with item tokens.
    pub known: Option<Vec<bool>>,
    /// What log-likelihoods are divided by before they become probabilities.
    pub temperature: f64,
}

/// A model that can rank.
#[derive(Debug)]
pub struct Stored {
    /// Config, catalogue, encoders.
    pub card: Card,
    /// The model.
    pub model: Tmf,
    /// Prompts.
    pub prompter: Prompter,
    /// Frozen vectors of the items.
    pub modalities: Modalities,
}

impl Stored {
    /// A catalogue without events, for reading tables.
    pub fn catalogue(&self) -> Vec<Item> {
        let items = self.card.items.iter().cloned();
        items.map(|(id, title)| Item { id, title, ..Item::default() }).collect()
    }

    /// Ranks with all modalities.
    pub fn scorer(&self) -> Scorer<'_> {
        Scorer::new(&self.model, &self.prompter, &self.modalities)
    }

    /// Learns the temperature on the validation events of `data`, among the items that would be
    /// retrieved and the one that came.
    ///
    /// # Errors
    /// Those of scoring.
    pub fn calibrate(&mut self, data: &Dataset, workers: &Workers) -> Result<()> {
        let rank = &self.card.config.rank;
        let mut queries = Vec::new();
        for question in data.questions(Part::Valid) {
            let ids: Vec<u32> = question.history.iter().map(|step| step.item).collect();
            let mut items = self.retrieve(&ids, rank.retrieved)?;
            items.retain(|&item| item != question.answer);
            items.push(question.answer);
            let positive = Some(items.len() - 1);
            let Question { user, history, .. } = question;
            queries.push(Query { user, history, items, positive });
        }
        let scores = eval::score(&self.scorer(), &queries, false, rank.mean, workers)?;
        let positives: Vec<usize> = queries.iter().filter_map(|query| query.positive).collect();
        self.card.temperature = temperature(&scores, &positives);
        Ok(())
    }

    /// Items by how near their graph vectors are to the mean of the history's (item order where
    /// there is no graph), without those of the history.
    ///
    /// # Errors
    /// None but bugs.
    pub fn retrieve(&self, history: &[u32], most: usize) -> Result<Vec<u32>> {
        let count = self.card.items.len() as u32;
        let mut scored: Vec<(f32, u32)> = Vec::new();
        let vectors = match &self.modalities[GRAPH] {
            Some(graph) => graph.vectors.to_vec2::<f32>()?,
            None => vec![Vec::new(); count as usize],
        };
        let mut mean = vec![0f32; vectors.first().map_or(0, Vec::len)];
        for &item in history {
            mean.iter_mut().zip(&vectors[item as usize]).for_each(|(sum, value)| *sum += value);
        }
        for item in (0..count).filter(|item| !history.contains(item)) {
            let score = mean.iter().zip(&vectors[item as usize]).map(|(a, b)| a * b).sum();
            scored.push((score, item));
        }
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        Ok(scored.into_iter().take(most).map(|(_, item)| item).collect())
    }

    /// Writes the folder; `model.json` comes last, so a folder that has it is whole.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let mut tensors = self.model.tensors()?;
        for (at, modality) in self.modalities.iter().enumerate() {
            if let Some(modality) = modality {
                tensors.insert(format!("vectors.{}", MODALITIES[at]), modality.vectors.clone());
            }
        }
        let bug = |error: &dyn std::fmt::Display| Error::Bug(format!("saving the model: {error}"));
        let path = folder.join("model.safetensors");
        let tensors: std::collections::HashMap<String, Tensor> = tensors.into_iter().collect();
        candle_core::safetensors::save(&tensors, &path).map_err(|error| bug(&error))?;
        let vocabulary = self.prompter.vocabulary.json();
        atomic_write(&folder.join("tokenizer.json"), vocabulary.as_bytes())?;
        let card = serde_json::to_string_pretty(&self.card).map_err(|error| bug(&error))?;
        atomic_write(&folder.join("model.json"), card.as_bytes())
    }

    /// Reads a folder of [`Stored::save`].
    ///
    /// # Errors
    /// [`Error::Asset`] for files that do not belong together; [`Error::Io`].
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("model.json");
        let bad = |path: &Path, problem: String| {
            let remedy = "use a folder that `tmf fit` wrote";
            Error::asset(path.display().to_string(), problem, remedy)
        };
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let card: Card =
            serde_json::from_str(&text).map_err(|error| bad(&path, error.to_string()))?;
        card.config.check()?;
        let path = folder.join("tokenizer.json");
        let json = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let vocabulary = Vocabulary::from_json(json, &card.behaviours, &path)?;
        let path = folder.join("model.safetensors");
        let tensors: BTreeMap<String, Tensor> =
            Safetensors::open(&path)?.float_tensors()?.into_iter().collect();
        let mut modalities: Modalities = [None, None, None];
        for at in 0..3 {
            let Some(present) = &card.present[at] else { continue };
            let name = format!("vectors.{}", MODALITIES[at]);
            let vectors =
                tensors.get(&name).ok_or_else(|| bad(&path, format!("no tensor {name}")))?;
            let rows = vectors.dim(0)?;
            if rows != card.items.len() || present.len() != rows {
                let found = format!("{name} has {rows} rows for {} items", card.items.len());
                return Err(bad(&path, found));
            }
            modalities[at] = Some(Modality { vectors: vectors.clone(), present: present.clone() });
        }
        let (config, widths) = (&card.config, crate::pipeline::widths(&modalities));
        if card.known.as_ref().is_some_and(|known| known.len() != card.items.len()) {
            let found = format!("known has another length than the {} items", card.items.len());
            return Err(bad(&folder.join("model.json"), found));
        }
        let lm = Lm::new(&config.lm.config(vocabulary.size(), config.positions()), Seed::new(0))?;
        let parts = Parts {
            fusion: widths.iter().any(Option::is_some).then_some((&config.fusion, widths)),
            behaviours: card.behaviours.len(),
            history: config.prompt.history,
            known: card.known.as_deref(),
        };
        let model = Tmf::new(lm, parts, Seed::new(0))?;
        model.load(&tensors)?;
        let items = card.items.iter().cloned();
        let data = Dataset {
            items: items.map(|(id, title)| Item { id, title, ..Item::default() }).collect(),
            target: card.target,
            ..Dataset::default()
        };
        let prompter = Prompter::new(vocabulary, &data, config.prompt.clone())?;
        Ok(Self { card, model, prompter, modalities })
    }
}
