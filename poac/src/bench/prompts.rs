//! The prompts whose pictures are compared.

use common::Result;
use common::assets::Assets;
use common::lm::Lm;
use common::rng::Seed;

use super::objects::{Tuned, mixed_objects};
use crate::baselines::{LlmRewriter, Neighbours, most_filed, top};
use crate::data::Style;
use crate::data::pairs::{OBJECTS, TEMPLATES};
use crate::data::world::Concept;
use crate::rewrite::Rewriter;
use crate::studio::Base;

/// One prompt a concept by each way.
pub(super) struct Prompts {
    pub(super) raw: Vec<String>,
    pub(super) plm: Vec<String>,
    pub(super) plm_objects: Vec<Vec<usize>>,
    pub(super) lookup: Vec<String>,
    pub(super) gloss: Vec<String>,
    /// With one, two and three objects.
    pub(super) mixed: [Vec<String>; OBJECTS],
    pub(super) frequent: Vec<String>,
}

impl Prompts {
    /// Those of the trained language model, of the cheap ways, and of the mixture.
    ///
    /// # Errors
    /// Those of the models.
    pub(super) fn new(
        base: &Base,
        model: &Lm,
        concepts: &[Concept],
        assets: &Assets,
        tuned: Tuned,
    ) -> Result<Self> {
        let (style, search) = (Style::Colour, &base.config.search);
        let rewriter = Rewriter::new(model, &base.features, &base.world, search);
        let neighbours = Neighbours::new(&base.world, assets)?;
        let frequent = rewriter.prompt(&[], &most_filed(&base.world, OBJECTS), style);
        let mut prompts = Self {
            raw: Vec::new(),
            plm: Vec::new(),
            plm_objects: Vec::new(),
            lookup: Vec::new(),
            gloss: Vec::new(),
            mixed: Default::default(),
            frequent: vec![frequent; concepts.len()],
        };
        for concept in concepts {
            let word = concept.word.as_str();
            prompts.raw.push(format!("{} {word}, in {}", TEMPLATES[0], style.word()));
            let first = rewriter.concept(word, style, 1)?.into_iter().next();
            prompts.plm.push(first.as_ref().map_or_else(|| word.to_owned(), |c| c.prompt.clone()));
            prompts.plm_objects.push(first.map(|c| c.objects).unwrap_or_default());
            let embedded = neighbours.encode(&[word])?;
            let near: Vec<usize> =
                neighbours.nearest(embedded.row(0)).1.iter().copied().take(OBJECTS).collect();
            prompts.lookup.push(rewriter.prompt(&[], &near, style));
            prompts.gloss.push(rewriter.prompt(
                &[],
                &top(&neighbours.by_gloss(word)?, OBJECTS),
                style,
            ));
            let objects = mixed_objects(&rewriter, &neighbours, word, tuned)?;
            for (at, mixed) in prompts.mixed.iter_mut().enumerate() {
                mixed.push(rewriter.prompt(&[], &objects[..objects.len().min(at + 1)], style));
            }
        }
        Ok(prompts)
    }
}

/// The frozen LLM's prompts for concepts.
///
/// # Errors
/// Those of the LLM.
pub(super) fn by_llm(
    base: &Base,
    model: &Lm,
    concepts: &[Concept],
    assets: &Assets,
    seed: Seed,
) -> Result<Vec<String>> {
    let rewriter = Rewriter::new(model, &base.features, &base.world, &base.config.search);
    let neighbours = Neighbours::new(&base.world, assets)?;
    let llm = LlmRewriter::new(&base.config.bench.llm, &base.world, assets, seed)?;
    concepts
        .iter()
        .map(|concept| {
            let objects = llm.objects(&concept.word, &neighbours)?;
            Ok(rewriter.prompt(&[], &objects, Style::Colour))
        })
        .collect()
}
