//! `bench`: the recommender against simple ones; every unlearning method against models retrained
//! without the forget set, with the spread between retrained models as the noise floor.

pub mod figures;
mod models;
mod requests;
mod table;

use common::assets::Assets;
use common::cli::Profile;
use common::data::movielens::MovieLens;
use common::optim::Workers;
use common::report::{Report, Role, Row};
use common::rng::Seed;
use common::run::RunFolder;
use common::stats;
use common::{Error, Result, metrics};

use crate::baselines::{IdRegression, history_share, item_means};
use crate::config::Config;
use crate::data::{Interactions, Synthetic, Window, from_movielens, synthetic};
use crate::eval::{Part, Quality, predict};
use crate::stages::Setting;

/// Where a bench finds data and keeps trained models.
#[derive(Clone)]
pub struct Context {
    /// Data sets; trained models are kept in the cache folder.
    pub assets: Assets,
    /// Size of the run.
    pub profile: Profile,
    /// Threads.
    pub threads: usize,
}

/// MovieLens-100k, or why it is not here.
///
/// # Errors
/// Damaged files; [`Error::Asset`] when absent.
pub fn movielens(assets: &Assets) -> Result<Interactions> {
    let mut folder = None;
    for end in ["inter", "item", "user", "kg", "link"] {
        let path = assets.file("ml-100k", &format!("ml-100k.{end}"))?;
        folder = path.parent().map(std::path::Path::to_owned);
    }
    let folder = folder.ok_or_else(|| Error::Bug("an asset without a folder".to_owned()))?;
    Ok(from_movielens(&MovieLens::read(&folder)?))
}

/// Runs the comparison over the seeds (at least two: the noise floor is the distance between two
/// retrained models).
///
/// # Errors
/// [`Error::Usage`] with one seed; anything but an absent data set, which is replaced by synthetic
/// data that the rows name.
pub fn run(
    config: &Config,
    context: &Context,
    folder: Option<&RunFolder>,
    seeds: &[u64],
) -> Result<Report> {
    if seeds.len() < 2 {
        return Err(Error::usage("bench with one seed has no noise floor; use --seeds 2 or more"));
    }
    let mut report = Report::new("cure", context.profile.name());
    let (data, name) = match movielens(&context.assets) {
        Ok(data) => (data, "ml-100k"),
        Err(error @ Error::Asset { .. }) => {
            let row = Row { dataset: "ml-100k".into(), metric: "AUC".into(), ..Row::default() };
            report
                .rows
                .push(row.not_run(&format!("{error}; the rows below are of synthetic data")));
            let sizes =
                Synthetic { users: 200, items: 300, topics: 6, events: 60, consistency: 0.9 };
            (synthetic(sizes, Seed::new(seeds[0])).0, "synthetic")
        }
        Err(error) => return Err(error),
    };
    let workers = Workers::new(context.threads)?;
    let setting = Setting::new(&config.data, data, Seed::new(seeds[0]))?;
    let mut models = models::Models::new(config, context, &setting, &workers);
    let originals = models.originals(seeds)?;
    recommenders(config, &setting, name, &originals, &workers, &mut report)?;
    for (at, request) in config.bench.requests.iter().enumerate() {
        requests::run(
            &requests::Comparison {
                config,
                setting: &setting,
                dataset: name,
                originals: &originals,
                seeds,
                workers: &workers,
                full: at == 0,
                folder,
            },
            &mut models,
            request,
            &mut report,
        )?;
    }
    report.finish()
}

/// The recommender against recommenders that see less.
fn recommenders(
    config: &Config,
    setting: &Setting,
    name: &str,
    originals: &[models::Model],
    workers: &Workers,
    report: &mut Report,
) -> Result<()> {
    let users = setting.split.train_users();
    let tests = setting.test_records(&users, config.bench.test_records);
    let prompts = setting.prompts();
    let part = Part::new(prompts.of_windows(&tests));
    let dataset = format!("{name}, test of the recommender");
    // user and item of every record
    let pairs = |windows: &[Window]| -> Vec<(usize, usize)> {
        let of = |window: &Window| {
            let (user, asked) = (window.user, window.asked_events().to_vec());
            asked.into_iter().map(move |e| (user, setting.data.histories[user][e].item as usize))
        };
        windows.iter().flat_map(of).collect()
    };
    let test_pairs = pairs(&tests);
    let mut all: Vec<(String, Role, Vec<Vec<f64>>, String)> = Vec::new();
    let yes = originals
        .iter()
        .map(|model| predict(&model.lm, &part.prompts, workers))
        .collect::<Result<Vec<_>>>()?;
    all.push(("rec-tiny".into(), Role::Paper, yes, String::new()));
    let means = item_means(&setting.data, &setting.mask);
    let of_items = test_pairs.iter().map(|&(_, item)| means[item]).collect();
    let note = "smoothed share of likes of the item".to_owned();
    all.push(("item mean".into(), Role::Baseline, vec![of_items], note));
    // the penalty with the best log loss on the tuning events
    let range = |user: usize| setting.split.train[user]..setting.split.valid[user];
    let tune = prompts.records(&users, range);
    let tune_pairs = pairs(&tune);
    let tune_labels = crate::prompt::labels(&prompts.of_windows(&tune));
    let mut best: Option<(f64, f64, IdRegression)> = None;
    for c in [0.3, 1.0, 3.0] {
        let model = IdRegression::fit(&setting.data, &setting.mask, c);
        let p: Vec<f64> = tune_pairs.iter().map(|&(u, i)| model.probability(u, i)).collect();
        let loss = metrics::log_loss(&tune_labels, &p, None);
        if best.as_ref().is_none_or(|(least, ..)| loss < *least) {
            best = Some((loss, c, model));
        }
    }
    if let Some((_, c, model)) = best {
        let p = test_pairs.iter().map(|&(user, item)| model.probability(user, item)).collect();
        let note = format!("C = {c} by the log loss on the tuning events");
        all.push(("logistic regression on user and item".into(), Role::Baseline, vec![p], note));
    }
    // the share of likes in the window before each record
    let features = |windows: &[Window]| -> Vec<f64> {
        let of = |window: &Window| {
            let history = &setting.data.histories[window.user];
            let likes: Vec<bool> =
                window.events.iter().map(|&event| history[event].liked).collect();
            let first = likes.len() - window.asked;
            let share = move |at: usize| {
                let before = &likes[..at];
                before.iter().filter(|&&liked| liked).count() as f64 / before.len().max(1) as f64
            };
            (first..window.events.len()).map(share).collect::<Vec<f64>>()
        };
        windows.iter().flat_map(of).collect()
    };
    let p = history_share((&features(&tune), &tune_labels), &features(&tests))?;
    let note = "one feature: the share of likes in the prompt's history".to_owned();
    all.push(("share of likes in the history".into(), Role::Baseline, vec![p], note));
    let mean = |all: &[Vec<f64>]| -> Vec<f64> {
        (0..all[0].len())
            .map(|at| all.iter().map(|p| p[at]).sum::<f64>() / all.len() as f64)
            .collect()
    };
    let pick: [(&str, bool, fn(&Quality) -> f64); 4] = [
        ("AUC", true, |q| q.auc),
        ("accuracy", true, |q| q.accuracy),
        ("log loss", false, |q| q.log_loss),
        ("ECE", false, |q| q.ece),
    ];
    let ours = mean(&all[0].2);
    for (metric, higher_is_better, value) in pick {
        for (method, role, predictions, note) in &all {
            let values: Vec<f64> =
                predictions.iter().map(|p| value(&Quality::of(&part.labels, p))).collect();
            let mut note = note.clone();
            if metric == "AUC" && *role == Role::Baseline {
                let mut stream = Seed::new(0).stream(&format!("bench/{method}"));
                let [low, high] = stats::bootstrap_ci(
                    part.labels.len(),
                    config.bench.resamples,
                    &mut stream,
                    |indices| {
                        let labels: Vec<bool> = indices.iter().map(|&i| part.labels[i]).collect();
                        let of = |p: &[f64]| {
                            let p: Vec<f64> = indices.iter().map(|&i| p[i]).collect();
                            metrics::auc(&labels, &p, None)
                        };
                        // a difference of AUCs on the same records
                        predictions_mean_difference(
                            &of,
                            originals.len(),
                            &all[0].2,
                            &predictions[0],
                        )
                    },
                );
                note = format!(
                    "{note}; rec-tiny's mean AUC minus this one: 95 % interval {low:+.4} to {high:+.4}"
                );
            }
            let row = Row {
                dataset: dataset.clone(),
                method: method.clone(),
                role: *role,
                metric: metric.into(),
                higher_is_better,
                claim: "the recommender is worth unlearning from".into(),
                n: part.labels.len(),
                note: (!note.is_empty()).then_some(note),
                ..Row::default()
            };
            report.rows.push(row.over_seeds(&values));
        }
    }
    let bins = |p: &[f64]| metrics::reliability_bins(&part.labels, p, metrics::ECE_BINS);
    report.figures.push(figures::reliability(&[("rec-tiny".into(), bins(&ours))]));
    Ok(())
}

/// Mean over the seeds of AUC(rec-tiny) − AUC(other) on resampled records.
fn predictions_mean_difference(
    auc: &dyn Fn(&[f64]) -> f64,
    seeds: usize,
    ours: &[Vec<f64>],
    other: &[f64],
) -> f64 {
    ours.iter().map(|p| auc(p)).sum::<f64>() / seeds as f64 - auc(other)
}
