//! Candidate ranking by likelihood with a shared prefix, generation with LLaRA's valid ratio, and
//! the metrics (§3.6, §8).

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use common::lm::{LmCache, Pass};
use common::metrics;
use common::optim::Workers;
use common::{Error, Result};

use crate::data::Step;
use crate::model::{Batch, Dropout, Events, Items, Modalities, Tmf, Used, View};
use crate::prompt::{Answer, Prompter, Row};

/// A model ready to rank: prompts, frozen embeddings, and which of them it may look at.
#[derive(Debug, Clone, Copy)]
pub struct Scorer<'a> {
    /// The model.
    pub model: &'a Tmf,
    /// Prompts.
    pub prompter: &'a Prompter,
    /// Frozen embeddings.
    pub modalities: &'a Modalities,
    /// Modalities that are used.
    pub used: Used,
    /// Whether the own embeddings of item tokens are used.
    pub tokens: bool,
}

/// Prompts of one pass in answers by item token.
const PASS: usize = 32;

impl<'a> Scorer<'a> {
    /// Ranks with all that the model has.
    pub fn new(model: &'a Tmf, prompter: &'a Prompter, modalities: &'a Modalities) -> Self {
        Self { model, prompter, modalities, used: [true; 3], tokens: true }
    }

    /// The same with these modalities only.
    pub fn with(self, used: Used) -> Self {
        Self { used, ..self }
    }

    fn view(&self) -> Result<View> {
        let view = self.model.view(self.used)?;
        Ok(View { tokens: view.tokens.filter(|_| self.tokens), ..view })
    }

    fn batch(&self, rows: &[Row]) -> Result<Batch> {
        let v = &self.prompter.vocabulary;
        let no_fusion = self.model.fusion.is_none() || self.used == [false; 3];
        let plain = no_fusion && (self.model.items.is_none() || !self.tokens);
        let parts: Vec<_> = rows.iter().map(Row::parts).collect();
        Batch::new(&parts, v.pad, v.size(), plain.then_some(v.text_only))
    }

    fn items(&self, items: &[u32]) -> Result<Items<'a>> {
        self.model.items(self.modalities, items, &self.view()?, &mut Dropout::default())
    }

    fn inputs(&self, batch: &Batch) -> Result<Option<Tensor>> {
        let named = [&batch.events.items[..], &batch.candidates[..]].concat();
        self.model.inputs(batch, &self.items(&named)?, &mut Dropout::default())
    }

    /// Log-probability of each item of the catalogue as the answer by item token to each history:
    /// one pass a history, whatever the number of items.
    ///
    /// # Errors
    /// A prompt longer than the model's context; a model without item tokens and modalities.
    pub fn item_log_probs(
        &self,
        histories: &[&[Step]],
        workers: &Workers,
    ) -> Result<Vec<Vec<f32>>> {
        let all: Vec<u32> = (0..self.prompter.items() as u32).collect();
        let items = self.items(&all)?;
        let vectors = items
            .vectors(&all)?
            .map(|v| v.detach())
            .ok_or_else(|| Error::usage("answers by item token need item tokens or a modality"))?;
        let passes: Vec<&[&[Step]]> = histories.chunks(PASS).collect();
        let parts = workers.map(passes.len(), |pass| {
            common::run::check_interrupt()?;
            let asked = |history: &&[Step]| {
                let mut row = self.prompter.prompt(history, None, 0, false);
                row.asked.push((row.ids.len() - 1, 0));
                row
            };
            let rows: Vec<Row> = passes[pass].iter().map(asked).collect();
            let batch = self.batch(&rows)?;
            let logits = self.model.item_logits(&batch, &items, &vectors)?;
            Ok(logits.to_vec2::<f32>()?.into_iter().map(log_softmax).collect::<Vec<_>>())
        })?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// Runs the prompt but its last token, which every candidate is run with again.
    fn prefix(&self, row: &Row) -> Result<LmCache> {
        let batch = self.batch(std::slice::from_ref(row))?;
        let inputs = self.inputs(&batch)?;
        let kept = row.ids.len() - 1;
        let ids = batch.ids.narrow(1, 0, kept)?;
        let inputs = inputs.map(|inputs| inputs.narrow(1, 0, kept)).transpose()?;
        let inputs = inputs.map(|inputs| inputs.contiguous()).transpose()?;
        let mut cache = LmCache::default();
        let pass = Pass { cache: Some(&mut cache), inputs: inputs.as_ref(), ..Pass::default() };
        self.model.lm.hidden(&ids, pass)?;
        Ok(cache)
    }

    /// Answers by title: log-likelihood of the title (with its end) of each item as the answer to the prompt, the
    /// prompt run once for all of them; `(sum, tokens)` per item.
    ///
    /// # Errors
    /// A prompt longer than the model's context.
    pub fn log_likelihoods(
        &self,
        history: &[Step],
        listed: Option<&[u32]>,
        items: &[u32],
    ) -> Result<Vec<(f64, usize)>> {
        let row = self.prompter.prompt(history, listed, 0, false);
        let last = row.ids[row.ids.len() - 1];
        let mut cache = self.prefix(&row)?;
        let prefix = cache.len();
        let mut scores = Vec::with_capacity(items.len());
        let mut rows_held = 1;
        for items in items.chunks(64) {
            let answers: Vec<Vec<u32>> =
                items.iter().map(|&item| self.prompter.answer(item)).collect();
            let longest = answers.iter().map(Vec::len).max().unwrap_or(0);
            let mut ids = vec![self.prompter.vocabulary.pad; items.len() * (longest + 1)];
            for (at, answer) in answers.iter().enumerate() {
                let row = &mut ids[at * (longest + 1)..];
                row[0] = last;
                row[1..=answer.len()].copy_from_slice(answer);
            }
            cache.truncate(prefix);
            if rows_held != items.len() {
                cache.select(&vec![0; items.len()])?;
                rows_held = items.len();
            }
            let ids = Tensor::from_vec(ids, (items.len(), longest + 1), &Device::Cpu)?;
            let pass = Pass { cache: Some(&mut cache), ..Pass::default() };
            let log_probs = self.model.lm.token_log_probs(&ids, pass)?.to_vec2::<f32>()?;
            for (answer, log_probs) in answers.iter().zip(log_probs) {
                let sum: f64 = log_probs[..answer.len()].iter().map(|&p| f64::from(p)).sum();
                scores.push((sum, answer.len()));
            }
        }
        Ok(scores)
    }

    /// [`Scorer::log_likelihoods`] with every candidate's whole prompt run on its own: what the
    /// shared prefix saves.
    ///
    /// # Errors
    /// As there.
    pub fn log_likelihoods_apart(
        &self,
        history: &[Step],
        listed: Option<&[u32]>,
        items: &[u32],
    ) -> Result<Vec<(f64, usize)>> {
        let prompt = self.prompter.prompt(history, listed, 0, false);
        items
            .iter()
            .map(|&item| {
                let answer = self.prompter.answer(item);
                let mut row = prompt.clone();
                row.ids.extend(&answer);
                row.labels.extend(answer.iter().map(|&token| i64::from(token)));
                let batch = self.batch(&[row])?;
                let inputs = self.inputs(&batch)?;
                let pass = Pass { inputs: inputs.as_ref(), ..Pass::default() };
                let log_probs = self.model.lm.token_log_probs(&batch.ids, pass)?;
                let log_probs = log_probs.to_vec2::<f32>()?;
                let sum = log_probs[0][prompt.ids.len() - 1..].iter().map(|&p| f64::from(p)).sum();
                Ok((sum, answer.len()))
            })
            .collect()
    }

    /// Greedy answer to a prompt that lists `listed`, first line only.
    ///
    /// # Errors
    /// As [`Scorer::log_likelihoods`].
    pub fn generate(&self, history: &[Step], listed: &[u32], most: usize) -> Result<String> {
        let row = self.prompter.prompt(history, Some(listed), 0, false);
        let mut cache = self.prefix(&row)?;
        let mut token = row.ids[row.ids.len() - 1];
        let mut answer = Vec::new();
        while answer.len() < most {
            let ids = Tensor::new(&[[token]], &Device::Cpu)?;
            let pass = Pass { cache: Some(&mut cache), ..Pass::default() };
            let logits = self.model.lm.last_logits(&ids, pass)?.flatten_all()?.to_vec1::<f32>()?;
            let best =
                logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
            token = best.map_or(0, |(id, _)| id as u32);
            if token == self.prompter.vocabulary.end {
                break;
            }
            answer.push(token);
        }
        self.prompter.vocabulary.decode(&answer)
    }

    /// How much the newest event looks at each modality, see
    /// [`crate::model::Fusion::modality_attention`].
    ///
    /// # Errors
    /// As there.
    pub fn attention(&self, history: &[Step]) -> Result<Option<[f64; 3]>> {
        let Some(fusion) = &self.model.fusion else { return Ok(None) };
        let steps = &history[history.len().saturating_sub(self.prompter.options.history)..];
        let events = Events {
            batch: 1,
            length: steps.len(),
            items: steps.iter().map(|step| step.item).collect(),
            behaviours: steps.iter().map(|step| step.behaviour).collect(),
            real: vec![true; steps.len()],
        };
        Ok(fusion
            .modality_attention(self.modalities, &events)?
            .and_then(|all| all.first().copied()))
    }
}

fn log_softmax(logits: Vec<f32>) -> Vec<f32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&x| f64::from(x - top).exp()).sum();
    let log_sum = top + total.ln() as f32;
    logits.into_iter().map(|x| x - log_sum).collect()
}

/// What is asked of a ranker: a history and the items to order.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// Index of the user.
    pub user: usize,
    /// Events before.
    pub history: Vec<Step>,
    /// Items to score.
    pub items: Vec<u32>,
    /// Where the answer stands among them, if it does.
    pub positive: Option<usize>,
}

/// Per query, per item.
pub type Likelihoods = Vec<Vec<f64>>;

/// Log-likelihoods of the items of every query as answers, by item token or by title as the prompts
/// are. For titles, `listed`: the prompt shows the items; `mean`: per token instead of in sum.
///
/// # Errors
/// As [`Scorer::item_log_probs`] and [`Scorer::log_likelihoods`].
pub fn score(
    scorer: &Scorer<'_>,
    queries: &[Query],
    listed: bool,
    mean: bool,
    workers: &Workers,
) -> Result<Likelihoods> {
    if scorer.prompter.options.answer == Answer::Item {
        let histories: Vec<&[Step]> = queries.iter().map(|query| &query.history[..]).collect();
        let rows = scorer.item_log_probs(&histories, workers)?;
        let of = |(row, query): (Vec<f32>, &Query)| {
            query.items.iter().map(|&item| f64::from(row[item as usize])).collect()
        };
        return Ok(rows.into_iter().zip(queries).map(of).collect());
    }
    workers.map(queries.len(), |at| {
        common::run::check_interrupt()?;
        let query = &queries[at];
        let shown = listed.then_some(&query.items[..]);
        let scores = scorer.log_likelihoods(&query.history, shown, &query.items)?;
        let score = |(sum, tokens): (f64, usize)| if mean { sum / tokens as f64 } else { sum };
        Ok(scores.into_iter().map(score).collect())
    })
}

/// 1-based rank of each query's positive, ties at their middle; `None` where it is not among the
/// items.
pub fn ranks(queries: &[Query], scores: &[Vec<f64>]) -> Vec<Option<f64>> {
    queries
        .iter()
        .zip(scores)
        .map(|(query, scores)| query.positive.map(|at| metrics::rank_of(scores, at)))
        .collect()
}

/// Credit of each query at cut-off `k`: hit rate.
pub fn hits(ranks: &[Option<f64>], k: usize) -> Vec<f64> {
    ranks.iter().map(|rank| f64::from(rank.is_some_and(|rank| rank <= k as f64))).collect()
}

/// NDCG@k of each query with its one relevant item: 1 / log2(1 + rank).
pub fn ndcg(ranks: &[Option<f64>], k: usize) -> Vec<f64> {
    ranks
        .iter()
        .map(|rank| match rank {
            Some(rank) if *rank <= k as f64 => 1.0 / (1.0 + rank).log2(),
            _ => 0.0,
        })
        .collect()
}

/// LLaRA's reading of a generated answer: lower-cased, valid iff exactly one candidate title occurs
/// in it. The index of that candidate.
pub fn llara_choice(answer: &str, titles: &[&str]) -> Option<usize> {
    let answer = answer.to_lowercase();
    let mut found = titles.iter().enumerate().filter(|(_, title)| {
        let title = title.trim().to_lowercase();
        !title.is_empty() && answer.contains(&title)
    });
    let first = found.next()?;
    found.next().is_none().then_some(first.0)
}

/// Valid ratio and hit ratio of generated answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Generated {
    /// Share of answers that name exactly one candidate.
    pub valid_ratio: f64,
    /// Share of answers that name the right one: LLaRA's HitRatio@1.
    pub hit_ratio: f64,
}

/// Generates an answer per query and reads it by LLaRA's rule.
///
/// # Errors
/// As [`Scorer::generate`]; [`Error::Usage`] without queries.
pub fn generate(
    scorer: &Scorer<'_>,
    queries: &[Query],
    most: usize,
    workers: &Workers,
) -> Result<Generated> {
    if queries.is_empty() {
        return Err(Error::usage("generation needs at least one query"));
    }
    let outcomes = workers.map(queries.len(), |at| {
        let query = &queries[at];
        let answer = scorer.generate(&query.history, &query.items, most)?;
        // what the prompt shows of a title is what an answer can name
        let prompter = scorer.prompter;
        let shown = |&item: &u32| prompter.vocabulary.decode(prompter.title(item));
        let listed = query.items.iter().map(shown).collect::<Result<Vec<_>>>()?;
        let listed: Vec<&str> = listed.iter().map(String::as_str).collect();
        let choice = llara_choice(&answer, &listed);
        Ok((choice.is_some(), choice.is_some() && choice == query.positive))
    })?;
    let share = |count: usize| count as f64 / outcomes.len() as f64;
    Ok(Generated {
        valid_ratio: share(outcomes.iter().filter(|outcome| outcome.0).count()),
        hit_ratio: share(outcomes.iter().filter(|outcome| outcome.1).count()),
    })
}

/// Items with at most `most` training events.
pub fn rare_items(sequences: &[Vec<Step>], items: usize, most: usize) -> Vec<bool> {
    let mut counts: HashMap<u32, usize> = HashMap::new();
    for step in sequences.iter().flatten() {
        *counts.entry(step.item).or_default() += 1;
    }
    (0..items as u32).map(|item| counts.get(&item).copied().unwrap_or(0) <= most).collect()
}
