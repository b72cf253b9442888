//! A front for any registry, which misbehaves by rule or asks for bearer tokens.
//!
//! What is not touched by a rule passes through unchanged in both directions, `Host` included, so that the addresses a
//! registry answers with lead back through the proxy.

mod bearer;
mod body;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

pub use self::bearer::Bearer;
use crate::background::Background;
use crate::faults::Dice;

/// A proxy on loopback.
#[derive(Debug)]
pub struct Proxy {
    background: Background,
    site: Arc<Site>,
}

/// What a rule does to a request that it fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Answers with this status and does not ask the registry.
    Status(u16),
    /// Answers 429 with `Retry-After` in seconds.
    TooManyRequests {
        /// The header's value.
        retry_after_s: u32,
    },
    /// Answers 401 with a challenge that says `insufficient_scope`.
    InsufficientScope,
    /// Closes the connection instead of answering.
    Disconnect,
    /// Asks the registry and closes the connection after so many bytes of the body.
    Truncate {
        /// Bytes of the body that still come.
        after_bytes: usize,
    },
    /// Answers 302 with the same address, `from` in its path replaced by `to`.
    Redirect {
        /// What is replaced.
        from: String,
        /// By what.
        to: String,
    },
    /// Asks the registry and turns one bit of the body's byte at this place.
    Flip {
        /// Which byte.
        at_byte: usize,
    },
}

/// How often requests are answered differently at random: of a thousand, so many each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chaos {
    /// What chance begins with.
    pub seed: u64,
    /// Answered 503 without asking the registry.
    pub server_errors: u64,
    /// Closed without an answer.
    pub disconnects: u64,
    /// Answers that break off.
    pub truncations: u64,
    /// Answered 429, with a second to wait.
    pub too_many: u64,
    /// Answers of which one bit is turned.
    pub flips: u64,
}

impl Chaos {
    fn action(&self, dice: &mut Dice) -> Option<Action> {
        let mut roll = dice.below(1000);
        let mut falls = |n: u64| {
            let is_it = roll < n;
            roll = roll.wrapping_sub(n);
            is_it
        };
        if falls(self.server_errors) {
            return Some(Action::Status(503));
        }
        if falls(self.disconnects) {
            return Some(Action::Disconnect);
        }
        if falls(self.truncations) {
            let after_bytes = usize::try_from(dice.below(100_000)).unwrap_or(0);
            return Some(Action::Truncate { after_bytes });
        }
        if falls(self.too_many) {
            return Some(Action::TooManyRequests { retry_after_s: 1 });
        }
        if falls(self.flips) {
            let at_byte = usize::try_from(dice.below(1000)).unwrap_or(0);
            return Some(Action::Flip { at_byte });
        }
        None
    }
}

/// Which requests are answered differently, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    method: Option<String>,
    path_contains: String,
    skip: usize,
    times: usize,
    action: Action,
}

/// A request that the proxy got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyRequest {
    /// The method.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The status it was answered with; 0 when the connection was closed instead.
    pub status: u16,
}

/// What every request sees.
#[derive(Debug)]
struct Site {
    upstream: String,
    client: reqwest::Client,
    bearer: Option<Bearer>,
    rules: Mutex<Vec<Rule>>,
    chaos: Mutex<Option<(Chaos, Dice)>>,
    requests: Mutex<Vec<ProxyRequest>>,
}

impl Rule {
    /// Makes a rule for every request whose path contains `path_contains`.
    #[must_use]
    pub fn new(path_contains: &str, action: Action) -> Self {
        Self {
            method: None,
            path_contains: path_contains.to_owned(),
            skip: 0,
            times: usize::MAX,
            action,
        }
    }

    /// Limits the rule to a method.
    #[must_use]
    pub fn method(self, method: &str) -> Self {
        Self {
            method: Some(method.to_owned()),
            ..self
        }
    }

    /// Lets the first `skip` fitting requests pass.
    #[must_use]
    pub fn skip(self, skip: usize) -> Self {
        Self { skip, ..self }
    }

    /// Ends the rule after so many requests.
    #[must_use]
    pub fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }

    /// Returns the action if the rule fits and counts the request.
    fn apply(&mut self, parts: &Parts) -> Option<Action> {
        let path = parts.uri.to_string();
        let method = self
            .method
            .as_deref()
            .is_none_or(|method| parts.method == method);
        if !method || !path.contains(&self.path_contains) || self.times == 0 {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times = if self.times == usize::MAX {
            self.times
        } else {
            self.times - 1
        };
        Some(self.action.clone())
    }
}

impl Proxy {
    /// Starts a proxy in front of the registry at `host` (`127.0.0.1:port`).
    #[must_use]
    pub fn in_front_of(host: &str) -> Self {
        Self::launch(host, None)
    }

    /// Starts a proxy that lets only requests with its own bearer tokens through to the open registry at `host`.
    #[must_use]
    pub fn with_bearer(host: &str, bearer: Bearer) -> Self {
        Self::launch(host, Some(bearer))
    }

    fn launch(host: &str, bearer: Option<Bearer>) -> Self {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build();
        let client = client.unwrap_or_else(|error| panic!("make a client: {error}"));
        let site = Arc::new(Site {
            upstream: host.to_owned(),
            client,
            bearer,
            rules: Mutex::default(),
            chaos: Mutex::default(),
            requests: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&site));
        Self {
            background: Background::serve(router),
            site,
        }
    }

    /// Returns host and port.
    #[must_use]
    pub fn host(&self) -> String {
        self.background.address().to_string()
    }

    /// Adds a rule; the first that fits counts.
    pub fn rule(&self, rule: Rule) {
        lock(&self.site.rules).push(rule);
    }

    /// Lets requests that no rule fits be answered at random.
    pub fn chaos(&self, chaos: Chaos) {
        let dice = Dice::new(chaos.seed);
        *lock(&self.site.chaos) = Some((chaos, dice));
    }

    /// Removes all rules, and chance.
    pub fn behave(&self) {
        lock(&self.site.rules).clear();
        *lock(&self.site.chaos) = None;
    }

    /// Returns every request so far.
    #[must_use]
    pub fn requests(&self) -> Vec<ProxyRequest> {
        lock(&self.site.requests).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers one request and records it.
async fn answer(State(site): State<Arc<Site>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let action = lock(&site.rules)
        .iter_mut()
        .find_map(|rule| rule.apply(&parts));
    let action = action.or_else(|| {
        let mut chaos = lock(&site.chaos);
        chaos.as_mut().and_then(|(chaos, dice)| chaos.action(dice))
    });
    let disconnect = action == Some(Action::Disconnect);
    let response = respond(&site, &parts, body, action).await;
    let authorization = parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let status = if disconnect {
        0
    } else {
        response.status().as_u16()
    };
    lock(&site.requests).push(ProxyRequest {
        method: parts.method.to_string(),
        path: parts.uri.to_string(),
        authorization,
        status,
    });
    response
}

/// Answers by rule, by the token service, or with what the registry says.
async fn respond(site: &Site, parts: &Parts, body: Body, action: Option<Action>) -> Response<Body> {
    match action {
        Some(Action::Status(code)) => return refusal(code),
        Some(Action::TooManyRequests { retry_after_s }) => {
            let mut response = refusal(429);
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
            return response;
        }
        Some(Action::InsufficientScope) => {
            let mut response = refusal(401);
            let challenge = HeaderValue::from_static(
                "Bearer realm=\"http://127.0.0.1:1/token\",service=\"testkit\",error=\"insufficient_scope\"",
            );
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
            return response;
        }
        Some(Action::Redirect { from, to }) => {
            let mut response = refusal(302);
            let location = HeaderValue::from_str(&parts.uri.to_string().replace(&from, &to));
            response
                .headers_mut()
                .extend(location.ok().map(|location| (header::LOCATION, location)));
            return response;
        }
        // The declared body never comes: the server can only close the connection.
        Some(Action::Disconnect) => return body::disconnected(),
        Some(Action::Truncate { .. } | Action::Flip { .. }) | None => {}
    }
    if let Some(bearer) = &site.bearer {
        let host = parts
            .headers
            .get(header::HOST)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        match bearer.gate(host, parts, body).await {
            bearer::Gate::Answer(response) => return response,
            bearer::Gate::Pass(body) => return forward(site, parts, body, action).await,
        }
    }
    forward(site, parts, body, action).await
}

/// Asks the registry.
async fn forward(site: &Site, parts: &Parts, body: Body, action: Option<Action>) -> Response<Body> {
    let url = format!("http://{}{}", site.upstream, parts.uri);
    let mut request = site.client.request(parts.method.clone(), url);
    for (name, value) in &parts.headers {
        // A token of the proxy's own is none of the registry's business.
        if !is_of_connection(name) && (site.bearer.is_none() || name != header::AUTHORIZATION) {
            request = request.header(name, value);
        }
    }
    let body = reqwest::Body::wrap_stream(body.into_data_stream());
    let Ok(response) = request.body(body).send().await else {
        return refusal(502);
    };
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = response.status();
    for (name, value) in response.headers() {
        if !is_of_connection(name) {
            answer.headers_mut().append(name, value.clone());
        }
    }
    let bytes = response.bytes_stream();
    *answer.body_mut() = match action {
        Some(Action::Truncate { after_bytes }) => body::truncated(bytes, after_bytes),
        Some(Action::Flip { at_byte }) => body::flipped(bytes, at_byte),
        _ => Body::from_stream(bytes),
    };
    answer
}

/// Returns whether a header speaks of the connection and not of the message.
fn is_of_connection(name: &HeaderName) -> bool {
    [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::TE,
        header::TRAILER,
        header::UPGRADE,
    ]
    .contains(name)
}

/// Returns an error answer as registries write it.
fn refusal(code: u16) -> Response<Body> {
    let mut response = Response::new(Body::from(format!(
        "{{\"errors\":[{{\"code\":\"TESTKIT\",\"message\":\"status {code} by rule\"}}]}}"
    )));
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}
