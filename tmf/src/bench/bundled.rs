//! What of the benchmark comes trained with the crate, and how it is made.

use common::Result;
use common::encode::TextEncoder;
use common::rng::Seed;

use super::Context;
use crate::bundle::{self, Piece};
use crate::config::Config;
use crate::data::{Dataset, Part, movielens};
use crate::encoders::graph::GraphEmbeddings;
use crate::pipeline::{self, Encoded, Prepared};

/// ML-100k as the benchmark's main models see it, with the graph embeddings; `text` are the vectors
/// of its items' texts.
///
/// # Errors
/// Those of training the graph embeddings.
pub fn prepared(
    data: Dataset,
    text: Encoded,
    config: &Config,
    context: &Context,
) -> Result<(Prepared, GraphEmbeddings)> {
    let train = data.before(Part::Valid);
    let graph = pipeline::graph(&data, &train, config, context.base(), &context.kept)?;
    let pool = (0..data.items.len() as u32).collect();
    let vectors = (graph.items.clone(), graph.present.clone());
    let encoded = [None, Some(text), Some(vectors)];
    Ok((Prepared::new(data, train, pool, encoded, config)?, graph))
}

/// Ids of the main models' pieces, one per seed.
pub fn ids(prepared: &Prepared, config: &Config, context: &Context) -> Vec<String> {
    let id = |&seed: &u64| {
        let seed = Seed::new(seed);
        pipeline::bundled_id(prepared, config, seed, seed)
    };
    context.seeds.iter().map(id).collect()
}

/// Whether all main models come with the crate.
pub(super) fn all(prepared: &Prepared, config: &Config, context: &Context) -> Result<bool> {
    let mut found = config.bundled;
    for id in ids(prepared, config, context) {
        found &= bundle::find::<serde_json::Value>(&id)?.is_some();
    }
    Ok(found)
}

/// The main models and the graph embeddings, from the cache or trained now.
///
/// # Errors
/// Those of assets and training.
pub fn pieces(config: &Config, context: &Context) -> Result<Vec<Piece>> {
    let config = Config { bundled: false, ..config.clone() };
    let data = movielens::load(&context.assets, false)?;
    let encoder = TextEncoder::minilm(&context.assets)?.with_cache(&context.encoded)?;
    let text = pipeline::text(&data, &encoder)?;
    let (prepared, graph) = prepared(data, text, &config, context)?;
    let mut pieces = vec![pipeline::graph_piece(
        &prepared.data,
        &prepared.train,
        &config,
        context.base(),
        &graph,
    )?];
    let fitted = context.workers.map(context.seeds.len(), |at| {
        let seed = Seed::new(context.seeds[at]);
        let one = common::optim::Workers::new(1)?;
        pipeline::fit(&prepared, &config, seed, seed, &context.kept, &one)
    })?;
    for (id, fitted) in ids(&prepared, &config, context).into_iter().zip(fitted) {
        pieces.push(Piece::new(id, fitted.model.tensors()?, (fitted.warm_up, fitted.fusion))?);
    }
    Ok(pieces)
}
