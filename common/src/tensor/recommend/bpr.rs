//! Matrix factorisation with the BPR loss.

use std::collections::BTreeSet;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::training::{EarlyStop, mean_ndcg, once};
use super::{EpochRecord, HeldOut, TrainingHistory, check_items};
use crate::checkpoint::Trained;
use crate::rng::Seed;
use crate::run::check_interrupt;
use crate::{Error, Result};

/// | option | default | purpose | range |
/// |---|---|---|---|
/// | `width` | 64 | length of a factor vector | ≥ 1 |
/// | `learning_rate` | 0.05 | step of stochastic gradient descent | > 0 |
/// | `regularisation` | 0.01 | decay of the touched vectors per step | ≥ 0 |
/// | `epochs` | 60 | most passes over all events | ≥ 1 |
/// | `evaluate_every` | 5 | epochs between validations | ≥ 1 |
/// | `patience` | 3 | validations without a better NDCG@10 before it stops; 0 = never | |
/// | `mask_history` | true | whether seen items are left out of the validation ranking | |
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BprOptions {
    /// See the table.
    pub width: usize,
    /// See the table.
    pub learning_rate: f64,
    /// See the table.
    pub regularisation: f64,
    /// See the table.
    pub epochs: usize,
    /// See the table.
    pub evaluate_every: usize,
    /// See the table.
    pub patience: usize,
    /// See the table.
    pub mask_history: bool,
}

impl Default for BprOptions {
    fn default() -> Self {
        Self {
            width: 64,
            learning_rate: 0.05,
            regularisation: 0.01,
            epochs: 60,
            evaluate_every: 5,
            patience: 3,
            mask_history: true,
        }
    }
}

/// User and item vectors with an item bias, trained so that seen items score above unseen ones
/// ([Rendle et al. 2009](https://arxiv.org/abs/1205.2618)): `-ln σ(s_ui - s_uj)`, with
/// `s_ui = p_u · q_i + b_i` and `j` drawn uniformly from the items that `u` has not seen.
#[derive(Debug, Clone)]
pub struct Bpr {
    users: Vec<f32>,
    items: Vec<f32>,
    biases: Vec<f32>,
    width: usize,
    history: TrainingHistory,
}

impl Bpr {
    /// Trains on `sequences`; user `u` is sequence `u`. With `valid`, keeps the best epoch.
    ///
    /// # Errors
    /// An item number that is not below `items`; [`crate::Error::Interrupted`] after a signal.
    pub fn fit(
        sequences: &[Vec<u32>],
        items: usize,
        valid: &[HeldOut],
        options: BprOptions,
        seed: Seed,
    ) -> Result<Self> {
        check_items(sequences.iter().map(Vec::as_slice), items)?;
        let seen: Vec<BTreeSet<u32>> =
            sequences.iter().map(|sequence| sequence.iter().copied().collect()).collect();
        let mut events: Vec<(u32, u32)> = sequences
            .iter()
            .enumerate()
            .filter(|(user, _)| seen[*user].len() < items)
            .flat_map(|(user, sequence)| sequence.iter().map(move |&item| (user as u32, item)))
            .collect();
        let mut init = seed.stream("bpr/init");
        let mut draw = |n: usize| -> Vec<f32> {
            (0..n * options.width).map(|_| (init.normal() * 0.1) as f32).collect()
        };
        let mut model = Self {
            users: draw(sequences.len()),
            items: draw(items),
            biases: vec![0.0; items],
            width: options.width,
            history: TrainingHistory::default(),
        };
        let mut best = EarlyStop::new(options.patience);
        let mut kept = None;
        for epoch in 0..options.epochs {
            check_interrupt()?;
            let mut stream = seed.stream(&format!("bpr/epoch-{epoch}"));
            stream.shuffle(&mut events);
            let mut loss = 0.0;
            for &(user, item) in &events {
                let other = loop {
                    let other = stream.below(items) as u32;
                    if !seen[user as usize].contains(&other) {
                        break other;
                    }
                };
                loss += model.step([user, item, other], &options);
            }
            let due =
                (epoch + 1) % options.evaluate_every.max(1) == 0 || epoch + 1 == options.epochs;
            let validation = (due && !valid.is_empty())
                .then(|| mean_ndcg(valid, options.mask_history, |held| model.scores(held.user)));
            let loss = loss / events.len().max(1) as f64;
            model.history.epochs.push(EpochRecord { loss, validation });
            if best.improved(epoch, validation) {
                kept = validation
                    .map(|_| (model.users.clone(), model.items.clone(), model.biases.clone()));
            }
            if best.stop() {
                break;
            }
        }
        model.history.best = best.epoch();
        if let Some(kept) = kept {
            (model.users, model.items, model.biases) = kept;
        }
        Ok(model)
    }

    /// [`Bpr::fit`], or what it gave before for the same data, options and seed.
    ///
    /// # Errors
    /// As [`Bpr::fit`] and [`Trained::get_or_train`].
    pub fn fit_once(
        kept: &Trained,
        sequences: &[Vec<u32>],
        items: usize,
        valid: &[HeldOut],
        options: BprOptions,
        seed: Seed,
    ) -> Result<Self> {
        let data = (sequences, items, valid);
        let (tensors, history) = once(kept, "bpr", options, data, seed, || {
            let model = Self::fit(sequences, items, valid, options, seed)?;
            let rows = |values: Vec<f32>| {
                let shape = (values.len() / options.width.max(1), options.width);
                Tensor::from_vec(values, shape, &Device::Cpu)
            };
            let tensors = [
                ("users", rows(model.users)?),
                ("items", rows(model.items)?),
                ("biases", Tensor::new(model.biases, &Device::Cpu)?),
            ];
            Ok((tensors.map(|(name, tensor)| (name.to_owned(), tensor)).into(), model.history))
        })?;
        let values = |name: &str| -> Result<Vec<f32>> {
            let absent = || Error::Bug(format!("a kept BPR without {name}"));
            Ok(tensors.get(name).ok_or_else(absent)?.flatten_all()?.to_vec1()?)
        };
        let (users, items, biases) = (values("users")?, values("items")?, values("biases")?);
        Ok(Self { users, items, biases, width: options.width, history })
    }

    /// One step of gradient descent on user, seen and unseen item; the loss before it.
    fn step(&mut self, [user, item, other]: [u32; 3], options: &BprOptions) -> f64 {
        let (rate, decay) = (options.learning_rate as f32, options.regularisation as f32);
        let (u, i, j) = (user as usize, item as usize, other as usize);
        let width = self.width;
        let mut margin = self.biases[i] - self.biases[j];
        for at in 0..width {
            margin += self.users[u * width + at]
                * (self.items[i * width + at] - self.items[j * width + at]);
        }
        let slope = 1.0 / (1.0 + margin.exp());
        for at in 0..width {
            let p = self.users[u * width + at];
            let (q, r) = (self.items[i * width + at], self.items[j * width + at]);
            self.users[u * width + at] += rate * (slope * (q - r) - decay * p);
            self.items[i * width + at] += rate * (slope * p - decay * q);
            self.items[j * width + at] += rate * (-slope * p - decay * r);
        }
        self.biases[i] += rate * (slope - decay * self.biases[i]);
        self.biases[j] += rate * (-slope - decay * self.biases[j]);
        // ln(1 + e^-m) without overflow
        f64::from((-margin).max(0.0) + (-margin.abs()).exp().ln_1p())
    }

    /// One score per item for the user of training sequence `user`; a user who was not trained on
    /// gets the biases.
    pub fn scores(&self, user: usize) -> Vec<f32> {
        let vector = self.users.get(user * self.width..(user + 1) * self.width).unwrap_or(&[]);
        let rows = self.items.chunks_exact(self.width.max(1)).zip(&self.biases);
        rows.map(|(row, bias)| bias + dot(row, vector)).collect()
    }

    /// Loss and validation of each epoch.
    pub fn history(&self) -> &TrainingHistory {
        &self.history
    }
}

/// Over eight sums, which the compiler keeps in one register; 0 for an empty slice.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let (left, right) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = left.remainder().iter().zip(right.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in left.zip(right) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_step_follows_the_gradient() {
        let model = Bpr {
            users: vec![0.3, -0.2],
            items: vec![0.5, 0.1, -0.4, 0.7],
            biases: vec![0.1, -0.3],
            width: 2,
            history: TrainingHistory::default(),
        };
        let options =
            BprOptions { learning_rate: 1.0, regularisation: 0.0, ..BprOptions::default() };
        let values = |m: &Bpr| [&m.users[..], &m.items[..], &m.biases[..]].concat();
        let mut stepped = model.clone();
        stepped.step([0, 0, 1], &options);
        let still = BprOptions { learning_rate: 0.0, ..options };
        for at in 0..8 {
            let loss = |shift: f32| {
                let mut moved = model.clone();
                let all = moved.users.iter_mut().chain(&mut moved.items).chain(&mut moved.biases);
                *all.into_iter().nth(at).unwrap() += shift;
                moved.step([0, 0, 1], &still)
            };
            let slope = (loss(1e-2) - loss(-1e-2)) / 2e-2;
            let taken = f64::from(values(&model)[at] - values(&stepped)[at]);
            assert!((slope - taken).abs() < 1e-4, "value {at}: {slope} is not {taken}");
        }
    }
}
