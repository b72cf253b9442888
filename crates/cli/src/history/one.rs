//! `kiln inspect`: one build with everything that is known of it.

use std::fmt::Write as _;

use api::kiln::v1 as wire;
use serde_json::{Value, json};

use super::find::{self, Known};
use super::{age, humane_ms, list, reason, safe, state, took_ms, unsigned};
use crate::args::history::{AnswerForm, InspectArgs};
use crate::args::moment::utc;
use crate::failure::{Exit, OrExit, Outcome};
use crate::progress::clean::{Colours, clean};
use crate::progress::now_ms;
use crate::terminal;

/// `kiln inspect`.
pub(crate) async fn inspect(args: InspectArgs) -> Outcome {
    let known = find::one((&args.server, &args.place), &args.build).await?;
    let text = match args.form.form() {
        AnswerForm::Text => text(&known, now_ms()),
        AnswerForm::Json => format!("{:#}", json(&known)),
    };
    terminal::data(text.trim_end()).or_exit(Exit::Machine)
}

fn text(known: &Known, now_ms: u64) -> String {
    let (build, detail) = (&known.build, &known.detail);
    let mut out = String::new();
    let mut say = |name: &str, value: String| {
        if !value.is_empty() {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{name:12}  {value}");
        }
    };
    say("build", safe(&build.build_id));
    say("image", safe(&build.r#ref));
    say("base image", safe(&build.base_ref));
    say("digest", safe(&build.digest));
    say(
        "state",
        match reason(build) {
            "" => state(build).to_owned(),
            "cancelled" => "cancelled".to_owned(),
            reason => format!("{} ({reason})", state(build)),
        },
    );
    let started_ms = unsigned(build.started_at_ms);
    let ago = age(now_ms.saturating_sub(started_ms));
    say("started", format!("{} ({ago})", utc(started_ms)));
    say("took", humane_ms(took_ms(build, now_ms)));
    say("caller", safe(&build.caller));
    say("asked by", safe(&build.triggered_by));
    let mut labels: Vec<_> = build.request_labels.iter().collect();
    labels.sort();
    for (name, value) in labels {
        say("label", safe(&format!("{name}={value}")));
    }
    say("commit", safe(&detail.commit));
    for base in &detail.bases {
        say(
            "base",
            safe(&format!("{} is {}", base.reference, base.digest)),
        );
    }
    for artifact in &known.artifacts {
        say("made", safe(&made(artifact)));
    }
    if let Some(kept) = &detail.request {
        let secrets = kept.secrets.iter().map(|id| format!("secret {id}"));
        let hosts = kept.credentials.iter();
        let hosts = hosts.map(|host| format!("credentials for {host}"));
        for gone in secrets.chain(hosts) {
            say("to retry", safe(&format!("{gone} has to come again")));
        }
        if kept.files {
            let text = "credentials of the files have to come again";
            say("to retry", text.to_owned());
        }
    }
    if let Some(folder) = &known.folder {
        say("folder", folder.display().to_string());
    }
    say("log", format!("{} bytes of journal", detail.journal_bytes));
    for warning in &detail.warnings {
        say("warning", safe(warning));
    }
    if !detail.steps.is_empty() {
        out.push_str("\nsteps\n");
        for step in &detail.steps {
            line(&mut out, step);
        }
    }
    if let Some(failure) = &build.failure {
        let message = clean(failure.message.as_bytes(), Colours::Drop);
        let _ = writeln!(out, "\n{message}");
    }
    out
}

fn line(out: &mut String, step: &wire::BuildStep) {
    let took = step.duration_ms.map(humane_ms).unwrap_or_default();
    let _ = writeln!(
        out,
        "  #{:<4} {:8} {took:>8}  {}",
        step.step,
        word(step),
        safe(&step.name)
    );
    let mut more = |text: &str| {
        if !text.is_empty() {
            let _ = writeln!(out, "{:26}{}", "", safe(text));
        }
    };
    if !step.reason.is_empty() {
        more(&format!("cache miss: {}", step.reason));
    }
    more(&step.error);
    if step.dropped_bytes > 0 {
        more(&format!(
            "{} bytes of its output were left out",
            step.dropped_bytes
        ));
    }
}

fn word(step: &wire::BuildStep) -> &'static str {
    match step.status() {
        wire::StepStatus::Unspecified => "unknown",
        wire::StepStatus::Started => "started",
        wire::StepStatus::Cached => "cached",
        wire::StepStatus::Done => "done",
        wire::StepStatus::Failed => "failed",
    }
}

fn made(artifact: &wire::Artifact) -> String {
    use wire::artifact::Kind;
    match &artifact.kind {
        Some(Kind::Image(image)) => {
            format!("image {} with digest {}", image.reference, image.digest)
        }
        Some(Kind::File(file)) if file.available => format!(
            "file of output {}: {} bytes, until {}",
            file.output,
            file.size_bytes,
            utc(unsigned(file.expires_at_ms))
        ),
        Some(Kind::File(file)) => format!("file of output {}: not there any more", file.output),
        Some(Kind::Subassembly(made)) => format!("subassembly of {}", made.reference),
        None => "something that this version does not know".to_owned(),
    }
}

fn json(known: &Known) -> Value {
    let detail = &known.detail;
    let mut value = list::json(&known.build);
    let steps = detail.steps.iter().map(|step| {
        let layer = step.layer.as_ref().map(|layer| {
            json!({
                "digest": layer.digest,
                "size_bytes": layer.size_bytes,
                "uncompressed_bytes": layer.uncompressed_bytes,
            })
        });
        json!({
            "step": step.step,
            "name": step.name,
            "status": word(step),
            "reason": given(&step.reason),
            "started_at_ms": step.started_at_ms,
            "duration_ms": step.duration_ms,
            "error": given(&step.error),
            "layer": layer,
            "dropped_bytes": step.dropped_bytes,
        })
    });
    let bases = detail.bases.iter();
    let bases = bases.map(|base| json!({"reference": base.reference, "digest": base.digest}));
    let phases = detail.phases.iter().map(|entered| {
        let name = entered.phase().as_str_name();
        let name = name.strip_prefix("BUILD_PHASE_").unwrap_or(name);
        json!({"phase": name.to_lowercase(), "at_ms": entered.at_ms})
    });
    let more = json!({
        "steps": steps.collect::<Vec<_>>(),
        "bases": bases.collect::<Vec<_>>(),
        "phases": phases.collect::<Vec<_>>(),
        "commit": given(&detail.commit),
        "warnings": detail.warnings,
        "journal_bytes": detail.journal_bytes,
        "not_kept": detail.request.as_ref().map(|kept| {
            json!({"secrets": kept.secrets, "credentials": kept.credentials, "files": kept.files})
        }),
        "artifacts": known.artifacts.iter().map(artifact).collect::<Vec<_>>(),
        "folder": known.folder,
    });
    if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
        value.extend(more);
    }
    value
}

fn given(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn artifact(artifact: &wire::Artifact) -> Value {
    use wire::artifact::Kind;
    match &artifact.kind {
        Some(Kind::Image(image)) => {
            json!({"kind": "image", "reference": image.reference, "digest": image.digest})
        }
        Some(Kind::File(file)) => json!({
            "kind": "file",
            "output": file.output,
            "available": file.available,
            "size_bytes": file.available.then_some(file.size_bytes),
            "expires_at_ms": file.available.then_some(file.expires_at_ms),
        }),
        Some(Kind::Subassembly(made)) => {
            json!({"kind": "subassembly", "reference": made.reference})
        }
        None => json!({"kind": "unknown"}),
    }
}
