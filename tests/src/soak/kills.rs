//! Servers and workers that are killed at random moments.

use std::time::{Duration, Instant};

use api::builder::BuildStatus;
use api::kiln::v1::{Build, BuildPhase, FailureReason, GetLogRequest, LogForm};
use testkit::faults::{Dice, figure};

use super::{Course, Ledger, check};
use crate::scene::{Scene, Target};

/// Lines that a step writes, and how many between two pauses.
const LINES: usize = 600;
const AT_ONCE: usize = 20;
/// How long a build may go on after everything was killed that is.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Sums {
    n_builds: usize,
    n_server_kills: usize,
    n_worker_kills: usize,
    n_bytes: usize,
    restart_ms: Vec<u128>,
}

/// Who is killed while a build goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Server,
    Worker,
    /// The server and then, while nobody waits for it, the worker.
    Both,
}

/// What a build's step writes, as it has to arrive.
fn expected() -> String {
    let lines: Vec<String> = (0..LINES).map(|n| format!("line {n}\n")).collect();
    lines.concat()
}

fn dockerfile(base: &str, nonce: u64) -> String {
    format!(
        "FROM {base}\nRUN i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); \
         [ $((i % {AT_ONCE})) = 0 ] && sleep 0.05; done; : {nonce}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn no_byte_and_no_build_is_lost_whoever_is_killed() {
    let mut scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let seed = u64::from(std::process::id());
    let mut dice = Dice::new(seed);
    // The first build pulls the base and makes what is made once.
    let first = scene.dockerfile("first", &format!("FROM {base}\nRUN true\n"));
    scene.build(first).await.image();
    let before = Ledger::of(&scene.kiln);
    let course = Course::of(4);
    let mut sums = Sums::default();
    while course.goes_on(sums.n_builds) {
        let victim = match sums.n_builds % 4 {
            2 => Victim::Both,
            3 => Victim::Worker,
            _ => Victim::Server,
        };
        one_build(&mut scene, &base, &mut dice, victim, &mut sums).await;
        sums.n_builds += 1;
        if sums.n_builds.is_multiple_of(10) {
            check(&scene.kiln);
        }
    }
    check(&scene.kiln);
    Ledger::settles(&before, &scene.kiln).await;
    let slowest = sums.restart_ms.iter().max().copied().unwrap_or_default();
    figure(
        "F5",
        &[
            ("lost_bytes", "0".to_owned()),
            ("bytes", sums.n_bytes.to_string()),
            ("server_kills", sums.n_server_kills.to_string()),
            ("seed", seed.to_string()),
        ],
    );
    figure(
        "F7",
        &[
            ("restart_ms_max", slowest.to_string()),
            ("restarts", sums.restart_ms.len().to_string()),
        ],
    );
    figure(
        "F11",
        &[
            ("builds", sums.n_builds.to_string()),
            ("server_kills", sums.n_server_kills.to_string()),
            ("worker_kills", sums.n_worker_kills.to_string()),
            ("wrong_reasons", "0".to_owned()),
            ("invariant_breaks", "0".to_owned()),
            ("leaks", "0".to_owned()),
            ("seconds", course.seconds()),
        ],
    );
}

/// Starts a build, reads its log, and kills the server some times, or its worker once, while it goes on.
async fn one_build(
    scene: &mut Scene,
    base: &str,
    dice: &mut Dice,
    victim: Victim,
    sums: &mut Sums,
) {
    let id = begin(scene, base, dice.below(u64::MAX)).await;
    let mut log = Vec::new();
    let n_kills = match victim {
        Victim::Server => 1 + dice.below(3),
        Victim::Worker | Victim::Both => 1,
    };
    let mut has_ended = false;
    for _ in 0..n_kills {
        let after = Duration::from_millis(dice.below(1200));
        has_ended = read(scene, &id, &mut log, Some(after)).await;
        if has_ended {
            break;
        }
        if victim != Victim::Worker {
            scene.kiln.kill();
            sums.n_server_kills += 1;
        }
        if victim != Victim::Server {
            sums.n_worker_kills += usize::from(kill_worker(scene, &id));
        }
        if victim != Victim::Worker {
            let began = Instant::now();
            scene.kiln.start_again();
            sums.restart_ms.push(began.elapsed().as_millis());
        }
    }
    if !has_ended {
        assert!(
            read(scene, &id, &mut log, None).await,
            "the log does not end"
        );
    }
    let written: String = String::from_utf8(log).unwrap();
    let lines: String = written
        .split_inclusive('\n')
        .filter(|line| line.starts_with("line "))
        .collect();
    sums.n_bytes += lines.len();
    let build = ended(scene, &id).await;
    match build.phase() {
        BuildPhase::Succeeded => assert!(
            lines == expected(),
            "{id}: {} bytes instead of {}",
            lines.len(),
            expected().len()
        ),
        BuildPhase::Failed if victim != Victim::Server => {
            let failure = build.failure.unwrap();
            assert_eq!(
                failure.reason(),
                FailureReason::WorkerLost,
                "{id}: {}",
                failure.message
            );
            assert!(
                expected().starts_with(lines.trim_end_matches(|c| c != '\n')),
                "{id}: {lines}"
            );
        }
        other => panic!("{id}: it ended as {other:?}: {}", build.message),
    }
}

/// Starts a build and goes away.
async fn begin(scene: &Scene, base: &str, nonce: u64) -> String {
    let request = scene.dockerfile(&format!("app{nonce}"), &dockerfile(base, nonce));
    let mut client = scene.kiln.image_builder().await;
    let mut stream = client.build(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    assert_ne!(
        first.status(),
        BuildStatus::DoneFailure,
        "{}",
        first.message
    );
    first.info.unwrap().build_id
}

/// Waits until a build has ended, which is told a moment after its log.
async fn ended(scene: &Scene, id: &str) -> Build {
    let began = Instant::now();
    loop {
        let build = scene.kiln.build_by_id(id).await;
        if build.ended_at_ms > 0 {
            return build;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "{id}: it is {:?} for ever",
            build.phase()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads the log from where `log` ends, for so long or until it ends; tells whether it has.
async fn read(scene: &Scene, id: &str, log: &mut Vec<u8>, time: Option<Duration>) -> bool {
    let mut native = scene.kiln.native().await;
    let request = GetLogRequest {
        build_id: id.to_owned(),
        offset: log.len() as u64,
        form: LogForm::Raw.into(),
        follow: true,
        ..GetLogRequest::default()
    };
    let mut stream = native.get_log(request).await.unwrap().into_inner();
    let reading = async {
        while let Some(piece) = stream.message().await.unwrap() {
            assert_eq!(
                piece.offset,
                log.len() as u64,
                "{id}: a piece in the wrong place"
            );
            log.extend(piece.content);
        }
    };
    tokio::time::timeout(time.unwrap_or(PATIENCE), reading)
        .await
        .is_ok()
}

/// Kills the worker of a build; tells whether there was one.
fn kill_worker(scene: &Scene, id: &str) -> bool {
    let lock = scene.kiln.state().join("builds").join(id).join("lock");
    let pid = std::fs::read_to_string(lock).ok();
    let pid = pid.and_then(|text| rustix::process::Pid::from_raw(text.trim().parse().ok()?));
    pid.is_some_and(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok())
}
