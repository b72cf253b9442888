//! `/dev/net/tun` for the programs that connect steps to the outside.
//!
//! Most hosts let everybody open it; some let root only. A worker started by root then gets a node of its own in a mount
//! namespace of its own, before it gives its privileges up. The node gives nothing to who has no power over a network
//! namespace, and the host's own node stays as it is.

use std::io;

use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;

const DIRECTORY: &str = "/dev/net";
const NODE: &str = "/dev/net/tun";
/// The device's numbers.
const NUMBERS: (u32, u32) = (10, 200);
/// What everybody needs to open it.
const READ_AND_WRITE: u32 = 0o006;

/// Makes the node usable by the worker. Must be called as root, before the user namespace is entered.
pub(super) fn lend() -> io::Result<()> {
    let node = rustix::fs::stat(NODE)?;
    if node.st_mode & READ_AND_WRITE == READ_AND_WRITE {
        return Ok(());
    }
    // SAFETY: the process has a single thread and shares no descriptor table.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    rustix::mount::mount(
        "tmpfs",
        DIRECTORY,
        "tmpfs",
        flags,
        Some(c"size=4k,mode=755"),
    )?;
    let device = rustix::fs::makedev(NUMBERS.0, NUMBERS.1);
    rustix::fs::mknodat(
        CWD,
        NODE,
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        device,
    )?;
    // The umask had its say in the mode above.
    Ok(rustix::fs::chmod(NODE, Mode::from_raw_mode(0o666))?)
}
