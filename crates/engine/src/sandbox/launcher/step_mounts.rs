//! The mounts of one step, attached over its root filesystem.
//!
//! A source is looked for inside its own mount, a target inside the root, each once and by descriptor; what is mounted is what was
//! found. Targets are free of links, or they are an error.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::mounts::{self, NODEV, NOEXEC, NOSUID, RDONLY};
use super::wire::{PlanMount, PlanMounted};
use super::{Attempt as _, Failed};
use crate::sandbox::step_mounts::Access;

/// How failures begin that are due to what a step asks for.
pub(crate) const MOUNT_POINT: &str = "make the mount point ";
/// What a filesystem in memory takes beyond its content.
const OVERHEAD_BYTES: u64 = 64 * 1024;

/// Attaches `plan`; `files` are the mounts that its entries take files from, in their order. `scratch` is a directory of our own.
pub(super) fn attach(
    plan: &[PlanMount],
    files: Vec<OwnedFd>,
    root: BorrowedFd<'_>,
    scratch: BorrowedFd<'_>,
) -> Result<(), Failed> {
    let mut files = files.into_iter();
    for (index, mount) in plan.iter().enumerate() {
        let target = &mount.target;
        let what = || format!("prepare the mount at /{target}");
        let made = match &mount.what {
            PlanMounted::Files { source, access } => {
                let tree = files.next().ok_or(Errno::BADF).attempt(what())?;
                let tree = aside(&tree, scratch, index).attempt(what())?;
                let found = find(tree.as_fd(), source)
                    .attempt(format!("find what is to be mounted at /{target}"))?;
                let copy = mounts::copy_of(found.as_fd()).attempt(what())?;
                let read_only = if *access == Access::Read { RDONLY } else { 0 };
                mounts::set_attributes(copy.as_fd(), NODEV | read_only).attempt(what())?;
                copy
            }
            PlanMounted::Memory { size_bytes, access } => {
                memory(*size_bytes, *access).attempt(what())?
            }
            PlanMounted::Secret {
                content,
                uid,
                gid,
                mode,
            } => secret(scratch, index, content.reveal(), (*uid, *gid, *mode)).attempt(what())?,
        };
        let kind = kind_of(made.as_fd()).attempt(what())?;
        let place = place(root, target, kind).attempt(format!("{MOUNT_POINT}/{target}"))?;
        mounts::attach(made.as_fd(), place.as_fd()).attempt(format!("mount /{target}"))?;
    }
    Ok(())
}

/// Attaches a mount where nobody sees it: only an attached mount can be copied in part.
fn aside(tree: &OwnedFd, scratch: BorrowedFd<'_>, index: usize) -> std::io::Result<OwnedFd> {
    let name = format!("mount-{index}");
    rustix::fs::mkdirat(scratch, &name, Mode::from_raw_mode(0o700))?;
    let place = mounts::target(scratch, &name, FileType::Directory)?;
    mounts::attach(tree.as_fd(), place.as_fd())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(scratch, &name, flags, Mode::empty())?)
}

/// Opens `source` as if `tree` were the root: neither links nor `..` lead out of it.
fn find(tree: BorrowedFd<'_>, source: &str) -> std::io::Result<OwnedFd> {
    let source = if source.is_empty() { "." } else { source };
    Ok(rustix::fs::openat2(
        tree,
        source,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?)
}

fn memory(size_bytes: Option<u64>, access: Access) -> std::io::Result<OwnedFd> {
    let size = size_bytes.map(|size| size.to_string());
    let mut options = vec![("mode", "1777")];
    options.extend(size.as_deref().map(|size| ("size", size)));
    let read_only = if access == Access::Read { RDONLY } else { 0 };
    mounts::new_filesystem("tmpfs", &options, NOSUID | NODEV | read_only)
}

/// Makes a file in memory with nothing beside it.
fn secret(
    scratch: BorrowedFd<'_>,
    index: usize,
    content: &[u8],
    (uid, gid, mode): (u32, u32, u32),
) -> std::io::Result<OwnedFd> {
    let size = (content.len() as u64 + OVERHEAD_BYTES).to_string();
    let options = [("size", size.as_str()), ("mode", "700")];
    let own = mounts::new_filesystem("tmpfs", &options, NOSUID | NODEV | NOEXEC)?;
    let tree = aside(&own, scratch, index)?;
    super::filesystem::create_file(tree.as_fd(), "secret", content, 0o600)?;
    let file = mounts::target(tree.as_fd(), "secret", FileType::RegularFile)?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::chownat(
        &tree,
        "secret",
        Some(uid),
        Some(gid),
        rustix::fs::AtFlags::empty(),
    )?;
    // Nobody else is in there: the name is still the file's.
    rustix::fs::chmodat(
        &tree,
        "secret",
        Mode::from_raw_mode(mode & 0o7777),
        rustix::fs::AtFlags::empty(),
    )?;
    let copy = mounts::copy_of(file.as_fd())?;
    mounts::set_attributes(copy.as_fd(), RDONLY | NOSUID | NODEV | NOEXEC)?;
    Ok(copy)
}

fn kind_of(mount: BorrowedFd<'_>) -> std::io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(mount)?.st_mode))
}

/// Opens the place to mount a file or directory on; makes what is missing of it.
fn place(root: BorrowedFd<'_>, path: &str, kind: FileType) -> std::io::Result<OwnedFd> {
    let wanted = match kind {
        FileType::Directory => FileType::Directory,
        // A socket is mounted over a file.
        _ => FileType::RegularFile,
    };
    match mounts::target(root, path, wanted) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        other => return other,
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut directory = rustix::fs::openat(root, ".", flags, Mode::empty())?;
    let mut names = path.split('/').peekable();
    while let Some(name) = names.next() {
        if names.peek().is_none() && wanted == FileType::RegularFile {
            super::filesystem::create_file(directory.as_fd(), name, b"", 0o644)?;
            break;
        }
        match rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            // A mount that cannot be written says so first, whatever is there.
            Err(Errno::ROFS) if has(&directory, name) => {}
            Err(errno) => return Err(errno.into()),
        }
        directory = rustix::fs::openat(&directory, name, flags, Mode::empty())?;
    }
    mounts::target(root, path, wanted)
}

fn has(directory: &OwnedFd, name: &str) -> bool {
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::statat(directory, name, flags).is_ok()
}
