//! Dawid–Skene EM (Algorithm 2) and two of its relatives, in one loop.
//!
//! A component is a true label, or a subtype of one: component r belongs to label r / M, with M
//! subtypes per label. Each pass runs Eq. 8 on an item and at once adds its posterior to the
//! counts of the next Eq. 7, so the votes are read once per iteration.

use rayon::prelude::*;

use super::{EmReport, Evidence, Options, Warning, slice_size};
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
    let mut posterior = first_posterior(votes, evidence, shape);
    let mut counts = first_counts(votes, &posterior, shape);
    let mut parameters = Parameters {
        prior: Vec::new(),
        table: vec![0.0; votes.workers.len() * shape.cells()],
        strengths: vec![10.0; shape.components],
    };
    let mut history: Vec<f64> = Vec::new();
    let mut warnings = Vec::new();
    loop {
        maximise(&counts, shape, options.alpha, update, &mut parameters);
        let likelihood = expect(votes, evidence, shape, &parameters, &mut posterior, &mut counts)
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
        expect(votes, evidence, shape, &parameters, &mut posterior, &mut counts) - divergence
    });
    let accuracy = accuracies(votes, shape, &parameters);
    let weights = accuracy
        .iter()
        .map(|w| w.map_or(0.0, |w| vote::log_odds_weight(shape.labels as f64, w)))
        .collect();
    EmFit {
        posterior: label_posterior(posterior, shape),
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

/// Expected counts: mass per component, and votes as in [`Parameters::table`].
struct Counts {
    mass: Vec<f64>,
    table: Vec<f64>,
}

impl Counts {
    fn zero(components: usize, cells: usize) -> Self {
        Self { mass: vec![0.0; components], table: vec![0.0; cells] }
    }

    /// [`Counts::add`] for `N` components, with unrolled loops; 0 takes their number from the row.
    #[inline]
    fn add_n<const N: usize>(
        &mut self,
        workers: &[u32],
        labels: &[Label],
        posterior: &[f64],
        label_count: usize,
    ) {
        let Some(row) = posterior.first_chunk::<N>().filter(|_| N > 0) else {
            return self.add(workers, labels, posterior, label_count);
        };
        self.mass.iter_mut().zip(row).for_each(|(total, p)| *total += p);
        let (table, _) = self.table.as_chunks_mut::<N>();
        for (&worker, &label) in workers.iter().zip(labels) {
            let cell = &mut table[worker as usize * label_count + label as usize];
            for k in 0..N {
                cell[k] += row[k];
            }
        }
    }

    fn add(&mut self, workers: &[u32], labels: &[Label], posterior: &[f64], label_count: usize) {
        let width = posterior.len();
        for (total, p) in self.mass.iter_mut().zip(posterior) {
            *total += p;
        }
        for (&worker, &label) in workers.iter().zip(labels) {
            let at = (worker as usize * label_count + label as usize) * width;
            for (count, p) in self.table[at..at + width].iter_mut().zip(posterior) {
                *count += p;
            }
        }
    }
}

/// μ_j(k) = share of the votes; one-hot for gold items, zero without votes.
pub(super) fn vote_shares(votes: &Votes, evidence: &Evidence) -> Vec<f64> {
    let l = votes.labels.len();
    let mut posterior = vec![0.0; votes.items.len() * l];
    for (item, row) in posterior.chunks_mut(l.max(1)).enumerate() {
        if let Some(gold) = evidence.gold_of(item) {
            row[gold as usize] = 1.0;
            continue;
        }
        let share = 1.0 / votes.range(item).len().max(1) as f64;
        for &label in &votes.label_codes()[votes.range(item)] {
            row[label as usize] += share;
        }
    }
    posterior
}

/// Vote shares p, each split over its subtypes by agreement: Binomial(M − 1, p), so that
/// subtype 0 starts with the contested items and the last with the clear ones.
fn first_posterior(votes: &Votes, evidence: &Evidence, shape: Shape) -> Vec<f64> {
    let shares = vote_shares(votes, evidence);
    if shape.subtypes == 1 {
        return shares;
    }
    let n = (shape.subtypes - 1) as i32;
    let mut posterior = Vec::with_capacity(shares.len() * shape.subtypes);
    for p in shares {
        let mut choose = 1.0;
        for m in 0..=n {
            posterior.push(p * choose * p.powi(m) * (1.0 - p).max(0.0).powi(n - m));
            choose *= f64::from(n - m) / f64::from(m + 1);
        }
    }
    posterior
}

fn first_counts(votes: &Votes, posterior: &[f64], shape: Shape) -> Counts {
    let mut counts = Counts::zero(shape.components, votes.workers.len() * shape.cells());
    for (item, row) in posterior.chunks(shape.components.max(1)).enumerate() {
        let range = votes.range(item);
        let workers = &votes.worker_codes()[range.clone()];
        counts.add(workers, &votes.label_codes()[range], row, shape.labels);
    }
    counts
}

/// Eq. 7 for every worker, under the chosen smoothing.
fn maximise(counts: &Counts, shape: Shape, alpha: f64, update: Update, to: &mut Parameters) {
    let cells = shape.cells().max(1);
    let workers = to.table.par_chunks_mut(cells).zip(counts.table.par_chunks(cells));
    match update {
        Update::Smoothed => {
            to.prior = class_prior(&counts.mass);
            workers.for_each(|(out, n)| confusion::m_step(n, shape.labels, alpha, out));
        }
        Update::Hierarchical => {
            to.prior = class_prior(&counts.mass);
            let base = pooled_base(counts, shape);
            set_strengths(counts, shape, &base, &mut to.strengths);
            let strengths = &to.strengths;
            workers.for_each(|(out, n)| confusion::m_step_shrunk(n, &base, strengths, out));
        }
        Update::Subtypes(_) => {
            to.prior = subtype_prior(&counts.mass, shape);
            workers.for_each(|(out, n)| {
                confusion::m_step_variational(n, shape.components, |r| shape.label_of(r), out);
            });
        }
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

/// Eq. 8 on every item and the counts for the next Eq. 7; returns the log-likelihood.
fn expect(
    votes: &Votes,
    evidence: &Evidence,
    shape: Shape,
    parameters: &Parameters,
    posterior: &mut [f64],
    counts: &mut Counts,
) -> f64 {
    let pass = match shape.components {
        2 => expect_n::<2>,
        3 => expect_n::<3>,
        4 => expect_n::<4>,
        5 => expect_n::<5>,
        6 => expect_n::<6>,
        _ => expect_n::<0>,
    };
    pass(votes, evidence, shape, parameters, posterior, counts)
}

fn expect_n<const N: usize>(
    votes: &Votes,
    evidence: &Evidence,
    shape: Shape,
    parameters: &Parameters,
    posterior: &mut [f64],
    counts: &mut Counts,
) -> f64 {
    let width = if N == 0 { shape.components } else { N };
    if width == 0 {
        return 0.0;
    }
    let (prior, table) = (&parameters.prior, &parameters.table);
    let size = slice_size(votes.items.len(), votes.len(), table.len());
    let partial: Vec<(f64, Counts)> = posterior
        .par_chunks_mut(size * width)
        .enumerate()
        .map(|(slice, chunk)| {
            let mut counts = Counts::zero(width, table.len());
            let mut likelihood = confusion::LogLikelihood::default();
            for (offset, row) in chunk.chunks_exact_mut(width).enumerate() {
                let item = slice * size + offset;
                let range = votes.range(item);
                let gold = evidence.gold_of(item);
                if range.is_empty() && gold.is_none() {
                    continue;
                }
                let workers = &votes.worker_codes()[range.clone()];
                let labels = &votes.label_codes()[range];
                let mass = confusion::e_step::<N>(workers, labels, shape.labels, prior, table, row);
                likelihood.add(mass);
                if let Some(gold) = gold {
                    clamp(row, shape, gold as usize);
                }
                counts.add_n::<N>(workers, labels, row, shape.labels);
            }
            (likelihood.total(), counts)
        })
        .collect();
    let mut likelihood = 0.0;
    counts.mass.fill(0.0);
    counts.table.fill(0.0);
    for (part, slice) in partial {
        likelihood += part;
        counts.mass.iter_mut().zip(&slice.mass).for_each(|(a, b)| *a += b);
        counts.table.iter_mut().zip(&slice.table).for_each(|(a, b)| *a += b);
    }
    likelihood
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

fn label_posterior(posterior: Vec<f64>, shape: Shape) -> Vec<f64> {
    if shape.subtypes == 1 {
        return posterior;
    }
    posterior.chunks(shape.subtypes).map(|group| group.iter().sum()).collect()
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
