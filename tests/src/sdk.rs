//! The generated clients, tested in their own languages: alone, and against a server that really builds.

use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::git_server::File;
use testkit::process::{finish, run, tool};

use crate::scene::{Scene, Target};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../sdk")
        .join(name)
}

/// A repository whose build says something, takes its time, and says something else.
fn repository(scene: &Scene, name: &str) -> String {
    let base = scene.busybox();
    let text = format!("FROM {base}\nRUN echo 'said' at first && sleep 2 && echo 'said' at last\n");
    let mut made = scene.git.repository(name);
    made.commit("main", &[File::new("Dockerfile", text)]);
    scene.git.url(name)
}

/// Tells a test of an SDK where its server is.
fn with_server(command: &mut Command, scene: &Scene, repository: &str) {
    command
        .env("KILN_TEST_ADDRESS", scene.kiln.host())
        .env("KILN_TEST_REPOSITORY", repository)
        .env("KILN_TEST_BRANCH", "main")
        .env("KILN_TEST_BASE", scene.busybox());
}

fn go() -> Command {
    let mut command = Command::new(tool("go", "golang-go, 1.24 or newer"));
    command.current_dir(folder("go"));
    command
}

/// How results are told: the one form that every version of node writes alike.
const REPORTER: &str = "--test-reporter=tap";

/// Returns a command of the compiled package; compiles it when it is not.
fn node() -> Command {
    static COMPILED: std::sync::Once = std::sync::Once::new();
    let node = tool("node", "nodejs, 20 or newer");
    let package = folder("typescript");
    let npm = || {
        let mut command = Command::new(tool("npm", "npm"));
        command.current_dir(&package);
        command
    };
    COMPILED.call_once(|| {
        if !package.join("node_modules/typescript").exists() {
            run(npm().args(["ci", "--silent", "--no-audit", "--no-fund"]));
        }
        run(npm().args(["run", "--silent", "build"]));
    });
    let mut command = Command::new(node);
    command.current_dir(package);
    command
}

/// Returns what a command said; panics with it when it fails.
fn said(command: &mut Command) -> String {
    let output = finish(command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{text}{talk}");
    format!("{text}{talk}")
}

#[test]
fn the_go_module_works_with_its_mocks_alone() {
    let mut gofmt = Command::new(tool("gofmt", "golang-go, 1.24 or newer"));
    let unformatted = said(gofmt.current_dir(folder("go")).args(["-l", "."]));
    assert_eq!(unformatted, "", "gofmt would write these otherwise");
    said(go().args(["vet", "./..."]));
    said(go().args(["vet", "-tags", "server", "./..."]));
    let text = said(go().args(["test", "-count=1", "./..."]));
    assert!(text.contains("ok  \tkiln.dev/sdk/go/sugar"), "{text}");
}

#[test]
fn the_go_module_works_with_a_server() {
    let scene = Scene::start(Target::Embedded);
    let mut command = go();
    with_server(&mut command, &scene, &repository(&scene, "go"));
    command.args([
        "test",
        "-count=1",
        "-tags",
        "server",
        "-run",
        "TestAgainstAServer",
        "./sugar",
    ]);
    let text = said(&mut command);
    assert!(text.contains("ok  \tkiln.dev/sdk/go/sugar"), "{text}");
}

#[test]
fn the_go_example_builds_and_shows_the_log() {
    let scene = Scene::start(Target::Embedded);
    let repository = repository(&scene, "go-example");
    let mut command = go();
    command.args([
        "run",
        "./examples/build",
        scene.kiln.host(),
        &repository,
        "main",
    ]);
    let text = said(&mut command);
    assert!(
        text.contains("said at last") && text.contains("/workspace-images:"),
        "{text}"
    );
}

#[test]
fn the_typescript_package_works_with_its_script_alone() {
    let text = said(node().args(["--test", REPORTER, "lib/test/sugar.test.js"]));
    assert!(
        text.contains("# fail 0") && text.contains("# pass 10"),
        "{text}"
    );
}

#[test]
fn the_typescript_package_works_with_a_server() {
    let scene = Scene::start(Target::Embedded);
    let mut command = node();
    with_server(&mut command, &scene, &repository(&scene, "typescript"));
    let text = said(command.args(["--test", REPORTER, "lib/test/server.test.js"]));
    assert!(
        text.contains("# fail 0") && text.contains("# pass 1"),
        "{text}"
    );
}

#[test]
fn the_typescript_example_builds_and_shows_the_log() {
    let scene = Scene::start(Target::Embedded);
    let repository = repository(&scene, "typescript-example");
    let mut command = node();
    command.args(["examples/build.mjs", scene.kiln.host(), &repository, "main"]);
    let text = said(&mut command);
    assert!(
        text.contains("said at last") && text.contains("/workspace-images:"),
        "{text}"
    );
}

#[test]
fn tests_that_need_a_server_fail_without_one() {
    let mut command = go();
    command.env_remove("KILN_TEST_ADDRESS");
    command.args([
        "test",
        "-count=1",
        "-tags",
        "server",
        "-run",
        "TestAgainstAServer",
        "./sugar",
    ]);
    assert!(!finish(&mut command).status.success());
    let mut command = node();
    command.env_remove("KILN_TEST_ADDRESS");
    assert!(
        !finish(command.args(["--test", REPORTER, "lib/test/server.test.js"]))
            .status
            .success()
    );
}

#[test]
fn the_examples_in_the_readmes_are_the_ones_that_are_tested() {
    for (readme, example) in [
        ("go/README.md", "go/examples/build/main.go"),
        ("typescript/README.md", "typescript/examples/build.mjs"),
    ] {
        let text = |name: &str| std::fs::read_to_string(folder(name)).unwrap();
        assert!(
            text(readme).contains(&text(example)),
            "{readme} shows another program than {example}"
        );
    }
}
