//! The embedded registry: the OCI distribution specification 1.1 over a [`Store`].
//!
//! | file | what it holds |
//! |---|---|
//! | `options` | limits and the access hook |
//! | `route` | path → what is asked for; names are parsed here and nowhere else |
//! | `blobs` | reading, ranges, removing |
//! | `uploads` | the ways in: at once, in chunks, as a stream, by mounting |
//! | `places` | how many bodies are taken at a time, of each owner |
//! | `manifests` | reading, checking and storing, removing |
//! | `lists` | tags, repositories, referrers |
//! | `failure` | what goes wrong → status, code, words |
//!
//! # Invariants
//! * A body of a blob is never held in memory; every body has a limit of size and of slowness.
//! * Nothing is visible before its digest was verified, and what is sent whole is verified while it is sent: the last piece of
//!   a blob that turns out to be damaged is not sent.
//! * A blob that the store has is absent from a repository that has no link to it.
//! * A manifest is accepted only when everything that it names is in its repository.
//! * Disk work runs on blocking threads, at most [`ServerOptions::blocking_max`] at a time.
//!
//! Who may do what is decided by [`ServerOptions::authorize`]; TLS, connections and their limits are the caller's. Unfinished
//! uploads are removed by [`Store::expire_uploads`], which whoever owns the clock calls from time to time.

mod blobs;
mod failure;
mod lists;
mod manifests;
pub mod options;
mod places;
mod route;
mod uploads;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use store::Store;
use tokio::sync::Semaphore;

use failure::Failure;
pub use options::{Access, Action, Authorize, Decision, OwnerOf, ServerOptions};
use places::{Place, Places};
use route::Route;

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What every request works with.
#[derive(Debug)]
struct Registry {
    store: Store,
    options: ServerOptions,
    /// One permit for each piece of disk work.
    blocking: Arc<Semaphore>,
    /// One for each request that carries a blob or a manifest.
    places: Arc<Places>,
}

/// The head of one request. Its body goes beside it, as it cannot be shared.
#[derive(Debug)]
struct Call {
    method: Method,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    extensions: http::Extensions,
}

/// Whether the caller is told what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Is,
    /// Nothing is there, as far as the caller learns.
    Not,
}

/// Returns the routes of a registry below `/v2/`.
pub fn router(store: Store, options: ServerOptions) -> Router {
    let registry = Arc::new(Registry {
        blocking: Arc::new(Semaphore::new(options.blocking_max)),
        places: Arc::default(),
        store,
        options,
    });
    Router::new()
        .route("/v2", any(answer))
        .route("/v2/", any(answer))
        .route("/v2/{*rest}", any(answer))
        .with_state(registry)
}

async fn answer(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    // Boxed: the states of all routes together are large.
    let handled = Box::pin(handle(&registry, request)).await;
    let mut response = handled.unwrap_or_else(IntoResponse::into_response);
    let version = HeaderValue::from_static("registry/2.0");
    response.headers_mut().insert(API_VERSION, version);
    response
}

async fn handle(registry: &Arc<Registry>, request: Request) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    // The raw path: nothing that the specification allows needs to be escaped, so nothing is unescaped on the way to a name.
    let parsed = Route::parse(parts.uri.path());
    let repository = parsed.as_ref().ok().and_then(Route::repository);
    let access = Access {
        extensions: &parts.extensions,
        method: &parts.method,
        repository,
        action: action(&parts.method, parsed.as_ref().ok()),
        authorization: parts.headers.get(AUTHORIZATION),
    };
    let seen = registry.authorize(&access)?;
    let route = parsed?;
    if seen == Seen::Not {
        return lists::hidden(&route);
    }
    let query = parts.uri.query().unwrap_or_default();
    let call = Call {
        query: url::form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect(),
        method: parts.method,
        headers: parts.headers,
        extensions: parts.extensions,
    };
    match route {
        Route::Base => match call.method {
            Method::GET | Method::HEAD => Ok(json(StatusCode::OK, &serde_json::json!({}))),
            _ => Err(Failure::method()),
        },
        Route::Catalog => lists::catalog(registry, &call).await,
        Route::Tags { repository } => lists::tags(registry, &call, repository).await,
        Route::Referrers { repository, digest } => {
            lists::referrers(registry, &call, repository, digest).await
        }
        Route::Manifest { repository, key } => {
            manifests::handle(registry, &call, body, (repository, key)).await
        }
        Route::Blob { repository, digest } => {
            blobs::handle(registry, &call, repository, digest).await
        }
        Route::Uploads { repository } => uploads::begin(registry, &call, body, repository).await,
        Route::Upload { repository, id } => {
            uploads::handle(registry, &call, body, (repository, id)).await
        }
    }
}

fn action(method: &Method, route: Option<&Route>) -> Action {
    match (method, route) {
        (_, Some(Route::Base)) => Action::Ping,
        (_, Some(Route::Catalog)) => Action::List,
        // Asking for an upload and giving it up are parts of pushing.
        (_, Some(Route::Upload { .. })) => Action::Push,
        (&Method::DELETE, _) => Action::Delete,
        (&(Method::GET | Method::HEAD), _) => Action::Pull,
        _ => Action::Push,
    }
}

impl Registry {
    fn authorize(&self, access: &Access<'_>) -> Result<Seen, Failure> {
        match self.options.authorize.as_ref().map(|ask| ask(access)) {
            None | Some(Decision::Allow) => Ok(Seen::Is),
            Some(Decision::Hide) => Ok(Seen::Not),
            Some(Decision::Deny {
                status,
                www_authenticate,
            }) => Err(Failure::denied(status, www_authenticate.as_deref())),
        }
    }

    /// Tells whether whoever makes `call` may pull from a repository.
    fn may_pull(&self, call: &Call, repository: &str) -> bool {
        let access = Access {
            extensions: &call.extensions,
            method: &call.method,
            repository: Some(repository),
            action: Action::Pull,
            authorization: call.headers.get(AUTHORIZATION),
        };
        matches!(self.authorize(&access), Ok(Seen::Is))
    }

    /// Returns whose a repository is.
    fn owner_of(&self, repository: &str) -> Option<String> {
        self.options.owner_of.as_ref().and_then(|of| of(repository))
    }

    /// Takes a place for a body that goes to a repository.
    fn admit(&self, repository: &str) -> Result<Place, Failure> {
        self.places.take(self.owner_of(repository), &self.options)
    }

    /// Runs disk work on a blocking thread.
    async fn blocking<T, E>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        E: Into<Failure> + Send + 'static,
    {
        let permit = Arc::clone(&self.blocking).acquire_owned().await;
        let permit = permit.map_err(|_| Failure::closed())?;
        let store = self.store.clone();
        let task = tokio::task::spawn_blocking(move || {
            let result = work(&store);
            drop(permit);
            result
        });
        match task.await {
            Ok(result) => result.map_err(Into::into),
            Err(error) => Err(Failure::internal(&error)),
        }
    }
}

impl Call {
    fn query(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Returns the length that the body claims to have; `None` for one that is streamed.
    fn content_length(&self) -> Option<u64> {
        self.header(&CONTENT_LENGTH)?.parse().ok()
    }
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response {
    let headers = [(http::header::CONTENT_TYPE, "application/json")];
    (status, headers, value.to_string()).into_response()
}

/// Returns an answer without content. Values that are no header values cannot occur: all are made of parsed names.
fn empty(status: StatusCode, headers: &[(HeaderName, String)]) -> Response {
    with_headers((status, Body::empty()).into_response(), headers)
}

fn with_headers(mut response: Response, headers: &[(HeaderName, String)]) -> Response {
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
