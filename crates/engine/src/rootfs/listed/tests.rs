use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use store::Store;
use store::context::{Allowance, Announced, ContentId, Context, Keeping};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::rootfs::content::{ContentOptions, digest_sources};
use crate::rootfs::copy::Owner;
use crate::rootfs::planted;
use crate::rootfs::root::Root;
use crate::rootfs::select::Ignored;

fn entry(path: &[u8], mode: u32, kind: EntryKind) -> Entry {
    Entry {
        path: path.to_vec(),
        mode,
        modified_s: 1_000_000_000,
        modified_ns: 5,
        xattrs: BTreeMap::new(),
        kind,
    }
}

fn file(path: &[u8], content: &[u8]) -> Entry {
    let (size, content) = (content.len() as u64, ContentId::of(content));
    entry(path, 0o644, EntryKind::File { size, content })
}

fn folder(path: &[u8]) -> Entry {
    entry(path, 0o755, EntryKind::Folder)
}

fn link(path: &[u8], to: &[u8]) -> Entry {
    entry(path, 0o777, EntryKind::Symlink(to.to_vec()))
}

const CONTENTS: [&[u8]; 3] = [b"one", b"two!", b""];

/// A folder with what is hostile about folders.
fn tree() -> Vec<Entry> {
    vec![
        file(b".env", b"one"),
        folder(b"app"),
        folder(b"app/deep"),
        file(b"app/deep/a.txt", b"one"),
        folder(b"app/empty"),
        file(b"app/main", b"two!"),
        entry(b"app/pipe", 0o600, EntryKind::Pipe),
        folder(b"app/sub"),
        file(b"app/sub/b.txt", b""),
        link(b"app/up", b"../other"),
        file(b"b.txt", b"one"),
        file(b"bad\xff", b"two!"),
        link(b"here", b"app"),
        link(b"nowhere", b"gone"),
        folder(b"other"),
        file(b"other/b.txt", b"two!"),
        link(b"other/link.txt", b"/b.txt"),
        entry(b"same", 0o644, EntryKind::HardLink(b"b.txt".to_vec())),
        entry(
            b"other2",
            0o644,
            EntryKind::HardLink(b"other/b.txt".to_vec()),
        ),
        file(b"z*", b"one"),
    ]
}

/// Everything that a caller might do to a folder between two uploads, one thing at a time.
fn changed() -> Vec<Vec<Entry>> {
    let base = tree();
    let mut all = vec![base.clone()];
    for at in 0..base.len() {
        let mut with = |change: &dyn Fn(&mut Entry)| {
            let mut tree = base.clone();
            change(&mut tree[at]);
            all.push(tree);
        };
        with(&|entry| entry.mode ^= 0o011);
        with(&|entry| entry.modified_s += 1);
        with(&|entry| match &mut entry.kind {
            EntryKind::File { size, content } => {
                *size = 4;
                *content = ContentId::of(if *content == ContentId::of(b"two!") {
                    *size = 3;
                    b"one"
                } else {
                    b"two!"
                });
            }
            EntryKind::Symlink(to) => *to = b"other".to_vec(),
            EntryKind::HardLink(to) => *to = b".env".to_vec(),
            kind @ EntryKind::Pipe => *kind = EntryKind::Symlink(b"main".to_vec()),
            EntryKind::Folder => {
                entry.xattrs.insert(b"user.note".to_vec(), b"x".to_vec());
            }
        });
        with(&|entry| {
            if !matches!(entry.kind, EntryKind::Folder) {
                entry.kind = EntryKind::Symlink(b"../b.txt".to_vec());
            }
        });
        let gone = base[at].path.clone();
        let kept = base.iter().filter(|entry| !leads_to(&gone, &entry.path));
        let kept = kept
            .filter(|entry| !matches!(&entry.kind, EntryKind::HardLink(to) if leads_to(&gone, to)));
        all.push(kept.cloned().collect());
    }
    for added in [
        file(b"app/deep/z.txt", b"one"),
        file(b"new.txt", b"one"),
        folder(b"other/n"),
    ] {
        let mut tree = base.clone();
        tree.push(added);
        all.push(tree);
    }
    for tree in &mut all {
        sort(tree);
    }
    all
}

/// Sorts as a walk does, and drops second names that come before what they name.
fn sort(tree: &mut Vec<Entry>) {
    let names = |entry: &Entry| -> Vec<Vec<u8>> {
        entry
            .path
            .split(|b| *b == b'/')
            .map(<[u8]>::to_vec)
            .collect()
    };
    tree.sort_by_key(names);
    let firsts: BTreeSet<Vec<u8>> = tree
        .iter()
        .filter(|entry| matches!(entry.kind, EntryKind::File { .. }))
        .map(|entry| entry.path.clone())
        .collect();
    let mut seen = BTreeSet::new();
    tree.retain(|entry| {
        seen.insert(entry.path.clone());
        match &entry.kind {
            EntryKind::HardLink(to) => firsts.contains(to) && seen.contains(to),
            _ => true,
        }
    });
}

fn uploaded(store: &Store, entries: &[Entry]) -> Context {
    let keeping = Keeping {
        now_ms: 2_000_000_000_000,
        lifetime: Duration::from_secs(3600),
    };
    let sizes = entries.iter().map(|entry| match entry.kind {
        EntryKind::File { size, .. } => size,
        _ => 0,
    });
    let announced = Announced {
        n_entries: entries.len() as u64,
        n_bytes: sizes.sum(),
    };
    let mut draft = store
        .begin_context("t", announced, keeping, Allowance::default())
        .unwrap();
    draft.entries(entries).unwrap();
    for at in draft.missing().unwrap() {
        let EntryKind::File { content, .. } = &entries[usize::try_from(at).unwrap()].kind else {
            panic!("only files have contents");
        };
        let bytes = CONTENTS
            .iter()
            .find(|bytes| ContentId::of(bytes) == *content);
        draft.content(bytes.unwrap()).unwrap();
    }
    let created = draft.commit(keeping.now_ms).unwrap();
    store.context("t", &created.id).unwrap().unwrap()
}

/// Sources in every form, each with what it leaves out.
fn sources() -> Vec<Vec<Source>> {
    let new = |path: &str| Source::new(path, None, &[]).unwrap();
    let mut all: Vec<Vec<Source>> = [
        ".",
        "app",
        "/app/",
        "./app/deep",
        "app/../other",
        "here",
        "here/deep",
        "nowhere",
        "same",
        "other",
        "other2",
        "other/link.txt",
        "app/up/b.txt",
        "*.txt",
        "app/*/*.txt",
        "*/b.txt",
        "here/*",
        "h*",
        "a?p",
        "bad?",
        "z[*]",
        "[a",
        "gone*",
        "app/main",
        "app/empty",
        ".env",
    ]
    .into_iter()
    .map(|path| vec![new(path)])
    .collect();
    all.push(vec![new("app/main"), new("b.txt")]);
    all.push(vec![Source::literal("z*", &[]).unwrap()]);
    all.push(vec![Source::new("app", Some("deep/a.txt"), &[]).unwrap()]);
    let exclude = ["**/*.txt".to_owned()];
    all.push(vec![Source::new("app", None, &exclude).unwrap()]);
    all
}

fn digest_in(root: &Root, sources: &[Source]) -> Option<Digest> {
    let ignore = |path: &Path, _: bool| match path.to_str() {
        Some("app/sub" | ".env") => Ignored::Skip,
        _ => Ignored::Keep,
    };
    let options = ContentOptions {
        owner: Owner::Fixed(0, 0),
        mode: None,
        ignore: Some(&ignore),
        n_threads: 1,
    };
    let digest = digest_sources(root, sources, &options, &CancellationToken::new());
    digest.ok().map(|digest| digest.digest)
}

#[test]
fn lists_with_the_same_key_are_digested_alike_whatever_was_changed_in_them() {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(&place.path().join("store"), None).unwrap();
    let sources = sources();
    let mut known: Vec<BTreeMap<String, Option<Digest>>> = vec![BTreeMap::new(); sources.len()];
    let (mut n_same, mut n_keys) = (0, 0);
    for (at, tree) in changed().into_iter().enumerate() {
        let context = uploaded(&store, &tree);
        let into = place.path().join(format!("tree-{at}"));
        std::fs::create_dir(&into).unwrap();
        let folder = planted::open_folder(&into).unwrap();
        planted::plant(&context, folder, &CancellationToken::new()).unwrap();
        let root = Root::open(&into).unwrap();
        for (sources, known) in sources.iter().zip(&mut known) {
            let key = key(context.entries().unwrap(), b"", sources).unwrap();
            let digest = digest_in(&root, sources);
            if let Some(before) = known.get(&key.to_string()) {
                n_same += 1;
                assert_eq!(*before, digest, "{sources:?} in {tree:?}");
            } else {
                n_keys += 1;
                known.insert(key.to_string(), digest);
            }
        }
    }
    // Most changes are none to most sources.
    assert!(n_same > n_keys, "{n_same} {n_keys}");
}

#[test]
fn a_key_changes_with_what_a_source_means_and_with_nothing_else() {
    let key_of = |tree: &[Entry], folder: &[u8], source: &str| {
        let sources = [Source::new(source, None, &[]).unwrap()];
        key(tree.iter().cloned().map(Ok), folder, &sources).unwrap()
    };
    let before = tree();
    let mut after = before.clone();
    after.retain(|entry| entry.path != b"bad\xff");
    after.push(file(b"zz", b"one"));
    for (folder, source) in [("", "app"), ("", "*.txt"), ("app", "."), ("app", "deep")] {
        let folder = folder.as_bytes();
        assert_eq!(
            key_of(&before, folder, source),
            key_of(&after, folder, source),
            "{source}"
        );
    }
    // A link is named: what it leads to is not looked for.
    for source in [".", "here", "h*", "same", "app/../app"] {
        assert_ne!(
            key_of(&before, b"", source),
            key_of(&after, b"", source),
            "{source}"
        );
    }
    assert_ne!(key_of(&before, b"app", "."), key_of(&before, b"other", "."));
}

#[test]
fn only_what_is_asked_for_is_taken_unless_a_link_has_a_say() {
    let names = |paths: &[&[u8]]| {
        let found = only(tree().into_iter().map(Ok), paths).unwrap();
        found.map(|found| {
            let names = found
                .iter()
                .map(|entry| String::from_utf8_lossy(&entry.path).into_owned());
            names.collect::<Vec<_>>()
        })
    };
    assert_eq!(
        names(&[b"app/deep/a.txt", b"app/none", b".env"]).unwrap(),
        [".env", "app", "app/deep", "app/deep/a.txt"]
    );
    assert_eq!(names(&[b"here/main"]), None);
    assert_eq!(names(&[b"same"]), None);
    assert_eq!(names(&[b"gone"]).unwrap(), [""; 0]);
}
