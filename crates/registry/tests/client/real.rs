//! Against a registry that others wrote, and against our own.

use std::sync::Arc;

use bytes::Bytes;
use oci::{Digest, Platform, media_type};
use registry::client::{
    BlobSource, BlobToPush, Client, ErrorKind, ImageToPush, Options, Presence, Pushed,
};
use registry::hosts::Hosts;
use registry::keychain::Keychain;
use store::Store;

use super::support::basic;
use super::support::evil::{descriptor, noise};
use super::support::program::DockerRegistry;

const LAYER_BYTES: usize = 3 << 20;

fn client(host: &str, password: Option<&str>) -> Client {
    let mut keychain = Keychain::empty();
    if let Some(password) = password {
        keychain.insert(host, basic(password));
    }
    Client::new(Hosts::default(), keychain, Options::default()).unwrap()
}

fn image() -> ImageToPush {
    let layers = [noise(LAYER_BYTES), b"a small layer".to_vec()];
    let diff_ids: Vec<Digest> = layers.iter().map(|l| Digest::sha256(l)).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let blob = |media_type: &str, bytes: Vec<u8>| BlobToPush {
        descriptor: descriptor(media_type, &bytes),
        source: BlobSource::Bytes(bytes.into()),
        mount_from: Vec::new(),
        presence: Presence::Unknown,
    };
    let mut blobs = vec![blob(media_type::OCI_CONFIG, config)];
    blobs.extend(layers.map(|layer| blob(media_type::OCI_LAYER, layer)));
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": blobs[0].descriptor,
        "layers": blobs[1..].iter().map(|b| &b.descriptor).collect::<Vec<_>>(),
    });
    ImageToPush {
        manifest: Bytes::from(serde_json::to_vec(&manifest).unwrap()),
        media_type: media_type::OCI_MANIFEST.to_owned(),
        blobs,
    }
}

/// Everything that a build does with a registry.
async fn go_round(host: &str, client: &Client) {
    let image = image();
    let target = format!("{host}/kiln/app:v1").parse().unwrap();
    assert_eq!(client.head(&target).await.unwrap(), None);
    let digest = client
        .push_image(&target, &image, &|_, _| {})
        .await
        .unwrap();
    let head = client.head(&target).await.unwrap().unwrap();
    assert_eq!(head.digest, digest);
    let read = client
        .image(&target, &Platform::linux_amd64())
        .await
        .unwrap();
    assert_eq!(read.manifest_bytes, image.manifest);
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), None).unwrap();
    for layer in &read.manifest.layers {
        client
            .blob_to_store(&target, layer, &store, &|_| {})
            .await
            .unwrap();
        assert_eq!(store.size_of(&layer.digest).unwrap(), Some(layer.size));
        let size = client.has_blob(&target, &layer.digest).await.unwrap();
        assert_eq!(size, Some(layer.size));
    }
    // Another repository gets the same blobs without a byte being sent.
    let other = format!("{host}/kiln/other:v1").parse().unwrap();
    for layer in &read.manifest.layers {
        let source = BlobSource::Store(store.clone(), layer.digest.clone());
        let from = [target.clone()];
        let pushed = client
            .push_blob(&other, layer, source, &from, &|_| {})
            .await;
        assert_eq!(pushed.unwrap(), Pushed::Mounted);
    }
    let nothing = Digest::sha256(b"nothing");
    assert_eq!(client.has_blob(&target, &nothing).await.unwrap(), None);
    let missing = format!("{host}/kiln/none:v1").parse().unwrap();
    let error = client.resolve(&missing).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn debians_registry_is_pushed_to_and_pulled_from() {
    let registry = DockerRegistry::plain();
    go_round(&registry.host, &client(&registry.host, None)).await;
}

#[tokio::test]
async fn debians_registry_with_a_password_lets_in_who_knows_it() {
    let registry = DockerRegistry::with_password("user", "correct horse");
    go_round(
        &registry.host,
        &client(&registry.host, Some("correct horse")),
    )
    .await;
    let target = format!("{}/kiln/app:v1", registry.host).parse().unwrap();
    for password in [None, Some("wrong")] {
        let client = client(&registry.host, password);
        let error = client.resolve(&target).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized);
    }
}

#[tokio::test]
async fn our_own_registry_is_pushed_to_and_pulled_from() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), None).unwrap();
    let router = registry::server::router(store, registry::server::ServerOptions::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    go_round(&host, &client(&host, None)).await;
    server.abort();
}

#[tokio::test]
async fn one_client_serves_many_tasks() {
    let registry = DockerRegistry::plain();
    let client = Arc::new(client(&registry.host, None));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..16 {
        let (client, host) = (Arc::clone(&client), registry.host.clone());
        tasks.spawn(async move {
            let target = format!("{host}/kiln/many:t{n}").parse().unwrap();
            client.push_image(&target, &image(), &|_, _| {}).await
        });
    }
    let digests: Vec<Digest> = tasks
        .join_all()
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]));
}
