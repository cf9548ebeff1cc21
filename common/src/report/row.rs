//! One line of a result table.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Part that a method plays in a comparison.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The paper's method.
    #[default]
    Paper,
    /// An improvement of ours on it.
    Ours,
    /// A method to beat.
    Baseline,
    /// The paper's or our method with one part changed.
    Ablation,
    /// A method that must not win, or must lose by a known amount; it exposes a placebo.
    Control,
}

impl Role {
    /// Lower-case name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Paper => "paper",
            Self::Ours => "ours",
            Self::Baseline => "baseline",
            Self::Ablation => "ablation",
            Self::Control => "control",
        }
    }
}

/// One measured number, or the statement that it was not measured and why.
///
/// ```
/// use common::report::{Role, Row};
/// let row = Row {
///     paper: "llm-ensemble".into(),
///     dataset: "rte".into(),
///     method: "majority vote".into(),
///     role: Role::Baseline,
///     metric: "accuracy".into(),
///     mean: Some(0.8975),
///     n: 800,
///     ..Row::default()
/// };
/// assert!(row.higher_is_better);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Row {
    /// Crate name of the paper.
    pub paper: String,
    /// The claim of the paper that this row speaks to, in a few words.
    pub claim: String,
    /// Data set, with the split where there are several.
    pub dataset: String,
    /// Method.
    pub method: String,
    /// Part in the comparison.
    pub role: Role,
    /// Metric with its cut-off, for example `ndcg@10`; its unit is that of `common::metrics`.
    pub metric: String,
    /// False for losses and errors. Default true.
    pub higher_is_better: bool,
    /// Mean over seeds; `None` = not run, and `note` says why and what to do.
    pub mean: Option<f64>,
    /// Sample standard deviation over seeds; `None` with one seed.
    pub sd: Option<f64>,
    /// 95 % interval of the mean, lower then upper end.
    pub ci95: Option<[f64; 2]>,
    /// Number of seeds. Default 1.
    pub seeds: usize,
    /// Number of evaluated items (rows, users, queries) per seed.
    pub n: usize,
    /// The paper's number in the same unit.
    pub paper_value: Option<f64>,
    /// Whether `mean` may be held against `paper_value`; false for synthetic or shrunken data.
    pub comparable: bool,
    /// Why it is not comparable or was not run, or what to know about it.
    pub note: Option<String>,
    /// Wall time of all seeds.
    pub seconds: Option<f64>,
    /// Peak resident memory of the process, MiB.
    pub peak_rss_mb: Option<f64>,
}

impl Default for Row {
    fn default() -> Self {
        Self {
            paper: String::new(),
            claim: String::new(),
            dataset: String::new(),
            method: String::new(),
            role: Role::Paper,
            metric: String::new(),
            higher_is_better: true,
            mean: None,
            sd: None,
            ci95: None,
            seeds: 1,
            n: 0,
            paper_value: None,
            comparable: false,
            note: None,
            seconds: None,
            peak_rss_mb: None,
        }
    }
}

impl Row {
    /// The row without its number: `why` says what is missing and which command gets it.
    pub fn not_run(self, why: &str) -> Self {
        Self {
            mean: None,
            sd: None,
            ci95: None,
            seconds: None,
            peak_rss_mb: None,
            note: Some(why.to_owned()),
            ..self
        }
    }

    /// The row with mean, sd and t interval of one value per seed. One value sets only the mean,
    /// none leaves the row as it is.
    pub fn over_seeds(self, values: &[f64]) -> Self {
        let seeds = values.len();
        match values {
            [] => self,
            [only] => Self { mean: Some(*only), seeds, ..self },
            _ => {
                let (mean, sd) = crate::stats::mean_sd(values);
                let ci95 = Some(crate::stats::t_interval(values, 0.95));
                Self { mean: Some(mean), sd: Some(sd), ci95, seeds, ..self }
            }
        }
    }

    /// Whether `self` has a better mean than `other`; false when either was not run.
    pub fn beats(&self, other: &Self) -> bool {
        match (self.mean, other.mean) {
            (Some(ours), Some(theirs)) if self.higher_is_better => ours > theirs,
            (Some(ours), Some(theirs)) => ours < theirs,
            _ => false,
        }
    }

    /// The row without times and memory.
    pub fn without_timings(&self) -> Self {
        Self { seconds: None, peak_rss_mb: None, ..self.clone() }
    }

    /// Every number finite, and a note on each row that needs one.
    pub(super) fn check(&self) -> Result<()> {
        let place = format!("row {} / {} / {}", self.dataset, self.method, self.metric);
        let numbers = [self.mean, self.sd, self.paper_value, self.seconds, self.peak_rss_mb];
        let ends = self.ci95.iter().flatten();
        if !numbers.iter().flatten().chain(ends).all(|number| number.is_finite()) {
            return Err(Error::Bug(format!("{place}: a number is not finite")));
        }
        let silent = self.note.as_deref().is_none_or(str::is_empty);
        if silent && self.mean.is_none() {
            return Err(Error::Bug(format!("{place}: not run, and no note says why")));
        }
        if silent && self.paper_value.is_some() && !self.comparable {
            return Err(Error::Bug(format!("{place}: not comparable, and no note says why")));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rows_read_what_they_write_and_refuse_other_keys() {
        let row = Row { mean: Some(0.25), ci95: Some([0.2, 0.3]), ..Row::default() };
        let json = serde_json::to_string(&row).unwrap();
        assert_eq!(serde_json::from_str::<Row>(&json).unwrap(), row);
        assert!(serde_json::from_str::<Row>("{\"maen\": 1}").is_err());
    }

    #[test]
    fn a_row_must_say_why_it_was_not_run() {
        let row = Row::default();
        assert!(row.check().is_err());
        assert!(row.clone().not_run("no asset").check().is_ok());
        assert!(Row { mean: Some(f64::NAN), ..row }.check().is_err());
    }

    #[test]
    fn over_seeds_matches_the_textbook() {
        let row = Row::default().over_seeds(&[1.0, 2.0, 3.0]);
        assert_eq!((row.mean, row.sd, row.seeds), (Some(2.0), Some(1.0), 3));
        // t(0.975, 2) = 4.302652729911275; half width = t / sqrt(3).
        let [low, high] = row.ci95.unwrap();
        assert!((high - 2.0 - 4.302_652_729_911_275 / 3f64.sqrt()).abs() < 1e-9);
        assert!((low + high - 4.0).abs() < 1e-12);
    }
}
