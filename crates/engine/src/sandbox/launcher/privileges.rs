//! What the command is left with: a bounded set of capabilities, its user's ids, and the system call filter; or, where that was
//! asked for and allowed, everything that root of its user namespace has.
//!
//! The order matters: the filter is loaded while we still may (it must not set `no_new_privs`, which would break
//! `sudo` in a Dockerfile), ids change after it, capabilities last.

use std::io;

use rustix::process::{Gid, Uid};

use super::seccomp::Filters;
use super::wire::Plan;
use super::{Attempt as _, Failed};

/// The capabilities the container's root has, by number.
pub(super) const CAPABILITIES: [u32; 12] = [
    0,  // CHOWN
    1,  // DAC_OVERRIDE
    3,  // FOWNER
    4,  // FSETID
    5,  // KILL
    6,  // SETGID
    7,  // SETUID
    8,  // SETPCAP
    10, // NET_BIND_SERVICE
    18, // SYS_CHROOT
    29, // AUDIT_WRITE
    31, // SETFCAP
];

/// One above the highest capability a kernel may know.
const CAPABILITY_LIMIT: u32 = 64;
/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// `KEYCTL_JOIN_SESSION_KEYRING`.
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;

/// Gives up every privilege the command must not have.
pub(super) fn give_up(plan: &Plan, filters: &Filters) -> Result<(), Failed> {
    drop_bounding_set().attempt("drop capabilities")?;
    rustix::thread::clear_ambient_capability_set().attempt("drop ambient capabilities")?;
    set_groups(plan)?;
    filters.load().attempt("load the seccomp filter")?;
    set_ids(plan)?;
    let kept = if plan.uid == 0 {
        CAPABILITIES.iter().fold(0, |set, bit| set | 1_u64 << bit)
    } else {
        0
    };
    set_capabilities(kept, 0).attempt("set capabilities")
}

/// Gives the command, whoever runs it, all that the container's user namespace has to give.
pub(super) fn keep(plan: &Plan) -> Result<(), Failed> {
    leave_keyring().attempt("leave the keyring of whoever started kiln")?;
    set_groups(plan)?;
    // SAFETY: sets a flag of this thread, which the execution of the command takes back.
    let answer = unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) };
    answered(answer.into()).attempt("keep capabilities")?;
    set_ids(plan)?;
    let known: Vec<u32> = (0..CAPABILITY_LIMIT)
        .filter(|bit| is_bounded(*bit))
        .collect();
    let all = known.iter().fold(0, |set, bit| set | 1_u64 << bit);
    set_capabilities(all, all).attempt("set capabilities")?;
    for capability in known {
        raise(capability).attempt("raise ambient capabilities")?;
    }
    Ok(())
}

fn set_groups(plan: &Plan) -> Result<(), Failed> {
    let groups: Vec<Gid> = plan.groups.iter().map(|id| Gid::from_raw(*id)).collect();
    rustix::thread::set_thread_groups(&groups).attempt("set supplementary groups")
}

fn set_ids(plan: &Plan) -> Result<(), Failed> {
    let gid = Gid::from_raw(plan.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).attempt("set the group id")?;
    let uid = Uid::from_raw(plan.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).attempt("set the user id")
}

/// Joins a keyring of our own: without the filter, the command could ask for the keys of the one it has inherited.
fn leave_keyring() -> io::Result<()> {
    // SAFETY: a null name asks for a new keyring; nothing of ours is read or written.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    };
    match answered(answer) {
        // A kernel without keys, or a filter around all of us that the command is under as well.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(()),
        other => other,
    }
}

fn answered(answer: libc::c_long) -> io::Result<()> {
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Tells whether this thread could have the capability.
fn is_bounded(capability: u32) -> bool {
    // SAFETY: reads a bit of this thread's bounding set.
    let answer = unsafe {
        libc::prctl(
            libc::PR_CAPBSET_READ,
            libc::c_ulong::from(capability),
            0,
            0,
            0,
        )
    };
    answer == 1
}

/// Lets the capability through the execution of a command that is not root.
fn raise(capability: u32) -> io::Result<()> {
    // SAFETY: sets a bit of this thread's ambient set.
    let answer = unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_RAISE,
            libc::c_ulong::from(capability),
            0,
            0,
        )
    };
    answered(answer.into())
}

fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..CAPABILITY_LIMIT {
        if is_bounded(capability) && !CAPABILITIES.contains(&capability) {
            // SAFETY: clears a bit of this thread's bounding set.
            let answer = unsafe {
                libc::prctl(
                    libc::PR_CAPBSET_DROP,
                    libc::c_ulong::from(capability),
                    0,
                    0,
                    0,
                )
            };
            answered(answer.into())?;
        }
    }
    Ok(())
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn set_capabilities(set: u64, inheritable: u64) -> io::Result<()> {
    let header = Header {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
    let data = [0, 32].map(|shift| Data {
        effective: half(set >> shift),
        permitted: half(set >> shift),
        inheritable: half(inheritable >> shift),
    });
    // SAFETY: header and data have the layout of version 3 and outlive the call.
    let answer = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    answered(answer)
}
