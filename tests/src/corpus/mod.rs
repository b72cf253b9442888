//! The project's own corpus of Dockerfiles (`tests/corpus/AREA/CASE/`), each with what `BuildKit` makes of it.
//!
//! A case is a folder: a `Dockerfile`, or an `input/` folder that holds one, a `case.toml` that says in one sentence what it shows and
//! with which options it is built, and `expected.json`, which `KILN_UPDATE_EXPECTED=1 make corpus` writes from what `BuildKit` does. Where
//! Kiln is to do something else, `case.toml` says why (`differs`), `kiln.json` holds what it does, and
//! `docs/dockerfile-compatibility.md` tells users. Nothing here reads an image with Kiln's own code.
//!
//! 1. [`case`] reads the folder, [`input`] makes the context as it says.
//! 2. [`peers`] holds the registry with the bases, the git server and the web server that cases talk to.
//! 3. [`builders`] has Kiln or `BuildKit` build it into an OCI archive.
//! 4. [`describe`] says what is in the archive, and [`difference`] what of that is not expected.

mod builders;
mod case;
mod describe;
mod difference;
mod input;
mod peers;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use self::builders::{BuildKit, Kiln, Outcome};
use self::case::Case;
use self::peers::Peers;

/// Fewer cases than this are a corpus that was not found.
const CASES_MIN: usize = 300;

/// Builds that wait for each other's disk and processes, per processor.
const BUILDS_PER_CPU: usize = 2;

/// The document that lists what is different.
const DOCUMENT: &str = "docs/dockerfile-compatibility.md";

#[test]
fn every_case_of_the_corpus_becomes_what_buildkit_makes_of_it() {
    let wanted = setting("KILN_CORPUS_CASES").unwrap_or_default();
    let cases: Vec<Case> = all_cases()
        .into_iter()
        .filter(|case| {
            wanted.is_empty()
                || wanted
                    .split_whitespace()
                    .any(|part| case.name.contains(part))
        })
        .collect();
    assert!(!cases.is_empty(), "no case has {wanted:?} in its name");
    let writing = match setting("KILN_UPDATE_EXPECTED") {
        Some(_) => Writing::Expectations,
        None => Writing::Nothing,
    };
    let peers = Peers::start(&cases);
    let buildkit = (setting("KILN_CORPUS").as_deref() == Some("buildkit")).then(BuildKit::find);
    let buildkit = buildkit.flatten();
    assert!(
        writing == Writing::Nothing || buildkit.is_some(),
        "expectations are written from BuildKit: run `make corpus` with buildkitd and buildctl on PATH"
    );
    let kiln = Kiln::new();
    let pending = pending();
    let reports = in_parallel(&cases, |case| {
        let work = || judge(case, &peers, &kiln, buildkit.as_ref(), writing);
        // One case that goes wrong must not hide what the others show.
        let report = match std::panic::catch_unwind(AssertUnwindSafe(work)) {
            Ok(judged) if pending.contains(&case.name) => verdict(&judged, Claim::Pending),
            Ok(judged) => verdict(&judged, Claim::AsExpected),
            Err(_) => "it could not be built or described: see the panic above\n".to_owned(),
        };
        (case.name.clone(), report)
    });
    drop(buildkit);
    let failed: Vec<_> = reports
        .iter()
        .filter(|(_, report)| !report.is_empty())
        .collect();
    let mut text = String::new();
    for (name, report) in &failed {
        writeln!(text, "== {name}\n{report}").unwrap();
    }
    assert!(
        failed.is_empty(),
        "{text}\n{} of {} cases are not as expected",
        failed.len(),
        cases.len()
    );
}

#[test]
fn the_corpus_says_what_it_shows_and_the_document_lists_what_is_different() {
    let cases = all_cases();
    assert!(cases.len() >= CASES_MIN, "only {} cases", cases.len());
    let mut shown = BTreeSet::new();
    let document = std::fs::read_to_string(root().join(DOCUMENT)).unwrap();
    for case in &cases {
        let Case { name, options, .. } = case;
        assert!(
            shown.insert(&options.shows),
            "{name}: another case shows the same: {}",
            options.shows
        );
        assert!(
            options.shows.split_whitespace().count() >= 4,
            "{name}: what does it show?"
        );
        assert!(
            case.folder.join("expected.json").exists(),
            "{name}: no expected.json"
        );
        let differs = options.differs.is_some();
        assert_eq!(
            differs,
            case.folder.join("kiln.json").exists(),
            "{name}: `differs` and kiln.json go together"
        );
        let listed = document.contains(&format!("`{name}`"));
        assert_eq!(
            differs, listed,
            "{name}: `differs` and {DOCUMENT} do not agree"
        );
    }
    let names: BTreeSet<_> = cases.iter().map(|case| case.name.clone()).collect();
    for name in pending() {
        assert!(
            names.contains(&name),
            "pending.txt: there is no case {name}"
        );
    }
    for listed in document
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| is_case_name(word, &names))
    {
        assert!(
            names.contains(listed),
            "{DOCUMENT}: there is no case {listed}"
        );
    }
}

/// What a run changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writing {
    Nothing,
    Expectations,
}

/// Whether a case is to be as expected.
#[derive(Clone, Copy)]
enum Claim {
    AsExpected,
    Pending,
}

/// What came out of one case.
struct Judged {
    /// How Kiln differs from what is expected.
    kiln: String,
    /// How `BuildKit` does.
    buildkit: String,
}

/// Builds a case with everybody, and compares.
fn judge(
    case: &Case,
    peers: &Peers,
    kiln: &Kiln,
    buildkit: Option<&BuildKit>,
    writing: Writing,
) -> Judged {
    let scene = peers.scene(case);
    let expected = case.folder.join("expected.json");
    let mut judged = Judged {
        kiln: String::new(),
        buildkit: String::new(),
    };
    if let Some(buildkit) = buildkit {
        let seen = buildkit.build(case, &scene);
        if writing == Writing::Expectations {
            std::fs::write(&expected, pretty(&seen.expectation())).unwrap();
        }
        judged.buildkit = against(&seen, &read(&expected));
    }
    let ours = case.folder.join("kiln.json");
    let seen = kiln.build(case, &scene);
    if writing == Writing::Expectations && case.options.differs.is_some() {
        std::fs::write(&ours, pretty(&seen.expectation())).unwrap();
    }
    let differs = ours.exists();
    judged.kiln = against(&seen, &read(if differs { &ours } else { &expected }));
    judged.kiln.push_str(&says(case, &seen));
    if differs && judged.kiln.is_empty() && seen.expectation() == read(&expected) {
        judged.kiln = "differs no more: delete kiln.json and `differs`\n".to_owned();
    }
    judged
}

/// Returns how an outcome differs from an expectation; nothing if it does not.
fn against(seen: &Outcome, expected: &Value) -> String {
    let (mut expected, mut seen_value) = (expected.clone(), seen.expectation());
    // Words are everybody's own.
    for value in [&mut expected, &mut seen_value] {
        if let Some(failure) = value.pointer_mut("/fails").and_then(Value::as_object_mut) {
            failure.remove("said");
        }
    }
    // Who knows the line of an error that BuildKit knows no line for is right too.
    if let Some(line) = expected
        .pointer_mut("/fails/line")
        .filter(|line| line.is_null())
    {
        *line = seen_value
            .pointer("/fails/line")
            .cloned()
            .unwrap_or(Value::Null);
    }
    let differences = difference::between(&expected, &seen_value);
    if differences.is_empty() {
        return String::new();
    }
    format!("{differences}{}", seen.talk())
}

/// Returns a complaint if Kiln's error does not say what it is to say.
fn says(case: &Case, seen: &Outcome) -> String {
    let missing: Vec<_> = case
        .options
        .says
        .iter()
        .filter(|part| !seen.said.contains(*part))
        .collect();
    if missing.is_empty() {
        return String::new();
    }
    format!("it does not say {missing:?}\n{}", seen.talk())
}

/// Returns what is wrong with a case; nothing if all is well.
fn verdict(judged: &Judged, claim: Claim) -> String {
    let mut text = String::new();
    if !judged.buildkit.is_empty() {
        writeln!(
            text,
            "BuildKit (+) is not as expected (-):\n{}",
            judged.buildkit
        )
        .unwrap();
    }
    match (judged.kiln.is_empty(), claim) {
        (true, Claim::Pending) => text.push_str("it is as expected: take it out of pending.txt\n"),
        (false, Claim::AsExpected) => {
            writeln!(text, "Kiln (+) is not as expected (-):\n{}", judged.kiln).unwrap();
        }
        _ => {}
    }
    text
}

/// Runs something for each case, a few at a time, and returns the answers in order.
fn in_parallel<T: Send>(cases: &[Case], work: impl Fn(&Case) -> T + Sync) -> Vec<T> {
    let n_threads = std::thread::available_parallelism().map_or(2, usize::from) * BUILDS_PER_CPU;
    let next = AtomicUsize::new(0);
    let answers = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..n_threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(index) else { break };
                    let answer = work(case);
                    answers.lock().unwrap().push((index, answer));
                }
            });
        }
    });
    let mut answers = answers.into_inner().unwrap();
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// Returns every case, by name.
fn all_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for area in folders(&root().join("tests/corpus")) {
        cases.extend(folders(&area).iter().map(|folder| Case::read(folder)));
    }
    cases
}

/// Returns the names of the cases that Kiln does not build as expected yet.
fn pending() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("tests/corpus/pending.txt")).unwrap_or_default();
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

fn is_case_name(word: &str, names: &BTreeSet<String>) -> bool {
    word.split_once('/').is_some_and(|(area, case)| {
        let clean = |text: &str| {
            !text.is_empty()
                && text
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        };
        clean(case)
            && names
                .iter()
                .any(|name| name.starts_with(&format!("{area}/")))
    })
}

fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(of)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn pretty(value: &Value) -> String {
    format!("{}\n", serde_json::to_string_pretty(value).unwrap())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_path_buf()
}

#[expect(
    clippy::disallowed_methods,
    reason = "how `make corpus` says what it wants of the test"
)]
fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
