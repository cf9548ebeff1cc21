//! Women's clothing reviews with the shop's department and class of the reviewed item.

use std::path::Path;

use common::data::{Format, ReadOptions, Table};
use common::rng::Seed;
use common::{Error, Result};

use super::parse::Parser;
use super::{Examples, Product, Schema};

/// Reviews split by product.
#[derive(Debug, Clone)]
pub struct Clothing {
    /// Attributes department (6 labels) and class (20 labels).
    pub schema: Schema,
    /// Labelled reviews of products with an odd clothing id.
    pub train: Examples,
    /// Held-out reviews of products with an even clothing id.
    pub test: Examples,
}

/// The attribute schema of the clothing reviews.
///
/// # Errors
/// None with the file that ships with the crate.
pub fn clothing_schema() -> Result<Schema> {
    let schema: Schema = toml::from_str(include_str!("clothing.toml"))
        .map_err(|error| Error::Bug(format!("clothing.toml: {error}")))?;
    schema.check()?;
    Ok(schema)
}

/// Draws `train` and `test` reviews (fewer if the file holds fewer) from different products.
/// Reviews without text or labels are left out. The first `n` train reviews are the same for any
/// `train` ≥ n.
///
/// # Errors
/// A file without the columns of the asset, or with labels outside the schema.
pub fn clothing(path: &Path, seed: Seed, train: usize, test: usize) -> Result<Clothing> {
    let schema = clothing_schema()?;
    let mut options = ReadOptions::select(&[
        "Clothing ID",
        "Title",
        "Review Text",
        "Department Name",
        "Class Name",
    ]);
    options.format = Some(Format::Parquet);
    let table = Table::read(path, &options)?;
    let columns = options.select.unwrap_or_default();
    let [id, title, text, department, class] = columns.as_slice() else {
        return Err(Error::Bug("five columns were selected".into()));
    };
    let ids = table.column(id)?.i64s()?;
    let (title, text) = (table.column(title)?, table.column(text)?);
    let gold = [table.column(department)?, table.column(class)?];
    let parsers: Vec<Parser> = schema.attributes.iter().map(Parser::new).collect();
    let mut parts = [Examples::default(), Examples::default()];
    let sizes = [test, train];
    for row in seed.stream("clothing-reviews").permutation(table.len()) {
        let part = (ids[row] % 2).unsigned_abs() as usize;
        let examples = &mut parts[part];
        let known =
            !text.text(row).trim().is_empty() && gold.iter().all(|g| !g.text(row).is_empty());
        if !known || examples.products.len() == sizes[part] {
            continue;
        }
        for ((attribute, parser), column) in schema.attributes.iter().zip(&parsers).zip(&gold) {
            let cell = column.cell(row);
            let label = parser.value(cell.text).label();
            let label = label.ok_or_else(|| cell.error("a label of the schema"))?;
            examples.gold.entry(attribute.name.clone()).or_default().push(Some(label));
        }
        let number = table.row_number(row).to_string();
        examples.products.push(Product::new(&number, title.text(row), text.text(row)));
    }
    let [test, train] = parts;
    Ok(Clothing { schema, train, test })
}
