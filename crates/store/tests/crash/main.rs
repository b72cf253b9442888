//! A process that is killed, or whose system calls fail, at any point of what it does with a store.
//!
//! This binary is also that process: with `work FOLDER` it does a bit of everything in the store `FOLDER/store`, one piece of work after the
//! other, tries each once more when it fails, and leaves a file in `FOLDER/done` for each that was done. With `recover FOLDER` it opens the
//! store that another one has left, and repairs it. With `threads FOLDER` it has many threads wait for the disk, of which each one fails.
//! Otherwise it runs itself under `strace`, with a fault at each call in turn, and looks after each: `check` finds nothing wrong, what was
//! done is there, what was there before is there, and everything works. Then it looks after what a machine that goes down may leave (`power`).
//!
//! An ordinary run kills at every other call and lets the others fail; with `KILN_SOAK_SECONDS` every call fails with every error, once and for
//! ever, and as long as there is time a process is killed that recovers from the death of another one.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    reason = "a test with a main of its own"
)]

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use oci::Digest;
use store::check::{Checking, Depth, Repair, Severity};
use store::collect::{Kind, Policy};
use store::context::{Allowance, Announced, ContentId, ContextId, Entry, EntryKind, Keeping};
use store::{CacheUse, Store};
use testkit::faults::{self, Dice, Ended, Fault, Point, RUNS_AT_A_TIME, Soak, Victim, figure};

const NAMED: &[&str] = &["kept"];
const REPOSITORY: &str = "a/b";
const NOW_MS: u64 = 1_700_000_000_000;
const KEEPING: Keeping = Keeping {
    now_ms: NOW_MS,
    lifetime: Duration::from_secs(3600),
};
/// Chains of crashes in an ordinary run, of each of those that run at a time.
const CHAINS: usize = 3;
/// More than are made durable at a time.
const MANY: usize = 20;
/// What the child ends with when a piece of work failed twice.
const FAILED_TWICE: i32 = 3;

mod late;
mod power;

type Outcome = Result<(), Box<dyn Error>>;

/// A piece of work: its name, and how it is done.
struct Piece(&'static str, fn(&Store) -> Outcome);

const WORK: &[Piece] = &[
    Piece("ingest", |store| {
        let mut ingest = store.ingest()?;
        ingest.write_all(b"inge")?;
        ingest.write_all(b"sted")?;
        let (digest, _) = ingest.commit(None)?;
        Ok(store.link_blob(REPOSITORY, &digest)?)
    }),
    Piece("many", |store| {
        let begin = |content: &[u8]| -> Result<_, Box<dyn Error>> {
            let mut ingest = store.ingest()?;
            ingest.write_all(content)?;
            Ok((ingest, Digest::sha256(content)))
        };
        let all = [begin(b"many one")?, begin(b"many two")?];
        for one in store.commit_all(&all) {
            one?;
        }
        Ok(())
    }),
    Piece("upload", |store| {
        let id = store.create_upload(REPOSITORY)?;
        let mut upload = store.upload(REPOSITORY, &id)?.ok_or("no upload")?;
        upload.write_all(b"uploaded")?;
        let (digest, _) = upload.commit(&Digest::sha256(b"uploaded"))?;
        Ok(store.link_blob(REPOSITORY, &digest)?)
    }),
    Piece("push", |store| {
        image(store, "latest", b"new layer").map(drop)
    }),
    Piece("referrer", |store| {
        let referrer = Digest::sha256(&manifest(b"new layer"));
        Ok(store.link_referrer(REPOSITORY, &Digest::sha256(b"subject"), &referrer)?)
    }),
    Piece("record", |store| {
        Ok(store.put_record("steps", "key", b"new")?)
    }),
    Piece("note", |store| {
        Ok(store.note_record("steps", "noted", b"new")?)
    }),
    Piece("snapshot", |store| {
        let draft = store.new_snapshot()?;
        std::fs::create_dir(draft.path().join("dir"))?;
        std::fs::write(draft.path().join("dir/file"), b"whole")?;
        draft.commit(&Digest::sha256(b"diff"))?;
        Ok(())
    }),
    Piece("sync", |store| {
        store.sync_snapshots().map(drop).map_err(Into::into)
    }),
    Piece("mount", |store| {
        let fill = |path: &Path| Ok(std::fs::write(path.join("first"), b"first")?);
        let key = Digest::sha256(b"mount");
        drop(store.cache_mount(&key, CacheUse::Private, &fill, &|| true)?);
        Ok(())
    }),
    Piece("context", |store| {
        let id = context(store, b"uploaded file")?;
        Ok(store.put_record("kept-contexts", "new", id.to_string().as_bytes())?)
    }),
    Piece("sweep", |store| {
        let later = Keeping {
            now_ms: NOW_MS + 1,
            ..KEEPING
        };
        store
            .sweep_contexts(later, &|| true)
            .map(drop)
            .map_err(Into::into)
    }),
    Piece("delete", |store| {
        let old = Digest::sha256(&manifest(b"deleted layer"));
        store
            .delete_manifest(REPOSITORY, &old)
            .map(drop)
            .map_err(Into::into)
    }),
    Piece("collect", |store| {
        let policy = Policy {
            kinds: Kind::ALL.to_vec(),
            only_unused_for: None,
            unused_for: Some(Duration::ZERO),
            max_bytes: None,
            min_free_bytes: None,
        };
        store.collect(&policy, NAMED).map(drop).map_err(Into::into)
    }),
    Piece("repair", |store| {
        let report = store.check(repairing(), NAMED)?;
        if report.is_wrong() {
            Err(format!("{report:?}").into())
        } else {
            Ok(())
        }
    }),
];

fn repairing() -> Checking {
    Checking {
        depth: Depth::Bytes,
        repair: Repair::MadeAgain,
    }
}

fn config(layer: &[u8]) -> Vec<u8> {
    format!("{{\"of\":\"{}\"}}", Digest::sha256(layer)).into_bytes()
}

fn manifest(layer: &[u8]) -> Vec<u8> {
    let descriptor = |bytes: &[u8]| {
        let (digest, size) = (Digest::sha256(bytes), bytes.len());
        format!("{{\"mediaType\":\"text/plain\",\"digest\":\"{digest}\",\"size\":{size}}}")
    };
    let (config, layer) = (descriptor(&config(layer)), descriptor(layer));
    format!("{{\"schemaVersion\":2,\"config\":{config},\"layers\":[{layer}]}}").into_bytes()
}

fn image(store: &Store, tag: &str, layer: &[u8]) -> Result<Digest, Box<dyn Error>> {
    for bytes in [&config(layer), layer] {
        let digest = store.put(bytes)?;
        store.link_blob(REPOSITORY, &digest)?;
    }
    Ok(store.put_manifest(REPOSITORY, &manifest(layer), Some(tag))?)
}

fn context(store: &Store, content: &[u8]) -> Result<ContextId, Box<dyn Error>> {
    let announced = Announced {
        n_entries: 1,
        n_bytes: content.len() as u64,
    };
    let mut draft = store.begin_context("tenant", announced, KEEPING, Allowance::default())?;
    let entry = Entry {
        path: b"file".to_vec(),
        mode: 0o644,
        modified_s: 0,
        modified_ns: 0,
        xattrs: BTreeMap::new(),
        kind: EntryKind::File {
            size: content.len() as u64,
            content: ContentId::of(content),
        },
    };
    draft.entries(&[entry])?;
    if !draft.missing()?.is_empty() {
        draft.content(content)?;
    }
    Ok(draft.commit(NOW_MS)?.id)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["work", folder] => work(Path::new(folder)),
        ["recover", folder] => recover(Path::new(folder)),
        ["threads", folder] => threads(Path::new(folder)),
        ["one", folder] => late::one(Path::new(folder)),
        ref words => {
            faults::try_parts(words, &PARTS);
            ExitCode::SUCCESS
        }
    }
}

/// What is tried, by name.
const PARTS: [faults::Part; 5] = [
    ("crash", every_call),
    ("threads", in_threads),
    ("double_crash", double_crashes),
    ("power", power::every_state),
    ("late", late::another_was_promised_it),
];

/// Tells what failed, if that does not fail too.
fn say(name: &str, error: &dyn Error) {
    let _unheard = writeln!(std::io::stderr(), "{name}: {error}");
}

/// The process that suffers.
fn work(folder: &Path) -> ExitCode {
    faults::begin();
    let path = folder.join("store");
    let Ok(store) = Store::open(&path, None).or_else(|_| Store::open(&path, None)) else {
        return ExitCode::from(3);
    };
    let mut has_failed = false;
    for Piece(name, act) in WORK {
        let done = act(&store).or_else(|first| {
            say(name, first.as_ref());
            act(&store)
        });
        match done {
            // What cannot be noted was not promised.
            Ok(()) => drop(std::fs::File::create(folder.join("done").join(name))),
            Err(error) => {
                say(name, error.as_ref());
                has_failed = true;
            }
        }
    }
    if has_failed {
        ExitCode::from(3)
    } else {
        ExitCode::SUCCESS
    }
}

/// Prepares a store with something old in it, which must survive, and something that may go.
fn prepare(folder: &Path) {
    std::fs::create_dir(folder.join("done")).unwrap();
    let store = Store::open(&folder.join("store"), None).unwrap();
    let kept = image(&store, "latest", b"old layer").unwrap();
    image(&store, "deleted", b"deleted layer").unwrap();
    store.put_record("steps", "key", b"old").unwrap();
    store
        .put_record("kept", "key", kept.to_string().as_bytes())
        .unwrap();
    let id = context(&store, b"old file").unwrap();
    store
        .put_record("kept-contexts", "old", id.to_string().as_bytes())
        .unwrap();
    // To be collected.
    let draft = store.new_snapshot().unwrap();
    std::fs::write(draft.path().join("file"), b"old").unwrap();
    draft.commit(&Digest::sha256(b"old diff")).unwrap();
    let blob = store.put(b"loose").unwrap();
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let name = Digest::sha256(b"old diff");
    for path in [
        store.path().join("blobs/sha256").join(blob.hex()),
        store.path().join("used").join(name.hex()),
    ] {
        std::fs::File::open(path)
            .unwrap()
            .set_modified(hour_ago)
            .unwrap();
    }
}

/// What came in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// Processes died.
    Killed,
    /// The machine went down.
    Power,
}

/// Looks at what is left. Returns what is wrong.
fn problems(folder: &Path, loss: Loss) -> Vec<String> {
    let mut wrong = Vec::new();
    let store = Store::open(&folder.join("store"), None).unwrap();
    let report = store
        .check(
            Checking {
                repair: Repair::Nothing,
                ..repairing()
            },
            NAMED,
        )
        .unwrap();
    for finding in report.findings {
        let is_told = finding.severity == Severity::Leftover && finding.remedy.is_some();
        let is_made_again = loss == Loss::Power && power::is_made_again(&finding);
        if !is_told && !is_made_again {
            wrong.push(format!("{finding:?}"));
        }
    }
    let mut expect = |what: &str, holds: bool| {
        if !holds {
            wrong.push(what.to_owned());
        }
    };
    let done = |name: &str| folder.join("done").join(name).exists();
    let has = |content: &[u8]| {
        store
            .read_blob(&Digest::sha256(content), 1000)
            .unwrap()
            .is_some()
    };
    for (name, content) in [("ingest", "ingested"), ("upload", "uploaded")] {
        let there = store
            .has_blob(REPOSITORY, &Digest::sha256(content.as_bytes()))
            .unwrap();
        expect(name, !done(name) || there && has(content.as_bytes()));
    }
    let found = store
        .manifest(REPOSITORY, "latest")
        .unwrap()
        .map(|(_, bytes)| bytes);
    let (old, new) = (manifest(b"old layer"), manifest(b"new layer"));
    expect(
        "the tag",
        found.as_ref() == Some(&new) || !done("push") && found == Some(old.clone()),
    );
    expect(
        "an old image",
        store
            .manifest(REPOSITORY, &Digest::sha256(&old).to_string())
            .unwrap()
            .is_some(),
    );
    expect("the old layer", has(b"old layer"));
    for content in [b"many one", b"many two"] {
        expect("one of many", !done("many") || has(content));
    }
    expect("the new layer", !done("push") || has(b"new layer"));
    let referrers = store
        .referrers(REPOSITORY, &Digest::sha256(b"subject"))
        .unwrap();
    expect(
        "the referrer",
        !done("referrer") || !done("push") || !referrers.is_empty(),
    );
    let record = store.record("steps", "key").unwrap();
    expect(
        "the record",
        record == Some(b"new".to_vec()) || !done("record") && record == Some(b"old".to_vec()),
    );
    let diff = Digest::sha256(b"diff");
    let snapshot = std::fs::read(store.snapshot_path(&diff).join("dir/file")).ok();
    expect(
        "the snapshot",
        snapshot == Some(b"whole".to_vec())
            || !done(match loss {
                Loss::Killed => "snapshot",
                Loss::Power => "sync",
            }) && !store.has_snapshot(&diff),
    );
    for (key, piece) in [("old", None), ("new", Some("context"))] {
        let id = store.record("kept-contexts", key).unwrap();
        let id = id.map(|bytes| {
            String::from_utf8(bytes)
                .unwrap()
                .parse::<ContextId>()
                .unwrap()
        });
        let there = id.is_some_and(|id| store.context("tenant", &id).unwrap().is_some());
        expect(
            "a context",
            there || piece.is_some_and(|piece| !done(piece)),
        );
    }
    let deleted = store.manifest(REPOSITORY, "deleted").unwrap();
    expect("what was deleted", !done("delete") || deleted.is_none());
    // What comes back with the power costs room and nothing else.
    expect(
        "what was collected",
        !done("collect") || !has(b"loose") || loss == Loss::Power,
    );
    wrong
}

/// After a fault: nothing is wrong, everything works, and after a repair nothing is left.
fn look_after(folder: &Path, loss: Loss, when: &str) {
    let wrong = problems(folder, loss);
    assert!(wrong.is_empty(), "{when}: {wrong:#?}");
    let store = Store::open(&folder.join("store"), None).unwrap();
    for Piece(name, act) in WORK {
        act(&store).unwrap_or_else(|error| panic!("{when}: then {name}: {error}"));
    }
    let report = store.check(repairing(), NAMED).unwrap();
    assert!(!report.is_wrong(), "{when}: {report:?}");
    let report = store.check(repairing(), NAMED).unwrap();
    assert_eq!(report.findings, [], "{when}");
    drop(store);
    let left: Vec<_> = std::fs::read_dir(folder.join("store/tmp"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{when}: {left:?}");
}

/// The process that does everything, and its calls.
fn worker(scratch: &Path) -> (Victim, Vec<Point>) {
    let victim = Victim::new(&std::env::current_exe().unwrap(), &["work"]);
    let first = tempfile::tempdir_in(scratch).unwrap();
    let first = first.path().join("first");
    std::fs::create_dir(&first).unwrap();
    prepare(&first);
    let points = victim.points(&first);
    look_after(&first, Loss::Killed, "without a fault");
    (victim, points)
}

fn every_call(scratch: &Path) {
    let began = Instant::now();
    let (victim, points) = worker(scratch);
    let runs = faults::plan(&points, Soak::asked());
    let failed_twice = AtomicUsize::new(0);
    let suffer = |index: usize, (point, fault): &(Point, Fault)| {
        let folder = scratch.join(index.to_string());
        std::fs::create_dir(&folder).unwrap();
        prepare(&folder);
        let ended = victim.suffer(&folder, point, *fault);
        let when = format!("{fault:?} at {point}");
        match (fault, ended) {
            (Fault::Kill, Ended::Killed)
            | (Fault::Error(_), Ended::Code(0))
            | (Fault::ErrorFrom(_), Ended::Code(0 | FAILED_TWICE)) => {}
            (Fault::Error(_), Ended::Code(FAILED_TWICE)) => {
                failed_twice.fetch_add(1, Ordering::Relaxed);
            }
            (_, ended) => panic!("{when}: it ended with {ended:?}"),
        }
        look_after(&folder, Loss::Killed, &when);
        std::fs::remove_dir_all(&folder).unwrap();
    };
    faults::in_parallel(&runs, &suffer);
    let n_kills = runs
        .iter()
        .filter(|(_, fault)| *fault == Fault::Kill)
        .count();
    figure(
        "F8",
        &[
            ("crash_points", points.len().to_string()),
            ("killed_at", n_kills.to_string()),
            ("invariant_breaks", "0".to_owned()),
            ("acknowledged_lost", "0".to_owned()),
        ],
    );
    figure(
        "F9",
        &[
            ("calls", points.len().to_string()),
            ("errors", faults::ERRORS.join(",")),
            ("runs", (runs.len() - n_kills).to_string()),
            ("panics", "0".to_owned()),
            ("invariant_breaks", "0".to_owned()),
            (
                "failed_twice",
                failed_twice.load(Ordering::Relaxed).to_string(),
            ),
            ("seconds", began.elapsed().as_secs().to_string()),
        ],
    );
}

/// Every wait for the disk of many threads fails: nothing of what they had in hand is visible, and it works the next time. Then a
/// thread is not to be had: it goes on without.
fn in_threads(scratch: &Path) {
    let victim = Victim::new(&std::env::current_exe().unwrap(), &["threads"]);
    let calls = [("fsync", "EIO"), ("fsync", "ENOSPC"), ("fsync", "EDQUOT")];
    for (call, error) in calls.into_iter().chain([("clone3", "EAGAIN")]) {
        let when = format!("{error} of every first {call}");
        let folder = scratch.join(format!("threads-{call}-{error}"));
        std::fs::create_dir(&folder).unwrap();
        prepare(&folder);
        let code = victim.suffer_in_threads(&folder, call, error);
        let expected = if call == "fsync" { FAILED_TWICE } else { 0 };
        assert_eq!(code, Some(expected), "{when}");
        let store = Store::open(&folder.join("store"), None).unwrap();
        for n in 0..MANY {
            let is_there = store.size_of(&Digest::sha256(&one_of_many(n))).unwrap();
            assert_eq!(is_there.is_some(), call != "fsync", "{when}: {n}");
        }
        drop(store);
        let wrong = problems(&folder, Loss::Killed);
        assert!(wrong.is_empty(), "{when}: {wrong:#?}");
        assert_eq!(
            victim.suffer_in_threads(&folder, "truncate", "EIO"),
            Some(0)
        );
        look_after(&folder, Loss::Killed, &when);
    }
    figure(
        "F9",
        &[
            ("threads", MANY.to_string()),
            ("invariant_breaks", "0".to_owned()),
        ],
    );
}

fn one_of_many(n: usize) -> Vec<u8> {
    format!("in thread {n}").into_bytes()
}

/// The process whose threads suffer. Ends with [`FAILED_TWICE`] when every thread failed, with 0 when none did.
fn threads(folder: &Path) -> ExitCode {
    faults::begin();
    let path = folder.join("store");
    // The first wait for the disk of this thread, which fails too.
    let Ok(store) = Store::open(&path, None).or_else(|_| Store::open(&path, None)) else {
        return ExitCode::from(4);
    };
    let all = (0..MANY).map(|n| {
        let content = one_of_many(n);
        let mut ingest = store.ingest()?;
        ingest.write_all(&content)?;
        Ok::<_, Box<dyn Error>>((ingest, Digest::sha256(&content)))
    });
    let Ok(all) = all.collect::<Result<Vec<_>, _>>() else {
        return ExitCode::from(4);
    };
    let done = store.commit_all(&all);
    match done.iter().filter(|one| one.is_ok()).count() {
        0 if done
            .iter()
            .all(|one| matches!(one, Err(store::CommitError::Sync { .. }))) =>
        {
            ExitCode::from(3)
        }
        MANY => ExitCode::SUCCESS,
        _ => ExitCode::from(4),
    }
}

/// The process that recovers from the death of another one.
fn recover(folder: &Path) -> ExitCode {
    faults::begin();
    let Ok(store) = Store::open(&folder.join("store"), None) else {
        return ExitCode::from(4);
    };
    match store.check(repairing(), NAMED) {
        Ok(report) if !report.is_wrong() => ExitCode::SUCCESS,
        _ => ExitCode::from(4),
    }
}

/// Kills a process, and the next one that recovers from that or goes on, and the next: at random points, as long as there is time.
fn double_crashes(scratch: &Path) {
    let (worker, points) = worker(scratch);
    let recoverer = Victim::new(&std::env::current_exe().unwrap(), &["recover"]);
    let (began, time) = (Instant::now(), faults::soak_time());
    let seed = time.map_or(1, |_| u64::from(std::process::id()));
    let (n_kills, n_in_recovery) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let chain = |index: usize, (): &()| {
        let mut dice = Dice::new(seed.wrapping_mul(1000) + index as u64);
        let mut n = 0;
        while time.map_or(n < CHAINS, |time| began.elapsed() < time) {
            n += 1;
            let folder: PathBuf = scratch.join(format!("chain-{index}-{n}"));
            std::fs::create_dir(&folder).unwrap();
            prepare(&folder);
            let mut history = Vec::new();
            for round in 0..2 + dice.below(3) {
                let recovers = round % 2 == 1;
                let victim = if recovers { &recoverer } else { &worker };
                // What there is to be recovered is another thing every time.
                let others = recovers.then(|| {
                    let copy = folder.with_extension("copy");
                    copy_of(&folder, &copy);
                    let points = recoverer.points(&copy);
                    std::fs::remove_dir_all(&copy).unwrap();
                    points
                });
                let points = others.as_ref().unwrap_or(&points);
                let at = usize::try_from(dice.below(points.len() as u64)).unwrap();
                let point = points.get(at).unwrap();
                let ended = victim.suffer(&folder, point, Fault::Kill);
                let is_killed = ended == Ended::Killed;
                n_kills.fetch_add(usize::from(is_killed), Ordering::Relaxed);
                n_in_recovery.fetch_add(usize::from(is_killed && recovers), Ordering::Relaxed);
                history.push(format!(
                    "{}{point}",
                    if recovers { "recovery: " } else { "" }
                ));
                let wrong = problems(&folder, Loss::Killed);
                assert!(
                    wrong.is_empty(),
                    "seed {seed}, killed at {history:?}: {wrong:#?}"
                );
            }
            look_after(
                &folder,
                Loss::Killed,
                &format!("seed {seed}, killed at {history:?}"),
            );
            std::fs::remove_dir_all(&folder).unwrap();
        }
    };
    faults::in_parallel(&[(); RUNS_AT_A_TIME], &chain);
    let n_in_recovery = n_in_recovery.into_inner();
    assert!(n_in_recovery > 0, "nobody was killed while recovering");
    figure(
        "F8",
        &[
            ("double_crash_kills", n_kills.into_inner().to_string()),
            ("in_recovery", n_in_recovery.to_string()),
            ("seed", seed.to_string()),
            ("invariant_breaks", "0".to_owned()),
        ],
    );
}

fn copy_of(folder: &Path, copy: &Path) {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .args([folder, copy])
        .status();
    assert!(status.unwrap().success());
}
