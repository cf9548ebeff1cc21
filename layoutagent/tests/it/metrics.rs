//! Metrics, energies, parser, NSR-1K: hand-worked numbers and properties.

use common::rng::Seed;
use layoutagent::data::nsr1k;
use layoutagent::data::worlds::world;
use layoutagent::eval::{
    alignment, out_of_frame, overlap, size_fidelity, solve_at, spatially_right,
};
use layoutagent::language::{canvas_sizes, objects, parse, product_scenes, relation_word};
use layoutagent::layout::{Edge, Frame, Problem, Rect};
use layoutagent::model::energy::Energy;
use layoutagent::relations::{Relation, violations};

#[test]
fn metrics_of_hand_worked_layouts() {
    let frame = Frame { width: 4.0, height: 4.0 };
    let rects = [Rect { x: 0.0, y: 0.0, w: 2.0, h: 2.0 }, Rect { x: 1.0, y: 0.0, w: 2.0, h: 1.0 }];
    // common area 1 · 1; areas 4 and 2
    let score = overlap(frame, &rects);
    assert!((score.ac_layout_gan - 0.75).abs() < 1e-12);
    assert!((score.layout_gan_pp - 0.375).abs() < 1e-12);
    assert!((score.layout_gan - 1.0 / 16.0).abs() < 1e-12);
    // vertical centres coincide: least difference 0
    assert_eq!(alignment(frame, &rects), 0.0);
    let apart = [rects[0], Rect { x: 1.5, y: 0.3, w: 1.1, h: 1.0 }];
    // least difference: tops 1 and 0.8, which is 0.05 of the canvas
    assert!((alignment(frame, &apart) + (1.0f64 - 0.05).ln()).abs() < 1e-12);
    let out = out_of_frame(frame, &[Rect { x: 2.0, y: 0.0, w: 2.0, h: 1.0 }]);
    assert!((out - 0.5).abs() < 1e-12);
    assert!((size_fidelity(&[2.0, 1.0], &[1.0, 1.0]) - 2f64.ln()).abs() < 1e-12);
    assert!((solve_at(1, 10, 3) - 0.3).abs() < 1e-12 && solve_at(10, 10, 1) == 1.0);
    assert!((solve_at(2, 4, 2) - (1.0 - 1.0 / 6.0)).abs() < 1e-12);
}

#[test]
fn energies_vanish_only_on_verified_layouts_and_have_the_right_gradient() {
    let mut stream = Seed::new(9).stream("energy");
    let mut energy = Energy::default();
    let mut checked = 0;
    for _ in 0..200 {
        let mut problem = world(3, &mut stream).problem;
        // in-front-of treats the height in common as fixed when it slides sideways
        let ours = Relation::ALL.into_iter().skip(Relation::LEARNED);
        for relation in ours.filter(|&relation| relation != Relation::InFrontOf) {
            let pair = stream.sample(3, 2);
            problem.edges.push(Edge::binary(relation, pair[0], pair[1]));
        }
        let centers: Vec<[f64; 2]> =
            (0..3).map(|_| [1.5 * stream.normal(), stream.normal()]).collect();
        energy.compute(&problem, &centers);
        let gradient = energy.gradient.clone();
        for object in 0..3 {
            for axis in 0..2 {
                let mut at = |d: f64| {
                    let mut moved = centers.clone();
                    moved[object][axis] += d;
                    energy.compute(&problem, &moved);
                    energy.value
                };
                let (step, value) = (1e-6, at(0.0));
                let (right, left) = ((at(step) - value) / step, (value - at(-step)) / step);
                // away from kinks, where a relation changes its axis
                if (right - left).abs() < 1e-3 {
                    assert!((gradient[object][axis] - right).abs() < 1e-3, "{problem:?}");
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 900, "{checked}");
    for relation in Relation::ALL {
        let edge = if relation.is_unary() {
            Edge::unary(relation, 0)
        } else {
            Edge::binary(relation, 0, 1)
        };
        let problem = Problem::new(Frame::CCSP, vec![[0.4, 0.3], [0.8, 0.6]], vec![edge]);
        for _ in 0..300 {
            let centers: Vec<[f64; 2]> =
                (0..2).map(|_| [0.7 * stream.normal(), 0.5 * stream.normal()]).collect();
            energy.compute(&problem, &centers);
            let broken = violations(&problem, &problem.rects(&centers));
            assert!(energy.value > 0.0 || broken.is_empty(), "{relation} at {centers:?}");
        }
    }
}

#[test]
fn the_parser_reads_simple_english() {
    let parsed = parse("A laptop on a desk. A coffee cup to the right of the laptop.").unwrap();
    assert_eq!(parsed.phrases, ["laptop", "desk", "coffee"]);
    let words: Vec<(Relation, usize, Option<usize>)> =
        parsed.statements.iter().map(|s| (s.relation, s.a, s.b)).collect();
    let expected = [
        (Relation::On, 0, Some(1)),
        (Relation::Upward, 0, Some(1)),
        (Relation::Leftward, 0, Some(2)),
    ];
    assert_eq!(words, expected);
    let parsed = parse("a hot dog under a stop sign, a cat in the center").unwrap();
    assert_eq!(parsed.phrases, ["hot dog", "stop sign", "cat"]);
    assert_eq!(parsed.statements[0].b, Some(0));
    assert_eq!(parsed.statements[1].relation, Relation::CenterIn);
    assert!(parse("a cup to the left of a flurble.").unwrap_err().to_string().contains("flurble"));
    assert_eq!(relation_word("To the right of").unwrap(), (Relation::Leftward, true));
    assert_eq!(relation_word("TOP_OF").unwrap(), (Relation::TopOf, false));
    assert!(relation_word("hovering").unwrap_err().to_string().contains("left-of, top-of"));
}

#[test]
fn sizes_keep_their_ratios_and_fit_the_canvas() {
    let frame = Frame::of_aspect(1.0);
    let sizes = canvas_sizes(frame, &[[1.0, 0.5], [0.25, 0.5]]);
    assert!((sizes[0][0] / sizes[1][0] - 4.0).abs() < 1e-9);
    let area: f64 = sizes.iter().map(|[w, h]| w * h).sum();
    assert!(area <= 0.35 * 9.0 + 1e-9 && sizes[0][0] <= 0.8 * 3.0 + 1e-9);
    // a ring beside a sofa stays visible
    let sizes = canvas_sizes(frame, &[[2.0, 0.9], [0.025, 0.03]]);
    assert!(sizes[1][1] / sizes[0][0] >= 1.0 / 12.0 - 1e-9);
}

#[test]
fn tables_are_complete() {
    assert_eq!(product_scenes().len(), 40);
    assert!(objects::table().len() >= 150);
    for scene in product_scenes() {
        let parsed = parse(scene.text).unwrap();
        assert!(parsed.phrases.len() >= 2 && !parsed.statements.is_empty(), "{}", scene.text);
    }
}

#[test]
fn nsr1k_is_read_with_its_traps() {
    let Some(path) = common::testing::asset_or_skip("nsr1k-spatial", "spatial.train.json") else {
        return;
    };
    let split = nsr1k::read(&path).unwrap();
    assert_eq!((split.records.len(), split.dropped), (738, 0));
    let frame = Frame::of_aspect(1.0);
    let right = split.records.iter().filter(|record| {
        let [a, b] = [record.obj1.1, record.obj2.1].map(|rect| frame.from_canvas(rect));
        spatially_right(&record.relation, a, b)
    });
    assert_eq!(right.count(), 738);
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let mut records: serde_json::Value = serde_json::from_str(&text).unwrap();
    for record in records.as_array_mut().unwrap() {
        for object in ["obj1", "obj2"] {
            let rect = &mut record[object][1];
            for axis in 0..2 {
                let far = rect[axis].as_f64().unwrap() + rect[axis + 2].as_f64().unwrap();
                rect[axis + 2] = far.into();
            }
        }
    }
    let corners = folder.path().join("corners.json");
    std::fs::write(&corners, records.to_string()).unwrap();
    let error = nsr1k::read(&corners).unwrap_err().to_string();
    assert!(error.contains("corners.json") && error.contains("[x, y, w, h]"), "{error}");
    // boxes without area are left out, those that stick out are cut
    let user = folder.path().join("user.json");
    let record = |rect: &str| {
        format!(
            "{{\"id\":1,\"image_id\":1,\"obj1\":[\"cat\",{rect}],\"obj2\":[\"dog\",[0.1,0.1,0.2,0.2]],\
             \"prompt\":\"\",\"relation\":\"left\",\"type\":\"natural\"}}"
        )
    };
    let rows = [record("[0.1,0.1,0,0.2]"), record("[-0.1,0.1,0.3,0.2]")].join(",");
    std::fs::write(&user, format!("[{rows}]")).unwrap();
    let split = nsr1k::read(&user).unwrap();
    assert_eq!((split.records.len(), split.dropped), (1, 1));
    assert_eq!(split.records[0].obj1.1[0], 0.0);
}
