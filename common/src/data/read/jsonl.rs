//! JSON Lines: one object per line.

use std::collections::HashMap;
use std::io::{BufRead, Read};
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use super::{
    Each, MAX_CELL, MAX_COLUMNS, Projection, Row, Text, open_text, place, place_in, shorten,
};
use crate::data::read::ReadOptions;
use crate::{Error, Result};

/// Integers from here on do not fit in 64 bits; serde_json would round them.
const TWO_TO_64: f64 = 18_446_744_073_709_551_616.0;

pub(super) fn visit(
    path: &Path,
    gzip: bool,
    options: &ReadOptions,
    each: Each<'_>,
) -> Result<Vec<String>> {
    let header = match &options.select {
        Some(select) => select.iter().map(|name| name_in_file(name, options)).collect(),
        None => all_keys(path, gzip)?,
    };
    // With a selection the header is made from it, so renaming and selecting always succeed here.
    let projection = Projection::new(path, &header, options)?;
    let index: HashMap<&str, usize> =
        header.iter().enumerate().map(|(index, name)| (name.as_str(), index)).collect();
    let mut present = vec![false; header.len()];
    let mut cells = vec![String::new(); header.len()];
    let (mut text, mut ends) = (String::new(), Vec::new());
    let mut lines = Lines::new(open_text(path, gzip)?);
    while let Some((number, object)) = lines.next()? {
        cells.iter_mut().for_each(String::clear);
        for (key, value) in object.0 {
            if let Some(&column) = index.get(key.as_str()) {
                present[column] = true;
                cells[column] = cell_text(number, &key, value)?;
            }
        }
        text.clear();
        ends.clear();
        for cell in &cells {
            text.push_str(cell);
            ends.push(text.len());
        }
        each(&Row {
            number,
            path,
            columns: &projection.columns,
            source: &projection.source,
            text: &text,
            ends: &ends,
        })?;
    }
    let absent = present.iter().position(|present| !present);
    if let Some(absent) = absent.filter(|_| options.select.is_some() && lines.any) {
        // Reads the file again only to name the columns that it has.
        super::find_column(path, &all_keys(path, gzip)?, &header[absent])?;
    }
    Ok(projection.columns)
}

fn name_in_file(name: &str, options: &ReadOptions) -> String {
    let renamed = options.rename.iter().find(|(_, to)| to == name);
    renamed.map_or_else(|| name.to_owned(), |(from, _)| from.clone())
}

/// The keys of all objects in the order in which they first appear.
fn all_keys(path: &Path, gzip: bool) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let mut lines = Lines::new(open_text(path, gzip)?);
    while let Some((number, object)) = lines.next()? {
        for (key, _) in object.0 {
            if !seen.contains(&key) {
                if keys.len() == MAX_COLUMNS {
                    return Err(place(
                        Some(number),
                        format!("more than {MAX_COLUMNS} different keys"),
                        "the same keys in every object",
                    ));
                }
                seen.insert(key.clone());
                keys.push(key);
            }
        }
    }
    Ok(keys)
}

fn cell_text(row: u64, key: &str, value: Value) -> Result<String> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text),
        Value::Number(number) => match number.as_f64() {
            Some(value) if number.is_f64() && value.abs() >= TWO_TO_64 && value.fract() == 0.0 => {
                Err(place_in(
                    row,
                    key,
                    format!("a number of {value:e}"),
                    "an integer of at most 64 bits; write longer ids as strings",
                ))
            }
            _ => Ok(number.to_string()),
        },
        other => Ok(other.to_string()),
    }
}

/// The objects of a file with their line numbers.
struct Lines {
    input: Text,
    buffer: Vec<u8>,
    line: u64,
    any: bool,
}

impl Lines {
    fn new(input: Text) -> Self {
        Self { input, buffer: Vec::new(), line: 0, any: false }
    }

    fn next(&mut self) -> Result<Option<(u64, Object)>> {
        loop {
            self.buffer.clear();
            let gzip = self.input.gzip;
            let limit = MAX_CELL as u64 + 1;
            let read = (&mut self.input.reader)
                .take(limit)
                .read_until(b'\n', &mut self.buffer)
                .map_err(|error| Text::failure(gzip, error))?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            if read as u64 == limit {
                return Err(place(
                    Some(self.line),
                    format!("a line of more than {} MiB", MAX_CELL >> 20),
                    "one JSON object per line",
                ));
            }
            if self.buffer.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            self.any = true;
            return self.parse().map(|object| Some((self.line, object)));
        }
    }

    fn parse(&self) -> Result<Object> {
        let text = std::str::from_utf8(self.buffer.trim_ascii_end()).map_err(|error| {
            place(
                Some(self.line),
                format!("bytes that are not UTF-8 at byte {}", error.valid_up_to() + 1),
                "UTF-8 text; save the file again in that encoding",
            )
        })?;
        serde_json::from_str(text).map_err(|error| self.problem(text, &error))
    }

    fn problem(&self, text: &str, error: &serde_json::Error) -> Error {
        // serde_json adds " at line 1 column N"; the line is always 1 here.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default().to_owned();
        let place_in_line = format!("character {}", error.column());
        place(
            Some(self.line),
            format!("{} ({message} at {place_in_line})", shorten(text)),
            "one JSON object per line",
        )
    }
}

/// Key–value pairs in order, each key once.
struct Object(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Object, A::Error> {
        let mut pairs = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some((key, value)) = map.next_entry::<String, Value>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format_args!(
                    "the key {} stands twice",
                    shorten(&key)
                )));
            }
            pairs.push((key, value));
        }
        Ok(Object(pairs))
    }
}
