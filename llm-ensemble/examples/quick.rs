//! Three LLMs answer about four products; their votes are weighted without any gold label.

#![allow(clippy::print_stdout)]

use llm_ensemble::train::{Evidence, Method, Options, fit};
use llm_ensemble::votes::{Duplicates, VotesBuilder};

fn main() -> common::Result<()> {
    let mut builder = VotesBuilder::with_labels(&["Female", "Male", "Unisex"])?;
    let answers = [
        ("shirt", ["Male", "Male", "Unisex"]),
        ("dress", ["Female", "Female", "Female"]),
        ("scarf", ["Unisex", "Female", "Unisex"]),
        ("boots", ["Male", "Male", "Female"]),
    ];
    for (product, labels) in answers {
        for (llm, label) in ["small", "medium", "large"].into_iter().zip(labels) {
            builder.push(product, llm, label)?;
        }
    }
    let votes = builder.finish(Duplicates::Keep)?;
    let consensus = fit(&votes, Method::Iwmv, &Evidence::default(), &Options::default())?;
    for (item, &label) in consensus.label.iter().enumerate() {
        println!("{}: {}", votes.items.name(item), votes.labels.name(label as usize));
    }
    for (worker, weight) in consensus.weights.iter().enumerate() {
        println!("{} votes with weight {weight:.2}", votes.workers.name(worker));
    }
    Ok(())
}
