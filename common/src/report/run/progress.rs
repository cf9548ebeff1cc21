//! Progress on stderr: a bar with an estimate on a terminal, a log line every ten seconds
//! otherwise.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

const QUIET: Duration = Duration::from_secs(10);

/// How far a job is. It can be shared between threads; dropping it removes the bar.
#[derive(Debug)]
pub struct Progress {
    name: String,
    total: u64,
    done: AtomicU64,
    started: Instant,
    /// When the next line is due, without a terminal.
    due: Mutex<Instant>,
    bar: Option<ProgressBar>,
}

/// Progress of a job of `total` steps; 0 = unknown.
pub fn progress(total: u64, name: &str) -> Progress {
    // `--quiet` shows as a subscriber that drops info lines.
    let visible = tracing::enabled!(tracing::Level::INFO);
    let bar = (visible && std::io::stderr().is_terminal()).then(|| {
        let template = if total == 0 {
            "{msg} {spinner} {human_pos} in {elapsed}"
        } else {
            "{msg} {wide_bar} {human_pos}/{human_len} {percent}% eta {eta}"
        };
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = super::log::bars().add(ProgressBar::new(total)).with_style(style);
        bar.with_message(name.to_owned())
    });
    let now = Instant::now();
    Progress {
        name: name.to_owned(),
        total,
        done: AtomicU64::new(0),
        started: now,
        due: Mutex::new(now + QUIET),
        bar,
    }
}

impl Progress {
    /// Counts `steps` more.
    pub fn add(&self, steps: u64) {
        let done = self.done.fetch_add(steps, Ordering::Relaxed) + steps;
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None => self.line(done),
        }
    }

    /// Steps so far.
    pub fn position(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn line(&self, done: u64) {
        let now = Instant::now();
        // A thread that finds the lock taken has nothing to add.
        let Ok(mut due) = self.due.try_lock() else { return };
        if now < *due {
            return;
        }
        *due = now + QUIET;
        tracing::info!("{}", words(&self.name, done, self.total, self.started.elapsed()));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            super::log::bars().remove(bar);
        }
    }
}

fn words(name: &str, done: u64, total: u64, elapsed: Duration) -> String {
    if total == 0 || done == 0 {
        return format!("{name}: {done} in {:.0} s", elapsed.as_secs_f64());
    }
    let left = elapsed.as_secs_f64() / done as f64 * total.saturating_sub(done) as f64;
    format!("{name}: {done}/{total} ({:.0}%), {left:.0} s left", 100.0 * done as f64 / total as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_estimates_what_is_left() {
        let elapsed = Duration::from_secs(30);
        assert_eq!(words("reviews", 25, 100, elapsed), "reviews: 25/100 (25%), 90 s left");
        assert_eq!(words("reviews", 25, 0, elapsed), "reviews: 25 in 30 s");
    }

    #[test]
    fn threads_count_together() {
        let progress = progress(400, "steps");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100).for_each(|_| progress.add(1)));
            }
        });
        assert_eq!(progress.position(), 400);
    }
}
