//! The process environment: read here and nowhere else.

use std::ffi::OsString;
use std::path::PathBuf;

use objects::Keys;

/// Returns a variable if it is set and is text.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place where the environment is read"
)]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn folder(name: &str) -> Option<PathBuf> {
    let value: OsString = std::env::var_os(name)?;
    let path = PathBuf::from(value);
    // The XDG specification: relative paths are to be ignored.
    path.is_absolute().then_some(path)
}

/// Returns what is said about buckets, in the variables that other tools for them read too.
pub(crate) fn buckets() -> service::subassembly::Ambient {
    let said = |name| variable(name).filter(|text| !text.is_empty());
    let keys = said("AWS_ACCESS_KEY_ID").zip(said("AWS_SECRET_ACCESS_KEY"));
    service::subassembly::Ambient {
        keys: keys.map(|(id, secret)| Keys::new(id, secret, said("AWS_SESSION_TOKEN"))),
        endpoint: said("AWS_ENDPOINT_URL_S3").or_else(|| said("AWS_ENDPOINT_URL")),
        region: said("AWS_REGION").or_else(|| said("AWS_DEFAULT_REGION")),
    }
}

/// Returns the user's home folder.
pub(crate) fn home() -> Option<PathBuf> {
    folder("HOME")
}

/// Returns where builds, images and the cache are kept unless the user says otherwise.
pub(crate) fn default_state() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/kiln"));
    }
    folder("XDG_DATA_HOME")
        .or_else(|| Some(home()?.join(".local/share")))
        .map(|folder| folder.join("kiln"))
}

/// Returns where the configuration is looked for unless the user says otherwise.
pub(crate) fn default_config() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/etc/kiln/kiln.toml"));
    }
    folder("XDG_CONFIG_HOME")
        .or_else(|| Some(home()?.join(".config")))
        .map(|folder| folder.join("kiln/kiln.toml"))
}

/// Returns where `docker login` and `podman login` leave credentials, in the order in which they are looked for.
pub(crate) fn credential_files() -> Vec<PathBuf> {
    if let Some(file) = folder("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let docker = folder("DOCKER_CONFIG").or_else(|| Some(home()?.join(".docker")));
    let podman = folder("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json"));
    docker
        .map(|folder| folder.join("config.json"))
        .into_iter()
        .chain(podman)
        .collect()
}

/// Returns the proxies that the usual variables name, lower case before upper case.
///
/// `HTTP_PROXY` in upper case is left alone, as everywhere: where this runs as a CGI program, a client could set it.
pub(crate) fn proxies() -> Proxies {
    let either = |name: &str| {
        variable(name)
            .or_else(|| variable(&name.to_ascii_uppercase()))
            .filter(|value| !value.is_empty())
    };
    Proxies {
        http: variable("http_proxy").filter(|value| !value.is_empty()),
        https: either("https_proxy"),
        no_proxy: either("no_proxy"),
    }
}

/// What the environment says about proxies.
#[derive(Debug, Clone, Default)]
pub(crate) struct Proxies {
    /// For http.
    pub(crate) http: Option<String>,
    /// For https.
    pub(crate) https: Option<String>,
    /// Hosts that are reached directly.
    pub(crate) no_proxy: Option<String>,
}
