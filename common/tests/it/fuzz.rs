//! Mutated model files, in child processes with 4 GiB of address space and 5 seconds a file.
//!
//! `SEPTET_FUZZ=100000 cargo test -p common --test it fuzz::` runs more files than the 5,000 of
//! the default. A failing file is named by its index, which is all that makes it again.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use common::gguf::Gguf;
use common::llm::engine::{Model, Precision, Session};
use common::rng::{Seed, Stream};
use common::testing::mutate::{
    GgufSeed, flip_bits, mutate_json, tiny_config_json, tiny_gguf, tiny_safetensors,
    tiny_tokenizer_json,
};
use common::tokenizer::{Special, Tokenizer};
use common::weights::Safetensors;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Tells a child what to do: target, first index, end, folder.
const CHILD: &str = "SEPTET_FUZZ_CHILD";
const ADDRESS_SPACE: u64 = 4 << 30;
const SECONDS_PER_FILE: u64 = 5;
/// Growth of resident memory over all files of one child, each at most 64 KB.
const MAX_GROWTH_KB: u64 = 50 << 10;
const WORKERS: u64 = 2;
const MAX_FAILURES: usize = 5;

#[test]
fn mutated_gguf_files_are_read_or_refused() {
    run("gguf", count(1));
}

#[test]
fn mutated_safetensors_files_are_read_or_refused() {
    run("safetensors", count(1));
}

#[test]
fn mutated_tokenizer_json_files_are_read_or_refused() {
    run("tokenizer", count(5));
}

#[test]
fn mutated_config_json_files_are_read_or_refused() {
    run("config", count(5));
}

#[test]
fn a_fault_in_a_child_is_reported() {
    for (target, expected) in [
        ("panics", "a bug"),
        ("hangs", "took longer"),
        ("aborts", "ended the process"),
        ("hogs", "ended the process"),
    ] {
        let report = supervise(target, 0, 4);
        assert_eq!(report.failures.len(), 1, "{target}: {:?}", report.failures);
        let failure = &report.failures[0];
        assert!(failure.contains("file 2") && failure.contains(expected), "{target}: {failure}");
        assert_eq!(report.accepted, 3, "{target}: the other files ran");
    }
}

/// Reads file `index` of `target`; true when it was accepted.
fn case(target: &str, index: u64, folder: &Path) -> bool {
    let mut stream = Seed::new(index).stream(target);
    match target {
        "gguf" => {
            let architecture = ["llama", "qwen2", "gemma3"][index as usize % 3];
            let bytes = tiny(architecture).mutated(&mut stream);
            assert!(bytes.len() <= 64 << 10);
            let precision = [Precision::Auto, Precision::F32, Precision::F16];
            read_gguf(bytes, precision[stream.below(3)]).is_ok()
        }
        "safetensors" => {
            let weights = tiny_safetensors(0).mutated(&mut stream);
            read_folder(&weights, tiny_config_json().to_string().as_bytes(), folder).is_ok()
        }
        "config" => {
            let mut json = tiny_config_json();
            mutate_json(&mut json, &mut stream);
            let weights = tiny_safetensors(0).layout().bytes;
            read_folder(&weights, &text(&json, &mut stream), folder).is_ok()
        }
        "tokenizer" => {
            let mut json = tiny_tokenizer_json();
            mutate_json(&mut json, &mut stream);
            read_tokenizer(&text(&json, &mut stream)).is_ok()
        }
        // Faults that show that the harness sees them.
        "panics" if index == 2 => panic!("a bug"),
        "hangs" if index == 2 => {
            std::thread::sleep(Duration::from_secs(60));
            true
        }
        "aborts" if index == 2 => std::process::abort(),
        "hogs" if index == 2 => std::hint::black_box(vec![1u8; ADDRESS_SPACE as usize]).is_empty(),
        _ => true,
    }
}

/// Everything that is done with a model file: all tensors, the tokenizer, a forward pass.
fn read_gguf(bytes: Vec<u8>, precision: Precision) -> common::Result<()> {
    let gguf = Gguf::from_bytes(bytes, "mutated.gguf".as_ref())?;
    for name in gguf.tensor_names() {
        gguf.tensor(name)?.to_f32()?;
    }
    let tokenizer = gguf.tokenizer()?;
    for special in [Special::Parse, Special::AsText] {
        let ids = tokenizer.encode("the <|im_end|>\n\nand 123 é漢", special)?;
        tokenizer.decode(&ids)?;
    }
    gguf.chat_template();
    forward(&Model::from_gguf(&gguf, precision)?)
}

/// A prompt, one more token and the scores of two continuations.
fn forward(model: &Model) -> common::Result<()> {
    let mut session = Session::new(model);
    let logits = session.append(&[1, 2, 3])?;
    assert_eq!(logits.len(), model.config().vocab_size);
    session.step(0)?;
    session.score_options(&[vec![1, 2], vec![3]])?;
    Ok(())
}

/// A model folder of the Hugging Face layout: all tensors, then a forward pass.
fn read_folder(weights: &[u8], config: &[u8], folder: &Path) -> common::Result<()> {
    let path = folder.join("model.safetensors");
    std::fs::write(&path, weights).unwrap();
    std::fs::write(folder.join("config.json"), config).unwrap();
    Safetensors::open(&path)?.float_tensors()?;
    forward(&Model::from_hf(folder, Precision::Auto)?)
}

fn read_tokenizer(bytes: &[u8]) -> common::Result<()> {
    let tokenizer = Tokenizer::from_json(bytes, "tokenizer.json".as_ref())?;
    for special in [Special::Parse, Special::AsText] {
        let ids = tokenizer.encode("the <|end|> and 123 é漢\n", special)?;
        tokenizer.decode(&ids)?;
    }
    Ok(())
}

fn text(json: &serde_json::Value, stream: &mut Stream) -> Vec<u8> {
    let mut bytes = json.to_string().into_bytes();
    if stream.chance(0.2) {
        flip_bits(&mut bytes, stream);
    }
    bytes
}

fn tiny(architecture: &str) -> &'static GgufSeed {
    static SEEDS: std::sync::OnceLock<[GgufSeed; 3]> = std::sync::OnceLock::new();
    let seeds = SEEDS.get_or_init(|| ["llama", "qwen2", "gemma3"].map(|name| tiny_gguf(name, 1)));
    match architecture {
        "llama" => &seeds[0],
        "qwen2" => &seeds[1],
        _ => &seeds[2],
    }
}

#[test]
fn the_files_are_valid_before_they_are_mutated() {
    for architecture in ["llama", "qwen2", "gemma3"] {
        for precision in [Precision::Auto, Precision::F32, Precision::F16, Precision::Quantised] {
            read_gguf(tiny(architecture).layout().bytes, precision).unwrap();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let weights = tiny_safetensors(0).layout().bytes;
    read_folder(&weights, tiny_config_json().to_string().as_bytes(), folder.path()).unwrap();
    read_tokenizer(tiny_tokenizer_json().to_string().as_bytes()).unwrap();
}

fn count(share: u64) -> u64 {
    let count = std::env::var("SEPTET_FUZZ").map_or(5_000, |count| count.parse().unwrap());
    count / share
}

/// Runs all files of `target` and fails with the list of those that broke a child.
fn run(target: &str, count: u64) {
    let start = Instant::now();
    let share = count.div_ceil(WORKERS);
    let reports: Vec<Report> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| (worker * share, ((worker + 1) * share).min(count)))
            .map(|(first, end)| scope.spawn(move || supervise(target, first, end)))
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let failures: Vec<_> = reports.iter().flat_map(|report| &report.failures).collect();
    assert!(failures.is_empty(), "{failures:#?}");
    let accepted: u64 = reports.iter().map(|report| report.accepted).sum();
    let growth = reports.iter().map(|report| report.growth_kb).max().unwrap_or(0);
    println!(
        "{target}: {count} files, {accepted} accepted, memory grew by {growth} KB, {:.1} s",
        start.elapsed().as_secs_f64()
    );
    // Files that are nearly all refused, or nearly all accepted, test little.
    assert!(accepted * 50 > count && accepted < count * 9 / 10, "{accepted} of {count} accepted");
    assert!(growth <= MAX_GROWTH_KB, "memory grew by {growth} KB");
}

#[derive(Debug, Default)]
struct Report {
    accepted: u64,
    growth_kb: u64,
    failures: Vec<String>,
}

/// Runs files `first..end` in children: one until it breaks, then another from the next file on.
fn supervise(target: &str, mut first: u64, end: u64) -> Report {
    let folder = tempfile::tempdir().unwrap();
    let mut report = Report::default();
    while first < end && report.failures.len() < MAX_FAILURES {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "fuzz::child", "--nocapture", "--test-threads=1"])
            .env(CHILD, format!("{target} {first} {end} {}", folder.path().display()))
            .env_remove("RUST_BACKTRACE")
            .output()
            .unwrap();
        let status = Status::read(folder.path());
        report.accepted += status.accepted;
        report.growth_kb = report.growth_kb.max(status.growth_kb);
        report.failures.extend(status.failures);
        if status.next < end && !status.timed_out {
            let errors = String::from_utf8_lossy(&output.stderr);
            let last = errors.lines().rfind(|line| !line.is_empty()).unwrap_or_default().to_owned();
            report.failures.push(format!(
                "{target} file {} ended the process: {}, {last}",
                status.next, output.status
            ));
        }
        assert!(status.next >= first, "the child did not start: {output:?}");
        first = status.next + 1;
    }
    report
}

/// What a child tells through a file in its folder, so that it survives the child's death.
#[derive(Debug, Default)]
struct Status {
    /// The file in work, or the end.
    next: u64,
    accepted: u64,
    growth_kb: u64,
    timed_out: bool,
    failures: Vec<String>,
}

impl Status {
    fn path(folder: &Path) -> PathBuf {
        folder.join("status")
    }

    fn write(&self, folder: &Path) {
        let Self { next, accepted, growth_kb, timed_out, failures } = self;
        let mut text = format!("{next} {accepted} {growth_kb} {timed_out}\n");
        for failure in failures {
            writeln!(text, "{}", failure.replace('\n', " ")).unwrap();
        }
        std::fs::write(Self::path(folder), text).unwrap();
    }

    fn read(folder: &Path) -> Self {
        let text = std::fs::read_to_string(Self::path(folder)).unwrap();
        let mut lines = text.lines();
        let fields: Vec<&str> = lines.next().unwrap().split(' ').collect();
        Self {
            next: fields[0].parse().unwrap(),
            accepted: fields[1].parse().unwrap(),
            growth_kb: fields[2].parse().unwrap(),
            timed_out: fields[3] == "true",
            failures: lines.map(String::from).collect(),
        }
    }
}

/// The body of a child process; it does nothing in a plain test run.
#[test]
fn child() {
    let Ok(job) = std::env::var(CHILD) else { return };
    let fields: Vec<&str> = job.splitn(4, ' ').collect();
    let (target, first, end) =
        (fields[0], fields[1].parse::<u64>().unwrap(), fields[2].parse::<u64>().unwrap());
    let folder = Path::new(fields[3]);
    limit_address_space();
    // Once without mutation, so that threads, caches and tables count as the baseline.
    the_files_are_valid_before_they_are_mutated();
    let baseline_kb = reset_peak();

    static STATUS: Mutex<Option<(Instant, Status)>> = Mutex::new(None);
    static LAST_PANIC: Mutex<String> = Mutex::new(String::new());
    std::panic::set_hook(Box::new(|info| {
        *LAST_PANIC.lock().unwrap() = info.to_string();
    }));
    *STATUS.lock().unwrap() = Some((Instant::now(), Status { next: first, ..Status::default() }));
    let watched = folder.to_path_buf();
    let name = target.to_owned();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let mut guard = STATUS.lock().unwrap();
            if let Some((started, status)) = guard.as_mut()
                && started.elapsed() > Duration::from_secs(SECONDS_PER_FILE)
            {
                status.timed_out = true;
                let failure =
                    format!("{name} file {} took longer than {SECONDS_PER_FILE} s", status.next);
                status.failures.push(failure);
                status.write(&watched);
                std::process::abort();
            }
        }
    });
    for index in first..end {
        if let Some((started, status)) = STATUS.lock().unwrap().as_mut() {
            *started = Instant::now();
            status.next = index;
            status.write(folder);
        }
        let result = catch_unwind(AssertUnwindSafe(|| case(target, index, folder)));
        if let Some((_, status)) = STATUS.lock().unwrap().as_mut() {
            match result {
                Ok(accepted) => status.accepted += u64::from(accepted),
                Err(_) => {
                    let message = LAST_PANIC.lock().unwrap();
                    status.failures.push(format!("{target} file {index} panicked: {message}"));
                }
            }
        }
    }
    if let Some((_, mut status)) = STATUS.lock().unwrap().take() {
        status.next = end;
        status.growth_kb = memory_kb("VmHWM").saturating_sub(baseline_kb);
        status.write(folder);
    }
}

#[allow(unsafe_code)]
fn limit_address_space() {
    let limit = libc::rlimit { rlim_cur: ADDRESS_SPACE, rlim_max: ADDRESS_SPACE };
    // SAFETY: `limit` is a valid rlimit for the whole call, which reads it and keeps no pointer.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) };
    assert_eq!(result, 0, "setrlimit failed");
}

/// Sets the peak of resident memory back to its present value, which it returns.
fn reset_peak() -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    memory_kb("VmRSS")
}

fn memory_kb(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
