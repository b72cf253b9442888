//! Checks that try: a child becomes what a worker becomes and mounts what a step needs.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions};
use rustix::thread::UnshareFlags;

use super::{Check, DoctorOptions};
use crate::userns;
use engine::chain;

const ENTER: &str = "user namespace";
const OVERLAY: &str = "overlay";
const PROC: &str = "proc and sysfs";

/// What was tried, in order, and its remedy.
const TRIALS: [(&str, &str); 3] = [
    (
        ENTER,
        "allow user namespaces: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1, \
         kernel.apparmor_restrict_unprivileged_userns=0; in a container, allow them in its seccomp profile",
    ),
    (
        OVERLAY,
        "put --state on a file system that overlayfs can use (ext4, xfs, btrfs, tmpfs), with Linux 5.11 or newer",
    ),
    (
        PROC,
        "in a container, run kiln with an unmasked /proc (Docker: --security-opt systempaths=unconfined)",
    ),
];

/// Tries everything in a child, so that this process stays what it is.
pub(super) fn checks(options: &DoctorOptions) -> Vec<Check> {
    let answers = match ask_child(options) {
        Ok(text) => text,
        Err(error) => return vec![Check::fail(ENTER, error.to_string(), "see the message")],
    };
    TRIALS
        .iter()
        .map(|(name, remedy)| {
            let answer = answers
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('\t'));
            match answer {
                Some("") => Check::ok(name, "works"),
                Some(reason) => Check::fail(name, reason, *remedy),
                None => Check::fail(name, "not tried, because of the above", *remedy),
            }
        })
        .collect()
}

fn ask_child(options: &DoctorOptions) -> io::Result<String> {
    let scratch = Scratch::new(options)?;
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: the caller promises a single thread, so the child may do anything this process may.
    let forked = unsafe { libc::fork() };
    match forked {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(reader);
            let mut answers = File::from(writer);
            // A parent that does not listen any more needs no answer.
            let _ = tries(options, &scratch.path, &mut answers);
            // SAFETY: ends this process without running the exit handlers of the process it was forked from.
            unsafe { libc::_exit(0) }
        }
        pid => {
            drop(writer);
            let mut text = String::new();
            File::from(reader).read_to_string(&mut text)?;
            rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::empty())?;
            Ok(text)
        }
    }
}

/// A directory the child may write, where the state directory is or will be.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(options: &DoctorOptions) -> io::Result<Self> {
        let name = format!("kiln-doctor-{}", std::process::id());
        let nearest = options.state.ancestors().find(|path| path.is_dir());
        let places = nearest
            .into_iter()
            .chain([Path::new("/var/tmp"), Path::new("/tmp")]);
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for place in places {
            let path = place.join(&name);
            match std::fs::create_dir(&path) {
                Ok(()) => {
                    let scratch = Self { path };
                    if let Ok(owner) = userns::data_plane_owner(&options.user_namespace) {
                        std::os::unix::fs::chown(&scratch.path, Some(owner.uid), Some(owner.gid))?;
                    }
                    return Ok(scratch);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left-overs of overlayfs are directories without permissions; as their owner we may still remove them.
        let _ = std::fs::remove_dir(self.path.join("work/work"));
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn tries(options: &DoctorOptions, scratch: &Path, answers: &mut File) -> io::Result<()> {
    let entered = userns::enter(&options.user_namespace)
        .map(drop)
        .map_err(|error| chain(&error));
    let stop = entered.is_err();
    answer(answers, ENTER, entered)?;
    if stop {
        return Ok(());
    }
    answer(
        answers,
        OVERLAY,
        overlay(scratch).map_err(|error| error.to_string()),
    )?;
    answer(
        answers,
        PROC,
        proc_and_sysfs().map_err(|error| error.to_string()),
    )
}

fn answer(answers: &mut File, name: &str, result: Result<(), String>) -> io::Result<()> {
    let reason = result.err().unwrap_or_default().replace('\n', " ");
    writeln!(answers, "{name}\t{reason}")
}

fn overlay(scratch: &Path) -> io::Result<()> {
    for name in ["lower", "upper", "work"] {
        std::fs::create_dir(scratch.join(name))?;
    }
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [
        ("lowerdir", "lower"),
        ("upperdir", "upper"),
        ("workdir", "work"),
    ] {
        rustix::mount::fsconfig_set_string(context.as_fd(), key, scratch.join(value).as_path())?;
    }
    rustix::mount::fsconfig_set_flag(context.as_fd(), "userxattr")?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::empty();
    let mount = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let file = rustix::fs::openat(
        mount.as_fd(),
        "file",
        rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CREATE | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::from_raw_mode(0o600),
    )?;
    File::from(file).write_all(b"kiln")
}

/// Mounts a new proc and a new sysfs, which the kernel grants only to who sees complete ones already.
fn proc_and_sysfs() -> io::Result<()> {
    // SAFETY: the process has a single thread and shares no descriptor table.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    mount_new("sysfs")?;
    // SAFETY: as above.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }?;
    // Only a process inside the new pid namespace may mount its proc. SAFETY: as above.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let mounted = mount_new("proc").is_ok();
            // SAFETY: ends this process without running the exit handlers of the process it was forked from.
            unsafe { libc::_exit(i32::from(!mounted)) }
        }
        pid => {
            let status = rustix::process::waitpid(Pid::from_raw(pid), WaitOptions::empty())?;
            let mounted = status.is_some_and(|(_, status)| status.exit_status() == Some(0));
            if mounted {
                Ok(())
            } else {
                Err(io::Error::other("mount proc: not permitted"))
            }
        }
    }
}

fn mount_new(kind: &str) -> io::Result<()> {
    let mount = || {
        let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        rustix::mount::fsmount(
            context.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )
    };
    match mount() {
        Ok(_mount) => Ok(()),
        Err(errno) => Err(io::Error::other(format!("mount {kind}: {errno}"))),
    }
}
