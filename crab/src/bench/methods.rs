//! All methods on one data set.
//!
//! Every seed of every method is a job of its own on one thread, and the jobs go to the cores side
//! by side: small models use two cores better that way than by sharing each step. What a job
//! trained is kept ([`Trained`]), so later jobs read it, and so does the next run.

use std::collections::BTreeMap;
use std::time::Instant;

use candle_core::{Device, Tensor};
use common::Result;
use common::checkpoint::Trained;
use common::optim::Workers;
use common::recommend::{Bpr, Gru4rec, HeldOut, Markov, Sasrec};
use common::report::Role;
use common::rng::Seed;
use ndarray::Array2;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{Context, Outcome};
use crate::baselines::{self, Rescoring, rescored};
use crate::config::{BenchDataset, Config};
use crate::data::{Case, Dataset};
use crate::decode::{DecodeOptions, Ranked, decode};
use crate::eval::{Groups, Lists, Scores, evaluate};
use crate::model::generator::Generator;
use crate::model::rebalance::{RebalanceOptions, Rebalanced, rebalance};
use crate::sid::{SidTable, audit};
use crate::tokenizer::{Assignment, Codebook, RqVaeOptions, residual_kmeans, train_rqvae};
use crate::train::{EpochRecord, Stage2Options, Task, fine_tune, fit, inverse_popularity};
use crate::vectors::item_vectors;

/// Raised whenever training code changes, so that kept models are not mixed up.
const TRAINING: u32 = 5;

pub(crate) const BASE: &str = "generator";
pub(crate) const CONTROL: &str = "same budget, no split";
pub(crate) const CRAB: &str = "CRAB";

const FIRST: &str = "First seed only.";
const PARENT: &str = "Children of different parents move on their own; first seed only.";

/// What the figures need beside the scores.
pub(crate) struct DatasetOutcome {
    pub(crate) methods: Vec<Outcome>,
    /// Per level: loads of the tokens before and after, first seed.
    pub(crate) loads: Vec<(Vec<u64>, Vec<u64>)>,
    /// Method → accuracy and MGU along α, means over seeds.
    pub(crate) frontier: BTreeMap<String, Vec<(f64, f64)>>,
    /// Training curves of the first seed.
    pub(crate) curves: Vec<(String, Vec<EpochRecord>)>,
    /// Whether beam search finds what scoring every item finds, first seed.
    pub(crate) exact: Option<Exact>,
}

/// HR@10 of the base model on some test cases by beam search and by scoring every item.
pub(crate) struct Exact {
    pub(crate) beams: usize,
    pub(crate) beam: f64,
    pub(crate) exact: f64,
    pub(crate) cases: usize,
}

/// Cases on which every item is scored; it costs a pass per prefix of the catalogue.
const EXACT_CASES: usize = 200;

struct Bench<'a> {
    config: &'a Config,
    bench: &'a BenchDataset,
    data: &'a Dataset,
    counts: Vec<u64>,
    groups: Groups,
    kept: Trained,
    /// Baselines that other papers ask for, too.
    shared: Trained,
    fingerprint: String,
    markov: Markov,
    /// Validation cases on which α and β are chosen.
    chosen_on: Vec<Case>,
    points: Array2<f32>,
}

/// What a seed starts from.
struct Start {
    seed: Seed,
    book: Codebook,
    /// The book's semantic IDs without collisions.
    table: SidTable,
    stage1: Rebalanced,
}

/// One method with one seed.
struct Found {
    name: String,
    role: Role,
    note: &'static str,
    scores: Scores,
    seconds: f64,
    curve: Vec<EpochRecord>,
    frontier: Vec<(f64, f64)>,
}

/// A variant of Stage 2: the same epochs from the same base model.
struct Variant {
    name: &'static str,
    role: Role,
    note: &'static str,
    split: RebalanceOptions,
    stage2: Stage2Options,
    reweighted: bool,
    /// Only with the first seed.
    once: bool,
}

/// What a job does.
#[derive(Clone, Copy)]
enum Job {
    Base,
    Balanced,
    RqVae,
    Letter,
    Sasrec,
    Gru4rec,
    Counting,
    SplitOnly,
    Variant(usize),
}

pub(super) fn run(
    config: &Config,
    bench: &BenchDataset,
    data: &Dataset,
    context: &Context,
    seeds: &[u64],
) -> Result<DatasetOutcome> {
    let counts = data.counts();
    let trained = context.assets.options().cache.join("trained");
    let all = Bench {
        config,
        bench,
        data,
        groups: Groups::equal_count(&counts, 5),
        counts,
        kept: Trained::new(&trained.join("crab")),
        shared: Trained::new(&trained),
        fingerprint: data.fingerprint(),
        markov: Markov::fit(&data.train, data.items())?,
        chosen_on: spread(&data.valid, 1000).cloned().collect(),
        points: item_vectors(data, bench.tokenizer.vectors, &context.assets, Seed::new(0))?,
    };
    let workers = Workers::new(context.threads)?;
    let starts = workers.map(seeds.len(), |at| all.start(Seed::new(seeds[at])))?;
    let variants = variants(config, bench.extras);
    let extra = |job| bench.extras.then_some(job);
    // what only looks further costs much: the first seed has to do
    let once = |job: &Job| match job {
        Job::Balanced | Job::RqVae | Job::Letter | Job::Gru4rec => true,
        Job::Variant(which) => variants[*which].once,
        _ => false,
    };
    // the long ones first, and what others read: a job waits for a training that is under way
    let jobs = [
        Some(Job::Base),
        extra(Job::Balanced),
        Some(Job::Sasrec),
        extra(Job::RqVae),
        extra(Job::Letter),
        Some(Job::Gru4rec),
        Some(Job::Counting),
        Some(Job::SplitOnly),
    ];
    let jobs = jobs.into_iter().flatten().chain((0..variants.len()).map(Job::Variant));
    let jobs: Vec<Job> = jobs.collect();
    let mut methods: Vec<Outcome> = Vec::new();
    let (mut frontier, mut curves) = (BTreeMap::new(), Vec::new());
    let found = workers.map(jobs.len() * starts.len(), |at| {
        common::run::check_interrupt()?;
        let (job, seed) = (jobs[at / starts.len()], at % starts.len());
        if seed > 0 && once(&job) {
            return Ok(Vec::new());
        }
        all.work(job, &starts[seed], &variants)
    })?;
    for (at, found) in found.into_iter().enumerate() {
        for found in found {
            if at % starts.len() == 0 && !found.curve.is_empty() {
                curves.push((found.name.clone(), found.curve.clone()));
            }
            add_points(&mut frontier, &found, starts.len());
            add(&mut methods, found);
        }
    }
    let order = [Role::Baseline, Role::Control, Role::Ablation, Role::Paper, Role::Ours];
    methods.sort_by_key(|method| order.iter().position(|role| *role == method.role));
    let start = &starts[0];
    let load = |level| {
        let of = |table: &SidTable| table.token_popularity(level, &all.counts);
        (of(&start.table), of(&start.stage1.table))
    };
    let loads = (0..start.book.table.levels()).map(load).collect();
    for level in audit(&start.book.table, &all.counts).levels {
        tracing::info!(?level, data = data.name, "code book");
    }
    let exact = if bench.extras { Some(all.exact(start, &workers)?) } else { None };
    Ok(DatasetOutcome { methods, loads, frontier, curves, exact })
}

fn add(methods: &mut Vec<Outcome>, found: Found) {
    match methods.iter_mut().find(|method| method.name == found.name) {
        Some(method) => {
            method.scores.push(found.scores);
            method.seconds += found.seconds;
        }
        None => methods.push(Outcome {
            name: found.name,
            role: found.role,
            note: found.note.to_owned(),
            scores: vec![found.scores],
            seconds: found.seconds,
        }),
    }
}

fn add_points(frontier: &mut BTreeMap<String, Vec<(f64, f64)>>, found: &Found, seeds: usize) {
    if found.frontier.is_empty() {
        return;
    }
    let zero = vec![(0.0, 0.0); found.frontier.len()];
    let sums = frontier.entry(found.name.clone()).or_insert(zero);
    for (sum, point) in sums.iter_mut().zip(&found.frontier) {
        sum.0 += point.0 / seeds as f64;
        sum.1 += point.1 / seeds as f64;
    }
}

/// The variants of Stage 2; with `extras` also those that look for a better setting than the
/// paper's.
fn variants(config: &Config, extras: bool) -> Vec<Variant> {
    let split = &config.rebalance;
    let with = &config.stage2;
    let none = RebalanceOptions { ratio: 0.0, ..split.clone() };
    let without = Stage2Options { gamma: 0.0, ..with.clone() };
    let variant = |name, role, note, split: &RebalanceOptions, stage2: &Stage2Options| Variant {
        name,
        role,
        note,
        split: split.clone(),
        stage2: stage2.clone(),
        reweighted: false,
        once: false,
    };
    let random = RebalanceOptions { random: true, ..split.clone() };
    let mut all = vec![
        variant(CONTROL, Role::Control, "The base model with CRAB's epochs.", &none, &without),
        variant(CRAB, Role::Paper, "Middle level, L_T with gamma 0.2.", split, with),
        variant(
            "split at random",
            Role::Control,
            "The same tokens, children spread at random.",
            &random,
            with,
        ),
        Variant {
            reweighted: true,
            ..variant(
                "reweighting (RW)",
                Role::Baseline,
                "Inverse-popularity weights in CRAB's epochs; the paper retrains the model.",
                &none,
                &without,
            )
        },
    ];
    if extras {
        let level =
            |levels: &[usize]| RebalanceOptions { levels: levels.to_vec(), ..split.clone() };
        let parent = RebalanceOptions { condition_on_parent: true, ..split.clone() };
        let once = |name, role, note, split: &RebalanceOptions| Variant {
            once: true,
            ..variant(name, role, note, split, with)
        };
        all.extend([
            Variant {
                stage2: without.clone(),
                ..once("CRAB without L_T", Role::Ablation, FIRST, split)
            },
            once("L_T without split", Role::Ablation, FIRST, &none),
            once("CRAB on the first level", Role::Ablation, FIRST, &level(&[0])),
            once("CRAB on two levels", Role::Ours, FIRST, &level(&[0, 1])),
            once("CRAB given the parent", Role::Ours, PARENT, &parent),
        ]);
    }
    all
}

impl Bench<'_> {
    /// The semantic IDs that come with the data, where they are to be used.
    fn released(&self) -> Option<&SidTable> {
        self.data.released.as_ref().filter(|_| self.bench.released_sids)
    }

    fn distinct(&self, book: &Codebook) -> SidTable {
        book.distinct(self.bench.tokenizer.collisions, &self.counts)
    }

    /// Semantic IDs and the split of a seed.
    fn start(&self, seed: Seed) -> Result<Start> {
        let book = match self.released() {
            Some(table) => Codebook::around(table.clone(), self.points.clone())?,
            None => self.residual(self.bench.tokenizer.assignment, seed)?,
        };
        let table = self.distinct(&book);
        let stage1 = self.split(&book, &table, &self.config.rebalance, seed)?;
        Ok(Start { seed, book, table, stage1 })
    }

    fn residual(&self, assignment: Assignment, seed: Seed) -> Result<Codebook> {
        residual_kmeans(self.points.clone(), &self.bench.tokenizer.codes, assignment, seed)
    }

    fn split(
        &self,
        book: &Codebook,
        table: &SidTable,
        options: &RebalanceOptions,
        seed: Seed,
    ) -> Result<Rebalanced> {
        rebalance(table, &self.counts, |level| Some(book.residuals(level)), options, seed)
    }

    fn work(&self, job: Job, start: &Start, variants: &[Variant]) -> Result<Vec<Found>> {
        let clock = Instant::now();
        let (data, test, seed) = (self.data, &self.data.test, start.seed);
        let note = "Cross-entropy over all items.";
        let mut found = match job {
            Job::Counting => return self.counting(seed),
            Job::Variant(which) => return self.variant(&variants[which], start),
            Job::Base => {
                let note = match self.released() {
                    Some(_) => "Released semantic IDs, decoder-only, before CRAB.",
                    None => "Residual k-means, decoder-only, before CRAB.",
                };
                self.fit_from_scratch(&start.table, BASE, note, seed)?
            }
            Job::Balanced => {
                let even = self.distinct(&self.residual(Assignment::Balanced, seed)?);
                let note = "Balanced residual k-means, trained from scratch; first seed only.";
                self.fit_from_scratch(&even, "generator on balanced codes", note, seed)?
            }
            Job::RqVae => {
                let table = self.learned(None, &RqVaeOptions::default(), seed)?;
                let note =
                    "RQ-VAE instead of residual k-means, trained from scratch; first seed only.";
                self.fit_from_scratch(&table, "generator on RQ-VAE codes", note, seed)?
            }
            Job::Letter => {
                let helper = self.sasrec(seed)?.parameters().tensors()["items.weight"].copy()?;
                let width = helper.dim(1)?;
                let helper = helper.flatten_all()?.to_vec1::<f32>()?;
                let helper = Array2::from_shape_vec((data.items(), width), helper)
                    .map_err(|error| common::Error::Bug(error.to_string()))?;
                let mut options = RqVaeOptions::default().letter();
                options.widths.pop();
                options.widths.push(width);
                let table = self.learned(Some(&helper), &options, seed)?;
                let note = "RQ-VAE with LETTER's regularisers on SASRec's item vectors; first seed \
                            only.";
                self.fit_from_scratch(&table, "LETTER", note, seed)?
            }
            Job::Sasrec => {
                let lists = baselines::sasrec(data, test, &self.sasrec(seed)?)?;
                self.found("SASRec", Role::Baseline, note, &lists)
            }
            Job::Gru4rec => {
                let lists = baselines::gru4rec(data, test, &self.gru4rec(seed)?)?;
                let note = "Cross-entropy over all items; first seed only.";
                self.found("GRU4Rec", Role::Baseline, note, &lists)
            }
            Job::SplitOnly => {
                let (base, _) = self.trained_generator(&start.table, seed)?;
                let model = base.grown(&start.stage1.parent_of, 0.0, seed)?;
                let ranked = self.decode(&model, &start.stage1.table, test)?;
                let lists = baselines::generated(data, test, &ranked);
                self.found("split only", Role::Ablation, "No fine-tuning.", &lists)
            }
        };
        found.seconds = clock.elapsed().as_secs_f64();
        tracing::info!(name = found.name, "{:.1} s", found.seconds);
        Ok(vec![found])
    }

    fn found(&self, name: &str, role: Role, note: &'static str, lists: &Lists) -> Found {
        let scores = self.scores(&self.data.test, lists);
        tracing::info!(
            data = self.data.name,
            name,
            "hr@10 {:.4} ndcg@10 {:.4} mgu {:.4} dgu {:.4} cov {:.3} tail {:.4}",
            scores.hr10,
            scores.ndcg10,
            scores.mgu,
            scores.dgu,
            scores.coverage,
            scores.tail_hr10
        );
        Found {
            name: name.to_owned(),
            role,
            note,
            scores,
            seconds: 0.0,
            curve: Vec::new(),
            frontier: Vec::new(),
        }
    }

    fn scores(&self, cases: &[Case], lists: &Lists) -> Scores {
        evaluate(cases, lists, &self.groups, self.data.items())
    }

    /// A trained model from the cache, or trained now.
    fn trained<H: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        key: serde_json::Value,
        train: impl FnOnce() -> Result<(BTreeMap<String, Tensor>, H)>,
    ) -> Result<(BTreeMap<String, Tensor>, H)> {
        let key = json!({ "code": TRAINING, "data": self.fingerprint, "what": key });
        self.kept.get_or_train(name, &key, |_| train())
    }

    fn counting(&self, seed: Seed) -> Result<Vec<Found>> {
        let (data, test) = (self.data, &self.data.test);
        let lists = baselines::popularity(data, test)?;
        let popularity = self.found("popularity", Role::Baseline, "", &lists);
        let lists = baselines::markov(data, test, &self.markov);
        let markov = self.found("Markov", Role::Baseline, "Training transitions only.", &lists);
        let clock = Instant::now();
        let lists = baselines::item_knn(data, test, self.bench.baselines.item_knn)?;
        let mut knn = self.found("item-kNN", Role::Baseline, "", &lists);
        knn.seconds = clock.elapsed().as_secs_f64();
        let clock = Instant::now();
        let options = self.bench.baselines.bpr;
        let (items, held) = (data.items(), held_out(data));
        let model = Bpr::fit_once(&self.shared, &data.train, items, &held, options, seed)?;
        let mut bpr = self.found("BPR", Role::Baseline, "", &baselines::bpr(data, test, &model));
        bpr.seconds = clock.elapsed().as_secs_f64();
        Ok(vec![popularity, markov, knn, bpr])
    }

    fn sasrec(&self, seed: Seed) -> Result<Sasrec> {
        let (data, options) = (self.data, self.bench.baselines.sasrec);
        Sasrec::fit_once(&self.shared, &data.train, data.items(), &held_out(data), options, seed)
    }

    fn gru4rec(&self, seed: Seed) -> Result<Gru4rec> {
        let (data, options) = (self.data, self.bench.baselines.gru4rec);
        Gru4rec::fit_once(&self.shared, &data.train, data.items(), &held_out(data), options, seed)
    }

    fn decode(&self, model: &Generator, table: &SidTable, cases: &[Case]) -> Result<Vec<Ranked>> {
        let histories: Vec<&[u32]> = cases.iter().map(|case| case.history.as_slice()).collect();
        let options = DecodeOptions { beams: self.bench.beams, renormalise: true };
        decode(model, table, &histories, options, &Workers::new(1)?)
    }

    /// Beam search with as many beams as codes against the exact scorer.
    fn exact(&self, start: &Start, workers: &Workers) -> Result<Exact> {
        let (base, _) = self.trained_generator(&start.table, start.seed)?;
        let cases: Vec<Case> = spread(&self.data.test, EXACT_CASES).cloned().collect();
        let histories: Vec<&[u32]> = cases.iter().map(|case| case.history.as_slice()).collect();
        let codes = start.book.table.sizes().iter().copied().max().unwrap_or(0);
        let hr10 = |beams: usize| -> Result<f64> {
            let options = DecodeOptions { beams, renormalise: true };
            let ranked = decode(&base, &start.table, &histories, options, workers)?;
            let lists = baselines::generated(self.data, &cases, &ranked);
            Ok(self.scores(&cases, &lists).hr10)
        };
        let (beam, exact) = (hr10(codes)?, hr10(usize::MAX)?);
        Ok(Exact { beams: codes, beam, exact, cases: cases.len() })
    }

    /// Semantic IDs by an RQ-VAE, without collisions.
    fn learned(
        &self,
        helper: Option<&Array2<f32>>,
        options: &RqVaeOptions,
        seed: Seed,
    ) -> Result<SidTable> {
        let codes = &self.bench.tokenizer.codes;
        let vectors = self.bench.tokenizer.vectors;
        let key = json!({ "rqvae": options, "codes": codes, "vectors": vectors, "seed": seed,
                          "collisions": self.bench.tokenizer.collisions,
                          "helper": helper.map(|_| self.bench.baselines.sasrec) });
        let (tensors, ()) = self.trained("rqvae", key, || {
            let book = train_rqvae(&self.points, codes, helper, options, seed)?;
            let table = self.distinct(&book);
            let rows: Vec<u32> = table.rows().flatten().copied().collect();
            let shape = (table.items(), table.levels());
            let table = Tensor::from_vec(rows, shape, &Device::Cpu)?;
            Ok((BTreeMap::from([("table".to_owned(), table)]), ()))
        })?;
        SidTable::new(&tensors["table"].to_vec2()?)
    }

    /// A generator from scratch.
    fn trained_generator(
        &self,
        table: &SidTable,
        seed: Seed,
    ) -> Result<(Generator, Vec<EpochRecord>)> {
        let (generator, train) = (self.bench.generator, self.bench.train);
        let key = json!({ "generator": generator, "train": train, "seed": seed,
                          "table": table.fingerprint() });
        let (sequences, valid) = (&self.data.train, &self.data.valid);
        let task = Task { sequences, table, valid, item_weights: None };
        let (tensors, history) = self.trained("generator", key, || {
            let model = Generator::new(table.sizes(), generator, seed)?;
            let (model, history) = fit(task, model, &train, &Workers::new(1)?, seed, None)?;
            Ok((model.parameters().tensors(), history))
        })?;
        Ok((Generator::from_tensors(generator, tensors)?, history))
    }

    fn fit_from_scratch(
        &self,
        table: &SidTable,
        name: &str,
        note: &'static str,
        seed: Seed,
    ) -> Result<Found> {
        let (model, curve) = self.trained_generator(table, seed)?;
        let ranked = self.decode(&model, table, &self.data.test)?;
        let lists = baselines::generated(self.data, &self.data.test, &ranked);
        Ok(Found { curve, ..self.found(name, Role::Baseline, note, &lists) })
    }

    /// Stage 2 from the base model on a table that was split from the base's.
    fn tuned(&self, start: &Start, stage1: &Rebalanced, variant: &Variant) -> Result<Generator> {
        let (generator, train, seed) = (self.bench.generator, self.bench.fine_tune, start.seed);
        let (stage2, levels) = (&variant.stage2, &variant.split.levels);
        let power = variant.reweighted.then_some(self.config.bench.reweighting);
        let key = json!({
            "tuned": stage2, "levels": levels, "generator": generator, "reweighting": power,
            "base": self.bench.train, "train": train, "seed": seed,
            "table": stage1.table.fingerprint(), "parents": stage1.parent_of,
        });
        let weights = power.map(|power| inverse_popularity(&self.counts, power));
        let task = Task {
            sequences: &self.data.train,
            table: &stage1.table,
            valid: &[],
            item_weights: weights.as_deref(),
        };
        let (tensors, _) = self.trained("tuned", key, || {
            let (base, _) = self.trained_generator(&start.table, seed)?;
            let grown = base.grown(&stage1.parent_of, stage2.noise, seed)?;
            let worker = Workers::new(1)?;
            let (model, history) = fine_tune(task, grown, levels, stage2, &train, &worker, seed)?;
            Ok((model.parameters().tensors(), history))
        })?;
        Generator::from_tensors(generator, tensors)
    }

    fn variant(&self, variant: &Variant, start: &Start) -> Result<Vec<Found>> {
        let clock = Instant::now();
        let (data, test) = (self.data, &self.data.test);
        let stage1 = self.split(&start.book, &start.table, &variant.split, start.seed)?;
        let model = self.tuned(start, &stage1, variant)?;
        let ranked = self.decode(&model, &stage1.table, test)?;
        let lists = baselines::generated(data, test, &ranked);
        let mut own = self.found(variant.name, variant.role, variant.note, &lists);
        own.seconds = clock.elapsed().as_secs_f64();
        tracing::info!(name = own.name, "{:.1} s", own.seconds);
        if ![CONTROL, CRAB].contains(&variant.name) {
            return Ok(vec![own]);
        }
        let cases = &self.chosen_on;
        let valid = self.decode(&model, &stage1.table, cases)?;
        let plain = Rescoring { alpha: 0.0, share: 0.0 };
        let alpha = self.choose_alpha(&valid, plain, self.config.bench.allowed_loss);
        let fairer = Rescoring { alpha, ..plain };
        // the mixture gains accuracy; α may spend that gain, and no more, on fairness
        let share = self.choose_share(&valid);
        let mixed = Rescoring { share, ..plain };
        let alpha = self.choose_alpha(&valid, mixed, 0.0);
        let both = Rescoring { alpha, ..mixed };
        own.frontier = self.trace(&ranked, plain);
        let rows = [
            (
                "popularity-aware decoding",
                fairer,
                "log p - alpha ln(1 + freq), alpha chosen on \
              validation cases; no training.",
            ),
            (
                "transitions",
                mixed,
                "(1 - beta) p + beta q of the Markov chain, beta chosen on \
              validation cases.",
            ),
            (
                "transitions + popularity-aware decoding",
                both,
                "The mixture with the strongest \
              alpha that keeps the validation HR@10 and NDCG@10 of the model alone.",
            ),
        ];
        let mut found = vec![own];
        for (name, rescoring, note) in rows {
            let lists = rescored(data, test, &ranked, &self.markov, &self.counts, rescoring);
            let name = format!("{} + {name}", variant.name);
            let mut row = self.found(&name, Role::Ours, note, &lists);
            if rescoring == mixed {
                row.frontier = self.trace(&ranked, mixed);
            }
            found.push(row);
        }
        Ok(found)
    }

    /// Accuracy and unfairness of every α on the test cases, for the frontier figure.
    fn trace(&self, ranked: &[Ranked], rescoring: Rescoring) -> Vec<(f64, f64)> {
        let point = |&alpha: &f64| {
            let scores = self.rescored(&self.data.test, ranked, Rescoring { alpha, ..rescoring });
            (scores.mgu, scores.ndcg10)
        };
        self.config.bench.alphas.iter().map(point).collect()
    }

    fn rescored(&self, cases: &[Case], ranked: &[Ranked], rescoring: Rescoring) -> Scores {
        let lists = rescored(self.data, cases, ranked, &self.markov, &self.counts, rescoring);
        self.scores(cases, &lists)
    }

    /// The α of least validation MGU that costs at most a share of the HR@10 and NDCG@10 that the
    /// model has alone.
    fn choose_alpha(&self, ranked: &[Ranked], rescoring: Rescoring, allowed_loss: f64) -> f64 {
        let alone = Rescoring { alpha: 0.0, share: 0.0 };
        let alone = self.rescored(&self.chosen_on, ranked, alone);
        let mut best = (f64::INFINITY, 0.0);
        for &alpha in &self.config.bench.alphas {
            let scores = self.rescored(&self.chosen_on, ranked, Rescoring { alpha, ..rescoring });
            let enough = scores.ndcg10 >= alone.ndcg10 * (1.0 - allowed_loss)
                && scores.hr10 >= alone.hr10 * (1.0 - allowed_loss);
            if enough && scores.mgu < best.0 {
                best = (scores.mgu, alpha);
            }
        }
        best.1
    }

    /// The share of transitions with the best validation NDCG@10.
    fn choose_share(&self, ranked: &[Ranked]) -> f64 {
        let mut best = (f64::NEG_INFINITY, 0.0);
        for &share in &self.config.bench.mixtures {
            let scores = self.rescored(&self.chosen_on, ranked, Rescoring { alpha: 0.0, share });
            if scores.ndcg10 > best.0 {
                best = (scores.ndcg10, share);
            }
        }
        best.1
    }
}

/// At most `most` cases, evenly over all: files are often sorted.
fn spread(cases: &[Case], most: usize) -> impl Iterator<Item = &Case> {
    cases.iter().step_by(cases.len().div_ceil(most).max(1))
}

/// Validation cases for the baselines' early stopping.
fn held_out(data: &Dataset) -> Vec<HeldOut> {
    let held = |case: &Case| {
        let user = case.user?;
        Some(HeldOut { user, history: case.history.clone(), target: case.target })
    };
    spread(&data.valid, 1000).filter_map(held).collect()
}
