//! Commands about builds that were: `ls`, `history`, `inspect` and `logs`, of this machine and of servers, and `retry`.
//!
//! Both tell a build in the words of `kiln.v1`, so that there is one way to show it. Names, errors and output come from whoever wrote the
//! Dockerfile: what a terminal would act upon is taken out of what is shown to people.
//!
//! | file | what it holds |
//! |---|---|
//! | `list` | `ls` and `history` |
//! | `logs` | `logs` |
//! | `one` | `inspect` |
//! | `retry` | `retry` |
//! | `find` | which builds are meant, here and on a server |

mod find;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod one;
pub(crate) mod retry;

use api::kiln::v1 as wire;
use service::builds::list::{Reason, Standing};
use service::grpc::told;

use crate::progress::clean::{Colours, clean};

/// Returns where a build stands, in one word.
fn state(build: &wire::Build) -> &'static str {
    match told::standing(build.phase()) {
        Some(Standing::Queued) => "queued",
        Some(Standing::Resolving | Standing::Planning | Standing::Running | Standing::Pushing) => {
            "running"
        }
        Some(Standing::Succeeded) => "succeeded",
        Some(Standing::Failed) => "failed",
        Some(Standing::Cancelled) => "cancelled",
        None => "unknown",
    }
}

/// Returns why a build has not ended well, in one word; empty when there is nothing to say.
fn reason(build: &wire::Build) -> &'static str {
    let reason = build.failure.as_ref().map(wire::BuildFailure::reason);
    reason.and_then(told::reason).map_or("", Reason::word)
}

/// Returns how long a build took, or takes up to now.
fn took_ms(build: &wire::Build, now_ms: u64) -> u64 {
    let end_ms = match build.ended_at_ms {
        0 => now_ms,
        ended => unsigned(ended),
    };
    end_ms.saturating_sub(unsigned(build.started_at_ms))
}

fn unsigned(ms: i64) -> u64 {
    u64::try_from(ms).unwrap_or_default()
}

/// Returns foreign text on one line, safe for a terminal.
fn safe(text: &str) -> String {
    clean(text.as_bytes(), Colours::Drop).replace(['\n', '\t'], " ")
}

/// Returns a duration to read.
fn humane_ms(ms: u64) -> String {
    match ms / 1000 {
        s @ 0..60 => format!("{s}.{}s", ms % 1000 / 100),
        s @ 60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        s => format!("{}h{:02}m", s / 3600, s / 60 % 60),
    }
}

/// Returns how long ago something was.
fn age(ms: u64) -> String {
    match ms / 1000 {
        s @ 0..60 => format!("{s}s ago"),
        s @ 60..3600 => format!("{}m ago", s / 60),
        s @ 3600..86_400 => format!("{}h ago", s / 3600),
        s => format!("{}d ago", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_wrote_moves_no_cursor() {
        assert_eq!(safe("a\u{1b}[2Jb\nc\u{202e}d"), "ab cd");
    }

    #[test]
    fn durations_are_told_as_long_as_they_are() {
        for (ms, text) in [
            (0, "0.0s"),
            (12_345, "12.3s"),
            (61_000, "1m01s"),
            (3_700_000, "1h01m"),
        ] {
            assert_eq!(humane_ms(ms), text);
        }
    }
}
