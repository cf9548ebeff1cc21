//! One self-contained HTML page: tables and inline SVG, no script, no network request, light and
//! dark. Every text is escaped; product texts and error messages are untrusted.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::markdown::paper_value;
use super::{Figure, Report, Row, number};

const STYLE: &str = include_str!("page.css");

/// A page titled `title` over one or more reports, with `notes` as paragraphs above the tables.
pub fn page(title: &str, notes: &[String], reports: &[Report]) -> String {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                // A browser that honours this opens no connection, whatever a picture holds.
                meta http-equiv="Content-Security-Policy"
                    content="default-src 'none'; style-src 'unsafe-inline'; img-src data:";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (title) }
                @for note in notes { p { (note) } }
                @if reports.len() > 1 { (contents(reports)) }
                @for report in reports { (section(report)) }
            }
        }
    };
    markup.into_string() + "\n"
}

fn contents(reports: &[Report]) -> Markup {
    html! {
        ul.contents {
            @for report in reports {
                li { a href={ "#" (report.paper) } { (report.paper) } ": " (report.headline) }
            }
        }
    }
}

fn section(report: &Report) -> Markup {
    let commit = report.commit.as_deref().unwrap_or("unknown");
    html! {
        section id=(report.paper) {
            h2 { (report.paper) }
            p.headline { (report.headline) }
            p.machine {
                "Profile " (report.profile) ", commit " (commit) ", " (report.cpu) ", "
                (report.threads) " threads."
            }
            @for dataset in datasets(&report.rows) {
                h3 { (dataset) }
                (table(report.rows.iter().filter(|row| row.dataset == dataset)))
            }
            @for figure in &report.figures { (picture(figure)) }
        }
    }
}

fn datasets(rows: &[Row]) -> Vec<&str> {
    let mut seen: Vec<&str> = Vec::new();
    for row in rows {
        if !seen.contains(&row.dataset.as_str()) {
            seen.push(&row.dataset);
        }
    }
    seen
}

fn table<'a>(rows: impl Iterator<Item = &'a Row>) -> Markup {
    html! {
        div.scroll {
            table {
                thead {
                    tr {
                        th { "method" } th { "role" } th { "metric" } th.number { "value" }
                        th.number { "95 % interval" } th.number { "n" } th.number { "paper" }
                        th.number { "seconds" } th { "note" }
                    }
                }
                tbody {
                    @for row in rows {
                        tr class=(row.role.name()) title=(row.claim) {
                            td { (row.method) }
                            td { (row.role.name()) }
                            td { (row.metric) (if row.higher_is_better { " ↑" } else { " ↓" }) }
                            td.number { (value(row)) }
                            td.number {
                                @if let Some([low, high]) = row.ci95 {
                                    (number(low)) " … " (number(high))
                                }
                            }
                            td.number { (row.n) }
                            td.number { (paper_value(row)) }
                            td.number {
                                @if let Some(seconds) = row.seconds { (number(seconds)) }
                            }
                            td { (row.note.as_deref().unwrap_or_default()) }
                        }
                    }
                }
            }
        }
    }
}

fn value(row: &Row) -> String {
    match (row.mean, row.sd) {
        (Some(mean), Some(sd)) => format!("{} ± {}", number(mean), number(sd)),
        (Some(mean), None) => number(mean),
        (None, _) => "not run".to_owned(),
    }
}

/// The SVG as an image in a data address: there, unlike inline, no script of it can run, and two
/// pictures can't clash in their ids. Text in it stays text.
fn picture(figure: &Figure) -> Markup {
    let address = format!("data:image/svg+xml;base64,{}", base64(figure.svg.as_bytes()));
    html! {
        figure {
            img src=(address) alt=(figure.title) loading="lazy";
            figcaption { strong { (figure.title) } " " (figure.caption) }
        }
    }
}

/// Standard base64 with padding (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, &byte| group << 8 | u32::from(byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let letter = LETTERS[(group >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_equals_the_rfc() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (plain, coded) in cases {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn untrusted_text_is_no_markup_and_nothing_is_fetched() {
        let evil = "</td><script src=\"https://x\">alert(1)</script>";
        let report = Report {
            paper: "p\" onload=\"x".into(),
            headline: evil.into(),
            rows: vec![Row {
                method: evil.into(),
                dataset: evil.into(),
                note: Some(evil.into()),
                claim: evil.into(),
                ..Row::default()
            }],
            figures: vec![Figure::new(evil, evil, format!("<svg>{evil}</svg>"))],
            ..Report::default()
        };
        let page = page(evil, &[evil.to_owned()], &[report]);
        assert!(!page.contains("<script"), "{page}");
        assert!(!page.contains("onload=\"x\""), "{page}");
        for fetching in ["src=\"http", "href=\"http", "url(", "@import"] {
            assert!(!page.contains(fetching), "{fetching}");
        }
    }
}
