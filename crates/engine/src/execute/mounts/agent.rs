//! Sockets of SSH agents, as steps see them.
//!
//! A step gets a socket of its own, which belongs to whom the mount says; what arrives there is passed on to the socket that whoever
//! started the build has put up. What may be asked of the agent is decided there, out of reach of everything in here.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use dockerfile::MountOwner;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::event::Failure;
use crate::failure::platform;

/// The name of a socket in its directory.
pub(super) const NAME: &str = "agent";
/// Most programs that talk to one agent at the same time.
const CONNECTIONS_MAX: usize = 64;

/// A socket that is listened on, until this is dropped.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) directory: PathBuf,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Listens in `directory` and passes everything on to `agent`.
pub(super) fn listen(directory: &Path, owner: MountOwner, agent: &Path) -> Result<Socket, Failure> {
    let make = || {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(CWD, directory, flags, Mode::empty())?;
        // By descriptor: the address of a socket holds no long path.
        let listener = UnixListener::bind(address(&folder))?;
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        rustix::fs::chownat(&folder, NAME, Some(uid), Some(gid), AtFlags::empty())?;
        let mode = Mode::from_raw_mode(owner.mode & 0o777);
        rustix::fs::chmodat(&folder, NAME, mode, AtFlags::empty())?;
        std::io::Result::Ok(listener)
    };
    let listener = make().map_err(|e| platform("make a socket for an SSH agent", &e))?;
    Ok(Socket {
        directory: directory.to_owned(),
        serving: tokio::spawn(serve(listener, agent.to_owned())),
    })
}

fn address(folder: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}/{NAME}", folder.as_raw_fd())
}

async fn serve(listener: UnixListener, agent: PathBuf) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // A socket that cannot be accepted on is of no use to the step either.
                let Ok((client, _)) = accepted else { return };
                if connections.len() < CONNECTIONS_MAX {
                    connections.spawn(pass_on(client, agent.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn pass_on(mut client: UnixStream, agent: PathBuf) {
    // Whatever goes wrong, the client sees its end.
    if let Ok(mut agent) = connect(&agent).await {
        let _ended = tokio::io::copy_bidirectional(&mut client, &mut agent).await;
    }
}

async fn connect(agent: &Path) -> std::io::Result<UnixStream> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let socket = rustix::fs::openat(CWD, agent, flags, Mode::empty())?;
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
}
