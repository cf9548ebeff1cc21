//! GGUF files: crafted ones that must be refused, and the real models against goldens made by
//! the `gguf` Python package 0.19.

#![allow(clippy::unwrap_used)]

use common::gguf::{GgmlDType, Gguf};
use common::testing::mutate::{GgufSeed, Layout, TensorSpec, Value, tiny_gguf};
use common::testing::{assert_close, asset_or_skip};

const EMBEDDING: &str = "token_embd.weight";

fn llama() -> GgufSeed {
    tiny_gguf("llama", 0)
}

fn open(file: Layout) -> common::Result<Gguf> {
    Gguf::from_bytes(file.bytes, "crafted.gguf".as_ref())
}

#[track_caller]
fn refused(file: Layout, expected: &str) {
    let error = open(file).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    let message = error.to_string();
    assert!(message.starts_with("crafted.gguf: "), "{message}");
    assert!(message.contains(expected), "{message:?} does not say {expected:?}");
}

/// The tiny file with one field overwritten.
fn with_field(field: &str, value: u64) -> Layout {
    let mut file = llama().layout();
    file.set(field, value);
    file
}

/// The tiny file with one more key, or another value of a key it has.
fn with_value(key: &str, value: Value) -> Layout {
    let mut seed = llama();
    match seed.entries.iter_mut().find(|(other, _)| other == key) {
        Some((_, old)) => *old = value,
        None => seed.entries.push((key.into(), value)),
    }
    seed.layout()
}

/// The tiny file with one more tensor.
fn with_tensor(dims: &[u64], code: u32, bytes: usize) -> Layout {
    let mut seed = llama();
    let (name, dims) = ("extra".into(), dims.to_vec());
    seed.tensors.push(TensorSpec { name, dims, code, bytes: vec![0; bytes] });
    seed.layout()
}

#[test]
fn the_tiny_files_are_accepted() {
    for architecture in ["llama", "qwen2", "gemma3"] {
        let gguf = open(tiny_gguf(architecture, 0).layout()).unwrap();
        assert_eq!(gguf.architecture().unwrap(), architecture);
        assert!(gguf.chat_template().is_some_and(|text| text.contains("<|im_start|>")));
    }
    let mut version_2 = llama().layout();
    version_2.set("version", 2);
    open(version_2).unwrap();
    open(with_value("general.alignment", Value::U32(32))).unwrap();
}

#[test]
fn a_wrong_alignment_is_refused() {
    for alignment in [0, 1, 4, 7, 33, 48, 131_072, u32::MAX] {
        let file = with_value("general.alignment", Value::U32(alignment));
        refused(file, &format!("general.alignment is {alignment}, expected a power of two"));
    }
    let file = with_value("general.alignment", Value::Str("32".into()));
    refused(file, "general.alignment is not a u32");
    // The data would begin elsewhere, so the last tensor would reach past the end.
    refused(with_value("general.alignment", Value::U32(65_536)), "reach past the end");
}

#[test]
fn dimensions_whose_product_wraps_are_refused() {
    let impossible = "are zero or too large";
    refused(with_tensor(&[1 << 40, 1 << 40], 0, 64), impossible);
    refused(with_tensor(&[1 << 32, 1 << 32], 0, 64), impossible);
    refused(with_tensor(&[32, 1 << 59], 2, 64), impossible);
    refused(with_tensor(&[1 << 16; 4], 0, 64), impossible);
    // The product is 16 modulo 2^64, which is what the file holds.
    refused(with_tensor(&[u64::MAX, u64::MAX - 15], 0, 64), impossible);
    let third = u64::MAX / 3 * 2 + 1; // the inverse of 3
    refused(with_tensor(&[96, third], 2, 18), impossible);
    // 2^62 values of 4 bytes: the number of values fits, the number of bytes wraps to 0.
    refused(with_tensor(&[1 << 31, 1 << 31], 0, 64), impossible);
    refused(with_tensor(&[1 << 40], 0, 64), "reach past the end of the file");
    refused(with_tensor(&[0, 4], 0, 64), impossible);
    refused(with_tensor(&[4, 0], 0, 64), impossible);
    refused(with_tensor(&[], 0, 64), "it has 0 dimensions, expected 1 to 4");
    refused(with_tensor(&[1, 1, 1, 1, 1], 0, 64), "it has 5 dimensions");
    refused(with_tensor(&[33, 2], 2, 64), "rows of 33 values are not whole blocks of 32");
    refused(with_tensor(&[16, 2], 2, 64), "rows of 16 values are not whole blocks of 32");
}

#[test]
fn huge_counts_and_lengths_are_refused() {
    for count in [65_537, 1 << 32, u64::MAX] {
        refused(with_field("keys", count), &format!("{count} metadata keys are declared"));
        refused(with_field("tensors", count), &format!("{count} tensors are declared"));
    }
    for length in [1 << 32, 1 << 62, u64::MAX] {
        let declared = format!("{length} bytes are declared");
        refused(with_field("general.architecture length", length), &declared);
        refused(with_field("general.architecture value length", length), &declared);
        refused(with_field("tokenizer.ggml.tokens 7 length", length), &declared);
        refused(with_field(&format!("{EMBEDDING} length"), length), &declared);
        let strings = with_field("tokenizer.ggml.tokens count", length);
        refused(strings, &format!("{length} strings are declared"));
        refused(with_field("tokenizer.ggml.token_type count", length), "bytes are declared");
    }
    let keys = llama().entries.len() as u64;
    refused(with_field("keys", keys - 1), "the tensor tokenizer.chat_template: ");
    refused(with_field("keys", keys + 1), "a tensor: ");
    let tensors = llama().tensors.len() as u64;
    refused(with_field("tensors", tensors + 1), "a tensor");
}

#[test]
fn wrong_types_are_refused() {
    refused(with_field("magic", 0), "instead of GGUF");
    refused(with_field("version", 1), "version 1");
    refused(with_field("version", 4), "version 4");
    refused(with_field("version", 3 << 24), "big-endian");
    refused(with_field("general.architecture type", 13), "its type code 13 is none");
    refused(with_field("tokenizer.ggml.tokens element", 9), "an array of arrays");
    refused(with_field("tokenizer.ggml.tokens element", 200), "its type code 200 is none");
    refused(with_field("tokenizer.ggml.add_bos_token value", 2), "a bool is neither 0 nor 1");
    for code in [4, 5, 9, 15, 16, 31, u64::from(u32::MAX)] {
        refused(with_field(&format!("{EMBEDDING} type"), code), "is not supported");
    }
    refused(with_value("llama.block_count", Value::Str("2".into())), "holds a string");
    refused(
        with_value("llama.block_count", Value::F32(2.0)),
        "holds the f32 2, not a whole number",
    );
    refused(with_value("tokenizer.ggml.tokens", Value::U32(1)), "is not an array");
    refused(with_value("general.architecture", Value::U32(1)), "not a string");
    refused(with_value("tokenizer.ggml.bos_token_id", Value::I32s(vec![1])), "an array of 1 i32");

    // The element type is checked where the array is used.
    let floats = with_value("tokenizer.ggml.tokens", Value::F32s(vec![0.5; 268]));
    let error = open(floats).unwrap().tokenizer().unwrap_err().to_string();
    assert!(
        error.contains(
            "tokenizer.ggml.tokens holds an array of 268 f32 values, not an array of strings"
        ),
        "{error}"
    );
}

#[test]
fn hyperparameters_out_of_bounds_are_refused() {
    for (key, value) in [
        ("block_count", 0),
        ("block_count", 513),
        ("block_count", 1_000_000_000),
        ("context_length", u32::MAX),
        ("embedding_length", 1 << 31),
        ("feed_forward_length", u32::MAX),
        ("attention.head_count", 0),
        ("attention.head_count", 5000),
        ("attention.head_count_kv", 0),
        ("attention.key_length", u32::MAX),
        ("vocab_size", u32::MAX),
    ] {
        let file = with_value(&format!("llama.{key}"), Value::U32(value));
        refused(file, &format!("llama.{key} is {value}, expected 1 to"));
    }
    refused(with_value("llama.attention.head_count_kv", Value::U32(3)), "do not divide");
    refused(
        with_value("llama.attention.head_count", Value::U32(6)),
        "does not divide into 6 heads",
    );
    refused(with_value("llama.rope.dimension_count", Value::U32(64)), "do not fit heads of 8");
    refused(with_value("llama.rope.freq_base", Value::F32(f32::NAN)), "not a finite number");
    refused(with_value("llama.rope.freq_base", Value::F32(-1.0)), "expected more than zero");
    refused(
        with_value("llama.attention.layer_norm_rms_epsilon", Value::F32(0.0)),
        "expected more than zero",
    );
}

#[test]
fn a_vocabulary_that_does_not_fit_is_refused() {
    let tokens = |count| Value::Strs((0..count).map(|id| format!("token {id}")).collect());
    let types = |count| Value::I32s(vec![1; count]);
    refused(with_value("tokenizer.ggml.token_type", types(2)), "token_type has 2 entries");
    let mut seed = llama();
    *seed.value("tokenizer.ggml.tokens") = tokens(9);
    *seed.value("tokenizer.ggml.token_type") = types(9);
    refused(seed.layout(), "the vocabulary has 9 tokens but token_embd.weight has 268 rows");
    for key in ["bos", "eos", "unknown"] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        refused(with_value(&key, Value::U32(268)), &format!("{key} is 268"));
    }
}

#[test]
fn duplicate_names_are_refused() {
    let mut seed = llama();
    seed.entries.push(seed.entries[0].clone());
    refused(seed.layout(), "the metadata key general.architecture stands in it twice");
    let mut seed = llama();
    seed.tensors.push(seed.tensors[3].clone());
    let name = &seed.tensors[3].name;
    refused(seed.layout(), &format!("the tensor {name} stands in it twice"));
    let mut seed = llama();
    seed.tensors[1].name.clear();
    refused(seed.layout(), "a name of 0 bytes");
}

#[test]
fn tensors_outside_the_data_are_refused() {
    let offset = |value| with_field(&format!("{EMBEDDING} offset"), value);
    refused(offset(8), "its offset 8 is not a multiple of 32");
    refused(offset(32), "overlap");
    refused(offset(1 << 40), "reach past the end");
    refused(offset(u64::MAX - 31), "reach past the end");
    let whole = llama().layout().bytes;
    for length in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        let error = Gguf::from_bytes(whole[..length].to_vec(), "cut.gguf".as_ref()).unwrap_err();
        assert_eq!(error.exit_code(), 4, "{length}");
    }
}

#[test]
fn a_merge_longer_than_any_token_is_refused() {
    // tokenizers 0.23 panics on it: it concatenates in a buffer of the longest token's size.
    let longest = "<|endoftext|> <|endoftext|>";
    let merge = Value::Strs(vec![longest.into()]);
    let error = open(with_value("tokenizer.ggml.merges", merge)).unwrap().tokenizer().unwrap_err();
    assert!(error.to_string().contains(&format!("the merge {longest:?}")), "{error}");
    let merge = Value::Strs(vec!["the".into()]);
    let error = open(with_value("tokenizer.ggml.merges", merge)).unwrap().tokenizer().unwrap_err();
    assert!(error.to_string().contains("the merge \"the\""), "{error}");
}

#[test]
fn unsupported_tokenizers_are_named() {
    for (key, value, supported) in
        [("model", "bert", "only gpt2 and llama"), ("pre", "llama-bpe", "only smollm and qwen2")]
    {
        let key = format!("tokenizer.ggml.{key}");
        let gguf = open(with_value(&key, Value::Str(value.into()))).unwrap();
        let error = gguf.tokenizer().unwrap_err().to_string();
        assert!(error.contains(&format!("{key} is {value}, {supported} are supported")), "{error}");
    }
}

#[test]
fn absent_names_come_with_the_nearest_ones() {
    let gguf = open(llama().layout()).unwrap();
    let error = gguf.tensor("blk.0.attn_qq.weight").unwrap_err().to_string();
    assert!(
        error.contains("blk.0.attn_qq.weight is missing (nearest: blk.0.attn_q.weight,"),
        "{error}"
    );
    let error = gguf.metadata().u64("llama.block_cnt").unwrap_err().to_string();
    assert!(error.contains("llama.block_cnt is missing (nearest: llama.block_count"), "{error}");

    let shape = |name: &str, shape: &[usize]| (name.to_owned(), shape.to_vec());
    gguf.check(&[shape(EMBEDDING, &[268, 32]), shape("blk.1.ffn_down.weight", &[32, 64])]).unwrap();
    let error = gguf
        .check(&[
            shape(EMBEDDING, &[32, 268]),
            shape("output_nrm.weight", &[32]),
            shape("zzz", &[1]),
        ])
        .unwrap_err()
        .to_string();
    for problem in [
        "token_embd.weight has shape [268, 32], expected [32, 268]",
        "output_nrm.weight is missing (nearest: output_norm.weight",
        "zzz is missing",
    ] {
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn values_and_shapes_equal_those_of_candles_reader() {
    let file = llama().layout().bytes;
    let gguf = Gguf::from_bytes(file.clone(), "tiny.gguf".as_ref()).unwrap();
    let mut reader = std::io::Cursor::new(&file);
    let content = candle_core::quantized::gguf_file::Content::read(&mut reader).unwrap();
    for name in gguf.tensor_names() {
        let tensor = gguf.tensor(name).unwrap();
        let device = candle_core::Device::Cpu;
        let expected = content.tensor(&mut reader, name, &device).unwrap();
        assert_eq!(tensor.shape(), expected.shape().dims(), "{name}");
        let expected = expected.dequantize(&device).unwrap().flatten_all().unwrap();
        assert_eq!(tensor.to_f32().unwrap(), expected.to_vec1::<f32>().unwrap(), "{name}");
        assert_eq!(tensor.to_qtensor().unwrap().shape().dims(), tensor.shape());
    }
}

#[test]
fn folders_and_absent_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Gguf::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("is not a regular file"), "{error}");
    assert_eq!(Gguf::open(&folder.path().join("absent.gguf")).unwrap_err().exit_code(), 6);
}

/// Name, type, shape, sum of absolute values, first three values and last value.
type Known = (&'static str, GgmlDType, [usize; 2], f64, [f32; 3], f32);

fn holds(gguf: &Gguf, known: &[Known]) {
    for &(name, dtype, shape, sum, first, last) in known {
        let tensor = gguf.tensor(name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (dtype, &shape[..]), "{name}");
        let values = tensor.to_f32().unwrap();
        let [a, b, c] = first;
        let found = [values[0], values[1], values[2], values[values.len() - 1]];
        // NumPy and candle multiply scales in another order.
        assert_close(&found, &[a, b, c, last], 0.0, 1e-6);
        let found: f64 = values.iter().map(|&value| f64::from(value).abs()).sum();
        assert_close(&[found], &[sum], 0.0, 1e-7);
    }
}

#[test]
#[rustfmt::skip]
fn smollm2_holds_what_it_should() {
    let Some(path) = asset_or_skip("smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.architecture().unwrap(), "llama");
    assert_eq!(gguf.tensor_names().len(), 272);
    assert_eq!((gguf.bos_id(), gguf.eos_id()), (Some(1), Some(2)));
    assert_eq!(gguf.metadata().usize("llama.block_count").unwrap(), 30);
    assert_eq!(gguf.metadata().f64("llama.rope.freq_base").unwrap(), 1e5);
    assert!(gguf.chat_template().unwrap().contains("<|im_start|>"));
    holds(&gguf, &[
        (EMBEDDING, GgmlDType::Q8_0, [49152, 576], 2802153.619805813, [-0.106544495, 0.032978058, 0.0481987], -0.04170227),
        ("blk.0.ffn_down.weight", GgmlDType::Q4_1, [576, 1536], 128458.06286621094, [-0.33081055, 0.34606934, 0.07531738], -0.18136597),
    ]);
}

#[test]
#[rustfmt::skip]
fn qwen_holds_what_it_should() {
    let Some(path) = asset_or_skip("qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf") else { return };
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.architecture().unwrap(), "qwen2");
    holds(&gguf, &[
        ("blk.0.ffn_down.weight", GgmlDType::Q6K, [896, 4864], 43436.01161056757, [-0.0018410683, -0.0018410683, 0.029457092], 0.0031172633),
        ("blk.11.ffn_down.weight", GgmlDType::Q4K, [896, 4864], 31623.616562485695, [0.001052022, -0.0018393993, -0.0008755922], -0.00040322542),
    ]);
}

#[test]
#[rustfmt::skip]
fn gemma_holds_what_it_should() {
    let Some(path) = asset_or_skip("gemma-3-270m", "gemma-3-270m-q4_k_m.gguf") else { return };
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.architecture().unwrap(), "gemma3");
    holds(&gguf, &[
        ("blk.0.attn_k.weight", GgmlDType::Q5_0, [256, 640], 4768.729293823242, [0.0, -0.027557373, 0.011810303], 0.024047852),
        ("blk.0.attn_output.weight", GgmlDType::Q4K, [640, 1024], 18307.241332113743, [-0.015705109, 0.049669266, -0.037496567], -0.011407614),
        ("blk.0.ffn_down.weight", GgmlDType::Q6K, [640, 2048], 21698.13850414753, [0.005211711, 0.021715462, -0.025189936], -0.009414017),
    ]);
}
