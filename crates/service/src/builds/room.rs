//! Whether there is room for one more build, or one more uploaded folder, on the disk. What nobody uses is collected before anybody is
//! refused. Uploads leave more free than builds need, so that they are refused first: what is uploaded stays for a while.

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

/// What uploads leave free beyond that: as much again, and so much at most.
const MARGIN_MAX_BYTES: u64 = 256 << 20;

/// Looks at the disk for who wants to build or upload.
pub(crate) struct Room {
    executor: Arc<dyn Executor>,
    cache: Cache,
    min_free_bytes: Option<u64>,
    /// When a collection has freed too little. Whoever collects holds it: one does for all.
    in_vain: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room").finish_non_exhaustive()
    }
}

/// What uploads go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UploadRoom {
    /// What they leave free.
    pub(crate) min_free_bytes: u64,
    /// What the disk has in all.
    pub(crate) disk_bytes: u64,
}

impl Room {
    pub(crate) fn new(
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

    /// Sees to it that there is room for a build.
    ///
    /// # Errors
    /// When there is none, also after what nobody uses was collected.
    pub(super) async fn make(&self) -> Result<(), Failure> {
        match self.collect(&|disk| self.wanted(disk)).await? {
            None => Ok(()),
            Some(missing) => Err(missing.failure()),
        }
    }

    /// Returns what uploads have to leave free.
    ///
    /// # Errors
    /// When the disk cannot be looked at.
    pub(crate) fn of_uploads(&self) -> Result<UploadRoom, Failure> {
        let disk = self.disk()?;
        Ok(UploadRoom {
            min_free_bytes: self.left_by_uploads(&disk),
            disk_bytes: disk.bytes,
        })
    }

    /// Collects what nobody uses for an upload of `n_bytes`: of a large one, for as much of it as caches leave free anyway. Whether there is
    /// room then, the upload finds out.
    ///
    /// # Errors
    /// When the disk cannot be looked at.
    pub(crate) async fn make_for_upload(&self, n_bytes: u64) -> Result<(), Failure> {
        let wanted = |disk: &Disk| {
            let most = self.cache.policy(disk.bytes).min_free_bytes;
            let n_bytes = n_bytes.min(most.unwrap_or_default());
            self.left_by_uploads(disk).saturating_add(n_bytes)
        };
        self.collect(&wanted).await.map(|_missing| ())
    }

    /// Collects if less is free than is wanted; returns what is missing then.
    async fn collect(
        &self,
        wanted: &(dyn Fn(&Disk) -> u64 + Sync),
    ) -> Result<Option<Missing>, Failure> {
        let Some(missing) = self.missing(wanted)? else {
            return Ok(None);
        };
        let mut in_vain = self.in_vain.lock().await;
        if in_vain.is_some_and(|when| when.elapsed() < PAUSE) {
            return self.missing(wanted);
        }
        // Somebody else may have collected while we waited.
        if self.missing(wanted)?.is_none() {
            return Ok(None);
        }
        tracing::warn!(
            free_bytes = missing.disk.free_bytes,
            wanted_bytes = missing.wanted_bytes,
            "the disk is too full for another build or upload: collecting"
        );
        let mut policy = self.cache.policy(missing.disk.bytes);
        let kept_free = policy.min_free_bytes.unwrap_or_default();
        policy.min_free_bytes = Some(kept_free.max(missing.wanted_bytes));
        if let Err(error) = self.executor.collect(policy).await {
            tracing::warn!(error = chain(&error), "caches cannot be collected");
        }
        let missing = self.missing(wanted)?;
        *in_vain = missing.is_some().then(Instant::now);
        Ok(missing)
    }

    fn disk(&self) -> Result<Disk, Failure> {
        let disk = self.executor.disk();
        disk.map_err(|error| Failure::platform("the disk cannot be looked at", error))
    }

    /// Returns what has to be free for a build.
    fn wanted(&self, disk: &Disk) -> u64 {
        let otherwise = || (disk.bytes / 100 * SHARE_FREE).min(FREE_MAX_BYTES);
        self.min_free_bytes.unwrap_or_else(otherwise)
    }

    fn left_by_uploads(&self, disk: &Disk) -> u64 {
        let wanted = self.wanted(disk);
        wanted.saturating_add(wanted.min(MARGIN_MAX_BYTES))
    }

    /// Returns what there is too little of; `None` when there is enough.
    fn missing(&self, wanted: &dyn Fn(&Disk) -> u64) -> Result<Option<Missing>, Failure> {
        let disk = self.disk()?;
        let wanted_bytes = wanted(&disk);
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
