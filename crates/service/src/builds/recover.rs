//! After a restart: finds the builds of earlier processes, goes on with those whose workers live, ends those whose workers died.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::id::BuildId;
use engine::journal::{FILE_NAME, JournalError, Reader};
use engine::spec::Record;
use engine::state::{self, BuildState};
use futures_util::stream::{self, StreamExt as _};

use super::Builds;
use super::build::{Build, Progress};
use super::drive;
use crate::agents::Agents;
use crate::executor::Running;
use crate::failure::chain;

/// Name of the folder with every build, within the state directory.
pub(super) const BUILDS: &str = "builds";
/// Name of the file that says what was asked, within a build's folder.
const RECORD: &str = "record.json";
/// Largest such file that is read.
const RECORD_MAX_BYTES: u64 = 1 << 20;
/// How long the system may keep what was written before it brings it to the disk, at the very most.
const WRITTEN_WITHIN: Duration = Duration::from_secs(3600);
/// How many builds are read at the same time: a few more than a small machine has processors, so that one that waits for the disk costs nothing.
const READ_AT_ONCE: usize = 8;

/// Tells why the builds of earlier processes cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The folder with every build cannot be read.
    #[error("list builds in {}", path.display())]
    List {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("read record.json")]
    Record(#[source] io::Error),
    #[error("decode record.json")]
    Decode(#[source] serde_json::Error),
    #[error("read the journal")]
    Journal(#[source] JournalError),
}

/// Puts every build on disk into the table. A build that cannot be read is left where it is, with a warning.
pub(super) async fn recover(builds: &Builds) -> Result<(), RecoverError> {
    let path = builds.inner.state.join(BUILDS);
    let failed = |source| RecoverError::List {
        path: path.clone(),
        source,
    };
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let id = entry.file_name().to_str().and_then(|n| n.parse().ok());
        if let Some(id) = id {
            found.push((id, entry.path()));
        }
    }
    let mut reading = stream::iter(found)
        .map(|(id, folder): (BuildId, PathBuf)| async {
            let told = read(&folder).await;
            (id, folder, told)
        })
        .buffer_unordered(READ_AT_ONCE);
    let mut waiting = Vec::new();
    while let Some((id, folder, told)) = reading.next().await {
        let recovered = match told {
            Ok(told) => recover_one(builds, id.clone(), folder, told).await,
            Err(error) => Err(error),
        };
        match recovered {
            Ok(None) => {}
            Ok(Some(waits)) => waiting.push(waits),
            Err(error) => {
                tracing::warn!(error = chain(&error), build = %id, "a build of an earlier run is left alone");
            }
        }
    }
    // Now that it is known who runs: in the order in which they came.
    waiting.sort_by_key(|(build, _)| (build.record.started_at_ms, build.record.id.clone()));
    let now_ms = builds.now_ms();
    for (build, running) in waiting {
        let turn = builds.table().wait(&build, now_ms);
        let going_on = drive::go_on(builds.clone(), build, running, Some(turn));
        builds.inner.tasks.spawn(going_on);
    }
    builds.dispatch(&mut builds.table(), now_ms);
    Ok(())
}

/// Puts a build into the table of which `told` was read a moment ago. Returns one that waits for its turn.
async fn recover_one(
    builds: &Builds,
    id: BuildId,
    folder: PathBuf,
    told: (Record, Progress),
) -> Result<Option<(Arc<Build>, Running)>, ReadError> {
    let (record, mut progress) = told;
    if record.id != id {
        return Err(ReadError::Record(io::ErrorKind::InvalidData.into()));
    }
    let mut running = None;
    if !progress.state.is_terminal() {
        running = match builds.inner.executor.adopt(id).await {
            Ok(running) => running,
            Err(error) => {
                tracing::error!(
                    error = chain(&error),
                    "a build of an earlier run is given up"
                );
                None
            }
        };
        if running.is_none() {
            (_, progress) = read(&folder).await?;
            if !progress.state.is_terminal() {
                // Its end could not be written down: the disk is full, say. It has ended nevertheless, and nobody may wait for it.
                progress.take(&drive::lost(), builds.now_ms());
            }
        }
    }
    progress.folder = Some(folder);
    let succeeded = match &progress.state {
        BuildState::Succeeded { image } => Some(image.digest.clone()),
        _ => None,
    };
    let build = Arc::new(Build::new(record, Agents::default(), progress));
    builds.table().insert(&build);
    // It may have succeeded while nobody was there to remember it.
    if let Some(digest) = succeeded {
        drive::remember(builds, &build, &digest).await;
    }
    if let Some(running) = running {
        builds.inner.metrics.build_adopted();
        let key = build.record.key.clone();
        builds.table().by_key.insert(key, Arc::clone(&build));
        if running.waits {
            return Ok(Some((build, running)));
        }
        // Counts as one of those that run; when fewer may run than before, it runs nevertheless.
        let now_ms = builds.now_ms();
        let record = &build.record;
        builds.table().turns.run(&record.tenant, &record.id, now_ms);
        let going_on = drive::go_on(builds.clone(), build, running, None);
        builds.inner.tasks.spawn(going_on);
    }
    Ok(None)
}

/// Waits until an end is durable that a worker may have been killed after. One that was written long ago is, or the machine went down
/// since: waiting for each of very many would take its time.
fn make_durable(folder: &Path) -> Result<(), JournalError> {
    let path = folder.join(FILE_NAME);
    let modified = fs::metadata(&path).and_then(|metadata| metadata.modified());
    let modified = modified.map_err(JournalError::Read)?;
    let is_old = modified.elapsed().is_ok_and(|age| age > WRITTEN_WITHIN);
    if is_old {
        return Ok(());
    }
    Reader::open(folder)?.syncing()()
}

async fn read(folder: &Path) -> Result<(Record, Progress), ReadError> {
    let folder = folder.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let path = folder.join(RECORD);
        let metadata = fs::metadata(&path).map_err(ReadError::Record)?;
        if metadata.len() > RECORD_MAX_BYTES {
            return Err(ReadError::Record(io::ErrorKind::FileTooLarge.into()));
        }
        let text = fs::read(&path).map_err(ReadError::Record)?;
        let record: Record = serde_json::from_slice(&text).map_err(ReadError::Decode)?;
        let (mut state, ended_at_ms) = state::of(&folder).map_err(ReadError::Journal)?;
        if let Some(end) = state.end()
            && let Err(error) = make_durable(&folder)
        {
            tracing::error!(error = chain(&error), folder = %folder.display(), "the end of a build is not durable");
            let told = BuildState::default().next(&drive::not_durable(end, &error));
            state = told.unwrap_or(state);
        }
        let progress = Progress {
            state,
            folder: None,
            ended_at_ms,
        };
        Ok((record, progress))
    });
    read.await
        .map_err(|error| ReadError::Record(io::Error::other(error)))?
}
