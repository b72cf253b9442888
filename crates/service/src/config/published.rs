//! The published service's JSON, so that its deployments can be pointed at kiln as they are.
//!
//! Keys that make no sense here are accepted with a warning, keys that nobody knows are refused.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Config, ConfigError, Parsed, Tls, TlsClients, duration, parse_repository};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    orchestrator: Orchestrator,
    #[serde(default)]
    ref_cache: Option<RefCache>,
    #[serde(default)]
    server: Option<Server>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Orchestrator {
    base_image_repository: String,
    workspace_image_repository: String,
    #[serde(default)]
    pull_secret_file: Option<PathBuf>,
    #[serde(default, rename = "enableAdditionalECRAuth")]
    enable_additional_ecr_auth: bool,
    #[serde(default)]
    wsman: Option<IgnoredAny>,
    #[serde(default)]
    pull_secret: Option<IgnoredAny>,
    #[serde(default)]
    builder_image: Option<IgnoredAny>,
    #[serde(default)]
    subassembly_bucket_name: Option<String>,
    #[serde(default)]
    subassembly_bucket_prefix: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RefCache {
    #[serde(default)]
    interval: Option<String>,
    #[serde(default)]
    refs: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Server {
    #[serde(default)]
    services: Services,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Services {
    #[serde(default)]
    grpc: Option<Grpc>,
    #[serde(default)]
    http: Option<IgnoredAny>,
    #[serde(default)]
    debug: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Grpc {
    #[serde(default)]
    address: Option<String>,
    #[serde(default)]
    tls: Option<GrpcTls>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrpcTls {
    #[serde(default, rename = "caPath")]
    ca: Option<PathBuf>,
    #[serde(rename = "certPath")]
    cert: PathBuf,
    #[serde(rename = "keyPath")]
    key: PathBuf,
}

/// Parses the published JSON.
pub(super) fn parse(text: &str) -> Result<Parsed, ConfigError> {
    let file: File = serde_json::from_str(text).map_err(ConfigError::Json)?;
    let warnings = warnings(&file);
    let mut from = file.orchestrator;
    let bucket = from.subassembly_bucket_name.take();
    let prefix = from.subassembly_bucket_prefix.take();
    let mut config = Config {
        base_image_repository: Some(
            parse_repository(&from.base_image_repository)
                .map_err(|problem| value("orchestrator.baseImageRepository", problem))?,
        ),
        workspace_image_repository: Some(
            parse_repository(&from.workspace_image_repository)
                .map_err(|problem| value("orchestrator.workspaceImageRepository", problem))?,
        ),
        pull_secret_file: from
            .pull_secret_file
            .filter(|path| !path.as_os_str().is_empty()),
        enable_additional_ecr_auth: from.enable_additional_ecr_auth,
        // As there: who reaches it is decided by the network, and by certificates.
        open_to_network: true,
        ..Config::default()
    };
    set_bucket(&mut config, bucket, prefix.as_deref())?;
    if let Some(cache) = file.ref_cache {
        set_ref_cache(&mut config, cache)?;
    }
    if let Some(grpc) = file.server.and_then(|server| server.services.grpc) {
        set_grpc(&mut config, grpc)?;
    }
    Ok(Parsed { config, warnings })
}

/// Empty texts are what templates make of nothing.
fn set_bucket(
    config: &mut Config,
    bucket: Option<String>,
    prefix: Option<&str>,
) -> Result<(), ConfigError> {
    let bucket = bucket.filter(|bucket| !bucket.is_empty());
    let prefix = prefix.map(|prefix| prefix.trim_matches('/'));
    if let (Some(_), Some(prefix)) = (&bucket, prefix.filter(|prefix| !prefix.is_empty())) {
        let parsed = prefix
            .parse()
            .map_err(|error| value("orchestrator.subassemblyBucketPrefix", format!("{error}")))?;
        config.subassembly.bucket_prefix = Some(parsed);
    }
    config.subassembly.bucket = bucket;
    Ok(())
}

fn set_ref_cache(config: &mut Config, cache: RefCache) -> Result<(), ConfigError> {
    if let Some(text) = cache.interval.filter(|text| !text.is_empty()) {
        config.ref_cache.interval = duration::parse(&text).ok_or_else(|| {
            value(
                "refCache.interval",
                format!("{text:?} is not a duration such as 6h"),
            )
        })?;
    }
    for text in cache.refs.unwrap_or_default() {
        let reference = text
            .parse()
            .map_err(|error| value("refCache.refs", format!("{error}")))?;
        config.ref_cache.refs.insert(reference);
    }
    Ok(())
}

fn set_grpc(config: &mut Config, grpc: Grpc) -> Result<(), ConfigError> {
    if let Some(text) = grpc.address.filter(|text| !text.is_empty()) {
        config.listen = parse_address(&text).ok_or_else(|| {
            value(
                "server.services.grpc.address",
                format!("{text:?} is not of the form ip:port or :port"),
            )
        })?;
    }
    config.tls = grpc.tls.map(|tls| Tls {
        cert: tls.cert,
        key: tls.key,
        client_ca: tls.ca.filter(|path| !path.as_os_str().is_empty()),
        clients: TlsClients::default(),
    });
    Ok(())
}

/// Parses `ip:port`, `localhost:port`, or `:port` for every address.
fn parse_address(text: &str) -> Option<SocketAddr> {
    match text.split_once(':') {
        Some(("", port)) => format!("0.0.0.0:{port}").parse().ok(),
        Some(("localhost", port)) => format!("127.0.0.1:{port}").parse().ok(),
        _ => text.parse().ok(),
    }
}

fn value(key: &'static str, problem: String) -> ConfigError {
    ConfigError::Value { key, problem }
}

fn warnings(file: &File) -> Vec<String> {
    let from = &file.orchestrator;
    let services = file.server.as_ref().map(|server| &server.services);
    let ignored = |name: &str, there: bool, why: &str| {
        there.then(|| format!("configuration key {name} has no effect: {why}."))
    };
    [
        ignored(
            "orchestrator.wsman",
            from.wsman.is_some(),
            "kiln runs builds itself",
        ),
        ignored(
            "orchestrator.builderImage",
            from.builder_image.is_some(),
            "kiln builds without a builder image",
        ),
        ignored(
            "orchestrator.pullSecret",
            from.pull_secret.is_some(),
            "pullSecretFile is what is read",
        ),
        ignored(
            "server.services.http",
            services.is_some_and(|services| services.http.is_some()),
            "one port serves everything",
        ),
        ignored(
            "server.services.debug",
            services.is_some_and(|services| services.debug.is_some()),
            "one port serves everything",
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}
