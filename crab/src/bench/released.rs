//! Stage 1 alone on semantic IDs that come with the data, along λ.

use common::Result;
use common::report::{Role, Row};
use common::rng::Seed;

use crate::data::Dataset;
use crate::model::rebalance::{RebalanceOptions, rebalance};
use crate::sid::{SidTable, audit};
use crate::tokenizer::Codebook;
use crate::vectors::words;

/// Weights of the balance term that are shown.
pub const LAMBDAS: [f64; 4] = [0.0, 0.2, 1.0, 5.0];

/// Gini coefficient, largest load and variance left at the middle level, before the split and for
/// each λ. Residuals come from the words of the texts.
///
/// # Errors
/// Those of the split.
pub fn rows(data: &Dataset, table: &SidTable) -> Result<Vec<Row>> {
    let counts = data.counts();
    let book = Codebook::around(table.clone(), words(&data.texts, 64, Seed::new(0)))?;
    let row = |method: String, role, metric: &str, value: f64| {
        let row = Row {
            claim: "a balanced code book".into(),
            dataset: format!("{}, released semantic IDs", data.name),
            method,
            role,
            metric: metric.into(),
            higher_is_better: false,
            n: table.items(),
            note: Some("Stage 1 alone, middle level; no model.".into()),
            ..Row::default()
        };
        row.over_seeds(&[value])
    };
    let level = |table: &SidTable| audit(table, &counts).levels.swap_remove(1);
    let before = level(table);
    let mut rows = vec![
        row("before".into(), Role::Baseline, "gini of token load", before.gini),
        row("before".into(), Role::Baseline, "largest token load", before.largest as f64),
    ];
    for lambda in LAMBDAS {
        let options = RebalanceOptions { lambda, ..RebalanceOptions::default() };
        let residuals = |level| Some(book.residuals(level));
        let new = rebalance(table, &counts, residuals, &options, Seed::new(0))?;
        let after = level(&new.table);
        let left: Vec<f64> = new.splits.iter().filter_map(|split| split.variance_left).collect();
        let left = left.iter().sum::<f64>() / left.len() as f64;
        let role =
            if lambda == RebalanceOptions::default().lambda { Role::Paper } else { Role::Ablation };
        let values = [
            ("gini of token load", after.gini),
            ("largest token load", after.largest as f64),
            ("variance left inside tokens", left),
        ];
        for (metric, value) in values {
            rows.push(row(format!("split, lambda {lambda}"), role, metric, value));
        }
    }
    Ok(rows)
}
