//! Logistic regression on labelled texts, the paper's supervised baseline.

use std::collections::HashMap;
use std::sync::Arc;

use common::encode::TextEncoder;
use common::logistic::{LogisticOptions, LogisticRegression};
use common::{Error, Result};
use ndarray::{Array2, Axis};

use super::{Answer, Labeler, Tfidf};
use crate::config::{Features, LogisticConfig};
use crate::data::{Attribute, Examples, Product, Schema};

/// Multinomial logistic regression per attribute over TF-IDF or MiniLM features.
#[derive(Debug)]
pub struct Logistic {
    config: LogisticConfig,
    input: Input,
    models: HashMap<String, LogisticRegression>,
}

#[derive(Debug)]
enum Input {
    Tfidf(Tfidf),
    Minilm(Arc<TextEncoder>),
}

impl Input {
    /// (products, features)
    fn features(&self, products: &[&Product]) -> Result<Array2<f64>> {
        let texts: Vec<String> = products.iter().map(|product| product.text()).collect();
        match self {
            Self::Tfidf(tfidf) => {
                let mut dense = Array2::zeros((texts.len(), tfidf.dim()));
                for (mut row, text) in dense.rows_mut().into_iter().zip(&texts) {
                    for (column, value) in tfidf.transform(text) {
                        row[column] = f64::from(value);
                    }
                }
                Ok(dense)
            }
            Self::Minilm(encoder) => Ok(encoder.encode(&texts)?.mapv(f64::from)),
        }
    }
}

impl Logistic {
    /// Trains one model per attribute of `schema` on the products whose label is known.
    /// `encoder` is needed for [`Features::Minilm`] only.
    ///
    /// # Errors
    /// No labelled product for an attribute; a missing encoder; those of the encoder.
    pub fn train(
        config: &LogisticConfig,
        schema: &Schema,
        examples: &Examples,
        encoder: Option<Arc<TextEncoder>>,
    ) -> Result<Self> {
        let products: Vec<&Product> = examples.products.iter().collect();
        let input = match config.features {
            Features::Tfidf => {
                let texts: Vec<String> = products.iter().map(|product| product.text()).collect();
                Input::Tfidf(Tfidf::fit(&texts, config.min_texts))
            }
            Features::Minilm => Input::Minilm(encoder.ok_or_else(|| {
                Error::Bug("logistic regression on MiniLM features without an encoder".into())
            })?),
        };
        let all = input.features(&products)?;
        let mut models = HashMap::new();
        for attribute in &schema.attributes {
            let known =
                (0..products.len()).filter_map(|p| Some((p, examples.label(p, attribute)?)));
            let (rows, labels): (Vec<usize>, Vec<usize>) = known.unzip();
            if rows.is_empty() {
                return Err(Error::data(
                    format!("no product with a known {}", attribute.name),
                    "a train file with labels of this attribute for logistic regression",
                ));
            }
            let rows = all.select(Axis(0), &rows);
            let options = LogisticOptions { c: config.c, tolerance: 1e-4, ..Default::default() };
            let model = LogisticRegression::fit(
                rows.view(),
                &labels,
                attribute.labels.len(),
                None,
                options,
            )?;
            models.insert(attribute.name.clone(), model);
        }
        Ok(Self { config: config.clone(), input, models })
    }
}

impl Labeler for Logistic {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn batch(&self) -> usize {
        64
    }

    fn answer(&self, products: &[&Product], attributes: &[&Attribute]) -> Result<Vec<Vec<Answer>>> {
        let features = self.input.features(products)?;
        let mut rows = vec![Vec::with_capacity(attributes.len()); products.len()];
        for attribute in attributes {
            let model = self.models.get(&attribute.name).ok_or_else(|| {
                Error::Bug(format!("attribute {} was not trained", attribute.name))
            })?;
            for (row, label) in rows.iter_mut().zip(model.predict(features.view())?) {
                row.push(Answer::label(label));
            }
        }
        Ok(rows)
    }
}
