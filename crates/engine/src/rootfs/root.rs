//! Files inside a root, by paths that an image, a Dockerfile or a repository names.
//!
//! Every path is resolved as a process inside would see it after `chroot`: absolute paths start at the root, `..` and symbolic
//! links stay within. Content is read from regular files only; a pipe or device is an error at once, not a wait.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use super::tree::{self, join};

/// Most symbolic links that are followed in one path, as the kernel has it.
const LINKS_MAX: usize = 40;
/// Longest symbolic link that is read.
const LINK_MAX_BYTES: usize = 4096;

/// A directory that is `/` for everything in it.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: FileType,
    /// Permissions with setuid, setgid and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of content.
    pub size: u64,
    /// Time of last modification, in whole seconds since 1970.
    pub mtime: i64,
}

impl From<Stat> for Metadata {
    #[expect(
        clippy::useless_conversion,
        reason = "the fields have other widths on other processors"
    )]
    fn from(stat: Stat) -> Self {
        Self {
            kind: tree::kind(&stat),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: stat.st_mtime.into(),
        }
    }
}

/// Tells why something inside a root could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// Nothing is there.
    #[error("{path:?} does not exist")]
    NotFound {
        /// The path.
        path: String,
    },
    /// A symbolic link that leads nowhere inside.
    #[error("{path:?} is a symbolic link to something that is not in this tree")]
    Dangling {
        /// The path.
        path: String,
    },
    /// Not what was asked for.
    #[error("{path:?} is not {wanted}")]
    WrongKind {
        /// The path.
        path: String,
        /// What was asked for.
        wanted: &'static str,
    },
    /// More bytes than the caller wants.
    #[error("{path:?} is larger than {max_bytes} bytes")]
    TooLarge {
        /// The path.
        path: String,
        /// The limit.
        max_bytes: u64,
    },
    /// The system refused.
    #[error("failed to {attempt} {path:?}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Root {
    /// Opens a directory of this machine as a root.
    ///
    /// # Errors
    /// When it is not a directory that can be opened.
    pub fn open(path: &Path) -> Result<Self, RootError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|error| failed("open", path.as_os_str().as_bytes())(error.into()))?;
        Ok(Self { fd })
    }

    /// Takes a directory or a detached mount as a root.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Returns the root directory.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Gives the directory or mount back.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Returns the directory that `path` leads to, links followed inside this root, as a root of its own.
    ///
    /// # Errors
    /// When it is not a directory that can be opened.
    pub fn subdirectory(&self, path: &Path) -> Result<Self, RootError> {
        let bytes = path.as_os_str().as_bytes();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = tree::open_in(&self.fd, bytes, flags)
            .map_err(|error| self.explain("open", bytes, error))?;
        Ok(Self { fd })
    }

    /// Opens the regular file that `path` leads to, links followed, for reading.
    ///
    /// # Errors
    /// See [`RootError`].
    pub fn open_regular(&self, path: &Path) -> Result<File, RootError> {
        let bytes = path.as_os_str().as_bytes();
        // Looked at before it is opened: opening a device can have effects.
        let seen = tree::open_in(&self.fd, bytes, OFlags::PATH)
            .map_err(|error| self.explain("open", bytes, error))?;
        let wrong = || RootError::WrongKind {
            path: tree::shown(bytes),
            wanted: "a regular file",
        };
        if !is_regular(&seen).map_err(failed("look at", bytes))? {
            return Err(wrong());
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = tree::open_in(&self.fd, bytes, flags).map_err(failed("open", bytes))?;
        if !is_regular(&file).map_err(failed("look at", bytes))? {
            return Err(wrong());
        }
        Ok(File::from(file))
    }

    /// Reads the regular file that `path` leads to, links followed.
    ///
    /// # Errors
    /// See [`RootError`]; a file of more than `max_bytes` is one, and is not read.
    pub fn read_file(&self, path: &Path, max_bytes: u64) -> Result<Vec<u8>, RootError> {
        let shown = path.as_os_str().as_bytes();
        let file = self.open_regular(path)?;
        let too_large = || RootError::TooLarge {
            path: tree::shown(shown),
            max_bytes,
        };
        let size = file.metadata().map_err(failed("look at", shown))?.len();
        if size > max_bytes {
            return Err(too_large());
        }
        let mut content = Vec::new();
        file.take(max_bytes.saturating_add(1))
            .read_to_end(&mut content)
            .map_err(failed("read", shown))?;
        if content.len() as u64 > max_bytes {
            return Err(too_large());
        }
        Ok(content)
    }

    /// Looks at what `path` names: links in front are followed, a link at the end is not. `None` if nothing is there.
    ///
    /// # Errors
    /// See [`RootError`].
    pub fn lstat(&self, path: &Path) -> Result<Option<Metadata>, RootError> {
        self.look(path, OFlags::PATH | OFlags::NOFOLLOW)
    }

    /// Looks at what `path` leads to, links followed. `None` if nothing is there.
    ///
    /// # Errors
    /// See [`RootError`].
    pub fn stat(&self, path: &Path) -> Result<Option<Metadata>, RootError> {
        self.look(path, OFlags::PATH)
    }

    fn look(&self, path: &Path, flags: OFlags) -> Result<Option<Metadata>, RootError> {
        let bytes = path.as_os_str().as_bytes();
        match tree::open_in(&self.fd, bytes, flags) {
            Ok(fd) => {
                let stat = rustix::fs::fstat(&fd).map_err(io::Error::from);
                Ok(Some(stat.map_err(failed("look at", bytes))?.into()))
            }
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(failed("look at", bytes)(error)),
        }
    }

    /// Returns the target of the symbolic link that `path` names.
    ///
    /// # Errors
    /// See [`RootError`].
    pub fn read_link(&self, path: &Path) -> Result<PathBuf, RootError> {
        let bytes = path.as_os_str().as_bytes();
        let fd = tree::open_in(&self.fd, bytes, OFlags::PATH | OFlags::NOFOLLOW)
            .map_err(|error| self.explain("open", bytes, error))?;
        let target = rustix::fs::readlinkat(&fd, "", Vec::new()).map_err(io::Error::from);
        let target = target.map_err(failed("read the link", bytes))?;
        Ok(OsStr::from_bytes(target.to_bytes()).into())
    }

    /// Returns where `path` leads, as a path from the root without links, `.` and `..`. Names that are not there (yet) stay as
    /// they are; the root itself is the empty path.
    ///
    /// # Errors
    /// See [`RootError`]; a loop of links is one.
    pub fn resolve(&self, path: &Path) -> Result<PathBuf, RootError> {
        let bytes = path.as_os_str().as_bytes();
        let mut done: Vec<u8> = Vec::new();
        let mut todo: Vec<Vec<u8>> = reversed(bytes);
        let mut n_links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                let parent = done.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                done.truncate(parent);
                continue;
            }
            let here = join(&done, &name);
            let flags = OFlags::PATH | OFlags::NOFOLLOW;
            let link = match tree::open_below(&self.fd, &here, flags) {
                Ok(fd) => read_link_of(&fd).map_err(failed("read the link", &here))?,
                Err(error) if is_absent(&error) => None,
                Err(error) => return Err(failed("look at", &here)(error)),
            };
            let Some(target) = link else {
                done = here;
                continue;
            };
            n_links += 1;
            if n_links > LINKS_MAX {
                return Err(failed("follow", bytes)(Errno::LOOP.into()));
            }
            if target.starts_with(b"/") {
                done.clear();
            }
            todo.extend(reversed(&target));
        }
        Ok(OsStr::from_bytes(&done).into())
    }

    /// Makes the directory `path` and those above it that are missing, with `mode` and `owner`; links are followed inside.
    /// Directories that are there stay as they are. Returns whether anything was made.
    ///
    /// # Errors
    /// See [`RootError`]; something in the way that is not a directory is one.
    pub fn create_dir_all(
        &self,
        path: &Path,
        mode: u32,
        owner: (u32, u32),
    ) -> Result<bool, RootError> {
        Ok(!self.create_dirs(path, mode, owner)?.is_empty())
    }

    /// Does as [`Self::create_dir_all`], and returns what was made, from the top.
    pub(super) fn create_dirs(
        &self,
        path: &Path,
        mode: u32,
        owner: (u32, u32),
    ) -> Result<Vec<Vec<u8>>, RootError> {
        let resolved = self.resolve(path)?;
        let mut here = Vec::new();
        let mut created = Vec::new();
        let mut dir = self.fd.try_clone().map_err(failed("open", b"/"))?;
        for name in reversed(resolved.as_os_str().as_bytes()).into_iter().rev() {
            here = join(&here, &name);
            match rustix::fs::mkdirat(&dir, &name[..], Mode::from_raw_mode(0o700)) {
                Ok(()) => created.push(here.clone()),
                Err(Errno::EXIST) => {
                    dir = self.open_child(&dir, &name, &here)?;
                    continue;
                }
                Err(error) => return Err(failed("make directory", &here)(error.into())),
            }
            dir = self.open_child(&dir, &name, &here)?;
            let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
            rustix::fs::fchown(&dir, Some(uid), Some(gid))
                .and_then(|()| rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode)))
                .map_err(|error| failed("set the owner of", &here)(error.into()))?;
        }
        Ok(created)
    }

    #[expect(
        clippy::unused_self,
        reason = "reads as part of the methods that walk this root"
    )]
    fn open_child(&self, dir: &OwnedFd, name: &[u8], here: &[u8]) -> Result<OwnedFd, RootError> {
        match tree::open_below(dir, name, tree::directory_flags()) {
            Ok(dir) => Ok(dir),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOTDIR) => {
                Err(RootError::WrongKind {
                    path: tree::shown(here),
                    wanted: "a directory",
                })
            }
            Err(error) => Err(failed("open directory", here)(error)),
        }
    }

    /// Removes what `path` names, with everything below it; a link at the end is removed itself. Nothing there is no error.
    ///
    /// # Errors
    /// See [`RootError`].
    pub fn remove_all(&self, path: &Path) -> Result<(), RootError> {
        let bytes = path.as_os_str().as_bytes();
        let (parent, Some(name)) = (path.parent().unwrap_or(Path::new("")), path.file_name())
        else {
            return Err(RootError::WrongKind {
                path: tree::shown(bytes),
                wanted: "inside the root",
            });
        };
        let parent = match tree::open_in(
            &self.fd,
            parent.as_os_str().as_bytes(),
            OFlags::PATH | OFlags::DIRECTORY,
        ) {
            Ok(parent) => parent,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(failed("open", bytes)(error)),
        };
        let name = tree::c_name(name.as_bytes()).map_err(failed("remove", bytes))?;
        super::remove::remove_at(parent.as_fd(), &name).map_err(failed("remove", bytes))
    }

    /// Gives an error that says more than the system's when `path` ends in a link.
    fn explain(&self, attempt: &'static str, path: &[u8], error: io::Error) -> RootError {
        if !is_absent(&error) {
            return failed(attempt, path)(error);
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let path_shown = tree::shown(path);
        match tree::open_in(&self.fd, path, flags) {
            Ok(_) => RootError::Dangling { path: path_shown },
            Err(_) => RootError::NotFound { path: path_shown },
        }
    }
}

fn is_regular(fd: &OwnedFd) -> io::Result<bool> {
    Ok(tree::kind(&rustix::fs::fstat(fd)?) == FileType::RegularFile)
}

pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR)
    )
}

fn read_link_of(fd: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    if tree::kind(&rustix::fs::fstat(fd)?) != FileType::Symlink {
        return Ok(None);
    }
    let target = rustix::fs::readlinkat(fd, "", Vec::with_capacity(256))?;
    if target.as_bytes().len() > LINK_MAX_BYTES {
        return Err(Errno::NAMETOOLONG.into());
    }
    Ok(Some(target.into_bytes()))
}

/// Returns the names of a path, last first, without empty ones and `.`.
fn reversed(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"."))
        .map(<[u8]>::to_vec)
        .rev()
        .collect()
}

pub(super) fn failed(attempt: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> RootError {
    let path = tree::shown(path);
    move |source| RootError::Io {
        attempt,
        path,
        source,
    }
}
