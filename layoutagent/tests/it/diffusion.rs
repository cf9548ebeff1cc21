//! Inpainting and blended latents against diffusers (tests/golden/refiners, made by
//! gen_refiners.py): the loops replay the recorded answers of the U-Net.

use candle_core::Tensor;
use common::diffusion::{Sampler, SamplerKind, SchedulerConfig};
use common::testing::{golden, golden_tensors};
use layoutagent::render::diffusion::{GUIDANCE, Given, denoise, keep_foreground};

fn largest(x: &Tensor) -> f32 {
    x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

#[track_caller]
fn close(found: &Tensor, expected: &Tensor, what: &str) {
    let worst = largest(&(found - expected).unwrap());
    assert!(worst <= 1e-4 * largest(expected), "{what}: {worst}");
}

#[test]
fn inpainting_and_blending_equal_diffusers() {
    let file = golden(env!("CARGO_MANIFEST_DIR"), "refiners/refiners.safetensors");
    let tensors = golden_tensors(&file);
    let of = |name: &str| tensors[name].clone();
    let config = SchedulerConfig::from_json(
        r#"{"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
            "beta_schedule": "scaled_linear", "clip_sample": false, "set_alpha_to_one": false,
            "steps_offset": 1, "prediction_type": "epsilon", "timestep_spacing": "leading"}"#,
    )
    .unwrap();
    let repaint = of("expect/latent_mask");
    let given = [
        (
            "nine",
            Given::Channels { repaint: repaint.clone(), masked: of("expect/masked_image_latents") },
        ),
        ("four", Given::Blend { repaint, known: of("expect/image_latents") }),
    ];
    for (name, given) in given {
        let mut sampler = Sampler::new(SamplerKind::Ddim, &config, 4).unwrap();
        let (inputs, outputs) =
            (of(&format!("{name}/unet_inputs")), of(&format!("{name}/unet_outputs")));
        let mut step = 0;
        let latents = denoise(&mut sampler, &of("given/start"), &given, |input, _| {
            close(input, &inputs.get(step)?, &format!("{name}: input {step}"));
            let answers = outputs.get(step)?;
            step += 1;
            let (without, with) = (answers.narrow(0, 0, 1)?, answers.narrow(0, 1, 1)?);
            Ok((&without + ((with - &without)? * GUIDANCE)?)?)
        })
        .unwrap();
        let states = of(&format!("{name}/latents"));
        close(&latents, &states.get(3).unwrap(), name);
        assert_eq!(step, 4);
    }
    let (alpha_bar, z) = (0.274_998_843_669_891_36f64, of("eq7/z"));
    let noised = ((of("eq7/foreground") * alpha_bar.sqrt()).unwrap()
        + (of("eq7/noise") * (1.0 - alpha_bar).sqrt()).unwrap())
    .unwrap();
    let kept = keep_foreground(&z, &noised, &of("eq7/keep_mask")).unwrap();
    close(&kept, &of("eq7/out"), "Eq. 7");
}
