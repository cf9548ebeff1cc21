//! An LLM as a classifier: the label with the highest log-probability as the continuation.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use common::llm::{Llm, Message, OptionScore, Prompt};
use common::{Error, Result};

use super::{Answer, Labeler, argmax};
use crate::config::{Calibration, ScoreConfig, ScoreTemplate};
use crate::data::{Attribute, Examples, Product};

/// Scores every label of the closed set, so it always answers and never outside the set.
///
/// What all products share (examples, label lists) comes first in the prompt, then the product,
/// then the attribute: consecutive prompts have the longest possible common prefix, which a local
/// LLM computes once.
#[derive(Debug)]
pub struct Scoring {
    config: ScoreConfig,
    llm: Arc<Llm>,
    max_chars: usize,
    examples: Vec<(Product, HashMap<String, usize>)>,
    sample: Vec<Product>,
    /// Correction of each label's score, by attribute name; computed on first use.
    corrections: Mutex<HashMap<String, Vec<f64>>>,
}

impl Scoring {
    /// A labeler on an open LLM, which several labelers may share.
    pub fn new(config: &ScoreConfig, llm: Arc<Llm>, max_chars: usize) -> Self {
        Self {
            config: config.clone(),
            llm,
            max_chars,
            examples: Vec::new(),
            sample: Vec::new(),
            corrections: Mutex::default(),
        }
    }

    /// Products without labels, for [`Calibration::Batch`]; the first `config.sample` are used.
    pub fn with_sample(mut self, products: &[Product]) -> Self {
        self.sample = products.iter().take(self.config.sample).cloned().collect();
        self
    }

    /// Shows the same `config.examples` labelled products before every question: round by round
    /// the next product of each label of the last attribute, in the order of `examples`.
    pub fn with_examples(mut self, attributes: &[Attribute], examples: &Examples) -> Self {
        let Some(last) = attributes.last() else { return self };
        let mut by_label = vec![Vec::new(); last.labels.len()];
        for index in 0..examples.products.len() {
            let known = attributes.iter().all(|a| examples.label(index, a).is_some());
            if let (true, Some(label)) = (known, examples.label(index, last)) {
                by_label[label].push(index);
            }
        }
        let rounds = by_label.iter().map(Vec::len).max().unwrap_or(0);
        let order = (0..rounds).flat_map(|round| by_label.iter().filter_map(move |l| l.get(round)));
        for &index in order.take(self.config.examples) {
            let label = |a: &Attribute| Some((a.name.clone(), examples.label(index, a)?));
            let labels = attributes.iter().filter_map(label).collect();
            self.examples.push((examples.products[index].clone(), labels));
        }
        self
    }

    fn text(&self, product: &Product) -> String {
        product.text().chars().take(self.max_chars).collect()
    }

    fn prompt(
        &self,
        product: &Product,
        attribute: &Attribute,
        asked: &[&Attribute],
    ) -> (Prompt, Vec<String>) {
        let text = self.text(product);
        match self.config.template {
            ScoreTemplate::Cloze => {
                let cloze = if attribute.cloze.is_empty() {
                    format!("The {} of this product is:", attribute.name)
                } else {
                    attribute.cloze.clone()
                };
                let mut prompt = String::new();
                for (example, labels) in &self.examples {
                    if let Some(label) = labels.get(&attribute.name) {
                        let text = self.text(example);
                        let phrase = attribute.labels[*label].completion();
                        prompt.push_str(&format!("Review: {text}\n{cloze} {phrase}.\n\n"));
                    }
                }
                prompt.push_str(&format!("Review: {text}\n{cloze}"));
                // Examples end their phrase with a stop, so the end of a phrase is known to count.
                let stop = if self.examples.is_empty() { "" } else { "." };
                let options = attribute.labels.iter();
                let options = options.map(|l| format!(" {}{stop}", l.completion()));
                (Prompt::Raw(prompt), options.collect())
            }
            ScoreTemplate::Choice => {
                let question = |text: &str| format!("Review: {text}\nThe {}?", attribute.name);
                let mut task = "You classify products of an online shop by what a text says about \
                                them. Answer with one of the listed values and nothing else."
                    .to_owned();
                for attribute in asked {
                    task.push_str(&format!(
                        "\nValues of {}: {}.",
                        attribute.name,
                        attribute.names().join(", ")
                    ));
                }
                let mut messages = vec![Message::system(task)];
                for (example, labels) in &self.examples {
                    if let Some(label) = labels.get(&attribute.name) {
                        messages.push(Message::user(question(&self.text(example))));
                        messages.push(Message::assistant(&attribute.labels[*label].name));
                    }
                }
                messages.push(Message::user(question(&text)));
                let options = attribute.names().into_iter().map(str::to_owned).collect();
                (Prompt::Chat(messages), options)
            }
        }
    }

    fn scores(
        &self,
        product: &Product,
        attribute: &Attribute,
        asked: &[&Attribute],
    ) -> Result<Vec<f64>> {
        let (prompt, options) = self.prompt(product, attribute, asked);
        let per_token = self.config.per_token;
        let value = |s: &OptionScore| if per_token { s.mean_log_prob() } else { s.log_prob };
        Ok(self.llm.score_options(&prompt, &options)?.iter().map(value).collect())
    }

    /// What is subtracted from the labels' scores.
    fn correction(&self, attribute: &Attribute, asked: &[&Attribute]) -> Result<Vec<f64>> {
        let mut known = self.corrections.lock().map_err(|_| Error::Bug("poisoned lock".into()))?;
        if let Some(correction) = known.get(&attribute.name) {
            return Ok(correction.clone());
        }
        let labels = attribute.labels.len();
        let correction = match self.config.calibration {
            Calibration::None => vec![0.0; labels],
            Calibration::ContentFree => {
                let mut mean = vec![0.0; labels];
                for text in CONTENT_FREE {
                    let scores = self.scores(&Product::new("", "", text), attribute, asked)?;
                    for (sum, score) in mean.iter_mut().zip(scores) {
                        *sum += score / CONTENT_FREE.len() as f64;
                    }
                }
                mean
            }
            Calibration::Batch => {
                let mut mean = vec![0.0; labels];
                for product in &self.sample {
                    for (sum, p) in
                        mean.iter_mut().zip(softmax(&self.scores(product, attribute, asked)?))
                    {
                        *sum += p / self.sample.len() as f64;
                    }
                }
                mean.iter().map(|p| BATCH_STRENGTH * p.max(f64::MIN_POSITIVE).ln()).collect()
            }
        };
        known.insert(attribute.name.clone(), correction.clone());
        Ok(correction)
    }
}

const CONTENT_FREE: [&str; 3] = ["N/A", "I love it.", "I bought it online."];
/// Share of an LLM's label preference that batch calibration takes back. 1 would assume that all
/// labels are equally frequent; one half was better than 0 and 1 on reviews outside the bench.
const BATCH_STRENGTH: f64 = 0.5;

fn softmax(scores: &[f64]) -> Vec<f64> {
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|score| (score - top).exp()).sum();
    scores.iter().map(|score| (score - top).exp() / total).collect()
}

impl Labeler for Scoring {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn answer(&self, products: &[&Product], attributes: &[&Attribute]) -> Result<Vec<Vec<Answer>>> {
        let mut rows = Vec::with_capacity(products.len());
        for product in products {
            let mut row = Vec::with_capacity(attributes.len());
            for attribute in attributes {
                let mut scores = self.scores(product, attribute, attributes)?;
                let correction = self.correction(attribute, attributes)?;
                scores.iter_mut().zip(correction).for_each(|(score, less)| *score -= less);
                row.push(argmax(scores).map_or_else(Answer::missing, Answer::label));
            }
            rows.push(row);
        }
        Ok(rows)
    }
}
