//! Contexts: a copy of what git holds, with modes and times that do not depend on the checkout, and what git cannot hold.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::process::{run, tool};

use super::case::{Case, Make};

/// Time of every file of an archive that has no other, before the `SOURCE_DATE_EPOCH` of all builds.
const MTIME: u64 = 1_600_000_000;

/// Times of files of contexts are within so many seconds after [`MTIME`].
const SPREAD_S: u64 = 50_000_000;

/// Writes the context of a case into a new folder.
pub(super) fn write(case: &Case, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let input = case.folder.join("input");
    if input.is_dir() {
        copy(&input, to);
    } else {
        fs::copy(case.folder.join("Dockerfile"), to.join("Dockerfile")).unwrap();
    }
    normalize(to);
    for make in &case.options.make {
        self::make(to, make);
    }
    settle(case, to, &case.options.make);
}

/// Copies a folder of named contexts.
pub(super) fn write_named(case: &Case, name: &str, to: &Path) {
    fs::create_dir_all(to).unwrap();
    copy(&case.folder.join("contexts").join(name), to);
    normalize(to);
    settle(case, to, &[]);
}

/// Returns a path with `\xHH` and `{x*200}` replaced.
pub(super) fn bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let hex = rest.strip_prefix("\\x").and_then(|tail| tail.get(..2));
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            out.push(byte);
            rest = &rest[4..];
        } else if let Some((inner, tail)) =
            rest.strip_prefix('{').and_then(|tail| tail.split_once('}'))
            && let Some((what, times)) = inner.split_once('*')
        {
            out.extend(what.repeat(times.parse().unwrap()).bytes());
            rest = tail;
        } else {
            out.extend(first.to_string().bytes());
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

/// Packs a file with a program of this machine.
pub(super) fn pack(path: &Path, program: &str) {
    let package = if program == "xz" { "xz-utils" } else { program };
    let mut command = Command::new(tool(program, package));
    if program == "gzip" {
        command.arg("--no-name");
    }
    let packed = command
        .arg("--stdout")
        .stdin(fs::File::open(path).unwrap())
        .output()
        .unwrap();
    assert!(
        packed.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&packed.stderr)
    );
    fs::write(path, packed.stdout).unwrap();
}

/// Makes an archive.
pub(super) fn archive(entries: &[Make]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        append(&mut builder, entry);
    }
    builder.into_inner().unwrap()
}

fn append(builder: &mut tar::Builder<Vec<u8>>, entry: &Make) {
    let xattrs: Vec<_> = entry
        .xattrs
        .iter()
        .map(|(name, value)| (format!("SCHILY.xattr.{name}"), bytes(value)))
        .collect();
    if !xattrs.is_empty() {
        builder
            .append_pax_extensions(
                xattrs
                    .iter()
                    .map(|(name, value)| (name.as_str(), value.as_slice())),
            )
            .unwrap();
    }
    let mut header = tar::Header::new_gnu();
    let default_mode = if entry.dir { 0o755 } else { 0o644 };
    header.set_mode(
        entry
            .mode
            .as_ref()
            .map_or(default_mode, |mode| u32::from_str_radix(mode, 8).unwrap()),
    );
    header.set_uid(entry.uid);
    header.set_gid(entry.gid);
    header.set_mtime(entry.mtime.unwrap_or(MTIME));
    header.set_size(0);
    let path = PathBuf::from(OsString::from_vec(bytes(&entry.path)));
    if let Some(target) = entry.symlink.as_ref().or(entry.hardlink.as_ref()) {
        header.set_entry_type(if entry.symlink.is_some() {
            tar::EntryType::Symlink
        } else {
            tar::EntryType::Link
        });
        builder.append_link(&mut header, path, target).unwrap();
        return;
    }
    let text = entry.text.clone().unwrap_or_default();
    if entry.dir {
        header.set_entry_type(tar::EntryType::Directory);
    } else if entry.fifo {
        header.set_entry_type(tar::EntryType::Fifo);
    } else if let Some((major, minor)) = entry.device {
        header.set_entry_type(tar::EntryType::Char);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
    } else {
        header.set_size(text.len() as u64);
    }
    if entry.path.starts_with('/') || entry.path.contains("..") {
        // The library does not write what a hostile archive would hold.
        header.as_mut_bytes()[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
        header.set_cksum();
        builder.append(&header, text.as_bytes()).unwrap();
        return;
    }
    builder
        .append_data(&mut header, path, text.as_bytes())
        .unwrap();
}

fn make(root: &Path, make: &Make) {
    let path = root.join(OsString::from_vec(bytes(&make.path)));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    if make.dir {
        fs::create_dir_all(&path).unwrap();
    } else if let Some(target) = &make.symlink {
        symlink(OsString::from_vec(bytes(target)), &path).unwrap();
    } else if let Some(other) = &make.hardlink {
        fs::hard_link(root.join(other), &path).unwrap();
    } else if make.fifo {
        run(Command::new("mkfifo").arg(&path));
    } else if make.socket {
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    } else if let Some(entries) = &make.tar {
        fs::write(&path, archive(entries)).unwrap();
    } else if make.text.is_some() || make.sparse.is_some() {
        let text = make.text.clone().unwrap_or_default();
        fs::write(&path, bytes(&text)).unwrap();
        if let Some(size) = make.sparse {
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_len(0).unwrap();
            file.set_len(size - text.len() as u64).unwrap();
            drop(file);
            fs::File::options()
                .append(true)
                .open(&path)
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap();
        }
        mode(&path, 0o644);
    }
    if let Some(program) = &make.packed {
        pack(&path, program);
    }
    if let Some(size) = make.cut {
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(size)
            .unwrap();
    }
    for (name, value) in &make.xattrs {
        rustix::fs::setxattr(&path, name, &bytes(value), rustix::fs::XattrFlags::empty()).unwrap();
    }
}

/// Sets modes and times when nothing is written any more.
///
/// Each case has a time of its own: `BuildKit` does not send a file again that has the name, size and time of one that it has.
fn settle(case: &Case, root: &Path, made: &[Make]) {
    let hash = case
        .name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    let seconds = MTIME + hash % SPREAD_S;
    let time = |path: &Path, seconds: u64| {
        run(Command::new("touch")
            .arg("--no-dereference")
            .arg(format!("--date=@{seconds}"))
            .arg(path));
    };
    let mut command = Command::new("find");
    command
        .arg(root)
        .args(["-exec", "touch", "--no-dereference"])
        .arg(format!("--date=@{seconds}"))
        .args(["{}", "+"]);
    run(&mut command);
    for make in made {
        let path = root.join(OsString::from_vec(bytes(&make.path)));
        if let Some(octal) = &make.mode {
            mode(&path, u32::from_str_radix(octal, 8).unwrap());
        }
        if let Some(seconds) = make.mtime {
            time(&path, seconds);
        }
    }
}

/// Copies what git holds.
fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_symlink() {
            symlink(fs::read_link(&source).unwrap(), &target).unwrap();
        } else if kind.is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&source, &target);
        } else {
            fs::copy(&source, &target).unwrap();
        }
    }
}

/// Gives the modes that git means: a checkout follows the umask.
fn normalize(folder: &Path) {
    mode(folder, 0o755);
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_dir() {
            normalize(&path);
        } else if metadata.is_file() {
            mode(
                &path,
                if metadata.permissions().mode() & 0o100 == 0 {
                    0o644
                } else {
                    0o755
                },
            );
        }
    }
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
