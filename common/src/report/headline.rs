//! The sentence above a table.

use super::{Role, Row, number};

/// One sentence on the first metric of every dataset: where a baseline or control beats the
/// paper's method and ours, that comes first, with both numbers; then where they win.
///
/// Datasets count in the order of the rows. Within one, the metric of its first measured `paper`
/// or `ours` row is compared over all rows of that dataset.
pub fn headline(rows: &[Row]) -> String {
    let mut lost = Vec::new();
    let mut won = Vec::new();
    let mut alone = Vec::new();
    for dataset in datasets(rows) {
        let here: Vec<&Row> =
            rows.iter().filter(|row| row.dataset == dataset && row.mean.is_some()).collect();
        let Some(first) = here.iter().find(|row| champion(row.role)) else { continue };
        let metric = &first.metric;
        let best_of = |keep: fn(Role) -> bool| {
            here.iter()
                .filter(|row| row.metric == *metric && keep(row.role))
                .copied()
                .reduce(|best, row| if row.beats(best) { row } else { best })
        };
        let Some(best) = best_of(champion) else { continue };
        match best_of(|role| matches!(role, Role::Baseline | Role::Control)) {
            Some(rival) if rival.beats(best) => lost.push(compare(rival, best)),
            Some(rival) if best.beats(rival) => won.push(compare(best, rival)),
            Some(rival) => lost.push(format!("{} ties {}", words(rival), words(best))),
            None => alone.push(words(best)),
        }
    }
    let mut parts = Vec::new();
    if !lost.is_empty() {
        parts.push(format!("A baseline wins or ties: {}", lost.join("; ")));
    }
    if !won.is_empty() {
        parts.push(format!("Best: {}", won.join("; ")));
    }
    if !alone.is_empty() {
        parts.push(format!("Without a baseline: {}", alone.join("; ")));
    }
    if parts.is_empty() {
        return "Nothing was measured.".to_owned();
    }
    parts.join(". ") + "."
}

fn champion(role: Role) -> bool {
    matches!(role, Role::Paper | Role::Ours)
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

fn words(row: &Row) -> String {
    let mean = row.mean.map_or_else(String::new, |mean| format!(" {}", number(mean)));
    format!("{} ({}) with {}{mean} on {}", row.method, row.role.name(), row.metric, row.dataset)
}

fn compare(winner: &Row, loser: &Row) -> String {
    let mean = loser.mean.map_or_else(String::new, |mean| format!(" {}", number(mean)));
    format!("{} against {} ({}){mean}", words(winner), loser.method, loser.role.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(method: &str, role: Role, mean: f64) -> Row {
        Row {
            dataset: "rte".into(),
            method: method.into(),
            role,
            metric: "accuracy".into(),
            mean: Some(mean),
            ..Row::default()
        }
    }

    #[test]
    fn a_winning_baseline_comes_first() {
        let mut rows = vec![row("IWMV", Role::Paper, 0.9), row("vote", Role::Baseline, 0.91)];
        let text = headline(&rows);
        assert!(text.starts_with("A baseline wins or ties: vote (baseline)"), "{text}");
        rows.push(row("hybrid", Role::Ours, 0.92));
        let text = headline(&rows);
        assert!(text.starts_with("Best: hybrid (ours)"), "{text}");
    }

    #[test]
    fn losses_count_downwards_and_unmeasured_rows_not_at_all() {
        let loss = |row: Row| Row { higher_is_better: false, ..row };
        let rows = [
            loss(row("paper", Role::Paper, 0.4)),
            loss(row("simple", Role::Baseline, 0.3)),
            row("absent", Role::Baseline, 0.0).not_run("no key"),
        ];
        assert!(headline(&rows).contains("simple (baseline) with accuracy 0.3000"));
        assert_eq!(headline(&rows[2..]), "Nothing was measured.");
    }

    #[test]
    fn ablations_are_no_rivals() {
        let rows = [row("IWMV", Role::Paper, 0.9), row("no weights", Role::Ablation, 0.95)];
        assert!(headline(&rows).starts_with("Without a baseline"));
    }
}
