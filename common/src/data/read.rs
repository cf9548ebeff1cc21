//! Reading CSV, TSV, JSONL and Parquet files as rows of text cells.

mod csv;
mod jsonl;
mod parquet;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::table::{Cell, Table, find_column, shorten};
use crate::error::DataError;
use crate::{Error, Result};

/// More columns than this are taken for a damaged file.
const MAX_COLUMNS: usize = 65_536;
/// A longer cell is taken for a missing quote or a damaged file.
const MAX_CELL: usize = 64 << 20;
/// What a compressed file may unpack to: this much, and [`MAX_RATIO`] times its size.
const MAX_UNPACKED: u64 = 64 << 20;
const MAX_RATIO: u64 = 100;

/// File formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated with a header line (RFC 4180; LF, CRLF or CR line ends, a byte-order mark
    /// is skipped, blank lines are skipped).
    Csv,
    /// Tab-separated with a header line, quotes as in CSV.
    Tsv,
    /// One JSON object per line; blank lines are skipped. Numbers, booleans and nested values
    /// become their JSON text.
    Jsonl,
    /// Parquet, flat columns (nested columns can't be read). Timestamps and dates stay the integers
    /// that the file stores.
    Parquet,
}

impl Format {
    /// The format that the extension of `path` tells, and whether the file is gzipped: `.csv`,
    /// `.tsv`, `.jsonl`, `.ndjson` (each also with `.gz`) and `.parquet`.
    pub fn of(path: &Path) -> Result<(Self, bool)> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let (stem, gzip) = match name.strip_suffix(".gz") {
            Some(stem) => (stem, true),
            None => (name.as_str(), false),
        };
        let format = match stem.rsplit_once('.').map(|(_, extension)| extension) {
            Some("csv") => Self::Csv,
            Some("tsv") => Self::Tsv,
            Some("jsonl" | "ndjson") => Self::Jsonl,
            Some("parquet") if !gzip => Self::Parquet,
            _ => {
                return Err(Error::usage(format!(
                    "{}: its extension tells no format; use .csv, .tsv, .jsonl (also with .gz) or .parquet",
                    path.display()
                )));
            }
        };
        Ok((format, gzip))
    }
}

/// What to do with rows that repeat the key of an earlier row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Duplicates {
    /// Rows may repeat.
    #[default]
    Keep,
    /// A repeated key is an error that names both rows.
    Refuse(Vec<String>),
    /// The first row of each key stays; the rest is counted in [`Table::duplicates`].
    First(Vec<String>),
    /// The last row of each key stays, in its own place.
    Last(Vec<String>),
}

/// How to read a table.
#[derive(Debug, Clone, Default)]
pub struct ReadOptions {
    /// The format; `None` goes by the extension.
    pub format: Option<Format>,
    /// Column mapping, as (name in the file, name to use).
    pub rename: Vec<(String, String)>,
    /// The columns to keep, in order, after renaming; each has to be there. `None` keeps all.
    pub select: Option<Vec<String>>,
    /// What to do with repeated keys ([`Table::read`] only).
    pub duplicates: Duplicates,
    /// Accept a file without rows.
    pub allow_empty: bool,
}

impl ReadOptions {
    /// Keep the columns `names`, in this order.
    pub fn select(names: &[&str]) -> Self {
        let select = Some(names.iter().map(|name| (*name).to_owned()).collect());
        Self { select, ..Self::default() }
    }
}

/// One row during [`visit`].
pub struct Row<'a> {
    /// Its row number: the line on which it starts (the header is line 1), or for Parquet its
    /// 1-based position.
    pub number: u64,
    path: &'a Path,
    columns: &'a [String],
    /// Index of each column in `ends`.
    source: &'a [usize],
    text: &'a str,
    ends: &'a [usize],
}

impl<'a> Row<'a> {
    /// Column names, in order.
    pub fn columns(&self) -> &'a [String] {
        self.columns
    }

    /// The text of column `index`.
    ///
    /// # Panics
    /// When `index` is out of range.
    pub fn text(&self, index: usize) -> &'a str {
        let cell = self.source[index];
        let start = if cell == 0 { 0 } else { self.ends[cell - 1] };
        &self.text[start..self.ends[cell]]
    }

    /// The cell of column `index`, with typed getters.
    ///
    /// # Panics
    /// When `index` is out of range.
    pub fn cell(&self, index: usize) -> Cell<'a> {
        Cell {
            path: self.path,
            row: self.number,
            column: &self.columns[index],
            text: self.text(index),
        }
    }
}

impl Table {
    /// Reads the whole file at `path`.
    ///
    /// # Errors
    /// [`Error::Data`] with file, row and column for anything that is not a well-formed table:
    /// invalid UTF-8, rows of unequal length, unclosed quotes, broken JSON or Parquet, repeated or
    /// missing columns, no rows, a compressed file that unpacks to an implausible size;
    /// [`Error::Io`] when it can't be read; [`Error::Usage`] when the format is unknown.
    pub fn read(path: &Path, options: &ReadOptions) -> Result<Self> {
        let mut table = None;
        let columns = visit(path, options, |row| {
            let table = table.get_or_insert_with(|| Self::new(path, row.columns.to_vec()));
            table.push(row.number, (0..row.columns.len()).map(|index| row.text(index)))
        })?;
        let table = table.unwrap_or_else(|| Self::new(path, columns));
        without_duplicates(table, &options.duplicates)
    }
}

/// Calls `each` for every row of the file at `path`, holding one row (for Parquet: one batch) at a
/// time, and returns the column names. JSONL without [`ReadOptions::select`] is read twice, since
/// its columns are known only at its end.
///
/// # Errors
/// As [`Table::read`], and whatever `each` returns.
pub fn visit(
    path: &Path,
    options: &ReadOptions,
    mut each: impl FnMut(&Row<'_>) -> Result<()>,
) -> Result<Vec<String>> {
    let (format, gzip) = match options.format {
        Some(format) => (format, path.extension().is_some_and(|extension| extension == "gz")),
        None => Format::of(path)?,
    };
    let mut rows = 0_u64;
    let mut counted = |row: &Row<'_>| {
        rows += 1;
        each(row)
    };
    let result = match format {
        Format::Csv => csv::visit(path, gzip, b',', options, &mut counted),
        Format::Tsv => csv::visit(path, gzip, b'\t', options, &mut counted),
        Format::Jsonl => jsonl::visit(path, gzip, options, &mut counted),
        Format::Parquet => parquet::visit(path, options, &mut counted),
    };
    let columns = result.map_err(|error| error.in_file(path))?;
    if rows == 0 && !options.allow_empty {
        return Err(place(None, "a table without rows", "at least one row below the header"))
            .map_err(|error| error.in_file(path));
    }
    Ok(columns)
}

type Each<'a> = &'a mut dyn FnMut(&Row<'_>) -> Result<()>;

/// A data error at a row, its file to be added by [`visit`].
fn place(row: Option<u64>, found: impl Into<String>, expected: impl Into<String>) -> Error {
    DataError { path: None, row, column: None, found: found.into(), expected: expected.into() }
        .into()
}

fn place_in(row: u64, column: &str, found: impl Into<String>, expected: &str) -> Error {
    DataError {
        path: None,
        row: Some(row),
        column: Some(column.to_owned()),
        found: found.into(),
        expected: expected.to_owned(),
    }
    .into()
}

/// Which file columns are kept, and under which names.
struct Projection {
    columns: Vec<String>,
    source: Vec<usize>,
}

impl Projection {
    fn new(path: &Path, header: &[String], options: &ReadOptions) -> Result<Self> {
        if header.len() > MAX_COLUMNS {
            return Err(place(
                Some(1),
                format!("{} columns", header.len()),
                format!("at most {MAX_COLUMNS}"),
            ));
        }
        let mut names = header.to_vec();
        for (from, to) in &options.rename {
            let index = find_column(path, header, from)?;
            names[index].clone_from(to);
        }
        let mut first = HashMap::new();
        for (index, name) in names.iter().enumerate() {
            if let Some(earlier) = first.insert(name, index) {
                return Err(place(
                    Some(1),
                    format!(
                        "two columns called {} (number {} and {})",
                        shorten(name),
                        earlier + 1,
                        index + 1
                    ),
                    "each column name once",
                ));
            }
        }
        match &options.select {
            None => {
                let source = (0..names.len()).collect();
                Ok(Self { columns: names, source })
            }
            Some(select) => {
                let find = |name: &String| find_column(path, &names, name);
                let source = select.iter().map(find).collect::<Result<_>>()?;
                Ok(Self { columns: select.clone(), source })
            }
        }
    }
}

/// Opens a text file, unpacks it when gzipped, and skips a UTF-8 byte-order mark.
fn open_text(path: &Path, gzip: bool) -> Result<Text> {
    let file = File::open(path).map_err(Error::io(path))?;
    let size = file.metadata().map_err(Error::io(path))?.len();
    let inner: Box<dyn Read> = if gzip {
        let limit = MAX_UNPACKED.saturating_add(size.saturating_mul(MAX_RATIO));
        Box::new(Unpacked { inner: MultiGzDecoder::new(BufReader::new(file)), left: limit, limit })
    } else {
        Box::new(file)
    };
    let mut text = Text { reader: BufReader::with_capacity(1 << 17, inner), gzip };
    let start = text.fill()?;
    if start.starts_with(b"\xFF\xFE") || start.starts_with(b"\xFE\xFF") {
        return Err(place(Some(1), "a UTF-16 file", "UTF-8; save it again in that encoding"));
    }
    if start.is_empty() {
        return Err(place(None, "an empty file", "a header and at least one row"));
    }
    if start.starts_with(b"\xEF\xBB\xBF") {
        text.reader.consume(3);
    }
    Ok(text)
}

/// A text file's bytes, with read errors told apart.
struct Text {
    reader: BufReader<Box<dyn Read>>,
    gzip: bool,
}

impl Text {
    fn fill(&mut self) -> Result<&[u8]> {
        let gzip = self.gzip;
        self.reader.fill_buf().map_err(|error| Self::failure(gzip, error))
    }

    fn consume(&mut self, bytes: usize) {
        self.reader.consume(bytes);
    }

    fn failure(gzip: bool, error: std::io::Error) -> Error {
        if gzip {
            place(None, format!("a gzip file that does not unpack ({error})"), "a sound gzip file")
        } else {
            place(None, format!("a file that can't be read ({error})"), "a readable file")
        }
    }
}

/// Fails when a stream unpacks to more than `limit` bytes.
struct Unpacked<R> {
    inner: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            std::io::Error::other(format!(
                "it unpacks to more than {} MiB, {MAX_RATIO} times its size: unpack it by hand if that is right",
                self.limit >> 20
            ))
        })?;
        Ok(read)
    }
}

fn without_duplicates(table: Table, duplicates: &Duplicates) -> Result<Table> {
    let key = match duplicates {
        Duplicates::Keep => return Ok(table),
        Duplicates::Refuse(key) | Duplicates::First(key) | Duplicates::Last(key) => key,
    };
    let columns = key
        .iter()
        .map(|name| find_column(&table.path, &table.columns, name))
        .collect::<Result<Vec<_>>>()?;
    let mut kept = vec![true; table.len()];
    let mut seen: HashMap<Vec<&str>, usize> = HashMap::with_capacity(table.len());
    for row in 0..table.len() {
        let key_of_row = columns.iter().map(|column| table.text(row, *column)).collect();
        match (seen.get_mut(&key_of_row), duplicates) {
            (None, _) => {
                seen.insert(key_of_row, row);
            }
            (Some(earlier), Duplicates::Refuse(_)) => {
                return Err(DataError {
                    path: Some(table.path.clone()),
                    row: Some(table.row_number(row)),
                    column: Some(key.join(", ")),
                    found: format!(
                        "{}, which row {} has too",
                        shorten(&key_of_row.join(", ")),
                        table.row_number(*earlier)
                    ),
                    expected: "each value once".to_owned(),
                }
                .into());
            }
            (Some(earlier), Duplicates::Last(_)) => {
                kept[*earlier] = false;
                *earlier = row;
            }
            (Some(_), _) => kept[row] = false,
        }
    }
    drop(seen);
    let dropped = kept.iter().filter(|kept| !**kept).count();
    if dropped == 0 {
        return Ok(table);
    }
    let mut unique = Table::new(&table.path, table.columns.clone());
    for row in (0..table.len()).filter(|row| kept[*row]) {
        let cells = (0..table.columns.len()).map(|column| table.text(row, column));
        unique.push(table.row_number(row), cells)?;
    }
    unique.duplicates = dropped;
    Ok(unique)
}
