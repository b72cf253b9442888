//! Whether builds can be started: asked from time to time, told to health checks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, HealthService};

use super::Setup;
use crate::failure::chain;

/// How often it is asked.
const INTERVAL: Duration = Duration::from_secs(5);

/// The services whose health is told; the empty name means all of them.
const SERVICES: [&str; 3] = ["", "builder.ImageBuilder", "kiln.v1.Kiln"];

/// Returns what is missing, now and whenever it changes, and the service that tells it. Asks until the service stops.
pub(super) async fn watch(
    setup: &Setup,
    folder: &Path,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> (watch::Receiver<String>, HealthService) {
    let (setup, folder, stop) = (setup.clone(), folder.to_owned(), stop.clone());
    let mut reporter = HealthReporter::new();
    let service = HealthService::from_health_reporter(reporter.clone());
    let (sender, receiver) = watch::channel(String::new());
    tell(&reporter, &sender, ask(&setup, &folder).await).await;
    tasks.spawn(async move {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => tell(&reporter, &sender, ask(&setup, &folder).await).await,
            }
        }
        tell(&reporter, &sender, "server is shutting down".to_owned()).await;
        // Ends the streams of those who watch: they would hold up the drain.
        for service in SERVICES {
            reporter.clear_service_status(service).await;
        }
    });
    (receiver, service)
}

async fn tell(reporter: &HealthReporter, sender: &watch::Sender<String>, problem: String) {
    let status = if problem.is_empty() {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    };
    for service in SERVICES {
        reporter.set_service_status(service, status).await;
    }
    sender.send_if_modified(|last| {
        let changed = *last != problem;
        if changed && !problem.is_empty() {
            tracing::warn!(problem, "not ready");
        }
        *last = problem;
        changed
    });
}

/// Returns what is missing; empty when nothing is.
async fn ask(setup: &Setup, folder: &Path) -> String {
    if let Err(error) = setup.executor.ready().await {
        return chain(&error);
    }
    let path: PathBuf = folder.join("ready");
    let written = tokio::task::spawn_blocking(move || std::fs::write(path, "")).await;
    match written {
        Ok(Ok(())) => String::new(),
        Ok(Err(error)) => format!("state directory is not writable: {error}"),
        Err(error) => format!("state directory is not writable: {error}"),
    }
}
