//! Stable Diffusion folders: reward feedback learning, its gradients, and the verbs. The tiny folders
//! are `common`'s goldens (`make_folders.py` makes others).

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use common::assets::Assets;
use common::nn::{LoraOptions, Parameters};
use common::optim::Gradients;
use common::rng::Seed;
use common::stable_diffusion::{Clip, StableDiffusion};
use common::testing::golden_tensors;
use common::testing::gradients::assert_all_grads;
use poac::image_reward::ImageReward;
use poac::train::refl::ReflOptions;
use poac::train::stable::{Judge, Wish, Wishes, refl_loss};

use crate::toy::{scalar, values};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../common/tests/golden/diffusion").join(name)
}

fn wishes() -> Vec<Wish> {
    ["two white doves", "an old man with wisdom"]
        .map(|text| Wish {
            original: text.into(),
            told: format!("{text} and a branch"),
            picture: None,
        })
        .to_vec()
}

fn options() -> ReflOptions {
    ReflOptions {
        inference_steps: 3,
        first_step: 1,
        backprop_steps: 2,
        lambda: 1.0,
        ..ReflOptions::default()
    }
}

/// A folder's model with adapters as they are after a step: B is not zero any more.
fn adapted(name: &str) -> (StableDiffusion, Judge, Parameters) {
    let open = |name: &str| folder(name).to_str().unwrap().to_owned();
    let mut model = StableDiffusion::open(&open(name), &Assets::from_env()).unwrap();
    let clip = Clip::open(&open("clip_folder"), &Assets::from_env()).unwrap();
    let judge = Judge::Clip(Box::new(clip));
    let lora = LoraOptions {
        rank: 2,
        alpha: 2.0,
        targets: ["to_q", "to_k", "to_v", "to_out.0"].map(str::to_owned).to_vec(),
    };
    let adapters = model.unet.attach_lora(&lora, Seed::new(6)).unwrap();
    let tensors: BTreeMap<String, Tensor> = adapters
        .iter()
        .map(|(name, var)| {
            let mut stream = Seed::new(7).stream(name);
            (name.to_owned(), stream.normal_tensor(var.shape().clone(), 0.3).unwrap())
        })
        .collect();
    adapters.load(&tensors).unwrap();
    (model, judge, adapters)
}

#[test]
fn a_reward_step_reaches_every_adapter_and_agrees_with_finite_differences() {
    for name in ["sd_folder", "sdxl_folder"] {
        let (model, judge, adapters) = adapted(name);
        let size = model.size();
        let wishes = Wishes::new(&model, &judge, &wishes(), size, 2, Seed::new(1)).unwrap();
        assert_eq!(wishes.len(), 2);
        let loss = || {
            let mut stream = Seed::new(9).stream("step");
            refl_loss(&model, &judge, &wishes, &[0, 1], &options(), true, &mut stream).unwrap()
        };
        let whole = loss();
        assert_all_grads(&whole, &adapters);
        let gradients = Gradients::of(&whole, &adapters).unwrap();
        let named: Vec<_> = adapters.iter().zip(gradients.tensors()).collect();
        let mut stream = Seed::new(11).stream("weights");
        let mut checked = 0;
        while checked < 5 {
            let ((name, var), gradient) = named[stream.below(named.len())];
            let gradient = values(gradient);
            let at = stream.below(gradient.len());
            if gradient[at].abs() < 1e-3 {
                continue;
            }
            let before = values(var.as_tensor());
            let moved = |by: f32| {
                let mut after = before.clone();
                after[at] += by;
                let set = |v: Vec<f32>| var.set(&Tensor::from_vec(v, var.shape(), &Device::Cpu)?);
                set(after).unwrap();
                let value = f64::from(scalar(&loss()));
                set(before.clone()).unwrap();
                value
            };
            let step = 1e-2f32;
            let slope = (moved(step) - moved(-step)) / f64::from(2.0 * step);
            let found = f64::from(gradient[at]);
            let tolerance = 0.05 * found.abs() + 3e-4;
            assert!((slope - found).abs() < tolerance, "{name}[{at}]: {found} against {slope}");
            checked += 1;
        }
        // a constant reward leaves the pre-training loss alone
        let constant = |seed: u64| {
            let mut stream = Seed::new(seed).stream("step");
            refl_loss(&model, &judge, &wishes, &[0, 1], &options(), false, &mut stream).unwrap()
        };
        let other = ReflOptions { lambda: 100.0, ..options() };
        let mut stream = Seed::new(9).stream("step");
        let again =
            refl_loss(&model, &judge, &wishes, &[0, 1], &other, false, &mut stream).unwrap();
        assert_eq!(scalar(&constant(9)), scalar(&again));
        assert!(Wishes::new(&model, &judge, &[], size, 2, Seed::new(1)).is_err());
        // ImageReward in CLIP's place
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/image_reward");
        let judge = ImageReward::open(own.to_str().unwrap(), &Assets::from_env()).unwrap();
        let judge = Judge::ImageReward(Box::new(judge));
        let wishes = Wishes::new(&model, &judge, &self::wishes(), size, 2, Seed::new(1)).unwrap();
        assert_eq!((wishes.standard.mean, wishes.standard.sd), (0.0, 1.0));
        let mut stream = Seed::new(9).stream("step");
        let loss = refl_loss(&model, &judge, &wishes, &[0, 1], &options(), true, &mut stream);
        assert_all_grads(&loss.unwrap(), &adapters);
    }
}

fn poac(work: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_poac"));
    command.args(args).current_dir(work).env("SEPTET_CACHE", work.join("cache"));
    command
}

fn succeeds(output: Output) -> String {
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{message}");
    String::from_utf8(output.stdout).unwrap()
}

const FIT: [&str; 12] = [
    "--set",
    "refl.stages=[{steps=160}]",
    "--set",
    "refl.inference_steps=2",
    "--set",
    "refl.first_step=1",
    "--set",
    "refl.batch=2",
    "--set",
    "refl.rank=2",
    "--set",
    "refl.lr=0.01",
];

fn fit_args(adapters: &str) -> Vec<String> {
    let path = |name: &str| folder(name).to_str().unwrap().to_owned();
    let mut all = vec!["fit".to_owned(), "--diffusion".into(), path("sd_folder")];
    all.extend(["--clip".into(), path("clip_folder"), "--prompts".into(), "prompts.csv".into()]);
    all.extend(["--adapters".into(), adapters.into()]);
    all.extend(FIT.map(str::to_owned));
    all
}

/// The card's own-data example.
fn prompts(work: &Path) {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("sample/prompts.csv");
    std::fs::copy(sample, work.join("prompts.csv")).unwrap();
}

#[test]
fn a_killed_fit_continues_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path();
    prompts(work);
    let fit = |adapters: &str| {
        let args = fit_args(adapters);
        poac(work, &args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    std::fs::create_dir_all(work.join("whole")).unwrap();
    succeeds(fit("whole/a.safetensors").output().unwrap());
    let expected = std::fs::read(work.join("whole/a.safetensors")).unwrap();
    std::fs::create_dir_all(work.join("parts")).unwrap();
    // before the first checkpoint, after it, after the second
    for checkpoints in 0..3 {
        let mut child = fit("parts/a.safetensors").spawn().unwrap();
        let start = Instant::now();
        let saved = || {
            let Ok(entries) = std::fs::read_dir(work.join("parts")) else { return 0 };
            let folders = entries.flatten().filter(|entry| entry.path().is_dir());
            folders
                .map(|entry| {
                    std::fs::read_dir(entry.path().join("stable")).map_or(0, Iterator::count)
                })
                .sum::<usize>()
        };
        while saved() < checkpoints && child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < Duration::from_secs(300), "no checkpoint");
            std::thread::sleep(Duration::from_millis(20));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    succeeds(fit("parts/a.safetensors").output().unwrap());
    assert_eq!(std::fs::read(work.join("parts/a.safetensors")).unwrap(), expected);
    let left = std::fs::read_dir(work.join("parts")).unwrap().count();
    assert_eq!(left, 1, "checkpoints were left behind");

    // the adapters change what is drawn, and diffusers' names are in the file
    let adapters = golden_tensors(&work.join("whole/a.safetensors"));
    assert!(adapters.keys().all(|name| name.starts_with("unet.") && name.contains(".lora_")));
    let model = self::folder("sd_folder");
    let model = model.to_str().unwrap();
    let draw = |more: &[&str]| {
        let common = ["generate", "two <b>white</b> doves", "--diffusion", model, "--steps", "3"];
        let args = [&common[..], &["--count", "2", "--json"], more].concat();
        let text = succeeds(poac(work, &args).output().unwrap());
        assert!(text.contains("two <b>white</b> doves"), "{text}");
        std::fs::read(work.join("pictures/000001.png")).unwrap()
    };
    let plain = draw(&[]);
    assert_eq!(draw(&[]), plain);
    assert_ne!(draw(&["--adapters", "whole/a.safetensors"]), plain);
    let notes = poac::png::texts(&plain).unwrap();
    assert!(notes.contains(&("seed".into(), "1".into())), "{notes:?}");
    assert!(notes.contains(&("prompt".into(), "two <b>white</b> doves".into())), "{notes:?}");
}

#[test]
fn wrong_models_and_tables_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path();
    prompts(work);
    let fails = |args: &[&str], code: i32, piece: &str| {
        let output = poac(work, args).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert!(message.contains(piece), "no {piece:?} in {message}");
    };
    let model = self::folder("sd_folder");
    let model = model.to_str().unwrap();
    let clip = self::folder("clip_folder");
    let clip = clip.to_str().unwrap();
    fails(&["generate", "x", "--diffusion", "nowhere"], 2, "no model folder nowhere");
    fails(&["generate", "x", "--diffusion", clip], 4, "model_index.json");
    fails(&["generate", "x", "--diffusion", model, "--size", "17"], 2, "17 pixels");
    fails(&["generate", "x", "--diffusion", model, "--steps", "0"], 2, "0 sampling steps");
    fails(&["generate", "x", "--diffusion", model, "--adapters", "none"], 6, "none");
    std::fs::write(work.join("spoilt.safetensors"), [7u8; 64]).unwrap();
    let spoilt = ["generate", "x", "--diffusion", model, "--adapters", "spoilt.safetensors"];
    fails(&spoilt, 4, "spoilt.safetensors");
    fails(&["generate", "x", "--endpoint", "gguf:a"], 2, "draws no pictures");
    fails(&["fit", "--diffusion", model, "--prompts", "prompts.csv"], 2, "--clip");
    let fit = |table: &'static str| {
        ["fit", "--diffusion", model, "--clip", clip, "--prompts", table].map(str::to_owned)
    };
    std::fs::write(work.join("empty.csv"), "prompt\n").unwrap();
    std::fs::write(work.join("long.csv"), format!("prompt\n{}\n", "x".repeat(10_000))).unwrap();
    std::fs::write(work.join("image.csv"), "prompt,image\nx,broken.png\n").unwrap();
    std::fs::write(work.join("broken.png"), "no picture").unwrap();
    for (table, code, piece) in [
        ("absent.csv", 6, "absent.csv"),
        ("empty.csv", 3, "empty.csv: found a table without rows"),
        ("long.csv", 3, "at most 2000"),
        ("image.csv", 3, "broken.png"),
    ] {
        let args = fit(table);
        fails(&args.each_ref().map(String::as_str), code, piece);
    }
}

#[test]
fn an_endpoint_draws() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let picture = poac::png::png(
        &Tensor::zeros((3, 4, 4), candle_core::DType::F32, &Device::Cpu).unwrap(),
        &[],
    )
    .unwrap();
    let sent = picture.clone();
    let server = std::thread::spawn(move || {
        let mut bodies = Vec::new();
        for reply in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
            let body = loop {
                let count = stream.read(&mut part).unwrap();
                bytes.extend_from_slice(&part[..count]);
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head.to_lowercase();
                let length = length.split("content-length: ").nth(1).unwrap();
                let length: usize = length.lines().next().unwrap().trim().parse().unwrap();
                if body.len() >= length {
                    break format!("{}\n{body}", head.lines().next().unwrap());
                }
            };
            bodies.push(body);
            use base64::Engine as _;
            let code = base64::engine::general_purpose::STANDARD.encode(&sent);
            // busy at first, then two pictures
            let (status, body) = match reply {
                0 => ("503 Busy", "{}".to_owned()),
                _ => (
                    "200 OK",
                    format!(
                        "{{\"data\":[{{\"b64_json\":\"{code}\"}},{{\"b64_json\":\"{code}\"}}]}}"
                    ),
                ),
            };
            let text = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(text.as_bytes()).unwrap();
        }
        bodies
    });
    let folder = tempfile::tempdir().unwrap();
    let spec = format!("openai:http://{address}/v1#painter");
    let args = ["generate", "two doves", "--endpoint", &spec, "--count", "2", "--size", "64"];
    succeeds(poac(folder.path(), &args).output().unwrap());
    assert_eq!(std::fs::read(folder.path().join("pictures/000001.png")).unwrap(), picture);
    let bodies = server.join().unwrap();
    assert!(bodies[1].starts_with("POST /v1/images/generations"), "{}", bodies[1]);
    assert!(bodies[1].contains("\"size\":\"64x64\"") && bodies[1].contains("two doves"));
}
