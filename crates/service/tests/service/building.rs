//! Build: what its stream says, and how failures are told.

use api::builder::BuildStatus;
use api::kiln::v1 as native;
use engine::event::{FailureKind, Phase};
use engine::spec::{CacheMode, Context, Output, Source};
use tonic::Code;

use crate::harness::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_build_says_that_it_runs_what_changes_and_how_it_ended() {
    let world = World::new();
    let server = world.serve().await;
    let (first, mut stream) = server.start(request(git_source(git()))).await;
    let info = first.info.clone().unwrap();
    assert_eq!(info.r#ref, first.r#ref);
    assert_eq!(info.base_ref, first.base_ref);
    assert_eq!(info.status(), BuildStatus::Running);
    assert!(info.started_at > 1_600_000_000);
    assert!(
        first
            .base_ref
            .starts_with(&format!("{}/base-images:", server.address))
    );
    assert!(
        first
            .r#ref
            .starts_with(&format!("{}/workspace-images:", server.address))
    );
    let log_info = info.log_info.unwrap();
    assert_eq!(
        log_info.url,
        format!("{}/logs/{}", server.url(), info.build_id)
    );

    let worker = world.worker().await;
    assert_eq!(worker.record.id.as_str(), info.build_id);
    assert_eq!(worker.record.triggered_by, "somebody");
    worker.phase(Phase::Running);
    let changed = next(&mut stream).await.unwrap();
    assert_eq!(
        (changed.status(), changed.message.as_str()),
        (BuildStatus::Running, "running steps")
    );
    worker.succeed(&server);
    let last = next(&mut stream).await.unwrap();
    assert_eq!(last.status(), BuildStatus::DoneSuccess);
    assert_eq!(
        (&last.r#ref, &last.base_ref),
        (&first.r#ref, &first.base_ref)
    );
    assert!(next(&mut stream).await.is_none());

    // The second time there is nothing to do: one message, no info.
    let mut stream = server.build(request(git_source(git()))).await.unwrap();
    let only = next(&mut stream).await.unwrap();
    assert_eq!(only.status(), BuildStatus::DoneSuccess);
    assert!(only.info.is_none());
    assert_eq!(
        (&only.r#ref, &only.base_ref),
        (&first.r#ref, &first.base_ref)
    );
    assert!(next(&mut stream).await.is_none());
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_is_told_what_was_asked_and_nothing_else() {
    let world = World::new();
    let server = world.serve().await;
    let mut asked = request(git_source(git()));
    asked.supervisor_ref = "supervisor:1".to_owned();
    asked.auth = Some(api::builder::BuildRegistryAuth {
        mode: None,
        additional: [("r.example".to_owned(), "dTpwOnE=".to_owned())].into(),
    });
    let (first, _stream) = server.start(asked).await;
    let worker = world.worker().await;
    let spec = worker.spec.as_ref().unwrap();
    let Source::Dockerfile {
        context: Context::Git(git),
        dockerfile,
        context_path,
    } = &spec.source
    else {
        panic!("{:?}", spec.source);
    };
    assert_eq!(git.target, COMMIT);
    assert_eq!(
        (dockerfile.as_deref(), context_path.as_deref()),
        (Some("Dockerfile"), Some("."))
    );
    let published: Vec<String> = spec
        .outputs
        .iter()
        .map(|output| match output {
            Output::Publish { reference } => reference.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(published, [first.base_ref, first.r#ref]);
    assert_eq!(
        spec.registries.pull.hosts().collect::<Vec<_>>(),
        ["r.example"]
    );
    assert_eq!(spec.registries.publish.hosts().count(), 0);
    assert!(spec.registries.embedded.contains(&server.address));
    assert_eq!(spec.options.cache, CacheMode::Use);
    assert_eq!(worker.record.supervisor_ref, "supervisor:1");
    let stored = std::fs::read_to_string(worker.folder.join("record.json")).unwrap();
    assert!(!stored.contains("dTpwOnE"));
    worker.die();
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_build_is_a_message_and_no_error() {
    let world = World::new();
    let server = world.serve().await;
    for (kind, said, expected) in [
        (
            FailureKind::Dockerfile,
            "RUN make: exit code 2",
            "build failed: RUN make: exit code 2",
        ),
        (
            FailureKind::Timeout,
            "timed out after 60m",
            "build failed: timed out after 60m",
        ),
        (
            FailureKind::BaseImageMissing,
            "x",
            "build failed: base image does not exist: x",
        ),
        (FailureKind::BaseImage, "x", "cannot resolve image: x"),
    ] {
        let (first, stream) = server.start(request(git_source(git()))).await;
        world.worker().await.fail(kind, said);
        let last = last(stream).await;
        assert_eq!(last.status(), BuildStatus::DoneFailure);
        assert_eq!(last.message, expected);
        assert_eq!(last.info.unwrap().build_id, first.info.unwrap().build_id);
    }
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_without_a_word_ends_its_build() {
    let world = World::new();
    let server = world.serve().await;
    let (_, stream) = server.start(request(git_source(git()))).await;
    world.worker().await.die();
    let last = last(stream).await;
    assert_eq!(last.status(), BuildStatus::DoneFailure);
    assert!(last.message.contains("gone"), "{}", last.message);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_cannot_be_started_ends_and_its_log_says_why() {
    let world = World::new();
    let server = world.serve().await;
    world.scripted.refuse();
    let (first, stream) = server.start(request(git_source(git()))).await;
    let last = last(stream).await;
    assert_eq!(last.status(), BuildStatus::DoneFailure);
    assert!(
        last.message.contains("no room for another process"),
        "{}",
        last.message
    );
    let log = server.whole_log(by_id(&first.info.unwrap().build_id)).await;
    assert!(log.contains("no room for another process"), "{log}");
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_stops_nothing() {
    let world = World::new();
    let server = world.serve().await;
    let (first, stream) = server.start(request(git_source(git()))).await;
    drop(stream);
    let worker = world.worker().await;
    worker.output(b"still here\n");
    let (again, stream) = server.start(request(git_source(git()))).await;
    assert_eq!(again.info.unwrap().build_id, first.info.unwrap().build_id);
    worker.succeed(&server);
    assert_eq!(last(stream).await.status(), BuildStatus::DoneSuccess);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_is_cancelled_by_request_while_it_runs_and_while_it_waits() {
    let world = World::new();
    let server = world.serve_with("[server]\nmax_running_builds = 1").await;
    let mut client = server.native().await;
    let (running, running_stream) = server.start(request(git_source(git()))).await;
    let _worker = world.worker().await;
    let mut other = git();
    other.remote_uri = "https://example.com/other.git".to_owned();
    let (waiting, waiting_stream) = server.start(request(git_source(other))).await;
    for (message, stream) in [(waiting, waiting_stream), (running, running_stream)] {
        let build_id = message.info.unwrap().build_id;
        let request = native::CancelBuildRequest {
            build_id: build_id.clone(),
        };
        soon(client.cancel_build(request)).await.unwrap();
        let last = last(stream).await;
        assert_eq!(last.status(), BuildStatus::DoneFailure);
        assert_eq!(last.message, "build failed: it was cancelled");
        let request = native::GetBuildRequest { build_id };
        let build = soon(client.get_build(request))
            .await
            .unwrap()
            .into_inner()
            .build
            .unwrap();
        assert_eq!(build.phase(), native::BuildPhase::Cancelled);
    }
    let nobodys = native::CancelBuildRequest {
        build_id: "x".to_owned(),
    };
    let error = soon(client.cancel_build(nobodys)).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::NotFound, "build not found")
    );
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_beyond_the_limit_wait_in_order_and_then_are_refused() {
    let world = World::new();
    let server = world
        .serve_with("[server]\nmax_running_builds = 1\nmax_queued_builds = 2")
        .await;
    let numbered = |n: u32| {
        let mut git = git();
        git.remote_uri = format!("https://example.com/{n}.git");
        request(git_source(git))
    };
    let (_, first) = server.start(numbered(0)).await;
    let worker = world.worker().await;
    let (_, second) = server.start(numbered(1)).await;
    let (_, third) = server.start(numbered(2)).await;
    let error = server.build(numbered(9)).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    let listed = soon(
        server
            .client()
            .await
            .list_builds(api::builder::ListBuildsRequest {}),
    )
    .await
    .unwrap()
    .into_inner();
    assert_eq!(listed.builds.len(), 3);
    assert!(
        listed
            .builds
            .iter()
            .all(|build| build.status() == BuildStatus::Running)
    );
    assert!(!world.has_worker().await);
    worker.succeed(&server);
    assert_eq!(last(first).await.status(), BuildStatus::DoneSuccess);
    for stream in [second, third] {
        world.worker().await.succeed(&server);
        assert_eq!(last(stream).await.status(), BuildStatus::DoneSuccess);
    }
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_listed_is_told_as_its_own_stream_tells_it() {
    let world = World::new();
    let server = world.serve().await;
    let mut client = server.client().await;
    let mut other = git();
    other.remote_uri = "https://example.com/other.git".to_owned();
    let mut started = Vec::new();
    for git in [git(), other] {
        let (first, stream) = server.start(request(git_source(git))).await;
        started.push((first.info.unwrap(), world.worker().await, stream));
    }
    let mut listed = async || {
        let answer = soon(client.list_builds(api::builder::ListBuildsRequest {})).await;
        let mut builds = answer.unwrap().into_inner().builds;
        builds.sort_by(|a, b| a.build_id.cmp(&b.build_id));
        builds
    };
    let mut told: Vec<_> = started.iter().map(|(info, ..)| info.clone()).collect();
    told.sort_by(|a, b| a.build_id.cmp(&b.build_id));
    assert_ne!(told[0].log_info, told[1].log_info);
    assert_eq!(listed().await, told);

    // One that has ended is not listed any more, however it ended; a new one is.
    let (gone, worker, stream) = started.remove(0);
    worker.fail(FailureKind::Dockerfile, "x");
    assert_eq!(last(stream).await.status(), BuildStatus::DoneFailure);
    told.retain(|info| info.build_id != gone.build_id);
    assert_eq!(listed().await, told);
    let (_, worker, stream) = started.remove(0);
    worker.succeed(&server);
    assert_eq!(last(stream).await.status(), BuildStatus::DoneSuccess);
    assert_eq!(listed().await, []);
    server.stopped().await;
}
