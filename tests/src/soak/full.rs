//! Disks that are full: builds fail with words, everything else goes on, and the next build works as soon as there is room again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use api::builder::{BuildStatus, ListBuildsRequest};
use api::kiln::v1::FailureReason;
use testkit::docker_registry::DockerRegistry;
use testkit::faults::figure;
use testkit::process::{finish, run, tool};

use super::{Course, check};
use crate::scene::{Scene, Target};

/// A small file system in memory at a folder, gone when this is dropped.
struct Small(PathBuf);

impl Small {
    /// Mounts one of `megabytes` at `folder`, with what was in the folder.
    fn mount(folder: &Path, megabytes: usize) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let beside = folder.with_extension("before");
        run(Command::new("cp").arg("-a").arg(folder).arg(&beside));
        let size = format!("size={megabytes}m,mode=755");
        run(Command::new(tool("mount", "mount"))
            .args(["-t", "tmpfs", "-o", &size, "none"])
            .arg(folder));
        run(Command::new("cp")
            .arg("-a")
            .arg(beside.join("."))
            .arg(folder));
        std::fs::remove_dir_all(beside).unwrap();
        Self(folder.to_owned())
    }

    fn free_bytes(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.0).unwrap();
        disk.f_bavail * disk.f_frsize
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Workers may be about to end.
        for _ in 0..100 {
            if finish(Command::new("umount").arg(&self.0)).status.success() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// As much of a log as there is room for.
const CONFIG: &str = "[cache]\nmin_free_bytes = 0\n[limits]\nstep_log_bytes = 1000000000\n";

/// What fills a disk.
struct Case {
    part: &'static str,
    megabytes: usize,
    /// Commands of a step that fills it.
    fills: &'static str,
}

const CASES: &[Case] = &[
    // What a step writes lies in the folder of its build, and so does its log.
    Case {
        part: "builds",
        megabytes: 16,
        fills: "head -c 40000000 /dev/zero > /big",
    },
    Case {
        part: "builds",
        megabytes: 2,
        fills: "yes | head -c 8000000; sleep 60",
    },
    // The layer that is made of it has no room.
    Case {
        part: "store",
        megabytes: 8,
        fills: "head -c 12000000 /dev/urandom > /big",
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_builds_in_words_and_nothing_else() {
    assert!(
        rustix::process::geteuid().is_root(),
        "only root can mount small disks to fill"
    );
    let course = Course::of(1);
    let (mut n_cycles, mut slowest) = (0, Duration::ZERO);
    while course.goes_on(n_cycles) {
        for case in CASES {
            slowest = slowest.max(one(case, n_cycles).await);
        }
        n_cycles += 1;
    }
    figure(
        "F15",
        &[
            ("cycles", n_cycles.to_string()),
            ("parts", "builds,journals,store".to_owned()),
            ("wrong_reasons", "0".to_owned()),
            ("restarts_needed", "0".to_owned()),
            ("slowest_failure_ms", slowest.as_millis().to_string()),
            ("seconds", course.seconds()),
        ],
    );
}

async fn one(case: &Case, n: usize) -> Duration {
    let registry = DockerRegistry::start();
    let mut scene = Scene::around(registry, Target::Embedded, CONFIG);
    let base = scene.busybox();
    let warm = scene.dockerfile("warm", &format!("FROM {base}\nRUN true\n"));
    scene.build(warm).await.image();
    scene.kiln.stop();
    let small = Small::mount(&scene.kiln.state().join(case.part), case.megabytes);
    scene.kiln.start_again();
    let request = scene.dockerfile("full", &format!("FROM {base}\nRUN : {n}; {}\n", case.fills));
    let began = Instant::now();
    let said = scene.build(request).await;
    let took = began.elapsed();
    let n_free = small.free_bytes();
    let state = scene.kiln.state();
    assert!(
        said.last().status() == BuildStatus::DoneFailure,
        "{}: it succeeded, with {n_free} bytes free of {}, {}",
        case.fills,
        case.part,
        run(Command::new("du").arg("-sk").arg(state))
    );
    let message = said.failure().to_owned();
    let id = said.build_id().unwrap();
    let build = scene.kiln.build_by_id(&id).await;
    let reason = build
        .failure
        .as_ref()
        .map(api::kiln::v1::BuildFailure::reason);
    assert_eq!(
        reason,
        Some(FailureReason::OutOfDisk),
        "{}: {message}",
        case.fills
    );
    // The log says so too, to its end; and everything answers.
    let log = scene.log(&id).await;
    assert!(
        log.trim_end()
            .lines()
            .last()
            .is_some_and(|line| line.contains("failed")),
        "{}",
        log.lines().last().unwrap_or_default()
    );
    let mut client = scene.kiln.image_builder().await;
    client.list_builds(ListBuildsRequest {}).await.unwrap();
    check(&scene.kiln);
    if small.free_bytes() < 2 << 20 {
        // What is left of it: its journal. Whoever runs the server makes room.
        std::fs::remove_dir_all(scene.kiln.state().join("builds").join(&id)).unwrap();
    }
    let again = scene.dockerfile(
        "again",
        &format!("FROM {base}\nRUN echo there is room; : {n}\n"),
    );
    scene.build(again).await.image();
    scene.kiln.stop();
    drop(small);
    took
}
