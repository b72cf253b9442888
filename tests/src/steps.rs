//! What steps are given besides files: secrets, agents, names of hosts, limits; by the built program and real containers.

use std::fs;
use std::path::Path;
use std::process::Command;

use testkit::process::{clean_command, finish};

use crate::command::{Bench, Ended};

fn build(bench: &Bench, lines: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
    bench.dockerfile(lines);
    let mut command = bench.command();
    command
        .args(["--progress", "plain", "context"])
        .args(arguments)
        .envs(environment.iter().copied());
    Ended::of(finish(&mut command))
}

/// Tells whether any file below `folder` holds `text`.
fn holds(folder: &Path, text: &str) -> bool {
    let mut grep = Command::new("grep");
    grep.args(["-r", "-q", "-a", "-F", text]).arg(folder);
    grep.status().unwrap().success()
}

/// Says the secret backwards, which nobody takes out of the log.
const BACKWARDS: &str = "rev /run/secrets/token";

#[test]
fn a_secret_is_seen_by_its_step_and_nowhere_else() {
    let bench = Bench::new();
    bench.scratch.write("token", "correct horse battery\n");
    let lines = format!(
        "RUN --mount=type=secret,id=token --mount=type=secret,id=key,env=KEY,required \
         --mount=type=secret,id=token,target=/etc/deep/token,mode=0440,uid=7,gid=8 \
         set -e; {BACKWARDS}; echo $KEY | rev; cat /run/secrets/token; echo key is $KEY; \
         stat -c %u:%g:%a /run/secrets/token /etc/deep/token; ! touch /run/secrets/token 2>&1; ! (echo x >> /etc/deep/token) 2>&1; \
         env | grep -v KEY > /environment\n\
         RUN --mount=type=secret,id=other,env=OTHER test ! -e /run/secrets -a ! -e /etc/deep -a -z \"$KEY$OTHER\"\n"
    );
    let arguments = [
        "--secret",
        "id=token,src=token",
        "--secret",
        "id=key,env=KILN_KEY",
        "-o",
        "type=tar,dest=out.tar",
        "-t",
        "app:1",
    ];
    let environment = [("KILN_KEY", "staple and stone")];
    let said = build(&bench, &lines, &arguments, &environment)
        .well()
        .stderr;
    for words in [
        "yrettab esroh tcerroc",
        "enots dna elpats",
        "key is ***",
        "0:0:400",
        "7:8:440",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    for value in ["correct horse battery", "staple and stone"] {
        assert!(!said.contains(value), "{said}");
        assert!(
            !holds(bench.scratch.path().join("state").as_path(), value),
            "{value}"
        );
        assert!(
            !fs::read(bench.path("out.tar"))
                .unwrap()
                .windows(value.len())
                .any(|part| part == value.as_bytes())
        );
    }
    let mut list = Command::new("tar");
    let listed = finish(list.arg("tf").arg(bench.path("out.tar"))).stdout;
    let listed = String::from_utf8(listed).unwrap();
    assert!(
        !listed.contains("secrets") && !listed.contains("deep"),
        "{listed}"
    );
}

#[test]
fn the_value_of_a_secret_decides_nothing_and_its_name_does() {
    let bench = Bench::new();
    let lines = format!("RUN --mount=type=secret,id=token {BACKWARDS}; echo ran-a-step | rev\n");
    let ran = |lines: &str, value: &str| {
        let arguments = ["--secret", "id=token,env=V", "--secret", "id=other,env=V"];
        let ended = build(&bench, lines, &arguments, &[("V", value)]).well();
        ended.stderr.contains("pets-a-nar")
    };
    assert!(ran(&lines, "the first value"));
    assert!(!ran(&lines, "the second value"));
    assert!(ran(
        &lines.replace("id=token", "id=other,target=/run/secrets/token"),
        "the second value"
    ));
}

#[test]
fn what_is_required_and_not_given_is_told_with_its_line() {
    let bench = Bench::new();
    for (kind, words) in [
        ("secret,id=token", "secret \"token\" is required"),
        ("ssh", "SSH agent \"default\" is required"),
    ] {
        let lines = format!("RUN true\nRUN --mount=type={kind},required true\n");
        // Whatever the caller's environment has is not passed on.
        let environment = [("token", "value"), ("SSH_AUTH_SOCK", "/nonexistent")];
        build(&bench, &lines, &[], &environment).with(1, &[words, "Dockerfile:3"]);
    }
    let optional = "RUN --mount=type=ssh --mount=type=secret,id=x test ! -e \"$SSH_AUTH_SOCK\" -a ! -e /run/buildkit\n";
    build(&bench, optional, &[], &[("SSH_AUTH_SOCK", "/nonexistent")]).well();
}

/// An `ssh-agent` with one key.
pub(crate) struct Agent {
    pid: String,
    pub(crate) socket: String,
}

impl Agent {
    pub(crate) fn start(folder: &Path) -> Self {
        let socket = folder.join("agent").to_str().unwrap().to_owned();
        let mut command = clean_command("ssh-agent");
        let said = finish(command.args(["-s", "-a", &socket])).stdout;
        let said = String::from_utf8(said).unwrap();
        let pid = said
            .split("SSH_AGENT_PID=")
            .nth(1)
            .and_then(|rest| rest.split(';').next());
        let agent = Self {
            pid: pid
                .unwrap_or_else(|| panic!("{said}: install the package openssh-client"))
                .to_owned(),
            socket,
        };
        let key = folder.join("key");
        let mut keygen = clean_command("ssh-keygen");
        finish(
            keygen
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "the-comment", "-f"])
                .arg(&key),
        );
        finish(agent.ssh_add().arg(&key));
        agent
    }

    pub(crate) fn ssh_add(&self) -> Command {
        let mut command = clean_command("ssh-add");
        command.env("SSH_AUTH_SOCK", &self.socket);
        command
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _gone = Command::new("kill").arg(&self.pid).status();
    }
}

/// Puts a program of this machine and what it is linked to into the context.
fn add_program(bench: &Bench, name: &str) {
    for file in program(name) {
        let to = bench
            .path("context/root")
            .join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
}

/// Returns the paths of a program of this machine and of what it is linked to.
pub(crate) fn program(name: &str) -> Vec<String> {
    let mut find = Command::new("sh");
    let path = finish(find.args(["-c", &format!("command -v {name}")])).stdout;
    let path = String::from_utf8(path).unwrap().trim().to_owned();
    let mut ldd = Command::new("ldd");
    let libraries = String::from_utf8(finish(ldd.arg(&path)).stdout).unwrap();
    let files = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    files.chain([path.as_str()]).map(str::to_owned).collect()
}

#[test]
fn a_step_uses_the_keys_of_an_agent_and_cannot_change_it() {
    let bench = Bench::new();
    let agent = Agent::start(bench.scratch.path());
    add_program(&bench, "ssh-add");
    let lines = "COPY root /\n\
        RUN --mount=type=ssh,required --mount=type=ssh,id=user,uid=1000,target=/run/agents/mine \
        set -e; ssh-add -l; ssh-add -L > /tmp/key.pub; ssh-add -T /tmp/key.pub && echo signed a test; \
        ! ssh-add -D; ! ssh-add -x < /dev/null; ssh-add -l; \
        stat -c '%u %a %F' $SSH_AUTH_SOCK /run/agents/mine; echo at $SSH_AUTH_SOCK\n\
        RUN test ! -e /run/buildkit -a ! -e /run/agents -a -z \"$SSH_AUTH_SOCK\"\n";
    let other = format!("user={}", agent.socket);
    let arguments = ["--ssh", "default", "--ssh", &other];
    let said = build(
        &bench,
        lines,
        &arguments,
        &[("SSH_AUTH_SOCK", &agent.socket)],
    )
    .well()
    .stderr;
    for words in [
        "the-comment",
        "signed a test",
        "0 600 socket",
        "1000 600 socket",
        "at /run/buildkit/ssh_agent.0",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let kept = String::from_utf8(finish(agent.ssh_add().arg("-l")).stdout).unwrap();
    assert!(kept.contains("the-comment"), "{kept}");
}

#[test]
fn names_limits_and_memory_are_as_they_were_asked_for_and_count_as_with_buildkit() {
    let bench = Bench::new();
    let lines = "RUN grep -w db /etc/hosts; ulimit -n; ulimit -c; df -k /dev/shm | tail -1; echo ran-a-step | rev\n";
    let ran = |arguments: &[&str]| {
        let said = build(&bench, lines, arguments, &[]).well().stderr;
        (said.contains("pets-a-nar"), said)
    };
    let all = [
        "--add-host",
        "db:192.0.2.9",
        "--ulimit",
        "nofile=99:100",
        "--shm-size",
        "3m",
    ];
    let (_, said) = ran(&all);
    for words in ["192.0.2.9", " 99\n", " 3072 "] {
        assert!(said.contains(words), "{words:?}: {said}");
    }
    let change = |index: usize, value: &'static str| {
        let mut all = all;
        all[index] = value;
        ran(&all).0
    };
    assert!(
        !change(1, "db:192.0.2.10"),
        "where a name leads does not count"
    );
    assert!(change(1, "database.db:192.0.2.9"));
    assert!(change(3, "nofile=98:100"));
    assert!(change(5, "4m"));
    build(
        &bench,
        "RUN true\n",
        &["--ulimit", "nofile=1:9999999999999"],
        &[],
    )
    .with(1, &["limit nofile cannot be"]);
}

#[test]
fn what_only_the_operator_can_allow_is_refused_before_anything_runs() {
    let bench = Bench::new();
    let lines = "RUN echo ran-a-step | rev\nRUN --network=host true\n";
    let ended = build(&bench, lines, &[], &[]).with(1, &["--allow network.host", "Dockerfile:3"]);
    assert!(!ended.stderr.contains("pets-a-nar"), "{}", ended.stderr);
    build(&bench, lines, &["--allow", "network.host"], &[]).well();
    build(&bench, "RUN --security=insecure true\n", &[], &[])
        .with(1, &["--allow security.insecure", "Dockerfile:2"]);
    for (argument, value) in [
        ("--allow", "device"),
        ("--cgroup-parent", "x"),
        ("--add-host", "a:host-gateway"),
    ] {
        build(&bench, "RUN true\n", &[argument, value], &[]).with(2, &[]);
    }
}

#[test]
fn an_insecure_step_may_mount_and_changes_nothing_that_it_may_only_read() {
    let bench = Bench::new();
    bench.scratch.write("context/file", "as it was\n");
    let mount =
        "--mount=type=bind,target=/of-context --mount=type=bind,from=first,target=/of-stage";
    let script = "mkdir /here && mount -t tmpfs none /here && touch /here/x && umount /here && \
                  for of in context stage; do mount -o remount,bind,rw /of-$of && echo changed > /of-$of/file; done";
    let base = &bench.base;
    let stages = |flag: &str| {
        let text = format!(
            "FROM {base} AS first\nRUN echo as it was > /file\nFROM {base}\nRUN {flag} {mount} {script}\n\
             RUN --mount=type=bind,from=first,target=/of-stage cat /of-stage/file | rev\n"
        );
        bench.scratch.write("context/Dockerfile", text);
        bench.build(&[
            "--progress",
            "plain",
            "context",
            "--allow",
            "security.insecure",
        ])
    };
    let well = stages("--security=insecure").well();
    assert!(well.stderr.contains("saw ti sa"), "{}", well.stderr);
    let context = fs::read_to_string(bench.path("context/file")).unwrap();
    assert_eq!(context, "as it was\n");
    // Being allowed is not being asked for, and what one has done is not what the other would do.
    let failed = stages("").with(1, &["Dockerfile:4"]);
    assert!(!failed.stderr.contains("saw ti sa"), "{}", failed.stderr);
}

#[test]
fn the_configuration_can_allow_insecure_steps() {
    let bench = Bench::new();
    let usual = fs::read_to_string(bench.path("kiln.toml")).unwrap();
    let allowing = format!("{usual}\n[limits]\nallow_insecure = true\n");
    bench.scratch.write("kiln.toml", allowing);
    let lines = "RUN --security=insecure mount -t tmpfs none /tmp\n";
    build(&bench, lines, &[], &[]).well();
    // What the cache holds is no way around the permission.
    bench.scratch.write("kiln.toml", usual);
    build(&bench, lines, &[], &[]).with(1, &["--allow security.insecure"]);
}
