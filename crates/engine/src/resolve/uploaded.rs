//! Contexts that a client has uploaded: found in the store for the build's own tenant, and put together in the build's scratch.

use std::fs::File;
use std::path::PathBuf;

use store::Store;
use store::context::{Context, ContextId};
use tokio_util::sync::CancellationToken;

use crate::event::{Failure, FailureKind};
use crate::failure::{chain, failure, platform};
use crate::rootfs::planted;

/// Where uploaded contexts are looked for: those of one tenant.
#[derive(Debug, Clone)]
pub(crate) struct Shelf {
    pub(crate) store: Store,
    pub(crate) tenant: String,
}

impl Shelf {
    fn context(&self, id: &str) -> Result<Context, Failure> {
        let gone = || {
            let message = "the uploaded context is not there any more: upload it again";
            failure(FailureKind::Dockerfile, message)
        };
        let id: ContextId = id.parse().map_err(|_| gone())?;
        let found = self.store.context(&self.tenant, &id);
        found
            .map_err(|e| platform("find the uploaded context", &e))?
            .ok_or_else(gone)
    }

    /// Puts the files of the context `id` together in the new folder `into`, and returns it.
    pub(crate) async fn put_together(
        &self,
        id: &str,
        into: PathBuf,
        cancel: &CancellationToken,
    ) -> Result<PathBuf, Failure> {
        let (place, id, cancel) = (self.clone(), id.to_owned(), cancel.clone());
        let done = tokio::task::spawn_blocking(move || {
            // Kept until all is there.
            let context = place.context(&id)?;
            let failed = |e: &(dyn std::error::Error + 'static)| platform("make the context", e);
            std::fs::create_dir(&into).map_err(|e| failed(&e))?;
            let folder = planted::open_folder(&into).map_err(|e| failed(&e))?;
            planted::plant(&context, folder, &cancel).map_err(|e| failed(&e))?;
            Ok(into)
        });
        done.await
            .unwrap_or_else(|e| Err(platform("make the context", &e)))
    }

    /// Opens the file at `path` of the context `id`.
    pub(crate) fn open_file(&self, id: &str, path: &str) -> Result<File, Failure> {
        let context = self.context(id)?;
        planted::open_file(&context, path.as_bytes())
            .map_err(|e| failure(FailureKind::Dockerfile, chain(&e)))
    }
}
