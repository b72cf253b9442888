//! What can go wrong with objects.

use std::io;

use crate::Name;

/// Tells what was attempted.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The folder or the settings of the bucket cannot be used.
    #[error("use {place}")]
    Open {
        /// Which folder or bucket.
        place: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file cannot be read.
    #[error("read the file for object {name}")]
    Read {
        /// What it is for.
        name: Name,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file has become shorter or longer since.
    #[error("put object {name}: the file has {actual} bytes now, and had {expected}")]
    Changed {
        /// What it is for.
        name: Name,
        /// Size of the file at first.
        expected: u64,
        /// What was read of it.
        actual: u64,
    },
    /// The object was not put, as nobody waits for it any more.
    #[error("put object {name}: cancelled")]
    Cancelled {
        /// Which one.
        name: Name,
    },
    /// The object was not put.
    #[error("put object {name}")]
    Put {
        /// Which one.
        name: Name,
        /// Why.
        #[source]
        source: Box<object_store::Error>,
    },
    /// Whether the object is there is not known.
    #[error("look for object {name}")]
    Head {
        /// Which one.
        name: Name,
        /// Why.
        #[source]
        source: Box<object_store::Error>,
    },
    /// The object cannot be read.
    #[error("get object {name}")]
    Get {
        /// Which one.
        name: Name,
        /// Why.
        #[source]
        source: Box<object_store::Error>,
    },
    /// The object may still be there.
    #[error("delete object {name}")]
    Delete {
        /// Which one.
        name: Name,
        /// Why.
        #[source]
        source: Box<object_store::Error>,
    },
    /// The list is not complete.
    #[error("list objects")]
    List(#[source] Box<object_store::Error>),
    /// No address can be made.
    #[error("sign an address of object {name}")]
    Presign {
        /// Of what.
        name: Name,
        /// Why.
        #[source]
        source: Box<object_store::Error>,
    },
}
