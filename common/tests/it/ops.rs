//! Every fused operator against PyTorch, its slow composition and central differences, on every
//! instruction set that this machine has.

#![allow(clippy::unwrap_used)]

use std::sync::Mutex;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::ops::{self, Activation, Isa, Pool, Reduction, RopeStyle, RopeTable};
use common::rng::Seed;
use common::testing::{assert_close, golden, golden_json, golden_tensors};
use serde_json::Value;

/// Forced instruction sets are process-wide.
static FORCED: Mutex<()> = Mutex::new(());

fn available() -> Vec<Isa> {
    [Isa::Scalar, Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| isa.is_available()).collect()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

type Op = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;

struct Case {
    name: String,
    inputs: Vec<Tensor>,
    fused: Op,
    composed: Op,
}

/// Output and the gradients of `sum(output · weights)`.
fn run(op: &Op, inputs: &[Tensor], weights: &Tensor) -> (Tensor, Vec<Option<Tensor>>) {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = op(&tensors).unwrap();
    let grads = (&y * weights).unwrap().sum_all().unwrap().backward().unwrap();
    let grads = vars.iter().map(|v| grads.get(v).cloned()).collect();
    (y, grads)
}

fn weights_for(op: &Op, inputs: &[Tensor]) -> Tensor {
    let shape = op(inputs).unwrap().shape().clone();
    Seed::new(7).stream("weights").normal_tensor(shape, 1.0).unwrap()
}

fn normal(name: &str, shape: &[usize]) -> Tensor {
    Seed::new(1).stream(name).normal_tensor(shape, 1.0).unwrap()
}

/// Values at least 0.1 apart and away from 0, so that no small step crosses a kink.
fn apart(name: &str, shape: &[usize]) -> Tensor {
    let n = shape.iter().product();
    let order = Seed::new(2).stream(name).permutation(n);
    let values: Vec<f32> =
        order.iter().map(|&i| (i as f32 - n as f32 / 2.0 + 0.55) * 0.1).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn ints(values: Vec<i64>) -> Tensor {
    let n = values.len();
    Tensor::from_vec(values, n, &Device::Cpu).unwrap()
}

fn case(
    name: &str,
    inputs: Vec<Tensor>,
    fused: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
    composed: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Case {
    Case { name: name.to_owned(), inputs, fused: Box::new(fused), composed: Box::new(composed) }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (rows, width) in [(1, 1), (3, 17), (70, 300)] {
        for activation in
            [Activation::GeluTanh, Activation::Gelu, Activation::Silu, Activation::Relu]
        {
            let x = if activation == Activation::Relu {
                apart("relu", &[rows, width])
            } else {
                (normal("activation", &[rows, width]) * 2.0).unwrap()
            };
            all.push(case(
                &format!("{activation:?} {rows}x{width}"),
                vec![x],
                move |x| activation.apply(&x[0]),
                move |x| activation.compose(&x[0]),
            ));
        }
        let (steps, wide) = (rows.min(5), 3 * width.min(20));
        all.push(case(
            &format!("gru {steps}x{wide}"),
            vec![
                normal("gru", &[steps, 2, wide]),
                (normal("gru weight", &[wide, wide / 3]) * 0.5).unwrap(),
                normal("gru bias", &[wide]),
            ],
            |x| ops::gru(&x[0], &x[1], &x[2]),
            |x| ops::gru_compose(&x[0], &x[1], &x[2]),
        ));
        let pair = vec![normal("gate", &[rows, width]), normal("up", &[rows, width])];
        all.push(case(
            &format!("swiglu {rows}x{width}"),
            pair,
            |x| ops::swiglu(&x[0], &x[1]),
            |x| ops::swiglu_compose(&x[0], &x[1]),
        ));
        let x = normal("norm", &[2, rows, width]);
        let (weight, bias) = (normal("weight", &[width]), normal("bias", &[width]));
        if width > 1 {
            all.push(case(
                &format!("layer_norm {rows}x{width}"),
                vec![x.clone(), weight.clone(), bias],
                |x| ops::layer_norm(&x[0], &x[1], Some(&x[2]), 1e-5),
                |x| ops::layer_norm_compose(&x[0], &x[1], Some(&x[2]), 1e-5),
            ));
            all.push(case(
                &format!("layer_norm without bias {rows}x{width}"),
                vec![x.clone(), weight.clone()],
                |x| ops::layer_norm(&x[0], &x[1], None, 1e-5),
                |x| ops::layer_norm_compose(&x[0], &x[1], None, 1e-5),
            ));
        }
        all.push(case(
            &format!("rms_norm {rows}x{width}"),
            vec![x, weight],
            |x| ops::rms_norm(&x[0], &x[1], 1e-6),
            |x| ops::rms_norm_compose(&x[0], &x[1], 1e-6),
        ));
        all.push(case(
            &format!("column_sum {rows}x{width}"),
            vec![normal("columns", &[rows, width])],
            |x| ops::column_sum(&x[0]),
            |x| x[0].sum(0),
        ));
        for activation in [None, Some(Activation::GeluTanh), Some(Activation::Relu)] {
            all.push(case(
                &format!("linear {activation:?} {rows}x{width}"),
                vec![
                    normal("x", &[2, rows, width]),
                    (normal("w", &[19, width]) * 0.1).unwrap(),
                    normal("b", &[19]),
                ],
                move |x| ops::linear_activation(&x[0], &x[1], Some(&x[2]), activation),
                move |x| {
                    let y = ops::linear_compose(&x[0], &x[1], Some(&x[2]))?;
                    activation.map_or(Ok(y.clone()), |a| a.compose(&y))
                },
            ));
        }
        all.push(case(
            &format!("linear in-out {rows}x{width}"),
            vec![normal("x", &[rows, width]), (normal("w", &[width, 19]) * 0.1).unwrap()],
            |x| ops::linear_layout(&x[0], &x[1], None, None, ops::WeightLayout::InOut),
            |x| x[0].matmul(&x[1]),
        ));
        let targets: Vec<i64> =
            (0..rows).map(|r| if r % 4 == 1 { -100 } else { (r * 7 % width) as i64 }).collect();
        for (reduction, label_smoothing) in
            [(Reduction::Mean, 0.0), (Reduction::Sum, 0.1), (Reduction::None, 0.3)]
        {
            let options = ops::CrossEntropyOptions { label_smoothing, reduction };
            let (a, b) = (ints(targets.clone()), ints(targets.clone()));
            all.push(case(
                &format!("cross_entropy {reduction:?} {rows}x{width}"),
                vec![(normal("logits", &[rows, width]) * 3.0).unwrap()],
                move |x| ops::cross_entropy(&x[0], &a, &options),
                move |x| ops::cross_entropy_compose(&x[0], &b, &options),
            ));
        }
        let (a, b) = (ints(targets.clone()), ints(targets.clone()));
        all.push(case(
            &format!("linear_cross_entropy {rows}x{width}"),
            vec![
                normal("hidden", &[rows, 11]),
                (normal("head", &[width, 11]) * 0.5).unwrap(),
                normal("head bias", &[width]),
            ],
            move |x| ops::linear_cross_entropy(&x[0], &x[1], Some(&x[2]), &a),
            move |x| {
                let logits = ops::linear_compose(&x[0], &x[1], Some(&x[2]))?;
                ops::cross_entropy_compose(&logits, &b, &Default::default())
            },
        ));
        for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
            let targets =
                Seed::new(3).stream("bce").uniform_tensor((rows, width), 0.0, 1.0).unwrap();
            let options = ops::BceOptions {
                weight: Some((normal("element", &[rows, width]).abs().unwrap() + 0.1).unwrap()),
                pos_weight: Some((normal("class", &[width]).abs().unwrap() + 0.1).unwrap()),
                reduction,
            };
            let (t, o) = (targets.clone(), options.clone());
            all.push(case(
                &format!("bce {reduction:?} {rows}x{width}"),
                vec![normal("bce logits", &[rows, width])],
                move |x| ops::bce_with_logits(&x[0], &targets, &options),
                move |x| ops::bce_compose(&x[0], &t, &o),
            ));
            all.push(case(
                &format!("kl {reduction:?} {rows}x{width}"),
                vec![normal("p", &[rows, width]), normal("q", &[rows, width])],
                move |x| ops::kl_divergence(&x[0], &x[1], reduction),
                move |x| ops::kl_compose(&x[0], &x[1], reduction),
            ));
        }
    }
    for (batch, heads, queries, keys) in [(1, 1, 1, 1), (2, 3, 5, 7), (2, 2, 67, 70)] {
        let mut seen: Vec<f32> =
            (0..batch * keys).map(|i| f32::from(u8::from(i % 3 != 0))).collect();
        if let Some(last) = seen.last_mut() {
            *last = 1.0;
        }
        let mask = Tensor::from_vec(seen, (batch, keys), &Device::Cpu).unwrap();
        for (causal, key_mask) in [(false, None), (true, None), (true, Some(mask))] {
            let name = format!("causal {causal} mask {} {queries}x{keys}", key_mask.is_some());
            let options = ops::SoftmaxOptions { scale: 0.7, causal, key_mask: key_mask.clone() };
            let same = options.clone();
            all.push(case(
                &format!("softmax {name}"),
                vec![normal("scores", &[batch, heads, queries, keys])],
                move |x| ops::softmax(&x[0], &options),
                move |x| ops::softmax_compose(&x[0], &same),
            ));
            let options = ops::AttentionOptions { scale: None, causal, key_mask };
            let same = options.clone();
            let q = normal("q", &[batch, queries, 2 * heads, 5]);
            let (k, v) =
                (normal("k", &[batch, keys, heads, 5]), normal("v", &[batch, keys, heads, 5]));
            all.push(case(
                &format!("attention {name}"),
                vec![q, k, v],
                move |x| ops::attention(&x[0], &x[1], &x[2], &options),
                move |x| ops::attention_compose(&x[0], &x[1], &x[2], &same),
            ));
        }
        let options = ops::AttentionOptions { scale: None, causal: true, key_mask: None };
        let same = options.clone();
        all.push(case(
            &format!("attention_packed {queries}"),
            vec![normal("qkv", &[batch, queries, 3 * (4 + 2 * 2)])],
            move |x| ops::attention_packed(&x[0], 4, 2, &options),
            move |x| {
                let part = |first: usize, count: usize| {
                    x[0].narrow(2, first * 3, count * 3)?.reshape((batch, queries, count, 3))
                };
                ops::attention_compose(&part(0, 4)?, &part(4, 2)?, &part(6, 2)?, &same)?
                    .reshape((batch, queries, 12))
            },
        ));
    }
    for (groups, shape) in [(1, [1, 2, 3, 3]), (3, [2, 6, 5, 7]), (4, [3, 8, 20, 21])] {
        for activation in [None, Some(Activation::Silu)] {
            all.push(case(
                &format!("group_norm {activation:?} {shape:?}"),
                vec![
                    normal("image", &shape),
                    normal("scale", &[shape[1]]),
                    normal("shift", &[shape[1]]),
                ],
                move |x| ops::group_norm(&x[0], &x[1], &x[2], groups, 1e-5, activation),
                move |x| ops::group_norm_compose(&x[0], &x[1], &x[2], groups, 1e-5, activation),
            ));
        }
    }
    all.push(case(
        "add_per_channel",
        vec![normal("image", &[3, 5, 4, 7]), normal("shift", &[3, 5])],
        |x| ops::add_per_channel(&x[0], &x[1]),
        |x| x[0].broadcast_add(&x[1].reshape((3, 5, 1, 1))?),
    ));
    let pair = || vec![normal("left", &[300, 70]), normal("right", &[300, 70])];
    all.push(case(
        "mean_squared_error",
        pair(),
        |x| ops::mean_squared_error(&x[0], &x[1]),
        |x| (&x[0] - &x[1])?.sqr()?.mean_all(),
    ));
    let weights = normal("right", &[300, 70]);
    let same = weights.clone();
    all.push(case(
        "weighted_sum",
        vec![normal("left", &[300, 70])],
        move |x| ops::weighted_sum(&x[0], &weights),
        move |x| (&x[0] * &same)?.sum_all(),
    ));
    for style in [RopeStyle::Half, RopeStyle::Interleaved] {
        for first in [false, true] {
            let shape = if first { [2, 7, 3, 10] } else { [2, 3, 7, 10] };
            let rows: Vec<Vec<u32>> = vec![(0..7).collect(), (3..10).collect()];
            let table = RopeTable::new(10_000.0, 10, &rows).unwrap();
            let same = table.clone();
            all.push(case(
                &format!("rope {style:?} positions first {first}"),
                vec![normal("rope", &shape)],
                move |x| ops::rope(&x[0], &table, style, first),
                move |x| ops::rope_compose(&x[0], &same, style, first),
            ));
        }
    }
    let ids = Tensor::from_vec(vec![0u32, 4, 4, 2, 0, 1], (2, 3), &Device::Cpu).unwrap();
    let same = ids.clone();
    all.push(case(
        "embedding",
        vec![normal("table", &[5, 7])],
        move |x| ops::embedding(&x[0], &ids),
        move |x| x[0].index_select(&same.flatten_all()?, 0)?.reshape((2, 3, 7)),
    ));
    for (kernel, stride, padding, shape, outputs) in [
        (1, 1, 0, [2, 5, 3, 7], 3),
        (3, 1, 1, [5, 3, 9, 11], 4),
        (3, 2, 1, [3, 2, 7, 10], 5),
        (3, 3, 0, [1, 2, 8, 9], 2),
        (5, 2, 2, [2, 3, 40, 37], 6),
        (3, 1, 1, [2, 24, 34, 33], 8),
    ] {
        let name = format!("k{kernel} s{stride} p{padding} {shape:?}");
        let weight = (normal("kernel", &[outputs, shape[1], kernel, kernel]) * 0.3).unwrap();
        all.push(case(
            &format!("conv2d {name}"),
            vec![normal("image", &shape), weight, normal("bias", &[outputs])],
            move |x| ops::conv2d(&x[0], &x[1], Some(&x[2]), stride, padding),
            move |x| ops::conv2d_compose(&x[0], &x[1], Some(&x[2]), stride, padding),
        ));
        let weight = (normal("kernel", &[shape[1], outputs, kernel, kernel]) * 0.3).unwrap();
        all.push(case(
            &format!("conv_transpose2d {name}"),
            vec![normal("image", &shape), weight],
            move |x| ops::conv_transpose2d(&x[0], &x[1], None, stride, padding),
            move |x| ops::conv_transpose2d_compose(&x[0], &x[1], None, stride, padding),
        ));
    }
    for factor in [1, 2, 3] {
        all.push(case(
            &format!("upsample_nearest {factor}"),
            vec![normal("small", &[2, 3, 5, 7])],
            move |x| ops::upsample_nearest(&x[0], factor),
            move |x| ops::upsample_nearest_compose(&x[0], factor),
        ));
    }
    for (height, width, align) in [(10, 14, false), (10, 14, true), (3, 20, false), (1, 1, true)] {
        all.push(case(
            &format!("upsample_bilinear {height}x{width} {align}"),
            vec![normal("small", &[2, 3, 5, 7])],
            move |x| ops::upsample_bilinear(&x[0], height, width, align),
            move |x| ops::upsample_bilinear_compose(&x[0], height, width, align),
        ));
    }
    for (kernel, stride, padding) in [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0)] {
        let pool = Pool { kernel, stride, padding };
        all.push(case(
            &format!("avg_pool2d {pool:?}"),
            vec![normal("pooled", &[2, 3, 9, 7])],
            move |x| ops::avg_pool2d(&x[0], pool),
            move |x| ops::avg_pool2d_compose(&x[0], pool),
        ));
        all.push(case(
            &format!("max_pool2d {pool:?}"),
            vec![apart("pooled", &[2, 3, 9, 7])],
            move |x| ops::max_pool2d(&x[0], pool),
            move |x| ops::max_pool2d_compose(&x[0], pool),
        ));
    }
    all
}

/// Within `tolerance` of the largest expected value (at least 1).
#[track_caller]
fn assert_near(name: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    let (found, expected) = (values(found), values(expected));
    let scale = expected.iter().fold(1f32, |a, b| a.max(b.abs()));
    for (index, (a, b)) in found.iter().zip(&expected).enumerate() {
        let difference = f64::from((a - b).abs() / scale);
        assert!(difference <= tolerance, "{name}: element {index} is {a}, expected {b}");
    }
}

#[test]
fn fused_operators_equal_their_compositions() {
    for case in cases() {
        let weights = weights_for(&case.composed, &case.inputs);
        let (y, grads) = run(&case.fused, &case.inputs, &weights);
        let (slow_y, slow_grads) = run(&case.composed, &case.inputs, &weights);
        assert_near(&format!("{} forward", case.name), &y, &slow_y, 1e-5);
        for (input, (a, b)) in grads.iter().zip(&slow_grads).enumerate() {
            let name = format!("{} gradient {input}", case.name);
            assert_near(&name, a.as_ref().expect(&name), b.as_ref().expect(&name), 1e-5);
        }
    }
}

#[test]
fn gradients_equal_central_differences() {
    for case in cases() {
        // has a kink somewhere in every step; the composition is its test, and ReLU has its own case
        if case.name.starts_with("linear Some(Relu)") {
            continue;
        }
        let weights = weights_for(&case.fused, &case.inputs);
        let (_, grads) = run(&case.fused, &case.inputs, &weights);
        let loss = |inputs: &[Tensor]| -> f64 {
            let y = values(&(case.fused)(inputs).unwrap());
            y.iter().zip(values(&weights)).map(|(&y, w)| f64::from(y) * f64::from(w)).sum()
        };
        // the rounding of a sum over all rows, seen through the division by the step
        let total = values(&(case.fused)(&case.inputs).unwrap());
        let largest = total.iter().fold(0f32, |a, b| a.max(b.abs()));
        let rounding = f64::from(largest) * 2e-7 / 8e-3;
        let mut pick = Seed::new(5).stream(&case.name);
        for (input, gradient) in grads.iter().enumerate() {
            let gradient = values(gradient.as_ref().unwrap());
            let start = values(&case.inputs[input]);
            let scale = gradient.iter().fold(1f32, |a, b| a.max(b.abs()));
            for index in pick.sample(start.len(), 6) {
                let shifted = |step: f32| {
                    let mut moved = start.clone();
                    moved[index] += step;
                    let mut inputs = case.inputs.clone();
                    let shape = inputs[input].shape().clone();
                    inputs[input] = Tensor::from_vec(moved, shape, &Device::Cpu).unwrap();
                    loss(&inputs)
                };
                let step = 4e-3f32;
                let (up, down) = (start[index] + step, start[index] - step);
                let slope = (shifted(step) - shifted(-step)) / f64::from(up - down);
                let error = (slope - f64::from(gradient[index])).abs();
                assert!(
                    error < 5e-3 * f64::from(scale) + rounding,
                    "{} input {input} element {index}: gradient {}, slope {slope}",
                    case.name,
                    gradient[index]
                );
            }
        }
    }
}

#[test]
fn instruction_sets_threads_and_layouts_give_the_same_bits() {
    let _guard = FORCED.lock().unwrap_or_else(|broken| broken.into_inner());
    let pools = [1, 3].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
    for case in cases() {
        let weights = weights_for(&case.fused, &case.inputs);
        let bits = |inputs: &[Tensor]| {
            let (y, grads) = run(&case.fused, inputs, &weights);
            std::iter::once(&y)
                .chain(grads.iter().flatten())
                .flat_map(values)
                .map(f32::to_bits)
                .collect::<Vec<u32>>()
        };
        let expected = pools[0].install(|| bits(&case.inputs));
        for isa in available() {
            ops::force_isa(Some(isa)).unwrap();
            for pool in &pools {
                let found = pool.install(|| bits(&case.inputs));
                assert!(found == expected, "{}: {isa:?} differs", case.name);
            }
        }
        ops::force_isa(None).unwrap();
        // the same values in another memory order
        let turned: Vec<Tensor> = case
            .inputs
            .iter()
            .map(|t| match t.rank() {
                0 | 1 => t.clone(),
                rank => {
                    let back = t.transpose(0, rank - 1).unwrap().contiguous().unwrap();
                    back.transpose(0, rank - 1).unwrap()
                }
            })
            .collect();
        let y = (case.fused)(&turned).unwrap();
        assert_eq!(values(&y), values(&(case.fused)(&case.inputs).unwrap()), "{}", case.name);
    }
}

#[test]
fn nan_goes_through() {
    for case in cases() {
        let mut inputs = case.inputs.clone();
        let mut poisoned = values(&inputs[0]);
        poisoned[0] = f32::NAN;
        inputs[0] = Tensor::from_vec(poisoned, inputs[0].shape(), &Device::Cpu).unwrap();
        let y = values(&(case.fused)(&inputs).unwrap());
        // a masked key and a pixel between strides are not read
        let unread = case.name.contains("mask true") || case.name.contains("p0 [1, 2, 8, 9]");
        assert!(unread || y.iter().any(|v| v.is_nan()), "{} drops NaN", case.name);
    }
}

#[test]
fn empty_batches_pass() {
    for case in cases() {
        let batched = [
            "embedding",
            "cross_entropy",
            "bce",
            "mask true",
            "rope",
            "packed",
            "squared",
            "weighted",
        ];
        if batched.iter().any(|name| case.name.contains(name)) {
            continue;
        }
        let of_batch = |t: &Tensor| t.rank() > 1 && t.dims()[0] == case.inputs[0].dims()[0];
        let is_weight = |at: usize| {
            at > 0
                && !["swiglu", "kl", "attention", "add_per"]
                    .iter()
                    .any(|n| case.name.starts_with(n))
        };
        let inputs: Vec<Tensor> = case
            .inputs
            .iter()
            .enumerate()
            .map(|(at, t)| {
                if is_weight(at) || !of_batch(t) {
                    return t.clone();
                }
                let mut dims = t.dims().to_vec();
                dims[0] = 0;
                Tensor::zeros(dims, t.dtype(), &Device::Cpu).unwrap()
            })
            .collect();
        let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = (case.fused)(&tensors).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        let grads = y.sum_all().unwrap().backward().unwrap();
        for var in &vars {
            let gradient = values(grads.get(var).unwrap());
            assert!(gradient.iter().all(|&g| g == 0.0), "{}", case.name);
        }
    }
}

#[test]
fn golden_values_of_pytorch() {
    let _guard = FORCED.lock().unwrap_or_else(|broken| broken.into_inner());
    let folder = golden(env!("CARGO_MANIFEST_DIR"), "ops");
    let index: Value = golden_json(&folder.join("index.json"));
    let mut count = 0;
    for (op, cases) in index.as_object().unwrap() {
        let tensors = golden_tensors(&folder.join(format!("{op}.safetensors")));
        for (name, info) in cases.as_object().unwrap() {
            let of = |key: &str| tensors.get(&format!("{name}.{key}"));
            for isa in available() {
                ops::force_isa(Some(isa)).unwrap();
                golden_case(op, name, info, &of);
            }
            count += 1;
        }
    }
    ops::force_isa(None).unwrap();
    assert_eq!(count, 106);
}

fn golden_case<'a>(op: &str, name: &str, info: &Value, of: &dyn Fn(&str) -> Option<&'a Tensor>) {
    let a = &info["attributes"];
    let get = |key: &str| of(key).unwrap_or_else(|| panic!("{op}/{name} has no {key}"));
    let number = |key: &str| a[key].as_u64().unwrap() as usize;
    let variables = [
        "x",
        "weight",
        "bias",
        "gate",
        "up",
        "gate_weight",
        "up_weight",
        "down_weight",
        "p_logits",
        "q_logits",
    ];
    let is_input = |key: &&str| of(key).is_some() && of(&format!("grad_{key}")).is_some();
    let vars: Vec<(&str, Var)> = variables
        .into_iter()
        .filter(is_input)
        .map(|key| (key, Var::from_tensor(get(key)).unwrap()))
        .collect();
    let var = |key: &str| {
        let found = vars.iter().find(|(name, _)| *name == key);
        found.map(|(_, var)| var.as_tensor()).unwrap_or_else(|| panic!("{op}/{name}: {key}"))
    };
    let maybe = |key: &str| vars.iter().find(|(name, _)| *name == key).map(|(_, v)| v.as_tensor());
    let reduction = || match a["reduction"].as_str().unwrap() {
        "sum" => Reduction::Sum,
        "none" => Reduction::None,
        _ => Reduction::Mean,
    };
    let pool =
        || Pool { kernel: number("kernel"), stride: number("stride"), padding: number("padding") };
    let rope = |style: RopeStyle| {
        let ids = get("position_ids").to_dtype(candle_core::DType::U32).unwrap();
        let rows = ids.to_vec2::<u32>().unwrap();
        let dim = var("x").dim(3).unwrap();
        let table = RopeTable::new(a["theta"].as_f64().unwrap(), dim, &rows).unwrap();
        ops::rope(var("x"), &table, style, false)
    };
    let eps = || a["eps"].as_f64().unwrap();
    let y = match op {
        "softmax" => ops::softmax(
            var("x"),
            &ops::SoftmaxOptions {
                scale: a["scale"].as_f64().unwrap(),
                causal: a["causal"].as_bool().unwrap(),
                key_mask: of("key_mask").cloned(),
            },
        ),
        "layer_norm" => ops::layer_norm(var("x"), var("weight"), maybe("bias"), eps()),
        "rms_norm" => ops::rms_norm(var("x"), var("weight"), eps()),
        "group_norm" => {
            ops::group_norm(var("x"), var("weight"), var("bias"), number("groups"), eps(), None)
        }
        "gelu_tanh" => Activation::GeluTanh.apply(var("x")),
        "gelu_erf" => Activation::Gelu.apply(var("x")),
        "silu" => Activation::Silu.apply(var("x")),
        "swiglu" => ops::swiglu(var("gate"), var("up")),
        "swiglu_mlp" => {
            let gate = ops::linear(var("x"), var("gate_weight"), None).unwrap();
            let up = ops::linear(var("x"), var("up_weight"), None).unwrap();
            ops::linear(&ops::swiglu(&gate, &up).unwrap(), var("down_weight"), None)
        }
        "linear" => ops::linear(var("x"), var("weight"), maybe("bias")),
        "embedding" => ops::embedding(var("weight"), get("ids")),
        "cross_entropy" => ops::cross_entropy(
            var("x"),
            get("target"),
            &ops::CrossEntropyOptions {
                label_smoothing: a["label_smoothing"].as_f64().unwrap(),
                reduction: reduction(),
            },
        ),
        "bce_with_logits" => ops::bce_with_logits(
            var("x"),
            get("target"),
            &ops::BceOptions {
                weight: of("weight").cloned(),
                pos_weight: of("pos_weight").cloned(),
                reduction: reduction(),
            },
        ),
        "kl" => ops::kl_divergence(var("p_logits"), var("q_logits"), reduction()),
        "rope_half" => rope(RopeStyle::Half),
        "rope_interleaved" => rope(RopeStyle::Interleaved),
        "conv2d" => {
            ops::conv2d(var("x"), var("weight"), maybe("bias"), number("stride"), number("padding"))
        }
        "conv_transpose2d" => ops::conv_transpose2d(
            var("x"),
            var("weight"),
            maybe("bias"),
            number("stride"),
            number("padding"),
        ),
        "upsample_nearest" => ops::upsample_nearest(var("x"), number("factor")),
        "upsample_bilinear" => {
            let (_, _, h, w) = var("x").dims4().unwrap();
            let factor = number("factor");
            let align = a["align_corners"].as_bool().unwrap();
            ops::upsample_bilinear(var("x"), h * factor, w * factor, align)
        }
        "avg_pool2d" => ops::avg_pool2d(var("x"), pool()),
        "max_pool2d" => ops::max_pool2d(var("x"), pool()),
        other => panic!("no test for operator {other}"),
    }
    .unwrap_or_else(|error| panic!("{op}/{name}: {error}"));
    assert_near(&format!("{op}/{name} y"), &y, get("y"), 1e-4);
    let mut loss = (&y * get("grad_out")).unwrap().sum_all().unwrap();
    if let Some(skip) = of("grad_out_skip") {
        let second = ((var("x") * 3.0).unwrap() * skip).unwrap().sum_all().unwrap();
        loss = (loss + second).unwrap();
    }
    let grads = loss.backward().unwrap();
    for (key, var) in &vars {
        let found = grads.get(var).unwrap_or_else(|| panic!("{op}/{name}: no gradient of {key}"));
        let expected = get(&format!("grad_{key}"));
        let largest = values(expected).iter().fold(0f32, |a, b| a.max(b.abs()));
        // where the true gradient is 0, f32 itself leaves this much
        let rounding = info["error_of_torch_f32"][format!("grad_{key}")].as_f64().unwrap();
        let allowed = 1e-3 * f64::from(largest) + 2.0 * rounding;
        assert_close(&values(found), &values(expected), allowed, 0.0);
    }
}

#[test]
fn wrong_inputs_are_refused_by_name() {
    let t = |shape: &[usize]| normal("t", shape);
    let refused = |result: Result<Tensor>, part: &str| {
        let message = result.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    };
    refused(ops::linear(&t(&[2, 3]), &t(&[4, 5]), None), "linear: weight [4, 5]");
    refused(ops::layer_norm(&t(&[2, 3]), &t(&[4]), None, 1e-5), "layer_norm: weight [4]");
    refused(ops::group_norm(&t(&[2, 6, 2]), &t(&[6]), &t(&[6]), 4, 1e-5, None), "4 groups");
    refused(ops::embedding(&t(&[5, 2]), &ints(vec![1, 5])), "id 5 is outside 0..5");
    refused(
        ops::cross_entropy(&t(&[2, 3]), &ints(vec![0, 3]), &Default::default()),
        "target 3 is neither in 0..3",
    );
    refused(ops::conv2d(&t(&[1, 2, 2, 2]), &t(&[1, 2, 3, 3]), None, 1, 0), "does not fit");
    refused(
        ops::max_pool2d(&t(&[1, 1, 4, 4]), Pool { kernel: 2, stride: 2, padding: 2 }),
        "more than half",
    );
    refused(
        ops::softmax(
            &t(&[2, 3, 4]),
            &ops::SoftmaxOptions { key_mask: Some(t(&[2, 3])), ..Default::default() },
        ),
        "key mask [2, 3]",
    );
    if let Some(absent) = [Isa::Avx2, Isa::Avx512].into_iter().find(|isa| !isa.is_available()) {
        assert!(ops::force_isa(Some(absent)).is_err());
    }
}

#[test]
fn other_types_take_the_composition() {
    // f64 has no fused kernel; the composition serves it and passes gradients on
    let x =
        Var::from_tensor(&normal("x", &[3, 8]).to_dtype(candle_core::DType::F64).unwrap()).unwrap();
    let w = normal("w", &[8]).to_dtype(candle_core::DType::F64).unwrap();
    let y = ops::layer_norm(&x, &w, None, 1e-5).unwrap();
    let y = Activation::Gelu.apply(&y).unwrap();
    let y = ops::softmax(&y, &ops::SoftmaxOptions { scale: 2.0, ..Default::default() }).unwrap();
    assert_eq!(y.dtype(), candle_core::DType::F64);
    let loss = (y.sqr().unwrap()).sum_all().unwrap();
    let gradient = loss.backward().unwrap().get(&x).unwrap().abs().unwrap();
    assert!(gradient.sum_all().unwrap().to_scalar::<f64>().unwrap() > 1e-3);
}

#[test]
fn dropout_keeps_the_expectation_and_its_gradient_follows_the_mask() {
    let x = Var::from_tensor(&Tensor::ones((100, 200), DType::F32, &Device::Cpu).unwrap()).unwrap();
    let y = ops::dropout(&x, 0.3, &mut Seed::new(1).stream("d")).unwrap();
    let out = values(&y);
    let kept = out.iter().filter(|v| **v != 0.0).count() as f64 / out.len() as f64;
    assert!((kept - 0.7).abs() < 0.02, "{kept}");
    assert!(out.iter().all(|v| *v == 0.0 || (v - 1.0 / 0.7).abs() < 1e-4));
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert_eq!(values(grads.get(&x).unwrap()), out);
    let again = ops::dropout(&x, 0.3, &mut Seed::new(1).stream("d")).unwrap();
    assert_eq!(values(&again), out);
    assert!(ops::dropout(&x, 1.0, &mut Seed::new(1).stream("d")).is_err());
}
