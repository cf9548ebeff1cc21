//! Metrics: pure functions with their formula and edge cases, one definition for all papers.
//!
//! Conventions: parallel slices must have equal lengths (anything else is a bug of the caller and
//! panics); a value that is not defined (no item, no positive) is NaN, never a stand-in;
//! logarithms are natural unless the formula says otherwise. Equal to scikit-learn's to 1e-9
//! where it has the metric.

pub mod calibration;
mod classification;
mod distribution;
mod probability;
mod ranking;

pub use classification::{Counts, accuracy, class_counts, macro_f1, micro_f1};
pub use distribution::{coverage, entropy, gini, jsd, kl, spearman};
pub use probability::{
    ECE_BINS, ReliabilityBin, auc, average_precision, brier, brier_multiclass, ece, log_loss,
    log_loss_multiclass, reliability_bins,
};
pub use ranking::{hit_rate_at, mrr, ndcg_at, ndcg_at_in_order, rank_of, recall_at};
