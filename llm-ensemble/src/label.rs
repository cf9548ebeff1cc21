//! The driver of `label`: every labeler is asked about every (product, attribute).
//!
//! The driver itself keeps no state. Finished answers of LLMs stand in the answer cache of
//! [`common::llm`], which is durable and keyed by the request's content, so a run that was killed
//! continues where it stood when it is started again: what is finished is not asked again.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use common::data::{Values, write};
use common::{Error, Result, run};
use serde::Serialize;

use crate::config::LabelConfig;
use crate::data::{Attribute, Product, Schema};
use crate::labelers::{Answer, Labeler};

/// All answers of one `label` run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answers {
    /// Names of the workers.
    pub workers: Vec<String>,
    /// Label index of (worker, attribute, product), attribute varying slower than product within
    /// a worker; `None` = missing.
    #[serde(skip)]
    labels: Vec<Option<usize>>,
    products: usize,
    attributes: usize,
    /// What each worker did, in order of `workers`.
    pub counts: Vec<Counts>,
}

/// What one worker did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// (product, attribute) pairs that the worker was responsible for.
    pub asked: usize,
    /// Labels of the closed set.
    pub answered: usize,
    /// "unknown", or no rule applied.
    pub abstained: usize,
    /// Replies outside the closed set.
    pub unusable: usize,
    /// Requests that got no reply at all.
    pub failed: usize,
    /// The first failure, if any.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub first_failure: String,
}

impl Answers {
    /// Label index, or `None` when the worker gave none.
    pub fn label(&self, worker: usize, attribute: usize, product: usize) -> Option<usize> {
        self.labels[(worker * self.attributes + attribute) * self.products + product]
    }

    /// Labels of one worker and attribute, by product.
    pub fn labels_of(&self, worker: usize, attribute: usize) -> &[Option<usize>] {
        let start = (worker * self.attributes + attribute) * self.products;
        &self.labels[start..start + self.products]
    }
}

/// Asks all labelers, one after the other, each with as many calls at once as it allows.
///
/// The result does not depend on timing: it is ordered by worker, attribute and product.
///
/// # Errors
/// `LlmOutput` when more than `config.allowed_failures` of a worker's answers are unusable or
/// failed; `Temporary` when an endpoint is down; `Interrupted` on a signal; anything that a
/// labeler can't recover from. Finished answers stay in the answer cache in all cases.
pub fn label(
    products: &[Product],
    schema: &Schema,
    labelers: &[Box<dyn Labeler>],
    config: &LabelConfig,
) -> Result<Answers> {
    let mut answers = Answers {
        workers: labelers.iter().map(|labeler| labeler.name().to_owned()).collect(),
        labels: Vec::with_capacity(labelers.len() * schema.attributes.len() * products.len()),
        products: products.len(),
        attributes: schema.attributes.len(),
        counts: Vec::with_capacity(labelers.len()),
    };
    for labeler in labelers {
        let attributes: Vec<usize> = (0..schema.attributes.len())
            .filter(|&a| {
                let asked = &schema.attributes[a].labelers;
                asked.is_empty() || asked.iter().any(|name| name == labeler.name())
            })
            .collect();
        let (labels, counts) = ask(products, schema, labeler.as_ref(), &attributes)?;
        let bad = counts.unusable + counts.failed;
        tracing::info!(
            "{}: {} of {} answered, {} abstained, {} unusable, {} failed",
            labeler.name(),
            counts.answered,
            counts.asked,
            counts.abstained,
            counts.unusable,
            counts.failed
        );
        if bad as f64 > config.allowed_failures * counts.asked as f64 {
            return Err(Error::LlmOutput(unusable_share(labeler.name(), &counts, config)));
        }
        answers.labels.extend(labels);
        answers.counts.push(counts);
    }
    Ok(answers)
}

fn unusable_share(name: &str, counts: &Counts, config: &LabelConfig) -> String {
    let mut text = format!(
        "labeler {name}: {} of {} answers are unusable and {} requests failed, more than the \
         allowed share of {}",
        counts.unusable, counts.asked, counts.failed, config.allowed_failures
    );
    if !counts.first_failure.is_empty() {
        text.push_str(&format!(" (first: {})", counts.first_failure));
    }
    text + "; finished answers are kept; check the prompt or raise label.allowed_failures"
}

/// One labeler's labels by (attribute, product), over all attributes of the schema.
fn ask(
    products: &[Product],
    schema: &Schema,
    labeler: &dyn Labeler,
    asked: &[usize],
) -> Result<(Vec<Option<usize>>, Counts)> {
    let attributes: Vec<&Attribute> = asked.iter().map(|&a| &schema.attributes[a]).collect();
    let mut labels = vec![None; schema.attributes.len() * products.len()];
    let mut counts = Counts { asked: asked.len() * products.len(), ..Counts::default() };
    if attributes.is_empty() {
        return Ok((labels, counts));
    }
    let batch = labeler.batch().max(1);
    let batches = products.len().div_ceil(batch);
    let progress = run::progress(products.len() as u64, labeler.name());
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let mut fatal: Option<Error> = None;
    std::thread::scope(|scope| {
        let (sender, finished) = mpsc::channel();
        for _ in 0..labeler.in_flight().clamp(1, batches.max(1)) {
            let sender = sender.clone();
            let (next, stop, attributes) = (&next, &stop, &attributes);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let start = next.fetch_add(1, Ordering::Relaxed) * batch;
                    if start >= products.len() {
                        break;
                    }
                    let end = (start + batch).min(products.len());
                    let some: Vec<&Product> = products[start..end].iter().collect();
                    if sender.send((start, some.len(), labeler.answer(&some, attributes))).is_err()
                    {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (start, count, result) in finished {
            progress.add(count as u64);
            let mut end = |error: Error| {
                stop.store(true, Ordering::Relaxed);
                fatal.get_or_insert(error);
            };
            match result {
                Ok(rows) => {
                    for (offset, row) in rows.into_iter().enumerate() {
                        for (&attribute, answer) in asked.iter().zip(row) {
                            counts.add(&answer);
                            labels[attribute * products.len() + start + offset] = answer.label;
                        }
                    }
                }
                Err(Error::LlmOutput(reason)) => {
                    counts.failed += count * asked.len();
                    tracing::warn!("{}, item {}: {reason}", labeler.name(), products[start].id);
                    if counts.first_failure.is_empty() {
                        counts.first_failure = reason;
                    }
                }
                Err(error) => end(error),
            }
            if let Some(signal) = run::interrupted() {
                end(Error::Interrupted(signal));
            }
        }
    });
    drop(progress);
    match fatal {
        Some(error) => Err(error),
        None => Ok((labels, counts)),
    }
}

impl Counts {
    fn add(&mut self, answer: &Answer) {
        let count = if answer.label.is_some() {
            &mut self.answered
        } else if answer.unusable {
            &mut self.unusable
        } else {
            &mut self.abstained
        };
        *count += 1;
    }
}

/// Writes the answers as a long vote file (item, worker, label, attribute), sorted by attribute and
/// worker in the order of schema and configuration within each product, in file order. Missing
/// answers have no row.
///
/// # Errors
/// The file can't be written; its extension tells no format.
pub fn write_votes(
    path: &Path,
    products: &[Product],
    schema: &Schema,
    answers: &Answers,
) -> Result<u64> {
    let mut columns: [Vec<String>; 4] = Default::default();
    for (product, of) in products.iter().enumerate() {
        for (index, attribute) in schema.attributes.iter().enumerate() {
            for (worker, name) in answers.workers.iter().enumerate() {
                if let Some(label) = answers.label(worker, index, product) {
                    let cells = [&of.id, name, &attribute.labels[label].name, &attribute.name];
                    columns.iter_mut().zip(cells).for_each(|(to, cell)| to.push(cell.clone()));
                }
            }
        }
    }
    let [items, workers, labels, attributes] = &columns;
    write(
        path,
        &[
            ("item", Values::Text(items)),
            ("worker", Values::Text(workers)),
            ("label", Values::Text(labels)),
            ("attribute", Values::Text(attributes)),
        ],
    )?;
    Ok(items.len() as u64)
}
