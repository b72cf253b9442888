//! Makes the layers of steps durable, several at a time and behind the build's back.
//!
//! Waiting for the disk once for each of many small layers would take longer than making them, and hold up the steps that run meanwhile.
//! Layers are gathered for [`GATHERED_FOR`] and then waited for together; what a worker that is killed loses is no more than that.
//! The end of a build waits for all of them ([`super::depot::Depot::settle`]).

use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oci::Digest;
use store::{Ingest, Store};
use tokio::task::JoinHandle;

use crate::event::Failure;
use crate::failure::platform;

/// How long layers are gathered.
const GATHERED_FOR: Duration = Duration::from_millis(500);
/// So many are waited for at once, whenever they came: each is an open file.
const GATHERED_MAX: usize = 64;

/// A layer that was written, and what is to be done once it is durable.
struct Pending {
    ingest: Ingest,
    digest: Digest,
    then: Box<dyn FnOnce() + Send>,
}

/// Gathers layers.
#[derive(Default)]
pub(crate) struct Committer {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    pending: Vec<Pending>,
    working: Option<JoinHandle<()>>,
    is_closing: bool,
    failed: Option<Failure>,
}

impl Committer {
    /// Takes a layer; `then` is called once it is durable. Must be called within the runtime.
    pub(crate) fn add(
        self: &Arc<Self>,
        store: &Store,
        (ingest, digest): (Ingest, Digest),
        then: impl FnOnce() + Send + 'static,
    ) {
        let mut state = self.lock();
        state.pending.push(Pending {
            ingest,
            digest,
            then: Box::new(then),
        });
        if state.pending.len() >= GATHERED_MAX {
            self.more.notify_all();
        }
        if state.working.is_none() {
            let (this, store) = (Arc::clone(self), store.clone());
            state.working = Some(tokio::task::spawn_blocking(move || this.work(&store)));
        }
    }

    /// Waits until everything that was added is durable.
    pub(crate) async fn settle(&self) -> Result<(), Failure> {
        let working = {
            let mut state = self.lock();
            state.is_closing = true;
            self.more.notify_all();
            state.working.take()
        };
        if let Some(working) = working {
            working
                .await
                .map_err(|e| platform("make layers durable", &e))?;
        }
        let mut state = self.lock();
        state.is_closing = false;
        state.failed.take().map_or(Ok(()), Err)
    }

    /// Makes layers durable until there are none left, or none for a while.
    fn work(&self, store: &Store) {
        loop {
            let batch = {
                let is_to_wait =
                    |state: &mut State| !state.is_closing && state.pending.len() < GATHERED_MAX;
                let gathered = self
                    .more
                    .wait_timeout_while(self.lock(), GATHERED_FOR, is_to_wait);
                let mut state = gathered.unwrap_or_else(PoisonError::into_inner).0;
                if state.pending.is_empty() {
                    state.working = None;
                    return;
                }
                mem::take(&mut state.pending)
            };
            if let Err(failure) = commit(store, batch) {
                self.lock().failed.get_or_insert(failure);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn commit(store: &Store, batch: Vec<Pending>) -> Result<(), Failure> {
    let mut thens = Vec::with_capacity(batch.len());
    let mut layers = Vec::with_capacity(batch.len());
    for pending in batch {
        layers.push((pending.ingest, pending.digest));
        thens.push(pending.then);
    }
    let mut committed = Ok(());
    for (one, then) in store.commit_all(&layers).into_iter().zip(thens) {
        match one {
            Ok(()) => then(),
            Err(error) => committed = committed.and(Err(platform("write a layer", &error))),
        }
    }
    committed
}
