//! TF-IDF features as scikit-learn defines them (smooth idf, unit length).

use std::collections::BTreeMap;

use super::keywords::words;

/// Vocabulary and inverse document frequencies of a train set.
#[derive(Debug, Clone)]
pub struct Tfidf {
    /// word → (column, idf); columns in ascending order of the words.
    columns: BTreeMap<String, (usize, f32)>,
}

impl Tfidf {
    /// Words that occur in at least `min_texts` of the `texts`, with
    /// idf = ln((1 + n) / (1 + df)) + 1.
    pub fn fit(texts: &[String], min_texts: usize) -> Self {
        let mut frequency: BTreeMap<String, usize> = BTreeMap::new();
        for text in texts {
            let mut seen = words(text);
            seen.sort();
            seen.dedup();
            for word in seen {
                *frequency.entry(word).or_default() += 1;
            }
        }
        let columns = frequency
            .into_iter()
            .filter(|(_, df)| *df >= min_texts)
            .enumerate()
            .map(|(column, (word, df))| {
                let idf = ((1.0 + texts.len() as f32) / (1.0 + df as f32)).ln() + 1.0;
                (word, (column, idf))
            })
            .collect();
        Self { columns }
    }

    /// Number of columns.
    pub fn dim(&self) -> usize {
        self.columns.len()
    }

    /// (column, value) of one text in ascending columns; unit length unless no word is known.
    pub fn transform(&self, text: &str) -> Vec<(usize, f32)> {
        let mut row: BTreeMap<usize, f32> = BTreeMap::new();
        for word in words(text) {
            if let Some(&(column, idf)) = self.columns.get(&word) {
                *row.entry(column).or_default() += idf;
            }
        }
        let norm = row.values().map(|v| v * v).sum::<f32>().sqrt();
        row.into_iter().map(|(column, value)| (column, value / norm)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_follow_the_formula() {
        let texts = ["red dress", "red top", "blue top top"].map(String::from);
        let tfidf = Tfidf::fit(&texts, 1);
        assert_eq!(tfidf.dim(), 4);
        // Columns: blue 0, dress 1, red 2, top 3. df(blue) = 1, df(top) = 2.
        let blue = (4.0_f32 / 2.0).ln() + 1.0;
        let top = 2.0 * ((4.0_f32 / 3.0).ln() + 1.0);
        let norm = (blue * blue + top * top).sqrt();
        let row = tfidf.transform("Blue, top TOP unknown");
        assert_eq!(row.len(), 2);
        assert!((row[0].1 - blue / norm).abs() < 1e-6 && row[0].0 == 0);
        assert!((row[1].1 - top / norm).abs() < 1e-6 && row[1].0 == 3);
        assert!(tfidf.transform("nothing known").is_empty());
        assert_eq!(Tfidf::fit(&texts, 2).dim(), 2);
    }
}
