use std::path::{Path, PathBuf};
use std::process::Command;

use common::data::movielens::MovieLens;
use common::data::{self, Duplicates, Format, ReadOptions, Table, Values};
use common::rng::Seed;
use common::testing::{Expect, Need, asset_or_skip, bad_tables};
use common::{Error, Result};

fn votes() -> ReadOptions {
    ReadOptions::select(&["item", "worker", "label"])
}

fn file(folder: &tempfile::TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Reads as the expectation says; the number of rows.
fn read(path: &Path, expect: &Expect) -> Result<usize> {
    let Expect::Unusable { column, need, .. } = expect else {
        return Table::read(path, &votes()).map(|table| table.len());
    };
    let mut options = ReadOptions::default();
    if *need == Need::Unique {
        options.duplicates = Duplicates::Refuse(vec![(*column).to_owned()]);
    }
    let table = Table::read(path, &options)?;
    let values = table.column(column)?;
    match need {
        Need::NonEmpty => values.non_empty().map(drop),
        Need::Integer => values.i64s().map(drop),
        Need::Finite => values.f64s().map(drop),
        Need::Timestamp => values.timestamps().map(drop),
        Need::Unique => Ok(()),
    }?;
    Ok(table.len())
}

#[test]
fn bad_tables_are_refused_with_their_place_or_read_right() {
    let folder = tempfile::tempdir().unwrap();
    let tables = bad_tables();
    assert!(tables.len() >= 40, "{}", tables.len());
    for table in &tables {
        let path = file(&folder, table.file, &table.bytes);
        let result = read(&path, &table.expect);
        match (&table.expect, result) {
            (Expect::Rows(rows), Ok(found)) => assert_eq!(found, *rows, "{}", table.file),
            (Expect::Refused(pieces) | Expect::Unusable { message: pieces, .. }, Err(error)) => {
                let message = error.to_string();
                assert_eq!(error.exit_code(), 3, "{}: {message}", table.file);
                assert!(message.contains(table.file), "{message}");
                assert!(message.len() < 1000, "{}: {} characters", table.file, message.len());
                for piece in pieces {
                    assert!(message.contains(piece), "{}: {message}: no {piece:?}", table.file);
                }
            }
            (_, result) => panic!("{}: {result:?}", table.file),
        }
    }
}

/// Does nothing unless started by the test below, in a process of its own.
#[test]
fn read_one_table_and_print_peak_memory() {
    let Some(path) = std::env::var_os("SEPTET_TEST_TABLE") else { return };
    let path = PathBuf::from(path);
    let _ = Table::read(&path, &ReadOptions::default());
    println!("{}", peak_memory());
}

#[cfg(target_os = "linux")]
#[test]
fn no_bad_table_takes_much_memory() {
    let folder = tempfile::tempdir().unwrap();
    for table in bad_tables() {
        let path = file(&folder, table.file, &table.bytes);
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "data::read_one_table_and_print_peak_memory", "--nocapture"])
            .env("SEPTET_TEST_TABLE", &path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}: {output:?}", table.file);
        let text = String::from_utf8(output.stdout).unwrap();
        let peak = text.lines().find_map(|line| line.split("VmHWM:").nth(1)).unwrap();
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        let limit = 4 * table.bytes.len() as u64 / 1024 + 500 * 1024;
        assert!(peak <= limit, "{}: {peak} kB of {limit} kB", table.file);
    }
}

/// Does nothing unless started by the test below, in a process of its own.
#[test]
fn read_mutated_parquet_files() {
    let Some(count) = std::env::var("SEPTET_TEST_MUTATIONS").ok() else { return };
    std::panic::set_hook(Box::new(|_| ()));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.parquet");
    let text: Vec<_> = (0..300).map(|row| format!("value {}", row % 7)).collect();
    let integers: Vec<i64> = (0..300).map(|row| row * row).collect();
    let reals: Vec<f64> =
        (0..300).map(|row| if row % 3 == 0 { f64::NAN } else { f64::from(row) }).collect();
    let columns = [
        ("t", Values::Text(&text)),
        ("i", Values::Integer(&integers)),
        ("r", Values::Real(&reals)),
    ];
    data::write(&path, &columns).unwrap();
    let good = std::fs::read(&path).unwrap();
    let footer = good.len()
        - 8
        - u32::from_le_bytes(good[good.len() - 8..][..4].try_into().unwrap()) as usize;
    let mut stream = Seed::new(1).stream("mutations");
    let (mut read, mut refused) = (0, 0);
    for _ in 0..count.parse().unwrap() {
        let mut bytes = good.clone();
        // Half of the changes hit the footer, where sizes, offsets and types stand.
        for _ in 0..1 + stream.below(3) {
            let start = if stream.chance(0.5) { footer } else { 4 };
            let at = start + stream.below(bytes.len() - 8 - start);
            match stream.below(4) {
                0 => bytes[at] ^= 1 << stream.below(8),
                1 => bytes[at] = [0, 0x7F, 0x80, 0xFF][stream.below(4)],
                2 => drop(bytes.splice(at..at + 1, [0xFF, 0xFF, 0xFF, 0xFF, 0x0F])),
                _ => drop(bytes.remove(at)),
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        match Table::read(&path, &ReadOptions::default()) {
            Ok(_) => read += 1,
            Err(error) => {
                assert_eq!(error.exit_code(), 3, "{error}");
                refused += 1;
            }
        }
    }
    println!("{read} read, {refused} refused");
    assert!(refused > 0 && read > 0);
}

#[cfg(unix)]
#[test]
fn no_mutated_parquet_file_ends_the_process() {
    let output = Command::new("sh")
        .args(["-c", "ulimit -v 4194304; exec \"$0\" --exact data::read_mutated_parquet_files"])
        .arg(std::env::current_exe().unwrap())
        .env("SEPTET_TEST_MUTATIONS", std::env::var("SEPTET_MUTATIONS").unwrap_or("1000".into()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Does nothing unless started by the test below, in a process of its own.
#[test]
fn visit_a_table_and_print_peak_memory() {
    let Some(path) = std::env::var_os("SEPTET_TEST_VISIT") else { return };
    let mut sum = 0;
    data::visit(Path::new(&path), &votes(), |row| {
        sum += row.cell(2).i64()?;
        Ok(())
    })
    .unwrap();
    println!("sum {sum}, {}", peak_memory());
}

#[cfg(target_os = "linux")]
#[test]
fn a_visit_holds_one_row_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let rows: String = (0..100).map(|row| format!("item-{row},worker-{row},1\n")).collect();
    let path = file(&folder, "t.csv", format!("item,worker,label\n{}", rows.repeat(20_000)));
    let megabytes = path.metadata().unwrap().len() / 1_000_000;
    assert!(megabytes >= 30, "{megabytes}");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "data::visit_a_table_and_print_peak_memory", "--nocapture"])
        .env("SEPTET_TEST_VISIT", &path)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("sum 2000000,"), "{text}");
    let peak = text.split("VmHWM:").nth(1).unwrap().split("kB").next().unwrap();
    let peak: u64 = peak.trim().parse().unwrap();
    assert!(peak <= 24 * 1024, "{peak} kB for a file of {megabytes} MB");
}

fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default().to_owned()
}

#[test]
fn quotes_line_ends_and_numbers_of_rows() {
    let folder = tempfile::tempdir().unwrap();
    let text = "a,b\r\n1,\"x, \"\"y\"\"\r\nz\"\r\n\r\n\r\n2,\r\n3,5\" pipe";
    let table = Table::read(&file(&folder, "t.csv", text), &ReadOptions::default()).unwrap();
    let b: Vec<_> = table.column("b").unwrap().texts().collect();
    assert_eq!(b, ["x, \"y\"\r\nz", "", "5\" pipe"]);
    let numbers: Vec<_> = (0..table.len()).map(|row| table.row_number(row)).collect();
    assert_eq!(numbers, [2, 6, 7]);
}

#[test]
fn a_record_longer_than_the_buffers_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let cells: Vec<_> = (0..500).map(|index| format!("{index}-").repeat(2000)).collect();
    let header: Vec<_> = (0..500).map(|index| format!("c{index}")).collect();
    let text = format!("{}\n\"{}\"\n", header.join(","), cells.join("\",\""));
    let table = Table::read(&file(&folder, "t.csv", text), &ReadOptions::default()).unwrap();
    assert!((0..500).all(|column| table.text(0, column) == cells[column]));
}

#[test]
fn mapping_selects_and_renames() {
    let folder = tempfile::tempdir().unwrap();
    let rename = vec![("question".to_owned(), "item".to_owned())];
    let select = Some(vec!["label".to_owned(), "item".to_owned()]);
    let options = ReadOptions { rename, select, ..ReadOptions::default() };
    for (name, text) in [
        ("t.csv", "question,other,label\nq1,9,x\n"),
        ("t.tsv", "question\tother\tlabel\nq1\t9\tx\n"),
        ("t.jsonl", "{\"question\":\"q1\",\"other\":9,\"label\":\"x\"}\n"),
    ] {
        let table = Table::read(&file(&folder, name, text), &options).unwrap();
        assert_eq!(table.columns, ["label", "item"], "{name}");
        assert_eq!((table.text(0, 0), table.text(0, 1)), ("x", "q1"), "{name}");
    }
}

#[test]
fn json_values_become_text() {
    let folder = tempfile::tempdir().unwrap();
    let text = "{\"a\":1,\"b\":true}\n{\"b\":0.1,\"c\":[1,\"x\"],\"a\":null}\n{\"a\":18446744073709551615}\n";
    let table = Table::read(&file(&folder, "t.jsonl", text), &ReadOptions::default()).unwrap();
    assert_eq!(table.columns, ["a", "b", "c"]);
    let row = |row| -> Vec<_> { (0..3).map(|column| table.text(row, column)).collect() };
    assert_eq!(row(0), ["1", "true", ""]);
    assert_eq!(row(1), ["", "0.1", "[1,\"x\"]"]);
    assert_eq!(row(2), ["18446744073709551615", "", ""]);
}

#[test]
fn duplicates_as_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "t.csv", "k,v\na,1\nb,2\na,3\n");
    let read = |duplicates| Table::read(&path, &ReadOptions { duplicates, ..Default::default() });
    let values = |table: &Table| table.column("v").unwrap().texts().collect::<Vec<_>>().join(" ");
    let key = || vec!["k".to_owned()];
    assert_eq!(values(&read(Duplicates::Keep).unwrap()), "1 2 3");
    let first = read(Duplicates::First(key())).unwrap();
    assert_eq!((values(&first).as_str(), first.duplicates), ("1 2", 1));
    let last = read(Duplicates::Last(key())).unwrap();
    assert_eq!((values(&last).as_str(), last.duplicates), ("2 3", 1));
    assert_eq!((last.row_number(0), last.row_number(1)), (3, 4));
}

#[test]
fn what_is_written_reads_back() {
    let folder = tempfile::tempdir().unwrap();
    let text: Vec<_> = ["", "a,b", "\"q\"", "two\nlines"].map(str::to_owned).to_vec();
    let integers = [i64::MIN, -1, 0, i64::MAX];
    let reals = [0.1, f64::NAN, -1e-300, 12_345_678.9];
    let bools = [true, false, true, false];
    let columns = [
        ("text", Values::Text(&text)),
        ("integer", Values::Integer(&integers)),
        ("real", Values::Real(&reals)),
        ("bool", Values::Bool(&bools)),
    ];
    for name in ["t.csv", "t.tsv", "t.jsonl", "t.parquet"] {
        let path = folder.path().join(name);
        data::write(&path, &columns).unwrap();
        let table = Table::read(&path, &ReadOptions::default()).unwrap();
        assert_eq!(table.column("text").unwrap().texts().collect::<Vec<_>>(), text, "{name}");
        assert_eq!(table.column("integer").unwrap().i64s().unwrap(), integers, "{name}");
        assert_eq!(table.column("bool").unwrap().bools().unwrap(), bools, "{name}");
        let real = table.column("real").unwrap();
        assert_eq!(real.text(1), "", "{name}");
        for row in [0, 2, 3] {
            assert_eq!(real.cell(row).f64().unwrap(), reals[row], "{name}");
        }
    }
    let listing = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(listing, 4, "temporary files were left behind");
}

#[test]
fn parquet_keeps_rows_in_order_over_batches_and_groups() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.parquet");
    let numbers: Vec<i64> = (0..(1 << 20) + 5000).collect();
    data::write(&path, &[("n", Values::Integer(&numbers))]).unwrap();
    let mut next = 0;
    data::visit(&path, &ReadOptions::default(), |row| {
        assert_eq!(row.number, next as u64 + 1);
        assert_eq!(row.cell(0).i64()?, next);
        next += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(next, numbers.len() as i64);
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, "out.csv", "old");
    let full = data::atomic_with(&path, |file| {
        std::io::Write::write_all(file, b"half")?;
        Err(std::io::Error::other("no space left on device"))
    });
    assert_eq!(full.unwrap_err().exit_code(), 6);
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn odd_paths_work_or_fail_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["with space.csv", "ünï\u{202e}code.csv", "new\nline.csv"] {
        let path = folder.path().join(name);
        data::write(&path, &[("a", Values::Integer(&[1]))]).unwrap();
        assert_eq!(Table::read(&path, &ReadOptions::default()).unwrap().len(), 1);
    }
    let missing = folder.path().join("no/such/folder/t.csv");
    let error = data::write(&missing, &[("a", Values::Integer(&[1]))]).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert_eq!(Table::read(&missing, &ReadOptions::default()).unwrap_err().exit_code(), 6);
    let error = Table::read(folder.path(), &ReadOptions::default()).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    let options = ReadOptions { format: Some(Format::Csv), ..ReadOptions::default() };
    assert!(Table::read(folder.path(), &options).is_err());
}

#[cfg(unix)]
#[test]
fn a_written_file_is_as_readable_as_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let plain = file(&folder, "plain", "");
    let atomic = folder.path().join("atomic");
    data::atomic_write(&atomic, b"").unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
    assert_eq!(mode(&plain), mode(&atomic));
}

#[test]
fn clothing_reviews_have_the_documented_counts() {
    let Some(path) = asset_or_skip("clothing-reviews", "reviews.parquet") else { return };
    let table = Table::read(&path, &ReadOptions::default()).unwrap();
    assert_eq!(table.len(), 23_486);
    let texts = |name: &str| table.column(name).unwrap().texts();
    let missing = |name: &str| texts(name).filter(|text| text.is_empty()).count();
    let distinct = |name: &str| {
        texts(name).filter(|text| !text.is_empty()).collect::<std::collections::HashSet<_>>().len()
    };
    assert_eq!((missing("Title"), missing("Review Text")), (3_810, 845));
    let recommended = table.column("Recommended IND").unwrap().bools().unwrap();
    assert_eq!(recommended.iter().filter(|value| **value).count(), 19_314);
    let counts = ["Clothing ID", "Division Name", "Department Name", "Class Name"].map(distinct);
    assert_eq!(counts, [1_206, 3, 6, 20]);
    let ages = table.column("Age").unwrap().i64s().unwrap();
    assert!(ages.iter().all(|age| (18..=99).contains(age)));
}

#[test]
fn movielens_has_its_published_counts() {
    let Some(path) = asset_or_skip("ml-100k", "ml-100k.inter") else { return };
    let Some(folder) = path.parent() else { panic!("{path:?}") };
    for name in ["ml-100k.item", "ml-100k.user", "ml-100k.kg", "ml-100k.link"] {
        if asset_or_skip("ml-100k", name).is_none() {
            return;
        }
    }
    let data = MovieLens::read(folder).unwrap();
    let counts = (data.ratings.len(), data.users.len(), data.movies.len(), data.facts.len());
    assert_eq!(counts, (100_000, 943, 1_682, 91_631));
    assert_eq!(data.movies.iter().filter(|movie| movie.entity.is_some()).count(), 1_598);
    assert_eq!(data.movies.iter().filter(|movie| movie.year.is_none()).count(), 2);
    assert!(data.ratings.is_sorted_by_key(|rating| rating.time));
    let stars = |n| data.ratings.iter().filter(|rating| rating.stars == n).count();
    assert_eq!([1, 2, 3, 4, 5].map(stars), [6_110, 11_370, 27_145, 34_174, 21_201]);
    let toy_story = &data.movies[0];
    assert_eq!((toy_story.title.as_str(), toy_story.year), ("Toy Story", Some(1995)));
    assert_eq!(toy_story.genres, ["Animation", "Children's", "Comedy"]);
}

#[test]
fn movielens_names_the_row_of_an_unknown_user() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| drop(file(&folder, name, text));
    write(
        "ml-100k.item",
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n7\tA\t1990\tDrama\n",
    );
    write(
        "ml-100k.user",
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n3\t30\tF\twriter\t1\n",
    );
    write("ml-100k.link", "item_id:token\tentity_id:token\n7\tm.1\n");
    write("ml-100k.kg", "head_id:token\trelation_id:token\ttail_id:token\nm.1\tr\tm.2\n");
    write(
        "ml-100k.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n3\t7\t4\t5\n4\t7\t4\t6\n",
    );
    let error = MovieLens::read(folder.path()).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    let text = error.to_string();
    assert!(
        text.contains("ml-100k.inter") && text.contains("user_id") && text.contains('3'),
        "{text}"
    );
}
