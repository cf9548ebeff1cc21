//! Rows as Markdown.

use super::Row;

/// A number for people: about four significant digits, no exponent between 1e-4 and 1e6.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
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

/// One table per dataset in the order of the rows. A row that was not run shows "not run" and its
/// note.
pub fn table(rows: &[Row]) -> String {
    let mut datasets: Vec<&str> = Vec::new();
    for row in rows {
        if !datasets.contains(&row.dataset.as_str()) {
            datasets.push(&row.dataset);
        }
    }
    let mut text = String::new();
    for dataset in datasets {
        text.push_str(&format!("### {}\n\n", cell(dataset)));
        text.push_str("| method | role | metric | value | 95 % interval | n | paper | note |\n");
        text.push_str("|---|---|---|---:|---:|---:|---:|---|\n");
        for row in rows.iter().filter(|row| row.dataset == dataset) {
            text.push_str(&line(row));
        }
        text.push('\n');
    }
    text
}

fn line(row: &Row) -> String {
    let value = match (row.mean, row.sd) {
        (Some(mean), Some(sd)) => format!("{} ± {}", number(mean), number(sd)),
        (Some(mean), None) => number(mean),
        (None, _) => "not run".to_owned(),
    };
    let interval = row
        .ci95
        .map_or_else(String::new, |[low, high]| format!("{} … {}", number(low), number(high)));
    let arrow = if row.higher_is_better { "↑" } else { "↓" };
    format!(
        "| {} | {} | {} {arrow} | {value} | {interval} | {} | {} | {} |\n",
        cell(&row.method),
        row.role.name(),
        cell(&row.metric),
        row.n,
        paper_value(row),
        cell(row.note.as_deref().unwrap_or_default()),
    )
}

/// The paper's number, in brackets when ours can't be held against it.
pub(super) fn paper_value(row: &Row) -> String {
    match row.paper_value {
        Some(value) if row.comparable => number(value),
        Some(value) => format!("({})", number(value)),
        None => String::new(),
    }
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
        let shown: Vec<String> = [0.0, 0.897_512, 93.4, 1234.6, 0.001_234, 1e-9, 2.5e7, -0.5]
            .into_iter()
            .map(number)
            .collect();
        let expected =
            ["0", "0.8975", "93.40", "1235", "0.001234", "1.000e-9", "2.500e7", "-0.5000"];
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
    fn numbers_of_other_settings_stand_in_brackets() {
        let row = Row { paper_value: Some(95.6), mean: Some(1.0), ..Row::default() };
        assert!(table(std::slice::from_ref(&row)).contains("(95.60)"));
        assert!(!table(&[Row { comparable: true, ..row }]).contains("(95.60)"));
    }
}
