//! Relations, worlds and the consistency check.

use common::rng::Seed;
use layoutagent::conflict::conflict;
use layoutagent::data::worlds::{crowd, sparse, world};
use layoutagent::layout::{Edge, Frame, Problem, Rect};
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

/// Boxes of `make_relations.py`.
fn random_boxes(state: &mut u64) -> Vec<Rect> {
    let mut next = || {
        *state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as f64 / 2f64.powi(31)
    };
    (0..3)
        .map(|_| Rect {
            x: 3.4 * next() - 1.7,
            y: 2.4 * next() - 1.2,
            w: 0.15 + 1.1 * next(),
            h: 0.15 + 0.8 * next(),
        })
        .collect()
}

#[test]
fn ten_thousand_random_layouts_agree_with_a_second_statement_of_the_table() {
    let path = common::testing::golden(env!("CARGO_MANIFEST_DIR"), "relations.json");
    let golden: serde_json::Value = common::testing::golden_json(&path);
    let (mut state, mut fold) = (2024u64, 0xcbf2_9ce4_8422_2325u64);
    let mut counts = [0u64; Relation::LEARNED];
    for number in 1..=10_000usize {
        let rects = random_boxes(&mut state);
        for (k, relation) in Relation::ALL.into_iter().take(Relation::LEARNED).enumerate() {
            let pairs: Vec<(usize, usize)> = if relation.is_unary() {
                (0..3).map(|i| (i, i)).collect()
            } else {
                (0..3).flat_map(|i| (0..3).filter(move |&j| j != i).map(move |j| (i, j))).collect()
            };
            for (i, j) in pairs {
                let holds = relation.holds(Frame::CCSP, rects[i], Some(rects[j]));
                counts[k] += u64::from(holds);
                fold = (fold ^ (2 * k as u64 + u64::from(holds))).wrapping_mul(0x0100_0000_01b3);
            }
        }
        if number % 100 == 0 {
            let expected = &golden["checksums_per_100"][number / 100 - 1];
            assert_eq!(format!("{fold:016x}"), expected.as_str().unwrap(), "layout {number}");
        }
    }
    assert_eq!(serde_json::json!(counts), golden["counts"]);
    assert!(counts.iter().all(|&count| count > 100), "{counts:?}");
}

#[test]
fn relations_of_ours_hold_where_they_should() {
    let rect = |x: f64, y: f64, w: f64, h: f64| Rect { x, y, w, h };
    let holds = |r: Relation, a: Rect, b: Rect| r.holds(Frame::CCSP, a, Some(b));
    let desk = rect(0.0, -0.5, 1.4, 0.6);
    for d in [-1e-3, 1e-3] {
        // threshold ± d: the lower edge 0.05 above the desk; 0.8 of the width supported
        assert_eq!(holds(Relation::On, rect(0.0, 0.05 + d, 0.4, 0.4), desk), d < 0.0);
        assert_eq!(holds(Relation::On, rect(0.58 + d, 0.0, 0.4, 0.4), desk), d < 0.0);
        assert_eq!(holds(Relation::Inside, rect(0.5 + d, -0.5, 0.4, 0.4), desk), d < 0.0);
        let ground = rect(1.2, -0.65 + 0.05 + d, 0.3, 0.3);
        assert_eq!(holds(Relation::SameBaseline, ground, desk), d < 0.0);
        assert_eq!(holds(Relation::Leftward, rect(-1.0, 0.5 + d, 0.1, 0.1), desk), d < 0.0);
        assert_eq!(holds(Relation::Upward, rect(0.5 + d, 0.0, 0.1, 0.1), desk), d < 0.0);
        assert_eq!(holds(Relation::Beside, rect(-1.4 - d, -0.5, 0.4, 0.4), desk), d < 0.0);
        assert_eq!(holds(Relation::InFrontOf, rect(0.0, -0.6 + d, 0.4, 0.4), desk), d < 0.0);
    }
    assert!(!holds(Relation::InFrontOf, desk, desk));
}
