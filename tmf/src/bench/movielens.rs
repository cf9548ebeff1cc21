//! ML-100k as three behaviours: 20 candidates, all users.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use common::encode::TextEncoder;
use common::files::atomic_write;
use common::optim::Workers;
use common::report::{Figure, Report, Role, Row, plot};
use common::rng::Seed;
use common::{Error, Result, stats};
use serde_json::json;

use super::{Context, Job, Line, ablations, ahead, bundled, over_seeds, ranking, row};
use crate::baselines::{self, Baseline, FullScores};
use crate::config::{Config, GraphEncoder};
use crate::data::{Dataset, Part, Question, Step, candidates, movielens};
use crate::ensemble::{Ensemble, Scores};
use crate::eval::{self, Query, Scorer};
use crate::model::{GRAPH, MODALITIES, Modalities, TEXT};
use crate::pipeline::{self, Encoded, Fitted, Prepared};

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

/// A baseline.
pub(super) struct Other {
    pub(super) baseline: Baseline,
    /// On the candidates.
    pub(super) scored: Scored,
    /// On the whole catalogue at test, one per training.
    pub(super) full: Vec<FullScores>,
}

pub(super) struct Table<'a> {
    pub(super) report: &'a mut Report,
    /// Who was a hit at 1, `[seed][question]` by method.
    pub(super) hits: Vec<(String, Vec<Vec<f64>>)>,
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

    pub(super) fn add(
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
            if metric == "hr@1" {
                self.hits.push((method.to_owned(), credits.clone()));
            }
            let line =
                Line { dataset: DATASET, claim: CLAIM, method, role, metric, note: note.clone() };
            self.report.rows.push(row(&line, &credits, self.resamples, started));
        }
    }
}

impl Table<'_> {
    /// Mean difference in HR@1 over the same users and candidate lists.
    pub(super) fn difference(
        &mut self,
        name: &str,
        role: Role,
        ours: &Scored,
        floor: &str,
        theirs: &Scored,
    ) {
        let hits = |scored: &Scored| over_seeds(&self.credits(scored, |r| eval::hits(r, 1)));
        let (ours, theirs) = (hits(ours), hits(theirs));
        let mut stream = Seed::new(0).stream(&format!("paired/{name}/{floor}"));
        let paired = stats::paired_bootstrap(&ours, &theirs, self.resamples, &mut stream);
        self.report.rows.push(Row {
            claim: format!("hr@1 above that of {floor}"),
            metric: "paired difference in hr@1".into(),
            mean: Some(paired.difference),
            ci95: Some(paired.ci95),
            seeds: self.asked.test.len(),
            n: ours.len(),
            note: Some(format!("p = {:.4}, bootstrap over users", paired.p)),
            ..blank(&format!("{name} minus {floor}"), role)
        });
    }
}

pub(super) fn blank(method: &str, role: Role) -> Row {
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

/// Runs the ML-100k part; a "not run" row where an asset is absent. `more` are short trainings that
/// fill the cores at the end of its own.
pub(super) fn run(
    config: &Config,
    context: &Context,
    more: Vec<Job<'_>>,
    report: &mut Report,
) -> Result<()> {
    let needed = movielens::load(&context.assets, false)
        .and_then(|data| Ok((data, TextEncoder::minilm(&context.assets)?)));
    let (mut data, encoder) = match needed {
        Ok(needed) => needed,
        Err(error @ Error::Asset { .. }) => {
            report.rows.push(blank("TMF", Role::Paper).not_run(&error.to_string()));
            return ahead(context, &more);
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
    let base = context.base();
    let started = Instant::now();
    let train = data.before(Part::Valid);
    let graph = pipeline::graph(&data, &train, config, base, &context.kept)?;
    let resamples = config.bench.resamples;
    let mut table = Table { report, hits: Vec::new(), resamples, asked: &asked };
    let by_graph = |queries: &[Query]| -> Scores {
        queries.iter().map(|query| graph.scores(query.user, &query.items)).collect()
    };
    let light_gcn = Scored {
        valid: by_graph(&asked.valid),
        test: asked.test.iter().map(|queries| by_graph(queries)).collect(),
    };
    table.add("LightGCN per behaviour", Role::Baseline, &light_gcn, None, started);
    let vectors: Encoded = match config.graph_encoder {
        GraphEncoder::LightGcn => (graph.items.clone(), graph.present.clone()),
        GraphEncoder::Mbht => {
            let workers = &context.workers;
            let model = pipeline::mbht(&data, &train, config, base, &context.kept, workers)?;
            pipeline::mbht_vectors(&model, &train)?
        }
    };
    let pool: Vec<u32> = (0..data.items.len() as u32).collect();
    let encoded = [None, Some(text), Some(vectors)];
    let prepared = Prepared::new(data.clone(), train.clone(), pool, encoded, config)?;
    let again = ablations::ablations(config, &prepared)?;
    let by_title = ablations::title_models(config, &prepared)?;
    let started = Instant::now();
    let fit = |seed: u64, workers: &Workers| {
        let seed = Seed::new(seed);
        pipeline::fit(&prepared, config, seed, seed, &context.kept, workers)
    };
    let mut jobs: Vec<Job<'_>> = Vec::new();
    for &seed in &context.seeds {
        jobs.push(Box::new(move |workers| fit(seed, workers).map(drop)));
    }
    // the first of those that answer by title trains the warm-up that the others wait for
    let (first, rest) = by_title.split_at(by_title.len().min(1));
    jobs.extend(first.iter().map(|variant| variant.job(context)));
    jobs.extend(baseline_jobs(&data, &questions, &train, config, context));
    jobs.extend(again.iter().chain(rest).map(|variant| variant.job(context)));
    jobs.extend(more);
    ahead(context, &jobs)?;
    let others = models_over_ids(&mut table, &data, &questions, config, context)?;
    mbht(&mut table, &data, &questions, &train, config, context)?;
    let seeds = context.seeds.iter();
    let fitted: Vec<Fitted> = seeds.map(|&s| fit(s, &context.workers)).collect::<Result<_>>()?;
    let ours = Ours { config, context, prepared: &prepared, fitted: &fitted };
    let modalities = prepared.switched(config);
    let all = ours.score(&asked, &modalities, |scorer| scorer)?;
    let mut note =
        "answers by item token; a small LM trained from scratch in place of Llama2-7B; no \
                    images exist for this data, so image is absent"
            .to_owned();
    if bundled::all(&prepared, config, context)? {
        note.push_str("; the weights come with the crate (bundled = false trains them)");
    }
    let on_valid = eval::hits(&eval::ranks(&asked.valid, &all.valid), 1);
    tracing::info!("hr@1 on validation: {:.4}", stats::mean_sd(&on_valid).0);
    table.add("TMF", Role::Paper, &all, Some(note), started);
    let ensemble = ensembles(&mut table, &all, &light_gcn, &others)?;
    ablations::controls(&mut table, &ours, &modalities)?;
    ablations::trained_again(&mut table, config, context, &again)?;
    ablations::titles(&mut table, config, context, &by_title)?;
    ablations::contributions(&mut table, &ours, &modalities)?;
    ranking::calibration(&mut table, &all)?;
    let known =
        [("TMF", Role::Paper, &all), ("LightGCN per behaviour", Role::Baseline, &light_gcn)];
    let sasrec = others.iter().find(|other| other.baseline == Baseline::Sasrec);
    let sasrec = sasrec.map(|other| ("SASRec", Role::Baseline, &other.scored));
    ranking::cold_slice(&mut table, &data, known.into_iter().chain(sasrec));
    ranking::full(&mut table, &ours, &questions[1], &graph, &others, &ensemble)?;
    write_hits(&context.folder.join("hits.jsonl"), &data, &asked, &table.hits, &context.seeds)?;
    figures(report, &ours, &asked)
}

/// Who was a hit at 1, for paired comparisons with other systems on the same candidate files: one
/// line per method and file.
fn write_hits(
    path: &Path,
    data: &Dataset,
    asked: &Asked,
    hits: &[(String, Vec<Vec<f64>>)],
    seeds: &[u64],
) -> Result<()> {
    let mut text = String::new();
    for (method, by_seed) in hits {
        for ((queries, hits), seed) in asked.test.iter().zip(by_seed).zip(seeds) {
            let users = queries.iter().map(|query| data.users[query.user].as_str());
            let by_user: BTreeMap<&str, u8> =
                users.zip(hits).map(|(user, &hit)| (user, u8::from(hit > 0.5))).collect();
            let line = json!({ "method": method, "list": format!("candidates-{seed}.jsonl"),
                               "hits": by_user });
            text.push_str(&format!("{line}\n"));
        }
    }
    atomic_write(path, text.as_bytes())
}

/// The trained models with what they need to rank.
pub(super) struct Ours<'a> {
    pub(super) config: &'a Config,
    pub(super) context: &'a Context,
    pub(super) prepared: &'a Prepared,
    /// One per seed.
    pub(super) fitted: &'a [Fitted],
}

impl Ours<'_> {
    /// The model of a seed looking at `modalities`.
    pub(super) fn scorer<'b>(&'b self, seed: usize, modalities: &'b Modalities) -> Scorer<'b> {
        Scorer::new(&self.fitted[seed].model, &self.prepared.prompter, modalities)
    }

    /// Scores of the validation queries by the first seed's model and of each seed's test queries by
    /// its own; `change` says what the scorers look at.
    pub(super) fn score(
        &self,
        asked: &Asked,
        modalities: &Modalities,
        change: impl for<'b> Fn(Scorer<'b>) -> Scorer<'b>,
    ) -> Result<Scored> {
        let score = |seed: usize, queries: &[Query]| {
            let scorer = change(self.scorer(seed, modalities));
            eval::score(&scorer, queries, false, false, &self.context.workers)
        };
        let seeds = asked.test.iter().enumerate();
        Ok(Scored {
            valid: score(0, &asked.valid)?,
            test: seeds.map(|(at, queries)| score(at, queries)).collect::<Result<_>>()?,
        })
    }
}

/// MBHT alone, as a baseline.
fn mbht(
    table: &mut Table<'_>,
    data: &Dataset,
    questions: &[Vec<Question>; 2],
    train: &[Vec<Step>],
    config: &Config,
    context: &Context,
) -> Result<()> {
    let started = Instant::now();
    let seed = context.base();
    let model = pipeline::mbht(data, train, config, seed, &context.kept, &context.workers)?;
    let histories: Vec<&[Step]> = questions[1].iter().map(|q| &q.history[..]).collect();
    let full = model.scores(&histories, data.target)?;
    let test = table.asked.test.iter().map(|queries| pick(&full, queries)).collect();
    let note = Some("our hypergraph transformer; one training, all candidate files".to_owned());
    let scored = Scored { valid: Vec::new(), test };
    table.add("MBHT", Role::Baseline, &scored, note, started);
    Ok(())
}

/// Scores of each query's items.
fn pick(full: &FullScores, queries: &[Query]) -> Scores {
    let score = |(row, query): (&Vec<f32>, &Query)| {
        query.items.iter().map(|&item| f64::from(row[item as usize])).collect()
    };
    full.iter().zip(queries).map(score).collect()
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

/// Seeds that a baseline over ids is trained with: the one to beat is trained as often as ours.
fn trainings(baseline: Baseline, context: &Context) -> &[u64] {
    let trained = if baseline == Baseline::Sasrec { context.seeds.len() } else { 1 };
    &context.seeds[..trained]
}

/// Scores of the whole catalogue at validation and at test by a baseline over ids.
fn full_scores(
    baseline: Baseline,
    data: &Dataset,
    questions: &[Vec<Question>; 2],
    config: &Config,
    context: &Context,
    seed: u64,
    workers: &Workers,
) -> Result<[FullScores; 2]> {
    let both = [&questions[0][..], &questions[1][..]];
    let (epochs, threads) = (config.bench.baseline_epochs, workers.threads());
    baselines::scores(baseline, data, both, epochs, Seed::new(seed), &context.shared, threads)
}

/// The trained baselines.
fn baseline_jobs<'a>(
    data: &'a Dataset,
    questions: &'a [Vec<Question>; 2],
    train: &'a [Vec<Step>],
    config: &'a Config,
    context: &'a Context,
) -> Vec<Job<'a>> {
    let mut jobs: Vec<Job<'a>> = vec![Box::new(move |workers| {
        pipeline::mbht(data, train, config, context.base(), &context.kept, workers).map(drop)
    })];
    for baseline in [Baseline::Gru4rec, Baseline::Sasrec, Baseline::Bpr] {
        for &seed in trainings(baseline, context) {
            jobs.push(Box::new(move |workers| {
                full_scores(baseline, data, questions, config, context, seed, workers).map(drop)
            }));
        }
    }
    jobs
}

fn models_over_ids(
    table: &mut Table<'_>,
    data: &Dataset,
    questions: &[Vec<Question>; 2],
    config: &Config,
    context: &Context,
) -> Result<Vec<Other>> {
    let mut others = Vec::new();
    for baseline in Baseline::ALL {
        let started = Instant::now();
        let seeds = trainings(baseline, context);
        let answers = seeds
            .iter()
            .map(|&s| full_scores(baseline, data, questions, config, context, s, &context.workers))
            .collect::<Result<Vec<_>>>()?;
        let of = |seed: usize| &answers[seed.min(seeds.len() - 1)];
        let asked = table.asked;
        let tests = asked.test.iter().enumerate();
        let scored = Scored {
            valid: pick(&of(0)[0], &asked.valid),
            test: tests.map(|(seed, queries)| pick(&of(seed)[1], queries)).collect(),
        };
        let once = baseline.is_seeded() && seeds.len() == 1;
        let note = once.then(|| "one training, all candidate files".to_owned());
        let role = if baseline == Baseline::Random { Role::Control } else { Role::Baseline };
        table.add(baseline.name(), role, &scored, note, started);
        let full = answers.into_iter().map(|[_, test]| test).collect();
        others.push(Other { baseline, scored, full });
    }
    Ok(others)
}

/// Members of the ensembles: ours and what it is joined with.
pub(super) const MEMBERS: [&str; 5] = ["TMF", "LightGCN", "item-kNN", "SASRec", "GRU4Rec"];
/// The members that are baselines over item ids, in the same order.
pub(super) const OVER_IDS: [Baseline; 3] =
    [Baseline::TunedItemKnn, Baseline::Sasrec, Baseline::Gru4rec];

/// Ensembles learnt on validation, the same without TMF, and paired differences. Returns the full
/// ensemble, in the order of [`MEMBERS`].
fn ensembles(
    table: &mut Table<'_>,
    tmf: &Scored,
    light_gcn: &Scored,
    others: &[Other],
) -> Result<Ensemble> {
    let positives: Vec<usize> =
        table.asked.valid.iter().map(|query| query.positive.unwrap_or(0)).collect();
    let of = |wanted: Baseline| {
        let found = others.iter().find(|other| other.baseline == wanted);
        let found = found.map(|other| &other.scored);
        found.ok_or_else(|| Error::Bug(format!("{} was not scored", wanted.name())))
    };
    let mut all = vec![tmf, light_gcn];
    for baseline in OVER_IDS {
        all.push(of(baseline)?);
    }
    let (whole, without) = (MEMBERS.join(" + "), MEMBERS[1..].join(" + ") + ", no TMF");
    let sets = [
        ("TMF + LightGCN", Role::Ours, vec![0, 1]),
        (whole.as_str(), Role::Ours, (0..MEMBERS.len()).collect()),
        (without.as_str(), Role::Control, (1..MEMBERS.len()).collect()),
    ];
    let mut joint: Vec<(&str, Scored, Ensemble)> = Vec::new();
    for (name, role, members) in sets {
        let started = Instant::now();
        let valid: Vec<&Scores> = members.iter().map(|&m| &all[m].valid).collect();
        let ensemble = Ensemble::fit(&valid, &positives)?;
        let test = (0..table.asked.test.len())
            .map(|seed| {
                let scores: Vec<&Scores> = members.iter().map(|&m| &all[m].test[seed]).collect();
                ensemble.scores(&scores)
            })
            .collect();
        let pairs = members.iter().zip(&ensemble.weights);
        let weights: Vec<String> =
            pairs.map(|(&member, weight)| format!("{} {weight:.2}", MEMBERS[member])).collect();
        let scored = Scored { valid: ensemble.scores(&valid), test };
        let note = Some(format!("weights learnt on validation: {}", weights.join(", ")));
        table.add(name, role, &scored, note, started);
        joint.push((name, scored, ensemble));
    }
    let (knn, sasrec) = (of(Baseline::ItemKnn)?, of(Baseline::Sasrec)?);
    let (knn_name, sasrec_name) = (Baseline::ItemKnn.name(), Baseline::Sasrec.name());
    let (pair, full, without) = (&joint[0], &joint[1], &joint[2]);
    let compared = [
        ("TMF", tmf, knn_name, knn),
        ("TMF", tmf, sasrec_name, sasrec),
        (pair.0, &pair.1, sasrec_name, sasrec),
        (full.0, &full.1, sasrec_name, sasrec),
        (full.0, &full.1, without.0, &without.1),
    ];
    for (name, ours, floor, theirs) in compared {
        table.difference(name, Role::Ours, ours, floor, theirs);
    }
    let full = joint.swap_remove(1);
    Ok(full.2)
}

/// Comparison, training curves and what the fusion looks at.
fn figures(report: &mut Report, ours: &Ours<'_>, asked: &Asked) -> Result<()> {
    let (prepared, fitted) = (ours.prepared, &ours.fitted[0]);
    let modalities = prepared.switched(ours.config);
    let scorer = ours.scorer(0, &modalities);
    let shown = |r: &&Row| r.dataset == DATASET && r.metric == "hr@1" && r.mean.is_some();
    let rows: Vec<&Row> = report.rows.iter().filter(shown).collect();
    let labels = plot::Labels { title: "Hit rate at 1 on ML-100k", x: "hr@1", y: "" };
    let svg = plot::row_bars(labels, &rows);
    let caption = "20 candidates; 95 % bootstrap intervals over users.";
    // the figure to look at first
    report.figures.insert(0, Figure::new("ML-100k hit rate at 1", caption, svg));
    let mut lines = Vec::new();
    let mut offset = 0.0;
    for (name, records) in [("warm-up on tokens", &fitted.warm_up), ("fusion", &fitted.fusion)] {
        let points: Vec<(f64, f64)> =
            records.iter().map(|r| (offset + r.step as f64, r.loss)).collect();
        offset += records.last().map_or(0.0, |r| r.step as f64);
        if !points.is_empty() {
            lines.push(plot::Line { name: name.into(), points });
        }
    }
    if !lines.is_empty() {
        let labels = plot::Labels { title: "Training", x: "step", y: "cross-entropy per item" };
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
