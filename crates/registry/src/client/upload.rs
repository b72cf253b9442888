//! Sending one blob: look, mount, upload, in one request or in a stream that is resumed where it broke.
//!
//! An upload's `Location` must be on the registry's own scheme, host and port: it gets our bytes and our credentials.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use oci::{Descriptor, Reference};
use reqwest::Response;
use tokio::time::Instant;
use url::Url;

use super::auth::Scopes;
use super::call::{Call, content_digest};
use super::error::{Error, ErrorKind, Problem};
use super::retry::Tries;
use super::session::{Target, name_digest, received, session_url};
use super::source::{BlobSource, Rest};
use super::{Client, Inner};
use crate::hosts::Endpoint;

/// Repositories that are asked to lend a blob before it is sent.
const MOUNTS_MAX: usize = 4;
/// Longest time that one request may take to send its body, however steadily it moves.
pub(super) const UPLOAD_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often a lost upload session is begun anew.
const RESTARTS_MAX: u32 = 2;

/// How a blob came to be in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// The registry took it from another of its repositories.
    Mounted,
    /// It was sent.
    Uploaded,
}

/// What is being pushed where.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) inner: &'a Inner,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) repository: &'a Reference,
    pub(crate) descriptor: &'a Descriptor,
    pub(crate) source: &'a BlobSource,
    pub(crate) progress: &'a (dyn Fn(u64) + Send + Sync),
}

/// Whether a blob that seems to be there is sent nevertheless.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    First,
    /// The registry said that it has it, and then had not.
    Distrust,
}

impl Client {
    /// Makes sure that `repository` holds the blob: looks, asks for it to be mounted from one of `mount_from`, or sends it.
    /// `progress` is told the number of bytes that were sent so far.
    pub async fn push_blob(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
        source: BlobSource,
        mount_from: &[Reference],
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Pushed, Error> {
        let pushed = async {
            let endpoint = self.origin(repository.host())?;
            let job = Job {
                inner: &self.inner,
                endpoint: &endpoint,
                repository,
                descriptor,
                source: &source,
                progress,
            };
            job.run(mount_from, Look::First).await
        };
        pushed.await.map_err(|problem| {
            let attempt = format!(
                "push blob {} to {}",
                descriptor.digest,
                repository.repository()
            );
            problem.into_error(attempt, repository.host())
        })
    }
}

impl Job<'_> {
    pub(crate) async fn run(
        &self,
        mount_from: &[Reference],
        look: Look,
    ) -> Result<Pushed, Problem> {
        let scopes = Scopes::push(self.repository.repository());
        if look == Look::First && self.is_there(&scopes).await? {
            return Ok(Pushed::Existed);
        }
        let mut session = None;
        if look == Look::First {
            match self.mount(mount_from).await? {
                Mount::Done if self.is_there(&scopes).await? => return Ok(Pushed::Mounted),
                Mount::Done | Mount::Impossible => {}
                Mount::Session(url) => session = Some(url),
            }
        }
        let mut upload = Upload {
            job: *self,
            scopes: &scopes,
            session,
            offset: 0,
        };
        upload.run().await?;
        Ok(Pushed::Uploaded)
    }

    async fn is_there(&self, scopes: &Scopes) -> Result<bool, Problem> {
        self.target().has(scopes, self.descriptor).await
    }

    fn target(&self) -> Target<'_> {
        Target {
            inner: self.inner,
            endpoint: self.endpoint,
            repository: self.repository,
        }
    }

    /// Asks the registry to take the blob from another repository. A refusal is no error: then the blob is sent.
    async fn mount(&self, candidates: &[Reference]) -> Result<Mount, Problem> {
        let mut session = None;
        let host = self.repository.host();
        let own = self.repository.repository();
        let candidates = candidates
            .iter()
            .filter(|from| from.host() == host && from.repository() != own);
        for from in candidates.take(MOUNTS_MAX) {
            let scopes = Scopes::mount(own, from.repository());
            let mut url = self.target().uploads_url()?;
            url.query_pairs_mut()
                .append_pair("mount", &self.descriptor.digest.to_string())
                .append_pair("from", from.repository());
            let target = self.target();
            let call = target.call(&scopes, Method::POST, url);
            let limit = self.inner.options.finish_timeout;
            match self.inner.send(&call, &Bytes::new(), limit).await {
                Ok(response) if response.status() == StatusCode::CREATED => {
                    return Ok(Mount::Done);
                }
                Ok(response) => {
                    // 202: it began an upload instead. The first one is kept, others are put away.
                    let url = session_url(&call.url, &response)?;
                    match &session {
                        None => session = Some(url),
                        Some(_) => target.cancel(&scopes, url).await,
                    }
                }
                Err(problem) if problem.is_transient() => return Err(problem),
                Err(problem) => tracing::debug!(from = %from, %problem, "the mount was refused"),
            }
        }
        Ok(session.map_or(Mount::Impossible, Mount::Session))
    }
}

enum Mount {
    Done,
    Session(Url),
    Impossible,
}

/// One upload and how far it got.
struct Upload<'a> {
    job: Job<'a>,
    scopes: &'a Scopes,
    session: Option<Url>,
    offset: u64,
}

impl Upload<'_> {
    async fn run(&mut self) -> Result<(), Problem> {
        let policy = self.job.inner.policy(self.job.endpoint);
        let mut tries = Tries::default();
        let mut n_restarts = 0;
        loop {
            let Err(problem) = self.attempt().await else {
                policy.budgets.earn(policy.host);
                return Ok(());
            };
            if is_lost_session(&problem) {
                n_restarts += 1;
                if n_restarts > RESTARTS_MAX {
                    return Err(problem);
                }
                tracing::debug!(%problem, "the upload was lost, beginning anew");
                self.restart();
                continue;
            }
            let before = self.offset;
            tries.after(problem, policy).await?;
            // The answer may have been lost, and not the blob.
            if self.job.is_there(self.scopes).await? {
                return Ok(());
            }
            self.find_offset().await;
            if self.offset > before {
                tries.reset();
            }
        }
    }

    async fn attempt(&mut self) -> Result<(), Problem> {
        let job = self.job;
        let size = job.descriptor.size;
        let session = match self.session.clone() {
            Some(url) => url,
            None => self.begin().await?,
        };
        let response = if size <= job.inner.options.monolithic_max_bytes {
            self.put(session, Rest::new(job.source, 0, size)).await?
        } else {
            let session = if self.offset < size {
                self.patch(session).await?
            } else {
                session
            };
            self.put(session, Rest::new(job.source, size, size)).await?
        };
        match content_digest(response.headers()).unwrap_or_default() {
            Some(digest) if digest != job.descriptor.digest => Err(Problem::DigestMismatch {
                what: "the pushed blob",
                expected: job.descriptor.digest.clone(),
                actual: digest,
            }),
            _ => Ok(()),
        }
    }

    async fn begin(&mut self) -> Result<Url, Problem> {
        self.offset = 0;
        let target = self.job.target();
        let call = target.call(self.scopes, Method::POST, target.uploads_url()?);
        let limit = self.job.inner.options.header_timeout;
        let response = self.job.inner.send(&call, &Bytes::new(), limit).await?;
        let url = session_url(&call.url, &response)?;
        self.session = Some(url.clone());
        Ok(url)
    }

    /// Streams what is missing.
    async fn patch(&mut self, url: Url) -> Result<Url, Problem> {
        let size = self.job.descriptor.size;
        let rest = Rest::new(self.job.source, self.offset, size);
        let target = self.job.target();
        let mut call = target.call(self.scopes, Method::PATCH, url);
        body_headers(&mut call.headers, size - self.offset);
        if self.offset > 0 {
            let range = format!("{}-{}", self.offset, size - 1);
            let range = HeaderValue::from_str(&range);
            let range = range.map_err(|_| Problem::Header("Content-Range"))?;
            call.headers.insert(CONTENT_RANGE, range);
        }
        let response = self.send_watched(&call, &rest).await?;
        let url = session_url(&call.url, &response)?;
        self.session = Some(url.clone());
        self.offset = size;
        Ok(url)
    }

    /// Says that this was all, sending the rest if there is any.
    async fn put(&self, mut url: Url, rest: Rest<'_>) -> Result<Response, Problem> {
        name_digest(&mut url, self.job.descriptor);
        let target = self.job.target();
        let mut call = target.call(self.scopes, Method::PUT, url);
        body_headers(&mut call.headers, rest.end - rest.offset);
        self.send_watched(&call, &rest).await
    }

    /// Sends a body, as long as it moves.
    async fn send_watched(&self, call: &Call<'_>, rest: &Rest<'_>) -> Result<Response, Problem> {
        let options = &self.job.inner.options;
        let mut moved = rest.moved.subscribe();
        // The limits are those of the loop: a large body takes as long as it takes.
        let answer = self.job.inner.send_once(call, rest, UPLOAD_MAX);
        tokio::pin!(answer);
        let mut window = Window::new();
        loop {
            let is_sent = *moved.borrow() >= rest.end;
            let limit = if is_sent {
                options.finish_timeout
            } else {
                options.stall_window
            };
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                _ = moved.changed() => {
                    let offset = *moved.borrow_and_update();
                    (self.job.progress)(offset);
                    window.moved_to(offset, options.stall_bytes);
                }
                () = tokio::time::sleep_until(window.started + limit) => {
                    let what = if is_sent { "the answer to a blob" } else { "sending a small part of a blob" };
                    return Err(Problem::TooSlow { what, limit });
                }
            }
        }
    }

    /// Asks how much of an interrupted upload arrived. Begins anew when that cannot be known.
    async fn find_offset(&mut self) {
        let job = self.job;
        let is_resumable = job.descriptor.size > job.inner.options.monolithic_max_bytes;
        let Some(url) = self.session.clone().filter(|_| is_resumable) else {
            self.restart();
            return;
        };
        let target = job.target();
        let call = target.call(self.scopes, Method::GET, url);
        let (nothing, limit) = (Bytes::new(), job.inner.options.header_timeout);
        let answer = job.inner.send(&call, &nothing, limit);
        let found = match answer.await {
            Ok(response) => received(response.headers())
                .filter(|offset| *offset <= job.descriptor.size)
                .map(|offset| (offset, session_url(&call.url, &response).ok())),
            Err(problem) => {
                tracing::debug!(%problem, "the upload cannot be resumed");
                None
            }
        };
        match found {
            Some((offset, url)) => {
                self.offset = offset;
                self.session = url.or_else(|| self.session.take());
            }
            None => self.restart(),
        }
    }

    fn restart(&mut self) {
        self.session = None;
        self.offset = 0;
    }
}

/// The time in which enough bytes must move.
struct Window {
    started: Instant,
    offset: u64,
}

impl Window {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            offset: 0,
        }
    }

    fn moved_to(&mut self, offset: u64, least_bytes: u64) {
        if offset.saturating_sub(self.offset) >= least_bytes {
            self.started = Instant::now();
            self.offset = offset;
        }
    }
}

fn body_headers(headers: &mut HeaderMap, n_bytes: u64) {
    let octets = HeaderValue::from_static("application/octet-stream");
    headers.insert(CONTENT_TYPE, octets);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(n_bytes));
}

fn is_lost_session(problem: &Problem) -> bool {
    match problem {
        Problem::Status { status, entry, .. } => {
            *status == StatusCode::RANGE_NOT_SATISFIABLE
                || problem.kind() == ErrorKind::NotFound && entry.code != "NAME_UNKNOWN"
                || matches!(
                    entry.code.as_str(),
                    "BLOB_UPLOAD_INVALID" | "BLOB_UPLOAD_UNKNOWN"
                )
        }
        _ => false,
    }
}
