//! `kiln doctor`: the worker's checks of this machine, shown.

use std::path::PathBuf;

use worker::doctor::{Check, DoctorOptions, Status, checks};
use worker::userns::UserNsOptions;

use crate::args::DoctorArgs;
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::{place, terminal};

/// Checks this machine. Must be called before there is a second thread: the checks do what a worker does.
pub(crate) fn run(args: &DoctorArgs) -> Outcome {
    let found = place::find(&args.place)?;
    let options = DoctorOptions {
        user_namespace: UserNsOptions {
            base: found.config.worker.user_namespace_base,
            ..UserNsOptions::default()
        },
        state: found.state,
        git_program: PathBuf::from("git"),
    };
    let checks = checks(&options);
    for check in &checks {
        terminal::data(&text(check)).or_exit(Exit::Machine)?;
    }
    match checks.iter().filter(|c| c.status == Status::Fail).count() {
        0 => Ok(()),
        n => {
            let text = format!(
                "builds do not work here: {n} of {} checks failed",
                checks.len()
            );
            Err(Failure::text(Exit::Machine, text))
        }
    }
}

fn text(check: &Check) -> String {
    let word = match check.status {
        Status::Ok => "ok  ",
        Status::Warn => "warn",
        Status::Fail => "FAIL",
    };
    let mut text = format!("{word}  {:18}  {}", check.name, check.detail);
    if let Some(remedy) = &check.remedy {
        text = format!("{text}\n      {:18}  remedy: {remedy}", "");
    }
    text
}
