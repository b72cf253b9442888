//! Builds an image: resolve → plan → execute → assemble → publish. [`build`] tells the story.
//!
//! | module | what it holds |
//! |---|---|
//! | [`spec`] | what is asked: [`spec::BuildSpec`], secrets included, handed to a worker once over its standard input |
//! | [`event`], [`journal`], [`state`] | what is told: events, the file they are kept in, and the state that is their fold |
//! | [`recorder`], [`redact`] | the writing end of the journal; secrets are removed before anything is stored |
//! | [`follow`], [`render`] | the reading end, waiting for more; events and output as text |
//! | `resolve` | sources, Dockerfile, pinned base images |
//! | `execute` | stages, steps and the cache |
//! | `assemble`, `publish` | configuration and manifest; names and files |
//! | [`rootfs`] | layers to directories and back, access to files that somebody else named |
//! | `share` | results of steps that travel: caches in registries, folders and images |
//! | [`sandbox`] | how a RUN runs |
//! | [`agent`] | what steps may ask of an SSH agent |
//! | [`subassembly`] | an image's root filesystem as one file |
//! | [`turn`] | what a build that has to wait is told |
//!
//! Does not know of gRPC, of the table of builds, or of who may do what: that is the service's.

pub mod agent;
mod assemble;
mod build;
pub mod event;
pub mod excerpt;
mod execute;
mod failure;
pub mod follow;
pub mod id;
pub mod journal;
mod publish;
mod readable;
pub mod recorder;
pub mod redact;
pub mod render;
mod resolve;
pub mod rootfs;
pub mod sandbox;
mod share;
pub mod spec;
pub mod state;
pub mod subassembly;
pub mod summary;
pub mod turn;

pub use build::{Rig, build};
pub use failure::{blame, chain};
pub use publish::{NAMED_RECORDS, kept_image};
pub use resolve::{kept_config, layout_config};
