//! The embedded registry over real sockets: the flows of the specification, hostile requests, other people's clients.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what a test needs is there or the test fails"
)]

mod access;
mod clients;
mod flows;
mod harness;
mod hostile;
