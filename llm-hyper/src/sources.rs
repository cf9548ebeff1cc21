//! Weights for an ad from the library alone: what the LLM is compared with, and what it is blended
//! with.

use common::Result;
use common::assets::Assets;
use common::rng::Seed;

use crate::baselines::RidgeMap;
use crate::config::Encoder;
use crate::data::Ad;
use crate::index::Index;
use crate::library::Library;

/// The sources, in the order of all weights and coefficients.
pub const NAMES: [&str; 4] = ["median", "kNN tf-idf", "kNN MiniLM", "ridge map"];

/// Every source of weights that needs no LLM.
pub struct Sources<'a> {
    library: &'a Library,
    k: usize,
    /// TF-IDF.
    pub tfidf: Index,
    /// MiniLM.
    pub minilm: Index,
    /// From MiniLM embedding to weights.
    pub ridge: RidgeMap,
}

impl<'a> Sources<'a> {
    /// Embeds the library and trains the ridge map; kNN takes `k` neighbours.
    ///
    /// # Errors
    /// As [`Index::new`] and [`RidgeMap::fit`].
    pub fn new(library: &'a Library, k: usize, assets: &Assets) -> Result<Self> {
        let minilm = Index::new(library, Encoder::Minilm, assets)?;
        Ok(Self {
            tfidf: Index::new(library, Encoder::Tfidf, assets)?,
            ridge: RidgeMap::fit(&minilm.embeddings, &library.weights())?,
            minilm,
            library,
            k,
        })
    }

    /// One weight vector per ad and source of [`NAMES`].
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn weights(&self, ads: &[Ad]) -> Result<Vec<Vec<Vec<f64>>>> {
        let embeddings = self.minilm.embed(ads)?;
        let ridge = embeddings.rows().into_iter().map(|row| self.ridge.predict(row)).collect();
        self.with_ridge(ads, ridge)
    }

    /// The same for ads of the library by their indices, each treated as cold: as if it started
    /// now, without its own weights (leave one ad out).
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn weights_as_cold(&self, indices: &[usize]) -> Result<Vec<Vec<Vec<f64>>>> {
        let ads = as_cold(self.library, indices);
        let row = |&index: &usize| self.ridge.leave_one_out.row(index).to_vec();
        self.with_ridge(&ads, indices.iter().map(row).collect())
    }

    fn with_ridge(&self, ads: &[Ad], ridge: Vec<Vec<f64>>) -> Result<Vec<Vec<Vec<f64>>>> {
        let centre = self.library.centre();
        let knn = |index: &Index| -> Result<Vec<Vec<f64>>> {
            let found = index.retrieve(self.library, ads, self.k)?;
            let weights = |found| self.library.knn_weights(found);
            Ok(found.iter().map(|f| weights(f).unwrap_or_else(|| centre.clone())).collect())
        };
        let (tfidf, minilm) = (knn(&self.tfidf)?, knn(&self.minilm)?);
        let all = tfidf.into_iter().zip(minilm).zip(ridge);
        Ok(all.map(|((tfidf, minilm), ridge)| vec![centre.clone(), tfidf, minilm, ridge]).collect())
    }
}

/// Retired ads as new ones: without a start, so that every other ad may demonstrate them; the leak
/// guard still keeps each from itself and from its campaign.
pub fn as_cold(library: &Library, indices: &[usize]) -> Vec<Ad> {
    indices.iter().map(|&at| Ad { start: None, ..library.ads[at].ad.clone() }).collect()
}

/// `count` of the library's ads at random (all of them if it has no more), ascending.
pub fn sample(library: &Library, count: usize, seed: Seed) -> Vec<usize> {
    let all = library.ads.len();
    let mut chosen = seed.stream("blend/ads").sample(all, count.min(all));
    chosen.sort_unstable();
    chosen
}
