//! Whether there is room for one more build on the disk. What nobody uses is collected before anybody is refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::config::Cache;
use crate::executor::{Disk, Executor};
use crate::failure::{Blame, Failure, chain};

/// After a collection that freed too little, nobody tries another one for so long.
const PAUSE: Duration = Duration::from_secs(10);
/// What has to be free when it is not said: this part of the disk, in hundredths, and so many bytes at most.
const SHARE_FREE: u64 = 2;
const FREE_MAX_BYTES: u64 = 1 << 30;

/// Looks at the disk for who wants to build.
pub(super) struct Room {
    executor: Arc<dyn Executor>,
    cache: Cache,
    min_free_bytes: Option<u64>,
    /// When a collection has freed too little. Whoever collects holds it: one does for all.
    in_vain: Mutex<Option<Instant>>,
}

impl Room {
    pub(super) fn new(
        executor: Arc<dyn Executor>,
        cache: Cache,
        min_free_bytes: Option<u64>,
    ) -> Self {
        Self {
            executor,
            cache,
            min_free_bytes,
            in_vain: Mutex::default(),
        }
    }

    /// Sees to it that there is room.
    ///
    /// # Errors
    /// When there is none, also after what nobody uses was collected.
    pub(super) async fn make(&self) -> Result<(), Failure> {
        let Some(missing) = self.missing()? else {
            return Ok(());
        };
        let mut in_vain = self.in_vain.lock().await;
        if in_vain.is_some_and(|when| when.elapsed() < PAUSE) {
            return self
                .missing()?
                .map_or(Ok(()), |missing| Err(missing.failure()));
        }
        // Somebody else may have collected while we waited.
        if self.missing()?.is_none() {
            return Ok(());
        }
        tracing::warn!(
            free_bytes = missing.disk.free_bytes,
            wanted_bytes = missing.wanted_bytes,
            "the disk is too full for another build: collecting"
        );
        let mut policy = self.cache.policy(missing.disk.bytes);
        let wanted = policy.min_free_bytes.unwrap_or_default();
        policy.min_free_bytes = Some(wanted.max(missing.wanted_bytes));
        if let Err(error) = self.executor.collect(policy).await {
            tracing::warn!(error = chain(&error), "caches cannot be collected");
        }
        match self.missing()? {
            None => {
                *in_vain = None;
                Ok(())
            }
            Some(missing) => {
                *in_vain = Some(Instant::now());
                Err(missing.failure())
            }
        }
    }

    /// Returns what there is too little of; `None` when there is enough.
    fn missing(&self) -> Result<Option<Missing>, Failure> {
        let disk = self.executor.disk();
        let disk =
            disk.map_err(|error| Failure::platform("the disk cannot be looked at", error))?;
        let otherwise = || (disk.bytes / 100 * SHARE_FREE).min(FREE_MAX_BYTES);
        let wanted_bytes = self.min_free_bytes.unwrap_or_else(otherwise);
        let missing = Missing { disk, wanted_bytes };
        Ok((disk.free_bytes < wanted_bytes).then_some(missing))
    }
}

struct Missing {
    disk: Disk,
    wanted_bytes: u64,
}

impl Missing {
    fn failure(&self) -> Failure {
        let text = format!(
            "the disk is too full for another build, also after what nobody uses was removed: {} MiB are free, and {} MiB have to be (admission.min_free_bytes)",
            self.disk.free_bytes >> 20,
            self.wanted_bytes >> 20
        );
        Failure::new(Blame::Load, text)
    }
}
