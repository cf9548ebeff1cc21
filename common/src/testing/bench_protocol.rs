//! A benchmark server on stdin and stdout, to be timed side by side with other programs.
//!
//! A request is a line `CASE SECONDS`; the reply is one line of JSON:
//!
//! | field | meaning |
//! |---|---|
//! | `case` | the case as asked |
//! | `runs` | timed runs |
//! | `wall_min_ms`, `wall_median_ms` | time of the fastest and of the median run |
//! | `cpu_median_ms` | CPU time of a run over all threads, median of blocks of at least 100 ms |
//! | `peak_rss_mb` | highest resident memory of the process so far, MiB |
//!
//! and further fields of the case, or `{"case", "error"}`. A case is built on its first request
//! and run once untimed; only the latest case is kept. The server ends with its input.

use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

const MINIMUM_RUNS: usize = 3;
const OVERTIME: u32 = 4;
/// The kernel brings the CPU time of other threads up to date only at its ticks.
const CPU_BLOCK: Duration = Duration::from_millis(100);

/// A prepared benchmark.
pub trait Case {
    /// What is timed.
    fn run(&mut self) -> crate::Result<()>;

    /// Further fields of the reply, from the timings of the last request.
    fn fields(&self, _timings: &Timings) -> Map<String, Value> {
        Map::new()
    }
}

/// Times of a number of runs, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timings {
    /// Timed runs.
    pub runs: usize,
    /// Fastest run.
    pub wall_min_ms: f64,
    /// Median run.
    pub wall_median_ms: f64,
    /// CPU time of a run over all threads.
    pub cpu_median_ms: f64,
    /// Highest resident memory of the process so far, in MiB.
    pub peak_rss_mb: f64,
}

/// Repeats `run` for about `seconds`: at least 3 times, unless that takes over 4 × `seconds`.
pub fn measure(mut run: impl FnMut() -> crate::Result<()>, seconds: f64) -> crate::Result<Timings> {
    let budget = Duration::try_from_secs_f64(seconds)
        .map_err(|_| crate::Error::usage(format!("{seconds} is no number of seconds")))?;
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    let start = Instant::now();
    let (mut block_runs, mut block_cpu, mut block_start) = (0, cpu_time_ms(), start);
    loop {
        let run_start = Instant::now();
        let elapsed = run_start - start;
        let enough = elapsed >= budget && wall.len() >= MINIMUM_RUNS;
        if !wall.is_empty() && (enough || elapsed >= budget * OVERTIME) {
            break;
        }
        run()?;
        wall.push(run_start.elapsed().as_secs_f64() * 1e3);
        block_runs += 1;
        if block_start.elapsed() >= CPU_BLOCK {
            let now = cpu_time_ms();
            cpu.push((now - block_cpu) / f64::from(block_runs));
            (block_runs, block_cpu, block_start) = (0, now, Instant::now());
        }
    }
    if cpu.is_empty() {
        cpu.push((cpu_time_ms() - block_cpu) / f64::from(block_runs));
    }
    Ok(Timings {
        runs: wall.len(),
        wall_min_ms: wall.iter().copied().fold(f64::INFINITY, f64::min),
        wall_median_ms: median(&mut wall),
        cpu_median_ms: median(&mut cpu),
        peak_rss_mb: crate::runtime::peak_rss_mb(),
    })
}

/// Answers the requests of `input` until it ends. `build` makes the case of a name.
pub fn serve(
    input: impl BufRead,
    mut output: impl Write,
    mut build: impl FnMut(&str) -> crate::Result<Box<dyn Case>>,
) -> std::io::Result<()> {
    let mut current: Option<(String, Box<dyn Case>)> = None;
    for line in input.lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        let Some(name) = words.next() else { continue };
        let seconds = words.next().and_then(|word| word.parse().ok()).filter(|&s: &f64| s > 0.0);
        let mut answer = || -> crate::Result<Value> {
            let seconds = seconds
                .ok_or_else(|| crate::Error::usage("expected `CASE SECONDS`, seconds above 0"))?;
            if current.as_ref().is_none_or(|(current, _)| current != name) {
                current = None;
                let mut case = build(name)?;
                case.run()?;
                current = Some((name.to_owned(), case));
            }
            let Some((_, case)) = &mut current else {
                return Err(crate::Error::Bug("no case after it was built".into()));
            };
            let timings = measure(|| case.run(), seconds)?;
            let mut reply = Map::from_iter([
                ("case".to_owned(), json!(name)),
                ("runs".to_owned(), json!(timings.runs)),
                ("wall_min_ms".to_owned(), json!(timings.wall_min_ms)),
                ("wall_median_ms".to_owned(), json!(timings.wall_median_ms)),
                ("cpu_median_ms".to_owned(), json!(timings.cpu_median_ms)),
                ("peak_rss_mb".to_owned(), json!(timings.peak_rss_mb)),
            ]);
            reply.extend(case.fields(&timings));
            Ok(Value::Object(reply))
        };
        let reply =
            answer().unwrap_or_else(|error| json!({"case": name, "error": error.to_string()}));
        writeln!(output, "{reply}")?;
        output.flush()?;
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        (values[middle - 1] + values[middle]) / 2.0
    } else {
        values[middle]
    }
}

/// CPU time of the process over all threads, in milliseconds (0 where unknown).
#[allow(unsafe_code)]
fn cpu_time_ms() -> f64 {
    #[cfg(unix)]
    {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is a valid timespec that the call fills.
        if unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) } == 0 {
            return time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6;
        }
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counter(u32);

    impl Case for Counter {
        fn run(&mut self) -> crate::Result<()> {
            self.0 += 1;
            Ok(())
        }

        fn fields(&self, timings: &Timings) -> Map<String, Value> {
            Map::from_iter([("untimed".to_owned(), json!(self.0 - timings.runs as u32))])
        }
    }

    #[test]
    fn a_case_is_built_once_and_errors_do_not_end_the_server() {
        let mut output = Vec::new();
        let mut built = 0;
        let input = "count 0.01\n\nother 1\ncount x\ncount 0.01\n";
        serve(input.as_bytes(), &mut output, |name| {
            if name != "count" {
                return Err(crate::Error::usage(format!("unknown case {name}")));
            }
            built += 1;
            Ok(Box::new(Counter(0)))
        })
        .unwrap();
        let replies: Vec<Value> = String::from_utf8(output)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(replies.len(), 4);
        assert_eq!(replies[0]["untimed"], 1);
        assert!(replies[0]["runs"].as_u64().unwrap() >= 3);
        assert_eq!(replies[1]["error"], "unknown case other");
        assert!(replies[2]["error"].as_str().unwrap().contains("CASE SECONDS"));
        assert_eq!(replies[3]["case"], "count");
        assert_eq!(built, 2);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
