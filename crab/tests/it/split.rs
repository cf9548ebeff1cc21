//! Stage 1: hand-worked numbers, brute force, invariants.

use common::rng::Seed;
use crab::model::rebalance::{
    Child, RebalanceOptions, assign, balance, objective, rebalance, targets, within,
};
use crab::model::regularizer::{ParentWeight, Regularizer};
use crab::sid::SidTable;
use ndarray::Array2;
use proptest::prelude::*;

fn child(items: usize, popularity: u64, mean: &[f32]) -> Child {
    Child { items: vec![0; items], popularity, mean: mean.to_vec() }
}

fn children(seed: u64, count: usize) -> Vec<Child> {
    let mut stream = Seed::new(seed).stream("children");
    (0..count)
        .map(|_| {
            let mean: Vec<f32> = (0..3).map(|_| stream.normal() as f32).collect();
            child(1 + stream.below(5), 1 + stream.below(50) as u64, &mean)
        })
        .collect()
}

/// Least objective over all assignments without an empty part.
fn brute_force(children: &[Child], parts: usize, options: &RebalanceOptions) -> f64 {
    let mut best = f64::INFINITY;
    for code in 0..parts.pow(children.len() as u32) {
        let assignment: Vec<usize> =
            (0..children.len()).map(|j| code / parts.pow(j as u32) % parts).collect();
        if (0..parts).all(|m| assignment.contains(&m)) {
            best = best.min(objective(children, &assignment, parts, options));
        }
    }
    best
}

#[test]
fn balance_and_distance_by_hand() {
    assert_eq!(balance(&[6.0, 2.0]), 8.0);
    // one part with means 0 (2 items) and 3 (1 item): centre 1, 2 · 1 + 1 · 4
    let two = [child(2, 5, &[0.0]), child(1, 3, &[3.0])];
    assert!((within(&two, &[0, 0], 1) - 6.0).abs() < 1e-9);
    assert_eq!(within(&two, &[0, 1], 2), 0.0);
    // normalised: distance 1 whole, balance 0 with one part; split: 0 + (1 + 1) / 64
    let options = RebalanceOptions::default();
    assert!((objective(&two, &[0, 0], 1, &options) - 1.0).abs() < 1e-9);
    assert!((objective(&two, &[0, 1], 2, &options) - 2.0 / 64.0).abs() < 1e-9);
}

#[test]
fn the_solver_finds_the_best_assignment_of_small_cases() {
    for seed in 0..12 {
        let children = children(seed, 7);
        for parts in [2, 3] {
            for lambda in [0.0, 0.2, 1.0, 5.0] {
                let options =
                    RebalanceOptions { lambda, restarts: 40, ..RebalanceOptions::default() };
                let mut stream = Seed::new(seed).stream("solver");
                let found = assign(&children, parts, &options, &mut stream);
                let value = objective(&children, &found, parts, &options);
                let best = brute_force(&children, parts, &options);
                assert!(
                    value - best < 1e-6,
                    "seed {seed}, {parts} parts, λ {lambda}: {value} {best}"
                );
            }
        }
    }
}

#[test]
fn a_large_lambda_balances_as_well_as_the_greedy_rule() {
    for seed in 0..20 {
        let children = children(seed, 12);
        let mut order: Vec<usize> = (0..12).collect();
        order.sort_by_key(|&j| std::cmp::Reverse(children[j].popularity));
        let mut greedy = [0f64; 3];
        for j in order {
            let least = (0..3).min_by(|&a, &b| greedy[a].total_cmp(&greedy[b])).unwrap();
            greedy[least] += children[j].popularity as f64;
        }
        let options = RebalanceOptions { lambda: 1e6, restarts: 30, ..RebalanceOptions::default() };
        let found = assign(&children, 3, &options, &mut Seed::new(seed).stream("s"));
        let mut loads = [0f64; 3];
        found.iter().zip(&children).for_each(|(&m, c)| loads[m] += c.popularity as f64);
        assert!(balance(&loads) <= balance(&greedy) * 1.2 + 8.0, "{loads:?} {greedy:?}");
    }
}

#[test]
fn targets_are_the_heaviest_tokens() {
    let rows: Vec<Vec<u32>> = (0..20).map(|i| vec![i % 10, i]).collect();
    let table = SidTable::new(&rows).unwrap();
    let mut counts = vec![1u64; 20];
    counts[3] = 40;
    counts[5] = 9;
    let options = RebalanceOptions { ratio: 0.2, levels: vec![0], ..RebalanceOptions::default() };
    // total 67, mean 6.7: token 3 has 41 (ratio 6.1, capped), token 5 has 10 (1.5 → 2)
    assert_eq!(targets(&table, 0, &counts, &options), [(3, 3), (5, 2)]);
}

fn random_table(seed: u64, items: usize) -> (SidTable, Vec<u64>, Array2<f32>) {
    let mut stream = Seed::new(seed).stream("table");
    let rows: Vec<Vec<u32>> = (0..items)
        .map(|_| vec![stream.below(5) as u32, stream.below(4) as u32, stream.below(9) as u32])
        .collect();
    let counts: Vec<u64> = (0..items).map(|_| (stream.uniform().powi(4) * 50.0) as u64).collect();
    let points = Array2::from_shape_fn((items, 4), |_| stream.normal() as f32);
    (SidTable::new(&rows).unwrap().deduplicated(&counts), counts, points)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn a_split_refines_and_keeps_children_whole(
        seed in 0u64..1000, items in 30usize..150, ratio in 0.0f64..1.0, parent in any::<bool>(),
        random in any::<bool>(), vectors in any::<bool>(), raw in any::<bool>(),
    ) {
        let (table, counts, points) = random_table(seed, items);
        let options = RebalanceOptions {
            levels: vec![0, 1], ratio, condition_on_parent: parent, random, raw,
            ..RebalanceOptions::default()
        };
        let residuals = |_| vectors.then(|| points.clone());
        let new = rebalance(&table, &counts, residuals, &options, Seed::new(seed)).unwrap();
        // the old ID is a function of the new one
        for (old, row) in table.rows().zip(new.table.rows()) {
            for level in 0..table.levels() {
                prop_assert_eq!(new.parent_of[level][row[level] as usize], old[level]);
            }
        }
        prop_assert_eq!(new.table.unique(), table.unique());
        for (level, parents) in new.parent_of.iter().enumerate() {
            // dense numbers, none of them empty
            prop_assert_eq!(new.table.sizes()[level], parents.len());
            let used = new.table.used(level);
            let (old, fresh) = used.split_at(table.sizes()[level]);
            prop_assert!(fresh.iter().all(|used| *used));
            prop_assert_eq!(old, &table.used(level)[..]);
        }
        for split in &new.splits {
            // mass is conserved
            let before = table.token_popularity(split.level, &counts)[split.token as usize];
            prop_assert_eq!(split.popularity.iter().sum::<u64>(), before);
            prop_assert!((2..=3).contains(&split.parts.len()));
        }
        if !parent {
            for a in 0..items {
                for b in 0..items {
                    for level in 0..2 {
                        let same = |t: &SidTable, at: usize| t.row(a)[at] == t.row(b)[at];
                        if same(&table, level) && same(&table, level + 1) {
                            prop_assert!(same(&new.table, level), "a child was cut");
                        }
                    }
                }
            }
        }
        for level in 2..table.levels() {
            prop_assert!(table.rows().zip(new.table.rows()).all(|(o, n)| o[level] == n[level]));
        }
    }
}

#[test]
fn ratio_0_changes_nothing_and_the_last_level_is_refused() {
    let (table, counts, _) = random_table(1, 60);
    let none = RebalanceOptions { ratio: 0.0, ..RebalanceOptions::default() };
    let same = rebalance(&table, &counts, |_| None, &none, Seed::new(1)).unwrap();
    assert_eq!(same.table, table);
    let last = RebalanceOptions { levels: vec![table.levels() - 1], ..none };
    let error = rebalance(&table, &counts, |_| None, &last, Seed::new(1)).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let error = rebalance(&table, &[1], |_| None, &RebalanceOptions::default(), Seed::new(1));
    assert_eq!(error.unwrap_err().exit_code(), 3);
}

#[test]
fn siblings_that_agree_cost_nothing_and_the_gradient_is_right() {
    use candle_core::{Device, Tensor, Var};
    // parent 0 has children 0 and 1, parent 1 only child 2, parent 2 children 0 and 3
    let rows = [[0, 0], [0, 1], [1, 2], [2, 0], [2, 3]].map(|row| row.to_vec());
    let table = SidTable::new(&rows).unwrap();
    let codes = |values: [[f32; 2]; 4]| Var::new(&values, &Device::Cpu).unwrap();
    let upper = Tensor::zeros((3, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
    let loss = |weight, cosine, var: &Var| {
        let tables = [upper.clone(), var.as_tensor().clone()];
        Regularizer::new(&table, &[0], weight, cosine).unwrap().loss(&tables).unwrap()
    };
    let value = |t: Tensor| t.to_scalar::<f32>().unwrap();
    let same = codes([[1.0, 2.0], [1.0, 2.0], [9.0, 9.0], [1.0, 2.0]]);
    for cosine in [true, false] {
        assert!(value(loss(ParentWeight::Mean, cosine, &same)).abs() < 1e-6);
    }
    // (0, 0) and (2, 0): mean (1, 0), half of 1 + 1 = 1; the other family: 0 → mean 0.5 of both
    let apart = codes([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0], [0.0, 0.0]]);
    assert!((value(loss(ParentWeight::Mean, false, &apart)) - 0.5).abs() < 1e-6);
    assert!((value(loss(ParentWeight::Sum, false, &apart)) - 1.0).abs() < 1e-6);
    assert!((value(loss(ParentWeight::Pairwise, false, &apart)) - 4.0).abs() < 1e-6);
    let start = [[0.3, 0.7], [-0.5, 0.2], [0.1, 0.1], [0.8, -0.4]];
    let var = codes(start);
    let grads = loss(ParentWeight::Mean, true, &var).backward().unwrap();
    let gradient = grads.get(&var).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(gradient[2], [0.0, 0.0], "the only child of a parent has no gradient");
    for (row, gradients) in gradient.iter().enumerate() {
        for (column, &found) in gradients.iter().enumerate() {
            let shifted = |by: f32| {
                let mut values = start;
                values[row][column] += by;
                f64::from(value(loss(ParentWeight::Mean, true, &codes(values))))
            };
            let slope = (shifted(1e-2) - shifted(-1e-2)) / 2e-2;
            let found = f64::from(found);
            assert!((slope - found).abs() < 2e-3, "({row}, {column}): {slope} {found}");
        }
    }
}
