//! One data set: library, baselines, the LLM's weights, blend, controls, rows and figures.

use common::metrics::calibration::Platt;
use common::metrics::reliability_bins;
use common::report::plot::{self, Bar, Labels};
use common::report::{Figure, Report, Role, Row};
use common::rng::Seed;
use common::{Result, stats};

use super::llm::BenchLlm;
use super::{Context, base, controls, warm};
use crate::blend::Example;
use crate::calibrate::{AsCold, Calibration};
use crate::config::{Config, Mode};
use crate::data::{Ad, ColdSplit, Dataset};
use crate::eval::{METRICS, TestSet};
use crate::generate::Generator;
use crate::index::Index;
use crate::library::Library;
use crate::model::logit::{dot, logit, sigmoid};
use crate::model::retrieve::Found;
use crate::sources::{self, Sources};
use crate::train;
use crate::writer::Writer;

/// Weights of one source for every cold ad, with calibrated intercepts.
#[derive(Debug, Clone)]
pub(super) struct Models {
    pub(super) weights: Vec<Vec<f64>>,
    pub(super) biases: Vec<f64>,
}

/// One line of the table.
pub(super) struct Method {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) note: String,
    /// Logit per test row.
    pub(super) logits: Vec<f64>,
    /// Weights, where the method has them.
    pub(super) models: Option<Models>,
}

/// The LLM's answers about some ads.
pub(super) struct Written {
    /// Before Eq. 5.
    pub(super) raw: Vec<Vec<f64>>,
    /// After Eq. 5.
    pub(super) weights: Vec<Vec<f64>>,
    pub(super) spent: super::llm::Counts,
}

/// A data set with everything that does not need the LLM.
pub(super) struct Part<'a> {
    pub(super) config: &'a Config,
    pub(super) context: &'a Context,
    pub(super) data: &'a Dataset,
    pub(super) split: &'a ColdSplit,
    pub(super) llm: &'a BenchLlm<'a>,
    pub(super) seed: Seed,
    pub(super) library: Library,
    pub(super) cold: Vec<Ad>,
    pub(super) test: TestSet,
    /// Features of the test rows.
    features: Vec<Vec<f64>>,
}

impl<'a> Part<'a> {
    pub(super) fn new(
        config: &'a Config,
        context: &'a Context,
        data: &'a Dataset,
        split: &'a ColdSplit,
        llm: &'a BenchLlm<'a>,
    ) -> Result<Self> {
        let seed = Seed::new(context.seed);
        let impressions = &data.impressions;
        let train = |row: usize| !split.held_out[impressions.user[row]];
        let library = train::fit_library(data, &split.retired, train, &config.library, seed)?;
        let test = TestSet::new(impressions, &split.active, |row| !train(row));
        let rows = impressions.rows(&test.rows);
        let features = rows.rows().into_iter().map(|x| x.to_vec()).collect();
        tracing::info!(
            "{}: {} retired ads, {} cold ads, {} test impressions, {} features, C = {}",
            data.name,
            library.ads.len(),
            split.active.len(),
            test.rows.len(),
            data.schema.len(),
            library.c
        );
        Ok(Self {
            config,
            context,
            data,
            split,
            llm,
            seed,
            library,
            cold: split.active.iter().map(|&ad| data.ads[ad].clone()).collect(),
            test,
            features,
        })
    }

    /// Measures everything; returns this part's sentences of the headline.
    pub(super) fn run(&self, report: &mut Report) -> Result<String> {
        let generator = Generator::new(&self.library, self.config, &self.context.assets)?;
        let k = self.config.retrieval.k;
        let sources = Sources::new(&self.library, k, &self.context.assets)?;
        let found = generator.retrieve(&self.cold)?;
        let targets: Vec<f64> = found.iter().map(|f| generator.target_rate(f)).collect();
        let cheap = sources.weights(&self.cold)?;
        let source = |at: usize| -> Vec<Vec<f64>> {
            cheap.iter().map(|sources| sources[at].clone()).collect()
        };

        // The LLM writes for the cold ads, and for retired ads that are treated as cold.
        let writer = self.llm.writer(&self.data.schema, &self.config.writer, Mode::Likelihood)?;
        let written = self.write(&generator, &writer, &self.cold, &found)?;
        let train = |row: usize| !self.split.held_out[self.data.impressions.user[row]];
        let as_cold = AsCold::new(&generator, &sources, self.data, train, self.seed)?;
        let asked = sources::sample(&self.library, self.config.bench.blend_ads, self.seed);
        let asked_ads = sources::as_cold(&self.library, &asked);
        let asked_found = generator.retrieve(&asked_ads)?;
        let answered = self.write(&generator, &writer, &asked_ads, &asked_found)?;
        let (mode, seed) = (writer.mode(), self.seed);
        let calibration =
            Calibration::fit(&self.library, &as_cold, mode, &asked, &answered.raw, seed)?;
        let residual_of = |raw: &Vec<f64>| {
            calibration.residual.weights(raw, &generator.centre, &generator.spread)
        };
        let residual: Vec<Vec<f64>> = written.raw.iter().map(residual_of).collect();
        let blend_of = |(sources, raw): (&Vec<Vec<f64>>, &Vec<f64>)| {
            calibration.weights(sources, Some(raw), &generator.spread)
        };
        let blended: Vec<Vec<f64>> = cheap.iter().zip(&written.raw).map(blend_of).collect();

        let mut methods = Vec::new();
        let mut add = |name: &str, role: Role, note: &str, weights: Vec<Vec<f64>>| -> Result<()> {
            methods.push(self.method(&generator, name, role, note, weights, &targets)?);
            Ok(())
        };
        let name = self.llm.name();
        if self.rating() {
            let rating = self.llm.writer(&self.data.schema, &self.config.writer, Mode::Rating)?;
            let rated = self.write(&generator, &rating, &self.cold, &found)?;
            let note = format!("Eq. 4 rating words of {name}, 5-shot; {}", rated.spent.words());
            add("LLM-HYPER, rating", Role::Paper, &note, rated.weights)?;
        }
        let note =
            format!("likelihood of each feature's description, {name}; {}", written.spent.words());
        add("LLM-HYPER, likelihood", Role::Ours, &note, written.weights.clone())?;
        let note = format!(
            "median + {:.3} sd of trained weights per sd of the LLM's answers, learned on {} retired \
             ads",
            calibration.residual.strength,
            asked.len()
        );
        add("LLM-HYPER, residual", Role::Ours, &note, residual.clone())?;
        add("LR_cold (median)", Role::Baseline, "", source(0))?;
        add("LR_cold (mean)", Role::Baseline, "", vec![self.library.mean(); self.cold.len()])?;
        let note = "the demonstrations, no LLM";
        add("kNN weights, tf-idf", Role::Baseline, note, source(1))?;
        add("kNN weights, MiniLM", Role::Baseline, note, source(2))?;
        let penalty = sources.ridge.penalty;
        let note = format!("from MiniLM embedding, penalty {penalty} by leave-one-out");
        add("ridge map text to weights", Role::Baseline, &note, source(3))?;
        let note = format!(
            "{}; {} retired ads, {} with answers",
            calibration.words(),
            as_cold.indices.len(),
            asked.len()
        );
        add("blend with LLM", Role::Ours, &note, blended.clone())?;
        let note = format!("learned on {} retired ads", as_cold.indices.len());
        let cheap_blend = cheap.iter().map(|sources| calibration.cheap.weights(sources)).collect();
        add("blend without LLM", Role::Baseline, &note, cheap_blend)?;

        // Controls.
        let control = controls::Controls { part: self, generator: &generator, writer: &writer };
        for (name, note, weights) in control.weights(&written.weights, &residual) {
            add(name, Role::Control, note, weights)?;
        }
        methods.push(self.warm(&generator.centre)?);
        methods.push(self.popularity(&targets));
        if let Some(method) = self.embedding_match(&sources.minilm)? {
            methods.push(method);
        }
        let examples = as_cold.of(&asked);
        let likelihood = &methods[usize::from(self.rating())];
        methods.push(self.platt(likelihood, &generator, &examples, &answered.weights)?);

        self.rows(&methods, report);
        self.differences(&methods, report);
        self.figures(&methods, report);
        controls::interpretation(self, &methods, report);
        control.prompted(&found, &written, &calibration.residual, report)?;
        control.counterfactual(&found, &written, report)?;
        control.ranking(&methods, report)?;
        control.reasons(&found, report)?;
        let curves = warm::Curves {
            part: self,
            generator: &generator,
            targets: &targets,
            examples: &examples,
        };
        let cold_source = |at: usize| examples.iter().map(|ad| ad.sources[at].clone()).collect();
        let start = |name, weights, as_cold| warm::Start { name, weights, as_cold };
        let blended_cold = examples.iter().map(|ad| &ad.sources).zip(&answered.raw).map(blend_of);
        let worth = curves.run(
            &[
                start(
                    "LLM-HYPER, residual",
                    &residual,
                    answered.raw.iter().map(residual_of).collect(),
                ),
                start("LLM-HYPER, likelihood", &written.weights, answered.weights.clone()),
                start("LR_cold (median)", &source(0), cold_source(0)),
                start("kNN weights, tf-idf", &source(1), cold_source(1)),
                start("ridge map text to weights", &source(3), cold_source(3)),
                start("blend with LLM", &blended, blended_cold.collect()),
            ],
            report,
        )?;
        Ok(self.sentence(&methods, &worth))
    }

    /// What the LLM writes, as it is and after Eq. 5, and what it costs.
    pub(super) fn write(
        &self,
        generator: &Generator<'_>,
        writer: &Writer,
        ads: &[Ad],
        found: &[Vec<Found>],
    ) -> Result<Written> {
        let (raws, spent) = self.llm.ask(writer, &generator.queries(ads, found))?;
        let mut written = Written { raw: Vec::new(), weights: Vec::new(), spent };
        for ((ad, found), raw) in ads.iter().zip(found).zip(&raws) {
            let artefact = generator.finish(ad, found, raw, "")?;
            written.raw.push(artefact.raw);
            written.weights.push(artefact.weights);
        }
        Ok(written)
    }

    /// AUC of the first `weights.len()` cold ads, each with its weights.
    pub(super) fn auc_of(&self, weights: &[Vec<f64>]) -> Vec<f64> {
        let rows = self.test.ad.iter().zip(&self.features);
        let scores: Vec<f64> =
            rows.map(|(&ad, x)| weights.get(ad).map_or(0.0, |w| dot(w, x))).collect();
        self.test.auc_per_ad(&scores).into_iter().take(weights.len()).collect()
    }

    /// w · x + b of every test row.
    fn logits(&self, models: &Models) -> Vec<f64> {
        let rows = self.test.ad.iter().zip(&self.features);
        rows.map(|(&ad, x)| dot(&models.weights[ad], x) + models.biases[ad]).collect()
    }

    fn method(
        &self,
        generator: &Generator<'_>,
        name: &str,
        role: Role,
        note: &str,
        weights: Vec<Vec<f64>>,
        targets: &[f64],
    ) -> Result<Method> {
        let biases = weights
            .iter()
            .zip(targets)
            .map(|(w, &target)| generator.bias(w, target))
            .collect::<Result<_>>()?;
        let models = Models { weights, biases };
        let logits = self.logits(&models);
        Ok(Method { name: name.into(), role, note: note.into(), logits, models: Some(models) })
    }

    /// LR_warm: trained on the cold ads' own impressions by users that are not held out.
    fn warm(&self, centre: &[f64]) -> Result<Method> {
        let impressions = &self.data.impressions;
        let rows = self.data.rows_by_ad(|row| !self.split.held_out[impressions.user[row]]);
        let config = &self.config.library;
        let c = train::choose_c(impressions, &rows, &self.split.active, config, self.seed)?;
        let mut models = Models { weights: Vec::new(), biases: Vec::new() };
        let mut single = 0;
        for &ad in &self.split.active {
            let fitted = train::fit_rows(impressions, &rows[ad], c).unwrap_or_else(|_| {
                single += 1;
                train::Fitted { weights: centre.to_vec(), bias: logit(self.library.rate()) }
            });
            models.weights.push(fitted.weights);
            models.biases.push(fitted.bias);
        }
        let mut note = format!("upper bound, trained on the ads' own impressions, C = {c}");
        if single > 0 {
            note.push_str(&format!("; {single} ads with one class have LR_cold weights"));
        }
        let logits = self.logits(&models);
        let name = "LR_warm".into();
        Ok(Method { name, role: Role::Ablation, note, logits, models: Some(models) })
    }

    /// The demonstrations' click rate for every user.
    fn popularity(&self, targets: &[f64]) -> Method {
        Method {
            name: "popularity of demonstrations".into(),
            role: Role::Baseline,
            note: "the same click rate for every user of an ad".into(),
            logits: self.test.ad.iter().map(|&ad| logit(targets[ad])).collect(),
            models: None,
        }
    }

    /// Cosine between the ad and the mean of what the user liked before, by MiniLM; scaled to
    /// probabilities on retired ads.
    fn embedding_match(&self, minilm: &Index) -> Result<Option<Method>> {
        let impressions = &self.data.impressions;
        if self.test.rows.iter().all(|&row| impressions.liked[row].is_empty()) {
            return Ok(None);
        }
        let all = minilm.embed(&self.data.ads)?;
        let cosine = |row: usize| {
            let liked = &impressions.liked[row];
            let mut centroid = ndarray::Array1::<f64>::zeros(all.ncols());
            liked.iter().for_each(|&ad| centroid += &all.row(ad as usize));
            let size = centroid.dot(&centroid).sqrt();
            if size > 0.0 { centroid.dot(&all.row(impressions.ad[row])) / size } else { 0.0 }
        };
        let mut known: Vec<usize> = (0..impressions.len())
            .filter(|&row| self.split.retired.binary_search(&impressions.ad[row]).is_ok())
            .filter(|&row| !self.split.held_out[impressions.user[row]])
            .collect();
        self.seed.stream("embedding-match").shuffle(&mut known);
        known.truncate(5_000);
        let scores: Vec<f64> = known.iter().map(|&row| cosine(row)).collect();
        let platt = Platt::fit(&scores, &impressions.labels(&known))?;
        let logits = self.test.rows.iter().map(|&row| -(platt.a * cosine(row) + platt.b)).collect();
        Ok(Some(Method {
            name: "embedding match".into(),
            role: Role::Baseline,
            note: "MiniLM centroid of up to 20 earlier likes against the ad; Platt on retired ads"
                .into(),
            logits,
            models: None,
        }))
    }

    /// The LLM's model with Platt scaling fitted on retired ads treated as cold.
    fn platt(
        &self,
        llm: &Method,
        generator: &Generator<'_>,
        examples: &[&Example],
        weights: &[Vec<f64>],
    ) -> Result<Method> {
        let (mut scores, mut labels) = (Vec::new(), Vec::new());
        for (ad, weights) in examples.iter().zip(weights) {
            let bias = generator.bias(weights, ad.rate)?;
            let logits = ad.features.dot(&ndarray::ArrayView1::from(weights));
            scores.extend(logits.iter().map(|z| z + bias));
            labels.extend(&ad.clicked);
        }
        let platt = Platt::fit(&scores, &labels)?;
        Ok(Method {
            name: format!("{} + Platt", llm.name),
            role: Role::Ablation,
            note: format!("slope {:.3} fitted on {} retired ads", -platt.a, examples.len()),
            logits: llm.logits.iter().map(|z| -(platt.a * z + platt.b)).collect(),
            models: None,
        })
    }

    /// Rating mode costs most tokens: it is measured on the data set with per-ad expert features.
    fn rating(&self) -> bool {
        self.config.bench.rating && self.data.expert.iter().any(|expert| !expert.is_empty())
    }

    fn rows(&self, methods: &[Method], report: &mut Report) {
        let resamples = self.config.bench.resamples;
        let judge = methods.iter().position(|m| m.name == "kNN weights, tf-idf");
        let per_ad: Vec<Vec<f64>> =
            methods.iter().map(|m| self.test.auc_per_ad(&m.logits)).collect();
        for (at, method) in methods.iter().enumerate() {
            let p: Vec<f64> = method.logits.iter().map(|z| sigmoid(*z)).collect();
            let measured = self.test.measure(&p, resamples, self.seed);
            for ((metric, higher), measured) in METRICS.iter().zip(measured) {
                let Some(measured) = measured else { continue };
                let mut note = method.note.clone();
                if let Some(judge) = judge.filter(|&judge| *metric == "auc per ad" && judge != at) {
                    let [low, high] = self.margin(&per_ad[at], &per_ad[judge]).1;
                    note = format!(
                        "{note}{}against kNN [{low:+.4}, {high:+.4}]",
                        if note.is_empty() { "" } else { "; " }
                    );
                }
                report.rows.push(Row {
                    metric: (*metric).into(),
                    higher_is_better: *higher,
                    mean: Some(measured.value),
                    ci95: Some(measured.ci95),
                    n: measured.n,
                    note: (!note.is_empty()).then_some(note),
                    ..base(&self.data.name, &method.name, method.role)
                });
            }
        }
    }

    /// Paired differences of AUC per ad: the LLM's weights against the cheap ones, the blends, and
    /// the blend against the best baseline for cold ads that no blend is.
    fn differences(&self, methods: &[Method], report: &mut Report) {
        let find = |name: &str| methods.iter().find(|m| m.name == name);
        let auc = |method: &Method| self.test.auc_per_ad(&method.logits);
        let mean = |method: &Method| {
            let known: Vec<f64> = auc(method).into_iter().filter(|a| a.is_finite()).collect();
            stats::mean_sd(&known).0
        };
        let mut add = |ours: &Method, theirs: &Method, metric: String, note: Option<String>| {
            let (difference, ci95) = self.margin(&auc(ours), &auc(theirs));
            report.rows.push(Row {
                claim: "LLM-written weights, or a blend with them, beat weights that need no LLM"
                    .into(),
                metric,
                mean: Some(difference),
                ci95: Some(ci95),
                n: self.cold.len(),
                note,
                ..base(&format!("{}, AUC per ad above", self.data.name), &ours.name, ours.role)
            });
        };
        for (ours, theirs) in [
            (self.paper_method(), "kNN weights, tf-idf"),
            (self.paper_method(), "ridge map text to weights"),
            ("LLM-HYPER, residual", "LR_cold (median)"),
            ("LLM-HYPER, residual", "kNN weights, tf-idf"),
            ("blend with LLM", "blend without LLM"),
        ] {
            if let (Some(ours), Some(theirs)) = (find(ours), find(theirs)) {
                add(ours, theirs, theirs.name.clone(), None);
            }
        }
        let best = methods
            .iter()
            .filter(|m| m.role == Role::Baseline && !m.name.starts_with("blend"))
            .max_by(|a, b| mean(a).total_cmp(&mean(b)));
        if let (Some(best), Some(blend)) = (best, find("blend with LLM")) {
            let note = format!("the best in hindsight: {}", best.name);
            add(blend, best, "the best cold baseline".into(), Some(note));
        }
    }

    /// The paper's way of asking that was measured on this data.
    fn paper_method(&self) -> &'static str {
        if self.rating() { "LLM-HYPER, rating" } else { "LLM-HYPER, likelihood" }
    }

    /// Mean difference of per-ad AUC and its paired interval over ads.
    fn margin(&self, ours: &[f64], theirs: &[f64]) -> (f64, [f64; 2]) {
        let pairs: Vec<(f64, f64)> = ours
            .iter()
            .zip(theirs)
            .map(|(a, b)| (*a, *b))
            .filter(|(a, b)| a.is_finite() && b.is_finite())
            .collect();
        let (a, b): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
        let mut stream = self.seed.stream("bootstrap/pairs");
        let d = stats::paired_bootstrap(&a, &b, self.config.bench.resamples, &mut stream);
        (d.difference, d.ci95)
    }

    fn figures(&self, methods: &[Method], report: &mut Report) {
        let bars: Vec<Bar> = methods
            .iter()
            .filter_map(|method| {
                let row = report.rows.iter().find(|row| {
                    row.dataset == self.data.name
                        && row.method == method.name
                        && row.metric == "auc per ad"
                })?;
                Some(Bar {
                    label: method.name.clone(),
                    value: row.mean?,
                    ci95: row.ci95,
                    role: method.role,
                })
            })
            .collect();
        let title = format!("AUC per cold ad, {}", self.data.name);
        report.figures.push(Figure::new(
            &title,
            "Mean AUC over cold ads with 95 % bootstrap intervals over ads. LR_warm has seen the \
             ads' own impressions.",
            plot::bars(Labels { title: &title, x: "mean AUC per ad", y: "" }, &bars),
        ));
        let shown = ["LLM-HYPER, residual", "kNN weights, tf-idf", "blend with LLM"];
        let lines: Vec<_> = methods
            .iter()
            .filter(|method| shown.contains(&method.name.as_str()))
            .map(|method| {
                let p: Vec<f64> = method.logits.iter().map(|z| sigmoid(*z)).collect();
                (method.name.clone(), reliability_bins(&self.test.clicked, &p, 15))
            })
            .collect();
        let title = format!("Calibration, {}", self.data.name);
        report.figures.push(Figure::new(
            &title,
            "Predicted against observed click rate of held-out users on cold ads, 15 bins. \
             Intercepts are calibrated without any click of these ads.",
            plot::reliability(Labels { title: &title, x: "predicted", y: "observed" }, &lines),
        ));
    }

    /// One sentence from the numbers: whether the LLM beats its cheap rivals, and what it is worth.
    fn sentence(&self, methods: &[Method], worth: &str) -> String {
        let find = |name: &str| methods.iter().find(|m| m.name == name);
        let llm = self.paper_method();
        let against = |theirs: &str| {
            let auc = |method: &Method| self.test.auc_per_ad(&method.logits);
            let (ours, theirs) = (find(llm)?, find(theirs)?);
            let (difference, [low, high]) = self.margin(&auc(ours), &auc(theirs));
            let verdict = match (low > 0.0, high < 0.0) {
                (true, _) => "beat",
                (_, true) => "lose to",
                _ => "are not told apart from",
            };
            Some((verdict, format!("{difference:+.3} [{low:+.3}, {high:+.3}]")))
        };
        let (knn, ridge) = (against("kNN weights, tf-idf"), against("ridge map text to weights"));
        let (Some((first, knn)), Some((second, ridge))) = (knn, ridge) else {
            return String::new();
        };
        let second = if first == second { "and" } else { &format!("and {second}") };
        format!(
            "{}: the weights that {} writes ({llm}) {first} kNN weights ({knn} AUC per ad) {second} \
             a ridge map ({ridge}); {worth}.",
            self.data.name,
            self.llm.name(),
        )
    }
}
