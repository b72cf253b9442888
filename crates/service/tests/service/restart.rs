//! After a restart: builds that live are followed, builds that died are ended, logs are there.

use api::builder::{BuildStatus, ListBuildsRequest};
use api::kiln::v1 as native;
use engine::event::FailureKind;

use crate::harness::*;

fn fixed() -> String {
    // Names stay the same although the port does not.
    "base_image_repository = \"127.0.0.1:1/base\"\nworkspace_image_repository = \"127.0.0.1:1/ws\""
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn living_builds_are_joined_and_dead_ones_have_ended() {
    let world = World::new();
    let server = world.serve().await;
    let (live, _one) = server.start(request(git_source(git()))).await;
    let live_worker = world.worker().await;
    let mut other = git();
    other.remote_uri = "https://example.com/other.git".to_owned();
    let (dead, _two) = server.start(request(git_source(other))).await;
    let dead_worker = world.worker().await;
    live_worker.output(b"one\n");
    server.stopped().await;
    dead_worker.die();

    let server = world.serve().await;
    let mut client = server.client().await;
    let listed = soon(client.list_builds(ListBuildsRequest {}))
        .await
        .unwrap()
        .into_inner()
        .builds;
    let live_id = live.info.unwrap().build_id;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].build_id, live_id);
    assert_eq!(listed[0].r#ref, live.r#ref);
    let dead_id = dead.info.unwrap().build_id;
    let mut native = server.native().await;
    let request = native::GetBuildRequest {
        build_id: dead_id.clone(),
    };
    let build = soon(native.get_build(request))
        .await
        .unwrap()
        .into_inner()
        .build
        .unwrap();
    assert_eq!(build.phase(), native::BuildPhase::Failed);
    assert!(server.whole_log(by_id(&dead_id)).await.contains("lost"));

    let log = tokio::spawn(read_to_end(server.logs(by_id(&live_id)).await.unwrap()));
    live_worker.output(b"two\n");
    live_worker.fail(FailureKind::Dockerfile, "x");
    let text = String::from_utf8(soon(log).await.unwrap().unwrap()).unwrap();
    assert!(text.contains("one\n") && text.contains("two\n"), "{text}");
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_joins_the_build_of_the_process_before() {
    let world = World::new();
    let config = fixed();
    // The repositories are on a registry that is not there: a request to rebuild does not ask it.
    let forced = || {
        let mut request = request(git_source(git()));
        request.force_rebuild = true;
        request
    };
    let server = world.serve_with(&config).await;
    let (first, _stream) = server.start(forced()).await;
    let worker = world.worker().await;
    server.stopped().await;
    let server = world.serve_with(&config).await;
    let (again, stream) = server.start(forced()).await;
    assert_eq!(again.info.unwrap().build_id, first.info.unwrap().build_id);
    worker.fail(FailureKind::Dockerfile, "x");
    assert_eq!(last(stream).await.status(), BuildStatus::DoneFailure);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_makes_no_sense_does_not_keep_the_service_from_starting() {
    let world = World::new();
    let builds = world.state().join("builds");
    for name in [
        "not an id",
        "aaaaaaaaaaaaaaaaaaaaaaaaaa",
        "bbbbbbbbbbbbbbbbbbbbbbbbbb",
    ] {
        std::fs::create_dir_all(builds.join(name)).unwrap();
    }
    std::fs::write(builds.join("bbbbbbbbbbbbbbbbbbbbbbbbbb/record.json"), "{").unwrap();
    let server = world.serve().await;
    let mut client = server.client().await;
    let listed = soon(client.list_builds(ListBuildsRequest {}))
        .await
        .unwrap();
    assert!(listed.into_inner().builds.is_empty());
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_ended_long_ago_is_forgotten_with_its_log() {
    let world = World::new();
    let server = world.serve().await;
    let (first, stream) = server.start(request(git_source(git()))).await;
    let worker = world.worker().await;
    worker.fail(FailureKind::Dockerfile, "x");
    last(stream).await;
    server.stopped().await;
    let server = world.serve_with("[server]\nretention = \"0s\"").await;
    let mut native = server.native().await;
    let build_id = first.info.unwrap().build_id;
    soon(async {
        loop {
            let request = native::GetBuildRequest {
                build_id: build_id.clone(),
            };
            match native.get_build(request).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(status) => return assert_eq!(status.code(), tonic::Code::NotFound),
            }
        }
    })
    .await;
    assert!(!worker.folder.exists());
    server.stopped().await;
}
