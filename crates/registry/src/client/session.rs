//! Sessions of uploads: where they are begun, where they go on, how they are put away.
//!
//! A session stays on the registry's own scheme, host and port, wherever an answer points: it gets our bytes and our credentials.

use bytes::Bytes;
use http::Method;
use http::header::{HeaderMap, RANGE};
use oci::{Descriptor, Reference};
use reqwest::Response;
use url::Url;

use super::Inner;
use super::auth::Scopes;
use super::call::Call;
use super::error::Problem;
use super::transport::location;
use crate::hosts::Endpoint;

/// The repository that is pushed to.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) inner: &'a Inner,
    pub(super) endpoint: &'a Endpoint,
    pub(super) repository: &'a Reference,
}

impl<'a> Target<'a> {
    /// Tells whether the repository has the blob.
    pub(super) async fn has(self, scopes: &Scopes, blob: &Descriptor) -> Result<bool, Problem> {
        let (endpoint, repository) = (self.endpoint, self.repository);
        let found = self
            .inner
            .stat_blob(endpoint, scopes, repository, &blob.digest);
        match found.await? {
            None => Ok(false),
            Some(size) => Ok(size.is_none_or(|size| size == blob.size)),
        }
    }

    /// Returns where sessions are begun.
    pub(super) fn uploads_url(self) -> Result<Url, Problem> {
        let path = format!("{}/blobs/uploads/", self.repository.repository());
        Inner::url(self.endpoint, &path)
    }

    pub(super) fn call<'b>(self, scopes: &'b Scopes, method: Method, url: Url) -> Call<'b>
    where
        'a: 'b,
    {
        Call {
            endpoint: self.endpoint,
            scopes,
            method,
            url,
            headers: HeaderMap::new(),
        }
    }

    /// Tells the registry that a session is not needed. Nothing depends on whether it hears.
    pub(super) async fn cancel(self, scopes: &Scopes, url: Url) {
        let call = self.call(scopes, Method::DELETE, url);
        let limit = self.inner.options.header_timeout;
        if let Err(problem) = self.inner.send_once(&call, &Bytes::new(), limit).await {
            tracing::debug!(%problem, "an upload was not cancelled");
        }
    }
}

/// Adds to the URL of a session what its bytes are, which closes it.
pub(super) fn name_digest(url: &mut Url, blob: &Descriptor) {
    url.query_pairs_mut()
        .append_pair("digest", &blob.digest.to_string());
}

/// Returns where an upload goes on. Nowhere else than on the registry itself.
pub(super) fn session_url(from: &Url, response: &Response) -> Result<Url, Problem> {
    let url = location(from, response.headers())?;
    if url.origin() == from.origin() {
        return Ok(url);
    }
    let host = url.host_str().unwrap_or_default();
    Err(Problem::Refused(format!(
        "an upload location outside of the registry, at {}://{host}",
        url.scheme()
    )))
}

/// Reads how many bytes of an upload arrived. `0-0` is what some registries answer for nothing and for one byte alike.
pub(super) fn received(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(RANGE)?.to_str().ok()?;
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let (first, last) = range.split_once('-')?;
    let last: u64 = last.parse().ok()?;
    match (first, last) {
        ("0", 0) => Some(0),
        ("0", last) => last.checked_add(1),
        _ => None,
    }
}
