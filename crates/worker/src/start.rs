//! Starting workers: the build's folder, its process, and what the process is told.

use std::borrow::Cow;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use engine::event::Event;
use engine::journal::{self, Body, JournalError, Writer};
use engine::recorder::Environment;
use engine::sandbox::{self, CgroupError, CgroupParent};
use engine::spec::{BuildSpec, Record};
use engine::turn::Turn;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use crate::handle::WorkerHandle;
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
/// See [`StartError`]. Once this returns a handle, the build reaches a terminal event: its worker writes it, or [`conclude`](crate::conclude()) does.
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

/// The same; if it is not the build's turn, the worker waits until it is told that it is ([`crate::WorkerSignals::tell`]).
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
    Ok(WorkerHandle::of_child(folder, child, note))
}

/// Begins a build again whose worker was killed, for the `attempt`-th time, in its own folder and journal. If it was not the build's turn yet,
/// the new worker waits as the lost one did.
///
/// # Errors
/// See [`StartError`]; [`conclude`](crate::conclude()) ends the build then.
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
/// is launched after it, [`conclude`](crate::conclude()) ends the build.
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
