//! A sandbox that runs nothing: it answers from a function, for tests of what is above it.

use std::os::fd::OwnedFd;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::{Network, OutputSink, Sandbox, SandboxError, StepCommand, StepExit, Stream};

/// What a scripted step does: its output, in order, and its end.
#[derive(Debug)]
pub struct Script {
    /// Chunks that the step writes.
    pub output: Vec<(Stream, Vec<u8>)>,
    /// How it ends.
    pub exit: StepExit,
}

/// A sandbox whose steps do what a function says.
///
/// The function sees the whole command, root filesystem included, and may change files under it.
pub struct Scripted {
    answer: Box<dyn Fn(&StepCommand) -> Script + Send + Sync>,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scripted").finish_non_exhaustive()
    }
}

impl Scripted {
    /// Makes a sandbox that asks `answer` what each step does.
    pub fn new(answer: impl Fn(&StepCommand) -> Script + Send + Sync + 'static) -> Self {
        Self {
            answer: Box::new(answer),
        }
    }
}

impl Sandbox for Scripted {
    fn expect(&self, _network: Network) {}

    fn rest(&self) {}

    fn run(
        &self,
        step: StepCommand,
        output: OutputSink,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Result<StepExit, SandboxError>> {
        Box::pin(async move {
            if cancel.is_cancelled() {
                return Err(SandboxError::Cancelled);
            }
            let script = (self.answer)(&step);
            for (stream, bytes) in script.output {
                for chunk in bytes.chunks(super::MAX_CHUNK_BYTES) {
                    output(stream, chunk);
                }
            }
            drop::<OwnedFd>(step.root);
            Ok(script.exit)
        })
    }
}
