//! What the worker and the launcher say to each other: one plan one way, a few reports the other way.
//!
//! The socket is a `SOCK_SEQPACKET` pair, so that a message is a datagram and an end is an end of file. The plan itself
//! travels in a sealed memory file, because an environment may be larger than a datagram.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::sandbox::Confinement;
use crate::sandbox::step_mounts::{Access, SecretBytes};
use crate::sandbox::ulimit::Ulimit;

/// The most descriptors one message carries: a step's own, two for each of its mounts. The kernel's limit is 253.
const MAX_FDS: usize = 8 + 2 * dockerfile::limits::MOUNTS_MAX;
/// The largest datagram: a report holds a short text at most.
const MAX_MESSAGE_BYTES: usize = 16 * 1024;

/// Everything the launcher needs to know about one step, besides its descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) network: PlanNetwork,
    pub(crate) confinement: Confinement,
    pub(crate) hostname: String,
    /// From the root, without links.
    pub(crate) etc: String,
    pub(crate) hosts_file: String,
    pub(crate) resolv_file: String,
    pub(crate) open_files: u64,
    pub(crate) processes: Option<u32>,
    pub(crate) shm_bytes: u64,
    pub(crate) ulimits: Vec<Ulimit>,
    pub(crate) mounts: Vec<PlanMount>,
    /// Files into which the container's process id is written.
    pub(crate) cgroup_procs: Vec<std::path::PathBuf>,
}

/// One mount; the descriptors of those with files come after the standard ones.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PlanMount {
    /// From the root, without links.
    pub(crate) target: String,
    pub(crate) what: PlanMounted,
}

/// What is mounted.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum PlanMounted {
    /// Something in the next of the mounts that came along.
    Files { source: String, access: Access },
    /// A new filesystem in memory.
    Memory {
        size_bytes: Option<u64>,
        access: Access,
    },
    /// A file in memory.
    Secret {
        content: SecretBytes,
        uid: u32,
        gid: u32,
        mode: u32,
    },
}

impl Plan {
    /// Returns how many mounts come along as descriptors.
    pub(crate) fn n_file_mounts(&self) -> usize {
        let mounts = self.mounts.iter();
        mounts
            .filter(|mount| matches!(mount.what, PlanMounted::Files { .. }))
            .count()
    }
}

/// Which network namespace the container gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PlanNetwork {
    /// A new one with nothing but loopback.
    New,
    /// The one whose descriptor comes after those of the mounts.
    Given,
    /// The one the launcher is in.
    Inherited,
}

/// What the launcher tells the worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The container's first process exists; its pidfd comes with the message.
    Started,
    /// The container could not be set up; nothing of it is alive.
    Failed {
        /// What was attempted.
        attempt: String,
        /// What the system answered.
        reason: String,
    },
    /// The command exited, and nothing of the container is alive.
    Exited(i32),
    /// A signal ended the command, and nothing of the container is alive.
    Killed(i32),
}

/// Sends one message with descriptors.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    rustix::net::sendmsg(
        socket,
        &[io::IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives one message; `None` at the end of file.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = vec![0_u8; MAX_MESSAGE_BYTES];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [io::IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    Ok(Some((bytes, fds)))
}

/// Sends a report, with a descriptor or none.
pub(crate) fn send_report(
    socket: BorrowedFd<'_>,
    report: &Report,
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(report)?;
    match fd {
        Some(fd) => send(socket, &bytes, &[fd]),
        None => send(socket, &bytes, &[]),
    }
}

/// Puts a plan into a memory file that its reader cannot change.
pub(crate) fn seal(plan: &impl Serialize) -> io::Result<OwnedFd> {
    use std::io::Write as _;

    use rustix::fs::{MemfdFlags, SealFlags};
    let memory =
        rustix::fs::memfd_create("kiln-plan", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(memory);
    file.write_all(&serde_json::to_vec(plan)?)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(file.as_fd(), seals)?;
    Ok(file.into())
}

/// Reads a plan back from the start of its memory file.
pub(crate) fn unseal<T: for<'a> Deserialize<'a>>(memory: OwnedFd) -> io::Result<T> {
    use std::io::{Read as _, Seek as _};
    let mut file = std::fs::File::from(memory);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Makes the worker's end of a socket one to wait for.
pub(crate) fn register(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    // SAFETY: an owned descriptor stays the same one until it is dropped, and `AsyncFd` drops it after deregistering.
    unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
}

/// Waits for the next report; `None` when there will be none.
pub(crate) async fn next_report(
    socket: &AsyncFd<OwnedFd>,
) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
    loop {
        let mut ready = socket.readable().await?;
        let received = ready.try_io(|socket| match receive(socket.as_fd()) {
            // A process that dies with our last word unread resets the connection.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            other => other,
        });
        match received {
            Err(_would_block) => {}
            Ok(message) => {
                return match message? {
                    None => Ok(None),
                    Some((bytes, fds)) => Ok(Some((
                        serde_json::from_slice(&bytes)?,
                        fds.into_iter().next(),
                    ))),
                };
            }
        }
    }
}
