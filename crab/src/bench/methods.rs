//! All methods on one data set.

use std::collections::BTreeMap;
use std::time::Instant;

use candle_core::Tensor;
use common::Result;
use common::checkpoint::Trained;
use common::optim::Workers;
use common::recommend::{Bpr, Gru4rec, HeldOut, Sasrec};
use common::report::Role;
use common::rng::Seed;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{Context, Outcome};
use crate::baselines;
use crate::config::{BenchDataset, Config};
use crate::data::{Case, Dataset};
use crate::decode::{DecodeOptions, Ranked, decode};
use crate::eval::{Groups, Lists, evaluate};
use crate::model::generator::Generator;
use crate::model::rebalance::{RebalanceOptions, Rebalanced, rebalance};
use crate::sid::{SidTable, audit};
use crate::tokenizer::{Assignment, Codebook, residual_kmeans};
use crate::train::{EpochRecord, Stage2Options, Task, fine_tune, fit, inverse_popularity};
use crate::vectors::item_vectors;

/// Raised whenever training code changes, so that kept models are not mixed up.
const TRAINING: u32 = 1;

pub(crate) const BASE: &str = "generator";
pub(crate) const CONTROL: &str = "same budget, no split";
pub(crate) const CRAB: &str = "CRAB";

/// What the figures need beside the scores.
pub(crate) struct DatasetOutcome {
    pub(crate) methods: Vec<Outcome>,
    /// Per level: loads of the tokens before and after, first seed.
    pub(crate) loads: Vec<(Vec<u64>, Vec<u64>)>,
    /// Accuracy and MGU along α: method → points (first seed's α grid, means over seeds).
    pub(crate) frontier: BTreeMap<&'static str, Vec<(f64, f64)>>,
    /// Training curves of the first seed.
    pub(crate) curves: Vec<(String, Vec<EpochRecord>)>,
}

struct Bench<'a> {
    config: &'a Config,
    bench: &'a BenchDataset,
    data: &'a Dataset,
    counts: Vec<u64>,
    groups: Groups,
    workers: Workers,
    kept: Trained,
    outcomes: Vec<Outcome>,
    fingerprint: String,
    threads: usize,
    /// Validation cases on which α and β are chosen.
    chosen_on: Vec<Case>,
}

pub(super) fn run(
    config: &Config,
    bench: &BenchDataset,
    data: &Dataset,
    context: &Context,
    seeds: &[u64],
) -> Result<DatasetOutcome> {
    let counts = data.counts();
    let mut all = Bench {
        config,
        bench,
        data,
        groups: Groups::equal_count(&counts, 5),
        counts,
        workers: Workers::new(context.threads)?,
        kept: Trained::new(&context.assets.options().cache.join("trained").join("crab")),
        outcomes: Vec::new(),
        fingerprint: data.fingerprint(),
        threads: context.threads,
        chosen_on: spread(&data.valid, 1000).cloned().collect(),
    };
    let mut loads = Vec::new();
    let mut curves = Vec::new();
    let mut frontier: BTreeMap<&'static str, Vec<(f64, f64)>> = BTreeMap::new();
    let points = item_vectors(data, bench.tokenizer.vectors, &context.assets, Seed::new(0))?;
    for (number, &value) in seeds.iter().enumerate() {
        let seed = Seed::new(value);
        all.counting(seed)?;
        all.neural(seed)?;
        let codes =
            |assignment| residual_kmeans(points.clone(), &bench.tokenizer.codes, assignment, seed);
        let book = codes(bench.tokenizer.assignment)?;
        let stage1 = all.generators(
            &book,
            &codes(Assignment::Balanced)?,
            seed,
            number == 0,
            &mut curves,
            &mut frontier,
            seeds.len(),
        )?;
        if number == 0 {
            let before = |level| book.table.token_popularity(level, &all.counts);
            let after = |level| stage1.table.token_popularity(level, &all.counts);
            loads = (0..book.table.levels()).map(|level| (before(level), after(level))).collect();
            for level in audit(&book.table, &all.counts).levels {
                tracing::info!(?level, data = data.name, "code book");
            }
        }
    }
    Ok(DatasetOutcome { methods: all.outcomes, loads, frontier, curves })
}

impl Bench<'_> {
    fn add(&mut self, name: &str, role: Role, note: &str, lists: &Lists, started: Instant) {
        let scores = evaluate(&self.data.test, lists, &self.groups, self.data.items());
        tracing::info!(
            data = self.data.name,
            name,
            "hr@10 {:.4} ndcg@10 {:.4} mgu {:.4} dgu {:.4} cov {:.3} tail {:.4} ({:.1} s)",
            scores.hr10,
            scores.ndcg10,
            scores.mgu,
            scores.dgu,
            scores.coverage,
            scores.tail_hr10,
            started.elapsed().as_secs_f64()
        );
        let seconds = started.elapsed().as_secs_f64();
        match self.outcomes.iter_mut().find(|outcome| outcome.name == name) {
            Some(outcome) => {
                outcome.scores.push(scores);
                outcome.seconds += seconds;
            }
            None => self.outcomes.push(Outcome {
                name: name.to_owned(),
                role,
                note: note.to_owned(),
                scores: vec![scores],
                seconds,
            }),
        }
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

    fn counting(&mut self, seed: Seed) -> Result<()> {
        let (data, test) = (self.data, &self.data.test);
        let started = Instant::now();
        let lists = baselines::popularity(data, test)?;
        self.add("popularity", Role::Baseline, "", &lists, started);
        let started = Instant::now();
        let lists = baselines::markov(data, test)?;
        self.add("Markov", Role::Baseline, "Training transitions only.", &lists, started);
        let started = Instant::now();
        let lists = baselines::item_knn(data, test, self.bench.baselines.item_knn)?;
        self.add("item-kNN", Role::Baseline, "", &lists, started);
        let started = Instant::now();
        let held = held_out(data);
        let options = self.bench.baselines.bpr;
        let model = Bpr::fit(&data.train, data.items(), &held, options, seed)?;
        self.add("BPR", Role::Baseline, "", &baselines::bpr(data, test, &model), started);
        Ok(())
    }

    fn neural(&mut self, seed: Seed) -> Result<()> {
        let (data, held) = (self.data, held_out(self.data));
        let started = Instant::now();
        let mut options = self.bench.baselines.sasrec;
        let key = json!({ "sasrec": options, "seed": seed });
        options.training.threads = self.threads;
        let (tensors, _) = self.trained("sasrec", key, || {
            let model = Sasrec::fit(&data.train, data.items(), &held, options, seed)?;
            Ok((model.parameters().tensors(), model.history().clone()))
        })?;
        let model = Sasrec::from_tensors(data.items(), options, tensors)?;
        let lists = baselines::sasrec(data, &data.test, &model)?;
        self.add("SASRec", Role::Baseline, "Cross-entropy over all items.", &lists, started);
        let started = Instant::now();
        let mut options = self.bench.baselines.gru4rec;
        let key = json!({ "gru4rec": options, "seed": seed });
        options.training.threads = self.threads;
        let (tensors, _) = self.trained("gru4rec", key, || {
            let model = Gru4rec::fit(&data.train, data.items(), &held, options, seed)?;
            Ok((model.parameters().tensors(), model.history().clone()))
        })?;
        let model = Gru4rec::from_tensors(data.items(), options, tensors)?;
        let lists = baselines::gru4rec(data, &data.test, &model)?;
        self.add("GRU4Rec", Role::Baseline, "Cross-entropy over all items.", &lists, started);
        Ok(())
    }

    fn decode(&self, model: &Generator, table: &SidTable, cases: &[Case]) -> Result<Vec<Ranked>> {
        let histories: Vec<&[u32]> = cases.iter().map(|case| case.history.as_slice()).collect();
        let options = DecodeOptions { beams: self.bench.beams, renormalise: true };
        decode(model, table, &histories, options, &self.workers)
    }

    fn generated(
        &mut self,
        name: &str,
        role: Role,
        note: &str,
        model: &Generator,
        table: &SidTable,
        started: Instant,
    ) -> Result<Vec<Ranked>> {
        let ranked = self.decode(model, table, &self.data.test)?;
        let lists = baselines::generated(self.data, &self.data.test, &ranked);
        self.add(name, role, note, &lists, started);
        Ok(ranked)
    }

    /// A generator from scratch.
    fn trained_generator(
        &self,
        table: &SidTable,
        item_weights: Option<&[f64]>,
        what: &str,
        seed: Seed,
    ) -> Result<(Generator, Vec<EpochRecord>)> {
        let (generator, train) = (self.bench.generator, self.bench.train);
        let key = json!({
            "what": what, "generator": generator, "train": train, "seed": seed,
            "table": table_hash(table),
        });
        let task =
            Task { sequences: &self.data.train, table, valid: &self.data.valid, item_weights };
        let (tensors, history) = self.trained("generator", key, || {
            let model = Generator::new(table.sizes(), generator, seed)?;
            let (model, history) = fit(task, model, &train, &self.workers, seed, None)?;
            Ok((model.parameters().tensors(), history))
        })?;
        Ok((Generator::from_tensors(generator, tensors)?, history))
    }

    /// Stage 2 from `base` on a table that was split from the base's.
    fn tuned(
        &self,
        base: &Generator,
        stage1: &Rebalanced,
        stage2: &Stage2Options,
        levels: &[usize],
        seed: Seed,
    ) -> Result<Generator> {
        let (generator, train) = (self.bench.generator, self.bench.fine_tune);
        let key = json!({
            "tuned": stage2, "levels": levels, "generator": generator,
            "base": self.bench.train, "train": train, "seed": seed,
            "table": table_hash(&stage1.table), "parents": stage1.parent_of,
        });
        let task = Task {
            sequences: &self.data.train,
            table: &stage1.table,
            valid: &[],
            item_weights: None,
        };
        let (tensors, _) = self.trained("tuned", key, || {
            let grown = base.grown(&stage1.parent_of, stage2.noise, seed)?;
            let (model, history) =
                fine_tune(task, grown, levels, stage2, &train, &self.workers, seed)?;
            Ok((model.parameters().tensors(), history))
        })?;
        Generator::from_tensors(generator, tensors)
    }

    #[allow(clippy::too_many_arguments)]
    fn generators(
        &mut self,
        book: &Codebook,
        balanced: &Codebook,
        seed: Seed,
        first: bool,
        curves: &mut Vec<(String, Vec<EpochRecord>)>,
        frontier: &mut BTreeMap<&'static str, Vec<(f64, f64)>>,
        seeds: usize,
    ) -> Result<Rebalanced> {
        let started = Instant::now();
        let table = book.table.deduplicated();
        let (base, history) = self.trained_generator(&table, None, "base", seed)?;
        if first {
            curves.push((BASE.to_owned(), history));
        }
        let base_ranked = self.generated(
            BASE,
            Role::Baseline,
            "Residual k-means, decoder-only, before CRAB.",
            &base,
            &table,
            started,
        )?;

        let started = Instant::now();
        let even = balanced.table.deduplicated();
        let (model, _) = self.trained_generator(&even, None, "balanced", seed)?;
        self.generated(
            "balanced code book",
            Role::Baseline,
            "Balanced residual k-means, trained from scratch.",
            &model,
            &even,
            started,
        )?;

        let started = Instant::now();
        let weights = inverse_popularity(&self.counts, self.config.bench.reweighting);
        let what = format!("reweighted {}", self.config.bench.reweighting);
        let (model, _) = self.trained_generator(&table, Some(&weights), &what, seed)?;
        self.generated(
            "reweighting (RW)",
            Role::Baseline,
            "Inverse-popularity weights, trained from scratch.",
            &model,
            &table,
            started,
        )?;

        let split = |options: &RebalanceOptions| -> Result<Rebalanced> {
            rebalance(&table, &self.counts, |level| Some(book.residuals(level)), options, seed)
        };
        let options = &self.config.rebalance;
        let stage2 = &self.config.stage2;
        let none = RebalanceOptions { ratio: 0.0, ..options.clone() };
        let unsplit = split(&none)?;
        let stage1 = split(options)?;
        let no_term = Stage2Options { gamma: 0.0, ..stage2.clone() };
        let random = RebalanceOptions { random: true, ..options.clone() };
        let parent = RebalanceOptions { condition_on_parent: true, ..options.clone() };
        let both = RebalanceOptions { levels: vec![0, 1], ..options.clone() };
        let upper = RebalanceOptions { levels: vec![0], ..options.clone() };
        let variants: [(&str, Role, &str, Rebalanced, &Stage2Options, &[usize]); 8] = [
            (
                CONTROL,
                Role::Control,
                "The base model with the epochs that CRAB gets.",
                unsplit.clone(),
                &no_term,
                &[],
            ),
            (
                CRAB,
                Role::Paper,
                "Middle level, L_T with gamma 0.2.",
                stage1.clone(),
                stage2,
                &options.levels,
            ),
            ("CRAB without L_T", Role::Ablation, "", stage1.clone(), &no_term, &options.levels),
            ("L_T without split", Role::Ablation, "", unsplit, stage2, &options.levels),
            (
                "split at random",
                Role::Control,
                "The same tokens, children spread at random.",
                split(&random)?,
                stage2,
                &options.levels,
            ),
            ("CRAB on the first level", Role::Ablation, "", split(&upper)?, stage2, &upper.levels),
            (
                "CRAB on two levels",
                Role::Ours,
                "First and middle level.",
                split(&both)?,
                stage2,
                &both.levels,
            ),
            (
                "CRAB given the parent",
                Role::Ours,
                "Children of different parents move on their own.",
                split(&parent)?,
                stage2,
                &parent.levels,
            ),
        ];
        let started = Instant::now();
        let model = base.grown(&stage1.parent_of, 0.0, seed)?;
        self.generated(
            "split only",
            Role::Ablation,
            "No fine-tuning.",
            &model,
            &stage1.table,
            started,
        )?;
        let mut control = None;
        for (name, role, note, stage1, stage2, levels) in variants {
            let started = Instant::now();
            let model = self.tuned(&base, &stage1, stage2, levels, seed)?;
            let ranked = self.generated(name, role, note, &model, &stage1.table, started)?;
            let along = match name {
                CONTROL => Some("generator"),
                CRAB => Some("CRAB"),
                _ => None,
            };
            if let Some(along) = along {
                self.trace(along, &ranked, frontier, seeds);
                let cases = self.chosen_on.clone();
                let valid = self.decode(&model, &stage1.table, &cases)?;
                let alpha = self.choose_alpha(&valid);
                let lists =
                    baselines::adjusted(self.data, &self.data.test, &ranked, &self.counts, alpha);
                let note =
                    "log p - alpha ln(1 + freq), alpha chosen on validation cases; no training.";
                let name = format!("{name} + popularity-aware decoding");
                self.add(&name, Role::Ours, note, &lists, started);
                if along == "generator" {
                    control = Some((valid, ranked, started));
                }
            }
        }
        drop(base_ranked);
        if let Some((valid, ranked, started)) = control {
            let share = self.choose_share(&valid)?;
            let lists = baselines::mixed(self.data, &self.data.test, &ranked, share)?;
            let note =
                "(1 - beta) p + beta q of the Markov chain, beta chosen on validation cases.";
            self.add("generator + transitions", Role::Ours, note, &lists, started);
        }
        Ok(stage1)
    }

    /// Accuracy and unfairness of every α on the test cases, for the frontier figure.
    fn trace(
        &self,
        name: &'static str,
        ranked: &[Ranked],
        frontier: &mut BTreeMap<&'static str, Vec<(f64, f64)>>,
        seeds: usize,
    ) {
        let alphas = &self.config.bench.alphas;
        let points = frontier.entry(name).or_insert_with(|| vec![(0.0, 0.0); alphas.len()]);
        for (point, &alpha) in points.iter_mut().zip(alphas) {
            let lists =
                baselines::adjusted(self.data, &self.data.test, ranked, &self.counts, alpha);
            let scores = evaluate(&self.data.test, &lists, &self.groups, self.data.items());
            point.0 += scores.mgu / seeds as f64;
            point.1 += scores.ndcg10 / seeds as f64;
        }
    }

    /// The α of least MGU whose validation NDCG@10 falls by at most the allowed share.
    fn choose_alpha(&self, ranked: &[Ranked]) -> f64 {
        let scores = |alpha: f64| {
            let lists =
                baselines::adjusted(self.data, &self.chosen_on, ranked, &self.counts, alpha);
            evaluate(&self.chosen_on, &lists, &self.groups, self.data.items())
        };
        let plain = scores(0.0);
        let least = plain.ndcg10 * (1.0 - self.config.bench.allowed_loss);
        let mut best = (plain.mgu, 0.0);
        for &alpha in &self.config.bench.alphas {
            let scores = scores(alpha);
            if scores.ndcg10 >= least && scores.mgu < best.0 {
                best = (scores.mgu, alpha);
            }
        }
        best.1
    }

    /// The share of transitions with the best validation NDCG@10.
    fn choose_share(&self, ranked: &[Ranked]) -> Result<f64> {
        let mut best = (f64::NEG_INFINITY, 0.0);
        for &share in &self.config.bench.mixtures {
            let lists = baselines::mixed(self.data, &self.chosen_on, ranked, share)?;
            let scores = evaluate(&self.chosen_on, &lists, &self.groups, self.data.items());
            if scores.ndcg10 > best.0 {
                best = (scores.ndcg10, share);
            }
        }
        Ok(best.1)
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

fn table_hash(table: &SidTable) -> String {
    let codes = table.rows().flatten();
    let bytes: Vec<u8> = codes.flat_map(|code| code.to_le_bytes()).collect();
    common::run::hash8(&bytes)
}
