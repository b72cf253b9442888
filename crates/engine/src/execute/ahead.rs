//! Sends layers to where the image will be pushed, while they are written and while later steps run.
//!
//! * Only layers that the image will hold for certain: those of the steps of the target and of the stages that it stands on. Only when an
//!   image is pushed over the network: the embedded registry shares the store. The first such name is sent to; others take it from there.
//! * A layer is sent once its step has succeeded. When a later one fails, what was sent is in a repository without a manifest that names it,
//!   as after a push that broke off, and sessions are put away before the build ends.
//! * Nothing depends on it. The push sends what did not arrive, and asks for everything at its end; after a failure this build sends nothing
//!   ahead any more. The log of the push says which layers broke off, and why.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dockerfile::{BaseRef, Plan, PlanStage, StageIndex};
use oci::{Descriptor, Digest, Reference};
use registry::client::{Client, GrowingBlob, Pushed};
use store::{Growth, Ingest};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::failure::chain;
use crate::spec::Output;

/// Layers that are sent at the same time: as many as small ones by a push, for else it would be sooner done. Of large ones there are seldom two.
const PARALLEL: usize = 8;
/// Layers that are sent or wait for their turn; each is an open file. Further ones are left to the push.
const WAITING_MAX: usize = 32;

/// Sends layers ahead, if there is anywhere to send them to.
#[derive(Debug, Clone)]
pub(crate) struct Ahead {
    going: Option<Arc<Going>>,
}

#[derive(Debug)]
struct Going {
    client: Client,
    to: Reference,
    cancel: CancellationToken,
    tasks: TaskTracker,
    turns: Semaphore,
    has_failed: AtomicBool,
    n_layers: AtomicU64,
    n_bytes: AtomicU64,
    /// Layers that are known, whether they have arrived or not.
    known: Mutex<BTreeSet<Digest>>,
    /// Those that the registry has said to have.
    there: Mutex<BTreeSet<Digest>>,
    /// What broke off and was not told yet.
    broken: Mutex<Vec<Broken>>,
}

/// A layer that could not be sent.
#[derive(Debug)]
struct Broken {
    /// What it is, which may be known later.
    known: watch::Receiver<Option<Descriptor>>,
    error: String,
}

/// What was sent ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sent {
    pub(crate) n_layers: u64,
    pub(crate) n_bytes: u64,
}

/// Has to be told what a layer is once it is written. Dropped before, nothing is sent of it.
#[derive(Debug)]
pub(super) struct Announced {
    announce: watch::Sender<Option<Descriptor>>,
    going: Arc<Going>,
}

impl Ahead {
    /// Sends to the first of `outputs` that is pushed over the network; `embedded` are names of our own registry.
    pub(crate) fn new(
        client: &Client,
        outputs: &[Output],
        embedded: &[String],
        cancel: &CancellationToken,
    ) -> Self {
        let to = outputs.iter().find_map(|output| match output {
            Output::Publish { reference }
                if embedded.iter().all(|host| host != reference.host()) =>
            {
                Some(reference.clone())
            }
            _ => None,
        });
        let going = to.map(|to| {
            Arc::new(Going {
                client: client.clone(),
                to,
                cancel: cancel.child_token(),
                tasks: TaskTracker::new(),
                turns: Semaphore::new(PARALLEL),
                has_failed: AtomicBool::new(false),
                n_layers: AtomicU64::new(0),
                n_bytes: AtomicU64::new(0),
                known: Mutex::default(),
                there: Mutex::default(),
                broken: Mutex::default(),
            })
        });
        Self { going }
    }

    /// Begins to send what is written to `ingest`. Must be called within the runtime.
    pub(super) fn begin(&self, ingest: &mut Ingest) -> Option<Announced> {
        let going = self.going.as_ref()?;
        if going.has_failed.load(Ordering::Relaxed) || going.tasks.len() >= WAITING_MAX {
            return None;
        }
        let growth = Growth::new();
        ingest.read_along(&growth).ok()?;
        let (announce, known) = watch::channel(None);
        let blob = GrowingBlob { growth, known };
        let going = Arc::clone(going);
        let sending = Arc::clone(&going);
        going.tasks.spawn(async move { sending.send(blob).await });
        Some(Announced { announce, going })
    }

    /// Waits until nothing is on its way to `reference`.
    pub(crate) async fn arrived(&self, reference: &Reference) {
        if let Some(going) = self.to(reference) {
            going.tasks.close();
            going.tasks.wait().await;
        }
    }

    /// Returns what was sent to `reference`.
    pub(crate) fn sent(&self, reference: &Reference) -> Sent {
        self.to(reference).map_or_else(Sent::default, |going| Sent {
            n_layers: going.n_layers.load(Ordering::Relaxed),
            n_bytes: going.n_bytes.load(Ordering::Relaxed),
        })
    }

    /// Returns, a line for each, which layers could not be sent to `reference`, of those of which it was not said before.
    pub(crate) fn broken_off(&self, reference: &Reference) -> Vec<String> {
        let going = self.to(reference);
        let broken = going.map_or_else(Vec::new, |going| std::mem::take(&mut *lock(&going.broken)));
        let line = |Broken { known, error }| {
            let layer = known.borrow();
            let digest = &layer.as_ref()?.digest;
            Some(format!(
                "layer {digest} could not be sent while steps ran, and goes with the rest, as those after it do: {error}"
            ))
        };
        broken.into_iter().filter_map(line).collect()
    }

    /// Tells whether a layer is on its way to `reference`, or has been.
    pub(crate) fn was_begun(&self, reference: &Reference, layer: &Digest) -> bool {
        self.to(reference)
            .is_some_and(|going| lock(&going.known).contains(layer))
    }

    /// Tells whether a layer was sent to `reference`, or found there, since the build began.
    pub(crate) fn has_sent(&self, reference: &Reference, layer: &Digest) -> bool {
        self.to(reference)
            .is_some_and(|going| lock(&going.there).contains(layer))
    }

    fn to(&self, reference: &Reference) -> Option<&Going> {
        let going = self.going.as_deref();
        going.filter(|going| going.to == *reference)
    }

    /// Gives up what is on its way, and waits until the registry was told so.
    pub(crate) async fn end(&self) {
        if let Some(going) = &self.going {
            going.cancel.cancel();
            going.tasks.close();
            going.tasks.wait().await;
        }
    }
}

impl Announced {
    /// Says what the layer is, all of which was written.
    pub(super) fn is(self, layer: &Descriptor) {
        lock(&self.going.known).insert(layer.digest.clone());
        self.announce.send_replace(Some(layer.clone()));
    }
}

impl Going {
    async fn send(&self, blob: GrowingBlob) {
        let turn = self.cancel.run_until_cancelled(self.turns.acquire()).await;
        let Some(Ok(_turn)) = turn else { return };
        if self.has_failed.load(Ordering::Relaxed) {
            return;
        }
        let known = blob.known.clone();
        let sent = self.client.push_growing(&self.to, blob, &self.cancel).await;
        match sent {
            Ok(Some(pushed)) => {
                let Some(layer) = known.borrow().clone() else {
                    return;
                };
                if pushed == Pushed::Uploaded {
                    self.n_layers.fetch_add(1, Ordering::Relaxed);
                    self.n_bytes.fetch_add(layer.size, Ordering::Relaxed);
                }
                lock(&self.there).insert(layer.digest);
            }
            Ok(None) => {}
            Err(error) => {
                self.has_failed.store(true, Ordering::Relaxed);
                let error = chain(&error);
                lock(&self.broken).push(Broken { known, error });
            }
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells whether every layer of `stage` will be in the image: it is the target, or the target stands on it.
pub(super) fn is_of_image(plan: &Plan, stage: &PlanStage) -> bool {
    let mut next = Some(plan.target);
    // A stage stands on an earlier one; a plan that says otherwise ends here all the same.
    for _ in 0..plan.stages.len() {
        let Some(current) = next.and_then(|index: StageIndex| plan.stage(index)) else {
            return false;
        };
        if current.declared_index == stage.declared_index {
            return true;
        }
        next = match &current.base {
            BaseRef::Stage(index) => Some(*index),
            BaseRef::Image(_) | BaseRef::Scratch => None,
        };
    }
    false
}
