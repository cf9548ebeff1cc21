//! Layers that no language model covers: convolutional blocks, attention over a cache, initialisation.

#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor};
use common::nn::{
    Attention, AttentionInputs, Builder, Conv2d, Heads, Init, KvCache, Linear, RelativeBias,
    ResidualBlock,
};
use common::ops;
use common::rng::Seed;
use common::testing::assert_close;
use common::testing::gradients::assert_all_grads;

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
