//! What others make of our images: skopeo checks every digest, umoci unpacks, runc runs. None of them shares code with us.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use testkit::process::{clean_command, finish, run, tool};
use testkit::scratch::Scratch;

/// An image that was pulled.
pub(crate) struct Pulled {
    scratch: Scratch,
    unpacked: bool,
}

/// Pulls an image from a registry on loopback.
pub(crate) fn pull(reference: &str, credentials: Option<(&str, &str)>) -> Pulled {
    copy(&format!("docker://{reference}"), credentials)
}

/// Reads an image from a file: `oci-archive:PATH` or `docker-archive:PATH`.
pub(crate) fn read(source: &str) -> Pulled {
    copy(source, None)
}

fn copy(source: &str, credentials: Option<(&str, &str)>) -> Pulled {
    let scratch = Scratch::new();
    let mut command = skopeo();
    command.args(["copy", "--quiet", "--src-tls-verify=false"]);
    if let Some((user, password)) = credentials {
        command.arg(format!("--src-creds={user}:{password}"));
    }
    command.arg(source);
    command.arg(format!("oci:{}:latest", scratch.join("layout").display()));
    run(&mut command);
    Pulled {
        scratch,
        unpacked: false,
    }
}

fn skopeo() -> Command {
    let mut command = clean_command(tool("skopeo", "skopeo"));
    command.arg("--insecure-policy").env("HOME", "/nonexistent");
    command
}

/// Returns the digest that a registry gives for a name.
pub(crate) fn digest(reference: &str, credentials: Option<(&str, &str)>) -> String {
    let mut command = skopeo();
    command.args(["inspect", "--tls-verify=false", "--format={{.Digest}}"]);
    if let Some((user, password)) = credentials {
        command.arg(format!("--creds={user}:{password}"));
    }
    run(command.arg(format!("docker://{reference}")))
        .trim()
        .to_owned()
}

impl Pulled {
    /// Returns the image's configuration.
    pub(crate) fn config(&self) -> Value {
        let mut command = skopeo();
        command.args(["inspect", "--config"]);
        command.arg(format!(
            "oci:{}:latest",
            self.scratch.join("layout").display()
        ));
        serde_json::from_str(&run(&mut command)).unwrap()
    }

    /// Runs the image's own command in a container and returns what it wrote.
    pub(crate) fn run(&mut self) -> String {
        let bundle = self.bundle();
        let path = bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["process"]["terminal"] = false.into();
        if !is_root() {
            // The container of an ordinary user has the one user that it maps.
            config["process"]["user"] = serde_json::json!({"uid": 0, "gid": 0});
        }
        std::fs::write(&path, config.to_string()).unwrap();
        let id = format!("kiln-test-{}", std::process::id());
        let mut command = clean_command(tool("runc", "runc"));
        command.arg("--root").arg(self.scratch.join("runc"));
        run(command.args(["run", "--bundle"]).arg(&bundle).arg(id))
    }

    /// Returns the owner of a file of the image as tar lists it: `user/group`, in numbers.
    pub(crate) fn owner(&self, name: &str) -> String {
        let blobs = self.scratch.join("layout/blobs/sha256");
        for blob in std::fs::read_dir(blobs).unwrap() {
            let mut command = Command::new("tar");
            command.args(["--list", "--verbose", "--numeric-owner", "--gzip", "--file"]);
            // The manifest and the configuration are among the blobs, and no archives.
            let listed = finish(command.arg(blob.unwrap().path()));
            let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
            let line = listed
                .lines()
                .find(|line| line.ends_with(&format!(" {name}")));
            if let Some(owner) = line.and_then(|line| line.split_whitespace().nth(1)) {
                return owner.to_owned();
            }
        }
        panic!("{name} is in no layer");
    }

    /// Returns the root filesystem.
    pub(crate) fn root(&mut self) -> std::path::PathBuf {
        self.bundle().join("rootfs")
    }

    fn bundle(&mut self) -> std::path::PathBuf {
        let bundle = self.scratch.join("bundle");
        if !self.unpacked {
            let mut command = clean_command(tool("umoci", "umoci"));
            command.arg("unpack");
            if !is_root() {
                // Everything belongs to us then, and the container maps its root to us.
                command.arg("--rootless");
            }
            command.arg("--image");
            command.arg(format!("{}:latest", self.scratch.join("layout").display()));
            run(command.arg(&bundle));
            self.unpacked = true;
        }
        bundle
    }
}

fn is_root() -> bool {
    run(Command::new("id").arg("-u")).trim() == "0"
}

/// Returns the names in a tar, sorted, without leading `./` and closing `/`.
pub(crate) fn tar_names(path: &Path) -> Vec<String> {
    let mut command = Command::new("tar");
    let listed = run(command.arg("--list").arg("--file").arg(path));
    let clean = |name: &str| {
        name.trim_start_matches("./")
            .trim_end_matches('/')
            .to_owned()
    };
    let mut names: Vec<_> = listed
        .lines()
        .map(clean)
        .filter(|name| !name.is_empty())
        .collect();
    names.sort();
    names
}
