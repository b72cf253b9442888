//! Every row of the published error codes, against registries that misbehave.

use api::builder::{
    BuildRegistryAuth, BuildRegistryAuthTotal, BuildStatus, ResolveBaseImageRequest,
    ResolveWorkspaceImageRequest, build_registry_auth,
};
use oci::Digest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;

use crate::harness::*;

/// A registry whose repositories each go wrong in their own way.
pub(crate) struct Misbehaving {
    address: String,
    _serving: AbortOnDropHandle<()>,
}

impl Misbehaving {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer(stream));
            }
        });
        Self {
            address,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    fn reference(&self, repository: &str) -> String {
        format!("{}/{repository}:1", self.address)
    }
}

async fn answer(mut stream: TcpStream) {
    let mut request = Vec::new();
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => request.extend(&buffer[..n]),
        }
    }
    let head = String::from_utf8_lossy(&request).to_lowercase();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let repository = path
        .trim_start_matches("/v2/")
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    let authorized = head.contains("authorization: basic");
    let document = String::from_utf8(manifest("there")).unwrap();
    let manifest_type = "content-type: application/vnd.oci.image.manifest.v1+json\r\n";
    let error = |code: &str| format!(r#"{{"errors":[{{"code":"{code}","message":"said so"}}]}}"#);
    let (status, headers, body) = match repository.as_str() {
        "private" if authorized => ("200 OK", manifest_type.to_owned(), document),
        "private" | "unauthorized" => (
            "401 Unauthorized",
            "www-authenticate: Basic realm=\"x\"\r\n".to_owned(),
            error("UNAUTHORIZED"),
        ),
        "forbidden" => ("403 Forbidden", String::new(), error("DENIED")),
        "missing" => ("404 Not Found", String::new(), error("MANIFEST_UNKNOWN")),
        "busy" => (
            "429 Too Many Requests",
            "retry-after: 0\r\n".to_owned(),
            error("TOOMANYREQUESTS"),
        ),
        "broken" => ("500 Internal Server Error", String::new(), error("UNKNOWN")),
        "reset" => return,
        "wrong" => {
            let digest = Digest::sha256(b"something else");
            (
                "200 OK",
                format!("{manifest_type}docker-content-digest: {digest}\r\n"),
                document,
            )
        }
        "truncated" => {
            let text = format!("HTTP/1.1 200 OK\r\n{manifest_type}content-length: 5000\r\n\r\n{{");
            let _gone = stream.write_all(text.as_bytes()).await;
            return;
        }
        "nonsense" => (
            "200 OK",
            manifest_type.to_owned(),
            "{\"schemaVersion\":1}".to_owned(),
        ),
        _ => ("200 OK", manifest_type.to_owned(), document),
    };
    let length = body.len();
    let body = if head.starts_with("head ") {
        String::new()
    } else {
        body
    };
    let text = format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    let _gone = stream.write_all(text.as_bytes()).await;
}

const ROWS: [(&str, Code); 9] = [
    ("unauthorized", Code::Unauthenticated),
    ("forbidden", Code::Unauthenticated),
    ("missing", Code::NotFound),
    ("busy", Code::Unavailable),
    ("broken", Code::Unavailable),
    ("reset", Code::Unavailable),
    ("wrong", Code::Unavailable),
    ("truncated", Code::Unavailable),
    ("nonsense", Code::Unavailable),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_of_a_registry_has_its_code_in_every_call() {
    let world = World::new();
    let server = world.serve().await;
    let registry = Misbehaving::start().await;
    let mut client = server.client().await;
    for (repository, code) in ROWS {
        let name = registry.reference(repository);
        let base = ResolveBaseImageRequest {
            r#ref: name.clone(),
            ..ResolveBaseImageRequest::default()
        };
        let workspace = ResolveWorkspaceImageRequest {
            source: Some(ref_source(&name)),
            ..ResolveWorkspaceImageRequest::default()
        };
        let statuses = [
            soon(client.resolve_base_image(base)).await.unwrap_err(),
            soon(client.resolve_workspace_image(workspace))
                .await
                .unwrap_err(),
            server.build(request(ref_source(&name))).await.unwrap_err(),
        ];
        for status in statuses {
            assert_eq!(status.code(), code, "{repository}: {}", status.message());
            assert!(
                status.message().contains("cannot resolve image"),
                "{}",
                status.message()
            );
            assert!(
                status.message().contains(&registry.address),
                "{}",
                status.message()
            );
        }
    }
    let missing = server
        .build(request(ref_source(&registry.reference("missing"))))
        .await;
    let missing = missing.unwrap_err();
    assert!(
        missing.message().contains("base image does not exist"),
        "{}",
        missing.message()
    );
    let there = ResolveBaseImageRequest {
        r#ref: registry.reference("there"),
        ..ResolveBaseImageRequest::default()
    };
    let resolved = soon(client.resolve_base_image(there))
        .await
        .unwrap()
        .into_inner();
    let digest = Digest::sha256(&manifest("there"));
    assert_eq!(
        resolved.r#ref,
        format!("{}/there@{digest}", registry.address)
    );
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_own_repositories_going_wrong_is_no_fault_of_the_caller() {
    let registry = Misbehaving::start().await;
    for (repository, code) in [
        ("unauthorized", Code::Internal),
        ("forbidden", Code::Internal),
        ("busy", Code::Unavailable),
        ("broken", Code::Unavailable),
        ("reset", Code::Unavailable),
    ] {
        let world = World::new();
        let address = &registry.address;
        let server = world
            .serve_with(&format!(
                "workspace_image_repository = \"{address}/{repository}\""
            ))
            .await;
        let status = server.build(request(git_source(git()))).await.unwrap_err();
        assert_eq!(status.code(), code, "{repository}: {}", status.message());
        assert!(!world.has_worker().await);
        server.stopped().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_used_only_as_the_request_may_and_read_again_when_they_change() {
    let registry = Misbehaving::start().await;
    let world = World::new();
    let secret = world.state().join("docker.json");
    std::fs::write(&secret, "{}").unwrap();
    let server = world
        .serve_with(&format!(
            "pull_secret_file = {:?}",
            secret.to_str().unwrap()
        ))
        .await;
    let mut client = server.client().await;
    let mut resolve = async |auth: Option<BuildRegistryAuth>| {
        let request = ResolveBaseImageRequest {
            r#ref: registry.reference("private"),
            auth,
            use_retry_client: true,
        };
        let answer = soon(client.resolve_base_image(request)).await;
        answer.map_or_else(|status| status.code(), |_| Code::Ok)
    };
    let total = || {
        let mode = build_registry_auth::Mode::Total(BuildRegistryAuthTotal { allow_all: true });
        Some(BuildRegistryAuth {
            mode: Some(mode),
            ..BuildRegistryAuth::default()
        })
    };
    let additional = |host: &str| {
        Some(BuildRegistryAuth {
            additional: [(host.to_owned(), "dXNlcjpwYXNzd29yZA==".to_owned())].into(),
            ..BuildRegistryAuth::default()
        })
    };
    assert_eq!(resolve(total()).await, Code::Unauthenticated);
    let config = format!(
        r#"{{"auths":{{"{}":{{"auth":"dXNlcjpwYXNzd29yZA=="}}}}}}"#,
        registry.address
    );
    std::fs::write(&secret, config).unwrap();
    assert_eq!(resolve(total()).await, Code::Ok);
    assert_eq!(resolve(None).await, Code::Unauthenticated);
    assert_eq!(resolve(additional(&registry.address)).await, Code::Ok);
    assert_eq!(
        resolve(additional("registry.example")).await,
        Code::Unauthenticated
    );
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_kept_at_hand_is_told_only_to_who_may_know_it() {
    let registry = Misbehaving::start().await;
    let world = World::new();
    let secret = world.state().join("docker.json");
    let config = format!(
        r#"{{"auths":{{"{}":{{"auth":"dXNlcjpwYXNzd29yZA=="}}}}}}"#,
        registry.address
    );
    std::fs::write(&secret, config).unwrap();
    let server = world
        .serve_with(&format!(
            "pull_secret_file = {:?}\n[ref_cache]\nrefs = [\"{}\"]",
            secret.to_str().unwrap(),
            registry.reference("private")
        ))
        .await;
    let status = server
        .build(request(ref_source(&registry.reference("private"))))
        .await;
    assert_eq!(status.unwrap_err().code(), Code::Unauthenticated);
    let mut allowed = request(ref_source(&registry.reference("private")));
    let mode = build_registry_auth::Mode::Total(BuildRegistryAuthTotal { allow_all: true });
    allowed.auth = Some(BuildRegistryAuth {
        mode: Some(mode),
        ..BuildRegistryAuth::default()
    });
    let (first, stream) = server.start(allowed).await;
    assert!(first.base_ref.contains("/private@sha256:"));
    world.worker().await.succeed(&server);
    assert_eq!(last(stream).await.status(), BuildStatus::DoneSuccess);
    server.stopped().await;
}
