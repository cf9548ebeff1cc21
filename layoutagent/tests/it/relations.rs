//! Relations, worlds and the consistency check.

use common::rng::Seed;
use layoutagent::conflict::conflict;
use layoutagent::data::worlds::{crowd, sparse, world};
use layoutagent::layout::{Edge, Frame, Problem};
use layoutagent::relations::{Relation, violations};

#[test]
fn generated_worlds_satisfy_their_own_relations() {
    let mut stream = Seed::new(1).stream("worlds");
    for count in 2..=6 {
        for _ in 0..100 {
            let world = world(count, &mut stream);
            let rects = world.problem.rects(&world.solution);
            assert_eq!(violations(&world.problem, &rects), []);
            let of = |r: Relation| world.problem.edges.iter().filter(|e| e.relation == r).count();
            assert_eq!((of(Relation::In), of(Relation::Cfree)), (count, count * (count - 1) / 2));
            assert_eq!(conflict(&world.problem), None);
        }
    }
    let crowd = crowd(50, &mut stream);
    assert_eq!(violations(&crowd.problem, &crowd.problem.rects(&crowd.solution)), []);
    let all = crowd.problem.edges.len();
    assert!(sparse(crowd, 0.3, &mut stream).problem.edges.len() < all);
}

/// A problem of small squares.
fn squares(count: usize, edges: &[(Relation, usize, usize)]) -> Problem {
    let edges = edges.iter().map(|&(relation, a, b)| match relation.is_unary() {
        true => Edge::unary(relation, a),
        false => Edge::binary(relation, a, b),
    });
    Problem::new(Frame::CCSP, vec![[0.3, 0.3]; count], edges.collect())
}

#[track_caller]
fn conflicting(problem: &Problem, expected: &[usize]) {
    let found = conflict(problem).expect("a conflict");
    let mut at: Vec<usize> = found
        .edges
        .iter()
        .map(|edge| problem.edges.iter().position(|other| other == edge).unwrap())
        .collect();
    at.sort_unstable();
    assert_eq!(at, expected, "{found:?}");
    // minimal: without any one of them the others are satisfiable
    for &leave in expected {
        let mut less = problem.clone();
        less.edges = expected.iter().filter(|&&i| i != leave).map(|&i| problem.edges[i]).collect();
        assert_eq!(conflict(&less), None, "without {leave}");
    }
}

#[test]
fn planted_conflicts_are_found_and_minimal() {
    use Relation::{
        AwayFrom, BottomIn, CloseTo, HAligned, LeftIn, LeftOf, On, RightIn, TopIn, TopOf,
    };
    conflicting(&squares(2, &[(TopIn, 0, 0), (LeftOf, 0, 1), (LeftOf, 1, 0)]), &[1, 2]);
    conflicting(
        &squares(4, &[(LeftOf, 0, 1), (LeftOf, 1, 2), (TopOf, 3, 0), (LeftOf, 2, 0)]),
        &[0, 1, 3],
    );
    conflicting(&squares(2, &[(HAligned, 0, 1), (TopOf, 0, 1)]), &[0, 1]);
    conflicting(&squares(1, &[(LeftIn, 0, 0), (RightIn, 0, 0)]), &[0, 1]);
    conflicting(&squares(2, &[(CloseTo, 0, 1), (AwayFrom, 1, 0)]), &[0, 1]);
    conflicting(&squares(2, &[(TopIn, 1, 0), (BottomIn, 0, 0), (On, 0, 1)]), &[0, 1, 2]);
}

#[test]
fn a_chain_wider_than_the_frame_is_a_conflict() {
    let mut edges: Vec<(Relation, usize, usize)> = (0..4).map(|i| (Relation::In, i, i)).collect();
    edges.extend((0..3).map(|i| (Relation::LeftOf, i, i + 1)));
    let mut problem = squares(4, &edges);
    assert_eq!(conflict(&problem), None);
    problem.sizes = vec![[0.9, 0.3]; 4];
    let found = conflict(&problem).unwrap();
    // the two ends must be inside the frame, and the chain holds between them
    assert_eq!(found.edges.len(), 5, "{found:?}");
}

#[test]
fn locks_take_part_in_conflicts() {
    let mut problem = squares(2, &[(Relation::LeftOf, 0, 1)]);
    problem.locked = vec![Some([1.0, 0.0]), Some([-1.0, 0.0])];
    let found = conflict(&problem).unwrap();
    assert_eq!((found.edges.len(), found.locked.len()), (1, 2));
    assert!(found.describe(&["cup".into(), "jar".into()]).contains("the lock of jar"));
}
