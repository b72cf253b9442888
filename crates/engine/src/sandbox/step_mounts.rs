//! What a step sees besides its root filesystem, as the sandbox takes it.
//!
//! Files come as detached mounts, by descriptor; what lies in memory is made inside the container and is gone with it.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::launcher::mounts;

/// Something mounted over a step's root filesystem. Mounts are attached in their order.
#[derive(Debug)]
pub struct StepMount {
    /// Where: a path from the root, without links, `.`, `..` and a leading slash. It must be there (see `prepare_init_layer`), unless it is
    /// within a mount before it or `dev/shm`; there it is made.
    pub target: String,
    /// What.
    pub what: Mounted,
}

/// What is mounted.
#[derive(Debug)]
pub enum Mounted {
    /// A file or directory of a mount.
    Files {
        /// A detached mount, made in the worker's namespaces.
        mount: OwnedFd,
        /// Path in it; links are followed within.
        source: String,
        /// Whether the command may write there.
        access: Access,
    },
    /// An empty directory in memory.
    Memory {
        /// How much fits in.
        size_bytes: Option<u64>,
        /// Whether the command may write there.
        access: Access,
    },
    /// A file in memory that can only be read.
    Secret {
        /// What it says.
        content: SecretBytes,
        /// Whose it is.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Who may read it.
        mode: u32,
    },
}

/// Whether a command may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// It may only read.
    Read,
    /// It may write.
    Write,
}

/// Bytes that nobody sees by accident.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Takes the bytes of a secret.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Returns the secret.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.0.len())
    }
}

/// Makes a detached mount of a directory of this machine.
///
/// # Errors
/// Whatever the system says.
pub fn detached_copy(directory: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    let copy = mounts::copy_of(directory)?;
    mounts::set_attributes(copy.as_fd(), mounts::NODEV)?;
    Ok(copy)
}
