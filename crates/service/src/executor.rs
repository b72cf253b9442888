//! The seam between the service and whatever carries out builds.
//!
//! The command line gives the real one, which starts worker processes on this machine. Whoever implements it promises: once a
//! build is [`Running`], its journal reaches a terminal event before [`Running::ended`] resolves, also when the worker dies.

use std::fmt;
use std::io;
use std::path::PathBuf;

use engine::id::BuildId;
use engine::spec::{BuildSpec, Record};
use engine::turn::Turn;
use futures_util::future::BoxFuture;
use store::collect::{Collected, Policy};
use tokio::net::UnixListener;

use crate::agents::AgentId;

/// A build that somebody carries out.
pub struct Running {
    /// The folder that its journal is in.
    pub folder: PathBuf,
    /// Where its steps ask for SSH agents, by id. None for a build that another process started: its sockets died with that one.
    pub agents: Vec<(AgentId, UnixListener)>,
    /// Whether it waits until it is told that it is its turn.
    pub waits: bool,
    /// Resolves once nobody works on it any more and its journal has a terminal event.
    pub ended: BoxFuture<'static, ()>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running")
            .field("folder", &self.folder)
            .field("agents", &self.agents)
            .field("waits", &self.waits)
            .finish_non_exhaustive()
    }
}

/// A disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// How large it is.
    pub bytes: u64,
    /// How much of that is free.
    pub free_bytes: u64,
}

/// Tells why an executor did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// The build was not started.
    #[error("start build {id}")]
    Start {
        /// Which one.
        id: BuildId,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It could not be found out who carries the build out.
    #[error("find the worker of build {id}")]
    Adopt {
        /// Which one.
        id: BuildId,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The worker could not be told whose turn it is.
    #[error("tell build {id} whose turn it is")]
    Turn {
        /// Which one.
        id: BuildId,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The worker could not be told to end the build.
    #[error("cancel build {id}")]
    Cancel {
        /// Which one.
        id: BuildId,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing, or not everything, was collected.
    #[error("collect what nobody uses")]
    Collect(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No build could be started now.
    #[error("{problem}")]
    NotReady {
        /// What is missing.
        problem: String,
    },
}

/// Runs builds somewhere.
pub trait Executor: Send + Sync + 'static {
    /// Creates `builds/<id>/` with the record and an empty journal, and starts the build. Dropping the future may leave it started.
    ///
    /// Puts up a socket in that folder for each of `agents` beforehand, which only the build's worker may connect to, and tells the
    /// worker where it is: [`BuildSpec::ssh`] is the executor's to fill.
    ///
    /// When it is not the build's turn, it does nothing but wait and record [`Event::Queued`](engine::event::Event::Queued), also when this
    /// process is gone, until [`Executor::turn`] says that it is.
    fn start(
        &self,
        record: Record,
        spec: BuildSpec,
        agents: Vec<AgentId>,
        turn: Turn,
    ) -> BoxFuture<'_, Result<Running, ExecutorError>>;

    /// Tells a build that waits whose turn it is. Nothing happens when it does not wait any more.
    fn turn(&self, id: BuildId, turn: Turn) -> BoxFuture<'_, Result<(), ExecutorError>>;

    /// Finds the build that another process started. `None` when nobody carries it out any more: its journal has its end then.
    fn adopt(&self, id: BuildId) -> BoxFuture<'_, Result<Option<Running>, ExecutorError>>;

    /// Asks for a build to be ended; its journal will say so. Nothing happens when it has ended.
    fn cancel(&self, id: BuildId) -> BoxFuture<'_, Result<(), ExecutorError>>;

    /// Removes what nobody uses from the store that builds share.
    fn collect(&self, policy: Policy) -> BoxFuture<'_, Result<Collected, ExecutorError>>;

    /// Returns how much room there is where builds are carried out.
    fn disk(&self) -> io::Result<Disk>;

    /// Tells whether a build could be started now.
    fn ready(&self) -> BoxFuture<'_, Result<(), ExecutorError>>;
}
