//! Mounts by descriptor, never by path: the few wrappers the launcher and the worker share.
//!
//! Targets are opened inside the root with `openat2` and no symlinks, and mounted by descriptor, so that nothing a base
//! image contains can redirect a mount.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

/// `MOUNT_ATTR_RDONLY`.
pub(crate) const RDONLY: u64 = 0x1;
/// `MOUNT_ATTR_NOSUID`.
pub(crate) const NOSUID: u64 = 0x2;
/// `MOUNT_ATTR_NODEV`.
pub(crate) const NODEV: u64 = 0x4;
/// `MOUNT_ATTR_NOEXEC`.
pub(crate) const NOEXEC: u64 = 0x8;

/// Sets attributes of one mount; rustix has no `mount_setattr`.
pub(crate) fn set_attributes(mount: BorrowedFd<'_>, attributes: u64) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is a valid empty C string and `attr` outlives the call, whose size is passed with it.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes a detached mount of a new filesystem of kind `kind`.
pub(crate) fn new_filesystem(
    kind: &str,
    options: &[(&str, &str)],
    attributes: u64,
) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "source", kind)?;
    for (key, value) in options {
        if value.is_empty() {
            rustix::mount::fsconfig_set_flag(context.as_fd(), *key)?;
        } else {
            rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)?;
        }
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    let bits = u32::try_from(attributes).map_err(io::Error::other)?;
    let mount = rustix::mount::fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::from_bits_retain(bits),
    )?;
    Ok(mount)
}

/// Makes a detached copy of the mount that `from` lies on, rooted at `from`.
pub(crate) fn copy_of(from: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(from, "", flags)?)
}

/// Attaches a detached mount at `target`.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", target, "", flags)?)
}

/// Opens `path` under `root` as a place to mount on, following no link of any kind.
pub(crate) fn target(root: BorrowedFd<'_>, path: &str, kind: FileType) -> io::Result<OwnedFd> {
    let fd = rustix::fs::openat2(
        root,
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::IN_ROOT,
    )?;
    let found = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
    if found == kind {
        Ok(fd)
    } else {
        Err(io::Error::other(format!(
            "/{path} is {found:?}, not {kind:?}"
        )))
    }
}

/// Opens the host's device node `name` and checks that it is the character device it should be.
pub(crate) fn host_device(name: &str, major: u32, minor: u32) -> io::Result<OwnedFd> {
    let fd = rustix::fs::openat(
        CWD,
        format!("/dev/{name}"),
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let stat = rustix::fs::statat(&fd, "", AtFlags::EMPTY_PATH)?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if is_device && stat.st_rdev == rustix::fs::makedev(major, minor) {
        Ok(fd)
    } else {
        Err(io::Error::other(format!(
            "/dev/{name} of the host is not character device {major}:{minor}"
        )))
    }
}
