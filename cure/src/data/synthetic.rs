//! Users with known tastes, for tests and for machines without MovieLens.

use common::rng::Seed;

use super::{Event, Interactions, Item};

/// Sizes of the synthetic data.
#[derive(Debug, Clone, Copy)]
pub struct Synthetic {
    /// Users.
    pub users: usize,
    /// Items, spread evenly over the topics.
    pub items: usize,
    /// Topics; each user likes half of them.
    pub topics: usize,
    /// Events a user.
    pub events: usize,
    /// Probability that an event is judged by the taste and not by a coin.
    pub consistency: f64,
}

impl Default for Synthetic {
    fn default() -> Self {
        Self { users: 40, items: 200, topics: 4, events: 40, consistency: 0.95 }
    }
}

/// Draws the data; the second part tells for every user which topics are liked.
pub fn synthetic(sizes: Synthetic, seed: Seed) -> (Interactions, Vec<Vec<bool>>) {
    let mut stream = seed.stream("synthetic");
    let topic_of = |item: usize| item % sizes.topics;
    let items = (0..sizes.items)
        .map(|item| Item {
            id: format!("i{item}"),
            title: format!("topic{} item{item}", topic_of(item)),
            topics: vec![format!("topic{}", topic_of(item))],
        })
        .collect();
    let mut tastes = Vec::new();
    let mut histories = Vec::new();
    for _ in 0..sizes.users {
        let mut taste = vec![false; sizes.topics];
        for topic in stream.sample(sizes.topics, sizes.topics / 2) {
            taste[topic] = true;
        }
        let events = stream.sample(sizes.items, sizes.events.min(sizes.items));
        let judge = |item: usize| {
            let liked = if stream.chance(sizes.consistency) {
                taste[topic_of(item)]
            } else {
                stream.chance(0.5)
            };
            Event { item: item as u32, liked }
        };
        histories.push(events.into_iter().map(judge).collect());
        tastes.push(taste);
    }
    let users = (0..sizes.users).map(|user| format!("u{user}")).collect();
    (Interactions { users, items, histories }, tastes)
}
