//! Against diffusers and torch; `tests/golden/make_*.py` made the files.

use std::collections::BTreeMap;

use common::testing::{assert_close, golden, golden_tensors};
use poac::model::schedule::{Beta, Prediction};
use poac::model::{QualityHead, Schedule};

use crate::toy::values;

const BETAS: [(&str, Beta); 3] = [
    ("linear", Beta::Linear),
    ("scaled_linear", Beta::ScaledLinear),
    ("squaredcos_cap_v2", Beta::SquaredCosine),
];

fn f32s(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

fn file(name: &str) -> std::path::PathBuf {
    golden(env!("CARGO_MANIFEST_DIR"), name)
}

#[test]
fn schedules_equal_diffusers() {
    let e = golden_tensors(&file("schedules.safetensors"));
    for (name, beta) in BETAS {
        let schedule = Schedule::new(beta, 1_000);
        assert_close(&f32s(schedule.betas()), &values(&e[&format!("{name}/betas")]), 1e-6, 0.0);
        let alphas = &e[&format!("{name}/alphas_cumprod")];
        assert_close(&f32s(schedule.alphas()), &values(alphas), 1e-6, 0.0);
        for steps in [10usize, 50] {
            let times =
                |spacing: &str| values(&e[&format!("{name}/ddim/{spacing}/{steps}/timesteps")]);
            let found = |times: Vec<usize>| times.iter().map(|&t| t as f32).collect::<Vec<_>>();
            assert_eq!(found(schedule.trailing(steps)), times("trailing"));
            assert_eq!(found(schedule.leading(steps)), times("leading"));
        }
        let times: Vec<usize> = e["pointwise/timesteps"]
            .to_vec1::<i64>()
            .unwrap()
            .iter()
            .map(|&t| t as usize)
            .collect();
        let clean = e["noise/start"].repeat((6, 1, 1, 1)).unwrap();
        let noise = e["noise/ddpm"].narrow(0, 0, 6).unwrap();
        let noise = noise.reshape(clean.shape()).unwrap();
        let noisy = schedule.add_noise(&clean, &noise, &times).unwrap();
        assert_close(
            &values(&noisy),
            &values(&e[&format!("{name}/pointwise/add_noise")]),
            1e-5,
            0.0,
        );
        let velocity = schedule.target(Prediction::Velocity, &clean, &noise, &times).unwrap();
        let expected = &e[&format!("{name}/pointwise/velocity")];
        assert_close(&values(&velocity), &values(expected), 1e-5, 0.0);
    }
}

#[test]
fn ddim_trajectories_equal_diffusers() {
    let e = golden_tensors(&file("schedules.safetensors"));
    let kinds = [
        ("epsilon", Prediction::Epsilon),
        ("v_prediction", Prediction::Velocity),
        ("sample", Prediction::Sample),
    ];
    for (name, beta) in BETAS {
        let schedule = Schedule::new(beta, 1_000);
        for (kind, prediction) in kinds {
            let expected = &e[&format!("{name}/ddim/leading/10/trajectory/{kind}")];
            let largest = values(expected).iter().fold(0f32, |most, v| most.max(v.abs()));
            let share = if beta == Beta::SquaredCosine { 1e-4 } else { 1e-5 };
            let mut z = expected.get(0).unwrap();
            let times = schedule.leading(10);
            for (at, &time) in times.iter().enumerate() {
                let answer = ((&z * 0.1).unwrap() + (time as f64).sin()).unwrap();
                let (clean, noise) =
                    schedule.clean_and_noise(prediction, &z, &answer, time).unwrap();
                // diffusers' set_alpha_to_one = false: the last step goes to time 0
                let next = times.get(at + 1).copied().unwrap_or(0);
                z = schedule.ddim(&clean, &noise, Some(next)).unwrap();
                let expected = expected.get(at + 1).unwrap();
                assert_close(&values(&z), &values(&expected), share * f64::from(largest), 0.0);
            }
        }
    }
}

#[test]
fn the_quality_head_has_laions_form() {
    let e = golden_tensors(&file("aesthetic_head.safetensors"));
    let weights: BTreeMap<_, _> = e
        .iter()
        .filter_map(|(name, t)| Some((name.strip_prefix("small/weights/")?.to_owned(), t.clone())))
        .collect();
    let head = QualityHead::frozen(16, [32, 16, 8, 4, 1], weights).unwrap();
    let features = candle_core::Var::from_tensor(&e["small/features"]).unwrap();
    let score = head.forward(&features).unwrap();
    assert_close(&values(&score), &values(&e["small/score"]), 1e-5, 0.0);
    let store = score.sum_all().unwrap().backward().unwrap();
    let expected = values(&e["small/grad_features"]);
    let largest = expected.iter().fold(0f32, |most, v| most.max(v.abs()));
    let found = values(store.get(&features).unwrap());
    assert_close(&found, &expected, 1e-3 * f64::from(largest), 0.0);
}
