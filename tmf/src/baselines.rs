//! What the model is compared with: counting floors, factorisation, sequence models, and the graph
//! model alone. All see the same training events and answer the same questions.

use common::Result;
use common::checkpoint::Trained;
use common::recommend::{
    Bpr, BprOptions, Gru4rec, Gru4recOptions, HeldOut, ItemKnn, ItemKnnOptions, Markov, Popularity,
    Sasrec, SasrecOptions, TrainOptions,
};
use common::rng::Seed;
use serde::{Deserialize, Serialize};

use crate::data::{Dataset, Part, Question};

/// A recommender over item ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Baseline {
    /// Seeded random scores.
    Random,
    /// Event counts.
    Popularity,
    /// Last item only.
    Markov,
    /// Cosine of binary user columns, last 10 items, equally weighted: the floor of §9.3.
    ItemKnn,
    /// The same with decay, shrinkage and fewer neighbours.
    TunedItemKnn,
    /// Matrix factorisation.
    Bpr,
    /// Self-attention over item ids, full softmax, early stopping on the validation events.
    Sasrec,
    /// Recurrent network over item ids, the same training.
    Gru4rec,
}

impl Baseline {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Random,
        Self::Popularity,
        Self::Markov,
        Self::ItemKnn,
        Self::TunedItemKnn,
        Self::Bpr,
        Self::Gru4rec,
        Self::Sasrec,
    ];

    /// As tables show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Popularity => "popularity",
            Self::Markov => "Markov + popularity",
            Self::ItemKnn => "item-kNN, last 10",
            Self::TunedItemKnn => "item-kNN with decay",
            Self::Bpr => "BPR",
            Self::Sasrec => "SASRec",
            Self::Gru4rec => "GRU4Rec",
        }
    }

    /// Whether a seed changes it.
    pub fn is_seeded(self) -> bool {
        matches!(self, Self::Random | Self::Bpr | Self::Sasrec | Self::Gru4rec)
    }
}

/// Scores of all items for each question of one part: `[questions][items]`.
pub type FullScores = Vec<Vec<f32>>;

/// Scores of a baseline for the validation and the test questions. Counting baselines answer a part
/// from all events before it; trained ones learn from the events before validation, on which they
/// stop early. `threads` change no result.
///
/// # Errors
/// Those of training.
pub fn scores(
    baseline: Baseline,
    data: &Dataset,
    questions: [&[Question]; 2],
    epochs: usize,
    seed: Seed,
    kept: &Trained,
    threads: usize,
) -> Result<[FullScores; 2]> {
    let items = data.items.len();
    let ids = |steps: &[crate::data::Step]| -> Vec<u32> { steps.iter().map(|s| s.item).collect() };
    let sequences = |part: Part| -> Vec<Vec<u32>> {
        data.before(part).iter().map(|steps| ids(steps)).collect()
    };
    let histories = questions.map(|questions| {
        questions.iter().map(|question| ids(&question.history)).collect::<Vec<Vec<u32>>>()
    });
    let parts = [Part::Valid, Part::Test];
    let counted = |answer: &dyn Fn(&[Vec<u32>], &[Vec<u32>]) -> Result<FullScores>| {
        let [valid, test] = [0, 1].map(|at| answer(&sequences(parts[at]), &histories[at]));
        Ok([valid?, test?])
    };
    let knn = |options: ItemKnnOptions| {
        counted(&|sequences, histories| {
            let model = ItemKnn::fit(sequences, items, options)?;
            Ok(histories.iter().map(|history| model.scores(history)).collect())
        })
    };
    match baseline {
        Baseline::Random => {
            let draw = |name: &str, questions: &[Question]| -> FullScores {
                let mut stream = seed.stream(&format!("random/{name}"));
                let mut row = || (0..items).map(|_| stream.uniform() as f32).collect();
                questions.iter().map(|_| row()).collect()
            };
            Ok([draw("valid", questions[0]), draw("test", questions[1])])
        }
        Baseline::Popularity => counted(&|sequences, histories| {
            let model = Popularity::fit(sequences, items)?;
            Ok(histories.iter().map(|_| model.scores().to_vec()).collect())
        }),
        Baseline::Markov => counted(&|sequences, histories| {
            let model = Markov::fit(sequences, items)?;
            Ok(histories.iter().map(|history| model.scores(history)).collect())
        }),
        Baseline::ItemKnn => {
            knn(ItemKnnOptions { neighbours: items, shrinkage: 0.0, recent: 10, decay: 1.0 })
        }
        Baseline::TunedItemKnn => knn(ItemKnnOptions::default()),
        Baseline::Bpr | Baseline::Sasrec | Baseline::Gru4rec => {
            let train = sequences(Part::Valid);
            let held: Vec<HeldOut> = questions[0]
                .iter()
                .zip(&histories[0])
                .map(|(question, history)| HeldOut {
                    user: question.user,
                    history: history.clone(),
                    target: question.answer,
                })
                .collect();
            let at_most = |training: TrainOptions| TrainOptions {
                epochs: epochs.min(training.epochs),
                threads,
                ..training
            };
            match baseline {
                Baseline::Bpr => {
                    let options = BprOptions { epochs, ..BprOptions::default() };
                    let model = Bpr::fit_once(kept, &train, items, &held, options, seed)?;
                    Ok(questions.map(|q| q.iter().map(|q| model.scores(q.user)).collect()))
                }
                Baseline::Sasrec => {
                    let tuned = SasrecOptions::movielens();
                    let options = SasrecOptions { training: at_most(tuned.training), ..tuned };
                    let model = Sasrec::fit_once(kept, &train, items, &held, options, seed)?;
                    both(&histories, |histories| model.scores(histories))
                }
                _ => {
                    let tuned = Gru4recOptions::movielens();
                    let options = Gru4recOptions { training: at_most(tuned.training), ..tuned };
                    let model = Gru4rec::fit_once(kept, &train, items, &held, options, seed)?;
                    both(&histories, |histories| model.scores(histories))
                }
            }
        }
    }
}

fn both(
    histories: &[Vec<Vec<u32>>; 2],
    scores: impl Fn(&[&[u32]]) -> Result<FullScores>,
) -> Result<[FullScores; 2]> {
    let of = |histories: &[Vec<u32>]| {
        let histories: Vec<&[u32]> = histories.iter().map(Vec::as_slice).collect();
        scores(&histories)
    };
    Ok([of(&histories[0])?, of(&histories[1])?])
}
