//! Has the data plane collect what nobody uses, from time to time.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::Cache;
use crate::executor::Executor;
use crate::failure::chain;

/// Between the end of a collection and the next.
const INTERVAL: Duration = Duration::from_secs(300);
/// How often is looked whether the disk is so full that the next one cannot wait.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// What housekeeping needs.
pub(crate) struct Housekeeping {
    pub(crate) executor: Arc<dyn Executor>,
    pub(crate) cache: Cache,
}

impl Housekeeping {
    /// Goes on until the service stops.
    pub(crate) async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.go_on()).await;
    }

    async fn go_on(&self) {
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // What was just started has other things to do.
        let mut next = tokio::time::Instant::now() + INTERVAL;
        loop {
            let now = ticks.tick().await;
            match self.executor.disk() {
                Ok(disk) => {
                    let policy = self.cache.policy(disk.bytes);
                    let is_full = policy
                        .min_free_bytes
                        .is_some_and(|wanted| disk.free_bytes < wanted);
                    if now < next && !is_full {
                        continue;
                    }
                    self.collect(policy).await;
                }
                Err(error) => {
                    tracing::warn!(error = chain(&error), "the disk cannot be looked at");
                }
            }
            // Also after one that freed too little: another one right now would find no more.
            next = tokio::time::Instant::now() + INTERVAL;
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn collect(&self, policy: store::collect::Policy) {
        match self.executor.collect(policy).await {
            Ok(collected) if collected.removed.is_empty() => {}
            Ok(collected) => {
                let n_removed = collected.removed.len();
                let freed_bytes: u64 = collected.removed.iter().map(|item| item.bytes).sum();
                let left_bytes = collected.left_bytes;
                tracing::info!(n_removed, freed_bytes, left_bytes, "collected");
            }
            Err(error) => tracing::warn!(error = chain(&error), "caches cannot be collected"),
        }
    }
}
