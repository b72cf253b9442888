//! Layers stacked by overlayfs, as a mount that stands in no mount table.
//!
//! [`mount`] gives a file descriptor. It serves as a directory to our own code ([`super::root::Root::from_fd`]), and whoever
//! gets it passed may attach it with `move_mount`. When the last descriptor of a mount that was not attached is closed, the mount
//! is gone: nothing has to be cleaned up.
//!
//! The mount is made with `userxattr`: the kernel then follows neither redirects nor metadata-only copies that a layer might bring
//! along, and it works inside a user namespace. Where there is an upper directory it is `volatile`: what a step left is worth nothing after
//! a crash of the machine, and what becomes of it is made durable by the store, so that neither the end of a mount nor an `fsync` of a
//! command waits for everything on the disk. Device files mean nothing (`nodev`); setuid programs work, for steps use sudo.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, Timestamps};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, OpenTreeFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};

use super::{attributes, tree};

/// Most layers that overlayfs stacks.
pub const LOWERS_MAX: usize = 500;
/// Most layers where the kernel takes them only as one string of a page.
const LOWERS_MAX_LEGACY: usize = 200;

/// Where a step's changes go: a directory with the parts that overlayfs wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upper {
    dir: PathBuf,
}

/// Tells why no mount could be made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// More layers than overlayfs stacks.
    #[error("image has {n} layers, at most {max} can be stacked")]
    TooManyLayers {
        /// Layers that were given.
        n: usize,
        /// Layers that are possible.
        max: usize,
    },
    /// Neither layers nor a place for changes.
    #[error("there is nothing to mount")]
    Nothing,
    /// A directory could not be made or opened.
    #[error("failed to open {path:?}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("failed to mount layers: {attempt}{}", kernel_says(log))]
    Mount {
        /// What was tried.
        attempt: &'static str,
        /// The kernel's own words, if it had any.
        log: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn kernel_says(log: &str) -> String {
    match log {
        "" => String::new(),
        log => format!(" (kernel: {log})"),
    }
}

impl Upper {
    /// Makes `dir` with the directories of an empty upper. Its root looks like that of `parent_view`, the stack below; like a fresh
    /// 0755 directory of root's with time 0 when there is none.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn create(parent_view: Option<BorrowedFd<'_>>, dir: &Path) -> io::Result<Self> {
        fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(dir)?;
        let this = Self {
            dir: dir.to_owned(),
        };
        for part in [this.path(), this.work(), this.empty()] {
            fs::DirBuilder::new().mode(0o700).create(part)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        for part in [this.path(), this.empty()] {
            let root = rustix::fs::openat(CWD, &part, flags, Mode::empty())?;
            if let Some(view) = parent_view {
                let stat = rustix::fs::fstat(view)?;
                super::copy::put_metadata(&root, &stat.into())?;
                let view = rustix::fs::openat(view, ".", flags, Mode::empty())?;
                attributes::write(&root, &attributes::read(&view)?)?;
            } else {
                rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755))?;
                rustix::fs::futimens(&root, &times(0))?;
            }
        }
        Ok(this)
    }

    /// Returns the upper that was created in `dir` before.
    pub fn existing(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// Returns the directory that holds the changes, in overlayfs' format: what [`super::diff::diff`] reads.
    pub fn path(&self) -> PathBuf {
        self.dir.join("upper")
    }

    fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// What an image without layers is stacked on, for overlayfs wants at least one.
    fn empty(&self) -> PathBuf {
        self.dir.join("empty")
    }
}

/// Returns times of last access and change at `seconds`.
pub(crate) fn times(seconds: i64) -> Timestamps {
    let at = rustix::fs::Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: at,
        last_modification: at,
    }
}

/// Stacks `lowers`, the bottom one first, and returns the detached mount. Changes go to `upper`; without one, nothing can be
/// changed.
///
/// # Errors
/// See [`MountError`].
pub fn mount(lowers: &[PathBuf], upper: Option<&Upper>) -> Result<OwnedFd, MountError> {
    let mut dirs = Vec::new();
    // Top first, down to the first that hides everything below: overlayfs heeds that mark on all directories but the root.
    for (index, path) in lowers.iter().enumerate().rev() {
        // Layers of equal content share a directory, which overlayfs does not take twice. What the lower one holds, the upper one
        // holds too.
        if lowers.iter().skip(index + 1).any(|above| above == path) {
            continue;
        }
        let dir = open_dir(path)?;
        let is_opaque = attributes::is_opaque(&dir).map_err(|source| MountError::Open {
            path: path.clone(),
            source,
        })?;
        dirs.push(dir);
        if is_opaque {
            break;
        }
    }
    if let (true, Some(upper)) = (dirs.is_empty(), upper) {
        dirs.push(open_dir(&upper.empty())?);
    }
    if dirs.len() > LOWERS_MAX {
        return Err(MountError::TooManyLayers {
            n: dirs.len(),
            max: LOWERS_MAX,
        });
    }
    let upper = match upper {
        Some(upper) => Some((open_dir(&upper.path())?, open_dir(&upper.work())?)),
        None => None,
    };
    match (&dirs[..], &upper) {
        ([], _) => Err(MountError::Nothing),
        // Overlayfs refuses a single layer without an upper.
        ([only], None) => bind_read_only(only),
        _ => match mount_detached(&dirs, upper.as_ref()) {
            Err(MountError::Mount { source, .. }) if is_unknown(&source) => {
                mount_by_string(&dirs, upper.as_ref())
            }
            other => other,
        },
    }
}

/// Tells whether the kernel does not know `lowerdir+` (before 6.8), or overlayfs through the new calls (before 6.5).
fn is_unknown(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::INVAL | Errno::NOSYS | Errno::NODEV)
    )
}

fn open_dir(path: &Path) -> Result<OwnedFd, MountError> {
    let flags = tree::directory_flags() | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|error| MountError::Open {
        path: path.to_owned(),
        source: error.into(),
    })
}

/// A path that the kernel resolves to the open directory: short whatever the real one is, without characters that options would
/// have to escape, and still the same directory.
fn magic_path(dir: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", dir.as_raw_fd())
}

fn mount_detached(
    dirs: &[OwnedFd],
    upper: Option<&(OwnedFd, OwnedFd)>,
) -> Result<OwnedFd, MountError> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|error| failed("fsopen", error, None))?;
    let check = |attempt, result: rustix::io::Result<()>| {
        result.map_err(|error| failed(attempt, error, Some(&context)))
    };
    check("source", fsconfig_set_string(&context, "source", "kiln"))?;
    check("userxattr", fsconfig_set_flag(&context, "userxattr"))?;
    for dir in dirs {
        let path = magic_path(dir);
        check(
            "lowerdir+",
            fsconfig_set_string(&context, "lowerdir+", path),
        )?;
    }
    if let Some((upper, work)) = upper {
        let (upper, work) = (magic_path(upper), magic_path(work));
        check("upperdir", fsconfig_set_string(&context, "upperdir", upper))?;
        check("workdir", fsconfig_set_string(&context, "workdir", work))?;
        check("volatile", fsconfig_set_flag(&context, "volatile"))?;
    }
    check("create", fsconfig_create(&context))?;
    let flags = match upper {
        Some(_) => MountAttrFlags::MOUNT_ATTR_NODEV,
        None => MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_RDONLY,
    };
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
        .map_err(|error| failed("fsmount", error, Some(&context)))
}

/// Returns the error with what the kernel logged about it.
fn failed(attempt: &'static str, error: Errno, context: Option<&OwnedFd>) -> MountError {
    let mut log = [0u8; 512];
    let n = context.map_or(0, |context| {
        rustix::io::read(context, &mut log[..]).unwrap_or(0)
    });
    let log = String::from_utf8_lossy(log.get(..n).unwrap_or_default());
    MountError::Mount {
        attempt,
        log: log.trim().to_owned(),
        source: error.into(),
    }
}

fn bind_read_only(dir: &OwnedFd) -> Result<OwnedFd, MountError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(dir, "", flags).map_err(|error| failed("open_tree", error, None))?;
    restrict(&tree, Access::Read)?;
    Ok(tree)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// Makes a mount `nodev`, and read-only for [`Access::Read`].
fn restrict(tree: &OwnedFd, access: Access) -> Result<(), MountError> {
    let read_only = match access {
        Access::Read => libc::MOUNT_ATTR_RDONLY,
        Access::Write => 0,
    };
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_NODEV | read_only,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the descriptor is open, the path is a NUL-terminated constant, the structure lives through the call and its true
    // size is passed; the kernel only reads it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(MountError::Mount {
            attempt: "mount_setattr",
            log: String::new(),
            source: io::Error::last_os_error(),
        }),
    }
}

/// Mounts in the old way, in a mount namespace of a thread's own, and takes a detached copy out of it: here, too, nothing appears
/// in a mount table that anybody else has.
fn mount_by_string(
    dirs: &[OwnedFd],
    upper: Option<&(OwnedFd, OwnedFd)>,
) -> Result<OwnedFd, MountError> {
    if dirs.len() > LOWERS_MAX_LEGACY {
        return Err(MountError::TooManyLayers {
            n: dirs.len(),
            max: LOWERS_MAX_LEGACY,
        });
    }
    let real_path = |dir: &OwnedFd| {
        let path = magic_path(dir);
        fs::read_link(&path).map_err(|source| MountError::Open {
            path: path.into(),
            source,
        })
    };
    let lowers = dirs.iter().map(real_path).collect::<Result<Vec<_>, _>>()?;
    let upper = match upper {
        Some((upper, work)) => Some((real_path(upper)?, real_path(work)?)),
        None => None,
    };
    let thread = std::thread::scope(|scope| {
        let work = || mount_in_own_namespace(&lowers, upper.as_ref());
        scope.spawn(work).join()
    });
    let tree = thread.map_err(|_| failed("thread", Errno::IO, None))??;
    let access = match upper {
        Some(_) => Access::Write,
        None => Access::Read,
    };
    restrict(&tree, access)?;
    Ok(tree)
}

fn mount_in_own_namespace(
    lowers: &[PathBuf],
    upper: Option<&(PathBuf, PathBuf)>,
) -> Result<OwnedFd, MountError> {
    let check = |attempt, result: rustix::io::Result<()>| {
        result.map_err(|error| failed(attempt, error, None))
    };
    let flags = rustix::thread::UnshareFlags::FS | rustix::thread::UnshareFlags::NEWNS;
    // SAFETY: gives this thread, which ends right after, a mount table and working directory of its own; descriptors stay shared.
    check("unshare", unsafe { rustix::thread::unshare_unsafe(flags) })?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    check("make private", rustix::mount::mount_change("/", private))?;
    // Opened again, for what was opened before belongs to the other mount namespace.
    let dirs = lowers.iter().map(|path| open_dir(path));
    let dirs = dirs.collect::<Result<Vec<_>, _>>()?;
    let paths: Vec<_> = dirs.iter().map(magic_path).collect();
    let lowerdir = paths.join(":");
    let opened = match upper {
        Some((upper, work)) => Some((open_dir(upper)?, open_dir(work)?)),
        None => None,
    };
    let options = match &opened {
        Some((upper, work)) => {
            let (upper, work) = (magic_path(upper), magic_path(work));
            format!("userxattr,volatile,lowerdir={lowerdir},upperdir={upper},workdir={work}")
        }
        None => format!("userxattr,lowerdir={lowerdir}"),
    };
    let options = std::ffi::CString::new(options).unwrap_or_default();
    // Any directory will do to mount on: nobody else sees it.
    let target = lowers.first().ok_or(MountError::Nothing)?;
    let data = Some(options.as_c_str());
    let mounted = rustix::mount::mount("kiln", target, "overlay", MountFlags::NODEV, data);
    check("mount", mounted)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, target, flags).map_err(|error| failed("open_tree", error, None))
}

/// Mounts in the old way, whatever the kernel could do.
#[cfg(test)]
pub(super) fn mount_by_string_for_tests(
    lowers: &[PathBuf],
    upper: Option<&Upper>,
) -> Result<OwnedFd, MountError> {
    let dirs = lowers.iter().rev().map(|path| open_dir(path));
    let dirs = dirs.collect::<Result<Vec<_>, _>>()?;
    let upper = match upper {
        Some(upper) => Some((open_dir(&upper.path())?, open_dir(&upper.work())?)),
        None => None,
    };
    mount_by_string(&dirs, upper.as_ref())
}
