//! Credentials of registries, and the type that keeps them out of logs.
//!
//! A [`Keychain`] is a plain value: canonical host to credential, compared exactly, so that no look-alike of a host is ever
//! given its password. Sources of credentials: a docker configuration ([`docker`]), and the `additional` map of the published
//! API. Nothing here decides who may use which credential; that is the service's policy.
//!
//! Secrets have no `Debug`, `Display` or `Serialize` of their content. The one door is [`exposed`], for the specification that
//! is handed to a worker over its standard input.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use oci::reference::canonical_host;

pub mod docker;
pub mod exposed;

#[cfg(test)]
mod tests;

/// The user name under which credential helpers and docker's `auth` fields carry an identity token.
const TOKEN_USER: &str = "<token>";

/// Accepts base64 with and without padding: both are found in the wild.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A text that must not be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Returns `text` as a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the text. Whoever calls this answers for where it goes.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Tells whether there is nothing to keep.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What proves to a registry who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user and a password, or a user and an access token.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// An `OAuth2` refresh token, to be exchanged for access tokens.
    IdentityToken(Secret),
    /// An access token, sent to the registry as it is.
    RegistryToken(Secret),
}

impl Credential {
    /// Returns what must never be logged: the secret, and the forms in which it travels.
    fn secrets(&self) -> Vec<Secret> {
        match self {
            Self::Basic { password, .. } if password.is_empty() => Vec::new(),
            Self::Basic { username, password } => {
                let pair = format!("{username}:{}", password.reveal());
                let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
                vec![password.clone(), Secret::new(encoded)]
            }
            Self::IdentityToken(token) | Self::RegistryToken(token) => vec![token.clone()],
        }
    }

    /// Returns the credential of `username` and `password`, where `<token>` as a user announces an identity token.
    fn from_pair(username: &str, password: &str) -> Self {
        if username == TOKEN_USER {
            return Self::IdentityToken(Secret::new(password));
        }
        Self::Basic {
            username: username.to_owned(),
            password: Secret::new(password),
        }
    }

    /// Parses one entry of the API's `additional` map: base64 of `user:password`, or of an identity token without a colon.
    ///
    /// The first colon ends the user, for passwords hold colons (`_json_key:{…}`). One known sender writes `host:port:token`
    /// when the domain has a port; that is recognised by its key, and `host:port` is then the user.
    ///
    /// # Errors
    /// When `value` is empty, not base64, or not text. The error never shows it.
    pub fn from_additional(domain: &str, value: &str) -> Result<Self, AdditionalError> {
        let error = |problem| AdditionalError {
            domain: domain.to_owned(),
            problem,
        };
        let bytes = BASE64
            .decode(value.trim())
            .map_err(|_| error("not base64"))?;
        let text = String::from_utf8(bytes).map_err(|_| error("not text"))?;
        if text.is_empty() {
            return Err(error("empty"));
        }
        let after_key = text
            .strip_prefix(domain)
            .filter(|_| domain.contains(':'))
            .and_then(|rest| rest.strip_prefix(':'));
        Ok(match (after_key, text.split_once(':')) {
            (Some(token), _) => Self::from_pair(domain, token),
            (None, Some((username, password))) => Self::from_pair(username, password),
            (None, None) => Self::IdentityToken(Secret::new(text)),
        })
    }
}

/// An entry of the API's `additional` map that is not a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("additional credential for {domain:?} is {problem}")]
pub struct AdditionalError {
    domain: String,
    problem: &'static str,
}

/// Credentials by canonical host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keychain {
    credentials: BTreeMap<String, Credential>,
}

impl Keychain {
    /// Returns a keychain without credentials.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Returns the credentials that a docker `config.json` holds itself; see [`docker::DockerConfig`] for its helpers.
    ///
    /// # Errors
    /// When the document is not JSON of the expected shape, or a value in it cannot be decoded.
    pub fn from_docker_config(bytes: &[u8]) -> Result<Self, docker::DockerConfigError> {
        Ok(docker::DockerConfig::parse(bytes)?.keychain().clone())
    }

    /// Returns the credentials of the API's `additional` map.
    ///
    /// # Errors
    /// The first entry whose key is not a host or whose value is not a credential.
    pub fn from_additional<'a>(
        entries: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, AdditionalError> {
        let mut keychain = Self::empty();
        for (domain, value) in entries {
            let credential = Credential::from_additional(domain, value)?;
            if !keychain.insert(domain, credential) {
                return Err(AdditionalError {
                    domain: domain.to_owned(),
                    problem: "not for a registry host",
                });
            }
        }
        Ok(keychain)
    }

    /// Adds a credential, replacing the one that `host` had. Returns false when `host` is not a registry host.
    pub fn insert(&mut self, host: &str, credential: Credential) -> bool {
        match canonical_host(host) {
            Some(host) => {
                self.credentials.insert(host, credential);
                true
            }
            None => false,
        }
    }

    /// Returns the credential of exactly this canonical host.
    pub fn get(&self, host: &str) -> Option<&Credential> {
        self.credentials.get(host)
    }

    /// Returns the hosts that have a credential.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.credentials.keys().map(String::as_str)
    }

    /// Adds the credentials of `other` for the hosts that have none yet.
    pub fn merge(&mut self, other: Self) {
        for (host, credential) in other.credentials {
            self.credentials.entry(host).or_insert(credential);
        }
    }

    /// Returns the credentials of the canonical `hosts` alone.
    #[must_use]
    pub fn only(&self, hosts: &[&str]) -> Self {
        let kept = self.credentials.iter();
        let kept = kept.filter(|(host, _)| hosts.contains(&host.as_str()));
        Self {
            credentials: kept.map(|(h, c)| (h.clone(), c.clone())).collect(),
        }
    }

    /// Returns everything that must never reach a log: passwords, tokens, and the encoded forms they travel in.
    pub fn secrets(&self) -> Vec<Secret> {
        self.credentials
            .values()
            .flat_map(Credential::secrets)
            .collect()
    }
}
