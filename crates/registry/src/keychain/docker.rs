//! docker's `config.json`: `auths`, and the programs named by `credHelpers` and `credsStore`.
//!
//! Reads bytes, not files: whoever owns the file decides when it is read again. A helper is run only for hosts that somebody
//! asks about, with a time limit, and its output is never logged.

use std::collections::BTreeMap;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use oci::reference::canonical_host;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{BASE64, Credential, Keychain, Secret, TOKEN_USER};

/// Longest time that a credential helper may take.
pub const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes that are read from a credential helper.
pub const HELPER_OUTPUT_MAX_BYTES: u64 = 1 << 20;

/// The key under which docker keeps the credentials of docker.io.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A parsed docker configuration.
#[derive(Debug, Clone, Default)]
pub struct DockerConfig {
    keychain: Keychain,
    helpers: BTreeMap<String, String>,
    store: Option<String>,
}

/// Tells why a docker configuration, or a helper that it names, gives no credentials. Never shows a secret.
#[derive(Debug, thiserror::Error)]
pub enum DockerConfigError {
    /// Not JSON of the expected shape.
    #[error("docker configuration is not valid JSON of the expected shape, at line {line}")]
    Json {
        /// Where. The parser's own words are left out, for they may quote a value.
        line: usize,
    },
    /// The `auth` field is not base64 of `user:password`.
    #[error("docker configuration has an auth field for {0:?} that is not base64 of user:password")]
    Auth(String),
    /// A helper's name is not a word.
    #[error("docker configuration names a credential helper {0:?} that is not a plain name")]
    HelperName(String),
    /// A helper could not be started or talked to.
    #[error("run {program} for {host:?}")]
    RunHelper {
        /// The program.
        program: String,
        /// The registry.
        host: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A helper did not end in time.
    #[error("{program} gave no answer for {host:?} within {}s", limit.as_secs())]
    HelperTimeout {
        /// The program.
        program: String,
        /// The registry.
        host: String,
        /// The limit.
        limit: Duration,
    },
    /// A helper failed, or answered something else than a credential.
    #[error("{program} has no usable answer for {host:?}")]
    HelperAnswer {
        /// The program.
        program: String,
        /// The registry.
        host: String,
    },
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: Option<BTreeMap<String, Option<AuthEntry>>>,
    #[serde(default, rename = "credHelpers")]
    cred_helpers: Option<BTreeMap<String, String>>,
    #[serde(default, rename = "credsStore")]
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl DockerConfig {
    /// Parses a `config.json` (or a Kubernetes `.dockerconfigjson`, which has the same shape).
    ///
    /// # Errors
    /// See [`DockerConfigError`]. Keys of `auths` that name no registry host are left out, as docker does.
    pub fn parse(bytes: &[u8]) -> Result<Self, DockerConfigError> {
        // A list would be read as a structure's fields in their order.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(DockerConfigError::Json { line: 1 });
        }
        let file: File = serde_json::from_slice(bytes)
            .map_err(|error| DockerConfigError::Json { line: error.line() })?;
        let mut config = Self {
            store: file.creds_store.filter(|name| !name.is_empty()),
            ..Self::default()
        };
        for (key, entry) in file.auths.unwrap_or_default() {
            let (Some(host), Some(entry)) = (host_of_key(&key), entry) else {
                continue;
            };
            if let Some(credential) = entry.credential(&key)? {
                config.keychain.insert(&host, credential);
            }
        }
        for (key, name) in file.cred_helpers.unwrap_or_default() {
            if let Some(host) = host_of_key(&key) {
                config.helpers.insert(host, name);
            }
        }
        let names = config.helpers.values().chain(config.store.as_ref());
        if let Some(name) = names.into_iter().find(|name| !is_helper_name(name)) {
            return Err(DockerConfigError::HelperName(name.clone()));
        }
        Ok(config)
    }

    /// Returns the credentials that stand in the document itself.
    pub fn keychain(&self) -> &Keychain {
        &self.keychain
    }

    /// Returns the credentials of the canonical `hosts`, running helpers where the document says so.
    ///
    /// # Errors
    /// When a helper cannot be run, takes too long, or answers nonsense. A helper that knows nothing of a host is no error.
    pub async fn keychain_for(
        &self,
        hosts: &[&str],
        limit: Duration,
    ) -> Result<Keychain, DockerConfigError> {
        let mut keychain = Keychain::empty();
        for host in hosts {
            let helper = self.helpers.get(*host).or(self.store.as_ref());
            let from_helper = match helper {
                Some(name) => run_helper(name, host, limit).await?,
                None => None,
            };
            // A helper speaks first; what stands in the document is what was there before the helper was configured.
            if let Some(credential) = from_helper.or_else(|| self.keychain.get(host).cloned()) {
                keychain.insert(host, credential);
            }
        }
        Ok(keychain)
    }
}

impl AuthEntry {
    fn credential(self, key: &str) -> Result<Option<Credential>, DockerConfigError> {
        let filled = |field: Option<String>| field.filter(|text| !text.is_empty());
        if let Some(token) = filled(self.identitytoken) {
            return Ok(Some(Credential::IdentityToken(Secret::new(token))));
        }
        if let Some(token) = filled(self.registrytoken) {
            return Ok(Some(Credential::RegistryToken(Secret::new(token))));
        }
        if let Some(auth) = filled(self.auth) {
            let error = || DockerConfigError::Auth(key.to_owned());
            let bytes = BASE64.decode(auth.trim()).map_err(|_| error())?;
            let text = String::from_utf8(bytes).map_err(|_| error())?;
            let (username, password) = text.split_once(':').ok_or_else(error)?;
            // Old docker versions padded the decoded text with NUL bytes.
            let password = password.trim_end_matches('\0');
            return Ok(Some(Credential::from_pair(username, password)));
        }
        Ok(match (filled(self.username), self.password) {
            (Some(username), Some(password)) => Some(Credential::from_pair(&username, &password)),
            _ => None,
        })
    }
}

/// Returns the canonical host that a key of `auths` means: a host, or a URL of one.
fn host_of_key(key: &str) -> Option<String> {
    let rest = ["https://", "http://"]
        .iter()
        .find_map(|scheme| key.strip_prefix(scheme))
        .unwrap_or(key);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    // podman's keys may name a namespace within a host. Giving such a credential to the whole host would be too much.
    let is_api_root = matches!(path.trim_end_matches('/'), "" | "v1" | "v2");
    is_api_root.then(|| canonical_host(host)).flatten()
}

fn is_helper_name(name: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    name.bytes().all(is_word) && name.bytes().any(|b| b.is_ascii_alphanumeric())
}

async fn run_helper(
    name: &str,
    host: &str,
    limit: Duration,
) -> Result<Option<Credential>, DockerConfigError> {
    let program = format!("docker-credential-{name}");
    let key = match host {
        oci::reference::DEFAULT_HOST => DOCKER_HUB_KEY,
        other => other,
    };
    let answer = tokio::time::timeout(limit, ask_helper(&program, key)).await;
    let (program, host) = (program, host.to_owned());
    let (succeeded, output) = match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(source)) => {
            return Err(DockerConfigError::RunHelper {
                program,
                host,
                source,
            });
        }
        Err(_) => {
            return Err(DockerConfigError::HelperTimeout {
                program,
                host,
                limit,
            });
        }
    };
    if !succeeded {
        let text = String::from_utf8_lossy(&output);
        if text.contains("credentials not found") || text.contains("no credentials server URL") {
            return Ok(None);
        }
        return Err(DockerConfigError::HelperAnswer { program, host });
    }
    match serde_json::from_slice::<HelperAnswer>(&output) {
        Ok(answer) if answer.username.is_empty() || answer.username == TOKEN_USER => {
            Ok(Some(Credential::IdentityToken(Secret::new(answer.secret))))
        }
        Ok(answer) => Ok(Some(Credential::from_pair(
            &answer.username,
            &answer.secret,
        ))),
        Err(_) => Err(DockerConfigError::HelperAnswer { program, host }),
    }
}

/// Runs `program get` with `key` on its standard input. Dropping the future kills the program.
async fn ask_helper(program: &str, key: &str) -> io::Result<(bool, Vec<u8>)> {
    let mut child = tokio::process::Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that ends without reading its input is judged by its answer.
        drop(stdin.write_all(key.as_bytes()).await);
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let mut bounded = stdout.take(HELPER_OUTPUT_MAX_BYTES);
        bounded.read_to_end(&mut output).await?;
    }
    let status = child.wait().await?;
    Ok((status.success(), output))
}
