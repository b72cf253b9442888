//! What the flags of COPY and ADD do, and where files end up, as `BuildKit` has it.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink as make_symlink};
use std::path::PathBuf;

use super::*;
use crate::rootfs::content::{ContentOptions, digest_sources};
use crate::rootfs::testing::{Place, archive, file, listing, symlink};

struct Bench {
    _place: Place,
    from: PathBuf,
    to: PathBuf,
}

fn bench(files: &[&str]) -> Bench {
    let place = Place::new();
    let (from, to) = (place.dir("from"), place.dir("to"));
    for path in files {
        let path = from.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }
    Bench {
        _place: place,
        from,
        to,
    }
}

fn options() -> CopyOptions<'static> {
    CopyOptions {
        owner: Owner::Fixed(0, 0),
        mode: None,
        mtime: Mtime::FromSource,
        destination: Destination::Any,
        archives: Archives::Copy,
        ignore: None,
        limits: UnpackLimits::default(),
    }
}

fn plain(path: &str) -> Source {
    Source::new(path, None, &[]).unwrap()
}

fn parents(path: &str, below: &str) -> Source {
    Source::new(path, Some(below), &[]).unwrap()
}

fn without(path: &str, exclude: &[&str]) -> Source {
    let exclude: Vec<String> = exclude.iter().map(ToString::to_string).collect();
    Source::new(path, None, &exclude).unwrap()
}

impl Bench {
    fn copy(&self, source: Source, dest: &str) -> Result<CopyReport, CopyError> {
        self.copy_with(&[source], dest, &options())
    }

    fn copy_with(
        &self,
        sources: &[Source],
        dest: &str,
        options: &CopyOptions<'_>,
    ) -> Result<CopyReport, CopyError> {
        let (from, to) = (
            Root::open(&self.from).unwrap(),
            Root::open(&self.to).unwrap(),
        );
        let options = CopyOptions {
            destination: if dest.ends_with('/') {
                Destination::Directory
            } else {
                options.destination
            },
            ..*options
        };
        let dest = Path::new(dest.trim_end_matches('/'));
        let cancel = CancellationToken::new();
        copy(&from, sources, &to, dest, &options, &cancel)
    }

    /// Names of what is in the target, directories with a slash.
    fn names(&self) -> Vec<String> {
        let listing = listing(&self.to);
        let names = listing.lines().map(|line| line.split(' ').next().unwrap());
        names.map(str::to_owned).collect()
    }

    fn clear(&self) {
        for found in fs::read_dir(&self.to).unwrap() {
            crate::rootfs::remove::remove_tree(&found.unwrap().path()).unwrap();
        }
    }

    fn digest(&self, source: Source) -> oci::Digest {
        let options = ContentOptions {
            owner: Owner::Fixed(0, 0),
            mode: None,
            ignore: None,
            n_threads: 1,
        };
        let root = Root::open(&self.from).unwrap();
        let cancel = CancellationToken::new();
        digest_sources(&root, &[source], &options, &cancel)
            .unwrap()
            .digest
    }
}

#[test]
fn parents_are_kept_from_the_pivot_on() {
    let bench = bench(&[
        "a/b/c/d/foo",
        "a/b/c/d/e/bay",
        "a/b2/c/d/e/bar",
        "a/b/c2/d/baz",
    ]);
    for (path, below, expected) in [
        (".", "a/b/c/d/foo", "a/ a/b/ a/b/c/ a/b/c/d/ a/b/c/d/foo"),
        ("a/b", "c/d", "c/ c/d/ c/d/e/ c/d/e/bay c/d/foo"),
        ("a", "*/c/d/foo", "b/ b/c/ b/c/d/ b/c/d/foo"),
        ("a/b*", "c/**/e", "c/ c/d/ c/d/e/ c/d/e/bar c/d/e/bay"),
        (".", "**/baz", "a/ a/b/ a/b/c2/ a/b/c2/d/ a/b/c2/d/baz"),
        ("a/none*", "c", ""),
        ("a/b", "none*", ""),
    ] {
        bench.copy(parents(path, below), "/out/").unwrap();
        let names = bench.names();
        let names: Vec<_> = names
            .iter()
            .filter_map(|name| name.strip_prefix("out/"))
            .collect();
        assert_eq!(names.join(" ").trim(), expected, "{path} /./ {below}");
        bench.clear();
    }
    make_symlink("c", bench.from.join("a/b/link")).unwrap();
    make_symlink("a", bench.from.join("top")).unwrap();
    for (path, below) in [("a/b", "none"), ("a/b", "link/d"), (".", "top/b")] {
        let outcome = bench.copy(parents(path, below), "/out/");
        assert!(
            matches!(outcome, Err(CopyError::Select(SelectError::NotFound(_)))),
            "{path} {below}: {outcome:?}"
        );
    }
    bench.copy(parents("top/b", "c/d/foo"), "/out/").unwrap();
    assert!(bench.to.join("out/c/d/foo").exists());
}

#[test]
fn parents_have_the_modes_of_the_source() {
    let bench = bench(&["a/b/f", "a/b/g"]);
    let chmod = |path: PathBuf, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    chmod(bench.from.join("a"), 0o700);
    chmod(bench.from.join("a/b"), 0o711);
    fs::create_dir_all(bench.to.join("out/a")).unwrap();
    std::os::unix::fs::chown(bench.to.join("out/a"), Some(5), Some(5)).unwrap();
    let mode = Chmod::parse("640").unwrap();
    let given = CopyOptions {
        owner: Owner::Fixed(1, 2),
        mode: Some(&mode),
        ..options()
    };
    bench
        .copy_with(&[parents(".", "a/b/f")], "/out", &given)
        .unwrap();
    let seen = listing(&bench.to.join("out"));
    assert_eq!(
        seen, "a/ 700 5:5\na/b/ 640 1:2\na/b/f 640 1:2 \"\"",
        "a directory that was there gets the source's mode only"
    );
}

#[test]
fn what_is_excluded_is_left_out_below_the_source_only() {
    let bench = bench(&[
        "d/a.md",
        "d/b.txt",
        "d/s/c.md",
        "d/s/keep.md",
        "e/x.md",
        "top.md",
    ]);
    for (source, expected) in [
        (without("d", &["*.md"]), "b.txt s/ s/c.md s/keep.md"),
        (without("d", &["**/*.md"]), "b.txt s/"),
        (without("d", &["s"]), "a.md b.txt"),
        (
            without("d", &["s", "!s/keep.md"]),
            "a.md b.txt s/ s/keep.md",
        ),
        (without("d", &["*/*.md"]), "a.md b.txt s/"),
        (without("d", &["*"]), ""),
        (without("d", &["/a.md"]), "a.md b.txt s/ s/c.md s/keep.md"),
        (without("?", &["*.md"]), "b.txt s/ s/c.md s/keep.md"),
        (without("top.md", &["*.md"]), "top.md"),
    ] {
        let shown = format!("{source:?}");
        bench.copy(source, "/out/").unwrap();
        let names = bench.names();
        let names: Vec<_> = names
            .iter()
            .filter_map(|name| name.strip_prefix("out/"))
            .collect();
        assert_eq!(names.join(" ").trim(), expected, "{shown}");
        bench.clear();
    }
    let before = bench.digest(without("d", &["*.md"]));
    fs::write(bench.from.join("d/a.md"), "changed").unwrap();
    assert_eq!(bench.digest(without("d", &["*.md"])), before);
    fs::write(bench.from.join("d/b.txt"), "changed").unwrap();
    assert_ne!(bench.digest(without("d", &["*.md"])), before);
}

#[test]
fn d03_patterns_of_flags_that_cost_too_much_are_errors() {
    let bench = bench(&[]);
    // Cheap to refuse each time, yet charged for what it could have cost.
    for n in 0..100 {
        let name = format!("{}{n}", "a".repeat(200));
        fs::write(bench.from.join(name), "").unwrap();
    }
    let exclude = vec![format!("a[x]{}", "?".repeat(3000)); 100];
    let outcome = bench.copy(Source::new(".", None, &exclude).unwrap(), "/out/");
    assert!(
        matches!(outcome, Err(CopyError::Select(SelectError::Filter(_)))),
        "{outcome:?}"
    );
}

#[test]
fn several_sources_for_one_name_overwrite_each_other_unless_it_is_a_directory() {
    let bench = bench(&["a", "b"]);
    fs::write(bench.from.join("b"), "second").unwrap();
    let both = [plain("a"), plain("b")];
    bench.copy_with(&both, "/out", &options()).unwrap();
    assert_eq!(fs::read(bench.to.join("out")).unwrap(), b"second");
    bench.copy(plain("[ab]"), "/glob").unwrap();
    assert_eq!(fs::read(bench.to.join("glob")).unwrap(), b"second");
    bench.copy_with(&both, "/dir/", &options()).unwrap();
    fs::create_dir(bench.to.join("there")).unwrap();
    bench.copy_with(&both, "/there", &options()).unwrap();
    assert_eq!(
        bench.names(),
        [
            "dir/", "dir/a", "dir/b", "glob", "out", "there/", "there/a", "there/b"
        ]
    );
}

#[test]
fn destinations_that_are_links_lead_where_they_point() {
    let bench = bench(&["f", "d/x"]);
    let link = |target: &str, name: &str| make_symlink(target, bench.to.join(name)).unwrap();
    link("real", "to-dir");
    link("/real/../real", "absolute");
    link("made/later", "dangling");
    link("real/file", "to-file");
    link("loop", "loop");
    fs::create_dir(bench.to.join("real")).unwrap();
    fs::write(bench.to.join("real/file"), "old").unwrap();
    bench.copy(plain("f"), "/to-dir").unwrap();
    bench.copy(plain("d"), "/absolute/sub").unwrap();
    bench.copy(plain("f"), "/dangling").unwrap();
    bench.copy(plain("f"), "/to-file").unwrap();
    assert_eq!(
        listing(&bench.to),
        "absolute -> /real/../real 0:0\n\
         dangling -> made/later 0:0\n\
         loop -> loop 0:0\n\
         made/ 755 0:0\n\
         made/later 644 0:0 \"\"\n\
         real/ 755 0:0\n\
         real/f 644 0:0 \"\"\n\
         real/file 644 0:0 \"\"\n\
         real/sub/ 755 0:0\n\
         real/sub/x 644 0:0 \"\"\n\
         to-dir -> real 0:0\n\
         to-file -> real/file 0:0"
    );
    for dest in ["/loop", "/loop/x", "/f/../real/file/x"] {
        let outcome = bench.copy(plain("f"), dest);
        assert!(matches!(outcome, Err(CopyError::Destination(..))), "{dest}");
    }
    let outcome = bench.copy(plain("d"), "/real/file");
    assert!(matches!(outcome, Err(CopyError::Destination(..))));
    bench.copy(plain("f"), "/real/dir/f/").unwrap();
    fs::create_dir_all(bench.from.join("over/dir")).unwrap();
    fs::write(bench.from.join("over/dir/f"), "").unwrap();
    let outcome = bench.copy(plain("over"), "/real");
    assert!(matches!(outcome, Err(CopyError::IsADirectory { .. })));
}

#[test]
fn directories_on_the_way_have_the_mode_that_is_given_in_octal() {
    let bench = bench(&["f"]);
    for (mode, dest) in [("4711", "/octal/x/"), ("u=rwX,go=", "/symbolic/x/")] {
        let mode = Chmod::parse(mode).unwrap();
        let given = CopyOptions {
            owner: Owner::Fixed(1, 2),
            mode: Some(&mode),
            ..options()
        };
        bench.copy_with(&[plain("f")], dest, &given).unwrap();
    }
    assert_eq!(
        listing(&bench.to),
        "octal/ 711 1:2\n\
         octal/x/ 711 1:2\n\
         octal/x/f 4711 1:2 \"\"\n\
         symbolic/ 755 1:2\n\
         symbolic/x/ 755 1:2\n\
         symbolic/x/f 600 1:2 \"\""
    );
}

#[test]
fn hard_links_stay_within_one_source() {
    let bench = bench(&["d/a"]);
    fs::hard_link(bench.from.join("d/a"), bench.from.join("d/b")).unwrap();
    bench.copy(plain("d"), "/whole").unwrap();
    bench.copy(plain("d/*"), "/each/").unwrap();
    let n_links = |path: &str| fs::metadata(bench.to.join(path)).unwrap().nlink();
    assert_eq!((n_links("whole/a"), n_links("each/a")), (2, 1));
}

#[test]
fn wildcards_follow_links_before_them_and_not_behind() {
    let bench = bench(&["real/sub/f", "real/g"]);
    make_symlink("real", bench.from.join("link")).unwrap();
    make_symlink("sub", bench.from.join("real/away")).unwrap();
    bench.copy(plain("link/*/f"), "/out/").unwrap();
    assert_eq!(bench.names(), ["out/", "out/f"]);
    bench.clear();
    // A link that is matched itself is followed.
    bench.copy(plain("real/a*"), "/out/").unwrap();
    assert_eq!(bench.names(), ["out/", "out/f"]);
    bench.clear();
    assert_eq!(bench.copy(plain("no/*"), "/out/").unwrap().n_sources, 0);
    assert_eq!(bench.copy(plain("real/g/*"), "/out/").unwrap().n_sources, 0);
    assert!(bench.names().is_empty());
}

#[test]
fn names_may_be_any_bytes_but_not_deletions() {
    let bench = bench(&[]);
    let odd: [&[u8]; 5] = [b"\xff\xfe", b"a\nb", b"star*", b"caf\xc3\xa9", b"-"];
    for name in odd {
        fs::write(bench.from.join(OsStr::from_bytes(name)), "").unwrap();
    }
    fs::write(bench.from.join("x".repeat(255)), "").unwrap();
    bench.copy(plain("*"), "/all/").unwrap();
    bench.copy(plain("??"), "/two/").unwrap();
    bench.copy(plain("star[*]"), "/star/").unwrap();
    let n = |dir: &str| fs::read_dir(bench.to.join(dir)).unwrap().count();
    assert_eq!((n("all"), n("two"), n("star")), (6, 1, 1));
    fs::write(bench.from.join(".wh.victim"), "").unwrap();
    for (source, dest) in [
        (".", "/x/"),
        (".wh.victim", "/x/"),
        ("-", "/.wh.a"),
        ("-", "/.wh.d/x"),
    ] {
        let outcome = bench.copy(plain(source), dest);
        assert!(
            matches!(outcome, Err(CopyError::ReservedName { .. })),
            "{source} {dest}: {outcome:?}"
        );
    }
}

#[test]
fn special_bits_times_and_holes_are_kept() {
    let bench = bench(&["d/suid"]);
    let mode = fs::Permissions::from_mode(0o6755);
    fs::set_permissions(bench.from.join("d/suid"), mode).unwrap();
    fs::create_dir(bench.from.join("d/tmp")).unwrap();
    fs::set_permissions(bench.from.join("d/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    let sparse = fs::File::create(bench.from.join("d/sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"start", 0).unwrap();
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        bench.from.join("d/pipe"),
        Mode::RUSR | Mode::WUSR,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(bench.from.join("d/socket")).unwrap();
    for path in ["d/suid", "d/tmp", "d"] {
        let times = times(1_000_000_000);
        let flags = rustix::fs::AtFlags::empty();
        rustix::fs::utimensat(rustix::fs::CWD, bench.from.join(path), &times, flags).unwrap();
    }
    let report = bench.copy(plain("d"), "/out").unwrap();
    assert_eq!(report.n_sockets_skipped, 1);
    let metadata = |path: &str| fs::metadata(bench.to.join("out").join(path)).unwrap();
    assert_eq!(metadata("suid").mode() & 0o7777, 0o6755);
    assert_eq!(metadata("tmp").mode() & 0o7777, 0o1777);
    for path in ["suid", "tmp", ""] {
        assert_eq!(metadata(path).mtime(), 1_000_000_000, "{path:?}");
    }
    assert!(bench.names().contains(&"out/pipe".to_owned()));
    let copied = fs::read(bench.to.join("out/sparse")).unwrap();
    assert!(copied == fs::read(bench.from.join("d/sparse")).unwrap());
    assert!(metadata("sparse").blocks() * 512 < 1 << 20);
    let small = CopyOptions {
        limits: UnpackLimits {
            content_bytes: 1 << 20,
            ..UnpackLimits::default()
        },
        ..options()
    };
    let outcome = bench.copy_with(&[plain("d")], "/y", &small);
    assert!(matches!(outcome, Err(CopyError::TooLarge { .. })));
}

#[test]
fn archives_go_through_links_and_replace_what_is_in_the_way() {
    let bench = bench(&[]);
    let tar = archive(&[
        file("lib/x", "new"),
        symlink("etc", "lib"),
        file("over/f", "f"),
    ]);
    fs::write(bench.from.join("a.tar"), &tar).unwrap();
    fs::write(bench.from.join("b.tar"), &tar).unwrap();
    fs::create_dir_all(bench.to.join("usr/lib")).unwrap();
    fs::write(bench.to.join("usr/lib/x"), "old").unwrap();
    make_symlink("usr/lib", bench.to.join("lib")).unwrap();
    fs::create_dir_all(bench.to.join("etc/full")).unwrap();
    fs::create_dir_all(bench.to.join("over/f")).unwrap();
    let add = CopyOptions {
        archives: Archives::Unpack(Some((7, 8))),
        ..options()
    };
    let mode = Chmod::parse("600").unwrap();
    let add = CopyOptions {
        mode: Some(&mode),
        ..add
    };
    bench.copy_with(&[plain("*.tar")], "/", &add).unwrap();
    bench.copy_with(&[plain("a.tar")], "/new", &add).unwrap();
    assert_eq!(
        fs::metadata(bench.to.join("new")).unwrap().mode() & 0o777,
        0o755
    );
    crate::rootfs::remove::remove_tree(&bench.to.join("new")).unwrap();
    assert_eq!(
        listing(&bench.to),
        "etc -> lib 7:8\n\
         lib -> usr/lib 0:0\n\
         over/ 755 0:0\n\
         over/f 644 7:8 \"f\"\n\
         usr/ 755 0:0\n\
         usr/lib/ 755 0:0\n\
         usr/lib/x 644 7:8 \"new\""
    );
}

#[test]
fn every_packing_of_docker_is_unpacked() {
    let bench = bench(&[]);
    fs::write(bench.from.join("plain"), archive(&[file("f", "x")])).unwrap();
    for (program, package) in [
        ("gzip", "gzip"),
        ("bzip2", "bzip2"),
        ("xz", "xz-utils"),
        ("zstd", "zstd"),
    ] {
        let output = std::process::Command::new(program)
            .args(["-c", "plain"])
            .current_dir(&bench.from)
            .output()
            .unwrap_or_else(|_| {
                panic!("{program} is missing; it is in the Debian package {package}")
            });
        fs::write(bench.from.join(program), output.stdout).unwrap();
        let add = CopyOptions {
            archives: Archives::Unpack(None),
            ..options()
        };
        let dest = format!("/{program}");
        bench.copy_with(&[plain(program)], &dest, &add).unwrap();
        assert_eq!(fs::read(bench.to.join(program).join("f")).unwrap(), b"x");
    }
}
