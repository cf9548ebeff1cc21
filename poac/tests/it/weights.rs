//! Trained pieces that come with the crate.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use candle_core::{Device, Tensor};
use common::assets::Assets;
use common::checkpoint::Outcome;
use common::rng::Seed;
use common::testing::asset_or_skip;
use common::weights::Safetensors;
use poac::config::Config;
use poac::store::{Store, write};
use poac::studio::{Base, Tuning};

use crate::toy::values;

#[test]
fn a_training_gives_what_its_file_holds() {
    let folder = tempfile::tempdir().unwrap();
    let weights = [0.1f32, -3.3, 1e-3];
    let train = || {
        let tensor = Tensor::new(&weights, &Device::Cpu).unwrap();
        Ok((BTreeMap::from([("w".to_owned(), tensor)]), vec![0.5]))
    };
    let store = Store::new(folder.path(), true);
    let (first, _) = store.get("piece", &1, |_| train()).unwrap();
    let (again, history) =
        store.get("piece", &1, |_| -> common::Result<Outcome<Vec<f64>>> { panic!() }).unwrap();
    assert_eq!(history, [0.5]);
    let pieces = store.taken();
    assert_eq!(pieces.len(), 2);
    write(&folder.path().join("files"), pieces).unwrap();
    let file = Safetensors::open(&folder.path().join("files/1.safetensors")).unwrap();
    let name = file.tensor_names().next().unwrap();
    assert_eq!((file.tensor_names().len(), name.ends_with("/w")), (1, true), "{name}");
    let kept = values(&file.tensor(name).unwrap().to_tensor().unwrap());
    assert_eq!(values(&first["w"]), kept);
    assert_eq!(values(&again["w"]), kept);
    // rounded to f16
    assert!(kept != weights && (kept[0] - weights[0]).abs() < 1e-4);
}

#[test]
fn the_crates_files_are_small() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights");
    let sizes: Vec<u64> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .collect();
    assert!(sizes.iter().all(|&size| size <= 5_000_000), "{sizes:?}");
    assert!(sizes.iter().sum::<u64>() <= 15_000_000, "{sizes:?}");
}

/// Whoever changes a default, the data or a training must run
/// `poac fit --seeds 3 --bundle poac/weights` again.
#[test]
fn the_default_config_needs_no_training() {
    for (asset, file) in [("noto-emoji", "icons.json"), ("emoji-keywords", "emojilib.json")] {
        if asset_or_skip(asset, file).is_none() {
            return;
        }
    }
    let seed = Seed::new(0);
    let base = Base::new(&Config::cpu(), &Assets::from_env(), seed).unwrap();
    base.plm(seed, false).unwrap();
    let models = base.image_models(seed).unwrap();
    base.tuned(&models, Tuning::Reward, seed).unwrap();
    assert!(base.into_pieces().is_empty());
}

/// The trainings of the whole world, killed as a crash would and started again.
#[cfg(unix)]
#[test]
fn a_killed_fit_of_the_world_continues_to_the_same_bytes() {
    for (asset, file) in [
        ("noto-emoji", "icons.json"),
        ("emoji-keywords", "emojilib.json"),
        ("all-minilm-l6-v2", "model.safetensors"),
    ] {
        if asset_or_skip(asset, file).is_none() {
            return;
        }
    }
    let shared = Assets::from_env().options().cache.clone();
    // a cache with the assets and nothing trained
    let cache_of = |work: &Path| {
        let cache = work.join("cache");
        std::fs::create_dir_all(&cache).unwrap();
        for entry in std::fs::read_dir(&shared).unwrap().flatten() {
            if entry.file_name() != "trained" {
                std::os::unix::fs::symlink(entry.path(), cache.join(entry.file_name())).unwrap();
            }
        }
        cache
    };
    let fit = |work: &Path, cache: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_poac"));
        command.args(["fit", "--profile", "smoke", "--bundle", "files"]);
        for set in [
            "world.objects=80",
            "plm.pace.batch=2",
            "scorer.pace.steps=60",
            "scorer.pace.batch=4",
            "scorer.quality_pictures=64",
            "diffusion.pace.batch=2",
            "refl.batch=2",
        ] {
            command.args(["--set", set]);
        }
        command.current_dir(work).env("SEPTET_CACHE", cache);
        command
    };
    let files = |work: &Path| -> Vec<Vec<u8>> {
        (1..=3)
            .map(|at| std::fs::read(work.join(format!("files/{at}.safetensors"))).unwrap())
            .collect()
    };
    let whole = tempfile::tempdir().unwrap();
    assert!(fit(whole.path(), &cache_of(whole.path())).output().unwrap().status.success());
    let expected = files(whole.path());
    assert!(expected[0].len() > 10_000);
    let parts = tempfile::tempdir().unwrap();
    let cache = cache_of(parts.path());
    let saved = || checkpoints(&cache.join("trained"));
    let mut killed = 0;
    for wanted in [1, 4, 9] {
        let mut child = fit(parts.path(), &cache).spawn().unwrap();
        while saved() < wanted && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(killed >= 2, "the fit ended before it could be killed");
    assert!(fit(parts.path(), &cache).output().unwrap().status.success());
    assert!(files(parts.path()) == expected, "other bytes after {killed} kills");
}

/// Folders of checkpoints, finished or not.
fn checkpoints(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let count = |entry: std::fs::DirEntry| {
        let own = entry.file_name().to_string_lossy().starts_with("step-");
        usize::from(own) + if entry.path().is_dir() { checkpoints(&entry.path()) } else { 0 }
    };
    entries.map(count).sum()
}
