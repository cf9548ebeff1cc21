//! A table of text cells that knows where each cell came from.

use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::{Error, Result};

/// Rows per chunk: cell ends fit in 32 bits, and growing copies at most one chunk.
const CHUNK_ROWS: usize = 4096;

/// A table in memory: named columns of text cells. A missing value (an empty CSV cell, a JSON or
/// Parquet null, an absent JSON key) is an empty cell.
///
/// Cells take their text plus 4 bytes each. For tables that should not stay in memory see
/// [`crate::data::visit`].
#[derive(Debug, Clone)]
pub struct Table {
    /// The file it was read from, named in errors.
    pub path: PathBuf,
    /// Column names, in order.
    pub columns: Vec<String>,
    /// Rows that were left out as [`super::Duplicates`] asks.
    pub duplicates: usize,
    chunks: Vec<Chunk>,
    rows: usize,
    /// (first row index, its row number) of each run of consecutive row numbers.
    numbers: Vec<(usize, u64)>,
}

#[derive(Debug, Clone, Default)]
struct Chunk {
    text: String,
    ends: Vec<u32>,
}

impl Table {
    pub(super) fn new(path: &Path, columns: Vec<String>) -> Self {
        Self {
            path: path.to_path_buf(),
            columns,
            duplicates: 0,
            chunks: Vec::new(),
            rows: 0,
            numbers: Vec::new(),
        }
    }

    pub(super) fn push<'a>(
        &mut self,
        number: u64,
        cells: impl Iterator<Item = &'a str>,
    ) -> Result<()> {
        if self.rows.is_multiple_of(CHUNK_ROWS) {
            if let Some(full) = self.chunks.last_mut() {
                full.text.shrink_to_fit();
                full.ends.shrink_to_fit();
            }
            self.chunks.push(Chunk::default());
        }
        let next = self.numbers.last().map(|(first, number)| number + (self.rows - first) as u64);
        if next != Some(number) {
            self.numbers.push((self.rows, number));
        }
        self.rows += 1;
        let Some(chunk) = self.chunks.last_mut() else {
            return Err(Error::Bug("a table row without a chunk".to_owned()));
        };
        for cell in cells {
            chunk.text.push_str(cell);
            let end = u32::try_from(chunk.text.len()).map_err(|_| DataError {
                path: Some(self.path.clone()),
                row: Some(number),
                column: None,
                found: format!("{CHUNK_ROWS} rows with more than 4 GiB of text"),
                expected: "rows of at most 1 MiB on average".to_owned(),
            })?;
            chunk.ends.push(end);
        }
        Ok(())
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The row number of row `index` (0-based) in the file, as error messages use it: the line on
    /// which it starts, or for Parquet its 1-based position.
    ///
    /// # Panics
    /// When `index` is out of range.
    pub fn row_number(&self, index: usize) -> u64 {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        let run = self.numbers.partition_point(|(first, _)| *first <= index) - 1;
        let (first, number) = self.numbers[run];
        number + (index - first) as u64
    }

    /// The text of the cell at row `row` and column `column`, both 0-based.
    ///
    /// # Panics
    /// When either is out of range.
    pub fn text(&self, row: usize, column: usize) -> &str {
        assert!(row < self.rows && column < self.columns.len(), "cell ({row}, {column})");
        let chunk = &self.chunks[row / CHUNK_ROWS];
        let cell = (row % CHUNK_ROWS) * self.columns.len() + column;
        let start = if cell == 0 { 0 } else { chunk.ends[cell - 1] as usize };
        &chunk.text[start..chunk.ends[cell] as usize]
    }

    /// Whether there is a column called `name`.
    pub fn has_column(&self, name: &str) -> bool {
        self.columns.iter().any(|column| column == name)
    }

    /// The column called `name`. The error names the nearest column.
    pub fn column(&self, name: &str) -> Result<Column<'_>> {
        let index = find_column(&self.path, &self.columns, name)?;
        Ok(Column { table: self, index })
    }
}

/// The index of column `name`; the error names the nearest.
pub(super) fn find_column(path: &Path, columns: &[String], name: &str) -> Result<usize> {
    columns.iter().position(|column| column == name).ok_or_else(|| {
        let nearest = columns
            .iter()
            .max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)))
            .filter(|column| strsim::jaro(column, name) > 0.7);
        let shown: Vec<_> = columns.iter().take(20).map(|column| shorten(column)).collect();
        let more = if columns.len() > 20 { ", …" } else { "" };
        let mut expected = format!("a column \"{name}\"");
        if let Some(nearest) = nearest {
            expected += &format!(" (the nearest is {})", shorten(nearest));
        }
        expected += "; rename it in the file or with a column mapping";
        DataError {
            path: Some(path.to_path_buf()),
            row: None,
            column: Some(name.to_owned()),
            found: format!("{} columns: {}{more}", columns.len(), shown.join(", ")),
            expected,
        }
        .into()
    })
}

/// Text for an error message: quoted, at most 60 characters.
pub(super) fn shorten(text: &str) -> String {
    let mut chars = text.chars();
    let start: String = chars.by_ref().take(60).collect();
    let rest = chars.count();
    if rest == 0 { format!("{start:?}") } else { format!("{start:?} and {rest} more characters") }
}

/// One column of a [`Table`].
#[derive(Debug, Clone, Copy)]
pub struct Column<'a> {
    table: &'a Table,
    index: usize,
}

impl<'a> Column<'a> {
    /// Its name.
    pub fn name(&self) -> &'a str {
        &self.table.columns[self.index]
    }

    /// The cell of row `row` (0-based).
    ///
    /// # Panics
    /// When `row` is out of range.
    pub fn cell(&self, row: usize) -> Cell<'a> {
        Cell {
            path: &self.table.path,
            row: self.table.row_number(row),
            column: self.name(),
            text: self.table.text(row, self.index),
        }
    }

    /// The text of row `row` (0-based).
    ///
    /// # Panics
    /// When `row` is out of range.
    pub fn text(&self, row: usize) -> &'a str {
        self.table.text(row, self.index)
    }

    /// The text of every row.
    pub fn texts(self) -> impl Iterator<Item = &'a str> {
        (0..self.table.len()).map(move |row| self.table.text(row, self.index))
    }

    /// The text of every row; none may be empty.
    pub fn non_empty(self) -> Result<Vec<&'a str>> {
        self.collect(|cell| cell.non_empty())
    }

    /// Every row as an integer. See [`Cell::i64`].
    pub fn i64s(self) -> Result<Vec<i64>> {
        self.collect(|cell| cell.i64())
    }

    /// Every row as a finite number. See [`Cell::f64`].
    pub fn f64s(self) -> Result<Vec<f64>> {
        self.collect(|cell| cell.f64())
    }

    /// Every row as a truth value. See [`Cell::bool`].
    pub fn bools(self) -> Result<Vec<bool>> {
        self.collect(|cell| cell.bool())
    }

    /// Every row as a timestamp. See [`Cell::timestamp`].
    pub fn timestamps(self) -> Result<Vec<i64>> {
        self.collect(|cell| cell.timestamp())
    }

    fn collect<T>(self, get: impl Fn(Cell<'a>) -> Result<T>) -> Result<Vec<T>> {
        (0..self.table.len()).map(|row| get(self.cell(row))).collect()
    }
}

/// One cell, with its place for error messages.
#[derive(Debug, Clone, Copy)]
pub struct Cell<'a> {
    pub(super) path: &'a Path,
    pub(super) row: u64,
    pub(super) column: &'a str,
    /// Its text; empty when the value is missing.
    pub text: &'a str,
}

impl<'a> Cell<'a> {
    /// The text, which may not be empty or only white space.
    pub fn non_empty(&self) -> Result<&'a str> {
        if self.text.trim().is_empty() { Err(self.error("a value")) } else { Ok(self.text) }
    }

    /// An integer. `3.0` counts as 3: pandas writes integer columns with gaps that way.
    pub fn i64(&self) -> Result<i64> {
        let text = self.text.trim();
        if let Ok(value) = text.parse() {
            return Ok(value);
        }
        // Above 2^53 the text no longer names one integer.
        match text.parse::<f64>() {
            Ok(value) if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 => {
                Ok(value as i64)
            }
            _ => Err(self.error("an integer")),
        }
    }

    /// A finite number; `NaN` and `inf` are refused.
    pub fn f64(&self) -> Result<f64> {
        match self.text.trim().parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(value),
            _ => Err(self.error("a finite number")),
        }
    }

    /// `true`/`false`, `yes`/`no` in any case, `1`/`0`, `1.0`/`0.0`.
    pub fn bool(&self) -> Result<bool> {
        match self.text.trim().to_ascii_lowercase().as_str() {
            "true" | "yes" | "1" | "1.0" => Ok(true),
            "false" | "no" | "0" | "0.0" => Ok(false),
            _ => Err(self.error("true or false")),
        }
    }

    /// A time since an epoch, ≥ 0, in the file's own unit. Fractions are cut off.
    pub fn timestamp(&self) -> Result<i64> {
        let text = self.text.trim();
        let value = match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(value), _) => Some(value),
            // i64::MAX is not an f64; the largest below it is 2^63 − 1024.
            (_, Ok(value)) if value.abs() < 9_223_372_036_854_774_784.0 => {
                Some(value.floor() as i64)
            }
            _ => None,
        };
        value.filter(|value| *value >= 0).ok_or_else(|| self.error("a time of 0 or later"))
    }

    /// An error that says where this cell is and what it holds.
    pub fn error(&self, expected: impl Into<String>) -> Error {
        let found =
            if self.text.is_empty() { "an empty cell".to_owned() } else { shorten(self.text) };
        DataError {
            path: Some(self.path.to_path_buf()),
            row: Some(self.row),
            column: Some(self.column.to_owned()),
            found,
            expected: expected.into(),
        }
        .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(text: &str) -> Cell<'_> {
        Cell { path: Path::new("t.csv"), row: 7, column: "c", text }
    }

    #[test]
    fn typed_cells() {
        assert_eq!(cell(" 42 ").i64().unwrap(), 42);
        assert_eq!(cell("3.0").i64().unwrap(), 3);
        for text in ["", "3.5", "x", "NaN", "1e300", "9007199254740994.0"] {
            assert!(cell(text).i64().is_err(), "{text}");
        }
        assert_eq!(cell("9223372036854775807").i64().unwrap(), i64::MAX);
        assert_eq!(cell("-1.5e3").f64().unwrap(), -1500.0);
        for text in ["", "NaN", "inf", "-Infinity", "1e999", "1,5"] {
            assert!(cell(text).f64().is_err(), "{text}");
        }
        assert!(cell("True").bool().unwrap() && !cell("no").bool().unwrap());
        assert!(cell("2").bool().is_err());
        assert_eq!(cell("881250949").timestamp().unwrap(), 881_250_949);
        assert_eq!(cell("1.7e9").timestamp().unwrap(), 1_700_000_000);
        for text in ["-1", "-0.5", "nan", "1e19", ""] {
            assert!(cell(text).timestamp().is_err(), "{text}");
        }
        assert!(cell(" \t").non_empty().is_err());
    }

    #[test]
    fn an_error_names_the_place_and_shortens_the_value() {
        let long = "x".repeat(1_000_000);
        let message = cell(&long).f64().unwrap_err().to_string();
        assert!(message.starts_with("t.csv, row 7, column c: found \"xxx"), "{message}");
        assert!(message.ends_with("and 999940 more characters, expected a finite number"));
        assert!(message.len() < 200);
    }

    #[test]
    fn rows_keep_their_numbers_across_chunks_and_gaps() {
        let mut table = Table::new(Path::new("t"), vec!["a".into(), "b".into()]);
        let number = |index: u64| 2 + index + if index >= 5000 { 3 } else { 0 };
        for index in 0..10_000 {
            let text = index.to_string();
            table.push(number(index), [text.as_str(), ""].into_iter()).unwrap();
        }
        for index in [0, 1, 4095, 4096, 4999, 5000, 8192, 9999] {
            assert_eq!(table.row_number(index), number(index as u64));
            assert_eq!(table.text(index, 0), index.to_string());
            assert_eq!(table.text(index, 1), "");
        }
        assert_eq!(table.numbers.len(), 2);
    }
}
