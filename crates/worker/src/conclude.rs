//! Ending the builds of workers that are gone without a word, or never came.

use std::fs;
use std::path::Path;

use engine::event::{Event, Failure, FailureKind};
use engine::journal::{self, Body, JournalError, Writer};
use engine::recorder::Environment;
use engine::state;

use crate::folder;

/// How the system says that there is no room, or no more for this user.
const DISK_FULL: [&str; 2] = ["(os error 28)", "(os error 122)"];

/// Why a build has an end that no worker wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Its worker was lost.
    Lost,
    /// Somebody had asked for its end, and its worker was gone before it could say so.
    Cancelled,
    /// No worker could be started.
    NotStarted {
        /// Whose fault that is.
        kind: FailureKind,
        /// What went wrong.
        message: String,
    },
}

/// Ends the build in `folder` as lost when its worker is gone without a word. Does nothing when it lives or has ended the build.
///
/// # Errors
/// When the journal cannot be read or written.
pub fn conclude(folder: &Path) -> Result<(), JournalError> {
    conclude_as(folder, Cause::Lost)
}

/// The same, for a reason that is known.
///
/// # Errors
/// When the journal cannot be read or written.
pub fn conclude_as(folder: &Path, cause: Cause) -> Result<(), JournalError> {
    let Some(_held) = folder::try_lock(folder).map_err(JournalError::Read)? else {
        return Ok(());
    };
    if state::of(folder)?.0.is_terminal() {
        // Whoever wrote the end may have been killed before, or not have been able to.
        let _absent = fs::remove_file(folder.join(journal::RESERVE));
        remove_work(folder);
        return Ok(());
    }
    // A machine that goes down may leave holes in what was written last.
    let cut_at = match Writer::resume(folder) {
        Err(JournalError::Damaged { offset }) => Some(offset),
        _ => None,
    };
    if let Some(offset) = cut_at {
        folder::put_damaged_aside(folder, offset)?;
    }
    let mut writer = Writer::resume(folder)?;
    let event = match cause {
        Cause::Cancelled => Event::Cancelled,
        Cause::NotStarted { kind, message } => failed(kind, message),
        Cause::Lost => lost(folder, cut_at),
    };
    remove_work(folder);
    writer.end(&journal::Record {
        at_ms: (Environment::real().now_ms)(),
        body: Body::Event(event),
    })
}

/// As the host's root this removes everything; anybody else may lack the right to some of it, which costs space only.
fn remove_work(folder: &Path) {
    let work = folder.join(folder::WORK);
    if work.exists() {
        let _what_is_left = engine::rootfs::remove::remove_tree(&work);
    }
}

/// Removes what builds in `state` that have ended have left, whose workers were killed after they had told the end, when no server waited for
/// them.
pub fn tidy(state: &Path) {
    let Ok(builds) = fs::read_dir(state.join(folder::BUILDS)) else {
        return;
    };
    for folder in builds.flatten().map(|build| build.path()) {
        let has_ended = || state::of(&folder).is_ok_and(|(state, _)| state.is_terminal());
        if folder.join(folder::WORK).exists()
            && has_ended()
            && let Err(error) = conclude(&folder)
        {
            tracing::warn!(%error, folder = %folder.display(), "what a build has left stays");
        }
    }
}

fn failed(kind: FailureKind, message: String) -> Event {
    let failure = Failure {
        kind,
        message,
        step: None,
        exit_code: None,
    };
    Event::Failed { failure }
}

/// Tells what is known of a worker that was lost.
fn lost(folder: &Path, cut_at: Option<u64>) -> Event {
    let said = folder::read_small(folder, folder::WORKER_LOG).unwrap_or_default();
    let said = said.trim();
    let message = match said {
        "" => "the worker that carried out this build was lost".to_owned(),
        said => format!(
            "the worker that carried out this build was lost: {}",
            tail(said)
        ),
    };
    let message = match cut_at {
        Some(offset) => format!("{message}; its log was damaged at offset {offset} and ends there"),
        None => message,
    };
    // What the worker says when it cannot write its journal.
    if DISK_FULL.iter().any(|words| said.contains(words)) {
        failed(FailureKind::OutOfDisk, message)
    } else {
        failed(FailureKind::WorkerLost, message)
    }
}

fn tail(text: &str) -> &str {
    let start = text.len().saturating_sub(2000);
    let start = (start..text.len())
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    text.get(start..).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use engine::state::BuildState;

    use super::*;

    #[test]
    fn a_build_has_the_end_that_is_known_and_keeps_it() {
        let not_started = || Cause::NotStarted {
            kind: FailureKind::OutOfDisk,
            message: "no room for a worker".to_owned(),
        };
        for (cause, word) in [
            (not_started(), "no room for a worker"),
            (Cause::Lost, "was lost"),
            (Cause::Cancelled, "Cancelled"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            drop(Writer::create(folder.path()).unwrap());
            std::fs::create_dir(folder.path().join(folder::WORK)).unwrap();
            conclude_as(folder.path(), cause).unwrap();
            let (state, _) = state::of(folder.path()).unwrap();
            assert!(format!("{state:?}").contains(word), "{state:?}");
            assert!(!folder.path().join(folder::WORK).exists());
            // Whoever comes later, and knows nothing.
            std::fs::create_dir(folder.path().join(folder::WORK)).unwrap();
            conclude(folder.path()).unwrap();
            assert!(!folder.path().join(folder::WORK).exists());
            let (again, _): (BuildState, _) = state::of(folder.path()).unwrap();
            assert_eq!(again, state);
        }
    }

    #[test]
    fn what_a_build_has_left_goes_once_it_has_ended() {
        let state = tempfile::tempdir().unwrap();
        let build = |name: &str| {
            let folder = state.path().join(folder::BUILDS).join(name);
            std::fs::create_dir_all(folder.join(folder::WORK).join("layers")).unwrap();
            drop(Writer::create(&folder).unwrap());
            folder
        };
        let (ended, goes_on) = (build("ended"), build("goes-on"));
        conclude_as(&ended, Cause::Cancelled).unwrap();
        std::fs::create_dir_all(ended.join(folder::WORK).join("layers")).unwrap();
        tidy(state.path());
        assert!(!ended.join(folder::WORK).exists());
        assert!(goes_on.join(folder::WORK).exists());
        tidy(&state.path().join("nothing"));
    }
}
