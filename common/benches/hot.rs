//! Operators that training spends its time in, forward and backward, on the shapes of a small GPT.
//!
//! ```sh
//! cargo bench -p common --bench hot
//! ```
//!
//! Against PyTorch they are measured by `examples/train_bench.rs`; see docs/PERFORMANCE.md.

use candle_core::{Device, Tensor};
use common::Result;
use common::nn::{Builder, Init};
use common::ops::{self, Activation, AttentionOptions, CrossEntropyOptions, SoftmaxOptions};
use common::optim::{AdamW, AdamWOptions, Gradients};
use common::rng::Seed;
use divan::Bencher;

fn main() {
    common::runtime::init(None);
    divan::main();
}

fn normal(name: &str, shape: &[usize]) -> Result<Tensor> {
    Seed::new(0).stream(name).normal_tensor(shape, 1.0)
}

fn ids(count: usize, below: usize) -> Result<Tensor> {
    let mut stream = Seed::new(0).stream("ids");
    let ids: Vec<u32> = (0..count).map(|_| stream.below(below) as u32).collect();
    Ok(Tensor::from_vec(ids, count, &Device::Cpu)?)
}

/// Times the loss of `op`, the sum of its outputs weighted at random, and the gradients of variables
/// of the given shapes.
fn forward_backward<const N: usize>(
    bencher: Bencher,
    shapes: [&[usize]; N],
    op: impl Fn(&[Tensor; N]) -> candle_core::Result<Tensor>,
) {
    let prepare = || {
        let mut builder = Builder::seeded(Seed::new(1));
        let mut variables = Vec::new();
        for (at, shape) in shapes.iter().enumerate() {
            variables.push(builder.tensor(&at.to_string(), *shape, Init::Normal(1.0))?);
        }
        let variables: [Tensor; N] =
            variables.try_into().map_err(|_| common::Error::Bug("a variable is lost".into()))?;
        let weights = normal("weights", op(&variables)?.dims())?;
        Ok::<_, common::Error>((variables, weights, builder.finish()))
    };
    let (variables, weights, parameters) = prepare().expect("a case");
    bencher.bench_local(|| {
        let loss = ops::weighted_sum(&op(&variables)?, &weights)?;
        Gradients::of(&loss, &parameters)
    });
}

#[divan::bench]
fn linear(bencher: Bencher) {
    let shapes: [&[usize]; 3] = [&[4096, 128], &[512, 128], &[512]];
    forward_backward(bencher, shapes, |[x, w, b]| ops::linear(x, w, Some(b)));
}

#[divan::bench]
fn linear_gelu(bencher: Bencher) {
    let shapes: [&[usize]; 3] = [&[4096, 128], &[512, 128], &[512]];
    let gelu = Some(Activation::GeluTanh);
    forward_backward(bencher, shapes, |[x, w, b]| ops::linear_activation(x, w, Some(b), gelu));
}

#[divan::bench(args = ["gelu_tanh", "gelu", "silu", "relu"])]
fn activation(bencher: Bencher, name: &str) {
    let activation = match name {
        "gelu_tanh" => Activation::GeluTanh,
        "gelu" => Activation::Gelu,
        "silu" => Activation::Silu,
        _ => Activation::Relu,
    };
    forward_backward(bencher, [&[4096, 512]], |[x]| activation.apply(x));
}

#[divan::bench]
fn layer_norm(bencher: Bencher) {
    let shapes: [&[usize]; 3] = [&[4096, 128], &[128], &[128]];
    forward_backward(bencher, shapes, |[x, w, b]| ops::layer_norm(x, w, Some(b), 1e-5));
}

#[divan::bench]
fn rms_norm(bencher: Bencher) {
    forward_backward(bencher, [&[4096, 128], &[128]], |[x, w]| ops::rms_norm(x, w, 1e-5));
}

#[divan::bench]
fn group_norm_silu(bencher: Bencher) {
    let shapes: [&[usize]; 3] = [&[32, 32, 32, 32], &[32], &[32]];
    let silu = Some(Activation::Silu);
    forward_backward(bencher, shapes, |[x, w, b]| ops::group_norm(x, w, b, 8, 1e-5, silu));
}

#[divan::bench]
fn softmax(bencher: Bencher) {
    let options = SoftmaxOptions { causal: true, ..SoftmaxOptions::default() };
    forward_backward(bencher, [&[64, 4, 64, 64]], |[x]| ops::softmax(x, &options));
}

#[divan::bench]
fn attention(bencher: Bencher) {
    let options = AttentionOptions { scale: None, causal: true, key_mask: None };
    forward_backward(bencher, [&[64, 64, 384]], |[qkv]| ops::attention_packed(qkv, 4, 4, &options));
}

#[divan::bench]
fn cross_entropy(bencher: Bencher) {
    let targets = ids(4096, 2000).expect("ids");
    let options = CrossEntropyOptions::default();
    forward_backward(bencher, [&[4096, 2000]], |[x]| ops::cross_entropy(x, &targets, &options));
}

#[divan::bench]
fn embedding(bencher: Bencher) {
    let ids = ids(4096, 2000).expect("ids");
    forward_backward(bencher, [&[2000, 128]], |[table]| ops::embedding(table, &ids));
}

#[divan::bench]
fn conv3x3(bencher: Bencher) {
    let shapes: [&[usize]; 3] = [&[32, 32, 32, 32], &[32, 32, 3, 3], &[32]];
    forward_backward(bencher, shapes, |[x, w, b]| ops::conv2d(x, w, Some(b), 1, 1));
}

#[divan::bench]
fn nearest_rows(bencher: Bencher) {
    let (x, table) = (normal("x", &[1024, 32]), normal("table", &[256, 32]));
    let (x, table) = (x.expect("rows"), table.expect("a table"));
    bencher.bench_local(|| ops::nearest_rows(&x, &table));
}

#[divan::bench]
fn adamw(bencher: Bencher) {
    let mut builder = Builder::seeded(Seed::new(1));
    builder.tensor("weight", (1024, 1024), Init::Normal(1.0)).expect("a variable");
    let parameters = builder.finish();
    let gradient = normal("gradient", &[1024, 1024]).expect("a gradient");
    let gradients = Gradients::from_tensors(vec![gradient], &parameters).expect("gradients");
    let mut optimiser = AdamW::new(&parameters, AdamWOptions::default());
    bencher.bench_local(|| optimiser.step(&gradients, 1e-3));
}
