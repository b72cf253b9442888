//! What can go wrong in [`fetch`](super::fetch), and whose fault it is.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::config::ConfigError;

/// What a failed fetch means to whoever asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchErrorKind {
    /// The request itself can never work.
    Invalid,
    /// The repository answered, and this is not there.
    NotFound(Missing),
    /// The server wants other credentials, or any.
    Unauthorized,
    /// The server cannot be reached or does not answer properly; trying later may help.
    Unavailable,
    /// The repository is larger or slower than allowed.
    Limit,
    /// The caller cancelled.
    Cancelled,
    /// Git failed for a reason of its own, or this machine did.
    Git,
}

/// What was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The repository, or everything in it.
    Repository,
    /// The branch.
    Branch,
    /// The commit or tag.
    Commit,
}

/// Why a request can never work, known before anything is contacted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The target is not a name that git takes for a branch.
    #[error("{0:?} is not a valid branch name")]
    Branch(String),
    /// The target is neither a commit nor a valid name.
    #[error("{0:?} is neither a commit nor a valid tag or branch name")]
    Commit(String),
    /// Plain http to a host for which it is not allowed.
    #[error("plain http to {0} is not allowed; use https")]
    PlainHttp(String),
    /// The user name or password cannot be sent as basic authentication.
    #[error("git user name or password contains a character that is not allowed or is too long")]
    Credential,
    /// The address of the one-time secret is not acceptable.
    #[error("address of the one-time secret is not acceptable")]
    SecretUrl(#[source] super::ParseRemoteUrlError),
    /// The address leads where nothing is connected to.
    #[error(transparent)]
    Egress(egress::Refused),
    /// A git setting is refused.
    #[error("git config is not acceptable")]
    Config(#[source] ConfigError),
}

/// Why a one-time secret could not be had. It may be spent: it is never asked for twice.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// No answer, or no complete one, within the time allowed.
    #[error("one-time secret could not be fetched")]
    Request,
    /// Its host leads where nothing is connected to.
    #[error(transparent)]
    Egress(egress::Refused),
    /// The answer was a redirect or an error.
    #[error("one-time secret was answered with status {0}")]
    Status(u16),
    /// The answer was longer than a secret is.
    #[error("one-time secret is longer than {0} bytes")]
    TooLong(usize),
    /// The answer is not one line of text.
    #[error("one-time secret is not one line of plain text")]
    Malformed,
}

/// A failed [`fetch`](super::fetch). No text in it holds a credential.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The request can never work.
    #[error("git source is not acceptable")]
    Request(#[source] RequestError),
    /// The checkout location could not be made, or holds something already.
    #[error("prepare checkout location {path}")]
    Prepare {
        /// The directory.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The one-time secret could not be had.
    #[error("fetch git credentials")]
    Secret(#[source] SecretError),
    /// A host leads where nothing is connected to.
    #[error(transparent)]
    Egress(egress::Refused),
    /// A host is not known.
    #[error("resolve {host}")]
    Resolve {
        /// The host.
        host: String,
        /// What failed.
        source: io::Error,
    },
    /// Git could not be started or spoken to.
    #[error("run {program}")]
    Start {
        /// The program.
        program: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// The server says that there is no such repository, or it is empty.
    #[error("repository {url} was not found or is empty: {detail}")]
    RepositoryNotFound {
        /// The repository.
        url: String,
        /// Git's own words.
        detail: String,
    },
    /// The repository has no such branch.
    #[error("branch {branch:?} does not exist in {url}")]
    BranchNotFound {
        /// The repository.
        url: String,
        /// The branch.
        branch: String,
    },
    /// The repository has no such commit or tag.
    #[error("commit {commit:?} does not exist in {url}")]
    CommitNotFound {
        /// The repository.
        url: String,
        /// The target as requested.
        commit: String,
    },
    /// The target names something other than one commit.
    #[error("{target:?} in {url} is {what}")]
    NotACommit {
        /// The repository.
        url: String,
        /// The target as requested.
        target: String,
        /// What it is instead.
        what: &'static str,
    },
    /// The server refuses the credentials, or wants some.
    #[error("access to {url} was refused: {detail}")]
    Unauthorized {
        /// The repository.
        url: String,
        /// Git's own words.
        detail: String,
    },
    /// The server cannot be reached or breaks off.
    #[error("{url} is not available: {detail}")]
    Unavailable {
        /// The repository.
        url: String,
        /// Git's own words.
        detail: String,
    },
    /// The server redirects, which is only followed once and to the same host.
    #[error("{url} redirects; use the address that it redirects to")]
    Redirected {
        /// The repository.
        url: String,
    },
    /// The server advertised a name or an object that no honest server has.
    #[error("{url} answered with something unacceptable: {what}")]
    Hostile {
        /// The repository.
        url: String,
        /// What it was.
        what: &'static str,
    },
    /// A limit was reached.
    #[error("repository exceeds the limit of {limit}")]
    Limit {
        /// The limit, with its figure.
        limit: String,
    },
    /// The fetch took longer than allowed.
    #[error("fetch timed out after {} seconds", .after.as_secs())]
    TimedOut {
        /// The time allowed.
        after: Duration,
    },
    /// The caller cancelled.
    #[error("fetch was cancelled")]
    Cancelled,
    /// What is kept with LFS could not be had.
    #[error("LFS of {url}: {reason}")]
    Lfs {
        /// The repository.
        url: String,
        /// What was wrong.
        reason: String,
    },
    /// A submodule could not be fetched.
    #[error("fetch submodule {path}")]
    Submodule {
        /// Where in the workspace.
        path: String,
        /// What failed.
        source: Box<FetchError>,
    },
    /// Git failed for a reason that none of the others names.
    #[error("git {command} failed: {detail}")]
    Git {
        /// Git's subcommand.
        command: String,
        /// Its exit status and last words.
        detail: String,
    },
}

impl FetchError {
    /// Returns what the failure means to whoever asked.
    pub fn kind(&self) -> FetchErrorKind {
        match self {
            Self::Request(_)
            | Self::NotACommit { .. }
            | Self::Egress(_)
            | Self::Secret(SecretError::Egress(_)) => FetchErrorKind::Invalid,
            Self::Prepare { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory
                ) =>
            {
                FetchErrorKind::Invalid
            }
            Self::Redirected { .. }
            | Self::Hostile { .. }
            | Self::Prepare { .. }
            | Self::Start { .. }
            | Self::Lfs { .. }
            | Self::Git { .. } => FetchErrorKind::Git,
            Self::Secret(SecretError::Request)
            | Self::Unavailable { .. }
            | Self::Resolve { .. } => FetchErrorKind::Unavailable,
            Self::Secret(_) | Self::Unauthorized { .. } => FetchErrorKind::Unauthorized,
            Self::RepositoryNotFound { .. } => FetchErrorKind::NotFound(Missing::Repository),
            Self::BranchNotFound { .. } => FetchErrorKind::NotFound(Missing::Branch),
            Self::CommitNotFound { .. } => FetchErrorKind::NotFound(Missing::Commit),
            Self::Limit { .. } | Self::TimedOut { .. } => FetchErrorKind::Limit,
            Self::Cancelled => FetchErrorKind::Cancelled,
            Self::Submodule { source, .. } => source.kind(),
        }
    }
}
