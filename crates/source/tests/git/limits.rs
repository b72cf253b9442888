//! Limits, deadlines and cancellation: each ends the fetch and everything it started.

use std::time::{Duration, Instant};

use source::git::{FetchError, FetchErrorKind, FetchOptions, Limits, fetch};
use testkit::background::Background;
use testkit::git_server::{File, GitServer, Repository};
use testkit::process::processes_using;
use testkit::scratch::Scratch;
use tokio_util::sync::CancellationToken;

use super::{quick, run, source_of};

/// Returns bytes that do not compress.
fn noise(size_bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..size_bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            u8::try_from(state & 0xff).unwrap()
        })
        .collect()
}

fn limited(limits: Limits) -> FetchOptions {
    FetchOptions { limits, ..quick() }
}

/// Returns a server that takes requests and never answers.
fn silent() -> Background {
    Background::raw(async |stream| {
        let _stream = stream;
        std::future::pending::<()>().await;
    })
}

#[tokio::test]
async fn a_pack_over_the_limit_ends_the_fetch() {
    let server = GitServer::start();
    server
        .repository("project")
        .commit("main", &[File::new("big", noise(8 << 20))]);
    let limits = Limits {
        size_bytes: 1 << 20,
        ..Limits::default()
    };
    let fetched = run(&source_of(&server.url("project")), &limited(limits)).await;
    assert_eq!(
        fetched.result.as_ref().unwrap_err().kind(),
        FetchErrorKind::Limit,
        "{}",
        fetched.error()
    );
}

#[tokio::test]
async fn a_commit_that_unpacks_over_the_limit_is_not_written() {
    let server = GitServer::start();
    server
        .repository("project")
        .commit("main", &[File::new("zeros", vec![0; 32 << 20])]);
    let limits = Limits {
        size_bytes: 4 << 20,
        ..Limits::default()
    };
    let fetched = run(&source_of(&server.url("project")), &limited(limits)).await;
    assert_eq!(
        fetched.result.as_ref().unwrap_err().kind(),
        FetchErrorKind::Limit,
        "{}",
        fetched.error()
    );
    assert!(!fetched.workspace().join("zeros").exists());
}

/// Makes a tree of few objects that stands for ten to the tenth files.
fn bomb(repository: &Repository) {
    let blob = testkit::process::run(repository.git().args(["hash-object", "-w", "--stdin"]));
    let mut entry = format!("100644 blob {}", blob.trim());
    for _ in 0..10 {
        let lines: Vec<String> = (0..10).map(|n| format!("{entry}\tf{n}\n")).collect();
        let scratch = Scratch::new();
        let path = scratch.write("listing", lines.concat());
        let mut command = std::process::Command::new("sh");
        command
            .args(["-c", "git --git-dir=\"$1\" mktree <\"$2\"", "sh"])
            .arg(repository.path())
            .arg(path);
        entry = format!("040000 tree {}", testkit::process::run(&mut command).trim());
    }
    let tree = entry.rsplit(' ').next().unwrap().to_owned();
    let mut command = repository.git();
    command.envs(["AUTHOR", "COMMITTER"].iter().flat_map(|who| {
        [
            (format!("GIT_{who}_NAME"), "a"),
            (format!("GIT_{who}_EMAIL"), "a@b"),
        ]
    }));
    let commit = testkit::process::run(command.args(["commit-tree", "-m", "bomb", &tree]));
    testkit::process::run(
        repository
            .git()
            .args(["update-ref", "refs/heads/main", commit.trim()]),
    );
}

#[tokio::test]
async fn a_tree_of_ten_billion_files_is_refused_in_seconds() {
    let server = GitServer::start();
    bomb(&server.repository("project"));
    let limits = Limits {
        n_files: 20_000,
        ..Limits::default()
    };
    let started = Instant::now();
    let fetched = run(&source_of(&server.url("project")), &limited(limits)).await;
    assert!(
        matches!(fetched.result, Err(FetchError::Limit { .. })),
        "{}",
        fetched.error()
    );
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_silent_server_is_left_after_the_deadline() {
    let server = silent();
    let options = FetchOptions {
        timeout: Duration::from_millis(300),
        ..quick()
    };
    let fetched = run(
        &source_of(&format!("http://{}/x", server.address())),
        &options,
    )
    .await;
    assert!(
        matches!(fetched.result, Err(FetchError::TimedOut { .. })),
        "{}",
        fetched.error()
    );
    assert_eq!(processes_using(fetched.scratch.path()), []);
}

#[tokio::test]
async fn cancelling_ends_every_process_before_fetch_returns() {
    let server = silent();
    let scratch = Scratch::new();
    let source = source_of(&format!("http://{}/x", server.address()));
    let cancel = CancellationToken::new();
    let options = quick();
    let fetching = fetch(&source, scratch.path(), &options, &|_| {}, &cancel);
    let cancelling = async {
        // Cancelled once git's own child for the network is there.
        while !processes_using(scratch.path())
            .iter()
            .any(|(_, command)| command.contains("remote-http"))
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cancel.cancel();
    };
    let (result, ()) = tokio::join!(fetching, cancelling);
    assert_eq!(result.unwrap_err().kind(), FetchErrorKind::Cancelled);
    assert_eq!(processes_using(scratch.path()), []);
}

#[tokio::test]
async fn a_server_that_is_gone_is_tried_again_and_then_unavailable() {
    let address = silent().address();
    let fetched = run(&source_of(&format!("http://{address}/x")), &quick()).await;
    assert_eq!(
        fetched.result.as_ref().unwrap_err().kind(),
        FetchErrorKind::Unavailable,
        "{}",
        fetched.error()
    );
    assert_eq!(fetched.log.matches("trying again").count(), 1);
}
