//! The endpoint client and the answer cache against a server that misbehaves.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::assets::{AssetOptions, Assets};
use common::llm::{
    Answer, ApiKey, EndpointOptions, Finish, Llm, LlmOptions, Message, Prompt, Request,
};
use common::rng::Seed;
use common::testing::endpoint::{MockEndpoint, Reply};
use serde_json::json;

const CANARY: &str = "sk-canary-7f3a9c51e2";

fn options(cache: Option<&Path>) -> LlmOptions {
    let folder = std::env::temp_dir().join("septet-test-without-assets");
    let assets = AssetOptions { cache: folder, ..AssetOptions::default() };
    LlmOptions {
        cache: cache.map(Path::to_path_buf),
        endpoint: EndpointOptions {
            key: None,
            attempt_timeout: Duration::from_millis(1_500),
            budget: Duration::from_secs(60),
            attempts: 12,
            backoff: Duration::from_millis(4),
            max_backoff: Duration::from_millis(50),
            max_response_bytes: 1 << 20,
        },
        ..LlmOptions::new(Assets::new(assets))
    }
}

fn open(spec: &str, options: &LlmOptions) -> Llm {
    Llm::open(&spec.parse().unwrap(), options).unwrap()
}

fn ask(text: impl std::fmt::Display) -> Request {
    Request::new(vec![Message::system("Answer in capitals."), Message::user(text.to_string())])
}

fn rows(n: usize) -> Vec<Request> {
    (0..n).map(|row| ask(format!("product {row}"))).collect()
}

/// Every answer by row; fails when one is delivered twice.
fn run(llm: &Llm, requests: &[Request]) -> common::Result<HashMap<usize, Answer>> {
    let mut answers = HashMap::new();
    llm.generate_many(requests, 32, |row, answer| {
        assert!(answers.insert(row, answer?).is_none(), "row {row} came twice");
        Ok(())
    })?;
    Ok(answers)
}

#[test]
fn a_third_of_faulty_calls_loses_and_doubles_nothing() {
    let requests = rows(1_000);
    let server = MockEndpoint::faulty(0.3, 7, |call| call.last_text().to_uppercase());
    let folder = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let answers = run(&open(&server.spec(), &options(Some(folder.path()))), &requests).unwrap();
    let seconds = start.elapsed().as_secs_f64();

    assert_eq!(answers.len(), 1_000);
    for (row, answer) in &answers {
        assert_eq!(answer.text, format!("PRODUCT {row}"));
        assert!(answer.complete());
    }
    let calls = server.calls();
    assert!((1_100..=1_600).contains(&calls), "{calls} calls");
    assert!(seconds < 60.0, "{seconds} s");

    // The second run is the same table without a call.
    let again = run(&open(&server.spec(), &options(Some(folder.path()))), &requests).unwrap();
    assert_eq!(server.calls(), calls);
    assert!(again.values().all(|answer| answer.cached));
    for (row, answer) in &answers {
        assert_eq!(again[row].text, answer.text);
    }
}

#[test]
fn an_endpoint_that_goes_down_ends_in_time_and_costs_only_what_is_missing() {
    let requests = rows(40);
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);

    // Ten rows are answered before it goes down; the model's name is the cache's key.
    let up = MockEndpoint::start(|call| Reply::chat(call.last_text()));
    let mut patience = options(Some(folder.path()));
    patience.endpoint.budget = Duration::from_millis(400);
    patience.endpoint.attempts = 1_000;
    run(&open(&up.spec(), &patience), &requests[..10]).unwrap();
    assert_eq!(up.calls(), 10);

    let start = Instant::now();
    let down = format!("openai:http://{closed}/v1#mock");
    let error = run(&open(&down, &patience), &requests).unwrap_err();
    assert_eq!(error.exit_code(), 75, "{error}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());

    let answers = run(&open(&up.spec(), &patience), &requests).unwrap();
    assert_eq!((answers.len(), up.calls()), (40, 40));
}

#[test]
fn equal_requests_in_flight_and_in_two_handles_are_asked_once() {
    let server = MockEndpoint::start(|call| {
        std::thread::sleep(Duration::from_millis(20));
        Reply::chat(call.last_text())
    });
    let folder = tempfile::tempdir().unwrap();
    let requests: Vec<Request> = (0..64).map(|n| ask(n % 4)).collect();
    let (one, two) = (
        open(&server.spec(), &options(Some(folder.path()))),
        open(&server.spec(), &options(Some(folder.path()))),
    );
    std::thread::scope(|scope| {
        let other = scope.spawn(|| run(&two, &requests).unwrap().len());
        assert_eq!(run(&one, &requests).unwrap().len(), 64);
        assert_eq!(other.join().unwrap(), 64);
    });
    assert_eq!(server.calls(), 4);
}

/// Not a test of its own: the process that [`killed_runs_never_ask_a_finished_answer_again`] kills.
#[test]
#[ignore = "started by another test as a child process"]
fn child_asks_all_rows() {
    let (Ok(spec), Ok(cache)) =
        (std::env::var("SEPTET_TEST_SPEC"), std::env::var("SEPTET_TEST_FOLDER"))
    else {
        return;
    };
    let llm = open(&spec, &options(Some(Path::new(&cache))));
    assert_eq!(run(&llm, &rows(600)).unwrap().len(), 600);
}

#[test]
fn killed_runs_never_ask_a_finished_answer_again() {
    let server = MockEndpoint::start(|call| {
        std::thread::sleep(Duration::from_millis(5));
        Reply::chat(call.last_text())
    });
    let folder = tempfile::tempdir().unwrap();
    let child = || {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "llm::endpoint::child_asks_all_rows", "--ignored", "--nocapture"])
            .env("SEPTET_TEST_SPEC", server.spec())
            .env("SEPTET_TEST_FOLDER", folder.path())
            .stdout(std::process::Stdio::null());
        command.spawn().unwrap()
    };
    let finished = || -> Vec<String> {
        let mut files =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let Some(file) = files.find(|file| file.is_file()) else { return Vec::new() };
        let text = String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned();
        text.split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .map(|line| line["request"]["messages"][1]["content"][0].as_str().unwrap().to_owned())
            .collect()
    };
    let calls_of = |text: &str| {
        let counts = server.calls_per_request();
        counts.iter().filter(|(key, _)| key.contains(&format!("\"{text}\""))).map(|(_, n)| n).sum()
    };

    let mut stream = Seed::new(11).stream("kill");
    let (mut settled, mut kills) = (HashMap::<String, usize>::new(), 0);
    for _ in 0..20 {
        let asked_before = server.calls();
        let done_before = finished().len();
        let mut process = child();
        std::thread::sleep(Duration::from_micros(5_000 + stream.below(60_000) as u64));
        process.kill().unwrap();
        kills += 1;
        process.wait().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let done = finished();
        let asked = server.calls() - asked_before;
        assert!(
            asked <= done.len() - done_before + 32,
            "kill {kills}: {asked} calls for {} new answers",
            done.len() - done_before
        );
        for text in done {
            settled.entry(text.clone()).or_insert_with(|| calls_of(&text));
        }
    }
    assert!(child().wait().unwrap().success());
    for (text, calls) in &settled {
        assert_eq!(calls_of(text), *calls, "{text} was asked again after it was finished");
    }
    assert!(server.calls() <= 600 + 32 * kills, "{} calls", server.calls());
    assert!(!settled.is_empty(), "every kill came before the first answer");
}

#[test]
fn refusals_that_no_retry_mends_end_at_once_with_the_reason() {
    for (status, word) in [(401, "SEPTET_API_KEY"), (403, "SEPTET_API_KEY"), (404, "model name")] {
        let server = MockEndpoint::start(move |_| {
            Reply::json(status, &json!({ "error": { "message": "no such thing" } }))
        });
        let error = open(&server.spec(), &options(None)).generate(&ask("x")).unwrap_err();
        assert_eq!((error.exit_code(), server.calls()), (2, 1), "{error}");
        assert!(error.to_string().contains(word) && error.to_string().contains("no such thing"));
    }
    let quota = MockEndpoint::start(|_| {
        Reply::json(429, &json!({ "error": { "message": "pay", "code": "insufficient_quota" } }))
    });
    let error = open(&quota.spec(), &options(None)).generate(&ask("x")).unwrap_err();
    assert_eq!((error.exit_code(), quota.calls()), (2, 1), "{error}");
}

#[test]
fn a_refused_row_does_not_stop_the_others() {
    let server = MockEndpoint::start(|call| match call.last_text() {
        "product 3" => Reply::json(400, &json!({ "error": { "message": "prompt too long" } })),
        text => Reply::chat(text),
    });
    let llm = open(&server.spec(), &options(None));
    let (mut good, mut bad) = (0, Vec::new());
    llm.generate_many(&rows(8), 4, |row, answer| {
        match answer {
            Ok(_) => good += 1,
            Err(error) => bad.push((row, error.to_string())),
        }
        Ok(())
    })
    .unwrap();
    assert_eq!((good, bad.len(), bad[0].0), (7, 1, 3));
    assert!(bad[0].1.contains("prompt too long"), "{}", bad[0].1);
    assert_eq!(server.calls(), 8);
}

#[test]
fn unfinished_answers_are_not_complete_and_not_cached() {
    let folder = tempfile::tempdir().unwrap();
    for (finish, tokens, expected, calls) in [
        ("length", 256, Finish::Length, 1),
        ("length", 3, Finish::Length, 3),
        ("content_filter", 0, Finish::ContentFilter, 1),
        ("", 3, Finish::Other(String::new()), 3),
    ] {
        let server = MockEndpoint::start(move |_| {
            Reply::json(
                200,
                &json!({
                    "choices": [{ "message": { "content": "cut o" }, "finish_reason": finish }],
                    "usage": { "completion_tokens": tokens },
                }),
            )
        });
        let llm = open(&server.spec(), &options(Some(folder.path())));
        for round in 1..=2 {
            let answer = llm.generate(&ask("x")).unwrap();
            assert_eq!((&answer.finish, answer.complete()), (&expected, false));
            assert_eq!(server.calls(), calls * round, "{finish} {tokens}");
        }
    }
}

#[test]
fn retry_after_is_waited_for_unless_it_is_beyond_the_budget() {
    let server = MockEndpoint::start(|call| match call.earlier {
        0 => Reply::json(429, &json!({})).header("Retry-After", "0.3"),
        _ => Reply::chat("ok"),
    });
    let start = Instant::now();
    open(&server.spec(), &options(None)).generate(&ask("x")).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());

    let busy = MockEndpoint::start(|_| Reply::json(429, &json!({})).header("Retry-After", "86400"));
    let start = Instant::now();
    let error = open(&busy.spec(), &options(None)).generate(&ask("x")).unwrap_err();
    assert_eq!((error.exit_code(), busy.calls()), (75, 1));
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn dialects_are_found_and_kept() {
    // Takes neither json_schema nor guided_json, and lives without /v1.
    let server = MockEndpoint::start(|call| {
        if call.path != "/chat/completions" {
            return Reply::json(404, &json!({ "error": "not found" }));
        }
        let format = call.body["response_format"]["type"].as_str();
        if format != Some("json_object") || !call.body["guided_json"].is_null() {
            return Reply::json(400, &json!({ "error": { "message": "unknown format" } }));
        }
        Reply::chat(call.body["messages"][0]["content"].as_str().unwrap())
    });
    let llm = open(&format!("openai:{}#m", server.url()), &options(None));
    let schema = json!({ "type": "object", "properties": { "colour": { "type": "string" } } });
    let answer = llm.generate(&ask("a").schema(schema.clone())).unwrap();
    assert!(answer.text.contains("colour"), "the schema is in the prompt: {}", answer.text);
    assert_eq!(server.calls(), 4);
    llm.generate(&ask("b").schema(schema)).unwrap();
    assert_eq!(server.calls(), 5, "what was learnt is kept");

    // llama-cpp-python: 500 for a format that it does not know, the schema within json_object.
    let python = MockEndpoint::start(|call| {
        let format = &call.body["response_format"];
        if format["type"] != "json_object" {
            let message = "[{'loc': ('body', 'response_format', 'type'), 'msg': \"Input should be \
                           'text' or 'json_object'\"}]";
            return Reply::json(500, &json!({ "error": { "message": message } }));
        }
        Reply::chat(&format["schema"].to_string())
    });
    let schema = json!({ "type": "object", "properties": { "size": { "type": "string" } } });
    let answer = open(&python.spec(), &options(None)).generate(&ask("a").schema(schema)).unwrap();
    assert!(answer.text.contains("size"), "{}", answer.text);
    assert_eq!(python.calls(), 2);

    let reasoner = MockEndpoint::start(|call| match call.body.get("max_completion_tokens") {
        None => Reply::json(
            400,
            &json!({ "error": { "message": "Unsupported parameter: 'max_tokens'. Use \
                                            'max_completion_tokens' instead." } }),
        ),
        Some(limit) => Reply::chat(&limit.to_string()),
    });
    let answer = open(&reasoner.spec(), &options(None)).generate(&ask("a").max_tokens(9)).unwrap();
    assert_eq!(answer.text, "9");
}

#[test]
fn the_key_goes_to_the_endpoint_and_not_to_where_it_redirects() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let other = MockEndpoint::start(move |call| {
        log.lock().unwrap().push(call.headers.get("authorization").cloned());
        Reply::chat("from elsewhere")
    });
    let target = format!("{}/v1/chat/completions", other.url());
    let log = Arc::clone(&seen);
    let first = MockEndpoint::start(move |call| {
        log.lock().unwrap().push(call.headers.get("authorization").cloned());
        Reply::json(307, &json!({})).header("Location", &target)
    });
    let mut keyed = options(None);
    keyed.endpoint.key = Some(ApiKey::new(CANARY));
    let answer = open(&first.spec(), &keyed).generate(&ask("x")).unwrap();
    assert_eq!(answer.text, "from elsewhere");
    assert_eq!(*seen.lock().unwrap(), [Some(format!("Bearer {CANARY}")), None]);
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_key_is_in_no_log_error_cache_or_debug_output() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("record.jsonl");
    let mut keyed = options(Some(folder.path()));
    keyed.record = Some(record);
    keyed.endpoint.key = Some(ApiKey::new(CANARY));
    keyed.endpoint.attempts = 3;
    let mut outputs = vec![format!("{keyed:?}")];

    tracing::subscriber::with_default(subscriber, || {
        // Servers that echo the key, in an answer and in every kind of failure.
        for status in [200, 400, 401, 403, 404, 418, 429, 500] {
            let server = MockEndpoint::start(move |call| {
                let echo = format!("your key is {}", call.headers["authorization"]);
                match status {
                    200 => Reply::chat(&echo),
                    status => Reply::json(status, &json!({ "error": { "message": echo } })),
                }
            });
            let llm = open(&server.spec(), &keyed);
            outputs.push(format!("{llm:?}"));
            match llm.generate(&ask(status)) {
                Ok(answer) => outputs.push(format!("{answer:?}")),
                Err(error) => outputs.push(format!("{error} {error:?}")),
            }
        }
    });
    outputs.push(String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned());
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            outputs.push(std::fs::read_to_string(path).unwrap());
        }
    }
    let all = outputs.join("\n");
    assert!(all.contains("your key is Bearer [key]"), "the echo was looked at");
    assert!(!all.contains(CANARY), "{all}");
}

#[test]
fn a_recording_replays_without_a_socket() {
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("record.jsonl");
    let server = MockEndpoint::start(|call| Reply::chat(&call.last_text().to_uppercase()));
    let mut recording = options(None);
    recording.record = Some(record.clone());
    let answers = run(&open(&server.spec(), &recording), &rows(20)).unwrap();
    drop(server);

    let replay = open(&format!("replay:{}", record.display()), &options(None));
    let again = run(&replay, &rows(20)).unwrap();
    for (row, answer) in &answers {
        assert_eq!((&again[row].text, again[row].cached), (&answer.text, true));
    }
    let error = replay.generate(&ask("never asked")).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
}

#[test]
fn offline_asks_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let server = MockEndpoint::start(|call| Reply::chat(call.last_text()));
    let online = options(Some(folder.path()));
    open(&server.spec(), &online).generate(&ask("known")).unwrap();

    let assets = AssetOptions { offline: true, ..online.assets.options().clone() };
    let offline = LlmOptions { assets: Assets::new(assets), ..online };
    let llm = open(&server.spec(), &offline);
    assert_eq!(llm.generate(&ask("known")).unwrap().text, "known");
    let error = llm.generate(&ask("unknown")).unwrap_err();
    assert!(error.to_string().contains("offline"), "{error}");
    assert_eq!(server.calls(), 1);
}

#[test]
fn an_endless_reply_is_refused() {
    let server = MockEndpoint::start(|_| Reply::chat(&"x".repeat(2 << 20)));
    let error = open(&server.spec(), &options(None)).generate(&ask("x")).unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");
}

#[test]
fn endpoints_score_no_options() {
    let server = MockEndpoint::start(|_| Reply::chat("x"));
    let error = open(&server.spec(), &options(None))
        .score_options(&Prompt::Raw("a".to_owned()), &["b".to_owned()])
        .unwrap_err();
    assert_eq!((error.exit_code(), server.calls()), (2, 0), "{error}");
}
