//! The generated clients, tested in their own languages: alone, and against a server that really builds.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use testkit::docker_registry::DockerRegistry;
use testkit::git_server::File;
use testkit::process::{finish, run, tool, wait_for};
use testkit::scratch::Scratch;

use crate::scene::{Scene, Target};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../sdk")
        .join(name)
}

/// How long a build lasts that is only followed.
const SHORT: Duration = Duration::from_secs(2);

/// How long a build lasts during which the server is killed and started again.
const LONG: Duration = Duration::from_secs(10);

/// Time for a test to read the first words of a log.
const MARK_TIMEOUT: Duration = Duration::from_secs(120);

/// A repository whose build says something, takes its time, and says something else.
fn repository(scene: &Scene, name: &str, pause: Duration) -> String {
    let base = scene.busybox();
    let text = format!(
        "FROM {base}\nRUN echo 'said' at first && sleep {} && echo 'said' at last\n",
        pause.as_secs()
    );
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
    with_server(&mut command, &scene, &repository(&scene, "go", SHORT));
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
    let repository = repository(&scene, "go-example", SHORT);
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
    with_server(
        &mut command,
        &scene,
        &repository(&scene, "typescript", SHORT),
    );
    let only = "--test-name-pattern=a real build";
    let text = said(command.args(["--test", REPORTER, only, "lib/test/server.test.js"]));
    assert!(
        text.contains("# fail 0") && text.contains("# pass 1"),
        "{text}"
    );
}

#[test]
fn the_typescript_example_builds_and_shows_the_log() {
    let scene = Scene::start(Target::Embedded);
    let repository = repository(&scene, "typescript-example", SHORT);
    let mut command = node();
    command.args(["examples/build.mjs", scene.kiln.host(), &repository, "main"]);
    let text = said(&mut command);
    assert!(
        text.contains("said at last") && text.contains("/workspace-images:"),
        "{text}"
    );
}

/// Runs an example of `kiln.v1` with a build that ends well, and with one that does not.
fn native_example(scene: &Scene, name: &str, example: impl Fn() -> Command) {
    let repository = repository(scene, name, SHORT);
    let text = said(example().args([scene.kiln.host(), &repository, "main"]));
    let image = format!("{}/builds/example:latest sha256:", scene.kiln.host());
    for part in ["said at first\n", "said at last\n", " took ", &image] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let dockerfile = format!("FROM {}\nRUN exit 7\n", scene.busybox());
    let broken = format!("{name}-broken");
    let mut made = scene.git.repository(&broken);
    made.commit("main", &[File::new("Dockerfile", dockerfile)]);
    let url = scene.git.url(&broken);
    let failed = finish(example().args([scene.kiln.host(), &url, "main"]));
    assert_eq!(failed.status.code(), Some(1));
    let text = String::from_utf8_lossy(&failed.stderr);
    assert!(
        text.contains("FAILURE_REASON_DOCKERFILE: ") && text.contains("exit code: 7"),
        "{text}"
    );
}

#[test]
fn the_go_example_of_the_native_api_builds_and_tells_why_not() {
    let scene = Scene::start(Target::Embedded);
    native_example(&scene, "go-native", || {
        let mut command = go();
        command.args(["run", "./examples/native"]);
        command
    });
}

#[test]
fn the_typescript_example_of_the_native_api_builds_and_tells_why_not() {
    let scene = Scene::start(Target::Embedded);
    native_example(&scene, "typescript-native", || {
        let mut command = node();
        command.arg("examples/native.mjs");
        command
    });
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
        ("go/README.md", "go/examples/native/main.go"),
        ("typescript/README.md", "typescript/examples/build.mjs"),
        ("typescript/README.md", "typescript/examples/native.mjs"),
    ] {
        let text = |name: &str| std::fs::read_to_string(folder(name)).unwrap();
        assert!(
            text(readme).contains(&text(example)),
            "{readme} shows another program than {example}"
        );
    }
}

/// An address that stays while the server behind it comes and goes, as that of a real one does.
struct Door {
    address: SocketAddr,
    server: Arc<Mutex<String>>,
    closing: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

impl Door {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Arc::new(Mutex::new(String::new()));
        let closing = Arc::new(AtomicBool::new(false));
        let (target, end) = (Arc::clone(&server), Arc::clone(&closing));
        let serving = std::thread::spawn(move || {
            for client in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let target = target.lock().unwrap().clone();
                if let (Ok(client), Ok(server)) = (client, TcpStream::connect(target)) {
                    pass_on(&client, &server);
                }
            }
        });
        Self {
            address,
            server,
            closing,
            serving: Some(serving),
        }
    }

    fn leads_to(&self, server: &str) {
        server.clone_into(&mut self.server.lock().unwrap());
    }
}

/// Passes bytes on in both directions, until either end is closed.
fn pass_on(client: &TcpStream, server: &TcpStream) {
    for (from, to) in [(client, server), (server, client)] {
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        std::thread::spawn(move || {
            let _gone = std::io::copy(&mut from, &mut to);
            for end in [from, to] {
                let _gone = end.shutdown(std::net::Shutdown::Both);
            }
        });
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        let _woken = TcpStream::connect(self.address);
        let _ended = self.serving.take().map(JoinHandle::join);
    }
}

/// Runs a test of an SDK, and kills and restarts its server when the test says that it reads the logs.
fn across_a_restart(name: &str, mut command: Command) -> String {
    let door = Door::open();
    let registry = DockerRegistry::with_basic_auth("kiln", "correct horse");
    let config = format!("address = \"{}\"\n", door.address);
    let mut scene = Scene::around(registry, Target::Registry, &config);
    door.leads_to(scene.kiln.host());
    let scratch = Scratch::new();
    let mark = scratch.join("mark");
    with_server(&mut command, &scene, &repository(&scene, name, LONG));
    command.env("KILN_TEST_ADDRESS", door.address.to_string());
    command.env("KILN_TEST_MARK", &mark);
    std::thread::scope(|scope| {
        let test = scope.spawn(move || said(&mut command));
        wait_for("the mark of the test", MARK_TIMEOUT, || {
            (mark.exists() || test.is_finished()).then_some(())
        });
        if mark.exists() {
            scene.kiln.kill();
            scene.kiln.start_again();
            door.leads_to(scene.kiln.host());
        }
        test.join().unwrap()
    })
}

#[test]
fn the_go_module_reads_logs_across_a_restart() {
    let mut command = go();
    let only = "TestLogsAreReadAcrossARestart";
    command.args([
        "test", "-count=1", "-tags", "server", "-run", only, "./sugar",
    ]);
    let text = across_a_restart("go-restart", command);
    assert!(text.contains("ok  \tkiln.dev/sdk/go/sugar"), "{text}");
}

#[test]
fn the_typescript_package_reads_logs_across_a_restart() {
    let mut command = node();
    let only = "--test-name-pattern=logs are read across a restart";
    command.args(["--test", REPORTER, only, "lib/test/server.test.js"]);
    let text = across_a_restart("typescript-restart", command);
    assert!(
        text.contains("# fail 0") && text.contains("# pass 1"),
        "{text}"
    );
}
