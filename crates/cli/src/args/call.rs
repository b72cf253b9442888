//! `--call METHOD[,format=json]`: to look at a Dockerfile instead of building it.

use std::str::FromStr;

use clap::Args;

/// To look at a Dockerfile instead of building it.
#[derive(Debug, Args)]
pub(crate) struct CallArgs {
    /// Look at the Dockerfile instead of building it: `check`, `outline` or `targets`, with `,format=json` for programs
    #[arg(long, value_name = "METHOD", conflicts_with = "check")]
    call: Option<Call>,
    /// Check the Dockerfile and build nothing: short for `--call=check`
    #[arg(long)]
    check: bool,
}

impl CallArgs {
    /// Returns what is asked, unless that is to build.
    pub(crate) fn asked(&self) -> Option<Call> {
        let check = self.check.then_some(Call {
            method: CallMethod::Check,
            format: CallFormat::Text,
        });
        let call = self.call.or(check);
        call.filter(|call| call.method != CallMethod::Build)
    }
}

/// What is asked of a Dockerfile, and how it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) method: CallMethod,
    pub(crate) format: CallFormat,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallMethod {
    /// To be built.
    Build,
    /// Whether it breaks rules.
    Check,
    /// What a target takes.
    Outline,
    /// Which targets there are.
    Targets,
}

/// How it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Tells why a `--call` is not one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("{0:?} is not one of build, check, outline, targets")]
    Method(String),
    #[error("{0:?} is not one of text, json")]
    Format(String),
    #[error("{0:?} is not supported: only format=text or format=json is")]
    Option(String),
}

impl FromStr for Call {
    type Err = CallError;

    fn from_str(text: &str) -> Result<Self, CallError> {
        let mut parts = text.split(',');
        let method = match parts.next().unwrap_or_default() {
            "build" => CallMethod::Build,
            "check" | "lint" => CallMethod::Check,
            "outline" => CallMethod::Outline,
            "targets" => CallMethod::Targets,
            other => return Err(CallError::Method(other.to_owned())),
        };
        let mut format = CallFormat::Text;
        for part in parts {
            format = match part.split_once('=') {
                Some(("format", "text")) => CallFormat::Text,
                Some(("format", "json")) => CallFormat::Json,
                Some(("format", other)) => return Err(CallError::Format(other.to_owned())),
                _ => return Err(CallError::Option(part.to_owned())),
            };
        }
        Ok(Self { method, format })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_and_a_format_are_understood() {
        let call = |text: &str| {
            text.parse::<Call>()
                .ok()
                .map(|call| (call.method, call.format))
        };
        assert_eq!(call("check"), Some((CallMethod::Check, CallFormat::Text)));
        assert_eq!(
            call("outline,format=json"),
            Some((CallMethod::Outline, CallFormat::Json))
        );
        for wrong in [
            "",
            "Check",
            "check,format=yaml",
            "targets,json",
            "check,ignorestatus=1",
        ] {
            assert_eq!(call(wrong), None, "{wrong}");
        }
    }
}
