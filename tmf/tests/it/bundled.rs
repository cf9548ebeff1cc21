//! Trained weights that come with the crate.

use std::path::Path;

use candle_core::{Device, Tensor};
use common::assets::Assets;
use common::cli::Profile;
use common::testing::asset_or_skip;
use common::weights::Safetensors;
use ndarray::Array2;
use tmf::bench::{Context, bundled};
use tmf::bundle::{self, Piece};
use tmf::config::Config;
use tmf::data::movielens;
use tmf::train::Record;

/// Whoever changes a default, the data or a training must run
/// `cargo run --release -p tmf --example bundle` again.
#[test]
fn the_default_benchmark_trains_none_of_its_main_models() {
    if asset_or_skip("ml-100k", "ml-100k.inter").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (config, cache) = (Config::cpu(), folder.path().join("cache"));
    let assets = Assets::from_env();
    let context = Context::new(assets, Profile::Cpu, &[0, 1, 2], &cache, folder.path(), 1).unwrap();
    let data = movielens::load(&context.assets, false).unwrap();
    // MiniLM's width; the values are not part of the name
    let items = data.items.len();
    let text = (Array2::from_shape_fn((items, 384), |(i, j)| (i * j) as f32), vec![true; items]);
    let (prepared, graph) = bundled::prepared(data, text, &config, &context).unwrap();
    assert_eq!(graph.items.dim(), (items, config.graph.width));
    assert!(!cache.exists(), "the graph embeddings were trained");
    let ids = bundled::ids(&prepared, &config, &context);
    for id in &ids {
        let (tensors, (warm_up, fusion)) =
            bundle::find::<(Vec<Record>, Vec<Record>)>(id).unwrap().expect(id);
        assert!(tensors.keys().any(|name| name == "added.items.weight"), "{:?}", tensors.keys());
        let last = |records: &[Record]| records.last().unwrap().step;
        assert_eq!(last(&warm_up), config.train.warm_up.steps);
        assert_eq!(last(&fusion), config.train.fusion.steps);
    }
    let mut other = config.clone();
    other.train.dropout = 0.25;
    let ids = bundled::ids(&prepared, &other, &context);
    assert!(bundle::find::<(Vec<Record>, Vec<Record>)>(&ids[0]).unwrap().is_none());
}

#[test]
fn the_crates_files_are_small() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights");
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        assert!(entry.metadata().unwrap().len() <= 5_000_000, "{entry:?}");
    }
}

#[test]
fn pieces_are_written_as_they_are_and_none_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let piece = |id: &str, count: usize| {
        let tensor = Tensor::arange(0f32, count as f32, &Device::Cpu).unwrap();
        Piece::new(id.into(), [("w".to_owned(), tensor)].into(), ["a"]).unwrap()
    };
    bundle::write(folder.path(), vec![piece("x", 1_000_000), piece("y", 1_000_000)]).unwrap();
    for (file, id) in [("1", "x"), ("2", "y")] {
        let file = Safetensors::open(&folder.path().join(format!("{file}.safetensors"))).unwrap();
        let tensor = file.tensor(&format!("{id}/w")).unwrap().to_tensor().unwrap();
        assert_eq!(tensor.dims(), [1_000_000]);
        assert_eq!(file.metadata().unwrap()["histories"], format!("{{\"{id}\":\"[\\\"a\\\"]\"}}"));
    }
    let error = bundle::write(folder.path(), vec![piece("z", 2_000_000)]).unwrap_err();
    assert!(error.to_string().contains("does not fit"), "{error}");
}
