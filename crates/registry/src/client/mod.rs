//! A client for any registry that speaks the OCI distribution protocol.
//!
//! 1. A request is addressed to an endpoint: the mirrors of the registry in their order, then the registry ([`crate::hosts`]).
//! 2. It is authorised for its repository and action alone (`auth`), and sent (`transport`); redirects are ours to follow.
//! 3. Transient failures are tried again (`retry`).
//! 4. What arrives is verified before anybody sees it (`pull`, `blob`); what is sent is verified afterwards (`push`, `upload`).
//!
//! Dropping a future cancels what it does. Nothing here reads the environment, and nothing is kept on disk but verified blobs.

use std::sync::Arc;
use std::time::Duration;

use crate::hosts::{Endpoint, Hosts};
use crate::keychain::Keychain;

mod auth;
mod blob;
mod body;
mod call;
mod dial;
mod download;
mod error;
mod growing;
mod pull;
mod push;
mod retry;
mod session;
mod source;
mod transport;
mod upload;

pub use blob::BlobStream;
pub use error::{Error, ErrorKind, Problem};
pub use growing::GrowingBlob;
pub use pull::{Resolved, ResolvedImage};
pub use push::{BlobToPush, ImageToPush, Presence};
pub use source::BlobSource;
pub use upload::Pushed;

use auth::Authorizer;
use retry::Budgets;
use transport::Transport;

/// Limits and habits of a client.
#[derive(Debug, Clone)]
pub struct Options {
    /// Until a connection stands, name resolution and TLS included.
    pub connect_timeout: Duration,
    /// From there until the headers of the answer are complete.
    pub header_timeout: Duration,
    /// Until the registry has answered for a blob or manifest that was sent completely: some copy it once more.
    pub finish_timeout: Duration,
    /// While waiting for a body, at least [`Self::stall_bytes`] must move within this time.
    pub stall_window: Duration,
    /// See [`Self::stall_window`].
    pub stall_bytes: u64,
    /// How often a request is sent at most.
    pub tries: u32,
    /// Upper limit of the wait before the second try; it doubles with each further one.
    pub backoff_base: Duration,
    /// Upper limit of the wait before any try.
    pub backoff_max: Duration,
    /// Longest wait that a registry may ask for.
    pub retry_after_max: Duration,
    /// Blobs up to this size are sent in one request, larger ones in a stream that can be resumed.
    pub monolithic_max_bytes: u64,
    /// Blobs of one image that are pushed at the same time.
    pub parallel_uploads: usize,
    /// Proxies; `None` connects directly.
    pub proxy: Option<ProxyOptions>,
    /// Where connections may lead, those included that registries send us to.
    pub egress: egress::Policy,
    /// How we introduce ourselves.
    pub user_agent: String,
}

/// Proxies as given by the usual environment variables; the command line reads those.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyOptions {
    /// URL of the proxy for http requests.
    #[serde(default)]
    pub http: Option<String>,
    /// URL of the proxy for https requests.
    #[serde(default)]
    pub https: Option<String>,
    /// Hosts that are connected to directly, comma-separated. Loopback hosts always are.
    #[serde(default)]
    pub no_proxy: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(15),
            finish_timeout: Duration::from_secs(300),
            stall_window: Duration::from_secs(30),
            stall_bytes: 16 << 10,
            tries: 6,
            backoff_base: Duration::from_millis(250),
            backoff_max: Duration::from_secs(10),
            retry_after_max: Duration::from_secs(60),
            monolithic_max_bytes: 1 << 20,
            parallel_uploads: 4,
            proxy: None,
            egress: egress::Policy::default(),
            user_agent: concat!("kiln/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// A client. Cheap to clone; clones share connections and tokens.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    hosts: Hosts,
    keychain: Keychain,
    options: Options,
    transport: Transport,
    authorizer: Authorizer,
    budgets: Budgets,
}

impl Client {
    /// Returns a client that reaches registries as `hosts` says, with the credentials of `keychain`.
    ///
    /// # Errors
    /// When a certificate, key or proxy of the configuration cannot be used.
    pub fn new(hosts: Hosts, keychain: Keychain, options: Options) -> Result<Self, Error> {
        let transport = Transport::new(&hosts, &options)?;
        Ok(Self {
            inner: Arc::new(Inner {
                hosts,
                keychain,
                options,
                transport,
                authorizer: Authorizer::default(),
                budgets: Budgets::default(),
            }),
        })
    }

    /// Returns the same client with other credentials. Connections are shared, tokens are not.
    #[must_use]
    pub fn with_keychain(&self, keychain: Keychain) -> Self {
        Self {
            inner: Arc::new(Inner {
                hosts: self.inner.hosts.clone(),
                keychain,
                options: self.inner.options.clone(),
                transport: self.inner.transport.clone(),
                authorizer: Authorizer::default(),
                budgets: Budgets::default(),
            }),
        }
    }

    fn origin(&self, host: &str) -> Result<Endpoint, Problem> {
        self.inner.hosts.origin(host).map_err(Problem::Hosts)
    }

    fn pull_endpoints(&self, host: &str) -> Result<Vec<Endpoint>, Problem> {
        let endpoints = self.inner.hosts.pull_endpoints(host);
        endpoints.map_err(Problem::Hosts)
    }
}
