//! The sentence above a table.

use super::{Role, Row, number};

/// Comparisons spelled out on each side; more are counted.
const SHOWN: usize = 3;

/// A short statement on the first metric of every dataset: where a baseline or control beats or
/// ties the paper's method and ours, that comes first, with both numbers; then where they win, by
/// the largest margins.
///
/// Datasets count in the order of the rows. Within one, the metric of its first measured `paper`
/// or `ours` row is compared over all rows of that dataset.
pub fn headline(rows: &[Row]) -> String {
    let mut lost: Vec<(&Row, &Row)> = Vec::new();
    let mut won: Vec<(&Row, &Row)> = Vec::new();
    let mut alone: Vec<&Row> = Vec::new();
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
            Some(rival) if best.beats(rival) => won.push((best, rival)),
            Some(rival) => lost.push((rival, best)),
            None => alone.push(best),
        }
    }
    let compared = lost.len() + won.len();
    let mut parts = Vec::new();
    if !lost.is_empty() {
        let on = share(lost.len(), compared);
        parts.push(format!("A baseline wins or ties{on}: {}", spelled(lost)));
    }
    if !won.is_empty() {
        let on = share(won.len(), compared);
        parts.push(format!("Ours or the paper's method wins{on}: {}", spelled(won)));
    }
    if compared == 0 && !alone.is_empty() {
        let words: Vec<String> = alone.into_iter().take(SHOWN).map(words).collect();
        parts.push(format!("Without a baseline: {}", words.join("; ")));
    }
    if parts.is_empty() {
        return "Nothing was measured.".to_owned();
    }
    parts.join(". ") + "."
}

/// " on 3 of 12 data sets", or nothing when there is only one.
fn share(count: usize, all: usize) -> String {
    if all == 1 { String::new() } else { format!(" on {count} of {all} data sets") }
}

/// The pairs with the largest margins, and how many there are besides.
fn spelled(mut pairs: Vec<(&Row, &Row)>) -> String {
    let margin = |(winner, loser): &(&Row, &Row)| match (winner.mean, loser.mean) {
        (Some(winner), Some(loser)) => (winner - loser).abs(),
        _ => 0.0,
    };
    pairs.sort_by(|a, b| margin(b).total_cmp(&margin(a)));
    let more = pairs.len().saturating_sub(SHOWN);
    let mut words: Vec<String> =
        pairs.iter().take(SHOWN).map(|(winner, loser)| compare(winner, loser)).collect();
    if more > 0 {
        words.push(format!("and {more} more"));
    }
    words.join("; ")
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
        assert!(text.starts_with("Ours or the paper's method wins: hybrid (ours)"), "{text}");
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
    fn many_data_sets_are_counted_and_a_tie_is_no_win() {
        let on = |set: usize, row: Row| Row { dataset: format!("set {set}"), ..row };
        let rows: Vec<Row> = (0..6)
            .flat_map(|set| {
                let gain = 0.01 * set as f64;
                [
                    on(set, row("IWMV", Role::Paper, 0.8 + gain)),
                    on(set, row("vote", Role::Baseline, 0.8)),
                ]
            })
            .collect();
        let text = headline(&rows);
        assert!(text.starts_with("A baseline wins or ties on 1 of 6 data sets: vote"), "{text}");
        assert!(text.contains("wins on 5 of 6 data sets: IWMV (paper) with accuracy 0.8500"));
        assert!(text.ends_with("and 2 more."), "{text}");
    }

    #[test]
    fn ablations_are_no_rivals() {
        let rows = [row("IWMV", Role::Paper, 0.9), row("no weights", Role::Ablation, 0.95)];
        assert!(headline(&rows).starts_with("Without a baseline"));
    }
}
