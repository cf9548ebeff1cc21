//! CMA, AMSA, adapters and the overwriting of placeholders, against PyTorch and against hand-made
//! cases.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use common::lm::{Lm, LmConfig, Pass};
use common::nn::{Builder, Parameters};
use common::optim::Gradients;
use common::rng::Seed;
use common::testing::gradients::assert_all_grads;
use common::testing::{assert_close, golden, golden_tensors};
use tmf::model::fusion::{GROUPS, group_of, reaches};
use tmf::model::{
    Batch, CmaScope, Dropout, Events, Fusion, FusionOptions, Modalities, Modality, Noise, Parts,
    Pool, RowParts, Tmf, Used, View,
};

const ALL: [bool; 3] = [true; 3];
const WIDTHS: [Option<usize>; 3] = [Some(6), Some(5), Some(7)];

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn goldens() -> HashMap<String, Tensor> {
    golden_tensors(&golden(env!("CARGO_MANIFEST_DIR"), "fusion/fusion.safetensors"))
}

fn modalities(golden: &HashMap<String, Tensor>) -> Modalities {
    ["image", "text", "graph"].map(|name| {
        let present = values(&golden[&format!("present/{name}")]);
        Some(Modality {
            vectors: golden[&format!("vectors/{name}")].clone(),
            present: present.into_iter().map(|p| p > 0.0).collect(),
        })
    })
}

fn events() -> Events {
    Events {
        batch: 2,
        length: 4,
        items: vec![0, 2, 4, 1, 3, 6, 5, 0],
        behaviours: vec![0, 1, 2, 0, 2, 2, 1, 0],
        real: vec![true, true, true, true, true, true, true, false],
    }
}

fn options(cma: CmaScope) -> FusionOptions {
    FusionOptions { width: 8, heads: 2, cma, ..FusionOptions::default() }
}

fn from_golden(golden: &HashMap<String, Tensor>, cma: CmaScope) -> (Fusion, Parameters) {
    let weights: BTreeMap<String, Tensor> = golden
        .iter()
        .filter_map(|(name, t)| Some((name.strip_prefix("weights/")?.to_owned(), t.clone())))
        .collect();
    let mut builder = Builder::from_tensors(weights);
    let fusion = Fusion::new(&mut builder, &options(cma), WIDTHS, 3, 4, 12).unwrap();
    (fusion, builder.finish())
}

fn real_rows(t: &Tensor, events: &Events) -> Tensor {
    let mask: Vec<f32> = events.real.iter().map(|&real| f32::from(u8::from(real))).collect();
    let mask = Tensor::from_vec(mask, (events.real.len(), 1), &Device::Cpu).unwrap();
    t.broadcast_mul(&mask).unwrap()
}

fn fused(fusion: &Fusion, modalities: &Modalities, events: &Events, used: Used) -> Tensor {
    let dropout = &mut Dropout::default();
    let table = fusion.table(modalities, &events.items, used, dropout).unwrap();
    fusion.events(&table, events, dropout).unwrap()
}

fn listed(fusion: &Fusion, modalities: &Modalities, items: &[u32], used: Used) -> Tensor {
    let table = fusion.table(modalities, items, used, &mut Dropout::default()).unwrap();
    fusion.candidates(&table, items).unwrap()
}

#[test]
fn forward_and_gradients_equal_pytorch() {
    let golden = goldens();
    let modalities = modalities(&golden);
    for (scope, cma) in [("item", CmaScope::Item), ("sequence", CmaScope::Sequence)] {
        let (fusion, parameters) = from_golden(&golden, cma);
        let events = events();
        let found = real_rows(&fused(&fusion, &modalities, &events, ALL), &events);
        let listed = listed(&fusion, &modalities, &[7, 2, 3, 8, 4], ALL);
        assert_close(&values(&found), &values(&golden[&format!("{scope}/events")]), 1e-4, 0.0);
        assert_close(&values(&listed), &values(&golden[&format!("{scope}/candidates")]), 1e-4, 0.0);
        let mean_square = |t: &Tensor| t.sqr().unwrap().mean_all().unwrap();
        let loss = (mean_square(&found) + mean_square(&listed)).unwrap();
        let gradients = Gradients::of(&loss, &parameters).unwrap();
        for ((name, _), gradient) in parameters.iter().zip(gradients.tensors()) {
            let expected = values(&golden[&format!("{scope}/grad/{name}")]);
            let largest = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
            let tolerance = f64::from(1e-3 * largest).max(1e-6);
            assert_close(&values(gradient), &expected, tolerance, 0.0);
        }
    }
}

#[test]
fn every_parameter_that_a_level_reaches_has_a_gradient() {
    let golden = goldens();
    let modalities = modalities(&golden);
    for cma in [CmaScope::Off, CmaScope::Item, CmaScope::Sequence] {
        let (fusion, parameters) = from_golden(&golden, cma);
        for used in [ALL, [false, false, true], [true, false, false]] {
            for with_list in [true, false] {
                let mut loss = fused(&fusion, &modalities, &events(), used).sqr().unwrap();
                loss = loss.sum_all().unwrap();
                if with_list {
                    let more = listed(&fusion, &modalities, &[7, 2, 3], used);
                    loss = (loss + more.sqr().unwrap().sum_all().unwrap()).unwrap();
                }
                // a shift of all keys cancels in the softmax; with one key so do queries and keys
                let moved = |name: &str| {
                    let fixed = name.ends_with("k_proj.bias")
                        || (name.contains("cma.item")
                            && used.iter().filter(|u| **u).count() == 1
                            && (name.contains("q_proj") || name.contains("k_proj")));
                    !fixed && reaches(group_of(name), used, with_list, cma)
                };
                assert_all_grads(&loss, &parameters.filter(moved));
            }
        }
    }
    assert_eq!(GROUPS[group_of("amsa.kinds")], "");
}

#[test]
fn cma_with_one_present_key_is_the_projection_of_its_value() {
    let golden = goldens();
    let mut modalities = modalities(&golden);
    let (fusion, _) = from_golden(&golden, CmaScope::Item);
    // item 2 has no image: whatever the graph vector asks, only the text can answer
    let before = listed(&fusion, &modalities, &[2], [false, true, true]);
    let masked = listed(&fusion, &modalities, &[2], ALL);
    assert_close(&values(&before), &values(&masked), 1e-6, 0.0);
    // and an absent vector is never read
    if let Some(image) = &mut modalities[0] {
        let rows = image.vectors.to_vec2::<f32>().unwrap();
        let changed: Vec<f32> = rows
            .iter()
            .enumerate()
            .flat_map(|(at, row)| row.iter().map(move |v| if at == 2 { 1e6 } else { *v }))
            .collect();
        image.vectors = Tensor::from_vec(changed, (9, 6), &Device::Cpu).unwrap();
    }
    let changed = listed(&fusion, &modalities, &[2], ALL);
    assert_eq!(values(&masked), values(&changed));
}

#[test]
fn later_events_do_not_change_earlier_vectors() {
    let golden = goldens();
    let modalities = modalities(&golden);
    for cma in [CmaScope::Item, CmaScope::Sequence] {
        let (fusion, _) = from_golden(&golden, cma);
        let mut changed = events();
        changed.items[3] = 8;
        changed.behaviours[3] = 1;
        let [a, b] = [&events(), &changed].map(|events| {
            let rows = fused(&fusion, &modalities, events, ALL).to_vec2::<f32>().unwrap();
            rows[..3].to_vec()
        });
        assert_eq!(a, b);
    }
}

#[test]
fn attention_shares_sum_to_one_and_skip_absent_modalities() {
    let golden = goldens();
    let modalities = modalities(&golden);
    let (fusion, _) = from_golden(&golden, CmaScope::Item);
    let shares = fusion.modality_attention(&modalities, &events()).unwrap().unwrap();
    assert!(shares.iter().all(|s| (s.iter().sum::<f64>() - 1.0).abs() < 1e-5), "{shares:?}");
    let single =
        Events { batch: 1, length: 1, items: vec![2], behaviours: vec![0], real: vec![true] };
    let share = fusion.modality_attention(&modalities, &single).unwrap().unwrap()[0];
    assert!(share[0] == 0.0 && share[1] > 0.0 && share[2] > 0.0, "{share:?}");
}

/// Two rows with events and a candidate at known places.
fn batch(text_only: Option<u32>) -> Batch {
    let ids = [3u32, 9, 4, 9, 5, 10, 6];
    let labels = [-100i64, -100, 4, -100, -100, -100, 6];
    let first = RowParts {
        ids: &ids,
        labels: &labels,
        events: &[(1, 0, 1), (3, 4, 2)],
        candidates: &[(5, 7)],
        asked: &[],
    };
    let second = RowParts {
        ids: &ids[..3],
        labels: &labels[..3],
        events: &[(1, 6, 0)],
        candidates: &[],
        asked: &[],
    };
    Batch::new(&[first, second], 0, 12, text_only).unwrap()
}

fn model(golden: &HashMap<String, Tensor>, known: Option<&[bool]>) -> (Tmf, Modalities) {
    let lm = Lm::new(&LmConfig::llama(12, 12, 2, 2, 16), Seed::new(1)).unwrap();
    let options = options(CmaScope::Item);
    let parts = Parts { fusion: Some((&options, WIDTHS)), behaviours: 3, history: 4, known };
    let model = Tmf::new(lm, parts, Seed::new(2)).unwrap();
    (model, modalities(golden))
}

fn inputs(model: &Tmf, batch: &Batch, modalities: &Modalities) -> Option<Tensor> {
    let (all, dropout): (Vec<u32>, _) = ((0..9).collect(), &mut Dropout::default());
    let items = model.items(modalities, &all, &PLAIN, dropout).unwrap();
    model.inputs(batch, &items, dropout).unwrap()
}

const PLAIN: View = View { used: ALL, tokens: None };

#[test]
fn placeholders_are_overwritten_and_nothing_else_is() {
    let golden = goldens();
    let (model, modalities) = model(&golden, None);
    let batch = batch(None);
    let inputs = inputs(&model, &batch, &modalities).unwrap();
    let inputs = inputs.to_vec3::<f32>().unwrap();
    let plain = model.lm.embedding().forward(&batch.ids).unwrap().to_vec3::<f32>().unwrap();
    let fusion = model.fusion.as_ref().unwrap();
    let fused = fused(fusion, &modalities, &batch.events, ALL);
    let fused = fused.to_vec2::<f32>().unwrap();
    let listed = listed(fusion, &modalities, &[7], ALL).to_vec2::<f32>().unwrap();
    for row in 0..2 {
        for token in 0..7 {
            let expected = match (row, token) {
                (0, 1) => &fused[0],
                (0, 3) => &fused[1],
                (0, 5) => &listed[0],
                (1, 1) => &fused[2],
                _ => &plain[row][token],
            };
            assert_eq!(&inputs[row][token], expected, "row {row}, token {token}");
        }
    }
    let text = batch_of_text(&model, &modalities);
    assert_eq!(text, [11, 11, 11, 11]);
}

/// The tokens at the placeholders of a text-only batch, which has nothing to overwrite.
fn batch_of_text(model: &Tmf, modalities: &Modalities) -> Vec<u32> {
    let batch = batch(Some(11));
    assert!(inputs(model, &batch, modalities).is_none());
    let ids = batch.ids.to_vec2::<u32>().unwrap();
    vec![ids[0][1], ids[0][3], ids[0][5], ids[1][1]]
}

#[test]
fn the_loss_reaches_lm_and_fusion() {
    let golden = goldens();
    let (model, modalities) = model(&golden, None);
    let pool = Pool::new((0..9).collect(), 9);
    let loss = model.loss(&batch(None), &modalities, &PLAIN, &pool, &mut Noise::default()).unwrap();
    assert_all_grads(&loss, model.lm.parameters());
    let moved = |name: &str| !name.ends_with("k_proj.bias");
    assert_all_grads(&loss, &model.added.filter(moved));
    let pass = model.lm.loss(&batch(None).ids, &batch(None).labels, Pass::default()).unwrap();
    assert!(pass.to_scalar::<f32>().unwrap().is_finite());
}

/// The batch of [`batch`] whose answers are items: 7 and 4 in the first row, 0 in the second.
fn asked() -> Batch {
    let ids = [3u32, 9, 4, 9, 5, 10, 6];
    let first = RowParts {
        ids: &ids,
        labels: &[-100; 7],
        events: &[(1, 0, 1), (3, 4, 2)],
        candidates: &[],
        asked: &[(2, 4), (6, 7)],
    };
    let second = RowParts {
        ids: &ids[..3],
        labels: &[-100; 3],
        events: &[(1, 6, 0)],
        candidates: &[],
        asked: &[(2, 0)],
    };
    Batch::new(&[first, second], 0, 12, None).unwrap()
}

#[test]
fn answers_by_item_token_reach_everything_and_are_dot_products() {
    let golden = goldens();
    let known: Vec<bool> = (0..9).map(|item| item != 6).collect();
    let (model, modalities) = model(&golden, Some(&known));
    let pool = Pool::new(vec![7, 4, 0, 2], 9);
    let view = model.view(ALL).unwrap();
    let batch = asked();
    assert_eq!(
        (batch.targets, &batch.asked[..], &batch.answers[..]),
        (3, &[2, 6, 9][..], &[4, 7, 0][..])
    );
    let loss = model.loss(&batch, &modalities, &view, &pool, &mut Noise::default()).unwrap();
    assert_all_grads(&loss, model.lm.parameters());
    assert_all_grads(&loss, &model.added.filter(|name| !name.ends_with("k_proj.bias")));
    // the same number from logits over the pool
    let all: Vec<u32> = (0..9).collect();
    let items = model.items(&modalities, &all, &view, &mut Dropout::default()).unwrap();
    let vectors = items.vectors(&pool.items).unwrap().unwrap();
    let logits = model.item_logits(&batch, &items, &vectors).unwrap();
    let logits = logits.to_vec2::<f32>().unwrap();
    let places = [1, 0, 2];
    let by_hand: f32 = logits
        .iter()
        .zip(places)
        .map(|(row, at)| row.iter().map(|x| x.exp()).sum::<f32>().ln() - row[at])
        .sum();
    assert_close(&[loss.to_scalar::<f32>().unwrap()], &[by_hand / 3.0], 1e-4, 0.0);
    // item 6 was never trained on: its token adds nothing; item 4's does
    let plain = View { tokens: None, ..view.clone() };
    let of = |view: &View| {
        let items = model.items(&modalities, &all, view, &mut Dropout::default()).unwrap();
        let vectors = items.vectors(&[6, 4]).unwrap().unwrap();
        vectors.to_vec2::<f32>().unwrap()
    };
    assert_eq!(of(&view)[0], of(&plain)[0]);
    assert_ne!(of(&view)[1], of(&plain)[1]);
    let outside = Pool::new(vec![7, 4], 9);
    assert!(model.loss(&batch, &modalities, &view, &outside, &mut Noise::default()).is_err());
    let nothing = View { used: [false; 3], tokens: None };
    let error = model
        .loss(&batch, &modalities, &nothing, &pool, &mut Noise::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("lm.item_tokens"), "{error}");
}

#[test]
fn impossible_fusions_are_refused() {
    let refused = |options: FusionOptions, widths, part: &str| {
        let mut builder = Builder::seeded(Seed::new(0));
        let error = Fusion::new(&mut builder, &options, widths, 3, 4, 12).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(FusionOptions { heads: 3, ..options(CmaScope::Item) }, WIDTHS, "does not divide");
    refused(options(CmaScope::Item), [None, None, None], "needs one of them");
    refused(options(CmaScope::Sequence), [None, Some(5), Some(7)], "items with images");
}
