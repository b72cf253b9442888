//! Whose layers a build may take from the store without asking anybody.
//!
//! The store is everybody's, and a digest is no secret: who names another tenant's layer in a manifest of their own must not get it because it
//! happens to be here. Where tenants are kept apart, a layer that a registry is said to have is taken from the store once that
//! registry has said, to this tenant, that it has it. That is remembered. What a tenant's own builds have made nobody is asked for.

use oci::{Digest, Reference};
use registry::client::Client;
use store::Store;

use super::cache::digest_of;
use crate::event::{Failure, FailureKind};
use crate::failure::{failure, platform, registry as registry_failure};
use crate::spec::{BuildSpec, Readable};

/// Kind of the records of what was shown.
const SHOWN: &str = "shown";

/// What has to be shown to take a layer from the store.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    /// Whose; `None` where there is one tenant.
    tenant: Option<String>,
    /// Hosts that mean the embedded registry.
    embedded: Vec<String>,
    store: Store,
    pull: Client,
}

/// Whether a layer that is in the store already may be taken from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    /// It may.
    Enough,
    /// Only what was brought along.
    NotEnough,
}

impl Shown {
    pub(crate) fn new(spec: &BuildSpec, store: &Store, pull: &Client) -> Self {
        let registries = &spec.registries;
        let is_divided = registries.readable != Readable::default();
        Self {
            tenant: is_divided.then(|| spec.tenant.clone()),
            embedded: registries.embedded.clone(),
            store: store.clone(),
            pull: pull.clone(),
        }
    }

    /// Tells what somebody may have who brings a layer along, in a folder.
    pub(crate) fn stored(&self) -> Stored {
        match self.tenant {
            None => Stored::Enough,
            Some(_) => Stored::NotEnough,
        }
    }

    /// Sees to it that `origin` has the layer for this tenant.
    ///
    /// # Errors
    /// When it has not, or does not say so.
    pub(crate) async fn show(&self, origin: &Reference, digest: &Digest) -> Result<(), Failure> {
        let Some(tenant) = &self.tenant else {
            return Ok(());
        };
        let attempt = format!("look for layer {digest} of {}", origin.familiar());
        let missing = || {
            let message = format!("{attempt}: the registry does not have it");
            failure(FailureKind::BaseImage, message)
        };
        if self.embedded.iter().any(|host| host == origin.host()) {
            let found = self.store.has_blob(origin.repository(), digest);
            let found = found.map_err(|e| platform(&attempt, &e))?;
            return if found { Ok(()) } else { Err(missing()) };
        }
        // Of this registry, and no other: what one gives is not everybody's there.
        let place = (tenant, origin.host(), origin.repository());
        let key = digest_of(&(place, digest));
        if matches!(self.store.record(SHOWN, key.hex()), Ok(Some(_))) {
            return Ok(());
        }
        let found = self.pull.has_blob(origin, digest).await;
        let found = found.map_err(|e| registry_failure(&attempt, &e))?;
        found.ok_or_else(missing)?;
        let _asked_again = self.store.note_record(SHOWN, key.hex(), b"{}");
        Ok(())
    }
}
