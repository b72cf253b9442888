//! What a check of the store finds, what it does about it, and that it finds nothing where nothing is wrong.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by ending"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use oci::Digest;
use store::check::{Checking, Depth, Outcome, Repair, Report, Severity};
use store::collect::{Kind, Policy};
use store::context::{Allowance, Announced, ContentId, Entry, EntryKind, Keeping};
use store::{CacheUse, Store};
use tempfile::TempDir;

const NAMED: &[&str] = &["kept"];
const REPOSITORY: &str = "library/app";
const LAYER: &[u8] = b"a layer";

fn check(store: &Store, depth: Depth, repair: Repair) -> Report {
    store.check(Checking { depth, repair }, NAMED).unwrap()
}

/// Puts an image of one layer into a repository and returns the digest of its manifest.
fn image(store: &Store, repository: &str, tag: &str, layer: &[u8]) -> Digest {
    let config = format!("{{\"of\":\"{tag}\"}}");
    let mut descriptors = Vec::new();
    for bytes in [config.as_bytes(), layer] {
        let digest = store.put(bytes).unwrap();
        store.link_blob(repository, &digest).unwrap();
        let media_type = "application/vnd.oci.image.layer.v1.tar";
        let size = bytes.len();
        descriptors.push(format!(
            "{{\"mediaType\":\"{media_type}\",\"digest\":\"{digest}\",\"size\":{size}}}"
        ));
    }
    let manifest = format!(
        "{{\"schemaVersion\":2,\"config\":{},\"layers\":[{}]}}",
        descriptors[0], descriptors[1]
    );
    store
        .put_manifest(repository, manifest.as_bytes(), Some(tag))
        .unwrap()
}

fn context(store: &Store, content: &[u8]) {
    let keeping = Keeping {
        now_ms: 1_700_000_000_000,
        lifetime: Duration::from_secs(3600),
    };
    let announced = Announced {
        n_entries: 1,
        n_bytes: content.len() as u64,
    };
    let mut draft = store
        .begin_context("tenant", announced, keeping, Allowance::default())
        .unwrap();
    let kind = EntryKind::File {
        size: content.len() as u64,
        content: ContentId::of(content),
    };
    let entry = Entry {
        path: b"file".to_vec(),
        mode: 0o644,
        modified_s: 0,
        modified_ns: 0,
        xattrs: std::collections::BTreeMap::new(),
        kind,
    };
    draft.entries(&[entry]).unwrap();
    draft.missing().unwrap();
    draft.content(content).unwrap();
    draft.commit(keeping.now_ms).unwrap();
}

/// Makes a store with something of every kind in it.
fn everything() -> (TempDir, Store) {
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(&scratch.path().join("store"), None).unwrap();
    let digest = image(&store, REPOSITORY, "1", LAYER);
    store.put(b"a loose layer").unwrap();
    store
        .put_record("kept", "key", digest.to_string().as_bytes())
        .unwrap();
    store
        .put_record("steps", "key", b"what came of it")
        .unwrap();
    let draft = store.new_snapshot().unwrap();
    fs::write(draft.path().join("file"), "whole").unwrap();
    draft.commit(&Digest::sha256(b"diff")).unwrap();
    let key = Digest::sha256(b"mount");
    let fill = |_: &Path| Ok(());
    drop(
        store
            .cache_mount(&key, CacheUse::Shared, &fill, &|| true)
            .unwrap(),
    );
    store.create_upload(REPOSITORY).unwrap();
    let of_owner = store::UploadScope {
        name: REPOSITORY,
        owner: Some("tenant"),
    };
    store.create_upload(of_owner).unwrap();
    context(&store, b"uploaded");
    (scratch, store)
}

fn blob_path(store: &Store, digest: &Digest) -> PathBuf {
    store.path().join("blobs/sha256").join(digest.hex())
}

fn links(store: &Store, kind: &str) -> PathBuf {
    store
        .path()
        .join("repositories")
        .join(REPOSITORY)
        .join(kind)
}

fn overwrite(path: &Path, bytes: &[u8]) {
    let mut permissions = fs::metadata(path).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    fs::set_permissions(path, permissions).unwrap();
    fs::write(path, bytes).unwrap();
}

fn only_file(folder: &Path) -> PathBuf {
    let mut found = fs::read_dir(folder).unwrap();
    let path = found.next().unwrap().unwrap().path();
    if path.is_dir() {
        only_file(&path)
    } else {
        path
    }
}

/// Makes something look as if it was written a minute ago.
fn settle(path: &Path) {
    let then = SystemTime::now() - Duration::from_secs(60);
    fs::File::open(path).unwrap().set_modified(then).unwrap();
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    let (_scratch, store) = everything();
    for depth in [Depth::Names, Depth::Bytes] {
        let report = check(&store, depth, Repair::AndForget);
        assert_eq!(report.findings, []);
        assert!(!report.is_wrong());
        let counts = report.counts;
        assert_eq!(
            (counts.n_blobs, counts.n_repositories, counts.n_manifests),
            (4, 1, 1)
        );
        assert_eq!(
            (counts.n_tags, counts.n_snapshots, counts.n_records),
            (1, 1, 2)
        );
        assert_eq!((counts.n_contexts, counts.n_quarantined), (1, 0));
    }
}

/// A way to damage a store, and what is to be found then.
struct Case {
    what: &'static str,
    damage: fn(&Store),
    severity: Severity,
    /// What the only finding of this severity is about.
    subject: &'static str,
    /// What of repairing makes it go away.
    needs: Repair,
}

const CASES: &[Case] = &[
    Case {
        what: "a bit of a loose blob turns",
        damage: |store| {
            overwrite(
                &blob_path(store, &Digest::sha256(b"a loose layer")),
                b"b loose layer",
            );
        },
        severity: Severity::Damaged,
        subject: "blob sha256:",
        needs: Repair::MadeAgain,
    },
    Case {
        what: "something else is among the blobs",
        damage: |store| fs::write(store.path().join("blobs/sha256/what"), "?").unwrap(),
        severity: Severity::Damaged,
        subject: "blobs/sha256/what",
        needs: Repair::MadeAgain,
    },
    Case {
        what: "a folder stands where a blob was",
        damage: |store| {
            fs::create_dir(store.path().join("blobs/sha256").join("a".repeat(64))).unwrap();
        },
        severity: Severity::Damaged,
        subject: "blobs/sha256/aaaa",
        needs: Repair::MadeAgain,
    },
    Case {
        what: "a layer of an image is gone",
        damage: |store| fs::remove_file(blob_path(store, &Digest::sha256(LAYER))).unwrap(),
        severity: Severity::Lost,
        subject: "image library/app:1, library/app@sha256:",
        needs: Repair::AndForget,
    },
    Case {
        what: "a layer was taken away from the repository of its image",
        damage: |store| {
            let was_there = store.unlink_blob(REPOSITORY, &Digest::sha256(LAYER));
            assert!(was_there.unwrap());
        },
        severity: Severity::Lost,
        subject: "image library/app:1",
        needs: Repair::AndForget,
    },
    Case {
        what: "a layer was cut off",
        damage: |store| overwrite(&blob_path(store, &Digest::sha256(LAYER)), b"a lay"),
        severity: Severity::Lost,
        subject: "image library/app:1",
        needs: Repair::AndForget,
    },
    Case {
        what: "a manifest is gone",
        damage: |store| {
            let (digest, _) = store.manifest(REPOSITORY, "1").unwrap().unwrap();
            fs::remove_file(blob_path(store, &digest)).unwrap();
        },
        severity: Severity::Lost,
        subject: "image library/app:1",
        needs: Repair::AndForget,
    },
    Case {
        what: "a manifest is damaged",
        damage: |store| {
            let (digest, _) = store.manifest(REPOSITORY, "1").unwrap().unwrap();
            overwrite(&blob_path(store, &digest), b"{}");
        },
        severity: Severity::Lost,
        subject: "image library/app:1",
        needs: Repair::AndForget,
    },
    Case {
        what: "a manifest is none",
        damage: |store| {
            drop(
                store
                    .put_manifest(REPOSITORY, b"no manifest", None)
                    .unwrap(),
            );
        },
        severity: Severity::Lost,
        subject: "image library/app@sha256:",
        needs: Repair::AndForget,
    },
    Case {
        what: "a tag holds something else",
        damage: |store| overwrite(&links(store, "_tags/1"), b"sha256:short"),
        severity: Severity::Lost,
        subject: "tag library/app:1",
        needs: Repair::AndForget,
    },
    Case {
        what: "deleting a manifest was interrupted",
        damage: |store| {
            let (digest, _) = store.manifest(REPOSITORY, "1").unwrap().unwrap();
            fs::remove_file(links(store, "_manifests/sha256").join(digest.hex())).unwrap();
        },
        severity: Severity::Leftover,
        subject: "tag library/app:1",
        needs: Repair::MadeAgain,
    },
    Case {
        what: "a push was interrupted, and its blob collected",
        damage: |store| {
            let digest = store.put(b"pushed").unwrap();
            store.link_blob(REPOSITORY, &digest).unwrap();
            fs::remove_file(blob_path(store, &digest)).unwrap();
        },
        severity: Severity::Leftover,
        subject: "link library/app@sha256:",
        needs: Repair::MadeAgain,
    },
    Case {
        what: "a manifest that names another one never came",
        damage: |store| {
            let (subject, referrer) = (Digest::sha256(b"subject"), Digest::sha256(b"referrer"));
            store
                .link_referrer(REPOSITORY, &subject, &referrer)
                .unwrap();
            settle(&only_file(&links(store, "_referrers")));
        },
        severity: Severity::Leftover,
        subject: "note of library/app@sha256:",
        needs: Repair::MadeAgain,
    },
    Case {
        what: "a record is damaged",
        damage: |store| {
            overwrite(
                &only_file(&store.path().join("records/steps")),
                b"kiln-record-1 x\ny",
            );
        },
        severity: Severity::Damaged,
        subject: "record steps/key",
        needs: Repair::MadeAgain,
    },
    Case {
        what: "a record that names an image is damaged",
        damage: |store| overwrite(&only_file(&store.path().join("records/kept")), b""),
        severity: Severity::Lost,
        subject: "record kept/key",
        needs: Repair::AndForget,
    },
    Case {
        what: "an image that was kept has been deleted",
        damage: |store| {
            let gone = Digest::sha256(b"gone").to_string();
            store.put_record("kept", "key", gone.as_bytes()).unwrap();
        },
        severity: Severity::Leftover,
        subject: "record kept/key",
        needs: Repair::MadeAgain,
    },
    Case {
        what: "naming a snapshot was interrupted",
        damage: |store| fs::write(store.path().join("used").join("b".repeat(64)), "").unwrap(),
        severity: Severity::Leftover,
        subject: "used/bbbb",
        needs: Repair::MadeAgain,
    },
    Case {
        what: "removing a snapshot was interrupted",
        damage: |store| {
            fs::write(
                store
                    .path()
                    .join("used")
                    .join(format!("{}.size", "b".repeat(64))),
                "7\n",
            )
            .unwrap();
        },
        severity: Severity::Leftover,
        subject: "used/bbbb",
        needs: Repair::MadeAgain,
    },
    Case {
        what: "making the first content of a cache mount was interrupted",
        damage: |store| {
            let instance = store
                .path()
                .join("mounts")
                .join(Digest::sha256(b"mount").hex())
                .join("0");
            fs::create_dir_all(instance.join("draft/some/where")).unwrap();
        },
        severity: Severity::Leftover,
        subject: "mounts/",
        needs: Repair::MadeAgain,
    },
    Case {
        what: "a list of entries is damaged",
        damage: |store| {
            let tenant = only_folder(&store.path().join("contexts"));
            overwrite(
                &only_file(&tenant.join("manifests")),
                b"kiln-context 1\nwhat?",
            );
        },
        severity: Severity::Damaged,
        subject: "context ",
        needs: Repair::MadeAgain,
    },
    Case {
        what: "an uploaded file is gone",
        damage: |store| {
            let tenant = only_folder(&store.path().join("contexts"));
            fs::remove_file(only_file(&tenant.join("contents"))).unwrap();
        },
        severity: Severity::Damaged,
        subject: "context ",
        needs: Repair::MadeAgain,
    },
    Case {
        what: "a lock's holder was killed",
        damage: |store| fs::write(store.path().join("locks").join("c".repeat(64)), "").unwrap(),
        severity: Severity::Leftover,
        subject: "files of locks",
        needs: Repair::MadeAgain,
    },
];

fn only_folder(folder: &Path) -> PathBuf {
    fs::read_dir(folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path()
}

#[test]
fn every_damage_is_found_told_and_put_right() {
    for case in CASES {
        let (_scratch, store) = everything();
        (case.damage)(&store);
        let find = |report: &Report| {
            let fits = |finding: &&store::check::Finding| {
                finding.severity == case.severity && finding.subject.starts_with(case.subject)
            };
            report.findings.iter().find(fits).cloned()
        };
        let report = check(&store, Depth::Bytes, Repair::Nothing);
        let finding = find(&report);
        let finding = finding.unwrap_or_else(|| panic!("{}: {:?}", case.what, report.findings));
        assert_eq!(finding.outcome, Outcome::Told, "{}", case.what);
        assert_eq!(
            report.is_wrong(),
            case.severity != Severity::Leftover,
            "{}",
            case.what
        );
        assert_eq!(
            find(&check(&store, Depth::Bytes, Repair::Nothing)),
            Some(finding),
            "{}: looking changes nothing",
            case.what
        );
        if case.needs == Repair::AndForget {
            let kept = check(&store, Depth::Bytes, Repair::MadeAgain);
            let kept = find(&kept).map(|finding| finding.outcome);
            assert_eq!(
                kept,
                Some(Outcome::Told),
                "{}: no name is forgotten",
                case.what
            );
        }
        let repaired = check(&store, Depth::Bytes, case.needs);
        let outcome = find(&repaired).map(|finding| finding.outcome);
        assert_eq!(outcome, Some(Outcome::Repaired), "{}", case.what);
        assert_eq!(
            repaired.is_wrong(),
            case.severity == Severity::Lost,
            "{}",
            case.what
        );
        // What was only half put right shows now; forgetting a manifest may leave a link that leads nowhere.
        let left = check(&store, Depth::Bytes, Repair::AndForget);
        assert!(!left.is_wrong(), "{}: {:?}", case.what, left.findings);
        let last = check(&store, Depth::Bytes, Repair::Nothing);
        assert_eq!(last.findings, [], "{}", case.what);
    }
}

#[test]
fn what_is_damaged_and_named_says_whose_it_is() {
    let (_scratch, store) = everything();
    image(&store, "other/app", "2", LAYER);
    overwrite(&blob_path(&store, &Digest::sha256(LAYER)), b"b layer");
    let report = check(&store, Depth::Bytes, Repair::MadeAgain);
    let blob = &report.findings[0];
    assert_eq!(blob.outcome, Outcome::Repaired);
    assert!(
        blob.problem
            .ends_with("; it belongs to library/app, other/app"),
        "{blob:?}"
    );
    let lost = |finding: &&store::check::Finding| finding.severity == Severity::Lost;
    assert_eq!(report.findings.iter().filter(lost).count(), 2, "{report:?}");
    // Pushing it again is all that is needed.
    store.put(LAYER).unwrap();
    assert_eq!(check(&store, Depth::Bytes, Repair::Nothing).findings, []);
    assert_eq!(report.counts.n_quarantined, 1);
}

#[test]
fn what_is_nobodys_is_told_and_never_touched() {
    let (_scratch, store) = everything();
    let strangers = [
        "stranger",
        "records/steps/file",
        "repositories/UPPER",
        "tmp/no",
    ];
    for path in strangers {
        fs::create_dir(store.path().join(path)).unwrap();
    }
    let report = check(&store, Depth::Bytes, Repair::AndForget);
    for path in &strangers[..3] {
        assert!(
            report
                .findings
                .iter()
                .any(|finding| finding.subject == *path),
            "{path}: {report:?}"
        );
        assert!(store.path().join(path).exists(), "{path}");
    }
    // The folder of a process that does not live is its leftover, whatever its name.
    assert!(!store.path().join("tmp/no").exists());
    assert!(!report.is_wrong());
}

#[test]
fn looking_is_not_using() {
    let (_scratch, store) = everything();
    let then = SystemTime::now() - Duration::from_secs(7200);
    let mut files = Vec::new();
    let mut pending = ["blobs", "records", "used", "repositories"]
        .map(|name| store.path().join(name))
        .to_vec();
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(
                fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else {
            fs::File::open(&path).unwrap().set_modified(then).unwrap();
            files.push(path);
        }
    }
    assert!(files.len() > 8);
    assert_eq!(check(&store, Depth::Bytes, Repair::AndForget).findings, []);
    for file in files {
        assert_eq!(
            fs::metadata(&file).unwrap().modified().unwrap(),
            then,
            "{}",
            file.display()
        );
    }
}

#[test]
fn nothing_is_found_wrong_beside_pushes_deletions_and_collections() {
    let (_scratch, store) = everything();
    let stop = AtomicBool::new(false);
    let is_going = || !stop.load(Ordering::Relaxed);
    let policy = Policy {
        kinds: Kind::ALL.to_vec(),
        only_unused_for: None,
        unused_for: Some(Duration::ZERO),
        max_bytes: None,
        min_free_bytes: None,
    };
    std::thread::scope(|scope| {
        for who in 0..2 {
            let store = &store;
            scope.spawn(move || {
                let mut n = 0;
                while is_going() {
                    n += 1;
                    let repository = format!("busy/app{}", n % 2);
                    let layer = format!("layer {who} {n}");
                    let digest =
                        image(store, &repository, &format!("t{}", n % 3), layer.as_bytes());
                    store
                        .put_record("steps", &format!("key{}", n % 5), layer.as_bytes())
                        .unwrap();
                    let draft = store.new_snapshot().unwrap();
                    draft.commit(&Digest::sha256(layer.as_bytes())).unwrap();
                    if n % 2 == 0 {
                        store.delete_manifest(&repository, &digest).unwrap();
                    }
                }
            });
        }
        scope.spawn(|| {
            while is_going() {
                store.collect(&policy, NAMED).unwrap();
            }
        });
        let began = std::time::Instant::now();
        let mut n_checks = 0;
        while began.elapsed() < Duration::from_secs(2) || n_checks < 3 {
            let report = check(&store, Depth::Bytes, Repair::MadeAgain);
            n_checks += 1;
            let is_wrong = report.is_wrong();
            stop.store(is_wrong, Ordering::Relaxed);
            assert!(!is_wrong, "{:?}", report.findings);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(!check(&store, Depth::Bytes, Repair::Nothing).is_wrong());
}
