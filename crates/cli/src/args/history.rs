//! Options of the commands that look at builds: `ls`, `history`, `inspect`, `logs`.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use engine::event::FailureKind;
use oci::Reference;
use service::builds::list::{Filter, Reason, Standing};

use super::moment::Moment;
use super::steps::SecretArg;
use super::{Place, Server};

/// Arguments of `kiln ls`.
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Show builds that have ended, too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Which builds.
    #[command(flatten)]
    pub(crate) wanted: WantedArgs,
    /// Show so many at most, the newest
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// How it is written.
    #[command(flatten)]
    pub(crate) form: FormArgs,
    /// A server to ask.
    #[command(flatten)]
    pub(crate) server: Server,
    /// State and configuration.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// Arguments of `kiln history`.
#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Which builds.
    #[command(flatten)]
    pub(crate) wanted: WantedArgs,
    /// Show so many at most, the newest
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    pub(crate) limit: usize,
    /// How it is written.
    #[command(flatten)]
    pub(crate) form: FormArgs,
    /// A server to ask.
    #[command(flatten)]
    pub(crate) server: Server,
    /// State and configuration.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// Arguments of `kiln inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Id of a build, or name of an image (its newest build)
    #[arg(value_name = "ID|REF")]
    pub(crate) build: String,
    /// How it is written.
    #[command(flatten)]
    pub(crate) form: FormArgs,
    /// A server to ask.
    #[command(flatten)]
    pub(crate) server: Server,
    /// State and configuration.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// Arguments of `kiln logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Id of a build, or name of an image (its newest build)
    #[arg(value_name = "ID|REF")]
    pub(crate) build: String,
    /// Go on until the build ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Leave out what is older: `10m`, `2026-11-27T22:05:00Z`, or Unix seconds
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<Moment>,
    /// Show one step: the number that the log calls #N
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) step: Option<u32>,
    /// Show what steps wrote byte by byte, without numbers and times
    #[arg(long)]
    pub(crate) raw: bool,
    /// A server to ask.
    #[command(flatten)]
    pub(crate) server: Server,
    /// State and configuration.
    #[command(flatten)]
    pub(crate) place: Place,
}

/// Arguments of `kiln retry`.
#[derive(Debug, Args)]
pub(crate) struct RetryArgs {
    /// Id of a build, or name of an image (its newest build)
    #[arg(value_name = "ID|REF")]
    pub(crate) build: String,
    /// A secret that the request had: they are not kept
    #[arg(long = "secret", value_name = "id=ID[,src=FILE|,env=NAME]")]
    pub(crate) secrets: Vec<SecretArg>,
    /// Print the log of the new build until it ends, and end as it does
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// The server that it ran on.
    #[command(flatten)]
    pub(crate) server: Server,
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct FormArgs {
    /// How it is written
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    output: AnswerForm,
    /// Short for `-o json`
    #[arg(long, conflicts_with = "output")]
    json: bool,
}

impl FormArgs {
    /// Returns how the answer is to be written.
    pub(crate) fn form(self) -> AnswerForm {
        if self.json {
            AnswerForm::Json
        } else {
            self.output
        }
    }
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum AnswerForm {
    /// For people
    #[default]
    Text,
    /// For programs: one JSON document for each build
    Json,
}

/// Which builds.
#[derive(Debug, Clone, Args)]
pub(crate) struct WantedArgs {
    /// Show only these: `state=queued|running|succeeded|failed|cancelled`, `reason=WHY`, `ref=NAME`, `by=WHO`, `label=NAME=VALUE`
    /// (of several states or reasons each is shown; everything else has to be so)
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<BuildFilter>,
    /// Accepted then or later: `10m`, `2026-11-27T22:05:00Z`, or Unix seconds
    #[arg(long, value_name = "TIME")]
    since: Option<Moment>,
    /// Accepted before
    #[arg(long, value_name = "TIME")]
    until: Option<Moment>,
}

/// A `--filter`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BuildFilter {
    State(&'static [Standing]),
    Reason(Reason),
    Ref(String),
    By(String),
    Label(String, String),
}

/// Tells why a filter is not one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildFilterError {
    #[error("{0:?} is none of state=, reason=, ref=, by= and label=NAME=")]
    Key(String),
    #[error(
        "there is no state {0:?}; there are queued, running (or resolving, planning, pushing), succeeded, failed and cancelled"
    )]
    State(String),
    #[error("there is no reason {0:?}; there are {1}")]
    Reason(String, String),
}

/// States of builds that have not ended.
pub(crate) const NOT_ENDED: [Standing; 5] = [
    Standing::Queued,
    Standing::Resolving,
    Standing::Planning,
    Standing::Running,
    Standing::Pushing,
];
/// States of builds that have.
pub(crate) const ENDED: [Standing; 3] =
    [Standing::Succeeded, Standing::Failed, Standing::Cancelled];

impl FromStr for BuildFilter {
    type Err = BuildFilterError;

    fn from_str(text: &str) -> Result<Self, BuildFilterError> {
        let unknown = || BuildFilterError::Key(text.to_owned());
        let (key, value) = text.split_once('=').ok_or_else(unknown)?;
        match key {
            "state" | "status" => states(value).map(Self::State),
            "reason" => reason(value).map(Self::Reason),
            "ref" => Ok(Self::Ref(full_name(value))),
            "by" => Ok(Self::By(value.to_owned())),
            "label" => {
                let (name, value) = value.split_once('=').ok_or_else(unknown)?;
                Ok(Self::Label(name.to_owned(), value.to_owned()))
            }
            _ => Err(unknown()),
        }
    }
}

fn states(word: &str) -> Result<&'static [Standing], BuildFilterError> {
    Ok(match word {
        "queued" => &[Standing::Queued],
        "resolving" => &[Standing::Resolving],
        "planning" => &[Standing::Planning],
        "running" => &[
            Standing::Resolving,
            Standing::Planning,
            Standing::Running,
            Standing::Pushing,
        ],
        "pushing" => &[Standing::Pushing],
        "succeeded" => &[Standing::Succeeded],
        "failed" => &[Standing::Failed],
        "cancelled" => &[Standing::Cancelled],
        other => return Err(BuildFilterError::State(other.to_owned())),
    })
}

fn reason(word: &str) -> Result<Reason, BuildFilterError> {
    let kinds = FailureKind::ALL.into_iter().map(Reason::Failed);
    let mut all = kinds.chain([Reason::Cancelled]);
    let found = all.clone().find(|reason| reason.word() == word);
    found.ok_or_else(|| {
        let mut words = all.next().map(Reason::word).unwrap_or_default().to_owned();
        for reason in all {
            words.push_str(", ");
            words.push_str(reason.word());
        }
        BuildFilterError::Reason(word.to_owned(), words)
    })
}

/// Returns a name as builds have it: with host and tag.
pub(crate) fn full_name(text: &str) -> String {
    let parsed: Option<Reference> = text.parse().ok();
    let tagged = parsed.and_then(|name| match name.digest() {
        Some(_) => Some(name),
        None => name.with_tag(name.tag_or_latest()).ok(),
    });
    tagged.map_or_else(|| text.to_owned(), |name| name.to_string())
}

impl WantedArgs {
    /// Returns the filter that all options are together, among builds that stand like one of `standings`.
    pub(crate) fn filter(&self, standings: &[Standing]) -> Filter {
        let mut filter = Filter {
            since_ms: self.since.map(|since| since.0).unwrap_or_default(),
            until_ms: self.until.map(|until| until.0),
            ..Filter::default()
        };
        for one in &self.filters {
            match one {
                BuildFilter::State(states) => filter.standings.extend(*states),
                BuildFilter::Reason(reason) => drop(filter.reasons.insert(*reason)),
                BuildFilter::Ref(name) => filter.reference = Some(name.clone()),
                BuildFilter::By(who) => filter.triggered_by = Some(who.clone()),
                BuildFilter::Label(name, value) => {
                    filter.labels.insert(name.clone(), value.clone());
                }
            }
        }
        // Who names states, or reasons that only ended builds have, means those.
        if filter.standings.is_empty() && filter.reasons.is_empty() {
            filter.standings.extend(standings);
        }
        filter
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_and_taken_together() {
        let wanted = |texts: &[&str]| WantedArgs {
            filters: texts.iter().map(|text| text.parse().unwrap()).collect(),
            since: Some(Moment(5)),
            until: None,
        };
        let filter = wanted(&["ref=app", "by=me", "label=a=b=c"]).filter(&NOT_ENDED);
        assert_eq!(filter.standings.len(), NOT_ENDED.len());
        assert_eq!(
            filter.reference.as_deref(),
            Some("docker.io/library/app:latest")
        );
        assert_eq!(filter.labels["a"], "b=c");
        assert_eq!(filter.since_ms, 5);
        let filter = wanted(&["reason=timeout", "reason=cancelled"]).filter(&NOT_ENDED);
        assert!(filter.standings.is_empty());
        assert_eq!(filter.reasons.len(), 2);
        let filter = wanted(&["state=failed"]).filter(&NOT_ENDED);
        assert_eq!(filter.standings, [Standing::Failed].into());
        for wrong in [
            "",
            "app",
            "state=",
            "state=done",
            "reason=bad",
            "label=a",
            "x=y",
        ] {
            assert!(wrong.parse::<BuildFilter>().is_err(), "{wrong:?}");
        }
        let said = "reason=x".parse::<BuildFilter>().unwrap_err().to_string();
        assert!(
            said.contains("dockerfile, ") && said.contains("cancelled"),
            "{said}"
        );
    }
}
