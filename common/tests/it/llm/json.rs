//! 10,000 generated answers through the JSON extraction.

use common::llm::json::{Extracted, Repair, extract};
use common::rng::{Seed, Stream};
use serde_json::{Value, json};

fn text(stream: &mut Stream) -> String {
    let parts = ["red", "\"", "\\", "}", "{", "],", "\n", "é", "🙂", ",", " ", "```", "<|im_end|>"];
    (0..stream.below(6)).map(|_| parts[stream.below(parts.len())]).collect()
}

fn value(stream: &mut Stream, depth: usize) -> Value {
    match stream.below(if depth == 0 { 5 } else { 7 }) {
        0 => Value::Null,
        1 => json!(stream.chance(0.5)),
        2 => json!(stream.below(1_000)),
        3 => json!(stream.normal()),
        4 => json!(text(stream)),
        5 => (0..stream.below(4)).map(|_| value(stream, depth - 1)).collect(),
        _ => object(stream, depth - 1),
    }
}

fn object(stream: &mut Stream, depth: usize) -> Value {
    let entries = (0..1 + stream.below(4)).map(|n| (format!("k{n}"), value(stream, depth)));
    Value::Object(entries.collect())
}

/// `json` with a comma before its last bracket.
fn with_comma(json: &str) -> String {
    format!("{} , }}", &json[..json.len() - 1])
}

#[test]
fn ten_thousand_answers_are_ok_repaired_or_failed_as_they_should() {
    let mut stream = Seed::new(5).stream("json");
    let mut counts = [0; 3];
    for row in 0..10_000 {
        let value = object(&mut stream, 3);
        let pretty = stream.chance(0.5);
        let json = if pretty { format!("{value:#}") } else { value.to_string() };
        let expect_failure = |text: &str| match extract(text) {
            Extracted::Failed(reason) => assert!(!reason.is_empty()),
            other => panic!("row {row}: {text}\n{other:?}"),
        };
        let expect_repair = |text: &str, repairs: &[Repair]| {
            let expected = Extracted::Repaired { value: value.clone(), repairs: repairs.to_vec() };
            assert_eq!(extract(text), expected, "row {row}: {text}");
        };
        let kind = stream.below(10);
        match kind {
            0 => assert_eq!(extract(&json), Extracted::Ok(value.clone()), "row {row}"),
            1 => {
                expect_repair(&format!("Sure, here you are: {json} Ask me!"), &[Repair::TextAround])
            }
            2 => expect_repair(&format!("```json\n{json}\n```"), &[Repair::CodeFence]),
            3 => expect_repair(&with_comma(&json), &[Repair::TrailingComma]),
            4 => {
                let mut cut = 1 + stream.below(json.len() - 1);
                while !json.is_char_boundary(cut) {
                    cut -= 1;
                }
                expect_failure(&format!("Answer: {}", &json[..cut.max(1)]));
            }
            5 => expect_failure(&format!("{{\"a\": {json}, \"b\": NaN}}")),
            6 => expect_failure(&format!("{{\"a\": 1e999, \"b\": {json}}}")),
            7 => {
                let deep = 200 + stream.below(5_000);
                let deep = format!("{}{json}{}", "[".repeat(deep), "]".repeat(deep));
                expect_failure(&deep);
            }
            8 => {
                let other = json!({ "other": row });
                expect_failure(&format!("{json}\n{other}"));
            }
            // Anything at all: it only has to come back.
            _ => {
                let mut bytes = json.into_bytes();
                for _ in 0..1 + stream.below(4) {
                    let at = stream.below(bytes.len());
                    bytes[at] = b"{}[]\",:\\ 0eN\xff"[stream.below(13)];
                }
                let noise = String::from_utf8_lossy(&bytes).into_owned();
                counts[state(&extract(&noise))] += 1;
                continue;
            }
        }
        counts[match kind {
            0 => 0,
            1..=3 => 1,
            _ => 2,
        }] += 1;
    }
    assert_eq!(counts.iter().sum::<usize>(), 10_000);
    assert!(counts.iter().all(|&count| count > 500), "{counts:?}");
}

fn state(found: &Extracted) -> usize {
    match found {
        Extracted::Ok(_) => 0,
        Extracted::Repaired { .. } => 1,
        Extracted::Failed(_) => 2,
    }
}

#[test]
fn ten_megabytes_take_seconds() {
    let hostile = [
        "[".repeat(10 << 20),
        "[1 ".repeat(3 << 20),
        "{\"a\":1".repeat(1 << 20),
        "{x} ".repeat(2 << 20),
        "[1 x] ".repeat(1 << 20),
        format!("[{}", "1,".repeat(5 << 20)),
        format!("\"{}", "\\\"".repeat(5 << 20)),
    ];
    for text in hostile {
        let start = std::time::Instant::now();
        assert!(extract(&text).value().is_none());
        let taken = start.elapsed();
        assert!(taken.as_secs_f64() < 8.0, "{}: {taken:?}", &text[..8]);
    }
}
