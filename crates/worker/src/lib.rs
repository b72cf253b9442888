//! One build in one process: user namespace, spec in, engine, journal out.
//!
//! [`start`] is called by whoever wants a build (the service's executor, `kiln build`); [`main`] is the process that carries it out.
//! The worker is started in a session of its own and outlives its starter: all they share afterwards is the build's folder.
//!
//! | file in `builds/<id>/` | written by | what |
//! |---|---|---|
//! | `record.json` | starter | what was asked, without secrets |
//! | `journal` | worker | every event and log byte |
//! | `lock` | worker | locked as long as it lives |
//! | `turn` | starter | whose turn it is, if the build has to wait |
//! | `work/` | worker | scratch, gone at the end |
//! | `output/` | worker | exported files |
//! | `journal.damaged` | whoever finds it | a copy of a journal that a machine which went down has left with holes |
//! | `worker.log` | worker | its own complaints, when it cannot even write the journal |
//!
//! What a build has elsewhere is noted beside the builds ([`sweep`]).

pub mod check;
mod conclude;
pub mod doctor;
pub mod folder;
mod handle;
mod line;
mod outside;
mod run;
mod start;
pub mod storage;
pub mod userns;

pub use conclude::{Cause, conclude, conclude_as, tidy};
pub use handle::{Canceller, Gone, WorkerHandle, WorkerSignals, adopt};
pub use outside::sweep;
pub use run::{WorkerArgs, main};
pub use start::{
    StartError, WorkerCommand, begin_again, launch, launch_in_turn, make_durable, prepare, start,
};
