//! Rows laid out for people: one line per method, one column per metric.
//!
//! Consecutive datasets that share one metric and the same methods become the columns of one grid.

use super::{Role, Row, number};

/// One table of a report.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Grid<'a> {
    /// The dataset, or the metric where the columns are datasets.
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
            found.push(grid(rows, &group));
            group.clear();
        }
        group.push(dataset);
    }
    if !group.is_empty() {
        found.push(grid(rows, &group));
    }
    found
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

/// The grid of one dataset, or of several [`alike`] ones.
fn grid<'a>(rows: &'a [Row], datasets: &[&str]) -> Grid<'a> {
    let by_dataset = datasets.len() > 1;
    let here: Vec<&Row> =
        rows.iter().filter(|row| datasets.contains(&row.dataset.as_str())).collect();
    let name = |row: &Row| if by_dataset { row.dataset.clone() } else { row.metric.clone() };
    let mut columns: Vec<Column> = Vec::new();
    let mut lines: Vec<Line<'a>> = Vec::new();
    for row in &here {
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
