//! Speed of training steps and operators: a server for `common::testing::bench_protocol`.
//!
//! ```sh
//! cargo run --release -p common --features testing --example train_bench -- --threads 2
//! ```
//!
//! | case | what is timed |
//! |---|---|
//! | `gpt`, `gpt_forward` | 4 pre-LN blocks, width 128, 4 heads, vocabulary 2,000, batch 64 × 64 tokens |
//! | `gpt:T:D` | a training step of the same depth with context T and width D, 4,096 tokens a batch |
//! | `rqvae` | 768-512-256-128-32 and back, 4 × 256 codes, batch 1,024 |
//! | `unet`, `unet_forward` | 3 × 32 × 32 images, 32/64/64 channels, batch 32 |
//! | `softmax_bwd`, `layer_norm_bwd`, `gelu`, `gelu_bwd`, `cross_entropy_bwd`, `column_sum`, `adamw`, `matmul:M:K:N`, `conv3x3:N:C:H:O`, `conv3x3_bwd:N:C:H:O` | single operators |
//!
//! A training step is forward, backward and AdamW on one fixed random batch.

use candle_core::{Device, Tensor};
use clap::Parser;
use common::nn::{
    Attention, AttentionInputs, Builder, Conv2d, Embedding, Heads, Init, LayerNorm, Linear, Mlp,
    Parameters, ResidualBlock,
};
use common::ops::{self, Activation};
use common::optim::{AdamW, AdamWOptions, Gradients, Workers};
use common::rng::Seed;
use common::testing::bench_protocol::{Case, Timings, serve};
use common::{Error, Result};
use serde_json::{Map, Value, json};

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Slices of a batch whose gradients are added; the same for every number of threads.
    #[arg(long, default_value_t = 4)]
    slices: usize,
}

fn normal(name: &str, shape: &[usize]) -> Result<Tensor> {
    Seed::new(0).stream(name).normal_tensor(shape, 1.0)
}

fn ids(name: &str, below: usize, shape: (usize, usize)) -> Result<Tensor> {
    let mut stream = Seed::new(0).stream(name);
    let ids: Vec<u32> = (0..shape.0 * shape.1).map(|_| stream.below(below) as u32).collect();
    Ok(Tensor::from_vec(ids, shape, &Device::Cpu)?)
}

/// A model with its batch: the loss of one slice as its share of the whole batch's.
trait Model: Sync {
    fn batch(&self) -> usize;
    fn loss(&self, first: usize, count: usize) -> Result<Tensor>;
    fn forward(&self, first: usize, count: usize) -> Result<Tensor>;
}

struct Gpt {
    tokens: Embedding,
    positions: Tensor,
    blocks: Vec<(LayerNorm, Attention, LayerNorm, Mlp)>,
    norm: LayerNorm,
    output: Linear,
    ids: Tensor,
    targets: Tensor,
}

const VOCABULARY: usize = 2000;

impl Gpt {
    fn new(b: &mut Builder, context: usize, width: usize) -> Result<Self> {
        let heads = Heads { heads: width / 32, kv_heads: width / 32, dim: 32 };
        let norm = |b: &mut Builder, name: &str| b.within(name, |b| LayerNorm::new(b, width, 1e-5));
        let linear = |b: &mut Builder, name: &str, inputs: usize, outputs: usize| {
            b.within(name, |b| Linear::new(b, inputs, outputs, true))
        };
        let block = |b: &mut Builder| {
            let qkv = linear(b, "qkv", width, 3 * width)?;
            let attention = Attention::packed(qkv, linear(b, "projection", width, width)?, heads);
            let up = linear(b, "up", width, 4 * width)?;
            let mlp = Mlp::new(up, linear(b, "down", 4 * width, width)?, Activation::GeluTanh);
            Ok((norm(b, "attention_norm")?, attention, norm(b, "mlp_norm")?, mlp))
        };
        let batch = 4096 / context;
        Ok(Self {
            tokens: b.within("tokens", |b| Embedding::new(b, VOCABULARY, width, 0.02))?,
            positions: b.tensor("positions", (context, width), Init::Normal(0.02))?,
            blocks: (0..4).map(|at| b.within(at, block)).collect::<Result<_>>()?,
            norm: norm(b, "final_norm")?,
            output: linear(b, "output", width, VOCABULARY)?,
            ids: ids("ids", VOCABULARY, (batch, context))?,
            targets: ids("targets", VOCABULARY, (batch, context))?,
        })
    }

    fn hidden(&self, first: usize, count: usize) -> Result<Tensor> {
        let ids = self.ids.narrow(0, first, count)?;
        let mut hidden = self.tokens.forward(&ids)?.broadcast_add(&self.positions)?;
        for (norm1, attention, norm2, mlp) in &self.blocks {
            let mixed = attention.forward(&norm1.forward(&hidden)?, AttentionInputs::default())?;
            hidden = (hidden + mixed)?;
            hidden = (&hidden + mlp.forward(&norm2.forward(&hidden)?)?)?;
        }
        self.norm.forward(&hidden)
    }
}

impl Model for Gpt {
    fn batch(&self) -> usize {
        self.ids.dims()[0]
    }

    fn loss(&self, first: usize, count: usize) -> Result<Tensor> {
        let hidden = self.hidden(first, count)?.flatten_to(1)?;
        let targets = self.targets.narrow(0, first, count)?.flatten_all()?;
        let (weight, bias) = (self.output.weight(), self.output.bias());
        let loss = ops::linear_cross_entropy(&hidden, weight, bias, &targets)?;
        Ok((loss * (count as f64 / self.batch() as f64))?)
    }

    fn forward(&self, first: usize, count: usize) -> Result<Tensor> {
        self.output.forward(&self.hidden(first, count)?)
    }
}

struct RqVae {
    encoder: Vec<Linear>,
    decoder: Vec<Linear>,
    codebooks: Vec<Tensor>,
    batch: Tensor,
}

const WIDTHS: [usize; 5] = [768, 512, 256, 128, 32];

impl RqVae {
    fn new(b: &mut Builder) -> Result<Self> {
        let layers = |b: &mut Builder, widths: &[usize]| {
            let pairs = widths.windows(2).enumerate();
            pairs
                .map(|(at, pair)| b.within(at, |b| Linear::new(b, pair[0], pair[1], true)))
                .collect::<Result<Vec<_>>>()
        };
        let mut mirrored = WIDTHS;
        mirrored.reverse();
        Ok(Self {
            encoder: b.within("encoder", |b| layers(b, &WIDTHS))?,
            decoder: b.within("decoder", |b| layers(b, &mirrored))?,
            codebooks: (0..4)
                .map(|at| b.tensor(&format!("codebooks.{at}"), (256, 32), Init::Normal(0.05)))
                .collect::<Result<_>>()?,
            batch: normal("batch", &[1024, WIDTHS[0]])?,
        })
    }

    fn run(layers: &[Linear], x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (at, layer) in layers.iter().enumerate() {
            let inner = at + 1 < layers.len();
            x = layer.forward_activation(&x, inner.then_some(Activation::Relu))?;
        }
        Ok(x)
    }
}

impl Model for RqVae {
    fn batch(&self) -> usize {
        self.batch.dims()[0]
    }

    fn loss(&self, first: usize, count: usize) -> Result<Tensor> {
        let batch = self.batch.narrow(0, first, count)?;
        let latent = Self::run(&self.encoder, &batch)?;
        let mut residual = latent.clone();
        let mut chosen_sum = latent.zeros_like()?.detach();
        let mut losses = Vec::new();
        for codebook in &self.codebooks {
            let target = residual.detach();
            let chosen = ops::embedding(codebook, &ops::nearest_rows(&target, codebook)?)?;
            let fixed = chosen.detach();
            losses.push(ops::mean_squared_error(&chosen, &target)?);
            losses.push((ops::mean_squared_error(&residual, &fixed)? * 0.25)?);
            residual = (residual - &fixed)?;
            chosen_sum = (chosen_sum + fixed)?;
        }
        let through = (&latent + (chosen_sum - latent.detach())?)?;
        let rebuilt = Self::run(&self.decoder, &through)?;
        let mut total = ops::mean_squared_error(&rebuilt, &batch)?;
        for loss in losses {
            total = (total + loss)?;
        }
        Ok((total * (count as f64 / self.batch() as f64))?)
    }

    fn forward(&self, first: usize, count: usize) -> Result<Tensor> {
        Self::run(&self.encoder, &self.batch.narrow(0, first, count)?)
    }
}

struct Unet {
    time: Linear,
    input: Conv2d,
    block1: ResidualBlock,
    down1: Conv2d,
    block2: ResidualBlock,
    down2: Conv2d,
    middle: ResidualBlock,
    up2: Conv2d,
    up_block2: ResidualBlock,
    up1: Conv2d,
    up_block1: ResidualBlock,
    output: Conv2d,
    image: Tensor,
    times: Tensor,
    target: Tensor,
}

impl Unet {
    fn new(b: &mut Builder) -> Result<Self> {
        let (narrow, wide, time) = (32, 64, 64);
        let mut conv = |name: &str, inputs: usize, outputs: usize, stride: usize| {
            b.within(name, |b| Conv2d::new(b, inputs, outputs, 3, stride, 1))
        };
        let input = conv("input", 3, narrow, 1)?;
        let (down1, down2) = (conv("down1", narrow, wide, 2)?, conv("down2", wide, wide, 2)?);
        let (up2, up1) = (conv("up2", 2 * wide, wide, 1)?, conv("up1", wide + narrow, narrow, 1)?);
        let output = conv("output", narrow, 3, 1)?;
        let mut block = |name: &str, channels: usize| {
            b.within(name, |b| ResidualBlock::new(b, channels, 8, time))
        };
        Ok(Self {
            block1: block("block1", narrow)?,
            block2: block("block2", wide)?,
            middle: block("middle", wide)?,
            up_block2: block("up_block2", wide)?,
            up_block1: block("up_block1", narrow)?,
            time: b.within("time", |b| Linear::new(b, time, time, true))?,
            input,
            down1,
            down2,
            up2,
            up1,
            output,
            image: normal("image", &[32, 3, 32, 32])?,
            times: normal("times", &[32, time])?,
            target: normal("target", &[32, 3, 32, 32])?,
        })
    }
}

impl Model for Unet {
    fn batch(&self) -> usize {
        self.image.dims()[0]
    }

    fn forward(&self, first: usize, count: usize) -> Result<Tensor> {
        let times = self.times.narrow(0, first, count)?;
        let time = self.time.forward_activation(&times, Some(Activation::Silu))?;
        let image = self.image.narrow(0, first, count)?;
        let skip1 = self.block1.forward(&self.input.forward(&image)?, &time)?;
        let skip2 = self.block2.forward(&self.down1.forward(&skip1)?, &time)?;
        let hidden = self.middle.forward(&self.down2.forward(&skip2)?, &time)?;
        let join = |hidden: &Tensor, skip: &Tensor| {
            Tensor::cat(&[&ops::upsample_nearest(hidden, 2)?, skip], 1)
        };
        let hidden = self.up2.forward(&join(&hidden, &skip2)?)?;
        let hidden = self.up_block2.forward(&hidden, &time)?;
        let hidden = self.up1.forward(&join(&hidden, &skip1)?)?;
        self.output.forward(&self.up_block1.forward(&hidden, &time)?)
    }

    fn loss(&self, first: usize, count: usize) -> Result<Tensor> {
        let target = self.target.narrow(0, first, count)?;
        let loss = ops::mean_squared_error(&self.forward(first, count)?, &target)?;
        Ok((loss * (count as f64 / self.batch() as f64))?)
    }
}

/// Slices of a batch over the workers.
struct Step {
    model: Box<dyn Model>,
    parameters: Parameters,
    optimiser: AdamW,
    workers: Workers,
    slices: usize,
    first_loss: Option<f64>,
}

impl Step {
    fn train(&mut self) -> Result<()> {
        let rows = self.model.batch() / self.slices;
        let model = &self.model;
        let loss = |slice: usize| model.loss(slice * rows, rows);
        let (loss, gradients) = self.workers.gradients(&self.parameters, self.slices, loss)?;
        self.optimiser.step(&gradients, 1e-3)?;
        self.first_loss.get_or_insert(loss);
        Ok(())
    }

    fn forward(&self) -> Result<()> {
        let rows = self.model.batch() / self.slices;
        let work = |slice: usize| self.model.forward(slice * rows, rows).map(drop);
        self.workers.map(self.slices, work).map(drop)
    }
}

impl Case for Step {
    fn run(&mut self) -> Result<()> {
        self.train()
    }

    fn fields(&self, _: &Timings) -> Map<String, Value> {
        Map::from_iter([("first_loss".to_owned(), json!(self.first_loss))])
    }
}

struct Work(Box<dyn FnMut() -> Result<()>>);

impl Case for Work {
    fn run(&mut self) -> Result<()> {
        (self.0)()
    }
}

fn work(run: impl FnMut() -> Result<()> + 'static) -> Result<Box<dyn Case>> {
    Ok(Box::new(Work(Box::new(run))))
}

/// Forward and backward of `loss` of variables with the given shapes, gradients thrown away.
fn gradient<const N: usize>(
    shapes: [&[usize]; N],
    loss: impl Fn(&[Tensor; N]) -> Result<Tensor> + 'static,
) -> Result<Box<dyn Case>> {
    let mut builder = Builder::seeded(Seed::new(0));
    let mut variables = Vec::new();
    for (at, shape) in shapes.into_iter().enumerate() {
        variables.push(builder.tensor(&at.to_string(), shape, Init::Normal(1.0))?);
    }
    let variables: [Tensor; N] =
        variables.try_into().map_err(|_| Error::Bug("a variable is lost".into()))?;
    let parameters = builder.finish();
    work(move || Gradients::of(&loss(&variables)?, &parameters).map(drop))
}

fn step(kind: &str, sizes: &[usize], frozen: bool, arguments: &Arguments) -> Result<Step> {
    let mut builder = Builder::seeded(Seed::new(1));
    if frozen {
        builder = builder.frozen();
    }
    let b = &mut builder;
    let model: Box<dyn Model> = match (kind, sizes) {
        ("gpt", []) => Box::new(Gpt::new(b, 64, 128)?),
        ("gpt", [context, width]) => Box::new(Gpt::new(b, *context, *width)?),
        ("rqvae", []) => Box::new(RqVae::new(b)?),
        _ => Box::new(Unet::new(b)?),
    };
    let parameters = builder.finish();
    let optimiser = AdamW::new(&parameters, AdamWOptions::default());
    let workers = Workers::new(arguments.threads)?;
    let slices = arguments.slices.min(model.batch());
    Ok(Step { model, parameters, optimiser, workers, slices, first_loss: None })
}

fn build(name: &str, arguments: &Arguments) -> Result<Box<dyn Case>> {
    let unknown = || Error::usage(format!("unknown case {name}"));
    let (kind, numbers) = name.split_once(':').unwrap_or((name, ""));
    let sizes = numbers.split(':').filter(|number| !number.is_empty());
    let sizes: Vec<usize> =
        sizes.map(|n| n.parse().map_err(|_| unknown())).collect::<Result<_>>()?;
    match (kind, &sizes[..]) {
        ("gpt" | "rqvae" | "unet", _) => Ok(Box::new(step(kind, &sizes, false, arguments)?)),
        ("gpt_forward" | "unet_forward", []) => {
            let step = step(kind.trim_end_matches("_forward"), &[], true, arguments)?;
            work(move || step.forward())
        }
        ("softmax_bwd", []) => {
            let weights = normal("w", &[64, 4, 64, 64])?;
            let options = ops::SoftmaxOptions::default();
            gradient([&[64, 4, 64, 64]], move |[x]| {
                Ok(ops::weighted_sum(&ops::softmax(x, &options)?, &weights)?)
            })
        }
        ("layer_norm_bwd", []) => {
            let weights = normal("w", &[4096, 128])?;
            gradient([&[4096, 128], &[128], &[128]], move |[x, scale, shift]| {
                let y = ops::layer_norm(x, scale, Some(shift), 1e-5)?;
                Ok(ops::weighted_sum(&y, &weights)?)
            })
        }
        ("gelu", []) => {
            let x = normal("x", &[4096, 512])?;
            work(move || Ok(Activation::GeluTanh.apply(&x).map(drop)?))
        }
        ("gelu_bwd", []) => {
            let weights = normal("w", &[4096, 512])?;
            gradient([&[4096, 512]], move |[x]| {
                Ok(ops::weighted_sum(&Activation::GeluTanh.apply(x)?, &weights)?)
            })
        }
        ("cross_entropy_bwd", []) => {
            let targets = ids("t", 2000, (4096, 1))?.flatten_all()?;
            gradient([&[4096, 2000]], move |[x]| {
                Ok(ops::cross_entropy(x, &targets, &Default::default())?)
            })
        }
        ("column_sum", []) => {
            let x = normal("x", &[4096, 512])?;
            work(move || Ok(ops::column_sum(&x).map(drop)?))
        }
        ("adamw", []) => {
            let mut builder = Builder::seeded(Seed::new(1));
            for at in 0..16 {
                builder.tensor(&format!("{at}"), (256, 256), Init::Normal(1.0))?;
            }
            let parameters = builder.finish();
            let tensors =
                (0..16).map(|at| normal(&format!("{at}"), &[256, 256])).collect::<Result<_>>()?;
            let gradients = Gradients::from_tensors(tensors, &parameters)?;
            let mut optimiser = AdamW::new(&parameters, AdamWOptions::default());
            work(move || optimiser.step(&gradients, 1e-3))
        }
        ("matmul", [rows, inner, columns]) => {
            let (a, b) = (normal("a", &[*rows, *inner])?, normal("b", &[*inner, *columns])?);
            work(move || Ok(a.matmul(&b).map(drop)?))
        }
        ("conv3x3", [n, c, h, o]) => {
            let (x, kernel) = (normal("x", &[*n, *c, *h, *h])?, normal("k", &[*o, *c, 3, 3])?);
            work(move || Ok(ops::conv2d(&x, &kernel, None, 1, 1).map(drop)?))
        }
        ("conv3x3_bwd", [n, c, h, o]) => {
            let shapes: [&[usize]; 2] = [&[*n, *c, *h, *h], &[*o, *c, 3, 3]];
            let zero = Tensor::zeros((*n, *o, *h, *h), candle_core::DType::F32, &Device::Cpu)?;
            let count = zero.elem_count() as f64;
            gradient(shapes, move |[x, kernel]| {
                let y = ops::conv2d(x, kernel, None, 1, 1)?;
                Ok((ops::mean_squared_error(&y, &zero)? * count)?)
            })
        }
        _ => Err(unknown()),
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    common::runtime::init(Some(arguments.threads));
    let answer = |name: &str| build(name, &arguments);
    // from inside the pool an operator's blocks start at once: nobody waits to be woken
    rayon::scope(|_| serve(std::io::stdin().lock(), std::io::stdout().lock(), answer))?;
    Ok(())
}
