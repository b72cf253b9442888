//! Many who read the log of one build, some of whom do not read: how late it comes to the others, and that it holds nobody back, least of all
//! the build.

use std::sync::Arc;
use std::time::Instant;

use api::builder::BuildRequest;
use api::kiln::v1::kiln_client::KilnClient;
use api::kiln::v1::watch_build_response::Body;
use api::kiln::v1::{GetLogRequest, GetLogResponse, LogForm, WatchBuildRequest};
use serde_json::Value;
use testkit::docker_registry::DockerRegistry;
use testkit::faults::soak_time;
use testkit::figures::{Figures, Goal};
use tonic::Streaming;

use super::{channels, now_ms, number, peak_bytes, percentile};
use crate::scene::{BUILD_TIMEOUT, Scene, Target};

/// Logs are as long as they get here.
const CONFIG: &str = "limits.log_bytes = 4000000000\nlimits.step_log_bytes = 4000000000\n";
/// Readers of one connection.
const READERS_PER_CONNECTION: usize = 50;
/// What F2 and F4 want.
const LAG_MS_MAX: f64 = 250.0;
const PEAK_MIB_MAX: f64 = 256.0;
const ALONE_MB_S_MIN: f64 = 100.0;
const READ_MB_S_MIN: f64 = 50.0;

/// What one reader has got: a checksum, and where each piece ended and when it came.
struct Got {
    crc: u32,
    pieces: Vec<(u64, u64)>,
}

/// What the journal says of the step that writes: when it ran, and where each record of its output ends and when it was made.
#[derive(Default)]
struct Written {
    step: u32,
    ran: (u64, u64),
    /// What others had written before it.
    before: u64,
    records: Vec<(u64, u64)>,
}

impl Written {
    /// Where the log ends.
    fn end(&self) -> u64 {
        self.records.last().map_or(self.before, |(end, _)| *end)
    }

    fn bytes(&self) -> u64 {
        self.end() - self.before
    }

    fn mb_per_s(&self) -> f64 {
        let ms = self.ran.1.saturating_sub(self.ran.0).max(1);
        number(self.bytes()) / 1000.0 / number(ms)
    }
}

async fn subscribe(
    mut client: KilnClient<tonic::transport::Channel>,
    id: &str,
) -> Streaming<GetLogResponse> {
    let request = GetLogRequest {
        build_id: id.to_owned(),
        form: LogForm::Raw.into(),
        follow: true,
        ..GetLogRequest::default()
    };
    client.get_log(request).await.unwrap().into_inner()
}

async fn read(mut log: Streaming<GetLogResponse>) -> Got {
    let (mut crc, mut end, mut pieces) = (crc32fast::Hasher::new(), 0, Vec::new());
    while let Some(piece) = log.message().await.unwrap() {
        assert_eq!(piece.offset, end, "a piece in the wrong place");
        crc.update(&piece.content);
        end += piece.content.len() as u64;
        pieces.push((end, now_ms()));
    }
    Got {
        crc: crc.finalize(),
        pieces,
    }
}

/// Reads what the journal of a build has of the step whose name has `mark` in it.
async fn written(scene: &Scene, id: &str, mark: &str) -> Written {
    let request = WatchBuildRequest {
        build_id: id.to_owned(),
        skip: 0,
    };
    let mut client = scene.kiln.native().await;
    let mut records = client.watch_build(request).await.unwrap().into_inner();
    let mut written = Written::default();
    while let Some(record) = records.message().await.unwrap() {
        let at_ms = u64::try_from(record.at_ms).unwrap();
        match record.body.unwrap() {
            Body::Event(event) => {
                let event: Value = serde_json::from_str(&event).unwrap();
                let step = u32::try_from(event["step"].as_u64().unwrap_or_default()).unwrap();
                match event["type"].as_str().unwrap() {
                    "step_started" if event["name"].as_str().unwrap().contains(mark) => {
                        written.step = step;
                        written.ran.0 = at_ms;
                    }
                    "step_finished" if step == written.step => written.ran.1 = at_ms,
                    _ => {}
                }
            }
            Body::Output(output) if written.step == 0 => {
                written.before += output.data.len() as u64;
            }
            Body::Output(output) => {
                let end = written.end() + output.data.len() as u64;
                written.records.push((end, at_ms));
            }
        }
    }
    written
}

/// Starts a build and returns its id.
async fn begin(scene: &Scene, request: BuildRequest) -> String {
    let mut client = scene.kiln.image_builder().await;
    let mut stream = client.build(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    first.info.unwrap().build_id
}

/// Has so many read the log of a build to its end; returns what each has got.
async fn read_by_many(scene: &Scene, id: &str, n: usize) -> tokio::task::JoinSet<Got> {
    let channels = channels(scene, n.div_ceil(READERS_PER_CONNECTION)).await;
    let mut readers = tokio::task::JoinSet::new();
    for n in 0..n {
        let channel = channels[n / READERS_PER_CONNECTION].clone();
        readers.spawn(read(subscribe(KilnClient::new(channel), id).await));
    }
    readers
}

async fn all(readers: tokio::task::JoinSet<Got>) -> Vec<Got> {
    tokio::time::timeout(BUILD_TIMEOUT, readers.join_all())
        .await
        .unwrap()
}

/// Panics unless every reader has got the same bytes, all that were written.
fn same(all: &[Got], written: &Written) {
    for got in all {
        let end = got.pieces.last().map_or(0, |(end, _)| *end);
        assert_eq!(end, written.end(), "a reader missed something");
        assert_eq!(got.crc, all[0].crc, "a reader got other bytes");
    }
}

/// Returns how late each record came to each reader, in milliseconds.
fn lags(all: &[Got], written: &Written) -> Vec<u64> {
    let mut lags = Vec::with_capacity(all.len() * written.records.len());
    for got in all {
        let mut pieces = got.pieces.iter();
        let mut piece = pieces.next();
        for (end, at_ms) in &written.records {
            while piece.is_some_and(|(read, _)| read < end) {
                piece = pieces.next();
            }
            lags.push(piece.unwrap().1.saturating_sub(*at_ms));
        }
    }
    lags
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_a_log_as_it_grows_is_not_late_whoever_else_does_or_does_not() {
    // Readers, those who do not read, how many kB are written at a time, for how many times 50 ms, and what passes before.
    let (n_readers, n_frozen, kb, times, head_start) = match soak_time() {
        Some(_) => (950, 50, 50, 600, 20),
        None => (60, 5, 10, 40, 3),
    };
    let scene = Scene::around(DockerRegistry::start(), Target::Embedded, CONFIG);
    let base = scene.busybox();
    let text = format!(
        "FROM {base}\nRUN yes 'something that is worth reading' | head -c {kb}000 > /block; sleep {head_start}; \
         i=0; while [ $i -lt {times} ]; do cat /block; sleep 0.05; i=$((i+1)); done\n"
    );
    let id = begin(&scene, scene.dockerfile("app", &text)).await;
    let mut frozen = Vec::new();
    for channel in channels(&scene, n_frozen).await {
        // Connections of their own: on a shared one, HTTP/2 itself would hold their neighbours back.
        frozen.push(subscribe(KilnClient::new(channel), &id).await);
    }
    let readers = read_by_many(&scene, &id, n_readers).await;
    let subscribed_at = now_ms();
    let readers = all(readers).await;
    let peak = peak_bytes(&scene);
    let written = written(&scene, &id, "/block").await;
    let first = written.records.first().unwrap().1;
    assert!(
        subscribed_at < first,
        "they came {} ms late",
        subscribed_at - first
    );
    assert_eq!(written.bytes(), kb * 1000 * times);
    same(&readers, &written);
    let mut lags = lags(&readers, &written);
    let last = written.records.last().unwrap().1;
    let late = read(frozen.pop().unwrap()).await;
    assert_eq!(late.crc, readers[0].crc, "who reads at last gets the same");
    let mut figures = Figures::of("F2");
    figures.told("readers", number(n_readers as u64));
    figures.told("who do not read", number(n_frozen as u64));
    let rate = number(written.bytes()) / number(last - first);
    figures.told("kB written in a second", rate);
    figures.told("behind by, median ms", percentile(&mut lags, 50));
    figures.soak(
        "behind by, p99 ms",
        percentile(&mut lags, 99),
        Goal::AtMost(LAG_MS_MAX),
    );
    let mib = number(peak as u64) / f64::from(1 << 20);
    figures.soak(
        "memory of the server, peak MiB",
        mib,
        Goal::AtMost(PEAK_MIB_MAX),
    );
    figures.hold();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_writes_its_log_as_fast_with_many_readers_as_with_none() {
    let (n_readers, megabytes) = match soak_time() {
        Some(_) => (100, 300),
        None => (10, 10),
    };
    let scene = Scene::around(DockerRegistry::start(), Target::Embedded, CONFIG);
    let base = scene.busybox();
    let line = "x".repeat(99);
    let text = |name: &str, head_start: u32| {
        format!(
            "FROM {base}\nRUN sleep {head_start}\nRUN yes {line} | head -c {megabytes}000000; : {name}\n"
        )
    };
    let request = scene.dockerfile("alone", &text("alone", 3));
    let id = begin(&scene, request.clone()).await;
    // Who waits for its end reads nothing of its log.
    let same_build = scene.build(request).await.build_id().unwrap();
    assert_eq!(same_build, id, "another build has written beside it");
    let alone = written(&scene, &id, "head -c").await;

    let id = begin(&scene, scene.dockerfile("read", &text("read", 3))).await;
    let readers = read_by_many(&scene, &id, n_readers).await;
    let (began, readers) = (Instant::now(), Arc::new(all(readers).await));
    let took = began.elapsed();
    let read = written(&scene, &id, "head -c").await;
    for one in [&alone, &read] {
        assert_eq!(one.bytes(), megabytes * 1_000_000);
    }
    same(&readers, &read);
    let mut figures = Figures::of("F4");
    figures.soak(
        "MB/s without readers",
        alone.mb_per_s(),
        Goal::AtLeast(ALONE_MB_S_MIN),
    );
    figures.soak(
        "MB/s with readers",
        read.mb_per_s(),
        Goal::AtLeast(READ_MB_S_MIN),
    );
    figures.told("readers", number(n_readers as u64));
    figures.told("seconds until all have read all", took.as_secs_f64());
    let mib = number(peak_bytes(&scene) as u64) / f64::from(1 << 20);
    figures.told("memory of the server, peak MiB", mib);
    figures.hold();
}
