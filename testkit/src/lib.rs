//! The harness that tests are written with: real peers on loopback ports chosen by the system, and everything put away.
//!
//! | module | what it gives |
//! |---|---|
//! | [`scratch`] | a directory that vanishes, and says so when something is still mounted in it |
//! | [`process`] | tools by Debian package, and child processes that end with their owner |
//! | [`background`] | an http server on a thread of its own, so that a test may block |
//! | [`faults`] | a process that is killed, or whose calls fail, at each point in turn |
//! | [`power`] | the states that a process can have left on the disk when the power goes |
//! | [`git_server`] | `git http-backend` behind a CGI server, and repositories with fixed dates |
//! | [`docker_registry`] | Debian's `docker-registry`, plain or with basic authentication |
//! | [`proxy`] | a front for any registry that misbehaves by rule, or that asks for bearer tokens |
//! | [`bases`] | base images made on this machine: busybox, Debian with a C compiler |
//! | [`s3`] | `SeaweedFS`, a store with the protocol of S3 |
//! | [`kiln`] | the built `kiln serve`, with gRPC clients |
//! | [`requests`] | requests of the published API |
//!
//! Nothing here mocks anything. A tool that is missing is a panic that names the Debian package, never a skipped test.
//! All functions panic when they fail: a test cannot go on.

#![forbid(unsafe_code)]
#![expect(
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on panics"
)]

pub mod background;
pub mod bases;
pub mod docker_registry;
pub mod faults;
pub mod figures;
pub mod git_server;
pub mod kiln;
pub mod power;
pub mod process;
pub mod proxy;
pub mod requests;
pub mod s3;
pub mod scratch;
