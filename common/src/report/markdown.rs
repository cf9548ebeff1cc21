//! Rows as Markdown.

use super::Row;
use super::grid::{Line, grids};

/// A number for people: about four significant digits, no exponent between 1e-4 and 1e6. What is
/// below 1e-15 is what rounding leaves of 0.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if size < 1e-15 {
        "0".to_owned()
    } else if !(1e-4..1e6).contains(&size) {
        format!("{value:.3e}")
    } else if size < 0.01 {
        format!("{value:.6}")
    } else if size < 10.0 {
        format!("{value:.4}")
    } else if size < 1000.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.0}")
    }
}

/// One table per dataset, or per metric of datasets with the same methods, in the order of the
/// rows; methods that share no metric with the others of a dataset have a table of their own below.
/// A line per method, a column per metric, the best mean in bold, notes as a numbered list. A row
/// that was not run shows "not run".
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    for grid in grids(rows) {
        if !grid.title.is_empty() {
            text.push_str(&format!("### {}\n\n", cell(&grid.title)));
        }
        let labels: Vec<String> = grid.columns.iter().map(|column| cell(&column.label())).collect();
        text.push_str(&format!("| method | role | {} | n |\n", labels.join(" | ")));
        text.push_str(&format!("|---|---|{}---:|\n", "---:|".repeat(labels.len())));
        for line in &grid.lines {
            text.push_str(&markdown_line(line));
        }
        text.push('\n');
        for (index, note) in grid.notes.iter().enumerate() {
            text.push_str(&format!("{}. {}\n", index + 1, cell(note)));
        }
        if !grid.notes.is_empty() {
            text.push('\n');
        }
    }
    text
}

fn markdown_line(line: &Line<'_>) -> String {
    let mark = |note: Option<usize>| note.map_or_else(String::new, |at| format!(" ({})", at + 1));
    let cells: Vec<String> = line
        .cells
        .iter()
        .map(|value| {
            let Some(value) = value else { return String::new() };
            let mean = if value.best { format!("**{}**", value.mean()) } else { value.mean() };
            let words = [mean, value.details(), mark(value.note).trim_start().to_owned()];
            words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
        })
        .collect();
    format!(
        "| {}{} | {} | {} | {} |\n",
        cell(line.method),
        mark(line.note),
        line.role.name(),
        cells.join(" | "),
        line.size(),
    )
}

/// Text that stays inside one cell and is no markup.
fn cell(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '|' | '\\' | '`' | '*' | '[' | ']' | '<' | '>' => {
                safe.push('\\');
                safe.push(letter);
            }
            letter if letter.is_control() => safe.push(' '),
            letter => safe.push(letter),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_four_digits() {
        let shown: Vec<String> =
            [0.0, 0.897_512, 93.4, 1234.6, 0.001_234, 1e-9, 2.5e7, -0.5, -8e-18]
                .into_iter()
                .map(number)
                .collect();
        let expected =
            ["0", "0.8975", "93.40", "1235", "0.001234", "1.000e-9", "2.500e7", "-0.5000", "0"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn untrusted_text_stays_in_its_cell() {
        let row = Row {
            dataset: "a".into(),
            method: "x | y\n<script>".into(),
            mean: Some(1.0),
            ..Row::default()
        };
        let text = table(&[row]);
        assert!(text.contains("x \\| y \\<script\\>"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with("| x")).count(), 1);
    }

    #[test]
    fn a_line_holds_mean_deviation_interval_and_note() {
        let row = |method: &str, mean| Row {
            dataset: "rte".into(),
            method: method.into(),
            metric: "auc".into(),
            mean: Some(mean),
            n: 8,
            ..Row::default()
        };
        let first = Row {
            sd: Some(0.01),
            ci95: Some([0.88, 0.92]),
            note: Some("3 seeds".into()),
            ..row("a", 0.9)
        };
        let text = table(&[first, row("b", 0.5)]);
        assert!(text.contains("| method | role | auc ↑ | n |"), "{text}");
        assert!(
            text.contains("| a (1) | paper | **0.9000** ± 0.0100 0.8800 … 0.9200 | 8 |"),
            "{text}"
        );
        assert!(text.contains("| b | paper | 0.5000 | 8 |\n\n1. 3 seeds\n"), "{text}");
    }

    #[test]
    fn numbers_of_other_settings_stand_in_brackets() {
        let row = Row { paper_value: Some(95.6), mean: Some(1.0), ..Row::default() };
        assert!(table(std::slice::from_ref(&row)).contains("(paper 95.60)"));
        let comparable = table(&[Row { comparable: true, ..row }]);
        assert!(comparable.contains("paper 95.60") && !comparable.contains("(paper"));
    }
}
