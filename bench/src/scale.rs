//! `make scale`: what the n-th of something costs, and what many at once cost.
//!
//! History is written to disk by our own crates, as builds would have written it; then the real server is started over it.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use api::kiln::v1::kiln_client::KilnClient;
use api::kiln::v1::{GetLogRequest, ListBuildsRequest};
use engine::event::{Event, Failure, FailureKind, StepId, Stream};
use engine::id::BuildId;
use engine::journal::{Body, FILE_NAME, Record as Entry, Writer};
use engine::spec::{Purpose, Record};
use store::Store;
use testkit::process;
use tonic::transport::{Channel, Endpoint};

use crate::context;
use crate::memory::Sampler;
use crate::service::{self, Server};
use crate::workload::eprint;

/// How much history there is.
const SIZES: [usize; 3] = [10, 1000, 100_000];
/// Builds at once.
const AT_ONCE: usize = 32;
/// How often something short is done to know how long it takes.
const TRIES: usize = 20;
/// A line of a log, without its step and time.
const LINE_BYTES: usize = 100;

/// Measures everything; returns what is to be told, line by line.
pub(crate) fn measure(kiln: &Path, scratch: &Path, base: &str) -> Result<Vec<String>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let mut told = Vec::new();
    let mut tell = |line: String| {
        eprint(&line);
        told.push(line);
    };
    tell(at_once(kiln, scratch, base)?);
    for n in SIZES {
        tell(runtime.block_on(nth_line(kiln, scratch, n))?);
        tell(nth_blob(scratch, n)?);
        tell(runtime.block_on(nth_build(kiln, scratch, (base, n)))?);
    }
    Ok(told)
}

/// Builds as many one after another, then at once.
fn at_once(kiln: &Path, scratch: &Path, base: &str) -> Result<String> {
    let config =
        format!("server.max_running_builds = {AT_ONCE}\ncontexts.max_uploads = {AT_ONCE}\n");
    let (_server, address) = service::start(kiln, scratch, &config)?;
    let folder = |what: &str, n: usize| scratch.join(format!("scale-{what}-{n}"));
    for what in ["one", "all", "warm"] {
        for n in 0..AT_ONCE {
            let text = format!(
                "FROM {base}\nRUN i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo {what} {n} > /made\n"
            );
            context::plain(&folder(what, n), &text)?;
        }
    }
    // The base is there before anything is measured.
    ended(start(kiln, &address, &folder("warm", 0))?)?;
    let began = Instant::now();
    for n in 0..AT_ONCE {
        ended(start(kiln, &address, &folder("one", n))?)?;
    }
    let one_by_one = began.elapsed().as_secs_f64();
    let memory = Sampler::start(Vec::new(), scratch.display().to_string());
    let began = Instant::now();
    let mut running = (0..AT_ONCE)
        .map(|n| start(kiln, &address, &folder("all", n)).map(Some))
        .collect::<Result<Vec<Option<Child>>>>()?;
    let mut took = Vec::new();
    while took.len() < AT_ONCE {
        for one in &mut running {
            let is_done = one.as_mut().map(Child::try_wait).transpose()?.flatten();
            if let Some(status) = is_done {
                ensure!(status.success(), "a build failed");
                took.push(began.elapsed().as_secs_f64());
                *one = None;
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let peak = memory.finish() >> 20;
    let (first, last) = (took.first().context("none")?, took.last().context("none")?);
    Ok(format!(
        "{AT_ONCE} builds one after another: {one_by_one:.1} s; at once: {last:.1} s, the first after {first:.1} s; {peak} MiB at most, clients, server, workers and steps together"
    ))
}

fn start(kiln: &Path, address: &str, folder: &Path) -> Result<Child> {
    let mut command = process::clean_command(kiln);
    command.args(["build", "--quiet", "--server", &format!("http://{address}")]);
    command.arg(folder).env("HOME", folder);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    child.context("start kiln build")
}

fn ended(mut build: Child) -> Result<()> {
    ensure!(build.wait()?.success(), "a build failed");
    Ok(())
}

/// A log of `n` lines: what one more costs, and what it costs to read all of it, and its last line.
async fn nth_line(kiln: &Path, scratch: &Path, n: usize) -> Result<String> {
    let state = scratch.join("scale-lines");
    crate::peer::remove_tree(&state);
    let mut written = write_build(&state, 0)?;
    let line = |writer: &mut Writer| append(writer, &format!("{}\n", "x".repeat(LINE_BYTES - 1)));
    for _ in 0..n {
        line(&mut written.writer)?;
    }
    let began = Instant::now();
    for _ in 0..TRIES {
        line(&mut written.writer)?;
    }
    let appending = began.elapsed() / u32::try_from(TRIES)?;
    written.end()?;
    let (_server, address) = serve(kiln, scratch, &state)?;
    let mut client = client(&address).await?;
    // The first one to read finds no marks.
    let first = read_log(&mut client, &written.id, 0).await?;
    let all = read_log(&mut client, &written.id, 0).await?;
    let end = first.1.saturating_sub(100);
    let mut last = Vec::new();
    for _ in 0..TRIES {
        last.push(read_log(&mut client, &written.id, end).await?.0);
    }
    last.sort_unstable();
    let last = last.get(TRIES / 2).copied().unwrap_or_default();
    Ok(format!(
        "the line after {n}: appended in {appending:.1?}; a reader has the whole log of {} bytes after {:.1?} (for the first time {:.1?}), its last 100 bytes after {last:.1?}",
        first.1, all.0, first.0
    ))
}

async fn read_log(
    client: &mut KilnClient<Channel>,
    id: &BuildId,
    offset: u64,
) -> Result<(Duration, u64)> {
    let request = GetLogRequest {
        build_id: id.to_string(),
        offset,
        follow: true,
        ..GetLogRequest::default()
    };
    let (began, mut n) = (Instant::now(), 0);
    let mut log = client.get_log(request).await?.into_inner();
    while let Some(piece) = log.message().await? {
        n += piece.content.len() as u64;
    }
    Ok((began.elapsed(), n))
}

/// A store of `n` blobs: what one more costs, and to look one up.
fn nth_blob(scratch: &Path, n: usize) -> Result<String> {
    let folder = scratch.join("scale-blobs");
    crate::peer::remove_tree(&folder);
    let store = Store::open(&folder, None)?;
    let blobs = folder.join("blobs/sha256");
    for i in 0..n {
        // As the store would leave it, but without waiting for the disk a hundred thousand times.
        let bytes = format!("blob {i}");
        let digest = oci::Digest::sha256(bytes.as_bytes());
        let path = blobs.join(digest.hex());
        if fs::write(&path, &bytes).is_err() {
            fs::create_dir_all(&blobs)?;
            fs::write(&path, &bytes)?;
        }
    }
    settle(&folder)?;
    let mut committing = Vec::new();
    let mut looking = Vec::new();
    for i in 0..TRIES {
        let bytes = format!("another blob {i}");
        let began = Instant::now();
        let digest = store.put(bytes.as_bytes())?;
        committing.push(began.elapsed());
        let began = Instant::now();
        ensure!(store.size_of(&digest)?.is_some(), "a blob is not there");
        looking.push(began.elapsed());
    }
    committing.sort_unstable();
    looking.sort_unstable();
    let middle = |all: &[Duration]| all.get(TRIES / 2).copied().unwrap_or_default();
    Ok(format!(
        "the blob after {n}: committed in {:.1?}, looked up in {:.1?}",
        middle(&committing),
        middle(&looking)
    ))
}

/// A server with `n` builds that have ended: how long it takes to start, to list, and to build once more what is in the cache.
async fn nth_build(kiln: &Path, scratch: &Path, (base, n): (&str, usize)) -> Result<String> {
    let state = scratch.join("scale-builds");
    crate::peer::remove_tree(&state);
    for i in 0..n {
        let mut written = write_build(&state, i)?;
        append(&mut written.writer, "a line\n")?;
        written.end()?;
        written.age(&state)?;
    }
    settle(&state)?;
    let began = Instant::now();
    let (server, address) = serve(kiln, scratch, &state)?;
    let starting = began.elapsed();
    let mut client = client(&address).await?;
    let mut listing = Vec::new();
    for _ in 0..TRIES {
        let began = Instant::now();
        client.list_builds(ListBuildsRequest::default()).await?;
        listing.push(began.elapsed());
    }
    listing.sort_unstable();
    let listing = listing.get(TRIES / 2).copied().unwrap_or_default();
    let folder = scratch.join("scale-trivial");
    context::plain(&folder, &format!("FROM {base}\nRUN true\n"))?;
    ended(start(kiln, &address, &folder)?)?;
    let mut building = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        ended(start(kiln, &address, &folder)?)?;
        building.push(began.elapsed());
    }
    building.sort_unstable();
    let building = building.get(2).copied().unwrap_or_default();
    Ok(format!(
        "the build after {n}: the server starts in {starting:.1?}, lists in {listing:.1?}, builds what is in the cache in {building:.1?}; {} MiB",
        server.peak_kib()? / 1024
    ))
}

/// Waits until everything is on the disk: what has grown for weeks owes it nothing, and else whoever is measured waits for all of it.
fn settle(folder: &Path) -> Result<()> {
    rustix::fs::syncfs(fs::File::open(folder)?)?;
    Ok(())
}

/// A build that is written to disk.
struct Written {
    id: BuildId,
    writer: Writer,
}

impl Written {
    fn end(&mut self) -> Result<()> {
        let failure = Failure {
            kind: FailureKind::Dockerfile,
            message: "the command failed".to_owned(),
            step: None,
            exit_code: Some(1),
        };
        let body = Body::Event(Event::Failed { failure });
        self.writer.append(&Entry {
            at_ms: now_ms()?,
            body,
        })?;
        Ok(())
    }

    /// Makes it one of yesterday. A server waits for the disk for each end that was written within the last hour, one after another.
    fn age(&self, state: &Path) -> Result<()> {
        let journal = state.join("builds").join(self.id.as_str()).join(FILE_NAME);
        let yesterday = SystemTime::now() - Duration::from_secs(24 * 3600);
        fs::File::options()
            .append(true)
            .open(journal)?
            .set_modified(yesterday)?;
        Ok(())
    }
}

fn write_build(state: &Path, n: usize) -> Result<Written> {
    let mut random = [7; 16];
    for (to, from) in random.iter_mut().zip((n as u64).to_le_bytes()) {
        *to = from;
    }
    let id = BuildId::from_random(random);
    let folder = state.join("builds").join(id.as_str());
    fs::create_dir_all(&folder)?;
    let record = Record {
        id: id.clone(),
        tenant: "default".to_owned(),
        triggered_by: "somebody".to_owned(),
        caller: String::new(),
        supervisor_ref: String::new(),
        reference: format!("registry.example/app:{n}"),
        base_reference: String::new(),
        started_at_ms: now_ms()?,
        key: format!("key {n}"),
        purpose: Purpose::Named,
        request: String::new(),
        labels: std::collections::BTreeMap::new(),
    };
    fs::write(folder.join("record.json"), serde_json::to_vec(&record)?)?;
    let writer = Writer::create(&folder)?;
    Ok(Written { id, writer })
}

fn append(writer: &mut Writer, text: &str) -> Result<()> {
    let body = Body::Output {
        step: StepId(1),
        stream: Stream::Stdout,
        bytes: text.as_bytes().to_vec(),
    };
    writer.append(&Entry {
        at_ms: now_ms()?,
        body,
    })?;
    Ok(())
}

fn serve(kiln: &Path, scratch: &Path, state: &Path) -> Result<(Server, String)> {
    let config = scratch.join("scale.toml");
    fs::write(&config, "egress.reach = \"private\"\n")?;
    service::start_over(kiln, state, &config)
}

async fn client(address: &str) -> Result<KilnClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(KilnClient::new(endpoint.connect().await?))
}

fn now_ms() -> Result<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(now.as_millis())?)
}
