//! Collections: what goes, what stays, and what happens beside them.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by ending")]

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use oci::Digest;
use store::collect::{Hold, Kind, Policy};
use store::{CacheUse, Store};
use tempfile::TempDir;

const HOUR: Duration = Duration::from_secs(3600);

fn new_store() -> (TempDir, Store) {
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(&scratch.path().join("store"), None).unwrap();
    (scratch, store)
}

fn everything() -> Policy {
    Policy {
        kinds: Kind::ALL.to_vec(),
        only_unused_for: None,
        unused_for: Some(Duration::ZERO),
        max_bytes: None,
        min_free_bytes: None,
    }
}

fn at_most(max_bytes: u64) -> Policy {
    Policy {
        unused_for: None,
        max_bytes: Some(max_bytes),
        ..everything()
    }
}

fn age(path: &Path, by: Duration) {
    let then = SystemTime::now() - by;
    File::open(path).unwrap().set_modified(then).unwrap();
}

fn blob_path(store: &Store, digest: &Digest) -> std::path::PathBuf {
    store.path().join("blobs/sha256").join(digest.hex())
}

fn old_blob(store: &Store, content: &[u8], by: Duration) -> Digest {
    let digest = store.put(content).unwrap();
    age(&blob_path(store, &digest), by);
    digest
}

fn old_snapshot(store: &Store, name: &str, by: Duration) -> Digest {
    let diff_id = Digest::sha256(name.as_bytes());
    let draft = store.new_snapshot().unwrap();
    fs::write(draft.path().join("file"), name).unwrap();
    draft.commit(&diff_id).unwrap();
    age(&store.path().join("used").join(diff_id.hex()), by);
    diff_id
}

fn removed(store: &Store, policy: &Policy) -> Vec<(Kind, String)> {
    let collected = store.collect(policy, &["kept"]).unwrap();
    let names = collected
        .removed
        .into_iter()
        .map(|item| (item.kind, item.name));
    names.collect()
}

#[test]
fn what_a_repository_holds_stays_and_the_rest_goes() {
    let (_scratch, store) = new_store();
    let held = old_blob(&store, b"held", HOUR);
    store.link_blob("library/app", &held).unwrap();
    let manifest = store
        .put_manifest("library/app/nested", b"{}", Some("1"))
        .unwrap();
    for digest in [&held, &manifest] {
        age(&blob_path(&store, digest), HOUR);
    }
    let loose = old_blob(&store, b"loose", HOUR);
    let snapshot = old_snapshot(&store, "layer", HOUR);
    store.put_record("kept", "name", b"1").unwrap();
    store.put_record("step", "key", b"1").unwrap();
    for entry in ["records/kept", "records/step"] {
        let part = fs::read_dir(store.path().join(entry)).unwrap().next();
        let record = fs::read_dir(part.unwrap().unwrap().path()).unwrap().next();
        age(&record.unwrap().unwrap().path(), HOUR);
    }
    let mut gone = removed(&store, &everything());
    gone.sort();
    assert_eq!(
        gone,
        [
            (Kind::Layer, loose.to_string()),
            (Kind::Snapshot, snapshot.hex().to_owned()),
            (Kind::Record, "step/key".to_owned()),
        ]
    );
    assert_eq!(store.size_of(&loose).unwrap(), None);
    assert!(!store.has_snapshot(&snapshot));
    assert!(!store.snapshot_path(&snapshot).exists());
    assert_eq!(store.record("step", "key").unwrap(), None);
    assert!(store.record("kept", "name").unwrap().is_some());
    assert!(store.has_blob("library/app", &held).unwrap());
    assert!(store.manifest("library/app/nested", "1").unwrap().is_some());
    assert_eq!(removed(&store, &everything()), []);
}

#[test]
fn what_was_unused_longest_goes_first_until_it_is_little_enough() {
    let (_scratch, store) = new_store();
    let blobs: Vec<Digest> = (1..=5)
        .map(|n: u8| old_blob(&store, &[n; 8192], HOUR * u32::from(n)))
        .collect();
    let names = |digests: &[&Digest]| -> Vec<(Kind, String)> {
        let name = |digest: &&Digest| (Kind::Layer, digest.to_string());
        digests.iter().map(name).collect()
    };
    assert_eq!(removed(&store, &at_most(5 * 8192)), []);
    // Used again: the oldest is the newest now.
    store.size_of(&blobs[4]).unwrap();
    assert_eq!(
        removed(&store, &at_most(3 * 8192 + 1)),
        names(&[&blobs[3], &blobs[2]])
    );
    let by_age = Policy {
        unused_for: Some(HOUR + HOUR / 2),
        max_bytes: None,
        ..everything()
    };
    assert_eq!(removed(&store, &by_age), names(&[&blobs[1]]));
    // What is too young does not go for any reason, and what is old enough only for one.
    let only_old = |bounds: Policy| Policy {
        only_unused_for: Some(HOUR + HOUR / 2),
        ..bounds
    };
    assert_eq!(removed(&store, &only_old(at_most(0))), []);
    let older = old_blob(&store, b"older", 2 * HOUR);
    assert_eq!(removed(&store, &only_old(at_most(u64::MAX))), []);
    assert_eq!(removed(&store, &only_old(everything())), names(&[&older]));
    let other_kinds = Policy {
        kinds: vec![Kind::Snapshot, Kind::Record],
        ..everything()
    };
    assert_eq!(removed(&store, &other_kinds), []);
    let until_free = Policy {
        unused_for: None,
        min_free_bytes: Some(u64::MAX),
        ..everything()
    };
    let recent = old_blob(&store, b"recent", HOUR / 2);
    assert_eq!(removed(&store, &until_free), names(&[&blobs[0]]));
    assert!(store.size_of(&recent).unwrap().is_some());
}

#[test]
fn what_a_living_lease_has_used_stays_however_long_it_lives() {
    let (_scratch, store) = new_store();
    let worker = Store::open(store.path(), None).unwrap();
    worker.lease().unwrap();
    age(
        &fs::read_dir(store.path().join("tmp"))
            .unwrap()
            .map(|entry| entry.unwrap().path().join("lease"))
            .find(|lease| lease.exists())
            .unwrap(),
        HOUR,
    );
    // Half an hour ago, in the midst of the build.
    let used = old_blob(&store, b"used", HOUR / 2);
    let unpacked = old_snapshot(&store, "unpacked", HOUR / 2);
    let before = old_blob(&store, b"before", HOUR * 2);
    let gone = removed(&store, &everything());
    assert_eq!(gone, [(Kind::Layer, before.to_string())]);
    drop(worker);
    let mut gone = removed(&store, &everything());
    gone.sort();
    assert_eq!(
        gone,
        [
            (Kind::Layer, used.to_string()),
            (Kind::Snapshot, unpacked.hex().to_owned()),
        ]
    );
}

#[test]
fn a_cache_mount_goes_only_when_nobody_uses_it() {
    let (_scratch, store) = new_store();
    let key = Digest::sha256(b"key");
    let take = || {
        let fill = |_: &Path| Ok(());
        store
            .cache_mount(&key, CacheUse::Shared, &fill, &|| false)
            .unwrap()
    };
    let guard = take();
    fs::write(guard.path().join("file"), [1; 10_000]).unwrap();
    let lock = store.path().join("mounts").join(key.hex()).join("0/lock");
    age(&lock, HOUR);
    assert_eq!(removed(&store, &everything()), []);
    let held = store.usage(&[]).unwrap().items;
    assert_eq!(
        held.iter().map(|item| item.hold).collect::<Vec<_>>(),
        [Hold::InUse]
    );
    drop(guard);
    let name = format!("{}/0", key.hex());
    assert_eq!(removed(&store, &everything()), [(Kind::CacheMount, name)]);
    assert!(!take().path().join("file").exists());
}

#[test]
fn the_usage_is_what_the_disk_says_to_the_byte() {
    let (_scratch, store) = new_store();
    let held = store.put(&vec![1; 100_000]).unwrap();
    store.link_blob("app", &held).unwrap();
    store.put(&vec![2; 50_000]).unwrap();
    old_snapshot(&store, "layer", HOUR);
    store.put_record("step", "key", &[3; 5000]).unwrap();
    // The first look notes what snapshots take.
    store.usage(&[]).unwrap();
    let usage = store.usage(&[]).unwrap();
    let said = Command::new("du")
        .args(["-s", "--block-size=1"])
        .arg(store.path())
        .output()
        .unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert_eq!(
        usage.total_bytes.to_string(),
        said.split_whitespace().next().unwrap()
    );
    let on_disk = fs::metadata(blob_path(&store, &held)).unwrap();
    let image = usage.items.iter().find(|item| item.kind == Kind::Image);
    assert_eq!(
        image.unwrap().bytes,
        std::os::unix::fs::MetadataExt::blocks(&on_disk) * 512
    );
    let items: u64 = usage.items.iter().map(|item| item.bytes).sum();
    assert!(items > 150_000 && items <= usage.total_bytes);
}

/// Whoever has been told that something is there finds it there, while a collector works as fast as it can.
#[test]
fn what_was_found_is_there_whatever_a_collector_does_meanwhile() {
    let (_scratch, store) = new_store();
    let is_over = AtomicBool::new(false);
    let user = Store::open(store.path(), None).unwrap();
    let n_gone = std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut n_gone = 0;
            while !is_over.load(Ordering::Relaxed) {
                n_gone += removed(&store, &everything()).len();
            }
            n_gone
        });
        // A failed assertion ends the collector too, or the test would never say what failed.
        let end = EndsAtDrop(&is_over);
        let mut n_found = 0;
        for round in 0..400_u32 {
            let content = round.to_be_bytes();
            let digest = old_blob(&user, &content, HOUR);
            let snapshot = old_snapshot(&user, &round.to_string(), HOUR);
            if user.size_of(&digest).unwrap().is_some() {
                n_found += 1;
                let bytes = user.read_blob(&digest, 100).unwrap();
                assert_eq!(bytes.as_deref(), Some(&content[..]));
            }
            if user.has_snapshot(&snapshot) {
                n_found += 1;
                let file = user.snapshot_path(&snapshot).join("file");
                assert_eq!(fs::read_to_string(file).unwrap(), round.to_string());
            }
        }
        drop(end);
        assert!(n_found > 0);
        collector.join().unwrap()
    });
    assert!(n_gone > 0);
}

struct EndsAtDrop<'a>(&'a AtomicBool);

impl Drop for EndsAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_was_uploaded_is_counted_and_never_collected() {
    use store::context::{Allowance, Announced, ContentId, Entry, EntryKind, Keeping};
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(&scratch.path().join("store"), None).unwrap();
    let content = vec![7; 100_000];
    let announced = Announced {
        n_entries: 1,
        n_bytes: content.len() as u64,
    };
    let keeping = Keeping {
        now_ms: 1_700_000_000_000,
        lifetime: Duration::from_secs(3600),
    };
    let mut draft = store
        .begin_context("tenant", announced, keeping, Allowance::default())
        .unwrap();
    let entry = Entry {
        path: b"file".to_vec(),
        mode: 0o644,
        modified_s: 0,
        modified_ns: 0,
        xattrs: std::collections::BTreeMap::new(),
        kind: EntryKind::File {
            size: content.len() as u64,
            content: ContentId::of(&content),
        },
    };
    draft.entries(&[entry]).unwrap();
    assert_eq!(draft.missing().unwrap().len(), 1);
    draft.content(&content).unwrap();
    let id = draft.commit(keeping.now_ms).unwrap().id;
    let uploaded = || {
        let items = store.usage(&[]).unwrap().items;
        items.into_iter().find(|item| item.kind == Kind::Context)
    };
    let item = uploaded().unwrap();
    assert!(item.bytes >= 100_000, "{item:?}");
    let policy = Policy {
        kinds: Kind::ALL.to_vec(),
        only_unused_for: None,
        unused_for: Some(Duration::ZERO),
        max_bytes: Some(0),
        min_free_bytes: None,
    };
    store.collect(&policy, &[]).unwrap();
    assert!(store.context("tenant", &id).unwrap().is_some());
    assert!(uploaded().is_some());
}
