//! Dawid–Skene EM (Algorithm 2) and two of its relatives, in one loop.
//!
//! A component is a true label, or a subtype of one: component r belongs to label r / M, with M
//! subtypes per label. Each pass runs Eq. 8 on an item and at once adds its posterior to the
//! counts of the next Eq. 7, so the votes are read once per iteration.

use rayon::prelude::*;

use super::slots::{Slice, Slots};
use super::{Confusions, EmReport, Evidence, Options, Warning};
use crate::model::{confusion, shrink, vote};
use crate::votes::{Label, Votes};

/// Subtypes per label tried by the pool, beside one.
pub(super) const SUBTYPES: usize = 3;

/// Dirichlet concentration of a label's subtypes, shared among them.
const CONCENTRATION: f64 = 0.1;

/// How Eq. 7 smooths the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Update {
    /// α per cell: Dawid & Skene.
    Smoothed,
    /// Every worker's row is shrunk towards the pooled row of its label; the strength per label
    /// maximises the marginal likelihood.
    Hierarchical,
    /// M subtypes of items per label, so that workers may err together on one kind of item
    /// (Li, Rubinstein & Cohn 2019, EBCC): variational, Dirichlet(4 on the diagonal, 1 elsewhere)
    /// per row, symmetric Dirichlet(0.1 / M) over subtypes. One subtype: independent errors.
    Subtypes(usize),
}

impl Update {
    fn subtypes(self) -> usize {
        if let Self::Subtypes(count) = self { count } else { 1 }
    }

    /// Components for `labels` labels.
    pub(super) fn components(self, labels: usize) -> usize {
        labels * self.subtypes()
    }
}

/// Posterior per item and label, and what else the loop learned.
pub(super) struct EmFit {
    pub(super) posterior: Vec<f64>,
    pub(super) report: EmReport,
    /// Lower bound of ln P(votes) of the variational update: higher = better supported.
    pub(super) evidence: Option<f64>,
}

/// Algorithm 2.
pub(super) fn run(votes: &Votes, evidence: &Evidence, options: &Options, update: Update) -> EmFit {
    let shape = Shape {
        labels: votes.labels.len(),
        components: update.components(votes.labels.len()),
        subtypes: update.subtypes(),
    };
    let slots = Slots::new(votes, votes.workers.len() * shape.cells());
    let data = Data { slots: &slots, evidence, silent: silent_gold(votes, evidence), shape };
    let mut posterior = data.first_posterior();
    let mut counts = Counts::zero(shape.components, votes.workers.len() * shape.cells());
    let mut partial = vec![counts.clone(); slots.slice_count()];
    data.first_counts(&posterior, &mut counts);
    let mut parameters = Parameters::new(votes, shape);
    let mut history: Vec<f64> = Vec::new();
    let mut warnings = Vec::new();
    loop {
        maximise(&counts, shape, options.alpha, update, &mut parameters);
        let likelihood = data.expect(&parameters, &mut posterior, &mut partial, &mut counts)
            / votes.len().max(1) as f64;
        let previous = history.last().copied().unwrap_or(f64::NEG_INFINITY);
        history.push(likelihood);
        // The likelihood itself need not rise when the M step also has a prior.
        let gain = likelihood - previous;
        let gain = if update == Update::Smoothed { gain } else { gain.abs() };
        if gain < options.tolerance {
            break;
        }
        if history.len() >= options.max_rounds {
            warnings.push(Warning::RoundLimit);
            break;
        }
    }
    let bound = matches!(update, Update::Subtypes(_)).then(|| {
        let divergence = divergence(&counts, shape);
        maximise(&counts, shape, options.alpha, update, &mut parameters);
        data.expect(&parameters, &mut posterior, &mut partial, &mut counts) - divergence
    });
    let accuracy = accuracies(votes, shape, &parameters);
    let weights = accuracy
        .iter()
        .map(|w| w.map_or(0.0, |w| vote::log_odds_weight(shape.labels as f64, w)))
        .collect();
    EmFit {
        posterior: data.label_posterior(posterior, votes.items.len()),
        report: EmReport { weights, accuracy, history, warnings },
        evidence: bound,
    }
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    labels: usize,
    components: usize,
    subtypes: usize,
}

impl Shape {
    /// Numbers in one worker's table: `[voted label][component]`.
    fn cells(self) -> usize {
        self.labels * self.components
    }

    fn label_of(self, component: usize) -> usize {
        component / self.subtypes
    }
}

struct Parameters {
    /// π per component.
    prior: Vec<f64>,
    /// `[worker][voted label][component]`.
    table: Vec<f64>,
    /// Pseudo-votes per component (hierarchical).
    strengths: Vec<f64>,
}

impl Parameters {
    fn new(votes: &Votes, shape: Shape) -> Self {
        Self {
            prior: Vec::new(),
            table: vec![0.0; votes.workers.len() * shape.cells()],
            strengths: vec![10.0; shape.components],
        }
    }
}

/// Expected counts: mass per component, and votes as in [`Parameters::table`].
#[derive(Clone)]
struct Counts {
    mass: Vec<f64>,
    table: Vec<f64>,
}

impl Counts {
    fn zero(components: usize, cells: usize) -> Self {
        Self { mass: vec![0.0; components], table: vec![0.0; cells] }
    }

    fn clear(&mut self) {
        self.mass.fill(0.0);
        self.table.fill(0.0);
    }

    fn add_all(&mut self, other: &Self) {
        self.mass.iter_mut().zip(&other.mass).for_each(|(a, b)| *a += b);
        self.table.iter_mut().zip(&other.table).for_each(|(a, b)| *a += b);
    }

    /// Adds one item's posterior to the mass and to the cells of its votes. `N` components unroll
    /// the loops; 0 takes their number from the row.
    #[inline]
    fn add<const N: usize>(
        &mut self,
        workers: &[u32],
        labels: &[Label],
        posterior: &[f64],
        label_count: usize,
    ) {
        for (total, p) in self.mass.iter_mut().zip(posterior) {
            *total += p;
        }
        if let Some(row) = posterior.first_chunk::<N>().filter(|_| N > 0) {
            let (table, _) = self.table.as_chunks_mut::<N>();
            for (&worker, &label) in workers.iter().zip(labels) {
                let cell = &mut table[worker as usize * label_count + label as usize];
                for k in 0..N {
                    cell[k] += row[k];
                }
            }
            return;
        }
        let width = posterior.len();
        for (&worker, &label) in workers.iter().zip(labels) {
            let at = (worker as usize * label_count + label as usize) * width;
            for (count, p) in self.table[at..at + width].iter_mut().zip(posterior) {
                *count += p;
            }
        }
    }
}

/// What the passes read.
struct Data<'a> {
    slots: &'a Slots<'a>,
    evidence: &'a Evidence,
    /// [`silent_gold`].
    silent: Vec<(u32, Label)>,
    shape: Shape,
}

/// Items with a gold label but without votes.
pub(super) fn silent_gold(votes: &Votes, evidence: &Evidence) -> Vec<(u32, Label)> {
    let known = evidence.gold.iter().enumerate();
    known
        .filter(|(item, _)| votes.range(*item).is_empty())
        .filter_map(|(item, gold)| gold.map(|gold| (item as u32, gold)))
        .collect()
}

/// μ_j(k) = share of the votes, by slot; one-hot for gold items.
pub(super) fn vote_shares(slots: &Slots<'_>, evidence: &Evidence, l: usize) -> Vec<f64> {
    let mut posterior = vec![0.0; slots.len() * l];
    slots.pass(&mut posterior, l, |slice, rows| {
        for run in &slice.runs {
            let share = 1.0 / run.length as f64;
            for (slot, _, labels) in slots.of(run) {
                let row = &mut rows[(slot - slice.slots.start) * l..][..l];
                match evidence.gold_of(slots.item[slot] as usize) {
                    Some(gold) => row[gold as usize] = 1.0,
                    None => labels.iter().for_each(|&label| row[label as usize] += share),
                }
            }
        }
    });
    posterior
}

impl Data<'_> {
    /// Vote shares p, each split over its subtypes by agreement: Binomial(M − 1, p), so that
    /// subtype 0 starts with the contested items and the last with the clear ones.
    fn first_posterior(&self) -> Vec<f64> {
        let shares = vote_shares(self.slots, self.evidence, self.shape.labels);
        let subtypes = self.shape.subtypes;
        if subtypes == 1 {
            return shares;
        }
        let mut posterior = Vec::with_capacity(shares.len() * subtypes);
        for p in shares {
            extend_subtypes(p, subtypes, &mut posterior);
        }
        posterior
    }

    fn first_counts(&self, posterior: &[f64], counts: &mut Counts) {
        let shape = self.shape;
        for run in self.slots.runs() {
            for (slot, workers, labels) in self.slots.of(run) {
                let row = &posterior[slot * shape.components..][..shape.components];
                counts.add::<0>(workers, labels, row, shape.labels);
            }
        }
        let mut row = Vec::new();
        for &(_, gold) in &self.silent {
            row.clear();
            for k in 0..shape.labels {
                extend_subtypes(f64::from(u8::from(k == gold as usize)), shape.subtypes, &mut row);
            }
            counts.add::<0>(&[], &[], &row, shape.labels);
        }
    }

    /// Posterior per item and label: the sum over subtypes, in the order of the items.
    fn label_posterior(&self, posterior: Vec<f64>, items: usize) -> Vec<f64> {
        let Shape { labels, subtypes, .. } = self.shape;
        let rows = match subtypes {
            1 => posterior,
            _ => posterior.chunks_exact(subtypes).map(|group| group.iter().sum()).collect(),
        };
        let mut rows = self.slots.by_item(rows, labels, items);
        for &(item, gold) in &self.silent {
            rows[item as usize * labels + gold as usize] = 1.0;
        }
        rows
    }

    /// Eq. 8 on every item and the counts for the next Eq. 7; returns the log-likelihood.
    /// `partial` keeps the counts of the slices from one iteration to the next.
    fn expect(
        &self,
        parameters: &Parameters,
        posterior: &mut [f64],
        partial: &mut [Counts],
        counts: &mut Counts,
    ) -> f64 {
        let width = self.shape.components;
        if width == 0 {
            return 0.0;
        }
        let pass = match width {
            2 => Self::expect_slice::<2>,
            3 => Self::expect_slice::<3>,
            4 => Self::expect_slice::<4>,
            5 => Self::expect_slice::<5>,
            6 => Self::expect_slice::<6>,
            _ => Self::expect_slice::<0>,
        };
        let likelihoods = self.slots.pass_with(posterior, width, partial, |slice, rows, own| {
            own.clear();
            pass(self, parameters, slice, rows, own)
        });
        counts.clear();
        partial.iter().for_each(|slice| counts.add_all(slice));
        let mut total: f64 = likelihoods.iter().sum();
        for &(_, gold) in &self.silent {
            let mut row = parameters.prior.clone();
            total += row.iter().sum::<f64>().ln();
            clamp(&mut row, self.shape, gold as usize);
            counts.add::<0>(&[], &[], &row, self.shape.labels);
        }
        total
    }

    fn expect_slice<const N: usize>(
        &self,
        parameters: &Parameters,
        slice: &Slice,
        rows: &mut [f64],
        counts: &mut Counts,
    ) -> f64 {
        let shape = self.shape;
        let width = if N == 0 { shape.components } else { N };
        let (prior, table) = (&parameters.prior, &parameters.table);
        let gold = !self.evidence.gold.is_empty();
        let mut rows = rows.chunks_exact_mut(width);
        let mut likelihood = confusion::LogLikelihood::default();
        for run in &slice.runs {
            for ((slot, workers, labels), row) in self.slots.of(run).zip(&mut rows) {
                let mass = confusion::e_step::<N>(workers, labels, shape.labels, prior, table, row);
                likelihood.add(mass);
                if gold && let Some(gold) = self.evidence.gold_of(self.slots.item[slot] as usize) {
                    clamp(row, shape, gold as usize);
                }
                counts.add::<N>(workers, labels, row, shape.labels);
            }
        }
        likelihood.total()
    }
}

/// Appends a label's mass `p`, split over its subtypes.
fn extend_subtypes(p: f64, subtypes: usize, posterior: &mut Vec<f64>) {
    let n = (subtypes - 1) as i32;
    let mut choose = 1.0;
    for m in 0..=n {
        posterior.push(p * choose * p.powi(m) * (1.0 - p).max(0.0).powi(n - m));
        choose *= f64::from(n - m) / f64::from(m + 1);
    }
}

/// Eq. 7 for every worker, under the chosen smoothing.
fn maximise(counts: &Counts, shape: Shape, alpha: f64, update: Update, to: &mut Parameters) {
    let cells = shape.cells().max(1);
    let table = &mut to.table;
    match update {
        Update::Smoothed => {
            to.prior = class_prior(&counts.mass);
            for_workers(table, &counts.table, cells, |out, n| {
                confusion::m_step(n, shape.labels, alpha, out);
            });
        }
        Update::Hierarchical => {
            to.prior = class_prior(&counts.mass);
            let base = pooled_base(counts, shape);
            set_strengths(counts, shape, &base, &mut to.strengths);
            let strengths = &to.strengths;
            for_workers(table, &counts.table, cells, |out, n| {
                confusion::m_step_shrunk(n, &base, strengths, out);
            });
        }
        Update::Subtypes(_) => {
            to.prior = subtype_prior(&counts.mass, shape);
            for_workers(table, &counts.table, cells, |out, n| {
                confusion::m_step_variational(n, shape.components, |r| shape.label_of(r), out);
            });
        }
    }
}

/// Applies `step` to every worker's part of two tables. Waking a second thread costs more than a
/// small table.
fn for_workers(
    out: &mut [f64],
    counts: &[f64],
    cells: usize,
    step: impl Fn(&mut [f64], &[f64]) + Sync,
) {
    const PARALLEL_NUMBERS: usize = 1 << 16;
    if out.len() < PARALLEL_NUMBERS || rayon::current_num_threads() == 1 {
        out.chunks_mut(cells).zip(counts.chunks(cells)).for_each(|(out, n)| step(out, n));
    } else {
        let both = out.par_chunks_mut(cells).zip(counts.par_chunks(cells));
        both.for_each(|(out, n)| step(out, n));
    }
}

/// π_k of Eq. 7, with 1e-12 so that a label without mass keeps a defined logarithm.
pub(super) fn class_prior(mass: &[f64]) -> Vec<f64> {
    let total: f64 = mass.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    mass.iter().map(|m| m / total + 1e-12).collect()
}

/// E\[ln τ_k\] + E\[ln π_km\], exponentiated: labels have a uniform Dirichlet prior, subtypes of a
/// label a sparse one.
fn subtype_prior(mass: &[f64], shape: Shape) -> Vec<f64> {
    let concentration = CONCENTRATION / shape.subtypes as f64;
    let labels: Vec<f64> =
        mass.chunks(shape.subtypes).map(|group| 1.0 + group.iter().sum::<f64>()).collect();
    let total = shrink::digamma(labels.iter().sum());
    mass.iter()
        .enumerate()
        .map(|(r, m)| {
            let label = labels[shape.label_of(r)];
            let group = label - 1.0 + concentration * shape.subtypes as f64;
            (shrink::digamma(label) - total + shrink::digamma(m + concentration)
                - shrink::digamma(group))
            .exp()
        })
        .collect()
}

/// KL of the variational posterior over parameters from their prior.
fn divergence(counts: &Counts, shape: Shape) -> f64 {
    let r = shape.components;
    let labels: Vec<f64> = counts.mass.chunks(shape.subtypes).map(|m| m.iter().sum()).collect();
    let mut total = shrink::dirichlet_gain(labels.iter().map(|&n| (n, 1.0)));
    let share = CONCENTRATION / shape.subtypes as f64;
    for group in counts.mass.chunks(shape.subtypes) {
        total += shrink::dirichlet_gain(group.iter().map(|&n| (n, share)));
    }
    let workers: Vec<f64> = counts
        .table
        .par_chunks(shape.cells().max(1))
        .map(|table| {
            (0..r)
                .map(|component| {
                    let row = (0..shape.labels).map(|l| {
                        let own = l == shape.label_of(component);
                        (table[l * r + component], confusion::row_prior(own))
                    });
                    shrink::dirichlet_gain(row)
                })
                .sum()
        })
        .collect();
    total + workers.iter().sum::<f64>()
}

/// The pooled confusion of all workers, with one vote on the diagonal and one spread evenly.
fn pooled_base(counts: &Counts, shape: Shape) -> Vec<f64> {
    let (l, r) = (shape.labels, shape.components);
    let mut base = vec![0.0; shape.cells()];
    for worker in counts.table.chunks(shape.cells().max(1)) {
        base.iter_mut().zip(worker).for_each(|(b, n)| *b += n);
    }
    for component in 0..r {
        let total: f64 = (0..l).map(|k| base[k * r + component]).sum();
        for k in 0..l {
            let diagonal = if k == shape.label_of(component) { 1.0 } else { 0.0 };
            let cell = &mut base[k * r + component];
            *cell = (*cell + 1.0 / l as f64 + diagonal) / (total + 2.0);
        }
    }
    base
}

/// Three fixed-point steps per component for the strength of the shrinkage.
fn set_strengths(counts: &Counts, shape: Shape, base: &[f64], strengths: &mut [f64]) {
    let (l, r) = (shape.labels, shape.components);
    strengths.par_iter_mut().enumerate().for_each(|(component, strength)| {
        let column = |table: &[f64]| -> Vec<f64> {
            table.iter().skip(component).step_by(r).copied().collect()
        };
        let base = column(base);
        let rows: Vec<f64> = counts.table.chunks(shape.cells().max(1)).flat_map(column).collect();
        for _ in 0..3 {
            let pairs = rows.chunks(l.max(1)).map(|row| (row, &base[..]));
            *strength = shrink::strength_step(pairs, *strength);
        }
    });
}

/// Eq. 7 on given label posteriors (items × L).
pub(super) fn confusions(
    votes: &Votes,
    posterior: &[f64],
    alpha: f64,
    update: Update,
) -> Confusions {
    let l = votes.labels.len();
    let shape = Shape { labels: l, components: l, subtypes: 1 };
    let mut counts = Counts::zero(l, votes.workers.len() * shape.cells());
    for (item, row) in posterior.chunks_exact(l.max(1)).enumerate() {
        let range = votes.range(item);
        let workers = &votes.worker_codes()[range.clone()];
        counts.add::<0>(workers, &votes.label_codes()[range], row, l);
    }
    let mut parameters = Parameters::new(votes, shape);
    // The strength of the shrinkage takes three fixed-point steps each time.
    for _ in 0..10 {
        maximise(&counts, shape, alpha, update, &mut parameters);
    }
    Confusions { prior: parameters.prior, table: parameters.table }
}

/// Moves all mass to the components of the known label.
fn clamp(row: &mut [f64], shape: Shape, gold: usize) {
    let own = gold * shape.subtypes..(gold + 1) * shape.subtypes;
    let mass: f64 = row[own.clone()].iter().sum();
    for (r, p) in row.iter_mut().enumerate() {
        *p = match own.contains(&r) {
            false => 0.0,
            true if mass > 0.0 => *p / mass,
            true => 1.0 / shape.subtypes as f64,
        };
    }
}

/// P(vote = truth) per worker under the fitted model.
fn accuracies(votes: &Votes, shape: Shape, parameters: &Parameters) -> Vec<Option<f64>> {
    let total: f64 = parameters.prior.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let r = shape.components;
    votes
        .votes_per_worker()
        .iter()
        .enumerate()
        .map(|(worker, &n)| {
            let table = &parameters.table[worker * shape.cells()..(worker + 1) * shape.cells()];
            let right = |component: usize| {
                let row: f64 = (0..shape.labels).map(|k| table[k * r + component]).sum();
                let hit = table[shape.label_of(component) * r + component];
                parameters.prior[component] / total * hit / row.max(f64::MIN_POSITIVE)
            };
            (n > 0).then(|| (0..r).map(right).sum())
        })
        .collect()
}
