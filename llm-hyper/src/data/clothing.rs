//! Women's clothing reviews as a click proxy: a garment is an ad, a review an impression, "would
//! recommend" the click. There is no user id; what is known of the user is the age and what the
//! review says about the reviewer's own body and usual size.

use std::collections::BTreeMap;
use std::path::Path;

use common::data::{Format, ReadOptions, Table};
use common::{Error, Result};
use ndarray::Array2;

use super::{Ad, Dataset, Feature, Impressions, Kind, Schema};

/// First age of each bucket.
const AGES: [(i64, &str); 6] = [
    (0, "women under 30"),
    (30, "women in their thirties"),
    (40, "women in their forties"),
    (50, "women in their fifties"),
    (60, "women in their sixties"),
    (70, "women over 70"),
];

/// What reviewers say about themselves: feature name, description, words that tell it.
const STATED: [(&str, &str, &[&str]); 9] = [
    ("petite", "petite women", &["petite", "5'1", "5'2", "5'0"]),
    ("tall", "tall women", &["tall", "5'9", "5'10", "5'11"]),
    ("curvy", "curvy women", &["curvy", "hourglass", "hips"]),
    ("busty", "busty women", &["busty", "large chest", "34d", "36d", "dd"]),
    ("small-chest", "women with a small chest", &["small chest", "flat chested", "32a", "34a"]),
    ("slim", "slim women", &["slim", "thin", "skinny"]),
    ("athletic", "athletic women", &["athletic", "muscular", "broad shoulders"]),
    ("size-small", "women who wear extra small sizes", &["xs", "size 0", "size 2", "00"]),
    ("size-large", "women who wear large sizes", &["xl", "size 12", "size 14", "size 16"]),
];

/// Reads the reviews. Ads are garments with at least `least` reviews; their text is division,
/// department and class, which is all that the file knows of them.
///
/// # Errors
/// A file without the columns of the asset.
pub fn clothing(path: &Path, least: usize) -> Result<Dataset> {
    let mut options = ReadOptions::select(&[
        "Clothing ID",
        "Age",
        "Review Text",
        "Recommended IND",
        "Division Name",
        "Department Name",
        "Class Name",
    ]);
    options.format = Some(Format::Parquet);
    let table = Table::read(path, &options)?;
    let ids = table.column("Clothing ID")?.i64s()?;
    let ages = table.column("Age")?.i64s()?;
    let text = table.column("Review Text")?;
    let clicked = table.column("Recommended IND")?.bools()?;
    let [division, department, class] =
        ["Division Name", "Department Name", "Class Name"].map(|name| table.column(name));
    let (division, department, class) = (division?, department?, class?);

    let mut by_id: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (row, id) in ids.iter().enumerate() {
        if !class.text(row).is_empty() && !text.text(row).trim().is_empty() {
            by_id.entry(*id).or_default().push(row);
        }
    }
    by_id.retain(|_, rows| rows.len() >= least);
    let mut features: Vec<Feature> = AGES
        .iter()
        .map(|(from, description)| binary(&format!("age:{from}"), description))
        .collect();
    features.extend(
        STATED.iter().map(|(name, description, _)| binary(&format!("says:{name}"), description)),
    );
    let schema = Schema { features };
    let rows: usize = by_id.values().map(Vec::len).sum();
    let mut impressions =
        Impressions { features: Array2::zeros((rows, schema.len())), ..Impressions::default() };
    let mut ads = Vec::new();
    for (id, reviews) in &by_id {
        let first = *reviews.first().ok_or_else(|| Error::Bug("an ad without reviews".into()))?;
        for &row in reviews {
            let at = impressions.len();
            impressions.ad.push(ads.len());
            impressions.user.push(at);
            impressions.time.push(0);
            impressions.clicked.push(clicked[row]);
            impressions.liked.push(Vec::new());
            let bucket = AGES.iter().rposition(|(from, _)| ages[row] >= *from).unwrap_or(0);
            impressions.features[[at, bucket]] = 1.0;
            let review = text.text(row).to_lowercase();
            for (j, (_, _, words)) in STATED.iter().enumerate() {
                if words.iter().any(|word| says(&review, word)) {
                    impressions.features[[at, AGES.len() + j]] = 1.0;
                }
            }
        }
        ads.push(Ad {
            id: id.to_string(),
            title: class.text(first).to_owned(),
            description: format!(
                "{} for women, {} sizes",
                department.text(first),
                division.text(first)
            ),
            ..Ad::default()
        });
    }
    let users = impressions.len();
    let expert = vec![Vec::new(); ads.len()];
    Ok(Dataset { name: "clothing-reviews".into(), schema, ads, impressions, users, expert })
}

fn binary(name: &str, description: &str) -> Feature {
    Feature {
        name: name.to_owned(),
        description: description.to_owned(),
        kind: Kind::Binary,
        mean: 0.0,
        std: 1.0,
    }
}

/// Whether `word` stands in `text` between other characters than letters and digits.
fn says(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
    })
}
