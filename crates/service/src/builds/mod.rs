//! The table of builds: start, join, find, list, cancel, remember.
//!
//! The table holds no truth of its own. Where a build stands is the fold of its journal, read as it grows; what was asked is its
//! `record.json`. After a restart both are read again (`recover`) and the table is what it was. That holds of builds that wait for
//! their turn too: each waits in its worker, which has what it needs in its memory, and is told when it is its turn (`turns`).
//!
//! | file | what it holds |
//! |---|---|
//! | `build` | one build and its progress |
//! | `journal` | the journal of one build as everybody is told it |
//! | `drive` | the task that goes with each build: start, tell it its turn, follow to the end |
//! | [`list`] | filters and pages |
//! | [`log`] | the text of a journal, as a stream that ends when the build does |
//! | [`provenance`] | which inputs made the image under a name |
//! | [`requests`] | what was asked, to be asked once more |
//! | `recover` | after a restart |
//! | `retention` | forgetting |
//! | `room` | whether the disk has room for another build or upload |
//! | [`turns`] | who runs, who waits, who is next; pure |

pub mod build;
mod drive;
pub(crate) mod journal;
pub mod list;
pub mod log;
pub mod provenance;
mod recover;
pub mod requests;
mod retention;
pub(crate) mod room;
pub mod turns;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::id::BuildId;
use engine::spec::{BuildSpec, Record};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::build::{Build, Progress};
use self::provenance::Provenance;
use self::requests::Requests;
use self::retention::Kept;
use self::room::Room;
use self::turns::{Full, TurnLimits, Turns};
use crate::access::Tenant;
use crate::agents::Agents;
use crate::environment::Environment;
use crate::executor::Executor;
use crate::failure::{Blame, Failure};
use crate::telemetry::Metrics;

pub use self::recover::RecoverError;

/// Builds that are started at the same time.
const STARTS_MAX: usize = 8;

/// Every build that the service knows. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Builds {
    inner: Arc<Inner>,
}

/// What [`Builds`] is made of.
pub struct Parts {
    /// Carries builds out.
    pub executor: Arc<dyn Executor>,
    /// Where `builds/` is.
    pub state: PathBuf,
    /// Which inputs made which images.
    pub provenance: Provenance,
    /// What was asked.
    pub requests: Requests,
    /// How much is taken on.
    pub limits: Limits,
    /// What is free on the disk.
    pub(crate) room: Arc<Room>,
    /// Time and ids.
    pub environment: Environment,
    /// What is counted.
    pub metrics: Metrics,
    /// Cancelled when the service is about to stop.
    pub shutdown: CancellationToken,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// How much is taken on.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Builds that run and builds that wait, in all and of each tenant.
    pub turns: TurnLimits,
    /// How long an ended build is kept.
    pub retention: Duration,
    /// How much ended builds may take together.
    pub retention_bytes: Option<u64>,
}

struct Inner {
    executor: Arc<dyn Executor>,
    state: PathBuf,
    provenance: Provenance,
    requests: Requests,
    limits: Limits,
    environment: Environment,
    /// Since when this process knows builds, in Unix milliseconds.
    opened_ms: u64,
    metrics: Metrics,
    shutdown: CancellationToken,
    /// Builds that are being started: a process each, so not all at once.
    starts: Semaphore,
    room: Arc<Room>,
    /// Woken when those who wait may have other places.
    moved: Notify,
    table: Mutex<Table>,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builds").finish_non_exhaustive()
    }
}

struct Table {
    turns: Turns,
    /// Where each build that waits hears that it is its turn.
    waiting: HashMap<BuildId, oneshot::Sender<()>>,
    builds: HashMap<BuildId, Arc<Build>>,
    /// Builds that have not ended, by tenant and request key.
    by_key: HashMap<String, Arc<Build>>,
    /// All builds, by request key, and by tenant and name of the image.
    lines_by_key: HashMap<String, Line>,
    lines_by_image: HashMap<(String, String), Line>,
    lines_by_tenant: HashMap<String, Line>,
    /// Of how many builds each name is of which is written down who made what stands under it.
    names: HashMap<String, usize>,
    /// Builds that have ended, in the order in which they did.
    kept: Kept,
}

/// A build to start, unless the same one is running.
#[derive(Debug)]
pub struct Order {
    /// What is stored of it.
    pub record: Record,
    /// What the worker is told.
    pub spec: BuildSpec,
    /// SSH agents that callers will lend.
    pub agents: Agents,
}

/// How a caller came to a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joined {
    /// It was started for this caller.
    Started,
    /// It was running already.
    Joined,
}

impl Builds {
    /// Returns the builds that are known from before, once they were found again.
    pub async fn open(parts: Parts) -> Result<Self, RecoverError> {
        let builds = Self::none(parts);
        recover::recover(&builds).await?;
        retention::spawn(&builds);
        let places = drive::tell_places(builds.clone());
        builds.inner.tasks.spawn(places);
        Ok(builds)
    }

    fn none(parts: Parts) -> Self {
        Self {
            inner: Arc::new(Inner {
                starts: Semaphore::new(STARTS_MAX),
                room: parts.room,
                moved: Notify::new(),
                table: Mutex::new(Table::new(Turns::new(parts.limits.turns.clone()))),
                executor: parts.executor,
                state: parts.state,
                provenance: parts.provenance,
                requests: parts.requests,
                limits: parts.limits,
                opened_ms: (parts.environment.now_ms)(),
                environment: parts.environment,
                metrics: parts.metrics,
                shutdown: parts.shutdown,
                tasks: TaskTracker::new(),
            }),
        }
    }

    /// Returns which inputs made which images.
    pub fn provenance(&self) -> &Provenance {
        &self.inner.provenance
    }

    /// Tells whether a build is known, running or ended, whose image or base has this name.
    pub(crate) fn has_name(&self, name: &str) -> bool {
        self.table().names.contains_key(name)
    }

    /// Returns what was asked, to be asked once more.
    pub fn requests(&self) -> &Requests {
        &self.inner.requests
    }

    /// Returns the running build of this key if there is one, else starts `order`. A build that is returned is not lost any more, whatever
    /// becomes of this process.
    ///
    /// # Errors
    /// When too many builds wait already, the disk is too full, or the service is about to stop.
    pub async fn start_or_join(&self, order: Order) -> Result<(Arc<Build>, Joined), Failure> {
        let (build, joined) = if let Some(build) = self.running_under(&order.record.key) {
            (build, Joined::Joined)
        } else {
            self.inner.room.make().await?;
            self.enter(order)?
        };
        let shutdown = &self.inner.shutdown;
        let kept = shutdown.run_until_cancelled(log::folder_or_end(&build));
        if kept.await.is_none() {
            return Err(shutting_down());
        }
        Ok((build, joined))
    }

    /// Puts a build into the table and the line, unless the same one is running.
    fn enter(&self, order: Order) -> Result<(Arc<Build>, Joined), Failure> {
        let mut table = self.table();
        if let Some(build) = table.by_key.get(&order.record.key)
            && !build.has_ended()
        {
            return Ok((Arc::clone(build), Joined::Joined));
        }
        if self.inner.shutdown.is_cancelled() {
            return Err(shutting_down());
        }
        table.admit(&order.record.tenant)?;
        let build = Arc::new(Build::new(order.record, order.agents, Progress::default()));
        table.insert(&build);
        table
            .by_key
            .insert(build.record.key.clone(), Arc::clone(&build));
        let now_ms = self.now_ms();
        let turn = table.wait(&build, now_ms);
        self.dispatch(&mut table, now_ms);
        drop(table);
        if build.record.purpose.is_image() {
            self.inner.metrics.build_started();
        }
        let driven = drive::drive(self.clone(), Arc::clone(&build), order.spec, turn);
        self.inner.tasks.spawn(driven);
        Ok((build, Joined::Started))
    }

    /// Tells everybody whose turn it is now.
    fn dispatch(&self, table: &mut Table, now_ms: u64) {
        // Those who wait go on waiting, in their workers: the next server has a line of its own.
        if self.inner.shutdown.is_cancelled() {
            return;
        }
        while let Some(id) = table.turns.next(now_ms) {
            if let Some(turn) = table.waiting.remove(&id) {
                // Who does not listen any more leaves the line by itself.
                let _gone = turn.send(());
            }
        }
        let n_waiting = i64::try_from(table.turns.n_waiting()).unwrap_or(i64::MAX);
        self.inner.metrics.builds_waiting.set(n_waiting);
        self.inner.moved.notify_one();
    }

    /// Takes a build out of the line, or from its place: somebody else may be next.
    fn leave(&self, id: &BuildId) {
        let mut table = self.table();
        let now_ms = self.now_ms();
        table.turns.leave(id, now_ms);
        table.waiting.remove(id);
        self.dispatch(&mut table, now_ms);
    }

    /// Returns the build that is running under this key.
    pub fn running_under(&self, key: &str) -> Option<Arc<Build>> {
        let table = self.table();
        table
            .by_key
            .get(key)
            .filter(|build| !build.has_ended())
            .map(Arc::clone)
    }

    /// Returns the newest build of this key, ended or not.
    pub fn newest_under(&self, key: &str) -> Option<Arc<Build>> {
        let table = self.table();
        table.newest(table.lines_by_key.get(key))
    }

    /// Returns a build of this tenant.
    pub fn find(&self, tenant: &Tenant, id: &BuildId) -> Option<Arc<Build>> {
        let table = self.table();
        let build = table.builds.get(id)?;
        (build.record.tenant == tenant.as_str()).then(|| Arc::clone(build))
    }

    /// Returns the build of this id, whoever's it is: for who has shown a token for it.
    pub fn find_any(&self, id: &BuildId) -> Option<Arc<Build>> {
        self.table().builds.get(id).map(Arc::clone)
    }

    /// Returns this tenant's newest build of an image.
    pub fn newest_of(&self, tenant: &Tenant, reference: &str) -> Option<Arc<Build>> {
        let image = (tenant.as_str().to_owned(), reference.to_owned());
        let table = self.table();
        table.newest(table.lines_by_image.get(&image))
    }

    /// Returns this tenant's builds of images that have not ended, oldest first.
    pub fn running(&self, tenant: &Tenant) -> Vec<Arc<Build>> {
        let table = self.table();
        let mut running: Vec<Arc<Build>> = table
            .by_key
            .values()
            .filter(|build| {
                let is_image = build.record.purpose.is_image();
                is_image && !build.has_ended() && build.record.tenant == tenant.as_str()
            })
            .map(Arc::clone)
            .collect();
        drop(table);
        running.sort_by_key(|build| (build.record.started_at_ms, build.record.id.clone()));
        running
    }

    /// Asks for a build to be ended.
    pub async fn cancel(&self, build: &Build) -> Result<(), Failure> {
        build.withdrawn.cancel();
        if build.has_ended() || build.progress().folder.is_none() {
            return Ok(());
        }
        let cancelled = self.inner.executor.cancel(build.record.id.clone()).await;
        cancelled.map_err(|error| Failure::platform("the build cannot be cancelled", error))
    }

    /// Returns what is cancelled when the service is about to stop.
    pub fn stopping(&self) -> CancellationToken {
        self.inner.shutdown.clone()
    }

    /// Waits until nothing is done any more for builds in this process. They go on in theirs.
    pub async fn let_go(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.inner
            .table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        (self.inner.environment.now_ms)()
    }
}

/// Builds of one kind, oldest first.
type Line = BTreeSet<(u64, BuildId)>;

fn image_of(build: &Build) -> (String, String) {
    let record = &build.record;
    (record.tenant.clone(), record.reference.clone())
}

/// Takes a build out of its line, and the line away when it was the last one in it.
fn leave<K: Eq + std::hash::Hash>(lines: &mut HashMap<K, Line>, key: &K, build: &(u64, BuildId)) {
    if let Some(line) = lines.get_mut(key) {
        line.remove(build);
        if line.is_empty() {
            lines.remove(key);
        }
    }
}

fn shutting_down() -> Failure {
    Failure::new(Blame::Shutdown, "server is shutting down")
}

impl Table {
    fn new(turns: Turns) -> Self {
        Self {
            turns,
            waiting: HashMap::new(),
            builds: HashMap::new(),
            by_key: HashMap::new(),
            lines_by_key: HashMap::new(),
            lines_by_image: HashMap::new(),
            lines_by_tenant: HashMap::new(),
            names: HashMap::new(),
            kept: Kept::default(),
        }
    }

    /// Refuses a build for which there is no room in the line, in words that name the limit.
    fn admit(&self, tenant: &str) -> Result<(), Failure> {
        let text = match self.turns.admit(tenant) {
            Ok(()) => return Ok(()),
            Err(Full::Server(n)) => {
                format!("{n} builds are waiting already (server.max_queued_builds)")
            }
            Err(Full::Tenant(n)) => {
                format!("{n} builds of {tenant} are waiting already (admission.tenant_queued)")
            }
        };
        Err(Failure::new(Blame::Load, text))
    }

    /// Puts a build into the line; what is returned tells when it is its turn.
    fn wait(&mut self, build: &Build, now_ms: u64) -> oneshot::Receiver<()> {
        let record = &build.record;
        let (sender, turn) = oneshot::channel();
        self.waiting.insert(record.id.clone(), sender);
        self.turns.wait(&record.tenant, &record.id, now_ms);
        turn
    }

    fn insert(&mut self, build: &Arc<Build>) {
        self.builds
            .insert(build.record.id.clone(), Arc::clone(build));
        let place = (build.record.started_at_ms, build.record.id.clone());
        let line = self.lines_by_key.entry(build.record.key.clone());
        line.or_default().insert(place.clone());
        let line = self.lines_by_image.entry(image_of(build));
        line.or_default().insert(place.clone());
        let line = self.lines_by_tenant.entry(build.record.tenant.clone());
        line.or_default().insert(place);
        for name in drive::names_of(&build.record) {
            *self.names.entry(name.clone()).or_default() += 1;
        }
        if let Some(at_ms) = build.ended_at_ms() {
            self.kept.add((at_ms, build.record.id.clone()));
        }
    }

    /// Forgets a build.
    fn remove(&mut self, id: &BuildId) {
        if let Some(build) = self.builds.remove(id) {
            let place = (build.record.started_at_ms, id.clone());
            leave(&mut self.lines_by_key, &build.record.key, &place);
            leave(&mut self.lines_by_image, &image_of(&build), &place);
            leave(&mut self.lines_by_tenant, &build.record.tenant, &place);
            for name in drive::names_of(&build.record) {
                if let Some(n_builds) = self.names.get_mut(name) {
                    *n_builds = n_builds.saturating_sub(1);
                    if *n_builds == 0 {
                        self.names.remove(name);
                    }
                }
            }
            if let Some(at_ms) = build.ended_at_ms() {
                self.kept.remove(&(at_ms, id.clone()));
            }
        }
    }

    /// Returns the newest build of a line.
    fn newest(&self, line: Option<&Line>) -> Option<Arc<Build>> {
        let (_, id) = line?.last()?;
        self.builds.get(id).map(Arc::clone)
    }

    /// Forgets that the build is the one to join, and remembers that it has ended.
    fn ended(&mut self, build: &Build) {
        if let Some(at_ms) = build.ended_at_ms() {
            self.kept.add((at_ms, build.record.id.clone()));
        }
        let key = &build.record.key;
        if let Some(current) = self.by_key.get(key)
            && current.record.id == build.record.id
        {
            self.by_key.remove(key);
        }
    }
}
