//! Reading and replacing activations: edge attribution and circuits against the goldens.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor, Var};
use common::Result;
use common::lm::{Hooks, Lm, Pass, Reader, Writer};
use common::nn::{LoraOptions, Port};
use common::rng::Seed;
use common::testing::{assert_close, golden, golden_json};
use serde_json::Value;

fn name(writer: Writer) -> String {
    match writer {
        Writer::Input => "input".into(),
        Writer::Head { layer, head } => format!("a{layer}.h{head}"),
        Writer::Mlp { layer } => format!("m{layer}"),
    }
}

fn edge(writer: Writer, reader: Reader) -> String {
    let reader = match reader {
        Reader::Head { layer, head, port } => {
            let port = match port {
                Port::Query => "q",
                Port::Key => "k",
                Port::Value => "v",
            };
            format!("a{layer}.h{head}<{port}>")
        }
        Reader::Mlp { layer } => format!("m{layer}"),
        Reader::Logits => "logits".into(),
    };
    format!("{}->{reader}", name(writer))
}

/// Keeps what is written, gives every reader a leaf whose gradient is that of its input, and lets
/// the edges in `replaced` carry the other run's values.
#[derive(Default)]
struct Probe {
    input: Option<Tensor>,
    written: BTreeMap<Writer, Tensor>,
    leaves: BTreeMap<Reader, Var>,
    other: BTreeMap<Writer, Tensor>,
    replaced: BTreeSet<(Reader, Writer)>,
}

impl Hooks for Probe {
    fn write(&mut self, writer: Writer, output: Tensor) -> Result<Tensor> {
        let output = match (&self.input, writer) {
            (Some(input), Writer::Input) => input.clone(),
            _ => output,
        };
        self.written.insert(writer, output.detach());
        Ok(output)
    }

    fn read(&mut self, reader: Reader, input: Tensor) -> Result<Tensor> {
        let leaf = Var::zeros(input.shape(), DType::F32, &Device::Cpu)?;
        let mut seen = (input + leaf.as_tensor())?;
        self.leaves.insert(reader, leaf);
        for (of, writer) in &self.replaced {
            if *of == reader {
                seen = (seen + (&self.other[writer] - &self.written[writer])?)?;
            }
        }
        Ok(seen)
    }
}

struct Pair {
    clean: Tensor,
    corrupt: Tensor,
    tokens: [usize; 2],
}

impl Pair {
    fn new(value: &Value) -> Self {
        let ids = |key: &str| {
            let ids: Vec<u32> = serde_json::from_value(value[key].clone()).unwrap();
            Tensor::new(&ids[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap()
        };
        let token = |key: &str| value[key].as_u64().unwrap() as usize;
        Self {
            clean: ids("clean"),
            corrupt: ids("corrupt"),
            tokens: [token("positive_token"), token("negative_token")],
        }
    }

    /// Difference of the two logits at the last position.
    fn metric(&self, logits: &Tensor) -> Tensor {
        let last = logits.get(0).unwrap().get(logits.dim(1).unwrap() - 1).unwrap();
        let [positive, negative] = self.tokens.map(|token| last.get(token).unwrap());
        (positive - negative).unwrap()
    }
}

fn run(model: &Lm, ids: &Tensor, mut probe: Probe) -> (Tensor, Probe) {
    let logits = model.logits_hooked(ids, &mut probe).unwrap();
    (logits, probe)
}

fn scalar(t: &Tensor) -> f64 {
    f64::from(t.to_scalar::<f32>().unwrap())
}

/// Gradient of the metric at every reader's input, averaged over `inputs` of the embedding.
fn reader_gradients(
    model: &Lm,
    pair: &Pair,
    inputs: &[Option<Tensor>],
) -> BTreeMap<Reader, Tensor> {
    let mut sums: BTreeMap<Reader, Tensor> = BTreeMap::new();
    for input in inputs {
        let probe = Probe { input: input.clone(), ..Probe::default() };
        let (logits, probe) = run(model, &pair.clean, probe);
        let grads = pair.metric(&logits).backward().unwrap();
        for (reader, leaf) in probe.leaves {
            let gradient = (grads.get(&leaf).unwrap() / inputs.len() as f64).unwrap();
            let sum = match sums.remove(&reader) {
                Some(sum) => (sum + gradient).unwrap(),
                None => gradient,
            };
            sums.insert(reader, sum);
        }
    }
    sums
}

fn golden_attribution(name: &str) -> (Lm, Value) {
    let folder = golden(env!("CARGO_MANIFEST_DIR"), "lm");
    let model = Lm::load(&folder.join(name)).unwrap();
    (model, golden_json(&folder.join("attribution").join(format!("{name}.json"))))
}

#[test]
fn edge_attribution_equals_the_golden() {
    for name in ["gpt2_tiny", "llama_tiny"] {
        let (model, expected) = golden_attribution(name);
        let (writers, readers) = (model.config().writers(), model.config().readers());
        let scores = &expected["scores_per_pair"];
        let mut edges = 0;
        for (at, pair) in expected["pairs"].as_array().unwrap().iter().enumerate() {
            let pair = Pair::new(pair);
            let here = run(&model, &pair.clean, Probe::default()).1.written;
            let there = run(&model, &pair.corrupt, Probe::default()).1.written;
            let path = (&here[&Writer::Input] - &there[&Writer::Input]).unwrap();
            let steps: Vec<Option<Tensor>> = (0..5)
                .map(|k| {
                    Some(
                        (&there[&Writer::Input] + (&path * (f64::from(k) / 5.0)).unwrap()).unwrap(),
                    )
                })
                .collect();
            for (key, inputs) in [("eap", vec![None]), ("eap_ig_inputs_5", steps)] {
                let gradients = reader_gradients(&model, &pair, &inputs);
                let (mut found, mut golden) = (Vec::new(), Vec::new());
                for &reader in &readers {
                    for &writer in writers.iter().filter(|writer| writer.precedes(reader)) {
                        let change = (&there[&writer] - &here[&writer]).unwrap();
                        found.push(scalar(
                            &(change * &gradients[&reader]).unwrap().sum_all().unwrap(),
                        ));
                        golden.push(scores[key][edge(writer, reader)][at].as_f64().unwrap());
                    }
                }
                edges = found.len();
                let scale = golden.iter().fold(0f64, |a, b| a.max(b.abs()));
                assert_close(&found, &golden, 1e-5 * scale.max(1.0), 0.0);
            }
        }
        assert_eq!(edges, expected["edges"].as_array().unwrap().len());
    }
}

#[test]
fn patched_circuits_equal_the_golden() {
    for name in ["gpt2_tiny", "llama_tiny"] {
        let (model, expected) = golden_attribution(name);
        let (writers, readers) = (model.config().writers(), model.config().readers());
        for (at, value) in expected["pairs"].as_array().unwrap().iter().enumerate() {
            let pair = Pair::new(value);
            let there = run(&model, &pair.corrupt, Probe::default()).1.written;
            let patched = |kept: &BTreeSet<String>| {
                let mut probe = Probe { other: there.clone(), ..Probe::default() };
                for &reader in &readers {
                    for &writer in writers.iter().filter(|writer| writer.precedes(reader)) {
                        if !kept.contains(&edge(writer, reader)) {
                            probe.replaced.insert((reader, writer));
                        }
                    }
                }
                scalar(&pair.metric(&run(&model, &pair.clean, probe).0))
            };
            for circuit in expected["circuits"].as_array().unwrap() {
                let kept: Vec<String> = serde_json::from_value(circuit["edges"].clone()).unwrap();
                let found = patched(&kept.into_iter().collect());
                assert_close(&[found], &[circuit["m"][at].as_f64().unwrap()], 5e-5, 0.0);
            }
            // with every edge replaced the run is the corrupted one
            assert_close(
                &[patched(&BTreeSet::new())],
                &[value["m_corrupt"].as_f64().unwrap()],
                5e-5,
                0.0,
            );
        }
    }
}

/// A model with adapters that do something, and ids for it.
fn with_adapters(name: &str) -> (Lm, common::nn::Parameters, Tensor) {
    let mut model = Lm::load(&golden(env!("CARGO_MANIFEST_DIR"), "lm").join(name)).unwrap();
    let targets = ["c_attn", "q_proj", "o_proj"].map(str::to_owned).to_vec();
    let options = LoraOptions { targets, ..LoraOptions::default() };
    let adapters = model.attach_lora(&options, Seed::new(1)).unwrap();
    for (name, var) in adapters.iter().filter(|(name, _)| name.contains("lora_B")) {
        var.set(&Seed::new(2).stream(name).normal_tensor(var.shape(), 0.1).unwrap()).unwrap();
    }
    let ids = Tensor::new(&[[5u32, 9, 2, 40, 17], [1, 2, 3, 4, 5]], &Device::Cpu).unwrap();
    (model, adapters, ids)
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1::<f32>().unwrap()
}

/// Changes nothing; says whether it wants to see what is read.
struct Nothing {
    reads: bool,
}

impl Hooks for Nothing {
    fn reads_heads(&self) -> bool {
        self.reads
    }
}

#[test]
fn hooks_that_do_nothing_change_nothing() {
    for name in ["gpt2_tiny", "llama_tiny", "qwen2_tiny_tied"] {
        let (model, adapters, ids) = with_adapters(name);
        let plain = values(&model.logits(&ids, Pass::default()).unwrap());
        for reads in [true, false] {
            let hooked = model.logits_hooked(&ids, &mut Nothing { reads }).unwrap();
            assert_close(&values(&hooked), &plain, 1e-4, 0.0);
            // the adapters are trained through the hooked pass, too
            let grads = hooked.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            assert!(adapters.iter().all(|(_, var)| grads.get(var).is_some()));
        }
    }
}

/// Wanted rows are those of the whole pass, and so are the gradients that come from them.
#[test]
fn some_rows_are_those_of_the_whole_pass() {
    for name in ["gpt2_tiny", "llama_tiny", "qwen2_tiny_tied"] {
        let (model, adapters, ids) = with_adapters(name);
        let rows = Tensor::new(&[7u32, 0, 4, 7], &Device::Cpu).unwrap();
        let whole = model.hidden(&ids, Pass::default()).unwrap().flatten_to(1).unwrap();
        let expected = whole.index_select(&rows, 0).unwrap();
        let gradients = |hidden: &Tensor| -> Vec<Vec<f32>> {
            let grads = hidden.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let all = model.parameters().iter().chain(adapters.iter());
            all.filter_map(|(_, var)| Some(values(grads.get(var)?))).collect()
        };
        let by_whole = gradients(&expected);
        let pass = Pass { rows: Some(&rows), ..Pass::default() };
        let plain = model.hidden(&ids, pass).unwrap();
        let hooked = |reads| model.rows_hooked(&ids, Some(&rows), &mut Nothing { reads }).unwrap();
        for found in [plain, hooked(true), hooked(false)] {
            assert_close(&values(&found), &values(&expected), 1e-5, 1e-5);
            let found = gradients(&found);
            assert_eq!(found.len(), by_whole.len());
            for (found, expected) in found.iter().zip(&by_whole) {
                let scale = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
                assert_close(found, expected, f64::from(scale) * 1e-4, 0.0);
            }
        }
        let last = model.last_logits(&ids, Pass::default()).unwrap();
        let logits = model.logits(&ids, Pass::default()).unwrap();
        let expected = logits.narrow(1, 4, 1).unwrap();
        assert_close(&values(&last), &values(&expected), 1e-5, 1e-5);
    }
}
