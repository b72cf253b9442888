//! The worker's own user namespace: uid 0 inside, nobody in particular outside.
//!
//! [`enter`] is the first thing `kiln worker` does, before any thread exists. Afterwards the process is root over its own
//! mounts and over 65 536 ids that belong to no other user of the host, and has no privilege outside.
//!
//! | started by | container id 0 is | ids from 1 are | who writes the map |
//! |---|---|---|---|
//! | root | the first id of a range | the rest of the range | a helper that stays root, directly |
//! | anybody else | that user | the user's subordinate ids | `newuidmap` and `newgidmap` |
//!
//! The range of root is, in this order: the configured one, the subordinate ids of a user called `kiln`, those of root,
//! [`DEFAULT_BASE`].
//!
//! Invariants: no thread exists before or during [`enter`]; descriptors do not leak into what the worker starts; nothing
//! of the host's mounts changes. `PR_SET_PDEATHSIG` is not used: a worker outlives the server that started it.

mod ids;
mod lend;
mod map;
mod tun;

use std::io;
use std::path::PathBuf;

use engine::sandbox::{ImageError, LauncherImage};
use rustix::mount::MountPropagationFlags;
use rustix::process::{DumpableBehavior, Gid, Resource, Rlimit, Uid};
use rustix::thread::UnshareFlags;

pub use ids::{IdError, Owner, data_plane_owner};
pub use lend::lend;

/// How many ids a container has.
pub const CONTAINER_IDS: u32 = 65_536;

/// The first host id used when root has no subordinate ids: just above the range systemd reserves for containers.
pub const DEFAULT_BASE: u32 = 0x7000_0000;

/// What [`enter`] needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNsOptions {
    /// The first of [`CONTAINER_IDS`] host ids for containers; only root may choose them freely.
    pub base: Option<u32>,
    /// The table of subordinate user ids.
    pub subuid_file: PathBuf,
    /// The table of subordinate group ids.
    pub subgid_file: PathBuf,
    /// The program that writes an ordinary user's uid map.
    pub newuidmap: PathBuf,
    /// The program that writes an ordinary user's gid map.
    pub newgidmap: PathBuf,
}

impl Default for UserNsOptions {
    fn default() -> Self {
        Self {
            base: None,
            subuid_file: PathBuf::from("/etc/subuid"),
            subgid_file: PathBuf::from("/etc/subgid"),
            newuidmap: PathBuf::from("/usr/bin/newuidmap"),
            newgidmap: PathBuf::from("/usr/bin/newgidmap"),
        }
    }
}

/// What [`enter`] leaves behind for the rest of the worker.
#[derive(Debug)]
pub struct Entered {
    /// The program to start step containers from.
    pub image: LauncherImage,
    /// The host's ids of what is now root.
    pub owner: Owner,
}

/// Why a process could not enter its user namespace.
#[derive(Debug, thiserror::Error)]
pub enum UserNsError {
    /// A thread exists already; a user namespace is entered by single-threaded processes only.
    #[error("enter a user namespace: the process has {count} threads")]
    Threads {
        /// How many there are.
        count: usize,
    },
    /// No ids for containers were found.
    #[error("find ids for containers")]
    Ids {
        /// What is missing.
        #[source]
        source: IdError,
    },
    /// The kernel refused a user namespace.
    #[error(
        "create a user namespace; the kernel may forbid them to ordinary users (see `kiln doctor`)"
    )]
    Create {
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The ids could not be mapped.
    #[error("map the ids of the user namespace: {reason}")]
    Map {
        /// What the helper said.
        reason: String,
    },
    /// The program's own binary could not be prepared for step containers.
    #[error("prepare the step launcher")]
    Image {
        /// What went wrong.
        #[source]
        source: ImageError,
    },
    /// A setting of the process could not be changed.
    #[error("{attempt}")]
    Settle {
        /// What was attempted.
        attempt: &'static str,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
}

/// Moves this process into a user namespace and a mount namespace of its own, as root there.
///
/// Must be called before any thread exists.
pub fn enter(options: &UserNsOptions) -> Result<Entered, UserNsError> {
    let count = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if count != 1 {
        return Err(UserNsError::Threads { count });
    }
    let ids = ids::find(options).map_err(|source| UserNsError::Ids { source })?;
    if ids.writer == ids::Writer::Ourselves {
        // Without it steps have no network, which the one that needs it will say.
        let _ = tun::lend();
    }
    let helper =
        map::Helper::start(&ids, options).map_err(settle("start the helper that maps ids"))?;
    // SAFETY: the process has a single thread, counted above, and shares no descriptor table.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }
        .map_err(|errno| UserNsError::Create {
            source: errno.into(),
        })?;
    helper.map().map_err(|reason| UserNsError::Map { reason })?;
    // Before the ids change: only the user who started us is sure to reach the binary by its path.
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(settle("make mounts private"))?;
    let image = LauncherImage::prepare().map_err(|source| UserNsError::Image { source })?;
    become_root()?;
    settle_down()?;
    Ok(Entered {
        image,
        owner: ids.owner(),
    })
}

fn settle<E: Into<io::Error>>(attempt: &'static str) -> impl Fn(E) -> UserNsError {
    move |source| UserNsError::Settle {
        attempt,
        source: source.into(),
    }
}

fn become_root() -> Result<(), UserNsError> {
    rustix::thread::set_thread_groups(&[]).map_err(settle("drop supplementary groups"))?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .map_err(settle("become group 0"))?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
        .map_err(settle("become user 0"))
}

fn settle_down() -> Result<(), UserNsError> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none).map_err(settle("forbid core files"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(settle("refuse to be traced"))?;
    // SAFETY: changes flags of descriptors only.
    let answer = unsafe {
        libc::close_range(
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC.cast_signed(),
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(settle("keep descriptors to ourselves")(
            io::Error::last_os_error(),
        ))
    }
}
