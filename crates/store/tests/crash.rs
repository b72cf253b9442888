//! A process that is killed, or whose system calls fail, at any point of what it does with a store.
//!
//! The child is this test binary again, run under `strace`, which kills it at the n-th call of a kind, or lets that call fail,
//! for n = 1, 2, … until the child gets through. After each run the store must hold nothing that is half done.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "what a test needs is there or the test fails"
)]

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use oci::Digest;
use store::Store;

const CHILD: &str = "the_child_does_a_bit_of_everything";
const STORE: &str = "KILN_TEST_CRASH_STORE";
/// Calls of one kind that the child makes at most, so that a fault that never ends is noticed.
const CALLS_MAX: usize = 400;

/// The work that is interrupted. Does nothing unless it is the child of another test here.
#[test]
fn the_child_does_a_bit_of_everything() {
    let Some(path) = std::env::var_os(STORE) else {
        return;
    };
    // A call that fails is told and nothing else happens.
    work(&PathBuf::from(path)).unwrap();
}

fn work(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let store = Store::open(path, None)?;
    let mut ingest = store.ingest()?;
    ingest.write_all(b"ingested")?;
    let (digest, _) = ingest.commit(None)?;
    store.link_blob("a/b", &digest)?;
    let id = store.create_upload("a/b")?;
    let mut upload = store.upload("a/b", &id)?.ok_or("no upload")?;
    upload.write_all(b"uploaded")?;
    upload.commit(&Digest::sha256(b"uploaded"))?;
    store.put_manifest("a/b", b"{}", Some("latest"))?;
    store.put_record("step", "key", b"new")?;
    let draft = store.new_snapshot()?;
    std::fs::create_dir(draft.path().join("dir"))?;
    std::fs::write(draft.path().join("dir/file"), b"whole")?;
    draft.commit(&Digest::sha256(b"layer"))?;
    store.delete_manifest("a/b", &Digest::sha256(b"old"))?;
    Ok(())
}

fn run_child(store: &Path, inject: &str) -> ExitStatus {
    let child = std::env::current_exe().unwrap();
    Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", inject])
        .arg(child)
        .args(["--exact", CHILD, "--test-threads=1", "-q"])
        .env(STORE, store)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap_or_else(|error| panic!("strace ({error}): install Debian package strace"))
}

/// Prepares a store with something old in it, which must survive.
fn prepare(dir: &Path) -> PathBuf {
    let path = dir.join("store");
    let store = Store::open(&path, None).unwrap();
    store.put_manifest("a/b", b"old", Some("latest")).unwrap();
    store.put_record("step", "key", b"old").unwrap();
    path
}

/// Opens the store anew and looks at everything that is visible in it.
fn check(path: &Path, when: &str) {
    let store = Store::open(path, None).unwrap();
    for entry in std::fs::read_dir(path.join("blobs/sha256")).unwrap() {
        let name = entry.unwrap().file_name();
        let digest = format!("sha256:{}", name.to_str().unwrap());
        assert!(
            store.verify_blob(&digest.parse().unwrap()).unwrap(),
            "{when}"
        );
    }
    for content in ["ingested", "uploaded"] {
        let digest = Digest::sha256(content.as_bytes());
        if store.has_blob("a/b", &digest).unwrap() {
            let bytes = store.read_blob(&digest, 100).unwrap().unwrap();
            assert_eq!(bytes, content.as_bytes(), "{when}");
        }
    }
    if let Some((_, bytes)) = store.manifest("a/b", "latest").unwrap() {
        assert!(bytes == b"old" || bytes == b"{}", "{when}");
    } else {
        panic!("{when}: the tag is gone");
    }
    let record = store.record("step", "key").unwrap().unwrap();
    assert!(record == b"old" || record == b"new", "{when}");
    let layer = Digest::sha256(b"layer");
    if store.has_snapshot(&layer) {
        let file = store.snapshot_path(&layer).join("dir/file");
        assert_eq!(std::fs::read(file).unwrap(), b"whole", "{when}");
    }
    // Of the dead child nothing is left but what can be gone on with.
    let count = |folder: &str| std::fs::read_dir(path.join(folder)).unwrap().count();
    assert_eq!(count("tmp"), 1, "{when}: only the session that looks");
    assert_eq!(count("quarantine"), 0, "{when}");
    assert!(count("ingest/uploads") <= 1, "{when}");
    // And everything works.
    work(path).unwrap_or_else(|error| panic!("{when}: {error}"));
}

/// Injects a fault into the n-th call of one kind for every n, and returns how many there were.
fn at_every_call(call: &str, fault: &str) -> usize {
    for n in 1..CALLS_MAX {
        let dir = tempfile::tempdir().unwrap();
        let path = prepare(dir.path());
        let status = run_child(&path, &format!("inject={call}:{fault}:when={n}"));
        check(&path, &format!("{fault} at {call} number {n}"));
        if status.success() {
            return n - 1;
        }
        let is_killed = status.signal() == Some(9) || status.code() == Some(137);
        assert!(is_killed || status.code() == Some(101), "{status:?}");
    }
    panic!("{call} is called more than {CALLS_MAX} times");
}

#[test]
fn a_kill_at_any_call_leaves_a_consistent_store() {
    for (call, n_min) in [
        ("fsync", 10),
        ("linkat", 2),
        ("renameat2", 2),
        ("renameat", 2),
        ("mkdirat", 4),
        ("fchmod", 5),
        ("unlinkat", 4),
        ("flock", 5),
    ] {
        let n_calls = at_every_call(call, "signal=KILL");
        assert!(n_calls >= n_min, "{call} was called {n_calls} times");
    }
}

#[test]
fn an_error_at_any_call_is_told_and_leaves_a_consistent_store() {
    for (call, error) in [
        ("fsync", "EIO"),
        ("linkat", "ENOSPC"),
        ("renameat2", "ENOSPC"),
        ("renameat", "EDQUOT"),
        ("mkdirat", "ENOSPC"),
    ] {
        let n_calls = at_every_call(call, &format!("error={error}"));
        assert!(n_calls >= 1, "{call} was called {n_calls} times");
    }
}
