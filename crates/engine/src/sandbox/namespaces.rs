//! The real sandbox: one launcher process and one container per step.
//!
//! Waiting is by descriptors only: output pipes, the launcher's socket, deadlines. Killing goes two ways at once, by the
//! container's pidfd and by closing the socket, so that neither a dead worker nor a dead launcher leaves a container.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Signal;
use tokio::io::AsyncReadExt as _;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cgroup::{CgroupParent, StepCgroup};
use super::image::LauncherImage;
use super::launcher::step_mounts::MOUNT_POINT;
use super::launcher::wire::{self, Plan, PlanNetwork, Report};
use super::launcher::{PLAN_MESSAGE, STEP_INIT};
use super::network::{Lease, NetworkPool, NetworkProgram};
use super::silence::Silence;
use super::{
    Confinement, MAX_CHUNK_BYTES, Mounted, Network, OutputSink, Sandbox, SandboxError, StepCommand,
    StepExit, StepLimits, Stream, plan,
};

/// How long output may still arrive after every process of the step is dead.
const DRAIN_TIME: Duration = Duration::from_secs(1);
/// How long a killed container may take to be gone before the worker stops waiting for it.
const KILL_TIME: Duration = Duration::from_secs(10);
/// The longest one argument may be; the kernel's own limit.
const MAX_WORD_BYTES: usize = 128 * 1024 - 1;
/// The longest a host name may be; the kernel's own limit.
const MAX_HOSTNAME_BYTES: usize = 64;

/// What a [`Namespaces`] sandbox is made of.
#[derive(Debug)]
pub struct NamespacesOptions {
    /// The program to start containers from.
    pub image: LauncherImage,
    /// Where [`Network::Default`] comes from; without it such steps are refused.
    pub network: Option<NetworkPool>,
    /// Whether [`Network::Host`] is allowed.
    pub host_network: Permission,
    /// Whether [`Confinement::Insecure`] is allowed.
    pub insecure: Permission,
    /// Under which steps get their cgroups; without it memory, processes and processor time are not limited.
    pub cgroups: Option<CgroupParent>,
    /// The content of `/etc/resolv.conf` for steps in the host's network.
    pub host_resolv_conf: String,
}

impl NamespacesOptions {
    /// Takes the network program this machine has, if any; no host network, no insecure steps and no cgroups.
    pub fn new(image: LauncherImage) -> Self {
        Self {
            image,
            network: NetworkProgram::find().ok().map(NetworkPool::new),
            host_network: Permission::Refused,
            insecure: Permission::Refused,
            cgroups: None,
            host_resolv_conf: String::new(),
        }
    }
}

/// Whether steps may have what is not for everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Permission {
    /// Such steps are refused.
    #[default]
    Refused,
    /// The configuration allows it.
    Allowed,
}

impl From<bool> for Permission {
    fn from(is_allowed: bool) -> Self {
        if is_allowed {
            Self::Allowed
        } else {
            Self::Refused
        }
    }
}

/// Starts each step in a container of its own. Must be used inside the worker's user namespace.
#[derive(Debug)]
pub struct Namespaces {
    options: NamespacesOptions,
}

impl Namespaces {
    /// Makes a sandbox.
    pub fn new(options: NamespacesOptions) -> Self {
        Self { options }
    }

    /// Ends what the sandbox keeps running between steps and waits for it.
    pub async fn shut_down(&self) {
        if let Some(network) = &self.options.network {
            network.shut_down().await;
        }
    }

    async fn run_step(
        &self,
        step: StepCommand,
        output: OutputSink,
        cancel: CancellationToken,
    ) -> Result<StepExit, SandboxError> {
        check(&step)?;
        self.check_confinement(step.confinement)?;
        let deadline = Instant::now() + step.limits.wall_time;
        let idle_time = step.limits.idle_time;
        let network = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(SandboxError::Cancelled),
            network = self.network(step.network) => network?,
        };
        let cgroup = self.cgroup(&step.limits)?;
        let plan = plan::plan(&step, &network, cgroup.as_ref());
        let (launched, pipes) = self.launch(&plan, step, network.lease.as_ref())?;
        let (output, silence) = Silence::of(output, idle_time);
        let pump = pipes.pump(output);
        let exit = launched
            .supervise(pump, (deadline, silence), &cancel)
            .await?;
        let out_of_memory = cgroup.as_ref().is_some_and(StepCgroup::ran_out_of_memory);
        match exit {
            StepExit::Code(0) | StepExit::TimedOut | StepExit::Silent => Ok(exit),
            // Seldom the command itself is killed, mostly one of its children, of which it then complains.
            _ if out_of_memory => Ok(StepExit::OutOfMemory),
            _ => Ok(exit),
        }
    }

    fn check_confinement(&self, wanted: Confinement) -> Result<(), SandboxError> {
        match (wanted, self.options.insecure) {
            (Confinement::Sandbox, _) | (Confinement::Insecure, Permission::Allowed) => Ok(()),
            (Confinement::Insecure, Permission::Refused) => Err(SandboxError::Invalid {
                what: "insecure steps are not allowed by the configuration".to_owned(),
            }),
        }
    }

    async fn network(&self, wanted: Network) -> Result<StepNetwork, SandboxError> {
        match wanted {
            Network::Isolated => Ok(StepNetwork {
                kind: PlanNetwork::New,
                lease: None,
                resolv_conf: String::new(),
            }),
            Network::Host if self.options.host_network == Permission::Allowed => Ok(StepNetwork {
                kind: PlanNetwork::Inherited,
                lease: None,
                resolv_conf: self.options.host_resolv_conf.clone(),
            }),
            Network::Host => Err(SandboxError::Invalid {
                what: "the host's network is not allowed by the configuration".to_owned(),
            }),
            Network::Default => {
                let pool = self.options.network.as_ref().ok_or_else(|| SandboxError::Invalid {
                    what: "steps have no network on this machine (see `kiln doctor`); only network none works"
                        .to_owned(),
                })?;
                let lease = pool
                    .lease(&self.options.image)
                    .await
                    .map_err(|source| SandboxError::Network { source })?;
                Ok(match lease {
                    Some(lease) => StepNetwork {
                        kind: PlanNetwork::Given,
                        resolv_conf: lease.resolv_conf(),
                        lease: Some(lease),
                    },
                    None => StepNetwork {
                        kind: PlanNetwork::New,
                        lease: None,
                        resolv_conf: String::new(),
                    },
                })
            }
        }
    }

    fn cgroup(&self, limits: &StepLimits) -> Result<Option<StepCgroup>, SandboxError> {
        self.options
            .cgroups
            .as_ref()
            .map(|parent| parent.step(limits))
            .transpose()
            .map_err(|source| SandboxError::Limit { source })
    }

    fn launch(
        &self,
        plan: &Plan,
        step: StepCommand,
        lease: Option<&Lease>,
    ) -> Result<(Launched, Pipes), SandboxError> {
        let start = |source: io::Error| SandboxError::Start { source };
        let talk = |source: io::Error| SandboxError::Talk { source };
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|errno| start(errno.into()))?;
        let (pipes, stdout, stderr) = Pipes::new().map_err(start)?;
        let stdin = match step.stdin {
            Some(file) => file,
            None => File::open("/dev/null").map_err(start)?,
        };
        let memory = wire::seal(plan).map_err(start)?;
        let mut fds = vec![
            memory.as_fd(),
            step.root.as_fd(),
            stdin.as_fd(),
            stdout.as_fd(),
            stderr.as_fd(),
        ];
        fds.extend(step.mounts.iter().filter_map(|mount| match &mount.what {
            Mounted::Files { mount, .. } => Some(mount.as_fd()),
            Mounted::Memory { .. } | Mounted::Secret { .. } => None,
        }));
        fds.extend(lease.and_then(Lease::namespace));
        fds.extend(step.held.iter().map(AsFd::as_fd));
        // The message waits in the socket for the process that is started next.
        wire::send(ours.as_fd(), PLAN_MESSAGE, &fds).map_err(talk)?;
        drop(fds);
        let launcher = std::process::Command::new(self.options.image.path());
        let mut launcher = tokio::process::Command::from(launcher);
        let child = launcher
            .arg0("kiln")
            .arg(STEP_INIT)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(start)?;
        let socket = wire::register(ours).map_err(talk)?;
        Ok((
            Launched {
                child,
                socket,
                container: None,
            },
            pipes,
        ))
    }
}

impl Sandbox for Namespaces {
    fn expect(&self, network: Network) {
        if let (Network::Default, Some(pool)) = (network, &self.options.network) {
            pool.expect(&self.options.image);
        }
    }

    fn rest(&self) {
        if let Some(pool) = &self.options.network {
            pool.rest();
        }
    }

    fn run(
        &self,
        step: StepCommand,
        output: OutputSink,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<StepExit, SandboxError>> {
        Box::pin(self.run_step(step, output, cancel))
    }
}

/// The network of one step.
pub(super) struct StepNetwork {
    pub(super) kind: PlanNetwork,
    lease: Option<Lease>,
    pub(super) resolv_conf: String,
}

fn check(step: &StepCommand) -> Result<(), SandboxError> {
    let invalid = |what: &str| {
        Err(SandboxError::Invalid {
            what: what.to_owned(),
        })
    };
    let words = step
        .args
        .iter()
        .chain(step.env.iter().flat_map(|(key, value)| [key, value]));
    if step.args.first().is_none_or(String::is_empty) {
        return invalid("the command is empty");
    }
    for word in words {
        if word.contains('\0') {
            return invalid("a word of the command or its environment contains a NUL byte");
        }
        if word.len() > MAX_WORD_BYTES {
            return invalid("a word of the command or its environment is longer than 128 KiB");
        }
    }
    if step
        .env
        .iter()
        .any(|(key, _)| key.is_empty() || key.contains('='))
    {
        return invalid("a variable's name is empty or contains `=`");
    }
    if !step.cwd.starts_with('/') || step.cwd.contains('\0') {
        return invalid("the working directory is not an absolute path");
    }
    if step.hostname.is_empty()
        || step.hostname.len() > MAX_HOSTNAME_BYTES
        || !is_host_name(&step.hostname)
    {
        return invalid("the host name is not a name");
    }
    if step
        .extra_hosts
        .iter()
        .any(|(name, address)| !is_host_name(name) || address.parse::<IpAddr>().is_err())
    {
        return invalid("an extra host is not a name and an address");
    }
    Ok(())
}

fn is_host_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

/// The reading ends of the command's output.
struct Pipes {
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
}

impl Pipes {
    /// Makes both pipes; the writing ends come with them.
    fn new() -> io::Result<(Self, OwnedFd, OwnedFd)> {
        let make = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let ((out_reader, out_writer), (err_reader, err_writer)) = (make()?, make()?);
        let pipes = Self {
            stdout: pipe::Receiver::from_owned_fd(out_reader)?,
            stderr: pipe::Receiver::from_owned_fd(err_reader)?,
        };
        Ok((pipes, out_writer, err_writer))
    }

    /// Hands everything that arrives to `output`, until both writing ends are closed.
    async fn pump(self, output: OutputSink) {
        let Self { stdout, stderr } = self;
        let other = Arc::clone(&output);
        tokio::join!(
            pump(stdout, Stream::Stdout, output),
            pump(stderr, Stream::Stderr, other)
        );
    }
}

async fn pump(mut from: pipe::Receiver, stream: Stream, output: OutputSink) {
    let mut chunk = vec![0_u8; MAX_CHUNK_BYTES];
    // A read error on a pipe of our own leaves nothing to read; the step's end is learned elsewhere.
    while let Ok(length) = from.read(&mut chunk).await {
        let Some(bytes) = chunk.get(..length).filter(|bytes| !bytes.is_empty()) else {
            return;
        };
        output(stream, bytes);
    }
}

/// A launcher process and, once it says so, its container.
struct Launched {
    child: tokio::process::Child,
    socket: AsyncFd<OwnedFd>,
    container: Option<OwnedFd>,
}

impl Drop for Launched {
    fn drop(&mut self) {
        // The launcher is killed with its handle; a container that it has started must not outlive it.
        self.kill();
    }
}

impl Launched {
    fn kill(&self) {
        if let Some(container) = &self.container {
            // It may be gone already, which is what is wanted.
            let _ = rustix::process::pidfd_send_signal(container, Signal::KILL);
        }
    }

    /// Tells the launcher to end the step, whether its container exists yet or not.
    fn end(&self) {
        self.kill();
        // A full or closed socket means that the launcher is already on its way out.
        let _ = wire::send(self.socket.as_fd(), b"end", &[]);
    }

    async fn supervise(
        mut self,
        pump: impl Future<Output = ()>,
        (deadline, silence): (Instant, Option<Silence>),
        cancel: &CancellationToken,
    ) -> Result<StepExit, SandboxError> {
        tokio::pin!(pump);
        let mut pumping = true;
        let mut ended_by_us = None;
        let mut patience = deadline;
        let report = loop {
            tokio::select! {
                biased;
                () = cancel.cancelled(), if ended_by_us.is_none() => {
                    ended_by_us = Some(EndedByUs::Cancelled);
                    patience = Instant::now() + KILL_TIME;
                    self.end();
                }
                () = tokio::time::sleep_until(patience) => {
                    if ended_by_us.is_some() {
                        break None;
                    }
                    ended_by_us = Some(EndedByUs::TimedOut);
                    patience = Instant::now() + KILL_TIME;
                    self.end();
                }
                () = Silence::too_long(silence.as_ref()), if ended_by_us.is_none() => {
                    ended_by_us = Some(EndedByUs::Silent);
                    patience = Instant::now() + KILL_TIME;
                    self.end();
                }
                () = &mut pump, if pumping => pumping = false,
                report = wire::next_report(&self.socket) => match report.map_err(|source| SandboxError::Talk { source })? {
                    Some((Report::Started, container)) => {
                        self.container = container;
                        if ended_by_us.is_some() {
                            self.end();
                        }
                    }
                    Some((report, _)) => break Some(report),
                    None => break None,
                },
            }
        };
        self.kill();
        if pumping {
            // Nobody can write any more: this ends at once, and the limit is for a kernel that thinks otherwise.
            let _ = tokio::time::timeout(DRAIN_TIME, pump).await;
        }
        let _ = tokio::time::timeout(KILL_TIME, self.child.wait()).await;
        match (ended_by_us, report) {
            (Some(EndedByUs::Cancelled), _) => Err(SandboxError::Cancelled),
            (Some(EndedByUs::TimedOut), _) => Ok(StepExit::TimedOut),
            (Some(EndedByUs::Silent), _) => Ok(StepExit::Silent),
            (None, Some(Report::Exited(code))) => Ok(StepExit::Code(code)),
            (None, Some(Report::Killed(signal))) => Ok(StepExit::Signal(signal)),
            (None, Some(Report::Failed { attempt, reason })) => {
                Err(match attempt.strip_prefix(MOUNT_POINT) {
                    Some(target) => SandboxError::MountPoint {
                        target: target.to_owned(),
                        reason,
                    },
                    None => SandboxError::SetUp { attempt, reason },
                })
            }
            (None, Some(Report::Started) | None) => Err(SandboxError::LauncherDied),
        }
    }
}

enum EndedByUs {
    Cancelled,
    TimedOut,
    Silent,
}
