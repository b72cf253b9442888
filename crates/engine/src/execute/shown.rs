//! Whose layers a build may take from the store without asking anybody.
//!
//! The store is everybody's, and a digest is no secret: who names another tenant's layer in a manifest of their own must not get it because it
//! happens to be here. Where tenants are kept apart, a layer that a registry is said to have is taken from the store once that
//! registry has sent its bytes to this tenant. That it says to have it proves nothing: the registry may be the tenant's own. That is
//! remembered. What a tenant's own builds have made nobody is asked for.

use oci::{Descriptor, Digest, Reference};
use registry::client::Client;
use store::Store;

use super::cache::digest_of;
use crate::event::{Failure, FailureKind};
use crate::failure::{failure, registry as registry_failure};
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
    /// When it has not, or what it sends is something else.
    pub(crate) async fn show(&self, origin: &Reference, layer: &Descriptor) -> Result<(), Failure> {
        if self.is_shown(origin, &layer.digest) {
            return Ok(());
        }
        let attempt = format!("look for layer {} of {}", layer.digest, origin.familiar());
        if self.is_embedded(origin) {
            let message = format!("{attempt}: the registry does not have it");
            return Err(failure(FailureKind::BaseImage, message));
        }
        let in_failure = |e| registry_failure(&attempt, &e);
        let stream = self.pull.blob_stream(origin, layer).await;
        let mut stream = stream.map_err(in_failure)?;
        while stream.chunk().await.map_err(in_failure)?.is_some() {}
        self.note(origin, &layer.digest);
        Ok(())
    }

    /// Tells whether that is known already.
    pub(crate) fn is_shown(&self, origin: &Reference, digest: &Digest) -> bool {
        let Some(key) = self.key(origin, digest) else {
            return true;
        };
        if self.is_embedded(origin) {
            let found = self.store.has_blob(origin.repository(), digest);
            return found.unwrap_or(false);
        }
        matches!(self.store.record(SHOWN, key.hex()), Ok(Some(_)))
    }

    /// Remembers that `origin` has sent the layer.
    pub(crate) fn note(&self, origin: &Reference, digest: &Digest) {
        if let Some(key) = self.key(origin, digest) {
            let _asked_again = self.store.note_record(SHOWN, key.hex(), b"{}");
        }
    }

    /// Of this registry, and no other: what one gives is not everybody's there. `None` where nothing has to be shown.
    fn key(&self, origin: &Reference, digest: &Digest) -> Option<Digest> {
        let tenant = self.tenant.as_ref()?;
        let place = (tenant, origin.host(), origin.repository());
        Some(digest_of(&(place, digest, "bytes")))
    }

    fn is_embedded(&self, origin: &Reference) -> bool {
        self.embedded.iter().any(|host| host == origin.host())
    }
}
