//! How builds end before their time: cancelled at the worst moment, measured; and made once more.

use std::time::Duration;

use api::kiln::v1 as wire;
use testkit::kiln::binary;
use testkit::process::{clean_command, finish};

use crate::command::Ended;
use crate::scene::{BUILD_TIMEOUT, Scene, Target};

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
pub(crate) async fn begun(
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
        let cancel = wire::CancelBuildRequest {
            build_id: build_id.clone(),
        };
        client.cancel_build(cancel).await.unwrap();
        let ended = async {
            loop {
                let build = scene.kiln.build_by_id(&build_id).await;
                if let Some(failure) = build.failure {
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
    let build = scene.kiln.build_by_id(&id).await;
    let failure = build.failure.unwrap();
    assert_eq!(failure.reason(), wire::FailureReason::WorkerLost);
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
