//! Answers of registries that are given again for a moment: to whom, for how long, and to whom not.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use api::builder::{
    BuildRegistryAuth, BuildRegistryAuthTotal, BuildStatus, ResolveBaseImageRequest,
    ResolveWorkspaceImageRequest, build_registry_auth,
};
use oci::Digest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;

use crate::harness::*;
use crate::tenants::{A, B, HOME, by, callers};

/// `user:password`, whom the registry lets in to everything but `public`.
const LOGIN: &str = "dXNlcjpwYXNzd29yZA==";
const OTHER: &str = "dXNlcjpvdGhlcg==";

/// A registry with one image under every name, which counts how often it is asked for it.
struct Registry {
    address: String,
    shelf: Arc<Shelf>,
    _serving: AbortOnDropHandle<()>,
}

struct Shelf {
    /// What the image is made of now.
    seed: Mutex<String>,
    n_asked: AtomicUsize,
    /// Answers that it may give.
    open: Semaphore,
}

impl Registry {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shelf = Arc::new(Shelf {
            seed: Mutex::new("one".to_owned()),
            n_asked: AtomicUsize::new(0),
            open: Semaphore::new(1000),
        });
        let served = Arc::clone(&shelf);
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer(stream, Arc::clone(&served)));
            }
        });
        Self {
            address,
            shelf,
            _serving: AbortOnDropHandle::new(serving),
        }
    }

    fn name(&self, repository: &str) -> String {
        format!("{}/{repository}:1", self.address)
    }

    /// Returns how often it was asked since this was asked last.
    fn n_asked(&self) -> usize {
        self.shelf.n_asked.swap(0, Ordering::SeqCst)
    }

    fn push(&self, seed: &str) {
        seed.clone_into(&mut self.shelf.seed.lock().unwrap());
    }

    fn pinned(&self, repository: &str, seed: &str) -> String {
        let digest = Digest::sha256(&manifest(seed));
        format!("{}/{repository}@{digest}", self.address)
    }
}

async fn answer(mut stream: TcpStream, shelf: Arc<Shelf>) {
    let mut request = Vec::new();
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => request.extend(&buffer[..n]),
        }
    }
    let head = String::from_utf8_lossy(&request).into_owned();
    let may = head.contains("/v2/public/") || head.contains(&format!("Basic {LOGIN}"));
    let said = if may {
        shelf.n_asked.fetch_add(1, Ordering::SeqCst);
        shelf.open.acquire().await.unwrap().forget();
        let document = manifest(&shelf.seed.lock().unwrap());
        let document = String::from_utf8(document).unwrap();
        format!(
            "200 OK\r\ncontent-type: application/vnd.oci.image.manifest.v1+json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{document}",
            document.len()
        )
    } else {
        "401 Unauthorized\r\nwww-authenticate: Basic realm=\"x\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned()
    };
    let _gone = stream
        .write_all(format!("HTTP/1.1 {said}").as_bytes())
        .await;
}

fn asking(reference: &str, auth: impl Into<Option<BuildRegistryAuth>>) -> ResolveBaseImageRequest {
    ResolveBaseImageRequest {
        r#ref: reference.to_owned(),
        auth: auth.into(),
        ..ResolveBaseImageRequest::default()
    }
}

fn total() -> BuildRegistryAuth {
    let mode = build_registry_auth::Mode::Total(BuildRegistryAuthTotal { allow_all: true });
    BuildRegistryAuth {
        mode: Some(mode),
        ..BuildRegistryAuth::default()
    }
}

fn own(host: &str, login: &str) -> BuildRegistryAuth {
    BuildRegistryAuth {
        additional: [(host.to_owned(), login.to_owned())].into(),
        ..BuildRegistryAuth::default()
    }
}

async fn resolve(
    server: &Server,
    request: impl tonic::IntoRequest<ResolveBaseImageRequest>,
) -> Result<String, Code> {
    let mut client = server.client().await;
    let answer = soon(client.resolve_base_image(request)).await;
    answer
        .map(|answer| answer.into_inner().r#ref)
        .map_err(|status| status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_is_asked_once_in_a_while_and_a_build_always_asks_it() {
    let registry = Registry::start().await;
    let world = World::new();
    let server = world.serve_with("[ref_cache]\nfresh_for = \"1h\"").await;
    let name = registry.name("public");
    let one = registry.pinned("public", "one");
    for _ in 0..10 {
        assert_eq!(resolve(&server, asking(&name, None)).await, Ok(one.clone()));
    }
    assert_eq!(registry.n_asked(), 1);

    registry.push("two");
    assert_eq!(resolve(&server, asking(&name, None)).await, Ok(one.clone()));
    let workspace = ResolveWorkspaceImageRequest {
        source: Some(ref_source(&name)),
        ..ResolveWorkspaceImageRequest::default()
    };
    let mut client = server.client().await;
    let named = soon(client.resolve_workspace_image(workspace)).await;
    assert_eq!(named.unwrap().into_inner().base_ref, one);
    assert_eq!(registry.n_asked(), 0);
    // What was pushed before a build was asked for is what it is built from.
    let (first, stream) = server.start(request(ref_source(&name))).await;
    assert_eq!(first.base_ref, registry.pinned("public", "two"));
    assert_eq!(registry.n_asked(), 1);
    world.worker().await.succeed(&server);
    assert_eq!(last(stream).await.status(), BuildStatus::DoneSuccess);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_tag_is_seen_when_the_answer_has_grown_old() {
    let registry = Registry::start().await;
    let world = World::new();
    let server = world.serve_with("[ref_cache]\nfresh_for = \"100ms\"").await;
    let name = registry.name("public");
    let first = resolve(&server, asking(&name, None)).await;
    assert_eq!(first, Ok(registry.pinned("public", "one")));
    registry.push("two");
    let moved = Ok(registry.pinned("public", "two"));
    let seen = async {
        while resolve(&server, asking(&name, None)).await != moved {
            tokio::task::yield_now().await;
        }
    };
    soon(seen).await;
    server.stopped().await;

    let world = World::new();
    let server = world.serve_with("[ref_cache]\nfresh_for = \"0s\"").await;
    for seed in ["three", "four"] {
        registry.push(seed);
        let seen = resolve(&server, asking(&name, None)).await;
        assert_eq!(seen, Ok(registry.pinned("public", seed)));
    }
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_the_same_that_come_together_are_one_question() {
    let registry = Registry::start().await;
    registry.shelf.open.forget_permits(1000);
    let world = World::new();
    let server = world.serve_with("[ref_cache]\nfresh_for = \"1h\"").await;
    let name = registry.name("public");
    let client = server.client().await;
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let (mut client, request) = (client.clone(), asking(&name, None));
        asked.spawn(async move { client.resolve_base_image(request).await });
    }
    let one = async {
        while registry.shelf.n_asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    soon(one).await;
    registry.shelf.open.add_permits(1000);
    while let Some(answer) = soon(asked.join_next()).await {
        let resolved = answer.unwrap().unwrap().into_inner().r#ref;
        assert_eq!(resolved, registry.pinned("public", "one"));
    }
    assert_eq!(registry.n_asked(), 1);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_given_an_answer_that_another_tenant_or_another_credential_was_given() {
    let registry = Registry::start().await;
    let world = World::new();
    let secret = world.state().join("docker.json");
    let login = |auth: &str| {
        let text = format!(
            r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#,
            registry.address
        );
        std::fs::write(&secret, text).unwrap();
    };
    login(LOGIN);
    let config = format!(
        "pull_secret_file = {:?}\n{}\n[ref_cache]\nfresh_for = \"1h\"",
        secret.to_str().unwrap(),
        callers()
    );
    let server = world.serve_with(&config).await;
    let (name, host) = (registry.name("private"), registry.address.as_str());
    let pinned = Ok(registry.pinned("private", "one"));
    // Callers of two tenants with the same credential of their own: each is answered by the registry.
    for token in [A, B] {
        for _ in 0..3 {
            let asked = by(token, asking(&name, own(host, LOGIN)));
            assert_eq!(resolve(&server, asked).await, pinned);
        }
        assert_eq!(registry.n_asked(), 1);
    }
    // Who has none, or a wrong one, or says to have the service's without the right to it, learns nothing, however often.
    let others = [own(host, OTHER), own("registry.example", LOGIN), total()];
    for auth in others.map(Some).into_iter().chain([None]) {
        for _ in 0..2 {
            let asked = by(A, asking(&name, auth.clone()));
            assert_eq!(resolve(&server, asked).await, Err(Code::Unauthenticated));
        }
    }
    // With the right, it is the service's credential that counts: as it is now.
    for _ in 0..3 {
        assert_eq!(
            resolve(&server, by(HOME, asking(&name, total()))).await,
            pinned
        );
    }
    assert_eq!(registry.n_asked(), 1);
    assert_eq!(
        resolve(&server, by(HOME, asking(&name, None))).await,
        Err(Code::Unauthenticated)
    );
    login(OTHER);
    assert_eq!(
        resolve(&server, by(HOME, asking(&name, total()))).await,
        Err(Code::Unauthenticated)
    );
    // A refusal is not remembered either.
    login(LOGIN);
    assert_eq!(
        resolve(&server, by(HOME, asking(&name, total()))).await,
        pinned
    );
    server.stopped().await;
}
