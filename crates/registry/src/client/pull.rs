//! Reading manifests, and one platform's image out of them.
//!
//! Every document is verified against the digest that it was asked by, the digest that its answer claims, and the descriptor
//! that led to it. What a tag meant is asked once: everything after goes by digest.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use oci::config::CONFIG_MAX_BYTES;
use oci::manifest::DOCUMENT_MAX_BYTES;
use oci::{
    Descriptor, Digest, Document, ImageConfig, Index, Manifest, Platform, Reference, media_type,
};

use super::auth::Scopes;
use super::body::read_bounded;
use super::call::{Call, content_digest, content_length};
use super::error::{Error, ErrorKind, Problem};
use super::retry::retrying;
use super::{Client, Inner};
use crate::hosts::Endpoint;

/// A manifest or index, verified.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Its digest, size and media type.
    pub descriptor: Descriptor,
    /// The bytes that have this digest.
    pub bytes: Bytes,
    /// What they say.
    pub document: Document,
}

/// One platform's image without its layers.
#[derive(Debug, Clone)]
pub struct ResolvedImage {
    /// The index that led to it, if the reference meant one.
    pub index: Option<Descriptor>,
    /// The manifest's digest, size and media type.
    pub descriptor: Descriptor,
    /// The manifest.
    pub manifest: Manifest,
    /// Its bytes.
    pub manifest_bytes: Bytes,
    /// The configuration.
    pub config: ImageConfig,
    /// Its bytes.
    pub config_bytes: Bytes,
}

impl Client {
    /// Reads the manifest or index that `reference` means, by its digest if it has one.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved, Error> {
        let attempt = || format!("read manifest {}", shown(reference));
        let endpoints = self
            .pull_endpoints(reference.host())
            .map_err(|problem| problem.into_error(attempt(), reference.host()))?;
        let inner = &*self.inner;
        let mut failed = None;
        for endpoint in &endpoints {
            let policy = inner.policy(endpoint);
            match retrying(policy, || inner.manifest_once(endpoint, reference)).await {
                Ok(resolved) => return Ok(resolved),
                Err(problem) => {
                    let error = problem.into_error(attempt(), &endpoint.host);
                    if endpoint.is_mirror {
                        tracing::warn!(%error, "the mirror does not help");
                    }
                    failed = Some(error);
                }
            }
        }
        Err(failed.unwrap_or_else(|| no_endpoint(attempt(), reference)))
    }

    /// Reads the manifest or index that `reference` means; the same as [`Self::resolve`].
    pub async fn manifest(&self, reference: &Reference) -> Result<Resolved, Error> {
        self.resolve(reference).await
    }

    /// Asks whether the registry itself, not a mirror, has the manifest, and which one it is.
    pub async fn head(&self, reference: &Reference) -> Result<Option<Descriptor>, Error> {
        let attempt = || format!("look up manifest {}", shown(reference));
        let found = match self.origin(reference.host()) {
            Ok(endpoint) => self.inner.head_manifest(&endpoint, reference).await,
            Err(problem) => Err(problem),
        };
        match found {
            Ok(found) => Ok(found),
            Err(problem) if problem.kind() == ErrorKind::NotFound => Ok(None),
            Err(problem) => Err(problem.into_error(attempt(), reference.host())),
        }
    }

    /// Reads the image that `reference` means on `platform`: manifest and configuration, checked against each other.
    ///
    /// A reference to a single manifest is taken as it is, whatever its configuration says it runs on: that is for the caller
    /// to judge.
    pub async fn image(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<ResolvedImage, Error> {
        let in_error = |problem: Problem| {
            problem.into_error(format!("read image {}", shown(reference)), reference.host())
        };
        let top = self.resolve(reference).await?;
        let (index, resolved) = match &top.document {
            Document::Manifest(_) => (None, top),
            Document::Index(index) => {
                let chosen = choose(index, platform).map_err(in_error)?;
                let by_digest = reference.with_digest(chosen.digest.clone());
                let resolved = self.resolve(&by_digest).await?;
                check_size("the manifest", chosen.size, resolved.descriptor.size)
                    .map_err(in_error)?;
                (Some(top.descriptor), resolved)
            }
        };
        let Document::Manifest(manifest) = resolved.document else {
            let problem = Problem::Contradiction("an index within an index".to_owned());
            return Err(in_error(problem));
        };
        check_config_type(&manifest).map_err(in_error)?;
        let config_bytes = self
            .blob_bytes(reference, &manifest.config, CONFIG_MAX_BYTES)
            .await?;
        let config: ImageConfig =
            serde_json::from_slice(&config_bytes).map_err(|e| in_error(Problem::Config(e)))?;
        check_layers(&manifest, &config).map_err(in_error)?;
        Ok(ResolvedImage {
            index,
            descriptor: resolved.descriptor,
            manifest,
            manifest_bytes: resolved.bytes,
            config,
            config_bytes,
        })
    }

    /// Asks the registry itself whether it has a blob. Returns its size.
    pub async fn has_blob(
        &self,
        repository: &Reference,
        digest: &Digest,
    ) -> Result<Option<u64>, Error> {
        let stat = async {
            let endpoint = self.origin(repository.host())?;
            let path = format!("{}{}", endpoint.prefix, repository.repository());
            let scopes = Scopes::pull(&path);
            let found = self.inner.stat_blob(&endpoint, &scopes, repository, digest);
            match found.await? {
                None => Ok(None),
                Some(Some(size)) => Ok(Some(size)),
                Some(None) => Err(Problem::Header("Content-Length")),
            }
        };
        let attempt = || format!("look up blob {digest} of {}", repository.repository());
        stat.await
            .map_err(|problem: Problem| problem.into_error(attempt(), repository.host()))
    }
}

impl Inner {
    pub(crate) async fn manifest_once(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
    ) -> Result<Resolved, Problem> {
        let call = ManifestCall::new(endpoint, reference);
        let mut response = self.get_once(&call.of(Method::GET)?).await?;
        let claimed = content_digest(response.headers())?;
        let content_type = content_type(response.headers());
        let what = "the manifest";
        let bytes = read_bounded(&mut response, DOCUMENT_MAX_BYTES, what, &self.options).await?;
        // The digest that was asked for, when there was one, is what everybody else knows it by.
        let asked = reference.digest();
        for expected in [asked, claimed.as_ref()].into_iter().flatten() {
            check_digest(what, expected, &bytes)?;
        }
        let digest = asked
            .cloned()
            .or(claimed)
            .unwrap_or_else(|| Digest::sha256(&bytes));
        let document =
            Document::parse(content_type.as_deref(), &bytes).map_err(Problem::Document)?;
        Ok(Resolved {
            descriptor: descriptor(document.media_type(), digest, bytes.len() as u64),
            bytes: bytes.into(),
            document,
        })
    }

    async fn head_manifest(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
    ) -> Result<Option<Descriptor>, Problem> {
        let call = ManifestCall::new(endpoint, reference);
        let response = match self.get(&call.of(Method::HEAD)?).await {
            Ok(response) => response,
            Err(problem) if problem.status() == Some(StatusCode::METHOD_NOT_ALLOWED) => {
                return self.get_descriptor(endpoint, reference).await;
            }
            Err(problem) => return Err(problem),
        };
        let claimed = content_digest(response.headers())?;
        if let (Some(asked), Some(claimed)) = (reference.digest(), &claimed)
            && asked.algorithm() == claimed.algorithm()
            && asked != claimed
        {
            return Err(Problem::DigestMismatch {
                what: "the manifest",
                expected: asked.clone(),
                actual: claimed.clone(),
            });
        }
        let digest = reference.digest().cloned().or(claimed);
        let size = content_length(response.headers());
        match (digest, size, content_type(response.headers())) {
            (Some(digest), Some(size), Some(media_type)) => {
                Ok(Some(descriptor(&media_type, digest, size)))
            }
            // A registry that is too terse is asked for the whole.
            _ => self.get_descriptor(endpoint, reference).await,
        }
    }

    async fn get_descriptor(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
    ) -> Result<Option<Descriptor>, Problem> {
        let policy = self.policy(endpoint);
        let resolved = retrying(policy, || self.manifest_once(endpoint, reference)).await?;
        Ok(Some(resolved.descriptor))
    }

    /// Asks for a blob: not there, there, or there with its size.
    pub(crate) async fn stat_blob(
        &self,
        endpoint: &Endpoint,
        scopes: &Scopes,
        repository: &Reference,
        digest: &Digest,
    ) -> Result<Option<Option<u64>>, Problem> {
        let call = Call {
            endpoint,
            scopes,
            method: Method::HEAD,
            url: Self::url(endpoint, &blob_path(repository, digest))?,
            headers: HeaderMap::new(),
        };
        match self.get(&call).await {
            Ok(response) => Ok(Some(content_length(response.headers()))),
            Err(problem) if problem.kind() == ErrorKind::NotFound => Ok(None),
            Err(problem) => Err(problem),
        }
    }
}

struct ManifestCall<'a> {
    endpoint: &'a Endpoint,
    reference: &'a Reference,
    scopes: Scopes,
}

impl<'a> ManifestCall<'a> {
    fn new(endpoint: &'a Endpoint, reference: &'a Reference) -> Self {
        let path = format!("{}{}", endpoint.prefix, reference.repository());
        Self {
            endpoint,
            reference,
            scopes: Scopes::pull(&path),
        }
    }

    fn of(&self, method: Method) -> Result<Call<'_>, Problem> {
        let mut headers = HeaderMap::new();
        for accepted in media_type::ACCEPTED_DOCUMENTS {
            headers.append(ACCEPT, HeaderValue::from_static(accepted));
        }
        let key = self.reference.manifest_key();
        let path = format!("{}/manifests/{key}", self.reference.repository());
        Ok(Call {
            endpoint: self.endpoint,
            scopes: &self.scopes,
            method,
            url: Inner::url(self.endpoint, &path)?,
            headers,
        })
    }
}

/// Returns the path of a blob within the API.
pub(crate) fn blob_path(repository: &Reference, digest: &Digest) -> String {
    format!("{}/blobs/{digest}", repository.repository())
}

/// Checks `bytes` against `expected`.
pub(crate) fn check_digest(
    what: &'static str,
    expected: &Digest,
    bytes: &[u8],
) -> Result<(), Problem> {
    let mut hasher = expected.hasher();
    hasher.update(bytes);
    let actual = hasher.finish();
    if actual == *expected {
        return Ok(());
    }
    Err(Problem::DigestMismatch {
        what,
        expected: expected.clone(),
        actual,
    })
}

/// Checks one size against another.
pub(crate) fn check_size(what: &'static str, expected: u64, actual: u64) -> Result<(), Problem> {
    if expected == actual {
        return Ok(());
    }
    Err(Problem::SizeMismatch {
        what,
        expected,
        actual,
    })
}

/// Returns `repository:tag` or `repository@digest`, as error texts show it: the host stands beside it anyway.
pub(crate) fn shown(reference: &Reference) -> String {
    match reference.digest() {
        Some(digest) => format!("{}@{digest}", reference.repository()),
        None => format!("{}:{}", reference.repository(), reference.tag_or_latest()),
    }
}

pub(crate) fn no_endpoint(attempt: String, reference: &Reference) -> Error {
    let problem = Problem::Refused("a registry without an address".to_owned());
    problem.into_error(attempt, reference.host())
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        platform: None,
        annotations: BTreeMap::new(),
    }
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let essence = value.split(';').next().unwrap_or_default();
    Some(essence.trim().to_ascii_lowercase())
}

fn choose<'a>(index: &'a Index, platform: &Platform) -> Result<&'a Descriptor, Problem> {
    if let Some(descriptor) = index.for_platform(platform) {
        return Ok(descriptor);
    }
    // An index of one image that does not say what it runs on is that image.
    if let [only] = index.manifests.as_slice()
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let platforms = index.manifests.iter().filter_map(|d| d.platform.as_ref());
    let mut available: Vec<String> = platforms.map(ToString::to_string).take(32).collect();
    available.dedup();
    Err(Problem::NoSuchPlatform {
        wanted: platform.to_string(),
        available: match available.as_slice() {
            [] => "none".to_owned(),
            names => crate::wire::errors::printable(&names.join(", "), 400),
        },
    })
}

fn check_config_type(manifest: &Manifest) -> Result<(), Problem> {
    match manifest.config.media_type.as_str() {
        media_type::OCI_CONFIG | media_type::DOCKER_CONFIG => Ok(()),
        other => {
            let shown = crate::wire::errors::printable(other, 100);
            let text = format!("its configuration has media type {shown:?}, so it is no image");
            Err(Problem::Contradiction(text))
        }
    }
}

fn check_layers(manifest: &Manifest, config: &ImageConfig) -> Result<(), Problem> {
    let (n_layers, n_diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
    if n_layers == n_diff_ids {
        return Ok(());
    }
    Err(Problem::Contradiction(format!(
        "its manifest has {n_layers} layers and its configuration {n_diff_ids}"
    )))
}
