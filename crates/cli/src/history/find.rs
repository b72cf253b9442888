//! Which builds are meant: those of a state directory, read from their journals, or those of a server, asked for page by page.

use std::path::PathBuf;

use api::kiln::v1 as wire;
use engine::id::BuildId;
use engine::{state, summary};
use service::builds::list::{Filter, Reason, Standing};
use service::grpc::told;

use crate::args::history::full_name;
use crate::args::{Place, Server};
use crate::builds::{self, Stored};
use crate::client::{self, Client};
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::place;

/// How many builds are asked for at a time.
const PAGE_SIZE: usize = 500;

/// Returns at most `limit` builds that the filter wants, the newest first; of a state directory also what could not be read.
pub(super) async fn list(
    (server, place): (&Server, &Place),
    filter: &Filter,
    limit: usize,
) -> Outcome<Vec<wire::Build>> {
    match server.target() {
        Some(server) => list_of_server(&mut client::connect(&server).await?, filter, limit).await,
        None => list_here(place, filter, limit),
    }
}

fn list_here(place: &Place, filter: &Filter, limit: usize) -> Outcome<Vec<wire::Build>> {
    let state = place::find(place)?.state;
    let builds = builds::all(&state).or_exit(Exit::Machine)?;
    let mut found = Vec::new();
    for Stored { folder, record } in builds.into_iter().rev() {
        if found.len() >= limit {
            break;
        }
        match state::of(&folder) {
            Ok((state, ended_at_ms)) if filter.wants(&record, &state) => {
                found.push(told::build(&record, &state, ended_at_ms));
            }
            Ok(_) => {}
            // A journal that cannot be read is worth showing, not a reason to show nothing.
            Err(_) => found.push(wire::Build {
                phase: wire::BuildPhase::Unspecified.into(),
                ..told::build(&record, &state::BuildState::default(), None)
            }),
        }
    }
    Ok(found)
}

async fn list_of_server(
    client: &mut Client,
    filter: &Filter,
    limit: usize,
) -> Outcome<Vec<wire::Build>> {
    let mut found = Vec::new();
    let mut request = request(filter);
    while found.len() < limit {
        let size = PAGE_SIZE.min(limit - found.len());
        request.page_size = u32::try_from(size).unwrap_or(u32::MAX);
        let answer = client.kiln.list_builds(request.clone()).await;
        let page = answer.map_err(client::failure)?.into_inner();
        found.extend(page.builds);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    Ok(found)
}

fn request(filter: &Filter) -> wire::ListBuildsRequest {
    let Filter {
        standings,
        reasons,
        reference,
        triggered_by,
        labels,
        since_ms,
        until_ms,
        purposes: _,
    } = filter.clone();
    let ms = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    let phases = (1..).map_while(|number| wire::BuildPhase::try_from(number).ok());
    let phases = phases.filter(|phase| {
        told::standing(*phase).is_some_and(|standing: Standing| standings.contains(&standing))
    });
    let reason = |reason: Reason| told::wire_reason(reason).into();
    wire::ListBuildsRequest {
        phases: phases.map(Into::into).collect(),
        reasons: reasons.into_iter().map(reason).collect(),
        r#ref: reference.unwrap_or_default(),
        triggered_by: triggered_by.unwrap_or_default(),
        request_labels: labels.into_iter().collect(),
        since_ms: ms(since_ms),
        until_ms: ms(until_ms.unwrap_or_default()),
        ..wire::ListBuildsRequest::default()
    }
}

/// Returns the folder of the build of this machine that `wanted` names.
pub(super) fn folder(place: &Place, wanted: &str) -> Outcome<Stored> {
    let state = place::find(place)?.state;
    let builds = builds::all(&state).or_exit(Exit::Machine)?;
    builds::find(builds, wanted).ok_or_else(|| unknown(wanted, &format!("in {}", state.display())))
}

/// Returns the id of the build on a server that `wanted` names: the newest of that name when it is one.
pub(super) async fn id(client: &mut Client, wanted: &str) -> Outcome<String> {
    if let Ok(id) = wanted.parse::<BuildId>() {
        return Ok(id.to_string());
    }
    let mut names = vec![wanted.to_owned(), full_name(wanted)];
    names.dedup();
    for name in names {
        let filter = Filter {
            reference: Some(name),
            ..Filter::default()
        };
        if let Some(build) = list_of_server(client, &filter, 1).await?.pop() {
            return Ok(build.build_id);
        }
    }
    Err(unknown(wanted, "on the server"))
}

fn unknown(wanted: &str, place: &str) -> Failure {
    let text = format!("there is no build {wanted:?} {place}");
    Failure::text(Exit::Usage, text).hint("`kiln ls --all` lists them")
}

/// A build with everything that is known of it.
pub(super) struct Known {
    pub(super) build: wire::Build,
    pub(super) detail: wire::BuildDetail,
    pub(super) artifacts: Vec<wire::Artifact>,
    /// Where it is, when it is here.
    pub(super) folder: Option<PathBuf>,
}

/// Returns the build that `wanted` names.
pub(super) async fn one((server, place): (&Server, &Place), wanted: &str) -> Outcome<Known> {
    match server.target() {
        Some(server) => {
            let mut client = client::connect(&server).await?;
            let build_id = id(&mut client, wanted).await?;
            one_of_server(&mut client, build_id).await
        }
        None => one_here(place, wanted),
    }
}

fn one_here(place: &Place, wanted: &str) -> Outcome<Known> {
    let Stored { folder, record } = self::folder(place, wanted)?;
    let summary = summary::of(&folder).or_exit(Exit::Machine)?;
    let image = |(reference, digest): &(oci::Reference, oci::Digest)| wire::Artifact {
        kind: Some(wire::artifact::Kind::Image(wire::ImageArtifact {
            reference: reference.to_string(),
            digest: digest.to_string(),
        })),
    };
    Ok(Known {
        build: told::build(&record, &summary.state, summary.ended_at_ms),
        detail: told::detail(&summary),
        artifacts: summary.published.iter().map(image).collect(),
        folder: Some(folder),
    })
}

async fn one_of_server(client: &mut Client, build_id: String) -> Outcome<Known> {
    let request = wire::GetBuildRequest {
        build_id: build_id.clone(),
    };
    let answer = client.kiln.get_build(request).await;
    let told = answer.map_err(client::failure)?.into_inner();
    let request = wire::ListArtifactsRequest { build_id };
    let answer = client.kiln.list_artifacts(request).await;
    Ok(Known {
        build: told.build.unwrap_or_default(),
        detail: told.detail.unwrap_or_default(),
        artifacts: answer.map_err(client::failure)?.into_inner().artifacts,
        folder: None,
    })
}
