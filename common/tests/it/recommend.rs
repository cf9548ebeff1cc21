//! The shared baselines on a toy world whose next item is known.

use common::checkpoint::Trained;
use common::recommend::{
    Bpr, BprOptions, Gru4rec, Gru4recOptions, HeldOut, Markov, Sasrec, SasrecOptions, TrainOptions,
    validation_ndcg,
};
use common::rng::Seed;
use common::testing::gradients::assert_all_grads;

const ITEMS: usize = 20;

/// The next item depends on the last two: a + b (mod 20) with 5 % of noise. The last item alone
/// tells nothing.
fn toy(seed: u64, users: usize, length: usize) -> Vec<Vec<u32>> {
    let mut stream = Seed::new(seed).stream("toy");
    (0..users)
        .map(|_| {
            let mut items: Vec<u32> = (0..2).map(|_| stream.below(ITEMS) as u32).collect();
            while items.len() < length {
                let sum = items[items.len() - 1] + items[items.len() - 2];
                let noise = stream.chance(0.05);
                items.push(if noise { stream.below(ITEMS) as u32 } else { sum % ITEMS as u32 });
            }
            items
        })
        .collect()
}

fn held(sequences: &mut [Vec<u32>]) -> Vec<HeldOut> {
    let mut all = Vec::new();
    for (user, items) in sequences.iter_mut().enumerate() {
        let target = items.pop().unwrap();
        all.push(HeldOut { user, history: items.clone(), target });
    }
    all
}

fn training(epochs: usize) -> TrainOptions {
    TrainOptions {
        epochs,
        batch: 32,
        max_length: 12,
        learning_rate: 1e-2,
        mask_history: false,
        ..TrainOptions::default()
    }
}

fn sasrec(epochs: usize) -> SasrecOptions {
    let training = training(epochs);
    SasrecOptions { width: 32, layers: 2, heads: 2, inner: 64, dropout: 0.1, training }
}

fn gru(epochs: usize) -> Gru4recOptions {
    Gru4recOptions { width: 32, hidden: 48, dropout: 0.1, training: training(epochs) }
}

#[test]
fn every_parameter_of_the_neural_models_gets_a_gradient() {
    let batch: [(&[u32], &[u32]); 2] = [
        (&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], &[2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]),
        (&[4], &[9]),
    ];
    let stream = || Some(Seed::new(3).stream("dropout"));
    let model = Sasrec::new(ITEMS, sasrec(1), Seed::new(1)).unwrap();
    assert_all_grads(&model.loss(&batch, stream()).unwrap(), model.parameters());
    let model = Gru4rec::new(ITEMS, gru(1), Seed::new(1)).unwrap();
    assert_all_grads(&model.loss(&batch, stream()).unwrap(), model.parameters());
}

#[test]
fn padding_and_truncation_change_no_score() {
    let model = Sasrec::new(ITEMS, sasrec(1), Seed::new(1)).unwrap();
    let gru = Gru4rec::new(ITEMS, gru(1), Seed::new(1)).unwrap();
    let long: Vec<u32> = (0..17).collect();
    let short = [3, 4];
    let together = model.scores(&[&long, &short, &[]]).unwrap();
    common::testing::assert_close(&together[1], &model.scores(&[&short]).unwrap()[0], 1e-6, 1e-6);
    common::testing::assert_close(
        &together[0],
        &model.scores(&[&long[5..]]).unwrap()[0],
        1e-6,
        1e-6,
    );
    assert!(together[2].iter().all(|score| *score == 0.0));
    let together = gru.scores(&[&long, &short]).unwrap();
    common::testing::assert_close(&together[1], &gru.scores(&[&short]).unwrap()[0], 1e-6, 1e-6);
    assert!(model.scores(&[&[20]]).unwrap_err().to_string().contains("item 20"));
}

#[test]
fn neural_models_learn_what_a_markov_chain_cannot() {
    let mut sequences = toy(1, 300, 14);
    let valid = held(&mut sequences);
    let markov = Markov::fit(&sequences, ITEMS).unwrap();
    let markov_scores =
        |histories: &[&[u32]]| Ok(histories.iter().map(|history| markov.scores(history)).collect());
    let baseline = validation_ndcg(&valid, false, markov_scores).unwrap();
    let model = Sasrec::fit(&sequences, ITEMS, &valid, sasrec(40), Seed::new(1)).unwrap();
    let best = |history: &common::recommend::TrainingHistory| {
        history.epochs[history.best].validation.unwrap()
    };
    let attention = best(model.history());
    let gru = Gru4rec::fit(&sequences, ITEMS, &valid, gru(40), Seed::new(1)).unwrap();
    let recurrent = best(gru.history());
    assert!(baseline < 0.35, "markov {baseline}");
    assert!(attention > 0.6, "sasrec {attention}, markov {baseline}");
    assert!(recurrent > 0.6, "gru4rec {recurrent}, markov {baseline}");
    // the kept parameters are the best epoch's
    let again = validation_ndcg(&valid, false, |histories| model.scores(histories)).unwrap();
    assert!((again - attention).abs() < 1e-6, "{again} is not {attention}");
}

#[test]
fn a_window_may_hold_more_items_than_it_predicts() {
    let model = Sasrec::new(ITEMS, sasrec(1), Seed::new(1)).unwrap();
    let history: &[u32] = &[3, 1, 4];
    let target: &[u32] = &[5];
    let loss = model.loss(&[(history, target)], None).unwrap().to_scalar::<f32>().unwrap();
    let scores = &model.scores(&[history]).unwrap()[0];
    let sum: f32 = scores.iter().map(|score| score.exp()).sum();
    assert!((loss - (sum.ln() - scores[5])).abs() < 1e-5, "{loss}");
    let error = model.loss(&[(target, history)], None).unwrap_err().to_string();
    assert!(error.contains("a window of 1 items and 3 next items"), "{error}");
}

#[test]
fn averaged_and_overlapping_trainings_learn_and_refuse_bad_settings() {
    let mut sequences = toy(1, 300, 14);
    let valid = held(&mut sequences);
    let fit = |average: f64, context: usize| {
        let mut options = sasrec(20);
        (options.training.average, options.training.context) = (average, context);
        Sasrec::fit(&sequences, ITEMS, &valid, options, Seed::new(1))
    };
    for (average, context) in [(0.9, 0), (0.0, 6)] {
        let model = fit(average, context).unwrap();
        let history = model.history();
        let best = history.epochs[history.best].validation.unwrap();
        assert!(best > 0.6, "{average} {context}: {best}");
        let kept = validation_ndcg(&valid, false, |histories| model.scores(histories)).unwrap();
        assert!((kept - best).abs() < 1e-6, "{average} {context}: {kept} is not {best}");
    }
    for (average, context, named) in [(1.0, 0, "decay of 1"), (-0.5, 0, "-0.5"), (0.0, 12, "12")] {
        let error = fit(average, context).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn threads_change_nothing_and_saved_tensors_score_alike() {
    let sequences = toy(2, 40, 10);
    let fit = |threads| {
        let mut options = sasrec(2);
        options.training.threads = threads;
        Sasrec::fit(&sequences, ITEMS, &[], options, Seed::new(5)).unwrap()
    };
    let (one, two) = (fit(1), fit(2));
    let history: &[u32] = &[1, 5, 6];
    let scores = one.scores(&[history]).unwrap();
    assert_eq!(scores, two.scores(&[history]).unwrap());
    let loaded = Sasrec::from_tensors(ITEMS, sasrec(2), one.parameters().tensors()).unwrap();
    assert_eq!(scores, loaded.scores(&[history]).unwrap());
    let other = Sasrec::fit(&sequences, ITEMS, &[], sasrec(2), Seed::new(6)).unwrap();
    assert_ne!(scores, other.scores(&[history]).unwrap());
}

#[test]
fn bpr_learns_tastes() {
    // two tastes: even users take even items
    let mut stream = Seed::new(9).stream("tastes");
    let mut sequences: Vec<Vec<u32>> = (0..60u32)
        .map(|user| {
            let mut mine: Vec<u32> = (0..20).filter(|item| item % 2 == user % 2).collect();
            stream.shuffle(&mut mine);
            mine.truncate(7);
            mine
        })
        .collect();
    let valid = held(&mut sequences);
    let options = BprOptions { width: 8, ..BprOptions::default() };
    let model = Bpr::fit(&sequences, ITEMS, &valid, options, Seed::new(1)).unwrap();
    for user in 0..60 {
        let scores = model.scores(user);
        let mean = |parity: usize| (0..10).map(|at| scores[2 * at + parity]).sum::<f32>();
        assert!(mean(user % 2) > mean(1 - user % 2), "user {user}: {scores:?}");
    }
    let again = Bpr::fit(&sequences, ITEMS, &valid, options, Seed::new(1)).unwrap();
    assert_eq!(model.scores(3), again.scores(3));
}

#[test]
fn nothing_to_learn_from_is_an_error() {
    let error = Sasrec::fit(&[vec![1], vec![]], ITEMS, &[], sasrec(1), Seed::new(1)).unwrap_err();
    assert!(error.to_string().contains("2 sequences without two items"), "{error}");
    let bad = SasrecOptions { heads: 3, ..sasrec(1) };
    assert!(Sasrec::new(ITEMS, bad, Seed::new(1)).unwrap_err().to_string().contains("divide"));
}

#[test]
fn a_training_is_kept_whatever_the_threads() {
    let mut sequences = toy(2, 40, 8);
    let valid = held(&mut sequences);
    let folder = tempfile::tempdir().unwrap();
    let kept = Trained::new(folder.path());
    let count = || std::fs::read_dir(folder.path()).unwrap().count();
    let histories: Vec<&[u32]> = valid.iter().map(|held| &held.history[..]).collect();
    let seed = Seed::new(3);

    let of = |threads: usize, seed: Seed| {
        let options = sasrec(2);
        let training = TrainOptions { threads, ..options.training };
        let options = SasrecOptions { training, ..options };
        Sasrec::fit_once(&kept, &sequences, ITEMS, &valid, options, seed).unwrap()
    };
    let plain = Sasrec::fit(&sequences, ITEMS, &valid, sasrec(2), seed).unwrap();
    for threads in [1, 2] {
        let model = of(threads, seed);
        assert_eq!(model.scores(&histories).unwrap(), plain.scores(&histories).unwrap());
        assert_eq!(model.history(), plain.history());
        assert_eq!(count(), 1);
    }
    of(1, Seed::new(4));
    assert_eq!(count(), 2);

    let fit_gru = || Gru4rec::fit_once(&kept, &sequences, ITEMS, &valid, gru(2), seed).unwrap();
    let scores = fit_gru().scores(&histories).unwrap();
    assert_eq!(fit_gru().scores(&histories).unwrap(), scores);
    assert_eq!(count(), 3);

    let options = BprOptions { epochs: 2, ..BprOptions::default() };
    let plain = Bpr::fit(&sequences, ITEMS, &valid, options, seed).unwrap();
    for _ in 0..2 {
        let model = Bpr::fit_once(&kept, &sequences, ITEMS, &valid, options, seed).unwrap();
        assert_eq!(model.scores(5), plain.scores(5));
        assert_eq!(count(), 4);
    }
}
