//! Speed of the aggregators, to hold against other programs; one thread unless RAYON_NUM_THREADS
//! says otherwise.
//!
//! | command | what it does |
//! |---|---|
//! | `serve FOLDER` | a server for `common::testing::bench_protocol`, the peer of `benches/peers/crowd_aggregation.py`: case `SET:METHOD` fits FOLDER/SET/label.csv, `SET:METHOD:rows` also groups the votes by item first |
//! | `scale VOTES...` | fits synthetic votes (10 an item, 1,000 workers, 5 labels): nanoseconds per vote and round, peak memory |
//!
//! Reading the file and interning its strings is not timed.

#![allow(clippy::print_stdout)]

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use common::rng::Seed;
use common::testing::bench_protocol::{Case, Timings, serve};
use common::{Error, Result};
use llm_ensemble::train::{Consensus, Evidence, Method, Options, fit};
use llm_ensemble::votes::{Duplicates, Label, Names, Votes, VotesBuilder};
use serde_json::{Map, Value, json};

fn main() -> anyhow::Result<()> {
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        common::runtime::init(Some(1));
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((mode, rest)) if mode == "serve" => {
            let folder = Path::new(rest.first().context("serve needs a folder")?);
            let build = |name: &str| crowd_case(folder, name);
            Ok(serve(std::io::stdin().lock(), std::io::stdout().lock(), build)?)
        }
        Some((mode, rest)) if mode == "scale" => {
            for votes in rest {
                scale(votes.parse().context("a number of votes")?)?;
            }
            Ok(())
        }
        _ => bail!("usage: aggregate_bench serve FOLDER | scale VOTES..."),
    }
}

struct Fit {
    votes: Votes,
    /// In the order of the file, if grouping them is timed.
    rows: Option<Vec<(u32, u32, Label)>>,
    method: Method,
    result: Option<Consensus>,
}

impl Case for Fit {
    fn run(&mut self) -> Result<()> {
        if let Some(rows) = &self.rows {
            let Votes { items, workers, labels, .. } = &self.votes;
            let names = [items.len(), workers.len(), labels.len()].map(Names::numbered);
            let [items, workers, labels] = names;
            self.votes = Votes::from_rows(items, workers, labels, rows, Duplicates::Keep)?;
        }
        let none = Evidence::default();
        self.result = Some(fit(&self.votes, self.method, &none, &Options::default())?);
        Ok(())
    }

    fn fields(&self, _: &Timings) -> Map<String, Value> {
        let rounds = self.result.as_ref().map(|result| result.rounds);
        Map::from_iter([("rounds".to_owned(), json!(rounds))])
    }
}

fn crowd_case(folder: &Path, name: &str) -> Result<Box<dyn Case>> {
    let parts: Vec<&str> = name.split(':').collect();
    let (set, method, grouped) = match parts[..] {
        [set, method] => (set, method, true),
        [set, method, "rows"] => (set, method, false),
        _ => return Err(Error::usage(format!("case {name}; known: SET:METHOD[:rows]"))),
    };
    let method = serde_json::from_value(json!(method))
        .map_err(|error| Error::usage(format!("method {method}: {error}")))?;
    let path = folder.join(set).join("label.csv");
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let mut builder = VotesBuilder::new();
    let mut lines = Vec::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let [item, worker, label] = fields[..] else {
            return Err(Error::usage(format!("row {line}: expected item,worker,label")));
        };
        builder.push(item, worker, label)?;
        lines.push([item, worker, label]);
    }
    let votes = builder.finish(Duplicates::Keep)?;
    let rows = (!grouped).then(|| {
        let at = |names: &Names, name: &str| names.position(name).unwrap_or_default();
        let code = |[item, worker, label]: &[&str; 3]| {
            let codes = (at(&votes.items, item), at(&votes.workers, worker));
            (codes.0 as u32, codes.1 as u32, at(&votes.labels, label) as Label)
        };
        lines.iter().map(code).collect()
    });
    Ok(Box::new(Fit { votes, rows, method, result: None }))
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
            rows.push((item as u32, worker as u32, label as Label));
        }
    }
    let names = [count / 10, WORKERS, 5].map(Names::numbered);
    let [items, workers, labels] = names;
    let votes = Votes::from_rows(items, workers, labels, &rows, Duplicates::Keep)?;
    drop(rows);
    for method in [Method::Iwmv, Method::DawidSkene] {
        let (seconds, result) = timed(&votes, method)?;
        // IWMV scores once before its first and once after its last update.
        let passes = result.rounds + usize::from(method == Method::Iwmv) * 2;
        let line = json!({
            "votes": votes.len(),
            "method": method.name(),
            "rounds": result.rounds,
            "seconds": seconds,
            "ns_per_vote": 1e9 * seconds / votes.len() as f64,
            "ns_per_vote_and_round": 1e9 * seconds / (votes.len() * passes.max(1)) as f64,
            "peak_rss_mb": common::runtime::peak_rss_mb(),
        });
        println!("{line}");
    }
    Ok(())
}

/// Median of fits within two seconds, at least 3.
fn timed(votes: &Votes, method: Method) -> Result<(f64, Consensus)> {
    let mut seconds = Vec::new();
    let started = Instant::now();
    loop {
        let begin = Instant::now();
        let result = fit(votes, method, &Evidence::default(), &Options::default())?;
        seconds.push(begin.elapsed().as_secs_f64());
        if seconds.len() >= 3 && started.elapsed().as_secs_f64() > 2.0 {
            seconds.sort_by(f64::total_cmp);
            return Ok((seconds[seconds.len() / 2], result));
        }
    }
}
