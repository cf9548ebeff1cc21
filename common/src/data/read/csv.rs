//! CSV and TSV through csv-core, whose calls tell exactly which bytes belong to a record: that gives
//! line numbers and finds a quote that is never closed.

use std::path::Path;

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};

use super::{Each, MAX_CELL, MAX_COLUMNS, Projection, Row, Text, open_text, place, place_in};
use crate::Result;
use crate::data::read::ReadOptions;

pub(super) fn visit(
    path: &Path,
    gzip: bool,
    delimiter: u8,
    options: &ReadOptions,
    each: Each<'_>,
) -> Result<Vec<String>> {
    let mut records = Records::new(open_text(path, gzip)?, delimiter);
    if !records.next()? {
        return Err(place(None, "a file of blank lines", "a header and at least one row"));
    }
    let header: Vec<String> = {
        let text = records.text(&[])?;
        (0..records.fields).map(|field| records.cell(text, field).to_owned()).collect()
    };
    let projection = Projection::new(path, &header, options)?;
    while records.next()? {
        if records.fields != header.len() {
            return Err(place(
                Some(records.line),
                format!("{} cells", records.fields),
                format!("{}, as many as the header has", header.len()),
            ));
        }
        let text = records.text(&header)?;
        each(&Row {
            number: records.line,
            path,
            columns: &projection.columns,
            source: &projection.source,
            text,
            ends: &records.ends[..records.fields],
        })?;
    }
    Ok(projection.columns)
}

/// The records of a file, one at a time.
struct Records {
    input: Text,
    parser: Reader,
    /// Unquoted bytes of the current record's cells, one after the other.
    output: Vec<u8>,
    /// Where each cell ends in `output`.
    ends: Vec<usize>,
    fields: usize,
    /// Line on which the current record starts, from 1.
    line: u64,
    /// Line of the next byte.
    next_line: u64,
    after_cr: bool,
}

impl Records {
    fn new(input: Text, delimiter: u8) -> Self {
        Self {
            input,
            parser: ReaderBuilder::new().delimiter(delimiter).build(),
            output: vec![0; 4096],
            ends: vec![0; 64],
            fields: 0,
            line: 1,
            next_line: 1,
            after_cr: false,
        }
    }

    /// Parses the next record; false at the end of the file.
    fn next(&mut self) -> Result<bool> {
        if !self.skip_line_ends()? {
            return Ok(false);
        }
        self.line = self.next_line;
        let (mut written, mut fields) = (0, 0);
        loop {
            let input = self.input.fill()?;
            let at_end = input.is_empty();
            // A line end closes an unquoted last record; inside quotes it is only more text.
            let input = if at_end { b"\n" } else { input };
            let (result, consumed, out, ended) = self.parser.read_record(
                input,
                &mut self.output[written..],
                &mut self.ends[fields..],
            );
            for &byte in &input[..consumed] {
                if byte == b'\r' || (byte == b'\n' && !self.after_cr) {
                    self.next_line += 1;
                }
                self.after_cr = byte == b'\r';
            }
            if !at_end {
                self.input.consume(consumed);
            }
            written += out;
            fields += ended;
            match result {
                ReadRecordResult::Record => {
                    self.fields = fields;
                    return Ok(true);
                }
                ReadRecordResult::InputEmpty if at_end => {
                    return Err(place(
                        Some(self.line),
                        "a quote that is never closed",
                        "a closing quote; write a quote inside a quoted cell twice",
                    ));
                }
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => {
                    let start = if fields == 0 { 0 } else { self.ends[fields - 1] };
                    let room = start + MAX_CELL;
                    if self.output.len() >= room {
                        return Err(place(
                            Some(self.line),
                            format!("a cell {} of more than {} MiB", fields + 1, MAX_CELL >> 20),
                            "shorter cells; a quote may not be closed",
                        ));
                    }
                    self.output.resize((self.output.len() * 2).min(room), 0);
                }
                ReadRecordResult::OutputEndsFull => {
                    if fields > MAX_COLUMNS {
                        return Err(place(
                            Some(self.line),
                            format!("more than {MAX_COLUMNS} cells"),
                            "fewer columns",
                        ));
                    }
                    self.ends.resize(self.ends.len() * 2, 0);
                }
                ReadRecordResult::End => return Ok(false),
            }
        }
    }

    /// Skips blank lines; false at the end of the file.
    fn skip_line_ends(&mut self) -> Result<bool> {
        loop {
            let input = self.input.fill()?;
            if input.is_empty() {
                return Ok(false);
            }
            let blank = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            let done = blank < input.len();
            for &byte in &input[..blank] {
                if byte == b'\r' || !self.after_cr {
                    self.next_line += 1;
                }
                self.after_cr = byte == b'\r';
            }
            self.input.consume(blank);
            if done {
                self.after_cr = false;
                return Ok(true);
            }
        }
    }

    /// The current record's cells as text; `header` names the column of a bad one.
    fn text(&self, header: &[String]) -> Result<&str> {
        let end = if self.fields == 0 { 0 } else { self.ends[self.fields - 1] };
        let bytes = &self.output[..end];
        let bad_cell = match std::str::from_utf8(bytes) {
            Ok(text) => {
                // Two halves of a character may stand in neighbouring cells.
                match self.ends[..self.fields].iter().position(|end| !text.is_char_boundary(*end)) {
                    None => return Ok(text),
                    Some(cell) => cell,
                }
            }
            Err(error) => {
                self.ends[..self.fields].partition_point(|end| *end <= error.valid_up_to())
            }
        };
        let column = match header.get(bad_cell) {
            Some(name) => name.clone(),
            None => format!("number {}", bad_cell + 1),
        };
        Err(place_in(
            self.line,
            &column,
            "bytes that are not UTF-8",
            "UTF-8 text; save the file again in that encoding",
        ))
    }

    fn cell<'a>(&self, text: &'a str, field: usize) -> &'a str {
        let start = if field == 0 { 0 } else { self.ends[field - 1] };
        &text[start..self.ends[field]]
    }
}
