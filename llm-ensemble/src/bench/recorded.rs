//! Bench part: recorded answers of GPT-3.5 and GPT-4 on AE-110k (ExtractGPT's runs and protocol).

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use common::assets::Assets;
use common::report::{Figure, Role, Row, plot};
use common::rng::Seed;
use common::{Error, Result, stats};
use serde_json::Value;

use crate::eval::{NOT_APPLICABLE, ValueCounts};
use crate::model::value_prior::{GoldPair, ValuePrior};
use crate::model::vote;
use crate::train::{Consensus, Evidence, Method, Options, Ties, fit};
use crate::votes::{Duplicates, Label, Votes, VotesBuilder};

const ASSET: &str = "extractgpt-ae-110k";

/// The recorded runs, in the order of the tables.
const RUNS: [(&str, &str); 5] = [
    ("GPT-3.5 list", "list-ae-110k-10-shots_2023-10-08_12-31-04.gz"),
    (
        "GPT-4 ensembling 0.2",
        "schema_ae_110k_gpt_4_0613_10_SemanticSimilarity_0_2___json_schema_ensembling_shuffle_2024-01-10_17-14-40.gz",
    ),
    (
        "GPT-4 ensembling 1.0",
        "schema_ae_110k_gpt_4_0613_10_SemanticSimilarity_1_0___json_schema_ensembling_shuffle_2024-01-17_11-34-21.gz",
    ),
    (
        "GPT-4 schema 0.2",
        "schema_ae_110k_gpt_4_0613_shots_10_SemanticSimilarity_0_2___json_schema_2023-10-10_15-04-06.gz",
    ),
    (
        "GPT-4 schema 1.0",
        "schema_ae_110k_gpt_4_0613_shots_10_SemanticSimilarity_1_0___json_schema_2023-10-10_16-58-05.gz",
    ),
];

/// Groups of runs that vote together.
pub const PANELS: [&[usize]; 4] = [&[0, 1, 2, 3, 4], &[0, 1, 2], &[0, 3, 4], &[0, 1, 4]];

/// One product attribute with its accepted values and the runs' answers.
#[derive(Debug, Clone)]
pub struct Pair {
    /// Position of the product in the test split.
    pub product: usize,
    /// Category and attribute.
    pub key: (String, String),
    /// Product title.
    pub title: String,
    /// Accepted values; "n/a" alone = absent.
    pub gold: Vec<String>,
    /// Answer per run; an absent key, null and an unreadable answer are "n/a".
    pub answers: Vec<String>,
}

/// Test pairs with answers, and the training gold.
#[derive(Debug)]
pub struct Recorded {
    /// Test pairs.
    pub pairs: Vec<Pair>,
    /// Products of the test split.
    pub products: usize,
    /// Training pairs; titles and gold only, no answers.
    pub train: Vec<GoldPair>,
}

impl Recorded {
    /// Reads the splits and the recorded answers.
    ///
    /// # Errors
    /// An absent asset, or a file of another form than ExtractGPT's.
    pub fn read(assets: &Assets) -> Result<Self> {
        let test = read_split(&assets.file(ASSET, "test.jsonl")?)?;
        let train = read_split(&assets.file(ASSET, "train.jsonl")?)?
            .into_iter()
            .flat_map(|product| {
                let (category, title) = (product.category, product.title);
                product.attributes.into_iter().map(move |(attribute, values)| GoldPair {
                    key: (category.clone(), attribute),
                    title: title.clone(),
                    values,
                })
            })
            .collect();
        let mut runs = Vec::new();
        for (_, file) in RUNS {
            runs.push(read_run(&assets.file(ASSET, &format!("answers/{file}"))?)?);
        }
        let products = test.len();
        let mut pairs = Vec::new();
        for (position, product) in test.into_iter().enumerate() {
            let id = (product.title.clone(), product.category.clone());
            for (attribute, gold) in product.attributes {
                let answer = |run: &Run| -> String {
                    let value = run.get(&id).and_then(|answer| answer.get(&attribute));
                    match value {
                        None | Some(Value::Null) => NOT_APPLICABLE.to_owned(),
                        Some(Value::String(text)) => text.clone(),
                        Some(other) => other.to_string(),
                    }
                };
                pairs.push(Pair {
                    product: position,
                    key: (product.category.clone(), attribute.clone()),
                    title: product.title.clone(),
                    gold,
                    answers: runs.iter().map(answer).collect(),
                });
            }
        }
        Ok(Self { pairs, products, train })
    }

    /// Votes of the given runs on every pair; items are the pairs by position.
    ///
    /// # Errors
    /// As [`VotesBuilder::push`].
    pub fn votes(&self, runs: &[usize]) -> Result<Votes> {
        let all: Vec<usize> = (0..self.pairs.len()).collect();
        self.votes_on(runs, &all)
    }

    fn votes_on(&self, runs: &[usize], pairs: &[usize]) -> Result<Votes> {
        let mut builder = VotesBuilder::new();
        for &at in pairs {
            for &run in runs {
                builder.push(&at.to_string(), RUNS[run].0, &self.pairs[at].answers[run])?;
            }
        }
        builder.finish(Duplicates::Keep)
    }

    /// Log-prior of each pair's distinct answers from the training gold and the title.
    pub fn label_prior(&self, votes: &Votes) -> Vec<Vec<(Label, f64)>> {
        let prior = ValuePrior::new(&self.train, NOT_APPLICABLE);
        let names = votes.labels.to_vec();
        self.pairs
            .iter()
            .enumerate()
            .map(|(item, pair)| {
                let mut labels: Vec<Label> = votes.of(item).map(|(_, label)| label).collect();
                labels.sort_unstable();
                labels.dedup();
                let values: Vec<&str> =
                    labels.iter().map(|&label| names[label as usize].as_str()).collect();
                let weights = prior.log_prior(&pair.key, &pair.title, &values);
                labels.into_iter().zip(weights).collect()
            })
            .collect()
    }
}

struct Product {
    title: String,
    category: String,
    attributes: Vec<(String, Vec<String>)>,
}

fn read_split(path: &Path) -> Result<Vec<Product>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(at, line)| {
            let bad = |expected: &str| {
                Error::data(format!("line {}", at + 1), expected.to_owned()).in_file(path)
            };
            let value: Value = serde_json::from_str(line).map_err(|_| bad("one JSON object"))?;
            let text = |key: &str| value[key].as_str().map(str::to_owned);
            let scores = value["target_scores"].as_object();
            let attributes = scores.ok_or_else(|| bad("an object target_scores"))?;
            Ok(Product {
                title: text("input").ok_or_else(|| bad("a string input"))?,
                category: text("category").ok_or_else(|| bad("a string category"))?,
                attributes: attributes
                    .iter()
                    .map(|(name, values)| {
                        let values = values.as_object().ok_or_else(|| bad("values per attribute"));
                        Ok((name.clone(), values?.keys().cloned().collect()))
                    })
                    .collect::<Result<_>>()?,
            })
        })
        .collect()
}

type Run = BTreeMap<(String, String), serde_json::Map<String, Value>>;

/// Answers by (title, category): the files differ in order.
fn read_run(path: &Path) -> Result<Run> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).map_err(Error::io(path))?;
    let bad = |expected: &str| Error::data("another form", expected.to_owned()).in_file(path);
    let run: Value = serde_json::from_str(&text).map_err(|_| bad("one JSON object"))?;
    let examples = run["examples"].as_array().ok_or_else(|| bad("an array examples"))?;
    let mut answers = Run::new();
    for example in examples {
        let text = |key: &str| example[key].as_str().unwrap_or_default().to_owned();
        // An answer that is no JSON object counts as "n/a" everywhere.
        let parsed = serde_json::from_str(&text("pred")).unwrap_or_default();
        answers.insert((text("input"), text("category")), parsed);
    }
    Ok(answers)
}

/// Predicted values of a pair with their shares (several when ties are taken in expectation).
pub type Prediction = Vec<(String, f64)>;

/// Micro-averaged counts of predictions, one per pair.
pub fn judge(recorded: &Recorded, predictions: &[Prediction]) -> ValueCounts {
    let mut counts = ValueCounts::default();
    for (pair, prediction) in recorded.pairs.iter().zip(predictions) {
        for (value, share) in prediction {
            counts.add(value, &pair.gold, *share);
        }
    }
    counts
}

/// The labels of a result, one value per pair.
pub fn labels_of(votes: &Votes, result: &Consensus) -> Vec<Prediction> {
    let names = votes.labels.to_vec();
    result.label.iter().map(|&label| vec![(names[label as usize].clone(), 1.0)]).collect()
}

/// A result's tied labels in equal shares.
pub fn expected_of(votes: &Votes, result: &Consensus) -> Vec<Prediction> {
    let names = votes.labels.to_vec();
    (0..votes.items.len())
        .map(|item| {
            let tied = vote::tied(result.scores_of(item), vote::TIE, vote::TIE);
            let share = 1.0 / tied.len() as f64;
            tied.iter().map(|&label| (names[label as usize].clone(), share)).collect()
        })
        .collect()
}

/// Among tied labels, the one whose first vote comes last.
pub fn last_of(votes: &Votes, result: &Consensus) -> Vec<Prediction> {
    let names = votes.labels.to_vec();
    (0..votes.items.len())
        .map(|item| {
            let tied = vote::tied(result.scores_of(item), vote::TIE, vote::TIE);
            let first_vote = |label: Label| votes.of(item).position(|(_, l)| l == label);
            let last = tied.into_iter().max_by_key(|&label| first_vote(label)).unwrap_or_default();
            vec![(names[last as usize].clone(), 1.0)]
        })
        .collect()
}

/// IWMV for every (category, attribute) alone, L = its distinct answers.
///
/// # Errors
/// As [`fit`].
pub fn per_group(recorded: &Recorded, runs: &[usize]) -> Result<Vec<Prediction>> {
    let mut groups: BTreeMap<&(String, String), Vec<usize>> = BTreeMap::new();
    for (at, pair) in recorded.pairs.iter().enumerate() {
        groups.entry(&pair.key).or_default().push(at);
    }
    let mut predictions = vec![Vec::new(); recorded.pairs.len()];
    for pairs in groups.values() {
        let votes = recorded.votes_on(runs, pairs)?;
        let result = fit(&votes, Method::Iwmv, &Evidence::default(), &first_worker())?;
        for (&at, prediction) in pairs.iter().zip(labels_of(&votes, &result)) {
            predictions[at] = prediction;
        }
    }
    Ok(predictions)
}

/// Ties go to the run that comes first in the table.
pub fn first_worker() -> Options {
    Options { ties: Ties::FirstWorker, ..Options::default() }
}

/// One line of a panel's table: method, role, predictions, note.
pub type PanelRow = (String, Role, Vec<Prediction>, String);

/// Every prediction that the table shows for one panel.
///
/// # Errors
/// As [`fit`].
pub fn panel(recorded: &Recorded, runs: &[usize]) -> Result<Vec<PanelRow>> {
    let votes = recorded.votes(runs)?;
    let none = Evidence::default();
    let options = first_worker();
    let mut table = Vec::new();
    let mut add = |name: &str, role: Role, predictions: Vec<Prediction>, note: String| {
        table.push((name.to_owned(), role, predictions, note));
    };
    let mv = fit(&votes, Method::Mv, &none, &options)?;
    let ties = format!("{} tied items", mv.ties);
    add("majority vote, first", Role::Baseline, labels_of(&votes, &mv), ties.clone());
    add("majority vote, expected", Role::Baseline, expected_of(&votes, &mv), ties.clone());
    add("majority vote, last", Role::Baseline, last_of(&votes, &mv), ties);
    let iwmv = fit(&votes, Method::Iwmv, &none, &options)?;
    let note = format!("one weight per run; {} rounds", iwmv.rounds);
    add("IWMV global", Role::Paper, labels_of(&votes, &iwmv), note);
    let note = "a weight per run, category and attribute".to_owned();
    add("IWMV per attribute", Role::Paper, per_group(recorded, runs)?, note);
    let open = fit(&votes, Method::OpenOneCoin, &none, &options)?;
    let note = "no training data".to_owned();
    add("open-set one-coin", Role::Ablation, labels_of(&votes, &open), note);
    let label_prior = recorded.label_prior(&votes);
    let alone: Vec<Prediction> = label_prior
        .iter()
        .map(|labels| {
            let best = labels.iter().fold(None, |best: Option<&(Label, f64)>, next| match best {
                Some(best) if best.1 >= next.1 => Some(best),
                _ => Some(next),
            });
            best.map(|b| (votes.labels.name(b.0 as usize), 1.0)).into_iter().collect()
        })
        .collect();
    let note = "the runs only nominate values; training gold and title decide".to_owned();
    add("value prior alone", Role::Ablation, alone, note);
    let evidence = Evidence { label_prior, ..Evidence::default() };
    let ours = fit(&votes, Method::OpenOneCoin, &evidence, &options)?;
    let weights: Vec<String> = ours.accuracy.iter().flatten().map(|w| format!("{w:.3}")).collect();
    let note = format!("prior from training gold and title; accuracies {}", weights.join(" "));
    add("open-set one-coin + value prior", Role::Ours, labels_of(&votes, &ours), note);
    Ok(table)
}

/// The rows of the AE-110k table and its figures.
///
/// # Errors
/// Damaged files. Absent files give a row that says how to get them.
pub fn run(assets: &Assets, resamples: usize, seed: Seed) -> Result<(Vec<Row>, Vec<Figure>)> {
    let recorded = match Recorded::read(assets) {
        Ok(recorded) => recorded,
        Err(error @ Error::Asset { .. }) => {
            let row = blank_row("AE-110k, recorded GPT answers", "IWMV global", Role::Paper);
            return Ok((vec![row.not_run(&error.to_string())], Vec::new()));
        }
        Err(error) => return Err(error),
    };
    let mut rows = Vec::new();
    let interval = |name: &str, predictions: &[Prediction]| {
        f1_interval(&recorded, predictions, resamples, seed, name)
    };
    for (run, (name, _)) in RUNS.iter().enumerate() {
        let predictions: Vec<Prediction> =
            recorded.pairs.iter().map(|pair| vec![(pair.answers[run].clone(), 1.0)]).collect();
        let row = blank_row("AE-110k", name, Role::Control);
        rows.push(scored(row, &recorded, &predictions, interval(name, &predictions), "one run"));
    }
    for runs in PANELS {
        let dataset = match runs.len() {
            5 => "AE-110k".to_owned(),
            _ => format!("AE-110k runs {runs:?}"),
        };
        for (name, role, predictions, note) in panel(&recorded, runs)? {
            let ci95 = interval(&format!("{dataset}/{name}"), &predictions);
            rows.push(scored(
                blank_row(&dataset, &name, role),
                &recorded,
                &predictions,
                ci95,
                &note,
            ));
        }
    }
    let shown: Vec<&Row> = rows.iter().filter(|row| row.dataset == "AE-110k").collect();
    let labels = plot::Labels { x: "micro-F1", ..plot::Labels::default() };
    let figure = Figure::new(
        "Recorded answers on AE-110k",
        "Micro-F1 of single runs and of votes over all five, 95 % intervals over products.",
        plot::row_bars(labels, &shown),
    );
    Ok((rows, vec![figure, agreement_figure(&recorded)?]))
}

fn agreement_figure(recorded: &Recorded) -> Result<Figure> {
    let all = recorded.votes(PANELS[0])?;
    let names: Vec<String> = all.workers.to_vec();
    let n = names.len();
    let mut same = vec![vec![0.0; n]; n];
    for item in 0..all.items.len() {
        for (i, a) in all.of(item) {
            for (j, b) in all.of(item) {
                same[i][j] += f64::from(u8::from(a == b)) / all.items.len() as f64;
            }
        }
    }
    Ok(Figure::new(
        "Agreement between recorded runs",
        "Share of equal answers: the GPT-4 runs are near-copies, which limits what a vote can gain.",
        plot::heatmap(plot::Labels::default(), &names, &names, &same),
    ))
}

fn blank_row(dataset: &str, method: &str, role: Role) -> Row {
    Row {
        paper: "llm-ensemble".into(),
        claim: "an ensemble beats the best single LLM".into(),
        dataset: dataset.into(),
        method: method.into(),
        role,
        metric: "micro-F1".into(),
        ..Row::default()
    }
}

fn scored(
    row: Row,
    recorded: &Recorded,
    predictions: &[Prediction],
    ci95: [f64; 2],
    note: &str,
) -> Row {
    let counts = judge(recorded, predictions);
    Row {
        mean: Some(counts.f1()),
        ci95: Some(ci95),
        n: recorded.pairs.len(),
        note: Some(format!(
            "{note}; P {:.2} R {:.2} accuracy {:.2}",
            100.0 * counts.precision(),
            100.0 * counts.recall(),
            100.0 * counts.accuracy()
        )),
        ..row
    }
}

/// Resamples products, not pairs: the attributes of a product are answered together.
fn f1_interval(
    recorded: &Recorded,
    predictions: &[Prediction],
    resamples: usize,
    seed: Seed,
    name: &str,
) -> [f64; 2] {
    let mut counts = vec![ValueCounts::default(); recorded.products];
    for (pair, prediction) in recorded.pairs.iter().zip(predictions) {
        for (value, share) in prediction {
            counts[pair.product].add(value, &pair.gold, *share);
        }
    }
    let mut stream = seed.stream(&format!("recorded/{name}"));
    stats::bootstrap_ci(counts.len(), resamples, &mut stream, |indices| {
        let mut sum = ValueCounts::default();
        for &i in indices {
            sum.vc += counts[i].vc;
            sum.vw += counts[i].vw;
            sum.vn += counts[i].vn;
            sum.nv += counts[i].nv;
            sum.nn += counts[i].nn;
        }
        sum.f1()
    })
}
