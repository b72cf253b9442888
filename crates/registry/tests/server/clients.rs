//! Other people's clients: skopeo and podman.

use std::path::Path;
use std::process::Command;

use oci::Digest;
use serde_json::json;

use crate::harness::Server;

/// Runs a program to its end and returns what it printed.
fn run(package: &str, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} ({error}): install Debian package {package}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn skopeo(arguments: &[&str]) -> String {
    run(
        "skopeo",
        "skopeo",
        &[&["--insecure-policy"], arguments].concat(),
    )
}

/// Writes an image of one layer in the OCI layout and returns the digest of its manifest.
fn write_layout(dir: &Path) -> Digest {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::sha256(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({ "digest": digest, "size": bytes.len() })
    };
    let root = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..3_000_000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    std::fs::write(root.path().join("data"), content).unwrap();
    let tar = root.path().join("layer.tar");
    let (tar, folder) = (tar.to_str().unwrap(), root.path().to_str().unwrap());
    run("tar", "tar", &["-C", folder, "-cf", tar, "data"]);
    run("gzip", "gzip", &["-n", "-k", tar]);
    let diff_id = Digest::sha256(&std::fs::read(tar).unwrap());
    let mut layer = put(&std::fs::read(format!("{tar}.gz")).unwrap());
    layer["mediaType"] = json!(oci::media_type::OCI_LAYER_GZIP);
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    let mut config = put(config.to_string().as_bytes());
    config["mediaType"] = json!(oci::media_type::OCI_CONFIG);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": oci::media_type::OCI_MANIFEST,
        "config": config,
        "layers": [layer],
    });
    let mut manifest = put(manifest.to_string().as_bytes());
    manifest["mediaType"] = json!(oci::media_type::OCI_MANIFEST);
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "v1" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    let version = json!({ "imageLayoutVersion": "1.0.0" });
    std::fs::write(dir.join("oci-layout"), version.to_string()).unwrap();
    manifest["digest"].as_str().unwrap().parse().unwrap()
}

#[test]
fn skopeo_pushes_copies_inspects_pulls_and_deletes() {
    let server = Server::start();
    let layout = server.dir.path().join("layout");
    let digest = write_layout(&layout);
    let from = format!("oci:{}:v1", layout.display());
    let image = |name: &str| format!("docker://{}/{name}", server.address);
    let copy = |from: &str, to: &str, more: &[&str]| {
        let tls = ["--src-tls-verify=false", "--dest-tls-verify=false"];
        skopeo(&[&["copy"], &tls[..], more, &[from, to]].concat());
    };
    copy(&from, &image("a/b:v1"), &["--preserve-digests"]);
    let tag_and_digest = |name: &str| {
        let text = skopeo(&["inspect", "--tls-verify=false", &image(name)]);
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        found["Digest"].as_str().unwrap().to_owned()
    };
    assert_eq!(tag_and_digest("a/b:v1"), digest.to_string());
    // To another repository of the same registry, by mounting, and in the other format.
    copy(&image("a/b:v1"), &image("c:v2"), &["--preserve-digests"]);
    copy(&image("a/b:v1"), &image("c:docker"), &["--format", "v2s2"]);
    let listed = skopeo(&["list-tags", "--tls-verify=false", &image("c")]);
    assert!(
        listed.contains("docker") && listed.contains("v2"),
        "{listed}"
    );
    let pulled = server.dir.path().join("pulled");
    copy(&image("c:v2"), &format!("oci:{}:v2", pulled.display()), &[]);
    for blob in std::fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        let again = pulled.join("blobs/sha256").join(blob.file_name());
        assert!(std::fs::read(blob.path()).unwrap() == std::fs::read(again).unwrap());
    }
    let folder = server.dir.path().join("folder");
    copy(
        &image("c:docker"),
        &format!("dir:{}", folder.display()),
        &[],
    );
    skopeo(&["delete", "--tls-verify=false", &image("c:v2")]);
    let answer = server.get("/v2/c/manifests/v2");
    answer.is(404, "MANIFEST_UNKNOWN");
    assert_eq!(server.count("ingest/uploads"), 0);
}

#[test]
fn podman_pulls_and_pushes() {
    let server = Server::start();
    let layout = server.dir.path().join("layout");
    write_layout(&layout);
    let path = |name: &str| server.dir.path().join(name).display().to_string();
    let (root, run_root, tmp) = (path("root"), path("run"), path("libpod"));
    let image = |name: &str| format!("{}/{name}", server.address);
    let (from, to) = (path("layout"), image("a:v1"));
    let to = format!("docker://{to}");
    skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        &format!("oci:{from}:v1"),
        &to,
    ]);
    let podman = |arguments: &[&str]| {
        let storage = ["--root", &root, "--runroot", &run_root, "--tmpdir", &tmp];
        let driver = ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"];
        let all = [
            &storage[..],
            &driver,
            &["--events-backend", "none"],
            arguments,
        ];
        run("podman", "podman", &all.concat())
    };
    podman(&["pull", "-q", "--tls-verify=false", &image("a:v1")]);
    podman(&["tag", &image("a:v1"), &image("b/c:v2")]);
    podman(&["push", "-q", "--tls-verify=false", &image("b/c:v2")]);
    podman(&["rmi", &image("a:v1"), &image("b/c:v2")]);
    podman(&["pull", "-q", "--tls-verify=false", &image("b/c:v2")]);
    let listed = podman(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
    assert!(listed.contains("b/c:v2"), "{listed}");
}
