//! The reader and the writer against each other, against another implementation, and against GNU tar.

use std::io::Read;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

fn entry(path: &str, kind: Kind) -> Entry {
    let mut entry = Entry::new(path, kind);
    entry.mode = 0o644;
    entry
}

fn written(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, content) in entries {
        writer.append(entry, &mut &content[..]).unwrap();
    }
    writer.finish().unwrap()
}

fn read(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, ReadError> {
    let mut reader = Reader::new(archive, Limits::default());
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut content = Vec::new();
        reader.read_to_end(&mut content).map_err(ReadError::Io)?;
        entries.push((entry, content));
    }
    Ok(entries)
}

/// A raw header, its checksum right.
fn raw(name: &str, flag: u8, size: usize) -> Vec<u8> {
    let mut block = header::Block::empty();
    block.put(header::NAME, name.as_bytes());
    block.put_octal(header::MODE, 0o644);
    block.put_octal(header::SIZE, size as u64);
    block.put((header::TYPE, 1), &[flag]);
    block.put(header::MAGIC, b"ustar\x0000");
    block.seal();
    block.0.to_vec()
}

/// A header with content.
fn with_content(name: &str, flag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = raw(name, flag, content.len());
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
    bytes
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut content = Vec::new();
    for (key, value) in records {
        super::pax::push_record(&mut content, key.as_bytes(), value.as_bytes());
    }
    with_content("pax", b'x', &content)
}

/// Names and contents as GNU tar sees them; `None` when it complains.
fn gnu(archive: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let run = |args: &[&str]| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), archive).unwrap();
        let output = Command::new("tar")
            .args(args)
            .arg("-f")
            .arg(file.path())
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .expect("tar runs (Debian package tar)");
        output.status.success().then_some(output.stdout)
    };
    let names = String::from_utf8(run(&["-t", "--quoting-style=literal"])?).unwrap();
    let all = run(&["-x", "-O"])?;
    let names = names
        .lines()
        .map(|name| name.trim_end_matches('/').to_owned());
    let mut seen: Vec<_> = names.map(|name| (name, Vec::new())).collect();
    // The contents run into each other: comparing the whole is enough.
    seen.push((String::new(), all));
    Some(seen)
}

fn ours(archive: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let entries = read(archive).ok()?;
    let all = entries
        .iter()
        .flat_map(|(_, content)| content.clone())
        .collect();
    let name = |entry: &Entry| String::from_utf8_lossy(&entry.path).into_owned();
    let mut seen: Vec<_> = entries
        .iter()
        .map(|(entry, _)| (name(entry), Vec::new()))
        .collect();
    seen.push((String::new(), all));
    Some(seen)
}

fn samples() -> Vec<(Entry, Vec<u8>)> {
    let long = "d/".repeat(120) + "file";
    let unsplittable = "n".repeat(180);
    let mut samples = vec![
        (entry("dir", Kind::Directory), Vec::new()),
        (entry("dir/file", Kind::File), b"content".to_vec()),
        (entry(&long, Kind::File), vec![7; 513]),
        (entry(&unsplittable, Kind::File), vec![7; 512]),
        (entry("gr\u{fc}n", Kind::File), Vec::new()),
        (entry("dir/pipe", Kind::Fifo), Vec::new()),
    ];
    for (path, kind, target) in [
        ("link", Kind::Symlink, "dir/file"),
        ("hard", Kind::HardLink, "dir/file"),
        ("far", Kind::Symlink, &long),
    ] {
        let mut link = entry(path, kind);
        link.link = target.as_bytes().to_vec();
        samples.push((link, Vec::new()));
    }
    let mut odd = entry("odd", Kind::File);
    (odd.uid, odd.gid, odd.mtime) = (3_000_000, u32::MAX - 1, -5);
    odd.xattrs.insert(b"user.a".to_vec(), b"\0\n=\xff".to_vec());
    samples.push((odd, Vec::new()));
    let mut device = entry("device", Kind::BlockDevice);
    (device.device_major, device.device_minor, device.mtime) = (8, 1, 1 << 40);
    samples.push((device, Vec::new()));
    for (entry, content) in &mut samples {
        entry.size = content.len() as u64;
    }
    samples
}

#[test]
fn what_is_written_is_read_again() {
    let samples = samples();
    assert_eq!(read(&written(&samples)).unwrap(), samples);
}

#[test]
fn another_implementation_reads_what_is_written() {
    let samples = samples();
    let bytes = written(&samples);
    let mut archive = tar::Archive::new(&bytes[..]);
    let mut n = 0;
    for (theirs, (ours, content)) in archive.entries().unwrap().zip(&samples) {
        let mut theirs = theirs.unwrap();
        let path = theirs.path_bytes().into_owned();
        assert_eq!(path.strip_suffix(b"/").unwrap_or(&path), ours.path);
        assert_eq!(theirs.link_name_bytes().unwrap_or_default(), ours.link);
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).unwrap();
        assert_eq!(&read, content);
        n += 1;
    }
    assert_eq!(n, samples.len());
    assert_eq!(gnu(&bytes), ours(&bytes));
}

#[test]
fn archives_of_other_programs_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(150);
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::fs::write(dir.path().join("sub").join(&long), "long").unwrap();
    std::fs::write(dir.path().join("plain"), "plain").unwrap();
    std::os::unix::fs::symlink(&long, dir.path().join("link")).unwrap();
    std::fs::hard_link(dir.path().join("plain"), dir.path().join("same")).unwrap();
    for format in ["v7", "oldgnu", "gnu", "ustar", "posix"] {
        let output = Command::new("tar")
            .args(["-c", "--sort=name", "--format", format, "-C"])
            .arg(dir.path())
            .arg(".")
            .output()
            .expect("tar runs (Debian package tar)");
        let entries = read(&output.stdout).unwrap();
        let names: Vec<_> = entries
            .iter()
            .map(|(entry, _)| String::from_utf8_lossy(&entry.path))
            .collect();
        let is_short = matches!(format, "v7" | "ustar");
        if is_short {
            // These cannot hold such names and leave them out.
            assert!(names.contains(&"./plain".into()), "{format} {names:?}");
            continue;
        }
        assert_eq!(
            names,
            [
                ".",
                "./link",
                "./plain",
                "./same",
                "./sub",
                &format!("./sub/{long}")
            ]
        );
        let link = &entries[1].0;
        assert_eq!(
            (link.kind, &link.link[..]),
            (Kind::Symlink, long.as_bytes())
        );
        assert_eq!(entries[3].0.kind, Kind::HardLink);
        assert_eq!(entries[5].1, b"long");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table of cases")]
fn t05_headers_that_contradict_each_other_are_refused() {
    let file = with_content("file", b'0', b"data");
    let long = with_content("././@LongLink", b'L', b"long\0");
    let global = |records: &[(&str, &str)]| {
        let mut bytes = pax(records);
        let mut block = header::Block::empty();
        block.0.copy_from_slice(&bytes[..BLOCK_BYTES]);
        block.put((header::TYPE, 1), b"g");
        block.seal();
        bytes[..BLOCK_BYTES].copy_from_slice(&block.0);
        bytes
    };
    let path = pax(&[("path", "pax")]);
    for (name, parts) in [
        ("other size", vec![pax(&[("size", "512")]), file.clone()]),
        (
            "size of nothing",
            vec![pax(&[("size", "4")]), raw("file", b'0', 0)],
        ),
        (
            "two PAX headers",
            vec![path.clone(), path.clone(), file.clone()],
        ),
        (
            "two long names",
            vec![long.clone(), long.clone(), file.clone()],
        ),
        (
            "two kinds of long names",
            vec![path.clone(), long.clone(), file.clone()],
        ),
        (
            "size before a long name",
            vec![pax(&[("size", "4")]), long.clone(), file.clone()],
        ),
        ("global size", vec![global(&[("size", "4")]), file.clone()]),
        ("global path", vec![global(&[("path", "x")]), file.clone()]),
        (
            "global header in between",
            vec![path.clone(), global(&[("comment", "x")]), file.clone()],
        ),
        (
            "NUL in a path",
            vec![pax(&[("path", "a\0b")]), file.clone()],
        ),
        ("nothing behind a PAX header", vec![path.clone()]),
        (
            "nothing behind a long name",
            vec![long.clone(), vec![0; 1024]],
        ),
        (
            "directory with content",
            vec![with_content("d", b'5', b"data")],
        ),
        (
            "link with content",
            vec![pax(&[("size", "4")]), with_content("l", b'1', b"data")],
        ),
        (
            "file that is a directory",
            vec![with_content("file/", b'0', b"data")],
        ),
        (
            "lone zero block",
            vec![file.clone(), vec![0; 512], file.clone()],
        ),
        ("sparse", vec![with_content("s", b'S', b"data")]),
        (
            "sparse in PAX",
            vec![pax(&[("GNU.sparse.major", "1")]), file.clone()],
        ),
        ("volume label", vec![with_content("v", b'V', b"")]),
        ("no name", vec![raw("", b'0', 0)]),
        ("no target", vec![raw("l", b'2', 0)]),
    ] {
        let archive = parts.concat();
        assert!(read(&archive).is_err(), "{name}: {:?}", read(&archive));
    }
    let accepted = [global(&[("comment", "commit")]), path, file].concat();
    assert_eq!(read(&accepted).unwrap()[0].0.path, b"pax");
}

#[test]
fn t05_every_order_of_headers_is_read_as_gnu_tar_reads_it_or_refused() {
    let pieces = [
        pax(&[("path", "from-pax")]),
        pax(&[("size", "4")]),
        with_content("././@LongLink", b'L', b"from-long\0"),
        with_content("././@LongLink", b'K', b"target\0"),
        with_content("file", b'0', b"data"),
    ];
    let n = pieces.len();
    let mut n_read = 0;
    for code in 0..n.pow(3) {
        let order = [code % n, code / n % n, code / n / n, 4];
        let mut archive: Vec<u8> = order.iter().flat_map(|at| pieces[*at].clone()).collect();
        archive.extend([0; 1024]);
        if let Some(ours) = ours(&archive) {
            n_read += 1;
            assert_eq!(Some(ours), gnu(&archive), "{order:?}");
        }
    }
    assert!(n_read > 10, "only {n_read} orders were read");
}

#[test]
fn limits_are_kept_before_memory_is_used() {
    let endless = |flag: u8| {
        let mut block = header::Block::empty();
        block.put(header::NAME, b"x");
        block.put_octal(header::SIZE, (8 << 30) - 1);
        block.put((header::TYPE, 1), &[flag]);
        block.seal();
        Reader::new(block.0.to_vec().chain_zeros(), Limits::default()).next()
    };
    for flag in *b"LKxg" {
        assert!(matches!(endless(flag), Err(ReadError::MetadataTooLarge(_))));
    }
    let long = pax(&[("path", &"p".repeat(5000))]);
    let archive = [long, with_content("f", b'0', b"")].concat();
    assert!(matches!(read(&archive), Err(ReadError::PathTooLong(4096))));
    let limits = Limits {
        headers: 2,
        ..Limits::default()
    };
    let archive = with_content("f", b'0', b"x").repeat(3);
    let mut reader = Reader::new(&archive[..], limits);
    assert!(reader.next().unwrap().is_some() && reader.next().unwrap().is_some());
    assert!(matches!(reader.next(), Err(ReadError::TooManyEntries(2))));
    assert!(matches!(reader.next(), Err(ReadError::Failed)));
}

trait ChainZeros {
    fn chain_zeros(self) -> Box<dyn Read>;
}

impl ChainZeros for Vec<u8> {
    fn chain_zeros(self) -> Box<dyn Read> {
        Box::new(std::io::Cursor::new(self).chain(std::io::repeat(0)))
    }
}

#[test]
fn t19_numbers_out_of_range_are_refused() {
    let with = |field: header::Field, value: &[u8]| {
        let mut block = header::Block::empty();
        block.0.copy_from_slice(&raw("f", b'0', 0));
        block.put(field, value);
        block.seal();
        read(&block.0)
    };
    assert!(with(header::UID, b"\x80\0\0\0\x7f\xff\xff\xff").is_ok());
    assert!(with(header::UID, b"\x80\0\0\0\xff\xff\xff\xff").is_err());
    assert!(with(header::UID, b"\xff\xff\xff\xff\xff\xff\xff\xff").is_err());
    assert!(
        with(
            header::SIZE,
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"
        )
        .is_err()
    );
    assert!(with(header::SIZE, b"\x80\0\0\0\x40\0\0\0\0\0\0\0").is_err());
    assert!(
        with(
            header::MTIME,
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"
        )
        .is_ok()
    );
    assert!(with(header::MODE, b"notoctal").is_err());
    let mut damaged = raw("f", b'0', 0);
    damaged[0] = b'g';
    assert!(matches!(read(&damaged), Err(ReadError::Checksum)));
}

#[test]
fn the_writer_refuses_what_no_archive_can_hold_and_content_that_shrinks() {
    let append = |entry: &Entry| Writer::new(Vec::new()).append(entry, &mut std::io::empty());
    let mut short = entry("short", Kind::File);
    short.size = 1;
    assert!(matches!(append(&short), Err(WriteError::Short { .. })));
    let mut bad = entry("bad", Kind::File);
    bad.xattrs.insert(b"user.a=b".to_vec(), Vec::new());
    assert!(matches!(
        append(&bad),
        Err(WriteError::Unrepresentable { .. })
    ));
    assert!(append(&entry("", Kind::File)).is_err());
    assert!(append(&entry("a\0b", Kind::File)).is_err());
}

proptest! {
    #[test]
    fn anything_written_is_read_again(
        path in "[^\0]{0,300}[^\0/]",
        link in "[^\0]{1,300}",
        uid in 0..u32::MAX,
        mtime in any::<i64>(),
        content in proptest::collection::vec(any::<u8>(), 0..1100),
        value in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut file = entry(&path, Kind::File);
        (file.uid, file.mtime, file.size) = (uid, mtime, content.len() as u64);
        file.xattrs.insert(b"user.x".to_vec(), value);
        let mut symlink = entry(&path, Kind::Symlink);
        symlink.link = link.into_bytes();
        let entries = vec![(file, content), (symlink, Vec::new())];
        prop_assert_eq!(read(&written(&entries)).unwrap(), entries);
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let _ = read(&bytes);
    }

    #[test]
    fn damaged_archives_never_panic(at in 0usize..8192, byte in any::<u8>()) {
        let mut bytes = written(&samples());
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = read(&bytes);
    }
}
