//! A worker that lives: finding it again, waiting for it, and speaking to it, and to nobody who has got its process id since.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use engine::id::BuildId;
use engine::journal::JournalError;
use engine::state;
use engine::turn::Turn;
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::unix::AsyncFd;

use crate::conclude::{Cause, conclude, conclude_as};
use crate::outside::Note;
use crate::{folder, line, outside};

/// A worker that was started or found.
#[derive(Debug)]
pub struct WorkerHandle {
    /// The build's folder.
    pub folder: PathBuf,
    process: Process,
    /// Tells others that the starter lives.
    _note: Option<Note>,
}

#[derive(Debug)]
enum Process {
    Child(tokio::process::Child),
    Adopted { pidfd: AsyncFd<OwnedFd> },
}

/// What a worker that is gone has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// A build with an end.
    Ended,
    /// A build without one: the worker was killed. It can be begun again ([`crate::begin_again`]) or ended ([`conclude`]).
    Killed,
}

impl WorkerHandle {
    /// Returns the handle of a worker that was started here; `note` is kept as long as it is looked after.
    pub(crate) fn of_child(
        folder: &Path,
        child: tokio::process::Child,
        note: Option<Note>,
    ) -> Self {
        Self {
            folder: folder.to_owned(),
            process: Process::Child(child),
            _note: note,
        }
    }

    /// Waits until the worker is gone, and sees to it that its build has an end.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub async fn wait(self) -> Result<(), JournalError> {
        let folder = self.folder.clone();
        match self.gone().await? {
            Gone::Ended => Ok(()),
            Gone::Killed => {
                let concluded = tokio::task::spawn_blocking(move || conclude(&folder)).await;
                concluded.unwrap_or(Ok(()))
            }
        }
    }

    /// Waits until the worker is gone, and sees to it that its build has an end, unless the worker was killed before it could write one.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub async fn gone(mut self) -> Result<Gone, JournalError> {
        let was_killed = match &mut self.process {
            Process::Child(child) => {
                let status = child.wait().await;
                status.is_ok_and(|status| status.signal().is_some())
            }
            Process::Adopted { pidfd } => {
                drop(pidfd.readable().await);
                // Somebody else's child: how it went is not known, unless it has left an end.
                true
            }
        };
        let folder = self.folder;
        let looked = tokio::task::spawn_blocking(move || {
            outside::remove(&folder);
            if was_killed && !state::of(&folder)?.0.is_terminal() {
                return Ok(Gone::Killed);
            }
            conclude(&folder).map(|()| Gone::Ended)
        })
        .await;
        looked.unwrap_or(Ok(Gone::Killed))
    }

    /// Kills the worker of a build that was not accepted, and ends the build for a reason that is known, unless it has an end already.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub async fn withdraw(self, cause: Cause) -> Result<(), JournalError> {
        if let Err(error) = self.signal(Signal::KILL) {
            tracing::error!(%error, folder = %self.folder.display(), "a worker cannot be killed");
        }
        let folder = self.folder.clone();
        match self.gone().await? {
            Gone::Ended => Ok(()),
            Gone::Killed => {
                let concluded =
                    tokio::task::spawn_blocking(move || conclude_as(&folder, cause)).await;
                concluded.unwrap_or(Ok(()))
            }
        }
    }

    /// Asks the worker to cancel its build. One that has ended meanwhile is left alone, and so is whoever has got its process id since.
    ///
    /// # Errors
    /// When the caller may not.
    pub fn cancel(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        let told = match &self.process {
            Process::Child(child) => {
                let pid = child.id().and_then(|id| i32::try_from(id).ok());
                // As long as it has not been waited for, the id is its own.
                let pid = pid.and_then(Pid::from_raw);
                pid.map_or(Ok(()), |pid| rustix::process::kill_process(pid, signal))
            }
            Process::Adopted { pidfd } => {
                rustix::process::pidfd_send_signal(pidfd.get_ref(), signal)
            }
        };
        match told {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            told => Ok(told?),
        }
    }

    /// Returns what cancels the build while somebody else waits for the worker; `None` when it is gone.
    ///
    /// # Errors
    /// When there is no descriptor left for it.
    pub fn canceller(&self) -> io::Result<Option<Canceller>> {
        let pidfd = match &self.process {
            Process::Child(child) => {
                let pid = child.id().and_then(|id| i32::try_from(id).ok());
                // It has not been waited for: the id is its own.
                let Some(pid) = pid.and_then(Pid::from_raw) else {
                    return Ok(None);
                };
                rustix::process::pidfd_open(pid, PidfdFlags::empty())?
            }
            Process::Adopted { pidfd } => pidfd.get_ref().try_clone()?,
        };
        Ok(Some(Canceller { pidfd }))
    }

    /// Returns what speaks to the worker while somebody else waits for it; `None` when it is gone.
    ///
    /// # Errors
    /// When there is no descriptor left for it.
    pub fn signals(&self) -> io::Result<Option<WorkerSignals>> {
        let canceller = self.canceller()?;
        Ok(canceller.map(|canceller| WorkerSignals {
            folder: self.folder.clone(),
            canceller,
        }))
    }

    /// Tells whether the worker waits for its turn.
    pub fn waits(&self) -> bool {
        matches!(line::read(&self.folder), Ok(Some(Turn::After(_))))
    }
}

/// Cancels one build, however long ago its worker has gone and whoever has got its process id since.
#[derive(Debug)]
pub struct Canceller {
    pidfd: OwnedFd,
}

impl Canceller {
    /// Asks the worker to cancel its build. One that has ended meanwhile is left alone.
    ///
    /// # Errors
    /// When the caller may not.
    pub fn cancel(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            told => Ok(told?),
        }
    }
}

/// Speaks to one worker, and to nobody who has got its process id since.
#[derive(Debug)]
pub struct WorkerSignals {
    folder: PathBuf,
    canceller: Canceller,
}

impl WorkerSignals {
    /// Asks the worker to cancel its build. One that has ended meanwhile is left alone.
    ///
    /// # Errors
    /// When the caller may not.
    pub fn cancel(&self) -> io::Result<()> {
        self.canceller.cancel()
    }

    /// Tells a worker that waits whose turn it is. Nothing can be said after it was told that it is its own.
    ///
    /// # Errors
    /// When it cannot be written down, or the caller may not.
    pub fn tell(&self, turn: Turn) -> io::Result<()> {
        line::write(&self.folder, turn)?;
        self.canceller.signal(line::BELL)
    }
}

/// Finds the living worker of a build that another process started; `None` when there is none.
///
/// # Errors
/// When the folder cannot be read.
pub fn adopt(state: &Path, id: &BuildId) -> io::Result<Option<WorkerHandle>> {
    let folder = folder::of(state, id);
    let Some(pid) = read_pid(&folder) else {
        return Ok(None);
    };
    let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) else {
        return Ok(None);
    };
    // Only now look at the lock: if it is held after the pidfd was opened, the pid is the holder's and not a stranger's.
    if folder::try_lock(&folder)?.is_some() {
        return Ok(None);
    }
    // SAFETY: the descriptor is owned by what is registered, and closed with it.
    let pidfd = unsafe { AsyncFd::register(pidfd) }?;
    Ok(Some(WorkerHandle {
        folder,
        process: Process::Adopted { pidfd },
        _note: None,
    }))
}

fn read_pid(folder: &Path) -> Option<Pid> {
    let text = folder::read_small(folder, folder::LOCK).ok()?;
    Pid::from_raw(text.trim().parse().ok()?)
}
