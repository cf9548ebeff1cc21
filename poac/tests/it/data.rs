//! Objects, splits, tokens, gate, pictures.

use common::emoji::Group;
use common::rng::Seed;
use poac::data::pairs::{PairSource, example};
use poac::data::world::Split;
use poac::data::{Gate, Style, Vocabulary, World, WorldOptions, clean_prompt};
use poac::eval::{chance, concept_hits, distinct_n, object_scores};
use poac::model::Codec;
use poac::png;
use proptest::prelude::*;

use crate::toy::{self, picture, values};

#[test]
fn variants_become_one_object_and_signs_are_left_out() {
    let plain = |name: &str, group: Group, words: &[&str]| picture(name, group, words, "");
    let pictures = [
        plain("person running", Group::People, &["sport", "speed"]),
        plain("woman running", Group::People, &["sport", "marathon"]),
        plain("kiss", Group::People, &["love", "romance"]),
        plain("kiss: woman, man", Group::People, &["love"]),
        plain("one o’clock", Group::Travel, &["time"]),
        plain("one-thirty", Group::Travel, &["time"]),
        plain("OK button", Group::Symbols, &["fine"]),
        plain("red heart", Group::Smileys, &["love", "romance"]),
        plain("medal", Group::Objects, &["sport", "victory"]),
        plain("trophy", Group::Objects, &["victory", "sport"]),
    ];
    let options = WorldOptions { test: 0.5, validation: 0.0, ..WorldOptions::default() };
    let world = World::new(&pictures, &Gate::default(), &options, Seed::new(1)).unwrap();
    let names: Vec<&str> = world.objects.iter().map(|object| object.name.as_str()).collect();
    assert_eq!(names, ["person running", "kiss", "clock face", "red heart", "medal", "trophy"]);
    assert!(world.objects[0].keywords.contains("marathon"));
    assert_eq!(world.concept("love").unwrap().objects, [1, 3]);
    // every held-out word is abstract and has two objects
    for concept in world.split(Split::Test) {
        assert!(concept.abstract_word && concept.objects.len() >= 2, "{concept:?}");
    }
    assert!(world.split(Split::Test).count() >= 1);
}

#[test]
fn words_of_a_held_out_family_are_not_trained_on() {
    let words = ["celebration", "celebrate", "victory", "victorious", "magic", "magical"];
    let pictures: Vec<_> = (0..6)
        .map(|at| {
            picture(&format!("thing {}", "abcdef".split_at(at).1), Group::Objects, &words, "")
        })
        .collect();
    let options = WorldOptions { test: 0.5, validation: 0.0, ..WorldOptions::default() };
    let world = World::new(&pictures, &Gate::default(), &options, Seed::new(2)).unwrap();
    for test in world.split(Split::Test) {
        let family: String = test.word.chars().take(5).collect();
        let trained = world.split(Split::Train).find(|concept| concept.word.starts_with(&family));
        assert!(trained.is_none(), "{} stands beside {:?}", test.word, trained);
    }
}

#[test]
fn the_gate_finds_abstract_words_and_ratings_overrule_the_list() {
    let gate = Gate::default();
    assert_eq!(gate.abstract_words("an old man with Wisdom, and peace"), ["wisdom", "peace"]);
    assert!(gate.abstract_words("a red car in the street").is_empty());
    let file = tempfile::NamedTempFile::with_suffix(".csv").unwrap();
    std::fs::write(file.path(), "Word,Concreteness\nwisdom,4.5\ncar,1.2\n").unwrap();
    let rated = Gate::with_ratings(file.path()).unwrap();
    assert!(!rated.is_abstract("wisdom") && rated.is_abstract("CAR") && rated.is_abstract("peace"));
    std::fs::write(file.path(), "Word,Concreteness\nwisdom,9\n").unwrap();
    let error = Gate::with_ratings(file.path()).unwrap_err();
    assert!(error.to_string().contains("row 2") && error.exit_code() == 3, "{error}");
}

#[test]
fn names_of_several_words_are_one_token() {
    let vocabulary = Vocabulary::new(["balance scale", "scale"], ["justice"]);
    let (ids, unknown) = vocabulary.encode("A balance scale, and xyz justice");
    let words: Vec<&str> =
        ids.iter().map(|&id| vocabulary.tokens()[id as usize].as_str()).collect();
    assert_eq!(words, ["a", "balance scale", ",", "and", "justice"]);
    assert_eq!(unknown, ["xyz"]);
    assert_eq!(vocabulary.decode(&ids), "a balance scale, and justice");
    assert_eq!((vocabulary.object(ids[1]), vocabulary.object(ids[4])), (Some(0), None));
    assert!(!vocabulary.is_content(ids[0]) && vocabulary.is_content(ids[1]));
}

#[test]
fn a_pair_ends_with_its_style_and_keeps_the_prompt_apart() {
    let world = toy::world();
    let features = toy::features(&world);
    let vocabulary = features.vocabulary();
    let source = PairSource::new(&world, vocabulary, None);
    let mut stream = Seed::new(3).stream("pairs");
    for _ in 0..50 {
        let pair = source.draw(&mut stream);
        assert_eq!(*pair.ids.last().unwrap(), Vocabulary::EOS);
        let (x, y) = pair.ids.split_at(pair.prompt);
        let (x, y) = (vocabulary.decode(x), vocabulary.decode(y));
        assert!(x.ends_with("rephrase:"), "{x}");
        let concept = world.concepts.iter().rev().find(|c| x.contains(&c.word)).unwrap();
        let named = |object: usize| y.contains(&world.objects[object].name);
        assert!(concept.objects.iter().any(|&object| named(object)), "{x} {y}");
        let style = Style::ALL.into_iter().find(|style| y.ends_with(style.word())).unwrap();
        assert!(x.contains(style.word()));
    }
    let pair = example(vocabulary, "a picture of peace", "thing a, in grey");
    assert_eq!(vocabulary.decode(&pair.ids[pair.prompt..]), "thing a, in grey");
}

#[test]
fn scores_of_objects_follow_their_definition() {
    let scores = object_scores(&[1, 2, 3], &[2, 7]);
    assert_eq!((scores.f1, scores.attainable), (0.4, 0.5));
    assert_eq!((scores.hit1, scores.hit3), (0.0, 1.0));
    assert_eq!(object_scores(&[], &[1]).f1, 0.0);
    assert_eq!(distinct_n(&["a b a b".into()], 2), 2.0 / 3.0);
}

#[test]
fn a_real_picture_hits_its_own_concept_and_chance_is_known() {
    let world = toy::world();
    let rows = candle_core::Tensor::eye(8, candle_core::DType::F32, &candle_core::Device::Cpu);
    let rows = rows.unwrap();
    let (own, other): (&[usize], &[usize]) = (&[0], &[1]);
    let first = rows.narrow(0, 0, 2).unwrap();
    assert_eq!(concept_hits(&first, &rows, &[own, own], 1).unwrap(), [1.0, 0.0]);
    assert_eq!(concept_hits(&first, &rows, &[other, other], 1).unwrap(), [0.0, 1.0]);
    assert!((chance(&world, &[0, 1, 2, 3], 1) - 0.5).abs() < 1e-12);
    assert_eq!(chance(&world, &[0, 1, 2, 3], 5), 1.0);
}

#[test]
fn a_concept_score_sets_own_texts_against_other_concepts() {
    let rows = |rows: &[[f32; 2]]| {
        let shape = (rows.len(), 2);
        candle_core::Tensor::from_vec(rows.concat(), shape, &candle_core::Device::Cpu).unwrap()
    };
    let pictures = rows(&[[1.0, 0.0], [0.6, 0.8]]);
    let own = [rows(&[[1.0, 0.0], [0.0, 1.0]]), rows(&[[0.0, 1.0]])];
    let words = rows(&[[1.0, 0.0], [0.0, 1.0]]);
    let texts = poac::eval::ConceptTexts { words, own: own.to_vec() };
    let scores = poac::eval::concept_scores(&pictures, &texts).unwrap();
    // (1 + 0) / 2 - 0 and 0.8 - 0.6
    assert!((scores[0] - 0.5).abs() < 1e-6 && (scores[1] - 0.2).abs() < 1e-6, "{scores:?}");
}

#[test]
fn a_short_prompt_names_concept_and_style() {
    let short = poac::data::pairs::short;
    assert_eq!(short("a picture of", "peace", Style::Grey), "a picture of peace, in grey");
    let world = toy::world();
    let features = toy::features(&world);
    let source = PairSource::new(&world, features.vocabulary(), None);
    let pair = source.draw(&mut Seed::new(1).stream("pairs"));
    let x = features.vocabulary().decode(&pair.ids[..pair.prompt]);
    assert!(world.concepts.iter().any(|concept| x.contains(&concept.word)), "{x}");
}

#[test]
fn a_contact_sheet_escapes_its_words() {
    let picture =
        candle_core::Tensor::zeros((3, 8, 8), candle_core::DType::F32, &candle_core::Device::Cpu);
    let row = poac::bench::sheet::SheetRow {
        concept: "<script>alert(1)</script>".into(),
        prompt: "a \"dove\" & <img src=x onerror=alert(1)>\u{1b}[31m".into(),
        pictures: vec![picture.unwrap()],
    };
    let sheet = poac::bench::sheet::Sheet { columns: vec!["<b>raw</b>".into()], rows: vec![row] };
    let svg = sheet.svg().unwrap();
    for raw in ["<script", "<img", "<b>", "\u{1b}"] {
        assert!(!svg.contains(raw), "{raw:?} is in the sheet");
    }
    assert!(svg.contains("&lt;script&gt;") && svg.contains("&quot;dove&quot; &amp;"));
}

#[test]
fn grey_pictures_have_one_brightness_and_white_stays_white() {
    let world = toy::world();
    let images = toy::images(&world);
    let colour = images.values(2, Style::Colour);
    let grey = images.values(2, Style::Grey);
    let area = toy::SIZE * toy::SIZE;
    assert_eq!(grey[..area], grey[area..2 * area]);
    assert!(colour[..area] != colour[area..2 * area]);
    assert!(colour.iter().all(|value| (-1.0..=1.0).contains(value)));
    assert_eq!(colour[area / 2], 1.0);
}

#[test]
fn the_full_code_gives_pictures_back() {
    let world = toy::world();
    let images = toy::images(&world);
    let all: Vec<_> = (0..8).map(|at| (at, Style::Colour)).collect();
    let pictures = images.batch(&all).unwrap();
    let error = |components: usize| {
        let codec = Codec::fit(&pictures, components, Seed::new(1)).unwrap();
        let back = codec.decode(&codec.encode(&pictures).unwrap()).unwrap();
        let (back, real) = (values(&back), values(&pictures));
        let off: f32 = back.iter().zip(&real).map(|(a, b)| (a - b).powi(2)).sum();
        off / real.len() as f32
    };
    assert!(error(40) < 1e-4, "{}", error(40));
    assert!(error(2) > error(8) && error(8) > error(32));
}

#[test]
fn texts_in_a_png_come_back() {
    let world = toy::world();
    let images = toy::images(&world);
    let batch = images.batch(&[(0, Style::Colour)]).unwrap();
    let notes = [("prompt", "<b>π & peace</b>"), ("seed", "7")];
    let bytes = png::scaled(&batch.get(0).unwrap(), 2, &notes).unwrap();
    let found = png::texts(&bytes).unwrap();
    let expected: Vec<_> = notes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    assert_eq!(found, expected);
    let image = image::load_from_memory(&bytes).unwrap().to_rgb8();
    assert_eq!(image.dimensions(), (2 * toy::SIZE as u32, 2 * toy::SIZE as u32));
    for end in 0..bytes.len().min(80) {
        let _ = png::texts(&bytes[..end]);
    }
    assert!(png::texts(b"no picture").is_err());
}

#[test]
fn prompts_are_cleaned_or_refused() {
    assert_eq!(clean_prompt(" a\tb\u{7}\n c ").unwrap(), "a b c");
    assert_eq!(clean_prompt("\n\t ").unwrap_err().exit_code(), 3);
    let error = clean_prompt(&"x".repeat(10_000)).unwrap_err();
    assert!(error.to_string().contains("10000 characters"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_text_breaks_gate_or_tokens(text in ".{0,200}") {
        let vocabulary = Vocabulary::new(["balance scale"], ["peace"]);
        let (ids, unknown) = vocabulary.encode(&text);
        prop_assert!(ids.iter().all(|&id| (id as usize) < vocabulary.len()));
        prop_assert!(unknown.iter().all(|word| !word.contains(' ')));
        for word in Gate::default().abstract_words(&text) {
            prop_assert!(text.to_lowercase().contains(word.split(' ').next().unwrap()));
        }
    }
}
