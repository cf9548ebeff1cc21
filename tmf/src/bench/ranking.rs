//! The rest of the ML-100k table: rare answers, full ranking, generation, shared prefix.

use std::collections::HashSet;
use std::time::Instant;

use common::report::{Role, Row};
use common::{Error, Result, metrics};

use super::movielens::{DATASET, Other, Scored, Table};
use super::{Context, Line, row};
use crate::config::Config;
use crate::data::{Dataset, Part, Question};
use crate::encoders::graph::GraphEmbeddings;
use crate::eval::{self, Query, Scorer};

/// The questions whose answer has at most five training events.
pub(super) fn cold_slice(table: &mut Table<'_>, data: &Dataset, open: &Scored, light_gcn: &Scored) {
    let started = Instant::now();
    let rare = eval::rare_items(&data.before(Part::Valid), data.items.len(), 5);
    let answers = table.asked.test[0].iter().enumerate();
    let keep: Vec<usize> = answers
        .filter(|(_, q)| q.positive.is_some_and(|at| rare[q.items[at] as usize]))
        .map(|(at, _)| at)
        .collect();
    if keep.is_empty() {
        return;
    }
    for (method, role, scored) in [
        ("TMF, candidates not listed", Role::Ours, open),
        ("LightGCN per behaviour", Role::Baseline, light_gcn),
    ] {
        let credits = table.credits(scored, |ranks| eval::hits(ranks, 1));
        let credits: Vec<Vec<f64>> =
            credits.iter().map(|seed| keep.iter().map(|&at| seed[at]).collect()).collect();
        let line = Line {
            dataset: "ml-100k, answers with at most 5 training events",
            claim: "cold items",
            method,
            role,
            metric: "hr@1",
            note: None,
        };
        table.report.rows.push(row(&line, &credits, table.resamples, started));
    }
}

/// All unseen items: the graph model retrieves, the LM orders anew.
pub(super) fn full(
    table: &mut Table<'_>,
    config: &Config,
    context: &Context,
    questions: &[Question],
    graph: &GraphEmbeddings,
    scorer: &Scorer<'_>,
    others: &[Other],
) -> Result<()> {
    let started = Instant::now();
    let items = graph.items.nrows() as u32;
    let unseen: Vec<Vec<u32>> = questions
        .iter()
        .map(|question| {
            let seen: HashSet<u32> = question.history.iter().map(|step| step.item).collect();
            (0..items).filter(|item| !seen.contains(item)).collect()
        })
        .collect();
    let rank_all = |score: &dyn Fn(usize, &[u32]) -> Vec<f64>| -> Vec<Option<f64>> {
        let one = |(at, question): (usize, &Question)| {
            let place = unseen[at].iter().position(|&item| item == question.answer)?;
            Some(metrics::rank_of(&score(at, &unseen[at]), place))
        };
        questions.iter().enumerate().map(one).collect()
    };
    let mut ranked = vec![(
        "LightGCN per behaviour".to_owned(),
        Role::Baseline,
        rank_all(&|at, items| graph.scores(questions[at].user, items)),
    )];
    for (baseline, _, full) in others {
        let score = |at: usize, items: &[u32]| -> Vec<f64> {
            items.iter().map(|&item| f64::from(full[at][item as usize])).collect()
        };
        ranked.push((baseline.name().into(), Role::Baseline, rank_all(&score)));
    }
    let queries: Vec<Query> = questions
        .iter()
        .zip(&unseen)
        .map(|(question, items)| {
            let scores = graph.scores(question.user, items);
            let mut order: Vec<usize> = (0..items.len()).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
            order.truncate(config.rank.retrieved);
            let items: Vec<u32> = order.into_iter().map(|at| items[at]).collect();
            let positive = items.iter().position(|&item| item == question.answer);
            Query { user: question.user, history: question.history.clone(), items, positive }
        })
        .collect();
    let scores = eval::score(scorer, &queries, false, config.rank.mean, &context.workers)?;
    let name = format!("LightGCN retrieves {}, TMF re-ranks", config.rank.retrieved);
    ranked.push((name, Role::Ours, eval::ranks(&queries, &scores)));
    for (method, role, ranks) in ranked {
        let metrics = [("hr@10", eval::hits(&ranks, 10)), ("ndcg@10", eval::ndcg(&ranks, 10))];
        for (metric, credits) in metrics {
            let line = Line {
                dataset: "ml-100k, full ranking",
                claim: "candidates from the graph model, re-ranked by the LLM",
                method: &method,
                role,
                metric,
                note: None,
            };
            table.report.rows.push(row(&line, &[credits], table.resamples, started));
        }
    }
    Ok(())
}

/// LLaRA's protocol: a generated answer counts if it names exactly one candidate.
pub(super) fn generation(
    table: &mut Table<'_>,
    config: &Config,
    context: &Context,
    scorer: &Scorer<'_>,
) -> Result<()> {
    let started = Instant::now();
    let queries = &table.asked.test[0];
    let most = config.rank.answer_tokens;
    let outcome = eval::generate(scorer, queries, most, &context.workers)?;
    let rows = [
        ("generated: valid ratio", outcome.valid_ratio),
        ("generated: hit ratio@1", outcome.hit_ratio),
    ];
    for (metric, value) in rows {
        table.report.rows.push(Row {
            paper: "tmf".into(),
            claim: "the generated answer names one candidate".into(),
            dataset: DATASET.into(),
            method: "TMF, greedy generation".into(),
            role: Role::Paper,
            metric: metric.into(),
            mean: Some(value),
            n: queries.len(),
            note: Some("LLaRA's rule; likelihood ranking is always valid".into()),
            seconds: Some(started.elapsed().as_secs_f64()),
            ..Row::default()
        });
    }
    Ok(())
}

/// Scores of candidates with a shared prefix must be those of whole prompts; the times of both go
/// into the rows' seconds.
pub(super) fn shared_prefix(table: &mut Table<'_>, scorer: &Scorer<'_>) -> Result<()> {
    let queries = &table.asked.test[0][..table.asked.test[0].len().min(4)];
    let started = Instant::now();
    let shared = queries
        .iter()
        .map(|q| scorer.log_likelihoods(&q.history, Some(&q.items), &q.items))
        .collect::<Result<Vec<_>>>()?;
    let together = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let apart = queries
        .iter()
        .map(|q| scorer.log_likelihoods_apart(&q.history, Some(&q.items), &q.items))
        .collect::<Result<Vec<_>>>()?;
    let alone = started.elapsed().as_secs_f64();
    for (a, b) in shared.iter().flatten().zip(apart.iter().flatten()) {
        if (a.0 - b.0).abs() > 1e-3 * a.0.abs().max(1.0) {
            return Err(Error::Bug(format!("shared prefix {} against whole prompt {}", a.0, b.0)));
        }
    }
    tracing::info!("shared prefix {:.1} times as fast as whole prompts", alone / together);
    for (method, seconds) in [("shared prefix", together), ("whole prompts", alone)] {
        table.report.rows.push(Row {
            paper: "tmf".into(),
            claim: "the shared prefix saves time and changes nothing".into(),
            dataset: "ml-100k, 4 questions of 20 listed candidates, one core".into(),
            method: method.into(),
            role: Role::Control,
            metric: "share of equal likelihoods".into(),
            mean: Some(1.0),
            n: queries.len(),
            note: Some("compare the seconds".into()),
            seconds: Some(seconds),
            ..Row::default()
        });
    }
    Ok(())
}
