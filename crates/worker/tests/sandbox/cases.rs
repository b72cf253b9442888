//! What a step may expect, and what it must not be able to do.

use std::fs::{self, File};
use std::io::{Seek as _, Write as _};
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use engine::sandbox::{
    LauncherImage, Namespaces, NamespacesOptions, Network, NetworkPool, NetworkProgram,
    SandboxError, StepExit, StepLimits, UserIds,
};
use tokio_util::sync::CancellationToken;

use crate::rig::{Rig, Starter};

pub(crate) type Case = (
    &'static str,
    fn(Arc<Rig>) -> Pin<Box<dyn Future<Output = ()> + Send>>,
);

/// Lists cases by their functions' names.
macro_rules! cases {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), |rig| Box::pin($name(rig)))),*] };
}
pub(crate) use cases;

pub(crate) const CASES: &[Case] = cases![
    an_exit_code_is_the_command_s_own,
    a_crash_is_a_signal,
    a_command_that_is_not_there_is_127_and_one_that_cannot_run_126,
    the_environment_is_exactly_what_was_given,
    a_missing_working_directory_is_made_inside_the_root,
    a_working_directory_is_never_a_descriptor,
    the_user_and_the_groups_are_the_step_s,
    a_user_without_privileges_may_write_to_dev_stdout,
    standard_input_is_the_given_file_or_nothing,
    output_larger_than_a_pipe_arrives_whole,
    background_processes_end_with_the_command,
    a_stubborn_step_is_cancelled_at_once,
    a_step_that_takes_too_long_times_out,
    a_step_that_is_silent_for_too_long_is_ended_and_one_that_speaks_is_not,
    a_dropped_step_is_dead,
    many_steps_at_once_do_not_mix_and_leave_nothing_open,
    capabilities_are_the_list_and_nothing_is_inherited,
    descriptors_are_the_three_standard_ones,
    the_host_s_files_and_processes_are_out_of_sight,
    the_kernel_s_filesystems_are_as_they_should_be,
    the_launcher_s_binary_cannot_be_written,
    every_system_call_answers_as_the_table_says,
    sockets_namespaces_and_tracing_are_refused,
    programs_of_32_bits_run_under_the_same_policy,
    nothing_is_left_for_the_next_step,
    a_fork_bomb_hits_its_limit,
    memory_beyond_the_limit_is_out_of_memory,
    the_host_s_loopback_is_out_of_reach,
    networks_are_reused_but_not_shared,
    slirp4netns_serves_where_pasta_is_missing,
    files_belong_to_the_container_s_ids,
];

async fn an_exit_code_is_the_command_s_own(rig: Arc<Rig>) {
    for code in [0, 1, 42, 255] {
        let outcome = rig.sh(&format!("exit {code}")).go().await;
        assert_eq!(outcome.exit(), StepExit::Code(code));
    }
}

/// An ELF program whose only instruction is an invalid one: the one way for pid 1 to die of a signal.
fn crashing_program() -> Vec<u8> {
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let machine: u16 = if cfg!(target_arch = "aarch64") {
        183
    } else {
        62
    };
    for half in [2, machine] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1_u32.to_le_bytes());
    for word in [0x40_0078_u64, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend([1_u32, 5].iter().flat_map(|word| word.to_le_bytes()));
    for word in [0_u64, 0x40_0000, 0x40_0000, 124, 124, 4096] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend([0x0f, 0x0b, 0, 0]);
    elf
}

async fn a_crash_is_a_signal(rig: Arc<Rig>) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = rig.base().join("bin/crash");
    fs::write(&path, crashing_program()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(
        rig.command(&["crash"]).go().await.exit(),
        StepExit::Signal(libc::SIGILL)
    );
}

async fn a_command_that_is_not_there_is_127_and_one_that_cannot_run_126(rig: Arc<Rig>) {
    let outcome = rig.command(&["foo"]).go().await;
    assert_eq!(outcome.exit(), StepExit::Code(127));
    assert_eq!(
        outcome.stderr,
        "exec: \"foo\": executable file not found in $PATH\n"
    );
    let outcome = rig.command(&["/no/such"]).go().await;
    assert_eq!(outcome.exit(), StepExit::Code(127));
    assert_eq!(
        outcome.stderr,
        "exec: \"/no/such\": no such file or directory\n"
    );
    for name in ["not-executable", "/bin/not-executable", "/tmp"] {
        let outcome = rig.command(&[name]).go().await;
        assert_eq!(outcome.exit(), StepExit::Code(126), "{name}");
        assert!(
            outcome.stderr.ends_with("permission denied\n"),
            "{}",
            outcome.stderr
        );
    }
}

async fn the_environment_is_exactly_what_was_given(rig: Arc<Rig>) {
    let outcome = rig
        .command(&["env"])
        .with(|run| run.env.push(("A".to_owned(), "b c=d".to_owned())))
        .go()
        .await;
    assert_eq!(outcome.text(), "PATH=/bin\nA=b c=d");
}

async fn a_missing_working_directory_is_made_inside_the_root(rig: Arc<Rig>) {
    let outcome = rig
        .sh("pwd; stat -c '%a %u:%g' .")
        .with(|run| {
            run.cwd = String::from("/new/deep/../one");
            run.user = UserIds {
                uid: 7,
                gid: 7,
                groups: Vec::new(),
            };
        })
        .go()
        .await;
    assert_eq!(outcome.text(), "/new/one\n755 0:0");
    assert!(outcome.upper().join("new/one").is_dir());
}

async fn a_working_directory_is_never_a_descriptor(rig: Arc<Rig>) {
    for number in 0..64 {
        let outcome = rig
            .sh("ls")
            .with(|run| run.cwd = format!("/proc/self/fd/{number}"))
            .go()
            .await;
        assert!(
            matches!(outcome.exit, Err(SandboxError::SetUp { .. })),
            "{number}: {}",
            outcome.stdout
        );
    }
    std::os::unix::fs::symlink("/proc/self/fd/8", rig.base().join("w")).unwrap();
    let outcome = rig
        .sh("ls")
        .with(|run| run.cwd = String::from("/w/../.."))
        .go()
        .await;
    assert!(
        matches!(outcome.exit, Err(SandboxError::SetUp { .. })),
        "{}",
        outcome.stdout
    );
    fs::remove_file(rig.base().join("w")).unwrap();
}

async fn the_user_and_the_groups_are_the_step_s(rig: Arc<Rig>) {
    let user = UserIds {
        uid: 1000,
        gid: 1001,
        groups: vec![1001, 5, 65_534],
    };
    let outcome = rig
        .sh("id -u; id -g; id -G")
        .with(|run| run.user = user)
        .go()
        .await;
    assert_eq!(outcome.text(), "1000\n1001\n1001 5 65534");
}

async fn a_user_without_privileges_may_write_to_dev_stdout(rig: Arc<Rig>) {
    let user = UserIds {
        uid: 1000,
        gid: 1000,
        groups: Vec::new(),
    };
    let outcome = rig
        .sh("echo out > /dev/stdout; echo err > /dev/stderr")
        .with(|run| run.user = user)
        .go()
        .await;
    assert_eq!((outcome.text(), outcome.stderr.as_str()), ("out", "err\n"));
}

async fn standard_input_is_the_given_file_or_nothing(rig: Arc<Rig>) {
    assert_eq!(
        rig.sh("cat; readlink /proc/self/fd/0").go().await.text(),
        "/dev/null"
    );
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"from a heredoc").unwrap();
    file.rewind().unwrap();
    assert_eq!(
        rig.sh("cat")
            .with(|run| run.stdin = Some(file))
            .go()
            .await
            .text(),
        "from a heredoc"
    );
}

async fn output_larger_than_a_pipe_arrives_whole(rig: Arc<Rig>) {
    let outcome = rig
        .sh("dd if=/dev/zero bs=1M count=24 2>/dev/null; echo e >&2")
        .go()
        .await;
    assert_eq!(
        (
            outcome.exit(),
            outcome.stdout.len(),
            outcome.stderr.as_str()
        ),
        (StepExit::Code(0), 24 << 20, "e\n")
    );
}

async fn background_processes_end_with_the_command(rig: Arc<Rig>) {
    let scripts = [
        "(setsid sleep 1000 &) ; echo done",
        "(sleep 1000 & sleep 1000 &) & echo done",
        "sh -c 'kill -STOP $$' & trap '' TERM; echo done",
        "sh -c \"trap '' TERM INT HUP; while :; do sleep 1000; done\" & echo done",
        "i=0; while [ $i -lt 200 ]; do (exit 0) & i=$((i+1)); done; echo done",
    ];
    for script in scripts {
        let outcome = rig.sh(script).go().await;
        assert_eq!(outcome.text(), "done");
        assert!(
            outcome.took < Duration::from_secs(3),
            "{script} took {:?}",
            outcome.took
        );
    }
}

async fn a_stubborn_step_is_cancelled_at_once(rig: Arc<Rig>) {
    let cancel = CancellationToken::new();
    let running = rig
        .sh("trap '' TERM; while :; do sleep 1000; done")
        .go_until(cancel.clone());
    let later = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        cancel.cancel();
    };
    let (outcome, ()) = tokio::join!(running, later);
    assert!(matches!(outcome.exit, Err(SandboxError::Cancelled)));
    assert!(outcome.took < Duration::from_secs(2));
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    let outcome = rig.sh("sleep 1000").go_until(cancelled).await;
    assert!(matches!(outcome.exit, Err(SandboxError::Cancelled)));
}

async fn a_step_that_takes_too_long_times_out(rig: Arc<Rig>) {
    let limits = StepLimits {
        wall_time: Duration::from_millis(300),
        ..StepLimits::default()
    };
    let outcome = rig
        .sh("echo before; sleep 1000")
        .with(|run| run.limits = limits)
        .go()
        .await;
    assert_eq!(
        (outcome.exit(), outcome.stdout.as_str()),
        (StepExit::TimedOut, "before\n")
    );
    assert!(outcome.took < Duration::from_secs(2));
}

async fn a_step_that_is_silent_for_too_long_is_ended_and_one_that_speaks_is_not(rig: Arc<Rig>) {
    let limits = StepLimits {
        idle_time: Some(Duration::from_millis(700)),
        ..StepLimits::default()
    };
    let silent = limits.clone();
    let outcome = rig
        .sh("echo before; sleep 1000")
        .with(|run| run.limits = silent)
        .go()
        .await;
    assert_eq!(
        (outcome.exit(), outcome.stdout.as_str()),
        (StepExit::Silent, "before\n")
    );
    assert!(outcome.took >= Duration::from_millis(700) && outcome.took < Duration::from_secs(3));
    let outcome = rig
        .sh("for i in 1 2 3 4 5 6; do echo $i >&2; sleep 0.2; done")
        .with(|run| run.limits = limits)
        .go()
        .await;
    assert_eq!(outcome.exit(), StepExit::Code(0));
    assert!(outcome.took >= Duration::from_millis(1200));
}

/// How many processes of the host have `word` among their arguments.
fn processes_named(word: &str) -> usize {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .filter(|line| {
            line.split(|byte| *byte == 0)
                .any(|part| part == word.as_bytes())
        })
        .count()
}

async fn a_dropped_step_is_dead(rig: Arc<Rig>) {
    let name = format!("{}.5", std::process::id() + 1_000_000);
    {
        let step = rig.command(&["sleep", &name]).go();
        tokio::pin!(step);
        // Until the command runs, the future must be driven.
        while processes_named(&name) == 0 {
            tokio::select! {
                _ = &mut step => panic!("it ended"),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
    }
    let gone = async {
        while processes_named(&name) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(2), gone)
        .await
        .unwrap();
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

async fn many_steps_at_once_do_not_mix_and_leave_nothing_open(rig: Arc<Rig>) {
    assert_eq!(rig.sh("echo warm").go().await.text(), "warm");
    let before = open_descriptors();
    let mut steps = tokio::task::JoinSet::new();
    for number in 0..40 {
        let rig = Arc::clone(&rig);
        steps.spawn(async move {
            let outcome = rig
                .sh(&format!("echo {number}; echo {number} >&2; exit {number}"))
                .go()
                .await;
            assert_eq!(outcome.exit(), StepExit::Code(number));
            assert_eq!(
                (outcome.stdout, outcome.stderr),
                (format!("{number}\n"), format!("{number}\n"))
            );
        });
    }
    while let Some(step) = steps.join_next().await {
        step.unwrap();
    }
    assert_eq!(open_descriptors(), before);
}

async fn capabilities_are_the_list_and_nothing_is_inherited(rig: Arc<Rig>) {
    let script = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -s '\\t ' ' '";
    let list = "00000000a00405fb";
    let expected = |set: &str| {
        format!(
            "CapInh: 0000000000000000\nCapPrm: {set}\nCapEff: {set}\nCapBnd: {list}\nCapAmb: 0000000000000000\n\
             NoNewPrivs: 0\nSeccomp: 2"
        )
    };
    assert_eq!(rig.sh(script).go().await.text(), expected(list));
    let user = UserIds {
        uid: 1000,
        gid: 1000,
        groups: Vec::new(),
    };
    let outcome = rig.sh(script).with(|run| run.user = user).go().await;
    assert_eq!(outcome.text(), expected("0000000000000000"));
}

async fn descriptors_are_the_three_standard_ones(rig: Arc<Rig>) {
    let outcome = rig.command(&["/probe", "probe", "descriptors"]).go().await;
    assert_eq!(outcome.text(), "0 /dev/null\n1 pipe\n2 pipe");
}

async fn the_host_s_files_and_processes_are_out_of_sight(rig: Arc<Rig>) {
    let canary = rig.dir.path().join("canary");
    fs::write(&canary, "secret").unwrap();
    let path = canary.display();
    let outcome = rig
        .sh(&format!(
            "cat {path} /proc/1/root{path} /proc/self/root{path}; ls /proc | grep '^[0-9]' | wc -l"
        ))
        .go()
        .await;
    assert!(
        outcome.text().trim().parse::<u32>().unwrap() <= 5,
        "{}",
        outcome.stdout
    );
    assert!(!outcome.stdout.contains("secret"));
    let mounts = rig.sh("cat /proc/self/mountinfo").go().await;
    assert!(
        !mounts.text().contains("/dev/vda") && !mounts.text().contains(" ext4 "),
        "{}",
        mounts.stdout
    );
    assert_eq!(
        rig.sh("hostname; cat /etc/hostname; grep -c extra /etc/hosts")
            .go()
            .await
            .text(),
        "step\nstep\n1"
    );
}

async fn the_kernel_s_filesystems_are_as_they_should_be(rig: Arc<Rig>) {
    let outcome = rig.sh("ls /dev | tr '\\n' ' '; ls /sys/firmware /proc/acpi 2>/dev/null | grep -v :; cat /proc/interrupts /proc/keys /proc/timer_list").go().await;
    assert_eq!(
        outcome.text().trim(),
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    );
    assert_eq!(
        rig.sh("cat /proc/sys/user/max_user_namespaces")
            .go()
            .await
            .text(),
        "0"
    );
    for file in [
        "/proc/sys/kernel/domainname",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/uevent_helper",
    ] {
        let outcome = rig.sh(&format!("echo 1 > {file}")).go().await;
        assert_ne!(outcome.exit(), StepExit::Code(0), "{file}");
    }
    for file in [
        "/dev/null",
        "/dev/zero",
        "/dev/full",
        "/dev/random",
        "/dev/urandom",
        "/dev/tty",
    ] {
        assert_eq!(
            rig.sh(&format!("test -c {file} && echo device"))
                .go()
                .await
                .text(),
            "device"
        );
    }
    assert_eq!(
        rig.sh("echo x > /dev/shm/y && cat /dev/shm/y; mknod /tmp/n c 1 3 || echo refused")
            .go()
            .await
            .text(),
        "x\nrefused"
    );
    assert_eq!(
        rig.sh("mount -t tmpfs x /tmp || mount -t proc x /tmp || umount /proc || echo refused")
            .go()
            .await
            .text(),
        "refused"
    );
}

async fn the_launcher_s_binary_cannot_be_written(rig: Arc<Rig>) {
    let answer = rustix::fs::access(&rig.image_path, rustix::fs::Access::WRITE_OK).unwrap_err();
    // To the container's root the host's root is nobody; an ordinary user's own binary is protected by the mount alone.
    let expected = if rig.starter == Starter::Root {
        rustix::io::Errno::ACCESS
    } else {
        rustix::io::Errno::ROFS
    };
    assert_eq!(answer, expected);
    assert!(
        fs::OpenOptions::new()
            .write(true)
            .open(&rig.image_path)
            .is_err()
    );
    // An interpreter that names itself while our binary still runs gets nowhere: 126 or 127, or the loader's own failure.
    let script = rig.base().join("bin/self");
    fs::write(&script, "#!/proc/self/exe probe descriptors\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_ne!(rig.command(&["self"]).go().await.exit(), StepExit::Code(0));
}

/// The table of what every system call number answers, by architecture.
#[cfg(target_arch = "x86_64")]
const TABLE: &str = include_str!("syscalls.x86_64");

/// Calls from here on came with kernels that some users do not have yet.
const FIRST_NEW_CALL: u32 = 434;

async fn every_system_call_answers_as_the_table_says(rig: Arc<Rig>) {
    let outcome = rig.command(&["/probe", "probe", "syscalls"]).go().await;
    let found: Vec<&str> = outcome.text().lines().collect();
    let expected: Vec<&str> = TABLE.lines().collect();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let (number, verdict) = found.split_once(' ').unwrap();
        let (expected_number, rest) = expected.split_once(' ').unwrap();
        let expected_verdict = rest.split_once(' ').unwrap().1;
        assert_eq!(number, expected_number);
        // A call that this kernel is too old for is as good as refused.
        let too_new = verdict == "ENOSYS" && number.parse::<u32>().unwrap() >= FIRST_NEW_CALL;
        assert!(
            verdict == expected_verdict || too_new,
            "{expected}, but found {verdict}"
        );
    }
}

async fn sockets_namespaces_and_tracing_are_refused(rig: Arc<Rig>) {
    let outcome = rig.command(&["/probe", "probe", "refusals"]).go().await;
    assert_eq!(outcome.text(), "");
    assert_eq!(
        rig.sh("unshare -Ur true || unshare -m true || echo refused")
            .go()
            .await
            .text(),
        "refused"
    );
}

/// A 32-bit program that makes one call with three arguments and exits with what went wrong, 0 when nothing did.
#[cfg(target_arch = "x86_64")]
fn program_of_32_bits(call: u32, arguments: [u32; 3]) -> Vec<u8> {
    let mut elf = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (start, header) = (0x0804_8000_u32, 52 + 32);
    elf.extend([2_u16, 3].map(u16::to_le_bytes).concat());
    elf.extend([1, start + header, 52, 0, 0].map(u32::to_le_bytes).concat());
    elf.extend([52_u16, 32, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    elf.extend(
        [1, 0, start, start, 0x1000, 0x1000, 5, 0x1000]
            .map(u32::to_le_bytes)
            .concat(),
    );
    // mov eax, ebx, ecx, edx; int 0x80
    for (register, value) in [
        (0xb8, call),
        (0xbb, arguments[0]),
        (0xb9, arguments[1]),
        (0xba, arguments[2]),
    ] {
        elf.push(register);
        elf.extend(value.to_le_bytes());
    }
    elf.extend([0xcd, 0x80]);
    // test eax, eax; jns over the next two; neg eax; jmp over; xor eax, eax; mov ebx, eax; mov eax, 1; int 0x80
    elf.extend([
        0x85, 0xc0, 0x79, 0x04, 0xf7, 0xd8, 0xeb, 0x02, 0x31, 0xc0, 0x89, 0xc3,
    ]);
    elf.extend([0xb8, 1, 0, 0, 0, 0xcd, 0x80]);
    elf.resize(0x1000, 0);
    elf
}

#[cfg(target_arch = "x86_64")]
async fn programs_of_32_bits_run_under_the_same_policy(rig: Arc<Rig>) {
    use rustix::io::Errno;
    let newuser = 0x1000_0000;
    let cases = [
        ("getpid", 20, [0; 3], None),
        ("socket of IPv4", 359, [2, 1, 0], None),
        ("socket of netlink, routing", 359, [16, 3, 0], None),
        (
            "socket of netlink, audit",
            359,
            [16, 3, 9],
            Some(Errno::AFNOSUPPORT),
        ),
        (
            "socket of AF_VSOCK",
            359,
            [40, 1, 0],
            Some(Errno::AFNOSUPPORT),
        ),
        (
            "socketpair of AF_ALG",
            360,
            [38, 1, 0],
            Some(Errno::AFNOSUPPORT),
        ),
        ("socketcall", 102, [1, 0, 0], Some(Errno::NOSYS)),
        (
            "clone into a user namespace",
            120,
            [newuser, 0, 0],
            Some(Errno::PERM),
        ),
        ("unshare", 310, [newuser, 0, 0], Some(Errno::PERM)),
        ("clone3", 435, [0; 3], Some(Errno::NOSYS)),
        ("mount", 21, [0; 3], Some(Errno::PERM)),
        ("ptrace", 26, [0; 3], Some(Errno::PERM)),
        ("bpf", 357, [0; 3], Some(Errno::PERM)),
        ("io_uring_setup", 425, [0; 3], Some(Errno::PERM)),
        ("ioctl TIOCSTI", 54, [0, 0x5412, 0], Some(Errno::PERM)),
        (
            "personality of nothing known",
            136,
            [0x10, 0, 0],
            Some(Errno::PERM),
        ),
        ("an unknown call", 9999, [0; 3], Some(Errno::NOSYS)),
    ];
    let outcome = rig.command(&["/bin/true"]).go().await;
    assert_eq!(outcome.exit(), StepExit::Code(0));
    for (index, (name, call, arguments, expected)) in cases.into_iter().enumerate() {
        let path = format!("/bin/call-{index}");
        let file = rig.base().join(path.trim_start_matches('/'));
        fs::write(&file, program_of_32_bits(call, arguments)).unwrap();
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let outcome = rig.command(&[&path]).go().await;
        let code = expected.map_or(0, Errno::raw_os_error);
        assert_eq!(
            outcome.exit(),
            StepExit::Code(code),
            "{name}: {}",
            outcome.stderr
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
async fn programs_of_32_bits_run_under_the_same_policy(rig: Arc<Rig>) {
    // There are none here; that native ones run is what is left of it.
    assert_eq!(rig.sh("exit 0").go().await.exit(), StepExit::Code(0));
}

async fn nothing_is_left_for_the_next_step(rig: Arc<Rig>) {
    assert_eq!(
        rig.command(&["/probe", "probe", "leave"]).go().await.text(),
        ""
    );
    assert_eq!(
        rig.command(&["/probe", "probe", "search"])
            .go()
            .await
            .text(),
        ""
    );
    assert_eq!(
        rig.sh("ls /dev/shm /dev/mqueue /tmp | grep -v : | tr -d '\\n'")
            .go()
            .await
            .text(),
        ""
    );
}

async fn a_fork_bomb_hits_its_limit(rig: Arc<Rig>) {
    let limits = StepLimits {
        processes: Some(40),
        wall_time: Duration::from_secs(20),
        ..StepLimits::default()
    };
    let script = "i=0; while [ $i -lt 200 ]; do sleep 1000 & i=$((i+1)); done; echo unlimited";
    let outcome = rig.sh(script).with(|run| run.limits = limits).go().await;
    assert!(!outcome.stdout.contains("unlimited"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("fork"), "{}", outcome.stderr);
    assert_eq!(rig.sh("echo fine").go().await.text(), "fine");
}

async fn memory_beyond_the_limit_is_out_of_memory(rig: Arc<Rig>) {
    assert_eq!(rig.has_cgroups, rig.starter == Starter::Root);
    if !rig.has_cgroups {
        return;
    }
    let limits = StepLimits {
        memory_bytes: Some(64 << 20),
        ..StepLimits::default()
    };
    let outcome = rig
        .sh("head -c 300000000 /dev/zero | tail")
        .with(|run| run.limits = limits.clone())
        .go()
        .await;
    assert_eq!(outcome.exit(), StepExit::OutOfMemory);
    let outcome = rig
        .sh("echo fine")
        .with(|run| run.limits = limits)
        .go()
        .await;
    assert_eq!(outcome.text(), "fine");
}

/// Whether steps can have a network here: an ordinary user needs a device that some hosts keep for root.
fn network_is_possible(rig: &Rig) -> bool {
    let everybody = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .is_ok();
    assert!(
        everybody || rig.starter == Starter::User,
        "root lends itself the device"
    );
    everybody
}

async fn the_host_s_loopback_is_out_of_reach(rig: Arc<Rig>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
    let (near, far) = (
        listener.local_addr().unwrap().port(),
        everywhere.local_addr().unwrap().port(),
    );
    let mut targets = vec![
        format!("127.0.0.1 {near}"),
        format!("127.0.0.1 {far}"),
        format!("169.254.169.254 {far}"),
    ];
    let routes = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let mut addresses: Vec<&str> = routes
        .lines()
        .filter_map(|line| line.trim().strip_prefix("|-- "))
        .filter(|address| !address.starts_with("127.") && *address != "0.0.0.0")
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    targets.extend(addresses.iter().map(|address| format!("{address} {far}")));
    let attempts: Vec<String> = targets
        .iter()
        .map(|target| format!("nc -w 1 {target} </dev/null && echo reached {target}; "))
        .collect();
    let gateway = "nc -w 1 $(ip route | awk '/default/ {print $3}') PORT </dev/null && echo reached gateway; true";
    let script = attempts.concat() + &gateway.replace("PORT", &near.to_string());
    assert_eq!(rig.sh(&script).go().await.text(), "");
    let outcome = rig
        .sh(&script)
        .with(|run| run.network = Network::Default)
        .go()
        .await;
    if network_is_possible(&rig) {
        assert_eq!(outcome.text(), "");
    } else {
        assert!(matches!(outcome.exit, Err(SandboxError::Network { .. })));
    }
    let outcome = rig
        .sh("true")
        .with(|run| run.network = Network::Host)
        .go()
        .await;
    assert!(matches!(outcome.exit, Err(SandboxError::Invalid { .. })));
    listener.set_nonblocking(true).unwrap();
    everywhere.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err() && everywhere.accept().is_err());
}

/// Checks that a step which wants a network where there can be none is refused, not run without one.
async fn is_refused(rig: &Rig) {
    let outcome = rig
        .sh("true")
        .with(|run| run.network = Network::Default)
        .go()
        .await;
    assert!(matches!(outcome.exit, Err(SandboxError::Network { .. })));
}

async fn networks_are_reused_but_not_shared(rig: Arc<Rig>) {
    if !network_is_possible(&rig) {
        return is_refused(&rig).await;
    }
    let connected = |script: &str| rig.sh(script).with(|run| run.network = Network::Default);
    let (one, other) = tokio::join!(
        connected("readlink /proc/self/ns/net; sleep 1").go(),
        connected("readlink /proc/self/ns/net; sleep 1").go()
    );
    assert_ne!(one.text(), other.text());
    let next = connected("readlink /proc/self/ns/net; cat /etc/resolv.conf")
        .go()
        .await;
    let (namespace, resolv) = next.text().split_once('\n').unwrap();
    assert!([one.text(), other.text()].contains(&namespace));
    assert_eq!(resolv, "nameserver 169.254.1.1");
}

async fn slirp4netns_serves_where_pasta_is_missing(rig: Arc<Rig>) {
    let program =
        NetworkProgram::slirp4netns().unwrap_or_else(|| panic!("install the package slirp4netns"));
    // By now the binary's path may be out of reach, so this is the sealed copy.
    let options = NamespacesOptions {
        network: Some(NetworkPool::new(program)),
        ..NamespacesOptions::new(LauncherImage::prepare().unwrap())
    };
    let other = Rig::with_sandbox(Namespaces::new(options), rig.starter);
    let script = "ip route | grep -c default; cat /etc/resolv.conf";
    if !network_is_possible(&rig) {
        is_refused(&other).await;
        return other.sandbox.shut_down().await;
    }
    let outcome = other
        .sh(script)
        .with(|run| run.network = Network::Default)
        .go()
        .await;
    other.sandbox.shut_down().await;
    assert_eq!(outcome.text(), "1\nnameserver 10.0.2.3");
}

async fn files_belong_to_the_container_s_ids(rig: Arc<Rig>) {
    use std::os::unix::fs::MetadataExt as _;
    let outcome = rig.sh("echo x > /tmp/f && chown 1000:1001 /tmp/f && chmod 4711 /tmp/f && stat -c '%a %u:%g' /tmp/f").go().await;
    assert_eq!(outcome.text(), "4711 1000:1001");
    let file = fs::metadata(outcome.upper().join("tmp/f")).unwrap();
    assert_eq!(
        (file.uid(), file.gid(), file.mode() & 0o7777),
        (1000, 1001, 0o4711)
    );
}
