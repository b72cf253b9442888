//! Which builds are taken on, in which order, and what those are told that wait.

use std::collections::BTreeSet;

use api::builder::{BuildStatus, ListBuildsRequest};
use api::kiln::v1 as wire;
use engine::event::FailureKind;
use oci::Digest;
use tonic::Code;

use crate::harness::*;
use crate::tenants::{A, B, by, callers};

/// Returns a request that is unlike those of other numbers.
pub(crate) fn numbered(n: u32) -> api::builder::BuildRequest {
    let mut git = git();
    git.remote_uri = format!("https://example.com/{n}.git");
    request(git_source(git))
}

type Stream = tonic::Streaming<api::builder::BuildResponse>;

/// Requests a build; returns its id and its stream.
async fn build(server: &Server, token: &str, n: u32) -> Result<(String, Stream), tonic::Status> {
    let mut client = server.client().await;
    let mut stream = soon(client.build(by(token, numbered(n))))
        .await?
        .into_inner();
    let first = next(&mut stream).await.unwrap();
    Ok((first.info.unwrap().build_id, stream))
}

fn without_callers(config: &str) -> String {
    format!("[server]\nmax_running_builds = 1\n{config}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_waits_says_how_many_come_before_it() {
    let world = World::new();
    let server = world.serve_with(&without_callers("")).await;
    let mut native = server.native().await;
    let (_, first) = server.start(numbered(0)).await;
    let worker = world.worker().await;
    let (_, second) = server.start(numbered(1)).await;
    let (told, third) = server.start(numbered(2)).await;
    let id = told.info.unwrap().build_id;
    let get = wire::GetBuildRequest {
        build_id: id.clone(),
    };
    let told = async |native: &mut api::kiln::v1::kiln_client::KilnClient<_>| {
        let answer = soon(native.get_build(get.clone())).await.unwrap();
        answer.into_inner().build.unwrap()
    };
    soon(async {
        while told(&mut native).await.message != "waiting for its turn: 1 build comes before it" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(told(&mut native).await.phase(), wire::BuildPhase::Queued);
    assert_eq!(told(&mut native).await.builds_ahead, Some(1));
    worker.succeed(&server);
    last(first).await;
    soon(async {
        while told(&mut native).await.message != "waiting for its turn: it is the next" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Its log says so too, and is the same however often it is read.
    let log = tokio::spawn(read_to_end(server.logs(by_id(&id)).await.unwrap()));
    world.worker().await.succeed(&server);
    last(second).await;
    let worker = world.worker().await;
    assert_eq!(worker.record.id.as_str(), id);
    worker.output(b"runs\n");
    worker.fail(FailureKind::Dockerfile, "x");
    last(third).await;
    let text = String::from_utf8(soon(log).await.unwrap().unwrap()).unwrap();
    let (before, after) = text.split_once("1 build comes before it").unwrap();
    assert!(
        !before.contains("runs") && after.contains("it is the next"),
        "{text}"
    );
    assert_eq!(server.whole_log(by_id(&id)).await, text);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_that_wait_survive_a_restart_and_run_in_their_order() {
    let world = World::new();
    let config = "base_image_repository = \"127.0.0.1:1/base\"\nworkspace_image_repository = \"127.0.0.1:1/ws\"\n".to_owned()
        + &without_callers("");
    let server = world.serve_with(&config).await;
    let mut native = server.native().await;
    let start = |n: u32| {
        let mut request = crate::native::request();
        request.request_id = format!("request-{n}");
        // What it needs is nowhere but in its worker.
        request
            .secrets
            .insert("token".to_owned(), b"word-of-the-caller".to_vec());
        request
    };
    let mut ids = Vec::new();
    for n in 0..4 {
        let answer = Box::pin(soon(native.start_build(start(n)))).await.unwrap();
        ids.push(answer.into_inner().build.unwrap().build_id);
    }
    let running = world.worker().await;
    assert!(!world.has_worker().await);
    let cancelled = wire::CancelBuildRequest {
        build_id: ids[2].clone(),
    };
    soon(native.cancel_build(cancelled)).await.unwrap();
    server.stopped().await;
    assert!(
        !world.has_worker().await,
        "nothing begins because a server goes"
    );

    let server = world.serve_with(&config).await;
    let mut native = server.native().await;
    assert!(
        !world.has_worker().await,
        "the one that runs has the only place"
    );
    let again = Box::pin(soon(native.start_build(start(1))))
        .await
        .unwrap()
        .into_inner();
    assert!(again.already_started);
    assert_eq!(again.build.unwrap().build_id, ids[1]);
    running.fail(FailureKind::Dockerfile, "x");
    for n in [1, 3] {
        let worker = world.worker().await;
        assert_eq!(worker.record.id.as_str(), ids[n]);
        let secrets = &worker.spec.as_ref().unwrap().secrets;
        assert!(secrets.contains_key("token"));
        worker.fail(FailureKind::Dockerfile, "x");
    }
    let get = wire::GetBuildRequest {
        build_id: ids[2].clone(),
    };
    let build = soon(native.get_build(get))
        .await
        .unwrap()
        .into_inner()
        .build;
    assert_eq!(build.unwrap().phase(), wire::BuildPhase::Cancelled);
    assert!(!world.has_worker().await);
    for entry in std::fs::read_dir(world.state().join("builds")).unwrap() {
        for file in std::fs::read_dir(entry.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read(&path).unwrap_or_default();
            assert!(
                !text.windows(18).any(|text| text == b"word-of-the-caller"),
                "{path:?}"
            );
        }
    }
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_build_is_told_which_limit_it_has_met() {
    let world = World::new();
    let config = format!(
        "{}[server]\nmax_running_builds = 1\nmax_queued_builds = 3\n[admission.tenants.a]\nqueued = 2\n",
        callers()
    );
    let server = world.serve_with(&config).await;
    let mut streams = vec![build(&server, A, 0).await.unwrap()];
    streams.push(build(&server, A, 1).await.unwrap());
    streams.push(build(&server, A, 2).await.unwrap());
    let refused = build(&server, A, 3).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("tenant_queued"), "{refused:?}");
    streams.push(build(&server, B, 3).await.unwrap());
    let refused = build(&server, B, 4).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(
        refused.message().contains("server.max_queued_builds"),
        "{refused:?}"
    );
    // The same as one that waits is that one.
    let (id, _stream) = build(&server, A, 2).await.unwrap();
    assert_eq!(id, streams[2].0);
    // The other tenant's build comes before the second one of the first.
    let mut order = Vec::new();
    for _ in 0..4 {
        let worker = world.worker().await;
        order.push(worker.record.id.to_string());
        worker.fail(FailureKind::Dockerfile, "x");
    }
    let came: Vec<&String> = [0, 3, 1, 2].iter().map(|n| &streams[*n].0).collect();
    let as_set = |ids: &[&String]| ids.iter().map(|id| (*id).clone()).collect::<BTreeSet<_>>();
    assert_eq!(as_set(&order.iter().collect::<Vec<_>>()), as_set(&came));
    assert_eq!(&order[0], came[0]);
    assert_ne!(&order[3], came[1], "{order:?}");
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_collected_before_a_build_is_refused() {
    let world = World::new();
    let server = world
        .serve_with("[admission]\nmin_free_bytes = 1000000\n")
        .await;
    *world.scripted.free_bytes.lock().unwrap() = 900_000;
    *world.scripted.freed_bytes.lock().unwrap() = 200_000;
    let (_, stream) = server.start(numbered(0)).await;
    let worker = world.worker().await;
    {
        let collections = world.scripted.collections.lock().unwrap();
        assert_eq!(collections.len(), 1);
        assert!(collections[0].min_free_bytes.unwrap() >= 1_000_000);
    }
    *world.scripted.free_bytes.lock().unwrap() = 10;
    *world.scripted.freed_bytes.lock().unwrap() = 0;
    // Who joins needs no room.
    let (_, joined) = server.start(numbered(0)).await;
    for n in 1..4 {
        let refused = server.build(numbered(n)).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(
            refused.message().contains("admission.min_free_bytes"),
            "{refused:?}"
        );
    }
    // One collection has told that there is no more to be had for a while.
    assert_eq!(world.scripted.collections.lock().unwrap().len(), 2);
    *world.scripted.free_bytes.lock().unwrap() = 2_000_000;
    let (_, other) = server.start(numbered(5)).await;
    world.worker().await.succeed(&server);
    worker.succeed(&server);
    for stream in [stream, joined, other] {
        assert_eq!(last(stream).await.status(), BuildStatus::DoneSuccess);
    }
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_identical_requests_at_once_are_one_build_f17() {
    const N: usize = 1000;
    let world = World::new();
    let server = world.serve().await;
    // A connection has 256 streams.
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(server.client().await);
    }
    let requests = (0..N).map(|n| {
        let mut client = clients[n % clients.len()].clone();
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
    let ids: BTreeSet<&String> = joined.iter().map(|(id, _)| id).collect();
    assert_eq!(
        ids.into_iter().collect::<Vec<_>>(),
        [worker.record.id.as_str()]
    );
    let listed = soon(clients[0].list_builds(ListBuildsRequest {}))
        .await
        .unwrap();
    assert_eq!(listed.into_inner().builds.len(), 1);
    let digest: Digest = worker.succeed(&server);
    let mut n_told = 0;
    for (_, stream) in joined {
        let end = last(stream).await;
        assert_eq!(end.status(), BuildStatus::DoneSuccess, "{digest}");
        n_told += 1;
    }
    assert!(!world.has_worker().await);
    assert_eq!(n_told, N);
    println!("F17: {N} identical requests at once: 1 build, {n_told} answers");
    server.stopped().await;
}
