//! A root filesystem as an archive → a folder of the user's own, whoever made the archive.
//!
//! Every path is opened beneath the folder without following any link, those that the archive has made itself included. What is in the way
//! is replaced. As with a folder that a build here exports: set-id bits and attributes go, pipes and devices are left out, every name is
//! a file of its own, and what belongs to nobody but its owner stays readable for the user.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use oci::tar::{Entry, Kind, Limits, Reader};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);
const PERMISSIONS: u32 = 0o777;

/// Tells why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    #[error("open the folder")]
    Root(#[source] io::Error),
    #[error("read the archive")]
    Read(#[source] oci::tar::ReadError),
    #[error("the archive has the path {0:?}, which could lead out of the folder")]
    Path(String),
    #[error("write {path:?}")]
    Write {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// Unpacks `archive` into the folder `into`.
pub(super) fn unpack(archive: &mut impl Read, into: &Path) -> Result<(), UnpackError> {
    let root = rustix::fs::openat(CWD, into, FOLDER, Mode::empty());
    let root = root.map_err(|e| UnpackError::Root(e.into()))?;
    let mut reader = Reader::new(archive, Limits::default());
    // Their modes would keep us from filling them, and filling them changes their times.
    let mut folders = Vec::new();
    while let Some(entry) = reader.next().map_err(UnpackError::Read)? {
        let path = checked(&entry.path)?;
        if path.is_empty() {
            continue;
        }
        let failed = |source| UnpackError::Write {
            path: String::from_utf8_lossy(&path).into_owned(),
            source,
        };
        make(&root, &path, &entry, &mut reader).map_err(failed)?;
        if entry.kind == Kind::Directory {
            folders.push((path, entry));
        }
    }
    for (path, entry) in folders.iter().rev() {
        let finished = open(&root, path, FOLDER).and_then(|folder| finish(&folder, entry, 0o700));
        match finished {
            // Replaced by something later in the archive.
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::NOTDIR | Errno::LOOP)
                ) => {}
            other => other.map_err(|source| UnpackError::Write {
                path: String::from_utf8_lossy(path).into_owned(),
                source,
            })?,
        }
    }
    Ok(())
}

/// Returns a path of the archive without what means nothing; refuses what could lead elsewhere.
fn checked(path: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let refused = || UnpackError::Path(String::from_utf8_lossy(path).into_owned());
    if path.first() == Some(&b'/') || path.contains(&0) {
        return Err(refused());
    }
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(refused()),
            name => components.push(name),
        }
    }
    Ok(components.join(&b'/'))
}

fn make(root: &OwnedFd, path: &[u8], entry: &Entry, content: &mut impl Read) -> io::Result<()> {
    let (folder, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (path.get(..at), path.get(at + 1..)),
        None => (Some(&b""[..]), Some(path)),
    };
    let folder = parents(root, folder.unwrap_or_default())?;
    let name = CString::new(name.unwrap_or_default())?;
    match entry.kind {
        Kind::Directory => make_folder(&folder, &name),
        Kind::File => {
            let mut file = create(&folder, &name)?;
            io::copy(content, &mut file)?;
            finish(&file, entry, 0o400)
        }
        Kind::HardLink => {
            let first = entry.link.as_slice();
            let first = checked(first).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let mut first = File::from(open(root, &first, flags)?);
            let found = first.metadata()?;
            if !found.is_file() {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let mut file = create(&folder, &name)?;
            io::copy(&mut first, &mut file)?;
            file.set_permissions(found.permissions())?;
            file.set_modified(found.modified()?)
        }
        Kind::Symlink => {
            make_room(&folder, &name)?;
            rustix::fs::symlinkat(&entry.link[..], &folder, &name)?;
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            Ok(rustix::fs::utimensat(&folder, &name, &times(entry), flags)?)
        }
        Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => Ok(()),
    }
}

/// Opens the folder at `path`, and makes what is missing of it.
fn parents(root: &OwnedFd, path: &[u8]) -> io::Result<OwnedFd> {
    match open(root, path, FOLDER) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let mut here = open(root, b"", FOLDER)?;
    for name in path.split(|byte| *byte == b'/') {
        make_folder(&here, &CString::new(name)?)?;
        here = open(&here, name, FOLDER)?;
    }
    Ok(here)
}

fn open(root: &OwnedFd, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(
        root,
        path,
        flags,
        Mode::empty(),
        within,
    )?)
}

fn make_folder(folder: &OwnedFd, name: &CStr) -> io::Result<()> {
    match rustix::fs::mkdirat(folder, name, Mode::RWXU) {
        Err(Errno::EXIST) => {}
        other => return Ok(other?),
    }
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) => Ok(rustix::fs::mkdirat(folder, name, Mode::RWXU)?),
        // A folder already.
        Err(Errno::ISDIR | Errno::PERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn make_room(folder: &OwnedFd, name: &CStr) -> io::Result<()> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn create(folder: &OwnedFd, name: &CStr) -> io::Result<File> {
    make_room(folder, name)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

fn finish(fd: impl std::os::fd::AsFd, entry: &Entry, needed: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(entry.mode & PERMISSIONS | needed);
    rustix::fs::fchmod(&fd, mode)?;
    Ok(rustix::fs::futimens(&fd, &times(entry))?)
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.mtime,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use oci::tar::Writer;

    use super::*;

    fn archive(entries: &[(&str, Kind, u32, &str)]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for (path, kind, mode, text) in entries {
            let mut entry = Entry::new(path.as_bytes(), *kind);
            (entry.mode, entry.mtime) = (*mode, 1_000_000_000);
            let mut content = &b""[..];
            match kind {
                Kind::File => {
                    entry.size = text.len() as u64;
                    content = text.as_bytes();
                }
                _ => entry.link = text.as_bytes().to_vec(),
            }
            writer.append(&entry, &mut content).unwrap();
        }
        writer.finish().unwrap()
    }

    fn unpacked(into: &Path, entries: &[(&str, Kind, u32, &str)]) -> Result<(), UnpackError> {
        unpack(&mut &archive(entries)[..], into)
    }

    #[test]
    fn files_folders_and_links_are_made_and_the_rest_is_left_out() {
        let into = tempfile::tempdir().unwrap();
        let entries = [
            ("bin", Kind::Directory, 0o555, ""),
            ("bin/su", Kind::File, 0o4711, "su"),
            ("bin/sh", Kind::HardLink, 0o755, "bin/su"),
            ("etc", Kind::Symlink, 0o777, "/etc"),
            ("pipe", Kind::Fifo, 0o644, ""),
            ("shadow", Kind::File, 0, "x"),
        ];
        unpacked(into.path(), &entries).unwrap();
        let meta = |path: &str| into.path().join(path).symlink_metadata().unwrap();
        assert_eq!(meta("bin").permissions().mode() & 0o7777, 0o755);
        assert_eq!(meta("bin/su").permissions().mode() & 0o7777, 0o711);
        assert_eq!(meta("shadow").permissions().mode() & 0o7777, 0o400);
        assert_eq!(
            (meta("bin").mtime(), meta("bin/sh").mtime()),
            (1_000_000_000, 1_000_000_000)
        );
        assert_ne!(meta("bin/su").ino(), meta("bin/sh").ino());
        assert_eq!(
            fs::read_to_string(into.path().join("bin/sh")).unwrap(),
            "su"
        );
        assert_eq!(
            fs::read_link(into.path().join("etc")).unwrap(),
            Path::new("/etc")
        );
        assert!(!into.path().join("pipe").exists());
        // A second time over what is there.
        unpacked(into.path(), &entries).unwrap();
    }

    #[test]
    fn nothing_is_written_outside_of_the_folder() {
        let world = tempfile::tempdir().unwrap();
        let (into, outside) = (world.path().join("into"), world.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "precious").unwrap();
        let link = outside.to_str().unwrap();
        let hostile: [&[(&str, Kind, u32, &str)]; 7] = [
            &[("../outside/file", Kind::File, 0o644, "x")],
            &[("a/../../outside/file", Kind::File, 0o644, "x")],
            &[
                ("link", Kind::Symlink, 0o777, link),
                ("link/file", Kind::File, 0o644, "x"),
            ],
            &[
                ("link", Kind::Symlink, 0o777, "../outside"),
                ("link/file", Kind::File, 0o644, "x"),
            ],
            &[
                ("d", Kind::Directory, 0o755, ""),
                ("d/link", Kind::Symlink, 0o777, "../../outside"),
                ("d/link/new", Kind::Directory, 0o755, ""),
            ],
            &[("copy", Kind::HardLink, 0o644, "../outside/file")],
            &[
                ("link", Kind::Symlink, 0o777, "../outside/file"),
                ("copy", Kind::HardLink, 0o644, "link"),
            ],
        ];
        for entries in hostile {
            let _gone = fs::remove_dir_all(&into);
            fs::create_dir(&into).unwrap();
            assert!(unpacked(&into, entries).is_err(), "{entries:?}");
            assert_eq!(
                fs::read_to_string(outside.join("file")).unwrap(),
                "precious"
            );
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{entries:?}");
            assert!(!into.join("copy").exists());
        }
        // What is in the way is replaced, and not followed.
        let _gone = fs::remove_dir_all(&into);
        fs::create_dir(&into).unwrap();
        symlink(outside.join("file"), into.join("file")).unwrap();
        symlink(&outside, into.join("folder")).unwrap();
        let entries = [
            ("file", Kind::File, 0o644, "new"),
            ("folder", Kind::Directory, 0o755, ""),
            ("folder/file", Kind::File, 0o644, "new"),
        ];
        unpacked(&into, &entries).unwrap();
        assert_eq!(fs::read_to_string(into.join("folder/file")).unwrap(), "new");
        assert_eq!(
            fs::read_to_string(outside.join("file")).unwrap(),
            "precious"
        );
    }
}
