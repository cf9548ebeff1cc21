//! Eq. 3: unit text vectors, cosine similarity, the k most similar retired ads.

use ndarray::{Array2, ArrayView1};

/// Buckets of the hashed n-grams.
pub const BUCKETS: usize = 4096;

/// TF-IDF of character 3- to 5-grams in [`BUCKETS`] hashed buckets, fitted on the texts of retired
/// ads.
#[derive(Debug, Clone)]
pub struct Tfidf {
    idf: Vec<f64>,
}

impl Tfidf {
    /// idf = ln((1 + n) / (1 + df)) + 1 (scikit-learn's smooth form).
    pub fn fit(texts: &[String]) -> Self {
        let mut df = vec![0.0f64; BUCKETS];
        for text in texts {
            let counts = counts(text);
            df.iter_mut().zip(&counts).for_each(|(df, &c)| *df += f64::from(u8::from(c > 0.0)));
        }
        let n = texts.len() as f64;
        Self { idf: df.iter().map(|df| ((1.0 + n) / (1.0 + df)).ln() + 1.0).collect() }
    }

    /// (texts, [`BUCKETS`]) unit rows; a text without letters or digits gives a zero row.
    pub fn embed(&self, texts: &[String]) -> Array2<f64> {
        let mut rows = Array2::zeros((texts.len(), BUCKETS));
        for (mut row, text) in rows.rows_mut().into_iter().zip(texts) {
            for ((out, count), idf) in row.iter_mut().zip(counts(text)).zip(&self.idf) {
                *out = count * idf;
            }
            let norm = row.dot(&row).sqrt();
            if norm > 0.0 {
                row /= norm;
            }
        }
        rows
    }
}

fn counts(text: &str) -> Vec<f64> {
    let mut counts = vec![0.0; BUCKETS];
    for word in text.to_lowercase().split(|c: char| !c.is_alphanumeric()) {
        if word.is_empty() {
            continue;
        }
        let letters: Vec<char> = std::iter::once(' ').chain(word.chars()).chain([' ']).collect();
        for n in 3..=5 {
            for gram in letters.windows(n) {
                counts[bucket(gram)] += 1.0;
            }
        }
    }
    counts
}

/// FNV-1a, so that a library reads the same on every machine.
fn bucket(gram: &[char]) -> usize {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in gram.iter().flat_map(|c| u32::from(*c).to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    (hash >> 32) as usize % BUCKETS
}

/// A past ad found for a new one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// Its row among the candidates.
    pub index: usize,
    /// Cosine similarity.
    pub similarity: f64,
}

/// Eq. 3: the `k` rows of `candidates` most similar to `query`, best first, ties by index. Rows for
/// which `allowed` is false are never returned; fewer than `k` when fewer are allowed.
pub fn top_k(
    query: ArrayView1<'_, f64>,
    candidates: &Array2<f64>,
    k: usize,
    allowed: impl Fn(usize) -> bool,
) -> Vec<Found> {
    let mut found: Vec<Found> = (0..candidates.nrows())
        .filter(|&row| allowed(row))
        .map(|row| Found { index: row, similarity: candidates.row(row).dot(&query) })
        .collect();
    found.sort_by(|a, b| b.similarity.total_cmp(&a.similarity).then(a.index.cmp(&b.index)));
    found.truncate(k);
    found
}

/// Similarity as a weight of a mean: positive, so that a mean always exists.
pub fn similarity_weight(cosine: f64) -> f64 {
    cosine.max(1e-6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_texts_come_first_and_forbidden_ones_never() {
        let texts = ["Red summer dress", "Blue summer dress", "Steel drill"].map(str::to_owned);
        let tfidf = Tfidf::fit(&texts);
        let rows = tfidf.embed(&texts);
        assert!((rows.row(0).dot(&rows.row(0)) - 1.0).abs() < 1e-12);
        let found = top_k(rows.row(0), &rows, 5, |row| row != 0);
        assert_eq!(found.iter().map(|f| f.index).collect::<Vec<_>>(), [1, 2]);
        assert!(found[0].similarity > 0.3 && found[1].similarity < 0.2, "{found:?}");
        assert_eq!(tfidf.embed(&["?!".to_owned()]).sum(), 0.0);
    }
}
