//! Requests that mean no good: each has an answer, and the service serves on.

use api::builder::image_builder_client::ImageBuilderClient;
use api::builder::{BuildRequest, BuildSource, LogsRequest};
use api::contentservice as content;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

use crate::harness::*;
use crate::web::get;

async fn refused(server: &Server, request: BuildRequest) -> tonic::Status {
    let status = server.build(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().len() <= 8 << 10);
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_source_is_refused_in_the_words_that_callers_know() {
    let world = World::new();
    let server = world.serve().await;
    let empty = BuildRequest {
        source: Some(BuildSource { from: None }),
        ..BuildRequest::default()
    };
    for request in [BuildRequest::default(), empty] {
        assert_eq!(
            refused(&server, request).await.message(),
            "build source is missing"
        );
    }
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_and_twisted_requests_are_refused_and_the_service_goes_on() {
    let world = World::new();
    let server = world.serve().await;
    let mut git_ = git();
    git_.checkout_location = "../../etc".to_owned();
    refused(&server, request(git_source(git_))).await;
    let mut git_ = git();
    git_.clone_taget = "x".repeat(1 << 20);
    refused(&server, request(git_source(git_))).await;
    refused(&server, request(ref_source(&"a".repeat(1 << 20)))).await;
    let mut huge = request(git_source(git()));
    huge.triggered_by = "x".repeat(1 << 20);
    refused(&server, huge).await;

    let mut nested = content::WorkspaceInitializer { spec: None };
    for _ in 0..30 {
        let composite = content::CompositeInitializer {
            initializer: vec![nested],
        };
        nested = content::WorkspaceInitializer {
            spec: Some(content::workspace_initializer::Spec::Composite(composite)),
        };
    }
    let mut source = git_source(git());
    if let Some(api::builder::build_source::From::File(file)) = &mut source.from {
        file.source = Some(nested.clone());
    }
    let status = refused(&server, request(source.clone())).await;
    assert!(
        status.message().contains("composite"),
        "{}",
        status.message()
    );

    // Deeper than any decoder follows.
    for _ in 0..300 {
        let composite = content::CompositeInitializer {
            initializer: vec![nested],
        };
        nested = content::WorkspaceInitializer {
            spec: Some(content::workspace_initializer::Spec::Composite(composite)),
        };
    }
    if let Some(api::builder::build_source::From::File(file)) = &mut source.from {
        file.source = Some(nested);
    }
    let deep = request(source);
    refused(&server, deep).await;
    assert_eq!(get(&server, "/healthz").await.0, 200);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_larger_than_the_limit_is_refused_unread() {
    let world = World::new();
    let server = world
        .serve_with("[server]\nmax_request_bytes = 1000000")
        .await;
    let mut huge = request(git_source(git()));
    huge.triggered_by = "x".repeat(2_000_000);
    let status = server.build(huge).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    // What is within the limit is read, however large the usual limit is.
    let world = World::new();
    let server_ = world.serve().await;
    let mut large = request(git_source(git()));
    large.triggered_by = "x".repeat(20 << 20);
    refused(&server_, large).await;
    server_.stopped().await;
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_protocol_do_no_harm() {
    let world = World::new();
    let server = world.serve().await;
    for junk in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nxxxxxxxxxxxxxxxx",
        b"\0\0\0\0",
        b"GET",
    ] {
        let mut stream = tokio::net::TcpStream::connect(&server.address)
            .await
            .unwrap();
        stream.write_all(junk).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _reset = soon(stream.read_to_end(&mut answer)).await;
    }
    assert_eq!(get(&server, "/healthz").await.0, 200);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_connect_and_vanish_leave_nothing_behind() {
    let world = World::new();
    let server = world.serve().await;
    let (first, _stream) = server.start(request(git_source(git()))).await;
    let worker = world.worker().await;
    let id = first.info.unwrap().build_id;
    let open_before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    for _ in 0..20 {
        let mut client = ImageBuilderClient::new(server.channel().await);
        for _ in 0..50 {
            let asked = LogsRequest {
                build_id: id.clone(),
                ..LogsRequest::default()
            };
            drop(soon(client.logs(asked)).await.unwrap());
        }
    }
    // Every reader had a descriptor of its own; all of them go, without the build having ended.
    soon(async {
        while std::fs::read_dir("/proc/self/fd").unwrap().count() > open_before + 20 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    worker.die();
    server.stopped().await;
}
