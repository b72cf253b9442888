//! The task that goes with each build: start it, tell it when it is its turn, follow its journal to the end.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::event::{Event, Failure as BuildFailure, FailureKind};
use engine::follow::Follower;
use engine::id::BuildId;
use engine::journal::JournalError;
use engine::spec::{BuildSpec, Purpose, Record};
use engine::state;
use engine::turn::Turn;
use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use super::Builds;
use super::build::{Build, Progress};
use super::list::Reason;
use crate::executor::Running;
use crate::failure::chain;
use crate::names::identity_of;
use crate::telemetry::Outcome;

/// Pause between two rounds of telling builds their places.
const PLACES_PAUSE: Duration = Duration::from_millis(500);
/// Pause before a build that could not be told that it is its turn is told again.
const TURN_PAUSE: Duration = Duration::from_secs(1);

/// Hears when it is a build's turn.
pub(super) type TurnComes = oneshot::Receiver<()>;

/// Carries a build through, and ends it also when that goes wrong in a way that nobody has thought of.
pub(super) async fn drive(builds: Builds, build: Arc<Build>, spec: BuildSpec, turn: TurnComes) {
    let _place = Place::of(&builds, &build);
    let driven = AssertUnwindSafe(carry_through(&builds, &build, spec, turn));
    if driven.catch_unwind().await.is_err() {
        let problem = "kiln made a mistake; its log says more".to_owned();
        end(&builds, &build, &failed(FailureKind::Platform, problem));
    }
}

/// Goes on with a build that another process has started, and that waits or runs.
pub(super) async fn go_on(
    builds: Builds,
    build: Arc<Build>,
    running: Running,
    turn: Option<TurnComes>,
) {
    let _place = Place::of(&builds, &build);
    match turn {
        Some(turn) => follow_in_turn(&builds, &build, running, turn).await,
        None => follow(&builds, &build, running).await,
    }
}

/// A build's place in the line, or among those that run: until this is dropped.
struct Place {
    builds: Builds,
    id: BuildId,
}

impl Place {
    fn of(builds: &Builds, build: &Build) -> Self {
        Self {
            builds: builds.clone(),
            id: build.record.id.clone(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.builds.leave(&self.id);
    }
}

/// Carries a build through, from its order to its end or until the service stops.
async fn carry_through(builds: &Builds, build: &Arc<Build>, spec: BuildSpec, mut turn: TurnComes) {
    let inner = &builds.inner;
    let may_start = tokio::select! {
        biased;
        // Nobody was told of it yet: its callers hear that the server is shutting down, and ask another one.
        () = inner.shutdown.cancelled() => return,
        permit = inner.starts.acquire() => permit,
    };
    let now = match turn.try_recv() {
        Ok(()) => Turn::Now,
        Err(_) => Turn::After(builds.n_ahead(&build.record.id)),
    };
    let started = start(builds, build, spec, now).await;
    drop(may_start);
    match (started, now) {
        (Ok(running), Turn::Now) => follow(builds, build, running).await,
        (Ok(running), Turn::After(_)) => follow_in_turn(builds, build, running, turn).await,
        (Err((kind, problem)), _) => {
            let mut event = failed(kind, problem);
            // What was begun of it goes like the folders of others, and says to whoever starts after us what is told now.
            let folder = inner.state.join("builds").join(build.record.id.as_str());
            if matches!(tokio::fs::try_exists(&folder).await, Ok(true)) {
                event = written_end(&folder).await.unwrap_or(event);
                build.update(|progress| {
                    progress.folder = Some(folder);
                    true
                });
            }
            end(builds, build, &event);
        }
    }
}

/// Returns the end that is in the journal of a build that was not started.
async fn written_end(folder: &Path) -> Option<Event> {
    let folder = folder.to_owned();
    let read = tokio::task::spawn_blocking(move || state::of(&folder)).await;
    read.ok()?.ok()?.0.end()
}

/// Follows a build that waits, and tells it when it is its turn.
async fn follow_in_turn(builds: &Builds, build: &Arc<Build>, running: Running, turn: TurnComes) {
    let following = follow(builds, build, running);
    tokio::pin!(following);
    tokio::select! {
        biased;
        () = &mut following => return,
        comes = turn => if comes.is_err() {
            // The table is gone, and so are we soon.
            return following.await;
        },
    }
    loop {
        let told = builds
            .inner
            .executor
            .turn(build.record.id.clone(), Turn::Now);
        match told.await {
            Ok(()) => break,
            Err(error) => {
                tracing::error!(error = chain(&error), build = %build.record.id, "a build does not hear that it is its turn");
            }
        }
        tokio::select! {
            () = &mut following => return,
            () = tokio::time::sleep(TURN_PAUSE) => {}
        }
    }
    following.await;
}

/// Tells builds that wait how many come before them, whenever that may have changed, until the service stops.
pub(super) async fn tell_places(builds: Builds) {
    let mut told: HashMap<BuildId, u32> = HashMap::new();
    let inner = &builds.inner;
    loop {
        let pause = async {
            inner.moved.notified().await;
            tokio::time::sleep(PLACES_PAUSE).await;
        };
        if inner.shutdown.run_until_cancelled(pause).await.is_none() {
            return;
        }
        let line = builds.places();
        told.retain(|id, _| line.iter().any(|(waits, _)| waits == id));
        for (id, ahead) in line {
            if !is_worth_telling(told.get(&id).copied(), ahead) {
                continue;
            }
            match inner.executor.turn(id.clone(), Turn::After(ahead)).await {
                Ok(()) => drop(told.insert(id, ahead)),
                Err(error) => {
                    tracing::warn!(error = chain(&error), build = %id, "a build does not hear its place");
                }
            }
        }
    }
}

/// Far back in a long line, every step forward is not news: each of them is a record in a journal.
fn is_worth_telling(told: Option<u32>, ahead: u32) -> bool {
    const NEAR: u32 = 10;
    match told {
        None => true,
        Some(told) if told == ahead => false,
        Some(told) => ahead < NEAR || told.abs_diff(ahead) >= told / 10,
    }
}

impl Builds {
    /// Returns how many come before a build that waits.
    fn n_ahead(&self, id: &BuildId) -> u32 {
        let table = self.table();
        let line = table.turns.line(self.now_ms());
        let at = line.iter().position(|waits| waits == id);
        at.and_then(|at| u32::try_from(at).ok()).unwrap_or_default()
    }

    /// Returns the builds that wait in their workers, each with how many come before it.
    fn places(&self) -> Vec<(BuildId, u32)> {
        let table = self.table();
        let line = table.turns.line(self.now_ms());
        let started = (0..).zip(line).filter(|(_, id)| {
            let build = table.builds.get(id);
            build.is_some_and(|build| build.progress().folder.is_some())
        });
        started.map(|(ahead, id)| (id, ahead)).collect()
    }
}

async fn start(
    builds: &Builds,
    build: &Arc<Build>,
    spec: BuildSpec,
    turn: Turn,
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
    let started = executor.start(record, spec, build.agents.ids(), turn);
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
    if running.waits {
        builds.inner.moved.notify_one();
    }
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
    let mut follower = Follower::skim(folder)?;
    let caught_up = catch_up(build, &mut follower, builds.inner.opened_ms).await?;
    let metrics = &builds.inner.metrics;
    metrics.build_begun_again(caught_up.n_begun_again);
    if let Some(end) = caught_up.end {
        take(builds, build, end, &follower).await;
    }
    loop {
        let next = tokio::select! {
            biased;
            next = follower.next_event() => next?,
            () = ended.clone() => follower.try_next_event()?,
        };
        let Some(next) = next else { break };
        take(builds, build, next, &follower).await;
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

/// What was in a journal already.
#[derive(Default)]
struct CaughtUp {
    /// The build's end and when it came, which is yet to be taken in.
    end: Option<(u64, Event)>,
    /// How often it was begun again since this process is there: an earlier one has counted what was before.
    n_begun_again: u64,
}

/// Takes in what is in the journal already: nobody sees a build that was found after a restart go through all of it once more.
async fn catch_up(
    build: &Build,
    follower: &mut Follower,
    since_ms: u64,
) -> Result<CaughtUp, JournalError> {
    let (mut known, mut caught_up) = (Progress::default(), CaughtUp::default());
    while let Some((at_ms, event)) = follower.try_next_event()? {
        // A journal may be long, and others wait for this thread.
        tokio::task::consume_budget().await;
        if event.is_terminal() {
            caught_up.end = Some((at_ms, event));
            break;
        }
        let is_again = matches!(event, Event::BegunAgain { .. }) && at_ms >= since_ms;
        caught_up.n_begun_again += u64::from(is_again);
        known.take(&event, at_ms);
    }
    build.update(|progress| {
        let is_news = !progress.state.is_terminal() && progress.state != known.state;
        if is_news {
            progress.state = known.state;
        }
        is_news
    });
    Ok(caught_up)
}

async fn take(
    builds: &Builds,
    build: &Arc<Build>,
    (at_ms, mut event): (u64, Event),
    follower: &Follower,
) {
    if matches!(event, Event::BegunAgain { .. }) {
        builds.inner.metrics.build_begun_again(1);
    }
    // Before anybody hears of the end: the worker makes it durable itself, but it may be killed or fail on the way.
    if event.is_terminal()
        && let Err(error) = follower.sync().await
    {
        tracing::error!(error = chain(&error), build = %build.record.id, "the end of a build is not durable");
        event = not_durable(event, &error);
    }
    // Before anybody hears of the success: who asks next must find it.
    if let Event::Succeeded { image } = &event {
        remember(builds, build, &image.digest).await;
    }
    end_at(builds, build, &event, at_ms);
}

/// Returns what is told of an end that may be gone when the machine goes down: nobody is promised a success that may be another end then.
pub(super) fn not_durable(end: Event, error: &JournalError) -> Event {
    match end {
        Event::Succeeded { .. } => {
            let problem = format!(
                "the build went well, but that is not certain to be remembered: {}",
                chain(error)
            );
            failed(engine::blame(error), problem)
        }
        end => end,
    }
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
pub(super) fn names_of(record: &Record) -> impl Iterator<Item = &String> {
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

#[cfg(test)]
mod tests {
    use engine::event::Phase;
    use engine::journal::{Body, Record as JournalRecord, Writer};

    use super::*;
    use crate::agents::Agents;

    fn record() -> Record {
        let text = r#"{"id":"aaaaaaaaaaaaaaaaaaaaaaaaaa","tenant":"default","reference":"r","base_reference":"b","started_at_ms":1}"#;
        serde_json::from_str(text).unwrap()
    }

    #[tokio::test]
    async fn a_build_that_is_found_again_does_not_go_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::create(folder.path()).unwrap();
        let mut append = |event| {
            let body = Body::Event(event);
            writer.append(&JournalRecord { at_ms: 1, body }).unwrap();
        };
        let phase = |phase| Event::Phase { phase };
        append(phase(Phase::Resolving));
        append(phase(Phase::Running));
        append(Event::BegunAgain {
            attempt: 2,
            reason: "it was lost".to_owned(),
        });
        append(phase(Phase::Running));
        let (state, ended_at_ms) = state::of(folder.path()).unwrap();
        let found = Progress {
            state,
            ended_at_ms,
            ..Progress::default()
        };
        let build = Build::new(record(), Agents::default(), found);
        let mut watch = build.watch();
        watch.mark_unchanged();
        let mut follower = Follower::skim(folder.path()).unwrap();
        let caught_up = catch_up(&build, &mut follower, 2).await.unwrap();
        assert_eq!((caught_up.end, caught_up.n_begun_again), (None, 0));
        assert!(!watch.has_changed().unwrap());

        // What was written since is news, and so is the end.
        append(phase(Phase::Pushing));
        append(Event::Cancelled);
        let mut follower = Follower::skim(folder.path()).unwrap();
        let caught_up = catch_up(&build, &mut follower, 1).await.unwrap();
        assert_eq!(caught_up.end, Some((1, Event::Cancelled)));
        assert_eq!(caught_up.n_begun_again, 1);
        assert!(watch.has_changed().unwrap());
        assert!(build.stands(|state| *state
            == engine::state::BuildState::Active {
                phase: Phase::Pushing
            }));
    }
}
