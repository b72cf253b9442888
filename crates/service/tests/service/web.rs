//! HTTP beside gRPC on the same port: metrics, liveness, registry, health, reflection, gRPC-web.

use api::builder::ListBuildsRequest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::*;

/// Sends one request over a connection of its own; returns status and body.
pub(crate) async fn send(server: &Server, head: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = tokio::net::TcpStream::connect(&server.address)
        .await
        .unwrap();
    let head = format!(
        "{head}host: {}\r\nconnection: close\r\n\r\n",
        server.address
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec())
        .unwrap()
        .to_lowercase();
    let status = head[9..12].parse().unwrap();
    let body = &answer[end + 4..];
    if head.contains("transfer-encoding: chunked") {
        (status, unchunked(body))
    } else {
        (status, body.to_vec())
    }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|w| w == b"\r\n").unwrap();
        let size = std::str::from_utf8(&rest[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 2 + size + 2..];
    }
}

pub(crate) async fn get(server: &Server, path: &str) -> (u16, Vec<u8>) {
    send(server, &format!("GET {path} HTTP/1.1\r\n"), b"").await
}

pub(crate) async fn get_with_token(server: &Server, path: &str, token: &str) -> (u16, Vec<u8>) {
    let head = format!("GET {path} HTTP/1.1\r\nx-kiln-log-token: {token}\r\n");
    send(server, &head, b"").await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_port_serves_everything() {
    let world = World::new();
    let server = world.serve().await;
    let mut client = server.client().await;
    soon(client.list_builds(ListBuildsRequest {}))
        .await
        .unwrap();
    assert_eq!(get(&server, "/v2/").await.0, 200);
    assert_eq!(get(&server, "/healthz").await, (200, b"ok\n".to_vec()));
    assert_eq!(get(&server, "/nothing").await.0, 404);
    let (status, text) = get(&server, "/metrics").await;
    let text = String::from_utf8(text).unwrap();
    assert_eq!(status, 200);
    assert!(
        text.contains("gitpod_image_builder_builds_started_total 0"),
        "{text}"
    );
    assert!(
        text.contains("grpc_method=\"ListBuilds\",grpc_code=\"OK\"} 1"),
        "{text}"
    );
    let announced = std::fs::read_to_string(world.state().join("server/address")).unwrap();
    assert_eq!(announced.trim(), server.address);
    server.stopped().await;
}

/// Waits until a line is among the metrics, and returns all of them.
async fn told(server: &Server, line: &str) -> String {
    let line = format!("{line}\n");
    let told = async {
        loop {
            let text = String::from_utf8(get(server, "/metrics").await.1).unwrap();
            if text.contains(&line) {
                return text;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    soon(told).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tries_after_a_worker_that_was_killed_are_counted_once() {
    let world = World::new();
    let server = world.serve().await;
    let (_, _stream) = server.start(crate::admission::numbered(1)).await;
    let worker = world.worker().await;
    for attempt in 2..4 {
        worker.event(engine::event::Event::BegunAgain {
            attempt,
            reason: "it was killed".to_owned(),
        });
    }
    told(&server, "kiln_builds_begun_again_total 2").await;
    server.stopped().await;
    // What an earlier server has counted is counted.
    let server = world.serve().await;
    told(&server, "kiln_builds_running 1").await;
    worker.fail(engine::event::FailureKind::Dockerfile, "x");
    let ended = "gitpod_image_builder_builds_done_total{success=\"false\"} 1";
    let text = told(&server, ended).await;
    assert!(text.contains("kiln_builds_begun_again_total 0\n"), "{text}");
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_whether_builds_can_be_started() {
    let world = World::new();
    world.scripted.refuse();
    let server = world.serve().await;
    let mut client = HealthClient::new(server.channel().await);
    let request = HealthCheckRequest {
        service: "builder.ImageBuilder".to_owned(),
    };
    let answer = soon(client.check(request)).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::NotServing);
    let (status, text) = get(&server, "/healthz").await;
    assert_eq!(
        (status, text),
        (503, b"no room for another process\n".to_vec())
    );
    server.stopped().await;

    let world = World::new();
    let server = world.serve().await;
    let mut client = HealthClient::new(server.channel().await);
    for service in ["", "builder.ImageBuilder"] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = soon(client.check(request)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
    }
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_names_the_services_in_both_versions() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1alpha;

    let world = World::new();
    let server = world.serve().await;
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(server.channel().await);
    let answer = client.server_reflection_info(tokio_stream::once(request));
    let mut answer = soon(answer).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(services)) =
        next(&mut answer).await.unwrap().message_response
    else {
        panic!("no list of services");
    };
    let names: Vec<String> = services.service.into_iter().map(|it| it.name).collect();
    for name in [
        "builder.ImageBuilder",
        "builder.SubassemblyService",
        "kiln.v1.Kiln",
        "grpc.health.v1.Health",
    ] {
        assert!(
            names.iter().any(|it| it == name),
            "{name} is not in {names:?}"
        );
    }
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
                "builder.BuildRequest".to_owned(),
            ),
        ),
    };
    let mut client =
        v1alpha::server_reflection_client::ServerReflectionClient::new(server.channel().await);
    let answer = client.server_reflection_info(tokio_stream::once(request));
    let mut answer = soon(answer).await.unwrap().into_inner();
    let response = next(&mut answer).await.unwrap().message_response.unwrap();
    assert!(matches!(
        response,
        v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(_)
    ));
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_are_answered_over_http_1() {
    let world = World::new();
    let server = world.serve().await;
    let head = "POST /kiln.v1.Kiln/GetVersion HTTP/1.1\r\ncontent-type: application/grpc-web+proto\r\ncontent-length: 5\r\n";
    let (status, body) = send(&server, head, &[0; 5]).await;
    assert_eq!(status, 200);
    let text = String::from_utf8_lossy(&body);
    assert!(text.contains(env!("CARGO_PKG_VERSION")), "{text:?}");
    assert!(text.contains("grpc-status:0"), "{text:?}");
    server.stopped().await;
}

/// Sends a message over gRPC-web, byte by byte as given; returns the messages of the answer and its trailers.
async fn call(server: &Server, method: &str, message: &[u8]) -> (Vec<Vec<u8>>, String) {
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(message);
    let head = format!(
        "POST {method} HTTP/1.1\r\ncontent-type: application/grpc-web+proto\r\ncontent-length: {}\r\n",
        body.len()
    );
    let (status, answer) = send(server, &head, &body).await;
    assert_eq!(status, 200);
    let (mut messages, mut rest) = (Vec::new(), &answer[..]);
    loop {
        let (flags, length) = (rest[0], u32::from_be_bytes(rest[1..5].try_into().unwrap()));
        let (piece, more) = rest[5..].split_at(length as usize);
        if flags & 0x80 != 0 {
            assert!(more.is_empty());
            return (messages, String::from_utf8(piece.to_vec()).unwrap());
        }
        messages.push(piece.to_vec());
        rest = more;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_newer_client_adds_is_skipped() {
    let world = World::new();
    let server = world.serve().await;
    let name: oci::Reference = format!("{}/a/b:1", server.address).parse().unwrap();
    let digest = put(&server.store, &name, &manifest("one"));
    let resolved = format!("{}/a/b@{digest}", server.address);
    let mut plain = vec![0x0a, u8::try_from(name.to_string().len()).unwrap()];
    plain.extend(name.to_string().bytes());
    // Fields of numbers that nobody has given out, in each of the wire's forms, before and behind what is known.
    let newer: &[&[u8]] = &[
        b"\xa0\x06\x01",
        b"\xa1\x06\0\0\0\0\0\0\0\0",
        b"\xa2\x06\x03new",
        b"\xa3\x06\x08\x01\xa4\x06",
        b"\xa5\x06\0\0\0\0",
    ];
    let mut asked = vec![plain.clone()];
    for field in newer {
        asked.push([field, &plain[..]].concat());
        asked.push([&plain[..], field].concat());
    }
    for message in asked {
        let (messages, trailers) =
            call(&server, "/builder.ImageBuilder/ResolveBaseImage", &message).await;
        assert!(trailers.contains("grpc-status:0"), "{trailers}");
        let mut expected = vec![0x0a, u8::try_from(resolved.len()).unwrap()];
        expected.extend(resolved.bytes());
        assert_eq!(messages, [expected]);
    }
    server.stopped().await;
}
