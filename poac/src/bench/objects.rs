//! Which objects does a rewritten prompt name? No picture is involved.

use std::collections::BTreeSet;

use common::Result;
use common::assets::Assets;
use common::lm::Lm;
use common::report::plot::{self, Labels};
use common::report::{Figure, Role, Row};
use common::rng::Seed;
use common::stats;
use ndarray::Array2;

use super::{CAVEAT, over_items};
use crate::baselines::{LlmRewriter, Neighbours, VOTES, Vote, most_filed, top};
use crate::config::{Config, SearchConfig};
use crate::data::Style;
use crate::data::pairs::OBJECTS;
use crate::data::world::{Concept, Split};
use crate::eval::{ObjectScores, distinct_n, object_scores};
use crate::rewrite::Rewriter;
use crate::studio::Base;
use crate::train::History;
use crate::train::plm::PlmOptions;

/// Weights of the keyword vote beside the language model that are tried on validation concepts.
pub const MIXES: [f64; 6] = [0.25, 0.5, 1.0, 2.0, 4.0, 16.0];

/// The baseline after TIAC.
pub(super) const TIAC: &str = "TIAC-style gloss (MiniLM)";

/// The baseline without training.
pub(super) const LLM: &str = "LLM rewrite";

/// One seed: its split, its language models and the embeddings of its held-out concepts.
struct Trial {
    seed: Seed,
    base: Base,
    model: Lm,
    /// Random token table and shuffled pairs, for the first seed only.
    others: Option<[Lm; 2]>,
}

/// Trains the language models of a seed, or finds them trained; with the history of the first.
pub(super) fn train(
    base: &Base,
    seed: Seed,
    first: bool,
) -> Result<(Lm, Option<[Lm; 2]>, History)> {
    let (model, history) = base.plm(seed, false)?;
    let others = match first {
        true => {
            let plain = PlmOptions { word_features: false, ..base.config.plm.clone() };
            Some([base.plm_with(&plain, seed, false)?.0, base.plm(seed, true)?.0])
        }
        false => None,
    };
    Ok((model, others, history))
}

/// The objects that each method names for each concept.
type Predictions = Vec<Vec<usize>>;

/// Adds the language model's probability of an object and the keyword vote's share of it.
pub fn mixed(log_probs: &[f64], votes: &[f64], weight: f64) -> Vec<f64> {
    let total: f64 = votes.iter().map(|vote| vote.max(0.0)).sum::<f64>().max(1e-12);
    log_probs.iter().zip(votes).map(|(p, v)| p.exp() + weight * v.max(0.0) / total).collect()
}

/// The settings that do best on validation concepts (F1 pooled over the trials).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuned {
    /// Of the keyword vote alone.
    pub vote: Vote,
    /// Weight of the vote beside the language model.
    pub mix: f64,
}

/// Runs the comparison over the seeds.
///
/// # Errors
/// Those of the trainings and assets.
pub fn run(
    config: &Config,
    assets: &Assets,
    seeds: &[u64],
) -> Result<(Vec<Row>, Vec<Figure>, Tuned)> {
    let mut trials = Vec::new();
    for &seed in seeds {
        let seed = Seed::new(seed);
        let base = Base::new(config, assets, seed)?;
        let (model, others, _) = train(&base, seed, trials.is_empty())?;
        trials.push(Trial { seed, base, model, others });
    }
    let tuned = tune(&trials, assets)?;
    let resamples = config.bench.resamples;
    let mut rows = Vec::new();
    let llm = format!("{} with worked examples from train concepts, no training", config.bench.llm);
    let names: [(&str, Role, &str); 10] = [
        ("PLM, token table from MiniLM", Role::Paper, "GPT-2 shape; the first of 8 beams"),
        (
            "PLM + keyword vote",
            Role::Ours,
            "objects by PLM probability plus the vote of near keywords",
        ),
        ("most filed objects", Role::Baseline, "the same three objects for every concept"),
        ("nearest keyword (MiniLM)", Role::Baseline, "objects of the nearest train keyword"),
        (
            "keyword vote (MiniLM)",
            Role::Baseline,
            "neighbours and power chosen on validation concepts",
        ),
        ("nearest names (MiniLM)", Role::Baseline, "names nearest to the concept, no training"),
        (TIAC, Role::Baseline, "names nearest to a gloss of five train keywords, for TIAC's LLM"),
        (LLM, Role::Baseline, &llm),
        (
            "PLM, random token table",
            Role::Ablation,
            "without word features an unseen word says nothing",
        ),
        (
            "PLM, shuffled pairs",
            Role::Control,
            "every concept was trained with another one's objects",
        ),
    ];
    let mut scores: Vec<Vec<ObjectScores>> = vec![Vec::new(); names.len()];
    let mut by_seed: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
    let mut texts = Vec::new();
    for trial in &trials {
        let test: Vec<&Concept> = trial.base.world.split(Split::Test).collect();
        let predictions = predict(trial, &test, tuned, assets)?;
        for (method, predicted) in predictions.iter().enumerate() {
            let here: Vec<ObjectScores> =
                predicted.iter().zip(&test).map(|(p, c)| object_scores(p, &c.objects)).collect();
            by_seed[method].push(here.iter().map(|s| s.f1).sum::<f64>() / here.len() as f64);
            scores[method].extend(here);
        }
        let rewriter = trial.rewriter(&trial.model);
        texts.extend(
            predictions[0].iter().map(|objects| rewriter.prompt(&[], objects, Style::Colour)),
        );
    }
    let metrics: [(&str, fn(&ObjectScores) -> f64); 4] = [
        ("object F1", |s| s.f1),
        ("object hit@1", |s| s.hit1),
        ("object hit@3", |s| s.hit3),
        ("object F1 / attainable", |s| s.attainable),
    ];
    for (metric, of) in metrics {
        for (method, (name, role, note)) in names.iter().enumerate() {
            let values: Vec<f64> = scores[method].iter().map(of).collect();
            let (mean, ci) = over_items(&values, resamples, "objects");
            let runs = by_seed[method].len();
            let sd =
                (metric == "object F1" && runs > 1).then(|| stats::mean_sd(&by_seed[method]).1);
            rows.push(Row {
                claim: "a tuned language model finds concrete objects for abstract concepts".into(),
                dataset: "held-out concepts, objects".into(),
                method: (*name).into(),
                role: *role,
                metric: metric.into(),
                mean: Some(mean),
                sd,
                ci95: Some(ci),
                seeds: runs,
                n: values.len() / runs.max(1),
                note: Some(format!("{note}; {OBJECTS} objects each; {CAVEAT}")),
                ..Row::default()
            });
        }
    }
    rows.extend(differences(&names, &scores, resamples, seeds));
    if let Some(trial) = trials.first() {
        rows.extend(variety(trial, resamples)?);
    }
    rows.push(Row {
        claim: "rewritten prompts vary".into(),
        dataset: "held-out concepts, objects".into(),
        method: names[0].0.into(),
        metric: "distinct-2 of y".into(),
        mean: Some(distinct_n(&texts, 2)),
        seeds: seeds.len(),
        n: texts.len() / seeds.len().max(1),
        note: Some(CAVEAT.into()),
        ..Row::default()
    });
    let shown: Vec<&Row> = rows.iter().filter(|row| row.metric == "object F1").collect();
    let labels = Labels { title: "Object F1 on held-out concepts", x: "object F1", y: "" };
    let caption = format!(
        "Three objects a concept against the objects that people file under it, {} concepts a seed, \
         bootstrap intervals over concepts. The vote uses {} neighbours with power {}, the mixture \
         weight {}, all chosen on validation concepts.",
        shown.first().map_or(0, |row| row.n),
        tuned.vote.neighbours,
        tuned.vote.power,
        tuned.mix,
    );
    let figures = vec![Figure::new(labels.title, &caption, plot::row_bars(labels, &shown))];
    Ok((rows, figures, tuned))
}

impl Trial {
    fn rewriter<'a>(&'a self, model: &'a Lm) -> Rewriter<'a> {
        let Base { features, world, config, .. } = &self.base;
        Rewriter::new(model, features, world, &config.search)
    }
}

/// Candidates whose variety is counted.
const CANDIDATES: usize = 8;

/// Different objects among the candidates for a concept, by ordinary and by diverse beam search.
fn variety(trial: &Trial, resamples: usize) -> Result<Vec<Row>> {
    let Base { features, world, config, .. } = &trial.base;
    let concepts: Vec<&Concept> = world.split(Split::Test).collect();
    let mut rows = Vec::new();
    for (name, groups) in [("beam search", 1), ("diverse beam search", CANDIDATES)] {
        let search = SearchConfig { groups, ..config.search.clone() };
        let rewriter = Rewriter::new(&trial.model, features, world, &search);
        let different = |concept: &&Concept| {
            let found = rewriter.concept(&concept.word, Style::Colour, CANDIDATES)?;
            let objects: BTreeSet<usize> = found.into_iter().flat_map(|c| c.objects).collect();
            Ok(objects.len() as f64)
        };
        let counts = concepts.iter().map(different).collect::<Result<Vec<f64>>>()?;
        let (mean, ci) = over_items(&counts, resamples, "variety");
        rows.push(Row {
            claim: "rewritten prompts vary".into(),
            dataset: "held-out concepts, objects".into(),
            method: format!("PLM, {name}"),
            role: Role::Ablation,
            metric: "different objects in 8 candidates".into(),
            mean: Some(mean),
            ci95: Some(ci),
            n: counts.len(),
            note: Some(CAVEAT.into()),
            ..Row::default()
        });
    }
    Ok(rows)
}

fn embeddings(concepts: &[&Concept], neighbours: &Neighbours<'_>) -> Result<Array2<f32>> {
    let words: Vec<&str> = concepts.iter().map(|concept| concept.word.as_str()).collect();
    neighbours.encode(&words)
}

/// Chooses vote and mixture on validation concepts.
fn tune(trials: &[Trial], assets: &Assets) -> Result<Tuned> {
    let mut votes = vec![0.0; VOTES.len()];
    let mut mixes = vec![vec![0.0; MIXES.len()]; VOTES.len()];
    for trial in trials {
        let concepts: Vec<&Concept> = trial.base.world.split(Split::Validation).collect();
        let neighbours = Neighbours::new(&trial.base.world, assets)?;
        let rows = embeddings(&concepts, &neighbours)?;
        let rewriter = trial.rewriter(&trial.model);
        for (concept, row) in concepts.iter().zip(rows.rows()) {
            let log_probs = rewriter.object_log_probs(&concept.word)?;
            for (at, &vote) in VOTES.iter().enumerate() {
                let by_vote = neighbours.by_keywords(row, vote);
                let f1 = |scores: &[f64]| object_scores(&top(scores, OBJECTS), &concept.objects).f1;
                votes[at] += f1(&by_vote);
                for (which, &mix) in MIXES.iter().enumerate() {
                    mixes[at][which] += f1(&mixed(&log_probs, &by_vote, mix));
                }
            }
        }
    }
    let vote = top(&votes, 1)[0];
    Ok(Tuned { vote: VOTES[vote], mix: MIXES[top(&mixes[vote], 1)[0]] })
}

/// Predictions of every method, in the order of the table; the last two for the first seed only.
fn predict(
    trial: &Trial,
    concepts: &[&Concept],
    tuned: Tuned,
    assets: &Assets,
) -> Result<Vec<Predictions>> {
    let world = &trial.base.world;
    let neighbours = Neighbours::new(world, assets)?;
    let rows = embeddings(concepts, &neighbours)?;
    let beam = |model: &Lm| -> Result<Predictions> {
        let rewriter = trial.rewriter(model);
        let first = |concept: &&Concept| {
            let found = rewriter.concept(&concept.word, Style::Colour, 1)?;
            Ok(found.into_iter().next().map(|c| c.objects).unwrap_or_default())
        };
        concepts.iter().map(first).collect()
    };
    let rewriter = trial.rewriter(&trial.model);
    let ours = concepts.iter().zip(rows.rows()).map(|(concept, row)| {
        let log_probs = rewriter.object_log_probs(&concept.word)?;
        Ok(top(&mixed(&log_probs, &neighbours.by_keywords(row, tuned.vote), tuned.mix), OBJECTS))
    });
    let each = |of: &dyn Fn(ndarray::ArrayView1<'_, f32>) -> Vec<usize>| -> Predictions {
        rows.rows().into_iter().map(of).collect()
    };
    let frequent = most_filed(world, OBJECTS);
    let llm = LlmRewriter::new(&trial.base.config.bench.llm, world, assets, trial.seed)?;
    let mut all = vec![
        beam(&trial.model)?,
        ours.collect::<Result<_>>()?,
        concepts.iter().map(|_| frequent.clone()).collect(),
        each(&|row| top(&neighbours.by_keywords(row, Vote { neighbours: 1, power: 1 }), OBJECTS)),
        each(&|row| top(&neighbours.by_keywords(row, tuned.vote), OBJECTS)),
        each(&|row| top(&neighbours.by_name(row), OBJECTS)),
        concepts
            .iter()
            .map(|concept| Ok(top(&neighbours.by_gloss(&concept.word)?, OBJECTS)))
            .collect::<Result<_>>()?,
        concepts
            .iter()
            .map(|concept| llm.objects(&concept.word, &neighbours))
            .collect::<Result<_>>()?,
    ];
    for model in trial.others.iter().flatten() {
        all.push(beam(model)?);
    }
    Ok(all)
}

/// Paired differences in F1 between the methods that matter.
fn differences(
    names: &[(&str, Role, &str)],
    scores: &[Vec<ObjectScores>],
    resamples: usize,
    seeds: &[u64],
) -> Vec<Row> {
    let pairs = [(0, 2), (0, 3), (0, 4), (0, 7), (1, 0), (1, 3), (1, 4)];
    pairs
        .into_iter()
        .map(|(ours, theirs)| {
            let f1 = |at: usize| scores[at].iter().map(|s| s.f1).collect::<Vec<f64>>();
            let mut stream = Seed::new(0).stream("differences");
            let found = stats::paired_bootstrap(&f1(ours), &f1(theirs), resamples, &mut stream);
            Row {
                claim: "a tuned language model finds concrete objects for abstract concepts".into(),
                dataset: "held-out concepts, objects".into(),
                method: format!("{} minus {}", names[ours].0, names[theirs].0),
                role: names[ours].1,
                metric: "difference in object F1".into(),
                mean: Some(found.difference),
                ci95: Some(found.ci95),
                seeds: seeds.len(),
                n: scores[ours].len() / seeds.len().max(1),
                note: Some(format!("paired over concepts, p = {:.3}", found.p)),
                ..Row::default()
            }
        })
        .collect()
}

/// The objects that ours names for a word with settings that were tuned before.
///
/// # Errors
/// Those of MiniLM.
pub fn mixed_objects(
    rewriter: &Rewriter<'_>,
    neighbours: &Neighbours<'_>,
    word: &str,
    tuned: Tuned,
) -> Result<Vec<usize>> {
    let rows = neighbours.encode(&[word])?;
    let votes = neighbours.by_keywords(rows.row(0), tuned.vote);
    Ok(top(&mixed(&rewriter.object_log_probs(word)?, &votes, tuned.mix), OBJECTS))
}
