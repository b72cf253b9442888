//! One authorised request to one endpoint, once or with retries.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use oci::Digest;
use reqwest::Response;
use url::Url;

use super::Inner;
use super::auth::Scopes;
use super::error::Problem;
use super::retry::{Policy, retrying};
use super::transport::{Answer, Request};
use crate::hosts::Endpoint;

/// Tries that a mirror gets: there is somebody else to ask.
const MIRROR_TRIES: u32 = 2;

/// A request to an endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Call<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) scopes: &'a Scopes,
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
}

/// A body that can be sent as often as need be.
pub(crate) trait Payload: Sync {
    /// Returns the body from its beginning.
    fn open(&self) -> impl Future<Output = Result<reqwest::Body, Problem>> + Send;
}

impl Payload for Bytes {
    async fn open(&self) -> Result<reqwest::Body, Problem> {
        Ok(self.clone().into())
    }
}

impl Inner {
    /// Returns the URL of something in the API of an endpoint; `path` is `name/manifests/…`.
    pub(crate) fn url(endpoint: &Endpoint, path: &str) -> Result<Url, Problem> {
        let url = endpoint.base.join(&format!("v2/{}{path}", endpoint.prefix));
        url.map_err(|_| Problem::Refused("a name that is not part of a URL".to_owned()))
    }

    /// Returns how often, and how patiently, an endpoint is tried.
    pub(crate) fn policy<'a>(&'a self, endpoint: &'a Endpoint) -> Policy<'a> {
        let tries = self.options.tries;
        Policy {
            options: &self.options,
            budgets: &self.budgets,
            host: &endpoint.host,
            tries: if endpoint.is_mirror {
                tries.min(MIRROR_TRIES)
            } else {
                tries
            },
        }
    }

    /// Sends a GET or HEAD once, following redirects. Any status but success is a problem.
    pub(crate) async fn get_once(&self, call: &Call<'_>) -> Result<Response, Problem> {
        let (endpoint, scopes) = (call.endpoint, call.scopes);
        let authorization = self.authorization(endpoint, scopes).await?;
        let mut answer = self
            .transport
            .follow(call.request(authorization.clone()))
            .await?;
        let sent = authorization.as_ref();
        let better = self.reauthorization(endpoint, scopes, &answer, sent);
        if let Some(better) = better.await? {
            answer = self.transport.follow(call.request(Some(better))).await?;
        }
        self.transport.successful(answer.response).await
    }

    /// Sends a GET or HEAD until it is answered or given up.
    pub(crate) async fn get(&self, call: &Call<'_>) -> Result<Response, Problem> {
        retrying(self.policy(call.endpoint), || self.get_once(call)).await
    }

    /// Sends a request that changes something, once. Any status but success is a problem.
    pub(crate) async fn send_once(
        &self,
        call: &Call<'_>,
        payload: &impl Payload,
        limit: Duration,
    ) -> Result<Response, Problem> {
        let (endpoint, scopes) = (call.endpoint, call.scopes);
        let authorization = self.authorization(endpoint, scopes).await?;
        let body = payload.open().await?;
        let request = call.request(authorization.clone());
        let response = self.transport.send(request, Some(body), limit).await?;
        let mut answer = Answer {
            response,
            is_from_origin: true,
        };
        let sent = authorization.as_ref();
        let better = self.reauthorization(endpoint, scopes, &answer, sent);
        if let Some(better) = better.await? {
            let body = payload.open().await?;
            let request = call.request(Some(better));
            answer.response = self.transport.send(request, Some(body), limit).await?;
        }
        self.transport.successful(answer.response).await
    }

    /// Sends a request that changes something and may be repeated, until it is answered or given up.
    pub(crate) async fn send(
        &self,
        call: &Call<'_>,
        payload: &impl Payload,
        limit: Duration,
    ) -> Result<Response, Problem> {
        let policy = self.policy(call.endpoint);
        retrying(policy, || self.send_once(call, payload, limit)).await
    }
}

impl Call<'_> {
    fn request(&self, authorization: Option<HeaderValue>) -> Request {
        Request {
            method: self.method.clone(),
            url: self.url.clone(),
            headers: self.headers.clone(),
            authorization,
        }
    }
}

/// Returns the `Docker-Content-Digest` of an answer, if it has one.
pub(crate) fn content_digest(headers: &HeaderMap) -> Result<Option<Digest>, Problem> {
    let Some(value) = headers.get("docker-content-digest") else {
        return Ok(None);
    };
    let text = value.to_str().ok();
    let digest = text.and_then(|text| text.parse().ok());
    match digest {
        Some(digest) => Ok(Some(digest)),
        None => Err(Problem::Header("Docker-Content-Digest")),
    }
}

/// Returns the `Content-Length` of an answer as it was written; that of a HEAD is not the length of its body.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(CONTENT_LENGTH)?;
    value.to_str().ok()?.parse().ok()
}
