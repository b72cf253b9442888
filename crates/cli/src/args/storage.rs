//! Options of `kiln du`, `kiln prune` and `kiln fsck`; the first two named as those of docker.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use store::collect::Kind;

use super::Place;
use super::steps::SizeArg;

/// Arguments of `kiln du`.
#[derive(Debug, Args)]
pub(crate) struct DuArgs {
    /// Show everything there is, what was used last at the end
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// One JSON document per thing
    #[arg(long, conflicts_with = "verbose")]
    pub(crate) json: bool,
    /// Show only these: `type=layer|snapshot|cache-mount|record|image|quarantine` (several are all shown), `until=24h` (not used since)
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    pub(crate) filters: Vec<Filter>,
    /// State and configuration.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// Arguments of `kiln prune`.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Remove only these: `type=layer|snapshot|cache-mount|record|context|quarantine` (several are all removed), `until=24h` (not used since)
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    pub(crate) filters: Vec<Filter>,
    /// Remove, longest unused first, until no more than so much is left
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_used_space: Option<SizeArg>,
    /// Remove, longest unused first and nothing used within the last hour, until so much of the disk is free
    #[arg(long, value_name = "SIZE")]
    pub(crate) min_free_space: Option<SizeArg>,
    /// Show everything that was removed
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// State and configuration.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// Arguments of `kiln fsck`.
#[derive(Debug, Args)]
#[command(after_help = FSCK_EXIT_CODES)]
#[expect(clippy::struct_excessive_bools, reason = "flags, each by itself")]
pub(crate) struct FsckArgs {
    /// Move what is damaged to quarantine, and remove it where it can be made again; tidy up after processes that are dead
    #[arg(long)]
    pub(crate) repair: bool,
    /// Forget names too, of images of which something is gone, and builds that no command can read
    #[arg(long, requires = "repair")]
    pub(crate) forget: bool,
    /// Look at names, sizes and small documents only, and do not read every byte
    #[arg(long)]
    pub(crate) quick: bool,
    /// One JSON document per finding, and one with what was looked at
    #[arg(long)]
    pub(crate) json: bool,
    /// State and configuration.
    #[command(flatten)]
    pub(crate) place: Place,
}

const FSCK_EXIT_CODES: &str = "\
Exit codes:
  0    everything is as it has to be, or was put right; leftovers of dead processes may have been told
  1    something is damaged or lost that was not put right, or was forgotten
  2    the command line or the configuration is wrong
  4    it could not be checked";

/// A `--filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    /// What it is.
    Kind(Kind),
    /// For how long it was not used.
    Until(Duration),
}

/// Tells why a filter is not one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilterError {
    #[error("{0:?} is neither type=WHAT nor until=DURATION")]
    Key(String),
    #[error(
        "there is no type {0:?}; there are layer, snapshot, cache-mount, record, image, quarantine and context"
    )]
    Kind(String),
    #[error("{0:?} is not a duration such as 24h or 1h30m")]
    Duration(String),
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        match text.split_once('=') {
            Some(("type", name)) => {
                let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == name);
                kind.map(Self::Kind)
                    .ok_or_else(|| FilterError::Kind(name.to_owned()))
            }
            Some(("until", duration)) => service::config::parse_duration(duration)
                .map(Self::Until)
                .ok_or_else(|| FilterError::Duration(duration.to_owned())),
            _ => Err(FilterError::Key(text.to_owned())),
        }
    }
}

/// What all filters say together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filters {
    pub(crate) kinds: Vec<Kind>,
    pub(crate) unused_for: Option<Duration>,
}

impl Filters {
    /// Returns what `filters` say: of several types each is meant, of several durations the longest.
    pub(crate) fn of(filters: &[Filter]) -> Self {
        let kinds: Vec<Kind> = filters
            .iter()
            .filter_map(|filter| match filter {
                Filter::Kind(kind) => Some(*kind),
                Filter::Until(_) => None,
            })
            .collect();
        let durations = filters.iter().filter_map(|filter| match filter {
            Filter::Until(duration) => Some(*duration),
            Filter::Kind(_) => None,
        });
        Self {
            kinds: if kinds.is_empty() {
                Kind::ALL.to_vec()
            } else {
                kinds
            },
            unused_for: durations.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_and_taken_together() {
        let read = |texts: &[&str]| -> Vec<Filter> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let filters = read(&["type=layer", "until=1h", "type=record", "until=24h"]);
        let together = Filters::of(&filters);
        assert_eq!(together.kinds, [Kind::Layer, Kind::Record]);
        assert_eq!(together.unused_for, Some(Duration::from_secs(86_400)));
        let none = Filters::of(&[]);
        assert_eq!(
            (none.kinds.as_slice(), none.unused_for),
            (Kind::ALL.as_slice(), None)
        );
        for wrong in [
            "", "layer", "type=", "type=x", "until=", "until=1", "since=1h",
        ] {
            assert!(wrong.parse::<Filter>().is_err(), "{wrong:?}");
        }
    }
}
