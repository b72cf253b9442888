//! What a caller is told: codes and texts of the published API, failed steps, syntax errors.
//!
//! The registry misbehaves in front of the real one: what is tested is what the caller hears of it, after all retries.

use api::builder::{
    BuildRequest, BuildStatus, LogsRequest, ResolveBaseImageRequest, ResolveWorkspaceImageRequest,
};
use testkit::bases;
use testkit::docker_registry::DockerRegistry;
use testkit::git_server::{File, GitServer};
use testkit::kiln::Kiln;
use testkit::proxy::{Action, Bearer, Proxy, Rule};
use tonic::Code;

use crate::scene::{Scene, Target, all_credentials, build, reference_request, set_password};

async fn resolve(kiln: &Kiln, reference: &str) -> Result<String, (Code, String)> {
    let request = ResolveBaseImageRequest {
        r#ref: reference.to_owned(),
        auth: Some(all_credentials()),
        use_retry_client: true,
    };
    let answer = kiln.image_builder().await.resolve_base_image(request).await;
    match answer {
        Ok(answer) => Ok(answer.into_inner().r#ref),
        Err(status) => Err((status.code(), status.message().to_owned())),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_image_is_resolved_to_its_digest() {
    let scene = Scene::start(Target::Embedded);
    let base = bases::busybox();
    let name = scene.busybox();
    let (repository, _) = name.rsplit_once(':').unwrap();
    let resolved = resolve(&scene.kiln, &name).await.unwrap();
    assert_eq!(resolved, format!("{repository}@{}", base.digest()));
    assert_eq!(resolve(&scene.kiln, &resolved).await.unwrap(), resolved);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_says_decides_the_code() {
    let registry = DockerRegistry::start();
    let name = "base/busybox:1";
    bases::busybox().push(registry.host(), name, None);
    let kiln = Kiln::start();
    let manifests = |action| Rule::new("/manifests/", action);
    let retry_after_s = 0;
    for (what, rule, code) in [
        ("401", manifests(Action::Status(401)), Code::Unauthenticated),
        ("403", manifests(Action::Status(403)), Code::Unauthenticated),
        ("404", manifests(Action::Status(404)), Code::NotFound),
        (
            "429 for good",
            manifests(Action::TooManyRequests { retry_after_s }),
            Code::Unavailable,
        ),
        (
            "500 for good",
            manifests(Action::Status(500)),
            Code::Unavailable,
        ),
        (
            "a reset connection",
            manifests(Action::Disconnect),
            Code::Unavailable,
        ),
        (
            "a wrong digest",
            manifests(Action::Flip { at_byte: 20 }),
            Code::Unavailable,
        ),
        (
            "a truncated body",
            manifests(Action::Truncate { after_bytes: 10 }),
            Code::Unavailable,
        ),
    ] {
        let proxy = Proxy::in_front_of(registry.host());
        proxy.rule(rule);
        let (got, message) = resolve(&kiln, &format!("{}/{name}", proxy.host()))
            .await
            .unwrap_err();
        assert_eq!(got, code, "{what}: {message}");
        assert!(
            message.contains("cannot resolve image"),
            "{what}: {message}"
        );
    }
    // A token that does not cover what is asked for: the registry says insufficient_scope.
    let scoped = Proxy::with_bearer(registry.host(), Bearer::new("somebody", "else"));
    let (code, message) = resolve(&kiln, &format!("{}/{name}", scoped.host()))
        .await
        .unwrap_err();
    assert_eq!(code, Code::Unauthenticated, "{message}");
    assert!(message.contains("cannot resolve image"), "{message}");
    let (code, message) = resolve(&kiln, "not a reference").await.unwrap_err();
    assert_eq!(code, Code::InvalidArgument, "{message}");
    let (code, message) = resolve(&kiln, "127.0.0.1:1/nobody/listens")
        .await
        .unwrap_err();
    assert_eq!(code, Code::Unavailable, "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_recovers_is_not_noticed() {
    let registry = DockerRegistry::start();
    bases::busybox().push(registry.host(), "base/busybox:1", None);
    let kiln = Kiln::start();
    for action in [
        Action::TooManyRequests { retry_after_s: 1 },
        Action::Status(503),
        Action::Disconnect,
        Action::Truncate { after_bytes: 10 },
    ] {
        let proxy = Proxy::in_front_of(registry.host());
        proxy.rule(Rule::new("/manifests/", action.clone()).times(1));
        let resolved = resolve(&kiln, &format!("{}/base/busybox:1", proxy.host())).await;
        assert!(resolved.is_ok(), "{action:?}: {resolved:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_image_is_unknown_until_it_is_built() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let build = scene.dockerfile("app", &format!("FROM {base}\n"));
    let request = ResolveWorkspaceImageRequest {
        source: build.source.clone(),
        auth: Some(all_credentials()),
        use_retry_client: false,
    };
    let mut client = scene.kiln.image_builder().await;
    let before = client
        .resolve_workspace_image(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(before.status(), BuildStatus::Unknown);
    assert!(!before.base_ref.is_empty());
    let image = scene.build(build).await.image();
    let after = client
        .resolve_workspace_image(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(after.status(), BuildStatus::DoneSuccess);
    assert_eq!((&before.r#ref, &after.r#ref), (&image, &image));
    let nothing = ResolveWorkspaceImageRequest::default();
    let refused = client.resolve_workspace_image(nothing).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_becomes_a_workspace_image_as_it_is() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let said = scene.build(reference_request(&base)).await;
    let digest = crate::reader::digest(&said.image(), None);
    assert_eq!(digest, bases::busybox().digest());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_image_of_an_image_in_the_same_registry_sends_no_blob_unless_mounts_are_refused()
 {
    let registry = DockerRegistry::start();
    bases::busybox().push(registry.host(), "base/busybox:1", None);
    for mounts in [Mounts::Granted, Mounts::Refused] {
        let proxy = Proxy::in_front_of(registry.host());
        if matches!(mounts, Mounts::Refused) {
            proxy.rule(Rule::new("mount=", Action::Status(405)));
        }
        let host = proxy.host();
        // Each into a repository of its own, which has nothing yet.
        let made = format!("{host}/{mounts:?}").to_lowercase();
        let kiln = Kiln::with_config(&format!(
            "base_image_repository = \"{made}/bases\"\nworkspace_image_repository = \"{made}/workspaces\"\n"
        ));
        let request = reference_request(&format!("{host}/base/busybox:1"));
        let said = build(&kiln, request).await;
        let image = said.image();
        let requests = proxy.requests();
        let digest = crate::reader::digest(&image, None);
        assert_eq!(digest, bases::busybox().digest());
        let sent = requests.iter().filter(|request| {
            request.path.contains("/blobs/uploads/") && ["PATCH", "PUT"].contains(&&*request.method)
        });
        let read = requests
            .iter()
            .filter(|request| request.method == "GET" && request.path.contains("/blobs/"));
        match mounts {
            // The configuration is a document that says what the layers are, and is read like the manifest.
            Mounts::Granted => assert_eq!((sent.count(), read.count()), (0, 1), "{requests:#?}"),
            Mounts::Refused => assert!(sent.count() >= 2, "{requests:#?}"),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Mounts {
    Granted,
    Refused,
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_to_build_from_is_an_invalid_argument() {
    let kiln = Kiln::start();
    let mut client = kiln.image_builder().await;
    let refused = client.build(BuildRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), "build source is missing");
    let unknown = LogsRequest {
        build_ref: "nobody/has:built-this".to_owned(),
        ..LogsRequest::default()
    };
    let refused = client.logs(unknown).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::NotFound, "build not found")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_step_is_told_with_its_command_code_and_last_lines() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let dockerfile = format!(
        "FROM {base}\nRUN seq 500\nRUN echo almost && echo 'the last words' >&2 && exit 42\n"
    );
    let said = scene.build(scene.dockerfile("broken", &dockerfile)).await;
    let failure = said.failure();
    assert!(failure.starts_with("build failed: "), "{failure}");
    for part in ["exit 42", "42", "the last words"] {
        assert!(failure.contains(part), "{part:?} is not in\n{failure}");
    }
    assert!(
        !failure.contains("\n499\n"),
        "the output of another step is in\n{failure}"
    );
    let log = scene.log(&said.build_id().unwrap()).await;
    assert!(log.contains("the last words"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_in_a_dockerfile_is_shown_where_it_is() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    for (name, line) in [
        ("unknown", "RUNN echo typo"),
        ("unsupported", "RUN --device=vendor.com/x=y true"),
        ("outside", "COPY ../../etc/passwd /"),
        ("missing", "COPY no-such-file /"),
    ] {
        let dockerfile = format!("FROM {base}\nRUN true\n{line}\n");
        let said = scene.build(scene.dockerfile(name, &dockerfile)).await;
        let failure = said.failure();
        assert!(failure.starts_with("build failed: "), "{failure}");
        assert!(failure.contains(line), "{line:?} is not in\n{failure}");
        assert!(
            failure.contains('3'),
            "the number of the line is not in\n{failure}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_image_that_is_missing_or_forbidden_is_told_in_the_published_words() {
    let scene = Scene::start(Target::Embedded);
    let host = scene.registry.host().to_owned();
    let missing = format!("FROM {host}/no/such:image\n");
    let said = scene.build(scene.dockerfile("missing", &missing)).await;
    assert!(
        said.failure().contains("base image does not exist"),
        "{}",
        said.failure()
    );
    let mut forbidden = scene.dockerfile("forbidden", &format!("FROM {}\n", scene.busybox()));
    forbidden.auth = None;
    let said = scene.build(forbidden).await;
    assert!(
        said.failure().contains("cannot resolve image"),
        "{}",
        said.failure()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_is_not_there_is_not_replaced_by_another() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let mut request = scene.dockerfile("app", &format!("FROM {base}\n"));
    let from = request
        .source
        .as_mut()
        .and_then(|source| source.from.as_mut());
    let Some(api::builder::build_source::From::File(file)) = from else {
        panic!("not a file");
    };
    let spec = file.source.as_mut().and_then(|source| source.spec.as_mut());
    let Some(api::contentservice::workspace_initializer::Spec::Git(git)) = spec else {
        panic!("not git");
    };
    git.set_target_mode(api::contentservice::CloneTargetMode::RemoteBranch);
    git.clone_taget = "no-such-branch".to_owned();
    let said = scene.build(request).await;
    assert!(
        said.failure().starts_with("build failed: "),
        "{}",
        said.failure()
    );
    assert!(
        said.failure().contains("no-such-branch"),
        "{}",
        said.failure()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_with_a_password_is_fetched_with_it_and_not_without() {
    let scene = Scene::start(Target::Embedded);
    let base = scene.busybox();
    let git = GitServer::with_basic_auth("me", "open sesame");
    let files = [File::new("Dockerfile", format!("FROM {base}\n"))];
    let commit = git.repository("private").commit("main", &files);
    let request = |password: Option<&str>| {
        let mut request = crate::scene::request(&git.url("private"), &commit);
        if let Some(password) = password {
            set_password(&mut request, "me", password);
        }
        request
    };
    for password in [None, Some("open barley")] {
        let said = scene.build(request(password)).await;
        let log = scene.log(&said.build_id().unwrap()).await;
        for text in [said.failure(), &log] {
            assert!(
                !text.contains("sesame") && !text.contains("barley"),
                "{text}"
            );
        }
    }
    let said = scene.build(request(Some("open sesame"))).await;
    assert!(said.image().contains(':'));
    let log = scene.log(&said.build_id().unwrap()).await;
    assert!(!log.contains("sesame"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn success_is_told_only_when_the_registry_has_everything() {
    let registry = DockerRegistry::start();
    bases::busybox().push(registry.host(), "base/busybox:1", None);
    let proxy = Proxy::in_front_of(registry.host());
    proxy.rule(Rule::new("/manifests/", Action::Status(500)).method("PUT"));
    let host = proxy.host();
    let config = format!(
        "base_image_repository = \"{host}/made/bases\"\nworkspace_image_repository = \"{host}/made/workspaces\"\n"
    );
    let kiln = Kiln::with_config(&config);
    let git = GitServer::start();
    let dockerfile = format!("FROM {host}/base/busybox:1\nRUN echo x > /x\n");
    let commit = git
        .repository("app")
        .commit("main", &[File::new("Dockerfile", dockerfile)]);
    let mut client = kiln.image_builder().await;
    let request = crate::scene::request(&git.url("app"), &commit);
    let mut stream = client.build(request).await.unwrap().into_inner();
    let mut last = None;
    while let Some(response) = stream.message().await.unwrap() {
        last = Some(response);
    }
    let last = last.unwrap();
    assert_eq!(last.status(), BuildStatus::DoneFailure, "{last:?}");
    assert!(
        !last.message.starts_with("build failed: "),
        "{}",
        last.message
    );
}
