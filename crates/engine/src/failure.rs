//! From the errors of lower layers to whose fault a failed build is. The only place that decides it.

use std::error::Error;
use std::io;

use oci::Reference;
use registry::client::ErrorKind;
use source::git::{FetchError, FetchErrorKind};

use crate::event::{Failure, FailureKind};

/// Returns a failure of `kind`.
pub(crate) fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure {
        kind,
        message: message.into(),
        step: None,
        exit_code: None,
    }
}

/// Returns the failure of something that we, or the machine, did not manage.
pub(crate) fn platform(attempt: &str, error: &(dyn Error + 'static)) -> Failure {
    failure(blame(error), format!("{attempt}: {}", chain(error)))
}

/// Returns whose fault it is that we, or the machine, did not manage something.
pub fn blame(error: &(dyn Error + 'static)) -> FailureKind {
    if is_disk_full(error) {
        FailureKind::OutOfDisk
    } else {
        FailureKind::Platform
    }
}

/// Returns the failure of a file operation that the context or the image caused.
pub(crate) fn dockerfile(attempt: &str, error: &(dyn Error + 'static)) -> Failure {
    let kind = if is_disk_full(error) {
        FailureKind::OutOfDisk
    } else {
        FailureKind::Dockerfile
    };
    failure(kind, format!("{attempt}: {}", chain(error)))
}

/// Returns the failure to pin a base image. Callers of the published API look for these words.
pub(crate) fn base_image(reference: &Reference, error: &registry::client::Error) -> Failure {
    match error.kind() {
        ErrorKind::NotFound => failure(
            FailureKind::BaseImageMissing,
            format!(
                "base image does not exist: {}: {}",
                reference.familiar(),
                chain(error)
            ),
        ),
        ErrorKind::Unauthorized => failure(
            FailureKind::Credentials,
            format!(
                "cannot resolve image {}: {}",
                reference.familiar(),
                chain(error)
            ),
        ),
        _ => failure(
            FailureKind::BaseImage,
            format!(
                "cannot resolve image {}: {}",
                reference.familiar(),
                chain(error)
            ),
        ),
    }
}

/// Returns the failure of a registry while pulling or pushing.
pub(crate) fn registry(attempt: &str, error: &registry::client::Error) -> Failure {
    let kind = match error.kind() {
        ErrorKind::Unauthorized => FailureKind::Credentials,
        _ if is_disk_full(error) => FailureKind::OutOfDisk,
        _ => FailureKind::Registry,
    };
    failure(kind, format!("{attempt}: {}", chain(error)))
}

/// Returns the failure to fetch the sources.
pub(crate) fn source(error: &FetchError) -> Failure {
    let kind = match error.kind() {
        _ if is_disk_full(error) => FailureKind::OutOfDisk,
        FetchErrorKind::Unauthorized => FailureKind::Credentials,
        _ => FailureKind::Source,
    };
    failure(kind, format!("cannot fetch the sources: {}", chain(error)))
}

fn is_disk_full(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && matches!(
                io.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            )
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// Returns an error with its sources, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}
