//! The file of a subassembly goes into a bucket, where others fetch it.
//!
//! An object of that name and size is the file: names are digests, and nobody but us writes below the prefix.

use objects::{Bucket, Objects, Place};
use store::Store;
use tokio_util::sync::CancellationToken;

use super::{Stored, object_name};
use crate::event::{Failure, FailureKind};
use crate::failure::{failure, platform};

/// Sees to it that the file of `stored` is in `bucket`.
pub(super) async fn upload(
    store: &Store,
    stored: &Stored,
    bucket: &Bucket,
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    let attempt = format!("put a subassembly into bucket {}", bucket.name);
    let failed = |error: &(dyn std::error::Error + 'static)| platform(&attempt, error);
    let objects = Objects::open(&Place::Bucket(Box::new(bucket.clone())));
    let objects = objects.map_err(|e| failed(&e))?;
    let name = object_name(&stored.digest).map_err(|e| failed(&e))?;
    if objects.head(&name).await.map_err(|e| failed(&e))? == Some(stored.size_bytes) {
        return Ok(());
    }
    let file = store.open_blob(&stored.digest).map_err(|e| failed(&e))?;
    let file = file.ok_or_else(|| {
        let why = format!("{attempt}: file {} is not in the store", stored.digest);
        failure(FailureKind::Platform, why)
    })?;
    let put = objects.put(&name, file, cancel).await;
    put.map(|_| ()).map_err(|e| failed(&e))
}
