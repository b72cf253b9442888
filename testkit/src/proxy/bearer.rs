//! A token service, and the gate that lets only its tokens through.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, to_bytes};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, header};
use serde_json::json;

use super::lock;

/// Most bytes of a token request.
const MAX_FORM_BYTES: usize = 64 * 1024;

/// Who gets tokens, and for what.
#[derive(Debug)]
pub struct Bearer {
    user: String,
    password: String,
    /// What the user may do at most: `pull`, `push`.
    rights: BTreeSet<String>,
    /// What anybody may do.
    anonymous_rights: BTreeSet<String>,
    identity_token: Option<String>,
    /// Each token given out, with its `repository:action` pairs.
    tokens: Mutex<BTreeMap<String, BTreeSet<String>>>,
    n_tokens: AtomicUsize,
}

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Gate {
    /// It is answered here.
    Answer(Response<Body>),
    /// The registry gets it.
    Pass(Body),
}

impl Bearer {
    /// Makes a service that knows one user, who may pull and push anything.
    #[must_use]
    pub fn new(user: &str, password: &str) -> Self {
        Self {
            user: user.to_owned(),
            password: password.to_owned(),
            rights: BTreeSet::from(["pull".to_owned(), "push".to_owned()]),
            anonymous_rights: BTreeSet::new(),
            identity_token: None,
            tokens: Mutex::default(),
            n_tokens: AtomicUsize::new(0),
        }
    }

    /// Lets the user do only this.
    #[must_use]
    pub fn rights(self, rights: &[&str]) -> Self {
        Self {
            rights: rights.iter().map(|&right| right.to_owned()).collect(),
            ..self
        }
    }

    /// Lets anybody pull.
    #[must_use]
    pub fn anonymous_pull(self) -> Self {
        Self {
            anonymous_rights: BTreeSet::from(["pull".to_owned()]),
            ..self
        }
    }

    /// Also takes an identity token (OAuth 2 refresh token) in the user's name.
    #[must_use]
    pub fn identity_token(self, token: &str) -> Self {
        Self {
            identity_token: Some(token.to_owned()),
            ..self
        }
    }

    /// Decides what becomes of a request.
    pub(super) async fn gate(&self, host: &str, parts: &Parts, body: Body) -> Gate {
        if parts.uri.path() == "/token" {
            return Gate::Answer(self.token(parts, body).await);
        }
        let needed = needed(parts);
        let header = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let granted = header
            .strip_prefix("Bearer ")
            .and_then(|token| lock(&self.tokens).get(token).cloned());
        match granted {
            Some(granted)
                if needed.as_ref().is_none_or(|(repository, action)| {
                    granted.contains(&format!("{repository}:{action}"))
                }) =>
            {
                Gate::Pass(body)
            }
            granted => Gate::Answer(challenge(host, needed.as_ref(), granted.as_ref())),
        }
    }

    /// Gives out a token for as much of the scopes as the caller has a right to.
    async fn token(&self, parts: &Parts, body: Body) -> Response<Body> {
        let header = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let form = to_bytes(body, MAX_FORM_BYTES).await.unwrap_or_default();
        let pairs: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes())
            .chain(url::form_urlencoded::parse(&form))
            .map(|(key, value)| (key.into_owned(), value.into_owned()))
            .collect();
        let value = |name: &str| {
            pairs
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.as_str())
        };
        let basic = format!(
            "Basic {}",
            STANDARD.encode(format!("{}:{}", self.user, self.password))
        );
        let known = match value("grant_type") {
            Some("refresh_token") => {
                self.identity_token.is_some()
                    && value("refresh_token") == self.identity_token.as_deref()
            }
            Some("password") => {
                value("username") == Some(&self.user) && value("password") == Some(&self.password)
            }
            _ => header == Some(&basic),
        };
        if !known && (header.is_some() || value("grant_type").is_some()) {
            return json_answer(
                StatusCode::UNAUTHORIZED,
                &json!({ "errors": [{ "code": "UNAUTHORIZED" }] }),
            );
        }
        let rights = if known {
            &self.rights
        } else {
            &self.anonymous_rights
        };
        let mut granted = BTreeSet::new();
        for scope in pairs
            .iter()
            .filter(|(key, _)| key == "scope")
            .flat_map(|(_, value)| value.split(' '))
        {
            let Some((repository, actions)) = scope
                .strip_prefix("repository:")
                .and_then(|rest| rest.rsplit_once(':'))
            else {
                continue;
            };
            granted.extend(
                actions
                    .split(',')
                    .filter(|action| rights.contains(*action))
                    .map(|action| format!("{repository}:{action}")),
            );
        }
        let token = format!("token-{}", self.n_tokens.fetch_add(1, Ordering::Relaxed));
        lock(&self.tokens).insert(token.clone(), granted);
        json_answer(
            StatusCode::OK,
            &json!({ "token": token, "access_token": token, "expires_in": 300 }),
        )
    }
}

/// Returns the repository and the action that a request needs a right to; none for the version check.
fn needed(parts: &Parts) -> Option<(String, &'static str)> {
    let path = parts.uri.path().strip_prefix("/v2/")?;
    let repository = ["/blobs/", "/manifests/", "/tags/", "/referrers/"]
        .iter()
        .find_map(|part| path.split_once(part))
        .map(|(name, _)| name)?;
    let action = if [Method::GET, Method::HEAD].contains(&parts.method) {
        "pull"
    } else {
        "push"
    };
    Some((repository.to_owned(), action))
}

/// Returns the answer to a request without a sufficient token.
fn challenge(
    host: &str,
    needed: Option<&(String, &'static str)>,
    granted: Option<&BTreeSet<String>>,
) -> Response<Body> {
    let mut text = format!("Bearer realm=\"http://{host}/token\",service=\"testkit\"");
    if let Some((repository, action)) = needed {
        let actions = if *action == "push" {
            "pull,push"
        } else {
            "pull"
        };
        // Writing to a string cannot fail.
        let _written = write!(text, ",scope=\"repository:{repository}:{actions}\"");
    }
    // A token was shown, and it does not reach.
    if granted.is_some() {
        text.push_str(",error=\"insufficient_scope\"");
    }
    let mut response = json_answer(
        StatusCode::UNAUTHORIZED,
        &json!({ "errors": [{ "code": "UNAUTHORIZED", "message": "authentication required" }] }),
    );
    if let Ok(value) = HeaderValue::from_str(&text) {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, value);
    }
    response
}

/// Returns a JSON answer.
fn json_answer(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}
