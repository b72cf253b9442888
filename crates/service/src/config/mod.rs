//! The service's configuration: our TOML, strict; or the JSON of the published service.
//!
//! Read once, before anything is started. Nothing here looks at the environment or at the machine: whoever calls fills in what
//! depends on those ([`Config::state`]). Every key is explained by [`print_documented`].

mod admission;
mod cache;
mod callers;
mod contexts;
mod document;
mod duration;
mod published;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use egress::{Network, Policy, Reach};
use engine::spec::{Compression, Limits, NetworkMode};
use engine::subassembly::Format;
use oci::Reference;
use registry::hosts::Hosts;
use serde::Deserialize;
use source::git::{FetchOptions, Lfs, Submodules};

pub use self::admission::{Admission, TenantAdmission};
pub use self::cache::Cache;
pub use self::callers::{Caller, CertificateName, CertificateNameError, TokenHash, TokenHashError};
pub use self::contexts::Contexts;
pub use self::document::print_documented;
pub use self::duration::parse as parse_duration;

/// Most tries after the first one of a build whose workers are killed.
const RETRIES_MAX: u32 = 10;
/// How a server may stand to its builds, as nice(1) has it.
const NICENESS: std::ops::RangeInclusive<i32> = -20..=0;
/// Largest configuration file that is read.
pub const FILE_MAX_BYTES: usize = 4 << 20;

/// Longest time that an answer of a registry may be told again. Images that change seldom are for `ref_cache.refs`.
const FRESH_FOR_MAX: Duration = Duration::from_secs(3600);

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// `host:port` under which clients and workers reach this server; the bound address when not given.
    pub address: Option<String>,
    /// Where everything is kept; the command line chooses when not given.
    pub state: Option<PathBuf>,
    /// Certificates; plain text when not given.
    pub tls: Option<Tls>,
    /// Where base images are published; `<address>/base-images` when not given.
    #[serde(deserialize_with = "repository")]
    pub base_image_repository: Option<Reference>,
    /// Where workspace images are published; `<address>/workspace-images` when not given.
    #[serde(deserialize_with = "repository")]
    pub workspace_image_repository: Option<Reference>,
    /// Whether everybody on the network may call, where no callers are configured.
    pub open_to_network: bool,
    /// What names that callers of `kiln.v1` choose begin with, in the embedded registry; none when empty.
    pub build_namespace: String,
    /// What the names of other tenants than the default one begin with there.
    pub tenant_namespace: String,
    /// Repositories of the embedded registry that every tenant may pull, each with what is below it.
    pub shared_repositories: Vec<String>,
    /// A docker configuration with the service's registry credentials; read again when it changes.
    pub pull_secret_file: Option<PathBuf>,
    /// Whether tokens for Amazon's registries are fetched, by `docker-credential-ecr-login`.
    pub enable_additional_ecr_auth: bool,
    /// Network of steps that do not say.
    pub network: NetworkMode,
    /// How new layers are compressed.
    pub compression: Compression,
    /// Images whose digests are kept at hand.
    pub ref_cache: RefCache,
    /// How much caches may take.
    pub cache: Cache,
    /// How much the server takes on.
    pub server: Server,
    /// Which builds are taken on, and how tenants share what there is.
    pub admission: Admission,
    /// How folders are taken that callers upload.
    pub contexts: Contexts,
    /// Where connections may lead.
    pub egress: Egress,
    /// What git may talk to.
    pub git: Git,
    /// What one build may use up.
    pub limits: Limits,
    /// How subassemblies are made.
    pub subassembly: Subassembly,
    /// Where archives for workspaces are.
    pub snapshots: Snapshots,
    /// How buckets are reached.
    pub objects: Objects,
    /// How workers are started.
    pub worker: Worker,
    /// How each registry is reached.
    pub registry: Hosts,
    /// Who may call; everybody who reaches the port when there are none.
    pub callers: Vec<Caller>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            address: None,
            state: None,
            tls: None,
            base_image_repository: None,
            workspace_image_repository: None,
            open_to_network: false,
            build_namespace: "builds".to_owned(),
            tenant_namespace: "tenants".to_owned(),
            shared_repositories: Vec::new(),
            pull_secret_file: None,
            enable_additional_ecr_auth: false,
            network: NetworkMode::Default,
            compression: Compression::Gzip,
            ref_cache: RefCache::default(),
            cache: Cache::default(),
            server: Server::default(),
            admission: Admission::default(),
            contexts: Contexts::default(),
            egress: Egress::default(),
            git: Git::default(),
            limits: Limits::default(),
            subassembly: Subassembly::default(),
            snapshots: Snapshots::default(),
            objects: Objects::default(),
            worker: Worker::default(),
            registry: Hosts::default(),
            callers: Vec::new(),
        }
    }
}

/// Files in PEM form.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The server's certificate, with intermediates.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Who signs clients' certificates.
    pub client_ca: Option<PathBuf>,
    /// Whether clients need one of these certificates.
    #[serde(default)]
    pub clients: TlsClients,
}

/// Whether clients need a certificate, where there is somebody who signs them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsClients {
    /// A client without one is refused before it has said anything.
    #[default]
    NeedCertificate,
    /// A client without one needs a token.
    MayHaveCertificate,
}

/// Images whose digests are kept at hand.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RefCache {
    /// How often they are looked up again: `6h`, `1h30m`.
    #[serde(deserialize_with = "duration::deserialize")]
    pub interval: Duration,
    /// Which ones.
    pub refs: BTreeSet<Reference>,
    /// How long what a registry says of any other image is told again to who has asked for it.
    #[serde(deserialize_with = "duration::deserialize")]
    pub fresh_for: Duration,
}

impl Default for RefCache {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(6 * 3600),
            refs: BTreeSet::new(),
            fresh_for: Duration::from_secs(1),
        }
    }
}

/// How much the server takes on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Builds that run at the same time.
    pub max_running_builds: usize,
    /// Builds that wait for their turn; more are refused with `RESOURCE_EXHAUSTED`.
    pub max_queued_builds: usize,
    /// Connections at the same time; more wait to be accepted.
    pub max_connections: usize,
    /// Largest request that is read, in bytes.
    pub max_request_bytes: usize,
    /// How long open streams get to end at shutdown.
    #[serde(deserialize_with = "duration::deserialize")]
    pub drain_timeout: Duration,
    /// How often a build is begun again whose worker was killed.
    pub retries_of_lost_workers: u32,
    /// The niceness of the server; builds keep the one that it was started with.
    pub niceness: i32,
    /// How long an ended build and its log are kept.
    #[serde(deserialize_with = "duration::deserialize")]
    pub retention: Duration,
    /// How much ended builds may take together, in bytes; the oldest go first.
    pub retention_bytes: Option<u64>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            max_running_builds: 8,
            max_queued_builds: 256,
            max_connections: 4096,
            max_request_bytes: 100 << 20,
            drain_timeout: Duration::from_secs(10),
            retries_of_lost_workers: 0,
            niceness: -5,
            retention: Duration::from_secs(7 * 24 * 3600),
            retention_bytes: None,
        }
    }
}

/// Where connections may lead that a request asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Egress {
    /// Which kinds of places; when not given, public ones for the service and private ones too for `kiln build`.
    pub reach: Option<Reach>,
    /// Networks, whatever they are.
    pub networks: Vec<Network>,
    /// Hosts (`name` or `name:port`), wherever they are. Hosts that other keys name need not be repeated.
    pub hosts: Vec<String>,
}

/// What git may talk to, beyond any host over https and this machine over http.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Git {
    /// Hosts (`name` or `name:port`) to which plain http is allowed.
    pub http_hosts: Vec<String>,
    /// Hosts that one-time secrets may come from; any https host when empty.
    pub secret_hosts: Vec<String>,
    /// Certificate authorities in PEM form, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Which submodules are fetched.
    pub submodules: Submodules,
    /// Whether files kept with LFS are fetched.
    pub lfs: Lfs,
}

impl Git {
    /// Returns how sources are fetched.
    pub fn fetch_options(&self) -> FetchOptions {
        FetchOptions {
            http_hosts: self.http_hosts.clone(),
            secret_hosts: self.secret_hosts.clone(),
            ca_file: self.ca_file.clone(),
            submodules: self.submodules,
            lfs: self.lfs,
            ..FetchOptions::default()
        }
    }
}

/// Where archives for workspaces are: snapshots, prebuilds and backups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Snapshots {
    /// A folder with tar archives, plain or compressed; workers must be able to read it. There are none when not given.
    pub folder: Option<PathBuf>,
}

/// How subassemblies are made, and handed out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Subassembly {
    /// What their files are.
    pub format: Format,
    /// How long the address of a file is good.
    #[serde(deserialize_with = "duration::deserialize")]
    pub url_lifetime: Duration,
    /// The bucket that their files are put into; the store alone when not given.
    pub bucket: Option<String>,
    /// What the names of files in the bucket begin with.
    pub bucket_prefix: Option<objects::Name>,
}

impl Default for Subassembly {
    fn default() -> Self {
        Self {
            format: Format::default(),
            url_lifetime: Duration::from_secs(3600),
            bucket: None,
            bucket_prefix: None,
        }
    }
}

/// How buckets are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Objects {
    /// `https://host` of the store; Amazon's of the region when not given.
    pub endpoint: Option<String>,
    /// Where the store says it is.
    pub region: Option<String>,
    /// A file with the access key; the environment says when not given.
    pub access_key_id_file: Option<PathBuf>,
    /// A file with its secret.
    pub secret_access_key_file: Option<PathBuf>,
    /// A file with the session token, for keys that have one.
    pub session_token_file: Option<PathBuf>,
}

impl Objects {
    fn check(&self) -> Result<(), ConfigError> {
        if self.access_key_id_file.is_some() != self.secret_access_key_file.is_some() {
            let problem = "needs access_key_id_file and secret_access_key_file";
            return Err(value("objects", problem));
        }
        if self.session_token_file.is_some() && self.access_key_id_file.is_none() {
            return Err(value(
                "objects.session_token_file",
                "needs access_key_id_file",
            ));
        }
        let is_host = |text: &String| {
            url::Url::parse(text).is_ok_and(|url| {
                matches!(url.scheme(), "http" | "https")
                    && url.has_host()
                    && url.username().is_empty()
                    && url.password().is_none()
                    && url.path() == "/"
                    && url.query().is_none()
                    && url.fragment().is_none()
            })
        };
        if !self.endpoint.as_ref().is_none_or(is_host) {
            return Err(value("objects.endpoint", "must be https://host"));
        }
        Ok(())
    }
}

impl Subassembly {
    fn check(&self) -> Result<(), ConfigError> {
        let Some(bucket) = &self.bucket else {
            return match &self.bucket_prefix {
                Some(_) => Err(value("subassembly.bucket_prefix", "needs a bucket")),
                None => Ok(()),
            };
        };
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if !(3..=255).contains(&bucket.len())
            || bucket.contains("..")
            || !bucket.bytes().all(is_plain)
        {
            return Err(value("subassembly.bucket", "is not the name of a bucket"));
        }
        if self.url_lifetime > objects::SIGNED_MAX {
            let problem = "an address of a bucket is good for 7 days at most";
            return Err(value("subassembly.url_lifetime", problem));
        }
        Ok(())
    }
}

fn value(key: &'static str, problem: &str) -> ConfigError {
    ConfigError::Value {
        key,
        problem: problem.to_owned(),
    }
}

/// How workers are started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Worker {
    /// First user and group id of the 65536 that a worker, and everything in it, runs as. When not given: `/etc/subuid` and
    /// `/etc/subgid` decide, or a fixed range when the server is root.
    pub user_namespace_base: Option<u32>,
}

/// Tells why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Larger than [`FILE_MAX_BYTES`].
    #[error("configuration is larger than {FILE_MAX_BYTES} bytes")]
    TooLarge,
    /// Not TOML of the expected shape.
    #[error("configuration is not valid")]
    Toml(#[source] toml::de::Error),
    /// Not JSON of the published shape.
    #[error("configuration is not valid")]
    Json(#[source] serde_json::Error),
    /// A value that makes no sense.
    #[error("configuration key {key}: {problem}")]
    Value {
        /// Its key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// A configuration, and what its reader should know.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The configuration.
    pub config: Config,
    /// One sentence for each key that was accepted without effect.
    pub warnings: Vec<String>,
}

/// Parses a configuration: JSON of the published service if it begins with `{`, else our TOML.
pub fn parse(text: &str) -> Result<Parsed, ConfigError> {
    if text.len() > FILE_MAX_BYTES {
        return Err(ConfigError::TooLarge);
    }
    let parsed = if text.trim_start().starts_with('{') {
        published::parse(text)?
    } else {
        Parsed {
            config: toml::from_str(text).map_err(ConfigError::Toml)?,
            warnings: Vec::new(),
        }
    };
    parsed.config.check()?;
    Ok(parsed)
}

impl Config {
    /// Returns where connections may lead: where the configuration says, and to every host that it names for another purpose.
    pub fn egress_policy(&self, otherwise: Reach) -> Policy {
        let mut policy = Policy {
            reach: self.egress.reach.unwrap_or(otherwise),
            networks: self.egress.networks.clone(),
            hosts: BTreeSet::new(),
        };
        let repositories = [
            &self.base_image_repository,
            &self.workspace_image_repository,
        ];
        let references = repositories
            .into_iter()
            .flatten()
            .chain(&self.ref_cache.refs);
        let tables = self.registry.hosts().flat_map(|host| {
            let mirrors = self
                .registry
                .get(host)
                .map(|table| table.mirrors.as_slice());
            // A mirror may have a path, which is nothing to connect to.
            let mirrors = mirrors.unwrap_or_default().iter();
            std::iter::once(host).chain(mirrors.filter_map(|mirror| mirror.split('/').next()))
        });
        let named = references.map(Reference::host).chain(tables);
        let listed = [
            &self.egress.hosts,
            &self.git.http_hosts,
            &self.git.secret_hosts,
        ];
        for host in named.chain(listed.into_iter().flatten().map(String::as_str)) {
            policy.allow_host(host);
        }
        policy
    }

    /// Checks what no single key can tell.
    pub fn check(&self) -> Result<(), ConfigError> {
        let value = |key, problem: &str| Err(value(key, problem));
        self.subassembly.check()?;
        self.objects.check()?;
        self.contexts.check()?;
        if self.server.max_running_builds == 0 {
            return value("server.max_running_builds", "must be at least 1");
        }
        if self.server.max_connections == 0 {
            return value("server.max_connections", "must be at least 1");
        }
        if self.server.retries_of_lost_workers > RETRIES_MAX {
            return value("server.retries_of_lost_workers", "must be at most 10");
        }
        if !NICENESS.contains(&self.server.niceness) {
            return value("server.niceness", "must be between -20 and 0");
        }
        if self.ref_cache.interval < Duration::from_secs(1) {
            return value("ref_cache.interval", "must be at least 1s");
        }
        if self.ref_cache.fresh_for > FRESH_FOR_MAX {
            return value("ref_cache.fresh_for", "must be at most 1h");
        }
        if self.network == NetworkMode::Host && !self.limits.allow_host_network {
            return value("network", "\"host\" needs limits.allow_host_network = true");
        }
        self.check_namespaces()?;
        self.check_callers()?;
        self.check_admission()?;
        let address = self.address.as_deref();
        if let Some(address) = address
            && oci::reference::canonical_host(address).is_none()
        {
            return value("address", "must be host:port");
        }
        Ok(())
    }
}

/// Parses `host/path`: a reference without tag and digest whose host is written out.
fn parse_repository(text: &str) -> Result<Reference, String> {
    let reference: Reference = text
        .parse()
        .map_err(|error: oci::reference::ReferenceError| error.to_string())?;
    if reference.tag().is_some() || reference.digest().is_some() {
        return Err("a repository has neither tag nor digest".to_owned());
    }
    Ok(reference)
}

fn repository<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Reference>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_repository(&text)
        .map(Some)
        .map_err(serde::de::Error::custom)
}
