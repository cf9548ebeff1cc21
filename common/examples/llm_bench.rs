//! Speed of local LLMs: a server for `common::testing::bench_protocol`.
//!
//! ```sh
//! cargo run --release -p common --features testing --example llm_bench -- \
//!     --model model.gguf --prompt prompt.txt --threads 2
//! ```
//!
//! | case | what is timed |
//! |---|---|
//! | `prefill` | the whole prompt in an empty context, up to the logits of the next token |
//! | `decode` | `--decode` single-token steps after the prompt, each with a greedy choice |
//! | `greedy:N` | prompt and N greedy tokens; the reply carries `prompt_ids` and `token_ids` |
//! | `score:N:L` | N options of L tokens each after the prompt |

use std::path::PathBuf;

use clap::Parser;
use common::gguf::Gguf;
use common::llm::engine::{Model, Precision, Session, argmax};
use common::testing::bench_protocol::{Case, Timings, serve};
use common::tokenizer::Special;
use common::{Error, Result};
use serde_json::{Map, Value, json};

#[derive(Parser)]
struct Arguments {
    /// GGUF file, or a folder in Hugging Face's layout.
    #[arg(long)]
    model: PathBuf,
    /// UTF-8 text, used as it is.
    #[arg(long, required_unless_present = "ids")]
    prompt: Option<PathBuf>,
    /// A JSON array of token ids instead of a text.
    #[arg(long)]
    ids: Option<PathBuf>,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Steps of the decode case.
    #[arg(long, default_value_t = 64)]
    decode: usize,
    /// auto, f32, f16 or quantised.
    #[arg(long, default_value = "auto", value_parser = precision)]
    precision: Precision,
    /// Generate with the prompt's arithmetic instead of int8.
    #[arg(long)]
    exact: bool,
    /// Read the prompt with the steps' int8 arithmetic, as llama.cpp does.
    #[arg(long, conflicts_with = "exact")]
    int8_prompt: bool,
}

fn precision(name: &str) -> Result<Precision, String> {
    match name {
        "auto" => Ok(Precision::Auto),
        "f32" => Ok(Precision::F32),
        "f16" => Ok(Precision::F16),
        "quantised" => Ok(Precision::Quantised),
        _ => Err("expected auto, f32, f16 or quantised".into()),
    }
}

enum Work {
    Prefill,
    Decode { steps: usize, first: u32 },
    Greedy { count: usize },
    Score { options: Vec<Vec<u32>> },
}

struct Bench {
    work: Work,
    prompt: Vec<u32>,
    session: Session,
    exact: bool,
    int8_prompt: bool,
    generated: Vec<u32>,
}

impl Bench {
    fn generate(&mut self, first: u32, count: usize) -> Result<()> {
        self.generated = vec![first];
        for _ in 0..count {
            let last = self.generated[self.generated.len() - 1];
            let logits =
                if self.exact { self.session.append(&[last])? } else { self.session.step(last)? };
            self.generated.push(argmax(&logits));
        }
        Ok(())
    }

    fn prefill(&mut self) -> Result<u32> {
        self.session.truncate(0);
        let logits = match self.int8_prompt {
            true => self.session.append_int8(&self.prompt)?,
            false => self.session.append(&self.prompt)?,
        };
        Ok(argmax(&logits))
    }
}

impl Case for Bench {
    fn run(&mut self) -> Result<()> {
        match &self.work {
            Work::Prefill => self.prefill().map(drop),
            Work::Decode { steps, first } => {
                let (steps, first) = (*steps, *first);
                self.session.truncate(self.prompt.len());
                self.generate(first, steps)
            }
            Work::Greedy { count } => {
                let count = *count;
                let first = self.prefill()?;
                self.generate(first, count - 1)
            }
            Work::Score { options } => self.session.score_options(options).map(drop),
        }
    }

    fn fields(&self, timings: &Timings) -> Map<String, Value> {
        let tokens = match &self.work {
            Work::Prefill => self.prompt.len(),
            Work::Decode { steps, .. } => *steps,
            Work::Greedy { count } => self.prompt.len() + count,
            Work::Score { options } => options.iter().map(Vec::len).sum(),
        };
        let per_second = 1e3 * tokens as f64 / timings.wall_median_ms;
        let mut fields = Map::from_iter([
            ("tokens".to_owned(), json!(tokens)),
            ("tokens_per_second".to_owned(), json!(per_second)),
        ]);
        if let Work::Greedy { .. } = self.work {
            fields.insert("prompt_ids".to_owned(), json!(self.prompt));
            fields.insert("token_ids".to_owned(), json!(self.generated));
        }
        fields
    }
}

fn build(
    name: &str,
    model: &Model,
    prompt: &[u32],
    arguments: &Arguments,
) -> Result<Box<dyn Case>> {
    let mut session = Session::new(model);
    let number = |text: &str| -> Result<usize> {
        text.parse()
            .ok()
            .filter(|&number| number > 0)
            .ok_or_else(|| Error::usage(format!("{text} in {name} is no number above 0")))
    };
    let parts: Vec<&str> = name.split(':').collect();
    let work = match parts[..] {
        ["prefill"] => Work::Prefill,
        ["decode"] => {
            let first = argmax(&session.append(prompt)?);
            Work::Decode { steps: arguments.decode, first }
        }
        ["greedy", count] => Work::Greedy { count: number(count)? },
        ["score", options, length] => {
            session.append(prompt)?;
            let (options, length) = (number(options)?, number(length)?);
            let token = |i: usize| prompt[i % prompt.len()];
            let option = |o: usize| (0..length).map(|i| token(7 * o + i)).collect();
            Work::Score { options: (0..options).map(option).collect() }
        }
        _ => {
            let known = "prefill, decode, greedy:N, score:N:L";
            return Err(Error::usage(format!("unknown case {name}; known: {known}")));
        }
    };
    Ok(Box::new(Bench {
        work,
        prompt: prompt.to_vec(),
        session,
        exact: arguments.exact,
        int8_prompt: arguments.int8_prompt,
        generated: Vec::new(),
    }))
}

fn prompt_ids(arguments: &Arguments, gguf: Option<&Gguf>) -> Result<Vec<u32>> {
    if let Some(path) = &arguments.ids {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        return serde_json::from_str(&text)
            .map_err(|error| Error::usage(format!("{}: {error}", path.display())));
    }
    let (Some(path), Some(gguf)) = (&arguments.prompt, gguf) else {
        return Err(Error::usage("a text prompt needs a GGUF file; use --ids with a folder"));
    };
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    gguf.tokenizer()?.encode(&text, Special::AsText)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    common::runtime::init(Some(arguments.threads));
    let (model, prompt) = if arguments.model.is_dir() {
        (Model::from_hf(&arguments.model, arguments.precision)?, prompt_ids(&arguments, None)?)
    } else {
        let gguf = Gguf::open(&arguments.model)?;
        let model = Model::from_gguf(&gguf, arguments.precision)?;
        (model, prompt_ids(&arguments, Some(&gguf))?)
    };
    serve(std::io::stdin().lock(), std::io::stdout().lock(), |name| {
        build(name, &model, &prompt, &arguments)
    })?;
    Ok(())
}
