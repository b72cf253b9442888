//! Folders that callers upload to build from: who may upload how much at a time, and how long what they brought is kept.
//!
//! What an upload is and what holds of it on disk, [`store::context`] says; here it is given limits, run where blocking is allowed,
//! and cleared away. Uploads leave builds the room that they need: they are refused before builds are, and a tenant has so much and no
//! more (`contexts.max_bytes`). An upload that ends before its end, whoever ends it, leaves what has come whole for the next try.
//! A context is found for the tenant that uploaded it and for nobody else; what others have uploaded changes no answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use store::Store;
use store::context::{
    Allowance, Announced, Context, ContextDraft, ContextError, ContextId, Created, Entry, Keeping,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Tenant;
use crate::builds::room::Room;
use crate::config::Contexts as Config;
use crate::failure::{Blame, Failure, chain};

/// Most uploads of one tenant that wait for their turn.
const WAITING_MAX: usize = 256;

/// Contexts are forgotten at least so often.
const SWEEP_MAX: Duration = Duration::from_secs(600);

/// Every context. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Contexts {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    parts: Parts,
    /// The places of tenants that upload something, or wait to.
    uploads: Mutex<HashMap<Tenant, Places>>,
}

/// Where uploads of one tenant go on.
#[derive(Debug)]
struct Places {
    free: Arc<Semaphore>,
    /// Those who upload and those who wait.
    n_callers: usize,
}

/// What [`Contexts`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// Where they are kept.
    pub store: Store,
    /// What is free on the disk.
    pub(crate) room: Arc<Room>,
    /// How they are taken and kept.
    pub config: Config,
    /// Most entries of one.
    pub max_entries: u64,
    /// Most bytes of one.
    pub max_bytes: u64,
    /// Returns the time in Unix milliseconds.
    pub now_ms: fn() -> u64,
}

/// A context that is not forgotten as long as this is kept.
#[derive(Debug)]
pub struct ContextLease {
    _context: Context,
}

impl Contexts {
    /// Returns the contexts of a store.
    pub fn new(parts: Parts) -> Self {
        Self {
            inner: Arc::new(Inner {
                parts,
                uploads: Mutex::default(),
            }),
        }
    }

    /// Returns how long the next piece of an upload may take.
    pub fn piece_timeout(&self) -> Duration {
        self.inner.parts.config.piece_timeout
    }

    /// Returns how long an upload may take in all: what it counts on is not kept for longer.
    pub fn upload_timeout(&self) -> Duration {
        self.inner.parts.config.lifetime
    }

    /// Begins an upload.
    pub async fn begin(&self, tenant: &Tenant, announced: Announced) -> Result<Upload, Failure> {
        let parts = &self.inner.parts;
        let refuse = |what: &str, most: u64, key: &str| {
            let text = format!("the context has more than {most} {what}: see {key}");
            Err(Failure::new(Blame::Request, text))
        };
        if announced.n_entries > parts.max_entries {
            return refuse("entries", parts.max_entries, "limits.context_files");
        }
        if announced.n_bytes > parts.max_bytes {
            return refuse("bytes", parts.max_bytes, "limits.context_bytes");
        }
        let slot = self.slot(tenant).await?;
        let room = parts.room.of_uploads()?;
        let allowance = Allowance {
            min_free_bytes: room.min_free_bytes,
            max_bytes: parts.config.max_bytes(room.disk_bytes),
        };
        let (store, name, keeping) = (parts.store.clone(), tenant.clone(), self.keeping());
        let begin = move || store.begin_context(name.as_str(), announced, keeping, allowance);
        Ok(Upload {
            draft: Arc::new(Mutex::new(Some(blocking(begin).await?))),
            contexts: self.clone(),
            _slot: slot,
        })
    }

    /// Finds a context for a build, and keeps it.
    pub async fn lease(&self, tenant: &Tenant, context_id: &str) -> Result<ContextLease, Failure> {
        let missing = || {
            let text = "there is no such context, or its time is over: upload it again";
            Failure::new(Blame::Missing, text)
        };
        let id: ContextId = context_id.parse().map_err(|_| missing())?;
        let (store, tenant) = (self.inner.parts.store.clone(), tenant.clone());
        let context = blocking(move || store.context(tenant.as_str(), &id)).await?;
        let keeping = self.keeping();
        let context = context.filter(|context| !keeping.is_over(context.created_ms()));
        Ok(ContextLease {
            _context: context.ok_or_else(missing)?,
        })
    }

    /// Forgets what nobody needs any more: at once, because there may be something from an earlier process, and then every while.
    pub fn keep_swept(&self, tasks: &TaskTracker, stop: &CancellationToken) {
        let (contexts, stop) = (self.clone(), stop.clone());
        let every = (self.inner.parts.config.lifetime / 4).clamp(Duration::from_secs(1), SWEEP_MAX);
        tasks.spawn(async move {
            let mut ticks = tokio::time::interval(every);
            while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                let (store, keeping) = (contexts.inner.parts.store.clone(), contexts.keeping());
                let stopped = stop.clone();
                let sweep = move || store.sweep_contexts(keeping, &|| !stopped.is_cancelled());
                match tokio::task::spawn_blocking(sweep).await {
                    Ok(Ok(swept)) => tracing::debug!(?swept, "contexts swept"),
                    Ok(Err(error)) => {
                        tracing::warn!(error = chain(&error), "old contexts cannot be removed");
                    }
                    Err(error) => tracing::warn!(%error, "old contexts cannot be removed"),
                }
            }
        });
    }

    fn keeping(&self) -> Keeping {
        Keeping {
            now_ms: (self.inner.parts.now_ms)(),
            lifetime: self.inner.parts.config.lifetime,
        }
    }

    /// Waits for the turn of an upload, behind those of the same tenant that came before.
    async fn slot(&self, tenant: &Tenant) -> Result<Slot, Failure> {
        let config = &self.inner.parts.config;
        let most = config.max_uploads;
        let refuse = |text: String| Failure::new(Blame::Load, text);
        let places = {
            let mut uploads = self.uploads();
            let places = uploads.entry(tenant.clone()).or_insert_with(|| Places {
                free: Arc::new(Semaphore::new(most)),
                n_callers: 0,
            });
            if places.n_callers >= most.saturating_add(WAITING_MAX) {
                return Err(refuse(format!("{WAITING_MAX} uploads wait already")));
            }
            places.n_callers += 1;
            Arc::clone(&places.free)
        };
        let line = Line {
            contexts: self.clone(),
            tenant: tenant.clone(),
        };
        let turn = places.acquire_owned();
        match tokio::time::timeout(config.wait_timeout, turn).await {
            Ok(Ok(place)) => Ok(Slot {
                _place: place,
                _line: line,
            }),
            Ok(Err(_)) | Err(_) => Err(refuse(format!(
                "{most} uploads go on already, and none has ended for {} s: see contexts.max_uploads and contexts.wait_timeout",
                config.wait_timeout.as_secs()
            ))),
        }
    }

    fn uploads(&self) -> std::sync::MutexGuard<'_, HashMap<Tenant, Places>> {
        let uploads = self.inner.uploads.lock();
        uploads.unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to upload. The place is let go before the line is left, as fields are dropped in their order.
#[derive(Debug)]
struct Slot {
    _place: OwnedSemaphorePermit,
    _line: Line,
}

/// Somebody who uploads or waits to.
#[derive(Debug)]
struct Line {
    contexts: Contexts,
    tenant: Tenant,
}

impl Drop for Line {
    fn drop(&mut self) {
        let mut uploads = self.contexts.uploads();
        if let Some(places) = uploads.get_mut(&self.tenant) {
            places.n_callers = places.n_callers.saturating_sub(1);
            if places.n_callers == 0 {
                uploads.remove(&self.tenant);
            }
        }
    }
}

/// An upload on its way. Whoever has one calls [`Upload::end`] at last, whatever became of it.
#[derive(Debug)]
pub struct Upload {
    /// Shared with work that goes on when its caller was dropped.
    draft: Arc<Mutex<Option<ContextDraft>>>,
    contexts: Contexts,
    _slot: Slot,
}

impl Upload {
    /// Takes the next entries; tells whether those were all.
    pub async fn entries(&self, entries: Vec<Entry>) -> Result<bool, Failure> {
        let entries = Arc::new(entries);
        let work = move |draft: &mut ContextDraft| {
            draft.entries(&entries)?;
            Ok(draft.is_listed())
        };
        self.with_room(work).await
    }

    /// Returns which entries' contents are to come, once all entries have.
    pub async fn missing(&self) -> Result<Vec<u64>, Failure> {
        self.with_room(ContextDraft::missing).await
    }

    /// Takes the next bytes of the missing contents; tells whether those were the last.
    pub async fn content(&self, bytes: Bytes) -> Result<bool, Failure> {
        let work = move |draft: &mut ContextDraft| {
            draft.content(&bytes)?;
            Ok(draft.is_complete())
        };
        self.with(work).await
    }

    /// Makes it a context; returns its id and until when a build can be started from it.
    pub async fn commit(&self) -> Result<(ContextId, u64), Failure> {
        let draft = Arc::clone(&self.draft);
        let now_ms = (self.contexts.inner.parts.now_ms)();
        let commit = move || {
            let draft = take(&draft).ok_or(ContextError::Incomplete)?;
            tracing::debug!(received_bytes = draft.received_bytes(), "context uploaded");
            draft.commit(now_ms)
        };
        let Created { id, created_ms } = blocking(commit).await?;
        Ok((id, self.contexts.keeping().expires_at_ms(created_ms)))
    }

    /// Ends it. If it did not become a context, what has come whole stays for the next try.
    pub async fn end(self) {
        let draft = Arc::clone(&self.draft);
        let abandon = move || take(&draft).map_or(Ok(()), ContextDraft::abandon);
        match tokio::task::spawn_blocking(abandon).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "an upload left nothing"),
            Err(error) => tracing::warn!(%error, "an upload left nothing"),
        }
    }

    /// Does something for which there may be no room on the disk; then what nobody uses is collected, and it is done once more.
    async fn with_room<T: Send + 'static>(
        &self,
        work: impl Fn(&mut ContextDraft) -> Result<T, ContextError> + Clone + Send + 'static,
    ) -> Result<T, Failure> {
        let needed = match self.attempt(work.clone()).await? {
            Err(ContextError::NoSpace { needed, .. }) => needed,
            done => return done.map_err(failure),
        };
        self.contexts
            .inner
            .parts
            .room
            .make_for_upload(needed)
            .await?;
        self.with(work).await
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut ContextDraft) -> Result<T, ContextError> + Send + 'static,
    ) -> Result<T, Failure> {
        self.attempt(work).await?.map_err(failure)
    }

    async fn attempt<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut ContextDraft) -> Result<T, ContextError> + Send + 'static,
    ) -> Result<Result<T, ContextError>, Failure> {
        let draft = Arc::clone(&self.draft);
        attempt(move || {
            let mut draft = draft.lock().unwrap_or_else(PoisonError::into_inner);
            draft.as_mut().map_or(Err(ContextError::Incomplete), work)
        })
        .await
    }
}

fn take(draft: &Mutex<Option<ContextDraft>>) -> Option<ContextDraft> {
    draft.lock().unwrap_or_else(PoisonError::into_inner).take()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ContextError> + Send + 'static,
) -> Result<T, Failure> {
    attempt(work).await?.map_err(failure)
}

async fn attempt<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ContextError> + Send + 'static,
) -> Result<Result<T, ContextError>, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::platform("the context cannot be kept", error))
}

/// Whose fault it is that an upload is refused.
fn failure(error: ContextError) -> Failure {
    let blame = match &error {
        ContextError::Entry { .. }
        | ContextError::NumberOfEntries { .. }
        | ContextError::NumberOfBytes { .. }
        | ContextError::Size { .. }
        | ContextError::Digest { .. }
        | ContextError::Unwanted
        | ContextError::Incomplete => Blame::Request,
        ContextError::TooMany => Blame::Load,
        ContextError::NoSpace { .. } => {
            let text = format!("{}: see admission.min_free_bytes", chain(&error));
            return Failure::new(Blame::Load, text);
        }
        ContextError::TooMuch { .. } => {
            let text = format!("{} (contexts.max_bytes)", chain(&error));
            return Failure::new(Blame::Load, text);
        }
        ContextError::Vanished => Blame::Shutdown,
        ContextError::Damaged(_) | ContextError::Lock(_) | ContextError::Io { .. } => {
            return Failure::platform("the context cannot be kept", error);
        }
    };
    Failure::new(blame, chain(&error))
}
