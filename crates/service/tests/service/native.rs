//! Builds of `kiln.v1`: what is asked, what is refused, and what is told of them.

use std::collections::HashMap;

use api::contentservice as content;
use api::kiln::v1 as wire;
use engine::event::{Event, FailureKind, Phase};
use engine::spec::{NetworkMode, Output, Purpose, Source};
use tonic::Code;

use crate::harness::{Server, World, git, next, soon};

pub(crate) fn request() -> wire::StartBuildRequest {
    let spec = content::workspace_initializer::Spec::Git(git());
    let initializer = content::WorkspaceInitializer { spec: Some(spec) };
    wire::StartBuildRequest {
        files: Some(wire::BuildFiles {
            from: Some(wire::build_files::From::Workspace(initializer)),
        }),
        ..wire::StartBuildRequest::default()
    }
}

fn uploaded(context_id: &str) -> wire::BuildFiles {
    wire::BuildFiles {
        from: Some(wire::build_files::From::Uploaded(wire::UploadedFiles {
            context_id: context_id.to_owned(),
            archive: String::new(),
        })),
    }
}

fn keep(name: &str) -> wire::BuildOutput {
    wire::BuildOutput {
        kind: Some(wire::build_output::Kind::Keep(name.to_owned())),
    }
}

fn publish(name: &str) -> wire::BuildOutput {
    wire::BuildOutput {
        kind: Some(wire::build_output::Kind::Publish(name.to_owned())),
    }
}

async fn start(
    server: &Server,
    request: wire::StartBuildRequest,
) -> Result<wire::StartBuildResponse, tonic::Status> {
    let mut client = server.native().await;
    // A request has many fields, and a future of it is large.
    let answer = Box::pin(soon(client.start_build(request)));
    Ok(answer.await?.into_inner())
}

pub(crate) async fn started(server: &Server, request: wire::StartBuildRequest) -> String {
    let answer = start(server, request).await.unwrap();
    answer.build.unwrap().build_id
}

async fn watch(
    server: &Server,
    build_id: &str,
    skip: u64,
) -> Result<tonic::Streaming<wire::WatchBuildResponse>, tonic::Status> {
    let mut client = server.native().await;
    let request = wire::WatchBuildRequest {
        build_id: build_id.to_owned(),
        skip,
    };
    Ok(soon(client.watch_build(request)).await?.into_inner())
}

/// Returns every record as text: an event's JSON, or what a step wrote.
async fn all(mut stream: tonic::Streaming<wire::WatchBuildResponse>) -> Vec<String> {
    let mut records = Vec::new();
    while let Some(record) = next(&mut stream).await {
        records.push(match record.body.unwrap() {
            wire::watch_build_response::Body::Event(event) => event,
            wire::watch_build_response::Body::Output(output) => {
                String::from_utf8(output.data).unwrap()
            }
        });
    }
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_asked_reaches_the_worker() {
    let world = World::new();
    let server = world.serve_with("[limits]\nwall_time_s = 100\n").await;
    let asked = wire::StartBuildRequest {
        dockerfile_path: "docker/Dockerfile".to_owned(),
        context_path: "sub".to_owned(),
        target: "run".to_owned(),
        build_args: HashMap::from([("A".to_owned(), "b=c".to_owned())]),
        labels: HashMap::from([("l".to_owned(), "m".to_owned())]),
        annotations: HashMap::from([("n".to_owned(), "o".to_owned())]),
        no_cache_stages: vec!["compile".to_owned()],
        network: wire::StepNetwork::None.into(),
        extra_hosts: vec![wire::ExtraHost {
            name: "db".to_owned(),
            address: "::1".to_owned(),
        }],
        shm_bytes: 1 << 20,
        secrets: HashMap::from([("token".to_owned(), b"hidden value".to_vec())]),
        outputs: vec![keep("app:1"), publish("registry.example.com/team/app:2")],
        compression: wire::LayerCompression::Zstd.into(),
        source_date_epoch: Some(17),
        timeout_s: 1000,
        triggered_by: "somebody".to_owned(),
        ..request()
    };
    let id = started(&server, asked).await;
    let worker = world.worker().await;
    assert_eq!(worker.record.id.as_str(), id);
    assert_eq!(worker.record.purpose, Purpose::Named);
    let stored = std::fs::read_to_string(worker.folder.join("record.json")).unwrap();
    assert!(!stored.contains("hidden value"), "{stored}");
    let spec = worker.spec.as_ref().unwrap();
    assert_eq!(spec.options.target.as_deref(), Some("run"));
    assert_eq!(spec.options.build_args["A"], "b=c");
    assert_eq!(spec.options.network, NetworkMode::None);
    assert_eq!(spec.options.source_date_epoch, Some(17));
    assert_eq!(spec.secrets["token"].reveal(), b"hidden value");
    assert_eq!(
        spec.limits.wall_time_s, 100,
        "never more than the operator's"
    );
    let names = spec.outputs.iter().map(|output| match output {
        Output::Publish { reference } => reference.to_string(),
        other => panic!("{other:?}"),
    });
    let kept = format!("{}/builds/app:1", server.address);
    assert_eq!(
        names.collect::<Vec<_>>(),
        [kept.as_str(), "registry.example.com/team/app:2"]
    );
    assert_eq!(worker.record.reference, kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_is_told_from_any_record_on_and_ends_with_the_build() {
    let world = World::new();
    let server = world.serve().await;
    let id = started(&server, request()).await;
    let worker = world.worker().await;
    worker.phase(Phase::Running);
    worker.output(b"first\n");
    let mut live = watch(&server, &id, 0).await.unwrap();
    let first = next(&mut live).await.unwrap();
    assert!(first.at_ms > 0);
    worker.output(b"second\n");
    worker.fail(FailureKind::Dockerfile, "line 3");
    let rest = all(live).await;
    assert_eq!(rest[..2], ["first\n", "second\n"]);
    assert!(rest[2].contains("line 3"), "{rest:?}");
    assert_eq!(rest.len(), 3);
    // After the end, from the middle, and past it.
    assert_eq!(all(watch(&server, &id, 2).await.unwrap()).await, rest[1..]);
    assert!(
        all(watch(&server, &id, 100).await.unwrap())
            .await
            .is_empty()
    );
    for unknown in ["", "x", &"a".repeat(26)] {
        let refused = watch(&server, unknown, 0).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{unknown:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_is_the_same_build_and_another_of_its_id_is_refused() {
    let world = World::new();
    let server = world.serve().await;
    let with_id = |secret: &str| wire::StartBuildRequest {
        request_id: "one".to_owned(),
        secrets: HashMap::from([("token".to_owned(), secret.as_bytes().to_vec())]),
        ..request()
    };
    let id = started(&server, with_id("a")).await;
    let worker = world.worker().await;
    // The value of a secret tells no requests apart.
    let again = start(&server, with_id("b")).await.unwrap();
    assert!(again.already_started);
    assert_eq!(again.build.unwrap().build_id, id);
    let other = wire::StartBuildRequest {
        target: "other".to_owned(),
        ..with_id("a")
    };
    let refused = start(&server, other).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    worker.event(Event::Cancelled);
    worker.die();
    // Also after its end, and after a restart.
    server.stopped().await;
    let server = world.serve().await;
    let again = start(&server, with_id("a")).await.unwrap();
    assert_eq!(again.build.unwrap().build_id, id);
    assert!(!world.has_worker().await);
    // Without an id nothing is the same.
    assert_ne!(
        started(&server, request()).await,
        started(&server, request()).await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn names_lead_nowhere_but_where_the_caller_may_write() {
    let world = World::new();
    let server = world.serve().await;
    let host = server.address.clone();
    for name in [
        "base-images:1",
        "workspace-images:1",
        "library/app:1",
        "builds:1",
    ] {
        let asked = wire::StartBuildRequest {
            outputs: vec![publish(&format!("{host}/{name}"))],
            ..request()
        };
        let refused = start(&server, asked).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{name}");
        assert!(refused.message().contains("/builds/"), "{refused}");
    }
    let caching = wire::StartBuildRequest {
        cache_to: vec![wire::CacheTarget {
            kind: Some(wire::cache_target::Kind::Registry(wire::RegistryCache {
                reference: format!("{host}/base-images:cache"),
                ..wire::RegistryCache::default()
            })),
        }],
        ..request()
    };
    let refused = start(&server, caching).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let own = wire::StartBuildRequest {
        outputs: vec![publish(&format!("{host}/builds/app:1"))],
        ..request()
    };
    started(&server, own).await;
    assert!(
        !world
            .worker()
            .await
            .spec
            .as_ref()
            .unwrap()
            .outputs
            .is_empty()
    );
    server.stopped().await;
    let server = world.serve_with("build_namespace = \"\"\n").await;
    let asked = wire::StartBuildRequest {
        outputs: vec![keep("app:1")],
        ..request()
    };
    let refused = start(&server, asked).await.unwrap_err();
    assert!(refused.message().contains("build_namespace"), "{refused}");
}

/// Makes something wrong in a request.
type Change = Box<dyn Fn(&mut wire::StartBuildRequest)>;

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "a table, a few lines for each row")]
async fn what_a_request_gets_wrong_is_named() {
    let world = World::new();
    let server = world.serve().await;
    let text = |n: usize| "x".repeat(n);
    let wrong: Vec<(&str, Change)> = vec![
        ("files", Box::new(|r| r.files = None)),
        (
            "files",
            Box::new(|r| r.files = Some(wire::BuildFiles { from: None })),
        ),
        ("request_id", Box::new(move |r| r.request_id = text(129))),
        ("request_id", Box::new(|r| r.request_id = "a b".to_owned())),
        (
            "dockerfile_path",
            Box::new(|r| r.dockerfile_path = "../x".to_owned()),
        ),
        (
            "context_path",
            Box::new(|r| r.context_path = "/../..".to_owned()),
        ),
        (
            "dockerfile_text",
            Box::new(|r| r.dockerfile_text = "FROM x".to_owned()),
        ),
        ("target", Box::new(move |r| r.target = text(10_000))),
        (
            "platform",
            Box::new(|r| r.platform = "plan9/mips".to_owned()),
        ),
        ("platform", Box::new(|r| r.platform = "\u{0}".to_owned())),
        (
            "build_args",
            Box::new(|r| drop(r.build_args.insert("A=B".to_owned(), String::new()))),
        ),
        (
            "labels",
            Box::new(move |r| drop(r.labels.insert("a".to_owned(), text(200_000)))),
        ),
        (
            "annotations",
            Box::new(|r| {
                r.media_types = wire::MediaTypes::Docker.into();
                r.annotations.insert("a".to_owned(), "b".to_owned());
            }),
        ),
        (
            "contexts",
            Box::new(|r| {
                r.contexts
                    .insert("x".to_owned(), wire::NamedContext::default());
            }),
        ),
        ("network", Box::new(|r| r.network = 99)),
        (
            "extra_hosts",
            Box::new(|r| r.extra_hosts = vec![wire::ExtraHost::default()]),
        ),
        (
            "ulimits",
            Box::new(|r| {
                r.ulimits = vec![wire::Ulimit {
                    name: "nofile".to_owned(),
                    soft: 2,
                    hard: 1,
                }];
            }),
        ),
        (
            "ulimits",
            Box::new(|r| r.ulimits = vec![wire::Ulimit::default()]),
        ),
        (
            "secrets",
            Box::new(|r| drop(r.secrets.insert("a".to_owned(), vec![0; 600 << 10]))),
        ),
        (
            "entitlements",
            Box::new(|r| r.entitlements = vec!["device".to_owned()]),
        ),
        (
            "outputs",
            Box::new(|r| r.outputs = vec![wire::BuildOutput::default()]),
        ),
        (
            "outputs.publish",
            Box::new(|r| r.outputs = vec![publish("UPPER/x")]),
        ),
        ("outputs", Box::new(|r| r.outputs = vec![keep("a"); 33])),
        ("compression", Box::new(|r| r.compression = -1)),
        ("media_types", Box::new(|r| r.media_types = 7)),
        (
            "files: context_id",
            Box::new(|r| r.files = Some(uploaded(""))),
        ),
        (
            "dockerfile_text",
            Box::new(|r| {
                r.files = Some(uploaded("a"));
                r.dockerfile_text = "x".repeat(2 << 20);
            }),
        ),
        (
            "ssh_agents",
            Box::new(|r| r.ssh_agents = vec!["a".to_owned(), "a".to_owned()]),
        ),
        (
            "ssh_agents",
            Box::new(|r| r.ssh_agents = vec![String::new()]),
        ),
        (
            "ssh_agents",
            Box::new(|r| r.ssh_agents = (0..17).map(|n| n.to_string()).collect()),
        ),
        ("project", Box::new(|r| r.project = "p".to_owned())),
        (
            "cache_from",
            Box::new(|r| r.cache_from = vec!["no name".to_owned()]),
        ),
        (
            "cache_to",
            Box::new(|r| r.cache_to = vec![wire::CacheTarget::default()]),
        ),
        (
            "cache_from_layouts",
            Box::new(|r| r.cache_from_layouts = vec![wire::NamedLayout::default()]),
        ),
        (
            "cache_from_layouts",
            Box::new(|r| {
                let image = Some(wire::named_layout::Image::Digest("md5:1".to_owned()));
                let context_id = "a".to_owned();
                r.cache_from_layouts = vec![wire::NamedLayout { context_id, image }];
            }),
        ),
        (
            "cache_from_layouts",
            Box::new(|r| {
                let context_id = "a".to_owned();
                let image = None;
                r.cache_from_layouts = vec![wire::NamedLayout { context_id, image }; 33];
            }),
        ),
        (
            "auth.additional",
            Box::new(|r| {
                r.auth = Some(api::builder::BuildRegistryAuth {
                    additional: HashMap::from([("a.b".to_owned(), "%".to_owned())]),
                    ..api::builder::BuildRegistryAuth::default()
                });
            }),
        ),
    ];
    for (field, change) in wrong {
        let mut asked = request();
        change(&mut asked);
        let refused = start(&server, asked).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{field}: {refused}");
        assert!(refused.message().contains(field), "{field}: {refused}");
    }
    let host = wire::StartBuildRequest {
        network: wire::StepNetwork::Host.into(),
        ..request()
    };
    let refused = start(&server, host).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let insecure = wire::StartBuildRequest {
        entitlements: vec!["security.insecure".to_owned()],
        ..request()
    };
    let refused = start(&server, insecure).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(
        refused.message().contains("limits.allow_insecure"),
        "{refused}"
    );
    let shared = wire::StartBuildRequest {
        shm_bytes: (1 << 30) + 1,
        ..request()
    };
    let refused = start(&server, shared).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused.message().contains("limits.step_shm_bytes"),
        "{refused}"
    );
    assert!(!world.has_worker().await, "nothing of all this was started");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_for_everybody_takes_the_operators_word_and_the_requests() {
    let world = World::new();
    let config = "[limits]\nallow_host_network = true\nallow_insecure = true\n";
    let server = world.serve_with(config).await;
    for (names, expected) in [
        (vec![], (false, false)),
        (vec!["security.insecure"], (false, true)),
        (vec!["network.host"], (true, false)),
    ] {
        let asked = wire::StartBuildRequest {
            entitlements: names.into_iter().map(str::to_owned).collect(),
            ..request()
        };
        started(&server, asked).await;
        let worker = world.worker().await;
        let limits = &worker.spec.as_ref().unwrap().limits;
        let allowed = (limits.allow_host_network, limits.allow_insecure);
        assert_eq!(allowed, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_writes_where_the_server_looks_its_own_images_up() {
    let world = World::new();
    // One elsewhere, one below what callers may write.
    let config = "workspace_image_repository = \"registry.example.com/workspaces\"\nbuild_namespace = \"base-images\"\n";
    let mut config = service::config::parse(config).unwrap().config;
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.state = Some(world.state().to_owned());
    config.address = Some("kiln.example.com:80".to_owned());
    config.base_image_repository = Some("kiln.example.com:80/base-images/ours".parse().unwrap());
    let server = world.serve_config(config).await;
    let cache = |name: &str| wire::CacheTarget {
        kind: Some(wire::cache_target::Kind::Registry(wire::RegistryCache {
            reference: name.to_owned(),
            ..wire::RegistryCache::default()
        })),
    };
    for name in [
        "registry.example.com/workspaces:1",
        "kiln.example.com:80/base-images/ours:1",
        // The same registry by its other name.
        &format!("{}/base-images/ours:1", server.address),
    ] {
        let publishing = wire::StartBuildRequest {
            outputs: vec![publish(name)],
            ..request()
        };
        let caching = wire::StartBuildRequest {
            cache_to: vec![cache(name)],
            ..request()
        };
        for asked in [publishing, caching] {
            let refused = start(&server, asked).await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied, "{name}: {refused}");
        }
    }
    let keeping = wire::StartBuildRequest {
        outputs: vec![keep("ours:1")],
        ..request()
    };
    let refused = start(&server, keeping).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(!world.has_worker().await);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machines_network_takes_the_operators_word_and_somebodys_wish() {
    let world = World::new();
    let limits = "[limits]\nallow_host_network = true\n";
    let asked = || wire::StartBuildRequest {
        network: wire::StepNetwork::Host.into(),
        ..request()
    };
    let isolated = || wire::StartBuildRequest {
        network: wire::StepNetwork::None.into(),
        ..request()
    };
    for (config, request, is_allowed) in [
        (limits.to_owned(), request(), false),
        (limits.to_owned(), asked(), true),
        // The operator's own default.
        (format!("network = \"host\"\n{limits}"), request(), true),
        (format!("network = \"host\"\n{limits}"), isolated(), false),
    ] {
        let server = world.serve_with(&config).await;
        started(&server, request).await;
        let worker = world.worker().await;
        let spec = worker.spec.as_ref().unwrap();
        assert_eq!(spec.limits.allow_host_network, is_allowed, "{config}");
        worker.die();
        server.stopped().await;
    }
}

/// Not to be found anywhere once the worker has been told.
const CANARY: &str = "canary-7f3a91c2d4";

#[tokio::test(flavor = "multi_thread")]
async fn neither_secrets_nor_credentials_are_anywhere_below_the_state_directory() {
    let world = World::new();
    let server = world.serve().await;
    let mut git = git();
    git.config = Some(content::GitConfig {
        authentication: content::GitAuthMethod::BasicAuth.into(),
        auth_user: "me".to_owned(),
        auth_password: format!("{CANARY}-git"),
        ..content::GitConfig::default()
    });
    let spec = content::workspace_initializer::Spec::Git(git);
    let initializer = content::WorkspaceInitializer { spec: Some(spec) };
    let asked = wire::StartBuildRequest {
        request_id: "once".to_owned(),
        files: Some(wire::BuildFiles {
            from: Some(wire::build_files::From::Workspace(initializer)),
        }),
        secrets: HashMap::from([("token".to_owned(), CANARY.as_bytes().to_vec())]),
        auth: Some(api::builder::BuildRegistryAuth {
            additional: HashMap::from([("r.example".to_owned(), "dTpwOnE=".to_owned())]),
            ..api::builder::BuildRegistryAuth::default()
        }),
        ..request()
    };
    let id = started(&server, asked).await;
    world.worker().await.fail(FailureKind::Dockerfile, "no");
    assert_eq!(all(watch(&server, &id, 0).await.unwrap()).await.len(), 1);
    server.stopped().await;
    // The canary and "u:p:q": as they are, in hexadecimal, and in base64.
    let words = [
        CANARY,
        "63616e6172792d37663361393163326434",
        "Y2FuYXJ5LTdmM2E5MWMyZD",
        "u:p:q",
        "dTpwOnE",
    ];
    let mut n_files = 0;
    each_file(world.state(), &mut |path, bytes| {
        n_files += 1;
        for word in words {
            let found = bytes.windows(word.len()).any(|at| at == word.as_bytes());
            assert!(!found, "{word} is in {}", path.display());
        }
    });
    // The record and the journal at least.
    assert!(n_files >= 2, "{n_files}");
}

fn each_file(folder: &std::path::Path, look: &mut dyn FnMut(&std::path::Path, &[u8])) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            each_file(&entry.path(), look);
        } else if kind.is_file() {
            look(&entry.path(), &std::fs::read(entry.path()).unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_sees_all_files_where_no_folder_is_named() {
    let world = World::new();
    let server = world.serve().await;
    let asked = wire::StartBuildRequest {
        dockerfile_path: "docker/Dockerfile".to_owned(),
        ..request()
    };
    started(&server, asked).await;
    let worker = world.worker().await;
    let spec = worker.spec.as_ref().unwrap();
    let Source::Dockerfile { context_path, .. } = &spec.source else {
        panic!("{:?}", spec.source);
    };
    assert_eq!(context_path.as_deref(), Some("."));
    worker.die();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_could_not_be_started_tells_its_end_and_when() {
    let world = World::new();
    let server = world.serve().await;
    world.scripted.refuse();
    let id = started(&server, request()).await;
    let mut records = watch(&server, &id, 0).await.unwrap();
    let end = next(&mut records).await.unwrap();
    assert!(end.at_ms > 1_600_000_000_000, "{end:?}");
    assert!(next(&mut records).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_larger_than_any_may_be_is_refused_and_the_service_goes_on() {
    let world = World::new();
    let server = world.serve().await;
    let huge = wire::StartBuildRequest {
        dockerfile_text: "x".repeat(8 << 20),
        ..request()
    };
    assert!(start(&server, huge).await.is_err());
    assert!(!world.has_worker().await);
    started(&server, request()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_share_their_caches_with_no_repository_and_unnamed_ones_with_nobody() {
    let world = World::new();
    let server = world.serve().await;
    let files = [("Dockerfile".to_owned(), b"FROM scratch\n".to_vec())];
    let mut names = Vec::new();
    for project in ["", "", "https://example.com/victim.git"] {
        let (created, _) = crate::contexts::upload(&server, &files).await;
        let asked = wire::StartBuildRequest {
            files: Some(uploaded(&created.context_id)),
            project: project.to_owned(),
            ..request()
        };
        started(&server, asked).await;
        let worker = world.worker().await;
        let spec = worker.spec.as_ref().unwrap();
        let engine::spec::Source::Dockerfile {
            context: engine::spec::Context::Uploaded { name, .. },
            ..
        } = &spec.source
        else {
            panic!("{:?}", spec.source);
        };
        names.push(name.clone());
        worker.die();
    }
    assert_ne!(names[0], names[1]);
    assert_eq!(names[2], "project:https://example.com/victim.git");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_an_uploaded_layout_has_a_tag_or_a_digest_that_is_one() {
    let world = World::new();
    let server = world.serve().await;
    for image in [
        wire::named_layout::Image::Tag("../x".to_owned()),
        wire::named_layout::Image::Digest("sha256:x".to_owned()),
    ] {
        let layout = wire::NamedLayout {
            context_id: "a".repeat(26),
            image: Some(image),
        };
        let what = wire::named_context::What::Layout(layout);
        let asked = wire::StartBuildRequest {
            contexts: HashMap::from([("x".to_owned(), wire::NamedContext { what: Some(what) })]),
            ..request()
        };
        let refused = start(&server, asked).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
}
