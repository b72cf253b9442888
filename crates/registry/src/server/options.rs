//! What the embedded registry refuses to exceed, and who decides about access.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, HeaderValue, Method, StatusCode};

/// Decides about one request. Called on every request before anything else is looked at; must not block.
pub type Authorize = Arc<dyn Fn(&Access<'_>) -> Decision + Send + Sync>;

/// Tells whose a repository is, where there are several; the same for a name, always. What counts is what an owner's repositories take,
/// whoever writes to them. Must not block.
pub type OwnerOf = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// How the embedded registry behaves.
#[derive(Clone)]
pub struct ServerOptions {
    /// Largest blob in bytes that is accepted.
    pub blob_max_bytes: u64,
    /// Largest manifest in bytes that is accepted.
    pub manifest_max_bytes: usize,
    /// Requests that carry a blob at a time; the next is answered 429.
    pub uploads_max: usize,
    /// Those to repositories of one owner, where there are several.
    pub owner_uploads_max: usize,
    /// Those that every owner may have, however many others have.
    pub owner_uploads_min: usize,
    /// Pieces of disk work at a time; the next waits.
    pub blocking_max: usize,
    /// How long a body may bring no byte.
    pub body_idle_max: Duration,
    /// Once a body has lasted for `body_idle_max`, how many bytes a second it must have brought on average.
    pub body_bytes_per_second_min: u64,
    /// Most entries of one page of tags, repositories or referrers.
    pub page_max: usize,
    /// Who may do what; everybody everything without.
    pub authorize: Option<Authorize>,
    /// Whose each repository is; all are one owner's without.
    pub owner_of: Option<OwnerOf>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            blob_max_bytes: 64 << 30,
            manifest_max_bytes: oci::manifest::DOCUMENT_MAX_BYTES,
            uploads_max: 64,
            owner_uploads_max: 32,
            owner_uploads_min: 4,
            blocking_max: 32,
            body_idle_max: Duration::from_secs(30),
            body_bytes_per_second_min: 1024,
            page_max: 1000,
            authorize: None,
            owner_of: None,
        }
    }
}

impl fmt::Debug for ServerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerOptions")
            .field("blob_max_bytes", &self.blob_max_bytes)
            .field("manifest_max_bytes", &self.manifest_max_bytes)
            .field("uploads_max", &self.uploads_max)
            .field("owner_uploads_max", &self.owner_uploads_max)
            .field("owner_uploads_min", &self.owner_uploads_min)
            .field("blocking_max", &self.blocking_max)
            .field("body_idle_max", &self.body_idle_max)
            .field("body_bytes_per_second_min", &self.body_bytes_per_second_min)
            .field("page_max", &self.page_max)
            .field("has_authorize", &self.authorize.is_some())
            .field("has_owner_of", &self.owner_of.is_some())
            .finish()
    }
}

/// What a request wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// See whether there is a registry, and log in.
    Ping,
    /// List all repositories.
    List,
    /// Read from a repository.
    Pull,
    /// Add to a repository.
    Push,
    /// Remove from a repository.
    Delete,
}

/// What is known of a request when access is decided.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// What whoever serves the connection has put to the request.
    pub extensions: &'a Extensions,
    /// The request's method.
    pub method: &'a Method,
    /// The repository, when the path names one.
    pub repository: Option<&'a str>,
    /// What the request wants to do. Mounting asks twice: to push here, to pull there. A list of repositories asks for each in it whether it
    /// may be pulled from.
    pub action: Action,
    /// The `Authorization` header.
    pub authorization: Option<&'a HeaderValue>,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// Answer as if there were no such thing.
    Hide,
    /// Answer with an error.
    Deny {
        /// The answer's status: 401, 403, 429.
        status: StatusCode,
        /// How to convince us, for a 401.
        www_authenticate: Option<String>,
    },
}
