//! Subassemblies: one image's root filesystem as one file, the same bytes for the same image.
//!
//! What making one does, in order:
//!
//! 1. bring the image's layers into the store;
//! 2. flatten them into one archive, without unpacking them (`flatten`, `tree`);
//! 3. pack the archive in the format that is wanted, into the store (`pack`);
//! 4. put it into a bucket, when there is one (`upload`);
//! 5. write down what the file is ([`manifest`]) and, last of all, that it is there ([`Stored`]).
//!
//! The file is a blob of the store like any other; a record under [`key`] says which. A record that is there tells the truth: it is
//! written when the file is durable, where it was wanted. Whether it still is there is asked for each time: of the store ([`find`]), or
//! of the bucket under [`object_name`]. Who may have the file is decided elsewhere.

mod flatten;
pub mod manifest;
mod pack;
mod tree;
mod upload;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use objects::{Bucket, Name, ParseNameError};
use oci::{Digest, ImageConfig};
use serde::{Deserialize, Serialize};
use store::{RecordError, Store};
use tokio_util::sync::CancellationToken;

use self::flatten::{Bounds, Flattened};
use self::manifest::Manifest;
use self::pack::PackError;
use crate::assemble::Image;
use crate::event::{Failure, FailureKind};
use crate::failure::{chain, failure, platform};
use crate::publish::{Publisher, bring_all};

/// Changes whenever the same image gives another file than before.
const VERSION: u32 = 1;
/// Kind of the records that say which subassemblies there are.
const KIND: &str = "subassembly";

/// What a subassembly's file is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Format {
    /// A filesystem that Linux mounts, compressed with zstd. Made by `tar2sqfs`.
    #[serde(rename = "squashfs")]
    Squashfs,
    /// An archive, compressed with zstd. Needs no other program.
    #[default]
    #[serde(rename = "tar+zstd")]
    TarZstd,
}

impl Format {
    /// Returns its name in configurations and manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Squashfs => "squashfs",
            Self::TarZstd => "tar+zstd",
        }
    }

    /// Returns the media type of its files.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Squashfs => "application/vnd.squashfs",
            Self::TarZstd => "application/x-tar+zstd",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Tells that a text is no format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a format of subassemblies: squashfs or tar+zstd")]
pub struct ParseFormatError(String);

impl FromStr for Format {
    type Err = ParseFormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "squashfs" => Ok(Self::Squashfs),
            "tar+zstd" => Ok(Self::TarZstd),
            other => Err(ParseFormatError(other.chars().take(64).collect())),
        }
    }
}

/// A subassembly that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Digest of the image's manifest.
    pub image: Digest,
    /// Digest of the file: its name among the store's blobs.
    pub digest: Digest,
    /// Size of the file.
    pub size_bytes: u64,
    /// What the file is.
    pub manifest: Manifest,
}

/// Returns the key of the record about the subassembly of an image. Nothing is shared between tenants.
pub fn key(tenant: &str, image: &Digest, format: Format) -> String {
    let text = format!("{VERSION}\n{}\n{tenant}\n{image}", format.as_str());
    Digest::sha256(text.as_bytes()).hex().to_owned()
}

/// Returns the name of a file in a bucket: the same file is there once.
///
/// # Errors
/// Never, as long as digests are what they are.
pub fn object_name(digest: &Digest) -> Result<Name, ParseNameError> {
    digest.to_string().replace(':', "/").parse()
}

/// Returns what is known of the subassembly under `key`; whether its file is still there is another question.
///
/// # Errors
/// When the store cannot be read.
pub fn recorded(store: &Store, key: &str) -> Result<Option<Stored>, RecordError> {
    let bytes = store.record(KIND, key)?;
    // One that nobody can read any more is made again.
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Returns the subassembly under `key`, if its file is in the store.
///
/// # Errors
/// When the store cannot be read.
pub fn find(store: &Store, key: &str) -> Result<Option<Stored>, RecordError> {
    let stored = recorded(store, key)?;
    Ok(stored.filter(|stored| matches!(store.size_of(&stored.digest), Ok(Some(size)) if size == stored.size_bytes)))
}

/// What is to be made of an image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) format: Format,
    /// Whose it is.
    pub(crate) tenant: &'a str,
    /// Where the file goes too.
    pub(crate) bucket: Option<&'a Bucket>,
}

/// Makes the subassembly of `image` and records it under the key of the tenant.
pub(crate) async fn make(
    publisher: &Publisher,
    image: &Image,
    wanted: Wanted<'_>,
) -> Result<(), Failure> {
    bring_all(&publisher.depot, image).await?;
    let scratch = publisher.folder.join("work").join("subassembly");
    let work = Arc::new(Work {
        store: publisher.depot.store.clone(),
        image: image.clone(),
        format: wanted.format,
        key: key(wanted.tenant, &image.digest, wanted.format),
        layer_bytes: publisher.depot.layer_bytes,
        cancel: publisher.depot.cancel.clone(),
    });
    let stored = blocking(&work, move |work| work.carry_out(&scratch)).await?;
    if let Some(bucket) = wanted.bucket {
        upload::upload(&work.store, &stored, bucket, &work.cancel).await?;
    }
    blocking(&work, move |work| work.record(&stored)).await
}

async fn blocking<T: Send + 'static>(
    work: &Arc<Work>,
    step: impl FnOnce(&Work) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let work = Arc::clone(work);
    let done = tokio::task::spawn_blocking(move || step(&work)).await;
    done.unwrap_or_else(|error| Err(failed(&error)))
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    platform("make a subassembly", error)
}

struct Work {
    store: Store,
    image: Image,
    format: Format,
    key: String,
    layer_bytes: u64,
    cancel: CancellationToken,
}

impl Work {
    /// Steps 2 and 3, unless the file is there.
    fn carry_out(&self, scratch: &Path) -> Result<Stored, Failure> {
        if let Ok(Some(stored)) = find(&self.store, &self.key) {
            return Ok(stored);
        }
        let config: ImageConfig =
            serde_json::from_slice(&self.image.config_bytes).map_err(|e| failed(&e))?;
        std::fs::create_dir_all(scratch).map_err(|e| failed(&e))?;
        let out = self.store.ingest().map_err(|e| failed(&e))?;
        let bounds = Bounds {
            layer_bytes: self.layer_bytes,
            cancel: &self.cancel,
        };
        let mut archive = |out: &mut dyn std::io::Write| {
            let mut out = out;
            flatten::flatten(&self.store, &self.image.layers, &mut out, bounds)
        };
        let (flattened, out) = pack::pack(self.format, &mut archive, out, scratch, &self.cancel)
            .map_err(|e| blame(&e))?;
        let (digest, size_bytes) = out.commit(None).map_err(|e| failed(&e))?;
        Ok(self.stored(&config, flattened, digest, size_bytes))
    }

    fn record(&self, stored: &Stored) -> Result<(), Failure> {
        let bytes = serde_json::to_vec(stored).map_err(|e| failed(&e))?;
        self.store
            .put_record(KIND, &self.key, &bytes)
            .map_err(|e| failed(&e))
    }

    fn stored(
        &self,
        config: &ImageConfig,
        flattened: Flattened,
        digest: Digest,
        size_bytes: u64,
    ) -> Stored {
        Stored {
            image: self.image.digest.clone(),
            manifest: Manifest::new(
                config,
                manifest::File {
                    source: self.image.digest.clone(),
                    format: self.format,
                    digest: digest.clone(),
                    size_bytes,
                    uncompressed_bytes: flattened.content_bytes,
                    n_entries: flattened.n_entries,
                    n_devices: flattened.n_devices,
                },
            ),
            digest,
            size_bytes,
        }
    }
}

/// Decides whose fault it is: an image that cannot be flattened is its maker's.
fn blame(error: &PackError) -> Failure {
    let failure_of = failed(error);
    match (error, failure_of.kind) {
        (PackError::Flatten(cause), FailureKind::Platform) if cause.is_of_image() => failure(
            FailureKind::BaseImage,
            format!("make a subassembly: {}", chain(error)),
        ),
        _ => failure_of,
    }
}

#[cfg(test)]
mod tests;
