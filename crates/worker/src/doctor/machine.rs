//! Checks that only look.

use std::path::Path;
use std::process::{Command, Stdio};

use engine::sandbox::{CgroupMode, NetworkProgram};

use super::Check;
use crate::userns::{self, UserNsOptions};
use engine::chain;

/// The oldest kernel with everything used: overlay mounts by ordinary users and `mount_setattr`.
const OLDEST_KERNEL: (u32, u32) = (5, 12);
/// Below this much free space a build of ordinary size may fail.
const LITTLE_SPACE_BYTES: u64 = 10 << 30;
/// Below this much free space hardly any build succeeds.
const NO_SPACE_BYTES: u64 = 1 << 30;

pub(super) fn kernel() -> Check {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|word| word.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= OLDEST_KERNEL {
        Check::ok("kernel", release)
    } else {
        let (major, minor) = OLDEST_KERNEL;
        Check::fail(
            "kernel",
            release,
            format!("use Linux {major}.{minor} or newer"),
        )
    }
}

pub(super) fn ids(options: &UserNsOptions) -> Check {
    match userns::data_plane_owner(options) {
        Ok(owner) => Check::ok(
            "subordinate ids",
            format!(
                "container root is host uid {}, gid {}",
                owner.uid, owner.gid
            ),
        ),
        Err(error) => {
            let remedy = "install the package uidmap and give this user 65536 ids in /etc/subuid and /etc/subgid";
            Check::fail("subordinate ids", chain(&error), remedy)
        }
    }
}

pub(super) fn seccomp() -> Check {
    // SAFETY: asks whether an action is known; writes nothing.
    let answer = unsafe {
        let action: u32 = libc::SECCOMP_RET_ERRNO;
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    if answer == 0 {
        Check::ok("seccomp", "filters are available")
    } else {
        Check::fail(
            "seccomp",
            "the kernel has no system call filters",
            "use a kernel with CONFIG_SECCOMP_FILTER",
        )
    }
}

pub(super) fn network() -> Check {
    const NAME: &str = "network of steps";
    let program = match NetworkProgram::find() {
        Ok(program) => program,
        Err(error) => {
            return Check::warn(
                NAME,
                error.to_string(),
                "install the package passt, or build with --network=none",
            );
        }
    };
    let found = format!("{}", program.path().display());
    let node = "/dev/net/tun";
    let is_root = rustix::process::getuid().is_root();
    let usable = rustix::fs::access(
        node,
        rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK,
    )
    .is_ok();
    match (Path::new(node).exists(), usable || is_root) {
        (true, true) => Check::ok(NAME, found),
        (true, false) => Check::warn(
            NAME,
            format!("{found}, but this user may not open {node}"),
            format!("let everybody open it, as most systems do: chmod 0666 {node}"),
        ),
        (false, _) => Check::warn(
            NAME,
            format!("{found}, but there is no {node}"),
            "load the kernel module tun",
        ),
    }
}

pub(super) fn cgroups() -> Check {
    const NAME: &str = "cgroups";
    match CgroupMode::detect() {
        CgroupMode::Two { own } => {
            Check::ok(NAME, format!("version 2, delegated: {}", own.display()))
        }
        CgroupMode::One { own } => {
            let names: Vec<&str> = own.iter().map(|(name, _)| name.as_str()).collect();
            Check::ok(NAME, format!("version 1: {}", names.join(", ")))
        }
        CgroupMode::None => Check::warn(
            NAME,
            "none that this user may use: memory and processor time of steps are not limited, processes only per user",
            "run under systemd with Delegate=yes (for a user: systemd-run --user --scope -p Delegate=yes kiln …), or as root",
        ),
    }
}

pub(super) fn disk(state: &Path) -> Check {
    const NAME: &str = "disk space";
    let existing = state
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let stat = match rustix::fs::statvfs(existing) {
        Ok(stat) => stat,
        Err(errno) => {
            return Check::warn(
                NAME,
                format!("{}: {errno}", existing.display()),
                "choose another --state",
            );
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let detail = format!("{:.1} GiB free in {}", to_gib(free), existing.display());
    if free < NO_SPACE_BYTES {
        Check::fail(NAME, detail, "free space, or choose another --state")
    } else if free < LITTLE_SPACE_BYTES {
        Check::warn(NAME, detail, "large builds may need more")
    } else {
        Check::ok(NAME, detail)
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn to_gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

pub(super) fn git(program: &Path) -> Check {
    let remedy = "install the package git, to build from repositories";
    match Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
    {
        Ok(output) if output.status.success() => Check::ok(
            "git",
            String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        ),
        Ok(output) => Check::warn(
            "git",
            format!("{} ended with {}", program.display(), output.status),
            remedy,
        ),
        Err(error) => Check::warn("git", format!("{}: {error}", program.display()), remedy),
    }
}
