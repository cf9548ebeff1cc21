//! Writing tables and files so that a reader never sees half of one.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, LogicalType, Repetition, Type as PhysicalType};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::Type;

use super::Format;
use crate::files::atomic_with;
use crate::{Error, Result};

/// Rows per Parquet row group.
const GROUP_ROWS: usize = 1 << 20;

/// The values of one column to write.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// Text.
    Text(&'a [String]),
    /// Integers.
    Integer(&'a [i64]),
    /// Numbers; a NaN is written as missing (empty cell, null).
    Real(&'a [f64]),
    /// Truth values.
    Bool(&'a [bool]),
}

impl Values<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Text(values) => values.len(),
            Self::Integer(values) => values.len(),
            Self::Real(values) => values.len(),
            Self::Bool(values) => values.len(),
        }
    }

    fn text(&self, row: usize) -> std::borrow::Cow<'_, str> {
        match self {
            Self::Text(values) => values[row].as_str().into(),
            Self::Integer(values) => values[row].to_string().into(),
            Self::Real(values) if values[row].is_nan() => "".into(),
            Self::Real(values) => values[row].to_string().into(),
            Self::Bool(values) => values[row].to_string().into(),
        }
    }

    fn json(&self, row: usize) -> serde_json::Value {
        match self {
            Self::Text(values) => values[row].as_str().into(),
            Self::Integer(values) => values[row].into(),
            Self::Real(values) => values[row].into(),
            Self::Bool(values) => values[row].into(),
        }
    }
}

/// Writes `columns` (name, values) to `path` in the format of its extension (see [`Format::of`];
/// gzip is not written), atomically.
///
/// # Errors
/// [`Error::Io`] when it can't be written (nothing is left behind); [`Error::Usage`] for an unknown
/// extension; [`Error::Bug`] for columns of unequal length.
pub fn write(path: &Path, columns: &[(&str, Values<'_>)]) -> Result<()> {
    match Format::of(path)? {
        (format, false) => write_as(path, format, columns),
        (_, true) => {
            Err(Error::usage(format!("{}: .gz files are read, not written", path.display())))
        }
    }
}

/// Like [`write()`], in a given format.
///
/// # Errors
/// As [`write()`].
pub fn write_as(path: &Path, format: Format, columns: &[(&str, Values<'_>)]) -> Result<()> {
    let rows = columns.first().map_or(0, |(_, values)| values.len());
    if let Some((name, values)) = columns.iter().find(|(_, values)| values.len() != rows) {
        return Err(Error::Bug(format!("column {name} has {} rows, not {rows}", values.len())));
    }
    atomic_with(path, |file| match format {
        Format::Csv => write_delimited(file, b',', rows, columns),
        Format::Tsv => write_delimited(file, b'\t', rows, columns),
        Format::Jsonl => write_jsonl(file, rows, columns),
        Format::Parquet => write_parquet(file, rows, columns),
    })
}

fn write_delimited(
    file: &mut File,
    delimiter: u8,
    rows: usize,
    columns: &[(&str, Values<'_>)],
) -> std::io::Result<()> {
    let mut writer = csv::WriterBuilder::new().delimiter(delimiter).from_writer(file);
    writer.write_record(columns.iter().map(|(name, _)| name)).map_err(csv_error)?;
    for row in 0..rows {
        for (_, values) in columns {
            writer.write_field(values.text(row).as_bytes()).map_err(csv_error)?;
        }
        writer.write_record(None::<&[u8]>).map_err(csv_error)?;
    }
    writer.flush()
}

fn csv_error(error: csv::Error) -> std::io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => std::io::Error::other(format!("{other:?}")),
    }
}

fn write_jsonl(
    file: &mut File,
    rows: usize,
    columns: &[(&str, Values<'_>)],
) -> std::io::Result<()> {
    let mut writer = BufWriter::new(file);
    for row in 0..rows {
        let pairs = columns.iter().map(|(name, values)| ((*name).to_owned(), values.json(row)));
        let object: serde_json::Map<_, _> = pairs.collect();
        serde_json::to_writer(&mut writer, &object)?;
        writer.write_all(b"\n")?;
    }
    writer.flush()
}

fn write_parquet(
    file: &mut File,
    rows: usize,
    columns: &[(&str, Values<'_>)],
) -> std::io::Result<()> {
    let field = |(name, values): &(&str, Values<'_>)| {
        let (physical, logical, repetition) = match values {
            Values::Text(_) => {
                (PhysicalType::BYTE_ARRAY, Some(LogicalType::String), Repetition::REQUIRED)
            }
            Values::Integer(_) => (PhysicalType::INT64, None, Repetition::REQUIRED),
            Values::Real(_) => (PhysicalType::DOUBLE, None, Repetition::OPTIONAL),
            Values::Bool(_) => (PhysicalType::BOOLEAN, None, Repetition::REQUIRED),
        };
        let field = Type::primitive_type_builder(name, physical)
            .with_logical_type(logical)
            .with_repetition(repetition)
            .build();
        field.map(Arc::new).map_err(std::io::Error::other)
    };
    let fields = columns.iter().map(field).collect::<std::io::Result<Vec<_>>>()?;
    let schema = Type::group_type_builder("schema")
        .with_fields(fields)
        .build()
        .map_err(std::io::Error::other)?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties))
        .map_err(std::io::Error::other)?;
    for start in (0..rows).step_by(GROUP_ROWS) {
        let range = start..rows.min(start + GROUP_ROWS);
        let mut group = writer.next_row_group().map_err(std::io::Error::other)?;
        for (_, values) in columns {
            write_chunk(&mut group, values, range.clone()).map_err(std::io::Error::other)?;
        }
        group.close().map_err(std::io::Error::other)?;
    }
    writer.close().map_err(std::io::Error::other)?;
    Ok(())
}

fn write_chunk(
    group: &mut SerializedRowGroupWriter<'_, &mut File>,
    values: &Values<'_>,
    rows: std::ops::Range<usize>,
) -> parquet::errors::Result<()> {
    let Some(mut column) = group.next_column()? else {
        return Ok(());
    };
    match values {
        Values::Text(values) => {
            let bytes: Vec<_> =
                values[rows].iter().map(|text| ByteArray::from(text.as_bytes().to_vec())).collect();
            column.typed::<ByteArrayType>().write_batch(&bytes, None, None)?;
        }
        Values::Integer(values) => {
            column.typed::<Int64Type>().write_batch(&values[rows], None, None)?;
        }
        Values::Real(values) => {
            let levels: Vec<i16> =
                values[rows.clone()].iter().map(|value| i16::from(!value.is_nan())).collect();
            let present: Vec<f64> =
                values[rows].iter().copied().filter(|value| !value.is_nan()).collect();
            column.typed::<DoubleType>().write_batch(&present, Some(&levels), None)?;
        }
        Values::Bool(values) => {
            column.typed::<BoolType>().write_batch(&values[rows], None, None)?;
        }
    }
    column.close()
}
