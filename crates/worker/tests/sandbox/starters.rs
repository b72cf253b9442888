//! Starting the cases: as whoever runs the tests, and as an ordinary user when that is root.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// The ordinary user that root makes for the time of the test.
const USER: &str = "kiln-sandbox-test";

pub(crate) fn main(filter: Option<&str>) -> ExitCode {
    let filter = filter.unwrap_or_default();
    let program = std::env::current_exe().unwrap();
    if !rustix::process::getuid().is_root() {
        return run(Command::new(program).args(["inside", "user", filter]));
    }
    let as_root = run(Command::new(&program).args(["inside", "root", filter]));
    remove_cgroups();
    let as_user = as_user(&program, filter);
    if as_root == ExitCode::SUCCESS {
        as_user
    } else {
        as_root
    }
}

fn run(command: &mut Command) -> ExitCode {
    let status = command.stdin(Stdio::null()).status().unwrap();
    if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The cgroups of a run belong to root; it removes them when its worker is gone.
fn remove_cgroups() {
    let engine::sandbox::CgroupMode::One { own } = engine::sandbox::CgroupMode::detect() else {
        return;
    };
    for (_, own) in own {
        for entry in std::fs::read_dir(own).unwrap().flatten() {
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with("kiln-test-")
            {
                // A step that was dropped leaves its own behind.
                for step in std::fs::read_dir(entry.path()).unwrap().flatten() {
                    let _ = std::fs::remove_dir(step.path());
                }
                std::fs::remove_dir(entry.path()).unwrap();
            }
        }
    }
}

fn as_user(program: &Path, filter: &str) -> ExitCode {
    tool("useradd", "passwd", &["--create-home", USER]);
    let guard = UserGuard;
    // The build directory may be in a home that the user cannot enter.
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = dir.path().join("sandbox");
    std::fs::copy(program, &copy).unwrap();
    // Whoever installs kiln for himself owns its binary, as the container's root then does.
    tool("chown", "coreutils", &[USER, copy.to_str().unwrap()]);
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid",
        USER,
        "--regid",
        USER,
        "--init-groups",
        "--inh-caps=-all",
    ]);
    let passed = run(command
        .arg("--")
        .arg(&copy)
        .args(["inside", "user", filter])
        .current_dir("/"));
    drop(guard);
    passed
}

struct UserGuard;

impl Drop for UserGuard {
    fn drop(&mut self) {
        tool("userdel", "passwd", &["--remove", USER]);
    }
}

fn tool(name: &str, package: &str, args: &[&str]) {
    match Command::new(name)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
    {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            // A run that was cut short leaves the user behind.
            eprintln!("{name}: {text}");
        }
        Err(error) => panic!("run {name}: {error}; install the package {package}"),
    }
}
