//! What is done from time to time as long as the service runs.

use std::sync::Arc;
use std::time::Duration;

use store::Store;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Opened, Setup};
use crate::config::Config;
use crate::housekeeping::Housekeeping;
use crate::lifecycle::Service;
use crate::stale_names;

/// How often unfinished uploads to the embedded registry are looked at.
const UPLOAD_SWEEP: Duration = Duration::from_secs(600);

/// Starts what is done from time to time, until the service stops.
pub(super) fn go_about(config: &Config, setup: &Setup, service: &Arc<Service>, opened: &Opened) {
    let Opened { tasks, stop, .. } = opened;
    keep_at_hand(config, service, tasks, stop);
    expire_uploads(&opened.store, tasks, stop);
    tasks.spawn(stale_names::run(Arc::clone(service), stop.clone()));
    let housekeeping = Housekeeping {
        executor: Arc::clone(&setup.executor),
        cache: config.cache.clone(),
    };
    tasks.spawn(housekeeping.run(stop.clone()));
}

/// Looks configured images up at start and every interval, until the service stops.
fn keep_at_hand(
    config: &Config,
    service: &Arc<Service>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let (cache, service, stop) = (config.ref_cache.clone(), Arc::clone(service), stop.clone());
    if cache.refs.is_empty() {
        return;
    }
    let renew = async move {
        let mut ticks = tokio::time::interval(cache.interval);
        loop {
            ticks.tick().await;
            for reference in &cache.refs {
                if let Err(error) = service.images.keep_at_hand(reference).await {
                    tracing::warn!(%error, %reference, "an image is not kept at hand");
                }
            }
        }
    };
    tasks.spawn(async move { stop.run_until_cancelled(Box::pin(renew)).await });
}

/// Removes uploads to the embedded registry that nobody goes on with.
fn expire_uploads(store: &Store, tasks: &TaskTracker, stop: &CancellationToken) {
    let (store, stop) = (store.clone(), stop.clone());
    let expire = async move {
        let mut ticks = tokio::time::interval(UPLOAD_SWEEP);
        loop {
            ticks.tick().await;
            let store = store.clone();
            let now = std::time::SystemTime::now();
            let expired = tokio::task::spawn_blocking(move || store.expire_uploads(now)).await;
            if let Ok(Err(error)) = expired {
                tracing::warn!(%error, "old uploads cannot be removed");
            }
        }
    };
    tasks.spawn(async move { stop.run_until_cancelled(expire).await });
}
