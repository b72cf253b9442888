//! A process that is killed, or whose system calls fail, at any point of what it does with a store.
//!
//! Waits for the disk that several threads do for [`Store::commit_all`] are not among the calls: their errors are those of one.
//!
//! This binary is also that process: with `work FOLDER` it does a bit of everything in the store `FOLDER/store`, one piece of work after the
//! other, tries each once more when it fails, and leaves a file in `FOLDER/done` for each that was done. Otherwise it runs itself under
//! `strace`, with a fault at each call in turn, and looks after each: `check` finds nothing wrong, what was done is there, what was there
//! before is there, and everything works.
//!
//! An ordinary run kills at every other call and lets some of them fail; with `KILN_SOAK_SECONDS` every call fails with every error, once and for
//! ever, and as long as there is time a process is killed that repairs what another one has left.

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
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use oci::Digest;
use store::check::{Checking, Depth, Repair, Severity};
use store::collect::{Kind, Policy};
use store::context::{Announced, ContentId, ContextId, Entry, EntryKind, Keeping};
use store::{CacheUse, Store};
use testkit::faults::{self, Dice, Ended, Fault, Point, Victim, figure};

const NAMED: &[&str] = &["kept"];
const REPOSITORY: &str = "a/b";
const NOW_MS: u64 = 1_700_000_000_000;
const KEEPING: Keeping = Keeping {
    now_ms: NOW_MS,
    lifetime: Duration::from_secs(3600),
};
/// Runs at a time: each waits for the disk most of the time.
const RUNS_AT_A_TIME: usize = 4;
/// Of the calls that are to fail, an ordinary run takes one of so many.
const SAMPLED: usize = 4;
/// What the child ends with when a piece of work failed twice.
const FAILED_TWICE: i32 = 3;

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
    let mut draft = store.begin_context("tenant", announced, KEEPING)?;
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
        ["--list", ..] => ExitCode::SUCCESS,
        // What `cargo test NAME` and the like ask for.
        ref words
            if !words
                .iter()
                .all(|word| word.starts_with('-') || "crash".contains(word)) =>
        {
            ExitCode::SUCCESS
        }
        _ => {
            every_call();
            ExitCode::SUCCESS
        }
    }
}

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

/// Looks at what is left. Returns what is wrong.
fn problems(folder: &Path) -> Vec<String> {
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
        if !is_told {
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
        snapshot == Some(b"whole".to_vec()) || !done("snapshot") && !store.has_snapshot(&diff),
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
    expect("what was collected", !done("collect") || !has(b"loose"));
    wrong
}

/// After a fault: nothing is wrong, everything works, and after a repair nothing is left.
fn look_after(folder: &Path, when: &str) {
    let wrong = problems(folder);
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

fn every_call() {
    let soak = faults::soak_time();
    let began = Instant::now();
    let scratch = tempfile::tempdir_in(faults::quick_folder()).unwrap();
    let victim = Victim::new(&std::env::current_exe().unwrap(), &["work"]);
    let first = scratch.path().join("first");
    std::fs::create_dir(&first).unwrap();
    prepare(&first);
    let points = victim.points(&first);
    look_after(&first, "without a fault");
    let errors: &[&str] = match soak {
        Some(_) => &["EIO", "ENOSPC", "EDQUOT", "EMFILE", "ENOMEM"],
        None => &["EIO", "ENOSPC"],
    };
    let mut runs: Vec<(Point, Fault)> = Vec::new();
    for (n, point) in points.iter().enumerate() {
        if soak.is_some() || n % 2 == 0 {
            runs.push((point.clone(), Fault::Kill));
        }
        for (m, error) in errors.iter().enumerate() {
            if soak.is_some() || (n + 1 + m * SAMPLED / 2).is_multiple_of(SAMPLED) {
                runs.push((point.clone(), Fault::Error(error)));
            }
            if soak.is_some() {
                runs.push((point.clone(), Fault::ErrorFrom(error)));
            }
        }
    }
    let failed_twice = AtomicUsize::new(0);
    let suffer = |index: usize, (point, fault): &(Point, Fault)| {
        let folder = scratch.path().join(index.to_string());
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
        look_after(&folder, &when);
        std::fs::remove_dir_all(&folder).unwrap();
    };
    in_parallel(&runs, &suffer);
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
            ("errors", errors.join(",")),
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
    if let Some(time) = soak {
        double_crashes(&victim, &points, scratch.path(), time);
    }
}

fn in_parallel<T: Sync>(items: &[T], act: &(dyn Fn(usize, &T) + Sync)) {
    let next = Mutex::new(items.iter().enumerate());
    let take = || next.lock().unwrap().next();
    std::thread::scope(|scope| {
        let runners: Vec<_> = (0..RUNS_AT_A_TIME)
            .map(|_| {
                scope.spawn(|| {
                    while let Some((index, item)) = take() {
                        act(index, item);
                    }
                })
            })
            .collect();
        for runner in runners {
            if let Err(panic) = runner.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// Kills a process, and the next one that tidies up after it, and the next: at random points, as long as there is time.
fn double_crashes(victim: &Victim, points: &[Point], scratch: &Path, time: Duration) {
    let (began, seed) = (Instant::now(), u64::from(std::process::id()));
    let n_kills = AtomicUsize::new(0);
    let chain = |index: usize, (): &()| {
        let mut dice = Dice::new(seed.wrapping_mul(1000) + index as u64);
        let mut n = 0;
        while began.elapsed() < time {
            n += 1;
            let folder: PathBuf = scratch.join(format!("chain-{index}-{n}"));
            std::fs::create_dir(&folder).unwrap();
            prepare(&folder);
            let mut history = Vec::new();
            for _ in 0..2 + dice.below(3) {
                let at = usize::try_from(dice.below(points.len() as u64)).unwrap();
                let point = points.get(at).unwrap();
                let ended = victim.suffer(&folder, point, Fault::Kill);
                n_kills.fetch_add(usize::from(ended == Ended::Killed), Ordering::Relaxed);
                history.push(point.to_string());
                let wrong = problems(&folder);
                assert!(wrong.is_empty(), "killed at {history:?}: {wrong:#?}");
            }
            look_after(&folder, &format!("killed at {history:?}"));
            std::fs::remove_dir_all(&folder).unwrap();
        }
    };
    in_parallel(&[(); RUNS_AT_A_TIME], &chain);
    figure(
        "F8",
        &[
            ("double_crash_kills", n_kills.into_inner().to_string()),
            ("seed", seed.to_string()),
            ("invariant_breaks", "0".to_owned()),
        ],
    );
}
