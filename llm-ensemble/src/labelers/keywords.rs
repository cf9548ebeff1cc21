//! Keyword rules, the paper's "rules" baseline: the label whose words occur most often.

use common::Result;

use super::{Answer, Labeler, argmax};
use crate::config::KeywordsConfig;
use crate::data::{Attribute, LabelDef, Product};

/// Counts whole-word hits of every label's name, synonyms and keywords (plural "s"/"es" ignored).
/// No hit, or two labels with the most hits: missing.
#[derive(Debug)]
pub struct Keywords {
    config: KeywordsConfig,
}

impl Keywords {
    /// Rules from the words in the schema.
    pub fn new(config: &KeywordsConfig) -> Self {
        Self { config: config.clone() }
    }

    fn hits(&self, label: &LabelDef, title: &[String], description: &[String]) -> f64 {
        let mut phrases: Vec<Vec<String>> = std::iter::once(&label.name)
            .chain(&label.synonyms)
            .chain(&label.keywords)
            .map(|phrase| words(phrase))
            .collect();
        phrases.sort();
        phrases.dedup();
        phrases
            .iter()
            .map(|phrase| {
                self.config.title_weight * count(title, phrase) as f64
                    + count(description, phrase) as f64
            })
            .sum()
    }
}

impl Labeler for Keywords {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn batch(&self) -> usize {
        256
    }

    fn answer(&self, products: &[&Product], attributes: &[&Attribute]) -> Result<Vec<Vec<Answer>>> {
        let one = |product: &&Product| {
            let (title, description) = (words(&product.title), words(&product.description));
            attributes
                .iter()
                .map(|attribute| {
                    let hits: Vec<f64> = attribute
                        .labels
                        .iter()
                        .map(|label| self.hits(label, &title, &description))
                        .collect();
                    match argmax(hits.iter().copied()) {
                        Some(best)
                            if hits[best] > 0.0
                                && hits.iter().filter(|&&h| h == hits[best]).count() == 1 =>
                        {
                            Answer::label(best)
                        }
                        _ => Answer::missing(),
                    }
                })
                .collect()
        };
        Ok(products.iter().map(one).collect())
    }
}

/// Lower-case words with a plural ending removed.
pub(super) fn words(text: &str) -> Vec<String> {
    text.to_lowercase()
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(singular)
        .collect()
}

fn singular(word: &str) -> String {
    for ending in ["sses", "shes", "ches", "xes"] {
        if word.ends_with(ending) {
            return word[..word.len() - 2].to_owned();
        }
    }
    match word.strip_suffix('s') {
        Some(stem) if stem.len() > 2 && !stem.ends_with(['s', 'u', 'i']) => stem.to_owned(),
        _ => word.to_owned(),
    }
}

fn count(text: &[String], phrase: &[String]) -> usize {
    if phrase.is_empty() || text.len() < phrase.len() {
        return 0;
    }
    text.windows(phrase.len()).filter(|window| *window == phrase).count()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ask(title: &str, description: &str) -> Option<usize> {
        let schema: crate::data::Schema = toml::from_str(
            r#"
            [[attributes]]
            name = "class"
            labels = [{ name = "Dresses", keywords = ["gown"] }, { name = "Fine gauge" }, "Jeans"]
            "#,
        )
        .unwrap();
        let product = Product::new("1", title, description);
        let labeler = Keywords::new(&KeywordsConfig::default());
        labeler.answer(&[&product], &[&schema.attributes[0]]).unwrap()[0][0].label
    }

    #[test]
    fn the_most_frequent_label_wins_and_the_title_counts_double() {
        assert_eq!(ask("", "A dress! I love DRESSES, better than jeans."), Some(0));
        assert_eq!(ask("Great jeans", "Not a dress"), Some(2));
        assert_eq!(ask("", "a fine  gauge knit"), Some(1));
        assert_eq!(ask("", "the gowns"), Some(0));
    }

    #[test]
    fn no_hit_and_a_tie_are_missing() {
        assert_eq!(ask("", "lovely"), None);
        assert_eq!(ask("", "a dress with jeans"), None);
        assert_eq!(ask("", "address"), None);
    }
}
