//! Contexts that a client has uploaded: found in the store for the build's own tenant, and put together in the build's scratch.
//!
//! Of a context that is built from, only what is read before the first step is made at once; the rest is when a step needs files
//! ([`Deferred`]). What a step would copy is known from the list ([`listed`]), so that a build of which everything is in the cache makes none.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use oci::Digest;
use store::Store;
use store::context::{Context, ContextId};
use tokio_util::sync::CancellationToken;

use super::lookout::Lookout;
use crate::event::{Failure, FailureKind};
use crate::failure::{chain, failure, platform};
use crate::recorder::Recorder;
use crate::rootfs::filter::Source;
use crate::rootfs::root::Root;
use crate::rootfs::{listed, planted};

/// What is attempted.
const MAKE: &str = "make the context";

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
            plant_all(&place.context(&id)?, &into, &cancel)?;
            Ok(into)
        });
        done.await.unwrap_or_else(|e| Err(platform(MAKE, &e)))
    }

    /// Makes what is `wanted` of the context `id` in the new folder `into`; returns where that is, and what makes the rest. Where links have
    /// a say in what is wanted, everything is made.
    pub(crate) async fn open(
        &self,
        id: &str,
        (into, wanted): (PathBuf, &Lookout),
        recorder: &Recorder,
        cancel: &CancellationToken,
    ) -> Result<(PathBuf, Option<Deferred>), Failure> {
        let (place, id, cancel) = (self.clone(), id.to_owned(), cancel.clone());
        let (paths, folder) = (wanted.paths(), wanted.folder.as_str().to_owned());
        let recorder = recorder.clone();
        let done = tokio::task::spawn_blocking(move || {
            let context = place.context(&id)?;
            let paths: Vec<&[u8]> = paths.iter().map(String::as_bytes).collect();
            let entries = context.entries().map_err(|e| platform(MAKE, &e))?;
            let some = listed::only(entries, &paths).map_err(|e| platform(MAKE, &e))?;
            let Some(some) = some else {
                plant_all(&context, &into, &cancel)?;
                return Ok((into, None));
            };
            let (first, all) = (into.with_extension("first"), into);
            let made = make_folder(&first)?;
            let planted = planted::plant_some(&context, some.into_iter().map(Ok), made, &cancel);
            planted.map_err(|e| platform(MAKE, &e))?;
            let deferred = Deferred {
                context: Mutex::new(context),
                folder,
                into: all,
                made: OnceLock::new(),
                recorder,
                cancel,
            };
            Ok((first, Some(deferred)))
        });
        done.await.unwrap_or_else(|e| Err(platform(MAKE, &e)))
    }

    /// Opens the file at `path` of the context `id`.
    pub(crate) fn open_file(&self, id: &str, path: &str) -> Result<File, Failure> {
        let context = self.context(id)?;
        planted::open_file(&context, path.as_bytes())
            .map_err(|e| failure(FailureKind::Dockerfile, chain(&e)))
    }
}

/// The files of an uploaded context that are not made yet. It stays in the store as long as this.
#[derive(Debug)]
pub(crate) struct Deferred {
    /// Whose list has one reader at a time.
    context: Mutex<Context>,
    /// The folder of the upload that is built from. No link leads there.
    folder: String,
    /// Where they are made.
    into: PathBuf,
    made: OnceLock<Result<Root, Failure>>,
    recorder: Recorder,
    cancel: CancellationToken,
}

impl Deferred {
    /// Returns the folder that is built from; whoever comes first makes all files, others wait for that.
    pub(crate) fn root(&self) -> Result<&Root, Failure> {
        let made = self.made.get_or_init(|| {
            let step = self
                .recorder
                .begin("[internal] put build context together", None);
            let made = self.make();
            match &made {
                Ok(_) => step.finish(),
                Err(failure) => drop(step.fail(&failure.message)),
            }
            made
        });
        made.as_ref().map_err(Clone::clone)
    }

    fn make(&self) -> Result<Root, Failure> {
        let context = self.context.lock().unwrap_or_else(PoisonError::into_inner);
        plant_all(&context, &self.into, &self.cancel)?;
        let whole = Root::open(&self.into).map_err(|e| platform(MAKE, &e))?;
        let folder = whole.subdirectory(Path::new(&self.folder));
        folder.map_err(|e| platform(MAKE, &e))
    }

    /// Returns the key of what decides what `sources` mean.
    pub(crate) fn key(&self, sources: &[Source]) -> Result<Digest, Failure> {
        let context = self.context.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |e: &(dyn std::error::Error + 'static)| platform("read the context", e);
        let entries = context.entries().map_err(|e| failed(&e))?;
        listed::key(entries, self.folder.as_bytes(), sources).map_err(|e| failed(&e))
    }
}

fn make_folder(path: &Path) -> Result<std::os::fd::OwnedFd, Failure> {
    std::fs::create_dir(path).map_err(|e| platform(MAKE, &e))?;
    planted::open_folder(path).map_err(|e| platform(MAKE, &e))
}

fn plant_all(context: &Context, into: &Path, cancel: &CancellationToken) -> Result<(), Failure> {
    let folder = make_folder(into)?;
    planted::plant(context, folder, cancel).map_err(|e| platform(MAKE, &e))
}
