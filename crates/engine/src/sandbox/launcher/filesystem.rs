//! The container's view of files: its root, the kernel's filesystems on top, and the pivot into it.
//!
//! Everything happens in the container's own mount namespace and is mounted by descriptor. Places to mount on are the
//! ones the init layer made (see `init_layer`): a place that is not what it should be is an error, never followed.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags};

use super::mounts::{self, NODEV, NOEXEC, NOSUID, RDONLY};
use super::wire::Plan;
use super::{Attempt as _, Failed, step_mounts};
use crate::sandbox::Confinement;

/// The device nodes every program may expect, with the numbers they must have.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// The links every program may expect in `/dev`.
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Files and directories of the kernel that tell about the host.
const MASKED: [&str; 12] = [
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
    "sys/devices/virtual/powercap",
    "sys/firmware",
];

/// Files and directories of the kernel that act on the host when written.
const READ_ONLY: [&str; 5] = [
    "proc/bus",
    "proc/fs",
    "proc/irq",
    "proc/sys",
    "proc/sysrq-trigger",
];

/// The size of `/dev`, which holds links and empty files only.
const DEV_BYTES: &str = "64k";
/// The size of the filesystem that holds the step's own files under `/etc`.
const SCRATCH_BYTES: &str = "1m";

/// Mounts the container's filesystems over `root` and makes it the root directory.
pub(super) fn enter(
    plan: &Plan,
    root: OwnedFd,
    mounts: Vec<OwnedFd>,
    sysfs: Option<OwnedFd>,
) -> Result<(), Failed> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .attempt("make mounts private")?;
    // Both need the host's own /proc and /dev still in place: the kernel gives a new proc only to who sees one already.
    let proc =
        mounts::new_filesystem("proc", &[], NOSUID | NODEV | NOEXEC).attempt("mount proc")?;
    let devices = host_devices()?;
    let scratch = Scratch::attach(plan)?;
    let place = mounts::target(scratch.fd(), "root", FileType::Directory)
        .attempt("find the place for the root")?;
    mounts::set_attributes(root.as_fd(), NODEV).attempt("forbid devices in the root filesystem")?;
    mounts::attach(root.as_fd(), place.as_fd()).attempt("mount the root filesystem")?;

    attach_at(&proc, root.as_fd(), "proc")?;
    match sysfs {
        Some(sysfs) => attach_at(&sysfs, root.as_fd(), "sys")?,
        None => attach_at(&scratch.empty_directory()?, root.as_fd(), "sys")?,
    }
    mount_dev(plan, root.as_fd(), &devices)?;
    match plan.confinement {
        Confinement::Sandbox => confine(root.as_fd(), proc.as_fd(), &scratch)?,
        Confinement::Insecure => {}
    }
    for file in ["resolv.conf", "hosts", "hostname"] {
        let path = format!("{}/{file}", plan.etc);
        let copy = scratch.file(file)?;
        let place = mounts::target(root.as_fd(), &path, FileType::RegularFile)
            .attempt(format!("find /{path}"))?;
        mounts::attach(copy.as_fd(), place.as_fd()).attempt(format!("mount /{path}"))?;
    }
    step_mounts::attach(&plan.mounts, mounts, root.as_fd(), scratch.fd())?;
    pivot(root)
}

/// Takes from the kernel's filesystems what a step has no use for.
fn confine(root: BorrowedFd<'_>, proc: BorrowedFd<'_>, scratch: &Scratch) -> Result<(), Failed> {
    forbid_user_namespaces(proc)?;
    for path in MASKED {
        mask(root, path, scratch)?;
    }
    for path in READ_ONLY {
        make_read_only(root, path)?;
    }
    Ok(())
}

fn pivot(root: OwnedFd) -> Result<(), Failed> {
    rustix::process::fchdir(&root).attempt("enter the root filesystem")?;
    rustix::process::pivot_root(".", ".").attempt("make the root filesystem the root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).attempt("let go of the host's files")?;
    drop(root);
    rustix::process::chdir("/").attempt("enter the root directory")
}

fn attach_at(mount: &OwnedFd, root: BorrowedFd<'_>, path: &str) -> Result<(), Failed> {
    let place = mounts::target(root, path, FileType::Directory).attempt(format!("find /{path}"))?;
    mounts::attach(mount.as_fd(), place.as_fd()).attempt(format!("mount /{path}"))
}

fn host_devices() -> Result<Vec<(&'static str, OwnedFd)>, Failed> {
    let mut devices = Vec::new();
    for (name, major, minor) in DEVICES {
        let node = mounts::host_device(name, major, minor)
            .attempt(format!("open the host's /dev/{name}"))?;
        let copy =
            mounts::copy_of(node.as_fd()).attempt(format!("copy the mount of /dev/{name}"))?;
        mounts::set_attributes(copy.as_fd(), NOSUID | NOEXEC)
            .attempt(format!("restrict /dev/{name}"))?;
        devices.push((name, copy));
    }
    Ok(devices)
}

fn mount_dev(
    plan: &Plan,
    root: BorrowedFd<'_>,
    devices: &[(&'static str, OwnedFd)],
) -> Result<(), Failed> {
    let options = [("size", DEV_BYTES), ("mode", "755")];
    let dev = mounts::new_filesystem("tmpfs", &options, NOSUID | NOEXEC).attempt("mount /dev")?;
    for directory in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(&dev, directory, Mode::from_raw_mode(0o755)).attempt("fill /dev")?;
    }
    for (name, target) in DEVICE_LINKS {
        rustix::fs::symlinkat(target, &dev, name).attempt("fill /dev")?;
    }
    for (name, _) in devices {
        create_file(dev.as_fd(), name, b"", 0o666).attempt("fill /dev")?;
    }
    attach_at(&dev, root, "dev")?;
    for (name, device) in devices {
        let place = mounts::target(dev.as_fd(), name, FileType::RegularFile)
            .attempt(format!("find /dev/{name}"))?;
        mounts::attach(device.as_fd(), place.as_fd()).attempt(format!("mount /dev/{name}"))?;
    }
    let options = [
        ("newinstance", ""),
        ("ptmxmode", "0666"),
        ("mode", "0620"),
        ("gid", "5"),
    ];
    let pts =
        mounts::new_filesystem("devpts", &options, NOSUID | NOEXEC).attempt("mount /dev/pts")?;
    attach_at(&pts, dev.as_fd(), "pts")?;
    let size = plan.shm_bytes.to_string();
    let options = [("size", size.as_str()), ("mode", "1777")];
    let shm = mounts::new_filesystem("tmpfs", &options, NOSUID | NODEV | NOEXEC)
        .attempt("mount /dev/shm")?;
    attach_at(&shm, dev.as_fd(), "shm")?;
    let queues = mounts::new_filesystem("mqueue", &[], NOSUID | NODEV | NOEXEC)
        .attempt("mount /dev/mqueue")?;
    attach_at(&queues, dev.as_fd(), "mqueue")
}

/// Lets nobody inside make a user namespace, filter or no filter.
fn forbid_user_namespaces(proc: BorrowedFd<'_>) -> Result<(), Failed> {
    let what = "forbid user namespaces inside the container";
    let file = rustix::fs::openat2(
        proc,
        "sys/user/max_user_namespaces",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
    .attempt(what)?;
    std::fs::File::from(file).write_all(b"0").attempt(what)
}

/// Opens a path of the kernel's filesystems, when this kernel has it.
fn existing(root: BorrowedFd<'_>, path: &str) -> Result<Option<(OwnedFd, FileType)>, Failed> {
    let opened = rustix::fs::openat2(
        root,
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS | ResolveFlags::IN_ROOT,
    );
    match opened {
        Ok(fd) => {
            let kind = rustix::fs::fstat(&fd)
                .attempt(format!("look at /{path}"))?
                .st_mode;
            Ok(Some((fd, FileType::from_raw_mode(kind))))
        }
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno).attempt(format!("open /{path}")),
    }
}

fn mask(root: BorrowedFd<'_>, path: &str, scratch: &Scratch) -> Result<(), Failed> {
    let Some((place, kind)) = existing(root, path)? else {
        return Ok(());
    };
    let cover = match kind {
        FileType::Directory => scratch.empty_directory()?,
        _ => scratch.null()?,
    };
    mounts::attach(cover.as_fd(), place.as_fd()).attempt(format!("mask /{path}"))
}

fn make_read_only(root: BorrowedFd<'_>, path: &str) -> Result<(), Failed> {
    let Some((place, _)) = existing(root, path)? else {
        return Ok(());
    };
    let copy = mounts::copy_of(place.as_fd()).attempt(format!("copy the mount of /{path}"))?;
    mounts::set_attributes(copy.as_fd(), RDONLY | NOSUID | NODEV | NOEXEC)
        .and_then(|()| mounts::attach(copy.as_fd(), place.as_fd()))
        .attempt(format!("make /{path} read-only"))
}

pub(super) fn create_file(
    directory: BorrowedFd<'_>,
    name: &str,
    content: &[u8],
    mode: u32,
) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(mode))?;
    std::fs::File::from(fd).write_all(content)
}

/// A small filesystem of the step's own, mounted where it disappears with the host's files.
///
/// It holds the place for the root filesystem, the files bound over `/etc`, and an empty directory to mask with.
struct Scratch {
    mount: OwnedFd,
}

impl Scratch {
    fn attach(plan: &Plan) -> Result<Self, Failed> {
        let what = "prepare the step's own files";
        let options = [("size", SCRATCH_BYTES), ("mode", "700")];
        let mount =
            mounts::new_filesystem("tmpfs", &options, NOSUID | NODEV | NOEXEC).attempt(what)?;
        // Any directory every Linux has will do; this namespace has no further use for the host's /proc.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = rustix::fs::openat(CWD, "/proc", flags, Mode::empty()).attempt(what)?;
        mounts::attach(mount.as_fd(), place.as_fd()).attempt(what)?;
        for (directory, mode) in [("root", 0o700), ("empty", 0o555)] {
            rustix::fs::mkdirat(&mount, directory, Mode::from_raw_mode(mode)).attempt(what)?;
        }
        let hostname = format!("{}\n", plan.hostname);
        let files = [
            ("resolv.conf", plan.resolv_file.as_str()),
            ("hosts", plan.hosts_file.as_str()),
            ("hostname", &hostname),
            ("null", ""),
        ];
        for (name, content) in files {
            create_file(mount.as_fd(), name, content.as_bytes(), 0o644).attempt(what)?;
        }
        Ok(Self { mount })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }

    fn file(&self, name: &str) -> Result<OwnedFd, Failed> {
        let file = mounts::target(self.fd(), name, FileType::RegularFile)
            .attempt(format!("find our {name}"))?;
        mounts::copy_of(file.as_fd()).attempt(format!("copy the mount of our {name}"))
    }

    /// An empty file that cannot be written, to mask files with: unlike a device node it needs nothing of the host.
    fn null(&self) -> Result<OwnedFd, Failed> {
        let copy = self.file("null")?;
        mounts::set_attributes(copy.as_fd(), RDONLY | NOSUID | NODEV | NOEXEC)
            .attempt("make a mask read-only")?;
        Ok(copy)
    }

    fn empty_directory(&self) -> Result<OwnedFd, Failed> {
        let what = "make a mask";
        let place = mounts::target(self.fd(), "empty", FileType::Directory).attempt(what)?;
        let copy = mounts::copy_of(place.as_fd()).attempt(what)?;
        mounts::set_attributes(copy.as_fd(), RDONLY | NOSUID | NODEV | NOEXEC).attempt(what)?;
        Ok(copy)
    }
}
