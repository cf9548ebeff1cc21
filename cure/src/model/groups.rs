//! Contributions of modules to forgetting and retaining (Eq. 4 to 6), and the groups they give.

use common::rng::Stream;
use common::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Circuit, Network};

/// What a module may learn from.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, Hash,
)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// From the forget loss only.
    Forget,
    /// From the retain loss only.
    Retain,
    /// From both, the forget gradient projected where they conflict.
    Shared,
    /// From nothing.
    Frozen,
}

impl Group {
    /// All groups; later ones are more conservative.
    pub const ALL: [Self; 4] = [Self::Forget, Self::Retain, Self::Shared, Self::Frozen];

    /// A few words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forget => "forget-specific",
            Self::Retain => "retain-specific",
            Self::Shared => "shared",
            Self::Frozen => "frozen",
        }
    }

    /// The group of weights that several modules own: the owners' common group, else shared; frozen
    /// when any owner is.
    pub fn of_owners(mut owners: impl Iterator<Item = Self>) -> Self {
        let Some(first) = owners.next() else { return Self::Frozen };
        owners.fold(first, |all, next| match (all, next) {
            (Self::Frozen, _) | (_, Self::Frozen) => Self::Frozen,
            (all, next) if all == next => all,
            _ => Self::Shared,
        })
    }
}

/// A group for every module of a [`Network`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grouping {
    /// By module.
    pub groups: Vec<Group>,
}

/// How contributions become groups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GroupRule {
    /// By membership in the two circuits.
    Set,
    /// By the share of the forget contribution.
    #[default]
    Ratio,
}

/// Eq. 4: `S(v) = Σ |s(e)|` over the circuit's edges that touch v, normalised to sum 1.
pub fn structural(network: &Network, circuit: &Circuit) -> Vec<f64> {
    let mut sums = vec![0.0; network.modules()];
    for (at, &edge) in network.edges.iter().enumerate() {
        if circuit.kept[at] {
            for module in super::attribution::ends(network, edge).into_iter().flatten() {
                sums[module] += circuit.scores[at].abs();
            }
        }
    }
    normalised(sums)
}

/// Values divided by their sum (Eq. 4 and 5); all equal when the sum is 0.
pub fn normalised(mut values: Vec<f64>) -> Vec<f64> {
    let sum: f64 = values.iter().sum();
    let count = values.len() as f64;
    values.iter_mut().for_each(|value| *value = if sum > 0.0 { *value / sum } else { 1.0 / count });
    values
}

/// Eq. 6: `c(v) = λ S(v) + (1 − λ) I(v)`.
pub fn contribution(structural: &[f64], gradient: &[f64], lambda: f64) -> Vec<f64> {
    structural.iter().zip(gradient).map(|(s, i)| lambda * s + (1.0 - lambda) * i).collect()
}

impl Grouping {
    /// Rule `set`: in the forget circuit only → forget, in the retain circuit only → retain, in both
    /// → shared, in none → frozen.
    pub fn by_set(forget: &[bool], retain: &[bool]) -> Self {
        let group = |(&forget, &retain): (&bool, &bool)| match (forget, retain) {
            (true, false) => Group::Forget,
            (false, true) => Group::Retain,
            (true, true) => Group::Shared,
            (false, false) => Group::Frozen,
        };
        Self { groups: forget.iter().zip(retain).map(group).collect() }
    }

    /// Rule `ratio`: with ρ = c_f / (c_f + c_r), ρ ≥ 0.5 + δ → forget, ρ ≤ 0.5 − δ → retain, between
    /// → shared; the `frozen` share (rounded down) with the smallest max(c_f, c_r) → frozen.
    ///
    /// # Errors
    /// [`Error::Usage`] unless 0 ≤ δ ≤ 0.5 and 0 ≤ frozen < 1.
    pub fn by_ratio(forget: &[f64], retain: &[f64], delta: f64, frozen: f64) -> Result<Self> {
        if !(0.0..=0.5).contains(&delta) || !(0.0..1.0).contains(&frozen) {
            return Err(Error::usage(format!(
                "groups with δ {delta} and a frozen share of {frozen}; use 0 to 0.5 and 0 to below 1"
            )));
        }
        let largest = |at: usize| forget[at].max(retain[at]);
        let mut order: Vec<usize> = (0..forget.len()).collect();
        order.sort_by(|&a, &b| largest(a).total_cmp(&largest(b)).then(a.cmp(&b)));
        let mut groups: Vec<Group> = forget
            .iter()
            .zip(retain)
            .map(|(f, r)| match f / (f + r) {
                ratio if ratio >= 0.5 + delta => Group::Forget,
                ratio if ratio <= 0.5 - delta => Group::Retain,
                _ => Group::Shared,
            })
            .collect();
        for &module in &order[..(frozen * forget.len() as f64) as usize] {
            groups[module] = Group::Frozen;
        }
        Ok(Self { groups })
    }

    /// Every module in one group.
    pub fn all(modules: usize, group: Group) -> Self {
        Self { groups: vec![group; modules] }
    }

    /// Control: the same groups dealt out at random, heads among heads and MLPs among MLPs, so that
    /// every group keeps its number of weights.
    pub fn shuffled(&self, network: &Network, stream: &mut Stream) -> Self {
        let mut groups = self.groups.clone();
        let is_head = |module: usize| network.module_name(module).starts_with('a');
        for heads in [true, false] {
            let places: Vec<usize> = (0..groups.len()).filter(|&m| is_head(m) == heads).collect();
            let mut dealt: Vec<Group> = places.iter().map(|&m| self.groups[m]).collect();
            stream.shuffle(&mut dealt);
            for (&place, group) in places.iter().zip(dealt) {
                groups[place] = group;
            }
        }
        Self { groups }
    }

    /// Control: forget and retain exchanged.
    pub fn swapped(&self) -> Self {
        let swap = |group: &Group| match group {
            Group::Forget => Group::Retain,
            Group::Retain => Group::Forget,
            other => *other,
        };
        Self { groups: self.groups.iter().map(swap).collect() }
    }

    /// Number of modules in a group.
    pub fn count(&self, group: Group) -> usize {
        self.groups.iter().filter(|&&other| other == group).count()
    }
}
