//! `--cache-to` and `--cache-from`: what one machine has built, another need not.

use std::path::PathBuf;

use serde_json::Value;
use testkit::process::finish;

use crate::command::{Bench, Ended};

/// Two stages; what the second takes is known without the first.
const STAGES: &str = "RUN echo compiled > /out && head -c 100000 /dev/urandom > /left-behind\n\
    FROM BASE\n\
    COPY data /data\n\
    COPY --from=0 /out /out\n\
    RUN cat /data /out > /both\n";

/// A machine: a state directory of its own.
struct Machine<'a> {
    bench: &'a Bench,
    name: &'static str,
}

impl Machine<'_> {
    fn build(&self, arguments: &[&str]) -> Ended {
        let mut command = self.bench.command();
        command
            .env("KILN_STATE", self.bench.path(self.name))
            .args(["--progress=plain", "--metadata-file", "metadata.json"])
            .args(arguments)
            .arg("context");
        Ended::of(finish(&mut command))
    }

    /// Builds; returns what was said, the digest, and how many steps ran.
    fn built(&self, arguments: &[&str]) -> (String, String, u64) {
        let ended = self.build(arguments).well();
        let metadata = std::fs::read(self.bench.path("metadata.json")).unwrap();
        let metadata: Value = serde_json::from_slice(&metadata).unwrap();
        let digest = metadata["containerimage.digest"].as_str().unwrap();
        let n_run = metadata["kiln.steps.run"].as_u64().unwrap();
        (ended.stderr, digest.to_owned(), n_run)
    }

    fn blobs(&self) -> usize {
        let folder = self.bench.path(self.name).join("store/blobs/sha256");
        std::fs::read_dir(folder).unwrap().count()
    }
}

fn bench() -> (Bench, String) {
    let bench = Bench::new();
    let stages = STAGES.replace("BASE", &bench.base);
    bench.dockerfile(&stages);
    let host = bench.base.split('/').next().unwrap().to_owned();
    (bench, host)
}

fn machines(bench: &Bench) -> [Machine<'_>; 2] {
    ["one", "other"].map(|name| Machine { bench, name })
}

#[test]
fn a_machine_that_has_built_nothing_builds_nothing_of_what_is_in_a_registry() {
    let (bench, host) = bench();
    let [one, other] = machines(&bench);
    let to = format!("type=registry,ref={host}/cache/app:1,mode=max");
    let from = format!("type=registry,ref={host}/cache/app:1");
    let (_, digest, n_run) = one.built(&["--cache-to", &to]);
    assert_eq!(n_run, 4);
    let (said, again, n_run) = other.built(&["--cache-from", &from]);
    assert_eq!((again, n_run), (digest.clone(), 0), "{said}");
    assert!(said.contains("4 steps"), "{said}");
    // No layer was needed to know all this.
    assert_eq!(other.blobs(), 0, "{said}");

    // What is needed then comes from there: the image, and what a new step stands on.
    let stages = STAGES.replace("BASE", &bench.base);
    bench.dockerfile(&format!("{stages}RUN grep -q compiled /both\n"));
    let (said, _, n_run) = other.built(&["--cache-from", &from]);
    assert_eq!(n_run, 1, "{said}");
    assert!(
        said.contains(&format!("pull {host}/cache/app:1 ")),
        "{said}"
    );
    // And to a registry from there without passing through here.
    bench.dockerfile(&stages);
    let name = format!("{host}/app:1");
    let third = Machine {
        bench: &bench,
        name: "third",
    };
    let (_, pushed, n_run) = third.built(&["--cache-from", &from, "--push", "-t", &name]);
    assert_eq!((pushed, n_run), (digest, 0));
    assert_eq!(third.blobs(), 0);
    // Who does not want a cache gets none.
    let (_, _, n_run) = third.built(&["--cache-from", &from, "--no-cache"]);
    assert_eq!(n_run, 4);
}

#[test]
fn only_the_stages_of_the_image_are_written_unless_all_are_asked_for() {
    let (bench, host) = bench();
    let [one, other] = machines(&bench);
    let name = format!("{host}/cache:min");
    one.built(&["--cache-to", &name]);
    let stages = STAGES.replace("BASE", &bench.base);
    // Another first stage: the second's steps are known up to where it differs.
    bench.dockerfile(&stages.replace("echo compiled", "echo recompiled"));
    let (said, _, n_run) = other.built(&["--cache-from", &name]);
    assert!(said.contains("3 steps"), "{said}");
    assert_eq!(n_run, 3, "{said}");
}

#[test]
fn an_image_can_carry_its_own_cache() {
    let (bench, host) = bench();
    let [one, other] = machines(&bench);
    let name = format!("{host}/app:inline");
    let (_, digest, _) = one.built(&["--push", "-t", &name, "--cache-to", "type=inline"]);
    bench.scratch.write("context/unrelated", "not copied\n");
    let (said, again, n_run) = other.built(&["--cache-from", &name, "--cache-to", "type=inline"]);
    // The first stage is not in it: it runs, and what the second takes of it is the same.
    assert_eq!((again, n_run), (digest, 1), "{said}");
    // It is of the image's own steps alone: one built upon it carries none.
    bench
        .scratch
        .write("next/Dockerfile", format!("FROM {name}\nRUN true\n"));
    let next = format!("{host}/next:1");
    let mut command = bench.command();
    command.args(["--push", "-t", &next, "next"]);
    Ended::of(finish(&mut command)).well();
    let said = other.build(&["--cache-from", &next]).well().stderr;
    assert!(said.contains("carries no cache of kiln"), "{said}");
}

#[test]
fn a_folder_holds_a_cache_and_a_missing_one_is_none() {
    let (bench, _) = bench();
    let [one, other] = machines(&bench);
    let said = one
        .build(&["--cache-from", "type=local,src=cache"])
        .well()
        .stderr;
    assert!(said.contains("there is no cache in cache"), "{said}");
    let (_, digest, _) = one.built(&["--cache-to", "type=local,dest=cache,mode=max"]);
    let from = ["--cache-from", "type=local,src=cache"];
    let (said, again, n_run) = other.built(&from);
    assert_eq!((again, n_run), (digest, 0), "{said}");

    // A layer that is not what it is called is no layer: its step is run.
    let blobs = std::fs::read_dir(bench.path("cache/blobs/sha256")).unwrap();
    let mut largest: Vec<PathBuf> = blobs.map(|entry| entry.unwrap().path()).collect();
    largest.sort_by_key(|path| std::fs::metadata(path).unwrap().len());
    std::fs::write(largest.last().unwrap(), "something else").unwrap();
    let third = Machine {
        bench: &bench,
        name: "third",
    };
    let (said, _, n_run) = third.built(&from);
    assert!(n_run >= 1, "{said}");
}

#[test]
fn a_cache_that_cannot_be_read_or_written_is_told_and_fails_no_build_that_does_not_want_it() {
    let (bench, host) = bench();
    let [one, other] = machines(&bench);
    let closed = "127.0.0.1:1/cache:1";
    let absent = format!("{host}/no/such:1");
    let (said, _, n_run) = one.built(&["--cache-from", &absent, "--cache-from", &bench.base]);
    assert_eq!(n_run, 4);
    for words in [
        "cache 127.0.0.1",
        "/no/such:1 is not used",
        "carries no cache of kiln",
    ] {
        assert!(said.contains(words), "{words:?} is not in\n{said}");
    }
    let to = format!("type=registry,ref={closed}");
    other.build(&["--cache-to", &to]).with(3, &["127.0.0.1:1"]);
    let ignoring = format!("{to},ignore-error=true");
    let said = other.build(&["--cache-to", &ignoring]).well().stderr;
    assert!(said.contains("is not written"), "{said}");
}
