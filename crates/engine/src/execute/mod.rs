//! Carries out a plan: stages side by side, steps of a stage one after another, results from the cache where there are any.
//!
//! A stage waits for another only where it needs it: for its base, or for the files that a COPY or a mount takes from it. Layers are written
//! behind the following step's back ([`layers`]), and a step whose operation was never seen does not even wait to know what
//! it is built on ([`cache`]).

pub(crate) mod ahead;
mod allowed;
pub(crate) mod cache;
mod command;
mod commit;
mod copy;
pub(crate) mod depot;
mod export;
pub(crate) mod layers;
mod mounts;
mod place;
mod prospect;
mod remote;
mod run;
pub(crate) mod shown;
mod stage;
mod waiting;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dockerfile::{BaseKey, CopyFrom, Plan};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, try_join_all};
use source::git::FetchOptions;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::ahead::Ahead;
use self::cache::Cache;
use self::depot::Depot;
use self::layers::{Layer, StageResult};
use crate::event::{Failure, FailureKind};
use crate::failure::{failure, platform};
use crate::recorder::Recorder;
use crate::resolve::bases::BaseImage;
use crate::resolve::context::BuildContext;
use crate::sandbox::{Sandbox, SecretBytes};
use crate::spec::{BuildOptions, Limits};

/// Everything that the steps of one build share.
pub(crate) struct Execution {
    pub(crate) plan: Plan,
    pub(crate) bases: BTreeMap<BaseKey, BaseImage>,
    pub(crate) context: BuildContext,
    /// The files of named contexts.
    pub(crate) contexts: BTreeMap<String, BuildContext>,
    pub(crate) options: BuildOptions,
    pub(crate) limits: Limits,
    /// How ADD fetches.
    pub(crate) fetch: FetchOptions,
    /// Secrets that steps may ask for.
    pub(crate) secrets: BTreeMap<String, SecretBytes>,
    /// Sockets of SSH agents that steps may ask for.
    pub(crate) ssh: BTreeMap<String, PathBuf>,
    /// Whose cache mounts are used: tenant, and project unless they are the tenant's.
    pub(crate) mounts_of: (String, Option<String>),
    /// Copies of what mounts take from contexts: a directory and the path in it, by context and source.
    pub(crate) context_copies: tokio::sync::Mutex<BTreeMap<String, (PathBuf, String)>>,
    pub(crate) cache: Cache,
    pub(crate) depot: Depot,
    pub(crate) ahead: Ahead,
    pub(crate) recorder: Recorder,
    pub(crate) sandbox: Arc<dyn Sandbox>,
    /// Scratch of this build.
    pub(crate) work: PathBuf,
    pub(crate) cancel: CancellationToken,
    /// Unix seconds that everything is dated with, when it is known.
    pub(crate) epoch: Option<i64>,
    pub(crate) slots: Semaphore,
    pub(crate) counters: Counters,
    /// Layers of steps that ran in this build.
    pub(crate) fresh: Mutex<Vec<Layer>>,
    /// The Dockerfile, to show the line of a step that fails.
    pub(crate) dockerfile: Arc<crate::resolve::DockerfileText>,
}

/// How many steps ran, and how many did not have to.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) run: AtomicU32,
    pub(crate) cached: AtomicU32,
    scratch: AtomicU32,
}

type StageFuture = Shared<BoxFuture<'static, Result<StageResult, Failure>>>;

impl Execution {
    fn note_fresh(&self, layer: &Layer) {
        self.fresh
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(layer.clone());
    }

    /// Returns the layers of the steps that ran, once.
    pub(crate) fn take_fresh(&self) -> Vec<Layer> {
        std::mem::take(&mut *self.fresh.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the files that `from` means; `None` when they are those of layers.
    fn files(&self, from: &CopyFrom) -> Result<Option<&BuildContext>, Failure> {
        match from {
            CopyFrom::Context => Ok(Some(&self.context)),
            CopyFrom::Named(name) => match self.contexts.get(name) {
                Some(context) => Ok(Some(context)),
                None => Err(failure(
                    FailureKind::Platform,
                    "the plan names a context that was not loaded",
                )),
            },
            CopyFrom::Stage(_) | CopyFrom::Image(_) => Ok(None),
        }
    }

    /// Returns a scratch directory that nobody else uses.
    fn scratch(&self) -> Result<PathBuf, Failure> {
        let n = self.counters.scratch.fetch_add(1, Ordering::Relaxed);
        let path = self.work.join(format!("s{n}"));
        std::fs::create_dir(&path).map_err(|e| platform("create a scratch directory", &e))?;
        Ok(path)
    }
}

/// Carries out the plan; returns what its target is made of.
pub(crate) async fn execute(execution: &Arc<Execution>) -> Result<StageResult, Failure> {
    allowed::check(execution)?;
    let mut tasks = JoinSet::new();
    let mut stages: Vec<StageFuture> = Vec::new();
    for index in 0..execution.plan.stages.len() {
        let (execution, earlier) = (Arc::clone(execution), stages.clone());
        let stage: StageFuture = async move { stage::carry_out(&execution, index, &earlier).await }
            .boxed()
            .shared();
        // Polled by a task of its own, so that stages go on side by side whoever waits for them.
        tasks.spawn(stage.clone());
        stages.push(stage);
    }
    let target = stages.get(execution.plan.target.0).cloned();
    let target = target.ok_or_else(|| failure(FailureKind::Platform, "the plan has no target"))?;
    let finished = finish(&stages, target).await;
    if finished.is_err() {
        execution.cancel.cancel();
    }
    // Steps end before their directories are removed.
    while tasks.join_next().await.is_some() {}
    if finished.is_err() {
        // So does the writing of their layers, which reads the same directories; how it ends matters no more.
        for layer in execution.take_fresh() {
            let _cancelled = layer.written().await;
        }
    }
    execution.sandbox.rest();
    let settled = execution.depot.settle().await;
    finished.and_then(|target| settled.map(|()| target))
}

/// Waits for every stage and every layer: the cache learns of all of them.
async fn finish(stages: &[StageFuture], target: StageFuture) -> Result<StageResult, Failure> {
    let results = try_join_all(stages.iter().cloned()).await?;
    try_join_all(
        results
            .iter()
            .map(|stage| layers::all_written(&stage.layers)),
    )
    .await?;
    target.await
}
