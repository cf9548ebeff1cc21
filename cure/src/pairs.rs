//! Counterfactual prompts (stage A): the history items that a random walk finds nearest to the
//! target are exchanged for others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use common::data::graph::RandomWalk;
use common::rng::Seed;
use common::{Error, Result};
use petgraph::graph::{NodeIndex, UnGraph};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::{Interactions, Prompts, Window};
use crate::model::Pairs;
use crate::prompt::{BOS, Prompt, Vocabulary, answer_token};

/// How the clean prompt is corrupted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(rename_all = "kebab-case")]
pub enum Corruption {
    /// History items nearest to the target by PageRank make way for items far from the user.
    #[default]
    PprEvidence,
    /// As many history items drawn at random make way for items far from the user.
    PprFar,
    /// Items drawn at random make way for items drawn at random. A mandatory ablation.
    Random,
    /// The judgements of the nearest items are turned round; the items stay.
    LabelFlip,
}

/// The walk on the graph of liked items, and what the exchange needs to know about items.
pub struct Graph<'a> {
    data: &'a Interactions,
    walk: RandomWalk,
    restart: f64,
    /// Popularity decile of every item.
    decile: Vec<usize>,
    /// Items of every decile.
    of_decile: Vec<Vec<u32>>,
    /// PageRank of all items by the node it was seeded at.
    ranks: Mutex<HashMap<usize, Arc<Vec<f64>>>>,
}

/// Tolerance of the power iteration (‖Δ‖₁): the ranks are compared, not added up.
const TOLERANCE: f64 = 1e-5;

impl<'a> Graph<'a> {
    /// The graph of the likes that `mask` keeps; users are the first nodes, then items.
    ///
    /// # Errors
    /// [`Error::Usage`] on a `restart` outside (0, 1].
    pub fn new(data: &'a Interactions, mask: &[Vec<bool>], restart: f64) -> Result<Self> {
        if !(restart > 0.0 && restart <= 1.0) {
            return Err(Error::usage(format!("a restart of {restart}; use one in (0, 1]")));
        }
        let users = data.users.len();
        let mut graph: UnGraph<(), ()> = UnGraph::default();
        for _ in 0..users + data.items.len() {
            graph.add_node(());
        }
        let mut popularity = vec![0usize; data.items.len()];
        for (user, events) in data.histories.iter().enumerate() {
            for (_, event) in events.iter().enumerate().filter(|(at, _)| mask[user][*at]) {
                popularity[event.item as usize] += 1;
                if event.liked {
                    let item = NodeIndex::new(users + event.item as usize);
                    graph.add_edge(NodeIndex::new(user), item, ());
                }
            }
        }
        let mut order: Vec<usize> = (0..data.items.len()).collect();
        order.sort_by_key(|&item| (popularity[item], item));
        let mut decile = vec![0; data.items.len()];
        let mut of_decile = vec![Vec::new(); 10];
        for (rank, &item) in order.iter().enumerate() {
            decile[item] = rank * 10 / order.len();
            of_decile[decile[item]].push(item as u32);
        }
        let walk = RandomWalk::new(&graph, |()| 1.0)?;
        Ok(Self { data, walk, restart, decile, of_decile, ranks: Mutex::default() })
    }

    /// PageRank of all items, seeded at a node; computed once.
    fn rank(&self, seed: usize) -> Result<Arc<Vec<f64>>> {
        let known = || self.ranks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rank) = known().get(&seed) {
            return Ok(rank.clone());
        }
        let all = self.walk.personalized_pagerank(seed, self.restart, TOLERANCE)?;
        let rank = Arc::new(all[self.data.users.len()..].to_vec());
        known().insert(seed, rank.clone());
        Ok(rank)
    }

    /// PageRank of all items, seeded at a user.
    ///
    /// # Errors
    /// Those of the walk.
    pub fn from_user(&self, user: usize) -> Result<Arc<Vec<f64>>> {
        self.rank(user)
    }

    /// PageRank of all items, seeded at an item.
    ///
    /// # Errors
    /// Those of the walk.
    pub fn from_item(&self, item: u32) -> Result<Arc<Vec<f64>>> {
        self.rank(self.data.users.len() + item as usize)
    }

    /// Computes the ranks that windows with these users and targets need, on all cores.
    ///
    /// # Errors
    /// Those of the walk.
    pub fn prepare(&self, users: &[usize], targets: &[u32]) -> Result<()> {
        let first = self.data.users.len();
        let seeds = users.iter().copied().chain(targets.iter().map(|&item| first + item as usize));
        let mut seeds: Vec<usize> = seeds.collect();
        seeds.sort_unstable();
        seeds.dedup();
        seeds.into_par_iter().try_for_each(|seed| self.rank(seed).map(drop))
    }

    /// Popularity decile of an item, 0 = the least popular tenth.
    pub fn decile(&self, item: u32) -> usize {
        self.decile[item as usize]
    }
}

/// Corrupts windows of one user: the exchange never touches the target (the last event), keeps every
/// position and, except for label flips, every judgement; new items are none of the user's.
pub struct Corruptor<'a> {
    graph: &'a Graph<'a>,
    corruption: Corruption,
    share: f64,
    seed: Seed,
}

impl<'a> Corruptor<'a> {
    /// A corruption of the `share` (0 to 1) of the history.
    ///
    /// # Errors
    /// [`Error::Usage`] on a share outside 0 to 1.
    pub fn new(
        graph: &'a Graph<'a>,
        corruption: Corruption,
        share: f64,
        seed: Seed,
    ) -> Result<Self> {
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::usage(format!("a corrupted share of {share}; use 0 to 1")));
        }
        Ok(Self { graph, corruption, share, seed })
    }

    /// The events (item, liked) with the chosen ones exchanged, and which ones those are. With
    /// `other_half` the history events that are otherwise kept are exchanged instead.
    ///
    /// # Errors
    /// Those of the walk.
    pub fn corrupt(
        &self,
        &Window { user, ref events, .. }: &Window,
        other_half: bool,
    ) -> Result<(Vec<(u32, bool)>, Vec<bool>)> {
        let data = self.graph.data;
        let history = &data.histories[user];
        let mut window: Vec<(u32, bool)> =
            events.iter().map(|&event| (history[event].item, history[event].liked)).collect();
        let mut changed = vec![false; window.len()];
        let Some(target) = window.len().checked_sub(1) else { return Ok((window, changed)) };
        let mut stream = self.seed.stream(&format!("corrupt/{user}/{}", events[target]));
        let mut order: Vec<usize> = match self.corruption {
            Corruption::PprEvidence | Corruption::LabelFlip => {
                // Evidence score: PageRank of the history item, seeded at the target item.
                let rank = self.graph.from_item(window[target].0)?;
                let mut order: Vec<usize> = (0..target).collect();
                let score = |at: usize| rank[window[at].0 as usize];
                order.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
                order
            }
            Corruption::PprFar | Corruption::Random => stream.permutation(target),
        };
        let count = (self.share * target as f64).ceil() as usize;
        if other_half {
            order.drain(..count);
        } else {
            order.truncate(count);
        }
        let mut known = vec![false; data.items.len()];
        history.iter().for_each(|event| known[event.item as usize] = true);
        for at in order {
            changed[at] = true;
            if self.corruption == Corruption::LabelFlip {
                window[at].1 = !window[at].1;
                continue;
            }
            let item = self.replacement(user, &known, window[at].0, &mut stream)?;
            known[item as usize] = true;
            window[at].0 = item;
        }
        Ok((window, changed))
    }

    /// Another item for `item`: of the same popularity decile (the nearest one that has any) and not
    /// `known`; the farthest from the user by PageRank among 32 drawn, or just drawn.
    fn replacement(
        &self,
        user: usize,
        known: &[bool],
        item: u32,
        stream: &mut common::rng::Stream,
    ) -> Result<u32> {
        const DRAWN: usize = 32;
        let graph = self.graph;
        let rank = match self.corruption {
            Corruption::Random => None,
            _ => Some(graph.from_user(user)?),
        };
        // users who know a whole decile get an item of the next one
        let decile = graph.decile(item);
        let open = (0..graph.of_decile.len())
            .map(|step| {
                let near = graph.of_decile.iter().enumerate();
                let near = near.filter(|(other, _)| other.abs_diff(decile) == step);
                let items = near.flat_map(|(_, items)| items.iter().copied());
                items.filter(|&item| !known[item as usize]).collect::<Vec<u32>>()
            })
            .find(|open| !open.is_empty());
        let mut drawn = open.ok_or_else(|| {
            Error::data(
                format!("user {:?}, who knows all items", graph.data.users[user]),
                "more items, or a label-flip corruption",
            )
        })?;
        let count = if rank.is_none() { 1 } else { DRAWN.min(drawn.len()) };
        drawn = stream.sample(drawn.len(), count).into_iter().map(|place| drawn[place]).collect();
        let distance = |&item: &u32| rank.as_ref().map_or(0.0, |rank| rank[item as usize]);
        drawn
            .into_iter()
            .min_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.cmp(b)))
            .ok_or_else(|| Error::Bug("no item was drawn".to_owned()))
    }
}

/// Attribution pairs of windows: each window's prompt for its last event, and its counterfactual.
///
/// # Errors
/// Those of [`Corruptor::corrupt`] and [`Pairs::new`]: all windows must be of one length.
pub fn of_windows(
    windows: &[Window],
    prompts: &Prompts<'_>,
    corruptor: &Corruptor<'_>,
) -> Result<Pairs> {
    let (mut clean, mut corrupt, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    for window in windows {
        let (events, _) = corruptor.corrupt(window, false)?;
        let prompt = prompts.of_window(window);
        let liked = prompt.answers.last().is_some_and(|answer| answer.liked);
        clean.push(prompt.ids);
        corrupt.push(prompts.vocabulary.window(prompts.first(window.user), &events).ids);
        answers.push([answer_token(liked), answer_token(!liked)]);
    }
    Pairs::new(clean, corrupt, answers)
}

/// The two counterfactuals of a training window for the loss `cf-kl`, restricted to the answers that
/// `prompt` asks and whose item stands: one with the chosen share of the history exchanged, one with
/// the rest of it.
///
/// # Errors
/// Those of [`Corruptor::corrupt`].
pub fn counterfactuals(
    window: &Window,
    prompt: &Prompt,
    vocabulary: &Vocabulary,
    corruptor: &Corruptor<'_>,
) -> Result<Vec<Prompt>> {
    let one = |other_half: bool| {
        let (events, changed) = corruptor.corrupt(window, other_half)?;
        let first = prompt.ids.first().copied().unwrap_or(BOS);
        let mut counterfactual = vocabulary.window(first, &events);
        let mut changed = changed.into_iter();
        counterfactual.answers.retain(|answer| {
            let stands = !changed.next().unwrap_or(true);
            stands && prompt.answers.iter().any(|asked| asked.position == answer.position)
        });
        Ok::<_, Error>(counterfactual)
    };
    Ok(vec![one(false)?, one(true)?])
}

/// Pairs that are worth attributing.
#[derive(Debug, Clone)]
pub struct Effective {
    /// Those kept.
    pub pairs: Pairs,
    /// Share of the pairs whose corruption lowers the metric by less than the bound.
    pub rejected: f64,
    /// Whether the corruption lowers the right answer in those kept; otherwise it raises it in all.
    pub lowered: bool,
}

/// Pairs whose corruption lowers the metric by at least 0.1 standard deviations of the clean metrics,
/// but at least the quarter with the largest effect above 0. When the corruption lowers the metric of
/// no pair, the quarter that it raises most. `None` when it changes no pair at all.
pub fn with_effect(pairs: &Pairs, [clean, corrupt]: &[Vec<f64>; 2]) -> Option<Effective> {
    let (_, sd) = common::stats::mean_sd(clean);
    let effects: Vec<f64> = clean.iter().zip(corrupt).map(|(m, c)| m - c).collect();
    let bound = 0.1 * sd;
    let rejected = effects.iter().filter(|&&effect| effect < bound).count();
    let rejected = rejected as f64 / effects.len() as f64;
    // of the quarter with the largest ones
    let weakest = |effects: &[f64]| {
        let mut sorted = effects.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        sorted.get(sorted.len().div_ceil(4) - 1).copied().unwrap_or(f64::INFINITY)
    };
    let lowered = effects.iter().any(|&effect| effect > 0.0);
    let (effects, least) = match lowered {
        true => (effects.clone(), bound.min(weakest(&effects))),
        false => {
            let raised: Vec<f64> = effects.iter().map(|effect| -effect).collect();
            let least = weakest(&raised);
            (raised, least)
        }
    };
    let keep: Vec<bool> = effects.iter().map(|&e| e > 0.0 && e >= least).collect();
    pairs.filter(&keep).map(|pairs| Effective { pairs, rejected, lowered })
}
