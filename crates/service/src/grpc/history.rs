//! What is told of builds after the fact: one of them, lists, logs, and what they have made.
//!
//! Everything is read from journals when it is asked for, beside the runtime's threads; nothing is kept.

use std::path::PathBuf;
use std::sync::Arc;

use api::kiln::v1 as wire;
use engine::journal::JournalError;
use engine::spec::Purpose;
use engine::state::BuildState;
use engine::summary::{self, Summary};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::convert::{self, ListCall};
use super::stream::log_error;
use super::{retry, told};
use crate::access::Tenant;
use crate::builds::Builds;
use crate::builds::build::{Build, Progress};
use crate::builds::log::{self, Wanted};
use crate::builds::requests::Requests;
use crate::failure::Failure;
use crate::lifecycle::not_found;
use crate::outputs;

/// Outputs of one request that may be files: as many as a request may have.
const OUTPUTS_MAX: u32 = 32;

/// Returns a build with what its journal tells.
pub(super) async fn build(
    requests: &Requests,
    build: &Build,
) -> Result<wire::GetBuildResponse, Failure> {
    let progress = build.progress();
    let asked = retry::asked(requests, &build.record.id).await?;
    let mut detail = match &progress.folder {
        Some(folder) => told::detail(&summary_of(folder.clone()).await?),
        None => wire::BuildDetail::default(),
    };
    detail.request = asked.map(|mut asked| asked.gone());
    Ok(wire::GetBuildResponse {
        build: Some(convert::native(build, &progress)),
        detail: Some(detail),
    })
}

async fn summary_of(folder: PathBuf) -> Result<Summary, Failure> {
    const TEXT: &str = "the journal of the build cannot be read";
    let read = tokio::task::spawn_blocking(move || summary::of(&folder)).await;
    match read.map_err(|error| Failure::platform(TEXT, error))? {
        Ok(summary) => Ok(summary),
        // It was forgotten meanwhile.
        Err(JournalError::Open { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Err(not_found())
        }
        Err(error) => Err(Failure::platform(TEXT, error)),
    }
}

/// Returns a page of a tenant's builds.
pub(super) fn page(builds: &Builds, tenant: &Tenant, call: ListCall) -> wire::ListBuildsResponse {
    let page = builds.page(tenant, &call.filter, call.from, call.size);
    let told = page
        .builds
        .iter()
        .map(|build| convert::native(build, &build.progress()));
    wire::ListBuildsResponse {
        builds: told.collect(),
        next_page_token: page
            .next
            .map(|place| place.token(&call.filter))
            .unwrap_or_default(),
    }
}

/// Returns the pieces of a log, each with its offset.
pub(super) fn log(
    build: Arc<Build>,
    wanted: Wanted,
    shutdown: CancellationToken,
) -> BoxStream<'static, Result<wire::GetLogResponse, Status>> {
    let mut offset = wanted.offset;
    let text = log::read(build, wanted, shutdown);
    text.map(move |piece| {
        let content = piece.map_err(log_error)?;
        let begins = offset;
        offset += content.len() as u64;
        Ok(wire::GetLogResponse {
            offset: begins,
            content,
        })
    })
    .boxed()
}

/// Returns what a build has made.
pub(super) async fn artifacts(build: &Build) -> Result<Vec<wire::Artifact>, Failure> {
    let progress = build.progress();
    let Progress {
        state: BuildState::Succeeded { image },
        folder: Some(folder),
        ended_at_ms,
    } = progress
    else {
        return Ok(Vec::new());
    };
    let mut kinds = Vec::new();
    let published = summary_of(folder.clone()).await?.published;
    for (reference, digest) in published {
        kinds.push(wire::artifact::Kind::Image(wire::ImageArtifact {
            reference: reference.to_string(),
            digest: digest.to_string(),
        }));
    }
    if build.record.purpose == Purpose::Subassembly {
        let reference = build.record.reference.clone();
        let made = wire::SubassemblyArtifact { reference };
        kinds.push(wire::artifact::Kind::Subassembly(made));
    }
    let told: Vec<u32> = image
        .outputs
        .iter()
        .filter_map(|name| outputs::index_of(name))
        .collect();
    let expires_at_ms = ended_at_ms.unwrap_or_default()
        + u64::try_from(outputs::LIFETIME.as_millis()).unwrap_or_default();
    let files = move || {
        let files = (0..OUTPUTS_MAX).filter_map(|output| {
            let found = outputs::open(&folder, output).ok().flatten();
            let file = match found {
                Some(found) => wire::FileArtifact {
                    output,
                    available: true,
                    size_bytes: found.size,
                    expires_at_ms: told::ms(expires_at_ms),
                },
                None if told.contains(&output) => wire::FileArtifact {
                    output,
                    ..wire::FileArtifact::default()
                },
                None => return None,
            };
            Some(wire::artifact::Kind::File(file))
        });
        files.collect::<Vec<_>>()
    };
    let files = tokio::task::spawn_blocking(files).await;
    kinds.extend(files.map_err(|error| Failure::platform("the outputs cannot be listed", error))?);
    let artifact = |kind| wire::Artifact { kind: Some(kind) };
    Ok(kinds.into_iter().map(artifact).collect())
}
