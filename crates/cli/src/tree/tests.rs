use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use rustix::fs::FileType;

use super::*;

fn rules(keep: &dyn Fn(&Path, EntryKind) -> Keep) -> Rules<'_> {
    Rules {
        keep,
        owner: None,
        special: Special::LeaveOut,
        files_max: 100,
        bytes_max: 1000,
    }
}

fn all(_: &Path, _: EntryKind) -> Keep {
    Keep::Yes
}

#[test]
fn links_are_copied_and_never_followed() {
    let from = tempfile::tempdir().unwrap();
    let into = tempfile::tempdir().unwrap();
    fs::create_dir(from.path().join("d")).unwrap();
    fs::write(from.path().join("d/f"), "content").unwrap();
    fs::set_permissions(from.path().join("d/f"), PermissionsExt::from_mode(0o4750)).unwrap();
    fs::set_permissions(from.path().join("d"), PermissionsExt::from_mode(0o555)).unwrap();
    symlink("/etc/passwd", from.path().join("out")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        from.path().join("pipe"),
        FileType::Fifo,
        Mode::RUSR,
        0,
    )
    .unwrap();
    let copied = copy(from.path(), into.path(), &rules(&all)).unwrap();
    assert_eq!(
        copied,
        Copied {
            n_files: 3,
            bytes: 7,
            n_skipped: 1
        }
    );
    let file = into.path().join("d/f");
    assert_eq!(fs::read_to_string(&file).unwrap(), "content");
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
        0o750
    );
    let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    assert_eq!(modified(&file), modified(&from.path().join("d/f")));
    assert_eq!(
        fs::read_link(into.path().join("out")).unwrap(),
        Path::new("/etc/passwd")
    );
}

#[test]
fn a_folder_for_the_worker_alone_is_copied_with_everything_that_an_image_can_hold() {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let from = tempfile::tempdir().unwrap();
    let into = tempfile::tempdir().unwrap();
    fs::create_dir(from.path().join("d")).unwrap();
    fs::write(from.path().join("d/f"), "content").unwrap();
    fs::set_permissions(from.path().join("d/f"), PermissionsExt::from_mode(0o6755)).unwrap();
    fs::set_permissions(from.path().join("d"), PermissionsExt::from_mode(0o1777)).unwrap();
    fs::hard_link(from.path().join("d/f"), from.path().join("same")).unwrap();
    let pipe = from.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, pipe, Mode::RUSR).unwrap();
    let keep = Rules {
        special: Special::Keep,
        ..rules(&all)
    };
    let copied = copy(from.path(), into.path(), &keep).unwrap();
    assert_eq!((copied.n_files, copied.bytes, copied.n_skipped), (4, 7, 0));
    let metadata = |path: &str| fs::metadata(into.path().join(path)).unwrap();
    assert_eq!(metadata("d/f").mode() & 0o7777, 0o6755);
    assert_eq!(metadata("d").mode() & 0o7777, 0o1777);
    assert_eq!(metadata("d/f").ino(), metadata("same").ino());
    assert!(metadata("pipe").file_type().is_fifo());
}

#[test]
fn what_is_in_the_way_is_replaced_and_not_followed() {
    let from = tempfile::tempdir().unwrap();
    let into = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("file"), "precious").unwrap();
    fs::create_dir(from.path().join("folder")).unwrap();
    fs::write(from.path().join("folder/file"), "new").unwrap();
    fs::write(from.path().join("file"), "new").unwrap();
    symlink(elsewhere.path(), into.path().join("folder")).unwrap();
    symlink(elsewhere.path().join("file"), into.path().join("file")).unwrap();
    copy(from.path(), into.path(), &rules(&all)).unwrap();
    let read = |path: PathBuf| fs::read_to_string(path).unwrap();
    assert_eq!(read(elsewhere.path().join("file")), "precious");
    assert_eq!(read(into.path().join("file")), "new");
    assert_eq!(read(into.path().join("folder/file")), "new");
}

#[test]
fn an_ignored_folder_appears_only_for_what_is_kept_below_it() {
    let from = tempfile::tempdir().unwrap();
    let into = tempfile::tempdir().unwrap();
    for folder in ["a/b", "c/d", "e"] {
        fs::create_dir_all(from.path().join(folder)).unwrap();
    }
    fs::write(from.path().join("a/b/wanted"), "").unwrap();
    fs::write(from.path().join("a/b/other"), "").unwrap();
    fs::write(from.path().join("e/other"), "").unwrap();
    let keep = |path: &Path, kind: EntryKind| match (path.ends_with("wanted"), kind) {
        (true, _) => Keep::Yes,
        (false, _) if path.starts_with("e") => Keep::No,
        (false, EntryKind::Folder) => Keep::PartsOnly,
        (false, EntryKind::Other) => Keep::No,
    };
    copy(from.path(), into.path(), &rules(&keep)).unwrap();
    assert!(into.path().join("a/b/wanted").exists());
    assert!(!into.path().join("a/b/other").exists());
    assert!(!into.path().join("c").exists() && !into.path().join("e").exists());
}

#[test]
fn limits_hold() {
    let from = tempfile::tempdir().unwrap();
    let into = tempfile::tempdir().unwrap();
    fs::write(from.path().join("big"), [0; 1001]).unwrap();
    let error = copy(from.path(), into.path(), &rules(&all)).unwrap_err();
    assert!(matches!(error, CopyError::Bytes(1000)));
    fs::write(from.path().join("big"), "").unwrap();
    for n in 0..100 {
        fs::write(from.path().join(n.to_string()), "").unwrap();
    }
    let error = copy(from.path(), into.path(), &rules(&all)).unwrap_err();
    assert!(matches!(error, CopyError::Files(100)));
}

#[test]
fn attributes_that_copy_keeps_are_copied_and_others_are_not() {
    let from = tempfile::tempdir().unwrap();
    let into = tempfile::tempdir().unwrap();
    fs::create_dir(from.path().join("d")).unwrap();
    fs::write(from.path().join("d/f"), "content").unwrap();
    let set = |path: &str, name: &str, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(from.path().join(path), name, value, flags).unwrap();
    };
    set("d", "user.folder", b"1");
    set("d/f", "user.file", b"2");
    set("d/f", "user.overlay.opaque", b"y");
    fs::set_permissions(from.path().join("d/f"), PermissionsExt::from_mode(0o400)).unwrap();
    let keep = Rules {
        special: Special::Keep,
        ..rules(&all)
    };
    copy(from.path(), into.path(), &keep).unwrap();
    let read =
        |path: &str| attributes::read(fs::File::open(into.path().join(path)).unwrap()).unwrap();
    assert_eq!(read("d"), [(b"user.folder".to_vec(), b"1".to_vec())].into());
    assert_eq!(read("d/f"), [(b"user.file".to_vec(), b"2".to_vec())].into());
    let mut names = [0_u8; 256];
    let n = rustix::fs::listxattr(into.path().join("d/f"), &mut names[..]).unwrap();
    assert!(!String::from_utf8_lossy(&names[..n]).contains("overlay"));
}

#[test]
fn a_listing_has_everything_in_order_with_its_hash() {
    let from = tempfile::tempdir().unwrap();
    for folder in ["a", "a-b", "empty", "gone"] {
        fs::create_dir(from.path().join(folder)).unwrap();
    }
    for (path, text) in [
        ("a/x", "one"),
        ("a-b/y", "one"),
        ("a.c", ""),
        ("gone/z", "secret"),
    ] {
        fs::write(from.path().join(path), text).unwrap();
    }
    fs::set_permissions(from.path().join("a/x"), PermissionsExt::from_mode(0o4711)).unwrap();
    fs::hard_link(from.path().join("a/x"), from.path().join("same")).unwrap();
    symlink("a/x", from.path().join("link")).unwrap();
    let keep = |path: &Path, _: EntryKind| {
        if path.starts_with("gone") {
            Keep::No
        } else {
            Keep::Yes
        }
    };
    let rules = Rules {
        special: Special::Keep,
        ..rules(&keep)
    };
    let listing = list(from.path(), &rules).unwrap();
    let paths: Vec<&str> = listing
        .entries
        .iter()
        .map(|e| std::str::from_utf8(&e.path).unwrap())
        .collect();
    assert_eq!(
        paths,
        ["a", "a/x", "a-b", "a-b/y", "a.c", "empty", "link", "same"]
    );
    assert_eq!(listing.n_bytes(), 6);
    let content = |at: usize| listing.entries.get(at).unwrap().content.clone();
    let one = Content::File {
        size: 3,
        digest: oci::Digest::sha256(b"one"),
    };
    assert_eq!(content(1), one);
    assert_eq!(content(3), one);
    assert_eq!(content(6), Content::Symlink(b"a/x".to_vec()));
    assert_eq!(content(7), Content::HardLink(b"a/x".to_vec()));
    assert_eq!(listing.entries.get(1).unwrap().mode, 0o4711);
}
