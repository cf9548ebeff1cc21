//! What the parts of the model are worth on ML-100k: taken away at test, shuffled, or trained
//! without; and the models that answer by title.

use std::time::Instant;

use candle_core::{Device, Tensor};
use common::optim::Workers;
use common::report::{Figure, Role, Row, plot};
use common::rng::Seed;
use common::{Result, stats};

use super::movielens::{Ours, Scored, Table, blank};
use super::{Context, Job, over_seeds, ranking};
use crate::config::Config;
use crate::eval::{self, Scorer};
use crate::model::{CmaScope, GRAPH, MODALITIES, Modalities, TEXT};
use crate::pipeline::{self, Fitted, Prepared};
use crate::prompt::Answer;
use crate::train::{Curriculum, StageOptions};

/// Rows of one modality permuted among the items.
pub(super) fn shuffled(modalities: &Modalities, which: usize, seed: Seed) -> Result<Modalities> {
    let mut changed = modalities.clone();
    if let Some(modality) = &mut changed[which] {
        let count = modality.present.len();
        let order = seed.stream(&format!("shuffle/{which}")).permutation(count);
        let ids: Vec<u32> = order.iter().map(|&at| at as u32).collect();
        modality.vectors =
            modality.vectors.index_select(&Tensor::new(&ids[..], &Device::Cpu)?, 0)?;
        modality.present = order.iter().map(|&at| modality.present[at]).collect();
    }
    Ok(changed)
}

/// The trained models with something taken away or shuffled at test.
pub(super) fn controls(
    table: &mut Table<'_>,
    ours: &Ours<'_>,
    modalities: &Modalities,
) -> Result<()> {
    let note = || Some("the same models".to_owned());
    for which in [TEXT, GRAPH] {
        let name = MODALITIES[which];
        let started = Instant::now();
        let used = [0, 1, 2].map(|at| at != which);
        let removed = ours.score(table.asked, modalities, |scorer| scorer.with(used))?;
        table.add(&format!("{name} removed at test"), Role::Control, &removed, note(), started);
        let started = Instant::now();
        let changed = shuffled(modalities, which, ours.context.base())?;
        let changed = ours.score(table.asked, &changed, |scorer| scorer)?;
        let method = format!("{name} shuffled across items at test");
        table.add(&method, Role::Control, &changed, note(), started);
    }
    let started = Instant::now();
    let hidden =
        ours.score(table.asked, modalities, |scorer| Scorer { tokens: false, ..scorer })?;
    let method = "item tokens hidden at test";
    table.add(method, Role::Control, &hidden, note(), started);
    Ok(())
}

/// The rows of the warm-up are learnt in the fusion stage.
fn fusion_only(config: &mut Config) {
    let train = &mut config.train;
    let rows = std::mem::take(&mut train.warm_up.steps) * train.warm_up.batch;
    train.fusion.steps += rows / train.fusion.batch;
    train.fusion.learning_rate = train.warm_up.learning_rate;
}

/// The ablation switches of §3.2.
fn variants(config: &Config) -> Vec<(&'static str, Config)> {
    let changed = |name, change: &dyn Fn(&mut Config)| {
        let mut config = config.clone();
        change(&mut config);
        (name, config)
    };
    vec![
        changed("without modalities", &|c| {
            (c.modalities.image, c.modalities.text, c.modalities.graph) = (false, false, false);
        }),
        changed("without text embedding", &|c| c.modalities.text = false),
        changed("without graph", &|c| c.modalities.graph = false),
        changed("without CMA", &|c| c.fusion.cma = CmaScope::Off),
        changed("without AMSA", &|c| c.fusion.amsa = false),
        changed("without behaviour tokens", &|c| {
            (c.prompt.behaviour_tokens, c.fusion.behaviours) = (false, false);
        }),
        changed("without curriculum", &|c| c.train.curriculum = Curriculum::None),
        changed("without warm-up", &fusion_only),
        changed("without own embeddings of item tokens", &|c| {
            c.lm.item_tokens = false;
            c.train.curriculum = Curriculum::None;
            fusion_only(c);
        }),
    ]
}

/// A model beside the main one, with the data as its prompts need it.
pub(super) struct Variant {
    name: String,
    role: Role,
    pub(super) config: Config,
    pub(super) prepared: Prepared,
}

/// Ablations that this profile trains, each with the first seed and `bench.variant_steps` fusion
/// steps, behind the whole model trained alike.
pub(super) fn ablations(config: &Config, prepared: &Prepared) -> Result<Vec<Variant>> {
    let steps = config.bench.variant_steps.min(config.train.fusion.steps);
    let mut alike = config.clone();
    alike.train.fusion.steps = steps;
    let changed = variants(&alike).into_iter().filter(|(name, _)| config.bench.trains(name));
    let mut chosen: Vec<(String, Config)> =
        changed.map(|(name, changed)| (name.to_owned(), changed)).collect();
    if steps < config.train.fusion.steps && !chosen.is_empty() {
        chosen.insert(0, (whole(steps), alike));
    }
    let variant = |(name, config): (String, Config)| {
        let prepared = prepared.prompting(&config)?;
        Ok(Variant { name, role: Role::Ablation, config, prepared })
    };
    chosen.into_iter().map(variant).collect()
}

impl Variant {
    /// The trained model.
    pub(super) fn fit(&self, context: &Context, workers: &Workers) -> Result<Fitted> {
        let base = context.base();
        pipeline::fit(&self.prepared, &self.config, base, base, &context.kept, workers)
    }

    /// Its training.
    pub(super) fn job<'a>(&'a self, context: &'a Context) -> Job<'a> {
        Box::new(move |workers| self.fit(context, workers).map(drop))
    }
}

fn whole(steps: usize) -> String {
    format!("TMF, {steps} fusion steps")
}

/// Rows of the ablations.
pub(super) fn trained_again(
    table: &mut Table<'_>,
    config: &Config,
    context: &Context,
    ablations: &[Variant],
) -> Result<()> {
    let why = "this data has no pictures; see the synthetic catalogue";
    table.report.rows.push(blank("without image", Role::Ablation).not_run(why));
    for (name, _) in variants(config) {
        left_out(table, config, name, Role::Ablation);
    }
    for variant in ablations {
        let started = Instant::now();
        let scored = train_and_score(table, context, variant)?;
        let steps = config.bench.variant_steps.min(config.train.fusion.steps);
        let note = if variant.name == whole(steps) {
            "one training with the first seed, all candidate files; what the ablations are held against"
                .to_owned()
        } else {
            format!("one training with the first seed, {steps} fusion steps, all candidate files")
        };
        table.add(&variant.name, Role::Ablation, &scored, Some(note), started);
    }
    Ok(())
}

/// A row that says so if this profile does not train a variant.
fn left_out(table: &mut Table<'_>, config: &Config, name: &str, role: Role) {
    if !config.bench.trains(name) {
        let why = format!("left out in this profile; add \"{name}\" to bench.variants");
        table.report.rows.push(blank(name, role).not_run(&why));
    }
}

fn train_and_score(table: &Table<'_>, context: &Context, variant: &Variant) -> Result<Scored> {
    let Variant { config, prepared, .. } = variant;
    let fitted = variant.fit(context, &context.workers)?;
    let modalities = prepared.switched(config);
    let scorer = Scorer::new(&fitted.model, &prepared.prompter, &modalities);
    let queries = table.asked.test.iter();
    let score = |queries| eval::score(&scorer, queries, false, config.rank.mean, &context.workers);
    let test = queries.map(|queries| score(queries)).collect::<Result<_>>()?;
    Ok(Scored { valid: Vec::new(), test })
}

/// LLaRA's way: titles in words, listed candidates, the answer is a title.
pub(super) fn by_title(config: &Config) -> Config {
    let mut c = config.clone();
    c.prompt.answer = Answer::Title;
    c.prompt.titles = true;
    c.prompt.history = c.prompt.history.min(20);
    let steps = config.bench.title_steps;
    c.train.warm_up = StageOptions { steps, batch: 32, learning_rate: 4e-3, listed: 0.2 };
    c.train.fusion =
        StageOptions { steps: steps / 3, learning_rate: 2e-3, ..c.train.warm_up.clone() };
    (c.train.dropout, c.train.fusion_dropout, c.train.hidden_tokens) = (0.0, 0.0, 0.0);
    c
}

/// The models that answer by title: text only, LLaRA's one modality, all modalities.
fn title_variants(config: &Config) -> [(&'static str, Role, Config); 3] {
    let base = by_title(config);
    let changed = |change: &dyn Fn(&mut Config)| {
        let mut config = base.clone();
        change(&mut config);
        config
    };
    [
        (
            "text-only LM",
            Role::Baseline,
            changed(&|c| {
                (c.modalities.image, c.modalities.text, c.modalities.graph) = (false, false, false);
            }),
        ),
        (
            "LLaRA-style",
            Role::Baseline,
            changed(&|c| {
                (c.modalities.image, c.modalities.text) = (false, false);
                (c.fusion.cma, c.fusion.amsa) = (CmaScope::Off, false);
                c.fusion.behaviours = false;
                c.train.curriculum = Curriculum::Linear;
            }),
        ),
        (ALL_BY_TITLE, Role::Paper, base.clone()),
    ]
}

const ALL_BY_TITLE: &str = "TMF, titles as answers";

/// Those of them that this profile trains.
pub(super) fn title_models(config: &Config, prepared: &Prepared) -> Result<Vec<Variant>> {
    let all = title_variants(config).into_iter();
    let chosen = all.filter(|(name, ..)| config.bench.trains(name));
    let variant = |(name, role, config): (&str, Role, Config)| {
        let prepared = prepared.prompting(&config)?;
        Ok(Variant { name: name.to_owned(), role, config, prepared })
    };
    chosen.map(variant).collect()
}

/// Rows of the models that answer by title, with the share of their generated answers that name one
/// candidate.
pub(super) fn titles(
    table: &mut Table<'_>,
    config: &Config,
    context: &Context,
    models: &[Variant],
) -> Result<()> {
    for (name, role, _) in title_variants(config) {
        left_out(table, config, name, role);
    }
    for model in models {
        let Variant { name, role, config, prepared } = model;
        let started = Instant::now();
        let open = train_and_score(table, context, model)?;
        let note = "one training, likelihood of titles, candidates not listed in the prompt";
        table.add(name, *role, &open, Some(note.into()), started);
        let fitted = model.fit(context, &context.workers)?;
        let modalities = prepared.switched(config);
        let scorer = Scorer::new(&fitted.model, &prepared.prompter, &modalities);
        ranking::generation(table, config, context, &scorer, name, *role)?;
        if name == ALL_BY_TITLE {
            ranking::shared_prefix(table, &scorer)?;
        }
    }
    Ok(())
}

/// What each modality adds to the log-likelihood of the answer among the candidates: leave one out.
pub(super) fn contributions(
    table: &mut Table<'_>,
    ours: &Ours<'_>,
    modalities: &Modalities,
) -> Result<()> {
    let answers = |scored: &Scored| -> Vec<Vec<f64>> {
        let seeds = table.asked.test.iter().zip(&scored.test);
        let of = |(queries, scores): (&Vec<eval::Query>, &eval::Likelihoods)| {
            let pairs = queries.iter().zip(scores);
            pairs.map(|(q, s)| s[q.positive.unwrap_or(0)]).collect()
        };
        seeds.map(of).collect()
    };
    let all = over_seeds(&answers(&ours.score(table.asked, modalities, |s| s)?));
    let mut groups = Vec::new();
    let mut means = Vec::new();
    let parts = [("text", Some(TEXT)), ("graph", Some(GRAPH)), ("item token", None)];
    for (name, which) in parts {
        let scored = ours.score(table.asked, modalities, |scorer| match which {
            Some(which) => scorer.with([0, 1, 2].map(|at| at != which)),
            None => Scorer { tokens: false, ..scorer },
        })?;
        let without = over_seeds(&answers(&scored));
        let mut stream = Seed::new(0).stream(&format!("contribution/{name}"));
        let paired = stats::paired_bootstrap(&all, &without, table.resamples, &mut stream);
        groups.push(name.to_owned());
        means.push(paired.difference);
        table.report.rows.push(Row {
            claim: "each modality contributes to the answer".into(),
            metric: "log-likelihood that the answer gains".into(),
            mean: Some(paired.difference),
            ci95: Some(paired.ci95),
            seeds: table.asked.test.len(),
            n: all.len(),
            note: Some("over the whole catalogue; with all minus without this one".into()),
            ..blank(&format!("TMF, what {name} adds"), Role::Ours)
        });
    }
    let labels = plot::Labels {
        title: "What each part adds to the answer's log-likelihood",
        x: "mean gain, nats",
        y: "",
    };
    let series = [plot::Series { name: "leave one out".into(), values: means }];
    let svg = plot::grouped_bars(labels, &groups, &series);
    let caption = "Test answers of ML-100k, mean over users and seeds.";
    table.report.figures.push(Figure::new("contribution per modality", caption, svg));
    Ok(())
}
