//! Rows, reports, plots and pages: what a bench prints and writes.
//!
//! A bench fills a [`Report`] with [`Row`]s and [`Figure`]s; the exporters turn it into JSON,
//! Markdown ([`Report::to_markdown`]) and one self-contained HTML page ([`html::page`]).

pub mod cli;
mod grid;
mod headline;
pub mod html;
mod markdown;
pub mod plot;
mod png;
mod row;
pub mod run;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

pub use headline::headline;
pub use markdown::{number, table};
pub use png::png;
pub use row::{Role, Row};

/// What one paper's `bench` measured; `bench --json` prints it as one JSON object.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Crate name of the paper.
    pub paper: String,
    /// `smoke`, `cpu` or `paper`.
    pub profile: String,
    /// Git commit of the working tree, with `+` when files differ from it; `None` without git.
    pub commit: Option<String>,
    /// CPU model.
    pub cpu: String,
    /// Threads of the compute pool.
    pub threads: usize,
    /// One row per (dataset, method, metric), in the order of the table.
    pub rows: Vec<Row>,
    /// Serialises as the paths of the SVG files; see [`Figure`].
    pub figures: Vec<Figure>,
    /// One sentence from [`headline()`].
    pub headline: String,
    /// Wall time of the whole bench; training that was kept from an earlier run is not in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// The resolved config as TOML, each value with its origin.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub config: String,
    /// What the paper is about, as Markdown; pages show it above the numbers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
}

impl Report {
    /// An empty report of this machine and working tree.
    pub fn new(paper: &str, profile: &str) -> Self {
        let runtime = crate::runtime::init(None);
        Self {
            paper: paper.to_owned(),
            profile: profile.to_owned(),
            commit: run::commit(),
            cpu: runtime.cpu.clone(),
            threads: runtime.threads,
            ..Self::default()
        }
    }

    /// Puts the paper's name into rows without one, generates the headline and checks the rows:
    /// every number finite, every row that was not run or is not comparable with a note. Fails
    /// with [`Error::Bug`].
    pub fn finish(mut self) -> Result<Self> {
        for row in &mut self.rows {
            if row.paper.is_empty() {
                row.paper.clone_from(&self.paper);
            }
            row.check()?;
        }
        self.headline = headline(&self.rows);
        Ok(self)
    }

    /// Pretty-printed JSON with a final newline.
    pub fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::Bug(format!("the report of {}: {error}", self.paper)))?;
        Ok(text + "\n")
    }

    /// Reads [`Report::to_json`]'s text and the figures it names. `origin` stands in errors.
    pub fn from_json(text: &str, origin: &Path) -> Result<Self> {
        let mut report: Self = serde_json::from_str(text).map_err(|error| {
            Error::data(error.to_string(), "one report object as printed by `bench --json`")
                .in_file(origin)
        })?;
        for figure in &mut report.figures {
            figure.load()?;
        }
        Ok(report)
    }

    /// The rows that don't depend on the clock, as pretty JSON: two runs with the same seed and
    /// thread count give the same bytes.
    pub fn metrics_json(&self) -> Result<String> {
        let rows: Vec<Row> = self.rows.iter().map(Row::without_timings).collect();
        let value = serde_json::json!({
            "paper": self.paper,
            "profile": self.profile,
            "headline": self.headline,
            "rows": rows,
        });
        let text = serde_json::to_string_pretty(&value)
            .map_err(|error| Error::Bug(format!("the metrics of {}: {error}", self.paper)))?;
        Ok(text + "\n")
    }

    /// Headline, then one table per dataset.
    pub fn to_markdown(&self) -> String {
        format!("{}\n\n{}", self.headline, table(&self.rows))
    }
}

/// A picture with its words. The SVG carries title and caption in its `<title>` and `<desc>`,
/// so a file of it is complete; in JSON a figure is the path of that file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figure {
    /// A few words, also the file name.
    pub title: String,
    /// One or two sentences: what to see, on what data.
    pub caption: String,
    /// SVG text.
    pub svg: String,
    /// Stands in a page as SVG instead of as an image, so that hints show under the pointer. Only for
    /// pictures of [`plot`], which escape every text.
    pub inline: bool,
    /// Where the SVG was written; empty before [`run::RunFolder::write_report`].
    pub path: PathBuf,
}

impl Figure {
    /// A figure from a plot of [`plot`] or another SVG.
    pub fn new(title: &str, caption: &str, svg: String) -> Self {
        let (title, caption) = (title.to_owned(), caption.to_owned());
        Self { title, caption, svg, ..Self::default() }
    }

    /// A picture of [`plot`] whose hints show under the pointer.
    pub fn inline(title: &str, caption: &str, svg: String) -> Self {
        Self { inline: true, ..Self::new(title, caption, svg) }
    }

    /// File name without extension: the title in lower case, all but letters and digits as `-`.
    pub fn slug(&self) -> String {
        let mut slug = String::new();
        for letter in self.title.to_lowercase().chars() {
            if letter.is_ascii_alphanumeric() {
                slug.push(letter);
            } else if !slug.ends_with('-') && !slug.is_empty() {
                slug.push('-');
            }
        }
        let slug = slug.trim_end_matches('-');
        if slug.is_empty() { "figure".to_owned() } else { slug.chars().take(80).collect() }
    }

    /// The SVG with `<title>` and `<desc>` as its first children.
    pub fn described_svg(&self) -> String {
        let words = format!(
            "\n<title>{}</title>\n<desc>{}</desc>",
            escape(&self.title),
            escape(&self.caption)
        );
        let start = self.svg.find("<svg").unwrap_or(0);
        match self.svg[start..].find('>') {
            Some(end) => {
                let (head, tail) = self.svg.split_at(start + end + 1);
                format!("{head}{words}{tail}")
            }
            None => self.svg.clone(),
        }
    }

    /// Reads the SVG at `path` with its title and caption.
    fn load(&mut self) -> Result<()> {
        let svg = std::fs::read_to_string(&self.path).map_err(Error::io(&self.path))?;
        self.title = element(&svg, "title").unwrap_or_default();
        self.caption = element(&svg, "desc").unwrap_or_default();
        self.svg = svg;
        Ok(())
    }
}

impl Serialize for Figure {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.path.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Figure {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { path: PathBuf::deserialize(deserializer)?, ..Self::default() })
    }
}

/// Text of the first `<name>` element.
fn element(svg: &str, name: &str) -> Option<String> {
    let start = svg.find(&format!("<{name}>"))? + name.len() + 2;
    let end = start + svg[start..].find(&format!("</{name}>"))?;
    Some(unescape(&svg[start..end]))
}

/// Text made safe inside XML and HTML.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            // XML 1.0 allows no other control characters.
            letter if letter.is_control() && !matches!(letter, '\n' | '\t') => {
                safe.push('\u{fffd}')
            }
            letter => safe.push(letter),
        }
    }
    safe
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_comes_back_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut figure =
            Figure::new("Weights & <accuracy>", "\"x\" > 1", "<svg width=\"1\"><g/></svg>".into());
        assert_eq!(figure.slug(), "weights-accuracy");
        figure.path = folder.path().join("f.svg");
        std::fs::write(&figure.path, figure.described_svg()).unwrap();
        let json = serde_json::to_string(&figure).unwrap();
        let mut read: Figure = serde_json::from_str(&json).unwrap();
        read.load().unwrap();
        assert_eq!((read.title, read.caption), (figure.title, figure.caption));
        assert!(read.svg.contains("<g/>"));
    }

    #[test]
    fn metrics_json_has_no_clock_in_it() {
        let row = |seconds| Row {
            mean: Some(0.5),
            seconds: Some(seconds),
            peak_rss_mb: Some(seconds),
            ..Row::default()
        };
        let report = |seconds| Report { rows: vec![row(seconds)], ..Report::default() };
        assert_eq!(report(1.0).metrics_json().unwrap(), report(2.0).metrics_json().unwrap());
    }
}
