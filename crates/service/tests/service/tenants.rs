//! Callers and tenants: who is let in, and that what is one tenant's is not there for another.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::builder::subassembly_service_client::SubassemblyServiceClient;
use api::builder::{
    self as published, BuildStatus, CreateSubassemblyRequest, GetSubassemblyRequest,
    ListBuildsRequest, ResolveBaseImageRequest, ResolveWorkspaceImageRequest, SubassemblyPhase,
};
use api::kiln::v1 as wire;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::event::FailureKind;
use engine::spec::Output;
use oci::{Digest, Reference};
use store::context::{Allowance, Announced, Keeping};
use tonic::{Code, Request, Status};

use crate::harness::*;
use crate::native::request as native_request;
use crate::web::{get, send};

/// A token of each caller. They begin alike, as tokens do that somebody has made up.
pub(crate) const A: &str = "0123456789abcdef-of-a-builder";
pub(crate) const B: &str = "0123456789abcdef-of-b-builder";
const A_READER: &str = "0123456789abcdef-of-a-reader";
const A_PULLER: &str = "0123456789abcdef-of-a-puller";
pub(crate) const HOME: &str = "0123456789abcdef-of-the-default-tenant";
const ADMIN: &str = "0123456789abcdef-of-an-admin";

/// Returns a configuration with callers of two tenants beside the default one.
pub(crate) fn callers() -> String {
    let rows = [
        ("a", "a", "\"build\"", A),
        ("a-reader", "a", "\"read\"", A_READER),
        ("a-puller", "a", "\"pull\"", A_PULLER),
        ("b", "b", "\"build\"", B),
        ("home", "default", "\"build\", \"credentials\"", HOME),
        ("admin", "default", "\"admin\"", ADMIN),
    ];
    let row = |(name, tenant, rights, token): (&str, &str, &str, &str)| {
        let hash = Digest::sha256(token.as_bytes()).hex().to_owned();
        format!(
            "[[callers]]\nname = \"{name}\"\ntenant = \"{tenant}\"\nrights = [{rights}]\ntoken_sha256 = [\"{hash}\"]\n"
        )
    };
    let rows: String = rows.into_iter().map(row).collect();
    format!("shared_repositories = [\"library\"]\n{rows}")
}

/// Returns a request that shows a token.
pub(crate) fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

async fn start(
    server: &Server,
    token: &str,
    request: wire::StartBuildRequest,
) -> Result<String, Status> {
    let mut client = server.native().await;
    let answer = Box::pin(soon(client.start_build(by(token, request)))).await?;
    Ok(answer.into_inner().build.unwrap().build_id)
}

fn keep(name: &str) -> wire::StartBuildRequest {
    let kind = Some(wire::build_output::Kind::Keep(name.to_owned()));
    wire::StartBuildRequest {
        outputs: vec![wire::BuildOutput { kind }],
        ..native_request()
    }
}

fn published_name(worker: &Worker) -> String {
    match &worker.spec.as_ref().unwrap().outputs[0] {
        Output::Publish { reference } => reference.repository().to_owned(),
        other => panic!("{other:?}"),
    }
}

/// Sends a request to the registry; returns its status and body.
async fn registry(
    server: &Server,
    method: &str,
    path: &str,
    token: &str,
    body: &[u8],
) -> (u16, String) {
    let login = STANDARD.encode(format!("anybody:{token}"));
    let head = format!(
        "{method} {path} HTTP/1.1\r\nauthorization: Basic {login}\r\ncontent-type: application/vnd.oci.image.manifest.v1+json\r\ncontent-length: {}\r\n",
        body.len()
    );
    let (status, body) = send(server, &head, body).await;
    (status, String::from_utf8(body).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_nothing_is_answered_but_whether_the_service_is_there() {
    let world = World::new();
    let server = world.serve_with(&callers()).await;
    let forged = [
        format!("{A}0"),
        A[1..].to_owned(),
        A.to_uppercase(),
        "x".to_owned(),
    ];
    for token in forged.iter().map(String::as_str) {
        let status = soon(
            server
                .client()
                .await
                .list_builds(by(token, ListBuildsRequest {})),
        )
        .await
        .unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
        assert!(!format!("{status:?}").contains(token) || token == "x");
    }
    let status = soon(server.client().await.list_builds(ListBuildsRequest {})).await;
    assert_eq!(status.unwrap_err().code(), Code::Unauthenticated);
    let mut native = server.native().await;
    let version = native.get_version(wire::GetVersionRequest {});
    assert_eq!(
        soon(version).await.unwrap_err().code(),
        Code::Unauthenticated
    );
    // Streams of the caller's too, before a message of them is read.
    let nothing = tokio_stream::empty::<wire::CreateContextRequest>();
    let status = soon(native.create_context(nothing)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    for path in [
        "/v2/",
        "/v2/_catalog",
        "/v2/builds/x/manifests/1",
        "/metrics",
    ] {
        assert_eq!(get(&server, path).await.0, 401, "{path}");
    }
    assert_eq!(get(&server, "/healthz").await.0, 200);
    let head = "POST /builder.ImageBuilder/ListBuilds HTTP/1.1\r\ncontent-type: application/grpc-web+proto\r\ncontent-length: 5\r\n";
    let (status, body) = send(&server, head, &[0; 5]).await;
    assert_eq!(status, 200);
    assert!(!body.starts_with(&[0]), "no message: {body:?}");
    soon(
        server
            .client()
            .await
            .list_builds(by(A, ListBuildsRequest {})),
    )
    .await
    .unwrap();
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_does_what_it_has_the_right_to_and_no_more() {
    let world = World::new();
    let server = world.serve_with(&callers()).await;
    let id = start(&server, A, native_request()).await.unwrap();
    let worker = world.worker().await;
    let mut native = server.native().await;
    let get_build = || wire::GetBuildRequest {
        build_id: id.clone(),
    };
    let cancel = || wire::CancelBuildRequest {
        build_id: id.clone(),
    };
    let found = soon(native.get_build(by(A_READER, get_build()))).await;
    let build = found.unwrap().into_inner().build.unwrap();
    // Who has asked is what the token says, whoever looks.
    assert_eq!(build.caller, "a");
    for status in [
        soon(native.cancel_build(by(A_READER, cancel())))
            .await
            .unwrap_err(),
        soon(native.get_build(by(A_PULLER, get_build())))
            .await
            .unwrap_err(),
        start(&server, A_READER, native_request())
            .await
            .unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
        assert!(status.message().contains("right"), "{status:?}");
    }
    assert_eq!(worker.spec.as_ref().unwrap().tenant, "a");
    worker.fail(FailureKind::Dockerfile, "x");
    let metrics = |token: &str| {
        let head = format!("GET /metrics HTTP/1.1\r\nauthorization: Bearer {token}\r\n");
        let server = &server;
        async move { send(server, &head, b"").await.0 }
    };
    assert_eq!((metrics(A).await, metrics(ADMIN).await), (403, 200));
    server.stopped().await;
}

/// What is said of something of another tenant's, and of what is not there at all.
fn told<T>(answers: [Result<T, Status>; 2]) {
    let [forbidden, unknown] = answers.map(|answer| answer.err().expect("an error"));
    assert_eq!(forbidden.code(), Code::NotFound, "{forbidden:?}");
    assert_eq!(forbidden.code(), unknown.code());
    assert_eq!(forbidden.message(), unknown.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_of_another_tenant_is_as_unknown_as_one_that_never_was() {
    let world = World::new();
    let server = world.serve_with(&callers()).await;
    let mut client = server.client().await;
    let mut native = server.native().await;
    let stream = client.build(by(A, request(git_source(git()))));
    let first = next(&mut soon(stream).await.unwrap().into_inner())
        .await
        .unwrap();
    let worker = world.worker().await;
    worker.output(b"secret\n");
    let info = first.info.unwrap();
    let never = "abcdefghijklmnopqrstuvwxyz".to_owned();
    let ids = [info.build_id.clone(), never];

    let mut answers = Vec::new();
    for build_id in ids.clone() {
        answers.push(soon(native.get_build(by(B, wire::GetBuildRequest { build_id }))).await);
    }
    told(answers.try_into().unwrap());
    let mut answers = Vec::new();
    for build_id in ids.clone() {
        let message = wire::WatchBuildRequest { build_id, skip: 0 };
        answers.push(soon(native.watch_build(by(B, message))).await);
    }
    told(answers.try_into().unwrap());
    let mut answers = Vec::new();
    for build_id in ids.clone() {
        answers.push(soon(native.cancel_build(by(B, wire::CancelBuildRequest { build_id }))).await);
    }
    told(answers.try_into().unwrap());
    let mut answers = Vec::new();
    for build_id in ids.clone() {
        let message = wire::DownloadOutputRequest {
            build_id,
            output: 0,
        };
        answers.push(soon(native.download_output(by(B, message))).await);
    }
    told(answers.try_into().unwrap());
    let mut answers = Vec::new();
    for build_id in &ids {
        answers.push(soon(client.logs(by(B, by_id(build_id)))).await);
    }
    told(answers.try_into().unwrap());
    let by_ref = published::LogsRequest {
        build_ref: first.r#ref.clone(),
        ..published::LogsRequest::default()
    };
    assert_eq!(
        soon(client.logs(by(B, by_ref.clone())))
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    soon(client.logs(by(A_READER, by_ref))).await.unwrap();
    for (token, n) in [(B, 0), (HOME, 0), (ADMIN, 0), (A_READER, 1)] {
        let listed = soon(client.list_builds(by(token, ListBuildsRequest {}))).await;
        assert_eq!(listed.unwrap().into_inner().builds.len(), n, "{token}");
    }
    assert!(!worker.folder.join("cancelled").exists());
    // The address of the log is no right to it; the token beside it is, and it is the build's.
    let log_info = info.log_info.unwrap();
    let path = format!("/logs/{}", ids[0]);
    assert!(log_info.url.ends_with(&path));
    assert_eq!(get(&server, &path).await.0, 404);
    let head =
        format!("GET {path} HTTP/1.1\r\nauthorization: Bearer {B}\r\nx-kiln-log-token: x\r\n");
    assert_eq!(send(&server, &head, b"").await.0, 404);
    worker.fail(FailureKind::Dockerfile, "x");
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn identical_requests_of_two_tenants_are_two_builds_with_names_of_their_own() {
    let world = World::new();
    let server = world.serve_with(&callers()).await;
    let mut client = server.client().await;
    let mut started = Vec::new();
    for token in [A, B, HOME, A] {
        let stream = client.build(by(token, request(git_source(git()))));
        let mut stream = soon(stream).await.unwrap().into_inner();
        let first = next(&mut stream).await.unwrap();
        started.push((first.info.clone().unwrap().build_id, first, stream));
    }
    let ids: BTreeSet<&String> = started.iter().map(|(id, ..)| id).collect();
    assert_eq!(ids.len(), 3);
    assert_eq!(started[0].0, started[3].0);
    let names: Vec<(String, String)> = started
        .iter()
        .map(|(_, first, _)| {
            let repository = |name: &str| {
                let name: Reference = name.parse().unwrap();
                name.repository().to_owned()
            };
            (repository(&first.base_ref), repository(&first.r#ref))
        })
        .collect();
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(
        names[..3],
        [
            pair("tenants/a/base-images", "tenants/a/workspace-images"),
            pair("tenants/b/base-images", "tenants/b/workspace-images"),
            pair("base-images", "workspace-images"),
        ]
    );
    for _ in 0..3 {
        world.worker().await.succeed(&server);
    }
    assert!(!world.has_worker().await);
    for (_, _, stream) in started {
        assert_eq!(last(stream).await.status(), BuildStatus::DoneSuccess);
    }
    // What is there for one is not there for another.
    let resolve = || ResolveWorkspaceImageRequest {
        source: Some(git_source(git())),
        ..ResolveWorkspaceImageRequest::default()
    };
    let answer = soon(client.resolve_workspace_image(by(A, resolve()))).await;
    assert_eq!(
        answer.unwrap().into_inner().status(),
        BuildStatus::DoneSuccess
    );
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_the_default_tenant_is_never_another_tenants() {
    let world = World::new();
    let server = world.serve_with(&callers()).await;
    for (token, name, repository) in [
        (HOME, "a/app:1", "builds/a/app"),
        (HOME, "tenants/a/app:1", "builds/tenants/a/app"),
        (A, "app:1", "tenants/a/app"),
        (A, "b/app:1", "tenants/a/b/app"),
        (B, "a/app:1", "tenants/b/a/app"),
    ] {
        // docker.io/library/NAME and docker.io/NAME both lose what goes without saying.
        start(&server, token, keep(name)).await.unwrap();
        let worker = world.worker().await;
        assert_eq!(published_name(&worker), repository, "{name}");
        worker.die();
    }
    let publish = |name: &str| {
        let kind = Some(wire::build_output::Kind::Publish(format!(
            "{}/{name}",
            server.address
        )));
        wire::StartBuildRequest {
            outputs: vec![wire::BuildOutput { kind }],
            ..native_request()
        }
    };
    for (token, name) in [
        (A, "builds/app:1"),
        (A, "tenants/b/app:1"),
        (A, "tenants/app:1"),
        (A, "tenants/a/base-images:1"),
        (A, "tenants/a/workspace-images:1"),
        (A, "base-images:1"),
        (HOME, "tenants/a/app:1"),
        (HOME, "base-images:1"),
        (ADMIN, "tenants/a/base-images:1"),
    ] {
        let refused = start(&server, token, publish(name)).await.unwrap_err();
        assert_eq!(
            refused.code(),
            Code::PermissionDenied,
            "{name}: {refused:?}"
        );
    }
    start(&server, A, publish("tenants/a/app:1")).await.unwrap();
    world.worker().await.die();
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_of_another_tenant_is_as_unknown_as_one_that_never_was() {
    let world = World::new();
    let server = world.serve_with(&callers()).await;
    let bytes = manifest("one");
    let digest = Digest::sha256(&bytes);
    for repository in [
        "tenants/a/app",
        "builds/a/app",
        "library/alpine",
        "base-images",
    ] {
        server
            .store
            .put_manifest(repository, &bytes, Some("1"))
            .unwrap();
    }
    for kind in [
        "manifests/1",
        &format!("manifests/{digest}"),
        &format!("blobs/{digest}"),
        "tags/list",
    ] {
        let answer = registry(&server, "GET", &format!("/v2/tenants/a/app/{kind}"), B, b"").await;
        let unknown = registry(
            &server,
            "GET",
            &format!("/v2/tenants/a/none/{kind}"),
            B,
            b"",
        )
        .await;
        let own = registry(
            &server,
            "GET",
            &format!("/v2/tenants/b/none/{kind}"),
            B,
            b"",
        )
        .await;
        assert_eq!((answer.0, &answer), (404, &unknown), "{kind}");
        assert_eq!(answer, own, "{kind}");
    }
    for (token, repository, status) in [
        (A, "tenants/a/app", 200),
        (A_READER, "tenants/a/app", 200),
        (A_PULLER, "tenants/a/app", 200),
        (ADMIN, "tenants/a/app", 200),
        (HOME, "tenants/a/app", 404),
        (A, "builds/a/app", 404),
        (HOME, "builds/a/app", 200),
        (A, "library/alpine", 200),
        (B, "library/alpine", 200),
        (A, "base-images", 404),
    ] {
        let path = format!("/v2/{repository}/manifests/1");
        let answer = registry(&server, "GET", &path, token, b"").await;
        assert_eq!(answer.0, status, "{token} {repository}: {}", answer.1);
    }
    for (token, names) in [
        (A, vec!["library/alpine", "tenants/a/app"]),
        (B, vec!["library/alpine"]),
        (HOME, vec!["base-images", "builds/a/app", "library/alpine"]),
    ] {
        let (_, text) = registry(&server, "GET", "/v2/_catalog", token, b"").await;
        let listed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(listed["repositories"], serde_json::json!(names), "{token}");
    }
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_one_tenant_leaves_unfinished_keep_no_other_from_pushing() {
    let world = World::new();
    let server = world.serve_with(&callers()).await;
    let most = store::Limits::default().owner_uploads_max;
    let begin = async |repository: &str, token| {
        let path = format!("/v2/{repository}/blobs/uploads/");
        registry(&server, "POST", &path, token, b"").await
    };
    for n in 0..most {
        let repository = format!("tenants/a/app{}", n % 7);
        assert_eq!(begin(&repository, A).await.0, 202, "{n}");
    }
    // Whoever begins it: what counts is whose the repository is.
    for token in [A, ADMIN] {
        let (status, text) = begin("tenants/a/other", token).await;
        assert_eq!(status, 429, "{text}");
        assert!(text.contains("TOOMANYREQUESTS"), "{text}");
        assert!(text.contains(&format!("{most} uploads")), "{text}");
    }
    assert_eq!(begin("tenants/b/app", B).await.0, 202);
    assert_eq!(begin("builds/app", HOME).await.0, 202);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pushing_and_removing_need_the_tenants_own_repository() {
    let world = World::new();
    let server = world.serve_with(&callers()).await;
    let blob = b"of a";
    let digest = Digest::sha256(blob);
    let path = format!("/v2/tenants/a/app/blobs/uploads/?digest={digest}");
    assert_eq!(registry(&server, "POST", &path, A, blob).await.0, 201);
    for (token, repository) in [
        (B, "tenants/a/app"),
        (B, "tenants/a/none"),
        (A_READER, "tenants/a/app"),
        (A_PULLER, "tenants/a/app"),
        (HOME, "tenants/a/app"),
        (A, "library/alpine"),
        (A, "builds/app"),
        (A, "tenants/a/base-images"),
        (ADMIN, "tenants/a/base-images"),
        (HOME, "base-images"),
    ] {
        for (method, rest) in [
            ("POST", "blobs/uploads/".to_owned()),
            ("PUT", "manifests/1".to_owned()),
            ("DELETE", format!("blobs/{digest}")),
        ] {
            let path = format!("/v2/{repository}/{rest}");
            let answer = registry(&server, method, &path, token, b"").await;
            assert_eq!(answer.0, 403, "{token} {method} {path}: {}", answer.1);
        }
    }
    // Another's blob is not mounted, whether it is there or not: both have to be sent.
    for from in ["tenants/a/app", "tenants/a/none"] {
        let path = format!("/v2/tenants/b/app/blobs/uploads/?mount={digest}&from={from}");
        assert_eq!(
            registry(&server, "POST", &path, B, b"").await.0,
            202,
            "{from}"
        );
    }
    let path = format!("/v2/tenants/b/app/blobs/{digest}");
    assert_eq!(registry(&server, "GET", &path, B, b"").await.0, 404);
    let path = format!("/v2/tenants/a/app/blobs/{digest}");
    assert_eq!(
        registry(&server, "GET", &path, A, b"").await,
        (200, "of a".to_owned())
    );
    assert_eq!(registry(&server, "DELETE", &path, A, b"").await.0, 202);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_another_tenant_is_no_base_and_no_subassembly() {
    let world = World::new();
    let server = world.serve_with(&callers()).await;
    let there = format!("{}/tenants/a/app:1", server.address);
    let never = format!("{}/tenants/a/none:1", server.address);
    put(&server.store, &there.parse().unwrap(), &manifest("a"));
    let mut client = server.client().await;
    let mut makers = SubassemblyServiceClient::new(server.channel().await);
    let same = |text: &str| text.replace("/none:1", "/app:1");
    let mut texts = Vec::new();
    for name in [&there, &never] {
        let resolve = ResolveBaseImageRequest {
            r#ref: name.clone(),
            ..ResolveBaseImageRequest::default()
        };
        let build = request(ref_source(name));
        let create = CreateSubassemblyRequest {
            oci_reference: name.clone(),
        };
        let look = GetSubassemblyRequest {
            oci_reference: name.clone(),
        };
        let statuses = [
            soon(client.resolve_base_image(by(B, resolve.clone())))
                .await
                .map(drop),
            soon(client.build(by(B, build))).await.map(drop),
            soon(makers.create_subassembly(by(B, create)))
                .await
                .map(drop),
            soon(makers.get_subassembly(by(B, look))).await.map(drop),
        ];
        let statuses = statuses.map(|status| status.unwrap_err());
        assert!(
            statuses
                .iter()
                .all(|status| status.code() == Code::NotFound),
            "{statuses:?}"
        );
        texts.push(statuses.map(|status| same(status.message())));
    }
    assert_eq!(texts[0], texts[1]);
    let resolve = ResolveBaseImageRequest {
        r#ref: there.clone(),
        ..ResolveBaseImageRequest::default()
    };
    soon(client.resolve_base_image(by(A_READER, resolve)))
        .await
        .unwrap();
    let look = GetSubassemblyRequest {
        oci_reference: there,
    };
    let answer = soon(makers.get_subassembly(by(A_READER, look)))
        .await
        .unwrap();
    let status = answer.into_inner().status.unwrap();
    assert_eq!(status.phase(), SubassemblyPhase::Unavailable);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_told_what_its_tenant_may_read() {
    let world = World::new();
    let server = world.serve_with(&callers()).await;
    let there = format!("{}/tenants/a/app:1", server.address);
    put(&server.store, &there.parse().unwrap(), &manifest("a"));
    let mut client = server.client().await;
    // To say that it was resolved before is no way to it.
    let mut sneaky = request(git_source(git()));
    sneaky.base_image_name_resolved = there;
    let mut stream = soon(client.build(by(B, sneaky)))
        .await
        .unwrap()
        .into_inner();
    next(&mut stream).await.unwrap();
    let worker = world.worker().await;
    let spec = worker.spec.as_ref().unwrap();
    assert!(matches!(
        spec.source,
        engine::spec::Source::Dockerfile { .. }
    ));
    // And the worker is told what it may read.
    let readable = &spec.registries.readable;
    assert!(!readable.allows("tenants/a/app") && readable.allows("tenants/b/app"));
    assert!(!readable.allows("base-images") && readable.allows("library/alpine"));
    worker.die();
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_another_tenant_cannot_be_built_from() {
    let world = World::new();
    let server = world.serve_with(&callers()).await;
    let keeping = Keeping {
        now_ms: (service::environment::Environment::real().now_ms)(),
        lifetime: Duration::from_secs(3600),
    };
    let announced = Announced {
        n_entries: 0,
        n_bytes: 0,
    };
    let draft = server
        .store
        .begin_context("a", announced, keeping, Allowance::default())
        .unwrap();
    let id = draft.commit(keeping.now_ms).unwrap().id.to_string();
    let from = |context_id: &str| wire::StartBuildRequest {
        files: Some(wire::BuildFiles {
            from: Some(wire::build_files::From::Uploaded(wire::UploadedFiles {
                context_id: context_id.to_owned(),
                archive: String::new(),
            })),
        }),
        ..native_request()
    };
    let never = Digest::sha256(b"never").hex().to_owned();
    let mut answers = Vec::new();
    for context in [id.as_str(), &never] {
        answers.push(start(&server, B, from(context)).await);
    }
    told(answers.try_into().unwrap());
    start(&server, A, from(&id)).await.unwrap();
    world.worker().await.die();
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_credentials_are_for_callers_with_that_right() {
    let world = World::new();
    let secret = world.state().join("pull.json");
    let pair = STANDARD.encode("service:word");
    let text = format!(r#"{{"auths": {{"private.example.com": {{"auth": "{pair}"}}}}}}"#);
    std::fs::write(&secret, text).unwrap();
    let config = format!("pull_secret_file = \"{}\"\n{}", secret.display(), callers());
    let server = world.serve_with(&config).await;
    for (token, n) in [(HOME, 1), (A, 0)] {
        let mut asked = native_request();
        asked.auth = Some(published::BuildRegistryAuth {
            mode: Some(published::build_registry_auth::Mode::Total(
                published::BuildRegistryAuthTotal { allow_all: true },
            )),
            ..published::BuildRegistryAuth::default()
        });
        start(&server, token, asked).await.unwrap();
        let worker: Arc<Worker> = world.worker().await;
        let pull = &worker.spec.as_ref().unwrap().registries.pull;
        assert_eq!(pull.hosts().count(), n, "{token}");
        worker.die();
    }
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_can_be_replaced_while_the_server_runs() {
    let world = World::new();
    let path = world.state().join("tokens");
    std::fs::write(&path, A).unwrap();
    let config = format!(
        "[[callers]]\nname = \"ci\"\nrights = [\"build\"]\ntoken_file = \"{}\"\n",
        path.display()
    );
    let server = world.serve_with(&config).await;
    let is_let_in = async |token: &str| {
        let mut client = server.client().await;
        soon(client.list_builds(by(token, ListBuildsRequest {})))
            .await
            .is_ok()
    };
    assert!(is_let_in(A).await && !is_let_in(B).await);
    std::fs::write(&path, B).unwrap();
    soon(async {
        while is_let_in(A).await || !is_let_in(B).await {
            tokio::task::yield_now().await;
        }
    })
    .await;
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_come_and_go_while_the_server_runs() {
    let world = World::new();
    let with = |name: &str, token: &str| {
        let hash = Digest::sha256(token.as_bytes());
        let hash = hash.hex();
        format!(
            "[[callers]]\nname = \"{name}\"\nrights = [\"build\"]\ntoken_sha256 = [\"{hash}\"]\n"
        )
    };
    let path = world.state().join("kiln.toml");
    std::fs::write(&path, with("one", A)).unwrap();
    let server = world.serve_with(&with("one", A)).await;
    let is_let_in = async |token: &str| {
        let mut client = server.client().await;
        soon(client.list_builds(by(token, ListBuildsRequest {})))
            .await
            .is_ok()
    };
    assert!(is_let_in(A).await && !is_let_in(B).await);
    std::fs::write(&path, with("two", B)).unwrap();
    soon(async {
        while is_let_in(A).await || !is_let_in(B).await {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let id = start(&server, B, native_request()).await.unwrap();
    let mut native = server.native().await;
    let request = wire::GetBuildRequest { build_id: id };
    let found = soon(native.get_build(by(B, request))).await.unwrap();
    assert_eq!(found.into_inner().build.unwrap().caller, "two");
    world.worker().await.die();
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_callers_only_this_machine_is_served() {
    let world = World::new();
    let config = |text: &str| service::config::Config {
        listen: "0.0.0.0:0".parse().unwrap(),
        state: Some(world.state().to_owned()),
        ..service::config::parse(text).unwrap().config
    };
    let error = world.serve_config(config("")).await.failed().await;
    let text = service::failure::chain(&error);
    assert!(
        text.contains("callers") && text.contains("open_to_network"),
        "{text}"
    );
    for good in ["open_to_network = true".to_owned(), callers()] {
        let server = world.serve_config(config(&good)).await;
        server.stopped().await;
    }
    // A file that is not there is named at start.
    let none =
        "[[callers]]\nname = \"x\"\nrights = [\"read\"]\ntoken_file = \"/nonexistent/tokens\"\n";
    let error = world.serve_with(none).await.failed().await;
    assert!(service::failure::chain(&error).contains("/nonexistent/tokens"));
}
