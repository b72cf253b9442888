//! `kiln build --server`: what a server makes of the command line, and what is left on it.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use testkit::docker_registry::{DockerRegistry, docker_config};
use testkit::git_server::File;
use testkit::kiln::binary;
use testkit::process::{clean_command, finish, run};
use testkit::scratch::Scratch;

use crate::command::Ended;
use crate::reader;
use crate::scene::{BUILD_TIMEOUT, Scene, Target};
use crate::steps::{Agent, program};

/// Somebody with a server, and a home of their own.
struct Caller<'a> {
    scene: &'a Scene,
    home: Scratch,
}

impl<'a> Caller<'a> {
    fn of(scene: &'a Scene) -> Self {
        let home = Scratch::new();
        Self { scene, home }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = clean_command(binary());
        command
            .current_dir(self.home.path())
            .env("HOME", self.home.path())
            .env("DOCKER_CONFIG", self.home.join(".docker"))
            .args(["build", "--server", self.scene.kiln.host()])
            .args(arguments);
        command
    }

    fn build(&self, arguments: &[&str]) -> Ended {
        Ended::of(finish(&mut self.command(arguments)))
    }

    fn metadata(&self) -> Value {
        let text = std::fs::read(self.home.join("metadata.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }
}

fn repository(scene: &Scene, files: &[File]) -> String {
    scene.git.repository("app").commit("main", files);
    format!("{}#main", scene.git.url("app"))
}

#[test]
fn options_of_the_command_line_are_carried_out_on_the_server() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let dockerfile = format!(
        "FROM {base} AS first\nARG WHAT\nRUN echo $WHAT > /what && grep -q 10.1.2.3 /etc/hosts\n\
         FROM first AS second\nRUN echo in vain > /second\nFROM given\nCOPY data /data\n"
    );
    let files = [
        File::new("sub/Dockerfile", dockerfile),
        File::new("sub/data", "data\n"),
    ];
    let url = format!("{}:sub", repository(&scene, &files));
    let caller = Caller::of(&scene);
    let given = format!("given=docker-image://{base}");
    let ended = caller.build(&[
        "--target=first",
        "--build-arg=WHAT=said",
        "--label=a=b",
        "--add-host=db:10.1.2.3",
        "--build-context",
        &given,
        "-t",
        "team/app:1",
        "--metadata-file=metadata.json",
        "--iidfile=iid",
        "--progress=plain",
        &url,
    ]);
    let said = ended.well().stderr;
    assert!(said.contains("RUN echo $WHAT"), "{said}");
    assert!(!said.contains("in vain"), "{said}");
    let metadata = caller.metadata();
    let name = metadata["image.name"].as_str().unwrap();
    assert_eq!(name, format!("{}/builds/team/app:1", scene.kiln.host()));
    let iid = std::fs::read_to_string(caller.home.join("iid")).unwrap();
    assert_eq!(metadata["containerimage.config.digest"], iid.trim());
    let mut pulled = reader::pull(name, None);
    let root = pulled.root();
    assert_eq!(
        std::fs::read_to_string(root.join("what")).unwrap(),
        "said\n"
    );

    // What fails, fails as it does here: shown, and with the same exit code.
    let dockerfile = format!("FROM {base}\nRUN echo to be seen; exit 7\n");
    let url = repository(&scene, &[File::new("Dockerfile", dockerfile)]);
    let failed = caller
        .build(&[&url])
        .with(1, &["to be seen", "exit code: 7"]);
    assert!(failed.stderr.contains("RUN echo to be seen"));
    caller
        .build(&["--network=host", &url])
        .with(3, &["allow_host_network"]);
}

#[test]
fn a_step_on_a_server_uses_the_keys_of_the_callers_agent_and_cannot_change_it() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let dockerfile = format!(
        "FROM {base}\nCOPY root /\n\
         RUN --mount=type=ssh,required set -e; ssh-add -l; ssh-add -L > /tmp/key.pub; \
         ssh-add -T /tmp/key.pub && echo signed a test; ! ssh-add -D; ! ssh-add -x < /dev/null; ssh-add -l\n"
    );
    let mut files = vec![File::new("Dockerfile", dockerfile)];
    for path in program("ssh-add") {
        let content = std::fs::read(&path).unwrap();
        files.push(File::executable(&format!("root{path}"), content));
    }
    let url = repository(&scene, &files);
    let caller = Caller::of(&scene);
    let agent = Agent::start(caller.home.path());
    let mut command = caller.command(&["--ssh=default", "--progress=plain", &url]);
    command.env("SSH_AUTH_SOCK", &agent.socket);
    let said = Ended::of(finish(&mut command)).well().stderr;
    assert!(said.contains("signed a test"), "{said}");
    assert!(!said.contains("no longer lent"), "{said}");
    assert_eq!(said.matches("the-comment").count(), 2, "{said}");
    let kept = String::from_utf8(finish(agent.ssh_add().arg("-l")).stdout).unwrap();
    assert!(kept.contains("the-comment"), "{kept}");
    // Looked for before anything is asked of the server.
    let nobody = ["--ssh=default=/nonexistent", &url];
    caller.build(&nobody).with(2, &["/nonexistent"]);
}

#[test]
fn secrets_are_there_again_for_a_build_whose_worker_was_killed() {
    let config = "[server]\nretries_of_lost_workers = 1\n";
    let scene = Scene::around(DockerRegistry::start(), Target::Embedded, config);
    let base = scene.busybox();
    let dockerfile = format!(
        "FROM {base}\nRUN --mount=type=secret,id=token sleep 3 && grep -q hunter2-secret /run/secrets/token\n"
    );
    let url = repository(&scene, &[File::new("Dockerfile", dockerfile)]);
    let caller = Caller::of(&scene);
    caller.home.write("token", "hunter2-secret\n");
    let builds = scene.kiln.state().join("builds");
    std::thread::scope(|scope| {
        let building = scope.spawn(|| {
            let secret = "--secret=id=token,src=token";
            caller.build(&["--progress=plain", secret, &url])
        });
        let limit = std::time::Duration::from_secs(60);
        let pid = testkit::process::wait_for("the step", limit, || {
            let build = std::fs::read_dir(&builds).ok()?.next()?.ok()?.path();
            let journal = std::fs::read(build.join("journal")).ok()?;
            let has_begun = String::from_utf8_lossy(&journal).contains("] RUN --mount");
            let pid = std::fs::read_to_string(build.join("lock")).ok()?;
            has_begun.then(|| pid.trim().to_owned())
        });
        run(Command::new("kill").args(["-KILL", &pid]));
        let said = building.join().unwrap().well().stderr;
        assert!(said.contains("the build begins again"), "{said}");
    });
}

#[test]
fn images_are_pushed_as_the_caller_and_secrets_stay_nowhere() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let canary = "canary-5f1d7b20c9";
    let dockerfile = format!(
        "FROM {base}\nRUN --mount=type=secret,id=token test -s /run/secrets/token && \
         cat /run/secrets/token && echo done > /done\n"
    );
    let url = repository(&scene, &[File::new("Dockerfile", dockerfile)]);
    let caller = Caller::of(&scene);
    caller.home.write("token", canary);
    let host = scene.registry.host();
    let name = format!("{host}/theirs/app:1");
    let arguments = [
        "--push",
        "-t",
        &name,
        "--secret=id=token,src=token",
        "--progress=plain",
        &url,
    ];
    // The server's own credentials would do, and are not used.
    caller.build(&arguments).with(3, &["theirs/app"]);
    let config = docker_config(&[(host, scene.registry.credentials())]);
    caller.home.write(".docker/config.json", config);
    let said = caller.build(&arguments).well().stderr;
    assert!(!said.contains(canary), "{said}");
    let mut pulled = reader::pull(&name, scene.registry.credentials());
    assert_eq!(
        std::fs::read_to_string(pulled.root().join("done")).unwrap(),
        "done\n"
    );
    // As it is, in base64, and in hexadecimal.
    for form in [
        canary,
        "Y2FuYXJ5LTVmMWQ3YjIwYzk",
        "63616e6172792d35663164376232306339",
    ] {
        let mut grep = Command::new("grep");
        grep.args(["-rlaF", form]).arg(scene.kiln.state());
        let found = String::from_utf8(finish(&mut grep).stdout).unwrap();
        assert_eq!(found, "", "{form}");
    }
}

/// A folder with a bit of everything, and the digest of the image that is built of it without a server.
fn folder(scene: &Scene, home: &Scratch) -> String {
    let base = scene.busybox();
    let dockerfile = format!(
        "FROM {base}\nARG WHAT\nCOPY --from=more /extra /extra\nCOPY . /all\n\
         RUN test ! -e /all/secret && cat /all/d/file && echo $WHAT > /what\n"
    );
    home.write("context/docker/Dockerfile", dockerfile);
    home.write("context/docker/Dockerfile.dockerignore", "secret\n");
    home.write("context/secret", "must-not-leave-this-machine");
    home.write("context/d/file", "content\n");
    home.write("context/empty", "");
    home.write("more/extra", "extra\n");
    let inside = home.join("context");
    std::os::unix::fs::symlink("d/file", inside.join("link")).unwrap();
    std::fs::hard_link(inside.join("d/file"), inside.join("same")).unwrap();
    let config = docker_config(&[(scene.registry.host(), scene.registry.credentials())]);
    home.write(".docker/config.json", config);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o4751);
    std::fs::set_permissions(inside.join("empty"), mode).unwrap();
    let mut command = clean_command(binary());
    command
        .current_dir(home.path())
        .env("HOME", home.path())
        .env("DOCKER_CONFIG", home.join(".docker"))
        .env("KILN_STATE", home.join("state"))
        .args(["build", "-q", "-f", "context/docker/Dockerfile"])
        .args([
            "--build-arg=SOURCE_DATE_EPOCH=1700000000",
            "--build-arg=WHAT=x",
        ])
        .args(["--build-context=more=more", "context"]);
    let ended = Ended::of(finish(&mut command)).well();
    String::from_utf8(ended.stdout).unwrap().trim().to_owned()
}

#[test]
fn uploaded_folders_are_counted_and_forgotten_once_their_time_is_over() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let caller = Caller::of(&scene);
    let dockerfile = format!("FROM {base}\nCOPY file /file\n");
    caller.home.write("context/Dockerfile", dockerfile);
    caller.home.write("context/file", "x".repeat(300_000));
    caller.build(&["context"]).well();
    let kiln = |arguments: &[&str]| {
        let mut command = scene.kiln.command();
        command
            .args(arguments)
            .arg("--state")
            .arg(scene.kiln.state());
        let ended = Ended::of(finish(&mut command)).well();
        String::from_utf8(ended.stdout).unwrap()
    };
    let bytes = || {
        let said = kiln(&["du", "--filter", "type=context", "--json"]);
        let line: Value = serde_json::from_str(said.trim()).unwrap();
        assert_eq!(line["type"], "context");
        line["bytes"].as_u64().unwrap()
    };
    assert!(bytes() >= 300_000);
    let said = kiln(&["prune", "--filter", "type=context"]);
    assert!(!said.contains("forgot"), "{said}");
    assert!(bytes() >= 300_000);
    let config = caller
        .home
        .write("kiln.toml", "[contexts]\nlifetime = \"1s\"\n");
    let config = config.display().to_string();
    let limit = std::time::Duration::from_secs(30);
    testkit::process::wait_for("the time of the folder to be over", limit, || {
        kiln(&["prune", "--filter", "type=context", "--config", &config]);
        (bytes() < 300_000).then_some(())
    });
}

#[test]
fn a_folder_makes_the_same_image_on_a_server_and_is_uploaded_once() {
    let scene = Scene::start(Target::Embedded);
    let caller = Caller::of(&scene);
    let digest = folder(&scene, &caller.home);
    let arguments = [
        "-f",
        "context/docker/Dockerfile",
        "--build-arg=SOURCE_DATE_EPOCH=1700000000",
        "--build-arg=WHAT=x",
        "--build-context=more=more",
        "--metadata-file=metadata.json",
        "--progress=plain",
        "context",
    ];
    let said = caller.build(&arguments).well().stderr;
    assert_eq!(caller.metadata()["containerimage.digest"], digest, "{said}");
    let again = caller.build(&arguments).well().stderr;
    assert!(again.contains("uploaded context: 0 bytes"), "{again}");
    assert_eq!(caller.metadata()["kiln.steps.run"], 0, "{again}");
    caller.home.write("context/d/file", "changed\n");
    let changed = caller.build(&arguments).well().stderr;
    assert!(changed.contains("uploaded context: 8 bytes"), "{changed}");
    let mut grep = Command::new("grep");
    grep.args(["-rlaF", "must-not-leave-this-machine"])
        .arg(scene.kiln.state());
    let found = String::from_utf8(finish(&mut grep).stdout).unwrap();
    assert_eq!(found, "", "what is ignored is not sent");
}

#[test]
fn a_dockerfile_and_an_archive_on_standard_input_are_built_on_a_server() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let caller = Caller::of(&scene);
    let dockerfile = format!("FROM {base}\nRUN echo of a Dockerfile alone\n");
    let path = caller.home.write("alone", dockerfile);
    let with_input = |path: &std::path::Path| {
        let mut command = caller.command(&["--progress=plain", "-"]);
        command.stdin(std::fs::File::open(path).unwrap());
        Ended::of(command.output().unwrap()).well().stderr
    };
    let said = with_input(&path);
    assert!(said.contains("of a Dockerfile alone"), "{said}");
    caller.home.write(
        "tree/Dockerfile",
        format!("FROM {base}\nCOPY f /f\nRUN cat /f\n"),
    );
    caller.home.write("tree/f", "of an archive\n");
    let tar = caller.home.join("tree.tar");
    let mut command = Command::new("tar");
    command
        .arg("-czf")
        .arg(&tar)
        .arg("-C")
        .arg(caller.home.join("tree"))
        .arg(".");
    run(&mut command);
    let said = with_input(&tar);
    assert!(said.contains("of an archive"), "{said}");
}

/// A port of its own, behind which is a server; what is connected can be cut, and the server be another one.
struct Wire {
    port: u16,
    target: Arc<Mutex<String>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
    fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Self {
            port: listener.local_addr().unwrap().port(),
            target: Arc::new(Mutex::new(target.to_owned())),
            open: Arc::default(),
        };
        let (target, open) = (Arc::clone(&wire.target), Arc::clone(&wire.open));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let target = target.lock().unwrap().clone();
                // Nobody is there for a moment: the client sees the end.
                let Ok(server) = TcpStream::connect(target) else {
                    continue;
                };
                let ends = [(&client, &server), (&server, &client)];
                for (from, to) in
                    ends.map(|(a, b)| (a.try_clone().unwrap(), b.try_clone().unwrap()))
                {
                    let (mut from, mut to) = (from, to);
                    std::thread::spawn(move || {
                        let _cut = std::io::copy(&mut from, &mut to);
                        let _closed = to.shutdown(Shutdown::Both);
                    });
                }
                open.lock().unwrap().extend([client, server]);
            }
        });
        wire
    }

    fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _closed = stream.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn a_build_is_shown_to_its_end_whatever_becomes_of_the_connection_and_the_server() {
    let mut scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let lines = "RUN for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo line $i of it; sleep 0.5; done\n";
    let dockerfile = format!("FROM {base}\n{lines}");
    let url = repository(&scene, &[File::new("Dockerfile", dockerfile)]);
    let wire = Wire::to(scene.kiln.host());
    let home = Scratch::new();
    let mut command = clean_command(binary());
    command
        .current_dir(home.path())
        .env("HOME", home.path())
        .args(["build", "--server", &format!("127.0.0.1:{}", wire.port)])
        .args(["--progress=plain", &url]);
    let building = std::thread::spawn(move || Ended::of(finish(&mut command)));
    // The build has begun when the step has written something.
    let journal = || {
        let mut grep = Command::new("grep");
        grep.args(["-rqa", "line 2 of it"])
            .arg(scene.kiln.state().join("builds"));
        finish(&mut grep).status.success()
    };
    testkit::process::wait_for("the step", BUILD_TIMEOUT, || journal().then_some(()));
    wire.cut();
    std::thread::sleep(std::time::Duration::from_millis(700));
    scene.kiln.kill();
    wire.cut();
    scene.kiln.start_again();
    scene
        .kiln
        .host()
        .clone_into(&mut wire.target.lock().unwrap());
    let said = building.join().unwrap().well().stderr;
    for n in 1..=12 {
        let line = format!("line {n} of it\n");
        assert_eq!(said.matches(&line).count(), 1, "{said}");
    }
}

#[test]
fn what_a_build_on_a_server_exports_arrives_where_it_belongs() {
    let scene = Scene::start(Target::Embedded);
    let caller = Caller::of(&scene);
    let digest = folder(&scene, &caller.home);
    let arguments = [
        "-f",
        "context/docker/Dockerfile",
        "--build-arg=SOURCE_DATE_EPOCH=1700000000",
        "--build-arg=WHAT=x",
        "--build-context=more=more",
        "--metadata-file=metadata.json",
        "-o",
        "type=oci,dest=image.tar",
        "-o",
        "type=local,dest=rootfs",
        "-o",
        "type=tar,dest=-",
        "context",
    ];
    let ended = caller.build(&arguments).well();
    assert_eq!(caller.metadata()["containerimage.digest"], digest);
    let read = |path: &str| std::fs::read_to_string(caller.home.join(path)).unwrap();
    assert_eq!(read("rootfs/all/d/file"), "content\n");
    assert_eq!(read("rootfs/what"), "x\n");
    let link = std::fs::read_link(caller.home.join("rootfs/all/link")).unwrap();
    assert_eq!(link.to_str(), Some("d/file"));
    let image = std::fs::read(caller.home.join("image.tar")).unwrap();
    let blob = digest.replace("sha256:", "blobs/sha256/");
    let has = |bytes: &[u8], text: &[u8]| bytes.windows(text.len()).any(|part| part == text);
    assert!(has(&image, blob.as_bytes()));
    assert!(
        has(ended.stdout.as_slice(), b"all/d/file"),
        "the archive on standard output"
    );
    // Nothing waits on the server any more.
    for build in std::fs::read_dir(scene.kiln.state().join("builds")).unwrap() {
        let output = build.unwrap().path().join("output");
        let left = std::fs::read_dir(output).map_or(0, Iterator::count);
        assert_eq!(left, 0);
    }
}

#[test]
fn a_cache_in_a_folder_travels_to_a_server_and_from_one() {
    let scene = Scene::start(Target::Embedded);
    let caller = Caller::of(&scene);
    let base = scene.busybox();
    let config = scene.registry.docker_config();
    caller.home.write(".docker/config.json", config);
    let made = |n| {
        let made = format!("FROM {base} AS first\nRUN head -c {n} /dev/urandom > /made\n");
        let dockerfile = format!("{made}FROM scratch\nCOPY --from=first /made /\n");
        caller.home.write("app/Dockerfile", dockerfile);
    };
    let ended = |mut command: Command, arguments: &[&str]| {
        command
            .current_dir(caller.home.path())
            .args(["--progress=plain", "--metadata-file=metadata.json"])
            .args(arguments)
            .arg("app");
        let said = Ended::of(finish(&mut command)).well().stderr;
        let metadata = caller.metadata();
        let digest = metadata["containerimage.digest"].clone();
        (said, digest, metadata["kiln.steps.run"].clone())
    };
    let there = |arguments: &[&str]| ended(caller.command(&[]), arguments);
    let here = |arguments: &[&str]| {
        let mut command = clean_command(binary());
        command
            .env("HOME", caller.home.path())
            .env("DOCKER_CONFIG", caller.home.join(".docker"))
            .env("KILN_STATE", caller.home.join("state"))
            .arg("build");
        ended(command, arguments)
    };
    let from = "--cache-from=type=local,src=cache";
    let to = "--cache-to=type=local,dest=cache,mode=max";
    // With another file that is fetched: they are told apart by their number.
    let root = "--output=type=tar,dest=root.tar";
    made(10_000);
    let (said, digest, n_run) = there(&[from, to, root]);
    assert!(said.contains("there is no cache in cache"), "{said}");
    assert_eq!(n_run, 2);
    let (said, again, n_run) = here(&[from]);
    assert_eq!((again, n_run), (digest, Value::from(0)), "{said}");

    made(20_000);
    std::fs::remove_dir_all(caller.home.join("cache")).unwrap();
    let (_, digest, _) = here(&[to]);
    let (said, again, n_run) = there(&[from]);
    assert_eq!((again, n_run), (digest, Value::from(0)), "{said}");

    // What a server finds unusable is told, and the build goes on without.
    std::fs::write(caller.home.join("cache/index.json"), "{}").unwrap();
    let (said, _, n_run) = there(&[from, "--no-cache"]);
    assert!(said.contains("cache of the caller is not used"), "{said}");
    assert_eq!(n_run, 2);
}

#[test]
fn caches_in_registries_are_written_and_read_as_the_caller() {
    let scene = Scene::start(Target::Embedded);
    let theirs = DockerRegistry::with_basic_auth("them", "their own");
    let caller = Caller::of(&scene);
    let dockerfile = format!("FROM {}\nRUN true\n", scene.busybox());
    let url = repository(&scene, &[File::new("Dockerfile", dockerfile)]);
    let name = format!("{}/cache:1", theirs.host());
    let from = ["--cache-from", &name, "--progress=plain", &url];
    let said = caller.build(&from).well().stderr;
    assert!(said.contains("401 Unauthorized"), "{said}");
    caller
        .home
        .write(".docker/config.json", theirs.docker_config());
    caller.build(&["--cache-to", &name, &url]).well();
    let said = caller.build(&from).well().stderr;
    assert!(said.contains("1 steps"), "{said}");
}

#[test]
fn a_dockerfile_is_checked_without_asking_the_server_that_would_build_it() {
    let home = Scratch::new();
    home.write("app/Dockerfile", "FROM scratch\nMAINTAINER me\n");
    let mut command = clean_command(binary());
    command
        .current_dir(home.path())
        .env("HOME", home.path())
        .args(["build", "--check", "--server", "127.0.0.1:1", "app"]);
    let checked = Ended::of(finish(&mut command));
    assert_eq!(checked.code, Some(1), "{}", checked.stderr);
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(said.contains("MaintainerDeprecated"), "{said}");
}
