//! Mounts and archives of changes, each through the real kernel.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink as make_symlink};
use std::path::PathBuf;

use oci::Digest;
use oci::tar::{Limits, Reader};

use super::*;
use crate::rootfs::overlay::{MountError, Upper, mount, mount_by_string_for_tests};
use crate::rootfs::remove::remove_tree;
use crate::rootfs::testing::*;

fn none() -> CancellationToken {
    CancellationToken::new()
}

fn archived(upper: &Upper, clamp: Option<i64>) -> (Vec<u8>, DiffReport) {
    let options = DiffOptions { mtime_clamp: clamp };
    let mut bytes = Vec::new();
    let report = diff(&upper.path(), &mut bytes, options, &none()).unwrap();
    assert_eq!(report.archive_bytes, bytes.len() as u64);
    (bytes, report)
}

fn entries_of(bytes: &[u8]) -> Vec<Entry> {
    let mut reader = Reader::new(bytes, Limits::default());
    let mut entries = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        entries.push(entry);
    }
    entries
}

fn names_of(bytes: &[u8]) -> Vec<String> {
    let entries = entries_of(bytes);
    entries
        .iter()
        .map(|entry| tree::shown(&entry.path))
        .collect()
}

/// A path to what is in a detached mount.
fn view(mount: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", mount.as_raw_fd()).into()
}

fn base(place: &Place) -> PathBuf {
    let dir = place.dir("base");
    unpack_into(
        &dir,
        &[
            directory("./", 0o755),
            directory("etc", 0o755),
            file("etc/conf", "old"),
            file("etc/gone", "g"),
            directory("opt", 0o755),
            file("opt/old", "o"),
            file("keep", "k"),
        ],
    )
    .unwrap();
    dir
}

#[test]
fn changes_of_a_step_become_an_archive_that_makes_the_same_view() {
    let place = Place::new();
    let base = base(&place);
    let upper = Upper::create(None, &place.path("step")).unwrap();
    let mounted = mount(std::slice::from_ref(&base), Some(&upper)).unwrap();
    let root = view(&mounted);
    fs::write(root.join("etc/conf"), "new").unwrap();
    fs::remove_file(root.join("etc/gone")).unwrap();
    fs::remove_dir_all(root.join("opt")).unwrap();
    fs::create_dir(root.join("opt")).unwrap();
    fs::write(root.join("opt/new"), "n").unwrap();
    fs::hard_link(root.join("opt/new"), root.join("opt/second")).unwrap();
    make_symlink("/nowhere", root.join("link")).unwrap();
    fs::set_permissions(root.join("opt/new"), fs::Permissions::from_mode(0o4711)).unwrap();
    let seen = listing(&root);
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    drop(mounted);
    let (bytes, report) = archived(&upper, Some(1_000));
    assert_eq!(
        names_of(&bytes),
        [
            "link",
            "etc",
            "etc/conf",
            "etc/.wh.gone",
            "opt",
            "opt/.wh..wh..opq",
            "opt/new",
            "opt/second"
        ]
    );
    assert_eq!((report.entries, report.n_sockets_skipped), (8, 1));
    assert!(entries_of(&bytes).iter().all(|entry| entry.mtime <= 1_000));
    let again = place.dir("again");
    let limits = crate::rootfs::unpack::UnpackLimits::default();
    let report = crate::rootfs::unpack::unpack(&bytes[..], &again, &limits, &none()).unwrap();
    assert_eq!(report.diff_id, Digest::sha256(&bytes));
    let mounted = mount(&[base, again], None).unwrap();
    assert_eq!(listing(&view(&mounted)), seen);
    assert!(
        fs::write(view(&mounted).join("x"), "x").is_err(),
        "a view without upper is read-only"
    );
}

#[test]
fn the_same_step_gives_the_same_bytes() {
    let place = Place::new();
    let base = base(&place);
    let mut digests = Vec::new();
    for name in ["one", "two"] {
        let upper = Upper::create(None, &place.path(name)).unwrap();
        let mounted = mount(std::slice::from_ref(&base), Some(&upper)).unwrap();
        let root = view(&mounted);
        for index in 0..50 {
            // The order of making shows in the order of a directory.
            let index = if name == "one" { index } else { 49 - index };
            fs::write(root.join(format!("etc/{index}")), index.to_string()).unwrap();
        }
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        digests.push(Digest::sha256(&archived(&upper, Some(0)).0));
    }
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn a_step_that_changes_nothing_has_no_entries() {
    let place = Place::new();
    let upper = Upper::create(None, &place.path("step")).unwrap();
    let mounted = mount(&[base(&place)], Some(&upper)).unwrap();
    assert_eq!(fs::read(view(&mounted).join("keep")).unwrap(), b"k");
    assert_eq!(archived(&upper, None).1.entries, 0);
}

#[test]
fn capabilities_and_user_attributes_are_written_and_those_of_overlay_are_not() {
    let place = Place::new();
    let upper = Upper::create(None, &place.path("step")).unwrap();
    let path = upper.path().join("program");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
    let second = [&[1, 0, 0, 2, 0, 4, 0, 0][..], &[0; 12]].concat();
    // A capability that counts in a namespace whose root is host uid 100000, or our own where no other can be named.
    let root: u32 = if is_host_root() { 100_000 } else { 0 };
    let third = [&[1, 0, 0, 3, 0, 4, 0, 0][..], &[0; 12], &root.to_le_bytes()].concat();
    let flags = rustix::fs::XattrFlags::empty();
    for (name, value) in [
        ("security.capability", &third[..]),
        ("user.kept", b"v"),
        ("user.overlay.origin", b"o"),
    ] {
        rustix::fs::lsetxattr(&path, name, value, flags).unwrap();
    }
    if is_host_root() {
        rustix::fs::lsetxattr(&path, "trusted.overlay.opaque", b"y", flags).unwrap();
    }
    let entry = entries_of(&archived(&upper, None).0).remove(0);
    assert_eq!(entry.mode, 0o4755);
    let expected = BTreeMap::from([
        (b"security.capability".to_vec(), second),
        (b"user.kept".to_vec(), b"v".to_vec()),
    ]);
    assert_eq!(entry.xattrs, expected);
}

#[test]
fn names_that_mean_deletions_and_devices_cannot_be_stored() {
    let place = Place::new();
    let upper = Upper::create(None, &place.path("step")).unwrap();
    let outcome = || {
        diff(
            &upper.path(),
            &mut Vec::new(),
            DiffOptions::default(),
            &none(),
        )
    };
    fs::write(upper.path().join(".wh.x"), "").unwrap();
    assert!(matches!(outcome(), Err(DiffError::ReservedName { .. })));
    fs::remove_file(upper.path().join(".wh.x")).unwrap();
    let _device = Device::zero(upper.path().join("zero"));
    assert!(matches!(outcome(), Err(DiffError::Device { .. })));
}

#[test]
fn a_tree_too_deep_for_an_archive_is_an_error_and_can_be_removed() {
    let place = Place::new();
    let upper = Upper::create(None, &place.path("step")).unwrap();
    let flags = tree::directory_flags();
    let mut dir = rustix::fs::openat(CWD, upper.path(), flags, Mode::empty()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&dir, "deep", Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, "deep", flags, Mode::empty()).unwrap();
    }
    let outcome = diff(
        &upper.path(),
        &mut Vec::new(),
        DiffOptions::default(),
        &none(),
    );
    assert!(
        matches!(outcome, Err(DiffError::PathTooLong { .. })),
        "{outcome:?}"
    );
    remove_tree(&upper.path()).unwrap();
}

#[test]
fn the_top_of_the_upper_looks_like_the_view_below() {
    let place = Place::new();
    let base = place.dir("base");
    fs::set_permissions(&base, fs::Permissions::from_mode(0o711)).unwrap();
    std::os::unix::fs::chown(&base, Some(3), Some(4)).unwrap();
    let below = mount(std::slice::from_ref(&base), None).unwrap();
    let upper = Upper::create(Some(below.as_fd()), &place.path("step")).unwrap();
    let mounted = mount(&[base], Some(&upper)).unwrap();
    let metadata = fs::metadata(view(&mounted)).unwrap();
    assert_eq!(
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()),
        (0o711, 3, 4)
    );
}

#[test]
fn mounts_appear_in_no_table_and_go_with_their_descriptor() {
    let place = Place::new();
    let upper = Upper::create(None, &place.path("step")).unwrap();
    let table = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let here = place.path("").display().to_string();
    let mounted = mount(&[base(&place)], Some(&upper)).unwrap();
    assert!(!table().contains(here.trim_end_matches('/')));
    drop(mounted);
    // What was volatile is mounted again by nobody who has not looked after it. Then it can be, when the first mount is gone.
    assert!(mount(&[place.path("base")], Some(&upper)).is_err());
    fs::remove_dir_all(place.path("step/work/work/incompat")).unwrap();
    mount(&[place.path("base")], Some(&upper)).unwrap();
}

#[test]
fn images_without_layers_and_stacks_of_many_layers_are_mounted() {
    let place = Place::new();
    let upper = Upper::create(None, &place.path("scratch")).unwrap();
    let mounted = mount(&[], Some(&upper)).unwrap();
    fs::write(view(&mounted).join("first"), "1").unwrap();
    assert_eq!(listing(&view(&mounted)), "first 644 0:0 \"1\"");
    assert!(matches!(mount(&[], None), Err(MountError::Nothing)));
    let long = "a-long-name-for-a-directory-".repeat(8);
    let lowers: Vec<_> = (0..300)
        .map(|index| {
            let dir = place.dir(&format!("{long}/{index}, with : and \\"));
            fs::write(dir.join(index.to_string()), "").unwrap();
            fs::write(dir.join("top"), index.to_string()).unwrap();
            dir
        })
        .collect();
    let mounted = mount(&lowers, None).unwrap();
    assert_eq!(fs::read(view(&mounted).join("top")).unwrap(), b"299");
    assert_eq!(fs::read_dir(view(&mounted)).unwrap().count(), 301);
    let many: Vec<_> = (0..501).map(|n| place.dir(&format!("many/{n}"))).collect();
    assert!(matches!(
        mount(&many, None),
        Err(MountError::TooManyLayers { n: 501, .. })
    ));
}

#[test]
fn a_layer_that_is_there_twice_counts_where_it_is_on_top() {
    let place = Place::new();
    let (first, second) = (place.dir("1"), place.dir("2"));
    for (dir, text) in [(&first, "1"), (&second, "2")] {
        fs::write(dir.join("both"), text).unwrap();
        fs::write(dir.join(text), "").unwrap();
    }
    let upper = Upper::create(None, &place.path("step")).unwrap();
    let stack = [first.clone(), second.clone(), first.clone()];
    let mounted = mount(&stack, Some(&upper)).unwrap();
    let seen = listing(&view(&mounted));
    assert_eq!(seen, "1 644 0:0 \"\"\n2 644 0:0 \"\"\nboth 644 0:0 \"1\"");
    let mounted = mount(&[first.clone(), first], None).unwrap();
    assert_eq!(fs::read(view(&mounted).join("both")).unwrap(), b"1");
}

#[test]
fn an_opaque_root_hides_all_layers_below() {
    let place = Place::new();
    let above = place.dir("above");
    let marker = Entry::new(".wh..wh..opq", Kind::File);
    unpack_into(&above, &[(marker, Vec::new()), file("only", "o")]).unwrap();
    let upper = Upper::create(None, &place.path("step")).unwrap();
    let mounted = mount(&[base(&place), above], Some(&upper)).unwrap();
    assert_eq!(listing(&view(&mounted)), "only 644 0:0 \"o\"");
}

#[test]
fn kernels_without_the_new_calls_are_served_by_the_old_one() {
    let place = Place::new();
    let upper = Upper::create(None, &place.path("step")).unwrap();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounted = mount_by_string_for_tests(&[base(&place)], Some(&upper)).unwrap();
    fs::write(view(&mounted).join("etc/conf"), "new").unwrap();
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), table);
    drop(mounted);
    assert_eq!(names_of(&archived(&upper, None).0), ["etc", "etc/conf"]);
}
