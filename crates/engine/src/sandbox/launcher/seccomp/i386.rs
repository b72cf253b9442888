//! The same policy for 32-bit programs on x86-64, whose calls have numbers of their own.
//!
//! The compiler of the other filters knows no such architecture, so this one is put together here, instruction by instruction: it loads
//! the number of the call and compares it with one entry after the other. One call cannot be judged: `socketcall` passes its arguments in
//! memory that a filter does not see, hence any family of addresses. It is unknown (`ENOSYS`), upon which C libraries use `socket` and
//! its like, if they were built for kernels since 4.3; others have no sockets.

use std::io;

use seccompiler::{BpfProgram, sock_filter};

use super::{FAMILIES, NAMESPACE_FLAGS, PERSONALITIES, TERMINAL_REQUESTS};

/// `AUDIT_ARCH_I386`.
const ARCHITECTURE: u32 = 0x4000_0003;
/// Where the number of the call, the architecture and the first argument are in what a filter sees; arguments take eight bytes each.
const NUMBER_OFFSET: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;
const ARGUMENTS_OFFSET: u32 = 16;

const CLONE: u32 = 120;
const IOCTL: u32 = 54;
const PERSONALITY: u32 = 136;
const SOCKETS: [u32; 2] = [359, 360];

/// The calls a 32-bit program may make, whatever their arguments.
#[rustfmt::skip]
const ALLOWED: &[(u32, &str)] = &[
    (0, "restart_syscall"), (1, "exit"), (2, "fork"), (3, "read"), (4, "write"), (5, "open"), (6, "close"), (7, "waitpid"),
    (8, "creat"), (9, "link"), (10, "unlink"), (11, "execve"), (12, "chdir"), (13, "time"), (14, "mknod"), (15, "chmod"),
    (16, "lchown"), (19, "lseek"), (20, "getpid"), (23, "setuid"), (24, "getuid"), (27, "alarm"), (29, "pause"), (30, "utime"),
    (33, "access"), (34, "nice"), (36, "sync"), (37, "kill"), (38, "rename"), (39, "mkdir"), (40, "rmdir"), (41, "dup"),
    (42, "pipe"), (43, "times"), (45, "brk"), (46, "setgid"), (47, "getgid"), (48, "signal"), (49, "geteuid"), (50, "getegid"),
    (55, "fcntl"), (57, "setpgid"), (60, "umask"), (61, "chroot"), (63, "dup2"), (64, "getppid"), (65, "getpgrp"),
    (66, "setsid"), (67, "sigaction"), (68, "sgetmask"), (69, "ssetmask"), (70, "setreuid"), (71, "setregid"),
    (72, "sigsuspend"), (73, "sigpending"), (75, "setrlimit"), (76, "getrlimit"), (77, "getrusage"), (78, "gettimeofday"),
    (80, "getgroups"), (81, "setgroups"), (82, "select"), (83, "symlink"), (85, "readlink"), (89, "readdir"), (90, "mmap"),
    (91, "munmap"), (92, "truncate"), (93, "ftruncate"), (94, "fchmod"), (95, "fchown"), (96, "getpriority"),
    (97, "setpriority"), (99, "statfs"), (100, "fstatfs"), (104, "setitimer"), (105, "getitimer"), (106, "stat"),
    (107, "lstat"), (108, "fstat"), (114, "wait4"), (116, "sysinfo"), (117, "ipc"), (118, "fsync"), (119, "sigreturn"),
    (122, "uname"), (124, "adjtimex"), (125, "mprotect"), (126, "sigprocmask"), (132, "getpgid"), (133, "fchdir"),
    (138, "setfsuid"), (139, "setfsgid"), (140, "_llseek"), (141, "getdents"), (142, "_newselect"), (143, "flock"),
    (144, "msync"), (145, "readv"), (146, "writev"), (147, "getsid"), (148, "fdatasync"), (150, "mlock"), (151, "munlock"),
    (152, "mlockall"), (153, "munlockall"), (154, "sched_setparam"), (155, "sched_getparam"), (156, "sched_setscheduler"),
    (157, "sched_getscheduler"), (158, "sched_yield"), (159, "sched_get_priority_max"), (160, "sched_get_priority_min"),
    (161, "sched_rr_get_interval"), (162, "nanosleep"), (163, "mremap"), (164, "setresuid"), (165, "getresuid"), (168, "poll"),
    (170, "setresgid"), (171, "getresgid"), (172, "prctl"), (173, "rt_sigreturn"), (174, "rt_sigaction"),
    (175, "rt_sigprocmask"), (176, "rt_sigpending"), (177, "rt_sigtimedwait"), (178, "rt_sigqueueinfo"), (179, "rt_sigsuspend"),
    (180, "pread64"), (181, "pwrite64"), (182, "chown"), (183, "getcwd"), (184, "capget"), (185, "capset"),
    (186, "sigaltstack"), (187, "sendfile"), (190, "vfork"), (191, "ugetrlimit"), (192, "mmap2"), (193, "truncate64"),
    (194, "ftruncate64"), (195, "stat64"), (196, "lstat64"), (197, "fstat64"), (198, "lchown32"), (199, "getuid32"),
    (200, "getgid32"), (201, "geteuid32"), (202, "getegid32"), (203, "setreuid32"), (204, "setregid32"), (205, "getgroups32"),
    (206, "setgroups32"), (207, "fchown32"), (208, "setresuid32"), (209, "getresuid32"), (210, "setresgid32"),
    (211, "getresgid32"), (212, "chown32"), (213, "setuid32"), (214, "setgid32"), (215, "setfsuid32"), (216, "setfsgid32"),
    (218, "mincore"), (219, "madvise"), (220, "getdents64"), (221, "fcntl64"), (224, "gettid"), (225, "readahead"),
    (226, "setxattr"), (227, "lsetxattr"), (228, "fsetxattr"), (229, "getxattr"), (230, "lgetxattr"), (231, "fgetxattr"),
    (232, "listxattr"), (233, "llistxattr"), (234, "flistxattr"), (235, "removexattr"), (236, "lremovexattr"),
    (237, "fremovexattr"), (238, "tkill"), (239, "sendfile64"), (240, "futex"), (241, "sched_setaffinity"),
    (242, "sched_getaffinity"), (243, "set_thread_area"), (244, "get_thread_area"), (245, "io_setup"), (246, "io_destroy"),
    (247, "io_getevents"), (248, "io_submit"), (249, "io_cancel"), (250, "fadvise64"), (252, "exit_group"),
    (254, "epoll_create"), (255, "epoll_ctl"), (256, "epoll_wait"), (257, "remap_file_pages"), (258, "set_tid_address"),
    (259, "timer_create"), (260, "timer_settime"), (261, "timer_gettime"), (262, "timer_getoverrun"), (263, "timer_delete"),
    (265, "clock_gettime"), (266, "clock_getres"), (267, "clock_nanosleep"), (268, "statfs64"), (269, "fstatfs64"),
    (270, "tgkill"), (271, "utimes"), (272, "fadvise64_64"), (274, "mbind"), (275, "get_mempolicy"), (276, "set_mempolicy"),
    (277, "mq_open"), (278, "mq_unlink"), (279, "mq_timedsend"), (280, "mq_timedreceive"), (281, "mq_notify"),
    (282, "mq_getsetattr"), (284, "waitid"), (289, "ioprio_set"), (290, "ioprio_get"), (291, "inotify_init"),
    (292, "inotify_add_watch"), (293, "inotify_rm_watch"), (295, "openat"), (296, "mkdirat"), (297, "mknodat"),
    (298, "fchownat"), (299, "futimesat"), (300, "fstatat64"), (301, "unlinkat"), (302, "renameat"), (303, "linkat"),
    (304, "symlinkat"), (305, "readlinkat"), (306, "fchmodat"), (307, "faccessat"), (308, "pselect6"), (309, "ppoll"),
    (311, "set_robust_list"), (312, "get_robust_list"), (313, "splice"), (314, "sync_file_range"), (315, "tee"),
    (318, "getcpu"), (319, "epoll_pwait"), (320, "utimensat"), (321, "signalfd"), (322, "timerfd_create"), (323, "eventfd"),
    (324, "fallocate"), (325, "timerfd_settime"), (326, "timerfd_gettime"), (327, "signalfd4"), (328, "eventfd2"),
    (329, "epoll_create1"), (330, "dup3"), (331, "pipe2"), (332, "inotify_init1"), (333, "preadv"), (334, "pwritev"),
    (335, "rt_tgsigqueueinfo"), (337, "recvmmsg"), (339, "fanotify_mark"), (340, "prlimit64"), (341, "name_to_handle_at"),
    (343, "clock_adjtime"), (344, "syncfs"), (345, "sendmmsg"), (351, "sched_setattr"), (352, "sched_getattr"),
    (353, "renameat2"), (354, "seccomp"), (355, "getrandom"), (356, "memfd_create"), (358, "execveat"), (361, "bind"),
    (362, "connect"), (363, "listen"), (364, "accept4"), (365, "getsockopt"), (366, "setsockopt"), (367, "getsockname"),
    (368, "getpeername"), (369, "sendto"), (370, "sendmsg"), (371, "recvfrom"), (372, "recvmsg"), (373, "shutdown"),
    (375, "membarrier"), (376, "mlock2"), (377, "copy_file_range"), (378, "preadv2"), (379, "pwritev2"), (380, "pkey_mprotect"),
    (381, "pkey_alloc"), (382, "pkey_free"), (383, "statx"), (384, "arch_prctl"), (386, "rseq"), (393, "semget"),
    (394, "semctl"), (395, "shmget"), (396, "shmctl"), (397, "shmat"), (398, "shmdt"), (399, "msgget"), (400, "msgsnd"),
    (401, "msgrcv"), (402, "msgctl"), (403, "clock_gettime64"), (405, "clock_adjtime64"), (406, "clock_getres_time64"),
    (407, "clock_nanosleep_time64"), (408, "timer_gettime64"), (409, "timer_settime64"), (410, "timerfd_gettime64"),
    (411, "timerfd_settime64"), (412, "utimensat_time64"), (413, "pselect6_time64"), (414, "ppoll_time64"),
    (417, "recvmmsg_time64"), (418, "mq_timedsend_time64"), (419, "mq_timedreceive_time64"), (420, "semtimedop_time64"),
    (421, "rt_sigtimedwait_time64"), (422, "futex_time64"), (423, "sched_rr_get_interval_time64"), (424, "pidfd_send_signal"),
    (434, "pidfd_open"), (436, "close_range"), (437, "openat2"), (439, "faccessat2"), (441, "epoll_pwait2"),
    (444, "landlock_create_ruleset"), (445, "landlock_add_rule"), (446, "landlock_restrict_self"), (447, "memfd_secret"),
    (448, "process_mrelease"), (449, "futex_waitv"), (450, "set_mempolicy_home_node"), (451, "cachestat"), (452, "fchmodat2"),
    (453, "map_shadow_stack"), (454, "futex_wake"), (455, "futex_wait"), (456, "futex_requeue"), (462, "mseal"),
    (463, "setxattrat"), (464, "getxattrat"), (465, "listxattrat"), (466, "removexattrat"), (468, "file_getattr"),
    (469, "file_setattr"),
];

/// The calls that are refused by name.
#[rustfmt::skip]
const DENIED: &[(u32, &str)] = &[
    (21, "mount"), (22, "umount"), (25, "stime"), (26, "ptrace"), (51, "acct"), (52, "umount2"), (62, "ustat"),
    (74, "sethostname"), (79, "settimeofday"), (86, "uselib"), (87, "swapon"), (88, "reboot"), (101, "ioperm"), (103, "syslog"),
    (110, "iopl"), (111, "vhangup"), (113, "vm86old"), (115, "swapoff"), (121, "setdomainname"), (123, "modify_ldt"),
    (128, "init_module"), (129, "delete_module"), (131, "quotactl"), (135, "sysfs"), (137, "afs_syscall"), (149, "_sysctl"),
    (166, "vm86"), (169, "nfsservctl"), (188, "getpmsg"), (189, "putpmsg"), (217, "pivot_root"), (253, "lookup_dcookie"),
    (264, "clock_settime"), (273, "vserver"), (283, "kexec_load"), (286, "add_key"), (287, "request_key"), (288, "keyctl"),
    (294, "migrate_pages"), (310, "unshare"), (316, "vmsplice"), (317, "move_pages"), (336, "perf_event_open"),
    (338, "fanotify_init"), (342, "open_by_handle_at"), (346, "setns"), (347, "process_vm_readv"), (348, "process_vm_writev"),
    (349, "kcmp"), (350, "finit_module"), (357, "bpf"), (374, "userfaultfd"), (404, "clock_settime64"), (425, "io_uring_setup"),
    (426, "io_uring_enter"), (427, "io_uring_register"), (428, "open_tree"), (429, "move_mount"), (430, "fsopen"),
    (431, "fsconfig"), (432, "fsmount"), (433, "fspick"), (438, "pidfd_getfd"), (440, "process_madvise"),
    (442, "mount_setattr"), (443, "quotactl_fd"), (457, "statmount"), (458, "listmount"), (467, "open_tree_attr"),
];

/// Puts before `native`, a filter for the machine's own calls, one for those of 32-bit programs.
pub(super) fn beside(native: BpfProgram, foreign: BpfProgram) -> io::Result<BpfProgram> {
    let length = u32::try_from(native.len()).map_err(io::Error::other)?;
    let mut program = vec![
        load(ARCHITECTURE_OFFSET),
        jump_unless(ARCHITECTURE, 1),
        instruction(libc::BPF_JMP | libc::BPF_JA, 0, length),
    ];
    program.extend(native);
    program.extend(foreign);
    Ok(program)
}

/// Returns the filter that lets everything pass: another one decides.
pub(super) fn nothing() -> BpfProgram {
    vec![answer(libc::SECCOMP_RET_ALLOW)]
}

/// Returns the policy.
pub(super) fn policy() -> io::Result<BpfProgram> {
    let allow = answer(libc::SECCOMP_RET_ALLOW);
    let mut program = vec![load(NUMBER_OFFSET)];
    let mut when = |number: u32, body: &[sock_filter]| -> io::Result<()> {
        let length = u8::try_from(body.len()).map_err(io::Error::other)?;
        program.push(jump_unless(number, length));
        program.extend_from_slice(body);
        Ok(())
    };
    let flags = NAMESPACE_FLAGS.iter().fold(0, |all, flag| all | flag);
    let clone = [
        load(argument(0)),
        // Any of these flags: the next instruction; none: the one after it.
        sock_filter {
            jf: 1,
            ..instruction(
                libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K,
                0,
                flags.cast_unsigned(),
            )
        },
        refuse(libc::EPERM),
        allow.clone(),
    ];
    when(CLONE, &clone)?;
    let mut ioctl = vec![load(argument(1))];
    for request in TERMINAL_REQUESTS {
        let request = u32::try_from(request).map_err(io::Error::other)?;
        ioctl.extend([jump_unless(request, 1), refuse(libc::EPERM)]);
    }
    ioctl.push(allow.clone());
    when(IOCTL, &ioctl)?;
    let mut personality = vec![load(argument(0))];
    for known in PERSONALITIES {
        let known = u32::try_from(known).map_err(io::Error::other)?;
        personality.extend([jump_unless(known, 1), allow.clone()]);
    }
    personality.push(refuse(libc::EPERM));
    when(PERSONALITY, &personality)?;
    let mut socket = vec![load(argument(0))];
    for family in FAMILIES
        .into_iter()
        .filter(|family| *family != libc::AF_NETLINK)
    {
        socket.extend([jump_unless(family.cast_unsigned(), 1), allow.clone()]);
    }
    socket.extend([
        jump_unless(libc::AF_NETLINK.cast_unsigned(), 3),
        load(argument(2)),
        jump_unless(libc::NETLINK_ROUTE.cast_unsigned(), 1),
        allow.clone(),
        refuse(libc::EAFNOSUPPORT),
    ]);
    for number in SOCKETS {
        when(number, &socket)?;
    }
    for (number, _) in ALLOWED {
        when(*number, std::slice::from_ref(&allow))?;
    }
    for (number, _) in DENIED {
        when(*number, &[refuse(libc::EPERM)])?;
    }
    program.push(refuse(libc::ENOSYS));
    Ok(program)
}

/// Where the lower half of an argument is.
fn argument(index: u32) -> u32 {
    ARGUMENTS_OFFSET + 8 * index
}

fn instruction(code: u32, jump_if_false: u8, k: u32) -> sock_filter {
    sock_filter {
        // Codes have eight bits.
        code: u16::try_from(code).unwrap_or(0),
        jt: 0,
        jf: jump_if_false,
        k,
    }
}

fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, offset)
}

/// Goes on when what was loaded is `value`, else skips `n` instructions.
fn jump_unless(value: u32, n: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, n, value)
}

fn answer(action: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, action)
}

fn refuse(errno: libc::c_int) -> sock_filter {
    answer(libc::SECCOMP_RET_ERRNO | errno.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_in_one_table_once() {
        let special = [CLONE, IOCTL, PERSONALITY].into_iter().chain(SOCKETS);
        let tables = ALLOWED.iter().chain(DENIED).map(|(number, _)| *number);
        let mut all: Vec<u32> = special.chain(tables).collect();
        let n = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), n);
        // The one that no filter can look into.
        assert!(!all.contains(&102));
    }

    #[test]
    fn the_policy_is_short_enough_for_the_kernel_beside_the_other() {
        assert!(policy().unwrap().len() < 2048);
    }
}
