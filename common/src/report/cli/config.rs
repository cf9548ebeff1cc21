//! Config layers: defaults < profile < files < `--set`, with the origin of every value.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{CommonArgs, Profile};
use crate::{Error, Result};

/// Where a config value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `Config::default()`.
    Default,
    /// The profile's config.
    Profile(Profile),
    /// A `--config` file.
    File(PathBuf),
    /// A `--set` flag.
    Set,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Profile(profile) => write!(f, "profile {profile}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Set => f.write_str("--set"),
        }
    }
}

/// A config and how it came about.
#[derive(Debug, Clone)]
pub struct Resolved<C> {
    /// The config itself.
    pub config: C,
    /// Dotted key of every value → where it came from.
    pub origins: BTreeMap<String, Origin>,
    tree: Value,
    schema: Value,
}

impl<C> Resolved<C> {
    /// One `key = value  # origin` line per value: a TOML file that `--config` reads back.
    /// A value that is not set is a comment.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for (key, value) in leaves(&self.tree) {
            let origin = self.origins.get(&key).unwrap_or(&Origin::Default);
            let line = match toml_value(&value) {
                Some(value) => format!("{key} = {value}  # {}\n", one_line(&origin.to_string())),
                None => format!("# {key} is not set  # {}\n", one_line(&origin.to_string())),
            };
            text.push_str(&line);
        }
        text
    }

    /// `{config, origins}`, where origins maps dotted keys to words.
    pub fn to_json(&self) -> Value {
        let origins: BTreeMap<&String, String> =
            self.origins.iter().map(|(key, origin)| (key, origin.to_string())).collect();
        serde_json::json!({ "config": self.tree, "origins": origins })
    }

    /// JSON Schema of the config.
    pub fn json_schema(&self) -> &Value {
        &self.schema
    }

    /// SHA-256 of the values (not their origins), the first 8 hexadecimal digits.
    pub fn hash8(&self) -> String {
        super::super::run::hash8(self.tree.to_string().as_bytes())
    }
}

/// Lays the files and `--set` flags of `args` over `profile`, the config of `args.profile`.
///
/// An unknown key is an [`Error::Usage`] that names the file and the nearest key; so is a value
/// that does not fit its key.
pub fn resolve<C>(profile: C, args: &CommonArgs) -> Result<Resolved<C>>
where
    C: Serialize + DeserializeOwned + Default + JsonSchema,
{
    let bug = |error: serde_json::Error| Error::Bug(format!("config is not a table: {error}"));
    let defaults = serde_json::to_value(C::default()).map_err(bug)?;
    let mut tree = serde_json::to_value(profile).map_err(bug)?;
    let schema = schemars::schema_for!(C).to_value();
    let default_leaves: BTreeMap<String, Value> = leaves(&defaults).into_iter().collect();
    let mut origins: BTreeMap<String, Origin> = leaves(&tree)
        .into_iter()
        .map(|(key, value)| {
            let same = default_leaves.get(&key) == Some(&value);
            (key, if same { Origin::Default } else { Origin::Profile(args.profile) })
        })
        .collect();
    let schema_view = Schema { root: &schema };
    let mut apply = |layer: Value, origin: Origin| -> Result<()> {
        schema_view.check_keys(&layer, &origin)?;
        let before = tree.clone();
        merge(&mut tree, &layer);
        if let Err(error) = serde_json::from_value::<C>(tree.clone()) {
            return Err(blame::<C>(&before, &layer, &origin, &error));
        }
        for (key, _) in leaves(&layer) {
            // A table given as a whole replaces what stood at and below its key.
            let below = format!("{key}.");
            origins.retain(|other, _| !other.starts_with(&below));
            origins.insert(key, origin.clone());
        }
        Ok(())
    };
    for path in &args.config {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let place = one_line(&error.to_string());
            Error::usage(format!("{}: not valid TOML: {place}", path.display()))
        })?;
        let layer = serde_json::to_value(table).map_err(bug)?;
        apply(layer, Origin::File(path.clone()))?;
    }
    for flag in &args.set {
        apply(schema_view.parse_set(flag)?, Origin::Set)?;
    }
    let config = serde_json::from_value(tree.clone()).map_err(bug)?;
    let present: BTreeMap<String, Value> = leaves(&tree).into_iter().collect();
    origins.retain(|key, _| present.contains_key(key));
    Ok(Resolved { config, origins, tree, schema })
}

/// Names the key of `layer` that does not fit, when one alone is enough to fail.
fn blame<C: DeserializeOwned>(
    before: &Value,
    layer: &Value,
    origin: &Origin,
    error: &serde_json::Error,
) -> Error {
    for (key, value) in leaves(layer) {
        let mut tree = before.clone();
        merge(&mut tree, &nest(&key, value.clone()));
        if let Err(error) = serde_json::from_value::<C>(tree) {
            return Error::usage(format!("{origin}: key {key} = {value}: {error}"));
        }
    }
    Error::usage(format!("{origin}: {error}"))
}

/// Tables merge key by key; anything else is replaced.
fn merge(tree: &mut Value, layer: &Value) {
    match (tree, layer) {
        (Value::Object(tree), Value::Object(layer)) => {
            for (key, value) in layer {
                merge(tree.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (tree, layer) => *tree = layer.clone(),
    }
}

/// All values that are not tables (or are empty ones), with dotted keys, in order.
fn leaves(tree: &Value) -> Vec<(String, Value)> {
    fn walk(prefix: &str, value: &Value, found: &mut Vec<(String, Value)>) {
        match value {
            Value::Object(table) if !table.is_empty() => {
                for (key, value) in table {
                    let key = quote(key);
                    let path = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
                    walk(&path, value, found);
                }
            }
            value if !prefix.is_empty() => found.push((prefix.to_owned(), value.clone())),
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk("", tree, &mut found);
    found
}

/// The table that holds `value` at the dotted `key`.
fn nest(key: &str, value: Value) -> Value {
    split_key(key).into_iter().rev().fold(value, |inner, part| {
        let mut table = Map::new();
        table.insert(part, inner);
        Value::Object(table)
    })
}

/// A TOML bare key, or a quoted one.
fn quote(key: &str) -> String {
    let bare = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-';
    if !key.is_empty() && key.chars().all(bare) {
        key.to_owned()
    } else {
        toml::Value::String(key.to_owned()).to_string()
    }
}

/// Splits `a."b.c".d` at the dots outside quotes.
fn split_key(key: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    for letter in key.chars() {
        match letter {
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            letter => {
                if let Some(part) = parts.last_mut() {
                    part.push(letter);
                }
            }
        }
    }
    parts
}

/// A JSON value as inline TOML; `None` for null, which TOML lacks.
fn toml_value(value: &Value) -> Option<String> {
    if value.is_null() {
        return None;
    }
    toml::Value::try_from(value).ok().map(|value| value.to_string())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A JSON Schema as schemars writes it.
struct Schema<'a> {
    root: &'a Value,
}

impl<'a> Schema<'a> {
    /// Follows `$ref` and the non-null side of an optional value.
    fn resolve(&self, mut schema: &'a Value) -> &'a Value {
        // More steps than any of our types nests references.
        for _ in 0..16 {
            if let Some(path) = schema.get("$ref").and_then(Value::as_str) {
                match self.root.pointer(path.trim_start_matches('#')) {
                    Some(target) => schema = target,
                    None => return schema,
                }
            } else if let Some([first, second]) =
                schema.get("anyOf").and_then(Value::as_array).map(Vec::as_slice)
                && second.get("type").and_then(Value::as_str) == Some("null")
            {
                schema = first;
            } else {
                return schema;
            }
        }
        schema
    }

    /// Fails on the first key of `layer` that the schema does not know. Tables without a fixed key
    /// list (maps, enums with data) pass; serde judges them.
    fn check_keys(&self, layer: &Value, origin: &Origin) -> Result<()> {
        self.check_table(layer, self.root, "", origin)
    }

    fn check_table(
        &self,
        layer: &Value,
        schema: &'a Value,
        prefix: &str,
        origin: &Origin,
    ) -> Result<()> {
        let schema = self.resolve(schema);
        let (Value::Object(table), Some(Value::Object(known))) = (layer, schema.get("properties"))
        else {
            return Ok(());
        };
        let open =
            schema.get("additionalProperties").is_some_and(|more| more != &Value::Bool(false));
        for (key, value) in table {
            let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match known.get(key) {
                Some(inner) => self.check_table(value, inner, &path, origin)?,
                None if open => {}
                None => return Err(unknown_key(&path, known.keys(), origin)),
            }
        }
        Ok(())
    }

    /// One `key=value` flag as a table. The value is read as TOML; text that is no TOML value, or
    /// stands for a string key, is the string itself.
    fn parse_set(&self, flag: &str) -> Result<Value> {
        let Some((key, text)) = flag.split_once('=') else {
            return Err(Error::usage(format!("--set {flag}: expected KEY=VALUE")));
        };
        let (key, text) = (key.trim(), text.trim());
        let string = Value::String(text.to_owned());
        let read: Option<toml::Table> = format!("value = {text}").parse().ok();
        let parsed = read
            .filter(|table| table.len() == 1)
            .and_then(|mut table| table.remove("value"))
            .and_then(|value| serde_json::to_value(value).ok());
        let value = match parsed {
            Some(value) if value.is_string() || !self.wants_string(key) => value,
            _ => string,
        };
        Ok(nest(key, value))
    }

    fn wants_string(&self, key: &str) -> bool {
        let mut schema = self.root;
        for part in split_key(key) {
            match self.resolve(schema).get("properties").and_then(|known| known.get(&part)) {
                Some(inner) => schema = inner,
                None => return false,
            }
        }
        match self.resolve(schema).get("type") {
            Some(Value::String(name)) => name == "string",
            Some(Value::Array(names)) => {
                names.iter().all(|name| name == "string" || name == "null")
            }
            _ => false,
        }
    }
}

fn unknown_key<'k>(path: &str, known: impl Iterator<Item = &'k String>, origin: &Origin) -> Error {
    let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
    let nearest = known
        .map(|key| (strsim::jaro_winkler(key, name), key))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, key)| if parent.is_empty() { key.clone() } else { format!("{parent}.{key}") });
    let hint = nearest.map_or_else(String::new, |key| format!("; the nearest key is {key}"));
    Error::usage(format!("{origin}: unknown key {path}{hint}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    struct Config {
        rounds: usize,
        rate: f64,
        name: String,
        limit: Option<usize>,
        model: Model,
        synonyms: BTreeMap<String, Vec<String>>,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    struct Model {
        rank: usize,
        rule: Rule,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "lowercase")]
    enum Rule {
        Linear,
        Accuracy,
    }

    impl Default for Config {
        fn default() -> Self {
            Self {
                rounds: 100,
                rate: 0.5,
                name: "x".into(),
                limit: None,
                model: Model::default(),
                synonyms: BTreeMap::new(),
            }
        }
    }

    impl Default for Model {
        fn default() -> Self {
            Self { rank: 4, rule: Rule::Linear }
        }
    }

    fn args(files: &[&std::path::Path], set: &[&str]) -> CommonArgs {
        CommonArgs {
            config: files.iter().map(|path| path.to_path_buf()).collect(),
            set: set.iter().map(|flag| (*flag).to_owned()).collect(),
            ..CommonArgs::default()
        }
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn later_layers_win_and_every_value_knows_its_origin() {
        let first = file("rate = 0.1\n[model]\nrank = 8\n[synonyms]\n\"T shirt\" = [\"tee\"]\n");
        let second = file("model.rank = 16\n");
        let args = args(&[first.path(), second.path()], &["rate=0.2", "limit=3"]);
        let profile = Config { rounds: 5, ..Config::default() };
        let resolved = resolve(profile, &args).unwrap();
        let config = &resolved.config;
        assert_eq!((config.rounds, config.rate, config.model.rank), (5, 0.2, 16));
        assert_eq!((config.limit, config.synonyms["T shirt"].len()), (Some(3), 1));
        let origin = |key: &str| resolved.origins[key].clone();
        assert_eq!(origin("rounds"), Origin::Profile(Profile::Cpu));
        assert_eq!(origin("rate"), Origin::Set);
        assert_eq!(origin("model.rank"), Origin::File(second.path().into()));
        assert_eq!(origin("model.rule"), Origin::Default);
        assert_eq!(origin("synonyms.\"T shirt\""), Origin::File(first.path().into()));
    }

    #[test]
    fn the_printed_toml_reads_back() {
        let set = ["model.rule=accuracy", "name=gguf:a#b", "synonyms={\"a.b\" = [\"c\"]}"];
        let resolved = resolve(Config::default(), &args(&[], &set)).unwrap();
        let text = resolved.to_toml();
        assert!(text.contains("model.rule = \"accuracy\"  # --set"), "{text}");
        assert!(text.contains("# limit is not set"), "{text}");
        let printed = file(&text);
        let again = resolve(Config::default(), &args(&[printed.path()], &[])).unwrap();
        assert_eq!(again.config, resolved.config);
        assert_eq!(again.hash8(), resolved.hash8());
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let wrong = file("[model]\nrnak = 3\n");
        let error = resolve(Config::default(), &args(&[wrong.path()], &[])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("unknown key model.rnak; the nearest key is model.rank"), "{text}");
        assert!(text.starts_with(&wrong.path().display().to_string()), "{text}");
        assert_eq!(error.exit_code(), 2);
        let error = resolve(Config::default(), &args(&[], &["round=3"])).unwrap_err();
        assert!(error.to_string().contains("--set: unknown key round; the nearest key is rounds"));
    }

    #[test]
    fn a_wrong_value_names_its_key() {
        let error = resolve(Config::default(), &args(&[], &["model.rank=-1"])).unwrap_err();
        assert!(error.to_string().contains("key model.rank = -1"), "{error}");
        let broken = file("rate = = 1");
        let error = resolve(Config::default(), &args(&[broken.path()], &[])).unwrap_err();
        assert!(error.to_string().contains("not valid TOML"), "{error}");
        assert_eq!(error.to_string().lines().count(), 1);
    }

    #[test]
    fn a_string_key_takes_digits() {
        let resolved = resolve(Config::default(), &args(&[], &["name=2024"])).unwrap();
        assert_eq!(resolved.config.name, "2024");
    }

    #[test]
    fn the_schema_lists_the_keys() {
        let resolved = resolve(Config::default(), &CommonArgs::default()).unwrap();
        assert!(resolved.json_schema().pointer("/properties/rounds").is_some());
    }
}
