//! Solve rates on generated worlds (published protocol: 100 worlds per number of objects, 10
//! samples each), sparse graphs, ablations, crowds.

use std::time::Instant;

use common::Result;
use common::optim::Workers;
use common::report::plot::{Labels, Line, Series, grouped_bars, lines};
use common::report::{Figure, Report, Role, Row};
use common::rng::Seed;

use super::{Parts, mean_row, verified};
use crate::data::worlds::{World, crowd, sparse, worlds};
use crate::eval::{Csr, solve_at};
use crate::layout::Problem;
use crate::model::sampler::{Inner, SampleConfig, Sampler};
use crate::networks;
use crate::relations::Relation;
use crate::solve::{Candidate, SolveConfig, Solver, refine, solve};
use crate::train::TrainConfig;

/// Diffusion-CCSP's published solve rates in per cent, @1 and @10, at 2 to 5 objects: ULA, reverse,
/// rejection. Read off its figure, ±2.
const PUBLISHED: [(&str, [[u32; 2]; 4]); 3] = [
    ("ULA", [[64, 97], [47, 93], [20, 76], [7, 37]]),
    ("reverse", [[67, 98], [43, 94], [20, 72], [5, 33]]),
    ("rejection", [[0, 3], [0, 0], [0, 0], [0, 0]]),
];

const CLAIM: &str = "compositional diffusion finds boxes that satisfy a scene graph";

struct Run<'a> {
    parts: &'a Parts<'a>,
    workers: Workers,
    report: &'a mut Report,
    /// solve@1 and solve@k of each method on the complete graphs, per number of objects.
    bars: Vec<(String, Vec<[f64; 2]>)>,
}

/// One method on one set of worlds.
struct Method<'a> {
    name: &'a str,
    role: Role,
    published: Option<usize>,
    note: String,
}

pub(super) fn run(parts: &Parts<'_>, report: &mut Report) -> Result<()> {
    let workers = Workers::new(parts.context.threads)?;
    let mut run = Run { parts, workers, report, bars: Vec::new() };
    let bench = &parts.config.bench;
    let mut csr_learned = Csr::default();
    for objects in 2..=5usize {
        let mut stream = Seed::new(parts.seed).stream(&format!("bench/worlds/{objects}"));
        let set = worlds(objects, bench.worlds, &mut stream);
        let name = format!("worlds, {objects} objects");
        run.compare(&name, Some(objects), &set, &mut csr_learned)?;
        if objects == 4 {
            let set: Vec<World> =
                set.into_iter().map(|world| sparse(world, 0.3, &mut stream)).collect();
            run.compare(
                "worlds, 4 objects, 30 % of the relations",
                None,
                &set,
                &mut Csr::default(),
            )?;
        }
    }
    run.per_relation(&csr_learned);
    if bench.ablation_worlds > 0 {
        run.ablations(bench.ablation_worlds)?;
    }
    run.crowds()?;
    run.figures();
    Ok(())
}

impl Run<'_> {
    fn solve(
        &self,
        set: &[World],
        config: &SolveConfig,
        sampler: &Sampler,
    ) -> Result<(Vec<Vec<Candidate>>, f64)> {
        let problems: Vec<(&Problem, u64)> =
            set.iter().map(|world| &world.problem).zip(0..).collect();
        let started = Instant::now();
        let seed = Seed::new(self.parts.seed);
        let solved = solve(&problems, config, Some(sampler), seed, &self.workers)?;
        Ok((solved, started.elapsed().as_secs_f64()))
    }

    fn compare(
        &mut self,
        dataset: &str,
        objects: Option<usize>,
        set: &[World],
        csr: &mut Csr,
    ) -> Result<()> {
        let sampler = self.parts.sampler;
        let train = &self.parts.config.train;
        let budget = format!(
            "width {}, T = {}, {} updates of {} graphs with up to {} objects",
            train.width, train.steps, train.updates, train.batch, train.objects
        );
        let learned = self.parts.solver(Solver::Learned);
        let reverse = SolveConfig {
            sample: SampleConfig { inner: Inner::Reverse, ..learned.sample.clone() },
            ..learned.clone()
        };
        let (samples, seconds) = self.solve(set, &learned, sampler)?;
        for (world, chains) in set.iter().zip(&samples) {
            for candidate in chains {
                csr.add(&world.problem, &world.problem.rects(&candidate.centers));
            }
        }
        let note = format!("{budget}; {} network calls a chain", learned.sample.calls(train.steps));
        let method = Method { name: "learned, ULA", role: Role::Paper, published: Some(0), note };
        self.rows(dataset, objects, set, &samples, seconds, &method);
        // the hybrid solver goes on from the same samples
        let hybrid = self.parts.solver(Solver::Hybrid);
        let started = Instant::now();
        let seed = Seed::new(self.parts.seed);
        let refined = self.workers.map(set.len(), |id| {
            let chains = samples[id].iter().enumerate().map(|(chain, candidate)| {
                let mut stream = seed.stream(&format!("repair/{id}/{chain}"));
                refine(&set[id].problem, candidate.centers.clone(), &hybrid, &mut stream)
            });
            Ok(chains.collect::<Vec<_>>())
        })?;
        let total = seconds + started.elapsed().as_secs_f64();
        let note = "the learned samples, then hinge energies, repair, construction".to_owned();
        let method = Method { name: "hybrid", role: Role::Ours, published: None, note };
        self.rows(dataset, objects, set, &refined, total, &method);
        let calls = reverse.sample.calls(train.steps);
        let others = [
            (
                reverse,
                "learned, reverse",
                Role::Ablation,
                Some(1),
                format!("{calls} network calls"),
            ),
            (
                self.parts.solver(Solver::Analytic),
                "analytic",
                Role::Baseline,
                None,
                "hinge energies, Langevin noise and repair; nothing learned".to_owned(),
            ),
            (
                self.parts.solver(Solver::Construct),
                "construct",
                Role::Baseline,
                None,
                "difference constraints with propagation and restarts; nothing learned".to_owned(),
            ),
            (
                self.parts.solver(Solver::Reject),
                "rejection",
                Role::Control,
                Some(2),
                format!("up to {} tries per object", self.parts.config.solve.tries),
            ),
        ];
        for (config, name, role, published, note) in others {
            let (solved, seconds) = self.solve(set, &config, sampler)?;
            let method = Method { name, role, published, note };
            self.rows(dataset, objects, set, &solved, seconds, &method);
        }
        Ok(())
    }

    /// solve@1, solve@k and CSR of one method.
    fn rows(
        &mut self,
        dataset: &str,
        objects: Option<usize>,
        set: &[World],
        solved: &[Vec<Candidate>],
        seconds: f64,
        method: &Method<'_>,
    ) {
        let k = solved.first().map_or(1, Vec::len);
        let counts = verified(solved);
        let resamples = self.parts.config.bench.resamples;
        let mut stream = Seed::new(self.parts.seed)
            .stream(&format!("bench/bootstrap/{dataset}/{}", method.name));
        let reference = objects.zip(method.published).map(|(objects, index)| {
            let (name, rates) = PUBLISHED[index];
            let [one, ten] = rates[objects - 2];
            let beyond = if objects == 5 { ", beyond its training sizes" } else { "" };
            format!(
                "; Diffusion-CCSP's {name}: {one} % @1, {ten} % @10{beyond} (off its figure, ±2; its \
                 task also chooses a rotation)"
            )
        });
        let note = format!("{}{}", method.note, reference.unwrap_or_default());
        let row = |metric: String| Row {
            claim: CLAIM.into(),
            dataset: dataset.into(),
            method: method.name.into(),
            role: method.role,
            metric,
            note: Some(note.clone()),
            seconds: Some(seconds),
            ..Row::default()
        };
        let mut means = [f64::NAN; 2];
        for (at, k_of) in [1, k].into_iter().enumerate() {
            if at == 1 && k == 1 {
                break;
            }
            let values: Vec<f64> = counts.iter().map(|&s| solve_at(k_of, k, s)).collect();
            let made = mean_row(row(format!("solve@{k_of}")), &values, resamples, &mut stream);
            means[at] = made.mean.unwrap_or(f64::NAN);
            self.report.rows.push(made);
        }
        let shares: Vec<f64> = set
            .iter()
            .zip(solved)
            .map(|(world, chains)| {
                let mut csr = Csr::default();
                for candidate in chains {
                    csr.add(&world.problem, &world.problem.rects(&candidate.centers));
                }
                csr.overall().share()
            })
            .collect();
        self.report.rows.push(mean_row(row("CSR".into()), &shares, resamples, &mut stream));
        if objects.is_some() {
            match self.bars.iter_mut().find(|(name, _)| name == method.name) {
                Some((_, values)) => values.push(means),
                None => self.bars.push((method.name.to_owned(), vec![means])),
            }
        }
    }

    /// CSR of the learned solver by relation, over all complete graphs.
    fn per_relation(&mut self, csr: &Csr) {
        for (relation, counts) in Relation::ALL.iter().zip(&csr.per_relation) {
            if counts.given == 0 {
                continue;
            }
            self.report.rows.push(Row {
                claim: CLAIM.into(),
                dataset: "worlds, 2 to 5 objects".into(),
                method: "learned, ULA".into(),
                metric: format!("CSR {relation}"),
                mean: Some(counts.share()),
                n: counts.given,
                note: Some("share of given relations that hold, all samples".into()),
                ..Row::default()
            });
        }
    }

    fn ablations(&mut self, count: usize) -> Result<()> {
        let dataset = "ablations, 3 objects";
        let mut stream = Seed::new(self.parts.seed).stream("bench/ablations");
        let set = worlds(3, count, &mut stream);
        let learned = self.parts.solver(Solver::Learned);
        let sample = |inner, inner_at_last| SolveConfig {
            sample: SampleConfig { inner, inner_at_last, ..learned.sample.clone() },
            ..learned.clone()
        };
        let bare = |solver| SolveConfig { repairs: 0, attempts: 0, ..self.parts.solver(solver) };
        let runs = [
            (sample(Inner::Ula, false), "learned, ULA", Role::Paper, "as above"),
            (
                sample(Inner::UlaPlus, false),
                "learned, ULA+",
                Role::Ablation,
                "more inner steps late",
            ),
            (
                sample(Inner::Mala, false),
                "learned, MALA",
                Role::Ablation,
                "accepted by the line integral of the score",
            ),
            (
                sample(Inner::Ula, true),
                "learned, ULA, inner steps at t = 0",
                Role::Ablation,
                "as the reference",
            ),
            (self.parts.solver(Solver::Hybrid), "hybrid", Role::Ours, "as above"),
            (bare(Solver::Hybrid), "hybrid without repair", Role::Ablation, "gradient steps only"),
            (bare(Solver::Analytic), "analytic without repair", Role::Ablation, "the prototype"),
        ];
        for (config, name, role, note) in runs {
            let (solved, seconds) = self.solve(&set, &config, self.parts.sampler)?;
            let method = Method { name, role, published: None, note: note.to_owned() };
            self.rows(dataset, None, &set, &solved, seconds, &method);
        }
        let updates = self.parts.config.bench.short_updates;
        if updates > 0 {
            let train = TrainConfig { updates, ..self.parts.config.train.clone() };
            let started = Instant::now();
            let context = self.parts.context;
            let tensors =
                networks::trained(&train, self.parts.seed, context.threads, &context.assets)?;
            let sampler = networks::ready(tensors, &train)?;
            let (solved, _) = self.solve(&set, &sample(Inner::Ula, false), &sampler)?;
            let name = format!("learned, {updates} updates");
            let note = "networks trained within the bench (kept in the cache)".to_owned();
            let method = Method { name: &name, role: Role::Ablation, published: None, note };
            let seconds = started.elapsed().as_secs_f64();
            self.rows(dataset, None, &set, &solved, seconds, &method);
        }
        Ok(())
    }

    /// Crowded scenes with 30 % of the relations.
    fn crowds(&mut self) -> Result<()> {
        const SCENES: usize = 5;
        for &objects in &self.parts.config.bench.crowds {
            let mut stream = Seed::new(self.parts.seed).stream(&format!("bench/crowd/{objects}"));
            let set: Vec<World> = (0..SCENES)
                .map(|_| {
                    let world = crowd(objects, &mut stream);
                    sparse(world, 0.3, &mut stream)
                })
                .collect();
            let relations = set.iter().map(|w| w.problem.edges.len()).sum::<usize>() / SCENES;
            let dataset = format!("crowds, {objects} objects, 30 % of the relations");
            for (solver, role) in
                [(Solver::Construct, Role::Ours), (Solver::Analytic, Role::Baseline)]
            {
                let config = SolveConfig { candidates: 1, ..self.parts.solver(solver) };
                let (solved, seconds) = self.solve(&set, &config, self.parts.sampler)?;
                let note = format!("{relations} relations a scene, cfree pairs among them");
                let method = Method { name: solver.name(), role, published: None, note };
                self.rows(&dataset, None, &set, &solved, seconds, &method);
            }
        }
        Ok(())
    }

    fn figures(&mut self) {
        let groups: Vec<String> = (2..=5).map(|n| format!("{n} objects")).collect();
        for (at, title) in [(0, "Solve rate of one sample"), (1, "Solve rate of all samples")] {
            let mut series: Vec<Series> = self
                .bars
                .iter()
                .map(|(name, values)| Series {
                    name: name.clone(),
                    values: values.iter().map(|pair| 100.0 * pair[at]).collect(),
                })
                .collect();
            let published = PUBLISHED[0].1.iter().map(|pair| f64::from(pair[at])).collect();
            series.push(Series {
                name: "Diffusion-CCSP, ULA (published, with rotation)".into(),
                values: published,
            });
            let labels = Labels { title, x: "% of problems", y: "" };
            let svg = grouped_bars(labels, &groups, &series);
            let caption = "Problems of which all relations hold by the symbolic checker. The published \
                           bars are read off a figure; that task also chooses a rotation.";
            self.report.figures.push(Figure::new(title, caption, svg));
        }
        let curves: Vec<Line> = self
            .bars
            .iter()
            .map(|(name, values)| Line {
                name: name.clone(),
                points: (2..=5).zip(values).map(|(n, v)| (f64::from(n), 100.0 * v[0])).collect(),
            })
            .collect();
        let labels = Labels { title: "solve@1 by size", x: "objects", y: "% of problems" };
        let caption = "How the solvers hold up as scenes grow; 5 objects are beyond training.";
        self.report.figures.push(Figure::new(
            "Solve rate by size",
            caption,
            lines(labels, &curves),
        ));
    }
}
