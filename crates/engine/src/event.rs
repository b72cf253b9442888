//! What a build tells: the events of its journal.
//!
//! Everything anybody shows of a build (status, logs, lists, terminal) is made of these and of nothing else. They are stored
//! as JSON; a field may be added, never renamed ([`crate::journal::FORMAT_VERSION`]).

use oci::{Digest, Reference};
use serde::{Deserialize, Serialize};

/// Number of a vertex of the build, unique within it; what the log calls `#7`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepId(pub u32);

/// Where a build is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Fetching the context, reading the Dockerfile, pinning bases.
    Resolving,
    /// Making the plan.
    Planning,
    /// Carrying out steps.
    Running,
    /// Publishing the image.
    Pushing,
}

/// Which of a step's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The build waits for its turn.
    Queued {
        /// How many come before it.
        ahead: u32,
    },
    /// The build entered a phase.
    Phase {
        /// Which one.
        phase: Phase,
    },
    /// A vertex began: a step of the Dockerfile, or work of our own such as fetching the context.
    StepStarted {
        /// Its number.
        step: StepId,
        /// What people see: `[build 2/4] RUN make`.
        name: String,
        /// Why a step of the Dockerfile is run at all: the reason of its cache miss.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A vertex was not needed: its result was in the cache.
    StepCached {
        /// Its number.
        step: StepId,
        /// What people see.
        name: String,
    },
    /// A vertex ended well.
    StepFinished {
        /// Its number.
        step: StepId,
        /// How long it took.
        duration_ms: u64,
    },
    /// A vertex failed.
    StepFailed {
        /// Its number.
        step: StepId,
        /// In one line.
        error: String,
    },
    /// A vertex wrote more than is kept: what it writes from here on is left out, but for its end.
    OutputCut {
        /// Its number.
        step: StepId,
        /// How much of the beginning is kept.
        kept_bytes: u64,
    },
    /// The end of what a vertex wrote follows.
    OutputResumed {
        /// Its number.
        step: StepId,
        /// How much was left out before it.
        dropped_bytes: u64,
    },
    /// The worker was lost, and another one carries the build out from its beginning.
    BegunAgain {
        /// Which try follows: the second one is 2.
        attempt: u32,
        /// What became of the worker.
        reason: String,
    },
    /// The context is there.
    ContextReady {
        /// The commit that was checked out, for git.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        commit: Option<String>,
    },
    /// A base image was pinned.
    BaseResolved {
        /// As the Dockerfile names it.
        reference: String,
        /// What it is.
        digest: Digest,
    },
    /// A layer was written in the background.
    LayerWritten {
        /// The step it belongs to.
        step: StepId,
        /// Digest of the compressed layer.
        digest: Digest,
        /// Compressed size.
        size_bytes: u64,
        /// Uncompressed size.
        uncompressed_bytes: u64,
    },
    /// Something to know that stops nothing.
    Warning {
        /// In one or several lines.
        text: String,
    },
    /// The image stands under a name.
    Published {
        /// Which name.
        reference: Reference,
        /// Manifest digest.
        digest: Digest,
    },
    /// The end, well.
    Succeeded {
        /// What was built.
        image: BuiltImage,
    },
    /// The end, not well.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// The end, by request.
    Cancelled,
}

impl Event {
    /// Tells whether nothing can follow this event.
    pub fn is_terminal(&self) -> bool {
        matches!(
            self,
            Self::Succeeded { .. } | Self::Failed { .. } | Self::Cancelled
        )
    }
}

/// What a build made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltImage {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Digest of the configuration (docker's "image id").
    pub config_digest: Digest,
    /// Every name under which it was published.
    #[serde(default)]
    pub references: Vec<Reference>,
    /// Files written below the build's output folder.
    #[serde(default)]
    pub outputs: Vec<String>,
    /// Steps that were run.
    pub n_run: u32,
    /// Steps that came from the cache.
    pub n_cached: u32,
}

/// Whose fault a failure is, and of what kind. Decided once, where the failure happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The Dockerfile, its context, or a command in it.
    Dockerfile,
    /// The sources could not be fetched.
    Source,
    /// A base image is not there.
    BaseImageMissing,
    /// A base image could not be resolved for another reason.
    BaseImage,
    /// A registry refused the credentials, or there were none.
    Credentials,
    /// A registry failed.
    Registry,
    /// A step used more memory than it may.
    OutOfMemory,
    /// The disk is full.
    OutOfDisk,
    /// Longer than allowed.
    Timeout,
    /// The worker died.
    WorkerLost,
    /// Kiln or the machine it runs on.
    Platform,
}

impl FailureKind {
    /// Every kind.
    pub const ALL: [Self; 11] = [
        Self::Dockerfile,
        Self::Source,
        Self::BaseImageMissing,
        Self::BaseImage,
        Self::Credentials,
        Self::Registry,
        Self::OutOfMemory,
        Self::OutOfDisk,
        Self::Timeout,
        Self::WorkerLost,
        Self::Platform,
    ];

    /// Returns its name in journals, metrics and lists.
    pub fn word(self) -> &'static str {
        match self {
            Self::Dockerfile => "dockerfile",
            Self::Source => "source",
            Self::BaseImageMissing => "base_image_missing",
            Self::BaseImage => "base_image",
            Self::Credentials => "credentials",
            Self::Registry => "registry",
            Self::OutOfMemory => "out_of_memory",
            Self::OutOfDisk => "out_of_disk",
            Self::Timeout => "timeout",
            Self::WorkerLost => "worker_lost",
            Self::Platform => "platform",
        }
    }

    /// Tells whether the author of the Dockerfile can do something about it.
    pub fn is_users(self) -> bool {
        matches!(
            self,
            Self::Dockerfile
                | Self::Source
                | Self::BaseImageMissing
                | Self::OutOfMemory
                | Self::Timeout
        )
    }
}

/// Why a build failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Of what kind.
    pub kind: FailureKind,
    /// For the caller, without the prefix `build failed: `. May have several lines (Dockerfile excerpt, last output).
    pub message: String,
    /// The step, if one failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepId>,
    /// The command's exit code, if one ended with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_of_a_failure_is_what_journals_say() {
        for kind in FailureKind::ALL {
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("\"{}\"", kind.word()));
        }
    }
}
