//! The recommender against recommenders without a language model.

use common::optim::Workers;
use common::report::{Report, Role, Row};
use common::rng::Seed;
use common::{Result, metrics, stats};

use super::{figures, models};
use crate::baselines::{IdRegression, history_share, item_means};
use crate::config::Config;
use crate::data::Window;
use crate::eval::{Part, Quality, predict};
use crate::prompt::labels;
use crate::stages::Setting;

/// p(liked) of the test records by one recommender.
struct Predictions {
    name: &'static str,
    role: Role,
    /// One vector per seed.
    yes: Vec<Vec<f64>>,
    note: String,
}

/// Adds quality on the test records of the training users, and the calibration figure.
pub(super) fn compare(
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
    let yes = originals
        .iter()
        .map(|model| predict(&model.lm, &part.prompts, workers))
        .collect::<Result<Vec<_>>>()?;
    let reliability = metrics::reliability_bins(&part.labels, &mean(&yes), metrics::ECE_BINS);
    let mut all =
        vec![Predictions { name: "rec-tiny", role: Role::Paper, yes, note: String::new() }];
    all.extend(simple(setting, &tests)?);
    let by_user = records_by_user(&tests);
    let pick: [(&str, bool, fn(&Quality) -> f64); 4] = [
        ("AUC", true, |q| q.auc),
        ("accuracy", true, |q| q.accuracy),
        ("log loss", false, |q| q.log_loss),
        ("ECE", false, |q| q.ece),
    ];
    for (metric, higher_is_better, value) in pick {
        for method in &all {
            let values: Vec<f64> =
                method.yes.iter().map(|p| value(&Quality::of(&part.labels, p))).collect();
            let mut note = method.note.clone();
            if metric == "AUC" && method.role == Role::Baseline {
                let [low, high] = auc_gain(&by_user, &part.labels, [&all[0], method], config);
                note = format!(
                    "{note}; rec-tiny's mean AUC minus this one: 95 % interval over users {low:+.4} to \
                     {high:+.4}"
                );
            }
            let row = Row {
                dataset: format!("{name}, test of the recommender"),
                method: method.name.into(),
                role: method.role,
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
    report.figures.push(figures::reliability(&[("rec-tiny".into(), reliability)]));
    Ok(())
}

/// What item, user and history say without a language model.
fn simple(setting: &Setting, tests: &[Window]) -> Result<Vec<Predictions>> {
    let (data, split, prompts) = (&setting.data, &setting.split, setting.prompts());
    let baseline =
        |name, yes, note| Predictions { name, role: Role::Baseline, yes: vec![yes], note };
    let test_pairs = pairs(setting, tests);
    let means = item_means(data, &setting.mask);
    let mut all = vec![baseline(
        "item mean",
        test_pairs.iter().map(|&(_, item)| means[item]).collect(),
        "smoothed share of likes of the item".to_owned(),
    )];
    // the penalty with the best log loss on the tuning events
    let tune = prompts.records(&split.train_users(), |user| split.train[user]..split.valid[user]);
    let tune_pairs = pairs(setting, &tune);
    let tune_labels = labels(&prompts.of_windows(&tune));
    let mut best = (f64::INFINITY, 0.0);
    for c in [0.3, 1.0, 3.0] {
        let model = IdRegression::fit(data, &setting.mask, c);
        let p: Vec<f64> = tune_pairs.iter().map(|&(u, i)| model.probability(u, i)).collect();
        let loss = metrics::log_loss(&tune_labels, &p, None);
        if loss < best.0 {
            best = (loss, c);
        }
    }
    let c = best.1;
    let note = format!("C = {c} by the log loss on the tuning events");
    let until = |(events, &end): (&Vec<_>, &usize)| {
        (0..events.len()).map(|event| event < end).collect::<Vec<bool>>()
    };
    let known: Vec<Vec<bool>> = data.histories.iter().zip(&split.valid).map(until).collect();
    for (name, mask, note) in [
        ("logistic regression on user and item", &setting.mask, note.clone()),
        (
            "the same, tuning events added",
            &known,
            format!("{note}; fitted to training and tuning events, which rec-tiny sees as history"),
        ),
    ] {
        let model = IdRegression::fit(data, mask, c);
        let p = test_pairs.iter().map(|&(user, item)| model.probability(user, item)).collect();
        all.push(baseline(name, p, note));
    }
    let tuned = (&shares_of_likes(setting, &tune)[..], &tune_labels[..]);
    all.push(baseline(
        "share of likes in the history",
        history_share(tuned, &shares_of_likes(setting, tests))?,
        "one feature: the share of likes in the prompt's history".to_owned(),
    ));
    Ok(all)
}

/// User and item of every record.
fn pairs(setting: &Setting, windows: &[Window]) -> Vec<(usize, usize)> {
    let item = |user: usize, event: usize| setting.data.histories[user][event].item as usize;
    let of = |window: &Window| {
        let user = window.user;
        let asked = window.asked_events().iter();
        asked.map(|&event| (user, item(user, event))).collect::<Vec<_>>()
    };
    windows.iter().flat_map(of).collect()
}

/// The share of likes in the window before each record.
fn shares_of_likes(setting: &Setting, windows: &[Window]) -> Vec<f64> {
    let of = |window: &Window| {
        let history = &setting.data.histories[window.user];
        let likes: Vec<bool> = window.events.iter().map(|&event| history[event].liked).collect();
        let share = |at: usize| {
            likes[..at].iter().filter(|&&liked| liked).count() as f64 / at.max(1) as f64
        };
        (likes.len() - window.asked..likes.len()).map(share).collect::<Vec<f64>>()
    };
    windows.iter().flat_map(of).collect()
}

/// Numbers of the records of each user.
fn records_by_user(windows: &[Window]) -> Vec<Vec<usize>> {
    let mut first = 0;
    let users = windows.chunk_by(|a, b| a.user == b.user);
    users
        .map(|of_user| {
            let start = first;
            first += of_user.iter().map(|window| window.asked).sum::<usize>();
            (start..first).collect()
        })
        .collect()
}

/// 95 % interval of the first's AUC (mean over its seeds) minus the other's: a paired bootstrap over
/// users, since records of one user belong together.
fn auc_gain(
    by_user: &[Vec<usize>],
    labels: &[bool],
    [ours, other]: [&Predictions; 2],
    config: &Config,
) -> [f64; 2] {
    let mut stream = Seed::new(0).stream(&format!("bench/{}", other.name));
    stats::bootstrap_ci(by_user.len(), config.bench.resamples, &mut stream, |users| {
        let records = || users.iter().flat_map(|&user| &by_user[user]);
        let labels: Vec<bool> = records().map(|&at| labels[at]).collect();
        let auc = |method: &Predictions| {
            let of = |p: &Vec<f64>| {
                metrics::auc(&labels, &records().map(|&at| p[at]).collect::<Vec<_>>(), None)
            };
            method.yes.iter().map(of).sum::<f64>() / method.yes.len() as f64
        };
        auc(ours) - auc(other)
    })
}

/// Mean over the seeds.
fn mean(all: &[Vec<f64>]) -> Vec<f64> {
    let of = |at: usize| all.iter().map(|p| p[at]).sum::<f64>() / all.len() as f64;
    (0..all[0].len()).map(of).collect()
}
