//! How likely a value is for an attribute of a product, from training gold and the title alone.
//!
//! For open values a vote table says little about rare values. Three facts from the training split
//! do: how often the attribute is absent, how often a known value is meant when the title mentions
//! it, and how often a value is new. Smoothing adds `PSEUDO` observations at the rate over all
//! attributes.

use std::collections::HashMap;

/// Pseudo-observations of every rate.
const PSEUDO: f64 = 2.0;

/// A training pair: attribute key, title, accepted values (only `absent` when there is none).
#[derive(Debug, Clone)]
pub struct GoldPair {
    /// Category and attribute.
    pub key: (String, String),
    /// Product title.
    pub title: String,
    /// Accepted values.
    pub values: Vec<String>,
}

#[derive(Debug, Default)]
struct Group {
    pairs: f64,
    absent: f64,
    /// value → (times gold, times mentioned or gold).
    values: HashMap<String, (f64, f64)>,
    /// Values (with repetition), and of these the values seen once.
    mentions: f64,
    once: f64,
}

/// Rates per (category, attribute).
#[derive(Debug)]
pub struct ValuePrior {
    absent: String,
    groups: HashMap<(String, String), Group>,
    absent_rate: f64,
    new_rate: f64,
    precision: f64,
    in_title: f64,
}

impl ValuePrior {
    /// Counts the training pairs; `absent` is the value that says "no such attribute".
    pub fn new(pairs: &[GoldPair], absent: &str) -> Self {
        let mut groups: HashMap<(String, String), Group> = HashMap::new();
        let (mut titled, mut all_values) = (0.0, 0.0);
        for pair in pairs {
            let group = groups.entry(pair.key.clone()).or_default();
            group.pairs += 1.0;
            if pair.values.iter().all(|value| value == absent) {
                group.absent += 1.0;
            }
            for value in pair.values.iter().filter(|value| *value != absent) {
                group.values.entry(value.clone()).or_default().0 += 1.0;
                group.mentions += 1.0;
                all_values += 1.0;
                titled += f64::from(u8::from(mentions(&pair.title, value)));
            }
        }
        for pair in pairs {
            if let Some(group) = groups.get_mut(&pair.key) {
                for (value, counts) in &mut group.values {
                    if pair.values.contains(value) || mentions(&pair.title, value) {
                        counts.1 += 1.0;
                    }
                }
            }
        }
        let (mut absent_pairs, mut once, mut hits, mut chances) = (0.0, 0.0, 0.0, 0.0);
        for group in groups.values_mut() {
            group.once = group.values.values().filter(|counts| counts.0 == 1.0).count() as f64;
            absent_pairs += group.absent;
            once += group.once;
            // Without the pair that introduced the value.
            hits += group.values.values().map(|counts| counts.0 - 1.0).sum::<f64>();
            chances += group.values.values().map(|counts| counts.1 - 1.0).sum::<f64>();
        }
        Self {
            absent: absent.to_owned(),
            groups,
            absent_rate: absent_pairs / (pairs.len() as f64).max(1.0),
            new_rate: once / f64::max(all_values, 1.0),
            precision: hits / f64::max(chances, 1.0),
            in_title: titled / f64::max(all_values, 1.0),
        }
    }

    /// ln P(value) for each candidate, up to a constant per product and attribute.
    pub fn log_prior(&self, key: &(String, String), title: &str, candidates: &[&str]) -> Vec<f64> {
        let unknown = Group::default();
        let group = self.groups.get(key).unwrap_or(&unknown);
        let absent = (group.absent + PSEUDO * self.absent_rate) / (group.pairs + PSEUDO);
        let new = (group.once + PSEUDO * self.new_rate) / (group.mentions + PSEUDO);
        candidates
            .iter()
            .map(|&value| {
                if value == self.absent {
                    return absent.max(1e-6).ln();
                }
                let meant = match group.values.get(value) {
                    Some((gold, seen)) => (gold + PSEUDO * self.precision) / (seen + PSEUDO),
                    None => (1.0 - absent) * new,
                };
                let place =
                    if mentions(title, value) { self.in_title } else { 1.0 - self.in_title };
                (meant * place).max(1e-6).ln()
            })
            .collect()
    }
}

/// `title` contains `value` as whole words, ignoring case and the amount of white space.
pub fn mentions(title: &str, value: &str) -> bool {
    let normal = |text: &str| text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
    let (title, value) = (normal(title), normal(value));
    if value.is_empty() {
        return false;
    }
    title.match_indices(&value).any(|(at, _)| {
        let word = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        !word(title[..at].chars().next_back()) && !word(title[at + value.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mentions_are_whole_words() {
        assert!(mentions("Cotton  Baseball Cap", "cotton baseball"));
        assert!(!mentions("Womens Cap", "Women"));
        assert!(mentions("Cap (Women)", "Women"));
        assert!(!mentions("anything", "  "));
    }

    #[test]
    fn a_value_that_is_usually_meant_beats_a_new_one_and_absence() {
        let pair = |title: &str, value: &str| GoldPair {
            key: ("Cap".into(), "Material".into()),
            title: title.into(),
            values: vec![value.into()],
        };
        let train = [
            pair("Cotton cap", "Cotton"),
            pair("Cotton hat", "Cotton"),
            pair("Wool hat", "Wool"),
            pair("Blue hat", "n/a"),
        ];
        let prior = ValuePrior::new(&train, "n/a");
        let key = ("Cap".to_owned(), "Material".to_owned());
        let p = prior.log_prior(&key, "Red Cotton cap", &["Cotton", "Red", "n/a"]);
        assert!(p[0] > p[1] && p[0] > p[2], "{p:?}");
    }
}
