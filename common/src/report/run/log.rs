//! Log lines: words on stderr, JSON lines in the run folder.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Mutex;

use indicatif::MultiProgress;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The open `log.jsonl`, if a run folder is in use.
static FILE: Mutex<Option<File>> = Mutex::new(None);

/// Libraries whose own log lines are of no use below warnings.
const CHATTY: [&str; 7] =
    ["ureq", "ureq_proto", "rustls", "hf_hub", "tokenizers", "usvg", "llguidance"];

/// All progress bars of the process, so that log lines don't run into them; other modules' bars
/// belong here too.
pub fn bars() -> &'static MultiProgress {
    static BARS: std::sync::OnceLock<MultiProgress> = std::sync::OnceLock::new();
    BARS.get_or_init(MultiProgress::new)
}

/// Starts logging; later calls change nothing.
pub(crate) fn start(quiet: bool, verbose: u8) {
    let level = match (quiet, verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, 0) => LevelFilter::INFO,
        (false, 1) => LevelFilter::DEBUG,
        (false, _) => LevelFilter::TRACE,
    };
    let filter = |level: LevelFilter| {
        let limits = CHATTY.map(|target| (target, level.min(LevelFilter::WARN)));
        Targets::new().with_default(level).with_targets(limits)
    };
    let words = tracing_subscriber::fmt::layer()
        .with_writer(|| Stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .with_target(false)
        .without_time()
        .with_filter(filter(level));
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .with_writer(|| RunLog)
        .with_filter(filter(level.max(LevelFilter::DEBUG)));
    let _ = tracing_subscriber::registry().with(words).with(lines).try_init();
}

/// Sends JSON log lines to `file` from now on, or nowhere.
pub(super) fn set_file(file: Option<File>) {
    if let Ok(mut slot) = FILE.lock() {
        *slot = file;
    }
}

struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bars().suspend(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

struct RunLog;

impl Write for RunLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Ok(mut slot) = FILE.lock()
            && let Some(file) = slot.as_mut()
        {
            file.write_all(super::redact::redact_bytes(bytes).as_bytes())?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
