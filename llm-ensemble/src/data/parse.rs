//! From an LLM's free text to a label id: normalise, match names and synonyms, else missing.

use std::collections::HashMap;

use super::Attribute;

/// Lower case, trimmed, inner white space collapsed, without quotes, fences and final stops.
pub fn normalise(text: &str) -> String {
    let outer = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '.' | '*' | ',');
    text.trim_matches(outer).split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// What an answer said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// A label of the closed set, by index.
    Label(usize),
    /// "unknown", "n/a" and the like: the labeler chose not to answer.
    Abstained,
    /// Anything else.
    Unusable,
}

impl Parsed {
    /// The label, if it is one.
    pub fn label(self) -> Option<usize> {
        match self {
            Self::Label(index) => Some(index),
            Self::Abstained | Self::Unusable => None,
        }
    }
}

/// Spellings of one attribute's labels.
#[derive(Debug, Clone)]
pub struct Parser {
    labels: HashMap<String, usize>,
    key: String,
}

impl Parser {
    /// Knows names and synonyms of `attribute`.
    pub fn new(attribute: &Attribute) -> Self {
        let mut labels = HashMap::new();
        for (index, label) in attribute.labels.iter().enumerate() {
            for spelling in std::iter::once(&label.name).chain(&label.synonyms) {
                labels.entry(normalise(spelling)).or_insert(index);
            }
        }
        Self { labels, key: normalise(&attribute.name) }
    }

    /// Reads one value: a label, an abstention, or neither. `"department: Tops"` counts as Tops.
    pub fn value(&self, text: &str) -> Parsed {
        let text = normalise(text);
        let bare = text.strip_prefix(&self.key).map(str::trim_start);
        let bare = bare.and_then(|rest| rest.strip_prefix([':', '='])).map(normalise);
        for candidate in [Some(text), bare].into_iter().flatten() {
            if let Some(&index) = self.labels.get(&candidate) {
                return Parsed::Label(index);
            }
            if ABSTENTIONS.contains(&candidate.as_str()) {
                return Parsed::Abstained;
            }
        }
        Parsed::Unusable
    }

    /// Reads this attribute's value out of a JSON object of attribute → value. An absent key and
    /// null abstain; a list of one value counts as the value.
    pub fn field(&self, object: &serde_json::Map<String, serde_json::Value>) -> Parsed {
        let found = object.iter().find(|(key, _)| normalise(key) == self.key);
        match found.map(|(_, value)| value) {
            None | Some(serde_json::Value::Null) => Parsed::Abstained,
            Some(serde_json::Value::Array(values)) if values.len() == 1 => self.json(&values[0]),
            Some(value) => self.json(value),
        }
    }

    fn json(&self, value: &serde_json::Value) -> Parsed {
        match value {
            serde_json::Value::String(text) => self.value(text),
            serde_json::Value::Bool(_) | serde_json::Value::Number(_) => {
                self.value(&value.to_string())
            }
            _ => Parsed::Unusable,
        }
    }
}

const ABSTENTIONS: [&str; 7] = ["unknown", "n/a", "na", "none", "null", "not sure", "?"];

/// The first complete JSON object in `text`: the whole of it, a fenced block, or an object with
/// prose around it. Broken or cut JSON is not repaired.
pub fn object(text: &str) -> Option<serde_json::Map<String, serde_json::Value>> {
    /// An answer has a handful of short fields; more text than this is not searched.
    const LONGEST: usize = 1 << 16;
    /// Braces in prose ("{...}") before the object that are tried.
    const STARTS: usize = 8;
    if text.len() > LONGEST {
        return None;
    }
    text.match_indices('{').take(STARTS).find_map(|(start, _)| {
        let mut values = serde_json::Deserializer::from_str(&text[start..]).into_iter();
        match values.next() {
            Some(Ok(serde_json::Value::Object(object))) => Some(object),
            _ => None,
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::LabelDef;

    fn department() -> Parser {
        let label = |name: &str, synonyms: &[&str]| LabelDef {
            name: name.into(),
            synonyms: synonyms.iter().map(|&s| s.into()).collect(),
            ..LabelDef::default()
        };
        Parser::new(&Attribute {
            name: "Department".into(),
            definition: String::new(),
            cloze: String::new(),
            labels: vec![label("Tops", &["top", "t-shirts"]), label("Fine gauge", &[])],
            labelers: Vec::new(),
        })
    }

    #[test]
    fn values_are_matched_by_normalised_spelling() {
        let parser = department();
        for text in
            ["Tops", " tops. ", "\"TOPS\"", "top", "Department: Tops", "**Tops**", "T-Shirts"]
        {
            assert_eq!(parser.value(text), Parsed::Label(0), "{text}");
        }
        assert_eq!(parser.value("fine \n gauge"), Parsed::Label(1));
        for text in ["unknown", "N/A", "None."] {
            assert_eq!(parser.value(text), Parsed::Abstained, "{text}");
        }
        for text in ["Shoes", "Tops or Fine gauge", "I think it is Tops", "topsy", ""] {
            assert_eq!(parser.value(text), Parsed::Unusable, "{text}");
        }
    }

    #[test]
    fn objects_are_found_among_prose_but_not_repaired() {
        let parser = department();
        let read = |text: &str| object(text).map(|o| parser.field(&o));
        assert_eq!(read(r#"{"department": "Tops"}"#), Some(Parsed::Label(0)));
        assert_eq!(read("Sure! ```json\n{\"Department\": [\"top\"]}\n```"), Some(Parsed::Label(0)));
        assert_eq!(read(r#"{set} is {"Department": null}"#), Some(Parsed::Abstained));
        assert_eq!(read(r#"{"Class": "Tops"}"#), Some(Parsed::Abstained));
        assert_eq!(read(r#"{"Department": {"a": 1}}"#), Some(Parsed::Unusable));
        assert_eq!(read(r#"{"Department": "Tops""#), None);
        assert_eq!(read("Tops"), None);
        assert_eq!(object(&"{".repeat(1 << 15)), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = department().value(&text);
            let _ = object(&text);
        }
    }
}
