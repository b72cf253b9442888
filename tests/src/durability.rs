//! Clients and servers that go away.

use std::time::Duration;

use api::builder::{BuildStatus, ListBuildsRequest, LogsRequest};
use testkit::faults;
use testkit::process::wait_for;

use crate::reader;
use crate::scene::{Scene, Target};

/// How long a step of these tests waits to be released before it gives up.
const STEP_WAITS: &str = "for i in $(seq 600); do [ -e /released ] && break; sleep 0.1; done";

/// A Dockerfile whose step says it has begun, and goes on for some seconds. Quoted so that the command itself, which is in the log
/// too, is not taken for its output.
fn slow(base: &str, seconds: u32) -> String {
    format!("FROM {base}\nRUN echo beg'un' && sleep {seconds} && echo end'ed'\n")
}

/// Waits until nothing runs any more: the end of a build is told before its worker has been seen to go.
async fn nothing_runs(scene: &Scene) {
    let mut client = scene.kiln.image_builder().await;
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let empty = async {
        loop {
            ticks.tick().await;
            let answer = client.list_builds(ListBuildsRequest {}).await.unwrap();
            if answer.into_inner().builds.is_empty() {
                return;
            }
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), empty).await;
    waited.expect("a build that has ended is still listed");
}

/// Starts a build, waits until its step has begun, and goes away.
async fn start_and_leave(scene: &Scene, request: api::builder::BuildRequest) -> String {
    let mut client = scene.kiln.image_builder().await;
    let mut stream = client.build(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    let build_id = first.info.unwrap().build_id;
    let logs = LogsRequest {
        build_id: build_id.clone(),
        ..LogsRequest::default()
    };
    let mut log = client.logs(logs).await.unwrap().into_inner();
    let mut seen = String::new();
    while !seen.contains(" begun\n") {
        let piece = tokio::time::timeout(Duration::from_secs(60), log.message()).await;
        let piece = piece.unwrap().unwrap().expect("the log ended too early");
        seen.push_str(&String::from_utf8_lossy(&piece.content));
    }
    build_id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_does_not_stop_its_build() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let request = scene.dockerfile("slow", &slow(&base, 2));
    let build_id = start_and_leave(&scene, request.clone()).await;
    let log = scene.log(&build_id).await;
    assert!(log.contains(" ended\n"), "{log}");
    let again = scene.build(request).await;
    assert_eq!(again.responses.len(), 1, "it was built a second time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_finds_its_build_and_its_log_again() {
    let mut scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let request = scene.dockerfile("slow", &slow(&base, 3));
    let build_id = start_and_leave(&scene, request.clone()).await;
    scene.kiln.kill();
    scene.kiln.start_again();
    let log = scene.log(&build_id).await;
    assert!(
        log.contains(" begun\n") && log.contains(" ended\n"),
        "{log}"
    );
    assert_eq!(log.matches(" begun\n").count(), 1, "{log}");
    nothing_runs(&scene).await;
    // The whole log is still there after another restart.
    scene.kiln.start_again();
    assert_eq!(scene.log(&build_id).await, log);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_ends_its_build_in_words() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let request = scene.dockerfile("slow", &slow(&base, 60));
    let mut client = scene.kiln.image_builder().await;
    let mut stream = client.build(request.clone()).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    let build_id = first.info.unwrap().build_id;
    let lock = scene
        .kiln
        .state()
        .join("builds")
        .join(&build_id)
        .join("lock");
    let pid = wait_for("the worker", Duration::from_secs(30), || {
        std::fs::read_to_string(&lock)
            .ok()?
            .trim()
            .parse::<u32>()
            .ok()
    });
    testkit::process::run(std::process::Command::new("kill").args(["-KILL", &pid.to_string()]));
    let mut last = None;
    while let Some(response) = stream.message().await.unwrap() {
        last = Some(response);
    }
    let last = last.unwrap();
    assert_eq!(last.status(), BuildStatus::DoneFailure);
    assert!(last.message.contains("worker"), "{}", last.message);
    nothing_runs(&scene).await;
}

/// Kills the worker of a build, and returns its process id.
fn kill_worker(folder: &std::path::Path, but_not: Option<u32>) -> u32 {
    let pid = wait_for("the worker", Duration::from_secs(30), || {
        let text = std::fs::read_to_string(folder.join("lock")).ok()?;
        let pid = text.trim().parse::<u32>().ok()?;
        (Some(pid) != but_not).then_some(pid)
    });
    testkit::process::run(std::process::Command::new("kill").args(["-KILL", &pid.to_string()]));
    pid
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_whose_worker_is_killed_begins_again_as_often_as_is_configured() {
    let config = "[server]\nretries_of_lost_workers = 2\n";
    let registry = testkit::docker_registry::DockerRegistry::start();
    let scene = Scene::around(registry, Target::Embedded, config);
    let base = scene.busybox();
    let dockerfile = format!(
        "FROM {base}\nRUN echo first && echo beg'un'\nRUN echo {{1..3}} && sleep 4 && echo end'ed'\n"
    );
    let request = scene.dockerfile("lost", &dockerfile);
    let mut client = scene.kiln.image_builder().await;
    let mut stream = client.build(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    let build_id = first.info.unwrap().build_id;
    let folder = scene.kiln.state().join("builds").join(&build_id);
    let journal_has = |what: &str, times: usize| {
        wait_for(what, Duration::from_secs(60), || {
            let text = std::fs::read(folder.join("journal")).ok()?;
            let text = String::from_utf8_lossy(&text).into_owned();
            (text.matches(what).count() >= times).then_some(())
        });
    };
    // Somebody reads along from before.
    let reader = scene.log(&build_id);
    let kills = async {
        journal_has("] RUN echo {1..3}", 1);
        let one = kill_worker(&folder, None);
        journal_has("\"begun_again\"", 1);
        journal_has("] RUN echo {1..3}", 2);
        kill_worker(&folder, Some(one));
    };
    let (log, ()) = tokio::join!(reader, kills);
    let mut last = None;
    while let Some(response) = stream.message().await.unwrap() {
        last = Some(response);
    }
    assert_eq!(last.unwrap().status(), BuildStatus::DoneSuccess, "{log}");
    assert_eq!(
        log.matches("the worker was killed; the build begins again")
            .count(),
        2,
        "{log}"
    );
    assert_eq!(log.matches(" ended\n").count(), 1, "{log}");
    assert_eq!(scene.log(&build_id).await, log);
    nothing_runs(&scene).await;
    // What it has left goes after its end is told.
    wait_for("its scratch to go", Duration::from_secs(10), || {
        (!folder.join("work").exists()).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_whose_workers_are_killed_too_often_or_that_was_cancelled_does_not_begin_again() {
    let config = "[server]\nretries_of_lost_workers = 1\n";
    let registry = testkit::docker_registry::DockerRegistry::start();
    let mut scene = Scene::around(registry, Target::Embedded, config);
    let base = scene.busybox();
    let request = scene.dockerfile("slow", &slow(&base, 60));
    let build_id = start_and_leave(&scene, request).await;
    let folder = scene.kiln.state().join("builds").join(&build_id);
    let one = kill_worker(&folder, None);
    kill_worker(&folder, Some(one));
    let log = scene.log(&build_id).await;
    assert_eq!(log.matches("the build begins again").count(), 1, "{log}");
    assert!(log.contains("build failed: the worker"), "{log}");
    nothing_runs(&scene).await;

    // Who was asked to end, and is killed before it has, is not asked twice; also not by a server that has found the build.
    for (name, is_found) in [("stubborn", false), ("found", true)] {
        let request = scene.dockerfile(name, &slow(&base, 61));
        let build_id = start_and_leave(&scene, request).await;
        if is_found {
            scene.kiln.start_again();
        }
        let folder = scene.kiln.state().join("builds").join(&build_id);
        let text = std::fs::read_to_string(folder.join("lock")).unwrap();
        let signal = |name: &str| {
            let mut kill = std::process::Command::new("kill");
            testkit::process::run(kill.args([name, text.trim()]));
        };
        signal("-STOP");
        let mut native = scene.kiln.native().await;
        let cancel = api::kiln::v1::CancelBuildRequest {
            build_id: build_id.clone(),
        };
        native.cancel_build(cancel).await.unwrap();
        signal("-KILL");
        let log = scene.log(&build_id).await;
        assert!(!log.contains("begins again"), "{log}");
        assert!(log.ends_with("build was cancelled\n"), "{log}");
        nothing_runs(&scene).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_that_is_not_durable_is_not_told_as_one() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let request = scene.dockerfile("forgotten", &slow(&base, 4));
    let mut client = scene.kiln.image_builder().await;
    let mut stream = client.build(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap();
    let build_id = first.info.unwrap().build_id;
    let folder = scene.kiln.state().join("builds").join(&build_id);
    let (server, journal) = (scene.kiln.id().unwrap(), folder.join("journal"));
    let failing = faults::attach(server, "fdatasync", &journal, "EIO");
    let mut last = None;
    while let Some(response) = stream.message().await.unwrap() {
        last = Some(response);
    }
    let last = last.unwrap();
    assert_eq!(last.status(), BuildStatus::DoneFailure);
    assert!(
        last.message.contains("not certain to be remembered"),
        "{}",
        last.message
    );
    // Whoever reads is told the same, and that the step went well.
    let log = scene.log(&build_id).await;
    assert!(log.contains(" ended\n"), "{log}");
    assert!(log.contains("not certain to be remembered"), "{log}");
    drop(failing);
    nothing_runs(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_cannot_be_accepted_has_the_same_end_after_a_restart() {
    let mut scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    // Makes the folder of all builds.
    scene
        .build(scene.dockerfile("first", &slow(&base, 0)))
        .await;
    let (server, builds) = (scene.kiln.id().unwrap(), scene.kiln.state().join("builds"));
    let failing = faults::attach(server, "fsync", &builds, "EIO");
    let said = scene
        .build(scene.dockerfile("refused", &slow(&base, 60)))
        .await;
    let (failure, build_id) = (said.failure(), said.build_id().unwrap());
    assert!(failure.contains("durable"), "{failure}");
    let log = scene.log(&build_id).await;
    drop(failing);
    scene.kiln.start_again();
    let again = scene.log(&build_id).await;
    assert!(log.contains("durable"), "{log}");
    assert_eq!(again, log);
    nothing_runs(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn identical_builds_at_the_same_time_are_one_build() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let request = scene.dockerfile("slow", &slow(&base, 2));
    let build_id = start_and_leave(&scene, request.clone()).await;
    let joined = scene.build(request).await;
    assert_eq!(joined.build_id().as_deref(), Some(build_id.as_str()));
    assert!(reader::digest(&joined.image(), None).starts_with("sha256:"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_subscriber_gets_every_byte() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let dockerfile = format!("FROM {base}\nRUN echo beg'un' && seq 2000 && sleep 1 && seq 2000\n");
    let request = scene.dockerfile("loud", &dockerfile);
    let build_id = start_and_leave(&scene, request).await;
    let (one, two) = tokio::join!(scene.log(&build_id), scene.log(&build_id));
    assert_eq!(one, two);
    assert_eq!(one, scene.log(&build_id).await);
    assert_eq!(one.matches(" 1999\n").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_takes_too_long_is_ended() {
    let registry = testkit::docker_registry::DockerRegistry::start();
    let scene = Scene::around(registry, Target::Embedded, "[limits]\nwall_time_s = 5\n");
    let base = scene.busybox();
    let dockerfile = format!("FROM {base}\nRUN {STEP_WAITS}\n");
    let said = scene.build(scene.dockerfile("stuck", &dockerfile)).await;
    assert!(
        said.failure().starts_with("build failed: timed out after"),
        "{}",
        said.failure()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_can_be_cancelled() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let request = scene.dockerfile("slow", &slow(&base, 60));
    let build_id = start_and_leave(&scene, request).await;
    let mut native = scene.kiln.native().await;
    let cancel = api::kiln::v1::CancelBuildRequest {
        build_id: build_id.clone(),
    };
    native.cancel_build(cancel).await.unwrap();
    let log = scene.log(&build_id).await;
    assert!(log.contains("cancelled"), "{log}");
    nothing_runs(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_on_a_server_is_cancelled_by_the_command() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let request = scene.dockerfile("slow", &slow(&base, 60));
    let id = start_and_leave(&scene, request).await;
    let folder = scene.kiln.state().join("builds").join(&id);
    let worker = std::fs::read_to_string(folder.join("lock")).unwrap();
    let worker = std::path::Path::new("/proc").join(worker.trim());
    assert!(worker.exists());
    let cancel = |id: &str| {
        let mut command = testkit::process::clean_command(testkit::kiln::binary());
        let server = ["--server", scene.kiln.host()];
        testkit::process::finish(command.args(["cancel", id]).args(server))
    };
    assert!(cancel(&id).status.success());
    let begun = std::time::Instant::now();
    while worker.exists() {
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "the worker goes on"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let log = scene.log(&id).await;
    assert!(log.contains("cancelled"), "{log}");
    assert!(cancel(&id).status.success(), "it has ended");
    let unknown = cancel(&"a".repeat(id.len()));
    assert_eq!(unknown.status.code(), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_waits_survives_a_server_that_is_killed() {
    let config = "[server]\nmax_running_builds = 1\n";
    let registry = testkit::docker_registry::DockerRegistry::start();
    let mut scene = Scene::around(registry, Target::Embedded, config);
    let base = scene.busybox();
    let first = scene.dockerfile("first", &slow(&base, 4));
    let first = start_and_leave(&scene, first).await;
    let mut client = scene.kiln.image_builder().await;
    let mut waiting = Vec::new();
    // Not the same step: it would come from the cache.
    for (name, seconds) in [("second", 1), ("third", 2)] {
        let request = scene.dockerfile(name, &slow(&base, seconds));
        let mut stream = client.build(request).await.unwrap().into_inner();
        let told = stream.message().await.unwrap().unwrap();
        waiting.push(told.info.unwrap().build_id);
    }
    let folder = |id: &str| scene.kiln.state().join("builds").join(id);
    let (one, two) = (folder(&waiting[0]), folder(&waiting[1]));
    assert!(one.join("turn").exists() && two.join("turn").exists());
    scene.kiln.kill();
    scene.kiln.start_again();
    for id in [&first, &waiting[0], &waiting[1]] {
        let log = scene.log(id).await;
        assert_eq!(log.matches(" ended\n").count(), 1, "{log}");
        assert_eq!(log.contains("waiting for its turn"), *id != first, "{log}");
    }
    nothing_runs(&scene).await;
    // One after the other, in the order in which they came.
    let ended = |folder: &std::path::Path| {
        let journal = std::fs::metadata(folder.join("journal")).unwrap();
        journal.modified().unwrap()
    };
    assert!(ended(&one) < ended(&two));
}
