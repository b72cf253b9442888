//! Commands that look and change nothing: `ls`, `logs`, `resolve`, `config`, `version`, `completions`.

use api::builder::{BuildStatus, ListBuildsRequest, LogsRequest};
use clap::CommandFactory;
use engine::follow::follow;
use engine::id::BuildId;
use engine::journal::Body;
use engine::render::Renderer;
use engine::state::BuildState;
use futures_util::StreamExt;
use oci::{Document, Platform, Reference};
use registry::client::Client;
use serde_json::json;

use crate::args::{Cli, LogsArgs, LsArgs, Place, Progress, ResolveArgs};
use crate::builds::{self, Stored};
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::progress::{Style, now_ms};
use crate::{client, place, terminal};

/// `kiln ls`.
pub(crate) async fn ls(args: LsArgs) -> Outcome {
    let rows = match &args.server.server {
        Some(address) => rows_of_server(address).await?,
        None => rows_of_state(&args)?,
    };
    if args.json {
        for row in &rows {
            terminal::data(&row.json().to_string()).or_exit(Exit::Machine)?;
        }
        return Ok(());
    }
    let header = format!("{:26}  {:9}  {:>8}  IMAGE", "BUILD", "STATE", "STARTED");
    terminal::data(&header).or_exit(Exit::Machine)?;
    for row in &rows {
        let age = age(now_ms().saturating_sub(row.started_at_ms));
        let line = format!(
            "{:26}  {:9}  {age:>8}  {}",
            row.id, row.state, row.reference
        );
        terminal::data(&line).or_exit(Exit::Machine)?;
    }
    Ok(())
}

struct Row {
    id: String,
    state: &'static str,
    started_at_ms: u64,
    reference: String,
}

impl Row {
    fn json(&self) -> serde_json::Value {
        json!({
            "id": self.id,
            "state": self.state,
            "started_at_ms": self.started_at_ms,
            "reference": self.reference,
        })
    }
}

fn rows_of_state(args: &LsArgs) -> Outcome<Vec<Row>> {
    let state = place::find(&args.place)?.state;
    let row = |build: Stored| Row {
        // A journal that cannot be read is a state worth showing, not a reason to show nothing.
        state: builds::state(&build)
            .as_ref()
            .map_or("damaged", builds::word),
        id: build.record.id.to_string(),
        started_at_ms: build.record.started_at_ms,
        reference: build.record.reference,
    };
    let builds = builds::all(&state).or_exit(Exit::Machine)?;
    Ok(builds.into_iter().map(row).collect())
}

async fn rows_of_server(address: &str) -> Outcome<Vec<Row>> {
    let mut client = client::connect(address).await?;
    let answer = client.builder.list_builds(ListBuildsRequest {}).await;
    let builds = answer.map_err(client::failure)?.into_inner().builds;
    let row = |build: api::builder::BuildInfo| Row {
        state: match build.status() {
            BuildStatus::Unknown => "queued",
            BuildStatus::Running => "running",
            BuildStatus::DoneSuccess => "succeeded",
            BuildStatus::DoneFailure => "failed",
        },
        started_at_ms: u64::try_from(build.started_at).unwrap_or(0) * 1000,
        id: build.build_id,
        reference: build.r#ref,
    };
    Ok(builds.into_iter().map(row).collect())
}

fn age(ms: u64) -> String {
    match ms / 1000 {
        s @ 0..60 => format!("{s}s ago"),
        s @ 60..3600 => format!("{}m ago", s / 60),
        s @ 3600..86_400 => format!("{}h ago", s / 3600),
        s => format!("{}d ago", s / 86_400),
    }
}

/// `kiln logs`.
pub(crate) async fn logs(args: LogsArgs) -> Outcome {
    match &args.server.server {
        Some(address) => logs_of_server(address, &args.build).await,
        None => logs_of_state(&args).await,
    }
}

/// The log is data: only what a terminal would act upon is taken out of it, and only for a terminal.
fn show(text: Vec<u8>) -> Outcome {
    let style = if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        Style::choose(Progress::Plain)
    } else {
        Style::Plain
    };
    terminal::data_bytes(&style.text(text)).or_exit(Exit::Machine)
}

async fn logs_of_state(args: &LogsArgs) -> Outcome {
    let state = place::find(&args.place)?.state;
    let builds = builds::all(&state).or_exit(Exit::Machine)?;
    let Some(build) = builds::find(builds, &args.build) else {
        let text = format!("there is no build {:?} in {}", args.build, state.display());
        return Err(Failure::text(Exit::Usage, text).hint("`kiln ls` lists them"));
    };
    let mut records = std::pin::pin!(follow(build.folder));
    let mut renderer = Renderer::default();
    let mut end = BuildState::default();
    while let Some(record) = records.next().await {
        let record = record.or_exit(Exit::Internal)?;
        let mut text = Vec::new();
        renderer.render(&record, &mut text);
        show(text)?;
        if let Body::Event(event) = &record.body {
            end = end.next(event).or_exit(Exit::Internal)?;
        }
    }
    Ok(())
}

async fn logs_of_server(address: &str, build: &str) -> Outcome {
    let mut client = client::connect(address).await?;
    let mut request = LogsRequest::default();
    match build.parse::<BuildId>() {
        Ok(id) => request.build_id = id.to_string(),
        Err(_) => build.clone_into(&mut request.build_ref),
    }
    let answer = client.builder.logs(request).await;
    let mut log = answer.map_err(client::failure)?.into_inner();
    while let Some(piece) = log.message().await.map_err(client::failure)? {
        show(piece.content)?;
    }
    Ok(())
}

/// `kiln resolve`.
pub(crate) async fn resolve(args: ResolveArgs) -> Outcome {
    let resolved = match &args.server.server {
        Some(address) => {
            let mut client = client::connect(address).await?;
            client::resolve(&mut client, &args.reference.to_string()).await?
        }
        None => resolve_image(&args.place, &args.reference)
            .await?
            .to_string(),
    };
    terminal::data(&resolved).or_exit(Exit::Machine)
}

/// Returns the digest form of `reference`, as this machine's user sees it.
pub(crate) async fn resolve_image(place: &Place, reference: &Reference) -> Outcome<Reference> {
    let found = place::find(place)?;
    let hosts = found
        .config
        .registry
        .with_files_read()
        .or_exit(Exit::Usage)?;
    let keychain = place::keychain()?;
    let client = Client::new(hosts, keychain, place::client_options()).or_exit(Exit::Usage)?;
    let resolved = client.resolve(reference).await.or_exit(Exit::Unreachable)?;
    let host = Platform::host();
    let digest = match resolved.document {
        Document::Manifest(_) => resolved.descriptor.digest,
        Document::Index(index) => {
            let serves = |platform: &Platform| platform.satisfies(&host);
            let found = index
                .manifests
                .into_iter()
                .find(|entry| entry.platform.as_ref().is_some_and(serves));
            let missing = || {
                let text = format!("{reference} has no image for {host}");
                Failure::text(Exit::Unreachable, text)
            };
            found.ok_or_else(missing)?.digest
        }
    };
    Ok(reference.with_digest(digest))
}

/// `kiln config`.
pub(crate) fn config() -> Outcome {
    terminal::data_bytes(service::config::print_documented().as_bytes()).or_exit(Exit::Machine)
}

/// `kiln version`.
pub(crate) fn version() -> Outcome {
    terminal::data(&format!("kiln {}", env!("CARGO_PKG_VERSION"))).or_exit(Exit::Machine)
}

/// `kiln completions`.
pub(crate) fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kiln", &mut script);
    terminal::data_bytes(&script).or_exit(Exit::Machine)
}
