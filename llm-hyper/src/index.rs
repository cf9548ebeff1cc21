//! Eq. 3: the library's ads in a text embedding, and the past ads that may demonstrate a new one.

use common::Result;
use common::assets::Assets;
use common::encode::TextEncoder;
use ndarray::Array2;

use crate::config::Encoder;
use crate::data::Ad;
use crate::library::Library;
use crate::model::retrieve::{Found, Tfidf, top_k};

/// Embeds ad texts as unit rows.
enum Embedder {
    /// TF-IDF fitted on the library.
    Tfidf(Tfidf),
    /// MiniLM.
    Minilm(Box<TextEncoder>),
}

impl Embedder {
    fn embed(&self, texts: &[String]) -> Result<Array2<f64>> {
        match self {
            Self::Tfidf(tfidf) => Ok(tfidf.embed(texts)),
            Self::Minilm(_) if texts.is_empty() => Ok(Array2::zeros((0, 0))),
            Self::Minilm(encoder) => Ok(encoder.encode(texts)?.mapv(f64::from)),
        }
    }
}

/// A library's ads in one embedding.
pub struct Index {
    /// (retired ads, width) unit rows.
    pub embeddings: Array2<f64>,
    embedder: Embedder,
}

impl Index {
    /// Embeds the library's ads.
    ///
    /// # Errors
    /// As [`TextEncoder::minilm`] and [`TextEncoder::encode`].
    pub fn new(library: &Library, encoder: Encoder, assets: &Assets) -> Result<Self> {
        let texts: Vec<String> = library.ads.iter().map(|retired| retired.ad.text()).collect();
        let embedder = match encoder {
            Encoder::Tfidf => Embedder::Tfidf(Tfidf::fit(&texts)),
            Encoder::Minilm => Embedder::Minilm(Box::new(TextEncoder::minilm(assets)?)),
        };
        Ok(Self { embeddings: embedder.embed(&texts)?, embedder })
    }

    /// (ads, width) unit rows of the ads' texts.
    ///
    /// # Errors
    /// As [`TextEncoder::encode`].
    pub fn embed(&self, ads: &[Ad]) -> Result<Array2<f64>> {
        self.embedder.embed(&ads.iter().map(Ad::text).collect::<Vec<_>>())
    }

    /// Eq. 3 with the leak guard: for each ad the `k` most similar of the library's, best first.
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub fn retrieve(&self, library: &Library, ads: &[Ad], k: usize) -> Result<Vec<Vec<Found>>> {
        let embeddings = self.embed(ads)?;
        let found = ads.iter().zip(embeddings.rows()).map(|(ad, embedding)| {
            let allowed = |index: usize| may_demonstrate(&library.ads[index].ad, ad);
            top_k(embedding, &self.embeddings, k, allowed)
        });
        Ok(found.collect())
    }
}

/// The leak guard of Eq. 3: never the ad itself, one of its campaign, or one that started after it.
pub fn may_demonstrate(retired: &Ad, new: &Ad) -> bool {
    let same_campaign = retired.campaign.is_some() && retired.campaign == new.campaign;
    let later = matches!((retired.start, new.start), (Some(retired), Some(new)) if retired > new);
    retired.id != new.id && !same_campaign && !later
}
