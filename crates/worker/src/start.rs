//! Starting workers, finding them again, and ending the builds of dead ones.

use std::borrow::Cow;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use engine::event::Event;
use engine::id::BuildId;
use engine::journal::{self, Body, JournalError, Writer};
use engine::recorder::Environment;
use engine::sandbox::{self, CgroupError, CgroupParent};
use engine::spec::{BuildSpec, Record};
use engine::state;
use engine::turn::Turn;
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::io::unix::AsyncFd;

use crate::conclude::{Cause, conclude, conclude_as};
use crate::outside::Note;
use crate::userns::Owner;
use crate::{folder, line, outside};

/// Folders that hold names without which a build is not found: its own, that of all builds, the state directory.
const DURABLE_FOLDERS: usize = 3;

/// How a worker is started.
#[derive(Debug, Clone)]
pub struct WorkerCommand {
    /// The kiln binary.
    pub program: PathBuf,
    /// The state directory.
    pub state: PathBuf,
    /// Arguments for the worker beyond the build: its user namespace.
    pub arguments: Vec<String>,
    /// Who owns what workers write; `None` when that is the caller.
    pub owner: Option<Owner>,
}

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
    /// A build without one: the worker was killed. It can be begun again ([`begin_again`]) or ended ([`conclude`]).
    Killed,
}

/// Tells why no worker was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The build's folder could not be made.
    #[error("create the build's folder {}", path.display())]
    Folder {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What the build is found by could not be made durable.
    #[error("make {} durable", path.display())]
    Durable {
        /// What it was.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The journal could not be made.
    #[error("create the build's journal")]
    Journal(#[source] JournalError),
    /// The spec or the record could not be encoded.
    #[error("encode the build's spec")]
    Encode(#[source] serde_json::Error),
    /// The process could not be started.
    #[error("start worker {}", program.display())]
    Spawn {
        /// Which program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The build's cgroups could not be made.
    #[error("limit what the build may use")]
    Cgroups(#[source] CgroupError),
    /// The worker ended before it had read what to do.
    #[error("hand the spec to the worker")]
    Handover(#[source] io::Error),
}

/// Starts a worker for `spec` and hands the spec over.
///
/// # Errors
/// See [`StartError`]. Once this returns a handle, the build reaches a terminal event: its worker writes it, or [`conclude`] does.
pub async fn start(
    command: &WorkerCommand,
    record: &Record,
    spec: &BuildSpec,
) -> Result<WorkerHandle, StartError> {
    prepare(command, record)?;
    launch(command, spec).await
}

/// The second half of [`start`], after [`prepare`]: starts the worker of a build whose folder is there.
///
/// # Errors
/// See [`StartError`].
pub async fn launch(command: &WorkerCommand, spec: &BuildSpec) -> Result<WorkerHandle, StartError> {
    launch_in_turn(command, spec, Turn::Now).await
}

/// The same; if it is not the build's turn, the worker waits until it is told that it is ([`WorkerSignals::tell`]).
///
/// # Errors
/// See [`StartError`].
pub async fn launch_in_turn(
    command: &WorkerCommand,
    spec: &BuildSpec,
    turn: Turn,
) -> Result<WorkerHandle, StartError> {
    let folder = folder::of(&command.state, &spec.id);
    if turn != Turn::Now {
        line::write(&folder, turn).map_err(|source| StartError::Folder {
            path: folder.clone(),
            source,
        })?;
    }
    let log =
        File::create(folder.join(folder::WORKER_LOG)).map_err(|source| StartError::Folder {
            path: folder.clone(),
            source,
        })?;
    let started = spawn(command, spec, &folder, (log, Scratch::Given)).await;
    if started.is_err() {
        outside::try_remove(&folder);
    }
    started
}

async fn spawn(
    command: &WorkerCommand,
    spec: &BuildSpec,
    folder: &Path,
    (log, scratch): (File, Scratch),
) -> Result<WorkerHandle, StartError> {
    let (cgroups, note) = cgroups(command, spec, folder)?.unzip();
    let mut child = tokio::process::Command::new(&command.program)
        .arg("worker")
        .arg("--state")
        .arg(&command.state)
        .args(["--id", spec.id.as_str()])
        .args(&command.arguments)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(false)
        .spawn()
        .map_err(|source| StartError::Spawn {
            program: command.program.clone(),
            source,
        })?;
    let handover = Handover {
        spec: Cow::Borrowed(spec),
        cgroups,
        scratch,
    };
    let text = serde_json::to_vec(&handover).map_err(StartError::Encode)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&text).await.map_err(StartError::Handover)?;
        stdin.shutdown().await.map_err(StartError::Handover)?;
    }
    Ok(WorkerHandle {
        folder: folder.to_owned(),
        process: Process::Child(child),
        _note: note,
    })
}

/// Begins a build again whose worker was killed, for the `attempt`-th time, in its own folder and journal. If it was not the build's turn yet,
/// the new worker waits as the lost one did.
///
/// # Errors
/// See [`StartError`]; [`conclude`] ends the build then.
pub async fn begin_again(
    command: &WorkerCommand,
    spec: &BuildSpec,
    attempt: u32,
) -> Result<WorkerHandle, StartError> {
    let folder = folder::of(&command.state, &spec.id);
    let failed = |source| StartError::Folder {
        path: folder.clone(),
        source,
    };
    let held = folder::try_lock(&folder).map_err(failed)?;
    let held = held.ok_or_else(|| failed(io::ErrorKind::ResourceBusy.into()))?;
    let mut writer = Writer::resume(&folder).map_err(StartError::Journal)?;
    let again = Event::BegunAgain {
        attempt,
        reason: "the worker was killed".to_owned(),
    };
    let again = journal::Record {
        at_ms: (Environment::real().now_ms)(),
        body: Body::Event(again),
    };
    writer.append(&again).map_err(StartError::Journal)?;
    let log = File::create(folder.join(folder::WORKER_LOG)).map_err(failed)?;
    drop(held);
    let started = spawn(command, spec, &folder, (log, Scratch::Left)).await;
    if started.is_err() {
        outside::try_remove(&folder);
    }
    started
}

/// What goes to the worker over its standard input.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Handover<'a> {
    pub(crate) spec: Cow<'a, BuildSpec>,
    /// Made by the starter: the worker has no power over the host's cgroups.
    pub(crate) cgroups: Option<CgroupParent>,
    pub(crate) scratch: Scratch,
}

/// What is in the folders of a build that its worker writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scratch {
    /// What the starter has put there for it.
    Given,
    /// What another worker has left, who was killed.
    Left,
}

/// Makes the cgroups of a build, and notes them before.
fn cgroups(
    command: &WorkerCommand,
    spec: &BuildSpec,
    folder: &Path,
) -> Result<Option<(CgroupParent, Note)>, StartError> {
    let Some(cgroups) = sandbox::planned_cgroups(spec.id.as_str()) else {
        return Ok(None);
    };
    let (uid, gid) = match command.owner {
        Some(owner) => (owner.uid, owner.gid),
        None => (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        ),
    };
    let note = outside::note(folder, &cgroups).map_err(|source| StartError::Folder {
        path: folder.to_owned(),
        source,
    })?;
    cgroups.make(uid, gid).map_err(StartError::Cgroups)?;
    Ok(Some((cgroups, note)))
}

/// The first half of [`start`]: makes the build's folder and returns it, so that files can be put into its scratch folder. If no worker
/// is launched after it, [`conclude`] ends the build.
///
/// # Errors
/// See [`StartError`]. Nothing is left of the folder then.
pub fn prepare(command: &WorkerCommand, record: &Record) -> Result<PathBuf, StartError> {
    let path = folder::of(&command.state, &record.id);
    let failed = |source| StartError::Folder {
        path: path.clone(),
        source,
    };
    let builds = command.state.join(folder::BUILDS);
    DirBuilder::new()
        .recursive(true)
        .create(&builds)
        .map_err(failed)?;
    if command.owner.is_some() {
        // The worker is somebody else: it may go through, and look at nothing.
        for shared in [&command.state, &builds] {
            fs::set_permissions(shared, fs::Permissions::from_mode(0o711)).map_err(failed)?;
        }
    }
    DirBuilder::new()
        .mode(0o700)
        .create(&path)
        .map_err(failed)?;
    fill(command, record, &path).inspect_err(|_| {
        // A build that has never been one: nobody looks for it.
        let _kept = fs::remove_dir_all(&path);
    })?;
    Ok(path)
}

/// Puts what a build begins with into its folder.
fn fill(command: &WorkerCommand, record: &Record, path: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::Folder {
        path: path.to_owned(),
        source,
    };
    let own = |file: &Path| match command.owner {
        Some(owner) => chown(file, Some(owner.uid), Some(owner.gid)),
        None => Ok(()),
    };
    for name in [folder::WORK, folder::OUTPUT] {
        let below = path.join(name);
        DirBuilder::new()
            .mode(0o700)
            .create(&below)
            .map_err(failed)?;
        own(&below).map_err(failed)?;
    }
    let text = serde_json::to_vec_pretty(record).map_err(StartError::Encode)?;
    fs::write(path.join(folder::RECORD), text).map_err(failed)?;
    let journal = Writer::create(path).map_err(StartError::Journal)?;
    journal.reserve().map_err(StartError::Journal)?;
    let lock = path.join(folder::LOCK);
    let mut lock = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&lock)
        .map_err(failed)?;
    lock.write_all(folder::no_pid().as_bytes())
        .map_err(failed)?;
    let files = [
        journal::FILE_NAME,
        journal::RESERVE,
        folder::LOCK,
        folder::RECORD,
    ];
    for file in files {
        own(&path.join(file)).map_err(failed)?;
    }
    // Last: from now on only the data plane and root may look inside.
    own(path).map_err(failed)
}

/// Makes what [`prepare`] has put on the disk durable: a build that is accepted after it is found again when the machine has gone down, and
/// gets its end.
///
/// # Errors
/// When the system refuses; the build must not be accepted then.
pub fn make_durable(folder: &Path) -> Result<(), StartError> {
    let sync = |path: &Path, flags: OFlags| {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path);
        opened
            .and_then(|file| file.sync_all())
            .map_err(|source| StartError::Durable {
                path: path.to_owned(),
                source,
            })
    };
    for name in [folder::RECORD, journal::FILE_NAME] {
        sync(&folder.join(name), OFlags::empty())?;
    }
    // Its names, its own name, and that of the folder of all builds: the first build has made that one.
    for path in folder.ancestors().take(DURABLE_FOLDERS) {
        sync(path, OFlags::DIRECTORY)?;
    }
    Ok(())
}

impl WorkerHandle {
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
