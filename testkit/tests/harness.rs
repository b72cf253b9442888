//! The harness itself, tried with tools that know nothing of it.

use std::process::Command;

use testkit::bases;
use testkit::docker_registry::DockerRegistry;
use testkit::git_server::{File, GitServer};
use testkit::process::{self, clean_command, finish, run, tool};
use testkit::proxy::{Action, Bearer, Proxy, Rule};
use testkit::scratch::Scratch;

/// Returns skopeo for registries on loopback.
fn skopeo(verb: &str) -> Command {
    let mut command = Command::new(tool("skopeo", "skopeo"));
    command.args(["--insecure-policy", verb]);
    command
}

#[test]
fn a_served_repository_can_be_cloned_and_has_fixed_commits() {
    let server = GitServer::start();
    let mut repository = server.repository("project");
    let commit = repository.commit(
        "main",
        &[
            File::new("a b", "1\n"),
            File::executable("run", "#!/bin/sh\n"),
            File::symlink("link", "a b"),
        ],
    );
    assert_eq!(commit, "8725becd75b573f149813b1ef4029280ca5e3071");
    let scratch = Scratch::new();
    let target = scratch.join("clone");
    run(clean_command("git")
        .env("HOME", scratch.path())
        .args(["clone", "--quiet", &server.url("project")])
        .arg(&target));
    assert_eq!(std::fs::read_to_string(target.join("link")).unwrap(), "1\n");
    assert!(
        server
            .requests()
            .iter()
            .all(|request| request.status == 200)
    );
}

#[test]
fn a_server_with_a_password_refuses_everybody_else() {
    let server = GitServer::with_basic_auth("user", "secret");
    server
        .repository("project")
        .commit("main", &[File::new("a", "1\n")]);
    let list = |url: &str| {
        finish(
            clean_command("git")
                .env("GIT_TERMINAL_PROMPT", "0")
                .args(["ls-remote", url]),
        )
        .status
        .success()
    };
    assert!(!list(&server.url("project")));
    assert!(list(
        &server
            .url("project")
            .replace("http://", "http://user:secret@")
    ));
}

#[test]
fn a_base_can_be_pushed_and_inspected_with_the_right_password_only() {
    let registry = DockerRegistry::with_basic_auth("user", "secret");
    let base = bases::busybox();
    let reference = base.push(registry.host(), "library/busybox:1", registry.credentials());
    let inspect = |credentials: &str| {
        let mut command = skopeo("inspect");
        command
            .args(["--tls-verify=false", "--format={{.Digest}}", credentials])
            .arg(format!("docker://{reference}"));
        finish(&mut command)
    };
    let output = inspect("--creds=user:secret");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        base.digest()
    );
    assert!(!inspect("--no-creds").status.success());
}

#[test]
fn a_bearer_proxy_serves_clients_that_fetch_its_tokens() {
    let registry = DockerRegistry::start();
    let proxy = Proxy::with_bearer(registry.host(), Bearer::new("user", "secret"));
    let reference = bases::busybox().push(&proxy.host(), "a/b:1", Some(("user", "secret")));
    let refused = finish(
        skopeo("inspect")
            .args(["--tls-verify=false", "--no-creds"])
            .arg(format!("docker://{reference}")),
    );
    assert!(!refused.status.success());
    assert!(
        proxy
            .requests()
            .iter()
            .any(|request| request.path.starts_with("/token"))
    );
}

#[test]
fn rules_change_what_a_client_sees_and_end() {
    let registry = DockerRegistry::start();
    let base = bases::busybox();
    base.push(registry.host(), "a/b:1", None);
    let proxy = Proxy::in_front_of(registry.host());
    let scratch = Scratch::new();
    let pull = |name: &str| {
        let mut command = skopeo("copy");
        command
            .args(["--src-tls-verify=false", "--src-no-creds"])
            .arg(format!("docker://{}/a/b:1", proxy.host()));
        finish(command.arg(format!("oci:{}", scratch.join(name).display())))
            .status
            .success()
    };
    assert!(pull("untouched"));
    for (name, action) in [
        ("status", Action::Status(403)),
        ("disconnect", Action::Disconnect),
        ("truncate", Action::Truncate { after_bytes: 100 }),
        ("flip", Action::Flip { at_byte: 10 }),
    ] {
        proxy.rule(Rule::new("/manifests/", action).method("GET"));
        assert!(!pull(name), "{name}");
        proxy.behave();
    }
    assert!(pull("afterwards"));
}

#[test]
fn a_missing_tool_is_named_with_its_package() {
    let panic = std::panic::catch_unwind(|| tool("no-such-tool", "no-such-package")).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("no-such-tool") && text.contains("no-such-package"));
}

#[test]
fn processes_that_use_a_directory_are_found() {
    let scratch = Scratch::new();
    let mut sleeper = process::Daemon::start(
        Command::new("sleep").arg("60").current_dir(scratch.path()),
        &scratch.join("log"),
    );
    let found = process::processes_using(scratch.path());
    assert_eq!(
        found.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        [sleeper.id()]
    );
    sleeper.kill();
    assert!(process::processes_using(scratch.path()).is_empty());
}

#[test]
fn the_debian_base_holds_a_compiler_and_is_made_once() {
    let base = bases::debian_with_c();
    assert_eq!(bases::debian_with_c(), base);
    let manifest = base
        .layout()
        .join("blobs/sha256")
        .join(base.digest().trim_start_matches("sha256:"));
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let blob = base
        .layout()
        .join("blobs/sha256")
        .join(layer.trim_start_matches("sha256:"));
    let listing = run(Command::new("tar")
        .args(["--list", "--gzip", "--file"])
        .arg(blob));
    for path in ["usr/bin/gcc", "usr/include/stdio.h"] {
        assert!(listing.lines().any(|line| line.ends_with(path)), "{path}");
    }
}
