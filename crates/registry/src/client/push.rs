//! Pushing images: blobs, then the manifest, then asking whether all of it is there.
//!
//! A registry that has said "created" is not believed before it has shown the manifest and every blob.

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::Method;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use oci::manifest::DOCUMENT_MAX_BYTES;
use oci::{Descriptor, Digest, Document, Manifest, Reference};
use reqwest::Response;

use super::auth::Scopes;
use super::call::{Call, content_digest};
use super::error::{Error, ErrorKind, Problem};
use super::pull::{check_digest, shown};
use super::retry::{Tries, retrying};
use super::source::BlobSource;
use super::upload::{Job, Look};
use super::{Client, Inner};
use crate::hosts::Endpoint;

/// How often a registry is asked whether a blob is there that it has just accepted: some need a moment.
const LOOKS_MAX: u32 = 3;
/// Blobs up to this size take longer to be asked for than to be sent.
const SMALL_BYTES: u64 = 64 << 10;
/// So many of them are pushed at the same time for each of the others.
const SMALL_PER_LARGE: usize = 2;
/// How often a manifest is sent that the registry finds damaged.
const MANIFEST_SENDS_MAX: u32 = 4;

/// An image that is ready to be pushed.
#[derive(Debug, Clone)]
pub struct ImageToPush {
    /// The manifest's bytes.
    pub manifest: Bytes,
    /// Its media type.
    pub media_type: String,
    /// The configuration and the layers that it names.
    pub blobs: Vec<BlobToPush>,
}

/// One blob of an image.
#[derive(Debug, Clone)]
pub struct BlobToPush {
    /// Its digest and size.
    pub descriptor: Descriptor,
    /// Where its bytes come from.
    pub source: BlobSource,
    /// Repositories of the same registry that may lend it.
    pub mount_from: Vec<Reference>,
    /// What is known of the registry.
    pub presence: Presence,
}

/// Whether a registry has a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Presence {
    /// It has to be asked.
    #[default]
    Unknown,
    /// It has said so a moment ago. It is asked again once the image is pushed, as for all blobs.
    Told,
}

impl Client {
    /// Pushes a manifest under the tag or digest of `reference` and returns its digest. Its blobs must be there.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, Error> {
        let pushed = async {
            let endpoint = self.origin(reference.host())?;
            self.inner
                .put_manifest(&endpoint, reference, media_type, bytes)
                .await
        };
        pushed.await.map_err(|problem| {
            let attempt = format!("push manifest {}", shown(reference));
            problem.into_error(attempt, reference.host())
        })
    }

    /// Reads the manifest back by its digest and asks for each of its blobs. Until this succeeds, nothing was pushed.
    pub async fn verify_pushed(
        &self,
        reference: &Reference,
        digest: &Digest,
        manifest: &Manifest,
    ) -> Result<(), Error> {
        let missing = self.missing(reference, digest, manifest).await?;
        match missing.into_iter().next() {
            None => Ok(()),
            Some(digest) => Err(not_there(reference, "blob", digest)),
        }
    }

    /// Pushes an image: its blobs side by side, its manifest, and then verifies that the registry has all of it; blobs that it
    /// lost are sent once more. `progress` is told a blob's digest and how many of its bytes were sent.
    pub async fn push_image(
        &self,
        reference: &Reference,
        image: &ImageToPush,
        progress: &(dyn Fn(&Digest, u64) + Send + Sync),
    ) -> Result<Digest, Error> {
        let manifest = match Document::parse(Some(&image.media_type), &image.manifest) {
            Ok(Document::Manifest(manifest)) => manifest,
            Ok(Document::Index(_)) => {
                let problem = Problem::Contradiction("it is an index".to_owned());
                return Err(problem.into_error(push_attempt(reference), reference.host()));
            }
            Err(error) => {
                let problem = Problem::Document(error);
                return Err(problem.into_error(push_attempt(reference), reference.host()));
            }
        };
        let all = image.blobs.iter();
        let all: Vec<&BlobToPush> = all
            .filter(|blob| blob.presence == Presence::Unknown)
            .collect();
        self.push_blobs(reference, &all, Look::First, progress)
            .await?;
        let pushed = self.push_manifest(reference, &image.media_type, &image.manifest);
        let (digest, missing) = match pushed.await {
            Ok(digest) => {
                let missing = self.missing(reference, &digest, &manifest).await?;
                (digest, missing)
            }
            Err(error) if is_about_blobs(&error) => {
                tracing::warn!(%error, "the registry misses blobs that it has accepted");
                let blobs = image
                    .blobs
                    .iter()
                    .map(|blob| blob.descriptor.digest.clone());
                (Digest::sha256(&image.manifest), blobs.collect())
            }
            Err(error) => return Err(error),
        };
        if missing.is_empty() {
            return Ok(digest);
        }
        let again = image.blobs.iter();
        let again: Vec<&BlobToPush> = again
            .filter(|blob| missing.contains(&blob.descriptor.digest))
            .collect();
        self.push_blobs(reference, &again, Look::Distrust, progress)
            .await?;
        let pushed = self.push_manifest(reference, &image.media_type, &image.manifest);
        let digest = pushed.await?;
        self.verify_pushed(reference, &digest, &manifest).await?;
        Ok(digest)
    }

    /// Pushes blobs that an image needs, side by side, before the image itself is pushed.
    pub async fn push_beforehand(
        &self,
        reference: &Reference,
        blobs: &[BlobToPush],
    ) -> Result<(), Error> {
        let blobs: Vec<&BlobToPush> = blobs.iter().collect();
        self.push_blobs(reference, &blobs, Look::First, &|_, _| ())
            .await
    }

    async fn push_blobs(
        &self,
        reference: &Reference,
        blobs: &[&BlobToPush],
        look: Look,
        progress: &(dyn Fn(&Digest, u64) + Send + Sync),
    ) -> Result<(), Error> {
        let n_parallel = self.inner.options.parallel_uploads.max(1);
        let push_some = |is_small: bool, n_parallel| {
            let some = blobs
                .iter()
                .filter(move |blob| (blob.descriptor.size <= SMALL_BYTES) == is_small);
            let pushes = some.map(|blob| self.push_one(reference, blob, look, progress));
            // Collected first: a stream over borrowing closures is not Send in general.
            let pushes: Vec<_> = pushes.collect();
            futures_util::stream::iter(pushes)
                .buffer_unordered(n_parallel)
                .try_collect::<()>()
        };
        let large = push_some(false, n_parallel);
        let small = push_some(true, SMALL_PER_LARGE * n_parallel);
        futures_util::try_join!(large, small).map(drop)
    }

    async fn push_one(
        &self,
        reference: &Reference,
        blob: &BlobToPush,
        look: Look,
        progress: &(dyn Fn(&Digest, u64) + Send + Sync),
    ) -> Result<(), Error> {
        let digest = &blob.descriptor.digest;
        let pushed = async {
            let endpoint = self.origin(reference.host())?;
            let job = Job {
                inner: &self.inner,
                endpoint: &endpoint,
                repository: reference,
                descriptor: &blob.descriptor,
                source: &blob.source,
                progress: &|n_bytes| progress(digest, n_bytes),
            };
            job.run(&blob.mount_from, look).await
        };
        pushed.await.map(drop).map_err(|problem| {
            let attempt = format!("push blob {digest} to {}", reference.repository());
            problem.into_error(attempt, reference.host())
        })
    }

    /// Returns the blobs that the registry does not show; fails when it does not show the manifest.
    async fn missing(
        &self,
        reference: &Reference,
        digest: &Digest,
        manifest: &Manifest,
    ) -> Result<Vec<Digest>, Error> {
        let in_error = |problem: Problem| {
            let attempt = format!("verify what was pushed as {}", shown(reference));
            problem.into_error(attempt, reference.host())
        };
        let endpoint = self.origin(reference.host()).map_err(in_error)?;
        let by_digest = reference.with_digest(digest.clone());
        let inner = &*self.inner;
        let policy = inner.policy(&endpoint);
        let mut tries = Tries::default();
        for n_looks in 1.. {
            let read = retrying(policy, || inner.manifest_once(&endpoint, &by_digest)).await;
            match read {
                Ok(_) => break,
                Err(problem) if problem.kind() == ErrorKind::NotFound => {
                    if n_looks == LOOKS_MAX {
                        return Err(not_there(reference, "manifest", digest.clone()));
                    }
                    tries.pause(policy).await;
                }
                Err(problem) => return Err(in_error(problem)),
            }
        }
        let blobs = std::iter::once(&manifest.config).chain(&manifest.layers);
        let looks = blobs.map(|blob| self.is_missing(&endpoint, reference, blob));
        let looks: Vec<_> = looks.collect();
        let n_parallel = inner.options.parallel_uploads.max(1);
        futures_util::stream::iter(looks)
            .buffered(n_parallel)
            .try_filter_map(|missing| std::future::ready(Ok(missing)))
            .try_collect()
            .await
            .map_err(in_error)
    }

    async fn is_missing(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        blob: &Descriptor,
    ) -> Result<Option<Digest>, Problem> {
        let scopes = Scopes::pull(reference.repository());
        let inner = &*self.inner;
        let mut tries = Tries::default();
        for _ in 1..=LOOKS_MAX {
            let found = inner.stat_blob(endpoint, &scopes, reference, &blob.digest);
            match found.await? {
                Some(size) if size.is_none_or(|size| size == blob.size) => return Ok(None),
                _ => tries.pause(inner.policy(endpoint)).await,
            }
        }
        Ok(Some(blob.digest.clone()))
    }
}

impl Inner {
    async fn put_manifest(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, Problem> {
        if bytes.len() > DOCUMENT_MAX_BYTES {
            return Err(Problem::TooLarge {
                what: "the manifest",
                limit_bytes: DOCUMENT_MAX_BYTES as u64,
            });
        }
        if let Some(digest) = reference.digest() {
            check_digest("the manifest", digest, bytes)?;
        }
        let scopes = Scopes::push(reference.repository());
        let path = format!(
            "{}/manifests/{}",
            reference.repository(),
            reference.manifest_key()
        );
        let content_type = HeaderValue::from_str(media_type);
        let content_type = content_type.map_err(|_| Problem::Header("Content-Type"))?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, content_type);
        let call = Call {
            endpoint,
            scopes: &scopes,
            method: Method::PUT,
            url: Self::url(endpoint, &path)?,
            headers,
        };
        let body = Bytes::copy_from_slice(bytes);
        let response = self.send_manifest(&call, &body).await?;
        let claimed = content_digest(response.headers())?;
        if let Some(claimed) = &claimed {
            check_digest("the manifest", claimed, bytes)?;
        }
        let asked = reference.digest().cloned();
        Ok(asked.unwrap_or_else(|| Digest::sha256(bytes)))
    }

    /// Sends a manifest. `DIGEST_INVALID` is tried again, for we have checked the digest: registries that write into a file which
    /// another push of the same manifest is reading answer it (docker-registry 2.8 on a file system does).
    async fn send_manifest(&self, call: &Call<'_>, body: &Bytes) -> Result<Response, Problem> {
        let mut tries = Tries::default();
        for _ in 1..MANIFEST_SENDS_MAX {
            match self.send(call, body, self.options.finish_timeout).await {
                Err(Problem::Status { entry, .. }) if entry.code == "DIGEST_INVALID" => {
                    tries.pause(self.policy(call.endpoint)).await;
                }
                answer => return answer,
            }
        }
        self.send(call, body, self.options.finish_timeout).await
    }
}

fn is_about_blobs(error: &Error) -> bool {
    matches!(error.code(), Some("MANIFEST_BLOB_UNKNOWN" | "BLOB_UNKNOWN"))
}

fn push_attempt(reference: &Reference) -> String {
    format!("push image {}", shown(reference))
}

fn not_there(reference: &Reference, what: &'static str, digest: Digest) -> Error {
    let problem = Problem::NotThere { what, digest };
    problem.into_error(push_attempt(reference), reference.host())
}
