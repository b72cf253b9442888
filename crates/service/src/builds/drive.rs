//! The task that goes with each build: wait for a turn, start, follow the journal to its end.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::event::{Event, Failure as BuildFailure, FailureKind};
use engine::follow::Follower;
use engine::journal::{Body, JournalError, Record as JournalRecord};
use engine::spec::{BuildSpec, Purpose, Record};
use futures_util::FutureExt as _;
use tokio::sync::OwnedSemaphorePermit;

use super::Builds;
use super::build::Build;
use super::list::Reason;
use crate::executor::Running;
use crate::failure::chain;
use crate::names::identity_of;
use crate::telemetry::Outcome;

/// Carries a build through, and ends it also when that goes wrong in a way that nobody has thought of.
pub(super) async fn drive(builds: Builds, build: Arc<Build>, spec: BuildSpec) {
    let driven = AssertUnwindSafe(carry_through(&builds, &build, spec));
    if driven.catch_unwind().await.is_err() {
        let problem = "kiln made a mistake; its log says more".to_owned();
        end(&builds, &build, &failed(FailureKind::Platform, problem));
    }
}

/// Carries a build through, from its order to its end or until the service stops.
async fn carry_through(builds: &Builds, build: &Arc<Build>, spec: BuildSpec) {
    let turn = wait_for_turn(builds, build).await;
    builds.table().n_queued -= 1;
    let Some(turn) = turn else {
        return;
    };
    match start(builds, build, spec).await {
        Ok(running) => follow(builds, build, running).await,
        Err((kind, problem)) => end(builds, build, &failed(kind, problem)),
    }
    drop(turn);
}

async fn wait_for_turn(builds: &Builds, build: &Build) -> Option<OwnedSemaphorePermit> {
    let inner = &builds.inner;
    tokio::select! {
        biased;
        () = build.withdrawn.cancelled() => {
            end(builds, build, &Event::Cancelled);
            None
        }
        // Nothing of it is on disk: its callers hear that the server is shutting down, and ask another one.
        () = inner.shutdown.cancelled() => None,
        turn = Arc::clone(&inner.turns).acquire_owned() => turn.ok(),
    }
}

async fn start(
    builds: &Builds,
    build: &Arc<Build>,
    spec: BuildSpec,
) -> Result<Running, (FailureKind, String)> {
    let (known, record) = (builds.clone(), build.record.clone());
    let remembered = tokio::task::spawn_blocking(move || {
        names_of(&record).try_for_each(|name| {
            known
                .inner
                .provenance
                .starts(name, identity_of(&record.key))
        })
    });
    match remembered.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err((engine::blame(&error), chain(&error))),
        Err(error) => return Err((FailureKind::Platform, chain(&error))),
    }
    let (executor, record) = (&builds.inner.executor, build.record.clone());
    let started = executor.start(record, spec, build.agents.ids());
    started.await.map_err(|error| {
        tracing::error!(error = chain(&error), build = %build.record.id, "a build could not be started");
        (engine::blame(&error), chain(&error))
    })
}

/// Follows the journal of a running build until its terminal event, or until the service stops.
pub(super) async fn follow(builds: &Builds, build: &Arc<Build>, running: Running) {
    let _serving = build.agents.serve(running.agents);
    build.update(|progress| {
        progress.folder = Some(running.folder.clone());
        true
    });
    if build.withdrawn.is_cancelled()
        && let Err(error) = builds.inner.executor.cancel(build.record.id.clone()).await
    {
        tracing::warn!(error = chain(&error), build = %build.record.id, "a build could not be cancelled");
    }
    let read = read_to_end(builds, build, &running.folder, running.ended.shared());
    tokio::select! {
        () = builds.inner.shutdown.cancelled() => {}
        result = read => if let Err(error) = result {
            tracing::error!(error = chain(&error), build = %build.record.id, "the journal of a build cannot be read");
            end(builds, build, &failed(FailureKind::Platform, chain(&error)));
        }
    }
}

async fn read_to_end(
    builds: &Builds,
    build: &Arc<Build>,
    folder: &Path,
    ended: impl Future<Output = ()> + Clone,
) -> Result<(), JournalError> {
    let mut follower = Follower::open(folder)?;
    loop {
        let record = tokio::select! {
            biased;
            record = follower.next() => record?,
            () = ended.clone() => match follower.try_next()? {
                Some(record) => Some(record),
                None => break,
            },
        };
        match record {
            Some(record) => take(builds, build, &record).await,
            None => break,
        }
    }
    if !build.has_ended() {
        end(builds, build, &lost());
    }
    // The turn is over when the worker is gone, not when it has said its last word.
    tokio::select! {
        () = ended => {}
        () = builds.inner.shutdown.cancelled() => {}
    }
    Ok(())
}

async fn take(builds: &Builds, build: &Arc<Build>, record: &JournalRecord) {
    let Body::Event(event) = &record.body else {
        return;
    };
    // Before anybody hears of the success: who asks next must find it.
    if let Event::Succeeded { image } = event {
        remember(builds, build, &image.digest).await;
    }
    end_at(builds, build, event, record.at_ms);
}

pub(super) async fn remember(builds: &Builds, build: &Arc<Build>, digest: &oci::Digest) {
    let (known, build, digest) = (builds.clone(), Arc::clone(build), digest.clone());
    let remembered = tokio::task::spawn_blocking(move || {
        let record = &build.record;
        names_of(record).try_for_each(|name| {
            let identity = identity_of(&record.key);
            known.inner.provenance.made(name, identity, &digest)
        })
    });
    // Not worth failing a build that is published: the next one of these inputs is built again, from the cache.
    match remembered.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error = chain(&error), "an image will not be reused"),
        Err(error) => tracing::warn!(error = chain(&error), "an image will not be reused"),
    }
}

/// Returns the names that say which inputs made what stands under them: a base with a digest is there already, and names that a caller
/// chose say nothing.
fn names_of(record: &Record) -> impl Iterator<Item = &String> {
    let names = match record.purpose {
        Purpose::Named => None,
        Purpose::Image | Purpose::Subassembly => Some([&record.reference, &record.base_reference]),
    };
    let names = names.into_iter().flatten();
    names.filter(|name| !name.contains('@'))
}

fn end(builds: &Builds, build: &Build, event: &Event) {
    end_at(builds, build, event, builds.now_ms());
}

/// Takes in an event, and does what is to be done when it is the last one.
fn end_at(builds: &Builds, build: &Build, event: &Event, at_ms: u64) {
    let had_ended = build.has_ended();
    build.update(|progress| progress.take(event, at_ms));
    if had_ended || !build.has_ended() {
        return;
    }
    builds.table().ended(build);
    let state = build.progress().state;
    let duration_ms = at_ms.saturating_sub(build.record.started_at_ms);
    let outcome = Reason::of(&state).map_or(Outcome::Succeeded, Outcome::Failed);
    let duration = Duration::from_millis(duration_ms);
    if build.record.purpose.is_image() {
        builds.inner.metrics.build_done(outcome, duration);
    }
    tracing::info!(build = %build.record.id, ?outcome, duration_ms, "build ended");
}

/// Returns the end of a build whose worker is dead.
pub(super) fn lost() -> Event {
    let problem = "the worker that carried out this build is gone and left no word".to_owned();
    failed(FailureKind::WorkerLost, problem)
}

fn failed(kind: FailureKind, message: String) -> Event {
    Event::Failed {
        failure: BuildFailure {
            kind,
            message,
            step: None,
            exit_code: None,
        },
    }
}
