//! F2: one build, a thousand readers of its log, fifty of whom do not read.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::kiln::v1 as wire;
use api::kiln::v1::kiln_client::KilnClient;
use engine::event::FailureKind;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::harness::*;

const READERS: usize = 1000;
const FROZEN: usize = 50;
const CHANNELS: usize = 20;
/// Bytes of a line, all of them.
const LINE_BYTES: usize = 1000;
/// Lines of a build that writes all at once.
const LINES: usize = 200;
/// For how long one writes at the rate that `KILN_SUBSCRIBERS_KB_PER_S` says.
const SECONDS: usize = 10;

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap().as_millis()).unwrap()
}

/// What was written, or read: a hash of every byte, and how many.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Bytes {
    hash: u64,
    n: usize,
}

impl Bytes {
    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = self.hash.wrapping_mul(31).wrapping_add(u64::from(*byte));
        }
        self.n += bytes.len();
    }
}

async fn subscribe(mut client: KilnClient<Channel>, id: &str) -> Streaming<wire::GetLogResponse> {
    let asked = wire::GetLogRequest {
        build_id: id.to_owned(),
        follow: true,
        form: wire::LogForm::Raw.into(),
        ..wire::GetLogRequest::default()
    };
    soon(client.get_log(asked)).await.unwrap().into_inner()
}

/// Reads to the end; returns what it was, and how late each line came: lines begin with when they were written.
async fn read(mut log: Streaming<wire::GetLogResponse>) -> (Bytes, Vec<u64>) {
    let (mut bytes, mut lags) = (Bytes::default(), Vec::new());
    while let Some(piece) = log.message().await.unwrap() {
        let now_ms = now_ms();
        for line in piece.content.split_inclusive(|byte| *byte == b'\n') {
            let sent = line.get(..13).and_then(|at| std::str::from_utf8(at).ok());
            let sent: Option<u64> = sent.and_then(|at| at.parse().ok());
            lags.extend(sent.map(|sent| now_ms.saturating_sub(sent)));
        }
        bytes.take(&piece.content);
    }
    (bytes, lags)
}

/// Writes lines: all at once, or so many a second.
async fn write(worker: &Worker, rate: Option<usize>) -> Bytes {
    let mut bytes = Bytes::default();
    let begun = tokio::time::Instant::now();
    for n in 0..rate.map_or(LINES, |rate| rate * SECONDS) {
        let line = format!("{:013} {}\n", now_ms(), "x".repeat(LINE_BYTES - 15));
        bytes.take(line.as_bytes());
        worker.output(line.as_bytes());
        if let Some(rate) = rate {
            let due = Duration::from_micros(n as u64 * 1_000_000 / rate as u64);
            tokio::time::sleep_until(begun + due).await;
        }
    }
    bytes
}

/// With `KILN_SUBSCRIBERS_KB_PER_S`, the build writes at that rate, and a line tells how far readers are behind and what this process,
/// which is server and all clients, takes.
#[expect(clippy::disallowed_methods, reason = "a measurement on request")]
fn rate() -> Option<usize> {
    let rate = std::env::var("KILN_SUBSCRIBERS_KB_PER_S").ok()?;
    Some(rate.parse().unwrap())
}

#[expect(clippy::print_stdout, reason = "a measurement on request")]
fn tell(rate: usize, mut lags: Vec<u64>) {
    lags.sort_unstable();
    let at = |part: usize| lags[lags.len() * part / 100 - 1];
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    println!(
        "F2 readers={READERS} frozen={FROZEN} kb_per_s={rate} lag_p50_ms={} lag_p99_ms={} peak={}",
        at(50),
        at(99),
        peak.unwrap().trim()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_readers_get_every_byte_while_fifty_do_not_read() {
    let world = World::new();
    let server = world.serve().await;
    let id = crate::native::started(&server, crate::native::request()).await;
    let worker = world.worker().await;
    let mut clients = Vec::new();
    for _ in 0..CHANNELS {
        clients.push(server.native().await);
    }
    let (mut frozen, mut reading) = (Vec::new(), Vec::new());
    // Those that do not read have connections of their own: on a shared one, HTTP/2 itself would hold their neighbours back.
    for _ in 0..FROZEN {
        frozen.push(subscribe(server.native().await, &id).await);
    }
    for n in FROZEN..READERS {
        let client = clients[n % CHANNELS].clone();
        reading.push(tokio::spawn(read(subscribe(client, &id).await)));
    }
    let rate = rate();
    let written = write(&worker, rate).await;
    worker.fail(FailureKind::Dockerfile, "x");
    let mut lags = Vec::new();
    for reader in reading {
        let (bytes, its) = tokio::time::timeout(4 * PATIENCE, reader)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(bytes, written);
        lags.extend(its);
    }
    if let Some(rate) = rate {
        tell(rate, lags);
    }
    // Who begins to read at last gets the same.
    let (bytes, _) = read(frozen.pop().unwrap()).await;
    assert_eq!(bytes, written);
    drop((frozen, clients));
    server.stopped().await;
}
