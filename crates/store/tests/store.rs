//! The store from outside: what is visible, what survives, what races.

#![expect(
    clippy::unwrap_used,
    reason = "what a test needs is there or the test fails"
)]

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use oci::Digest;
use store::{
    BlobError, CommitError, Limits, Owner, RepositoryError, Store, UploadError, UploadScope,
};
use tempfile::TempDir;

fn open_new() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"), None).unwrap();
    (dir, store)
}

/// Returns every file and directory below the folders that hold blobs, unfinished things and sessions.
fn visible(store: &Store) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = ["blobs", "ingest", "tmp", "quarantine", "snapshots"]
        .map(|name| store.path().join(name))
        .to_vec();
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(store.path()).unwrap();
            found.push(name.to_str().unwrap().to_owned());
            if path.is_dir() {
                pending.push(path);
            }
        }
    }
    found.sort_unstable();
    found
}

fn blob_path(store: &Store, digest: &Digest) -> std::path::PathBuf {
    store.path().join("blobs/sha256").join(digest.hex())
}

#[test]
fn what_was_put_is_read_back_verified_and_immutable() {
    let (_dir, store) = open_new();
    let digest = store.put(b"content").unwrap();
    assert_eq!(digest, Digest::sha256(b"content"));
    assert_eq!(store.size_of(&digest).unwrap(), Some(7));
    assert_eq!(store.read_blob(&digest, 7).unwrap().unwrap(), b"content");
    let mode = blob_path(&store, &digest).metadata().unwrap().permissions();
    assert_eq!(mode.mode() & 0o7777, 0o444);
    assert!(matches!(
        store.read_blob(&digest, 6),
        Err(BlobError::TooLarge { .. })
    ));
    let absent = Digest::sha256(b"absent");
    assert!(store.open_blob(&absent).unwrap().is_none());
    assert!(store.read_blob(&absent, 1).unwrap().is_none());
}

#[test]
fn bytes_with_the_wrong_digest_leave_nothing_visible() {
    let (_dir, store) = open_new();
    let before = visible(&store);
    let mut ingest = store.ingest().unwrap();
    ingest.write_all(b"something else").unwrap();
    let error = ingest.commit(Some(&Digest::sha256(b"expected")));
    assert!(matches!(error, Err(CommitError::DigestMismatch { .. })));
    drop(store.ingest().unwrap());
    assert_eq!(visible(&store), before);
}

#[test]
fn a_blob_that_is_too_large_is_refused_and_gone() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        blob_max_bytes: 10,
        ..Limits::default()
    };
    let store = Store::open_with(&dir.path().join("store"), None, limits).unwrap();
    let before = visible(&store);
    let mut ingest = store.ingest().unwrap();
    ingest.write_all(b"0123456789").unwrap();
    assert!(ingest.write_all(b"a").is_err());
    assert!(matches!(ingest.commit(None), Err(CommitError::Incomplete)));
    assert_eq!(visible(&store), before);
}

#[test]
fn other_algorithms_are_verified_too() {
    let (_dir, store) = open_new();
    let mut hasher = oci::Hasher::new(oci::digest::Algorithm::Sha512);
    hasher.update(b"content");
    let digest = hasher.finish();
    let mut ingest = store.ingest().unwrap();
    ingest.write_all(b"content").unwrap();
    assert_eq!(ingest.commit(Some(&digest)).unwrap(), (digest.clone(), 7));
    assert!(store.verify_blob(&digest).unwrap());
}

#[test]
fn concurrent_identical_ingests_make_one_blob() {
    let (_dir, store) = open_new();
    let barrier = Barrier::new(8);
    let content = vec![7_u8; 1 << 20];
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut ingest = store.ingest().unwrap();
                ingest.write_all(&content).unwrap();
                barrier.wait();
                let expected = Digest::sha256(&content);
                assert_eq!(ingest.commit(Some(&expected)).unwrap().1, 1 << 20);
            });
        }
    });
    let digest = Digest::sha256(&content);
    assert!(store.verify_blob(&digest).unwrap());
    let blobs = std::fs::read_dir(store.path().join("blobs/sha256")).unwrap();
    assert_eq!(blobs.count(), 1);
}

#[test]
fn a_damaged_blob_is_detected_once_and_can_be_put_again() {
    let (_dir, store) = open_new();
    let digest = store.put(b"content").unwrap();
    let path = blob_path(&store, &digest);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&path, b"cOntent").unwrap();
    assert!(matches!(
        store.read_blob(&digest, 100),
        Err(BlobError::Corrupt { .. })
    ));
    assert!(store.read_blob(&digest, 100).unwrap().is_none());
    store.put(b"content").unwrap();
    assert_eq!(store.read_blob(&digest, 100).unwrap().unwrap(), b"content");
    let kept = std::fs::read_dir(store.path().join("quarantine")).unwrap();
    assert_eq!(kept.count(), 1);
}

#[test]
fn a_blob_of_the_wrong_size_is_replaced_by_the_next_put() {
    let (_dir, store) = open_new();
    let digest = Digest::sha256(b"content");
    std::fs::write(blob_path(&store, &digest), b"").unwrap();
    store.put(b"content").unwrap();
    assert_eq!(store.read_blob(&digest, 100).unwrap().unwrap(), b"content");
}

#[test]
fn a_planted_link_or_fifo_is_never_followed_or_waited_for() {
    let (dir, store) = open_new();
    let digest = Digest::sha256(b"content");
    let secret = dir.path().join("secret");
    std::fs::write(&secret, b"content").unwrap();
    std::os::unix::fs::symlink(&secret, blob_path(&store, &digest)).unwrap();
    assert!(store.open_blob(&digest).is_err());
    assert_eq!(store.size_of(&digest).unwrap(), None);
    std::fs::remove_file(blob_path(&store, &digest)).unwrap();
    let fifo = std::process::Command::new("mkfifo")
        .arg(blob_path(&store, &digest))
        .status();
    assert!(fifo.expect("Debian package coreutils").success());
    assert!(store.open_blob(&digest).is_err());
    // A folder that became a link leads nowhere either.
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::remove_dir(store.path().join("repositories")).unwrap();
    std::os::unix::fs::symlink(&outside, store.path().join("repositories")).unwrap();
    assert!(store.put_manifest("a/b", b"{}", Some("t")).is_err());
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn root_gives_everything_to_the_owner() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().unwrap();
    let owner = Owner {
        uid: 12_345,
        gid: 12_346,
    };
    // An ordinary user owns what it creates, and cannot give it away.
    let me = rustix::process::geteuid();
    let expected = if me.is_root() {
        (owner.uid, owner.gid)
    } else {
        (me.as_raw(), rustix::process::getegid().as_raw())
    };
    let store = Store::open(&dir.path().join("store"), Some(owner)).unwrap();
    let digest = store.put_manifest("a/b", b"{}", Some("t")).unwrap();
    store.put_record("step", "key", b"1").unwrap();
    store.create_upload("a/b").unwrap();
    let guard = store.lock("x").unwrap();
    let draft = store.new_snapshot().unwrap();
    let (path, mut n_seen) = (store.path(), 0);
    let mut pending = vec![path.to_owned()];
    while let Some(entry) = pending.pop() {
        let metadata = entry.symlink_metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), expected, "{entry:?}");
        n_seen += 1;
        if metadata.is_dir() {
            pending.extend(
                std::fs::read_dir(&entry)
                    .unwrap()
                    .map(|e| e.unwrap().path()),
            );
        }
    }
    assert!(n_seen > 20, "{n_seen}");
    assert!(store.size_of(&digest).unwrap().is_some());
    drop((guard, draft));
}

#[test]
fn an_upload_goes_on_across_requests_and_across_processes() {
    let (dir, store) = open_new();
    let id = store.create_upload("a/b").unwrap();
    let mut upload = store.upload("a/b", &id).unwrap().unwrap();
    upload.write_all(b"con").unwrap();
    assert!(matches!(
        store.upload("a/b", &id),
        Err(UploadError::Busy { .. })
    ));
    drop(upload);
    assert!(store.upload("a/other", &id).unwrap().is_none());
    assert_eq!(store.upload_size("a/b", &id).unwrap(), Some(3));
    // Another process knows nothing of the running hash.
    let other = Store::open(&dir.path().join("store"), None).unwrap();
    let mut upload = other.upload("a/b", &id).unwrap().unwrap();
    upload.write_all(b"ten").unwrap();
    drop(upload);
    let mut upload = store.upload("a/b", &id).unwrap().unwrap();
    assert_eq!(upload.size_bytes(), 6);
    upload.write_all(b"t").unwrap();
    let expected = Digest::sha256(b"content");
    assert_eq!(upload.commit(&expected).unwrap(), (expected.clone(), 7));
    assert_eq!(store.read_blob(&expected, 9).unwrap().unwrap(), b"content");
    assert!(store.upload("a/b", &id).unwrap().is_none());
}

#[test]
fn an_upload_with_the_wrong_digest_is_gone() {
    let (_dir, store) = open_new();
    let before = visible(&store);
    let id = store.create_upload("a").unwrap();
    let mut upload = store.upload("a", &id).unwrap().unwrap();
    upload.write_all(b"x").unwrap();
    let error = upload.commit(&Digest::sha256(b"y"));
    assert!(matches!(error, Err(CommitError::DigestMismatch { .. })));
    assert_eq!(visible(&store), before);
    let id = store.create_upload("a").unwrap();
    let upload = store.upload("a", &id).unwrap().unwrap();
    upload.cancel().unwrap();
    assert_eq!(visible(&store), before);
}

#[test]
fn old_uploads_expire_and_there_are_only_so_many() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        uploads_max: 2,
        ..Limits::default()
    };
    let store = Store::open_with(&dir.path().join("store"), None, limits).unwrap();
    let id = store.create_upload("a").unwrap();
    let busy = store.upload("a", &id).unwrap().unwrap();
    store.create_upload("a").unwrap();
    assert!(matches!(
        store.create_upload("a"),
        Err(UploadError::TooMany { uploads_max: 2 })
    ));
    let now = SystemTime::now();
    assert_eq!(store.expire_uploads(now).unwrap(), 0);
    let later = now + Duration::from_secs(25 * 60 * 60);
    assert_eq!(store.expire_uploads(later).unwrap(), 1);
    drop(busy);
    assert_eq!(store.expire_uploads(later).unwrap(), 1);
    store.create_upload("a").unwrap();
}

#[test]
fn what_one_owner_leaves_unfinished_keeps_no_other_from_uploading() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        uploads_max: 5,
        owner_uploads_max: 3,
        owner_uploads_min: 2,
        ..Limits::default()
    };
    let path = dir.path().join("store");
    let store = Store::open_with(&path, None, limits.clone()).unwrap();
    let scope = |name, owner| UploadScope {
        name,
        owner: Some(owner),
    };
    let refused = |owner| store.create_upload(scope("r", owner)).unwrap_err();
    let first = store.create_upload(scope("r", "a")).unwrap();
    for _ in 0..2 {
        store.create_upload(scope("other", "a")).unwrap();
    }
    let of_owner = refused("a");
    assert!(
        matches!(of_owner, UploadError::TooManyOfOwner { uploads_max: 3 }),
        "{of_owner}"
    );
    for owner in ["b", "b", "c"] {
        store.create_upload(scope("r", owner)).unwrap();
    }
    // There are more than five; everybody has two all the same, and nobody a third one.
    store.create_upload(scope("r", "c")).unwrap();
    let in_all = refused("c");
    assert!(
        matches!(in_all, UploadError::TooMany { uploads_max: 5 }),
        "{in_all}"
    );
    // They are counted from what is on the disk, and found under their owner only.
    let again = Store::open_with(&path, None, limits).unwrap();
    let of_owner = again.create_upload(scope("r", "a")).unwrap_err();
    assert!(
        matches!(of_owner, UploadError::TooManyOfOwner { .. }),
        "{of_owner}"
    );
    assert!(again.upload(scope("r", "b"), &first).unwrap().is_none());
    assert!(again.upload("r", &first).unwrap().is_none());
    let upload = again.upload(scope("r", "a"), &first).unwrap().unwrap();
    upload.cancel().unwrap();
    again.create_upload(scope("r", "a")).unwrap_err();
    drop(again);
}

#[test]
fn a_blob_is_absent_from_a_repository_until_it_is_linked() {
    let (_dir, store) = open_new();
    let digest = store.put(b"private").unwrap();
    store.link_blob("tenant-a/app", &digest).unwrap();
    assert!(store.has_blob("tenant-a/app", &digest).unwrap());
    assert!(!store.has_blob("tenant-b/app", &digest).unwrap());
    assert!(!store.has_blob("tenant-a", &digest).unwrap());
    let absent = store.link_blob("tenant-b/app", &Digest::sha256(b"absent"));
    assert!(matches!(absent, Err(RepositoryError::Missing { .. })));
    assert!(store.unlink_blob("tenant-a/app", &digest).unwrap());
    assert!(!store.has_blob("tenant-a/app", &digest).unwrap());
    assert!(store.size_of(&digest).unwrap().is_some());
}

#[test]
fn manifests_are_found_by_tag_and_digest_and_go_with_their_tags() {
    let (_dir, store) = open_new();
    let one = store.put_manifest("a/b", b"{1}", Some("v1")).unwrap();
    store.put_manifest("a/b", b"{1}", Some("latest")).unwrap();
    let two = store.put_manifest("a/b", b"{2}", Some("latest")).unwrap();
    let three = store.put_manifest("a/b/c", b"{3}", None).unwrap();
    assert_eq!(store.repositories().unwrap(), ["a/b", "a/b/c"]);
    assert_eq!(store.tags("a/b").unwrap().unwrap(), ["latest", "v1"]);
    assert_eq!(store.tags("a/b/c").unwrap().unwrap(), [""; 0]);
    assert_eq!(store.tags("a").unwrap(), None);
    let (digest, bytes) = store.manifest("a/b", "v1").unwrap().unwrap();
    assert_eq!((digest, bytes.as_slice()), (one.clone(), b"{1}".as_slice()));
    let found = store.manifest("a/b", &two.to_string()).unwrap();
    assert_eq!(found.unwrap().1, b"{2}");
    assert!(store.manifest("a/b", &three.to_string()).unwrap().is_none());
    assert!(store.delete_manifest("a/b", &one).unwrap());
    assert_eq!(store.tags("a/b").unwrap().unwrap(), ["latest"]);
    assert!(store.manifest("a/b", "v1").unwrap().is_none());
    assert!(store.delete_tag("a/b", "latest").unwrap());
    assert!(!store.delete_tag("a/b", "latest").unwrap());
    assert!(store.manifest("a/b", "latest").unwrap().is_none());
    assert!(store.manifest("a/b", &two.to_string()).unwrap().is_some());
}

#[test]
fn no_name_leads_out_of_its_folder() {
    let (_dir, store) = open_new();
    let digest = store.put(b"x").unwrap();
    for name in [
        "",
        ".",
        "..",
        "../x",
        "a/../b",
        "/etc",
        "a//b",
        "a\0",
        "A",
        "_tags",
        "a/_tags",
        "a%2fb",
        &"a/".repeat(200),
    ] {
        assert!(
            matches!(
                store.link_blob(name, &digest),
                Err(RepositoryError::Name(_))
            ),
            "{name:?}"
        );
        assert!(store.tags(name).is_err(), "{name:?}");
        assert!(store.put_manifest(name, b"{}", None).is_err(), "{name:?}");
    }
    for tag in ["", ".", "..", "../x", "a/b", ".x", "a\0", &"t".repeat(129)] {
        assert!(
            store.put_manifest("a", b"{}", Some(tag)).is_err(),
            "{tag:?}"
        );
        assert!(store.manifest("a", tag).is_err(), "{tag:?}");
        assert!(store.put_record("step", tag, b"").is_err() || tag.len() == 129);
        assert!(store.put_record(tag, "key", b"").is_err() || tag.len() == 129);
    }
    assert!(store.manifest("a", "sha256:../../../x").is_err());
}

#[test]
fn a_record_is_replaced_whole_and_a_damaged_one_is_absent() {
    let (_dir, store) = open_new();
    assert_eq!(store.record("step", "key").unwrap(), None);
    store.put_record("step", "key", b"one").unwrap();
    store.put_record("step", "key", b"two").unwrap();
    store.put_record("step", "other", b"three").unwrap();
    assert_eq!(store.record("step", "key").unwrap().unwrap(), b"two");
    let path_of = |key: &str| {
        let hash = Digest::sha256(key.as_bytes());
        store
            .path()
            .join("records/step")
            .join(&hash.hex()[..2])
            .join(key)
    };
    let whole = std::fs::read(path_of("key")).unwrap();
    for position in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[position] ^= 1;
        std::fs::write(path_of("key"), &damaged).unwrap();
        assert_eq!(store.record("step", "key").unwrap(), None, "{position}");
        std::fs::write(path_of("key"), &whole[..position]).unwrap();
        assert_eq!(store.record("step", "key").unwrap(), None, "{position}");
    }
    // Another record in its place is not it either.
    std::fs::copy(path_of("other"), path_of("key")).unwrap();
    assert_eq!(store.record("step", "key").unwrap(), None);
    assert!(store.remove_record("step", "key").unwrap());
    assert!(!store.remove_record("step", "key").unwrap());
}

#[test]
fn a_lock_is_held_by_one_thread_at_a_time() {
    let (dir, store) = open_new();
    let other = Store::open(&dir.path().join("store"), None).unwrap();
    let inside = AtomicUsize::new(0);
    let total = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let store = if n % 2 == 0 { &store } else { &other };
            let (inside, total) = (&inside, &total);
            scope.spawn(move || {
                for _ in 0..50 {
                    let _guard = store.lock("layer/x").unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    total.fetch_add(1, Ordering::SeqCst);
                    std::thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(total.into_inner(), 400);
    let guard = store.lock("layer/x").unwrap();
    assert!(other.try_lock("layer/x").unwrap().is_none());
    assert!(other.try_lock("layer/y").unwrap().is_some());
    assert!(other.lock_unless("layer/x", &|| true).is_err());
    drop(guard);
    assert!(other.try_lock("layer/x").unwrap().is_some());
    let left = std::fs::read_dir(store.path().join("locks")).unwrap();
    assert_eq!(left.count(), 1, "only the gate of sessions stays");
}

#[test]
fn of_racing_snapshots_one_wins_and_the_others_are_removed() {
    let (_dir, store) = open_new();
    let diff_id = Digest::sha256(b"layer");
    let barrier = Barrier::new(4);
    let wins = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let draft = store.new_snapshot().unwrap();
                std::fs::create_dir_all(draft.path().join("usr/bin")).unwrap();
                std::fs::write(draft.path().join("usr/bin/x"), b"x").unwrap();
                barrier.wait();
                if draft.commit(&diff_id).unwrap() {
                    wins.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(wins.into_inner(), 1);
    assert!(store.has_snapshot(&diff_id));
    let path = store.snapshot_path(&diff_id);
    assert_eq!(std::fs::read(path.join("usr/bin/x")).unwrap(), b"x");
    let tmp = std::fs::read_dir(store.path().join("tmp")).unwrap();
    for session in tmp {
        let left = std::fs::read_dir(session.unwrap().path()).unwrap();
        assert_eq!(left.count(), 0);
    }
    assert!(store.remove_snapshot(&diff_id).unwrap());
    assert!(!store.has_snapshot(&diff_id));
    assert!(!store.remove_snapshot(&diff_id).unwrap());
}

#[test]
fn snapshots_of_another_boot_are_dropped_unless_they_were_made_durable() {
    let (dir, store) = open_new();
    let (kept, lost) = (Digest::sha256(b"kept"), Digest::sha256(b"lost"));
    let make = |diff_id| {
        let draft = store.new_snapshot().unwrap();
        std::fs::write(draft.path().join("file"), b"x").unwrap();
        assert!(draft.commit(diff_id).unwrap());
    };
    make(&kept);
    assert_eq!(store.sync_snapshots().unwrap(), 1);
    assert_eq!(store.sync_snapshots().unwrap(), 0);
    make(&lost);
    let again = Store::open(&dir.path().join("store"), None).unwrap();
    assert!(again.has_snapshot(&lost), "the same boot");
    let boot = store.path().join("boot");
    let this = std::fs::read_to_string(&boot).unwrap();
    std::fs::write(&boot, "00000000-0000-0000-0000-000000000000").unwrap();
    let again = Store::open(&dir.path().join("store"), None).unwrap();
    assert!(!again.has_snapshot(&lost));
    assert!(again.has_snapshot(&kept));
    assert_eq!(std::fs::read_to_string(&boot).unwrap(), this);
    // The mark of one that is gone does not speak for another of its name.
    assert!(store.remove_snapshot(&kept).unwrap());
    std::fs::write(store.path().join("synced").join(kept.hex()), "").unwrap();
    make(&kept);
    std::fs::write(&boot, "").unwrap();
    let again = Store::open(&dir.path().join("store"), None).unwrap();
    assert!(!again.has_snapshot(&kept));
}

#[test]
fn many_blobs_are_committed_together_and_a_bad_one_costs_no_other() {
    let (_dir, store) = open_new();
    let there = store.put(b"there").unwrap();
    let mut all = Vec::new();
    let mut add = |content: &[u8], digest| {
        let mut ingest = store.ingest().unwrap();
        ingest.write_all(content).unwrap();
        all.push((ingest, digest));
    };
    for n in 0..40_u32 {
        add(&n.to_be_bytes(), Digest::sha256(&n.to_be_bytes()));
    }
    add(b"there", there.clone());
    let lie = Digest::sha256(b"something else");
    add(b"a lie", lie.clone());
    // The same twice.
    add(b"twice", Digest::sha256(b"twice"));
    add(b"twice", Digest::sha256(b"twice"));
    let digests: Vec<_> = all.iter().map(|(_, digest)| digest.clone()).collect();
    let done = store.commit_all(&all);
    drop(all);
    for (one, digest) in done.iter().zip(&digests) {
        let is_lie = *digest == lie;
        assert_eq!(one.is_err(), is_lie, "{one:?}");
        assert_eq!(store.verify_blob(digest).unwrap(), !is_lie, "{digest}");
    }
}

#[test]
fn a_second_opening_leaves_the_work_of_the_first_alone() {
    let (dir, store) = open_new();
    let draft = store.new_snapshot().unwrap();
    let other = Store::open(&dir.path().join("store"), None).unwrap();
    std::fs::write(draft.path().join("file"), b"x").unwrap();
    drop(other);
    assert!(draft.commit(&Digest::sha256(b"x")).unwrap());
    // The folder of a session that nobody holds is removed by the next.
    let dead = store.path().join("tmp/aaaaaaaaaaaaaaaaaaaaaaaaaa");
    std::fs::create_dir_all(dead.join("a/b")).unwrap();
    Store::open(&dir.path().join("store"), None).unwrap();
    assert!(!dead.exists());
}

#[test]
fn a_hostile_tree_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    make_deep(&root, 3000);
    let locked = root.join("locked/inside");
    std::fs::create_dir_all(&locked).unwrap();
    std::fs::write(locked.join("file"), b"x").unwrap();
    std::fs::create_dir_all(root.join(".kiln-removed-1/.kiln-removed-2/x")).unwrap();
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), b"x").unwrap();
    std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
    for path in [&locked, &root.join("locked")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o000)).unwrap();
    }
    store::remove_tree(&root).unwrap();
    assert!(!root.exists());
    assert!(outside.join("file").exists());
    store::remove_tree(&root).unwrap();
}

/// Makes directories deeper than any path may be long.
fn make_deep(root: &Path, depth: usize) {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    mkdirat(CWD, root, Mode::RWXU).unwrap();
    let mut current = openat(CWD, root, OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..depth {
        mkdirat(&current, "deeper", Mode::RWXU).unwrap();
        current = openat(&current, "deeper", OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
}
