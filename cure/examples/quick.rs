//! A small recommender forgets one user: circuits, groups, update.

#![allow(clippy::print_stdout)]

use common::lm::Lm;
use common::optim::Workers;
use common::rng::Seed;
use cure::config::Config;
use cure::data::{Request, Synthetic, synthetic};
use cure::model::update::Rule;
use cure::stages::{Case, Setting, forget_windows, prepare, stop_target};
use cure::train::unlearn::{Plan, Task, unlearn};

fn main() -> common::Result<()> {
    let (config, seed, workers) = (Config::smoke(), Seed::new(1), Workers::new(2)?);
    let sizes = Synthetic { users: 80, items: 120, ..Synthetic::default() };
    let setting = Setting::new(&config.data, synthetic(sizes, seed).0, seed)?;
    let windows = setting.prompts().of_mask(&setting.mask);
    let shape = setting.lm_config(&config.model, &config.data);
    let (lm, _) =
        cure::train::fit(Lm::new(&shape, seed)?, &windows, &config.fit, seed, &workers, None)?;

    let case = Case::new(&setting, &Request::UserShare { share: 0.1 }, seed)?;
    let (circuit, corruption) = (&config.circuit, config.circuit.corruption);
    let prepared = prepare(&lm, &setting, &case, circuit, corruption, seed, &workers)?;
    let grouping = prepared.groups(&config.groups)?;
    for (module, group) in grouping.groups.iter().enumerate() {
        println!("{}: {}", prepared.network.module_name(module), group.name());
    }
    let loss = config.unlearn.loss;
    let forget = forget_windows(&setting, &case, circuit, corruption, loss, seed)?;
    let stop_at = stop_target(&lm, &setting, &forget, &case, seed, &workers)?;
    let task = Task { original: &lm, forget: &forget, retain: &case.retain, stop_at };
    let plan = Plan { options: config.unlearn, rule: Rule::Grouped, grouping: Some(grouping) };
    let done = unlearn(&task, &plan, None, seed, &workers, None)?;
    for look in done.progress.looks {
        println!("step {}: log loss {:.4} on what is to be forgotten", look.step, look.forget);
    }
    Ok(())
}
