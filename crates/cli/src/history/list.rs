//! `kiln ls`: builds that go on, and with `--all` those that have ended; `kiln history`: what became of those that have ended.

use api::kiln::v1 as wire;
use serde_json::{Value, json};
use service::builds::list::Standing;

use super::{age, find, humane_ms, reason, safe, state, took_ms, unsigned};
use crate::args::history::{AnswerForm, ENDED, HistoryArgs, LsArgs, NOT_ENDED};
use crate::failure::{Exit, OrExit, Outcome};
use crate::progress::now_ms;
use crate::terminal;

/// `kiln ls`.
pub(crate) async fn ls(args: LsArgs) -> Outcome {
    let standings: &[Standing] = if args.all { &[] } else { &NOT_ENDED };
    let filter = args.wanted.filter(standings);
    let limit = args.limit.unwrap_or(usize::MAX);
    let builds = find::list((&args.server, &args.place), &filter, limit).await?;
    if args.form.form() == AnswerForm::Json {
        return print_json(&builds);
    }
    let header = format!(
        "{:26}  {:9}  {:>8}  {:14}  IMAGE",
        "BUILD", "STATE", "STARTED", "REASON"
    );
    terminal::data(&header).or_exit(Exit::Machine)?;
    let now_ms = now_ms();
    for build in &builds {
        let line = format!(
            "{:26}  {:9}  {:>8}  {:14}  {}",
            safe(&build.build_id),
            state(build),
            age(now_ms.saturating_sub(unsigned(build.started_at_ms))),
            why(build),
            safe(&build.r#ref)
        );
        terminal::data(line.trim_end()).or_exit(Exit::Machine)?;
    }
    Ok(())
}

/// Returns why a build has not ended well, or does not run.
fn why(build: &wire::Build) -> String {
    match build.builds_ahead {
        Some(0) => "next".to_owned(),
        Some(n) => format!("{n} before it"),
        None => reason(build).to_owned(),
    }
}

/// `kiln history`.
pub(crate) async fn history(args: HistoryArgs) -> Outcome {
    let filter = args.wanted.filter(&ENDED);
    let builds = find::list((&args.server, &args.place), &filter, args.limit).await?;
    if args.form.form() == AnswerForm::Json {
        return print_json(&builds);
    }
    let header = format!(
        "{:26}  {:9}  {:14}  {:>8}  {:>7}  {:>9}  IMAGE",
        "BUILD", "STATE", "REASON", "STARTED", "TOOK", "RUN+CACHED"
    );
    terminal::data(&header).or_exit(Exit::Machine)?;
    let now_ms = now_ms();
    for build in &builds {
        let steps = match build.phase() {
            wire::BuildPhase::Succeeded => format!("{}+{}", build.n_run, build.n_cached),
            _ => String::new(),
        };
        let line = format!(
            "{:26}  {:9}  {:14}  {:>8}  {:>7}  {steps:>10}  {}",
            safe(&build.build_id),
            state(build),
            reason(build),
            age(now_ms.saturating_sub(unsigned(build.started_at_ms))),
            humane_ms(took_ms(build, now_ms)),
            safe(&build.r#ref)
        );
        terminal::data(line.trim_end()).or_exit(Exit::Machine)?;
    }
    Ok(())
}

fn print_json(builds: &[wire::Build]) -> Outcome {
    for build in builds {
        terminal::data(&json(build).to_string()).or_exit(Exit::Machine)?;
    }
    Ok(())
}

/// Returns a build as programs read it.
pub(super) fn json(build: &wire::Build) -> Value {
    let failure = build.failure.as_ref().map(|failure| {
        json!({
            "reason": reason(build),
            "message": failure.message,
            "step": (failure.step > 0).then_some(failure.step),
            "exit_code": failure.exit_code,
            "is_users": failure.is_users,
        })
    });
    let labels: std::collections::BTreeMap<_, _> = build.request_labels.iter().collect();
    json!({
        "id": build.build_id,
        "state": state(build),
        "phase": phase(build),
        "builds_ahead": build.builds_ahead,
        "reference": build.r#ref,
        "base_reference": build.base_ref,
        "started_at_ms": build.started_at_ms,
        "ended_at_ms": (build.ended_at_ms > 0).then_some(build.ended_at_ms),
        "digest": Some(&build.digest).filter(|digest| !digest.is_empty()),
        "failure": failure,
        "triggered_by": build.triggered_by,
        "caller": Some(&build.caller).filter(|caller| !caller.is_empty()),
        "labels": labels,
        "purpose": match build.purpose() {
            wire::BuildPurpose::Unspecified => "unknown",
            wire::BuildPurpose::Image => "image",
            wire::BuildPurpose::Named => "named",
            wire::BuildPurpose::Subassembly => "subassembly",
        },
        "n_run": build.n_run,
        "n_cached": build.n_cached,
    })
}

fn phase(build: &wire::Build) -> String {
    let name = build.phase().as_str_name();
    let name = name.strip_prefix("BUILD_PHASE_").unwrap_or(name);
    name.to_lowercase()
}
