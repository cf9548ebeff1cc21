//! Layers that no language model covers: convolutional blocks, attention over a cache, initialisation.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use common::encode::{Bert, BertConfig};
use common::nn::{
    Attention, AttentionInputs, Builder, Conv2d, Embedding, Heads, Init, KvCache, Linear,
    RelativeBias, ResidualBlock, RmsNorm,
};
use common::ops::{self, Activation, SoftmaxOptions};
use common::optim::Gradients;
use common::rng::Seed;
use common::testing::gradients::assert_all_grads;
use common::testing::{assert_close, golden, golden_tensors};
use common::{Error, Result};

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn normal(shape: &[usize]) -> Tensor {
    Seed::new(2).stream("input").normal_tensor(shape, 1.0).unwrap()
}

#[test]
fn a_residual_block_trains_all_its_parameters() {
    let mut builder = Builder::seeded(Seed::new(1));
    let block = ResidualBlock::new(&mut builder, 6, 3, 5).unwrap();
    let down = builder.within("down", |b| Conv2d::new(b, 6, 4, 3, 2, 1)).unwrap();
    let parameters = builder.finish();
    let y = block.forward(&normal(&[2, 6, 7, 5]), &normal(&[2, 5])).unwrap();
    assert_eq!(y.dims(), [2, 6, 7, 5]);
    let y = down.forward(&y).unwrap();
    assert_eq!(y.dims(), [2, 4, 4, 3]);
    let wide = ops::upsample_nearest(&y, 2).unwrap();
    let loss = (wide.sqr().unwrap().sum_all().unwrap() + y.sum_all().unwrap()).unwrap();
    assert_all_grads(&loss, &parameters);
}

#[test]
fn weights_are_drawn_as_pytorch_draws_them() {
    let mut builder = Builder::seeded(Seed::new(1));
    let linear = Linear::new(&mut builder, 64, 50, true).unwrap();
    let conv = builder.within("conv", |b| Conv2d::new(b, 4, 32, 4, 1, 0)).unwrap();
    drop((linear, conv));
    // both have 64 inputs: uniform in ±1/8, variance 1/192
    for (name, var) in builder.finish().iter() {
        let values = values(var);
        assert!(values.iter().all(|v| v.abs() <= 0.125), "{name}");
        let variance = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        let slack = if values.len() > 1000 { 0.1 } else { 0.5 };
        assert!((variance * 192.0 - 1.0).abs() < slack, "{name}: {variance}");
    }
}

#[test]
fn a_cached_pass_equals_the_whole_one() {
    let mut builder = Builder::seeded(Seed::new(3));
    let heads = Heads { heads: 4, kv_heads: 2, dim: 3 };
    let layer = Attention::split(&mut builder, 8, heads, true, false, Init::Normal(0.5)).unwrap();
    let x = normal(&[2, 70, 8]);
    let whole = layer.forward(&x, AttentionInputs::default()).unwrap();
    let mut cache = KvCache::default();
    let mut parts = Vec::new();
    for (first, count) in [(0, 5), (5, 1), (6, 60), (66, 4)] {
        let inputs = AttentionInputs { cache: Some(&mut cache), ..AttentionInputs::default() };
        parts.push(layer.forward(&x.narrow(1, first, count).unwrap(), inputs).unwrap());
    }
    assert_eq!(cache.len(), 70);
    assert_close(&values(&Tensor::cat(&parts, 1).unwrap()), &values(&whole), 1e-5, 0.0);
    // after going back, the same positions give the same again
    cache.truncate(66);
    let inputs = AttentionInputs { cache: Some(&mut cache), ..AttentionInputs::default() };
    let again = layer.forward(&x.narrow(1, 66, 4).unwrap(), inputs).unwrap();
    assert_eq!(values(&again), values(&parts[3]));
    // the other order of sequences
    cache.truncate(66);
    cache.select(&[1, 0]).unwrap();
    let swapped = x.narrow(1, 66, 4).unwrap().contiguous().unwrap();
    let order = Tensor::new(&[1u32, 0], &Device::Cpu).unwrap();
    let swapped = swapped.index_select(&order, 0).unwrap();
    let inputs = AttentionInputs { cache: Some(&mut cache), ..AttentionInputs::default() };
    let found = layer.forward(&swapped, inputs).unwrap();
    let expected = parts[3].index_select(&order, 0).unwrap();
    assert_close(&values(&found), &values(&expected), 1e-6, 0.0);
}

#[test]
fn a_relative_bias_depends_on_the_distance_only() {
    let mut builder = Builder::seeded(Seed::new(4));
    let bias = RelativeBias::new(&mut builder, 2, 8, 16, true).unwrap();
    let parameters = builder.finish();
    let square = bias.forward(9, 9).unwrap();
    assert_eq!(square.dims(), [1, 2, 9, 9]);
    // the last queries of a cached pass see what they see in the whole one
    let last = bias.forward(2, 9).unwrap();
    assert_eq!(values(&square.narrow(2, 7, 2).unwrap()), values(&last));
    let grid = square.squeeze(0).unwrap().to_vec3::<f32>().unwrap();
    assert_eq!(grid[1][3][5], grid[1][6][8]);
    assert!(RelativeBias::new(&mut Builder::seeded(Seed::new(1)), 2, 8, 8, true).is_err());
    assert_all_grads(&bias.forward(20, 20).unwrap().sum_all().unwrap(), &parameters);
}

#[test]
fn a_frozen_model_records_nothing() {
    let mut builder = Builder::seeded(Seed::new(1)).frozen();
    let linear = Linear::new(&mut builder, 4, 4, true).unwrap();
    assert!(!linear.forward(&normal(&[2, 4])).unwrap().track_op());
    let mut builder = Builder::seeded(Seed::new(1));
    let linear = Linear::new(&mut builder, 4, 4, true).unwrap();
    assert!(linear.forward(&normal(&[2, 4])).unwrap().track_op());
}

/// Hidden states and gradients of an encoder against the golden file `name`: `run` maps ids and mask
/// to hidden states with parameters from the builder.
fn encoder_golden(name: &str, run: impl Fn(&mut Builder, &Tensor, &Tensor) -> Result<Tensor>) {
    // other seeds: `make_nn.py --seed N --out DIR`, and DIR here
    let folder = std::env::var("NN_GOLDENS").map(Into::into);
    let folder = folder.unwrap_or_else(|_| golden(env!("CARGO_MANIFEST_DIR"), "nn"));
    let e = golden_tensors(&folder.join(format!("{name}.safetensors")));
    let part = |prefix: &str| -> BTreeMap<String, Tensor> {
        let parts = e.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?, t)));
        parts.map(|(name, t)| (name.to_owned(), t.clone())).collect()
    };
    let mut builder = Builder::from_tensors(part("model."));
    let hidden = run(&mut builder, &e["input_ids"], &e["attention_mask"]).unwrap();
    let parameters = builder.finish();
    let mask = e["attention_mask"].to_dtype(DType::F32).unwrap().unsqueeze(2).unwrap();
    let seen = hidden.broadcast_mul(&mask).unwrap();
    assert_close(&values(&seen), &values(&e["hidden"]), 1e-4, 0.0);
    let loss = ops::weighted_sum(&hidden, &e["probe"]).unwrap();
    let expected = part("grad.");
    assert_eq!(parameters.len(), expected.len());
    let gradients = Gradients::of(&loss, &parameters).unwrap();
    for ((name, _), found) in parameters.iter().zip(gradients.tensors()) {
        let expected = values(&expected[name]);
        let largest = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
        // the bias of a key moves all scores of a query alike: its gradient is 0 but for rounding
        assert_close(&values(found), &expected, 1e-3 * f64::from(largest).max(1e-2), 0.0);
    }
}

#[test]
fn bert_and_its_gradients_equal_transformers() {
    let config = BertConfig {
        vocab_size: 60,
        hidden_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        intermediate_size: 64,
        hidden_act: "gelu".into(),
        max_position_embeddings: 16,
        type_vocab_size: 1,
        layer_norm_eps: 1e-12,
        position_embedding_type: None,
    };
    encoder_golden("bert", |b, ids, mask| {
        let types = Tensor::zeros(ids.dims2()?, DType::U32, &Device::Cpu)?;
        Bert::new(b, &config)?.forward(ids, &types, mask)
    });
}

#[test]
fn a_t5_encoder_of_these_layers_equals_transformers() {
    encoder_golden("t5", |b, ids, mask| {
        let width = 32;
        let linear = |b: &mut Builder, name: &str, inputs: usize, outputs: usize| {
            b.within(name, |b| Linear::with_init(b, inputs, outputs, None, Init::Constant(0.0)))
        };
        let norm = |b: &mut Builder, name: &str| b.within(name, |b| RmsNorm::new(b, width, 1e-6));
        let (batch, positions) = ids.dims2()?;
        let mut x = b.within("shared", |b| Embedding::new(b, 60, width, 1.0))?.forward(ids)?;
        let options = SoftmaxOptions { scale: 1.0, causal: false, key_mask: Some(mask.clone()) };
        let mut bias = None;
        for layer in 0..2 {
            x = b.within(format!("encoder.block.{layer}.layer"), |b| {
                let normed = norm(b, "0.layer_norm")?.forward(&x)?;
                let mixed = b.within("0.SelfAttention", |b| {
                    if bias.is_none() {
                        let shared = b.within("relative_attention_bias", |b| {
                            RelativeBias::new(b, 4, 8, 16, true)
                        })?;
                        bias = Some(shared.forward(positions, positions)?);
                    }
                    let part = |b: &mut Builder, name: &str| {
                        let part = linear(b, name, width, width)?.forward(&normed)?;
                        let part = part.reshape((batch, positions, 4, 8))?.transpose(1, 2)?;
                        Ok::<_, Error>(part.contiguous()?)
                    };
                    let (q, k, v) = (part(b, "q")?, part(b, "k")?, part(b, "v")?);
                    let scores = q.matmul(&k.t()?)?.broadcast_add(bias.as_ref().unwrap())?;
                    let mixed = ops::softmax(&scores, &options)?.matmul(&v)?.transpose(1, 2)?;
                    linear(b, "o", width, width)?.forward(&mixed.contiguous()?.flatten_from(2)?)
                })?;
                let x = (&x + mixed)?;
                let normed = norm(b, "1.layer_norm")?.forward(&x)?;
                let fed = b.within("1.DenseReluDense", |b| {
                    let gate = linear(b, "wi_0", width, 48)?;
                    let gate = gate.forward_activation(&normed, Some(Activation::GeluTanh))?;
                    let up = linear(b, "wi_1", width, 48)?.forward(&normed)?;
                    linear(b, "wo", 48, width)?.forward(&(gate * up)?)
                })?;
                Ok((x + fed)?)
            })?;
        }
        norm(b, "encoder.final_layer_norm")?.forward(&x)
    });
}
