//! The process that makes one network namespace and keeps it connected, run as the launcher is.
//!
//! It stays in the host's network itself; a short-lived child makes the namespace. The connecting program gets the
//! namespace as its standard input and the pipe that says "ready" as its standard output, because newer versions close
//! every other descriptor when they start.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use super::{DNS_ADDRESS, ProgramKind, routes};
use crate::sandbox::launcher::wire::{self, Report};
use crate::sandbox::launcher::{
    Attempt as _, Cloned, Failed, clone_process, container, pipe, supervise,
};

/// What the keeper is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NetworkPlan {
    pub(super) kind: ProgramKind,
    pub(super) path: PathBuf,
}

/// Makes the namespace, reports it over `socket`, and keeps it connected until the worker lets go.
pub(in crate::sandbox) fn serve(socket: &OwnedFd, fds: Vec<OwnedFd>) -> Result<Report, Failed> {
    let mut fds = fds.into_iter();
    let (Some(plan), Some(ready)) = (fds.next(), fds.next()) else {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof))
            .attempt("receive the network's plan");
    };
    let plan: NetworkPlan = wire::unseal(plan).attempt("read the network's plan")?;
    let namespace = make_namespace()?;
    let (error_reader, error_writer) = pipe()?;
    match clone_process(0).attempt("start the network program's process")? {
        Cloned::Child => run_program(&plan, &namespace, &ready, error_writer),
        Cloned::Parent { pidfd, .. } => {
            drop((ready, error_writer));
            wire::send_report(socket.as_fd(), &Report::Started, Some(namespace.as_fd()))
                .attempt("report the network")?;
            drop(namespace);
            supervise(socket.as_fd(), &pidfd, error_reader)
        }
    }
}

/// Has a child make the namespace, because whoever enters one cannot come back to the host's.
fn make_namespace() -> Result<OwnedFd, Failed> {
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .attempt("make a socket")?;
    let forbidden = routes::host_addresses().attempt("list the host's addresses")?;
    match clone_process(0).attempt("start a process")? {
        Cloned::Child => {
            drop(ours);
            let report = match enter_new(&forbidden) {
                Ok(namespace) => {
                    wire::send_report(theirs.as_fd(), &Report::Started, Some(namespace.as_fd()))
                }
                Err(Failed { attempt, source }) => {
                    let report = Report::Failed {
                        attempt,
                        reason: source.to_string(),
                    };
                    wire::send_report(theirs.as_fd(), &report, None)
                }
            };
            container::exit(i32::from(report.is_err()))
        }
        Cloned::Parent { pidfd, .. } => {
            drop(theirs);
            let what = "make the namespace";
            let received = wire::receive(ours.as_fd());
            crate::sandbox::launcher::reap(&pidfd);
            let (bytes, fds) = received
                .attempt(what)?
                .ok_or(io::ErrorKind::UnexpectedEof)
                .attempt(what)?;
            match (
                serde_json::from_slice(&bytes).attempt(what)?,
                fds.into_iter().next(),
            ) {
                (Report::Started, Some(namespace)) => Ok(namespace),
                (Report::Failed { attempt, reason }, _) => {
                    Err(io::Error::other(reason)).attempt(attempt)
                }
                _ => Err(io::Error::from(io::ErrorKind::InvalidData)).attempt(what),
            }
        }
    }
}

fn enter_new(forbidden: &[std::net::IpAddr]) -> Result<OwnedFd, Failed> {
    // SAFETY: the process has a single thread and shares no descriptor table.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
        .attempt("create a network namespace")?;
    routes::configure_namespace().attempt("bring loopback up")?;
    routes::forbid(forbidden).attempt("make the host's addresses unreachable")?;
    rustix::fs::open(
        "/proc/self/ns/net",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .attempt("open the network namespace")
}

fn run_program(plan: &NetworkPlan, namespace: &OwnedFd, ready: &OwnedFd, errors: OwnedFd) -> ! {
    let failed = match exec(plan, namespace, ready) {
        Ok(never) => match never {},
        Err(failed) => failed,
    };
    // The keeper reports it; without a keeper there is nobody to tell.
    let _ =
        File::from(errors).write_all(format!("{}\n{}", failed.attempt, failed.source).as_bytes());
    container::exit(1)
}

fn exec(
    plan: &NetworkPlan,
    namespace: &OwnedFd,
    ready: &OwnedFd,
) -> Result<std::convert::Infallible, Failed> {
    let what = || format!("execute {}", plan.path.display());
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .attempt(what())?;
    rustix::stdio::dup2_stdin(namespace).attempt(what())?;
    rustix::stdio::dup2_stdout(ready).attempt(what())?;
    // pasta refuses to start when told to ignore broken pipes, as the language's runtime does.
    container::reset_signals();
    container::close_the_rest()?;
    let text = |word: &str| CString::new(word).attempt(what());
    let path = text(&plan.path.to_string_lossy())?;
    let mut words = vec![path.clone()];
    for word in arguments(plan.kind) {
        words.push(text(word)?);
    }
    let pointers: Vec<_> = words
        .iter()
        .map(|word| word.as_ptr())
        .chain([std::ptr::null()])
        .collect();
    let environment = [std::ptr::null()];
    // SAFETY: both arrays end in a null pointer and point into strings that live until the call replaces the process.
    unsafe { libc::execve(path.as_ptr(), pointers.as_ptr(), environment.as_ptr()) };
    Err(io::Error::last_os_error()).attempt(what())
}

#[rustfmt::skip]
fn arguments(kind: ProgramKind) -> &'static [&'static str] {
    match kind {
        ProgramKind::Pasta => &[
            "--foreground", "--stderr", "--quiet", "--config-net",
            "--netns", "/proc/self/fd/0", "--netns-only", "--no-netns-quit",
            "--pid", "/proc/self/fd/1",
            // Nothing of the host's loopback: no port either way, and the gateway's address is nobody.
            "--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none",
            "--no-map-gw",
            "--dns-forward", DNS_ADDRESS,
        ],
        ProgramKind::Slirp4netns => &[
            "--configure", "--mtu=65520", "--disable-host-loopback", "--enable-sandbox", "--enable-seccomp",
            "--ready-fd=1", "--netns-type=path", "/proc/self/fd/0", "tap0",
        ],
    }
}
