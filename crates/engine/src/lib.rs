//! Builds an image: resolve → plan → execute → assemble → publish.
//!
//! | module | what it holds |
//! |---|---|
//! | [`spec`] | what is asked: [`spec::BuildSpec`], secrets included, handed to a worker once over its standard input |
//! | [`event`], [`journal`], [`state`] | what is told: events, the file they are kept in, and the state that is their fold |
//! | [`render`], [`redact`] | events and output as text; secrets removed before anything is stored |
#![cfg_attr(doc, warn(missing_docs))]

pub mod event;
pub mod id;
pub mod journal;
pub mod redact;
pub mod render;
pub mod state;
