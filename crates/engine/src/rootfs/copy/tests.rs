//! COPY and ADD, users, access to files, and digests of sources.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink as make_symlink};
use std::path::PathBuf;

use super::*;
use crate::rootfs::content::{ContentDigest, ContentOptions, digest_sources};
use crate::rootfs::select::Ignored;
use crate::rootfs::testing::{Device, Place, archive, file, listing, symlink};
use crate::rootfs::user::{UserError, lookup_owner, lookup_user};

fn options() -> CopyOptions<'static> {
    CopyOptions {
        owner: Owner::Fixed(0, 0),
        mode: None,
        mtime: Mtime::Fixed(0),
        destination: Destination::Any,
        archives: Archives::Copy,
        ignore: None,
        limits: UnpackLimits::default(),
    }
}

fn planned(sources: &[&str]) -> Vec<Source> {
    let sources = sources.iter();
    sources
        .map(|source| Source::new(source, None, &[]).unwrap())
        .collect()
}

struct Case {
    place: Place,
    from: PathBuf,
    to: PathBuf,
}

fn case() -> Case {
    let place = Place::new();
    let (from, to) = (place.dir("from"), place.dir("to"));
    Case { place, from, to }
}

impl Case {
    fn write(&self, path: &str, content: &str) {
        let path = self.from.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn copy(
        &self,
        sources: &[&str],
        dest: &str,
        options: &CopyOptions<'_>,
    ) -> Result<CopyReport, CopyError> {
        let sources = planned(sources);
        let (from, to) = (
            Root::open(&self.from).unwrap(),
            Root::open(&self.to).unwrap(),
        );
        let cancel = CancellationToken::new();
        copy(&from, &sources, &to, Path::new(dest), options, &cancel)
    }

    fn digest(&self, sources: &[&str], ignore: Option<&Ignore<'_>>) -> ContentDigest {
        let sources = planned(sources);
        let options = ContentOptions {
            owner: Owner::Fixed(0, 0),
            mode: None,
            ignore,
            n_threads: 2,
        };
        let root = Root::open(&self.from).unwrap();
        digest_sources(&root, &sources, &options, &CancellationToken::new()).unwrap()
    }
}

#[test]
fn a_directory_gives_its_contents_and_a_file_itself() {
    let case = case();
    case.write("src/a", "A");
    case.write("src/sub/b", "B");
    make_symlink("a", case.from.join("src/link")).unwrap();
    fs::hard_link(case.from.join("src/a"), case.from.join("src/sub/same")).unwrap();
    case.copy(&["src"], "/app/code", &options()).unwrap();
    let time = |path: &str| fs::metadata(case.to.join(path)).unwrap().mtime();
    assert_eq!(
        (time("app"), time("app/code"), time("app/code/sub")),
        (0, 0, 0)
    );
    case.copy(&["src/a"], "/app/renamed", &options()).unwrap();
    case.copy(&["src/a"], "/app/code/sub", &options()).unwrap();
    let directory = CopyOptions {
        destination: Destination::Directory,
        ..options()
    };
    case.copy(&["src/link"], "/new/", &directory).unwrap();
    assert_eq!(
        listing(&case.to),
        "app/ 755 0:0\n\
         app/code/ 755 0:0\n\
         app/code/a 644 0:0 \"A\"\n\
         app/code/link -> a 0:0\n\
         app/code/sub/ 755 0:0\n\
         app/code/sub/a 644 0:0 \"A\"\n\
         app/code/sub/b 644 0:0 \"B\"\n\
         app/code/sub/same 644 0:0 \"A\"\n\
         app/renamed 644 0:0 \"A\"\n\
         new/ 755 0:0\n\
         new/link 644 0:0 \"A\""
    );
    let metadata = fs::metadata(case.to.join("app/code/sub/same")).unwrap();
    assert_eq!((metadata.nlink(), metadata.mtime()), (2, 0));
}

#[test]
fn owner_mode_and_attributes_are_as_asked() {
    let case = case();
    case.write("d/f", "x");
    fs::set_permissions(case.from.join("d"), fs::Permissions::from_mode(0o750)).unwrap();
    std::os::unix::fs::chown(case.from.join("d/f"), Some(7), Some(8)).unwrap();
    fs::set_permissions(case.from.join("d/f"), fs::Permissions::from_mode(0o4755)).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(case.from.join("d/f"), "user.note", b"n", flags).unwrap();
    let keep = CopyOptions {
        owner: Owner::FromSource,
        ..options()
    };
    case.copy(&["d"], "/kept", &keep).unwrap();
    let chmod = Chmod::parse("604").unwrap();
    let given = CopyOptions {
        owner: Owner::Fixed(1, 2),
        mode: Some(&chmod),
        ..options()
    };
    case.copy(&["d"], "/x/given", &given).unwrap();
    assert_eq!(
        listing(&case.to),
        "kept/ 755 0:0\n\
         kept/f 4755 7:8 \"x\"\n\
         x/ 604 1:2\n\
         x/given/ 604 1:2\n\
         x/given/f 604 1:2 \"x\""
    );
    let note = crate::rootfs::testing::xattr(&case.to.join("kept/f"), "user.note");
    assert_eq!(note.unwrap(), b"n");
}

#[test]
fn a_directory_that_was_there_keeps_its_mode_and_those_below_take_the_sources() {
    let case = case();
    case.write("d/sub/f", "x");
    fs::create_dir_all(case.to.join("d/sub")).unwrap();
    for (path, mode) in [("d", 0o700), ("d/sub", 0o700)] {
        fs::set_permissions(case.to.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    case.copy(&["d"], "/d", &options()).unwrap();
    assert_eq!(
        listing(&case.to),
        "d/ 700 0:0\nd/sub/ 755 0:0\nd/sub/f 644 0:0 \"x\""
    );
}

#[test]
fn wildcards_match_by_component_and_may_match_nothing() {
    let case = case();
    for path in [
        "a.txt",
        "b.txt",
        "c.md",
        "one/x.rs",
        "two/x.rs",
        "two/deep/x.rs",
    ] {
        case.write(path, path);
    }
    make_symlink("one", case.from.join("zero")).unwrap();
    let into = CopyOptions {
        destination: Destination::Directory,
        ..options()
    };
    let report = case.copy(&["*.txt", "*/x.rs"], "/out", &into).unwrap();
    assert_eq!(report.n_sources, 4);
    let names: Vec<_> = listing(&case.to).lines().map(str::to_owned).collect();
    assert_eq!(
        names,
        [
            "out/ 755 0:0",
            "out/a.txt 644 0:0 \"a.txt\"",
            "out/b.txt 644 0:0 \"b.txt\"",
            "out/x.rs 644 0:0 \"two/x.rs\""
        ]
    );
    assert_eq!(
        case.copy(&["*.none"], "/out", &options())
            .unwrap()
            .n_sources,
        0
    );
    let missing = case.copy(&["none"], "/out", &options());
    assert!(matches!(
        missing,
        Err(CopyError::Select(SelectError::NotFound(_)))
    ));
}

#[test]
fn d10_destinations_are_resolved_inside_and_nothing_below_them_is_followed() {
    let case = case();
    case.write("f", "x");
    case.write("tree/lib/f", "x");
    let canary = case.place.canary();
    make_symlink(&canary, case.to.join("absolute")).unwrap();
    make_symlink("../../canary", case.to.join("up")).unwrap();
    make_symlink("real", case.to.join("lib")).unwrap();
    fs::create_dir(case.to.join("real")).unwrap();
    let directory = CopyOptions {
        destination: Destination::Directory,
        ..options()
    };
    case.copy(&["f"], "/absolute/", &directory).unwrap();
    case.copy(&["f"], "/up/../up/", &directory).unwrap();
    case.copy(&["f"], "/lib", &options()).unwrap();
    let inside = case.to.join(canary.strip_prefix("/").unwrap());
    for path in [
        inside.join("f"),
        case.to.join("canary/f"),
        case.to.join("real/f"),
    ] {
        assert_eq!(fs::read(path).unwrap(), b"x");
    }
    let outcome = case.copy(&["tree"], "/", &options());
    assert!(
        matches!(outcome, Err(CopyError::NotADirectory { .. })),
        "{outcome:?}"
    );
    let outcome = case.copy(&["f"], "/real/f/x", &options());
    assert!(
        matches!(outcome, Err(CopyError::Destination(..))),
        "{outcome:?}"
    );
    fs::create_dir(case.to.join("real/g")).unwrap();
    case.write("files/g", "a file over a directory");
    let outcome = case.copy(&["files"], "/real", &options());
    assert!(
        matches!(outcome, Err(CopyError::IsADirectory { .. })),
        "{outcome:?}"
    );
}

#[test]
fn p21_special_files_are_replaced_not_written_to_and_never_read() {
    let case = case();
    case.write("d/pipe", "content");
    let pipe = case.to.join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RUSR).unwrap();
    case.copy(&["d"], "/", &options()).unwrap();
    assert_eq!(fs::read(&pipe).unwrap(), b"content");
    let _device = Device::zero(case.from.join("d/zero"));
    let outcome = case.copy(&["d"], "/", &options());
    assert!(matches!(outcome, Err(CopyError::Special { .. })));
}

#[test]
fn d04_what_is_ignored_does_not_exist_by_any_path() {
    let case = case();
    case.write("secret/key", "k");
    case.write("secret/public", "p");
    case.write("app/main", "m");
    case.write("app/.env", "e");
    make_symlink("secret/key", case.from.join("innocent")).unwrap();
    let ignore = |path: &Path, _: bool| match path.to_str().unwrap() {
        "secret" => Ignored::Descend,
        "secret/public" => Ignored::Keep,
        path if path.starts_with("secret") || path == "app/.env" => Ignored::Skip,
        _ => Ignored::Keep,
    };
    let ignoring = CopyOptions {
        ignore: Some(&ignore),
        ..options()
    };
    for source in ["secret/key", "./app/../secret/key", "innocent", "app/.env"] {
        let outcome = case.copy(&[source], "/x", &ignoring);
        let error = outcome.unwrap_err();
        let is_ignored = matches!(error, CopyError::Select(SelectError::Ignored(_)));
        assert!(is_ignored, "{source}: {error:?}");
    }
    case.copy(&["."], "/all", &ignoring).unwrap();
    case.copy(&["app/.*", "app/*"], "/globbed", &ignoring)
        .unwrap();
    assert_eq!(
        listing(&case.to),
        "all/ 755 0:0\n\
         all/app/ 755 0:0\n\
         all/app/main 644 0:0 \"m\"\n\
         all/innocent -> secret/key 0:0\n\
         all/secret/ 755 0:0\n\
         all/secret/public 644 0:0 \"p\"\n\
         globbed 644 0:0 \"m\""
    );
    let before = case.digest(&["."], Some(&ignore));
    case.write("secret/key", "another");
    assert_eq!(case.digest(&["."], Some(&ignore)), before);
}

#[test]
fn g13_links_out_of_a_context_are_copied_as_links_and_never_read() {
    let case = case();
    let canary = case.place.canary();
    make_symlink(canary.join("secret"), case.from.join("link")).unwrap();
    make_symlink("..", case.from.join("up")).unwrap();
    case.copy(&["."], "/ctx", &options()).unwrap();
    let target = fs::read_link(case.to.join("ctx/link")).unwrap();
    assert_eq!(target, canary.join("secret"));
    let outcome = case.copy(&["link"], "/x", &options());
    assert!(
        matches!(outcome, Err(CopyError::Select(SelectError::Dangling(_)))),
        "{outcome:?}"
    );
    let root = Root::open(&case.from).unwrap();
    let error = root.read_file(Path::new("link"), 100).unwrap_err();
    let text = error.to_string();
    assert_eq!(
        text,
        "\"link\" is a symbolic link to something that is not in this tree"
    );
}

#[test]
fn add_unpacks_archives_and_copies_everything_else() {
    let case = case();
    let tar = archive(&[file("x/one", "1"), symlink("x/link", "one")]);
    fs::write(case.from.join("plain.tar"), &tar).unwrap();
    let mut gzip =
        oci::layer::LayerWriter::new(Vec::new(), oci::layer::Compression::DEFAULT_GZIP, 1).unwrap();
    gzip.write_all(&tar).unwrap();
    fs::write(case.from.join("packed.tgz"), gzip.finish().unwrap().1).unwrap();
    let mut gzip =
        oci::layer::LayerWriter::new(Vec::new(), oci::layer::Compression::DEFAULT_GZIP, 1).unwrap();
    gzip.write_all(b"just text").unwrap();
    fs::write(case.from.join("text.gz"), gzip.finish().unwrap().1).unwrap();
    fs::write(case.from.join("a.tar.xz"), b"\xfd7zXZ\0\0\0\0\0").unwrap();
    fs::write(case.from.join("empty.tar.gz"), b"").unwrap();
    let add = CopyOptions {
        archives: Archives::Unpack(None),
        ..options()
    };
    let sources = [
        "plain.tar",
        "packed.tgz",
        "text.gz",
        "a.tar.xz",
        "empty.tar.gz",
    ];
    for (source, dest) in sources.iter().zip(["/a", "/b", "/c", "/d", "/e"]) {
        case.copy(&[source], dest, &add).unwrap();
    }
    for dest in ["a", "b"] {
        assert_eq!(
            listing(&case.to.join(dest)),
            "x/ 755 0:0\nx/link -> one 0:0\nx/one 644 0:0 \"1\""
        );
    }
    for dest in ["c", "d", "e"] {
        assert!(case.to.join(dest).is_file(), "{dest}");
    }
}

#[test]
fn large_files_are_copied_whole() {
    let case = case();
    let content: String = (0..400_000)
        .map(|n| char::from(b'a' + n.to_string().as_bytes()[0] % 26))
        .collect();
    case.write("large", &content);
    let report = case.copy(&["large"], "/large", &options()).unwrap();
    assert_eq!(report.content_bytes, 400_000);
    assert!(fs::read_to_string(case.to.join("large")).unwrap() == content);
}

#[test]
fn digests_follow_content_names_and_modes_and_nothing_else() {
    let case = case();
    case.write("d/a", "1");
    case.write("d/b", "2");
    let before = case.digest(&["d"], None);
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec {
            tv_sec: 1,
            tv_nsec: 2,
        },
        last_modification: rustix::fs::Timespec {
            tv_sec: 3,
            tv_nsec: 4,
        },
    };
    let flags = rustix::fs::AtFlags::empty();
    rustix::fs::utimensat(rustix::fs::CWD, case.from.join("d/a"), &times, flags).unwrap();
    std::os::unix::fs::chown(case.from.join("d/a"), Some(9), Some(9)).unwrap();
    assert_eq!(case.digest(&["d"], None), before);
    case.write("d/b", "changed");
    let after = case.digest(&["d"], None);
    let changed: Vec<_> = before
        .files
        .iter()
        .zip(&after.files)
        .filter(|(old, new)| old != new)
        .map(|(old, _)| old.0.display().to_string())
        .collect();
    assert_eq!(changed, ["d/b"]);
    assert_ne!(after.digest, before.digest);
    case.write("d/b", "2");
    assert_eq!(case.digest(&["d"], None).digest, before.digest);
    fs::set_permissions(case.from.join("d/a"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_ne!(case.digest(&["d"], None).digest, before.digest);
    fs::set_permissions(case.from.join("d/a"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::rename(case.from.join("d"), case.from.join("other")).unwrap();
    assert_eq!(case.digest(&["other"], None).digest, before.digest);
    fs::rename(case.from.join("other/a"), case.from.join("other/c")).unwrap();
    assert_ne!(case.digest(&["other"], None).digest, before.digest);
}

#[test]
fn users_come_from_the_image_and_odd_ones_are_refused() {
    let case = case();
    case.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1001::/home/node:/bin/sh\nbig:x:70000:0:::\nshort:x\n");
    case.write(
        "etc/group",
        "root:x:0:\nnode:x:1001:\ndocker:x:999:node,other\nwheel:x:10:node\n",
    );
    let root = Root::open(&case.from).unwrap();
    let user =
        |spec: &str| lookup_user(&root, spec).map(|ids| (ids.uid, ids.gid, ids.supplementary));
    assert_eq!(user("").unwrap(), (0, 0, vec![]));
    assert_eq!(user("node").unwrap(), (1000, 1001, vec![10, 999]));
    assert_eq!(user("1000").unwrap(), (1000, 1001, vec![10, 999]));
    assert_eq!(user("node:docker").unwrap(), (1000, 999, vec![]));
    assert_eq!(user("4242").unwrap(), (4242, 0, vec![]));
    assert_eq!(user("5:6").unwrap(), (5, 6, vec![]));
    assert_eq!(
        lookup_user(&root, "node").unwrap().home.as_deref(),
        Some("/home/node")
    );
    assert_eq!(lookup_owner(&root, "55").unwrap(), (55, 55));
    assert_eq!(lookup_owner(&root, "node").unwrap(), (1000, 1001));
    assert_eq!(lookup_owner(&root, "node:0").unwrap(), (1000, 0));
    for spec in [
        "4294967296:0",
        "4294967295",
        "2147483648",
        "-1",
        "0x0",
        " 0",
        "65536",
        "root\n",
        "big",
        "nobody",
        "0:nogroup",
        ":",
        "root:",
        ":0",
        "root:0:0",
        "short",
        "\u{660}",
    ] {
        assert!(user(spec).is_err(), "{spec:?}");
        assert!(lookup_owner(&root, spec).is_err(), "{spec:?}");
    }
}

#[test]
fn p15_accounts_that_are_no_regular_files_are_errors_at_once() {
    let case = case();
    fs::create_dir(case.from.join("etc")).unwrap();
    let path = case.from.join("etc/passwd");
    let root = Root::open(&case.from).unwrap();
    assert!(matches!(
        lookup_user(&root, "x"),
        Err(UserError::UnknownUser(_))
    ));
    assert_eq!(lookup_user(&root, "12").unwrap().uid, 12);
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR).unwrap();
    assert!(matches!(lookup_user(&root, "x"), Err(UserError::Read(_))));
    fs::remove_file(&path).unwrap();
    make_symlink("/dev/zero", &path).unwrap();
    assert!(matches!(lookup_user(&root, "x"), Err(UserError::Read(_))));
    fs::remove_file(&path).unwrap();
    let sparse = fs::File::create(&path).unwrap();
    sparse.set_len(10 << 30).unwrap();
    assert!(matches!(
        lookup_user(&root, "x"),
        Err(UserError::Read(RootError::TooLarge { .. }))
    ));
    fs::write(&path, "a".repeat(1 << 20) + ":x:1:1:::\nx:x:5:5::/h:\n").unwrap();
    assert_eq!(lookup_user(&root, "x").unwrap().uid, 5);
}

#[test]
fn p18_directories_are_made_inside_whatever_the_links_say() {
    let case = case();
    let root = Root::open(&case.from).unwrap();
    make_symlink(case.place.canary(), case.from.join("a")).unwrap();
    make_symlink("../../../canary", case.from.join("b")).unwrap();
    make_symlink("c", case.from.join("c")).unwrap();
    for path in ["/a/b", "b/x", "b/../../y"] {
        assert!(root.create_dir_all(Path::new(path), 0o755, (1, 2)).unwrap());
        let metadata = root.stat(Path::new(path)).unwrap().unwrap();
        assert_eq!((metadata.mode, metadata.uid, metadata.gid), (0o755, 1, 2));
        assert!(!root.create_dir_all(Path::new(path), 0o700, (0, 0)).unwrap());
    }
    assert!(case.from.join("canary/x").is_dir());
    assert!(case.from.join("y").is_dir());
    assert!(
        root.create_dir_all(Path::new("c/d"), 0o755, (0, 0))
            .is_err()
    );
    case.write("file", "f");
    assert!(
        root.create_dir_all(Path::new("file/d"), 0o755, (0, 0))
            .is_err()
    );
    root.remove_all(Path::new("/a")).unwrap();
    root.remove_all(Path::new("/not/there")).unwrap();
    assert!(root.remove_all(Path::new("/")).is_err());
    assert_eq!(root.lstat(Path::new("a")).unwrap(), None);
}
