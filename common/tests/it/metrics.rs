//! Metrics, calibration and logistic regression against scikit-learn's values
//! (tests/golden/sklearn, made by the scripts beside them).

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use common::logistic::{LogisticOptions, LogisticRegression};
use common::metrics::calibration::{Isotonic, Platt};
use common::metrics::{auc, average_precision, ece, log_loss, ndcg_at, ndcg_at_in_order};
use common::testing::{assert_close, golden, golden_json};
use ndarray::Array2;
use serde::Deserialize;

const TIGHT: f64 = 1e-9;

#[derive(Deserialize)]
struct Goldens {
    binary_metrics: Vec<BinaryCase>,
    ndcg: Vec<NdcgCase>,
    platt: Vec<PlattCase>,
    isotonic: Vec<IsotonicCase>,
    logistic_regression: Vec<LogisticCase>,
}

fn goldens() -> Goldens {
    golden_json(&golden(env!("CARGO_MANIFEST_DIR"), "sklearn").join("golden.json"))
}

fn flags(labels: &[u8]) -> Vec<bool> {
    labels.iter().map(|&label| label == 1).collect()
}

#[derive(Deserialize)]
struct BinaryCase {
    name: String,
    labels: Vec<u8>,
    probabilities: Vec<f64>,
    weights: Option<Vec<f64>>,
    auc: f64,
    average_precision: f64,
    log_loss: f64,
    ece: Option<f64>,
}

#[test]
fn binary_metrics_equal_sklearn() {
    let cases = goldens().binary_metrics;
    assert_eq!(cases.len(), 8);
    for case in cases {
        println!("{}", case.name);
        let labels = flags(&case.labels);
        let (p, weights) = (&case.probabilities, case.weights.as_deref());
        assert_close(&[auc(&labels, p, weights)], &[case.auc], TIGHT, 0.0);
        let found = average_precision(&labels, p, weights);
        assert_close(&[found], &[case.average_precision], TIGHT, 0.0);
        assert_close(&[log_loss(&labels, p, weights)], &[case.log_loss], TIGHT, 0.0);
        if let Some(expected) = case.ece {
            assert_close(&[ece(&labels, p)], &[expected], TIGHT, 0.0);
        }
    }
}

#[derive(Deserialize)]
struct NdcgCase {
    name: String,
    relevance: Vec<Vec<f64>>,
    scores: Vec<Vec<f64>>,
    ignore_ties: bool,
    ndcg_at: BTreeMap<usize, Vec<f64>>,
}

#[test]
fn ndcg_equals_sklearn() {
    for case in goldens().ndcg {
        println!("{}", case.name);
        let metric = if case.ignore_ties { ndcg_at_in_order } else { ndcg_at };
        for (k, expected) in &case.ndcg_at {
            let queries = case.relevance.iter().zip(&case.scores);
            let found: Vec<f64> =
                queries.map(|(gains, scores)| metric(gains, scores, *k)).collect();
            assert_close(&found, expected, TIGHT, 0.0);
        }
    }
}

#[derive(Deserialize)]
struct PlattCase {
    name: String,
    scores: Vec<f64>,
    labels: Vec<u8>,
    queries: Vec<f64>,
    sklearn_probabilities: Vec<f64>,
    optimum_a: f64,
    optimum_b: f64,
    optimum_probabilities: Vec<f64>,
}

#[test]
fn platt_reaches_the_optimum_and_sklearn_within_its_own_tolerance() {
    for case in goldens().platt {
        println!("{}", case.name);
        let platt = Platt::fit(&case.scores, &flags(&case.labels)).unwrap();
        assert_close(&[platt.a, platt.b], &[case.optimum_a, case.optimum_b], TIGHT, TIGHT);
        let found: Vec<f64> = case.queries.iter().map(|&score| platt.probability(score)).collect();
        assert_close(&found, &case.optimum_probabilities, TIGHT, 0.0);
        assert_close(&found, &case.sklearn_probabilities, 1e-6, 0.0);
    }
}

#[derive(Deserialize)]
struct IsotonicCase {
    name: String,
    scores: Vec<f64>,
    labels: Vec<f64>,
    weights: Option<Vec<f64>>,
    queries: Vec<f64>,
    fitted: Vec<f64>,
    predictions: Vec<f64>,
}

#[test]
fn isotonic_equals_sklearn() {
    for case in goldens().isotonic {
        println!("{}", case.name);
        let fit = Isotonic::fit(&case.scores, &case.labels, case.weights.as_deref()).unwrap();
        let map = |scores: &[f64]| -> Vec<f64> {
            scores.iter().map(|&score| fit.probability(score)).collect()
        };
        assert_close(&map(&case.scores), &case.fitted, TIGHT, 0.0);
        assert_close(&map(&case.queries), &case.predictions, TIGHT, 0.0);
    }
}

#[derive(Deserialize)]
struct LogisticCase {
    name: String,
    features: Vec<Vec<f64>>,
    labels: Vec<u8>,
    weights: Option<Vec<f64>>,
    #[serde(rename = "C")]
    c: f64,
    coefficients: Vec<f64>,
    intercept: f64,
    probabilities: Vec<f64>,
}

fn matrix(rows: &[Vec<f64>]) -> Array2<f64> {
    Array2::from_shape_vec((rows.len(), rows[0].len()), rows.concat()).unwrap()
}

fn options(c: f64) -> LogisticOptions {
    LogisticOptions { c, tolerance: 1e-12, ..LogisticOptions::default() }
}

#[test]
fn binary_logistic_regression_equals_sklearn() {
    for case in goldens().logistic_regression {
        println!("{}", case.name);
        let features = matrix(&case.features);
        let labels = flags(&case.labels);
        let weights = case.weights.as_deref();
        let fit =
            LogisticRegression::fit_binary(features.view(), &labels, weights, options(case.c))
                .unwrap();
        assert_close(&fit.weights.row(0).to_vec(), &case.coefficients, 1e-6, 1e-6);
        assert_close(&[fit.intercepts[0]], &[case.intercept], 1e-6, 1e-6);
        let found = fit.probabilities(features.view()).unwrap().column(1).to_vec();
        assert_close(&found, &case.probabilities, 1e-6, 0.0);
    }
}

#[derive(Deserialize)]
struct MultinomialCase {
    name: String,
    features: Vec<Vec<f64>>,
    labels: Vec<usize>,
    weights: Option<Vec<f64>>,
    #[serde(rename = "C")]
    c: f64,
    coefficients: Vec<Vec<f64>>,
    probabilities: Vec<Vec<f64>>,
}

#[test]
fn multinomial_logistic_regression_equals_sklearn() {
    let path = golden(env!("CARGO_MANIFEST_DIR"), "sklearn").join("multinomial.json");
    let cases: Vec<MultinomialCase> = golden_json(&path);
    for case in cases {
        println!("{}", case.name);
        let features = matrix(&case.features);
        let weights = case.weights.as_deref();
        let fit =
            LogisticRegression::fit(features.view(), &case.labels, 3, weights, options(case.c))
                .unwrap();
        let found: Vec<f64> = fit.weights.iter().copied().collect();
        assert_close(&found, &case.coefficients.concat(), 1e-6, 1e-6);
        let found: Vec<f64> = fit.probabilities(features.view()).unwrap().into_iter().collect();
        assert_close(&found, &case.probabilities.concat(), 1e-6, 0.0);
    }
}
