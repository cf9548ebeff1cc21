//! `json` mode: lenient reading, one repair, gaps for what stays unusable.

use common::llm::json::extract;
use common::llm::{Answer, Llm, Message, Request};
use common::{Error, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::tokens::Counter;
use super::{Query, Raw, Tally, prompts};
use crate::artefact::Reason;
use crate::config::WriterConfig;
use crate::data::{Schema, schema::hex};

/// Usable weights of one answer, by position in the batch, and reasons.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parsed {
    /// One entry per feature of the batch; `None` where there is no number in range.
    pub weights: Vec<Option<f64>>,
    /// Reasons of the batch's features.
    pub reasoning: Vec<Reason>,
}

/// Reads one answer. A weight counts when it is a finite number with |w| ≤ `range` under the
/// feature's own name; everything else is a gap. An object without "weights" is read as the
/// weights themselves. Other features are ignored.
pub fn parse(text: &str, names: &[&str], range: f64) -> Parsed {
    let mut parsed = Parsed { weights: vec![None; names.len()], reasoning: Vec::new() };
    let extracted = extract(text);
    let Some(Value::Object(answer)) = extracted.value() else { return parsed };
    let weights = match answer.get("weights") {
        Some(Value::Object(weights)) => weights,
        Some(_) => return parsed,
        None => answer,
    };
    for (slot, name) in parsed.weights.iter_mut().zip(names) {
        let number = weights.get(*name).and_then(Value::as_f64);
        *slot = number.filter(|w| w.is_finite() && w.abs() <= range);
    }
    if let Some(Value::Object(reasons)) = answer.get("reasoning") {
        for name in names {
            if let Some(Value::String(reason)) = reasons.get(*name) {
                let text = reason.chars().filter(|c| !c.is_control()).take(300).collect();
                parsed.reasoning.push(Reason { feature: (*name).to_owned(), text });
            }
        }
    }
    parsed
}

/// One prompt: which ad, which features, which sample.
struct Job {
    query: usize,
    batch: Vec<usize>,
    messages: Vec<Message>,
    /// Of the messages before any repair.
    prompt_hash: String,
    seed: u64,
    parsed: Parsed,
    answer: String,
}

/// Asks about all queries: every batch and sample once, what is incomplete once more.
pub(super) fn write(
    llm: &Llm,
    schema: &Schema,
    config: &WriterConfig,
    counter: &Counter,
    queries: &[Query<'_>],
    tally: &mut Tally,
) -> Result<Vec<Raw>> {
    let mut jobs = Vec::new();
    for (query, asked) in queries.iter().enumerate() {
        for (batch, messages) in prompts::json_batches(schema, config, asked) {
            let prompt_hash = hex(&Sha256::digest(prompts::as_text(&messages)));
            for sample in 0..config.samples {
                jobs.push(Job {
                    query,
                    parsed: Parsed { weights: vec![None; batch.len()], reasoning: Vec::new() },
                    batch: batch.clone(),
                    messages: messages.clone(),
                    prompt_hash: prompt_hash.clone(),
                    seed: sample as u64,
                    answer: String::new(),
                });
            }
        }
    }
    let first: Vec<usize> = (0..jobs.len()).collect();
    ask(llm, schema, config, counter, &mut jobs, &first, tally)?;
    let incomplete: Vec<usize> =
        first.into_iter().filter(|&at| jobs[at].parsed.weights.contains(&None)).collect();
    tally.repairs += incomplete.len();
    for &at in &incomplete {
        let job = &mut jobs[at];
        let missing: Vec<&str> = job
            .batch
            .iter()
            .zip(&job.parsed.weights)
            .filter(|(_, weight)| weight.is_none())
            .map(|(&j, _)| schema.features[j].name.as_str())
            .collect();
        // What was wrong is shown, cut short; only the missing features are asked for.
        let shown: String = job.answer.chars().take(2_000).collect();
        job.messages.push(Message::assistant(if shown.is_empty() { "{}".into() } else { shown }));
        job.messages.push(Message::user(format!(
            "That was not one JSON object with a number from -{range} to {range} for each feature. \
             Answer again with JSON only, with the weights of: {}",
            missing.join(", "),
            range = config.range
        )));
    }
    ask(llm, schema, config, counter, &mut jobs, &incomplete, tally)?;
    Ok(collect(schema, queries, &jobs))
}

/// Asks the given jobs and keeps what is usable; weights that are known already stay.
fn ask(
    llm: &Llm,
    schema: &Schema,
    config: &WriterConfig,
    counter: &Counter,
    jobs: &mut [Job],
    which: &[usize],
    tally: &mut Tally,
) -> Result<()> {
    let requests: Vec<Request> = which
        .iter()
        .map(|&at| {
            let job = &jobs[at];
            tally.prompts += 1;
            tally.tokens += counter.count(&prompts::as_text(&job.messages));
            Request {
                temperature: if config.samples > 1 {
                    config.temperature.max(0.2)
                } else {
                    config.temperature
                },
                seed: job.seed,
                ..Request::new(job.messages.clone())
                    .max_tokens(config.max_tokens)
                    .schema(prompts::answer_schema(schema, config, &job.batch))
            }
        })
        .collect();
    let outcome = llm.generate_many(&requests, config.in_flight, |index, answer| {
        let job = &mut jobs[which[index]];
        match answer.and_then(Answer::into_text) {
            Ok(text) => {
                let names: Vec<&str> =
                    job.batch.iter().map(|&j| schema.features[j].name.as_str()).collect();
                let parsed = parse(&text, &names, config.range);
                for (known, new) in job.parsed.weights.iter_mut().zip(parsed.weights) {
                    *known = known.or(new);
                }
                job.parsed.reasoning.extend(parsed.reasoning);
                job.answer = text;
            }
            Err(Error::LlmOutput(reason)) => tracing::warn!("{reason}"),
            Err(error) => return Err(error),
        }
        Ok(())
    });
    match outcome {
        Err(Error::Temporary(reason)) if config.fallback_on_outage => {
            tracing::warn!("{reason}: weights come from the fallback");
            Ok(())
        }
        outcome => outcome,
    }
}

/// Joins batches and takes the median over samples.
fn collect(schema: &Schema, queries: &[Query<'_>], jobs: &[Job]) -> Vec<Raw> {
    let mut raws = Vec::with_capacity(queries.len());
    for query in 0..queries.len() {
        let mut samples: Vec<Vec<f64>> = vec![Vec::new(); schema.len()];
        let mut raw = Raw::default();
        let mut hash = Sha256::new();
        for job in jobs.iter().filter(|job| job.query == query) {
            hash.update(&job.prompt_hash);
            for (&j, weight) in job.batch.iter().zip(&job.parsed.weights) {
                samples[j].extend(weight);
            }
            if job.seed == 0 {
                raw.reasoning.extend(job.parsed.reasoning.iter().cloned());
            }
        }
        raw.values = samples
            .iter()
            .map(|s| (!s.is_empty()).then(|| crate::model::normalise::median(s)))
            .collect();
        raw.prompt_hash = hex(&hash.finalize());
        raws.push(raw);
    }
    raws
}
