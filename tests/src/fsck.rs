//! `kiln fsck`: what is wrong is told, with what can be done about it, and put right; where nothing is wrong, nothing is found.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use testkit::process::finish;

use crate::command::{Bench, Ended};
use crate::scene::{Scene, Target};

fn fsck(bench: &Bench, arguments: &[&str]) -> Ended {
    Ended::of(finish(bench.kiln().arg("fsck").args(arguments)))
}

fn text(ended: &Ended) -> String {
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

/// Expects this exit code and these words on standard output.
fn says(ended: &Ended, code: i32, words: &[&str]) {
    let said = text(ended);
    assert_eq!(ended.code, Some(code), "{said}{}", ended.stderr);
    for word in words {
        assert!(said.contains(word), "{word:?} is not in\n{said}");
    }
}

fn only_build(bench: &Bench) -> PathBuf {
    let mut builds = fs::read_dir(bench.path("state/builds")).unwrap();
    builds.next().unwrap().unwrap().path()
}

/// Makes a build look as if nobody has touched it for long.
fn settle(build: &Path) {
    let then = SystemTime::now() - Duration::from_secs(600);
    for name in ["journal", "lock", "record.json", "."] {
        let Ok(file) = fs::File::open(build.join(name)) else {
            continue;
        };
        file.set_modified(then).unwrap();
    }
}

/// Returns the path of the largest blob: a layer of the base.
fn largest_blob(bench: &Bench) -> PathBuf {
    let blobs = fs::read_dir(bench.path("state/store/blobs/sha256")).unwrap();
    let blobs = blobs.map(|entry| entry.unwrap().path());
    blobs
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap()
}

#[test]
fn what_builds_leave_is_as_it_has_to_be() {
    let bench = Bench::new();
    says(&fsck(&bench, &[]), 2, &[]);
    bench.dockerfile("COPY data /data\nRUN --mount=type=cache,target=/c echo made > /made\n");
    bench.build(&["-t", "app:1", "context"]).well();
    bench.dockerfile("RUN exit 7\n");
    bench.build(&["context"]).with(1, &[]);
    for arguments in [&[][..], &["--quick"], &["--repair", "--forget"]] {
        let ended = fsck(&bench, arguments);
        says(
            &ended,
            0,
            &[
                "1 repositories with 1 manifests and 1 tags",
                "2 builds\n",
                "0 lost, 0 damaged, ",
            ],
        );
        let told = text(&ended);
        assert!(!told.contains("lost ") || told.contains("0 lost"), "{told}");
    }
    let last = fsck(&bench, &["--json"]);
    says(&last, 0, &[]);
    let lines: Vec<Value> = text(&last)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["checked"]["n_builds"], 2);
}

#[test]
fn a_damaged_layer_is_put_aside_and_its_image_forgotten_only_when_that_is_asked_for() {
    let bench = Bench::new();
    bench.build(&["-t", "app:1", "context"]).well();
    let blob = largest_blob(&bench);
    let mut bytes = fs::read(&blob).unwrap();
    bytes[1000] ^= 1;
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, bytes).unwrap();
    let name = blob.file_name().unwrap().to_str().unwrap();
    says(&fsck(&bench, &["--quick"]), 0, &[]);
    let told = fsck(&bench, &[]);
    says(
        &told,
        1,
        &[
            &format!("damaged   blob sha256:{name}"),
            "it belongs to library/app",
            "`kiln fsck --repair` moves it to quarantine",
        ],
    );
    assert!(blob.exists());
    let repaired = fsck(&bench, &["--repair"]);
    says(
        &repaired,
        1,
        &[
            "done: moves it to quarantine",
            "lost      image library/app:1",
            "`kiln fsck --repair --forget` forgets these names",
        ],
    );
    assert!(!blob.exists());
    // What is lost is made again, and nobody had to forget anything.
    bench
        .build(&["-t", "app:1", "--no-cache", "context"])
        .well();
    says(
        &fsck(&bench, &[]),
        0,
        &["1 damaged blobs are in quarantine"],
    );
    fs::remove_file(&blob).unwrap();
    says(
        &fsck(&bench, &["--repair", "--forget"]),
        1,
        &["done: forgets these names"],
    );
    says(&fsck(&bench, &["--repair"]), 0, &["0 lost, 0 damaged"]);
    bench.scratch.write("next/Dockerfile", "FROM app:1\n");
    let gone = bench.build(&["next"]);
    assert_ne!(gone.code, Some(0), "{}", gone.stderr);
}

#[test]
fn a_damaged_journal_keeps_its_beginning_and_gets_an_end() {
    let bench = Bench::new();
    bench.build(&["context"]).well();
    let build = only_build(&bench);
    let journal = build.join("journal");
    let mut bytes = fs::read(&journal).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&journal, &bytes).unwrap();
    says(
        &fsck(&bench, &[]),
        1,
        &["its journal is damaged at offset ", "look at the disk"],
    );
    says(
        &fsck(&bench, &["--repair"]),
        0,
        &["done: keeps all of it as journal.damaged"],
    );
    assert_eq!(fs::read(build.join("journal.damaged")).unwrap(), bytes);
    says(&fsck(&bench, &[]), 0, &["0 damaged"]);
    let id = build.file_name().unwrap().to_str().unwrap();
    let log = Ended::of(finish(bench.kiln().args(["logs", id])));
    assert!(
        text(&log).contains("the log was damaged at offset"),
        "{}",
        text(&log)
    );
}

#[test]
fn what_dead_workers_leave_is_told_and_tidied_up() {
    let bench = Bench::new();
    bench.build(&["context"]).well();
    let build = only_build(&bench);
    let journal = build.join("journal");
    let whole = fs::read(&journal).unwrap();

    // Interrupted while it wrote.
    fs::write(&journal, [&whole[..], &whole[8..20]].concat()).unwrap();
    fs::create_dir_all(build.join("work")).unwrap();
    fs::write(build.join("work/scratch"), "left").unwrap();
    settle(&build);
    says(
        &fsck(&bench, &[]),
        0,
        &[
            "12 bytes of an interrupted write",
            "scratch files of its worker",
        ],
    );
    settle(&build);
    says(&fsck(&bench, &["--repair"]), 0, &["2 put right"]);
    assert_eq!(fs::read(&journal).unwrap(), whole);
    assert!(!build.join("work/scratch").exists());

    // Killed before its end.
    fs::write(&journal, &whole[..whole.len() - 1]).unwrap();
    says(&fsck(&bench, &["--repair"]), 0, &["0 leftovers"]);
    settle(&build);
    says(
        &fsck(&bench, &["--repair"]),
        0,
        &["done: ends it as one whose worker was lost"],
    );
    let id = build.file_name().unwrap().to_str().unwrap();
    let log = Ended::of(finish(bench.kiln().args(["logs", id])));
    assert!(text(&log).contains("was lost"), "{}", text(&log));

    // Never begun.
    fs::write(build.join("record.json"), "").unwrap();
    fs::write(&journal, "").unwrap();
    settle(&build);
    says(
        &fsck(&bench, &["--repair"]),
        0,
        &["it was never begun", "done: removes it"],
    );
    assert!(!build.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_is_checked_and_not_disturbed() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let dockerfile =
        format!("FROM {base}\nRUN for i in $(seq 30); do echo line $i; sleep 0.1; done\n");
    let request = scene.dockerfile("slow", &dockerfile);
    let state = scene.kiln.state();
    let check = |arguments: &'static [&'static str]| {
        let mut command = scene.kiln.command();
        command
            .arg("fsck")
            .arg("--state")
            .arg(&state)
            .args(arguments);
        Ended::of(finish(&mut command))
    };
    let building = scene.build(request);
    tokio::pin!(building);
    let mut n_checks = 0;
    let said = loop {
        tokio::select! {
            said = &mut building => break said,
            () = tokio::time::sleep(Duration::from_millis(50)) => {
                if state.join("store").exists() {
                    let ended = tokio::task::block_in_place(|| check(&["--repair", "--forget"]));
                    says(&ended, 0, &["0 lost, 0 damaged"]);
                    n_checks += 1;
                }
            }
        }
    };
    assert!(n_checks > 3, "they have to meet");
    let log = scene.log(&said.build_id().unwrap()).await;
    assert!(log.contains("line 30"), "{log}");
    says(&check(&[]), 0, &["2 repositories", "0 lost, 0 damaged"]);
}
