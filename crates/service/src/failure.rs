//! Whose fault it is, and what the caller is told: the one place that decides both.
//!
//! A request that cannot be served becomes a [`Failure`], and that a gRPC status. A build that failed is not a failure of the
//! request: it becomes a text ([`build_message`]) in the last message of the stream. Texts that callers look for: `cannot resolve
//! image`, `base image does not exist`, `build failed: ` at the beginning, `build source is missing`, `build not found`.

use std::error::Error as StdError;
use std::fmt::Write as _;

use engine::event::{Failure as BuildFailure, FailureKind};
use registry::client::ErrorKind;
use tonic::{Code, Status};

/// Longest text of a status: longer ones do not fit into the headers that clients accept, and the call would hang.
pub const STATUS_MAX_BYTES: usize = 8 << 10;

/// Longest text in a message about a build.
pub const MESSAGE_MAX_BYTES: usize = 64 << 10;

/// Whose fault it is that a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The request makes no sense.
    Request,
    /// What it names is not there.
    Missing,
    /// It has not the credentials it needs.
    Credentials,
    /// The operator does not allow it.
    Forbidden,
    /// It contradicts an earlier one.
    Conflict,
    /// What it is about does not stand so that it could be served.
    State,
    /// A registry fails, or asks us to come back later.
    Registry,
    /// There is more to do than the operator allows.
    Load,
    /// We are about to stop.
    Shutdown,
    /// The caller has let us wait for too long.
    Slow,
    /// This is not implemented.
    Unsupported,
    /// Kiln, or the machine it runs on.
    Platform,
}

/// A request that is not served.
#[derive(Debug, thiserror::Error)]
#[error("{public}")]
pub struct Failure {
    blame: Blame,
    public: String,
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Failure {
    /// Returns a failure that says `public` to the caller.
    pub fn new(blame: Blame, public: impl Into<String>) -> Self {
        Self {
            blame,
            public: public.into(),
            source: None,
        }
    }

    /// Returns the failure that a nonsensical field of a request is.
    pub fn field(name: &str, error: &(dyn StdError + 'static)) -> Self {
        Self::new(Blame::Request, format!("{name}: {}", chain(error)))
    }

    /// Returns the failure of something of ours: the caller learns what did not work, the log learns why.
    pub fn platform(
        public: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self {
            source: Some(source.into()),
            ..Self::new(Blame::Platform, public)
        }
    }

    /// Returns the failure that an image could not be resolved.
    pub fn resolve(error: registry::client::Error) -> Self {
        let (blame, said) = match error.kind() {
            ErrorKind::NotFound | ErrorKind::NoSuchPlatform => {
                (Blame::Missing, "base image does not exist: ")
            }
            ErrorKind::Unauthorized => (Blame::Credentials, "access was refused: "),
            ErrorKind::TooManyRequests => (Blame::Registry, "too many requests: "),
            ErrorKind::Unavailable | ErrorKind::Invalid | ErrorKind::Corrupt => {
                (Blame::Registry, "")
            }
            ErrorKind::Refused => (Blame::Registry, ""),
            ErrorKind::Internal => (Blame::Platform, ""),
        };
        Self {
            blame,
            public: format!("cannot resolve image: {said}{}", chain(&error)),
            source: Some(Box::new(error)),
        }
    }

    /// Returns the failure that it could not be found out whether a workspace image exists.
    pub fn look_up(error: registry::client::Error) -> Self {
        // The credentials are ours: refusing them is no fault of the caller.
        let blame = match error.kind() {
            ErrorKind::TooManyRequests | ErrorKind::Unavailable => Blame::Registry,
            _ => Blame::Platform,
        };
        Self {
            blame,
            public: format!(
                "cannot check if the image is already built: {}",
                chain(&error)
            ),
            source: Some(Box::new(error)),
        }
    }

    /// Returns the same failure for somebody else who has waited for the same: the log learns of its source once.
    #[must_use]
    pub fn again(&self) -> Self {
        Self::new(self.blame, self.public.clone())
    }

    /// Returns whose fault it is.
    pub fn blame(&self) -> Blame {
        self.blame
    }

    /// Returns the status for the caller, and logs what only we should know.
    pub fn status(&self) -> Status {
        if self.blame == Blame::Platform {
            tracing::error!(error = chain(self), "request failed");
        }
        Status::new(self.code(), truncate(&self.public, STATUS_MAX_BYTES))
    }

    fn code(&self) -> Code {
        match self.blame {
            Blame::Request => Code::InvalidArgument,
            Blame::Missing => Code::NotFound,
            Blame::Credentials => Code::Unauthenticated,
            Blame::Forbidden => Code::PermissionDenied,
            Blame::Conflict => Code::AlreadyExists,
            Blame::State => Code::FailedPrecondition,
            Blame::Registry | Blame::Shutdown => Code::Unavailable,
            Blame::Load => Code::ResourceExhausted,
            Blame::Slow => Code::DeadlineExceeded,
            Blame::Unsupported => Code::Unimplemented,
            Blame::Platform => Code::Internal,
        }
    }
}

/// Returns the text about a build that failed.
pub fn build_message(failure: &BuildFailure) -> String {
    let message = failure.message.as_str();
    let text = match failure.kind {
        FailureKind::BaseImageMissing => with(
            "build failed: ",
            &with_phrase("base image does not exist", message),
        ),
        FailureKind::BaseImage => with_phrase("cannot resolve image", message),
        FailureKind::Timeout => with("build failed: ", &with("timed out", message)),
        kind if kind.is_users() => with("build failed: ", message),
        FailureKind::Credentials => with("registry refused access: ", message),
        FailureKind::Registry => with("registry failed: ", message),
        _ => with("build could not be carried out: ", message),
    };
    truncate(&text, MESSAGE_MAX_BYTES).to_owned()
}

/// Returns `text`, put after `prefix` unless it begins with it.
fn with(prefix: &str, text: &str) -> String {
    let begins = text.starts_with(prefix.trim_end());
    match (begins, prefix) {
        (true, _) => text.to_owned(),
        (false, "timed out") => format!("timed out: {text}"),
        (false, _) => format!("{prefix}{text}"),
    }
}

/// Returns `text`, put after `phrase` unless it contains it.
fn with_phrase(phrase: &str, text: &str) -> String {
    if text.contains(phrase) {
        text.to_owned()
    } else {
        format!("{phrase}: {text}")
    }
}

/// Returns the words of an error and of everything behind it.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _infallible = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// Returns the beginning of `text`, at most `max_bytes` long.
pub fn truncate(text: &str, max_bytes: usize) -> &str {
    let mut end = text.len().min(max_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: FailureKind, text: &str) -> String {
        build_message(&BuildFailure {
            kind,
            message: text.to_owned(),
            step: None,
            exit_code: None,
        })
    }

    #[test]
    fn the_texts_that_callers_look_for_are_there() {
        for (kind, text, expected) in [
            (
                FailureKind::Dockerfile,
                "RUN make: exit code 2",
                "build failed: RUN make: exit code 2",
            ),
            (
                FailureKind::Dockerfile,
                "build failed: x",
                "build failed: x",
            ),
            (
                FailureKind::Source,
                "no such branch",
                "build failed: no such branch",
            ),
            (
                FailureKind::OutOfMemory,
                "RUN make",
                "build failed: RUN make",
            ),
            (
                FailureKind::Timeout,
                "timed out after 60m",
                "build failed: timed out after 60m",
            ),
            (
                FailureKind::Timeout,
                "step 3",
                "build failed: timed out: step 3",
            ),
            (
                FailureKind::BaseImageMissing,
                "a.example/b",
                "build failed: base image does not exist: a.example/b",
            ),
            (
                FailureKind::BaseImageMissing,
                "base image does not exist: x",
                "build failed: base image does not exist: x",
            ),
            (FailureKind::BaseImage, "503", "cannot resolve image: 503"),
            (
                FailureKind::BaseImage,
                "cannot resolve image x",
                "cannot resolve image x",
            ),
            (FailureKind::Registry, "502", "registry failed: 502"),
            (
                FailureKind::WorkerLost,
                "gone",
                "build could not be carried out: gone",
            ),
        ] {
            assert_eq!(message(kind, text), expected);
        }
    }

    #[test]
    fn a_long_status_is_cut_between_characters() {
        let failure = Failure::new(Blame::Request, "ä".repeat(STATUS_MAX_BYTES));
        let status = failure.status();
        assert_eq!(status.message().len(), STATUS_MAX_BYTES);
        assert!(message(FailureKind::Dockerfile, &"x".repeat(1 << 20)).len() <= MESSAGE_MAX_BYTES);
    }

    #[test]
    fn every_blame_has_its_code() {
        for (blame, code) in [
            (Blame::Request, Code::InvalidArgument),
            (Blame::Missing, Code::NotFound),
            (Blame::Credentials, Code::Unauthenticated),
            (Blame::Registry, Code::Unavailable),
            (Blame::Load, Code::ResourceExhausted),
            (Blame::Shutdown, Code::Unavailable),
            (Blame::Unsupported, Code::Unimplemented),
            (Blame::Platform, Code::Internal),
        ] {
            assert_eq!(Failure::new(blame, "x").status().code(), code);
        }
    }
}
