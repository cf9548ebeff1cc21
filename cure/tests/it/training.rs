//! Training and unlearning on small synthetic data.

use std::collections::BTreeMap;

use candle_core::Tensor;
use common::checkpoint::Checkpoints;
use common::lm::Lm;
use common::optim::Workers;
use common::rng::Seed;
use common::testing::gradients::assert_all_grads;
use cure::config::{CircuitConfig, FitConfig, GroupsConfig, Lora, ModelConfig, UnlearnConfig};
use cure::data::Request;
use cure::eval::Part;
use cure::model::losses::ForgetLoss;
use cure::model::recommender::Batch;
use cure::model::update::Rule;
use cure::model::{Group, Grouping, Network, Recommender};
use cure::pairs::Corruption;
use cure::stages::{Case, Setting, forget_windows, prepare, stop_target};
use cure::train::unlearn::{ForgetWindow, Plan, Task, tune, unlearn};
use cure::train::{fit, lm_config};

use crate::data::setting;

fn small() -> FitConfig {
    FitConfig {
        epochs: 6,
        batch: 16,
        lr: 5e-3,
        weight_decay: 0.01,
        unknown: 0.0,
        warm: 0.2,
        lora: None,
    }
}

fn fitted(setting: &Setting, threads: usize) -> Lm {
    let model = ModelConfig { layers: 2, heads: 2, width: 16 };
    let data = cure::config::DataConfig { history: 4, ..Default::default() };
    let config = lm_config(&model, &data, &setting.vocabulary);
    let windows = setting.prompts().of_mask(&setting.mask);
    let workers = Workers::new(threads).unwrap();
    let lm = Lm::new(&config, Seed::new(1)).unwrap();
    fit(lm, &windows, &small(), Seed::new(1), &workers, None).unwrap().0
}

fn bytes(lm: &Lm) -> BTreeMap<String, Vec<u32>> {
    let bits = |t: Tensor| -> Vec<u32> {
        t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
    };
    lm.parameters().tensors().into_iter().map(|(name, t)| (name, bits(t))).collect()
}

fn circuit_config() -> CircuitConfig {
    CircuitConfig { pairs: 12, steps: 2, ..CircuitConfig::default() }
}

fn forget_of(setting: &Setting, case: &Case, loss: ForgetLoss) -> Vec<ForgetWindow> {
    let config = circuit_config();
    forget_windows(setting, case, &config, Corruption::PprEvidence, loss, Seed::new(1)).unwrap()
}

fn options(loss: ForgetLoss, steps: usize) -> UnlearnConfig {
    UnlearnConfig { loss, steps, batch: 8, check_every: 2, lr: 1e-3, ..UnlearnConfig::default() }
}

#[test]
fn every_parameter_of_the_recommender_gets_a_gradient() {
    let setting = setting();
    let lm = fitted(&setting, 1);
    let windows = setting.prompts().of_mask(&setting.mask);
    let batch = Batch::new(&windows[..20]).unwrap();
    let loss = Recommender { lm: lm.clone() }.loss(&batch).unwrap();
    assert_all_grads(&loss, lm.parameters());
}

#[test]
fn the_recommender_learns_repeats_itself_and_saves_a_model_that_evaluates_the_same() {
    let setting = setting();
    let lm = fitted(&setting, 1);
    assert_eq!(bytes(&lm), bytes(&fitted(&setting, 2)), "threads must not matter");
    let users = setting.split.train_users();
    let records = setting.test_records(&users, 1_000);
    let prompts = setting.prompts();
    let test = Part::new(prompts.of_windows(&records));
    let workers = Workers::new(1).unwrap();
    let quality = test.quality(&lm, &workers).unwrap();
    assert!(quality.auc > 0.8, "{quality:?}");
    let untrained = Lm::new(lm.config(), Seed::new(5)).unwrap();
    assert!(quality.log_loss < test.quality(&untrained, &workers).unwrap().log_loss);
}

#[test]
fn unlearning_moves_only_what_its_group_allows() {
    let setting = setting();
    let lm = fitted(&setting, 1);
    let before = bytes(&lm);
    let case = Case::new(&setting, &Request::UserShare { share: 0.2 }, Seed::new(1)).unwrap();
    let windows = forget_of(&setting, &case, ForgetLoss::CfKl);
    let task = Task { original: &lm, forget: &windows, retain: &case.retain, stop_at: None };
    let workers = Workers::new(1).unwrap();
    let network = Network::new(lm.config());
    let mut groups = vec![Group::Frozen; network.modules()];
    groups[2] = Group::Shared; // the first MLP
    let plan = |groups: &[Group]| Plan {
        options: options(ForgetLoss::CfKl, 3),
        rule: Rule::Grouped,
        grouping: Some(Grouping { groups: groups.to_vec() }),
    };
    let done = unlearn(&task, &plan(&groups), None, Seed::new(1), &workers, None).unwrap();
    assert_eq!(bytes(&lm), before, "the original must not move");
    for (name, bits) in bytes(&done.lm) {
        let moved = bits != before[&name];
        assert_eq!(moved, name.starts_with("transformer.h.0.mlp."), "{name}");
    }
    let still = plan(&vec![Group::Frozen; network.modules()]);
    let done = unlearn(&task, &still, None, Seed::new(1), &workers, None).unwrap();
    assert_eq!(bytes(&done.lm), before);
    assert_eq!(done.progress.steps, 3);
    // nothing to forget
    let empty = Task { forget: &[], ..task };
    assert_eq!(
        unlearn(&empty, &still, None, Seed::new(1), &workers, None).unwrap_err().exit_code(),
        3
    );
}

#[test]
fn a_warm_start_orders_items_by_their_likes() {
    let setting = setting();
    let data = cure::config::DataConfig { history: 4, ..Default::default() };
    let model = ModelConfig { layers: 2, heads: 2, width: 16 };
    let cold = Lm::new(&lm_config(&model, &data, &setting.vocabulary), Seed::new(1)).unwrap();
    let windows = setting.prompts().of_mask(&setting.mask);
    let warm = cure::train::warm::start(&cold, &windows, 0.2).unwrap();
    let part = Part::new(windows.clone());
    let workers = Workers::new(1).unwrap();
    let auc = |lm: &Lm| part.quality(lm, &workers).unwrap().auc;
    assert!(auc(&warm) > auc(&cold) + 0.02, "{} {}", auc(&warm), auc(&cold));
    let same = cure::train::warm::start(&cold, &windows, 0.0).unwrap();
    assert_eq!(bytes(&same), bytes(&cold));
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bytes() {
    let setting = setting();
    let lm = fitted(&setting, 1);
    let case = Case::new(&setting, &Request::UserShare { share: 0.2 }, Seed::new(1)).unwrap();
    let windows = forget_of(&setting, &case, ForgetLoss::CfKl);
    let task = Task { original: &lm, forget: &windows, retain: &case.retain, stop_at: None };
    let workers = Workers::new(1).unwrap();
    for lora in [None, Some(Lora { rank: 2, alpha: 4.0 })] {
        let plan = |steps| Plan {
            options: UnlearnConfig { lora: lora.clone(), ..options(ForgetLoss::CfKl, steps) },
            rule: Rule::Grouped,
            grouping: Some(Grouping::all(Network::new(lm.config()).modules(), Group::Shared)),
        };
        let whole = unlearn(&task, &plan(6), None, Seed::new(1), &workers, None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(folder.path()).unwrap();
        // a run that ends after 4 steps stands for one that was stopped there
        unlearn(&task, &plan(4), None, Seed::new(1), &workers, Some(&checkpoints)).unwrap();
        let resumed =
            unlearn(&task, &plan(6), None, Seed::new(1), &workers, Some(&checkpoints)).unwrap();
        assert_eq!(bytes(&whole.lm), bytes(&resumed.lm));
        assert_eq!(whole.progress.steps, resumed.progress.steps);
        assert_ne!(bytes(&whole.lm), bytes(&lm));
    }
}

#[test]
fn training_resumes_to_the_same_bytes() {
    let setting = setting();
    let model = ModelConfig { layers: 1, heads: 2, width: 16 };
    let data = cure::config::DataConfig { history: 4, ..Default::default() };
    let config = lm_config(&model, &data, &setting.vocabulary);
    let windows = setting.prompts().of_mask(&setting.mask);
    let workers = Workers::new(1).unwrap();
    let options = FitConfig { epochs: 2, ..small() };
    let run = |checkpoints: Option<&Checkpoints>| {
        let lm = Lm::new(&config, Seed::new(1)).unwrap();
        fit(lm, &windows, &options, Seed::new(1), &workers, checkpoints).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path()).unwrap();
    let (whole, history) = run(Some(&checkpoints));
    // the last epoch's checkpoint is lost: the run goes on from the one before
    let last = checkpoints.steps().unwrap().pop().unwrap();
    std::fs::remove_dir_all(folder.path().join(format!("step-{last:010}"))).unwrap();
    let (resumed, again) = run(Some(&checkpoints));
    assert_eq!(bytes(&whole), bytes(&resumed));
    assert_eq!(history.loss, again.loss);
}

#[test]
fn every_loss_and_rule_runs_and_raises_the_forget_loss_where_it_should() {
    let setting = setting();
    let lm = fitted(&setting, 1);
    let case = Case::new(&setting, &Request::UserShare { share: 0.2 }, Seed::new(1)).unwrap();
    let workers = Workers::new(2).unwrap();
    let modules = Network::new(lm.config()).modules();
    for (loss, rule) in [
        (ForgetLoss::Ga, Rule::ForgetOnly),
        (ForgetLoss::Ga, Rule::PcGrad),
        (ForgetLoss::Npo, Rule::Weighted),
        (ForgetLoss::UniformKl, Rule::Weighted),
        (ForgetLoss::E2urec, Rule::Weighted),
        (ForgetLoss::CfKl, Rule::Grouped),
    ] {
        let windows = forget_of(&setting, &case, loss);
        let task = Task { original: &lm, forget: &windows, retain: &case.retain, stop_at: None };
        let grouping = (rule == Rule::Grouped).then(|| Grouping::all(modules, Group::Shared));
        let plan = Plan { options: options(loss, 12), rule: rule.clone(), grouping };
        let done = unlearn(&task, &plan, None, Seed::new(1), &workers, None).unwrap();
        let looks = &done.progress.looks;
        assert!(looks.iter().all(|look| look.forget.is_finite()), "{loss:?}");
        if rule == Rule::ForgetOnly || loss == ForgetLoss::UniformKl {
            assert!(looks.last().unwrap().forget > looks[0].forget, "{loss:?} {rule:?}");
        }
        // the counterfactual loss is bounded: it must not run away
        if loss == ForgetLoss::CfKl {
            assert!(looks.last().unwrap().forget < 3.0);
        }
    }
}

#[test]
fn a_run_stops_at_its_mark() {
    let setting = setting();
    let lm = fitted(&setting, 1);
    let case = Case::new(&setting, &Request::UserShare { share: 0.2 }, Seed::new(1)).unwrap();
    let windows = forget_of(&setting, &case, ForgetLoss::Ga);
    let workers = Workers::new(1).unwrap();
    let mark =
        stop_target(&lm, &setting, &windows, &case, Seed::new(1), &workers).unwrap().unwrap();
    assert!(mark.is_finite());
    let task = Task {
        original: &lm,
        forget: &windows,
        retain: &case.retain,
        stop_at: Some(f64::NEG_INFINITY),
    };
    let plan =
        Plan { options: options(ForgetLoss::Ga, 10), rule: Rule::ForgetOnly, grouping: None };
    let done = unlearn(&task, &plan, None, Seed::new(1), &workers, None).unwrap();
    assert!(done.progress.stopped);
    assert_eq!(done.progress.steps, 2);
}

#[test]
fn stages_give_circuits_and_groups_that_fit_together() {
    let setting = setting();
    let lm = fitted(&setting, 1);
    let case = Case::new(&setting, &Request::UserShare { share: 0.2 }, Seed::new(1)).unwrap();
    let stage = |threads: usize| {
        let workers = Workers::new(threads).unwrap();
        let corruption = Corruption::PprEvidence;
        prepare(&lm, &setting, &case, &circuit_config(), corruption, Seed::new(1), &workers)
            .unwrap()
    };
    let prepared = stage(1);
    for side in [&prepared.forget, &prepared.retain] {
        assert!(side.circuit.faithfulness >= 0.85);
        assert!((side.structural.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        assert!((side.gradient.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        assert!((0.0..=1.0).contains(&side.rejected));
    }
    let grouping = prepared.groups(&GroupsConfig::default()).unwrap();
    assert_eq!(grouping.groups.len(), prepared.network.modules());
    assert_eq!(grouping.count(Group::Frozen), 1, "a fifth of six modules");
    assert_eq!(stage(2).forget.circuit, prepared.forget.circuit, "threads must not matter");
}

#[test]
fn tuning_lowers_the_loss_it_is_tuned_on() {
    let setting = setting();
    let lm = fitted(&setting, 1);
    let windows = setting.prompts().of_mask(&setting.mask)[..8].to_vec();
    let workers = Workers::new(1).unwrap();
    let part = Part::new(windows.clone());
    let tuned = tune(&lm, &windows, 20, 8, 1e-3, Seed::new(1), &workers).unwrap();
    let loss = |lm: &Lm| part.quality(lm, &workers).unwrap().log_loss;
    assert!(loss(&tuned) < loss(&lm));
}

#[test]
fn a_language_models_layers_take_the_vocabulary_and_learn_by_adapters() {
    use cure::model::tokens::{with_vocabulary, without_tokens};
    let setting = setting();
    for config in [
        common::lm::LmConfig {
            num_key_value_heads: 1,
            ..common::lm::LmConfig::llama(50, 16, 2, 2, 64)
        },
        common::lm::LmConfig::gpt2(50, 16, 2, 2, 64),
    ] {
        let body = Lm::new(&config, Seed::new(1)).unwrap();
        let pieces: Vec<Vec<u32>> =
            (0..setting.vocabulary.len() as u32).map(|t| vec![t % 50, (t / 50) % 50]).collect();
        let lm = with_vocabulary(&body, &pieces).unwrap();
        let rows = lm.output_weight().to_vec2::<f32>().unwrap();
        let old = body.output_weight().to_vec2::<f32>().unwrap();
        assert!((rows[60][3] - (old[10][3] + old[1][3]) / 2.0).abs() < 1e-6);
        assert!(with_vocabulary(&body, &[vec![50]]).is_err());
        let windows = setting.prompts().of_mask(&setting.mask);
        let lora = Some(Lora { rank: 4, alpha: 8.0 });
        let options = FitConfig { lora, epochs: 2, lr: 1e-2, ..small() };
        let workers = Workers::new(1).unwrap();
        let (tuned, history) =
            fit(lm.clone(), &windows, &options, Seed::new(1), &workers, None).unwrap();
        assert!(history.loss[1] < history.loss[0], "{history:?}");
        // adapters move the layers, not the tables
        assert_eq!(tuned.output_weight().to_vec2::<f32>().unwrap(), rows);
        // circuits and unlearning go on from there
        let case = Case::new(&setting, &Request::UserShare { share: 0.2 }, Seed::new(1)).unwrap();
        let corruption = Corruption::PprEvidence;
        let (circuit, seed) = (circuit_config(), Seed::new(1));
        let prepared =
            prepare(&tuned, &setting, &case, &circuit, corruption, seed, &workers).unwrap();
        assert_eq!(prepared.network.modules(), 6);
        let erased = without_tokens(&tuned, &[7]).unwrap();
        let after = erased.output_weight().to_vec2::<f32>().unwrap();
        assert!(after[7].iter().all(|&value| value == 0.0));
        assert_eq!(after[8], rows[8]);
    }
}
