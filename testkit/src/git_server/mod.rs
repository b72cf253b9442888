//! `git http-backend` behind a CGI server, over repositories made from lists of files.
//!
//! Dates, names and order are fixed, so the same calls give the same commits on every machine.

mod cgi;
mod lfs;
mod repository;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Response, StatusCode, header};

pub use self::lfs::LfsObject;
pub use self::repository::{File, FileMode, Repository};
use crate::background::Background;
use crate::process;
use crate::scratch::Scratch;

/// Most bytes of a request body; tests only fetch.
const MAX_BODY_BYTES: usize = 16 << 20;

/// A git server on loopback; it and its repositories vanish when this is dropped.
#[derive(Debug)]
pub struct GitServer {
    // Before the directory: a request that is being answered reads from it.
    background: Background,
    requests: Arc<Mutex<Vec<GitRequest>>>,
    objects: Arc<Mutex<BTreeMap<String, LfsObject>>>,
    scratch: Scratch,
}

/// One request that the server got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitRequest {
    /// The method.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The status it was answered with.
    pub status: u16,
}

/// What each request is answered with.
struct Site {
    root: PathBuf,
    authorization: Option<String>,
    requests: Arc<Mutex<Vec<GitRequest>>>,
    objects: Arc<Mutex<BTreeMap<String, LfsObject>>>,
}

impl GitServer {
    /// Starts a server for everybody.
    #[must_use]
    pub fn start() -> Self {
        Self::with_authorization(None)
    }

    /// Starts a server that wants this user name and password.
    #[must_use]
    pub fn with_basic_auth(user: &str, password: &str) -> Self {
        Self::with_authorization(Some(format!(
            "Basic {}",
            STANDARD.encode(format!("{user}:{password}"))
        )))
    }

    fn with_authorization(authorization: Option<String>) -> Self {
        let _git = process::tool("git", "git");
        let scratch = Scratch::new();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let objects = Arc::new(Mutex::new(BTreeMap::new()));
        let site = Site {
            root: scratch.path().to_path_buf(),
            authorization,
            requests: Arc::clone(&requests),
            objects: Arc::clone(&objects),
        };
        let router = Router::new().fallback(answer).with_state(Arc::new(site));
        Self {
            background: Background::serve(router),
            requests,
            objects,
            scratch,
        }
    }

    /// Makes an empty repository that is served as `name`.git, with `main` as its HEAD.
    #[must_use]
    pub fn repository(&self, name: &str) -> Repository {
        Repository::create(self.scratch.join(&format!("{name}.git")))
    }

    /// Answers for the LFS object `oid` of every repository in this way.
    pub fn keep(&self, oid: &str, object: LfsObject) {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.insert(oid.to_owned(), object);
    }

    /// Returns the address of the repository `name`.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}.git", self.background.address())
    }

    /// Returns host and port.
    #[must_use]
    pub fn host(&self) -> String {
        self.background.address().to_string()
    }

    /// Returns every request so far.
    #[must_use]
    pub fn requests(&self) -> Vec<GitRequest> {
        self.requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Answers one request and records it.
async fn answer(State(site): State<Arc<Site>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let authorization = parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let response = if site.authorization.is_some() && site.authorization != authorization {
        let mut response = Response::new(Body::from("who are you?\n"));
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        response.headers_mut().insert(
            header::WWW_AUTHENTICATE,
            http::HeaderValue::from_static("Basic realm=\"git\""),
        );
        response
    } else {
        match to_bytes(body, MAX_BODY_BYTES).await {
            Ok(body) => {
                let answer = {
                    let objects = site.objects.lock().unwrap_or_else(PoisonError::into_inner);
                    lfs::answer(&objects, &parts, &body)
                };
                match answer {
                    Some(answer) => answer,
                    None => cgi::run(&site.root, &parts, &body).await,
                }
            }
            Err(_) => status(StatusCode::PAYLOAD_TOO_LARGE),
        }
    };
    let recorded = GitRequest {
        method: parts.method.to_string(),
        path: parts.uri.to_string(),
        authorization,
        status: response.status().as_u16(),
    };
    site.requests
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(recorded);
    response
}

/// Returns an empty answer.
fn status(code: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = code;
    response
}
