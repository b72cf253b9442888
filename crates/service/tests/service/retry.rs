//! Requests that are made once more, and how long they are kept.

use std::collections::HashMap;
use std::time::Duration;

use api::builder as published;
use api::kiln::v1 as wire;
use engine::event::FailureKind;
use tonic::Code;

use crate::harness::{
    PATIENCE, Server, World, git, git_source, request as published_request, soon,
};
use crate::native::{request, started};

async fn retry(
    server: &Server,
    request: wire::RetryBuildRequest,
) -> Result<wire::RetryBuildResponse, tonic::Status> {
    let mut client = server.native().await;
    Ok(Box::pin(soon(client.retry_build(request)))
        .await?
        .into_inner())
}

async fn get(server: &Server, build_id: &str) -> Result<wire::GetBuildResponse, tonic::Status> {
    let mut client = server.native().await;
    let request = wire::GetBuildRequest {
        build_id: build_id.to_owned(),
    };
    Ok(soon(client.get_build(request)).await?.into_inner())
}

async fn ended(server: &Server, build_id: &str) {
    soon(async {
        while get(server, build_id)
            .await
            .unwrap()
            .build
            .unwrap()
            .ended_at_ms
            == 0
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_made_once_more_also_after_a_restart() {
    let world = World::new();
    let server = world.serve().await;
    let asked = wire::StartBuildRequest {
        target: "run".to_owned(),
        build_args: HashMap::from([("A".to_owned(), "b".to_owned())]),
        request_labels: HashMap::from([("team".to_owned(), "a".to_owned())]),
        request_id: "once".to_owned(),
        ..request()
    };
    let id = started(&server, asked).await;
    let worker = world.worker().await;
    let again = wire::RetryBuildRequest {
        build_id: id.clone(),
        ..wire::RetryBuildRequest::default()
    };
    let refused = retry(&server, again.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    worker.fail(FailureKind::Registry, "503");
    ended(&server, &id).await;
    server.stopped().await;
    let server = world.serve().await;
    let answer = retry(&server, again.clone()).await.unwrap();
    assert!(!answer.already_started);
    let build = answer.build.unwrap();
    assert_ne!(build.build_id, id);
    assert_eq!(build.request_labels["kiln.retry-of"], id);
    assert_eq!(build.request_labels["team"], "a");
    let worker = world.worker().await;
    let spec = worker.spec.as_ref().unwrap();
    assert_eq!(spec.options.target.as_deref(), Some("run"));
    assert_eq!(spec.options.build_args["A"], "b");
    // A retry has an id of its own, if any.
    let with_id = wire::RetryBuildRequest {
        request_id: "twice".to_owned(),
        ..again.clone()
    };
    let one = retry(&server, with_id.clone())
        .await
        .unwrap()
        .build
        .unwrap();
    let two = retry(&server, with_id).await.unwrap();
    assert!(two.already_started);
    assert_eq!(two.build.unwrap().build_id, one.build_id);
    for unknown in ["", "x", &"a".repeat(26)] {
        let unknown = wire::RetryBuildRequest {
            build_id: unknown.to_owned(),
            ..again.clone()
        };
        assert_eq!(
            retry(&server, unknown).await.unwrap_err().code(),
            Code::NotFound
        );
    }
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_secret_is_not_kept_and_is_asked_for() {
    let world = World::new();
    let server = world.serve().await;
    let asked = wire::StartBuildRequest {
        secrets: HashMap::from([("npm".to_owned(), b"hunter2-secret".to_vec())]),
        auth: Some(published::BuildRegistryAuth {
            additional: HashMap::from([("r.example".to_owned(), "bWU6aHVudGVyMg==".to_owned())]),
            ..published::BuildRegistryAuth::default()
        }),
        ..request()
    };
    let id = started(&server, asked).await;
    world.worker().await.fail(FailureKind::Registry, "503");
    ended(&server, &id).await;
    let kept = world.state().join("server/requests").join(&id);
    let kept = std::fs::read(kept).unwrap();
    for secret in ["hunter2", "bWU6aHVudGVyMg"] {
        let text = String::from_utf8_lossy(&kept).into_owned();
        assert!(!text.contains(secret), "{secret} is in {text:?}");
    }
    let told = get(&server, &id)
        .await
        .unwrap()
        .detail
        .unwrap()
        .request
        .unwrap();
    assert_eq!(told.secrets, ["npm"]);
    assert_eq!(told.credentials, ["r.example"]);
    assert!(!told.files);
    let again = wire::RetryBuildRequest {
        build_id: id,
        ..wire::RetryBuildRequest::default()
    };
    let refused = retry(&server, again.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(
        refused.message().contains("npm") && refused.message().contains("r.example"),
        "{refused}"
    );
    let given = wire::RetryBuildRequest {
        secrets: HashMap::from([("npm".to_owned(), b"another".to_vec())]),
        auth: Some(published::BuildRegistryAuth {
            additional: HashMap::from([("r.example".to_owned(), "bWU6b3RoZXI=".to_owned())]),
            ..published::BuildRegistryAuth::default()
        }),
        ..again
    };
    retry(&server, given).await.unwrap();
    let worker = world.worker().await;
    assert_eq!(
        worker.spec.as_ref().unwrap().secrets["npm"].reveal(),
        b"another"
    );
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_of_the_published_api_is_made_once_more_too() {
    let world = World::new();
    let server = world.serve().await;
    let (first, _stream) = server.start(published_request(git_source(git()))).await;
    let id = first.info.unwrap().build_id;
    let worker = world.worker().await;
    worker.fail(FailureKind::Registry, "503");
    ended(&server, &id).await;
    let again = wire::RetryBuildRequest {
        build_id: id.clone(),
        ..wire::RetryBuildRequest::default()
    };
    let answer = retry(&server, again.clone()).await.unwrap();
    assert!(!answer.already_started);
    let second = world.worker().await;
    assert_eq!(second.record.reference, worker.record.reference);
    // It runs already.
    let answer = retry(&server, again.clone()).await.unwrap();
    assert!(answer.already_started);
    assert_eq!(answer.build.unwrap().build_id, second.record.id.as_str());
    second.succeed(&server);
    ended(&server, second.record.id.as_str()).await;
    let refused = retry(&server, again).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_builds_take_no_more_than_they_may_and_go_with_everything() {
    let world = World::new();
    let server = world.serve().await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        let id = started(&server, request()).await;
        let worker = world.worker().await;
        worker.output(&vec![b'x'; 60_000]);
        worker.output(&vec![b'x'; 60_000]);
        worker.fail(FailureKind::Source, "x");
        ended(&server, &id).await;
        ids.push(id);
        // They end one after the other.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let running = started(&server, request()).await;
    let worker = world.worker().await;
    worker.output(&vec![b'x'; 60_000]);
    server.stopped().await;
    // Room for two of them and a bit. What runs does not count and does not go.
    let server = world
        .serve_with("[server]\nretention_bytes = 300000\n")
        .await;
    let forgotten = async {
        while get(&server, &ids[1]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, forgotten).await.unwrap();
    for (n, id) in ids.iter().enumerate() {
        let is_kept = n >= 2;
        assert_eq!(get(&server, id).await.is_ok(), is_kept, "{n}");
        for file in ["builds", "server/requests"] {
            assert_eq!(
                world.state().join(file).join(id).exists(),
                is_kept,
                "{file} {n}"
            );
        }
    }
    assert!(get(&server, &running).await.is_ok());
    worker.fail(FailureKind::Source, "x");
    server.stopped().await;
}
