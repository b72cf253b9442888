//! The ways in for blobs: at once, in chunks, as a stream, by mounting from another repository.
//!
//! An upload that is interrupted keeps what has arrived, and the client goes on from where `GET` says that it stands. One whose
//! content turns out to be wrong or too large is gone.

use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderName, LOCATION, RANGE};
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use oci::Digest;
use oci::reference::is_repository;
use store::{Store, Upload, UploadId, UploadScope};
use tokio::time::Instant;

use super::failure::Failure;
use super::route::parse_digest;
use super::{CONTENT_DIGEST, Call, Registry, ServerOptions, empty};

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
/// How much is gathered until it is written.
const BATCH_BYTES: usize = 1 << 20;

/// Under what uploads to a repository go on.
struct Scope {
    repository: String,
    owner: Option<String>,
}

impl Scope {
    fn new(registry: &Registry, repository: &str) -> Self {
        Self {
            repository: repository.to_owned(),
            owner: registry.owner_of(repository),
        }
    }

    fn part(&self) -> UploadScope<'_> {
        UploadScope {
            name: &self.repository,
            owner: self.owner.as_deref(),
        }
    }
}

/// Answers `POST …/blobs/uploads/`.
pub(super) async fn begin(
    registry: &Arc<Registry>,
    call: &Call,
    body: Body,
    repository: String,
) -> Result<Response, Failure> {
    if call.method != Method::POST {
        return Err(Failure::method());
    }
    if let Some(mount) = call.query("mount") {
        let digest = parse_digest(mount)?;
        if mount_blob(registry, call, &repository, &digest).await? {
            return Ok(created(&repository, &digest));
        }
    }
    let digest = call.query("digest").map(parse_digest).transpose()?;
    let Some(digest) = digest else {
        if call.content_length().is_some_and(|length| length > 0) {
            let message = "a blob sent at once needs the digest parameter";
            return Err(Failure::upload_invalid(message));
        }
        let scope = Scope::new(registry, &repository);
        let create = move |store: &Store| store.create_upload(scope.part());
        let id = registry.blocking(create).await?;
        return Ok(standing(StatusCode::ACCEPTED, &repository, &id, 0));
    };
    check_length(registry, call)?;
    let _place = registry.admit(&repository)?;
    let scope = Scope::new(registry, &repository);
    let create = move |store: &Store| -> Result<_, Failure> {
        let id = store.create_upload(scope.part())?;
        store
            .upload(scope.part(), &id)?
            .ok_or_else(Failure::upload_unknown)
    };
    let upload = registry.blocking(create).await?;
    let options = &registry.options;
    let mut reader = BodyReader::new(body, options.blob_max_bytes, options);
    // Nobody knows this upload's name, so what has arrived is worth nothing when the rest does not come.
    match receive(registry, upload, &mut reader).await {
        Ok(upload) => finish(registry, upload, repository, digest).await,
        Err((failure, upload)) => {
            cancel(registry, upload).await?;
            Err(failure)
        }
    }
}

/// Answers everything about one upload.
pub(super) async fn handle(
    registry: &Arc<Registry>,
    call: &Call,
    body: Body,
    (repository, id): (String, UploadId),
) -> Result<Response, Failure> {
    match call.method {
        Method::GET | Method::HEAD => {
            let (scope, wanted) = (Scope::new(registry, &repository), id.clone());
            let look = move |store: &Store| store.upload_size(scope.part(), &wanted);
            let size_bytes = registry.blocking(look).await?;
            let size_bytes = size_bytes.ok_or_else(Failure::upload_unknown)?;
            Ok(standing(
                StatusCode::NO_CONTENT,
                &repository,
                &id,
                size_bytes,
            ))
        }
        Method::DELETE => {
            let upload = open(registry, &repository, &id).await?;
            cancel(registry, Some(Box::new(upload))).await?;
            Ok(empty(StatusCode::NO_CONTENT, &[]))
        }
        Method::PATCH => {
            let _place = registry.admit(&repository)?;
            let upload = append(registry, call, body, (&repository, &id)).await?;
            let size_bytes = upload.size_bytes();
            // Closing it writes, and the next request must find it closed.
            registry
                .blocking(move |_| {
                    drop(upload);
                    Ok::<_, Failure>(())
                })
                .await?;
            Ok(standing(StatusCode::ACCEPTED, &repository, &id, size_bytes))
        }
        Method::PUT => {
            let digest = call.query("digest").ok_or_else(Failure::digest_missing)?;
            let digest = parse_digest(digest)?;
            let _place = registry.admit(&repository)?;
            let upload = append(registry, call, body, (&repository, &id)).await?;
            finish(registry, upload, repository, digest).await
        }
        _ => Err(Failure::method()),
    }
}

/// Links a blob of another repository, if the caller may read it there. False means that it has to be sent.
async fn mount_blob(
    registry: &Arc<Registry>,
    call: &Call,
    repository: &str,
    digest: &Digest,
) -> Result<bool, Failure> {
    let Some(from) = call.query("from").filter(|from| is_repository(from)) else {
        return Ok(false);
    };
    if !registry.may_pull(call, from) {
        return Ok(false);
    }
    let (from, to, digest) = (from.to_owned(), repository.to_owned(), digest.clone());
    registry
        .blocking(move |store| {
            let is_there = store.has_blob(&from, &digest)?;
            if is_there {
                store.link_blob(&to, &digest)?;
            }
            Ok::<_, store::RepositoryError>(is_there)
        })
        .await
}

fn check_length(registry: &Registry, call: &Call) -> Result<(), Failure> {
    let max_bytes = registry.options.blob_max_bytes;
    match call.content_length() {
        Some(length) if length > max_bytes => Err(Failure::too_large(max_bytes)),
        _ => Ok(()),
    }
}

async fn open(
    registry: &Arc<Registry>,
    repository: &str,
    id: &UploadId,
) -> Result<Upload, Failure> {
    let (scope, id) = (Scope::new(registry, repository), id.clone());
    let upload = registry
        .blocking(move |store| store.upload(scope.part(), &id))
        .await?;
    upload.ok_or_else(Failure::upload_unknown)
}

async fn cancel(registry: &Arc<Registry>, upload: Option<Box<Upload>>) -> Result<(), Failure> {
    match upload {
        Some(upload) => registry.blocking(move |_| upload.cancel()).await,
        None => Ok(()),
    }
}

/// Adds a request's body to an upload.
async fn append(
    registry: &Arc<Registry>,
    call: &Call,
    body: Body,
    (repository, id): (&str, &UploadId),
) -> Result<Upload, Failure> {
    check_length(registry, call)?;
    let upload = open(registry, repository, id).await?;
    let stands_at = upload.size_bytes();
    let chunk = match call.header(&CONTENT_RANGE) {
        None => None,
        Some(text) => Some(parse_chunk(text)?),
    };
    let length = chunk.map(|(begin, end)| end - begin);
    if chunk.is_some_and(|(begin, _)| begin != stands_at) {
        let range = range_of(stands_at);
        return Err(Failure::upload_offset(&location(repository, id), &range));
    }
    if let (Some(length), Some(claimed)) = (length, call.content_length())
        && length != claimed
    {
        let message = "the content range and the content length differ";
        return Err(Failure::size(message));
    }
    let options = &registry.options;
    let left = options.blob_max_bytes.saturating_sub(stands_at);
    let max_bytes = length.unwrap_or(left).min(left);
    let mut reader = BodyReader::new(body, max_bytes, options);
    let upload = match receive(registry, upload, &mut reader).await {
        Ok(upload) => upload,
        Err((failure, upload)) => {
            if reader.is_too_large {
                cancel(registry, upload).await?;
            }
            return Err(failure);
        }
    };
    if length.is_some_and(|length| length != reader.n_bytes) {
        return Err(Failure::size("the body is shorter than its content range"));
    }
    Ok(upload)
}

/// Writes a body to an upload: while one batch is written the next is read. After an error the upload comes back, if it is
/// still worth anything.
async fn receive(
    registry: &Arc<Registry>,
    mut upload: Upload,
    reader: &mut BodyReader,
) -> Result<Upload, (Failure, Option<Box<Upload>>)> {
    let mut batch = match reader.batch().await {
        Ok(batch) => batch,
        Err(failure) => return Err((failure, Some(Box::new(upload)))),
    };
    while !batch.is_empty() {
        let write = registry.blocking(move |_| {
            let mut upload = upload;
            for piece in batch {
                upload
                    .write_all(&piece)
                    .map_err(|error| write_failed(&error))?;
            }
            Ok::<_, Failure>(upload)
        });
        let (written, next) = tokio::join!(write, reader.batch());
        upload = written.map_err(|failure| (failure, None))?;
        batch = match next {
            Ok(next) => next,
            Err(failure) => return Err((failure, Some(Box::new(upload)))),
        };
    }
    Ok(upload)
}

fn write_failed(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::FileTooLarge => {
            let message = "the blob is larger than the store accepts";
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message)
        }
        _ => Failure::internal(error),
    }
}

async fn finish(
    registry: &Arc<Registry>,
    upload: Upload,
    repository: String,
    digest: Digest,
) -> Result<Response, Failure> {
    let (scope, expected) = (repository.clone(), digest.clone());
    let commit = move |store: &Store| -> Result<(), Failure> {
        upload.commit(&expected)?;
        Ok(store.link_blob(&scope, &expected)?)
    };
    registry.blocking(commit).await?;
    Ok(created(&repository, &digest))
}

fn created(repository: &str, digest: &Digest) -> Response {
    let headers = [
        (LOCATION, format!("/v2/{repository}/blobs/{digest}")),
        (CONTENT_DIGEST, digest.to_string()),
        (CONTENT_LENGTH, "0".to_owned()),
    ];
    empty(StatusCode::CREATED, &headers)
}

/// Says how far an upload has come.
fn standing(status: StatusCode, repository: &str, id: &UploadId, size_bytes: u64) -> Response {
    let headers = [
        (LOCATION, location(repository, id)),
        (RANGE, range_of(size_bytes)),
        (UPLOAD_ID, id.to_string()),
    ];
    let response = empty(status, &headers);
    if status == StatusCode::NO_CONTENT {
        return response;
    }
    super::with_headers(response, &[(CONTENT_LENGTH, "0".to_owned())])
}

fn location(repository: &str, id: &UploadId) -> String {
    format!("/v2/{repository}/blobs/uploads/{id}")
}

/// Returns the bytes that have arrived as the specification writes them, which has no way to say "none".
fn range_of(size_bytes: u64) -> String {
    format!("0-{}", size_bytes.saturating_sub(1))
}

/// Parses the `Content-Range` of a chunk, `first-last`, into its begin and end.
fn parse_chunk(text: &str) -> Result<(u64, u64), Failure> {
    let parse = || {
        let (first, last) = text.trim().split_once('-')?;
        let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
        (first <= last).then_some((first, last.checked_add(1)?))
    };
    parse().ok_or_else(|| Failure::upload_invalid("the content range is not first-last"))
}

/// Reads a body within its limits.
pub(super) struct BodyReader {
    body: Body,
    max_bytes: u64,
    idle_max: std::time::Duration,
    bytes_per_second_min: u64,
    begun: Instant,
    failure: Option<Failure>,
    is_over: bool,
    /// How many bytes have arrived.
    pub(super) n_bytes: u64,
    /// Whether more came than allowed.
    pub(super) is_too_large: bool,
}

impl BodyReader {
    pub(super) fn new(body: Body, max_bytes: u64, options: &ServerOptions) -> Self {
        Self {
            body,
            max_bytes,
            idle_max: options.body_idle_max,
            bytes_per_second_min: options.body_bytes_per_second_min,
            begun: Instant::now(),
            failure: None,
            is_over: false,
            n_bytes: 0,
            is_too_large: false,
        }
    }

    /// Returns the next pieces, none at the end. What arrived before an error is returned before it.
    pub(super) async fn batch(&mut self) -> Result<Vec<Bytes>, Failure> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let (mut pieces, mut n_gathered) = (Vec::new(), 0);
        while n_gathered < BATCH_BYTES && !self.is_over {
            match self.piece().await {
                Ok(ControlFlow::Continue(piece)) => {
                    n_gathered += piece.len();
                    pieces.push(piece);
                }
                Ok(ControlFlow::Break(())) => self.is_over = true,
                Err(failure) if pieces.is_empty() => return Err(failure),
                Err(failure) => {
                    self.failure = Some(failure);
                    break;
                }
            }
        }
        Ok(pieces)
    }

    async fn piece(&mut self) -> Result<ControlFlow<(), Bytes>, Failure> {
        loop {
            let frame = tokio::time::timeout(self.idle_max, self.body.frame()).await;
            let frame = match frame.map_err(|_| Failure::too_slow())? {
                None => return Ok(ControlFlow::Break(())),
                Some(frame) => frame.map_err(|_| Failure::body())?,
            };
            // Trailers say nothing that we would believe.
            let Ok(piece) = frame.into_data() else {
                continue;
            };
            self.n_bytes += piece.len() as u64;
            if self.n_bytes > self.max_bytes {
                self.is_too_large = true;
                return Err(Failure::too_large(self.max_bytes));
            }
            let lasted = self.begun.elapsed();
            let due = lasted.as_secs().saturating_mul(self.bytes_per_second_min);
            if lasted > self.idle_max && self.n_bytes < due {
                return Err(Failure::too_slow());
            }
            if !piece.is_empty() {
                return Ok(ControlFlow::Continue(piece));
            }
        }
    }
}
