//! Safetensors files: crafted ones that must be refused, and values of each float type.

#![allow(clippy::unwrap_used)]

use common::testing::asset_or_skip;
use common::testing::mutate::{SafetensorsSeed, StoredTensor, tiny_safetensors};
use common::weights::{Dtype, Safetensors};
use half::{bf16, f16};

fn tiny() -> SafetensorsSeed {
    tiny_safetensors(0)
}

fn open(bytes: Vec<u8>) -> common::Result<Safetensors> {
    Safetensors::from_bytes(bytes, "crafted.safetensors".as_ref())
}

#[track_caller]
fn refused(bytes: Vec<u8>, expected: &str) {
    let error = open(bytes).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    let message = error.to_string();
    assert!(message.starts_with("crafted.safetensors: "), "{message}");
    assert!(message.contains(expected), "{message:?} does not say {expected:?}");
}

/// The tiny file with another entry for its second tensor.
fn with(change: impl FnOnce(&mut StoredTensor)) -> Vec<u8> {
    let mut seed = tiny();
    change(&mut seed.tensors[1]);
    seed.layout().bytes
}

#[test]
fn crafted_entries_are_refused() {
    refused(with(|t| t.shape = vec![17]), "invalid shape, data type, or offset");
    refused(with(|t| t.shape = vec![1 << 40, 1 << 40]), "overflow");
    refused(with(|t| t.dtype = "F64".into()), "invalid shape, data type, or offset");
    refused(with(|t| t.dtype = "F31".into()), "unknown variant `F31`");
    refused(with(|t| t.offsets[0] -= 4), "invalid offset");
    refused(with(|t| t.offsets[1] += 4), "invalid shape, data type, or offset");
    refused(with(|t| t.offsets = [u64::MAX, 0]), "invalid offset");
    let mut overlap = tiny();
    overlap.tensors[2].offsets = overlap.tensors[1].offsets;
    refused(overlap.layout().bytes, "invalid offset");
    let mut hole = tiny();
    hole.tensors.remove(1);
    refused(hole.layout().bytes, "invalid offset");
    let mut longer = tiny();
    longer.data.push(0);
    refused(longer.layout().bytes, "incomplete");
    let mut zero = tiny();
    let end = zero.data.len() as u64;
    let (name, dtype, shape) = ("zero".into(), "F32".into(), vec![0, 1 << 40, 1 << 40]);
    zero.tensors.push(StoredTensor { name, dtype, shape, offsets: [end, end] });
    refused(zero.layout().bytes, "the tensor zero has the impossible shape");
}

#[test]
fn crafted_headers_are_refused() {
    for length in [1, 100_000_001, 1 << 32, i64::MAX as u64, u64::MAX] {
        let mut file = tiny().layout();
        file.set("header length", length);
        refused(file.bytes, "header");
    }
    let whole = tiny().layout().bytes;
    for length in (0..whole.len()).step_by(97) {
        assert!(open(whole[..length].to_vec()).is_err(), "{length}");
    }
    for header in ["", "[]", "{\"a\":1}", "{\"a\":{\"dtype\":\"F32\"}}", &"[".repeat(10_000)] {
        assert!(open(tiny().with_header(header).bytes).is_err(), "{header}");
    }
}

#[test]
fn repeated_names_are_refused() {
    // A repeated entry without data would be dropped by a JSON parser without a trace.
    let mut seed = SafetensorsSeed { tensors: Vec::new(), data: Vec::new() };
    seed.push("a", &[2]);
    let mut twin = seed.tensors[0].clone();
    twin.shape = vec![2, 1];
    seed.tensors.push(twin);
    refused(seed.layout().bytes, "the name a stands in its header twice");
}

#[test]
fn all_problems_come_in_one_error() {
    let weights = open(tiny().layout().bytes).unwrap();
    let shape = |name: &str, shape: &[usize]| (name.to_owned(), shape.to_vec());
    let error = weights
        .check(&[
            shape("model.embed_tokens.weight", &[64, 16]),
            shape("model.norm.weight", &[17]),
            shape("model.embed_token.weight", &[64, 16]),
            shape("lm_head", &[1]),
        ])
        .unwrap_err()
        .to_string();
    for problem in [
        "model.norm.weight has shape [16], expected [17]",
        "model.embed_token.weight is missing (nearest: model.embed_tokens.weight",
        "lm_head is missing",
    ] {
        assert!(error.contains(problem), "{error}");
    }
    assert!(!error.contains("model.embed_tokens.weight has"), "{error}");
    let error = weights.tensor("model.nrm.weight").unwrap_err().to_string();
    assert!(error.contains("(nearest: model.norm.weight"), "{error}");
    let many: Vec<_> = (0..30).map(|index| shape(&format!("absent.{index}"), &[1])).collect();
    let error = weights.check(&many).unwrap_err().to_string();
    assert!(error.contains("and 20 more"), "{error}");
}

#[test]
fn every_float_type_is_converted() {
    let values = [0.0f32, -1.5, 3.25, 1e-3, 65504.0, f32::INFINITY];
    let mut seed = SafetensorsSeed { tensors: Vec::new(), data: Vec::new() };
    let mut push = |dtype: &str, bytes: Vec<u8>| {
        let start = seed.data.len() as u64;
        seed.data.extend(&bytes);
        let shape = vec![2, 3];
        let offsets = [start, start + bytes.len() as u64];
        seed.tensors.push(StoredTensor { name: dtype.into(), dtype: dtype.into(), shape, offsets });
    };
    // One byte first, so that the floats lie at odd addresses.
    push("BOOL", vec![1; 6]);
    push("F32", values.iter().flat_map(|v| v.to_le_bytes()).collect());
    push("F16", values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect());
    push("BF16", values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect());
    let weights = open(seed.layout().bytes).unwrap();
    assert_eq!(weights.tensor("F32").unwrap().to_f32().unwrap(), values);
    let f16s = values.map(|value| f16::from_f32(value).to_f32());
    assert_eq!(weights.tensor("F16").unwrap().to_f32().unwrap(), f16s);
    let bf16s = values.map(|value| bf16::from_f32(value).to_f32());
    assert_eq!(weights.tensor("BF16").unwrap().to_f32().unwrap(), bf16s);
    let error = weights.tensor("BOOL").unwrap().to_f32().unwrap_err().to_string();
    assert!(error.contains("the tensor BOOL has type BOOL, expected F32, F16 or BF16"), "{error}");
    let tensors = weights.float_tensors().unwrap();
    assert_eq!(tensors.len(), 3);
    assert_eq!(tensors["F16"].dims(), [2, 3]);
}

#[test]
fn minilm_is_read() {
    let Some(path) = asset_or_skip("all-minilm-l6-v2", "model.safetensors") else { return };
    let weights = Safetensors::open(&path).unwrap();
    let name = "embeddings.word_embeddings.weight";
    let embedding = weights.tensor(name).unwrap();
    assert_eq!((embedding.dtype(), embedding.shape()), (Dtype::F32, &[30_522, 384][..]));
    // candle's own reader is the reference.
    let expected = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    let tensors = weights.float_tensors().unwrap();
    let values =
        |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (name, tensor) in &tensors {
        assert_eq!(values(tensor), values(&expected[name]), "{name}");
    }
    assert!(tensors.len() > 100, "{}", tensors.len());
}
