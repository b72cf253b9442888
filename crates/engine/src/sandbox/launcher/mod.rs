//! `kiln step-init`: the single-threaded process between the worker and one step's container.
//!
//! It receives one plan over the socket that is its standard input, clones the container's first process into new
//! namespaces, writes its id map, and then only waits: for the container's end, which it reports, or for the worker's
//! word or end, upon which it kills the container.
//!
//! Invariants: it stays outside the container's pid namespace, so no command ever sees it; the only process of ours
//! inside is the one that becomes the command; what goes wrong in there before the command runs comes back over a
//! close-on-exec pipe with what was attempted, never as an exit code.

pub(super) mod container;
mod filesystem;
pub(crate) mod mounts;
mod privileges;
mod seccomp;
pub(super) mod step_mounts;
pub(crate) mod wire;

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Signal, WaitId, WaitIdOptions, WaitIdStatus};
use rustix::thread::UnshareFlags;

use super::Confinement;
use wire::{Plan, PlanNetwork, Report};

/// The first argument with which this program must hand over to [`step_init_main`].
pub const STEP_INIT: &str = "step-init";

/// The message a plan's descriptors travel with.
pub(crate) const PLAN_MESSAGE: &[u8] = b"step";
/// The message a network's plan travels with.
pub(crate) const NETWORK_MESSAGE: &[u8] = b"network";

/// How much sooner than others a step is killed when the machine has no memory left.
const OOM_SCORE_ADJ: &str = "500";

/// Something that was attempted and what the system answered.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) attempt: String,
    pub(crate) source: io::Error,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.attempt, self.source)
    }
}

/// Says what an operation was for, should it fail.
pub(crate) trait Attempt<T> {
    fn attempt(self, what: impl Into<String>) -> Result<T, Failed>;
}

impl<T, E: Into<io::Error>> Attempt<T> for Result<T, E> {
    fn attempt(self, what: impl Into<String>) -> Result<T, Failed> {
        self.map_err(|source| Failed {
            attempt: what.into(),
            source: source.into(),
        })
    }
}

/// Runs the launcher process. `main` calls it when the first argument is [`STEP_INIT`], before any thread exists.
///
/// Its standard input must be the socket a [`super::namespaces::Namespaces`] gave it.
pub fn step_init_main() -> ExitCode {
    let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else {
        return ExitCode::FAILURE;
    };
    let report = match serve(&socket) {
        Ok(report) => report,
        Err(failed) => Report::Failed {
            attempt: failed.attempt,
            reason: failed.source.to_string(),
        },
    };
    // A worker that is gone cannot be told; the container is dead either way.
    match wire::send_report(socket.as_fd(), &report, None) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The descriptors that come with a plan.
pub(crate) struct Descriptors {
    pub(crate) root: OwnedFd,
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    pub(crate) network: Option<OwnedFd>,
    /// What mounts take their files from.
    pub(crate) mounts: Vec<OwnedFd>,
    /// To be kept open until the container is gone.
    pub(crate) held: Vec<OwnedFd>,
}

fn serve(socket: &OwnedFd) -> Result<Report, Failed> {
    let incomplete = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let (message, fds) = wire::receive(socket.as_fd())
        .and_then(|message| message.ok_or_else(incomplete))
        .attempt("receive what to do")?;
    match message.as_slice() {
        PLAN_MESSAGE => serve_step(socket, fds),
        NETWORK_MESSAGE => super::network::keeper::serve(socket, fds),
        _ => Err(io::Error::other("an unknown message")).attempt("receive what to do"),
    }
}

fn serve_step(socket: &OwnedFd, fds: Vec<OwnedFd>) -> Result<Report, Failed> {
    let (plan, descriptors) = open_plan(fds)?;
    enter_network(plan.network, descriptors.network.as_ref())?;
    let sysfs = match plan.network {
        // A new sysfs shows the network namespace one is in, and the host's is not ours to mount.
        PlanNetwork::Inherited => None,
        PlanNetwork::New | PlanNetwork::Given => Some(sysfs(plan.confinement)?),
    };
    let (go_reader, go_writer) = pipe()?;
    let (error_reader, error_writer) = pipe()?;
    match clone_process(CONTAINER_NAMESPACES).attempt("create the container's namespaces")? {
        Cloned::Child => {
            drop(go_writer);
            drop(error_reader);
            container::run(&plan, descriptors, sysfs, go_reader, error_writer)
        }
        Cloned::Parent { pid, pidfd } => {
            let Descriptors { held, .. } = descriptors;
            drop((sysfs, go_reader, error_writer));
            let begun = begin(pid, &plan, go_writer).and_then(|()| {
                wire::send_report(socket.as_fd(), &Report::Started, Some(pidfd.as_fd()))
                    .attempt("report the start")
            });
            if let Err(failed) = begun {
                kill_and_reap(&pidfd);
                return Err(failed);
            }
            let report = supervise(socket.as_fd(), &pidfd, error_reader);
            drop(held);
            report
        }
    }
}

fn sysfs(confinement: Confinement) -> Result<OwnedFd, Failed> {
    let access = match confinement {
        Confinement::Sandbox => mounts::RDONLY,
        Confinement::Insecure => 0,
    };
    let attributes = access | mounts::NOSUID | mounts::NODEV | mounts::NOEXEC;
    mounts::new_filesystem("sysfs", &[], attributes).attempt("mount sysfs")
}

fn open_plan(fds: Vec<OwnedFd>) -> Result<(Plan, Descriptors), Failed> {
    let incomplete = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let mut fds = fds.into_iter();
    let mut next = || {
        fds.next()
            .ok_or_else(incomplete)
            .attempt("receive the step's descriptors")
    };
    let plan: Plan = wire::unseal(next()?).attempt("read the step's plan")?;
    let descriptors = Descriptors {
        root: next()?,
        stdin: next()?,
        stdout: next()?,
        stderr: next()?,
        mounts: (0..plan.n_file_mounts())
            .map(|_| next())
            .collect::<Result<_, _>>()?,
        network: match plan.network {
            PlanNetwork::Given => Some(next()?),
            PlanNetwork::New | PlanNetwork::Inherited => None,
        },
        held: fds.collect(),
    };
    Ok((plan, descriptors))
}

/// Enters the step's network namespace. It stays owned by the worker's user namespace, over which the container's root
/// has no power.
fn enter_network(network: PlanNetwork, given: Option<&OwnedFd>) -> Result<(), Failed> {
    match (network, given) {
        (PlanNetwork::Inherited, _) => Ok(()),
        (PlanNetwork::Given, Some(namespace)) => rustix::thread::move_into_link_name_space(
            namespace.as_fd(),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )
        .attempt("enter the step's network namespace"),
        (PlanNetwork::Given, None) => Err(io::Error::from(io::ErrorKind::NotFound))
            .attempt("enter the step's network namespace"),
        (PlanNetwork::New, _) => {
            // SAFETY: the process has a single thread and shares no descriptor table.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
                .attempt("create a network namespace")?;
            super::network::configure_namespace().attempt("bring loopback up")
        }
    }
}

pub(super) fn pipe() -> Result<(OwnedFd, OwnedFd), Failed> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).attempt("make a pipe")
}

/// Which side of a clone one is on.
pub(super) enum Cloned {
    Child,
    Parent { pid: libc::pid_t, pidfd: OwnedFd },
}

/// The namespaces a container has of its own; its network namespace is the launcher's.
const CONTAINER_NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Forks this single-threaded process into new namespaces.
pub(super) fn clone_process(namespaces: libc::c_int) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let flags = namespaces | libc::CLONE_PIDFD;
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(flags.cast_unsigned());
    args.pidfd = (&raw mut pidfd).addr() as u64;
    args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    // SAFETY: no memory is shared (no CLONE_VM), so this is a fork of a single-threaded process; `args` outlives the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            size_of::<libc::clone_args>(),
        )
    };
    match answer {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: the kernel has just made this descriptor for us.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
            Ok(Cloned::Parent { pid, pidfd })
        }
    }
}

/// Gives the container its ids and its cgroup, then lets it go on.
fn begin(pid: libc::pid_t, plan: &Plan, go: OwnedFd) -> Result<(), Failed> {
    for map in ["uid_map", "gid_map"] {
        let ours = std::fs::read_to_string(format!("/proc/self/{map}"))
            .attempt("read the worker's id map")?;
        let identity = identity_map(&ours);
        std::fs::write(format!("/proc/{pid}/{map}"), identity)
            .attempt(format!("write the container's {map}"))?;
    }
    // Should the machine run out of memory, steps go before what runs them. A kernel without the file has other rules.
    let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE_ADJ);
    for procs in &plan.cgroup_procs {
        std::fs::write(procs, pid.to_string()).attempt("move the container into its cgroup")?;
    }
    std::fs::File::from(go)
        .write_all(b"g")
        .attempt("start the container")
}

/// Maps every id that exists in our user namespace to itself.
fn identity_map(ours: &str) -> String {
    use std::fmt::Write as _;
    let mut map = String::new();
    for line in ours.lines() {
        let mut words = line.split_ascii_whitespace();
        if let (Some(inside), Some(_), Some(count)) = (words.next(), words.next(), words.next()) {
            // Writing to a string cannot fail.
            let _ = writeln!(map, "{inside} {inside} {count}");
        }
    }
    map
}

/// Waits for the container's end, killing it when the worker says so or is gone.
pub(super) fn supervise(
    socket: BorrowedFd<'_>,
    pidfd: &OwnedFd,
    errors: OwnedFd,
) -> Result<Report, Failed> {
    let mut errors = Some(std::fs::File::from(errors));
    let mut worker = Some(socket);
    let mut failure = None;
    loop {
        let mut polled = vec![PollFd::new(pidfd, PollFlags::IN)];
        polled.extend(worker.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        polled.extend(errors.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        match rustix::event::poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                kill_and_reap(pidfd);
                return Err(errno).attempt("wait for the container");
            }
        }
        let ready: Vec<RawFd> = polled
            .iter()
            .filter(|fd| !fd.revents().is_empty())
            .map(|fd| fd.as_fd().as_raw_fd())
            .collect();
        if let Some(mut pipe) = errors.take_if(|fd| ready.contains(&fd.as_raw_fd())) {
            let mut bytes = Vec::new();
            if pipe.read_to_end(&mut bytes).is_ok() && !bytes.is_empty() {
                failure = Some(bytes);
            }
        }
        if worker
            .take_if(|fd| ready.contains(&fd.as_raw_fd()))
            .is_some()
        {
            // Whatever the worker says after the plan means the end, and so does its silence for good.
            let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
        }
        if ready.contains(&pidfd.as_raw_fd()) {
            return Ok(ended(pidfd, failure));
        }
    }
}

fn ended(pidfd: &OwnedFd, failure: Option<Vec<u8>>) -> Report {
    let status = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
    if let Some(text) = failure {
        let text = String::from_utf8_lossy(&text).into_owned();
        let (attempt, reason) = text.split_once('\n').unwrap_or((&text, ""));
        return Report::Failed {
            attempt: attempt.to_owned(),
            reason: reason.to_owned(),
        };
    }
    match status {
        Ok(Some(status)) => exit_report(&status),
        Ok(None) | Err(_) => Report::Failed {
            attempt: "wait for the container".to_owned(),
            reason: String::new(),
        },
    }
}

fn exit_report(status: &WaitIdStatus) -> Report {
    if let Some(code) = status.exit_status() {
        Report::Exited(code)
    } else {
        Report::Killed(status.terminating_signal().unwrap_or(libc::SIGKILL))
    }
}

fn kill_and_reap(pidfd: &OwnedFd) {
    let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
    reap(pidfd);
}

/// Waits for the end of a child whose answer has come another way.
pub(super) fn reap(pidfd: &OwnedFd) {
    let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
}
