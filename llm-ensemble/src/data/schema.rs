//! The attribute schema: which attributes are asked for and which labels each of them may have.

use std::collections::HashMap;
use std::path::Path;

use common::{Error, Result};
use serde::{Deserialize, Serialize};

/// A file of attributes (TOML `[[attributes]]` tables, or the same as JSON).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    /// The attributes, in the order of the output.
    pub attributes: Vec<Attribute>,
}

/// One attribute with its closed label set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attribute {
    /// Name, as it appears in votes and predictions.
    pub name: String,
    /// One sentence for prompts.
    #[serde(default)]
    pub definition: String,
    /// Words that a label's phrase completes, for cloze prompts: `"The reviewed item is a"`.
    #[serde(default)]
    pub cloze: String,
    /// The closed label set; its length is L of the paper's equations.
    pub labels: Vec<LabelDef>,
    /// Names of the labelers that are asked about this attribute; empty = all.
    #[serde(default)]
    pub labelers: Vec<String>,
}

/// One label of a closed set. A plain string stands for a label without further fields.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, from = "LabelForm")]
pub struct LabelDef {
    /// Name, as it appears in votes and predictions.
    pub name: String,
    /// What a text with this label is about, for zero-shot encoders; empty = the name.
    pub description: String,
    /// Completion of the attribute's cloze; empty = the name in lower case.
    pub phrase: String,
    /// Other spellings that the answer parser accepts.
    pub synonyms: Vec<String>,
    /// Words and phrases that count as a vote of the keyword labeler, besides name and synonyms.
    pub keywords: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum LabelForm {
    Name(String),
    Full {
        name: String,
        #[serde(default)]
        description: String,
        #[serde(default)]
        phrase: String,
        #[serde(default)]
        synonyms: Vec<String>,
        #[serde(default)]
        keywords: Vec<String>,
    },
}

impl From<LabelForm> for LabelDef {
    fn from(form: LabelForm) -> Self {
        match form {
            LabelForm::Name(name) => Self { name, ..Self::default() },
            LabelForm::Full { name, description, phrase, synonyms, keywords } => {
                Self { name, description, phrase, synonyms, keywords }
            }
        }
    }
}

impl LabelDef {
    /// The description, or the name when there is none.
    pub fn describe(&self) -> &str {
        if self.description.is_empty() { &self.name } else { &self.description }
    }

    /// The completion of the attribute's cloze.
    pub fn completion(&self) -> String {
        if self.phrase.is_empty() { self.name.to_lowercase() } else { self.phrase.clone() }
    }
}

impl Attribute {
    /// Index of the label called exactly `name`.
    pub fn label(&self, name: &str) -> Option<usize> {
        self.labels.iter().position(|label| label.name == name)
    }

    /// LabelDef names in schema order.
    pub fn names(&self) -> Vec<&str> {
        self.labels.iter().map(|label| label.name.as_str()).collect()
    }
}

impl Schema {
    /// Reads and checks a `.toml` or `.json` file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let json = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("json"));
        let schema: Self = if json {
            serde_json::from_str(&text)
                .map_err(|e| Error::data(e.to_string(), SHAPE).in_file(path))?
        } else {
            toml::from_str(&text)
                .map_err(|e| Error::data(e.to_string().trim().to_owned(), SHAPE).in_file(path))?
        };
        schema.check().map_err(|e| e.in_file(path))?;
        Ok(schema)
    }

    /// Names are present and unique, every label set has two labels, and no spelling belongs to
    /// two labels of one attribute.
    pub fn check(&self) -> Result<()> {
        if self.attributes.is_empty() {
            return Err(Error::data("no attribute", "at least one [[attributes]] table"));
        }
        let mut seen = HashMap::new();
        for attribute in &self.attributes {
            let name = &attribute.name;
            if name.trim().is_empty() {
                return Err(Error::data("an attribute without a name", "a name"));
            }
            if seen.insert(name, ()).is_some() {
                return Err(Error::data(format!("attribute {name:?} twice"), "unique names"));
            }
            if attribute.labels.len() < 2 {
                return Err(Error::data(
                    format!("{} labels for attribute {name:?}", attribute.labels.len()),
                    "a closed set of at least 2 labels",
                ));
            }
            let mut owner = HashMap::new();
            for (index, label) in attribute.labels.iter().enumerate() {
                for spelling in std::iter::once(&label.name).chain(&label.synonyms) {
                    let key = super::parse::normalise(spelling);
                    if key.is_empty() {
                        return Err(Error::data(
                            format!("an empty label or synonym in attribute {name:?}"),
                            "words",
                        ));
                    }
                    if owner.insert(key, index).is_some_and(|other| other != index) {
                        return Err(Error::data(
                            format!("{spelling:?} for two labels of attribute {name:?}"),
                            "spellings that differ in more than case and white space",
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// The attribute called `name`.
    pub fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|attribute| attribute.name == name)
    }
}

const SHAPE: &str = "[[attributes]] tables with name, labels and, if wanted, definition, cloze, \
                     labelers; a label is a string or a table with name, description, phrase, \
                     synonyms, keywords";

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Schema> {
        let schema: Schema = toml::from_str(text).unwrap();
        schema.check().map(|()| schema)
    }

    #[test]
    fn labels_may_be_strings_or_tables() {
        let schema = parse(
            r#"
            [[attributes]]
            name = "gender"
            labels = ["Male", { name = "Female", synonyms = ["women"] }]
            "#,
        )
        .unwrap();
        let gender = &schema.attributes[0];
        assert_eq!(gender.names(), ["Male", "Female"]);
        assert_eq!(gender.labels[1].synonyms, ["women"]);
        assert_eq!(gender.labels[0].completion(), "male");
    }

    #[test]
    fn bad_schemas_are_refused_with_the_reason() {
        let one = "[[attributes]]\nname = \"a\"\nlabels = [\"x\"]";
        assert!(parse(one).unwrap_err().to_string().contains("1 labels"));
        let shared = "[[attributes]]\nname = \"a\"\nlabels = [\"Red\", \" red \"]";
        assert!(parse(shared).unwrap_err().to_string().contains("two labels"));
        let twice = "[[attributes]]\nname = \"a\"\nlabels = [\"x\",\"y\"]\n";
        assert!(parse(&format!("{twice}{twice}")).unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn unknown_keys_are_refused() {
        let text = "[[attributes]]\nname = \"a\"\nlabels = [\"x\",\"y\"]\nsynonym = []";
        assert!(toml::from_str::<Schema>(text).is_err());
    }
}
