//! Credentials: who gets them, and where they are not to be found.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::{Response, StatusCode};
use source::git::{FetchError, FetchErrorKind, FetchOptions, GitAuth, GitSource, RemoteUrl};
use testkit::background::Background;
use testkit::git_server::{File, GitServer};
use testkit::scratch::Scratch;

use super::{files_with, quick, run, source_of};

const PASSWORD: &str = "tooth/brush+9f3c";
/// `user:tooth/brush+9f3c` and the password alone in base64, and the password in a URL.
const SPELLINGS: [&str; 4] = [
    PASSWORD,
    "dXNlcjp0b290aC9icnVzaCs5ZjNj",
    "dG9vdGgvYnJ1c2grOWYzYw",
    "tooth%2Fbrush%2B9f3c",
];

fn basic(password: &str) -> GitAuth {
    GitAuth::Basic {
        user: "user".to_owned(),
        password: password.to_owned(),
    }
}

/// Returns a server with a password and one commit.
fn private() -> GitServer {
    let server = GitServer::with_basic_auth("user", PASSWORD);
    server
        .repository("project")
        .commit("main", &[File::new("a", "1\n")]);
    server
}

/// Serves `answer` at `/` and counts the requests.
fn secret_server(
    answer: impl Fn() -> Response<Body> + Clone + Send + Sync + 'static,
) -> (Background, Arc<AtomicUsize>) {
    let n_requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&n_requests);
    let handler = move || {
        counter.fetch_add(1, Ordering::SeqCst);
        let answer = answer();
        async move { answer }
    };
    (
        Background::serve(Router::new().fallback(get(handler))),
        n_requests,
    )
}

#[tokio::test]
async fn the_right_password_opens_the_repository_and_is_found_nowhere() {
    let server = private();
    let scratch = Scratch::new();
    let record = scratch.join("record");
    // Every run of git is recorded: its arguments always, its environment when it is not for the network.
    let wrapper = scratch.write("git", format!("#!/bin/sh\nprintf '%s\\n' \"$@\" >>{record}\ncase \"$*\" in *fetch*|*ls-remote*) ;; *) env >>{record} ;; esac\nexec git \"$@\"\n", record = record.display()));
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let options = FetchOptions {
        git_program: wrapper,
        ..quick()
    };
    let fetched = run(
        &GitSource {
            auth: basic(PASSWORD),
            ..source_of(&server.url("project"))
        },
        &options,
    )
    .await;
    assert_eq!(fetched.read("a"), "1\n", "{}", fetched.error());
    assert!(
        std::fs::read_to_string(&record)
            .unwrap()
            .contains("--depth=1")
    );
    assert_eq!(
        files_with(scratch.path(), &SPELLINGS),
        [] as [std::path::PathBuf; 0]
    );
    assert_eq!(
        files_with(fetched.scratch.path(), &SPELLINGS),
        [] as [std::path::PathBuf; 0]
    );
    assert!(
        SPELLINGS
            .iter()
            .all(|spelling| !fetched.log.contains(spelling))
    );
}

#[tokio::test]
async fn a_wrong_password_or_none_is_unauthorized_and_not_repeated() {
    let server = private();
    for auth in [GitAuth::None, basic("wrong-4711")] {
        let fetched = run(
            &GitSource {
                auth,
                ..source_of(&server.url("project"))
            },
            &quick(),
        )
        .await;
        assert_eq!(
            fetched.result.as_ref().unwrap_err().kind(),
            FetchErrorKind::Unauthorized,
            "{}",
            fetched.error()
        );
        assert!(!fetched.error().contains("wrong-4711") && !fetched.log.contains("wrong-4711"));
    }
}

#[tokio::test]
async fn the_credential_goes_to_its_own_host_and_to_no_other() {
    let server = private();
    let other = GitServer::with_basic_auth("user", PASSWORD);
    other
        .repository("upstream")
        .commit("main", &[File::new("a", "1\n")]);
    let source = GitSource {
        auth: basic(PASSWORD),
        upstream: Some(RemoteUrl::parse(&other.url("upstream")).unwrap()),
        ..source_of(&server.url("project"))
    };
    let fetched = run(&source, &quick()).await;
    assert_eq!(
        fetched.result.as_ref().unwrap_err().kind(),
        FetchErrorKind::Unauthorized
    );
    assert!(!other.requests().is_empty());
    assert!(
        other
            .requests()
            .iter()
            .all(|request| request.authorization.is_none())
    );
}

#[tokio::test]
async fn the_remarks_of_a_server_that_echoes_the_password_are_blackened() {
    let (server, _) = secret_server(|| {
        let mut response = Response::new(Body::from(format!(
            "your password is {PASSWORD}, in base64 {}",
            SPELLINGS[1]
        )));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
            .headers_mut()
            .insert("content-type", "text/plain".parse().unwrap());
        response
    });
    let source = GitSource {
        auth: basic(PASSWORD),
        ..source_of(&format!("http://{}/x", server.address()))
    };
    let fetched = run(&source, &quick()).await;
    assert_eq!(
        fetched.result.as_ref().unwrap_err().kind(),
        FetchErrorKind::Unavailable,
        "{}",
        fetched.error()
    );
    assert!(
        fetched.log.contains("your password is ***"),
        "{}",
        fetched.log
    );
    for spelling in SPELLINGS {
        assert!(!fetched.log.contains(spelling) && !fetched.error().contains(spelling));
    }
}

#[tokio::test]
async fn a_one_time_secret_is_asked_for_once() {
    let server = private();
    for body in [format!("user:{PASSWORD}\n"), format!("user:{PASSWORD}")] {
        let (secrets, n_requests) = secret_server(move || Response::new(Body::from(body.clone())));
        let auth = GitAuth::OneTimeSecret {
            url: format!("http://{}/once?id=1", secrets.address()),
        };
        let fetched = run(
            &GitSource {
                auth,
                ..source_of(&server.url("project"))
            },
            &quick(),
        )
        .await;
        assert_eq!(fetched.read("a"), "1\n", "{}", fetched.error());
        assert_eq!(n_requests.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_secret_without_a_colon_is_a_password_without_a_user() {
    let server = GitServer::with_basic_auth("", PASSWORD);
    server
        .repository("project")
        .commit("main", &[File::new("a", "1\n")]);
    let (secrets, _) = secret_server(|| Response::new(Body::from(PASSWORD)));
    let auth = GitAuth::OneTimeSecret {
        url: format!("http://{}/", secrets.address()),
    };
    let fetched = run(
        &GitSource {
            auth,
            ..source_of(&server.url("project"))
        },
        &quick(),
    )
    .await;
    assert_eq!(fetched.read("a"), "1\n", "{}", fetched.error());
}

#[tokio::test]
async fn what_is_not_a_secret_is_refused_after_one_request() {
    let server = private();
    let answer = |status: u16, content_type: &'static str, body: &'static str| {
        move || {
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response
                .headers_mut()
                .insert("content-type", content_type.parse().unwrap());
            response
                .headers_mut()
                .insert("location", "/elsewhere".parse().unwrap());
            response
        }
    };
    let long: &'static str = "x".repeat(100_000).leak();
    for (status, content_type, body) in [
        (302, "text/plain", "user:pass"),
        (404, "text/plain", "user:pass"),
        (500, "text/plain", "user:pass"),
        (200, "text/html", "<html>"),
        (200, "text/plain", ""),
        (200, "text/plain", "user:pass\nHost: evil"),
        (200, "text/plain", "us\ner:pass"),
        (200, "text/plain", long),
    ] {
        let (secrets, n_requests) = secret_server(answer(status, content_type, body));
        let auth = GitAuth::OneTimeSecret {
            url: format!("http://{}/s3cret-path", secrets.address()),
        };
        let fetched = run(
            &GitSource {
                auth,
                ..source_of(&server.url("project"))
            },
            &quick(),
        )
        .await;
        assert!(
            matches!(fetched.result, Err(FetchError::Secret(_))),
            "{status} {body:.20}: {}",
            fetched.error()
        );
        assert_eq!(n_requests.load(Ordering::SeqCst), 1, "{status}");
        assert!(
            !fetched.error().contains("s3cret-path"),
            "{}",
            fetched.error()
        );
    }
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_redirect_is_followed_once_and_only_on_the_same_host() {
    let server = private();
    let host = server.host();
    let (elsewhere, n_requests) = secret_server(move || {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::FOUND;
        let location = format!("http://{host}/project.git/info/refs?service=git-upload-pack");
        response
            .headers_mut()
            .insert("location", location.parse().unwrap());
        response
    });
    let source = GitSource {
        auth: basic(PASSWORD),
        ..source_of(&format!("http://{}/project", elsewhere.address()))
    };
    let fetched = run(&source, &quick()).await;
    assert!(
        matches!(fetched.result, Err(FetchError::Redirected { .. })),
        "{}",
        fetched.error()
    );
    assert!(n_requests.load(Ordering::SeqCst) > 0);
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_redirect_to_another_path_of_the_host_is_followed() {
    // What hosts do that serve `/group/name` as `/group/name.git`.
    let inner = GitServer::start();
    let commit = inner
        .repository("project")
        .commit("main", &[File::new("a", "1\n")]);
    let upstream = testkit::proxy::Proxy::in_front_of(&inner.host());
    upstream.rule(testkit::proxy::Rule::new(
        "/old.git/",
        testkit::proxy::Action::Redirect {
            from: "/old.git".to_owned(),
            to: "/project.git".to_owned(),
        },
    ));
    let fetched = run(
        &source_of(&format!("http://{}/old.git", upstream.host())),
        &quick(),
    )
    .await;
    assert_eq!(fetched.commit(), commit, "{}", fetched.error());
    assert_eq!(
        fetched.git(&["config", "remote.origin.url"]),
        format!("http://{}/project.git", upstream.host())
    );
}

#[tokio::test]
async fn a_password_across_the_end_of_a_long_line_is_blackened() {
    let (server, _) = secret_server(|| {
        // Whatever git puts in front of it, one of these passwords lies across the longest line.
        let body = format!("{}\n", PASSWORD.repeat(400));
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
            .headers_mut()
            .insert("content-type", "text/plain".parse().unwrap());
        response
    });
    let source = GitSource {
        auth: basic(PASSWORD),
        ..source_of(&format!("http://{}/x", server.address()))
    };
    let fetched = run(&source, &quick()).await;
    assert!(fetched.log.contains("******"), "{}", fetched.log);
    assert!(!fetched.log.contains(&PASSWORD[..4]), "{}", fetched.log);
}
