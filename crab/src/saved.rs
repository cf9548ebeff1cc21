//! A fitted recommender on disk: semantic IDs, generator, code vectors, training counts.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use common::checkpoint::Checkpoints;
use common::{Error, Result};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::data::Dataset;
use crate::model::generator::{Generator, GeneratorOptions};
use crate::sid::SidTable;
use crate::tokenizer::Codebook;

/// A fitted recommender. `table` has one more level than the code book where semantic IDs collided.
#[derive(Debug, Clone)]
pub struct Saved {
    /// Item ids in item order.
    pub ids: Vec<String>,
    /// Semantic IDs without collisions.
    pub table: SidTable,
    /// Code vectors and item vectors from before any split: what residuals are computed from.
    pub book: Codebook,
    /// The generator.
    pub model: Generator,
    /// Training interactions per item.
    pub counts: Vec<u64>,
    /// Whether items of the history may be recommended again.
    pub repeats: bool,
}

/// What stands beside the tensors.
#[derive(Serialize, Deserialize)]
struct State {
    ids: Vec<String>,
    rows: Vec<Vec<u32>>,
    book: Vec<Vec<u32>>,
    options: GeneratorOptions,
    counts: Vec<u64>,
    repeats: bool,
}

impl Saved {
    /// Writes the recommender to `folder` (atomically; an earlier one there is kept as the one
    /// before) and its semantic IDs to `folder/index.json`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut tensors: BTreeMap<String, Tensor> = self.model.parameters().tensors();
        let matrix = |array: &Array2<f32>| {
            let values: Vec<f32> = array.iter().copied().collect();
            Tensor::from_vec(values, array.dim(), &Device::Cpu)
        };
        tensors.insert("book.points".into(), matrix(&self.book.points)?);
        for (level, vectors) in self.book.vectors.iter().enumerate() {
            tensors.insert(format!("book.{level}"), matrix(vectors)?);
        }
        let rows = |table: &SidTable| table.rows().map(<[u32]>::to_vec).collect();
        let state = State {
            ids: self.ids.clone(),
            rows: rows(&self.table),
            book: rows(&self.book.table),
            options: *self.model.options(),
            counts: self.counts.clone(),
            repeats: self.repeats,
        };
        let checkpoints = Checkpoints::open(folder)?;
        let next = checkpoints.steps()?.into_iter().max().map_or(0, |step| step + 1);
        checkpoints.save(next, &tensors, &state, None)?;
        self.table.write_index(&folder.join("index.json"), &self.ids)
    }

    /// Reads what [`Saved::write`] wrote.
    ///
    /// # Errors
    /// A folder without a recommender, or a damaged one.
    pub fn read(folder: &Path) -> Result<Self> {
        let absent = || {
            Error::asset(
                format!("recommender {}", folder.display()),
                "not there",
                "run `crab fit` first, or give the folder that it wrote",
            )
        };
        if !folder.exists() {
            return Err(absent());
        }
        let found = Checkpoints::open(folder)?.latest::<State>()?.ok_or_else(absent)?;
        let (mut tensors, state) = (found.tensors, found.state);
        let mut matrix = |name: String| -> Result<Option<Array2<f32>>> {
            let Some(tensor) = tensors.remove(&name) else { return Ok(None) };
            let dim = tensor.dims2()?;
            let values = tensor.flatten_all()?.to_vec1::<f32>()?;
            let array = Array2::from_shape_vec(dim, values);
            array.map(Some).map_err(|error| Error::Bug(format!("{name}: {error}")))
        };
        let points = matrix("book.points".into())?.ok_or_else(absent)?;
        let mut vectors = Vec::new();
        while let Some(array) = matrix(format!("book.{}", vectors.len()))? {
            vectors.push(array);
        }
        let table = SidTable::new(&state.rows)?;
        let model = Generator::from_tensors(state.options, tensors)?;
        if model.sizes()?.iter().zip(table.sizes()).any(|(have, need)| have < need) {
            return Err(Error::asset(
                format!("recommender {}", folder.display()),
                format!(
                    "codes for levels of {:?}, semantic IDs of {:?}",
                    model.sizes()?,
                    table.sizes()
                ),
                "fit it again",
            ));
        }
        let book = Codebook { table: SidTable::new(&state.book)?, vectors, points };
        Ok(Self {
            ids: state.ids,
            table,
            book,
            model,
            counts: state.counts,
            repeats: state.repeats,
        })
    }

    /// Residuals of the original code book on entering a level; none for the running number.
    pub fn residuals(&self, level: usize) -> Option<Array2<f32>> {
        (level < self.book.vectors.len()).then(|| self.book.residuals(level))
    }

    /// `data` with this recommender's item numbers.
    ///
    /// # Errors
    /// An item that was not there at fitting.
    pub fn renumber(&self, mut data: Dataset) -> Result<Dataset> {
        let number: HashMap<&str, u32> =
            self.ids.iter().enumerate().map(|(at, id)| (id.as_str(), at as u32)).collect();
        let map: Vec<u32> = data
            .ids
            .iter()
            .map(|id| {
                number.get(id.as_str()).copied().ok_or_else(|| {
                    Error::data(
                        format!("item {id:?}"),
                        format!(
                            "one of the {} items that the recommender was fitted on",
                            self.ids.len()
                        ),
                    )
                })
            })
            .collect::<Result<_>>()?;
        let swap = |item: &mut u32| *item = map[*item as usize];
        data.train.iter_mut().flatten().for_each(swap);
        for case in data.valid.iter_mut().chain(&mut data.test) {
            case.history.iter_mut().for_each(swap);
            swap(&mut case.target);
        }
        data.ids = self.ids.clone();
        data.texts = vec![String::new(); self.ids.len()];
        data.repeats = self.repeats;
        Ok(data)
    }
}
