//! The rows T-01 to T-19 of the test plan for hostile archives, and what honest ones expect.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use oci::tar::{Entry, Kind};

use super::*;
use crate::rootfs::remove::remove_tree;
use crate::rootfs::testing::*;

struct Broken;
impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the line is dead"))
    }
}

struct CancelSoon(CancellationToken, usize);
impl Read for CancelSoon {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 += 1;
        if self.1 == 20 {
            self.0.cancel();
        }
        buffer.fill(0);
        Ok(buffer.len())
    }
}

type Outcome = Result<UnpackReport, UnpackError>;

fn unpacked(entries: &[(Entry, Vec<u8>)]) -> (Place, PathBuf, Outcome) {
    let place = Place::new();
    let dest = place.dir("dest");
    let outcome = unpack_into(&dest, entries);
    (place, dest, outcome)
}

fn bare(path: &str, kind: Kind) -> (Entry, Vec<u8>) {
    (Entry::new(path, kind), Vec::new())
}

#[test]
fn an_honest_layer_comes_out_as_it_went_in() {
    let mut owned = file("etc/passwd", "root");
    (owned.0.uid, owned.0.gid, owned.0.mtime) = (7, 8, 1_000_000_000);
    let entries = [
        directory("etc/", 0o750),
        owned,
        symlink("etc/link", "passwd"),
        link(Kind::HardLink, "etc/second", "etc/passwd"),
        bare("run/pipe", Kind::Fifo),
        file("./usr//share/./doc", "text"),
        file("/absolute", "inside"),
    ];
    let (_place, dest, outcome) = unpacked(&entries);
    let report = outcome.unwrap();
    assert_eq!(
        listing(&dest),
        "absolute 644 0:0 \"inside\"\n\
         etc/ 750 0:0\n\
         etc/link -> passwd 0:0\n\
         etc/passwd 644 7:8 \"root\"\n\
         etc/second 644 7:8 \"root\"\n\
         run/ 755 0:0\n\
         run/pipe pipe 0 0:0\n\
         usr/ 755 0:0\n\
         usr/share/ 755 0:0\n\
         usr/share/doc 644 0:0 \"text\""
    );
    let mtime = |path: &str| dest.join(path).symlink_metadata().unwrap().mtime();
    assert_eq!(mtime("etc/passwd"), 1_000_000_000);
    assert_eq!(
        (mtime("etc"), mtime("usr/share"), mtime("etc/link")),
        (0, 0, 0)
    );
    assert_eq!(fs::metadata(dest.join("etc/second")).unwrap().nlink(), 2);
    assert_eq!(report.diff_id, Digest::sha256(&archive(&entries)));
    assert_eq!((report.entries, report.content_bytes), (7, 14));
}

#[test]
fn the_digest_covers_what_follows_the_end_marker() {
    let place = Place::new();
    let mut bytes = archive(&[file("a", "a")]);
    bytes.extend([0; 9000]);
    let dest = place.dir("dest");
    let limits = UnpackLimits::default();
    let report = unpack(&bytes[..], &dest, &limits, &CancellationToken::new()).unwrap();
    assert_eq!(report.diff_id, Digest::sha256(&bytes));
    assert_eq!(report.archive_bytes, bytes.len() as u64);
}

#[test]
fn t01_names_that_lead_out_are_refused_and_absolute_ones_stay_inside() {
    let deep = "../".repeat(1350) + "x";
    for name in ["../x", "a/../../x", "./../x", "..", "a/..", &deep[..4000]] {
        let (_place, _, outcome) = unpacked(&[file(name.trim_end_matches('/'), "x")]);
        assert!(
            matches!(outcome, Err(UnpackError::Escapes { .. })),
            "{name}"
        );
    }
}

#[test]
fn t02_a_link_in_a_path_is_followed_inside_the_root_only() {
    let place = Place::new();
    let dest = place.dir("dest");
    let canary = place.canary();
    let inside = |path: &str| file(&format!("pwn/{path}"), "x");
    let outcome = unpack_into(&dest, &[symlink("pwn", &canary), inside("secret")]);
    assert!(matches!(outcome, Err(UnpackError::NotADirectory { .. })));
    let here = canary.strip_prefix("/").unwrap().to_str().unwrap();
    for (index, entry) in [
        inside("secret"),
        bare("pwn/.wh.secret", Kind::File),
        bare("pwn/.wh..wh..opq", Kind::File),
        directory("pwn/sub", 0o777),
        link(Kind::HardLink, "hard", "pwn/../secret"),
        link(Kind::HardLink, "hard", canary.join("secret")),
    ]
    .into_iter()
    .enumerate()
    {
        let dest = place.dir(&format!("dest{index}"));
        // The place exists inside, too: everything must land there.
        let outcome = unpack_into(
            &dest,
            &[directory(here, 0o755), symlink("pwn", &canary), entry],
        );
        let is_link = index >= 4;
        assert_eq!(outcome.is_err(), is_link, "{index}: {outcome:?}");
    }
    assert!(place.path("dest0").join(here).join("secret").exists());
}

#[test]
fn t03_hard_links_reach_files_of_this_layer_only() {
    let place = Place::new();
    let refused = |name: &str, entries: &[(Entry, Vec<u8>)]| {
        let outcome = unpack_into(&place.dir(name), entries);
        assert!(
            matches!(outcome, Err(UnpackError::HardLink { .. })),
            "{name}: {outcome:?}"
        );
    };
    let hard = |path: &str, target: &str| link(Kind::HardLink, path, target);
    let secret = place.canary().join("secret");
    let secret = secret.to_str().unwrap();
    refused("outside", &[hard("x", secret)]);
    refused("up", &[hard("x", "../canary/secret")]);
    refused("cwd", &[hard("x", "Cargo.toml")]);
    refused("itself", &[hard("x", "x")]);
    refused("later", &[hard("x", "y"), file("y", "y")]);
    refused("directory", &[directory("d", 0o755), hard("x", "d")]);
    refused("root", &[hard("x", "/")]);
    refused(
        "whiteout",
        &[bare(".wh.gone", Kind::File), hard("x", "gone")],
    );
    let dest = place.dir("link");
    unpack_into(&dest, &[symlink("out", secret), hard("x", "out")]).unwrap();
    assert_eq!(
        fs::read_link(dest.join("x")).unwrap(),
        PathBuf::from(secret)
    );
    assert_eq!(fs::metadata(secret).unwrap().nlink(), 1);
    let dest = place.dir("again");
    unpack_into(&dest, &[file("a", "a"), hard("b", "a"), hard("b", "a")]).unwrap();
    assert_eq!(fs::read(dest.join("b")).unwrap(), b"a");
}

#[test]
fn t04_the_root_is_never_replaced() {
    for path in [".", "/", "./", "./."] {
        for entry in [
            symlink(path, "/tmp"),
            bare(path, Kind::Fifo),
            link(Kind::HardLink, path, "x"),
            bare(path, Kind::CharDevice),
        ] {
            let (_place, dest, outcome) = unpacked(&[entry]);
            assert!(
                matches!(outcome, Err(UnpackError::ReplacesRoot { .. })),
                "{path}"
            );
            assert!(dest.symlink_metadata().unwrap().is_dir());
        }
    }
    let (_place, dest, outcome) = unpacked(&[directory("./", 0), file("x", "x")]);
    outcome.unwrap();
    assert_eq!(fs::metadata(&dest).unwrap().mode() & 0o7777, 0);
}

#[test]
fn t06_a_directory_does_not_change_what_a_link_points_to() {
    let place = Place::new();
    let dest = place.dir("dest");
    let entries = [symlink("foo", place.canary()), directory("foo", 0o777)];
    unpack_into(&dest, &entries).unwrap();
    assert_eq!(listing(&dest), "foo/ 777 0:0");
}

#[test]
fn t07_links_make_no_directories_outside() {
    let place = Place::new();
    let dest = place.dir("dest");
    let entries = [symlink("a", place.canary()), file("a/b/c/d", "x")];
    assert!(unpack_into(&dest, &entries).is_err());
    let entries = [symlink("b", "../../.."), file("b/canary/new/file", "x")];
    unpack_into(&dest, &entries).unwrap();
    assert!(dest.join("canary/new/file").exists());
}

#[test]
fn t08_metadata_is_bounded_before_it_is_read() {
    let mut header = vec![0u8; 512];
    header[..4].copy_from_slice(b"././");
    header[124..136].copy_from_slice(b"77777777777\0");
    header[148..156].fill(b' ');
    for flag in b"LKxg" {
        header[156] = *flag;
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let endless = header.chain(std::io::repeat(0));
        let place = Place::new();
        let dest = place.dir("dest");
        let limits = UnpackLimits::default();
        let outcome = unpack(endless, &dest, &limits, &CancellationToken::new());
        let error = outcome.unwrap_err();
        let is_too_large = matches!(error, UnpackError::Archive(ReadError::MetadataTooLarge(_)));
        assert!(is_too_large, "{error:?}");
    }
}

#[test]
fn t10_whiteouts_are_for_the_layers_below() {
    let (_place, dest, outcome) = unpacked(&[
        bare(".wh.gone", Kind::File),
        file("kept", "here"),
        bare(".wh.kept", Kind::File),
        directory("both", 0o755),
        file("both/new", "n"),
        bare(".wh.both", Kind::File),
        bare(".wh.after", Kind::File),
        directory("after", 0o755),
        bare(".wh.implied", Kind::File),
        file("implied/file", "i"),
        bare("opaque/.wh..wh..opq", Kind::File),
        file("opaque/sibling", "s"),
        bare(".wh..wh.plnk/1.2", Kind::File),
        bare(".wh..wh.aufs", Kind::File),
        bare(".wh...hidden", Kind::File),
    ]);
    outcome.unwrap();
    assert_eq!(
        listing(&dest),
        "..hidden whiteout\n\
         after/ 755 0:0\n\
         both/ 755 0:0\n\
         both/new 644 0:0 \"n\"\n\
         gone whiteout\n\
         implied/ 755 0:0\n\
         implied/file 644 0:0 \"i\"\n\
         kept 644 0:0 \"here\"\n\
         opaque/ 755 0:0\n\
         opaque/sibling 644 0:0 \"s\""
    );
    for (path, expected) in [
        ("both", 1),
        ("after", 1),
        ("implied", 1),
        ("opaque", 1),
        ("kept", 0),
    ] {
        let value = xattr(&dest.join(path), "user.overlay.opaque");
        assert_eq!(value.is_some(), expected == 1, "{path}");
    }
}

#[test]
fn t10_malformed_whiteouts_are_refused() {
    for path in [
        ".wh.",
        ".wh..",
        ".wh...",
        "a/.wh.",
        ".wh.a/b",
        "x/.wh.y/.wh..wh..opq",
    ] {
        let (_place, _, outcome) = unpacked(&[bare(path, Kind::File)]);
        assert!(
            matches!(outcome, Err(UnpackError::Whiteout { .. })),
            "{path}: {outcome:?}"
        );
    }
    let (_place, _, outcome) = unpacked(&[bare("device", Kind::CharDevice)]);
    assert!(matches!(outcome, Err(UnpackError::Device { .. })));
}

#[test]
fn t11_attributes_of_overlay_and_of_security_modules_are_dropped() {
    let capability = [&[1, 0, 0, 2, 0, 4, 0, 0][..], &[0; 12]].concat();
    let attributes: &[(&str, &[u8])] = &[
        ("user.kept", b"value"),
        ("user.overlay.opaque", b"y"),
        ("user.overlay.redirect", b"/etc"),
        ("trusted.overlay.redirect", b"/etc"),
        ("security.selinux", b"x"),
        ("security.capability", &capability),
        ("system.posix_acl_access", b"garbage"),
    ];
    let (_place, dest, outcome) = unpacked(&[
        with_xattrs(file("file", "f"), attributes),
        with_xattrs(directory("dir", 0o755), &attributes[..5]),
    ]);
    outcome.unwrap();
    assert_eq!(xattr(&dest.join("file"), "user.kept").unwrap(), b"value");
    assert_eq!(
        xattr(&dest.join("file"), "security.capability").unwrap(),
        capability
    );
    for path in ["file", "dir"] {
        for (name, _) in &attributes[1..5] {
            assert_eq!(xattr(&dest.join(path), name), None, "{path} {name}");
        }
    }
}

#[test]
fn t12_devices_are_skipped_below_dev_and_refused_elsewhere() {
    let (_place, dest, outcome) = unpacked(&[
        directory("dev", 0o755),
        bare("dev/null", Kind::CharDevice),
        bare("./dev/sda", Kind::BlockDevice),
    ]);
    assert_eq!(outcome.unwrap().n_devices_skipped, 2);
    assert_eq!(listing(&dest), "dev/ 755 0:0");
    for path in ["sda", "etc/dev/null", "devices/x"] {
        let (_place, _, outcome) = unpacked(&[bare(path, Kind::BlockDevice)]);
        assert!(matches!(outcome, Err(UnpackError::Device { .. })), "{path}");
    }
}

#[test]
fn t13_setuid_survives_the_change_of_owner_and_modes_are_masked() {
    let mut sudo = file("sudo", "s");
    (sudo.0.mode, sudo.0.uid, sudo.0.gid) = (0o6755, 5, 6);
    let (_place, dest, outcome) = unpacked(&[sudo, directory("tmp", 0o1777)]);
    outcome.unwrap();
    assert_eq!(listing(&dest), "sudo 6755 5:6 \"s\"\ntmp/ 1777 0:0");
}

#[test]
fn t14_what_comes_last_under_a_name_wins() {
    let (_place, dest, outcome) = unpacked(&[
        directory("a", 0o755),
        file("a/b/c", "1"),
        file("a", "file"),
        file("x", "1"),
        symlink("x", "/nowhere"),
        file("x", "2"),
        directory("x", 0o700),
        file("x/y", "3"),
        file("N\u{303}\n\u{1b}[31m", "odd"),
    ]);
    outcome.unwrap();
    let lines = listing(&dest);
    assert!(
        lines.contains("a 644 0:0 \"file\"\nx/ 700 0:0\nx/y 644 0:0 \"3\""),
        "{lines}"
    );
    let (_place, _, outcome) = unpacked(&[file("f", "f"), file("f/child", "c")]);
    assert!(matches!(outcome, Err(UnpackError::NotADirectory { .. })));
    let (_place, _, outcome) = unpacked(&[file(&"n".repeat(256), "long")]);
    assert!(matches!(outcome, Err(UnpackError::Io { .. })));
}

#[test]
fn t15_entries_and_bytes_are_counted() {
    let place = Place::new();
    let archive = archive(&[file("a", "12345"), file("b", "12345")]);
    let none = CancellationToken::new();
    let limited = |limits: UnpackLimits| unpack(&archive[..], &place.dir("dest"), &limits, &none);
    let limits = UnpackLimits::default();
    let few = UnpackLimits {
        entries: 1,
        ..limits
    };
    assert!(matches!(
        limited(few),
        Err(UnpackError::TooManyEntries { max: 1 })
    ));
    let small = UnpackLimits {
        content_bytes: 9,
        ..limits
    };
    assert!(matches!(
        limited(small),
        Err(UnpackError::TooLarge { max_bytes: 9 })
    ));
}

#[test]
fn t16_truncated_archives_and_failing_streams_are_errors() {
    let place = Place::new();
    let whole = archive(&[file("a", &"x".repeat(2000))]);
    let limits = UnpackLimits::default();
    let none = CancellationToken::new();
    for n in [100, 512, 600, 2500] {
        let outcome = unpack(&whole[..n], &place.dir(&n.to_string()), &limits, &none);
        assert!(
            matches!(outcome, Err(UnpackError::Archive(ReadError::Truncated))),
            "{outcome:?}"
        );
    }
    for n in [0, 512, 1000] {
        let stream = (&whole[..n]).chain(Broken);
        let outcome = unpack(stream, &place.dir(&format!("b{n}")), &limits, &none);
        assert!(
            matches!(outcome, Err(UnpackError::Read(_))),
            "{n}: {outcome:?}"
        );
    }
}

#[test]
fn t19_odd_times_are_taken_or_clamped_and_unmapped_owners_named() {
    for mtime in [-1, -(1 << 40), 1 << 40, i64::MAX, i64::MIN] {
        let (mut entry, content) = file("x", "x");
        entry.mtime = mtime;
        let (_place, _, outcome) = unpacked(&[(entry, content)]);
        assert!(outcome.is_ok(), "{mtime}: {outcome:?}");
    }
}

#[test]
fn cancelling_ends_an_endless_archive() {
    let place = Place::new();
    let cancel = CancellationToken::new();
    let mut big = Entry::new("big", Kind::File);
    big.size = 1 << 40;
    let mut writer = oci::tar::Writer::new(Vec::new());
    // Writes the header, then fails for want of content.
    let _ = writer.append(&big, &mut io::empty());
    let header = {
        let bytes = archive(&[file("big", "")]);
        let mut header = bytes[..512].to_vec();
        header[124..136].copy_from_slice(b"77777777777\0");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header
    };
    let stream = header.chain(CancelSoon(cancel.clone(), 0));
    let outcome = unpack(
        stream,
        &place.dir("dest"),
        &UnpackLimits::default(),
        &cancel,
    );
    assert!(matches!(outcome, Err(UnpackError::Cancelled)));
}

#[test]
fn t18_deep_trees_and_forbidden_directories_are_removed() {
    let place = Place::new();
    let top = place.dir("top");
    let mut dir = rustix::fs::openat(CWD, &top, tree::directory_flags(), Mode::empty()).unwrap();
    for _ in 0..5_000 {
        rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, "d", tree::directory_flags(), Mode::empty()).unwrap();
    }
    fs::create_dir_all(top.join("closed/inner")).unwrap();
    fs::write(top.join("closed/inner/file"), "x").unwrap();
    fs::write(top.join(".removed-1"), "in the way").unwrap();
    std::os::unix::fs::symlink(place.canary(), top.join("closed/link")).unwrap();
    fs::set_permissions(top.join("closed"), fs::Permissions::from_mode(0o0)).unwrap();
    remove_tree(&top).unwrap();
    assert!(!top.exists());
    remove_tree(&top).unwrap();
}

#[test]
fn archives_for_add_are_read_as_docker_reads_them() {
    let place = Place::new();
    let dest = place.dir("dest");
    let flags = tree::directory_flags();
    let open = rustix::fs::openat(CWD, &dest, flags, Mode::empty()).unwrap();
    let mut again = link(Kind::HardLink, "a/same", "a/../a/f");
    (again.0.mode, again.0.uid, again.0.gid, again.0.mtime) = (0o4711, 3, 4, 5);
    let entries = [
        file("a/f", "x"),
        file("a/../b", "y"),
        file("/../c", "z"),
        again,
    ];
    let mut bytes = archive(&entries);
    bytes.extend_from_slice(b"what follows the end");
    let limits = UnpackLimits::default();
    let options = ExtractOptions::default();
    extract(
        &bytes[..],
        open,
        options,
        &limits,
        &CancellationToken::new(),
    )
    .unwrap();
    assert_eq!(
        listing(&dest),
        "a/ 755 0:0\na/f 4711 3:4 \"x\"\na/same 4711 3:4 \"x\"\nb 644 0:0 \"y\"\nc 644 0:0 \"z\""
    );
    assert_eq!(fs::metadata(dest.join("a/f")).unwrap().mtime(), 5);
}

#[test]
fn archives_for_add_hold_no_deletions_and_obey_the_options() {
    let place = Place::new();
    let dest = place.dir("dest");
    let open = || {
        let flags = tree::directory_flags();
        rustix::fs::openat(CWD, &dest, flags, Mode::empty()).unwrap()
    };
    let options = ExtractOptions {
        owner: Some((3, 4)),
        ..ExtractOptions::default()
    };
    let limits = UnpackLimits::default();
    let none = CancellationToken::new();
    let bytes = archive(&[
        directory("./", 0o700),
        file("d/f", "x"),
        symlink("l", "d"),
        bare("./dev/console", Kind::CharDevice),
    ]);
    let report = extract(&bytes[..], open(), options, &limits, &none).unwrap();
    assert_eq!(listing(&dest), "d/ 755 0:0\nd/f 644 3:4 \"x\"\nl -> d 3:4");
    assert_eq!(report.devices_skipped, ["dev/console"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dest), 0o755);
    for name in [".wh.d", "d/.wh..wh..opq", ".wh.d/f"] {
        let bytes = archive(&[bare(name, Kind::File)]);
        let outcome = extract(&bytes[..], open(), options, &limits, &none);
        assert!(matches!(outcome, Err(UnpackError::ReservedName { .. })));
    }
    let bytes = archive(&[bare("disk", Kind::BlockDevice)]);
    let outcome = extract(&bytes[..], open(), options, &limits, &none);
    assert!(matches!(outcome, Err(UnpackError::Device { .. })));
    for name in ["../x", "a/../../x", "./../x", ".."] {
        let bytes = archive(&[file(name, "x")]);
        let outcome = extract(&bytes[..], open(), options, &limits, &none);
        assert!(
            matches!(outcome, Err(UnpackError::Escapes { .. })),
            "{name}: {outcome:?}"
        );
        let bytes = archive(&[link(Kind::HardLink, "h", name)]);
        let outcome = extract(&bytes[..], open(), options, &limits, &none);
        assert!(matches!(outcome, Err(UnpackError::HardLink { .. })));
    }
}
