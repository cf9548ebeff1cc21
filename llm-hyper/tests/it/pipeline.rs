//! The pipeline as a library: leak guard, fallbacks, limits, oracle, blend.

use common::assets::Assets;
use common::rng::Seed;
use common::stats;
use llm_hyper::artefact::{self, Source};
use llm_hyper::config::{Config, RetrievalConfig, WeightLimit};
use llm_hyper::data::{Ad, ColdSplit, synth};
use llm_hyper::eval::TestSet;
use llm_hyper::generate::Generator;
use llm_hyper::index::may_demonstrate;
use llm_hyper::library::Library;
use llm_hyper::model::intercept;
use llm_hyper::model::logit::{dot, sigmoid};
use llm_hyper::model::normalise::{Normalisation, norm};
use llm_hyper::model::residual::Residual;
use llm_hyper::model::retrieve::Found;
use llm_hyper::train::{fit_library, fit_rows};
use llm_hyper::writer::Raw;

fn config() -> Config {
    let mut config = Config::default();
    config.library.c = vec![0.3];
    config.library.reference_users = 500;
    config
}

/// Synthetic ads, the first three quarters retired.
fn world(ads: usize, impressions: usize) -> (synth::Synthetic, Vec<usize>, Vec<usize>) {
    let size = synth::Size { ads, users: 800, impressions };
    let truth = synth::generate(size, Seed::new(3)).unwrap();
    let cold = ads / 4;
    (truth, (0..ads - cold).collect(), (ads - cold..ads).collect())
}

fn library(truth: &synth::Synthetic, retired: &[usize], config: &Config) -> Library {
    fit_library(&truth.data, retired, |_| true, &config.library, Seed::new(1)).unwrap()
}

fn retrieve(generator: &Generator<'_>, ad: &Ad) -> Vec<Found> {
    generator.retrieve(std::slice::from_ref(ad)).unwrap().remove(0)
}

fn all(value: Option<f64>, library: &Library) -> Raw {
    Raw { values: vec![value; library.schema.len()], ..Raw::default() }
}

#[test]
fn the_leak_guard_keeps_the_ad_its_campaign_and_later_ads_out() {
    let ad = |id: &str, campaign: Option<&str>, start: Option<i64>| Ad {
        id: id.into(),
        title: "tea".into(),
        campaign: campaign.map(str::to_owned),
        start,
        ..Ad::default()
    };
    let new = ad("n", Some("spring"), Some(10));
    assert!(may_demonstrate(&ad("a", Some("autumn"), Some(9)), &new));
    assert!(may_demonstrate(&ad("a", None, None), &new));
    assert!(!may_demonstrate(&ad("n", None, None), &new));
    assert!(!may_demonstrate(&ad("a", Some("spring"), Some(9)), &new));
    assert!(!may_demonstrate(&ad("a", None, Some(11)), &new));

    let (truth, retired, _) = world(40, 200);
    let config = config();
    let library = library(&truth, &retired, &config);
    let generator = Generator::new(&library, &config, &Assets::from_env()).unwrap();
    // A retired ad as its own query: the nearest text is its own, and all later ads are out.
    for at in [5, 17, 29] {
        let ad = &library.ads[at].ad;
        for found in retrieve(&generator, ad) {
            assert!(library.ads[found.index].ad.start < ad.start, "{found:?}");
        }
    }
}

#[test]
fn poisoned_clicks_of_cold_ads_change_nothing() {
    let (truth, retired, cold) = world(24, 200);
    let config = config();
    let clean = library(&truth, &retired, &config);
    let mut poisoned = truth.clone();
    for row in 0..poisoned.data.impressions.len() {
        if cold.contains(&poisoned.data.impressions.ad[row]) {
            poisoned.data.impressions.clicked[row] ^= true;
            poisoned.data.impressions.features.row_mut(row).fill(9.0);
        }
    }
    assert_eq!(clean, library(&poisoned, &retired, &config));
}

#[test]
fn gaps_zero_weights_and_limits_fall_back_as_said() {
    let (truth, retired, cold) = world(24, 200);
    let mut config = config();
    let library = library(&truth, &retired, &config);
    config.limits = vec![
        WeightLimit { feature: "taste:chess".into(), min: Some(0.25), max: Some(0.25) },
        WeightLimit { feature: "taste:yoga".into(), min: None, max: Some(-0.1) },
    ];
    let generator = Generator::new(&library, &config, &Assets::from_env()).unwrap();
    let ad = &truth.data.ads[cold[0]];
    let found = retrieve(&generator, ad);
    assert_eq!(found.len(), 5);
    let finish = |raw: &Raw| generator.finish(ad, &found, raw, "test").unwrap();

    let nothing = finish(&all(None, &library));
    assert_eq!(nothing.source, Source::Knn);
    assert_eq!(finish(&all(Some(0.0), &library)).source, Source::LrCold);
    let mut raw = all(Some(0.5), &library);
    raw.values[2] = None;
    let written = finish(&raw);
    assert_eq!((written.source, written.filled.len()), (Source::Llm, 1));
    assert_eq!(written.filled[0], "taste:camping");
    for artefact in [&nothing, &written] {
        let at = |name: &str| artefact.weights[library.schema.position(name).unwrap()];
        assert_eq!(at("taste:chess"), 0.25);
        assert!(at("taste:yoga") <= -0.1);
        let logits = library.reference_logits(&artefact.weights);
        let gap = intercept::gap(&logits, artefact.bias, artefact.target_rate);
        assert!(gap.abs() < 1e-10, "{gap}");
    }
    // Equal raw weights have the demonstrations' median norm before clipping and limits.
    let norms: Vec<f64> = found.iter().map(|f| norm(&library.ads[f.index].weights)).collect();
    assert!(norm(&written.weights) <= norms.iter().fold(0.0f64, |a, b| a.max(*b)) + 0.5);

    config.limits[0].feature = "taste:ches".into();
    let error = Generator::new(&library, &config, &Assets::from_env()).unwrap_err();
    assert!(error.to_string().contains("taste:ches") && error.exit_code() == 2, "{error}");
}

/// A feature that never varies says nothing about clicks: trained weights stay finite (0 where it is
/// always 0), it makes no ad special, and a weight on it moves nothing but the intercept.
#[test]
fn constant_features_move_nothing_but_the_intercept() {
    let (mut truth, retired, cold) = world(24, 200);
    let (never, always) = (1, 4);
    for (feature, value) in [(never, 0.0), (always, 1.0)] {
        truth.data.impressions.features.column_mut(feature).fill(value);
    }
    let config = config();
    let library = library(&truth, &retired, &config);
    let generator = Generator::new(&library, &config, &Assets::from_env()).unwrap();
    for (index, ad) in library.ads.iter().enumerate() {
        assert_eq!(ad.weights[never], 0.0, "{}", ad.ad.id);
        assert!(ad.weights.iter().all(|w| w.is_finite()) && ad.bias.is_finite());
        let special = library.special(index);
        assert!(special[never] == 0.0 && special.iter().all(|v| v.is_finite()), "{special:?}");
    }
    // Answers that say much about it are not passed on either.
    let answers: Vec<Vec<f64>> = (0..3).map(|i| vec![f64::from(i); library.schema.len()]).collect();
    let special: Vec<Vec<f64>> = (0..3).map(|i| library.special(i)).collect();
    let residual = Residual::fit(&answers, &special).unwrap();
    let moved = residual.weights(&answers[2], &generator.centre, &generator.spread);
    assert!(moved[never] == 0.0 && moved.iter().all(|w| w.is_finite()), "{moved:?}");

    let ad = &truth.data.ads[cold[0]];
    let found = retrieve(&generator, ad);
    let mut weights = library.knn_weights(&found).unwrap();
    let rate = generator.target_rate(&found);
    let probabilities = |weights: &[f64]| -> Vec<f64> {
        let bias = generator.bias(weights, rate).unwrap();
        library.reference_logits(weights).iter().map(|z| sigmoid(z + bias)).collect()
    };
    let before = probabilities(&weights);
    (weights[never], weights[always]) = (3.0, -2.0);
    for (before, after) in before.iter().zip(probabilities(&weights)) {
        assert!((before - after).abs() < 1e-9, "{before} {after}");
    }
    for normalisation in [Normalisation::L2, Normalisation::Maxabs, Normalisation::Zscore] {
        let config = Config { normalisation, ..config.clone() };
        let generator = Generator::new(&library, &config, &Assets::from_env()).unwrap();
        let raw = all(Some(0.5), &library);
        let artefact = generator.finish(ad, &found, &raw, "test").unwrap();
        assert!(artefact.weights.iter().all(|w| w.is_finite()), "{normalisation:?}");
    }
}

#[test]
fn an_empty_library_and_more_neighbours_than_ads_work() {
    let (truth, retired, cold) = world(16, 150);
    let mut config = config();
    config.retrieval = RetrievalConfig { k: 50, ..RetrievalConfig::default() };
    let mut library = library(&truth, &retired, &config);
    let ad = &truth.data.ads[cold[0]];
    {
        let generator = Generator::new(&library, &config, &Assets::from_env()).unwrap();
        assert_eq!(retrieve(&generator, ad).len(), library.ads.len());
    }
    library.ads.clear();
    let generator = Generator::new(&library, &config, &Assets::from_env()).unwrap();
    let found = retrieve(&generator, ad);
    assert!(found.is_empty() && library.knn_weights(&found).is_none());
    let written = generator.finish(ad, &found, &all(Some(0.3), &library), "test").unwrap();
    assert_eq!(written.source, Source::Llm);
    assert!((norm(&written.weights) - 1.0).abs() < 1e-9);
    let nothing = generator.finish(ad, &found, &all(None, &library), "test").unwrap();
    assert_eq!(nothing.source, Source::LrCold);
    assert!(nothing.weights.iter().all(|w| *w == 0.0) && nothing.bias.abs() < 1e-9);
}

#[test]
fn artefacts_refuse_another_schema() {
    let (truth, retired, cold) = world(16, 150);
    let config = config();
    let mut library = library(&truth, &retired, &config);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("artefacts.jsonl");
    let generator = Generator::new(&library, &config, &Assets::from_env()).unwrap();
    let ad = &truth.data.ads[cold[0]];
    let written = generator.finish(ad, &[], &all(Some(0.3), &library), "test").unwrap();
    artefact::write(&path, std::slice::from_ref(&written)).unwrap();
    assert_eq!(artefact::read(&path, &library.schema).unwrap(), [written]);
    library.schema.features[0].mean = 0.5;
    let error = artefact::read(&path, &library.schema).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("generate the artefacts again"), "{error}");
}

#[test]
fn an_oracle_reaches_the_warm_model() {
    let (truth, retired, cold) = world(48, 1_500);
    let config = config();
    let data = &truth.data;
    let mut stream = Seed::new(4).stream("users");
    let split = ColdSplit::new(retired, cold, data.users, 0.25, &mut stream);
    let train = |row: usize| !split.held_out[data.impressions.user[row]];
    let library = fit_library(data, &split.retired, train, &config.library, Seed::new(1)).unwrap();
    let generator = Generator::new(&library, &config, &Assets::from_env()).unwrap();
    let test = TestSet::new(&data.impressions, &split.active, |row| !train(row));
    let rows = data.rows_by_ad(train);
    let features = data.impressions.rows(&test.rows);
    let (mut written, mut warm, mut median) = (Vec::new(), Vec::new(), Vec::new());
    for &at in &split.active {
        let ad = &data.ads[at];
        let found = retrieve(&generator, ad);
        let values = truth.weights[at].iter().map(|w| Some(w / 3.0)).collect();
        let raw = Raw { values, ..Raw::default() };
        let artefact = generator.finish(ad, &found, &raw, "oracle").unwrap();
        written.push((artefact.weights, artefact.bias));
        let fitted = fit_rows(&data.impressions, &rows[at], library.c).unwrap();
        warm.push((fitted.weights, fitted.bias));
        let centre = library.centre();
        let bias = generator.bias(&centre, artefact.target_rate).unwrap();
        median.push((centre, bias));
    }
    let auc = |models: &[(Vec<f64>, f64)]| {
        let scores: Vec<f64> = test
            .ad
            .iter()
            .zip(features.rows())
            .map(|(&ad, x)| dot(&models[ad].0, &x.to_vec()) + models[ad].1)
            .collect();
        let per_ad = stats::mean_sd(&test.auc_per_ad(&scores)).0;
        (per_ad, test.metric("auc", &scores, 2, Seed::new(1)).unwrap().value)
    };
    let (oracle, warm, median) = (auc(&written), auc(&warm), auc(&median));
    assert!(oracle.0 > warm.0 - 0.005 && oracle.1 > warm.1 - 0.005, "{oracle:?} {warm:?}");
    assert!(oracle.0 > median.0 + 0.1, "{oracle:?} {median:?}");
}
