//! Sources: turns what a request names into files on disk, so that a build has a context.
//!
//! * [`path`]: the one type for paths that come from requests.
//! * [`git`]: a commit of a remote repository, checked out into a directory.
//! * [`http`]: one file over http or https.
//! * [`initializer`]: everything that a workspace can be filled with.
//!
//! This crate does not read the context, does not look for a Dockerfile and keeps nothing between calls. It runs in the
//! data plane only. Everything that arrives here is hostile until parsed: URLs, names, configuration, servers' answers.

#![forbid(unsafe_code)]

pub mod git;
pub mod http;
pub mod initializer;
pub mod path;
