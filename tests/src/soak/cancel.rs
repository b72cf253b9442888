//! Builds that are cancelled at the worst moments, of which nothing may be left soon after.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use api::kiln::v1 as wire;
use testkit::figures::{Figures, Goal};

use super::{Course, Ledger, check, number, percentile};
use crate::endings::begun;
use crate::scene::{Scene, Target};

/// What F16 wants.
const GONE_MS: Goal = Goal::AtMost(2000.0);
const BACK_MS: Goal = Goal::AtMost(10_000.0);
/// Longer than anything takes that does not go wrong.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells how many processes have a word among their arguments.
fn n_processes(word: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let arguments = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    arguments
        .filter(|arguments| String::from_utf8_lossy(arguments).contains(word))
        .count()
}

/// Cancels a build; returns how long its processes and its scratch files were still there.
async fn cancelled(scene: &Scene, id: &str, word: &str) -> (Duration, Duration) {
    let folder = scene.kiln.state().join("builds").join(id);
    let worker = std::fs::read_to_string(folder.join("lock")).unwrap();
    let worker = Path::new("/proc").join(worker.trim());
    assert!(worker.exists(), "there is no worker to cancel");
    let mut client = scene.kiln.native().await;
    let begun = Instant::now();
    let request = wire::CancelBuildRequest {
        build_id: id.to_owned(),
    };
    client.cancel_build(request).await.unwrap();
    let mut times = (None, None);
    while times.0.is_none() || times.1.is_none() {
        if times.0.is_none() && n_processes(word) == 0 {
            times.0 = Some(begun.elapsed());
        }
        // Its worker stays as long as there is something to be removed.
        if times.1.is_none() && !folder.join("work").exists() && !worker.exists() {
            times.1 = Some(begun.elapsed());
        }
        assert!(begun.elapsed() < PATIENCE, "{word}: {times:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let build = scene.kiln.build_by_id(id).await;
    assert_eq!(
        build.failure.unwrap().reason(),
        wire::FailureReason::Cancelled
    );
    (times.0.unwrap(), times.1.unwrap())
}

/// Returns what is built: something to push, something that is never pulled, and what makes it hard to end.
fn dockerfiles(base: &str, nobody: SocketAddr) -> [String; 5] {
    let push = format!("FROM {base}\nRUN echo x > /x\n");
    let pull = format!("FROM {nobody}/never/answers:1\n");
    let stubborn = format!(
        "FROM {base}\nRUN trap '' TERM INT HUP; for i in $(seq 20); do (trap '' TERM; exec setsid sleep 98761) & done; \
         dd if=/dev/zero of=/large bs=1M count=300 2>/dev/null; for i in $(seq 5000); do echo $i > /f$i; done; echo beg'un'; wait\n"
    );
    let busy = format!(
        "FROM {base}\nRUN for i in $(seq 8); do (while :; do sleep 0.98763; done) & done; echo beg'un'; wait\n"
    );
    let loud = format!("FROM {base}\nRUN echo beg'un'; yes 98762 98762 98762\n");
    [push, pull, stubborn, busy, loud]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_build_leaves_nothing_behind_whatever_it_was_at() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    // Somebody who accepts connections and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = silent.local_addr().unwrap();
    let repository = |name: &str, dockerfile: &str| {
        let file = testkit::git_server::File::new("Dockerfile", dockerfile);
        scene.git.repository(name).commit("main", &[file]);
        scene.git.url(name)
    };
    let [push, pull, stubborn, busy, loud] = dockerfiles(&base, nobody);
    // What it is at, where its source is, what its journal has then, and what stands in the commands of its processes.
    let moments = [
        (
            "stubborn",
            repository("stubborn", &stubborn),
            "begun\n",
            "98761",
        ),
        ("busy", repository("busy", &busy), "begun\n", "98763"),
        ("loud", repository("loud", &loud), "begun\n", "98762"),
        (
            "pull",
            repository("pull", &pull),
            "context_ready",
            "never/answers",
        ),
        (
            "push",
            repository("push", &push),
            "\"pushing\"",
            "98765/push",
        ),
        (
            "git",
            format!("http://{nobody}/app.git"),
            "\"resolving\"",
            "98764/app.git",
        ),
    ];
    let unanswered = format!("{nobody}/never/takes:1");
    let before = Ledger::of(&scene.kiln);
    let course = Course::of(moments.len());
    let (mut gone, mut back) = (Vec::new(), Vec::new());
    while course.goes_on(gone.len()) {
        let (name, url, ready, word) = &moments[gone.len() % moments.len()];
        let publish = (*name == "push").then_some(unanswered.as_str());
        let id = begun(&scene, (url, publish), |text| text.contains(ready)).await;
        let (processes, disk) = cancelled(&scene, &id, word).await;
        gone.push(u64::try_from(processes.as_millis()).unwrap());
        back.push(u64::try_from(disk.as_millis()).unwrap());
    }
    check(&scene.kiln);
    Ledger::settles(&before, &scene.kiln).await;
    let mut figures = Figures::of("F16");
    figures.told("builds cancelled", number(gone.len() as u64));
    figures.must(
        "processes of steps gone, p99 ms",
        percentile(&mut gone, 99),
        GONE_MS,
    );
    figures.must(
        "disk returned and worker gone, p99 ms",
        percentile(&mut back, 99),
        BACK_MS,
    );
    figures.hold();
}
