//! What runs inside a container and tries what a step must not be able to do. It prints only what is wrong, or what it
//! was asked to list.

use std::io::{self, Write as _};
use std::process::ExitCode;

/// The highest system call number that is tried.
const HIGHEST: i64 = 520;
/// An IPC key that the next step searches.
const KEY: i32 = 0x6b69_6c6e;

pub(crate) fn main(args: &[String]) -> ExitCode {
    let mut out = Vec::new();
    match args.first().map(String::as_str) {
        Some("descriptors") => descriptors(&mut out),
        Some("syscalls") => syscalls(&mut out),
        Some("refusals") => refusals(&mut out),
        Some("leave") => leave(&mut out),
        Some("search") => search(&mut out),
        _ => return ExitCode::FAILURE,
    }
    io::stdout().write_all(&out).unwrap();
    ExitCode::SUCCESS
}

fn descriptors(out: &mut Vec<u8>) {
    for number in 0..1024 {
        if let Ok(target) = std::fs::read_link(format!("/proc/self/fd/{number}")) {
            let target = target.to_string_lossy();
            let kind = target.split(':').next().unwrap_or_default();
            writeln!(out, "{number} {kind}").unwrap();
        }
    }
}

/// Calls that end, stop or confuse the probe when they are allowed, as they are.
#[cfg(target_arch = "x86_64")]
const NOT_CALLED: &[i64] = &[
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_pause,
    libc::SYS_rt_sigreturn,
    libc::SYS_sync,
    libc::SYS_alarm,
    // uretprobe and uprobe: trampolines of the kernel, which no filter sees; it kills any other caller.
    335,
    336,
];
#[cfg(not(target_arch = "x86_64"))]
const NOT_CALLED: &[i64] = &[
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigreturn,
    libc::SYS_sync,
];

/// Calls the kernel itself answers `EPERM` or `ENOSYS` to these arguments, though they are allowed.
#[cfg(target_arch = "x86_64")]
const KERNEL_REFUSES: &[i64] = &[
    libc::SYS_futex,
    libc::SYS_setsid,
    libc::SYS_set_thread_area,
    libc::SYS_get_thread_area,
    libc::SYS_epoll_ctl_old,
    libc::SYS_epoll_wait_old,
    libc::SYS_memfd_secret,
    libc::SYS_remap_file_pages,
    libc::SYS_landlock_restrict_self,
];
#[cfg(not(target_arch = "x86_64"))]
const KERNEL_REFUSES: &[i64] = &[
    libc::SYS_futex,
    libc::SYS_setsid,
    libc::SYS_landlock_restrict_self,
];

/// Tries every number with arguments that no call accepts. What is not refused by the filter is `allowed`.
fn syscalls(out: &mut Vec<u8>) {
    for number in 0..=HIGHEST {
        if NOT_CALLED.contains(&number) || KERNEL_REFUSES.contains(&number) {
            writeln!(out, "{number} not tried").unwrap();
            continue;
        }
        // SAFETY: no call can use these arguments, and those that could do harm without any are not called.
        let answer =
            unsafe { libc::syscall(number, -1_i64, -1_i64, -1_i64, -1_i64, -1_i64, -1_i64) };
        let error = io::Error::last_os_error().raw_os_error();
        let word = match (answer, error) {
            (-1, Some(libc::EPERM)) => "EPERM",
            (-1, Some(libc::ENOSYS)) => "ENOSYS",
            _ => "allowed",
        };
        writeln!(out, "{number} {word}").unwrap();
    }
}

fn expect(out: &mut Vec<u8>, what: &str, answer: i64, errno: i32) {
    let found = io::Error::last_os_error();
    if answer != -1 || found.raw_os_error() != Some(errno) {
        writeln!(out, "{what}: {answer} {found}").unwrap();
    }
}

fn refusals(out: &mut Vec<u8>) {
    let families = [
        libc::AF_VSOCK,
        libc::AF_ALG,
        libc::AF_PACKET,
        libc::AF_BLUETOOTH,
        libc::AF_CAN,
        libc::AF_XDP,
        libc::AF_TIPC,
        libc::AF_RDS,
        libc::AF_KEY,
    ];
    for family in families {
        // SAFETY: makes a descriptor at most.
        let answer = unsafe { libc::socket(family, libc::SOCK_STREAM, 0) };
        expect(
            out,
            &format!("socket family {family}"),
            answer.into(),
            libc::EAFNOSUPPORT,
        );
    }
    for protocol in [
        libc::NETLINK_NETFILTER,
        libc::NETLINK_AUDIT,
        libc::NETLINK_KOBJECT_UEVENT,
        libc::NETLINK_CRYPTO,
    ] {
        // SAFETY: makes a descriptor at most.
        let answer = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol) };
        expect(
            out,
            &format!("netlink {protocol}"),
            answer.into(),
            libc::EAFNOSUPPORT,
        );
    }
    // SAFETY: makes a descriptor at most.
    let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP) };
    expect(out, "raw socket", raw.into(), libc::EPERM);
    for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6] {
        // SAFETY: makes a descriptor at most.
        if unsafe { libc::socket(family, libc::SOCK_STREAM, 0) } < 0 {
            writeln!(
                out,
                "socket family {family}: {}",
                io::Error::last_os_error()
            )
            .unwrap();
        }
    }
    refused_calls(out);
}

fn refused_calls(out: &mut Vec<u8>) {
    for flag in [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWUTS,
    ] {
        // SAFETY: were it allowed, the child would go on as a copy of this process, which the test would notice.
        let answer = unsafe { libc::syscall(libc::SYS_clone, flag | libc::SIGCHLD, 0, 0, 0, 0) };
        expect(out, &format!("clone {flag:#x}"), answer, libc::EPERM);
        // SAFETY: changes this process only.
        expect(
            out,
            &format!("unshare {flag:#x}"),
            unsafe { libc::unshare(flag) }.into(),
            libc::EPERM,
        );
    }
    // SAFETY: pushes a character at most.
    let answer = unsafe { libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr()) };
    expect(out, "TIOCSTI", answer.into(), libc::EPERM);
    // SAFETY: changes this process only.
    expect(
        out,
        "personality",
        unsafe { libc::personality(0x004_0000) }.into(),
        libc::EPERM,
    );
    // SAFETY: traces at most.
    let answer = unsafe { libc::ptrace(libc::PTRACE_ATTACH, 1, 0, 0) };
    expect(out, "ptrace", answer, libc::EPERM);
    if std::fs::read("/proc/kcore").is_ok_and(|bytes| !bytes.is_empty()) {
        writeln!(out, "kcore can be read").unwrap();
    }
}

fn leave(out: &mut Vec<u8>) {
    // SAFETY: makes objects in this IPC namespace.
    unsafe {
        if libc::shmget(KEY, 4096, libc::IPC_CREAT | 0o600) < 0
            || libc::msgget(KEY, libc::IPC_CREAT | 0o600) < 0
        {
            writeln!(out, "cannot leave anything: {}", io::Error::last_os_error()).unwrap();
        }
    }
    for path in ["/dev/shm/left", "/tmp/left"] {
        std::fs::write(path, "left").unwrap();
    }
}

fn search(out: &mut Vec<u8>) {
    // SAFETY: looks for objects in this IPC namespace.
    unsafe {
        expect(out, "shm", libc::shmget(KEY, 0, 0).into(), libc::ENOENT);
        expect(out, "msg", libc::msgget(KEY, 0).into(), libc::ENOENT);
        expect(
            out,
            "keyring",
            libc::syscall(libc::SYS_keyctl, 0, -3, 0, 0, 0),
            libc::EPERM,
        );
    }
}
