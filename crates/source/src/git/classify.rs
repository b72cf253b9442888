//! Reads git's words: the only thing that tells a missing repository from a refused one.
//!
//! Git runs with `LC_ALL=C`, so its words are the ones below. A server's own words (lines that begin with `remote:`) are
//! never read here, or a server could choose how its failure is told.

use super::command::Failure;
use super::error::FetchError;

/// Words of a refusal.
const REFUSED: &[&str] = &[
    "Authentication failed",
    "could not read Username",
    "could not read Password",
    "returned error: 401",
    "returned error: 403",
    "Access denied",
    "terminal prompts disabled",
];

/// Words of a repository that is not there.
const NO_REPOSITORY: &[&str] = &[
    "returned error: 404",
    "returned error: 410",
    "' not found",
    "/info/refs not valid",
    "does not appear to be a git repository",
];

/// Words of a redirect.
const REDIRECT: &[&str] = &[
    "returned error: 301",
    "returned error: 302",
    "returned error: 303",
    "returned error: 307",
    "returned error: 308",
];

/// Words of a server that cannot be reached, is overloaded or breaks off.
const UNAVAILABLE: &[&str] = &[
    "Could not resolve host",
    "Failed to connect",
    "Couldn't connect",
    "Connection refused",
    "Connection reset",
    "Connection timed out",
    "Operation timed out",
    "Operation too slow",
    "Empty reply from server",
    "returned error: 408",
    "returned error: 429",
    "returned error: 5",
    "RPC failed",
    "early EOF",
    "unexpected disconnect",
    "hung up unexpectedly",
    "the remote end hung up",
    "transfer closed",
    "Recv failure",
    "Send failure",
    "SSL",
    "gnutls",
    "certificate",
    "Could not resolve proxy",
    "expected flush after",
];

/// Returns the error that `failure` of a command on `url` stands for.
pub(super) fn explain(url: &str, failure: &Failure) -> FetchError {
    let detail = own_words(&failure.words);
    let says = |phrases: &[&str]| phrases.iter().any(|phrase| detail.contains(phrase));
    let url = url.to_owned();
    if says(REFUSED) {
        FetchError::Unauthorized { url, detail }
    } else if says(REDIRECT) {
        FetchError::Redirected { url }
    } else if says(NO_REPOSITORY) {
        FetchError::RepositoryNotFound { url, detail }
    } else if says(UNAVAILABLE) {
        FetchError::Unavailable { url, detail }
    } else {
        FetchError::Git {
            command: failure.command.clone(),
            detail: format!("{}: {detail}", failure.status),
        }
    }
}

/// Returns whether the reference that was asked for is not among the server's.
pub(super) fn is_missing_reference(failure: &Failure) -> bool {
    let words = own_words(&failure.words);
    words.contains("couldn't find remote ref") || words.contains("invalid refspec")
}

/// Returns whether the server does not hand out the commit that was asked for by its name.
pub(super) fn is_refused_object(failure: &Failure) -> bool {
    let words = &failure.words;
    [
        "not our ref",
        "unadvertised object",
        "does not allow request",
        "no such remote ref",
        "couldn't find remote ref",
        "bad object",
        "unable to find",
    ]
    .iter()
    .any(|phrase| words.contains(phrase))
}

/// Returns whether a file grew over the limit of the process.
pub(super) fn is_too_large(words: &str) -> bool {
    let words = own_words(words);
    words.contains("File too large") || words.contains("died of signal 25")
}

/// Returns whether git was refused memory.
pub(super) fn is_out_of_memory(words: &str) -> bool {
    let words = own_words(words);
    words.contains("Out of memory") || words.contains("Cannot allocate memory")
}

/// Returns git's own lines.
fn own_words(words: &str) -> String {
    words
        .lines()
        .filter(|line| !line.trim_start().starts_with("remote:"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::super::error::{FetchErrorKind, Missing};
    use super::*;

    fn kind(words: &str) -> FetchErrorKind {
        let failure = Failure {
            command: "fetch".to_owned(),
            status: ExitStatus::from_raw(128 << 8),
            words: words.to_owned(),
        };
        explain("https://example.com/x", &failure).kind()
    }

    #[test]
    fn git_s_words_are_told_apart() {
        assert_eq!(
            kind("fatal: Authentication failed for 'https://example.com/x/'"),
            FetchErrorKind::Unauthorized
        );
        assert_eq!(
            kind(
                "fatal: could not read Username for 'https://example.com': terminal prompts disabled"
            ),
            FetchErrorKind::Unauthorized
        );
        assert_eq!(
            kind("fatal: repository 'https://example.com/x/' not found"),
            FetchErrorKind::NotFound(Missing::Repository)
        );
        assert_eq!(
            kind(
                "fatal: unable to access 'https://example.com/x/': The requested URL returned error: 503"
            ),
            FetchErrorKind::Unavailable
        );
        assert_eq!(
            kind(
                "fatal: unable to access 'https://example.com/x/': Could not resolve host: example.com"
            ),
            FetchErrorKind::Unavailable
        );
        assert_eq!(kind("fatal: something new"), FetchErrorKind::Git);
    }

    #[test]
    fn a_server_cannot_choose_how_its_failure_is_told() {
        assert_eq!(
            kind("remote: Authentication failed\nfatal: the remote end hung up unexpectedly"),
            FetchErrorKind::Unavailable
        );
    }
}
