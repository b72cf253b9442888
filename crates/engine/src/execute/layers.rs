//! Layers while a build works with them: where their bytes are, and how a directory comes of them.
//!
//! A layer is known by its content or not yet: that of a step which has just run is being written in the background, while the
//! next step already works on the directory it left. Where they come from is the business of [`super::depot`].

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, try_join_all};
use oci::Digest;

use crate::assemble::LayerRef;
use crate::event::Failure;

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
