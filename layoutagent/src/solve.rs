//! Solvers: from a problem to verified layouts (specification §3.6, §3.7).

use common::rng::{Seed, Stream};
use common::{Result, optim::Workers};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::baselines::reject;
use crate::construct::construct;
use crate::layout::{Edge, Problem};
use crate::model::energy::Energy;
use crate::model::sampler::{SampleConfig, Sampler};
use crate::relations::violations;

/// How layouts are found.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Solver {
    /// Compositional diffusion: the paper's.
    Learned,
    /// Hinge energies and Langevin noise, nothing learned.
    Analytic,
    /// Difference constraints and choices between them ([`crate::construct`]), nothing learned.
    Construct,
    /// A learned sample, moved onto the constraints by the energies. What still breaks a relation,
    /// and crowds, are constructed.
    #[default]
    Hybrid,
    /// Random placement, object by object, until its relations hold.
    Reject,
}

impl Solver {
    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Learned => "learned",
            Self::Analytic => "analytic",
            Self::Construct => "construct",
            Self::Hybrid => "hybrid",
            Self::Reject => "reject",
        }
    }

    /// Whether it needs the relation networks.
    pub fn is_learned(self) -> bool {
        matches!(self, Self::Learned | Self::Hybrid)
    }
}

/// Options of the solvers. Defaults of the analytic one are the prototype's (specification §3.7).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SolveConfig {
    /// Which solver.
    pub solver: Solver,
    /// Layouts per problem.
    pub candidates: usize,
    /// Reverse diffusion and inner steps of the learned solver.
    pub sample: SampleConfig,
    /// Gradient steps of the analytic solver.
    pub steps: usize,
    /// Their size.
    pub step_size: f64,
    /// Langevin noise at the first step; falls to 0 at 80 % of the steps.
    pub noise: f64,
    /// Gradient steps after a learned sample (hybrid).
    pub refine_steps: usize,
    /// Rounds of repair after the gradient steps (analytic and hybrid, ours): objects that break a
    /// relation are moved to the best of some random places, then gradient steps follow.
    pub repairs: usize,
    /// Attempts of the construction (also the hybrid's last resort).
    pub attempts: usize,
    /// Tries per object of the rejection solver; 50 in the reference.
    pub tries: usize,
}

impl Default for SolveConfig {
    fn default() -> Self {
        Self {
            solver: Solver::Hybrid,
            candidates: 10,
            sample: SampleConfig::default(),
            steps: 400,
            step_size: 0.15,
            noise: 0.12,
            refine_steps: 100,
            repairs: 10,
            attempts: 60,
            tries: 50,
        }
    }
}

/// One layout with the verdict of the symbolic checker.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Centres of the objects.
    pub centers: Vec<[f64; 2]>,
    /// Relations that do not hold; empty = verified.
    pub violated: Vec<Edge>,
}

impl Candidate {
    /// Checks a layout.
    pub fn judged(problem: &Problem, mut centers: Vec<[f64; 2]>) -> Self {
        problem.impose_locks(&mut centers);
        let violated = violations(problem, &problem.rects(&centers));
        Self { centers, violated }
    }

    /// Whether every relation holds.
    pub fn is_verified(&self) -> bool {
        self.violated.is_empty()
    }
}

/// `config.candidates` layouts of each problem, in the order in which they were drawn. `problems`
/// come with an id that names their noise. The learned solvers need a `sampler`.
///
/// # Errors
/// [`common::Error::Bug`] without the sampler; interrupts.
pub fn solve(
    problems: &[(&Problem, u64)],
    config: &SolveConfig,
    sampler: Option<&Sampler>,
    seed: Seed,
    workers: &Workers,
) -> Result<Vec<Vec<Candidate>>> {
    let groups = group(problems, config.solver);
    let solved = workers.map(groups.len(), |index| {
        let group = groups[index];
        common::run::check_interrupt()?;
        let drawn = match sampler {
            _ if !learned_start(group[0].0, config.solver) => None,
            Some(sampler) => {
                Some(sampler.sample(group, config.candidates, &config.sample, seed)?)
            }
            None => {
                return Err(common::Error::Bug(
                    "a learned solver without relation networks".into(),
                ));
            }
        };
        let candidate = |at: usize, chain: usize| {
            let (problem, id) = group[at];
            let stream = |purpose: &str| seed.stream(&format!("{purpose}/{id}/{chain}"));
            let drawn = drawn.as_ref().map(|drawn| drawn[at][chain].clone());
            match (config.solver, drawn) {
                (Solver::Hybrid, Some(centers)) => {
                    refine(problem, centers, config, &mut stream("repair"))
                }
                (_, Some(centers)) => Candidate::judged(problem, centers),
                (Solver::Reject, None) => {
                    Candidate::judged(problem, reject(problem, config.tries, &mut stream("start")))
                }
                (Solver::Analytic, None) => {
                    let mut centers = langevin(problem, config, &mut stream("start"));
                    repair(problem, &mut centers, config, &mut stream("repair"));
                    Candidate::judged(problem, centers)
                }
                (Solver::Learned | Solver::Construct | Solver::Hybrid, None) => {
                    let mut stream = stream("construct");
                    let centers = construct(problem, config.attempts, &mut stream);
                    Candidate::judged(
                        problem,
                        centers.unwrap_or_else(|| start(problem, &mut stream)),
                    )
                }
            }
        };
        let of_problem = |at: usize| (0..config.candidates).map(|c| candidate(at, c)).collect();
        Ok((0..group.len()).map(of_problem).collect::<Vec<Vec<_>>>())
    })?;
    Ok(solved.into_iter().flatten().collect())
}

/// Objects above which the hybrid solver only constructs: samples and gradient steps are of no use
/// in such crowds.
const CROWD: usize = 8;

/// Whether the problem's layouts start from samples of the relation networks.
fn learned_start(problem: &Problem, solver: Solver) -> bool {
    match solver {
        Solver::Learned => true,
        Solver::Hybrid => problem.len() <= CROWD,
        Solver::Analytic | Solver::Construct | Solver::Reject => false,
    }
}

/// Relations of the problems that one batch of chains holds at most, about.
const LEARNED_ROWS: usize = 128;

/// Neighbouring problems that are sampled together, each of the others alone. The batches are of about
/// equal size and even in number, so that two cores share the work; they do not depend on how
/// many there are.
fn group<'a>(problems: &'a [(&'a Problem, u64)], solver: Solver) -> Vec<&'a [(&'a Problem, u64)]> {
    let together = |(problem, _): &(&Problem, u64)| learned_start(problem, solver);
    let rows = |(problem, _): &(&Problem, u64)| problem.edges.len().max(1);
    let total: usize = problems.iter().filter(|entry| together(entry)).map(rows).sum();
    let share = total.div_ceil(2 * total.div_ceil(2 * LEARNED_ROWS).max(1));
    let mut groups = Vec::new();
    let (mut start, mut count) = (0, 0);
    for (index, entry) in problems.iter().enumerate() {
        count += rows(entry);
        let next = problems.get(index + 1);
        if count >= share || !together(entry) || next.is_none_or(|next| !together(next)) {
            groups.push(&problems[start..=index]);
            (start, count) = (index + 1, 0);
        }
    }
    groups
}

/// The second half of the hybrid solver: gradient steps on the hinge energies, repair, and
/// construction when relations are still broken.
pub fn refine(
    problem: &Problem,
    mut centers: Vec<[f64; 2]>,
    config: &SolveConfig,
    stream: &mut Stream,
) -> Candidate {
    descend(problem, &mut centers, config.refine_steps, config.step_size);
    repair(problem, &mut centers, config, stream);
    let repaired = Candidate::judged(problem, centers);
    if repaired.is_verified() {
        return repaired;
    }
    let constructed = construct(problem, config.attempts, stream)
        .map(|centers| Candidate::judged(problem, centers));
    match constructed {
        Some(other) if other.violated.len() < repaired.violated.len() => other,
        _ => repaired,
    }
}

/// Candidates best first: fewest broken relations, then the balance of the picture (distance of
/// the area-weighted mean centre from the frame's centre). Stable.
pub fn rank(problem: &Problem, candidates: &mut [Candidate]) {
    let balance = |candidate: &Candidate| {
        let (mut sum, mut area) = ([0.0; 2], 0.0);
        for (center, size) in candidate.centers.iter().zip(&problem.sizes) {
            let weight = size[0] * size[1];
            area += weight;
            sum = [sum[0] + weight * center[0], sum[1] + weight * center[1]];
        }
        (sum[0] / area).hypot(sum[1] / area)
    };
    candidates.sort_by(|a, b| {
        let key = a.violated.len().cmp(&b.violated.len());
        key.then_with(|| balance(a).total_cmp(&balance(b)))
    });
}

/// Random centres, as the diffusion's start: 0.5 · N(0, 1) in pose units, so it scales with the
/// frame.
fn start(problem: &Problem, stream: &mut Stream) -> Vec<[f64; 2]> {
    let mut centers: Vec<[f64; 2]> = (0..problem.len())
        .map(|_| problem.frame.from_pose([0.5 * stream.normal(), 0.5 * stream.normal()]))
        .collect();
    problem.impose_locks(&mut centers);
    centers
}

/// The analytic solver: gradient descent on the hinge energies with noise that fades out.
pub fn langevin(problem: &Problem, config: &SolveConfig, stream: &mut Stream) -> Vec<[f64; 2]> {
    let mut centers = start(problem, stream);
    let mut energy = Energy::default();
    for step in 0..config.steps {
        let done = step as f64 / config.steps as f64;
        let noise = if done < 0.8 { config.noise * (1.0 - done).powi(2) } else { 0.0 };
        energy.compute(problem, &centers);
        if energy.value == 0.0 {
            break;
        }
        energy.step(&mut centers, config.step_size);
        if noise > 0.0 {
            for center in &mut centers {
                *center = center.map(|v| v + noise * stream.normal());
            }
            problem.impose_locks(&mut centers);
        }
    }
    centers
}

/// Gradient descent on the hinge energies without noise, until all hold or `steps` are done.
pub fn descend(problem: &Problem, centers: &mut [[f64; 2]], steps: usize, step_size: f64) {
    let mut energy = Energy::default();
    for _ in 0..steps {
        energy.compute(problem, centers);
        if energy.value == 0.0 {
            return;
        }
        energy.step(centers, step_size);
    }
}

/// Min-conflicts repair (Minton et al. 1992), ours: an object that breaks a relation moves to the
/// place of lowest energy among random ones, if that is lower than where it is; then gradient steps
/// put the others right. Ends when all relations hold.
pub fn repair(
    problem: &Problem,
    centers: &mut [[f64; 2]],
    config: &SolveConfig,
    stream: &mut Stream,
) {
    const PLACES: usize = 48;
    if config.repairs == 0 {
        return;
    }
    let mut incident: Vec<Vec<Edge>> = vec![Vec::new(); problem.len()];
    for edge in &problem.edges {
        incident[edge.a].push(*edge);
        if let Some(b) = edge.b {
            incident[b].push(*edge);
        }
    }
    let mut energy = Energy::default();
    for _ in 0..config.repairs {
        let broken = violations(problem, &problem.rects(centers));
        if broken.is_empty() {
            return;
        }
        let mut objects: Vec<usize> =
            broken.iter().flat_map(|edge| [Some(edge.a), edge.b]).flatten().collect();
        objects.sort_unstable();
        objects.dedup();
        stream.shuffle(&mut objects);
        for object in objects {
            if problem.locked[object].is_some() {
                continue;
            }
            let mut best = centers[object];
            let mut least = energy.of_edges(problem, centers, &incident[object]);
            for _ in 0..PLACES {
                let pose = [2.0 * stream.uniform() - 1.0, 2.0 * stream.uniform() - 1.0];
                centers[object] = problem.frame.from_pose(pose);
                let value = energy.of_edges(problem, centers, &incident[object]);
                if value < least {
                    (best, least) = (centers[object], value);
                }
            }
            centers[object] = best;
        }
        descend(problem, centers, config.refine_steps, config.step_size);
    }
}
