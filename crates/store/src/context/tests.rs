use std::collections::BTreeMap;
use std::io::Read as _;
use std::time::Duration;

use super::*;

const LIFETIME: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
const LESS_THAN_LIFETIME: Duration = Duration::from_secs(3540);

fn keeping(later: Duration) -> Keeping {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    Keeping {
        now_ms: u64::try_from((now + later).as_millis()).unwrap(),
        lifetime: LIFETIME,
    }
}

fn now() -> Keeping {
    keeping(Duration::ZERO)
}

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store"), None).unwrap();
    (folder, store)
}

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry {
        path: path.into(),
        mode: 0o644,
        modified_s: 5,
        modified_ns: 0,
        xattrs: BTreeMap::new(),
        kind,
    }
}

fn file(path: &str, content: &[u8]) -> Entry {
    let (size, content) = (content.len() as u64, ContentId::of(content));
    entry(path, EntryKind::File { size, content })
}

fn begin(store: &Store, tenant: &str, entries: &[Entry]) -> Result<ContextDraft, ContextError> {
    let size = |entry: &Entry| match entry.kind {
        EntryKind::File { size, .. } => size,
        _ => 0,
    };
    let announced = Announced {
        n_entries: entries.len() as u64,
        n_bytes: entries.iter().map(size).sum(),
    };
    let mut draft = store.begin_context(tenant, announced, now(), Allowance::default())?;
    draft.entries(entries)?;
    Ok(draft)
}

/// Uploads files of one tenant; returns the context and the names of those whose content was missing.
fn upload(store: &Store, tenant: &str, files: &[(&str, &[u8])]) -> (Created, Vec<String>) {
    let entries: Vec<Entry> = files
        .iter()
        .map(|(path, content)| file(path, content))
        .collect();
    let mut draft = begin(store, tenant, &entries).unwrap();
    let missing = draft.missing().unwrap();
    let mut names = Vec::new();
    for position in missing {
        let (name, content) = files[usize::try_from(position).unwrap()];
        names.push(name.to_owned());
        draft.content(content).unwrap();
    }
    (draft.commit(now().now_ms).unwrap(), names)
}

fn n_files(folder: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 1;
    };
    entries.map(|entry| n_files(&entry.unwrap().path())).sum()
}

#[test]
fn a_second_upload_misses_only_what_has_changed() {
    let (_folder, store) = store();
    let big = vec![7; (1 << 20) + 1];
    let files: [(&str, &[u8]); 4] = [("a", b"one"), ("b", b"one"), ("c", &big), ("d", b"")];
    let (created, missing) = upload(&store, "t", &files);
    assert_eq!(missing, ["a", "c"]);
    let context = store.context("t", &created.id).unwrap().unwrap();
    let mut read = Vec::new();
    for entry in context.entries().unwrap() {
        let EntryKind::File { size, content } = entry.unwrap().kind else {
            panic!("not a file");
        };
        let mut bytes = Vec::new();
        if size > 0 {
            context
                .open_content(content)
                .unwrap()
                .read_to_end(&mut bytes)
                .unwrap();
        }
        read.push(bytes);
    }
    assert_eq!(read, files.map(|(_, content)| content.to_vec()));
    assert_eq!(upload(&store, "t", &files).1, [""; 0]);
    let changed: [(&str, &[u8]); 4] = [("a", b"one"), ("b", b"two"), ("c", &big), ("d", b"")];
    assert_eq!(upload(&store, "t", &changed).1, ["b"]);
    assert_eq!(n_files(&store.path().join("tmp")), 0, "no tray is left");
}

#[test]
fn tenants_see_nothing_of_each_other() {
    let (_folder, store) = store();
    let (created, _) = upload(&store, "a", &[("x", b"same")]);
    let (_, missing) = upload(&store, "b", &[("x", b"same")]);
    assert_eq!(missing, ["x"]);
    assert!(store.context("b", &created.id).unwrap().is_none());
    assert!(store.context("a", &created.id).unwrap().is_some());
}

#[test]
fn lies_are_refused() {
    let (_folder, store) = store();
    upload(&store, "t", &[("x", b"abc")]);
    let refused = |entries: &[Entry]| begin(&store, "t", entries).unwrap_err();
    let sized = |path, size| {
        entry(
            path,
            EntryKind::File {
                size,
                content: ContentId::of(b"abc"),
            },
        )
    };
    assert!(matches!(
        refused(&[sized("a", 4)]),
        ContextError::Size { actual: 3, .. }
    ));
    let content = ContentId::of(b"new");
    let twice = [3, 4].map(|size| {
        entry(
            ["a", "b"][usize::from(size == 4)],
            EntryKind::File { size, content },
        )
    });
    assert!(matches!(
        refused(&twice),
        ContextError::Size { size: 4, .. }
    ));

    let announced = |n_entries, n_bytes| {
        let announced = Announced { n_entries, n_bytes };
        let mut draft = store
            .begin_context("t", announced, now(), Allowance::default())
            .unwrap();
        draft
            .entries(&[file("a", b"abc")])
            .and_then(|()| draft.missing())
    };
    assert!(matches!(
        announced(0, 3),
        Err(ContextError::NumberOfEntries {
            announced: 0,
            found: 1
        })
    ));
    assert!(matches!(
        announced(2, 3),
        Err(ContextError::NumberOfEntries {
            announced: 2,
            found: 1
        })
    ));
    assert!(matches!(
        announced(1, 2),
        Err(ContextError::NumberOfBytes {
            announced: 2,
            found: 3
        })
    ));
    assert!(matches!(
        announced(1, 4),
        Err(ContextError::NumberOfBytes {
            announced: 4,
            found: 3
        })
    ));
    assert_eq!(announced(1, 3).unwrap(), [0; 0]);
}

#[test]
fn contents_are_exactly_what_was_asked_for() {
    let (_folder, store) = store();
    let big = vec![1; 3 << 20];
    let entries = [file("a", b"abc"), file("b", &big)];
    let draft = || begin(&store, "t", &entries).unwrap();
    for wrong in [
        &b"abd"[..],
        &[b"abc".as_slice(), &vec![2; 3 << 20]].concat(),
    ] {
        let mut draft = draft();
        let mut pieces = wrong.chunks(1 << 19);
        let error = pieces.find_map(|piece| draft.content(piece).err());
        assert!(
            matches!(error, Some(ContextError::Digest { .. })),
            "{error:?}"
        );
    }
    let mut early = draft();
    early.content(b"abc").unwrap();
    early.content(&big[1..]).unwrap();
    assert!(!early.is_complete());
    assert!(matches!(early.commit(1), Err(ContextError::Incomplete)));
    let mut more = draft();
    let all = [b"abc".as_slice(), &big].concat();
    for piece in all.chunks(777_777) {
        more.content(piece).unwrap();
    }
    assert!(more.is_complete());
    assert!(matches!(more.content(b"x"), Err(ContextError::Unwanted)));
    drop(more);
    assert_eq!(
        n_files(&store.path().join("contexts")),
        0,
        "nothing of it became visible"
    );
}

#[test]
fn what_an_abandoned_upload_brought_whole_need_not_come_again() {
    let (_folder, store) = store();
    let entries = [file("a", b"abc"), file("b", b"def"), file("c", b"ghi")];
    let mut draft = begin(&store, "t", &entries).unwrap();
    draft.content(b"abcde").unwrap();
    draft.abandon().unwrap();
    assert_eq!(n_files(&store.path().join("tmp")), 0);
    assert_eq!(
        begin(&store, "t", &entries).unwrap().missing().unwrap(),
        [1, 2]
    );
}

#[test]
fn contexts_are_forgotten_in_time_and_contents_after_them() {
    let (_folder, store) = store();
    let sweep = |later: Duration| store.sweep_contexts(keeping(later), &|| true).unwrap();
    let (created, _) = upload(&store, "t", &[("x", b"abc"), ("y", b"de")]);
    assert_eq!(sweep(LESS_THAN_LIFETIME), Swept::default());
    let kept = store.context("t", &created.id).unwrap().unwrap();
    let later = LIFETIME + MINUTE;
    assert_eq!(sweep(later).n_contexts, 0, "somebody keeps it");
    // It was renewed then, and is needed for as long again.
    assert_eq!(sweep(LIFETIME * 3), Swept::default());
    drop(kept);
    assert_eq!(sweep(later).n_contexts, 1);
    assert!(store.context("t", &created.id).unwrap().is_none());
    let expected = Swept {
        n_contexts: 0,
        n_contents: 2,
        n_bytes: 5,
    };
    assert_eq!(sweep(LIFETIME * 6), expected);
    assert_eq!(n_files(&store.path().join("contexts")), 0);
}

#[test]
fn content_that_is_relied_on_again_is_kept_again() {
    let (_folder, store) = store();
    upload(&store, "t", &[("x", b"abc")]);
    // Made when the content was nearly forgotten.
    let late = keeping(LIFETIME + LESS_THAN_LIFETIME);
    let announced = Announced {
        n_entries: 1,
        n_bytes: 3,
    };
    let mut draft = store
        .begin_context("t", announced, late, Allowance::default())
        .unwrap();
    draft.entries(&[file("x", b"abc")]).unwrap();
    assert_eq!(draft.missing().unwrap(), [0; 0]);
    let created = draft.commit(late.now_ms).unwrap();
    let swept = store.sweep_contexts(keeping(LIFETIME + LESS_THAN_LIFETIME * 2), &|| true);
    assert_eq!(swept.unwrap().n_contents, 0);
    let context = store.context("t", &created.id).unwrap().unwrap();
    context.open_content(ContentId::of(b"abc")).unwrap();
}

#[test]
fn content_that_goes_while_it_is_relied_on_fails_the_upload() {
    let (_folder, store) = store();
    upload(&store, "t", &[("x", b"abc")]);
    let draft = begin(&store, "t", &[file("x", b"abc")]).unwrap();
    let swept = store
        .sweep_contexts(keeping(LIFETIME * 3), &|| true)
        .unwrap();
    assert_eq!(swept.n_contents, 1);
    assert!(matches!(
        draft.commit(now().now_ms),
        Err(ContextError::Vanished)
    ));
}

#[test]
fn many_entries_of_one_content_ask_for_it_once() {
    let (_folder, store) = store();
    let n = 100_000_u64;
    let announced = Announced {
        n_entries: n,
        n_bytes: n,
    };
    let mut draft = store
        .begin_context("t", announced, now(), Allowance::default())
        .unwrap();
    for start in (0..n).step_by(10_000) {
        let entries: Vec<Entry> = (start..start + 10_000)
            .map(|i| file(&format!("f{i:07}"), b"x"))
            .collect();
        draft.entries(&entries).unwrap();
    }
    assert_eq!(draft.missing().unwrap(), [0]);
    draft.content(b"x").unwrap();
    let created = draft.commit(now().now_ms).unwrap();
    let context = store.context("t", &created.id).unwrap().unwrap();
    assert_eq!(
        context.entries().unwrap().map(Result::unwrap).count() as u64,
        n
    );
}

#[test]
fn ids_are_random_and_nothing_else_is_one() {
    let (_folder, store) = store();
    let (one, _) = upload(&store, "t", &[("x", b"abc")]);
    let (other, _) = upload(&store, "t", &[("x", b"abc")]);
    assert_ne!(one.id, other.id);
    assert_eq!(one.id.to_string().parse(), Ok(one.id));
    for text in [
        "",
        "../../../blobs",
        &"a".repeat(25),
        &"A".repeat(26),
        &"/".repeat(26),
    ] {
        assert!(text.parse::<ContextId>().is_err(), "{text:?}");
    }
}

/// The first entry of an upload with so much room, if it has it.
fn begin_within(
    store: &Store,
    (tenant, later): (&str, Duration),
    allowance: Allowance,
    entry: &Entry,
) -> Result<ContextDraft, ContextError> {
    let EntryKind::File { size, .. } = entry.kind else {
        panic!("not a file");
    };
    let announced = Announced {
        n_entries: 1,
        n_bytes: size,
    };
    let mut draft = store.begin_context(tenant, announced, keeping(later), allowance)?;
    draft.entries(std::slice::from_ref(entry))?;
    draft.missing()?;
    Ok(draft)
}

/// Leaves a content that no context names, last needed so long ago.
fn leave(store: &Store, content: &[u8], ago: Duration) {
    let allowance = Allowance::default();
    let entry = file("left", content);
    let mut draft = begin_within(store, ("t", Duration::ZERO), allowance, &entry).unwrap();
    draft.content(content).unwrap();
    draft.abandon().unwrap();
    let home = Home::open(store, &folder_of("t")).unwrap().unwrap();
    let place = ContentId::of(content).place();
    let file = home.contents.open_file(&place).unwrap().unwrap();
    file.set_modified(std::time::SystemTime::now() - ago)
        .unwrap();
}

fn is_there(store: &Store, content: &[u8]) -> bool {
    let home = Home::open(store, &folder_of("t")).unwrap().unwrap();
    let place = ContentId::of(content).place();
    home.contents.stat(&place).unwrap().is_some()
}

#[test]
fn a_tenant_has_so_much_and_what_nobody_needs_goes_first_the_oldest_before_others() {
    let (_folder, store) = store();
    let (created, _) = upload(&store, "t", &[("x", b"named")]);
    let home = Home::open(&store, &folder_of("t")).unwrap().unwrap();
    let one = room::counts(1, room::share(&home.contents).unwrap());
    // Four contents, and lists, which are small.
    let four = Allowance {
        max_bytes: one * 4 + one / 2,
        ..Allowance::default()
    };
    leave(&store, b"relied on", MINUTE * 5);
    leave(&store, b"older", MINUTE * 4);
    leave(&store, b"newer", MINUTE * 3);
    let relying = file("y", b"relied on");
    let relies = begin_within(&store, ("t", Duration::ZERO), four, &relying).unwrap();
    let fifth = begin_within(&store, ("t", MINUTE), four, &file("z", b"fifth")).unwrap();
    let there = [&b"named"[..], b"relied on", b"older", b"newer"].map(|c| is_there(&store, c));
    assert_eq!(there, [true, true, false, true]);
    // What is promised counts, and what is given back does not.
    let sixth = begin_within(&store, ("t", MINUTE * 2), four, &file("z", b"sixth")).unwrap();
    let refused = begin_within(&store, ("t", MINUTE * 3), four, &file("z", b"seventh"));
    assert!(
        matches!(refused, Err(ContextError::TooMuch { max_bytes, .. }) if max_bytes == four.max_bytes),
        "{refused:?}"
    );
    begin_within(&store, ("other", MINUTE * 3), four, &file("z", b"seventh")).unwrap();
    drop(fifth);
    let mut seventh =
        begin_within(&store, ("t", MINUTE * 4), four, &file("z", b"seventh")).unwrap();
    seventh.content(b"seventh").unwrap();
    seventh.commit(now().now_ms).unwrap();
    relies.commit(now().now_ms).unwrap();
    drop(sixth);
    // Contexts whose time is not over stay, and so does what they name.
    for text in ["a", "b", "c"] {
        let more = file("z", text.as_bytes());
        let more = begin_within(&store, ("t", MINUTE * 6), four, &more);
        assert_eq!(more.is_ok(), text == "a", "{text}: {more:?}");
        std::mem::forget(more);
    }
    let context = store.context("t", &created.id).unwrap().unwrap();
    context.open_content(ContentId::of(b"named")).unwrap();
}

#[test]
fn lists_count_too_and_what_is_swept_does_not() {
    let (_folder, store) = store();
    let allowance = Allowance {
        max_bytes: 10_000,
        ..Allowance::default()
    };
    let list = |later| {
        let announced = Announced {
            n_entries: 2,
            n_bytes: 0,
        };
        let mut draft = store.begin_context("t", announced, keeping(later), allowance)?;
        let long = |name: &str| entry(name, EntryKind::Symlink(vec![b'x'; 2000]));
        draft.entries(&[long("a"), long("b")])?;
        draft.missing()?;
        draft.commit(keeping(later).now_ms)
    };
    list(Duration::ZERO).unwrap();
    list(Duration::ZERO).unwrap();
    let refused = list(MINUTE).unwrap_err();
    assert!(matches!(refused, ContextError::TooMuch { .. }), "{refused}");
    let later = LIFETIME + MINUTE;
    let swept = store.sweep_contexts(keeping(later), &|| true).unwrap();
    assert_eq!(swept.n_contexts, 2);
    list(later).unwrap();
    // After a start, what is there is counted.
    let again = Store::open(store.path(), None).unwrap();
    drop(store);
    let announced = Announced {
        n_entries: 1,
        n_bytes: 0,
    };
    let mut draft = again
        .begin_context("t", announced, keeping(later), allowance)
        .unwrap();
    let long = entry("a", EntryKind::Symlink(vec![b'x'; 4000]));
    draft.entries(std::slice::from_ref(&long)).unwrap();
    let mut draft = again
        .begin_context("t", announced, keeping(later), allowance)
        .unwrap();
    let refused = draft.entries(&[long]).unwrap_err();
    assert!(matches!(refused, ContextError::TooMuch { .. }), "{refused}");
}

#[test]
fn uploads_leave_free_what_others_need_and_what_other_uploads_will_bring() {
    let (_folder, store) = store();
    let disk = rustix::fs::statvfs(store.path()).unwrap();
    let free = disk.f_bavail * disk.f_frsize;
    let most = |content: &[u8]| {
        let (size, content) = (free / 10 * 6, ContentId::of(content));
        entry("x", EntryKind::File { size, content })
    };
    let begin = |tenant, min_free_bytes, content: &[u8]| {
        let allowance = Allowance {
            min_free_bytes,
            ..Allowance::default()
        };
        begin_within(&store, (tenant, Duration::ZERO), allowance, &most(content))
    };
    let is_full =
        |refused: &Result<_, ContextError>| matches!(refused, Err(ContextError::NoSpace { .. }));
    let refused = begin("a", free / 10 * 6, b"one");
    assert!(is_full(&refused), "{refused:?}");
    let first = begin("a", free / 10, b"one").unwrap();
    let refused = begin("b", 0, b"two");
    assert!(is_full(&refused), "{refused:?}");
    drop(first);
    begin("b", 0, b"two").unwrap();
}
