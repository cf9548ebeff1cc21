//! Checkpoints: byte-equal resume, fallback, retention, and a killed trainer.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use candle_core::Tensor;
use clap::Parser;
use common::checkpoint::Checkpoints;
use common::cli::CommonArgs;
use common::nn::{Builder, Init, Parameters};
use common::ops;
use common::optim::{AdamW, AdamWOptions, Gradients};
use common::rng::{Seed, Stream};
use common::run::check_interrupt;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct State {
    batches: Stream,
    optimiser_step: u64,
}

const STEPS: u64 = 60;

/// Trains a linear map on random batches from wherever the folder stands, with a checkpoint after
/// every `every` steps and on a signal, and returns the final weights' bytes.
fn try_train(folder: &Path, until: u64, every: u64) -> common::Result<Vec<u32>> {
    let mut builder = Builder::seeded(Seed::new(1));
    let weight = builder.tensor("weight", (8, 16), Init::fan_in(16))?;
    let parameters = builder.finish();
    let mut optimiser = AdamW::new(&parameters, AdamWOptions::default());
    let mut batches = Seed::new(1).stream("batches");
    let checkpoints = Checkpoints::open(folder)?;
    let mut step = 0;
    if let Some(found) = checkpoints.latest::<State>()? {
        parameters.load(&found.tensors)?;
        optimiser.load_state(found.state.optimiser_step, &found.tensors)?;
        (batches, step) = (found.state.batches, found.step);
    }
    while step < until {
        let stop = check_interrupt();
        if stop.is_ok() {
            let x = batches.normal_tensor((4, 16), 1.0)?;
            let y = batches.normal_tensor((4, 8), 1.0)?;
            let loss = ops::mean_squared_error(&ops::linear(&x, &weight, None)?, &y)?;
            optimiser.step(&Gradients::of(&loss, &parameters)?, 0.01)?;
            step += 1;
        }
        if stop.is_err() || step.is_multiple_of(every) || step == until {
            let mut tensors = parameters.tensors();
            tensors.extend(optimiser.state()?);
            let state = State { batches: batches.clone(), optimiser_step: optimiser.step_count() };
            checkpoints.save(step, &tensors, &state, None)?;
        }
        stop?;
    }
    Ok(bits(&parameters))
}

fn train(folder: &Path, until: u64) -> Vec<u32> {
    try_train(folder, until, 1).unwrap()
}

fn bits(parameters: &Parameters) -> Vec<u32> {
    parameters
        .iter()
        .flat_map(|(_, var)| var.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        .map(f32::to_bits)
        .collect()
}

fn tensors(value: f32) -> BTreeMap<String, Tensor> {
    let tensor = Tensor::full(value, (3, 5), &candle_core::Device::Cpu).unwrap();
    BTreeMap::from([("a".to_owned(), tensor.clone()), ("b".to_owned(), tensor)])
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn a_resumed_run_ends_with_the_same_bytes() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = train(whole.path(), STEPS);
    train(parts.path(), 7);
    train(parts.path(), 41);
    assert_eq!(train(parts.path(), STEPS), expected);
    let bytes =
        |folder: &Path| fs::read(folder.join("step-0000000060/tensors.safetensors")).unwrap();
    assert_eq!(bytes(whole.path()), bytes(parts.path()));
}

#[derive(clap::Parser)]
struct Flags {
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs as a child of the next tests only, as a program would: signals are caught, and the exit code
/// is the error's.
#[test]
#[ignore = "the child process of other tests"]
#[allow(clippy::exit)]
fn trainer() {
    let folder = std::env::var("CHECKPOINT_TEST_FOLDER").unwrap();
    let number = |name: &str| std::env::var(name).unwrap().parse().unwrap();
    let (until, every) = (number("CHECKPOINT_TEST_STEPS"), number("CHECKPOINT_TEST_EVERY"));
    common::cli::init(&Flags::parse_from(["trainer", "--quiet"]).common).unwrap();
    fs::write(Path::new(&folder).join("started"), "").unwrap();
    if let Err(error) = try_train(Path::new(&folder), until, every) {
        std::process::exit(error.exit_code().into());
    }
}

/// The program `program` with the child's arguments.
fn trainer_command(program: &mut Command, folder: &Path, until: u64, every: u64) -> Child {
    program
        .args(["--exact", "--ignored", "checkpoint::trainer"])
        .env("CHECKPOINT_TEST_FOLDER", folder)
        .env("CHECKPOINT_TEST_STEPS", until.to_string())
        .env("CHECKPOINT_TEST_EVERY", every.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn spawn_trainer(folder: &Path, until: u64, every: u64) -> Child {
    trainer_command(&mut Command::new(std::env::current_exe().unwrap()), folder, until, every)
}

#[test]
fn a_signal_ends_a_training_with_a_checkpoint() {
    for (signal, code) in [("-TERM", 143), ("-INT", 130)] {
        let folder = tempfile::tempdir().unwrap();
        // no end, and no checkpoint of its own after the first
        train(folder.path(), 1);
        let mut child = spawn_trainer(folder.path(), u64::MAX, u64::MAX);
        while !folder.path().join("started").exists() {
            assert!(child.try_wait().unwrap().is_none(), "the child ended before it was asked to");
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(500));
        let pid = child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        let sent = Instant::now();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}");
        assert!(sent.elapsed() < Duration::from_secs(5), "{signal}: {:?}", sent.elapsed());
        let step = Checkpoints::open(folder.path()).unwrap().steps().unwrap().pop().unwrap();
        assert!(step > 1, "no step was kept");
        // it goes on from there as if nothing had been
        let whole = tempfile::tempdir().unwrap();
        let expected = try_train(whole.path(), step + 3, u64::MAX).unwrap();
        assert_eq!(train(folder.path(), step + 3), expected);
    }
}

/// A limit of the file size stands for a full disk: both fail a write halfway.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_ends_a_training_and_leaves_the_last_checkpoint() {
    let whole = tempfile::tempdir().unwrap();
    let expected = train(whole.path(), STEPS);
    let folder = tempfile::tempdir().unwrap();
    for (at, blocks) in [0, 1].into_iter().enumerate() {
        let before = 5 + at as u64;
        train(folder.path(), before);
        let mut shell = Command::new("sh");
        // without the trap the signal of the limit would end the process before the error is seen
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        shell.arg("-c").arg(script).arg(std::env::current_exe().unwrap());
        let mut child = trainer_command(&mut shell, folder.path(), STEPS, 1);
        assert_eq!(child.wait().unwrap().code(), Some(6), "{blocks} blocks");
        for file in files(folder.path()) {
            let name = file.file_name().unwrap().to_string_lossy();
            assert!(name.starts_with("step-") || name == "started", "{name} is left behind");
        }
        let found = Checkpoints::open(folder.path()).unwrap().latest::<State>().unwrap().unwrap();
        assert_eq!((found.step, found.skipped.len()), (before, 0));
    }
    assert_eq!(train(folder.path(), STEPS), expected);
}

#[test]
fn a_killed_trainer_resumes() {
    let (whole, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = train(whole.path(), STEPS);
    let mut wait = Seed::new(9).stream("kill");
    let mut kills = 0;
    for _ in 0..20 {
        let mut child = spawn_trainer(killed.path(), STEPS, 1);
        std::thread::sleep(Duration::from_millis(5 + wait.below(40) as u64));
        kills += u32::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(kills > 0, "every child ended before it was killed");
    assert_eq!(train(killed.path(), STEPS), expected);
    assert!(files(killed.path()).iter().all(|file| !file.ends_with("unfinished")));
}

#[test]
fn a_truncated_checkpoint_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path()).unwrap();
    checkpoints.save(1, &tensors(1.0), &1, None).unwrap();
    let newest = checkpoints.save(2, &tensors(2.0), &2, None).unwrap();
    for file in ["tensors.safetensors", "state.json", "manifest.json"] {
        let path = newest.join(file);
        let whole = fs::read(&path).unwrap();
        for length in (0..whole.len()).step_by(7) {
            fs::write(&path, &whole[..length]).unwrap();
            let found = checkpoints.latest::<i32>().unwrap().unwrap();
            assert_eq!((found.step, found.state), (1, 1), "{file} cut to {length}");
            assert_eq!(found.skipped.len(), 1);
        }
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        fs::write(&path, &flipped).unwrap();
        assert_eq!(checkpoints.latest::<i32>().unwrap().unwrap().step, 1, "{file} flipped");
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(checkpoints.latest::<i32>().unwrap().unwrap().step, 2);
}

#[test]
fn damage_everywhere_is_an_error_and_emptiness_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path()).unwrap();
    assert!(checkpoints.latest::<i32>().unwrap().is_none());
    let only = checkpoints.save(3, &tensors(0.0), &(), None).unwrap();
    fs::write(only.join("state.json"), "").unwrap();
    let error = checkpoints.latest::<()>().unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert!(error.to_string().contains("no checkpoint is whole"), "{error}");
}

#[test]
fn the_last_two_and_the_best_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path()).unwrap();
    for (step, score) in [(1, 0.2), (2, 0.9), (3, 0.1), (4, 0.8), (5, 0.3), (6, 0.3)] {
        checkpoints.save(step, &tensors(step as f32), &step, Some(score)).unwrap();
    }
    assert_eq!(checkpoints.steps().unwrap(), [2, 5, 6]);
    assert_eq!(checkpoints.best::<u64>().unwrap().unwrap().state, 2);
    // what is not a checkpoint is left alone
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    fs::create_dir(folder.path().join(".unfinished-step-0000000009")).unwrap();
    let again = Checkpoints::open(folder.path()).unwrap();
    assert!(folder.path().join("notes.txt").exists());
    assert_eq!(files(folder.path()).len(), 5);
    assert_eq!(again.latest::<u64>().unwrap().unwrap().step, 6);
}

#[test]
fn a_folder_that_cannot_be_written_is_an_io_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(Checkpoints::open(&file.join("below")).unwrap_err().exit_code(), 6);
}
