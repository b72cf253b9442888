//! Builds that are looked at: listed, inspected, their logs read, here and on a server; and how they end when their time is over.

use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::process::finish;

use crate::command::{Bench, Ended};

fn lines(bench: &Bench, arguments: &[&str]) -> Vec<Value> {
    let text = text(bench, arguments);
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn text(bench: &Bench, arguments: &[&str]) -> String {
    let ended = Ended::of(finish(bench.kiln().args(arguments))).well();
    String::from_utf8(ended.stdout).unwrap()
}

#[test]
fn builds_of_this_machine_are_looked_at_from_every_side() {
    let bench = Bench::new();
    bench.dockerfile("RUN echo some'thing' && printf 'x\\033[2J\\377y\\n' && echo x > /x\n");
    bench
        .build(&["-t", "app:1", "--request-label", "run=17", "context"])
        .well();
    bench.dockerfile("RUN echo broken && exit 7\n");
    bench.build(&["-t", "app:1", "context"]).with(1, &["7"]);
    assert_eq!(lines(&bench, &["ls", "-o", "json"]).len(), 0);
    let all = lines(&bench, &["ls", "--all", "--json"]);
    assert_eq!(all.len(), 2);
    let [failed, succeeded] = [&all[0], &all[1]];
    assert_eq!(failed["failure"]["reason"], "dockerfile");
    assert_eq!(failed["failure"]["exit_code"], 7);
    assert_eq!(succeeded["labels"]["run"], "17");
    for (filter, expected) in [
        ("state=failed", failed),
        ("reason=dockerfile", failed),
        ("label=run=17", succeeded),
        ("state=succeeded", succeeded),
    ] {
        let found = lines(&bench, &["history", "-o", "json", "--filter", filter]);
        assert_eq!(found.iter().collect::<Vec<_>>(), [expected], "{filter}");
    }
    assert!(lines(&bench, &["history", "-o", "json", "--until", "1h"]).is_empty());
    let table = text(&bench, &["history"]);
    assert!(
        table.contains("dockerfile") && table.contains("1+0"),
        "{table}"
    );
    one_is_told(&bench, succeeded["id"].as_str().unwrap());
}

/// Tells a build of which everything is known, whose name is now another's too.
fn one_is_told(bench: &Bench, id: &str) {
    assert!(text(bench, &["inspect", "app:1"]).contains("failed (dockerfile)"));
    let told: Value = serde_json::from_str(&text(bench, &["inspect", "-o", "json", id])).unwrap();
    let steps = told["steps"].as_array().unwrap();
    let run = steps
        .iter()
        .find(|step| step["name"].as_str().unwrap().contains("RUN"))
        .unwrap();
    assert_eq!(run["status"], "done");
    assert!(
        run["layer"]["digest"]
            .as_str()
            .unwrap()
            .starts_with("sha256:")
    );
    assert!(!told["bases"].as_array().unwrap().is_empty());

    let step = run["step"].to_string();
    let raw = bench
        .kiln()
        .args(["logs", "--raw", "--step", &step, id])
        .output()
        .unwrap();
    assert_eq!(raw.stdout, b"something\nx\x1b[2J\xffy\n");
    let of_step = bench
        .kiln()
        .args(["logs", "--step", &step, id])
        .output()
        .unwrap();
    let of_step = String::from_utf8_lossy(&of_step.stdout).into_owned();
    assert!(of_step.starts_with(&format!("#{step} ")), "{of_step}");
    assert!(!of_step.contains("built sha256"), "{of_step}");
    let whole = bench
        .kiln()
        .args(["logs", "-f", id])
        .output()
        .unwrap()
        .stdout;
    assert!(String::from_utf8_lossy(&whole).contains("built sha256"));
    let late = bench
        .kiln()
        .args(["logs", "--since", "2100-01-01T00:00:00Z", id])
        .output()
        .unwrap();
    assert!(late.stdout.is_empty());
    let nobody = Ended::of(finish(bench.kiln().args(["inspect", "nobody"])));
    nobody.with(2, &["there is no build", "kiln ls --all"]);
}

#[test]
fn a_build_or_step_that_takes_too_long_or_is_silent_ends_with_its_reason() {
    let bench = Bench::new();
    for (n, (lines, option, words)) in [
        (
            "RUN echo begun && sleep 60\n",
            "--timeout=2s",
            "timed out after 2 s",
        ),
        (
            "RUN echo begun && sleep 60\n",
            "--step-timeout=1s",
            "timed out after 1 s",
        ),
        (
            "RUN echo begun && sleep 60\n",
            "--step-idle-timeout=1s",
            "wrote nothing for 1 s",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        bench.dockerfile(lines);
        let begun = Instant::now();
        bench.build(&[option, "context"]).with(1, &[words]);
        assert!(begun.elapsed() < Duration::from_secs(20), "{option}");
        let all = self::lines(&bench, &["ls", "--all", "-o", "json"]);
        assert_eq!(all.len(), n + 1);
        assert_eq!(all[0]["failure"]["reason"], "timeout", "{option}");
        let left = testkit::process::processes_using(bench.scratch.path());
        assert!(left.is_empty(), "{left:?}");
    }
}
