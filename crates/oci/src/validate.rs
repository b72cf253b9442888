//! Checks that the parts of an image belong together: manifest, configuration, layers, and what is inside the layers.
//!
//! Asks for blobs through a closure and knows nothing of registries or disks. Used by tests on every image they make, and by
//! whoever doubts an image.

use std::io::{self, Read};

use crate::layer::{self, decompress};
use crate::tar::{self, ReadError};
use crate::{Digest, Hashed, Hasher, ImageConfig, Manifest, media_type};

/// Opens the blob that a digest names; `None` when it is not there.
pub type Blobs<'a> = dyn Fn(&Digest) -> io::Result<Option<Box<dyn Read>>> + 'a;

/// What a check looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The configuration.
    pub config: ImageConfig,
    /// Entries of each layer, bottom first.
    pub n_entries: Vec<u64>,
}

/// Tells in what the parts of an image contradict each other.
#[derive(Debug, thiserror::Error)]
pub enum ValidateError {
    /// A blob could not be opened or read.
    #[error("failed to read blob {digest}")]
    Read {
        /// The blob.
        digest: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A blob is not there.
    #[error("blob {0} is missing")]
    Missing(Digest),
    /// A blob has another size than its descriptor says.
    #[error("blob {digest} has {actual} bytes, its descriptor says {stated}")]
    Size {
        /// The blob.
        digest: Digest,
        /// Bytes in the descriptor.
        stated: u64,
        /// Bytes that there are.
        actual: u64,
    },
    /// A blob is not what its digest says.
    #[error("blob {stated} has digest {actual}")]
    Digest {
        /// Digest in the descriptor.
        stated: Digest,
        /// Digest of the content.
        actual: Digest,
    },
    /// The configuration is not one.
    #[error("configuration is not valid JSON")]
    Config(#[source] serde_json::Error),
    /// Layers and diff ids differ in number.
    #[error("manifest has {n_layers} layers, configuration has {n_diff_ids} diff ids")]
    Count {
        /// Layers of the manifest.
        n_layers: usize,
        /// Diff ids of the configuration.
        n_diff_ids: usize,
    },
    /// The history tells of more or fewer layers than there are.
    #[error("history tells of {n_history} layers, there are {n_layers}")]
    History {
        /// Layers in the history.
        n_history: usize,
        /// Layers of the manifest.
        n_layers: usize,
    },
    /// The archive in a layer has another digest than the configuration says.
    #[error("layer {layer} unpacks to {actual}, configuration says {stated}")]
    DiffId {
        /// The layer.
        layer: Digest,
        /// Diff id in the configuration.
        stated: Digest,
        /// Digest of the archive.
        actual: Digest,
    },
    /// The media type says another packing than there is.
    #[error("layer {layer} is not what its media type {media_type:?} says")]
    MediaType {
        /// The layer.
        layer: Digest,
        /// Its media type.
        media_type: String,
    },
    /// A layer is no archive.
    #[error("layer {layer} is not a valid archive")]
    Archive {
        /// The layer.
        layer: Digest,
        /// Why.
        #[source]
        source: ReadError,
    },
}

/// Checks everything that `manifest` names.
///
/// # Errors
/// The first contradiction that was found.
pub fn validate(manifest: &Manifest, blobs: &Blobs<'_>) -> Result<Checked, ValidateError> {
    let config = &manifest.config;
    let bytes = read_config(&config.digest, config.size, blobs)?;
    let config: ImageConfig = serde_json::from_slice(&bytes).map_err(ValidateError::Config)?;
    let n_layers = manifest.layers.len();
    let diff_ids = &config.rootfs.diff_ids;
    if diff_ids.len() != n_layers {
        let n_diff_ids = diff_ids.len();
        return Err(ValidateError::Count {
            n_layers,
            n_diff_ids,
        });
    }
    let with_layer = |entry: &&crate::History| entry.empty_layer != Some(true);
    let n_history = config.history.iter().filter(with_layer).count();
    if !config.history.is_empty() && n_history != n_layers {
        return Err(ValidateError::History {
            n_history,
            n_layers,
        });
    }
    let mut n_entries = Vec::new();
    for (descriptor, diff_id) in manifest.layers.iter().zip(diff_ids) {
        n_entries.push(check_layer(descriptor, diff_id, blobs)?);
    }
    Ok(Checked { config, n_entries })
}

fn open(digest: &Digest, blobs: &Blobs<'_>) -> Result<Box<dyn Read>, ValidateError> {
    match blobs(digest) {
        Ok(Some(blob)) => Ok(blob),
        Ok(None) => Err(ValidateError::Missing(digest.clone())),
        Err(source) => Err(ValidateError::Read {
            digest: digest.clone(),
            source,
        }),
    }
}

fn read_config(digest: &Digest, size: u64, blobs: &Blobs<'_>) -> Result<Vec<u8>, ValidateError> {
    let mut bytes = Vec::new();
    let max = crate::config::CONFIG_MAX_BYTES as u64;
    open(digest, blobs)?
        .take(max + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| ValidateError::Read {
            digest: digest.clone(),
            source,
        })?;
    let mut hasher = digest.hasher();
    hasher.update(&bytes);
    compare(digest, size, hasher)?;
    Ok(bytes)
}

fn compare(stated: &Digest, size: u64, hasher: Hasher) -> Result<(), ValidateError> {
    let actual = hasher.size_bytes();
    if actual != size {
        return Err(ValidateError::Size {
            digest: stated.clone(),
            stated: size,
            actual,
        });
    }
    let actual = hasher.finish();
    if actual != *stated {
        let stated = stated.clone();
        return Err(ValidateError::Digest { stated, actual });
    }
    Ok(())
}

fn check_layer(
    descriptor: &crate::Descriptor,
    diff_id: &Digest,
    blobs: &Blobs<'_>,
) -> Result<u64, ValidateError> {
    let digest = &descriptor.digest;
    let failed = |source| ValidateError::Read {
        digest: digest.clone(),
        source,
    };
    let mut blob = Hashed::new(open(digest, blobs)?, digest.hasher());
    let unpacked = decompress(&mut blob, layer::Limits::default()).map_err(failed)?;
    let expected = match descriptor.media_type.as_str() {
        media_type::OCI_LAYER | media_type::DOCKER_LAYER => layer::Packing::None,
        media_type::OCI_LAYER_GZIP | media_type::DOCKER_LAYER_GZIP => layer::Packing::Gzip,
        _ => layer::Packing::Zstd,
    };
    if unpacked.packing() != expected {
        return Err(ValidateError::MediaType {
            layer: digest.clone(),
            media_type: descriptor.media_type.clone(),
        });
    }
    let mut archive = Hashed::new(unpacked, diff_id.hasher());
    let mut reader = tar::Reader::new(&mut archive, tar::Limits::default());
    let mut n_entries = 0;
    loop {
        match reader.next() {
            Ok(Some(_)) => n_entries += 1,
            Ok(None) => break,
            Err(source) => {
                let layer = digest.clone();
                return Err(ValidateError::Archive { layer, source });
            }
        }
    }
    io::copy(&mut archive, &mut io::sink()).map_err(failed)?;
    let actual = archive.into_hasher().finish();
    compare(digest, descriptor.size, blob.into_hasher())?;
    if actual != *diff_id {
        return Err(ValidateError::DiffId {
            layer: digest.clone(),
            stated: diff_id.clone(),
            actual,
        });
    }
    Ok(n_entries)
}
