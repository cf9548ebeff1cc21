//! ML-100k as three behaviours: 20 candidates, all users.

use std::time::Instant;

use common::encode::TextEncoder;
use common::report::{Figure, Report, Role, Row, plot};
use common::rng::Seed;
use common::{Error, Result, stats};

use super::{Context, Line, over_seeds, ranking, row};
use crate::baselines::{self, Baseline, FullScores};
use crate::config::Config;
use crate::data::{Dataset, Part, Question, candidates, movielens};
use crate::encoders::graph::GraphEmbeddings;
use crate::ensemble::{Ensemble, Scores};
use crate::eval::{self, Query, Scorer};
use crate::model::{CmaScope, GRAPH, MODALITIES, Modalities, TEXT, Used};
use crate::pipeline::{self, Encoded, Fitted, Prepared};
use crate::train::Curriculum;

pub(super) const DATASET: &str = "ml-100k, 20 candidates";
const CLAIM: &str = "three modalities fused into an LLM rank the next item first";

/// Users' questions with the candidate lists of every seed.
pub(super) struct Asked {
    pub(super) valid: Vec<Query>,
    /// One list of queries per seed.
    pub(super) test: Vec<Vec<Query>>,
}

/// Scores of one method: on the validation queries and on the test queries of every seed.
pub(super) struct Scored {
    pub(super) valid: Scores,
    pub(super) test: Vec<Scores>,
}

/// A baseline with its scores on the candidates and on the whole catalogue at test.
pub(super) type Other = (Baseline, Scored, FullScores);

pub(super) struct Table<'a> {
    pub(super) report: &'a mut Report,
    pub(super) resamples: usize,
    pub(super) asked: &'a Asked,
}

impl Table<'_> {
    pub(super) fn credits(
        &self,
        scored: &Scored,
        credit: impl Fn(&[Option<f64>]) -> Vec<f64>,
    ) -> Vec<Vec<f64>> {
        let seeds = self.asked.test.iter().zip(&scored.test);
        seeds.map(|(queries, scores)| credit(&eval::ranks(queries, scores))).collect()
    }

    fn add(
        &mut self,
        method: &str,
        role: Role,
        scored: &Scored,
        note: Option<String>,
        started: Instant,
    ) {
        let all = [("hr@1", 1, false), ("hr@3", 3, false), ("hr@5", 5, false), ("ndcg@5", 5, true)];
        for (metric, k, gain) in all {
            if metric != "hr@1" && matches!(role, Role::Ablation | Role::Control) {
                continue;
            }
            let credits = self.credits(scored, |ranks| match gain {
                true => eval::ndcg(ranks, k),
                false => eval::hits(ranks, k),
            });
            let line =
                Line { dataset: DATASET, claim: CLAIM, method, role, metric, note: note.clone() };
            self.report.rows.push(row(&line, &credits, self.resamples, started));
        }
    }
}

fn blank(method: &str, role: Role) -> Row {
    Row {
        paper: "tmf".into(),
        claim: CLAIM.into(),
        dataset: DATASET.into(),
        method: method.into(),
        role,
        metric: "hr@1".into(),
        ..Row::default()
    }
}

/// Runs the ML-100k part; a "not run" row where an asset is absent.
pub(super) fn run(config: &Config, context: &Context, report: &mut Report) -> Result<()> {
    let needed = movielens::load(&context.assets, false)
        .and_then(|data| Ok((data, TextEncoder::minilm(&context.assets)?)));
    let (mut data, encoder) = match needed {
        Ok(needed) => needed,
        Err(error @ Error::Asset { .. }) => {
            report.rows.push(blank("TMF", Role::Paper).not_run(&error.to_string()));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    if config.bench.users > 0 {
        data.sequences.truncate(config.bench.users);
        data.users.truncate(config.bench.users);
    }
    let text = pipeline::text(&data, &encoder.with_cache(&context.encoded)?)?;
    let questions = [data.questions(Part::Valid), data.questions(Part::Test)];
    let asked = ask(&data, &questions, config, context)?;
    let base = Seed::new(context.seeds.first().copied().unwrap_or(0));
    let started = Instant::now();
    let train = data.before(Part::Valid);
    let graph = pipeline::graph(&data, &train, config, base, &context.kept)?;
    let mut table = Table { report, resamples: config.bench.resamples, asked: &asked };
    let by_graph = |queries: &[Query]| -> Scores {
        queries.iter().map(|query| graph.scores(query.user, &query.items)).collect()
    };
    let light_gcn = Scored {
        valid: by_graph(&asked.valid),
        test: asked.test.iter().map(|queries| by_graph(queries)).collect(),
    };
    table.add("LightGCN per behaviour", Role::Baseline, &light_gcn, None, started);
    let others = models_over_ids(&mut table, &data, &questions, config, context, base)?;

    let encoded = |graph: &GraphEmbeddings| -> [Option<Encoded>; 3] {
        [None, Some(text.clone()), Some((graph.items.clone(), graph.present.clone()))]
    };
    let pool: Vec<u32> = (0..data.items.len() as u32).collect();
    let prepared = Prepared::new(data.clone(), train.clone(), pool, encoded(&graph), config)?;
    let modalities = prepared.switched(config);
    let started = Instant::now();
    let fitted: Vec<Fitted> = context
        .seeds
        .iter()
        .map(|&seed| {
            let seed = Seed::new(seed);
            pipeline::fit(&prepared, config, base, seed, &context.kept, &context.workers)
        })
        .collect::<Result<_>>()?;
    let all = |modalities: &Modalities, used: Used, listed: bool| {
        let score = |at: usize, queries: &[Query]| {
            let model = &fitted[at].model;
            let scorer = Scorer { model, prompter: &prepared.prompter, modalities, used };
            eval::score(&scorer, queries, listed, config.rank.mean, &context.workers)
        };
        let seeds = asked.test.iter().enumerate();
        Ok::<_, Error>(Scored {
            valid: score(0, &asked.valid)?,
            test: seeds.map(|(at, queries)| score(at, queries)).collect::<Result<_>>()?,
        })
    };
    let listed = all(&modalities, [true; 3], true)?;
    let note = "the prompt lists the candidates, ranked by likelihood; a small LM trained from \
                scratch in place of Llama2-7B; no images exist for this data, so image is absent";
    table.add("TMF", Role::Paper, &listed, Some(note.into()), started);
    let started = Instant::now();
    let open = all(&modalities, [true; 3], false)?;
    let note = Some("the prompt ends after the history; the same models".to_owned());
    table.add("TMF, candidates not listed", Role::Ours, &open, note, started);
    ensembles(&mut table, &open, &light_gcn, &others)?;

    let started = Instant::now();
    for which in [TEXT, GRAPH] {
        let name = MODALITIES[which];
        let removed = all(&modalities, [0, 1, 2].map(|at| at != which), false)?;
        let note = Some("the same models, candidates not listed".to_owned());
        let method = format!("{name} removed at test");
        table.add(&method, Role::Control, &removed, note.clone(), started);
        let changed = all(&shuffled(&modalities, which, base)?, [true; 3], false)?;
        let method = format!("{name} shuffled across items at test");
        table.add(&method, Role::Control, &changed, note, started);
    }
    for (name, role, changed) in variants(config) {
        if !config.bench.variants.iter().any(|wanted| wanted == name) {
            let why = format!("left out in this profile; add \"{name}\" to bench.variants");
            table.report.rows.push(blank(name, role).not_run(&why));
            continue;
        }
        let started = Instant::now();
        let other = (changed.prompt != config.prompt)
            .then(|| {
                let pool = prepared.pool.clone();
                Prepared::new(data.clone(), train.clone(), pool, encoded(&graph), &changed)
            })
            .transpose()?;
        let prepared = other.as_ref().unwrap_or(&prepared);
        let fitted =
            pipeline::fit(prepared, &changed, base, base, &context.kept, &context.workers)?;
        let modalities = prepared.switched(&changed);
        let scorer = Scorer {
            model: &fitted.model,
            prompter: &prepared.prompter,
            modalities: &modalities,
            used: [true; 3],
        };
        let score = |queries: &Vec<Query>| {
            eval::score(&scorer, queries, false, config.rank.mean, &context.workers)
        };
        let test = asked.test.iter().map(score).collect::<Result<_>>()?;
        let note = Some("one training, all candidate files, candidates not listed".to_owned());
        table.add(name, role, &Scored { valid: Vec::new(), test }, note, started);
    }
    let scorer = Scorer {
        model: &fitted[0].model,
        prompter: &prepared.prompter,
        modalities: &modalities,
        used: [true; 3],
    };
    ranking::cold_slice(&mut table, &data, &open, &light_gcn);
    ranking::full(&mut table, config, context, &questions[1], &graph, &scorer, &others)?;
    ranking::generation(&mut table, config, context, &scorer)?;
    ranking::shared_prefix(&mut table, &scorer)?;
    figures(report, &prepared, &fitted[0], &scorer, &asked)
}

/// Draws the candidate lists and writes those of the test to the run's folder.
fn ask(
    data: &Dataset,
    questions: &[Vec<Question>; 2],
    config: &Config,
    context: &Context,
) -> Result<Asked> {
    let pool: Vec<u32> = (0..data.items.len() as u32).collect();
    let draw = |questions: &[Question], seed: u64, purpose: &str| -> Result<Vec<Query>> {
        let count = config.rank.candidates;
        let lists = candidates::draw(data, questions, &pool, count, Seed::new(seed), purpose)?;
        if purpose == "test" {
            let name = format!("candidates-{seed}.jsonl");
            candidates::write(&context.folder.join(name), data, &lists)?;
        }
        let queries = questions.iter().zip(lists).map(|(question, list)| Query {
            user: question.user,
            history: question.history.clone(),
            items: list.items,
            positive: Some(list.positive),
        });
        Ok(queries.collect())
    };
    let first = context.seeds.first().copied().unwrap_or(0);
    let test = context.seeds.iter().map(|&seed| draw(&questions[1], seed, "test"));
    Ok(Asked { valid: draw(&questions[0], first, "valid")?, test: test.collect::<Result<_>>()? })
}

fn models_over_ids(
    table: &mut Table<'_>,
    data: &Dataset,
    questions: &[Vec<Question>; 2],
    config: &Config,
    context: &Context,
    seed: Seed,
) -> Result<Vec<Other>> {
    let mut others = Vec::new();
    for baseline in Baseline::ALL {
        let started = Instant::now();
        let both = [&questions[0][..], &questions[1][..]];
        let epochs = config.bench.baseline_epochs;
        let [valid, test] = baselines::scores(baseline, data, both, epochs, seed, &context.kept)?;
        let pick = |full: &FullScores, queries: &[Query]| -> Scores {
            let score = |(row, query): (&Vec<f32>, &Query)| {
                query.items.iter().map(|&item| f64::from(row[item as usize])).collect()
            };
            full.iter().zip(queries).map(score).collect()
        };
        let asked = table.asked;
        let scored = Scored {
            valid: pick(&valid, &asked.valid),
            test: asked.test.iter().map(|queries| pick(&test, queries)).collect(),
        };
        let note = baseline.is_seeded().then(|| "one training, all candidate files".to_owned());
        let role = if baseline == Baseline::Random { Role::Control } else { Role::Baseline };
        table.add(baseline.name(), role, &scored, note, started);
        others.push((baseline, scored, test));
    }
    Ok(others)
}

/// The ablation switches of §3.2, and the text-only and LLaRA-style models.
fn variants(config: &Config) -> Vec<(&'static str, Role, Config)> {
    let changed = |change: &dyn Fn(&mut Config)| {
        let mut config = config.clone();
        change(&mut config);
        config
    };
    let (baseline, ablation) = (Role::Baseline, Role::Ablation);
    vec![
        (
            "text-only LM",
            baseline,
            changed(&|c| {
                (c.modalities.image, c.modalities.text, c.modalities.graph) = (false, false, false);
            }),
        ),
        (
            "LLaRA-style",
            baseline,
            changed(&|c| {
                (c.modalities.image, c.modalities.text) = (false, false);
                (c.fusion.cma, c.fusion.amsa) = (CmaScope::Off, false);
                c.fusion.behaviours = false;
                c.train.curriculum = Curriculum::Linear;
            }),
        ),
        ("without text embedding", ablation, changed(&|c| c.modalities.text = false)),
        ("without graph", ablation, changed(&|c| c.modalities.graph = false)),
        ("without CMA", ablation, changed(&|c| c.fusion.cma = CmaScope::Off)),
        ("without AMSA", ablation, changed(&|c| c.fusion.amsa = false)),
        (
            "without behaviour tokens",
            ablation,
            changed(&|c| (c.prompt.behaviour_tokens, c.fusion.behaviours) = (false, false)),
        ),
        ("without curriculum", ablation, changed(&|c| c.train.curriculum = Curriculum::None)),
        ("without warm-up", ablation, changed(&|c| c.train.warm_up.steps = 0)),
    ]
}

/// Rows of one modality permuted among the items.
pub(super) fn shuffled(modalities: &Modalities, which: usize, seed: Seed) -> Result<Modalities> {
    let mut changed = modalities.clone();
    if let Some(modality) = &mut changed[which] {
        let count = modality.present.len();
        let order = seed.stream(&format!("shuffle/{which}")).permutation(count);
        let ids: Vec<u32> = order.iter().map(|&at| at as u32).collect();
        let ids = candle_core::Tensor::new(&ids[..], &candle_core::Device::Cpu)?;
        modality.vectors = modality.vectors.index_select(&ids, 0)?;
        modality.present = order.iter().map(|&at| modality.present[at]).collect();
    }
    Ok(changed)
}

/// Ensembles learnt on validation, the same without the LM, and paired differences to the floors.
fn ensembles(
    table: &mut Table<'_>,
    open: &Scored,
    light_gcn: &Scored,
    others: &[Other],
) -> Result<()> {
    let positives: Vec<usize> =
        table.asked.valid.iter().map(|query| query.positive.unwrap_or(0)).collect();
    let of = |wanted: Baseline| {
        let found = others.iter().find(|other| other.0 == wanted).map(|other| &other.1);
        found.ok_or_else(|| Error::Bug(format!("{} was not scored", wanted.name())))
    };
    let (tmf, gcn) = (("TMF", open), ("LightGCN", light_gcn));
    let (knn, sasrec) =
        (("item-kNN", of(Baseline::TunedItemKnn)?), ("SASRec", of(Baseline::Sasrec)?));
    let sets = [
        ("TMF + LightGCN", Role::Ours, vec![tmf, gcn]),
        ("TMF + LightGCN + item-kNN", Role::Ours, vec![tmf, gcn, knn]),
        ("TMF + LightGCN + item-kNN + SASRec", Role::Ours, vec![tmf, gcn, knn, sasrec]),
        ("LightGCN + item-kNN + SASRec, no TMF", Role::Control, vec![gcn, knn, sasrec]),
    ];
    let mut joint: Vec<(&str, Scored)> = Vec::new();
    for (name, role, members) in sets {
        let started = Instant::now();
        let valid: Vec<&Scores> = members.iter().map(|m| &m.1.valid).collect();
        let ensemble = Ensemble::fit(&valid, &positives)?;
        let test = (0..table.asked.test.len())
            .map(|seed| {
                let scores: Vec<&Scores> = members.iter().map(|m| &m.1.test[seed]).collect();
                ensemble.scores(&scores)
            })
            .collect();
        let pairs = members.iter().zip(&ensemble.weights);
        let weights: Vec<String> =
            pairs.map(|((name, _), weight)| format!("{name} {weight:.2}")).collect();
        let scored = Scored { valid: ensemble.scores(&valid), test };
        let note = Some(format!("weights learnt on validation: {}", weights.join(", ")));
        table.add(name, role, &scored, note, started);
        joint.push((name, scored));
    }
    let hits = |table: &Table<'_>, scored: &Scored| {
        over_seeds(&table.credits(scored, |ranks| eval::hits(ranks, 1)))
    };
    let control = hits(table, &joint[3].1);
    let compared = [
        ("TMF, candidates not listed", open),
        (joint[0].0, &joint[0].1),
        (joint[1].0, &joint[1].1),
        (joint[2].0, &joint[2].1),
    ];
    let mut differences = Vec::new();
    for (name, scored) in compared {
        let ours = hits(table, scored);
        for floor in [Baseline::ItemKnn, Baseline::Sasrec] {
            differences.push((name, ours.clone(), floor.name(), hits(table, of(floor)?)));
        }
    }
    differences.push((joint[2].0, hits(table, &joint[2].1), joint[3].0, control));
    for (name, ours, floor, theirs) in differences {
        let mut stream = Seed::new(0).stream(&format!("paired/{name}/{floor}"));
        let paired = stats::paired_bootstrap(&ours, &theirs, table.resamples, &mut stream);
        table.report.rows.push(Row {
            claim: format!("hr@1 above that of {floor}"),
            metric: "paired difference in hr@1".into(),
            mean: Some(paired.difference),
            ci95: Some(paired.ci95),
            seeds: table.asked.test.len(),
            n: ours.len(),
            note: Some(format!("p = {:.4}, bootstrap over users", paired.p)),
            ..blank(&format!("{name} minus {floor}"), Role::Ours)
        });
    }
    Ok(())
}

/// Comparison, training curves and what the fusion looks at.
fn figures(
    report: &mut Report,
    prepared: &Prepared,
    fitted: &Fitted,
    scorer: &Scorer<'_>,
    asked: &Asked,
) -> Result<()> {
    let shown = |r: &&Row| r.dataset == DATASET && r.metric == "hr@1" && r.mean.is_some();
    let rows: Vec<&Row> = report.rows.iter().filter(shown).collect();
    let labels = plot::Labels { title: "Hit rate at 1 on ML-100k", x: "hr@1", y: "" };
    let svg = plot::row_bars(labels, &rows);
    let caption = "20 candidates; 95 % bootstrap intervals over users.";
    report.figures.push(Figure::new("ML-100k hit rate at 1", caption, svg));
    let mut lines = Vec::new();
    let mut offset = 0.0;
    for (name, records) in [("warm-up on text", &fitted.warm_up), ("fusion", &fitted.fusion)] {
        let points: Vec<(f64, f64)> =
            records.iter().map(|r| (offset + r.step as f64, r.loss)).collect();
        offset += records.last().map_or(0.0, |r| r.step as f64);
        if !points.is_empty() {
            lines.push(plot::Line { name: name.into(), points });
        }
    }
    if !lines.is_empty() {
        let labels = plot::Labels { title: "Training", x: "step", y: "cross-entropy per token" };
        let svg = plot::lines(labels, &lines);
        report.figures.push(Figure::new("training curve", "Mean loss of 25 steps each.", svg));
    }
    let mut groups = Vec::new();
    let mut shares: Vec<[f64; 3]> = Vec::new();
    for query in asked.test[0].iter().take(8) {
        if let Some(share) = scorer.attention(&query.history)? {
            groups.push(format!("user {}", prepared.data.users[query.user]));
            shares.push(share);
        }
    }
    if !groups.is_empty() {
        let series: Vec<plot::Series> = [TEXT, GRAPH]
            .into_iter()
            .map(|at| plot::Series {
                name: MODALITIES[at].into(),
                values: shares.iter().map(|share| share[at]).collect(),
            })
            .collect();
        let labels =
            plot::Labels { title: "What the newest event looks at", x: "share of AMSA", y: "" };
        let svg = plot::grouped_bars(labels, &groups, &series);
        let caption = "Attention weights of eight users' newest events, summed per modality.";
        report.figures.push(Figure::new("attention per modality", caption, svg));
    }
    Ok(())
}
