//! The comparison: objects of rewritten prompts, then pictures.
//!
//! | part | what is compared | module |
//! |---|---|---|
//! | objects | which objects a rewritten prompt names for a held-out concept | [`objects`] |
//! | pictures | what the pictures of raw and rewritten prompts show, before and after ReFL | [`pictures`] |

pub mod objects;
pub mod pictures;
mod prompts;
pub mod sheet;

use common::Result;
use common::assets::Assets;
use common::cli::Profile;
use common::report::Report;
use common::rng::Seed;
use common::stats;

use crate::config::Config;
use crate::store::Piece;
use crate::studio::Base;
use crate::train::History;

/// Printed with every row.
pub const CAVEAT: &str = "emoji at 32 × 32 pixels with English keywords, models trained here; not \
                          comparable with the paper's SDXL results, whose numbers are not public";

/// Where a bench finds its data, and its size.
#[derive(Clone)]
pub struct Context {
    /// Models and data sets.
    pub assets: Assets,
    /// Size of the run.
    pub profile: Profile,
}

/// Runs both parts. The first seed trains the image models; every seed has its own split of the
/// concepts and its own language model in the first part, and its own pictures in the second.
///
/// # Errors
/// Those of the trainings and assets.
pub fn run(config: &Config, context: &Context, seeds: &[u64]) -> Result<Report> {
    let mut report = Report::new("poac", context.profile.name());
    let (rows, figures, tuned) = objects::run(config, &context.assets, seeds)?;
    report.rows.extend(rows);
    report.figures.extend(figures);
    let (rows, figures) = pictures::run(config, &context.assets, seeds, tuned)?;
    report.rows.extend(rows);
    report.figures.extend(figures);
    report.finish()
}

/// Trains everything that [`run`] uses, without the trained pieces that come with the crate; what the
/// cache holds is taken from there. Returns the history of every training by name, and the pieces.
///
/// # Errors
/// Those of the trainings and assets.
pub fn train(
    config: &Config,
    assets: &Assets,
    seeds: &[u64],
) -> Result<(Vec<(String, History)>, Vec<Piece>)> {
    let (mut histories, mut pieces) = (Vec::new(), Vec::new());
    for (at, &number) in seeds.iter().enumerate() {
        let seed = Seed::new(number);
        let base = Base::unbundled(config, assets, seed)?;
        let (_, _, history) = objects::train(&base, seed, at == 0)?;
        histories.push((format!("language model, seed {number}"), history));
        if at == 0 {
            let trained = pictures::train(&base, seed)?;
            histories.extend(trained.models.histories);
            let stages = trained.refl_histories.into_iter().enumerate();
            histories
                .extend(stages.map(|(at, history)| (format!("ReFL, stage {}", at + 1), history)));
        }
        pieces.extend(base.into_pieces());
    }
    Ok((histories, pieces))
}

/// Mean of values with a percentile bootstrap interval over items (concepts).
pub(crate) fn over_items(values: &[f64], resamples: usize, purpose: &str) -> (f64, [f64; 2]) {
    let mean = |items: &[usize]| {
        items.iter().map(|&at| values[at]).sum::<f64>() / items.len().max(1) as f64
    };
    let mut stream = Seed::new(0).stream(purpose);
    let ci = stats::bootstrap_ci(values.len(), resamples, &mut stream, mean);
    (stats::mean_sd(values).0, ci)
}
