//! dockerd, its containerd and the client, as a peer: how they are found, started, and asked to build and push.
//!
//! Everything of theirs is below one folder: nothing that the machine's own Docker has is read, and nothing is left when they have ended.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use testkit::process::{self, Daemon};

use crate::machine;
use crate::peer::{Job, find, missing};

/// Time for steps to be gone after they were killed, and between two looks.
const END_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// From here on the client has no builder but the old one without the plugin.
const FIRST_WITHOUT_BUILDKIT: u32 = 23;

/// dockerd writes outside of what it is told to, and takes the machine's containerd for its own where that listens in `/run`. It gets a view of
/// the file system in which `/run` is empty and what is made in `/opt` lands in its state; that view and all its mounts go with it.
const PRIVATELY: &str = r#"mount -t tmpfs tmpfs /run &&
    mount -t overlay -o "lowerdir=/opt,upperdir=$0/opt,workdir=$0/opt.work" overlay /opt &&
    exec "$@""#;

/// Builds and pushes: by default `docker build` keeps the image to itself.
const BUILD_AND_PUSH: &str = r#""$0" --host "$1" build --quiet --network host --tag "$2" "$3" &&
    exec "$0" --host "$1" push --quiet "$2""#;

/// The programs.
#[derive(Debug)]
pub(crate) struct Docker {
    dockerd: PathBuf,
    cli: PathBuf,
    /// How the client speaks to the `BuildKit` that dockerd has in it.
    client: Client,
}

#[derive(Debug)]
enum Client {
    /// It does so itself.
    Whole,
    /// By a plugin of that version.
    Buildx(String),
}

impl Docker {
    /// Returns what is on `PATH`; says what is missing. The old builder, which is all that a client without its plugin has, is not asked: nobody
    /// chooses it, and its steps run below no process that could be asked for their time.
    pub(crate) fn find() -> Option<Self> {
        const PROGRAMS: &str = "dockerd, docker, containerd and runc";
        const PACKAGES: &str =
            "the Debian package docker.io, and docker-cli where that is one of its own";
        let found = (
            find("dockerd"),
            find("docker"),
            find("containerd"),
            find("runc"),
        );
        let (Some(dockerd), Some(docker), Some(_), Some(_)) = found else {
            missing(PROGRAMS, PACKAGES);
            return None;
        };
        if !fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
            crate::workload::eprint("LEFT OUT: dockerd, which only root can start");
            return None;
        }
        let client = client(&docker);
        if client.is_none() {
            missing("docker's plugin buildx", "the Debian package docker-buildx");
        }
        Some(Self {
            dockerd,
            cli: docker,
            client: client?,
        })
    }

    /// Returns the daemon's version, and by what it is asked to build.
    pub(crate) fn version(&self) -> String {
        let daemon = machine::version(&self.dockerd);
        match &self.client {
            Client::Whole => format!("{daemon} (dockerd's BuildKit, asked by docker build)"),
            Client::Buildx(version) => {
                format!("{daemon} (dockerd's BuildKit, asked by buildx {version})")
            }
        }
    }

    /// Starts the daemon with all it keeps below `state`, and waits until it answers.
    pub(crate) fn start(&self, state: &Path, registry: &str, log: &Path) -> Result<Daemon> {
        for name in ["config", "opt", "opt.work"] {
            fs::create_dir(state.join(name))?;
        }
        let below = |name: &str| state.join(name).display().to_string();
        // One of its own in place of the machine's, with the one path that there is no option for.
        let config = serde_json::json!({ "deprecated-key-path": below("key.json") });
        fs::write(state.join("daemon.json"), config.to_string())?;
        let plugins = serde_json::json!({ "cliPluginsExtraDirs": plugin_folders(&self.cli) });
        fs::write(state.join("config/config.json"), plugins.to_string())?;
        let mut command = command("unshare", state);
        command
            .args(["--mount", "--propagation", "slave", "sh", "-c", PRIVATELY])
            .arg(state)
            .arg(&self.dockerd);
        for (option, name) in [
            ("--config-file", "daemon.json"),
            ("--data-root", "root"),
            ("--exec-root", "exec"),
            ("--pidfile", "pid"),
        ] {
            command.arg(option).arg(state.join(name));
        }
        // The storage driver is the one it takes by itself: overlay2, with containerd's overlayfs in its place from version 29 on. There is no
        // network but the machine's, as with buildkitd where there is no CNI: steps run with `--network host`, and no rule, bridge or
        // setting of the machine's network is touched.
        command.args([
            "--host",
            &address(state),
            "--group=root",
            "--insecure-registry",
            registry,
            "--bridge=none",
            "--iptables=false",
            "--ip-masq=false",
            "--ip-forward=false",
            // Else they are in the one of the machine's own Docker.
            "--exec-opt=native.cgroupdriver=cgroupfs",
            &format!("--cgroup-parent=/{}", cgroup(state)),
        ]);
        let mut daemon = Daemon::start(&mut command, log);
        daemon.wait_for("dockerd", crate::peer::START_TIMEOUT, |_| {
            let mut ask = self::command(&self.cli, state);
            ask.args(["--host", &address(state), "version"]);
            let answers = process::finish(&mut ask);
            answers.status.success().then_some(())
        });
        Ok(daemon)
    }

    /// Returns what builds and pushes.
    pub(crate) fn build(&self, state: &Path, job: &Job<'_>) -> Command {
        let mut command = command("sh", state);
        command
            .args(["-c", BUILD_AND_PUSH])
            .arg(&self.cli)
            .args([&address(state), job.reference])
            .arg(job.folder)
            .env("DOCKER_BUILDKIT", "1")
            // Nobody else's image has one.
            .env("BUILDX_NO_DEFAULT_ATTESTATIONS", "1");
        command
    }
}

/// Ends what a daemon that had to be killed may have left (containerd and its shims, which name `state`, and steps, which are in its control
/// groups), and removes the control groups, which stay in any case.
pub(crate) fn end_rest(state: &Path) {
    let named = process::processes_using(state);
    for (id, _) in named {
        kill(id);
    }
    // One hierarchy, or one below each folder.
    let all = Path::new("/sys/fs/cgroup");
    for hierarchy in [all.to_owned()].into_iter().chain(folders(all)) {
        remove_groups(&hierarchy.join(cgroup(state)));
    }
}

fn kill(id: u32) {
    // Gone already is what is wanted.
    let _gone = Command::new("kill")
        .args(["-KILL", &id.to_string()])
        .output();
}

/// Returns the name of the control group that all steps are in: as unique as the folder that `state` is in.
fn cgroup(state: &Path) -> String {
    let parent = state.parent().and_then(Path::file_name);
    let parent = parent.unwrap_or_default().to_string_lossy();
    format!("{parent}-docker")
}

/// Ends what is in a control group and removes it with those in it; what is not there is fine.
fn remove_groups(group: &Path) {
    for below in folders(group) {
        remove_groups(&below);
    }
    let began = Instant::now();
    while group.exists() && fs::remove_dir(group).is_err() && began.elapsed() < END_TIMEOUT {
        let inside = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        let ids = inside.lines().filter_map(|line| line.parse().ok());
        // Zero is whoever cannot be seen from here, and to `kill` it would be ourselves.
        ids.filter(|id| *id != 0).for_each(kill);
        std::thread::sleep(PAUSE);
    }
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path()).collect()
}

fn address(state: &Path) -> String {
    format!("unix://{}", state.join("sock").display())
}

/// Makes a command that knows of nobody's settings. The path for programs stays: containerd and runc are found on it.
fn command(program: impl AsRef<std::ffi::OsStr>, state: &Path) -> Command {
    let mut command = process::clean_command(program);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
        .env("HOME", state)
        .env("DOCKER_CONFIG", state.join("config"));
    command
}

/// Returns how `docker` can be asked to build with `BuildKit`, if it can.
fn client(docker: &Path) -> Option<Client> {
    if major(&machine::version(docker)).is_some_and(|major| major < FIRST_WITHOUT_BUILDKIT) {
        return Some(Client::Whole);
    }
    let plugin = plugin_folders(docker)
        .into_iter()
        .map(|folder| folder.join("docker-buildx"))
        .find(|path| path.is_file())?;
    let mut ask = process::clean_command(plugin);
    let said = ask.arg("docker-cli-plugin-metadata").output().ok()?;
    let metadata: serde_json::Value = serde_json::from_slice(&said.stdout).ok()?;
    Some(Client::Buildx(
        metadata.get("Version")?.as_str()?.to_owned(),
    ))
}

/// Returns where plugins of a `docker` lie: beside it, wherever it was unpacked, or where packages put them.
fn plugin_folders(docker: &Path) -> Vec<PathBuf> {
    let own = docker.parent().and_then(Path::parent);
    let prefixes = own.into_iter().chain([Path::new("/usr")]);
    prefixes
        .flat_map(|prefix| {
            ["libexec", "lib"].map(|lib| prefix.join(lib).join("docker/cli-plugins"))
        })
        .collect()
}

/// Returns the first number of a version as `docker --version` says it.
fn major(said: &str) -> Option<u32> {
    let version = said.strip_prefix("Docker version ")?;
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_docker_are_read() {
        assert_eq!(
            major("Docker version 20.10.24+dfsg1, build 297e128"),
            Some(20)
        );
        assert_eq!(
            major("Docker version 26.1.5+dfsg1, build a72d7cd"),
            Some(26)
        );
        assert_eq!(major("podman version 4.3.1"), None);
        assert_eq!(major(""), None);
    }

    #[test]
    fn plugins_are_looked_for_beside_the_client_first() {
        let folders = plugin_folders(Path::new("/opt/docker/bin/docker"));
        assert_eq!(
            folders.first().map(PathBuf::as_path),
            Some(Path::new("/opt/docker/libexec/docker/cli-plugins"))
        );
        assert!(folders.contains(&PathBuf::from("/usr/libexec/docker/cli-plugins")));
    }
}
