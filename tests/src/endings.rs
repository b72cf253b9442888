//! How builds end before their time: cancelled at the worst moment, measured; and made once more.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use api::kiln::v1 as wire;
use testkit::kiln::binary;
use testkit::process::{clean_command, finish};

use crate::command::Ended;
use crate::scene::{BUILD_TIMEOUT, Scene, Target};

/// What F16 allows.
const PROCESSES_GONE: Duration = Duration::from_secs(2);
const DISK_BACK: Duration = Duration::from_secs(10);

/// Tells how many processes have a word among their arguments.
fn n_processes(word: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let arguments = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    arguments
        .filter(|arguments| String::from_utf8_lossy(arguments).contains(word))
        .count()
}

fn files_request(url: &str, publish: Option<&str>) -> wire::StartBuildRequest {
    use api::contentservice::{
        CloneTargetMode, GitInitializer, WorkspaceInitializer, workspace_initializer,
    };
    let git = GitInitializer {
        remote_uri: url.to_owned(),
        target_mode: CloneTargetMode::RemoteBranch.into(),
        clone_taget: "main".to_owned(),
        ..GitInitializer::default()
    };
    let workspace = WorkspaceInitializer {
        spec: Some(workspace_initializer::Spec::Git(git)),
    };
    let output = publish.map(|name| wire::BuildOutput {
        kind: Some(wire::build_output::Kind::Publish(name.to_owned())),
    });
    wire::StartBuildRequest {
        outputs: output.into_iter().collect(),
        files: Some(wire::BuildFiles {
            from: Some(wire::build_files::From::Workspace(workspace)),
        }),
        auth: Some(api::builder::BuildRegistryAuth {
            mode: Some(api::builder::build_registry_auth::Mode::Total(
                api::builder::BuildRegistryAuthTotal { allow_all: true },
            )),
            ..api::builder::BuildRegistryAuth::default()
        }),
        ..wire::StartBuildRequest::default()
    }
}

/// Starts a build and waits until it is at what it is to be cancelled at.
async fn begun(
    scene: &Scene,
    (url, publish): (&str, Option<&str>),
    ready: impl Fn(&str) -> bool,
) -> String {
    let mut client = scene.kiln.native().await;
    let request = Box::pin(client.start_build(files_request(url, publish)));
    let id = request.await.unwrap().into_inner().build.unwrap().build_id;
    let journal = scene.kiln.state().join("builds").join(&id).join("journal");
    let waited = async {
        loop {
            let text = std::fs::read(&journal).unwrap_or_default();
            if ready(&String::from_utf8_lossy(&text)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(BUILD_TIMEOUT, waited).await.unwrap();
    id
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
        if times.0.is_none() && !worker.exists() && n_processes(word) == 0 {
            times.0 = Some(begun.elapsed());
        }
        if times.1.is_none() && !folder.join("work").exists() {
            times.1 = Some(begun.elapsed());
        }
        assert!(begun.elapsed() < 2 * DISK_BACK, "{word}: {times:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let request = wire::GetBuildRequest {
        build_id: id.to_owned(),
    };
    let build = client
        .get_build(request)
        .await
        .unwrap()
        .into_inner()
        .build
        .unwrap();
    assert_eq!(
        build.failure.unwrap().reason(),
        wire::FailureReason::Cancelled
    );
    (times.0.unwrap(), times.1.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_cancelled_before_its_worker_listens_is_cancelled_and_not_lost() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let text = format!("FROM {base}\nRUN sleep 98763\n");
    let file = testkit::git_server::File::new("Dockerfile", text);
    scene.git.repository("early").commit("main", &[file]);
    let url = scene.git.url("early");
    let mut client = scene.kiln.native().await;
    for n in 0..8 {
        let request = Box::pin(client.start_build(files_request(&url, None)));
        let build_id = request.await.unwrap().into_inner().build.unwrap().build_id;
        tokio::time::sleep(Duration::from_millis(4 * n)).await;
        let build_id = || build_id.clone();
        let cancel = wire::CancelBuildRequest {
            build_id: build_id(),
        };
        client.cancel_build(cancel).await.unwrap();
        let ended = async {
            loop {
                let get = wire::GetBuildRequest {
                    build_id: build_id(),
                };
                let build = client.get_build(get).await.unwrap().into_inner().build;
                if let Some(failure) = build.unwrap().failure {
                    return failure;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let failure = tokio::time::timeout(BUILD_TIMEOUT, ended).await.unwrap();
        assert_eq!(
            failure.reason(),
            wire::FailureReason::Cancelled,
            "after {} ms: {}",
            4 * n,
            failure.message
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_a_lost_build_hears_its_end_as_soon_as_it_can_be_written() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let text = format!("FROM {base}\nRUN echo beg'un'; sleep 98760\n");
    let file = testkit::git_server::File::new("Dockerfile", text);
    scene.git.repository("lost").commit("main", &[file]);
    let url = scene.git.url("lost");
    let id = begun(&scene, (&url, None), |text| text.contains("begun\n")).await;
    let folder = scene.kiln.state().join("builds").join(&id);
    let aside = folder.with_extension("aside");
    let worker = std::fs::read_to_string(folder.join("lock")).unwrap();
    // Nothing can be written to the build for a second, and in that its worker is lost.
    std::fs::rename(&folder, &aside).unwrap();
    let pid = rustix::process::Pid::from_raw(worker.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    std::fs::rename(&aside, &folder).unwrap();
    let log = tokio::time::timeout(BUILD_TIMEOUT, scene.log(&id)).await;
    assert!(log.unwrap().contains("begun"));
    let mut client = scene.kiln.native().await;
    let get = wire::GetBuildRequest { build_id: id };
    let build = client.get_build(get).await.unwrap().into_inner().build;
    let failure = build.unwrap().failure.unwrap();
    assert_eq!(failure.reason(), wire::FailureReason::WorkerLost);
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
    let stubborn = format!(
        "FROM {base}\nRUN trap '' TERM INT HUP; for i in $(seq 20); do (trap '' TERM; exec setsid sleep 98761) & done; \
         dd if=/dev/zero of=/large bs=1M count=300 2>/dev/null; for i in $(seq 5000); do echo $i > /f$i; done; echo beg'un'; wait\n"
    );
    let loud = format!("FROM {base}\nRUN echo beg'un'; yes 98762 98762 98762\n");
    let pulling = format!("FROM {nobody}/never/answers:1\n");
    let has_begun = |text: &str| text.contains("begun\n");
    let resolves = |text: &str| text.contains("\"resolving\"");
    let unanswered = format!("{nobody}/never/takes:1");
    let pushes = |text: &str| text.contains("\"pushing\"");
    let fetches = |text: &str| text.contains("planning") || text.contains("context_ready");
    let mut worst = (Duration::ZERO, Duration::ZERO);
    for (name, url, ready, word) in [
        (
            "stubborn",
            repository("stubborn", &stubborn),
            &has_begun as &dyn Fn(&str) -> bool,
            "98761",
        ),
        ("loud", repository("loud", &loud), &has_begun, "98762"),
        (
            "base",
            repository("base", &pulling),
            &fetches,
            "never/answers",
        ),
        (
            "push",
            repository("push", &format!("FROM {base}\nRUN echo x > /x\n")),
            &pushes,
            "98765/push",
        ),
        (
            "git",
            format!("http://{nobody}/app.git"),
            &resolves,
            "98764/app.git",
        ),
    ] {
        let publish = (name == "push").then_some(unanswered.as_str());
        let id = begun(&scene, (&url, publish), ready).await;
        let (gone, back) = cancelled(&scene, &id, word).await;
        eprintln!(
            "F16 cancelled={name} processes_gone_ms={} disk_back_ms={}",
            gone.as_millis(),
            back.as_millis()
        );
        worst = (worst.0.max(gone), worst.1.max(back));
    }
    assert!(
        worst.0 <= PROCESSES_GONE && worst.1 <= DISK_BACK,
        "{worst:?}"
    );
}

#[test]
fn the_command_lists_inspects_and_makes_once_more_what_a_server_has_built() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let dockerfile = format!(
        "FROM {base}\nRUN --mount=type=secret,id=token test \"$(cat /run/secrets/token)\" = right && echo was ri'ght'\n"
    );
    let file = testkit::git_server::File::new("Dockerfile", dockerfile);
    scene.git.repository("app").commit("main", &[file]);
    let url = format!("{}#main", scene.git.url("app"));
    let home = testkit::scratch::Scratch::new();
    let kiln = |arguments: &[&str]| {
        let mut command = clean_command(binary());
        command
            .current_dir(home.path())
            .env("HOME", home.path())
            .env("KILN_SERVER", scene.kiln.host())
            .args(arguments);
        Ended::of(finish(&mut command))
    };
    home.write("wrong", "wrong");
    home.write("right", "right");
    kiln(&[
        "build",
        "--secret",
        "id=token,src=wrong",
        "--request-label",
        "run=1",
        "-t",
        "app",
        &url,
    ])
    .with(1, &["exit code: 1"]);
    let text = |ended: Ended| String::from_utf8(ended.well().stdout).unwrap();
    assert!(!text(kiln(&["ls"])).contains("/builds/app"));
    let listed = text(kiln(&[
        "ls",
        "--all",
        "--filter",
        "label=run=1",
        "-o",
        "json",
    ]));
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["failure"]["reason"], "dockerfile");
    let id = listed["id"].as_str().unwrap();
    let told = text(kiln(&["inspect", id]));
    assert!(
        told.contains("failed (dockerfile)") && told.contains("run=1"),
        "{told}"
    );
    assert!(text(kiln(&["history"])).contains("dockerfile"));
    assert!(text(kiln(&["logs", id])).contains("did not complete"));
    kiln(&["retry", id]).with(3, &["secrets token"]);
    // A retry that fails ends as its build does.
    kiln(&["retry", "-f", "--secret", "id=token,src=wrong", id]).with(1, &[]);
    let ended = kiln(&["retry", "-f", "--secret", "id=token,src=right", id]);
    let said = text(ended);
    let again = said.lines().next().unwrap();
    assert!(said.contains("was right"), "{said}");
    let told = text(kiln(&["inspect", again]));
    assert!(told.contains(&format!("kiln.retry-of={id}")), "{told}");
    assert!(told.contains("/builds/app:latest"), "{told}");
}
