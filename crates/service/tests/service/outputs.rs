//! Files that builds export, and their way to the caller.

use std::sync::Arc;

use api::contentservice as content;
use api::kiln::v1 as wire;
use engine::event::{BuiltImage, Event, FailureKind, Phase};
use engine::spec::{ExportFormat, Output};
use oci::Digest;
use tonic::{Code, Status};

use crate::harness::{Server, Worker, World, git, soon};

fn export(format: wire::ExportFormat, references: &[&str]) -> wire::BuildOutput {
    let exported = wire::ExportedFile {
        format: format.into(),
        references: references.iter().map(|&name| name.to_owned()).collect(),
    };
    wire::BuildOutput {
        kind: Some(wire::build_output::Kind::Export(exported)),
    }
}

async fn start(server: &Server, outputs: Vec<wire::BuildOutput>) -> Result<String, Status> {
    let spec = content::workspace_initializer::Spec::Git(git());
    let initializer = content::WorkspaceInitializer { spec: Some(spec) };
    let request = wire::StartBuildRequest {
        files: Some(wire::BuildFiles {
            from: Some(wire::build_files::From::Workspace(initializer)),
        }),
        outputs,
        ..wire::StartBuildRequest::default()
    };
    let mut client = server.native().await;
    let answer = soon(client.start_build(request)).await?;
    Ok(answer.into_inner().build.unwrap().build_id)
}

/// Returns the size that was told, and what came.
async fn download(server: &Server, build_id: &str, output: u32) -> Result<(u64, Vec<u8>), Status> {
    let mut client = server.native().await;
    let request = wire::DownloadOutputRequest {
        build_id: build_id.to_owned(),
        output,
    };
    let mut pieces = soon(client.download_output(request)).await?.into_inner();
    let (mut size, mut data) = (0, Vec::new());
    while let Some(piece) = soon(pieces.message()).await? {
        size += piece.size;
        data.extend(piece.data);
    }
    Ok((size, data))
}

async fn missing(server: &Server, build_id: &str, output: u32) {
    let status = download(server, build_id, output).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
}

fn succeed(worker: &Arc<Worker>) {
    let image = BuiltImage {
        digest: Digest::sha256(b"image"),
        config_digest: Digest::sha256(b"config"),
        references: Vec::new(),
        outputs: Vec::new(),
        n_run: 1,
        n_cached: 0,
    };
    for phase in [
        Phase::Resolving,
        Phase::Planning,
        Phase::Running,
        Phase::Pushing,
    ] {
        worker.phase(phase);
    }
    worker.event(Event::Succeeded { image });
    worker.die();
}

/// Waits until the service knows that a build has ended.
async fn ended(server: &Server, build_id: &str) {
    let mut client = server.native().await;
    let is_over = async {
        loop {
            let build_id = build_id.to_owned();
            let answer = client.get_build(wire::GetBuildRequest { build_id }).await;
            let build = answer.unwrap().into_inner().build.unwrap();
            if build.phase() >= wire::BuildPhase::Succeeded {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    soon(is_over).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_file_is_fetched_once_and_then_it_is_gone() {
    let world = World::new();
    let server = world.serve().await;
    let outputs = vec![
        export(wire::ExportFormat::Tar, &[]),
        export(wire::ExportFormat::Oci, &["app", "a.b/c:1"]),
    ];
    let id = start(&server, outputs).await.unwrap();
    let worker = world.worker().await;
    let expected = [
        Output::Export {
            format: ExportFormat::Tar,
            name: "output-0".to_owned(),
            references: Vec::new(),
        },
        Output::Export {
            format: ExportFormat::Oci,
            name: "output-1".to_owned(),
            references: vec!["app:latest".parse().unwrap(), "a.b/c:1".parse().unwrap()],
        },
    ];
    assert_eq!(worker.spec.as_ref().unwrap().outputs, expected);
    let output = worker.folder.join("output");
    std::fs::create_dir(&output).unwrap();
    let large: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(output.join("output-0"), b"").unwrap();
    std::fs::write(output.join("output-1"), &large).unwrap();
    // What the worker is still writing is nobody's yet.
    missing(&server, &id, 1).await;
    succeed(&worker);
    ended(&server, &id).await;
    assert_eq!(download(&server, &id, 0).await.unwrap(), (0, Vec::new()));
    let (size, data) = download(&server, &id, 1).await.unwrap();
    assert_eq!(size, large.len() as u64);
    assert!(data == large);
    for output in [0, 1, 2, u32::MAX] {
        missing(&server, &id, output).await;
    }
    assert_eq!(std::fs::read_dir(&output).unwrap().count(), 0);
    missing(&server, "00000000000000000000000000000000", 0).await;
    missing(&server, "../../etc", 0).await;
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_off_can_be_begun_again() {
    let world = World::new();
    let server = world.serve().await;
    let outputs = vec![export(wire::ExportFormat::Docker, &[])];
    let id = start(&server, outputs).await.unwrap();
    let worker = world.worker().await;
    std::fs::create_dir(worker.folder.join("output")).unwrap();
    let content = vec![7; 20 << 20];
    std::fs::write(worker.folder.join("output/output-0"), &content).unwrap();
    succeed(&worker);
    ended(&server, &id).await;
    let mut client = server.native().await;
    let request = wire::DownloadOutputRequest {
        build_id: id.clone(),
        output: 0,
    };
    let mut pieces = soon(client.download_output(request))
        .await
        .unwrap()
        .into_inner();
    soon(pieces.message()).await.unwrap().unwrap();
    drop(pieces);
    assert!(download(&server, &id, 0).await.unwrap().1 == content);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_has_put_in_the_place_of_an_output_is_not_sent() {
    let world = World::new();
    let server = world.serve().await;
    let outputs = vec![export(wire::ExportFormat::Tar, &[])];
    let id = start(&server, outputs.clone()).await.unwrap();
    let worker = world.worker().await;
    std::fs::create_dir(worker.folder.join("output")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", worker.folder.join("output/output-0")).unwrap();
    succeed(&worker);
    ended(&server, &id).await;
    missing(&server, &id, 0).await;

    let id = start(&server, outputs).await.unwrap();
    let worker = world.worker().await;
    std::fs::create_dir(worker.folder.join("output")).unwrap();
    std::fs::write(worker.folder.join("output/output-0"), "x").unwrap();
    worker.fail(FailureKind::Dockerfile, "no");
    ended(&server, &id).await;
    missing(&server, &id, 0).await;
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_that_there_are_not_are_refused() {
    let world = World::new();
    let server = world.serve().await;
    let mut unknown = export(wire::ExportFormat::Tar, &[]);
    if let Some(wire::build_output::Kind::Export(exported)) = &mut unknown.kind {
        exported.format = 99;
    }
    let many = ["a"; 33];
    for output in [
        export(wire::ExportFormat::Unspecified, &[]),
        unknown,
        export(wire::ExportFormat::Oci, &["Not A Name"]),
        export(wire::ExportFormat::Oci, &many),
    ] {
        let status = start(&server, vec![output]).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains("outputs.export"), "{status:?}");
    }
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hour_after_the_end_a_file_that_nobody_has_fetched_goes_and_the_build_stays() {
    let world = World::new();
    let server = world.serve().await;
    let outputs = vec![export(wire::ExportFormat::Oci, &[])];
    let id = start(&server, outputs).await.unwrap();
    let worker = world.worker().await;
    let folder = worker.folder.join("output");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("output-0"), "four").unwrap();
    succeed(&worker);
    ended(&server, &id).await;
    server.stopped().await;
    // A server that starts looks at once: what is fresh stays.
    let server = world.serve().await;
    ended(&server, &id).await;
    server.stopped().await;
    assert!(folder.join("output-0").exists());
    let server = world.serve_two_hours_later().await;
    let gone = async {
        while folder.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    soon(gone).await;
    missing(&server, &id, 0).await;
    // The build is known as before.
    ended(&server, &id).await;
    server.stopped().await;
}
