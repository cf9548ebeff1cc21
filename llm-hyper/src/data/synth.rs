//! Ads and users whose true click models are known: weights follow from the concepts that an ad's
//! text names.

use common::Result;
use common::rng::Seed;
use ndarray::Array2;

use super::{Ad, Dataset, Feature, Impressions, Kind, Schema};

/// Concepts that ads name and users have a taste for.
const CONCEPTS: [&str; 12] = [
    "gardening",
    "cooking",
    "camping",
    "football",
    "knitting",
    "chess",
    "cycling",
    "fishing",
    "painting",
    "gaming",
    "sailing",
    "yoga",
];
/// Words that say nothing about who clicks.
const FILLERS: [&str; 6] = ["new", "sale", "today", "best", "gift", "classic"];

/// Size of the generated data.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Ads.
    pub ads: usize,
    /// Users.
    pub users: usize,
    /// Impressions per ad.
    pub impressions: usize,
}

/// A generated data set and the truth behind it.
#[derive(Debug, Clone)]
pub struct Synthetic {
    /// What a method may see.
    pub data: Dataset,
    /// True weights per ad.
    pub weights: Vec<Vec<f64>>,
    /// True intercept per ad.
    pub biases: Vec<f64>,
}

/// Ads with 1 to 3 concepts. A user has one real feature per concept (taste) and four binary ones;
/// the true weight of a named concept is about 1.2, of any other 0, of the binary features the
/// same for all ads up to a little noise.
///
/// # Errors
/// None but bugs.
pub fn generate(size: Size, seed: Seed) -> Result<Synthetic> {
    let mut stream = seed.stream("synth");
    let mut features: Vec<Feature> = CONCEPTS
        .iter()
        .map(|concept| Feature {
            name: format!("taste:{concept}"),
            description: format!("people who like {concept}"),
            kind: Kind::Real,
            mean: 0.0,
            std: 1.0,
        })
        .collect();
    let common_weights = [0.6, -0.4, 0.3, -0.2];
    for name in ["mobile", "returning", "evening", "discount"] {
        features.push(Feature {
            name: format!("context:{name}"),
            description: format!("{name} visitors"),
            kind: Kind::Binary,
            mean: 0.0,
            std: 1.0,
        });
    }
    let schema = Schema { features };
    let width = schema.len();
    let (mut ads, mut weights, mut biases, mut expert) = (vec![], vec![], vec![], vec![]);
    for index in 0..size.ads {
        let count = 1 + stream.below(3);
        let concepts = stream.sample(CONCEPTS.len(), count);
        let mut words: Vec<&str> = concepts.iter().map(|&c| CONCEPTS[c]).collect();
        words.extend(stream.sample(FILLERS.len(), 2).into_iter().map(|f| FILLERS[f]));
        stream.shuffle(&mut words);
        let mut w = vec![0.0; width];
        for &concept in &concepts {
            w[concept] = 1.2 + 0.2 * stream.normal();
        }
        for (w, base) in w[CONCEPTS.len()..].iter_mut().zip(common_weights) {
            *w = base + 0.1 * stream.normal();
        }
        ads.push(Ad {
            id: format!("ad{index:03}"),
            title: words.join(" "),
            start: Some(index as i64),
            ..Ad::default()
        });
        biases.push(-1.6 + 0.1 * stream.normal());
        weights.push(w);
        expert.push(concepts);
    }
    let users: Vec<Vec<f64>> = (0..size.users)
        .map(|_| {
            (0..width)
                .map(|j| {
                    if j < CONCEPTS.len() {
                        stream.normal()
                    } else {
                        f64::from(u8::from(stream.chance(0.5)))
                    }
                })
                .collect()
        })
        .collect();
    let rows = size.ads * size.impressions;
    let mut impressions =
        Impressions { features: Array2::zeros((rows, width)), ..Impressions::default() };
    for ad in 0..size.ads {
        for shown in 0..size.impressions {
            let row = impressions.len();
            let user = stream.below(size.users);
            let z: f64 = weights[ad].iter().zip(&users[user]).map(|(w, x)| w * x).sum();
            let p = 1.0 / (1.0 + (-z - biases[ad]).exp());
            impressions.ad.push(ad);
            impressions.user.push(user);
            impressions.time.push((ad + shown) as i64);
            impressions.clicked.push(stream.chance(p));
            impressions.liked.push(Vec::new());
            for (j, x) in users[user].iter().enumerate() {
                impressions.features[[row, j]] = *x as f32;
            }
        }
    }
    let data =
        Dataset { name: "synth".into(), schema, ads, impressions, users: size.users, expert };
    Ok(Synthetic { data, weights, biases })
}
