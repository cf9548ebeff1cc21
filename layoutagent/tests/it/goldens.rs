//! Relation networks, samplers and checker against an independent re-statement in PyTorch and
//! Python (tests/golden/ccsp, made by gen_ccsp.py).

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use common::nn::{Builder, Parameters};
use common::optim::Gradients;
use common::testing::{golden, golden_json, golden_tensors};
use layoutagent::layout::{Edge, Frame, Problem, Rect};
use layoutagent::model::denoiser::{Batch, Denoiser, GraphRows};
use layoutagent::model::learned_energy;
use layoutagent::model::sampler::{Sampler, ddpm_step, ula_step};
use layoutagent::model::schedule::Schedule;
use layoutagent::relations::{Relation, relations_of};
use layoutagent::train::loss;
use serde_json::Value;

fn path(name: &str) -> PathBuf {
    golden(env!("CARGO_MANIFEST_DIR"), &format!("ccsp/{name}"))
}

fn builder() -> Builder {
    let tensors: BTreeMap<String, Tensor> =
        golden_tensors(&path("model.safetensors")).into_iter().collect();
    Builder::from_tensors(tensors)
}

struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn values(&self, name: &str) -> Vec<f32> {
        let tensor = self.0.get(name).unwrap_or_else(|| panic!("no {name}"));
        let flat = tensor.flatten_all().unwrap().to_dtype(candle_core::DType::F32).unwrap();
        flat.to_vec1().unwrap()
    }

    fn graph(&self, head: &str) -> (Vec<f32>, Vec<bool>, Vec<(usize, u32, u32)>) {
        let edges = self.values(&format!("{head}/edges"));
        let edges = edges.chunks(3).map(|e| (e[0] as usize, e[1] as u32, e[2] as u32)).collect();
        let masked = self.values(&format!("{head}/masked")).iter().map(|&m| m > 0.5).collect();
        (self.values(&format!("{head}/geometry")), masked, edges)
    }

    /// The graph that loss and gradients were taken on, at its step.
    fn trained_batch(&self) -> Batch {
        let (geometry, masked, edges) = self.graph("graph4");
        let rows = GraphRows { geometry: &geometry, masked: &masked, edges: &edges };
        Batch::new(&[rows], vec![300]).unwrap()
    }

    fn problem(&self, head: &str) -> Problem {
        let (geometry, _, edges) = self.graph(head);
        let sizes = geometry[2..]
            .chunks(2)
            .map(|g| [f64::from(g[0]) * 3.0, f64::from(g[1]) * 2.0])
            .collect();
        let edges = edges.iter().map(|&(k, i, j)| Edge {
            relation: Relation::ALL[k],
            a: i as usize - 1,
            b: (j > 0).then(|| j as usize - 1),
        });
        Problem::new(Frame::CCSP, sizes, edges.collect())
    }
}

fn tensors() -> Golden {
    Golden(golden_tensors(&path("ccsp.safetensors")))
}

#[track_caller]
fn close(found: &[f32], expected: &[f32], relative: f32, absolute: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let most = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    let worst = found
        .iter()
        .zip(expected)
        .fold(0f32, |m, (a, b)| if a.is_nan() { f32::NAN } else { m.max((a - b).abs()) });
    assert!(worst <= absolute + relative * most, "{what}: {worst} (largest value {most})");
}

#[test]
fn the_schedule_is_the_references() {
    let golden = tensors();
    let schedule = Schedule::cosine(1000);
    close(&schedule.beta, &golden.values("schedule/betas"), 0.0, 1e-6, "betas");
    close(&schedule.alpha_bar, &golden.values("schedule/alphas_cumprod"), 0.0, 1e-6, "ᾱ");
    close(&schedule.variance, &golden.values("schedule/posterior_variance"), 0.0, 1e-6, "variance");
}

#[test]
fn composed_noise_and_steps_equal_pytorch() {
    let golden = tensors();
    let model = Denoiser::new(&mut builder().frozen(), 32).unwrap();
    let sampler = Sampler::new(&model, 1000).unwrap();
    let schedule = Schedule::cosine(1000);
    for number in 0..5 {
        let head = format!("graph{number}");
        let (geometry, masked, edges) = golden.graph(&head);
        let t = golden.values(&format!("{head}/t"))[0] as usize;
        let rows = GraphRows { geometry: &geometry, masked: &masked, edges: &edges };
        let batch = Batch::new(&[rows], vec![t as u32]).unwrap();
        let pose = golden.values(&format!("{head}/pose"));
        let tensor = Tensor::from_slice(&pose, (masked.len(), 2), &Device::Cpu).unwrap();
        let eps = model.forward(&batch, &tensor).unwrap().flatten_all().unwrap();
        let eps = eps.to_vec1::<f32>().unwrap();
        // The reference puts a masked node's own pose where ours has 0; both are (0, 0) here.
        close(&eps, &golden.values(&format!("{head}/eps")), 0.0, 1e-4, "eps");
        let fast = sampler.composed_noise(&golden.problem(&head), &pose, t).unwrap();
        close(&fast, &eps, 1e-5, 1e-6, "the sampler's eps");
        for name in ["ddpm", "ula"] {
            let mut next = pose.clone();
            let noise = golden.values(&format!("{head}/noise_{name}"));
            match name {
                "ddpm" => ddpm_step(&schedule, t, &mut next, &eps, &noise),
                _ => ula_step(&schedule, t, 2.0, &mut next, &eps, &noise),
            }
            let free = |v: &[f32]| v[2..].to_vec();
            let expected = golden.values(&format!("{head}/{name}"));
            close(&free(&next), &free(&expected), 1e-4, 0.0, name);
        }
    }
}

#[test]
fn a_chain_equals_pytorch() {
    let golden = tensors();
    let sampler = Sampler::new(&Denoiser::new(&mut builder().frozen(), 32).unwrap(), 1000).unwrap();
    let schedule = Schedule::cosine(1000);
    let problem = golden.problem("graph4");
    let nodes = 2 * (problem.len() + 1);
    let (states, noise) = (golden.values("chain/states"), golden.values("chain/noise"));
    let mut pose = states[..nodes].to_vec();
    for (index, &t) in golden.values("chain/t").iter().enumerate() {
        let t = t as usize;
        for inner in 0..3 {
            let eps = sampler.composed_noise(&problem, &pose, t).unwrap();
            let z = &noise[(index * 3 + inner) * nodes..][..nodes];
            match inner {
                0 => ddpm_step(&schedule, t, &mut pose, &eps, z),
                _ => ula_step(&schedule, t, 2.0, &mut pose, &eps, z),
            }
            pose[..2].fill(0.0);
        }
        close(&pose, &states[(index + 1) * nodes..][..nodes], 1e-4, 1e-5, "state");
    }
}

/// Holds the gradients of `loss` to the golden's tensors `prefix` + name.
#[track_caller]
fn gradients_are(golden: &Golden, prefix: &str, loss: &Tensor, parameters: &Parameters) {
    let gradients = Gradients::of(loss, parameters).unwrap();
    let mut compared = 0;
    for ((name, _), gradient) in parameters.iter().zip(gradients.tensors()) {
        let key = format!("{prefix}{name}");
        if golden.0.contains_key(&key) {
            let found = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            close(&found, &golden.values(&key), 1e-3, 0.0, name);
            compared += 1;
        }
    }
    assert_eq!(compared, 18);
}

#[test]
fn loss_and_gradients_equal_pytorch() {
    let golden = tensors();
    let mut builder = builder();
    let model = Denoiser::new(&mut builder, 32).unwrap();
    let parameters = builder.finish();
    let batch = golden.trained_batch();
    let node = |name: &str| golden.0[name].clone();
    let loss = loss(&model, &batch, &node("train/noisy"), &node("train/noise")).unwrap();
    close(&[loss.to_scalar().unwrap()], &golden.values("train/loss"), 1e-5, 0.0, "loss");
    gradients_are(&golden, "train/grad/", &loss, &parameters);
}

#[test]
fn the_energy_its_gradient_and_the_gradients_of_that_equal_pytorch() {
    let golden = tensors();
    let energy = Golden(golden_tensors(&path("energy.safetensors")));
    let mut builder = builder();
    let model = Denoiser::new(&mut builder, 32).unwrap();
    let parameters = builder.finish();
    let batch = golden.trained_batch();
    let (pose, noise) = (&golden.0["train/noisy"], &golden.0["train/noise"]);
    let value = learned_energy::energy(&model, &batch, pose).unwrap();
    close(&[value.to_scalar().unwrap()], &energy.values("energy"), 1e-5, 0.0, "energy");
    let (found, energies) = learned_energy::noise(&model, &batch, pose).unwrap();
    let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    close(&found, &energy.values("noise"), 1e-5, 0.0, "noise");
    close(&[energies[0] as f32], &energy.values("energy"), 1e-5, 0.0, "energy of the graph");
    let loss = learned_energy::loss(&model, &batch, pose, noise).unwrap();
    close(&[loss.to_scalar().unwrap()], &energy.values("loss"), 1e-5, 0.0, "loss");
    gradients_are(&energy, "grad/", &loss, &parameters);
}

/// Names of the true relations of a layout as the golden writes them: relation → instances.
fn truth(rects: &[Rect]) -> BTreeMap<&'static str, Vec<Vec<u64>>> {
    let mut found: BTreeMap<&str, Vec<Vec<u64>>> =
        Relation::ALL[..Relation::LEARNED].iter().map(|r| (r.name(), Vec::new())).collect();
    for edge in relations_of(Frame::CCSP, rects) {
        let rows = found.get_mut(edge.relation.name()).unwrap();
        let a = edge.a as u64;
        match edge.b.map(|b| b as u64) {
            None => rows.push(vec![a]),
            Some(b) => {
                rows.push(vec![a, b]);
                if edge.relation.is_symmetric() {
                    rows.push(vec![b, a]);
                }
            }
        }
    }
    found.values_mut().for_each(|rows| rows.sort());
    found
}

#[test]
fn the_checker_agrees_with_the_golden_layouts() {
    let golden: Value = golden_json(&path("layouts.json"));
    let layouts = golden["layouts"].as_array().unwrap();
    let mut at_thresholds = 0;
    for layout in layouts {
        let rects: Vec<Rect> = layout["boxes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|b| {
                let v = |i: usize| b[i].as_f64().unwrap();
                Rect { x: v(0), y: v(1), w: v(2), h: v(3) }
            })
            .collect();
        for (name, found) in truth(&rects) {
            let mut expected: Vec<Vec<u64>> = layout["true"][name]
                .as_array()
                .unwrap()
                .iter()
                .map(|row| match row.as_array() {
                    Some(pair) => pair.iter().map(|v| v.as_u64().unwrap()).collect(),
                    None => vec![row.as_u64().unwrap()],
                })
                .collect();
            expected.sort();
            assert_eq!(found, expected, "{name} of {layout}");
        }
        at_thresholds += usize::from(layout["kind"] == "threshold");
    }
    assert_eq!((layouts.len(), at_thresholds), (90, 40));
}
