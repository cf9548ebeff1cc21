//! Relation networks: every tensor is trained, training repeats and learns, chains keep locks.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use common::nn::Builder;
use common::optim::Workers;
use common::rng::Seed;
use common::testing::gradients::assert_all_grads;
use layoutagent::data::worlds::{world, worlds};
use layoutagent::layout::{Edge, Frame, Problem};
use layoutagent::model::denoiser::{Batch, Denoiser, GraphRows, network_edges, node_geometry};
use layoutagent::model::learned_energy;
use layoutagent::model::sampler::{Inner, SampleConfig, Sampler, mala_log_ratio};
use layoutagent::model::schedule::Schedule;
use layoutagent::networks;
use layoutagent::relations::Relation;
use layoutagent::solve::{Candidate, SolveConfig, Solver, solve};
use layoutagent::train::{TrainConfig, loss, train};

fn small() -> TrainConfig {
    TrainConfig {
        width: 16,
        steps: 30,
        worlds: 200,
        batch: 32,
        updates: 600,
        learning_rate: 3e-3,
        ..TrainConfig::default()
    }
}

fn untrained(steps: usize) -> Sampler {
    let mut builder = Builder::seeded(Seed::new(1)).frozen();
    Sampler::new(&Denoiser::new(&mut builder, 16).unwrap(), steps).unwrap()
}

#[test]
fn every_tensor_gets_a_gradient_even_of_absent_relations() {
    let mut builder = Builder::seeded(Seed::new(1));
    let model = Denoiser::new(&mut builder, 16).unwrap();
    let parameters = builder.finish();
    let sizes = vec![[0.5, 0.4]; 3];
    let edges =
        Relation::ALL[..Relation::LEARNED].iter().map(|&relation| match relation.is_unary() {
            true => Edge::unary(relation, 0),
            false => Edge::binary(relation, 1, 2),
        });
    let problem = Problem::new(Frame::CCSP, sizes, edges.collect());
    let (geometry, masked) = (node_geometry(&problem), [true, false, false, false]);
    let noise = Seed::new(2).stream("noise").normal_tensor((4, 2), 1.0).unwrap();
    let run = |edges: &[(usize, u32, u32)]| {
        let rows = GraphRows { geometry: &geometry, masked: &masked, edges };
        let batch = Batch::new(&[rows], vec![3]).unwrap();
        loss(&model, &batch, &noise, &(&noise * 0.5).unwrap()).unwrap()
    };
    let edges = network_edges(&problem);
    assert_all_grads(&run(&edges), &parameters);
    let store = run(&edges[..1]).backward().unwrap();
    assert!(parameters.iter().all(|(_, var)| store.get(var).is_some()));
}

#[test]
fn training_learns_and_repeats_bit_for_bit() {
    let run = |threads| {
        let mut history = Vec::new();
        let log = |update, loss: f64| history.push((update, loss));
        let tensors = train(&small(), Seed::new(7), threads, log).unwrap().tensors();
        (tensors, history)
    };
    let (first, second) = (run(1), run(2));
    assert_eq!(first.1, second.1);
    let bits = |tensors: &BTreeMap<String, Tensor>| -> Vec<Vec<f32>> {
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1().unwrap();
        tensors.values().map(values).collect()
    };
    assert_eq!(bits(&first.0), bits(&second.0));
    // the trivial denoiser that says 0 has the share of free nodes as its loss, about 0.75
    let last = first.1.last().unwrap().1;
    assert!(last < 0.5, "{last}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.safetensors");
    networks::save(&first.0, &file).unwrap();
    let read = common::weights::Safetensors::open(&file).unwrap().float_tensors().unwrap();
    assert!(networks::ready(read.into_iter().collect(), &small()).is_ok());
}

#[test]
fn trained_networks_beat_untrained_ones_and_keep_locks() {
    let mut stream = Seed::new(3).stream("worlds");
    let mut set = worlds(2, 6, &mut stream);
    set[0].problem.locked[1] = Some(set[0].solution[1]);
    let problems: Vec<(&Problem, u64)> = set.iter().map(|world| &world.problem).zip(0..).collect();
    let sample = SampleConfig { inner: Inner::Reverse, ..SampleConfig::default() };
    let config = SolveConfig { solver: Solver::Learned, sample, ..SolveConfig::default() };
    let workers = Workers::new(1).unwrap();
    let broken = |sampler: &Sampler| {
        let solved = solve(&problems, &config, Some(sampler), Seed::new(0), &workers).unwrap();
        for candidate in &solved[0] {
            assert_eq!(candidate.centers[1], set[0].solution[1]);
        }
        solved.iter().flatten().map(|c: &Candidate| c.violated.len()).sum::<usize>()
    };
    let tensors = train(&small(), Seed::new(7), 1, |_, _| {}).unwrap().tensors();
    let trained = networks::ready(tensors, &small()).unwrap();
    let (trained, random) = (broken(&trained), broken(&untrained(30)));
    assert!(trained < random, "{trained} {random}");
}

#[test]
fn noise_follows_the_objects_when_they_are_permuted() {
    let sampler = untrained(20);
    let problem = world(3, &mut Seed::new(5).stream("world")).problem;
    let order = [2usize, 0, 1];
    let mut permuted = problem.clone();
    permuted.sizes = order.iter().map(|&at| problem.sizes[at]).collect();
    let to = |old: usize| order.iter().position(|&at| at == old).unwrap();
    for edge in &mut permuted.edges {
        (edge.a, edge.b) = (to(edge.a), edge.b.map(to));
    }
    let pose = [0.0, 0.0, 0.1, 0.2, -0.3, 0.4, 0.5, -0.6f32];
    let moved: Vec<f32> = [0]
        .into_iter()
        .chain(order.map(|at| at + 1))
        .flat_map(|at| [pose[2 * at], pose[2 * at + 1]])
        .collect();
    let first = sampler.composed_noise(&problem, &pose, 7).unwrap();
    let second = sampler.composed_noise(&permuted, &moved, 7).unwrap();
    for (new, &old) in order.iter().enumerate() {
        for axis in 0..2 {
            let (a, b) = (first[2 * (old + 1) + axis], second[2 * (new + 1) + axis]);
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }
}

#[test]
fn chains_do_not_depend_on_what_runs_beside_them() {
    let sampler = untrained(6);
    let mut stream = Seed::new(8).stream("worlds");
    let (first, second) = (world(2, &mut stream).problem, world(4, &mut stream).problem);
    for inner in [Inner::Ula, Inner::UlaPlus] {
        let config =
            SampleConfig { inner, inner_steps: 2, inner_at_last: true, ..SampleConfig::default() };
        let alone = sampler.sample(&[(&second, 9)], 2, &config, Seed::new(1)).unwrap();
        let beside =
            sampler.sample(&[(&first, 4), (&second, 9)], 2, &config, Seed::new(1)).unwrap();
        for (a, b) in alone[0].iter().flatten().zip(beside[1].iter().flatten()) {
            assert!((a[0] - b[0]).abs() < 1e-3 && (a[1] - b[1]).abs() < 1e-3, "{inner:?}");
        }
    }
    assert_eq!(
        SampleConfig {
            inner: Inner::UlaPlus,
            inner_steps: 10,
            inner_at_last: true,
            ..SampleConfig::default()
        }
        .calls(100),
        100 + 25 * 40
    );
}

#[test]
fn mala_accepts_by_the_true_density_of_a_gaussian() {
    // With ε̂ = v √(1 − ᾱ) the score is −v: a standard normal, for which the trapezoid is exact.
    let schedule = Schedule::cosine(50);
    let t = 20;
    let eps = |v: &[f32]| -> Vec<f32> { v.iter().map(|v| v * schedule.noise[t]).collect() };
    let (x, y) = ([0.3f32, -0.8], [0.5f32, -0.2]);
    let found = mala_log_ratio(&schedule, t, 2.0, (&x, &eps(&x)), (&y, &eps(&y)), None);
    let size = f64::from(2.0 * schedule.beta[t]);
    let log_density = |v: &[f32]| -> f64 { v.iter().map(|v| -0.5 * f64::from(v * v)).sum() };
    let proposal = |from: &[f32], to: &[f32]| -> f64 {
        from.iter()
            .zip(to)
            .map(|(&a, &b)| {
                let d = f64::from(b) - (1.0 - size) * f64::from(a);
                -d * d / (4.0 * size)
            })
            .sum()
    };
    let expected = log_density(&y) - log_density(&x) + proposal(&y, &x) - proposal(&x, &y);
    assert!((found - expected).abs() < 1e-5, "{found} {expected}");
    let gain = Some(log_density(&y) - log_density(&x));
    let known = mala_log_ratio(&schedule, t, 2.0, (&x, &eps(&x)), (&y, &eps(&y)), gain);
    assert!((known - expected).abs() < 1e-5, "{known} {expected}");
}

#[test]
fn an_energy_is_learned_and_its_gradient_moves_the_chains() {
    let config = TrainConfig { energy: true, ..small() };
    let run = |threads| {
        let mut losses = Vec::new();
        let trained = train(&config, Seed::new(7), threads, |_, loss| losses.push(loss)).unwrap();
        (trained.tensors(), losses)
    };
    let (tensors, losses) = run(1);
    assert_eq!(losses, run(2).1);
    let last = losses[losses.len() - 10..].iter().sum::<f64>() / 10.0;
    // 0.75 is the loss of saying 0
    assert!(last < 0.4, "{} {last}", losses[0]);
    let sampler = networks::ready(tensors, &config).unwrap();
    let mut problem = world(3, &mut Seed::new(5).stream("world")).problem;
    problem.locked[1] = Some([0.25, -0.5]);
    for inner in [Inner::Ula, Inner::Mala] {
        let sample = SampleConfig { inner, inner_steps: 2, ..SampleConfig::default() };
        let run = || sampler.sample(&[(&problem, 0)], 3, &sample, Seed::new(1)).unwrap();
        let layouts = run();
        assert_eq!(layouts, run());
        assert_ne!(layouts[0][0], layouts[0][1]);
        assert!(layouts[0].iter().all(|layout| layout[1] == [0.25, -0.5]));
        assert!(sampler.sample(&[], 3, &sample, Seed::new(1)).unwrap().is_empty());
    }
}

#[test]
fn a_batch_of_nothing_is_no_noise() {
    let mut builder = Builder::seeded(Seed::new(1)).frozen();
    let model = Denoiser::new(&mut builder, 16).unwrap();
    let rows = GraphRows { geometry: &[1.0, 1.0, 0.2, 0.2], masked: &[true, false], edges: &[] };
    let batch = Batch::new(&[rows], vec![3]).unwrap();
    let pose = Tensor::ones((2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
    let noise = model.forward(&batch, &pose).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(noise, [[0.0, 0.0], [0.0, 0.0]]);
    let (noise, energies) = learned_energy::noise(&model, &batch, &pose).unwrap();
    assert_eq!(noise.to_vec2::<f32>().unwrap(), [[0.0, 0.0], [0.0, 0.0]]);
    assert_eq!(energies, [0.0]);
    let (none, pose) = (Batch::new(&[], Vec::new()).unwrap(), pose.narrow(0, 0, 0).unwrap());
    assert_eq!(model.forward(&none, &pose).unwrap().dims(), [0, 2]);
    assert_eq!(
        learned_energy::energy(&model, &none, &pose).unwrap().to_scalar::<f32>().unwrap(),
        0.0
    );
    assert_eq!(learned_energy::noise(&model, &none, &pose).unwrap().0.dims(), [0, 2]);
}
