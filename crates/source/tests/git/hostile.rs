//! Requests and servers that mean harm.

use std::collections::BTreeMap;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use http::Response;
use source::git::{FetchError, FetchErrorKind, FetchOptions, GitAuth, GitSource, TargetMode};
use testkit::background::Background;
use testkit::git_server::{File, GitServer};
use testkit::scratch::Scratch;

use super::{quick, run, source_at, source_of};

/// Returns `text` as a pkt-line.
fn packet(text: &str) -> String {
    format!("{:04x}{text}", text.len() + 4)
}

/// Serves protocol version 2 with these lines as the answer to everything that is asked.
fn liar(answer: String) -> Background {
    Background::serve(Router::new().fallback(async move |request: Request| {
        let advertisement = request.uri().path().ends_with("/info/refs");
        let _body = to_bytes(request.into_body(), 1 << 20).await;
        let (kind, text) = if advertisement {
            let lines = [
                "version 2\n",
                "ls-refs=unborn\n",
                "fetch=shallow\n",
                "object-format=sha1\n",
            ]
            .map(packet)
            .concat();
            (
                "advertisement",
                format!("{}0000{lines}0000", packet("# service=git-upload-pack\n")),
            )
        } else {
            ("result", answer.clone())
        };
        let mut response = Response::new(Body::from(text));
        response.headers_mut().insert(
            "content-type",
            format!("application/x-git-upload-pack-{kind}")
                .parse()
                .unwrap(),
        );
        response
    }))
}

#[tokio::test]
async fn targets_that_are_options_or_expressions_are_refused_before_anything_is_contacted() {
    let server = GitServer::start();
    server
        .repository("project")
        .commit("main", &[File::new("a", "1\n")]);
    let scratch = Scratch::new();
    let option = format!("--upload-pack=touch {}", scratch.join("x").display());
    let long = "a".repeat(65_536);
    for target in [
        option.as_str(),
        "-c core.pager=x",
        "--template=",
        "--end-of-options",
        "a..b",
        "@{-1}",
        ":/x",
        "refs/heads/../x",
        "main\r",
        "main\n",
        "ma\0in",
        &long,
        "",
    ] {
        for mode in [
            TargetMode::RemoteCommit,
            TargetMode::RemoteBranch,
            TargetMode::LocalBranch,
        ] {
            let fetched = run(&source_at(&server.url("project"), mode, target), &quick()).await;
            assert_eq!(
                fetched.result.as_ref().unwrap_err().kind(),
                FetchErrorKind::Invalid,
                "{target:.40?} {mode:?}"
            );
        }
    }
    assert!(server.requests().is_empty());
    assert!(!scratch.join("x").exists());
}

#[tokio::test]
async fn settings_that_could_run_something_are_refused_by_name() {
    let server = GitServer::start();
    server
        .repository("project")
        .commit("main", &[File::new("a", "1\n")]);
    for key in [
        "core.fsmonitor",
        "core.hooksPath",
        "credential.helper",
        "filter.x.smudge",
        "url.https://evil/.insteadOf",
        "include.path",
    ] {
        let source = GitSource {
            custom_config: BTreeMap::from([(key.to_owned(), "x".to_owned())]),
            ..source_of(&server.url("project"))
        };
        let fetched = run(&source, &quick()).await;
        assert_eq!(
            fetched.result.as_ref().unwrap_err().kind(),
            FetchErrorKind::Invalid
        );
        assert!(fetched.error().contains(key));
    }
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn plain_http_needs_permission() {
    let options = FetchOptions {
        loopback_http: false,
        ..quick()
    };
    let server = GitServer::start();
    let commit = server
        .repository("project")
        .commit("main", &[File::new("a", "1\n")]);
    for (source, options) in [
        (source_of(&server.url("project")), &options),
        (source_of("http://example.com/x"), &quick()),
    ] {
        let fetched = run(&source, options).await;
        assert_eq!(
            fetched.result.as_ref().unwrap_err().kind(),
            FetchErrorKind::Invalid,
            "{}",
            fetched.error()
        );
    }
    let auth = GitAuth::OneTimeSecret {
        url: "http://example.com/once".to_owned(),
    };
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
        FetchErrorKind::Invalid
    );
    let options = FetchOptions {
        http_hosts: vec![server.host()],
        ..options
    };
    assert_eq!(
        run(&source_of(&server.url("project")), &options)
            .await
            .commit(),
        commit
    );
}

#[tokio::test]
async fn a_head_that_names_an_option_is_not_passed_on() {
    let sha = "1".repeat(40);
    for target in [
        "refs/heads/--upload-pack=/tmp/evil.sh",
        "refs/heads/a..b",
        "refs/tags/x",
        "refs/heads/-x",
    ] {
        let answer = format!(
            "{}0000",
            packet(&format!("{sha} HEAD symref-target:{target}\n"))
        );
        let server = liar(answer);
        let fetched = run(
            &source_of(&format!("http://{}/x", server.address())),
            &quick(),
        )
        .await;
        let error = fetched.result.as_ref().unwrap_err();
        assert!(
            matches!(error, FetchError::Hostile { .. }),
            "{target}: {}",
            fetched.error()
        );
    }
}

#[tokio::test]
async fn answers_that_are_not_git_s_end_in_an_error() {
    let sha = "1".repeat(40);
    let million: String = (0..200_000)
        .map(|n| packet(&format!("{sha} refs/heads/b{n}\n")))
        .collect();
    for answer in [
        "zzzz".to_owned(),
        "fff".to_owned(),
        packet("ERR no\u{1b}[2Jpe\n"),
        "0000".to_owned(),
        packet("not a line\n"),
        format!("{million}0000"),
        packet(&format!("{sha} HEAD\n")) + "0000",
    ] {
        let server = liar(answer.clone());
        let fetched = run(
            &source_of(&format!("http://{}/x", server.address())),
            &quick(),
        )
        .await;
        assert!(fetched.result.is_err(), "{answer:.40}");
        assert!(!fetched.log.contains('\u{1b}'));
    }
}

#[tokio::test]
async fn hooks_filters_and_submodules_in_a_repository_do_nothing() {
    let server = GitServer::start();
    let other = GitServer::start();
    let scratch = Scratch::new();
    let marker = scratch.join("ran");
    let mut repository = server.repository("project");
    let touch = format!("touch {}", marker.display());
    repository.commit(
        "main",
        &[
            File::new(
                ".gitattributes",
                "* filter=lfs diff=x merge=x\n*.txt working-tree-encoding=UTF-16 ident\n",
            ),
            File::new(
                ".gitmodules",
                format!(
                    "[submodule \"m\"]\n\tpath = m\n\turl = {}\n\tupdate = checkout\n",
                    other.url("other")
                ),
            ),
            File::new(
                ".lfsconfig",
                format!("[lfs]\n\turl = http://{}/\n", other.host()),
            ),
            File::new(".gitconfig", format!("[core]\n\tfsmonitor = {touch}\n")),
            File::executable("hooks/post-checkout", format!("#!/bin/sh\n{touch}\n")),
            File::new("HEAD", "ref: refs/heads/main\n"),
            File::new(
                "config",
                format!("[core]\n\tbare = true\n\tfsmonitor = {touch}\n"),
            ),
            File::new("a", "1\n"),
        ],
    );
    let fetched = run(&source_of(&server.url("project")), &quick()).await;
    assert_eq!(fetched.read("a"), "1\n", "{}", fetched.error());
    assert!(!marker.exists());
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn trees_that_reach_into_the_git_directory_are_refused() {
    let server = GitServer::start();
    for (number, path) in [
        ".git/config",
        ".GIT/config",
        "git~1/config",
        ".git\u{200c}/config",
        "a/../../x",
        "a/./b",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("project{number}");
        let repository = server.repository(&name);
        plant(&repository, path);
        let fetched = run(&source_of(&server.url(&name)), &quick()).await;
        assert!(fetched.result.is_err(), "{path}");
        assert!(!fetched.scratch.join("x").exists());
    }
}

#[tokio::test]
async fn a_link_and_a_folder_of_one_name_are_refused() {
    let server = GitServer::start();
    let outside = Scratch::new();
    let repository = server.repository("project");
    let target = outside.path().to_str().unwrap();
    let link = write(&repository, "blob", target.as_bytes());
    let file = write(&repository, "blob", b"evil\n");
    let folder = write(&repository, "tree", &entry("100644", "x", &file));
    let both = [entry("120000", "a", &link), entry("40000", "a", &folder)].concat();
    let tree = write(&repository, "tree", &both);
    commit_tree(&repository, &tree);
    let fetched = run(&source_of(&server.url("project")), &quick()).await;
    assert!(fetched.result.is_err(), "{}", fetched.log);
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

/// Writes a commit whose tree holds `path`, which no honest git writes.
fn plant(repository: &testkit::git_server::Repository, path: &str) {
    let mut object = write(repository, "blob", b"evil\n");
    let mut mode = "100644";
    for component in path.rsplit('/') {
        object = write(repository, "tree", &entry(mode, component, &object));
        mode = "40000";
    }
    commit_tree(repository, &object);
}

/// Returns an entry of a tree.
fn entry(mode: &str, name: &str, object: &str) -> Vec<u8> {
    let mut entry = format!("{mode} {name}\0").into_bytes();
    let raw = |index: usize| u8::from_str_radix(&object[2 * index..2 * index + 2], 16).unwrap();
    entry.extend((0..20).map(raw));
    entry
}

/// Makes a commit of `tree` the head of main.
fn commit_tree(repository: &testkit::git_server::Repository, tree: &str) {
    let text = format!("tree {tree}\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nm\n");
    let commit = write(repository, "commit", text.as_bytes());
    let mut git = repository.git();
    testkit::process::run(git.args(["update-ref", "refs/heads/main", &commit]));
}

/// Writes an object as it is, and returns its name.
fn write(repository: &testkit::git_server::Repository, kind: &str, content: &[u8]) -> String {
    use std::process::Stdio;
    let mut command = repository.git();
    command
        .args(["hash-object", "-t", kind, "-w", "--stdin", "--literally"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), content).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn links_in_a_repository_stay_links() {
    let server = GitServer::start();
    let scratch = Scratch::new();
    let secret = scratch.write("secret", "canary\n");
    server.repository("project").commit(
        "main",
        &[
            File::symlink("Dockerfile", secret.to_str().unwrap()),
            File::symlink("up", ".."),
        ],
    );
    let fetched = run(&source_of(&server.url("project")), &quick()).await;
    assert_eq!(
        std::fs::read_link(fetched.workspace().join("Dockerfile")).unwrap(),
        secret
    );
    assert!(fetched.workspace().join("up").is_symlink());
}

#[tokio::test]
async fn nothing_inside_is_connected_to_for_others() {
    let server = GitServer::start();
    let mut repository = server.repository("inner");
    repository.commit("main", &[File::new("a", "1")]);
    let url = server.url("inner");
    let by_name = url.replace("127.0.0.1", "localhost");
    let options = FetchOptions {
        egress: egress::Policy::public(),
        ..quick()
    };
    for url in [&url, &by_name] {
        let source = head_of(url);
        let fetched = run(&source, &options).await;
        assert!(
            fetched.error().contains("not connected to"),
            "{url}: {}",
            fetched.error()
        );
    }
    let mut egress = egress::Policy::public();
    let port = url.split(':').nth(2).unwrap().split('/').next().unwrap();
    egress.allow_host(&format!("localhost:{port}"));
    let named = FetchOptions { egress, ..quick() };
    assert_eq!(run(&head_of(&by_name), &named).await.read("a"), "1");
}

fn head_of(url: &str) -> GitSource {
    GitSource {
        remote: url.parse().unwrap(),
        upstream: None,
        target_mode: TargetMode::RemoteHead,
        target: String::new(),
        depth: source::git::Depth::Shallow,
        checkout_location: source::path::RelPath::default(),
        custom_config: std::collections::BTreeMap::new(),
        auth: GitAuth::None,
    }
}
