//! Segmentation: gradients, measures, cut-outs.

use common::nn::Builder;
use common::rng::Seed;
use common::testing::gradients::assert_all_grads;
use image::{Rgba, RgbaImage};
use layoutagent::model::segmenter::{SIDE, Segmenter};
use layoutagent::segment::composites::Composite;
use layoutagent::segment::fit::{held_out, iou, loss, predict};
use layoutagent::segment::{Prompt, bundled, cut_out};

/// A red disc on noise.
fn disc() -> Composite {
    let mut stream = Seed::new(3).stream("ground");
    let inside = |x: u32, y: u32| (f64::from(x) - 30.0).hypot(f64::from(y) - 34.0) < 14.0;
    let side = SIDE as u32;
    let image = RgbaImage::from_fn(side, side, |x, y| match inside(x, y) {
        true => Rgba([210, 30, 40, 255]),
        false => Rgba([100 + stream.below(60) as u8, 120, 130, 255]),
    });
    let mask = (0..side * side).map(|at| inside(at % side, at / side)).collect();
    Composite { image, mask, prompt: Prompt::Box([16.0, 20.0, 44.0, 48.0]) }
}

#[test]
fn every_tensor_of_the_segmenter_gets_a_gradient() {
    let mut builder = Builder::seeded(Seed::new(1));
    let model = Segmenter::new(&mut builder).unwrap();
    let parameters = builder.finish();
    let point = Composite { prompt: Prompt::Point([30.0, 34.0]), ..disc() };
    assert_all_grads(&loss(&model, &[disc(), point]).unwrap(), &parameters);
}

#[test]
fn intersection_over_union_by_hand() {
    assert_eq!(iou(&[true, true, false, false], &[true, false, true, false]), 1.0 / 3.0);
    assert_eq!((iou(&[false], &[false]), iou(&[true], &[false])), (1.0, 0.0));
}

#[test]
fn the_bundled_network_finds_held_out_emoji() {
    if common::testing::asset_or_skip("noto-emoji", "icons.json").is_none() {
        return;
    }
    let pictures = common::emoji::load(&common::assets::Assets::from_env()).unwrap();
    for by_point in [false, true] {
        let set = held_out(&pictures, 20, by_point, Seed::new(9)).unwrap();
        let masks = predict(&bundled().unwrap(), &set).unwrap();
        let mean = set.iter().zip(&masks).map(|(c, mask)| iou(&c.mask, mask)).sum::<f64>() / 20.0;
        // a mask of nothing has 0, one of everything about 0.2
        assert!(mean > if by_point { 0.25 } else { 0.5 }, "IoU {mean}, by point: {by_point}");
    }
}

#[test]
fn a_disc_is_cut_out_as_one_part() {
    let disc = disc();
    let cut = cut_out(&bundled().unwrap(), &disc.image, disc.prompt).unwrap();
    let (width, height) = cut.dimensions();
    assert!((22..=40).contains(&width) && (22..=40).contains(&height), "{width} x {height}");
}
