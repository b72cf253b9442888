//! Builds in the state directory, as `kiln ls` and `kiln logs` show them. Reads only what builds have written; any number of
//! other processes may be at work there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use engine::id::BuildId;
use engine::spec::Record;
use engine::state::BuildState;
use oci::Reference;

/// Largest record that is read.
const RECORD_MAX_BYTES: u64 = 1 << 20;

/// A build on disk.
#[derive(Debug)]
pub(crate) struct Stored {
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// What was asked.
    pub(crate) record: Record,
}

/// Returns every build in `state`, the oldest first. Folders that are not (or not yet) builds are passed over.
pub(crate) fn all(state: &Path) -> anyhow::Result<Vec<Stored>> {
    let folder = state.join(worker::folder::BUILDS);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("list the builds in {}", folder.display()))?,
    };
    let mut builds = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("list the builds in {}", folder.display()))?;
        let is_build = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.parse::<BuildId>().is_ok());
        if is_build && let Some(record) = record(&entry.path())? {
            let folder = entry.path();
            builds.push(Stored { folder, record });
        }
    }
    builds.sort_by(|a, b| {
        let key = |build: &Stored| (build.record.started_at_ms, build.record.id.clone());
        key(a).cmp(&key(b))
    });
    Ok(builds)
}

fn record(folder: &Path) -> anyhow::Result<Option<Record>> {
    let path = folder.join(worker::folder::RECORD);
    let failed = || format!("read {}", path.display());
    match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => anyhow::ensure!(
            found.with_context(failed)?.len() <= RECORD_MAX_BYTES,
            "{} is too large",
            path.display()
        ),
    }
    let bytes = fs::read(&path).with_context(failed)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .with_context(failed)
}

/// Returns the build that `wanted` names: by its id, else the newest of that image.
pub(crate) fn find(builds: Vec<Stored>, wanted: &str) -> Option<Stored> {
    let by_id = builds
        .iter()
        .position(|build| build.record.id.as_str() == wanted);
    let name = wanted.parse::<Reference>().ok();
    let by_name = || {
        let name = name.as_ref()?;
        builds
            .iter()
            .rposition(|build| is_named(&build.record, name))
    };
    let at = by_id.or_else(by_name)?;
    builds.into_iter().nth(at)
}

fn is_named(record: &Record, wanted: &Reference) -> bool {
    let is_same = |name: &str| {
        name.parse::<Reference>().is_ok_and(|name| {
            name.name() == wanted.name() && name.manifest_key() == wanted.manifest_key()
        })
    };
    is_same(&record.reference) || is_same(&record.base_reference)
}

/// Returns the one word for a state.
pub(crate) fn word(state: &BuildState) -> &'static str {
    match state {
        BuildState::Queued { .. } => "queued",
        BuildState::Active { .. } => "running",
        BuildState::Succeeded { .. } => "succeeded",
        BuildState::Failed { .. } => "failed",
        BuildState::Cancelled => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use engine::event::Event;
    use engine::journal::{self, Body, Writer};

    use super::*;

    fn stored(state: &Path, n: u8, reference: &str) -> BuildId {
        let id = BuildId::from_random([n; 16]);
        let folder = state.join("builds").join(id.as_str());
        fs::create_dir_all(&folder).unwrap();
        let record = Record {
            id: id.clone(),
            tenant: String::new(),
            triggered_by: String::new(),
            caller: String::new(),
            supervisor_ref: String::new(),
            reference: reference.to_owned(),
            base_reference: String::new(),
            started_at_ms: n.into(),
            key: String::new(),
            purpose: engine::spec::Purpose::Image,
            request: String::new(),
            labels: std::collections::BTreeMap::new(),
        };
        fs::write(
            folder.join("record.json"),
            serde_json::to_vec(&record).unwrap(),
        )
        .unwrap();
        let mut writer = Writer::create(&folder).unwrap();
        let body = Body::Event(Event::Cancelled);
        writer.append(&journal::Record { at_ms: 1, body }).unwrap();
        id
    }

    #[test]
    fn a_name_means_its_newest_build() {
        let state_dir = tempfile::tempdir().unwrap();
        let first = stored(state_dir.path(), 1, "docker.io/library/app:latest");
        let second = stored(state_dir.path(), 2, "docker.io/library/app:latest");
        fs::create_dir(state_dir.path().join("builds/other")).unwrap();
        let found =
            |wanted: &str| find(all(state_dir.path()).unwrap(), wanted).map(|b| b.record.id);
        assert_eq!(found("app"), Some(second));
        assert_eq!(found(first.as_str()), Some(first.clone()));
        assert_eq!(found("app:other"), None);
        let builds = all(state_dir.path()).unwrap();
        let (state, _) = engine::state::of(&builds[0].folder).unwrap();
        assert_eq!(word(&state), "cancelled");
    }

    #[test]
    fn there_are_no_builds_where_there_was_never_one() {
        assert!(all(Path::new("/nonexistent")).unwrap().is_empty());
    }
}
