//! The hierarchical regulariser L_T (Eq. 9): tokens with the same parent keep close embeddings.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};
use common::Result;
use serde::{Deserialize, Serialize};

use crate::sid::SidTable;

/// Weight of a parent in Eq. 9; the paper's formula is not readable, so this is open.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ParentWeight {
    /// Each parent counts the same.
    #[default]
    Mean,
    /// By its number of children.
    Sum,
    /// By twice the square of it: the sum over all pairs of children.
    Pairwise,
}

/// Parents of one level as averaging matrices over the level below.
#[derive(Debug, Clone)]
struct Family {
    /// Level of the children.
    level: usize,
    /// `[parents, codes]`, 1 / |Ch(p)| at the children.
    mean: Tensor,
    /// `[parents, 1]`
    weight: Tensor,
}

/// L_T over the token hierarchy of a table.
#[derive(Debug, Clone)]
pub struct Regularizer {
    families: Vec<Family>,
    parents: usize,
    cosine: bool,
}

impl Regularizer {
    /// Families of every token of `levels` (children one level below) with at least two children.
    /// `cosine` normalises the embeddings first.
    ///
    /// # Errors
    /// Those of candle.
    pub fn new(
        table: &SidTable,
        levels: &[usize],
        weight: ParentWeight,
        cosine: bool,
    ) -> Result<Self> {
        let mut families = Vec::new();
        let mut parents = 0;
        for &level in levels.iter().filter(|&&level| level + 1 < table.levels()) {
            let mut children: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
            for row in table.rows() {
                children.entry(row[level]).or_default().insert(row[level + 1]);
            }
            let several: Vec<BTreeSet<u32>> =
                children.into_values().filter(|set| set.len() > 1).collect();
            if several.is_empty() {
                continue;
            }
            let codes = table.sizes()[level + 1];
            let mut mean = vec![0f32; several.len() * codes];
            let mut weights = Vec::new();
            for (row, set) in several.iter().enumerate() {
                set.iter().for_each(|&c| mean[row * codes + c as usize] = 1.0 / set.len() as f32);
                let n = set.len() as f32;
                weights.push(match weight {
                    ParentWeight::Mean => 1.0,
                    ParentWeight::Sum => n,
                    ParentWeight::Pairwise => 2.0 * n * n,
                });
            }
            let rows = several.len();
            families.push(Family {
                level: level + 1,
                mean: Tensor::from_vec(mean, (rows, codes), &Device::Cpu)?,
                weight: Tensor::from_vec(weights, (rows, 1), &Device::Cpu)?,
            });
            parents += rows;
        }
        Ok(Self { families, parents, cosine })
    }

    /// Whether no token has two children.
    pub fn is_empty(&self) -> bool {
        self.families.is_empty()
    }

    /// L_T for the embedding tables of all levels, each `[codes, width]`; a scalar. With mean ē of a
    /// family, Σ‖e − ē‖² / n = Σ‖e‖² / n − ‖ē‖².
    ///
    /// # Errors
    /// Those of candle; tables of other sizes.
    pub fn loss(&self, tables: &[Tensor]) -> Result<Tensor> {
        let mut total: Option<Tensor> = None;
        for family in &self.families {
            let table = &tables[family.level];
            let table = match self.cosine {
                true => {
                    let norm = (table.sqr()?.sum_keepdim(1)? + 1e-12)?.sqrt()?;
                    table.broadcast_div(&norm)?
                }
                false => table.clone(),
            };
            let squares = family.mean.matmul(&table.sqr()?.sum_keepdim(1)?)?;
            let means = family.mean.matmul(&table)?.sqr()?.sum_keepdim(1)?;
            let loss = ((squares - means)? * &family.weight)?.sum_all()?;
            total = Some(match total {
                Some(total) => (total + loss)?,
                None => loss,
            });
        }
        match total {
            Some(total) => Ok((total / self.parents as f64)?),
            None => Ok(Tensor::zeros((), candle_core::DType::F32, &Device::Cpu)?),
        }
    }
}
