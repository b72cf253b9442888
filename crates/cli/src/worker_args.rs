//! The command line of `kiln worker`: written by [`worker::start`], read here, before there is anything but one thread.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use worker::WorkerArgs;
use worker::storage::{self, StorageArgs};
use worker::userns::UserNsOptions;

use crate::failure::Exit;
use crate::terminal;

/// First id of the worker's user namespace.
pub(crate) const BASE: &str = "--user-namespace-base";

/// The niceness that the worker goes back to.
pub(crate) const NICENESS: &str = "--niceness";

/// What a worker process is for.
#[derive(Debug)]
enum Task {
    Build(WorkerArgs),
    LookAfterStore(StorageArgs),
}

/// Carries out one build, or looks after the store: the whole life of a worker process.
pub(crate) fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let task = parse(arguments).and_then(|(task, niceness)| {
        if let Some(niceness) = niceness {
            rustix::process::setpriority_process(None, niceness).context("step back")?;
        }
        Ok(task)
    });
    match task {
        Ok(Task::Build(args)) => worker::main(&args),
        Ok(Task::LookAfterStore(args)) => storage::main(&args),
        Err(error) => {
            terminal::say(&format!("error: {error:#}"));
            Exit::Usage.into()
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = OsString>) -> anyhow::Result<(Task, Option<i32>)> {
    let (mut state, mut id, mut base, mut stored, mut niceness) = (None, None, None, None, None);
    while let Some(name) = arguments.next() {
        let value = arguments
            .next()
            .with_context(|| format!("{} has no value", name.display()))?;
        let text = || value.to_str().ok_or_else(|| anyhow!("not text"));
        match name.to_str() {
            Some("--state") => state = Some(PathBuf::from(&value)),
            Some("--id") => id = Some(text()?.parse()?),
            Some(BASE) => base = Some(text()?.parse()?),
            Some(NICENESS) => niceness = Some(text()?.parse()?),
            Some(storage::ARGUMENT) => stored = Some(PathBuf::from(&value)),
            _ => bail!("unknown argument {}", name.display()),
        }
    }
    let user_namespace = UserNsOptions {
        base,
        ..UserNsOptions::default()
    };
    let task = match stored {
        Some(state) => Task::LookAfterStore(StorageArgs {
            state,
            user_namespace,
        }),
        None => Task::Build(WorkerArgs {
            state: state.context("--state is missing")?,
            id: id.context("--id is missing")?,
            user_namespace,
        }),
    };
    Ok((task, niceness))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &[&str]) -> anyhow::Result<(Task, Option<i32>)> {
        parse(line.iter().map(OsString::from))
    }

    #[test]
    fn what_a_starter_writes_is_read() {
        let id = "a".repeat(26);
        let build = parsed(&["--state", "/s", "--id", &id, BASE, "100000", NICENESS, "-3"]);
        let Ok((Task::Build(args), Some(-3))) = build else {
            panic!("{build:?}");
        };
        assert_eq!(args.id.as_str(), id);
        assert_eq!(args.user_namespace.base, Some(100_000));
        let store = parsed(&[storage::ARGUMENT, "/s", BASE, "100000"]).unwrap();
        assert!(
            matches!(store, (Task::LookAfterStore(_), None)),
            "{store:?}"
        );
        for bad in [
            &["--state", "/s"][..],
            &["--id", "x"],
            &["--what", "x"],
            &["--id"],
            &[NICENESS, "low"],
        ] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }
}
