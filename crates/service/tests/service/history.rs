//! Lists, details, logs by offset and by step, and reasons: while builds run, after their end, after a restart.

use std::collections::{HashMap, HashSet};

use api::kiln::v1 as wire;
use engine::event::{Event, Failure, FailureKind, Phase, StepId};
use tonic::Code;

use crate::harness::{Server, Worker, World, next, soon};
use crate::native::{request, started};

async fn list(
    server: &Server,
    request: wire::ListBuildsRequest,
) -> Result<wire::ListBuildsResponse, tonic::Status> {
    let mut client = server.native().await;
    Ok(soon(client.list_builds(request)).await?.into_inner())
}

async fn ids(server: &Server, request: wire::ListBuildsRequest) -> Vec<String> {
    let answer = list(server, request).await.unwrap();
    answer
        .builds
        .into_iter()
        .map(|build| build.build_id)
        .collect()
}

async fn get(server: &Server, build_id: &str) -> wire::GetBuildResponse {
    let mut client = server.native().await;
    let request = wire::GetBuildRequest {
        build_id: build_id.to_owned(),
    };
    soon(client.get_build(request)).await.unwrap().into_inner()
}

/// Waits until the server knows that a build has ended.
async fn ended(server: &Server, build_id: &str) -> wire::Build {
    soon(async {
        loop {
            let build = get(server, build_id).await.build.unwrap();
            if build.ended_at_ms > 0 {
                return build;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await
}

fn labelled(name: &str, value: &str) -> wire::StartBuildRequest {
    wire::StartBuildRequest {
        request_labels: HashMap::from([(name.to_owned(), value.to_owned())]),
        triggered_by: format!("{name} {value}"),
        ..request()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_neither_repeat_nor_lose_a_build_while_others_are_added() {
    let world = World::new();
    let server = world
        .serve_with("[server]\nmax_running_builds = 100\n")
        .await;
    let mut all = Vec::new();
    for n in 0..25 {
        all.push(started(&server, labelled("n", &n.to_string())).await);
        world.worker().await.fail(FailureKind::Source, "x");
    }
    let mut asked = wire::ListBuildsRequest {
        page_size: 4,
        ..wire::ListBuildsRequest::default()
    };
    let mut seen = Vec::new();
    loop {
        let page = list(&server, asked.clone()).await.unwrap();
        assert!(page.builds.len() <= 4);
        seen.extend(page.builds.into_iter().map(|build| build.build_id));
        if page.next_page_token.is_empty() {
            break;
        }
        asked.page_token = page.next_page_token;
        started(&server, labelled("late", "x")).await;
        drop(world.worker().await);
    }
    assert_eq!(seen.len(), all.len());
    let (seen_set, all_set): (HashSet<_>, HashSet<_>) =
        (seen.iter().collect(), all.iter().collect());
    assert_eq!(seen_set, all_set);
    // A token means a place in its own list, and nothing else.
    let mut other = asked.clone();
    other.triggered_by = "n 3".to_owned();
    let refused = list(&server, other).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("page_token"), "{refused}");
    asked.page_token = "made up".to_owned();
    let refused = list(&server, asked).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_end_has_its_reason_in_lists_details_and_numbers() {
    let world = World::new();
    let server = world
        .serve_with("[server]\nmax_running_builds = 100\n")
        .await;
    let mut by_reason = HashMap::new();
    for kind in FailureKind::ALL {
        let id = started(&server, labelled("kind", kind.word())).await;
        let failure = Failure {
            kind,
            message: format!("because of {}", kind.word()),
            step: Some(StepId(3)),
            exit_code: Some(42),
        };
        let worker = world.worker().await;
        worker.event(Event::Failed { failure });
        worker.die();
        let build = ended(&server, &id).await;
        let failure = build.failure.unwrap();
        assert_eq!(failure.exit_code, Some(42));
        assert_eq!(failure.step, 3);
        assert_eq!(failure.is_users, kind.is_users());
        assert!(failure.message.contains(kind.word()), "{failure:?}");
        by_reason.insert(failure.reason, id);
    }
    let cancelled = started(&server, labelled("kind", "cancelled")).await;
    let worker = world.worker().await;
    let mut client = server.native().await;
    let request = wire::CancelBuildRequest {
        build_id: cancelled.clone(),
    };
    soon(client.cancel_build(request)).await.unwrap();
    assert_eq!(worker.record.id.as_str(), cancelled);
    let failure = ended(&server, &cancelled).await.failure.unwrap();
    assert_eq!(failure.reason(), wire::FailureReason::Cancelled);
    by_reason.insert(failure.reason, cancelled);
    assert_eq!(by_reason.len(), 12);
    // After a restart, too.
    server.stopped().await;
    let server = world.serve().await;
    for (reason, id) in &by_reason {
        let asked = wire::ListBuildsRequest {
            reasons: vec![*reason],
            ..wire::ListBuildsRequest::default()
        };
        assert_eq!(ids(&server, asked).await, std::slice::from_ref(id));
    }
    server.stopped().await;
}

/// A filter, by what makes it another one than that which wants all.
type Change<'a> = &'a dyn Fn(&mut wire::ListBuildsRequest);

fn filter(change: Change<'_>) -> wire::ListBuildsRequest {
    let mut filter = wire::ListBuildsRequest::default();
    change(&mut filter);
    filter
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_leave_what_was_asked_for() {
    let world = World::new();
    let server = world
        .serve_with("[server]\nmax_running_builds = 100\n")
        .await;
    let one = started(&server, labelled("team", "a")).await;
    world.worker().await.fail(FailureKind::Timeout, "x");
    let started_ms = ended(&server, &one).await.started_at_ms;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let two = started(&server, labelled("team", "b")).await;
    let worker = world.worker().await;
    worker.phase(Phase::Running);
    let labels = |value: &str| HashMap::from([("team".to_owned(), value.to_owned())]);
    soon(async {
        while get(&server, &two).await.build.unwrap().phase() != wire::BuildPhase::Running {}
    })
    .await;
    let rows: [(Change<'_>, &[&String]); 10] = [
        (&|_| (), &[&two, &one]),
        (
            &|f| f.phases = vec![wire::BuildPhase::Running.into()],
            &[&two],
        ),
        (
            &|f| f.phases = vec![wire::BuildPhase::Failed.into()],
            &[&one],
        ),
        (&|f| f.request_labels = labels("a"), &[&one]),
        (&|f| f.request_labels = labels("c"), &[]),
        (&|f| "team b".clone_into(&mut f.triggered_by), &[&two]),
        (&|f| f.since_ms = started_ms + 1, &[&two]),
        (&|f| f.until_ms = started_ms + 1, &[&one]),
        (
            &|f| f.purposes = vec![wire::BuildPurpose::Named.into()],
            &[&two, &one],
        ),
        (
            &|f| f.purposes = vec![wire::BuildPurpose::Subassembly.into()],
            &[],
        ),
    ];
    for (change, expected) in rows {
        let asked = filter(change);
        let found = ids(&server, asked.clone()).await;
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{asked:?}");
    }
    worker.fail(FailureKind::Source, "x");
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_that_make_no_sense_are_refused() {
    let world = World::new();
    let server = world.serve().await;
    let nameless = || HashMap::from([(String::new(), "x".to_owned())]);
    let rows: [Change<'_>; 5] = [
        &|f| f.phases = vec![99],
        &|f| f.phases = vec![0],
        &|f| f.reasons = vec![-1],
        &|f| f.since_ms = -1,
        &|f| f.request_labels = nameless(),
    ];
    for change in rows {
        let wrong = filter(change);
        let refused = list(&server, wrong.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{wrong:?}");
    }
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_that_are_no_labels_are_refused() {
    let world = World::new();
    let server = world.serve().await;
    let mut client = server.native().await;
    for (name, value) in [
        ("", "x"),
        ("a=b", "x"),
        ("a", "x\u{1b}[2J"),
        ("a", &"x".repeat(256)),
    ] {
        let request = Box::pin(client.start_build(labelled(name, value)));
        let refused = soon(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{name:?}");
        assert!(refused.message().contains("request_labels"), "{refused}");
    }
    assert!(!world.has_worker().await);
    server.stopped().await;
}

fn begun(step: u32, name: &str) -> Event {
    Event::StepStarted {
        step: StepId(step),
        name: name.to_owned(),
        reason: Some("it is new".to_owned()),
    }
}

fn two_steps(worker: &Worker) {
    worker.phase(Phase::Running);
    worker.event(begun(1, "[1/2] RUN one"));
    worker.event(begun(2, "[2/2] RUN two"));
    worker.output(b"out of one\n\xff\x1b[2J\n");
    worker.event(Event::StepFinished {
        step: StepId(1),
        duration_ms: 1500,
    });
    worker.event(Event::StepFailed {
        step: StepId(2),
        error: "exit code: 1".to_owned(),
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_is_told_with_its_steps() {
    let world = World::new();
    let server = world.serve().await;
    let id = started(&server, labelled("a", "b")).await;
    let worker = world.worker().await;
    two_steps(&worker);
    worker.fail(FailureKind::Dockerfile, "exit code: 1");
    let build = ended(&server, &id).await;
    assert_eq!(build.request_labels["a"], "b");
    assert_eq!(build.triggered_by, "a b");
    assert!(build.ended_at_ms >= build.started_at_ms);
    let detail = get(&server, &id).await.detail.unwrap();
    assert_eq!(detail.phases.len(), 1);
    assert_eq!(detail.steps.len(), 2);
    assert_eq!(detail.steps[0].status(), wire::StepStatus::Done);
    assert_eq!(detail.steps[0].duration_ms, Some(1500));
    assert_eq!(detail.steps[0].reason, "it is new");
    assert_eq!(detail.steps[1].status(), wire::StepStatus::Failed);
    assert_eq!(detail.steps[1].error, "exit code: 1");
    assert!(detail.journal_bytes > 0);
    server.stopped().await;
}

async fn log(server: &Server, request: wire::GetLogRequest) -> Result<Vec<u8>, tonic::Status> {
    let mut client = server.native().await;
    let mut stream = soon(client.get_log(request.clone())).await?.into_inner();
    let (mut text, mut offset) = (Vec::new(), request.offset);
    while let Some(piece) = next(&mut stream).await {
        assert_eq!(piece.offset, offset);
        offset += piece.content.len() as u64;
        text.extend(piece.content);
    }
    Ok(text)
}

fn asked(id: &str, change: &dyn Fn(&mut wire::GetLogRequest)) -> wire::GetLogRequest {
    let mut request = wire::GetLogRequest {
        build_id: id.to_owned(),
        ..wire::GetLogRequest::default()
    };
    change(&mut request);
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_read_from_any_byte_while_it_grows_and_after() {
    let world = World::new();
    let server = world.serve().await;
    let id = started(&server, request()).await;
    let worker = world.worker().await;
    two_steps(&worker);
    soon(async { while get(&server, &id).await.detail.unwrap().steps.len() < 2 {} }).await;
    // What is there, without waiting for the end.
    let now = log(&server, asked(&id, &|_| ())).await.unwrap();
    assert!(now.starts_with(b"#1 [1/2] RUN one\n"));
    let follow = asked(&id, &|r| r.follow = true);
    let following = {
        let (mut client, follow) = (server.native().await, follow.clone());
        tokio::spawn(async move {
            let mut stream = client.get_log(follow).await.unwrap().into_inner();
            let mut text = Vec::new();
            while let Some(piece) = stream.message().await.unwrap() {
                text.extend(piece.content);
            }
            text
        })
    };
    worker.fail(FailureKind::Dockerfile, "at last");
    let whole = soon(following).await.unwrap();
    assert!(whole.starts_with(&now) && whole.ends_with(b"build failed: at last\n"));
    ended(&server, &id).await;
    for offset in [0, 1, 20, whole.len() as u64, whole.len() as u64 + 1000] {
        let from = wire::GetLogRequest {
            offset,
            ..follow.clone()
        };
        let rest = whole.get(usize::try_from(offset).unwrap()..);
        let rest = rest.unwrap_or_default();
        assert_eq!(log(&server, from).await.unwrap(), rest, "{offset}");
    }
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_read_of_one_step_from_a_time_on_or_raw() {
    let world = World::new();
    let server = world.serve().await;
    let id = started(&server, request()).await;
    let worker = world.worker().await;
    two_steps(&worker);
    worker.fail(FailureKind::Dockerfile, "at last");
    ended(&server, &id).await;
    let raw = asked(&id, &|r| {
        r.step = 1;
        r.form = wire::LogForm::Raw.into();
    });
    let bytes = log(&server, raw.clone()).await.unwrap();
    assert_eq!(bytes, b"out of one\n\xff\x1b[2J\n");
    let of_two = log(&server, asked(&id, &|r| r.step = 2)).await.unwrap();
    let of_two = String::from_utf8(of_two).unwrap();
    assert!(
        of_two.contains("RUN two") && !of_two.contains("one"),
        "{of_two}"
    );
    for nothing in [
        asked(&id, &|r| r.step = 9),
        asked(&id, &|r| r.since_ms = i64::MAX),
    ] {
        assert!(log(&server, nothing).await.unwrap().is_empty());
    }
    for wrong in [
        asked(&id, &|r| r.form = 9),
        asked(&id, &|r| r.since_ms = -1),
    ] {
        let refused = log(&server, wrong).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let unknown = wire::GetLogRequest {
        build_id: "a".repeat(26),
        ..raw
    };
    let refused = log(&server, unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_waits_has_a_log_that_says_so_and_no_artifacts() {
    let world = World::new();
    let server = world.serve_with("[server]\nmax_running_builds = 1\n").await;
    let first = started(&server, request()).await;
    let worker = world.worker().await;
    let waiting = started(&server, request()).await;
    let asked = wire::GetLogRequest {
        build_id: waiting.clone(),
        ..wire::GetLogRequest::default()
    };
    let text = log(&server, asked).await.unwrap();
    assert_eq!(text, b"waiting for its turn: it is the next\n");
    let told = get(&server, &waiting).await;
    assert_eq!(told.build.unwrap().phase(), wire::BuildPhase::Queued);
    assert!(told.detail.unwrap().steps.is_empty());
    let mut client = server.native().await;
    let request = wire::ListArtifactsRequest { build_id: waiting };
    let answer = soon(client.list_artifacts(request)).await.unwrap();
    assert!(answer.into_inner().artifacts.is_empty());
    worker.fail(FailureKind::Source, "x");
    world.worker().await.fail(FailureKind::Source, "x");
    ended(&server, &first).await;
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_build_has_made_is_listed_with_what_can_still_be_fetched() {
    let world = World::new();
    let server = world.serve().await;
    let export = wire::BuildOutput {
        kind: Some(wire::build_output::Kind::Export(wire::ExportedFile {
            format: wire::ExportFormat::Oci.into(),
            references: Vec::new(),
        })),
    };
    let asked = wire::StartBuildRequest {
        outputs: vec![export.clone(), export],
        ..request()
    };
    let id = started(&server, asked).await;
    let worker = world.worker().await;
    let output = worker.folder.join("output");
    std::fs::create_dir(&output).unwrap();
    std::fs::write(output.join("output-1"), "four").unwrap();
    let digest = oci::Digest::sha256(b"image");
    worker.event(Event::Published {
        reference: "registry.example/app:1".parse().unwrap(),
        digest: digest.clone(),
    });
    worker.event(Event::Succeeded {
        image: engine::event::BuiltImage {
            digest: digest.clone(),
            config_digest: oci::Digest::sha256(b"config"),
            references: Vec::new(),
            outputs: vec!["output-0".to_owned(), "output-1".to_owned()],
            n_run: 2,
            n_cached: 5,
        },
    });
    worker.die();
    let build = ended(&server, &id).await;
    assert_eq!((build.n_run, build.n_cached), (2, 5));
    assert!(build.failure.is_none());
    let mut client = server.native().await;
    let request = wire::ListArtifactsRequest { build_id: id };
    let answer = soon(client.list_artifacts(request)).await.unwrap();
    let kinds: Vec<_> = answer
        .into_inner()
        .artifacts
        .into_iter()
        .map(|a| a.kind.unwrap())
        .collect();
    let file = |output, available| wire::FileArtifact {
        output,
        available,
        size_bytes: if available { 4 } else { 0 },
        expires_at_ms: if available {
            build.ended_at_ms + 3_600_000
        } else {
            0
        },
    };
    assert_eq!(
        kinds,
        [
            wire::artifact::Kind::Image(wire::ImageArtifact {
                reference: "registry.example/app:1".to_owned(),
                digest: digest.to_string(),
            }),
            wire::artifact::Kind::File(file(0, false)),
            wire::artifact::Kind::File(file(1, true)),
        ]
    );
    server.stopped().await;
}
