//! Part (a): real labelers, asked live about the department and class of reviewed clothing.
//!
//! Train and test reviews are of different products. Workers of the ensemble see no gold label;
//! logistic regression is a supervised baseline beside them and, in one ablation, a worker.

use std::time::Instant;

use common::report::plot::{self, Labels, Point};
use common::report::{Figure, Report, Role, Row};
use common::rng::Seed;
use common::{Error, Result, metrics, stats};

use super::Context;
use crate::config::{
    Config, KeywordsConfig, LabelerConfig, LogisticConfig, ScoreConfig, ZeroShotConfig,
};
use crate::data::{Attribute, Clothing, clothing};
use crate::eval;
use crate::label::{Answers, label};
use crate::labelers::{Builder, Labeler};
use crate::train::{Evidence, Method, fit};
use crate::votes::{Label, Votes, VotesBuilder};

/// The methods that aggregate, with the part each plays.
const METHODS: [(Method, Role); 10] = [
    (Method::Iwmv, Role::Paper),
    (Method::OpinionPool, Role::Ours),
    (Method::Mv, Role::Baseline),
    (Method::OneCoin, Role::Baseline),
    (Method::DawidSkene, Role::Baseline),
    (Method::Glad, Role::Baseline),
    (Method::Mace, Role::Baseline),
    (Method::Wawa, Role::Baseline),
    (Method::IwmvLogOdds, Role::Ablation),
    (Method::IwmvClones, Role::Ablation),
];

pub(super) fn run(config: &Config, context: &Context, report: &mut Report) -> Result<()> {
    let path = match context.assets.file("clothing-reviews", "reviews.parquet") {
        Ok(path) => path,
        Err(error) => return super::absent(error, base("clothing-reviews", "all"), report),
    };
    let bench = &config.bench;
    let seed = Seed::new(context.seed);
    let data = clothing(&path, seed, bench.train_large, bench.reviews)?;
    let asked = ask(config, context, &data, report)?;
    let mut points = Vec::new();
    for (number, attribute) in data.schema.attributes.iter().enumerate() {
        let table = Table::new(config, seed, &data, &asked, number, attribute)?;
        let first = report.rows.len();
        table.rows(report)?;
        let measured: Vec<&Row> = report.rows[first..].iter().collect();
        let title = format!("Accuracy on clothing {}", attribute.name);
        report.figures.push(Figure::new(
            &title,
            "Every aggregator and every single worker, with 95 % bootstrap intervals.",
            plot::row_bars(Labels { title: &title, x: "accuracy", y: "" }, &measured),
        ));
        report.figures.extend(table.figures()?);
        points.extend(table.points()?);
    }
    let labels = Labels {
        title: "Estimated against true accuracy of each worker",
        x: "true accuracy",
        y: "accuracy estimated by IWMV without gold",
    };
    report.figures.push(Figure::new(
        "Live workers: estimated and true accuracy",
        "Clothing reviews. A point on the diagonal is a worker whose accuracy IWMV estimates \
         right from agreement alone; points above it are workers that agree in their errors.",
        plot::scatter(labels, &points, true),
    ));
    Ok(())
}

fn base(dataset: &str, method: &str) -> Row {
    Row {
        paper: "llm-ensemble".into(),
        claim: "the ensemble beats the best single LLM".into(),
        dataset: dataset.into(),
        method: method.into(),
        role: Role::Baseline,
        metric: "accuracy".into(),
        ..Row::default()
    }
}

/// One labeler that answered.
struct Asked {
    answers: Answers,
    seconds: f64,
    /// Supervised workers are kept out of the ensemble.
    supervised: bool,
    note: String,
}

/// Asks every labeler whose model is here; the others become "not run" rows.
fn ask(
    config: &Config,
    context: &Context,
    data: &Clothing,
    report: &mut Report,
) -> Result<Vec<Asked>> {
    let mut builder = Builder::new(context.assets.clone(), context.llm.clone(), &config.label);
    let (small, large) = (config.bench.train, config.bench.train_large);
    let logistic = |labels: usize| {
        LabelerConfig::Logistic(LogisticConfig {
            name: format!("logistic regression, {labels} labels"),
            c: 10.0,
            ..LogisticConfig::default()
        })
    };
    let free = [
        LabelerConfig::ZeroShot(ZeroShotConfig::default()),
        LabelerConfig::Keywords(KeywordsConfig::default()),
    ];
    let mut plan: Vec<(LabelerConfig, usize, bool)> =
        config.bench.llms.iter().map(|c| (LabelerConfig::Score(c.clone()), large, false)).collect();
    plan.extend(free.map(|labeler| (labeler, large, false)));
    plan.extend([(logistic(small), small, true), (logistic(large), large, true)]);
    let mut asked = Vec::new();
    for (labeler, train, supervised) in plan {
        if let LabelerConfig::Score(c) = &labeler
            && let Some(reason) = missing_model(c, context)?
        {
            for attribute in &data.schema.attributes {
                let row = base(&dataset(attribute), labeler.name());
                report.rows.push(row.not_run(&reason));
            }
            continue;
        }
        let start = Instant::now();
        let known: Vec<usize> = (0..train.min(data.train.products.len())).collect();
        let examples = data.train.select(&known);
        // The unlabelled sample for calibration comes from the train products too.
        let sample = &examples.products;
        let seed = context.seed;
        let built =
            builder.labeler(&labeler, config, &data.schema, sample, Some(&examples), seed)?;
        let workers: [Box<dyn Labeler>; 1] = [built];
        let answers = label(&data.test.products, &data.schema, &workers, &config.label)?;
        let seconds = start.elapsed().as_secs_f64();
        asked.push(Asked { answers, seconds, supervised, note: describe(&labeler, supervised) });
    }
    Ok(asked)
}

/// Why an opt-in model is left out, and the command that gets it.
fn missing_model(config: &ScoreConfig, context: &Context) -> Result<Option<String>> {
    let Some(id) = config.llm.strip_prefix("gguf:") else { return Ok(None) };
    let Ok(entry) = context.assets.entry(id) else { return Ok(None) };
    if entry.default || context.assets.status(id)?.is_present() {
        return Ok(None);
    }
    Ok(Some(format!(
        "opt-in model {id} ({} MB) is not on this machine; `cargo suite assets fetch {id}` gets it",
        entry.size() / 1_000_000
    )))
}

fn describe(labeler: &LabelerConfig, supervised: bool) -> String {
    match labeler {
        LabelerConfig::Score(c) => {
            let shots = if c.examples > 0 {
                format!(", {} labelled train reviews in the prompt", c.examples)
            } else {
                String::new()
            };
            format!("{}, labels scored by likelihood, {:?} prompt{shots}", c.llm, c.template)
        }
        _ if supervised => "trained on gold labels of other products; not in the ensemble".into(),
        _ => String::new(),
    }
}

fn dataset(attribute: &Attribute) -> String {
    format!("clothing-reviews {}", attribute.name)
}

/// Votes and gold of one attribute.
struct Table<'a> {
    config: &'a Config,
    seed: Seed,
    attribute: &'a Attribute,
    asked: &'a [Asked],
    number: usize,
    /// Label index of the schema per review.
    truth: Vec<usize>,
}

impl<'a> Table<'a> {
    fn new(
        config: &'a Config,
        seed: Seed,
        data: &'a Clothing,
        asked: &'a [Asked],
        number: usize,
        attribute: &'a Attribute,
    ) -> Result<Self> {
        let truth = (0..data.test.products.len())
            .map(|index| {
                data.test
                    .label(index, attribute)
                    .ok_or_else(|| Error::Bug("a test review without gold".into()))
            })
            .collect::<Result<_>>()?;
        Ok(Self { config, seed, attribute, asked, number, truth })
    }

    fn labels(&self, worker: usize) -> &[Option<usize>] {
        self.asked[worker].answers.labels_of(0, self.number)
    }

    fn name(&self, worker: usize) -> &str {
        &self.asked[worker].answers.workers[0]
    }

    /// Workers of the ensemble.
    fn free(&self) -> Vec<usize> {
        (0..self.asked.len()).filter(|&worker| !self.asked[worker].supervised).collect()
    }

    fn correct(&self, worker: usize) -> Vec<f64> {
        let right = |(answer, truth): (&Option<usize>, &usize)| {
            f64::from(u8::from(*answer == Some(*truth)))
        };
        self.labels(worker).iter().zip(&self.truth).map(right).collect()
    }

    /// Votes of named answer columns over the closed label set.
    fn votes(&self, columns: &[(String, Vec<Option<usize>>)]) -> Result<(Votes, Vec<Label>)> {
        let names = self.attribute.names();
        let mut builder = VotesBuilder::with_labels(&names)?;
        for item in 0..self.truth.len() {
            for (worker, answers) in columns {
                match answers[item] {
                    Some(answer) => builder.push(&item.to_string(), worker, names[answer])?,
                    None => builder.push_missing(&item.to_string(), worker)?,
                }
            }
        }
        let votes = builder.finish(self.config.input.duplicates)?;
        let code = |&truth: &usize| votes.labels.position(names[truth]).map(|p| p as Label);
        let gold = self.truth.iter().map(code).collect::<Option<Vec<Label>>>();
        let gold = gold.ok_or_else(|| Error::Bug("a gold label outside the set".into()))?;
        Ok((votes, gold))
    }

    fn columns(&self, workers: &[usize]) -> Vec<(String, Vec<Option<usize>>)> {
        workers.iter().map(|&w| (self.name(w).to_owned(), self.labels(w).to_vec())).collect()
    }

    /// Probability of being right per review, in expectation over ties.
    fn aggregate(
        &self,
        columns: &[(String, Vec<Option<usize>>)],
        method: Method,
    ) -> Result<Vec<f64>> {
        let (votes, gold) = self.votes(columns)?;
        let options = self.config.aggregate.options;
        let result = fit(&votes, method, &Evidence::default(), &options)?;
        let gold: Vec<Option<Label>> = gold.into_iter().map(Some).collect();
        Ok(eval::correctness(&result, &gold).into_iter().flatten().collect())
    }

    fn row(&self, method: &str, role: Role, correct: &[f64]) -> Row {
        let mut stream = self.seed.stream("bootstrap/live");
        let mean = |indices: &[usize]| {
            indices.iter().map(|&i| correct[i]).sum::<f64>() / indices.len() as f64
        };
        let ci95 =
            stats::bootstrap_ci(correct.len(), self.config.bench.resamples, &mut stream, mean);
        Row {
            role,
            mean: Some(stats::mean_sd(correct).0),
            ci95: Some(ci95),
            n: correct.len(),
            ..base(&dataset(self.attribute), method)
        }
    }

    /// "IWMV +1.3 [-0.7, 3.3] points": how far each champion is above `theirs`.
    fn margins(&self, champions: &[(String, Vec<f64>)], theirs: &[f64]) -> String {
        let margin = |(name, ours): &(String, Vec<f64>)| {
            let mut stream = self.seed.stream("bootstrap/live-pairs");
            let d = stats::paired_bootstrap(ours, theirs, self.config.bench.resamples, &mut stream);
            let [low, high] = d.ci95;
            format!(
                "{name} {:+.1} [{:+.1}, {:+.1}]",
                100.0 * d.difference,
                100.0 * low,
                100.0 * high
            )
        };
        let margins: Vec<String> = champions.iter().map(margin).collect();
        format!("{} points against it", margins.join(", "))
    }

    fn rows(&self, report: &mut Report) -> Result<()> {
        let free = self.free();
        let columns = self.columns(&free);
        let mut results = Vec::new();
        for (method, role) in METHODS {
            results.push((method.name().to_owned(), role, self.aggregate(&columns, method)?));
        }
        let champions: Vec<(String, Vec<f64>)> = results
            .iter()
            .filter(|(_, role, _)| matches!(role, Role::Paper | Role::Ours))
            .map(|(name, _, correct)| (name.clone(), correct.clone()))
            .collect();
        for (name, role, correct) in &results {
            let mut row = self.row(name, *role, correct);
            row.note = Some(match role {
                Role::Paper | Role::Ours => format!("{} workers without gold labels", free.len()),
                _ => self.margins(&champions, correct),
            });
            report.rows.push(row);
        }
        for worker in 0..self.asked.len() {
            let correct = self.correct(worker);
            let mut row = self.row(self.name(worker), Role::Baseline, &correct);
            row.seconds = Some(self.asked[worker].seconds);
            let answered = self.labels(worker).iter().flatten().count();
            let mut notes = vec![self.margins(&champions, &correct)];
            if answered < correct.len() {
                notes.push(format!("answers {answered} of {}; no answer is wrong", correct.len()));
            }
            if !self.asked[worker].note.is_empty() {
                notes.push(self.asked[worker].note.clone());
            }
            row.note = Some(notes.join("; "));
            report.rows.push(row);
        }
        self.with_supervised(report)?;
        self.controls(&free, report)
    }

    /// The ensemble with the small logistic regression as one more worker.
    fn with_supervised(&self, report: &mut Report) -> Result<()> {
        let mut workers = self.free();
        let Some(logistic) = (0..self.asked.len()).find(|&w| self.asked[w].supervised) else {
            return Ok(());
        };
        workers.push(logistic);
        let columns = self.columns(&workers);
        for (method, _) in METHODS.iter().filter(|(_, role)| champion(*role)) {
            let name = format!("{} + {}", method.name(), self.name(logistic));
            report.rows.push(self.row(&name, Role::Ablation, &self.aggregate(&columns, *method)?));
        }
        Ok(())
    }

    /// The best single worker chosen with the evaluated gold; noise workers; clones.
    fn controls(&self, free: &[usize], report: &mut Report) -> Result<()> {
        let accuracy = |worker: &usize| stats::mean_sd(&self.correct(*worker)).0;
        let ordered = |a: &usize, b: &usize| accuracy(a).total_cmp(&accuracy(b)).then(b.cmp(a));
        let (Some(&best), Some(&worst)) =
            (free.iter().max_by(|a, b| ordered(a, b)), free.iter().min_by(|a, b| ordered(a, b)))
        else {
            return Ok(());
        };
        let mut row = self.row("best single worker (oracle)", Role::Control, &self.correct(best));
        row.note = Some(format!("{}, chosen with the evaluated gold", self.name(best)));
        report.rows.push(row);

        let mut noisy = self.columns(free);
        for copy in 0..2 {
            let mut answers = self.labels(best).to_vec();
            self.seed.stream(&format!("noise/{copy}")).shuffle(&mut answers);
            noisy.push((format!("shuffled {copy}"), answers));
        }
        let mut cloned = self.columns(free);
        for copy in 0..3 {
            cloned.push((format!("clone {copy}"), self.labels(worst).to_vec()));
        }
        let setups = [
            ("2 shuffled workers", noisy, "two workers with the best one's answers, shuffled"),
            ("3 clones of the weakest", cloned, "the weakest worker votes four times"),
        ];
        for (words, columns, note) in setups {
            let compared = METHODS
                .iter()
                .filter(|(method, role)| champion(*role) || matches!(method, Method::Mv));
            for (method, _) in compared {
                let name = format!("{} with {words}", method.name());
                let mut row = self.row(&name, Role::Control, &self.aggregate(&columns, *method)?);
                row.note = Some(note.to_owned());
                report.rows.push(row);
            }
        }
        Ok(())
    }

    fn figures(&self) -> Result<Vec<Figure>> {
        let title = format!("Reliability of the posterior, clothing {}", self.attribute.name);
        let (votes, gold) = self.votes(&self.columns(&self.free()))?;
        let mut curves = Vec::new();
        for method in [Method::OpinionPool, Method::DawidSkene] {
            let options = self.config.aggregate.options;
            let result = fit(&votes, method, &Evidence::default(), &options)?;
            let (mut right, mut confidence) = (Vec::new(), Vec::new());
            for (item, &truth) in gold.iter().enumerate() {
                if let Some(&score) = result.scores_of(item).get(result.label[item] as usize) {
                    right.push(result.label[item] == truth);
                    confidence.push(score.clamp(0.0, 1.0));
                }
            }
            let bins = metrics::reliability_bins(&right, &confidence, 10);
            curves.push((method.name().to_owned(), bins));
        }
        let labels = Labels { title: &title, x: "confidence", y: "share right" };
        Ok(vec![Figure::new(
            &title,
            "Confidence of the chosen label against how often it is right. Points below the \
             diagonal are overconfident: workers that err together look independent to the model.",
            plot::reliability(labels, &curves),
        )])
    }

    /// Estimated against true accuracy, over the reviews that a worker answered.
    fn points(&self) -> Result<Vec<Point>> {
        let free = self.free();
        let (votes, _) = self.votes(&self.columns(&free))?;
        let options = self.config.aggregate.options;
        let result = fit(&votes, Method::Iwmv, &Evidence::default(), &options)?;
        let mut points = Vec::new();
        for (&worker, estimate) in free.iter().zip(&result.accuracy) {
            let answered = self.labels(worker).iter().flatten().count();
            if let (Some(estimate), true) = (estimate, answered > 0) {
                let right: f64 = self.correct(worker).iter().sum();
                points.push(Point {
                    x: right / answered as f64,
                    y: *estimate,
                    label: self.name(worker).to_owned(),
                    group: self.attribute.name.clone(),
                });
            }
        }
        Ok(points)
    }
}

fn champion(role: Role) -> bool {
    matches!(role, Role::Paper | Role::Ours)
}
