//! Forgetting builds that ended long ago, with their logs: by age, and when all of them take too much, the oldest first.

use std::collections::HashSet;
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
/// What `stat` counts blocks in.
const BLOCK_BYTES: u64 = 512;

/// A build that has ended.
struct Ended {
    at_ms: u64,
    id: BuildId,
    folder: Option<PathBuf>,
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
pub(super) async fn sweep(builds: &Builds) {
    let retention = builds.inner.limits.retention;
    let kept_ms = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
    for ended in ended_before(builds, kept_ms) {
        forget(builds, ended).await;
    }
    let Some(max_bytes) = builds.inner.limits.retention_bytes else {
        return;
    };
    let mut all = ended_before(builds, 0);
    all.sort_by(|a, b| (b.at_ms, &b.id).cmp(&(a.at_ms, &a.id)));
    let surplus = tokio::task::spawn_blocking(move || surplus(all, max_bytes)).await;
    for ended in surplus.unwrap_or_default() {
        forget(builds, ended).await;
    }
}

/// Returns the builds that are too many, of those that are given with the newest first.
fn surplus(all: Vec<Ended>, max_bytes: u64) -> Vec<Ended> {
    let mut total = 0_u64;
    let too_many = all.into_iter().filter(|ended| {
        let bytes = ended.folder.as_deref().map_or(0, size);
        total = total.saturating_add(bytes);
        bytes > 0 && total > max_bytes
    });
    let mut too_many: Vec<Ended> = too_many.collect();
    too_many.reverse();
    too_many
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
async fn forget(builds: &Builds, ended: Ended) {
    let Ended { id, folder, .. } = ended;
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
    let kept_ms = u64::try_from(outputs::LIFETIME.as_millis()).unwrap_or(u64::MAX);
    for Ended { id, folder, .. } in ended_before(builds, kept_ms) {
        let Some(folder) = folder else { continue };
        let output = folder.join(outputs::FOLDER);
        let removed = tokio::task::spawn_blocking(move || store::remove_tree(&output)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(error = chain(&error), build = %id, "old outputs cannot be removed");
        }
    }
}

/// Returns the builds that ended longer than `kept_ms` ago.
fn ended_before(builds: &Builds, kept_ms: u64) -> Vec<Ended> {
    let now_ms = builds.now_ms();
    let table = builds.table();
    let due = table.builds.values().filter_map(|build| {
        let progress = build.progress();
        let at_ms = progress.ended_at_ms?;
        let is_due = now_ms.saturating_sub(at_ms) >= kept_ms;
        is_due.then(|| Ended {
            at_ms,
            id: build.record.id.clone(),
            folder: progress.folder,
        })
    });
    due.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_takes_too_much_the_oldest_goes_first() {
        let root = tempfile::tempdir().unwrap();
        let ended = |n: u8, bytes: usize| {
            let folder = root.path().join(n.to_string());
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("journal"), vec![1; bytes]).unwrap();
            fs::create_dir(folder.join(outputs::FOLDER)).unwrap();
            fs::write(
                folder.join(outputs::FOLDER).join("output-0"),
                vec![1; 1 << 20],
            )
            .unwrap();
            Ended {
                at_ms: n.into(),
                id: BuildId::from_random([n; 16]),
                folder: Some(folder),
            }
        };
        let all = || -> Vec<Ended> {
            let _fresh = fs::remove_dir_all(root.path());
            fs::create_dir(root.path()).unwrap();
            // The newest first; the third never had a folder.
            let mut all = vec![ended(4, 65_536), ended(3, 65_536), ended(2, 65_536)];
            all.insert(
                2,
                Ended {
                    at_ms: 2,
                    id: BuildId::from_random([9; 16]),
                    folder: None,
                },
            );
            all
        };
        for (max_bytes, gone) in [
            (300_000, &[][..]),
            (140_000, &[2]),
            (70_000, &[2, 3]),
            (0, &[2, 3, 4]),
        ] {
            let surplus: Vec<u64> = surplus(all(), max_bytes).iter().map(|e| e.at_ms).collect();
            assert_eq!(surplus, gone, "{max_bytes}");
        }
    }
}
