//! AdamW against PyTorch, and data parallelism that does not depend on the threads.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use common::nn::{Builder, Init, Parameters};
use common::ops::{self, Activation};
use common::optim::{AdamW, AdamWOptions, Ema, Gradients, Schedule, ScheduleShape, Workers};
use common::rng::Seed;
use common::testing::gradients::assert_all_grads;
use common::testing::{assert_close, golden, golden_json, golden_tensors};
use serde_json::Value;

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// 20 steps of the golden run with the given slices of its gradients; checks every kept step.
fn golden_run(label: &str, clip: Option<f64>, schedule: impl Fn(u64) -> f64) {
    let folder = golden(env!("CARGO_MANIFEST_DIR"), "adamw");
    let tensors = golden_tensors(&folder.join("adamw.safetensors"));
    let info: Value = golden_json(&folder.join("adamw.json"));
    let names = ["matrix", "vector", "scalar"];
    let start: BTreeMap<String, Tensor> =
        names.iter().map(|n| ((*n).to_owned(), tensors[&format!("start.{n}")].clone())).collect();
    let mut builder = Builder::from_tensors(start.clone());
    for name in names {
        builder.tensor(name, start[name].shape(), Init::Constant(0.0)).unwrap();
    }
    let parameters = builder.finish();
    let mut optimiser = AdamW::new(&parameters, AdamWOptions::default());
    let scalars = &info["runs"][label];
    for step in 1..=20usize {
        let of_step = |name: &&str| tensors[&format!("grad.{name}")].get(step - 1).unwrap();
        let mut gradients =
            Gradients::from_tensors(names.iter().map(of_step).collect(), &parameters).unwrap();
        if let Some(most) = clip {
            let norm = gradients.clip_global_norm(most).unwrap();
            let expected = scalars["grad_norm_before_clip"][step - 1].as_f64().unwrap();
            assert_close(&[norm], &[expected], 0.0, 1e-6);
        }
        let lr = schedule(step as u64 - 1);
        assert_close(&[lr], &[scalars["lr"][step - 1].as_f64().unwrap()], 1e-12, 0.0);
        optimiser.step(&gradients, lr).unwrap();
        let state = optimiser.state().unwrap();
        for name in names {
            let key = |what: &str| format!("{label}.step{step}.{name}.{what}");
            let Some(expected) = tensors.get(&key("param")) else { continue };
            let found = parameters.get(name).unwrap().as_tensor();
            assert_close(&values(found), &values(expected), 1e-6, 1e-6);
            for moment in ["exp_avg", "exp_avg_sq"] {
                let found = &state[&format!("{moment}.{name}")];
                assert_close(&values(found), &values(&tensors[&key(moment)]), 1e-7, 1e-6);
            }
        }
    }
    assert_eq!(optimiser.step_count(), 20);
}

#[test]
fn adamw_equals_pytorch() {
    golden_run("plain", None, |_| 0.01);
}

#[test]
fn clipping_and_cosine_schedule_equal_pytorch() {
    let schedule = Schedule { peak: 0.01, warmup: 5, shape: ScheduleShape::Cosine { total: 20 } };
    golden_run("clip_schedule", Some(1.0), |step| schedule.at(step));
}

/// A two-layer network on fixed data.
struct Net {
    first: (Tensor, Tensor),
    second: (Tensor, Tensor),
    parameters: Parameters,
    x: Tensor,
    y: Tensor,
}

const ROWS: usize = 24;

impl Net {
    fn new() -> Self {
        let mut builder = Builder::seeded(Seed::new(5));
        let mut layer = |name: &str, inputs: usize, outputs: usize| {
            builder
                .within(name, |b| {
                    let init = Init::fan_in(inputs);
                    Ok((
                        b.tensor("weight", (outputs, inputs), init)?,
                        b.tensor("bias", outputs, init)?,
                    ))
                })
                .unwrap()
        };
        let (first, second) = (layer("first", 9, 33), layer("second", 33, 4));
        let mut stream = Seed::new(6).stream("data");
        Self {
            first,
            second,
            parameters: builder.finish(),
            x: stream.normal_tensor((ROWS, 9), 1.0).unwrap(),
            y: stream.normal_tensor((ROWS, 4), 1.0).unwrap(),
        }
    }

    /// Sum of squared errors of some rows, as their share of the mean over all.
    fn loss(&self, from: usize, count: usize) -> common::Result<Tensor> {
        let x = self.x.narrow(0, from, count)?;
        let (w, b) = &self.first;
        let hidden = ops::linear_activation(&x, w, Some(b), Some(Activation::GeluTanh))?;
        let y = ops::linear(&hidden, &self.second.0, Some(&self.second.1))?;
        let error = (y - self.y.narrow(0, from, count)?)?;
        Ok((error.sqr()?.sum_all()? / (ROWS * 4) as f64)?)
    }
}

fn train(threads: usize, slices: usize, steps: usize) -> (Vec<f64>, Vec<u32>) {
    let net = Net::new();
    let workers = Workers::new(threads).unwrap();
    let mut optimiser = AdamW::new(&net.parameters, AdamWOptions::default());
    let mut losses = Vec::new();
    for _ in 0..steps {
        let rows = ROWS / slices;
        let (loss, gradients) = workers
            .gradients(&net.parameters, slices, |slice| net.loss(slice * rows, rows))
            .unwrap();
        optimiser.step(&gradients, 1e-2).unwrap();
        losses.push(loss);
    }
    let bits = |(_, var): (&str, &candle_core::Var)| values(var).into_iter().map(f32::to_bits);
    (losses, net.parameters.iter().flat_map(bits).collect())
}

#[test]
fn a_run_depends_neither_on_threads_nor_on_luck() {
    let one = train(1, 4, 100);
    assert_eq!(one, train(2, 4, 100));
    assert_eq!(one, train(3, 4, 100));
    assert_eq!(one, train(1, 4, 100));
    assert!(one.0[99] < 0.3 * one.0[0], "{} → {}", one.0[0], one.0[99]);
}

#[test]
fn slices_add_up_to_the_whole() {
    let net = Net::new();
    assert_all_grads(&net.loss(0, ROWS).unwrap(), &net.parameters);
    let whole = Gradients::of(&net.loss(0, ROWS).unwrap(), &net.parameters).unwrap();
    let workers = Workers::new(2).unwrap();
    let (_, parts) = workers.gradients(&net.parameters, 3, |slice| net.loss(slice * 8, 8)).unwrap();
    for (a, b) in whole.tensors().iter().zip(parts.tensors()) {
        assert_close(&values(a), &values(b), 1e-6, 1e-4);
    }
}

#[test]
fn gradients_that_go_around_candle_are_the_same() {
    let net = Net::new();
    // `first` is used by fused operators, by candle's and by both in one loss
    let (w, b) = &net.first;
    let shared = (w.sqr().unwrap().sum_all().unwrap() + b.sum_all().unwrap()).unwrap();
    let twice = ops::linear(&net.x, w, Some(b)).unwrap().sum_all().unwrap();
    let loss = (net.loss(0, ROWS).unwrap() + (shared + twice).unwrap()).unwrap();
    let direct = Gradients::of(&loss, &net.parameters).unwrap();
    let store = loss.backward().unwrap();
    let plain = Gradients::from_store(&store, &net.parameters).unwrap();
    for (a, b) in direct.tensors().iter().zip(plain.tensors()) {
        assert_close(&values(a), &values(b), 1e-6, 1e-5);
    }
}

/// One output used by fused operators, by candle's and by both, in two losses of one graph.
#[test]
fn outputs_that_both_kinds_of_operators_use_get_all_their_gradients() {
    let net = Net::new();
    let (w, b) = &net.first;
    let all = net.parameters.filter(|name| name.starts_with("first"));
    let losses = |linear: &dyn Fn(&Tensor) -> Tensor, add: &dyn Fn(&Tensor, &Tensor) -> Tensor| {
        let hidden = linear(&net.x);
        let doubled = add(&hidden, &hidden);
        let both = add(&doubled, &hidden.sqr().unwrap());
        let turned = both.t().unwrap();
        let loss = (turned.sqr().unwrap().sum_all().unwrap() + hidden.sum_all().unwrap()).unwrap();
        let other = add(&hidden, &doubled).exp().unwrap().sum_all().unwrap();
        [loss, other]
    };
    let fused = losses(&|x| ops::linear(x, w, Some(b)).unwrap(), &|a, b| ops::add(a, b).unwrap());
    let composed =
        losses(&|x| ops::linear_compose(x, w, Some(b)).unwrap(), &|a, b| (a + b).unwrap());
    // a graph can be walked again
    for _ in 0..2 {
        for (fused, composed) in fused.iter().zip(&composed) {
            let (by_tokens, plain) = (
                Gradients::of(fused, &all).unwrap(),
                Gradients::from_store(&composed.backward().unwrap(), &all).unwrap(),
            );
            let by_candle = Gradients::from_store(&fused.backward().unwrap(), &all).unwrap();
            for found in [by_tokens, by_candle] {
                for (a, b) in found.tensors().iter().zip(plain.tensors()) {
                    assert_close(&values(a), &values(b), 1e-5, 1e-5);
                }
            }
        }
    }
}

#[test]
fn an_unreached_parameter_is_an_error_that_names_it() {
    let net = Net::new();
    let loss = net.second.1.sum_all().unwrap();
    let message = Gradients::of(&loss, &net.parameters).unwrap_err().to_string();
    assert!(message.contains("first.weight"), "{message}");
    let reached = net.parameters.filter(|name| name == "second.bias");
    assert_eq!(Gradients::of(&loss, &reached).unwrap().tensors().len(), 1);
}

#[test]
fn worker_errors_and_bad_norms_arrive() {
    let workers = Workers::new(2).unwrap();
    let failed = workers.map(4, |slice| match slice {
        2 => Err(common::Error::usage("slice 2")),
        _ => Ok(slice),
    });
    assert!(failed.unwrap_err().to_string().contains("slice 2"));
    let net = Net::new();
    let loss = (net.loss(0, ROWS).unwrap() * f64::NAN).unwrap();
    let mut gradients = Gradients::of(&loss, &net.parameters).unwrap();
    assert!(gradients.clip_global_norm(1.0).unwrap_err().to_string().contains("NaN"));
}

#[test]
fn the_moving_average_follows_the_formula() {
    let start =
        BTreeMap::from([("w".to_owned(), Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap())]);
    let mut builder = Builder::from_tensors(start);
    builder.tensor("w", 2, Init::Constant(0.0)).unwrap();
    let parameters = builder.finish();
    let mut average = Ema::new(&parameters, 0.75).unwrap();
    let fresh = Tensor::new(&[5f32, 6.0], &Device::Cpu).unwrap();
    parameters.load(&BTreeMap::from([("w".to_owned(), fresh)])).unwrap();
    average.update(&parameters).unwrap();
    assert_eq!(values(&average.tensors()["w"]), [2.0, 3.0]);
}
