//! Product, vote and gold files (CSV, TSV, JSONL, Parquet).
//!
//! Rules for what files hold beyond the plain case, all set in [`InputConfig`]:
//! cells listed in `missing` are no answer; a label outside a given schema is an error with row
//! and column, or no answer; several votes of one worker on one item follow `duplicates`; an empty
//! item or worker is an error.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use common::data::{Cell, Duplicates, ReadOptions, Table, visit};
use common::error::DataError;
use common::{Error, Result};

use super::parse::Parser;
use super::{Examples, Product, Schema};
use crate::config::{InputConfig, Layout, UnknownLabels};
use crate::votes::{Votes, VotesBuilder};

/// The votes of each attribute of a file, in order of first appearance. The attribute is "" in a
/// file without an attribute column.
pub type AttributeVotes = Vec<(String, Votes)>;

/// What [`read_votes`] left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct VoteStats {
    /// Data rows of the file.
    pub rows: u64,
    /// Cells without an answer.
    pub missing: u64,
    /// Labels outside the schema, taken as no answer.
    pub unknown_labels: u64,
}

/// Reads votes in long form (item, worker, label and, if there, attribute) or wide form (item, if
/// there attribute, and one column per worker), row by row.
///
/// With a `schema`, labels are matched by name and synonym (case and white space ignored) and the
/// label set of each attribute is the schema's; without one it is what occurs.
///
/// # Errors
/// Data errors with row and column; see the module.
pub fn read_votes(
    path: &Path,
    input: &InputConfig,
    schema: Option<&Schema>,
) -> Result<(AttributeVotes, VoteStats)> {
    let mut reader = Reader::new(input, schema);
    visit(path, &ReadOptions::default(), |row| {
        let columns = match &reader.columns {
            Some(columns) => columns.clone(),
            None => reader.columns.insert(Columns::find(path, row.columns(), input)?).clone(),
        };
        reader.row(&columns, |index| row.cell(index))
    })?;
    let stats = reader.stats;
    let finish = |(name, builder): (String, VotesBuilder)| {
        Ok((name, builder.finish(input.duplicates).map_err(|error| error.in_file(path))?))
    };
    let votes = reader.attributes.into_iter().map(finish).collect::<Result<_>>()?;
    Ok((votes, stats))
}

/// Indices of the columns of a vote file.
#[derive(Debug, Clone)]
struct Columns {
    item: usize,
    attribute: Option<usize>,
    votes: VoteColumns,
}

#[derive(Debug, Clone)]
enum VoteColumns {
    Long {
        worker: usize,
        label: usize,
    },
    /// Index and name of every worker.
    Wide(Rc<[(usize, String)]>),
}

impl Columns {
    fn find(path: &Path, names: &[String], input: &InputConfig) -> Result<Self> {
        let place = |name: &str| names.iter().position(|column| column == name);
        let need = |name: &str| place(name).ok_or_else(|| no_column(path, names, name));
        let item = need(&input.item)?;
        let attribute = place(&input.attribute);
        let long = match input.layout {
            Layout::Long => true,
            Layout::Wide => false,
            Layout::Auto => place(&input.worker).is_some() || place(&input.vote).is_some(),
        };
        let votes = if long {
            VoteColumns::Long { worker: need(&input.worker)?, label: need(&input.vote)? }
        } else {
            let others = names.iter().cloned().enumerate();
            let workers: Rc<[_]> =
                others.filter(|(at, _)| *at != item && Some(*at) != attribute).collect();
            if workers.is_empty() {
                return Err(no_column(path, names, &input.worker));
            }
            VoteColumns::Wide(workers)
        };
        Ok(Self { item, attribute, votes })
    }
}

fn no_column(path: &Path, names: &[String], wanted: &str) -> Error {
    let shown: Vec<&str> = names.iter().take(20).map(String::as_str).collect();
    let close = |name: &&String| strsim::jaro(name, wanted);
    let nearest = names.iter().max_by(|a, b| close(a).total_cmp(&close(b)));
    let nearest = nearest
        .filter(|name| close(name) > 0.7)
        .map_or_else(String::new, |name| format!(" (the nearest is {name:?})"));
    DataError {
        path: Some(path.to_path_buf()),
        row: Some(1),
        column: Some(wanted.to_owned()),
        found: format!("{} columns: {}", names.len(), shown.join(", ")),
        expected: format!(
            "a column {wanted:?}{nearest}; long files have item, worker and label, wide files item \
             and one column per worker; other names are set with --set input.item=NAME and so on"
        ),
    }
    .into()
}

struct Reader<'a> {
    input: &'a InputConfig,
    schema: Option<&'a Schema>,
    parsers: Vec<Parser>,
    columns: Option<Columns>,
    attributes: Vec<(String, VotesBuilder)>,
    by_name: HashMap<String, usize>,
    stats: VoteStats,
}

impl<'a> Reader<'a> {
    fn new(input: &'a InputConfig, schema: Option<&'a Schema>) -> Self {
        let parsers = schema
            .map_or_else(Vec::new, |schema| schema.attributes.iter().map(Parser::new).collect());
        Self {
            input,
            schema,
            parsers,
            columns: None,
            attributes: Vec::new(),
            by_name: HashMap::new(),
            stats: VoteStats::default(),
        }
    }

    fn row<'c>(&mut self, columns: &Columns, cell: impl Fn(usize) -> Cell<'c>) -> Result<()> {
        self.stats.rows += 1;
        let item = cell(columns.item).non_empty()?;
        let attribute = match columns.attribute {
            Some(index) => self.attribute(&cell(index))?,
            None => self.only_attribute()?,
        };
        match &columns.votes {
            VoteColumns::Long { worker, label } => {
                let worker = cell(*worker).non_empty()?;
                self.vote(attribute, item, worker, &cell(*label))
            }
            VoteColumns::Wide(workers) => {
                for (index, worker) in workers.iter() {
                    self.vote(attribute, item, worker, &cell(*index))?;
                }
                Ok(())
            }
        }
    }

    fn attribute(&mut self, cell: &Cell<'_>) -> Result<usize> {
        let name = cell.non_empty()?;
        if let Some(&known) = self.by_name.get(name) {
            return Ok(known);
        }
        if let Some(schema) = self.schema
            && schema.attribute(name).is_none()
        {
            let names: Vec<&str> = schema.attributes.iter().map(|a| a.name.as_str()).collect();
            return Err(cell.error(format!("an attribute of the schema: {}", names.join(", "))));
        }
        self.add(name)
    }

    /// The attribute of a file without an attribute column: that of a schema with only one.
    fn only_attribute(&mut self) -> Result<usize> {
        if let Some((_, &known)) = self.by_name.iter().next() {
            return Ok(known);
        }
        match self.schema.map(|schema| schema.attributes.as_slice()) {
            None => self.add(""),
            Some([only]) => self.add(&only.name),
            Some(several) => Err(Error::data(
                format!("no attribute column, and {} attributes in the schema", several.len()),
                "a column that names the attribute of each row",
            )),
        }
    }

    fn add(&mut self, name: &str) -> Result<usize> {
        let builder = match self.schema.and_then(|schema| schema.attribute(name)) {
            Some(attribute) => VotesBuilder::with_labels(&attribute.names())?,
            None => VotesBuilder::new(),
        };
        self.by_name.insert(name.to_owned(), self.attributes.len());
        self.attributes.push((name.to_owned(), builder));
        Ok(self.attributes.len() - 1)
    }

    fn vote(&mut self, attribute: usize, item: &str, worker: &str, cell: &Cell<'_>) -> Result<()> {
        let (name, builder) = &mut self.attributes[attribute];
        let text = cell.text.trim();
        if self.input.missing.iter().any(|missing| missing == text) {
            self.stats.missing += 1;
            return builder.push_missing(item, worker);
        }
        let place = |error: Error| match error {
            Error::Data(error) => cell.error(format!("{} (found {})", error.expected, error.found)),
            other => other,
        };
        let Some(schema) = self.schema else {
            return builder.push(item, worker, text).map_err(place);
        };
        let known = schema.attributes.iter().position(|a| a.name == *name);
        let index = known.ok_or_else(|| Error::Bug(format!("attribute {name} left the schema")))?;
        match (self.parsers[index].value(text).label(), self.input.unknown_labels) {
            (Some(label), _) => {
                let label = &schema.attributes[index].labels[label].name;
                builder.push(item, worker, label).map_err(place)
            }
            (None, UnknownLabels::Missing) => {
                self.stats.unknown_labels += 1;
                builder.push_missing(item, worker)
            }
            (None, UnknownLabels::Error) => {
                let names = schema.attributes[index].names();
                Err(cell.error(format!(
                    "one of the {} labels of {name}: {}; or set input.unknown_labels=missing",
                    names.len(),
                    names.join(", ")
                )))
            }
        }
    }
}

/// Gold labels by attribute and item. The attribute is "" in a file without an attribute column.
pub type Gold = HashMap<String, HashMap<String, String>>;

/// Reads true labels: item, gold column and, if there, attribute. Rows with a missing label are
/// left out.
///
/// # Errors
/// Data errors with row and column; two different labels for one item.
pub fn read_gold(path: &Path, input: &InputConfig) -> Result<Gold> {
    let mut gold = Gold::new();
    let mut found = None;
    visit(path, &ReadOptions::default(), |row| {
        let names = row.columns();
        let (item, truth, attribute) = match found {
            Some(columns) => columns,
            None => {
                let place = |name: &str| names.iter().position(|column| column == name);
                let need = |name: &str| place(name).ok_or_else(|| no_column(path, names, name));
                *found.insert((need(&input.item)?, need(&input.gold)?, place(&input.attribute)))
            }
        };
        let label = row.cell(truth);
        let text = label.text.trim();
        if input.missing.iter().any(|missing| missing == text) {
            return Ok(());
        }
        let attribute = match attribute {
            Some(index) => row.cell(index).non_empty()?,
            None => "",
        };
        let item = row.cell(item).non_empty()?;
        let known = gold.entry(attribute.to_owned()).or_default();
        match known.insert(item.to_owned(), text.to_owned()) {
            Some(other) if other != text => {
                Err(label.error(format!("{other:?}, which an earlier row says about {item:?}")))
            }
            _ => Ok(()),
        }
    })?;
    Ok(gold)
}

/// Reads products. Ids must be unique; without an id column configured, the row number is the id.
///
/// # Errors
/// Data errors with row and column; a product without any text.
pub fn read_products(path: &Path, input: &InputConfig) -> Result<Vec<Product>> {
    products(&product_table(path, input)?, input)
}

/// Reads products with a gold column per attribute of `schema`, named like it; an attribute
/// without a column, or a missing cell, is unknown.
///
/// # Errors
/// As [`read_products`]; a label outside the schema; no gold column at all.
pub fn read_examples(path: &Path, input: &InputConfig, schema: &Schema) -> Result<Examples> {
    let table = product_table(path, input)?;
    let products = products(&table, input)?;
    let mut gold = HashMap::new();
    for attribute in schema.attributes.iter().filter(|a| table.has_column(&a.name)) {
        let column = table.column(&attribute.name)?;
        let parser = Parser::new(attribute);
        let mut labels = Vec::with_capacity(table.len());
        for row in 0..table.len() {
            let cell = column.cell(row);
            let text = cell.text.trim();
            labels.push(if input.missing.iter().any(|missing| missing == text) {
                None
            } else {
                let label = parser.value(text).label();
                Some(label.ok_or_else(|| {
                    cell.error(format!("one of {}", attribute.names().join(", ")))
                })?)
            });
        }
        gold.insert(attribute.name.clone(), labels);
    }
    if gold.is_empty() {
        let names: Vec<&str> = schema.attributes.iter().map(|a| a.name.as_str()).collect();
        return Err(no_column(path, &table.columns, &names.join(" or ")));
    }
    Ok(Examples { products, gold })
}

fn product_table(path: &Path, input: &InputConfig) -> Result<Table> {
    let duplicates = if input.id.is_empty() {
        Duplicates::Keep
    } else {
        Duplicates::Refuse(vec![input.id.clone()])
    };
    Table::read(path, &ReadOptions { duplicates, ..ReadOptions::default() })
}

fn products(table: &Table, input: &InputConfig) -> Result<Vec<Product>> {
    let optional = |name: &str| match name {
        "" => Ok(None),
        // The default title column may be absent; a configured one may not.
        "title" if !table.has_column(name) => Ok(None),
        name => table.column(name).map(Some),
    };
    let id = if input.id.is_empty() { None } else { Some(table.column(&input.id)?) };
    let title = optional(&input.title)?;
    let description = table.column(&input.description)?;
    let mut products = Vec::with_capacity(table.len());
    for row in 0..table.len() {
        let id = match id {
            Some(column) => column.cell(row).non_empty()?.to_owned(),
            None => table.row_number(row).to_string(),
        };
        let title = title.map_or("", |column| column.text(row));
        let text = description.cell(row);
        if title.trim().is_empty() {
            text.non_empty()?;
        }
        products.push(Product::new(&id, title, text.text));
    }
    Ok(products)
}
