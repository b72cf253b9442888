//! W11: one build that writes 100 MB of log (or as much as is wanted), a thousand subscribers, fifty of whom do not read.
//!
//! The build is a real one: a step that writes lines, each of which begins with when it was written. So what a subscriber is behind is counted
//! from the step, through its pipe, its worker, the journal and the server, to the client. Every subscriber's bytes are compared with those
//! of one that reads when the build has ended.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use api::builder::image_builder_client::ImageBuilderClient;
use api::builder::{LogsRequest, LogsResponse};
use testkit::process;
use tokio::task::JoinSet;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::context;
use crate::service::{Server, start};
use crate::workload::eprint;

const SUBSCRIBERS: usize = 1000;
/// Of them, how many do not read.
const FROZEN: usize = 50;
/// Connections that those who read share.
const CONNECTIONS: usize = 20;
/// What the step writes at a time.
const LINE_BYTES: usize = 1000;
const LINES_AT_ONCE: usize = 50;
/// Where in a line of the log it stands when it was written.
const LINE_BEGIN_BYTES: usize = 40;
/// How long the step waits for subscribers.
const HEAD_START_S: u64 = 20;
/// How long a build may take to begin.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(60);
/// Lags are told apart up to this, in milliseconds.
const LAG_MAX_MS: usize = 60_000;

/// What the build writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writes {
    /// In all, in MB.
    pub(crate) megabytes: usize,
    /// In a second, in kB.
    pub(crate) rate: usize,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Followed {
    /// How late lines came, in milliseconds: half of them, and 99 of 100.
    pub(crate) p50_ms: usize,
    pub(crate) p99_ms: usize,
    /// The most memory of the server, kernel's file cache included.
    pub(crate) peak_kib: u64,
    /// What each subscriber got.
    pub(crate) log_bytes: u64,
}

/// What one subscriber has read.
struct Bytes {
    crc: crc32fast::Hasher,
    n: u64,
    lags: Vec<u32>,
}

/// Measures the service of `kiln` with a build on `base`.
pub(crate) fn measure(kiln: &Path, scratch: &Path, base: &str, writes: Writes) -> Result<Followed> {
    let (server, address) = start(kiln, scratch, "")?;
    let folder = scratch.join("writes");
    context::plain(&folder, &dockerfile(base, writes))?;
    let mut command = process::clean_command(kiln);
    command.args(["build", "--quiet", "--server", &format!("http://{address}")]);
    command.arg(&folder).env("HOME", scratch);
    let mut build = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start kiln build")?;
    let runtime = tokio::runtime::Runtime::new()?;
    let followed = runtime.block_on(follow(&address, &server, writes));
    // Also when it went wrong: nothing is left running.
    let _ended = build.kill();
    build.wait()?;
    followed
}

/// Returns a Dockerfile whose step writes the log.
fn dockerfile(base: &str, writes: Writes) -> String {
    let n = writes.megabytes * 1_000_000 / LINE_BYTES / LINES_AT_ONCE;
    let pause_ms = LINES_AT_ONCE * LINE_BYTES / writes.rate.max(1);
    let script = format!(
        "sleep {HEAD_START_S}; x=$(printf '%0{}d' 0); n=0
while [ $n -lt {n} ]; do
l=\"$(date +%s%3N) $x
\"
b=; i=0; while [ $i -lt {LINES_AT_ONCE} ]; do b=\"$b$l\"; i=$((i+1)); done
printf %s \"$b\"; n=$((n+1)); sleep {}.{:03}
done",
        LINE_BYTES - 15,
        pause_ms / 1000,
        pause_ms % 1000
    );
    format!("FROM {base}\nRUN <<'EOF'\n{script}\nEOF\n")
}

async fn connect(address: &str) -> Result<ImageBuilderClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(ImageBuilderClient::new(endpoint.connect().await?))
}

async fn subscribe(
    mut client: ImageBuilderClient<Channel>,
    id: &str,
) -> Result<Streaming<LogsResponse>> {
    let request = LogsRequest {
        build_id: id.to_owned(),
        ..LogsRequest::default()
    };
    Ok(client.logs(request).await?.into_inner())
}

async fn follow(address: &str, server: &Server, writes: Writes) -> Result<Followed> {
    let id = build_id(address).await?;
    let mut frozen = Vec::new();
    for _ in 0..FROZEN {
        // Connections of their own: on a shared one, HTTP/2 itself would hold their neighbours back.
        frozen.push(subscribe(connect(address).await?, &id).await?);
    }
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(connect(address).await?);
    }
    let mut reading = JoinSet::new();
    for client in clients.iter().cycle().take(SUBSCRIBERS - FROZEN) {
        reading.spawn(read(subscribe(client.clone(), &id).await?));
    }
    eprint("W11 everybody has subscribed");
    let mut all = Vec::new();
    while let Some(one) = reading.join_next().await {
        all.push(one??);
    }
    let peak_kib = server.peak_kib()?;
    let whole = read(subscribe(connect(address).await?, &id).await?).await?;
    // Who begins to read at last gets the same.
    let late = frozen.pop().context("nobody is frozen")?;
    all.push(read(late).await?);
    let (crc, log_bytes) = (whole.crc.finalize(), whole.n);
    ensure!(
        log_bytes > writes.megabytes as u64 * 1_000_000,
        "the log has {log_bytes} bytes"
    );
    // The last one was frozen: how late its lines came says nothing.
    let n_live = all.len() - 1;
    let mut lags = vec![0_u64; LAG_MAX_MS + 1];
    for (n, one) in all.into_iter().enumerate() {
        ensure!(
            one.n == log_bytes,
            "a subscriber got {} bytes of {log_bytes}",
            one.n
        );
        ensure!(one.crc.finalize() == crc, "a subscriber got other bytes");
        if n < n_live {
            for (sum, n) in lags.iter_mut().zip(one.lags) {
                *sum += u64::from(n);
            }
        }
    }
    Ok(Followed {
        p50_ms: at(&lags, 50),
        p99_ms: at(&lags, 99),
        peak_kib,
        log_bytes,
    })
}

async fn build_id(address: &str) -> Result<String> {
    let mut client = api::kiln::v1::kiln_client::KilnClient::new(
        Endpoint::from_shared(format!("http://{address}"))?
            .connect()
            .await?,
    );
    let deadline = Instant::now() + BEGIN_TIMEOUT;
    while Instant::now() < deadline {
        let request = api::kiln::v1::ListBuildsRequest::default();
        let builds = client.list_builds(request).await?.into_inner().builds;
        let running = api::kiln::v1::BuildPhase::Running;
        if let Some(build) = builds.into_iter().find(|build| build.phase() == running) {
            return Ok(build.build_id);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("the build does not begin")
}

async fn read(mut log: Streaming<LogsResponse>) -> Result<Bytes> {
    let mut bytes = Bytes {
        crc: crc32fast::Hasher::new(),
        n: 0,
        lags: vec![0; LAG_MAX_MS + 1],
    };
    while let Some(piece) = log.message().await? {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        let ends = memchr::memchr_iter(b'\n', &piece.content).map(|end| end + 1);
        for begin in std::iter::once(0).chain(ends) {
            let line = piece.content.get(begin..).unwrap_or_default();
            let line = line
                .get(..line.len().min(LINE_BEGIN_BYTES))
                .unwrap_or_default();
            // `#5 1.234 1764300000000 000…`: its step, since when that runs, and when it was written.
            let sent = line.splitn(4, |byte| *byte == b' ').nth(2);
            let sent = sent.filter(|sent| sent.len() == 13);
            let sent = sent.and_then(|sent| std::str::from_utf8(sent).ok()?.parse().ok());
            if let Some(sent) = sent {
                let lag = usize::try_from(now_ms.saturating_sub(sent))?.min(LAG_MAX_MS);
                if let Some(n) = bytes.lags.get_mut(lag) {
                    *n += 1;
                }
            }
        }
        bytes.crc.update(&piece.content);
        bytes.n += piece.content.len() as u64;
    }
    Ok(bytes)
}

/// Returns the lag that so many of a hundred lines do not exceed.
fn at(lags: &[u64], hundredths: u64) -> usize {
    let total: u64 = lags.iter().sum();
    let mut left = total * hundredths / 100;
    for (lag, n) in lags.iter().enumerate() {
        if left <= *n {
            return lag;
        }
        left -= n;
    }
    LAG_MAX_MS
}
