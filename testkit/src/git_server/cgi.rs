//! One run of `git http-backend`, as RFC 3875 has it.

use std::path::Path;
use std::process::Stdio;

use axum::body::Body;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::status;

/// Runs the backend for one request.
pub(super) async fn run(root: &Path, parts: &Parts, body: &[u8]) -> Response<Body> {
    let output = async {
        let mut child = command(root, parts, body.len()).spawn()?;
        let mut stdin = child.stdin.take();
        let write = async {
            if let Some(mut pipe) = stdin.take() {
                // The backend may have answered without reading everything.
                let _closed = pipe.write_all(body).await;
            }
        };
        let (output, ()) = tokio::join!(child.wait_with_output(), write);
        output
    };
    match output.await {
        Ok(output) => parse(&output.stdout).unwrap_or_else(|| status(StatusCode::BAD_GATEWAY)),
        Err(_) => status(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// Returns the command with the environment that the protocol wants.
fn command(root: &Path, parts: &Parts, body_bytes: usize) -> Command {
    let header = |name: &str| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let mut command = Command::new("git");
    command.arg("http-backend").env_clear().kill_on_drop(true);
    command.env("PATH", "/usr/local/bin:/usr/bin:/bin");
    // Serving a repository that another user made is the point, and reading this machine's settings is not.
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null");
    command
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*");
    command
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1");
    command
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default());
    command
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("CONTENT_TYPE", header("content-type"));
    command
        .env("CONTENT_LENGTH", body_bytes.to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"));
    command
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("REMOTE_ADDR", "127.0.0.1");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

/// Reads the backend's answer: headers, an empty line, the body.
fn parse(output: &[u8]) -> Option<Response<Body>> {
    let end = output.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, body) = output.split_at(end);
    let mut response = Response::new(Body::from(body.get(4..)?.to_vec()));
    for line in std::str::from_utf8(head).ok()?.lines() {
        let (name, value) = line.split_once(": ")?;
        if name == "Status" {
            *response.status_mut() = value.split(' ').next()?.parse().ok()?;
        } else {
            response.headers_mut().append(
                HeaderName::from_bytes(name.as_bytes()).ok()?,
                HeaderValue::from_str(value).ok()?,
            );
        }
    }
    Some(response)
}
