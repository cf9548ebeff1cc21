//! What each feature means: a TOML file with one table per feature.

use std::path::Path;

use common::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The user features in their order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    /// One entry per column of the feature matrix.
    pub features: Vec<Feature>,
}

/// One user feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// Column name in files, unique.
    pub name: String,
    /// Who has a high value, as a noun phrase: "people aged 18 to 24". LLMs see only this and the
    /// name.
    pub description: String,
    /// How values are read.
    #[serde(default)]
    pub kind: Kind,
    /// Subtracted from real values.
    #[serde(default)]
    pub mean: f64,
    /// Real values are divided by it; above 0.
    #[serde(default = "one")]
    pub std: f64,
}

fn one() -> f64 {
    1.0
}

/// How a feature's values are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// 0 or 1, used as it stands.
    #[default]
    Binary,
    /// Any number, standardised by mean and std.
    Real,
}

impl Schema {
    /// Reads a TOML file of `[[features]]` tables.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Data`] with file and feature.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let schema: Self = toml::from_str(&text).map_err(|error| {
            let line = error.message().to_owned();
            let found = match error.span() {
                Some(span) => {
                    let row = text[..span.start.min(text.len())].lines().count().max(1);
                    format!("{line} near line {row}")
                }
                None => line,
            };
            Error::data(found, "[[features]] tables with name, description, kind, mean and std")
                .in_file(path)
        })?;
        schema.check().map_err(|error| error.in_file(path))?;
        Ok(schema)
    }

    /// Names unique and not empty, numbers finite, std above 0, at least one feature.
    ///
    /// # Errors
    /// [`Error::Data`] that names the feature.
    pub fn check(&self) -> Result<()> {
        if self.features.is_empty() {
            return Err(Error::data(
                "a schema without features",
                "at least one [[features]] table",
            ));
        }
        let mut names = std::collections::BTreeSet::new();
        for feature in &self.features {
            let name = &feature.name;
            let problem = if name.trim().is_empty() {
                "an empty name".to_owned()
            } else if !names.insert(name) {
                "its name twice".to_owned()
            } else if feature.description.trim().is_empty() {
                "no description, which is all that an LLM sees".to_owned()
            } else if !(feature.std > 0.0 && feature.std.is_finite()) {
                format!("std {}", feature.std)
            } else if !feature.mean.is_finite() {
                format!("mean {}", feature.mean)
            } else {
                continue;
            };
            return Err(Error::data(
                format!("feature {name:?} with {problem}"),
                "unique names, a description, a finite mean and a std above 0",
            ));
        }
        Ok(())
    }

    /// Number of features.
    pub fn len(&self) -> usize {
        self.features.len()
    }

    /// True without features.
    pub fn is_empty(&self) -> bool {
        self.features.is_empty()
    }

    /// Index of a feature by name.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.features.iter().position(|feature| feature.name == name)
    }

    /// The value that models see for a raw value of feature `index`.
    pub fn standardise(&self, index: usize, raw: f64) -> f64 {
        let feature = &self.features[index];
        match feature.kind {
            Kind::Binary => raw,
            Kind::Real => (raw - feature.mean) / feature.std,
        }
    }

    /// SHA-256 of names, kinds and scales. Weights may only meet features of the same hash.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        for f in &self.features {
            hash.update(format!("{:?} {:?} {:e} {:e}\n", f.name, f.kind, f.mean, f.std));
        }
        hex(&hash.finalize())
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
