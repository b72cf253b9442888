//! `RUN --mount`: what a command sees besides the files of its stage.
//!
//! Plain data; [`parse`] makes it. Every path in it is clean and absolute (targets) or clean and relative (sources), and no target is
//! the root or lies in a filesystem of the kernel's.

mod parse;

use super::types::CopyFrom;

pub use parse::size_in_bytes;
pub(super) use parse::{froms, parse};

/// Something mounted while a command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mount {
    /// Files from elsewhere.
    Bind(BindMount),
    /// A directory that stays from build to build.
    Cache(CacheMount),
    /// An empty directory in memory.
    Tmpfs(TmpfsMount),
    /// A secret, as a file or a variable or both.
    Secret(SecretMount),
    /// A socket of an SSH agent.
    Ssh(SshMount),
}

impl Mount {
    /// Returns where it takes files from.
    pub fn from(&self) -> Option<&CopyFrom> {
        match self {
            Self::Bind(bind) => bind.from.as_ref(),
            Self::Cache(cache) => cache.from.as_ref(),
            Self::Tmpfs(_) | Self::Secret(_) | Self::Ssh(_) => None,
        }
    }

    /// Returns where it is seen; `None` for what is a variable only, and for a socket that is put wherever there is room.
    pub fn target(&self) -> Option<&str> {
        match self {
            Self::Bind(bind) => Some(&bind.target),
            Self::Cache(cache) => Some(&cache.target),
            Self::Tmpfs(tmpfs) => Some(&tmpfs.target),
            Self::Secret(secret) => secret.target.as_deref(),
            Self::Ssh(ssh) => ssh.target.as_deref(),
        }
    }
}

/// Whether a command may change what is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountAccess {
    /// It may not.
    ReadOnly,
    /// It may. Of a bind mount, what it changes is gone with it.
    ReadWrite,
}

/// Whose a file or directory is that is made for a mount, and who may do what with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountOwner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permissions.
    pub mode: u32,
}

/// Files from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    /// Where from; nothing at all (an empty directory) for `from=scratch`.
    pub from: Option<CopyFrom>,
    /// File or directory in there, from its root; `.` for all of it.
    pub source: String,
    /// Where to.
    pub target: String,
    /// Whether it can be changed.
    pub access: MountAccess,
}

/// A directory that stays from build to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMount {
    /// What tells it from others of the same tenant; any text.
    pub id: String,
    /// Who else may use it at the same time.
    pub sharing: Sharing,
    /// What it begins with, when not empty.
    pub from: Option<CopyFrom>,
    /// Directory in it that is mounted; `.` for all of it.
    pub source: String,
    /// Where to.
    pub target: String,
    /// Whether it can be changed.
    pub access: MountAccess,
    /// Whose it is, when any of that is said and it begins empty.
    pub owner: Option<MountOwner>,
}

/// Who may use a cache mount at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Everybody.
    Shared,
    /// Nobody: others get one of their own meanwhile.
    Private,
    /// Nobody: others wait.
    Locked,
}

/// An empty directory in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TmpfsMount {
    /// Where.
    pub target: String,
    /// How much fits in, in bytes; half of the memory when not said.
    pub size_bytes: Option<u64>,
    /// Whether it can be changed.
    pub access: MountAccess,
}

/// A secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretMount {
    /// Which one.
    pub id: String,
    /// Whether the build fails without it.
    pub required: bool,
    /// The file that holds it.
    pub target: Option<String>,
    /// The variable that holds it.
    pub env: Option<String>,
    /// Whose the file is.
    pub owner: MountOwner,
}

/// A socket of an SSH agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshMount {
    /// Which one.
    pub id: String,
    /// Whether the build fails without it.
    pub required: bool,
    /// Where the socket is, when that is said.
    pub target: Option<String>,
    /// Whose the socket is.
    pub owner: MountOwner,
}
