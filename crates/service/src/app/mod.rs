//! A running service: the wiring, on one page.
//!
//! What [`run`] does, in order:
//!
//! 1. bind the port, so that the names of images are known;
//! 2. open the store, the keys and what is known of names;
//! 3. find the builds of earlier processes;
//! 4. put gRPC, the embedded registry and the rest behind the one port;
//! 5. say where we are in `STATE/server/address`, and serve;
//! 6. when told to stop: accept nothing more, let open calls end, end streams with a word, leave builds running.

mod calls;
mod connections;
mod names;
mod readiness;
mod registry;
mod tls;
mod upkeep;

use std::fs::DirBuilder;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::registry::client::{Client, Options as ClientOptions};
use source::git::FetchOptions;
use store::{Owner, Store};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::names::Addresses;
use crate::access::Repositories;
use crate::builds::provenance::{Provenance, ProvenanceError};
use crate::builds::requests::Requests;
use crate::builds::room::Room;
use crate::builds::{Builds, Limits, RecoverError};
use crate::config::{Config, ConfigError};
use crate::contexts::{self, Contexts};
use crate::environment::Environment;
use crate::executor::Executor;
use crate::grpc::Calls;
use crate::identity::{Callers, TokenFileError};
use crate::images::{
    Embedded, Images,
    credentials::{Credentials, Ecr},
};
use crate::lifecycle::{Service, Settings};
use crate::subassembly::{self, Subassemblies};
use crate::telemetry::Metrics;
use crate::web::download::Downloads;
use crate::web::tokens::LogTokens;
use crate::{builds, grpc, images, web};

/// What the process gives that the configuration cannot.
#[derive(Clone)]
pub struct Setup {
    /// Carries builds out.
    pub executor: Arc<dyn Executor>,
    /// Whom the store's files are given to, when this process is root.
    pub owner: Option<Owner>,
    /// The file with the configuration, whose callers are read again when it changes.
    pub config_file: Option<PathBuf>,
    /// Time and ids.
    pub environment: Environment,
    /// How registries are talked to.
    pub client: ClientOptions,
    /// What the environment says about buckets.
    pub ambient: subassembly::Ambient,
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup").finish_non_exhaustive()
    }
}

/// Tells why the service did not start, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration cannot be used.
    #[error("use the configuration")]
    Config(#[source] ConfigError),
    /// The configuration does not say where to keep things.
    #[error("use the configuration: key state is missing")]
    NoState,
    /// The port cannot be used.
    #[error("listen on {address}")]
    Listen {
        /// Which one.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The state directory cannot be used.
    #[error("use state directory {}", path.display())]
    State {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The system gives no random bytes.
    #[error("make a key")]
    Random(#[source] io::Error),
    /// The store cannot be opened.
    #[error("open the store")]
    Store(#[source] store::OpenError),
    /// What is known of names cannot be used.
    #[error("open what is known of names")]
    Provenance(#[source] ProvenanceError),
    /// What was asked for cannot be kept.
    #[error("open what is known of subassemblies")]
    Subassemblies(#[source] subassembly::WishError),
    /// The bucket of subassemblies cannot be used.
    #[error("open the bucket of subassemblies")]
    Bucket(#[source] subassembly::BucketError),
    /// The builds of earlier processes cannot be found.
    #[error("find earlier builds")]
    Recover(#[source] RecoverError),
    /// Everybody would be let in from everywhere.
    #[error(
        "listen on {address}, which is not this machine's alone, without callers: configure [[callers]] or tls.client_ca, or say open_to_network = true"
    )]
    Open {
        /// Where.
        address: SocketAddr,
    },
    /// Who may call cannot be found out.
    #[error("find out who may call")]
    Callers(#[source] TokenFileError),
    /// Certificates or keys cannot be used.
    #[error("set up TLS")]
    Tls(#[source] tls::TlsError),
    /// The settings of registries cannot be used.
    #[error("set up the registry client")]
    Client(#[source] ::registry::client::Error),
    /// The files named in the settings of registries cannot be read.
    #[error("read the files of registry settings")]
    Hosts(#[source] ::registry::hosts::HostsError),
    /// A name made of the address is not one of a repository.
    #[error("name repositories after address {address:?}")]
    Address {
        /// Which one.
        address: String,
    },
    /// Reflection cannot be offered.
    #[error("set up reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
}

pub use self::tls::TlsError;

/// Binds the configured address.
pub async fn bind(config: &Config) -> Result<TcpListener, RunError> {
    let address = config.listen;
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| RunError::Listen { address, source })
}

/// Serves on `listener` until `shutdown` resolves and everything open has ended or has had its time.
pub async fn run(
    config: Config,
    setup: Setup,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), RunError> {
    config.check().map_err(RunError::Config)?;
    let state = config.state.clone().ok_or(RunError::NoState)?;
    let bound = listener.local_addr();
    let addresses = Addresses::new(&config, bound.map_err(|e| in_state(&state, e))?)?;
    let acceptor = tls::acceptor(config.tls.as_ref()).map_err(RunError::Tls)?;
    let callers = callers(&config, &addresses)?;
    let opened = open(&config, &setup, &state).await?;
    let repositories = registry::repositories(&config, &addresses, &callers);
    let service = Arc::new(service(
        &config,
        &setup,
        (&addresses, repositories),
        &opened,
    )?);
    let Opened {
        store,
        builds,
        metrics,
        tasks,
        stop,
        ..
    } = &opened;

    let (readiness, health) = readiness::watch(&setup, &opened.folder, tasks, stop).await;
    callers.keep_read(setup.config_file.as_deref(), tasks, stop);
    upkeep::go_about(&config, &setup, &service, &opened);
    let downloads = downloads(&config, &setup, &opened);
    let bucket = subassembly::Shelf::new(&config, &setup.ambient).map_err(RunError::Bucket)?;
    let subassemblies = subassemblies(&config, &service, &opened, bucket);
    let subassemblies = subassemblies.map_err(RunError::Subassemblies)?;
    subassemblies.resume().await;
    let calls = Calls::new(grpc::Parts {
        service: Arc::clone(&service),
        tokens: opened.tokens.clone(),
        log_base_url: addresses.url(&config),
        subassemblies,
        contexts: contexts(&config, &setup, &opened),
        downloads: downloads.clone(),
        shutdown: stop.clone(),
        tasks: tasks.clone(),
    });
    let web = web::router(web::Parts {
        builds: builds.clone(),
        tokens: opened.tokens.clone(),
        store: store.clone(),
        downloads,
        metrics: metrics.clone(),
        readiness,
        shutdown: stop.clone(),
    });
    let options = registry::options(service.settings.repositories.clone());
    let registry = ::registry::server::router(store.clone(), options);
    let grpc = calls::grpc(&calls, health, config.server.max_request_bytes);
    let grpc = grpc.map_err(RunError::Reflection)?;

    announce(&opened.folder, &addresses).map_err(|e| in_state(&state, e))?;
    tracing::info!(address = %addresses.bound, state = %state.display(), "serving");
    let server = connections::Server {
        handler: calls::Handler::new(callers, (grpc, web.merge(registry)), metrics.clone()),
        acceptor,
        metrics: metrics.clone(),
        max_connections: config.server.max_connections,
        drain_timeout: config.server.drain_timeout,
        stop: stop.clone(),
    };
    connections::serve(listener, server, shutdown).await;
    let_go(&opened, config.server.drain_timeout).await;
    Ok(())
}

/// What is open as long as the service runs.
struct Opened {
    /// Keys, and what is known of names. Nobody but us may look into it.
    folder: PathBuf,
    store: Store,
    tokens: LogTokens,
    builds: Builds,
    room: Arc<Room>,
    metrics: Metrics,
    tasks: TaskTracker,
    /// Cancelled when the service is about to stop.
    stop: CancellationToken,
}

/// Returns who may call. Where that is everybody, the network must be one that everybody on it is trusted.
fn callers(config: &Config, addresses: &Addresses) -> Result<Callers, RunError> {
    let callers = Callers::open(&config.callers).map_err(RunError::Callers)?;
    let tls = config.tls.as_ref();
    let needs_certificate = tls.is_some_and(|tls| tls.client_ca.is_some());
    let bound = addresses.bound;
    let is_open = !callers.are_listed() && !needs_certificate && !bound.ip().is_loopback();
    if is_open && !config.open_to_network {
        return Err(RunError::Open { address: bound });
    }
    if is_open {
        tracing::warn!(%bound, "whoever reaches this address may do everything: no [[callers]] are configured");
    } else if callers.are_listed() && tls.is_none() && !bound.ip().is_loopback() {
        tracing::warn!(%bound, "tokens come in plain text: no [tls] is configured");
    }
    Ok(callers)
}

/// Steps 2 and 3.
async fn open(config: &Config, setup: &Setup, state: &Path) -> Result<Opened, RunError> {
    // The data plane, another user, passes through it.
    let created = DirBuilder::new().recursive(true).mode(0o711).create(state);
    created.map_err(|e| in_state(state, e))?;
    let folder = state.join("server");
    let tokens = LogTokens::open(&folder).map_err(|e| in_state(state, e))?;
    let store = Store::open(&state.join("store"), setup.owner).map_err(RunError::Store)?;
    let provenance = Provenance::open(&folder.join("names")).map_err(RunError::Provenance)?;
    let requests = Requests::open(&folder.join("requests")).map_err(|e| in_state(state, e))?;
    let (stop, metrics) = (CancellationToken::new(), Metrics::default());
    let room = Arc::new(Room::new(
        Arc::clone(&setup.executor),
        config.cache.clone(),
        config.admission.min_free_bytes,
    ));
    let builds = Builds::open(builds::Parts {
        executor: Arc::clone(&setup.executor),
        state: state.to_owned(),
        provenance,
        requests,
        limits: Limits {
            turns: config.turn_limits(),
            retention: config.server.retention,
            retention_bytes: config.server.retention_bytes,
        },
        room: Arc::clone(&room),
        environment: setup.environment,
        metrics: metrics.clone(),
        shutdown: stop.clone(),
    });
    Ok(Opened {
        room,
        builds: builds.await.map_err(RunError::Recover)?,
        tasks: TaskTracker::new(),
        folder,
        store,
        tokens,
        metrics,
        stop,
    })
}

/// Returns bytes that nobody else knows.
fn random() -> Result<[u8; 32], RunError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| RunError::Random(io::Error::other(error.to_string())))?;
    Ok(bytes)
}

fn in_state(state: &Path, source: io::Error) -> RunError {
    RunError::State {
        path: state.to_owned(),
        source,
    }
}

/// Waits for everything that was spawned; it has been told to end.
async fn let_go(opened: &Opened, patience: Duration) {
    opened.stop.cancel();
    opened.tasks.close();
    let ended = async {
        opened.tasks.wait().await;
        opened.builds.let_go().await;
    };
    if tokio::time::timeout(patience, ended).await.is_err() {
        tracing::warn!("something did not end in time and is left behind");
    }
    tracing::info!("stopped; builds that were running go on");
}

fn service(
    config: &Config,
    setup: &Setup,
    (addresses, repositories): (&Addresses, Repositories),
    opened: &Opened,
) -> Result<Service, RunError> {
    let hosts = config.registry.with_files_read().map_err(RunError::Hosts)?;
    let egress = egress_policy(config, setup);
    let client = Client::new(
        hosts.clone(),
        ::registry::keychain::Keychain::empty(),
        ClientOptions {
            egress: egress.clone(),
            ..setup.client.clone()
        },
    )
    .map_err(RunError::Client)?;
    let ecr = if config.enable_additional_ecr_auth {
        Ecr::Ask
    } else {
        Ecr::Ignore
    };
    let images = Images::new(images::Parts {
        client,
        credentials: Credentials::new(config.pull_secret_file.clone(), ecr),
        own: addresses.own_hosts(),
        embedded: Embedded {
            store: opened.store.clone(),
            hosts: addresses.embedded.clone(),
        },
        interval: config.ref_cache.interval,
        fresh_for: config.ref_cache.fresh_for,
        secret: random()?,
        now_ms: setup.environment.now_ms,
    });
    let proxy = setup.client.proxy.clone();
    Ok(Service {
        images,
        builds: opened.builds.clone(),
        settings: Settings {
            base_repository: addresses.base_repository.clone(),
            workspace_repository: addresses.workspace_repository.clone(),
            repositories,
            build_namespace: Some(config.build_namespace.clone()).filter(|name| !name.is_empty()),
            hosts,
            fetch: FetchOptions {
                proxy: proxy.as_ref().and_then(|proxy| proxy.https.clone()),
                no_proxy: proxy.as_ref().map(|proxy| proxy.no_proxy.clone()),
                egress: egress.clone(),
                snapshots: config.snapshots.folder.clone(),
                ..config.git.fetch_options()
            },
            proxy,
            egress,
            limits: config.limits.clone(),
            network: config.network,
            compression: config.compression,
            environment: setup.environment,
        },
    })
}

/// Returns where connections may lead: where the configuration says, and to the proxies of the environment. Images of the embedded
/// registry are looked up in the store, so that we need not reach ourselves.
fn egress_policy(config: &Config, setup: &Setup) -> egress::Policy {
    let mut policy = config.egress_policy(egress::Reach::Public);
    let proxies = setup
        .client
        .proxy
        .iter()
        .flat_map(|proxy| [&proxy.http, &proxy.https]);
    for proxy in proxies.flatten() {
        let named = url::Url::parse(proxy).ok();
        if let Some(host) = named.as_ref().and_then(url::Url::host_str) {
            policy.allow_host(host);
        }
    }
    policy
}

fn subassemblies(
    config: &Config,
    service: &Arc<Service>,
    opened: &Opened,
    bucket: Option<subassembly::Shelf>,
) -> Result<Subassemblies, subassembly::WishError> {
    let parts = subassembly::Parts {
        service: Arc::clone(service),
        store: opened.store.clone(),
        format: config.subassembly.format,
        url_lifetime: config.subassembly.url_lifetime,
        bucket,
        tasks: opened.tasks.clone(),
        stop: opened.stop.clone(),
    };
    Subassemblies::open(parts, &opened.folder.join("subassemblies"))
}

fn downloads(config: &Config, setup: &Setup, opened: &Opened) -> Downloads {
    Downloads {
        tokens: opened.tokens.clone(),
        lifetime: config.subassembly.url_lifetime,
        now_ms: setup.environment.now_ms,
    }
}

/// Returns the contexts, of which old ones are forgotten from now on.
fn contexts(config: &Config, setup: &Setup, opened: &Opened) -> Contexts {
    let contexts = Contexts::new(contexts::Parts {
        store: opened.store.clone(),
        room: Arc::clone(&opened.room),
        config: config.contexts.clone(),
        max_entries: config.limits.context_files,
        max_bytes: config.limits.context_bytes,
        now_ms: setup.environment.now_ms,
    });
    contexts.keep_swept(&opened.tasks, &opened.stop);
    contexts
}

/// Says where we are, for whoever started us with port 0.
fn announce(folder: &Path, addresses: &Addresses) -> io::Result<()> {
    let draft = folder.join("address.draft");
    std::fs::write(&draft, format!("{}\n", addresses.bound))?;
    std::fs::rename(&draft, folder.join("address"))
}
