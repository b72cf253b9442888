//! Base images, made from this machine's packages and kept between runs.
//!
//! They are kept as OCI layouts in `$KILN_TEST_CACHE`, else in `kiln/test-bases` of the user's cache directory, in
//! folders named by what they were made of. Nothing is fetched but Debian packages.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::process;

/// Goes into each key: a change of how bases are made makes them anew.
const RECIPE: &str = "1";

/// The packages of the base with a C compiler, beside Debian's minimal set.
const C_PACKAGES: &str = "gcc,libc6-dev";

/// Debian's name for the release that [`debian_with_c`] is made of.
const DEBIAN_SUITE: &str = "bookworm";

/// An image on disk, ready to be pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    layout: PathBuf,
}

/// Returns a base that holds busybox, statically linked, with all its applets in `/bin`.
#[must_use]
pub fn busybox() -> Base {
    let program = process::tool("busybox", "busybox-static");
    let size_bytes = fs::metadata(&program).map_or(0, |metadata| metadata.len());
    make(
        &format!("busybox-{RECIPE}-{size_bytes}"),
        &["/bin/sh"],
        |tar| {
            let root = tar.with_extension("root");
            let text = |path: &str, content: &str| write(&root.join(path), content.as_bytes());
            for directory in ["bin", "etc", "root", "tmp", "usr", "var"] {
                create(&root.join(directory));
            }
            text(
                "etc/passwd",
                "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
            );
            text("etc/group", "root:x:0:\nnogroup:x:65534:\n");
            fs::copy(&program, root.join("bin/busybox"))
                .unwrap_or_else(|error| panic!("copy busybox: {error}"));
            for applet in process::run(Command::new(&program).arg("--list"))
                .lines()
                .filter(|applet| *applet != "busybox")
            {
                std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))
                    .unwrap_or_else(|error| panic!("link {applet}: {error}"));
            }
            process::run(Command::new("chmod").arg("1777").arg(root.join("tmp")));
            let mut archive = Command::new("tar");
            archive.args([
                "--create",
                "--format=pax",
                "--sort=name",
                "--mtime=@0",
                "--owner=0",
                "--group=0",
                "--numeric-owner",
            ]);
            archive.args(["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"]);
            process::run(
                archive
                    .arg("--file")
                    .arg(tar)
                    .arg("--directory")
                    .arg(&root)
                    .arg("."),
            );
            fs::remove_dir_all(&root)
                .unwrap_or_else(|error| panic!("remove {}: {error}", root.display()));
            vec![tar.to_owned()]
        },
    )
}

/// Returns a minimal Debian with a C compiler and the C library's headers.
#[must_use]
pub fn debian_with_c() -> Base {
    debian(C_PACKAGES, 1)
}

/// Returns a minimal Debian with `packages` (a list with commas) in `n_layers` layers of about one size.
#[must_use]
pub fn debian(packages: &str, n_layers: usize) -> Base {
    let program = process::tool("mmdebstrap", "mmdebstrap");
    let mut key = format!(
        "debian-{RECIPE}-{DEBIAN_SUITE}-{}",
        packages.replace(',', "-")
    );
    if n_layers > 1 {
        let _infallible = write!(key, "-{n_layers}");
    }
    make(&key, &["/bin/bash"], |tar| {
        let mut command = Command::new(&program);
        command.args(["--quiet", "--variant=minbase"]);
        if !packages.is_empty() {
            command.arg(format!("--include={packages}"));
        }
        for path in ["doc", "man", "info", "locale"] {
            command.arg(format!("--dpkgopt=path-exclude=/usr/share/{path}/*"));
        }
        process::run(command.arg(DEBIAN_SUITE).arg(tar));
        split(tar, n_layers)
    })
}

/// Splits an archive into `n` of about one size, in the order of its entries.
fn split(tar: &Path, n: usize) -> Vec<PathBuf> {
    if n <= 1 {
        return vec![tar.to_owned()];
    }
    let root = tar.with_extension("root");
    create(&root);
    let mut unpack = Command::new("tar");
    unpack
        .arg("--extract")
        .arg("--file")
        .arg(tar)
        .arg("--directory")
        .arg(&root);
    process::run(unpack.args(["--numeric-owner", "--same-permissions", "--exclude=./dev/*"]));
    let list = Command::new("find")
        .arg(&root)
        .args(["-printf", "%s %P\\0"])
        .output();
    let list = list.map(|output| output.stdout).unwrap_or_default();
    let mut entries: Vec<(u64, &[u8])> = list
        .split(|byte| *byte == 0)
        .filter_map(|entry| {
            let at = entry.iter().position(|byte| *byte == b' ')?;
            let (size, path) = entry.split_at(at);
            Some((
                std::str::from_utf8(size).ok()?.parse().ok()?,
                path.get(1..)?,
            ))
        })
        .filter(|(_, path)| !path.is_empty())
        .collect();
    entries.sort_by_key(|(_, path)| *path);
    let total: u64 = entries.iter().map(|(size, _)| size).sum();
    let mut parts: Vec<Vec<u8>> = vec![Vec::new(); n];
    let mut seen = 0;
    for (size, path) in entries {
        let index = usize::try_from(seen * n as u64 / total.max(1)).unwrap_or(0);
        if let Some(part) = parts.get_mut(index.min(n - 1)) {
            part.extend_from_slice(path);
            part.push(0);
        }
        seen += size;
    }
    let made = parts.iter().enumerate().map(|(index, names)| {
        let (part, list) = (
            tar.with_extension(format!("{index}.tar")),
            tar.with_extension("list"),
        );
        write(&list, names);
        let mut pack = Command::new("tar");
        pack.args([
            "--create",
            "--format=pax",
            "--no-recursion",
            "--null",
            "--numeric-owner",
        ]);
        pack.arg("--directory")
            .arg(&root)
            .arg("--file")
            .arg(&part)
            .arg("--files-from")
            .arg(&list);
        process::run(&mut pack);
        let _gone = fs::remove_file(&list);
        part
    });
    let made: Vec<PathBuf> = made.collect();
    process::run(Command::new("rm").arg("-rf").arg(&root).arg(tar));
    made
}

impl Base {
    /// Returns the OCI layout that holds the image as `latest`.
    #[must_use]
    pub fn layout(&self) -> &Path {
        &self.layout
    }

    /// Returns the digest of the manifest.
    #[must_use]
    pub fn digest(&self) -> String {
        let index = fs::read(self.layout.join("index.json")).unwrap_or_default();
        let index: Value = serde_json::from_slice(&index).unwrap_or_default();
        let digest = index.pointer("/manifests/0/digest").and_then(Value::as_str);
        digest
            .unwrap_or_else(|| panic!("no image in {}", self.layout.display()))
            .to_owned()
    }

    /// Pushes the image to a registry on loopback, as `name` (`repository:tag`), and returns its whole reference.
    pub fn push(&self, host: &str, name: &str, credentials: Option<(&str, &str)>) -> String {
        let skopeo = process::tool("skopeo", "skopeo");
        let reference = format!("{host}/{name}");
        let mut command = Command::new(skopeo);
        command.args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
        ]);
        match credentials {
            Some((user, password)) => command.arg(format!("--dest-creds={user}:{password}")),
            None => command.arg("--dest-no-creds"),
        };
        command
            .arg(format!("oci:{}:latest", self.layout.display()))
            .arg(format!("docker://{reference}"));
        process::run(&mut command);
        reference
    }
}

/// Returns the folder that bases are kept in.
#[must_use]
pub fn cache_directory() -> PathBuf {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    variable("KILN_TEST_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("kiln/test-bases")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/kiln/test-bases")))
        .unwrap_or_else(|| std::env::temp_dir().join("kiln-test-bases"))
}

/// Returns the base `key`, made by `write_tars` unless it is there; several test processes make it once.
fn make(key: &str, command: &[&str], write_tars: impl FnOnce(&Path) -> Vec<PathBuf>) -> Base {
    let cache = cache_directory();
    create(&cache);
    let layout = cache.join(key);
    let lock = fs::File::create(cache.join(format!("{key}.lock")))
        .unwrap_or_else(|error| panic!("create a lock: {error}"));
    lock.lock()
        .unwrap_or_else(|error| panic!("lock {key}: {error}"));
    if !layout.join("index.json").exists() {
        let draft = cache.join(format!("{key}.draft"));
        // What a killed run left.
        let _absent = fs::remove_dir_all(&draft);
        create(&draft.join("blobs/sha256"));
        let tar = draft.join("layer.tar");
        let tars = write_tars(&tar);
        write_layout(&draft, &tars, command);
        fs::rename(&draft, &layout)
            .unwrap_or_else(|error| panic!("rename {}: {error}", draft.display()));
    }
    Base { layout }
}

/// Writes an OCI layout around layers, bottom first.
fn write_layout(layout: &Path, tars: &[PathBuf], command: &[&str]) {
    let (mut layers, mut diff_ids, mut history) = (Vec::new(), Vec::new(), Vec::new());
    for tar in tars {
        diff_ids.push(format!("sha256:{}", sha256(tar)));
        process::run(Command::new("gzip").args(["--no-name", "-1"]).arg(tar));
        let mut layer = tar.clone().into_os_string();
        layer.push(".gz");
        let layer = PathBuf::from(layer);
        layers.push(descriptor(
            "application/vnd.oci.image.layer.v1.tar+gzip",
            &layer,
        ));
        keep(layout, &layer);
        history.push(json!({ "created": "1970-01-01T00:00:00Z", "created_by": "testkit" }));
    }
    let architecture = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": architecture,
        "os": "linux",
        "config": { "Cmd": command, "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": history,
    });
    let config_descriptor = document(layout, "application/vnd.oci.image.config.v1+json", &config);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config_descriptor, "layers": layers });
    let mut manifest_descriptor = document(layout, media_type, &manifest);
    if let Some(object) = manifest_descriptor.as_object_mut() {
        object.insert(
            "annotations".to_owned(),
            json!({ "org.opencontainers.image.ref.name": "latest" }),
        );
    }
    write(
        &layout.join("oci-layout"),
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    );
    write(
        &layout.join("index.json"),
        json!({ "schemaVersion": 2, "manifests": [manifest_descriptor] })
            .to_string()
            .as_bytes(),
    );
}

/// Writes a document as a blob and returns its descriptor.
fn document(layout: &Path, media_type: &str, value: &Value) -> Value {
    let path = layout.join("document.json");
    write(&path, value.to_string().as_bytes());
    let descriptor = descriptor(media_type, &path);
    keep(layout, &path);
    descriptor
}

/// Returns the descriptor of a file.
fn descriptor(media_type: &str, path: &Path) -> Value {
    let size_bytes = fs::metadata(path).map_or(0, |metadata| metadata.len());
    json!({ "mediaType": media_type, "digest": format!("sha256:{}", sha256(path)), "size": size_bytes })
}

/// Moves a file to its place among the blobs.
fn keep(layout: &Path, path: &Path) {
    let blob = layout.join("blobs/sha256").join(sha256(path));
    fs::rename(path, &blob).unwrap_or_else(|error| panic!("rename {}: {error}", path.display()));
}

/// Returns the digest of a file; another program than ours computes it.
fn sha256(path: &Path) -> String {
    let output = process::run(Command::new("sha256sum").arg("--").arg(path));
    output.split(' ').next().unwrap_or_default().to_owned()
}

fn create(directory: &Path) {
    fs::create_dir_all(directory)
        .unwrap_or_else(|error| panic!("create {}: {error}", directory.display()));
}

fn write(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
}
