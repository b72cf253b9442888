//! One stage: its base, then its steps.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dockerfile::{BaseRef, Op, PlanStage, Step};

use super::cache::{CachedLayer, Hit, Operation, OperationKeys};
use super::layers::{Layer, StageResult, content, shared};
use super::shown::Stored;
use super::{Execution, StageFuture, ahead, copy, export, mounts, run};
use crate::assemble::LayerRef;
use crate::event::{Failure, FailureKind};
use crate::failure::{chain, failure};
use crate::resolve::layout;
use crate::rootfs::root::Root;
use crate::share::table::Origin;
use crate::spec::CacheMode;

/// Carries out the stage at `index`; `earlier` are those before it.
pub(super) async fn carry_out(
    execution: &Arc<Execution>,
    index: usize,
    earlier: &[StageFuture],
) -> Result<StageResult, Failure> {
    let stage = execution.plan.stages.get(index);
    let stage = stage.ok_or_else(|| {
        failure(
            FailureKind::Platform,
            "the plan names a stage that it does not have",
        )
    })?;
    let mut done = base(execution, stage, earlier).await?;
    for step in &stage.steps {
        if execution.cancel.is_cancelled() {
            return Err(failure(FailureKind::Platform, "another stage failed"));
        }
        let layer = carry_out_step(execution, stage, step, &done, earlier).await?;
        let mut layers = (*done.layers).clone();
        layers.push(layer.0);
        done = StageResult {
            layers: Arc::new(layers),
            created: done.created.max(Some(layer.1)),
        };
    }
    Ok(done)
}

async fn base(
    execution: &Execution,
    stage: &PlanStage,
    earlier: &[StageFuture],
) -> Result<StageResult, Failure> {
    let layers = match &stage.base {
        BaseRef::Scratch => Vec::new(),
        BaseRef::Image(key) => {
            let base = execution.bases.get(key);
            let base = base.ok_or_else(|| {
                failure(
                    FailureKind::Platform,
                    "the plan names a base that was not resolved",
                )
            })?;
            execution
                .recorder
                .cached(&format!("{} FROM {}", stage.label(1), base.pinned));
            base.layers
                .iter()
                .map(|layer| Layer::known(Some(layer.clone()), None))
                .collect()
        }
        BaseRef::Stage(index) => return other_stage(earlier, index.0).await,
    };
    Ok(StageResult {
        layers: Arc::new(layers),
        created: None,
    })
}

/// Waits for another stage.
pub(super) async fn other_stage(
    earlier: &[StageFuture],
    index: usize,
) -> Result<StageResult, Failure> {
    match earlier.get(index) {
        Some(stage) => stage.clone().await,
        None => Err(failure(
            FailureKind::Platform,
            "the plan names a stage that comes later",
        )),
    }
}

/// A step that is about to be looked up or run.
pub(super) struct Prepared<'a> {
    pub(super) step: &'a Step,
    pub(super) parents: &'a [Layer],
    pub(super) operation: Operation,
    /// Stage and number, under which explanations are kept.
    pub(super) position: String,
    /// What people see.
    pub(super) name: String,
    /// Whether an earlier result counts.
    pub(super) cache: CacheMode,
}

async fn carry_out_step(
    execution: &Arc<Execution>,
    stage: &PlanStage,
    step: &Step,
    done: &StageResult,
    earlier: &[StageFuture],
) -> Result<(Layer, i64), Failure> {
    let name = format!("{} {}", stage.label(step.number), step.text);
    let source = match &step.op {
        Op::Copy(op) => Some(
            copy::source(execution, op, earlier)
                .await
                .map_err(|f| located(execution, step, f))?,
        ),
        Op::Run(_) | Op::Workdir { .. } => None,
    };
    let inputs = match &step.op {
        Op::Run(op) => Some(
            mounts::inputs(execution, op, earlier)
                .await
                .map_err(|f| located(execution, step, f))?,
        ),
        Op::Copy(_) | Op::Workdir { .. } => None,
    };
    let operation = match (&step.op, &source) {
        (Op::Copy(op), Some(source)) => copy::operation(execution, op, source)
            .await
            .map_err(|f| located(execution, step, f))?,
        (Op::Run(op), _) => run::operation(execution, step, op, inputs.as_ref()),
        _ => run::workdir_operation(step),
    };
    // What is linked stands on nothing: neither its files nor its key know of the layers below.
    let parents: &[Layer] = match &step.op {
        Op::Copy(op) if op.is_independent() => &[],
        _ => &done.layers,
    };
    let prepared = Prepared {
        step,
        parents,
        operation,
        position: format!("{} {}", stage.declared_index, step.number),
        name,
        cache: cache_mode(execution, stage),
    };
    let key = execution.cache.operation_keys(&prepared.operation);
    let reason = match look_up(execution, &prepared, &key).await? {
        Ok(hit) => return Ok(cached(execution, &prepared, hit)),
        Err(reason) => reason,
    };
    execution.counters.run.fetch_add(1, Ordering::Relaxed);
    let directory = match (&step.op, source) {
        (Op::Copy(op), Some(source)) => copy::run(execution, &prepared, op, source, reason).await?,
        (Op::Run(op), _) => run::run(execution, &prepared, (op, inputs.as_ref()), reason).await?,
        (Op::Workdir { path }, _) => run::workdir(execution, &prepared, path, reason).await?,
        (Op::Copy(_), None) => return Err(failure(FailureKind::Platform, "a COPY has no source")),
    };
    let created = created(execution);
    let fate = if ahead::is_of_image(&execution.plan, stage) {
        export::Fate::Pushed
    } else {
        export::Fate::Unknown
    };
    let written = shared(export::write(
        Arc::clone(execution),
        (directory.clone(), fate),
        parents.to_vec(),
        (prepared.position.clone(), key),
        created,
    ));
    // Somebody has to poll it from the start: writing goes on while the next step runs.
    tokio::spawn(written.clone());
    let layer = Layer::fresh(directory.path, written, step.history_index);
    execution.note_fresh(&layer);
    Ok((layer, created))
}

fn cache_mode(execution: &Execution, stage: &PlanStage) -> CacheMode {
    let filter = &execution.options.no_cache_stages;
    let is_named = |name: &String| filter.iter().any(|other| other.eq_ignore_ascii_case(name));
    if stage.name.as_ref().is_some_and(is_named) {
        CacheMode::Ignore
    } else {
        execution.options.cache
    }
}

fn created(execution: &Execution) -> i64 {
    let now = i64::try_from(execution.recorder.now_ms() / 1000).unwrap_or(i64::MAX);
    execution.epoch.unwrap_or(now)
}

/// Returns the kept result, or why there is none.
async fn look_up(
    execution: &Execution,
    prepared: &Prepared<'_>,
    key: &OperationKeys,
) -> Result<Result<Hit, String>, Failure> {
    if prepared.cache == CacheMode::Ignore {
        return Ok(Err("the cache is not to be used".to_owned()));
    }
    let cache = &execution.cache;
    if !cache.may_hit(key) {
        let reason = cache.explain(&prepared.position, &prepared.operation, None);
        cache.remember(&prepared.position, &prepared.operation, None);
        return Ok(Err(reason));
    }
    let parent = content(prepared.parents).await?;
    let hit = first_there(execution, cache.look_up(key, &parent)).await;
    if let Some(hit) = &hit {
        cache.learn(&prepared.position, key, &parent, hit);
        if hit.origin.is_some() {
            cache.keep(key, &parent, &hit.step);
        }
    }
    let reason = match &hit {
        Some(_) => String::new(),
        None => cache.explain(&prepared.position, &prepared.operation, Some(&parent)),
    };
    cache.remember(&prepared.position, &prepared.operation, Some(&parent));
    Ok(hit.ok_or(reason))
}

/// Returns the first result whose layer is where it should be.
async fn first_there(execution: &Execution, hits: Vec<Hit>) -> Option<Hit> {
    for hit in hits {
        let is_there = match (&hit.step.layer, &hit.origin) {
            // Looked for already.
            (None, _) | (_, None) => true,
            (Some(layer), Some(origin)) => is_there(execution, layer, origin).await,
        };
        if is_there {
            return Some(hit);
        }
    }
    None
}

/// Tells whether the layer of a shared cache can be had. One in a folder is brought from there: nothing later knows how.
async fn is_there(execution: &Execution, layer: &CachedLayer, origin: &Origin) -> bool {
    let depot = &execution.depot;
    let (store, stored) = (&depot.store, depot.shown.stored());
    let is_size = |size| size == layer.size_bytes;
    let known = store.size_of(&layer.digest);
    if known.is_ok_and(|size| size.is_some_and(is_size)) {
        let is_shown = match origin {
            Origin::Registry(reference) => depot
                .shown
                .show(reference, &descriptor(layer))
                .await
                .is_ok(),
            Origin::Folder(_) => stored == Stored::Enough,
        };
        if is_shown {
            return true;
        }
    }
    match origin {
        Origin::Registry(reference) => {
            let found = execution
                .depot
                .pull
                .has_blob(reference, &layer.digest)
                .await;
            found.is_ok_and(|size| size.is_some_and(is_size))
        }
        Origin::Folder(path) => {
            let (store, path) = (store.clone(), path.clone());
            let layer = descriptor(layer);
            let imported = tokio::task::spawn_blocking(move || {
                let root = Root::open(&path).map_err(|e| chain(&e))?;
                layout::import((&store, stored), &root, &layer)
            });
            matches!(imported.await, Ok(Ok(())))
        }
    }
}

fn descriptor(layer: &CachedLayer) -> oci::Descriptor {
    oci::Descriptor {
        media_type: layer.media_type.clone(),
        digest: layer.digest.clone(),
        size: layer.size_bytes,
        platform: None,
        annotations: std::collections::BTreeMap::new(),
    }
}

fn cached(execution: &Execution, prepared: &Prepared<'_>, hit: Hit) -> (Layer, i64) {
    execution.counters.cached.fetch_add(1, Ordering::Relaxed);
    execution.recorder.cached(&prepared.name);
    let origin = match hit.origin {
        Some(Origin::Registry(reference)) => Some(reference),
        Some(Origin::Folder(_)) | None => None,
    };
    let layer = hit.step.layer.map(|layer| LayerRef {
        descriptor: descriptor(&layer),
        diff_id: layer.diff_id,
        origin,
    });
    let created = execution.epoch.unwrap_or(hit.step.created);
    (
        Layer::known(layer, Some(prepared.step.history_index)),
        created,
    )
}

/// Adds the place in the Dockerfile to a failure that the Dockerfile, or something that it names, caused.
pub(super) fn located(execution: &Execution, step: &Step, failure: Failure) -> Failure {
    let is_named = matches!(failure.kind, FailureKind::Dockerfile | FailureKind::Source);
    if !is_named || failure.exit_code.is_some() {
        return failure;
    }
    let message = execution.dockerfile.excerpt(&step.span, &failure.message);
    Failure { message, ..failure }
}
