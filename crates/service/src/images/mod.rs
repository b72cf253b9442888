//! What the service itself asks registries: which digest a reference has, and whether an image exists.
//!
//! Two kinds of questions, never mixed: for a caller ([`Images::resolve`], with what the caller may use; [`Images::resolve_recent`] where
//! an answer may be a moment old), and on the service's own account ([`Images::existing`], with the service's own credentials, for its own repositories only). Images of the embedded
//! registry are looked up in the store, not over a socket. No layer is read here.

mod cache;
pub mod credentials;
mod recent;

use std::sync::Arc;
use std::time::Duration;

use oci::{Digest, Document, Platform, Reference};
use registry::client::Client;
use registry::keychain::Keychain;
use store::Store;

use self::cache::{Audience, Cache};
use self::credentials::{Credentials, CredentialsError};
use self::recent::{Granted, Key, Recent};
use crate::access::{OwnHosts, Rights, Tenant, publish_keychain, pull_keychain};
use crate::failure::{Blame, Failure};

/// Longest time that one question may take, whatever the registry asks us to wait.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(90);

/// Asks registries.
#[derive(Debug)]
pub struct Images {
    client: Client,
    credentials: Arc<Credentials>,
    own: OwnHosts,
    embedded: Embedded,
    cache: Cache,
    recent: Recent,
    now_ms: fn() -> u64,
}

/// The registry in this process.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// What it serves.
    pub store: Store,
    /// The canonical hosts it is reached under.
    pub hosts: Vec<String>,
}

/// What [`Images`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// Reaches registries; without credentials.
    pub client: Client,
    /// The service's own.
    pub credentials: Credentials,
    /// The hosts of its repositories.
    pub own: OwnHosts,
    /// The registry in this process.
    pub embedded: Embedded,
    /// How often what is kept at hand is renewed.
    pub interval: Duration,
    /// How long an answer of a registry is given again to who has asked for it.
    pub fresh_for: Duration,
    /// Random bytes of this process.
    pub secret: [u8; 32],
    /// The time, in Unix milliseconds.
    pub now_ms: fn() -> u64,
}

/// What a build may use.
#[derive(Debug, Clone)]
pub struct Keychains {
    /// To pull bases.
    pub pull: Keychain,
    /// To publish results.
    pub publish: Keychain,
}

impl Images {
    /// Returns images as `parts` reach them.
    pub fn new(parts: Parts) -> Self {
        Self {
            client: parts.client,
            credentials: Arc::new(parts.credentials),
            own: parts.own,
            embedded: parts.embedded,
            cache: Cache::new(parts.interval),
            recent: Recent::new(parts.fresh_for, &parts.secret),
            now_ms: parts.now_ms,
        }
    }

    /// Returns the hosts that mean the embedded registry.
    pub fn embedded_hosts(&self) -> &[String] {
        &self.embedded.hosts
    }

    /// Returns what a build with these rights may use.
    pub async fn keychains(&self, rights: &Rights) -> Result<Keychains, Failure> {
        let hosts: Vec<&str> = rights.named_hosts(&self.own).into_iter().collect();
        let service = self.service_keychain(&hosts).await?;
        Ok(Keychains {
            pull: pull_keychain(rights, &self.own, &service),
            publish: publish_keychain(&self.own, &service),
        })
    }

    /// Returns the digest form of `reference`, for linux/amd64 when it is an index, as the holder of `rights` may know it now.
    pub async fn resolve(
        &self,
        reference: &Reference,
        rights: &Rights,
    ) -> Result<Reference, Failure> {
        if let Some(resolved) = self.at_hand(reference, rights).await? {
            return Ok(resolved);
        }
        let service = self.service_keychain(&[reference.host()]).await?;
        let keychain = pull_keychain(rights, &self.own, &service).only(&[reference.host()]);
        ask(&self.client, reference, keychain).await
    }

    /// Returns what [`Self::resolve`] does, or did a moment ago for the same tenant with the same credentials.
    pub async fn resolve_recent(
        &self,
        tenant: &Tenant,
        reference: &Reference,
        rights: &Rights,
    ) -> Result<Reference, Failure> {
        if let Some(resolved) = self.at_hand(reference, rights).await? {
            return Ok(resolved);
        }
        let granted = if rights.may_use(reference.host(), &self.own) {
            Granted::File(self.credentials.stamp().map_err(no_credentials)?)
        } else {
            Granted::Nothing
        };
        let own = rights.additional.get(reference.host());
        let key = Key {
            tenant: tenant.clone(),
            image: format!("{}@{}", reference.name(), reference.manifest_key()),
            granted,
            own: own.map(|credential| self.recent.print(credential)),
        };
        let asking = || {
            let (client, credentials) = (self.client.clone(), Arc::clone(&self.credentials));
            let (reference, rights, own) = (reference.clone(), rights.clone(), self.own.clone());
            async move {
                let host = reference.host();
                let service = credentials.keychain(&[host]).await;
                let service = service.map_err(no_credentials)?;
                let keychain = pull_keychain(&rights, &own, &service).only(&[host]);
                ask(&client, &reference, keychain).await
            }
        };
        self.recent.answer(key, asking).await
    }

    /// Returns what can be said of `reference` without asking a registry elsewhere.
    async fn at_hand(
        &self,
        reference: &Reference,
        rights: &Rights,
    ) -> Result<Option<Reference>, Failure> {
        // In the same words as for one that is not there: nobody learns what others have.
        if self.is_embedded(reference) && !rights.readable.allows(reference.repository()) {
            return Err(missing(reference, NOT_EMBEDDED));
        }
        if let Some((resolved, audience)) = self.cache.get(reference, (self.now_ms)())
            && (audience == Audience::Everybody || rights.may_use(reference.host(), &self.own))
        {
            return Ok(Some(resolved));
        }
        if self.is_embedded(reference) {
            return self.resolve_embedded(reference).await.map(Some);
        }
        Ok(None)
    }

    /// Returns the digest of an image in one of the service's own repositories, `None` when there is none.
    pub async fn existing(&self, reference: &Reference) -> Result<Option<Digest>, Failure> {
        if self.is_embedded(reference) {
            return self.embedded_digest(reference).await;
        }
        let service = self.service_keychain(&[reference.host()]).await?;
        let keychain = publish_keychain(&self.own, &service);
        let client = self.client.with_keychain(keychain);
        let found = limited(client.head(reference))
            .await
            .map_err(|TooLong| too_long("cannot check if the image is already built", reference))?;
        let found = found.map_err(Failure::look_up)?;
        Ok(found.map(|descriptor| descriptor.digest))
    }

    /// Looks `reference` up again with the service's credentials and keeps the answer at hand.
    pub async fn keep_at_hand(&self, reference: &Reference) -> Result<(), Failure> {
        let (resolved, audience) = if self.is_embedded(reference) {
            (self.resolve_embedded(reference).await?, Audience::Everybody)
        } else {
            let keychain = self.service_keychain(&[reference.host()]).await?;
            let keychain = keychain.only(&[reference.host()]);
            let audience = match keychain.get(reference.host()) {
                Some(_) => Audience::Entitled,
                None => Audience::Everybody,
            };
            (ask(&self.client, reference, keychain).await?, audience)
        };
        self.cache
            .put(reference, resolved, audience, (self.now_ms)());
        Ok(())
    }

    async fn resolve_embedded(&self, reference: &Reference) -> Result<Reference, Failure> {
        let (store, repository) = (
            self.embedded.store.clone(),
            reference.repository().to_owned(),
        );
        let key = reference.manifest_key();
        let found = tokio::task::spawn_blocking(move || store.manifest(&repository, &key)).await;
        let found = found
            .map_err(|error| Failure::platform("cannot resolve image", error))?
            .map_err(|error| Failure::platform("cannot resolve image", error))?;
        let Some((digest, bytes)) = found else {
            return Err(missing(reference, NOT_EMBEDDED));
        };
        let document = Document::parse(None, &bytes)
            .map_err(|error| Failure::platform("cannot resolve image", error))?;
        Ok(reference.with_digest(choose(reference, digest, &document)?))
    }

    async fn embedded_digest(&self, reference: &Reference) -> Result<Option<Digest>, Failure> {
        const FAILED: &str = "cannot check if the image is already built";
        let (store, repository) = (
            self.embedded.store.clone(),
            reference.repository().to_owned(),
        );
        let key = reference.manifest_key();
        tokio::task::spawn_blocking(move || store.manifest_digest(&repository, &key))
            .await
            .map_err(|error| Failure::platform(FAILED, error))?
            .map_err(|error| Failure::platform(FAILED, error))
    }

    async fn service_keychain(&self, hosts: &[&str]) -> Result<Keychain, Failure> {
        let keychain = self.credentials.keychain(hosts).await;
        keychain.map_err(no_credentials)
    }

    /// Tells whether it is the embedded registry that has an image or not.
    pub(crate) fn is_embedded(&self, reference: &Reference) -> bool {
        self.embedded
            .hosts
            .iter()
            .any(|host| host == reference.host())
    }
}

/// Asks the registry of `reference`.
async fn ask(
    client: &Client,
    reference: &Reference,
    keychain: Keychain,
) -> Result<Reference, Failure> {
    let client = client.with_keychain(keychain);
    let resolved = limited(client.resolve(reference))
        .await
        .map_err(|TooLong| too_long("cannot resolve image", reference))?
        .map_err(Failure::resolve)?;
    let digest = choose(reference, resolved.descriptor.digest, &resolved.document)?;
    Ok(reference.with_digest(digest))
}

fn no_credentials(error: CredentialsError) -> Failure {
    Failure::platform("the service's registry credentials cannot be read", error)
}

/// Returns which manifest is meant: the document itself, or the index's entry for linux/amd64.
fn choose(reference: &Reference, digest: Digest, document: &Document) -> Result<Digest, Failure> {
    match document {
        Document::Manifest(_) => Ok(digest),
        Document::Index(index) => index
            .for_platform(&Platform::linux_amd64())
            .map(|descriptor| descriptor.digest.clone())
            .ok_or_else(|| missing(reference, "it has no manifest for linux/amd64")),
    }
}

fn missing(reference: &Reference, why: &str) -> Failure {
    let text = format!(
        "cannot resolve image: base image does not exist: {}: {why}",
        reference.familiar()
    );
    Failure::new(Blame::Missing, text)
}

/// Why an image of the embedded registry is missing.
const NOT_EMBEDDED: &str = "it is not in the embedded registry";

struct TooLong;

async fn limited<T>(question: impl Future<Output = T>) -> Result<T, TooLong> {
    tokio::time::timeout(QUESTION_TIMEOUT, question)
        .await
        .map_err(|_| TooLong)
}

fn too_long(what: &str, reference: &Reference) -> Failure {
    let text = format!(
        "{what}: {} gave no answer within {}s",
        reference.host(),
        QUESTION_TIMEOUT.as_secs()
    );
    Failure::new(Blame::Registry, text)
}
