//! Seconds of one fit, as JSON lines, to hold against other programs.
//!
//! `aggregate_bench crowd FOLDER` fits every set below FOLDER (`<set>/label.csv`);
//! `aggregate_bench scale VOTES...` fits synthetic votes (10 per item, 1,000 workers, 5 labels) and
//! prints the peak resident memory. RAYON_NUM_THREADS sets the threads. One fit is timed alone;
//! reading and grouping the votes is not part of it.

#![allow(clippy::print_stdout)]

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use common::rng::Seed;
use llm_ensemble::train::{Consensus, Evidence, Method, Options, fit};
use llm_ensemble::votes::{Duplicates, Names, Votes, VotesBuilder};

const METHODS: [Method; 4] =
    [Method::Iwmv, Method::OneCoin, Method::DawidSkene, Method::OpinionPool];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((mode, rest)) if mode == "crowd" => {
            let folder = rest.first().context("crowd needs a folder")?;
            crowd(Path::new(folder))
        }
        Some((mode, rest)) if mode == "scale" => {
            for votes in rest {
                scale(votes.parse().context("a number of votes")?)?;
            }
            Ok(())
        }
        _ => bail!("usage: aggregate_bench crowd FOLDER | scale VOTES..."),
    }
}

/// Median of up to 30 fits, within a second.
fn timed(votes: &Votes, method: Method) -> Result<(f64, Consensus)> {
    let none = Evidence::default();
    let mut seconds = Vec::new();
    let started = Instant::now();
    loop {
        let begin = Instant::now();
        let result = fit(votes, method, &none, &Options::default())?;
        seconds.push(begin.elapsed().as_secs_f64());
        let enough = seconds.len() >= 3 && started.elapsed().as_secs_f64() > 1.0;
        if enough || seconds.len() >= 30 || started.elapsed().as_secs_f64() > 8.0 {
            seconds.sort_by(f64::total_cmp);
            return Ok((seconds[seconds.len() / 2], result));
        }
    }
}

fn crowd(folder: &Path) -> Result<()> {
    let mut sets: Vec<_> = std::fs::read_dir(folder)?.collect::<std::io::Result<_>>()?;
    sets.sort_by_key(|entry| entry.file_name());
    for set in sets {
        let Ok(text) = std::fs::read_to_string(set.path().join("label.csv")) else { continue };
        let mut builder = VotesBuilder::new();
        for line in text.lines().skip(1) {
            let mut fields = line.split(',');
            let mut next = || fields.next().context("three fields per row");
            builder.push(next()?, next()?, next()?)?;
        }
        let votes = builder.finish(Duplicates::Keep)?;
        for method in METHODS {
            report(&set.file_name().to_string_lossy(), &votes, method)?;
        }
    }
    Ok(())
}

fn scale(count: usize) -> Result<()> {
    const WORKERS: usize = 1_000;
    let mut stream = Seed::new(1).stream("scale");
    let mut rows = Vec::with_capacity(count);
    let accuracy: Vec<f64> = (0..WORKERS).map(|_| 0.4 + 0.5 * stream.uniform()).collect();
    for item in 0..count / 10 {
        let truth = stream.below(5);
        for _ in 0..10 {
            let worker = stream.below(WORKERS);
            let right = stream.chance(accuracy[worker]);
            let label = if right { truth } else { (truth + 1 + stream.below(4)) % 5 };
            rows.push((item as u32, worker as u32, label as u16));
        }
    }
    let votes = Votes::from_rows(
        Names::numbered(count / 10),
        Names::numbered(WORKERS),
        Names::numbered(5),
        &rows,
        Duplicates::Keep,
    )?;
    drop(rows);
    for method in [Method::Iwmv, Method::DawidSkene] {
        report(&format!("scale-{count}"), &votes, method)?;
    }
    Ok(())
}

fn report(name: &str, votes: &Votes, method: Method) -> Result<()> {
    let (seconds, result) = timed(votes, method)?;
    // IWMV scores once before its first and once after its last update.
    let passes = result.rounds + usize::from(method == Method::Iwmv) * 2;
    let line = serde_json::json!({
        "set": name,
        "method": method.name(),
        "votes": votes.len(),
        "rounds": result.rounds,
        "seconds": seconds,
        "ns_per_vote_and_round": 1e9 * seconds / (votes.len() * passes.max(1)) as f64,
        "peak_rss_mb": peak_rss_mb(),
    });
    println!("{line}");
    Ok(())
}

/// Highest resident memory of the process so far (Linux), MiB.
fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kb| kb / 1024.0)
}
