//! How a RUN runs: the seam between the engine and the thing that starts a command over a root filesystem.
//!
//! [`Sandbox`] has two implementations: [`Namespaces`], which starts a real container, and
//! [`Scripted`], which answers from a script and serves the engine's own tests.
//!
//! How the real one works, in order:
//!
//! 1. The worker (inside its own user namespace, see `worker::userns`) re-executes this program as `kiln step-init`
//!    from a read-only mount of itself ([`LauncherImage`]) and sends it the step and its descriptors over a socket.
//! 2. That single-threaded process ([`step_init_main`]) enters the step's network namespace, clones the container's first
//!    process into new user, mount, pid, ipc, uts and cgroup namespaces, writes its id map and puts it into its cgroup.
//! 3. The cloned process mounts the root filesystem, pivots into it, gives up everything it does not need and executes
//!    the command. It is pid 1 of its pid namespace: when it ends, the kernel ends everything it has started.
//!
//! Invariants: nothing of the host but the step's own root filesystem, three pipe ends and the device nodes every
//! program needs reaches the command; nothing but [`Confinement::Insecure`], which the operator has to permit, starts a command
//! without the seccomp filter; no tenant process is alive once [`Sandbox::run`] has returned.
//!
//! Not done here: mounting overlays, reading images, users by name (see `rootfs`), choosing what to run (see `execute`).

mod cgroup;
mod image;
mod init_layer;
mod launcher;
mod namespaces;
mod network;
mod plan;
mod scripted;
mod silence;
mod step_mounts;
mod ulimit;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use cgroup::{CgroupError, CgroupMode, CgroupParent, planned_cgroups};
pub use image::{ImageError, LauncherImage};
pub use init_layer::{InitLayerError, Place, PlaceKind, prepare_init_layer};
pub use launcher::{STEP_INIT, step_init_main};
pub use namespaces::{Namespaces, NamespacesOptions, Permission};
pub use network::{NetworkError, NetworkPool, NetworkProgram};
pub use scripted::{Script, Scripted};
pub use step_mounts::{Access, Mounted, SecretBytes, StepMount, detached_copy};
pub use ulimit::{NoSuchLimit, Ulimit, UlimitName};

/// Runs commands over root filesystems.
pub trait Sandbox: Send + Sync {
    /// Runs `step` to its end, handing what it writes to `output`.
    ///
    /// Returns once no process of the step is alive any more. When `cancel` fires the step is killed and the answer is
    /// [`SandboxError::Cancelled`]. Dropping the future kills the step as well.
    fn run(
        &self,
        step: StepCommand,
        output: OutputSink,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<StepExit, SandboxError>>;

    /// Is told that a step with such a network will be run as soon as its files are there, so that what takes time can begin. It need not
    /// come to that.
    fn expect(&self, network: Network);

    /// Is told that no step will be run any more, so that what was kept for one can end behind the back of whatever else is done.
    fn rest(&self);
}

/// Receives what a step writes, in chunks of at most [`MAX_CHUNK_BYTES`], in the order read.
///
/// A sink that blocks holds the step back: nothing is buffered beyond one chunk and the pipe.
pub type OutputSink = Arc<dyn Fn(Stream, &[u8]) + Send + Sync>;

/// The largest chunk an [`OutputSink`] is called with.
pub const MAX_CHUNK_BYTES: usize = 64 * 1024;

/// One of the two streams a command writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// The command's descriptor 1.
    Stdout,
    /// The command's descriptor 2.
    Stderr,
}

/// One command to run over one root filesystem.
#[derive(Debug)]
pub struct StepCommand {
    /// A detached mount: the root filesystem, writable, made in the worker's namespaces.
    pub root: OwnedFd,
    /// The command and its arguments; the first is looked up in `PATH` of `env`, inside the root.
    pub args: Vec<String>,
    /// The whole environment. Nothing is added to it.
    pub env: Vec<(String, String)>,
    /// The absolute working directory inside the root; made, owned by root, when missing.
    pub cwd: String,
    /// Who runs the command, in ids of the container.
    pub user: UserIds,
    /// What of the network the command reaches.
    pub network: Network,
    /// What the command is kept from.
    pub confinement: Confinement,
    /// The container's host name.
    pub hostname: String,
    /// Where `/etc` is, as [`prepare_init_layer`] returns it.
    pub etc: String,
    /// Lines added to `/etc/hosts`: name, then address.
    pub extra_hosts: Vec<(String, String)>,
    /// What the command may use.
    pub limits: StepLimits,
    /// What the command sees besides its root filesystem.
    pub mounts: Vec<StepMount>,
    /// Descriptors, of locks, that are kept open until no process of the step is alive, even if this process dies first.
    pub held: Vec<OwnedFd>,
    /// What the command reads from descriptor 0; `/dev/null` when absent.
    pub stdin: Option<File>,
}

/// Numeric ids of a user inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserIds {
    /// The user id.
    pub uid: u32,
    /// The primary group id.
    pub gid: u32,
    /// The supplementary group ids.
    pub groups: Vec<u32>,
}

/// What of the network a step reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Its own loopback and nothing else.
    Isolated,
    /// The outside world through a user-mode network stack, but neither the host's loopback nor its gateway address.
    Default,
    /// The host's own network, loopback included. Refused unless the configuration allows it.
    Host,
}

/// What a step is kept from, beyond being in namespaces of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Confinement {
    /// It has few capabilities, a filter of system calls, no namespaces to make, and a `/proc` and `/sys` that are masked.
    Sandbox,
    /// None of this: all that root of its own user namespace may do. Refused unless the configuration allows it.
    Insecure,
}

/// What one step may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepLimits {
    /// The memory of all its processes, page cache included; needs cgroups.
    pub memory_bytes: Option<u64>,
    /// The number of its processes and threads; needs cgroups.
    pub processes: Option<u32>,
    /// Thousandths of a processor; needs cgroups.
    pub cpu_millis: Option<u32>,
    /// How long it may take from start to end.
    pub wall_time: Duration,
    /// How long it may write nothing.
    pub idle_time: Option<Duration>,
    /// `RLIMIT_NOFILE`, lowered to what the host allows.
    pub open_files: u64,
    /// The size of `/dev/shm`.
    pub shm_bytes: u64,
    /// Limits of its processes, over those above.
    pub ulimits: Vec<Ulimit>,
}

impl Default for StepLimits {
    fn default() -> Self {
        Self {
            memory_bytes: None,
            processes: Some(4096),
            cpu_millis: None,
            wall_time: Duration::from_hours(1),
            idle_time: None,
            open_files: 1_048_576,
            shm_bytes: 64 * 1024 * 1024,
            ulimits: Vec::new(),
        }
    }
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepExit {
    /// It exited. 127: the command was not found; 126: it could not be executed; both are explained on its stderr.
    Code(i32),
    /// A signal killed it.
    Signal(i32),
    /// The kernel killed it because it used more memory than its limit.
    OutOfMemory,
    /// It was still running after [`StepLimits::wall_time`].
    TimedOut,
    /// It had written nothing for [`StepLimits::idle_time`].
    Silent,
}

/// Why a step could not be run to its end. None of these is the command's own doing.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The step asks for something that cannot be passed to a command.
    #[error("run a step: {what}")]
    Invalid {
        /// What is wrong with it.
        what: String,
    },
    /// The launcher process could not be started.
    #[error("start the step launcher")]
    Start {
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
    /// Talking to the launcher process failed.
    #[error("talk to the step launcher")]
    Talk {
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
    /// The container could not be set up.
    #[error("set up the step's container: {attempt}: {reason}")]
    SetUp {
        /// What was attempted.
        attempt: String,
        /// What the system answered.
        reason: String,
    },
    /// The place for one of the step's mounts cannot be made.
    #[error("mount at {target}: {reason}")]
    MountPoint {
        /// Where.
        target: String,
        /// What the system answered.
        reason: String,
    },
    /// The launcher process ended without saying how the step ended.
    #[error("learn how the step ended: its launcher died")]
    LauncherDied,
    /// No network could be made for the step.
    #[error("prepare the step's network")]
    Network {
        /// What went wrong.
        #[source]
        source: NetworkError,
    },
    /// The limits of the step could not be set.
    #[error("limit the step")]
    Limit {
        /// What went wrong.
        #[source]
        source: CgroupError,
    },
    /// The step was cancelled and has been killed.
    #[error("run a step: cancelled")]
    Cancelled,
}
