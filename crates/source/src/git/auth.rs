//! Credentials for one fetch: where they come from, and how they are kept out of everything that is shown or stored.
//!
//! A credential reaches git only as an `Authorization` header that git's own configuration scopes to the remote's scheme,
//! host and port (`http.<origin>.extraHeader`), passed in the environment of the network commands and of no other.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::FetchOptions;
use super::error::{RequestError, SecretError};
use super::remote::{ParseRemoteUrlError, is_loopback, parse_web_url};

/// Longest user name or password.
const MAX_CREDENTIAL_BYTES: usize = 8 * 1024;

/// Time for the one attempt to fetch a one-time secret.
const SECRET_TIMEOUT: Duration = Duration::from_secs(10);

/// How to authenticate to the remote's host.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GitAuth {
    /// Without credentials.
    #[default]
    None,
    /// With this user name and password.
    Basic {
        /// The user name; may be empty.
        user: String,
        /// The password or token.
        password: String,
    },
    /// With what this address answers, once: `user:password`, or a password alone.
    OneTimeSecret {
        /// The https address.
        url: String,
    },
}

impl fmt::Debug for GitAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Basic { .. } => "Basic(…)",
            Self::OneTimeSecret { .. } => "OneTimeSecret(…)",
        })
    }
}

/// A user name and password, ready to be sent.
#[derive(Clone)]
pub(super) struct Credential {
    user: String,
    password: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(…)")
    }
}

impl Credential {
    /// Checks that both halves survive basic authentication unchanged.
    fn new(user: &str, password: &str) -> Result<Self, RequestError> {
        let plain =
            |text: &str| text.len() <= MAX_CREDENTIAL_BYTES && !text.chars().any(char::is_control);
        if user.contains(':') || !plain(user) || !plain(password) {
            return Err(RequestError::Credential);
        }
        Ok(Self {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    /// Returns the value of the `Authorization` header.
    pub(super) fn header(&self) -> String {
        format!(
            "Basic {}",
            STANDARD.encode(format!("{}:{}", self.user, self.password))
        )
    }

    /// Returns every spelling that must not be shown, longest first.
    pub(super) fn spellings(&self) -> Vec<String> {
        let encoded: String =
            url::form_urlencoded::byte_serialize(self.password.as_bytes()).collect();
        let mut spellings = BTreeSet::from([
            STANDARD.encode(format!("{}:{}", self.user, self.password)),
            STANDARD.encode(&self.password),
            encoded.replace('+', "%20"),
            encoded,
            self.password.clone(),
        ])
        .into_iter()
        .filter(|text| !text.is_empty())
        .collect::<Vec<_>>();
        spellings.sort_by_key(|text| std::cmp::Reverse(text.len()));
        spellings
    }
}

/// Checks what can be checked without contacting anything.
pub(super) fn check(auth: &GitAuth, options: &FetchOptions) -> Result<(), RequestError> {
    match auth {
        GitAuth::None => Ok(()),
        GitAuth::Basic { user, password } => Credential::new(user, password).map(|_| ()),
        GitAuth::OneTimeSecret { url } => secret_url(url, options).map(|_| ()),
    }
}

/// Returns the credential of `auth`. A one-time secret is asked for once, whatever happens.
pub(super) async fn credential(
    auth: &GitAuth,
    options: &FetchOptions,
) -> Result<Option<Credential>, SecretError> {
    match auth {
        GitAuth::None => Ok(None),
        GitAuth::Basic { user, password } => Credential::new(user, password)
            .map(Some)
            .map_err(|_| SecretError::Malformed),
        GitAuth::OneTimeSecret { url } => {
            let url = secret_url(url, options).map_err(|error| match error {
                RequestError::Egress(refused) => SecretError::Egress(refused),
                _ => SecretError::Malformed,
            })?;
            let text = tokio::time::timeout(SECRET_TIMEOUT, one_time_secret(url, options))
                .await
                .map_err(|_| SecretError::Request)??;
            let (user, password) = text.split_once(':').unwrap_or(("", &text));
            Credential::new(user, password)
                .map(Some)
                .map_err(|_| SecretError::Malformed)
        }
    }
}

/// Parses the address of a one-time secret; it may have a query.
fn secret_url(text: &str, options: &FetchOptions) -> Result<url::Url, RequestError> {
    let url = parse_web_url(text).map_err(RequestError::SecretUrl)?;
    if url.scheme() == "http" && !options.allows_plain_http(&url) {
        // Not the whole address: the path of a one-time secret is a secret.
        return Err(RequestError::PlainHttp(
            url.host_str().unwrap_or_default().to_owned(),
        ));
    }
    let allowed = options.egress.check_url(&url);
    allowed.map_err(RequestError::Egress)?;
    if !options.secret_hosts.is_empty()
        && !is_loopback(&url)
        && !options
            .secret_hosts
            .iter()
            .any(|host| Some(host.as_str()) == url.host_str())
    {
        return Err(RequestError::SecretUrl(ParseRemoteUrlError::Host));
    }
    Ok(url)
}

/// Asks for the secret: one request, no redirect, no more than a secret's worth of bytes.
async fn one_time_secret(url: url::Url, options: &FetchOptions) -> Result<String, SecretError> {
    let resolver = egress::Resolver::new(options.egress.clone());
    resolver.judge(&url).await.map_err(SecretError::Egress)?;
    let client = super::http::client(options).ok_or(SecretError::Request)?;
    // The error of a request names its address, which is as secret as the answer; so it is dropped.
    let mut response = client.get(url).send().await.map_err(|error| {
        egress::refusal_in(&error).map_or(SecretError::Request, SecretError::Egress)
    })?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(SecretError::Status(response.status().as_u16()));
    }
    let content_type = response
        .headers()
        .get(reqwest::header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if content_type.to_ascii_lowercase().starts_with("text/html") {
        return Err(SecretError::Malformed);
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| SecretError::Request)? {
        if body.len() + chunk.len() > MAX_CREDENTIAL_BYTES {
            return Err(SecretError::TooLong(MAX_CREDENTIAL_BYTES));
        }
        body.extend_from_slice(&chunk);
    }
    let text = String::from_utf8(body).map_err(|_| SecretError::Malformed)?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |line| {
        line.strip_suffix('\r').unwrap_or(line)
    });
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(SecretError::Malformed);
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_holds_no_credential() {
        let auth = GitAuth::Basic {
            user: "u".to_owned(),
            password: "s3cret".to_owned(),
        };
        assert!(!format!("{auth:?}").contains("s3cret"));
        let auth = GitAuth::OneTimeSecret {
            url: "https://example.com/s3cret".to_owned(),
        };
        assert!(!format!("{auth:?}").contains("s3cret"));
    }

    #[test]
    fn credentials_that_would_change_on_the_way_are_refused() {
        assert!(Credential::new("a:b", "c").is_err());
        assert!(Credential::new("a", "b\nc").is_err());
        assert!(Credential::new("a\r", "b").is_err());
        assert!(Credential::new("a", &"x".repeat(9000)).is_err());
        assert_eq!(
            Credential::new("", "a:b").unwrap().header(),
            "Basic OmE6Yg=="
        );
    }

    #[test]
    fn every_common_spelling_of_a_password_is_known() {
        let spellings = Credential::new("user", "p/w +").unwrap().spellings();
        for expected in ["p/w +", "p%2Fw%20%2B", "dXNlcjpwL3cgKw=="] {
            assert!(
                spellings.iter().any(|s| s == expected),
                "{expected} {spellings:?}"
            );
        }
    }
}
