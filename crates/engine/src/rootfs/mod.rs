//! Root filesystems: layers to directories, directories to layers, and every access to files that somebody else named.
//!
//! | module | what it does |
//! |---|---|
//! | [`unpack`] | one layer's archive → its own directory, in overlayfs' own format |
//! | [`overlay`] | directories → a detached overlay mount, seen through a file descriptor only |
//! | [`diff`] | a step's upper directory → a canonical archive |
//! | [`root`] | reading, looking up and making files inside a root, never outside |
//! | [`user`] | `user[:group]` → numbers, by the image's own `/etc/passwd` and `/etc/group` |
//! | [`copy`] | COPY and ADD from one root to another |
//! | [`filter`] | what of a source `--parents` and `--exclude` leave |
//! | [`select`] | which files the sources of COPY and ADD mean |
//! | [`content`] | digests of what COPY and ADD would copy, for cache keys |
//! | `listed` | an uploaded folder's list → what of it decides what a COPY copies |
//! | `planted` | an uploaded folder: entries and contents → files |
//! | [`remove`] | deletes trees, however deep and whatever their modes |
//!
//! How a step goes: `unpack` each layer once into `store`'s snapshot draft → `overlay::Upper::create` →
//! `overlay::mount(lowers, Some(&upper))` → run, or `copy` through [`root::Root::from_fd`] → `diff` the upper directory into an
//! `oci::layer::LayerWriter` → `unpack` nothing: the upper directory itself may become the next snapshot.
//!
//! Invariants:
//! * Paths that an image, a context or an archive names are resolved by the kernel inside the root (`openat2`,
//!   `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`); there is no path string of theirs that the host's root could meet.
//! * Special files are never opened for their content.
//! * Extended attributes of `overlay` never come from an archive and never get into one.
//! * No process of a step is alive while its files are touched; the caller sees to that.
//!
//! Runs as uid 0 of a user namespace with its own mount namespace, or as the host's root in tests. All of it blocks: call it from
//! threads that may.

pub mod content;
pub mod copy;
pub mod diff;
pub mod filter;
pub(crate) mod listed;
pub mod memory;
pub mod overlay;
pub(crate) mod planted;
pub mod remove;
pub mod root;
pub mod select;
pub mod unpack;
pub mod user;

pub(crate) mod attributes;
mod tree;

#[cfg(test)]
mod testing;
