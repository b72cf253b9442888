//! Forgetting builds that ended long ago, with their logs.

use std::path::PathBuf;
use std::time::Duration;

use engine::id::BuildId;

use super::Builds;
use crate::failure::chain;
use crate::outputs;

/// How often is looked for builds to forget.
const INTERVAL: Duration = Duration::from_secs(600);

/// Forgets builds from time to time, until the service stops.
pub(super) fn spawn(builds: &Builds) {
    let (builds, tasks) = (builds.clone(), builds.inner.tasks.clone());
    tasks.spawn(async move {
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

/// Forgets every build that ended longer ago than builds are kept.
pub(super) async fn sweep(builds: &Builds) {
    for (id, folder) in due(builds) {
        if let Some(folder) = folder {
            let removed = tokio::task::spawn_blocking(move || store::remove_tree(&folder)).await;
            if let Ok(Err(error)) = removed {
                tracing::warn!(error = chain(&error), build = %id, "an old build cannot be removed");
                continue;
            }
        }
        builds.table().remove(&id);
    }
}

/// Removes exported files that nobody has fetched in time.
async fn forget_outputs(builds: &Builds) {
    let kept_ms = u64::try_from(outputs::LIFETIME.as_millis()).unwrap_or(u64::MAX);
    for (id, folder) in ended_before(builds, kept_ms) {
        let Some(folder) = folder else { continue };
        let output = folder.join(outputs::FOLDER);
        let removed = tokio::task::spawn_blocking(move || store::remove_tree(&output)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(error = chain(&error), build = %id, "old outputs cannot be removed");
        }
    }
}

fn due(builds: &Builds) -> Vec<(BuildId, Option<PathBuf>)> {
    let retention = builds.inner.limits.retention;
    let kept_ms = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
    ended_before(builds, kept_ms)
}

/// Returns the builds that ended longer than `kept_ms` ago.
fn ended_before(builds: &Builds, kept_ms: u64) -> Vec<(BuildId, Option<PathBuf>)> {
    let now_ms = builds.now_ms();
    let table = builds.table();
    let due = table.builds.values().filter_map(|build| {
        let progress = build.progress();
        let ended_at_ms = progress.ended_at_ms?;
        let is_due = now_ms.saturating_sub(ended_at_ms) > kept_ms;
        is_due.then(|| (build.record.id.clone(), progress.folder))
    });
    due.collect()
}
