//! `kiln build` without a server: what goes in, what comes out, and how it ends.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use testkit::bases;
use testkit::docker_registry::DockerRegistry;
use testkit::kiln::binary;
use testkit::process::{clean_command, finish};
use testkit::scratch::Scratch;

use crate::reader;

/// A state directory, a registry with busybox in it, and a folder to build.
pub(crate) struct Bench {
    pub(crate) scratch: Scratch,
    pub(crate) base: String,
    _registry: DockerRegistry,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let registry = DockerRegistry::start();
        let base = bases::busybox().push(registry.host(), "base/busybox:1", None);
        let scratch = Scratch::new();
        let bench = Self {
            scratch,
            base,
            _registry: registry,
        };
        bench.scratch.write("context/data", "data\n");
        bench
            .scratch
            .write("kiln.toml", crate::ordinary_user::network_config());
        bench.dockerfile("COPY data /data\nRUN echo made > /made\n");
        bench
    }

    /// Writes the Dockerfile: FROM the base, then these lines.
    pub(crate) fn dockerfile(&self, lines: &str) {
        let text = format!("FROM {}\n{lines}", self.base);
        self.scratch.write("context/Dockerfile", text);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = self.kiln();
        command.arg("build");
        command
    }

    /// Returns a command of the built program, with a state directory of its own.
    pub(crate) fn kiln(&self) -> Command {
        let mut command = clean_command(binary());
        command
            .current_dir(self.scratch.path())
            .env("HOME", self.scratch.path())
            .env("KILN_STATE", self.path("state"))
            .env("KILN_CONFIG", self.path("kiln.toml"));
        command
    }

    pub(crate) fn build(&self, arguments: &[&str]) -> Ended {
        Ended::of(finish(self.command().args(arguments)))
    }
}

/// How a command ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub(crate) fn well(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    pub(crate) fn with(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        for word in words {
            assert!(
                self.stderr.contains(word),
                "{word:?} is not in\n{}",
                self.stderr
            );
        }
        self
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn every_output_is_what_others_expect_it_to_be() {
    let bench = Bench::new();
    let ended = bench.build(&[
        "-t",
        "app:1",
        "-o",
        "type=oci,dest=oci.tar",
        "-o",
        "type=docker,dest=docker.tar",
        "-o",
        "type=tar,dest=root.tar",
        "-o",
        "root",
        "--iidfile",
        "iid",
        "--metadata-file",
        "metadata.json",
        "context",
    ]);
    assert!(ended.well().stdout.is_empty());
    for source in ["oci-archive:oci.tar", "docker-archive:docker.tar"] {
        let (kind, name) = source.split_once(':').unwrap();
        let mut pulled = reader::read(&format!("{kind}:{}", bench.path(name).display()));
        let root = pulled.root();
        assert_eq!(
            std::fs::read_to_string(root.join("made")).unwrap(),
            "made\n",
            "{source}"
        );
    }
    let names = reader::tar_names(&bench.path("root.tar"));
    for name in ["data", "made", "bin/busybox"] {
        assert!(
            names.iter().any(|found| found == name),
            "{name} is not in {names:?}"
        );
        assert!(
            bench.path("root").join(name).exists(),
            "{name} is not in the folder"
        );
    }
    let metadata = json(&bench.path("metadata.json"));
    let iid = std::fs::read_to_string(bench.path("iid")).unwrap();
    assert_eq!(metadata["containerimage.config.digest"], iid);
    assert!(
        metadata["containerimage.digest"]
            .as_str()
            .unwrap()
            .starts_with("sha256:")
    );
    assert_eq!(
        std::fs::read_dir(bench.path("state/builds"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn the_second_time_nothing_is_run_and_everything_is_the_same() {
    let bench = Bench::new();
    let build = |bench: &Bench, more: &[&str]| {
        let ended = bench.build(&[more, &["--metadata-file", "metadata.json", "context"]].concat());
        ended.well();
        json(&bench.path("metadata.json"))
    };
    let first = build(&bench, &[]);
    assert_ne!(first["kiln.steps.run"], 0);
    let second = build(&bench, &[]);
    assert_eq!(second["kiln.steps.run"], 0);
    assert_eq!(
        first["containerimage.digest"],
        second["containerimage.digest"]
    );
    bench.scratch.write("context/data", "other data\n");
    let changed = build(&bench, &["--progress", "plain"]);
    assert_ne!(changed["kiln.steps.run"], 0);
    let ignored = build(&bench, &["--no-cache"]);
    assert_eq!(ignored["kiln.steps.cached"], 0);
}

#[test]
fn an_image_is_pushed_under_each_of_its_names() {
    let bench = Bench::new();
    let host = bench.base.split('/').next().unwrap().to_owned();
    let (one, two) = (format!("{host}/made/app:1"), format!("{host}/made/other:2"));
    bench
        .build(&["--push", "-t", &one, "-t", &two, "context"])
        .well();
    assert_eq!(reader::digest(&one, None), reader::digest(&two, None));
    assert!(reader::pull(&one, None).root().join("made").exists());
}

#[test]
fn data_goes_to_standard_output_and_words_do_not() {
    let bench = Bench::new();
    let quiet = bench.build(&["-q", "context"]).well();
    let digest = String::from_utf8(quiet.stdout).unwrap();
    assert!(digest.starts_with("sha256:") && digest.ends_with('\n'));
    assert_eq!(quiet.stderr, "");
    let tar = bench.build(&["-o", "-", "context"]).well();
    std::fs::write(bench.path("out.tar"), tar.stdout).unwrap();
    assert!(reader::tar_names(&bench.path("out.tar")).contains(&"made".to_owned()));
    let raw = bench
        .build(&["--progress", "rawjson", "--no-cache", "context"])
        .well();
    let lines: Vec<Value> = raw
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.last().unwrap()["event"]["type"], "succeeded");
}

#[test]
fn the_command_line_reaches_the_build() {
    let bench = Bench::new();
    bench.scratch.write(
        "elsewhere/Other",
        format!(
            "ARG WHAT=nothing\nFROM {} AS wanted\nARG WHAT\nARG HOST_SAYS\nRUN echo \"$WHAT $HOST_SAYS\" > /what\nFROM scratch\n",
            bench.base
        ),
    );
    let mut command = bench.command();
    command.env("HOST_SAYS", "hello");
    command.args([
        "-f",
        "elsewhere/Other",
        "--target",
        "wanted",
        "--build-arg",
        "WHAT=something",
        "--build-arg",
        "HOST_SAYS",
        "--label",
        "a=b",
        "-o",
        "type=oci,dest=oci.tar",
        "context",
    ]);
    Ended::of(finish(&mut command)).well();
    let mut pulled = reader::read(&format!("oci-archive:{}", bench.path("oci.tar").display()));
    let what = std::fs::read_to_string(pulled.root().join("what")).unwrap();
    assert_eq!(what, "something hello\n");
    assert_eq!(pulled.config()["config"]["Labels"]["a"], "b");
}

#[test]
fn an_ignored_file_is_not_in_the_context() {
    let bench = Bench::new();
    bench.dockerfile("COPY . /context\n");
    bench.scratch.write("context/secret.key", "x");
    bench
        .scratch
        .write("context/.dockerignore", "*.key\nDockerfile\n");
    bench.build(&["-o", "root", "context"]).well();
    let names: Vec<_> = std::fs::read_dir(bench.path("root/context"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        !names
            .iter()
            .any(|name| name == "secret.key" || name == "Dockerfile"),
        "{names:?}"
    );
    assert!(names.iter().any(|name| name == "data"), "{names:?}");
}

#[test]
fn a_dockerfile_comes_from_standard_input() {
    let bench = Bench::new();
    for (arguments, lines) in [
        (
            &["-f", "-", "-o", "root-a", "context"][..],
            "COPY data /data\n",
        ),
        (&["-o", "root-b", "-"][..], "RUN echo x > /data\n"),
    ] {
        let path = bench
            .scratch
            .write("input", format!("FROM {}\n{lines}", bench.base));
        let mut command = bench.command();
        command
            .args(arguments)
            .stdin(std::fs::File::open(path).unwrap());
        Ended::of(command.output().unwrap()).well();
    }
    assert!(bench.path("root-a/data").exists() && bench.path("root-b/data").exists());
}

#[test]
fn how_it_ended_is_in_the_exit_code() {
    let bench = Bench::new();
    bench.dockerfile("RUN echo the last words && exit 7\n");
    bench
        .build(&["context"])
        .with(1, &["build failed: ", "the last words", "7"]);
    bench
        .build(&["-q", "context"])
        .with(1, &["error: build failed: ", "the last words"]);
    bench.dockerfile("RUNN typo\n");
    bench.build(&["context"]).with(1, &["RUNN typo", "2"]);
    bench
        .build(&["no-such-folder"])
        .with(2, &["error: ", "no-such-folder"]);
    bench
        .build(&["--platform", "linux/s390x", "context"])
        .with(2, &["not supported yet"]);
    bench
        .build(&["--push", "context"])
        .with(2, &["hint: ", "-t"]);
    bench
        .build(&["--server", "127.0.0.1:1", "context"])
        .with(3, &["connect to the server"]);
    bench
        .build(&["--server", "127.0.0.1:1", "http://127.0.0.1:1/x.git"])
        .with(3, &["error: "]);
    bench
        .scratch
        .write("context/Dockerfile", "FROM 127.0.0.1:1/nobody/listens\n");
    bench.build(&["context"]).with(3, &[]);
    let frobnicate = finish(clean_command(binary()).arg("frobnicate"));
    Ended::of(frobnicate).with(2, &[]);
}

#[test]
fn an_interrupted_build_stops_its_steps() {
    let bench = Bench::new();
    bench.dockerfile("RUN echo beg'un' && sleep 300\n");
    let log = bench.path("log");
    let mut command = bench.command();
    command.args(["--progress", "plain", "context"]);
    let mut daemon = testkit::process::Daemon::start(&mut command, &log);
    daemon.wait_for("the step", std::time::Duration::from_secs(60), |daemon| {
        daemon.output().contains(" begun\n").then_some(())
    });
    let stopped = daemon.stop();
    assert_eq!(stopped, testkit::process::Stopped::Gracefully);
    assert!(daemon.output().contains("cancelled"), "{}", daemon.output());
    let left = testkit::process::processes_using(bench.scratch.path());
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_build_is_cancelled_from_beside_it() {
    let bench = Bench::new();
    bench.dockerfile("RUN echo beg'un' && sleep 300\n");
    let log = bench.path("log");
    let mut command = bench.command();
    command.args(["--progress", "plain", "context"]);
    let mut daemon = testkit::process::Daemon::start(&mut command, &log);
    daemon.wait_for("the step", std::time::Duration::from_secs(60), |daemon| {
        daemon.output().contains(" begun\n").then_some(())
    });
    let mut builds = std::fs::read_dir(bench.path("state/builds")).unwrap();
    let id = builds.next().unwrap().unwrap().file_name();
    let id = id.to_str().unwrap();
    let cancel = |id: &str| Ended::of(finish(bench.kiln().args(["cancel", id])));
    let said = cancel(id).well().stderr;
    assert!(said.contains("is cancelled"), "{said}");
    let begun = std::time::Instant::now();
    while !testkit::process::processes_using(bench.scratch.path()).is_empty() {
        let left = testkit::process::processes_using(bench.scratch.path());
        assert!(begun.elapsed().as_secs() < 2, "{left:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(daemon.output().contains("cancelled"), "{}", daemon.output());
    // What has ended stays as it is.
    let said = cancel(id).well().stderr;
    assert!(said.contains("had ended: cancelled"), "{said}");
    let unknown = "a".repeat(id.len());
    cancel(&unknown).with(2, &["there is no build", "kiln ls"]);
}

#[test]
fn what_was_built_is_listed_and_its_log_is_kept() {
    let bench = Bench::new();
    bench.build(&["-t", "app:1", "context"]).well();
    let kiln = |arguments: &[&str]| {
        let mut command = clean_command(binary());
        command
            .env("KILN_STATE", bench.path("state"))
            .env("HOME", bench.scratch.path());
        let ended = Ended::of(finish(command.args(arguments))).well();
        String::from_utf8(ended.stdout).unwrap()
    };
    assert!(!kiln(&["ls"]).contains("succeeded"));
    let listed = kiln(&["ls", "--all"]);
    assert!(
        listed.contains("succeeded") && listed.contains("docker.io/library/app:1"),
        "{listed}"
    );
    let log = kiln(&["logs", "app:1"]);
    assert!(log.contains("RUN echo made"), "{log}");
    let resolved = kiln(&["resolve", &bench.base]);
    assert!(resolved.contains(&bases::busybox().digest()), "{resolved}");
    for arguments in [
        &["config"][..],
        &["version"],
        &["completions", "bash"],
        &["--help"],
    ] {
        assert!(!kiln(arguments).is_empty(), "{arguments:?}");
    }
}
