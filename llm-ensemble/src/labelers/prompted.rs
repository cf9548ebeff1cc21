//! An LLM that is asked in words and whose reply is parsed.

use std::sync::Arc;

use common::Result;
use common::encode::TextEncoder;
use common::llm::{Llm, Request};

use super::prompts::{Example, json_schema, messages};
use super::{Answer, Labeler};
use crate::config::{PromptConfig, PromptStyle};
use crate::data::parse::{Parsed, Parser, object};
use crate::data::{Attribute, Examples, Product};

/// Asks by a list, schema or question prompt (§3.4), with in-context examples chosen by semantic
/// similarity.
#[derive(Debug)]
pub struct Prompted {
    config: PromptConfig,
    llm: Arc<Llm>,
    max_chars: usize,
    seed: u64,
    pool: Option<Pool>,
}

/// Labelled products and their embeddings.
#[derive(Debug)]
struct Pool {
    examples: Arc<Examples>,
    encoder: Arc<TextEncoder>,
    embeddings: ndarray::Array2<f32>,
}

impl Prompted {
    /// A labeler on an open LLM.
    pub fn new(config: &PromptConfig, llm: Arc<Llm>, max_chars: usize, seed: u64) -> Self {
        Self { config: config.clone(), llm, max_chars, seed, pool: None }
    }

    /// Shows the `config.examples` products of `examples` that are nearest to the asked one.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn with_examples(
        mut self,
        examples: Arc<Examples>,
        encoder: Arc<TextEncoder>,
    ) -> Result<Self> {
        let texts: Vec<String> = examples.products.iter().map(Product::text).collect();
        let embeddings = encoder.encode(&texts)?;
        self.pool = Some(Pool { examples, encoder, embeddings });
        Ok(self)
    }

    fn request(&self, product: &Product, attributes: &[&Attribute]) -> Result<Request> {
        let mut shown = Vec::new();
        if let Some(pool) = &self.pool {
            for index in pool.nearest(product, self.config.examples)? {
                let known = &pool.examples;
                let labels: Vec<Option<usize>> =
                    attributes.iter().map(|a| known.label(index, a)).collect();
                shown.push((&known.products[index], labels));
            }
        }
        let examples: Vec<Example<'_>> =
            shown.iter().map(|(product, labels)| Example { product, labels }).collect();
        let style = self.config.style;
        let mut request =
            Request::new(messages(style, product, attributes, &examples, self.max_chars))
                .max_tokens(self.config.max_tokens);
        request.temperature = self.config.temperature;
        request.seed = self.seed;
        if self.config.constrain && style != PromptStyle::Question {
            request = request.schema(json_schema(attributes));
        }
        Ok(request)
    }

    fn ask(&self, product: &Product, attributes: &[&Attribute]) -> Result<Vec<Answer>> {
        let text = self.llm.generate(&self.request(product, attributes)?)?.into_text()?;
        let fields = match self.config.style {
            PromptStyle::Question => None,
            PromptStyle::List | PromptStyle::Schema => object(&text),
        };
        let read = |attribute: &&Attribute| {
            let parser = Parser::new(attribute);
            let parsed = match (&fields, attributes.len()) {
                (Some(fields), _) => parser.field(fields),
                // One attribute: a bare label is as clear as JSON.
                (None, 1) => parser.value(&text),
                (None, _) => Parsed::Unusable,
            };
            let unusable = parsed == Parsed::Unusable;
            Answer { label: parsed.label(), unusable, text: text.clone() }
        };
        Ok(attributes.iter().map(read).collect())
    }
}

impl Pool {
    /// Indices of the `count` nearest examples, the nearest last (next to the question).
    fn nearest(&self, product: &Product, count: usize) -> Result<Vec<usize>> {
        let query = self.encoder.encode(&[product.text()])?;
        let cosines = self.embeddings.dot(&query.row(0));
        let mut order: Vec<usize> = (0..cosines.len())
            .filter(|&index| self.examples.products[index].id != product.id)
            .collect();
        order.sort_by(|&a, &b| cosines[b].total_cmp(&cosines[a]).then(a.cmp(&b)));
        order.truncate(count);
        order.reverse();
        Ok(order)
    }
}

impl Labeler for Prompted {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn in_flight(&self) -> usize {
        self.config.in_flight
    }

    fn answer(&self, products: &[&Product], attributes: &[&Attribute]) -> Result<Vec<Vec<Answer>>> {
        let one = |product: &&Product| match self.config.style {
            PromptStyle::Question => {
                let mut row = Vec::with_capacity(attributes.len());
                for attribute in attributes {
                    row.extend(self.ask(product, &[attribute])?);
                }
                Ok(row)
            }
            PromptStyle::List | PromptStyle::Schema => self.ask(product, attributes),
        };
        products.iter().map(one).collect()
    }
}
