//! Crafted tables: damaged, hostile or odd files, each with what a reader has to do with it.
//!
//! All carry, where they can, the columns `item`, `worker` and `label`, so that commands which read
//! votes can be run on them too.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::data::{Format, Values, write_as};

/// What has to happen when the table is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// Any reader refuses it, and the message holds each of these pieces.
    Refused(Vec<&'static str>),
    /// Reading succeeds with this many rows.
    Rows(usize),
    /// Reading succeeds; using this column as what `need` says fails, with these pieces.
    Unusable {
        /// The column.
        column: &'static str,
        /// What it is used as.
        need: Need,
        /// Pieces of the message.
        message: Vec<&'static str>,
    },
}

/// What a column is used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Text that may not be empty.
    NonEmpty,
    /// An integer.
    Integer,
    /// A finite number.
    Finite,
    /// A time ≥ 0.
    Timestamp,
    /// A key that may not repeat.
    Unique,
}

/// A crafted table.
#[derive(Debug, Clone)]
pub struct BadTable {
    /// File name; its extension tells the format.
    pub file: &'static str,
    /// Content.
    pub bytes: Vec<u8>,
    /// What has to happen.
    pub expect: Expect,
}

fn refused(file: &'static str, bytes: impl Into<Vec<u8>>, pieces: &[&'static str]) -> BadTable {
    BadTable { file, bytes: bytes.into(), expect: Expect::Refused(pieces.to_vec()) }
}

fn accepted(file: &'static str, bytes: impl Into<Vec<u8>>, rows: usize) -> BadTable {
    BadTable { file, bytes: bytes.into(), expect: Expect::Rows(rows) }
}

fn unusable(
    file: &'static str,
    text: &str,
    column: &'static str,
    need: Need,
    message: &[&'static str],
) -> BadTable {
    let expect = Expect::Unusable { column, need, message: message.to_vec() };
    BadTable { file, bytes: text.as_bytes().to_vec(), expect }
}

/// All crafted tables. Takes about a second: some are decompression bombs.
pub fn bad_tables() -> Vec<BadTable> {
    let mut tables = delimited();
    tables.extend(values());
    tables.extend(gzipped());
    tables.extend(json());
    tables.extend(parquet());
    tables
}

const VOTES: &str = "item,worker,label\n1,a,x\n2,a,y\n2,b,x\n";

fn delimited() -> Vec<BadTable> {
    let wide = |first: &str, cell: &str| {
        let header: Vec<_> = (0..9_997).map(|index| format!("c{index}")).collect();
        let row = vec![cell; 9_997];
        format!("{first},{}\n1,a,x,{}\n", header.join(","), row.join(","))
    };
    let long = "x".repeat(1_000_000);
    let mut bad_utf8 = VOTES.as_bytes().to_vec();
    bad_utf8.extend(b"3,b,caf\xE9\n");
    let utf16: Vec<u8> =
        "\u{FEFF}".encode_utf16().chain(VOTES.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    vec![
        refused("empty.csv", "", &["empty file"]),
        refused("blank-lines.csv", "\n\r\n\n", &["blank lines"]),
        refused("header-only.csv", "item,worker,label\n", &["without rows"]),
        refused("bad-utf8.csv", bad_utf8, &["row 5", "column label", "not UTF-8"]),
        refused(
            "bad-utf8-header.csv",
            &b"item,work\xFFer,label\n1,a,x\n"[..],
            &["row 1", "column number 2"],
        ),
        refused(
            "split-character.csv",
            &b"item,worker,label\n1,\xC3,\xA9\n"[..],
            &["row 2", "column worker"],
        ),
        refused("utf16.csv", utf16, &["UTF-16"]),
        refused(
            "binary.csv",
            &b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\xFF\xFE"[..],
            &["row 1", "not UTF-8"],
        ),
        refused(
            "unclosed-quote.csv",
            "item,worker,label\n1,a,x\n2,b,\"y\n3,c,x\n",
            &["row 3", "quote that is never closed"],
        ),
        refused(
            "ragged-short.csv",
            "item,worker,label\n1,a,x\n\n2,b\n",
            &["row 4", "2 cells", "expected 3"],
        ),
        refused(
            "ragged-long.csv",
            "item,worker,label\n\"1\n1\",a,x\n2,b,y,z\n",
            &["row 4", "4 cells"],
        ),
        refused(
            "missing-column.csv",
            "item,worker,lable\n1,a,x\n",
            &["column label", "nearest is \"lable\""],
        ),
        refused(
            "repeated-column.csv",
            "item,worker,label,label\n1,a,x,y\n",
            &["row 1", "two columns called \"label\""],
        ),
        refused(
            "wide-without-label.csv",
            wide("item,worker,c", "1"),
            &["column label", "10000 columns"],
        ),
        accepted("wide.csv", wide("item,worker,label", "1"), 1),
        accepted("long-cell.csv", format!("item,worker,label\n1,a,{long}\n"), 1),
        accepted("byte-order-mark.csv", format!("\u{FEFF}{VOTES}"), 3),
        accepted("crlf.csv", VOTES.replace('\n', "\r\n"), 3),
        accepted("cr.csv", VOTES.replace('\n', "\r"), 3),
        accepted("no-final-newline.csv", VOTES.trim_end(), 3),
        accepted("quotes.csv", "item,worker,label\n1,a,\"x, \"\"y\"\"\nz\"\n2,b,5\" pipe\n", 2),
        accepted("nul.csv", "item,worker,label\n1,a,x\0y\n", 1),
        accepted("tabs.tsv", VOTES.replace(',', "\t"), 3),
    ]
}

fn values() -> Vec<BadTable> {
    let header = "item,worker,label,score,time\n1,a,x,0.5,100\n";
    let with = |row: &str| format!("{header}{row}\n");
    vec![
        unusable(
            "nan.csv",
            &with("2,a,x,NaN,100"),
            "score",
            Need::Finite,
            &["row 3", "column score", "\"NaN\"", "finite"],
        ),
        unusable(
            "infinite.csv",
            &with("2,a,x,inf,100"),
            "score",
            Need::Finite,
            &["row 3", "column score"],
        ),
        unusable(
            "overflow.csv",
            &with("2,a,x,1e999,100"),
            "score",
            Need::Finite,
            &["row 3", "column score"],
        ),
        unusable(
            "negative-time.csv",
            &with("2,a,x,1,-5"),
            "time",
            Need::Timestamp,
            &["row 3", "column time", "\"-5\""],
        ),
        unusable(
            "text-for-integer.csv",
            &with("2,a,x,1,soon"),
            "time",
            Need::Integer,
            &["row 3", "column time", "integer"],
        ),
        unusable(
            "empty-label.csv",
            &with("2,a,,1,100"),
            "label",
            Need::NonEmpty,
            &["row 3", "column label", "empty cell"],
        ),
        unusable(
            "duplicate-item.csv",
            &with("1,b,y,1,100"),
            "item",
            Need::Unique,
            &["row 3", "column item", "row 2 has too"],
        ),
    ]
}

fn gzip(bytes: impl Iterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    for piece in bytes {
        encoder.write_all(&piece).expect("a vector takes all bytes");
    }
    encoder.finish().expect("a vector takes all bytes")
}

fn gzipped() -> Vec<BadTable> {
    let start = || std::iter::once(b"item,worker,label\n".to_vec());
    let good = gzip(std::iter::once(VOTES.into()));
    let truncated = good[..good.len() - 12].to_vec();
    let rows = b"1,a,x\n".repeat(1 << 17);
    let bomb = gzip(start().chain(std::iter::repeat_n(rows, 160)));
    let cell =
        gzip(start().chain([b"1,a,".to_vec()]).chain(std::iter::repeat_n(vec![b'x'; 1 << 20], 70)));
    vec![
        accepted("good.csv.gz", good, 3),
        refused("truncated.csv.gz", truncated, &["does not unpack"]),
        refused("plain.csv.gz", VOTES, &["does not unpack"]),
        refused("bomb.csv.gz", bomb, &["unpacks to more than"]),
        refused("cell-bomb.csv.gz", cell, &["row 2", "cell 3 of more than 64 MiB"]),
    ]
}

fn json() -> Vec<BadTable> {
    let good = "{\"item\":\"1\",\"worker\":\"a\",\"label\":\"x\"}\n";
    let with = |line: &str| format!("{good}{line}\n");
    let deep = with(&format!("{{\"item\":{}1", "[".repeat(100_000)));
    let mut bad_utf8 = good.as_bytes().to_vec();
    bad_utf8.extend(b"{\"item\":\"caf\xE9\"}\n");
    vec![
        refused("empty.jsonl", "", &["empty file"]),
        refused("broken.jsonl", with("{\"item\":1,}"), &["row 2", "character"]),
        refused("array.jsonl", with("[1,2,3]"), &["row 2", "expected a JSON object"]),
        refused("truncated.jsonl", with("{\"item\":\"2\",\"wor"), &["row 2", "EOF"]),
        refused("bad-utf8.jsonl", bad_utf8, &["row 2", "not UTF-8 at byte 13"]),
        refused("nan.jsonl", with("{\"item\":NaN}"), &["row 2"]),
        refused("overflow.jsonl", with("{\"item\":1e999}"), &["row 2", "number out of range"]),
        refused(
            "repeated-key.jsonl",
            with("{\"item\":1,\"item\":2}"),
            &["row 2", "\"item\" stands twice"],
        ),
        refused("deep.jsonl", deep, &["row 2", "recursion limit"]),
        refused(
            "long-integer.jsonl",
            with("{\"item\":123456789012345678901234567890,\"worker\":\"a\",\"label\":\"x\"}"),
            &["row 2", "column item", "64 bits"],
        ),
        refused("no-label.jsonl", "{\"item\":1,\"worker\":\"a\"}\n", &["column label"]),
        accepted(
            "sparse.jsonl",
            with("\n{\"item\":2,\"worker\":null,\"extra\":[1,{\"a\":true}],\"label\":\"y\"}"),
            2,
        ),
    ]
}

fn parquet() -> Vec<BadTable> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("table.parquet");
    let text = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>();
    let make = |columns: &[(&str, Values<'_>)]| {
        write_as(&path, Format::Parquet, columns).expect("a written table");
        std::fs::read(&path).expect("the table just written")
    };
    let (items, workers, labels) = (text(&["1", "2"]), text(&["a", "a"]), text(&["x", "y"]));
    let good = make(&[
        ("item", Values::Text(&items)),
        ("worker", Values::Text(&workers)),
        ("label", Values::Text(&labels)),
    ]);
    let none = Vec::<String>::new();
    let no_rows = make(&[
        ("item", Values::Text(&none)),
        ("worker", Values::Text(&none)),
        ("label", Values::Text(&none)),
    ]);
    let no_label = make(&[("item", Values::Text(&items)), ("worker", Values::Text(&workers))]);
    // A dictionary holds each long value once, however many rows refer to it.
    let long = vec!["x".repeat(1 << 16); 8192];
    let bomb = make(&[
        ("item", Values::Text(&long)),
        ("worker", Values::Text(&long)),
        ("label", Values::Text(&long)),
    ]);
    let mut bad_pages = good.clone();
    bad_pages[4..40].fill(0xFF);
    let mut bad_footer = good.clone();
    let footer = bad_footer.len() - 60;
    bad_footer[footer..footer + 30].fill(0xFF);
    let mut long_footer = good.clone();
    let end = long_footer.len();
    long_footer[end - 8..end - 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut magic = good.clone();
    magic[end - 4..].copy_from_slice(b"PARX");
    let position = good.windows(5).position(|bytes| bytes == b"\x01\0\0\0x");
    let mut bad_text = good.clone();
    bad_text[position.expect("the label x") + 4] = 0xE9;
    vec![
        refused("empty.parquet", "", &["empty file"]),
        refused("truncated.parquet", &good[..good.len() / 2], &["does not decode"]),
        refused("magic.parquet", magic, &["does not decode"]),
        refused("pages.parquet", bad_pages, &["does not decode"]),
        refused("footer.parquet", bad_footer, &["sound Parquet file"]),
        refused("long-footer.parquet", long_footer, &["does not decode"]),
        refused("text.parquet", "item,worker,label\n1,a,x\n", &["does not decode"]),
        refused("bad-utf8.parquet", bad_text, &["row 1", "column label", "not UTF-8"]),
        refused("no-rows.parquet", no_rows, &["without rows"]),
        refused("no-label.parquet", no_label, &["column label"]),
        refused("bomb.parquet", bomb, &["row", "unpacks to more than"]),
        accepted("good.parquet", good, 2),
    ]
}
