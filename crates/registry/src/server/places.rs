//! How many requests carry something at a time: in all, and to the repositories of each owner.
//!
//! Every owner has a few places however many others have, and none has all: who sends slowly, or much, slows its own pushes only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ServerOptions;
use super::failure::Failure;

/// Who carries something at the moment.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    n_all: usize,
    by_owner: HashMap<String, usize>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    owner: Option<String>,
}

impl Places {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a request to a repository of `owner`.
    pub(super) fn take(
        self: &Arc<Self>,
        owner: Option<String>,
        options: &ServerOptions,
    ) -> Result<Place, Failure> {
        let mut taken = self.taken();
        let is_full = taken.n_all >= options.uploads_max;
        match &owner {
            None if is_full => return Err(Failure::too_many_uploads()),
            None => {}
            Some(owner) => {
                let n_of_owner = taken.by_owner.get(owner).copied().unwrap_or(0);
                let is_sure = n_of_owner < options.owner_uploads_min;
                let uploads_max = options.owner_uploads_max;
                if !is_sure && n_of_owner >= uploads_max {
                    return Err(Failure::too_many_of_owner("going on", uploads_max));
                }
                if !is_sure && is_full {
                    return Err(Failure::too_many_uploads());
                }
                taken.by_owner.insert(owner.clone(), n_of_owner + 1);
            }
        }
        taken.n_all += 1;
        Ok(Place {
            places: Arc::clone(self),
            owner,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.n_all = taken.n_all.saturating_sub(1);
        let Some(owner) = self.owner.take() else {
            return;
        };
        if let Some(n_of_owner) = taken.by_owner.get_mut(&owner) {
            *n_of_owner = n_of_owner.saturating_sub(1);
            if *n_of_owner == 0 {
                taken.by_owner.remove(&owner);
            }
        }
    }
}
