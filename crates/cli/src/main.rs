//! The binary `kiln`: arguments → meaning → one call into a crate below.
//!
//! Two of its roles are started by itself and take over before anything else happens, because they must be alone in their process.

#![forbid(unsafe_code)]

mod args;
mod build;
mod builds;
mod cancel;
mod client;
mod doctor;
mod environment;
mod failure;
mod fsck;
mod git;
mod history;
mod inspect;
mod place;
mod progress;
mod run;
mod serve;
mod storage;
mod subassembly;
mod terminal;
mod tree;
mod worker_args;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments
        .next()
        .as_deref()
        .and_then(std::ffi::OsStr::to_str)
    {
        Some("step-init") => engine::sandbox::step_init_main(),
        Some("worker") => worker_args::main(arguments),
        _ => run::main(),
    }
}
