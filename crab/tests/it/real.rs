//! Real data: sizes of the specification, and the released semantic IDs.

use common::assets::Assets;
use common::rng::Seed;
use common::testing::asset_or_skip;
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
