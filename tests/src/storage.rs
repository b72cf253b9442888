//! `kiln du` and `kiln prune`: what is there, what goes, and what builds make of it.

use std::process::{Command, Stdio};

use serde_json::Value;
use testkit::process::{finish, run};

use crate::command::{Bench, Ended};

fn kiln(bench: &Bench, arguments: &[&str]) -> Ended {
    Ended::of(finish(bench.kiln().args(arguments)))
}

fn text(ended: Ended) -> String {
    String::from_utf8(ended.well().stdout).unwrap()
}

/// Makes everything in the store look as if it was used an hour ago.
fn age(bench: &Bench) {
    let notes =
        ["blobs", "used", "records", "mounts"].map(|name| bench.path("state/store").join(name));
    let mut find = Command::new("find");
    find.args(notes).args(["-type", "f", "-exec", "touch"]);
    run(find.args(["-d", "1 hour ago", "{}", "+"]));
}

fn items(bench: &Bench, filters: &[&str]) -> Vec<Value> {
    let listed = text(kiln(bench, &[&["du", "--json"][..], filters].concat()));
    let lines = listed.lines().map(serde_json::from_str);
    lines.map(Result::unwrap).collect()
}

const STEPS: &str = "COPY data /data\n\
    RUN --mount=type=cache,target=/cache date +%N >> /cache/list && head -c 300000 /dev/urandom > /made\n\
    RUN rm /made && echo kept > /kept\n";

#[test]
fn everything_that_nobody_uses_goes_and_the_next_build_makes_it_again() {
    let bench = Bench::new();
    bench.dockerfile(STEPS);
    bench.build(&["-t", "app:1", "context"]).well();
    assert!(text(kiln(&bench, &["prune"])).starts_with("removed 0, 0B;"));
    age(&bench);
    let before = items(&bench, &[]);
    for kind in ["image", "snapshot", "cache-mount", "record"] {
        assert!(before.iter().any(|item| item["type"] == kind), "{kind}");
    }
    let snapshots = items(
        &bench,
        &["--filter", "type=snapshot", "--filter", "until=30m"],
    );
    assert!(snapshots.iter().all(|item| item["hold"] == "free"));
    assert_eq!(
        items(&bench, &["--filter", "until=2h"]),
        Vec::<Value>::new()
    );

    let only = kiln(&bench, &["prune", "--filter", "type=cache-mount", "-v"]);
    let only = text(only);
    assert!(
        only.contains("cache-mount ") && only.contains("removed 1, "),
        "{only}"
    );
    // A filter holds whatever else is said.
    let young = kiln(
        &bench,
        &["prune", "--filter", "until=2h", "--max-used-space", "1"],
    );
    assert!(text(young).starts_with("removed 0, "));
    let images = kiln(&bench, &["prune", "--filter", "type=image"]);
    images.with(2, &["images are not pruned"]);
    let little = kiln(&bench, &["prune", "--max-used-space", "1g"]);
    assert!(text(little).starts_with("removed 0, "));
    let all = text(kiln(&bench, &["prune"]));
    assert!(!all.contains("removed 0, "), "{all}");
    let left = items(&bench, &[]);
    assert!(left.iter().all(|item| item["hold"] == "named"), "{left:?}");

    // The image is there, to be started from without a registry; and what made it is made again.
    bench
        .scratch
        .write("next/Dockerfile", "FROM app:1\nRUN cat /kept\n");
    bench.build(&["next"]).well();
    let again = bench.build(&["--progress=plain", "context"]).well();
    assert!(again.stderr.contains("cache miss"), "{}", again.stderr);
}

#[test]
fn what_is_shown_is_what_the_disk_says() {
    let bench = Bench::new();
    bench.dockerfile(STEPS);
    bench.build(&["context"]).well();
    // The first look notes sizes.
    kiln(&bench, &["du"]).well();
    let shown = text(kiln(&bench, &["du", "-v"]));
    let total = shown.lines().last().unwrap();
    let bytes = run(Command::new("du")
        .args(["-s", "--block-size=1"])
        .arg(bench.path("state/store")));
    let bytes: f64 = bytes.split_whitespace().next().unwrap().parse().unwrap();
    // The process that looks has a folder of its own in there meanwhile.
    let own = 4096.0;
    let said = total.split_whitespace().nth(1).unwrap();
    let megabytes: f64 = said.trim_end_matches("MB").parse().unwrap();
    assert!(
        (megabytes - (bytes + own) / 1e6).abs() <= 0.2,
        "{total}, and du says {bytes}"
    );
}

#[test]
fn a_build_is_not_disturbed_by_collections_beside_it() {
    let bench = Bench::new();
    let lines = "COPY data /data\nRUN echo one > /one && sleep 0.5\nRUN echo two > /two && sleep 0.5\n\
        RUN --mount=type=cache,target=/cache echo x >> /cache/x && sleep 0.5\nRUN cat /one /two /data\n";
    bench.dockerfile(lines);
    bench
        .build(&["-o", "type=oci,dest=first.tar", "context"])
        .well();
    for changed in 1..=3 {
        age(&bench);
        // The steps from here on are new: what is below them is looked up, unpacked or found unpacked, and used.
        bench.dockerfile(&lines.replace("two > /two", &format!("{changed} > /two")));
        let mut command = bench.command();
        command.args(["-o", "type=oci,dest=out.tar", "context"]);
        let build = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let build = std::thread::spawn(move || build.wait_with_output().unwrap());
        let mut n_collections = 0;
        while !build.is_finished() {
            kiln(&bench, &["prune"]).well();
            n_collections += 1;
        }
        Ended::of(build.join().unwrap()).well();
        assert!(n_collections > 1, "they have to meet");
    }
}

#[test]
fn what_is_no_filter_is_said() {
    let bench = Bench::new();
    kiln(&bench, &["prune", "--filter", "type=everything"])
        .with(2, &["there is no type \"everything\""]);
    kiln(&bench, &["du", "--filter", "until=soon"]).with(2, &["is not a duration"]);
    kiln(&bench, &["prune", "--max-used-space", "much"]).with(2, &["is not a size"]);
}
