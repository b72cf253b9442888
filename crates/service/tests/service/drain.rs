//! Stopping: nothing new is accepted, streams end with a word, builds go on.

use std::time::Instant;

use api::builder::BuildStatus;
use engine::event::Phase;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::*;

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_with_a_word_and_builds_go_on() {
    let world = World::new();
    let mut server = world.serve().await;
    let (first, mut build) = server.start(request(git_source(git()))).await;
    let worker = world.worker().await;
    worker.phase(Phase::Running);
    assert_eq!(
        next(&mut build).await.unwrap().status(),
        BuildStatus::Running
    );
    worker.output(b"before\n");
    let id = first.info.unwrap().build_id;
    let mut logs = server.logs(by_id(&id)).await.unwrap();
    assert!(next(&mut logs).await.is_some());

    let mut health = HealthClient::new(server.channel().await);
    let watched = HealthCheckRequest::default();
    let mut health = soon(health.watch(watched)).await.unwrap().into_inner();
    assert!(next(&mut health).await.is_some());

    let begun = Instant::now();
    server.tell_to_stop();
    let error = soon(build.message()).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::Unavailable, "server is shutting down")
    );
    let error = soon(logs.message()).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::Unavailable, "server is shutting down")
    );
    let address = server.address.clone();
    server.stopped().await;
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    assert!(tokio::net::TcpStream::connect(&address).await.is_err());

    // The worker has noticed nothing.
    worker.output(b"after\n");
    let server = world.serve().await;
    let text = tokio::spawn(read_to_end(server.logs(by_id(&id)).await.unwrap()));
    worker.fail(engine::event::FailureKind::Dockerfile, "x");
    let text = String::from_utf8(soon(text).await.unwrap().unwrap()).unwrap();
    assert!(
        text.contains("before\n") && text.contains("after\n"),
        "{text}"
    );
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_let_go_is_cut() {
    let world = World::new();
    let server = world
        .serve_with("[server]\ndrain_timeout = \"200ms\"")
        .await;
    // An upload that never goes on.
    let mut stuck = tokio::net::TcpStream::connect(&server.address)
        .await
        .unwrap();
    let head = "POST /v2/a/blobs/uploads/?digest=sha256:x HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n";
    stuck.write_all(head.as_bytes()).await.unwrap();
    let begun = Instant::now();
    server.stopped().await;
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_over_http_breaks_off_and_does_not_end() {
    let world = World::new();
    let mut server = world.serve().await;
    let (first, _build) = server.start(request(git_source(git()))).await;
    let worker = world.worker().await;
    worker.output(b"before\n");
    let info = first.info.unwrap();
    let token = info.log_info.unwrap().headers.into_values().next().unwrap();
    let mut stream = tokio::net::TcpStream::connect(&server.address)
        .await
        .unwrap();
    let head = format!(
        "GET /logs/{} HTTP/1.1\r\nhost: x\r\nx-kiln-log-token: {token}\r\n\r\n",
        info.build_id
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("before\n") {
        let n = soon(stream.read_buf(&mut seen)).await.unwrap();
        assert_ne!(n, 0, "{}", String::from_utf8_lossy(&seen));
    }
    server.tell_to_stop();
    // Whoever follows has to ask again: the last chunk, which says that this was all, never comes.
    let _reset = soon(stream.read_to_end(&mut seen)).await;
    let seen = String::from_utf8_lossy(&seen);
    assert!(seen.contains("transfer-encoding: chunked"), "{seen}");
    assert!(!seen.ends_with("0\r\n\r\n"), "{seen}");
    server.stopped().await;
    worker.die();
}
