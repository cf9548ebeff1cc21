//! The rest of the ML-100k table: rare answers, full ranking, generation, shared prefix.

use std::collections::HashSet;
use std::time::Instant;

use common::report::{Role, Row};
use common::{Error, Result, metrics};

use super::movielens::{DATASET, MEMBERS, OVER_IDS, Other, Ours, Scored, Table, blank};
use super::{Context, Line, row};
use crate::baselines::Baseline;
use crate::config::Config;
use crate::data::{Dataset, Part, Question, Step};
use crate::encoders::graph::GraphEmbeddings;
use crate::ensemble::{Ensemble, Scores, softmax, temperature};
use crate::eval::{self, Query, Scorer};

/// The questions whose answer has at most five training events.
pub(super) fn cold_slice<'a>(
    table: &mut Table<'_>,
    data: &Dataset,
    methods: impl Iterator<Item = (&'a str, Role, &'a Scored)>,
) {
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
    for (method, role, scored) in methods {
        for (metric, k) in [("hr@1", 1), ("hr@5", 5)] {
            let credits = table.credits(scored, |ranks| eval::hits(ranks, k));
            let credits: Vec<Vec<f64>> =
                credits.iter().map(|seed| keep.iter().map(|&at| seed[at]).collect()).collect();
            let line = Line {
                dataset: "ml-100k, answers with at most 5 training events",
                claim: "cold items",
                method,
                role,
                metric,
                note: None,
            };
            table.report.rows.push(row(&line, &credits, table.resamples, started));
        }
    }
}

/// How far the probability of the first of 20 candidates is from how often it is right, before and
/// after a temperature learnt on validation.
pub(super) fn calibration(table: &mut Table<'_>, all: &Scored) -> Result<()> {
    let started = Instant::now();
    let positives = |queries: &[Query]| -> Vec<usize> {
        queries.iter().map(|query| query.positive.unwrap_or(0)).collect()
    };
    let learnt = temperature(&all.valid, &positives(&table.asked.valid));
    for (method, temperature) in
        [("TMF, probabilities as they are", 1.0), ("TMF, temperature from validation", learnt)]
    {
        let errors: Vec<f64> = table
            .asked
            .test
            .iter()
            .zip(&all.test)
            .map(|(queries, scores)| {
                let tops = scores.iter().zip(positives(queries)).map(|(scores, positive)| {
                    let scaled: Vec<f64> = scores.iter().map(|s| s / temperature).collect();
                    let shares = softmax(&scaled);
                    let top = (0..shares.len()).max_by(|&a, &b| shares[a].total_cmp(&shares[b]));
                    let top = top.unwrap_or(0);
                    (top == positive, shares[top])
                });
                let (right, sure): (Vec<bool>, Vec<f64>) = tops.unzip();
                metrics::ece(&right, &sure)
            })
            .collect();
        let (mean, sd) = common::stats::mean_sd(&errors);
        table.report.rows.push(Row {
            claim: "the probability of a recommendation is how often it is right".into(),
            metric: "calibration error of the first".into(),
            higher_is_better: false,
            mean: Some(mean),
            sd: (errors.len() > 1).then_some(sd),
            seeds: errors.len(),
            n: table.asked.test[0].len(),
            note: Some(format!("temperature {temperature:.2}")),
            seconds: Some(started.elapsed().as_secs_f64()),
            ..blank(method, Role::Ours)
        });
    }
    Ok(())
}

/// All unseen items: every method alone, the graph model's retrieval re-ranked by TMF, and the
/// ensemble.
pub(super) fn full(
    table: &mut Table<'_>,
    ours: &Ours<'_>,
    questions: &[Question],
    graph: &GraphEmbeddings,
    others: &[Other],
    ensemble: &Ensemble,
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
    let places: Vec<Option<usize>> = questions
        .iter()
        .zip(&unseen)
        .map(|(question, items)| items.iter().position(|&item| item == question.answer))
        .collect();
    let ranks = |scores: &Scores| -> Vec<Option<f64>> {
        let pairs = scores.iter().zip(&places);
        pairs.map(|(scores, place)| Some(metrics::rank_of(scores, (*place)?))).collect()
    };
    let pick = |full: &[Vec<f32>]| -> Scores {
        let pairs = full.iter().zip(&unseen);
        let of = |(row, items): (&Vec<f32>, &Vec<u32>)| {
            items.iter().map(|&item| f64::from(row[item as usize])).collect()
        };
        pairs.map(of).collect()
    };
    let by_graph: Scores = questions
        .iter()
        .zip(&unseen)
        .map(|(question, items)| graph.scores(question.user, items))
        .collect();
    let gcn = "LightGCN per behaviour".to_owned();
    let mut ranked = vec![(gcn, Role::Baseline, vec![ranks(&by_graph)])];
    for other in others {
        let seeds = other.full.iter().map(|full| ranks(&pick(full))).collect();
        ranked.push((other.baseline.name().into(), Role::Baseline, seeds));
    }
    let modalities = ours.prepared.switched(ours.config);
    let histories: Vec<&[Step]> = questions.iter().map(|question| &question.history[..]).collect();
    let scores = (0..ours.fitted.len())
        .map(|seed| {
            let scorer = ours.scorer(seed, &modalities);
            Ok(pick(&scorer.item_log_probs(&histories, &ours.context.workers)?))
        })
        .collect::<Result<Vec<Scores>>>()?;
    ranked.push(("TMF".into(), Role::Paper, scores.iter().map(ranks).collect()));
    let retrieved = ours.config.rank.retrieved;
    let reranked = |scores: &Scores| -> Vec<Option<f64>> {
        let one = |at: usize| {
            let mut order: Vec<usize> = (0..unseen[at].len()).collect();
            let by = &by_graph[at];
            order.sort_by(|&a, &b| by[b].total_cmp(&by[a]).then(a.cmp(&b)));
            order.truncate(retrieved);
            let place = order.iter().position(|&item| Some(item) == places[at])?;
            let scores: Vec<f64> = order.iter().map(|&item| scores[at][item]).collect();
            Some(metrics::rank_of(&scores, place))
        };
        (0..unseen.len()).map(one).collect()
    };
    let name = format!("LightGCN retrieves {retrieved}, TMF re-ranks");
    ranked.push((name, Role::Ours, scores.iter().map(reranked).collect()));
    let of = |wanted: Baseline, seed: usize| {
        let found = others.iter().find(|other| other.baseline == wanted);
        let found = found.and_then(|other| other.full.get(seed).or(other.full.first()));
        found.map(|full| pick(full)).ok_or_else(|| Error::Bug("a member was not scored".into()))
    };
    let joint = (0..scores.len())
        .map(|seed| {
            let over_ids = OVER_IDS.map(|baseline| of(baseline, seed));
            let over_ids = over_ids.into_iter().collect::<Result<Vec<Scores>>>()?;
            let members = [&scores[seed], &by_graph].into_iter().chain(&over_ids);
            Ok(ranks(&ensemble.scores(&members.collect::<Vec<_>>())))
        })
        .collect::<Result<_>>()?;
    ranked.push((MEMBERS.join(" + "), Role::Ours, joint));
    for (method, role, seeds) in ranked {
        for (metric, gain) in [("hr@10", false), ("ndcg@10", true)] {
            let credit = |ranks: &Vec<Option<f64>>| {
                if gain { eval::ndcg(ranks, 10) } else { eval::hits(ranks, 10) }
            };
            let credits: Vec<Vec<f64>> = seeds.iter().map(credit).collect();
            let line = Line {
                dataset: "ml-100k, full ranking",
                claim: "the whole catalogue is ranked",
                method: &method,
                role,
                metric,
                note: None,
            };
            table.report.rows.push(row(&line, &credits, table.resamples, started));
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
    method: &str,
    role: Role,
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
            method: format!("{method}, greedy generation"),
            role,
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
