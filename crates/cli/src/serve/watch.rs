//! Waiting for workers, and beginning builds again whose workers were killed.
//!
//! What a build needs to be begun again has secrets in it, and is in the memory of this process only: a server that is started again ends the
//! builds of workers that are lost. Nobody's build is begun again who has asked for its end.

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::chain;
use engine::id::BuildId;
use engine::spec::BuildSpec;
use worker::{Cause, Gone, WorkerCommand, WorkerHandle, WorkerSignals};

/// What speaks to workers that have not been waited for to their end. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Contacts(Arc<Mutex<HashMap<BuildId, Contact>>>);

#[derive(Debug)]
struct Contact {
    signals: Arc<WorkerSignals>,
    is_given_up: bool,
}

impl Contacts {
    fn lock(&self) -> MutexGuard<'_, HashMap<BuildId, Contact>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a worker. Returns false when somebody has asked for the end of its build.
    pub(super) fn note(&self, id: &BuildId, handle: &WorkerHandle) -> bool {
        match handle.signals() {
            Ok(Some(signals)) => {
                let mut contacts = self.lock();
                let known = contacts.get(id);
                let is_given_up = known.is_some_and(|contact| contact.is_given_up);
                let contact = Contact {
                    signals: Arc::new(signals),
                    is_given_up,
                };
                contacts.insert(id.clone(), contact);
                !is_given_up
            }
            // Gone already, which waiting for it will tell.
            Ok(None) => true,
            Err(error) => {
                tracing::error!(%id, %error, "this build cannot be spoken to");
                true
            }
        }
    }

    /// Returns what speaks to a build's worker.
    pub(super) fn of(&self, id: &BuildId) -> Option<Arc<WorkerSignals>> {
        self.lock()
            .get(id)
            .map(|contact| Arc::clone(&contact.signals))
    }

    /// Takes note that somebody has asked for a build's end.
    pub(super) fn give_up(&self, id: &BuildId) {
        if let Some(contact) = self.lock().get_mut(id) {
            contact.is_given_up = true;
        }
    }

    fn is_given_up(&self, id: &BuildId) -> bool {
        self.lock()
            .get(id)
            .is_some_and(|contact| contact.is_given_up)
    }

    fn forget(&self, id: &BuildId) {
        self.lock().remove(id);
    }
}

/// How often an end is tried to be written before the last time, and how long is waited after the first: half a minute in all, for which the
/// build keeps its turn.
const CONCLUDE_ATTEMPTS: u32 = 7;
const CONCLUDE_PAUSE: Duration = Duration::from_millis(250);

/// Waits for the workers of one build.
pub(super) struct Watch {
    pub(super) id: BuildId,
    pub(super) folder: PathBuf,
    pub(super) command: WorkerCommand,
    /// What the build is begun again with, and how often.
    pub(super) retry: Option<(BuildSpec, u32)>,
    pub(super) contacts: Contacts,
}

impl Watch {
    /// Waits until nobody works on the build any more, and its journal has an end.
    pub(super) async fn until_the_end(self, mut handle: WorkerHandle) {
        let mut attempt = 1;
        loop {
            match handle.gone().await {
                Ok(Gone::Ended) => break,
                Ok(Gone::Killed) => {
                    attempt += 1;
                    if let Some(next) = self.begin_again(attempt).await {
                        handle = next;
                        continue;
                    }
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(id = %self.id, error, "a build is concluded once more");
                }
            }
            self.conclude().await;
            break;
        }
        self.contacts.forget(&self.id);
    }

    /// Ends the build whose worker is gone without a word.
    async fn conclude(&self) {
        let cause = if self.contacts.is_given_up(&self.id) {
            Cause::Cancelled
        } else {
            Cause::Lost
        };
        let ended = conclude_in_time(&self.folder, cause).await;
        if let Err(error) = ended {
            let error = chain(&*error);
            tracing::error!(id = %self.id, error, "a build could not be concluded");
        }
    }

    async fn begin_again(&self, attempt: u32) -> Option<WorkerHandle> {
        let id = &self.id;
        let (spec, retries) = self.retry.as_ref()?;
        if attempt > retries.saturating_add(1) || self.contacts.is_given_up(id) {
            return None;
        }
        tracing::warn!(%id, attempt, "the worker of a build was killed; the build begins again");
        match worker::begin_again(&self.command, spec, attempt).await {
            Ok(handle) => {
                if !self.contacts.note(id, &handle)
                    && let Err(error) = handle.cancel()
                {
                    tracing::error!(%id, %error, "a build could not be cancelled");
                }
                Some(handle)
            }
            Err(error) => {
                tracing::error!(%id, error = %chain(&error), "a build could not be begun again");
                None
            }
        }
    }
}

/// Ends the build in `folder`, also when that cannot be written for a while: whoever follows its log waits for it.
async fn conclude_in_time(folder: &Path, cause: Cause) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut pause = CONCLUDE_PAUSE;
    for _ in 0..CONCLUDE_ATTEMPTS {
        let Err(error) = conclude(folder, cause.clone()).await else {
            return Ok(());
        };
        tracing::warn!(folder = %folder.display(), error = chain(&*error), "a build cannot be concluded yet");
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    conclude(folder, cause).await
}

/// Ends the build in `folder` if its worker is gone without a word.
pub(super) async fn conclude(
    folder: &Path,
    cause: Cause,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let folder = folder.to_owned();
    tokio::task::spawn_blocking(move || worker::conclude_as(&folder, cause)).await??;
    Ok(())
}
