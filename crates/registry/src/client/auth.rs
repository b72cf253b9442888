//! Proves to registries who we are: Basic, and Bearer tokens from a token service.
//!
//! Nothing is sent before the registry has asked for it. A token is for one set of scopes on one endpoint; a password or
//! identity token goes to the registry itself, or to a token service that belongs to the same owner ([`may_have_password`]),
//! and a token service elsewhere is asked anonymously. A refused token is renewed once per request.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use serde::Deserialize;
use tokio::time::Instant;
use url::{Host, Url};

use super::Inner;
use super::body::read_bounded;
use super::dial;
use super::error::Problem;
use super::retry::{Policy, retrying};
use super::transport::{Answer, Request, host_of};
use crate::hosts::{Endpoint, is_loopback};
use crate::keychain::Credential;
use crate::wire::challenge::{self, Challenge};

/// Bytes of a token service's answer.
const TOKEN_ANSWER_MAX_BYTES: usize = 1 << 20;
/// Bytes of a token.
const TOKEN_MAX_BYTES: usize = 64 << 10;
/// Bytes of a realm.
const REALM_MAX_BYTES: usize = 2 << 10;
/// How long a token is good for when its service does not say, by the specification.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// How long a token is used at most, whatever its service says.
const TOKEN_LIFE_MAX: Duration = Duration::from_secs(3600);
/// A token is not used any more so long before it ends.
const TOKEN_MARGIN: Duration = Duration::from_secs(5);
/// Scopes of one token.
const SCOPES_MAX: usize = 16;
/// Tokens that are kept; beyond, all are forgotten.
const TOKENS_MAX: usize = 4096;

/// Registries whose token service bears another name, as far as they are known.
const TOKEN_SERVICES: [(&str, &str); 3] = [
    ("docker.io", "auth.docker.io"),
    ("dhi.io", "auth.docker.io"),
    ("lscr.io", "ghcr.io"),
];

/// What was learned about endpoints, and the tokens that are still good.
#[derive(Debug, Default)]
pub(crate) struct Authorizer {
    schemes: Mutex<HashMap<Url, Scheme>>,
    tokens: Mutex<HashMap<(Url, Scopes), SharedSlot>>,
}

/// What a request needs to be allowed, as `repository:name:actions`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Scopes(Vec<String>);

/// How an endpoint wants to be convinced.
#[derive(Debug, Clone)]
enum Scheme {
    Basic,
    Bearer(Realm),
}

/// A token service.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Realm {
    url: Url,
    service: Option<String>,
}

type SharedSlot = Arc<tokio::sync::Mutex<Slot>>;

/// The token of one set of scopes. Locked while it is being fetched, so that it is fetched once.
#[derive(Default)]
struct Slot {
    token: Option<Token>,
    /// What the registry asked for beyond what we would ask.
    extra_scope: Option<String>,
}

struct Token {
    header: HeaderValue,
    good_until: Instant,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<serde_json::Value>,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slot")
    }
}

impl Scopes {
    /// Returns the scopes for reading `path`, the repository with the endpoint's prefix.
    pub(crate) fn pull(path: &str) -> Self {
        Self(vec![format!("repository:{path}:pull")])
    }

    /// Returns the scopes for reading and writing.
    pub(crate) fn push(path: &str) -> Self {
        Self(vec![format!("repository:{path}:pull,push")])
    }

    /// Returns the scopes for writing to `path` what is read from `from`.
    pub(crate) fn mount(path: &str, from: &str) -> Self {
        let mut scopes = Self::push(path);
        scopes.0.push(format!("repository:{from}:pull"));
        scopes
    }
}

impl Inner {
    /// Returns the `Authorization` header to begin with: none until the endpoint has asked once.
    pub(crate) async fn authorization(
        &self,
        endpoint: &Endpoint,
        scopes: &Scopes,
    ) -> Result<Option<HeaderValue>, Problem> {
        let scheme = self.authorizer.scheme(&endpoint.base);
        match (scheme, self.keychain.get(&endpoint.host)) {
            (Some(Scheme::Basic), Some(Credential::Basic { username, password })) => {
                Ok(basic(username, password.reveal()).ok())
            }
            (Some(Scheme::Basic) | None, _) => Ok(None),
            (Some(Scheme::Bearer(realm)), _) => {
                let header = self.token(endpoint, &realm, scopes, None).await?;
                Ok(Some(header))
            }
        }
    }

    /// Returns the header to try again with after a 401, or `None` when there is nothing better than what was `sent`.
    pub(crate) async fn reauthorization(
        &self,
        endpoint: &Endpoint,
        scopes: &Scopes,
        answer: &Answer,
        sent: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Problem> {
        // Whoever we were sent to is not asked for who we are.
        if answer.response.status() != StatusCode::UNAUTHORIZED || !answer.is_from_origin {
            return Ok(None);
        }
        let values = answer.response.headers().get_all(WWW_AUTHENTICATE);
        let challenges = challenge::parse(values.iter().filter_map(|v| v.to_str().ok()));
        let credential = self.keychain.get(&endpoint.host);
        let bearer = challenges.iter().find(|c| c.scheme == "bearer");
        if let (Some(Credential::RegistryToken(token)), Some(_)) = (credential, bearer) {
            let header = token_header(token.reveal())?;
            return Ok(Some(header).filter(|header| sent != Some(header)));
        }
        if let Some(bearer) = bearer {
            let realm = Realm::of(bearer, endpoint)?;
            self.authorizer
                .learn(&endpoint.base, Scheme::Bearer(realm.clone()));
            let wish = Wish {
                refused: sent,
                scope: bearer.parameters.get("scope").map(String::as_str),
            };
            let header = self.token(endpoint, &realm, scopes, Some(wish)).await?;
            return Ok(Some(header).filter(|header| sent != Some(header)));
        }
        let wants_basic = challenges.iter().any(|c| c.scheme == "basic");
        if let (true, Some(Credential::Basic { username, password })) = (wants_basic, credential) {
            let header = basic(username, password.reveal())?;
            self.authorizer.learn(&endpoint.base, Scheme::Basic);
            return Ok(Some(header).filter(|header| sent != Some(header)));
        }
        Ok(None)
    }

    async fn token(
        &self,
        endpoint: &Endpoint,
        realm: &Realm,
        scopes: &Scopes,
        wish: Option<Wish<'_>>,
    ) -> Result<HeaderValue, Problem> {
        let slot = self.authorizer.slot(&endpoint.base, scopes);
        let mut slot = slot.lock().await;
        let refused = wish.as_ref().and_then(|wish| wish.refused);
        if let Some(token) = &slot.token
            && token.good_until > Instant::now()
            && refused != Some(&token.header)
        {
            return Ok(token.header.clone());
        }
        if let Some(scope) = wish.and_then(|wish| wish.scope) {
            slot.extra_scope = Some(scope.to_owned()).filter(|scope| is_scope(scope));
        }
        let scopes = scopes.with(slot.extra_scope.as_deref());
        let token = self.fetch_token(endpoint, realm, &scopes).await?;
        let header = token.header.clone();
        slot.token = Some(token);
        Ok(header)
    }

    async fn fetch_token(
        &self,
        endpoint: &Endpoint,
        realm: &Realm,
        scopes: &[String],
    ) -> Result<Token, Problem> {
        let host = realm.url.host_str().unwrap_or_default();
        let credential = self.keychain.get(&endpoint.host);
        let credential = credential.filter(|_| {
            let may_have = may_have_password(&endpoint.host, &realm.url);
            if !may_have {
                tracing::warn!(registry = %endpoint.host, realm = %host, "the token service is elsewhere: asking it anonymously");
            }
            may_have
        });
        let policy = Policy {
            options: &self.options,
            budgets: &self.budgets,
            host,
            tries: self.options.tries,
        };
        retrying(policy, || self.ask_token(realm, scopes, credential))
            .await
            .map_err(|problem| match problem {
                Problem::Token(_) => problem,
                problem => Problem::AskToken(Box::new(problem)),
            })
    }

    async fn ask_token(
        &self,
        realm: &Realm,
        scopes: &[String],
        credential: Option<&Credential>,
    ) -> Result<Token, Problem> {
        let asked_at = Instant::now();
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let mut url = realm.url.clone();
        let response = if let Some(Credential::IdentityToken(token)) = credential {
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(CONTENT_TYPE, form);
            let body = refresh_form(realm, scopes, token.reveal());
            let request = Request {
                method: Method::POST,
                url,
                headers,
                authorization: None,
            };
            let limit = self.options.header_timeout;
            self.transport
                .send(request, Some(body.into()), limit)
                .await?
        } else {
            for scope in scopes {
                url.query_pairs_mut().append_pair("scope", scope);
            }
            if let Some(service) = &realm.service {
                url.query_pairs_mut().append_pair("service", service);
            }
            let authorization = match credential {
                Some(Credential::Basic { username, password }) => {
                    Some(basic(username, password.reveal())?)
                }
                _ => None,
            };
            let request = Request {
                method: Method::GET,
                url,
                headers,
                authorization,
            };
            self.transport.follow(request).await?.response
        };
        let mut response = self.transport.successful(response).await?;
        let body = read_bounded(
            &mut response,
            TOKEN_ANSWER_MAX_BYTES,
            "the answer of the token service",
            &self.options,
        )
        .await?;
        Token::parse(&body, asked_at)
    }
}

/// What is known of a token that is not good enough.
struct Wish<'a> {
    refused: Option<&'a HeaderValue>,
    scope: Option<&'a str>,
}

impl Authorizer {
    fn scheme(&self, base: &Url) -> Option<Scheme> {
        let schemes = self.schemes.lock().unwrap_or_else(PoisonError::into_inner);
        schemes.get(base).cloned()
    }

    fn learn(&self, base: &Url, scheme: Scheme) {
        let mut schemes = self.schemes.lock().unwrap_or_else(PoisonError::into_inner);
        if schemes.len() >= TOKENS_MAX {
            schemes.clear();
        }
        schemes.insert(base.clone(), scheme);
    }

    fn slot(&self, base: &Url, scopes: &Scopes) -> SharedSlot {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (base.clone(), scopes.clone());
        if tokens.len() >= TOKENS_MAX && !tokens.contains_key(&key) {
            tokens.clear();
        }
        Arc::clone(tokens.entry(key).or_default())
    }
}

impl Scopes {
    fn with(&self, extra: Option<&str>) -> Vec<String> {
        let known: HashSet<&str> = self.0.iter().map(String::as_str).collect();
        let extra = extra.into_iter().flat_map(|scopes| scopes.split(' '));
        let extra = extra.filter(|scope| !scope.is_empty() && !known.contains(scope));
        let all = self.0.iter().cloned().chain(extra.map(str::to_owned));
        all.take(SCOPES_MAX).collect()
    }
}

impl Realm {
    /// Returns the token service that a challenge names, if it is one that may be asked.
    fn of(challenge: &Challenge, endpoint: &Endpoint) -> Result<Self, Problem> {
        let refused = |why: &str| Problem::Refused(format!("a token service {why}"));
        let text = challenge.parameters.get("realm");
        let text = text.ok_or_else(|| refused("without a realm"))?;
        if text.len() > REALM_MAX_BYTES || text.chars().any(char::is_control) {
            return Err(refused(
                "whose realm is too long or holds control characters",
            ));
        }
        let mut url = Url::parse(text).map_err(|_| refused("whose realm is not a URL"))?;
        url.set_fragment(None);
        dial::check(&url)?;
        let is_ours = may_have_password(&endpoint.host, &url);
        if url.scheme() == "http" && (endpoint.base.scheme() != "http" || !is_ours) {
            return Err(refused("over plain http"));
        }
        // An address says nothing about its owner, and every internal service has one.
        if !matches!(url.host(), Some(Host::Domain(_))) && !is_ours {
            return Err(refused("at an address that is not the registry's"));
        }
        let service = challenge.parameters.get("service").cloned();
        Ok(Self { url, service })
    }
}

impl Token {
    fn parse(body: &[u8], asked_at: Instant) -> Result<Self, Problem> {
        let answer: TokenAnswer = serde_json::from_slice(body)
            .map_err(|_| Problem::Token("answered something that is not a token"))?;
        let given = [answer.token, answer.access_token];
        let token = given.into_iter().flatten().find(|token| !token.is_empty());
        let token = token.ok_or(Problem::Token("answered no token"))?;
        let life = life(answer.expires_in.as_ref());
        Ok(Self {
            header: token_header(&token)?,
            good_until: asked_at + life,
        })
    }
}

/// Returns for how long a token is used: never negative, never endless, however wrong its service is about it.
fn life(expires_in: Option<&serde_json::Value>) -> Duration {
    let seconds = match expires_in {
        None | Some(serde_json::Value::Null) => return TOKEN_LIFE.saturating_sub(TOKEN_MARGIN),
        Some(serde_json::Value::String(text)) => text.parse().ok(),
        Some(value) => value.as_f64(),
    };
    let max = TOKEN_LIFE_MAX.as_secs_f64();
    let seconds = seconds.filter(|s| s.is_finite()).unwrap_or(0.0);
    Duration::from_secs_f64(seconds.clamp(0.0, max)).saturating_sub(TOKEN_MARGIN)
}

fn token_header(token: &str) -> Result<HeaderValue, Problem> {
    let is_clean = token.bytes().all(|b| b.is_ascii_graphic());
    if token.is_empty() || token.len() > TOKEN_MAX_BYTES || !is_clean {
        return Err(Problem::Token("answered a token that cannot be sent"));
    }
    sensitive(&format!("Bearer {token}"))
}

fn basic(username: &str, password: &str) -> Result<HeaderValue, Problem> {
    let pair = format!("{username}:{password}");
    let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
    sensitive(&format!("Basic {encoded}"))
}

fn sensitive(text: &str) -> Result<HeaderValue, Problem> {
    let header = HeaderValue::from_str(text);
    let mut header = header.map_err(|_| Problem::Token("answered a token that cannot be sent"))?;
    header.set_sensitive(true);
    Ok(header)
}

fn refresh_form(realm: &Realm, scopes: &[String], token: &str) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.append_pair("grant_type", "refresh_token");
    form.append_pair("service", realm.service.as_deref().unwrap_or_default());
    form.append_pair("client_id", "kiln");
    form.append_pair("scope", &scopes.join(" "));
    form.append_pair("refresh_token", token);
    form.finish()
}

fn is_scope(text: &str) -> bool {
    text.len() <= 1024 && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
}

/// Tells whether a password for the canonical host `registry` may be shown to the token service `realm`: when it is the same
/// host (on any port), has the same owner by its registrable domain, or is known to belong to the registry.
fn may_have_password(registry: &str, realm: &Url) -> bool {
    let Some(realm) = host_of(realm) else {
        return false;
    };
    let (registry, realm) = (name_of(registry), name_of(&realm));
    if registry == realm || is_loopback(registry) && is_loopback(realm) {
        return true;
    }
    let is_name = |host: &str| {
        host.contains('.') && !host.starts_with('[') && host.parse::<std::net::Ipv4Addr>().is_err()
    };
    if !is_name(registry) || !is_name(realm) {
        return false;
    }
    let owner = psl::domain_str(registry);
    TOKEN_SERVICES.contains(&(registry, realm))
        || owner.is_some() && owner == psl::domain_str(realm)
}

/// Returns a canonical host without its port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::Hosts;

    fn realm(registry: &str, realm: &str) -> Result<Realm, Problem> {
        let endpoint = Hosts::default().origin(registry).unwrap();
        let parameters = [("realm".to_owned(), realm.to_owned())];
        let challenge = Challenge {
            scheme: "bearer".to_owned(),
            parameters: parameters.into_iter().collect(),
        };
        Realm::of(&challenge, &endpoint)
    }

    #[test]
    fn a_password_goes_to_the_owner_of_the_registry_alone() {
        for (registry, url, may_have) in [
            ("docker.io", "https://auth.docker.io/token", true),
            ("lscr.io", "https://ghcr.io/token", true),
            ("registry.gitlab.com", "https://gitlab.com/jwt/auth", true),
            ("a.example.com:5000", "https://a.example.com/token", true),
            ("localhost:5000", "http://127.0.0.1:5001/token", true),
            ("[::1]:5000", "http://[::1]:5001/token", true),
            ("a.example.com", "https://example.com.evil.net/token", false),
            ("a.github.io", "https://b.github.io/token", false),
            ("a.co.uk", "https://b.co.uk/token", false),
            ("docker.io", "https://auth.docker.io.evil.net/token", false),
            ("docker.io", "https://ghcr.io/token", false),
            ("10.0.0.1", "https://10.0.0.2/token", false),
            ("1.2.3.4", "https://9.9.3.4/token", false),
            ("registry", "https://auth/token", false),
            ("registry", "https://registry/token", true),
        ] {
            let url = Url::parse(url).unwrap();
            assert_eq!(
                may_have_password(registry, &url),
                may_have,
                "{registry} {url}"
            );
        }
    }

    #[test]
    fn realms_that_nobody_should_be_sent_to_are_refused() {
        for bad in [
            "",
            "token",
            "file:///etc/passwd",
            "http://auth.docker.io/token",
            "http://169.254.169.254/latest/meta-data",
            "https://169.254.169.254/latest/meta-data",
            "https://[::1]/token",
            "https://2852039166/token",
            "https://user:pw@auth.docker.io/token",
            "https://auth.docker.io/\r\nX: y",
            "gopher://auth.docker.io/",
            &format!("https://auth.docker.io/{}", "a".repeat(1 << 20)),
        ] {
            assert!(realm("docker.io", bad).is_err(), "{bad:.80} was accepted");
        }
        assert!(realm("docker.io", "https://elsewhere.example/token").is_ok());
        assert!(realm("localhost:5000", "http://localhost:5001/token").is_ok());
        assert!(realm("localhost:5000", "http://elsewhere.example/token").is_err());
        assert!(realm("localhost:5000", "http://169.254.169.254/").is_err());
    }

    #[test]
    fn the_life_of_a_token_is_clamped() {
        let secs = |text: &str| {
            let value: serde_json::Value = serde_json::from_str(text).unwrap();
            life(Some(&value)).as_secs()
        };
        assert_eq!(life(None).as_secs(), 55);
        assert_eq!(secs("null"), 55);
        assert_eq!(secs("300"), 295);
        assert_eq!(secs("300.5"), 295);
        assert_eq!(secs("\"300\""), 295);
        assert_eq!(secs("9223372036854775808"), 3595);
        assert_eq!(secs("1e300"), 3595);
        assert_eq!(secs("-1"), 0);
        assert_eq!(secs("0"), 0);
        assert_eq!(secs("[]"), 0);
        assert_eq!(secs("\"NaN\""), 0);
    }

    #[test]
    fn hostile_tokens_are_errors() {
        let now = Instant::now();
        for bad in [
            "{}",
            r#"{"token":""}"#,
            r#"{"token":"a\nb"}"#,
            r#"{"token":"a\u0000"}"#,
            r#"{"token":"ä"}"#,
            r#"{"token":"a b"}"#,
            r#"{"token":7}"#,
            "[]",
            "",
            "\u{feff}{}",
        ] {
            assert!(
                Token::parse(bad.as_bytes(), now).is_err(),
                "{bad} was accepted"
            );
        }
        let long = format!(r#"{{"token":"{}"}}"#, "a".repeat(TOKEN_MAX_BYTES + 1));
        assert!(Token::parse(long.as_bytes(), now).is_err());
        assert!(Token::parse(br#"{"access_token":"abc","expires_in":1e99}"#, now).is_ok());
    }
}
