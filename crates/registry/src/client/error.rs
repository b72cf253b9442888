//! What can go wrong between us and a registry, and whose fault it is.
//!
//! The text names what was attempted and the host. It never holds a URL's query, a header, or anything else that carries a
//! secret; what the registry said is shown cut and without control characters.

use std::fmt;
use std::io;
use std::time::Duration;

use http::StatusCode;
use oci::Digest;
use oci::manifest::DocumentError;

use crate::hosts::HostsError;
use crate::wire::errors::ErrorEntry;

/// An operation on a registry that failed.
#[derive(Debug)]
pub struct Error {
    attempt: String,
    host: String,
    problem: Box<Problem>,
}

/// What a caller does about an error depends on this alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The image, blob or repository is not there.
    NotFound,
    /// 401, 403, or no token to be had for the scope.
    Unauthorized,
    /// 429, also after waiting and trying again.
    TooManyRequests,
    /// Not reachable, too slow, broken connections or 5xx, also after trying again.
    Unavailable,
    /// The registry answered something that makes no sense, or refused what we sent.
    Invalid,
    /// The bytes are not those that the digest or the size promised.
    Corrupt,
    /// We did not do what the registry asked for, because it would not be safe.
    Refused,
    /// The image has no part for the wanted platform.
    NoSuchPlatform,
    /// Our side: the store, a file, or the configuration.
    Internal,
}

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// An unsuccessful status, after all tries.
    #[error("the registry answered {status}{}", shown(entry))]
    Status {
        /// The status.
        status: StatusCode,
        /// The first error that its body told.
        entry: ErrorEntry,
        /// How long the registry asks us to wait.
        retry_after: Option<Duration>,
    },
    /// The connection could not be made, or broke.
    #[error("{what}")]
    Connection {
        /// What could not be done.
        what: &'static str,
        /// Why, its URL taken out.
        #[source]
        source: reqwest::Error,
    },
    /// The host does not answer in time, or less than the least bearable number of bytes arrive.
    #[error("{what} took longer than {}s", limit.as_secs_f32())]
    TooSlow {
        /// What took so long.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The body ended before all of it was there.
    #[error("the answer ended after {received} of {expected} bytes")]
    Truncated {
        /// What came.
        received: u64,
        /// What was promised.
        expected: u64,
    },
    /// More than is ever read of such an answer.
    #[error("{what} is larger than {limit_bytes} bytes")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The limit.
        limit_bytes: u64,
    },
    /// The bytes do not have the digest that was asked for or promised.
    #[error("{what} has digest {actual} instead of {expected}")]
    DigestMismatch {
        /// What.
        what: &'static str,
        /// What was promised.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// The size is not the one of the descriptor.
    #[error("{what} has {actual} bytes instead of {expected}")]
    SizeMismatch {
        /// What.
        what: &'static str,
        /// What was promised.
        expected: u64,
        /// What came.
        actual: u64,
    },
    /// The manifest or index is not one that we read.
    #[error("the registry answered a document that cannot be used")]
    Document(#[source] DocumentError),
    /// The image configuration is not one that we read.
    #[error("the image configuration is not valid JSON")]
    Config(#[source] serde_json::Error),
    /// Parts of an image that contradict each other.
    #[error("the image contradicts itself: {0}")]
    Contradiction(String),
    /// An index without the wanted platform.
    #[error("the image has no manifest for {wanted} (it has {available})")]
    NoSuchPlatform {
        /// What was wanted.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// A header that makes no sense.
    #[error("the registry answered an unusable {0} header")]
    Header(&'static str),
    /// Something that would not be safe, so it was not done.
    #[error("refused {0}")]
    Refused(String),
    /// No token could be had.
    #[error("the token service of the registry {0}")]
    Token(&'static str),
    /// The token service could not be asked.
    #[error("ask the token service for access")]
    AskToken(#[source] Box<Problem>),
    /// What was pushed is not there afterwards.
    #[error("the registry accepted {what} {digest} but does not have it")]
    NotThere {
        /// What.
        what: &'static str,
        /// Its digest.
        digest: Digest,
    },
    /// A file or the store.
    #[error("{what}")]
    Local {
        /// What could not be done.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The settings of the host.
    #[error("the configuration of the registry cannot be used")]
    Hosts(#[source] HostsError),
    /// A certificate, key or proxy of the configuration.
    #[error("{what} of the configuration cannot be used")]
    Transport {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
}

impl Problem {
    /// Wraps a failure of reqwest, without the URL: it may hold a token.
    pub(crate) fn connection(what: &'static str, source: reqwest::Error) -> Self {
        Self::Connection {
            what,
            source: source.without_url(),
        }
    }

    /// Wraps a failure of the store or a file.
    pub(crate) fn local(
        what: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Local {
            what,
            source: source.into(),
        }
    }

    /// Returns the class of this problem.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Status { status, .. } => kind_of_status(*status),
            Self::Connection { .. } | Self::TooSlow { .. } | Self::Truncated { .. } => {
                ErrorKind::Unavailable
            }
            Self::TooLarge { .. } | Self::Document(_) | Self::Config(_) | Self::Header(_) => {
                ErrorKind::Invalid
            }
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } | Self::Contradiction(_) => {
                ErrorKind::Corrupt
            }
            Self::NoSuchPlatform { .. } => ErrorKind::NoSuchPlatform,
            Self::Refused(_) => ErrorKind::Refused,
            Self::Token(_) => ErrorKind::Unauthorized,
            Self::AskToken(problem) => match problem.kind() {
                // A token service that is not there, or does not know us, gives no access.
                ErrorKind::NotFound | ErrorKind::Invalid => ErrorKind::Unauthorized,
                kind => kind,
            },
            Self::NotThere { .. } => ErrorKind::Corrupt,
            Self::Local { .. } | Self::Hosts(_) | Self::Transport { .. } => ErrorKind::Internal,
        }
    }

    /// Tells whether the same request may succeed when it is sent again.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                status.is_server_error() && *status != StatusCode::NOT_IMPLEMENTED
                    || matches!(
                        *status,
                        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                    )
            }
            // A request that could not even be written down will not improve; a bad certificate neither.
            Self::Connection { source, .. } => !source.is_builder() && !is_tls_refusal(source),
            Self::TooSlow { .. } | Self::Truncated { .. } => true,
            // Among them a token service that failed: it was asked often enough already.
            _ => false,
        }
    }

    /// Tells whether what came has another digest than it has to have.
    pub(crate) fn is_mismatch(&self) -> bool {
        matches!(self, Self::DigestMismatch { .. })
    }

    /// Returns how long the registry asks us to wait before the next try.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Returns the status, if the registry answered with one.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    pub(crate) fn into_error(self, attempt: impl Into<String>, host: &str) -> Error {
        Error {
            attempt: attempt.into(),
            host: host.to_owned(),
            problem: Box::new(self),
        }
    }
}

impl Error {
    /// Returns the class of this error.
    pub fn kind(&self) -> ErrorKind {
        self.problem.kind()
    }

    /// Returns the host that was talked to.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns what went wrong.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Returns the code of the registry's error document (`MANIFEST_UNKNOWN`), if it sent one.
    pub fn code(&self) -> Option<&str> {
        match &*self.problem {
            Problem::Status { entry, .. } if !entry.code.is_empty() => Some(&entry.code),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}", self.attempt, self.host, self.problem)
    }
}

impl std::error::Error for Error {
    // The problem's words are in ours, so the chain goes on behind it.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&*self.problem)
    }
}

fn kind_of_status(status: StatusCode) -> ErrorKind {
    match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => ErrorKind::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PAYMENT_REQUIRED => {
            ErrorKind::Unauthorized
        }
        StatusCode::TOO_MANY_REQUESTS => ErrorKind::TooManyRequests,
        StatusCode::REQUEST_TIMEOUT => ErrorKind::Unavailable,
        status if status.is_server_error() => ErrorKind::Unavailable,
        _ => ErrorKind::Invalid,
    }
}

fn is_tls_refusal(error: &reqwest::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let text = cause.to_string();
        if text.contains("invalid peer certificate") || text.contains("HandshakeFailure") {
            return true;
        }
        source = match cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
    }
    false
}

fn shown(entry: &ErrorEntry) -> String {
    match (entry.code.as_str(), entry.message.as_str()) {
        ("", "") => String::new(),
        ("", text) | (text, "") => format!(" ({text})"),
        (code, message) => format!(" ({code}: {message})"),
    }
}
