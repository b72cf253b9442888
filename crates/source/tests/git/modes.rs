//! What the four target modes fetch.

use std::collections::BTreeMap;

use source::git::{
    Depth, FetchErrorKind, FetchOptions, GitDirectory, GitSource, Missing, RemoteUrl, TargetMode,
};
use source::path::RelPath;
use testkit::git_server::{File, GitServer, Repository};

use super::{quick, run, source_at, source_of};

/// Returns a repository with three commits on main and one on another branch.
fn project(server: &GitServer) -> (Repository, Vec<String>) {
    let mut repository = server.repository("project");
    let mut commits: Vec<String> = (1..=3)
        .map(|n| repository.commit("main", &[File::new("n", format!("{n}\n"))]))
        .collect();
    commits.push(repository.commit(
        "topic/other",
        &[
            File::new("n", "other\n"),
            File::executable("run", "#!/bin/sh\n"),
            File::symlink("link", "n"),
        ],
    ));
    (repository, commits)
}

#[tokio::test]
async fn the_remote_head_is_its_branch_with_one_commit() {
    let server = GitServer::start();
    let (repository, commits) = project(&server);
    repository.set_head("topic/other");
    let fetched = run(&source_of(&server.url("project")), &quick()).await;
    let checkout = fetched.result.as_ref().unwrap();
    assert_eq!(
        (checkout.commit.as_str(), checkout.commit_time_unix),
        (commits[3].as_str(), 1_700_000_180)
    );
    assert!(checkout.is_all);
    assert_eq!(fetched.read("link"), "other\n");
    assert_eq!(
        fetched.git(&["symbolic-ref", "HEAD"]),
        "refs/heads/topic/other"
    );
    assert_eq!(fetched.git(&["rev-list", "--count", "HEAD"]), "1");
    assert_eq!(fetched.git(&["status", "--porcelain"]), "");
    assert_eq!(
        fetched.git(&["config", "remote.origin.url"]),
        server.url("project")
    );
}

#[tokio::test]
async fn a_branch_is_checked_out_under_its_name() {
    let server = GitServer::start();
    let (_, commits) = project(&server);
    for depth in [Depth::Shallow, Depth::Full] {
        let source = GitSource {
            depth,
            ..source_at(
                &server.url("project"),
                TargetMode::RemoteBranch,
                "topic/other",
            )
        };
        let fetched = run(&source, &quick()).await;
        assert_eq!(fetched.commit(), commits[3]);
        assert_eq!(
            fetched.git(&["symbolic-ref", "HEAD"]),
            "refs/heads/topic/other"
        );
    }
}

#[tokio::test]
async fn a_missing_branch_is_an_error_and_never_another_branch() {
    let server = GitServer::start();
    project(&server);
    for depth in [Depth::Shallow, Depth::Full] {
        let source = GitSource {
            depth,
            ..source_at(&server.url("project"), TargetMode::RemoteBranch, "gone")
        };
        let fetched = run(&source, &quick()).await;
        assert_eq!(
            fetched.result.as_ref().unwrap_err().kind(),
            FetchErrorKind::NotFound(Missing::Branch)
        );
        assert!(
            fetched.error().contains("branch \"gone\" does not exist"),
            "{}",
            fetched.error()
        );
    }
}

#[tokio::test]
async fn a_local_branch_starts_at_the_remote_head() {
    let server = GitServer::start();
    let (_, commits) = project(&server);
    let fetched = run(
        &source_at(&server.url("project"), TargetMode::LocalBranch, "mine"),
        &quick(),
    )
    .await;
    assert_eq!(fetched.commit(), commits[2]);
    assert_eq!(fetched.git(&["symbolic-ref", "HEAD"]), "refs/heads/mine");
}

#[tokio::test]
async fn a_full_commit_is_fetched_alone_and_verified() {
    let server = GitServer::start();
    let (_, commits) = project(&server);
    for depth in [Depth::Shallow, Depth::Full] {
        let source = GitSource {
            depth,
            ..source_at(
                &server.url("project"),
                TargetMode::RemoteCommit,
                &commits[1].to_uppercase(),
            )
        };
        let fetched = run(&source, &quick()).await;
        assert_eq!(fetched.commit(), commits[1]);
        assert_eq!(fetched.read("n"), "2\n");
        assert_eq!(
            fetched.git(&["rev-list", "--count", "HEAD"]),
            if depth == Depth::Full { "2" } else { "1" }
        );
    }
}

#[tokio::test]
async fn a_commit_that_is_not_there_is_an_error() {
    let server = GitServer::start();
    project(&server);
    for target in [
        "0123456789012345678901234567890123456789",
        "0123456",
        "v9",
        "refs/pull/1/head",
    ] {
        let fetched = run(
            &source_at(&server.url("project"), TargetMode::RemoteCommit, target),
            &quick(),
        )
        .await;
        assert_eq!(
            fetched.result.as_ref().unwrap_err().kind(),
            FetchErrorKind::NotFound(Missing::Commit),
            "{target}: {}",
            fetched.error()
        );
    }
}

#[tokio::test]
async fn abbreviations_tags_references_and_branches_name_commits_too() {
    let server = GitServer::start();
    let (repository, commits) = project(&server);
    repository.tag("light", &commits[0]);
    let tag = repository.annotated_tag("v1", &commits[1]);
    testkit::process::run(
        repository
            .git()
            .args(["update-ref", "refs/pull/1/head", &commits[2]]),
    );
    for (target, expected) in [
        (&commits[0][..7], &commits[0]),
        ("light", &commits[0]),
        ("v1", &commits[1]),
        ("refs/tags/v1", &commits[1]),
        ("refs/pull/1/head", &commits[2]),
        ("topic/other", &commits[3]),
    ] {
        let fetched = run(
            &source_at(&server.url("project"), TargetMode::RemoteCommit, target),
            &quick(),
        )
        .await;
        assert_eq!(fetched.commit(), expected, "{target}");
        assert_eq!(
            fetched.git(&["rev-parse", "--abbrev-ref", "HEAD"]),
            "HEAD",
            "{target}"
        );
    }
    let fetched = run(
        &source_at(&server.url("project"), TargetMode::RemoteCommit, &tag),
        &quick(),
    )
    .await;
    assert_eq!(
        fetched.result.as_ref().unwrap_err().kind(),
        FetchErrorKind::Invalid,
        "{}",
        fetched.error()
    );
}

#[tokio::test]
async fn a_branch_named_like_a_commit_is_not_that_commit() {
    let server = GitServer::start();
    let (mut repository, commits) = project(&server);
    let name = "a".repeat(40);
    let other = repository.commit(&name, &[File::new("n", "evil\n")]);
    repository.tag(&commits[0], &other);
    let fetched = run(
        &source_at(
            &server.url("project"),
            TargetMode::RemoteCommit,
            &commits[0],
        ),
        &quick(),
    )
    .await;
    assert_eq!(fetched.commit(), commits[0]);
    let fetched = run(
        &source_at(&server.url("project"), TargetMode::RemoteCommit, &name),
        &quick(),
    )
    .await;
    assert_eq!(
        fetched.result.as_ref().unwrap_err().kind(),
        FetchErrorKind::NotFound(Missing::Commit)
    );
    let fetched = run(
        &source_at(&server.url("project"), TargetMode::RemoteBranch, &name),
        &quick(),
    )
    .await;
    assert_eq!(fetched.commit(), other);
}

#[tokio::test]
async fn the_checkout_location_and_the_upstream_remote_are_used() {
    let server = GitServer::start();
    let (_, commits) = project(&server);
    let mut upstream = server.repository("upstream");
    let commit = upstream.commit("main", &[File::new("u", "u\n")]);
    let source = GitSource {
        checkout_location: RelPath::parse("a/b").unwrap(),
        upstream: Some(RemoteUrl::parse(&server.url("upstream")).unwrap()),
        custom_config: BTreeMap::from([
            ("core.autocrlf".to_owned(), "false".to_owned()),
            ("user.name".to_owned(), "A".to_owned()),
        ]),
        ..source_of(&server.url("project"))
    };
    let fetched = run(&source, &quick()).await;
    assert_eq!(fetched.commit(), commits[2]);
    assert_eq!(fetched.read("a/b/n"), "3\n");
    assert_eq!(
        fetched.git(&["-C", "a/b", "rev-parse", "refs/remotes/upstream/main"]),
        commit
    );
    assert_eq!(fetched.git(&["-C", "a/b", "config", "user.name"]), "A");
}

#[tokio::test]
async fn a_location_that_is_taken_is_refused() {
    let server = GitServer::start();
    project(&server);
    let scratch = testkit::scratch::Scratch::new();
    scratch.write("workspace/a/file", "");
    std::os::unix::fs::symlink("/tmp", scratch.join("workspace/link")).unwrap();
    for location in ["a", "a/file", "link", "link/x"] {
        let source = GitSource {
            checkout_location: RelPath::parse(location).unwrap(),
            ..source_of(&server.url("project"))
        };
        let cancel = tokio_util::sync::CancellationToken::new();
        let error = source::git::fetch(
            &source,
            &scratch.join("workspace"),
            &quick(),
            &|_| {},
            &cancel,
        )
        .await
        .unwrap_err();
        assert_eq!(error.kind(), FetchErrorKind::Invalid, "{location}: {error}");
    }
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn repositories_that_are_missing_or_empty_are_not_found() {
    let server = GitServer::start();
    let _empty = server.repository("empty");
    for name in ["empty", "missing"] {
        for (mode, target) in [(TargetMode::RemoteHead, ""), (TargetMode::LocalBranch, "x")] {
            let fetched = run(&source_at(&server.url(name), mode, target), &quick()).await;
            assert_eq!(
                fetched.result.as_ref().unwrap_err().kind(),
                FetchErrorKind::NotFound(Missing::Repository),
                "{name}: {}",
                fetched.error()
            );
        }
    }
}

#[tokio::test]
async fn two_fetches_of_one_commit_leave_the_same_bytes() {
    let server = GitServer::start();
    project(&server);
    let first = run(&source_of(&server.url("project")), &quick()).await;
    let second = run(&source_of(&server.url("project")), &quick()).await;
    let listing = |fetched: &super::Fetched| {
        let script = "find . -type f -print0 | sort -z | xargs -0 sha256sum; find . -printf '%y %m %p\\n' | sort";
        testkit::process::run(
            testkit::process::clean_command("sh")
                .args(["-c", script])
                .current_dir(fetched.workspace()),
        )
    };
    assert_eq!(listing(&first), listing(&second));
}

#[tokio::test]
async fn the_git_directory_can_be_left_out() {
    let server = GitServer::start();
    project(&server);
    let options = FetchOptions {
        git_directory: GitDirectory::Remove,
        ..quick()
    };
    let fetched = run(&source_of(&server.url("project")), &options).await;
    assert!(fetched.result.is_ok());
    assert_eq!(std::fs::read_dir(fetched.workspace()).unwrap().count(), 1);
}

#[test]
fn a_source_survives_the_way_to_the_worker() {
    let source = GitSource {
        auth: source::git::GitAuth::Basic {
            user: "u".to_owned(),
            password: "p".to_owned(),
        },
        ..source_of("https://example.com/x")
    };
    let text = serde_json::to_string(&source).unwrap();
    assert_eq!(serde_json::from_str::<GitSource>(&text).unwrap(), source);
    let options = serde_json::to_string(&quick()).unwrap();
    assert_eq!(
        serde_json::from_str::<FetchOptions>(&options).unwrap(),
        quick()
    );
}

#[tokio::test]
async fn looking_up_names_the_commit_that_a_fetch_finds_and_fetches_nothing() {
    let server = GitServer::start();
    let (mut repository, commits) = project(&server);
    repository.annotated_tag("v1", &commits[0]);
    repository.tag("both", &commits[1]);
    repository.commit("both", &[File::new("n", "a branch named as a tag\n")]);
    // Git takes the names it is asked for as ends of names.
    repository.commit("refs/tags/v2", &[File::new("n", "no tag\n")]);
    repository.commit("refs/heads/v2", &[File::new("n", "nor that branch\n")]);
    let url = server.url("project");
    for (mode, target) in [
        (TargetMode::RemoteHead, ""),
        (TargetMode::LocalBranch, "mine"),
        (TargetMode::RemoteBranch, "topic/other"),
        (TargetMode::RemoteBranch, "both"),
        (TargetMode::RemoteCommit, "both"),
        (TargetMode::RemoteCommit, "v1"),
        (TargetMode::RemoteCommit, "refs/tags/v1"),
        (TargetMode::RemoteCommit, "refs/heads/main"),
        (TargetMode::RemoteCommit, commits[1].as_str()),
    ] {
        let source = source_at(&url, mode, target);
        let n = server.requests().len();
        let named = look_up(&source).await.unwrap();
        let requests = server.requests().split_off(n);
        assert!(requests.len() <= 2, "{target}: {requests:?}");
        let fetched = run(&source, &quick()).await;
        assert_eq!(named.as_deref(), Some(fetched.commit()), "{target}");
    }
    for target in ["v2", "refs/heads/missing", &commits[0][..12]] {
        let source = source_at(&url, TargetMode::RemoteCommit, target);
        assert_eq!(look_up(&source).await.unwrap(), None, "{target}");
    }
    let missing = source_of(&server.url("missing"));
    let error = look_up(&missing).await.unwrap_err();
    let expected = FetchErrorKind::NotFound(Missing::Repository);
    assert_eq!(error.kind(), expected, "{error}");
}

async fn look_up(source: &GitSource) -> Result<Option<String>, source::git::FetchError> {
    let scratch = testkit::scratch::Scratch::new();
    let stop = tokio_util::sync::CancellationToken::new();
    source::git::look_up(source, scratch.path(), &quick(), &|_| {}, &stop).await
}
