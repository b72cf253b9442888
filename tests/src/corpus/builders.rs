//! Kiln and `BuildKit`, asked for the same thing in their own words.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::kiln::binary;
use testkit::process::{Daemon, clean_command, finish, tool};
use testkit::scratch::Scratch;

use super::case::Case;
use super::describe::{Terms, describe};
use super::peers::Scene;

/// Time of everything that is made by a build.
const EPOCH: &str = "SOURCE_DATE_EPOCH=1700000000";

/// Longest build of a case; `timeout` ends it then.
const LIMIT_S: &str = "120";

/// Time for buildkitd to listen.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// What came of a build.
pub(super) struct Outcome {
    /// The description of the image, or the failure.
    result: Result<Value, Value>,
    /// Everything that was written.
    pub(super) said: String,
}

/// The built program.
pub(super) struct Kiln {
    state: Scratch,
}

/// A running buildkitd.
pub(super) struct BuildKit {
    _daemon: Daemon,
    client: PathBuf,
    address: String,
    _scratch: Scratch,
}

impl Outcome {
    /// Returns what is written down about it.
    pub(super) fn expectation(&self) -> Value {
        match &self.result {
            Ok(image) => image.clone(),
            Err(failure) => json!({ "fails": failure }),
        }
    }

    /// Returns the end of what was said, for somebody who looks for the reason of a difference.
    pub(super) fn talk(&self) -> String {
        let lines: Vec<_> = self.said.lines().collect();
        let shown = if self.result.is_ok() { 0 } else { 14 };
        let lines = lines.iter().skip(lines.len().saturating_sub(shown));
        lines.fold(String::new(), |text, line| text + "  | " + line + "\n")
    }
}

impl Kiln {
    pub(super) fn new() -> Self {
        let state = Scratch::new();
        state.write("kiln.toml", CONFIG);
        Self { state }
    }

    /// Builds a case.
    pub(super) fn build(&self, case: &Case, scene: &Scene<'_>) -> Outcome {
        let options = &case.options;
        let archive = scene.scratch.join("kiln.tar");
        let mut command = clean_command("timeout");
        command
            .arg(LIMIT_S)
            .arg(binary())
            .arg("build")
            .arg("--state")
            .arg(self.state.join("state"));
        command
            .env("HOME", self.state.path())
            .env("XDG_CACHE_HOME", self.state.join("cache"));
        command
            .arg("--config")
            .arg(self.state.join("kiln.toml"))
            .args(["--progress", "plain", "--build-arg", EPOCH]);
        command
            .arg("--output")
            .arg(format!("type=oci,dest={}", archive.display()));
        command.args(flags(case, scene));
        if let Some(file) = &options.file {
            command.arg("--file").arg(scene.context.join(file));
        }
        command.arg(&scene.context);
        outcome(&mut command, &archive, case, scene, kiln_line)
    }
}

/// What Kiln is configured with: nothing that it has no default for.
const CONFIG: &str = "";

/// Returns the options of a case as those of `kiln build`.
fn flags(case: &Case, scene: &Scene<'_>) -> Vec<String> {
    let options = &case.options;
    let mut flags = vec![format!(
        "--network={}",
        options.network.as_deref().unwrap_or("none")
    )];
    flags.extend(
        options
            .target
            .iter()
            .map(|target| format!("--target={target}")),
    );
    flags.extend(
        options
            .platform
            .iter()
            .map(|platform| format!("--platform={platform}")),
    );
    flags.extend(
        options
            .args
            .iter()
            .map(|(name, value)| format!("--build-arg={name}={}", scene.filled(value))),
    );
    flags.extend(
        options
            .labels
            .iter()
            .map(|(name, value)| format!("--label={name}={value}")),
    );
    flags.extend(
        scene
            .contexts
            .iter()
            .map(|(name, what)| format!("--build-context={name}={what}")),
    );
    flags.extend(options.allow.iter().map(|what| format!("--allow={what}")));
    flags.extend(
        options
            .add_hosts
            .iter()
            .map(|host| format!("--add-host={host}")),
    );
    flags.extend(
        options
            .ulimits
            .iter()
            .map(|limit| format!("--ulimit={limit}")),
    );
    flags.extend(
        options
            .shm_size
            .iter()
            .map(|size| format!("--shm-size={size}")),
    );
    flags.extend(agent(scene).map(|agent| format!("--ssh={agent}")));
    let secrets = options.secrets.iter();
    flags.extend(secrets.map(|(id, value)| {
        format!(
            "--secret=id={id},src={}",
            secret(scene, id, value).display()
        )
    }));
    flags
}

/// Returns the options of a case as those of the frontend of `BuildKit`.
fn opts(case: &Case, scene: &Scene<'_>) -> Vec<(String, String)> {
    let options = &case.options;
    let mut opts = Vec::new();
    let mut opt = |name: &str, value: &str| opts.push((name.to_owned(), value.to_owned()));
    let (epoch, seconds) = EPOCH.split_once('=').unwrap();
    opt(&format!("build-arg:{epoch}"), seconds);
    match options.network.as_deref() {
        None | Some("none") => opt("force-network-mode", "none"),
        Some("host") => opt("force-network-mode", "host"),
        Some(_) => {}
    }
    for (name, value) in [
        ("filename", &options.file),
        ("target", &options.target),
        ("platform", &options.platform),
    ] {
        if let Some(value) = value {
            opt(name, value);
        }
    }
    for (name, value) in &options.args {
        opt(&format!("build-arg:{name}"), &scene.filled(value));
    }
    for (name, value) in &options.labels {
        opt(&format!("label:{name}"), value);
    }
    if !options.add_hosts.is_empty() {
        let hosts: Vec<_> = options
            .add_hosts
            .iter()
            .map(|host| host.replacen(':', "=", 1))
            .collect();
        opt("add-hosts", &hosts.join(","));
    }
    if !options.ulimits.is_empty() {
        opt("ulimit", &options.ulimits.join(","));
    }
    options
        .shm_size
        .iter()
        .for_each(|size| opt("shm-size", &size.to_string()));
    opts
}

impl BuildKit {
    /// Starts buildkitd if it and buildctl are here; `$BUILDKITD` and `$BUILDCTL` name others than those of the path.
    pub(super) fn find() -> Option<Self> {
        let daemon = program("BUILDKITD", "buildkitd")?;
        let client = program("BUILDCTL", "buildctl")?;
        let runc = tool("runc", "runc");
        let scratch = Scratch::new();
        let config = scratch.write("buildkitd.toml", "insecure-entitlements = [\"security.insecure\", \"network.host\"]\n[worker.containerd]\nenabled = false\n");
        let address = format!("unix://{}", scratch.join("socket").display());
        let mut command = clean_command(daemon);
        command
            .arg("--config")
            .arg(config)
            .arg("--root")
            .arg(scratch.join("root"))
            .args(["--addr", &address, "--oci-worker-net=host"]);
        command.arg(format!("--oci-worker-binary={}", runc.display()));
        let mut daemon = Daemon::start(&mut command, &scratch.join("log"));
        daemon.wait_for("buildkitd", START_TIMEOUT, |daemon| {
            daemon.output().contains("running server on").then_some(())
        });
        Some(Self {
            _daemon: daemon,
            client,
            address,
            _scratch: scratch,
        })
    }

    /// Builds a case.
    pub(super) fn build(&self, case: &Case, scene: &Scene<'_>) -> Outcome {
        let options = &case.options;
        let archive = scene.scratch.join("buildkit.tar");
        let mut command = clean_command("timeout");
        command.arg(LIMIT_S).arg(&self.client).args([
            "--addr",
            &self.address,
            "build",
            "--progress=plain",
            "--frontend=dockerfile.v0",
        ]);
        command.env("HOME", scene.scratch.path());
        command
            .arg("--output")
            .arg(format!("type=oci,dest={}", archive.display()));
        for name in ["context", "dockerfile"] {
            command
                .arg("--local")
                .arg(format!("{name}={}", scene.context.display()));
        }
        for (name, value) in opts(case, scene) {
            command.arg("--opt").arg(format!("{name}={value}"));
        }
        for what in &options.allow {
            command.arg("--allow").arg(what);
        }
        if let Some(agent) = agent(scene) {
            command.arg("--ssh").arg(agent);
        }
        for (id, value) in &options.secrets {
            command.arg("--secret").arg(format!(
                "id={id},src={}",
                secret(scene, id, value).display()
            ));
        }
        for (name, what) in &scene.contexts {
            context(&mut command, name, what);
        }
        outcome(&mut command, &archive, case, scene, buildkit_line)
    }
}

/// Gives buildctl a named context as buildx would.
fn context(command: &mut Command, name: &str, what: &str) {
    // As buildx shortens it.
    let name = name.strip_prefix("docker.io/library/").unwrap_or(name);
    let option = if let Some(rest) = what.strip_prefix("oci-layout://") {
        let (path, _tag) = rest.rsplit_once(':').unwrap_or((rest, "latest"));
        let (path, _digest) = path.split_once('@').unwrap_or((path, ""));
        let index: Value =
            serde_json::from_slice(&fs::read(Path::new(path).join("index.json")).unwrap()).unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap();
        command.arg("--oci-layout").arg(format!("{name}={path}"));
        format!("oci-layout://{name}@{digest}")
    } else if what.contains("://") {
        what.to_owned()
    } else {
        command.arg("--local").arg(format!("{name}={what}"));
        format!("local:{name}")
    };
    command.arg("--opt").arg(format!("context:{name}={option}"));
}

/// Returns the agent for ssh as both builders want it.
fn agent(scene: &Scene<'_>) -> Option<String> {
    let (socket, _) = scene.agent.as_ref()?;
    Some(format!("default={}", socket.display()))
}

/// Writes a secret, and returns where it is.
fn secret(scene: &Scene<'_>, id: &str, value: &str) -> PathBuf {
    scene.scratch.write(&format!("secrets/{id}"), value)
}

/// Runs a builder.
fn outcome(
    command: &mut Command,
    archive: &Path,
    case: &Case,
    scene: &Scene<'_>,
    line: fn(&str, &str) -> Option<u64>,
) -> Outcome {
    let output = finish(command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let result = if output.status.success() {
        let terms = Terms {
            bases: scene.layers,
            times: case.options.times,
        };
        let image = scene.blanked(&describe(archive, &terms).to_string());
        Ok(serde_json::from_str(&image).unwrap())
    } else {
        let code = output.status.code().unwrap_or(-1);
        let line = line(&said, case.options.file.as_deref().unwrap_or("Dockerfile"));
        let why = said
            .lines()
            .rfind(|line| line.starts_with("error") || line.starts_with("build failed"));
        let mut failure =
            json!({ "line": line, "said": legible(&scene.blanked(why.unwrap_or_default())) });
        // What is wrong with a case is never the machine's fault, nor that of the program itself.
        if !(1..=3).contains(&code) {
            failure["exit"] = code.into();
        }
        Err(failure)
    };
    Outcome { result, said }
}

/// Leaves out what is another in each build: names of snapshots and of mounts.
fn legible(text: &str) -> String {
    let is_passing = |word: &&str| word.contains("::") || word.contains("/cachemounts/");
    text.split(' ')
        .map(|word| if is_passing(&word) { "…" } else { word })
        .collect::<Vec<_>>()
        .join(" ")
}

/// Returns the line that Kiln's error is about: `--> Dockerfile:3:1`.
fn kiln_line(said: &str, file: &str) -> Option<u64> {
    let errors = said.find("\nerror").map_or(said, |at| &said[at..]);
    let marker = format!("{file}:");
    errors.split(&marker).skip(1).find_map(number)
}

/// Returns the line that `BuildKit`'s error is about: a line `Dockerfile:3` above one of dashes.
fn buildkit_line(said: &str, file: &str) -> Option<u64> {
    let lines: Vec<_> = said.lines().collect();
    let name = file.rsplit('/').next().unwrap();
    let pair = lines
        .windows(2)
        .find(|pair| pair[1].starts_with("-----") && pair[0].contains(name))?;
    number(pair[0].rsplit(':').next()?)
}

/// Returns the number that a text begins with.
fn number(text: &str) -> Option<u64> {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Returns a program: the one that a variable names, or the one on the path.
fn program(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = super::setting(variable) {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

#[test]
fn lines_of_errors_are_found() {
    assert_eq!(
        kiln_line(
            "warning\n --> Dockerfile:1:1\nerror: x\n --> Dockerfile:12:3\n",
            "Dockerfile"
        ),
        Some(12)
    );
    assert_eq!(
        buildkit_line("#1 x\nDockerfile:7\n--------\n 7 | >>> x\n", "Dockerfile"),
        Some(7)
    );
    assert_eq!(buildkit_line("error: no line\n", "Dockerfile"), None);
}
