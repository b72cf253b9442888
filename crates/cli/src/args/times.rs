//! Options of `kiln build` about how long it may take, and about what is remembered of it.

use std::collections::BTreeMap;
use std::str::FromStr;

use clap::Args;

use super::pair::Label;

/// How long a build may take, and what is remembered of it.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TimeArgs {
    /// End the build after so long: `90s`, `1h30m` [default: the configuration's; a server's is never exceeded]
    #[arg(long, value_name = "DURATION")]
    pub(crate) timeout: Option<SecondsArg>,
    /// End a step after so long
    #[arg(long, value_name = "DURATION")]
    pub(crate) step_timeout: Option<SecondsArg>,
    /// End a step that has written nothing for so long
    #[arg(long, value_name = "DURATION")]
    pub(crate) step_idle_timeout: Option<SecondsArg>,
    /// Remember this about the build: `kiln ls --filter label=NAME=VALUE` finds it; the image has nothing of it
    #[arg(long = "request-label", value_name = "NAME=VALUE")]
    request_labels: Vec<Label>,
}

impl TimeArgs {
    /// Returns what is remembered.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        let labels = self.request_labels.iter();
        labels
            .map(|label| (label.name.clone(), label.value.clone()))
            .collect()
    }
}

/// A duration of whole seconds, one at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SecondsArg(pub(crate) u64);

/// Tells that a text is no such duration.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a duration of whole seconds such as 90s or 1h30m")]
pub(crate) struct SecondsArgError(String);

impl FromStr for SecondsArg {
    type Err = SecondsArgError;

    fn from_str(text: &str) -> Result<Self, SecondsArgError> {
        let duration = service::config::parse_duration(text);
        let seconds = duration.filter(|duration| duration.subsec_nanos() == 0);
        let seconds = seconds.map(|duration| duration.as_secs());
        seconds
            .filter(|seconds| *seconds > 0)
            .map(Self)
            .ok_or_else(|| SecondsArgError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_a_number_of_whole_seconds() {
        assert_eq!("1m30s".parse::<SecondsArg>().unwrap(), SecondsArg(90));
        for wrong in ["", "90", "0s", "500ms", "-1s"] {
            assert!(wrong.parse::<SecondsArg>().is_err(), "{wrong:?}");
        }
    }
}
