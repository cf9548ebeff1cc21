//! Attribution, patching and circuits against the goldens and against each other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use common::lm::{Lm, LmConfig};
use common::optim::Workers;
use common::rng::Seed;
use common::testing::{assert_close, golden, golden_json};
use cure::model::attribution::{attribute, exact, gate_gradients, metrics, patched_metrics};
use cure::model::circuit::{Selection, extract, faithfulness, prune, select};
use cure::model::{Network, Pairs};
use serde_json::Value;

fn load(name: &str) -> (Lm, Network, Pairs, Value) {
    let folder: PathBuf = golden(env!("CARGO_MANIFEST_DIR"), "");
    let lm = Lm::load(&folder.join(name)).unwrap();
    let value: Value = golden_json(&folder.join(format!("{name}.json")));
    let ids =
        |pair: &Value, key: &str| serde_json::from_value::<Vec<u32>>(pair[key].clone()).unwrap();
    let token = |pair: &Value, key: &str| pair[key].as_u64().unwrap() as u32;
    let all = value["pairs"].as_array().unwrap();
    let pairs = Pairs::new(
        all.iter().map(|pair| ids(pair, "clean")).collect(),
        all.iter().map(|pair| ids(pair, "corrupt")).collect(),
        all.iter().map(|p| [token(p, "positive_token"), token(p, "negative_token")]).collect(),
    )
    .unwrap();
    let network = Network::new(lm.config());
    (lm, network, pairs, value)
}

fn names(network: &Network) -> Vec<String> {
    network.edges.iter().map(|&edge| network.edge_name(edge)).collect()
}

/// All scores of a golden within 1e-5 of the largest |score|.
fn assert_scores(network: &Network, found: &[Vec<f64>], expected: &Value) {
    let expected: BTreeMap<String, Vec<f64>> = serde_json::from_value(expected.clone()).unwrap();
    assert_eq!(network.edges.len(), expected.len());
    let scale = expected.values().flatten().fold(0f64, |a, b| a.max(b.abs()));
    for (at, name) in names(network).iter().enumerate() {
        let of_pairs: Vec<f64> = found.iter().map(|scores| scores[at]).collect();
        assert_close(&of_pairs, &expected[name], 1e-5 * scale, 0.0);
    }
}

#[test]
fn scores_equal_the_goldens() {
    let workers = Workers::new(2).unwrap();
    for name in ["gpt2_tiny", "llama_tiny"] {
        let (lm, network, pairs, value) = load(name);
        let golden = &value["scores_per_pair"];
        let eap = attribute(&lm, &network, &pairs, None, &workers).unwrap();
        assert_scores(&network, &eap.per_pair, &golden["eap"]);
        let ig = attribute(&lm, &network, &pairs, Some(5), &workers).unwrap();
        assert_scores(&network, &ig.per_pair, &golden["eap_ig_inputs_5"]);
        let patched = exact(&lm, &network, &pairs, &workers).unwrap();
        assert_scores(&network, &patched.per_pair, &golden["exact"]);
    }
}

#[test]
fn circuits_equal_the_goldens() {
    let workers = Workers::new(1).unwrap();
    for name in ["gpt2_tiny", "llama_tiny"] {
        let (lm, network, pairs, value) = load(name);
        for circuit in value["circuits"].as_array().unwrap() {
            let edges: Vec<String> = serde_json::from_value(circuit["edges"].clone()).unwrap();
            let kept: Vec<bool> = names(&network).iter().map(|name| edges.contains(name)).collect();
            let m: Vec<f64> = serde_json::from_value(circuit["m"].clone()).unwrap();
            let sets = [kept.clone()];
            let found = patched_metrics(&lm, &network, &pairs, &sets, &workers).unwrap();
            assert_close(&found[0], &m, 5e-5, 0.0);
            let faith = faithfulness(&lm, &network, &pairs, &sets, &workers).unwrap();
            let expected = circuit["faithfulness_of_means"].as_f64().unwrap();
            assert_close(&faith, &[expected], 1e-4, 0.0);
        }
    }
}

#[test]
fn edges_follow_the_formula() {
    for (layers, heads, kv) in [(2, 2, 2), (2, 6, 2), (1, 1, 1), (4, 4, 4)] {
        let mut config = LmConfig::llama(10, 8 * heads, layers, heads, 16);
        config.num_key_value_heads = kv;
        let before = |layer: usize| 1 + layer * (heads + 1);
        let expected: usize = (0..layers)
            .map(|layer| 3 * heads * before(layer) + before(layer) + heads)
            .sum::<usize>()
            + before(layers);
        assert_eq!(Network::new(&config).edges.len(), expected);
    }
    assert_eq!(Network::new(&LmConfig::gpt2(10, 16, 2, 2, 16)).edges.len(), 46);
}

#[test]
fn all_edges_patched_is_the_corrupted_run_and_none_the_clean_one() {
    let workers = Workers::new(1).unwrap();
    let (lm, network, pairs, value) = load("llama_tiny");
    let [clean, corrupt] = metrics(&lm, &network, &pairs, &workers).unwrap();
    let of = |key: &str| serde_json::from_value::<Vec<f64>>(value[key].clone()).unwrap();
    assert_close(&clean, &of("m_full"), 2e-5, 0.0);
    assert_close(&corrupt, &of("m_empty"), 2e-5, 0.0);
    let sets = [vec![true; network.edges.len()], vec![false; network.edges.len()]];
    let both = faithfulness(&lm, &network, &pairs, &sets, &workers).unwrap();
    assert_close(&both, &[1.0, 0.0], 1e-9, 0.0);
}

#[test]
fn gate_gradients_equal_finite_differences() {
    use common::lm::{Hooks, Writer};
    struct Scale(Writer, f64);
    impl Hooks for Scale {
        fn write(
            &mut self,
            writer: Writer,
            output: candle_core::Tensor,
        ) -> common::Result<candle_core::Tensor> {
            Ok(if writer == self.0 { (output * self.1)? } else { output })
        }
    }
    let workers = Workers::new(1).unwrap();
    let (lm, network, pairs, value) = load("gpt2_tiny");
    let one = pairs.first(1);
    let gates = gate_gradients(&lm, &network, &one, &workers).unwrap();
    let pair = &value["pairs"][0];
    let ids: Vec<u32> = serde_json::from_value(pair["clean"].clone()).unwrap();
    let ids = candle_core::Tensor::new(&ids[..], &candle_core::Device::Cpu).unwrap();
    let ids = ids.unsqueeze(0).unwrap();
    let token = |key: &str| pair[key].as_u64().unwrap() as usize;
    let loss = |writer: Writer, scale: f64| {
        let logits = lm.logits_hooked(&ids, &mut Scale(writer, scale)).unwrap();
        let last = logits.get(0).unwrap().get(logits.dim(1).unwrap() - 1).unwrap();
        let last = last.to_vec1::<f32>().unwrap();
        let m = f64::from(last[token("positive_token")] - last[token("negative_token")]);
        (1.0 + (-m).exp()).ln()
    };
    for (module, gate) in gates.iter().enumerate() {
        let writer = network.writers[module + 1];
        let slope = (loss(writer, 1.01) - loss(writer, 0.99)) / 0.02;
        assert!((slope.abs() - gate).abs() < 2e-3 * (1.0 + gate), "{module}: {slope} {gate}");
    }
}

#[test]
fn slices_and_threads_change_no_score() {
    let config = LmConfig::gpt2(30, 16, 2, 2, 8);
    let lm = Lm::new(&config, Seed::new(1)).unwrap();
    let network = Network::new(&config);
    let mut stream = Seed::new(2).stream("pairs");
    let mut prompt = || (0..8).map(|_| stream.below(30) as u32).collect::<Vec<u32>>();
    let (clean, corrupt): (Vec<_>, Vec<_>) = (0..37).map(|_| (prompt(), prompt())).unzip();
    let pairs = Pairs::new(clean, corrupt, vec![[3, 2]; 37]).unwrap();
    let run = |threads| {
        attribute(&lm, &network, &pairs, Some(2), &Workers::new(threads).unwrap()).unwrap()
    };
    assert_eq!(run(1), run(2));
    let few =
        attribute(&lm, &network, &pairs.first(3), Some(2), &Workers::new(1).unwrap()).unwrap();
    for (few, all) in few.per_pair.iter().zip(&run(1).per_pair) {
        assert_close(few, all, 1e-6, 0.0);
    }
}

#[test]
fn pairs_of_unequal_length_are_refused_with_exit_code_2() {
    let error = Pairs::new(vec![vec![1, 2]], vec![vec![1]], vec![[3, 2]]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("2 clean and 1 corrupted"), "{error}");
    let error = Pairs::new(vec![], vec![], vec![]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn pruning_keeps_exactly_the_edges_on_paths() {
    let network = Network::new(&LmConfig::gpt2(10, 16, 2, 2, 16));
    let names = names(&network);
    let kept = |edges: &[&str]| -> Vec<bool> {
        let mut kept: Vec<bool> = names.iter().map(|n| edges.contains(&n.as_str())).collect();
        prune(&network, &mut kept);
        kept
    };
    let list = |kept: &[bool]| -> Vec<&str> {
        names.iter().zip(kept).filter(|(_, k)| **k).map(|(n, _)| n.as_str()).collect()
    };
    // a1.h0 has no input, m0 no output: only the head's path stays
    let found = kept(&["input->a0.h0<v>", "a0.h0->logits", "input->m0", "a1.h0->logits"]);
    assert_eq!(list(&found), ["input->a0.h0<v>", "a0.h0->logits"]);
    assert!(kept(&["a0.h0->a1.h1<k>"]).iter().all(|k| !k));
}

#[test]
fn a_circuit_reaches_its_faithfulness_with_the_fewest_edges_tried() {
    let workers = Workers::new(1).unwrap();
    let (lm, network, pairs, _) = load("gpt2_tiny");
    let scores = attribute(&lm, &network, &pairs, Some(5), &workers).unwrap().mean();
    for rule in [Selection::TopN, Selection::Threshold, Selection::Greedy] {
        let circuit = extract(&lm, &network, &pairs, scores.clone(), rule, 0.85, &workers).unwrap();
        assert!(circuit.faithfulness >= 0.85, "{rule:?}: {}", circuit.faithfulness);
        let again = [circuit.kept.clone()];
        let value = faithfulness(&lm, &network, &pairs, &again, &workers).unwrap()[0];
        assert_close(&[value], &[circuit.faithfulness], 1e-9, 0.0);
        let mut pruned = circuit.kept.clone();
        prune(&network, &mut pruned);
        assert_eq!(pruned, circuit.kept);
    }
    assert!(select(&network, &scores, Selection::TopN, 0).iter().all(|kept| !kept));
    assert!(select(&network, &scores, Selection::TopN, 46).iter().all(|&kept| kept));
}
