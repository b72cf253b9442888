//! Many callers at once: who ask for the same, who wait, and who are of different tenants.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use api::builder::image_builder_client::ImageBuilderClient;
use api::builder::{BuildRequest, BuildStatus, LogsRequest};
use api::kiln::v1::{CancelBuildRequest, ListBuildsRequest};
use testkit::faults::{figure, soak_time};
use tonic::transport::Channel;

use super::{channels, resident_bytes};
use crate::scene::{BUILD_TIMEOUT, Scene, Target};

/// Streams of one connection; the server allows more.
const STREAMS_PER_CONNECTION: usize = 200;
/// What F3 allows for one stream.
const STREAM_BYTES_MAX: usize = 32 << 10;

/// Asks for a build and stays until its end; returns its id, where it was told.
async fn ask(channel: Channel, request: BuildRequest) -> Option<String> {
    let mut client = ImageBuilderClient::new(channel);
    let mut stream = client.build(request).await.unwrap().into_inner();
    let (mut id, mut last) = (None, None);
    while let Some(response) = stream.message().await.unwrap() {
        if let Some(info) = &response.info {
            id = Some(info.build_id.clone());
        }
        last = Some(response);
    }
    let last = last.unwrap();
    assert_eq!(last.status(), BuildStatus::DoneSuccess, "{}", last.message);
    id.filter(|id| !id.is_empty())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_who_ask_for_the_same_at_once_get_one_build() {
    const CALLERS: usize = 1000;
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let text = format!("FROM {base}\nRUN sleep 4; echo it r'an'\n");
    let request = scene.dockerfile("app", &text);
    let channels = channels(&scene, CALLERS.div_ceil(STREAMS_PER_CONNECTION)).await;
    let callers: Vec<_> = (0..CALLERS)
        .map(|n| {
            let channel = channels[n / STREAMS_PER_CONNECTION].clone();
            tokio::spawn(ask(channel, request.clone()))
        })
        .collect();
    let mut ids = BTreeSet::new();
    let mut n_told = 0;
    for caller in callers {
        let id = tokio::time::timeout(BUILD_TIMEOUT, caller).await.unwrap();
        let id = id.unwrap();
        n_told += usize::from(id.is_some());
        ids.extend(id);
    }
    let mut native = scene.kiln.native().await;
    let listed = native.list_builds(ListBuildsRequest::default()).await;
    let n_builds = listed.unwrap().into_inner().builds.len();
    figure(
        "F17",
        &[
            ("callers", CALLERS.to_string()),
            ("joined", n_told.to_string()),
            ("builds", n_builds.to_string()),
        ],
    );
    assert_eq!((ids.len(), n_builds), (1, 1));
    let log = scene.log(ids.first().unwrap()).await;
    assert_eq!(log.matches("it ran\n").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_wait_cost_little_and_end_with_their_build() {
    let n_logs = if soak_time().is_some() { 10_000 } else { 1000 };
    let n_builds = n_logs / 2;
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let text = format!("FROM {base}\nRUN echo beg'un'; sleep 600\n");
    let request = scene.dockerfile("app", &text);
    let mut client = scene.kiln.image_builder().await;
    let mut stream = client.build(request.clone()).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    let id = first.info.unwrap().build_id;
    // What is allocated once, however many come.
    let mut streams = readers(&scene, &id, 200).await;
    let before = resident_bytes(&scene);
    streams.extend(readers(&scene, &id, n_logs).await);
    let channels = channels(&scene, n_builds.div_ceil(STREAMS_PER_CONNECTION)).await;
    let mut watchers = Vec::new();
    for n in 0..n_builds {
        let mut client = ImageBuilderClient::new(channels[n / STREAMS_PER_CONNECTION].clone());
        let mut watcher = client.build(request.clone()).await.unwrap().into_inner();
        let first = watcher.message().await.unwrap().unwrap();
        assert_eq!(first.info.unwrap().build_id, id);
        watchers.push(watcher);
    }
    let each = resident_bytes(&scene).saturating_sub(before) / (n_logs + n_builds);
    let mut native = scene.kiln.native().await;
    let request = CancelBuildRequest {
        build_id: id.clone(),
    };
    native.cancel_build(request).await.unwrap();
    let began = Instant::now();
    let ends = async {
        for mut stream in streams {
            while stream.message().await.unwrap().is_some() {}
        }
        for mut watcher in watchers {
            while watcher.message().await.unwrap().is_some() {}
        }
    };
    tokio::time::timeout(BUILD_TIMEOUT, ends).await.unwrap();
    figure(
        "F3",
        &[
            ("logs_streams", n_logs.to_string()),
            ("build_streams", n_builds.to_string()),
            ("bytes_each", each.to_string()),
            ("all_ended_ms", began.elapsed().as_millis().to_string()),
        ],
    );
    assert!(each <= STREAM_BYTES_MAX, "{each} bytes for each stream");
}

/// Starts so many readers of a log that have seen its beginning.
async fn readers(
    scene: &Scene,
    id: &str,
    n: usize,
) -> Vec<tonic::Streaming<api::builder::LogsResponse>> {
    let channels = channels(scene, n.div_ceil(STREAMS_PER_CONNECTION)).await;
    let mut readers = Vec::new();
    for n in 0..n {
        let mut client = ImageBuilderClient::new(channels[n / STREAMS_PER_CONNECTION].clone());
        let request = LogsRequest {
            build_id: id.to_owned(),
            ..LogsRequest::default()
        };
        let mut reader = client.logs(request).await.unwrap().into_inner();
        let mut seen = String::new();
        while !seen.contains("begun") {
            let piece = tokio::time::timeout(Duration::from_secs(60), reader.message()).await;
            let piece = piece.unwrap().unwrap().unwrap();
            seen.push_str(&String::from_utf8_lossy(&piece.content));
        }
        readers.push(reader);
    }
    readers
}
