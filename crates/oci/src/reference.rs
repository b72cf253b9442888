//! Image references: `[host/]repository[:tag][@digest]`.
//!
//! Follows the grammar of the distribution project and docker's "familiar" names: a first component is a host only when it
//! holds a dot or a colon, is `localhost`, or has an upper-case letter; `docker.io` is implied, and `library/` within it.
//! One canonical form serves policy and dialling alike, so that the two can never disagree about a host.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::{Digest, DigestError};

/// Longest `host/repository` that is accepted, in bytes (the distribution project's limit).
pub const NAME_MAX_BYTES: usize = 255;
/// Longest tag, in bytes.
pub const TAG_MAX_BYTES: usize = 128;

/// The host that bare names such as `alpine` live on.
pub const DEFAULT_HOST: &str = "docker.io";

/// A parsed image reference. Has a tag, a digest, both, or neither.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Tells why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("image reference is empty")]
    Empty,
    /// Longer than [`NAME_MAX_BYTES`].
    #[error("image name is longer than {NAME_MAX_BYTES} bytes")]
    TooLong,
    /// The host part is not `name[:port]` or `[ipv6][:port]`.
    #[error("image reference has an invalid registry host {0:?}")]
    Host(String),
    /// A path component has other characters than `[a-z0-9]` with single separators.
    #[error("image reference has an invalid repository name {0:?}")]
    Repository(String),
    /// Upper-case letters in the repository: worth its own words, as docker gives.
    #[error("repository name {0:?} must be lower case")]
    UpperCase(String),
    /// The tag is not `[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}`.
    #[error("image reference has an invalid tag {0:?}")]
    Tag(String),
    /// What follows `@` is not a digest.
    #[error("image reference has an invalid digest")]
    Digest(#[source] DigestError),
}

impl Reference {
    /// Returns the canonical registry host, with its port if one was given: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the repository within the host: `library/alpine`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag, if one was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the tag to ask a registry for when there is no digest: the one given, else `latest`.
    pub fn tag_or_latest(&self) -> &str {
        self.tag.as_deref().unwrap_or("latest")
    }

    /// Returns the digest, if one was given.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Returns what stands after `/manifests/` in a request: the digest, else the tag.
    pub fn manifest_key(&self) -> String {
        self.digest
            .as_ref()
            .map_or_else(|| self.tag_or_latest().to_owned(), ToString::to_string)
    }

    /// Returns `host/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// Returns the digest form, the tag dropped: `docker.io/library/alpine@sha256:…`.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// Returns the same repository under `tag`, the digest dropped.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError::Tag(tag.to_owned()));
        }
        Ok(Self {
            tag: Some(tag.to_owned()),
            digest: None,
            ..self.clone()
        })
    }

    /// Returns the name as docker prints it: without `docker.io/` and `library/`, unless it would then mean something else.
    pub fn familiar(&self) -> String {
        let short = self
            .repository
            .strip_prefix("library/")
            .unwrap_or(&self.repository);
        for name in [short, &self.repository] {
            let text = self.suffixed(name.to_owned());
            if self.host == DEFAULT_HOST && text.parse().as_ref() == Ok(self) {
                return text;
            }
        }
        self.to_string()
    }

    fn suffixed(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
        name
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(ReferenceError::Digest)?)),
            None => (text, None),
        };
        let (host, path) = split_host(rest);
        let (path, tag) = match path.rsplit_once(':') {
            Some((path, tag)) if is_tag(tag) => (path, Some(tag.to_owned())),
            Some((_, tag)) => return Err(ReferenceError::Tag(tag.to_owned())),
            None => (path, None),
        };
        let host = match host {
            // A host that is one only by its upper-case letters would read as a repository once they are gone.
            Some(host) => canonical_host(host)
                .filter(|host| looks_like_host(host))
                .ok_or_else(|| ReferenceError::Host(host.to_owned()))?,
            None => DEFAULT_HOST.to_owned(),
        };
        let repository = if host == DEFAULT_HOST && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ReferenceError::UpperCase(path.to_owned()));
        }
        if !is_repository(path) {
            return Err(ReferenceError::Repository(path.to_owned()));
        }
        if host.len() + 1 + repository.len() > NAME_MAX_BYTES {
            return Err(ReferenceError::TooLong);
        }
        Ok(Self {
            host,
            repository,
            tag,
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.suffixed(self.name()))
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn split_host(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (Some(first), rest),
        _ => (None, text),
    }
}

fn looks_like_host(component: &str) -> bool {
    component == "localhost"
        || component.contains(['.', ':'])
        || component.bytes().any(|b| b.is_ascii_uppercase())
}

/// Returns the one form of a registry host that everything compares and dials: lower case, `docker.io` for its aliases.
/// `None` when it is not a host.
pub fn canonical_host(host: &str) -> Option<String> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']')?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            let port = match after.strip_prefix(':') {
                Some(port) => Some(port),
                None if after.is_empty() => None,
                None => return None,
            };
            (format!("[{}]", address.to_ascii_lowercase()), port)
        }
        None => match host.split_once(':') {
            Some((name, port)) => (name.to_ascii_lowercase(), Some(port)),
            None => (host.to_ascii_lowercase(), None),
        },
    };
    if !name.starts_with('[') && !is_dns_name(&name) {
        return None;
    }
    let name = match name.as_str() {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_HOST.to_owned(),
        _ => name,
    };
    match port {
        Some(port) => {
            let digits =
                !port.is_empty() && port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
            let number = digits.then(|| port.parse::<u16>().ok()).flatten()?;
            Some(format!("{name}:{number}"))
        }
        None => Some(name),
    }
}

fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    !name.is_empty() && name.split('.').all(is_label)
}

/// Tells whether `tag` is a tag: `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`.
pub fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_MAX_BYTES
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// Tells whether `path` is a repository name: components of `[a-z0-9]+` joined by `.`, `_`, `__` or any number of `-`.
pub fn is_repository(path: &str) -> bool {
    path.len() <= NAME_MAX_BYTES && path.split('/').all(is_component)
}

fn is_component(component: &str) -> bool {
    let is_alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_separator =
        |run: &[u8]| matches!(run, b"." | b"_" | b"__") || run.iter().all(|b| *b == b'-');
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    is_alnum(*first)
        && is_alnum(*last)
        && bytes
            .chunk_by(|a, b| is_alnum(*a) == is_alnum(*b))
            .all(|run| run.first().is_some_and(|b| is_alnum(*b)) || is_separator(run))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn familiar_names_are_normalised() {
        let hex = "a".repeat(64);
        for (text, canonical) in [
            ("alpine", "docker.io/library/alpine".to_owned()),
            ("alpine:3.20", "docker.io/library/alpine:3.20".to_owned()),
            ("user/app", "docker.io/user/app".to_owned()),
            ("index.docker.io/user/app", "docker.io/user/app".to_owned()),
            ("docker.io/alpine", "docker.io/library/alpine".to_owned()),
            ("localhost/app", "localhost/app".to_owned()),
            ("localhost:5000/app:v1", "localhost:5000/app:v1".to_owned()),
            (
                "REGISTRY.Example.com/a/b",
                "registry.example.com/a/b".to_owned(),
            ),
            ("[::1]:5000/app", "[::1]:5000/app".to_owned()),
            (
                "a.b/c__d/e---f:T_1.x-y",
                "a.b/c__d/e---f:T_1.x-y".to_owned(),
            ),
            (
                &format!("a.b/c:t@sha256:{hex}"),
                format!("a.b/c:t@sha256:{hex}"),
            ),
        ] {
            assert_eq!(
                text.parse::<Reference>().map(|r| r.to_string()),
                Ok(canonical),
                "{text}"
            );
        }
    }

    #[test]
    fn hostile_references_are_refused() {
        for bad in [
            "",
            ":",
            "@",
            "/",
            "a//b",
            "a/",
            "a:",
            "a:b:c",
            "Alpine",
            "a/B",
            "a b",
            "a\nb",
            "a\0",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "user@host/app",
            "a.b:099999/c",
            "a.b:/c",
            "a.b:x/c",
            "host:70000/c",
            ".a.b/c",
            "a..b/c",
            "-a.b/c",
            "[::1/c",
            "[zz]/c",
            "[::1]x/c",
            "a%2fb",
            "../a",
            "a/../b",
            "a:tag/with",
            "a@sha256:short",
            "http://a.b/c",
            "a:-x",
            "ä.example/c",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} was accepted");
        }
        assert!("a/".repeat(200).parse::<Reference>().is_err());
        assert!(
            format!("a:{}", "t".repeat(129))
                .parse::<Reference>()
                .is_err()
        );
    }

    #[test]
    fn every_form_of_a_reference_reads_back_as_the_same_one() {
        for text in [
            "alpine",
            "user/app:1",
            "library/a/b",
            "docker.io/library/x.y/b",
            "localhost/a",
            "docker.io/a.b/c",
            "a.b:1/c",
        ] {
            let reference: Reference = text.parse().unwrap();
            for form in [reference.to_string(), reference.familiar()] {
                assert_eq!(form.parse(), Ok(reference.clone()), "{text} became {form}");
            }
        }
        assert!("Foo/bar".parse::<Reference>().is_err());
        assert!("Foo.example/bar".parse::<Reference>().is_ok());
    }

    #[test]
    fn a_digest_form_drops_the_tag() {
        let reference: Reference = "alpine:3.20".parse().unwrap();
        let digest = Digest::sha256(b"x");
        assert_eq!(
            reference.with_digest(digest.clone()).to_string(),
            format!("docker.io/library/alpine@{digest}")
        );
        assert_eq!(reference.familiar(), "alpine:3.20");
    }
}
