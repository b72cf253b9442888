//! How the program ends: an exit code, a chain of causes, and a hint where we know one.
//!
//! The codes are part of the interface (`kiln help`, docs/operations.md): scripts tell "the Dockerfile is wrong" from "the
//! registry did not answer" by them.

use std::fmt;
use std::process::ExitCode;

use engine::event::FailureKind;

/// Why the program ends the way it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The build failed, and its author can do something about it.
    BuildFailed,
    /// What was checked is not as it has to be.
    Damaged,
    /// The command line or the configuration is wrong, or asks for what is not supported.
    Usage,
    /// A registry, a git server or a kiln server did not answer, or refused.
    Unreachable,
    /// This machine lacks something.
    Machine,
    /// Kiln itself failed.
    Internal,
    /// Interrupted by the user.
    Interrupted,
}

impl Exit {
    /// Returns the number that the shell sees.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::BuildFailed | Self::Damaged => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::Machine => 4,
            Self::Internal => 5,
            Self::Interrupted => 130,
        }
    }

    /// Returns how a build that failed this way ends the program.
    pub(crate) fn of_build(kind: FailureKind) -> Self {
        match kind {
            FailureKind::Dockerfile
            | FailureKind::Source
            | FailureKind::BaseImageMissing
            | FailureKind::OutOfMemory
            | FailureKind::Timeout => Self::BuildFailed,
            FailureKind::BaseImage | FailureKind::Credentials | FailureKind::Registry => {
                Self::Unreachable
            }
            FailureKind::OutOfDisk => Self::Machine,
            FailureKind::WorkerLost | FailureKind::Platform => Self::Internal,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// What a command ends with when it does not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    source: anyhow::Error,
    hint: Option<String>,
    said: bool,
}

/// What every command returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// Makes a failure of the given kind.
    pub(crate) fn new(exit: Exit, source: impl Into<anyhow::Error>) -> Self {
        Self {
            exit,
            source: source.into(),
            hint: None,
            said: false,
        }
    }

    /// Makes a failure out of a sentence.
    pub(crate) fn text(exit: Exit, text: impl fmt::Display) -> Self {
        Self::new(exit, anyhow::anyhow!("{text}"))
    }

    /// Makes a failure that the user has already been told of: only the exit code is left to say.
    pub(crate) fn silent(exit: Exit) -> Self {
        Self {
            said: true,
            ..Self::text(exit, "already told")
        }
    }

    /// Adds what the user may try.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Returns the code to end with.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// Returns what is shown: the chain of causes, then the hint. Nothing when it has been shown before.
    pub(crate) fn report(&self) -> Option<String> {
        if self.said {
            return None;
        }
        let mut text = "error: ".to_owned();
        for (n, cause) in self.source.chain().enumerate() {
            if n > 0 {
                text.push_str(": ");
            }
            text.push_str(&cause.to_string());
        }
        if let Some(hint) = &self.hint {
            text.push_str("\nhint: ");
            text.push_str(hint);
        }
        Some(text)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(source: anyhow::Error) -> Self {
        Self::new(Exit::Internal, source)
    }
}

/// Says how the program ends if this is an error.
pub(crate) trait OrExit<T> {
    /// Turns the error into a [`Failure`] of this kind.
    fn or_exit(self, exit: Exit) -> Outcome<T>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Outcome<T> {
        self.map_err(|error| Failure::new(exit, error))
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_report_is_one_chain_and_a_hint() {
        let error = Err::<(), _>(std::io::Error::other("disk on fire"))
            .context("read the Dockerfile")
            .unwrap_err();
        let failure = Failure::new(Exit::Usage, error).hint("try another disk");
        assert_eq!(
            failure.report().unwrap(),
            "error: read the Dockerfile: disk on fire\nhint: try another disk"
        );
        assert_eq!(Failure::silent(Exit::BuildFailed).report(), None);
    }

    #[test]
    fn every_kind_of_build_failure_has_its_code() {
        assert_eq!(Exit::of_build(FailureKind::Dockerfile).code(), 1);
        assert_eq!(Exit::of_build(FailureKind::Registry).code(), 3);
        assert_eq!(Exit::of_build(FailureKind::OutOfDisk).code(), 4);
        assert_eq!(Exit::of_build(FailureKind::WorkerLost).code(), 5);
    }
}
