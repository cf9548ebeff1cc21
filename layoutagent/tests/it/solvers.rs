//! Solvers: what they return is verified, locked objects stay, symmetries hold.

use common::optim::Workers;
use common::rng::Seed;
use layoutagent::data::worlds::{crowd, sparse, worlds};
use layoutagent::layout::Problem;
use layoutagent::solve::{Candidate, SolveConfig, Solver, solve};

fn solve_all(problems: &[&Problem], config: &SolveConfig) -> Vec<Vec<Candidate>> {
    let problems: Vec<(&Problem, u64)> = problems.iter().copied().zip(0..).collect();
    solve(&problems, config, None, Seed::new(3), &Workers::new(1).unwrap()).unwrap()
}

fn solved(candidates: &[Vec<Candidate>]) -> usize {
    candidates.iter().filter(|chains| chains.iter().any(Candidate::is_verified)).count()
}

#[test]
fn the_analytic_solver_solves_worlds_and_beats_rejection() {
    let mut stream = Seed::new(2).stream("worlds");
    let worlds: Vec<_> = (2..=5).flat_map(|n| worlds(n, 5, &mut stream)).collect();
    let problems: Vec<&Problem> = worlds.iter().map(|world| &world.problem).collect();
    let run =
        |solver| solved(&solve_all(&problems, &SolveConfig { solver, ..SolveConfig::default() }));
    let (analytic, reject) = (run(Solver::Analytic), run(Solver::Reject));
    assert!(analytic >= 18 && reject < analytic, "{analytic} {reject} of 20");
}

#[test]
fn locked_objects_stay_bit_identical() {
    let mut stream = Seed::new(4).stream("worlds");
    let mut world = worlds(4, 1, &mut stream).remove(0);
    world.problem.locked[1] = Some(world.solution[1]);
    for solver in [Solver::Analytic, Solver::Reject] {
        let config = SolveConfig { solver, ..SolveConfig::default() };
        for candidate in &solve_all(&[&world.problem], &config)[0] {
            assert_eq!(candidate.centers[1], world.solution[1]);
        }
    }
}

#[test]
fn crowds_of_twenty_keep_most_relations() {
    let mut stream = Seed::new(5).stream("crowd");
    let world = sparse(crowd(20, &mut stream), 0.3, &mut stream);
    let config = SolveConfig { solver: Solver::Analytic, ..SolveConfig::default() };
    let candidates = &solve_all(&[&world.problem], &config)[0];
    let fewest = candidates.iter().map(|c| c.violated.len()).min().unwrap();
    assert!(fewest * 50 <= world.problem.edges.len(), "{fewest}");
}
