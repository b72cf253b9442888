//! Writes a step's directory as a layer, while later steps already run.

use std::path::PathBuf;
use std::sync::Arc;

use oci::layer::{Flavour, LayerWriter};
use store::Ingest;

use super::Execution;
use super::cache::{CachedLayer, CachedStep, Hit, OperationKeys};
use super::layers::{Layer, content};
use crate::assemble::LayerRef;
use crate::event::{Event, Failure, StepId};
use crate::failure::{dockerfile as dockerfile_failure, platform};
use crate::rootfs::diff::{self, DiffError, DiffOptions};
use crate::spec::{Compression, MediaTypes};

/// Threads that compress one layer.
const THREADS: usize = 2;

/// The directory that a step left.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    pub(super) step: StepId,
}

/// Whether a layer may be sent to a registry while it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The image that is pushed will hold it.
    Pushed,
    /// Nobody can tell, or it will not.
    Unknown,
}

/// Writes the layer and tells the cache.
pub(super) async fn write(
    execution: Arc<Execution>,
    (directory, fate): (Directory, Fate),
    parents: Vec<Layer>,
    (position, key): (String, OperationKeys),
    created: i64,
) -> Result<Option<LayerRef>, Failure> {
    let shared = Arc::clone(&execution);
    let written = tokio::task::spawn_blocking(move || write_layer(&shared, &directory, fate)).await;
    let written = written.unwrap_or_else(|e| Err(platform("write a layer", &e)))?;
    let (layer, ingest) = written.unzip();
    let parent = content(&parents).await?;
    let step = CachedStep {
        layer: layer.as_ref().map(|layer| CachedLayer {
            diff_id: layer.diff_id.clone(),
            digest: layer.descriptor.digest.clone(),
            size_bytes: layer.descriptor.size,
            media_type: layer.descriptor.media_type.clone(),
        }),
        created,
    };
    let hit = Hit {
        step: step.clone(),
        origin: None,
    };
    execution.cache.learn(&position, &key, &parent, &hit);
    match (&layer, ingest) {
        (Some(layer), Some(ingest)) => {
            // The next step needs to know what the layer is, and not that it is durable: only then may later builds find it.
            let blob = (ingest, layer.descriptor.digest.clone());
            let depot = &execution.depot;
            let (committer, store) = (&depot.work.committer, &depot.store);
            let shared = Arc::clone(&execution);
            committer.add(store, blob, move || shared.cache.keep(&key, &parent, &step));
        }
        _ => execution.cache.keep(&key, &parent, &step),
    }
    Ok(layer)
}

/// Returns the layer, and the bytes that are to become its blob; nothing when nothing changed.
fn write_layer(
    execution: &Execution,
    directory: &Directory,
    fate: Fate,
) -> Result<Option<(LayerRef, Ingest)>, Failure> {
    let attempt = "write a layer";
    let mut ingest = execution
        .depot
        .store
        .ingest()
        .map_err(|e| platform(attempt, &e))?;
    let announced = match fate {
        Fate::Pushed => execution.ahead.begin(&mut ingest),
        Fate::Unknown => None,
    };
    let compression = match execution.options.compression {
        Compression::Gzip => oci::layer::Compression::DEFAULT_GZIP,
        Compression::Zstd => oci::layer::Compression::DEFAULT_ZSTD,
    };
    let mut writer =
        LayerWriter::new(ingest, compression, THREADS).map_err(|e| platform(attempt, &e))?;
    let options = DiffOptions {
        mtime_clamp: execution.epoch,
    };
    let report = diff::diff(&directory.path, &mut writer, options, &execution.cancel);
    let report = report.map_err(|error| match &error {
        // Files that the Dockerfile asked for.
        DiffError::ReservedName { .. }
        | DiffError::PathTooLong { .. }
        | DiffError::Device { .. } => dockerfile_failure(attempt, &error),
        _ => platform(attempt, &error),
    })?;
    if report.entries == 0 {
        return Ok(None);
    }
    let (layer, ingest) = writer.finish().map_err(|e| platform(attempt, &e))?;
    execution.recorder.event(&Event::LayerWritten {
        step: directory.step,
        digest: layer.digest.clone(),
        size_bytes: layer.size_bytes,
        uncompressed_bytes: layer.uncompressed_size_bytes,
    });
    let flavour = match execution.options.media_types {
        MediaTypes::Oci => Flavour::Oci,
        MediaTypes::Docker => Flavour::Docker,
    };
    let layer = LayerRef {
        descriptor: layer.descriptor(flavour),
        diff_id: layer.diff_id,
        origin: None,
    };
    if let Some(announced) = announced {
        announced.is(&layer.descriptor);
        ingest.whole();
    }
    Ok(Some((layer, ingest)))
}
