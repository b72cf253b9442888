//! Sending a blob while it is being written, when nobody knows yet what it is and how large.
//!
//! 1. Wait until more was written than goes into one request. What stays smaller is sent like any other small blob once it is whole: it is
//!    looked for, and then goes in one request.
//! 2. Begin a session, and send what there is and what comes in one PATCH without a length, as docker does.
//! 3. As soon as it is known what the blob is, ask whether the registry has it, if much is left to be sent; nobody could ask before.
//! 4. Close the session with the digest, which the registry compares.
//!
//! There is one try, which resumes nothing: whatever goes wrong, the session is put away, and the ordinary push, which looks first, does all
//! of it. The bytes are read from the file that they are written to, so that a slow registry neither holds up the writing nor takes memory.

use std::io::{self, Read as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method};
use oci::{Descriptor, Reference};
use store::Growth;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::Client;
use super::auth::Scopes;
use super::call::{Payload, content_digest};
use super::error::{Error, Problem};
use super::session::{Target, name_digest, session_url};
use super::source::{Moving, READ_BYTES};
use super::upload::{Pushed, UPLOAD_MAX};

/// So many pieces of the file wait for the connection.
const PIECES_MAX: usize = 4;
/// Longest time that a registry is given to hear that a session is not needed: somebody waits for the end of a build.
const PUT_AWAY_MAX: Duration = Duration::from_secs(5);

/// A blob that is being written.
#[derive(Debug, Clone)]
pub struct GrowingBlob {
    /// Its bytes.
    pub growth: Arc<Growth>,
    /// What it is, once that is known. The other end is dropped without a word when it does not come to be.
    pub known: watch::Receiver<Option<Descriptor>>,
}

impl Client {
    /// Sends a blob while it grows. Nothing is returned when it was not sent, because it was given up or cancelled.
    ///
    /// # Errors
    /// Any failure, after the first try. No session is left that the registry does not refuse to put away.
    pub async fn push_growing(
        &self,
        repository: &Reference,
        blob: GrowingBlob,
        cancel: &CancellationToken,
    ) -> Result<Option<Pushed>, Error> {
        let watched = blob.clone();
        let pushed = async {
            let endpoint = self.origin(repository.host())?;
            let target = Target {
                inner: &self.inner,
                endpoint: &endpoint,
                repository,
            };
            let scopes = Scopes::push(repository.repository());
            let mut sending = Sending {
                target,
                scopes: &scopes,
                blob,
                session: None,
            };
            let done = cancel.run_until_cancelled(sending.run()).await;
            if let Some(url) = sending.session {
                let put_away = target.cancel(&scopes, url);
                // Who does not hear it in time finds out by himself that nobody comes back.
                let _late = tokio::time::timeout(PUT_AWAY_MAX, put_away).await;
            }
            done.unwrap_or(Ok(None))
        };
        match pushed.await {
            Err(_) if watched.is_given_up() => Ok(None),
            pushed => pushed.map_err(|problem| {
                let attempt = format!(
                    "send a blob that is being written to {}",
                    repository.repository()
                );
                problem.into_error(attempt, repository.host())
            }),
        }
    }
}

impl GrowingBlob {
    fn is_given_up(&self) -> bool {
        let is_never_known = self.known.has_changed().is_err() && self.known.borrow().is_none();
        is_never_known || self.growth.is_given_up()
    }
}

/// One blob on its way.
struct Sending<'a> {
    target: Target<'a>,
    scopes: &'a Scopes,
    blob: GrowingBlob,
    /// The session, as long as it has to be put away.
    session: Option<Url>,
}

enum Streamed {
    /// All of it; the session goes on there.
    All(Url),
    /// The registry has it from somewhere else.
    Needless,
}

impl Sending<'_> {
    async fn run(&mut self) -> Result<Option<Pushed>, Problem> {
        if !self.grows_beyond_one_request().await? {
            return self.send_whole().await;
        }
        let known = self.blob.known.borrow().clone();
        if let Some(blob) = &known
            && self.target.has(self.scopes, blob).await?
        {
            return Ok(Some(Pushed::Existed));
        }
        let url = self.begin().await?;
        let size = known.map(|blob| blob.size);
        let url = match self.stream(url, size).await? {
            Streamed::All(url) => url,
            Streamed::Needless => return Ok(Some(Pushed::Existed)),
        };
        self.session = Some(url.clone());
        let Some(blob) = what_it_is(&mut self.blob.known).await else {
            return Ok(None);
        };
        self.close(url, &blob, Bytes::new()).await?;
        Ok(Some(Pushed::Uploaded))
    }

    /// Sends what fits into one request.
    async fn send_whole(&mut self) -> Result<Option<Pushed>, Problem> {
        let Some(blob) = what_it_is(&mut self.blob.known).await else {
            return Ok(None);
        };
        if self.target.has(self.scopes, &blob).await? {
            return Ok(Some(Pushed::Existed));
        }
        let (mut reader, mut bytes) = (self.blob.growth.reader(), Vec::new());
        let read = move || reader.read_to_end(&mut bytes).map(|_| bytes);
        let attempt = "read the blob to push";
        let bytes = tokio::task::spawn_blocking(read).await;
        let bytes = bytes.map_err(|error| Problem::local(attempt, error))?;
        let bytes = bytes.map_err(|error| Problem::local(attempt, error))?;
        let url = self.begin().await?;
        self.close(url, &blob, Bytes::from(bytes)).await?;
        Ok(Some(Pushed::Uploaded))
    }

    async fn grows_beyond_one_request(&self) -> Result<bool, Problem> {
        let n_bytes = self.target.inner.options.monolithic_max_bytes;
        let growth = Arc::clone(&self.blob.growth);
        let waited = tokio::task::spawn_blocking(move || growth.wait_for_more_than(n_bytes)).await;
        waited.map_err(|error| Problem::local("wait for the blob to grow", error))
    }

    async fn begin(&mut self) -> Result<Url, Problem> {
        let (target, inner) = (self.target, self.target.inner);
        let call = target.call(self.scopes, Method::POST, target.uploads_url()?);
        let limit = inner.options.header_timeout;
        let response = inner.send_once(&call, &Bytes::new(), limit).await?;
        let url = session_url(&call.url, &response)?;
        self.session = Some(url.clone());
        Ok(url)
    }

    /// Sends the bytes. Whether the registry has a blob of known `size` was asked before.
    async fn stream(&mut self, url: Url, mut size: Option<u64>) -> Result<Streamed, Problem> {
        let (target, inner) = (self.target, self.target.inner);
        let growth = Arc::clone(&self.blob.growth);
        let known = &mut self.blob.known;
        let body = Rising {
            growth: Arc::clone(&growth),
            moved: watch::Sender::new(0),
        };
        let mut call = target.call(self.scopes, Method::PATCH, url);
        call.headers = octets();
        let mut moved = body.moved.subscribe();
        // The limits are those of the loop: a blob takes as long as it takes to write.
        let answer = inner.send_once(&call, &body, UPLOAD_MAX);
        tokio::pin!(answer);
        let mut pace = Pace::new();
        loop {
            let is_sent = size == Some(*moved.borrow());
            let limit = if is_sent {
                inner.options.finish_timeout
            } else {
                inner.options.stall_window
            };
            tokio::select! {
                biased;
                answer = &mut answer => {
                    let url = session_url(&call.url, &answer?)?;
                    return Ok(Streamed::All(url));
                }
                blob = what_it_is(known), if size.is_none() => {
                    let blob = blob.ok_or_else(given_up)?;
                    size = Some(blob.size);
                    let n_left = blob.size.saturating_sub(*moved.borrow());
                    let is_much = n_left > inner.options.monolithic_max_bytes;
                    if is_much && target.has(self.scopes, &blob).await? {
                        return Ok(Streamed::Needless);
                    }
                }
                _ = moved.changed() => {
                    if size == Some(*moved.borrow_and_update()) {
                        pace.begin(*moved.borrow(), &growth);
                    }
                }
                () = tokio::time::sleep_until(pace.started + limit) => {
                    let what = if is_sent { "the answer to a blob" } else { "sending a small part of a blob" };
                    if is_sent || pace.is_stalled(*moved.borrow(), inner.options.stall_bytes) {
                        return Err(Problem::TooSlow { what, limit });
                    }
                    pace.begin(*moved.borrow(), &growth);
                }
            }
        }
    }

    /// Sends the rest, and says that this was all and what it is.
    async fn close(&mut self, mut url: Url, blob: &Descriptor, rest: Bytes) -> Result<(), Problem> {
        let inner = self.target.inner;
        name_digest(&mut url, blob);
        let mut call = self.target.call(self.scopes, Method::PUT, url);
        call.headers = octets();
        let limit = inner.options.finish_timeout;
        let response = inner.send_once(&call, &rest, limit).await?;
        self.session = None;
        match content_digest(response.headers()).unwrap_or_default() {
            Some(digest) if digest != blob.digest => Err(Problem::DigestMismatch {
                what: "the pushed blob",
                expected: blob.digest.clone(),
                actual: digest,
            }),
            _ => Ok(()),
        }
    }
}

/// Waits until it is known what a blob is; nothing when it does not come to be.
async fn what_it_is(known: &mut watch::Receiver<Option<Descriptor>>) -> Option<Descriptor> {
    let known = known.wait_for(Option::is_some).await;
    known.ok().and_then(|blob| blob.clone())
}

fn octets() -> HeaderMap {
    let octets = HeaderValue::from_static("application/octet-stream");
    HeaderMap::from_iter([(CONTENT_TYPE, octets)])
}

fn given_up() -> Problem {
    let source = io::Error::other("writing it was given up");
    Problem::local("send a blob that is being written", source)
}

/// Watches that bytes move while there are any: a blob that is written slowly is nobody's fault.
struct Pace {
    started: Instant,
    /// How much had moved, and how much there was, when this window began.
    moved: u64,
    there: u64,
}

impl Pace {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            moved: 0,
            there: 0,
        }
    }

    fn begin(&mut self, moved: u64, growth: &Growth) {
        *self = Self {
            started: Instant::now(),
            moved,
            there: growth.n_written(),
        };
    }

    fn is_stalled(&self, moved: u64, least_bytes: u64) -> bool {
        let had_something = self.there.saturating_sub(self.moved) >= least_bytes;
        had_something && moved.saturating_sub(self.moved) < least_bytes
    }
}

/// The bytes of a blob that grows, from the beginning.
struct Rising {
    growth: Arc<Growth>,
    /// The offset up to which bytes were handed to the connection.
    moved: watch::Sender<u64>,
}

impl Payload for Rising {
    async fn open(&self) -> Result<reqwest::Body, Problem> {
        let mut reader = self.growth.reader();
        let (send, mut pieces) = mpsc::channel(PIECES_MAX);
        // Waits for whoever writes, or for the connection. It ends with either of them.
        tokio::task::spawn_blocking(move || {
            loop {
                let mut piece = vec![0; READ_BYTES];
                let piece = match reader.read(&mut piece) {
                    Ok(0) => return,
                    Ok(n_bytes) => {
                        piece.truncate(n_bytes);
                        Ok(Bytes::from(piece))
                    }
                    Err(error) => Err(error),
                };
                let is_over = piece.is_err();
                if send.blocking_send(piece).is_err() || is_over {
                    return;
                }
            }
        });
        self.moved.send_replace(0);
        let pieces = futures_util::stream::poll_fn(move |context| pieces.poll_recv(context));
        Ok(reqwest::Body::wrap(Moving {
            pieces: Box::pin(pieces),
            offset: 0,
            end: None,
            moved: self.moved.clone(),
        }))
    }
}
