//! Lends a folder of the host to a worker that is somebody else: a view of it, read-only, in which whoever owns a file on the disk owns it
//! as the same number in the worker's user namespace. Nothing is copied and no mount table changes.
//!
//! Only root can, and only of file systems that take it (ext4, xfs, btrfs, tmpfs and others; not network file systems). Ids from
//! [`CONTAINER_IDS`](super::CONTAINER_IDS) on have no number inside: files of theirs are seen as nobody's, and who lends such must not.

use std::io;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions};

use super::UserNsOptions;
use super::ids::{self, Ids, Writer};
use super::map;

/// Returns a view of the folder at `path` for a worker that is started with these options.
///
/// # Errors
/// When we are not root, or the kernel or the file system cannot do it: the folder is to be copied then.
pub fn lend(path: &Path, options: &UserNsOptions) -> io::Result<OwnedFd> {
    let ids = ids::find(options).map_err(io::Error::other)?;
    if ids.writer != Writer::Ourselves {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let view = open_tree(CWD, path, flags)?;
    let namespace = namespace(&ids)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP
            | libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?,
    };
    // SAFETY: the descriptors are open, the path is a NUL-terminated constant, the structure lives through the call and its true
    // size is passed; the kernel only reads it.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            view.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    match answer {
        0 => Ok(view),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns a user namespace with the maps that a worker's has, and nobody in it.
fn namespace(ids: &Ids) -> io::Result<OwnedFd> {
    let (ready, ready_writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let (go_reader, go) = pipe_with(PipeFlags::CLOEXEC)?;
    let (ready_fd, go_fd) = (ready_writer.as_raw_fd(), go_reader.as_raw_fd());
    let ours = go.as_raw_fd();
    // SAFETY: the child of this process, which may have other threads, makes nothing but the four system calls below, none of which
    // allocates or takes a lock, and ends.
    let forked = unsafe { libc::fork() };
    match forked {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: plain system calls on descriptors that this process has copies of, with a buffer on its own stack.
            unsafe {
                let mut word = [0_u8; 1];
                // Our copy of the other end would keep the pipe open for ever.
                libc::close(ours);
                if libc::unshare(libc::CLONE_NEWUSER) == 0 {
                    libc::write(ready_fd, word.as_ptr().cast(), 1);
                    libc::read(go_fd, word.as_mut_ptr().cast(), 1);
                }
                libc::_exit(0)
            }
        }
        _ => {}
    }
    drop((ready_writer, go_reader));
    let child = Pid::from_raw(forked).ok_or_else(|| io::Error::other("no process id"))?;
    let made = (|| {
        let mut word = [0_u8; 1];
        // It ends without a word when it may not have a namespace.
        std::fs::File::from(ready).read_exact(&mut word)?;
        map::write_map(child, "uid_map", &ids.uids).map_err(io::Error::other)?;
        map::write_map(child, "gid_map", &ids.gids).map_err(io::Error::other)?;
        let path = format!("/proc/{}/ns/user", child.as_raw_nonzero());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
    })();
    // Whatever came of it, it ends now, by the closed pipe or else by force.
    let _ended = std::fs::File::from(go).write_all(b"g");
    let _gone = rustix::process::kill_process(child, Signal::KILL);
    let _reaped = rustix::process::waitpid(Some(child), WaitOptions::empty());
    made
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};

    use super::*;

    #[test]
    fn a_folder_is_lent_read_only_and_its_owners_are_those_of_containers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "content").unwrap();
        let options = UserNsOptions::default();
        if !rustix::process::geteuid().is_root() {
            // Only root owns the file systems of the host.
            let error = lend(folder.path(), &options).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            return;
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        chown(&path, Some(1000), Some(1001)).unwrap();
        let view = lend(folder.path(), &options).unwrap();
        let base = ids::data_plane_owner(&options).unwrap();
        let stat = rustix::fs::statat(&view, "file", rustix::fs::AtFlags::empty()).unwrap();
        assert_eq!(
            (stat.st_uid, stat.st_gid),
            (base.uid + 1000, base.gid + 1001)
        );
        let written = rustix::fs::openat(&view, "file", OFlags::WRONLY, Mode::empty());
        assert_eq!(written.unwrap_err(), rustix::io::Errno::ROFS);
        // The folder itself is what it was.
        let stat = rustix::fs::stat(&path).unwrap();
        assert_eq!((stat.st_uid, stat.st_gid), (1000, 1001));
    }
}
