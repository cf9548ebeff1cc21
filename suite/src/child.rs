//! One child process: its output, its time limit, its end.

use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::report::Report;
use common::{Error, Result, run};

/// How long a child may take to save its state after being asked to stop.
const GRACE: Duration = Duration::from_secs(10);

/// A child that prints more than this on stdout is not printing a report.
const MAX_OUTPUT: u64 = 64 << 20;

/// Why a paper has no report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// One sentence.
    pub reason: String,
    /// Exit code that the suite passes on.
    pub code: u8,
}

/// Runs `binary` with `arguments` and reads the report that it prints on stdout; stderr goes to
/// ours. After `limit` the child is asked to stop, then killed.
///
/// The outer error means that the suite itself was interrupted (the child was stopped first).
pub fn bench(
    binary: &Path,
    arguments: &[OsString],
    limit: Duration,
) -> Result<Result<Report, Failure>> {
    let started = Command::new(binary)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            return Ok(Err(Failure {
                reason: format!("{} did not start: {error}", binary.display()),
                code: 6,
            }));
        }
    };
    let output = read_in_background(&mut child);
    let status = match wait(&mut child, limit)? {
        Some(status) => status,
        None => {
            let seconds = limit.as_secs();
            return Ok(Err(Failure {
                reason: format!("stopped after its time limit of {seconds} s"),
                code: 75,
            }));
        }
    };
    if !status.success() {
        return Ok(Err(describe(status)));
    }
    // A grandchild may still hold the pipe; what the paper printed is in it by now.
    let bytes = output.recv_timeout(GRACE).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    Ok(Report::from_json(&text, Path::new("stdout"))
        .map_err(|error| Failure { reason: format!("no report: {error}"), code: 101 }))
}

fn read_in_background(child: &mut Child) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    let stdout = child.stdout.take();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(stdout) = stdout {
            let mut limited = stdout.take(MAX_OUTPUT);
            if let Err(error) = limited.read_to_end(&mut bytes) {
                tracing::warn!("reading a paper's stdout: {error}");
            }
            // Keep the pipe empty, so that the child does not block on it.
            let _ = std::io::copy(&mut limited.into_inner(), &mut std::io::sink());
        }
        let _ = sender.send(bytes);
    });
    receiver
}

/// The child's end, or `None` when it had to be stopped at its time limit.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(Error::io(Path::new("child process")))? {
            return Ok(Some(status));
        }
        if let Some(signal) = run::interrupted() {
            stop(child);
            return Err(Error::Interrupted(signal));
        }
        if start.elapsed() >= limit {
            stop(child);
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asks the child to stop, waits, then kills it.
fn stop(child: &mut Child) {
    if cfg!(unix) {
        let id = child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &id]).stderr(Stdio::null()).status();
        let start = Instant::now();
        while start.elapsed() < GRACE {
            if matches!(child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn describe(status: ExitStatus) -> Failure {
    let Some(code) = status.code() else {
        return Failure { reason: format!("crashed ({status})"), code: 101 };
    };
    let words = match code {
        2 => "wrong arguments or configuration",
        3 => "bad data",
        4 => "an asset or model is missing or invalid",
        5 => "LLM output unusable",
        6 => "a file could not be read or written",
        7 => "a result outside its tolerance",
        75 => "a temporary failure, run again",
        101 => "a bug",
        130 | 143 => "interrupted",
        _ => "unknown",
    };
    Failure {
        reason: format!("exit code {code} ({words}); its messages are on stderr"),
        code: u8::try_from(code).unwrap_or(101),
    }
}
