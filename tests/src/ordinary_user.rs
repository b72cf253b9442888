//! `kiln build` and the server as somebody who is not root: a user with subordinate ids, made for the test where root runs it.

use std::path::Path;
use std::process::{Command, Output};

use testkit::kiln::binary;
use testkit::process::{clean_command, finish, run, tool};

use crate::command::{Bench, Ended};
use crate::reader;

/// The user that root's tests make; it stays, as users do.
const NAME: &str = "kiln-test";

/// Runs commands as an ordinary user.
struct User {
    is_root: bool,
}

/// Returns what steps of an ordinary user can have for a network here: most systems let everybody open the device that it needs, some
/// only root.
pub(crate) fn network() -> &'static str {
    use std::os::unix::fs::PermissionsExt as _;
    let device = std::fs::metadata("/dev/net/tun");
    if device.is_ok_and(|device| device.permissions().mode() & 0o006 == 0o006) {
        "--network=default"
    } else {
        "--network=none"
    }
}

/// Returns the configuration for it, for tests that an ordinary user starts; root lends its workers the device.
pub(crate) fn network_config() -> String {
    let is_root = run(Command::new("id").arg("-u")).trim() == "0";
    match network() {
        "--network=none" if !is_root => "network = \"none\"\n".to_owned(),
        _ => String::new(),
    }
}

impl User {
    fn find() -> Self {
        for (program, package) in [
            ("newuidmap", "uidmap"),
            ("newgidmap", "uidmap"),
            ("setpriv", "util-linux"),
        ] {
            let _needed = tool(program, package);
        }
        let is_root = run(Command::new("id").arg("-u")).trim() == "0";
        if is_root && !finish(Command::new("id").arg(NAME)).status.success() {
            let useradd = tool("useradd", "passwd");
            run(Command::new(useradd).args(["--create-home", "--shell", "/bin/sh", NAME]));
        }
        Self { is_root }
    }

    /// Gives a folder to the user.
    fn give(&self, folder: &Path) {
        if self.is_root {
            run(Command::new("chown").args(["-R", NAME]).arg(folder));
        }
    }

    fn run(&self, folder: &Path, arguments: &[&str]) -> Output {
        // The target directory may be closed to the user: a copy is not.
        let program = folder.join("kiln");
        if !program.exists() {
            std::fs::copy(binary(), &program).unwrap();
        }
        let mut command = if self.is_root {
            let mut command = clean_command(tool("setpriv", "util-linux"));
            command
                .args(["--reuid", NAME, "--regid", NAME, "--init-groups", "--"])
                .arg(&program);
            command
        } else {
            clean_command(&program)
        };
        command
            .current_dir(folder)
            .env("HOME", folder)
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .env("KILN_STATE", folder.join("state"));
        finish(command.args(arguments))
    }
}

#[test]
fn an_ordinary_user_builds_exports_and_pushes() {
    let user = User::find();
    let bench = Bench::new();
    bench.dockerfile("COPY data /data\nRUN id -u > /who && touch /theirs && chown 33:33 /theirs && mkdir -m 700 /closed && chown 33:33 /closed\n");
    user.give(bench.scratch.path());
    let folder = bench.scratch.path();
    let host = bench.base.split('/').next().unwrap().to_owned();
    let name = format!("{host}/made/app:1");
    let arguments = [
        "build",
        "--push",
        "-t",
        &name,
        "-o",
        "type=oci,dest=oci.tar",
        "-o",
        "root",
        network(),
        "context",
    ];
    Ended::of(user.run(folder, &arguments)).well();
    assert_eq!(
        std::fs::read_to_string(folder.join("root/who")).unwrap(),
        "0\n"
    );
    assert!(folder.join("root/closed").is_dir());
    assert!(reader::pull(&name, None).owner("theirs").starts_with("33/"));
    let again = Ended::of(user.run(
        folder,
        &[
            "build",
            network(),
            "--metadata-file",
            "metadata.json",
            "context",
        ],
    ));
    again.well();
    let metadata = std::fs::read_to_string(folder.join("metadata.json")).unwrap();
    assert!(metadata.contains("\"kiln.steps.run\": 0"), "{metadata}");
    // Also what belongs to ids that are only theirs in a namespace.
    let notes = ["blobs", "used", "records"].map(|name| folder.join("state/store").join(name));
    let mut find = Command::new("find");
    find.args(notes).args(["-type", "f", "-exec", "touch"]);
    run(find.args(["-d", "1 hour ago", "{}", "+"]));
    let pruned = Ended::of(user.run(folder, &["prune", "-v"])).well();
    let pruned = String::from_utf8(pruned.stdout).unwrap();
    assert!(
        pruned.contains("snapshot ") && pruned.contains("record "),
        "{pruned}"
    );
    let left = std::fs::read_dir(folder.join("state/store/snapshots")).unwrap();
    assert_eq!(left.count(), 0);
    run(&mut remove(&user, folder));
}

#[test]
fn root_and_an_ordinary_user_make_the_same_image() {
    let user = User::find();
    let bench = Bench::new();
    let mut command = bench.command();
    command.env("SOURCE_DATE_EPOCH", "1700000000");
    let as_root = finish(command.args(["-q", "context"]));
    user.give(&bench.path("context"));
    user.give(bench.scratch.path());
    let folder = bench.path("users");
    std::fs::create_dir(&folder).unwrap();
    user.give(&folder);
    let context = bench.path("context");
    let as_user = user.run(
        &folder,
        &["build", "-q", network(), context.to_str().unwrap()],
    );
    assert_eq!(
        Ended::of(as_root).well().stdout,
        Ended::of(as_user).well().stdout
    );
    run(&mut remove(&user, &folder));
}

/// Files of subordinate ids are removed from within a namespace that has them.
fn remove(user: &User, folder: &Path) -> Command {
    let mut command = Command::new("rm");
    if user.is_root {
        command.arg("-rf").arg(folder.join("state"));
        return command;
    }
    let mut command = Command::new(tool("unshare", "util-linux"));
    command
        .args(["--user", "--map-auto", "--map-root-user", "rm", "-rf"])
        .arg(folder.join("state"));
    command
}

#[test]
fn the_doctor_finds_nothing_missing() {
    let user = User::find();
    let bench = Bench::new();
    user.give(bench.scratch.path());
    let ended = Ended::of(user.run(bench.scratch.path(), &["doctor"]));
    ended.well();
    let as_root = finish(
        clean_command(binary())
            .arg("doctor")
            .env("KILN_STATE", bench.path("other")),
    );
    Ended::of(as_root).well();
}
