//! One self-contained HTML page: tables and inline SVG, no script, no network request, light and
//! dark. Every text is escaped; product texts and error messages are untrusted.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use pulldown_cmark::{Event, Parser, Tag, TagEnd};

use super::grid::{Cell, Grid, Line, grids};
use super::{Figure, Report};

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

/// The front page: one verdict per paper.
fn contents(reports: &[Report]) -> Markup {
    html! {
        nav.contents {
            @for report in reports {
                article {
                    h2 { a href={ "#" (report.paper) } { (report.paper) } }
                    p { (report.headline) }
                }
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
            @if !report.about.is_empty() { div.about { (markdown(&report.about)) } }
            p.machine {
                "Profile " (report.profile) ", commit " (commit) ", " (report.cpu) ", "
                (report.threads) " threads"
                @if let Some(seconds) = report.seconds { ", " (format!("{seconds:.0} s")) }
                "."
            }
            @if !report.config.is_empty() {
                details { summary { "Config" } pre { (report.config) } }
            }
            @for figure in &report.figures { (picture(figure)) }
            @for grid in grids(&report.rows) {
                @if !grid.title.is_empty() { h3 { (grid.title) } }
                (table(&grid))
            }
        }
    }
}

/// Markdown as HTML. Links become plain text, since the page stands alone; raw HTML is left out.
fn markdown(text: &str) -> Markup {
    let events = Parser::new(text).filter_map(|event| match event {
        Event::Start(Tag::Link { .. } | Tag::Image { .. })
        | Event::End(TagEnd::Link | TagEnd::Image)
        | Event::Html(_)
        | Event::InlineHtml(_) => None,
        other => Some(other),
    });
    let mut out = String::new();
    pulldown_cmark::html::push_html(&mut out, events);
    PreEscaped(out)
}

/// Means with their details below them; the best mean of a column is bold, notes follow the table.
fn table(grid: &Grid<'_>) -> Markup {
    html! {
        div.scroll {
            table {
                thead {
                    tr {
                        th { "method" } th { "role" }
                        @for column in &grid.columns { th.number { (column.label()) } }
                        th.number { "n" }
                    }
                }
                tbody {
                    @for line in &grid.lines {
                        tr class=(line.role.name()) title=(claim(line)) {
                            td { (line.method) (mark(line.note)) }
                            td { (line.role.name()) }
                            @for cell in &line.cells {
                                td.number { @if let Some(cell) = cell { (value(cell)) } }
                            }
                            td.number { (line.size()) }
                        }
                    }
                }
            }
        }
        @if !grid.notes.is_empty() {
            ol.notes { @for note in &grid.notes { li { (note) } } }
        }
    }
}

fn claim<'a>(line: &Line<'a>) -> &'a str {
    line.cells.iter().flatten().map(|cell| cell.row.claim.as_str()).next().unwrap_or_default()
}

fn mark(note: Option<usize>) -> Markup {
    html! { @if let Some(at) = note { sup { (at + 1) } } }
}

fn value(cell: &Cell<'_>) -> Markup {
    html! {
        @if cell.best { strong { (cell.mean()) } } @else { (cell.mean()) }
        (mark(cell.note))
        @let details = cell.details();
        @if !details.is_empty() { br; small { (details) } }
    }
}

/// The SVG as an image in a data address: there, unlike inline, no script of it can run, and two
/// pictures can't clash in their ids. Text in it stays text. Pictures of ours that want hints under
/// the pointer stand inline; the page's policy forbids scripts there too.
fn picture(figure: &Figure) -> Markup {
    let address = format!("data:image/svg+xml;base64,{}", base64(figure.svg.as_bytes()));
    html! {
        figure {
            @if figure.inline { (PreEscaped(&figure.svg)) }
            @else { img src=(address) alt=(figure.title) loading="lazy"; }
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
    use super::super::Row;
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
            about: format!("{evil} [a](https://x) ![b](https://y)"),
            config: evil.into(),
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
