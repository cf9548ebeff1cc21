//! Synthetic catalogues: the one modality that carries the signal must be used, and only it.

use std::time::Instant;

use common::optim::Workers;
use common::report::{Figure, Report, Role};
use common::rng::Seed;
use common::{Error, Result};

use super::ablations::shuffled;
use super::{Context, Job, Line, row};
use crate::config::Config;
use crate::data::synthetic::{CANDIDATES, Catalogue, Signal, Sizes, generate};
use crate::encoders::image::Picture;
use crate::encoders::seeded;
use crate::eval::{self, Query, Scorer};
use crate::model::{MODALITIES, Modalities, Used};
use crate::pipeline::{self, Fitted, Prepared};
use crate::train::{Curriculum, StageOptions};

/// Width of the seeded encoders.
const WIDTH: usize = 48;
/// Side of the drawn pictures.
const SIDE: usize = 24;

/// A catalogue ready for training.
struct World {
    signal: Signal,
    catalogue: Catalogue,
    prepared: Prepared,
}

/// The model of a synthetic catalogue: the same code in a smaller size, without item tokens.
pub fn sized(config: &Config) -> Config {
    let mut c = config.clone();
    c.lm.hidden = c.lm.hidden.min(64);
    c.lm.inner = 2 * c.lm.hidden;
    c.fusion.width = c.fusion.width.min(32);
    c.vocabulary.merges = 0;
    c.prompt.history = 5;
    c.prompt.title_tokens = 4;
    c.rank.candidates = CANDIDATES;
    // test users see items of which training knows nothing, so only modalities can speak
    c.lm.item_tokens = false;
    c.train.curriculum = Curriculum::None;
    // new users and items at every test: nothing to learn by heart
    (c.train.dropout, c.train.fusion_dropout) = (0.1, 0.0);
    c.train.warm_up.steps = 0;
    c.train.fusion = StageOptions {
        steps: config.bench.synthetic_steps,
        batch: config.bench.synthetic_batch,
        learning_rate: config.bench.synthetic_rate,
        listed: 0.0,
    };
    c
}

/// A catalogue with its modalities encoded by the seeded encoders.
///
/// # Errors
/// None but bugs.
pub fn prepare(catalogue: &Catalogue, config: &Config, seed: Seed) -> Result<Prepared> {
    let pictures = catalogue
        .drawings
        .iter()
        .map(|drawing| Picture::new(SIDE, SIDE, drawing.pixels(SIDE)).map(Some))
        .collect::<Result<Vec<_>>>()?;
    let data = &catalogue.data;
    let texts: Vec<&str> = data.items.iter().map(|item| item.text.as_str()).collect();
    let encoded = [
        Some(seeded::images(&pictures, WIDTH, seed)),
        Some(seeded::texts(&texts, WIDTH, seed)),
        Some(seeded::links(&data.links, data.items.len(), WIDTH, seed)),
    ];
    let train = data.sequences.clone();
    Prepared::new(data.clone(), train, catalogue.warm.clone(), encoded, config)
}

/// The test questions of a catalogue.
pub fn queries(catalogue: &Catalogue) -> Vec<Query> {
    let query = |(user, test): (usize, &crate::data::synthetic::Test)| Query {
        user,
        history: test.history.clone(),
        items: test.items.clone(),
        positive: Some(test.positive),
    };
    catalogue.tests.iter().enumerate().map(query).collect()
}

/// The catalogues of all signals; none where the profile has no synthetic users.
pub(super) struct Catalogues {
    worlds: Vec<World>,
    config: Config,
    /// The catalogue of behaviours for a model that is not told them.
    unaware: Option<(Prepared, Config)>,
    base: Seed,
}

impl Catalogues {
    pub(super) fn new(config: &Config, context: &Context) -> Result<Self> {
        let base = context.base();
        let small = sized(config);
        let mut made = Self { worlds: Vec::new(), config: small, unaware: None, base };
        if config.bench.synthetic_users == 0 {
            return Ok(made);
        }
        let mut sizes = Sizes { tests: config.bench.synthetic_users, ..Sizes::default() };
        if config.bench.synthetic_users < 100 {
            sizes = Sizes { warm: 120, cold: 120, users: 300, ..sizes };
        }
        for signal in Signal::ALL {
            let catalogue = generate(signal, sizes, base);
            let prepared = prepare(&catalogue, &made.config, base)?;
            if signal == Signal::Behaviour {
                let mut blind = made.config.clone();
                (blind.prompt.behaviour_tokens, blind.fusion.behaviours) = (false, false);
                made.unaware = Some((prepare(&catalogue, &blind, base)?, blind));
            }
            made.worlds.push(World { signal, catalogue, prepared });
        }
        Ok(made)
    }

    fn fit(
        &self,
        prepared: &Prepared,
        config: &Config,
        context: &Context,
        workers: &Workers,
    ) -> Result<Fitted> {
        pipeline::fit(prepared, config, self.base, self.base, &context.kept, workers)
    }

    /// The trainings.
    pub(super) fn jobs<'a>(&'a self, context: &'a Context) -> Vec<Job<'a>> {
        let models = self.worlds.iter().map(|world| (&world.prepared, &self.config));
        let unaware = self.unaware.iter().map(|(prepared, config)| (prepared, config));
        let job = |(prepared, config): (&'a Prepared, &'a Config)| -> Job<'a> {
            Box::new(move |workers| self.fit(prepared, config, context, workers).map(drop))
        };
        models.chain(unaware).map(job).collect()
    }

    /// The rows and the figure, of models that [`Catalogues::jobs`] trained.
    pub(super) fn measure(&self, context: &Context, report: &mut Report) -> Result<()> {
        let resamples = self.config.bench.resamples;
        for World { signal, catalogue, prepared } in &self.worlds {
            let started = Instant::now();
            if *signal == Signal::Image {
                report.figures.push(catalogue_figure(catalogue));
            }
            let asked = queries(catalogue);
            let dataset = format!("synthetic, signal in {}", signal.name());
            let mut add = |method: &str, role: Role, hits: Vec<f64>, note: Option<&str>| {
                let line = Line {
                    dataset: &dataset,
                    claim: "the modality that carries the signal is used",
                    method,
                    role,
                    metric: "hr@1",
                    note: Some(note.map_or_else(
                        || format!("synthetic; {CANDIDATES} candidates, cold items and users"),
                        str::to_owned,
                    )),
                };
                report.rows.push(row(&line, &[hits], resamples, started));
            };
            let fitted = self.fit(prepared, &self.config, context, &context.workers)?;
            let modalities = prepared.switched(&self.config);
            let hits = |modalities: &Modalities, used: Used| {
                let scorer = Scorer::new(&fitted.model, &prepared.prompter, modalities).with(used);
                let scores = eval::score(&scorer, &asked, false, false, &context.workers)?;
                Ok::<_, Error>(eval::hits(&eval::ranks(&asked, &scores), 1))
            };
            add("TMF", Role::Paper, hits(&modalities, [true; 3])?, None);
            for (which, name) in MODALITIES.iter().enumerate() {
                if *signal == Signal::Behaviour {
                    break;
                }
                let used = [0, 1, 2].map(|at| at != which);
                add(
                    &format!("{name} removed at test"),
                    Role::Ablation,
                    hits(&modalities, used)?,
                    None,
                );
                let changed = shuffled(&modalities, which, self.base)?;
                let credits = hits(&changed, [true; 3])?;
                // a control where the signal is; elsewhere it should cost nothing
                let role = if name == &signal.name() { Role::Control } else { Role::Ablation };
                add(&format!("{name} shuffled across items"), role, credits, None);
            }
            let chance = vec![1.0 / CANDIDATES as f64; asked.len()];
            add("chance", Role::Control, chance, Some("one in eight by construction"));
            if let (Signal::Behaviour, Some((prepared, blind))) = (signal, &self.unaware) {
                let fitted = self.fit(prepared, blind, context, &context.workers)?;
                let scorer = Scorer::new(&fitted.model, &prepared.prompter, &modalities);
                let scores = eval::score(&scorer, &asked, false, false, &context.workers)?;
                let credits = eval::hits(&eval::ranks(&asked, &scores), 1);
                let note = "synthetic; trained again without behaviour tokens and embeddings";
                add("without behaviour tokens", Role::Ablation, credits, Some(note));
            }
        }
        Ok(())
    }
}

/// A sheet of drawn items.
fn catalogue_figure(catalogue: &Catalogue) -> Figure {
    const COLUMNS: usize = 12;
    const ROWS: usize = 3;
    const STEP: usize = 52;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" \
         viewBox=\"0 0 {0} {1}\"><rect width=\"{0}\" height=\"{1}\" fill=\"#fff\"/>",
        COLUMNS * STEP + 4,
        ROWS * STEP + 4
    );
    for (at, drawing) in catalogue.drawings.iter().take(COLUMNS * ROWS).enumerate() {
        let (left, top) = (4 + at % COLUMNS * STEP, 4 + at / COLUMNS * STEP);
        let side = (STEP - 4) as f64;
        let ground = drawing.ground;
        let [r, g, b] = drawing.colour;
        let [cx, cy, radius] = drawing.place.map(|share| share * side);
        let (cx, cy) = (cx + left as f64, cy + top as f64);
        svg.push_str(&format!(
            "<rect x=\"{left}\" y=\"{top}\" width=\"{side}\" height=\"{side}\" \
             fill=\"rgb({ground},{ground},{ground})\"/>"
        ));
        let fill = format!("fill=\"rgb({r},{g},{b})\"");
        svg.push_str(&match drawing.shape {
            0 => format!("<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"{radius:.1}\" {fill}/>"),
            1 => {
                let half = 0.85 * radius;
                format!(
                    "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{2:.1}\" height=\"{2:.1}\" {fill}/>",
                    cx - half,
                    cy - half,
                    2.0 * half
                )
            }
            _ => {
                let reach = 1.2 * radius;
                format!(
                    "<polygon points=\"{:.1},{cy:.1} {cx:.1},{:.1} {:.1},{cy:.1} {cx:.1},{:.1}\" {fill}/>",
                    cx - reach,
                    cy - reach,
                    cx + reach,
                    cy + reach
                )
            }
        });
    }
    svg.push_str("</svg>");
    let caption = "Items of the synthetic catalogue whose colour tells what is bought.";
    Figure::new("synthetic catalogue", caption, svg)
}
