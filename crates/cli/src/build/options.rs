//! What of the command line says how to build.

use std::collections::BTreeMap;

use engine::spec::{BuildOptions, CacheMode, CacheMountScope, Limits, NetworkMode, StepOptions};
use oci::Platform;
use service::config::Config;

use crate::args::steps::{Entitlement, StepArgs};
use crate::args::times::SecondsArg;
use crate::args::{BuildArgs, Network};
use crate::environment;
use crate::failure::{Exit, Failure, Outcome};

/// The argument, and variable, that everybody uses for the date of a build.
const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";

/// Returns how to build.
pub(crate) fn decide(args: &BuildArgs, defaults: &Config) -> Outcome<BuildOptions> {
    let host = Platform::host();
    if let Some(wanted) = args
        .platform
        .as_ref()
        .filter(|wanted| !host.satisfies(wanted))
    {
        let text =
            format!("building for {wanted} on this machine, which is {host}, is not supported yet");
        return Err(Failure::text(Exit::Usage, text));
    }
    let date = source_date_epoch(args)?;
    let mut build_args = build_args(args);
    if let Some(date) = date {
        // As with docker buildx: the environment's is an argument too.
        let name = SOURCE_DATE_EPOCH.to_owned();
        build_args.entry(name).or_insert_with(|| date.to_string());
    }
    Ok(BuildOptions {
        target: args.target.clone(),
        build_args,
        no_cache_stages: args.earlier.no_cache_filter.clone(),
        annotations: args
            .annotations
            .iter()
            .map(|one| (one.name.clone(), one.value.clone()))
            .collect(),
        labels: args
            .labels
            .iter()
            .map(|label| (label.name.clone(), label.value.clone()))
            .collect(),
        platform: host,
        cache: if args.no_cache {
            CacheMode::Ignore
        } else {
            CacheMode::Use
        },
        network: match args.network {
            Some(Network::Default) => NetworkMode::Default,
            Some(Network::None) => NetworkMode::None,
            Some(Network::Host) => NetworkMode::Host,
            None => defaults.network,
        },
        // One user's own builds: what one leaves for the next is no risk that running it here was not.
        cache_mounts: CacheMountScope::Tenant,
        steps: steps(&args.steps),
        compression: defaults.compression,
        source_date_epoch: date,
        ..BuildOptions::default()
    })
}

/// Returns the limits of a build that the user of this machine starts: asking for what is not for everybody is allowing it.
pub(crate) fn limits(args: &BuildArgs, configured: &Limits) -> Limits {
    Limits {
        allow_host_network: configured.allow_host_network
            || args.network == Some(Network::Host)
            || args.steps.allowed.contains(&Entitlement::HostNetwork),
        allow_insecure: configured.allow_insecure
            || args.steps.allowed.contains(&Entitlement::Insecure),
        step_shm_bytes: steps(&args.steps)
            .shm_bytes
            .map_or(configured.step_shm_bytes, |asked| {
                asked.max(configured.step_shm_bytes)
            }),
        wall_time_s: seconds(args.times.timeout).unwrap_or(configured.wall_time_s),
        step_time_s: seconds(args.times.step_timeout).unwrap_or(configured.step_time_s),
        step_idle_s: seconds(args.times.step_idle_timeout).or(configured.step_idle_s),
        ..configured.clone()
    }
}

fn seconds(given: Option<SecondsArg>) -> Option<u64> {
    given.map(|seconds| seconds.0)
}

fn steps(args: &StepArgs) -> StepOptions {
    let hosts = args.hosts.iter();
    StepOptions {
        extra_hosts: hosts
            .map(|host| (host.name.clone(), host.address))
            .collect(),
        ulimits: args.ulimits.iter().map(|ulimit| ulimit.0).collect(),
        shm_bytes: args.shm_size.map(|size| size.0),
    }
}

/// An argument without a value is the environment's; one that is not there either is not an argument.
pub(crate) fn build_args(args: &BuildArgs) -> BTreeMap<String, String> {
    args.arguments
        .iter()
        .filter_map(|arg| {
            let value = arg
                .value
                .clone()
                .or_else(|| environment::variable(&arg.name))?;
            Some((arg.name.clone(), value))
        })
        .collect()
}

fn source_date_epoch(args: &BuildArgs) -> Outcome<Option<i64>> {
    const NAME: &str = SOURCE_DATE_EPOCH;
    let given = args.arguments.iter().rev().find(|arg| arg.name == NAME);
    let text = given
        .and_then(|arg| arg.value.clone())
        .or_else(|| environment::variable(NAME));
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let wrong = |_| {
        Failure::text(
            Exit::Usage,
            format!("{NAME}={text:?} is not a number of seconds"),
        )
    };
    text.parse().map(Some).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(line: &[&str]) -> BuildArgs {
        let line = ["kiln", "build", "."].iter().chain(line);
        match Cli::try_parse_from(line).unwrap().command {
            Command::Build(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_argument_without_a_value_is_the_environments() {
        let options = decide(
            &args(&[
                "--build-arg",
                "PATH",
                "--build-arg",
                "NOT_SET_ANYWHERE",
                "--build-arg",
                "A=1",
            ]),
            &Config::default(),
        );
        let names: Vec<_> = options.unwrap().build_args.into_keys().collect();
        assert_eq!(names, ["A", "PATH"]);
    }

    #[test]
    fn another_platform_is_refused_in_words() {
        let failure = decide(&args(&["--platform", "plan9/mips"]), &Config::default()).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(
            decide(
                &args(&["--platform", &Platform::host().to_string()]),
                &Config::default()
            )
            .is_ok()
        );
    }

    #[test]
    fn asking_for_the_hosts_network_allows_it() {
        let limits = |line: &[&str]| limits(&args(line), &Limits::default()).allow_host_network;
        assert!(!limits(&[]) && limits(&["--network", "host"]));
        assert!(limits(&["--allow", "network.host"]));
    }

    #[test]
    fn asking_for_insecure_steps_allows_them_and_nothing_else() {
        let limits = limits(&args(&["--allow", "security.insecure"]), &Limits::default());
        assert!(limits.allow_insecure && !limits.allow_host_network);
    }

    #[test]
    fn asking_for_shared_memory_here_allows_it() {
        let most = |line: &[&str]| limits(&args(line), &Limits::default()).step_shm_bytes;
        assert_eq!(most(&["--shm-size", "64m"]), most(&[]));
        assert_eq!(most(&["--shm-size", "4g"]), 4 << 30);
    }

    #[test]
    fn the_date_is_a_number() {
        let options = decide(
            &args(&["--build-arg", "SOURCE_DATE_EPOCH=17"]),
            &Config::default(),
        )
        .unwrap();
        assert_eq!(options.source_date_epoch, Some(17));
        assert!(
            decide(
                &args(&["--build-arg", "SOURCE_DATE_EPOCH=today"]),
                &Config::default()
            )
            .is_err()
        );
    }
}
