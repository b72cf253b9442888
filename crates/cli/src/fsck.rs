//! `kiln fsck`: tells what is not as it has to be in a state directory, what can be done about it, and does it when asked to.

use serde_json::json;
use store::check::{Checking, Counts, Depth, Finding, Outcome as Came, Repair, Report, Severity};

use crate::args::storage::FsckArgs;
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::{place, terminal};

/// `kiln fsck`.
pub(crate) async fn run(args: FsckArgs) -> Outcome {
    let found = place::find(&args.place)?;
    if !found.state.join(worker::folder::STORE).is_dir() {
        let text = format!("there is no state in {}", found.state.display());
        return Err(Failure::text(Exit::Usage, text).hint("say --state DIR"));
    }
    let ready = found.ready()?;
    let how = Checking {
        depth: if args.quick {
            Depth::Names
        } else {
            Depth::Bytes
        },
        repair: match (args.repair, args.forget) {
            (false, _) => Repair::Nothing,
            (true, false) => Repair::MadeAgain,
            (true, true) => Repair::AndForget,
        },
    };
    let report = worker::check::run(&ready.command, how).await;
    let mut report = report.or_exit(Exit::Machine)?;
    service::check::run(&found.state, how, &mut report).or_exit(Exit::Machine)?;
    for finding in &report.findings {
        let text = if args.json {
            document(finding).to_string()
        } else {
            words(finding)
        };
        terminal::data(&text).or_exit(Exit::Machine)?;
    }
    let text = if args.json {
        json!({ "checked": report.counts, "untold": report.n_untold }).to_string()
    } else {
        summary(&report)
    };
    terminal::data(&text).or_exit(Exit::Machine)?;
    if report.is_wrong() {
        return Err(Failure::silent(Exit::Damaged));
    }
    Ok(())
}

fn document(finding: &Finding) -> serde_json::Value {
    let (outcome, error) = match &finding.outcome {
        Came::Told => ("told", None),
        Came::Repaired => ("repaired", None),
        Came::Failed(error) => ("failed", Some(error)),
    };
    json!({
        "severity": finding.severity,
        "subject": finding.subject,
        "problem": finding.problem,
        "advice": finding.advice,
        "remedy": finding.remedy,
        "outcome": outcome,
        "error": error,
    })
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Lost => "lost",
        Severity::Damaged => "damaged",
        Severity::Leftover => "leftover",
    }
}

/// Returns a finding in two lines: what it is, and what was or can be done.
fn words(finding: &Finding) -> String {
    let head = format!(
        "{:<9} {}: {}",
        word(finding.severity),
        finding.subject,
        finding.problem
    );
    let mut parts = Vec::new();
    if let Some(remedy) = &finding.remedy {
        let flags = match finding.needs {
            Repair::AndForget => "--repair --forget",
            _ => "--repair",
        };
        parts.push(match &finding.outcome {
            Came::Told => format!("`kiln fsck {flags}` {remedy}"),
            Came::Repaired => format!("done: {remedy}"),
            Came::Failed(error) => format!("not done: {remedy}: {error}"),
        });
    }
    if !finding.advice.is_empty() {
        parts.push(finding.advice.clone());
    }
    if parts.is_empty() {
        return head;
    }
    format!("{head}\n{:<9} {}", "", parts.join("; "))
}

/// Returns how much was looked at, and what came of it.
fn summary(report: &Report) -> String {
    let Counts {
        n_blobs,
        n_bytes,
        n_repositories,
        n_manifests,
        n_tags,
        n_snapshots,
        n_records,
        n_contexts,
        n_quarantined,
        n_builds,
    } = report.counts;
    let n = |severity: Severity| {
        let of_it = report
            .findings
            .iter()
            .filter(|finding| finding.severity == severity);
        of_it.count()
    };
    let is_repaired = |finding: &&Finding| finding.outcome == Came::Repaired;
    let n_repaired = report.findings.iter().filter(is_repaired).count();
    let mut lines = vec![
        format!(
            "checked {n_blobs} blobs ({} read), {n_repositories} repositories with {n_manifests} manifests and {n_tags} tags, \
             {n_snapshots} snapshots, {n_records} records, {n_contexts} contexts, {n_builds} builds",
            crate::storage::humane(n_bytes)
        ),
        format!(
            "{} lost, {} damaged, {} leftovers; {n_repaired} put right",
            n(Severity::Lost),
            n(Severity::Damaged),
            n(Severity::Leftover)
        ),
    ];
    if report.n_untold > 0 {
        lines.push(format!("{} more are not told one by one", report.n_untold));
    }
    if n_quarantined > 0 {
        lines.push(format!(
            "{n_quarantined} damaged blobs are in quarantine; `kiln prune --filter type=quarantine` removes them"
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(outcome: Came) -> Finding {
        Finding {
            severity: Severity::Lost,
            subject: "image a/b:1".to_owned(),
            problem: "its blob is gone".to_owned(),
            advice: "push it again".to_owned(),
            remedy: Some("forgets these names".to_owned()),
            needs: Repair::AndForget,
            outcome,
        }
    }

    #[test]
    fn a_finding_says_what_it_is_and_what_can_be_done() {
        assert_eq!(
            words(&finding(Came::Told)),
            "lost      image a/b:1: its blob is gone\n          \
             `kiln fsck --repair --forget` forgets these names; push it again"
        );
        assert!(words(&finding(Came::Repaired)).contains("done: forgets these names; push"));
        let failed = words(&finding(Came::Failed("no room".to_owned())));
        assert!(
            failed.contains("not done: forgets these names: no room;"),
            "{failed}"
        );
    }
}
