//! Products, attribute schemas, vote and gold files.

mod clothing;
mod files;
pub mod parse;
mod schema;

use std::collections::HashMap;

pub use clothing::{Clothing, clothing, clothing_schema};
pub use files::{
    AttributeVotes, Gold, VoteStats, read_examples, read_gold, read_products, read_votes,
};
pub use schema::{Attribute, LabelDef, Schema};

/// A product: what labelers see of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    /// Unique id, the item of vote files.
    pub id: String,
    /// Title; may be empty.
    pub title: String,
    /// Description.
    pub description: String,
}

impl Product {
    /// A product from its parts.
    pub fn new(id: &str, title: &str, description: &str) -> Self {
        Self { id: id.into(), title: title.into(), description: description.into() }
    }

    /// Title and description as one text (t_p of the paper).
    pub fn text(&self) -> String {
        match (self.title.trim(), self.description.trim()) {
            ("", description) => description.to_owned(),
            (title, "") => title.to_owned(),
            (title, description) => {
                let stop = if title.ends_with(['.', '!', '?']) { "" } else { "." };
                format!("{title}{stop} {description}")
            }
        }
    }
}

/// Products with known labels.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Examples {
    /// The products.
    pub products: Vec<Product>,
    /// attribute → label index per product; `None` = unknown.
    pub gold: HashMap<String, Vec<Option<usize>>>,
}

impl Examples {
    /// Known label of a product.
    pub fn label(&self, product: usize, attribute: &Attribute) -> Option<usize> {
        self.gold.get(&attribute.name)?.get(product).copied().flatten()
    }

    /// The products at `indices`, in that order. Indices must be in range.
    pub fn select(&self, indices: &[usize]) -> Self {
        let products = indices.iter().map(|&index| self.products[index].clone()).collect();
        let pick = |labels: &Vec<Option<usize>>| indices.iter().map(|&i| labels[i]).collect();
        let gold = self.gold.iter().map(|(name, labels)| (name.clone(), pick(labels))).collect();
        Self { products, gold }
    }
}
