//! The access hook, as services and test registries use it.

use std::sync::Arc;

use http::StatusCode;
use oci::Digest;
use registry::server::{Access, Action, Decision, ServerOptions};

use crate::harness::{OCI, Server};

/// Everybody may pull from `open/`, only `user:password` may do anything else, and nobody anything in `closed/`.
fn decide(access: &Access<'_>) -> Decision {
    let repository = access.repository.unwrap_or_default();
    if repository.starts_with("closed/") {
        return Decision::Deny {
            status: StatusCode::FORBIDDEN,
            www_authenticate: None,
        };
    }
    let is_open = repository.starts_with("open/") && access.action == Action::Pull;
    let is_user = access
        .authorization
        .is_some_and(|value| value == "Basic dXNlcjpwYXNzd29yZA==");
    if is_open || is_user {
        return Decision::Allow;
    }
    Decision::Deny {
        status: StatusCode::UNAUTHORIZED,
        www_authenticate: Some("Basic realm=\"kiln\"".to_owned()),
    }
}

#[test]
fn the_hook_decides_about_every_request() {
    let server = Server::start_with(ServerOptions {
        authorize: Some(Arc::new(decide)),
        ..ServerOptions::default()
    });
    let user = ("authorization", "Basic dXNlcjpwYXNzd29yZA==");
    let digest = Digest::sha256(b"x");
    for line in [
        "GET /v2/".to_owned(),
        "GET /v2/_catalog".to_owned(),
        "POST /v2/open/a/blobs/uploads/".to_owned(),
        "PUT /v2/open/a/manifests/x".to_owned(),
        format!("DELETE /v2/open/a/blobs/{digest}"),
        format!("GET /v2/a/blobs/{digest}"),
        "GET /v2/../x".to_owned(),
        "GET /v2/open/a/blobs/uploads/aaaaaaaaaaaaaaaaaaaaaaaaaa".to_owned(),
    ] {
        let answer = server.send(&line, &[OCI], "");
        answer.is(401, "UNAUTHORIZED");
        assert_eq!(answer.header("www-authenticate"), "Basic realm=\"kiln\"");
        let answer = server.send(&line, &[OCI, user], "");
        assert_ne!(answer.status, 401, "{line}");
    }
    server
        .get(&format!("/v2/open/a/blobs/{digest}"))
        .is(404, "BLOB_UNKNOWN");
    server
        .send("GET /v2/closed/a/tags/list", &[user], "")
        .is(403, "DENIED");
}

#[test]
fn mounting_needs_the_right_to_pull_from_there() {
    let server = Server::start_with(ServerOptions {
        authorize: Some(Arc::new(decide)),
        ..ServerOptions::default()
    });
    let user = ("authorization", "Basic dXNlcjpwYXNzd29yZA==");
    let digest = server.store.put(b"x").unwrap();
    for repository in ["closed/a", "open/a"] {
        server.store.link_blob(repository, &digest).unwrap();
    }
    for (from, status) in [("closed/a", 202), ("open/a", 201)] {
        let line = format!("POST /v2/b/blobs/uploads/?mount={digest}&from={from}");
        assert_eq!(server.send(&line, &[user], "").status, status, "{from}");
    }
}
