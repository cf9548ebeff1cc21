//! The generator: gradients, decoding against the oracle, growth, learning, resume.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use common::optim::{AdamW, AdamWOptions, Workers};
use common::rng::Seed;
use common::testing::gradients::assert_all_grads;
use common::testing::{assert_close, golden, golden_json, golden_tensors};
use crab::baselines;
use crab::config::{TokenizerConfig, VectorSource};
use crab::data::{Dataset, synthetic};
use crab::decode::{DecodeOptions, decode};
use crab::eval::{Groups, evaluate};
use crab::model::generator::{Architecture, Counted, Generator, GeneratorOptions};
use crab::model::rebalance::{RebalanceOptions, rebalance};
use crab::model::trie::Trie;
use crab::sid::SidTable;
use crab::tokenizer::{Codebook, Letter, RqVae, RqVaeOptions, train_rqvae};
use crab::train::{Stage2Options, Task, TrainOptions, fine_tune, fit, inverse_popularity};
use crab::vectors::code_book;

const SMALL: GeneratorOptions = GeneratorOptions {
    architecture: Architecture::Decoder,
    width: 32,
    layers: 2,
    heads: 2,
    head_width: 0,
    inner: 48,
    dropout: 0.1,
    history: 4,
};

/// TIGER's shape, heads wider than their share.
const TIGER: GeneratorOptions =
    GeneratorOptions { architecture: Architecture::EncoderDecoder, head_width: 24, ..SMALL };

fn world() -> (Dataset, Codebook, SidTable) {
    let data = synthetic(60, 250, 6, Seed::new(1));
    let config = TokenizerConfig { codes: vec![6, 6], ..TokenizerConfig::default() };
    assert_eq!(config.vectors, VectorSource::Text);
    let mut stream = Seed::new(4).stream("points");
    let points = ndarray::Array2::from_shape_fn((60, 8), |(item, at)| {
        let own = if item % 6 == at { 3.0 } else { 0.0 };
        own + 0.5 * stream.normal() as f32
    });
    let book = code_book(points, &config, Seed::new(1)).unwrap();
    let table = book.table.deduplicated(&data.counts());
    (data, book, table)
}

fn options(epochs: usize) -> TrainOptions {
    TrainOptions {
        epochs,
        batch: 32,
        learning_rate: 5e-3,
        evaluate_every: 0,
        ..TrainOptions::default()
    }
}

fn task<'a>(data: &'a Dataset, table: &'a SidTable) -> Task<'a> {
    Task { sequences: &data.train, table, valid: &data.valid, item_weights: None }
}

#[test]
fn every_parameter_gets_a_gradient() {
    let (_, _, table) = world();
    let row = |item: usize| table.row(item);
    let rows = [vec![row(0), row(7), row(3), row(30), row(31)], vec![row(2), row(9)]];
    let weights = [vec![1.0; 5], vec![1.0; 2]];
    let stream = || Some(Seed::new(2).stream("d"));
    let value = |t: &Tensor| t.to_scalar::<f32>().unwrap();
    for options in [SMALL, TIGER] {
        let model = Generator::new(table.sizes(), options, Seed::new(1)).unwrap();
        let batch = |counted| model.batch(&rows, counted).unwrap();
        let all = batch(Counted::default());
        assert_eq!(all.target_items(), 7);
        let loss = model.loss(&all, stream()).unwrap();
        assert_all_grads(&loss, model.parameters());
        // equal weights give the unweighted loss, and gradients too
        let counted = Counted { weights: Some(&weights), ..Counted::default() };
        let weighted = model.loss(&batch(counted), stream()).unwrap();
        assert!((value(&loss) - value(&weighted)).abs() < 1e-4);
        assert_all_grads(&weighted, model.parameters());
        // a softmax over fewer codes costs less
        let trie = Trie::new(&table);
        let counted = Counted { trie: Some(&trie), context: 1, ..Counted::default() };
        assert_eq!(batch(counted).target_items(), 5);
        let bound = model.loss(&batch(counted), stream()).unwrap();
        let free = Counted { context: 1, ..Counted::default() };
        let free = model.loss(&batch(free), stream()).unwrap();
        assert!(value(&bound) < value(&free), "{} {}", value(&bound), value(&free));
        assert_all_grads(&bound, model.parameters());
    }
}

#[test]
fn decoding_equals_the_plain_pass_over_every_item() {
    let (data, _, table) = world();
    for options in [SMALL, TIGER] {
        let model = Generator::new(table.sizes(), options, Seed::new(3)).unwrap();
        decoding_equals_the_plain_pass(&data, &table, &model);
    }
}

fn decoding_equals_the_plain_pass(data: &Dataset, table: &SidTable, model: &Generator) {
    let histories: [&[u32]; 5] = [&[], &[5], &[1, 2, 3], &[9, 8, 7, 6, 5, 4, 3], &data.train[0]];
    let all = DecodeOptions { beams: usize::MAX, renormalise: false };
    let workers = Workers::new(2).unwrap();
    let exact = decode(model, table, &histories, all, &workers).unwrap();
    for (history, ranked) in histories.iter().zip(&exact) {
        assert_eq!(ranked.len(), data.items());
        assert!(ranked.windows(2).all(|pair| pair[0].1 >= pair[1].1));
        let recent = &history[history.len().saturating_sub(SMALL.history)..];
        let rows: Vec<Vec<&[u32]>> = (0..data.items())
            .map(|item| {
                recent.iter().map(|&i| table.row(i as usize)).chain([table.row(item)]).collect()
            })
            .collect();
        let counted = Counted { context: recent.len(), ..Counted::default() };
        let oracle = model.log_probability(&model.batch(&rows, counted).unwrap()).unwrap();
        for &(item, log) in ranked {
            let expected = oracle[item as usize];
            assert!((log - expected).abs() < 1e-4, "{history:?} {item}: {log} {expected}");
        }
    }
    // as many beams as items: the same order; few beams: items of the trie only
    let wide = decode(model, table, &histories, DecodeOptions { beams: 60, ..all }, &workers);
    assert_eq!(wide.unwrap(), exact);
    let narrow = DecodeOptions { beams: 3, renormalise: true };
    let found = decode(model, table, &histories, narrow, &workers).unwrap();
    assert!(found.iter().all(|ranked| ranked.len() == 3));
    let one = decode(model, table, &histories, narrow, &Workers::new(1).unwrap()).unwrap();
    assert_eq!(found, one);
    // renormalised probabilities of all items add up to 1, and training within the trie asks for
    // just these
    let exact = DecodeOptions { beams: usize::MAX, renormalise: true };
    for (history, ranked) in
        histories.iter().zip(decode(model, table, &histories, exact, &workers).unwrap())
    {
        let total: f64 = ranked.iter().map(|(_, log)| log.exp()).sum();
        assert!((total - 1.0).abs() < 1e-6, "{total}");
        let recent = &history[history.len().saturating_sub(SMALL.history)..];
        let (best, log) = ranked[0];
        let row: Vec<&[u32]> =
            recent.iter().chain([&best]).map(|&i| table.row(i as usize)).collect();
        let trie = Trie::new(table);
        let counted = Counted { context: recent.len(), trie: Some(&trie), ..Counted::default() };
        let loss = model.loss(&model.batch(&[row], counted).unwrap(), None).unwrap();
        let loss = f64::from(loss.to_scalar::<f32>().unwrap());
        assert!((loss + log).abs() < 1e-4, "{history:?}: {loss} {log}");
    }
}

/// The encoder–decoder is transformers' T5 (`tests/golden/make_t5.py`).
#[test]
fn the_encoder_decoder_equals_t5() {
    let folder = golden(env!("CARGO_MANIFEST_DIR"), "t5");
    let mut tensors: BTreeMap<String, Tensor> =
        golden_tensors(&folder.join("t5.safetensors")).into_iter().collect();
    let expected = tensors.remove("log_probability").unwrap().flatten_all().unwrap();
    let expected: Vec<f64> =
        expected.to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect();
    let windows = tensors.remove("windows").unwrap();
    let (_, items, levels) = windows.dims3().unwrap();
    let windows: Vec<u32> = windows.flatten_all().unwrap().to_vec1().unwrap();
    let codes: Vec<&[u32]> = windows.chunks(levels).collect();
    let rows: Vec<Vec<&[u32]>> = codes.chunks(items).map(<[&[u32]]>::to_vec).collect();
    let options = GeneratorOptions {
        width: 16,
        head_width: 6,
        inner: 24,
        dropout: 0.0,
        history: items - 1,
        ..TIGER
    };
    let model = Generator::from_tensors(options, tensors).unwrap();
    let batch = model.batch(&rows, Counted::default()).unwrap();
    assert_close(&model.log_probability(&batch).unwrap(), &expected, 1e-4, 1e-4);
}

#[test]
fn growing_without_noise_keeps_logits_and_copies_the_split_token() {
    let (data, book, table) = world();
    let model = Generator::new(table.sizes(), SMALL, Seed::new(3)).unwrap();
    let options = RebalanceOptions { levels: vec![0], ratio: 0.5, ..RebalanceOptions::default() };
    let residuals = |level| Some(book.residuals(level));
    let stage1 = rebalance(&table, &data.counts(), residuals, &options, Seed::new(1)).unwrap();
    assert!(!stage1.splits.is_empty());
    let grown = model.grown(&stage1.parent_of, 0.0, Seed::new(1)).unwrap();
    assert_eq!(grown.sizes().unwrap()[0], stage1.table.sizes()[0]);
    // the same items in old and new codes, the new codes being copies
    let rows = |table: &SidTable| -> Vec<Tensor> {
        let model = if *table == stage1.table { &grown } else { &model };
        let history = vec![table.row(3), table.row(9)];
        let batch = model.histories(&[history]).unwrap();
        let (state, _) = model.read(&batch).unwrap();
        vec![model.logits(&state, 0).unwrap()]
    };
    let (old, new) = (rows(&table), rows(&stage1.table));
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (old, new) = (values(&old[0]), values(&new[0]));
    for (code, parent) in stage1.parent_of[0].iter().enumerate() {
        assert!((new[code] - old[*parent as usize]).abs() < 1e-5);
    }
    let wrong = [vec![0, 1, 99], vec![], vec![]];
    assert_eq!(model.grown(&wrong, 0.0, Seed::new(1)).unwrap_err().exit_code(), 3);
}

#[test]
fn a_generator_learns_the_clusters_and_stage_2_keeps_what_it_knows() {
    let (data, book, table) = world();
    let workers = Workers::new(2).unwrap();
    let new = || Generator::new(table.sizes(), SMALL, Seed::new(3)).unwrap();
    let (model, history) =
        fit(task(&data, &table), new(), &options(8), &workers, Seed::new(1), None).unwrap();
    assert!(history[7].loss < 0.8 * history[0].loss, "{history:?}");
    let groups = Groups::equal_count(&data.counts(), 5);
    let hr = |model: &Generator, table: &SidTable| {
        let histories: Vec<&[u32]> = data.test.iter().map(|c| c.history.as_slice()).collect();
        let decoding = DecodeOptions { beams: 20, renormalise: true };
        let ranked = decode(model, table, &histories, decoding, &workers).unwrap();
        let lists = baselines::generated(&data, &data.test, &ranked);
        evaluate(&data.test, &lists, &groups, data.items()).hr10
    };
    let trained = hr(&model, &table);
    let popular = baselines::popularity(&data, &data.test).unwrap();
    let popular = evaluate(&data.test, &popular, &groups, data.items()).hr10;
    assert!(trained > popular + 0.1, "{trained} against {popular}");
    let split = RebalanceOptions { levels: vec![0], ratio: 0.3, ..RebalanceOptions::default() };
    let residuals = |level| Some(book.residuals(level));
    let stage1 = rebalance(&table, &data.counts(), residuals, &split, Seed::new(1)).unwrap();
    let base = model.merged_tensors().unwrap();
    for lora_rank in [0, 4] {
        let stage2 = Stage2Options { lora_rank, ..Stage2Options::default() };
        let grown = model.grown(&stage1.parent_of, 0.01, Seed::new(1)).unwrap();
        let (tuned, history) = fine_tune(
            task(&data, &stage1.table),
            grown,
            &[0],
            &stage2,
            &options(3),
            &workers,
            Seed::new(1),
        )
        .unwrap();
        assert!(history[0].regularizer.unwrap() > history[2].regularizer.unwrap());
        assert!(hr(&tuned, &stage1.table) > popular + 0.1);
        // embeddings move in both; the positions of the backbone only without LoRA
        let moved = |name: &str| {
            let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>();
            values(&tuned.parameters().tensors()[name]).unwrap() != values(&base[name]).unwrap()
        };
        assert!(moved("codes.1"));
        assert_eq!(moved("positions"), lora_rank == 0);
        assert!(moved("0.qkv.weight"));
    }
}

#[test]
fn a_killed_training_goes_on_to_the_same_bytes() {
    let (data, _, table) = world();
    let workers = Workers::new(2).unwrap();
    let options =
        TrainOptions { checkpoint_every: 1, evaluate_every: 2, validation: 40, ..options(4) };
    let new = || Generator::new(table.sizes(), SMALL, Seed::new(3)).unwrap();
    let run = |folder: &std::path::Path| {
        fit(task(&data, &table), new(), &options, &workers, Seed::new(1), Some(folder)).unwrap()
    };
    let (whole, again) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (model, history) = run(whole.path());
    // what a process killed after epoch 2 leaves: the schedule is that of the whole run
    let kept = common::checkpoint::Checkpoints::open(whole.path()).unwrap();
    let early = *kept.steps().unwrap().iter().min().unwrap();
    assert!(early < 4, "{early}");
    let folder = format!("step-{early}");
    let entry = std::fs::read_dir(whole.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().to_string_lossy().ends_with(&folder))
        .or_else(|| std::fs::read_dir(whole.path()).unwrap().map(|e| e.unwrap().path()).min())
        .unwrap();
    let copy = again.path().join(entry.file_name().unwrap());
    std::fs::create_dir(&copy).unwrap();
    for file in std::fs::read_dir(&entry).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let (resumed, resumed_history) = run(again.path());
    assert_eq!(history, resumed_history);
    for (name, tensor) in model.parameters().tensors() {
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&tensor), values(&resumed.parameters().tensors()[&name]), "{name}");
    }
}

#[test]
fn threads_change_nothing() {
    let (data, _, table) = world();
    let run = |threads| {
        let model = Generator::new(table.sizes(), SMALL, Seed::new(3)).unwrap();
        let workers = Workers::new(threads).unwrap();
        fit(task(&data, &table), model, &options(1), &workers, Seed::new(1), None).unwrap().1
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn weights_of_rare_items_are_larger_and_average_to_1() {
    let weights = inverse_popularity(&[4, 1, 0], 0.5);
    assert!((weights[1] / weights[0] - 2.0).abs() < 1e-12);
    assert_eq!(weights[1], weights[2]);
    assert!((4.0 * weights[0] + weights[1] - 5.0).abs() < 1e-12);
}

#[test]
fn an_rqvae_learns_codes_that_tell_the_clusters_apart() {
    let (_, book, _) = world();
    let options = RqVaeOptions {
        widths: vec![16, 6],
        epochs: 60,
        batch: 30,
        learning_rate: 5e-3,
        collaborative: 0.02,
        ..RqVaeOptions::default()
    };
    let values: Vec<f32> = book.points.iter().copied().collect();
    let items = Tensor::from_vec(values, (60, 8), &Device::Cpu).unwrap();
    let helpers = Seed::new(2).stream("cf").normal_tensor((60, 6), 1.0).unwrap();
    let clusters = [vec![0, 0, 1, 1, 2, 2], vec![0, 0, 1, 1]];
    let letter = |diversity| {
        let options = RqVaeOptions { diversity, ..options.clone() };
        let model = RqVae::new(8, &[6, 4], options, Seed::new(1)).unwrap();
        let stream = Seed::new(3).stream("positives");
        let letter = Letter { vectors: Some(helpers.clone()), clusters: &clusters, stream };
        let loss = model.loss(&items, Some(letter)).unwrap();
        assert_all_grads(&loss, model.parameters());
        loss.to_scalar::<f32>().unwrap()
    };
    // two levels of nearly equal logits: about ln 5 + ln 3
    let added = letter(1.0) - letter(0.0);
    assert!((added - 15f32.ln()).abs() < 0.1, "{added}");
    let plain = RqVaeOptions { collaborative: 0.0, ..options };
    let learned = train_rqvae(&book.points, &[6, 4], None, &plain, Seed::new(1)).unwrap();
    let used = learned.table.used(0).iter().filter(|used| **used).count();
    assert!(used >= 4, "{used} of 6 codes are used");
    let first = |item: usize| learned.table.row(item)[0];
    let pairs = || (0..60).flat_map(|a| (0..a).map(move |b| (a, b)));
    let share = |same: bool| {
        let chosen: Vec<bool> = pairs()
            .filter(|(a, b)| (a % 6 == b % 6) == same)
            .map(|(a, b)| first(a) == first(b))
            .collect();
        chosen.iter().filter(|equal| **equal).count() as f64 / chosen.len() as f64
    };
    assert!(share(true) > share(false) + 0.3, "{} {}", share(true), share(false));
}

/// 50 steps from the weights of `tests/golden/make_training.py` have PyTorch's losses.
#[test]
fn loss_curves_equal_those_of_pytorch() {
    let folder = golden(env!("CARGO_MANIFEST_DIR"), "training");
    let expected: BTreeMap<String, serde_json::Value> = golden_json(&folder.join("losses.json"));
    let rate = |name: &str| expected["rates"][name].as_f64().unwrap();
    let curve = |name: &str| -> Vec<f64> {
        expected[name].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect()
    };
    let tensors = |name: &str| -> BTreeMap<String, Tensor> {
        golden_tensors(&folder.join(name)).into_iter().collect()
    };
    let workers = Workers::new(1).unwrap();

    let mut weights = tensors("generator.safetensors");
    let windows = weights.remove("windows").unwrap();
    let (steps, rows, items, levels) = windows.dims4().unwrap();
    let windows: Vec<u32> = windows.flatten_all().unwrap().to_vec1().unwrap();
    let windows: Vec<&[u32]> = windows.chunks(levels).collect();
    let options = GeneratorOptions {
        width: 16,
        layers: 2,
        heads: 2,
        inner: 24,
        dropout: 0.0,
        history: items - 1,
        ..SMALL
    };
    let model = Generator::from_tensors(options, weights).unwrap();
    let adamw = AdamWOptions { decay_vectors: false, ..AdamWOptions::default() };
    let mut optimiser = AdamW::new(model.parameters(), adamw);
    let mut losses = Vec::new();
    for step in 0..steps {
        let row = |row: usize| windows[(step * rows + row) * items..][..items].to_vec();
        let batch =
            model.batch(&(0..rows).map(row).collect::<Vec<_>>(), Counted::default()).unwrap();
        let (loss, mut gradients) =
            workers.gradients(model.parameters(), 1, |_| model.loss(&batch, None)).unwrap();
        gradients.clip_global_norm(1.0).unwrap();
        optimiser.step(&gradients, rate("generator")).unwrap();
        losses.push(loss);
    }
    assert_close(&losses, &curve("generator"), 1e-3, 0.0);

    let mut weights = tensors("rqvae.safetensors");
    let items = weights.remove("items").unwrap();
    let options = RqVaeOptions { widths: vec![16, 6], ..RqVaeOptions::default() };
    let model = RqVae::new(12, &[8, 8], options, Seed::new(1)).unwrap();
    model.parameters().load(&weights).unwrap();
    let adamw = AdamWOptions { weight_decay: 1e-4, ..AdamWOptions::default() };
    let mut optimiser = AdamW::new(model.parameters(), adamw);
    let mut losses = Vec::new();
    for step in 0..steps {
        let batch = items.get(step).unwrap();
        let (loss, gradients) =
            workers.gradients(model.parameters(), 1, |_| model.loss(&batch, None)).unwrap();
        optimiser.step(&gradients, rate("rqvae")).unwrap();
        losses.push(loss);
    }
    assert_close(&losses, &curve("rqvae"), 1e-3, 0.0);
}
