//! The builders: how each is started, made to forget everything, and asked to build and push.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use testkit::process::{self, Daemon};

use crate::docker::{self, Docker};
use crate::machine;
use crate::memory::Sampler;

pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A builder.
#[derive(Debug)]
pub(crate) struct Peer {
    kind: Kind,
    /// All it knows is below here.
    state: PathBuf,
    registry: String,
    daemon: Option<Daemon>,
    n_starts: usize,
}

#[derive(Debug)]
enum Kind {
    /// No daemon: the command does it all.
    Kiln {
        name: &'static str,
        kiln: PathBuf,
    },
    BuildKit {
        buildkitd: PathBuf,
        buildctl: PathBuf,
    },
    Buildah {
        buildah: PathBuf,
    },
    /// A daemon with one below it, and a client.
    Docker(Docker),
}

/// Something to build and push.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) reference: &'a str,
}

/// How a build went.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timed {
    pub(crate) seconds: f64,
    /// Processor time of all processes of the builder together: what others do on the machine changes it little.
    pub(crate) cpu_seconds: f64,
    /// Of all processes of the builder together.
    pub(crate) peak_bytes: u64,
    /// Layers that were made, compressed.
    pub(crate) image_bytes: u64,
}

impl Peer {
    /// Returns kiln and the peers that are there; says which are not.
    pub(crate) fn find_all(
        (kiln, before): (&Path, Option<&Path>),
        scratch: &Path,
        registry: &str,
    ) -> Result<Vec<Self>> {
        let mut kinds = Vec::new();
        for (name, kiln) in [("kiln", Some(kiln)), ("before", before)] {
            if let Some(kiln) = kiln {
                let kiln =
                    fs::canonicalize(kiln).with_context(|| format!("find {}", kiln.display()))?;
                kinds.push(Kind::Kiln { name, kiln });
            }
        }
        match (find("buildkitd"), find("buildctl")) {
            (Some(buildkitd), Some(buildctl)) => kinds.push(Kind::BuildKit {
                buildkitd,
                buildctl,
            }),
            _ => missing(
                "buildkitd and buildctl",
                "go install github.com/moby/buildkit/cmd/{buildkitd,buildctl}@latest",
            ),
        }
        match find("buildah") {
            Some(buildah) => kinds.push(Kind::Buildah { buildah }),
            None => missing("buildah", "the Debian package buildah"),
        }
        kinds.extend(Docker::find().map(Kind::Docker));
        let peers = kinds.into_iter().map(|kind| {
            let state = scratch.join(kind.name());
            Self {
                kind,
                state,
                registry: registry.to_owned(),
                daemon: None,
                n_starts: 0,
            }
        });
        Ok(peers.collect())
    }

    /// Returns its name.
    pub(crate) fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// Returns its name and version.
    pub(crate) fn version(&self) -> String {
        let version = match &self.kind {
            Kind::Kiln { kiln: program, .. }
            | Kind::BuildKit {
                buildkitd: program, ..
            }
            | Kind::Buildah { buildah: program } => machine::version(program),
            Kind::Docker(docker) => docker.version(),
        };
        format!("{}: {version}", self.name())
    }

    /// Makes it know nothing, and ready to build.
    pub(crate) fn forget(&mut self) -> Result<()> {
        self.stop();
        remove_tree(&self.state);
        fs::create_dir(&self.state).with_context(|| format!("make {}", self.state.display()))?;
        fs::set_permissions(&self.state, fs::Permissions::from_mode(0o711))?;
        self.n_starts += 1;
        let log = self.state.with_extension(format!("{}.log", self.n_starts));
        self.daemon = match &self.kind {
            Kind::Kiln { .. } | Kind::Buildah { .. } => None,
            Kind::BuildKit { buildkitd, .. } => Some(self.start_buildkit(buildkitd, &log)?),
            Kind::Docker(docker) => Some(docker.start(&self.state, &self.registry, &log)?),
        };
        Ok(())
    }

    fn start_buildkit(&self, buildkitd: &Path, log: &Path) -> Result<Daemon> {
        let config = self.state.join("buildkitd.toml");
        fs::write(
            &config,
            format!("[registry.\"{}\"]\nhttp = true\n", self.registry),
        )?;
        let mut command = Command::new(buildkitd);
        command
            .args([
                "--oci-worker-snapshotter=overlayfs",
                "--containerd-worker=false",
            ])
            .arg("--config")
            .arg(&config)
            .arg("--root")
            .arg(self.state.join("root"))
            .arg("--addr")
            .arg(self.address());
        let mut daemon = Daemon::start(&mut command, log);
        daemon.wait_for("buildkitd", START_TIMEOUT, |_| {
            let answers = self.buildctl(&["debug", "workers"]).ok()?;
            answers.status.success().then_some(())
        });
        Ok(daemon)
    }

    /// Ends what runs of it.
    pub(crate) fn stop(&mut self) {
        drop(self.daemon.take());
        if let Kind::Docker(_) = self.kind {
            docker::end_rest(&self.state);
        }
        // What a killed step may have left.
        for point in testkit::scratch::mounts_below(&self.state) {
            let _tried = Command::new("umount").arg("-l").arg(point).output();
        }
    }

    /// Builds and pushes.
    pub(crate) fn build(&self, job: &Job<'_>) -> Result<Timed> {
        let mut command = self.command(job);
        let roots = self.daemon.iter().map(Daemon::id).collect();
        let memory = Sampler::start(roots, self.state.display().to_string());
        let cpu = || {
            let daemon = self.daemon.iter().map(Daemon::id);
            let of_daemon: f64 = daemon.map(machine::cpu_seconds_of_all).sum();
            of_daemon + machine::cpu_seconds("self")
        };
        let (started, cpu_before) = (Instant::now(), cpu());
        let output = process::finish(&mut command);
        let seconds = started.elapsed().as_secs_f64();
        let cpu_seconds = cpu() - cpu_before;
        let peak_bytes = memory.finish();
        ensure!(
            output.status.success(),
            "{} failed:\n{}",
            self.name(),
            said(&output)
        );
        Ok(Timed {
            seconds,
            cpu_seconds,
            peak_bytes,
            image_bytes: 0,
        })
    }

    fn command(&self, job: &Job<'_>) -> Command {
        match &self.kind {
            Kind::Kiln { kiln, .. } => {
                let mut command = process::clean_command(kiln);
                command
                    .args(["build", "--quiet", "--push", "--state"])
                    .arg(&self.state);
                command.args(["-t", job.reference]).arg(job.folder);
                command.env("HOME", &self.state);
                command
            }
            Kind::BuildKit { buildctl, .. } => {
                let mut command = Command::new(buildctl);
                command.arg("--addr").arg(self.address()).args([
                    "build",
                    "--progress=plain",
                    "--frontend=dockerfile.v0",
                ]);
                for name in ["context", "dockerfile"] {
                    command
                        .arg("--local")
                        .arg(format!("{name}={}", job.folder.display()));
                }
                command
                    .arg("--output")
                    .arg(format!("type=image,name={},push=true", job.reference));
                command
            }
            Kind::Buildah { buildah } => {
                let mut command = Command::new("sh");
                let global = format!(
                    "{} --root {state}/root --runroot {state}/run --storage-driver overlay",
                    buildah.display(),
                    state = self.state.display()
                );
                let script = format!(
                    "{global} build --quiet --layers --isolation chroot --tls-verify=false --squash=false -t {reference} {folder} && {global} push --quiet --tls-verify=false {reference}",
                    reference = job.reference,
                    folder = job.folder.display()
                );
                command.arg("-c").arg(script);
                command
            }
            Kind::Docker(docker) => docker.build(&self.state, job),
        }
    }

    fn address(&self) -> String {
        format!("unix://{}", self.state.join("sock").display())
    }

    fn buildctl(&self, arguments: &[&str]) -> Result<Output> {
        let Kind::BuildKit { buildctl, .. } = &self.kind else {
            anyhow::bail!("no buildctl");
        };
        let mut command = Command::new(buildctl);
        command.arg("--addr").arg(self.address()).args(arguments);
        Ok(process::finish(&mut command))
    }
}

impl Drop for Peer {
    /// Also where a build failed: the file system that it works on could not be unmounted else.
    fn drop(&mut self) {
        self.stop();
    }
}

impl Kind {
    fn name(&self) -> &'static str {
        match self {
            Self::Kiln { name, .. } => name,
            Self::BuildKit { .. } => "buildkit",
            Self::Buildah { .. } => "buildah",
            Self::Docker(_) => "docker",
        }
    }
}

/// Removes a folder with everything in it; what is not there is fine.
pub(crate) fn remove_tree(path: &Path) {
    let _tried = Command::new("rm").arg("-rf").arg(path).output();
}

/// Returns where a program is on `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// Says what is not found.
pub(crate) fn missing(what: &str, from: &str) {
    crate::workload::eprint(&format!("LEFT OUT: {what} not found on PATH ({from})"));
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
