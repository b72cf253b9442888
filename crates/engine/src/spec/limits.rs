//! What a build may use.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a build may use up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The whole build.
    pub wall_time_s: u64,
    /// One step.
    pub step_time_s: u64,
    /// How long one step may write nothing.
    pub step_idle_s: Option<u64>,
    /// Memory of one step.
    pub step_memory_bytes: Option<u64>,
    /// Most that a request may want for the `/dev/shm` of its steps.
    pub step_shm_bytes: u64,
    /// Processes and threads of one step.
    pub step_pids: u32,
    /// Steps that run at the same time.
    pub parallel_steps: u32,
    /// Steps of all builds that run at the same time; not limited when not given.
    pub parallel_steps_in_all: Option<NonZeroU32>,
    /// Output of one step that is kept: more is dropped, with a mark.
    pub step_log_bytes: u64,
    /// Output of all steps together that is kept: of more, the beginning and the ends of steps.
    pub log_bytes: u64,
    /// Files of the context, in bytes.
    pub context_bytes: u64,
    /// Files of the context, in number.
    pub context_files: u64,
    /// One layer, uncompressed.
    pub layer_bytes: u64,
    /// One exported file, in bytes.
    pub export_bytes: u64,
    /// Whether steps may use this machine's network.
    pub allow_host_network: bool,
    /// Whether steps may ask to be kept from less (`RUN --security=insecure`).
    pub allow_insecure: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wall_time_s: 3600,
            step_time_s: 3600,
            step_idle_s: None,
            step_memory_bytes: None,
            step_shm_bytes: 1 << 30,
            step_pids: 4096,
            parallel_steps: 8,
            parallel_steps_in_all: None,
            step_log_bytes: 256 << 20,
            log_bytes: 1 << 30,
            context_bytes: 16 << 30,
            context_files: 2_000_000,
            layer_bytes: 64 << 30,
            export_bytes: 64 << 30,
            allow_host_network: false,
            allow_insecure: false,
        }
    }
}

impl Limits {
    /// Returns the limit of the whole build.
    pub fn wall_time(&self) -> Duration {
        Duration::from_secs(self.wall_time_s)
    }
}
