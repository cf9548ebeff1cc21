//! The proxies of the bench: leak-free features, splits, counts.

use std::collections::HashSet;

use common::assets::Assets;
use common::data::movielens::MovieLens;
use common::rng::Seed;
use common::testing::asset_or_skip;
use llm_hyper::config::{Label, MovieLensConfig};
use llm_hyper::data::{Kind, clothing, movielens};

#[test]
fn hidden_films_leave_no_trace_in_features() {
    if asset_or_skip("ml-100k", "ml-100k.inter").is_none() {
        return;
    }
    let mut source = MovieLens::read(&Assets::from_env().folder("ml-100k").unwrap()).unwrap();
    let config =
        MovieLensConfig { active: 10, retired: 30, max_clicks: 40, ..MovieLensConfig::default() };
    let (data, split) = movielens::movielens(&source, &config, Seed::new(2)).unwrap();
    assert_eq!((split.active.len(), split.retired.len()), (10, 30));
    assert_eq!(data.schema.len(), 7 + 1 + 21 + 18 + 5 + 3);
    let held_out = split.held_out.iter().filter(|held| **held).count();
    assert_eq!(held_out, 189);
    let i = &data.impressions;
    assert!(i.features.iter().all(|x| x.is_finite()));
    // Four impressions without a click per click, up to films that nearly all had rated.
    let clicks = i.clicked.iter().filter(|c| **c).count();
    assert!(i.len() > 49 * clicks / 10 && i.len() <= 5 * clicks);
    // One-hot groups.
    for row in (0..i.len()).step_by(101) {
        assert_eq!(i.features.row(row).iter().take(7).sum::<f32>(), 1.0);
        assert_eq!(i.features.row(row).iter().skip(8).take(21).sum::<f32>(), 1.0);
        let hidden: HashSet<u32> = split.active.iter().map(|&film| film as u32).collect();
        assert!(i.liked[row].iter().all(|film| !hidden.contains(film)));
    }
    // Other stars for the hidden films change no feature: nothing is learned from them.
    for rating in &mut source.ratings {
        if split.active.contains(&(rating.movie as usize)) {
            rating.stars = 6 - rating.stars;
        }
    }
    let (changed, again) = movielens::movielens(&source, &config, Seed::new(2)).unwrap();
    assert_eq!(again, split);
    assert_eq!(changed.impressions, data.impressions);
    let like = MovieLensConfig { label: Label::Like, ..config };
    let (likes, _) = movielens::movielens(&source, &like, Seed::new(2)).unwrap();
    let share = likes.impressions.clicked.iter().filter(|c| **c).count() as f64
        / likes.impressions.len() as f64;
    assert!((0.4..0.8).contains(&share), "{share}");
    let many = MovieLensConfig { active: 500, ..MovieLensConfig::default() };
    let error = movielens::movielens(&source, &many, Seed::new(2)).unwrap_err();
    assert!(error.to_string().contains("bench.movielens.active = 500"), "{error}");
}

#[test]
fn clothing_has_ages_and_stated_bodies() {
    let Some(path) = asset_or_skip("clothing-reviews", "reviews.parquet") else { return };
    let data = clothing::clothing(&path, 100).unwrap();
    assert!((50..70).contains(&data.ads.len()), "{}", data.ads.len());
    assert!(data.schema.features.iter().all(|feature| feature.kind == Kind::Binary));
    let i = &data.impressions;
    let share = |name: &str| {
        let at = data.schema.position(name).unwrap();
        i.features.column(at).iter().sum::<f32>() / i.len() as f32
    };
    assert!((0.06..0.12).contains(&share("says:petite")), "{}", share("says:petite"));
    for row in (0..i.len()).step_by(997) {
        assert_eq!(i.features.row(row).iter().take(6).sum::<f32>(), 1.0);
    }
    assert!(data.ads.iter().all(|ad| ad.text().contains("for women")));
}
