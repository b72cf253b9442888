//! Copies a folder: a build's context into the build, an exported root filesystem out of it.
//!
//! Neither side is trusted to hold still or to be what it was: every step goes through a folder that is held open, and no symbolic
//! link is ever followed. Regular files, folders and symbolic links are copied with their modes and times; set-id bits, hard links and
//! pipes as [`Rules::special`] says. What else there is (sockets, devices) is left out and counted. What is in the way at the destination
//! is replaced, not followed.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

/// Folders within folders that are followed; two are held open for each.
const DEPTH_MAX: usize = 200;
const PERMISSIONS: u32 = 0o777;
const MODES: u32 = 0o7777;
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// What an entry of a folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A folder.
    Folder,
    /// Anything else.
    Other,
}

/// What to do with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Copy it.
    Yes,
    /// Leave it out, and what is below it.
    No,
    /// Leave the folder out unless something below it is copied.
    PartsOnly,
}

/// What happens to what is not a plain file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    /// Set-id bits and pipes stay, and files with several names stay one file: for a folder that only the worker sees.
    Keep,
    /// Set-id bits go, pipes are left out, and every name is a file of its own.
    LeaveOut,
}

/// How to copy.
pub(crate) struct Rules<'a> {
    /// Decides about an entry, by its path within the folder and what it is.
    pub(crate) keep: &'a dyn Fn(&Path, EntryKind) -> Keep,
    /// Whom the copies belong to; the caller when not given.
    pub(crate) owner: Option<(u32, u32)>,
    /// What happens to set-id bits, hard links and pipes.
    pub(crate) special: Special,
    /// Most files.
    pub(crate) files_max: u64,
    /// Most bytes.
    pub(crate) bytes_max: u64,
}

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    /// Files, folders and links.
    pub(crate) n_files: u64,
    /// Content of files.
    pub(crate) bytes: u64,
    /// Entries of kinds that are not copied.
    pub(crate) n_skipped: u64,
}

/// Tells why a folder was not copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("write a copy of {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} is more than {DEPTH_MAX} folders deep", path.display())]
    Depth { path: PathBuf },
    #[error("there are more than {0} files")]
    Files(u64),
    #[error("there are more than {0} bytes")]
    Bytes(u64),
}

/// Copies what is in `from` into the existing folder `into`.
pub(crate) fn copy(from: &Path, into: &Path, rules: &Rules<'_>) -> Result<Copied, CopyError> {
    let read = |source: Errno| CopyError::Read {
        path: from.to_owned(),
        source: source.into(),
    };
    // The two roots are the user's own words: links in them are meant.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let source = rustix::fs::open(from, flags, Mode::empty()).map_err(read)?;
    let target =
        rustix::fs::open(into, flags, Mode::empty()).map_err(|source| CopyError::Write {
            path: into.to_owned(),
            source: source.into(),
        })?;
    let mut walk = Walk {
        rules,
        copied: Copied::default(),
        links: HashMap::new(),
        into: &target,
    };
    let target = Target::root(rustix::io::dup(&target).map_err(|source| CopyError::Write {
        path: into.to_owned(),
        source: source.into(),
    })?);
    walk.folder(&source, &target, Path::new(""), 0)?;
    Ok(walk.copied)
}

struct Walk<'a> {
    rules: &'a Rules<'a>,
    copied: Copied,
    /// The first copy of every file with several names.
    links: HashMap<(u64, u64), PathBuf>,
    /// The folder that is copied into.
    into: &'a OwnedFd,
}

/// A folder at the destination that is made when the first thing in it is.
struct Target<'a> {
    parent: Option<&'a Target<'a>>,
    name: &'a CStr,
    fd: OnceCell<OwnedFd>,
}

impl Target<'_> {
    fn root(fd: OwnedFd) -> Self {
        Self {
            parent: None,
            name: c"",
            fd: OnceCell::from(fd),
        }
    }

    fn open(&self) -> Result<&OwnedFd, Errno> {
        if let Some(fd) = self.fd.get() {
            return Ok(fd);
        }
        let parent = self.parent.ok_or(Errno::NOENT)?.open()?;
        let fd = open_or_make(parent, self.name)?;
        Ok(self.fd.get_or_init(|| fd))
    }
}

fn open_or_make(parent: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    // Ours alone until it is complete; `finish` gives it the mode that it has at the source.
    let private = Mode::RWXU;
    match rustix::fs::mkdirat(parent, name, private) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let there = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(there.st_mode) != FileType::Directory {
                rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
                rustix::fs::mkdirat(parent, name, private)?;
            }
        }
        Err(error) => return Err(error),
    }
    rustix::fs::openat(parent, name, FOLDER, Mode::empty())
}

impl Walk<'_> {
    fn folder(
        &mut self,
        from: &OwnedFd,
        into: &Target<'_>,
        path: &Path,
        depth: usize,
    ) -> Result<(), CopyError> {
        if depth > DEPTH_MAX {
            return Err(CopyError::Depth {
                path: path.to_owned(),
            });
        }
        let entries = Dir::read_from(from).map_err(|e| failed_read(path, e))?;
        for entry in entries {
            let entry = entry.map_err(|e| failed_read(path, e))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let path = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| failed_read(&path, e))?;
            let kind = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => EntryKind::Folder,
                _ => EntryKind::Other,
            };
            let keep = (self.rules.keep)(&path, kind);
            if kind == EntryKind::Folder && keep != Keep::No {
                self.subfolder((from, name), (into, keep), &path, depth)?;
            } else if keep == Keep::Yes {
                self.entry(from, name, into, &path, &stat)?;
            }
        }
        Ok(())
    }

    fn subfolder(
        &mut self,
        (parent, name): (&OwnedFd, &CStr),
        (into, keep): (&Target<'_>, Keep),
        path: &Path,
        depth: usize,
    ) -> Result<(), CopyError> {
        let from = rustix::fs::openat(parent, name, FOLDER, Mode::empty())
            .map_err(|e| failed_read(path, e))?;
        let stat = rustix::fs::fstat(&from).map_err(|e| failed_read(path, e))?;
        let target = Target {
            parent: Some(into),
            name,
            fd: OnceCell::new(),
        };
        if keep == Keep::Yes {
            target.open().map_err(|e| failed_write(path, e))?;
        }
        self.folder(&from, &target, path, depth + 1)?;
        if let Some(made) = target.fd.get() {
            self.count(0)?;
            self.finish(made, &stat)
                .map_err(|e| failed_write(path, e))?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        from: &OwnedFd,
        name: &CStr,
        into: &Target<'_>,
        path: &Path,
        stat: &Stat,
    ) -> Result<(), CopyError> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        if self.rules.special == Special::Keep && stat.st_nlink > 1 {
            let first = self.links.entry((stat.st_dev, stat.st_ino));
            if let std::collections::hash_map::Entry::Occupied(first) = first {
                let first = first.get().clone();
                self.count(0)?;
                return self
                    .link_again(&first, into, name)
                    .map_err(|e| failed_write(path, e));
            }
            if matches!(kind, FileType::RegularFile | FileType::Fifo) {
                first.or_insert_with(|| path.to_owned());
            }
        }
        match kind {
            FileType::RegularFile => self.file(from, name, into, path),
            FileType::Fifo if self.rules.special == Special::Keep => {
                self.count(0)?;
                self.pipe(name, into, stat)
                    .map_err(|e| failed_write(path, e))
            }
            FileType::Symlink => {
                self.count(0)?;
                let link = rustix::fs::readlinkat(from, name, Vec::new())
                    .map_err(|e| failed_read(path, e))?;
                self.link(&link, name, into, stat)
                    .map_err(|e| failed_write(path, e))
            }
            _ => {
                self.copied.n_skipped += 1;
                Ok(())
            }
        }
    }

    /// Makes another name for what was copied to `first`.
    fn link_again(&self, first: &Path, into: &Target<'_>, name: &CStr) -> Result<(), Errno> {
        let into = into.open()?;
        make_room(into, name)?;
        let first = CString::new(first.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
        rustix::fs::linkat(self.into, &first, into, name, AtFlags::empty())
    }

    fn pipe(&self, name: &CStr, into: &Target<'_>, stat: &Stat) -> Result<(), Errno> {
        let into = into.open()?;
        make_room(into, name)?;
        rustix::fs::mkfifoat(into, name, Mode::RUSR)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        if let Some((uid, gid)) = self.rules.owner {
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(into, name, owner.0, owner.1, flags)?;
        }
        let mode = Mode::from_raw_mode(stat.st_mode & PERMISSIONS);
        rustix::fs::chmodat(into, name, mode, AtFlags::empty())?;
        rustix::fs::utimensat(into, name, &times(stat), flags)
    }

    fn link(&self, link: &CStr, name: &CStr, into: &Target<'_>, stat: &Stat) -> Result<(), Errno> {
        let into = into.open()?;
        make_room(into, name)?;
        rustix::fs::symlinkat(link, into, name)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        if let Some((uid, gid)) = self.rules.owner {
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::chownat(into, name, owner.0, owner.1, flags)?;
        }
        rustix::fs::utimensat(into, name, &times(stat), flags)
    }

    fn file(
        &mut self,
        from: &OwnedFd,
        name: &CStr,
        into: &Target<'_>,
        path: &Path,
    ) -> Result<(), CopyError> {
        // Not blocking: a pipe may have taken the file's place meanwhile.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let from = rustix::fs::openat(from, name, flags, Mode::empty())
            .map_err(|e| failed_read(path, e))?;
        let stat = rustix::fs::fstat(&from).map_err(|e| failed_read(path, e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(failed_read(path, Errno::AGAIN));
        }
        let room = self.rules.bytes_max - self.copied.bytes;
        let copy = || -> io::Result<u64> {
            let into = into.open()?;
            make_room(into, name)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = rustix::fs::openat(into, name, flags, Mode::RUSR | Mode::WUSR)?;
            let mut file = File::from(file);
            // Within the kernel where it can: shared extents, or copy_file_range.
            let mut source = io::Read::take(File::from(from), room.saturating_add(1));
            let n = io::copy(&mut source, &mut file)?;
            self.finish(file.as_fd(), &stat)?;
            Ok(n)
        };
        let n = copy().map_err(|source| CopyError::Write {
            path: path.to_owned(),
            source,
        })?;
        self.count(n)
    }

    fn finish(&self, fd: impl AsFd, stat: &Stat) -> Result<(), Errno> {
        if let Some((uid, gid)) = self.rules.owner {
            rustix::fs::fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        let kept = match self.rules.special {
            Special::Keep => MODES,
            Special::LeaveOut => PERMISSIONS,
        };
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(stat.st_mode & kept))?;
        rustix::fs::futimens(&fd, &times(stat))
    }

    fn count(&mut self, bytes: u64) -> Result<(), CopyError> {
        self.copied.n_files += 1;
        self.copied.bytes += bytes;
        if self.copied.n_files > self.rules.files_max {
            return Err(CopyError::Files(self.rules.files_max));
        }
        if self.copied.bytes > self.rules.bytes_max {
            return Err(CopyError::Bytes(self.rules.bytes_max));
        }
        Ok(())
    }
}

fn make_room(folder: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    Timestamps {
        last_access: time(
            stat.st_atime,
            i64::try_from(stat.st_atime_nsec).unwrap_or(0),
        ),
        last_modification: time(
            stat.st_mtime,
            i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
        ),
    }
}

fn failed_read(path: &Path, source: Errno) -> CopyError {
    CopyError::Read {
        path: path.to_owned(),
        source: source.into(),
    }
}

fn failed_write(path: &Path, source: Errno) -> CopyError {
    CopyError::Write {
        path: path.to_owned(),
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

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
}
