//! The sentences above the table.

use common::report::{Role, Row, number};

use super::table::{DIFFERENCE, DISTANCE, GOLD, ORIGINAL, PASSES};

/// What the rows say, losses first: how near the methods come to Retrain and at what cost, whether the
/// groups matter, and what the recommender is worth.
pub(super) fn headline(rows: &[Row]) -> String {
    let sentences = [unlearning(rows), grouping(rows), recommender(rows)];
    sentences.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// "a / b / c".
fn each(values: impl Iterator<Item = String>) -> String {
    values.collect::<Vec<_>>().join(" / ")
}

fn mean(row: &Row) -> String {
    row.mean.map_or_else(|| "–".to_owned(), number)
}

/// Rows of one metric in one data set.
fn of<'a>(rows: &'a [Row], dataset: &str, metric: &str) -> Vec<&'a Row> {
    rows.iter().filter(|row| row.dataset == dataset && row.metric == metric).collect()
}

fn unlearning(rows: &[Row]) -> Option<String> {
    let gold: Vec<&Row> =
        rows.iter().filter(|row| row.metric == DISTANCE && row.dataset.ends_with(GOLD)).collect();
    let datasets: Vec<&str> = gold.iter().map(|row| row.dataset.trim_end_matches(GOLD)).collect();
    let named = |metric: &str, wanted: &dyn Fn(&Row) -> bool| -> Vec<&Row> {
        let find = |set: &&str| of(rows, set, metric).into_iter().find(|row| wanted(row));
        datasets.iter().filter_map(find).collect()
    };
    let paper = named(DISTANCE, &|row| row.role == Role::Paper);
    let original = named(DISTANCE, &|row| row.method == ORIGINAL);
    if paper.is_empty() || original.len() != paper.len() {
        return None;
    }
    let rivals = |set: &&str| {
        let rows = of(rows, set, DISTANCE).into_iter();
        let rivals = rows.filter(|row| matches!(row.role, Role::Baseline | Role::Control));
        rivals.reduce(|best, row| if row.beats(best) { row } else { best })
    };
    let rivals: Vec<&Row> = datasets.iter().filter_map(rivals).collect();
    let lost: Vec<(&Row, &Row)> = rivals
        .iter()
        .zip(&paper)
        .filter(|(rival, paper)| !paper.beats(rival))
        .map(|(rival, paper)| (*rival, *paper))
        .collect();
    let mut text = String::new();
    if !lost.is_empty() {
        let words = lost.iter().map(|(rival, paper)| {
            format!("{} {} against {}", rival.method, mean(rival), mean(paper))
        });
        text += &format!(
            "CURE is not the nearest to Retrain on {} of {} requests ({}). ",
            lost.len(),
            paper.len(),
            words.collect::<Vec<_>>().join("; ")
        );
    }
    let of_method = |row: &Row| {
        let name = row.method.clone();
        let distances = named(DISTANCE, &|row| row.method == name);
        let passes = named(PASSES, &|row| row.method == name);
        let inside = distances
            .iter()
            .filter(|row| row.note.as_deref().is_some_and(|note| note.starts_with("inside")));
        let percent = |row: &&Row| format!("{:.1}", row.mean.unwrap_or(f64::NAN) * 100.0);
        format!(
            "{name} {} at {} % of Retrain's token passes, {} of {} inside the noise floor",
            each(distances.iter().map(|row| mean(row))),
            each(passes.iter().map(percent)),
            inside.count(),
            distances.len()
        )
    };
    let first = rows.iter().filter(|row| row.dataset == datasets[0] && row.metric == DISTANCE);
    let shown = first.filter(|row| matches!(row.role, Role::Paper | Role::Ours));
    let names: Vec<&str> =
        datasets.iter().map(|set| set.rsplit(", ").next().unwrap_or(set)).collect();
    text += &format!(
        "JSD to Retrain ({}): {}; Original {}; noise floor {}.",
        names.join(" / "),
        shown.map(of_method).collect::<Vec<_>>().join("; "),
        each(original.iter().map(|row| mean(row))),
        each(gold.iter().map(|row| mean(row))),
    );
    Some(text)
}

fn grouping(rows: &[Row]) -> Option<String> {
    let row = rows.iter().find(|row| row.metric == DIFFERENCE && row.method == "random groups")?;
    let [low, high] = row.ci95?;
    Some(format!(
        "CURE minus random groups of equal size: {:+.5} ({low:+.5} to {high:+.5}), {}.",
        row.mean?,
        row.note.as_deref()?
    ))
}

fn recommender(rows: &[Row]) -> Option<String> {
    let auc: Vec<&Row> = rows
        .iter()
        .filter(|row| row.metric == "AUC" && row.dataset.ends_with("test of the recommender"))
        .collect();
    let (ours, others) = auc.split_first()?;
    let others: Vec<String> =
        others.iter().map(|row| format!("{} {}", row.method, mean(row))).collect();
    Some(format!("{}'s test AUC is {}; {}.", ours.method, mean(ours), others.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(dataset: &str, method: &str, role: Role, metric: &str, mean: f64) -> Row {
        Row {
            dataset: dataset.into(),
            method: method.into(),
            role,
            metric: metric.into(),
            higher_is_better: metric == "AUC",
            mean: Some(mean),
            ..Row::default()
        }
    }

    #[test]
    fn losses_come_first_and_each_request_is_named() {
        let mut rows = Vec::new();
        for (share, cure) in [("20 %", 0.004), ("1 %", 0.003)] {
            let set = format!("ml-100k, forget {share} of users");
            rows.push(Row {
                note: Some("inside the noise floor; lr".into()),
                ..row(&set, "CURE", Role::Paper, DISTANCE, cure)
            });
            rows.push(row(&set, "CURE", Role::Paper, PASSES, 0.08));
            rows.push(row(&set, ORIGINAL, Role::Control, DISTANCE, 0.0035));
            rows.push(row(&format!("{set}{GOLD}"), "Retrain", Role::Baseline, DISTANCE, 0.0026));
        }
        let text = headline(&rows);
        assert!(
            text.starts_with("CURE is not the nearest to Retrain on 1 of 2 requests (Original"),
            "{text}"
        );
        assert!(text.contains("(forget 20 % of users / forget 1 % of users)"), "{text}");
        assert!(text.contains("at 8.0 / 8.0 % of Retrain's token passes, 2 of 2 inside"), "{text}");
        assert!(
            text.ends_with("Original 0.003500 / 0.003500; noise floor 0.002600 / 0.002600."),
            "{text}"
        );
        assert_eq!(headline(&rows[..1]), "");
    }
}
