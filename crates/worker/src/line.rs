//! Waiting for a turn, in the worker's own process; and telling it, from outside.
//!
//! The worker has read its spec and waits with it. A bell ([`BELL`], a signal that does nothing to who does not listen) says that the file
//! of its turn may be another one; the file says what. Bells get lost when nobody listens yet, so the file is read first, and every while.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use engine::event::Event;
use engine::recorder::Recorder;
use engine::spec::BuildSpec;
use engine::turn::{TURN_FILE, Turn};
use rustix::fs::OFlags;
use rustix::process::Signal;
use store::Store;
use store::context::Context;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

use crate::folder;

/// What a worker that waits is woken by.
pub(crate) const BELL: Signal = Signal::URG;
/// How often the file is looked at when no bell rings.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// The file while it is written.
const DRAFT: &str = "turn.draft";

/// Writes down whose turn it is in the build of `folder`. What says `now` stays.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(folder: &Path, turn: Turn) -> io::Result<()> {
    if read(folder)? == Some(Turn::Now) {
        return Ok(());
    }
    // The folder is the worker's: what is there is replaced, and never followed.
    let draft = folder.join(DRAFT);
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(&draft)?;
    writeln!(file, "{turn}")?;
    fs::rename(&draft, folder.join(TURN_FILE))
}

/// Returns what is written down; `None` for a build that never had to wait.
pub(crate) fn read(folder: &Path) -> io::Result<Option<Turn>> {
    match folder::read_small(folder, TURN_FILE) {
        Ok(text) => Ok(text.parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// How waiting has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    /// It is our turn.
    Turn,
    /// We were told to end.
    Cancelled,
}

/// Waits for our turn, and records how many are before us whenever that is said. What the build will need of what callers have uploaded is
/// held meanwhile.
pub(crate) async fn wait(
    (state, folder): (&Path, &Path),
    spec: &BuildSpec,
    recorder: &Recorder,
    terminate: &mut Signals,
) -> Result<Waited, String> {
    let kind = SignalKind::from_raw(BELL.as_raw());
    let mut bell = signal(kind).map_err(|e| format!("listen for bells: {e}"))?;
    let _held = uploads(state, spec);
    let mut said = None;
    loop {
        let turn = read(folder).map_err(|e| format!("read whose turn it is: {e}"))?;
        match turn {
            Some(Turn::After(ahead)) if said != Some(ahead) => {
                recorder.event(&Event::Queued { ahead });
                said = Some(ahead);
            }
            Some(Turn::After(_)) => {}
            Some(Turn::Now) | None => return Ok(Waited::Turn),
        }
        tokio::select! {
            _ = terminate.recv() => return Ok(Waited::Cancelled),
            _ = bell.recv() => {}
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

/// What cannot be held is found missing by the build itself, which has the words for it.
fn uploads(state: &Path, spec: &BuildSpec) -> Vec<Context> {
    let ids = spec.uploads();
    if ids.is_empty() {
        return Vec::new();
    }
    let Ok(store) = Store::open(&state.join(folder::STORE), None) else {
        return Vec::new();
    };
    let held = ids.into_iter().filter_map(|id| {
        let id = id.parse().ok()?;
        store.context(&spec.tenant, &id).ok()?
    });
    held.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_that_has_come_is_not_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert_eq!(read(path).unwrap(), None);
        write(path, Turn::After(3)).unwrap();
        write(path, Turn::After(2)).unwrap();
        assert_eq!(read(path).unwrap(), Some(Turn::After(2)));
        write(path, Turn::Now).unwrap();
        write(path, Turn::After(1)).unwrap();
        assert_eq!(read(path).unwrap(), Some(Turn::Now));
    }

    #[test]
    fn what_a_build_has_put_there_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "mine").unwrap();
        let build = folder.path().join("build");
        fs::create_dir(&build).unwrap();
        std::os::unix::fs::symlink(&victim, build.join(DRAFT)).unwrap();
        write(&build, Turn::After(1)).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "mine");
        fs::remove_file(build.join(TURN_FILE)).unwrap();
        std::os::unix::fs::symlink(&victim, build.join(TURN_FILE)).unwrap();
        assert!(read(&build).is_err());
    }
}
