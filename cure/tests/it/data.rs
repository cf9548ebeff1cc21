//! Prompts, splits, requests, counterfactual pairs.

use common::data::movielens::{Movie, MovieLens, Rating, User};
use common::rng::Seed;
use cure::config::DataConfig;
use cure::data::{Request, Split, Synthetic, from_movielens, synthetic};
use cure::pairs::{Corruption, Corruptor, Graph, counterfactuals, of_windows, with_effect};
use cure::prompt::{BOS, NO, PAD, Vocabulary, YES, answers};
use cure::stages::{Case, Setting};
use proptest::prelude::*;

pub(crate) fn setting() -> Setting {
    let (mut data, _) = synthetic(Synthetic::default(), Seed::new(1));
    // everybody likes the same half of the topics: a small model learns that in a second
    for event in data.histories.iter_mut().flatten() {
        event.liked = event.item % 4 < 2;
    }
    let config = DataConfig {
        history: 4,
        title_tokens: 2,
        item_tokens: false,
        user_tokens: false,
        ..DataConfig::default()
    };
    Setting::new(&config, data, Seed::new(3)).unwrap()
}

#[test]
fn a_window_holds_titles_and_answers_in_turn() {
    let titles = ["The Empire Strikes Back", "Empire of the Sun", "Heat"];
    let vocabulary = Vocabulary::of_titles(titles.into_iter(), 2);
    // "empire" and "the" are in two titles: the two rarest words stay, in order
    let words = |item: u32| -> Vec<&str> {
        vocabulary.item(item).iter().map(|&t| vocabulary.words[t as usize].as_str()).collect()
    };
    assert_eq!(words(0), ["strikes", "back"]);
    assert_eq!(words(1), ["of", "sun"]);
    assert_eq!(words(2), ["heat", "<pad>"]);
    let window = vocabulary.window(BOS, &[(2, true), (0, false)]);
    let heat = vocabulary.item(2)[0];
    let [strikes, back] = [vocabulary.item(0)[0], vocabulary.item(0)[1]];
    assert_eq!(window.ids, [BOS, heat, PAD, YES, strikes, back]);
    let asked: Vec<(usize, bool)> = window.answers.iter().map(|a| (a.position, a.liked)).collect();
    assert_eq!(asked, [(2, true), (5, false)]);
    assert_eq!(window.clone().last_answers(1).answers, window.answers[1..]);
    assert_ne!(NO, YES);
}

#[test]
fn movielens_likes_from_four_stars_in_time_order() {
    let movie = |id| Movie {
        id,
        title: format!("movie {id}"),
        year: None,
        genres: vec!["Drama".into()],
        entity: None,
    };
    let rating = |movie, stars, time| Rating { user: 0, movie, stars, time };
    let user = User { id: 7, age: 1, gender: "F".into(), occupation: "x".into(), zip: "0".into() };
    let source = MovieLens {
        ratings: vec![rating(1, 3, 1), rating(0, 4, 2)],
        movies: vec![movie(1), movie(2)],
        users: vec![user],
        facts: Vec::new(),
    };
    let data = from_movielens(&source);
    assert_eq!(data.users, ["7"]);
    let events: Vec<(u32, bool)> = data.histories[0].iter().map(|e| (e.item, e.liked)).collect();
    assert_eq!(events, [(1, false), (0, true)]);
}

#[test]
fn windows_cover_every_training_event_once() {
    let setting = setting();
    let windows = setting.prompts().of_mask(&setting.mask);
    assert_eq!(answers(&windows), setting.split.train.iter().sum::<usize>());
    let longest = windows.iter().map(|window| window.ids.len()).max().unwrap();
    assert_eq!(longest, setting.vocabulary.window_tokens(5));
}

#[test]
fn held_out_users_have_no_training_event() {
    let setting = setting();
    let out: Vec<usize> =
        (0..setting.data.users.len()).filter(|&u| setting.split.held_out[u]).collect();
    assert_eq!(out.len(), 6);
    assert!(out.iter().all(|&user| setting.split.train[user] == 0));
    let tests = setting.test_records(&setting.split.train_users(), usize::MAX);
    for window in tests {
        let target = *window.events.last().unwrap();
        assert!(target >= setting.split.valid[window.user]);
        assert!(!setting.split.held_out[window.user]);
    }
}

#[test]
fn a_deletion_splits_the_answers_and_rebuilds_histories() {
    let setting = setting();
    let all = setting.split.train.iter().sum::<usize>();
    for request in [
        Request::UserShare { share: 0.2 },
        Request::Interactions { share: 0.1 },
        Request::Topic { topic: "topic1".into() },
        Request::Item { item: "i3".into() },
    ] {
        let case = Case::new(&setting, &request, Seed::new(1)).unwrap();
        let forget: usize = case.forget.iter().map(|(_, prompt)| prompt.answers.len()).sum();
        assert_eq!(forget, case.deletion.events(), "{request:?}");
        assert_eq!(forget + answers(&case.retain), all, "{request:?}");
    }
    // no title of a deleted item is left in any retained prompt
    let case =
        Case::new(&setting, &Request::Topic { topic: "topic1".into() }, Seed::new(1)).unwrap();
    let word = setting.vocabulary.words.iter().position(|word| word == "topic1").unwrap() as u32;
    assert!(case.retain.iter().all(|prompt| !prompt.ids.contains(&word)));
}

#[test]
fn requests_that_mean_nothing_or_everything_are_refused() {
    let setting = setting();
    let refuse = |request: &Request, piece: &str| {
        let error = Case::new(&setting, request, Seed::new(1)).unwrap_err();
        assert!(error.to_string().contains(piece), "{request:?}: {error}");
        error.exit_code()
    };
    let users =
        |users: &[&str]| Request::Users { users: users.iter().map(|u| (*u).into()).collect() };
    assert_eq!(refuse(&users(&["nobody"]), "user \"nobody\""), 3);
    assert_eq!(refuse(&users(&[]), "empty forget set"), 3);
    assert_eq!(refuse(&Request::UserShare { share: 1.0 }, "all"), 3);
    assert_eq!(refuse(&Request::UserShare { share: 1.5 }, "share"), 2);
    assert_eq!(refuse(&Request::Item { item: "x".into() }, "item \"x\""), 3);
    assert_eq!(refuse(&Request::Topic { topic: "x".into() }, "topic0, topic1"), 3);
    let held_out = (0..setting.data.users.len()).find(|&u| setting.split.held_out[u]).unwrap();
    assert_eq!(refuse(&users(&[&format!("u{held_out}")]), "empty forget set"), 3);
}

#[test]
fn pagerank_is_a_distribution_and_prefers_neighbours() {
    let setting = setting();
    let graph = Graph::new(&setting.data, &setting.mask, 0.15).unwrap();
    let user = setting.split.train_users()[0];
    let rank = graph.from_user(user).unwrap();
    assert!(rank.iter().sum::<f64>() < 1.0);
    let train = setting.split.train[user];
    let liked: Vec<usize> = setting.data.histories[user][..train]
        .iter()
        .filter(|event| event.liked)
        .map(|event| event.item as usize)
        .collect();
    let mean = |items: &mut dyn Iterator<Item = usize>| {
        let values: Vec<f64> = items.map(|item| rank[item]).collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    let others = (0..rank.len()).filter(|item| !liked.contains(item));
    assert!(mean(&mut liked.iter().copied()) > 2.0 * mean(&mut { others }));
    assert!(Graph::new(&setting.data, &setting.mask, 0.0).is_err());
}

#[test]
fn corrupted_windows_keep_length_target_and_judgements() {
    let setting = setting();
    let graph = Graph::new(&setting.data, &setting.mask, 0.15).unwrap();
    let prompts = setting.prompts();
    let windows: Vec<_> = prompts
        .windows(&setting.mask)
        .into_iter()
        .filter(|window| window.events.len() == 5)
        .take(12)
        .collect();
    for corruption in
        [Corruption::PprEvidence, Corruption::PprFar, Corruption::Random, Corruption::LabelFlip]
    {
        let corruptor = Corruptor::new(&graph, corruption, 0.5, Seed::new(1)).unwrap();
        let pairs = of_windows(&windows, &prompts, &corruptor).unwrap();
        assert_eq!(pairs.len(), windows.len());
        for window in &windows {
            let (events, changed) = corruptor.corrupt(window, false).unwrap();
            assert_eq!(events.len(), 5);
            assert_eq!(changed.iter().filter(|&&changed| changed).count(), 2);
            assert!(!changed[4], "the target must stay");
            let history = &setting.data.histories[window.user];
            for (at, (item, liked)) in events.iter().enumerate() {
                let before = history[window.events[at]];
                let flip = corruption == Corruption::LabelFlip && changed[at];
                assert_eq!(*liked, before.liked != flip);
                if changed[at] && !flip {
                    assert!(history.iter().all(|event| event.item != *item), "the user's own item");
                    assert_eq!(graph.decile(*item), graph.decile(before.item));
                } else {
                    assert_eq!(*item, before.item);
                }
            }
            // between them the two counterfactuals ask every answer once
            let clean = prompts.of_window(window);
            let both = counterfactuals(window, &clean, &setting.vocabulary, &corruptor).unwrap();
            assert!(both.iter().all(|other| other.ids.len() == clean.ids.len()));
            let mut asked: Vec<usize> =
                both.iter().flat_map(|p| p.answers.iter().map(|a| a.position)).collect();
            asked.sort_unstable();
            asked.dedup();
            assert_eq!(asked.len(), clean.answers.len());
        }
    }
    assert!(Corruptor::new(&graph, Corruption::Random, 1.5, Seed::new(1)).is_err());
}

#[test]
fn pairs_without_effect_are_rejected() {
    use cure::model::Pairs;
    let pairs = Pairs::new(vec![vec![1]; 4], vec![vec![2]; 4], vec![[3, 2]; 4]).unwrap();
    let kept = with_effect(&pairs, &[vec![1.0, 2.0, 3.0, 4.0], vec![0.0, 2.0, 2.99, 5.0]]).unwrap();
    assert_eq!((kept.pairs.len(), kept.rejected, kept.lowered), (1, 0.75, true));
    // no answer gets worse: what gets better most
    let kept = with_effect(&pairs, &[vec![1.0; 4], vec![2.0, 1.0, 1.5, 3.0]]).unwrap();
    assert_eq!((kept.pairs.len(), kept.rejected, kept.lowered), (1, 0.75, false));
    assert!(with_effect(&pairs, &[vec![1.0; 4], vec![1.0; 4]]).is_none());
}

proptest! {
    #[test]
    fn splits_are_prefixes(seed in 0u64..50, share in 0.0f64..0.9) {
        let (data, _) = synthetic(Synthetic::default(), Seed::new(seed));
        let split = Split::new(&data, share, &mut Seed::new(seed).stream("split"));
        for user in 0..data.users.len() {
            prop_assert!(split.train[user] <= split.valid[user]);
            prop_assert!(split.valid[user] <= data.histories[user].len());
            prop_assert_eq!(split.held_out[user], split.train[user] == 0);
        }
    }
}
