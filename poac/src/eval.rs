//! Metrics of §8: object F1 of rewritten prompts, ConceptHit of pictures.

use std::collections::BTreeSet;

use candle_core::Tensor;
use common::Result;

use crate::data::World;
use crate::data::world::Concept;
use crate::features::Features;
use crate::model::Scorer;

/// How well predicted objects fit the human ones.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ObjectScores {
    /// F1 of the predicted set against the human set.
    pub f1: f64,
    /// F1 divided by the best that as many predictions can reach.
    pub attainable: f64,
    /// Whether the first is right.
    pub hit1: f64,
    /// Whether one of the first three is right.
    pub hit3: f64,
}

/// Scores of one prediction against the objects that people file under the concept.
pub fn object_scores(predicted: &[usize], human: &[usize]) -> ObjectScores {
    let human: BTreeSet<usize> = human.iter().copied().collect();
    let right = |objects: &[usize]| objects.iter().filter(|at| human.contains(at)).count();
    let total = predicted.len() + human.len();
    if total == 0 {
        return ObjectScores::default();
    }
    let f1 = 2.0 * right(predicted) as f64 / total as f64;
    let best = 2.0 * predicted.len().min(human.len()) as f64 / total as f64;
    let first = |count: usize| {
        let hit = right(&predicted[..count.min(predicted.len())]) > 0;
        f64::from(u8::from(hit))
    };
    ObjectScores {
        f1,
        attainable: if best > 0.0 { f1 / best } else { 0.0 },
        hit1: first(1),
        hit3: first(3),
    }
}

/// ConceptHit@k: 1 for a picture when one of the `k` real pictures nearest to it in scorer B's space
/// carries the concept as a human keyword. `generated` `[n, embedding]` and `real` `[objects,
/// embedding]` are unit rows; `concepts` gives the objects of each picture's concept.
///
/// # Errors
/// None but bugs.
pub fn concept_hits(
    generated: &Tensor,
    real: &Tensor,
    concepts: &[&[usize]],
    k: usize,
) -> Result<Vec<f64>> {
    let cosines = generated.matmul(&real.t()?)?.to_vec2::<f32>()?;
    let hit = |(row, objects): (&Vec<f32>, &&[usize])| {
        let scores: Vec<f64> = row.iter().map(|&cosine| f64::from(cosine)).collect();
        let near = crate::baselines::top(&scores, k);
        f64::from(u8::from(near.iter().any(|at| objects.contains(at))))
    };
    Ok(cosines.iter().zip(concepts).map(hit).collect())
}

/// Concepts as a scorer's text side sees them.
#[derive(Debug)]
pub struct ConceptTexts {
    /// The words, `[concepts, embedding]`.
    pub words: Tensor,
    /// Word and human objects of each concept, `[1 + objects, embedding]`.
    pub own: Vec<Tensor>,
}

impl ConceptTexts {
    /// Embeds words and names.
    ///
    /// # Errors
    /// Those of the word features.
    pub fn new(
        world: &World,
        features: &Features,
        scorer: &Scorer,
        concepts: &[Concept],
    ) -> Result<Self> {
        let embed = |texts: &[&str]| -> Result<Tensor> {
            Ok(scorer.embed_texts(&features.batch(texts)?.mean()?)?.detach())
        };
        let own = |concept: &Concept| {
            let names = concept.objects.iter().map(|&at| world.objects[at].name.as_str());
            embed(&std::iter::once(concept.word.as_str()).chain(names).collect::<Vec<_>>())
        };
        let words: Vec<&str> = concepts.iter().map(|concept| concept.word.as_str()).collect();
        Ok(Self { words: embed(&words)?, own: concepts.iter().map(own).collect::<Result<_>>()? })
    }
}

/// TIAC's concept score in our reading (its formula is not public): for each picture the mean cosine
/// with its own texts (the concept and its objects) minus the mean cosine with the words of all other
/// concepts. Rows of `pictures`, which are unit rows, and concepts belong together.
///
/// # Errors
/// None but bugs.
pub fn concept_scores(pictures: &Tensor, texts: &ConceptTexts) -> Result<Vec<f64>> {
    let cosines = pictures.matmul(&texts.words.t()?)?.to_vec2::<f32>()?;
    let score = |(at, own): (usize, &Tensor)| {
        let near = own.matmul(&pictures.get(at)?.unsqueeze(1)?)?.mean_all()?.to_scalar::<f32>()?;
        let all: f64 = cosines[at].iter().map(|&cosine| f64::from(cosine)).sum();
        let others = (all - f64::from(cosines[at][at])) / (cosines[at].len() - 1).max(1) as f64;
        Ok(f64::from(near) - others)
    };
    texts.own.iter().enumerate().map(score).collect()
}

/// Chance level of ConceptHit@k for a concept: `k` different objects drawn at random.
pub fn chance(world: &World, objects: &[usize], k: usize) -> f64 {
    let (all, with) = (world.objects.len() as f64, objects.len() as f64);
    let miss: f64 =
        (0..k).map(|at| ((all - with - at as f64) / (all - at as f64)).max(0.0)).product();
    1.0 - miss
}

/// Row-wise cosine of two batches of unit rows.
///
/// # Errors
/// None but bugs.
pub fn cosines(a: &Tensor, b: &Tensor) -> Result<Vec<f64>> {
    Ok((a * b)?.sum(1)?.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
}

/// Diversity: 1 − mean cosine between different rows (0 = all alike).
///
/// # Errors
/// None but bugs.
pub fn diversity(rows: &Tensor) -> Result<f64> {
    let n = rows.dim(0)?;
    if n < 2 {
        return Ok(0.0);
    }
    let sum = f64::from(rows.sum(0)?.sqr()?.sum_all()?.to_scalar::<f32>()?);
    Ok(1.0 - (sum - n as f64) / (n * (n - 1)) as f64)
}

/// Share of different n-grams among all n-grams of the texts.
pub fn distinct_n(texts: &[String], n: usize) -> f64 {
    let mut seen = BTreeSet::new();
    let mut all = 0;
    for text in texts {
        let words: Vec<&str> = text.split_whitespace().collect();
        for gram in words.windows(n) {
            seen.insert(gram.to_vec());
            all += 1;
        }
    }
    if all == 0 { 0.0 } else { seen.len() as f64 / all as f64 }
}
