//! A world of eight drawn shapes with keywords, and random word features: no asset is needed.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use common::assets::Assets;
use common::emoji::{Group, Picture};
use common::rng::Seed;
use poac::data::world::{Concept, Split};
use poac::data::{Images, Object, Vocabulary, World};
use poac::features::Features;

pub(crate) const WIDTH: usize = 16;
pub(crate) const SIZE: usize = 16;

pub(crate) fn picture(name: &str, group: Group, keywords: &[&str], shape: &str) -> Picture {
    Picture {
        symbol: name.into(),
        name: name.into(),
        group,
        subgroup: 0,
        tags: keywords.iter().map(|word| (*word).to_owned()).collect(),
        words: Vec::new(),
        svg: format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"128\" height=\"128\">{shape}</svg>"
        ),
    }
}

/// Eight discs of different place and colour; "peace" and "war" have four each.
pub(crate) fn world() -> World {
    let objects: Vec<Object> = (0..8)
        .map(|at| {
            let name = format!("thing {}", (b'a' + at as u8) as char);
            let shape = format!(
                "<circle cx=\"{}\" cy=\"{}\" r=\"30\" fill=\"rgb({},{},60)\"/>",
                30 + 70 * (at % 2),
                30 + 70 * (at / 2 % 2),
                30 * at,
                255 - 30 * at
            );
            let word = if at < 4 { "peace" } else { "war" };
            let keywords = BTreeSet::from([word.to_owned()]);
            Object { picture: picture(&name, Group::Objects, &[word], &shape), name, keywords }
        })
        .collect();
    let concept = |word: &str, objects: Vec<usize>| Concept {
        word: word.into(),
        objects,
        abstract_word: !word.starts_with("thing"),
        split: Split::Train,
    };
    let mut concepts = vec![concept("peace", vec![0, 1, 2, 3]), concept("war", vec![4, 5, 6, 7])];
    concepts.extend(objects.iter().enumerate().map(|(at, o)| concept(&o.name, vec![at])));
    concepts.sort_by(|a, b| a.word.cmp(&b.word));
    World { objects, concepts }
}

pub(crate) fn features(world: &World) -> Features {
    let names = world.objects.iter().map(|object| object.name.as_str());
    let words = world.concepts.iter().map(|concept| concept.word.as_str());
    let vocabulary = Vocabulary::new(names, words);
    let mut stream = Seed::new(5).stream("toy");
    let mut table = stream.normal_tensor((vocabulary.len(), WIDTH), 1.0).unwrap();
    let length = table.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
    table = table.broadcast_div(&length).unwrap();
    let tensors = BTreeMap::from([
        ("features.table".to_owned(), table),
        ("features.mean".to_owned(), stream.normal_tensor(4, 1.0).unwrap()),
        ("features.axes".to_owned(), stream.normal_tensor((4, WIDTH), 1.0).unwrap()),
    ]);
    Features::from_tensors(vocabulary, &tensors, &Assets::from_env()).unwrap()
}

pub(crate) fn images(world: &World) -> Images {
    Images::draw(world, SIZE).unwrap()
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn scalar(tensor: &Tensor) -> f32 {
    tensor.to_scalar().unwrap()
}
