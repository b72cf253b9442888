//! Who may call.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

use super::{Config, ConfigError, TlsClients, value};
use crate::access::caller::ANYBODY;
use crate::access::{Right, Tenant};

/// Longest name of a caller.
const NAME_MAX_BYTES: usize = 128;

/// Somebody who may call.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caller {
    /// What the log calls it.
    pub name: String,
    /// Whose it is.
    #[serde(default)]
    pub tenant: Tenant,
    /// What it may do.
    pub rights: BTreeSet<Right>,
    /// A file with its tokens, one a line; read again when it changes.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// SHA-256 of its tokens, in hexadecimal.
    #[serde(default)]
    pub token_sha256: Vec<TokenHash>,
    /// What its certificate says.
    #[serde(default)]
    pub certificates: Vec<CertificateName>,
}

/// SHA-256 of a token.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct TokenHash([u8; 32]);

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

/// A text that is not the SHA-256 of anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token's SHA-256 has 64 hexadecimal digits")]
pub struct TokenHashError;

impl TokenHash {
    /// Returns the hash of a token.
    pub fn of(token: &[u8]) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token);
        let mut hash = [0; 32];
        hash.copy_from_slice(digest.as_ref());
        Self(hash)
    }

    /// Tells whether two are the same, in a time that does not depend on where they differ.
    pub fn is(&self, other: &Self) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl TryFrom<String> for TokenHash {
    type Error = TokenHashError;

    fn try_from(text: String) -> Result<Self, TokenHashError> {
        let digest: oci::Digest = format!("sha256:{}", text.to_ascii_lowercase())
            .parse()
            .map_err(|_| TokenHashError)?;
        let mut hash = [0; 32];
        let digits = digest.hex().as_bytes().chunks(2);
        for (byte, pair) in hash.iter_mut().zip(digits) {
            let pair = std::str::from_utf8(pair).map_err(|_| TokenHashError)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| TokenHashError)?;
        }
        Ok(Self(hash))
    }
}

/// What a certificate calls its owner: `cn:NAME`, `dns:NAME`, `uri:URI`, `email:ADDRESS`, compared whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum CertificateName {
    /// The common name of its subject.
    Common(String),
    /// A DNS name among its alternative names.
    Dns(String),
    /// A URI among them, such as a SPIFFE id.
    Uri(String),
    /// An address among them.
    Email(String),
}

/// A text that is no name of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a certificate's name is cn:NAME, dns:NAME, uri:URI or email:ADDRESS")]
pub struct CertificateNameError;

impl FromStr for CertificateName {
    type Err = CertificateNameError;

    fn from_str(text: &str) -> Result<Self, CertificateNameError> {
        let (kind, name) = text.split_once(':').ok_or(CertificateNameError)?;
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(CertificateNameError);
        }
        match kind {
            "cn" => Ok(Self::Common(name.to_owned())),
            "dns" => Ok(Self::Dns(name.to_ascii_lowercase())),
            "uri" => Ok(Self::Uri(name.to_owned())),
            "email" => Ok(Self::Email(name.to_owned())),
            _ => Err(CertificateNameError),
        }
    }
}

impl TryFrom<String> for CertificateName {
    type Error = CertificateNameError;

    fn try_from(text: String) -> Result<Self, CertificateNameError> {
        text.parse()
    }
}

impl Config {
    /// Checks that callers can be told apart, and that each can show who it is.
    pub(super) fn check_callers(&self) -> Result<(), ConfigError> {
        let (mut names, mut hashes, mut certificates) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for caller in &self.callers {
            let refuse =
                |problem: &str| Err(value("callers", &format!("{:?} {problem}", caller.name)));
            let is_name = (1..=NAME_MAX_BYTES).contains(&caller.name.len())
                && !caller.name.chars().any(char::is_control);
            if !is_name {
                return refuse("is no name");
            }
            if caller.name == ANYBODY {
                return refuse("is what everybody is called where there are no callers");
            }
            if !names.insert(&caller.name) {
                return refuse("is there twice");
            }
            if caller.rights.is_empty() {
                return refuse("has no rights");
            }
            let has_token = caller.token_file.is_some() || !caller.token_sha256.is_empty();
            if !has_token && caller.certificates.is_empty() {
                return refuse("has no token_file, token_sha256 or certificates to be known by");
            }
            if !caller.token_sha256.iter().all(|hash| hashes.insert(hash)) {
                return refuse("has a token that another one has");
            }
            if !caller
                .certificates
                .iter()
                .all(|name| certificates.insert(name))
            {
                return refuse("has a certificate that another one has");
            }
            let signs = self.tls.as_ref().and_then(|tls| tls.client_ca.as_ref());
            if !caller.certificates.is_empty() && signs.is_none() {
                return refuse("has certificates, which need tls.client_ca");
            }
        }
        let optional = |tls: &super::Tls| tls.clients == TlsClients::MayHaveCertificate;
        if self.tls.as_ref().is_some_and(optional) && self.callers.is_empty() {
            let problem = "\"may-have-certificate\" needs [[callers]]: nobody would be known";
            return Err(value("tls.clients", problem));
        }
        Ok(())
    }

    /// Checks that no name of one tenant is another's.
    pub(super) fn check_namespaces(&self) -> Result<(), ConfigError> {
        let is_below = engine::spec::is_below;
        let (builds, tenants) = (
            self.build_namespace.as_str(),
            self.tenant_namespace.as_str(),
        );
        if !builds.is_empty() && !oci::reference::is_repository(builds) {
            let problem = "must be a name such as builds, or empty";
            return Err(value("build_namespace", problem));
        }
        if !oci::reference::is_repository(tenants) {
            return Err(value("tenant_namespace", "must be a name such as tenants"));
        }
        if !builds.is_empty() && (is_below(builds, tenants) || is_below(tenants, builds)) {
            let problem = "must be neither above nor below build_namespace";
            return Err(value("tenant_namespace", problem));
        }
        let mut shared = self.shared_repositories.iter();
        if let Some(bad) = shared.find(|name| !oci::reference::is_repository(name)) {
            let problem = format!("{bad:?} is not the name of a repository");
            return Err(value("shared_repositories", &problem));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn callers_are_told_apart_and_can_show_who_they_are() {
        let hash = "A".repeat(64);
        let good = format!(
            "[[callers]]\nname = \"ci\"\ntenant = \"team-a\"\nrights = [\"build\", \"credentials\"]\ntoken_sha256 = [\"{hash}\"]\n"
        );
        let config = parse(&good).unwrap().config;
        assert_eq!(config.callers[0].tenant.as_str(), "team-a");
        assert_eq!(config.callers[0].rights.len(), 2);
        let caller =
            |rest: &str| format!("[[callers]]\nname = \"x\"\nrights = [\"read\"]\n{rest}\n");
        let twice = format!("{good}{}", caller(&format!("token_sha256 = [\"{hash}\"]")));
        for (bad, says) in [
            (caller(""), "to be known by"),
            (caller("certificates = [\"cn:x\"]"), "tls.client_ca"),
            (caller("token_sha256 = [\"12\"]"), ""),
            (caller("certificates = [\"x\"]"), ""),
            (caller("token_file = \"/x\"\ntenant = \"A\""), ""),
            (caller("token_file = \"/x\"").replace("read", "root"), ""),
            (caller("token_file = \"/x\"").replace("\"read\"", ""), "no rights"),
            (caller("token_file = \"/x\"").repeat(2), "twice"),
            (twice, "another"),
            ("tenant_namespace = \"builds/x\"".to_owned(), "build_namespace"),
            ("tenant_namespace = \"\"".to_owned(), "tenant_namespace"),
            ("shared_repositories = [\"UPPER\"]".to_owned(), "shared_repositories"),
            (
                "[tls]\ncert = \"a\"\nkey = \"b\"\nclient_ca = \"c\"\nclients = \"may-have-certificate\"".to_owned(),
                "tls.clients",
            ),
        ] {
            let error = parse(&bad).unwrap_err();
            let text = crate::failure::chain(&error);
            assert!(text.contains(says), "{bad}: {text}");
        }
    }

    #[test]
    fn a_hash_is_the_tokens_and_is_not_shown() {
        let token = b"0123456789abcdef0123456789abcdef";
        let hex = oci::Digest::sha256(token).hex().to_owned();
        let hash = TokenHash::try_from(hex.to_uppercase()).unwrap();
        assert!(hash.is(&TokenHash::of(token)));
        assert!(!hash.is(&TokenHash::of(b"other")));
        assert_eq!(format!("{hash:?}"), "TokenHash(…)");
        for bad in ["", &hex[1..], &format!("{}g", &hex[1..]), "ä"] {
            assert!(TokenHash::try_from(bad.to_owned()).is_err());
        }
    }
}
