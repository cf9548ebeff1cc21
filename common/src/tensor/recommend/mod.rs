//! Recommenders that papers compare with: from training sequences of item ids to one score per item.
//!
//! They stand here and not in a paper because several papers (crab, tmf) hold their methods against
//! the same baselines: a baseline must be the same model, equally well trained, in each.
//!
//! | model | learns from | scores by |
//! |---|---|---|
//! | [`Popularity`] | how often each item occurs | that count |
//! | [`Markov`] | which item follows which | the last item of a history |
//! | [`ItemKnn`] | which items share sequences | the latest items of a history |
//! | [`Bpr`] | pairs of seen and unseen items | the user (= the training sequence) |
//! | [`Sasrec`] | the next item at every position | a history, by self-attention |
//! | [`Gru4rec`] | the next item at every position | a history, by a recurrent network |
//!
//! Items are numbered `0..items`. A sequence is one user's items, oldest first. All results depend on
//! sequences, options and [`crate::rng::Seed`] only, not on the number of threads.

mod bpr;
mod counting;
mod gru4rec;
mod sasrec;
mod training;

pub use bpr::{Bpr, BprOptions};
pub use counting::{ItemKnn, ItemKnnOptions, Markov, Popularity};
pub use gru4rec::{Gru4rec, Gru4recOptions};
pub use sasrec::{Sasrec, SasrecOptions};
pub use training::{EpochRecord, HeldOut, TrainOptions, TrainingHistory, Window, validation_ndcg};

use crate::{Error, Result};

/// Refuses item ids outside of `0..items`.
fn check_items<'a>(sequences: impl IntoIterator<Item = &'a [u32]>, items: usize) -> Result<()> {
    for (row, sequence) in sequences.into_iter().enumerate() {
        if let Some((at, id)) = sequence.iter().enumerate().find(|(_, id)| **id as usize >= items) {
            return Err(Error::data(
                format!("item {id} at position {at} of sequence {row}"),
                format!("item numbers below {items}"),
            ));
        }
    }
    Ok(())
}
