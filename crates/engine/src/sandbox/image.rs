//! The program the launcher is executed from: this very binary, made unwritable.
//!
//! While a container's first process sets itself up it still runs our binary, and a root filesystem may name
//! `/proc/self/exe` as an interpreter. What it reaches that way must not be a file that the container's root could
//! write: as an ordinary user, the container's root owns the binary. So the launcher runs from a read-only mount of the
//! binary that nobody else can see, or, where that cannot be made, from a sealed copy in memory.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mount::OpenTreeFlags;

use super::launcher::mounts;

/// A private, unwritable descriptor of this program's binary.
#[derive(Debug, Clone)]
pub struct LauncherImage {
    fd: Arc<OwnedFd>,
}

/// Why the program's binary could not be made unwritable.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The running binary could not be read.
    #[error("read this program's binary")]
    Read {
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// Neither a read-only mount nor a sealed copy could be made.
    #[error("copy this program's binary into sealed memory")]
    Seal {
        /// What the system answered.
        #[source]
        source: io::Error,
    },
}

impl LauncherImage {
    /// Makes the image. Needs the right to mount in the current mount namespace for the cheap way, nothing for the other.
    ///
    /// Call it while the process still may search the directories that lead to the binary, so before it gives up its ids.
    pub fn prepare() -> Result<Self, ImageError> {
        if let Ok(fd) = read_only_mount() {
            return Ok(Self { fd: Arc::new(fd) });
        }
        sealed_copy().map(|fd| Self { fd: Arc::new(fd) })
    }

    /// Returns a path that executes the image from this process or a child of it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }
}

fn read_only_mount() -> io::Result<OwnedFd> {
    let running = rustix::fs::stat("/proc/self/exe")?;
    let path = std::fs::read_link("/proc/self/exe")?;
    let tree = rustix::mount::open_tree(
        CWD,
        path.as_path(),
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?;
    let cloned = rustix::fs::statat(tree.as_fd(), "", AtFlags::EMPTY_PATH)?;
    if (cloned.st_dev, cloned.st_ino) != (running.st_dev, running.st_ino) {
        return Err(io::Error::other("the binary was replaced while it runs"));
    }
    mounts::set_attributes(
        tree.as_fd(),
        mounts::RDONLY | mounts::NOSUID | mounts::NODEV,
    )?;
    Ok(tree)
}

fn sealed_copy() -> Result<OwnedFd, ImageError> {
    let read = |source| ImageError::Read { source };
    let seal = |source: io::Error| ImageError::Seal { source };
    let mut from = open_for_reading(Path::new("/proc/self/exe")).map_err(read)?;
    let memory = rustix::fs::memfd_create("kiln", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(|errno| seal(errno.into()))?;
    let mut to = std::fs::File::from(memory);
    io::copy(&mut from, &mut to).map_err(seal)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&to, seals).map_err(|errno| seal(errno.into()))?;
    Ok(to.into())
}

fn open_for_reading(path: &Path) -> io::Result<std::fs::File> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(fd.into())
}
