//! Groups, blocks, update rules, losses.

use candle_core::{DType, Device, Tensor, Var};
use common::lm::{Lm, LmConfig};
use common::optim::Gradients;
use common::rng::Seed;
use common::testing::assert_close;
use cure::model::losses::{e2urec_teacher, gradient_ascent, kl_to, npo, retain, uniform_kl};
use cure::model::update::{Blocks, Rule, combine, projection_factor};
use cure::model::{Group, Grouping, Network};
use proptest::prelude::*;

use Group::{Forget, Frozen, Retain, Shared};

#[test]
fn groups_by_hand() {
    let set = Grouping::by_set(&[true, true, false, false], &[true, false, true, false]);
    assert_eq!(set.groups, [Shared, Forget, Retain, Frozen]);
    let (f, r) = ([0.6, 0.3, 0.25, 0.05, 0.001], [0.1, 0.3, 0.5, 0.06, 0.001]);
    let ratio = Grouping::by_ratio(&f, &r, 0.1, 0.2).unwrap();
    assert_eq!(ratio.groups, [Forget, Shared, Retain, Shared, Frozen]);
    assert_eq!(ratio.swapped().groups, [Retain, Shared, Forget, Shared, Frozen]);
    assert!(Grouping::by_ratio(&f, &r, 0.6, 0.2).is_err());
    let of = |owners: &[Group]| Group::of_owners(owners.iter().copied());
    assert_eq!(of(&[Forget, Forget]), Forget);
    assert_eq!(of(&[Forget, Retain]), Shared);
    assert_eq!(of(&[Forget, Shared]), Shared);
    assert_eq!(of(&[Forget, Frozen]), Frozen);
}

#[test]
fn shuffled_groups_keep_their_sizes_by_kind() {
    let network = Network::new(&LmConfig::gpt2(10, 16, 3, 4, 8));
    let groups = (0..network.modules()).map(|m| Group::ALL[m % 4]).collect();
    let grouping = Grouping { groups };
    let shuffled = grouping.shuffled(&network, &mut Seed::new(1).stream("x"));
    assert_ne!(grouping, shuffled);
    for group in Group::ALL {
        assert_eq!(grouping.count(group), shuffled.count(group));
        let mlps = |g: &Grouping| {
            let mlp = |m: &usize| network.module_name(*m).starts_with('m');
            (0..network.modules()).filter(mlp).filter(|&m| g.groups[m] == group).count()
        };
        assert_eq!(mlps(&grouping), mlps(&shuffled));
    }
}

fn ones(lm: &Lm, value: f32) -> Gradients {
    let full = |(_, var): (&str, &Var)| Tensor::full(value, var.shape(), &Device::Cpu).unwrap();
    Gradients::from_tensors(lm.parameters().iter().map(full).collect(), lm.parameters()).unwrap()
}

fn grouped(config: &LmConfig, groups: &[Group]) -> (Lm, Gradients) {
    let lm = Lm::new(config, Seed::new(1)).unwrap();
    let network = Network::new(config);
    let blocks = Blocks::new(config, &network, lm.parameters()).unwrap();
    let grouping = Grouping { groups: groups.to_vec() };
    let both = [&ones(&lm, 1.0), &ones(&lm, 2.0)];
    let out = combine(&Rule::Grouped, &blocks, Some(&grouping), None, 0.5, both, lm.parameters())
        .unwrap();
    (lm, out)
}

fn values(lm: &Lm, gradients: &Gradients, name: &str) -> Vec<f32> {
    let at = lm.parameters().iter().position(|(known, _)| known == name).unwrap();
    gradients.tensors()[at].flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_weight_of_gpt2_follows_its_owner() {
    // heads: forget, retain; MLP shared: 1, 2 and their mean
    let (lm, out) = grouped(&LmConfig::gpt2(7, 4, 1, 2, 5), &[Forget, Retain, Shared]);
    let attention = "transformer.h.0.attn";
    let qkv = values(&lm, &out, &format!("{attention}.c_attn.weight"));
    assert_eq!(qkv[..12], [1., 1., 2., 2., 1., 1., 2., 2., 1., 1., 2., 2.]);
    let bias = values(&lm, &out, &format!("{attention}.c_attn.bias"));
    assert_eq!(bias, [1., 1., 2., 2., 1., 1., 2., 2., 1., 1., 2., 2.]);
    // rows of [in, out] are the heads' outputs
    let output = values(&lm, &out, &format!("{attention}.c_proj.weight"));
    assert_eq!(output, [[1.0f32; 8], [2.0; 8]].concat());
    assert!(values(&lm, &out, &format!("{attention}.c_proj.bias")).iter().all(|v| *v == 0.0));
    assert!(values(&lm, &out, "transformer.h.0.mlp.c_fc.weight").iter().all(|v| *v == 1.5));
    for outside in
        ["transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.ln_1.weight"]
    {
        assert!(values(&lm, &out, outside).iter().all(|v| *v == 0.0), "{outside}");
    }
}

#[test]
fn shared_keys_take_the_most_conservative_group() {
    let mut config = LmConfig::llama(7, 8, 1, 4, 5);
    config.num_key_value_heads = 2;
    let (lm, out) = grouped(&config, &[Forget, Retain, Forget, Forget, Frozen]);
    let attention = "model.layers.0.self_attn";
    let rows = |name: &str, width: usize| -> Vec<f32> {
        values(&lm, &out, &format!("{attention}.{name}.weight"))
            .chunks(width)
            .map(|r| r[0])
            .collect()
    };
    assert_eq!(rows("q_proj", 8), [1., 1., 2., 2., 1., 1., 1., 1.]);
    // heads 0 and 1 disagree: shared; heads 2 and 3 agree
    assert_eq!(rows("k_proj", 8), [1.5, 1.5, 1., 1.]);
    let output = values(&lm, &out, &format!("{attention}.o_proj.weight"));
    assert_eq!(output[..8], [1., 1., 2., 2., 1., 1., 1., 1.]);
    assert!(values(&lm, &out, "model.layers.0.mlp.up_proj.weight").iter().all(|v| *v == 0.0));
}

#[test]
fn adapters_divide_by_head_too() {
    let config = LmConfig::gpt2(7, 4, 1, 2, 5);
    let mut lm = Lm::new(&config, Seed::new(1)).unwrap();
    let options = cure::config::Lora { rank: 2, alpha: 4.0 }.options();
    let adapters = lm.attach_lora(&options, Seed::new(2)).unwrap();
    let blocks = Blocks::new(&config, &Network::new(&config), &adapters).unwrap();
    let mut owners: Vec<&[usize]> = blocks.blocks.iter().map(|b| b.owners.as_slice()).collect();
    owners.sort_unstable();
    // each head, both heads (shared halves), the MLP
    assert_eq!(owners, [&[0][..], &[0, 1], &[1], &[2]]);
}

proptest! {
    #[test]
    fn projection_removes_the_conflict(
        f in proptest::collection::vec(-3f64..3.0, 6),
        r in proptest::collection::vec(-3f64..3.0, 6),
    ) {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let factor = projection_factor(dot(&f, &r), dot(&r, &r));
        let projected: Vec<f64> = f.iter().zip(&r).map(|(f, r)| f - factor * r).collect();
        prop_assert!(dot(&projected, &r) >= -1e-6);
        if dot(&f, &r) >= 0.0 {
            prop_assert_eq!(projected, f);
        }
    }
}

#[test]
fn pcgrad_projects_both_sides() {
    let config = LmConfig::gpt2(7, 4, 1, 2, 5);
    let lm = Lm::new(&config, Seed::new(1)).unwrap();
    let blocks = Blocks::new(&config, &Network::new(&config), lm.parameters()).unwrap();
    let both = [&ones(&lm, 1.0), &ones(&lm, -2.0)];
    let out = combine(&Rule::PcGrad, &blocks, None, None, 0.5, both, lm.parameters()).unwrap();
    // opposite gradients cancel wholly
    assert!(values(&lm, &out, "transformer.wte.weight").iter().all(|v| v.abs() < 1e-6));
}

/// Block-wise against joint steps on ½ x² + ½ (x + y)² with step 1: the joint step overshoots. An
/// illustration of the paper's claim, not a proof.
#[test]
fn blockwise_steps_can_reach_a_lower_loss() {
    let loss = |x: f64, y: f64| 0.5 * x * x + 0.5 * (x + y) * (x + y);
    let gradient = |x: f64, y: f64| [2.0 * x + y, x + y];
    let (mut x, mut y, lr) = (1.0, 1.0, 0.8);
    let [gx, gy] = gradient(x, y);
    let joint = loss(x - lr * gx, y - lr * gy);
    x -= lr * gradient(x, y)[0];
    y -= lr * gradient(x, y)[1];
    assert!(loss(x, y) < joint, "{} {joint}", loss(x, y));
}

fn logits(values: &[[f32; 2]]) -> Tensor {
    Tensor::from_vec(values.concat(), (values.len(), 2), &Device::Cpu).unwrap()
}

fn scalar(t: &Tensor) -> f64 {
    f64::from(t.to_scalar::<f32>().unwrap())
}

#[test]
fn losses_by_hand() {
    let labels = Tensor::new(&[1u32, 0], &Device::Cpu).unwrap();
    let (now, before) = (logits(&[[0.0, 2.0], [1.0, 0.0]]), logits(&[[0.0, 1.0], [0.0, 0.0]]));
    let log_p = |l: [f64; 2], right: usize| l[right] - (l[0].exp() + l[1].exp()).ln();
    let now_p = [log_p([0.0, 2.0], 1), log_p([1.0, 0.0], 0)];
    let old_p = [log_p([0.0, 1.0], 1), log_p([0.0, 0.0], 0)];
    let mean = |a: f64, b: f64| (a + b) / 2.0;
    let found = scalar(&gradient_ascent(&now, &labels).unwrap());
    assert_close(&[found], &[mean(now_p[0], now_p[1])], 1e-5, 0.0);
    let beta = 0.1;
    let one = |at: usize| 2.0 / beta * (1.0 + (beta * (now_p[at] - old_p[at])).exp()).ln();
    let found = scalar(&npo(&now, &before, &labels, beta).unwrap());
    assert_close(&[found], &[mean(one(0), one(1))], 1e-3, 0.0);
    let kl = |p: f64, q: f64| p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / (1.0 - q)).ln();
    let yes = |t: [f64; 2]| log_p(t, 1).exp();
    let expected = mean(kl(yes([0., 1.]), yes([0., 2.])), kl(0.5, yes([1., 0.])));
    assert_close(&[scalar(&kl_to(&before, &now).unwrap())], &[expected], 1e-5, 0.0);
    let expected = mean(kl(0.5, yes([0., 2.])), kl(0.5, yes([1., 0.])));
    assert_close(&[scalar(&uniform_kl(&now).unwrap())], &[expected], 1e-5, 0.0);
    let teacher = e2urec_teacher(&before, &now, 2.0).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(teacher, [[0.0, -1.0], [-2.0, 0.0]]);
    let with_kl = scalar(&retain(&now, &before, &labels, 1.0).unwrap());
    let without = scalar(&retain(&now, &before, &labels, 0.0).unwrap());
    assert!((with_kl - without - scalar(&kl_to(&before, &now).unwrap())).abs() < 1e-5);
}

#[test]
fn losses_reach_the_logits_and_leave_targets_alone() {
    let start = logits(&[[0.3, -0.2], [0.1, 0.4]]);
    let labels = Tensor::new(&[1u32, 0], &Device::Cpu).unwrap();
    let target = Var::from_tensor(&logits(&[[0.0, 1.0], [0.5, 0.0]])).unwrap();
    for (name, loss) in [
        ("ga", gradient_ascent as fn(&Tensor, &Tensor) -> common::Result<Tensor>),
        ("uniform", |x, _| uniform_kl(x)),
    ] {
        let x = Var::from_tensor(&start).unwrap();
        let store = loss(&x, &labels).unwrap().backward().unwrap();
        let norm = store.get(&x).unwrap().sqr().unwrap().sum_all().unwrap();
        assert!(norm.to_dtype(DType::F32).unwrap().to_scalar::<f32>().unwrap() > 0.0, "{name}");
    }
    let x = Var::from_tensor(&start).unwrap();
    let both = (kl_to(&target, &x).unwrap() + npo(&x, &target, &labels, 0.1).unwrap()).unwrap();
    let store = both.backward().unwrap();
    assert!(store.get(&x).is_some());
    assert!(store.get(&target).is_none(), "a fixed target must get no gradient");
}
