//! After a restart: builds that live are followed, builds that died are ended, logs are there.

use std::time::Duration;

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

/// Returns how many names the server knows something of.
fn n_names(world: &World) -> usize {
    let names = std::fs::read_dir(world.state().join("server/names"));
    names.unwrap().count()
}

async fn names_become(world: &World, n: usize) {
    let become_so = async {
        while n_names(world) != n {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(become_so).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_a_name_goes_when_no_build_of_it_is_kept_and_nothing_stands_under_it() {
    let world = World::new();
    // Names stay the same, whichever port is next.
    let address = "address = \"kiln.example:80\"\n";
    let server = world.serve_with(address).await;
    let (_, stream) = server.start(crate::admission::numbered(1)).await;
    let good = world.worker().await;
    good.succeed(&server);
    last(stream).await;
    let (_, stream) = server.start(crate::admission::numbered(2)).await;
    let bad = world.worker().await;
    bad.fail(FailureKind::Dockerfile, "x");
    last(stream).await;
    server.stopped().await;
    // Of each, a base and a workspace image.
    assert_eq!(n_names(&world), 4);

    // While its builds are kept, a name is too.
    let server = world.serve_with(address).await;
    let listed = server
        .client()
        .await
        .list_builds(ListBuildsRequest {})
        .await;
    listed.unwrap();
    server.stopped().await;
    assert_eq!(n_names(&world), 4);

    let server = world
        .serve_with(&format!("{address}[server]\nretention = \"0s\"\n"))
        .await;
    let forgotten = async {
        while good.folder.exists() || bad.folder.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(forgotten).await;
    server.stopped().await;
    let server = world.serve_with(address).await;
    names_become(&world, 2).await;
    server.stopped().await;
    assert_eq!(n_names(&world), 2);

    // The images that were made are deleted.
    let server = world.serve_with(address).await;
    for output in &good.spec.as_ref().unwrap().outputs {
        let engine::spec::Output::Publish { reference } = output else {
            panic!("the service publishes only");
        };
        let tag = reference.tag().unwrap();
        let removed = server.store.delete_tag(reference.repository(), tag);
        assert!(removed.unwrap());
    }
    server.stopped().await;
    let server = world.serve_with(address).await;
    names_become(&world, 0).await;
    server.stopped().await;
}
