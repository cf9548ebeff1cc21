//! An LLM as a classifier: the label with the highest log-probability as the continuation.

use std::collections::HashMap;
use std::sync::Mutex;

use common::llm::{Llm, Message, OptionScore, Prompt};
use common::{Error, Result};

use super::{Answer, Labeler, argmax};
use crate::config::{Calibration, ScoreConfig, ScoreTemplate};
use crate::data::{Attribute, Product};

/// Scores every label of the closed set, so it always answers and never outside the set.
#[derive(Debug)]
pub struct Scoring {
    config: ScoreConfig,
    llm: std::sync::Arc<Llm>,
    max_chars: usize,
    /// Scores without a product, by attribute name.
    content_free: Mutex<HashMap<String, Vec<f64>>>,
}

impl Scoring {
    /// A labeler on an open LLM, which several labelers may share.
    pub fn new(config: &ScoreConfig, llm: std::sync::Arc<Llm>, max_chars: usize) -> Self {
        let content_free = Mutex::new(HashMap::new());
        Self { config: config.clone(), llm, max_chars, content_free }
    }

    /// Prompt and options. The product comes first and the attribute last, so all attributes of
    /// a product share the longest possible prefix.
    fn prompt(&self, text: &str, attribute: &Attribute) -> (Prompt, Vec<String>) {
        match self.config.template {
            ScoreTemplate::Cloze => {
                let cloze = if attribute.cloze.is_empty() {
                    format!("The {} of this product is:", attribute.name)
                } else {
                    attribute.cloze.clone()
                };
                let options = attribute.labels.iter().map(|l| format!(" {}", l.completion()));
                (Prompt::Raw(format!("{text}\n{cloze}")), options.collect())
            }
            ScoreTemplate::Choice => {
                let names = attribute.names();
                let question = format!(
                    "{text}\n\nWhat is the {} of this product? Answer with one of: {}.",
                    attribute.name,
                    names.join(", ")
                );
                let messages = vec![
                    Message::system("You classify products of an online shop."),
                    Message::user(question),
                ];
                (Prompt::Chat(messages), names.into_iter().map(str::to_owned).collect())
            }
        }
    }

    fn scores(&self, text: &str, attribute: &Attribute) -> Result<Vec<f64>> {
        let (prompt, options) = self.prompt(text, attribute);
        let value = if self.config.per_token { OptionScore::mean } else { OptionScore::sum };
        Ok(self.llm.score_options(&prompt, &options)?.iter().map(value).collect())
    }

    /// Mean score over texts that say nothing about any product.
    fn content_free(&self, attribute: &Attribute) -> Result<Vec<f64>> {
        let mut known = self.content_free.lock().map_err(|_| Error::Bug("poisoned".into()))?;
        if let Some(scores) = known.get(&attribute.name) {
            return Ok(scores.clone());
        }
        let mut total = vec![0.0; attribute.labels.len()];
        for text in ["N/A", "This product is great.", "I bought it online."] {
            let text = text_of(&Product::new("", "", text), self.max_chars);
            for (sum, score) in total.iter_mut().zip(self.scores(&text, attribute)?) {
                *sum += score / 3.0;
            }
        }
        known.insert(attribute.name.clone(), total.clone());
        Ok(total)
    }
}

/// Title and description as running text.
fn text_of(product: &Product, max_chars: usize) -> String {
    let text = product.text();
    format!("Review: {}", text.chars().take(max_chars).collect::<String>())
}

impl Labeler for Scoring {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn answer(
        &self,
        products: &[&Product],
        attributes: &[&Attribute],
    ) -> Result<Vec<Vec<Answer>>> {
        let mut rows = Vec::with_capacity(products.len());
        for product in products {
            let text = text_of(product, self.max_chars);
            let mut row = Vec::with_capacity(attributes.len());
            for attribute in attributes {
                let mut scores = self.scores(&text, attribute)?;
                if self.config.calibration == Calibration::ContentFree {
                    let free = self.content_free(attribute)?;
                    scores.iter_mut().zip(free).for_each(|(score, free)| *score -= free);
                }
                row.push(argmax(scores).map_or_else(Answer::missing, Answer::label));
            }
            rows.push(row);
        }
        Ok(rows)
    }
}
