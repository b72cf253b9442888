//! Reading blobs: a stream that survives broken connections.
//!
//! A broken connection is resumed where it broke, so that a blob costs little more than its size. Nothing that a stream gave
//! out may be used before it has ended without error: only then is the digest known to be right. Descriptors' `urls` are
//! never followed.

use bytes::Bytes;
use futures_util::Stream;
use http::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use http::{Method, StatusCode};
use oci::{Descriptor, Hasher, Reference};
use reqwest::Response;

use super::auth::Scopes;
use super::body::Pace;
use super::call::{Call, content_length};
use super::error::{Error, Problem};
use super::pull::{blob_path, check_digest, no_endpoint};
use super::retry::Tries;
use super::{Client, Inner};
use crate::hosts::Endpoint;

/// How often one blob is resumed, whatever progress there was in between.
const RESUMES_MAX: u32 = 32;

/// A blob that is being read. Reading to the end verifies it.
#[derive(Debug)]
pub struct BlobStream {
    client: Client,
    repository: Reference,
    descriptor: Descriptor,
    endpoints: Vec<Endpoint>,
    i_endpoint: usize,
    offset: u64,
    received_bytes: u64,
    hasher: Option<Hasher>,
    open: Option<Open>,
    etag: Option<HeaderValue>,
    may_resume: bool,
    tries: Tries,
    n_resumes: u32,
}

/// An answer that is being read.
#[derive(Debug)]
struct Open {
    response: Response,
    pace: Pace,
    /// Bytes that come once more, from a server that cannot resume.
    skip: u64,
}

impl BlobStream {
    /// Returns the next piece, or `None` after the last one, when the whole was found to be right.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        match self.next().await {
            Ok(chunk) => Ok(chunk),
            Err(problem) => Err(self.in_error(problem)),
        }
    }

    /// Returns the pieces as a stream; it ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        futures_util::stream::unfold(Some(self), |stream| async {
            let mut stream = stream?;
            match stream.chunk().await {
                Ok(Some(chunk)) => Some((Ok(chunk), Some(stream))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// Returns how many bytes came over the network so far, those that came twice counted twice.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// Returns all that is still to come.
    async fn rest(&mut self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Goes straight to the last endpoint, the registry itself.
    pub(super) fn skip_mirrors(&mut self) {
        self.i_endpoint = self.endpoints.len().saturating_sub(1);
    }

    /// Returns what is read.
    pub(super) fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Returns how many bytes were given out.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn in_error(&self, problem: Problem) -> Error {
        let endpoint = self.endpoints.get(self.i_endpoint);
        let host = endpoint.map_or(self.repository.host(), |endpoint| &endpoint.host);
        problem.into_error(attempt(&self.repository, &self.descriptor), host)
    }

    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            if self.offset == self.descriptor.size {
                return self.finish();
            }
            let read = match self.open.take() {
                Some(mut open) => match open.pace.chunk(&mut open.response).await {
                    Ok(Some(chunk)) => {
                        self.received_bytes += chunk.len() as u64;
                        let chunk = open.take_new(chunk);
                        self.open = Some(open);
                        Ok(chunk)
                    }
                    Ok(None) => Err(Problem::Truncated {
                        received: self.offset,
                        expected: self.descriptor.size,
                    }),
                    Err(problem) => Err(problem),
                },
                None => self.connect().await.map(|()| Bytes::new()),
            };
            match read {
                Ok(chunk) if chunk.is_empty() => {}
                Ok(chunk) => {
                    self.accept(&chunk)?;
                    return Ok(Some(chunk));
                }
                Err(problem) => self.recover(problem).await?,
            }
        }
    }

    fn accept(&mut self, chunk: &Bytes) -> Result<(), Problem> {
        let offset = self.offset + chunk.len() as u64;
        if offset > self.descriptor.size {
            return Err(Problem::SizeMismatch {
                what: "the blob",
                expected: self.descriptor.size,
                actual: offset,
            });
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(chunk);
        }
        self.offset = offset;
        if self.may_resume {
            self.tries.reset();
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Option<Bytes>, Problem> {
        self.open = None;
        let Some(hasher) = self.hasher.take() else {
            return Ok(None);
        };
        let actual = hasher.finish();
        if actual == self.descriptor.digest {
            return Ok(None);
        }
        Err(Problem::DigestMismatch {
            what: "the blob",
            expected: self.descriptor.digest.clone(),
            actual,
        })
    }

    /// Opens the connection, at the first byte that is missing.
    async fn connect(&mut self) -> Result<(), Problem> {
        let endpoint = self.endpoints.get(self.i_endpoint);
        let endpoint = endpoint.ok_or_else(|| Problem::Refused("to read on".to_owned()))?;
        let inner = &self.client.inner;
        let resumed = (self.offset > 0 && self.may_resume).then_some(self.offset);
        let mut headers = HeaderMap::new();
        if let Some(offset) = resumed {
            headers.insert(RANGE, range_header(offset)?);
            if let Some(etag) = self.etag.as_ref().filter(|etag| is_strong(etag)) {
                headers.insert(IF_RANGE, etag.clone());
            }
        }
        let path = format!("{}{}", endpoint.prefix, self.repository.repository());
        let call = Call {
            endpoint,
            scopes: &Scopes::pull(&path),
            method: Method::GET,
            url: Inner::url(
                endpoint,
                &blob_path(&self.repository, &self.descriptor.digest),
            )?,
            headers,
        };
        let response = match inner.get_once(&call).await {
            Err(problem) if problem.status() == Some(StatusCode::RANGE_NOT_SATISFIABLE) => {
                self.may_resume = false;
                return Ok(());
            }
            answer => answer?,
        };
        let skip = match (response.status(), resumed) {
            (StatusCode::PARTIAL_CONTENT, Some(offset)) => {
                if !is_rest(response.headers(), offset, self.descriptor.size)
                    || is_changed(self.etag.as_ref(), response.headers().get(ETAG))
                {
                    // Not the bytes that were asked for. Reading all of it once more cannot go wrong.
                    self.may_resume = false;
                    return Ok(());
                }
                0
            }
            (StatusCode::OK, _) => {
                self.may_resume = self.offset == 0;
                self.offset
            }
            _ => return Err(Problem::Header("Content-Range")),
        };
        let expected = self.descriptor.size - self.offset + skip;
        if let Some(length) = content_length(response.headers()).filter(|len| *len > expected) {
            return Err(Problem::SizeMismatch {
                what: "the blob",
                expected,
                actual: length,
            });
        }
        if self.etag.is_none() {
            self.etag = response.headers().get(ETAG).cloned();
        }
        self.open = Some(Open {
            response,
            pace: Pace::new(&inner.options),
            skip,
        });
        Ok(())
    }

    /// Waits for the next try, goes on to the next endpoint, or gives up.
    async fn recover(&mut self, problem: Problem) -> Result<(), Problem> {
        self.open = None;
        self.n_resumes += 1;
        let Some(endpoint) = self.endpoints.get(self.i_endpoint) else {
            return Err(problem);
        };
        if self.n_resumes > RESUMES_MAX {
            return Err(problem);
        }
        let is_mirror = endpoint.is_mirror;
        let policy = self.client.inner.policy(endpoint);
        match self.tries.after(problem, policy).await {
            Ok(()) => Ok(()),
            Err(problem) if is_mirror => {
                tracing::warn!(host = %endpoint.host, %problem, "the mirror does not help");
                self.i_endpoint += 1;
                self.tries.reset();
                self.etag = None;
                self.may_resume = true;
                Ok(())
            }
            Err(problem) => Err(problem),
        }
    }
}

impl Open {
    /// Returns the part of `chunk` that did not come before.
    fn take_new(&mut self, mut chunk: Bytes) -> Bytes {
        let n_known = usize::try_from(self.skip).unwrap_or(usize::MAX);
        let n_known = n_known.min(chunk.len());
        self.skip -= n_known as u64;
        chunk.split_off(n_known)
    }
}

impl Client {
    /// Returns a stream of the blob that `descriptor` describes, verified when it has ended.
    pub async fn blob_stream(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
    ) -> Result<BlobStream, Error> {
        let mut stream = self.reader(repository, descriptor, Verify::Here)?;
        // The first connection is made now, so that whoever asks learns at once that the blob is not there.
        while stream.open.is_none() && stream.offset < descriptor.size {
            let connected = match stream.connect().await {
                Ok(()) => Ok(()),
                Err(problem) => stream.recover(problem).await,
            };
            connected.map_err(|problem| {
                problem.into_error(attempt(repository, descriptor), repository.host())
            })?;
        }
        Ok(stream)
    }

    /// Returns the bytes of a blob of at most `max_bytes`, verified.
    pub async fn blob_bytes(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
        max_bytes: usize,
    ) -> Result<Bytes, Error> {
        let in_error = |problem: Problem| {
            problem.into_error(attempt(repository, descriptor), repository.host())
        };
        if descriptor.size > max_bytes as u64 {
            return Err(in_error(Problem::TooLarge {
                what: "the blob",
                limit_bytes: max_bytes as u64,
            }));
        }
        let mut stream = self.reader(repository, descriptor, Verify::ByCaller)?;
        let bytes = stream.rest().await?;
        if check_digest("the blob", &descriptor.digest, &bytes).is_ok() {
            return Ok(bytes.into());
        }
        // A mirror's, or bits that turned on the way: once more, from the registry itself.
        let mut stream = self.reader(repository, descriptor, Verify::ByCaller)?;
        stream.skip_mirrors();
        let bytes = stream.rest().await?;
        check_digest("the blob", &descriptor.digest, &bytes).map_err(in_error)?;
        Ok(bytes.into())
    }

    pub(super) fn reader(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
        verify: Verify,
    ) -> Result<BlobStream, Error> {
        let endpoints = self.pull_endpoints(repository.host());
        let endpoints = endpoints.map_err(|problem| {
            problem.into_error(attempt(repository, descriptor), repository.host())
        })?;
        if endpoints.is_empty() {
            return Err(no_endpoint(attempt(repository, descriptor), repository));
        }
        let hasher = match verify {
            Verify::Here => Some(descriptor.digest.hasher()),
            Verify::ByCaller => None,
        };
        Ok(BlobStream {
            client: self.clone(),
            repository: repository.clone(),
            descriptor: descriptor.clone(),
            endpoints,
            i_endpoint: 0,
            offset: 0,
            received_bytes: 0,
            hasher,
            open: None,
            etag: None,
            may_resume: true,
            tries: Tries::default(),
            n_resumes: 0,
        })
    }
}

/// Who finds out whether the bytes are right: hashing twice would cost as much as receiving.
#[derive(Clone, Copy)]
pub(super) enum Verify {
    Here,
    ByCaller,
}

pub(super) fn attempt(repository: &Reference, descriptor: &Descriptor) -> String {
    format!(
        "read blob {} of {}",
        descriptor.digest,
        repository.repository()
    )
}

fn range_header(offset: u64) -> Result<HeaderValue, Problem> {
    HeaderValue::from_str(&format!("bytes={offset}-")).map_err(|_| Problem::Header("Range"))
}

fn is_strong(etag: &HeaderValue) -> bool {
    etag.as_bytes().starts_with(b"\"")
}

fn is_changed(before: Option<&HeaderValue>, now: Option<&HeaderValue>) -> bool {
    matches!((before, now), (Some(before), Some(now)) if before != now)
}

/// Tells whether a 206 holds the bytes from `offset` to the end of a blob of `size` bytes.
fn is_rest(headers: &HeaderMap, offset: u64, size: u64) -> bool {
    let value = headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
    let Some((range, total)) = value
        .and_then(|value| value.strip_prefix("bytes "))
        .and_then(|value| value.split_once('/'))
    else {
        return false;
    };
    let Some((first, last)) = range.split_once('-') else {
        return false;
    };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let is_whole = total.trim() == "*" || number(total) == Some(size);
    number(first) == Some(offset) && number(last).is_some_and(|last| last < size) && is_whole
}
