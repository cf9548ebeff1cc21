//! Prompts: history, optional candidates, answer (§3.3 of our reconstruction, after LLaRA).
//!
//! | answer | target behaviour named | any behaviour |
//! |---|---|---|
//! | item token | `<b_x> [ItemEmb] …`, then `<b_target>` asks | `<b_x> [ItemEmb] …`, the last token asks |
//! | title | `<b_x> title [ItemEmb] … Answer: <b_target>` | `<next> title <b_x> [ItemEmb] … Answer: <next>` |
//!
//! The token that asks for an item never tells its behaviour unless the prompt names it. Titles of
//! the history can stand before item tokens, too ([`PromptOptions::titles`]). A listed candidate is
//! `title [CansEmb]`.

use common::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::{Dataset, Step};
use crate::model::RowParts;
use crate::tokens::{END, Vocabulary};

/// Label of a token that takes no part in the loss.
pub const IGNORED: i64 = -100;

/// Three paraphrases; one is drawn per training row, the first is used in evaluation.
pub const TEMPLATES: [[&str; 3]; 3] = [
    ["History:", "\nWhich of these comes next?", "\nAnswer:"],
    ["The user's items so far:", "\nChoose the next item from this list:", "\nNext item:"],
    ["Given these items:", "\nPick one of the following:", "\nIt is:"],
];

/// What names the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The item's token, whose vector is fused from the item's modalities on the input and on the
    /// output side. One pass scores the whole catalogue.
    #[default]
    Item,
    /// The words of the title, as LLaRA does.
    Title,
}

/// Form of the prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PromptOptions {
    /// Most recent events in a prompt.
    pub history: usize,
    /// Tokens of a title; the rest is cut.
    pub title_tokens: usize,
    /// Whether history entries and the answer carry behaviour tokens.
    pub behaviour_tokens: bool,
    /// What names the answer.
    pub answer: Answer,
    /// Whether the titles of the history stand in the prompt as words. Answers by title need them.
    pub titles: bool,
}

impl Default for PromptOptions {
    fn default() -> Self {
        Self {
            history: 50,
            title_tokens: 10,
            behaviour_tokens: true,
            answer: Answer::Item,
            titles: false,
        }
    }
}

/// Everything that prompts of one catalogue need.
#[derive(Debug)]
pub struct Prompter {
    /// Tokens.
    pub vocabulary: Vocabulary,
    /// Form.
    pub options: PromptOptions,
    /// Behaviour to predict; `None` = whatever comes next.
    pub target: Option<u32>,
    titles: Vec<Vec<u32>>,
    templates: Vec<[Vec<u32>; 3]>,
}

/// One row: tokens, their labels and what stands at the placeholders.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row {
    /// Token ids.
    pub ids: Vec<u32>,
    /// The id itself where the token is to be predicted, [`IGNORED`] elsewhere.
    pub labels: Vec<i64>,
    /// Position of `[ItemEmb]`, item and behaviour of the events, in order of time.
    pub events: Vec<(usize, u32, u32)>,
    /// Position of `[CansEmb]` and the candidate.
    pub candidates: Vec<(usize, u32)>,
    /// Position whose output is to be an item, and that item; for answers by item token.
    pub asked: Vec<(usize, u32)>,
}

impl Row {
    /// The row as a batch takes it.
    pub fn parts(&self) -> RowParts<'_> {
        RowParts {
            ids: &self.ids,
            labels: &self.labels,
            events: &self.events,
            candidates: &self.candidates,
            asked: &self.asked,
        }
    }

    fn push(&mut self, token: u32, learnt: bool) {
        self.ids.push(token);
        self.labels.push(if learnt { i64::from(token) } else { IGNORED });
    }

    fn extend(&mut self, tokens: &[u32], learnt: bool) {
        tokens.iter().for_each(|&token| self.push(token, learnt));
    }
}

impl Prompter {
    /// Texts a vocabulary is trained on, with their counts: titles as often as `sequences` show
    /// them and once more, and the templates.
    pub fn texts(data: &Dataset, sequences: &[Vec<Step>]) -> Vec<(String, usize)> {
        let mut counts = vec![1; data.items.len()];
        sequences.iter().flatten().for_each(|step| counts[step.item as usize] += 1);
        let titles = data.items.iter().map(|item| format!(" {}", item.title)).zip(counts);
        let common: usize = sequences.len().max(2);
        titles.chain(TEMPLATES.iter().flatten().map(|&part| (part.to_owned(), common))).collect()
    }

    /// Encodes all titles of `data`.
    ///
    /// # Errors
    /// None but bugs.
    pub fn new(vocabulary: Vocabulary, data: &Dataset, options: PromptOptions) -> Result<Self> {
        let most = options.title_tokens;
        let titles = data.items.iter().map(|item| vocabulary.title(&item.title, most));
        let titles = titles.collect::<Result<_>>()?;
        let encode = |part: &str| vocabulary.text(part);
        let templates = TEMPLATES
            .iter()
            .map(|[a, b, c]| Ok([encode(a)?, encode(b)?, encode(c)?]))
            .collect::<Result<_>>()?;
        Ok(Self { titles, templates, target: data.target, vocabulary, options })
    }

    /// Items of the catalogue.
    pub fn items(&self) -> usize {
        self.titles.len()
    }

    /// Tokens of an item's title.
    pub fn title(&self, item: u32) -> &[u32] {
        &self.titles[item as usize]
    }

    /// Title and [`END`], as an answer holds them.
    pub fn answer(&self, item: u32) -> Vec<u32> {
        let mut tokens = self.title(item).to_vec();
        tokens.push(self.vocabulary.end);
        tokens
    }

    /// The prompt up to the token that asks for the answer. `learn_history` makes targets of the
    /// history's items too: each is the answer to the prompt before it.
    pub fn prompt(
        &self,
        history: &[Step],
        candidates: Option<&[u32]>,
        template: usize,
        learn_history: bool,
    ) -> Row {
        let mut row = self.shown(history, candidates, template, learn_history);
        if let Some(query) = self.query(self.target.unwrap_or(0)) {
            row.push(query, false);
        }
        row
    }

    /// The prompt without the token that asks.
    fn shown(
        &self,
        history: &[Step],
        candidates: Option<&[u32]>,
        template: usize,
        learn_history: bool,
    ) -> Row {
        let v = &self.vocabulary;
        let by_title = self.options.answer == Answer::Title;
        let [intro, question, answer] = &self.templates[template % self.templates.len()];
        let mut row = Row::default();
        row.extend(intro, false);
        for &step in &history[history.len().saturating_sub(self.options.history)..] {
            if let Some(query) = self.query(step.behaviour) {
                row.push(query, false);
            }
            if learn_history && !by_title && !row.events.is_empty() {
                row.asked.push((row.ids.len() - 1, step.item));
            }
            if self.options.titles {
                row.extend(self.title(step.item), learn_history && by_title);
            }
            if self.options.behaviour_tokens && self.target.is_none() {
                row.push(v.behaviours[step.behaviour as usize], false);
            }
            row.events.push((row.ids.len(), step.item, step.behaviour));
            row.push(v.item, false);
        }
        if let Some(candidates) = candidates {
            row.extend(question, false);
            for &item in candidates {
                row.extend(self.title(item), false);
                row.candidates.push((row.ids.len(), item));
                row.push(v.candidate, false);
            }
        }
        if by_title {
            row.extend(answer, false);
        }
        row
    }

    /// The prompt with its answer. Where the prompt names the behaviour, it names the answer's.
    pub fn example(
        &self,
        history: &[Step],
        candidates: Option<&[u32]>,
        answer: Step,
        template: usize,
        learn_history: bool,
    ) -> Row {
        let mut row = self.shown(history, candidates, template, learn_history);
        if let Some(query) = self.query(answer.behaviour) {
            row.push(query, false);
        }
        match self.options.answer {
            Answer::Item => row.asked.push((row.ids.len() - 1, answer.item)),
            Answer::Title => row.extend(&self.answer(answer.item), true),
        }
        row
    }

    /// The token that asks for an item, where the form has one.
    fn query(&self, behaviour: u32) -> Option<u32> {
        match (self.target, self.options.answer) {
            (Some(_), _) if self.options.behaviour_tokens => {
                Some(self.vocabulary.behaviours[behaviour as usize])
            }
            (None, Answer::Item) => None,
            _ => Some(self.vocabulary.next),
        }
    }

    /// The prompt as a person reads it.
    ///
    /// # Errors
    /// None but bugs.
    pub fn show(&self, row: &Row, data: &Dataset) -> Result<String> {
        let mut text = String::new();
        let v = &self.vocabulary;
        for &id in &row.ids {
            if let Some(at) = v.behaviours.iter().position(|&b| b == id) {
                text.push_str(&format!(" <b_{}>", data.behaviours[at]));
            } else if id == v.item {
                text.push_str(" [ItemEmb]");
            } else if id == v.candidate {
                text.push_str(" [CansEmb]");
            } else if id == v.next {
                text.push_str(" <next>");
            } else {
                text.push_str(&v.decode(&[id])?);
            }
        }
        Ok(text.trim_end_matches(END).to_owned())
    }
}
