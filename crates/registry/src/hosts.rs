//! How each registry is reached: `[registry."host"]` tables with buildkitd.toml's keys.
//!
//! Says nothing about credentials ([`crate::keychain`]) and opens no connection. A host is compared only in its canonical
//! form, the one that [`oci::Reference::host`] returns, so that configuration and dialling cannot disagree about it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use oci::reference::canonical_host;
use serde::{Deserialize, Deserializer, Serialize};
use url::Url;

/// Most mirrors that one registry may have.
pub const MIRRORS_MAX: usize = 16;

/// The registries that need other settings than the usual ones, by canonical host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Hosts {
    tables: BTreeMap<String, HostConfig>,
}

/// The settings of one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// Hosts (`mirror.example:5000` or `mirror.example/prefix`) that are asked before this one when pulling, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<String>,
    /// Whether plain http is spoken. Unset means: only with loopback hosts for which no certificate is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<bool>,
    /// Whether https is spoken without verifying the server's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure: Option<bool>,
    /// Certificates to trust besides those of the system.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ca: Vec<Pem>,
    /// Client certificates; the first one is shown to the registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keypair: Vec<KeyPair>,
}

/// A client certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPair {
    /// The private key.
    pub key: Pem,
    /// The certificate, with intermediates if there are any.
    pub cert: Pem,
}

/// A PEM file, or its text when it was read already.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Pem {
    /// Where the file is.
    File(PathBuf),
    /// What was in it; recognised by its first line `-----BEGIN …`.
    Text(String),
}

/// Tells why registry settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The key of a table is not a registry host.
    #[error("{0:?} is not a registry host")]
    Host(String),
    /// Two tables mean the same registry.
    #[error("registry {0:?} is configured twice")]
    Twice(String),
    /// A mirror is not `host[:port][/prefix]`.
    #[error("mirror {mirror:?} of registry {host:?} is not of the form host[:port][/prefix]")]
    Mirror {
        /// The registry.
        host: String,
        /// Its mirror.
        mirror: String,
    },
    /// More than [`MIRRORS_MAX`] mirrors.
    #[error("registry {0:?} has more than {MIRRORS_MAX} mirrors")]
    TooManyMirrors(String),
    /// Settings that contradict each other.
    #[error("registry {0:?} has http = true, so that insecure, ca and keypair mean nothing")]
    PlainWithTls(String),
    /// A certificate or key cannot be read.
    #[error("read {} of registry {host:?}", path.display())]
    ReadPem {
        /// The registry.
        host: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// One place that a request can be sent to: a mirror, or the registry itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Canonical host: credentials and settings go by it.
    pub(crate) host: String,
    /// `scheme://authority/`.
    pub(crate) base: Url,
    /// Goes before the repository; empty, or ending with a slash.
    pub(crate) prefix: String,
    /// Whether another endpoint comes after this one.
    pub(crate) is_mirror: bool,
}

impl Hosts {
    /// Returns settings made of `tables`, whose keys are registry hosts in any accepted form.
    pub fn new(tables: impl IntoIterator<Item = (String, HostConfig)>) -> Result<Self, HostsError> {
        let mut hosts = Self::default();
        for (host, config) in tables {
            let canonical = canonical_host(&host).ok_or_else(|| HostsError::Host(host.clone()))?;
            config.check(&canonical)?;
            if hosts.tables.insert(canonical, config).is_some() {
                return Err(HostsError::Twice(host));
            }
        }
        Ok(hosts)
    }

    /// Returns the settings of the canonical `host`, if it has any.
    pub fn get(&self, host: &str) -> Option<&HostConfig> {
        self.tables.get(host)
    }

    /// Returns the configured hosts.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.tables.keys().map(String::as_str)
    }

    /// Tells whether plain http is spoken with the canonical `host`.
    pub fn is_plain_http(&self, host: &str) -> bool {
        let config = self.get(host);
        let has_tls = config
            .is_some_and(|c| c.insecure == Some(true) || !c.ca.is_empty() || !c.keypair.is_empty());
        match config.and_then(|c| c.http) {
            Some(http) => http,
            None => is_loopback(host) && !has_tls,
        }
    }

    /// Returns the same settings with every file replaced by its text: for a process that may not read the files.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub fn with_files_read(&self) -> Result<Self, HostsError> {
        let mut hosts = self.clone();
        for (host, config) in &mut hosts.tables {
            let pairs = config.keypair.iter_mut();
            let pairs = pairs.flat_map(|pair| [&mut pair.key, &mut pair.cert]);
            for pem in config.ca.iter_mut().chain(pairs) {
                *pem = Pem::Text(pem.read(host)?);
            }
        }
        Ok(hosts)
    }

    /// Returns the registry itself.
    pub(crate) fn origin(&self, host: &str) -> Result<Endpoint, HostsError> {
        self.endpoint(host, host, String::new())
            .ok_or_else(|| HostsError::Host(host.to_owned()))
    }

    /// Returns the places to pull from, in order; the registry itself is the last one.
    pub(crate) fn pull_endpoints(&self, host: &str) -> Result<Vec<Endpoint>, HostsError> {
        let mirrors = self.get(host).map_or(&[][..], |c| &c.mirrors);
        let mut endpoints = Vec::with_capacity(mirrors.len() + 1);
        for mirror in mirrors {
            let endpoint = split_mirror(mirror)
                .and_then(|(name, prefix)| self.endpoint(host, &name, prefix))
                .ok_or_else(|| HostsError::Mirror {
                    host: host.to_owned(),
                    mirror: mirror.clone(),
                })?;
            endpoints.push(endpoint);
        }
        endpoints.push(self.origin(host)?);
        Ok(endpoints)
    }

    fn endpoint(&self, registry: &str, host: &str, prefix: String) -> Option<Endpoint> {
        let scheme = if self.is_plain_http(host) {
            "http"
        } else {
            "https"
        };
        // The one registry whose name is not the name of its server.
        let authority = match host {
            oci::reference::DEFAULT_HOST => "registry-1.docker.io",
            other => other,
        };
        Some(Endpoint {
            host: host.to_owned(),
            base: Url::parse(&format!("{scheme}://{authority}/")).ok()?,
            is_mirror: registry != host || !prefix.is_empty(),
            prefix,
        })
    }
}

impl HostConfig {
    fn check(&self, host: &str) -> Result<(), HostsError> {
        if self.mirrors.len() > MIRRORS_MAX {
            return Err(HostsError::TooManyMirrors(host.to_owned()));
        }
        if let Some(mirror) = self.mirrors.iter().find(|m| split_mirror(m).is_none()) {
            return Err(HostsError::Mirror {
                host: host.to_owned(),
                mirror: mirror.clone(),
            });
        }
        let has_tls =
            self.insecure == Some(true) || !self.ca.is_empty() || !self.keypair.is_empty();
        if self.http == Some(true) && has_tls {
            return Err(HostsError::PlainWithTls(host.to_owned()));
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Hosts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let tables = BTreeMap::<String, HostConfig>::deserialize(deserializer)?;
        Self::new(tables).map_err(serde::de::Error::custom)
    }
}

impl Pem {
    /// Returns the text, read from the file if need be. `host` is for the error's words.
    pub(crate) fn read(&self, host: &str) -> Result<String, HostsError> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(path) => {
                std::fs::read_to_string(path).map_err(|source| HostsError::ReadPem {
                    host: host.to_owned(),
                    path: path.clone(),
                    source,
                })
            }
        }
    }
}

impl From<String> for Pem {
    fn from(text: String) -> Self {
        if text.trim_start().starts_with("-----BEGIN ") {
            Self::Text(text)
        } else {
            Self::File(text.into())
        }
    }
}

impl From<Pem> for String {
    fn from(pem: Pem) -> Self {
        match pem {
            Pem::Text(text) => text,
            Pem::File(path) => path.to_string_lossy().into_owned(),
        }
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            // It may be a private key.
            Self::Text(_) => f.write_str("Text(…)"),
        }
    }
}

/// Tells whether the canonical `host` is this machine: `localhost`, 127.0.0.0/8 or `[::1]`, with any port.
pub fn is_loopback(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let address = rest.split(']').next().unwrap_or_default();
        return address
            .parse::<Ipv6Addr>()
            .is_ok_and(|address| address.is_loopback());
    }
    let name = host.split(':').next().unwrap_or_default();
    name == "localhost" || name.parse::<Ipv4Addr>().is_ok_and(|a| a.is_loopback())
}

/// Splits `host[:port][/prefix]` into the canonical host and the prefix with its slash.
fn split_mirror(mirror: &str) -> Option<(String, String)> {
    let (host, path) = mirror.split_once('/').unwrap_or((mirror, ""));
    let path = path.trim_end_matches('/');
    let host = canonical_host(host)?;
    if path.is_empty() {
        return Some((host, String::new()));
    }
    oci::reference::is_repository(path).then(|| (host, format!("{path}/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Hosts, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn tables_have_the_keys_of_buildkitd_toml() {
        let hosts = parse(
            r#"
            ["index.docker.io"]
            mirrors = ["mirror.lan:5000", "harbor.lan/proxy.docker.io"]
            ["mirror.lan:5000"]
            http = true
            ["private.example"]
            insecure = false
            ca = ["/etc/ca.pem"]
            keypair = [{ key = "/k.pem", cert = "/c.pem" }]
            "#,
        )
        .unwrap();
        let urls: Vec<String> = hosts
            .pull_endpoints("docker.io")
            .unwrap()
            .iter()
            .map(|e| format!("{}v2/{}", e.base, e.prefix))
            .collect();
        assert_eq!(
            urls,
            [
                "http://mirror.lan:5000/v2/",
                "https://harbor.lan/v2/proxy.docker.io/",
                "https://registry-1.docker.io/v2/"
            ]
        );
        let again = toml::to_string(&hosts).unwrap();
        assert_eq!(parse(&again).unwrap(), hosts);
    }

    #[test]
    fn unknown_keys_and_contradictions_are_refused() {
        for bad in [
            "[\"a.example\"]\nmirror = [\"b\"]",
            "[\"user@a.example\"]",
            "[\"a.example\"]\nmirrors = [\"http://b.example\"]",
            "[\"a.example\"]\nmirrors = [\"b.example/../x\"]",
            "[\"a.example\"]\nhttp = true\ninsecure = true",
            "[\"docker.io\"]\n[\"index.docker.io\"]",
        ] {
            assert!(parse(bad).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn only_loopback_hosts_are_plain_http_by_themselves() {
        let hosts =
            parse("[\"localhost:7\"]\nca = [\"/x\"]\n[\"localhost:8\"]\nhttp = false").unwrap();
        for (host, plain) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.9.9.9:80", true),
            ("[::1]:5000", true),
            ("localhost:7", false),
            ("localhost:8", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example", false),
            ("[::2]", false),
            ("docker.io", false),
        ] {
            assert_eq!(hosts.is_plain_http(host), plain, "{host}");
        }
    }

    #[test]
    fn an_inlined_key_does_not_show_in_debug_output() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.pem");
        std::fs::write(&path, "-----BEGIN PRIVATE KEY-----\ncanary\n").unwrap();
        let pem = Pem::File(path);
        let config = HostConfig {
            keypair: vec![KeyPair {
                key: pem.clone(),
                cert: pem,
            }],
            ..HostConfig::default()
        };
        let hosts = Hosts::new([("a.example".to_owned(), config)]).unwrap();
        let read = hosts.with_files_read().unwrap();
        assert!(!format!("{read:?}").contains("canary"));
        assert!(serde_json::to_string(&read).unwrap().contains("canary"));
    }
}
