//! Seeded train/test splits and shards. All return row indices in ascending order.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::rng::Stream;
use crate::{Error, Result};

/// Row indices of a split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Rows to learn from.
    pub train: Vec<usize>,
    /// Rows held out.
    pub test: Vec<usize>,
}

impl Split {
    fn from_test(n: usize, mut test: Vec<usize>) -> Self {
        test.sort_unstable();
        let mut held_out = vec![false; n];
        test.iter().for_each(|&row| held_out[row] = true);
        Self { train: (0..n).filter(|row| !held_out[*row]).collect(), test }
    }
}

fn check_share(share: f64) -> Result<()> {
    if (0.0..=1.0).contains(&share) {
        Ok(())
    } else {
        Err(Error::usage(format!("held-out share: found {share}, expected a number in [0, 1]")))
    }
}

/// How many of `n` rows a share holds out, rounded to the nearest.
fn count(n: usize, share: f64) -> usize {
    (n as f64 * share).round() as usize
}

/// Holds out `round(share · n)` of `n` rows at random.
///
/// # Errors
/// [`Error::Usage`] when `share` is outside of [0, 1].
pub fn holdout(n: usize, share: f64, stream: &mut Stream) -> Result<Split> {
    check_share(share)?;
    Ok(Split::from_test(n, stream.sample(n, count(n, share))))
}

/// Holds out `round(share · n_c)` rows of each class `c` at random, so a class with few rows may
/// have none held out.
///
/// # Errors
/// [`Error::Usage`] when `share` is outside of [0, 1].
pub fn stratified<L: Ord>(labels: &[L], share: f64, stream: &mut Stream) -> Result<Split> {
    check_share(share)?;
    let mut classes: BTreeMap<&L, Vec<usize>> = BTreeMap::new();
    for (row, label) in labels.iter().enumerate() {
        classes.entry(label).or_default().push(row);
    }
    let mut test = Vec::new();
    for rows in classes.values() {
        let picked = stream.sample(rows.len(), count(rows.len(), share));
        test.extend(picked.into_iter().map(|index| rows[index]));
    }
    Ok(Split::from_test(labels.len(), test))
}

/// Holds out the `round(share · n)` latest rows; among equal times the later row counts as later.
///
/// # Errors
/// [`Error::Usage`] when `share` is outside of [0, 1].
pub fn by_time(times: &[i64], share: f64) -> Result<Split> {
    check_share(share)?;
    let mut order: Vec<usize> = (0..times.len()).collect();
    order.sort_by_key(|&row| (times[row], row));
    let test = order.split_off(times.len() - count(times.len(), share));
    Ok(Split::from_test(times.len(), test))
}

/// The rows of a leave-one-out split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaveOneOut {
    /// All earlier rows, and all rows of users with fewer than three.
    pub train: Vec<usize>,
    /// The second to last row of each user with at least three rows.
    pub valid: Vec<usize>,
    /// The last row of each of those users.
    pub test: Vec<usize>,
}

/// Holds out each user's last row for testing and the one before for validation; among equal times
/// the later row counts as later.
///
/// # Panics
/// When `users` and `times` differ in length.
pub fn leave_one_out<U: Ord>(users: &[U], times: &[i64]) -> LeaveOneOut {
    assert_eq!(users.len(), times.len(), "users and times differ in length");
    let mut histories: BTreeMap<&U, Vec<usize>> = BTreeMap::new();
    for (row, user) in users.iter().enumerate() {
        histories.entry(user).or_default().push(row);
    }
    let (mut train, mut valid, mut test) = (Vec::new(), Vec::new(), Vec::new());
    for mut rows in histories.into_values() {
        rows.sort_by_key(|&row| (times[row], row));
        if rows.len() >= 3 {
            test.extend(rows.pop());
            valid.extend(rows.pop());
        }
        train.extend(rows);
    }
    for rows in [&mut train, &mut valid, &mut test] {
        rows.sort_unstable();
    }
    LeaveOneOut { train, valid, test }
}

/// The shard, in `0..shards`, that row `id` belongs to: the first 8 bytes of sha256(id), big-endian,
/// modulo `shards`. Stable across machines, versions and row orders.
///
/// # Panics
/// When `shards` is 0.
pub fn shard_of(id: &str, shards: usize) -> usize {
    let hash = Sha256::digest(id.as_bytes());
    let first = hash.iter().take(8).fold(0_u64, |value, byte| (value << 8) | u64::from(*byte));
    (first % shards as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Seed;

    fn whole(split: &Split) -> Vec<usize> {
        let mut rows = [split.train.clone(), split.test.clone()].concat();
        rows.sort_unstable();
        rows
    }

    #[test]
    fn a_holdout_is_a_seeded_partition() {
        let split = |seed| holdout(100, 0.2, &mut Seed::new(seed).stream("split")).unwrap();
        assert_eq!(split(1).test.len(), 20);
        assert_eq!(whole(&split(1)), (0..100).collect::<Vec<_>>());
        assert_eq!(split(1), split(1));
        assert_ne!(split(1), split(2));
        assert!(holdout(3, 1.5, &mut Seed::new(0).stream("split")).is_err());
        assert!(holdout(3, f64::NAN, &mut Seed::new(0).stream("split")).is_err());
    }

    #[test]
    fn strata_keep_their_shares() {
        let labels: Vec<_> = (0..100).map(|row| if row < 90 { "a" } else { "b" }).collect();
        let split = stratified(&labels, 0.2, &mut Seed::new(3).stream("split")).unwrap();
        let rare = split.test.iter().filter(|row| labels[**row] == "b").count();
        assert_eq!((split.test.len(), rare), (20, 2));
        assert_eq!(whole(&split), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn time_splits_hold_out_the_latest() {
        let split = by_time(&[5, 1, 5, 3, 2], 0.4).unwrap();
        assert_eq!(split.test, [0, 2]);
        // Equal times: the later row is held out.
        assert_eq!(by_time(&[7, 7, 7], 0.34).unwrap().test, [2]);
    }

    #[test]
    fn leave_one_out_by_hand() {
        let users = ["u", "v", "u", "u", "v", "u"];
        let split = leave_one_out(&users, &[4, 1, 2, 3, 2, 4]);
        assert_eq!(split, LeaveOneOut { train: vec![1, 2, 3, 4], valid: vec![0], test: vec![5] });
    }

    #[test]
    fn shards_are_stable_and_even() {
        // int.from_bytes(hashlib.sha256(b"abc").digest()[:8], "big") % 7 in Python
        assert_eq!(shard_of("abc", 7), 2);
        let mut sizes = [0; 4];
        (0..4000).for_each(|id| sizes[shard_of(&format!("item-{id}"), 4)] += 1);
        assert!(sizes.iter().all(|size| (900..1100).contains(size)), "{sizes:?}");
    }
}
