//! Forgetting builds that ended long ago, with their logs: by age, and when all of them take too much, the oldest first.
//!
//! Each minute costs what there is to do, and not what is kept: builds stand in the order in which they ended ([`Kept`]), each is measured
//! when it has ended and not again, and its outputs are looked for once.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::id::BuildId;

use super::Builds;
use crate::failure::chain;
use crate::outputs;

/// How often is looked for builds to forget.
const INTERVAL: Duration = Duration::from_secs(60);
/// How long after its end a build may still become smaller: its worker tidies up.
const SETTLES_WITHIN: Duration = Duration::from_secs(60);
/// What `stat` counts blocks in.
const BLOCK_BYTES: u64 = 512;

/// When a build ended, in Unix milliseconds, and which one.
pub(super) type End = (u64, BuildId);

/// The builds that have ended.
#[derive(Debug, Default)]
pub(super) struct Kept {
    ends: BTreeSet<End>,
    /// Those whose exported files may be there.
    with_outputs: BTreeSet<End>,
    unmeasured: BTreeSet<End>,
    /// What each takes that takes something.
    sizes: BTreeMap<End, u64>,
    total_bytes: u64,
}

impl Kept {
    pub(super) fn add(&mut self, end: End) {
        for ends in [&mut self.with_outputs, &mut self.unmeasured] {
            ends.insert(end.clone());
        }
        self.ends.insert(end);
    }

    pub(super) fn remove(&mut self, end: &End) {
        for ends in [&mut self.ends, &mut self.with_outputs, &mut self.unmeasured] {
            ends.remove(end);
        }
        let bytes = self.sizes.remove(end).unwrap_or_default();
        self.total_bytes = self.total_bytes.saturating_sub(bytes);
    }

    /// Takes in what a build takes on the disk.
    fn measured(&mut self, end: &End, bytes: u64, now_ms: u64) {
        if !self.ends.contains(end) {
            return;
        }
        if is_past(end, SETTLES_WITHIN, now_ms) {
            self.unmeasured.remove(end);
        }
        let before = self.sizes.remove(end).unwrap_or_default();
        self.total_bytes = self.total_bytes.saturating_sub(before) + bytes;
        if bytes > 0 {
            self.sizes.insert(end.clone(), bytes);
        }
    }

    /// Returns the builds that are too many, the oldest first.
    fn surplus(&self, max_bytes: u64) -> Vec<End> {
        let mut over = self.total_bytes.saturating_sub(max_bytes);
        let too_many = self.sizes.iter().take_while(|(_, bytes)| {
            let is_over = over > 0;
            over = over.saturating_sub(**bytes);
            is_over
        });
        too_many.map(|(end, _)| end.clone()).collect()
    }
}

fn is_past(end: &End, age: Duration, now_ms: u64) -> bool {
    let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    now_ms.saturating_sub(end.0) >= age_ms
}

/// Returns those that ended so long ago: the beginning of them.
fn past(ends: &BTreeSet<End>, age: Duration, now_ms: u64) -> Vec<End> {
    let past = ends.iter().take_while(|end| is_past(end, age, now_ms));
    past.cloned().collect()
}

/// Forgets builds from time to time, until the service stops.
pub(super) fn spawn(builds: &Builds) {
    let (builds, tasks) = (builds.clone(), builds.inner.tasks.clone());
    tasks.spawn(async move {
        forget_lost_requests(&builds).await;
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            tokio::select! {
                () = builds.inner.shutdown.cancelled() => return,
                _ = ticks.tick() => {
                    sweep(&builds).await;
                    forget_outputs(&builds).await;
                }
            }
        }
    });
}

/// Forgets every build that ended longer ago than builds are kept, and the oldest ones as long as all of them take too much.
async fn sweep(builds: &Builds) {
    let now_ms = builds.now_ms();
    let limits = &builds.inner.limits;
    let past = past(&builds.table().kept.ends, limits.retention, now_ms);
    for end in past {
        forget(builds, end).await;
    }
    let Some(max_bytes) = limits.retention_bytes else {
        return;
    };
    let unmeasured = builds.table().kept.unmeasured.clone();
    for end in unmeasured {
        let bytes = match folder(builds, &end) {
            Some(folder) => tokio::task::spawn_blocking(move || size(&folder)).await,
            None => Ok(0),
        };
        // One that could not be measured is, the next time.
        if let Ok(bytes) = bytes {
            builds.table().kept.measured(&end, bytes, now_ms);
        }
    }
    let surplus = builds.table().kept.surplus(max_bytes);
    for end in surplus {
        forget(builds, end).await;
    }
}

fn folder(builds: &Builds, (_, id): &End) -> Option<PathBuf> {
    builds.table().builds.get(id)?.progress().folder
}

/// Returns what the files of a build take on the disk, but for its outputs, which have their own time.
fn size(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    let files = entries.flatten().filter_map(|entry| {
        let file = fs::symlink_metadata(entry.path()).ok()?;
        file.is_file().then(|| file.blocks() * BLOCK_BYTES)
    });
    files.sum()
}

/// Removes a build and everything about it. One that cannot be removed is tried again later.
async fn forget(builds: &Builds, end: End) {
    let folder = folder(builds, &end);
    let (_, id) = end;
    let (requests, known) = (builds.inner.requests.clone(), id.clone());
    let removed = tokio::task::spawn_blocking(move || {
        requests.forget(&known)?;
        folder.map_or(Ok(()), |folder| store::remove_tree(&folder))
    });
    if let Ok(Err(error)) = removed.await {
        tracing::warn!(error = chain(&error), build = %id, "an old build cannot be removed");
        return;
    }
    builds.table().remove(&id);
}

/// Removes what a crash has left of builds that are not known any more.
async fn forget_lost_requests(builds: &Builds) {
    let known: HashSet<BuildId> = builds.table().builds.keys().cloned().collect();
    let requests = builds.inner.requests.clone();
    let removed = tokio::task::spawn_blocking(move || requests.forget_others(&known)).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!(
            error = chain(&error),
            "requests of forgotten builds cannot be removed"
        );
    }
}

/// Removes exported files that nobody has fetched in time.
async fn forget_outputs(builds: &Builds) {
    let now_ms = builds.now_ms();
    let past = past(&builds.table().kept.with_outputs, outputs::LIFETIME, now_ms);
    for end in past {
        let output = folder(builds, &end).map(|folder| folder.join(outputs::FOLDER));
        let remove = move || output.map_or(Ok(()), |output| store::remove_tree(&output));
        match tokio::task::spawn_blocking(remove).await {
            Ok(Ok(())) => {
                builds.table().kept.with_outputs.remove(&end);
            }
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), build = %end.1, "old outputs cannot be removed");
            }
            Err(error) => {
                tracing::warn!(%error, build = %end.1, "old outputs cannot be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use engine::event::Event;
    use engine::spec::{BuildSpec, Record};
    use engine::turn::Turn;
    use futures_util::future::BoxFuture;
    use store::collect::{Collected, Policy};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::agents::{AgentId, Agents};
    use crate::builds::build::{Build, Progress};
    use crate::builds::provenance::Provenance;
    use crate::builds::requests::Requests;
    use crate::builds::room::Room;
    use crate::builds::turns::{Share, TurnLimits};
    use crate::builds::{Limits, Parts};
    use crate::environment::Environment;
    use crate::executor::{Disk, Executor, ExecutorError, Running};
    use crate::telemetry::Metrics;

    const MINUTE_MS: u64 = 60_000;
    const HOUR_MS: u64 = 60 * MINUTE_MS;
    const NOW_MS: u64 = 2 * HOUR_MS;

    fn end(at_ms: u64, n: u8) -> End {
        (at_ms, BuildId::from_random([n; 16]))
    }

    #[test]
    fn of_what_takes_too_much_the_oldest_goes_first() {
        let mut kept = Kept::default();
        // The second one never had a folder, and costs nothing.
        for (n, bytes) in [(1, 65_536), (2, 0), (3, 65_536), (4, 65_536)] {
            kept.add(end(n.into(), n));
            kept.measured(&end(n.into(), n), bytes, MINUTE_MS * 2);
        }
        for (max_bytes, gone) in [
            (200_000, &[][..]),
            (140_000, &[1]),
            (70_000, &[1, 3]),
            (0, &[1, 3, 4]),
        ] {
            let surplus: Vec<u64> = kept.surplus(max_bytes).iter().map(|end| end.0).collect();
            assert_eq!(surplus, gone, "{max_bytes}");
        }
        kept.remove(&end(1, 1));
        assert_eq!(kept.total_bytes, 131_072);
        assert!(kept.surplus(140_000).is_empty());
    }

    #[test]
    fn what_a_build_takes_is_all_but_its_outputs() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("journal"), vec![1; 65_536]).unwrap();
        let outputs = root.path().join(outputs::FOLDER);
        fs::create_dir(&outputs).unwrap();
        fs::write(outputs.join("output-0"), vec![1; 1 << 20]).unwrap();
        let bytes = size(root.path());
        assert!((65_536..1 << 20).contains(&bytes), "{bytes}");
        assert_eq!(size(&root.path().join("none")), 0);
    }

    /// Nobody who carries builds out.
    struct Nobody;

    fn nothing<T: Send + 'static>() -> BoxFuture<'static, Result<T, ExecutorError>> {
        let problem = "nobody is there".to_owned();
        Box::pin(std::future::ready(Err(ExecutorError::NotReady { problem })))
    }

    impl Executor for Nobody {
        fn start(
            &self,
            _: Record,
            _: BuildSpec,
            _: Vec<AgentId>,
            _: Turn,
        ) -> BoxFuture<'_, Result<Running, ExecutorError>> {
            nothing()
        }

        fn turn(&self, _: BuildId, _: Turn) -> BoxFuture<'_, Result<(), ExecutorError>> {
            nothing()
        }

        fn adopt(&self, _: BuildId) -> BoxFuture<'_, Result<Option<Running>, ExecutorError>> {
            nothing()
        }

        fn cancel(&self, _: BuildId) -> BoxFuture<'_, Result<(), ExecutorError>> {
            nothing()
        }

        fn collect(&self, _: Policy) -> BoxFuture<'_, Result<Collected, ExecutorError>> {
            nothing()
        }

        fn disk(&self) -> io::Result<Disk> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn ready(&self) -> BoxFuture<'_, Result<(), ExecutorError>> {
            nothing()
        }
    }

    /// Returns builds of which none is known, two hours after the clock's beginning.
    fn none(state: &Path) -> Builds {
        let turns = TurnLimits {
            running: 1,
            queued: 1,
            each: Share {
                weight: 1,
                running: 1,
                queued: 1,
            },
            tenants: BTreeMap::new(),
        };
        let executor: Arc<dyn Executor> = Arc::new(Nobody);
        Builds::none(Parts {
            room: Arc::new(Room::new(
                Arc::clone(&executor),
                crate::config::Cache::default(),
                None,
            )),
            executor,
            state: state.to_owned(),
            provenance: Provenance::open(&state.join("names")).unwrap(),
            requests: Requests::open(&state.join("requests")).unwrap(),
            limits: Limits {
                turns,
                retention: Duration::from_secs(7 * 24 * 3600),
                retention_bytes: Some(u64::MAX),
            },
            environment: Environment {
                now_ms: || NOW_MS,
                ..Environment::real()
            },
            metrics: Metrics::default(),
            shutdown: CancellationToken::new(),
        })
    }

    fn ended(builds: &Builds, n: u64, at_ms: u64) -> PathBuf {
        let mut random = [0; 16];
        random[..8].copy_from_slice(&n.to_le_bytes());
        let id = BuildId::from_random(random);
        let folder = builds.inner.state.join("builds").join(id.as_str());
        fs::create_dir_all(folder.join(outputs::FOLDER)).unwrap();
        fs::write(folder.join("journal"), "x").unwrap();
        let text = format!(
            r#"{{"id":"{id}","tenant":"default","reference":"r","base_reference":"b","started_at_ms":1}}"#
        );
        let mut progress = Progress {
            folder: Some(folder.clone()),
            ..Progress::default()
        };
        progress.take(&Event::Cancelled, at_ms);
        let record = serde_json::from_str(&text).unwrap();
        let build = Arc::new(Build::new(record, Agents::default(), progress));
        builds.table().insert(&build);
        folder
    }

    /// What a minute of upkeep has touched: outputs that it has removed, and builds that it has measured.
    async fn minute(builds: &Builds, folders: &[PathBuf]) -> [usize; 2] {
        let before = builds.table().kept.sizes.clone();
        for folder in folders {
            // What it would find if it looked.
            fs::create_dir_all(folder.join(outputs::FOLDER)).unwrap();
            let journal = folder.join("journal");
            let size = fs::metadata(&journal).unwrap().len();
            fs::write(&journal, vec![1; usize::try_from(size).unwrap() + 8192]).unwrap();
        }
        sweep(builds).await;
        forget_outputs(builds).await;
        let removed = folders
            .iter()
            .filter(|folder| !folder.join(outputs::FOLDER).exists());
        let table = builds.table();
        let sizes = table.kept.sizes.iter();
        let measured = sizes.filter(|(end, bytes)| before.get(end) != Some(bytes));
        [removed.count(), measured.count()]
    }

    #[tokio::test]
    async fn a_minute_costs_what_has_happened_and_not_what_is_kept() {
        for n_kept in [10, 1000] {
            let state = tempfile::tempdir().unwrap();
            let builds = none(state.path());
            let mut folders: Vec<PathBuf> = (0..n_kept).map(|n| ended(&builds, n, n)).collect();
            let all = folders.len();
            assert_eq!(minute(&builds, &folders).await, [all, all]);
            assert_eq!(minute(&builds, &folders).await, [0, 0], "{n_kept}");
            // One that ended a moment ago is measured until it has settled, and keeps its outputs; another has ended an hour ago.
            folders.push(ended(&builds, n_kept, NOW_MS - 1));
            folders.push(ended(&builds, n_kept + 1, NOW_MS - HOUR_MS));
            assert_eq!(minute(&builds, &folders).await, [1, 2], "{n_kept}");
            assert_eq!(minute(&builds, &folders).await, [0, 1], "{n_kept}");
            assert_eq!(builds.table().kept.ends.len(), folders.len());
        }
    }
}
