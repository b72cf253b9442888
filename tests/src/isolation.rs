//! What a step must not reach: credentials, the host's files, other builds, the host's loopback.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use testkit::docker_registry::DockerRegistry;
use testkit::git_server::{File, GitServer};
use testkit::kiln;
use testkit::process::{self, Daemon, tool};
use testkit::scratch::Scratch;

use crate::scene::{Scene, Target, request, set_password};

/// Returns what a script says to have reached. The script itself, which is in the log too, has a quote there.
fn reached(log: &str) -> Vec<&str> {
    let said = log.lines().filter_map(|line| line.split_once("reached:"));
    said.map(|(_, what)| what)
        .filter(|what| !what.starts_with('"'))
        .collect()
}

/// Builds a Dockerfile with one RUN over busybox and returns the log.
async fn log_of_step(scene: &Scene, name: &str, script: &str) -> String {
    let base = scene.busybox();
    log_of_step_over(scene, &base, name, script).await
}

async fn log_of_step_over(scene: &Scene, base: &str, name: &str, script: &str) -> String {
    let dockerfile = format!("FROM {base}\nRUN <<END\n{script}\nEND\n");
    let said = scene.build(scene.dockerfile(name, &dockerfile)).await;
    let log = scene.log(&said.build_id().unwrap()).await;
    assert_eq!(
        said.last().status(),
        api::builder::BuildStatus::DoneSuccess,
        "{log}"
    );
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_finds_neither_registry_nor_git_credentials() {
    let scene = Scene::start(Target::Registry);
    let base = scene.busybox();
    let git = GitServer::with_basic_auth("git-user", "battery staple");
    // Everything that a process can look at: its environment, others' environments and command lines, and every file.
    let script = "env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null; \
        find / -xdev -type f -size -1000k ! -path '/proc/*' ! -path '/sys/*' -exec cat {} + 2>/dev/null; true";
    let dockerfile = format!(
        "FROM {base}\nCOPY . /context\nRUN (({script}) | strings 2>/dev/null || ({script})) > /found; \
        grep -a -e 'corr[e]ct horse' -e 'Y29ycmVjdCBo[b]3JzZQ' -e 'a2lsbjpjb[3]JyZWN0' -e 'batt[e]ry staple' -e 'Z2l0LX[V]zZXI6' /found || echo noth'ing' found\n"
    );
    let commit = git
        .repository("secret")
        .commit("main", &[File::new("Dockerfile", dockerfile)]);
    let mut request = request(&git.url("secret"), &commit);
    set_password(&mut request, "git-user", "battery staple");
    let said = scene.build(request).await;
    let log = scene.log(&said.build_id().unwrap()).await;
    assert_eq!(
        said.last().status(),
        api::builder::BuildStatus::DoneSuccess,
        "{log}"
    );
    assert!(log.contains(" nothing found\n"), "{log}");
    for secret in ["correct horse", "battery staple"] {
        let state = scene.kiln.state();
        let found = testkit::process::finish(
            std::process::Command::new("grep")
                .args(["-rl", secret])
                .arg(&state),
        );
        assert!(
            found.stdout.is_empty(),
            "{secret:?} is on disk: {}",
            String::from_utf8_lossy(&found.stdout)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_finds_neither_the_hosts_files_nor_another_builds() {
    let scene = Scene::start(Target::Embedded);
    let marker = testkit::scratch::Scratch::new();
    let file = marker.write("marker", "on the host");
    let base = scene.busybox();
    let first = format!("FROM {base}\nCOPY . /context\nRUN echo other-builds-secret > /written\n");
    let files = [
        File::new("Dockerfile", first),
        File::new("data", "other-builds-data"),
    ];
    let said = scene.build(scene.repository("first", &files)).await;
    assert_eq!(said.last().status(), api::builder::BuildStatus::DoneSuccess);
    let script = format!(
        "reached() {{ echo \"reached:\"\"$1\"; }}\n\
         ls -la / /proc/1/root /proc/1/cwd /proc/self/fd 2>&1\n\
         cat {} /proc/1/root{} 2>/dev/null && reached file\n\
         ls {} 2>/dev/null && reached state\n\
         find / -xdev \\( -name marker -o -name data -o -name written \\) ! -path '/proc/*' | grep . && reached build\n\
         dd if=/dev/vda of=/dev/null bs=1 count=1 2>/dev/null && reached disk\n\
         mkdir -p /mnt && mount -t proc proc /mnt 2>/dev/null && reached mount\n\
         mknod /tmp/disk b 254 0 2>/dev/null && cat /tmp/disk >/dev/null 2>&1 && reached device\n\
         unshare -U true 2>/dev/null && reached namespace\n\
         echo x 2>/dev/null > /proc/sys/kernel/core_pattern && reached sysctl\n\
         reached end",
        file.display(),
        file.display(),
        scene.kiln.state().display()
    );
    let log = log_of_step(&scene, "second", &script).await;
    assert_eq!(reached(&log), ["end"], "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_does_not_reach_the_hosts_loopback() {
    let scene = Scene::start(Target::Embedded);
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 256];
            // Whoever connects and goes away is of no interest.
            let _n = stream.read(&mut request);
            let _sent = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhost-loopback-answered\n");
        }
    });
    let _needed = tool("pasta", "passt");
    let server = scene.kiln.host().to_owned();
    let (server_host, server_port) = server.split_once(':').unwrap();
    // bash opens connections by itself; a statically linked program could not look names up.
    let base = scene.base(&testkit::bases::debian_with_c(), "base/debian-c:bookworm");
    let script = format!(
        r#"#!/bin/bash
reached() {{ echo "reached:""$1"; }}
answers() {{ timeout 2 bash -c "exec 3<>/dev/tcp/$1/$2 && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && head -c 1000 <&3" 2>&1; }}
gateway=$(awk '$2 == "00000000" {{ print $3 }}' /proc/net/route | sed 's/\(..\)\(..\)\(..\)\(..\)/0x\4 0x\3 0x\2 0x\1/')
for host in 127.0.0.1 127.0.0.53 localhost ::1 10.0.2.2 10.0.2.3 169.254.1.1 $(printf '%d.%d.%d.%d' $gateway); do
  answers $host {port} | grep -q host-loopback && reached $host
done
answers {server_host} {server_port} | grep -q HTTP/1 && reached server
grep -q 'lo:' /proc/net/dev && reached own
reached end"#
    );
    let log = log_of_step_over(&scene, &base, "loopback", &script).await;
    assert_eq!(reached(&log), ["own", "end"], "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_has_no_more_rights_than_docker_gives_it() {
    let scene = Scene::start(Target::Embedded);
    let script = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; cat /proc/self/uid_map; hostname";
    let log = log_of_step(&scene, "rights", script).await;
    let value = |name: &str| {
        let at = log
            .find(name)
            .unwrap_or_else(|| panic!("no {name} in\n{log}"));
        log[at + name.len()..]
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned()
    };
    let docker: u64 = 0x0000_0000_a804_25fb;
    for set in ["CapEff:", "CapBnd:"] {
        let capabilities = u64::from_str_radix(&value(set), 16).unwrap();
        assert_eq!(capabilities & !docker, 0, "{set} {capabilities:x}");
    }
    assert_eq!(value("Seccomp:"), "2", "{log}");
}

/// Returns the niceness of every thread of a process.
fn niceness(id: u32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{id}/task")).unwrap();
    let stats =
        tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).ok());
    stats
        .map(|stat| {
            // Behind the name, which may have anything in it.
            let fields = stat.rsplit_once(')').unwrap().1;
            fields.split_whitespace().nth(16).unwrap().parse().unwrap()
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_gets_the_processors_before_its_builds_which_get_them_like_others() {
    let ours = niceness(std::process::id())[0];
    for (config, expected) in [("", -5), ("server.niceness = 0\n", ours)] {
        let scene = Scene::around(DockerRegistry::start(), Target::Embedded, config);
        let base = scene.busybox();
        let text = format!("FROM {base}\nRUN echo it is $(cut -d' ' -f19 /proc/self/stat) no'w'\n");
        let said = scene.build(scene.dockerfile("nice", &text)).await;
        let log = scene.log(&said.build_id().unwrap()).await;
        assert!(log.contains(&format!("it is {ours} now\n")), "{log}");
        let threads = niceness(scene.kiln.id().unwrap());
        assert!(threads.iter().all(|one| *one == expected), "{threads:?}");
    }
}

#[test]
fn a_server_starts_in_a_session_whose_leader_is_outside_its_pid_namespace() {
    // As from a shell that `docker exec` or `kubectl exec` has brought into a container.
    let scratch = Scratch::new();
    let (state, log) = (scratch.join("state"), scratch.join("log"));
    let address = state.join("server/address");
    let mut command = process::clean_command(tool("unshare", "util-linux"));
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(kiln::binary());
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--state"])
        .arg(&state);
    let mut server = Daemon::start(&mut command, &log);
    server.wait_for("kiln serve", Duration::from_secs(30), |_| {
        let text = std::fs::read_to_string(&address).ok()?;
        text.contains(':').then_some(())
    });
    // `unshare` passes no wish to end on; its child ends with it.
    server.kill();
}
