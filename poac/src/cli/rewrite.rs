//! `rewrite` and `eval`: prompts.

use std::path::PathBuf;

use common::cli::{CommonArgs, text};
use common::data::{ReadOptions, Table};
use common::llm::{Llm, LlmOptions, Message, Request};
use common::rng::Seed;
use common::{Error, Result};
use serde_json::{Value, json};

use crate::config::Config;
use crate::data::{Gate, Style, clean_prompt};
use crate::eval::object_scores;
use crate::promptist::Promptist;
use crate::rewrite::Rewriter;
use crate::studio::Base;

/// What an LLM is told when it expands a prompt (step 3 of Algorithm 1; the paper's words are not
/// public).
const INSTRUCTION: &str = "Rewrite this prompt so that a text-to-image model can draw it. Replace \
                           the abstract concept by a scene of concrete visible objects that people \
                           associate with it. Keep the subject. One sentence of at most 60 words, \
                           no art style, no explanation.";

/// Flags of `rewrite`.
#[derive(Debug, clap::Args)]
pub struct RewriteArgs {
    /// The prompt, for example "an old man with wisdom"
    pub prompt: String,
    /// Candidates to show
    #[arg(long, value_name = "K", default_value_t = 3)]
    pub count: usize,
    /// Art style at the end of the prompt
    #[arg(long, value_enum, default_value_t = Style::Colour)]
    pub style: Style,
    /// A GPT-2 prompt optimiser such as Promptist instead: hf:OWNER/NAME[@REVISION] or a folder
    #[arg(long, value_name = "MODEL")]
    pub plm: Option<String>,
    /// Where its tokenizer.json is, if elsewhere
    #[arg(long, value_name = "MODEL", requires = "plm")]
    pub tokenizer: Option<String>,
}

/// Flags of `eval`.
#[derive(Debug, clap::Args)]
pub struct EvalArgs {
    /// Table (.csv, .tsv, .jsonl, .parquet) with columns concept and prompt
    pub prompts: PathBuf,
}

pub(super) fn rewrite(verb: &RewriteArgs, args: &CommonArgs, config: &Config) -> Result<String> {
    if !(1..=64).contains(&verb.count) {
        return Err(Error::usage(format!("--count {}: use 1 to 64", verb.count)));
    }
    let prompt = clean_prompt(&verb.prompt)?;
    if let Some(spec) = args.llm.first() {
        return by_llm(&prompt, spec, args, config);
    }
    if let Some(spec) = &verb.plm {
        return by_promptist(&prompt, spec, verb, args, config);
    }
    let base = super::base_of(args, config)?;
    let (model, _) = base.plm(Seed::new(args.seed), false)?;
    let rewriter = Rewriter::new(&model, &base.features, &base.world, &config.search);
    let found = rewriter.prompt_candidates(&prompt, &base.gate, verb.style, verb.count)?;
    let Some(concept) = found.concepts.first() else {
        let note = "no abstract word: the prompt stays as it is";
        return match args.json {
            true => text::json(&json!({ "original": found.original, "concepts": [],
                                        "candidates": [], "note": note })),
            false => Ok(format!("{}\n({note})\n", found.original)),
        };
    };
    let reasons: Vec<Vec<(String, String)>> = found
        .candidates
        .iter()
        .map(|candidate| {
            let reason =
                |&at: &usize| Ok((base.world.objects[at].name.clone(), why(&base, concept, at)?));
            candidate.objects.iter().map(reason).collect::<Result<_>>()
        })
        .collect::<Result<_>>()?;
    if args.json {
        let candidates: Vec<Value> = found
            .candidates
            .iter()
            .zip(&reasons)
            .map(|(candidate, reasons)| {
                let objects: Vec<Value> = reasons
                    .iter()
                    .map(|(name, why)| json!({ "object": name, "why": why }))
                    .collect();
                json!({ "prompt": candidate.prompt, "score": candidate.score,
                        "objects": objects })
            })
            .collect();
        return text::json(&json!({ "original": found.original, "concepts": found.concepts,
                                   "candidates": candidates }));
    }
    let mut out = format!("concept: {concept}\n");
    for (candidate, reasons) in found.candidates.iter().zip(&reasons) {
        out.push_str(&format!("\n{}\n", candidate.prompt));
        for (name, why) in reasons {
            out.push_str(&format!("  {name}: {why}\n"));
        }
    }
    Ok(out)
}

/// Why an object stands for a concept: the human keyword that links them, or the object's keyword
/// that is nearest to the concept.
fn why(base: &Base, concept: &str, object: usize) -> Result<String> {
    let keywords = &base.world.objects[object].keywords;
    if keywords.contains(concept) {
        return Ok(format!("people file it under \"{concept}\""));
    }
    let words: Vec<String> = keywords.iter().cloned().collect();
    let target = base.features.words(&[concept.to_owned()])?.remove(0);
    let cosine = |feature: &Vec<f32>| feature.iter().zip(&target).map(|(a, b)| a * b).sum::<f32>();
    let features = base.features.words(&words)?;
    let nearest = words.iter().zip(features.iter().map(cosine)).max_by(|a, b| a.1.total_cmp(&b.1));
    Ok(nearest.map_or_else(
        || "learned".to_owned(),
        |(word, cosine)| format!("people file it under \"{word}\" (likeness {cosine:.2})"),
    ))
}

/// A prompt as an LLM rewrites it.
pub(super) fn ask(prompt: &str, spec: &str, args: &CommonArgs) -> Result<String> {
    let llm = Llm::open(&spec.parse()?, &LlmOptions::new(super::assets_of(args)))?;
    let messages = vec![Message::system(INSTRUCTION), Message::user(prompt)];
    let answer = llm.generate(&Request::new(messages).max_tokens(120))?.into_text()?;
    clean_prompt(&answer)
        .map_err(|_| Error::LlmOutput(format!("{spec} answered with an empty or overlong text")))
}

fn by_llm(prompt: &str, spec: &str, args: &CommonArgs, config: &Config) -> Result<String> {
    let gate = match &config.concreteness {
        Some(path) => Gate::with_ratings(path)?,
        None => Gate::default(),
    };
    let concepts = gate.abstract_words(prompt);
    let answer = ask(prompt, spec, args)?;
    match args.json {
        true => text::json(&json!({ "original": prompt, "concepts": concepts,
                                    "candidates": [{ "prompt": answer, "model": spec }] })),
        false => Ok(format!("{answer}\n")),
    }
}

fn by_promptist(
    prompt: &str,
    spec: &str,
    verb: &RewriteArgs,
    args: &CommonArgs,
    config: &Config,
) -> Result<String> {
    let model = Promptist::open(spec, verb.tokenizer.as_deref(), &super::assets_of(args))?;
    let found = model.rewrite(prompt, verb.count, &config.search)?;
    if args.json {
        let candidates: Vec<Value> = found
            .iter()
            .map(|(text, score)| json!({ "prompt": text, "score": score, "model": spec }))
            .collect();
        return text::json(&json!({ "original": prompt, "candidates": candidates }));
    }
    Ok(found.iter().map(|(text, _)| format!("{text}\n")).collect())
}

pub(super) fn eval(verb: &EvalArgs, args: &CommonArgs, config: &Config) -> Result<String> {
    let table = Table::read(&verb.prompts, &ReadOptions::default())?;
    let concepts = table.column("concept")?.non_empty()?;
    let prompts = table.column("prompt")?.non_empty()?;
    let base = super::base_of(args, config)?;
    let vocabulary = base.features.vocabulary();
    let (mut rows, mut total) = (Vec::new(), [0.0; 3]);
    for (index, (word, prompt)) in concepts.iter().zip(&prompts).enumerate() {
        let concept = base.world.concept(&word.to_lowercase()).ok_or_else(|| {
            Error::data(
                format!("concept \"{word}\" in row {}", table.row_number(index)),
                "a word that people file an emoji under",
            )
            .in_file(&verb.prompts)
        })?;
        let (ids, _) = vocabulary.encode(prompt);
        let objects: Vec<usize> = ids
            .iter()
            .filter_map(|&id| base.world.object(&vocabulary.tokens()[id as usize]))
            .collect();
        let scores = object_scores(&objects, &concept.objects);
        for (sum, value) in total.iter_mut().zip([scores.f1, scores.hit1, scores.hit3]) {
            *sum += value;
        }
        rows.push(json!({ "concept": word, "objects": objects.len(), "f1": scores.f1,
                          "hit1": scores.hit1, "hit3": scores.hit3 }));
    }
    if rows.is_empty() {
        return Err(Error::data("no row", "at least one prompt").in_file(&verb.prompts));
    }
    let [f1, hit1, hit3] = total.map(|sum| sum / rows.len() as f64);
    if args.json {
        return text::json(&json!({ "f1": f1, "hit1": hit1, "hit3": hit3, "rows": rows }));
    }
    let header = ["prompts", "object F1", "hit@1", "hit@3"];
    let mean = |value: f64| format!("{value:.3}");
    let row = vec![rows.len().to_string(), mean(f1), mean(hit1), mean(hit3)];
    Ok(text::table(&header, &[row]))
}
