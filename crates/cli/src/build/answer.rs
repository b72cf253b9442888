//! What `--call` answers, as text for people and as JSON of the shape that docker buildx gives.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dockerfile::outline::{Outline, OutlineMount, Target};
use dockerfile::{Diagnostic, Span};
use serde_json::{Value, json};

/// A Dockerfile.
#[derive(Debug)]
pub(crate) struct Source {
    /// What it is called in answers.
    pub(crate) name: String,
    /// What it says.
    pub(crate) text: String,
}

/// Returns what was found, worst first.
pub(crate) fn findings(source: &Source, found: &[Diagnostic]) -> (String, Value) {
    let (errors, warnings): (Vec<_>, Vec<_>) = found.iter().partition(|one| one.is_error());
    let mut warnings = warnings;
    warnings.sort_by_key(|warning| warning.span.start);
    let mut text = String::new();
    for finding in errors.iter().chain(&warnings) {
        let shown = dockerfile::render(finding, &source.text, &source.name);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{shown}\n");
    }
    text.push_str(&summary(errors.len(), warnings.len()));
    let warnings: Vec<Value> = warnings.into_iter().map(warning).collect();
    let mut json = json!({
        "warnings": warnings,
        "sources": [{
            "filename": source.name,
            "language": "Dockerfile",
            "data": STANDARD.encode(&source.text),
        }],
    });
    if let (Some(error), Some(object)) = (errors.first(), json.as_object_mut()) {
        let error = json!({"message": error.message, "location": location(error.span)});
        object.insert("buildError".to_owned(), error);
    }
    (text, json)
}

fn summary(n_errors: usize, n_warnings: usize) -> String {
    let count = |n: usize, what: &str| match n {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    };
    match (n_errors, n_warnings) {
        (0, 0) => "Nothing to complain about.".to_owned(),
        (0, n) => format!("{}.", count(n, "warning")),
        (n, 0) => format!("{}.", count(n, "error")),
        (e, w) => format!("{} and {}.", count(e, "error"), count(w, "warning")),
    }
}

fn warning(finding: &Diagnostic) -> Value {
    let rule = finding.rule;
    let mut detail = finding.message.clone();
    if let Some(hint) = &finding.hint {
        let _ = write!(detail, " ({hint})");
    }
    json!({
        "ruleName": rule.map(|rule| rule.name).unwrap_or_default(),
        "description": rule.map(|rule| rule.description).unwrap_or_default(),
        "url": rule.map(|rule| rule.url).unwrap_or_default(),
        "detail": detail,
        "location": location(finding.span),
    })
}

fn location(span: Span) -> Value {
    json!({"ranges": [{"start": {"line": span.line}, "end": {"line": span.end_line}}]})
}

/// Returns the targets.
pub(crate) fn targets(source: &Source, targets: &[Target]) -> (String, Value) {
    let mut rows = vec![["TARGET".to_owned(), "DESCRIPTION".to_owned()]];
    for target in targets {
        let name = match (&target.name, target.is_default) {
            (Some(name), true) => format!("{name} (default)"),
            (Some(name), false) => name.clone(),
            (None, true) => "(default)".to_owned(),
            (None, false) => String::new(),
        };
        rows.push([name, target.description.clone().unwrap_or_default()]);
    }
    let list: Vec<Value> = targets
        .iter()
        .map(|target| {
            compact(json!({
                "name": target.name,
                "default": target.is_default.then_some(true),
                "description": target.description,
                "base": target.base,
                "platform": target.platform,
                "location": location(target.span),
            }))
        })
        .collect();
    let json = json!({"targets": list, "sources": [STANDARD.encode(&source.text)]});
    (table(&rows), json)
}

/// Returns what a target takes.
pub(crate) fn outline(source: &Source, outline: &Outline) -> (String, Value) {
    let mut text = String::new();
    if outline.name.is_some() || outline.description.is_some() {
        let name = outline.name.as_deref().unwrap_or("(default)");
        let _ = writeln!(text, "TARGET:      {name}");
        if let Some(description) = &outline.description {
            let _ = writeln!(text, "DESCRIPTION: {description}");
        }
        text.push('\n');
    }
    if !outline.arguments.is_empty() {
        let heads = ["BUILD ARG", "VALUE", "DESCRIPTION"].map(str::to_owned);
        let mut rows = vec![heads];
        rows.extend(outline.arguments.iter().map(|argument| {
            [
                argument.name.clone(),
                argument.value.clone().unwrap_or_default(),
                argument.description.clone().unwrap_or_default(),
            ]
        }));
        text.push_str(&table(&rows));
        text.push('\n');
    }
    for (head, mounts) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        if mounts.is_empty() {
            continue;
        }
        let mut rows = vec![[head.to_owned(), "REQUIRED".to_owned()]];
        let required = |mount: &OutlineMount| if mount.is_required { "true" } else { "" };
        let row = |mount: &OutlineMount| [mount.id.clone(), required(mount).to_owned()];
        rows.extend(mounts.iter().map(row));
        text.push_str(&table(&rows));
        text.push('\n');
    }
    (text, outline_json(source, outline))
}

fn outline_json(source: &Source, outline: &Outline) -> Value {
    let arguments = outline.arguments.iter().map(|argument| {
        compact(json!({
            "name": argument.name,
            "description": argument.description,
            "value": argument.value.as_deref().filter(|value| !value.is_empty()),
            "location": location(argument.span),
        }))
    });
    let mounts = |mounts: &[OutlineMount]| -> Vec<Value> {
        let mount = |mount: &OutlineMount| {
            compact(json!({
                "name": mount.id,
                "required": mount.is_required.then_some(true),
                "location": location(mount.span),
            }))
        };
        mounts.iter().map(mount).collect()
    };
    compact(json!({
        "name": outline.name,
        "description": outline.description,
        "args": arguments.collect::<Vec<Value>>(),
        "secrets": mounts(&outline.secrets),
        "ssh": mounts(&outline.ssh),
        "sources": [STANDARD.encode(&source.text)],
    }))
}

/// Leaves out what there is none of.
fn compact(mut value: Value) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.retain(|_, value| {
            let is_empty = value.as_array().is_some_and(Vec::is_empty);
            !value.is_null() && !is_empty
        });
    }
    value
}

fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}   ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dockerfile::{PlanOptions, PlanOutcome};

    use super::*;

    const TEXT: &str = "# which Debian\nARG SUITE=trixie\n# SUITE the release\nARG SUITE=trixie\nARG UNUSED=1\n\n# app the service\n\
        FROM scratch AS app\nARG SUITE\n# PORT where it listens\nARG PORT=80\nARG NONE\n\
        RUN --mount=type=secret,id=token,required=true --mount=type=ssh x\nFROM scratch\n";

    fn source() -> Source {
        Source {
            name: "Dockerfile".to_owned(),
            text: TEXT.to_owned(),
        }
    }

    #[test]
    fn targets_are_listed_with_what_is_said_of_them() {
        let (file, _) = dockerfile::parse(TEXT.as_bytes());
        let (text, json) = targets(&source(), &dockerfile::outline::targets(&file));
        assert_eq!(
            text,
            "TARGET      DESCRIPTION\napp         the service\n(default)\n"
        );
        assert_eq!(json["targets"][0]["name"], "app");
        assert_eq!(
            json["targets"][0]["location"]["ranges"][0]["start"]["line"],
            8
        );
        assert_eq!(json["targets"][1]["default"], true);
    }

    #[test]
    fn an_outline_holds_what_the_target_takes_and_nothing_else() {
        let text = TEXT.replace(
            "--mount=type=secret,id=token,required=true --mount=type=ssh ",
            "",
        );
        let (file, _) = dockerfile::parse(text.as_bytes());
        let options = PlanOptions {
            target: Some("app".to_owned()),
            ..PlanOptions::new(oci::Platform::host())
        };
        let graph = dockerfile::stages(&file, &options).unwrap();
        let planned = dockerfile::plan(&file, &graph, &options, &BTreeMap::new()).unwrap();
        let PlanOutcome::Ready(plan) = planned else {
            panic!("scratch needs bases")
        };
        let (with_mounts, _) = dockerfile::parse(TEXT.as_bytes());
        let found = dockerfile::outline::outline(&with_mounts, &graph, &plan);
        let (text, json) = outline(&source(), &found);
        assert_eq!(
            text,
            "TARGET:      app\nDESCRIPTION: the service\n\n\
             BUILD ARG   VALUE    DESCRIPTION\nSUITE       trixie   the release\nPORT        80       where it listens\nNONE\n\n\
             SECRET   REQUIRED\ntoken    true\n\nSSH       REQUIRED\ndefault\n\n"
        );
        assert_eq!(json["args"][1]["value"], "80");
        assert_eq!(json["secrets"][0]["required"], true);
    }

    #[test]
    fn findings_are_told_with_rule_link_and_line() {
        let (file, _) = dockerfile::parse(b"FROM a AS B\n");
        let source = Source {
            name: "x/Dockerfile".to_owned(),
            text: "FROM a AS B\n".to_owned(),
        };
        let (text, json) = findings(&source, &dockerfile::lint::check(&file));
        assert!(
            text.contains("warning[StageNameCasing]") && text.ends_with("\n1 warning."),
            "{text}"
        );
        assert!(text.contains("x/Dockerfile:1:1") && text.contains("/rule/stage-name-casing/"));
        let warning = &json["warnings"][0];
        assert_eq!(warning["ruleName"], "StageNameCasing");
        assert_eq!(warning["location"]["ranges"][0]["start"]["line"], 1);
        let (text, json) = findings(&source, &[]);
        assert_eq!(
            (text.as_str(), json["warnings"].as_array().map(Vec::len)),
            ("Nothing to complain about.", Some(0))
        );
    }
}
