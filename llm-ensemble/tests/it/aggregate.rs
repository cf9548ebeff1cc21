//! Aggregators against hand-worked numbers, numpy goldens, and the degenerate input of the
//! specification.

use common::testing::{assert_close, golden};
use llm_ensemble::baselines;
use llm_ensemble::model::{bound, vote};
use llm_ensemble::train::{
    AllNegative, Cardinality, Evidence, Method, Options, Ties, Warning, fit,
};
use llm_ensemble::votes::{Duplicates, MISSING, Names, Votes, VotesBuilder};
use serde_json::Value;

/// Votes from "item worker label" lines.
fn votes(text: &str) -> Votes {
    let mut builder = VotesBuilder::new();
    for line in text.split(';').map(str::trim).filter(|line| !line.is_empty()) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        builder.push(fields[0], fields[1], fields[2]).unwrap();
    }
    builder.finish(Duplicates::Keep).unwrap()
}

fn run(votes: &Votes, method: Method) -> llm_ensemble::train::Consensus {
    fit(votes, method, &Evidence::default(), &Options::default()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(list) => list.iter().flat_map(numbers).collect(),
        other => vec![other.as_f64().unwrap()],
    }
}

#[test]
fn numpy_goldens() {
    let path = golden(env!("CARGO_MANIFEST_DIR"), "crowd").join("golden.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let size = |key: &str| golden[key].as_u64().unwrap() as usize;
    let rows: Vec<(u32, u32, u16)> = golden["votes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let n = |at: usize| row[at].as_u64().unwrap();
            (n(0) as u32, n(1) as u32, n(2) as u16)
        })
        .collect();
    let votes = Votes::from_rows(
        Names::numbered(size("items")),
        Names::numbered(size("workers")),
        Names::numbered(size("labels")),
        &rows,
        Duplicates::Keep,
    )
    .unwrap();
    let mv = run(&votes, Method::Mv);
    assert_close(&mv.scores, &numbers(&golden["majority_vote"]), 0.0, 0.0);
    let iwmv = run(&votes, Method::Iwmv);
    assert_close(&iwmv.scores, &numbers(&golden["iwmv"]["scores"]), 1e-12, 0.0);
    assert_close(&iwmv.weights, &numbers(&golden["iwmv"]["weights"]), 1e-12, 0.0);
    assert_eq!(iwmv.rounds, golden["iwmv"]["rounds"].as_u64().unwrap() as usize);
    let ds = run(&votes, Method::DawidSkene);
    assert_close(&ds.history, &numbers(&golden["dawid_skene"]["history"]), 1e-10, 0.0);
    assert_close(&ds.scores, &numbers(&golden["dawid_skene"]["posterior"]), 1e-7, 0.0);
}

#[test]
fn iwmv_by_hand() {
    // Consensus of the first round: a, a, b. Agreement: x 3/3, y 2/3, z 1/3, so with L = 2 the
    // weights are 1, 1/3 and −1/3; they change no label.
    let votes = votes("1 x a; 1 y a; 1 z b; 2 x a; 2 y b; 2 z a; 3 x b; 3 y b; 3 z a");
    let result = run(&votes, Method::Iwmv);
    assert_close(&result.weights, &[1.0, 1.0 / 3.0, -1.0 / 3.0], 1e-12, 0.0);
    assert_close(
        &result.scores,
        &[4.0 / 3.0, -1.0 / 3.0, 2.0 / 3.0, 1.0 / 3.0, -1.0 / 3.0, 4.0 / 3.0],
        1e-12,
        0.0,
    );
    assert_eq!(result.label, [0, 0, 1]);
    assert_eq!(result.rounds, 1);
}

#[test]
fn weight_rules() {
    // Eq. 3 is the linearisation of Eq. 6 at w = 1/L, up to L/(L − 1).
    for labels in [2.0, 3.0, 7.0] {
        let step = 1e-5;
        let slope = (vote::log_odds_weight(labels, 1.0 / labels + step)
            - vote::log_odds_weight(labels, 1.0 / labels - step))
            / (2.0 * step);
        let linear = vote::linear_weight(labels, 1.0 / labels + 1.0) * labels / (labels - 1.0);
        assert_close(&[slope], &[linear], 1e-3, 0.0);
    }
    assert!(vote::log_odds_weight(2.0, 1.0).is_finite());
    // Eq. 5 is smallest at v ∝ L w − 1.
    let accuracies = [0.9, 0.7, 0.6, 0.8, 0.55];
    let optimal: Vec<f64> = accuracies.iter().map(|w| vote::linear_weight(3.0, *w)).collect();
    let best = bound::error_bound(&accuracies, &optimal, 3, 1.0);
    for other in [vec![1.0; 5], vec![1.0, 0.0, 0.0, 1.0, 0.0]] {
        assert!(best <= bound::error_bound(&accuracies, &other, 3, 1.0));
    }
    assert_eq!(bound::error_bound(&[0.2, 0.2], &[1.0, 1.0], 2, 1.0), 1.0);
}

#[test]
fn no_votes_at_all() {
    let empty = VotesBuilder::with_labels(&["a", "b"]).unwrap().finish(Duplicates::Keep).unwrap();
    for &method in Method::ALL {
        if method != Method::Wmv {
            assert!(run(&empty, method).label.is_empty(), "{method:?}");
        }
    }
}

#[test]
fn items_and_workers_without_votes_are_missing() {
    let mut builder = VotesBuilder::with_labels(&["a", "b"]).unwrap();
    builder.push("1", "x", "a").unwrap();
    builder.push("1", "y", "a").unwrap();
    builder.push("3", "x", "b").unwrap();
    builder.push_missing("2", "silent").unwrap();
    let votes = builder.finish(Duplicates::Keep).unwrap();
    for &method in Method::ALL.iter().filter(|method| **method != Method::Wmv) {
        let result = run(&votes, method);
        let at = |name: &str| result.label[votes.items.position(name).unwrap()];
        assert_eq!(at("2"), MISSING, "{method:?} invents a label");
        assert_eq!(at("1"), 0, "{method:?}");
        assert_eq!(at("3"), 1, "{method:?}");
        assert!(result.scores.iter().all(|s| s.is_finite()), "{method:?}");
        if method != Method::Mv && method != Method::ZeroBasedSkill {
            let silent = votes.workers.position("silent").unwrap();
            assert_eq!(result.weights[silent], 0.0, "{method:?}");
            assert_eq!(result.accuracy[silent], None, "{method:?}");
        }
    }
}

#[test]
fn one_label_and_one_worker() {
    let single = votes("1 x a; 2 x a");
    for &method in Method::ALL.iter().filter(|method| **method != Method::Wmv) {
        assert_eq!(run(&single, method).label, [0, 0], "{method:?}");
    }
    let alone = votes("1 x a; 2 x b");
    for &method in Method::ALL.iter().filter(|method| **method != Method::Wmv) {
        assert_eq!(run(&alone, method).label, [0, 1], "{method:?}");
    }
}

#[test]
fn two_workers_are_warned_about() {
    let two = votes("1 x a; 1 y b; 2 x a; 2 y a");
    assert!(run(&two, Method::Iwmv).warnings.contains(&Warning::FewWorkers));
    let three = votes("1 x a; 1 y b; 1 z a; 2 x a; 2 y a; 2 z a");
    assert!(!run(&three, Method::Iwmv).warnings.contains(&Warning::FewWorkers));
}

#[test]
fn ties_under_each_policy() {
    // y is better than x on the untied items, so its label wins under PreferBestModel.
    let text = "1 x a; 1 y b; 2 x a; 2 y b; 2 z b; 3 x a; 3 y b; 3 z b";
    let votes = votes(text);
    let with = |ties: Ties, method: Method| {
        let options = Options { ties, ..Options::default() };
        fit(&votes, method, &Evidence::default(), &options).unwrap()
    };
    let lowest = with(Ties::Lowest, Method::Mv);
    assert_eq!((lowest.label[0], lowest.ties), (0, 1));
    assert_eq!(with(Ties::FirstWorker, Method::Mv).label[0], 0);
    let weighted = Evidence { weights: vec![1.0, 1.0, 1.0], ..Evidence::default() };
    let options = Options { ties: Ties::PreferBestModel, ..Options::default() };
    let best = fit(&votes, Method::Mv, &weighted, &options).unwrap();
    assert_eq!(best.label[1..], [1, 1]);
    let draws: Vec<u16> =
        (0..40).map(|seed| with(Ties::Random(seed), Method::Mv).label[0]).collect();
    assert!(draws.contains(&0) && draws.contains(&1));
    assert_eq!(with(Ties::Random(3), Method::Mv).label, with(Ties::Random(3), Method::Mv).label);
}

#[test]
fn negative_weights() {
    let votes = votes("1 x a; 1 y a; 1 z b; 2 x a");
    let vote_with = |weights: Vec<f64>, all_negative| {
        let evidence = Evidence { weights, ..Evidence::default() };
        let options = Options { all_negative, ..Options::default() };
        fit(&votes, Method::Wmv, &evidence, &options).unwrap()
    };
    let against = vote_with(vec![-1.0; 3], AllNegative::Against);
    assert_eq!(against.label, [1, 1]);
    assert_eq!(against.fallbacks, [0, 1]);
    let majority = vote_with(vec![-1.0; 3], AllNegative::Majority);
    assert_eq!(majority.label, [0, 0]);
    assert_eq!(majority.fallbacks, [0, 1]);
    // Weights of 0 elect nobody: majority vote under either policy.
    assert_eq!(vote_with(vec![0.0; 3], AllNegative::Against).label, [0, 0]);
}

#[test]
fn duplicates() {
    let build = |policy| {
        let mut builder = VotesBuilder::new();
        for label in ["a", "b", "b"] {
            builder.push("1", "x", label).unwrap();
        }
        builder.push("1", "y", "a").unwrap();
        builder.finish(policy)
    };
    let labels = |policy| build(policy).unwrap().label_codes().to_vec();
    assert_eq!(labels(Duplicates::Keep), [0, 1, 1, 0]);
    assert_eq!(labels(Duplicates::First), [0, 0]);
    assert_eq!(labels(Duplicates::Last), [1, 0]);
    let error = build(Duplicates::Error).unwrap_err().to_string();
    assert!(error.contains("vote 2") && error.contains("\"x\""), "{error}");
}

#[test]
fn unknown_label_is_refused() {
    let mut builder = VotesBuilder::with_labels(&["a", "b"]).unwrap();
    let error = builder.push("1", "x", "c").unwrap_err();
    assert!(error.to_string().contains("\"c\""));
    assert_eq!(error.exit_code(), 3);
}

#[test]
fn labels_ascend_by_number_when_they_are_numbers() {
    assert_eq!(votes("1 x 10; 1 y 9; 1 z 2").labels.to_vec(), ["2", "9", "10"]);
    assert_eq!(votes("1 x b10; 1 y b9").labels.to_vec(), ["b10", "b9"]);
}

#[test]
fn a_cycle_ends_the_rounds() {
    // Random votes of many workers with one vote each reach a cycle or a fixed point, never the cap
    // without a warning.
    let mut stream = common::rng::Seed::new(5).stream("cycle");
    for _ in 0..200 {
        let rows: Vec<(u32, u32, u16)> = (0..24)
            .map(|_| (stream.below(6) as u32, stream.below(5) as u32, stream.below(3) as u16))
            .collect();
        let votes = Votes::from_rows(
            Names::numbered(6),
            Names::numbered(5),
            Names::numbered(3),
            &rows,
            Duplicates::Keep,
        )
        .unwrap();
        let result = run(&votes, Method::Iwmv);
        assert!(result.rounds < 100, "{} rounds", result.rounds);
    }
}

#[test]
fn evidence_that_does_not_fit_is_refused() {
    let votes = votes("1 x a; 1 y b");
    for evidence in [
        Evidence { weights: vec![1.0], ..Evidence::default() },
        Evidence { weights: vec![f64::NAN, 1.0], ..Evidence::default() },
        Evidence { gold: vec![Some(7)], ..Evidence::default() },
        Evidence { prior: vec![Some((1.5, 1.0)), None], ..Evidence::default() },
    ] {
        let error = fit(&votes, Method::Iwmv, &evidence, &Options::default()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
    let error = fit(&votes, Method::Wmv, &Evidence::default(), &Options::default()).unwrap_err();
    assert!(error.to_string().contains("weight"));
}

#[test]
fn gold_rows_and_priors_move_the_weights() {
    // Without gold the majority (x, y) is believed; gold on three items exposes it.
    let text = "1 x a; 1 y a; 1 z b; 2 x a; 2 y a; 2 z b; 3 x a; 3 y a; 3 z b; 4 x a; 4 y a; 4 z b";
    let votes = votes(text);
    let gold = vec![Some(1), Some(1), Some(1), None];
    for method in [Method::Iwmv, Method::OneCoin, Method::DawidSkene, Method::OpinionPool] {
        let evidence = Evidence { gold: gold.clone(), ..Evidence::default() };
        let result = fit(&votes, method, &evidence, &Options::default()).unwrap();
        assert_eq!(result.label[..3], [1, 1, 1], "{method:?}");
        assert_eq!(result.label[3], 1, "{method:?} ignores what gold says about the workers");
    }
    let prior = vec![Some((0.1, 100.0)), Some((0.1, 100.0)), Some((0.95, 100.0))];
    let evidence = Evidence { prior, ..Evidence::default() };
    let result = fit(&votes, Method::Iwmv, &evidence, &Options::default()).unwrap();
    assert_eq!(result.label, [1, 1, 1, 1]);
}

#[test]
fn cardinality_changes_the_weights() {
    let votes = votes("1 x a; 1 y b; 1 z a; 2 x c; 2 y c; 2 z d");
    let weights = |cardinality| {
        let options = Options { cardinality, ..Options::default() };
        fit(&votes, Method::Iwmv, &Evidence::default(), &options).unwrap().weights
    };
    assert_close(&weights(Cardinality::LabelSet), &[3.0, 1.0, 1.0], 1e-12, 0.0);
    assert_close(&weights(Cardinality::Effective), &[1.0, 0.0, 0.0], 1e-12, 0.0);
    assert_close(&weights(Cardinality::Fixed(3.0)), &[2.0, 0.5, 0.5], 1e-12, 0.0);
}

#[test]
fn flip_guard_keeps_weights_from_turning_negative() {
    let votes = votes("1 x a; 1 y a; 1 z b; 2 x b; 2 y b; 2 z a; 3 x a; 3 y a; 3 z b");
    let weight = |flip_guard| {
        let options = Options { flip_guard, ..Options::default() };
        fit(&votes, Method::Iwmv, &Evidence::default(), &options).unwrap().weights[2]
    };
    assert_eq!(weight(false), -1.0);
    assert_eq!(weight(true), 0.0);
}

#[test]
fn mv_counts_and_wawa_weighs_by_agreement() {
    let votes = votes("1 x a; 1 y a; 1 z b; 2 x b; 2 y a; 2 z b; 3 z a; 3 y b");
    let wawa = baselines::wawa(&votes, &Evidence::default(), &Options::default());
    // Majority vote: a, b, a (tie, lowest). Agreement: x 2/2, y 1/3, z 2/3.
    assert_close(&wawa.weights, &[1.0, 1.0 / 3.0, 2.0 / 3.0], 1e-12, 0.0);
    assert_close(&wawa.scores[..2], &[4.0 / 3.0, 2.0 / 3.0], 1e-12, 0.0);
}

#[test]
fn new_votes_update_a_fit() {
    use llm_ensemble::train::update;
    let old = votes("1 x a; 1 y a; 1 z b; 2 x b; 2 y b; 2 z b");
    let newer = votes("3 x a; 3 y a; 3 w b; 2 w b");
    let before = run(&old, Method::Iwmv);
    let (merged, after) =
        update(&old, &before, &newer, &Options::default(), Duplicates::Keep).unwrap();
    assert_eq!((merged.items.len(), merged.workers.len(), merged.len()), (3, 4, 10));
    assert_eq!(after.label, run(&merged, Method::Iwmv).label);
}
