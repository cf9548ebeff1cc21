//! Metrics and baselines on hand-worked numbers.

use common::rng::Seed;
use common::testing::assert_close;
use cure::baselines::{IdRegression, Sharding, item_means, shards};
use cure::data::{Synthetic, synthetic};
use cure::eval::{Quality, jeffreys_half_fullvocab, jsd, kl, l2, membership_auc, spearman};
use proptest::prelude::*;

#[test]
fn divergences_by_hand() {
    assert_close(&[jsd(&[1.0], &[0.0])], &[2f64.ln()], 1e-12, 0.0);
    assert_eq!(jsd(&[0.3, 0.8], &[0.3, 0.8]), 0.0);
    // H(0.5) − H(0.25) with p = 0.25, q = 0.75
    let h = |p: f64| -p * p.ln() - (1.0 - p) * (1.0 - p).ln();
    assert_close(&[jsd(&[0.25], &[0.75])], &[h(0.5) - h(0.25)], 1e-12, 0.0);
    assert_close(&[kl(&[0.5], &[0.25])], &[0.5 * (2f64.ln() + (2.0f64 / 3.0).ln())], 1e-12, 0.0);
    assert_close(&[l2(&[0.5], &[0.25])], &[0.25 * 2f64.sqrt()], 1e-12, 0.0);
    let (p, q) = (vec![vec![0.5f32, 0.5]], vec![vec![0.25f32, 0.75]]);
    let expected = 0.5 * (0.25 * 2f64.ln() - 0.25 * (2.0f64 / 3.0).ln());
    assert_close(&[jeffreys_half_fullvocab(&p, &q)], &[expected], 1e-9, 0.0);
}

proptest! {
    #[test]
    fn jsd_is_symmetric_and_bounded(p in 0.0f64..=1.0, q in 0.0f64..=1.0) {
        let (there, back) = (jsd(&[p], &[q]), jsd(&[q], &[p]));
        prop_assert!((there - back).abs() < 1e-12);
        prop_assert!((0.0..=2f64.ln() + 1e-12).contains(&there));
    }
}

#[test]
fn quality_by_hand() {
    let quality = Quality::of(&[true, false, true, false], &[0.9, 0.8, 0.7, 0.1]);
    assert_close(&[quality.auc, quality.accuracy], &[0.75, 0.75], 1e-12, 0.0);
    let loss = -(0.9f64.ln() + 0.2f64.ln() + 0.7f64.ln() + 0.9f64.ln()) / 4.0;
    assert_close(&[quality.log_loss], &[loss], 1e-12, 0.0);
}

#[test]
fn the_attack_tells_memorised_records() {
    let sure = (&[true, false][..], &[0.99, 0.01][..]);
    let unsure = (&[true, false][..], &[0.6, 0.5][..]);
    assert_eq!(membership_auc(sure, unsure), 1.0);
    assert_eq!(membership_auc(unsure, unsure), 0.5);
}

#[test]
fn spearman_by_hand() {
    assert_close(&[spearman(&[1.0, 2.0, 3.0], &[1.0, 4.0, 9.0])], &[1.0], 1e-12, 0.0);
    assert_close(&[spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0])], &[-1.0], 1e-12, 0.0);
}

#[test]
fn the_id_regression_has_no_gradient_left() {
    let (data, _) = synthetic(Synthetic::default(), Seed::new(2));
    let mask: Vec<Vec<bool>> = data.histories.iter().map(|h| vec![true; h.len()]).collect();
    let model = IdRegression::fit(&data, &mask, 1.0);
    // the intercept is not penalised, so predictions and labels have one mean
    let mut gap = 0.0;
    for (user, events) in data.histories.iter().enumerate() {
        for event in events {
            let label = f64::from(u8::from(event.liked));
            gap += label - model.probability(user, event.item as usize);
        }
    }
    assert!(gap.abs() < 1e-3, "{gap}");
    let means = item_means(&data, &mask);
    assert!(means.iter().all(|mean| (0.0..=1.0).contains(mean)));
}

#[test]
fn shards_part_the_training_users() {
    let setting = crate::data::setting();
    for sharding in [Sharding::Random, Sharding::ByTaste] {
        let mut stream = Seed::new(1).stream("shards");
        let of = shards(&setting.data, &setting.split, sharding, 4, &mut stream);
        let users = setting.split.train_users();
        let sizes: Vec<usize> =
            (0..4).map(|s| of.iter().filter(|shard| **shard == Some(s)).count()).collect();
        assert_eq!(sizes.iter().sum::<usize>(), users.len());
        assert!(sizes.iter().all(|&size| size > 0));
        assert_eq!(of.iter().flatten().count(), users.len());
    }
}
