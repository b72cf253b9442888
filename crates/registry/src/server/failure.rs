//! What goes wrong in the registry → a status, a code of the specification, and words.
//!
//! What is the caller's fault is told to the caller. What is ours is logged with its causes, and the caller is told only that
//! it is ours: paths and system messages are nobody's business.

use std::error::Error;
use std::io;

use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, HeaderName, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use oci::digest::DigestError;
use store::{BlobError, CommitError, RepositoryError, UploadError};

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    code: &'static str,
    message: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Failure {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            headers: Vec::new(),
        }
    }

    fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    fn absent(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::try_from(value) {
            self.headers.push((name, value));
        }
        self
    }

    pub(super) fn path() -> Self {
        Self::absent("UNSUPPORTED", "nothing is served at this path")
    }

    pub(super) fn method() -> Self {
        let message = "this method is not served at this path";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)
            .header(ALLOW, "GET, HEAD, POST, PUT, PATCH, DELETE")
    }

    pub(super) fn name(name: &str) -> Self {
        Self::bad("NAME_INVALID", format!("{name:?} is not a repository name"))
    }

    pub(super) fn name_unknown() -> Self {
        Self::absent("NAME_UNKNOWN", "there is no such repository")
    }

    pub(super) fn tag() -> Self {
        Self::bad("TAG_INVALID", "this is neither a tag nor a digest")
    }

    pub(super) fn digest(error: &DigestError) -> Self {
        Self::bad("DIGEST_INVALID", error.to_string())
    }

    pub(super) fn digest_missing() -> Self {
        Self::bad("DIGEST_INVALID", "the digest parameter is missing")
    }

    pub(super) fn digest_mismatch() -> Self {
        Self::bad("DIGEST_INVALID", "the content has another digest")
    }

    pub(super) fn blob_unknown() -> Self {
        Self::absent("BLOB_UNKNOWN", "the repository has no such blob")
    }

    pub(super) fn manifest_unknown() -> Self {
        Self::absent("MANIFEST_UNKNOWN", "the repository has no such manifest")
    }

    pub(super) fn manifest_invalid(message: impl Into<String>) -> Self {
        Self::bad("MANIFEST_INVALID", message)
    }

    pub(super) fn manifest_blob_unknown(digest: &oci::Digest) -> Self {
        let message = format!("the manifest names {digest}, which the repository does not have");
        Self::absent("MANIFEST_BLOB_UNKNOWN", message)
    }

    pub(super) fn upload_unknown() -> Self {
        Self::absent("BLOB_UPLOAD_UNKNOWN", "there is no such upload here")
    }

    pub(super) fn upload_invalid(message: impl Into<String>) -> Self {
        Self::bad("BLOB_UPLOAD_INVALID", message)
    }

    /// A chunk that does not go on where the upload stands.
    pub(super) fn upload_offset(location: &str, range: &str) -> Self {
        let message = "the chunk does not begin where the upload stands";
        let status = StatusCode::RANGE_NOT_SATISFIABLE;
        Self::new(status, "BLOB_UPLOAD_INVALID", message)
            .header(http::header::LOCATION, location)
            .header(RANGE, range)
    }

    pub(super) fn size(message: impl Into<String>) -> Self {
        Self::bad("SIZE_INVALID", message)
    }

    pub(super) fn too_large(max_bytes: u64) -> Self {
        let message = format!("at most {max_bytes} bytes are accepted");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message)
    }

    pub(super) fn page() -> Self {
        let message = "the number of results must be a number that is not negative";
        Self::bad("PAGINATION_NUMBER_INVALID", message)
    }

    pub(super) fn too_many_uploads() -> Self {
        let message = "too many uploads at a time";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message)
            .header(RETRY_AFTER, "1")
    }

    /// Of one owner there are too many, whatever others have.
    pub(super) fn too_many_of_owner(standing: &str, uploads_max: usize) -> Self {
        let message = format!(
            "{uploads_max} uploads to repositories of the same owner are {standing} already: wait for one to end, or give one up"
        );
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message)
            .header(RETRY_AFTER, "1")
    }

    pub(super) fn too_slow() -> Self {
        let message = "the body came too slowly";
        Self::new(StatusCode::REQUEST_TIMEOUT, "BLOB_UPLOAD_INVALID", message)
    }

    pub(super) fn body() -> Self {
        Self::bad("BLOB_UPLOAD_INVALID", "the body ended before its end")
    }

    pub(super) fn closed() -> Self {
        let message = "the registry is closing";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNKNOWN", message)
    }

    pub(super) fn denied(status: StatusCode, www_authenticate: Option<&str>) -> Self {
        let (code, message) = match status {
            StatusCode::UNAUTHORIZED => ("UNAUTHORIZED", "authentication is required"),
            StatusCode::TOO_MANY_REQUESTS => ("TOOMANYREQUESTS", "too many requests"),
            _ => ("DENIED", "access to this repository is denied"),
        };
        let failure = Self::new(status, code, message);
        match www_authenticate {
            Some(challenge) => failure.header(WWW_AUTHENTICATE, challenge),
            None => failure,
        }
    }

    /// Logs what is our own fault.
    pub(super) fn internal(error: &(dyn Error + 'static)) -> Self {
        let mut text = error.to_string();
        let mut is_full = false;
        let mut cause = Some(error);
        while let Some(current) = cause {
            is_full |= current
                .downcast_ref::<io::Error>()
                .is_some_and(is_disk_full);
            cause = current.source();
            if let Some(cause) = cause {
                text = format!("{text}: {cause}");
            }
        }
        tracing::error!(error = text, "the embedded registry failed to answer");
        if is_full {
            let message = "the registry has no space left";
            return Self::new(StatusCode::INSUFFICIENT_STORAGE, "UNKNOWN", message);
        }
        let message = "the registry failed; its log says more";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", message)
    }
}

fn is_disk_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let document = serde_json::json!({
            "errors": [{ "code": self.code, "message": self.message }],
        });
        let mut response = super::json(self.status, &document);
        response.headers_mut().extend(self.headers);
        response
    }
}

impl From<BlobError> for Failure {
    fn from(error: BlobError) -> Self {
        Self::internal(&error)
    }
}

impl From<CommitError> for Failure {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::DigestMismatch { .. } => Self::digest_mismatch(),
            error => Self::internal(&error),
        }
    }
}

impl From<UploadError> for Failure {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::TooMany { .. } => Self::too_many_uploads(),
            UploadError::TooManyOfOwner { uploads_max } => {
                Self::too_many_of_owner("unfinished", uploads_max)
            }
            UploadError::Busy { .. } => {
                let message = "another request is writing to this upload";
                Self::new(StatusCode::CONFLICT, "BLOB_UPLOAD_INVALID", message)
            }
            error => Self::internal(&error),
        }
    }
}

impl From<RepositoryError> for Failure {
    fn from(error: RepositoryError) -> Self {
        match error {
            RepositoryError::Name(name) => Self::name(&name),
            RepositoryError::Tag(_) | RepositoryError::Key(_) => Self::tag(),
            RepositoryError::Missing { .. } => Self::blob_unknown(),
            RepositoryError::ManifestTooLarge { max_bytes, .. } => {
                Self::too_large(max_bytes as u64)
            }
            RepositoryError::Store {
                source: CommitError::DigestMismatch { .. },
                ..
            } => Self::digest_mismatch(),
            // Moved to quarantine: from now on it is not there, and the next push brings it again.
            RepositoryError::Read {
                source: BlobError::Corrupt { .. },
                ..
            } => {
                let _logged = Self::internal(&error);
                Self::manifest_unknown()
            }
            error => Self::internal(&error),
        }
    }
}
