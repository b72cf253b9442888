//! The address of a repository: our own grammar, stricter than git's, decides what is spoken to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// Longest accepted address.
const MAX_BYTES: usize = 2048;

/// A repository's http or https address, without user, password, query or fragment.
///
/// It is safe as an argument, as a configuration value and as a configuration key's pattern: it begins with its scheme
/// and holds neither white space nor control characters, and its host no glob characters.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RemoteUrl(Url);

/// Why a text is not a [`RemoteUrl`]. The text itself is never repeated: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseRemoteUrlError {
    /// The address is empty.
    #[error("repository URL is empty")]
    Empty,
    /// The address is longer than 2048 bytes.
    #[error("repository URL is too long ({0} bytes)")]
    TooLong(usize),
    /// The address holds a control character, white space or a backslash, plain or percent-encoded.
    #[error("repository URL contains a character that is not allowed")]
    Character,
    /// The scheme is neither https nor http.
    #[error("repository URL is neither https:// nor http://")]
    Scheme,
    /// The address has a user name or a password in it.
    #[error("repository URL contains a user name or password; give them as authentication instead")]
    Credentials,
    /// The address has a query or a fragment.
    #[error("repository URL contains a query or fragment")]
    Query,
    /// The address has no host, or one that is not a name or address.
    #[error("repository URL has no valid host")]
    Host,
}

impl RemoteUrl {
    /// Parses and normalises `text`.
    pub fn parse(text: &str) -> Result<Self, ParseRemoteUrlError> {
        let url = parse_web_url(text)?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(ParseRemoteUrlError::Query);
        }
        Ok(Self(url))
    }

    /// Returns the address as it is given to git.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Returns scheme, host and port with a closing slash: what a credential is scoped to.
    pub fn origin(&self) -> String {
        format!("{}/", self.0.origin().ascii_serialization())
    }

    /// Returns the parsed address.
    pub(super) fn url(&self) -> &Url {
        &self.0
    }
}

/// Parses an http(s) address that may have a query, refusing whatever two parsers could read in two ways.
pub(super) fn parse_web_url(text: &str) -> Result<Url, ParseRemoteUrlError> {
    if text.is_empty() {
        return Err(ParseRemoteUrlError::Empty);
    }
    if text.len() > MAX_BYTES {
        return Err(ParseRemoteUrlError::TooLong(text.len()));
    }
    let lower = text.to_ascii_lowercase();
    let encoded_control = ["%0a", "%0d", "%00"]
        .iter()
        .any(|code| lower.contains(code));
    if encoded_control
        || text
            .chars()
            .any(|c| c.is_control() || c.is_whitespace() || c == '\\')
    {
        return Err(ParseRemoteUrlError::Character);
    }
    let rest = lower
        .strip_prefix("https://")
        .or_else(|| lower.strip_prefix("http://"));
    // `https:///evil` is an empty host to some parsers and the host `evil` to others.
    match rest {
        None => return Err(ParseRemoteUrlError::Scheme),
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            return Err(ParseRemoteUrlError::Host);
        }
        Some(_) => {}
    }
    let url = Url::parse(text).map_err(|_| ParseRemoteUrlError::Host)?;
    let authority = rest
        .unwrap_or_default()
        .split(['/', '?', '#'])
        .next()
        .unwrap_or_default();
    if !url.username().is_empty() || url.password().is_some() || authority.contains('@') {
        return Err(ParseRemoteUrlError::Credentials);
    }
    // A `*` in a host would be a glob in the `http.<url>.*` keys that scope the credential.
    match url.host() {
        Some(Host::Domain(name))
            if name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
                && !name.starts_with('-') => {}
        Some(Host::Ipv4(_) | Host::Ipv6(_)) => {}
        _ => return Err(ParseRemoteUrlError::Host),
    }
    Ok(url)
}

/// Returns whether `url` names this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

impl fmt::Display for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for RemoteUrl {
    type Err = ParseRemoteUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl TryFrom<String> for RemoteUrl {
    type Error = ParseRemoteUrlError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<RemoteUrl> for String {
    fn from(url: RemoteUrl) -> Self {
        url.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_addresses_are_normalised() {
        for (text, expected) in [
            ("https://example.com/a/b.git", "https://example.com/a/b.git"),
            ("HTTPS://EXAMPLE.com:443/a", "https://example.com/a"),
            ("http://127.0.0.1:8080/a", "http://127.0.0.1:8080/a"),
            ("http://[::1]:8080/a", "http://[::1]:8080/a"),
        ] {
            assert_eq!(RemoteUrl::parse(text).unwrap().as_str(), expected);
        }
        assert_eq!(
            RemoteUrl::parse("https://example.com/a/b")
                .unwrap()
                .origin(),
            "https://example.com/"
        );
    }

    #[test]
    fn other_transports_and_tricks_are_refused() {
        for text in [
            "",
            "ext::sh -c id",
            "fd::7",
            "file:///srv/canary",
            "/srv/canary",
            "srv/canary",
            "ssh://-oProxyCommand=id/x",
            "git@-oProxyCommand=id:x",
            "git://example.com/x",
            "--upload-pack=id",
            "https:///evil/x",
            "https:/evil/x",
            "https::https://evil/x",
            "https://good@evil/x",
            "https://user:token@example.com/x",
            "https://@example.com/x",
            "https://example.com\\@evil/x",
            "https://example.com/x%0ahost=evil",
            "https://example.com/x\nhost=evil",
            "https://example.com/x y",
            "https://*.example.com/x",
            "https://-x/y",
            "https://example.com/x?y=1",
            "https://example.com/x#y",
            "https://",
        ] {
            assert!(RemoteUrl::parse(text).is_err(), "{text:?}");
        }
        assert!(RemoteUrl::parse(&format!("https://example.com/{}", "a".repeat(70_000))).is_err());
    }

    #[test]
    fn an_error_never_repeats_a_password() {
        let error = RemoteUrl::parse("https://user:s3cret@example.com/x").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("s3cret"));
    }
}
