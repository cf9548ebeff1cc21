//! Run folders between processes, signals, secrets, bad folders, and pictures that were drawn.

#![allow(clippy::unwrap_used, clippy::exit)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::cli::Profile;
use common::metrics::reliability_bins;
use common::report::plot::{
    Bar, Labels, Line, Point, Series, bars, grouped_bars, heatmap, lines, reliability, scatter,
};
use common::report::{Figure, Report, Role, Row, html, png};
use common::run::{Manifest, RunFolder, RunSpec, Status};

fn spec(out: &Path, resume: bool) -> RunSpec {
    RunSpec {
        name: "paper".into(),
        profile: Profile::Smoke,
        config: String::new(),
        hash8: "0123abcd".into(),
        seeds: vec![0],
        out: out.to_owned(),
        resume,
    }
}

/// The body of a child process: opens the run folder of `SEPTET_TEST_OUT` and works until it is
/// stopped. A no-op in an ordinary test run.
#[test]
fn child_worker() {
    let Some(out) = std::env::var_os("SEPTET_TEST_OUT").map(PathBuf::from) else { return };
    common::cli::init(&common::cli::CommonArgs::default()).unwrap();
    let folder = RunFolder::open(&spec(&out, true)).unwrap();
    std::fs::write(out.join("ready"), "").unwrap();
    tracing_line();
    let outcome = loop {
        if let Err(error) = common::run::check_interrupt() {
            break Err::<(), _>(error);
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    if out.join("stubborn").exists() {
        std::fs::write(out.join("saving"), "").unwrap();
        std::thread::sleep(Duration::from_secs(60));
    }
    folder.close(&outcome).unwrap();
    std::process::exit(i32::from(outcome.unwrap_err().exit_code()));
}

fn tracing_line() {
    let key = std::env::var("SEPTET_TEST_API_KEY").unwrap_or_default();
    tracing::warn!("the key is {key}");
}

fn start_worker(out: &Path) -> Child {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "report::child_worker", "--nocapture"])
        .env("SEPTET_TEST_OUT", out)
        .env("SEPTET_TEST_API_KEY", "sk-canary-0123456789")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(&out.join("ready"));
    child
}

fn wait_for(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < Duration::from_secs(30), "no {}", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

fn only_manifest(out: &Path) -> Manifest {
    let folders: Vec<_> = std::fs::read_dir(out.join("paper")).unwrap().collect();
    assert_eq!(folders.len(), 1);
    let path = folders[0].as_ref().unwrap().path().join("manifest.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
#[cfg(unix)]
fn a_second_process_is_refused_and_a_dead_ones_lock_taken_over() {
    let out = tempfile::tempdir().unwrap();
    let mut child = start_worker(out.path());
    let start = Instant::now();
    let error = RunFolder::open(&spec(out.path(), true)).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(error.exit_code(), 75, "{error}");
    assert!(error.to_string().contains("another process"), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    let folder = RunFolder::open(&spec(out.path(), true)).unwrap();
    assert!(folder.resumed());
}

#[test]
#[cfg(unix)]
fn signals_end_a_run_with_their_code_and_a_second_one_at_once() {
    for (name, code) in [("-TERM", 143), ("-INT", 130)] {
        let out = tempfile::tempdir().unwrap();
        let mut child = start_worker(out.path());
        signal(&child, name);
        let start = Instant::now();
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert!(start.elapsed() < Duration::from_secs(5));
        assert_eq!(only_manifest(out.path()).status, Status::Interrupted);
    }
    let out = tempfile::tempdir().unwrap();
    std::fs::write(out.path().join("stubborn"), "").unwrap();
    let mut child = start_worker(out.path());
    signal(&child, "-TERM");
    wait_for(&out.path().join("saving"));
    signal(&child, "-TERM");
    let start = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(only_manifest(out.path()).status, Status::Running);
}

#[test]
#[cfg(unix)]
fn no_key_in_any_file_of_a_run() {
    let out = tempfile::tempdir().unwrap();
    let mut child = start_worker(out.path());
    signal(&child, "-TERM");
    child.wait().unwrap();
    let folder = std::fs::read_dir(out.path().join("paper")).unwrap().next().unwrap().unwrap();
    let mut log = String::new();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!text.contains("sk-canary"), "{text}");
        log.push_str(&text);
    }
    assert!(log.contains("the key is ***"), "{log}");
}

#[test]
fn odd_folders_work_or_fail_cleanly() {
    let root = tempfile::tempdir().unwrap();
    let odd = root.path().join("with space/ünï\ncode");
    let folder = RunFolder::open(&spec(&odd, false)).unwrap();
    folder.write("a/b.txt", b"x").unwrap();
    assert_eq!(std::fs::read(folder.path().join("a/b.txt")).unwrap(), b"x");
    let file = root.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = RunFolder::open(&spec(&file, false)).unwrap_err();
    assert_eq!(error.exit_code(), 6, "{error}");
    assert!(error.to_string().contains("file"), "{error}");
}

/// Every kind of plot with awkward labels, and a page of them. `SEPTET_PLOTS=DIR` keeps the files.
#[test]
fn all_plots_render() {
    let mut report = Report { figures: gallery(), ..Report::default() };
    report.rows.push(Row {
        paper: "gallery".into(),
        dataset: "rte".into(),
        method: "majority vote".into(),
        role: Role::Baseline,
        metric: "accuracy".into(),
        mean: Some(0.91),
        ci95: Some([0.89, 0.93]),
        n: 800,
        seconds: Some(0.2),
        ..Row::default()
    });
    let report = report.finish().unwrap();
    let page = html::page("Gallery", &[], std::slice::from_ref(&report));
    let keep = std::env::var_os("SEPTET_PLOTS").map(PathBuf::from);
    for figure in &report.figures {
        let picture = png(&figure.svg, 1.5).unwrap();
        let image = image::load_from_memory(&picture).unwrap().to_rgb8();
        let inked = image.pixels().filter(|pixel| pixel.0 != [255, 255, 255]).count();
        assert!(inked > 1000, "{}: {inked} pixels", figure.title);
        assert!(!figure.svg.contains("NaN") && !figure.svg.contains("inf"), "{}", figure.title);
        // Nothing may touch the border, or it is clipped.
        let (w, h) = image.dimensions();
        let border = (0..w)
            .flat_map(|x| [(x, 0), (x, h - 1)])
            .chain((0..h).flat_map(|y| [(0, y), (w - 1, y)]));
        for (x, y) in border {
            assert_eq!(image.get_pixel(x, y).0, [255; 3], "{} at {x},{y}", figure.title);
        }
        if let Some(folder) = &keep {
            std::fs::create_dir_all(folder).unwrap();
            std::fs::write(folder.join(format!("{}.png", figure.slug())), picture).unwrap();
        }
    }
    if let Some(folder) = &keep {
        std::fs::write(folder.join("gallery.html"), page).unwrap();
    }
}

fn gallery() -> Vec<Figure> {
    let title = |title| Labels { title, ..Labels::default() };
    let bar = |label: &str, value: f64, half: f64, role| Bar {
        label: label.into(),
        value,
        ci95: Some([value - half, value + half]),
        role,
    };
    let close = [
        bar("IWMV", 0.912, 0.02, Role::Paper),
        bar("IWMV with class-dependent back-off and a rather long name", 0.927, 0.018, Role::Ours),
        bar("majority vote", 0.897, 0.021, Role::Baseline),
        bar("Dawid–Skene", 0.926, 0.018, Role::Baseline),
        bar("weights of 1", 0.897, 0.021, Role::Ablation),
        bar("best single model (knows the truth)", 0.905, 0.02, Role::Control),
    ];
    let wide = [
        Bar { label: "loss <raw> & \"quoted\"".into(), value: -0.4, ..Bar::default() },
        Bar { label: "gain".into(), value: 1.7, ..Bar::default() },
        Bar { label: "nothing".into(), value: 0.0, ..Bar::default() },
    ];
    let sets: Vec<String> =
        ["bluebird", "rte", "dog", "web", "trec", "ZenCrowd_us"].map(String::from).into();
    let series = |name: &str, shift: f64| Series {
        name: name.into(),
        values: (0..6).map(|i| 0.75 + 0.03 * f64::from(i) + shift).collect(),
    };
    let mut holes = series("Dawid–Skene", 0.03);
    holes.values[2] = f64::NAN;
    let curve = |name: &str, rate: f64| Line {
        name: name.into(),
        points: (0..60).map(|i| (f64::from(i), 2.5 * (-rate * f64::from(i)).exp())).collect(),
    };
    let point = |i: u32| Point {
        x: 0.55 + 0.04 * f64::from(i % 10),
        y: 0.6 + 0.035 * f64::from(i % 10) + 0.01 * f64::from(i / 10),
        label: format!("worker {i}"),
        group: if i.is_multiple_of(2) { "department".into() } else { "class".into() },
    };
    let points: Vec<Point> = (0..24).map(point).collect();
    let names = |count: usize, word: &str| -> Vec<String> {
        (0..count).map(|i| format!("{word} {i}")).collect()
    };
    let cells = |rows: usize, columns: usize| -> Vec<Vec<f64>> {
        let cell =
            |r: usize, c: usize| if r == c { 1.0 } else { 0.1 * ((r * 7 + c * 3) % 9) as f64 };
        (0..rows).map(|r| (0..columns).map(|c| cell(r, c)).collect()).collect()
    };
    let p: Vec<f64> = (0..500).map(|i| f64::from(i) / 499.0).collect();
    let labels: Vec<bool> =
        p.iter().enumerate().map(|(i, p)| (i * 37 % 100) as f64 / 100.0 < p * p).collect();
    let bins = reliability_bins(&labels, &p, 15);
    let axes = |title, x, y| Labels { title, x, y };
    vec![
        Figure::new(
            "Bars close",
            "",
            bars(axes("Accuracy on rte, 800 items", "accuracy", ""), &close),
        ),
        Figure::new("Bars wide", "", bars(title("Change by attribute"), &wide)),
        Figure::new(
            "Grouped",
            "",
            grouped_bars(
                axes("Accuracy per set", "accuracy", ""),
                &sets,
                &[series("majority vote", 0.0), series("IWMV", 0.02), holes],
            ),
        ),
        Figure::new(
            "Lines",
            "",
            lines(
                axes("Training", "step", "loss"),
                &[curve("ours", 0.08), curve("plain AdamW", 0.03)],
            ),
        ),
        Figure::new(
            "Scatter",
            "",
            scatter(axes("Estimated against true accuracy", "true", "estimated"), &points, true),
        ),
        Figure::new(
            "Heatmap small",
            "",
            heatmap(
                axes("Agreement", "", ""),
                &names(5, "worker"),
                &names(5, "worker"),
                &cells(5, 5),
            ),
        ),
        Figure::new(
            "Heatmap large",
            "",
            heatmap(
                axes("Confusion matrix of class", "predicted", "true"),
                &names(20, "a label"),
                &names(20, "a label"),
                &cells(20, 20),
            ),
        ),
        Figure::new(
            "Reliability",
            "",
            reliability(
                axes("Reliability of the posterior", "", ""),
                &[("raw posterior".into(), bins)],
            ),
        ),
    ]
}
