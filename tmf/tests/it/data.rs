//! Prompts, candidate lists, held-out events, catalogues, LLaRA's rule.

use std::collections::HashSet;

use common::rng::Seed;
use common::testing::asset_or_skip;
use tmf::baselines::{Baseline, scores};
use tmf::data::candidates::draw;
use tmf::data::synthetic::{CANDIDATES, Signal, Sizes, VALUES, generate};
use tmf::data::{Dataset, Item, Part, Step, movielens};
use tmf::eval::llara_choice;
use tmf::prompt::{Answer, IGNORED, PromptOptions, Prompter};
use tmf::tokens::Vocabulary;

fn data(target: Option<u32>) -> Dataset {
    let titles = ["Star Wars", "Alien", "Aliens [ItemEmb] <b_buy>", "Heat", "Up", "Jaws"];
    let items = titles.map(|t| Item { id: t.into(), title: t.into(), ..Item::default() });
    let step = |item, behaviour| Step { item, behaviour };
    Dataset {
        items: items.to_vec(),
        users: vec!["a".into(), "b".into()],
        behaviours: vec!["view".into(), "buy".into()],
        target,
        sequences: vec![
            vec![step(0, 0), step(1, 1), step(2, 0), step(3, 1), step(4, 0)],
            vec![step(1, 0), step(2, 1)],
        ],
        ..Dataset::default()
    }
}

fn prompter(data: &Dataset, options: PromptOptions) -> Prompter {
    let texts = Prompter::texts(data, &data.sequences);
    let vocabulary = Vocabulary::train(&texts, 100, &data.behaviours).unwrap();
    Prompter::new(vocabulary, data, options).unwrap()
}

#[test]
fn the_last_two_events_of_the_target_are_held_out() {
    let any = data(None);
    let questions = any.questions(Part::Test);
    assert_eq!(questions.len(), 1, "user b has too few events");
    assert_eq!((questions[0].answer, questions[0].history.len()), (4, 4));
    assert_eq!(any.questions(Part::Valid)[0].answer, 3);
    assert_eq!(any.before(Part::Valid)[0].len(), 3);
    let buys = data(Some(1));
    assert_eq!(buys.questions(Part::Test)[0].answer, 3);
    assert_eq!(buys.questions(Part::Valid)[0].answer, 1);
    assert_eq!(buys.before(Part::Valid)[0].len(), 1);
    assert_eq!(buys.before(Part::Valid)[1].len(), 2);
}

fn by_title() -> PromptOptions {
    PromptOptions { answer: Answer::Title, titles: true, ..PromptOptions::default() }
}

#[test]
fn items_are_asked_before_they_are_shown() {
    for (target, behaviour_tokens) in
        [(None, true), (None, false), (Some(1), true), (Some(1), false)]
    {
        let data = data(target);
        let prompter =
            prompter(&data, PromptOptions { behaviour_tokens, ..PromptOptions::default() });
        let v = &prompter.vocabulary;
        let history = &data.sequences[0][..4];
        let row = prompter.example(history, None, Step { item: 4, behaviour: 1 }, 0, true);
        assert_eq!(row.asked.iter().map(|ask| ask.1).collect::<Vec<_>>(), [1, 2, 3, 4]);
        for (at, &(place, _)) in row.asked.iter().enumerate() {
            // everything up to the asking token: the events before, and the behaviour only if named
            let shown = row.events.iter().filter(|event| event.0 <= place).count();
            assert_eq!(shown, at + 1);
            let token = row.ids[place];
            match (target, behaviour_tokens) {
                (None, _) => assert_eq!(token, v.item),
                (Some(_), false) => assert_eq!(token, v.next),
                (Some(target), true) => {
                    let wanted = history.get(at + 1).map_or(target, |step| step.behaviour);
                    assert_eq!(token, v.behaviours[wanted as usize]);
                }
            }
        }
        assert_eq!(row.asked[3].0, row.ids.len() - 1);
        assert!(row.labels.iter().all(|&label| label == IGNORED));
        let one = prompter.example(history, None, Step { item: 4, behaviour: 1 }, 0, false);
        assert_eq!((one.ids, one.asked.len()), (row.ids, 1));
    }
}

#[test]
fn prompts_mark_placeholders_and_learn_only_what_they_should() {
    for target in [None, Some(1)] {
        let data = data(target);
        let prompter = prompter(&data, by_title());
        let v = &prompter.vocabulary;
        let history = &data.sequences[0][..3];
        let answer = Step { item: 3, behaviour: 1 };
        let row = prompter.example(history, Some(&[3, 4, 5]), answer, 0, false);
        assert_eq!(
            row.events.iter().map(|e| (e.1, e.2)).collect::<Vec<_>>(),
            [(0, 0), (1, 1), (2, 0)]
        );
        assert!(row.events.iter().all(|e| row.ids[e.0] == v.item));
        assert_eq!(row.candidates.iter().map(|c| c.1).collect::<Vec<_>>(), [3, 4, 5]);
        assert!(row.candidates.iter().all(|c| row.ids[c.0] == v.candidate));
        // a title that spells special tokens adds none
        assert_eq!(row.ids.iter().filter(|&&id| id == v.item).count(), 3);
        let learnt: Vec<u32> =
            row.labels.iter().filter(|l| **l != IGNORED).map(|&l| l as u32).collect();
        assert_eq!(learnt, prompter.answer(3));
        let query = if target.is_some() { v.behaviours[1] } else { v.next };
        assert_eq!(row.ids[row.ids.len() - learnt.len() - 1], query);
        let all = prompter.example(history, None, answer, 0, true);
        let titles: usize = [0, 1, 2].map(|item| prompter.title(item).len()).iter().sum();
        assert_eq!(all.labels.iter().filter(|l| **l != IGNORED).count(), titles + learnt.len());
        // the prompt is the example without its answer
        let prompt = prompter.prompt(history, None, 0, true);
        assert_eq!(prompt.ids, all.ids[..prompt.ids.len()]);
    }
}

#[test]
fn behaviour_tokens_can_be_left_out_and_histories_are_cut() {
    let data = data(None);
    let options =
        PromptOptions { behaviour_tokens: false, history: 2, title_tokens: 3, ..by_title() };
    let prompter = prompter(&data, options);
    let row = prompter.prompt(&data.sequences[0], None, 0, false);
    assert_eq!(row.events.iter().map(|e| e.1).collect::<Vec<_>>(), [3, 4]);
    assert!(row.ids.iter().all(|id| !prompter.vocabulary.behaviours.contains(id)));
    assert!((0..6).all(|item| prompter.title(item).len() <= 3));
}

#[test]
fn candidates_are_seeded_unseen_and_placed_uniformly() {
    let sizes = Sizes { warm: 200, cold: 100, users: 600, tests: 10 };
    let mut data = generate(Signal::Image, sizes, Seed::new(3)).data;
    data.target = None;
    let questions = data.questions(Part::Test);
    let pool: Vec<u32> = (0..300).collect();
    let lists = draw(&data, &questions, &pool, 10, Seed::new(1), "test").unwrap();
    assert_eq!(lists, draw(&data, &questions, &pool, 10, Seed::new(1), "test").unwrap());
    assert_ne!(lists, draw(&data, &questions, &pool, 10, Seed::new(2), "test").unwrap());
    let mut places = [0usize; 10];
    for (list, question) in lists.iter().zip(&questions) {
        assert_eq!(list.items[list.positive], question.answer);
        assert_eq!(list.items.iter().collect::<HashSet<_>>().len(), 10);
        let seen: HashSet<u32> = data.sequences[list.user].iter().map(|s| s.item).collect();
        assert_eq!(list.items.iter().filter(|item| seen.contains(item)).count(), 1);
        places[list.positive] += 1;
    }
    // 600 draws over 10 places: mean 60, sd 7.3
    assert!(places.iter().all(|&count| (30..=90).contains(&count)), "{places:?}");
    let error = draw(&data, &questions, &pool[..5], 10, Seed::new(1), "test").unwrap_err();
    assert!(error.to_string().contains("lower rank.candidates"), "{error}");
}

#[test]
fn only_the_signal_tells_the_purchase() {
    let sizes = Sizes { warm: 300, cold: 200, users: 50, tests: 300 };
    for (which, signal) in [Signal::Image, Signal::Text, Signal::Graph].into_iter().enumerate() {
        let catalogue = generate(signal, sizes, Seed::new(4));
        for test in &catalogue.tests {
            let value = |item: u32| catalogue.attributes[item as usize][which];
            let wanted = value(test.items[test.positive]);
            assert!(test.history.iter().all(|step| value(step.item) == wanted));
            let same = test.items.iter().filter(|&&item| value(item) == wanted).count();
            assert_eq!((same, test.items.len()), (1, CANDIDATES));
            assert!(test.items.iter().all(|&item| item >= 300), "a warm item in a test");
        }
        // another attribute agrees with the history no more often than by chance
        let other = (which + 1) % 3;
        let agree = catalogue.tests.iter().filter(|test| {
            let value = |item: u32| catalogue.attributes[item as usize][other];
            value(test.items[test.positive]) == value(test.history[0].item)
        });
        let share = agree.count() as f64 / 300.0;
        assert!((share - 1.0 / VALUES as f64).abs() < 0.08, "{share}");
    }
    let carts = generate(Signal::Behaviour, sizes, Seed::new(4));
    for test in &carts.tests {
        let value = |item: u32| carts.attributes[item as usize][0];
        let wanted = value(test.items[test.positive]);
        for step in &test.history {
            assert_eq!(value(step.item) == wanted, step.behaviour == 1);
        }
        let viewed = test.history.iter().find(|step| step.behaviour == 0).unwrap();
        assert!(test.items.iter().any(|&item| value(item) == value(viewed.item)));
    }
}

#[test]
fn an_answer_is_valid_if_it_names_one_candidate() {
    let titles = ["Alien", "Aliens", "Heat"];
    assert_eq!(llara_choice("HEAT ", &titles), Some(2));
    assert_eq!(llara_choice("the answer is alien.", &titles), Some(0));
    // a title inside another one makes two
    assert_eq!(llara_choice("Aliens", &titles), None);
    assert_eq!(llara_choice("Heat or Alien", &titles), None);
    assert_eq!(llara_choice("", &titles), None);
}

#[test]
fn the_floors_of_ml_100k_reproduce() {
    if asset_or_skip("ml-100k", "ml-100k.inter").is_none() {
        return;
    }
    let data = movielens::load(&common::assets::Assets::from_env(), false).unwrap();
    assert_eq!((data.users.len(), data.items.len()), (943, 1682));
    let counts = [0, 1, 2]
        .map(|b| data.sequences.iter().flatten().filter(|step| step.behaviour == b).count());
    assert_eq!(counts, [17_480, 27_145, 55_375]);
    let questions = [data.questions(Part::Valid), data.questions(Part::Test)];
    assert_eq!(questions[1].len(), 943);
    let pool: Vec<u32> = (0..1682).collect();
    let kept = tempfile::tempdir().unwrap();
    let kept = common::checkpoint::Trained::new(kept.path());
    for (baseline, expected) in [(Baseline::ItemKnn, 0.390), (Baseline::Popularity, 0.242)] {
        let both = [&questions[0][..], &questions[1][..]];
        let [_, test] = scores(baseline, &data, both, 1, Seed::new(0), &kept, 1).unwrap();
        let mut total = 0.0;
        for seed in 0..3 {
            let lists = draw(&data, &questions[1], &pool, 20, Seed::new(seed), "test").unwrap();
            let hits = lists.iter().zip(&test).filter(|(list, row)| {
                let of: Vec<f64> = list.items.iter().map(|&i| f64::from(row[i as usize])).collect();
                common::metrics::rank_of(&of, list.positive) <= 1.0
            });
            total += hits.count() as f64 / 943.0 / 3.0;
        }
        assert!((total - expected).abs() < 0.02, "{}: {total}", baseline.name());
    }
}
