//! Invariances, regimes with known truth, and determinism across thread counts.

use common::rng::{Seed, Stream};
use common::testing::assert_close;
use llm_ensemble::eval;
use llm_ensemble::model::{bound, vote};
use llm_ensemble::train::{Evidence, Method, Options, fit};
use llm_ensemble::votes::{Duplicates, Label, Names, Votes, VotesBuilder};
use proptest::prelude::*;

type Row = (u32, u32, Label);

fn build(rows: &[Row], items: usize, workers: usize, labels: usize) -> Votes {
    Votes::from_rows(
        Names::numbered(items),
        Names::numbered(workers),
        Names::numbered(labels),
        rows,
        Duplicates::Keep,
    )
    .unwrap()
}

fn run(votes: &Votes, method: Method) -> llm_ensemble::train::Consensus {
    fit(votes, method, &Evidence::default(), &Options::default()).unwrap()
}

const STABLE: [Method; 9] = [
    Method::Mv,
    Method::Iwmv,
    Method::IwmvLogOdds,
    Method::OneCoin,
    Method::OpenOneCoin,
    Method::DawidSkene,
    Method::HierarchicalDs,
    Method::SubtypeDs,
    Method::OpinionPool,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Votes by name: shuffled rows (and with them items and workers) give the same label and
    /// score to every name.
    #[test]
    fn order_of_rows_does_not_matter(
        rows in prop::collection::vec((0u32..12, 0u32..6, 0u16..3), 20..90),
        seed in 0u64..1000,
    ) {
        let named = |rows: &[Row]| {
            let labels = ["a", "b", "c"];
            let mut builder = VotesBuilder::with_labels(&labels).unwrap();
            for (i, w, k) in rows {
                builder.push(&format!("i{i}"), &format!("w{w}"), labels[*k as usize]).unwrap();
            }
            builder.finish(Duplicates::Keep).unwrap()
        };
        let mut shuffled = rows.clone();
        Seed::new(seed).stream("rows").shuffle(&mut shuffled);
        let (a, b) = (named(&rows), named(&shuffled));
        for method in STABLE {
            let (x, y) = (run(&a, method), run(&b, method));
            for (at, name) in a.items.to_vec().iter().enumerate() {
                let other = b.items.position(name).unwrap();
                assert_close(x.scores_of(at), y.scores_of(other), 1e-5, 1e-5);
            }
        }
    }

    /// Renaming labels permutes the scores, as long as no tie is broken on the way.
    #[test]
    fn relabelling_permutes_the_result(
        rows in prop::collection::vec((0u32..10, 0u32..7, 0u16..3), 40..120),
    ) {
        let permuted: Vec<Row> = rows.iter().map(|&(i, w, k)| (i, w, (k + 1) % 3)).collect();
        let (a, b) = (build(&rows, 10, 7, 3), build(&permuted, 10, 7, 3));
        for method in [Method::Mv, Method::OneCoin, Method::DawidSkene, Method::HierarchicalDs] {
            let (x, y) = (run(&a, method), run(&b, method));
            for item in 0..10 {
                let s = x.scores_of(item);
                assert_close(&[s[2], s[0], s[1]], y.scores_of(item), 1e-5, 1e-5);
            }
        }
    }

    /// Posteriors are probabilities.
    #[test]
    fn posteriors_sum_to_one(
        rows in prop::collection::vec((0u32..8, 0u32..5, 0u16..4), 1..80),
    ) {
        let votes = build(&rows, 8, 5, 4);
        for &method in Method::ALL.iter().filter(|m| **m != Method::Wmv) {
            let result = run(&votes, method);
            for item in (0..8).filter(|&item| !votes.range(item).is_empty()) {
                let scores = result.scores_of(item);
                prop_assert!(scores.iter().all(|s| s.is_finite()), "{:?}", method);
                if result.probabilistic {
                    let total: f64 = scores.iter().sum();
                    prop_assert!((total - 1.0).abs() < 1e-9, "{:?}: {}", method, total);
                }
            }
        }
    }
}

/// A synthetic crowd: `vote(worker, truth, item)` draws a label.
fn crowd(
    items: usize,
    workers: usize,
    labels: usize,
    per_item: usize,
    prior: &[f64],
    stream: &mut Stream,
    mut vote: impl FnMut(usize, usize, &mut Stream) -> usize,
) -> (Votes, Vec<Option<Label>>) {
    let mut rows = Vec::new();
    let mut gold = Vec::new();
    for item in 0..items {
        let truth = stream.weighted(prior);
        gold.push(Some(truth as Label));
        for worker in stream.sample(workers, per_item) {
            rows.push((item as u32, worker as u32, vote(worker, truth, stream) as Label));
        }
    }
    (build(&rows, items, workers, labels), gold)
}

fn other(truth: usize, labels: usize, stream: &mut Stream) -> usize {
    (truth + 1 + stream.below(labels - 1)) % labels
}

/// §9.4: five LLMs of known accuracy, three labels; `copies` makes LLM 5 repeat LLM 4 that often.
fn five_llms(seed: u64, items: usize, copies: f64) -> (Votes, Vec<Option<Label>>) {
    const ACCURACY: [f64; 5] = [0.93, 0.88, 0.85, 0.78, 0.70];
    let mut stream = Seed::new(seed).stream("five-llms");
    let mut rows = Vec::new();
    let mut gold = Vec::new();
    for item in 0..items {
        let truth = stream.below(3);
        gold.push(Some(truth as Label));
        let mut previous = truth;
        for (worker, &w) in ACCURACY.iter().enumerate() {
            let mut label = if stream.chance(w) { truth } else { other(truth, 3, &mut stream) };
            if worker == 4 && stream.chance(copies) {
                label = previous;
            }
            previous = label;
            rows.push((item as u32, worker as u32, label as Label));
        }
    }
    (build(&rows, items, 5, 3), gold)
}

fn mean_accuracy(
    seeds: u64,
    method: Method,
    evidence: &Evidence,
    make: impl Fn(u64) -> (Votes, Vec<Option<Label>>),
) -> f64 {
    let total: f64 = (0..seeds)
        .map(|seed| {
            let (votes, gold) = make(seed);
            let result = fit(&votes, method, evidence, &Options::default()).unwrap();
            eval::accuracy(&result, &gold)
        })
        .sum();
    100.0 * total / seeds as f64
}

#[test]
fn iwmv_is_near_the_oracle_on_independent_llms() {
    let make = |seed| five_llms(seed, 5_000, 0.0);
    let oracle = Evidence {
        weights: [0.93, 0.88, 0.85, 0.78, 0.70].map(|w| vote::log_odds_weight(3.0, w)).to_vec(),
        ..Evidence::default()
    };
    let best = mean_accuracy(20, Method::Wmv, &oracle, make);
    let iwmv = mean_accuracy(20, Method::Iwmv, &Evidence::default(), make);
    let mv = mean_accuracy(20, Method::Mv, &Evidence::default(), make);
    assert!((iwmv - best).abs() < 0.3, "IWMV {iwmv:.2}, oracle {best:.2}");
    assert!((mv - 97.81).abs() < 0.3 && (iwmv - 98.38).abs() < 0.2, "MV {mv:.2}, IWMV {iwmv:.2}");
}

#[test]
fn clone_handling_gains_on_a_copying_llm() {
    let make = |seed| five_llms(seed, 5_000, 0.9);
    let none = Evidence::default();
    let plain = mean_accuracy(10, Method::Iwmv, &none, make);
    let clones = mean_accuracy(10, Method::IwmvClones, &none, make);
    let pool = mean_accuracy(10, Method::OpinionPool, &none, make);
    println!("IWMV {plain:.2}, clone-aware {clones:.2}, pool {pool:.2}");
    assert!(clones > plain + 0.5, "IWMV {plain:.2}, clone-aware {clones:.2}");
    let (votes, _) = make(1);
    let report = eval::clone_report(&votes, &run(&votes, Method::IwmvClones));
    let top = report.pairs.iter().max_by(|a, b| a.excess.total_cmp(&b.excess)).unwrap();
    assert_eq!((top.first, top.second), (3, 4));
    assert!(report.effective_workers < 4.6, "{}", report.effective_workers);
}

#[test]
fn dawid_skene_wins_where_errors_depend_on_the_class() {
    // Most workers answer 0 unless they are sure: the majority says 0 on most items of class 1.
    let make = |seed| {
        let mut stream = Seed::new(seed).stream("classes");
        let miss: Vec<f64> = (0..15).map(|w| if w < 4 { 0.1 } else { 0.7 }).collect();
        crowd(600, 15, 2, 15, &[0.5, 0.5], &mut stream, |worker, truth, stream| {
            let wrong = if truth == 1 { miss[worker] } else { 0.08 };
            if stream.chance(wrong) { 1 - truth } else { truth }
        })
    };
    let none = Evidence::default();
    let iwmv = mean_accuracy(5, Method::Iwmv, &none, make);
    let ds = mean_accuracy(5, Method::DawidSkene, &none, make);
    let pool = mean_accuracy(5, Method::OpinionPool, &none, make);
    assert!(ds > iwmv + 5.0, "DS {ds:.2}, IWMV {iwmv:.2}");
    assert!(pool > ds - 1.5, "pool {pool:.2}, DS {ds:.2}");
}

#[test]
fn the_pool_keeps_up_where_votes_are_sparse() {
    // 400 workers with about 4 votes each on 5 labels: full confusion matrices cannot be learned.
    let make = |seed| {
        let mut stream = Seed::new(seed).stream("sparse");
        crowd(300, 400, 5, 5, &[0.2; 5], &mut stream, |worker, truth, stream| {
            let w = 0.4 + 0.5 * (worker % 10) as f64 / 9.0;
            if stream.chance(w) { truth } else { other(truth, 5, stream) }
        })
    };
    let none = Evidence::default();
    let mv = mean_accuracy(5, Method::Mv, &none, make);
    let ds = mean_accuracy(5, Method::DawidSkene, &none, make);
    let pool = mean_accuracy(5, Method::OpinionPool, &none, make);
    assert!(pool > ds + 1.0, "pool {pool:.2}, DS {ds:.2}");
    assert!(pool > mv - 1.0, "pool {pool:.2}, MV {mv:.2}");
}

#[test]
fn error_bound_holds_on_simulated_votes() {
    let accuracies = [0.9, 0.8, 0.75, 0.7, 0.85];
    for labels in [2_usize, 4] {
        let weights: Vec<f64> =
            accuracies.iter().map(|w| vote::linear_weight(labels as f64, *w)).collect();
        let mut stream = Seed::new(9).stream("bound");
        let prior = vec![1.0; labels];
        let (votes, gold) =
            crowd(20_000, 5, labels, 5, &prior, &mut stream, |worker, truth, stream| {
                if stream.chance(accuracies[worker]) { truth } else { other(truth, labels, stream) }
            });
        let evidence = Evidence { weights: weights.clone(), ..Evidence::default() };
        let result = fit(&votes, Method::Wmv, &evidence, &Options::default()).unwrap();
        let error = 1.0 - eval::accuracy(&result, &gold);
        let bound = bound::error_bound(&accuracies, &weights, labels, 1.0);
        assert!(error <= bound, "error {error:.4}, bound {bound:.4}");
    }
}

#[test]
fn calibration_lowers_overconfidence_of_copies() {
    // Ten copies of one worker of accuracy 0.7: the raw posterior is certain, and wrong in 30 %.
    let mut rows = Vec::new();
    let mut gold = Vec::new();
    let mut stream = Seed::new(3).stream("copies");
    for item in 0..800_u32 {
        let truth = stream.below(2);
        gold.push(Some(truth as Label));
        let shared = if stream.chance(0.7) { truth } else { 1 - truth };
        for worker in 0..10 {
            let label = if stream.chance(0.05) { 1 - shared } else { shared };
            rows.push((item, worker, label as Label));
        }
    }
    let votes = build(&rows, 800, 10, 2);
    let result = run(&votes, Method::Iwmv);
    let confidence = |c: &eval::Calibrated| -> f64 {
        (0..800).map(|item| c.confidence(item, 2)).sum::<f64>() / 800.0
    };
    let with_gold = eval::calibrate(&votes, &result, &gold);
    assert!((confidence(&with_gold) - 0.7).abs() < 0.05, "{}", confidence(&with_gold));
    assert!(with_gold.exponent < 0.3, "{}", with_gold.exponent);
}

#[test]
fn dropping_the_best_llm_costs_most() {
    let (votes, gold) = five_llms(2, 2_000, 0.0);
    let report = eval::label_cost(&votes, Method::Iwmv, &Options::default(), &gold).unwrap();
    assert_eq!(report.last().unwrap().worker, "0");
    assert!(report.iter().all(|dropped| dropped.votes_saved == 2_000));
}

#[test]
fn shared_weights_help_a_small_attribute() {
    use llm_ensemble::train::{per_attribute, per_attribute_shared};
    let (large, _) = five_llms(1, 2_000, 0.0);
    let (small, gold) = five_llms(4, 12, 0.0);
    let attributes = vec![("large".to_owned(), large), ("small".to_owned(), small)];
    let options = Options::default();
    let alone = per_attribute(&attributes, Method::Iwmv, &options).unwrap();
    let shared = per_attribute_shared(&attributes, Method::Iwmv, &options).unwrap();
    let truth = [0.93, 0.88, 0.85, 0.78, 0.70];
    let error = |accuracy: &[Option<f64>]| -> f64 {
        accuracy.iter().zip(truth).map(|(w, t)| (w.unwrap() - t).abs()).sum()
    };
    assert!(error(&shared.attributes["small"].accuracy) < error(&alone["small"].accuracy));
    assert!(
        eval::accuracy(&shared.attributes["small"], &gold)
            >= eval::accuracy(&alone["small"], &gold)
    );
}

#[test]
fn thread_counts_give_the_same_bits() {
    let mut stream = Seed::new(11).stream("threads");
    let (votes, _) = crowd(9_000, 60, 3, 8, &[0.5, 0.3, 0.2], &mut stream, |worker, truth, s| {
        if s.chance(0.5 + worker as f64 / 150.0) { truth } else { other(truth, 3, s) }
    });
    let with = |threads: usize, method: Method| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&votes, method))
    };
    for method in [Method::Iwmv, Method::DawidSkene, Method::OpinionPool] {
        let (one, two) = (with(1, method), with(2, method));
        assert_eq!(one.label, two.label, "{method:?}");
        let bits = |scores: &[f64]| scores.iter().map(|s| s.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&one.scores), bits(&two.scores), "{method:?}");
    }
}
