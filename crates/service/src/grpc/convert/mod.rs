//! Between the wire's words and ours. Pure; nothing else names both.
//!
//! What a request says is checked here, all of it, before anything is looked up. What is refused is refused with `INVALID_ARGUMENT`
//! and the name of the field.

mod initializer;
mod list;
mod start;

use std::collections::HashMap;

use api::builder as wire;
use api::contentservice as content;
use engine::state::BuildState;
use oci::Reference;
use registry::keychain::Keychain;
use source::git::FetchOptions;
use source::path::RelPath;

use crate::access::{Grant, Rights, parse_hosts};
use crate::builds::build::{Build, Progress};
use crate::failure::{Blame, Failure, build_message};
use crate::names::{NamedFields, Rebuild};
use crate::request::{BuildCall, FileSource, Source};
use crate::subassembly::Standing;
use crate::web::tokens::LogGrant;

pub(super) use self::list::{ListCall, list_call, log_call};
pub(super) use self::start::native_call;

/// Longest text of one field that has no shorter limit of its own.
const FIELD_MAX_BYTES: usize = 8 << 10;
/// Most credentials that a request brings, and most hosts that it names.
const HOSTS_MAX: usize = 256;

/// Returns what a request to build asks for.
pub(super) fn build_call(
    request: wire::BuildRequest,
    fetch: &FetchOptions,
) -> Result<BuildCall, Failure> {
    let resolved = short("base_image_name_resolved", request.base_image_name_resolved)?;
    Ok(BuildCall {
        source: source(request.source, fetch)?,
        rights: rights(request.auth)?,
        rebuild: if request.force_rebuild {
            Rebuild::Force
        } else {
            Rebuild::IfMissing
        },
        triggered_by: short("triggered_by", request.triggered_by)?,
        supervisor_ref: short("supervisor_ref", request.supervisor_ref)?,
        resolved_base: Some(resolved).filter(|base| !base.is_empty()),
    })
}

/// Returns what an image is made from.
pub(super) fn source(
    source: Option<wire::BuildSource>,
    fetch: &FetchOptions,
) -> Result<Source, Failure> {
    let missing = || Failure::new(Blame::Request, "build source is missing");
    match source.and_then(|source| source.from).ok_or_else(missing)? {
        wire::build_source::From::Ref(from) => Ok(Source::Image(reference(&from.r#ref)?)),
        wire::build_source::From::File(file) => {
            Ok(Source::File(Box::new(file_source(file, fetch)?)))
        }
    }
}

/// Returns the image that a text means.
pub(super) fn reference(text: &str) -> Result<Reference, Failure> {
    text.parse().map_err(|error| {
        let error: oci::reference::ReferenceError = error;
        Failure::new(
            Blame::Request,
            format!("cannot resolve image: {}", crate::failure::chain(&error)),
        )
    })
}

fn file_source(
    file: wire::BuildSourceDockerfile,
    fetch: &FetchOptions,
) -> Result<FileSource, Failure> {
    let missing = || Failure::new(Blame::Request, "file source has no context initializer");
    let from = file.source.and_then(|source| source.spec);
    let from = from.ok_or_else(missing)?;
    let (clone_target, remote_uri) = match &from {
        content::workspace_initializer::Spec::Git(git) => {
            let target = short("clone_taget", git.clone_taget.clone())?;
            (target, git.remote_uri.clone())
        }
        content::workspace_initializer::Spec::Empty(_) => {
            let text = "context initializer empty has no Dockerfile to build; name a git repository, or an image with ref";
            return Err(Failure::new(Blame::Request, text));
        }
        _ => (String::new(), String::new()),
    };
    let initializer = initializer::of(from, fetch)?;
    let fields = NamedFields {
        clone_target,
        context_path: short("context_path", file.context_path)?,
        dockerfile_path: short("dockerfile_path", file.dockerfile_path)?,
        dockerfile_version: short("dockerfile_version", file.dockerfile_version)?,
        remote_uri,
    };
    Ok(FileSource {
        dockerfile: path("dockerfile_path", &fields.dockerfile_path)?,
        context_path: path("context_path", &fields.context_path)?,
        initializer,
        fields,
    })
}

/// Returns a path within the workspace, normalised; `None` when none was given.
fn path(name: &str, text: &str) -> Result<Option<String>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    let path = RelPath::parse_in_workspace(text).map_err(|error| Failure::field(name, &error))?;
    Ok(Some(path.to_string()))
}

/// Returns what a request may pull with.
pub(super) fn rights(auth: Option<wire::BuildRegistryAuth>) -> Result<Rights, Failure> {
    let Some(auth) = auth else {
        return Ok(Rights::default());
    };
    let too_many = |name: &str| {
        let text = format!("{name}: more than {HOSTS_MAX} hosts");
        Failure::new(Blame::Request, text)
    };
    let grant = match auth.mode {
        Some(wire::build_registry_auth::Mode::Total(total)) if total.allow_all => Grant::Everything,
        None | Some(wire::build_registry_auth::Mode::Total(_)) => Grant::Nothing,
        Some(wire::build_registry_auth::Mode::Selective(selective)) => {
            if selective.any_of.len() > HOSTS_MAX {
                return Err(too_many("auth.selective.any_of"));
            }
            Grant::Hosts {
                base: selective.allow_baserep.into(),
                workspace: selective.allow_workspacerep.into(),
                others: parse_hosts(&selective.any_of)
                    .map_err(|error| Failure::field("auth.selective.any_of", &error))?,
            }
        }
    };
    if auth.additional.len() > HOSTS_MAX {
        return Err(too_many("auth.additional"));
    }
    Ok(Rights {
        grant,
        additional: additional(&auth.additional)?,
        ..Rights::default()
    })
}

fn additional(entries: &HashMap<String, String>) -> Result<Keychain, Failure> {
    let entries = entries
        .iter()
        .map(|(domain, value)| (domain.as_str(), value.as_str()));
    Keychain::from_additional(entries).map_err(|error| Failure::field("auth.additional", &error))
}

fn short(name: &str, text: String) -> Result<String, Failure> {
    if text.len() > FIELD_MAX_BYTES {
        let text = format!("{name}: longer than {FIELD_MAX_BYTES} bytes");
        return Err(Failure::new(Blame::Request, text));
    }
    Ok(text)
}

/// Returns the published status of a build: a projection of its state.
pub(super) fn status(state: &BuildState) -> wire::BuildStatus {
    match state {
        BuildState::Queued { .. } | BuildState::Active { .. } => wire::BuildStatus::Running,
        BuildState::Succeeded { .. } => wire::BuildStatus::DoneSuccess,
        BuildState::Failed { .. } | BuildState::Cancelled => wire::BuildStatus::DoneFailure,
    }
}

/// Returns what is told to a person of where a build stands.
pub(super) fn message(state: &BuildState) -> String {
    use engine::event::Phase;
    match state {
        BuildState::Queued { ahead: None } => "waiting for its turn".to_owned(),
        BuildState::Queued { ahead: Some(n) } => engine::render::waiting(*n),
        BuildState::Active { phase } => match phase {
            Phase::Resolving => "fetching sources and resolving base images",
            Phase::Planning => "planning",
            Phase::Running => "running steps",
            Phase::Pushing => "publishing the image",
        }
        .to_owned(),
        BuildState::Succeeded { .. } => String::new(),
        BuildState::Failed { failure } => build_message(failure),
        BuildState::Cancelled => "build failed: it was cancelled".to_owned(),
    }
}

/// Returns where a log can be read.
pub(super) fn log_info(grant: LogGrant) -> wire::LogInfo {
    wire::LogInfo {
        url: grant.url,
        headers: HashMap::from([(grant.header.to_owned(), grant.token)]),
    }
}

/// Returns the published description of a build.
pub(super) fn info(build: &Build, progress: &Progress, log_info: wire::LogInfo) -> wire::BuildInfo {
    let started_at = i64::try_from(build.record.started_at_ms / 1000).unwrap_or(i64::MAX);
    wire::BuildInfo {
        r#ref: build.record.reference.clone(),
        status: status(&progress.state).into(),
        started_at,
        base_ref: build.record.base_reference.clone(),
        build_id: build.record.id.to_string(),
        log_info: Some(log_info),
    }
}

/// Returns the message of a build's stream that says where it stands.
pub(super) fn build_response(
    build: &Build,
    progress: &Progress,
    log_info: wire::LogInfo,
) -> wire::BuildResponse {
    wire::BuildResponse {
        r#ref: build.record.reference.clone(),
        status: status(&progress.state).into(),
        message: message(&progress.state),
        base_ref: build.record.base_reference.clone(),
        info: Some(info(build, progress, log_info)),
    }
}

/// Returns the image that a field of a request names.
pub(super) fn image_name(field: &str, text: &str) -> Result<Reference, Failure> {
    if text.is_empty() {
        return Err(Failure::new(Blame::Request, format!("{field} is missing")));
    }
    reference(text)
}

/// Returns where a subassembly stands, in the wire's words; `url` makes the address of its file.
pub(super) fn subassembly_status(
    standing: Standing,
    url: impl FnOnce(&oci::Digest) -> String,
) -> wire::SubassemblyStatus {
    let phase = |phase: wire::SubassemblyPhase, message: &str| wire::SubassemblyStatus {
        phase: phase.into(),
        message: message.to_owned(),
        ..wire::SubassemblyStatus::default()
    };
    match standing {
        Standing::Creating => phase(wire::SubassemblyPhase::Creating, "it is being made"),
        Standing::Unavailable(why) => phase(wire::SubassemblyPhase::Unavailable, &why),
        Standing::Available(available) => {
            let stored = available.stored;
            wire::SubassemblyStatus {
                digest: stored.digest.to_string(),
                url: available.url.unwrap_or_else(|| url(&stored.digest)),
                // Texts, numbers and lists: writing them down cannot fail.
                manifest: serde_json::to_vec(&stored.manifest).unwrap_or_default(),
                ..phase(wire::SubassemblyPhase::Available, "")
            }
        }
    }
}

/// Returns our description of a build.
pub(super) fn native(build: &Build, progress: &Progress) -> api::kiln::v1::Build {
    super::told::build(&build.record, &progress.state, progress.ended_at_ms)
}

#[cfg(test)]
mod tests;
