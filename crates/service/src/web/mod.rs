//! HTTP beside gRPC: log streams, metrics, liveness. The embedded registry has routes of its own.
//!
//! | path | answers |
//! |---|---|
//! | `GET /logs/<build id>?offset=N&censored=true` | the log as text from byte N on, until the build ends; needs the token of [`tokens`], which only callers of the build's tenant are given |
//! | `GET /subassemblies/<digest>?expires=T&signature=S` | the file, or a range of it; see [`download`] |
//! | `GET /metrics` | everything that is counted; needs a caller with that right |
//! | `GET /healthz` | 200 when builds can be started, else 503 and why |

pub mod download;
pub mod tokens;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use engine::id::BuildId;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use store::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::download::{Downloads, Signed};
use self::tokens::LogTokens;
use crate::access::{Caller, Right};
use crate::builds::Builds;
use crate::builds::log::{self, Names, Wanted};
use crate::telemetry::Metrics;

/// What the routes work with.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The table of builds.
    pub builds: Builds,
    /// Opens log streams.
    pub tokens: LogTokens,
    /// Where the files of subassemblies are.
    pub store: Store,
    /// Opens the files of subassemblies.
    pub downloads: Downloads,
    /// What is counted.
    pub metrics: Metrics,
    /// What is missing to start builds; empty when nothing is.
    pub readiness: watch::Receiver<String>,
    /// Cancelled when the service is about to stop.
    pub shutdown: CancellationToken,
}

#[derive(Debug, Deserialize)]
struct LogQuery {
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    censored: bool,
}

/// Returns the routes.
pub fn router(parts: Parts) -> Router {
    Router::new()
        .route("/logs/{id}", get(logs))
        .route("/subassemblies/{digest}", get(subassembly))
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .with_state(Arc::new(parts))
}

async fn logs(
    State(parts): State<Arc<Parts>>,
    Path(id): Path<String>,
    Query(query): Query<LogQuery>,
    headers: HeaderMap,
) -> Response {
    // One answer for a build that is not there and for a token that is not its: nobody learns which builds there are.
    let refused = || (StatusCode::NOT_FOUND, "build not found\n").into_response();
    let Ok(id) = id.parse::<BuildId>() else {
        return refused();
    };
    let token = headers.get(tokens::HEADER).map(http::HeaderValue::as_bytes);
    if !token.is_some_and(|token| parts.tokens.opens(&id, token)) {
        return refused();
    }
    let Some(build) = parts.builds.find_any(&id) else {
        return refused();
    };
    let names = if query.censored {
        Names::Censored
    } else {
        Names::Shown
    };
    let wanted = Wanted {
        offset: query.offset,
        names,
        ..Wanted::default()
    };
    let text = log::read(build, wanted, parts.shutdown.clone());
    // What steps wrote is anybody's: no browser is to take it for a page of ours, nor do anything that it says.
    let headers = [
        (CONTENT_TYPE, "text/plain; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox"),
    ];
    (headers, Body::from_stream(text)).into_response()
}

async fn subassembly(
    State(parts): State<Arc<Parts>>,
    Path(digest): Path<String>,
    Query(signed): Query<Signed>,
    headers: HeaderMap,
) -> Response {
    download::answer(&parts.store, &parts.downloads, &digest, &signed, &headers).await
}

async fn metrics(
    State(parts): State<Arc<Parts>>,
    caller: Option<Extension<Arc<Caller>>>,
) -> Response {
    match caller {
        Some(Extension(caller)) if caller.may(Right::Metrics) => {}
        Some(_) => {
            let text = "this caller has not the right \"metrics\"\n";
            return (StatusCode::FORBIDDEN, text).into_response();
        }
        None => {
            let challenge = [(WWW_AUTHENTICATE, "Bearer realm=\"kiln\"")];
            let text = "a token is needed\n";
            return (StatusCode::UNAUTHORIZED, challenge, text).into_response();
        }
    }
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, content_type)], parts.metrics.text()).into_response()
}

async fn health(State(parts): State<Arc<Parts>>) -> Response {
    let problem = parts.readiness.borrow().clone();
    if problem.is_empty() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")).into_response()
    }
}
