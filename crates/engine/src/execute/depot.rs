//! Brings layers into the store and unpacks them, each once, whoever asks how often.
//!
//! Nothing is pulled or unpacked until something needs it. A layer that is not here is unpacked while it is pulled, all layers of an
//! image side by side, each into its own directory: the pull writes the blob, the unpacking reads it as it grows ([`store::Growth`]), and
//! a step starts when the directories that it stands on are there. That the blobs become durable is waited for at the end of the build
//! ([`Depot::settle`]) and by whoever publishes them.
//!
//! * What was unpacked has the digest that the image's configuration says, and was read to an end that the registry's bytes were verified at.
//!   A directory that is here already is taken only for a layer whose content is known to be that: a configuration may say anything.
//! * Where tenants are kept apart, nothing of the store is taken that this tenant has not been shown ([`super::shown`]).
//! * When reading along fails (the blob came from another process, or had to be pulled again), the layer is unpacked from the store.

use std::collections::HashMap;
use std::io::{self, Read, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, try_join_all};
use oci::{Digest, Hasher, Reference};
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

/// Kind of the records of what the content of a layer is, plain: by the layer's digest.
const CONTENTS: &str = "contents";

/// Bytes of a layer that are hashed at a time.
const HASHED_BYTES: usize = 256 << 10;

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
    /// By the layer and what its content is said to be.
    unpacking: Mutex<HashMap<(Digest, Digest), Unpacking>>,
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
        if self.has(layer) {
            return self.show(layer).await;
        }
        self.pull(layer, &Growth::new()).await
    }

    /// Sees to it that this build may have `layer`, whose bytes are here.
    async fn show(&self, layer: &LayerRef) -> Result<(), Failure> {
        match &layer.origin {
            Some(origin) => self.shown.show(origin, &layer.descriptor).await,
            None => Ok(()),
        }
    }

    /// Tells whether this build may have `layer` without asking anybody.
    pub(crate) fn is_shown(&self, layer: &LayerRef) -> bool {
        match &layer.origin {
            Some(origin) => self.shown.is_shown(origin, &layer.descriptor.digest),
            None => true,
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
                if growth.is_given_up() {
                    // Somebody else has brought it meanwhile, for whomever.
                    return self.show(layer).await;
                }
                self.shown.note(origin, digest);
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
            let begun = all.entry(pair(layer)).or_insert_with(|| {
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
        let path = self.store.snapshot_path(&layer.diff_id);
        if self.has_directory(layer) {
            self.show(layer).await?;
            return Ok((path, None));
        }
        if self.has(layer) {
            self.show(layer).await?;
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

    /// Tells whether the content of `layer` is here, unpacked.
    fn has_directory(&self, layer: &LayerRef) -> bool {
        self.store.has_snapshot(&layer.diff_id) && {
            let known = self.store.record(CONTENTS, layer.descriptor.digest.hex());
            known.is_ok_and(|known| known.as_deref() == Some(layer.diff_id.to_string().as_bytes()))
        }
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
        if self.has_directory(layer) {
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
        let plain = oci::layer::decompress(blob, oci::layer::Limits::default());
        let plain = plain.map_err(|e| bad_layer(&attempt, &e))?;
        let says = |actual: &Digest| said_otherwise(&attempt, actual, &layer.diff_id);
        if self.store.has_snapshot(&layer.diff_id) {
            // Of another layer with the same content, or so it is said.
            let actual = self.hash(plain, layer.diff_id.hasher());
            let actual = actual.map_err(|e| bad_layer(&attempt, &e))?;
            says(&actual)?;
            note_content(&self.store, layer);
            return Ok(None);
        }
        let draft = self
            .store
            .new_snapshot()
            .map_err(|e| platform(&attempt, &e))?;
        let limits = UnpackLimits {
            content_bytes: self.layer_bytes,
            ..UnpackLimits::default()
        };
        let report = unpack::unpack(plain, draft.path(), &limits, &self.cancel)
            .map_err(|e| bad_layer(&attempt, &e))?;
        says(&report.diff_id)?;
        let committed = draft.commit(&layer.diff_id);
        committed.map_err(|e| platform(&attempt, &e))?;
        note_content(&self.store, layer);
        Ok(Some(report))
    }

    /// Reads `plain` to its end and returns the digest of it all.
    fn hash(&self, mut plain: impl Read, mut hasher: Hasher) -> io::Result<Digest> {
        let mut piece = vec![0; HASHED_BYTES];
        loop {
            if self.cancel.is_cancelled() {
                return Err(io::Error::other("cancelled"));
            }
            match plain.read(&mut piece) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(n) => hasher.write_all(piece.get(..n).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Remembers what the content of `layer` is. Called by whoever has seen it.
pub(crate) fn note_content(store: &Store, layer: &LayerRef) {
    let content = layer.diff_id.to_string();
    let _hashed_again =
        store.note_record(CONTENTS, layer.descriptor.digest.hex(), content.as_bytes());
}

fn said_otherwise(attempt: &str, actual: &Digest, said: &Digest) -> Result<(), Failure> {
    if actual == said {
        return Ok(());
    }
    let message = format!("{attempt}: its content is {actual}, the image says {said}");
    Err(failure(FailureKind::BaseImage, message))
}

/// A layer, and what its content is said to be.
fn pair(layer: &LayerRef) -> (Digest, Digest) {
    (layer.descriptor.digest.clone(), layer.diff_id.clone())
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
