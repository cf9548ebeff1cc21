//! Chat templates: a conversation as the text that the model was trained on.
//!
//! Templates come with model files, so they are programs of strangers. minijinja runs them with a
//! fuel budget, which bounds time and memory, and without access to files or other templates.
//!
//! Messages enter as placeholders and are put back after rendering, so no template and no message
//! can turn a message's text into special tokens: [`Piece`] keeps the two apart to the end.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error as JinjaError, ErrorKind, State, Value, context};
use minijinja_contrib::pycompat;

use super::request::{Message, Role};
use crate::{Error, Result};

/// About a second of the slowest instructions, and 13 MB.
const FUEL: u64 = 200_000;
/// Templates that define themselves deeper than this overflow no stack before they are refused.
const RECURSION: usize = 50;
/// The templates of published models are below 20 kB.
const MAX_SOURCE: usize = 200_000;
/// A private-use character before and after the number of a message.
const MARK: char = '\u{F8FE}';

/// The format that most models without a template of their own were tuned on.
const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n\
     {{ message['content'] }}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' }}";

/// A part of a rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// Text of the template: special tokens in it count.
    Template(String),
    /// Text of a message: nothing in it is a special token.
    Message(String),
}

#[derive(Debug)]
pub(super) struct ChatTemplate {
    env: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles `source`, or ChatML where there is none. `bos` and `eos` are the texts of those
    /// tokens, empty where the model has none.
    pub(super) fn new(source: Option<&str>, bos: &str, eos: &str) -> Result<Self> {
        let source = source.unwrap_or(CHATML);
        if source.len() > MAX_SOURCE {
            return Err(invalid(format!(
                "it has {} bytes, expected at most {MAX_SOURCE}",
                source.len()
            )));
        }
        if source.contains(MARK) {
            return Err(invalid(format!("it holds the private-use character {MARK:?}")));
        }
        let mut env = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        // As transformers sets them.
        syntax.trim_blocks(true).lstrip_blocks(true);
        env.set_syntax(syntax.build().map_err(|error| invalid(error.to_string()))?);
        env.set_fuel(Some(FUEL));
        env.set_recursion_limit(RECURSION);
        env.set_unknown_method_callback(python_method);
        env.add_function("raise_exception", |message: String| -> Result<Value, JinjaError> {
            Err(JinjaError::new(ErrorKind::InvalidOperation, message))
        });
        env.add_function("strftime_now", strftime);
        env.add_template_owned("chat", source.to_owned())
            .map_err(|error| invalid(describe(&error)))?;
        Ok(Self { env, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The conversation up to where the assistant speaks.
    ///
    /// A template that takes no system role gets the system text in front of the first user
    /// message.
    pub(super) fn render(&self, messages: &[Message]) -> Result<Vec<Piece>> {
        let mut turns = messages
            .iter()
            .map(|message| Ok((message.role, message.text()?)))
            .collect::<Result<Vec<_>>>()?;
        match self.render_turns(&turns) {
            Ok(pieces) => Ok(pieces),
            Err(error) => {
                let [(Role::System, _), (Role::User, _), ..] = turns.as_slice() else {
                    return Err(error);
                };
                let (_, system) = turns.remove(0);
                turns[0].1 = format!("{system}\n\n{}", turns[0].1);
                // The first error says more about the conversation as it was given.
                self.render_turns(&turns).map_err(|_| error)
            }
        }
    }

    fn render_turns(&self, turns: &[(Role, String)]) -> Result<Vec<Piece>> {
        let bodies: Vec<&str> = turns.iter().map(|(_, text)| text.trim()).collect();
        let messages: Vec<Value> = turns
            .iter()
            .zip(&bodies)
            .enumerate()
            .map(|(index, ((role, text), body))| {
                // White space around a message stays visible: some templates trim it.
                let start = text.len() - text.trim_start().len();
                let content = if body.is_empty() {
                    text.clone()
                } else {
                    let (before, after) = (&text[..start], &text[start + body.len()..]);
                    format!("{before}{MARK}{index}{MARK}{after}")
                };
                context! { role => role.as_str(), content => content }
            })
            .collect();
        let context = context! {
            messages => messages,
            add_generation_prompt => true,
            // Models that think on request answer at once: answers are short or scored.
            enable_thinking => false,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        let template = self.env.get_template("chat").map_err(|error| invalid(describe(&error)))?;
        let text = template.render(context).map_err(|error| invalid(describe(&error)))?;
        split(&text, &bodies)
    }
}

/// Puts the messages back in place of their placeholders.
fn split(text: &str, bodies: &[&str]) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut seen = vec![false; bodies.len()];
    for (position, part) in text.split(MARK).enumerate() {
        if position % 2 == 0 {
            if !part.is_empty() {
                pieces.push(Piece::Template(part.to_owned()));
            }
            continue;
        }
        let body = part.parse().ok().and_then(|index: usize| Some((index, bodies.get(index)?)));
        let Some((index, body)) = body else {
            return Err(invalid("it changes the text of a message"));
        };
        seen[index] = true;
        pieces.push(Piece::Message((*body).to_owned()));
    }
    match seen.iter().zip(bodies).position(|(seen, body)| !seen && !body.is_empty()) {
        Some(index) => Err(invalid(format!("it leaves out message {}", index + 1))),
        None => Ok(pieces),
    }
}

/// Methods of Python's types. Fuel does not bound the width of a formatted number, so wide ones
/// are refused first.
fn python_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, JinjaError> {
    if method == "format" && value.as_str().is_some_and(is_wide_format) {
        return Err(JinjaError::new(ErrorKind::InvalidOperation, "a width of more than 999"));
    }
    pycompat::unknown_method_callback(state, value, method, arguments)
}

/// Whether a format holds a number of more than three digits.
fn is_wide_format(format: &str) -> bool {
    let mut digits = 0;
    format.chars().any(|c| {
        digits = if c.is_ascii_digit() { digits + 1 } else { 0 };
        digits > 3
    })
}

fn invalid(problem: impl Into<String>) -> Error {
    Error::asset("chat template", problem, "use a model with a working chat template")
}

fn describe(error: &JinjaError) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return "it runs for too long or builds too much text".to_owned();
    }
    let place = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let text: String = error.to_string().chars().take(300).collect();
    format!("{place}{text}")
}

/// The day on which every prompt is written: prompts that change with the calendar could neither
/// be cached nor compared. It is the day that Llama 3's template falls back to.
fn strftime(format: &str) -> Result<String, JinjaError> {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let directive = match chars.next() {
            Some('-') => chars.next(),
            other => other,
        };
        out.push_str(match directive {
            Some('Y') => "2024",
            Some('y') => "24",
            Some('m') => "07",
            Some('B') => "July",
            Some('b' | 'h') => "Jul",
            Some('d' | 'e') => "26",
            Some('j') => "208",
            Some('A') => "Friday",
            Some('a') => "Fri",
            Some('F') => "2024-07-26",
            Some('H' | 'I' | 'M' | 'S') => "00",
            Some('T') => "00:00:00",
            Some('p') => "AM",
            Some('Z') => "UTC",
            Some('z') => "+0000",
            Some('%') => "%",
            other => {
                return Err(JinjaError::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now does not know %{}", other.unwrap_or(' ')),
                ));
            }
        });
    }
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn text(pieces: &[Piece]) -> String {
        pieces
            .iter()
            .map(|piece| match piece {
                Piece::Template(text) | Piece::Message(text) => text.as_str(),
            })
            .collect()
    }

    fn render(source: &str, messages: &[Message]) -> Result<String> {
        Ok(text(&ChatTemplate::new(Some(source), "<s>", "</s>")?.render(messages)?))
    }

    fn chat() -> Vec<Message> {
        vec![Message::system("Be brief."), Message::user("  Hello <|im_end|>\n")]
    }

    #[test]
    fn chatml_is_the_fallback_and_keeps_messages_apart() {
        let pieces = ChatTemplate::new(None, "", "").unwrap().render(&chat()).unwrap();
        assert_eq!(
            text(&pieces),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n  Hello <|im_end|>\n\
             <|im_end|>\n<|im_start|>assistant\n"
        );
        assert!(pieces.contains(&Piece::Message("Hello <|im_end|>".to_owned())), "{pieces:?}");
    }

    /// Gemma 3's own template, shortened to what text needs.
    const GEMMA: &str = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
        {{ raise_exception('System role not supported') }}{% endif %}\
        {% for message in messages %}\
        {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
        {{ raise_exception('Conversation roles must alternate') }}{% endif %}\
        {% if (message['role'] == 'assistant') %}{% set role = 'model' %}\
        {% else %}{% set role = message['role'] %}{% endif %}\
        {{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}\
        {% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}";

    #[test]
    fn a_system_text_moves_into_the_user_turn_where_the_role_is_unknown() {
        assert_eq!(
            render(GEMMA, &chat()).unwrap(),
            "<s><start_of_turn>user\nBe brief.\n\n  Hello <|im_end|><end_of_turn>\n\
             <start_of_turn>model\n"
        );
        let error = render(GEMMA, &[Message::assistant("a"), Message::user("b")]).unwrap_err();
        assert!(error.to_string().contains("must alternate"), "{error}");
    }

    #[test]
    fn python_methods_dates_and_loops_of_published_templates_work() {
        let source = "{%- set ns = namespace(first=true) -%}\
            {%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}\
            {%- endif -%}Today: {{ date_string }}\n\
            {%- for message in messages if message.role != 'tool' -%}\
            {%- if message.content.startswith('x') %}{% continue %}{% endif -%}\
            \n[{{ message.role.upper() }}] {{ message.content.strip() }}\
            {%- endfor %}{{ eos_token }}";
        let rendered = render(source, &chat()).unwrap();
        assert_eq!(rendered, "Today: 26 Jul 2024\n[SYSTEM] Be brief.\n[USER] Hello <|im_end|></s>");
    }

    #[test]
    fn a_template_that_drops_or_changes_messages_is_refused() {
        for source in ["{{ messages[0].content }}", "{{ messages[1].content[1:] }}"] {
            let error = render(source, &[Message::user("a"), Message::user("b")]).unwrap_err();
            assert_eq!(error.exit_code(), 4, "{error}");
        }
    }

    #[test]
    fn endless_huge_and_deep_templates_stop_within_a_second() {
        let nested = |open: &str, close: &str| {
            format!("{{{{ {}1{} }}}}", open.repeat(5_000), close.repeat(5_000))
        };
        let templates = [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
                .to_owned(),
            "{% for a in range(1000000000) %}x{% endfor %}".to_owned(),
            "{{ 'x' * 1000000000 }}".to_owned(),
            "{{ 'x'|center(1000000000) }}".to_owned(),
            "{{ '%1000000000d'|format(1) }}".to_owned(),
            "{{ '%*d'|format(1000000000, 1) }}".to_owned(),
            "{{ '{:>1000000000}'.format(1) }}".to_owned(),
            "{{ '{:.1000000000f}'.format(1.5) }}".to_owned(),
            "{{ '{:{}}'.format(1, 1000000000) }}".to_owned(),
            "{{ 'x'.replace('', 'y' * 100000).replace('', 'y' * 100000) }}".to_owned(),
            "{{ range(1000000000)|list }}".to_owned(),
            "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(60) %}\
             {% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}"
                .to_owned(),
            "{% set n = namespace(s=[1]) %}{% for i in range(99999) %}\
             {% set n.s = [n.s] %}{% endfor %}{{ n.s }}"
                .to_owned(),
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_owned(),
            "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}".to_owned(),
            nested("(", ")"),
            nested("[", "]"),
            "{% if true %}".repeat(5_000),
            "{{ 9**9**9**9 }}".to_owned(),
            "{% include 'chat' %}".to_owned(),
            "{% extends 'chat' %}".to_owned(),
            "{{ messages".to_owned(),
        ];
        for source in templates {
            let start = Instant::now();
            // The small stack of a test or worker thread has to do.
            let result = render(&source, &[Message::user("hi")]);
            let name: String = source.chars().take(60).collect();
            assert!(start.elapsed() < Duration::from_secs(1), "{name}: {:?}", start.elapsed());
            let error = result.expect_err(&name);
            assert!(error.to_string().len() < 600, "{name}: {error}");
        }
    }
}
