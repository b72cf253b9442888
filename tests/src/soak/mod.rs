//! What must hold whatever happens and however long: processes are killed, registries fail at random, disks fill.
//!
//! An ordinary run is short; `make soak SECONDS=…` gives each test so long. Each prints lines of figures: a name, then `key=value`; names are
//! those of docs/operations.md. What goes wrong is a panic, with the seed that makes it again.

mod cancel;
mod chaos;
mod crowd;
mod full;
mod kills;
mod load;
mod readers;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use testkit::faults::soak_time;
use testkit::process::finish;
use tonic::transport::Channel;

use crate::scene::Scene;

/// For how long, or how often, a test goes on.
struct Course {
    began: Instant,
    time: Option<Duration>,
    n_at_least: usize,
}

impl Course {
    /// So often in an ordinary run, and as long as a soak lasts.
    fn of(n_at_least: usize) -> Self {
        Self {
            began: Instant::now(),
            time: soak_time(),
            n_at_least,
        }
    }

    fn goes_on(&self, n_done: usize) -> bool {
        n_done < self.n_at_least || self.time.is_some_and(|time| self.began.elapsed() < time)
    }

    fn seconds(&self) -> String {
        self.began.elapsed().as_secs().to_string()
    }
}

/// Asks `kiln fsck` for what is wrong or left in a state directory; nothing is expected, and nothing wrong.
fn check(kiln: &testkit::kiln::Kiln) {
    let mut command = kiln.command();
    command.args(["fsck", "--state"]).arg(kiln.state());
    let output = finish(&mut command);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What must be the same before and after builds, outside of the state directory and in it.
#[derive(Debug, PartialEq, Eq)]
struct Ledger {
    cgroups: BTreeSet<PathBuf>,
    /// Processes of builds, each with the network namespace that it keeps.
    processes: BTreeSet<String>,
    /// Mounts on this machine that have to do with the state directory: what is mounted there, or from there, namespaces among it.
    mounts: BTreeSet<String>,
    /// Descriptors of the server.
    n_descriptors: usize,
    /// Folders of sessions, unfinished uploads, scratch folders of builds, reserves of journals.
    left: BTreeSet<PathBuf>,
}

impl Ledger {
    fn of(kiln: &testkit::kiln::Kiln) -> Self {
        let id = kiln.id().unwrap();
        let state = kiln.state();
        let mut left = BTreeSet::new();
        for build in entries(&state.join("builds")) {
            left.extend(
                entries(&build)
                    .into_iter()
                    .filter(|path| path.ends_with("work") || path.ends_with("reserve")),
            );
        }
        left.extend(entries(&state.join("store/ingest/uploads")));
        // The server's own session has another name after each start.
        let n_sessions = entries(&state.join("store/tmp")).len();
        left.extend((1..n_sessions).map(|n| PathBuf::from(format!("session {n}"))));
        // Others build on this machine too.
        let is_ours = |path: &PathBuf| {
            let id = path
                .file_name()
                .and_then(|name| name.to_str()?.strip_prefix("kiln-"));
            id.is_some_and(|id| state.join("builds").join(id).exists())
        };
        Self {
            cgroups: cgroups(Path::new("/sys/fs/cgroup"), 0)
                .into_iter()
                .filter(|path| is_ours(path))
                .collect(),
            processes: processes(&state, id),
            mounts: mounts(&state, id),
            n_descriptors: entries(&PathBuf::from(format!("/proc/{id}/fd"))).len(),
            left,
        }
    }

    /// Waits until everything is as it was before; panics with the difference when it does not become so.
    async fn settles(before: &Self, kiln: &testkit::kiln::Kiln) {
        let began = Instant::now();
        loop {
            let now = Self::of(kiln);
            // Connections of this process to the server, which may be kept for a while, are descriptors of the server.
            let is_same = now.cgroups.is_empty()
                && now.processes.is_empty()
                && now.mounts == before.mounts
                && now.n_descriptors <= before.n_descriptors + 8
                && now.left.is_empty();
            if is_same {
                return;
            }
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "before {before:#?}\nafter {now:#?}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Connects so often.
async fn channels(scene: &Scene, n: usize) -> Vec<Channel> {
    let mut channels = Vec::new();
    for _ in 0..n {
        channels.push(scene.kiln.channel().await);
    }
    channels
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

#[expect(clippy::cast_precision_loss, reason = "what is measured here is small")]
fn number(n: u64) -> f64 {
    n as f64
}

/// Returns the value that so many percent of all are not above.
fn percentile(all: &mut [u64], percent: usize) -> f64 {
    all.sort_unstable();
    let index = (all.len() * percent).div_ceil(100).saturating_sub(1);
    number(all.get(index).copied().unwrap_or_default())
}

/// Memory of the server: what is resident now, and what was at most.
fn resident_bytes(scene: &Scene) -> usize {
    memory(scene, "VmRSS:")
}

fn peak_bytes(scene: &Scene) -> usize {
    memory(scene, "VmHWM:")
}

fn memory(scene: &Scene, what: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", scene.kiln.id().unwrap()));
    let status = status.unwrap();
    let line = status.lines().find(|line| line.starts_with(what));
    let kib: usize = line
        .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap();
    kib * 1024
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Returns the processes of builds in `state`: workers, and whatever is in the cgroups of its builds.
fn processes(state: &Path, server: u32) -> BTreeSet<String> {
    let state_text = state.display().to_string();
    let builds = entries(&state.join("builds"));
    let names: Vec<String> = builds
        .iter()
        .filter_map(|build| Some(format!("kiln-{}", build.file_name()?.to_str()?)))
        .collect();
    let mut found = BTreeSet::new();
    for process in entries(Path::new("/proc")) {
        let Some(id) = process.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if id.parse::<u32>().is_err() || id == server.to_string() {
            continue;
        }
        let read = |name: &str| std::fs::read(process.join(name)).unwrap_or_default();
        let words = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let cgroup = String::from_utf8_lossy(&read("cgroup")).into_owned();
        let is_worker = words.contains(" worker ") && words.contains(&state_text);
        if is_worker || names.iter().any(|name| cgroup.contains(name)) {
            let network = std::fs::read_link(process.join("ns/net")).unwrap_or_default();
            found.insert(format!("{id} {words} {}", network.display()));
        }
    }
    found
}

/// Returns what the server sees of mounts that have to do with `state`.
fn mounts(state: &Path, server: u32) -> BTreeSet<String> {
    let text = std::fs::read_to_string(format!("/proc/{server}/mountinfo")).unwrap_or_default();
    let state = state.display().to_string();
    let lines = text.lines().filter(|line| line.contains(&state));
    lines.map(str::to_owned).collect()
}

fn cgroups(folder: &Path, depth: usize) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for path in entries(folder)
        .into_iter()
        .filter(|path| depth < 6 && path.is_dir() && !path.is_symlink())
    {
        if path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"kiln-"))
        {
            found.insert(path);
        } else {
            found.extend(cgroups(&path, depth + 1));
        }
    }
    found
}
