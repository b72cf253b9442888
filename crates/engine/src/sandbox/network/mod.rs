//! Networks for steps: namespaces connected to the outside by a user-mode network stack, kept for the next step.
//!
//! A namespace is made by a process of this program ([`keeper`]), which also starts `pasta` or `slirp4netns` for it and
//! ends that program when the worker says so or is gone. A step leases a namespace, alone, and gives it back; what a step
//! could leave in it is nothing but closed connections, because it has no power over the namespace.
//!
//! What a step reaches: the outside, as the host does. What it does not reach: the host's loopback (no port is forwarded
//! and no address maps to it), the host's other addresses and the metadata services of clouds (unreachable routes), other
//! steps. Names are resolved through [`DNS_ADDRESS`], which the program hands to the host's resolver.
//!
//! A host without any way out gets steps without any, rather than an error.

pub(super) mod keeper;
mod routes;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::AsyncReadExt as _;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::process::Child;
use tokio::task::JoinHandle;

use super::image::LauncherImage;
use super::launcher::wire::{self, Report};
use super::launcher::{NETWORK_MESSAGE, STEP_INIT};
use keeper::NetworkPlan;
pub(super) use routes::configure_namespace;

/// Where steps ask for names under pasta: a link-local address that no network uses.
pub(super) const DNS_ADDRESS: &str = "169.254.1.1";
/// Where steps ask for names under slirp4netns.
const SLIRP_DNS_ADDRESS: &str = "10.0.2.3";
/// Where the programs are looked for.
const PROGRAM_DIRECTORIES: [&str; 5] = [
    "/usr/bin",
    "/usr/local/bin",
    "/bin",
    "/usr/sbin",
    "/usr/local/sbin",
];
/// How long a network may take to be ready.
const START_TIME: Duration = Duration::from_secs(15);
/// How long an ended network may take to be gone.
const STOP_TIME: Duration = Duration::from_secs(5);
/// Networks that are made, at most, before their steps are ready for them.
const AHEAD_MAX: usize = 4;
/// The most a program says before it is ready.
const MAX_READY_BYTES: usize = 4096;
/// How much of a failing program's complaints is kept.
const MAX_COMPLAINT_BYTES: u64 = 4096;

/// Why a step has no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Neither program is installed.
    #[error(
        "find pasta or slirp4netns; install the package passt or slirp4netns, or build with network none"
    )]
    NoProgram,
    /// The process that keeps a network could not be started or spoken to.
    #[error("start the network's keeper")]
    Start {
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The namespace could not be made.
    #[error("make a network namespace: {attempt}: {reason}")]
    Namespace {
        /// What was attempted.
        attempt: String,
        /// What the system answered.
        reason: String,
    },
    /// The program ended before the network was ready.
    #[error("start {}: {complaint} (`kiln doctor` tells what is missing; steps with network none need nothing)", program.display())]
    Program {
        /// Which program.
        program: PathBuf,
        /// What it said.
        complaint: String,
    },
    /// The network was not ready in time.
    #[error("wait for {} to make a network: not ready after {} s", program.display(), START_TIME.as_secs())]
    NotReady {
        /// Which program.
        program: PathBuf,
    },
}

/// A program that connects a network namespace to the outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkProgram {
    pub(super) kind: ProgramKind,
    pub(super) path: PathBuf,
}

/// Which program it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum ProgramKind {
    Pasta,
    Slirp4netns,
}

impl NetworkProgram {
    /// Finds the best program that is installed.
    pub fn find() -> Result<Self, NetworkError> {
        Self::pasta()
            .or_else(Self::slirp4netns)
            .ok_or(NetworkError::NoProgram)
    }

    /// Finds pasta.
    pub fn pasta() -> Option<Self> {
        installed("pasta").map(|path| Self {
            kind: ProgramKind::Pasta,
            path,
        })
    }

    /// Finds slirp4netns.
    pub fn slirp4netns() -> Option<Self> {
        installed("slirp4netns").map(|path| Self {
            kind: ProgramKind::Slirp4netns,
            path,
        })
    }

    /// Returns where the program is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until the program says that it is ready; it is not when it closes the pipe before.
    async fn becomes_ready(&self, mut from: pipe::Receiver) -> io::Result<bool> {
        let mut said = Vec::new();
        while said.len() < MAX_READY_BYTES {
            let ready = match self.kind {
                // Its process id, which it writes when all is set up.
                ProgramKind::Pasta => said.ends_with(b"\n"),
                // A single digit; warnings may come before it.
                ProgramKind::Slirp4netns => said.ends_with(b"1"),
            };
            if ready {
                return Ok(true);
            }
            if from.read_buf(&mut said).await? == 0 {
                return Ok(false);
            }
        }
        Ok(false)
    }
}

fn installed(name: &str) -> Option<PathBuf> {
    PROGRAM_DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.is_file())
}

/// The networks of one worker.
#[derive(Debug)]
pub struct NetworkPool {
    program: NetworkProgram,
    idle: Arc<Mutex<Vec<Connected>>>,
    ahead: Mutex<Ahead>,
    /// Keepers that were told to end.
    ending: Mutex<Vec<Child>>,
}

/// Networks that are made before the steps that need them are ready for them.
#[derive(Debug, Default)]
struct Ahead {
    /// Steps that have said that they will need one, and have none yet.
    n_expected: usize,
    starting: Vec<JoinHandle<Result<Connected, NetworkError>>>,
}

impl NetworkPool {
    /// Makes an empty pool; networks are made when steps need them.
    pub fn new(program: NetworkProgram) -> Self {
        Self {
            program,
            idle: Arc::default(),
            ahead: Mutex::default(),
            ending: Mutex::default(),
        }
    }

    /// Begins to make a network for a step that will soon [lease](Self::lease) one, unless one will be left for it.
    pub(super) fn expect(&self, image: &LauncherImage) {
        if !routes::host_has_a_way_out() {
            return;
        }
        let n_idle = lock(&self.idle).len();
        let mut ahead = lock(&self.ahead);
        ahead.n_expected += 1;
        if n_idle + ahead.starting.len() < ahead.n_expected.min(AHEAD_MAX) {
            let (program, image) = (self.program.clone(), image.clone());
            let start = async move { Connected::start(&program, &image).await };
            ahead.starting.push(tokio::spawn(start));
        }
    }

    /// Returns a network nobody else uses, or nothing when this host itself has no way out.
    pub(super) async fn lease(&self, image: &LauncherImage) -> Result<Option<Lease>, NetworkError> {
        if !routes::host_has_a_way_out() {
            return Ok(None);
        }
        let lease = |connected| Lease {
            connected: Some(connected),
            home: Arc::clone(&self.idle),
            kind: self.program.kind,
        };
        let starting = {
            let mut ahead = lock(&self.ahead);
            ahead.n_expected = ahead.n_expected.saturating_sub(1);
            while let Some(mut connected) = lock(&self.idle).pop() {
                if connected.is_alive() {
                    return Ok(Some(lease(connected)));
                }
            }
            ahead.starting.pop()
        };
        if let Some(starting) = starting
            && let Ok(started) = starting.await
        {
            return started.map(lease).map(Some);
        }
        Connected::start(&self.program, image)
            .await
            .map(lease)
            .map(Some)
    }

    /// Tells every idle network to end, and waits for none: no step will need one.
    pub(super) fn rest(&self) {
        let idle = std::mem::take(&mut *lock(&self.idle));
        let told = idle.into_iter().map(Connected::let_go);
        lock(&self.ending).extend(told);
    }

    /// Ends every idle network and waits for its processes.
    pub(super) async fn shut_down(&self) {
        let unclaimed = std::mem::take(&mut lock(&self.ahead).starting);
        for starting in unclaimed {
            // A network that nobody has taken ends like one whose step was cancelled: by its socket, which is closed.
            starting.abort();
            if let Ok(Ok(connected)) = starting.await {
                lock(&self.idle).push(connected);
            }
        }
        self.rest();
        let ending = std::mem::take(&mut *lock(&self.ending));
        futures_util::future::join_all(ending.into_iter().map(gone)).await;
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere cannot leave a list half changed.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until a keeper that was told to end is gone.
async fn gone(mut keeper: Child) {
    if tokio::time::timeout(STOP_TIME, keeper.wait())
        .await
        .is_err()
    {
        // The keeper's own child dies with it; nothing more can be done about a process that will not end.
        let _ = keeper.start_kill();
    }
}

/// One network in use by one step.
#[derive(Debug)]
pub(super) struct Lease {
    connected: Option<Connected>,
    home: Arc<Mutex<Vec<Connected>>>,
    kind: ProgramKind,
}

impl Lease {
    /// The content of `/etc/resolv.conf` in this network.
    pub(super) fn resolv_conf(&self) -> String {
        let address = match self.kind {
            ProgramKind::Pasta => DNS_ADDRESS,
            ProgramKind::Slirp4netns => SLIRP_DNS_ADDRESS,
        };
        format!("nameserver {address}\n")
    }

    pub(super) fn namespace(&self) -> Option<BorrowedFd<'_>> {
        self.connected
            .as_ref()
            .map(|connected| connected.namespace.as_fd())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock(&self.home).extend(self.connected.take());
    }
}

/// A namespace and the process that keeps it connected. Dropping it closes the socket, which ends the process.
#[derive(Debug)]
struct Connected {
    namespace: OwnedFd,
    socket: AsyncFd<OwnedFd>,
    keeper: Child,
}

impl Connected {
    async fn start(program: &NetworkProgram, image: &LauncherImage) -> Result<Self, NetworkError> {
        let start = |source: io::Error| NetworkError::Start { source };
        let (ready_reader, ready_writer) = new_pipe().map_err(start)?;
        let (complaints, complaints_writer) = new_pipe().map_err(start)?;
        let (of, with) = (program.clone(), image.clone());
        // Starting a process blocks, and others have just begun to wait for what they pull. The program's own copy of the pipe must be
        // the last one, or its end would go unnoticed: ours goes there.
        let spawning = tokio::task::spawn_blocking(move || {
            spawn(&of, &with, &ready_writer, complaints_writer)
        });
        let spawned = spawning.await.map_err(|e| start(io::Error::other(e)))?;
        let (socket, keeper) = spawned.map_err(start)?;
        let ready = async {
            let namespace = match wire::next_report(&socket).await.map_err(start)? {
                Some((Report::Started, Some(namespace))) => namespace,
                Some((Report::Failed { attempt, reason }, _)) => {
                    return Err(NetworkError::Namespace { attempt, reason });
                }
                _ => return Err(start(io::ErrorKind::UnexpectedEof.into())),
            };
            if program.becomes_ready(ready_reader).await.map_err(start)? {
                Ok(namespace)
            } else {
                Err(NetworkError::Program {
                    program: program.path.clone(),
                    complaint: read_complaint(complaints).await,
                })
            }
        };
        let namespace = tokio::time::timeout(START_TIME, ready)
            .await
            .unwrap_or_else(|_elapsed| {
                Err(NetworkError::NotReady {
                    program: program.path.clone(),
                })
            })?;
        Ok(Self {
            namespace,
            socket,
            keeper,
        })
    }

    fn is_alive(&mut self) -> bool {
        matches!(self.keeper.try_wait(), Ok(None))
    }

    /// Tells its keeper to end; returns it.
    fn let_go(self) -> Child {
        let Self {
            namespace,
            socket,
            keeper,
        } = self;
        drop((namespace, socket));
        keeper
    }
}

fn new_pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(reader)?, writer))
}

fn spawn(
    program: &NetworkProgram,
    image: &LauncherImage,
    ready: &OwnedFd,
    complaints: OwnedFd,
) -> io::Result<(AsyncFd<OwnedFd>, Child)> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let plan = wire::seal(&NetworkPlan {
        kind: program.kind,
        path: program.path.clone(),
    })?;
    wire::send(
        ours.as_fd(),
        NETWORK_MESSAGE,
        &[plan.as_fd(), ready.as_fd()],
    )?;
    let keeper = tokio::process::Command::new(image.path())
        .arg0("kiln")
        .arg(STEP_INIT)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::from(complaints))
        // It must see its socket close and end its program; killed, it could not.
        .kill_on_drop(false)
        .spawn()?;
    Ok((wire::register(ours)?, keeper))
}

async fn read_complaint(from: pipe::Receiver) -> String {
    let mut bytes = Vec::new();
    // What could be read is all there is to tell.
    let _ = from.take(MAX_COMPLAINT_BYTES).read_to_end(&mut bytes).await;
    let text = String::from_utf8_lossy(&bytes);
    let last = text
        .lines()
        .rev()
        .find(|line| !line.contains("to syslog") && !line.trim().is_empty());
    last.unwrap_or("it ended without a word").to_owned()
}
