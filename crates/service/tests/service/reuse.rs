//! What is reused under a name, and what is not: a name covers less than what is built.

use api::builder::{BuildRequest, BuildStatus};
use oci::Reference;

use crate::harness::*;

/// Tells whether a request is answered with an image that exists; starts and ends a build otherwise.
async fn is_reused(world: &World, server: &Server, request: BuildRequest) -> bool {
    let mut stream = server.build(request).await.unwrap();
    let first = next(&mut stream).await.unwrap();
    if first.status() == BuildStatus::DoneSuccess {
        assert!(first.info.is_none());
        return true;
    }
    world.worker().await.succeed(server);
    assert_eq!(last(stream).await.status(), BuildStatus::DoneSuccess);
    false
}

fn with_setting() -> BuildRequest {
    let mut git = git();
    let setting = ("core.eol".to_owned(), "crlf".to_owned());
    git.config = Some(api::contentservice::GitConfig {
        custom_config: [setting].into(),
        ..Default::default()
    });
    request(git_source(git))
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_that_the_name_does_not_cover_never_get_anothers_image() {
    let world = World::new();
    let server = world.serve().await;
    let plain = || request(git_source(git()));
    let elsewhere = || {
        let mut git = git();
        git.checkout_location = "sub".to_owned();
        request(git_source(git))
    };
    // All three have one name.
    assert!(!is_reused(&world, &server, with_setting()).await);
    assert!(is_reused(&world, &server, with_setting()).await);
    assert!(!is_reused(&world, &server, plain()).await);
    assert!(is_reused(&world, &server, plain()).await);
    assert!(!is_reused(&world, &server, with_setting()).await);
    assert!(!is_reused(&world, &server, elsewhere()).await);
    assert!(!is_reused(&world, &server, plain()).await);
    server.stopped().await;

    // The address is another one after a restart, and so are the names: nothing is reused, and nothing is mixed up.
    let server = world.serve().await;
    assert!(!is_reused(&world, &server, with_setting()).await);
    assert!(!is_reused(&world, &server, plain()).await);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_from_before_is_taken_by_requests_that_set_nothing_special() {
    let world = World::new();
    let server = world.serve().await;
    let names = resolve(&server, git_source(git())).await;
    let workspace: Reference = names.r#ref.parse().unwrap();
    put(&server.store, &workspace, &manifest("from before"));
    let resolved = resolve(&server, git_source(git())).await;
    assert_eq!(resolved.status(), BuildStatus::DoneSuccess);
    assert!(is_reused(&world, &server, request(git_source(git()))).await);
    assert!(!is_reused(&world, &server, with_setting()).await);
    // What stands there now is not from before.
    assert!(!is_reused(&world, &server, request(git_source(git()))).await);
    server.stopped().await;
}

async fn resolve(
    server: &Server,
    source: api::builder::BuildSource,
) -> api::builder::ResolveWorkspaceImageResponse {
    let request = api::builder::ResolveWorkspaceImageRequest {
        source: Some(source),
        ..Default::default()
    };
    let mut client = server.client().await;
    let answer = soon(client.resolve_workspace_image(request)).await;
    answer.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_was_resolved_earlier_names_the_image_and_becomes_the_source() {
    let world = World::new();
    let server = world.serve().await;
    let base: Reference = format!("{}/bases/debian:12", server.address)
        .parse()
        .unwrap();
    let digest = put(&server.store, &base, &manifest("debian"));
    let pinned = base.with_digest(digest);
    let with_base = |name: &str| {
        let mut request = request(git_source(git()));
        request.base_image_name_resolved = name.to_owned();
        request
    };

    // It resolves: it is the source, by digest.
    let (first, stream) = server.start(with_base(&base.to_string())).await;
    assert_eq!(first.base_ref, pinned.to_string());
    let worker = world.worker().await;
    let source = &worker.spec.as_ref().unwrap().source;
    assert!(matches!(source, engine::spec::Source::Image { reference } if *reference == pinned));
    assert_eq!(worker.spec.as_ref().unwrap().outputs.len(), 1);
    worker.succeed(&server);
    assert_eq!(last(stream).await.status(), BuildStatus::DoneSuccess);

    // The image over it exists: done, under the name made of the string as it was sent.
    let mut stream = server.build(with_base(&pinned.to_string())).await.unwrap();
    let only = next(&mut stream).await.unwrap();
    assert_eq!(only.status(), BuildStatus::DoneSuccess);
    assert_eq!(
        (&only.base_ref, &only.r#ref),
        (&pinned.to_string(), &first.r#ref)
    );

    // It does not resolve, or is no reference at all: the source is used.
    for name in [
        format!("{}/bases/none:1", server.address),
        "NOT A REFERENCE".to_owned(),
    ] {
        let (first, stream) = server.start(with_base(&name)).await;
        assert!(
            first.base_ref.contains("/base-images:"),
            "{}",
            first.base_ref
        );
        world
            .worker()
            .await
            .fail(engine::event::FailureKind::Dockerfile, "x");
        assert_eq!(last(stream).await.status(), BuildStatus::DoneFailure);
    }

    // A request to rebuild does not look at it.
    let mut forced = with_base(&pinned.to_string());
    forced.force_rebuild = true;
    let (first, _stream) = server.start(forced).await;
    assert!(first.base_ref.contains("/base-images:"));
    world.worker().await.die();
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_of_ours_that_other_inputs_made_is_not_taken_as_resolved() {
    let world = World::new();
    let server = world.serve().await;
    assert!(!is_reused(&world, &server, with_setting()).await);
    let names = resolve(&server, git_source(git())).await;
    let mut asked = request(git_source(git()));
    asked.base_image_name_resolved = names.base_ref;
    let (_, stream) = server.start(asked).await;
    let worker = world.worker().await;
    let source = &worker.spec.as_ref().unwrap().source;
    assert!(matches!(source, engine::spec::Source::Dockerfile { .. }));
    worker.succeed(&server);
    assert_eq!(last(stream).await.status(), BuildStatus::DoneSuccess);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_workers_writes_to_the_services_own_repositories() {
    let world = World::new();
    let server = world.serve().await;
    let hosts = registry::hosts::Hosts::default();
    let keychain = registry::keychain::Keychain::empty();
    let options = registry::client::Options::default();
    let client = registry::client::Client::new(hosts, keychain, options).unwrap();
    let media_type = oci::media_type::OCI_INDEX;
    let index = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    for (repository, may) in [
        ("workspace-images", false),
        ("base-images", false),
        ("else", true),
    ] {
        let name: Reference = format!("{}/{repository}:x", server.address)
            .parse()
            .unwrap();
        let pushed = soon(client.push_manifest(&name, media_type, index)).await;
        assert_eq!(pushed.is_ok(), may, "{repository}");
    }
    server.stopped().await;
}
