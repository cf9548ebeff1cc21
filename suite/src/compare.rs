//! `cargo suite compare`: two runs against each other, number by number.

use std::path::{Path, PathBuf};

use common::{Error, Result};

use crate::results::{self, Results};

/// The newest run below `out` (or `out` itself when it is a run folder).
pub(crate) fn last_run(out: &Path) -> Result<PathBuf> {
    if out.join("results.json").exists() {
        return Ok(out.to_owned());
    }
    let parent = out.join(crate::run::NAME);
    let none = || Error::usage(format!("{}: no run yet, start `cargo suite`", parent.display()));
    let entries = std::fs::read_dir(&parent).map_err(|_| none())?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("results.json").exists())
        .max()
        .ok_or_else(none)
}

/// Holds the last run of folder `b` against that of folder `a`: every row of one must be in the
/// other with the same mean up to `tolerance` (see [`results::check`]); with a tolerance of 0 each
/// paper's `metrics.json` must be equal to the byte.
///
/// Returns one line that says what was compared. Fails with [`Error::Tolerance`] on a difference.
pub fn compare(a: &Path, b: &Path, tolerance: f64) -> Result<String> {
    let (a, b) = (last_run(a)?, last_run(b)?);
    let (first, second) =
        (Results::read(&a.join("results.json"))?, Results::read(&b.join("results.json"))?);
    results::check(&second, &Some(first.clone()), tolerance)?;
    results::check(&first, &Some(second.clone()), tolerance)?;
    let names = |results: &Results| -> Vec<String> {
        results.reports.iter().map(|report| report.paper.clone()).collect()
    };
    if names(&first) != names(&second) {
        return Err(Error::Tolerance(format!(
            "papers {:?} in one run, {:?} in the other",
            names(&first),
            names(&second)
        )));
    }
    if tolerance == 0.0 {
        for paper in names(&first) {
            if metrics(&a, &paper)? != metrics(&b, &paper)? {
                let (a, b) = (a.display(), b.display());
                return Err(Error::Tolerance(format!(
                    "{paper}: metrics.json of {a} and of {b} differ"
                )));
            }
        }
    }
    let rows: usize = first.reports.iter().map(|report| report.rows.len()).sum();
    let how = if tolerance == 0.0 { "to the byte".into() } else { format!("up to {tolerance}") };
    Ok(format!("{rows} rows of {} papers are equal {how}\n", first.reports.len()))
}

/// A paper's `metrics.json` inside a suite run.
fn metrics(run: &Path, paper: &str) -> Result<Vec<u8>> {
    let folder = run.join(paper);
    let newest = std::fs::read_dir(&folder)
        .map_err(Error::io(&folder))?
        .filter_map(|entry| Some(entry.ok()?.path().join("metrics.json")))
        .filter(|path| path.exists())
        .max()
        .ok_or_else(|| Error::usage(format!("{}: no metrics.json below", folder.display())))?;
    std::fs::read(&newest).map_err(Error::io(&newest))
}
