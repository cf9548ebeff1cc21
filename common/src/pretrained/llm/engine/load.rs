//! Reads the weights of a model, checked against its configuration, into the engine's formats.
//!
//! Tensors are called by their GGUF names here; [`Source`] translates for Hugging Face files.

use super::config::{Architecture, ModelConfig};
use super::kernels::{BLOCK, Packed, PackedKind};
use super::matrix::{Matrix, Storage, common_kind, pack_rows};
use super::trainable::halves;
use super::{Precision, packing};
use crate::gguf::{GgmlDType, Gguf};
use crate::weights::Safetensors;
use crate::{Error, Result};
use half::f16;

/// All weights of a model.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) embedding: Matrix,
    /// `None` where the embedding is the output matrix.
    pub(super) output: Option<Matrix>,
    pub(super) norm: Vec<f32>,
    pub(super) layers: Vec<Layer>,
}

/// The weights of one layer. The projections of q, k and v are one matrix, as are the gate and up
/// projections of the MLP.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) qkv: Matrix,
    pub(super) qkv_bias: Option<Vec<f32>>,
    pub(super) query_norm: Option<Vec<f32>>,
    pub(super) key_norm: Option<Vec<f32>>,
    pub(super) attention_output: Matrix,
    pub(super) post_attention_norm: Option<Vec<f32>>,
    pub(super) mlp_norm: Vec<f32>,
    pub(super) gate_up: Matrix,
    pub(super) down: Matrix,
    pub(super) post_mlp_norm: Option<Vec<f32>>,
}

impl Weights {
    pub(super) fn load(
        source: &Source<'_>,
        config: &ModelConfig,
        precision: Precision,
    ) -> Result<Self> {
        let expected: Vec<(String, Vec<usize>)> =
            expected(config).into_iter().map(|(name, shape)| (source.name(&name), shape)).collect();
        source.check(&expected)?;
        let output = (!config.tie_word_embeddings)
            .then(|| source.matrix(&["output.weight".into()], precision, None))
            .transpose()?;
        Ok(Self {
            embedding: source.matrix(&["token_embd.weight".into()], precision, None)?,
            output,
            norm: source.vector("output_norm.weight")?,
            layers: (0..config.num_hidden_layers)
                .map(|layer| Layer::load(source, config, precision, layer))
                .collect::<Result<_>>()?,
        })
    }

    /// Memory of the matrices.
    pub(super) fn bytes(&self) -> usize {
        let layers = self.layers.iter().map(|layer| {
            [&layer.qkv, &layer.attention_output, &layer.gate_up, &layer.down]
                .map(Matrix::bytes)
                .iter()
                .sum::<usize>()
        });
        layers.sum::<usize>()
            + self.embedding.bytes()
            + self.output.as_ref().map_or(0, Matrix::bytes)
    }
}

impl Layer {
    fn load(
        source: &Source<'_>,
        config: &ModelConfig,
        precision: Precision,
        layer: usize,
    ) -> Result<Self> {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let matrix = |parts: &[&str], head_dim| {
            let names: Vec<String> = parts.iter().map(|part| name(part)).collect();
            source.matrix(&names, precision, head_dim)
        };
        let vector = |part: &str| source.vector(&name(part));
        let gemma = config.architecture == Architecture::Gemma3;
        let gemma_vector = |part: &str| gemma.then(|| vector(part)).transpose();
        let qkv_bias = if config.has_qkv_bias() {
            let parts = ["attn_q.bias", "attn_k.bias", "attn_v.bias"];
            Some(parts.iter().map(|part| vector(part)).collect::<Result<Vec<_>>>()?.concat())
        } else {
            None
        };
        // GGUF files of Llama pair neighbouring rows of q and k for the rotary embedding.
        let paired = config.architecture == Architecture::Llama && source.is_gguf();
        Ok(Self {
            attention_norm: vector("attn_norm.weight")?,
            qkv: matrix(
                &["attn_q.weight", "attn_k.weight", "attn_v.weight"],
                paired.then_some(config.head_dim),
            )?,
            qkv_bias,
            query_norm: gemma_vector("attn_q_norm.weight")?,
            key_norm: gemma_vector("attn_k_norm.weight")?,
            attention_output: matrix(&["attn_output.weight"], None)?,
            post_attention_norm: gemma_vector("post_attention_norm.weight")?,
            mlp_norm: vector("ffn_norm.weight")?,
            gate_up: matrix(&["ffn_gate.weight", "ffn_up.weight"], None)?,
            down: matrix(&["ffn_down.weight"], None)?,
            post_mlp_norm: gemma_vector("post_ffw_norm.weight")?,
        })
    }
}

/// Names and shapes of all tensors that a model of this configuration needs.
pub(super) fn expected(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, mlp) = (config.hidden_size, config.intermediate_size);
    let (query, key_value) = (config.query_size(), config.key_value_size());
    let mut expected = vec![
        ("token_embd.weight".to_owned(), vec![config.vocab_size, hidden]),
        ("output_norm.weight".to_owned(), vec![hidden]),
    ];
    if !config.tie_word_embeddings {
        expected.push(("output.weight".to_owned(), vec![config.vocab_size, hidden]));
    }
    let mut parts: Vec<(&str, Vec<usize>)> = vec![
        ("attn_norm.weight", vec![hidden]),
        ("attn_q.weight", vec![query, hidden]),
        ("attn_k.weight", vec![key_value, hidden]),
        ("attn_v.weight", vec![key_value, hidden]),
        ("attn_output.weight", vec![hidden, query]),
        ("ffn_norm.weight", vec![hidden]),
        ("ffn_gate.weight", vec![mlp, hidden]),
        ("ffn_up.weight", vec![mlp, hidden]),
        ("ffn_down.weight", vec![hidden, mlp]),
    ];
    if config.has_qkv_bias() {
        parts.extend([
            ("attn_q.bias", vec![query]),
            ("attn_k.bias", vec![key_value]),
            ("attn_v.bias", vec![key_value]),
        ]);
    }
    if config.architecture == Architecture::Gemma3 {
        parts.extend([
            ("attn_q_norm.weight", vec![config.head_dim]),
            ("attn_k_norm.weight", vec![config.head_dim]),
            ("post_attention_norm.weight", vec![hidden]),
            ("post_ffw_norm.weight", vec![hidden]),
        ]);
    }
    for layer in 0..config.num_hidden_layers {
        expected.extend(
            parts.iter().map(|(part, shape)| (format!("blk.{layer}.{part}"), shape.clone())),
        );
    }
    expected
}

/// Where weights come from.
pub(super) enum Source<'a> {
    Gguf(&'a Gguf),
    Hf(&'a Safetensors),
}

impl Source<'_> {
    fn is_gguf(&self) -> bool {
        matches!(self, Self::Gguf(_))
    }

    /// The file's name of a tensor.
    fn name(&self, gguf: &str) -> String {
        match self {
            Self::Gguf(_) => gguf.to_owned(),
            Self::Hf(_) => hf_name(gguf),
        }
    }

    pub(super) fn check(&self, expected: &[(String, Vec<usize>)]) -> Result<()> {
        match self {
            Self::Gguf(gguf) => gguf.check(expected),
            Self::Hf(file) => file.check(expected),
        }
    }

    pub(super) fn vector(&self, name: &str) -> Result<Vec<f32>> {
        let name = self.name(name);
        match self {
            Self::Gguf(gguf) => gguf.tensor(&name)?.to_f32(),
            Self::Hf(file) => file.tensor(&name)?.to_f32(),
        }
    }

    /// The matrices `names`, one below the other. With `paired` = the head size, the rows of all
    /// but the last are put from neighbouring pairs into halves.
    fn matrix(
        &self,
        names: &[String],
        precision: Precision,
        paired: Option<usize>,
    ) -> Result<Matrix> {
        let shapes = names.iter().map(|name| self.shape(name)).collect::<Result<Vec<_>>>()?;
        let cols = shapes[0].1;
        let rows: usize = shapes.iter().map(|(rows, _)| rows).sum();
        let pairing = |index: usize| paired.filter(|_| index + 1 < names.len());
        let storage = match precision {
            Precision::F32 => {
                let mut values = Vec::with_capacity(rows * cols);
                for (index, name) in names.iter().enumerate() {
                    values.append(&mut self.floats(name, cols, pairing(index))?);
                }
                Storage::F32(values)
            }
            Precision::F16 => {
                let mut values = Vec::with_capacity(rows * cols);
                for (index, name) in names.iter().enumerate() {
                    let floats = self.floats(name, cols, pairing(index))?;
                    values.extend(floats.into_iter().map(f16::from_f32));
                }
                Storage::F16(values)
            }
            Precision::Quantised | Precision::Auto => {
                let kinds = names
                    .iter()
                    .map(|name| Ok(self.dtype(name)?.map_or(PackedKind::Q8, packing::kind)))
                    .collect::<Result<Vec<_>>>()?;
                let mut packed = Packed::zeros(common_kind(kinds), rows, cols);
                let mut first = 0;
                for (index, (name, shape)) in names.iter().zip(&shapes).enumerate() {
                    self.pack(name, shape.0, cols, pairing(index), &mut packed, first)?;
                    first += shape.0;
                }
                Storage::Packed(packed)
            }
        };
        Ok(Matrix::new(rows, cols, storage))
    }

    fn shape(&self, name: &str) -> Result<(usize, usize)> {
        let name = self.name(name);
        let shape = match self {
            Self::Gguf(gguf) => gguf.tensor(&name)?.shape().to_vec(),
            Self::Hf(file) => file.tensor(&name)?.shape().to_vec(),
        };
        match shape[..] {
            [rows, cols] => Ok((rows, cols)),
            _ => Err(Error::Bug(format!("{name} passed the check with shape {shape:?}"))),
        }
    }

    fn dtype(&self, name: &str) -> Result<Option<GgmlDType>> {
        match self {
            Self::Gguf(gguf) => Ok(Some(gguf.tensor(name)?.dtype())),
            Self::Hf(_) => Ok(None),
        }
    }

    fn floats(&self, name: &str, cols: usize, paired: Option<usize>) -> Result<Vec<f32>> {
        let values = self.vector(name)?;
        Ok(match paired {
            Some(head_dim) => halves(&values, cols, head_dim),
            None => values,
        })
    }

    fn pack(
        &self,
        name: &str,
        rows: usize,
        cols: usize,
        paired: Option<usize>,
        out: &mut Packed,
        first: usize,
    ) -> Result<()> {
        if let Self::Gguf(gguf) = self {
            let tensor = gguf.tensor(name)?;
            if let Some(blocks) = packing::Blocks::new(tensor.dtype(), tensor.bytes(), out.kind()) {
                for row in 0..rows {
                    let from = paired.map_or(row, |head_dim| paired_row(row, head_dim));
                    for block in 0..cols / BLOCK {
                        let values = blocks.get(from * (cols / BLOCK) + block);
                        out.set_block(first + row, block, &values);
                    }
                }
                return Ok(());
            }
        }
        pack_rows(&self.floats(name, cols, paired)?, cols, out, first);
        Ok(())
    }
}

/// The row of a GGUF Llama's q or k projection that holds row `row` of the original: the file
/// keeps element i of a head beside element i + head size / 2.
pub(super) fn paired_row(row: usize, head_dim: usize) -> usize {
    let (head, i) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + if i < half { 2 * i } else { 2 * (i - half) + 1 }
}

/// The Hugging Face name of a tensor.
pub(super) fn hf_name(gguf: &str) -> String {
    match gguf {
        "token_embd.weight" => return "model.embed_tokens.weight".into(),
        "output_norm.weight" => return "model.norm.weight".into(),
        "output.weight" => return "lm_head.weight".into(),
        _ => {}
    }
    let mut parts = gguf.splitn(4, '.').skip(1);
    let (layer, module, kind) = (parts.next(), parts.next(), parts.next());
    let module = match module.unwrap_or_default() {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => other,
    };
    format!("model.layers.{}.{module}.{}", layer.unwrap_or_default(), kind.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_translated() {
        assert_eq!(hf_name("blk.3.ffn_down.weight"), "model.layers.3.mlp.down_proj.weight");
        assert_eq!(hf_name("blk.11.attn_k.bias"), "model.layers.11.self_attn.k_proj.bias");
        assert_eq!(hf_name("output.weight"), "lm_head.weight");
    }

    #[test]
    fn pairs_become_halves() {
        // The file's rows of a head of 6 hold the elements 0 3 1 4 2 5.
        let file = [0, 3, 1, 4, 2, 5];
        let restored: Vec<usize> = (0..6).map(|row| file[paired_row(row, 6)]).collect();
        assert_eq!(restored, [0, 1, 2, 3, 4, 5]);
        assert_eq!(paired_row(7, 6), 8);
    }
}
