//! Eq. 1, 2, 5, 6, 7 and the ridge map against scikit-learn, scipy and numpy, and as properties.

use common::logistic::LogisticRegression;
use common::rng::Seed;
use common::testing::{assert_close, golden, golden_json};
use llm_hyper::baselines::RidgeMap;
use llm_hyper::config::LibraryConfig;
use llm_hyper::model::intercept::{TOLERANCE, gap, solve};
use llm_hyper::model::logit::{Scorer, probability};
use llm_hyper::model::normalise::{Normalisation, WeightScale, norm, normalise};
use llm_hyper::model::prior::Prior;
use ndarray::Array2;
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Goldens {
    features: Vec<Vec<f64>>,
    labels: Vec<u8>,
    eq2: Vec<Eq2>,
    eq6: Vec<Eq6>,
    eq7: Eq7,
    ridge: Ridge,
    metrics: Metrics,
}

#[derive(Deserialize)]
struct Eq2 {
    c: f64,
    weights: Vec<f64>,
    bias: f64,
}

#[derive(Deserialize)]
struct Eq6 {
    target: f64,
    logits: Vec<f64>,
    bias: f64,
}

#[derive(Deserialize)]
struct Eq7 {
    prior_weights: Vec<f64>,
    prior_bias: f64,
    bias_precision: f64,
    cases: Vec<Eq7Case>,
}

#[derive(Deserialize)]
struct Eq7Case {
    precision: f64,
    weights: Vec<f64>,
    bias: f64,
    sd: Vec<f64>,
}

#[derive(Deserialize)]
struct Ridge {
    embeddings: Vec<Vec<f64>>,
    targets: Vec<Vec<f64>>,
    penalty: f64,
    leave_one_out: Vec<Vec<f64>>,
    new: Vec<f64>,
    predicted: Vec<f64>,
}

#[derive(Deserialize)]
struct Metrics {
    auc: f64,
    log_loss: f64,
}

fn goldens() -> Goldens {
    golden_json(&golden(env!("CARGO_MANIFEST_DIR"), "golden.json"))
}

fn matrix(rows: &[Vec<f64>]) -> Array2<f64> {
    Array2::from_shape_vec((rows.len(), rows[0].len()), rows.concat()).unwrap()
}

fn data(goldens: &Goldens) -> (Array2<f64>, Vec<bool>) {
    (matrix(&goldens.features), goldens.labels.iter().map(|&label| label == 1).collect())
}

#[test]
fn trained_weights_and_metrics_equal_sklearn() {
    let goldens = goldens();
    let (x, y) = data(&goldens);
    for case in &goldens.eq2 {
        let options = LibraryConfig::logistic(case.c);
        let fitted = LogisticRegression::fit_binary(x.view(), &y, None, options).unwrap();
        assert_close(fitted.weights.as_slice().unwrap(), &case.weights, 1e-4, 0.0);
        assert_close(&[fitted.intercepts[0]], &[case.bias], 1e-4, 0.0);
    }
    let case = &goldens.eq2[1];
    let p: Vec<f64> =
        goldens.features.iter().map(|row| probability(&case.weights, case.bias, row)).collect();
    assert_close(&[common::metrics::auc(&y, &p, None)], &[goldens.metrics.auc], 1e-9, 0.0);
    assert_close(
        &[common::metrics::log_loss(&y, &p, None)],
        &[goldens.metrics.log_loss],
        1e-9,
        0.0,
    );
}

#[test]
fn intercepts_equal_brentq() {
    for case in goldens().eq6 {
        let bias = solve(&case.logits, case.target).unwrap();
        assert!((bias - case.bias).abs() < 1e-7, "{bias} {}", case.bias);
        assert!(gap(&case.logits, bias, case.target).abs() <= TOLERANCE);
    }
}

#[test]
fn prior_updates_equal_scipy_with_their_spread() {
    let goldens = goldens();
    let (x, y) = data(&goldens);
    for case in &goldens.eq7.cases {
        let prior = Prior {
            weights: goldens.eq7.prior_weights.clone(),
            bias: goldens.eq7.prior_bias,
            precision: case.precision,
            bias_precision: goldens.eq7.bias_precision,
        };
        let posterior = prior.update(x.view(), &y).unwrap();
        assert_close(&posterior.weights, &case.weights, 1e-6, 0.0);
        assert_close(&[posterior.bias], &[case.bias], 1e-6, 0.0);
        assert_close(&posterior.sd(), &case.sd, 1e-6, 0.0);
    }
}

#[test]
fn prior_limits_are_the_prior_and_the_warm_model() {
    let goldens = goldens();
    let (x, y) = data(&goldens);
    let prior = |precision: f64| Prior {
        weights: goldens.eq7.prior_weights.clone(),
        bias: 0.0,
        precision,
        bias_precision: 1e-9,
    };
    let stiff = prior(1e9).update(x.view(), &y).unwrap();
    assert_close(&stiff.weights, &goldens.eq7.prior_weights, 1e-6, 0.0);
    let free = prior(1e-7).update(x.view(), &y).unwrap();
    let options = LibraryConfig::logistic(1e7);
    let warm = LogisticRegression::fit_binary(x.view(), &y, None, options).unwrap();
    assert_close(&free.weights, warm.weights.as_slice().unwrap(), 1e-4, 0.0);
    // Without a row the prior comes back.
    let none = prior(1.0).update(Array2::zeros((0, 5)).view(), &[]).unwrap();
    assert_eq!(none.weights, goldens.eq7.prior_weights);
}

#[test]
fn thompson_draws_have_the_posterior_spread() {
    let goldens = goldens();
    let (x, y) = data(&goldens);
    let prior = Prior { weights: vec![0.0; 5], bias: 0.0, precision: 1.0, bias_precision: 2.0 };
    let posterior = prior.update(x.view(), &y).unwrap();
    let mut stream = Seed::new(5).stream("draws");
    let draws: Vec<Vec<f64>> = (0..4_000).map(|_| posterior.sample(&mut stream).0).collect();
    for (j, sd) in posterior.sd().into_iter().enumerate() {
        let column: Vec<f64> = draws.iter().map(|draw| draw[j]).collect();
        let (mean, spread) = common::stats::mean_sd(&column);
        assert!((mean - posterior.weights[j]).abs() < 5.0 * sd / 4_000f64.sqrt());
        assert!((spread / sd - 1.0).abs() < 0.06, "{spread} {sd}");
    }
}

#[test]
fn ridge_map_and_its_leave_one_out_equal_refits() {
    let golden = goldens().ridge;
    let map = RidgeMap::fit(&matrix(&golden.embeddings), &matrix(&golden.targets)).unwrap();
    assert_eq!(map.penalty, golden.penalty);
    assert_close(map.leave_one_out.as_slice().unwrap(), &golden.leave_one_out.concat(), 1e-9, 0.0);
    let new = ndarray::Array1::from(golden.new);
    assert_close(&map.predict(new.view()), &golden.predicted, 1e-9, 0.0);
}

#[test]
fn matrix_scoring_equals_single_dot_products() {
    let mut stream = Seed::new(2).stream("score");
    let (users, ads, width) = (5_000, 7, 16);
    let x: Vec<f32> = (0..users * width).map(|_| stream.normal() as f32).collect();
    let weights: Vec<Vec<f64>> =
        (0..ads).map(|_| (0..width).map(|_| stream.normal()).collect()).collect();
    let biases: Vec<f64> = (0..ads).map(|_| stream.normal()).collect();
    let scores = Scorer::new(&weights, &biases).unwrap().probabilities(&x).unwrap();
    for user in (0..users).step_by(97) {
        let features: Vec<f64> =
            x[user * width..(user + 1) * width].iter().map(|v| f64::from(*v)).collect();
        for ad in 0..ads {
            let one = probability(&weights[ad], biases[ad], &features);
            assert!((f64::from(scores[user * ads + ad]) - one).abs() < 1e-5);
        }
    }
    assert!(Scorer::new(&weights, &biases[1..]).is_err());
    let scorer = Scorer::new(&weights, &biases).unwrap();
    assert!(scorer.probabilities(&x[1..]).is_err());
    assert!(scorer.logits_into(&x, &mut vec![0.0; users * ads - 1]).is_err());
}

fn scale() -> WeightScale {
    let vectors: [&[f64]; 2] = [&[-2.0, 0.5, 1.0], &[0.2, -0.1, 3.0]];
    WeightScale::of(&vectors).unwrap()
}

proptest! {
    #[test]
    fn the_intercept_is_the_one_root_and_rises_with_the_rate(
        logits in prop::collection::vec(-20.0f64..20.0, 1..60),
        low in 1e-6f64..0.999,
        step in 1e-6f64..0.999,
    ) {
        let high = low + step * (0.999_999 - low);
        let (a, b) = (solve(&logits, low).unwrap(), solve(&logits, high).unwrap());
        prop_assert!(gap(&logits, a, low).abs() <= TOLERANCE);
        prop_assert!(gap(&logits, b, high).abs() <= TOLERANCE);
        prop_assert!(a <= b, "{a} {b}");
        prop_assert!(gap(&logits, a - 1e-3, low) < 0.0 && gap(&logits, a + 1e-3, low) > 0.0);
    }

    #[test]
    fn every_normalisation_keeps_its_promise(
        raw in prop::collection::vec(-1e3f64..1e3, 2..40),
        wanted in 0.01f64..5.0,
        turn in 0usize..40,
    ) {
        prop_assume!(raw.iter().any(|u| u.abs() > 1e-9));
        let scale = scale();
        for mode in [
            Normalisation::L2,
            Normalisation::Maxabs,
            Normalisation::Zscore,
            Normalisation::Quantile,
        ] {
            let weights = normalise(&raw, mode, wanted, &scale).unwrap();
            prop_assert!(weights.iter().all(|w| w.is_finite() && w.abs() <= scale.limit + 1e-12));
            match mode {
                Normalisation::L2 => prop_assert!(norm(&weights) <= wanted * (1.0 + 1e-9)),
                Normalisation::Maxabs => prop_assert!(weights.iter().all(|w| w.abs() <= 1.0)),
                _ => {}
            }
            // Permuting features permutes weights.
            let mut turned = raw.clone();
            turned.rotate_left(turn % raw.len());
            let mut expected = weights;
            expected.rotate_left(turn % raw.len());
            let found = normalise(&turned, mode, wanted, &scale).unwrap();
            prop_assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-9));
        }
    }
}
