//! Segmentation on composites of held-out emoji: intersection over union by box and by point.

use std::time::Instant;

use common::report::{Report, Role, Row};
use common::rng::Seed;
use common::{Result, emoji};

use super::{Parts, mean_row};
use crate::model::segmenter::SIDE;
use crate::segment;
use crate::segment::composites::{Composite, Prompt};
use crate::segment::fit::{held_out, iou, predict};

pub(super) fn run(parts: &Parts<'_>, report: &mut Report) -> Result<()> {
    let count = parts.config.bench.composites;
    if count == 0 {
        return Ok(());
    }
    let pictures = emoji::load(&parts.context.assets)?;
    let model = segment::bundled()?;
    for by_point in [false, true] {
        let set = held_out(&pictures, count, by_point, Seed::new(parts.seed))?;
        let dataset = format!("held-out emoji, {}", if by_point { "points" } else { "boxes" });
        let started = Instant::now();
        let masks = predict(&model, &set)?;
        let seconds = started.elapsed().as_secs_f64();
        let mut add = |method: &str, role: Role, masks: &[Vec<bool>], note: &str| {
            let values: Vec<f64> =
                set.iter().zip(masks).map(|(composite, mask)| iou(&composite.mask, mask)).collect();
            let row = Row {
                claim: "objects are cut out of pictures".into(),
                dataset: dataset.clone(),
                method: method.into(),
                role,
                metric: "IoU".into(),
                note: Some(note.into()),
                seconds: Some(seconds),
                ..Row::default()
            };
            let name = format!("bench/segment/{dataset}/{method}");
            let mut stream = Seed::new(parts.seed).stream(&name);
            report.rows.push(mean_row(row, &values, parts.config.bench.resamples, &mut stream));
        };
        let note = "bundled network; composites of emoji that it was not trained on";
        add("U-Net", Role::Ours, &masks, note);
        let colors: Vec<Vec<bool>> = set.iter().map(nearest_color).collect();
        let note = "pixels nearer to the prompt's mean colour than to that of the picture's border";
        add("nearest colour", Role::Baseline, &colors, note);
        if !by_point {
            let boxes: Vec<Vec<bool>> = set.iter().map(|c| c.prompt.filled()).collect();
            add("the box itself", Role::Control, &boxes, "no look at the picture");
        }
    }
    Ok(())
}

/// A simple strong rule: two mean colours, that of the middle of the prompt and that of what lies
/// around it.
fn nearest_color(composite: &Composite) -> Vec<bool> {
    let ([left, top, right, bottom], bounded) = match composite.prompt {
        Prompt::Box(edges) => (edges, true),
        Prompt::Point([x, y]) => ([x - 4.0, y - 4.0, x + 4.0, y + 4.0], false),
    };
    let center = |at: usize| [(at % SIDE) as f64 + 0.5, (at / SIDE) as f64 + 0.5];
    let in_box = |at: usize| {
        let [x, y] = center(at);
        x >= left && x < right && y >= top && y < bottom
    };
    let in_middle = |at: usize| {
        let [x, y] = center(at);
        let (w, h) = ((right - left) / 4.0, (bottom - top) / 4.0);
        x >= left + w && x < right - w && y >= top + h && y < bottom - h
    };
    let color = |at: usize| {
        let pixel = composite.image.get_pixel((at % SIDE) as u32, (at / SIDE) as u32);
        [0, 1, 2].map(|channel| f64::from(pixel.0[channel]))
    };
    let mean = |keep: &dyn Fn(usize) -> bool| {
        let (mut sum, mut count) = ([0.0; 3], 0.0f64);
        for at in (0..SIDE * SIDE).filter(|&at| keep(at)) {
            let own = color(at);
            (0..3).for_each(|channel| sum[channel] += own[channel]);
            count += 1.0;
        }
        sum.map(|v| v / count.max(1.0))
    };
    let (object, ground) = (mean(&in_middle), mean(&|at| !in_box(at)));
    let distance =
        |a: [f64; 3], b: [f64; 3]| -> f64 { a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum() };
    let nearer = |at: usize| distance(color(at), object) < distance(color(at), ground);
    (0..SIDE * SIDE).map(|at| nearer(at) && (!bounded || in_box(at))).collect()
}
