//! Logs: every byte for everybody, over gRPC and over HTTP.

use std::sync::Arc;

use api::builder::LogsRequest;
use engine::event::{Event, FailureKind, StepId};
use tonic::Code;

use crate::harness::*;
use crate::web::{get, get_with_token};

#[tokio::test(flavor = "multi_thread")]
async fn readers_who_come_early_late_and_after_the_end_get_the_same_bytes() {
    let world = World::new();
    let server = world.serve().await;
    let (first, stream) = server.start(request(git_source(git()))).await;
    let id = first.info.as_ref().unwrap().build_id.clone();
    let early = tokio::spawn(read_to_end(server.logs(by_id(&id)).await.unwrap()));
    let worker = world.worker().await;
    worker.event(Event::StepStarted {
        step: StepId(1),
        name: "[1/1] RUN make".to_owned(),
        reason: None,
    });
    for n in 0..5000 {
        worker.output(format!("line {n}\n").as_bytes());
    }
    let by_ref = LogsRequest {
        build_ref: first.r#ref.clone(),
        ..LogsRequest::default()
    };
    let late = tokio::spawn(read_to_end(server.logs(by_ref.clone()).await.unwrap()));
    worker.output(b"no end of line, \xff\xfe");
    worker.fail(FailureKind::Dockerfile, "RUN make: exit code 2");
    let early = soon(early).await.unwrap().unwrap();
    assert!(early.starts_with(b"#1 [1/1] RUN make\n"));
    assert!(early.ends_with(b"build failed: RUN make: exit code 2\n"));
    assert_eq!(
        String::from_utf8_lossy(&early).matches("line ").count(),
        5001 - 1
    );
    assert_eq!(soon(late).await.unwrap().unwrap(), early);
    last(stream).await;
    let after = server.logs(by_ref).await.unwrap();
    assert_eq!(read_to_end(after).await.unwrap(), early);

    let log_info = first.info.unwrap().log_info.unwrap();
    let token = log_info.headers.values().next().unwrap();
    let path = format!("/logs/{id}");
    for offset in [0, 1, 70_000, early.len()] {
        let path = format!("{path}?offset={offset}");
        let (status, body) = get_with_token(&server, &path, token).await;
        assert_eq!(status, 200);
        assert_eq!(body, early[offset..], "offset {offset}");
    }
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_opened_by_its_own_token_alone() {
    let world = World::new();
    let server = world.serve().await;
    let mut other = git();
    other.remote_uri = "https://example.com/other.git".to_owned();
    let (one, _one) = server.start(request(git_source(git()))).await;
    let (two, _two) = server.start(request(git_source(other))).await;
    let workers = [world.worker().await, world.worker().await];
    for worker in &workers {
        worker.fail(FailureKind::Dockerfile, "x");
    }
    let token = |message: &api::builder::BuildResponse| {
        let log_info = message.info.clone().unwrap().log_info.unwrap();
        log_info.headers.into_values().next().unwrap()
    };
    let path = format!("/logs/{}", one.info.as_ref().unwrap().build_id);
    assert_eq!(get_with_token(&server, &path, &token(&one)).await.0, 200);
    let refused = get(&server, &path).await;
    assert_eq!(refused.0, 404);
    assert_eq!(get_with_token(&server, &path, &token(&two)).await, refused);
    assert_eq!(get_with_token(&server, &path, "").await, refused);
    let nobodys = "/logs/aaaaaaaaaaaaaaaaaaaaaaaaaa";
    assert_eq!(
        get_with_token(&server, nobodys, &token(&one)).await,
        refused
    );
    assert_eq!(
        get_with_token(&server, "/logs/..%2f..", &token(&one)).await,
        refused
    );
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn censored_logs_lack_the_names_wherever_they_are_split() {
    let world = World::new();
    let server = world.serve().await;
    let (first, _stream) = server.start(request(git_source(git()))).await;
    let worker = world.worker().await;
    for name in [&first.r#ref, &first.base_ref] {
        let text = format!("published {name} at localhost\n");
        // The renderer passes lines on as a whole, but readers see records one by one.
        for piece in text.as_bytes().chunks(7) {
            worker.output(piece);
        }
    }
    worker.fail(FailureKind::Registry, &format!("push {}", first.r#ref));
    let mut asked = by_id(&first.info.unwrap().build_id);
    let shown = server.whole_log(asked.clone()).await;
    asked.censored = true;
    let censored = server.whole_log(asked).await;
    for name in [&first.r#ref, &first.base_ref] {
        assert!(shown.contains(name.as_str()));
        assert!(!censored.contains(name.as_str()));
        let (repository, _) = name.rsplit_once(':').unwrap();
        assert!(!censored.contains(repository), "{censored}");
    }
    assert_eq!(censored.matches("localhost").count(), 2);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_nobody_knows_has_no_log() {
    let world = World::new();
    let server = world.serve().await;
    let by_ref = LogsRequest {
        build_ref: "registry.example/workspace-images:x".to_owned(),
        ..LogsRequest::default()
    };
    for asked in [
        by_id("aaaaaaaaaaaaaaaaaaaaaaaaaa"),
        by_id("../../etc"),
        by_ref,
    ] {
        let error = server.logs(asked).await.unwrap_err();
        assert_eq!(
            (error.code(), error.message()),
            (Code::NotFound, "build not found")
        );
    }
    let error = server.logs(LogsRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_do_not_read_delay_nobody() {
    const FROZEN: usize = 50;
    let world = World::new();
    let server = Arc::new(world.serve().await);
    let (first, stream) = server.start(request(git_source(git()))).await;
    let id = first.info.unwrap().build_id;
    let mut frozen = Vec::new();
    for _ in 0..FROZEN {
        frozen.push(server.logs(by_id(&id)).await.unwrap());
    }
    let healthy = tokio::spawn(read_to_end(server.logs(by_id(&id)).await.unwrap()));
    let worker = world.worker().await;
    let line = [b"x".repeat(999), b"\n".to_vec()].concat();
    for _ in 0..4000 {
        worker.output(&line);
    }
    worker.fail(FailureKind::Dockerfile, "x");
    last(stream).await;
    let text = soon(healthy).await.unwrap().unwrap();
    assert!(text.len() > 4_000_000);
    // Those that begin to read at last get the same.
    let late = frozen.pop().unwrap();
    assert_eq!(read_to_end(late).await.unwrap(), text);
    drop(frozen);
    Arc::into_inner(server).unwrap().stopped().await;
}
