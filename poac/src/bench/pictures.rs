//! What do the pictures show? Judged by scorer B, which no training of the denoiser ever saw.

use std::collections::BTreeMap;

use candle_core::Tensor;
use common::Result;
use common::assets::Assets;
use common::report::plot::{self, Labels, Line};
use common::report::{Figure, Role, Row};
use common::rng::Seed;
use common::stats;

use super::objects::{LLM, TIAC, Tuned};
use super::prompts::{self, Prompts};
use super::sheet::{Sheet, SheetRow};
use super::{CAVEAT, over_items};
use crate::choice;
use crate::config::Config;
use crate::data::Style;
use crate::data::world::{Concept, Split};
use crate::eval::{ConceptTexts, chance, concept_hits, concept_scores, cosines, diversity};
use crate::model::Denoiser;
use crate::rewrite::Rewriter;
use crate::studio::{Base, ImageModels, Tuning};
use crate::train::History;

/// Real pictures that are looked at.
const K: usize = 5;

const DATASET: &str = "held-out concepts, pictures";

const METRIC: &str = "ConceptHit@5";

/// What real pictures reach: a limit, not a rival.
const LIMIT: &str = "ConceptHit@5 of real pictures";

/// A way from a concept to pictures.
struct Method<'a> {
    name: &'static str,
    role: Role,
    note: &'a str,
    prompts: &'a [String],
    denoiser: &'a Denoiser,
    /// Pictures among which scorer A chooses.
    best_of: usize,
}

/// What was measured of one method, one value per picture: all of the first concept of the first
/// seed, then the next.
#[derive(Default)]
struct Measured {
    hits: Vec<f64>,
    concept: Vec<f64>,
    clip_x: Vec<f64>,
    clip_y: Vec<f64>,
    reward: Vec<f64>,
    quality: Vec<f64>,
    diversity: f64,
    first: Vec<Tensor>,
}

/// Runs the comparison: image models of the first seed, pictures of every seed.
///
/// # Errors
/// Those of the trainings and assets.
pub fn run(
    config: &Config,
    assets: &Assets,
    seeds: &[u64],
    tuned: Tuned,
) -> Result<(Vec<Row>, Vec<Figure>)> {
    let seed = Seed::new(seeds.first().copied().unwrap_or(0));
    let base = Base::new(config, assets, seed)?;
    let (model, plm_history) = base.plm(seed, false)?;
    let Trained { models, refl, refl_histories, constant } = train(&base, seed)?;
    let concepts = held_out(&base, config.bench.concepts);
    let prompts = Prompts::new(&base, &model, &concepts, assets, tuned)?;
    let by_llm = prompts::by_llm(&base, &model, &concepts, assets, seed)?;
    let ppo = match config.ppo.steps {
        0 => None,
        _ => {
            let (model, _) = base.ppo(&models, seed)?;
            let rewriter = Rewriter::new(&model, &base.features, &base.world, &config.search);
            Some(
                concepts
                    .iter()
                    .map(|c| rewriter.first_prompt(&c.word, Style::Colour))
                    .collect::<Result<Vec<_>>>()?,
            )
        }
    };
    let chosen = choose(&base, &model, &models, &refl, assets, tuned)?;
    let note = format!(
        "{} of the likeliest objects and the {} denoiser, both chosen on validation concepts; scorer \
         A chooses among {} pictures",
        chosen.objects,
        if chosen.refl { "ReFL-tuned" } else { "untuned" },
        config.bench.best_of
    );
    let mut methods = vec![
        Method {
            name: "PLM + ReFL",
            role: Role::Paper,
            note: "the paper's two parts together",
            prompts: &prompts.plm,
            denoiser: &refl,
            best_of: 1,
        },
        Method {
            name: "PLM + keyword vote, best of several",
            role: Role::Ours,
            note: &note,
            prompts: &prompts.mixed[chosen.objects - 1],
            denoiser: if chosen.refl { &refl } else { &models.denoiser },
            best_of: config.bench.best_of,
        },
        Method {
            name: "raw prompt",
            role: Role::Baseline,
            note: "the concept's name goes to the denoiser",
            prompts: &prompts.raw,
            denoiser: &models.denoiser,
            best_of: 1,
        },
        Method {
            name: "keyword lookup",
            role: Role::Baseline,
            note: "objects of the nearest train keyword by MiniLM",
            prompts: &prompts.lookup,
            denoiser: &models.denoiser,
            best_of: 1,
        },
        Method {
            name: TIAC,
            role: Role::Baseline,
            note: "objects near a gloss of train keywords; TIAC asks an LLM",
            prompts: &prompts.gloss,
            denoiser: &models.denoiser,
            best_of: 1,
        },
        Method {
            name: LLM,
            role: Role::Baseline,
            note: &config.bench.llm,
            prompts: &by_llm,
            denoiser: &models.denoiser,
            best_of: 1,
        },
        Method {
            name: "PLM",
            role: Role::Ablation,
            note: "without ReFL",
            prompts: &prompts.plm,
            denoiser: &models.denoiser,
            best_of: 1,
        },
        Method {
            name: "raw prompt + ReFL",
            role: Role::Ablation,
            note: "without the language model",
            prompts: &prompts.raw,
            denoiser: &refl,
            best_of: 1,
        },
        Method {
            name: "PLM + constant reward",
            role: Role::Control,
            note: "as ReFL, but only the pre-training loss moves the adapters",
            prompts: &prompts.plm,
            denoiser: &constant,
            best_of: 1,
        },
        Method {
            name: "same objects for all",
            role: Role::Control,
            note: "the most filed objects as prompt",
            prompts: &prompts.frequent,
            denoiser: &models.denoiser,
            best_of: 1,
        },
    ];
    if let Some(prompts) = &ppo {
        methods.push(Method {
            name: "PLM + PPO",
            role: Role::Ablation,
            note: "the language model tuned by Promptist's reward, the denoiser untuned",
            prompts,
            denoiser: &models.denoiser,
            best_of: 1,
        });
    }
    let judge = Judge::new(&base, &models, &concepts)?;
    let mut measured = Vec::new();
    for method in &methods {
        measured.push(judge.measure(method, seeds, config.bench.pictures)?);
    }
    let mut rows = rows(&methods, &measured, &concepts, config, seeds);
    rows.extend(refl_settings(&base, &models, seed)?);
    rows.extend(references(&base, &models, &judge, &concepts, &prompts, config)?);
    rows.extend(comparisons(&methods, &measured, &concepts, config, seeds));
    let mut figures = vec![sheet(&base, &methods, &concepts, &prompts, &measured, config)?];
    figures.extend(curves(&models.histories, &plm_history, &refl_histories));
    Ok((rows, figures))
}

/// The image models of a seed.
pub(super) struct Trained {
    pub(super) models: ImageModels,
    refl: Denoiser,
    pub(super) refl_histories: Vec<History>,
    constant: Denoiser,
}

/// Trains the image models, or finds them trained.
pub(super) fn train(base: &Base, seed: Seed) -> Result<Trained> {
    let models = base.image_models(seed)?;
    let (refl, refl_histories) = base.tuned(&models, Tuning::Reward, seed)?;
    let (constant, _) = base.tuned(&models, Tuning::Constant, seed)?;
    Ok(Trained { models, refl, refl_histories, constant })
}

/// What validation concepts chose.
#[derive(Debug, Clone, Copy)]
struct Chosen {
    /// Objects in a prompt.
    objects: usize,
    /// Whether the denoiser after ReFL draws.
    refl: bool,
}

/// Seed of the pictures that choices are made on.
const CHOICE_SEED: u64 = 4_096;

/// The number of objects and the denoiser with the most hits on validation concepts; ties go to the
/// first.
fn choose(
    base: &Base,
    model: &common::lm::Lm,
    models: &ImageModels,
    refl: &Denoiser,
    assets: &Assets,
    tuned: Tuned,
) -> Result<Chosen> {
    let concepts: Vec<Concept> = base.world.split(Split::Validation).cloned().collect();
    let mut best = (f64::NEG_INFINITY, Chosen { objects: 1, refl: false });
    if concepts.is_empty() {
        return Ok(best.1);
    }
    let prompts = Prompts::new(base, model, &concepts, assets, tuned)?;
    let judge = Judge::new(base, models, &concepts)?;
    for (at, mixed) in prompts.mixed.iter().enumerate() {
        for (refl, denoiser) in [(false, &models.denoiser), (true, refl)] {
            let method = Method {
                name: "choice",
                role: Role::Ours,
                note: "",
                prompts: mixed,
                denoiser,
                best_of: base.config.bench.best_of,
            };
            let measured = judge.measure(&method, &[CHOICE_SEED], 1)?;
            let hits = measured.hits.iter().sum::<f64>();
            if hits > best.0 {
                best = (hits, Chosen { objects: at + 1, refl });
            }
        }
    }
    Ok(best.1)
}

fn held_out(base: &Base, most: usize) -> Vec<Concept> {
    let all: Vec<&Concept> = base.world.split(Split::Test).collect();
    let count = if most == 0 { all.len() } else { most.min(all.len()) };
    (0..count).map(|at| all[at * all.len() / count].clone()).collect()
}

/// Scorer B with the real pictures' embeddings, and the texts of the concepts.
struct Judge<'a> {
    base: &'a Base,
    models: &'a ImageModels,
    concepts: &'a [Concept],
    real: Tensor,
    texts: ConceptTexts,
}

impl<'a> Judge<'a> {
    fn new(base: &'a Base, models: &'a ImageModels, concepts: &'a [Concept]) -> Result<Self> {
        let all: Vec<(usize, Style)> =
            (0..base.images.len()).map(|at| (at, Style::Colour)).collect();
        let real = models.scorer_b.embed_images(&base.images.batch(&all)?)?.detach();
        let texts = ConceptTexts::new(&base.world, &base.features, &models.scorer_b, concepts)?;
        Ok(Self { base, models, concepts, real, texts })
    }

    fn hits(&self, pictures: &Tensor) -> Result<Vec<f64>> {
        let embedded = self.models.scorer_b.embed_images(pictures)?;
        let objects: Vec<&[usize]> =
            self.concepts.iter().map(|concept| concept.objects.as_slice()).collect();
        concept_hits(&embedded, &self.real, &objects, K)
    }

    /// Pictures of one method: `pictures` a concept and seed.
    fn measure(&self, method: &Method<'_>, seeds: &[u64], pictures: usize) -> Result<Measured> {
        let (base, models) = (self.base, self.models);
        let mut measured = Measured::default();
        let text = base.features.batch(method.prompts)?.mean()?;
        let texts_a = models.scorer_a.embed_texts(&text)?;
        let texts_b = models.scorer_b.embed_texts(&text)?;
        let mut rounds = 0;
        for &seed in seeds {
            for round in 0..pictures {
                let draw = |which: usize| {
                    let numbers = (0..method.prompts.len() as u64).map(|at| {
                        let place = (round * method.best_of + which) as u64;
                        seed * 1_000_003 + place * 10_007 + at
                    });
                    let numbers: Vec<u64> = numbers.collect();
                    base.generate(method.denoiser, &models.codec, method.prompts, &numbers)
                };
                let score =
                    |shown: &Tensor| cosines(&models.scorer_a.embed_images(shown)?, &texts_a);
                let mut shown = draw(0)?;
                let mut best = score(&shown)?;
                for which in 1..method.best_of {
                    let other = draw(which)?;
                    let scores = score(&other)?;
                    let mut kept = Vec::new();
                    for at in 0..best.len() {
                        let from = if scores[at] > best[at] { &other } else { &shown };
                        kept.push(from.get(at)?);
                        best[at] = best[at].max(scores[at]);
                    }
                    shown = Tensor::stack(&kept, 0)?;
                }
                let embedded = models.scorer_b.embed_images(&shown)?;
                measured.hits.extend(self.hits(&shown)?);
                measured.concept.extend(concept_scores(&embedded, &self.texts)?);
                measured.clip_x.extend(cosines(&embedded, &self.texts.words)?);
                measured.clip_y.extend(cosines(&embedded, &texts_b)?);
                measured.reward.extend(best);
                let quality = models.quality_b.forward(&models.scorer_b.image_features(&shown)?)?;
                measured.quality.extend(quality.to_vec1::<f32>()?.into_iter().map(f64::from));
                measured.diversity += diversity(&embedded)?;
                rounds += 1;
                if measured.first.is_empty() {
                    measured.first =
                        (0..shown.dim(0)?).map(|at| Ok(shown.get(at)?)).collect::<Result<_>>()?;
                }
            }
        }
        measured.diversity /= rounds.max(1) as f64;
        Ok(measured)
    }
}

/// Mean over the rounds for each concept.
fn by_concept(values: &[f64], concepts: usize) -> Vec<f64> {
    let rounds = (values.len() / concepts.max(1)).max(1);
    (0..concepts)
        .map(|at| values.iter().skip(at).step_by(concepts).sum::<f64>() / rounds as f64)
        .collect()
}

fn row(name: &str, role: Role, metric: &str, note: &str) -> Row {
    Row {
        claim: "rewritten prompts and a tuned denoiser show abstract concepts better".into(),
        dataset: DATASET.into(),
        method: name.into(),
        role,
        metric: metric.into(),
        note: Some(format!("{note}; {CAVEAT}")),
        ..Row::default()
    }
}

fn rows(
    methods: &[Method<'_>],
    measured: &[Measured],
    concepts: &[Concept],
    config: &Config,
    seeds: &[u64],
) -> Vec<Row> {
    let resamples = config.bench.resamples;
    let metrics: [(&str, fn(&Measured) -> &[f64]); 6] = [
        (METRIC, |m| &m.hits),
        ("concept score (scorer B)", |m| &m.concept),
        ("cosine to x (scorer B)", |m| &m.clip_x),
        ("cosine to y (scorer B)", |m| &m.clip_y),
        ("cosine to y (scorer A, the reward)", |m| &m.reward),
        ("quality", |m| &m.quality),
    ];
    let mut rows = Vec::new();
    for (metric, of) in metrics {
        for (method, measured) in methods.iter().zip(measured) {
            let values = of(measured);
            let (mean, ci) = over_items(&by_concept(values, concepts.len()), resamples, metric);
            let share = (values.len() / seeds.len().max(1)).max(1);
            let means: Vec<f64> = values
                .chunks(share)
                .map(|part| part.iter().sum::<f64>() / part.len() as f64)
                .collect();
            rows.push(Row {
                mean: Some(mean),
                sd: (means.len() > 1).then(|| stats::mean_sd(&means).1),
                ci95: Some(ci),
                seeds: seeds.len(),
                n: concepts.len(),
                ..row(method.name, method.role, metric, method.note)
            });
        }
    }
    for (method, measured) in methods.iter().zip(measured) {
        rows.push(Row {
            mean: Some(measured.diversity),
            seeds: seeds.len(),
            n: concepts.len(),
            ..row(method.name, method.role, "diversity", "1 − mean cosine in scorer B's space")
        });
    }
    rows
}

/// How the settings of ReFL did on validation concepts, where one of them was chosen.
fn refl_settings(base: &Base, models: &ImageModels, seed: Seed) -> Result<Vec<Row>> {
    let choice = base.choose_refl(models, seed)?;
    let settings = choice::settings(&base.config);
    if settings.len() == 1 {
        return Ok(Vec::new());
    }
    let n = base.world.split(Split::Validation).count();
    let row = |name: &str, score: f64, note: &str| Row {
        dataset: "validation concepts, pictures".into(),
        mean: Some(score),
        n,
        ..row(name, Role::Ablation, "concept score (scorer B)", note)
    };
    let mut rows = vec![row("PLM", choice.untuned, "without ReFL")];
    for (at, (options, &score)) in settings.iter().zip(&choice.scores).enumerate() {
        let used = at == choice.best();
        let note = if used { "the setting that is used" } else { "not used" };
        rows.push(row(&format!("ReFL: {}", choice::describe(options)), score, note));
    }
    Ok(rows)
}

/// Chance level, and the real pictures of the objects in place of generated ones.
fn references(
    base: &Base,
    models: &ImageModels,
    judge: &Judge<'_>,
    concepts: &[Concept],
    prompts: &Prompts,
    config: &Config,
) -> Result<Vec<Row>> {
    let resamples = config.bench.resamples;
    let by_chance: Vec<f64> =
        concepts.iter().map(|concept| chance(&base.world, &concept.objects, K)).collect();
    let of = |objects: Vec<usize>| {
        let chosen: Vec<(usize, Style)> =
            objects.into_iter().map(|at| (at, Style::Colour)).collect();
        judge.hits(&base.images.batch(&chosen)?)
    };
    let rewritten =
        of(prompts.plm_objects.iter().map(|o| o.first().copied().unwrap_or(0)).collect())?;
    let decoded = {
        let chosen: Vec<(usize, Style)> = prompts
            .plm_objects
            .iter()
            .map(|o| (o.first().copied().unwrap_or(0), Style::Colour))
            .collect();
        let codes = models.codec.encode(&base.images.batch(&chosen)?)?;
        judge.hits(&models.codec.decode(&codes)?.clamp(-1f32, 1f32)?)?
    };
    let cases = [
        ("chance", METRIC, by_chance, "five different real pictures at random"),
        (
            "real picture of the PLM's first object",
            LIMIT,
            rewritten,
            "what a perfect denoiser gives",
        ),
        ("the same through the latent code", LIMIT, decoded, "what the code loses"),
    ];
    Ok(cases
        .into_iter()
        .map(|(name, metric, values, note)| {
            let (mean, ci) = over_items(&values, resamples, name);
            Row {
                mean: Some(mean),
                ci95: Some(ci),
                n: concepts.len(),
                ..row(name, Role::Control, metric, note)
            }
        })
        .collect())
}

/// Paired differences and win rates of the steps of the method.
fn comparisons(
    methods: &[Method<'_>],
    measured: &[Measured],
    concepts: &[Concept],
    config: &Config,
    seeds: &[u64],
) -> Vec<Row> {
    let at = |name: &str| methods.iter().position(|method| method.name == name).unwrap_or(0);
    let ours = methods[1].name;
    let pairs = [
        ("PLM", "raw prompt"),
        ("PLM", LLM),
        ("PLM + ReFL", "PLM"),
        ("PLM + ReFL", "PLM + constant reward"),
        ("PLM + ReFL", "raw prompt"),
        (ours, "PLM + ReFL"),
        (ours, "keyword lookup"),
    ];
    let mut rows = Vec::new();
    for (first, second) in pairs {
        let (a, b) = (&measured[at(first)], &measured[at(second)]);
        let role = methods[at(first)].role;
        let part = |of: fn(&Measured) -> &[f64], m: &Measured| by_concept(of(m), concepts.len());
        let metrics: [(&str, fn(&Measured) -> &[f64]); 4] = [
            ("difference in ConceptHit@5", |m| &m.hits),
            ("difference in concept score (scorer B)", |m| &m.concept),
            ("difference in cosine to y (scorer B)", |m| &m.clip_y),
            ("difference in quality", |m| &m.quality),
        ];
        for (metric, of) in metrics {
            let mut stream = Seed::new(0).stream(metric);
            let found = stats::paired_bootstrap(
                &part(of, a),
                &part(of, b),
                config.bench.resamples,
                &mut stream,
            );
            rows.push(Row {
                mean: Some(found.difference),
                ci95: Some(found.ci95),
                seeds: seeds.len(),
                n: concepts.len(),
                note: Some(format!("paired over concepts, p = {:.3}", found.p)),
                ..row(&format!("{first} minus {second}"), role, metric, "")
            });
        }
        let wins: Vec<f64> = a
            .clip_x
            .iter()
            .zip(&b.clip_x)
            .map(|(a, b)| {
                if a > b {
                    1.0
                } else if a == b {
                    0.5
                } else {
                    0.0
                }
            })
            .collect();
        let (mean, ci) =
            over_items(&by_concept(&wins, concepts.len()), config.bench.resamples, "wins");
        rows.push(Row {
            mean: Some(mean),
            ci95: Some(ci),
            seeds: seeds.len(),
            n: concepts.len(),
            note: Some("share of pictures nearer to the concept's word by scorer B".into()),
            ..row(&format!("{first} against {second}"), role, "win rate", "")
        });
    }
    rows
}

fn sheet(
    base: &Base,
    methods: &[Method<'_>],
    concepts: &[Concept],
    prompts: &Prompts,
    measured: &[Measured],
    config: &Config,
) -> Result<Figure> {
    let at = |name: &str| methods.iter().position(|method| method.name == name).unwrap_or(0);
    let columns = [
        (at("raw prompt"), "raw"),
        (at("PLM"), "PLM"),
        (at("PLM + ReFL"), "PLM + ReFL"),
        (1, "ours"),
    ];
    let count = config.bench.sheet.min(concepts.len());
    let mut sheet = Sheet {
        columns: columns.iter().map(|(_, name)| (*name).to_owned()).collect(),
        rows: Vec::new(),
    };
    for at in (0..count).map(|at| at * concepts.len() / count.max(1)) {
        let pictures = columns.iter().map(|(method, _)| measured[*method].first[at].clone());
        sheet.rows.push(SheetRow {
            concept: concepts[at].word.clone(),
            prompt: prompts.plm[at].clone(),
            pictures: pictures.collect(),
        });
    }
    let caption = format!(
        "Held-out concepts, one seed, the first picture of each: the raw prompt, the language \
         model's prompt, the same after ReFL, and ours. Under each concept the language model's \
         prompt. {} pixels, nothing selected by hand.",
        base.images.size()
    );
    Ok(Figure::new("Contact sheet", &caption, sheet.svg()?))
}

fn curves(histories: &BTreeMap<String, History>, plm: &History, refl: &[History]) -> Vec<Figure> {
    let smooth = |history: &History| -> Vec<(f64, f64)> {
        let width = (history.losses.len() / 40).max(1);
        let parts = history.losses.chunks(width).enumerate();
        parts
            .map(|(at, part)| ((at * width) as f64, part.iter().sum::<f64>() / part.len() as f64))
            .collect()
    };
    let line =
        |name: &str, history: &History| Line { name: name.to_owned(), points: smooth(history) };
    let mut lines = vec![line("language model", plm)];
    for name in ["scorer-a", "scorer-b", "denoiser"] {
        lines.extend(histories.get(name).map(|history| line(name, history)));
    }
    let labels = Labels { title: "Training losses", x: "step", y: "loss" };
    let caption =
        "Each model's own loss: cross-entropy of the answer, InfoNCE, squared error of v.";
    let mut figures = vec![Figure::new(labels.title, caption, plot::lines(labels, &lines))];
    let lines: Vec<Line> = refl
        .iter()
        .enumerate()
        .map(|(at, history)| line(&format!("stage {}", at + 1), history))
        .collect();
    let labels = Labels { title: "ReFL losses", x: "step", y: "λ ReLU(b − r) + L_pre" };
    let caption = "Stage 1 rewards faithfulness, stage 2 faithfulness and quality.";
    figures.push(Figure::new(labels.title, caption, plot::lines(labels, &lines)));
    figures
}
