//! `kiln retry`: the request of a build of a server, made once more.
//!
//! The server keeps nothing secret of a request and says what it lacks. Credentials of registries come from where `docker login` left them,
//! secrets from the command line; what only the first command knew is for that command.

use api::builder::BuildRegistryAuth;
use api::kiln::v1 as wire;
use service::builds::list::Reason;
use service::grpc::told;

use super::{find, logs, reason};
use crate::args::history::RetryArgs;
use crate::build::remote::request::additional;
use crate::build::secrets;
use crate::client::{self, Client};
use crate::failure::{Exit, Failure, OrExit, Outcome};
use crate::{place, terminal};

/// `kiln retry`.
pub(crate) async fn retry(args: RetryArgs) -> Outcome {
    let Some(server) = args.server.target() else {
        let text = "only requests to servers are kept: run `kiln build` once more for a build of this machine";
        return Err(Failure::text(Exit::Usage, text).hint("--server ADDR says which server"));
    };
    let mut client = client::connect(&server).await?;
    let build_id = find::id(&mut client, &args.build).await?;
    let request = request(&mut client, &args, build_id).await?;
    let answer = client.kiln.retry_build(request).await;
    let build = answer.map_err(client::failure)?.into_inner().build;
    let id = build.unwrap_or_default().build_id;
    terminal::data(&id).or_exit(Exit::Machine)?;
    if !args.follow {
        return Ok(());
    }
    let log = wire::GetLogRequest {
        build_id: id.clone(),
        follow: true,
        ..wire::GetLogRequest::default()
    };
    logs::of_server(&mut client, log).await?;
    ended(&mut client, id).await
}

async fn request(
    client: &mut Client,
    args: &RetryArgs,
    build_id: String,
) -> Outcome<wire::RetryBuildRequest> {
    let asked = wire::GetBuildRequest {
        build_id: build_id.clone(),
    };
    let answer = client.kiln.get_build(asked).await;
    let detail = answer.map_err(client::failure)?.into_inner().detail;
    let kept = detail.and_then(|detail| detail.request).unwrap_or_default();
    if !kept.ssh_agents.is_empty() {
        let text = "the build was lent an SSH agent, which this command does not lend";
        return Err(Failure::text(Exit::Usage, text).hint("run `kiln build` once more"));
    }
    let hosts: Vec<&str> = kept.credentials.iter().map(String::as_str).collect();
    let keychain = place::keychain()?.only(&hosts);
    let secrets = secrets::read(&args.secrets)?.into_iter();
    Ok(wire::RetryBuildRequest {
        build_id,
        secrets: secrets
            .map(|(id, value)| (id, value.reveal().to_vec()))
            .collect(),
        auth: Some(BuildRegistryAuth {
            mode: None,
            additional: additional(&keychain),
        }),
        ..wire::RetryBuildRequest::default()
    })
}

/// Ends as a build did.
async fn ended(client: &mut Client, build_id: String) -> Outcome {
    let request = wire::GetBuildRequest { build_id };
    let answer = client.kiln.get_build(request).await;
    let build = answer.map_err(client::failure)?.into_inner().build;
    let build = build.unwrap_or_default();
    let failure = build.failure.as_ref().map(wire::BuildFailure::reason);
    match failure.and_then(told::reason) {
        // The log has said why.
        Some(Reason::Failed(kind)) => Err(Failure::silent(Exit::of_build(kind))),
        Some(Reason::Cancelled) => Err(Failure::silent(Exit::Interrupted)),
        None if failure.is_some() => {
            let text = format!("the build failed: {}", reason(&build));
            Err(Failure::text(Exit::Internal, text))
        }
        None => Ok(()),
    }
}
