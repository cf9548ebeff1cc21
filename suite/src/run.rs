//! One run over all papers.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::cli::{CommonArgs, Profile};
use common::report::{Report, Row, number, png};
use common::run::{RunFolder, RunSpec, hash8};
use common::{Error, Result};

use crate::child::{self, Failure};
use crate::compare::last_run;
use crate::papers::{self, Paper};
use crate::results::Results;

/// Flags of `cargo suite run`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Only these papers, separated by commas; the others keep their committed results
    #[arg(long, value_name = "PAPERS", value_delimiter = ',', global = true)]
    pub only: Vec<String>,
    /// Compare with RESULTS.json instead of writing it; exit code 7 on a difference
    #[arg(long, global = true)]
    pub check: bool,
    /// Allowed relative difference of --check and compare
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, global = true)]
    pub tolerance: f64,
    /// Stop a paper after this many seconds; default by profile
    #[arg(long, value_name = "SECONDS", global = true)]
    pub timeout: Option<u64>,
    /// Run the executables of this folder instead of building the workspace
    #[arg(long, value_name = "DIR", global = true)]
    pub binaries: Option<PathBuf>,
}

/// What a run leaves.
#[derive(Debug)]
pub struct Outcome {
    /// Reports of the papers that ran, failed ones among them.
    pub results: Results,
    /// Results that were committed before this run.
    pub committed: Option<Results>,
    /// The HTML report.
    pub page: PathBuf,
    /// Exit code of the first paper that failed.
    pub failed: Option<u8>,
}

/// Folder and paper name of the suite's own runs.
pub(crate) const NAME: &str = "suite";

/// Runs the papers one after another. Results are written after each one to
/// `<out>/suite/<run>/{results.json,report.html}`; with `--resume` papers that are there already
/// are kept. When all ran in profile cpu or paper, `RESULTS.md` and `RESULTS.json` of the
/// workspace are written, unless `--check` is given or a paper failed.
pub fn run(args: &CommonArgs, options: &Options) -> Result<Outcome> {
    if !args.config.is_empty() || !args.set.is_empty() {
        return Err(Error::usage(
            "--config and --set belong to one paper: use them with that paper's own `bench`",
        ));
    }
    let (root, papers) = find_papers(options)?;
    let names: Vec<&str> = papers.iter().map(|paper| paper.name.as_str()).collect();
    let settings = format!("papers = {names:?}  # --only\nseeds = {:?}\n", args.seed_values(1));
    let spec = RunSpec {
        name: NAME.to_owned(),
        profile: args.profile,
        hash8: hash8(settings.as_bytes()),
        config: settings,
        seeds: args.seed_values(1),
        out: args.out.clone(),
        resume: args.resume,
    };
    let folder = RunFolder::open(&spec)?;
    let outcome = run_all(args, options, &papers, &folder, &root);
    folder.close(&outcome)?;
    outcome
}

fn find_papers(options: &Options) -> Result<(PathBuf, Vec<Paper>)> {
    match &options.binaries {
        Some(folder) => {
            let found = papers::in_folder(folder)?;
            let names: Vec<String> = found.iter().map(|paper| paper.name.clone()).collect();
            let chosen = papers::choose(&names, &options.only)?;
            let kept = found.into_iter().filter(|paper| chosen.contains(&paper.name)).collect();
            Ok((PathBuf::from("."), kept))
        }
        None => {
            let (root, names) = papers::workspace()?;
            let papers = papers::build(&root, &papers::choose(&names, &options.only)?)?;
            Ok((root, papers))
        }
    }
}

fn run_all(
    args: &CommonArgs,
    options: &Options,
    papers: &[Paper],
    folder: &RunFolder,
    root: &Path,
) -> Result<Outcome> {
    let committed_path = root.join("RESULTS.json");
    let committed =
        if committed_path.exists() { Some(Results::read(&committed_path)?) } else { None };
    let mut results = Results { profile: args.profile.to_string(), reports: Vec::new() };
    let mut failed = None;
    for (index, paper) in papers.iter().enumerate() {
        let saved = folder.path().join(format!("{}.json", paper.name));
        if folder.resumed() && saved.exists() {
            let text = std::fs::read_to_string(&saved).map_err(Error::io(&saved))?;
            results.insert(Report::from_json(&text, &saved)?);
            tracing::info!("{}: kept from the interrupted run", paper.name);
            continue;
        }
        tracing::info!("{} ({} of {})", paper.name, index + 1, papers.len());
        let start = Instant::now();
        let arguments = arguments(args, folder.path());
        match child::bench(&paper.binary, &arguments, limit(args.profile, options))? {
            Ok(mut report) => {
                report.about = papers::about(root, &paper.name);
                let seconds = start.elapsed().as_secs_f64();
                tracing::info!("{}: {} s. {}", paper.name, number(seconds), report.headline);
                folder.write(&format!("{}.json", paper.name), report.to_json()?.as_bytes())?;
                results.insert(report);
            }
            Err(failure) => {
                tracing::error!("{} failed: {}", paper.name, failure.reason);
                failed.get_or_insert(failure.code);
                results.insert(failed_report(&paper.name, args.profile, &failure));
            }
        }
        write_run(folder, &results)?;
    }
    let page = write_run(folder, &results)?;
    if args.profile != Profile::Smoke && failed.is_none() && !options.check {
        write_committed(&results, &committed, root)?;
    }
    Ok(Outcome { results, committed, page, failed })
}

/// `bench --json` with the flags that all papers share.
fn arguments(args: &CommonArgs, out: &Path) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["bench".into(), "--json".into()];
    let mut flag = |name: &str, value: OsString| words.extend([name.into(), value]);
    flag("--profile", args.profile.name().into());
    flag("--seed", args.seed.to_string().into());
    flag("--device", args.device.to_string().into());
    flag("--out", out.into());
    if let Some(seeds) = args.seeds {
        flag("--seeds", seeds.to_string().into());
    }
    if let Some(threads) = args.threads {
        flag("--threads", threads.to_string().into());
    }
    if let Some(assets) = &args.assets {
        flag("--assets", assets.into());
    }
    for spec in &args.llm {
        flag("--llm", spec.into());
    }
    if args.offline {
        words.push("--offline".into());
    }
    if args.quiet {
        words.push("--quiet".into());
    }
    words.extend((0..args.verbose).map(|_| OsString::from("--verbose")));
    words
}

/// Time limits leave room for a slow machine and, at first, for downloads.
fn limit(profile: Profile, options: &Options) -> Duration {
    let by_profile = match profile {
        Profile::Smoke => 10 * 60,
        Profile::Cpu => 60 * 60,
        Profile::Paper => 7 * 24 * 60 * 60,
    };
    Duration::from_secs(options.timeout.unwrap_or(by_profile))
}

fn failed_report(name: &str, profile: Profile, failure: &Failure) -> Report {
    let mut report = Report::new(name, profile.name());
    let row = Row {
        paper: name.to_owned(),
        dataset: "none".to_owned(),
        method: "bench".to_owned(),
        metric: "none".to_owned(),
        ..Row::default()
    };
    let again = format!("run `cargo run --release -p {name} -- bench` to see it alone");
    report.rows = vec![row.not_run(&format!("failed: {}; {again}", failure.reason))];
    report.headline = format!("Not measured: {}.", failure.reason);
    report
}

fn write_run(folder: &RunFolder, results: &Results) -> Result<PathBuf> {
    folder.write("results.json", results.to_json()?.as_bytes())?;
    folder.write("report.html", results.to_page().as_bytes())?;
    Ok(folder.path().join("report.html"))
}

/// Lays the new reports over the committed ones of the same profile, and draws the first figure of
/// each new one for the README.
fn write_committed(new: &Results, committed: &Option<Results>, root: &Path) -> Result<()> {
    let kept = committed.as_ref().filter(|old| old.profile == new.profile);
    let mut all = kept
        .cloned()
        .unwrap_or_else(|| Results { profile: new.profile.clone(), ..Results::default() });
    for report in &new.reports {
        all.insert(report.clone());
    }
    let json = all.without_timings().to_json()?;
    for (name, text) in [("RESULTS.md", all.to_results_file()), ("RESULTS.json", json)] {
        common::data::atomic_write(&root.join(name), text.as_bytes())?;
    }
    let pictures = root.join("docs/pictures");
    std::fs::create_dir_all(&pictures).map_err(Error::io(&pictures))?;
    for report in &new.reports {
        if let Some(figure) = report.figures.first() {
            let picture = png(&figure.svg, 1.0)?;
            common::data::atomic_write(&pictures.join(format!("{}.png", report.paper)), &picture)?;
        }
    }
    Ok(())
}

/// Writes the page of the last run again, with its figures as they are now.
pub fn report(args: &CommonArgs) -> Result<(Results, PathBuf)> {
    let last = last_run(&args.out)?;
    let read = Results::read(&last.join("results.json"))?;
    let mut results = Results { profile: read.profile, reports: Vec::new() };
    for report in read.reports {
        results.insert(Report::from_json(&report.to_json()?, &last.join("results.json"))?);
    }
    let page = last.join("report.html");
    common::data::atomic_write(&page, results.to_page().as_bytes())?;
    Ok((results, page))
}
