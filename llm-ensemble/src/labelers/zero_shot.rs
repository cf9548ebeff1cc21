//! MiniLM zero-shot: the label whose description is nearest to the product text.

use std::collections::HashMap;
use std::sync::Arc;

use common::encode::TextEncoder;
use common::{Error, Result};
use ndarray::Array2;

use super::{Answer, Labeler, argmax};
use crate::config::ZeroShotConfig;
use crate::data::{Attribute, Product, Schema};

/// Cosine between the unit embeddings of text and label description.
#[derive(Debug)]
pub struct ZeroShot {
    config: ZeroShotConfig,
    encoder: Arc<TextEncoder>,
    /// (labels, 384) by attribute name.
    labels: HashMap<String, Array2<f32>>,
}

impl ZeroShot {
    /// Embeds the labels of `schema`.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn new(
        config: &ZeroShotConfig,
        encoder: Arc<TextEncoder>,
        schema: &Schema,
    ) -> Result<Self> {
        let mut labels = HashMap::new();
        for attribute in &schema.attributes {
            let texts: Vec<&str> = attribute.labels.iter().map(|l| l.describe()).collect();
            labels.insert(attribute.name.clone(), encoder.encode(&texts)?);
        }
        Ok(Self { config: config.clone(), encoder, labels })
    }
}

impl Labeler for ZeroShot {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn batch(&self) -> usize {
        32
    }

    fn answer(&self, products: &[&Product], attributes: &[&Attribute]) -> Result<Vec<Vec<Answer>>> {
        let texts: Vec<String> = products.iter().map(|product| product.text()).collect();
        let texts = self.encoder.encode(&texts)?; // (products, 384)
        let mut rows = vec![Vec::with_capacity(attributes.len()); products.len()];
        for attribute in attributes {
            let labels = self.labels.get(&attribute.name).ok_or_else(|| {
                Error::Bug(format!("attribute {} was not embedded", attribute.name))
            })?;
            let cosines = texts.dot(&labels.t()); // (products, labels)
            for (row, scores) in rows.iter_mut().zip(cosines.rows()) {
                let best = argmax(scores.iter().map(|&score| f64::from(score)));
                row.push(best.map_or_else(Answer::missing, Answer::label));
            }
        }
        Ok(rows)
    }
}
