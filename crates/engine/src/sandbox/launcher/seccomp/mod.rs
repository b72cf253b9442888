//! Which system calls a step may make: what Docker's containers may, less the calls that most often opened kernels.
//!
//! Three filters are stacked, because one filter of the compiler has one answer for what matches:
//!
//! | filter | matches | answer |
//! |---|---|---|
//! | allowed | the calls of [`ALLOWED`] | go on; anything else `ENOSYS`, as on a kernel that lacks the call |
//! | denied | the calls of [`DENIED`], and some arguments of allowed calls | `EPERM` |
//! | sockets | address families and netlink protocols other than the usual | `EAFNOSUPPORT` |
//!
//! `clone3` is among the unknown: its flags lie in memory a filter cannot see, and the C libraries fall back to `clone`
//! when told `ENOSYS`. 32-bit programs on x86-64 have the same policy ([`i386`]); calls of any other architecture kill the process.

#[cfg(target_arch = "x86_64")]
mod i386;

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op,
    SeccompCondition as Condition, SeccompFilter, SeccompRule, TargetArch,
};

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: TargetArch = TargetArch::aarch64;

/// The calls a step may make, whatever their arguments (but see [`argument_rules`] and [`socket_rules`]).
#[rustfmt::skip]
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_accept, libc::SYS_accept4, libc::SYS_adjtimex, libc::SYS_bind, libc::SYS_brk, libc::SYS_capget,
    libc::SYS_capset, libc::SYS_chdir, libc::SYS_chroot, libc::SYS_clock_adjtime, libc::SYS_clock_getres,
    libc::SYS_clock_gettime, libc::SYS_clock_nanosleep, libc::SYS_clone, libc::SYS_close, libc::SYS_close_range,
    libc::SYS_connect, libc::SYS_copy_file_range, libc::SYS_dup, libc::SYS_dup3, libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_execve,
    libc::SYS_execveat, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_faccessat, libc::SYS_faccessat2,
    libc::SYS_fadvise64, libc::SYS_fallocate, libc::SYS_fanotify_mark, libc::SYS_fchdir, libc::SYS_fchmod,
    libc::SYS_fchmodat, libc::SYS_fchown, libc::SYS_fchownat, libc::SYS_fcntl, libc::SYS_fdatasync,
    libc::SYS_fgetxattr, libc::SYS_flistxattr, libc::SYS_flock, libc::SYS_fremovexattr, libc::SYS_fsetxattr,
    libc::SYS_fstat, libc::SYS_fstatfs, libc::SYS_fsync, libc::SYS_ftruncate, libc::SYS_futex,
    libc::SYS_get_mempolicy, libc::SYS_get_robust_list, libc::SYS_getcpu, libc::SYS_getcwd,
    libc::SYS_getdents64, libc::SYS_getegid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getgroups,
    libc::SYS_getitimer, libc::SYS_getpeername, libc::SYS_getpgid, libc::SYS_getpid, libc::SYS_getppid,
    libc::SYS_getpriority, libc::SYS_getrandom, libc::SYS_getresgid, libc::SYS_getresuid, libc::SYS_getrlimit,
    libc::SYS_getrusage, libc::SYS_getsid, libc::SYS_getsockname, libc::SYS_getsockopt, libc::SYS_gettid,
    libc::SYS_gettimeofday, libc::SYS_getuid, libc::SYS_getxattr, libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1, libc::SYS_inotify_rm_watch, libc::SYS_io_cancel, libc::SYS_io_destroy,
    libc::SYS_io_getevents, libc::SYS_io_setup, libc::SYS_io_submit, libc::SYS_ioctl,
    libc::SYS_ioprio_get, libc::SYS_ioprio_set, libc::SYS_kill, libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset, libc::SYS_landlock_restrict_self, libc::SYS_lgetxattr, libc::SYS_linkat,
    libc::SYS_listen, libc::SYS_listxattr, libc::SYS_llistxattr, libc::SYS_lremovexattr, libc::SYS_lseek,
    libc::SYS_lsetxattr, libc::SYS_lstat, libc::SYS_madvise, libc::SYS_mbind, libc::SYS_membarrier,
    libc::SYS_memfd_create, libc::SYS_memfd_secret, libc::SYS_mincore, libc::SYS_mkdirat, libc::SYS_mknodat,
    libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_mlockall, libc::SYS_mmap, libc::SYS_mprotect,
    libc::SYS_mq_getsetattr, libc::SYS_mq_notify, libc::SYS_mq_open, libc::SYS_mq_timedreceive,
    libc::SYS_mq_timedsend, libc::SYS_mq_unlink, libc::SYS_mremap, libc::SYS_msgctl, libc::SYS_msgget,
    libc::SYS_msgrcv, libc::SYS_msgsnd, libc::SYS_msync, libc::SYS_munlock, libc::SYS_munlockall,
    libc::SYS_munmap, libc::SYS_name_to_handle_at, libc::SYS_nanosleep, libc::SYS_newfstatat, libc::SYS_openat,
    libc::SYS_openat2, libc::SYS_personality, libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal,
    libc::SYS_pipe2, libc::SYS_pkey_alloc, libc::SYS_pkey_free, libc::SYS_pkey_mprotect, libc::SYS_ppoll,
    libc::SYS_prctl, libc::SYS_pread64, libc::SYS_preadv, libc::SYS_preadv2, libc::SYS_prlimit64,
    libc::SYS_process_mrelease, libc::SYS_pselect6, libc::SYS_pwrite64, libc::SYS_pwritev, libc::SYS_pwritev2,
    libc::SYS_read, libc::SYS_readahead, libc::SYS_readlinkat, libc::SYS_readv, libc::SYS_recvfrom,
    libc::SYS_recvmmsg, libc::SYS_recvmsg, libc::SYS_remap_file_pages, libc::SYS_removexattr,
    libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_restart_syscall, libc::SYS_rseq, libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend, libc::SYS_rt_sigtimedwait, libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sched_get_priority_max, libc::SYS_sched_get_priority_min, libc::SYS_sched_getaffinity,
    libc::SYS_sched_getattr, libc::SYS_sched_getparam, libc::SYS_sched_getscheduler,
    libc::SYS_sched_rr_get_interval, libc::SYS_sched_setaffinity, libc::SYS_sched_setattr,
    libc::SYS_sched_setparam, libc::SYS_sched_setscheduler, libc::SYS_sched_yield, libc::SYS_seccomp,
    libc::SYS_semctl, libc::SYS_semget, libc::SYS_semop, libc::SYS_semtimedop, libc::SYS_sendfile,
    libc::SYS_sendmmsg, libc::SYS_sendmsg, libc::SYS_sendto, libc::SYS_set_mempolicy, libc::SYS_set_robust_list,
    libc::SYS_set_tid_address, libc::SYS_setfsgid, libc::SYS_setfsuid, libc::SYS_setgid, libc::SYS_setgroups,
    libc::SYS_setitimer, libc::SYS_setpgid, libc::SYS_setpriority, libc::SYS_setregid, libc::SYS_setresgid,
    libc::SYS_setresuid, libc::SYS_setreuid, libc::SYS_setrlimit, libc::SYS_setsid, libc::SYS_setsockopt,
    libc::SYS_setuid, libc::SYS_setxattr, libc::SYS_shmat, libc::SYS_shmctl, libc::SYS_shmdt, libc::SYS_shmget,
    libc::SYS_shutdown, libc::SYS_sigaltstack, libc::SYS_signalfd4, libc::SYS_socket, libc::SYS_socketpair,
    libc::SYS_splice, libc::SYS_stat, libc::SYS_statfs, libc::SYS_statx, libc::SYS_symlinkat, libc::SYS_sync,
    libc::SYS_sync_file_range, libc::SYS_syncfs, libc::SYS_sysinfo, libc::SYS_tee, libc::SYS_tgkill,
    libc::SYS_timer_create, libc::SYS_timer_delete, libc::SYS_timer_getoverrun, libc::SYS_timer_gettime,
    libc::SYS_timer_settime, libc::SYS_timerfd_create, libc::SYS_timerfd_gettime, libc::SYS_timerfd_settime,
    libc::SYS_times, libc::SYS_tkill, libc::SYS_truncate, libc::SYS_umask, libc::SYS_uname, libc::SYS_unlinkat,
    libc::SYS_utimensat, libc::SYS_wait4, libc::SYS_waitid, libc::SYS_write, libc::SYS_writev,
];

/// Calls a step may make that are newer than the C library's tables; one number on every architecture.
const ALLOWED_BY_NUMBER: &[(libc::c_long, &str)] = &[
    (449, "futex_waitv"),
    (450, "set_mempolicy_home_node"),
    (451, "cachestat"),
    (452, "fchmodat2"),
    (453, "map_shadow_stack"),
    (454, "futex_wake"),
    (455, "futex_wait"),
    (456, "futex_requeue"),
    (462, "mseal"),
    (463, "setxattrat"),
    (464, "getxattrat"),
    (465, "listxattrat"),
    (466, "removexattrat"),
    (468, "file_getattr"),
    (469, "file_setattr"),
];

/// The calls that are refused by name. What is in neither table is unknown to a step.
#[rustfmt::skip]
const DENIED: &[libc::c_long] = &[
    libc::SYS_acct, libc::SYS_add_key, libc::SYS_bpf, libc::SYS_clock_settime, libc::SYS_delete_module,
    libc::SYS_fanotify_init, libc::SYS_finit_module, libc::SYS_fsconfig, libc::SYS_fsmount, libc::SYS_fsopen,
    libc::SYS_fspick, libc::SYS_init_module, libc::SYS_io_uring_enter, libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup, libc::SYS_kcmp, libc::SYS_kexec_file_load, libc::SYS_kexec_load, libc::SYS_keyctl,
    libc::SYS_lookup_dcookie, libc::SYS_migrate_pages, libc::SYS_mount, libc::SYS_mount_setattr,
    libc::SYS_move_mount, libc::SYS_move_pages, libc::SYS_nfsservctl, libc::SYS_open_by_handle_at,
    libc::SYS_open_tree, libc::SYS_perf_event_open, libc::SYS_pidfd_getfd, libc::SYS_pivot_root,
    libc::SYS_process_madvise, libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_ptrace,
    libc::SYS_quotactl, libc::SYS_quotactl_fd, libc::SYS_reboot, libc::SYS_request_key, libc::SYS_setdomainname,
    libc::SYS_sethostname, libc::SYS_setns, libc::SYS_settimeofday, libc::SYS_swapoff, libc::SYS_swapon,
    libc::SYS_syslog, libc::SYS_umount2, libc::SYS_unshare, libc::SYS_userfaultfd, libc::SYS_vhangup,
    libc::SYS_vmsplice,
];

/// Refused calls that are newer than the C library's tables.
const DENIED_BY_NUMBER: &[(libc::c_long, &str)] = &[
    (457, "statmount"),
    (458, "listmount"),
    (467, "open_tree_attr"),
];

/// Calls that exist on x86-64 only.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ALLOWED_HERE: &[libc::c_long] = &[
    libc::SYS_access, libc::SYS_alarm, libc::SYS_arch_prctl, libc::SYS_chmod, libc::SYS_chown, libc::SYS_creat,
    libc::SYS_dup2, libc::SYS_epoll_create, libc::SYS_epoll_ctl_old, libc::SYS_epoll_wait,
    libc::SYS_epoll_wait_old, libc::SYS_eventfd, libc::SYS_fork, libc::SYS_futimesat, libc::SYS_get_thread_area,
    libc::SYS_getdents, libc::SYS_getpgrp, libc::SYS_inotify_init, libc::SYS_lchown, libc::SYS_link,
    libc::SYS_mkdir, libc::SYS_mknod, libc::SYS_open, libc::SYS_pause, libc::SYS_pipe, libc::SYS_poll,
    libc::SYS_readlink, libc::SYS_rename, libc::SYS_rmdir, libc::SYS_select, libc::SYS_set_thread_area,
    libc::SYS_signalfd, libc::SYS_symlink, libc::SYS_time, libc::SYS_unlink, libc::SYS_utime, libc::SYS_utimes,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[libc::c_long] = &[];

/// Refused calls that exist on x86-64 only.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const DENIED_HERE: &[libc::c_long] = &[
    libc::SYS__sysctl, libc::SYS_afs_syscall,
    libc::SYS_getpmsg, libc::SYS_ioperm, libc::SYS_iopl, libc::SYS_modify_ldt, libc::SYS_putpmsg,
    libc::SYS_security, libc::SYS_sysfs, libc::SYS_tuxcall, libc::SYS_uselib,
    libc::SYS_ustat, libc::SYS_vserver,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[libc::c_long] = &[];

/// `clone` flags that make a namespace.
const NAMESPACE_FLAGS: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// The execution domains programs ask for: Linux, 32-bit uname, both, 32-bit on 64-bit, and "tell me".
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The terminal requests that put words into somebody else's mouth: `TIOCSTI` and `TIOCLINUX`.
const TERMINAL_REQUESTS: [u64; 2] = [0x5412, 0x541c];

/// The address families a step may open sockets of; netlink with the routing protocol only.
const FAMILIES: [libc::c_int; 4] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];

/// The filters as programs for the kernel, in the order in which they are loaded.
#[derive(Debug, Clone)]
pub(super) struct Filters {
    programs: Vec<BpfProgram>,
}

/// Compiles the filters of a step.
pub(super) fn compile() -> io::Result<Filters> {
    let allowed = [ALLOWED, ALLOWED_HERE]
        .concat()
        .into_iter()
        .chain(ALLOWED_BY_NUMBER.iter().map(|(number, _)| *number))
        .map(|number| (number, Vec::new()))
        .collect();
    let mut denied: BTreeMap<_, _> = [DENIED, DENIED_HERE]
        .concat()
        .into_iter()
        .chain(DENIED_BY_NUMBER.iter().map(|(number, _)| *number))
        .map(|number| (number, Vec::new()))
        .collect();
    denied.extend(argument_rules()?);
    let go_on = SeccompAction::Allow;
    // The kernel asks the filter loaded last first and, among refusals, keeps the first answer.
    let programs = vec![
        program(allowed, errno(libc::ENOSYS), go_on.clone())?,
        program(denied, go_on.clone(), errno(libc::EPERM))?,
        program(socket_rules()?, go_on, errno(libc::EAFNOSUPPORT))?,
    ];
    Ok(Filters {
        programs: with_foreign(programs)?,
    })
}

/// Adds the policy for 32-bit programs to the first filter; the others leave them alone.
#[cfg(target_arch = "x86_64")]
fn with_foreign(programs: Vec<BpfProgram>) -> io::Result<Vec<BpfProgram>> {
    let mut foreign = Some(i386::policy()?);
    let add = |native| i386::beside(native, foreign.take().unwrap_or_else(i386::nothing));
    programs.into_iter().map(add).collect()
}

/// There is no other kind of program on this architecture.
#[cfg(not(target_arch = "x86_64"))]
fn with_foreign(programs: Vec<BpfProgram>) -> io::Result<Vec<BpfProgram>> {
    Ok(programs)
}

impl Filters {
    /// Loads the filters into this thread without setting `no_new_privs`; needs `CAP_SYS_ADMIN` in its user namespace.
    pub(super) fn load(&self) -> io::Result<()> {
        for program in &self.programs {
            let length = u16::try_from(program.len()).map_err(io::Error::other)?;
            let header = libc::sock_fprog {
                len: length,
                filter: program.as_ptr().cast_mut().cast(),
            };
            // SAFETY: the program is as long as the header says, and the kernel copies it during the call.
            let answer = unsafe {
                libc::syscall(
                    libc::SYS_seccomp,
                    libc::SECCOMP_SET_MODE_FILTER,
                    0,
                    &raw const header,
                )
            };
            if answer != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

type Rules = BTreeMap<libc::c_long, Vec<SeccompRule>>;

fn errno(number: libc::c_int) -> SeccompAction {
    SeccompAction::Errno(number.cast_unsigned())
}

fn program(
    rules: Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> io::Result<BpfProgram> {
    SeccompFilter::new(rules, otherwise, matched, ARCHITECTURE)
        .and_then(BpfProgram::try_from)
        .map_err(io::Error::other)
}

fn rule(conditions: Vec<Condition>) -> io::Result<SeccompRule> {
    SeccompRule::new(conditions).map_err(io::Error::other)
}

fn argument(index: u8, op: Op, value: u64) -> io::Result<Condition> {
    Condition::new(index, Len::Dword, op, value).map_err(io::Error::other)
}

/// Arguments for which an allowed call is refused.
fn argument_rules() -> io::Result<Rules> {
    let clone = NAMESPACE_FLAGS
        .iter()
        .map(|flag| u64::from(flag.cast_unsigned()))
        .map(|flag| rule(vec![argument(0, Op::MaskedEq(flag), flag)?]))
        .collect::<io::Result<Vec<_>>>()?;
    let terminal = TERMINAL_REQUESTS
        .iter()
        .map(|request| rule(vec![argument(1, Op::Eq, *request)?]))
        .collect::<io::Result<Vec<_>>>()?;
    let other_personality = PERSONALITIES
        .iter()
        .map(|value| argument(0, Op::Ne, *value))
        .collect::<io::Result<Vec<_>>>()?;
    Ok(BTreeMap::from([
        (libc::SYS_clone, clone),
        (libc::SYS_ioctl, terminal),
        (libc::SYS_personality, vec![rule(other_personality)?]),
    ]))
}

fn socket_rules() -> io::Result<Rules> {
    let value = |family: libc::c_int| u64::from(family.cast_unsigned());
    let other_family = FAMILIES
        .iter()
        .map(|family| argument(0, Op::Ne, value(*family)))
        .collect::<io::Result<Vec<_>>>()?;
    let other_netlink = vec![
        argument(0, Op::Eq, value(libc::AF_NETLINK))?,
        argument(2, Op::Ne, value(libc::NETLINK_ROUTE))?,
    ];
    let rules = vec![rule(other_family)?, rule(other_netlink)?];
    Ok(BTreeMap::from([
        (libc::SYS_socket, rules.clone()),
        (libc::SYS_socketpair, rules),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_both_allowed_and_denied() {
        for number in [ALLOWED, ALLOWED_HERE].concat() {
            assert!(
                !DENIED.contains(&number) && !DENIED_HERE.contains(&number),
                "call {number}"
            );
        }
    }

    #[test]
    fn the_filters_compile_to_programs_the_kernel_accepts_in_length() {
        for program in compile().unwrap().programs {
            assert!(program.len() < 4096);
        }
    }
}
