//! `ResolveBaseImage` and names of image sources, against the embedded registry.

use api::builder::{ResolveBaseImageRequest, ResolveWorkspaceImageRequest};
use oci::{Digest, Reference};
use tonic::Code;

use crate::harness::*;

async fn resolve(server: &Server, r#ref: &str) -> Result<String, tonic::Status> {
    let request = ResolveBaseImageRequest {
        r#ref: r#ref.to_owned(),
        ..ResolveBaseImageRequest::default()
    };
    let mut client = server.client().await;
    let answer = soon(client.resolve_base_image(request)).await?;
    Ok(answer.into_inner().r#ref)
}

fn index(entries: &[(&str, &Digest)]) -> Vec<u8> {
    let manifests: Vec<_> = entries
        .iter()
        .map(|(architecture, digest)| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1,
                "platform": { "os": "linux", "architecture": architecture },
            })
        })
        .collect();
    serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
    })
    .to_string()
    .into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_becomes_its_digest_and_an_index_the_digest_for_linux_amd64() {
    let world = World::new();
    let server = world.serve().await;
    let name: Reference = format!("{}/a/b:1", server.address).parse().unwrap();
    let digest = put(&server.store, &name, &manifest("one"));
    let expected = format!("{}/a/b@{digest}", server.address);
    assert_eq!(resolve(&server, &name.to_string()).await.unwrap(), expected);
    assert_eq!(resolve(&server, &expected).await.unwrap(), expected);

    let (amd64, arm64) = (Digest::sha256(b"amd64"), Digest::sha256(b"arm64"));
    let both: Reference = format!("{}/a/both:1", server.address).parse().unwrap();
    put(
        &server.store,
        &both,
        &index(&[("arm64", &arm64), ("amd64", &amd64)]),
    );
    let resolved = resolve(&server, &both.to_string()).await.unwrap();
    assert_eq!(resolved, format!("{}/a/both@{amd64}", server.address));

    let arm: Reference = format!("{}/a/arm:1", server.address).parse().unwrap();
    put(&server.store, &arm, &index(&[("arm64", &arm64)]));
    let error = resolve(&server, &arm.to_string()).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(
        error.message().contains("cannot resolve image"),
        "{}",
        error.message()
    );
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_there_and_one_that_cannot_be_are_told_apart() {
    let world = World::new();
    let server = world.serve().await;
    let error = resolve(&server, &format!("{}/a/none", server.address))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    for text in ["cannot resolve image", "base image does not exist"] {
        assert!(error.message().contains(text), "{}", error.message());
    }
    for bad in [
        "",
        "docker.io/UPPER",
        "a:b:c",
        "a@sha256:short",
        "user@host/a",
        "[::1/a",
        &"a".repeat(10_000),
    ] {
        let error = resolve(&server, bad).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{bad}");
        assert!(
            error.message().contains("cannot resolve image"),
            "{}",
            error.message()
        );
        assert!(error.message().len() <= 8 << 10);
    }
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workspace_image_of_an_image_is_named_after_its_digest() {
    let world = World::new();
    let server = world.serve().await;
    let name: Reference = format!("{}/a/b:1", server.address).parse().unwrap();
    let digest = put(&server.store, &name, &manifest("one"));
    let request = ResolveWorkspaceImageRequest {
        source: Some(ref_source(&name.to_string())),
        ..ResolveWorkspaceImageRequest::default()
    };
    let mut client = server.client().await;
    let answer = soon(client.resolve_workspace_image(request))
        .await
        .unwrap()
        .into_inner();
    let base = format!("{}/a/b@{digest}", server.address);
    assert_eq!(answer.base_ref, base);
    let tag = service::names::workspace_tag(&base);
    assert_eq!(
        answer.r#ref,
        format!("{}/workspace-images:{tag}", server.address)
    );
    let error = client.resolve_workspace_image(ResolveWorkspaceImageRequest::default());
    assert_eq!(soon(error).await.unwrap_err().code(), Code::InvalidArgument);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_connected_to_inside_unless_the_operator_says_so() {
    let world = World::new();
    let server = world.serve_with("[egress]\nreach = \"public\"\n").await;
    for reference in [
        "127.0.0.1:5000/a:1",
        "localhost:5000/a:1",
        "127.1:5000/a:1",
        "2130706433:80/a:1",
        "10.0.0.1:5000/a:1",
        "169.254.169.254:80/a:1",
        "[::1]:5000/a:1",
        "[::ffff:127.0.0.1]:5000/a:1",
    ] {
        let error = resolve(&server, reference).await.unwrap_err();
        let is_refused = error.message().contains("not connected to");
        let is_no_reference = error.code() == Code::InvalidArgument;
        assert!(is_refused || is_no_reference, "{reference}: {error:?}");
    }
    server.stopped().await;
}
