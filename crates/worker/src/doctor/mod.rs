//! What a machine needs for builds, checked one by one, with the remedy for what is missing.
//!
//! What can be tried is tried: a child enters a user namespace as a worker does and mounts what a step needs.
//! Nothing is changed on the machine. `kiln doctor` prints the answer; nothing else depends on it.

mod machine;
mod trial;

use std::path::PathBuf;

use crate::userns::UserNsOptions;

/// What is checked against.
#[derive(Debug, Clone)]
pub struct DoctorOptions {
    /// The user namespace that workers would enter.
    pub user_namespace: UserNsOptions,
    /// The state directory; it need not exist yet.
    pub state: PathBuf,
    /// The git program.
    pub git_program: PathBuf,
}

/// How one thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Builds work, but something is weaker or missing.
    Warn,
    /// Builds do not work.
    Fail,
}

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Check {
    /// What it is, in one or two words.
    pub name: &'static str,
    /// How it stands.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do about it, unless all is well.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            detail: detail.into(),
            remedy: None,
        }
    }

    fn warn(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Warn,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }

    fn fail(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Fail,
            detail: detail.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// Checks the machine. Must be called before the process has a second thread, as a worker would be started.
pub fn checks(options: &DoctorOptions) -> Vec<Check> {
    let mut found = vec![machine::kernel(), machine::ids(&options.user_namespace)];
    found.extend(trial::checks(options));
    found.push(machine::seccomp());
    found.push(machine::network());
    found.push(machine::cgroups());
    found.push(machine::disk(&options.state));
    found.push(machine::git(&options.git_program));
    found
}
