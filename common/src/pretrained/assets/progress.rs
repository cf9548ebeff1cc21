//! What a fetch reports while it runs, and how that is shown on stderr.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Without a terminal, a line this often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What is being done to an asset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Another process fetches the same asset.
    Wait,
    /// Bytes come over the network.
    Download,
    /// Members are taken out of packages.
    Unpack,
    /// Bytes are hashed.
    Verify,
}

impl Step {
    fn verb(self) -> &'static str {
        match self {
            Self::Wait => "waiting for another process to fetch",
            Self::Download => "downloading",
            Self::Unpack => "unpacking",
            Self::Verify => "verifying",
        }
    }
}

/// How far a step is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Id of the asset, or the repository.
    pub asset: &'a str,
    /// The step.
    pub step: Step,
    /// Bytes so far in this step.
    pub done: u64,
    /// Bytes of the step, when known.
    pub total: Option<u64>,
}

/// Receives [`Progress`], from several threads.
pub type ProgressFn = Arc<dyn Fn(&Progress<'_>) + Send + Sync>;

/// Shows progress as bars of `bars` on a terminal, else as one log line (level info) every 10 s.
pub fn console_progress(bars: MultiProgress) -> ProgressFn {
    if std::io::stderr().is_terminal() {
        let shown: Mutex<HashMap<(String, Step), ProgressBar>> = Mutex::default();
        Arc::new(move |progress| {
            let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
            let bar = shown
                .entry((progress.asset.to_owned(), progress.step))
                .or_insert_with(|| bars.add(bar(progress)));
            bar.set_position(progress.done);
            if progress.total.is_some_and(|total| progress.done >= total) {
                bar.finish_and_clear();
            }
        })
    } else {
        let last: Mutex<Option<Instant>> = Mutex::default();
        Arc::new(move |progress| {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
                *last = Some(Instant::now());
                tracing::info!("{}", line(progress));
            }
        })
    }
}

fn bar(progress: &Progress<'_>) -> ProgressBar {
    let template = match progress.total {
        Some(_) => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        None => "{msg} {spinner} {bytes} {bytes_per_sec}",
    };
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = progress.total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    bar.with_style(style).with_message(format!("{} {}", progress.step.verb(), progress.asset))
}

fn line(progress: &Progress<'_>) -> String {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let mut line = format!("{} {}", progress.step.verb(), progress.asset);
    if progress.step != Step::Wait {
        line += &format!(": {:.1}", megabytes(progress.done));
        if let Some(total) = progress.total {
            line += &format!(" of {:.1}", megabytes(total));
        }
        line += " MB";
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_asset_and_the_amount() {
        let progress = |step, total| Progress { asset: "crowd", step, done: 1_500_000, total };
        assert_eq!(
            line(&progress(Step::Download, Some(3_000_000))),
            "downloading crowd: 1.5 of 3.0 MB"
        );
        assert_eq!(line(&progress(Step::Unpack, None)), "unpacking crowd: 1.5 MB");
        assert_eq!(line(&progress(Step::Wait, None)), "waiting for another process to fetch crowd");
    }
}
