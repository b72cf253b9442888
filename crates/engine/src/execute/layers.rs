//! Layers while a build works with them: where their bytes are, and how a directory comes of them.
//!
//! A layer is known by its content or not yet: that of a step which has just run is being written in the background, while the
//! next step already works on the directory it left. Nothing is pulled or unpacked until something needs it.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, try_join_all};
use oci::{Digest, Reference};
use registry::client::Client;
use store::Store;
use tokio_util::sync::CancellationToken;

use crate::assemble::LayerRef;
use crate::event::{Failure, FailureKind};
use crate::failure::{failure, platform, registry as registry_failure};
use crate::recorder::Recorder;
use crate::rootfs::unpack::{self, UnpackLimits, UnpackReport};

/// What a layer turns out to be: nothing when its step changed no file.
pub(crate) type Written = Shared<BoxFuture<'static, Result<Option<LayerRef>, Failure>>>;

/// One layer of a stage.
#[derive(Clone)]
pub(crate) struct Layer {
    written: Written,
    /// The directory of a step of this build, there before the layer is written.
    fresh: Option<PathBuf>,
    /// Its entry in the history of the image, when the Dockerfile made it.
    pub(crate) history_index: Option<usize>,
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layer")
            .field("fresh", &self.fresh)
            .finish_non_exhaustive()
    }
}

impl Layer {
    /// A layer that is known; `None` when there is nothing in it.
    pub(crate) fn known(layer: Option<LayerRef>, history_index: Option<usize>) -> Self {
        Self {
            written: std::future::ready(Ok(layer)).boxed().shared(),
            fresh: None,
            history_index,
        }
    }

    /// A layer that is being written from `directory`.
    pub(crate) fn fresh(directory: PathBuf, written: Written, history_index: usize) -> Self {
        Self {
            written,
            fresh: Some(directory),
            history_index: Some(history_index),
        }
    }

    /// Returns the directory of a step of this build, and what its layer turns out to be.
    pub(crate) fn fresh_directory(&self) -> Option<(PathBuf, Written)> {
        self.fresh.clone().map(|path| (path, self.written.clone()))
    }

    /// Waits until the layer is written.
    pub(crate) async fn written(&self) -> Result<Option<LayerRef>, Failure> {
        self.written.clone().await
    }
}

/// Waits for all of `layers`, and returns those that hold something.
pub(crate) async fn all_written(layers: &[Layer]) -> Result<Vec<LayerRef>, Failure> {
    let written = try_join_all(layers.iter().map(Layer::written)).await?;
    Ok(written.into_iter().flatten().collect())
}

/// Returns the digest of the content that `layers` make: the parent's part of a step's key.
pub(crate) async fn content(layers: &[Layer]) -> Result<Digest, Failure> {
    let diff_ids: Vec<_> = all_written(layers)
        .await?
        .into_iter()
        .map(|layer| layer.diff_id)
        .collect();
    Ok(super::cache::digest_of(&diff_ids))
}

/// Brings layers into the store and unpacks them.
#[derive(Debug, Clone)]
pub(crate) struct Depot {
    pub(crate) store: Store,
    pub(crate) pull: Client,
    pub(crate) recorder: Recorder,
    pub(crate) layer_bytes: u64,
    pub(crate) cancel: CancellationToken,
}

impl Depot {
    /// Returns the directories of `layers`, bottom first; layers without content have none.
    pub(crate) async fn directories(&self, layers: &[Layer]) -> Result<Vec<PathBuf>, Failure> {
        let directories = try_join_all(layers.iter().map(|layer| self.directory(layer))).await?;
        Ok(directories.into_iter().flatten().collect())
    }

    async fn directory(&self, layer: &Layer) -> Result<Option<PathBuf>, Failure> {
        if let Some(path) = &layer.fresh {
            return Ok(Some(path.clone()));
        }
        match layer.written().await? {
            Some(layer) => self.unpacked(&layer).await.map(Some),
            None => Ok(None),
        }
    }

    /// Sees to it that the bytes of `layer` are in the store.
    pub(crate) async fn bring(&self, layer: &LayerRef) -> Result<(), Failure> {
        let digest = &layer.descriptor.digest;
        if let Ok(Some(_)) = self.store.size_of(digest) {
            return Ok(());
        }
        let Some(origin) = &layer.origin else {
            return Err(failure(
                FailureKind::Platform,
                format!("layer {digest} is not in the store any more"),
            ));
        };
        let step = self.recorder.begin(
            &format!("[internal] pull {} {digest}", name_of(origin)),
            None,
        );
        match self
            .pull
            .blob_to_store(origin, &layer.descriptor, &self.store, &|_| ())
            .await
        {
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
        let path = self.store.snapshot_path(&layer.diff_id);
        if self.store.has_snapshot(&layer.diff_id) {
            return Ok(path);
        }
        self.bring(layer).await?;
        let step = self.recorder.begin(
            &format!("[internal] unpack {}", layer.descriptor.digest),
            None,
        );
        let (depot, layer) = (self.clone(), layer.clone());
        let unpacked = tokio::task::spawn_blocking(move || depot.unpack(&layer)).await;
        let unpacked = unpacked.unwrap_or_else(|e| Err(platform("unpack a layer", &e)));
        match &unpacked {
            Ok(report) => {
                if let Some(report) = report.as_ref().filter(|r| r.n_devices_skipped > 0) {
                    let (n, names) = (report.n_devices_skipped, &report.devices_skipped);
                    step.say(&super::place::skipped_devices(n, names));
                }
                step.finish();
            }
            Err(failure) => drop(step.fail(&failure.message)),
        }
        unpacked.map(|_| path)
    }

    /// Returns what was unpacked; nothing when somebody else has done it meanwhile.
    fn unpack(&self, layer: &LayerRef) -> Result<Option<UnpackReport>, Failure> {
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
        let blob = self
            .store
            .open_blob(digest)
            .map_err(|e| platform(&attempt, &e))?;
        let blob: File = blob.ok_or_else(|| {
            failure(
                FailureKind::Platform,
                format!("{attempt}: it is not in the store"),
            )
        })?;
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

/// Puts a future that writes a layer where several can wait for it.
pub(crate) fn shared(
    future: impl Future<Output = Result<Option<LayerRef>, Failure>> + Send + 'static,
) -> Written {
    future.boxed().shared()
}

/// What is left of a finished stage: what it is made of.
#[derive(Debug, Clone)]
pub(crate) struct StageResult {
    pub(crate) layers: Arc<Vec<Layer>>,
    /// When its youngest step ran, Unix seconds.
    pub(crate) created: Option<i64>,
}
