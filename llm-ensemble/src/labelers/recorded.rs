//! Answers recorded before, from a vote file.

use std::collections::HashMap;

use common::Result;

use super::{Answer, Labeler};
use crate::data::{Attribute, Product};

/// Replays one worker's recorded labels; an item without a record is missing.
#[derive(Debug)]
pub struct Recorded {
    name: String,
    /// (attribute, item) → label.
    labels: HashMap<(String, String), String>,
}

impl Recorded {
    /// A worker with the given (attribute, item, label) records.
    pub fn new(name: &str, records: impl IntoIterator<Item = (String, String, String)>) -> Self {
        let labels = records.into_iter().map(|(a, item, label)| ((a, item), label)).collect();
        Self { name: name.to_owned(), labels }
    }
}

impl Labeler for Recorded {
    fn name(&self) -> &str {
        &self.name
    }

    fn batch(&self) -> usize {
        1024
    }

    fn answer(&self, products: &[&Product], attributes: &[&Attribute]) -> Result<Vec<Vec<Answer>>> {
        let find = |product: &Product, attribute: &Attribute| {
            let key = (attribute.name.clone(), product.id.clone());
            match self.labels.get(&key) {
                None => Answer::missing(),
                Some(text) => {
                    let parsed = crate::data::parse::Parser::new(attribute).value(text);
                    Answer {
                        label: parsed.label(),
                        unusable: parsed == crate::data::parse::Parsed::Unusable,
                        text: text.clone(),
                    }
                }
            }
        };
        let one = |product: &&Product| attributes.iter().map(|a| find(product, a)).collect();
        Ok(products.iter().map(one).collect())
    }
}
