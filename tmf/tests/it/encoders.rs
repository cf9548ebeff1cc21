//! Frozen encoders: EfficientNet-Lite0 against PyTorch and ONNX Runtime, the reader of its old
//! file format, LightGCN, and pictures that are not what they should be.

use candle_core::Tensor;
use common::rng::Seed;
use common::testing::{assert_close, asset_or_skip, golden, golden_json, golden_tensors};
use ndarray::Array2;
use tmf::data::{Dataset, Item, Step};
use tmf::encoders::efficientnet::{EfficientNetLite0, input};
use tmf::encoders::graph::{LightGcnOptions, light_gcn, standardise};
use tmf::encoders::image::Picture;
use tmf::encoders::mbht::{Mbht, MbhtOptions, hyperedges, propagation};
use tmf::encoders::{legacy_torch, seeded};

const WEIGHTS: &str = "efficientnet-lite0-57934424.pth";

/// The three pictures of the golden script, by the same integer formulas.
fn pictures() -> Vec<Picture> {
    let draw = |colour: &dyn Fn(i64, i64) -> [i64; 3]| {
        let mut rgb = Vec::new();
        for y in 0..224 {
            for x in 0..224 {
                rgb.extend(colour(x, y).map(|v| v as u8));
            }
        }
        Picture::new(224, 224, rgb).unwrap()
    };
    vec![
        draw(&|x, y| [x * 255 / 223, y * 255 / 223, (x + y) * 255 / 446]),
        draw(&|x, y| {
            let board = (x / 28 + y / 28) % 2;
            [30 + 200 * board, 60 + 120 * board + x / 8, 220 - 160 * board - y / 8]
        }),
        draw(&|x, y| {
            if (x - 112).pow(2) + (y - 96).pow(2) < 3600 {
                [225 - y / 4, 40 + x / 4, 30]
            } else {
                [30, 90 + y / 4, 200 - x / 4]
            }
        }),
    ]
}

#[test]
fn efficientnet_equals_pytorch_and_onnx_runtime() {
    let Some(path) = asset_or_skip("efficientnet-lite0", WEIGHTS) else { return };
    let expected =
        golden_tensors(&golden(env!("CARGO_MANIFEST_DIR"), "efficientnet/outputs.safetensors"));
    let facts: serde_json::Value =
        golden_json(&golden(env!("CARGO_MANIFEST_DIR"), "efficientnet/expected.json"));
    let encoder = EfficientNetLite0::read(&path).unwrap();
    for (at, picture) in pictures().iter().enumerate() {
        let features = encoder.features(&input(picture).unwrap()).unwrap();
        let logits = encoder.logits(&features).unwrap();
        let row = |name: &str| expected[name].narrow(0, at, 1).unwrap();
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_close(&values(&features), &values(&row("features")), 1e-3, 0.0);
        assert_close(&values(&logits), &values(&row("logits")), 1e-3, 0.0);
        let logits = values(&logits);
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let top: Vec<u64> = facts["top5"][at]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["class"].as_u64().unwrap())
            .collect();
        assert_eq!(order[..5].iter().map(|&c| c as u64).collect::<Vec<_>>(), top);
    }
}

/// A state dict with one tensor, as `torch.save(…, _use_new_zipfile_serialization=False)` writes it.
fn old_file(shape: &[u8], count: i64, stored: usize) -> Vec<u8> {
    let mut bytes =
        vec![0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
    bytes.extend([0x80, 2, b'M', 0xe9, 0x03, b'.']);
    bytes.extend([0x80, 2, b'}', b'.']);
    let text = |value: &str| {
        let mut bytes = vec![b'X'];
        bytes.extend((value.len() as u32).to_le_bytes());
        bytes.extend(value.bytes());
        bytes
    };
    bytes.extend([0x80, 2]);
    bytes.extend(b"ccollections\nOrderedDict\n)R(");
    bytes.extend(text("weight"));
    bytes.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    bytes.extend(text("storage"));
    bytes.extend(b"ctorch\nFloatStorage\n");
    bytes.extend(text("7"));
    bytes.extend(text("cpu"));
    bytes.extend([b'K', 6, b'N', b't', b'Q', b'K', 0, b'(']);
    shape.iter().for_each(|&side| bytes.extend([b'K', side]));
    bytes.extend([b't', b'(', b'K', shape[1], b'K', 1, b't', 0x89]);
    bytes.extend(b"ccollections\nOrderedDict\n)Rt");
    bytes.extend([b'R', b'u', b'.']);
    bytes.extend([0x80, 2, b']', b'(']);
    bytes.extend(text("7"));
    bytes.extend([b'e', b'.']);
    bytes.extend(count.to_le_bytes());
    (0..stored).for_each(|value| bytes.extend((value as f32).to_le_bytes()));
    bytes
}

#[test]
fn old_torch_files_are_read_and_lies_in_them_refused() {
    let good = old_file(&[2, 3], 6, 6);
    let tensors = legacy_torch::parse(&good).unwrap();
    let rows = tensors["weight"].to_vec2::<f32>().unwrap();
    assert_eq!(rows, [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
    let refused = |bytes: &[u8], part: &str| {
        let problem = legacy_torch::parse(bytes).unwrap_err();
        assert!(problem.contains(part), "{problem}");
    };
    refused(&old_file(&[200, 3], 6, 6), "beyond its storage");
    refused(&old_file(&[2, 3], i64::MAX, 6), "too long");
    refused(&old_file(&[2, 3], -1, 6), "-1 elements");
    refused(&old_file(&[2, 3], 6, 5), "ends after");
    refused(b"PK\x03\x04", "no place");
    let mut system = vec![0x80, 2];
    system.extend(b"cos\nsystem\n(X\x02\x00\x00\x00lstR.");
    refused(&system, "it calls os.system");
    let mut deep = vec![0x80, 2, b')'];
    deep.extend(std::iter::repeat_n(0x85, 50_000));
    refused(&deep, "nested too deeply");
    for cut in 0..good.len() {
        assert!(legacy_torch::parse(&good[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let good = old_file(&[2, 3], 6, 6);
    let mut stream = Seed::new(5).stream("flips");
    for _ in 0..4000 {
        let mut bytes = good.clone();
        for _ in 0..=stream.below(3) {
            let at = stream.below(bytes.len());
            bytes[at] = stream.below(256) as u8;
        }
        drop(legacy_torch::parse(&bytes));
    }
}

#[test]
fn damaged_and_huge_pictures_are_data_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let picture = Picture::new(30, 20, vec![90; 1800]).unwrap();
    let png = picture.png().unwrap();
    std::fs::write(&path, &png).unwrap();
    assert_eq!(Picture::read(&path).unwrap(), picture);
    assert_eq!(picture.centre_square(8).width(), 8);
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = Picture::read(&path).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        assert!(error.to_string().contains("a.png"), "{error}");
    };
    refused(&png[..png.len() / 2]);
    refused(b"not a picture");
    let mut lying = png.clone();
    lying[16..20].copy_from_slice(&65_535u32.to_be_bytes());
    refused(&lying);
    refused(&Picture::new(65_535, 1, vec![90; 3 * 65_535]).unwrap().png().unwrap());
    assert_eq!(Picture::read(&folder.path().join("none.png")).unwrap_err().exit_code(), 6);
}

/// Two groups of users with own items; item 9 has no event, item 8 only a link with group one.
fn two_groups() -> Dataset {
    let sequences = (0..20)
        .map(|user| {
            let first = 4 * (user % 2) as u32;
            (0..3)
                .map(|at| Step { item: first + (user as u32 / 2 + at) % 4, behaviour: at % 2 })
                .collect()
        })
        .collect();
    Dataset {
        items: vec![Item::default(); 10],
        users: (0..20).map(|user| user.to_string()).collect(),
        behaviours: vec!["view".into(), "buy".into()],
        sequences,
        links: vec![(0, 0), (1, 0), (8, 0)],
        ..Dataset::default()
    }
}

#[test]
fn light_gcn_separates_groups_and_reaches_items_by_links() {
    let data = two_groups();
    let options = LightGcnOptions { width: 8, steps: 150, batch: 64, ..LightGcnOptions::default() };
    let graph = light_gcn(&data, &data.sequences, &options, Seed::new(1)).unwrap();
    assert_eq!(graph.present[8..], [true, false]);
    for user in 0..20 {
        let scores = graph.scores(user, &[0, 1, 2, 3, 4, 5, 6, 7]);
        let (own, other) = scores.split_at(4);
        let (own, other) = if user % 2 == 0 { (own, other) } else { (other, own) };
        let least = own.iter().copied().fold(f64::MAX, f64::min);
        assert!(other.iter().all(|&score| score < least), "user {user}: {scores:?}");
    }
    assert!((graph.weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    let again = light_gcn(&data, &data.sequences, &options, Seed::new(1)).unwrap();
    assert_eq!(graph, again);
}

#[test]
fn hyperedges_join_similar_items_and_repeated_ones() {
    // items 5, 6, 5, 7, then a mask and padding; similarities of positions
    let ids = [5, 6, 5, 7, 9, 10];
    let row = |values: [f32; 6]| values.to_vec();
    let similarity = vec![
        row([1.0, 0.8, 1.0, -0.5, 0.9, 0.9]),
        row([0.8, 1.0, 0.8, 0.2, 0.9, 0.9]),
        row([1.0, 0.8, 1.0, -0.5, 0.9, 0.9]),
        row([-0.5, 0.2, -0.5, 1.0, 0.9, 0.9]),
        row([0.9; 6]),
        row([0.9; 6]),
    ];
    let edges = hyperedges(&ids, 9, &similarity, 1);
    let members = |rows: &[Vec<f32>], edge: usize| -> Vec<usize> {
        (0..6).filter(|&node| rows[node][edge] > 0.0).collect()
    };
    let similar: Vec<Vec<usize>> = (0..6).map(|edge| members(&edges.similar, edge)).collect();
    assert_eq!(similar, [vec![1], vec![0], vec![1], vec![1], vec![], vec![]]);
    let fixed: Vec<Vec<usize>> = (0..12).map(|edge| members(&edges.fixed, edge)).collect();
    assert_eq!(fixed[..6], [vec![0], vec![1], vec![2], vec![3], vec![], vec![]]);
    // item 5 stands twice: one more hyperedge, at its first position
    assert_eq!(fixed[6], [0, 2]);
    assert!(fixed[7..].iter().all(Vec::is_empty));
    // a negative similarity still joins, with 0.01 (the model takes the maximum)
    let all = hyperedges(&ids, 9, &similarity, 6);
    assert_eq!(members(&all.similar, 3), [0, 1, 2]);
}

#[test]
fn the_propagation_matrix_of_a_hypergraph_by_hand() {
    // two nodes; edge 0 holds both (weights 1 and 0.01), edge 1 the second alone
    let incidence = Tensor::new(&[[[1f32, 0.0], [0.01, 1.0]]], &candle_core::Device::Cpu).unwrap();
    let found = propagation(&incidence).unwrap().to_vec3::<f32>().unwrap();
    let (a, b) = (1.0 / 1.01, 0.01 / 1.01);
    let expected = [a, b, b / 1.01, (0.01 * b + 1.0) / 1.01];
    let found: Vec<f32> = found.into_iter().flatten().flatten().collect();
    assert_close(&found, &expected, 1e-5, 0.0);
}

#[test]
fn mbht_learns_who_follows_whom() {
    let data = two_groups();
    let options = MbhtOptions {
        width: 16,
        layers: 1,
        length: 8,
        scales: [4, 2, 4],
        steps: 120,
        batch: 16,
        learning_rate: 1e-2,
        dropout: 0.0,
        ..MbhtOptions::default()
    };
    let workers = common::optim::Workers::new(2).unwrap();
    let fit = || Mbht::fit(&data.sequences, 10, 2, None, &options, Seed::new(1), &workers).unwrap();
    let model = fit();
    let histories: Vec<&[Step]> = data.sequences.iter().map(|s| &s[..2]).collect();
    for (user, scores) in model.scores(&histories, None).unwrap().iter().enumerate() {
        let best = (0..8).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
        assert_eq!(best / 4, user % 2, "user {user}: {scores:?}");
    }
    let vectors = |model: &Mbht| model.item_vectors().unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(vectors(&model).len(), 10);
    assert_eq!(vectors(&model), vectors(&fit()));
    let none = Mbht::fit(&[vec![]], 10, 2, None, &options, Seed::new(1), &workers).unwrap_err();
    assert_eq!(none.exit_code(), 3);
    let odd = MbhtOptions { length: 9, ..options.clone() };
    assert_eq!(Mbht::new(10, 2, &odd, Seed::new(1)).unwrap_err().exit_code(), 2);
}

#[test]
fn standardised_columns_have_unit_variance_over_what_is_present() {
    let vectors = Array2::from_shape_vec((3, 2), vec![1.0, 5.0, 3.0, 5.0, 99.0, 7.0]).unwrap();
    let found = standardise(&vectors, &[true, true, false]);
    assert_eq!(found.row(0).to_vec(), [-1.0, 0.0]);
    assert_eq!(found.row(1).to_vec(), [1.0, 0.0]);
}

#[test]
fn seeded_encoders_mark_what_is_absent() {
    let (vectors, present) = seeded::texts(&["red cup", "", "Red Cup"], 16, Seed::new(2));
    assert_eq!(present, [true, false, true]);
    assert_eq!(vectors.row(0), vectors.row(2));
    let (_, present) = seeded::images(&[None], 16, Seed::new(2));
    assert_eq!(present, [false]);
    let (_, present) = seeded::links(&[(1, 0)], 2, 16, Seed::new(2));
    assert_eq!(present, [false, true]);
}
