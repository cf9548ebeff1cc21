//! Real data: sizes of the specification, and the released semantic IDs.

use common::assets::Assets;
use common::rng::Seed;
use common::testing::asset_or_skip;
use crab::bench::released::{LAMBDAS, rows};
use crab::data;
use crab::model::rebalance::{RebalanceOptions, rebalance};
use crab::sid::{SidTable, audit};

#[test]
fn industrial_is_the_papers_test_set() {
    let Some(path) = asset_or_skip("minionerec-industrial", "test.csv") else { return };
    let data = data::industrial(&Assets::from_env()).unwrap();
    assert_eq!((data.items(), data.valid.len(), data.test.len()), (3686, 4532, 4533));
    let events: usize = data.train.iter().map(Vec::len).sum();
    let pairs: usize = data.train.iter().map(|s| s.len().saturating_sub(1)).sum();
    let seen = data.counts().iter().filter(|count| **count > 0).count();
    assert_eq!((data.train.len(), events, pairs, seen), (3285, 13_678, 10_393, 3245));
    // the released code book
    let (ids, table) = SidTable::read_index(&path.with_file_name("index.json")).unwrap();
    assert_eq!(ids, data.ids);
    let counts = data.counts();
    let before = audit(&table, &counts);
    assert_eq!((before.unique, before.largest_collision), (3670, 3));
    let used: Vec<usize> = before.levels.iter().map(|level| level.used).collect();
    assert_eq!(used, [48, 256, 256]);
    for (level, gini) in before.levels.iter().zip([0.358, 0.322, 0.329]) {
        assert!((level.gini - gini).abs() < 0.002, "{level:?}, expected {gini}");
    }
    let options = RebalanceOptions::default();
    let new = rebalance(&table, &counts, |_| None, &options, Seed::new(1)).unwrap();
    let after = audit(&new.table, &counts);
    assert_eq!(after.unique, 3670);
    assert_eq!(new.splits.len(), 26);
    assert!(after.levels[1].gini < 0.8 * before.levels[1].gini, "{:?}", after.levels[1]);
    assert!(after.levels[1].largest < before.levels[1].largest);
}

#[test]
fn movielens_is_recboles_split() {
    if asset_or_skip("ml-100k", "ml-100k.inter").is_none() {
        return;
    }
    let data = data::movielens(&Assets::from_env()).unwrap();
    assert_eq!((data.items(), data.train.len(), data.test.len()), (1682, 943, 943));
    assert_eq!(data.counts().iter().sum::<u64>(), 100_000 - 2 * 943);
    // counts know nothing of held-out events
    let mut poisoned = data.clone();
    poisoned.test.iter_mut().for_each(|case| case.target = 0);
    assert_eq!(poisoned.counts(), data.counts());
}

#[test]
fn more_weight_on_balance_balances_the_released_table_more() {
    if asset_or_skip("minionerec-industrial", "index.json").is_none() {
        return;
    }
    let data = data::industrial(&Assets::from_env()).unwrap();
    let table = data.released.clone().unwrap();
    let found = rows(&data, &table).unwrap();
    let value = |method: &str, metric: &str| {
        let row = found.iter().find(|row| row.method == method && row.metric == metric);
        row.unwrap_or_else(|| panic!("no row {method} / {metric}")).mean.unwrap()
    };
    let split = |lambda: f64| format!("split, lambda {lambda}");
    let mut last = [value("before", "gini of token load"), value("before", "largest token load")];
    assert!((last[0] - 0.322).abs() < 0.002 && last[1] == 507.0, "{last:?}");
    for lambda in LAMBDAS {
        let now = ["gini of token load", "largest token load"].map(|m| value(&split(lambda), m));
        println!(
            "lambda {lambda}: {now:?}, left {}",
            value(&split(lambda), "variance left inside tokens")
        );
        // the objective trades both terms, so a larger weight may lose a little by chance
        assert!(now[0] <= last[0] * 1.01 && now[1] <= last[1] * 1.01, "{lambda}: {now:?} {last:?}");
        last = now;
    }
    let left = |lambda| value(&split(lambda), "variance left inside tokens");
    assert!(left(0.0) < left(5.0) && left(5.0) < 1.0, "{} {}", left(0.0), left(5.0));
}
