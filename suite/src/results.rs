//! The merged reports: JSON, Markdown, the page, and the comparison with committed numbers.

use std::path::Path;

use common::report::{Report, Row, html, number, table};
use common::{Error, Result};
use serde::{Deserialize, Serialize};

/// Reports of all papers, ascending by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Profile of the run.
    pub profile: String,
    /// One report per paper; a paper that failed has one row that says so.
    pub reports: Vec<Report>,
}

impl Results {
    /// Puts `report` in place of the same paper's earlier one.
    pub fn insert(&mut self, report: Report) {
        self.reports.retain(|other| other.paper != report.paper);
        self.reports.push(report);
        self.reports.sort_by(|a, b| a.paper.cmp(&b.paper));
    }

    /// Pretty JSON with a final newline.
    pub fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::Bug(format!("results: {error}")))?;
        Ok(text + "\n")
    }

    /// What is committed: rows without times and memory, no paths of one machine.
    pub fn without_timings(&self) -> Self {
        let mut copy = self.clone();
        for report in &mut copy.reports {
            report.rows = report.rows.iter().map(Row::without_timings).collect();
            report.figures.clear();
            report.config.clear();
            report.about.clear();
        }
        copy
    }

    /// Reads [`Results::to_json`]'s text from a file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        serde_json::from_str(&text).map_err(|error| {
            Error::data(error.to_string(), "results as written by `cargo suite`").in_file(path)
        })
    }

    /// Headline and tables of every paper.
    pub fn to_markdown(&self) -> String {
        let mut text = String::new();
        for report in &self.reports {
            text.push_str(&format!("## {}\n\n{}\n\n", report.paper, report.headline));
            text.push_str(&table(&report.rows));
        }
        text
    }

    /// `RESULTS.md`.
    pub fn to_results_file(&self) -> String {
        let mut text = String::from("# Results\n\n");
        text.push_str("Written by `cargo suite`; do not edit. ");
        text.push_str(&format!("Profile {}.\n\n", self.profile));
        for report in &self.reports {
            let commit = report.commit.as_deref().unwrap_or("unknown");
            let time = report.seconds.map_or_else(String::new, |time| format!(", {time:.0} s"));
            text.push_str(&format!(
                "- {}: commit {commit}, {} with {} threads{time}\n",
                report.paper, report.cpu, report.threads,
            ));
        }
        text.push_str(
            "\nEach cell: mean, ± standard deviation over seeds, 95 % interval; the best mean of a \
             column is bold (controls aside), numbers in brackets behind names are notes. A paper's number stands in brackets where ours can't be held against it (other data, \
             smaller models); the note says why. ↑ higher is better, ↓ lower is better. Training \
             kept from an earlier run is not in the seconds.\n\n",
        );
        text.push_str(&self.to_markdown());
        text
    }

    /// The HTML page.
    pub fn to_page(&self) -> String {
        let title = format!("Septet: results of profile {}", self.profile);
        let note = "Every cell: mean, then standard deviation over seeds, 95 % interval and the \
                    paper's number, which stands in brackets where ours can't be held against it; \
                    the note says why. The best mean of a column is bold (controls aside). Hover \
                    a row for the claim that it speaks to.";
        html::page(&title, &[note.to_owned()], &self.reports)
    }
}

/// Holds `new` against the committed results of the same papers: a number may move by `tolerance`
/// of its size (at least by `tolerance` / 10), and a measured row may not vanish.
///
/// Every difference is logged; fails with [`Error::Tolerance`] naming up to five of them.
pub fn check(new: &Results, committed: &Option<Results>, tolerance: f64) -> Result<()> {
    let Some(old) = committed else {
        return Err(Error::Tolerance("--check: there is no RESULTS.json to compare with".into()));
    };
    if old.profile != new.profile {
        return Err(Error::usage(format!(
            "--check: RESULTS.json is of profile {}, this run of {}",
            old.profile, new.profile
        )));
    }
    let mut problems = Vec::new();
    for report in &new.reports {
        let Some(before) = old.reports.iter().find(|other| other.paper == report.paper) else {
            continue;
        };
        for row in before.rows.iter().filter(|row| row.mean.is_some()) {
            problems.extend(difference(row, &report.rows, tolerance));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    for problem in &problems {
        tracing::warn!("{problem}");
    }
    let shown = problems.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
    let count = problems.len();
    Err(Error::Tolerance(format!("{count} rows differ from RESULTS.json: {shown}")))
}

fn difference(old: &Row, rows: &[Row], tolerance: f64) -> Option<String> {
    let same = |row: &&Row| {
        (&row.dataset, &row.method, &row.metric) == (&old.dataset, &old.method, &old.metric)
    };
    let before = old.mean?;
    let name = format!("{} / {} / {}", old.dataset, old.method, old.metric);
    match rows.iter().find(same).and_then(|row| row.mean) {
        None => Some(format!("{name} was {} and is not measured", number(before))),
        Some(now) if (now - before).abs() > tolerance * before.abs().max(0.1) => {
            Some(format!("{name} {} → {}", number(before), number(now)))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn results(mean: Option<f64>) -> Results {
        let row = Row {
            dataset: "rte".into(),
            method: "IWMV".into(),
            metric: "accuracy".into(),
            mean,
            seconds: Some(3.0),
            ..Row::default()
        };
        let report = Report { paper: "p".into(), rows: vec![row], ..Report::default() };
        Results { profile: "cpu".into(), reports: vec![report] }
    }

    #[test]
    fn check_lets_rounding_pass_and_nothing_else() {
        let old = Some(results(Some(0.9)));
        assert!(check(&results(Some(0.905)), &old, 0.01).is_ok());
        let error = check(&results(Some(0.88)), &old, 0.01).unwrap_err();
        assert!(error.to_string().contains("0.9000 → 0.8800"), "{error}");
        assert_eq!(error.exit_code(), 7);
        assert!(check(&results(None), &old, 0.01).is_err());
        assert!(check(&old.clone().unwrap(), &Some(results(None)), 0.01).is_ok());
        assert_eq!(check(&results(Some(0.9)), &None, 0.01).unwrap_err().exit_code(), 7);
    }

    #[test]
    fn committed_results_hold_no_clock() {
        let json = results(Some(0.9)).without_timings().to_json().unwrap();
        assert!(json.contains("\"seconds\": null"), "{json}");
        let mut timed = results(Some(0.9));
        timed.reports[0].seconds = Some(61.0);
        assert!(timed.to_results_file().contains("with 0 threads, 61 s\n"));
    }

    #[test]
    fn a_newer_report_replaces_the_older() {
        let mut all = results(Some(0.1));
        all.insert(results(Some(0.2)).reports.remove(0));
        all.insert(Report { paper: "a".into(), ..Report::default() });
        assert_eq!(all.reports.len(), 2);
        assert_eq!((all.reports[0].paper.as_str(), all.reports[1].rows[0].mean), ("a", Some(0.2)));
    }
}
