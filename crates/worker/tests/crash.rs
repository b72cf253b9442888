//! A build whose processes are killed, whose system calls fail, and whose machine goes down, at any point from its acceptance to its end.
//!
//! This binary is also those processes. With `work FOLDER` it prepares a build below `FOLDER/state`, makes that durable and so accepts it, and
//! writes its journal to the end, as server and worker do together. With `conclude FOLDER` it ends a build that another process has left.
//! Both leave a file in `FOLDER/done` for each thing that they could tell somebody. Otherwise it lets them suffer, and looks after each:
//! a build that was accepted can be read, has exactly one end, and what was told of its log is in it, in order, once.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test with a main of its own"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use engine::event::{Event, StepId, Stream};
use engine::id::BuildId;
use engine::journal::{self, Body, Reader, Writer};
use engine::spec::{Purpose, Record};
use engine::state;
use testkit::faults::{self, Ended, Fault, Point, Soak, Victim, figure};
use testkit::power;
use worker::WorkerCommand;

/// Records of the journal before the disk is waited for, and in all but the last.
const FIRST: usize = 4;
const ALL: usize = 7;
/// What the child ends with when something failed twice.
const FAILED_TWICE: i32 = 3;

/// What came in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// Processes died.
    Killed,
    /// The machine went down.
    Power,
}

fn id() -> BuildId {
    BuildId::from_random([7; 16])
}

fn asked() -> Record {
    Record {
        id: id(),
        tenant: "default".to_owned(),
        triggered_by: String::new(),
        caller: String::new(),
        supervisor_ref: String::new(),
        reference: "registry.example/app:1".to_owned(),
        base_reference: "registry.example/base:1".to_owned(),
        started_at_ms: 1,
        key: "key".to_owned(),
        purpose: Purpose::Named,
        request: String::new(),
        labels: BTreeMap::new(),
    }
}

fn command(folder: &Path) -> WorkerCommand {
    WorkerCommand {
        program: PathBuf::from("/nowhere"),
        state: folder.join("state"),
        arguments: Vec::new(),
        owner: None,
    }
}

fn build(folder: &Path) -> PathBuf {
    worker::folder::of(&folder.join("state"), &id())
}

fn record(n: usize) -> journal::Record {
    let body = match n {
        ALL => Body::Event(Event::Cancelled),
        n if n % 2 == 0 => Body::Event(Event::Warning {
            text: format!("warning {n}"),
        }),
        n => Body::Output {
            step: StepId(7),
            stream: Stream::Stdout,
            bytes: vec![u8::try_from(n).unwrap(); n * 411],
        },
    };
    let at_ms = u64::try_from(n).unwrap();
    journal::Record { at_ms, body }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["work", folder] => work(Path::new(folder)),
        ["conclude", folder] => conclude(Path::new(folder)),
        ref words => {
            faults::try_parts(words, &PARTS);
            ExitCode::SUCCESS
        }
    }
}

/// What is tried, by name.
const PARTS: [faults::Part; 3] = [
    ("crash", every_call),
    ("double_crash", double_crashes),
    ("power", every_state),
];

fn twice<T, E>(mut act: impl FnMut() -> Result<T, E>) -> Option<T> {
    act().or_else(|_| act()).ok()
}

fn tell(folder: &Path, what: &str) {
    // What cannot be told was not promised.
    drop(std::fs::File::create(folder.join("done").join(what)));
}

/// Server and worker, one after the other.
fn work(folder: &Path) -> ExitCode {
    faults::begin();
    let failed = ExitCode::from(3);
    let Some(build) = twice(|| worker::prepare(&command(folder), &asked())) else {
        return failed;
    };
    // What could not be made durable is not asked for again: the build is not accepted.
    if worker::make_durable(&build).is_err() {
        return failed;
    }
    tell(folder, "accepted");
    let Some(mut writer) = twice(|| Writer::resume(&build)) else {
        return failed;
    };
    for n in 0..ALL {
        if twice(|| writer.append(&record(n))).is_none() {
            return failed;
        }
        tell(folder, &format!("appended-{n}"));
        if n == FIRST {
            if writer.sync().is_err() {
                return failed;
            }
            tell(folder, &format!("synced-{n}"));
        }
    }
    if writer.end(&record(ALL)).is_err() {
        return failed;
    }
    tell(folder, &format!("appended-{ALL}"));
    tell(folder, &format!("synced-{ALL}"));
    ExitCode::SUCCESS
}

/// The server that is started next.
fn conclude(folder: &Path) -> ExitCode {
    faults::begin();
    match worker::conclude(&build(folder)) {
        Ok(()) => {
            tell(folder, "concluded");
            ExitCode::SUCCESS
        }
        Err(_) => ExitCode::from(3),
    }
}

fn prepare(folder: &Path) {
    std::fs::create_dir_all(folder.join("done")).unwrap();
    std::fs::create_dir(folder.join("state")).unwrap();
}

/// Looks at what is left, and ends the build as the server does that is started next.
fn look_after(folder: &Path, loss: Loss, when: &str) {
    let build = build(folder);
    let done = |what: &str| folder.join("done").join(what).exists();
    if !done("accepted") {
        // Nobody was told of it. Whatever there is of it can be looked at.
        if build.exists() {
            let _any = worker::conclude(&build);
        }
        return;
    }
    let text = std::fs::read_to_string(build.join(worker::folder::RECORD));
    let text = text.unwrap_or_else(|error| panic!("{when}: {error}"));
    assert_eq!(
        serde_json::from_str::<Record>(&text).unwrap(),
        asked(),
        "{when}"
    );
    worker::conclude(&build).unwrap_or_else(|error| panic!("{when}: {}", engine::chain(&error)));
    let (now, ended_at_ms) = state::of(&build).unwrap();
    assert!(
        now.is_terminal() && ended_at_ms.is_some(),
        "{when}: {now:?}"
    );
    let found = read(&build, when);
    let is_end = |record: &journal::Record| matches!(&record.body, Body::Event(event) if event.is_terminal());
    let n_ends = found.iter().filter(|record| is_end(record)).count();
    assert_eq!(n_ends, 1, "{when}");
    assert!(found.last().is_some_and(is_end), "{when}");
    let is_promised = |n: usize| match loss {
        Loss::Killed => done(&format!("appended-{n}")),
        Loss::Power => (n..=ALL).any(|later| done(&format!("synced-{later}"))),
    };
    let mut expected = (0..=ALL).map(|n| (n, record(n)));
    let n_said = found.len() - usize::from(found.last() != Some(&record(ALL)));
    for one in found.iter().take(n_said) {
        expected
            .find(|(n, expected)| {
                let is_it = expected == one;
                assert!(is_it || !is_promised(*n), "{when}: {n} is lost");
                // With the power what came last goes, and nothing in between.
                assert!(is_it || loss == Loss::Killed, "{when}: {n} is missing");
                is_it
            })
            .unwrap_or_else(|| panic!("{when}: nobody wrote {one:?}"));
    }
    for (n, _) in expected {
        assert!(!is_promised(n), "{when}: {n} is lost");
    }
    assert!(!build.join(journal::RESERVE).exists(), "{when}");
}

fn read(build: &Path, when: &str) -> Vec<journal::Record> {
    let mut reader = Reader::open(build).unwrap_or_else(|error| panic!("{when}: {error}"));
    let next = || {
        let next = reader.next();
        next.unwrap_or_else(|error| panic!("{when}: {error}"))
    };
    std::iter::from_fn(next).collect()
}

fn victim(scratch: &Path) -> (Victim, Vec<Point>) {
    let victim = Victim::new(&std::env::current_exe().unwrap(), &["work"]);
    let first = tempfile::tempdir_in(scratch).unwrap();
    prepare(first.path());
    let points = victim.points(first.path());
    look_after(first.path(), Loss::Killed, "without a fault");
    (victim, points)
}

fn every_call(scratch: &Path) {
    let began = Instant::now();
    let (victim, points) = victim(scratch);
    // They are few: all of them every time.
    let runs = faults::plan(&points, Soak::Yes);
    let failed_twice = AtomicUsize::new(0);
    faults::in_parallel(&runs, &|index, (point, fault)| {
        let folder = scratch.join(index.to_string());
        prepare(&folder);
        let ended = victim.suffer(&folder, point, *fault);
        let when = format!("{fault:?} at {point}");
        match (fault, ended) {
            (Fault::Kill, Ended::Killed) | (_, Ended::Code(0)) => {}
            (Fault::Error(_) | Fault::ErrorFrom(_), Ended::Code(FAILED_TWICE)) => {
                failed_twice.fetch_add(1, Ordering::Relaxed);
            }
            (_, ended) => panic!("{when}: it ended with {ended:?}"),
        }
        look_after(&folder, Loss::Killed, &when);
        std::fs::remove_dir_all(&folder).unwrap();
    });
    figure(
        "F8",
        &[
            ("build_crash_points", points.len().to_string()),
            ("runs", runs.len().to_string()),
            ("failed_twice", failed_twice.into_inner().to_string()),
            ("invariant_breaks", "0".to_owned()),
            ("acknowledged_lost", "0".to_owned()),
            ("seconds", began.elapsed().as_secs().to_string()),
        ],
    );
}

/// The worker is killed at every third point, and then whoever ends its build, at every point of that.
fn double_crashes(scratch: &Path) {
    let (victim, points) = victim(scratch);
    let concluder = Victim::new(&std::env::current_exe().unwrap(), &["conclude"]);
    let n_kills = AtomicUsize::new(0);
    let every = if Soak::asked() == Soak::Yes { 1 } else { 3 };
    let sampled: Vec<&Point> = points.iter().step_by(every).collect();
    faults::in_parallel(&sampled, &|index, point| {
        let crashed = |name: &str| {
            let folder = scratch.join(format!("double-{index}-{name}"));
            prepare(&folder);
            assert_eq!(victim.suffer(&folder, point, Fault::Kill), Ended::Killed);
            folder
        };
        let first = crashed("first");
        if !first.join("done/accepted").exists() {
            return;
        }
        for (n, next) in concluder.points(&first).iter().enumerate() {
            let folder = crashed(&n.to_string());
            let ended = concluder.suffer(&folder, next, Fault::Kill);
            assert_eq!(ended, Ended::Killed, "{next}");
            n_kills.fetch_add(1, Ordering::Relaxed);
            let when = format!("killed at {point}, and in recovery at {next}");
            look_after(&folder, Loss::Killed, &when);
            std::fs::remove_dir_all(&folder).unwrap();
        }
        std::fs::remove_dir_all(&first).unwrap();
    });
    let n_kills = n_kills.into_inner();
    assert!(n_kills > 0, "nobody was killed while recovering");
    figure(
        "F8",
        &[
            ("build_double_crash_kills", n_kills.to_string()),
            ("invariant_breaks", "0".to_owned()),
        ],
    );
}

/// What a machine that goes down may leave: at any moment, with what was not waited for there, gone or in parts.
fn every_state(scratch: &Path) {
    let victim = Victim::new(&std::env::current_exe().unwrap(), &["work"]);
    let first = scratch.join("recorded");
    prepare(&first);
    let recording = power::record(&victim, &first);
    let n_damaged = AtomicUsize::new(0);
    let seen = power::every_state(&recording, scratch, &|folder, when| {
        look_after(folder, Loss::Power, when);
        let is_damaged = build(folder).join("journal.damaged").exists();
        n_damaged.fetch_add(usize::from(is_damaged), Ordering::Relaxed);
    });
    let n_damaged = n_damaged.into_inner();
    assert!(n_damaged > 0, "no journal had a hole");
    figure(
        "F10",
        &[
            ("build_states", seen.n_states.to_string()),
            ("moments", seen.n_moments.to_string()),
            ("pending_max", seen.n_pending_max.to_string()),
            ("journals_with_holes", n_damaged.to_string()),
            ("seed", seen.seed.to_string()),
            ("invariant_breaks", "0".to_owned()),
            ("acknowledged_lost", "0".to_owned()),
        ],
    );
}
