//! Rows laid out for people: one line per method, one column per metric.
//!
//! Consecutive datasets that share one metric and the same methods become the columns of one grid;
//! methods of a dataset without a metric in common, as differences beside scores, have their own.

use super::{Role, Row, number};

/// One table of a report.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Grid<'a> {
    /// The dataset, or the metric where the columns are datasets; empty for a further grid of the
    /// same dataset.
    pub(super) title: String,
    pub(super) columns: Vec<Column>,
    pub(super) lines: Vec<Line<'a>>,
    /// Distinct notes, in order of appearance; lines and cells refer to them by index.
    pub(super) notes: Vec<&'a str>,
}

/// A metric, or a dataset of a shared metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) higher_is_better: bool,
}

/// One method.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line<'a> {
    pub(super) method: &'a str,
    pub(super) role: Role,
    pub(super) cells: Vec<Option<Cell<'a>>>,
    /// A note that all cells of the line share.
    pub(super) note: Option<usize>,
}

/// One number.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cell<'a> {
    pub(super) row: &'a Row,
    /// No other method (controls aside) has a better mean in this column.
    pub(super) best: bool,
    /// A note of this cell alone.
    pub(super) note: Option<usize>,
}

impl Column {
    /// Name with an arrow to the better side.
    pub(super) fn label(&self) -> String {
        format!("{} {}", self.name, if self.higher_is_better { "↑" } else { "↓" })
    }
}

impl Line<'_> {
    /// Evaluated items: one number, or the smallest and largest of the line's cells.
    pub(super) fn size(&self) -> String {
        let sizes = || self.cells.iter().flatten().map(|cell| cell.row.n);
        match (sizes().min(), sizes().max()) {
            (Some(low), Some(high)) if low == high => low.to_string(),
            (Some(low), Some(high)) => format!("{low}–{high}"),
            _ => String::new(),
        }
    }
}

impl Cell<'_> {
    /// Mean, or "not run".
    pub(super) fn mean(&self) -> String {
        self.row.mean.map_or_else(|| "not run".to_owned(), number)
    }

    /// Deviation over seeds, interval and the paper's number (in brackets when ours can't be held
    /// against it), as far as they are known.
    pub(super) fn details(&self) -> String {
        let row = self.row;
        let mut parts = Vec::new();
        if let (Some(_), Some(sd)) = (row.mean, row.sd) {
            parts.push(format!("± {}", number(sd)));
        }
        if let (Some(_), Some([low, high])) = (row.mean, row.ci95) {
            parts.push(format!("{} … {}", number(low), number(high)));
        }
        match row.paper_value {
            Some(value) if row.comparable => parts.push(format!("paper {}", number(value))),
            Some(value) => parts.push(format!("(paper {})", number(value))),
            None => {}
        }
        parts.join(" ")
    }
}

/// The grids of `rows`, in the order of the rows.
pub(super) fn grids(rows: &[Row]) -> Vec<Grid<'_>> {
    let mut found: Vec<Grid<'_>> = Vec::new();
    let mut datasets: Vec<&str> = Vec::new();
    for row in rows {
        if !datasets.contains(&row.dataset.as_str()) {
            datasets.push(&row.dataset);
        }
    }
    let mut group: Vec<&str> = Vec::new();
    for dataset in datasets {
        if group.last().is_some_and(|last| !alike(rows, last, dataset)) {
            found.extend(grids_of(rows, &group));
            group.clear();
        }
        group.push(dataset);
    }
    found.extend(grids_of(rows, &group));
    found
}

/// The grids of one dataset, or the one of several [`alike`] ones.
fn grids_of<'a>(rows: &'a [Row], datasets: &[&str]) -> Vec<Grid<'a>> {
    let here = rows.iter().filter(|row| datasets.contains(&row.dataset.as_str()));
    let mut grids: Vec<Grid<'a>> =
        related(here.collect()).iter().map(|part| grid(part, datasets.len() > 1)).collect();
    grids.iter_mut().skip(1).for_each(|grid| grid.title.clear());
    grids
}

/// Parts of the rows that have neither a method nor a metric in common, in order of appearance.
fn related(rows: Vec<&Row>) -> Vec<Vec<&Row>> {
    let meet =
        |a: &Row, b: &Row| a.metric == b.metric || (a.method == b.method && a.role == b.role);
    // the first row of each row's part
    let mut first: Vec<usize> = (0..rows.len()).collect();
    for at in 0..rows.len() {
        for before in 0..at {
            let (low, high) = (first[before].min(first[at]), first[before].max(first[at]));
            if low != high && meet(rows[before], rows[at]) {
                first.iter_mut().filter(|first| **first == high).for_each(|first| *first = low);
            }
        }
    }
    let part = |at: usize| -> Vec<&Row> {
        rows.iter().zip(&first).filter(|(_, first)| **first == at).map(|(row, _)| *row).collect()
    };
    (0..rows.len()).map(part).filter(|part| !part.is_empty()).collect()
}

/// Whether two datasets have one metric, the same one, and the same methods in the same order.
fn alike(rows: &[Row], a: &str, b: &str) -> bool {
    let methods = |name: &str| -> Vec<(String, Role, String, bool)> {
        let here = rows.iter().filter(|row| row.dataset == name);
        here.map(|row| (row.method.clone(), row.role, row.metric.clone(), row.higher_is_better))
            .collect()
    };
    let (first, second) = (methods(a), methods(b));
    first == second && first.iter().all(|(_, _, metric, _)| *metric == first[0].2)
}

/// The grid of these rows, with a column for each metric or each dataset.
fn grid<'a>(here: &[&'a Row], by_dataset: bool) -> Grid<'a> {
    let name = |row: &Row| if by_dataset { row.dataset.clone() } else { row.metric.clone() };
    let mut columns: Vec<Column> = Vec::new();
    let mut lines: Vec<Line<'a>> = Vec::new();
    for row in here {
        let column = Column { name: name(row), higher_is_better: row.higher_is_better };
        let place = columns.iter().position(|other| *other == column).unwrap_or_else(|| {
            columns.push(column);
            columns.len() - 1
        });
        let same = |line: &Line<'_>| line.method == row.method && line.role == row.role;
        let line = lines.iter().position(same).unwrap_or_else(|| {
            lines.push(Line { method: &row.method, role: row.role, cells: Vec::new(), note: None });
            lines.len() - 1
        });
        let cells = &mut lines[line].cells;
        cells.resize(cells.len().max(place + 1), None);
        cells[place] = Some(Cell { row, best: false, note: None });
    }
    for line in &mut lines {
        line.cells.resize(columns.len(), None);
    }
    mark_best(&mut lines, columns.len());
    let notes = number_notes(&mut lines);
    let title = match here.first() {
        Some(row) if by_dataset => row.metric.clone(),
        Some(row) => row.dataset.clone(),
        None => String::new(),
    };
    Grid { title, columns, lines, notes }
}

fn mark_best(lines: &mut [Line<'_>], columns: usize) {
    for column in 0..columns {
        let best = lines
            .iter()
            .filter(|line| line.role != Role::Control)
            .filter_map(|line| line.cells[column].as_ref().map(|cell| cell.row))
            .filter(|row| row.mean.is_some())
            .reduce(|best, row| if row.beats(best) { row } else { best });
        let Some(best) = best else { continue };
        for cell in lines.iter_mut().filter_map(|line| line.cells[column].as_mut()) {
            cell.best = cell.row.mean.is_some() && !best.beats(cell.row);
        }
    }
}

/// Gives every distinct note a number, at the line where all its cells share it.
fn number_notes<'a>(lines: &mut [Line<'a>]) -> Vec<&'a str> {
    let mut notes: Vec<&'a str> = Vec::new();
    let mut place = |note: &'a str| {
        notes.iter().position(|other| *other == note).unwrap_or_else(|| {
            notes.push(note);
            notes.len() - 1
        })
    };
    for line in lines {
        let said = |cell: &Cell<'a>| cell.row.note.as_deref().filter(|note| !note.is_empty());
        let mut all = line.cells.iter().flatten().map(said);
        let first = all.next().flatten();
        match first {
            Some(note) if all.all(|other| other == Some(note)) => line.note = Some(place(note)),
            _ => {
                for cell in line.cells.iter_mut().flatten() {
                    cell.note = said(cell).map(&mut place);
                }
            }
        }
    }
    notes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn row(dataset: &str, method: &str, metric: &str, mean: f64) -> Row {
        Row {
            dataset: dataset.into(),
            method: method.into(),
            metric: metric.into(),
            mean: Some(mean),
            n: 10,
            ..Row::default()
        }
    }

    #[test]
    fn metrics_are_columns_and_the_better_side_is_marked() {
        let rows = [
            row("rte", "a", "auc", 0.9),
            Row { higher_is_better: false, ..row("rte", "a", "log loss", 0.5) },
            row("rte", "b", "auc", 0.8),
            Row { higher_is_better: false, ..row("rte", "b", "log loss", 0.4) },
            Row { role: Role::Control, ..row("rte", "c", "auc", 0.95) },
        ];
        let grids = grids(&rows);
        assert_eq!(grids.len(), 1);
        let grid = &grids[0];
        assert_eq!((grid.title.as_str(), grid.columns.len(), grid.lines.len()), ("rte", 2, 3));
        let best =
            |line: usize, column: usize| grid.lines[line].cells[column].as_ref().unwrap().best;
        assert!(best(0, 0) && best(1, 1) && best(2, 0));
        assert!(!best(0, 1) && !best(1, 0));
        assert!(grid.lines[2].cells[1].is_none());
        assert_eq!(grid.columns[1].label(), "log loss ↓");
    }

    #[test]
    fn datasets_with_the_same_metric_and_methods_share_a_grid() {
        let rows: Vec<Row> = ["rte", "web"]
            .iter()
            .flat_map(|set| [row(set, "a", "accuracy", 0.9), row(set, "b", "accuracy", 0.8)])
            .chain([row("other", "a", "accuracy", 0.7)])
            .collect();
        let grids = grids(&rows);
        let shape: Vec<_> =
            grids.iter().map(|grid| (grid.title.as_str(), grid.columns.len())).collect();
        assert_eq!(shape, [("accuracy", 2), ("other", 1)]);
        assert_eq!(grids[0].columns[1].name, "web");
    }

    #[test]
    fn methods_without_a_common_metric_have_their_own_grid() {
        let rows = [
            row("rte", "a", "auc", 0.9),
            row("rte", "a minus b", "difference", 0.1),
            row("rte", "b", "f1", 0.8),
            row("rte", "a", "f1", 0.7),
            row("web", "a", "auc", 0.6),
        ];
        let grids = grids(&rows);
        let shape: Vec<_> = grids
            .iter()
            .map(|grid| (grid.title.as_str(), grid.lines.len(), grid.columns.len()))
            .collect();
        assert_eq!(shape, [("rte", 2, 2), ("", 1, 1), ("web", 1, 1)]);
        assert_eq!(grids[1].lines[0].method, "a minus b");
    }

    #[test]
    fn a_note_of_the_whole_line_is_said_once() {
        let noted = |metric: &str, note: &str| Row {
            note: Some(note.into()),
            ..row("rte", "a", metric, 0.5)
        };
        let shared = [noted("auc", "small"), noted("f1", "small")];
        let grids_shared = grids(&shared);
        assert_eq!(grids_shared[0].lines[0].note, Some(0));
        assert_eq!(grids_shared[0].notes, ["small"]);
        let apart = [noted("auc", "small"), noted("f1", "other")];
        let grids_apart = grids(&apart);
        assert_eq!(grids_apart[0].lines[0].note, None);
        assert_eq!(grids_apart[0].notes, ["small", "other"]);
    }
}
