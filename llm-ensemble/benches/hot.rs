//! The hot loops: `cargo bench -p llm-ensemble`.

use common::rng::Seed;
use divan::Bencher;
use llm_ensemble::train::{Evidence, Method, Options, fit};
use llm_ensemble::votes::{Duplicates, Label, Names, Votes};

fn main() {
    common::runtime::init(Some(1));
    divan::main();
}

/// 10 votes an item, 200 workers that are right 40 to 90 % of the time.
fn votes(items: usize, labels: usize) -> Votes {
    let mut stream = Seed::new(1).stream("hot");
    let accuracy: Vec<f64> = (0..200).map(|_| 0.4 + 0.5 * stream.uniform()).collect();
    let mut rows = Vec::new();
    for item in 0..items {
        let truth = stream.below(labels);
        for _ in 0..10 {
            let worker = stream.below(200);
            let right = stream.chance(accuracy[worker]);
            let label = if right { truth } else { (truth + 1 + stream.below(labels - 1)) % labels };
            rows.push((item as u32, worker as u32, label as Label));
        }
    }
    let [items, workers, labels] = [items, 200, labels].map(Names::numbered);
    Votes::from_rows(items, workers, labels, &rows, Duplicates::Keep).unwrap_or_else(|error| {
        panic!("{error}");
    })
}

#[divan::bench(args = [2, 5, 20])]
fn iwmv(bencher: Bencher, labels: usize) {
    run(bencher, Method::Iwmv, labels);
}

#[divan::bench(args = [2, 5, 20])]
fn one_coin(bencher: Bencher, labels: usize) {
    run(bencher, Method::OneCoin, labels);
}

#[divan::bench(args = [2, 5, 20])]
fn dawid_skene(bencher: Bencher, labels: usize) {
    run(bencher, Method::DawidSkene, labels);
}

#[divan::bench(args = [2, 5])]
fn opinion_pool(bencher: Bencher, labels: usize) {
    run(bencher, Method::OpinionPool, labels);
}

fn run(bencher: Bencher, method: Method, labels: usize) {
    let votes = votes(2_000, labels);
    bencher
        .counter(divan::counter::ItemsCount::new(votes.len()))
        .bench(|| fit(&votes, method, &Evidence::default(), &Options::default()));
}
