use common::assets::Assets;
use common::encode::TextEncoder;
use common::testing::{assert_close, asset_or_skip, golden, golden_json};

fn minilm() -> Option<TextEncoder> {
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        asset_or_skip("all-minilm-l6-v2", file)?;
    }
    Some(TextEncoder::minilm(&Assets::from_env()).unwrap())
}

#[derive(serde::Deserialize)]
struct Golden {
    texts: Vec<String>,
    cosines: Vec<Vec<f64>>,
}

#[test]
fn minilm_equals_a_float64_forward_pass() {
    let Some(encoder) = minilm() else { return };
    let folder = golden(env!("CARGO_MANIFEST_DIR"), "minilm");
    let golden: Golden = golden_json(&folder.join("cosines.json"));
    let vectors = encoder.encode(&golden.texts).unwrap();
    assert_eq!(vectors.dim(), (golden.texts.len(), 384));
    let cosines: Vec<f64> =
        vectors.dot(&vectors.t()).iter().map(|value| f64::from(*value)).collect();
    assert_close(&cosines, &golden.cosines.concat(), 2e-6, 0.0);
}

#[test]
fn a_vector_does_not_depend_on_its_batch() {
    let Some(encoder) = minilm() else { return };
    let long = "a soft cotton dress with long sleeves and a round neck ".repeat(40);
    let mut texts = vec![String::new(), long, "[SEP] é 裙子 👗".to_owned(), "dress".to_owned()];
    texts.extend((0..60).map(|length| "blue denim jacket ".repeat(1 + length % 12)));
    texts.push("dress".to_owned());
    let together = encoder.encode(&texts).unwrap();
    assert!(together.iter().all(|value| value.is_finite()));
    for (text, vector) in texts.iter().zip(together.rows()).take(12) {
        let alone = encoder.encode(&[text]).unwrap();
        assert_close(alone.as_slice().unwrap(), vector.as_slice().unwrap(), 2e-6, 0.0);
        assert!((vector.dot(&vector) - 1.0).abs() < 1e-5);
    }
    assert_eq!(together.row(3), together.row(texts.len() - 1));
    assert_eq!(encoder.encode(&Vec::<String>::new()).unwrap().dim(), (0, 384));
}

#[test]
fn the_cache_gives_the_same_vectors() {
    let Some(encoder) = minilm() else { return };
    let folder = tempfile::tempdir().unwrap();
    let fresh = encoder.encode(&["skirt", "blouse"]).unwrap();
    let encoder = encoder.with_cache(folder.path()).unwrap();
    assert_eq!(encoder.encode(&["skirt", "blouse"]).unwrap(), fresh);
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files(), 1);
    let again = minilm().unwrap().with_cache(folder.path()).unwrap();
    assert_eq!(again.encode(&["blouse", "skirt"]).unwrap().row(1), fresh.row(0));
    assert_eq!(files(), 1, "a known text was encoded again");
    again.encode(&["blouse", "coat"]).unwrap();
    assert_eq!(files(), 2);
}

#[test]
fn a_folder_without_its_parts_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = TextEncoder::from_folder(folder.path(), 256).unwrap_err();
    assert_eq!(error.exit_code(), 6);
    for name in ["tokenizer.json", "model.safetensors", "config.json"] {
        std::fs::write(folder.path().join(name), "{}").unwrap();
    }
    let error = TextEncoder::from_folder(folder.path(), 256).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    assert!(error.to_string().contains("config.json"), "{error}");
}
