//! The measured tables of the crowd sets and of the recorded AE-110k answers.

use common::assets::Assets;
use common::testing::asset_or_skip;
use llm_ensemble::bench::crowd::{CrowdSet, SETS};
use llm_ensemble::bench::recorded::{self, PANELS, Prediction, Recorded};
use llm_ensemble::train::{Evidence, Method, Options, fit};

fn set(name: &str) -> Option<CrowdSet> {
    let labels = asset_or_skip("crowd", &format!("{name}/label.csv"))?;
    let truth = asset_or_skip("crowd", &format!("{name}/truth.csv"))?;
    Some(CrowdSet::read(&labels, &truth).unwrap())
}

fn measure(set: &CrowdSet, method: Method) -> (f64, usize) {
    let result = fit(&set.votes, method, &Evidence::default(), &Options::default()).unwrap();
    let credits = set.credits(&result);
    (100.0 * credits.iter().sum::<f64>() / credits.len() as f64, result.rounds)
}

/// MV, IWMV, its rounds, Dawid–Skene (specification, table 9.2, measured with numpy).
const MEASURED: [(f64, f64, usize, f64); 12] = [
    (75.93, 72.22, 5, 89.81),
    (89.69, 92.75, 5, 92.75),
    (82.22, 83.02, 4, 84.39),
    (73.07, 84.96, 8, 82.77),
    (65.14, 59.12, 16, 70.46),
    (88.22, 89.33, 2, 83.00),
    (85.33, 85.67, 2, 84.00),
    (94.30, 94.60, 3, 94.40),
    (74.09, 76.67, 17, 75.69),
    (86.13, 86.86, 7, 82.25),
    (89.66, 92.74, 6, 93.93),
    (63.67, 63.01, 2, 64.21),
];

#[test]
fn crowd_sets_match_the_measured_table() {
    let (mut pool_sum, mut ds_sum) = (0.0, 0.0);
    for (name, (mv, iwmv, rounds, ds)) in SETS.iter().zip(MEASURED) {
        let Some(set) = set(name) else { return };
        let near = |method: Method, expected: f64, tolerance: f64| {
            let (found, _) = measure(&set, method);
            assert!(
                (found - expected).abs() <= tolerance,
                "{name} {method:?}: found {found:.2}, expected {expected:.2}"
            );
            found
        };
        let mv = near(Method::Mv, mv, 0.05);
        near(Method::Iwmv, iwmv, 0.05);
        assert_eq!(measure(&set, Method::Iwmv).1, rounds, "{name}");
        ds_sum += near(Method::DawidSkene, ds, 0.3);
        let (pool, _) = measure(&set, Method::OpinionPool);
        assert!(pool > mv - 1.0, "{name}: pool {pool:.2}, majority vote {mv:.2}");
        pool_sum += pool;
    }
    assert!(pool_sum > ds_sum, "mean of the pool {:.2}", pool_sum / 12.0);
}

/// crowd-kit 1.4.2's GLAD and MACE where it was run (table 9.2).
#[test]
fn glad_and_mace_match_crowd_kit() {
    let table = [
        ("bluebird", 72.22, 76.85),
        ("rte", 92.50, 92.75),
        ("dog", 83.40, 83.64),
        ("CF", 88.00, 89.00),
        ("CF_amt", 85.33, 86.67),
        ("SP_amt", 94.60, 94.40),
        ("ZenCrowd_in", 77.16, 77.25),
        ("ZenCrowd_us", 87.89, 83.92),
        ("s4_Face", 63.01, 63.53),
    ];
    for (name, glad, mace) in table {
        let Some(set) = set(name) else { return };
        let options = Options { crowd_kit_mace: true, ..Options::default() };
        for (method, expected) in [(Method::Glad, glad), (Method::Mace, mace)] {
            let result = fit(&set.votes, method, &Evidence::default(), &options).unwrap();
            let credits = set.credits(&result);
            let found = 100.0 * credits.iter().sum::<f64>() / credits.len() as f64;
            assert!(
                (found - expected).abs() <= 0.7,
                "{name} {method:?}: found {found:.2}, expected {expected:.2}"
            );
        }
    }
}

fn recorded_answers() -> Option<Recorded> {
    asset_or_skip("extractgpt-ae-110k", "test.jsonl")?;
    Some(Recorded::read(&Assets::from_env()).unwrap())
}

fn f1(recorded: &Recorded, predictions: &[Prediction]) -> f64 {
    100.0 * recorded::judge(recorded, predictions).f1()
}

#[test]
fn single_runs_on_ae_110k_are_exact() {
    let Some(recorded) = recorded_answers() else { return };
    assert_eq!(recorded.pairs.len(), 1_482);
    let table = [
        (79.22, 86.67, 78.12, 82.17),
        (82.66, 89.91, 82.13, 85.85),
        (84.62, 91.23, 84.13, 87.54),
        (81.85, 90.05, 81.25, 85.43),
        (84.55, 91.07, 84.13, 87.46),
    ];
    for (run, (accuracy, precision, recall, expected)) in table.into_iter().enumerate() {
        let predictions: Vec<Prediction> =
            recorded.pairs.iter().map(|pair| vec![(pair.answers[run].clone(), 1.0)]).collect();
        let counts = recorded::judge(&recorded, &predictions);
        let found = [counts.accuracy(), counts.precision(), counts.recall(), counts.f1()];
        for (found, expected) in found.iter().zip([accuracy, precision, recall, expected]) {
            assert_eq!(format!("{:.2}", 100.0 * found), format!("{expected:.2}"), "run {run}");
        }
    }
}

#[test]
fn votes_on_ae_110k_match_the_measured_table() {
    let Some(recorded) = recorded_answers() else { return };
    // MV first, expected, last; tied items; IWMV global, per attribute.
    let table = [
        (87.27, 87.44, 87.62, 21, 87.27, 87.40),
        (86.74, 87.14, 87.45, 24, 87.45, 87.24),
        (86.51, 86.98, 87.36, 28, 87.36, 87.10),
        (86.57, 86.97, 87.25, 26, 87.25, 87.07),
    ];
    for (runs, (first, expected, last, ties, global, grouped)) in PANELS.into_iter().zip(table) {
        let votes = recorded.votes(runs).unwrap();
        let options = recorded::first_worker();
        let mv = fit(&votes, Method::Mv, &Evidence::default(), &options).unwrap();
        assert_eq!(mv.ties, ties, "{runs:?}");
        let rows = recorded::panel(&recorded, runs).unwrap();
        for (method, expected) in [
            ("majority vote, first", first),
            ("majority vote, expected", expected),
            ("majority vote, last", last),
            ("IWMV global", global),
            ("IWMV per attribute", grouped),
        ] {
            let row = rows.iter().find(|row| row.0 == method).unwrap();
            let found = f1(&recorded, &row.2);
            assert!((found - expected).abs() <= 0.05, "{runs:?} {method}: {found:.2}");
        }
        let ours = rows.iter().find(|row| row.1 == common::report::Role::Ours).unwrap();
        let ours = f1(&recorded, &ours.2);
        assert!(ours > 87.5, "{runs:?}: {ours:.2}");
    }
}
