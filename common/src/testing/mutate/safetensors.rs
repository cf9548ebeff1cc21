//! A tiny safetensors model and its mutations.

use super::{Layout, flip_bits, interesting, mutate_json};
use crate::rng::{Seed, Stream};
use serde_json::{Value, json};

/// A tensor as it will be declared, true or not.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTensor {
    /// Name.
    pub name: String,
    /// Type, as the format spells it (`F32`).
    pub dtype: String,
    /// Dimensions, the outermost first.
    pub shape: Vec<u64>,
    /// First byte and the byte after the last, from the start of the data.
    pub offsets: [u64; 2],
}

/// What a safetensors file is made of; [`SafetensorsSeed::layout`] writes it.
#[derive(Debug, Clone, PartialEq)]
pub struct SafetensorsSeed {
    /// Tensors, in order.
    pub tensors: Vec<StoredTensor>,
    /// The bytes behind the header.
    pub data: Vec<u8>,
}

impl SafetensorsSeed {
    /// Adds a tensor of zeros of type F32 behind the others.
    pub fn push(&mut self, name: &str, shape: &[u64]) {
        let start = self.data.len() as u64;
        let end = start + 4 * shape.iter().product::<u64>();
        self.data.resize(end as usize, 0);
        let (name, dtype) = (name.into(), "F32".into());
        self.tensors.push(StoredTensor {
            name,
            dtype,
            shape: shape.to_vec(),
            offsets: [start, end],
        });
    }

    /// The file. Its fields are `header length` and `header`.
    pub fn layout(&self) -> Layout {
        self.with_header(&self.header())
    }

    /// The file with another text as its header.
    pub fn with_header(&self, header: &str) -> Layout {
        let mut file = Layout::default();
        file.push("header length", &(header.len() as u64).to_le_bytes());
        file.push("header", header.as_bytes());
        file.bytes.extend_from_slice(&self.data);
        file
    }

    /// Written by hand, as a JSON library would drop repeated names.
    fn header(&self) -> String {
        let entries: Vec<String> = self
            .tensors
            .iter()
            .map(|StoredTensor { name, dtype, shape, offsets }| {
                let info = json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
                format!("{}:{info}", json!(name))
            })
            .collect();
        format!("{{{}}}", entries.join(","))
    }

    /// A file with one or two mutations: of its tensors, of what the header says about them, of
    /// the header as JSON, of the length, or of bits.
    pub fn mutated(&self, stream: &mut Stream) -> Vec<u8> {
        let mut seed = self.clone();
        let kind = stream.below(10);
        match kind {
            0..=2 => seed.mutate_entries(stream),
            3 | 4 => seed.mutate_tensors(stream),
            5 => flip_bits(&mut seed.data, stream),
            _ => {}
        }
        let mut header = seed.header();
        if kind == 6 || stream.chance(0.1) {
            let mut json: Value = serde_json::from_str(&header).unwrap_or_default();
            mutate_json(&mut json, stream);
            header = json.to_string();
        }
        let mut file = seed.with_header(&header);
        match kind {
            7 => file.mutate_field(stream),
            8 => file.truncate(stream),
            9 => {
                // The first bytes are the length and the header, where a bit matters.
                let end = file.bytes.len().min(8 + header.len());
                flip_bits(&mut file.bytes[..end], stream);
            }
            _ => {}
        }
        file.bytes
    }

    /// Changes the tensors so that the file stays a valid one, of another model.
    fn mutate_tensors(&mut self, stream: &mut Stream) {
        let (index, twin) = (stream.below(self.tensors.len()), stream.below(self.tensors.len()));
        let tensor = &mut self.tensors[index];
        match stream.below(7) {
            0 => tensor.name.push('x'),
            1 => tensor.dtype = "I32".into(),
            2 => {
                tensor.dtype = "BF16".into();
                tensor.shape.push(2);
            }
            3 => tensor.shape.reverse(),
            4 => {
                let (name, other) = (tensor.name.clone(), self.tensors[twin].name.clone());
                self.tensors[index].name = other;
                self.tensors[twin].name = name;
            }
            5 => {
                if let Some(last) = self.tensors.pop() {
                    self.data.truncate(last.offsets[0] as usize);
                }
            }
            _ => self.push("extra", &[1 + stream.below(8) as u64]),
        }
    }

    fn mutate_entries(&mut self, stream: &mut Stream) {
        const TYPES: [&str; 9] = ["F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F4", ""];
        let (index, twin) = (stream.below(self.tensors.len()), stream.below(self.tensors.len()));
        let (count, other) = (self.tensors.len(), self.tensors[twin].clone());
        let tensor = &mut self.tensors[index];
        match stream.below(9) {
            0 => tensor.dtype = TYPES[stream.below(TYPES.len())].into(),
            1 if !tensor.shape.is_empty() => {
                let dim = stream.below(tensor.shape.len());
                tensor.shape[dim] = interesting(tensor.shape[dim], stream);
            }
            2 => tensor.shape.reverse(),
            3 => {
                let end = stream.below(2);
                tensor.offsets[end] = interesting(tensor.offsets[end], stream);
            }
            4 => tensor.name = other.name,
            5 => tensor.offsets = other.offsets,
            6 => *tensor = other,
            7 if count > 1 => drop(self.tensors.remove(index)),
            _ => {
                let dims = &mut tensor.shape;
                dims.insert(stream.below(dims.len() + 1), 1);
            }
        }
    }
}

/// A valid Llama of 2 layers in the Hugging Face layout with random F32 weights, for
/// [`super::tiny_config_json`]: width 16, 4 query and 2 key–value heads, MLP width 32, 64 tokens.
pub fn tiny_safetensors(seed: u64) -> SafetensorsSeed {
    let mut file = SafetensorsSeed { tensors: Vec::new(), data: Vec::new() };
    file.push("model.embed_tokens.weight", &[64, 16]);
    for layer in 0..2 {
        let mut add = |name: &str, shape: &[u64]| {
            file.push(&format!("model.layers.{layer}.{name}.weight"), shape);
        };
        add("input_layernorm", &[16]);
        add("post_attention_layernorm", &[16]);
        add("self_attn.q_proj", &[16, 16]);
        add("self_attn.k_proj", &[8, 16]);
        add("self_attn.v_proj", &[8, 16]);
        add("self_attn.o_proj", &[16, 16]);
        add("mlp.gate_proj", &[32, 16]);
        add("mlp.up_proj", &[32, 16]);
        add("mlp.down_proj", &[16, 32]);
    }
    file.push("model.norm.weight", &[16]);
    let mut stream = Seed::new(seed).stream("weights");
    for bytes in file.data.chunks_exact_mut(4) {
        bytes.copy_from_slice(&((0.2 * stream.normal()) as f32).to_le_bytes());
    }
    file
}
