//! Limits on what a step uses together: memory, processes, processor time.

use std::path::PathBuf;

use super::StepLimits;

/// Why.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// x
    #[error("make")]
    Make {
        /// x
        #[source]
        source: std::io::Error,
    },
}

/// x
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct CgroupParent {}

/// x
#[derive(Debug)]
pub(crate) struct StepCgroup {}

impl CgroupParent {
    pub(crate) fn step(&self, _limits: &StepLimits) -> Result<StepCgroup, CgroupError> {
        Ok(StepCgroup {})
    }
}
impl StepCgroup {
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        false
    }
    pub(crate) fn procs_files(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}
