//! Repositories and servers that know where git was weak once.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use http::{Response, StatusCode};
use source::git::{Depth, FetchErrorKind, GitSource, Submodules, TargetMode};
use source::path::RelPath;
use testkit::background::Background;
use testkit::git_server::{File, GitServer};
use testkit::scratch::Scratch;

use super::{quick, run, source_at, source_of};

#[tokio::test]
async fn a_hook_behind_a_carriage_return_never_runs() {
    let server = GitServer::start();
    let scratch = Scratch::new();
    let marker = scratch.join("ran");
    let hook = format!("#!/bin/sh\ntouch {}\n", marker.display());
    let mut inner = server.repository("inner");
    let commit = inner.commit("main", &[File::executable("post-checkout", hook)]);
    let mut repository = server.repository("project");
    let modules = "[submodule \"sub\"]\n\tpath = \"sub\r\"\n\turl = ../inner.git\n";
    let files = [
        File::new(".gitmodules", modules),
        File::symlink("sub", ".git/hooks"),
        File::submodule("sub\r", &commit),
    ];
    repository.commit("main", &files);
    let options = source::git::FetchOptions {
        submodules: Submodules::All,
        ..quick()
    };
    let fetched = run(&source_of(&server.url("project")), &options).await;
    assert!(fetched.result.is_ok(), "{}", fetched.error());
    assert!(
        fetched.log.contains("its path is not acceptable"),
        "{}",
        fetched.log
    );
    assert!(!marker.exists());
    assert!(!fetched.workspace().join(".git/hooks").exists());
}

/// Returns a server without git, which says that its objects are also at `elsewhere`.
fn with_alternates(commit: &str, elsewhere: &str) -> (Background, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&asked);
    let (refs, other) = (
        format!("{commit}\trefs/heads/main\n"),
        format!("{elsewhere}/objects\n"),
    );
    let server = Background::serve(Router::new().fallback(async move |request: Request| {
        let path = request.uri().path().to_owned();
        record.lock().unwrap().push(path.clone());
        let text = match path.trim_start_matches("/x/") {
            "info/refs" => refs,
            "HEAD" => "ref: refs/heads/main\n".to_owned(),
            "objects/info/http-alternates" | "objects/info/alternates" => other,
            _ => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NOT_FOUND;
                return response;
            }
        };
        Response::new(Body::from(text))
    }));
    (server, asked)
}

#[tokio::test]
async fn objects_are_not_fetched_from_where_a_server_says_that_they_are_too() {
    let other = GitServer::start();
    let commit = other
        .repository("x")
        .commit("main", &[File::new("a", "1\n")]);
    let elsewhere = other.url("x");
    let (server, asked) = with_alternates(&commit, elsewhere.trim_end_matches('/'));
    let url = format!("http://{}/x", server.address());
    let fetched = run(&source_of(&url), &quick()).await;
    assert!(fetched.result.is_err(), "{}", fetched.log);
    assert!(
        asked
            .lock()
            .unwrap()
            .iter()
            .any(|path| path.starts_with("/x/info/refs"))
    );
    assert_eq!(other.requests(), []);
}

#[tokio::test]
async fn bundles_that_a_server_offers_are_not_asked_for() {
    let packet = |text: &str| format!("{:04x}{text}", text.len() + 4);
    let capabilities = ["version 2\n", "bundle-uri\n", "ls-refs\n", "fetch\n"];
    let offer = format!(
        "{}0000{}0000",
        packet("# service=git-upload-pack\n"),
        capabilities.map(packet).concat()
    );
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&bodies);
    let server = Background::serve(Router::new().fallback(async move |request: Request| {
        let is_offer = request.uri().path().ends_with("/info/refs");
        let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let body = String::from_utf8_lossy(&body).into_owned();
        let line = format!("{} HEAD symref-target:refs/heads/main\n", "1".repeat(40));
        let (kind, text) = if is_offer {
            ("advertisement", offer)
        } else {
            ("result", packet(&line) + "0000")
        };
        if !is_offer {
            record.lock().unwrap().push(body);
        }
        let mut response = Response::new(Body::from(text));
        let kind = format!("application/x-git-upload-pack-{kind}");
        response
            .headers_mut()
            .insert("content-type", kind.parse().unwrap());
        response
    }));
    let fetched = run(
        &source_of(&format!("http://{}/x", server.address())),
        &quick(),
    )
    .await;
    assert!(fetched.result.is_err());
    let bodies = bodies.lock().unwrap();
    assert!(bodies.iter().any(|body| body.contains("command=ls-refs")));
    assert!(!bodies.iter().any(|body| body.contains("bundle-uri")));
}

#[tokio::test]
async fn many_attributes_change_nothing_and_endless_ones_are_refused() {
    let server = GitServer::start();
    let many = "*.x filter=x ident export-subst\n".repeat(50_000);
    let mut repository = server.repository("many");
    let files = [
        File::new(".gitattributes", many),
        File::new("a", "$Id$\n"),
        File::new("b.y", "kept\n"),
    ];
    repository.commit("main", &files);
    let fetched = run(&source_of(&server.url("many")), &quick()).await;
    assert_eq!(fetched.read("a"), "$Id$\n", "{}", fetched.error());
    assert_eq!(fetched.read("b.y"), "kept\n");
    let endless = format!(
        "{} ident working-tree-encoding=UTF-32\n",
        "y".repeat(4 << 20)
    );
    let mut repository = server.repository("endless");
    repository.commit("main", &[File::new(".gitattributes", endless)]);
    let fetched = run(&source_of(&server.url("endless")), &quick()).await;
    assert!(
        fetched.error().contains("gitattributesLineLength"),
        "{}",
        fetched.error()
    );
}

#[tokio::test]
async fn what_replaces_a_commit_on_the_server_replaces_it_nowhere() {
    let server = GitServer::start();
    let mut repository = server.repository("project");
    let honest = repository.commit("main", &[File::new("a", "honest\n")]);
    let evil = repository.commit("evil", &[File::new("a", "evil\n")]);
    let replacement = format!("refs/replace/{honest}");
    testkit::process::run(repository.git().args(["update-ref", &replacement, &evil]));
    for (mode, target) in [
        (TargetMode::RemoteHead, ""),
        (TargetMode::RemoteCommit, honest.as_str()),
    ] {
        for depth in [Depth::Shallow, Depth::Full] {
            let source = GitSource {
                depth,
                ..source_at(&server.url("project"), mode, target)
            };
            let fetched = run(&source, &quick()).await;
            assert_eq!(fetched.commit(), honest);
            assert_eq!(fetched.read("a"), "honest\n");
        }
    }
}

#[tokio::test]
async fn a_path_deeper_than_any_file_system_takes_is_over_the_limit() {
    let server = GitServer::start();
    let path = format!("{}f", "d/".repeat(5000));
    let mut repository = server.repository("project");
    repository.commit("main", &[File::new(&path, "1\n")]);
    let fetched = run(&source_of(&server.url("project")), &quick()).await;
    let error = fetched.result.as_ref().unwrap_err();
    assert_eq!(error.kind(), FetchErrorKind::Limit, "{error}");
    assert!(error.to_string().contains("bytes in a path"), "{error}");
}

#[tokio::test]
async fn a_location_that_looks_like_an_option_is_a_folder() {
    let server = GitServer::start();
    let mut repository = server.repository("project");
    repository.commit("main", &[File::new("a", "1\n")]);
    let scratch = Scratch::new();
    let option = format!(
        "--upload-pack=touch {}",
        scratch.join("x").display().to_string().replace('/', "_")
    );
    for location in ["-c", "--git-dir=x", option.as_str(), "%2e%2e", "a\\b"] {
        let source = GitSource {
            checkout_location: RelPath::parse(location).unwrap(),
            ..source_of(&server.url("project"))
        };
        let fetched = run(&source, &quick()).await;
        let file = fetched.workspace().join(location).join("a");
        assert!(file.exists(), "{location}: {}", fetched.error());
        assert_eq!(std::fs::read_dir(fetched.workspace()).unwrap().count(), 1);
    }
}
