//! Brings layers into the store and unpacks them, each once, whoever asks how often.
//!
//! Nothing is pulled or unpacked until something needs it. A layer that is not here is unpacked while it is pulled, all layers of an
//! image side by side, each into its own directory: the pull writes the blob, the unpacking reads it as it grows ([`store::Growth`]), and
//! a step starts when the directories that it stands on are there. That the blobs become durable is waited for at the end of the build
//! ([`Depot::settle`]) and by whoever publishes them.
//!
//! * What was unpacked has the digest that the image's configuration says, and was read to an end that the registry's bytes were verified at.
//! * When reading along fails (the blob came from another process, or had to be pulled again), the layer is unpacked from the store.

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, try_join_all};
use oci::{Digest, Reference};
use registry::client::Client;
use store::{Growth, Store};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::commit::Committer;
use super::layers::Layer;
use super::shown::Shown;
use crate::assemble::LayerRef;
use crate::event::{Failure, FailureKind};
use crate::failure::{failure, platform, registry as registry_failure};
use crate::recorder::Recorder;
use crate::rootfs::unpack::{self, UnpackLimits, UnpackReport};

/// A directory that is being made, for everybody who wants it.
type Unpacking = Shared<BoxFuture<'static, Result<PathBuf, Failure>>>;

/// Where layers are brought from, and to.
#[derive(Debug, Clone)]
pub(crate) struct Depot {
    pub(crate) store: Store,
    pub(crate) pull: Client,
    pub(crate) recorder: Recorder,
    pub(crate) layer_bytes: u64,
    pub(crate) cancel: CancellationToken,
    pub(crate) work: Arc<Work>,
    pub(crate) shown: Shown,
}

/// What goes on in a depot.
#[derive(Default)]
pub(crate) struct Work {
    unpacking: Mutex<HashMap<Digest, Unpacking>>,
    /// Pulls whose bytes have been read along already.
    pulling: Mutex<Vec<JoinHandle<Result<(), Failure>>>>,
    /// Layers of steps that become durable.
    pub(crate) committer: Arc<Committer>,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work").finish_non_exhaustive()
    }
}

impl Depot {
    /// Returns the directories of `layers`, bottom first; layers without content have none.
    pub(crate) async fn directories(&self, layers: &[Layer]) -> Result<Vec<PathBuf>, Failure> {
        let directories = try_join_all(layers.iter().map(|layer| self.directory(layer))).await?;
        Ok(directories.into_iter().flatten().collect())
    }

    async fn directory(&self, layer: &Layer) -> Result<Option<PathBuf>, Failure> {
        if let Some((path, _)) = layer.fresh_directory() {
            return Ok(Some(path));
        }
        match layer.written().await? {
            Some(layer) => self.unpacked(&layer).await.map(Some),
            None => Ok(None),
        }
    }

    /// Waits until everything that was pulled or made is in the store. Called when no step is run any more.
    pub(crate) async fn settle(&self) -> Result<(), Failure> {
        let pulls = std::mem::take(&mut *lock(&self.work.pulling));
        let mut settled = self.work.committer.settle().await;
        // All of them, also after one has failed.
        for pull in pulls {
            settled = settled.and(joined(pull).await);
        }
        settled
    }

    /// Sees to it that the bytes of `layer` are in the store.
    pub(crate) async fn bring(&self, layer: &LayerRef) -> Result<(), Failure> {
        self.show(layer).await?;
        if self.has(layer) {
            return Ok(());
        }
        self.pull(layer, &Growth::new()).await
    }

    /// Sees to it that this build may have `layer`, wherever its bytes are.
    async fn show(&self, layer: &LayerRef) -> Result<(), Failure> {
        match &layer.origin {
            Some(origin) => self.shown.show(origin, &layer.descriptor.digest).await,
            None => Ok(()),
        }
    }

    fn has(&self, layer: &LayerRef) -> bool {
        matches!(self.store.size_of(&layer.descriptor.digest), Ok(Some(_)))
    }

    /// Pulls `layer`; however it ends, nobody waits for more of `growth` then.
    async fn pull(&self, layer: &LayerRef, growth: &Arc<Growth>) -> Result<(), Failure> {
        let digest = &layer.descriptor.digest;
        let Some(origin) = &layer.origin else {
            growth.give_up();
            return Err(failure(
                FailureKind::Platform,
                format!("layer {digest} is not in the store any more"),
            ));
        };
        let step = self.recorder.begin(
            &format!("[internal] pull {} {digest}", name_of(origin)),
            None,
        );
        let pulled = self
            .pull
            .blob_to_store_growing(origin, &layer.descriptor, &self.store, &|_| (), growth)
            .await;
        match pulled {
            Ok(()) => {
                step.finish();
                Ok(())
            }
            Err(error) => {
                let failure = registry_failure(
                    &format!("pull layer {digest} of {}", name_of(origin)),
                    &error,
                );
                step.fail(&failure.message);
                Err(failure)
            }
        }
    }

    async fn unpacked(&self, layer: &LayerRef) -> Result<PathBuf, Failure> {
        let unpacking = {
            let mut all = lock(&self.work.unpacking);
            let begun = all.entry(layer.diff_id.clone()).or_insert_with(|| {
                // It goes on without whoever asked first, and must not keep itself alive.
                let depot = Self {
                    work: Arc::default(),
                    ..self.clone()
                };
                let (layer, work) = (layer.clone(), Arc::downgrade(&self.work));
                let unpack = async move {
                    let (path, pull) = depot.make_directory(&layer).await?;
                    if let (Some(pull), Some(work)) = (pull, work.upgrade()) {
                        lock(&work.pulling).push(pull);
                    }
                    Ok(path)
                };
                unpack.boxed().shared()
            });
            begun.clone()
        };
        unpacking.await
    }

    /// Returns the directory of `layer`, and the pull that it may have been unpacked from while that goes on.
    async fn make_directory(
        &self,
        layer: &LayerRef,
    ) -> Result<(PathBuf, Option<JoinHandle<Result<(), Failure>>>), Failure> {
        self.show(layer).await?;
        let path = self.store.snapshot_path(&layer.diff_id);
        if self.store.has_snapshot(&layer.diff_id) {
            return Ok((path, None));
        }
        if self.has(layer) {
            self.unpack_told(layer, Bytes::Store).await?;
            return Ok((path, None));
        }
        let growth = Growth::new();
        let pull = self.start_pull(layer, &growth);
        let unpacked = self.unpack_told(layer, Bytes::Pull(Arc::clone(&growth)));
        let Err(unpacking_failed) = unpacked.await else {
            return Ok((path, Some(pull)));
        };
        // A pull that failed is the reason; bytes that turned out to be wrong say nothing of the layer.
        joined(pull).await?;
        if !growth.is_given_up() {
            return Err(unpacking_failed);
        }
        self.unpack_told(layer, Bytes::Store).await?;
        Ok((path, None))
    }

    /// Starts to pull, until the build is cancelled.
    fn start_pull(
        &self,
        layer: &LayerRef,
        growth: &Arc<Growth>,
    ) -> JoinHandle<Result<(), Failure>> {
        let (depot, layer, growth) = (self.clone(), layer.clone(), Arc::clone(growth));
        tokio::spawn(async move {
            tokio::select! {
                pulled = depot.pull(&layer, &growth) => pulled,
                () = depot.cancel.cancelled() => {
                    growth.give_up();
                    Err(failure(FailureKind::Platform, "pulling a layer was cancelled"))
                }
            }
        })
    }

    /// Unpacks, and says so in the log.
    async fn unpack_told(&self, layer: &LayerRef, from: Bytes) -> Result<(), Failure> {
        let step = self.recorder.begin(
            &format!("[internal] unpack {}", layer.descriptor.digest),
            None,
        );
        let (depot, layer) = (self.clone(), layer.clone());
        let unpacked = tokio::task::spawn_blocking(move || depot.unpack(&layer, &from)).await;
        let unpacked = unpacked.unwrap_or_else(|e| Err(platform("unpack a layer", &e)));
        match unpacked {
            Ok(report) => {
                if let Some(report) = report.as_ref().filter(|r| r.n_devices_skipped > 0) {
                    let (n, names) = (report.n_devices_skipped, &report.devices_skipped);
                    step.say(&super::place::skipped_devices(n, names));
                }
                step.finish();
                Ok(())
            }
            Err(failure) => {
                drop(step.fail(&failure.message));
                Err(failure)
            }
        }
    }

    /// Returns what was unpacked; nothing when somebody else has done it meanwhile.
    fn unpack(&self, layer: &LayerRef, from: &Bytes) -> Result<Option<UnpackReport>, Failure> {
        let digest = &layer.descriptor.digest;
        let attempt = format!("unpack layer {digest}");
        // Several builds may want the same layer: one unpacks, the others find it done.
        let _one_at_a_time = self
            .store
            .lock(&format!("unpack-{}", layer.diff_id.hex()))
            .map_err(|e| platform(&attempt, &e))?;
        if self.store.has_snapshot(&layer.diff_id) {
            return Ok(None);
        }
        let blob: Box<dyn Read + Send> = match from {
            Bytes::Pull(growth) => Box::new(growth.reader()),
            Bytes::Store => {
                let blob = self.store.open_blob(digest);
                let blob = blob.map_err(|e| platform(&attempt, &e))?;
                Box::new(blob.ok_or_else(|| {
                    let message = format!("{attempt}: it is not in the store");
                    failure(FailureKind::Platform, message)
                })?)
            }
        };
        let draft = self
            .store
            .new_snapshot()
            .map_err(|e| platform(&attempt, &e))?;
        let limits = UnpackLimits {
            content_bytes: self.layer_bytes,
            ..UnpackLimits::default()
        };
        let plain = oci::layer::decompress(blob, oci::layer::Limits::default());
        let plain = plain.map_err(|e| bad_layer(&attempt, &e))?;
        let report = unpack::unpack(plain, draft.path(), &limits, &self.cancel)
            .map_err(|e| bad_layer(&attempt, &e))?;
        if report.diff_id != layer.diff_id {
            let message = format!(
                "{attempt}: its content is {}, the image says {}",
                report.diff_id, layer.diff_id
            );
            return Err(failure(FailureKind::BaseImage, message));
        }
        draft
            .commit(&layer.diff_id)
            .map(|_| Some(report))
            .map_err(|e| platform(&attempt, &e))
    }
}

/// Where the bytes of a layer are read.
enum Bytes {
    /// In the store.
    Store,
    /// While they are pulled.
    Pull(Arc<Growth>),
}

async fn joined(pull: JoinHandle<Result<(), Failure>>) -> Result<(), Failure> {
    pull.await
        .unwrap_or_else(|e| Err(platform("pull a layer", &e)))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bad_layer(attempt: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    let failure = platform(attempt, error);
    match failure.kind {
        FailureKind::OutOfDisk => failure,
        _ => Failure {
            kind: FailureKind::BaseImage,
            ..failure
        },
    }
}

fn name_of(origin: &Reference) -> String {
    origin
        .familiar()
        .split('@')
        .next()
        .unwrap_or_default()
        .to_owned()
}
