//! As many builds as a server takes on, of tenants who want the same, on a machine that is busy with them: who waits, how many run, and how
//! soon it answers meanwhile.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use api::builder::image_builder_client::ImageBuilderClient;
use api::builder::{BuildRequest, BuildStatus, build_source};
use api::kiln::v1::kiln_client::KilnClient;
use api::kiln::v1::watch_build_response::Body;
use api::kiln::v1::{ListBuildsRequest, WatchBuildRequest, WatchBuildResponse};
use serde_json::Value;
use testkit::docker_registry::DockerRegistry;
use testkit::faults::soak_time;
use testkit::figures::{Figures, Goal};
use testkit::git_server::File;
use tonic::Request;
use tonic::transport::Channel;

use super::{Ledger, check, now_ms, number, percentile};
use crate::scene::{BUILD_TIMEOUT, Scene, Target, request};

const TENANTS: usize = 4;
/// Stands in the command of each step, and nowhere else on the machine.
const MARK: &str = "0.398761";
/// Between two lists that somebody asks for.
const LIST_PAUSE: Duration = Duration::from_millis(50);

/// How much there is of everything.
struct Load {
    builds: usize,
    in_flight: usize,
    steps: usize,
}

impl Load {
    fn asked() -> Self {
        match soak_time() {
            Some(_) => Self {
                builds: 256,
                in_flight: 32,
                steps: 4,
            },
            None => Self {
                builds: 24,
                in_flight: 6,
                steps: 2,
            },
        }
    }
}

/// What is seen of one build, in milliseconds.
#[derive(Debug, Default, Clone)]
struct Seen {
    tenant: usize,
    accepted_in: u64,
    accepted_at: u64,
    turn_at: u64,
    /// When its step began and ended, by its journal.
    step: (u64, u64),
    ended_at: u64,
    /// How long after the beginning of its step its first byte was here.
    first_byte: Option<u64>,
    end: String,
}

fn token(tenant: usize) -> String {
    format!("0123456789abcdef-of-tenant-{tenant}")
}

fn by<T>(tenant: usize, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {}", token(tenant)).parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

fn config(load: &Load) -> String {
    let mut text = format!(
        "server.max_running_builds = {}\nserver.max_queued_builds = {}\nadmission.tenant_queued = {}\nlimits.parallel_steps_in_all = {}\n",
        load.in_flight, load.builds, load.builds, load.steps
    );
    for tenant in 0..TENANTS {
        let digest =
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token(tenant).as_bytes());
        let hash = digest
            .as_ref()
            .iter()
            .fold(String::new(), |mut hash, byte| {
                write!(hash, "{byte:02x}").unwrap();
                hash
            });
        write!(
            text,
            "[[callers]]\nname = \"caller-{tenant}\"\ntenant = \"tenant-{tenant}\"\nrights = [\"build\"]\ntoken_sha256 = [\"{hash}\"]\n"
        )
        .unwrap();
    }
    text
}

/// A repository with a Dockerfile for every build, and the requests to build them.
fn requests(scene: &Scene, n: usize) -> Vec<BuildRequest> {
    let base = scene.busybox();
    // One process for each step: what it counts keeps the machine busy, and then it waits.
    let text = |n: usize| {
        format!(
            "FROM {base}\nRUN echo beg'un'; i={n}; while [ $i -lt 20{n:03} ]; do i=$((i+1)); done; exec sleep {MARK}\n"
        )
    };
    let names: Vec<String> = (0..n).map(|n| format!("Dockerfile.{n}")).collect();
    let files: Vec<File> = names
        .iter()
        .enumerate()
        .map(|(n, name)| File::new(name, text(n)))
        .collect();
    let commit = scene.git.repository("app").commit("main", &files);
    let url = scene.git.url("app");
    let one = |name: String| {
        let mut request = request(&url, &commit);
        let source = request.source.as_mut().unwrap();
        let Some(build_source::From::File(file)) = source.from.as_mut() else {
            panic!("not a file source")
        };
        file.dockerfile_path = name;
        request
    };
    names.into_iter().map(one).collect()
}

/// Asks for a build as published clients do, and watches it to its end.
async fn build(
    channel: Channel,
    tenant: usize,
    request: BuildRequest,
) -> tokio::task::JoinHandle<Seen> {
    let mut client = ImageBuilderClient::new(channel.clone());
    let began = Instant::now();
    let mut stream = client
        .build(by(tenant, request))
        .await
        .unwrap()
        .into_inner();
    let first = stream.message().await.unwrap().unwrap();
    let accepted_in = u64::try_from(began.elapsed().as_millis()).unwrap();
    assert_ne!(
        first.status(),
        BuildStatus::DoneFailure,
        "{}",
        first.message
    );
    let mut seen = Seen {
        tenant,
        accepted_in,
        accepted_at: now_ms(),
        ..Seen::default()
    };
    let id = first.info.clone().unwrap().build_id;
    tokio::spawn(async move {
        let watch = WatchBuildRequest {
            build_id: id,
            skip: 0,
        };
        let mut native = KilnClient::new(channel);
        let mut records = native
            .watch_build(by(tenant, watch))
            .await
            .unwrap()
            .into_inner();
        let (mut steps, mut ours) = (HashMap::new(), 0);
        while let Some(record) = records.message().await.unwrap() {
            note(&mut seen, (&mut steps, &mut ours), &record);
        }
        let mut last = first;
        while let Some(response) = stream.message().await.unwrap() {
            last = response;
        }
        if last.status() != BuildStatus::DoneSuccess {
            seen.end = last.message;
        }
        seen
    })
}

/// Asks for builds one after another, as soon as the one before was accepted.
async fn begin_all(
    channel: Channel,
    tenant: usize,
    requests: Vec<BuildRequest>,
) -> Vec<tokio::task::JoinHandle<Seen>> {
    let mut builds = Vec::new();
    for request in requests {
        builds.push(build(channel.clone(), tenant, request).await);
    }
    builds
}

fn note(
    seen: &mut Seen,
    (steps, ours): (&mut HashMap<u64, String>, &mut u64),
    record: &WatchBuildResponse,
) {
    let at_ms = u64::try_from(record.at_ms).unwrap();
    match record.body.as_ref().unwrap() {
        Body::Event(event) => {
            let event: Value = serde_json::from_str(event).unwrap();
            let step = event["step"].as_u64().unwrap_or_default();
            match event["type"].as_str().unwrap() {
                "phase" if event["phase"] == "resolving" => seen.turn_at = at_ms,
                "step_started" => {
                    let name = event["name"].as_str().unwrap();
                    if name.contains(MARK) && !name.starts_with("waiting") {
                        (*ours, seen.step.0) = (step, at_ms);
                    }
                    steps.insert(step, name.to_owned());
                }
                "step_finished" if step == *ours => seen.step.1 = at_ms,
                "succeeded" | "failed" | "cancelled" => seen.ended_at = at_ms,
                _ => {}
            }
        }
        Body::Output(output) if u64::from(output.step) == *ours => {
            let since = now_ms().saturating_sub(seen.step.0);
            seen.first_byte.get_or_insert(since);
        }
        Body::Output(_) => {}
    }
}

/// Asks for lists until told to stop; returns how long each took, in milliseconds.
async fn list(channel: Channel, stop: Arc<AtomicBool>) -> Vec<u64> {
    let mut native = KilnClient::new(channel);
    let mut took = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let request = by(took.len() % TENANTS, ListBuildsRequest::default());
        native.list_builds(request).await.unwrap();
        took.push(u64::try_from(began.elapsed().as_millis()).unwrap());
        tokio::time::sleep(LIST_PAUSE).await;
    }
    took
}

/// Counts processes of steps until told to stop; returns the most there were at once.
fn count(stop: &AtomicBool, most: &AtomicUsize) {
    while !stop.load(Ordering::Relaxed) {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let commands = processes.filter_map(|one| std::fs::read(one.path().join("cmdline")).ok());
        let is_step = |command: &Vec<u8>| {
            let text = String::from_utf8_lossy(command);
            let program = text.split('\0').next().unwrap_or_default();
            text.contains(MARK) && (program.ends_with("sh") || program.ends_with("sleep"))
        };
        most.fetch_max(commands.filter(is_step).count(), Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the most of these times that overlap.
fn most_at_once(times: impl Iterator<Item = (u64, u64)>) -> usize {
    let mut changes: Vec<(u64, i32)> = times
        .flat_map(|(begin, end)| [(begin, 1), (end, -1)])
        .collect();
    // At the same moment, ends come first.
    changes.sort_unstable();
    let (mut now, mut most) = (0, 0);
    for (_, change) in changes {
        now += change;
        most = most.max(now);
    }
    usize::try_from(most).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_builds_as_are_taken_on_all_end_and_nobody_waits_longer_than_others() {
    let load = Load::asked();
    let scene = Scene::around(DockerRegistry::start(), Target::Embedded, &config(&load));
    let requests = requests(&scene, load.builds);
    let before = Ledger::of(&scene.kiln);
    let stop = Arc::new(AtomicBool::new(false));
    let lists = tokio::spawn(list(scene.kiln.channel().await, Arc::clone(&stop)));
    let (stop_counting, most) = (Arc::clone(&stop), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&most);
    let counting = std::thread::spawn(move || count(&stop_counting, &counted));
    let began = Instant::now();
    let mut callers = Vec::new();
    for tenant in 0..TENANTS {
        let mine = requests.iter().skip(tenant).step_by(TENANTS).cloned();
        let channel = scene.kiln.channel().await;
        callers.push(tokio::spawn(begin_all(channel, tenant, mine.collect())));
    }
    let mut all = Vec::new();
    for caller in callers {
        for one in caller.await.unwrap() {
            let seen = tokio::time::timeout(BUILD_TIMEOUT, one).await;
            all.push(seen.unwrap().unwrap());
        }
    }
    let took = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    counting.join().unwrap();
    let lists = lists.await.unwrap();
    tell_answers(&all, lists);
    judge(&load, &all, (most.load(Ordering::Relaxed), took));
    check(&scene.kiln);
    Ledger::settles(&before, &scene.kiln).await;
}

/// How soon the server answers meanwhile is told and not held: that depends on what else the machine does.
fn tell_answers(all: &[Seen], mut lists: Vec<u64>) {
    let mut accepted: Vec<u64> = all.iter().map(|one| one.accepted_in).collect();
    let mut first_bytes: Vec<u64> = all.iter().filter_map(|one| one.first_byte).collect();
    assert_eq!(first_bytes.len(), all.len(), "a step wrote nothing");
    let mut figures = Figures::of("F24");
    let mut p99 = |what, all: &mut [u64], most| {
        figures.soak(what, percentile(all, 99), Goal::AtMost(most));
    };
    p99("ListBuilds, p99 ms", &mut lists, 50.0);
    p99("Build until accepted, p99 ms", &mut accepted, 100.0);
    p99(
        "first byte after its step's start, p99 ms",
        &mut first_bytes,
        300.0,
    );
}

fn judge(load: &Load, all: &[Seen], (processes, took): (usize, Duration)) {
    let failed: Vec<&str> = all
        .iter()
        .map(|one| &*one.end)
        .filter(|end| !end.is_empty())
        .collect();
    let at_once = most_at_once(all.iter().map(|one| (one.turn_at, one.ended_at)));
    let steps = most_at_once(all.iter().map(|one| one.step));
    // All of them want their builds from the beginning on, however soon the server takes note.
    let began = all.iter().map(|one| one.accepted_at).min();
    let mean = |tenant: usize| {
        let waits: Vec<u64> = all
            .iter()
            .filter(|one| one.tenant == tenant)
            .map(|one| one.turn_at.saturating_sub(began.unwrap_or_default()))
            .collect();
        f64::from(u32::try_from(waits.iter().sum::<u64>()).unwrap())
            / f64::from(u32::try_from(waits.len()).unwrap())
    };
    let waits: Vec<f64> = (0..TENANTS).map(mean).collect();
    let longest = waits.iter().copied().fold(0.0, f64::max);
    let shortest = waits.iter().copied().fold(f64::MAX, f64::min).max(1.0);
    let number = |n: usize| number(n as u64);
    let mut figures = Figures::of("F1");
    figures.must(
        "builds that did not end well",
        number(failed.len()),
        Goal::AtMost(0.0),
    );
    figures.must(
        "builds in flight",
        number(at_once),
        Goal::AtMost(number(load.in_flight)),
    );
    figures.must(
        "steps at once, by journals",
        number(steps),
        Goal::AtMost(number(load.steps)),
    );
    figures.must(
        "steps at once, by /proc",
        number(processes),
        Goal::AtMost(number(load.steps)),
    );
    figures.soak(
        "longest mean wait of a tenant by the shortest",
        longest / shortest,
        Goal::AtMost(2.0),
    );
    figures.told("builds", number(all.len()));
    figures.told("seconds for all", took.as_secs_f64());
    assert!(failed.is_empty(), "{failed:?}");
    // Less would show nothing.
    assert!(at_once > load.in_flight / 2 && steps == load.steps && processes > 0);
    figures.hold();
}
