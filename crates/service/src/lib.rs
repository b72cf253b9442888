//! A running service: gRPC and HTTP on one port, the table of builds, credentials, logs, the embedded registry.
//!
//! The control plane. It never runs git, never unpacks a layer and never runs a step: that is done by workers, behind
//! [`executor::Executor`]. It can be killed at any moment; builds go on, and a restarted service finds them again.
//!
//! | module | what it holds |
//! |---|---|
//! | [`app`] | the wiring, on one page; the port, TLS, the drain |
//! | [`grpc`] | one short function for each call; [`grpc`]`::convert` between the wire's words and ours |
//! | [`lifecycle`] | what the calls mean, in our words |
//! | [`builds`] | the table of builds, logs, what is known of names |
//! | [`check`] | whether what a server has written beside the builds is as it has to be |
//! | [`images`] | what registries are asked by the service itself |
//! | [`agents`] | SSH agents that callers lend to builds |
//! | [`identity`] | who calls: a certificate or a token becomes a caller |
//! | [`access`] | who may do what, whose a repository is, who may use which credential; pure |
//! | [`names`] | names of images, identities of requests; pure |
//! | [`failure`] | whose fault it is, and what the caller is told; the one place |
//! | `stale_names` | forgetting what is known of names under which nothing stands |
//! | `whole` | files that are there whole or not at all |
//! | [`web`] | log streams, metrics, liveness |
//! | [`config`] | the configuration |

#![forbid(unsafe_code)]

pub mod access;
pub mod agents;
pub mod app;
pub mod builds;
pub mod check;
pub mod config;
pub mod contexts;
pub mod environment;
pub mod executor;
pub mod failure;
pub mod grpc;
mod housekeeping;
pub mod identity;
pub mod images;
pub mod lifecycle;
pub mod names;
pub mod native;
pub mod outputs;
pub mod request;
mod stale_names;
pub mod subassembly;
pub mod telemetry;
pub mod web;
mod whole;
