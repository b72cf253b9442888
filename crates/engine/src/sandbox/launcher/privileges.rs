//! What the command is left with: a bounded set of capabilities, its user's ids, and the system call filter.
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

/// Gives up every privilege the command must not have.
pub(super) fn give_up(plan: &Plan, filters: &Filters) -> Result<(), Failed> {
    drop_bounding_set().attempt("drop capabilities")?;
    rustix::thread::clear_ambient_capability_set().attempt("drop ambient capabilities")?;
    let groups: Vec<Gid> = plan.groups.iter().map(|id| Gid::from_raw(*id)).collect();
    rustix::thread::set_thread_groups(&groups).attempt("set supplementary groups")?;
    filters.load().attempt("load the seccomp filter")?;
    let gid = Gid::from_raw(plan.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).attempt("set the group id")?;
    let uid = Uid::from_raw(plan.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).attempt("set the user id")?;
    let kept = if plan.uid == 0 {
        CAPABILITIES.iter().fold(0, |set, bit| set | 1_u64 << bit)
    } else {
        0
    };
    set_capabilities(kept).attempt("set capabilities")
}

fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..CAPABILITY_LIMIT {
        // SAFETY: reads a bit of this thread's bounding set.
        let known = unsafe {
            libc::prctl(
                libc::PR_CAPBSET_READ,
                libc::c_ulong::from(capability),
                0,
                0,
                0,
            )
        };
        if known == 1 && !CAPABILITIES.contains(&capability) {
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
            if answer != 0 {
                return Err(io::Error::last_os_error());
            }
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

fn set_capabilities(set: u64) -> io::Result<()> {
    let header = Header {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let half = |bits: u64| {
        let bits = u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
        Data {
            effective: bits,
            permitted: bits,
            inheritable: 0,
        }
    };
    let data = [half(set), half(set >> 32)];
    // SAFETY: header and data have the layout of version 3 and outlive the call.
    let answer = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
