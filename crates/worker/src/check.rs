//! Whether the state directory is as it has to be: the store, by whom everything in it belongs to, and the builds.
//!
//! Of each build: what was asked can be read, its journal is whole to its end, it has exactly one end unless its worker lives, and nothing
//! is left of a worker that is dead. A build whose worker lives is looked at and never touched.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use engine::chain;
use engine::event::{Event, Failure, FailureKind};
use engine::id::BuildId;
use engine::journal::{self, Body, JournalError, Reader, Writer};
use engine::recorder::Environment;
use engine::spec::Record;
use rustix::fs::{FlockOperation, OFlags};
use store::Store;
use store::check::{Checking, Problem, Remedy, Report, Severity};

use crate::start::WorkerCommand;
use crate::storage::{self, StorageError};
use crate::{folder, outside};

/// What changed a shorter time ago may still be on its way from one process to another.
const SETTLED_AFTER: Duration = Duration::from_secs(120);

/// Tells why a state directory could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The store could not be opened.
    #[error("open the store")]
    Open(#[source] store::OpenError),
    /// The store could not be checked.
    #[error("check the store")]
    Store(#[source] store::check::CheckError),
    /// The process that checks the store failed.
    #[error("have the store checked")]
    Aside(#[source] StorageError),
    /// The builds could not be listed.
    #[error("list the builds")]
    Builds(#[source] io::Error),
    /// The thread that checks ended in a way that nobody has thought of.
    #[error("check the state directory")]
    Thread(#[source] tokio::task::JoinError),
}

/// Checks the state directory of `command`.
///
/// # Errors
/// See [`CheckError`]: when it could not be checked. What is wrong is in the report.
pub async fn run(command: &WorkerCommand, how: Checking) -> Result<Report, CheckError> {
    let (state, owner) = (command.state.clone(), command.owner);
    let report = if rustix::process::geteuid().is_root() {
        // Root may do everything; and nobody else may remove what the server has kept for itself.
        let store = state.join(folder::STORE);
        let owner = owner.map(|owner| store::Owner {
            uid: owner.uid,
            gid: owner.gid,
        });
        let check = move || {
            let store = Store::open(&store, owner).map_err(CheckError::Open)?;
            let checked = store.check(how, engine::NAMED_RECORDS);
            checked.map_err(CheckError::Store)
        };
        let checked = tokio::task::spawn_blocking(check).await;
        checked.map_err(CheckError::Thread)??
    } else {
        let checked = storage::check(command, how).await;
        checked.map_err(CheckError::Aside)?
    };
    let builds = tokio::task::spawn_blocking(move || builds(&state, how, report)).await;
    let builds = builds.map_err(CheckError::Thread)?;
    builds.map_err(CheckError::Builds)
}

/// Checks every build and adds what is found to `report`.
fn builds(state: &Path, how: Checking, mut report: Report) -> io::Result<Report> {
    let entries = match fs::read_dir(state.join(folder::BUILDS)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(report),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name());
    }
    names.sort_unstable();
    for name in names {
        let path = state.join(folder::BUILDS).join(&name);
        let id = name.to_str().and_then(|name| name.parse::<BuildId>().ok());
        let is_folder = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
        let Some(id) = id.filter(|_| is_folder) else {
            let problem = "it is nothing that kiln puts there";
            let subject = format!("{}/{}", folder::BUILDS, name.display());
            let problem = Problem::new(Severity::Leftover, subject, problem);
            report.add(
                how.repair,
                problem.advice("remove it unless you know what it is"),
                None,
            );
            continue;
        };
        report.counts.n_builds += 1;
        let is_settled = is_settled(&path);
        let build = Build {
            id,
            path,
            how,
            is_settled,
        };
        build.check(&mut report);
    }
    Ok(report)
}

/// A build that is checked.
struct Build {
    id: BuildId,
    path: PathBuf,
    how: Checking,
    /// Whether nobody has touched it for long.
    is_settled: bool,
}

/// What a journal says.
#[derive(Debug, Default)]
struct Told {
    n_ends: usize,
    /// Something was said after the end.
    goes_on: bool,
    /// The offset of the first record that is damaged.
    damaged_at: Option<u64>,
    /// Bytes behind the last whole record.
    n_torn: u64,
}

impl Build {
    fn check(&self, report: &mut Report) {
        if self.is_alive() {
            // Its journal grows, and is whole as far as it has come.
            if let Ok(told) = read(&self.path) {
                self.journal(report, &told);
            }
            return;
        }
        match (self.record(), read(&self.path)) {
            (Ok(()), Ok(told)) => {
                self.journal(report, &told);
                self.end(report, &told);
                self.leftovers(report, &told);
            }
            // Just being made.
            _ if !self.is_settled => {}
            (Err(problem), told) => {
                self.unreadable(report, &problem, told.is_ok_and(|told| told.n_ends > 0));
            }
            (Ok(()), Err(error)) => self.unreadable(report, &chain(&error), false),
        }
    }

    fn add(
        &self,
        report: &mut Report,
        problem: (Severity, String, &str),
        remedy: Option<Remedy<'_>>,
    ) {
        let (severity, text, advice) = problem;
        let problem = Problem::new(severity, format!("build {}", self.id), text);
        report.add(self.how.repair, problem.advice(advice), remedy);
    }

    fn is_alive(&self) -> bool {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let lock = fs::OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(self.path.join(folder::LOCK));
        lock.is_ok_and(|lock| {
            rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err()
        })
    }

    fn record(&self) -> Result<(), String> {
        let text = folder::read_small(&self.path, folder::RECORD);
        let text = text.map_err(|error| format!("read {}: {error}", folder::RECORD))?;
        let record: Record = serde_json::from_str(&text)
            .map_err(|error| format!("understand {}: {error}", folder::RECORD))?;
        if record.id != self.id {
            return Err(format!("{} is that of build {}", folder::RECORD, record.id));
        }
        Ok(())
    }

    /// What no command and no server can make a build of.
    #[expect(
        clippy::fn_params_excessive_bools,
        reason = "one, that the caller has just found out"
    )]
    fn unreadable(&self, report: &mut Report, problem: &str, has_ended: bool) {
        let act =
            || self.unless_alive(|| store::remove_tree(&self.path).map_err(JournalError::Read));
        if has_ended {
            let text = format!("it is not found by any command: {problem}");
            let advice = "its journal can be copied before it is removed";
            let remedy = Remedy::forgetting("removes it with its log", act);
            self.add(report, (Severity::Lost, text, advice), Some(remedy));
        } else {
            let text = format!("it was never begun, or not written to the disk: {problem}");
            let remedy = Remedy::of("removes it", act);
            self.add(report, (Severity::Leftover, text, ""), Some(remedy));
        }
    }

    fn journal(&self, report: &mut Report, told: &Told) {
        if let Some(offset) = told.damaged_at {
            let text = format!("its journal is damaged at offset {offset}; its log ends there");
            let act = || self.unless_alive(|| cut(&self.path));
            let what = format!(
                "keeps all of it as {}, and the beginning as the journal of a build that failed",
                folder::DAMAGED
            );
            let advice = "look at the disk and its log";
            self.add(
                report,
                (Severity::Damaged, text, advice),
                Some(Remedy::of(what, act)),
            );
        }
        if told.n_ends > 1 || told.goes_on {
            let text = "its journal goes on after its end".to_owned();
            self.add(
                report,
                (
                    Severity::Damaged,
                    text,
                    "please report this: it is a mistake in kiln",
                ),
                None,
            );
        }
    }

    fn end(&self, report: &mut Report, told: &Told) {
        if told.damaged_at.is_some() || !self.is_settled {
            return;
        }
        let act = || {
            let concluded = crate::conclude(&self.path);
            concluded.map_err(|error| io::Error::other(chain(&error)))
        };
        if told.n_ends == 0 {
            let text = "its worker is dead, and its journal has no end".to_owned();
            let remedy = Remedy::of("ends it as one whose worker was lost", act);
            let advice = "a server does that when it is started";
            self.add(report, (Severity::Leftover, text, advice), Some(remedy));
        } else if told.n_torn > 0 {
            let text = format!(
                "behind the end of its journal are {} bytes of an interrupted write",
                told.n_torn
            );
            let act = || self.unless_alive(|| Writer::resume(&self.path).map(drop));
            self.add(
                report,
                (Severity::Leftover, text, ""),
                Some(Remedy::of("cuts them off", act)),
            );
        }
    }

    fn leftovers(&self, report: &mut Report, told: &Told) {
        if told.n_ends == 0 || !self.is_settled {
            return;
        }
        let work = self.path.join(folder::WORK);
        if fs::read_dir(&work).is_ok_and(|mut entries| entries.next().is_some()) {
            let text = "scratch files of its worker, which is dead, are left".to_owned();
            let act = || {
                self.unless_alive(|| {
                    let removed = engine::rootfs::remove::remove_tree(&work);
                    removed.map_err(|error| JournalError::Read(io::Error::other(chain(&error))))
                })
            };
            let advice =
                "files of other users: as root, or with `unshare --map-auto --map-root-user`";
            self.add(
                report,
                (Severity::Leftover, text, advice),
                Some(Remedy::of("removes them", act)),
            );
        }
        let reserve = self.path.join(journal::RESERVE);
        if fs::symlink_metadata(&reserve).is_ok() {
            let text = "room for the end of its journal is still kept".to_owned();
            let act =
                || self.unless_alive(|| fs::remove_file(&reserve).map_err(JournalError::Read));
            let remedy = Remedy::of("gives it up", act);
            self.add(report, (Severity::Leftover, text, ""), Some(remedy));
        }
        if outside::noted(&self.path).is_some_and(|cgroups| cgroups.is_there()) {
            let text = "its cgroups are left".to_owned();
            let act = || {
                self.unless_alive(|| {
                    let is_gone = outside::try_remove(&self.path);
                    let busy = || JournalError::Read(io::ErrorKind::ResourceBusy.into());
                    is_gone.then_some(()).ok_or_else(busy)
                })
            };
            self.add(
                report,
                (Severity::Leftover, text, ""),
                Some(Remedy::of("removes them", act)),
            );
        }
    }

    /// Does something that nobody may do while a worker lives.
    fn unless_alive(&self, act: impl FnOnce() -> Result<(), JournalError>) -> io::Result<()> {
        let Some(_held) = folder::try_lock(&self.path)? else {
            return Err(io::Error::other("its worker lives"));
        };
        act().map_err(|error| io::Error::other(chain(&error)))
    }
}

fn is_settled(build: &Path) -> bool {
    let newest = [folder::RECORD, folder::LOCK, journal::FILE_NAME, "."]
        .into_iter()
        .filter_map(|name| fs::symlink_metadata(build.join(name)).ok()?.modified().ok())
        .max();
    newest.is_none_or(|at| at + SETTLED_AFTER < SystemTime::now())
}

/// Reads a journal to its end, or to where it is damaged.
fn read(folder: &Path) -> Result<Told, JournalError> {
    let mut reader = Reader::open(folder)?;
    let mut told = Told::default();
    loop {
        match reader.next() {
            Ok(Some(record)) => {
                told.goes_on |= told.n_ends > 0;
                let is_end = matches!(&record.body, Body::Event(event) if event.is_terminal());
                told.n_ends += usize::from(is_end);
            }
            Ok(None) => {
                let size = fs::symlink_metadata(folder.join(journal::FILE_NAME));
                let size = size.map_err(JournalError::Read)?.size();
                told.n_torn = size.saturating_sub(reader.offset());
                return Ok(told);
            }
            Err(JournalError::Damaged { offset }) => {
                told.damaged_at = Some(offset);
                return Ok(told);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Puts a damaged journal aside and leaves what of it can be read, with an end.
fn cut(folder: &Path) -> Result<(), JournalError> {
    let told = read(folder)?;
    let Some(offset) = told.damaged_at else {
        return Ok(());
    };
    folder::put_damaged_aside(folder, offset)?;
    if told.n_ends == 0 {
        let failure = Failure {
            kind: FailureKind::Platform,
            message: format!(
                "the log was damaged at offset {offset}, and nothing is known of what followed"
            ),
            step: None,
            exit_code: None,
        };
        let mut writer = Writer::resume(folder)?;
        writer.end(&journal::Record {
            at_ms: (Environment::real().now_ms)(),
            body: Body::Event(Event::Failed { failure }),
        })?;
    }
    Ok(())
}
