//! Limits on what a step uses together: memory, processes, processor time.
//!
//! Whoever starts a worker makes cgroups for it with [`CgroupParent::make`], because the worker itself has no power over
//! the host's; the worker makes one more below for every step. Both versions of the interface are served:
//!
//! | version | needs | a build's cgroup |
//! |---|---|---|
//! | 2 | a cgroup of our own that is delegated to us (systemd: `Delegate=yes`), or root | `<own>/kiln-<build>`, with the worker in `worker/` |
//! | 1 | root | `<own>/kiln-<build>` under each of memory, pids and cpu |
//!
//! Without either, steps are held by `RLIMIT_NPROC` and the build's own time limit only; `kiln doctor` says so.

mod detect;

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::StepLimits;
pub use detect::CgroupMode;

/// The length of one accounting period of processor time.
const CPU_PERIOD_MICROS: u64 = 100_000;
/// The controllers that are used, where they exist.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// Why a limit could not be set.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A cgroup could not be made.
    #[error("make cgroup {}", path.display())]
    Make {
        /// Which one.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// A file of a cgroup could not be written.
    #[error("write {value:?} to {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// A cgroup could not be given to the worker.
    #[error("give cgroup {} to the worker", path.display())]
    Give {
        /// Which one.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
}

/// The cgroups of one build; a plain value that travels to its worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CgroupParent {
    version: Version,
    /// One directory per hierarchy, with the controllers found there.
    hierarchies: Vec<Hierarchy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Version {
    One,
    Two,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hierarchy {
    directory: PathBuf,
    controllers: Vec<String>,
}

/// Returns the cgroups that [`CgroupParent::make`] makes for a build.
///
/// Returns nothing where this process may not make any; that is no error, only a weaker limit.
pub fn planned_cgroups(build: &str) -> Option<CgroupParent> {
    let name = format!("kiln-{build}");
    match CgroupMode::detect() {
        CgroupMode::None => None,
        CgroupMode::Two { own } => Some(CgroupParent {
            version: Version::Two,
            hierarchies: vec![Hierarchy {
                directory: own.join(name),
                controllers: available(&own),
            }],
        }),
        CgroupMode::One { own } => {
            let hierarchy = |(controller, own): (String, PathBuf)| Hierarchy {
                directory: own.join(&name),
                controllers: vec![controller],
            };
            Some(CgroupParent {
                version: Version::One,
                hierarchies: own.into_iter().map(hierarchy).collect(),
            })
        }
    }
}

fn make_two(
    directory: &Path,
    controllers: &[String],
    uid: u32,
    gid: u32,
) -> Result<(), CgroupError> {
    let own = directory.parent().unwrap_or(directory);
    enable(own, controllers).or_else(|_busy| {
        // Version 2 allows no processes beside cgroups with controllers: ours move into one of their own.
        let leaf = own.join("kiln-service");
        make(&leaf)?;
        let processes = fs::read_to_string(own.join("cgroup.procs")).unwrap_or_default();
        for process in processes.lines() {
            // One that ended meanwhile needs no moving.
            let _ = write(&leaf.join("cgroup.procs"), process);
        }
        enable(own, controllers)
    })?;
    make(directory)?;
    enable(directory, controllers)?;
    let worker = directory.join("worker");
    make(&worker)?;
    give(&worker, &["cgroup.procs"], uid, gid)?;
    give(
        directory,
        &["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"],
        uid,
        gid,
    )
}

fn available(cgroup: &Path) -> Vec<String> {
    let text = fs::read_to_string(cgroup.join("cgroup.controllers")).unwrap_or_default();
    text.split_ascii_whitespace()
        .filter(|name| CONTROLLERS.contains(name))
        .map(str::to_owned)
        .collect()
}

fn enable(cgroup: &Path, controllers: &[String]) -> Result<(), CgroupError> {
    let words: Vec<String> = controllers.iter().map(|name| format!("+{name}")).collect();
    write(&cgroup.join("cgroup.subtree_control"), &words.join(" "))
}

fn make(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(CgroupError::Make {
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

fn give(directory: &Path, files: &[&str], uid: u32, gid: u32) -> Result<(), CgroupError> {
    let paths = files
        .iter()
        .map(|file| directory.join(file))
        .chain([directory.to_owned()]);
    for path in paths.filter(|path| path.exists()) {
        chown(&path, Some(uid), Some(gid)).map_err(|source| CgroupError::Give { path, source })?;
    }
    Ok(())
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(|source| CgroupError::Write {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    })
}

impl CgroupParent {
    /// Makes the cgroups and gives them to the user and group that the build's worker becomes.
    ///
    /// # Errors
    /// When one cannot be made; some may be there then.
    pub fn make(&self, uid: u32, gid: u32) -> Result<(), CgroupError> {
        for Hierarchy {
            directory,
            controllers,
        } in &self.hierarchies
        {
            match self.version {
                Version::Two => make_two(directory, controllers, uid, gid)?,
                Version::One => {
                    make(directory)?;
                    give(directory, &["cgroup.procs"], uid, gid)?;
                }
            }
        }
        Ok(())
    }

    /// Moves this process into the build's cgroup. The worker calls it before it enters its user namespace.
    pub fn join(&self) -> Result<(), CgroupError> {
        if self.version == Version::Two {
            for hierarchy in &self.hierarchies {
                write(&hierarchy.directory.join("worker/cgroup.procs"), "0")?;
            }
        }
        Ok(())
    }

    /// Returns the names of the controllers that limit steps.
    pub fn controllers(&self) -> Vec<&str> {
        self.hierarchies
            .iter()
            .flat_map(|hierarchy| hierarchy.controllers.iter().map(String::as_str))
            .collect()
    }

    /// Removes the build's cgroups, once its worker is gone; false when processes in them are still ending. Whoever made
    /// them calls it, or who finds that they were left.
    pub fn remove(&self) -> bool {
        for Hierarchy { directory, .. } in &self.hierarchies {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                // What is not a directory cannot be removed, and need not be.
                let _ = fs::remove_dir(entry.path());
            }
            let _ = fs::remove_dir(directory);
        }
        !self.is_there()
    }

    /// Tells whether any of the build's cgroups is there.
    pub fn is_there(&self) -> bool {
        let mut hierarchies = self.hierarchies.iter();
        hierarchies.any(|hierarchy| hierarchy.directory.exists())
    }

    /// Makes the cgroups of one step.
    pub(super) fn step(&self, limits: &StepLimits) -> Result<StepCgroup, CgroupError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let name = format!("step-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut step = StepCgroup {
            version: self.version,
            directories: Vec::new(),
            memory: None,
        };
        for hierarchy in &self.hierarchies {
            let directory = hierarchy.directory.join(&name);
            make(&directory)?;
            step.directories.push(directory.clone());
            for controller in &hierarchy.controllers {
                for (file, value) in settings(self.version, controller, limits) {
                    let path = directory.join(file.name);
                    if file.needed || path.exists() {
                        write(&path, &value)?;
                    }
                }
                if controller == "memory" {
                    step.memory = Some(directory.clone());
                }
            }
        }
        Ok(step)
    }
}

struct Setting {
    name: &'static str,
    /// Whether a kernel that lacks the file cannot limit what was asked for.
    needed: bool,
}

const fn needed(name: &'static str) -> Setting {
    Setting { name, needed: true }
}

const fn wanted(name: &'static str) -> Setting {
    Setting {
        name,
        needed: false,
    }
}

/// What is written for one controller, in order.
fn settings(version: Version, controller: &str, limits: &StepLimits) -> Vec<(Setting, String)> {
    let quota = limits
        .cpu_millis
        .map(|millis| u64::from(millis) * CPU_PERIOD_MICROS / 1000);
    match (
        version,
        controller,
        limits.memory_bytes,
        limits.processes,
        quota,
    ) {
        (Version::Two, "memory", Some(bytes), _, _) => vec![
            (needed("memory.max"), bytes.to_string()),
            (wanted("memory.swap.max"), "0".to_owned()),
            (wanted("memory.oom.group"), "1".to_owned()),
        ],
        (Version::One, "memory", Some(bytes), _, _) => vec![
            (needed("memory.limit_in_bytes"), bytes.to_string()),
            (wanted("memory.memsw.limit_in_bytes"), bytes.to_string()),
        ],
        (_, "pids", _, Some(processes), _) => vec![(needed("pids.max"), processes.to_string())],
        (Version::Two, "cpu", _, _, Some(quota)) => {
            vec![(needed("cpu.max"), format!("{quota} {CPU_PERIOD_MICROS}"))]
        }
        (Version::One, "cpu", _, _, Some(quota)) => vec![
            (needed("cpu.cfs_period_us"), CPU_PERIOD_MICROS.to_string()),
            (needed("cpu.cfs_quota_us"), quota.to_string()),
        ],
        _ => Vec::new(),
    }
}

/// The cgroups of one step; removed when dropped, after the step.
#[derive(Debug)]
pub(super) struct StepCgroup {
    version: Version,
    directories: Vec<PathBuf>,
    memory: Option<PathBuf>,
}

impl StepCgroup {
    /// The files into which the step's first process is written.
    pub(super) fn procs_files(&self) -> Vec<PathBuf> {
        self.directories
            .iter()
            .map(|directory| directory.join("cgroup.procs"))
            .collect()
    }

    /// Whether the kernel killed a process of the step because the memory limit was reached.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        let file = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        let text = self
            .memory
            .as_ref()
            .and_then(|memory| fs::read_to_string(memory.join(file)).ok());
        text.is_some_and(|text| oom_kills(&text) > 0)
    }
}

impl Drop for StepCgroup {
    fn drop(&mut self) {
        for directory in &self.directories {
            // Empty by now; if the kernel thinks otherwise, it goes with the build's.
            let _ = fs::remove_dir(directory);
        }
    }
}

fn oom_kills(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .filter_map(|count| count.trim().parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that looks like a delegated cgroup of version 2.
    fn fake() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("cgroup.controllers"),
            "cpuset cpu io memory pids\n",
        )
        .unwrap();
        fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        dir
    }

    fn prepare(own: &Path) -> CgroupParent {
        let (uid, gid) = (
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        );
        let parent = CgroupParent {
            version: Version::Two,
            hierarchies: vec![Hierarchy {
                directory: own.join("kiln-b"),
                controllers: available(own),
            }],
        };
        parent.make(uid, gid).unwrap();
        parent
    }

    fn read(path: impl AsRef<Path>) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_build_gets_a_cgroup_with_a_place_for_its_worker() {
        let own = fake();
        let parent = prepare(own.path());
        assert_eq!(
            read(own.path().join("cgroup.subtree_control")),
            "+cpu +memory +pids"
        );
        assert_eq!(
            read(own.path().join("kiln-b/cgroup.subtree_control")),
            "+cpu +memory +pids"
        );
        assert_eq!(parent.controllers(), ["cpu", "memory", "pids"]);
        parent.join().unwrap();
        assert_eq!(read(own.path().join("kiln-b/worker/cgroup.procs")), "0");
    }

    #[test]
    fn a_step_of_version_two_is_limited_and_its_cgroup_named_by_the_launcher() {
        let own = fake();
        let parent = prepare(own.path());
        let limits = StepLimits {
            memory_bytes: Some(1 << 30),
            processes: Some(99),
            cpu_millis: Some(1500),
            ..StepLimits::default()
        };
        let step = parent.step(&limits).unwrap();
        let directory = step.directories[0].clone();
        assert_eq!(
            read(directory.join("memory.max")),
            (1_u64 << 30).to_string()
        );
        assert_eq!(read(directory.join("pids.max")), "99");
        assert_eq!(read(directory.join("cpu.max")), "150000 100000");
        assert_eq!(step.procs_files(), [directory.join("cgroup.procs")]);
        assert!(!step.ran_out_of_memory());
        fs::write(
            directory.join("memory.events"),
            "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\n",
        )
        .unwrap();
        assert!(step.ran_out_of_memory());
    }

    #[test]
    fn the_files_of_version_one_have_their_own_names() {
        let limits = StepLimits {
            memory_bytes: Some(4096),
            cpu_millis: Some(500),
            ..StepLimits::default()
        };
        let names = |controller| -> Vec<_> {
            settings(Version::One, controller, &limits)
                .into_iter()
                .map(|(file, value)| (file.name, value))
                .collect()
        };
        assert_eq!(
            names("memory"),
            [
                ("memory.limit_in_bytes", "4096".to_owned()),
                ("memory.memsw.limit_in_bytes", "4096".to_owned())
            ]
        );
        assert_eq!(
            names("cpu"),
            [
                ("cpu.cfs_period_us", "100000".to_owned()),
                ("cpu.cfs_quota_us", "50000".to_owned())
            ]
        );
        assert_eq!(
            oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            3
        );
    }

    #[test]
    fn the_cgroups_of_a_build_survive_the_way_to_its_worker() {
        let parent = prepare(fake().path());
        let text = serde_json::to_string(&parent).unwrap();
        assert_eq!(serde_json::from_str::<CgroupParent>(&text).unwrap(), parent);
    }
}
