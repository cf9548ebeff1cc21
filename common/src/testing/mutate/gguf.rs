//! A tiny GGUF model and its mutations.

use super::{Layout, flip_bits, interesting};
use crate::rng::{Seed, Stream};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

const ALIGNMENT: usize = 32;

/// A metadata value, by the types that model files use.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Str(String),
    Strs(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
}

/// A tensor as it will be declared, true or not.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Name.
    pub name: String,
    /// Dimensions in GGUF's order, the innermost first.
    pub dims: Vec<u64>,
    /// Type code of the GGUF specification.
    pub code: u32,
    /// Stored bytes.
    pub bytes: Vec<u8>,
}

/// What a GGUF file is made of; [`GgufSeed::layout`] writes it.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufSeed {
    /// Key–value pairs, in order.
    pub entries: Vec<(String, Value)>,
    /// Tensors, in order.
    pub tensors: Vec<TensorSpec>,
}

impl GgufSeed {
    /// The file, with counts and offsets that are true for what it holds.
    ///
    /// Fields are called `magic`, `version`, `tensors`, `keys`; for each key `KEY length`,
    /// `KEY text`, `KEY type` and `KEY value` or `KEY element`, `KEY count` and `KEY N length`;
    /// for each tensor `NAME length`, `NAME text`, `NAME dims`, `NAME dim N`, `NAME type`,
    /// `NAME offset`.
    pub fn layout(&self) -> Layout {
        let mut file = Layout::default();
        file.push("magic", b"GGUF");
        file.push("version", &3u32.to_le_bytes());
        file.push("tensors", &(self.tensors.len() as u64).to_le_bytes());
        file.push("keys", &(self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            write_name(&mut file, key);
            write_value(&mut file, key, value);
        }
        let mut offset = 0;
        for TensorSpec { name, dims, code, bytes } in &self.tensors {
            write_name(&mut file, name);
            file.push(format!("{name} dims"), &(dims.len() as u32).to_le_bytes());
            for (index, dim) in dims.iter().enumerate() {
                file.push(format!("{name} dim {index}"), &dim.to_le_bytes());
            }
            file.push(format!("{name} type"), &code.to_le_bytes());
            file.push(format!("{name} offset"), &(offset as u64).to_le_bytes());
            offset += bytes.len().next_multiple_of(ALIGNMENT);
        }
        for tensor in &self.tensors {
            file.bytes.resize(file.bytes.len().next_multiple_of(ALIGNMENT), 0);
            file.bytes.extend_from_slice(&tensor.bytes);
        }
        file
    }

    /// The value of `key`, to change it.
    ///
    /// # Panics
    /// When there is no such key.
    #[track_caller]
    pub fn value(&mut self, key: &str) -> &mut Value {
        match self.entries.iter_mut().find(|(other, _)| other == key) {
            Some((_, value)) => value,
            None => panic!("no key {key}"),
        }
    }

    /// A file with one to three mutations, of entries, tensors, fields, length or bits.
    pub fn mutated(&self, stream: &mut Stream) -> Vec<u8> {
        let mut seed = self.clone();
        if stream.chance(0.5) {
            seed.mutate_entries(stream);
        }
        let mut file = seed.layout();
        for _ in 0..stream.below(3) {
            file.mutate_field(stream);
        }
        if stream.chance(0.1) {
            file.truncate(stream);
        }
        if stream.chance(0.1) {
            flip_bits(&mut file.bytes, stream);
        }
        file.bytes
    }

    /// Adds a merge of two tokens whose concatenation need not be a token.
    fn append_merge(&mut self, stream: &mut Stream) {
        let find = |key: &str| self.entries.iter().position(|(other, _)| other.ends_with(key));
        let (Some(tokens), Some(merges)) = (find("ggml.tokens"), find("ggml.merges")) else {
            return;
        };
        let Value::Strs(tokens) = &self.entries[tokens].1 else { return };
        if tokens.is_empty() {
            return;
        }
        // The special tokens at the front are the longest ones.
        let mut token = || tokens[stream.below(tokens.len().min(8))].clone();
        let merge = format!("{} {}", token(), token());
        if let Value::Strs(merges) = &mut self.entries[merges].1 {
            merges.push(merge);
        }
    }

    fn mutate_entries(&mut self, stream: &mut Stream) {
        let (entry, other) = (stream.below(self.entries.len()), stream.below(self.entries.len()));
        let (tensor, twin) = (stream.below(self.tensors.len()), stream.below(self.tensors.len()));
        match stream.below(16) {
            0 => drop(self.entries.remove(entry)),
            1 => self.entries.push(self.entries[entry].clone()),
            2 => self.entries[entry].1 = self.entries[other].1.clone(),
            3 => mutate_value(&mut self.entries[entry].1, stream),
            4 => {
                let alignment = interesting(ALIGNMENT as u64, stream) as u32;
                self.entries.push(("general.alignment".into(), Value::U32(alignment)));
            }
            5 => drop(self.tensors.remove(tensor)),
            6 => self.tensors.push(self.tensors[tensor].clone()),
            7 => self.tensors[tensor].name = self.tensors[twin].name.clone(),
            8 => self.tensors.swap(tensor, twin),
            9 => {
                let spec = &mut self.tensors[tensor];
                let (dim, by) = (stream.below(spec.dims.len()), stream.below(4) as u64);
                spec.dims[dim] = spec.dims[dim] * by / 2;
            }
            10 => self.tensors[tensor].dims.reverse(),
            11 => {
                let dims = &mut self.tensors[tensor].dims;
                dims.insert(stream.below(dims.len() + 1), 1);
            }
            12 => self.tensors[tensor].wrap_product(stream),
            13 | 14 => self.append_merge(stream),
            _ => {
                // Any bits are values of a quantised block, so this reaches the arithmetic.
                let spec = &mut self.tensors[tensor];
                flip_bits(&mut spec.bytes, stream);
            }
        }
    }
}

impl TensorSpec {
    /// Multiplies one dimension by an odd number and another one by its inverse modulo 2⁶⁴:
    /// the product without overflow check is the old one.
    fn wrap_product(&mut self, stream: &mut Stream) {
        let factor = interesting(3, stream) | 1;
        // Newton's iteration doubles the number of right bits, and an odd number is its own
        // inverse modulo 8.
        let inverse = (0..5).fold(factor, |inverse, _| {
            inverse.wrapping_mul(2u64.wrapping_sub(factor.wrapping_mul(inverse)))
        });
        if self.dims.len() == 1 {
            self.dims.push(1);
        }
        self.dims[0] = self.dims[0].wrapping_mul(factor);
        self.dims[1] = self.dims[1].wrapping_mul(inverse);
    }
}

fn mutate_value(value: &mut Value, stream: &mut Stream) {
    match value {
        Value::U32(number) => *number = interesting(u64::from(*number), stream) as u32,
        Value::F32(number) => *number = f32::from_bits(interesting(0, stream) as u32),
        Value::Bool(truth) => *truth = !*truth,
        Value::Str(text) => mutate_text(text, stream),
        Value::Strs(texts) => mutate_array(texts, stream, mutate_text),
        Value::F32s(numbers) => {
            mutate_array(numbers, stream, |number, stream| {
                *number = f32::from_bits(interesting(0, stream) as u32);
            });
        }
        Value::I32s(numbers) => {
            mutate_array(numbers, stream, |number, stream| {
                *number = interesting(0, stream) as i32;
            });
        }
    }
}

fn mutate_array<T: Clone>(
    items: &mut Vec<T>,
    stream: &mut Stream,
    mutate: impl Fn(&mut T, &mut Stream),
) {
    if items.is_empty() {
        return;
    }
    let item = stream.below(items.len());
    match stream.below(5) {
        0 => drop(items.remove(item)),
        1 => items.push(items[item].clone()),
        2 => items.truncate(item),
        3 => items[item] = items[stream.below(items.len())].clone(),
        _ => mutate(&mut items[item], stream),
    }
}

fn mutate_text(text: &mut String, stream: &mut Stream) {
    const TEXTS: [&str; 10] =
        ["", " ", "a", "\0", "Ġ", "▁", "<0x41>", "<|im_end|>", "{{ [1] * 9999999 }}", "漢 字"];
    match stream.below(4) {
        0 => text.push_str(TEXTS[stream.below(TEXTS.len())]),
        1 => *text = text.repeat(1 + stream.below(40)),
        2 => *text = text.chars().rev().collect(),
        _ => *text = TEXTS[stream.below(TEXTS.len())].into(),
    }
}

fn write_name(file: &mut Layout, name: &str) {
    file.push(format!("{name} length"), &(name.len() as u64).to_le_bytes());
    file.push(format!("{name} text"), name.as_bytes());
}

fn write_value(file: &mut Layout, key: &str, value: &Value) {
    let code: u32 = match value {
        Value::U32(_) => 4,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::Str(_) => 8,
        Value::Strs(_) | Value::F32s(_) | Value::I32s(_) => 9,
    };
    file.push(format!("{key} type"), &code.to_le_bytes());
    let field = format!("{key} value");
    let array = |file: &mut Layout, element: u32, count: usize| {
        file.push(format!("{key} element"), &element.to_le_bytes());
        file.push(format!("{key} count"), &(count as u64).to_le_bytes());
    };
    match value {
        Value::U32(number) => file.push(field, &number.to_le_bytes()),
        Value::F32(number) => file.push(field, &number.to_le_bytes()),
        Value::Bool(truth) => file.push(field, &[u8::from(*truth)]),
        Value::Str(text) => {
            file.push(format!("{key} value length"), &(text.len() as u64).to_le_bytes());
            file.push(field, text.as_bytes());
        }
        Value::Strs(texts) => {
            array(file, 8, texts.len());
            for (index, text) in texts.iter().enumerate() {
                file.push(format!("{key} {index} length"), &(text.len() as u64).to_le_bytes());
                file.bytes.extend_from_slice(text.as_bytes());
            }
        }
        Value::F32s(numbers) => {
            array(file, 6, numbers.len());
            file.bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
        Value::I32s(numbers) => {
            array(file, 5, numbers.len());
            file.bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
    }
}

const WIDTH: usize = 32;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HIDDEN: usize = 64;

/// A valid model of `architecture` (`llama`, `qwen2` or `gemma3`) with random weights: 2 layers,
/// width 32, 4 query and 2 key–value heads, MLP width 64, a vocabulary of all bytes, a few merged
/// tokens and ChatML's special tokens; below 64 KB.
///
/// # Panics
/// For another architecture.
pub fn tiny_gguf(architecture: &str, seed: u64) -> GgufSeed {
    assert!(matches!(architecture, "llama" | "qwen2" | "gemma3"), "no tiny {architecture}");
    let mut entries: Vec<(String, Value)> = Vec::new();
    let mut set = |key: &str, value: Value| entries.push((key.into(), value));
    set("general.architecture", Value::Str(architecture.into()));
    let mut count = |key: &str, value: usize| {
        set(&format!("{architecture}.{key}"), Value::U32(value as u32));
    };
    count("block_count", LAYERS);
    count("context_length", 128);
    count("embedding_length", WIDTH);
    count("feed_forward_length", HIDDEN);
    count("attention.head_count", HEADS);
    count("attention.head_count_kv", KV_HEADS);
    if architecture == "gemma3" {
        count("attention.key_length", WIDTH / HEADS);
        count("attention.value_length", WIDTH / HEADS);
        count("attention.sliding_window", 16);
    }
    let mut number = |key: &str, value: f32| {
        set(&format!("{architecture}.{key}"), Value::F32(value));
    };
    number("rope.freq_base", 10_000.0);
    number("attention.layer_norm_rms_epsilon", 1e-5);
    let tokens = if architecture == "gemma3" {
        sentence_piece(&mut entries)
    } else {
        byte_level(architecture, &mut entries)
    };
    let template = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}";
    entries.push(("tokenizer.chat_template".into(), Value::Str(template.into())));
    GgufSeed { entries, tensors: tensors(architecture, tokens, Seed::new(seed)) }
}

/// The vocabulary of SmolLM2's and Qwen2's kind; returns its size.
fn byte_level(architecture: &str, entries: &mut Vec<(String, Value)>) -> usize {
    let mut tokens: Vec<String> =
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from).to_vec();
    let mut types = vec![3; tokens.len()];
    // GPT-2's spelling of bytes: printable ones stand for themselves, the rest from U+0100 on.
    let mut spare = 0x100..;
    for byte in 0..=255u8 {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable { Some(u32::from(byte)) } else { spare.next() };
        tokens.extend(code.and_then(char::from_u32).map(String::from));
    }
    let merges = ["t h", "th e", "Ġ the", "i n", "a n", "an d", "Ġ and", "e r", "1 2"];
    tokens.extend(merges.map(|merge| merge.replace(' ', "")));
    types.resize(tokens.len(), 1);
    let size = tokens.len();
    let pre = if architecture == "qwen2" { "qwen2" } else { "smollm" };
    entries.extend(
        [
            ("model", Value::Str("gpt2".into())),
            ("pre", Value::Str(pre.into())),
            ("tokens", Value::Strs(tokens)),
            ("token_type", Value::I32s(types)),
            ("merges", Value::Strs(merges.map(String::from).to_vec())),
            ("bos_token_id", Value::U32(1)),
            ("eos_token_id", Value::U32(2)),
            ("unknown_token_id", Value::U32(0)),
            ("add_bos_token", Value::Bool(false)),
        ]
        .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)),
    );
    size
}

/// The vocabulary of Gemma's kind; returns its size.
fn sentence_piece(entries: &mut Vec<(String, Value)>) -> usize {
    let mut tokens: Vec<String> = ["<pad>", "<eos>", "<bos>", "<unk>"].map(String::from).to_vec();
    let mut types = vec![3; tokens.len()];
    tokens.push("\n\n".into());
    types.push(4);
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    types.resize(tokens.len(), 6);
    tokens.extend(
        ["▁", "t", "h", "e", "a", "n", "d", "th", "the", "▁the", "an", "and"].map(String::from),
    );
    types.resize(tokens.len(), 1);
    let size = tokens.len();
    let scores = (0..size).map(|id| -(id as f32)).collect();
    entries.extend(
        [
            ("model", Value::Str("llama".into())),
            ("tokens", Value::Strs(tokens)),
            ("scores", Value::F32s(scores)),
            ("token_type", Value::I32s(types)),
            ("bos_token_id", Value::U32(2)),
            ("eos_token_id", Value::U32(1)),
            ("unknown_token_id", Value::U32(3)),
            ("add_bos_token", Value::Bool(true)),
            ("add_space_prefix", Value::Bool(false)),
        ]
        .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)),
    );
    size
}

fn tensors(architecture: &str, tokens: usize, seed: Seed) -> Vec<TensorSpec> {
    let (head, kv) = (WIDTH / HEADS, KV_HEADS * WIDTH / HEADS);
    let mut shapes: Vec<(String, Vec<usize>, GgmlDType)> =
        vec![("token_embd".into(), vec![tokens, WIDTH], GgmlDType::Q8_0)];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: Vec<usize>, dtype| {
            shapes.push((format!("blk.{layer}.{name}"), shape, dtype));
        };
        let mut norms = vec![("attn_norm", WIDTH), ("ffn_norm", WIDTH)];
        if architecture == "gemma3" {
            norms.extend([("post_attention_norm", WIDTH), ("post_ffw_norm", WIDTH)]);
            norms.extend([("attn_q_norm", head), ("attn_k_norm", head)]);
        }
        for (name, width) in norms {
            add(name, vec![width], GgmlDType::F32);
        }
        add("attn_q", vec![WIDTH, WIDTH], GgmlDType::Q4_1);
        add("attn_k", vec![kv, WIDTH], GgmlDType::Q4_0);
        add("attn_v", vec![kv, WIDTH], GgmlDType::F16);
        add("attn_output", vec![WIDTH, WIDTH], GgmlDType::Q5_0);
        add("ffn_gate", vec![HIDDEN, WIDTH], GgmlDType::Q5_1);
        add("ffn_up", vec![HIDDEN, WIDTH], GgmlDType::BF16);
        add("ffn_down", vec![WIDTH, HIDDEN], GgmlDType::Q4_1);
    }
    shapes.push(("output_norm".into(), vec![WIDTH], GgmlDType::F32));
    let mut specs: Vec<TensorSpec> = shapes
        .into_iter()
        .map(|(name, shape, dtype)| tensor(format!("{name}.weight"), &shape, dtype, seed))
        .collect();
    if architecture == "qwen2" {
        for layer in 0..LAYERS {
            for (name, width) in [("attn_q", WIDTH), ("attn_k", kv), ("attn_v", kv)] {
                let name = format!("blk.{layer}.{name}.bias");
                specs.push(tensor(name, &[width], GgmlDType::F32, seed));
            }
        }
    }
    specs
}

fn tensor(name: String, shape: &[usize], dtype: GgmlDType, seed: Seed) -> TensorSpec {
    let code = match dtype {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q4_1 => 3,
        GgmlDType::Q5_0 => 6,
        GgmlDType::Q5_1 => 7,
        GgmlDType::Q8_0 => 8,
        GgmlDType::BF16 => 30,
        other => panic!("no code for {other:?}"),
    };
    let mut stream = seed.stream(&name);
    let count = shape.iter().product();
    // Norms stay near one, so that the activations stay finite.
    let (mean, sd) = if name.contains("norm") { (1.0, 0.1) } else { (0.0, 0.2) };
    let values: Vec<f32> = (0..count).map(|_| (mean + sd * stream.normal()) as f32).collect();
    let bytes = Tensor::from_vec(values, shape, &Device::Cpu)
        .and_then(|values| QTensor::quantize(&values, dtype)?.data().map(|data| data.to_vec()))
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    TensorSpec { name, dims: shape.iter().rev().map(|&dim| dim as u64).collect(), code, bytes }
}
