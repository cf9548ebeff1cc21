//! Eq. 2: trained weights of retired ads by L2 logistic regression; one λ for all ads by
//! cross-validation.

use common::logistic::LogisticRegression;
use common::rng::Seed;
use common::{Result, metrics};
use rayon::prelude::*;

use crate::config::LibraryConfig;
use crate::data::{Dataset, Impressions};
use crate::library::{Library, RetiredAd, Skipped};
use crate::model::logit::probability;

/// A trained click model.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// One weight per feature.
    pub weights: Vec<f64>,
    /// Intercept.
    pub bias: f64,
}

/// Eq. 2 on the given rows at inverse penalty `c` = 1/λ.
///
/// # Errors
/// As [`LogisticRegression::fit_binary`]: rows of one class only.
pub fn fit_rows(impressions: &Impressions, rows: &[usize], c: f64) -> Result<Fitted> {
    let options = LibraryConfig::logistic(c);
    let labels = impressions.labels(rows);
    let model =
        LogisticRegression::fit_binary(impressions.rows(rows).view(), &labels, None, options)?;
    Ok(Fitted { weights: model.weights.row(0).to_vec(), bias: model.intercepts[0] })
}

/// The inverse penalty with the lowest held-out log loss, summed over the first `cv_ads` of `ads`
/// (shuffled by `seed`) and over folds. Ads or folds of one class are passed over.
///
/// # Errors
/// None but bugs.
pub fn choose_c(
    impressions: &Impressions,
    rows_by_ad: &[Vec<usize>],
    ads: &[usize],
    config: &LibraryConfig,
    seed: Seed,
) -> Result<f64> {
    if config.c.len() == 1 {
        return Ok(config.c[0]);
    }
    let mut stream = seed.stream("library/folds");
    let mut chosen = ads.to_vec();
    stream.shuffle(&mut chosen);
    chosen.retain(|&ad| usable(impressions, &rows_by_ad[ad], config).is_ok());
    chosen.truncate(config.cv_ads);
    let shuffled: Vec<Vec<usize>> = chosen
        .iter()
        .map(|&ad| {
            let mut rows = rows_by_ad[ad].clone();
            stream.shuffle(&mut rows);
            rows
        })
        .collect();
    let losses: Vec<Vec<f64>> = shuffled
        .par_iter()
        .map(|rows| {
            config.c.iter().map(|&c| held_out_loss(impressions, rows, c, config.folds)).collect()
        })
        .collect();
    let total = |at: usize| losses.iter().map(|ad| ad[at]).sum::<f64>();
    let best = (0..config.c.len()).min_by(|&a, &b| total(a).total_cmp(&total(b))).unwrap_or(0);
    Ok(config.c[best])
}

/// Sum of the log loss of every row by a model that did not see its fold.
fn held_out_loss(impressions: &Impressions, rows: &[usize], c: f64, folds: usize) -> f64 {
    let mut loss = 0.0;
    for fold in 0..folds {
        let part = |inside: bool| -> Vec<usize> {
            let here = rows.iter().enumerate().filter(|(at, _)| (at % folds == fold) == inside);
            here.map(|(_, row)| *row).collect()
        };
        let (test, train) = (part(true), part(false));
        // A fold whose rest has one class has no model: it counts the same for every c.
        let Ok(model) = fit_rows(impressions, &train, c) else { continue };
        let features = impressions.rows(&test);
        let predicted: Vec<f64> = features
            .rows()
            .into_iter()
            .map(|x| probability(&model.weights, model.bias, &x.to_vec()))
            .collect();
        let labels = impressions.labels(&test);
        if !labels.is_empty() {
            loss += metrics::log_loss(&labels, &predicted, None) * labels.len() as f64;
        }
    }
    loss
}

/// Why an ad can't be trained.
fn usable(impressions: &Impressions, rows: &[usize], config: &LibraryConfig) -> Result<(), String> {
    let clicks = rows.iter().filter(|&&row| impressions.clicked[row]).count();
    let others = rows.len() - clicks;
    if clicks < config.min_clicks || others < config.min_clicks {
        return Err(format!(
            "{clicks} clicks in {} impressions, needs at least {} with and without a click",
            rows.len(),
            config.min_clicks
        ));
    }
    Ok(())
}

/// Trains every ad of `ads` on its rows for which `keep` holds.
///
/// # Errors
/// [`common::Error::Data`] on features that are not finite.
pub fn fit_library(
    data: &Dataset,
    ads: &[usize],
    keep: impl Fn(usize) -> bool,
    config: &LibraryConfig,
    seed: Seed,
) -> Result<Library> {
    let impressions = &data.impressions;
    let retired: std::collections::HashSet<usize> = ads.iter().copied().collect();
    let rows_by_ad = data.rows_by_ad(|row| keep(row) && retired.contains(&impressions.ad[row]));
    let c = choose_c(impressions, &rows_by_ad, ads, config, seed)?;
    let fitted: Vec<Result<Fitted, String>> = ads
        .par_iter()
        .map(|&ad| {
            usable(impressions, &rows_by_ad[ad], config)?;
            fit_rows(impressions, &rows_by_ad[ad], c).map_err(|error| error.to_string())
        })
        .collect();
    let mut library = Library {
        schema: data.schema.clone(),
        c,
        ads: Vec::new(),
        skipped: Vec::new(),
        reference: Vec::new(),
    };
    for (&ad, fitted) in ads.iter().zip(fitted) {
        let rows = &rows_by_ad[ad];
        match fitted {
            Ok(Fitted { weights, bias }) => library.ads.push(RetiredAd {
                ad: data.ads[ad].clone(),
                weights,
                bias,
                clicks: rows.iter().filter(|&&row| impressions.clicked[row]).count(),
                impressions: rows.len(),
            }),
            Err(reason) => library.skipped.push(Skipped { id: data.ads[ad].id.clone(), reason }),
        }
    }
    let all: Vec<usize> = (0..impressions.len()).filter(|&row| keep(row)).collect();
    let all: Vec<usize> =
        all.into_iter().filter(|&row| retired.contains(&impressions.ad[row])).collect();
    let mut sample = seed.stream("library/reference").sample(all.len(), config.reference_users);
    sample.sort_unstable();
    library.reference =
        sample.into_iter().map(|at| impressions.features.row(all[at]).to_vec()).collect();
    Ok(library)
}
