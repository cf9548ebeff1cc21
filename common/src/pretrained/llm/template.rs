//! Chat templates: a conversation as the text that the model was trained on.
//!
//! Templates come with model files, so they are programs of strangers. minijinja runs them with a
//! fuel budget and without access to files or other templates; what fuel does not bound is bounded
//! here: the sizes of source, tags, output and formatted text, the stack (a thread of its own),
//! and the time, after which the thread is left to itself. A template that builds a text out of
//! lists nested exponentially often can use up memory in that time: fuel does not count it.
//!
//! Messages enter as placeholders and are put back after rendering, so no template and no message
//! can turn a message's text into special tokens: [`Piece`] keeps the two apart to the end.

use std::io::Write;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error as JinjaError, ErrorKind, State, Value, context};
use minijinja_contrib::pycompat;

use super::request::{Message, Role};
use crate::{Error, Result};

/// minijinja's budget: a few hundred messages, a tenth of a second, 6 MB.
const FUEL: u64 = 100_000;
/// Macros and loops that call themselves deeper than this are refused.
const RECURSION: usize = 50;
const TIME: Duration = Duration::from_millis(900);
/// Parsing is recursive, and so is dropping nested lists.
const STACK: usize = 64 << 20;
/// The templates of published models are below 20 kB, their longest tags below 1 kB.
const MAX_SOURCE: usize = 128 << 10;
const MAX_TAG: usize = 4_000;
const MAX_BRANCHES: usize = 500;
/// Bytes of rendered text (messages are placeholders in it), and of text that a method returns.
const MAX_TEXT: usize = 1 << 20;
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
    env: Arc<Environment<'static>>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Compiles `source`, or ChatML where there is none. `bos` and `eos` are the texts of those
    /// tokens, empty where the model has none.
    pub(super) fn new(source: Option<&str>, bos: &str, eos: &str) -> Result<Self> {
        let source = source.unwrap_or(CHATML).to_owned();
        check_source(&source)?;
        let env = bounded(move || compile(source))?;
        Ok(Self { env: Arc::new(env), bos: bos.to_owned(), eos: eos.to_owned() })
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
        let env = Arc::clone(&self.env);
        let text = bounded(move || {
            let template = env.get_template("chat").map_err(|error| describe(&error))?;
            let mut text = Text(Vec::new());
            template.render_captured_to(context, &mut text).map_err(|error| describe(&error))?;
            String::from_utf8(text.0).map_err(|error| error.to_string())
        })?;
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

fn check_source(source: &str) -> Result<()> {
    let longest = |open: &str, close: &str| {
        let tags = source.split(open).skip(1);
        tags.map(|tag| tag.find(close).unwrap_or(tag.len())).max().unwrap_or_default()
    };
    let tag = longest("{{", "}}").max(longest("{%", "%}"));
    let branches = source.matches("elif").count();
    let problem = if source.len() > MAX_SOURCE {
        format!("it has {} bytes, expected at most {MAX_SOURCE}", source.len())
    } else if tag > MAX_TAG {
        format!("it has a tag of {tag} bytes, expected at most {MAX_TAG}")
    } else if branches > MAX_BRANCHES {
        format!("it has {branches} branches, expected at most {MAX_BRANCHES}")
    } else if source.contains(MARK) {
        format!("it holds the private-use character {MARK:?}")
    } else {
        return Ok(());
    };
    Err(invalid(problem))
}

/// Runs a part of minijinja on a stack of its own, for a limited time; its panics and `Err` texts
/// become errors.
fn bounded<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new()
        .name("chat-template".to_owned())
        .stack_size(STACK)
        .spawn(move || drop(sender.send(work())))
        .map_err(|error| Error::Temporary(format!("no thread for the chat template: {error}")))?;
    match receiver.recv_timeout(TIME) {
        Ok(result) => result.map_err(invalid),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(invalid(TOO_LONG)),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(invalid("the template engine fails")),
    }
}

fn compile(source: String) -> Result<Environment<'static>, String> {
    let mut env = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    // As transformers sets them.
    syntax.trim_blocks(true).lstrip_blocks(true);
    env.set_syntax(syntax.build().map_err(|error| error.to_string())?);
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(RECURSION);
    env.set_unknown_method_callback(python_method);
    env.add_filter("tojson", to_json);
    env.add_function("raise_exception", |message: Value| -> Result<Value, JinjaError> {
        Err(refusal(message.as_str().unwrap_or("the template refuses the conversation").to_owned()))
    });
    env.add_function("strftime_now", |format: Value| {
        let format = format.as_str().ok_or_else(|| refusal("strftime_now needs a text"))?;
        strftime(format)
    });
    env.add_template_owned("chat", source).map_err(|error| describe(&error))?;
    Ok(env)
}

/// Rendered text up to [`MAX_TEXT`].
struct Text(Vec<u8>);

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_TEXT {
            return Err(std::io::Error::other(TOO_LONG));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Methods of Python's types. Their results are only charged once they exist, so those that can
/// be much longer than what went in are estimated first.
fn python_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, JinjaError> {
    if let Some(text) = value.as_str() {
        let length = |value: &Value| value.as_str().map_or(64, str::len);
        let bound = match (method, arguments) {
            ("replace", [old, new, ..]) => {
                (text.len() / length(old).max(1) + 1).saturating_mul(length(new))
            }
            ("join", [items, ..]) => {
                let mut sum = 0_usize;
                for item in items.try_iter()? {
                    if !is_plain(&item) {
                        return Err(refusal("join takes texts and numbers"));
                    }
                    sum = sum.saturating_add(length(&item)).saturating_add(text.len());
                    if sum > MAX_TEXT {
                        break;
                    }
                }
                sum
            }
            ("format", arguments) => {
                if !arguments.iter().all(is_plain) || is_wide(text) {
                    return Err(refusal("format takes texts, and numbers of up to 999 places"));
                }
                let longest = arguments.iter().map(length).max().unwrap_or_default();
                (text.len() / 2 + 1).saturating_mul(longest.max(999))
            }
            _ => 0,
        };
        if bound > MAX_TEXT {
            return Err(refusal(TOO_LONG));
        }
    }
    pycompat::unknown_method_callback(state, value, method, arguments)
}

fn is_plain(value: &Value) -> bool {
    use ValueKind::{Bool, None, Number, String, Undefined};
    matches!(value.kind(), String | Number | Bool | None | Undefined)
}

/// Whether a format holds a number of more than three digits.
fn is_wide(format: &str) -> bool {
    let mut digits = 0;
    format.chars().any(|c| {
        digits = if c.is_ascii_digit() { digits + 1 } else { 0 };
        digits > 3
    })
}

/// JSON as minijinja writes it, with a bounded indentation.
fn to_json(value: Value, indent: Option<Value>, options: Kwargs) -> Result<Value, JinjaError> {
    let wide = |indent: &Value| indent.as_i64().is_none_or(|indent| indent > 16);
    let by_name = options.peek::<Option<Value>>("indent").ok().flatten();
    if indent.iter().chain(&by_name).any(|indent| !indent.is_none() && wide(indent)) {
        return Err(refusal("tojson indents by up to 16"));
    }
    minijinja::filters::tojson(&value, indent, options)
}

fn refusal(message: impl Into<std::borrow::Cow<'static, str>>) -> JinjaError {
    JinjaError::new(ErrorKind::InvalidOperation, message)
}

const TOO_LONG: &str = "it runs for too long or builds too much text";

fn invalid(problem: impl Into<String>) -> Error {
    Error::asset("chat template", problem, "use a model with a working chat template")
}

fn describe(error: &JinjaError) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return TOO_LONG.to_owned();
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
                let letter = other.unwrap_or(' ');
                return Err(refusal(format!("strftime_now does not know %{letter}")));
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
        assert_eq!(rendered, "Today: 26 Jul 2024[SYSTEM] Be brief.[USER] Hello <|im_end|></s>");
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
        let nested = |open: &str, close: &str, n: usize| {
            format!("{{{{ {}1{} }}}}", open.repeat(n), close.repeat(n))
        };
        let growing = |start: &str, step: &str, end: &str| {
            format!(
                "{{% set n = namespace(s={start}) %}}{{% for i in range(99999) %}}\
                 {{% set n.s = {step} %}}{{% endfor %}}{end}"
            )
        };
        let templates = [
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
                .to_owned(),
            "{% for a in range(1000000000) %}x{% endfor %}".to_owned(),
            "{{ range(1000000000)|list }}".to_owned(),
            "{{ 'x' * 1000000000 }}".to_owned(),
            "{{ '%1000000000d'|format(1) }}".to_owned(),
            "{{ '{:>1000000000}'.format(1) }}".to_owned(),
            "{{ '{:.1000000000f}'.format(1.5) }}".to_owned(),
            "{{ ('{0}' * 99999).format('y' * 100000) }}".to_owned(),
            "{{ 'x'.replace('', 'y' * 100000).replace('', 'y' * 100000) }}".to_owned(),
            "{{ 'x'|replace('', 'y' * 100000)|replace('', 'y' * 100000) }}".to_owned(),
            "{{ ('y' * 100000).join(range(99999)) }}".to_owned(),
            "{{ [[1], [2]]|tojson(indent=1000000000) }}".to_owned(),
            growing("'xxxxxxxx'", "n.s ~ n.s", "{{ n.s }}"),
            growing("[1]", "[n.s]", "{{ n.s }}"),
            growing("[1]", "[n.s]", "done"),
            growing("[1]", "n.s + n.s", "{{ n.s }}"),
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_owned(),
            "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}".to_owned(),
            nested("(", ")", 1_900),
            nested("[", "]", 50_000),
            nested("-", "", 3_900),
            nested("not ", "", 900),
            nested("", "+'a'", 50_000),
            nested("", "|upper", 600),
            nested("", ".a", 1_900),
            nested("", "**2", 1_300),
            nested("", " if 1 else 1", 300),
            "{% if true %}".repeat(5_000),
            format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(5_000)),
            "{{ 9**9**9**9 }}".to_owned(),
            "{% include 'chat' %}".to_owned(),
            "{% extends 'chat' %}".to_owned(),
            "{{ messages".to_owned(),
        ];
        for source in templates {
            let start = Instant::now();
            let result = render(&source, &[Message::user("hi")]);
            let name: String = source.chars().take(60).collect();
            assert!(start.elapsed() < Duration::from_secs(1), "{name}: {:?}", start.elapsed());
            let error = result.expect_err(&name);
            assert!(error.to_string().len() < 600, "{name}: {error}");
        }
    }

    #[test]
    fn a_thousand_damaged_templates_render_or_say_why_not() {
        const PARTS: [&str; 14] = [
            "{{",
            "}}",
            "{%",
            "%}",
            "{% for x in range(9) %}",
            "{% endfor %}",
            "{% if 1 %}",
            "messages",
            "|trim",
            "[0]",
            "\'",
            "(",
            ")",
            "{#",
        ];
        let mut stream = crate::rng::Seed::new(3).stream("templates");
        for round in 0..1_000 {
            let source = [GEMMA, CHATML][round % 2];
            let mut chars: Vec<char> = source.chars().collect();
            for _ in 0..1 + stream.below(4) {
                let at = stream.below(chars.len());
                let part = PARTS[stream.below(PARTS.len())];
                let removed = stream.below(20).min(chars.len() - at);
                chars.splice(at..at + removed, part.chars());
            }
            let source: String = chars.into_iter().collect();
            let start = Instant::now();
            if let Err(error) = render(&source, &chat()) {
                assert_eq!(error.exit_code(), 4, "{error}");
            }
            assert!(start.elapsed() < Duration::from_secs(1), "{source}");
        }
    }
}
