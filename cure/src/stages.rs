//! The stages of the algorithm over one data set and one deletion request.

use std::time::Instant;

use common::lm::{Lm, LmConfig};
use common::optim::Workers;
use common::rng::Seed;
use common::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::config::{CircuitConfig, DataConfig, GroupsConfig, ModelConfig};
use crate::data::{Deletion, Interactions, Prompts, Request, Split, Window};
use crate::eval::Part;
use crate::model::groups::{self, GroupRule};
use crate::model::losses::ForgetLoss;
use crate::model::tokens::without_tokens;
use crate::model::{Circuit, Grouping, Network, Pairs, Recommender, attribution, circuit};
use crate::pairs::{self, Corruption, Corruptor, Graph};
use crate::prompt::{Prompt, Vocabulary};
use crate::train::unlearn::{ForgetWindow, mean_loss};
use crate::train::{self};

/// Fewest history items of test and tuning records.
const LEAST_HISTORY: usize = 10;

/// Data, split and vocabulary: what all models of a run share.
#[derive(Debug, Clone)]
pub struct Setting {
    /// All histories.
    pub data: Interactions,
    /// Train, tune, test, held-out users.
    pub split: Split,
    /// Title tokens.
    pub vocabulary: Vocabulary,
    /// K.
    pub history: usize,
    /// The training events.
    pub mask: Vec<Vec<bool>>,
}

impl Setting {
    /// Draws users if the config says so, splits, and makes the vocabulary of all titles. The split
    /// depends on `seed` only.
    ///
    /// # Errors
    /// [`Error::Data`] when nothing is left to train on.
    pub fn new(config: &DataConfig, data: Interactions, seed: Seed) -> Result<Self> {
        let data = match config.users {
            0 => data,
            users => data.sample_users(users, &mut seed.stream("users")),
        };
        let split = Split::new(&data, config.held_out, &mut seed.stream("split"));
        if split.train.iter().sum::<usize>() == 0 {
            return Err(Error::data(
                format!("{} users with {} events", data.users.len(), data.events()),
                "enough events to train on: some users with at least 2",
            ));
        }
        let titles = data.items.iter().map(|item| item.title.as_str());
        let mut vocabulary = Vocabulary::of_titles(titles, config.title_tokens);
        if config.item_tokens {
            vocabulary = vocabulary.with_items(data.items.iter().map(|item| item.id.as_str()));
        }
        if config.user_tokens {
            vocabulary = vocabulary.with_users(data.users.iter().map(String::as_str));
        }
        let mask = split.train_mask(&data);
        Ok(Self { data, split, vocabulary, history: config.history, mask })
    }

    /// The prompts.
    pub fn prompts(&self) -> Prompts<'_> {
        Prompts {
            data: &self.data,
            vocabulary: &self.vocabulary,
            history: self.history,
            least: LEAST_HISTORY.min(self.history),
            known: &self.mask,
        }
    }

    /// The decoder for this vocabulary.
    pub fn lm_config(&self, model: &ModelConfig, data: &DataConfig) -> LmConfig {
        train::lm_config(model, data, &self.vocabulary)
    }

    /// Windows of never-seen users over the first 80 % of their events, as training windows are.
    pub fn held_out(&self) -> Vec<Prompt> {
        let of = |user: usize| {
            let events = self.data.histories[user].len();
            let until = if self.split.held_out[user] { events * 8 / 10 } else { 0 };
            (0..events).map(|event| event < until).collect()
        };
        let mask: Vec<Vec<bool>> = (0..self.data.users.len()).map(of).collect();
        self.prompts().of_mask(&mask)
    }

    /// Windows that ask for about `most` test records of `users`, spread evenly; all when there are
    /// fewer.
    pub fn test_records(&self, users: &[usize], most: usize) -> Vec<Window> {
        let (data, split) = (&self.data, &self.split);
        let range = |user: usize| split.valid[user]..data.histories[user].len();
        let all = self.prompts().records(users, range);
        let records: usize = all.iter().map(|window| window.asked).sum();
        let step = records.div_ceil(most.max(1)).max(1);
        all.into_iter().step_by(step).collect()
    }
}

/// A deletion request with both sides of the data.
#[derive(Debug, Clone)]
pub struct Case {
    /// What was asked.
    pub request: Request,
    /// The events meant.
    pub deletion: Deletion,
    /// Training events that stay.
    pub retained: Vec<Vec<bool>>,
    /// D_f: training windows with deleted events, in a random order.
    pub forget: Vec<(Window, Prompt)>,
    /// D_r: windows over what stays.
    pub retain: Vec<Prompt>,
}

impl Case {
    /// Resolves the request.
    ///
    /// # Errors
    /// Those of [`Request::resolve`].
    pub fn new(setting: &Setting, request: &Request, seed: Seed) -> Result<Self> {
        let stream = &mut seed.stream(&format!("request/{}", request.name()));
        let deletion = request.resolve(&setting.data, &setting.split, stream)?;
        // what was forgotten before is gone already
        let deletion = deletion.within(&setting.mask);
        if deletion.events() == 0 {
            return Err(Error::data(
                format!("an empty forget set ({})", request.name()),
                "training events that were not forgotten before",
            ));
        }
        Self::of_deletion(setting, request.clone(), deletion, seed)
    }

    /// The case of given events.
    ///
    /// # Errors
    /// [`Error::Data`] when nothing is left to retain.
    pub fn of_deletion(
        setting: &Setting,
        request: Request,
        deletion: Deletion,
        seed: Seed,
    ) -> Result<Self> {
        let retained = deletion.retained(&setting.mask);
        // users who lose all their events lose their tokens: as they would be served afterwards
        let prompts = Prompts { known: &retained, ..setting.prompts() };
        let mut forget = prompts.deleted(&setting.mask, &deletion);
        seed.stream("forget-order").shuffle(&mut forget);
        let retain = prompts.of_mask(&retained);
        if retain.is_empty() {
            return Err(Error::data(
                "a forget set of all training events",
                "some events to retain",
            ));
        }
        Ok(Self { request, deletion, retained, forget, retain })
    }

    /// The prompts after the deletion: users who lost all their events are unknown.
    pub fn prompts<'a>(&'a self, setting: &'a Setting) -> Prompts<'a> {
        Prompts { known: &self.retained, ..setting.prompts() }
    }

    /// D_f as prompts.
    pub fn forget_part(&self) -> Part {
        Part::new(self.forget.iter().map(|(_, prompt)| prompt.clone()).collect())
    }

    /// The windows of D_f, each up to its last deleted event.
    fn asked(&self) -> Vec<Window> {
        let deleted = self.deletion.flags();
        let of = |(window, _): &(Window, Prompt)| {
            let last = window.events.iter().rposition(|&event| deleted[window.user][event])?;
            Some(Window { user: window.user, events: window.events[..=last].to_vec(), asked: 1 })
        };
        self.forget.iter().filter_map(of).collect()
    }

    /// Whether some deleted event has another one before it in its window: a prompt to attribute.
    pub fn attributable(&self) -> bool {
        self.asked().iter().any(|window| window.events.len() > 1)
    }

    /// Users who lose all their training events, ascending.
    pub fn unknown_users(&self, setting: &Setting) -> Vec<usize> {
        let left = |user: &usize| !self.retained[*user].iter().any(|&kept| kept);
        let known = |user: &usize| setting.mask[*user].iter().any(|&kept| kept);
        (0..self.retained.len()).filter(|user| left(user) && known(user)).collect()
    }

    /// Users who keep training events: those that are still served.
    pub fn served(&self) -> Vec<usize> {
        let kept = |user: &usize| self.retained[*user].iter().any(|&kept| kept);
        (0..self.retained.len()).filter(kept).collect()
    }
}

/// The model with the tokens of `users` erased: nothing of what it learned about them is left there.
///
/// # Errors
/// Those of the tensors.
pub fn without_users(lm: &Lm, setting: &Setting, users: &[usize]) -> Result<Lm> {
    let tokens: Vec<u32> = users.iter().filter_map(|&user| setting.vocabulary.user(user)).collect();
    without_tokens(lm, &tokens)
}

/// Circuits and contributions of one side.
#[derive(Debug, Clone)]
pub struct Side {
    /// Pairs with an effect.
    pub pairs: Pairs,
    /// Share of the pairs that had none.
    pub rejected: f64,
    /// Whether corruption lowers the right answer in the pairs, see [`pairs::Effective`].
    pub lowered: bool,
    /// The circuit.
    pub circuit: Circuit,
    /// Eq. 4.
    pub structural: Vec<f64>,
    /// Eq. 5.
    pub gradient: Vec<f64>,
}

/// Stages A to C.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The decoder's graph.
    pub network: Network,
    /// Of D_f.
    pub forget: Side,
    /// Of D_r.
    pub retain: Side,
    /// Seconds of pairs, of attribution and circuits.
    pub seconds: Seconds,
    /// Tokens that went through a forward and backward pass; a forward pass alone counts a third.
    pub tokens: f64,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Stage A.
    pub pairs: f64,
    /// Stages B and C.
    pub attribution: f64,
    /// Stage D.
    pub update: f64,
}

impl Seconds {
    /// All stages.
    pub fn total(&self) -> f64 {
        self.pairs + self.attribution + self.update
    }
}

impl Prepared {
    /// Groups by a rule with λ_s (1 = structure only, 0 = gradients only).
    ///
    /// # Errors
    /// Those of [`Grouping::by_ratio`].
    pub fn groups(&self, config: &GroupsConfig) -> Result<Grouping> {
        match config.rule {
            GroupRule::Set => Ok(Grouping::by_set(
                &self.forget.circuit.modules(&self.network),
                &self.retain.circuit.modules(&self.network),
            )),
            GroupRule::Ratio => {
                let [f, r] = self.contributions(config.lambda);
                Grouping::by_ratio(&f, &r, config.delta, config.frozen)
            }
        }
    }

    /// Eq. 6 of both sides.
    pub fn contributions(&self, lambda: f64) -> [Vec<f64>; 2] {
        [&self.forget, &self.retain]
            .map(|side| groups::contribution(&side.structural, &side.gradient, lambda))
    }
}

impl Side {
    /// What to know about the circuit when no corrupted prompt lowered the right answer.
    pub fn caution(&self, name: &str) -> Option<String> {
        (!self.lowered).then(|| {
            format!(
                "No exchange of history items makes a right answer of the {name} set less likely. The \
                 {name} circuit is of the {} that it makes most likely: edges that work against these \
                 answers.",
                self.pairs.len()
            )
        })
    }
}

/// The last `length` events of windows that have as many, at most `count`.
fn full_windows(windows: &[Window], length: usize, count: usize) -> Vec<Window> {
    let full = windows.iter().filter(|window| window.events.len() >= length);
    full.take(count).map(|window| window.tail(length)).collect()
}

/// Stages A to C: pairs of both sides, circuits, contributions.
///
/// # Errors
/// [`Error::Data`] when a side has no full window or its corruption changes no answer at all.
pub fn prepare(
    lm: &Lm,
    setting: &Setting,
    case: &Case,
    config: &CircuitConfig,
    corruption: Corruption,
    seed: Seed,
    workers: &Workers,
) -> Result<Prepared> {
    let start = Instant::now();
    let prompts = case.prompts(setting);
    let graph = Graph::new(&setting.data, &setting.mask, config.restart)?;
    let corruptor = Corruptor::new(&graph, corruption, config.share, seed)?;
    let asked = case.asked();
    let mut kept = prompts.windows(&case.retained);
    seed.stream("retain-pairs").shuffle(&mut kept);
    // pairs are of one length: users with short histories shorten it for all
    let longest =
        |windows: &[Window]| windows.iter().map(|window| window.events.len()).max().unwrap_or(0);
    let length = (config.history + 1).min(longest(&asked)).min(longest(&kept)).max(2);
    let forget = full_windows(&asked, length, config.pairs);
    let retain = full_windows(&kept, length, config.pairs);
    let network = Network::new(lm.config());
    let mut sides = Vec::new();
    for (name, windows) in [("forget", &forget), ("retain", &retain)] {
        if windows.is_empty() {
            return Err(Error::data(
                format!("no {name} window of {length} events that ends with one to explain"),
                "at least one: two events of one user that follow each other",
            ));
        }
        warm(&graph, &setting.data, windows.iter(), corruption)?;
        sides.push(pairs::of_windows(windows, &prompts, &corruptor)?);
    }
    let mut seconds = Seconds { pairs: start.elapsed().as_secs_f64(), ..Seconds::default() };
    let start = Instant::now();
    let (mut done, mut forward) = (Vec::new(), 0);
    for (name, all) in ["forget", "retain"].into_iter().zip(sides) {
        let both = attribution::metrics(lm, &network, &all, workers)?;
        let effective = pairs::with_effect(&all, &both).ok_or_else(|| {
            Error::data(
                format!("{} {name} pairs, none of whose answers the corruption changes", all.len()),
                "at least one that it changes; use another circuit.corruption",
            )
        })?;
        let pairs = effective.pairs;
        let steps = (config.steps > 0).then_some(config.steps);
        let scores = attribution::attribute(lm, &network, &pairs, steps, workers)?.mean();
        let (rule, target) = (config.selection, config.faithfulness);
        let circuit = circuit::extract(lm, &network, &pairs, scores, rule, target, workers)?;
        let gates = attribution::gate_gradients(lm, &network, &pairs, workers)?;
        // clean, corrupted and recorded runs; per step of attribution and for the gates a forward and
        // a backward pass; two runs per judged circuit
        let passes = 2 + 3 * steps.unwrap_or(1) + 3 + 3 + 2 * circuit.tried;
        forward += 3 * all.tokens() + passes * pairs.tokens();
        done.push(Side {
            structural: groups::structural(&network, &circuit),
            gradient: groups::normalised(gates),
            pairs,
            rejected: effective.rejected,
            lowered: effective.lowered,
            circuit,
        });
    }
    seconds.attribution = start.elapsed().as_secs_f64();
    let [forget, retain] =
        done.try_into().map_err(|_| Error::Bug("two sides, two circuits".to_owned()))?;
    Ok(Prepared { network, forget, retain, seconds, tokens: forward as f64 / 3.0 })
}

/// Computes the PageRank of what windows will ask for, on all cores.
fn warm<'a>(
    graph: &Graph<'_>,
    data: &Interactions,
    windows: impl Iterator<Item = &'a Window>,
    corruption: Corruption,
) -> Result<()> {
    let (mut users, mut targets) = (Vec::new(), Vec::new());
    for window in windows {
        if !matches!(corruption, Corruption::Random | Corruption::LabelFlip) {
            users.push(window.user);
        }
        if matches!(corruption, Corruption::PprEvidence | Corruption::LabelFlip) {
            let last = window.events.last().map(|&event| data.histories[window.user][event].item);
            targets.extend(last);
        }
    }
    graph.prepare(&users, &targets)
}

/// D_f for an unlearner, with counterfactuals where the loss needs them.
///
/// # Errors
/// Those of the corruption.
pub fn forget_windows(
    setting: &Setting,
    case: &Case,
    config: &CircuitConfig,
    corruption: Corruption,
    loss: ForgetLoss,
    seed: Seed,
) -> Result<Vec<ForgetWindow>> {
    let plain = |(_, prompt): &(Window, Prompt)| ForgetWindow {
        prompt: prompt.clone(),
        counterfactuals: Vec::new(),
    };
    if loss != ForgetLoss::CfKl {
        return Ok(case.forget.iter().map(plain).collect());
    }
    let graph = Graph::new(&setting.data, &setting.mask, config.restart)?;
    let corruptor = Corruptor::new(&graph, corruption, config.share, seed)?;
    warm(&graph, &setting.data, case.forget.iter().map(|(window, _)| window), corruption)?;
    let one = |(window, prompt): &(Window, Prompt)| {
        let counterfactuals =
            pairs::counterfactuals(window, prompt, &setting.vocabulary, &corruptor)?;
        Ok(ForgetWindow { prompt: prompt.clone(), counterfactuals })
    };
    case.forget.iter().map(one).collect()
}

/// Windows that a mean loss is taken over.
const SAMPLE: usize = 400;

/// The forget loss at which to stop: the original's loss on D_f plus what it gains on training windows
/// over never-seen users, all taken as unknown users. (The never-seen users' own loss would be a biased mark: users differ.)
/// `None` without held-out users.
///
/// # Errors
/// Those of the passes.
pub fn stop_target(
    lm: &Lm,
    setting: &Setting,
    forget: &[ForgetWindow],
    case: &Case,
    seed: Seed,
    workers: &Workers,
) -> Result<Option<f64>> {
    let held_out = setting.held_out();
    if held_out.is_empty() {
        return Ok(None);
    }
    let model = Recommender { lm: lm.frozen()? };
    let sample = |prompts: &[Prompt], name: &str| {
        let mut stream = seed.stream(&format!("sample/{name}"));
        let chosen = stream.sample(prompts.len(), SAMPLE.min(prompts.len()));
        let chosen: Vec<Prompt> = chosen.into_iter().map(|at| prompts[at].of_unknown()).collect();
        mean_loss(&model, &chosen.iter().collect::<Vec<_>>(), workers)
    };
    let gain = sample(&held_out, "held-out")? - sample(&case.retain, "retain")?;
    let probe: Vec<&Prompt> =
        forget.iter().take(train::unlearn::PROBE).map(|window| &window.prompt).collect();
    Ok(Some(mean_loss(&model, &probe, workers)? + gain))
}
