//! Identical requests at the same time are one build.

use api::builder::{BuildStatus, ListBuildsRequest, ResolveWorkspaceImageRequest};

use crate::harness::*;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_identical_requests_are_one_build_with_fifty_answers() {
    let world = World::new();
    let server = world.serve().await;
    let mut client = server.client().await;
    let requests = (0..50).map(|_| {
        let mut client = client.clone();
        tokio::spawn(async move {
            let stream = client.build(request(git_source(git()))).await;
            let mut stream = stream.unwrap().into_inner();
            let first = next(&mut stream).await.unwrap();
            (first.info.unwrap().build_id, stream)
        })
    });
    let mut joined = Vec::new();
    for handle in requests.collect::<Vec<_>>() {
        joined.push(soon(handle).await.unwrap());
    }
    let worker = world.worker().await;
    assert!(joined.iter().all(|(id, _)| id == worker.record.id.as_str()));
    assert!(!world.has_worker().await);
    let listed = soon(client.list_builds(ListBuildsRequest {}))
        .await
        .unwrap();
    assert_eq!(listed.into_inner().builds.len(), 1);
    worker.succeed(&server);
    for (_, stream) in joined {
        assert_eq!(last(stream).await.status(), BuildStatus::DoneSuccess);
    }
    let listed = soon(client.list_builds(ListBuildsRequest {}))
        .await
        .unwrap();
    assert!(listed.into_inner().builds.is_empty());
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_rebuild_joins_only_its_like() {
    let world = World::new();
    let server = world.serve().await;
    let id = |message: api::builder::BuildResponse| message.info.unwrap().build_id;
    let forced = || {
        let mut request = request(git_source(git()));
        request.force_rebuild = true;
        request
    };
    let (plain, one) = server.start(request(git_source(git()))).await;
    let (first, two) = server.start(forced()).await;
    let (second, three) = server.start(forced()).await;
    assert_ne!(id(plain), id(first.clone()));
    assert_eq!(id(first), id(second));
    // Both workers were started; a request to rebuild runs every step.
    let workers = [world.worker().await, world.worker().await];
    let ignoring = workers.iter().filter(|worker| {
        let options = &worker.spec.as_ref().unwrap().options;
        options.cache == engine::spec::CacheMode::Ignore
    });
    assert_eq!(ignoring.count(), 1);
    for worker in &workers {
        worker.succeed(&server);
    }
    for stream in [one, two, three] {
        assert_eq!(last(stream).await.status(), BuildStatus::DoneSuccess);
    }
    let mut again = server.build(forced()).await.unwrap();
    assert!(next(&mut again).await.unwrap().info.is_some());
    world.worker().await.die();
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workspace_image_is_unknown_then_running_then_there() {
    let world = World::new();
    let server = world.serve().await;
    let mut client = server.client().await;
    let mut resolve = async || {
        let request = ResolveWorkspaceImageRequest {
            source: Some(git_source(git())),
            ..ResolveWorkspaceImageRequest::default()
        };
        let answer = client.resolve_workspace_image(request);
        soon(answer).await.unwrap().into_inner()
    };
    let unknown = resolve().await;
    assert_eq!(unknown.status(), BuildStatus::Unknown);
    let (first, stream) = server.start(request(git_source(git()))).await;
    assert_eq!(
        (&unknown.r#ref, &unknown.base_ref),
        (&first.r#ref, &first.base_ref)
    );
    assert_eq!(resolve().await.status(), BuildStatus::Running);
    world.worker().await.succeed(&server);
    assert_eq!(last(stream).await.status(), BuildStatus::DoneSuccess);
    assert_eq!(resolve().await.status(), BuildStatus::DoneSuccess);
    server.stopped().await;
}
