//! Parquet through the record-reader API of the parquet crate.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::basic::{ConvertedType, LogicalType};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, DataType};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;

use super::{Each, MAX_CELL, MAX_RATIO, MAX_UNPACKED, Projection, Row, place, place_in};
use crate::data::read::ReadOptions;
use crate::{Error, Result};

/// Rows decoded at a time.
const BATCH: usize = 4096;

pub(super) fn visit(path: &Path, options: &ReadOptions, each: Each<'_>) -> Result<Vec<String>> {
    let file = File::open(path).map_err(Error::io(path))?;
    let size = file.metadata().map_err(Error::io(path))?.len();
    if size == 0 {
        return Err(place(None, "an empty file", "a Parquet file"));
    }
    let reader = guarded(|| SerializedFileReader::new(file))?;
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let flat: Vec<usize> =
        (0..schema.num_columns()).filter(|index| is_flat(&schema.column(*index))).collect();
    let header: Vec<String> =
        flat.iter().map(|index| schema.column(*index).name().to_owned()).collect();
    let projection = Projection::new(path, &header, options)?;
    if projection.columns.is_empty() {
        return Err(place(None, "no flat column", "at least one column that is not nested"));
    }

    let mut budget = Budget::new(size);
    let mut number = 0;
    let identity: Vec<usize> = (0..projection.columns.len()).collect();
    for group in 0..reader.num_row_groups() {
        let group = guarded(|| reader.get_row_group(group))?;
        check_group(group.metadata(), size)?;
        let mut columns = Vec::new();
        for (name, source) in projection.columns.iter().zip(&projection.source) {
            let index = flat[*source];
            columns.push(Column {
                name: name.clone(),
                kind: Kind::of(&schema.column(index)),
                max_definition: schema.column(index).max_def_level(),
                reader: open_column(group.as_ref(), index)?,
                text: String::new(),
                ends: Vec::new(),
            });
        }
        let mut left = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
        let (mut text, mut ends) = (String::new(), Vec::new());
        while left > 0 {
            let wanted = left.min(BATCH);
            for column in &mut columns {
                let read = column.read(wanted, number, &mut budget)?;
                if read != wanted {
                    return Err(place_in(
                        number + read as u64 + 1,
                        &column.name,
                        "the end of the column",
                        "as many values as the file states rows",
                    ));
                }
            }
            for row in 0..wanted {
                text.clear();
                ends.clear();
                for column in &columns {
                    text.push_str(column.cell(row));
                    ends.push(text.len());
                }
                number += 1;
                each(&Row {
                    number,
                    path,
                    columns: &projection.columns,
                    source: &identity,
                    text: &text,
                    ends: &ends,
                })?;
            }
            left -= wanted;
        }
    }
    Ok(projection.columns)
}

/// Whether each row holds one value or none.
fn is_flat(column: &ColumnDescriptor) -> bool {
    column.max_rep_level() == 0 && column.path().parts().len() == 1
}

/// The parquet crate trusts sizes in the footer.
fn check_group(group: &RowGroupMetaData, size: u64) -> Result<()> {
    let damaged = |found: String| Err(place(None, found, "a sound Parquet file"));
    if group.num_rows() < 0 {
        return damaged(format!("a row group of {} rows", group.num_rows()));
    }
    for column in group.columns() {
        let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
        let start = start.min(column.data_page_offset());
        let end = start.checked_add(column.compressed_size());
        let inside = start >= 4
            && column.compressed_size() >= 0
            && column.uncompressed_size() >= 0
            && column.num_values() >= 0
            && end.is_some_and(|end| u64::try_from(end).is_ok_and(|end| end <= size));
        if !inside {
            return damaged(format!(
                "a footer that puts {} bytes of column {} at byte {start} of {size}",
                column.compressed_size(),
                column.column_path().string()
            ));
        }
    }
    Ok(())
}

fn open_column(group: &dyn RowGroupReader, index: usize) -> Result<ColumnReader> {
    let descriptor = group.metadata().column(index).column_descr_ptr();
    let pages = guarded(|| group.get_column_page_reader(index))?;
    Ok(get_column_reader(descriptor, pages))
}

/// Runs a call into the parquet crate, which panics on some damaged files.
fn guarded<T>(call: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T> {
    let problem = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "its contents contradict each other".to_owned(),
    };
    Err(place(
        None,
        format!("a file that does not decode ({problem})"),
        "a sound Parquet file; write it again",
    ))
}

/// What a file may unpack to: dictionary and run-length encoding know no bound.
struct Budget {
    left: u64,
    limit: u64,
}

impl Budget {
    fn new(size: u64) -> Self {
        let limit = 4 * MAX_UNPACKED + size.saturating_mul(MAX_RATIO);
        Self { left: limit, limit }
    }

    fn spend(&mut self, bytes: usize, row: u64, column: &str) -> Result<()> {
        match self.left.checked_sub(bytes as u64) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(place_in(
                row,
                column,
                format!("a file that unpacks to more than {} MiB", self.limit >> 20),
                "at most 100 times the file's size; convert it to CSV if that is right",
            )),
        }
    }
}

/// How stored values become text.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    Unsigned,
    /// Digits after the decimal point.
    Decimal(u32),
}

impl Kind {
    fn of(column: &ColumnDescriptor) -> Self {
        let scale = |scale: i32| u32::try_from(scale).unwrap_or(0).min(38);
        match column.logical_type_ref() {
            Some(LogicalType::Integer(kind)) if !kind.is_signed => Self::Unsigned,
            Some(LogicalType::Decimal(kind)) => Self::Decimal(scale(kind.scale)),
            _ => match column.converted_type() {
                ConvertedType::UINT_8
                | ConvertedType::UINT_16
                | ConvertedType::UINT_32
                | ConvertedType::UINT_64 => Self::Unsigned,
                ConvertedType::DECIMAL => Self::Decimal(scale(column.type_scale())),
                _ => Self::Plain,
            },
        }
    }

    fn integer(self, value: i64, unsigned: u64) -> String {
        match self {
            Self::Plain => value.to_string(),
            Self::Unsigned => unsigned.to_string(),
            Self::Decimal(scale) => decimal(i128::from(value), scale),
        }
    }
}

fn decimal(value: i128, scale: u32) -> String {
    let digits = value.unsigned_abs().to_string();
    let scale = scale as usize;
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if value < 0 { "-" } else { "" };
    if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

/// A column of a row group and its current batch.
struct Column {
    name: String,
    kind: Kind,
    max_definition: i16,
    reader: ColumnReader,
    text: String,
    ends: Vec<usize>,
}

impl Column {
    fn cell(&self, row: usize) -> &str {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.text[start..self.ends[row]]
    }

    /// Decodes the next batch; the number of rows it has. `before` rows of the file came earlier.
    fn read(&mut self, wanted: usize, before: u64, budget: &mut Budget) -> Result<usize> {
        self.text.clear();
        self.ends.clear();
        let kind = self.kind;
        let Self { name, max_definition, reader, text, ends, .. } = self;
        let mut out = Batch { name, before, optional: *max_definition > 0, text, ends, budget };
        match reader {
            ColumnReader::BoolColumnReader(reader) => {
                out.read(reader, wanted, |value, out| push(value, out))
            }
            ColumnReader::Int32ColumnReader(reader) => out.read(reader, wanted, |value, out| {
                push(kind.integer(i64::from(*value), u64::from(*value as u32)), out)
            }),
            ColumnReader::Int64ColumnReader(reader) => out
                .read(reader, wanted, |value, out| push(kind.integer(*value, *value as u64), out)),
            ColumnReader::Int96ColumnReader(reader) => {
                out.read(reader, wanted, |value, out| push(guarded(|| Ok(value.to_micros()))?, out))
            }
            ColumnReader::FloatColumnReader(reader) => {
                out.read(reader, wanted, |value, out| push(value, out))
            }
            ColumnReader::DoubleColumnReader(reader) => {
                out.read(reader, wanted, |value, out| push(value, out))
            }
            ColumnReader::ByteArrayColumnReader(reader) => {
                out.read(reader, wanted, |value, out| push_bytes(kind, value, out))
            }
            ColumnReader::FixedLenByteArrayColumnReader(reader) => {
                out.read(reader, wanted, |value, out| push_bytes(kind, value, out))
            }
        }
    }
}

fn push(value: impl std::fmt::Display, out: &mut String) -> Result<()> {
    use std::fmt::Write;
    write!(out, "{value}").map_err(|_| Error::Bug("a string refused text".to_owned()))
}

/// Text, or a big-endian two's-complement decimal.
fn push_bytes(kind: Kind, value: &ByteArray, out: &mut String) -> Result<()> {
    let bytes = value.data();
    if let (Kind::Decimal(scale), 1..=16) = (kind, bytes.len()) {
        let sign = if bytes[0] & 0x80 == 0 { 0_i128 } else { -1 };
        let number = bytes.iter().fold(sign, |number, byte| (number << 8) | i128::from(*byte));
        out.push_str(&decimal(number, scale));
        return Ok(());
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|_| place(None, "bytes that are not UTF-8", "a text column in UTF-8"))?;
    out.push_str(text);
    Ok(())
}

struct Batch<'a> {
    name: &'a str,
    before: u64,
    optional: bool,
    text: &'a mut String,
    ends: &'a mut Vec<usize>,
    budget: &'a mut Budget,
}

impl Batch<'_> {
    fn read<T: DataType>(
        &mut self,
        reader: &mut ColumnReaderImpl<T>,
        wanted: usize,
        push: impl Fn(&T::T, &mut String) -> Result<()>,
    ) -> Result<usize> {
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let mut rows = 0;
        while rows < wanted {
            let (read, _, _) = guarded(|| {
                reader.read_records(wanted - rows, Some(&mut levels), None, &mut values)
            })
            .map_err(|error| self.at(error, rows))?;
            if read == 0 {
                break;
            }
            rows += read;
        }
        let mut values = values.iter();
        for row in 0..rows {
            // A flat column has one level: 0 is null, 1 is a value.
            let is_null = self.optional && levels.get(row) == Some(&0);
            let start = self.text.len();
            if !is_null {
                let value = values.next().ok_or_else(|| {
                    self.at(place(None, "fewer values than rows", "a sound Parquet file"), row)
                })?;
                push(value, self.text).map_err(|error| self.at(error, row))?;
            }
            let length = self.text.len() - start;
            let number = self.before + row as u64 + 1;
            if length > MAX_CELL {
                return Err(place_in(
                    number,
                    self.name,
                    format!("a cell of more than {} MiB", MAX_CELL >> 20),
                    "shorter cells",
                ));
            }
            self.budget.spend(length + size_of::<u32>(), number, self.name)?;
            self.ends.push(self.text.len());
        }
        Ok(rows)
    }

    /// Adds row and column to a data error.
    fn at(&self, error: Error, row: usize) -> Error {
        match error {
            Error::Data(mut error) => {
                error.row = Some(self.before + row as u64 + 1);
                error.column = Some(self.name.to_owned());
                Error::Data(error)
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_keep_their_scale() {
        assert_eq!(decimal(12345, 2), "123.45");
        assert_eq!(decimal(-5, 2), "-0.05");
        assert_eq!(decimal(7, 0), "7");
        let mut text = String::new();
        push_bytes(Kind::Decimal(1), &ByteArray::from(vec![0xFF, 0x85]), &mut text).unwrap();
        assert_eq!(text, "-12.3");
    }
}
